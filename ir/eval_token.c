/* Embedding, rotary embedding, attention and losses. */
#include "eval_op.h"
#include <math.h>

static double dot(const double *a, const double *b, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

/* ---- embedding ---- */

/* A negative id reads row 0. */
static int64_t row_of(const struct eval *e, double id, int64_t rows)
{
    return id < 0 ? 0 : ev_index(e, id, rows);
}

void eval_embed(struct eval *e)
{
    int64_t width = ev_cols(e, 0);
    for (int64_t t = 0; t < ev_count(e, 1); t++)
        for (int64_t c = 0; c < width; c++)
            ev_out(e, 0)[t * width + c] =
                ev_src(e, 0)[row_of(e, ev_src(e, 1)[t], ev_rows(e, 0)) * width + c];
}

void eval_embed_grad(struct eval *e)
{
    int64_t width = ev_cols(e, 0), rows = dim_value(ir_rows(e->g, e->n), e->b);
    for (int64_t t = 0; t < ev_count(e, 1); t++)
        for (int64_t c = 0; c < width; c++)
            ev_out(e, 0)[row_of(e, ev_src(e, 1)[t], rows) * width + c] +=
                ev_src(e, 0)[t * width + c];
}

/* A row: cosines, then sines, of position * theta^(-2i/head_dim). */
void eval_rope_table(struct eval *e)
{
    int64_t hd = ir_cols(e->g, e->n).add, half = hd / 2;
    double theta = ev_num(e, AK_theta, 10000);
    bool cached = ir_at(e->g, e->n)->nsrc > 0;
    for (int64_t t = 0; t < dim_value(ir_rows(e->g, e->n), e->b); t++)
        for (int64_t i = 0; i < half; i++) {
            double position = cached ? ev_src(e, 0)[t / e->b.T] + (double)(t % e->b.T) : (double)t;
            double angle = position * pow(theta, -2.0 * (double)i / (double)hd);
            ev_out(e, 0)[t * hd + i] = cos(angle);
            ev_out(e, 0)[t * hd + half + i] = sin(angle);
        }
}

/* Channels i and i + r/2 of the last r of each head turn by the angle of their position. */
void eval_rope(struct eval *e)
{
    int64_t cols = ev_cols(e, 0), hd = ev_int(e, AK_head_dim, cols), turned = ev_cols(e, 1);
    int64_t half = turned / 2;
    double way = ev_int(e, AK_inverse, 0) ? -1 : 1;
    memcpy(ev_out(e, 0), ev_src(e, 0), (size_t)ev_count(e, 0) * sizeof(double));
    for (int64_t row = 0; row < ev_rows(e, 0); row++)
        for (int64_t at = row * cols + hd - turned; at < (row + 1) * cols; at += hd)
            for (int64_t i = 0; i < half; i++) {
                const double *angle = ev_src(e, 1) + row % ev_rows(e, 1) * turned;
                double c = angle[i], s = way * angle[half + i];
                double x = ev_src(e, 0)[at + i], y = ev_src(e, 0)[at + half + i];
                ev_out(e, 0)[at + i] = x * c - y * s;
                ev_out(e, 0)[at + half + i] = y * c + x * s;
            }
}

/* ---- attention ---- */

struct heads {
    int64_t rows, h, kv, hd, vd; /* head sizes: of q and k, of v and o */
    double scale;
    int64_t T, window;
};

static struct heads heads_of(const struct eval *e)
{
    struct heads x = {ev_rows(e, 0),
                      ev_int(e, AK_heads, 0),
                      ev_int(e, AK_kv_heads, 0),
                      ev_int(e, AK_head_dim, 0),
                      ev_int(e, AK_v_dim, 0),
                      0,
                      e->b.T,
                      ev_int(e, AK_window, 0)};
    if (!x.vd) x.vd = x.hd;
    x.scale = ev_num(e, AK_scale, 1 / sqrt((double)x.hd));
    return x;
}

/* The first row that row t sees: its sequence's beginning, or the window's. */
static int64_t first_row(const struct heads *x, int64_t t)
{
    int64_t begin = t - t % x->T;
    return x->window > 0 && t - x->window + 1 > begin ? t - x->window + 1 : begin;
}

/* Head h of the queries in row t, the key head it reads: times hd or vd, an offset. */
static int64_t at_q(const struct heads *x, int64_t t, int64_t h)
{
    return t * x->h + h;
}

static int64_t at_kv(const struct heads *x, int64_t t, int64_t h)
{
    return t * x->kv + h / (x->h / x->kv);
}

/* Query head h of row t times the key of row s, scaled. */
static double score(const struct heads *x, const double *q, const double *k, int64_t t, int64_t s,
                    int64_t h)
{
    return x->scale * dot(q + at_q(x, t, h) * x->hd, k + at_kv(x, s, h) * x->hd, x->hd);
}

void eval_attention(struct eval *e)
{
    struct heads x = heads_of(e);
    const double *q = ev_src(e, 0), *k = ev_src(e, 1), *v = ev_src(e, 2);
    double *o = ev_out(e, 0), *lse = ev_out(e, 1), *top = ev_out(e, 2);
    for (int64_t t = 0; t < x.rows; t++)
        for (int64_t h = 0; h < x.h; h++) {
            double max = -INFINITY, sum = 0;
            for (int64_t s = first_row(&x, t); s <= t; s++)
                max = fmax(max, score(&x, q, k, t, s, h));
            for (int64_t s = first_row(&x, t); s <= t; s++)
                sum += exp(score(&x, q, k, t, s, h) - max);
            double l = max + log(sum);
            lse[t * x.h + h] = l;
            top[t * x.h + h] = max;
            for (int64_t s = first_row(&x, t); s <= t; s++) {
                double p = exp(score(&x, q, k, t, s, h) - l);
                for (int64_t i = 0; i < x.vd; i++)
                    o[at_q(&x, t, h) * x.vd + i] += p * v[at_kv(&x, s, h) * x.vd + i];
            }
        }
}

void eval_attention_grad(struct eval *e)
{
    struct heads x = heads_of(e);
    const double *q = ev_src(e, 0), *k = ev_src(e, 1), *v = ev_src(e, 2), *o = ev_src(e, 3);
    const double *lse = ev_src(e, 4), *d = ev_src(e, 5);
    double *dq = ev_out(e, 0), *dk = ev_out(e, 1), *dv = ev_out(e, 2);
    for (int64_t t = 0; t < x.rows; t++)
        for (int64_t h = 0; h < x.h; h++) {
            int64_t a = at_q(&x, t, h) * x.hd, a_o = at_q(&x, t, h) * x.vd;
            double delta = dot(d + a_o, o + a_o, x.vd);
            for (int64_t s = first_row(&x, t); s <= t; s++) {
                int64_t b = at_kv(&x, s, h) * x.hd, b_v = at_kv(&x, s, h) * x.vd;
                double p = exp(score(&x, q, k, t, s, h) - lse[t * x.h + h]);
                double ds = p * (dot(d + a_o, v + b_v, x.vd) - delta) * x.scale;
                for (int64_t i = 0; i < x.vd; i++) dv[b_v + i] += p * d[a_o + i];
                for (int64_t i = 0; i < x.hd; i++) {
                    dq[a + i] += ds * k[b + i];
                    dk[b + i] += ds * q[a + i];
                }
            }
        }
}

/* ---- loss ---- */

static double log_sum_exp(const double *x, int64_t n)
{
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) max = fmax(max, x[i]);
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - max);
    return max + log(sum);
}

