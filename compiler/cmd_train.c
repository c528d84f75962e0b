#include "compiler/alarms.h"
#include "runtime/progress.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char help[] =
    "usage: strata train SPEC [--weights W] [--resume] [--steps N]\n\n"
    "Trains as the spec's train section says. Checkpoints and metrics.jsonl go to\n"
    "train.checkpoint.dir; --resume continues from the newest valid checkpoint there, bit for bit "
    "as\n"
    "if the run had not been interrupted. SIGINT (Ctrl-C) and SIGTERM save and leave.\n\n"
    "An alarm, on standard error and in metrics.jsonl, tells of weights that are not finite or\n"
    "were never initialised, of a first loss far from that of fresh weights, and of experts\n"
    "without a token for 100 steps. The run goes on.\n\n"
    "  strata train examples/tiny-moe/spec.yaml\n"
    "  strata train examples/tiny-moe/spec.yaml --resume\n"
    "  strata train examples/tiny-moe/spec.yaml --set model.residual.blocks=1 --set "
    "train.checkpoint.dir=out/b1\n\n"
    "  --weights W        start from these weights (safetensors, folder, step or run folder)\n"
    "  --resume           go on from the newest valid checkpoint; start at step 0 where there is "
    "none\n"
    "  --steps N          stop after step N; the schedule keeps train.steps\n"
    "  --profile          at the end, where the time went, kernel by kernel\n" RUN_DEVICE_HELP
        RUN_HELP;

static volatile sig_atomic_t stop, ready;

/* Until the first step there is nothing to save. */
static void on_signal(int sig)
{
    (void)sig;
    if (!ready) _exit(0);
    stop = 1;
}

static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    signal(SIGPIPE, SIG_IGN);
}

struct loop {
    struct trainer t;
    struct ckpt_dir *dir;    /* NULL: nothing is saved */
    struct metrics *metrics; /* likewise */
    struct progress bar;
    uint64_t saved; /* step of the last checkpoint */
    bool any_saved, fresh;
    const char *alarm; /* about the weights the run begins with; NULL where they are fine */
};

static void machine(struct loop *l, enum rt_status st)
{
    if (st == RT_ok) return;
    progress_end(&l->bar);
    cli_check(l->t.run.cli, st);
}

static void save(struct loop *l)
{
    struct rt_error *err = &l->t.run.cli->err;
    if (!l->dir || (l->any_saved && l->saved == l->t.step)) return;
    machine(l, metrics_sync(l->metrics, err));
    machine(l, trainer_save(&l->t, l->dir, err));
    l->saved = l->t.step;
    l->any_saved = true;
}

/* What this step makes worth a sentence, or two. */
static const char *alarm_of(struct loop *l, const struct step_result *r, struct balance_state *b)
{
    struct trainer *t = &l->t;
    struct arena *a = t->run.cli->arena;
    const char *alarm = l->alarm, *dead = NULL;
    if (r->finite) *b = alarm_loads(a, t->loads.p, t->idle, t->loads.n, &dead);
    l->alarm = NULL;
    if (!alarm && l->fresh && t->step == 1)
        alarm = alarm_first_loss(a, t->run.model, (double)r->loss);
    if (dead) alarm = alarm ? str_fmt(a, "%s; %s", alarm, dead) : dead;
    if (alarm)
        progress_message(&l->bar, "step %llu: alarm: %s", (unsigned long long)t->step - 1, alarm);
    return alarm;
}

static void log_step(struct loop *l, const struct step_result *r)
{
    struct balance_state b = {0, 0};
    const char *alarm = alarm_of(l, r, &b);
    const struct train_spec *s = &l->t.run.model->train;
    double rate = (double)(s->batch_size * s->seq_len) / r->seconds;
    progress_step(&l->bar, l->t.step, (double)r->loss, rate);
    if (!l->metrics) return;
    struct metrics *m = l->metrics;
    metrics_int(m, "step", (int64_t)l->t.step - 1);
    metrics_float(m, "loss", r->loss);
    metrics_double(m, "lr", r->lr);
    metrics_float(m, "grad_norm", r->grad_norm);
    metrics_double(m, "tokens_per_second", rate);
    if (r->finite && l->t.loads.n) {
        metrics_int(m, "experts_idle", b.idle);
        metrics_double(m, "load_max", b.max_load);
    }
    if (r->finite && l->t.tops.n) metrics_float(m, "logit_max", r->logit_max);
    if (alarm) metrics_text(m, "alarm", alarm);
    if (!r->finite) {
        metrics_text(m, "skipped", r->culprit);
        metrics_int(m, "skipped_steps", (int64_t)l->t.skipped);
    }
    machine(l, metrics_end(m, &l->t.run.cli->err));
}

static void evaluate(struct loop *l)
{
    double loss = trainer_validate(&l->t);
    if (loss < 0) return;
    progress_message(&l->bar, "step %llu: validation loss %.6f", (unsigned long long)l->t.step,
                     loss);
    if (!l->metrics) return;
    metrics_int(l->metrics, "step", (int64_t)l->t.step - 1);
    metrics_double(l->metrics, "val_loss", loss);
    trainer_probes(&l->t, l->metrics);
    machine(l, metrics_end(l->metrics, &l->t.run.cli->err));
}

