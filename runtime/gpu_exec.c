#include "runtime/gpu_exec.h"
#include <stdlib.h>

struct gpu_exec {
    struct gpu *gpu;
    const struct sa_plan *plan;
    struct CUfunc_st **fn;       /* of each kernel */
    uint64_t *parameter;         /* of all steps: addresses, then integers, eight bytes each */
    size_t *first;               /* of each step: where its parameters begin */
    struct CUevent_st **done;    /* [num_steps]: of those that another stream waits for */
    unsigned streams;            /* that the steps use */
    struct CUevent_st **event;   /* [num_steps + 2], NULL until profiling is on */
    struct exec_tally *tally;    /* [num_steps], likewise */
    struct gpu_recording *timed; /* steps and events; NULL before the second profiled run */
    double between;              /* the last two events */
    bool profiling, ran;         /* ran: since profiling began */
};

static void *table(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    CHECK(p);
    return p;
}

static enum rt_status prepare(struct gpu_exec *x, struct rt_error *err)
{
    const struct sa_plan *p = x->plan;
    size_t at = 0;
    bool products = false;
    for (uint32_t i = 0; i < p->num_steps; i++) {
        const struct sa_step *s = &p->steps[i];
        x->first[i] = at;
        at += s->num_bufs + s->num_ints;
        products |= s->kernel == SA_PRODUCT;
        if (s->kernel == SA_PRODUCT) continue;
        CHECK(s->kernel < p->num_kernels && x->fn[s->kernel]);
        RT_TRY(gpu_allow_shared(x->gpu, x->fn[s->kernel], s->label, s->launch.shared, err));
    }
    x->parameter = table(at, sizeof *x->parameter);
    for (uint32_t i = 0; i < p->num_steps; i++) {
        const struct sa_step *s = &p->steps[i];
        if (!s->num_ints) continue;
        memcpy(x->parameter + x->first[i] + s->num_bufs, p->ints + s->first_int,
               s->num_ints * sizeof *p->ints);
    }
    return products ? gpu_open_products(x->gpu, err) : RT_ok;
}

static enum rt_status open_streams(struct gpu_exec *x, struct rt_error *err)
{
    const struct sa_plan *p = x->plan;
    x->streams = 1;
    for (uint32_t i = 0; i < p->num_steps; i++)
        if (p->steps[i].stream >= x->streams) x->streams = p->steps[i].stream + 1;
    for (uint32_t i = 0; i < p->num_waits; i++)
        if (!x->done[p->waits[i]])
            RT_TRY(gpu_event_open(x->gpu, false, &x->done[p->waits[i]], err));
    return gpu_open_streams(x->gpu, x->streams, err);
}

enum rt_status gpu_exec_open(struct gpu *g, const struct sa_plan *plan, struct CUfunc_st *const *fn,
                             struct gpu_exec **out, struct rt_error *err)
{
    CHECK(plan->num_entries == 1 && !plan->num_externs);
    CHECK(!plan->entries[0].first_step && plan->entries[0].num_steps == plan->num_steps);
    struct gpu_exec *x = table(1, sizeof *x);
    x->gpu = g;
    x->plan = plan;
    x->fn = table(plan->num_kernels, sizeof *x->fn);
    for (uint32_t i = 0; i < plan->num_kernels; i++) x->fn[i] = fn[i];
    x->first = table(plan->num_steps, sizeof *x->first);
    x->done = table(plan->num_steps, sizeof *x->done);
    enum rt_status st = open_streams(x, err);
    if (!st) st = prepare(x, err);
    *out = st ? NULL : x;
    if (st) gpu_exec_close(x);
    return st;
}

static void close_events(struct gpu_exec *x)
{
    gpu_recording_close(x->gpu, x->timed);
    x->timed = NULL;
    for (uint32_t i = 0; x->event && i < x->plan->num_steps + 2; i++)
        gpu_event_close(x->gpu, x->event[i]);
    free(x->event);
    x->event = NULL;
}

void gpu_exec_close(struct gpu_exec *x)
{
    if (!x) return;
    close_events(x);
    for (uint32_t i = 0; i < x->plan->num_steps; i++) gpu_event_close(x->gpu, x->done[i]);
    free(x->done);
    free(x->fn);
    free(x->first);
    free(x->parameter);
    free(x->tally);
    free(x);
}

void gpu_exec_place(struct gpu_exec *x, gpu_address *address, const void *arg)
{
    const struct sa_plan *p = x->plan;
    gpu_recording_close(x->gpu, x->timed);
    x->timed = NULL;
    for (uint32_t i = 0; i < p->num_steps; i++)
        for (uint32_t k = 0; k < p->steps[i].num_bufs; k++)
            x->parameter[x->first[i] + k] = address(arg, p->bufs[p->steps[i].first_buf + k]);
}

