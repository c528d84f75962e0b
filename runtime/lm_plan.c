#include "runtime/lm_plan.h"
#include "base/str.h"
#include "base/vec.h"
#include "runtime/exec.h"
#include "runtime/reserve.h"
#include <string.h>

/* ---- what the values of a plan say ---- */

static bool starts(const struct sa_value *v, const char *with)
{
    return str_starts(str_of(v->name), with);
}

static int64_t count(const struct sa_value *v)
{
    int64_t n = 1;
    for (uint32_t i = 0; i < v->rank; i++) n *= v->dims[i];
    return n;
}

/* The value of that name, which has n elements; UINT32_MAX where there is none. */
static uint32_t find(const struct sa_plan *p, const char *name, enum sa_dtype dtype, int64_t n)
{
    for (uint32_t i = 0; i < p->num_values; i++) {
        if (strcmp(p->values[i].name, name)) continue;
        CHECK(p->values[i].dtype == dtype && (!n || count(&p->values[i]) == n));
        return i;
    }
    return UINT32_MAX;
}

/* ---- plans of a file ---- */

/* Whether a value that is there has this type and, where that is not 0, so many elements. */
static const char *wrong_value(const struct sa_plan *p, const char *name, enum sa_dtype dtype,
                               int64_t n, bool needed)
{
    for (uint32_t i = 0; i < p->num_values; i++)
        if (!strcmp(p->values[i].name, name))
            return p->values[i].dtype == dtype && count(&p->values[i]) > 0 &&
                           (!n || count(&p->values[i]) == n)
                       ? NULL
                       : name;
    return needed ? name : NULL;
}

static const char *wrong_plan(const struct lm_parts *parts, const struct lm_plan *p, bool cpu)
{
    const struct sa_plan *sa = p->plan;
    int64_t B = p->B, pages = parts->context / LM_PAGE;
    if (B < 1 || p->T < 1 || B > INT32_MAX || p->T > INT32_MAX) return "tokens of a call";
    if (sa->num_externs) return "external memory";
    if (!sa->num_entries) return "no entry";
    for (uint32_t i = 0; i < sa->num_steps && cpu; i++)
        if (sa->steps[i].kernel == SA_PRODUCT) return "a product of a library";
    const char *wrong = wrong_value(sa, "tokens", SA_i32, B * p->T, true);
    if (!wrong) wrong = wrong_value(sa, "logits", SA_f32, 0, true);
    if (!wrong) wrong = wrong_value(sa, "past", SA_i32, B, false);
    if (!wrong && B > INT64_MAX / 4 / (pages + 1)) wrong = "pages";
    if (!wrong) wrong = wrong_value(sa, "pages", SA_i32, B * pages, false);
    if (!wrong) wrong = wrong_value(sa, "states", SA_i32, B, false);
    for (uint32_t i = 0; i < sa->num_values && !wrong; i++) {
        const struct sa_value *x = &sa->values[i];
        bool page = starts(x, "cache.page."), cache = page || starts(x, "cache.state.");
        int64_t n = page ? parts->pages : parts->states;
        if (cache && (x->at.arena != SA_persistent || n < 1 || !x->rank || x->dims[0] % n))
            wrong = x->name;
        if (starts(x, "depth.") && (x->rank != 2 || x->dtype != SA_f32)) wrong = x->name;
    }
    return wrong;
}

/* The caches and sites of one plan as another has them. */
static const char *wrong_pair(const struct sa_plan *p, const struct sa_plan *q)
{
    uint32_t k = 0;
    for (uint32_t i = 0; i < p->num_values; i++) {
        const struct sa_value *x = &p->values[i];
        bool cache = starts(x, "cache.page.") || starts(x, "cache.state.");
        if (!cache && !starts(x, "depth.")) continue;
        while (k < q->num_values && strcmp(q->values[k].name, x->name)) k++;
        if (k == q->num_values) return x->name;
        const struct sa_value *y = &q->values[k];
        if (cache && (x->at.arena != y->at.arena || x->at.offset != y->at.offset ||
                      sa_value_bytes(x) != sa_value_bytes(y)))
            return x->name;
    }
    return NULL;
}

