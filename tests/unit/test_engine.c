/* The engine over a fake model whose tokens tell of every wrong page and stale state: whatever is
 * beside a request, it gets the tokens that it gets alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/arena.h"
#include "fakelm.h"
#include "runtime/engine.h"
#include "runtime/mem.h"
#include "runtime/philox.h"

enum { VOCAB = 97, CONTEXT = 1024, STOP = 3 };

/* ---- allocations of this thread, seen at malloc itself ---- */

static _Thread_local uint64_t mallocs;
static _Thread_local int64_t fail_in; /* so many calls of aligned_alloc from now one fails */
#ifndef STRATA_SANITIZED
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void *malloc(size_t n)
{
    mallocs++;
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t size)
{
    mallocs++;
    return __libc_calloc(n, size);
}
void *realloc(void *p, size_t n)
{
    mallocs++;
    return __libc_realloc(p, n);
}
void *aligned_alloc(size_t align, size_t n)
{
    mallocs++;
    return fail_in > 0 && --fail_in == 0 ? NULL : __libc_memalign(align, n);
}
#endif

/* ---- requests and what became of them ---- */

struct ask {
    struct engine_request r;
    int32_t prompt[CONTEXT], bias_ids[2];
    struct engine_bias bias[2];
    int32_t stop[2];
    uint64_t id;
    /* what came */
    int32_t token[CONTEXT];
    float logprob[CONTEXT];
    int64_t n, end_at; /* `token` says that the answer ends after so many; 0: never */
    atomic_int dones;
    struct engine_done done;
    struct engine *cancel_in; /* cancels itself from its own call */
};

static bool on_token(void *arg, const struct engine_token *t)
{
    struct ask *a = arg;
    CHECK(!a->dones && a->n < a->r.max_tokens);
    CHECK(!!t->depth == a->r.depth);
    CHECK(t->num_top == (a->r.logprobs ? a->r.top_logprobs : 0));
    for (int i = 0; i < t->num_top; i++) {
        CHECK(t->top[i].logprob <= 0 && (!i || t->top[i].logprob <= t->top[i - 1].logprob));
        if (t->top[i].id == t->id) CHECK(t->top[i].logprob == t->logprob);
    }
    /* the fake's weights tell which position was read */
    if (t->depth) CHECK(t->depth[0] == (float)(a->r.num_prompt + a->n - 1));
    if (t->depth) CHECK(t->depth[2] == t->depth[0] && t->depth[4] == t->depth[0] + 0.25f);
    a->logprob[a->n] = t->logprob;
    a->token[a->n++] = t->id;
    if (a->cancel_in && a->n == 2) engine_cancel(a->cancel_in, a->id);
    return a->end_at && a->n == a->end_at;
}

static void on_done(void *arg, const struct engine_done *d)
{
    struct ask *a = arg;
    a->done = *d;
    CHECK(d->prompt == a->r.num_prompt && d->completion == a->n && d->cached < d->prompt);
    CHECK(d->queued >= 0 && d->prefill >= 0 && d->decode >= 0);
    a->dones++;
}

static void wire(struct ask *a)
{
    a->r.prompt = a->prompt;
    a->r.bias = a->bias;
    a->r.stop = a->stop;
    a->r.token = on_token;
    a->r.done = on_done;
    a->r.arg = a;
    a->n = 0;
    a->dones = 0;
}

/* A greedy request whose prompt is a function of `text` and its length. */
static void plain(struct ask *a, uint64_t text, int64_t prompt, int64_t max)
{
    memset(a, 0, sizeof *a);
    for (int64_t i = 0; i < prompt; i++)
        a->prompt[i] = 4 + (int32_t)(rng_bits(text, 1, (uint64_t)i) % (VOCAB - 5));
    a->r.num_prompt = prompt;
    a->r.max_tokens = max;
    a->r.sampler.top_p = 1;
    wire(a);
}

static struct engine *open_engine(struct fakelm *f, struct engine_options o)
{
    struct rt_error err = {{0}};
    struct engine *e;
    if (engine_open(&f->lm, &o, &e, &err)) fail_msg("%s", err.text);
    return e;
}

static void submit(struct engine *e, struct ask *a)
{
    struct rt_error err = {{0}};
    assert_true(engine_reserve(e, 7));
    if (engine_submit(e, &a->r, 7, &a->id, &err)) fail_msg("%s", err.text);
}

/* A step, which allocates only to set a sequence aside. */
static bool step(struct engine *e)
{
    struct engine_stats before, after;
    engine_stats(e, &before);
    uint64_t had = mem_allocations(), counted = mallocs;
    bool any = engine_step(e);
    had = mem_allocations() - had;
    counted = mallocs - counted;
    engine_stats(e, &after);
    assert_true(had <= after.preemptions - before.preemptions);
    assert_true(counted <= had);
    return any;
}