static double nll_of(const struct eval *e, const double *logits, double lse, double target,
                     int64_t n)
{
    return target < 0 ? 0 : lse - logits[ev_index(e, target, n)];
}

/* d[i] = dnll (softmax(logits) - one hot of target); 0 where the target is negative. */
static void nll_grad(const struct eval *e, double *d, const double *logits, double lse,
                     double target, double dnll, int64_t n)
{
    if (target < 0) dnll = 0;
    for (int64_t i = 0; i < n; i++) d[i] = dnll * exp(logits[i] - lse);
    if (target >= 0) d[ev_index(e, target, n)] -= dnll;
}

void eval_cross_entropy(struct eval *e)
{
    int64_t n = ev_cols(e, 0);
    for (int64_t t = 0; t < ev_rows(e, 0); t++) {
        const double *row = ev_src(e, 0) + t * n;
        double lse = log_sum_exp(row, n);
        ev_out(e, 0)[t] = nll_of(e, row, lse, ev_src(e, 1)[t], n);
        ev_out(e, 1)[t] = lse;
    }
}

void eval_cross_entropy_grad(struct eval *e)
{
    int64_t n = ev_cols(e, 0);
    for (int64_t t = 0; t < ev_rows(e, 0); t++)
        nll_grad(e, ev_out(e, 0) + t * n, ev_src(e, 0) + t * n, ev_src(e, 2)[t], ev_src(e, 1)[t],
                 ev_src(e, 3)[t], n);
}

void eval_count_valid(struct eval *e)
{
    double n = 0;
    for (int64_t i = 0; i < ev_count(e, 0); i++) n += ev_src(e, 0)[i] >= 0;
    ev_out(e, 0)[0] = n < 1 ? 1 : n;
}

static void head(struct eval *e, double *nll, double *dh, double *dw)
{
    int64_t rows = ev_rows(e, 0), width = ev_cols(e, 0), n = ev_rows(e, 1);
    const double *h = ev_operand(e, 0), *w = ev_operand(e, 1), *target = ev_src(e, 2);
    bool bf16 = ev_int(e, AK_bf16, 0) != 0;
    double *logits = NEW(e->a, double, n), *d = NEW(e->a, double, n);
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t j = 0; j < n; j++) logits[j] = dot(h + t * width, w + j * width, width);
        double lse = log_sum_exp(logits, n);
        nll[t] = nll_of(e, logits, lse, target[t], n);
        if (!dh) continue;
        nll_grad(e, d, logits, lse, target[t], ev_src(e, 3)[t], n);
        for (int64_t j = 0; j < n && bf16; j++) d[j] = ev_bf16(d[j]); /* operand of two products */
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < width; i++) {
                dh[t * width + i] += d[j] * w[j * width + i];
                dw[j * width + i] += d[j] * h[t * width + i];
            }
    }
}

void eval_head_loss(struct eval *e)
{
    head(e, ev_out(e, 0), ev_out(e, 1), ev_out(e, 2));
}

void eval_head_nll(struct eval *e)
{
    head(e, ev_out(e, 0), NULL, NULL);
}
