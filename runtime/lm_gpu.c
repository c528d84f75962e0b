#include "runtime/lm_gpu.h"
#include "base/map.h"
#include "base/vec.h"
#include "runtime/gpu_exec.h"
#include <stdlib.h>

struct place { /* a value in the mirror; bytes 0: there is none */
    uint64_t offset;
    size_t bytes;
};
struct span {
    uint64_t from, to;
};
struct spans { /* what is copied at once */
    struct span *p;
    size_t n;
};
struct shape {
    int64_t B, T;
    struct place tokens, past, pages, states, logits, *site;
    struct spans in, out;
    struct gpu_exec *x;
    struct gpu_recording *recording; /* copies and launches, from the second run on */
    bool ran;
};
struct cache {
    struct sa_buf at;
    uint64_t bytes; /* of a page or state */
};
struct on_gpu {
    struct lm lm; /* first */
    struct arena *a;
    struct lm_gpu_parts parts;
    struct gpu *gpu;
    cu_ptr arena[SA_external];
    uint64_t arena_bytes[SA_external];
    VEC(struct CUmod_st *) module;
    VEC(struct CUfunc_st *) fn;
    struct map fn_of; /* symbol: index + 1 into fn */
    VEC(struct shape) shape;
    size_t last; /* of the last run */
    struct cache *page, *state;
    size_t num_page, num_state;
    char *mirror; /* of SA_slot, pinned */
    char *moved;  /* a page or state on its way, pinned */
};

static struct on_gpu *on_gpu(const struct lm *m)
{
    return (struct on_gpu *)(uintptr_t)m;
}

const struct gpu_about *lm_gpu_about(const struct lm *m)
{
    return gpu_about(on_gpu(m)->gpu);
}

static const float *in_mirror(const struct on_gpu *m, struct place p)
{
    return (const float *)(const void *)(m->mirror + p.offset);
}

static const float *logits(const struct lm *lm)
{
    const struct on_gpu *m = on_gpu(lm);
    return in_mirror(m, m->shape.p[m->last].logits);
}

static const float *depth(const struct lm *lm, size_t i)
{
    const struct on_gpu *m = on_gpu(lm);
    CHECK(i < lm->about.num_sites);
    return in_mirror(m, m->shape.p[m->last].site[i]);
}

static cu_ptr address(const void *arg, struct sa_buf b)
{
    const struct on_gpu *m = arg;
    CHECK(b.arena < SA_external && m->arena[b.arena]);
    return m->arena[b.arena] + b.offset;
}

enum rt_status lm_gpu_write(struct lm *lm, uint64_t at, const void *from, size_t n,
                            struct rt_error *err)
{
    struct on_gpu *m = on_gpu(lm);
    CHECK(at + n <= m->arena_bytes[SA_weights]);
    RT_TRY(gpu_use(m->gpu, err));
    return gpu_put(m->gpu, m->arena[SA_weights] + at, from, n, err);
}

/* ---- pages and states ---- */

static cu_ptr part(const struct on_gpu *m, const struct cache *c, int32_t i)
{
    return address(m, c->at) + (uint64_t)i * c->bytes;
}

/* All parts through pinned memory, for one wait. */
static enum rt_status save(struct on_gpu *m, const struct cache *c, size_t n, int32_t i, void *to,
                           struct rt_error *err)
{
    char *p = m->moved;
    RT_TRY(gpu_use(m->gpu, err));
    for (size_t k = 0; k < n; p += c[k++].bytes)
        RT_TRY(gpu_get(m->gpu, p, part(m, &c[k], i), c[k].bytes, err));
    RT_TRY(gpu_wait(m->gpu, err));
    memcpy(to, m->moved, (size_t)(p - m->moved));
    return RT_ok;
}