static void run_all(struct engine *e)
{
    for (int i = 0; step(e); i++) assert_true(i < 100000);
}

/* Nothing is held any more. */
static void check_idle(struct engine *e)
{
    struct engine_stats s;
    assert_false(step(e));
    engine_stats(e, &s);
    assert_int_equal(s.running, 0);
    assert_int_equal(s.waiting, 0);
    assert_int_equal(s.waiting_tokens, 0);
    assert_int_equal(s.pages_used, 0);
}

static struct fakelm *fake(int64_t pages, int64_t states, int64_t batch)
{
    const struct fakelm_options o = {.vocab = VOCAB,
                                     .context = CONTEXT,
                                     .pages = pages,
                                     .states = states,
                                     .batch = batch,
                                     .sites = 2};
    return fakelm_open(&o);
}

/* The answer of the request alone, in a fresh model without a prefix cache. */
static void alone(const struct ask *a, bool recurrent, struct ask *out)
{
    struct fakelm *f = fake(CONTEXT / LM_PAGE, recurrent, 1);
    struct engine *e = open_engine(f, (struct engine_options){.no_prefix_cache = true});
    *out = *a;
    out->cancel_in = NULL;
    wire(out);
    submit(e, out);
    run_all(e);
    assert_int_equal(out->dones, 1);
    engine_close(e);
    fakelm_close(f);
}

/* What came is the same, or where it was cancelled the beginning of it. */
static void check_same(const struct ask *got, const struct ask *want)
{
    assert_int_equal(got->dones, 1);
    if (got->done.why == ENGINE_cancelled) {
        assert_true(got->n <= want->n);
    } else {
        assert_int_equal(got->done.why, want->done.why);
        assert_int_equal(got->n, want->n);
    }
    assert_memory_equal(got->token, want->token, (size_t)got->n * sizeof *got->token);
    assert_memory_equal(got->logprob, want->logprob, (size_t)got->n * sizeof *got->logprob);
}

/* ---- random workloads ---- */

struct dice {
    uint64_t seed, n;
};
static int64_t roll(struct dice *d, int64_t sides)
{
    return (int64_t)(rng_bits(d->seed, 2, d->n++) % (uint64_t)sides);
}

static void random_sampler(struct dice *d, struct ask *a)
{
    struct sampler *s = &a->r.sampler;
    *s = (struct sampler){.top_p = 1, .seed = (uint64_t)roll(d, 1000)};
    if (roll(d, 2)) return;
    s->temperature = 0.3 + 0.1 * (double)roll(d, 12);
    if (!roll(d, 3)) s->top_p = 0.8;
    if (!roll(d, 3)) s->top_k = 1 + roll(d, 20);
    if (!roll(d, 3)) s->min_p = 0.05;
    if (!roll(d, 3)) s->repetition = 1.3;
    if (!roll(d, 3)) s->frequency = 0.5;
    if (!roll(d, 3)) s->presence = -0.7;
}

static void random_ask(struct dice *d, struct ask *a, int64_t most)
{
    int64_t prompt = 1 + roll(d, roll(d, 4) ? 200 : most - 1);
    int64_t max = 1 + roll(d, roll(d, 3) ? 60 : most);
    if (prompt + max > most) max = most - prompt;
    plain(a, (uint64_t)roll(d, 3), prompt, max > 0 ? max : 1); /* few texts: prefixes are shared */
    if (roll(d, 2)) /* and part from each other somewhere */
        for (int64_t i = roll(d, prompt); i < prompt; i++) a->prompt[i] = 4 + (int32_t)roll(d, 90);
    a->r.priority = roll(d, 4) ? 0 : roll(d, 3) - 1;
    a->r.salt = roll(d, 5) ? 0 : 9;
    a->r.logprobs = !roll(d, 4);
    a->r.top_logprobs = a->r.logprobs ? (int)roll(d, 5) : 0;
    a->r.depth = !roll(d, 6);
    random_sampler(d, a);
    if (!roll(d, 3)) {
        a->stop[0] = (int32_t)roll(d, VOCAB);
        a->r.num_stop = 1;
        a->r.min_tokens = roll(d, 3) ? 0 : roll(d, 10);
    }
    if (!roll(d, 5)) {
        a->bias[0] = (struct engine_bias){(int32_t)roll(d, VOCAB), 3};
        a->r.num_bias = 1;
    }
    if (!roll(d, 6)) a->end_at = 1 + roll(d, 20);
}

