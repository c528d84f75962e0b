#include "compiler/served.h"
#include "runtime/lm_plan.h"
#include <string.h>

_Static_assert((int)LM_PAGE == (int)IR_PAGE, "pages of a model are pages of its graph");

struct shape { /* on a device: a plan, and its values; NULL: it has no such input */
    struct plan *plan;
    const struct plan_value *tokens, *past, *pages, *states, *logits, **site;
};
struct cache { /* pages or states of one value */
    const struct plan_value *value;
    uint64_t bytes; /* of a page or state */
};
struct served {
    struct lm lm; /* first; on a device */
    struct arena *a;
    struct served_options o;
    struct lm_parts parts;
    VEC(struct shape) shape;
    size_t last; /* of the last run */
    struct cache *page, *state;
    size_t num_page, num_state;
};

/* The plan of a shape, compiled. */
static enum rt_status ready(struct served *s, int64_t B, int64_t T, struct plan **out,
                            struct rt_error *err)
{
    *out = program_plan(s->o.program, B, T);
    return plan_ready(*out) ? RT_ok : session_compile(s->o.session, NULL, err);
}

/* All plans that lm_cut and decoding need. */
static void make_plans(struct served *s)
{
    for (int64_t T = 1; T <= LM_CHUNK; T += T < LM_STEP ? 1 : LM_STEP)
        program_plan(s->o.program, 1, T);
    for (int64_t B = 2; B <= s->o.batch; B++) program_plan(s->o.program, B, 1);
}

/* ---- on a CPU ---- */

static enum rt_status missing(void *arg, int64_t B, int64_t T, struct lm_plan *out,
                              struct rt_error *err)
{
    struct plan *p;
    *out = (struct lm_plan){.B = B, .T = T};
    RT_TRY(ready(arg, B, T, &p, err));
    out->plan = plan_flat(p, out->memory);
    return RT_ok;
}

static enum rt_status open_planned(struct served *s, struct lm **out, struct rt_error *err)
{
    size_t n;
    struct plan *const *p = program_plans(s->o.program, &n);
    struct lm_plan *flat = NEW(s->a, struct lm_plan, n);
    for (size_t i = 0; i < n; i++) {
        flat[i] = (struct lm_plan){.B = plan_bind(p[i]).B, .T = plan_bind(p[i]).T};
        flat[i].plan = plan_flat(p[i], flat[i].memory);
    }
    s->parts.plan = flat;
    s->parts.num_plans = n;
    s->parts.pool = session_pool(s->o.session);
    s->parts.missing = s->o.lazy ? missing : NULL;
    s->parts.arg = s;
    return lm_plan_open(&s->parts, out, err);
}

/* ---- on a device ---- */

static struct served *served(struct lm *m)
{
    return (struct served *)(void *)m;
}

static const struct plan_value *at(const struct plan_value *v, uint32_t i)
{
    return i == UINT32_MAX ? NULL : &v[i];
}

static void find_caches(struct served *s, const struct plan_value *value, const struct lm_values *v)
{
    s->page = NEW(s->a, struct cache, v->num_caches + 1);
    s->state = NEW(s->a, struct cache, v->num_caches + 1);
    for (size_t i = 0; i < v->num_caches; i++)
        *(v->cache[i].paged ? &s->page[s->num_page++] : &s->state[s->num_state++]) =
            (struct cache){&value[v->cache[i].value], v->cache[i].bytes};
}

static void add_shape(struct served *s, struct plan *plan)
{
    const struct ir_bind b = plan_bind(plan);
    size_t n;
    const struct plan_value *value = plan_values(plan, &n);
    const struct lm_plan p = {.B = b.B, .T = b.T, .plan = &plan_lowered(plan)->plan};
    const struct lm_values v = lm_values_of(s->a, &s->parts, &p);
    struct shape x = {.plan = plan,
                      .tokens = at(value, v.tokens),
                      .past = at(value, v.past),
                      .pages = at(value, v.pages),
                      .states = at(value, v.states),
                      .logits = at(value, v.logits),
                      .site = NEW(s->a, const struct plan_value *, v.num_sites + 1)};
    for (size_t i = 0; i < v.num_sites; i++) x.site[i] = at(value, v.site[i]);
    if (!s->shape.n) {
        find_caches(s, value, &v);
        s->lm.about = lm_about_of(s->a, &s->parts, &p, &v);
    }
    vec_push(s->a, &s->shape, x);
}

static void put(const struct plan_value *v, const int32_t *from)
{
    if (v) memcpy(v->p, from, v->bytes);
}

