/* Multi-head latent attention (kimi-linear.md 3). */
#include "eval_op.h"
#include <math.h>

/* Sizes of a node: heads, k_nope, k_rope, v. */
struct mla {
    int64_t h, n, r, v;
};

static struct mla sizes(const struct eval *e, int64_t rope)
{
    return (struct mla){ev_int(e, AK_heads, 0), ev_int(e, AK_head_dim, 0), rope,
                        ev_int(e, AK_v_dim, 0)};
}

void eval_mla_keys(struct eval *e)
{
    struct mla x = sizes(e, ev_cols(e, 1));
    for (int64_t t = 0; t < ev_rows(e, 0); t++)
        for (int64_t h = 0; h < x.h; h++) {
            const double *kv = ev_src(e, 0) + (t * x.h + h) * (x.n + x.v);
            double *k = ev_out(e, 0) + (t * x.h + h) * (x.n + x.r);
            memcpy(k, kv, (size_t)x.n * sizeof *k);
            memcpy(k + x.n, ev_src(e, 1) + t * x.r, (size_t)x.r * sizeof *k);
            memcpy(ev_out(e, 1) + (t * x.h + h) * x.v, kv + x.n, (size_t)x.v * sizeof *k);
        }
}

void eval_mla_keys_grad(struct eval *e)
{
    struct mla x = sizes(e, ev_cols(e, 0) / ev_int(e, AK_heads, 1) - ev_int(e, AK_head_dim, 0));
    for (int64_t t = 0; t < ev_rows(e, 0); t++)
        for (int64_t h = 0; h < x.h; h++) {
            const double *dk = ev_src(e, 0) + (t * x.h + h) * (x.n + x.r);
            double *dkv = ev_out(e, 0) + (t * x.h + h) * (x.n + x.v);
            memcpy(dkv, dk, (size_t)x.n * sizeof *dk);
            memcpy(dkv + x.n, ev_src(e, 1) + (t * x.h + h) * x.v, (size_t)x.v * sizeof *dk);
            for (int64_t i = 0; i < x.r; i++) ev_out(e, 1)[t * x.r + i] += dk[x.n + i];
        }
}

/* y = w x for w [rows, n]. */
static void times(const double *w, const double *x, int64_t rows, int64_t n, double *y)
{
    for (int64_t i = 0; i < rows; i++, w += n) {
        y[i] = 0;
        for (int64_t k = 0; k < n; k++) y[i] += w[k] * x[k];
    }
}

static double dot(const double *a, const double *b, int64_t n)
{
    double s;
    times(a, b, 1, n, &s);
    return s;
}

/* Head h of the tokens of sequence b: keys and values of every position, then plain attention. */
static void attend(struct eval *e, const struct mla *x, int64_t b, int64_t h)
{
    int64_t l = ev_cols(e, 1), lr = ev_cols(e, 2), T = e->b.T, own = x->n + x->v;
    int64_t past = (int64_t)ev_src(e, 4)[b];
    double *kv = NEW(e->a, double, (past + T) * own), *p = NEW(e->a, double, past + T);
    const double **row = NEW(e->a, const double *, past + T);
    for (int64_t i = 0; i < past + T; i++) {
        row[i] = ev_src(e, 2) + ev_paged_row(e, 2, 3, b, i) * lr;
        times(ev_src(e, 1) + h * own * l, row[i], own, l, kv + i * own);
    }
    for (int64_t t = 0; t < T; t++) {
        const double *q = ev_src(e, 0) + ((b * T + t) * x->h + h) * (x->n + x->r);
        double max = -INFINITY, sum = 0, *o = ev_out(e, 0) + ((b * T + t) * x->h + h) * x->v;
        for (int64_t i = 0; i <= past + t; i++) {
            p[i] = dot(q, kv + i * own, x->n) + dot(q + x->n, row[i] + l, x->r);
            max = fmax(max, p[i] *= ev_num(e, AK_scale, 1));
        }
        for (int64_t i = 0; i <= past + t; i++) sum += p[i] = exp(p[i] - max);
        for (int64_t i = 0; i <= past + t; i++)
            for (int64_t k = 0; k < x->v; k++) o[k] += p[i] / sum * kv[i * own + x->n + k];
    }
}

void eval_mla_cached(struct eval *e)
{
    struct mla x = sizes(e, ev_cols(e, 2) - ev_cols(e, 1));
    for (int64_t b = 0; b < e->b.B; b++)
        for (int64_t h = 0; h < x.h; h++) attend(e, &x, b, h);
}