enum rt_status lm_plans_check(const struct lm_parts *parts, bool cpu, struct rt_error *err)
{
    const char *wrong = parts->num_plans ? NULL : "there are none";
    if (parts->context < 1 || parts->context % LM_PAGE || parts->pages < 0 || parts->states < 0)
        wrong = "sizes of caches";
    for (size_t i = 0; i < parts->num_plans && !wrong; i++) {
        const struct sa_plan *first = parts->plan[0].plan, *p = parts->plan[i].plan;
        wrong = wrong_plan(parts, &parts->plan[i], cpu);
        if (!wrong) wrong = wrong_pair(first, p);
        if (!wrong) wrong = wrong_pair(p, first);
    }
    return wrong ? rt_fail(err, RT_user, "damaged plans: %.100s does not fit", wrong) : RT_ok;
}

struct lm_values lm_values_of(struct arena *a, const struct lm_parts *parts,
                              const struct lm_plan *p)
{
    const struct sa_plan *sa = p->plan;
    struct lm_values v = {
        .tokens = find(sa, "tokens", SA_i32, p->B * p->T),
        .past = find(sa, "past", SA_i32, p->B),
        .pages = find(sa, "pages", SA_i32, p->B * (parts->context / LM_PAGE)),
        .states = find(sa, "states", SA_i32, p->B),
        .logits = find(sa, "logits", SA_f32, 0),
        .site = NEW(a, uint32_t, sa->num_values),
        .cache = NEW(a, struct lm_cache, sa->num_values),
    };
    CHECK(v.tokens != UINT32_MAX && v.logits != UINT32_MAX);
    for (uint32_t i = 0; i < sa->num_values; i++) {
        const struct sa_value *x = &sa->values[i];
        bool page = starts(x, "cache.page."), state = starts(x, "cache.state.");
        if (starts(x, "depth.")) v.site[v.num_sites++] = i;
        if (!page && !state) continue;
        int64_t n = page ? parts->pages : parts->states;
        CHECK(x->at.arena == SA_persistent && n > 0 && x->dims[0] % n == 0);
        v.cache[v.num_caches++] = (struct lm_cache){i, sa_value_bytes(x) / (uint64_t)n, page};
    }
    return v;
}

struct lm_about lm_about_of(struct arena *a, const struct lm_parts *parts, const struct lm_plan *p,
                            const struct lm_values *v)
{
    struct lm_about m = {.vocab = count(&p->plan->values[v->logits]) / p->B,
                         .context = parts->context,
                         .pages = parts->pages,
                         .batch = parts->batch,
                         .num_sites = v->num_sites};
    for (size_t i = 0; i < v->num_caches; i++) {
        *(v->cache[i].paged ? &m.page_bytes : &m.state_bytes) += v->cache[i].bytes;
        m.recurrent |= !v->cache[i].paged;
    }
    m.states = m.recurrent ? parts->states : 0;
    struct lm_site *site = NEW(a, struct lm_site, v->num_sites + 1);
    for (size_t i = 0; i < v->num_sites; i++) {
        const struct sa_value *x = &p->plan->values[v->site[i]];
        site[i].partial = starts(x, "depth.partial.");
        site[i].name = x->name + strlen(site[i].partial ? "depth.partial." : "depth.");
        site[i].sources = x->dims[1];
    }
    m.site = v->num_sites ? site : NULL;
    return m;
}

void lm_call_check(const struct lm_about *m, const struct lm_call *c)
{
    int64_t P = m->context / LM_PAGE;
    CHECK(c->B > 0 && c->B <= m->batch && c->T > 0);
    for (int64_t b = 0; b < c->B; b++) {
        CHECK(c->past[b] >= 0 && c->past[b] + c->T <= m->context);
        for (int64_t i = 0; m->page_bytes && i * LM_PAGE < c->past[b] + c->T; i++)
            CHECK(c->pages[b * P + i] >= 0 && c->pages[b * P + i] < m->pages);
        if (m->states) CHECK(c->states[b] >= 0 && c->states[b] < m->states);
    }
}

/* ---- shapes ---- */

