#include "cuda_ops.h"
#include "cuda_machine.h"
#include "runtime/nvrtc.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <cmocka.h>

struct job {
    const char *name;
    int64_t variant;
    double tol;
    bool narrow;
    struct ir_graph *g;
    struct ir_bind b;
    struct ir_values v;
    ir_id n;
    struct cg_lowering low;
    size_t same; /* bytes of the first result as in the job before */
};
struct cuda_ops {
    struct arena *a;
    VEC(struct job) job;
    bool no_library;
    struct map kernels; /* symbol: 1 */
    struct sb text;     /* of all kernels, once each */
    const void *before; /* first result of the job before */
    double used;        /* the largest share of a tolerance */
};

struct cuda_ops *cuda_ops_open(void)
{
    struct arena *a = arena_open("cuda_ops");
    struct cuda_ops *c = NEW(a, struct cuda_ops, 1);
    c->a = a;
    map_init(&c->kernels, a);
    return c;
}

void cuda_ops_no_library(struct cuda_ops *c, bool on)
{
    c->no_library = on;
}

/* Other targets have less shared memory. */
static void check_shared(const struct job *j, unsigned sm, uint32_t most, bool no_library)
{
    const struct cg_target t = {.sm = sm, .no_library = no_library};
    struct arena *a = arena_open("cuda_ops target");
    struct cg_lowering low = {0};
    cg_lower_node(a, j->g, j->n, j->b, &t, &low);
    for (size_t i = 0; i < low.step.n; i++)
        if (low.step.p[i].launch.shared > most)
            fail_msg("%s variant %lld for sm_%u: step %s takes %u bytes of shared memory", j->name,
                     (long long)j->variant, sm, low.step.p[i].label, low.step.p[i].launch.shared);
    arena_close(a);
}

void cuda_ops_add(struct cuda_ops *c, const char *name, int64_t variant, double tol,
                  struct ir_graph *g, ir_id n, struct ir_bind b)
{
    struct job j = {.name = name, .variant = variant, .tol = tol, .g = g, .b = b, .n = n};
    size_t nin;
    struct ir_named *in = op_case_inputs(c->a, g, b, 7, &nin);
    const struct cg_target t = {.sm = 90, .no_library = c->no_library};
    j.v = ir_eval(c->a, g, b, in, nin);
    cg_lower_node(c->a, g, n, b, &t, &j.low);
    for (size_t i = 0; i < j.low.step.n; i++) {
        const struct cg_step *s = &j.low.step.p[i];
        if (s->product || (*map_str(&c->kernels, str_of(s->symbol)))++) continue;
        sb_add(&c->text, s->text.p, s->text.n);
        sb_char(&c->text, '\n');
    }
    check_shared(&j, 80, 163 << 10, c->no_library);
    if (ir_at(g, n)->op != OP_kda_grad) /* whose float32 chunks need more */
        check_shared(&j, 89, 99 << 10, c->no_library);
    vec_push(c->a, &c->job, j);
}

void cuda_ops_same(struct cuda_ops *c, size_t bytes)
{
    vec_last(&c->job).same = bytes;
}

/* ---- narrow forms ---- */

static bool marked(const char *words, uint32_t i)
{
    size_t n = strlen(words);
    return words[i < n ? i : n - 1] == '1';
}

/* Adds result i of node n to what is narrow. */
static void mark(struct arena *a, const struct ir_graph *g, char **narrow, ir_id n, uint32_t i)
{
    const struct ir_type *t = ir_ty(g, n);
    uint32_t count = t->dtype == IR_tuple ? t->count : 1;
    if (t->dtype == IR_tuple) t = type_get(g->types, type_elem(g->types, ir_at(g, n)->type, i));
    if (t->dtype != IR_f32) return;
    if (!narrow[n]) {
        narrow[n] = NEW(a, char, count + 1);
        memset(narrow[n], '0', count);
    }
    narrow[n][i] = '1';
}

