/* Caches of incremental programs: B sequences of T new tokens, past[b] tokens before them in the
 * pages of their tables. */
#include "eval_op.h"
#include <math.h>

void eval_last_rows(struct eval *e)
{
    int64_t cols = ev_cols(e, 0);
    for (int64_t b = 0; b < e->b.B; b++)
        for (int64_t c = 0; c < cols; c++)
            ev_out(e, 0)[b * cols + c] = ev_src(e, 0)[((b + 1) * e->b.T - 1) * cols + c];
}

int64_t ev_paged_row(const struct eval *e, size_t cache, size_t pages, int64_t b, int64_t position)
{
    int64_t context = ev_int(e, AK_context, 0);
    if (position < 0 || position >= context)
        BUG("eval: %%%s: position %lld of %lld", ir_name(e->g, e->n), (long long)position,
            (long long)context);
    double page = ev_src(e, pages)[b * (context / IR_PAGE) + position / IR_PAGE];
    return ev_index(e, page, ev_rows(e, cache) / IR_PAGE) * IR_PAGE + position % IR_PAGE;
}

void eval_cache_write(struct eval *e)
{
    int64_t cols = ev_cols(e, 0);
    bool bf16 = ir_ty(e->g, e->n)->dtype == IR_bf16;
    double *out = ev_out(e, 0);
    memcpy(out, ev_src(e, 0), (size_t)ev_count(e, 0) * sizeof *out);
    for (int64_t b = 0; b < e->b.B; b++)
        for (int64_t t = 0; t < e->b.T; t++) {
            int64_t at = (int64_t)ev_src(e, 3)[b] + t;
            double *row = out + ev_paged_row(e, 0, 2, b, at) * cols;
            const double *x = ev_src(e, 1) + (b * e->b.T + t) * cols;
            for (int64_t c = 0; c < cols; c++) row[c] = bf16 ? ev_bf16(x[c]) : x[c];
        }
}

/* One head of one token at position `at` of sequence b. */
static void attend(struct eval *e, int64_t b, int64_t at, const double *q, int64_t kv, double *o)
{
    int64_t hd = ev_int(e, AK_head_dim, 0), w = ev_int(e, AK_window, 0), cols = ev_cols(e, 1);
    double scale = ev_num(e, AK_scale, 1), max = -INFINITY, sum = 0;
    int64_t first = w > 0 && at - w + 1 > 0 ? at - w + 1 : 0;
    double *p = NEW(e->a, double, at - first + 1);
    for (int64_t i = first; i <= at; i++) {
        const double *k = ev_src(e, 1) + ev_paged_row(e, 1, 3, b, i) * cols + kv * hd;
        double dot = 0;
        for (int64_t c = 0; c < hd; c++) dot += q[c] * k[c];
        max = fmax(max, p[i - first] = scale * dot);
    }
    for (int64_t i = first; i <= at; i++) sum += p[i - first] = exp(p[i - first] - max);
    for (int64_t i = first; i <= at; i++) {
        const double *v = ev_src(e, 2) + ev_paged_row(e, 2, 3, b, i) * cols + kv * hd;
        for (int64_t c = 0; c < hd; c++) o[c] += p[i - first] / sum * v[c];
    }
}

void eval_attention_cached(struct eval *e)
{
    int64_t heads = ev_int(e, AK_heads, 0), kv = ev_int(e, AK_kv_heads, 0);
    int64_t hd = ev_int(e, AK_head_dim, 0);
    for (int64_t t = 0; t < ev_rows(e, 0); t++)
        for (int64_t h = 0; h < heads; h++) {
            int64_t at = (t * heads + h) * hd, b = t / e->b.T;
            attend(e, b, (int64_t)ev_src(e, 4)[b] + t % e->b.T, ev_src(e, 0) + at, h / (heads / kv),
                   ev_out(e, 0) + at);
        }
}
