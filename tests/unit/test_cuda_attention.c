/* CUDA kernels of attention and rotary embedding (codegen/cuda_attention.c). */
#include "cuda_ops.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_rope_table, .tol = 1e-5, .every = 4},
        {.op = OP_rope, .tol = 1e-5, .src = "10", .res = "1", .tol_narrow = 1e-5, .every = 7},
        {.op = OP_attention,
         .tol = 1e-5,
         .src = "1",
         .res = "100",
         .tol_narrow = 4e-3,
         .every = 17},
        {.op = OP_attention_grad,
         .tol = 2e-5,
         .src = "111101",
         .res = "1",
         .tol_narrow = 4e-3,
         .every = 20},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

/* Heads as models have them: tiles with and without a diagonal, a window's edge, more than one
 * sequence, rows that lie apart. */
struct heads {
    int64_t h, kv, hd, vd, window;
    struct ir_bind b;
    bool plain, grad, together; /* in float32 too; the backward too; q, k, v are columns of one */
    int64_t before; /* so many rows have the bits of the case before, which has no later ones */
};

static ir_id input(struct ir_graph *g, const char *name, int64_t cols)
{
    return ir_add_typed(g, OP_input, ir_type2(g, IR_f32, dim_sym(SYM_N, 1), dim_const(cols)),
                        NO_SRCS, ATTRS(A_STR(name, name)), name);
}

static ir_id columns(struct ir_graph *g, ir_id x, int64_t from, int64_t to)
{
    return ir_add(g, OP_slice, SRCS(x), ATTRS(A_INT(axis, 1), A_INT(from, from), A_INT(to, to)),
                  NULL);
}

static void add(struct cuda_ops *c, struct arena *a, int64_t at, const struct heads *x)
{
    struct ir_graph *g = graph_open(a, "heads", STAGE_K, NULL, NULL);
    int64_t nq = x->h * x->hd, nk = x->kv * x->hd, nv = x->kv * x->vd;
    ir_id q, k, v;
    if (x->together) {
        ir_id all = input(g, "qkv", nq + nk + nv);
        q = columns(g, all, 0, nq), k = columns(g, all, nq, nq + nk);
        v = columns(g, all, nq + nk, nq + nk + nv);
    } else {
        q = input(g, "q", nq), k = input(g, "k", nk), v = input(g, "v", nv);
    }
    const struct ir_attr attr[] = {A_INT(heads, x->h),
                                   A_INT(kv_heads, x->kv),
                                   A_INT(head_dim, x->hd),
                                   A_INT(v_dim, x->vd),
                                   A_NUM(scale, 1 / sqrt((double)x->hd)),
                                   A_INT(window, x->window)};
    size_t n = x->window ? 6 : 5;
    ir_id t = ir_add(g, OP_attention, SRCS(q, k, v), attr, n, NULL), node = t;
    if (x->grad) {
        ir_id o = ir_get(g, t, 0), lse = ir_get(g, t, 1), d = input(g, "do", x->h * x->vd);
        node = ir_add(g, OP_attention_grad, SRCS(q, k, v, o, lse, d), attr, n, NULL);
    }
    cuda_ops_add_narrow(c, "heads", at, 4e-3, x->grad ? "111101" : "1", x->grad ? "1" : "100", g,
                        node, x->b);
    if (x->before) cuda_ops_same(c, (size_t)(x->before * x->h * (x->grad ? x->hd : x->vd)) * 2);
    if (x->plain) cuda_ops_add(c, "heads", at, 2e-5, g, node, x->b);
}

static void test_heads(void **state)
{
    static const struct heads all[] = {
        {2, 1, 64, 64, 0, {1, 150}, false, false, true, 0},
        {2, 1, 64, 64, 0, {1, 270}, true, false, true, 150},
        {2, 1, 128, 128, 70, {1, 133}, false, false, false, 0},
        {1, 1, 192, 128, 0, {1, 140}, false, false, false, 0},
        {2, 1, 64, 64, 0, {1, 70}, false, true, true, 0},
        {2, 1, 64, 64, 0, {1, 150}, false, true, true, 70},
        {1, 1, 128, 128, 70, {1, 133}, false, true, false, 0},
        {1, 1, 192, 128, 0, {1, 135}, false, true, false, 0},
        {1, 1, 192, 128, 0, {1, 35}, true, true, false, 0},
        {1, 1, 256, 64, 0, {1, 70}, false, true, false, 0},
        {4, 2, 32, 32, 20, {2, 140}, false, true, true, 0},
        {2, 1, 72, 40, 33, {2, 35}, true, true, false, 0},
    };
    struct arena *a = arena_open("heads");
    struct cuda_ops *c = cuda_ops_open();
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) add(c, a, (int64_t)i, all + i);
    cuda_ops_run(c);
    arena_close(a);
}

/* Whether attention of heads of `size` becomes that of tensor cores, or why it does not. */
static const char *why(unsigned sm, int64_t size, int64_t apart, bool narrow)
{
    struct arena *a = arena_open("why");
    struct ir_graph *g = graph_open(a, "why", STAGE_K, NULL, NULL);
    const struct ir_attr word = A_STR(narrow, "1");
    ir_id x[3];
    for (int i = 0; i < 3; i++) {
        const char *name = str_fmt(a, "x%d", i);
        ir_type_id t = ir_type2(g, IR_f32, dim_sym(SYM_N, 1), dim_const(2 * size + apart));
        const struct ir_attr attr[] = {A_STR(name, name), word};
        ir_id all = ir_add_typed(g, OP_input, t, NO_SRCS, attr, narrow ? 2 : 1, name);
        x[i] = apart ? columns(g, all, apart, 2 * size + apart) : all;
    }
    ir_id n = ir_add(g, OP_attention, SRCS(x[0], x[1], x[2]),
                     ATTRS(A_INT(heads, 2), A_INT(kv_heads, 2), A_INT(head_dim, size),
                           A_INT(v_dim, size), A_NUM(scale, 1), word),
                     NULL);
    struct cg_lowering low = {0};
    cg_lower_node(a, g, n, (struct ir_bind){1, 7}, &(struct cg_target){.sm = sm}, &low);
    bool flash = !strncmp(low.step.p[0].symbol, "flash_", 6);
    const char *s = low.step.p[0].why; /* a constant */
    arena_close(a);
    assert_true(flash == !s);
    return s ? s : "none";
}

static void test_forms(void **state)
{
    (void)state;
    assert_string_equal(why(90, 64, 0, true), "none");
    assert_string_equal(why(90, 128, 8, true), "none");
    assert_non_null(strstr(why(90, 64, 0, false), "float32"));
    assert_non_null(strstr(why(90, 64, 4, true), "16 bytes"));
    assert_non_null(strstr(why(90, 320, 0, true), "wider"));
    assert_non_null(strstr(why(89, 256, 0, true), "shared memory"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops), cmocka_unit_test(test_heads),
                                       cmocka_unit_test(test_forms)};
    return cmocka_run_group_tests_name("cuda_attention", tests, NULL, NULL);
}
