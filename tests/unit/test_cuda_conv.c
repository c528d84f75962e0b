/* CUDA kernels of the short convolutions (codegen/cuda_conv.c). */
#include "cuda_ops.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_repeat, .tol = 0, .every = 3},
        {.op = OP_short_conv, 1e-6, "10", "1", 1e-6, .every = 5},
        {.op = OP_short_conv_grad, 2e-6, "110", "10", 2e-6, .every = 5},
        {.op = OP_conv_cached, 1e-6, "10", "10", 1e-6, .every = 5},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

static ir_id operand(struct ir_graph *g, const char *name, ir_type_id type)
{
    return ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

/* Several pieces of rows; channels by ones, twos and fours, over more than one block. */
static void test_lengths(void **state)
{
    (void)state;
    static const int64_t widths[] = {65, 66, 516};
    struct cuda_ops *c = cuda_ops_open();
    struct arena *a = arena_open("test_cuda_conv");
    const struct ir_bind b = {2, 70};
    for (int i = 0; i < 3; i++) {
        const int64_t C = widths[i];
        struct ir_graph *g = graph_open(a, "conv", STAGE_K, NULL, NULL);
        ir_type_id rows = ir_type2(g, IR_f32, dim_sym(SYM_N, 1), dim_const(C));
        ir_type_id each = ir_type1(g, IR_i32, dim_sym(SYM_B, 1));
        ir_id x = operand(g, "x", rows), dy = operand(g, "dy", rows);
        ir_id w = operand(g, "w", ir_type2(g, IR_f32, dim_const(C), dim_const(4)));
        ir_id kept = operand(g, "s", ir_type2(g, IR_f32, dim_const(21), dim_const(C)));
        ir_id states = operand(g, "states", each), past = operand(g, "past1", each);
        ir_id y = ir_add(g, OP_short_conv, SRCS(x, w), NO_ATTRS, NULL);
        ir_id back = ir_add(g, OP_short_conv_grad, SRCS(dy, x, w), NO_ATTRS, NULL);
        ir_id cached = ir_add(g, OP_conv_cached, SRCS(x, w, kept, states, past), NO_ATTRS, NULL);
        cuda_ops_add(c, "short_conv", i, 1e-6, g, y, b);
        cuda_ops_add(c, "short_conv_grad", i, 2e-6, g, back, b);
        cuda_ops_add(c, "conv_cached", i, 1e-6, g, cached, b);
        cuda_ops_add_narrow(c, "short_conv", i, 1e-6, "10", "1", g, y, b);
        cuda_ops_add_narrow(c, "short_conv_grad", i, 2e-6, "010", "10", g, back, b);
    }
    cuda_ops_run(c);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops), cmocka_unit_test(test_lengths)};
    return cmocka_run_group_tests_name("cuda_conv", tests, NULL, NULL);
}
