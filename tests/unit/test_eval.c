/* The evaluator defines the ops, so here every op meets an independent statement of what it does: plain
 * loops, an invariant, a composition of other ops, or central differences. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fd.h"
#include "op_cases.h"
#include <complex.h>
#include <math.h>
#include <stdio.h>

/* One variant of a case, evaluated. */
struct ran {
    struct arena *a;
    const struct op_case *c;
    struct ir_graph *g;
    int variant, option;
    struct ir_bind b;
    int64_t N;
    struct ir_named *in;
    size_t nin;
    struct ir_values v;
    ir_id n; /* the node under test */
};

static void evaluate(struct ran *r)
{
    const char *why = graph_verify(r->g, r->g->stage);
    if (why) fail_msg("%s %d: %s", r->c->name, r->variant, why);
    r->in = op_case_inputs(r->a, r->g, r->b, 1, &r->nin);
    r->v = ir_eval(r->a, r->g, r->b, r->in, r->nin);
}

static void run(struct ran *r, const struct op_case *c, int variant)
{
    *r = (struct ran){.a = arena_open("case"), .c = c, .variant = variant};
    r->option = variant / OP_CASE_SIZES;
    r->b = op_case_bind(variant), r->N = r->b.B * r->b.T;
    r->g = c->build(r->a, variant);
    r->n = op_case_node(r->g, c);
    evaluate(r);
}

static const double *src(const struct ran *r, uint32_t i)
{
    return r->v.node[ir_src(r->g, r->n, i)].e[0].v;
}

static int64_t src_count(const struct ran *r, uint32_t i)
{
    return r->v.node[ir_src(r->g, r->n, i)].e[0].n;
}

static int64_t cols(const struct ran *r, uint32_t i)
{
    return dim_value(ir_cols(r->g, ir_src(r->g, r->n, i)), r->b);
}

static int64_t rows(const struct ran *r, uint32_t i)
{
    return dim_value(ir_rows(r->g, ir_src(r->g, r->n, i)), r->b);
}

static const double *out(const struct ran *r, uint32_t i)
{
    return r->v.node[r->n].e[i].v;
}

static int64_t out_count(const struct ran *r, uint32_t i)
{
    return r->v.node[r->n].e[i].n;
}

static int64_t num(const struct ran *r, enum ir_attr_key k)
{
    return ir_int(r->g, r->n, k, 0);
}

static void near(const struct ran *r, double got, double want)
{
    if (!(fabs(got - want) <= 1e-11 * fmax(1, fabs(want))))
        fail_msg("%s %d: %.17g, not %.17g", r->c->name, r->variant, got, want);
}

static void near_all(const struct ran *r, const double *got, const double *want, int64_t n)
{
    for (int64_t i = 0; i < n; i++) near(r, got[i], want[i]);
}

/* Adds "fd.loss" = sum over the pairs of <value, weight>, and evaluates anew. */
static struct fd loss_of(struct ran *r, const ir_id (*pair)[2], size_t n)
{
    ir_id loss = IR_NONE;
    for (size_t i = 0; i < n; i++) {
        ir_id x = ir_unary(r->g, OP_sum, ir_binary(r->g, OP_mul, pair[i][0], pair[i][1]));
        loss = loss == IR_NONE ? x : ir_binary(r->g, OP_add, loss, x);
    }
    ir_output(r->g, "fd.loss", loss);
    evaluate(r);
    return (struct fd){r->g, r->b, r->in, r->nin, "fd.loss"};
}

static void slope(const struct ran *r, const struct fd *f, uint32_t operand, uint32_t result)
{
    const char *name = ir_word(r->g, ir_src(r->g, r->n, operand), AK_name, "");
    double error = fd_error(f, name, out(r, result), 2);
    if (!(error <= 1e-6)) fail_msg("%s %d: slope of %s is off by %g", r->c->name, r->variant, name, error);
}