/* Pages and states of all kinds of scarcity. */
static void random_options(struct dice *d, struct fakelm_options *f, struct engine_options *o)
{
    int64_t batch = 1 + roll(d, 16), snapshots = roll(d, 3) ? roll(d, 9) : 0;
    bool recurrent = roll(d, 2);
    *f = (struct fakelm_options){.vocab = VOCAB, .context = CONTEXT, .batch = batch, .sites = 2};
    f->pages = roll(d, 2) ? 16 + roll(d, 8) : 16 + roll(d, 200);
    f->states = recurrent ? batch + snapshots : 0;
    *o = (struct engine_options){.max_waiting = 1000, .snapshots = recurrent ? snapshots : 0};
    o->step_tokens = roll(d, 3) ? 0 : 16 + roll(d, 500);
    o->no_prefix_cache = !roll(d, 5);
}

static void workload(uint64_t seed, int asks, uint64_t *preempted, uint64_t *cached)
{
    struct dice d = {seed, 0};
    struct fakelm_options fo;
    struct engine_options o;
    random_options(&d, &fo, &o);
    struct fakelm *f = fakelm_open(&fo);
    struct engine *e = open_engine(f, o);
    struct ask *a = test_malloc((size_t)asks * sizeof *a), want;
    for (int i = 0; i < asks; i++) {
        random_ask(&d, &a[i], i % 7 ? 500 : CONTEXT);
        if (!roll(&d, 12)) a[i].cancel_in = e;
    }
    int sent = 0;
    for (int steps = 0; sent < asks || step(e); steps++) {
        assert_true(steps < 1000000);
        for (int k = roll(&d, 8) ? 0 : 1 + (int)roll(&d, 12); k > 0 && sent < asks; k--)
            submit(e, &a[sent++]);
        step(e);
        if (sent && !roll(&d, 9)) engine_cancel(e, a[roll(&d, sent)].id);
    }
    check_idle(e);
    struct engine_stats s;
    engine_stats(e, &s);
    *preempted += s.preemptions;
    *cached += s.cached_tokens;
    uint64_t ended = 0;
    for (int i = 0; i < ENGINE_FINISHES; i++) ended += s.requests[i];
    assert_int_equal(ended, asks);
    assert_int_equal(s.requests[ENGINE_failed], 0);
    assert_int_equal(s.whole.count, asks);
    for (int i = 0; i < asks; i++) {
        alone(&a[i], fo.states > 0, &want);
        check_same(&a[i], &want);
    }
    engine_close(e);
    fakelm_close(f);
    test_free(a);
}

static void random_workloads(void **state)
{
    (void)state;
    uint64_t preempted = 0, cached = 0, all = getenv("STRATA_TEST_ALL") ? 1000 : 60;
    for (uint64_t seed = 0; seed < all; seed++) workload(seed, 60, &preempted, &cached);
    print_message("%llu workloads of 60: %llu preemptions, %llu tokens found again\n",
                  (unsigned long long)all, (unsigned long long)preempted,
                  (unsigned long long)cached);
    assert_true(preempted > 50 && cached > 1000);
}

/* ---- one thing at a time ---- */

static void statistics_of(struct engine *e, struct engine_stats *s)
{
    engine_step(e);
    engine_stats(e, s);
}

static void prefixes(void **state)
{
    (void)state;
    struct engine_stats s;
    for (int recurrent = 0; recurrent < 2; recurrent++) {
        struct fakelm *f = fake(100, recurrent ? 12 : 0, 8);
        struct engine *e = open_engine(f, (struct engine_options){.snapshots = recurrent ? 4 : 0});
        struct ask a[4], more, salted, want;
        /* Four of one prompt: one reads it, the others wait for its pages. */
        for (int i = 0; i < 4; i++) {
            plain(&a[i], 1, 300, 30);
            submit(e, &a[i]);
        }
        run_all(e);
        alone(&a[0], recurrent, &want);
        for (int i = 0; i < 4; i++) check_same(&a[i], &want);
        for (int i = 1; i < 4; i++) assert_int_equal(a[i].done.cached, 256);
        engine_stats(e, &s);
        assert_int_equal(s.prompt_tokens, 4 * 300);
        assert_int_equal(f->prefilled + f->decoded - 4 * 29, 300 + 3 * 44); /* computed */
        assert_int_equal(s.prefix_queries, 1200);
        assert_int_equal(s.prefix_hits, 3 * 256);
        /* A longer one goes on from there; another salt finds nothing. */
        plain(&more, 1, 500, 5);
        submit(e, &more);
        plain(&salted, 1, 500, 5);
        salted.r.salt = 1;
        submit(e, &salted);
        run_all(e);
        assert_int_equal(more.done.cached, 256);
        assert_int_equal(salted.done.cached, 0);
        /* The answer too, where tokens leave the same bits however they were read. */
        plain(&more, 1, 300, 30);
        memcpy(more.prompt + 300, want.token, 30 * sizeof *want.token);
        more.r.num_prompt = 330;
        submit(e, &more);
        run_all(e);
        assert_int_equal(more.done.cached, recurrent ? 256 : 320);
        alone(&more, recurrent, &want);
        check_same(&more, &want);
        check_idle(e);
        engine_close(e);
        fakelm_close(f);
    }
}