struct shape { /* a plan, and its values in memory */
    struct lm_plan p;
    struct exec *x;
    int32_t *tokens, *past, *pages, *states; /* NULL: not an input */
    const float *logits, **depth;
};
struct cache {
    char *at;
    uint64_t bytes; /* of a page or state */
};
struct planned {
    struct lm lm; /* first */
    struct arena *a;
    struct lm_parts parts;
    struct reserve memory[SA_external];
    VEC(struct shape) shape;
    size_t last; /* shape of the last run */
    struct cache *page, *state;
    size_t num_page, num_state;
};

static struct planned *planned(struct lm *m)
{
    return (struct planned *)(void *)m;
}

static struct shape *shape_of(struct planned *m, int64_t B, int64_t T)
{
    for (size_t i = 0; i < m->shape.n; i++)
        if (m->shape.p[i].p.B == B && m->shape.p[i].p.T == T) return &m->shape.p[i];
    return NULL;
}

static const float *logits(const struct lm *lm)
{
    const struct planned *m = (const struct planned *)(const void *)lm;
    return m->shape.p[m->last].logits;
}

static const float *depth(const struct lm *lm, size_t i)
{
    const struct planned *m = (const struct planned *)(const void *)lm;
    CHECK(i < lm->about.num_sites);
    return m->shape.p[m->last].depth[i];
}

/* ---- pages and states ---- */

/* Page or state i of all caches to memory of the caller (out), or from there. */
static void move(const struct cache *c, size_t n, int32_t i, char *other, bool out)
{
    for (size_t k = 0; k < n; k++, other += c[k - 1].bytes) {
        char *own = c[k].at + (uint64_t)i * c[k].bytes;
        memcpy(out ? other : own, out ? own : other, c[k].bytes);
    }
}

static enum rt_status copy_state(struct lm *lm, int32_t from, int32_t to, struct rt_error *err)
{
    const struct planned *m = planned(lm);
    int64_t n = lm->about.states;
    (void)err;
    CHECK(from >= 0 && from < n && to >= 0 && to < n);
    for (size_t k = 0; k < m->num_state && from != to; k++) {
        const struct cache *c = &m->state[k];
        memcpy(c->at + (uint64_t)to * c->bytes, c->at + (uint64_t)from * c->bytes, c->bytes);
    }
    return RT_ok;
}

static enum rt_status save_page(struct lm *lm, int32_t page, void *to, struct rt_error *err)
{
    const struct planned *m = planned(lm);
    (void)err;
    CHECK(page >= 0 && page < lm->about.pages);
    move(m->page, m->num_page, page, to, true);
    return RT_ok;
}

static enum rt_status load_page(struct lm *lm, int32_t page, const void *from, struct rt_error *err)
{
    const struct planned *m = planned(lm);
    (void)err;
    CHECK(page >= 0 && page < lm->about.pages);
    move(m->page, m->num_page, page, (char *)(uintptr_t)from, false);
    return RT_ok;
}

static enum rt_status save_state(struct lm *lm, int32_t state, void *to, struct rt_error *err)
{
    const struct planned *m = planned(lm);
    (void)err;
    CHECK(state >= 0 && state < lm->about.states);
    move(m->state, m->num_state, state, to, true);
    return RT_ok;
}

static enum rt_status load_state(struct lm *lm, int32_t state, const void *from,
                                 struct rt_error *err)
{
    const struct planned *m = planned(lm);
    (void)err;
    CHECK(state >= 0 && state < lm->about.states);
    move(m->state, m->num_state, state, (char *)(uintptr_t)from, false);
    return RT_ok;
}

/* ---- opening and running ---- */

static void *value(const struct shape *s, uint32_t i)
{
    return i == UINT32_MAX ? NULL : exec_value(s->x, i, 0);
}

/* Of the first plan: sizes, and where the caches are; of the others that they are there too. */
static void place_caches(struct planned *m, const struct shape *s, const struct lm_values *v)
{
    size_t page = 0, state = 0;
    if (!m->page) {
        m->page = NEW(m->a, struct cache, v->num_caches + 1);
        m->state = NEW(m->a, struct cache, v->num_caches + 1);
        for (size_t i = 0; i < v->num_caches; i++)
            *(v->cache[i].paged ? &m->page[m->num_page++] : &m->state[m->num_state++]) =
                (struct cache){value(s, v->cache[i].value), v->cache[i].bytes};
    }
    for (size_t i = 0; i < v->num_caches; i++) {
        const struct cache *c = v->cache[i].paged ? &m->page[page++] : &m->state[state++];
        CHECK(c->at == value(s, v->cache[i].value) && c->bytes == v->cache[i].bytes);
    }
    CHECK(page == m->num_page && state == m->num_state);
}

