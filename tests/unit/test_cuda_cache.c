/* CUDA kernels over caches (codegen/cuda_cache.c). */
#include "cuda_ops.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_last_rows, .tol = 0, .src = "1", .res = "1", .every = 6},
        {.op = OP_cache_write, .tol = 0, .src = "110", .res = "1", .every = 6},
        {.op = OP_attention_cached,
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

/* More pieces of keys than one, windows over two of them, as one block and as many; a token or a
 * chunk of them. */
static void test_long(void **state)
{
    static const struct {
        int64_t h, kv, hd, window, context;
        int past; /* N: 40 N before the second sequence */
        struct ir_bind b;
    } all[] = {
        {4, 1, 128, 0, 640, 13, {2, 1}},
        {4, 2, 64, 0, 640, 13, {2, 20}},
        {2, 2, 40, 300, 1664, 40, {2, 7}},
        {16, 1, 32, 0, 320, 6, {2, 2}},
    };
    struct arena *a = arena_open("long");
    struct cuda_ops *c = cuda_ops_open();
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct ir_graph *g = graph_open(a, "long", STAGE_K, NULL, NULL);
        struct ir_dim N = dim_sym(SYM_N, 1), B = dim_sym(SYM_B, 1);
        int64_t h = all[i].h, kv = all[i].kv, hd = all[i].hd, P = all[i].context / 64;
        struct ir_dim rows = dim_const((3 * P + 1) * 64);
        const char *table = str_fmt(a, "pages.%d.%d.%d", all[i].past, (int)P, (int)(3 * P + 1));
        ir_id q = input(g, "q", IR_f32, N, h * hd);
        ir_id k = input(g, "k", IR_f32, rows, kv * hd);
        ir_id v = input(g, "v", IR_f32, rows, kv * hd);
        ir_id pages = input(g, table, IR_i32, dim_scale(B, P), 0);
        ir_id past = input(g, str_fmt(a, "past%d", all[i].past), IR_i32, B, 0);
        ir_id n = ir_add(g, OP_attention_cached, SRCS(q, k, v, pages, past),
                         ATTRS(A_INT(heads, h), A_INT(kv_heads, kv), A_INT(head_dim, hd),
                               A_INT(window, all[i].window), A_NUM(scale, 1 / sqrt((double)hd)),
                               A_INT(context, all[i].context)),
                         NULL);
        cuda_ops_add(c, "long", (int64_t)i, 1e-5, g, n, all[i].b);
    }
    cuda_ops_run(c);
    arena_close(a);
}

/* Queries and caches of bf16: heads, head sizes, windows; rows of one and of two sixteens, a piece
 * of keys and several, in one block and side by side. */
static void test_bf16(void **state)
{
    static const struct {
        int64_t h, kv, hd, window, context;
        int past; /* as above; negative: the first one's, negated */
        struct ir_bind b;
        bool same; /* the tokens of the case before are the first ones here */
    } all[] = {
        {2, 2, 64, 0, 192, 3, {3, 1}, false},
        {8, 2, 128, 0, 704, 13, {2, 1}, false},
        {4, 4, 32, 150, 704, 14, {2, 9}, false},
        {6, 1, 40, 0, 384, -200, {1, 2}, false}, /* one tile of rows, pieces side by side */
        {6, 1, 40, 0, 384, -200, {1, 33}, true}, /* seven */
        {16, 4, 256, 70, 320, -250, {1, 5}, false},
        {4, 1, 24, 0, 64, 0, {2, 20}, false},
        {32, 1, 16, 0, 192, 3, {2, 1}, false},
        {2, 1, 16, 0, 2560, -2400, {1, 1}, false}, /* pieces of 64 and of 128 */
        {2, 1, 16, 0, 2560, -2399, {1, 17}, false},
        {66, 66, 16, 0, 256, -150, {1, 1}, false}, /* 66 blocks and their pieces */
        {66, 66, 16, 0, 256, -150, {1, 33}, true}, /* 132 blocks of all pieces */
    };
    struct arena *a = arena_open("bf16");
    struct cuda_ops *c = cuda_ops_open();
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct ir_graph *g = graph_open(a, "bf16", STAGE_K, NULL, NULL);
        struct ir_dim N = dim_sym(SYM_N, 1), B = dim_sym(SYM_B, 1);
        int64_t h = all[i].h, kv = all[i].kv, hd = all[i].hd, P = all[i].context / 64;
        int64_t pool = 6 * P + 1;
        struct ir_dim rows = dim_const(pool * 64);
        const char *table = str_fmt(a, "pages.%d.%d.%d", all[i].past, (int)P, (int)pool);
        ir_id q = input(g, "q", IR_f32, N, h * hd);
        ir_id k = input(g, "k", IR_bf16, rows, kv * hd);
        ir_id v = input(g, "v", IR_bf16, rows, kv * hd);
        ir_id pages = input(g, table, IR_i32, dim_scale(B, P), 0);
        ir_id past = input(g, str_fmt(a, "past%d", all[i].past), IR_i32, B, 0);
        ir_id n = ir_add(g, OP_attention_cached, SRCS(q, k, v, pages, past),
                         ATTRS(A_INT(heads, h), A_INT(kv_heads, kv), A_INT(head_dim, hd),
                               A_INT(window, all[i].window), A_NUM(scale, 1 / sqrt((double)hd)),
                               A_INT(context, all[i].context)),
                         NULL);
        cuda_ops_add_narrow(c, "bf16", (int64_t)i, 4e-3, "10", "1", g, n, all[i].b);
        if (all[i].same) cuda_ops_same(c, (size_t)(all[i - 1].b.T * h * hd) * 2);
    }
    cuda_ops_run(c);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops), cmocka_unit_test(test_long),
                                       cmocka_unit_test(test_bf16)};
    return cmocka_run_group_tests_name("cuda_cache", tests, NULL, NULL);
}
