/* The part of a session that runs plans on a GPU. Named values are at the same offsets there as in
 * the host's mirror; what moves between them, and when, is said in program.h. */
#include "compiler/cuda_units.h"
#include "compiler/session.h"
#include "runtime/mem.h"
#include "runtime/nvrtc.h"
#include <stdio.h>
#include <stdlib.h>

#define COMBINE "strata_combine"
static const char combine_text[] =
    "/* to[i] = a[i] + b[i], a[i] > b[i] ? a[i] : b[i] or a[i]; `to` may be a or b */\n"
    "extern \"C\" __global__ void __launch_bounds__(256)\n" COMBINE
    "(float *to, const float *a, const float *b, int64_t n, int64_t op)\n"
    "{\n"
    "    const int64_t step = (int64_t)gridDim.x * 256;\n"
    "    const int64_t first = blockIdx.x * 256ll + threadIdx.x;\n"
    "    for (int64_t i = first; i < n / 4; i += step) {\n"
    "        float x[4], y[4];\n"
    "        ld_f32x4(x, a + 4 * i);\n"
    "        if (op != 2) ld_f32x4(y, b + 4 * i);\n"
    "        for (int k = 0; k < 4 && op != 2; k++)\n"
    "            x[k] = op == 0 ? x[k] + y[k] : x[k] > y[k] ? x[k] : y[k];\n"
    "        st_f32x4(to + 4 * i, x);\n"
    "    }\n"
    "    for (int64_t i = n / 4 * 4 + first; i < n; i += step)\n"
    "        to[i] = op == 2 ? a[i] : op == 0 ? a[i] + b[i] : a[i] > b[i] ? a[i] : b[i];\n"
    "}\n";

/* ---- opening ---- */

enum rt_status device_open(struct session *s, const char *name, struct rt_error *err)
{
    RT_TRY(gpu_open_named(name, &s->device.gpu, err));
    s->o.gpu = gpu_about(s->device.gpu)->arch;
    return RT_ok;
}

void device_close(struct session *s)
{
    struct device *d = &s->device;
    if (!d->gpu) return;
    for (size_t i = 0; i < s->program.n; i++)
        for (size_t k = 0; k < s->program.p[i]->plan.n; k++) {
            struct plan *p = s->program.p[i]->plan.p[k];
            gpu_recording_close(d->gpu, p->recording);
            gpu_exec_close(p->gpu_exec);
            gpu_free(d->gpu, p->device_slot);
        }
    for (size_t i = 0; i < d->module.n; i++) gpu_unload(d->gpu, d->module.p[i]);
    for (size_t i = 0; i < d->persistent.n; i++) gpu_free(d->gpu, d->persistent.p[i].at);
    gpu_free(d->gpu, d->scratch);
    gpu_close(d->gpu);
}

/* ---- memory ---- */

cu_ptr device_persistent(const struct session *s, uint64_t offset)
{
    const struct device *d = &s->device;
    for (size_t i = 0; i < d->persistent.n; i++) {
        const struct piece *x = &d->persistent.p[i];
        if (offset >= x->from && offset < x->to) return x->at + (offset - x->from);
    }
    CHECK(!d->gpu);
    return 0;
}

static cu_ptr address(const void *arg, struct sa_buf at)
{
    const struct plan *p = arg;
    const struct session *s = p->program->s;
    if (at.arena == SA_persistent) return device_persistent(s, at.offset);
    CHECK(at.arena == SA_slot || at.arena == SA_scratch);
    return (at.arena == SA_slot ? p->device_slot : s->device.scratch) + at.offset;
}

