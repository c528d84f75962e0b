/* The fake driver: streams, events, capture, launches, copies. All work waits in one queue, in the
 * order in which it was submitted, which keeps every promise of streams and events; waiting for a
 * stream runs the queue up to that stream's last work. A captured graph knows what each piece comes
 * after, and can run in other orders that keep that. */
#include "fake.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST_AFTER = 8 };
struct op {
    struct op *next;
    struct CUstream_st *stream;                 /* that it was submitted to */
    size_t index, after[MOST_AFTER], num_after; /* of a graph: its place, and what it comes after */
    bool done;
    fake_fn *fn;
    size_t bytes;
    max_align_t data[];
};
struct ops {
    struct op *first, **last; /* last: where the next goes; NULL: to first */
    size_t n;
};
struct capture {
    uint64_t id;
    struct capture *next;
    struct CUstream_st *origin;
    struct ops ops;
    unsigned mode;
    bool broken;
};
struct CUstream_st {
    struct CUstream_st *next;
    struct capture *capture;
    bool blocking, unjoined; /* unjoined: has work of a capture that its origin does not wait for */
    size_t after[MOST_AFTER], num_after; /* of a capture: what its next work comes after */
};
struct CUevent_st {
    bool timed, recorded;
    unsigned pending; /* records in the queue */
    uint64_t capture; /* where it was recorded last; 0: in none */
    struct CUstream_st *from;
    size_t at; /* in a capture: the work that it comes after + 1; 0: none */
    double time;
};
struct CUgraph_st {
    struct ops ops;
};
struct CUgraphExec_st {
    struct ops ops;
};

static struct CUstream_st legacy = {.blocking = true}, *streams = &legacy;
static struct capture *captures;
static uint64_t last_capture;
static struct ops queue;

/* ---- the queue ---- */

static void append(struct ops *l, struct op *o)
{
    if (!l->last) l->last = &l->first;
    *l->last = o;
    l->last = &o->next;
    l->n++;
}

static void drop(struct ops *l)
{
    for (struct op *o = l->first, *next; o; o = next) {
        next = o->next;
        free(o);
    }
    *l = (struct ops){0};
}

static struct op *make_op(struct CUstream_st *s, fake_fn *fn, const void *data, size_t bytes)
{
    struct op *o = malloc(sizeof *o + bytes + 1);
    if (!o) abort();
    *o = (struct op){.stream = s, .fn = fn, .bytes = bytes};
    if (bytes) memcpy(o->data, data, bytes);
    return o;
}

static unsigned run_op(struct op *o)
{
    fake_access(true);
    unsigned code = o->fn(o->data);
    fake_access(false);
    return code;
}

/* Runs the queue up to its last piece of work that `wanted` tells; NULL: all. */
static unsigned flush_to(bool (*wanted)(const struct op *, const void *), const void *ctx)
{
    size_t n = wanted ? 0 : queue.n, i = 0;
    for (const struct op *o = queue.first; wanted && o; o = o->next, i++)
        if (wanted(o, ctx)) n = i + 1;
    unsigned code = 0;
    for (; n && !code; n--) {
        struct op *o = queue.first;
        queue.first = o->next;
        if (!queue.first) queue.last = NULL;
        queue.n--;
        code = run_op(o);
        free(o);
    }
    if (code) drop(&queue);
    return code;
}

unsigned fake_flush(void)
{
    return flush_to(NULL, NULL);
}

static bool of_stream(const struct op *o, const void *s)
{
    return o->stream == s;
}

/* What a copy of no stream waits for: a stream made with CU_STREAM_NON_BLOCKING it does not. */
static bool of_blocking(const struct op *o, const void *unused)
{
    (void)unused;
    return o->stream->blocking;
}

/* ---- capture ---- */

bool fake_capturing(const struct CUstream_st *s)
{
    return s && s->capture;
}

unsigned fake_break(struct CUstream_st *s)
{
    if (s && s->capture) s->capture->broken = true;
    return CAPTURE_UNSUPPORTED;
}

unsigned fake_uncaptured(void)
{
    unsigned code = fake_state();
    for (struct capture *c = captures; c && !code; c = c->next)
        if (c->mode != 2) {
            c->broken = true;
            return CAPTURE_UNSUPPORTED;
        }
    return code;
}

