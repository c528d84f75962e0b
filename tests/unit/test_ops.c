/* The CPU kernels of every operation against the float64 evaluator, over the table of cases: all
 * items in one call, then one by one from the last to the first, which must give the same bits;
 * nothing may be written outside of the results. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "abi.h"
#include "base/vec.h"
#include "codegen/kernel.h"
#include "op_cases.h"
#include "runtime/jit.h"
#include <math.h>
#include <stdlib.h>

static const struct {
    enum ir_op op;
    double tol; /* of the largest wanted element, and absolute */
} ops[] = {
    {OP_embed, 0},          {OP_embed_grad, 1e-6},      {OP_cross_entropy, 1e-5},
    {OP_cross_entropy_grad, 1e-5}, {OP_count_valid, 0}, {OP_sum, 1e-6},
    {OP_concat, 0},         {OP_reshape, 0},            {OP_depth_mix, 1e-5},
    {OP_depth_mix_grad, 2e-5}, {OP_depth_inter, 1e-5},  {OP_depth_inter_grad, 2e-5},
    {OP_adamw, 1e-5},       {OP_momentum, 1e-6},        {OP_muon_step, 1e-6},
    {OP_grad_norm, 1e-6},   {OP_balance, 1e-6},         {OP_moe_route, 1e-6},
    {OP_moe_route_grad, 1e-5}, {OP_moe_sort, 0},        {OP_moe_gather, 0},
    {OP_moe_gather_grad, 1e-6}, {OP_moe_combine, 1e-6}, {OP_moe_combine_grad, 1e-5},
    {OP_moe_load, 0},       {OP_matmul, 1e-5},          {OP_grouped_matmul, 1e-5},
    {OP_grouped_matmul_dw, 1e-5}, {OP_attention, 1e-5}, {OP_attention_grad, 2e-5},
    {OP_rope, 1e-5},        {OP_head_loss, 2e-5},       {OP_head_nll, 2e-5},
};

enum { GUARD = 64 }; /* bytes of a pattern before and after every buffer */

struct buffer {
    unsigned char *p; /* first byte of the value */
    size_t bytes;
};

static struct buffer buffer(size_t bytes)
{
    size_t all = (bytes + 2 * GUARD + 63) / 64 * 64;
    unsigned char *p = aligned_alloc(64, all);
    assert_non_null(p);
    memset(p, 0xff, all); /* NaN as float32 */
    return (struct buffer){p + GUARD, bytes};
}

static void drop(struct buffer b, const char *what)
{
    if (!b.p) return;
    for (int i = 0; i < GUARD; i++)
        if (b.p[-1 - i] != 0xff || b.p[b.bytes + (size_t)i] != 0xff)
            fail_msg("%s: written outside of its buffer", what);
    free(b.p - GUARD);
}

/* One variant of a case with its lowering. */
struct job {
    const char *name;
    int variant;
    double tol;
    struct ir_graph *g;
    struct ir_bind b;
    struct ir_values v;
    ir_id n;
    struct cg_lowering low;
    size_t first; /* index of its first kernel */
};

static struct arena *arena;
static VEC(struct job) jobs;
static VEC(struct jit_kernel) kernels;

/* Logits of hundreds, which option 3 of the depth cases has, lose digits as float32 operands. */
static bool large_logits(enum ir_op op, int variant)
{
    bool depth = op == OP_depth_mix || op == OP_depth_mix_grad || op == OP_depth_inter ||
                 op == OP_depth_inter_grad;
    return depth && variant / OP_CASE_SIZES == 3;
}

static void prepare(enum ir_op op, double tol, int variant)
{
    const struct op_case *c = op_case_find(op);
    if (large_logits(op, variant)) tol *= 50;
    struct job j = {.name = c->name, .variant = variant, .tol = tol, .g = c->build(arena, variant),
                    .b = op_case_bind(variant), .first = kernels.n};
    size_t nin;
    struct ir_named *in = op_case_inputs(arena, j.g, j.b, 7, &nin);
    j.v = ir_eval(arena, j.g, j.b, in, nin);
    j.n = op_case_node(j.g, c);
    const struct cg_target t = {false};
    cg_lower_node(arena, j.g, j.n, j.b, &t, &j.low);
    for (size_t i = 0; i < j.low.step.n; i++)
        vec_push(arena, &kernels,
                 ((struct jit_kernel){j.low.step.p[i].symbol, j.low.step.p[i].text, NULL}));
    vec_push(arena, &jobs, j);
}

static void store(void *to, enum ir_dtype t, struct ir_array x)
{
    for (int64_t i = 0; i < x.n; i++)
        if (t == IR_i32)
            ((int32_t *)to)[i] = (int32_t)x.v[i];
        else
            ((float *)to)[i] = (float)x.v[i];
}

static struct buffer filled(const struct job *j, ir_id n)
{
    enum ir_dtype t = (enum ir_dtype)ir_ty(j->g, n)->dtype;
    struct ir_array x = j->v.node[n].e[0];
    struct buffer b = buffer((size_t)x.n * dtype_size(t));
    store(b.p, t, x);
    return b;
}

/* Type of result element i. */
static const struct ir_type *result_type(const struct job *j, uint32_t i)
{
    const struct ir_type *t = ir_ty(j->g, j->n);
    if (t->dtype != IR_tuple) return t;
    return type_get(j->g->types, type_elem(j->g->types, ir_at(j->g, j->n)->type, i));
}

