/* Caches of incremental programs: B sequences of T new tokens, past[b] tokens before them in the
 * caches of slot slots[b]. */
#include "eval_op.h"
#include <math.h>

void eval_last_rows(struct eval *e)
{
    int64_t cols = ev_cols(e, 0);
    for (int64_t b = 0; b < e->b.B; b++)
        for (int64_t c = 0; c < cols; c++)
            ev_out(e, 0)[b * cols + c] = ev_src(e, 0)[((b + 1) * e->b.T - 1) * cols + c];
}

/* The sequences of operands `slots` and `slots` + 1, and the caches of `each` rows a slot that they
 * index. */
struct seqs {
    const double *slot, *past;
    int64_t each, slots;
};

static struct seqs seqs_of(const struct eval *e, size_t cache, size_t slots)
{
    struct seqs s = {ev_src(e, slots), ev_src(e, slots + 1), ev_int(e, AK_context, 0), 0};
    s.slots = ev_rows(e, cache) / s.each;
    return s;
}

/* The row of a position of sequence b. */
static int64_t row_of(const struct eval *e, const struct seqs *s, int64_t b, int64_t position)
{
    return ev_index(e, s->slot[b], s->slots) * s->each + position % s->each;
}

void eval_cache_write(struct eval *e)
{
    struct seqs s = seqs_of(e, 0, 2);
    int64_t cols = ev_cols(e, 0);
    double *out = ev_out(e, 0);
    memcpy(out, ev_src(e, 0), (size_t)ev_count(e, 0) * sizeof *out);
    for (int64_t b = 0; b < e->b.B; b++)
        for (int64_t t = 0; t < e->b.T; t++) {
            double *row = out + row_of(e, &s, b, (int64_t)s.past[b] + t) * cols;
            memcpy(row, ev_src(e, 1) + (b * e->b.T + t) * cols, (size_t)cols * sizeof *row);
        }
}

/* One head of one token at position `at` of sequence b. */
static void attend(struct eval *e, const struct seqs *s, int64_t b, int64_t at, const double *q,
                   int64_t kv, double *o)
{
    int64_t hd = ev_int(e, AK_head_dim, 0), w = ev_int(e, AK_window, 0), cols = ev_cols(e, 1);
    double scale = ev_num(e, AK_scale, 1), max = -INFINITY, sum = 0;
    int64_t first = w > 0 && at - w + 1 > 0 ? at - w + 1 : 0;
    if ((int64_t)s->past[b] + e->b.T - first > s->each)
        BUG("eval: %%%s: position %lld is no longer in the cache", ir_name(e->g, e->n),
            (long long)first);
    double *p = NEW(e->a, double, at - first + 1);
    for (int64_t i = first; i <= at; i++) {
        const double *k = ev_src(e, 1) + row_of(e, s, b, i) * cols + kv * hd;
        double dot = 0;
        for (int64_t c = 0; c < hd; c++) dot += q[c] * k[c];
        max = fmax(max, p[i - first] = scale * dot);
    }
    for (int64_t i = first; i <= at; i++) sum += p[i - first] = exp(p[i - first] - max);
    for (int64_t i = first; i <= at; i++) {
        const double *v = ev_src(e, 2) + row_of(e, s, b, i) * cols + kv * hd;
        for (int64_t c = 0; c < hd; c++) o[c] += p[i - first] / sum * v[c];
    }
}

void eval_attention_cached(struct eval *e)
{
    struct seqs s = seqs_of(e, 1, 3);
    int64_t heads = ev_int(e, AK_heads, 0), kv = ev_int(e, AK_kv_heads, 0);
    int64_t hd = ev_int(e, AK_head_dim, 0);
    for (int64_t t = 0; t < ev_rows(e, 0); t++)
        for (int64_t h = 0; h < heads; h++) {
            int64_t at = (t * heads + h) * hd, b = t / e->b.T;
            attend(e, &s, b, (int64_t)s.past[b] + t % e->b.T, ev_src(e, 0) + at, h / (heads / kv),
                   ev_out(e, 0) + at);
        }
}
