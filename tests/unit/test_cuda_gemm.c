/* CUDA kernels of matrix products and of the head (codegen/cuda_gemm.c, cuda_head.c). */
#include "cuda_ops.h"
#include "op_build.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* Products of the library (on this machine a plain loop), and grouped ones. */
static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {OP_matmul, 1e-5, "10", "1", 1e-5, 7, false},
        {OP_matmul, 1e-5, "1", "0", 1e-5, 9, true},
        {OP_matmul, 1e-5, "01", "1", 1e-5, 13, true},
        {OP_grouped_matmul, 1e-5, "1", "1", 1e-5, 9, false},
        {OP_grouped_matmul, 1e-5, "10", "0", 1e-5, 17, true},
        {OP_grouped_matmul_dw, 1e-5, "1", "0", 1e-5, 7, false},
        {OP_head_loss, 1e-5, "10", "010", 1e-5, 9, false},
        {OP_head_nll, 1e-5, "10", "0", 1e-5, 9, true},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

/* x [rows,K] or its transpose times w: rows of a run, features elsewhere. */
struct size {
    int64_t m, n, k;
    bool ta, tb, bf16;
    const char *src, *res; /* what is narrow; NULL: nothing */
};

static void add(struct cuda_ops *c, struct arena *a, int64_t i, struct size s)
{
    struct k k = start(a, 0, STAGE_K);
    struct ir_dim m = dim_sym(SYM_N, 1), depth = dim_const(s.k), n = dim_const(s.n);
    if (s.ta) m = dim_const(s.m), depth = s.tb ? dim_const(s.k) : dim_sym(SYM_N, 1);
    ir_id x = s.ta ? mat(&k, "x", depth, s.m) : mat(&k, "x", m, s.k);
    ir_id w = s.tb ? mat(&k, "w", n, s.k) : mat(&k, "w", depth, s.n);
    ir_id y = ir_matmul_as(k.g, x, w, s.ta, s.tb, s.bf16, NULL);
    struct ir_bind b = {1, s.ta ? s.k : s.m};
    finish(&k, y);
    if (s.src)
        cuda_ops_add_narrow(c, "matmul", i, 1e-5, s.src, s.res, k.g, y, b);
    else
        cuda_ops_add(c, "matmul", i, 1e-5, k.g, y, b);
}

/* Several tiles, stages and pieces, and what is left over of each. */
static void test_sizes(void **state)
{
    static const struct size sizes[] = {
        {130, 77, 200, false, true, false, NULL, NULL},
        {130, 77, 200, false, false, false, "10", "1"},
        {130, 80, 200, false, true, true, NULL, NULL},
        {130, 77, 201, false, true, true, "1", "1"},
        {136, 72, 290, true, false, true, "1", "0"},
        {67, 72, 296, true, false, true, "1", "0"},
        {70, 200, 600, false, false, true, "10", "0"},
        {33, 136, 700, false, false, true, "10", "1"},
        {40, 70, 600, false, true, true, NULL, NULL},
        {5, 77, 513, false, true, true, NULL, NULL},
        {24, 40, 530, true, true, false, NULL, NULL},
        {16, 20, 1864, false, true, true, "1", "1"},
        {3, 24, 1864, false, false, true, "10", "0"},
        {2, 8450, 264, false, true, true, "1", "1"},
        {16, 20, 1864, false, true, false, NULL, NULL},
        {1, 12, 2304, false, true, false, NULL, NULL},
    };
    struct arena *a = arena_open("test");
    struct cuda_ops *c = cuda_ops_open();
    (void)state;
    cuda_ops_no_library(c, true);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) add(c, a, (int64_t)i, sizes[i]);
    cuda_ops_run(c);
    arena_close(a);
}

/* A row has the same bits whatever M is, hence in every form. */
static void test_rows_alone(void **state)
{
    static const int64_t rows[] = {1, 40, 100};
    struct arena *a = arena_open("test");
    struct cuda_ops *c = cuda_ops_open();
    (void)state;
    cuda_ops_no_library(c, true);
    for (int form = 0; form < 5; form++) /* form 4: warps that have two pieces each */
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            struct size s = {rows[i], 72, 600, false, form != 1, form != 3, NULL, NULL};
            bool narrow = form == 2 || form == 4;
            if (form == 4) s.n = 24, s.k = 1864;
            if (narrow) s.src = "1", s.res = "1";
            add(c, a, 100 * form + rows[i], s);
            if (i) cuda_ops_same(c, (size_t)(rows[i - 1] * s.n * (narrow ? 2 : 4)));
        }
    cuda_ops_run(c);
    arena_close(a);
}

