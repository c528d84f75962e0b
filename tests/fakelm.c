#include "fakelm.h"
#include "base/arena.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct fake_slot {
    uint64_t chain; /* hash of everything up to here */
    int32_t token;
    int32_t position;
    int32_t how; /* 1: read by a short call, where that leaves other bits */
    bool poisoned;
};
struct fake_state {
    uint64_t chain;
    int64_t count; /* tokens; -1: rubbish */
};

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = (a ^ (b + 0x9e3779b97f4a7c15u)) * 0xff51afd7ed558ccdu;
    x ^= x >> 32;
    x *= 0xc4ceb9fe1a85ec53u;
    return x ^ x >> 29;
}

static uint64_t chain_of(uint64_t before, const struct fake_slot *s)
{
    return mix(before, (uint64_t)s->token << 1 | (uint64_t)s->how);
}

/* Reads what is there of the sequence, and aborts where it is not one text. */
static uint64_t read_past(const struct fakelm *f, const int32_t *pages, int64_t past,
                          bool *poisoned)
{
    uint64_t chain = 1;
    for (int64_t t = 0; t < past; t++) {
        const struct fake_slot *s = &f->slot[pages[t / LM_PAGE] * LM_PAGE + t % LM_PAGE];
        CHECK(s->position == t && s->chain == chain_of(chain, s));
        chain = s->chain;
        *poisoned |= s->poisoned;
    }
    return chain;
}

/* f32[B*T, i + 2] of site i. */
static float *depth_of(const struct fakelm *f, int i)
{
    return f->depth + (int64_t)i * f->rows * 8;
}

static void sequence(struct fakelm *f, const struct lm_call *c, int64_t b)
{
    const int32_t *pages = c->pages + b * (f->o.context / LM_PAGE);
    int64_t past = c->past[b];
    CHECK(past >= 0 && past + c->T <= f->o.context);
    for (int64_t i = 0; i <= (past + c->T - 1) / LM_PAGE; i++)
        CHECK(pages[i] >= 0 && pages[i] < f->o.pages);
    bool poisoned = false;
    uint64_t chain = read_past(f, pages, past, &poisoned);
    struct fake_state *state = f->o.states ? &f->state[c->states[b]] : NULL;
    if (state) {
        CHECK(c->states[b] >= 0 && c->states[b] < f->o.states);
        CHECK(past == 0 || (state->count == past && state->chain == chain));
    }
    for (int64_t t = past; t < past + c->T; t++) {
        struct fake_slot *s = &f->slot[pages[t / LM_PAGE] * LM_PAGE + t % LM_PAGE];
        int32_t token = c->tokens[b * c->T + t - past];
        CHECK(token >= 0 && token < f->o.vocab);
        poisoned |= f->o.poison && token == f->o.poison;
        *s = (struct fake_slot){
            .token = token, .position = (int32_t)t, .how = state && c->T < LM_STEP};
        s->poisoned = poisoned;
        chain = s->chain = chain_of(chain, s);
    }
    if (state) *state = (struct fake_state){chain, past + c->T};
    for (int64_t i = 0; i < f->o.vocab; i++) {
        float x = (float)(mix(chain, (uint64_t)i) >> 40) * (8.0f / (1 << 24)) - 4;
        f->logits[b * f->o.vocab + i] = poisoned ? NAN : x;
    }
    for (int i = 0; i < f->o.sites; i++)
        for (int64_t t = 0; t < c->T; t++)
            for (int k = 0; k < i + 2; k++)
                depth_of(f, i)[(b * c->T + t) * (i + 2) + k] = (float)(past + t) + (float)k / 8;
}

static enum rt_status run(struct lm *m, const struct lm_call *c, struct rt_error *err)
{
    struct fakelm *f = (struct fakelm *)m;
    CHECK(c->B >= 1 && c->B <= f->o.batch && c->T >= 1 && c->T <= LM_CHUNK);
    CHECK(c->T == 1 || (c->B == 1 && (c->T < LM_STEP || c->T % LM_STEP == 0)));
    CHECK(c->T == 1 || c->past[0] % LM_STEP == 0);
    bool decode = c->T == 1;
    *(decode ? &f->decoded : &f->prefilled) += (uint64_t)(c->B * c->T);
    f->between = decode ? 0 : f->between + c->T;
    if (f->between > f->most_between) f->most_between = f->between;
    if ((int64_t)++f->calls == f->o.fail_at) return rt_fail(err, RT_machine, "the device is gone");
    for (int64_t b = 0; b < c->B; b++) {
        if (!f->o.states) continue;
        for (int64_t i = 0; i < b; i++) CHECK(c->states[i] != c->states[b]);
    }
    for (int64_t b = 0; b < c->B; b++) sequence(f, c, b);
    return RT_ok;
}

