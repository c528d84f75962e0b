/* CUDA kernels of the apply program (codegen/cuda_optim.c). */
#include "cuda_ops.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_adamw, .tol = 1e-5},     {.op = OP_momentum, .tol = 1e-6},
        {.op = OP_muon_step, .tol = 1e-6}, {.op = OP_grad_norm, .tol = 1e-6},
        {.op = OP_qk_clip, .tol = 1e-6},   {.op = OP_balance, .tol = 1e-6},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

/* ---- many pieces, gradients that are views, more gradients than one launch takes ---- */

static const struct ir_bind one = {1, 1};

static ir_id in(struct ir_graph *g, const char *name, int64_t rows, int64_t cols)
{
    ir_type_id type = rows ? ir_type2(g, IR_f32, dim_const(rows), dim_const(cols))
                           : ir_type1(g, IR_f32, dim_const(cols));
    return ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

/* The gradient: columns from..from+cols-1 of something `more` wider. */
static void applies(struct cuda_ops *c, struct arena *a, int64_t rows, int64_t cols, int64_t from,
                    int64_t more)
{
    struct ir_graph *g = graph_open(a, "apply", STAGE_K, NULL, NULL);
    ir_id p = in(g, "p", rows, cols), m = in(g, "m", rows, cols), v = in(g, "pos.v", rows, cols);
    ir_id d = in(g, "g", rows, cols + more), ctl = in(g, "ctl", 0, 4), hyper = in(g, "hyper", 0, 4);
    if (more) d = ir_slice(g, d, 1, from, from + cols);
    ir_id loss = ir_add(g, OP_sum, SRCS(ctl), NO_ATTRS, NULL);
    cuda_ops_add(
        c, "adamw", cols, 1e-5, g,
        ir_add(g, OP_adamw, SRCS(p, d, m, v, ctl, hyper), ATTRS(A_NUM(weight_decay, .1)), NULL),
        one);
    cuda_ops_add(c, "momentum", cols, 1e-6, g,
                 ir_add(g, OP_momentum, SRCS(d, m, ctl, hyper), ATTRS(A_NUM(momentum, .9)), NULL),
                 one);
    cuda_ops_add(c, "muon_step", cols, 1e-6, g,
                 ir_add(g, OP_muon_step, SRCS(p, d, ctl, hyper), ATTRS(A_NUM(scale, 2)), NULL),
                 one);
    cuda_ops_add(c, "grad_norm", cols, 1e-6, g,
                 ir_add(g, OP_grad_norm, SRCS(loss, d, ctl, p, d), ATTRS(A_NUM(clip, 1)), NULL),
                 one);
}

static void many_gradients(struct cuda_ops *c, struct arena *a, size_t count)
{
    struct ir_graph *g = graph_open(a, "many", STAGE_K, NULL, NULL);
    ir_id *src = NEW(a, ir_id, count + 1);
    src[0] = ir_add(g, OP_sum, SRCS(in(g, "x", 0, 5)), NO_ATTRS, NULL);
    for (size_t i = 1; i <= count; i++)
        src[i] = in(g, str_fmt(a, "g%zu", i), i % 3 ? 0 : 2, (int64_t)(i * 997 % 300 + 1));
    ir_id n = ir_add(g, OP_grad_norm, src, count + 1, ATTRS(A_NUM(clip, 1)), NULL);
    cuda_ops_add(c, "grad_norm", (int64_t)count, 1e-6, g, n, one);
}

static void test_sizes(void **state)
{
    struct cuda_ops *c = cuda_ops_open();
    struct arena *a = arena_open("sizes");
    (void)state;
    applies(c, a, 3, 7, 2, 5);
    applies(c, a, 20, 132, 8, 24);
    applies(c, a, 2, 16389, 2, 5);
    applies(c, a, 3, 16500, 0, 0);
    many_gradients(c, a, 64);
    many_gradients(c, a, 150);
    cuda_ops_run(c);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops), cmocka_unit_test(test_sizes)};
    return cmocka_run_group_tests_name("cuda_optim", tests, NULL, NULL);
}