static enum rt_status add(struct planned *m, const struct lm_plan *p, struct rt_error *err)
{
    struct lm_about *about = &m->lm.about;
    struct exec_options o = {.slots = 1};
    for (int i = 0; i < SA_external; i++) {
        o.memory[i] = p->memory[i];
        if (o.memory[i]) continue;
        uint64_t bytes = p->plan->arena_bytes[i];
        RT_TRY(reserve_grow(&m->memory[i], bytes ? bytes : 1, err));
        o.memory[i] = m->memory[i].base;
    }
    struct shape s = {.p = *p};
    RT_TRY(exec_open(p->plan, m->parts.pool, &o, &s.x, err));
    const struct lm_values v = lm_values_of(m->a, &m->parts, p);
    place_caches(m, &s, &v);
    s.tokens = value(&s, v.tokens), s.past = value(&s, v.past);
    s.pages = value(&s, v.pages), s.states = value(&s, v.states);
    s.logits = value(&s, v.logits);
    s.depth = NEW(m->a, const float *, v.num_sites + 1);
    for (size_t i = 0; i < v.num_sites; i++) s.depth[i] = value(&s, v.site[i]);
    if (!m->shape.n) *about = lm_about_of(m->a, &m->parts, p, &v);
    CHECK(v.num_sites == about->num_sites);
    if (!m->parts.batch && p->B > about->batch) about->batch = p->B;
    vec_push(m->a, &m->shape, s);
    return RT_ok;
}

static enum rt_status run(struct lm *lm, const struct lm_call *c, struct rt_error *err)
{
    struct planned *m = planned(lm);
    struct shape *s = shape_of(m, c->B, c->T);
    lm_call_check(&lm->about, c);
    if (!s) {
        struct lm_plan p;
        if (!m->parts.missing) BUG("no plan for %lld x %lld", (long long)c->B, (long long)c->T);
        RT_TRY(m->parts.missing(m->parts.arg, c->B, c->T, &p, err));
        RT_TRY(add(m, &p, err));
        s = &vec_last(&m->shape);
    }
    size_t each = sizeof(int32_t), B = (size_t)c->B;
    memcpy(s->tokens, c->tokens, B * (size_t)c->T * each);
    if (s->past) memcpy(s->past, c->past, B * each);
    if (s->pages) memcpy(s->pages, c->pages, B * (size_t)(lm->about.context / LM_PAGE) * each);
    if (s->states) memcpy(s->states, c->states, B * each);
    m->last = (size_t)(s - m->shape.p);
    exec_run(s->x, 0, 0);
    return RT_ok;
}

static void close(struct lm *lm)
{
    struct planned *m = planned(lm);
    for (size_t i = 0; i < m->shape.n; i++) exec_close(m->shape.p[i].x);
    for (int i = 0; i < SA_external; i++) reserve_close(&m->memory[i]);
    arena_close(m->a);
}

static const struct lm_ops ops = {.run = run,
                                  .logits = logits,
                                  .depth = depth,
                                  .copy_state = copy_state,
                                  .save_page = save_page,
                                  .load_page = load_page,
                                  .save_state = save_state,
                                  .load_state = load_state,
                                  .close = close};

enum rt_status lm_plan_open(const struct lm_parts *parts, struct lm **out, struct rt_error *err)
{
    struct arena *a = arena_open("lm");
    struct planned *m = NEW(a, struct planned, 1);
    *out = NULL;
    *m = (struct planned){.lm = {.ops = &ops}, .a = a, .parts = *parts};
    enum rt_status st = RT_ok;
    for (size_t i = 0; !st && i < parts->num_plans; i++) st = add(m, &parts->plan[i], err);
    if (st) {
        close(&m->lm);
        return st;
    }
    *out = &m->lm;
    return RT_ok;
}