/* Where a text parts from one that was read, inside what one snapshot covers, the next one to part
 * there finds it. */
static void branches(void **state)
{
    (void)state;
    struct fakelm *f = fake(100, 12, 4);
    struct engine *e = open_engine(f, (struct engine_options){.snapshots = 8});
    struct ask a, want;
    static const int64_t cached[] = {0, 0, 192, 192};
    for (int i = 0; i < 4; i++) {
        plain(&a, 1, 450 + i, 4);
        for (int k = 192; k < 450; k++) a.prompt[k] = 4 + (i * 31 + k) % 90;
        submit(e, &a);
        run_all(e);
        assert_int_equal(a.done.cached, cached[i]);
        alone(&a, true, &want);
        check_same(&a, &want);
    }
    engine_close(e);
    fakelm_close(f);
}

/* All of a prompt can be there: its last token is computed all the same. And a prompt that ends in
 * its first chunk leaves a snapshot at its last page. */
static void whole_pages(void **state)
{
    (void)state;
    static const int64_t length[] = {64, 65, 128, 200, 256, 320, 321};
    for (int recurrent = 0; recurrent < 2; recurrent++)
        for (size_t k = 0; k < sizeof length / sizeof *length; k++) {
            struct fakelm *f = fake(100, recurrent ? 12 : 0, 4);
            struct engine *e =
                open_engine(f, (struct engine_options){.snapshots = recurrent ? 8 : 0});
            struct ask a, want;
            for (int i = 0; i < 3; i++) {
                plain(&a, 1, length[k], 40);
                submit(e, &a);
                run_all(e);
                alone(&a, recurrent, &want);
                check_same(&a, &want);
                assert_int_equal(a.done.cached, i ? (length[k] - 1) / LM_PAGE * LM_PAGE : 0);
            }
            engine_close(e);
            fakelm_close(f);
        }
}

/* The snapshot that was of use last stays. */
static void used_snapshots(void **state)
{
    (void)state;
    struct fakelm *f = fake(100, 6, 4);
    struct engine *e = open_engine(f, (struct engine_options){.snapshots = 2});
    static const int text[] = {1, 2, 1, 3, 1, 2}, found[] = {0, 0, 64, 0, 64, 0};
    for (int i = 0; i < 6; i++) {
        struct ask a;
        plain(&a, (uint64_t)text[i], 100, 2);
        submit(e, &a);
        run_all(e);
        assert_int_equal(a.done.cached, found[i]);
    }
    engine_close(e);
    fakelm_close(f);
}

static void priorities(void **state)
{
    (void)state;
    struct fakelm *f = fake(16, 0, 1);
    struct engine *e = open_engine(f, (struct engine_options){0});
    struct ask a[4];
    static const int64_t priority[] = {5, 1, 1, -3};
    for (int i = 0; i < 4; i++) {
        plain(&a[i], (uint64_t)i, 40, 3);
        a[i].r.priority = priority[i];
        submit(e, &a[i]);
    }
    static const int order[] = {3, 1, 2, 0};
    for (int k = 0; k < 4; k++) {
        while (!a[order[k]].dones) assert_true(step(e));
        for (int l = k + 1; l < 4; l++) assert_int_equal(a[order[l]].dones, 0);
    }
    engine_close(e);
    fakelm_close(f);
}

/* Two that do not fit together: the newer is set aside, before others, and goes on. */
static void preemption(void **state)
{
    (void)state;
    for (int recurrent = 0; recurrent < 2; recurrent++) {
        struct fakelm *f = fake(10, recurrent ? 3 : 0, 3);
        struct engine *e = open_engine(f, (struct engine_options){.no_prefix_cache = true});
        struct ask a[3], want;
        for (int i = 0; i < 3; i++) plain(&a[i], (uint64_t)i, 190, 300);
        submit(e, &a[0]);
        submit(e, &a[1]);
        struct engine_stats s = {0};
        while (!s.preemptions) statistics_of(e, &s);
        assert_int_equal(s.running, 1);
        assert_int_equal(s.waiting, 0); /* it does not count against limits */
        int64_t had = a[1].n;
        assert_true(had > 1);
        submit(e, &a[2]);
        while (!a[0].dones) assert_true(step(e));
        assert_int_equal(a[1].n, had);
        assert_int_equal(a[2].n, 0);
        run_all(e);
        for (int i = 0; i < 3; i++) {
            alone(&a[i], recurrent, &want);
            check_same(&a[i], &want);
        }
        engine_close(e);
        fakelm_close(f);
    }
}

