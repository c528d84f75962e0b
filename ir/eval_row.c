/* Elementwise ops, reductions, views and matrix products. */
#include "eval_op.h"
#include "panel.h"
#include <math.h>

/* ---- elementwise ---- */

#define UNARY(name, expr)                             \
    void eval_##name(struct eval *e)                  \
    {                                                 \
        const double *x = ev_src(e, 0);               \
        for (int64_t i = 0; i < e->out.e[0].n; i++) { \
            double a = x[i];                          \
            ev_out(e, 0)[i] = (expr);                 \
        }                                             \
    }

/* Nearest number with 8 significant bits, ties to even: what a float32 rounds to as bf16. */
double ev_bf16(double a)
{
    if (a == 0 || !isfinite(a)) return a;
    int exponent;
    frexp(a, &exponent);
    if (exponent < -125) exponent = -125; /* subnormal */
    double unit = ldexp(1, exponent - 8), r = nearbyint(a / unit) * unit;
    return fabs(r) >= ldexp(1, 128) ? copysign(INFINITY, a) : r;
}

UNARY(neg, -a)
UNARY(exp, exp(a))
UNARY(log, log(a))
UNARY(tanh, tanh(a))
UNARY(sigmoid, 1 / (1 + exp(-a)))
UNARY(sqrt, sqrt(a))
UNARY(rsqrt, 1 / sqrt(a))
UNARY(recip, 1 / a)
UNARY(softplus, a > 20 ? a : log1p(exp(a)))
UNARY(round_bf16, ev_bf16(a))
UNARY(round, nearbyint(a))

/* Index of the element of operand i that belongs to (row, col) of the result. */
static int64_t spread(const struct eval *e, size_t i, int64_t row, int64_t col)
{
    int rank = ir_ty(e->g, ir_src(e->g, e->n, (uint32_t)i))->rank;
    if (rank == 0) return 0;
    int64_t cols = ev_cols(e, i);
    if (cols == 1) col = 0;
    return rank == 1 ? col : row * cols + col;
}

#define BINARY(name, expr)                                             \
    void eval_##name(struct eval *e)                                   \
    {                                                                  \
        int64_t cols = dim_value(ir_cols(e->g, e->n), e->b);           \
        for (int64_t i = 0; i < e->out.e[0].n; i++) {                  \
            double a = ev_src(e, 0)[spread(e, 0, i / cols, i % cols)]; \
            double b = ev_src(e, 1)[spread(e, 1, i / cols, i % cols)]; \
            ev_out(e, 0)[i] = (expr);                                  \
        }                                                              \
    }

BINARY(add, a + b)
BINARY(sub, a - b)
BINARY(mul, a *b)
BINARY(div, a / b)
BINARY(max, a > b ? a : b)
BINARY(min, a < b ? a : b)

/* ---- reductions ---- */

void eval_rowsum(struct eval *e)
{
    int64_t rows = ev_rows(e, 0), cols = ev_cols(e, 0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) ev_out(e, 0)[r] += ev_src(e, 0)[r * cols + c];
}

void eval_rowmax(struct eval *e)
{
    int64_t rows = ev_rows(e, 0), cols = ev_cols(e, 0);
    for (int64_t r = 0; r < rows; r++) {
        double m = -INFINITY;
        for (int64_t c = 0; c < cols; c++) m = fmax(m, ev_src(e, 0)[r * cols + c]);
        ev_out(e, 0)[r] = m;
    }
}

void eval_colsum(struct eval *e)
{
    int64_t rows = ev_rows(e, 0), cols = ev_cols(e, 0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) ev_out(e, 0)[c] += ev_src(e, 0)[r * cols + c];
}

void eval_colmax(struct eval *e)
{
    int64_t rows = ev_rows(e, 0), cols = ev_cols(e, 0);
    for (int64_t c = 0; c < cols; c++) {
        ev_out(e, 0)[c] = -INFINITY;
        for (int64_t r = 0; r < rows; r++)
            ev_out(e, 0)[c] = fmax(ev_out(e, 0)[c], ev_src(e, 0)[r * cols + c]);
    }
}

void eval_sum(struct eval *e)
{
    for (int64_t i = 0; i < ev_count(e, 0); i++) ev_out(e, 0)[0] += ev_src(e, 0)[i];
}

/* ---- views and moves ---- */

/* Elements before and behind axis `axis` of operand i. */
static void around(const struct eval *e, size_t i, int axis, int64_t *before, int64_t *behind)
{
    int rank = ir_ty(e->g, ir_src(e->g, e->n, (uint32_t)i))->rank;
    *before = *behind = 1;
    for (int k = 0; k < rank; k++)
        if (k != axis) *(k < axis ? before : behind) *= ev_dim(e, i, k);
}

