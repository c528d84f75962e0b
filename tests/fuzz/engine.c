/* Fuzz target: bytes as a model's sizes, an engine's options, and what is done with it: requests,
 * steps, cancellations. The model is that of tests/fakelm.h, which aborts where a sequence reads a
 * page or a state that is not its own. Every request ends once, with the tokens that it gets
 * alone; nothing is held at the end. */
#include "../fakelm.c"
#include "runtime/engine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CONTEXT = 512, VOCAB = 32, ASKS = 24 };
struct bytes {
    const uint8_t *p;
    size_t n;
};
struct ask {
    struct engine_request r;
    int32_t prompt[CONTEXT], stop, token[CONTEXT];
    uint64_t id;
    int64_t n;
    int dones;
    enum engine_finish why;
};

static int64_t next(struct bytes *b, int64_t sides)
{
    if (!b->n) return 0;
    b->n--;
    return *b->p++ * sides / 256;
}

static bool on_token(void *arg, const struct engine_token *t)
{
    struct ask *a = arg;
    CHECK(!a->dones && a->n < a->r.max_tokens);
    a->token[a->n++] = t->id;
    return false;
}

static void on_done(void *arg, const struct engine_done *d)
{
    struct ask *a = arg;
    CHECK(d->completion == a->n && d->cached < d->prompt && d->why != ENGINE_failed);
    a->why = d->why;
    a->dones++;
}

static void draw_ask(struct bytes *b, struct ask *a)
{
    int64_t n = 1 + next(b, 300), text = next(b, 3), parts = next(b, 300);
    for (int64_t i = 0; i < n; i++)
        a->prompt[i] = (int32_t)((i * (i < parts ? 7 : 11) + text) % VOCAB);
    a->r = (struct engine_request){.prompt = a->prompt, .num_prompt = n};
    a->r.max_tokens = 1 + next(b, 200);
    a->r.sampler = (struct sampler){.top_p = 1, .seed = (uint64_t)text};
    a->r.sampler.temperature = next(b, 2) ? 0.8 : 0;
    a->r.sampler.frequency = next(b, 4) ? 0 : 0.5;
    a->r.priority = next(b, 3);
    a->r.salt = (uint64_t)next(b, 5) == 4;
    a->stop = (int32_t)next(b, VOCAB);
    a->r.stop = &a->stop;
    a->r.num_stop = next(b, 3) == 2;
    a->r.token = on_token;
    a->r.done = on_done;
    a->r.arg = a;
    a->n = a->dones = 0;
}

static void check_alone(const struct ask *a, bool recurrent)
{
    static struct ask want;
    struct rt_error err;
    struct engine *e;
    const struct fakelm_options o = {.vocab = VOCAB,
                                     .context = CONTEXT,
                                     .pages = CONTEXT / LM_PAGE,
                                     .states = recurrent,
                                     .batch = 1};
    const struct engine_options none = {.no_prefix_cache = true};
    struct fakelm *f = fakelm_open(&o);
    CHECK(engine_open(&f->lm, &none, &e, &err) == RT_ok);
    want = *a;
    want.r.prompt = want.prompt;
    want.r.stop = &want.stop;
    want.r.arg = &want;
    want.n = want.dones = 0;
    CHECK(engine_reserve(e, 1) && engine_submit(e, &want.r, 1, &want.id, &err) == RT_ok);
    while (engine_step(e)) continue;
    CHECK(a->why == ENGINE_cancelled ? a->n <= want.n : a->n == want.n && a->why == want.why);
    CHECK(!memcmp(a->token, want.token, (size_t)a->n * sizeof *a->token));
    engine_close(e);
    fakelm_close(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct ask a[ASKS];
    struct bytes b = {data, size};
    struct fakelm_options o = {.vocab = VOCAB, .context = CONTEXT, .batch = 1 + next(&b, 8)};
    struct engine_options eo = {.max_waiting = ASKS, .step_tokens = 16 + next(&b, 300)};
    bool recurrent = next(&b, 2);
    o.pages = CONTEXT / LM_PAGE + next(&b, 24);
    if (recurrent) eo.snapshots = next(&b, 6);
    if (recurrent) o.states = o.batch + eo.snapshots;
    struct fakelm *f = fakelm_open(&o);
    struct rt_error err;
    struct engine *e;
    CHECK(engine_open(&f->lm, &eo, &e, &err) == RT_ok);
    int sent = 0;
    while (b.n) {
        int64_t what = next(&b, 8);
        if (what < 3 && sent < ASKS) {
            draw_ask(&b, &a[sent]);
            CHECK(engine_reserve(e, 9));
            CHECK(engine_submit(e, &a[sent].r, 9, &a[sent].id, &err) == RT_ok);
            sent++;
        } else if (what == 3 && sent) {
            engine_cancel(e, a[next(&b, sent)].id);
        } else {
            for (int64_t k = 1 + next(&b, 40); k > 0; k--) engine_step(e);
        }
    }
    while (engine_step(e)) continue;
    struct engine_stats s;
    engine_stats(e, &s);
    CHECK(!s.running && !s.waiting && !s.waiting_tokens && !s.pages_used);
    for (int i = 0; i < sent; i++) {
        CHECK(a[i].dones == 1);
        check_alone(&a[i], recurrent);
    }
    engine_close(e);
    fakelm_close(f);
    return 0;
}