static void cancelling(void **state)
{
    (void)state;
    struct fakelm *f = fake(10, 3, 3);
    struct engine *e = open_engine(f, (struct engine_options){.max_sequences = 2});
    struct ask a[4];
    for (int i = 0; i < 4; i++) {
        plain(&a[i], (uint64_t)i, 190, 300);
        submit(e, &a[i]);
    }
    struct engine_stats s = {0};
    while (!s.preemptions) statistics_of(e, &s);
    /* the preempted, one that waits, one that runs; twice, and unknown ones */
    static const int which[] = {1, 3, 0};
    for (int i = 0; i < 3; i++) {
        engine_cancel(e, a[which[i]].id);
        engine_cancel(e, a[which[i]].id);
        engine_cancel(e, 12345);
        assert_true(step(e));
        assert_int_equal(a[which[i]].dones, 1);
        assert_int_equal(a[which[i]].done.why, ENGINE_cancelled);
    }
    run_all(e);
    assert_int_equal(a[2].done.why, ENGINE_length);
    check_idle(e);
    /* in a prompt of many steps */
    plain(&a[0], 8, 600, 3);
    submit(e, &a[0]);
    step(e);
    engine_cancel(e, a[0].id);
    step(e);
    assert_int_equal(a[0].done.why, ENGINE_cancelled);
    check_idle(e);
    engine_close(e);
    fakelm_close(f);
}

static void ends(void **state)
{
    (void)state;
    struct fakelm *f = fake(40, 0, 4);
    struct engine *e = open_engine(f, (struct engine_options){0});
    struct ask a, want;
    plain(&a, 1, 50, 20);
    alone(&a, false, &want);
    int32_t third = want.token[2];
    assert_true(third != want.token[0] && third != want.token[1]);
    a.stop[0] = third;
    a.r.num_stop = 1;
    submit(e, &a);
    run_all(e);
    assert_int_equal(a.done.why, ENGINE_stop);
    assert_int_equal(a.n, 2);
    a.r.min_tokens = 5;
    wire(&a);
    submit(e, &a);
    run_all(e);
    assert_true(a.n >= 5 && a.token[2] != third);
    plain(&a, 1, 50, 20);
    a.end_at = 4;
    submit(e, &a);
    run_all(e);
    assert_int_equal(a.done.why, ENGINE_text);
    assert_int_equal(a.n, 4);
    plain(&a, 1, 50, 60); /* a penalty that lets no token come twice */
    a.r.sampler.presence = 100;
    submit(e, &a);
    run_all(e);
    assert_int_equal(a.n, 60);
    for (int i = 0; i < 60; i++)
        for (int k = 0; k < i; k++) assert_int_not_equal(a.token[i], a.token[k]);
    plain(&a, 1, CONTEXT - 1, 1); /* all of the context */
    submit(e, &a);
    run_all(e);
    assert_int_equal(a.done.why, ENGINE_length);
    engine_close(e);
    fakelm_close(f);
}

/* What is broken fails alone. */
static void failures(void **state)
{
    (void)state;
    struct fakelm_options o = {
        .vocab = VOCAB, .context = CONTEXT, .pages = 40, .batch = 4, .poison = VOCAB - 1};
    struct fakelm *f = fakelm_open(&o);
    struct engine *e = open_engine(f, (struct engine_options){0});
    struct ask a[3], want;
    for (int i = 0; i < 3; i++) plain(&a[i], (uint64_t)i, 100, 20);
    a[1].prompt[70] = VOCAB - 1;
    for (int i = 0; i < 3; i++) submit(e, &a[i]);
    run_all(e);
    assert_int_equal(a[1].done.why, ENGINE_failed);
    assert_string_equal(a[1].done.error.text,
                        "the logit of token 0 at position 100 is not a number");
    for (int i = 0; i < 3; i += 2) {
        alone(&a[i], false, &want);
        check_same(&a[i], &want);
    }
    check_idle(e);
    engine_close(e);
    fakelm_close(f);
}

/* The n-th call of the device fails, for all n: requests fail with its message or are whole, and
 * nothing is lost. */