void cuda_ops_add_narrow(struct cuda_ops *c, const char *name, int64_t variant, double tol,
                         const char *src, const char *res, struct ir_graph *g, ir_id n,
                         struct ir_bind b)
{
    char **narrow = NEW(c->a, char *, g->node.n);
    for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) {
        if (!marked(src, i)) continue;
        ir_id v = ir_view(g, ir_src(g, n, i)).root;
        bool get = ir_at(g, v)->op == OP_get;
        mark(c->a, g, narrow, get ? ir_src(g, v, 0) : v,
             get ? (uint32_t)ir_int(g, v, AK_index, 0) : 0);
    }
    uint32_t results = ir_ty(g, n)->dtype == IR_tuple ? ir_ty(g, n)->count : 1;
    for (uint32_t i = 0; i < results; i++)
        if (marked(res, i)) mark(c->a, g, narrow, n, i);
    struct ir_graph *to = graph_open(c->a, g->program, g->stage, g->types, g->names);
    to->region = g->region;
    for (ir_id x = 0; x <= n; x++) {
        struct ir_attr attr[AK_COUNT + 1];
        size_t nattr = ir_attrs(g, x, attr);
        if (narrow[x]) attr[nattr++] = A_STR(narrow, narrow[x]);
        ir_id at =
            ir_add_instance(to, (enum ir_op)ir_at(g, x)->op, ir_at(g, x)->type, ir_srcs(g, x),
                            ir_at(g, x)->nsrc, attr, nattr, x + 1, ir_name(g, x));
        CHECK(at == x);
    }
    cuda_ops_add(c, name, variant, tol, to, n, b);
    vec_last(&c->job).narrow = true;
}

/* ---- running ---- */

static const struct ir_type *result_type(const struct job *j, uint32_t i)
{
    const struct ir_type *t = ir_ty(j->g, j->n);
    if (t->dtype != IR_tuple) return t;
    return type_get(j->g->types, type_elem(j->g->types, ir_at(j->g, j->n)->type, i));
}

static void store(void *to, enum ir_dtype t, bool narrow, struct ir_array x)
{
    for (int64_t i = 0; i < x.n; i++)
        if (t == IR_i32)
            ((int32_t *)to)[i] = (int32_t)x.v[i];
        else
            cuda_put_element(to, narrow, i, x.v[i]);
}

static double element(const void *p, enum ir_dtype t, bool narrow, int64_t i)
{
    if (t == IR_i32) return ((const int32_t *)p)[i];
    if (t == IR_f64) return ((const double *)p)[i];
    return cuda_element(p, narrow, i);
}

static size_t result_bytes(const struct job *j, uint32_t i)
{
    return (size_t)j->v.node[j->n].e[i].n * ir_result_bytes(j->g, j->n, i);
}

static void expect(const struct job *j, const char *why)
{
    if (why) fail_msg("%s variant %lld: %s", j->name, (long long)j->variant, why);
}

/* Runs all steps; out[i] are copies of the results. */
static void run(struct cuda_ops *c, struct cuda_machine *m, const struct job *j,
                enum cudacpu_order order, char **out)
{
    const struct ir_node *x = ir_at(j->g, j->n);
    char **src = NEW(c->a, char *, x->nsrc), **at = NEW(c->a, char *, x->nsrc);
    char *work = cuda_machine_alloc(m, j->low.workspace + 1);
    for (uint32_t i = 0; i < x->nsrc; i++) {
        ir_id s = ir_src(j->g, j->n, i);
        struct ir_view v = ir_view(j->g, s);
        struct ir_array value = j->v.node[v.root].e[0];
        size_t bytes = ir_elem_bytes(j->g, s);
        double *here = NEW(c->a, double, (size_t)value.n);
        store(here, (enum ir_dtype)ir_ty(j->g, s)->dtype, bytes == 2, value);
        src[i] = cuda_machine_alloc(m, (size_t)value.n * bytes);
        cuda_machine_put(m, src[i], here, (size_t)value.n * bytes);
        at[i] = src[i] + (size_t)dim_value(v.offset, j->b) * bytes;
    }
    char **result = NEW(c->a, char *, j->v.node[j->n].count);
    for (uint32_t i = 0; i < j->v.node[j->n].count; i++) {
        int from = cg_in_place(j->g, j->n, i);
        size_t bytes = result_bytes(j, i);
        out[i] = NEW(c->a, char, bytes);
        result[i] = cuda_machine_alloc(m, bytes);
        if (from < 0) continue;
        cuda_machine_get(m, out[i], at[from], bytes);
        cuda_machine_put(m, result[i], out[i], bytes);
        at[from] = result[i];
    }
    for (size_t i = 0; i < j->low.step.n; i++) {
        const struct cg_step *s = &j->low.step.p[i];
        char **p = NEW(c->a, char *, s->nref);
        for (size_t k = 0; k < s->nref; k++) {
            struct cg_ref r = s->ref[k];
            char *base = r.kind == CG_SRC ? at[r.index] : r.kind == CG_RES ? result[r.index] : work;
            p[k] = base + r.offset;
        }
        expect(j, cuda_machine_step(m, s, p, order, (unsigned)j->variant));
    }
    for (uint32_t i = 0; i < j->v.node[j->n].count; i++) {
        cuda_machine_get(m, out[i], result[i], result_bytes(j, i));
        expect(j, cuda_machine_free(m, result[i]));
    }
    for (uint32_t i = 0; i < x->nsrc; i++) expect(j, cuda_machine_free(m, src[i]));
    expect(j, cuda_machine_free(m, work));
}

