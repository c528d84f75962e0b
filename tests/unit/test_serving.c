/* The engine over real models: whatever is beside a request (others, chunks of prompts, preemption,
 * prefixes that were found, disconnects), it gets the tokens that it gets alone, and those with the
 * same probabilities to the last bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "compiled.h"
#include "compiler/pack.h"
#include "compiler/served.h"
#include "runtime/engine.h"
#include "runtime/philox.h"

enum { BATCH = 6, PAGES = 26, SNAPSHOTS = 10, CONTEXT = 512, REQUESTS = 64 };

struct ask {
    struct engine_request r;
    int32_t prompt[CONTEXT];
    uint64_t id;
    int32_t token[CONTEXT];
    float logprob[CONTEXT];
    int64_t n, cancel_at; /* cancelled with that token of its answer; 0: never */
    int dones;
    struct engine_done done;
    struct engine *e;
};
struct served {
    struct arena *a;
    struct fixture *f;
    struct session *session;
    struct lm *lm;
    uint64_t dice;
};

static int64_t roll(struct served *s, int64_t sides)
{
    return (int64_t)(rng_bits(4, 4, s->dice++) % (uint64_t)sides);
}

static struct served open_served(const char *name, enum ir_store store)
{
    struct served s = {.a = arena_open("serving"), .f = fixture_open(name, NULL)};
    const char *device = getenv("STRATA_TEST_DEVICE"); /* a GPU, where it is to be tested */
    if (device && !*device) device = NULL;
    if (device && store == STORE_none) store = STORE_rows;
    if (device && store == STORE_bf16) store = STORE_rows_bf16;
    const struct compiled_served o = {
        .device = device,
        .threads = 2,
        .build = {.pages = PAGES, .states = BATCH + SNAPSHOTS, .context = CONTEXT, .store = store},
        .batch = BATCH,
        .lazy = device != NULL};
    s.lm = compiled_serve(s.a, s.f, &o, &s.session);
    return s;
}

static void close_served(struct served *s)
{
    s->lm->ops->close(s->lm);
    session_close(s->session);
    fixture_close(s->f);
    arena_close(s->a);
}

/* All pages and states hold what is not a number. */
static void spoil(const struct served *s)
{
    const struct lm_about *m = &s->lm->about;
    struct rt_error err;
    void *junk = malloc(m->page_bytes + m->state_bytes + 1);
    memset(junk, 0xff, m->page_bytes + m->state_bytes + 1);
    for (int32_t i = 0; i < m->pages; i++)
        assert_int_equal(s->lm->ops->load_page(s->lm, i, junk, &err), RT_ok);
    for (int32_t i = 0; i < m->states; i++)
        assert_int_equal(s->lm->ops->load_state(s->lm, i, junk, &err), RT_ok);
    free(junk);
}

/* ---- requests ---- */

static bool on_token(void *arg, const struct engine_token *t)
{
    struct ask *a = arg;
    a->logprob[a->n] = t->logprob;
    a->token[a->n++] = t->id;
    if (a->n == a->cancel_at) engine_cancel(a->e, a->id);
    return false;
}

static void on_done(void *arg, const struct engine_done *d)
{
    struct ask *a = arg;
    a->done = *d;
    a->dones++;
}

static void submit(struct engine *e, struct ask *a)
{
    struct rt_error err = {{0}};
    a->e = e;
    a->n = a->dones = 0;
    a->r.prompt = a->prompt;
    a->r.sampler = (struct sampler){.top_p = 1};
    a->r.logprobs = true;
    a->r.token = on_token;
    a->r.done = on_done;
    a->r.arg = a;
    assert_true(engine_reserve(e, a->r.num_prompt));
    if (engine_submit(e, &a->r, a->r.num_prompt, &a->id, &err)) fail_msg("%s", err.text);
}

static struct engine *open_engine(const struct served *s, bool cache)
{
    struct rt_error err = {{0}};
    struct engine *e;
    struct engine_options o = {.max_waiting = REQUESTS, .no_prefix_cache = !cache};
    if (cache && s->lm->about.states) o.snapshots = SNAPSHOTS;
    if (engine_open(s->lm, &o, &e, &err)) fail_msg("%s", err.text);
    return e;
}

/* The answer alone: nothing before it, nothing beside it. */
static void alone(const struct served *s, const struct ask *a, struct ask *out)
{
    struct engine *e = open_engine(s, false);
    *out = *a;
    out->cancel_at = 0;
    submit(e, out);
    while (engine_step(e)) continue;
    assert_int_equal(out->done.why, ENGINE_length);
    engine_close(e);
}

