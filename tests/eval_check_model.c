/* Tokens, attention, depth, loss. */
#include "eval_check.h"
#include <complex.h>

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
    for (int64_t t = 0; t < (r->option == 2 ? r->N : r->b.T); t++)
        for (int64_t c = 0; c < half; c++) {
            double at = r->option == 2 ? (double)(t % r->b.T) + src(r, 0)[t / r->b.T] : (double)t;
            double complex w = cexp(I * at / pow(theta, 2 * (double)c / (double)hd));
            near(r, out(r, 0)[t * hd + c], creal(w));
            near(r, out(r, 0)[t * hd + half + c], cimag(w));
        }
}

CHECK_OP(rope)
{
    int64_t n = cols(r, 0), hd = num(r, AK_head_dim), turned = cols(r, 1), half = turned / 2;
    double theta = ir_num(r->g, ir_src(r->g, r->n, 1), AK_theta, 0);
    for (int64_t t = 0; t < r->N; t++)
        for (int64_t c = 0; c < n; c++) {
            int64_t i = c % hd - (hd - turned); /* among those that turn */
            if (i < 0) near(r, out(r, 0)[t * n + c], src(r, 0)[t * n + c]);
            if (i < 0 || i >= half) continue;
            int64_t at = t % r->b.T;
            if (ir_at(r->g, ir_src(r->g, r->n, 1))->nsrc) /* after 23 b tokens, 17 more for odd b */
                at += 23 * (t / r->b.T) + 17 * (t / r->b.T % 2);
            double angle = (double)at / pow(theta, 2 * (double)i / (double)turned);
            double complex z = src(r, 0)[t * n + c] + I * src(r, 0)[t * n + c + half];
            double complex w = z * cexp(I * (num(r, AK_inverse) ? -angle : angle));
            near(r, out(r, 0)[t * n + c], creal(w));
            near(r, out(r, 0)[t * n + c + half], cimag(w));
        }
}

/* Softmax over all rows of the batch with a mask. */
CHECK_OP(attention)
{
    int64_t H = num(r, AK_heads), KV = num(r, AK_kv_heads), d = num(r, AK_head_dim);
    int64_t window = num(r, AK_window) ? num(r, AK_window) : r->N, e = cols(r, 2) / KV;
    double scale = ir_num(r->g, r->n, AK_scale, 0), *p = NEW(r->a, double, r->N);
    for (int64_t t = 0; t < r->N; t++)
        for (int64_t h = 0; h < H; h++) {
            int64_t kv = h * KV / H;
            double sum = 0, most = -INFINITY;
            for (int64_t s = 0; s < r->N; s++) {
                bool sees = s <= t && s / r->b.T == t / r->b.T && t - s < window;
                double z = 0;
                for (int64_t i = 0; i < d; i++)
                    z += src(r, 0)[(t * H + h) * d + i] * src(r, 1)[(s * KV + kv) * d + i];
                sum += p[s] = sees ? exp(scale * z) : 0;
                if (sees) most = fmax(most, scale * z);
            }
            near(r, out(r, 1)[t * H + h], log(sum));
            near(r, out(r, 2)[t * H + h], most);
            for (int64_t i = 0; i < e; i++) {
                double o = 0;
                for (int64_t s = 0; s < r->N; s++) o += p[s] * src(r, 2)[(s * KV + kv) * e + i];
                near(r, out(r, 0)[(t * H + h) * e + i], o / sum);
            }
        }
}

CHECK_OP(attention_grad)
{
    struct fd f = loss_of(r, (const ir_id[][2]){{ir_src(r->g, r->n, 3), ir_src(r->g, r->n, 5)}}, 1);
    for (uint32_t i = 0; i < 3; i++) slope(r, &f, i, i);
}

/* Every element by its column: head, then place in the head. */
CHECK_OP(mla_keys)
{
    int64_t n = num(r, AK_head_dim), w = n + num(r, AK_v_dim), rope = cols(r, 1);
    for (int64_t t = 0; t < r->N; t++)
        for (int64_t c = 0; c < num(r, AK_heads) * w; c++) {
            double x = src(r, 0)[t * cols(r, 0) + c];
            int64_t h = c / w, i = c % w;
            if (i < n)
                near(r, out(r, 0)[(t * num(r, AK_heads) + h) * (n + rope) + i], x);
            else
                near(r, out(r, 1)[(t * num(r, AK_heads) + h) * (w - n) + i - n], x);
        }
    for (int64_t i = 0; i < r->N * num(r, AK_heads) * rope; i++)
        near(r, out(r, 0)[i / rope * (n + rope) + n + i % rope],
             src(r, 1)[i / rope / num(r, AK_heads) * rope + i % rope]);
}

