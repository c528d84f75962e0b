/* Mixture of experts: routing, sorting, gathering, combining. Assignment a = token * k + slot. */
#include "eval_op.h"
#include <math.h>

/* Scores of one row of logits. */
static void score_row(const struct eval *e, const double *logits, int64_t n, double *s)
{
    bool softmax = !strcmp(ir_word(e->g, e->n, AK_score, "sigmoid"), "softmax");
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) max = fmax(max, logits[i]);
    for (int64_t i = 0; i < n; i++) sum += exp(logits[i] - max);
    for (int64_t i = 0; i < n; i++)
        s[i] = softmax ? exp(logits[i] - max) / sum : 1 / (1 + exp(-logits[i]));
}

/* Scores become weights. */
static void weigh(const struct eval *e, double *w, int64_t k)
{
    double scale = ev_num(e, AK_scale, 1), sum = 1e-20;
    for (int64_t j = 0; j < k; j++) sum += w[j];
    for (int64_t j = 0; j < k; j++) w[j] *= ev_int(e, AK_renormalize, 1) ? scale / sum : scale;
}

void eval_moe_route(struct eval *e)
{
    int64_t n = ev_cols(e, 0), k = ev_int(e, AK_k, 0);
    double *s = NEW(e->a, double, n);
    const double *bias = ev_src(e, 1);
    bool *taken = NEW(e->a, bool, n);
    for (int64_t t = 0; t < ev_rows(e, 0); t++) {
        double *ids = ev_out(e, 0) + t * k, *w = ev_out(e, 1) + t * k;
        score_row(e, ev_src(e, 0) + t * n, n, s);
        memset(taken, 0, (size_t)n * sizeof *taken);
        for (int64_t j = 0; j < k; j++) {
            int64_t best = -1;
            for (int64_t i = 0; i < n; i++)
                if (!taken[i] && (best < 0 || s[i] + bias[i] > s[best] + bias[best])) best = i;
            taken[best] = true;
            ids[j] = (double)best, w[j] = s[best];
        }
        weigh(e, w, k);
    }
}

void eval_moe_weights(struct eval *e)
{
    int64_t n = ev_cols(e, 0), k = ev_cols(e, 1);
    double *s = NEW(e->a, double, n);
    for (int64_t t = 0; t < ev_rows(e, 0); t++) {
        const double *ids = ev_src(e, 1) + t * k;
        double *w = ev_out(e, 0) + t * k;
        score_row(e, ev_src(e, 0) + t * n, n, s);
        for (int64_t j = 0; j < k; j++) w[j] = s[ev_index(e, ids[j], n)];
        weigh(e, w, k);
    }
}

void eval_moe_route_grad(struct eval *e)
{
    int64_t n = ev_cols(e, 0), k = ev_cols(e, 1);
    bool renormalize = ev_int(e, AK_renormalize, 1) != 0;
    bool softmax = !strcmp(ir_word(e->g, e->n, AK_score, "sigmoid"), "softmax");
    double scale = ev_num(e, AK_scale, 1), *s = NEW(e->a, double, n), *ds = NEW(e->a, double, n);
    for (int64_t t = 0; t < ev_rows(e, 0); t++) {
        const double *ids = ev_src(e, 1) + t * k, *dw = ev_src(e, 2) + t * k;
        double sum = 1e-20, back = 0, mean = 0;
        score_row(e, ev_src(e, 0) + t * n, n, s);
        memset(ds, 0, (size_t)n * sizeof *ds);
        for (int64_t j = 0; j < k; j++) sum += s[ev_index(e, ids[j], n)];
        for (int64_t j = 0; j < k; j++) back += dw[j] * s[(int64_t)ids[j]] / sum;
        for (int64_t j = 0; j < k; j++)
            ds[(int64_t)ids[j]] = scale * (renormalize ? (dw[j] - back) / sum : dw[j]);
        for (int64_t i = 0; i < n; i++) mean += ds[i] * s[i];
        for (int64_t i = 0; i < n; i++)
            ev_out(e, 0)[t * n + i] = softmax ? s[i] * (ds[i] - mean) : ds[i] * s[i] * (1 - s[i]);
    }
}

void eval_moe_sort(struct eval *e)
{
    int64_t experts = ev_int(e, AK_experts, 0), count = ev_count(e, 0), at = 0;
    double *offset = ev_out(e, 0), *order = ev_out(e, 1), *place = ev_out(e, 2);
    for (int64_t x = 0; x < experts; x++) {
        for (int64_t a = 0; a < count; a++)
            if (ev_index(e, ev_src(e, 0)[a], experts) == x) {
                order[at] = (double)a;
                place[a] = (double)at++;
            }
        offset[x + 1] = (double)at;
    }
}

void eval_moe_gather(struct eval *e)
{
    int64_t k = ev_int(e, AK_k, 0), D = ev_cols(e, 0);
    for (int64_t r = 0; r < ev_count(e, 1); r++)
        for (int64_t c = 0; c < D; c++)
            ev_out(e, 0)[r * D + c] =
                ev_src(e, 0)[ev_index(e, ev_src(e, 1)[r], ev_rows(e, 0) * k) / k * D + c];
}

void eval_moe_gather_grad(struct eval *e)
{
    int64_t k = ev_int(e, AK_k, 0), D = ev_cols(e, 0);
    for (int64_t a = 0; a < ev_count(e, 2); a++)
        for (int64_t c = 0; c < D; c++)
            ev_out(e, 0)[a / k * D + c] +=
                ev_src(e, 0)[ev_index(e, ev_src(e, 2)[a], ev_rows(e, 0)) * D + c];
}

void eval_moe_combine(struct eval *e)
{
    int64_t k = ev_int(e, AK_k, 0), D = ev_cols(e, 0);
    for (int64_t a = 0; a < ev_count(e, 3); a++)
        for (int64_t c = 0; c < D; c++)
            ev_out(e, 0)[a / k * D + c] +=
                ev_src(e, 1)[a] * ev_src(e, 0)[ev_index(e, ev_src(e, 3)[a], ev_rows(e, 0)) * D + c];
}

void eval_moe_combine_grad(struct eval *e)
{
    int64_t k = ev_int(e, AK_k, 0), D = ev_cols(e, 0);
    const double *d = ev_src(e, 0), *y = ev_src(e, 1), *w = ev_src(e, 2), *place = ev_src(e, 4);
    for (int64_t a = 0; a < ev_count(e, 4); a++)
        for (int64_t c = 0; c < D; c++) {
            int64_t r = ev_index(e, place[a], ev_rows(e, 1)) * D + c;
            ev_out(e, 0)[r] = w[a] * d[a / k * D + c];
            ev_out(e, 1)[a] += y[r] * d[a / k * D + c];
        }
}

void eval_moe_load(struct eval *e)
{
    for (int64_t i = 0; i + 1 < ev_count(e, 0); i++)
        ev_out(e, 0)[i] = ev_src(e, 0)[i + 1] - ev_src(e, 0)[i];
}