void eval_slice(struct eval *e)
{
    int axis = (int)ev_int(e, AK_axis, 0);
    int64_t from = ev_int(e, AK_from, 0), len = ev_int(e, AK_to, 0) - from, before, behind;
    around(e, 0, axis, &before, &behind);
    for (int64_t i = 0; i < before; i++)
        for (int64_t k = 0; k < len * behind; k++)
            ev_out(e, 0)[i * len * behind + k] =
                ev_src(e, 0)[(i * ev_dim(e, 0, axis) + from) * behind + k];
}

void eval_concat(struct eval *e)
{
    int axis = (int)ev_int(e, AK_axis, 0);
    int64_t before, behind, at = 0;
    around(e, 0, axis, &before, &behind);
    for (int64_t i = 0; i < before; i++)
        for (uint32_t s = 0; s < ir_at(e->g, e->n)->nsrc; s++) {
            int64_t len = ev_dim(e, s, axis) * behind;
            for (int64_t k = 0; k < len; k++) ev_out(e, 0)[at++] = ev_src(e, s)[i * len + k];
        }
}

void eval_reshape(struct eval *e)
{
    CHECK(e->out.e[0].n == ev_count(e, 0));
    for (int64_t i = 0; i < ev_count(e, 0); i++) ev_out(e, 0)[i] = ev_src(e, 0)[i];
}

void eval_repeat(struct eval *e)
{
    int64_t times = ev_int(e, AK_times, 1);
    for (int64_t i = 0; i < e->out.e[0].n; i++) ev_out(e, 0)[i] = ev_src(e, 0)[i / times];
}

/* ---- products ---- */

/* c[m,n] += op(a) op(b), with row strides of a and b as they lie. */
static void product(double *c, const double *a, const double *b, int64_t m, int64_t n, int64_t k,
                    bool ta, bool tb)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t l = 0; l < k; l++)
                c[i * n + j] +=
                    (ta ? a[l * m + i] : a[i * k + l]) * (tb ? b[j * k + l] : b[l * n + j]);
}

const double *ev_operand(struct eval *e, size_t i)
{
    const double *v = ev_src(e, i);
    if (!ev_int(e, AK_bf16, 0)) return v;
    /* its integers are bf16 numbers, and their scale meets the sum */
    if (ir_stored(e->g, ir_src(e->g, e->n, (uint32_t)i)) == STORE_i8) return v;
    double *r = NEW(e->a, double, ev_count(e, i));
    for (int64_t k = 0; k < ev_count(e, i); k++) r[k] = ev_bf16(v[k]);
    return r;
}

void eval_matmul(struct eval *e)
{
    bool ta = ev_int(e, AK_ta, 0) != 0, tb = ev_int(e, AK_tb, 0) != 0;
    int64_t m = ev_dim(e, 0, ta ? -1 : -2), k = ev_dim(e, 0, ta ? -2 : -1);
    int64_t n = ev_dim(e, 1, tb ? -2 : -1);
    const double *x = ev_operand(e, 0), *y = ev_operand(e, 1);
    int64_t batch = ir_ty(e->g, e->n)->rank == 3 ? ev_dim(e, 0, 0) : 1;
    for (int64_t i = 0; i < batch; i++)
        product(ev_out(e, 0) + i * m * n, x + i * m * k, y + i * k * n, m, n, k, ta, tb);
}

void eval_grouped_matmul(struct eval *e)
{
    bool tb = ev_int(e, AK_tb, 1) != 0;
    const double *x = ev_operand(e, 0), *w = ev_operand(e, 1), *offset = ev_src(e, 2);
    int64_t k = ev_cols(e, 0), n = ev_dim(e, 1, tb ? 1 : 2);
    for (int64_t g = 0; g < ev_dim(e, 1, 0); g++) {
        int64_t from = ev_index(e, offset[g], ev_rows(e, 0) + 1);
        int64_t to = ev_index(e, offset[g + 1], ev_rows(e, 0) + 1);
        product(ev_out(e, 0) + from * n, x + from * k, w + g * n * k, to - from, n, k, false, tb);
    }
}

void eval_grouped_matmul_dw(struct eval *e)
{
    const double *dy = ev_operand(e, 0), *x = ev_operand(e, 1), *offset = ev_src(e, 2);
    int64_t m = ev_cols(e, 0), k = ev_cols(e, 1);
    for (int64_t g = 0; g + 1 < ev_count(e, 2); g++) {
        int64_t from = ev_index(e, offset[g], ev_rows(e, 0) + 1);
        int64_t to = ev_index(e, offset[g + 1], ev_rows(e, 0) + 1);
        product(ev_out(e, 0) + g * m * k, dy + from * m, x + from * k, m, k, to - from, true,
                false);
    }
}
