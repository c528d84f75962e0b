#include "compiler/trainer.h"
#include "compiler/tokens.h"
#include "runtime/mem.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- opening ---- */

static void open_data(struct trainer *t)
{
    struct cli *c = t->run.cli;
    const struct model *m = t->run.model;
    cli_check(c, tokens_open(m, m->train.data_path, &t->tokenizer, &c->err));
    const struct dataset_options o = {.path = m->train.data_path,
                                      .val_fraction = m->train.val_fraction,
                                      .shuffled = m->train.order == ORDER_shuffled,
                                      .seq_len = m->train.seq_len,
                                      .vocab_size = m->vocab_size,
                                      .seed = m->train.seed,
                                      .tokenizer = t->tokenizer,
                                      .progress = true};
    cli_check(c, dataset_open(&o, &t->data, &c->err));
}

static void open_programs(struct trainer *t)
{
    struct run *r = &t->run;
    const struct train_spec *s = &r->model->train;
    int64_t T = s->seq_len;
    const struct build_options plain = {0}, probes = {.probes = true};
    t->train = run_model_plan(r, BUILD_train, &plain, t->rows, T);
    t->apply = run_plan(r, build_apply(r->cli->arena, r->model, r->params), "apply", 1, 1);
    bool none = t->data && !dataset_val_windows(t->data);
    if (s->eval_every && none)
        fprintf(stderr,
                "strata: warning: train.eval does nothing: the validation part of %s holds no "
                "window of %lld tokens (train.data.val_fraction)\n",
                s->data_path, (long long)T);
    if (s->eval_every && !none) {
        t->loss = run_model_plan(r, BUILD_loss, &plain, t->rows, T);
        t->probe = run_model_plan(r, BUILD_train, &probes, t->rows, T);
    }
}

static float *value(const struct plan *p, const char *name, size_t *n)
{
    const struct plan_value *v = plan_value(p, name);
    if (!v) BUG("no value %s", name);
    if (n) *n = (size_t)v->count;
    return v->p;
}

static void list_grads(struct trainer *t)
{
    struct arena *a = t->run.cli->arena;
    for (size_t i = 0; i < t->run.params->n; i++) {
        const struct param *p = &t->run.params->p[i];
        if (p->kind == PARAM_state) continue;
        struct span_f g = {.name = p->name};
        g.p = value(t->train, str_fmt(a, "grad.%s", p->name), &g.n);
        vec_push(a, &t->grads, g);
    }
    const struct model *m = t->run.model;
    for (size_t i = 0; i < m->num_layers; i++) {
        if (m->ffn[m->layer[i].ffn].type != FFN_moe) continue;
        struct span_f g = {.name = str_fmt(a, "load.model.layers.%zu.block_sparse_moe", i)};
        g.p = value(t->train, g.name, &g.n);
        vec_push(a, &t->grads, g);
        vec_push(a, &t->loads, g);
    }
    for (size_t i = 0; i < m->num_layers; i++) {
        if (!build_clips_logits(m, &m->mixer[m->layer[i].mixer])) continue;
        struct span_f g = {.name = str_fmt(a, "logit_max.model.layers.%zu", i)};
        g.p = value(t->train, g.name, &g.n);
        vec_push(a, &t->tops, g);
    }
    t->top_sofar = NEW(a, float *, t->tops.n);
    for (size_t i = 0; i < t->tops.n; i++) t->top_sofar[i] = NEW(a, float, t->tops.p[i].n);
    t->idle = NEW(a, float *, t->loads.n);
    for (size_t i = 0; i < t->loads.n; i++) t->idle[i] = NEW(a, float, t->loads.p[i].n);
}

static size_t grad_floats(const struct trainer *t)
{
    size_t n = 0;
    for (size_t i = 0; i < t->grads.n; i++) n += t->grads.p[i].n;
    return n;
}

/* Partial sums: one set of gradients for every level of the tree below the root. */
static void open_levels(struct trainer *t)
{
    int levels = 0;
    while ((t->micro - 1) >> levels) levels++;
    t->level = NEW(t->run.cli->arena, float *, levels);
    for (int i = 0; i < levels; i++) {
        t->level[i] = mem_alloc(grad_floats(t) * sizeof(float));
        if (!t->level[i])
            cli_fail(RT_machine, "no memory to sum the gradients of %lld micro-batches",
                     (long long)t->micro);
    }
}

static void open_all(struct trainer *t, struct cli *c, const struct model *m,
                     const struct run_options *o, bool random_data)
{
    *t = (struct trainer){0};
    run_open(&t->run, c, m, o);
    t->micro = m->train.micro_batches;
    t->rows = m->train.batch_size / t->micro;
    size_t ids = (size_t)(m->train.batch_size * m->train.seq_len);
    t->inputs = NEW(c->arena, int32_t, ids);
    t->targets = NEW(c->arena, int32_t, ids);
    t->window = NEW(c->arena, int32_t, m->train.seq_len + 1);
    if (!random_data) open_data(t);
    open_programs(t);
    run_ready(&t->run, t->train, NULL);
    list_grads(t);
    open_levels(t);
}

