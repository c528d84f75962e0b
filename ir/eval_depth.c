/* The depth mix and its gradients (attnres-paper 1, 3.1, 11.1). */
#include "eval_op.h"
#include <math.h>

static double dot(const double *a, const double *b, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

/* Row t of one mix of the sources that begin at operand `first`: fills s[j], r[j] (n of them), adds
 * the mix to h [D] and returns the log-sum-exp. */
static double mix_row(struct eval *e, const double *u, size_t first, int64_t n, int64_t t,
                      double *s, double *r, double *h)
{
    int64_t D = ev_cols(e, first);
    double eps = ev_num(e, AK_eps, 1e-6), max = -INFINITY, sum = 0;
    for (int64_t j = 0; j < n; j++) {
        const double *v = ev_src(e, first + (size_t)j) + t * D;
        r[j] = 1 / sqrt(dot(v, v, D) / (double)D + eps);
        s[j] = r[j] * dot(u, v, D);
        max = fmax(max, s[j]);
    }
    for (int64_t j = 0; j < n; j++) sum += exp(s[j] - max);
    double lse = max + log(sum);
    for (int64_t j = 0; j < n; j++) {
        const double *v = ev_src(e, first + (size_t)j) + t * D;
        for (int64_t c = 0; c < D; c++) h[c] += exp(s[j] - lse) * v[c];
    }
    return lse;
}

void eval_depth_mix(struct eval *e)
{
    int64_t n = ev_int(e, AK_sources, 0), D = ev_cols(e, 1);
    for (int64_t t = 0; t < ev_rows(e, 1); t++)
        ev_out(e, 3)[t] = mix_row(e, ev_src(e, 0), 1, n, t, ev_out(e, 1) + t * n,
                                  ev_out(e, 2) + t * n, ev_out(e, 0) + t * D);
}

void eval_depth_inter(struct eval *e)
{
    size_t q = (size_t)ev_int(e, AK_queries, 0);
    int64_t n = ev_int(e, AK_sources, 0), D = ev_cols(e, q);
    for (int64_t t = 0; t < ev_rows(e, q); t++)
        for (size_t i = 0; i < q; i++)
            ev_out(e, q + 2)[t * (int64_t)q + (int64_t)i] =
                mix_row(e, ev_src(e, i), q, n, t, ev_out(e, q) + (t * (int64_t)q + (int64_t)i) * n,
                        ev_out(e, q + 1) + t * n, ev_out(e, i) + t * D);
}

/* dv_j starts as its accumulator where `have` says that one is passed; they follow the sources. */
static void take_accumulators(struct eval *e, size_t first, size_t n)
{
    const char *have = ir_word(e->g, e->n, AK_have, "");
    size_t at = first + n;
    CHECK(strlen(have) == n);
    for (size_t j = 0; j < n; j++) {
        if (have[j] != '1') continue;
        for (int64_t i = 0; i < ev_count(e, at); i++) ev_out(e, j)[i] = ev_src(e, at)[i];
        at++;
    }
}

/* Row t of one mix's gradient: adds to dv_j (results 0..n-1) and du. s and r are the row's. */
static void grad_row(struct eval *e, size_t first, size_t n, int64_t t, const double *u,
                     const double *dh, double delta, double lse, const double *s, const double *r,
                     double *du)
{
    int64_t D = ev_cols(e, first);
    for (size_t j = 0; j < n; j++) {
        const double *v = ev_src(e, first + j) + t * D;
        double *dv = ev_out(e, j) + t * D;
        double p = exp(s[j] - lse), ds = p * (dot(dh, v, D) - delta);
        for (int64_t c = 0; c < D; c++) {
            dv[c] += p * dh[c] + ds * (r[j] * u[c] - s[j] * r[j] * r[j] / (double)D * v[c]);
            du[c] += ds * r[j] * v[c];
        }
    }
}

void eval_depth_mix_grad(struct eval *e)
{
    size_t n = (size_t)ev_int(e, AK_sources, 0);
    int64_t D = ev_cols(e, 0);
    const double *dh = ev_src(e, 0), *h = ev_src(e, 1), *s = ev_src(e, 3), *r = ev_src(e, 4);
    take_accumulators(e, 6, n);
    for (int64_t t = 0; t < ev_rows(e, 0); t++)
        grad_row(e, 6, n, t, ev_src(e, 2), dh + t * D, dot(dh + t * D, h + t * D, D),
                 ev_src(e, 5)[t], s + t * (int64_t)n, r + t * (int64_t)n, ev_out(e, n));
}

void eval_depth_inter_grad(struct eval *e)
{
    size_t n = (size_t)ev_int(e, AK_sources, 0), q = (size_t)ev_int(e, AK_queries, 0);
    size_t first = 2 + 4 * q;
    int64_t D = ev_cols(e, first), sn = (int64_t)(q * n);
    const double *s = ev_src(e, 0), *r = ev_src(e, 1);
    take_accumulators(e, first, n);
    for (int64_t t = 0; t < ev_rows(e, first); t++)
        for (size_t i = 0; i < q; i++)
            grad_row(e, first, n, t, ev_src(e, 2 + i), ev_src(e, 2 + q + i) + t * D,
                     ev_src(e, 2 + 2 * q + i)[t], ev_src(e, 2 + 3 * q + i)[t],
                     s + t * sn + (int64_t)(i * n), r + t * (int64_t)n, ev_out(e, n + i));
}
