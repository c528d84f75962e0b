#include "runtime/lm_gpu.h"
#include "base/vec.h"
#include "runtime/gpu_exec.h"
#include <stdlib.h>

struct place { /* a value on the device; bytes 0: there is none */
    cu_ptr at;
    size_t bytes;
};
struct shape {
    const struct sa_plan *plan;
    int64_t B, T;
    struct place tokens, past, pages, states, logits, *site;
    struct gpu_exec *x;
    struct gpu_recording *recording; /* of all launches, from the second run on */
    bool ran;
};
struct cache {
    cu_ptr at;
    uint64_t bytes; /* of a page or state */
};
struct on_gpu {
    struct lm lm; /* first */
    struct arena *a;
    struct lm_parts parts;
    struct gpu *gpu;
    cu_ptr arena[SA_external];
    uint64_t arena_bytes[SA_external];
    VEC(struct CUmod_st *) module;
    struct shape *shape;
    size_t num_shapes, last;
    struct cache *page, *state;
    size_t num_page, num_state;
    float *logits, **site; /* of the last run, pinned */
    void *moved;           /* a state on its way to another, pinned */
};

static struct on_gpu *on_gpu(const struct lm *m)
{
    return (struct on_gpu *)(uintptr_t)m;
}

const struct gpu_about *lm_gpu_about(const struct lm *m)
{
    return gpu_about(on_gpu(m)->gpu);
}

static const float *logits(const struct lm *m)
{
    return on_gpu(m)->logits;
}

static const float *depth(const struct lm *m, size_t i)
{
    CHECK(i < m->about.num_sites);
    return on_gpu(m)->site[i];
}

/* ---- pages and states ---- */

static enum rt_status save(struct on_gpu *m, const struct cache *c, size_t n, int32_t i, char *to,
                           struct rt_error *err)
{
    RT_TRY(gpu_use(m->gpu, err));
    for (size_t k = 0; k < n; k++, to += c[k - 1].bytes)
        RT_TRY(gpu_get(m->gpu, to, c[k].at + (uint64_t)i * c[k].bytes, c[k].bytes, err));
    return gpu_wait(m->gpu, err);
}

static enum rt_status load(struct on_gpu *m, const struct cache *c, size_t n, int32_t i,
                           const char *from, struct rt_error *err)
{
    RT_TRY(gpu_use(m->gpu, err));
    for (size_t k = 0; k < n; k++, from += c[k - 1].bytes)
        RT_TRY(gpu_put(m->gpu, c[k].at + (uint64_t)i * c[k].bytes, from, c[k].bytes, err));
    return gpu_wait(m->gpu, err);
}

static enum rt_status save_page(struct lm *lm, int32_t page, void *to, struct rt_error *err)
{
    CHECK(page >= 0 && page < lm->about.pages);
    return save(on_gpu(lm), on_gpu(lm)->page, on_gpu(lm)->num_page, page, to, err);
}

static enum rt_status load_page(struct lm *lm, int32_t page, const void *from, struct rt_error *err)
{
    CHECK(page >= 0 && page < lm->about.pages);
    return load(on_gpu(lm), on_gpu(lm)->page, on_gpu(lm)->num_page, page, from, err);
}

static enum rt_status save_state(struct lm *lm, int32_t state, void *to, struct rt_error *err)
{
    CHECK(state >= 0 && state < lm->about.states);
    return save(on_gpu(lm), on_gpu(lm)->state, on_gpu(lm)->num_state, state, to, err);
}

static enum rt_status load_state(struct lm *lm, int32_t state, const void *from,
                                 struct rt_error *err)
{
    CHECK(state >= 0 && state < lm->about.states);
    return load(on_gpu(lm), on_gpu(lm)->state, on_gpu(lm)->num_state, state, from, err);
}

static enum rt_status copy_state(struct lm *lm, int32_t from, int32_t to, struct rt_error *err)
{
    if (from == to) return RT_ok;
    RT_TRY(save_state(lm, from, on_gpu(lm)->moved, err));
    return load_state(lm, to, on_gpu(lm)->moved, err);
}

/* ---- running ---- */

/* The first run loads what the driver needs, so that only the second is recorded. */
static enum rt_status launch(struct on_gpu *m, struct shape *s, struct rt_error *err)
{
    if (!s->ran) {
        s->ran = true;
        return gpu_exec_run(s->x, err);
    }
    if (!s->recording) {
        RT_TRY(gpu_record_begin(m->gpu, err));
        enum rt_status st = gpu_exec_run(s->x, err);
        enum rt_status end = gpu_record_end(m->gpu, &s->recording, st ? NULL : err);
        if (st) return st;
        RT_TRY(end);
    }
    return gpu_replay(m->gpu, s->recording, err);
}

