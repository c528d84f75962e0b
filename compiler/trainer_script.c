/* A training step as a script: the gradients of every micro-batch, their sum, the optimiser. */
#include "compiler/trainer.h"
#include <stdlib.h>

enum { ALIGN = 16 }; /* floats; named values begin at multiples */

typedef VEC(struct session_span) span_list;

static int by_place(const void *a, const void *b)
{
    const struct session_span *x = a, *y = b;
    return (x->p > y->p) - (x->p < y->p);
}

static size_t rounded(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

/* What is summed over micro-batches: loss, gradients, loads. Neighbours in memory become one span,
 * with the gaps between them, which belong to nobody; on a device they may lie in another piece. */
static span_list list_sums(const struct trainer *t)
{
    struct arena *a = t->run.cli->arena;
    const struct plan_value *loss = plan_value(t->train, "loss");
    span_list all = {0}, merged = {0};
    vec_push(a, &all, ((struct session_span){loss->p, loss->device, 1}));
    for (size_t i = 0; i < t->grads.n; i++) {
        const struct span_f *g = &t->grads.p[i];
        vec_push(a, &all, ((struct session_span){g->p, g->device, g->n}));
    }
    qsort(all.p, all.n, sizeof *all.p, by_place);
    for (size_t i = 0; i < all.n; i++) {
        struct session_span *last = merged.n ? &vec_last(&merged) : NULL, x = all.p[i];
        bool next = last && x.p == last->p + rounded(last->n);
        if (next && (!x.device || x.device == last->device + 4 * rounded(last->n)))
            last->n = rounded(last->n) + x.n;
        else
            vec_push(a, &merged, x);
    }
    return merged;
}

static struct session_span part_of(const struct plan_value *v, size_t at, size_t n)
{
    return (struct session_span){(float *)v->p + at, v->device ? v->device + 4 * at : 0, n};
}

/* Adds a level to the sums in place, or (store) writes them to the level. */
static void level_move(struct trainer *t, const span_list *sums, const struct plan_value *level,
                       bool store)
{
    size_t at = 0;
    for (size_t i = 0; i < sums->n; i++) {
        struct session_span g = sums->p[i], l = part_of(level, at, g.n);
        if (store)
            script_combine(t->script, l, g, g, COMBINE_copy);
        else
            script_combine(t->script, g, l, g, COMBINE_sum);
        at += rounded(g.n);
    }
}

/* After micro-batch i: the tree is that of a binary counter, the same whatever runs the parts
 * where. */
static void accumulate(struct trainer *t, const span_list *sums,
                       const struct plan_value *const *level, int64_t i)
{
    bool last = i == t->micro - 1;
    int k = 0;
    for (; i >> k; k++) {
        if (!(i >> k & 1)) {
            if (!last) break;
            continue;
        }
        level_move(t, sums, level[k], false);
    }
    if (!last) level_move(t, sums, level[k], true);
}

/* After micro-batch i: the largest logits are those of all micro-batches so far. */
static void gather_tops(struct trainer *t, const struct plan_value *const *sofar, int64_t i)
{
    for (size_t k = 0; k < t->tops.n; k++) {
        const struct span_f *f = &t->tops.p[k];
        struct session_span g = {f->p, f->device, f->n}, s = part_of(sofar[k], 0, f->n);
        if (i > 0) script_combine(t->script, g, s, g, COMBINE_max);
        if (i < t->micro - 1) script_combine(t->script, s, g, g, COMBINE_copy);
    }
}

static void add_results(struct trainer *t)
{
    script_result(t->script, plan_value(t->train, "loss"));
    script_result(t->script, plan_value(t->apply, "ctl"));
    script_result(t->script, plan_value(t->apply, "sumsq"));
    for (size_t i = 0; i < t->loads.n; i++)
        script_result(t->script, plan_value(t->train, t->loads.p[i].name));
    for (size_t i = 0; i < t->tops.n; i++)
        script_result(t->script, plan_value(t->train, t->tops.p[i].name));
}

/* Memory for partial sums: one set for every level of the tree below the root. */
static const struct plan_value **open_levels(struct trainer *t, const span_list *sums)
{
    struct arena *a = t->run.cli->arena;
    size_t n = 0, levels = 0;
    for (size_t i = 0; i < sums->n; i++) n += rounded(sums->p[i].n);
    while ((t->micro - 1) >> levels) levels++;
    const struct plan_value **level = NEW(a, const struct plan_value *, levels);
    for (size_t i = 0; i < levels; i++)
        level[i] = session_value(t->run.session, str_fmt(a, "level.%zu", i), (int64_t)n);
    return level;
}

static const struct plan_value **open_tops(struct trainer *t)
{
    struct arena *a = t->run.cli->arena;
    const struct plan_value **sofar = NEW(a, const struct plan_value *, t->tops.n);
    for (size_t i = 0; i < t->tops.n; i++)
        sofar[i] = session_value(t->run.session, str_fmt(a, "sofar.%s", t->tops.p[i].name),
                                 (int64_t)t->tops.p[i].n);
    return sofar;
}

void trainer_script(struct trainer *t)
{
    struct cli *c = t->run.cli;
    span_list sums = list_sums(t);
    const struct plan_value **level = open_levels(t, &sums), **sofar = open_tops(t);
    cli_check(c, session_compile(t->run.session, NULL, &c->err));
    t->script = script_open(t->run.session);
    t->micro_run = NEW(c->arena, size_t, t->micro);
    for (int64_t i = 0; i < t->micro; i++) {
        cli_check(c, script_run(t->script, t->train, &t->micro_run[i], &c->err));
        if (t->micro > 1) accumulate(t, &sums, level, i);
        gather_tops(t, sofar, i);
    }
    cli_check(c, script_run(t->script, t->apply, &t->apply_run, &c->err));
    add_results(t);
}
