#include "compiler/alarms.h"
#include <math.h>

enum { NAMED = 4 }; /* tensors that a sentence names */

static bool finite_all(const float *x, int64_t n)
{
    float sum = 0; /* 0 * x is not 0 where x is not finite */
    for (int64_t i = 0; i < n; i++) sum += 0 * x[i];
    return sum == 0;
}

static bool constant_all(const float *x, int64_t n)
{
    int64_t i = 1;
    while (i < n && x[i] == x[0]) i++;
    return n > 1 && i == n;
}

const char *alarm_weights(struct arena *a, const struct params *ps, float *const *weights)
{
    struct sb s = {0};
    size_t found = 0;
    for (size_t i = 0; i < ps->n; i++)
        for (size_t k = 0; k < ps->p[i].num_parts; k++) {
            const struct param *p = &ps->p[i];
            const float *x = weights[i] + p->part[k].offset;
            int64_t n = (k + 1 < p->num_parts ? p->part[k + 1].offset : p->count);
            n -= p->part[k].offset;
            bool finite = finite_all(x, n);
            bool learns = p->kind == PARAM_matrix || p->kind == PARAM_embedding;
            if (finite && !(learns && constant_all(x, n))) continue;
            if (found++ >= NAMED) continue;
            sb_printf(&s, "%s%s %s", found > 1 ? ", " : "", p->part[k].tensor,
                      finite ? "is constant (not initialised?)" : "is not finite");
        }
    if (found > NAMED) sb_printf(&s, " and %zu more", found - NAMED);
    return found ? sb_take(&s, a).p : NULL;
}

const char *alarm_first_loss(struct arena *a, const struct model *m, double loss)
{
    double std = m->tie_embeddings ? m->init_embedding_std : m->init_std;
    double want = log((double)m->vocab_size) + (double)m->hidden_size * std * std / 2;
    if (fabs(loss - want) <= ALARM_LOSS) return NULL;
    return str_fmt(a,
                   "the first loss is %.3f, but fresh weights should give about %.3f "
                   "(ln vocab_size + hidden_size std^2 / 2)",
                   loss, want);
}

struct balance_state alarm_loads(struct arena *a, const struct span_f *load, float *const *idle,
                                 size_t n, const char **dead)
{
    struct balance_state r = {0, 0};
    struct sb s = {0};
    size_t died = 0;
    for (size_t i = 0; i < n; i++) {
        double all = 0, top = 0;
        for (size_t e = 0; e < load[i].n; e++) {
            double x = (double)load[i].p[e];
            all += x, top = fmax(top, x);
            r.idle += x == 0;
            idle[i][e] = x == 0 ? idle[i][e] + 1 : 0;
            if (idle[i][e] != ALARM_DEAD_STEPS) continue;
            if (died++ < NAMED)
                sb_printf(&s, "%s%s expert %zu", died > 1 ? ", " : "",
                          load[i].name + strlen("load."), e);
        }
        if (all > 0) r.max_load = fmax(r.max_load, top * (double)load[i].n / all);
    }
    if (died > NAMED) sb_printf(&s, " and %zu more", died - NAMED);
    if (died) sb_printf(&s, " had no token for %d steps", ALARM_DEAD_STEPS);
    *dead = died ? sb_take(&s, a).p : NULL;
    return r;
}
