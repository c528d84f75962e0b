/* What the engine costs beside the model's runs: steps of B sequences over a model that does
 * nothing but leave logits, in microseconds a step. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/arena.h"
#include "runtime/engine.h"
#include "runtime/mem.h"
#include "runtime/philox.h"

enum { STEPS = 10, ROUNDS = 40, CONTEXT = 2048 };

struct idle {
    struct lm lm;
    float *logits;
};

static enum rt_status run(struct lm *m, const struct lm_call *c, struct rt_error *err)
{
    (void)m;
    (void)c;
    (void)err;
    return RT_ok;
}

static const float *logits(const struct lm *m)
{
    return ((const struct idle *)m)->logits;
}

static const struct lm_ops ops = {.run = run, .logits = logits};

static bool on_token(void *arg, const struct engine_token *t)
{
    (void)arg;
    (void)t;
    return false;
}

static void on_done(void *arg, const struct engine_done *d)
{
    (void)arg;
    (void)d;
}

static struct str text(void *arg, int32_t id)
{
    static const char *const words[] = {"{",   "\"", ":",  "x", " ", "word",
                                        " of", ",",  "12", "[", "]"};
    (void)arg;
    return str_of(words[id % 11]);
}

static double measure(struct idle *m, int64_t B, const struct engine_request *like)
{
    struct rt_error err;
    struct engine *e;
    m->lm.about.batch = B;
    m->lm.about.pages = B * CONTEXT / LM_PAGE;
    const struct engine_options o = {.max_waiting = B, .text = text};
    CHECK(engine_open(&m->lm, &o, &e, &err) == RT_ok);
    int32_t prompt[8] = {0};
    for (int64_t i = 0; i < B; i++) {
        struct engine_request r = *like;
        uint64_t id;
        prompt[0] = (int32_t)i;
        r.prompt = prompt;
        r.num_prompt = 8;
        r.max_tokens = CONTEXT - 8;
        r.sampler.seed = (uint64_t)i;
        r.token = on_token;
        r.done = on_done;
        CHECK(engine_reserve(e, 8) && engine_submit(e, &r, 8, &id, &err) == RT_ok);
    }
    struct engine_stats s;
    do { /* all decode */
        engine_step(e);
        engine_stats(e, &s);
    } while (s.first_token.count < (uint64_t)B);
    double best = INFINITY,
           end = mem_seconds() + 2; /* the best of rounds: others use the machine */
    for (int round = 0; round < ROUNDS && mem_seconds() < end; round++) {
        double begin = mem_seconds();
        for (int i = 0; i < STEPS; i++) engine_step(e);
        best = fmin(best, (mem_seconds() - begin) / STEPS);
    }
    engine_close(e);
    return 1e6 * best;
}

int main(void)
{
    static const int64_t vocabs[] = {50304, 131072}, batches[] = {1, 16, 64};
    const struct {
        const char *name;
        struct engine_request r;
    } cases[] = {
        {"greedy", {.sampler = {.top_p = 1}}},
        {"greedy, 5 logprobs", {.sampler = {.top_p = 1}, .logprobs = true, .top_logprobs = 5}},
        {"greedy, penalties", {.sampler = {.top_p = 1, .presence = 0.5}}},
        {"temperature 1", {.sampler = {.temperature = 1, .top_p = 1}}},
        {"temperature 1, top_p 0.9", {.sampler = {.temperature = 1, .top_p = 0.9}}},
        {"temperature 1, top_k 40", {.sampler = {.temperature = 1, .top_p = 1, .top_k = 40}}},
        {"temperature 1, JSON", {.sampler = {.temperature = 1, .top_p = 1}, .json = true}},
    };
    printf("microseconds of a step without the model\n%-28s", "");
    for (int v = 0; v < 2; v++)
        for (int b = 0; b < 3; b++)
            printf(" %6lldx%-4lld", (long long)vocabs[v], (long long)batches[b]);
    printf("\n");
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        printf("%-28s", cases[c].name);
        for (int v = 0; v < 2; v++)
            for (int b = 0; b < 3; b++) {
                struct idle m = {.lm.ops = &ops};
                m.lm.about = (struct lm_about){.vocab = vocabs[v], .context = CONTEXT};
                size_t n = (size_t)(vocabs[v] * batches[b]);
                m.logits = mem_alloc(n * sizeof *m.logits);
                CHECK(m.logits);
                for (size_t i = 0; i < n; i++) m.logits[i] = (float)(2.5 * rng_normal(1, 1, i));
                printf(" %11.1f", measure(&m, batches[b], &cases[c].r));
                fflush(stdout);
                mem_free(m.logits, n * sizeof *m.logits);
            }
        printf("\n");
    }
    return 0;
}
