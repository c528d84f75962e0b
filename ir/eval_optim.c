/* The apply program. ctl = norm, clip factor, 1 if all is finite; hyper = lr, 1-beta1^t, 1-beta2^t.
 * Nothing changes where ctl[2] is 0. */
#include "eval_op.h"
#include <math.h>

static void keep(struct eval *e, size_t result, size_t src)
{
    for (int64_t i = 0; i < ev_count(e, src); i++) ev_out(e, result)[i] = ev_src(e, src)[i];
}

void eval_adamw(struct eval *e)
{
    const double *p = ev_src(e, 0), *g = ev_src(e, 1), *m = ev_src(e, 2), *v = ev_src(e, 3);
    const double *ctl = ev_src(e, 4), *hyper = ev_src(e, 5);
    double b1 = ev_num(e, AK_beta1, 0.9), b2 = ev_num(e, AK_beta2, 0.95);
    double eps = ev_num(e, AK_eps, 1e-8), decay = ev_num(e, AK_weight_decay, 0);
    if (ctl[2] == 0) {
        keep(e, 0, 0), keep(e, 1, 2), keep(e, 2, 3);
        return;
    }
    for (int64_t i = 0; i < ev_count(e, 0); i++) {
        double c = g[i] * ctl[1], w = p[i] - hyper[0] * decay * p[i];
        double m1 = b1 * m[i] + (1 - b1) * c, v1 = b2 * v[i] + (1 - b2) * c * c;
        ev_out(e, 0)[i] = w - hyper[0] * (m1 / hyper[1]) / (sqrt(v1 / hyper[2]) + eps);
        ev_out(e, 1)[i] = m1;
        ev_out(e, 2)[i] = v1;
    }
}

void eval_momentum(struct eval *e)
{
    const double *g = ev_src(e, 0), *m = ev_src(e, 1), *ctl = ev_src(e, 2);
    double mu = ev_num(e, AK_momentum, 0.95);
    if (ctl[2] == 0) { /* n stays 0 */
        keep(e, 1, 1);
        return;
    }
    for (int64_t i = 0; i < ev_count(e, 0); i++) {
        double c = ctl[1] * g[i], m1 = mu * m[i] + c;
        ev_out(e, 0)[i] = c + mu * m1;
        ev_out(e, 1)[i] = m1;
    }
}

void eval_muon_step(struct eval *e)
{
    const double *p = ev_src(e, 0), *x = ev_src(e, 1), *ctl = ev_src(e, 2), *hyper = ev_src(e, 3);
    double scale = ev_num(e, AK_scale, 1), decay = ev_num(e, AK_weight_decay, 0);
    for (int64_t i = 0; i < ev_count(e, 0); i++)
        ev_out(e, 0)[i] = ctl[2] == 0 ? p[i] : p[i] - hyper[0] * (scale * x[i] + decay * p[i]);
}

void eval_grad_norm(struct eval *e)
{
    double clip = ev_num(e, AK_clip, 0), total = 0, *ctl = ev_out(e, 0);
    for (uint32_t k = 1; k < ir_at(e->g, e->n)->nsrc; k++) {
        double sum = 0;
        for (int64_t i = 0; i < ev_count(e, k); i++) sum += ev_src(e, k)[i] * ev_src(e, k)[i];
        ev_out(e, 1)[k - 1] = sum;
        total += sum;
    }
    ctl[0] = sqrt(total);
    ctl[2] = isfinite(ctl[0]) && isfinite(ev_src(e, 0)[0]);
    ctl[1] = clip > 0 && ctl[2] != 0 ? fmin(1, clip / (ctl[0] + 1e-6)) : 1;
}

void eval_qk_clip(struct eval *e)
{
    const double *top = ev_src(e, 1);
    const char *part = ir_word(e->g, e->n, AK_part, "q");
    int64_t heads = ev_int(e, AK_heads, 1), kv = ev_int(e, AK_kv_heads, 1), group = heads / kv;
    int64_t stride = ev_int(e, AK_head_dim, 1), from = ev_int(e, AK_from, 0);
    int64_t to = ev_int(e, AK_to, 0), first = ev_int(e, AK_index, 0), cols = ev_cols(e, 0);
    double tau = ev_num(e, AK_value, 0);
    keep(e, 0, 0);
    if (ev_src(e, 2)[2] == 0) return;
    for (int64_t h = 0; h < (*part == 'k' ? kv : heads); h++) {
        int64_t g = *part == 'k' ? h : h / group;
        double least = 1, mine = *part == 'k' ? 1 : fmin(1, tau / fmax(top[h], tau));
        for (int64_t i = g * group; i < (g + 1) * group; i++)
            least = fmin(least, tau / fmax(top[i], tau));
        double f = *part == 'k' ? sqrt(least) : *part == 'q' ? mine / sqrt(least) : mine;
        int64_t row = first + h * stride;
        for (int64_t i = (row + from) * cols; i < (row + to) * cols; i++) ev_out(e, 0)[i] *= f;
    }
}

void eval_balance(struct eval *e)
{
    const double *load = ev_src(e, 1);
    int64_t n = ev_count(e, 0);
    double rate = ev_num(e, AK_rate, 1e-3), sum = 0, signs = 0, *sign = NEW(e->a, double, n);
    keep(e, 0, 0);
    if (ev_src(e, 2)[2] == 0) return;
    for (int64_t i = 0; i < n; i++) sum += load[i];
    for (int64_t i = 0; i < n; i++) {
        double more = sum - (double)n * load[i]; /* counts: exact, so that equal is 0 */
        sign[i] = (more > 0) - (more < 0);
        signs += sign[i];
    }
    for (int64_t i = 0; i < n; i++) ev_out(e, 0)[i] += rate * (sign[i] - signs / (double)n);
}
