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
    {OP_embed, 0},
    {OP_embed_grad, 1e-6},
    {OP_cross_entropy, 1e-5},
    {OP_cross_entropy_grad, 1e-5},
    {OP_count_valid, 0},
    {OP_sum, 1e-6},
    {OP_colmax, 0},
    {OP_concat, 0},
    {OP_reshape, 0},
    {OP_depth_mix, 1e-5},
    {OP_depth_mix_grad, 2e-5},
    {OP_depth_inter, 1e-5},
    {OP_depth_inter_grad, 2e-5},
    {OP_adamw, 1e-5},
    {OP_momentum, 1e-6},
    {OP_muon_step, 1e-6},
    {OP_grad_norm, 1e-6},
    {OP_qk_clip, 1e-6},
    {OP_balance, 1e-6},
    {OP_moe_route, 1e-6},
    {OP_moe_weights, 1e-6},
    {OP_moe_route_grad, 1e-5},
    {OP_moe_sort, 0},
    {OP_moe_gather, 0},
    {OP_moe_gather_grad, 1e-6},
    {OP_moe_combine, 1e-6},
    {OP_moe_combine_grad, 1e-5},
    {OP_moe_load, 0},
    {OP_matmul, 1e-5},
    {OP_grouped_matmul, 1e-5},
    {OP_grouped_matmul_dw, 1e-5},
    {OP_attention, 1e-5},
    {OP_attention_grad, 2e-5},
    {OP_rope, 1e-5},
    {OP_repeat, 0},
    {OP_short_conv, 1e-5},
    {OP_short_conv_grad, 1e-5},
    {OP_kda, 1e-5},
    {OP_kda_grad, 2e-5},
    {OP_conv_cached, 1e-5},
    {OP_kda_cached, 1e-5},
    {OP_mla_keys, 0},
    {OP_mla_keys_grad, 1e-6},
    {OP_mla_cached, 1e-5},
    {OP_rope_table, 1e-5},
    {OP_last_rows, 0},
    {OP_cache_write, 0},
    {OP_attention_cached, 1e-5},
    {OP_head_loss, 2e-5},
    {OP_head_nll, 2e-5},
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
    int64_t variant;
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

/* Lowers node n of g and notes its kernels. */
static void add_job(const char *name, int64_t variant, double tol, struct ir_graph *g, ir_id n,
                    struct ir_bind b)
{
    struct job j = {
        .name = name, .variant = variant, .tol = tol, .g = g, .b = b, .n = n, .first = kernels.n};
    size_t nin;
    struct ir_named *in = op_case_inputs(arena, g, b, 7, &nin);
    const struct cg_target t = {false};
    j.v = ir_eval(arena, g, b, in, nin);
    cg_lower_node(arena, g, n, b, &t, &j.low);
    for (size_t i = 0; i < j.low.step.n; i++)
        vec_push(arena, &kernels,
                 ((struct jit_kernel){j.low.step.p[i].symbol, j.low.step.p[i].text, NULL}));
    vec_push(arena, &jobs, j);
}

static void prepare(enum ir_op op, double tol, int variant)
{
    const struct op_case *c = op_case_find(op);
    struct ir_graph *g = c->build(arena, variant);
    if (large_logits(op, variant)) tol *= 50;
    add_job(c->name, variant, tol, g, op_case_node(g, c), op_case_bind(variant));
}

/* ---- what the table of cases lacks: views as operands, more than one piece of work ---- */

