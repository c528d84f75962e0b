#include "compiler/script.h"
#include "compiler/session.h"

enum { ALIGN = 64 };

struct input {
    const struct plan_value *value;
    char *at; /* what it will be */
};
struct part {
    struct plan *plan; /* NULL: a combination */
    VEC(struct input) in;
    struct session_span to, a, b;
    enum combine_op op;
};
struct result {
    const struct plan_value *value;
    size_t at; /* in `back` */
};
struct script {
    struct session *s;
    VEC(struct part) part;
    VEC(struct result) result;
    size_t back_bytes;
    /* on a device */
    VEC(void *) pinned;
    char *back; /* results, pinned */
    struct gpu_recording *recording;
    struct CUevent_st *done;
    unsigned generation;
    bool ran;
};

struct script *script_open(struct session *s)
{
    struct script *x = NEW(s->a, struct script, 1);
    x->s = s;
    vec_push(s->a, &s->script, x);
    return x;
}

void script_close(struct script *x)
{
    struct gpu *g = x->s->device.gpu;
    if (!g) return;
    gpu_wait(g, NULL);
    gpu_recording_close(g, x->recording);
    gpu_event_close(g, x->done);
    for (size_t i = 0; i < x->pinned.n; i++) gpu_unpin(g, x->pinned.p[i]);
}

static size_t rounded(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static enum rt_status get_memory(struct script *x, size_t bytes, void **p, struct rt_error *err)
{
    struct session *s = x->s;
    if (!s->device.gpu) {
        *p = arena_alloc(s->a, bytes ? bytes : 1, ALIGN, STRATA_SITE);
        return RT_ok;
    }
    RT_TRY(gpu_pin(s->device.gpu, bytes, p, err));
    vec_push(s->a, &x->pinned, *p);
    return RT_ok;
}

enum rt_status script_run(struct script *x, struct plan *p, size_t *run, struct rt_error *err)
{
    struct arena *a = x->s->a;
    struct part part = {.plan = p};
    size_t n, bytes = 0, at = 0;
    void *memory;
    const struct plan_value *v = plan_values(p, &n);
    for (size_t i = 0; i < n; i++)
        if (p->move[i] & MOVE_in) bytes += rounded(v[i].bytes);
    RT_TRY(get_memory(x, bytes, &memory, err));
    for (size_t i = 0; i < n; i++) {
        if (!(p->move[i] & MOVE_in)) continue;
        vec_push(a, &part.in, ((struct input){&v[i], (char *)memory + at}));
        at += rounded(v[i].bytes);
    }
    *run = x->part.n;
    vec_push(a, &x->part, part);
    return RT_ok;
}

void *script_input(struct script *x, size_t run, const char *name)
{
    CHECK(run < x->part.n && x->part.p[run].plan);
    const struct part *p = &x->part.p[run];
    for (size_t i = 0; i < p->in.n; i++)
        if (!strcmp(p->in.p[i].value->name, name)) return p->in.p[i].at;
    return NULL;
}

void script_combine(struct script *x, struct session_span to, struct session_span a,
                    struct session_span b, enum combine_op op)
{
    struct part part = {.to = to, .a = a, .b = b, .op = op};
    vec_push(x->s->a, &x->part, part);
}

void script_result(struct script *x, const struct plan_value *v)
{
    CHECK(!x->back);
    vec_push(x->s->a, &x->result, ((struct result){v, x->back_bytes}));
    x->back_bytes += rounded(v->bytes);
}

/* ---- on the CPU ---- */

static void run_here(const struct script *x)
{
    for (size_t i = 0; i < x->part.n; i++) {
        const struct part *p = &x->part.p[i];
        for (size_t k = 0; k < p->in.n; k++)
            memcpy(p->in.p[k].value->p, p->in.p[k].at, p->in.p[k].value->bytes);
        if (p->plan)
            plan_run(p->plan);
        else
            session_combine(x->s, p->to, p->a, p->b, p->op);
    }
}

/* ---- on a device ---- */

static enum rt_status enqueue(const struct script *x, struct rt_error *err)
{
    struct gpu *g = x->s->device.gpu;
    for (size_t i = 0; i < x->part.n; i++) {
        const struct part *p = &x->part.p[i];
        for (size_t k = 0; k < p->in.n; k++) {
            const struct plan_value *v = p->in.p[k].value;
            RT_TRY(gpu_put(g, v->device, p->in.p[k].at, v->bytes, err));
        }
        if (p->plan)
            RT_TRY(device_launch(p->plan, err));
        else
            RT_TRY(device_combine(x->s, p->to, p->a, p->b, p->op, err));
    }
    for (size_t i = 0; i < x->result.n; i++) {
        const struct plan_value *v = x->result.p[i].value;
        RT_TRY(gpu_get(g, x->back + x->result.p[i].at, v->device, v->bytes, err));
    }
    return RT_ok;
}

static bool profiling(const struct script *x)
{
    for (size_t i = 0; i < x->part.n; i++)
        if (x->part.p[i].plan && gpu_exec_profiling(x->part.p[i].plan->gpu_exec)) return true;
    return false;
}

static enum rt_status record(struct script *x, struct rt_error *err)
{
    struct gpu *g = x->s->device.gpu;
    RT_TRY(gpu_record_begin(g, err));
    enum rt_status st = enqueue(x, err);
    enum rt_status end = gpu_record_end(g, &x->recording, st ? NULL : err);
    x->generation = x->s->device.generation;
    return st ? st : end;
}

/* The first launch loads what cuBLAS needs, so that only the second is recorded. */
static enum rt_status start(struct script *x, struct rt_error *err)
{
    struct gpu *g = x->s->device.gpu;
    if (!x->done) {
        void *back;
        RT_TRY(get_memory(x, x->back_bytes, &back, err));
        x->back = back;
        RT_TRY(gpu_event_open(g, false, &x->done, err));
    }
    if (!x->ran || profiling(x)) {
        x->ran = true;
        RT_TRY(enqueue(x, err));
    } else {
        if (x->recording && x->generation != x->s->device.generation) {
            gpu_recording_close(g, x->recording);
            x->recording = NULL;
        }
        if (!x->recording) RT_TRY(record(x, err));
        RT_TRY(gpu_replay(g, x->recording, err));
    }
    return gpu_event_record(g, x->done, err);
}

enum rt_status script_launch(struct script *x, struct rt_error *err)
{
    struct device *d = &x->s->device;
    if (!d->gpu) {
        run_here(x);
        return RT_ok;
    }
    if (!d->failed) d->failed = start(x, &d->failure);
    return session_status(x->s, err);
}

enum rt_status script_wait(struct script *x, struct rt_error *err)
{
    struct device *d = &x->s->device;
    if (!d->gpu) return RT_ok;
    if (!d->failed) d->failed = gpu_event_wait(d->gpu, x->done, &d->failure);
    for (size_t i = 0; i < x->result.n && !d->failed; i++) {
        const struct plan_value *v = x->result.p[i].value;
        memcpy(v->p, x->back + x->result.p[i].at, v->bytes);
    }
    return session_status(x->s, err);
}
