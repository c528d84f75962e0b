#include "runtime/app.h"
#include "runtime/dataset.h"
#include "runtime/npy.h"
#include <math.h>
#include <stdlib.h>

static const char help[] =
    "The mean loss (negative log likelihood, in nats) of token ids, each row a text of its own:\n"
    "int32 [B, T+1] in an .npy file, as strata eval reads them; negative ids are not counted.\n\n"
    "  eval tokens.npy\n\n" APP_HELP;

struct eval {
    struct lm *lm;
    int32_t *in, *target, *pages;
    double sum;
    uint64_t count;
};

static double nll(const float *logits, int64_t vocab, int32_t target)
{
    double top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < vocab; i++)
        if ((double)logits[i] > top) top = (double)logits[i];
    for (int64_t i = 0; i < vocab; i++) sum += exp((double)logits[i] - top);
    return top + log(sum) - (double)logits[target];
}

/* One row: T tokens, in the pieces that there are plans for. */
static enum rt_status row(struct eval *e, int64_t T, struct rt_error *err)
{
    static const int32_t state = 0;
    for (int64_t at = 0, n; at < T; at += n) {
        int32_t past = (int32_t)at;
        n = T - at >= APP_SCORE ? APP_SCORE : T - at >= LM_STEP ? LM_STEP : 1;
        const struct lm_call c = {1, n, e->in + at, &past, &state, e->pages};
        RT_TRY(e->lm->ops->run(e->lm, &c, err));
        const float *logits = e->lm->ops->logits(e->lm);
        for (int64_t i = 0; i < n; i++) {
            if (e->target[at + i] < 0) continue;
            e->sum += nll(logits + i * e->lm->about.vocab, e->lm->about.vocab, e->target[at + i]);
            e->count++;
        }
    }
    return RT_ok;
}

static enum rt_status rows(struct eval *e, const struct npy *n, const char *path, struct arena *a,
                           struct rt_error *err)
{
    int64_t T = n->rank == 2 ? n->shape[1] - 1 : 0, vocab = e->lm->about.vocab;
    if (n->type != NPY_i32 || n->rank != 2 || n->shape[0] < 1 || T < 1)
        return rt_fail(err, RT_user, "%s: eval needs int32 token ids [B, T+1]", path);
    if (T > e->lm->about.context)
        return rt_fail(err, RT_user, "%s: rows of %lld tokens do not fit in the context of %lld",
                       path, (long long)T, (long long)e->lm->about.context);
    int32_t *ids = NEW(a, int32_t, T + 1);
    e->in = NEW(a, int32_t, T);
    e->target = NEW(a, int32_t, T);
    e->pages = NEW(a, int32_t, e->lm->about.context / LM_PAGE);
    for (int64_t i = 0; i < e->lm->about.context / LM_PAGE; i++) e->pages[i] = (int32_t)i;
    for (int64_t b = 0; b < n->shape[0]; b++) {
        for (int64_t i = 0; i <= T; i++) {
            int64_t id = npy_int(n, (size_t)(b * (T + 1) + i));
            if (id >= vocab)
                return rt_fail(err, RT_user, "%s: id %lld is not in the vocabulary of %lld", path,
                               (long long)id, (long long)vocab);
            ids[i] = (int32_t)id;
        }
        dataset_targets(ids, (size_t)T, e->in, e->target);
        RT_TRY(row(e, T, err));
    }
    return e->count ? RT_ok : rt_fail(err, RT_user, "%s: every target is negative", path);
}

int app_eval_command(const char *program, int argc, char **argv)
{
    struct command_line c = {program, argv[0], arena_open("options"), {0}};
    struct app_options run = {.score = true};
    struct eval e = {0};
    struct npy n;
    struct rt_error err;
    options_parse(&c, argc, argv, help, 1, 1, CLI_OPTIONS(APP_OPTIONS(run)));
    struct app *p = app_self(program, &run, true);
    app_check(program, npy_open(c.arg.p[0], &n, &err), &err);
    e.lm = p->lm;
    app_check(program, rows(&e, &n, c.arg.p[0], c.arena, &err), &err);
    printf("loss %.9g\n", e.sum / (double)e.count);
    npy_close(&n);
    app_close(p);
    arena_close(c.arena);
    return 0;
}