static enum rt_status run(struct lm *lm, const struct lm_call *c, struct rt_error *err)
{
    struct on_gpu *m = on_gpu(lm);
    struct gpu *g = m->gpu;
    lm_call_check(&lm->about, c);
    for (m->last = 0; m->last < m->num_shapes; m->last++)
        if (m->shape[m->last].B == c->B && m->shape[m->last].T == c->T) break;
    if (m->last == m->num_shapes) BUG("no plan for %lld x %lld", (long long)c->B, (long long)c->T);
    struct shape *s = &m->shape[m->last];
    RT_TRY(gpu_use(g, err));
    RT_TRY(gpu_put(g, s->tokens.at, c->tokens, s->tokens.bytes, err));
    RT_TRY(gpu_put(g, s->past.at, c->past, s->past.bytes, err));
    RT_TRY(gpu_put(g, s->pages.at, c->pages, s->pages.bytes, err));
    RT_TRY(gpu_put(g, s->states.at, c->states, s->states.bytes, err));
    RT_TRY(launch(m, s, err));
    RT_TRY(gpu_get(g, m->logits, s->logits.at, s->logits.bytes, err));
    for (size_t i = 0; i < lm->about.num_sites; i++)
        RT_TRY(gpu_get(g, m->site[i], s->site[i].at, s->site[i].bytes, err));
    return gpu_wait(g, err);
}