static void come_after(struct CUstream_st *s, size_t index)
{
    if (s->num_after == MOST_AFTER) abort();
    s->after[s->num_after++] = index;
}

static void captured(struct CUstream_st *s, struct op *o)
{
    o->index = s->capture->ops.n;
    o->num_after = s->num_after;
    memcpy(o->after, s->after, sizeof o->after);
    append(&s->capture->ops, o);
    s->num_after = 0;
    come_after(s, o->index);
}

static unsigned nothing(void *data)
{
    (void)data;
    return 0;
}

static struct capture *active(uint64_t id)
{
    struct capture *c = captures;
    while (c && c->id != id) c = c->next;
    return c;
}

unsigned fake_submit(struct CUstream_st *s, fake_fn *fn, const void *data, size_t bytes)
{
    unsigned code = fake_state();
    if (code) return code;
    if (!s) s = &legacy;
    for (struct capture *c = captures; c && s == &legacy; c = c->next)
        if (c->origin->blocking) {
            c->broken = true;
            return CAPTURE_IMPLICIT;
        }
    if (s->capture) {
        if (s->capture->broken) return CAPTURE_INVALIDATED;
        s->unjoined = s != s->capture->origin;
        captured(s, make_op(s, fn, data, bytes));
        return 0;
    }
    append(&queue, make_op(s, fn, data, bytes));
    const char *eager = getenv("STRATA_FAKE_EAGER");
    return eager && *eager == '1' ? fake_flush() : 0;
}

unsigned cuStreamBeginCapture_v2(struct CUstream_st *s, unsigned mode)
{
    LOCKED;
    unsigned code = fake_state();
    if (code || !s || s->capture || mode > 2) return code ? code : CAPTURE_UNSUPPORTED;
    struct capture *c = calloc(1, sizeof *c);
    if (!c) abort();
    *c = (struct capture){.id = ++last_capture, .next = captures, .origin = s, .mode = mode};
    captures = s->capture = c;
    s->num_after = 0;
    fake_log(NULL, "begin-capture");
    return 0;
}

unsigned cuStreamEndCapture(struct CUstream_st *s, struct CUgraph_st **graph)
{
    LOCKED;
    *graph = NULL;
    struct capture *c = s ? s->capture : NULL, **at = &captures;
    if (!c || c->origin != s) return CAPTURE_UNMATCHED;
    unsigned code = c->broken ? CAPTURE_INVALIDATED : fake_state();
    for (struct CUstream_st *x = streams; x; x = x->next) {
        if (x->capture != c) continue;
        if (x->unjoined && !code) code = CAPTURE_UNJOINED;
        x->capture = NULL;
        x->unjoined = false;
    }
    while (*at != c) at = &(*at)->next;
    *at = c->next;
    fake_log(NULL, "end-capture %zu nodes: %u", c->ops.n, code);
    if (code)
        drop(&c->ops);
    else {
        *graph = calloc(1, sizeof **graph);
        if (!*graph) abort();
        (*graph)->ops = c->ops;
    }
    free(c);
    return code;
}

unsigned cuGraphInstantiateWithFlags(struct CUgraphExec_st **exec, struct CUgraph_st *graph,
                                     unsigned long long flags)
{
    LOCKED;
    (void)flags;
    *exec = calloc(1, sizeof **exec);
    if (!*exec) abort();
    for (const struct op *o = graph->ops.first; o; o = o->next) {
        struct op *copy = make_op(o->stream, o->fn, o->data, o->bytes);
        copy->index = o->index, copy->num_after = o->num_after;
        memcpy(copy->after, o->after, sizeof o->after);
        append(&(*exec)->ops, copy);
    }
    return fake_state();
}

static bool ready(struct op *const *at, const struct op *o)
{
    for (size_t i = 0; i < o->num_after; i++)
        if (!at[o->after[i]]->done) return false;
    return true;
}

/* The next piece in a strange order: what was submitted last of all that may run, or anything. */
static struct op *pick(struct op *const *at, size_t n, size_t first, unsigned *seed)
{
    struct op *found = NULL;
    enum { WINDOW = 256 }; /* of pieces that are looked at */
    for (size_t i = first, seen = 0; i < n && i < first + WINDOW; i++) {
        if (at[i]->done || !ready(at, at[i])) continue;
        *seed = *seed * 1664525u + 1013904223u;
        if (*seed >> 31 || !seen++) found = at[i];
    }
    return found;
}

