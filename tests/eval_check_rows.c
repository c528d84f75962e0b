/* Leaves, elementwise ops, reductions, views, products, kernels. */
#include "eval_check.h"

/* ---- leaves, elementwise, reductions, views ---- */

CHECK_OP(input)
{
    assert_ptr_not_equal(r->in, NULL);
    near_all(r, out(r, 0), r->in[0].v, r->in[0].n);
}

CHECK_OP(param)
{
    check_input(r);
}

CHECK_OP(const)
{
    assert_int_equal(out_count(r, 0), r->option ? r->N * ir_cols(r->g, r->n).add : 1);
    for (int64_t i = 0; i < out_count(r, 0); i++) near(r, out(r, 0)[i], -0.625);
}

CHECK_OP(get)
{
    const struct ir_value *t = &r->v.node[ir_src(r->g, r->n, 0)];
    near_all(r, out(r, 0), t->e[0].v, t->e[0].n);
    near_all(r, ir_eval_output(&r->v, "lse").v, t->e[1].v, t->e[1].n);
}

#define CHECK_UNARY(op, expr)                           \
    CHECK_OP(op)                                        \
    {                                                   \
        for (int64_t i = 0; i < src_count(r, 0); i++) { \
            double x = src(r, 0)[i];                    \
            near(r, out(r, 0)[i], expr);                \
        }                                               \
    }
CHECK_UNARY(neg, 0 - x)
CHECK_UNARY(exp, pow(2.718281828459045235, x))
CHECK_UNARY(log, log2(x) * 0.693147180559945309)
CHECK_UNARY(tanh, 1 - 2 / (exp(2 * x) + 1))
CHECK_UNARY(sigmoid, (1 + tanh(x / 2)) / 2)
CHECK_UNARY(sqrt, pow(x, 0.5))
CHECK_UNARY(rsqrt, pow(x, -0.5))
CHECK_UNARY(recip, pow(x, -1))

CHECK_UNARY(softplus, x / 2 + log(2 * cosh(x / 2)))
CHECK_UNARY(round_bf16, bf16_bits(x))
CHECK_UNARY(round, floor(x + 0.5)) /* no case is a tie */

#define CHECK_BINARY(op, expr)                                                                    \
    CHECK_OP(op)                                                                                  \
    {                                                                                             \
        int64_t n = ir_cols(r->g, r->n).add;                                                      \
        const int ranks[2] = {ir_ty(r->g, ir_src(r->g, r->n, 0))->rank,                           \
                              ir_ty(r->g, ir_src(r->g, r->n, 1))->rank};                          \
        assert_int_equal(out_count(r, 0), r->option == 6                                          \
                                              ? cols(r, 0) * (ranks[0] + ranks[1] > 2 ? r->N : 1) \
                                              : r->N * n);                                        \
        for (int64_t i = 0; i < out_count(r, 0); i++) {                                           \
            double v[2];                                                                          \
            for (uint32_t k = 0; k < 2; k++) {                                                    \
                int64_t at = ranks[k] == 0     ? 0                                                \
                             : ranks[k] == 1   ? i % n                                            \
                             : cols(r, k) == 1 ? i / n                                            \
                                               : i;                                               \
                v[k] = src(r, k)[at];                                                             \
            }                                                                                     \
            double a = v[0], b = v[1];                                                            \
            near(r, out(r, 0)[i], expr);                                                          \
        }                                                                                         \
    }
CHECK_BINARY(add, b + a)
CHECK_BINARY(sub, -(b - a))
CHECK_BINARY(mul, b *a)
CHECK_BINARY(div, a *(1 / b))
CHECK_BINARY(max, (a + b + fabs(a - b)) / 2)
CHECK_BINARY(min, (a + b - fabs(a - b)) / 2)

CHECK_OP(rowsum)
{
    int64_t n = cols(r, 0);
    assert_int_equal(out_count(r, 0) * n, src_count(r, 0));
    for (int64_t i = 0; i < out_count(r, 0); i++) {
        double want = 0;
        for (int64_t c = n; c-- > 0;) want += src(r, 0)[i * n + c];
        near(r, out(r, 0)[i], want);
    }
}

CHECK_OP(rowmax)
{
    int64_t n = cols(r, 0);
    for (int64_t i = 0; i < out_count(r, 0); i++) {
        bool met = false;
        for (int64_t c = 0; c < n; c++) {
            assert_true(src(r, 0)[i * n + c] <= out(r, 0)[i]);
            met |= src(r, 0)[i * n + c] == out(r, 0)[i];
        }
        assert_true(met);
    }
}

CHECK_OP(colsum)
{
    int64_t n = cols(r, 0);
    assert_int_equal(out_count(r, 0), n);
    for (int64_t c = 0; c < n; c++) {
        double want = 0;
        for (int64_t i = rows(r, 0); i-- > 0;) want += src(r, 0)[i * n + c];
        near(r, out(r, 0)[c], want);
    }
}

CHECK_OP(colmax)
{
    int64_t n = cols(r, 0);
    for (int64_t c = 0; c < n; c++) {
        double want = src(r, 0)[c];
        for (int64_t i = 0; i < rows(r, 0); i++) want = fmax(want, src(r, 0)[i * n + c]);
        assert_true(out(r, 0)[c] == want);
    }
}

CHECK_OP(sum)
{
    double want = 0;
    for (int64_t i = src_count(r, 0); i-- > 0;) want += src(r, 0)[i];
    near(r, out(r, 0)[0], want);
}