static enum rt_status run_step(struct gpu_exec *x, uint32_t i, struct rt_error *err)
{
    const struct sa_step *s = &x->plan->steps[i];
    const uint64_t *p = x->parameter + x->first[i];
    if (s->kernel != SA_PRODUCT)
        return gpu_launch(x->gpu, x->fn[s->kernel], &s->launch, p,
                          (s->num_bufs + s->num_ints) * sizeof *p, err);
    const cu_ptr at[3] = {p[0], p[1], p[2]};
    return gpu_product(x->gpu, x->plan->ints + s->first_int, at, err);
}

static enum rt_status add_times(struct gpu_exec *x, struct rt_error *err)
{
    uint32_t n = x->plan->num_steps;
    double s;
    RT_TRY(gpu_wait(x->gpu, err));
    RT_TRY(gpu_event_seconds(x->gpu, x->event[n], x->event[n + 1], &s, err));
    if (!n || !x->tally->calls || s < x->between) x->between = s;
    for (uint32_t i = 0; i < n; i++) {
        struct exec_tally *t = &x->tally[i];
        RT_TRY(gpu_event_seconds(x->gpu, x->event[i], x->event[i + 1], &s, err));
        if (!t->calls || s < t->best) t->best = s;
        t->seconds += s;
        t->calls++;
    }
    return RT_ok;
}

static enum rt_status fail_at(const struct gpu_exec *x, uint32_t i, struct rt_error *err)
{
    char why[sizeof err->text];
    memcpy(why, err->text, sizeof why);
    return rt_fail(err, RT_machine, "step '%s': %s", x->plan->steps[i].label, why);
}

/* One after the other, with events before, after and between them all, and another at the end. */
static enum rt_status record_timed(struct gpu_exec *x, struct rt_error *err)
{
    uint32_t n = x->plan->num_steps;
    RT_TRY(gpu_event_record_inside(x->gpu, x->event[0], err));
    for (uint32_t i = 0; i < n; i++) {
        if (run_step(x, i, err)) return fail_at(x, i, err);
        RT_TRY(gpu_event_record_inside(x->gpu, x->event[i + 1], err));
    }
    return gpu_event_record_inside(x->gpu, x->event[n + 1], err);
}

static enum rt_status run_timed(struct gpu_exec *x, struct rt_error *err)
{
    if (!x->timed) {
        RT_TRY(gpu_record_begin(x->gpu, err));
        enum rt_status st = record_timed(x, err);
        enum rt_status end = gpu_record_end(x->gpu, &x->timed, st ? NULL : err);
        if (st) return st;
        RT_TRY(end);
    }
    RT_TRY(gpu_replay(x->gpu, x->timed, err));
    return add_times(x, err);
}

static enum rt_status run_in_stream(struct gpu_exec *x, uint32_t i, struct rt_error *err)
{
    const struct sa_step *s = &x->plan->steps[i];
    if (x->streams > 1) gpu_select(x->gpu, s->stream);
    for (uint32_t k = 0; k < s->num_waits; k++)
        RT_TRY(gpu_event_await(x->gpu, x->done[x->plan->waits[s->first_wait + k]], err));
    if (run_step(x, i, err)) return fail_at(x, i, err);
    return x->done[i] ? gpu_event_record(x->gpu, x->done[i], err) : RT_ok;
}

enum rt_status gpu_exec_run(struct gpu_exec *x, struct rt_error *err)
{
    enum rt_status st = RT_ok;
    bool first = !x->ran;
    x->ran = true;
    if (x->profiling && !first) return run_timed(x, err);
    if (x->streams > 1) RT_TRY(gpu_fork(x->gpu, err));
    for (uint32_t i = 0; i < x->plan->num_steps && !st; i++) st = run_in_stream(x, i, err);
    if (x->streams == 1) return st;
    enum rt_status end = gpu_join(x->gpu, st ? NULL : err);
    return st ? st : end;
}

enum rt_status gpu_exec_profile(struct gpu_exec *x, bool on, struct rt_error *err)
{
    uint32_t n = x->plan->num_steps;
    x->profiling = false;
    if (!on) return RT_ok;
    if (!x->event) x->event = table((size_t)n + 2, sizeof *x->event);
    for (uint32_t i = 0; i < n + 2; i++)
        if (!x->event[i]) RT_TRY(gpu_event_open(x->gpu, true, &x->event[i], err));
    free(x->tally);
    x->tally = table(n, sizeof *x->tally);
    x->profiling = true;
    x->ran = false;
    return RT_ok;
}

double gpu_exec_event_seconds(const struct gpu_exec *x)
{
    return x->between;
}

bool gpu_exec_profiling(const struct gpu_exec *x)
{
    return x->profiling;
}

const struct exec_tally *gpu_exec_tally(const struct gpu_exec *x)
{
    return x->tally;
}