static unsigned run_strange(struct ops *l, unsigned seed)
{
    struct op **at = calloc(l->n + 1, sizeof *at);
    size_t first = 0;
    unsigned code = 0;
    if (!at) abort();
    for (struct op *o = l->first; o; o = o->next) at[o->index] = o, o->done = false;
    while (first < l->n && !code) {
        struct op *o = pick(at, l->n, first, &seed);
        code = o->fn(o->data);
        o->done = true;
        while (first < l->n && at[first]->done) first++;
    }
    free(at);
    return code;
}

static unsigned run_graph(void *data)
{
    struct CUgraphExec_st *exec = *(struct CUgraphExec_st **)data;
    const char *order = getenv("STRATA_FAKE_ORDER");
    unsigned code = 0;
    if (order && *order) return run_strange(&exec->ops, (unsigned)atoi(order));
    for (struct op *o = exec->ops.first; o && !code; o = o->next) code = o->fn(o->data);
    return code;
}

unsigned cuGraphLaunch(struct CUgraphExec_st *exec, struct CUstream_st *s)
{
    LOCKED;
    fake_log(s, "graph-launch %zu nodes", exec->ops.n);
    if (fake_capturing(s)) return fake_break(s);
    return fake_submit(s, run_graph, &exec, sizeof exec);
}

unsigned cuGraphExecDestroy(struct CUgraphExec_st *exec)
{
    LOCKED;
    unsigned code = fake_flush();
    drop(&exec->ops);
    free(exec);
    return code;
}

unsigned cuGraphDestroy(struct CUgraph_st *graph)
{
    LOCKED;
    drop(&graph->ops);
    free(graph);
    return 0;
}

/* ---- streams, events ---- */

unsigned cuStreamCreate(struct CUstream_st **s, unsigned flags)
{
    LOCKED;
    unsigned code = fake_uncaptured();
    if (code || flags > C_CU_STREAM_NON_BLOCKING) return code ? code : INVALID_VALUE;
    *s = calloc(1, sizeof **s);
    if (!*s) abort();
    **s = (struct CUstream_st){.next = streams, .blocking = !flags};
    streams = *s;
    return 0;
}

unsigned cuStreamDestroy_v2(struct CUstream_st *s)
{
    LOCKED;
    struct CUstream_st **at = &streams;
    while (*at && *at != s) at = &(*at)->next;
    if (!*at || s == &legacy) return INVALID_HANDLE;
    if (s->capture) return fake_break(s);
    unsigned code = fake_flush();
    *at = s->next;
    free(s);
    return code;
}

unsigned cuStreamSynchronize(struct CUstream_st *s)
{
    LOCKED;
    unsigned code = fake_state();
    fake_log(s, "sync stream");
    if (code) return code;
    return fake_capturing(s) ? fake_break(s) : flush_to(of_stream, s ? s : &legacy);
}

unsigned cuStreamWaitEvent(struct CUstream_st *s, struct CUevent_st *e, unsigned flags)
{
    LOCKED;
    unsigned code = fake_state();
    struct capture *c = active(e->capture);
    if (code || flags) return code ? code : INVALID_VALUE;
    if (!s) s = &legacy;
    fake_log(s, "wait-event");
    if (!c && s->capture && e->recorded) {
        s->capture->broken = true;
        return CAPTURE_ISOLATION;
    }
    if (!c) return 0;
    if ((s->capture && s->capture != c) || s == &legacy) {
        c->broken = true;
        return CAPTURE_ISOLATION;
    }
    if (!s->capture) {
        s->capture = c;
        s->unjoined = true;
        s->num_after = 0;
    }
    if (e->at) come_after(s, e->at - 1);
    if (e->from != s) e->from->unjoined = false;
    return 0;
}

unsigned cuEventCreate(struct CUevent_st **e, unsigned flags)
{
    LOCKED;
    unsigned code = fake_state();
    *e = calloc(1, sizeof **e);
    if (!*e) abort();
    (*e)->timed = !(flags & C_CU_EVENT_DISABLE_TIMING);
    return code;
}

unsigned cuEventDestroy_v2(struct CUevent_st *e)
{
    LOCKED;
    unsigned code = e->pending ? fake_flush() : 0;
    free(e);
    return code;
}