static void call(const struct job *j, const struct cg_step *s, sa_kernel *fn, void *const *p,
                 bool pieces)
{
    struct buffer scratch = buffer(s->scratch);
    assert_true(s->grain >= 1);
    if (!pieces) fn(p, s->num, 0, s->items, scratch.p);
    for (int64_t i = s->items; pieces && i-- > 0;) fn(p, s->num, i, i + 1, scratch.p);
    drop(scratch, j->name);
}

/* Runs all steps; out[i] are the results. */
static void run(const struct job *j, bool pieces, struct buffer *out)
{
    const struct ir_node *x = ir_at(j->g, j->n);
    struct buffer *src = NEW(arena, struct buffer, x->nsrc), work = buffer(j->low.workspace);
    uint8_t **at = NEW(arena, uint8_t *, x->nsrc);
    for (uint32_t i = 0; i < x->nsrc; i++) {
        struct ir_view v = ir_view(j->g, ir_src(j->g, j->n, i));
        src[i] = filled(j, v.root);
        at[i] = src[i].p + dim_value(v.offset, j->b) * 4;
    }
    for (uint32_t i = 0; i < j->v.node[j->n].count; i++) {
        int from = cg_in_place(j->g, j->n, i);
        size_t size = dtype_size((enum ir_dtype)result_type(j, i)->dtype);
        out[i] = buffer((size_t)j->v.node[j->n].e[i].n * size);
        if (from < 0) continue;
        memcpy(out[i].p, at[from], out[i].bytes);
        at[from] = out[i].p;
    }
    for (size_t i = 0; i < j->low.step.n; i++) {
        const struct cg_step *s = &j->low.step.p[i];
        void **p = NEW(arena, void *, s->nref);
        for (size_t k = 0; k < s->nref; k++) {
            struct cg_ref r = s->ref[k];
            p[k] = (r.kind == CG_SRC ? at[r.index] : r.kind == CG_RES ? out[r.index].p : work.p) +
                   r.offset;
        }
        sa_kernel *fn;
        memcpy(&fn, &kernels.p[j->first + i].fn, sizeof fn);
        call(j, s, fn, p, pieces);
    }
    for (uint32_t i = 0; i < x->nsrc; i++) drop(src[i], j->name);
    drop(work, j->name);
}

static void compare(const struct job *j, uint32_t i, const void *got)
{
    struct ir_array want = j->v.node[j->n].e[i];
    enum ir_dtype t = (enum ir_dtype)result_type(j, i)->dtype;
    double most = 0;
    for (int64_t k = 0; k < want.n; k++) most = fmax(most, fabs(want.v[k]));
    for (int64_t k = 0; k < want.n; k++) {
        double g = t == IR_i32   ? ((const int32_t *)got)[k]
                   : t == IR_f64 ? ((const double *)got)[k]
                                 : (double)((const float *)got)[k];
        /* not finite gradients: the norm itself is not finite either */
        if (!isfinite(want.v[k]) && !isfinite(g)) continue;
        if (!(fabs(g - want.v[k]) <= j->tol * (most + 1)))
            fail_msg("%s variant %d: element %lld of result %u is %.9g, wanted %.9g", j->name,
                     j->variant, (long long)k, i, g, want.v[k]);
    }
}

/* A momentum update that is not written stays undefined. */
static bool skipped(const struct job *j, uint32_t i)
{
    if (ir_at(j->g, j->n)->op != OP_momentum || i != 0) return false;
    return j->v.node[ir_src(j->g, j->n, 2)].e[0].v[2] == 0;
}

static void kernels_compute_what_ops_say(void **state)
{
    (void)state;
    for (size_t k = 0; k < jobs.n; k++) {
        const struct job *j = &jobs.p[k];
        uint32_t count = j->v.node[j->n].count;
        struct buffer *one = NEW(arena, struct buffer, count);
        struct buffer *many = NEW(arena, struct buffer, count);
        if (!j->low.step.n) { /* a view after all */
            assert_int_equal(ir_at(j->g, j->n)->op, OP_reshape);
            continue;
        }
        run(j, false, one);
        run(j, true, many);
        for (uint32_t i = 0; i < count; i++) {
            if (!skipped(j, i)) compare(j, i, one[i].p);
            if (memcmp(one[i].p, many[i].p, one[i].bytes))
                fail_msg("%s variant %d: result %u depends on the pieces", j->name, j->variant, i);
            drop(one[i], j->name);
            drop(many[i], j->name);
        }
    }
}

static int set_up(void **state)
{
    struct jit *jit;
    struct rt_error err = {{0}};
    arena = arena_open("test_ops");
    for (size_t k = 0; k < sizeof ops / sizeof *ops; k++)
        for (int i = 0; i < op_case_find(ops[k].op)->variants; i++)
            prepare(ops[k].op, ops[k].tol, i);
    if (jit_open(NULL, &jit, &err) ||
        jit_load(jit, cg_cpu_prelude(), kernels.p, kernels.n, NULL, &err)) {
        print_error("%s\n", err.text);
        return 1;
    }
    *state = jit;
    return 0;
}

static int tear_down(void **state)
{
    jit_close(*state);
    arena_close(arena);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(kernels_compute_what_ops_say)};
    return cmocka_run_group_tests_name("ops", tests, set_up, tear_down);
}
