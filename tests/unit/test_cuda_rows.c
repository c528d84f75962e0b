/* CUDA kernels of row regions (codegen/cuda_rows.c): those of the table, and of row_graphs.h after
 * the pass, at widths that take every form of a kernel, with operands and results in both types. */
#include "compiler/pass.h"
#include "cuda_ops.h"
#include "row_graphs.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_rows, .tol = 2e-6, .src = "1", .res = "0", .tol_narrow = 2e-6},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

/* The words that make operands and results of [N,C] narrow where bit i of `which` says so. */
static char *words(struct arena *a, const struct ir_graph *g, ir_id n, bool results, unsigned which)
{
    const struct ir_graph *r = g->region.p[ir_int(g, n, AK_region, 0)];
    uint32_t count = results ? (uint32_t)r->out.n : ir_at(g, n)->nsrc;
    char *w = NEW(a, char, count + 1);
    for (uint32_t i = 0; i < count; i++) {
        bool sum = results && ir_at(r, r->out.p[i].id)->op == OP_colsum;
        w[i] = "01"[!sum && (which >> i % 8 & 1)];
    }
    return w;
}

static void add_regions(struct cuda_ops *c, struct arena *a, struct ir_graph *g, int64_t rows,
                        int64_t variant, double tol)
{
    struct pass_ctx ctx = {.arena = a, .bind = {1, rows}};
    struct ir_graph *k = pass_fuse_rows(&ctx, g);
    for (ir_id n = 0; n < k->node.n; n++) {
        if (ir_at(k, n)->op != OP_rows) continue;
        const struct ir_graph *r = k->region.p[ir_int(k, n, AK_region, 0)];
        bool strided = false;
        for (size_t i = 0; i < r->out.n; i++) strided = strided || r->out.p[i].ld;
        if (strided) continue;
        cuda_ops_add(c, g->program, variant, tol, k, n, ctx.bind);
        static const unsigned mixes[] = {0xff, 0x55, 0xaa, 0x0f};
        unsigned m = mixes[(variant + n) % 4];
        cuda_ops_add_narrow(c, g->program, variant, tol, words(a, k, n, false, m),
                            words(a, k, n, true, ~m >> n % 3 | 1), k, n, ctx.bind);
    }
}

static void test_written(void **state)
{
    static const int64_t sizes[] = {1, 7, 8, 12, 16, 37, 64, 100, 128, 256, 384, 1000, 1088, 2048};
    static const int64_t rows[] = {1, 5, 33, 70};
    (void)state;
    struct arena *a = arena_open("rows");
    struct cuda_ops *c = cuda_ops_open();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        add_regions(c, a, row_graph_norm(a, sizes[i]), rows[(i + 1) % 4], sizes[i], 2e-5);
        if (i % 2) add_regions(c, a, row_graph_swiglu(a, sizes[i]), rows[i % 4], sizes[i], 2e-5);
        if (i % 2 == 0 && sizes[i] < 1000)
            add_regions(c, a, row_graph_mixed(a, sizes[i]), rows[(i / 2) % 4], sizes[i], 2e-5);
    }
    cuda_ops_run(c);
    arena_close(a);
}

/* Functions that narrow.c marks as coarse: still within 20 bits of float64. */
static struct ir_graph *coarse_graph(struct arena *a, int64_t cols)
{
    struct ir_graph *g = graph_open(a, "coarse", STAGE_T, NULL, NULL);
    ir_type_id type = ir_type2(g, IR_f32, dim_sym(SYM_N, 1), dim_const(cols));
    ir_id x = ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, "x")), "x");
    static const enum ir_op ops[] = {OP_exp, OP_tanh, OP_sigmoid};
    for (size_t i = 0; i < 3; i++)
        ir_output(g, op_info(ops[i])->name,
                  ir_add(g, ops[i], &x, 1, ATTRS(A_INT(coarse, 1)), NULL));
    ir_id d = ir_add(g, OP_div, SRCS(x, ir_const(g, 25)), ATTRS(A_INT(coarse, 1)), NULL);
    ir_output(g, "div", d);
    return g;
}

static void test_coarse(void **state)
{
    (void)state;
    struct arena *a = arena_open("rows");
    struct cuda_ops *c = cuda_ops_open();
    add_regions(c, a, coarse_graph(a, 7), 33, 7, 1e-6);
    add_regions(c, a, coarse_graph(a, 256), 5, 256, 1e-6);
    cuda_ops_run(c);
    arena_close(a);
}

static void test_random(void **state)
{
    static const int64_t sizes[] = {1, 6, 24, 40, 130};
    (void)state;
    const char *env = getenv("STRATA_TEST_SEED");
    row_graph_seed = env ? strtoull(env, NULL, 10) : 7;
    struct arena *a = arena_open("rows");
    struct cuda_ops *c = cuda_ops_open();
    for (unsigned i = 0; i < 5; i++)
        add_regions(c, a, row_graph_random(a, i, sizes[i]), i % 2 ? 20 : 3, i, 1e-3);
    cuda_ops_run_cpu(c); /* more divisions and roots than any model has */
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops),
        cmocka_unit_test(test_written),
        cmocka_unit_test(test_coarse),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests_name("cuda_rows", tests, NULL, NULL);
}