static ir_id input(struct ir_graph *g, const char *name, enum ir_dtype t, int64_t rows,
                   int64_t cols)
{
    ir_type_id type =
        rows ? ir_type2(g, t, dim_const(rows), dim_const(cols)) : ir_type1(g, t, dim_const(cols));
    return ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

/* Columns from..from+cols-1 of an input with 5 columns more. */
static ir_id columns(struct ir_graph *g, const char *name, int64_t rows, int64_t cols)
{
    return ir_slice(g, input(g, name, IR_f32, rows, cols + 5), 1, 2, 2 + cols);
}

/* Either columns of something wider or a matrix of its own. */
static ir_id matrix(struct ir_graph *g, const char *name, int64_t rows, int64_t cols, bool view)
{
    return view ? columns(g, name, rows, cols) : input(g, name, IR_f32, rows, cols);
}

static void moves(struct ir_graph *g, int64_t rows, int64_t cols, bool view)
{
    const struct ir_bind b = {1, 1};
    ir_id x = matrix(g, "x", rows, cols, view), y = matrix(g, "y", rows, cols + 3, view);
    ir_id ids = input(g, "ids.7", IR_i32, 0, rows);
    ir_type_id flat = ir_type1(g, IR_f32, dim_const(rows * cols));
    add_job("sum", rows, 1e-6, g, ir_add(g, OP_sum, SRCS(x), NO_ATTRS, NULL), b);
    add_job("concat", 1, 0, g, ir_add(g, OP_concat, SRCS(x, y, x), ATTRS(A_INT(axis, 1)), NULL), b);
    add_job("concat", 0, 0, g, ir_add(g, OP_concat, SRCS(x, x), ATTRS(A_INT(axis, 0)), NULL), b);
    add_job("reshape", rows, 0, g, ir_reshape(g, x, flat), b);
    add_job("embed_grad", rows, 1e-6, g,
            ir_add_typed(g, OP_embed_grad, ir_type2(g, IR_f32, dim_const(700), dim_const(cols)),
                         SRCS(x, ids), NO_ATTRS, NULL),
            b);
    ids = input(g, str_fmt(arena, "ids.%lld", (long long)rows), IR_i32, 0, 9);
    add_job("embed", rows, 0, g, ir_add(g, OP_embed, SRCS(x, ids), NO_ATTRS, NULL), b);
}

static void losses(struct ir_graph *g, int64_t rows, int64_t v, bool view)
{
    const struct ir_bind b = {1, 1};
    ir_id logits = matrix(g, "big.logits", rows, v, view);
    ir_id ids = input(g, str_fmt(arena, "ids.%lld", (long long)v), IR_i32, 0, rows);
    ir_id ce = ir_add(g, OP_cross_entropy, SRCS(logits, ids), NO_ATTRS, NULL);
    add_job("cross_entropy", rows, 1e-5, g, ce, b);
    ir_id dnll = input(g, "dnll", IR_f32, rows, 1), lse = ir_get(g, ce, 1);
    add_job("cross_entropy_grad", rows, 1e-5, g,
            ir_add(g, OP_cross_entropy_grad, SRCS(logits, ids, lse, dnll), NO_ATTRS, NULL), b);
}

static void applies(struct ir_graph *g, int64_t rows, int64_t cols, bool view)
{
    const struct ir_bind b = {1, 1};
    ir_id p = input(g, "p", IR_f32, rows, cols), m = input(g, "m", IR_f32, rows, cols);
    ir_id v = input(g, "pos.v", IR_f32, rows, cols), d = matrix(g, "g", rows, cols, view);
    ir_id ctl = input(g, "ctl", IR_f32, 0, 4), hyper = input(g, "hyper", IR_f32, 0, 4);
    ir_id loss = ir_add(g, OP_sum, SRCS(ctl), NO_ATTRS, NULL);
    add_job("adamw", rows, 1e-5, g,
            ir_add(g, OP_adamw, SRCS(p, d, m, v, ctl, hyper), ATTRS(A_NUM(weight_decay, .1)), NULL),
            b);
    add_job("momentum", rows, 1e-6, g,
            ir_add(g, OP_momentum, SRCS(d, m, ctl, hyper), ATTRS(A_NUM(momentum, .9)), NULL), b);
    add_job("muon_step", rows, 1e-6, g,
            ir_add(g, OP_muon_step, SRCS(p, d, ctl, hyper), ATTRS(A_NUM(scale, 2)), NULL), b);
    add_job("grad_norm", rows, 1e-6, g,
            ir_add(g, OP_grad_norm, SRCS(loss, d, ctl, p, d), ATTRS(A_NUM(clip, 1)), NULL), b);
}

static void prepare_more(void)
{
    static const struct {
        int64_t rows, cols;
        bool view;
    } sizes[] = {{3, 7, true}, {130, 127, false}, {2, 16389, true}, {3, 16500, false}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct ir_graph *g = graph_open(arena, "more", STAGE_K, NULL, NULL);
        moves(g, sizes[i].rows, sizes[i].cols, sizes[i].view);
        losses(g, sizes[i].rows, sizes[i].cols, sizes[i].view);
        applies(g, sizes[i].rows, sizes[i].cols, sizes[i].view);
    }
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
            p[k] = (r.kind == CG_SRC   ? at[r.index]
                    : r.kind == CG_RES ? out[r.index].p
                                       : work.p) +
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
            fail_msg("%s variant %lld: element %lld of result %u is %.9g, wanted %.9g", j->name,
                     (long long)j->variant, (long long)k, i, g, want.v[k]);
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
                fail_msg("%s variant %lld: result %u depends on the pieces", j->name,
                         (long long)j->variant, i);
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
    prepare_more();
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