static ir_id fresh(struct ran *r, const char *name, ir_type_id type)
{
    return ir_add_typed(r->g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

#define CHECK_OP(name) static void check_##name(struct ran *r)

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

#define CHECK_UNARY(op, expr)                                                                      \
    CHECK_OP(op)                                                                                   \
    {                                                                                              \
        for (int64_t i = 0; i < src_count(r, 0); i++) {                                            \
            double x = src(r, 0)[i];                                                               \
            near(r, out(r, 0)[i], expr);                                                           \
        }                                                                                          \
    }
CHECK_UNARY(neg, 0 - x)
CHECK_UNARY(exp, pow(2.718281828459045235, x))
CHECK_UNARY(log, log2(x) * 0.693147180559945309)
CHECK_UNARY(tanh, 1 - 2 / (exp(2 * x) + 1))
CHECK_UNARY(sigmoid, (1 + tanh(x / 2)) / 2)
CHECK_UNARY(sqrt, pow(x, 0.5))
CHECK_UNARY(rsqrt, pow(x, -0.5))
CHECK_UNARY(recip, pow(x, -1))

/* Bit arithmetic on the float, which the input is. */
static double bf16_bits(double x)
{
    float f = (float)x;
    uint32_t u;
    memcpy(&u, &f, 4);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&f, &u, 4);
    return f;
}
CHECK_UNARY(round_bf16, bf16_bits(x))

#define CHECK_BINARY(op, expr)                                                                     \
    CHECK_OP(op)                                                                                   \
    {                                                                                              \
        int64_t n = ir_cols(r->g, r->n).add;                                                       \
        const int ranks[2] = {ir_ty(r->g, ir_src(r->g, r->n, 0))->rank,                            \
                              ir_ty(r->g, ir_src(r->g, r->n, 1))->rank};                           \
        assert_int_equal(out_count(r, 0), r->option == 6 ? cols(r, 0) * (ranks[0] + ranks[1] > 2   \
                                                           ? r->N : 1) : r->N * n);                \
        for (int64_t i = 0; i < out_count(r, 0); i++) {                                            \
            double v[2];                                                                           \
            for (uint32_t k = 0; k < 2; k++) {                                                     \
                int64_t at = ranks[k] == 0 ? 0 : ranks[k] == 1 ? i % n                             \
                             : cols(r, k) == 1 ? i / n : i;                                        \
                v[k] = src(r, k)[at];                                                              \
            }                                                                                      \
            double a = v[0], b = v[1];                                                             \
            near(r, out(r, 0)[i], expr);                                                           \
        }                                                                                          \
    }
CHECK_BINARY(add, b + a)
CHECK_BINARY(sub, -(b - a))
CHECK_BINARY(mul, b *a)
CHECK_BINARY(div, a * (1 / b))
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

/* ---- tokens ---- */

CHECK_OP(embed)
{
    int64_t n = cols(r, 0);
    for (int64_t t = 0; t < r->N; t++) {
        int64_t id = (int64_t)src(r, 1)[t];
        near_all(r, out(r, 0) + t * n, src(r, 0) + (id < 0 ? 0 : id) * n, n);
    }
}

CHECK_OP(embed_grad)
{
    ir_id dy = ir_src(r->g, r->n, 0), ids = ir_src(r->g, r->n, 1);
    ir_id table = fresh(r, "table", ir_at(r->g, r->n)->type);
    ir_id y = ir_add(r->g, OP_embed, SRCS(table, ids), NO_ATTRS, NULL);
    struct fd f = loss_of(r, (const ir_id[][2]){{y, dy}}, 1);
    assert_true(fd_error(&f, "table", out(r, 0), 3) < 1e-6);
}

CHECK_OP(rope_table)
{
    int64_t hd = ir_cols(r->g, r->n).add, half = hd / 2;
    double theta = ir_num(r->g, r->n, AK_theta, 0);
    for (int64_t t = 0; t < r->b.T; t++)
        for (int64_t c = 0; c < half; c++) {
            double complex w = cexp(I * (double)t / pow(theta, 2 * (double)c / (double)hd));
            near(r, out(r, 0)[t * hd + c], creal(w));
            near(r, out(r, 0)[t * hd + half + c], cimag(w));
        }
}

CHECK_OP(rope)
{
    int64_t n = cols(r, 0), hd = num(r, AK_head_dim), half = hd / 2;
    double theta = ir_num(r->g, ir_src(r->g, r->n, 1), AK_theta, 0);
    for (int64_t t = 0; t < r->N; t++)
        for (int64_t c = 0; c < n; c++) {
            if (c % hd >= half) continue;
            double angle = (double)(t % r->b.T) / pow(theta, 2 * (double)(c % hd) / (double)hd);
            double complex z = src(r, 0)[t * n + c] + I * src(r, 0)[t * n + c + half];
            double complex w = z * cexp(I * (r->option == 2 ? -angle : angle));
            near(r, out(r, 0)[t * n + c], creal(w));
            near(r, out(r, 0)[t * n + c + half], cimag(w));
        }
}

/* Softmax over all rows of the batch with a mask. */
CHECK_OP(attention)
{
    int64_t H = num(r, AK_heads), KV = num(r, AK_kv_heads), d = num(r, AK_head_dim);
    int64_t window = num(r, AK_window) ? num(r, AK_window) : r->N;
    double scale = ir_num(r->g, r->n, AK_scale, 0), *p = NEW(r->a, double, r->N);
    for (int64_t t = 0; t < r->N; t++)
        for (int64_t h = 0; h < H; h++) {
            int64_t kv = h * KV / H;
            double sum = 0;
            for (int64_t s = 0; s < r->N; s++) {
                bool sees = s <= t && s / r->b.T == t / r->b.T && t - s < window;
                double z = 0;
                for (int64_t i = 0; i < d; i++)
                    z += src(r, 0)[(t * H + h) * d + i] * src(r, 1)[(s * KV + kv) * d + i];
                sum += p[s] = sees ? exp(scale * z) : 0;
            }
            near(r, out(r, 1)[t * H + h], log(sum));
            for (int64_t i = 0; i < d; i++) {
                double o = 0;
                for (int64_t s = 0; s < r->N; s++) o += p[s] * src(r, 2)[(s * KV + kv) * d + i];
                near(r, out(r, 0)[(t * H + h) * d + i], o / sum);
            }
        }
}

CHECK_OP(attention_grad)
{
    struct fd f = loss_of(
        r, (const ir_id[][2]){{ir_src(r->g, r->n, 3), ir_src(r->g, r->n, 5)}}, 1);
    for (uint32_t i = 0; i < 3; i++) slope(r, &f, i, i);
}

/* ---- depth ---- */

/* s and r of the paper's definition. */
static double depth_logit(const double *u, const double *v, int64_t n, double *rms)
{
    double square = 0, dot = 0;
    for (int64_t i = 0; i < n; i++) square += v[i] * v[i] / (double)n, dot += u[i] * v[i];
    *rms = pow(square + 1e-6, -0.5);
    return dot / sqrt(square + 1e-6);
}

CHECK_OP(depth_mix)
{
    int64_t n = num(r, AK_sources), D = cols(r, 1);
    for (int64_t t = 0; t < r->N; t++) {
        double s[16], rms, max = -INFINITY, sum = 0;
        for (int64_t j = 0; j < n; j++) {
            s[j] = depth_logit(src(r, 0), src(r, (uint32_t)(1 + j)) + t * D, D, &rms);
            near(r, out(r, 1)[t * n + j], s[j]);
            near(r, out(r, 2)[t * n + j], rms);
            max = fmax(max, s[j]);
        }
        for (int64_t j = 0; j < n; j++) sum += exp(s[j] - max);
        near(r, out(r, 3)[t], max + log(sum));
        for (int64_t c = 0; c < D; c++) {
            double h = 0;
            for (int64_t j = 0; j < n; j++)
                h += exp(s[j] - max) / sum * src(r, (uint32_t)(1 + j))[t * D + c];
            near(r, out(r, 0)[t * D + c], h);
        }
    }
}

CHECK_OP(depth_mix_grad)
{
    uint32_t n = (uint32_t)num(r, AK_sources), count = 1, acc = 6 + n;
    const char *have = ir_word(r->g, r->n, AK_have, "");
    ir_id pair[16][2] = {{ir_src(r->g, r->n, 1), ir_src(r->g, r->n, 0)}};
    for (uint32_t j = 0; j < n; j++) {
        if (have[j] != '1') continue;
        pair[count][0] = ir_src(r->g, r->n, 6 + j);
        pair[count++][1] = ir_src(r->g, r->n, acc++);
    }
    if (r->option == 3) return; /* logits of hundreds: too bent for differences */
    struct fd f = loss_of(r, (const ir_id(*)[2])pair, count);
    for (uint32_t j = 0; j < n; j++) slope(r, &f, 6 + j, j);
    slope(r, &f, 2, n);
}

/* Every query's part is the mix of that query alone. */
CHECK_OP(depth_inter)
{
    uint32_t n = (uint32_t)num(r, AK_sources), q = (uint32_t)num(r, AK_queries);
    ir_id mix[8], one[16];
    for (uint32_t i = 0; i < q; i++) {
        one[0] = ir_src(r->g, r->n, i);
        for (uint32_t j = 0; j < n; j++) one[1 + j] = ir_src(r->g, r->n, q + j);
        mix[i] = ir_add(r->g, OP_depth_mix, one, 1 + n,
                        ATTRS(A_INT(sources, n), A_NUM(eps, 1e-6)), NULL);
    }
    evaluate(r);
    for (uint32_t i = 0; i < q; i++) {
        const struct ir_array *m = r->v.node[mix[i]].e;
        near_all(r, out(r, i), m[0].v, m[0].n);
        near_all(r, out(r, q + 1), m[2].v, m[2].n);
        for (int64_t t = 0; t < r->N; t++) {
            near(r, out(r, q + 2)[t * q + i], m[3].v[t]);
            near_all(r, out(r, q) + t * q * n + i * n, m[1].v + t * n, n);
        }
    }
}

/* sum over queries, rows, sources of exp(s - lse) (dh.v - delta), lse and delta held, plus what the
 * accumulators weigh: its derivative is the op. `grad` is one input array, moved along `way`. */
static double inter_loss(const struct ran *r, uint32_t moved, const double *way, double step)
{
    uint32_t n = (uint32_t)num(r, AK_sources), q = (uint32_t)num(r, AK_queries), first = 2 + 4 * q;
    int64_t D = cols(r, first);
    const char *have = ir_word(r->g, r->n, AK_have, "");
    double loss = 0, *u = NEW(r->a, double, D), *v = NEW(r->a, double, D), rms;
    for (uint32_t i = 0; i < q; i++)
        for (int64_t t = 0; t < r->N; t++)
            for (uint32_t j = 0, acc = first + n; j < n; j++) {
                double along = -src(r, 2 + 2 * q + i)[t];
                for (int64_t c = 0; c < D; c++) {
                    u[c] = src(r, 2 + i)[c] + (moved == 2 + i ? step * way[c] : 0);
                    v[c] = src(r, first + j)[t * D + c] +
                           (moved == first + j ? step * way[t * D + c] : 0);
                    along += src(r, 2 + q + i)[t * D + c] * v[c];
                    if (have[j] == '1' && i == 0) loss += src(r, acc)[t * D + c] * v[c];
                }
                acc += have[j] == '1';
                loss += exp(depth_logit(u, v, D, &rms) - src(r, 2 + 3 * q + i)[t]) * along;
            }
    return loss;
}

static void inter_slope(struct ran *r, uint32_t operand, uint32_t result)
{
    int64_t n = src_count(r, operand);
    double *way = NEW(r->a, double, n), want = 0, typical = 1e-8;
    uint64_t state = 5;
    for (int64_t i = 0; i < n; i++) {
        way[i] = fd_random(&state);
        want += way[i] * out(r, result)[i];
        typical += pow(way[i] * out(r, result)[i], 2);
    }
    double got = (inter_loss(r, operand, way, 1e-5) - inter_loss(r, operand, way, -1e-5)) / 2e-5;
    if (fabs(got - want) > 1e-6 * fmax(fabs(want), sqrt(typical)))
        fail_msg("%s %d: result %u: %.17g, not %.17g", r->c->name, r->variant, result, want, got);
}

CHECK_OP(depth_inter_grad)
{
    uint32_t n = (uint32_t)num(r, AK_sources), q = (uint32_t)num(r, AK_queries);
    if (r->option == 3) return; /* as above */
    for (uint32_t j = 0; j < n; j++) inter_slope(r, 2 + 4 * q + j, j);
    for (uint32_t i = 0; i < q; i++) inter_slope(r, 2 + i, n + i);
}

/* ---- loss ---- */

CHECK_OP(cross_entropy)
{
    int64_t V = cols(r, 0);
    for (int64_t t = 0; t < r->N; t++) {
        const double *x = src(r, 0) + t * V;
        double target = src(r, 1)[t], sum = 0, off = target < 0 ? x[0] : x[(int64_t)target];
        for (int64_t i = 0; i < V; i++) sum += exp(x[i] - off);
        near(r, out(r, 0)[t], target < 0 ? 0 : log(sum));
        near(r, out(r, 1)[t], log(sum) + off);
    }
}

CHECK_OP(cross_entropy_grad)
{
    ir_id t = ir_src(r->g, ir_src(r->g, r->n, 2), 0), nll = ir_get(r->g, t, 0);
    struct fd f = loss_of(r, (const ir_id[][2]){{nll, ir_src(r->g, r->n, 3)}}, 1);
    slope(r, &f, 0, 0);
}

CHECK_OP(count_valid)
{
    int64_t n = 0;
    for (int64_t t = 0; t < r->N; t++) n += src(r, 0)[t] != -1;
    near(r, out(r, 0)[0], n ? (double)n : 1);
}

/* The head is a product and a cross-entropy. */
static ir_id plain_head(struct ran *r, ir_id *logits)
{
    *logits = ir_matmul(r->g, ir_src(r->g, r->n, 0), ir_src(r->g, r->n, 1), false, true, NULL);
    return ir_add(r->g, OP_cross_entropy, SRCS(*logits, ir_src(r->g, r->n, 2)), NO_ATTRS, NULL);
}

CHECK_OP(head_loss)
{
    ir_id h = ir_src(r->g, r->n, 0), w = ir_src(r->g, r->n, 1), target = ir_src(r->g, r->n, 2);
    ir_id d = ir_src(r->g, r->n, 3), logits, t = plain_head(r, &logits);
    ir_id dl = ir_add(r->g, OP_cross_entropy_grad, SRCS(logits, target, ir_get(r->g, t, 1), d),
                      NO_ATTRS, NULL);
    const ir_id want[3] = {ir_get(r->g, t, 0), ir_matmul(r->g, dl, w, false, false, NULL),
                           ir_matmul(r->g, dl, h, true, false, NULL)};
    evaluate(r);
    for (uint32_t i = 0; i < 3; i++)
        near_all(r, out(r, i), r->v.node[want[i]].e[0].v, out_count(r, i));
}

CHECK_OP(head_nll)
{
    ir_id logits, nll = ir_get(r->g, plain_head(r, &logits), 0);
    evaluate(r);
    near_all(r, out(r, 0), r->v.node[nll].e[0].v, r->N);
}

/* ---- mixture of experts ---- */

CHECK_OP(moe_route)
{
    int64_t E = cols(r, 0), k = num(r, AK_k);
    bool soft = !strcmp(ir_word(r->g, r->n, AK_score, ""), "softmax");
    double scale = ir_num(r->g, r->n, AK_scale, 0), s[129];
    for (int64_t t = 0; t < r->N; t++) {
        double all = 0, chosen = 0;
        for (int64_t i = 0; i < E; i++) all += exp(src(r, 0)[t * E + i]);
        for (int64_t i = 0; i < E; i++) {
            double x = exp(src(r, 0)[t * E + i]);
            s[i] = soft ? x / all : x / (1 + x);
        }
        for (int64_t j = 0; j < k; j++) chosen += s[(int64_t)out(r, 0)[t * k + j]];
        for (int64_t j = 0; j < k; j++) {
            int64_t id = (int64_t)out(r, 0)[t * k + j], better = 0;
            for (int64_t i = 0; i < E; i++) better += s[i] + src(r, 1)[i] > s[id] + src(r, 1)[id];
            assert_int_equal(better, j); /* scores differ, so the j-th has j better ones */
            near(r, out(r, 1)[t * k + j], scale * s[id] / (r->option == 2 ? 1 : chosen));
        }
    }
}

/* How near the choice of some row is to another one. */
static double route_gap(const struct ran *r)
{
    ir_id route = ir_src(r->g, ir_src(r->g, r->n, 1), 0);
    const double *bias = r->v.node[ir_src(r->g, route, 1)].e[0].v, *ids = src(r, 1);
    int64_t E = cols(r, 0), k = cols(r, 1);
    double gap = INFINITY, s[129];
    bool soft = !strcmp(ir_word(r->g, r->n, AK_score, ""), "softmax");
    for (int64_t t = 0; t < r->N; t++) {
        double all = 0, in = INFINITY, outside = -INFINITY;
        for (int64_t i = 0; i < E; i++) all += s[i] = exp(src(r, 0)[t * E + i]);
        for (int64_t i = 0; i < E; i++) s[i] = (soft ? s[i] / all : s[i] / (1 + s[i])) + bias[i];
        for (int64_t i = 0; i < E; i++) {
            bool taken = false;
            for (int64_t j = 0; j < k; j++) taken |= ids[t * k + j] == (double)i;
            if (taken) in = fmin(in, s[i]);
            else outside = fmax(outside, s[i]);
        }
        gap = fmin(gap, in - outside);
    }
    return gap;
}

CHECK_OP(moe_route_grad)
{
    if (route_gap(r) < 1e-4) return; /* a step would change the choice */
    ir_id w = ir_get(r->g, ir_src(r->g, ir_src(r->g, r->n, 1), 0), 1);
    struct fd f = loss_of(r, (const ir_id[][2]){{w, ir_src(r->g, r->n, 2)}}, 1);
    slope(r, &f, 0, 0);
}

CHECK_OP(moe_sort)
{
    int64_t A = src_count(r, 0), E = num(r, AK_experts);
    const double *ids = src(r, 0), *offset = out(r, 0), *order = out(r, 1), *place = out(r, 2);
    assert_true(offset[0] == 0 && offset[E] == (double)A);
    for (int64_t i = 0; i < A; i++) {
        int64_t a = (int64_t)order[i], e = (int64_t)ids[a];
        assert_true(offset[e] <= (double)i && (double)i < offset[e + 1]);
        assert_true(place[a] == (double)i);
        if (i && ids[(int64_t)order[i - 1]] == ids[a]) assert_true(order[i - 1] < order[i]);
    }
}

CHECK_OP(moe_gather)
{
    int64_t n = cols(r, 0), k = num(r, AK_k);
    for (int64_t a = 0; a < r->N * k; a++) /* by assignment, where the op goes by sorted row */
        near_all(r, out(r, 0) + (int64_t)src(r, 2)[a] * n, src(r, 0) + a / k * n, n);
}

CHECK_OP(moe_gather_grad)
{
    ir_id dy = ir_src(r->g, r->n, 0), order = ir_src(r->g, r->n, 1), place = ir_src(r->g, r->n, 2);
    ir_id x = fresh(r, "x", ir_at(r->g, r->n)->type);
    ir_id y = ir_add(r->g, OP_moe_gather, SRCS(x, order, place), ATTRS(A_INT(k, num(r, AK_k))), NULL);
    struct fd f = loss_of(r, (const ir_id[][2]){{y, dy}}, 1);
    assert_true(fd_error(&f, "x", out(r, 0), 3) < 1e-6);
}

CHECK_OP(moe_combine)
{
    int64_t n = cols(r, 0), k = num(r, AK_k);
    double *want = NEW(r->a, double, r->N * n);
    for (int64_t i = 0; i < r->N * k; i++) { /* by sorted row, where the op goes by assignment */
        int64_t a = (int64_t)src(r, 2)[i];
        for (int64_t c = 0; c < n; c++) want[a / k * n + c] += src(r, 1)[a] * src(r, 0)[i * n + c];
    }
    near_all(r, out(r, 0), want, r->N * n);
}

CHECK_OP(moe_combine_grad)
{
    ir_id s[5];
    memcpy(s, ir_srcs(r->g, r->n), sizeof s);
    ir_id y = ir_add(r->g, OP_moe_combine, s + 1, 4, ATTRS(A_INT(k, num(r, AK_k))), NULL);
    struct fd f = loss_of(r, (const ir_id[][2]){{y, s[0]}}, 1);
    slope(r, &f, 1, 0);
    slope(r, &f, 2, 1);
}

CHECK_OP(moe_load)
{
    const double *ids = r->v.node[ir_src(r->g, ir_src(r->g, ir_src(r->g, r->n, 0), 0), 0)].e[0].v;
    int64_t A = r->v.node[ir_src(r->g, ir_src(r->g, ir_src(r->g, r->n, 0), 0), 0)].e[0].n;
    for (int64_t e = 0; e < out_count(r, 0); e++) {
        double n = 0;
        for (int64_t a = 0; a < A; a++) n += ids[a] == (double)e;
        near(r, out(r, 0)[e], n);
    }
}

/* ---- apply: ctl = 1.5, 0.625, 1 (0 in option 3), hyper = 0.01, 1 - 0.9^3, 1 - 0.95^3 ---- */

CHECK_OP(adamw)
{
    bool on = r->option != 3;
    double wd = r->option == 1 ? 0 : 0.1;
    for (int64_t i = 0; i < src_count(r, 0); i++) {
        double p = src(r, 0)[i], g = 0.625 * src(r, 1)[i], lr = src(r, 5)[0];
        double m = 0.9 * src(r, 2)[i] + 0.1 * g, v = 0.95 * src(r, 3)[i] + 0.05 * g * g;
        double step = m / src(r, 5)[1] / (sqrt(v / src(r, 5)[2]) + 1e-8);
        near(r, out(r, 0)[i], on ? p * (1 - lr * wd) - lr * step : p);
        near(r, out(r, 1)[i], on ? m : src(r, 2)[i]);
        near(r, out(r, 2)[i], on ? v : src(r, 3)[i]);
    }
}

CHECK_OP(momentum)
{
    for (int64_t i = 0; i < src_count(r, 0); i++) {
        double g = 0.625 * src(r, 0)[i], m = 0.95 * src(r, 1)[i] + g;
        near(r, out(r, 1)[i], r->option == 3 ? src(r, 1)[i] : m);
        if (r->option != 3) near(r, out(r, 0)[i], g + 0.95 * m);
    }
}

CHECK_OP(muon_step)
{
    for (int64_t i = 0; i < src_count(r, 0); i++) {
        double p = src(r, 0)[i], step = 1.6 * src(r, 1)[i] + 0.1 * p;
        near(r, out(r, 0)[i], r->option == 3 ? p : p - src(r, 3)[0] * step);
    }
}

CHECK_OP(grad_norm)
{
    double total = 0;
    for (uint32_t k = 1; k <= 3; k++) {
        double sum = 0;
        for (int64_t i = 0; i < src_count(r, k); i++) sum += pow(src(r, k)[i], 2);
        near(r, out(r, 1)[k - 1], sum);
        total += sum;
    }
    near(r, out(r, 0)[0], sqrt(total));
    near(r, out(r, 0)[1], r->option && sqrt(total) > 0.5 ? 0.5 / (sqrt(total) + 1e-6) : 1);
    assert_true(out(r, 0)[2] == 1 && out(r, 0)[3] == 0);
    for (size_t bad = 0; bad < r->nin; bad++) { /* one element of any operand, the loss included */
        struct ir_named *in = arena_dup(r->a, r->in, r->nin * sizeof *in, STRATA_SITE);
        double *v = arena_dup(r->a, in[bad].v, (size_t)in[bad].n * sizeof *v, STRATA_SITE);
        v[in[bad].n - 1] = bad % 2 ? NAN : INFINITY;
        in[bad].v = v;
        struct ir_values x = ir_eval(r->a, r->g, r->b, in, r->nin);
        assert_true(x.node[r->n].e[0].v[2] == 0);
    }
}

CHECK_OP(balance)
{
    int64_t n = src_count(r, 0);
    double sum = 0, moved = 0;
    for (int64_t i = 0; i < n; i++) sum += src(r, 1)[i];
    for (int64_t i = 0; i < n; i++) {
        double d = out(r, 0)[i] - src(r, 0)[i];
        moved += d;
        if (r->option) assert_true(d == 0);
        for (int64_t j = 0; j < n && !r->option; j++) { /* one below the mean, one above: 2 rates apart */
            double apart = out(r, 0)[j] - src(r, 0)[j] - d, mean = sum / (double)n;
            bool low = src(r, 1)[j] < mean && src(r, 1)[i] > mean;
            if (low) assert_true(fabs(apart - 2e-3) < 1e-12);
        }
    }
    assert_true(fabs(moved) < 1e-12);
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

/* ---- the loop over op.def ---- */

static void (*const checks[OP_COUNT])(struct ran *) = {
#define OP(name, sources, shape, vjp, cost, stages, flags) check_##name,
#include "op.def"
};

static void every_op(void **state)
{
    (void)state;
    for (int op = 0; op < OP_COUNT; op++) {
        const struct op_case *c = op_case_find((enum ir_op)op);
        if (!c) fail_msg("no case for %s", op_info((enum ir_op)op)->name);
        for (int i = 0; i < c->variants; i++) {
            struct ran r;
            run(&r, c, i);
            if (r.n == IR_NONE && op != OP_arg) fail_msg("%s %d does not use its op", c->name, i);
            for (size_t k = 0; k < r.g->out.n; k++) {
                struct ir_array x = r.v.node[r.g->out.p[k].id].e[0];
                for (int64_t j = 0; j < x.n; j++)
                    if (!isfinite(x.v[j])) fail_msg("%s %d: not finite", c->name, i);
            }
            checks[op](&r);
            arena_close(r.a);
        }
    }
}

/* ---- single facts that random cases do not meet ---- */

static struct ir_array eval_one(struct arena *a, struct ir_graph *g, ir_id n, uint32_t result)
{
    struct ir_values v = ir_eval(a, g, (struct ir_bind){1, 1}, NULL, 0);
    return v.node[n].e[result];
}

static ir_id numbers(struct ir_graph *g, const double *x, size_t n) /* f32[1,n] */
{
    ir_id src[16];
    for (size_t i = 0; i < n; i++)
        src[i] = ir_add_typed(g, OP_const, ir_type2(g, IR_f32, dim_const(1), dim_const(1)), NO_SRCS,
                              ATTRS(A_NUM(value, x[i])), NULL);
    return ir_add(g, OP_concat, src, n, ATTRS(A_INT(axis, 1)), NULL);
}

/* Equal scores go to the lower id; scores above 1 do not matter to the weights, the bias does not enter. */
static void route_ties(void **state)
{
    (void)state;
    struct arena *a = arena_open("ties");
    struct ir_graph *g = graph_open(a, "ties", STAGE_T, NULL, NULL);
    ir_id x = numbers(g, (const double[]){0, 0, -1, 0}, 4);
    ir_id bias = ir_reshape(g, numbers(g, (const double[]){0, 0, 9, 0}, 4),
                            ir_type1(g, IR_f32, dim_const(4)));
    ir_id n = ir_add(g, OP_moe_route, SRCS(x, bias),
                     ATTRS(A_INT(k, 3), A_STR(score, "sigmoid"), A_INT(renormalize, 0)), NULL);
    struct ir_array ids = eval_one(a, g, n, 0), w = eval_one(a, g, n, 1);
    assert_true(ids.v[0] == 2 && ids.v[1] == 0 && ids.v[2] == 1);
    assert_true(fabs(w.v[0] - 1 / (1 + exp(1))) < 1e-15 && w.v[1] == 0.5 && w.v[2] == 0.5);
    arena_close(a);
}

/* Ties, subnormals, the largest numbers and the step to infinity, against bit arithmetic. */
static void rounding(void **state)
{
    (void)state;
    static const uint32_t bits[8] = {0x3f808000, 0x3f818000, 0x3f808001, 0xff7f7fff,
                                     0xff7f8000, 0x00018000, 0x80418000, 0x00008001};
    double x[8], bf16[8];
    for (size_t i = 0; i < 8; i++) {
        float f;
        memcpy(&f, &bits[i], 4);
        x[i] = (double)f, bf16[i] = bf16_bits(x[i]);
    }
    struct arena *a = arena_open("rounding");
    struct ir_graph *g = graph_open(a, "rounding", STAGE_T, NULL, NULL);
    struct ir_array y = eval_one(a, g, ir_unary(g, OP_round_bf16, numbers(g, x, 8)), 0);
    for (size_t i = 0; i < 8; i++) assert_true(y.v[i] == bf16[i]);
    assert_true(y.v[0] == 1 && y.v[4] == -INFINITY);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op),
        cmocka_unit_test(route_ties),
        cmocka_unit_test(rounding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