static void device_failures(void **state)
{
    (void)state;
    bool copies = false;
    for (int64_t n = 1, clean = 0; clean < 2; n++) {
        struct fakelm_options o = {.vocab = VOCAB, .context = CONTEXT, .pages = 16, .batch = 4};
        o.states = 7;
        *(copies ? &o.fail_copy_at : &o.fail_at) = n;
        struct fakelm *f = fakelm_open(&o);
        struct engine *e = open_engine(f, (struct engine_options){.snapshots = 3});
        struct ask a[5], want;
        for (int i = 0; i < 5; i++) {
            plain(&a[i], (uint64_t)i / 2, 190 + i, 150);
            submit(e, &a[i]);
        }
        run_all(e);
        check_idle(e);
        int failed = 0;
        for (int i = 0; i < 5; i++) {
            assert_int_equal(a[i].dones, 1);
            if (a[i].done.why == ENGINE_failed) {
                failed++;
                assert_non_null(strstr(a[i].done.error.text, "the device "));
                continue;
            }
            alone(&a[i], true, &want);
            check_same(&a[i], &want);
        }
        bool reached = copies ? f->copies >= (uint64_t)n : f->calls >= (uint64_t)n;
        assert_int_equal(failed > 0, reached);
        engine_close(e);
        fakelm_close(f);
        if (!reached) {
            clean++;
            copies = true;
            n = 0;
        } else if (!copies && n > 8) {
            n += 40;
        }
    }
}

static struct str text_of(void *arg, int32_t id)
{
    static const char *const words[] = {"{\"", "\":",  "\"}", "true",  "null", "[1",  "]}",
                                        "12",  ", \"", "}\n", "\\u00", "\xc3", "\xa9"};
    static char bytes[128];
    (void)arg;
    if (id < 3) return (struct str){NULL, 0};
    if (id < 16) return str_of(words[id - 3]);
    bytes[id] = (char)(id + 16); /* ' ' to 'p' */
    return (struct str){bytes + id, 1};
}

/* Memory fails at the n-th place, for all n: of opening, of a request, of setting one aside. */
static void no_memory(void **state)
{
    (void)state;
#ifdef STRATA_SANITIZED
    skip();
#endif
    struct rt_error err = {{0}};
    struct fakelm *f = fake(10, 0, 3);
    struct engine *e = NULL;
    const struct engine_options o = {.text = text_of, .no_prefix_cache = true};
    int n = 0;
    do {
        fail_in = ++n;
    } while (engine_open(&f->lm, &o, &e, &err) == RT_machine);
    assert_true(n > 15);
    struct ask a[2], want;
    for (int i = 0; i < 2; i++) plain(&a[i], (uint64_t)i, 190, 300);
    fail_in = 1;
    assert_true(engine_reserve(e, 1));
    assert_int_equal(engine_submit(e, &a[0].r, 1, &a[0].id, &err), RT_machine);
    engine_release(e, 1);
    for (int i = 0; i < 2; i++) submit(e, &a[i]);
    struct engine_stats s = {0};
    while (!s.preemptions) {
        fail_in = 1;
        statistics_of(e, &s);
    }
    fail_in = 0;
    assert_int_equal(a[1].done.why, ENGINE_failed);
    assert_non_null(strstr(a[1].done.error.text, "no memory to set a sequence of "));
    run_all(e);
    alone(&a[0], false, &want);
    check_same(&a[0], &want);
    check_idle(e);
    engine_close(e);
    fakelm_close(f);
}

/* Sequences that decode get a token every step, whatever prompts are read beside them. */
static void fairness(void **state)
{
    (void)state;
    struct fakelm *f = fake(100, 0, 4);
    struct engine *e = open_engine(f, (struct engine_options){.step_tokens = 128});
    struct ask a, b, c;
    plain(&a, 1, 20, 60);
    plain(&b, 2, 1000, 3);
    plain(&c, 3, 1000, 3);
    submit(e, &a);
    step(e);
    submit(e, &b);
    submit(e, &c);
    int64_t before = a.n;
    for (; !a.dones; before++) {
        assert_int_equal(a.n, before);
        assert_true(step(e));
    }
    assert_true(f->most_between <= 128);
    run_all(e);
    engine_close(e);
    fakelm_close(f);
}

/* A short prompt does not wait for one of many steps that came before it. */
static void short_prompts(void **state)
{
    (void)state;
    struct fakelm *f = fake(100, 0, 4);
    struct engine *e = open_engine(f, (struct engine_options){.step_tokens = 128});
    struct ask a, b, c, want;
    plain(&a, 1, 1000, 3);
    plain(&b, 2, 300, 3);
    plain(&c, 3, 100, 3);
    submit(e, &a);
    step(e);
    submit(e, &b);
    submit(e, &c);
    for (int i = 0; i < 2; i++) step(e);
    assert_true(c.n == 1 && b.n == 0 && a.n == 0);
    run_all(e);
    assert_int_equal(a.n, 3);
    alone(&b, false, &want);
    check_same(&b, &want);
    engine_close(e);
    fakelm_close(f);
}