static void check_same(const struct served *s, const struct ask *got, const struct ask *want)
{
    assert_int_equal(got->dones, 1);
    if (got->done.why == ENGINE_failed) fail_msg("%s: %s", s->f->name, got->done.error.text);
    if (got->cancel_at && got->cancel_at <= want->n)
        assert_true(got->n == got->cancel_at); /* and not one token more */
    else
        assert_int_equal(got->n, want->n);
    for (int64_t i = 0; i < got->n; i++)
        if (got->token[i] != want->token[i] ||
            memcmp(&got->logprob[i], &want->logprob[i], sizeof *got->logprob))
            fail_msg("%s: token %lld of the answer to %lld tokens (%lld found): %d, %.9g; alone "
                     "%d, %.9g",
                     s->f->name, (long long)i, (long long)got->r.num_prompt,
                     (long long)got->done.cached, (int)got->token[i], (double)got->logprob[i],
                     (int)want->token[i], (double)want->logprob[i]);
}

/* Tokens from..n of the prompt, a function of the text's number. */
static void fill(const struct served *s, struct ask *a, uint64_t text, int64_t from, int64_t n)
{
    for (int64_t i = from; i < n; i++)
        a->prompt[i] =
            (int32_t)(rng_bits(text, 5, (uint64_t)i) % (uint64_t)s->f->model->vocab_size);
    a->r.num_prompt = n;
}

/* ---- 64 at once ---- */

/* Mixed lengths; every second one shares a beginning with others; some are disconnected. */
static void draw_requests(struct served *s, struct ask *a)
{
    for (int i = 0; i < REQUESTS; i++) {
        memset(&a[i], 0, sizeof a[i]);
        int64_t n = 1 + roll(s, i % 2 ? 400 : 120);
        fill(s, &a[i], 100 + (uint64_t)i, 0, n);
        if (i % 2) fill(s, &a[i], (uint64_t)roll(s, 2), 0, n < 200 ? n : 200);
        a[i].r.num_prompt = n;
        int64_t room = CONTEXT - n;
        a[i].r.max_tokens = 1 + roll(s, roll(s, 3) ? 40 : room);
        if (a[i].r.max_tokens > room) a[i].r.max_tokens = room;
        if (!roll(s, 6)) a[i].cancel_at = 1 + roll(s, 20);
    }
}

static void together(const char *name, enum ir_store store)
{
    struct served s = open_served(name, store);
    struct ask *a = calloc(REQUESTS, sizeof *a), *want = calloc(REQUESTS, sizeof *want);
    draw_requests(&s, a);
    spoil(&s);
    for (int i = 0; i < REQUESTS; i++) alone(&s, &a[i], &want[i]);
    spoil(&s);
    struct engine *e = open_engine(&s, true);
    int sent = 0;
    while (sent < REQUESTS / 2) submit(e, &a[sent++]);
    while (engine_step(e) || sent < REQUESTS)
        if (sent < REQUESTS) submit(e, &a[sent++]); /* the others come one by one */
    struct engine_stats t;
    engine_stats(e, &t);
    for (int i = 0; i < REQUESTS; i++) check_same(&s, &a[i], &want[i]);
    print_message("%s: %llu steps, %llu preemptions, %llu of %llu tokens of prompts found, %llu "
                  "disconnected\n",
                  name, (unsigned long long)t.steps, (unsigned long long)t.preemptions,
                  (unsigned long long)t.prefix_hits, (unsigned long long)t.prefix_queries,
                  (unsigned long long)t.requests[ENGINE_cancelled]);
    assert_true(t.preemptions && t.prefix_hits && t.requests[ENGINE_cancelled] > 3);
    assert_int_equal(t.pages_used, 0);
    engine_close(e);
    free(a);
    free(want);
    close_served(&s);
}

static void kimi_together(void **state)
{
    (void)state;
    together("kimi-mini", STORE_none);
}

static void k3_together(void **state)
{
    (void)state;
    together("k3-mini", STORE_none);
}

static void attention_together(void **state)
{
    (void)state;
    together("attention-gqa-rope", STORE_none);
}

/* With weights as they are served. */
static void stored_together(void **state)
{
    (void)state;
    together("kimi-mini", STORE_bf16);
    together("k3-mini", STORE_i8);
    together("attention-gqa-rope", STORE_bf16);
}

/* ---- warm and cold ---- */

/* Two prompts that share a beginning of any length, often one that ends at an edge of pages, of
 * chunks or of steps. */
static void draw_pair(struct served *s, uint64_t text, struct ask *first, struct ask *warm)
{
    int64_t n = 2 + roll(s, 440), shared = 1 + roll(s, n - 1);
    if (roll(s, 2)) shared = (shared + 15) / 16 * 16;
    if (!roll(s, 4)) shared = (shared + 63) / 64 * 64;
    if (n <= shared) n = shared + 1;
    /* the first ends anywhere, more often soon after: then its last state can be of use */
    int64_t left = 441 - shared > 1 ? 441 - shared : 1;
    fill(s, first, text, 0, shared + roll(s, roll(s, 4) && left > 64 ? 64 : left));
    first->r.max_tokens = 1 + roll(s, 30);
    fill(s, warm, text, 0, shared);
    fill(s, warm, text + 1, shared, n);
    warm->r.max_tokens = 1 + roll(s, 20);
}

