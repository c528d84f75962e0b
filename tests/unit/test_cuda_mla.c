/* CUDA kernels of latent attention (codegen/cuda_mla.c). */
#include "cuda_ops.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_mla_keys, .tol = 0, .src = "10", .res = "1", .every = 5},
        {.op = OP_mla_keys_grad,
         .tol = 1e-6,
         .src = "10",
         .res = "1",
         .tol_narrow = 1e-6,
         .every = 5},
        {.op = OP_mla_cached,
         .tol = 1e-5,
         .src = "10",
         .res = "1",
         .tol_narrow = 1e-5,
         .every = 17},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

static ir_id input(struct ir_graph *g, const char *name, enum ir_dtype t, struct ir_dim rows,
                   int64_t cols)
{
    ir_type_id type = cols ? ir_type2(g, t, rows, dim_const(cols)) : ir_type1(g, t, rows);
    return ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

/* Latents as models have them, more pieces of keys than one. */
static void test_long(void **state)
{
    enum { H = 2, NOPE = 128, ROPE = 64, V = 128, L = 512, CONTEXT = 320 };
    struct arena *a = arena_open("long");
    struct cuda_ops *c = cuda_ops_open();
    (void)state;
    for (int64_t T = 1; T < 16; T += 13) {
        struct ir_graph *g = graph_open(a, "long", STAGE_K, NULL, NULL);
        struct ir_dim N = dim_sym(SYM_N, 1), B = dim_sym(SYM_B, 1);
        ir_id q = input(g, "q", IR_f32, N, H * (NOPE + ROPE));
        ir_id w = input(g, "w", IR_f32, dim_const(H * (NOPE + V)), L);
        ir_id cache = input(g, "cache", IR_f32, dim_const(11 * 64 + 64), L + ROPE);
        ir_id pages = input(g, "pages.7.5.12", IR_i32, dim_scale(B, CONTEXT / 64), 0);
        ir_id past = input(g, "past7", IR_i32, B, 0);
        ir_id n = ir_add(g, OP_mla_cached, SRCS(q, w, cache, pages, past),
                         ATTRS(A_INT(heads, H), A_INT(head_dim, NOPE), A_INT(v_dim, V),
                               A_NUM(scale, 1 / sqrt(192.0 * L)), A_INT(context, CONTEXT)),
                         NULL);
        cuda_ops_add(c, "long", T, 1e-5, g, n, (struct ir_bind){2, T});
    }
    cuda_ops_run(c);
    arena_close(a);
}

/* The same in bf16, by tensor cores: sixteen rows a block and two of them. */
static void test_bf16(void **state)
{
    enum { H = 4, NOPE = 32, ROPE = 16, V = 24, L = 512, CONTEXT = 320 };
    static const struct ir_bind b[] = {{2, 1}, {1, 1}, {1, 9}};
    struct arena *a = arena_open("bf16");
    struct cuda_ops *c = cuda_ops_open();
    (void)state;
    cuda_ops_no_library(c, true);
    for (int i = 0; i < 3; i++) {
        struct ir_graph *g = graph_open(a, "bf16", STAGE_K, NULL, NULL);
        struct ir_dim N = dim_sym(SYM_N, 1), B = dim_sym(SYM_B, 1);
        ir_type_id wt = ir_type2(g, IR_f32, dim_const(H * (NOPE + V)), dim_const(L));
        ir_id q = input(g, "q", IR_f32, N, H * (NOPE + ROPE));
        ir_id w = ir_add_typed(g, OP_param, wt, NO_SRCS,
                               ATTRS(A_STR(name, "w"), A_STR(store, "rows_bf16")), "w");
        ir_id cache = input(g, "cache", IR_bf16, dim_const(31 * 64), L + ROPE);
        ir_id pages = input(g, "pages.-200.5.31", IR_i32, dim_scale(B, CONTEXT / 64), 0);
        ir_id past = input(g, "past-200", IR_i32, B, 0);
        ir_id n = ir_add(g, OP_mla_cached, SRCS(q, w, cache, pages, past),
                         ATTRS(A_INT(heads, H), A_INT(head_dim, NOPE), A_INT(v_dim, V),
                               A_NUM(scale, 1 / sqrt(48.0 * L)), A_INT(context, CONTEXT)),
                         NULL);
        cuda_ops_add_narrow(c, "bf16", i, 1e-2, "10", "1", g, n, b[i]);
        if (i == 2) cuda_ops_same(c, H * V * 2);
    }
    cuda_ops_run(c);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops), cmocka_unit_test(test_long),
                                       cmocka_unit_test(test_bf16)};
    return cmocka_run_group_tests_name("cuda_mla", tests, NULL, NULL);
}