static void add_stack(struct cuda_ops *c, struct arena *a)
{
    struct k k = start(a, 0, STAGE_K);
    struct ir_dim x[3] = {dim_const(66), dim_const(130), dim_const(24)};
    struct ir_dim w[3] = {dim_const(66), dim_const(9), dim_const(24)};
    ir_id y =
        ir_matmul_as(k.g, input(&k, "x", type_add(k.g->types, IR_f32, 3, x)),
                     input(&k, "w", type_add(k.g->types, IR_f32, 3, w)), false, true, true, NULL);
    finish(&k, y);
    cuda_ops_add(c, "matmul", 0, 1e-5, k.g, y, (struct ir_bind){1, 1});
}

/* Products, or dw, of rows whose experts are the largest of random logits. */
static void add_grouped(struct cuda_ops *c, struct arena *a, int64_t rows, int64_t experts, bool dw)
{
    enum { K = 72, M = 136 };
    struct k k = start(a, 0, STAGE_K);
    ir_id t =
        ir_add(k.g, OP_moe_route, SRCS(mat(&k, "logits", k.N, experts), vec(&k, "bias", experts)),
               ATTRS(A_INT(k, 1), A_STR(score, "sigmoid"), A_NUM(scale, 1)), NULL);
    t = ir_add(k.g, OP_moe_sort, SRCS(ir_get(k.g, t, 0)), ATTRS(A_INT(experts, experts)), NULL);
    struct ir_dim d[3] = {dim_const(experts), dim_const(M), dim_const(K)};
    ir_id x = mat(&k, "x", k.N, K), offsets = ir_get(k.g, t, 0);
    ir_id y = dw ? ir_add(k.g, OP_grouped_matmul_dw, SRCS(mat(&k, "dy", k.N, M), x, offsets),
                          ATTRS(A_INT(bf16, 1)), NULL)
                 : ir_add(k.g, OP_grouped_matmul,
                          SRCS(x, input(&k, "w", type_add(k.g->types, IR_f32, 3, d)), offsets),
                          ATTRS(A_INT(tb, 1), A_INT(bf16, 1)), NULL);
    finish(&k, y);
    cuda_ops_add(c, "grouped", rows, 1e-5, k.g, y, (struct ir_bind){1, rows});
}

static void test_grouped(void **state)
{
    static const int64_t rows[] = {1, 16, 60, 130};
    struct arena *a = arena_open("test");
    struct cuda_ops *c = cuda_ops_open();
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        add_grouped(c, a, rows[i], 1, false);
        if (i) cuda_ops_same(c, (size_t)rows[i - 1] * 136 * 4);
    }
    add_grouped(c, a, 190, 3, true);
    add_grouped(c, a, 41, 170, false); /* more experts than a block of few rows has threads */
    cuda_ops_no_library(c, true);
    add_stack(c, a);
    cuda_ops_run(c);
    arena_close(a);
}

/* A vocabulary whose rows take blocks of 1024 threads, several passes each. */
static void test_large_head(void **state)
{
    enum { VOCAB = 16388, WIDTH = 8, ROWS = 3 };
    struct arena *a = arena_open("test");
    struct cuda_ops *c = cuda_ops_open();
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct k k = start(a, 0, STAGE_K);
        ir_id h = mat(&k, "h", k.N, WIDTH), w = mat(&k, "w", dim_const(VOCAB), WIDTH);
        ir_id y = ir_add(k.g, OP_head_loss, SRCS(h, w, ids(&k, VOCAB), mat(&k, "d", k.N, 1)),
                         ATTRS(A_INT(bf16, bf16)), NULL);
        finish(&k, y);
        cuda_ops_add(c, "head_loss", bf16, 1e-5, k.g, y, (struct ir_bind){1, ROWS});
    }
    cuda_ops_run(c);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops),        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_rows_alone), cmocka_unit_test(test_grouped),
        cmocka_unit_test(test_large_head),
    };
    return cmocka_run_group_tests_name("cuda_gemm", tests, NULL, NULL);
}