void trainer_open(struct trainer *t, struct cli *c, const struct model *m,
                  const struct run_options *o)
{
    open_all(t, c, m, o, false);
}

void trainer_open_random(struct trainer *t, struct cli *c, const struct model *m,
                         const struct run_options *o)
{
    open_all(t, c, m, o, true);
}

void trainer_close(struct trainer *t)
{
    if (t->data) dataset_close(t->data);
    if (t->tokenizer) tokenizer_close(t->tokenizer);
    run_close(&t->run);
}

void trainer_start(struct trainer *t, const char *weights)
{
    if (weights)
        run_load(&t->run, weights, NULL);
    else
        weights_init(t->run.params, t->run.model->train.seed, t->run.weights);
}

/* ---- one step ---- */

double train_lr(const struct train_spec *t, uint64_t s)
{
    double f = t->warmup ? fmin(1, (double)(s + 1) / (double)t->warmup) : 1, lr = t->lr;
    double at = (double)s, steps = (double)t->steps, decay = (double)t->decay;
    if (t->schedule == SCHED_wsd && at >= steps - decay)
        lr = t->min_lr + (t->lr - t->min_lr) * (steps - at) / decay;
    if (t->schedule == SCHED_cosine && at >= (double)t->warmup) {
        double x = (at - (double)t->warmup) / (steps - (double)t->warmup);
        lr = t->min_lr + (t->lr - t->min_lr) * (1 + cos(M_PI * x)) / 2;
    }
    return f * lr;
}

/* The window of sequence k: from the data, or where there is none, ids in no order at all. */
static void read_window(struct trainer *t, uint64_t k)
{
    struct cli *c = t->run.cli;
    uint64_t x = k * UINT64_C(0x9e3779b97f4a7c15) + 1;
    if (t->data) {
        cli_check(c, dataset_train(t->data, k, t->window, &c->err));
        return;
    }
    for (int64_t i = 0; i <= t->run.model->train.seq_len; i++) {
        x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        t->window[i] = (int32_t)((x >> 33) % (uint64_t)t->run.model->vocab_size);
    }
}

/* Reads the whole batch; returns how many targets count. */
static double read_batch(struct trainer *t)
{
    const struct train_spec *s = &t->run.model->train;
    size_t T = (size_t)s->seq_len;
    double count = 0;
    for (size_t row = 0; row < (size_t)s->batch_size; row++) {
        uint64_t k = t->step * (uint64_t)s->batch_size + row;
        read_window(t, k);
        dataset_targets(t->window, T, t->inputs + row * T, t->targets + row * T);
        for (size_t i = 0; i < T; i++) count += t->targets[row * T + i] >= 0;
    }
    return count;
}

static void bind(struct trainer *t, const struct plan *p, size_t first_row, double count)
{
    size_t T = (size_t)t->run.model->train.seq_len, n = (size_t)t->rows * T;
    memcpy(value(p, "tokens", NULL), t->inputs + first_row * T, n * 4);
    memcpy(value(p, "targets", NULL), t->targets + first_row * T, n * 4);
    *value(p, "count", NULL) = (float)count;
}

struct add { /* to[i] = a[i] + b[i] */
    float *to;
    const float *a, *b;
};

static void add_part(void *arg, int64_t lo, int64_t hi, unsigned worker)
{
    const struct add *x = arg;
    (void)worker;
    for (int64_t i = lo; i < hi; i++) x->to[i] = x->a[i] + x->b[i];
}

/* Adds a level to the gradients in place, or (store) writes them to the level. */
static void level_move(struct trainer *t, int level, bool store)
{
    float *at = t->level[level];
    for (size_t i = 0; i < t->grads.n; i++) {
        struct span_f *g = &t->grads.p[i];
        if (store) {
            memcpy(at, g->p, g->n * sizeof *at);
        } else {
            struct add x = {g->p, at, g->p};
            pool_run(session_pool(t->run.session), add_part, &x, (int64_t)g->n, 65536);
        }
        at += g->n;
    }
}

/* After micro-batch i: the tree is that of a binary counter, the same whatever runs the parts
 * where. */
static void accumulate(struct trainer *t, int64_t i, float *loss, float *level_loss)
{
    bool last = i == t->micro - 1;
    int level = 0;
    for (; i >> level; level++) {
        if (!(i >> level & 1)) {
            if (!last) break;
            continue;
        }
        level_move(t, level, false);
        *loss = level_loss[level] + *loss;
    }
    if (last) return;
    level_move(t, level, true);
    level_loss[level] = *loss;
}