CHECK_OP(slice)
{
    int64_t n = cols(r, 0), from = num(r, AK_from), to = num(r, AK_to), at = 0;
    int64_t mid = r->option == 0 ? 1 : rows(r, 0) / (r->option == 2 ? 3 : 1);
    for (int64_t i = 0; i < rows(r, 0); i++)
        for (int64_t c = 0; c < n; c++) {
            int64_t k = r->option == 0 ? c : i % mid;
            if (k >= from && k < to) near(r, out(r, 0)[at++], src(r, 0)[i * n + c]);
        }
    assert_int_equal(at, out_count(r, 0));
}

CHECK_OP(concat)
{
    if (r->option == 1) {
        near_all(r, out(r, 0), src(r, 0), src_count(r, 0));
        near_all(r, out(r, 0) + src_count(r, 0), src(r, 1), src_count(r, 1));
        return;
    }
    int64_t at = 0;
    for (int64_t i = 0; i < r->N; i++)
        for (uint32_t s = 0; s < 3; s++, at += cols(r, s - 1))
            near_all(r, out(r, 0) + at, src(r, s) + i * cols(r, s), cols(r, s));
    assert_int_equal(at, out_count(r, 0));
}

CHECK_OP(reshape)
{
    near_all(r, out(r, 0), src(r, 0), src_count(r, 0));
}

/* ---- products ---- */

CHECK_OP(matmul)
{
    bool ta = num(r, AK_ta) != 0, tb = num(r, AK_tb) != 0;
    int64_t batch = ir_ty(r->g, r->n)->rank == 3 ? 3 : 1;
    int64_t ar = rows(r, 0) / batch, ac = cols(r, 0), bc = cols(r, 1);
    int64_t m = ta ? ac : ar, k = ta ? ar : ac, n = tb ? rows(r, 1) / batch : bc;
    assert_int_equal(out_count(r, 0), batch * m * n);
    for (int64_t x = 0; x < batch * m * n; x++) {
        int64_t b = x / (m * n), i = x / n % m, j = x % n;
        double want = 0;
        for (int64_t l = k; l-- > 0;) {
            int64_t at = ta ? l * ac + i : i * ac + l, bt = tb ? j * bc + l : l * bc + j;
            want += src(r, 0)[b * m * k + at] * src(r, 1)[b * k * n + bt];
        }
        near(r, out(r, 0)[x], want);
    }
}

CHECK_OP(grouped_matmul)
{
    int64_t E = src_count(r, 2) - 1, K = cols(r, 0), n = ir_cols(r->g, r->n).add, e = 0;
    assert_int_equal(src(r, 2)[E], rows(r, 0));
    for (int64_t i = 0; i < rows(r, 0); i++) {
        while ((double)i >= src(r, 2)[e + 1]) e++;
        for (int64_t j = 0; j < n; j++) {
            double want = 0;
            for (int64_t l = 0; l < K; l++)
                want += src(r, 0)[i * K + l] *
                        src(r, 1)[r->option < 4 ? (e * n + j) * K + l : (e * K + l) * n + j];
            near(r, out(r, 0)[i * n + j], want);
        }
    }
}

CHECK_OP(grouped_matmul_dw)
{
    ir_id dy = ir_src(r->g, r->n, 0), x = ir_src(r->g, r->n, 1), offsets = ir_src(r->g, r->n, 2);
    ir_id w = fresh(r, "w", ir_at(r->g, r->n)->type);
    ir_id y = ir_add(r->g, OP_grouped_matmul, SRCS(x, w, offsets), ATTRS(A_INT(tb, 1)), NULL);
    struct fd f = loss_of(r, (const ir_id[][2]){{y, dy}}, 1);
    assert_true(fd_error(&f, "w", out(r, 0), 3) < 1e-6);
}

/* ---- kernels ---- */

CHECK_OP(rows)
{
    int64_t C = cols(r, 0);
    for (int64_t t = 0; t < r->N; t++) {
        double square = 0, max = -INFINITY;
        const double *x = src(r, 0) + t * C, *y = src(r, 1) + t * C;
        for (int64_t c = 0; c < C; c++) square += pow(x[c] + y[c], 2), max = fmax(max, x[c] - y[c]);
        double rms = 1 / sqrt(square / (double)C + 1e-6);
        if (r->option == 0) near(r, out(r, 1)[t], rms);
        if (r->option == 2) near(r, out(r, 1)[t], max);
        for (int64_t c = 0; c < C && r->option < 2; c++)
            near(r, out(r, r->option ? 0 : 2)[t * C + c],
                 r->option ? x[c] / (1 + exp(-x[c])) * y[c] : (x[c] + y[c]) * rms * src(r, 2)[c]);
    }
    for (int64_t c = 0; c < C && r->option == 2; c++) {
        double sum = 0;
        for (int64_t t = 0; t < r->N; t++) sum += src(r, 0)[t * C + c] * src(r, 1)[t * C + c];
        near(r, out(r, 0)[c], sum);
    }
}

CHECK_OP(arg)
{
    for (ir_id n = 0; n < r->g->node.n; n++)
        if (ir_at(r->g, n)->op == OP_rows) r->n = n;
    check_rows(r);
}

CHECK_OP(pack)
{
    near_all(r, out(r, 0), src(r, 0), src_count(r, 0));
}