static enum rt_status load(struct on_gpu *m, const struct cache *c, size_t n, int32_t i,
                           const char *from, struct rt_error *err)
{
    char *p = m->moved;
    RT_TRY(gpu_use(m->gpu, err));
    for (size_t k = 0; k < n; p += c[k].bytes, from += c[k++].bytes) {
        memcpy(p, from, c[k].bytes);
        RT_TRY(gpu_put(m->gpu, part(m, &c[k], i), p, c[k].bytes, err));
    }
    return gpu_wait(m->gpu, err); /* for the next use of that memory */
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

/* On the device, in the order of calls: nobody waits. */
static enum rt_status copy_state(struct lm *lm, int32_t from, int32_t to, struct rt_error *err)
{
    struct on_gpu *m = on_gpu(lm);
    int64_t n = lm->about.states;
    CHECK(from >= 0 && from < n && to >= 0 && to < n);
    RT_TRY(gpu_use(m->gpu, err));
    for (size_t k = 0; k < m->num_state && from != to; k++) {
        const struct cache *c = &m->state[k];
        RT_TRY(gpu_copy(m->gpu, part(m, c, to), part(m, c, from), c->bytes, err));
    }
    return RT_ok;
}

/* ---- running ---- */

/* All of a call but the wait. */
static enum rt_status submit(struct on_gpu *m, const struct shape *s, struct rt_error *err)
{
    for (size_t i = 0; i < s->in.n; i++) {
        struct span x = s->in.p[i];
        RT_TRY(gpu_put(m->gpu, m->arena[SA_slot] + x.from, m->mirror + x.from, x.to - x.from, err));
    }
    RT_TRY(gpu_exec_run(s->x, err));
    for (size_t i = 0; i < s->out.n; i++) {
        struct span x = s->out.p[i];
        RT_TRY(gpu_get(m->gpu, m->mirror + x.from, m->arena[SA_slot] + x.from, x.to - x.from, err));
    }
    return RT_ok;
}

static enum rt_status launch(struct on_gpu *m, struct shape *s, struct rt_error *err)
{
    if (!s->ran || gpu_exec_profiling(s->x)) {
        s->ran = true;
        return submit(m, s, err);
    }
    if (!s->recording) {
        RT_TRY(gpu_record_begin(m->gpu, err));
        enum rt_status st = submit(m, s, err);
        enum rt_status end = gpu_record_end(m->gpu, &s->recording, st ? NULL : err);
        if (st) return st;
        RT_TRY(end);
    }
    return gpu_replay(m->gpu, s->recording, err);
}

static struct shape *shape_of(const struct on_gpu *m, int64_t B, int64_t T)
{
    for (size_t i = 0; i < m->shape.n; i++)
        if (m->shape.p[i].B == B && m->shape.p[i].T == T) return &m->shape.p[i];
    return NULL;
}

static enum rt_status add_more(struct on_gpu *m, int64_t B, int64_t T, struct rt_error *err);

static void set(const struct on_gpu *m, struct place p, const int32_t *from)
{
    if (p.bytes) memcpy(m->mirror + p.offset, from, p.bytes);
}

static enum rt_status run(struct lm *lm, const struct lm_call *c, struct rt_error *err)
{
    struct on_gpu *m = on_gpu(lm);
    lm_call_check(&lm->about, c);
    RT_TRY(gpu_use(m->gpu, err));
    if (!shape_of(m, c->B, c->T)) RT_TRY(add_more(m, c->B, c->T, err));
    struct shape *s = shape_of(m, c->B, c->T);
    m->last = (size_t)(s - m->shape.p);
    set(m, s->tokens, c->tokens), set(m, s->past, c->past);
    set(m, s->pages, c->pages), set(m, s->states, c->states);
    RT_TRY(launch(m, s, err));
    return gpu_wait(m->gpu, err);
}

enum rt_status lm_gpu_profile(struct lm *lm, int64_t B, int64_t T, bool on, struct rt_error *err)
{
    struct on_gpu *m = on_gpu(lm);
    RT_TRY(gpu_use(m->gpu, err));
    const struct shape *s = shape_of(m, B, T);
    CHECK(s);
    return gpu_exec_profile(s->x, on, err);
}

const struct exec_tally *lm_gpu_tally(const struct lm *m, int64_t B, int64_t T)
{
    return gpu_exec_tally(shape_of(on_gpu(m), B, T)->x);
}

double lm_gpu_event_seconds(const struct lm *m, int64_t B, int64_t T)
{
    return gpu_exec_event_seconds(shape_of(on_gpu(m), B, T)->x);
}

static void close(struct lm *lm)
{
    struct on_gpu *m = on_gpu(lm);
    struct gpu *g = m->gpu;
    (void)!gpu_use(g, NULL);
    for (size_t i = 0; i < m->shape.n; i++) {
        gpu_recording_close(g, m->shape.p[i].recording);
        gpu_exec_close(m->shape.p[i].x);
    }
    for (size_t i = 0; i < m->module.n; i++) gpu_unload(g, m->module.p[i]);
    for (int i = 0; i < SA_external; i++) gpu_free(g, m->arena[i]);
    gpu_unpin(g, m->mirror);
    gpu_unpin(g, m->moved);
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

/* ---- memory ---- */

/* Room for one more plan. What moves makes all recordings void; weights and caches never do. */
static enum rt_status get_memory(struct on_gpu *m, const struct sa_plan *p, struct rt_error *err)
{
    static const struct {
        const char *what, *less;
    } text[SA_external] = {
        [SA_persistent] = {"caches", "a smaller serve.cache_tokens, serve.max_sequences or "
                                     "serve.max_context"},
        [SA_slot] = {"inputs and outputs", "a smaller serve.max_sequences"},
        [SA_scratch] = {"activations", "a smaller serve.max_sequences"},
        [SA_weights] = {"weights", "--dtype bf16, where they are float32"}};
    bool moved = false;
    for (int i = 0; i < SA_external; i++) {
        bool constant = i == SA_persistent || i == SA_weights;
        if (p->arena_bytes[i] <= m->arena_bytes[i]) continue;
        CHECK(!constant || !m->arena[i]);
        gpu_free(m->gpu, m->arena[i]);
        m->arena[i] = 0;
        RT_TRY(gpu_alloc_for(m->gpu, p->arena_bytes[i], text[i].what, text[i].less, &m->arena[i],
                             err));
        m->arena_bytes[i] = p->arena_bytes[i];
        if (constant) RT_TRY(gpu_zero(m->gpu, m->arena[i], m->arena_bytes[i], err));
        if (i == SA_slot) {
            gpu_unpin(m->gpu, m->mirror);
            m->mirror = NULL;
            void *mirror;
            RT_TRY(gpu_pin(m->gpu, m->arena_bytes[i], &mirror, err));
            m->mirror = mirror;
        }
        moved = true;
    }
    for (size_t i = 0; i < m->shape.n && moved; i++) {
        struct shape *s = &m->shape.p[i];
        gpu_recording_close(m->gpu, s->recording);
        s->recording = NULL;
        gpu_exec_place(s->x, address, m);
    }
    return RT_ok;
}

static enum rt_status put_weights(struct on_gpu *m, struct rt_error *err)
{
    if (!m->parts.weights) return RT_ok;
    return lm_gpu_write(&m->lm, 0, m->parts.weights, m->arena_bytes[SA_weights], err);
}

/* ---- kernels ---- */

static enum rt_status load_images(struct on_gpu *m, const struct str *image, size_t n,
                                  struct rt_error *err)
{
    for (size_t i = 0; i < n; i++) {
        struct CUmod_st *module;
        RT_TRY(gpu_load(m->gpu, image[i].p, &module, err));
        vec_push(m->a, &m->module, module);
    }
    return RT_ok;
}

/* The kernel of that name, from whichever cubin has it. */
static enum rt_status find_kernel(struct on_gpu *m, const char *symbol, struct CUfunc_st **fn,
                                  struct rt_error *err)
{
    uint32_t *at = map_str(&m->fn_of, str_of(symbol));
    if (*at) {
        *fn = m->fn.p[*at - 1];
        return RT_ok;
    }
    enum rt_status st = RT_machine;
    for (size_t i = m->module.n; i-- > 0 && st;)
        st = gpu_function(m->gpu, m->module.p[i], symbol, fn, err);
    if (!m->module.n) return rt_fail(err, RT_user, "there are no kernels");
    RT_TRY(st);
    vec_push(m->a, &m->fn, *fn);
    *at = (uint32_t)m->fn.n;
    return RT_ok;
}

static enum rt_status find_kernels(struct on_gpu *m, const struct sa_plan *p, struct CUfunc_st **fn,
                                   struct rt_error *err)
{
    bool *used = NEW(m->a, bool, p->num_kernels);
    for (uint32_t i = 0; i < p->num_steps; i++)
        if (p->steps[i].kernel != SA_PRODUCT) used[p->steps[i].kernel] = true;
    for (uint32_t i = 0; i < p->num_kernels; i++)
        if (used[i]) RT_TRY(find_kernel(m, p->kernels[i].symbol, &fn[i], err));
    return RT_ok;
}

/* ---- shapes ---- */

static struct place place_of(const struct sa_plan *p, uint32_t i)
{
    if (i == UINT32_MAX) return (struct place){0};
    const struct sa_value *v = &p->values[i];
    CHECK(v->at.arena == SA_slot);
    return (struct place){v->at.offset, sa_value_bytes(v)};
}

static int by_offset(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    return (x->from > y->from) - (x->from < y->from);
}

/* Places as few copies: what lies close is copied with what is between, which nobody minds, as
 * results are written after the inputs have come, and inputs stay what they are. */
static struct spans spans_of(struct arena *a, const struct place *p, size_t n)
{
    enum { CLOSE = 4096 };
    struct spans s = {NEW(a, struct span, n + 1), 0};
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        if (p[i].bytes) s.p[k++] = (struct span){p[i].offset, p[i].offset + p[i].bytes};
    qsort(s.p, k, sizeof *s.p, by_offset);
    for (size_t i = 0; i < k; i++) {
        if (s.n && s.p[i].from <= s.p[s.n - 1].to + CLOSE)
            s.p[s.n - 1].to = s.p[i].to;
        else
            s.p[s.n++] = s.p[i];
    }
    return s;
}

static void find_places(struct on_gpu *m, struct shape *s, const struct sa_plan *p,
                        const struct lm_values *v)
{
    s->tokens = place_of(p, v->tokens), s->past = place_of(p, v->past);
    s->pages = place_of(p, v->pages), s->states = place_of(p, v->states);
    struct place *out = s->site = NEW(m->a, struct place, v->num_sites + 1);
    for (size_t i = 0; i < v->num_sites; i++) out[i] = place_of(p, v->site[i]);
    out[v->num_sites] = s->logits = place_of(p, v->logits);
    const struct place in[] = {s->tokens, s->past, s->pages, s->states};
    s->in = spans_of(m->a, in, sizeof in / sizeof *in);
    s->out = spans_of(m->a, out, v->num_sites + 1);
}

static enum rt_status find_caches(struct on_gpu *m, const struct sa_plan *p,
                                  const struct lm_values *v, struct rt_error *err)
{
    void *moved;
    m->page = NEW(m->a, struct cache, v->num_caches + 1);
    m->state = NEW(m->a, struct cache, v->num_caches + 1);
    for (size_t i = 0; i < v->num_caches; i++)
        *(v->cache[i].paged ? &m->page[m->num_page++] : &m->state[m->num_state++]) =
            (struct cache){p->values[v->cache[i].value].at, v->cache[i].bytes};
    uint64_t page = m->lm.about.page_bytes, state = m->lm.about.state_bytes;
    RT_TRY(gpu_pin(m->gpu, page > state ? page : state, &moved, err));
    m->moved = moved;
    return RT_ok;
}

static enum rt_status add(struct on_gpu *m, const struct lm_plan *p, struct rt_error *err)
{
    const struct sa_plan *sa = p->plan;
    const struct lm_values v = lm_values_of(m->a, &m->parts.parts, p);
    struct CUfunc_st **fn = NEW(m->a, struct CUfunc_st *, sa->num_kernels);
    struct shape s = {.B = p->B, .T = p->T};
    RT_TRY(get_memory(m, sa, err));
    RT_TRY(find_kernels(m, sa, fn, err));
    if (!m->shape.n) {
        m->lm.about = lm_about_of(m->a, &m->parts.parts, p, &v);
        RT_TRY(find_caches(m, sa, &v, err));
    }
    CHECK(v.num_sites == m->lm.about.num_sites);
    RT_TRY(gpu_exec_open(m->gpu, sa, fn, &s.x, err));
    gpu_exec_place(s.x, address, m);
    find_places(m, &s, sa, &v);
    if (p->B > m->lm.about.batch) m->lm.about.batch = p->B;
    vec_push(m->a, &m->shape, s);
    return RT_ok;
}

static enum rt_status add_more(struct on_gpu *m, int64_t B, int64_t T, struct rt_error *err)
{
    struct lm_gpu_more x;
    if (!m->parts.more) BUG("no plan for %lld x %lld", (long long)B, (long long)T);
    RT_TRY(m->parts.more(m->parts.arg, B, T, &x, err));
    RT_TRY(load_images(m, x.image, x.num_images, err));
    return add(m, &x.plan, err);
}

static enum rt_status open_all(struct on_gpu *m, struct rt_error *err)
{
    const struct lm_parts *p = &m->parts.parts;
    struct sa_plan most = {0}; /* memory for all plans at once: none moves */
    for (size_t k = 0; k < p->num_plans; k++)
        for (int i = 0; i < SA_external; i++)
            if (p->plan[k].plan->arena_bytes[i] > most.arena_bytes[i])
                most.arena_bytes[i] = p->plan[k].plan->arena_bytes[i];
    RT_TRY(gpu_use(m->gpu, err));
    RT_TRY(get_memory(m, &most, err));
    RT_TRY(put_weights(m, err));
    RT_TRY(load_images(m, m->parts.image, m->parts.num_images, err));
    for (size_t i = 0; i < p->num_plans; i++) RT_TRY(add(m, &p->plan[i], err));
    return gpu_wait(m->gpu, err);
}

enum rt_status lm_gpu_open(struct gpu *g, const struct lm_gpu_parts *parts, struct lm **out,
                           struct rt_error *err)
{
    struct arena *a = arena_open("lm");
    struct on_gpu *m = NEW(a, struct on_gpu, 1);
    *out = NULL;
    *m = (struct on_gpu){.lm = {.ops = &ops}, .a = a, .parts = *parts, .gpu = g};
    map_init(&m->fn_of, a);
    enum rt_status st = open_all(m, err);
    if (st)
        close(&m->lm);
    else
        *out = &m->lm;
    return st;
}