/* ---- limits and mistakes ---- */

static void reservations(void **state)
{
    (void)state;
    struct fakelm *f = fake(40, 0, 1);
    struct engine *e =
        open_engine(f, (struct engine_options){.max_waiting = 3, .max_waiting_tokens = 100});
    struct engine_stats s;
    assert_true(engine_reserve(e, 500)); /* in an empty queue anything */
    assert_false(engine_reserve(e, 1));
    engine_release(e, 500);
    assert_true(engine_reserve(e, 40));
    assert_true(engine_reserve(e, 60));
    assert_false(engine_reserve(e, 1));
    engine_release(e, 60);
    assert_true(engine_reserve(e, 1));
    assert_true(engine_reserve(e, 1));
    assert_false(engine_reserve(e, 1));
    engine_stats(e, &s);
    assert_int_equal(s.waiting, 3);
    assert_int_equal(s.waiting_tokens, 42);
    assert_int_equal(s.refused, 3);
    engine_release(e, 1);
    assert_false(engine_reserve(e, 60));
    assert_true(engine_reserve(e, 0)); /* another answer to a prompt that waits */
    assert_false(engine_reserve(e, 0));
    engine_release(e, 0);
    assert_true(engine_reserve(e, 1));
    /* a place is used up by the request, and free when it runs */
    struct ask a;
    plain(&a, 1, 90, 50);
    assert_int_equal(engine_submit(e, &a.r, 40, &a.id, NULL), RT_ok);
    engine_stats(e, &s);
    assert_int_equal(s.waiting_tokens, 92);
    assert_true(step(e));
    engine_stats(e, &s);
    assert_int_equal(s.waiting, 2);
    assert_int_equal(s.waiting_tokens, 2);
    engine_drain(e);
    assert_false(engine_reserve(e, 1));
    assert_int_equal(a.dones, 0);
    engine_close(e); /* what is left is cancelled */
    assert_int_equal(a.done.why, ENGINE_cancelled);
    fakelm_close(f);
}

static void refuse(struct engine *e, struct ask *a, const char *why)
{
    struct rt_error err = {{0}};
    assert_int_equal(engine_submit(e, &a->r, 0, &a->id, &err), RT_user);
    assert_non_null(strstr(err.text, why));
    plain(a, 1, 50, 20);
}

