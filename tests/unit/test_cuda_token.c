/* CUDA kernels of token operations (codegen/cuda_token.c). */
#include "cuda_ops.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_embed, .tol = 0, .src = "0", .res = "1"},
        {.op = OP_embed_grad, .tol = 1e-6, .src = "1", .res = "0", .tol_narrow = 1e-6},
        {.op = OP_cross_entropy, .tol = 1e-5, .src = "10", .res = "0", .tol_narrow = 2e-2},
        {.op = OP_cross_entropy_grad, .tol = 1e-5, .src = "10", .res = "1", .tol_narrow = 2e-2},
        {.op = OP_count_valid, .tol = 0},
        {.op = OP_sum, .tol = 1e-6, .src = "1", .res = "0", .tol_narrow = 1e-2},
        {.op = OP_colmax, .tol = 0, .src = "1", .res = "0", .tol_narrow = 1e-2},
        {.op = OP_concat, .tol = 0, .src = "1", .res = "1", .tol_narrow = 1e-2},
        {.op = OP_concat, .tol = 0, .src = "01", .res = "0", .tol_narrow = 1e-2},
        {.op = OP_concat, .tol = 0, .src = "0", .res = "1", .tol_narrow = 1e-2},
        {.op = OP_reshape, .tol = 0, .src = "1", .res = "1", .tol_narrow = 1e-2},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops)};
    return cmocka_run_group_tests_name("cuda_token", tests, NULL, NULL);
}