static enum rt_status run(struct lm *m, const struct lm_call *c, struct rt_error *err)
{
    struct served *s = served(m);
    struct plan *p;
    lm_call_check(&m->about, c);
    for (s->last = 0; s->last < s->shape.n; s->last++) {
        const struct ir_bind b = plan_bind(s->shape.p[s->last].plan);
        if (b.B == c->B && b.T == c->T) break;
    }
    if (s->last == s->shape.n) {
        if (!s->o.lazy) BUG("no plan for %lld x %lld", (long long)c->B, (long long)c->T);
        RT_TRY(ready(s, c->B, c->T, &p, err));
        add_shape(s, p);
    }
    const struct shape *x = &s->shape.p[s->last];
    put(x->tokens, c->tokens), put(x->past, c->past);
    put(x->pages, c->pages), put(x->states, c->states);
    plan_run(x->plan);
    return session_status(s->o.session, err);
}

static const float *logits(const struct lm *m)
{
    const struct served *s = (const struct served *)(const void *)m;
    return s->shape.p[s->last].logits->p;
}

static const float *depth(const struct lm *m, size_t i)
{
    const struct served *s = (const struct served *)(const void *)m;
    CHECK(i < m->about.num_sites);
    return s->shape.p[s->last].site[i]->p;
}

/* Page or state i of a cache, as a value of its own. */
static struct plan_value part(const struct cache *c, int32_t i)
{
    struct plan_value v = *c->value;
    uint64_t offset = (uint64_t)i * c->bytes;
    v.p = (char *)v.p + offset;
    v.device += offset;
    v.bytes = c->bytes;
    return v;
}

static enum rt_status copy_state(struct lm *m, int32_t from, int32_t to, struct rt_error *err)
{
    struct served *s = served(m);
    for (size_t i = 0; i < s->num_state && from != to; i++) {
        const struct plan_value a = part(&s->state[i], from), b = part(&s->state[i], to);
        const struct session_span x = {a.p, a.device, a.bytes / sizeof(float)};
        const struct session_span y = {b.p, b.device, b.bytes / sizeof(float)};
        session_combine(s->o.session, y, x, x, COMBINE_copy);
    }
    return session_status(s->o.session, err);
}

static enum rt_status save(struct served *s, const struct cache *c, size_t n, int32_t i, char *to,
                           struct rt_error *err)
{
    for (size_t k = 0; k < n; k++, to += c[k - 1].bytes) {
        const struct plan_value v = part(&c[k], i);
        RT_TRY(session_pull(s->o.session, &v, err));
        memcpy(to, v.p, v.bytes);
    }
    return RT_ok;
}

static enum rt_status load(struct served *s, const struct cache *c, size_t n, int32_t i,
                           const char *from, struct rt_error *err)
{
    for (size_t k = 0; k < n; k++, from += c[k - 1].bytes) {
        const struct plan_value v = part(&c[k], i);
        memcpy(v.p, from, v.bytes);
        RT_TRY(session_push(s->o.session, &v, err));
    }
    return RT_ok;
}

static enum rt_status save_page(struct lm *m, int32_t page, void *to, struct rt_error *err)
{
    return save(served(m), served(m)->page, served(m)->num_page, page, to, err);
}

static enum rt_status load_page(struct lm *m, int32_t page, const void *from, struct rt_error *err)
{
    return load(served(m), served(m)->page, served(m)->num_page, page, from, err);
}

static enum rt_status save_state(struct lm *m, int32_t state, void *to, struct rt_error *err)
{
    return save(served(m), served(m)->state, served(m)->num_state, state, to, err);
}

static enum rt_status load_state(struct lm *m, int32_t state, const void *from,
                                 struct rt_error *err)
{
    return load(served(m), served(m)->state, served(m)->num_state, state, from, err);
}

static void close(struct lm *m)
{
    (void)m; /* all of it is the arena's and the session's */
}

static const struct lm_ops device_ops = {.run = run,
                                         .logits = logits,
                                         .depth = depth,
                                         .copy_state = copy_state,
                                         .save_page = save_page,
                                         .load_page = load_page,
                                         .save_state = save_state,
                                         .load_state = load_state,
                                         .close = close};

/* ---- both ---- */

enum rt_status served_open(struct arena *a, const struct served_options *o, struct lm **out,
                           struct rt_error *err)
{
    struct served *s = NEW(a, struct served, 1);
    *out = NULL;
    *s = (struct served){.lm = {.ops = &device_ops}, .a = a, .o = *o};
    s->parts = (struct lm_parts){.context = o->build.context,
                                 .pages = o->build.pages,
                                 .states = o->build.states,
                                 .batch = o->batch};
    program_plan(o->program, 1, 1);
    if (!o->lazy) make_plans(s);
    RT_TRY(session_compile(o->session, NULL, err));
    if (!session_device(o->session)) return open_planned(s, out, err);
    size_t n;
    struct plan *const *p = program_plans(o->program, &n);
    for (size_t i = 0; i < n; i++) add_shape(s, p[i]);
    *out = &s->lm;
    return RT_ok;
}