static void hostile(void **state)
{
    (void)state;
    struct rt_error err = {{0}};
    struct engine *e = NULL;
    struct fakelm *f = fake(8, 4, 4);
    static const struct engine_options bad[] = {{.max_sequences = -1}, {.max_sequences = 5},
                                                {.snapshots = 4},      {.step_tokens = 15},
                                                {.max_waiting = -1},   {.snapshots = INT64_MAX}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(engine_open(&f->lm, &bad[i], &e, &err), RT_user);
    fakelm_close(f);
    f = fake(8, 0, 4);
    assert_int_equal(engine_open(&f->lm, &bad[2], &e, &err), RT_user);
    e = open_engine(f, (struct engine_options){0});
    struct ask a;
    plain(&a, 1, 50, 20);
    a.r.num_prompt = 0;
    refuse(e, &a, "the prompt is empty");
    a.r.max_tokens = 0;
    refuse(e, &a, "max_tokens");
    a.r.max_tokens = INT64_MAX;
    refuse(e, &a, "context of 1024 tokens");
    a.r.num_prompt = INT64_MAX;
    refuse(e, &a, "context of 1024 tokens");
    a.r.max_tokens = 64 * 8 - 50 + 2;
    refuse(e, &a, "cache of 512 tokens");
    a.prompt[3] = VOCAB;
    refuse(e, &a, "token 3 of the prompt is 97");
    a.prompt[3] = -1;
    refuse(e, &a, "token 3 of the prompt is -1");
    a.r.top_logprobs = ENGINE_MAX_TOP + 1;
    refuse(e, &a, "logprobs");
    a.r.json = true;
    refuse(e, &a, "JSON");
    a.r.sampler.temperature = NAN;
    refuse(e, &a, "temperature");
    a.r.sampler.top_p = 0;
    refuse(e, &a, "top_p");
    a.r.num_bias = 1;
    a.bias[0] = (struct engine_bias){VOCAB, 1};
    refuse(e, &a, "bias");
    /* what just fits */
    a.r.max_tokens = 64 * 8 - 50 + 1;
    a.stop[0] = -7;
    a.stop[1] = INT32_MAX;
    a.r.num_stop = 2;
    a.r.min_tokens = INT64_MAX;
    submit(e, &a);
    run_all(e);
    assert_int_equal(a.done.why, ENGINE_length);
    engine_close(e);
    engine_close(NULL);
    fakelm_close(f);
}

/* ---- JSON mode ---- */

static void json_answers(void **state)
{
    (void)state;
    struct fakelm *f = fake(100, 0, 8);
    struct engine *e = open_engine(f, (struct engine_options){.text = text_of});
    struct ask *a = test_malloc(40 * sizeof *a);
    for (int i = 0; i < 40; i++) {
        plain(&a[i], (uint64_t)i, 20, 300);
        a[i].r.json = true;
        a[i].r.sampler.temperature = i < 10 ? 0 : 1;
        a[i].stop[0] = 17 + i % 4; /* one that has a text */
        a[i].r.num_stop = 1;
        submit(e, &a[i]);
    }
    run_all(e);
    int whole = 0;
    for (int i = 0; i < 40; i++) {
        struct sb s = {0};
        for (int64_t k = 0; k < a[i].n; k++) {
            struct str t = text_of(NULL, a[i].token[k]);
            assert_true(t.n > 0);
            sb_add(&s, t.p, t.n);
        }
        json_t *j = json_loadb(s.p, s.n, JSON_DECODE_INT_AS_REAL, NULL);
        assert_int_equal(!!j, a[i].done.why == ENGINE_stop);
        whole += !!j;
        json_decref(j);
        sb_free(&s);
    }
    assert_true(whole > 20);
    test_free(a);
    engine_close(e);
    fakelm_close(f);
}

/* ---- threads ---- */

enum { THREADS = 4, EACH = 60 };
struct client {
    struct engine *e;
    struct ask *a;
    uint64_t seed;
};

static void *client(void *arg)
{
    struct client *c = arg;
    struct dice d = {c->seed, 0};
    struct engine_stats s;
    for (int i = 0; i < EACH; i++) {
        struct ask *a = &c->a[i];
        random_ask(&d, a, 300);
        while (!engine_reserve(c->e, 5)) usleep(100);
        if (!roll(&d, 10)) {
            engine_release(c->e, 5);
            i--;
            continue;
        }
        CHECK(engine_submit(c->e, &a->r, 5, &a->id, NULL) == RT_ok);
        if (!roll(&d, 4)) engine_cancel(c->e, c->a[roll(&d, i + 1)].id);
        if (!roll(&d, 4)) engine_stats(c->e, &s);
    }
    for (int i = 0; i < EACH; i++)
        while (!c->a[i].dones) usleep(100);
    return NULL;
}

static void threads(void **state)
{
    (void)state;
    struct fakelm *f = fake(24, 12, 6);
    struct engine *e = open_engine(f, (struct engine_options){.snapshots = 5, .max_waiting = 20});
    assert_int_equal(engine_start(e, NULL), RT_ok);
    struct client c[THREADS];
    pthread_t t[THREADS];
    for (int i = 0; i < THREADS; i++) {
        c[i] = (struct client){e, test_malloc(EACH * sizeof *c[i].a), (uint64_t)i};
        assert_int_equal(pthread_create(&t[i], NULL, client, &c[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
    struct engine_stats s;
    uint64_t steps;
    do { /* it comes to rest, and then does nothing */
        engine_stats(e, &s);
        steps = s.steps;
        usleep(20000);
        engine_stats(e, &s);
    } while (s.steps != steps);
    assert_int_equal(s.pages_used, 0);
    assert_int_equal(s.waiting, 0);
    for (int i = 0; i < THREADS; i++)
        for (int k = 0; k < EACH; k++) {
            struct ask want;
            alone(&c[i].a[k], true, &want);
            check_same(&c[i].a[k], &want);
        }
    /* closing while much is to be done */
    for (int k = 0; k < 20; k++) {
        plain(&c[0].a[k], (uint64_t)k, 250, 200);
        submit(e, &c[0].a[k]);
    }
    engine_close(e);
    for (int k = 0; k < 20; k++) assert_int_equal(c[0].a[k].dones, 1);
    for (int i = 0; i < THREADS; i++) test_free(c[i].a);
    fakelm_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_workloads),
        cmocka_unit_test(prefixes),
        cmocka_unit_test(branches),
        cmocka_unit_test(whole_pages),
        cmocka_unit_test(used_snapshots),
        cmocka_unit_test(priorities),
        cmocka_unit_test(preemption),
        cmocka_unit_test(cancelling),
        cmocka_unit_test(ends),
        cmocka_unit_test(failures),
        cmocka_unit_test(device_failures),
        cmocka_unit_test(no_memory),
        cmocka_unit_test(fairness),
        cmocka_unit_test(short_prompts),
        cmocka_unit_test(reservations),
        cmocka_unit_test(hostile),
        cmocka_unit_test(json_answers),
        cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