/* A momentum update that is not written stays undefined. */
static bool skipped(const struct job *j, uint32_t i)
{
    if (ir_at(j->g, j->n)->op != OP_momentum || i != 0) return false;
    return j->v.node[ir_src(j->g, j->n, 2)].e[0].v[2] == 0;
}

static void compare(struct cuda_ops *c, const struct job *j, uint32_t i, const void *got)
{
    struct ir_array want = j->v.node[j->n].e[i];
    enum ir_dtype t = (enum ir_dtype)result_type(j, i)->dtype;
    bool narrow = ir_result_bytes(j->g, j->n, i) == 2;
    double most = 0;
    for (int64_t k = 0; k < want.n; k++) most = fmax(most, fabs(want.v[k]));
    for (int64_t k = 0; k < want.n; k++) {
        double g = element(got, t, narrow, k), allowed = j->tol * (most + 1);
        if (narrow) allowed += fabs(want.v[k]) / 128;
        if (!isfinite(want.v[k]) && !isfinite(g)) continue;
        double off = fabs(g - want.v[k]);
        if (allowed > 0) c->used = fmax(c->used, off / allowed);
        if (!(off <= allowed))
            fail_msg("%s%s variant %lld: element %lld of result %u is %.9g, wanted %.9g", j->name,
                     j->narrow ? " (narrow)" : "", (long long)j->variant, (long long)k, i, g,
                     want.v[k]);
    }
}

static void check_job(struct cuda_ops *c, struct cuda_machine *m, const struct job *j)
{
    uint32_t count = j->v.node[j->n].count;
    char **one = NEW(c->a, char *, count), **two = NEW(c->a, char *, count);
    if (!j->low.step.n) { /* a view after all */
        assert_int_equal(ir_at(j->g, j->n)->op, OP_reshape);
        return;
    }
    run(c, m, j, CUDACPU_forward, one);
    run(c, m, j, CUDACPU_shuffled, two);
    if (j->same && memcmp(c->before, one[0], j->same))
        fail_msg("%s variant %lld: other bits than before", j->name, (long long)j->variant);
    c->before = one[0];
    for (uint32_t i = 0; i < count; i++) {
        if (!skipped(j, i)) compare(c, j, i, one[i]);
        if (memcmp(one[i], two[i], result_bytes(j, i)))
            fail_msg("%s variant %lld: result %u depends on the order of threads", j->name,
                     (long long)j->variant, i);
    }
}

/* ---- NVRTC ---- */

/* Whether a multiprocessor has room for a block of every launch: shared memory, of which ptxas
 * knows the static part only, and registers. */