static void not_finite(struct loop *l, const struct step_result *r)
{
    progress_message(&l->bar, "step %llu: skipped: %s is not finite",
                     (unsigned long long)l->t.step - 1, r->culprit);
    if (l->t.bad_in_row < TRAIN_MAX_BAD) return;
    progress_end(&l->bar);
    cli_fail(RT_machine,
             "%d steps in a row were not finite (last: %s); the last checkpoint stays as it was\n"
             "hint: Lower train.optimizer.lr, or set train.grad_clip.",
             TRAIN_MAX_BAD, r->culprit);
}

/* A run too short for not_finite, of which no step changed the weights. */
static void never_finite(struct loop *l)
{
    if (stop || l->t.step == 0 || l->t.skipped < l->t.step) return;
    progress_end(&l->bar);
    cli_fail(RT_machine,
             "none of %llu steps was finite\n"
             "hint: An alarm at step 0 names weights that were not finite to begin with.",
             (unsigned long long)l->t.step);
}

static void run_steps(struct loop *l, uint64_t end)
{
    const struct train_spec *s = &l->t.run.model->train;
    while (l->t.step < end && !stop) {
        struct step_result r = trainer_step(&l->t);
        log_step(l, &r);
        if (!r.finite) not_finite(l, &r);
        uint64_t n = l->t.step;
        if (s->eval_every && (n % (uint64_t)s->eval_every == 0 || n == (uint64_t)s->steps))
            evaluate(l);
        if (s->checkpoint_every && n % (uint64_t)s->checkpoint_every == 0) save(l);
    }
}

/* Locks the folder, and decides where to begin. */
static void begin(struct loop *l, bool resume, const char *weights)
{
    struct cli *c = l->t.run.cli;
    const char *dir = l->t.run.model->train.checkpoint_dir;
    bool resumed = false;
    if (dir) {
        cli_check(c, ckpt_open(dir, &l->dir, &c->err));
        if (!resume && ckpt_any(dir))
            cli_fail(RT_user,
                     "%s holds checkpoints already\nhint: --resume goes on from them; --set "
                     "train.checkpoint.dir=OTHER starts anew elsewhere.",
                     dir);
        if (resume) resumed = trainer_resume(&l->t, dir);
    } else if (resume) {
        cli_fail(RT_user, "--resume needs train.checkpoint.dir in the spec");
    }
    if (!resumed) trainer_start(&l->t, weights);
    l->fresh = !resumed && !weights;
    l->alarm = alarm_weights(c->arena, l->t.run.params, l->t.run.weights);
    if (resumed && weights)
        fprintf(stderr,
                "strata: note: --weights %s is not used: the run goes on from its checkpoint\n",
                weights);
    l->any_saved = resumed;
    l->saved = l->t.step;
    if (dir)
        cli_check(c, metrics_open(str_fmt(c->arena, "%s/metrics.jsonl", dir), l->t.step,
                                  &l->metrics, &c->err));
    if (resumed) fprintf(stderr, "resuming %s at step %llu\n", dir, (unsigned long long)l->t.step);
}

static void profile(struct loop *l)
{
    struct sb s = {0};
    exec_tally_print(&plan_lowered(l->t.train)->plan, plan_tally(l->t.train), &s);
    exec_tally_print(&plan_lowered(l->t.apply)->plan, plan_tally(l->t.apply), &s);
    if (s.n) fputs(s.p, stderr);
    sb_free(&s);
}

int cmd_train(int argc, char **argv)
{
    static struct loop loop;
    struct loop *l = &loop;
    struct cli c = {0};
    struct run_options o = {0};
    const char *weights = NULL;
    bool resume = false, prof = false;
    int64_t steps = INT64_MAX;
    cli_parse(&c, argc, argv, help, 1,
              CLI_OPTIONS({"weights", CLI_text, &weights}, {"resume", CLI_flag, &resume},
                          {"steps", CLI_int, &steps}, {"profile", CLI_flag, &prof}, RUN_DEVICE(o),
                          RUN_OPTIONS(o)));
    if (steps < 0) cli_fail(RT_usage, "--steps must be at least 0");
    const struct model *m = cli_model(&c, c.arg.p[0]);
    if (!m->train.present) cli_fail(RT_user, "%s has no train section", c.arg.p[0]);
    uint64_t end = (uint64_t)m->train.steps;
    if ((uint64_t)steps < end) end = (uint64_t)steps;
    catch_signals();
    trainer_open(&l->t, &c, m, &o);
    begin(l, resume, weights);
    ready = 1;
    if (prof) plan_profile(l->t.train, true), plan_profile(l->t.apply, true);
    progress_start(&l->bar, STDERR_FILENO, l->t.step, end, 10);
    run_steps(l, end);
    never_finite(l);
    save(l);
    progress_end(&l->bar);
    if (prof) profile(l);
    metrics_close(l->metrics);
    ckpt_close(l->dir);
    trainer_close(&l->t);
    return 0;
}