CHECK_OP(mla_keys_grad)
{
    int64_t h = num(r, AK_heads), n = num(r, AK_head_dim), v = num(r, AK_v_dim);
    ir_id kv = fresh(r, "kv", ir_type2(r->g, IR_f32, dim_sym(SYM_N, 1), dim_const(h * (n + v))));
    ir_id kr =
        fresh(r, "kr", ir_type2(r->g, IR_f32, dim_sym(SYM_N, 1), dim_const(cols(r, 0) / h - n)));
    struct ir_attr attr[AK_COUNT];
    size_t na = ir_attrs(r->g, r->n, attr);
    ir_id t = ir_add(r->g, OP_mla_keys, SRCS(kv, kr), attr, na, NULL);
    ir_id pair[2][2];
    for (uint32_t i = 0; i < 2; i++)
        pair[i][0] = ir_get(r->g, t, i), pair[i][1] = ir_src(r->g, r->n, i);
    struct fd f = loss_of(r, (const ir_id(*)[2])pair, 2);
    assert_true(fd_error(&f, "kv", out(r, 0), 3) < 1e-6);
    assert_true(fd_error(&f, "kr", out(r, 1), 3) < 1e-6);
}

/* ---- caches ---- */

CHECK_OP(last_rows)
{
    for (int64_t b = 0; b < r->b.B; b++)
        near_all(r, out(r, 0) + b * cols(r, 0), src(r, 0) + (b * r->b.T + r->b.T - 1) * cols(r, 0),
                 cols(r, 0));
}

/* The row of position i of sequence b; operand `pages` is its table. */
static int64_t paged(struct ran *r, uint32_t pages, int64_t b, int64_t i)
{
    int64_t P = num(r, AK_context) / 64;
    return (int64_t)src(r, pages)[b * P + i / 64] * 64 + i % 64;
}

CHECK_OP(cache_write)
{
    int64_t n = cols(r, 0);
    for (int64_t row = 0; row < rows(r, 0); row++) {
        const double *want = src(r, 0) + row * n;
        for (int64_t t = 0; t < r->N; t++) {
            int64_t at = (int64_t)src(r, 3)[t / r->b.T] + t % r->b.T;
            if (paged(r, 2, t / r->b.T, at) == row) want = src(r, 1) + t * n;
        }
        near_all(r, out(r, 0) + row * n, want, n);
    }
}

/* Softmax over all positions so far with a mask. */
CHECK_OP(attention_cached)
{
    int64_t H = num(r, AK_heads), KV = num(r, AK_kv_heads), d = num(r, AK_head_dim);
    int64_t each = num(r, AK_context), window = num(r, AK_window) ? num(r, AK_window) : each;
    double scale = ir_num(r->g, r->n, AK_scale, 0), *p = NEW(r->a, double, each);
    for (int64_t t = 0; t < r->N; t++)
        for (int64_t h = 0; h < H; h++) {
            int64_t kv = h * KV / H, b = t / r->b.T;
            int64_t end = (int64_t)src(r, 4)[b] + r->b.T, at = end - r->b.T + t % r->b.T;
            double sum = 0;
            for (int64_t i = 0; i < end; i++) {
                const double *k = src(r, 1) + (paged(r, 3, b, i) * KV + kv) * d;
                double z = 0;
                for (int64_t c = 0; c < d; c++) z += src(r, 0)[(t * H + h) * d + c] * k[c];
                sum += p[i] = i <= at && at - i < window ? exp(scale * z) : 0;
            }
            for (int64_t c = 0; c < d; c++) {
                double o = 0;
                for (int64_t i = 0; i < end; i++)
                    o += p[i] * src(r, 2)[(paged(r, 3, b, i) * KV + kv) * d + c];
                near(r, out(r, 0)[(t * H + h) * d + c], o / sum);
            }
        }
}

/* Absorbed, and over all positions so far with a mask. */
CHECK_OP(mla_cached)
{
    int64_t H = num(r, AK_heads), n = num(r, AK_head_dim), v = num(r, AK_v_dim), l = cols(r, 1);
    int64_t lr = cols(r, 2), each = num(r, AK_context);
    double scale = ir_num(r->g, r->n, AK_scale, 0), *p = NEW(r->a, double, each + 2 * lr);
    for (int64_t t = 0; t < r->N * H; t++) {
        const double *q = src(r, 0) + t * (n + lr - l), *w = src(r, 1) + t % H * (n + v) * l;
        int64_t b = t / H / r->b.T, at = (int64_t)src(r, 4)[b] + t / H % r->b.T;
        int64_t end = (int64_t)src(r, 4)[b] + r->b.T;
        double *ql = p + each, *ol = ql + lr, sum = 0;
        memset(ql, 0, 2 * (size_t)lr * sizeof *ql);
        for (int64_t i = 0; i < n * l; i++) ql[i % l] += w[i] * q[i / l];
        memcpy(ql + l, q + n, (size_t)(lr - l) * sizeof *ql);
        for (int64_t s = 0; s < end; s++) {
            const double *c = src(r, 2) + paged(r, 3, b, s) * lr;
            double z = 0;
            for (int64_t i = 0; i < lr; i++) z += ql[i] * c[i];
            sum += p[s] = s <= at ? exp(scale * z) : 0;
        }
        for (int64_t i = 0; i < end * l; i++)
            ol[i % l] += p[i / l] / sum * src(r, 2)[paged(r, 3, b, i / l) * lr + i % l];
        for (int64_t i = 0; i < v; i++) {
            double o = 0;
            for (int64_t k = 0; k < l; k++) o += w[(n + i) * l + k] * ol[k];
            near(r, out(r, 0)[t * v + i], o);
        }
    }
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
        mix[i] = ir_add(r->g, OP_depth_mix, one, 1 + n, ATTRS(A_INT(sources, n), A_NUM(eps, 1e-6)),
                        NULL);
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