/* The first prompt leaves its pages and states behind; the second gets what it gets in an empty
 * engine. What earlier pairs left is there too, and is evicted; some pairs are there at once. */
static void pairs(const char *name, enum ir_store store, int num)
{
    struct served s = open_served(name, store);
    struct ask *a = calloc((size_t)num * 2, sizeof *a), *cold = calloc(1, sizeof *cold);
    spoil(&s);
    struct engine *e = open_engine(&s, true);
    for (int i = 0; i < num; i++) {
        struct ask *first = &a[2 * i], *warm = first + 1;
        draw_pair(&s, 1000 + 2 * (uint64_t)i, first, warm);
        submit(e, first);
        for (bool after = roll(&s, 3); after && engine_step(e);) continue;
        submit(e, warm);
        while (engine_step(e)) continue;
    }
    engine_close(e);
    int found = 0;
    for (int i = 0; i < 2 * num; i++) {
        spoil(&s);
        alone(&s, &a[i], cold);
        check_same(&s, &a[i], cold);
        found += a[i].done.cached > 0;
    }
    print_message("%s: %d pairs, %d prompts began with what was found\n", name, num, found);
    assert_true(found * 3 > num);
    free(a);
    free(cold);
    close_served(&s);
}

/* Conversations: a prompt that goes on where an answer ended finds the pages of that answer, which
 * decoding has written, beside others, and gets what it gets where a prompt is read at once. */
static void turns(const char *name, enum ir_store store)
{
    enum { TALKS = 6 };
    struct served s = open_served(name, store);
    struct ask *a = calloc(2 * TALKS, sizeof *a), *cold = calloc(1, sizeof *cold);
    assert_false(s.lm->about.recurrent);
    spoil(&s);
    struct engine *e = open_engine(&s, true);
    for (int i = 0; i < TALKS; i++) {
        fill(&s, &a[i], 9000 + (uint64_t)i, 0, 1 + roll(&s, 100));
        a[i].r.max_tokens = 65 + roll(&s, 70);
        submit(e, &a[i]);
    }
    while (engine_step(e)) continue;
    for (int i = 0; i < TALKS; i++) {
        struct ask *next = &a[TALKS + i];
        int64_t n = a[i].r.num_prompt + a[i].n;
        fill(&s, next, 9100 + (uint64_t)i, 0, n + 1 + roll(&s, 100));
        memcpy(next->prompt, a[i].prompt, (size_t)a[i].r.num_prompt * sizeof *next->prompt);
        memcpy(next->prompt + a[i].r.num_prompt, a[i].token, (size_t)a[i].n * sizeof *next->prompt);
        next->r.max_tokens = 1 + roll(&s, 20);
        submit(e, next);
        while (engine_step(e)) continue;
        assert_true(next->done.cached >= (n - 1) / LM_PAGE * LM_PAGE);
    }
    engine_close(e);
    for (int i = 0; i < 2 * TALKS; i++) {
        spoil(&s);
        alone(&s, &a[i], cold);
        check_same(&s, &a[i], cold);
    }
    free(a);
    free(cold);
    close_served(&s);
}

static void all_turns(void **state)
{
    (void)state;
    turns("attention-gqa-rope", STORE_none);
    turns("attention-gqa-rope", STORE_bf16);
    turns("attention-gqa-rope", STORE_i8);
    turns("mla-rope", STORE_none);
    turns("mla-lora-gate", STORE_bf16);
    turns("moe-softmax", STORE_i8);
}

static int num_pairs(int usual)
{
    const char *all = getenv("STRATA_TEST_ALL");
    return all && *all ? 1000 : usual;
}

static void kimi_pairs(void **state)
{
    (void)state;
    pairs("kimi-mini", STORE_none, num_pairs(40));
}

static void k3_pairs(void **state)
{
    (void)state;
    pairs("k3-mini", STORE_none, num_pairs(20));
}

static void stored_pairs(void **state)
{
    (void)state;
    pairs("k3-mini", STORE_bf16, num_pairs(10));
    pairs("kimi-mini", STORE_i8, num_pairs(10));
}

static void attention_pairs(void **state)
{
    (void)state;
    pairs("attention-gqa-rope", STORE_none, num_pairs(20));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kimi_together),      cmocka_unit_test(k3_together),
        cmocka_unit_test(attention_together), cmocka_unit_test(stored_together),
        cmocka_unit_test(kimi_pairs),         cmocka_unit_test(k3_pairs),
        cmocka_unit_test(attention_pairs),    cmocka_unit_test(stored_pairs),
        cmocka_unit_test(all_turns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