static unsigned record(void *data)
{
    struct CUevent_st *e = *(struct CUevent_st **)data;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    e->time = (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
    e->pending--;
    return 0;
}

unsigned cuEventRecord(struct CUevent_st *e, struct CUstream_st *s)
{
    LOCKED;
    fake_log(s, "record-event");
    e->recorded = true;
    e->from = s ? s : &legacy;
    e->capture = fake_capturing(s) ? s->capture->id : 0;
    if (e->capture && s->num_after > 1) captured(s, make_op(s, nothing, NULL, 0));
    if (e->capture) e->at = s->num_after ? s->after[0] + 1 : 0;
    if (e->capture) return s->capture->broken ? CAPTURE_INVALIDATED : 0;
    e->pending++;
    return fake_submit(s, record, &e, sizeof e);
}

/* By a replayed graph. */
static unsigned record_inside(void *data)
{
    struct CUevent_st *e = *(struct CUevent_st **)data;
    e->pending++;
    return record(data);
}

unsigned cuEventRecordWithFlags(struct CUevent_st *e, struct CUstream_st *s, unsigned flags)
{
    if (!flags) return cuEventRecord(e, s);
    LOCKED;
    fake_log(s, "record-event inside");
    if (flags != C_CU_EVENT_RECORD_EXTERNAL || !fake_capturing(s)) return INVALID_VALUE;
    e->recorded = true;
    e->from = s;
    e->capture = 0;
    return fake_submit(s, record_inside, &e, sizeof e);
}

static bool of_event(const struct op *o, const void *e)
{
    return o->fn == record && memcmp(o->data, &e, sizeof e) == 0;
}

unsigned cuEventSynchronize(struct CUevent_st *e)
{
    LOCKED;
    unsigned code = fake_state();
    struct capture *c = active(e->capture);
    fake_log(NULL, "sync event");
    if (c) c->broken = true;
    return code ? code : e->capture ? CAPTURED_EVENT : flush_to(of_event, e);
}

unsigned cuEventElapsedTime(float *ms, struct CUevent_st *from, struct CUevent_st *to)
{
    LOCKED;
    unsigned code = fake_state();
    if (!from->timed || !to->timed || !from->recorded || !to->recorded) return INVALID_HANDLE;
    if (from->pending || to->pending) return NOT_READY;
    *ms = (float)(to->time - from->time);
    return code;
}

/* ---- launches ---- */

struct launch {
    const struct CUfunc_st *f;
    struct cu_launch l;
    max_align_t parameters[];
};

static unsigned run_launch(void *data)
{
    const struct launch *x = data;
    if (fake_null()) return 0;
    return fake_run(x->f, &x->l, x->parameters);
}

/* The parameters in CUDA's list of options; NULL where it is wrong. */
static const void *buffer(void **extra, size_t *n)
{
    const void *p = NULL;
    for (; extra && *extra; extra += 2) {
        if ((uintptr_t)extra[0] == 1) p = extra[1];
        if ((uintptr_t)extra[0] == 2) *n = *(const size_t *)extra[1];
    }
    return p;
}

unsigned cuLaunchKernelEx(const struct cu_launch *l, struct CUfunc_st *f, void **arguments,
                          void **extra)
{
    LOCKED;
    size_t n = 0;
    const unsigned *g = l->grid, *b = l->block;
    const void *p = buffer(extra, &n);
    fake_log(l->stream, "launch %s grid %u %u %u threads %u shared %u", f->name, g[0], g[1], g[2],
             b[0], l->shared_bytes);
    if (arguments || l->attributes || (f->bytes && (!p || n != f->bytes)) || n > 32764 || !g[0] ||
        !g[1] || !g[2] || g[0] > INT32_MAX || g[1] > 65535 || g[2] > 65535 || !b[0] || !b[1] ||
        !b[2] || l->shared_bytes > f->most_shared)
        return INVALID_VALUE;
    if ((uint64_t)b[0] * b[1] * b[2] > f->threads) return OUT_OF_RESOURCES;
    struct launch *x = calloc(1, sizeof *x + n);
    if (!x) abort();
    x->f = f, x->l = *l;
    if (n) memcpy(x->parameters, p, n);
    unsigned code = fake_submit(l->stream, run_launch, x, sizeof *x + n);
    free(x);
    return code;
}

/* ---- copies ---- */

struct copy {
    void *to;
    const void *from; /* NULL: what follows */
    size_t n;
    unsigned char value; /* of a fill */
    max_align_t bytes[];
};

static unsigned run_copy(void *data)
{
    const struct copy *c = data;
    bool to_host = !fake_on_device((uintptr_t)c->to, c->n);
    if (!fake_null())
        memmove(c->to, c->from ? c->from : (const void *)c->bytes, c->n);
    else if (to_host)
        memset(c->to, 0, c->n);
    return 0;
}

static unsigned run_fill(void *data)
{
    const struct copy *c = data;
    if (!fake_null()) memset(c->to, c->value, c->n);
    return 0;
}

/* A copy that waits for itself. */
static unsigned copy_now(const char *what, void *to, const void *from, size_t n, bool right)
{
    unsigned code = fake_uncaptured();
    fake_log(NULL, "sync %s %zu bytes", what, n);
    if (code || !right) return code ? code : INVALID_VALUE;
    code = flush_to(of_blocking, NULL);
    fake_access(true);
    if (!code && !fake_null()) memmove(to, from, n);
    fake_access(false);
    return code;
}

unsigned cuMemcpyHtoD_v2(cu_ptr to, const void *from, size_t n)
{
    LOCKED;
    bool right = fake_on_device(to, n) && !fake_on_device((uintptr_t)from, 0);
    return copy_now("htod", (void *)(uintptr_t)to, from, n, right);
}

unsigned cuMemcpyDtoH_v2(void *to, cu_ptr from, size_t n)
{
    LOCKED;
    bool right = fake_on_device(from, n) && !fake_on_device((uintptr_t)to, 0);
    return copy_now("dtoh", to, (const void *)(uintptr_t)from, n, right);
}

unsigned cuMemcpyHtoDAsync_v2(cu_ptr to, const void *from, size_t n, struct CUstream_st *s)
{
    LOCKED;
    bool pinned = fake_pinned(from, n);
    fake_log(s, "htod-async %zu bytes%s", n, pinned ? "" : " pageable");
    if (!fake_on_device(to, n) || fake_on_device((uintptr_t)from, 0)) return INVALID_VALUE;
    if (!pinned && fake_capturing(s)) return fake_break(s);
    size_t bytes = sizeof(struct copy) + (pinned ? 0 : n);
    struct copy *c = calloc(1, bytes);
    if (!c) abort();
    c->to = (void *)(uintptr_t)to, c->n = n;
    if (pinned)
        c->from = from;
    else
        memcpy(c->bytes, from, n);
    unsigned code = fake_submit(s, run_copy, c, bytes);
    free(c);
    return code;
}

unsigned cuMemcpyDtoHAsync_v2(void *to, cu_ptr from, size_t n, struct CUstream_st *s)
{
    LOCKED;
    bool pinned = fake_pinned(to, n);
    fake_log(s, "%sdtoh-async %zu bytes%s", pinned ? "" : "sync ", n, pinned ? "" : " pageable");
    if (!fake_on_device(from, n) || fake_on_device((uintptr_t)to, 0)) return INVALID_VALUE;
    if (!pinned && fake_capturing(s)) return fake_break(s);
    const struct copy c = {to, (const void *)(uintptr_t)from, n, 0};
    unsigned code = fake_submit(s, run_copy, &c, sizeof c);
    return code || pinned ? code : flush_to(of_stream, s ? s : &legacy);
}

unsigned cuMemcpyDtoDAsync_v2(cu_ptr to, cu_ptr from, size_t n, struct CUstream_st *s)
{
    LOCKED;
    fake_log(s, "dtod-async %zu bytes", n);
    if (!fake_on_device(to, n) || !fake_on_device(from, n)) return INVALID_VALUE;
    const struct copy c = {(void *)(uintptr_t)to, (const void *)(uintptr_t)from, n, 0};
    return fake_submit(s, run_copy, &c, sizeof c);
}

unsigned cuMemsetD8Async(cu_ptr to, unsigned char value, size_t n, struct CUstream_st *s)
{
    LOCKED;
    fake_log(s, "memset-async %zu bytes", n);
    if (!fake_on_device(to, n)) return INVALID_VALUE;
    const struct copy c = {(void *)(uintptr_t)to, NULL, n, value};
    return fake_submit(s, run_fill, &c, sizeof c);
}
