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

static const struct plan_value *find(const struct plan *p, const char *name)
{
    const struct plan_value *v = plan_value(p, name);
    if (!v) BUG("no value %s", name);
    return v;
}

static float *value(const struct plan *p, const char *name)
{
    return find(p, name)->p;
}

static struct span_f span_of(const struct plan *p, const char *shown, const char *name)
{
    const struct plan_value *v = find(p, name);
    return (struct span_f){shown, v->p, (size_t)v->count, v->device};
}

static void list_grads(struct trainer *t)
{
    struct arena *a = t->run.cli->arena;
    for (size_t i = 0; i < t->run.params->n; i++) {
        const struct param *p = &t->run.params->p[i];
        if (p->kind == PARAM_state) continue;
        const char *name = str_fmt(a, "grad.%s", p->name);
        vec_push(a, &t->grads, span_of(t->train, p->name, name));
    }
    const struct model *m = t->run.model;
    for (size_t i = 0; i < m->num_layers; i++) {
        if (m->ffn[m->layer[i].ffn].type != FFN_moe) continue;
        const char *name = str_fmt(a, "load.model.layers.%zu.block_sparse_moe", i);
        vec_push(a, &t->grads, span_of(t->train, name, name));
        vec_push(a, &t->loads, vec_last(&t->grads));
    }
    for (size_t i = 0; i < m->num_layers; i++) {
        if (!build_clips_logits(m, &m->mixer[m->layer[i].mixer])) continue;
        const char *name = str_fmt(a, "logit_max.model.layers.%zu", i);
        vec_push(a, &t->tops, span_of(t->train, name, name));
    }
    t->idle = NEW(a, float *, t->loads.n);
    for (size_t i = 0; i < t->loads.n; i++) t->idle[i] = NEW(a, float, t->loads.p[i].n);
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
    t->batch_step = UINT64_MAX;
    trainer_script(t);
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
        weights_init(t->run.params, t->run.model->train.seed, t->run.weights,
                     session_pool(t->run.session));
    run_push(&t->run);
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

/* Reads the whole batch of a step, where that has not been done. */
static void read_batch(struct trainer *t, uint64_t step)
{
    const struct train_spec *s = &t->run.model->train;
    size_t T = (size_t)s->seq_len;
    if (t->batch_step == step) return;
    t->count = 0;
    for (size_t row = 0; row < (size_t)s->batch_size; row++) {
        uint64_t k = step * (uint64_t)s->batch_size + row;
        read_window(t, k);
        dataset_targets(t->window, T, t->inputs + row * T, t->targets + row * T);
        for (size_t i = 0; i < T; i++) t->count += t->targets[row * T + i] >= 0;
    }
    t->batch_step = step;
}

static void set(struct trainer *t, size_t run, const char *name, const void *from, size_t bytes)
{
    void *to = script_input(t->script, run, name);
    if (!to) BUG("the step has no input %s", name);
    memcpy(to, from, bytes);
}

/* The whole batch to the inputs of the step's micro-batches. */
static void bind_batch(struct trainer *t)
{
    size_t n = (size_t)(t->rows * t->run.model->train.seq_len);
    const float count = t->count > 0 ? (float)t->count : 1;
    for (int64_t i = 0; i < t->micro; i++) {
        set(t, t->micro_run[i], "tokens", t->inputs + (size_t)i * n, n * sizeof *t->inputs);
        set(t, t->micro_run[i], "targets", t->targets + (size_t)i * n, n * sizeof *t->targets);
        set(t, t->micro_run[i], "count", &count, sizeof count);
    }
}

static void set_hyper(struct trainer *t, double lr)
{
    const struct train_spec *s = &t->run.model->train;
    double updates = (double)(t->step - t->skipped + 1);
    const float hyper[4] = {(float)lr, (float)-expm1(updates * log(s->beta1)),
                            (float)-expm1(updates * log(s->beta2)), 0};
    set(t, t->apply_run, "hyper", hyper, sizeof hyper);
}

static const char *find_culprit(struct trainer *t)
{
    const double *sq = (const double *)(const void *)value(t->apply, "sumsq");
    size_t k = 0;
    for (size_t i = 0; i < t->run.params->n; i++)
        if (t->run.params->p[i].kind != PARAM_state && !isfinite(sq[k++]))
            return t->run.params->p[i].name;
    return "loss";
}

static float largest_logit(const struct trainer *t)
{
    float most = -INFINITY;
    for (size_t k = 0; k < t->tops.n; k++)
        for (size_t h = 0; h < t->tops.p[k].n; h++)
            most = t->tops.p[k].p[h] > most ? t->tops.p[k].p[h] : most;
    return most;
}

struct step_result trainer_step(struct trainer *t)
{
    struct cli *c = t->run.cli;
    struct step_result r = {.lr = train_lr(&t->run.model->train, t->step)};
    double begin = now();
    read_batch(t, t->step);
    bind_batch(t);
    set_hyper(t, r.lr);
    cli_check(c, script_launch(t->script, &c->err));
    if (t->step + 1 < (uint64_t)t->run.model->train.steps) read_batch(t, t->step + 1);
    cli_check(c, script_wait(t->script, &c->err));
    const float *ctl = value(t->apply, "ctl");
    r.loss = *value(t->train, "loss"), r.grad_norm = ctl[0], r.finite = ctl[2] != 0;
    r.logit_max = largest_logit(t);
    r.seconds = now() - begin;
    t->bad_in_row = r.finite ? 0 : t->bad_in_row + 1;
    if (!r.finite) t->skipped++, r.culprit = find_culprit(t);
    t->step++;
    return r;
}

/* ---- evaluation ---- */

/* Fills a plan's inputs from validation windows first ..; rows past the last count for nothing.
 * Returns how many targets count. */
static double bind_validation(struct trainer *t, const struct plan *p, uint64_t first,
                              uint64_t windows)
{
    struct cli *c = t->run.cli;
    size_t T = (size_t)t->run.model->train.seq_len;
    int32_t *in = find(p, "tokens")->p, *targets = find(p, "targets")->p;
    double count = 0;
    for (size_t row = 0; row < (size_t)t->rows; row++) {
        bool there = first + row < windows;
        if (there) cli_check(c, dataset_val(t->data, first + row, t->window, &c->err));
        dataset_targets(t->window, T, in + row * T, targets + row * T);
        for (size_t i = 0; i < T; i++) {
            if (!there) targets[row * T + i] = -1;
            count += targets[row * T + i] >= 0;
        }
    }
    *value(p, "count") = count > 0 ? (float)count : 1;
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
        double count = bind_validation(t, t->loss, at, windows);
        if (count == 0) continue;
        const struct plan_value *loss = find(t->loss, "loss");
        run_now(&t->run, t->loss);
        cli_check(t->run.cli, session_pull(t->run.session, loss, &t->run.cli->err));
        sum += (double)*(const float *)loss->p * count;
        all += count;
    }
    return all > 0 ? sum / all : -1;
}

void trainer_probes(struct trainer *t, struct metrics *m)
{
    if (!t->probe) return;
    bind_validation(t, t->probe, 0, dataset_val_windows(t->data));
    double rows = (double)(t->rows * t->run.model->train.seq_len);
    run_now(&t->run, t->probe);
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