static enum rt_status get_memory(struct session *s, struct rt_error *err)
{
    static const char less[] =
        "shorter train.seq_len, smaller train.batch_size or more train.micro_batches ('strata "
        "check --device' says which fits)";
    struct device *d = &s->device;
    uint64_t scratch = 0, have = d->persistent.n ? vec_last(&d->persistent).to : 0;
    if (s->layout.bytes > have) {
        struct piece x = {have, s->layout.bytes, 0};
        RT_TRY(gpu_alloc_for(d->gpu, x.to - x.from, "parameters, gradients and moments", less,
                             &x.at, err));
        RT_TRY(gpu_zero(d->gpu, x.at, x.to - x.from, err));
        vec_push(s->a, &d->persistent, x);
    }
    for (size_t i = 0; i < s->program.n; i++)
        for (size_t k = 0; k < s->program.p[i]->plan.n; k++) {
            struct plan *p = s->program.p[i]->plan.p[k];
            const uint64_t *bytes = p->l->plan.arena_bytes;
            if (bytes[SA_scratch] > scratch) scratch = bytes[SA_scratch];
            if (!p->device_slot)
                RT_TRY(gpu_alloc_for(d->gpu, bytes[SA_slot], "inputs and outputs", less,
                                     &p->device_slot, err));
        }
    if (d->scratch && scratch <= d->scratch_bytes) return RT_ok;
    gpu_free(d->gpu, d->scratch);
    d->generation++;
    RT_TRY(gpu_alloc_for(d->gpu, scratch, "activations", less, &d->scratch, err));
    d->scratch_bytes = scratch;
    return RT_ok;
}

/* ---- kernels ---- */

struct missing { /* kernels that are not loaded yet */
    struct arena *a;
    VEC(const char *) symbol;
    VEC(struct str) text;
};

static void add_kernel(struct session *s, struct missing *m, const char *symbol, struct str text)
{
    uint32_t *at = map_str(&s->loaded, str_of(symbol));
    if (*at) return;
    vec_push(s->a, &s->device.fn, NULL);
    *at = (uint32_t)s->device.fn.n;
    vec_push(m->a, &m->symbol, symbol);
    vec_push(m->a, &m->text, text);
}

static enum rt_status load_units(struct session *s, const struct missing *m, struct jit_report *rep,
                                 struct rt_error *err)
{
    struct device *d = &s->device;
    size_t n = m->symbol.n, first = d->fn.n - n;
    uint32_t *unit_of = NEW(m->a, uint32_t, n);
    struct nvrtc_image *image;
    size_t units;
    double begin = mem_seconds();
    RT_TRY(cuda_compile(m->a, m->text.p, n, s->o.gpu, s->o.threads, unit_of, &image, &units, err));
    if (rep) cuda_compile_report(rep, image, units, unit_of, n, begin);
    struct CUmod_st **module = NEW(m->a, struct CUmod_st *, units);
    for (size_t i = 0; i < units; i++) {
        RT_TRY(gpu_load(d->gpu, image[i].code.p, &module[i], err));
        vec_push(s->a, &d->module, module[i]);
    }
    for (size_t i = 0; i < n; i++)
        RT_TRY(gpu_function(d->gpu, module[unit_of[i]], m->symbol.p[i], &d->fn.p[first + i], err));
    return RT_ok;
}

static struct CUfunc_st *loaded(const struct session *s, const char *symbol)
{
    return s->device.fn.p[*map_find(&s->loaded, str_of(symbol)) - 1];
}

static enum rt_status load_kernels(struct session *s, struct jit_report *rep, struct rt_error *err)
{
    struct missing m = {.a = arena_open("kernels")};
    add_kernel(s, &m, COMBINE, str_of(combine_text));
    for (size_t i = 0; i < s->program.n; i++)
        for (size_t k = 0; k < s->program.p[i]->plan.n; k++) {
            const struct lowered *l = s->program.p[i]->plan.p[k]->l;
            for (uint32_t j = 0; j < l->plan.num_kernels; j++)
                add_kernel(s, &m, l->code[j].symbol, l->kernel[j].text);
        }
    enum rt_status st = m.symbol.n ? load_units(s, &m, rep, err) : RT_ok;
    for (size_t i = 0; st && i < m.symbol.n; i++) *map_str(&s->loaded, str_of(m.symbol.p[i])) = 0;
    if (!st) s->device.combine = loaded(s, COMBINE);
    arena_close(m.a);
    return st;
}