static void close(struct lm *lm)
{
    struct on_gpu *m = on_gpu(lm);
    struct gpu *g = m->gpu;
    if (g) (void)!gpu_use(g, NULL);
    for (size_t i = 0; i < m->num_shapes; i++) {
        gpu_recording_close(g, m->shape[i].recording);
        gpu_exec_close(m->shape[i].x);
    }
    for (size_t i = 0; i < m->module.n; i++) gpu_unload(g, m->module.p[i]);
    for (int i = 0; i < SA_external; i++)
        if (m->arena[i]) gpu_free(g, m->arena[i]);
    if (m->logits) gpu_unpin(g, m->logits);
    if (m->moved) gpu_unpin(g, m->moved);
    for (size_t i = 0; m->site && i < lm->about.num_sites; i++) gpu_unpin(g, m->site[i]);
    gpu_close(g);
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

/* ---- opening ---- */

static cu_ptr address(const void *arg, struct sa_buf b)
{
    const struct on_gpu *m = arg;
    CHECK(b.arena < SA_external && m->arena[b.arena]);
    return m->arena[b.arena] + b.offset;
}

static size_t bytes_of(const struct sa_value *v)
{
    static const size_t size[SA_DTYPES] = {[SA_f32] = 4, [SA_bf16] = 2, [SA_i32] = 4, [SA_i64] = 8,
                                           [SA_u8] = 1,  [SA_u16] = 2,  [SA_f64] = 8};
    size_t n = size[v->dtype];
    for (uint32_t i = 0; i < v->rank; i++) n *= (size_t)v->dims[i];
    return n;
}

static struct place place_of(const struct on_gpu *m, const struct sa_plan *p, uint32_t i)
{
    if (i == UINT32_MAX) return (struct place){0, 0};
    return (struct place){address(m, p->values[i].at), bytes_of(&p->values[i])};
}

/* One stretch of memory for each arena, as large as the largest plan wants it. */
static enum rt_status get_memory(struct on_gpu *m, struct rt_error *err)
{
    static const char *const what[SA_external] = {[SA_persistent] = "parameters and caches",
                                                  [SA_slot] = "inputs and outputs",
                                                  [SA_scratch] = "activations",
                                                  [SA_weights] = "weights"};
    for (int i = 0; i < SA_external; i++) {
        for (size_t k = 0; k < m->parts.num_plans; k++)
            if (m->parts.plan[k].plan->arena_bytes[i] > m->arena_bytes[i])
                m->arena_bytes[i] = m->parts.plan[k].plan->arena_bytes[i];
        if (m->arena_bytes[i])
            RT_TRY(gpu_alloc(m->gpu, m->arena_bytes[i], what[i], &m->arena[i], err));
    }
    return RT_ok;
}

static enum rt_status put_values(struct on_gpu *m, const struct lm_gpu_parts *parts,
                                 struct rt_error *err)
{
    const struct sa_plan *p = m->parts.plan[0].plan;
    for (uint32_t i = 0; i < p->num_values; i++)
        for (size_t k = 0; k < parts->num_values; k++) {
            const struct sa_value *v = &p->values[i];
            if (strcmp(v->name, parts->value[k].name)) continue;
            RT_TRY(gpu_put(m->gpu, address(m, v->at), parts->value[k].p, bytes_of(v), err));
        }
    return gpu_wait(m->gpu, err);
}

/* The kernel of that name, from whichever cubin has it. */
static enum rt_status find_kernel(struct on_gpu *m, const char *symbol, struct CUfunc_st **fn,
                                  struct rt_error *err)
{
    enum rt_status st = RT_machine;
    for (size_t i = 0; i < m->module.n && st; i++)
        st = gpu_function(m->gpu, m->module.p[i], symbol, fn, err);
    return m->module.n ? st : rt_fail(err, RT_user, "there are no kernels");
}

static void find_caches(struct on_gpu *m, const struct sa_plan *p, const struct lm_values *v)
{
    m->page = NEW(m->a, struct cache, v->num_caches + 1);
    m->state = NEW(m->a, struct cache, v->num_caches + 1);
    for (size_t i = 0; i < v->num_caches; i++)
        *(v->cache[i].paged ? &m->page[m->num_page++] : &m->state[m->num_state++]) =
            (struct cache){place_of(m, p, v->cache[i].value).at, v->cache[i].bytes};
}

static enum rt_status add(struct on_gpu *m, const struct lm_plan *p, struct rt_error *err)
{
    const struct sa_plan *sa = p->plan;
    struct shape *s = &m->shape[m->num_shapes];
    const struct lm_values v = lm_values_of(m->a, &m->parts, p);
    struct CUfunc_st **fn = NEW(m->a, struct CUfunc_st *, sa->num_kernels);
    bool *used = NEW(m->a, bool, sa->num_kernels);
    for (uint32_t i = 0; i < sa->num_steps; i++)
        if (sa->steps[i].kernel != SA_PRODUCT) used[sa->steps[i].kernel] = true;
    for (uint32_t i = 0; i < sa->num_kernels; i++)
        if (used[i]) RT_TRY(find_kernel(m, sa->kernels[i].symbol, &fn[i], err));
    RT_TRY(gpu_exec_open(m->gpu, sa, fn, &s->x, err));
    gpu_exec_place(s->x, address, m);
    s->plan = sa, s->B = p->B, s->T = p->T;
    s->tokens = place_of(m, sa, v.tokens), s->past = place_of(m, sa, v.past);
    s->pages = place_of(m, sa, v.pages), s->states = place_of(m, sa, v.states);
    s->logits = place_of(m, sa, v.logits);
    s->site = NEW(m->a, struct place, v.num_sites + 1);
    for (size_t i = 0; i < v.num_sites; i++) s->site[i] = place_of(m, sa, v.site[i]);
    if (!m->num_shapes) {
        find_caches(m, sa, &v);
        m->lm.about = lm_about_of(m->a, &m->parts, p, &v);
    }
    CHECK(v.num_sites == m->lm.about.num_sites);
    if (p->B > m->lm.about.batch) m->lm.about.batch = p->B;
    m->num_shapes++;
    return RT_ok;
}

/* Memory of the host for what a run gives. */
static enum rt_status get_mirrors(struct on_gpu *m, struct rt_error *err)
{
    size_t n = m->lm.about.num_sites, most = 0;
    void *p;
    for (size_t k = 0; k < m->num_shapes; k++)
        if (m->shape[k].logits.bytes > most) most = m->shape[k].logits.bytes;
    RT_TRY(gpu_pin(m->gpu, most, &p, err));
    m->logits = p;
    RT_TRY(gpu_pin(m->gpu, m->lm.about.state_bytes, &m->moved, err));
    m->site = NEW(m->a, float *, n + 1);
    for (size_t i = 0; i < n; i++) {
        most = 0;
        for (size_t k = 0; k < m->num_shapes; k++)
            if (m->shape[k].site[i].bytes > most) most = m->shape[k].site[i].bytes;
        RT_TRY(gpu_pin(m->gpu, most, &p, err));
        m->site[i] = p;
    }
    return RT_ok;
}

static enum rt_status open_all(struct on_gpu *m, int ordinal, const struct lm_gpu_parts *parts,
                               struct rt_error *err)
{
    RT_TRY(gpu_open(ordinal, &m->gpu, err));
    RT_TRY(get_memory(m, err));
    RT_TRY(put_values(m, parts, err));
    for (size_t i = 0; i < parts->num_images; i++) {
        struct CUmod_st *module;
        RT_TRY(gpu_load(m->gpu, parts->image[i].p, &module, err));
        vec_push(m->a, &m->module, module);
    }
    m->shape = NEW(m->a, struct shape, m->parts.num_plans);
    for (size_t i = 0; i < m->parts.num_plans; i++) RT_TRY(add(m, &m->parts.plan[i], err));
    return get_mirrors(m, err);
}

enum rt_status lm_gpu_open(int ordinal, const struct lm_gpu_parts *parts, struct lm **out,
                           struct rt_error *err)
{
    struct arena *a = arena_open("lm");
    struct on_gpu *m = NEW(a, struct on_gpu, 1);
    *out = NULL;
    *m = (struct on_gpu){.lm = {.ops = &ops}, .a = a, .parts = parts->parts};
    enum rt_status st = open_all(m, ordinal, parts, err);
    if (st)
        close(&m->lm);
    else
        *out = &m->lm;
    return st;
}