static void check_launches(const struct cuda_ops *c, const struct nvrtc_kernel *k)
{
    enum { SHARED = 227 << 10, REGISTERS = 64 << 10 }; /* of compute capability 9.0 */
    for (size_t i = 0; i < c->job.n; i++)
        for (size_t at = 0; at < c->job.p[i].low.step.n; at++) {
            const struct cg_step *s = &c->job.p[i].low.step.p[at];
            if (s->product || strcmp(s->symbol, k->name)) continue;
            if (k->shared + s->launch.shared > SHARED)
                fail_msg("%s: %u + %u bytes of shared memory", k->name, k->shared,
                         s->launch.shared);
            if ((k->registers + 7) / 8 * 8 * s->launch.threads > REGISTERS)
                fail_msg("%s: %u threads of %u registers", k->name, s->launch.threads,
                         k->registers);
        }
}

static void compile(struct cuda_ops *c)
{
    struct sb all = {0};
    struct nvrtc_image image;
    struct rt_error err;
    const char *known, *arch = getenv("STRATA_TEST_ARCH");
    if (nvrtc_archs(c->a, &known, &err) != RT_ok) {
        printf("no NVRTC: kernels were not compiled for a GPU (%s)\n", err.text);
        return;
    }
    if (!arch || !*arch) arch = "sm_90a";
    sb_str(&all, cg_cuda_prelude());
    sb_add(&all, c->text.p, c->text.n);
    if (nvrtc_compile(c->a, all.p, arch, true, &image, &err)) fail_msg("%s", err.text);
    sb_free(&all);
    for (size_t i = 0; i < image.kernels; i++) {
        const struct nvrtc_kernel *k = &image.kernel[i];
        if (getenv("STRATA_TEST_VERBOSE"))
            printf("%-44s %3u registers %6u shared %u stack\n", k->name, k->registers, k->shared,
                   k->stack);
        if (k->spill_stores || k->spill_loads || k->stack)
            fail_msg("%s: %u bytes of stack, %u stored and %u loaded by spills", k->name, k->stack,
                     k->spill_stores, k->spill_loads);
        check_launches(c, k);
    }
    printf("%zu kernels for %s, no spills, NVRTC %.1f s%s\n", image.kernels, arch, image.seconds,
           image.cached ? " (cached)" : "");
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void run_all(struct cuda_ops *c, bool nvrtc)
{
    double begin = now(), built;
    struct cuda_machine *m = cuda_machine_open(c->text.p ? c->text.p : "");
    built = now();
    for (size_t i = 0; i < c->job.n; i++) check_job(c, m, &c->job.p[i]);
    printf("%zu cases: %.1f s to build, %.1f s to run; most of a tolerance used: %.3f\n", c->job.n,
           built - begin, now() - built, c->used);
    if (nvrtc && getenv("STRATA_TEST_NVRTC") && !cuda_machine_is_device(m)) compile(c);
    cuda_machine_close(m);
    sb_free(&c->text);
    arena_close(c->a);
}

void cuda_ops_run(struct cuda_ops *c)
{
    run_all(c, true);
}

void cuda_ops_run_cpu(struct cuda_ops *c)
{
    run_all(c, false);
}

/* Logits of hundreds, which option 3 of the depth cases has, lose digits as float32 operands. */
static bool large_logits(enum ir_op op, int variant)
{
    bool depth = op == OP_depth_mix || op == OP_depth_mix_grad || op == OP_depth_inter ||
                 op == OP_depth_inter_grad;
    return depth && variant / OP_CASE_SIZES == 3;
}

void cuda_ops_check(const struct cuda_op *ops, size_t n)
{
    struct cuda_ops *c = cuda_ops_open();
    for (size_t k = 0; k < n; k++) {
        const struct op_case *oc = op_case_find(ops[k].op);
        cuda_ops_no_library(c, ops[k].no_library);
        for (int i = 0; i < oc->variants; i += ops[k].every ? ops[k].every : 1) {
            struct ir_graph *g = oc->build(c->a, i);
            double f = large_logits(ops[k].op, i) ? 50 : 1;
            ir_id node = op_case_node(g, oc);
            cuda_ops_add(c, oc->name, i, ops[k].tol * f, g, node, op_case_bind(i));
            if (ops[k].src)
                cuda_ops_add_narrow(c, oc->name, i, ops[k].tol_narrow * f, ops[k].src, ops[k].res,
                                    g, node, op_case_bind(i));
        }
    }
    cuda_ops_run(c);
}