/* ---- plans ---- */

static void place(struct plan *p)
{
    struct device *d = &p->program->s->device;
    if (p->placed == d->generation) return;
    gpu_recording_close(d->gpu, p->recording);
    p->recording = NULL;
    gpu_exec_place(p->gpu_exec, address, p);
    p->placed = d->generation;
}

static enum rt_status open_plan(struct session *s, struct plan *p, struct rt_error *err)
{
    const struct sa_plan *sa = &p->l->plan;
    struct CUfunc_st **fn = NEW(s->a, struct CUfunc_st *, sa->num_kernels);
    if (!p->gpu_exec) {
        for (uint32_t j = 0; j < sa->num_kernels; j++) fn[j] = loaded(s, p->l->code[j].symbol);
        RT_TRY(gpu_exec_open(s->device.gpu, sa, fn, &p->gpu_exec, err));
        for (uint32_t i = 0; i < sa->num_values; i++)
            p->value[i].device = address(p, sa->values[i].at);
    }
    place(p);
    return RT_ok;
}

enum rt_status device_compile(struct session *s, struct jit_report *rep, struct rt_error *err)
{
    RT_TRY(get_memory(s, err));
    RT_TRY(load_kernels(s, rep, err));
    for (size_t i = 0; i < s->program.n; i++)
        for (size_t k = 0; k < s->program.p[i]->plan.n; k++)
            RT_TRY(open_plan(s, s->program.p[i]->plan.p[k], err));
    return RT_ok;
}

enum rt_status device_launch(struct plan *p, struct rt_error *err)
{
    return gpu_exec_run(p->gpu_exec, err);
}

/* The first run loads what cuBLAS needs, so that only the second is recorded. */
static enum rt_status launch_recorded(struct plan *p, struct rt_error *err)
{
    struct gpu *g = p->program->s->device.gpu;
    if (!p->ran || gpu_exec_profiling(p->gpu_exec)) {
        p->ran = true;
        return device_launch(p, err);
    }
    if (!p->recording) {
        RT_TRY(gpu_record_begin(g, err));
        enum rt_status st = device_launch(p, err);
        enum rt_status end = gpu_record_end(g, &p->recording, st ? NULL : err);
        if (st) return st;
        RT_TRY(end);
    }
    return gpu_replay(g, p->recording, err);
}

static enum rt_status run(struct plan *p, struct rt_error *err)
{
    struct gpu *g = p->program->s->device.gpu;
    const struct plan_value *v = p->value;
    uint32_t n = p->l->plan.num_values;
    RT_TRY(gpu_use(g, err)); /* a server's engine has a thread of its own */
    for (uint32_t i = 0; i < n; i++)
        if (p->move[i] & MOVE_in) RT_TRY(gpu_put(g, v[i].device, v[i].p, v[i].bytes, err));
    RT_TRY(launch_recorded(p, err));
    for (uint32_t i = 0; i < n; i++)
        if (p->move[i] & MOVE_out) RT_TRY(gpu_get(g, v[i].p, v[i].device, v[i].bytes, err));
    return gpu_wait(g, err);
}

void device_run(struct plan *p)
{
    struct device *d = &p->program->s->device;
    if (!d->failed) d->failed = run(p, &d->failure);
}

enum rt_status device_combine(struct session *s, struct session_span to, struct session_span a,
                              struct session_span b, enum combine_op op, struct rt_error *err)
{
    int64_t n = (int64_t)to.n, blocks = (n + 4095) / 4096;
    RT_TRY(gpu_use(s->device.gpu, err));
    struct sa_launch l = {{(uint32_t)(blocks < 4096 ? blocks : 4096), 1, 1}, 256, 0};
    const struct {
        cu_ptr to, a, b;
        int64_t n, op;
    } p = {to.device, a.device, b.device, n, op};
    return gpu_launch(s->device.gpu, s->device.combine, &l, &p, sizeof p, err);
}