/* After micro-batch i: the largest logits are those of all micro-batches so far. */
static float gather_tops(struct trainer *t, int64_t i)
{
    float most = -INFINITY;
    for (size_t k = 0; k < t->tops.n; k++) {
        struct span_f *g = &t->tops.p[k];
        for (size_t h = 0; h < g->n; h++) {
            if (i > 0 && t->top_sofar[k][h] > g->p[h]) g->p[h] = t->top_sofar[k][h];
            t->top_sofar[k][h] = g->p[h];
            most = g->p[h] > most ? g->p[h] : most;
        }
    }
    return most;
}

static void set_hyper(struct trainer *t, double lr)
{
    const struct train_spec *s = &t->run.model->train;
    float *h = value(t->apply, "hyper", NULL);
    double updates = (double)(t->step - t->skipped + 1);
    h[0] = (float)lr;
    h[1] = (float)-expm1(updates * log(s->beta1));
    h[2] = (float)-expm1(updates * log(s->beta2));
    h[3] = 0;
}

static const char *find_culprit(struct trainer *t)
{
    const double *sq = (const double *)(const void *)value(t->apply, "sumsq", NULL);
    size_t k = 0;
    for (size_t i = 0; i < t->run.params->n; i++)
        if (t->run.params->p[i].kind != PARAM_state && !isfinite(sq[k++]))
            return t->run.params->p[i].name;
    return "loss";
}

struct step_result trainer_step(struct trainer *t)
{
    struct step_result r = {.lr = train_lr(&t->run.model->train, t->step)};
    double begin = now(), count = read_batch(t);
    float *loss = value(t->train, "loss", NULL), level_loss[64];
    for (int64_t i = 0; i < t->micro; i++) {
        bind(t, t->train, (size_t)(i * t->rows), count > 0 ? count : 1);
        plan_run(t->train);
        if (t->micro > 1) accumulate(t, i, loss, level_loss);
        r.logit_max = gather_tops(t, i);
    }
    set_hyper(t, r.lr);
    plan_run(t->apply);
    const float *ctl = value(t->apply, "ctl", NULL);
    r.loss = *loss, r.grad_norm = ctl[0], r.finite = ctl[2] != 0;
    r.seconds = now() - begin;
    t->bad_in_row = r.finite ? 0 : t->bad_in_row + 1;
    if (!r.finite) t->skipped++, r.culprit = find_culprit(t);
    t->step++;
    return r;
}

/* ---- evaluation ---- */

/* Fills rows from validation windows first ..; rows past the last count for nothing. */
static double read_validation(struct trainer *t, uint64_t first, uint64_t windows)
{
    struct cli *c = t->run.cli;
    size_t T = (size_t)t->run.model->train.seq_len;
    double count = 0;
    for (size_t row = 0; row < (size_t)t->rows; row++) {
        bool there = first + row < windows;
        if (there) cli_check(c, dataset_val(t->data, first + row, t->window, &c->err));
        dataset_targets(t->window, T, t->inputs + row * T, t->targets + row * T);
        for (size_t i = 0; i < T; i++) {
            if (!there) t->targets[row * T + i] = -1;
            count += t->targets[row * T + i] >= 0;
        }
    }
    return count;
}

double trainer_validate(struct trainer *t)
{
    const struct train_spec *s = &t->run.model->train;
    if (!t->loss) return -1;
    uint64_t windows = dataset_val_windows(t->data);
    if (s->eval_sequences && (uint64_t)s->eval_sequences < windows)
        windows = (uint64_t)s->eval_sequences;
    double sum = 0, all = 0;
    for (uint64_t at = 0; at < windows; at += (uint64_t)t->rows) {
        double count = read_validation(t, at, windows);
        if (count == 0) continue;
        bind(t, t->loss, 0, count);
        plan_run(t->loss);
        sum += (double)*value(t->loss, "loss", NULL) * count;
        all += count;
    }
    return all > 0 ? sum / all : -1;
}

void trainer_probes(struct trainer *t, struct metrics *m)
{
    if (!t->probe) return;
    double count = read_validation(t, 0, dataset_val_windows(t->data));
    double rows = (double)(t->rows * t->run.model->train.seq_len);
    bind(t, t->probe, 0, count > 0 ? count : 1);
    plan_run(t->probe);
    size_t n;
    const struct plan_value *v = plan_values(t->probe, &n);
    double width = (double)t->run.model->hidden_size;
    for (size_t i = 0; i < n; i++) {
        if (!str_starts(str_of(v[i].name), "probe.")) continue;
        double x = (double)*(const float *)v[i].p;
        bool entropy = str_starts(str_of(v[i].name), "probe.entropy.");
        x = entropy ? x / rows : sqrt(x / (rows * width));
        metrics_double(m, v[i].name + strlen("probe."), x);
    }
}
