#include "compiler/served.h"
#include "compiler/cuda_units.h"
#include "compiler/objects.h"
#include "runtime/lm_gpu.h"
#include "runtime/mem.h"

_Static_assert((int)LM_PAGE == (int)IR_PAGE, "pages of a model are pages of its graph");

struct served { /* what makes plans of a model */
    struct arena *a;
    struct served_options o;
    struct object_set kernels; /* on a GPU: those that were compiled */
};

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
    const struct served *s = arg;
    struct plan *p = program_plan(s->o.program, B, T);
    *out = (struct lm_plan){.B = B, .T = T};
    if (!plan_ready(p)) RT_TRY(session_compile(s->o.session, NULL, err));
    out->plan = plan_flat(p, out->memory);
    return RT_ok;
}

static enum rt_status open_planned(struct served *s, struct lm_parts *parts, struct lm **out,
                                   struct rt_error *err)
{
    size_t n;
    RT_TRY(session_compile(s->o.session, s->o.report, err));
    struct plan *const *p = program_plans(s->o.program, &n);
    struct lm_plan *flat = NEW(s->a, struct lm_plan, n);
    for (size_t i = 0; i < n; i++) {
        flat[i] = (struct lm_plan){.B = plan_bind(p[i]).B, .T = plan_bind(p[i]).T};
        flat[i].plan = plan_flat(p[i], flat[i].memory);
    }
    parts->plan = flat;
    parts->num_plans = n;
    parts->pool = session_pool(s->o.session);
    parts->missing = s->o.lazy ? missing : NULL;
    parts->arg = s;
    return lm_plan_open(parts, out, err);
}

/* ---- on a GPU ---- */

/* Cubins of the kernels of n plans that no plan before had. */
static enum rt_status compile(struct served *s, struct plan *const *plan, size_t n,
                              struct jit_report *rep, struct lm_gpu_more *out, struct rt_error *err)
{
    struct arena *a = s->a;
    size_t have = s->kernels.text.n;
    double begin = mem_seconds();
    for (size_t i = 0; i < n; i++) object_set_add(&s->kernels, a, plan_lowered(plan[i]));
    size_t more = s->kernels.text.n - have;
    uint32_t *unit_of = NEW(a, uint32_t, more + 1);
    struct nvrtc_image *image;
    RT_TRY(cuda_compile(a, s->kernels.text.p + have, more, gpu_about(s->o.gpu)->arch, s->o.threads,
                        unit_of, &image, &out->num_images, err));
    struct str *code = NEW(a, struct str, out->num_images + 1);
    for (size_t i = 0; i < out->num_images; i++) code[i] = image[i].code;
    out->image = code;
    if (rep) cuda_compile_report(rep, image, out->num_images, unit_of, more, begin);
    return RT_ok;
}

/* The plan as the model runs it: layouts have grown since it was made. */
static struct lm_plan flat_of(struct served *s, const struct plan *p)
{
    struct sa_plan *flat = NEW(s->a, struct sa_plan, 1);
    *flat = plan_lowered(p)->plan;
    program_memory(p, flat->arena_bytes);
    return (struct lm_plan){.B = plan_bind(p).B, .T = plan_bind(p).T, .plan = flat};
}

static enum rt_status more(void *arg, int64_t B, int64_t T, struct lm_gpu_more *out,
                           struct rt_error *err)
{
    struct served *s = arg;
    struct plan *p = program_plan(s->o.program, B, T);
    *out = (struct lm_gpu_more){.plan = flat_of(s, p)};
    return compile(s, &p, 1, NULL, out, err);
}

static enum rt_status open_on_gpu(struct served *s, struct lm_parts *parts, struct lm **out,
                                  struct rt_error *err)
{
    size_t n;
    struct plan *const *p = program_plans(s->o.program, &n);
    struct lm_plan *flat = NEW(s->a, struct lm_plan, n);
    struct lm_gpu_more all = {0};
    for (size_t i = 0; i < n; i++) flat[i] = flat_of(s, p[i]);
    object_set_init(&s->kernels, s->a, CPU_v3);
    enum rt_status st = compile(s, p, n, s->o.report, &all, err);
    if (st) {
        gpu_close(s->o.gpu);
        return st;
    }
    parts->plan = flat;
    parts->num_plans = n;
    const struct lm_gpu_parts g = {.parts = *parts,
                                   .image = all.image,
                                   .num_images = all.num_images,
                                   .more = s->o.lazy ? more : NULL,
                                   .arg = s};
    return lm_gpu_open(s->o.gpu, &g, out, err);
}

/* ---- both ---- */

enum rt_status served_open(struct arena *a, const struct served_options *o, struct lm **out,
                           struct rt_error *err)
{
    struct served *s = NEW(a, struct served, 1);
    *out = NULL;
    *s = (struct served){.a = a, .o = *o};
    struct lm_parts parts = {.context = o->build.context,
                             .pages = o->build.pages,
                             .states = o->build.states,
                             .batch = o->batch};
    if (o->report) *o->report = (struct jit_report){0};
    program_plan(o->program, 1, 1);
    if (!o->lazy) make_plans(s);
    return o->gpu ? open_on_gpu(s, &parts, out, err) : open_planned(s, &parts, out, err);
}
