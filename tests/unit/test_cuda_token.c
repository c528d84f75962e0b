/* CUDA kernels of token operations (codegen/cuda_token.c). */
#include "cuda_ops.h"
#include "op_build.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_embed, .tol = 0, .src = "0", .res = "1"},
        {.op = OP_embed_grad, .tol = 1e-6, .src = "1", .res = "0", .tol_narrow = 1e-6},
        {.op = OP_cross_entropy,
         .tol = 1e-5,
         .src = "10",
         .res = "0",
         .tol_narrow = 1e-5,
         .every = 2},
        {.op = OP_cross_entropy_grad,
         .tol = 1e-5,
         .src = "10",
         .res = "1",
         .tol_narrow = 1e-5,
         .every = 2},
        {.op = OP_count_valid, .tol = 0, .every = 3},
        {.op = OP_sum, .tol = 1e-6, .src = "1", .res = "0", .tol_narrow = 1e-6, .every = 3},
        {.op = OP_colmax, .tol = 0, .src = "1", .res = "0"},
        {.op = OP_concat, .tol = 0, .src = "1", .res = "1", .every = 2},
        {.op = OP_concat, .tol = 0, .src = "01", .res = "0", .every = 3},
        {.op = OP_concat, .tol = 0, .src = "0", .res = "1", .every = 3},
        {.op = OP_reshape, .tol = 0, .src = "1", .res = "1"},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

/* ---- views, rows of many blocks, more than one pass ---- */

static const struct ir_bind one = {1, 1};

static ir_id in(struct ir_graph *g, const char *name, enum ir_dtype t, int64_t rows, int64_t cols)
{
    ir_type_id type =
        rows ? ir_type2(g, t, dim_const(rows), dim_const(cols)) : ir_type1(g, t, dim_const(cols));
    return ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

/* A matrix of its own, or columns of one that is `more` wider, from column `from` on. */
static ir_id matrix(struct ir_graph *g, const char *name, int64_t rows, int64_t cols, int64_t from,
                    int64_t more)
{
    ir_id x = in(g, name, IR_f32, rows, cols + more);
    return more ? ir_slice(g, x, 1, from, from + cols) : x;
}

/* The node as it is, and with operands and results narrow. */
static void both(struct cuda_ops *c, const char *name, int64_t variant, double tol, const char *src,
                 const char *res, struct ir_graph *g, ir_id n)
{
    cuda_ops_add(c, name, variant, tol, g, n, one);
    cuda_ops_add_narrow(c, name, variant, tol, src, res, g, n, one);
}

static void moves(struct cuda_ops *c, struct ir_graph *g, int64_t rows, int64_t cols, int64_t from,
                  int64_t more)
{
    ir_id x = matrix(g, "x", rows, cols, from, more),
          y = matrix(g, "y", rows, cols + 8, from, more);
    ir_id ids = in(g, "ids.7", IR_i32, 0, rows), lookup = in(g, "ids.2", IR_i32, 0, 9);
    ir_type_id flat = ir_type1(g, IR_f32, dim_const(rows * cols));
    ir_type_id table = ir_type2(g, IR_f32, dim_const(1400 / cols), dim_const(cols));
    both(c, "concat", 1, 0, "10", "1", g,
         ir_add(g, OP_concat, SRCS(x, y, x), ATTRS(A_INT(axis, 1)), NULL));
    both(c, "concat", 0, 0, "1", "1", g,
         ir_add(g, OP_concat, SRCS(x, x), ATTRS(A_INT(axis, 0)), NULL));
    both(c, "reshape", rows, 0, "1", "1", g, ir_reshape(g, x, flat));
    both(c, "embed_grad", rows, 1e-5, "10", "0", g,
         ir_add_typed(g, OP_embed_grad, table, SRCS(x, ids), NO_ATTRS, NULL));
    both(c, "embed", rows, 0, "0", "1", g, ir_add(g, OP_embed, SRCS(x, lookup), NO_ATTRS, NULL));
}

static void sums(struct cuda_ops *c, struct ir_graph *g, int64_t rows, int64_t cols, int64_t more)
{
    ir_id x = matrix(g, "x", rows, cols, 2, more);
    both(c, "sum", rows, 1e-6, "1", "0", g, ir_add(g, OP_sum, SRCS(x), NO_ATTRS, NULL));
    if (cols < 100)
        both(c, "colmax", rows, 0, "1", "0", g, ir_add(g, OP_colmax, SRCS(x), NO_ATTRS, NULL));
}

static void losses(struct cuda_ops *c, struct ir_graph *g, int64_t rows, int64_t v, int64_t from,
                   int64_t more)
{
    ir_id logits = matrix(g, "big.logits", rows, v, from, more), dnll = in(g, "d", IR_f32, rows, 1);
    ir_id ids = in(g, "ids.100", IR_i32, 0, rows);
    ir_id ce = ir_add(g, OP_cross_entropy, SRCS(logits, ids), NO_ATTRS, NULL);
    both(c, "cross_entropy", rows, 1e-5, "10", "0", g, ce);
    both(c, "cross_entropy_grad", rows, 1e-5, "10", "1", g,
         ir_add(g, OP_cross_entropy_grad, SRCS(logits, ids, ir_get(g, ce, 1), dnll), NO_ATTRS,
                NULL));
}

/* Tokens of several sorted runs, and of several passes of merging. */
static void many_tokens(struct cuda_ops *c, struct ir_graph *g, int64_t tokens, const char *ids)
{
    ir_type_id table = ir_type2(g, IR_f32, dim_const(50), dim_const(4));
    ir_id dy = in(g, "dy", IR_f32, tokens, 4), id = in(g, ids, IR_i32, 0, tokens);
    cuda_ops_add(c, "embed_grad", tokens, 1e-4, g,
                 ir_add_typed(g, OP_embed_grad, table, SRCS(dy, id), NO_ATTRS, NULL), one);
}

static void test_sizes(void **state)
{
    struct cuda_ops *c = cuda_ops_open();
    struct arena *a = arena_open("sizes");
    (void)state;
#define GRAPH graph_open(a, "sizes", STAGE_K, NULL, NULL)
    moves(c, GRAPH, 3, 7, 2, 5);
    moves(c, GRAPH, 40, 128, 8, 24);
    sums(c, GRAPH, 2, 16389, 5);
    sums(c, GRAPH, 600, 3, 0);
    losses(c, GRAPH, 40, 128, 8, 24);
    losses(c, GRAPH, 2, 16504, 4, 12);
    losses(c, GRAPH, 2, 10001, 2, 5);
    many_tokens(c, GRAPH, 2500, "ids.50");
    many_tokens(c, GRAPH, 17500, "ids.1");
#undef GRAPH
    cuda_ops_run(c);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops), cmocka_unit_test(test_sizes)};
    return cmocka_run_group_tests_name("cuda_token", tests, NULL, NULL);
}