static const float *logits(const struct lm *m)
{
    return ((const struct fakelm *)m)->logits;
}

static const float *depth(const struct lm *m, size_t i)
{
    return depth_of((const struct fakelm *)m, (int)i);
}

static enum rt_status copying(struct fakelm *f, struct rt_error *err)
{
    if ((int64_t)++f->copies == f->o.fail_copy_at)
        return rt_fail(err, RT_machine, "the device does not copy");
    return RT_ok;
}

static enum rt_status copy_state(struct lm *m, int32_t from, int32_t to, struct rt_error *err)
{
    struct fakelm *f = (struct fakelm *)m;
    CHECK(from >= 0 && from < f->o.states && to >= 0 && to < f->o.states && from != to);
    RT_TRY(copying(f, err));
    f->state[to] = f->state[from];
    return RT_ok;
}

static enum rt_status save_page(struct lm *m, int32_t page, void *to, struct rt_error *err)
{
    struct fakelm *f = (struct fakelm *)m;
    CHECK(page >= 0 && page < f->o.pages);
    RT_TRY(copying(f, err));
    memcpy(to, f->slot + page * LM_PAGE, LM_PAGE * sizeof *f->slot);
    return RT_ok;
}

static enum rt_status load_page(struct lm *m, int32_t page, const void *from, struct rt_error *err)
{
    struct fakelm *f = (struct fakelm *)m;
    CHECK(page >= 0 && page < f->o.pages);
    RT_TRY(copying(f, err));
    memcpy(f->slot + page * LM_PAGE, from, LM_PAGE * sizeof *f->slot);
    return RT_ok;
}

static enum rt_status save_state(struct lm *m, int32_t state, void *to, struct rt_error *err)
{
    struct fakelm *f = (struct fakelm *)m;
    CHECK(state >= 0 && state < f->o.states);
    RT_TRY(copying(f, err));
    memcpy(to, f->state + state, sizeof *f->state);
    return RT_ok;
}

static enum rt_status load_state(struct lm *m, int32_t state, const void *from,
                                 struct rt_error *err)
{
    struct fakelm *f = (struct fakelm *)m;
    CHECK(state >= 0 && state < f->o.states);
    RT_TRY(copying(f, err));
    memcpy(f->state + state, from, sizeof *f->state);
    return RT_ok;
}

static void close_lm(struct lm *m)
{
    fakelm_close((struct fakelm *)m);
}

static const struct lm_ops ops = {run,       logits,     depth,      copy_state, save_page,
                                  load_page, save_state, load_state, close_lm};

static void *get(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    CHECK(p);
    return p;
}

struct fakelm *fakelm_open(const struct fakelm_options *o)
{
    struct fakelm *f = get(1, sizeof *f);
    f->o = *o;
    CHECK(o->sites <= 4);
    f->rows = o->batch > LM_CHUNK ? o->batch : LM_CHUNK;
    f->slot = get((size_t)o->pages * LM_PAGE, sizeof *f->slot);
    for (int64_t i = 0; i < o->pages * LM_PAGE; i++) f->slot[i].position = -1;
    f->state = get((size_t)o->states, sizeof *f->state);
    for (int64_t i = 0; i < o->states; i++) f->state[i].count = -1;
    f->logits = get((size_t)(o->batch * o->vocab), sizeof *f->logits);
    f->depth = get((size_t)f->rows * 8 * 4, sizeof *f->depth);
    for (int i = 0; i < o->sites; i++)
        f->site[i] = (struct lm_site){.name = "site", .sources = i + 2};
    f->lm.ops = &ops;
    f->lm.about = (struct lm_about){.vocab = o->vocab,
                                    .context = o->context,
                                    .pages = o->pages,
                                    .states = o->states,
                                    .batch = o->batch,
                                    .page_bytes = LM_PAGE * sizeof *f->slot,
                                    .state_bytes = o->states ? sizeof *f->state : 0,
                                    .recurrent = o->states > 0,
                                    .site = o->sites ? f->site : NULL,
                                    .num_sites = (size_t)o->sites};
    return f;
}

void fakelm_close(struct fakelm *f)
{
    if (!f) return;
    free(f->slot);
    free(f->state);
    free(f->logits);
    free(f->depth);
    free(f);
}
