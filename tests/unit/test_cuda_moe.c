/* CUDA kernels of the mixture of experts (codegen/cuda_moe.c). */
#include "cuda_ops.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_moe_route, .tol = 1e-6},
        {.op = OP_moe_route_grad, .tol = 1e-5},
        {.op = OP_moe_sort, .tol = 0},
        {.op = OP_moe_gather, .tol = 0, .src = "1", .res = "1", .every = 3},
        {.op = OP_moe_gather_grad,
         .tol = 1e-6,
         .src = "1",
         .res = "1",
         .tol_narrow = 1e-6,
         .every = 3},
        {.op = OP_moe_combine,
         .tol = 1e-6,
         .src = "10",
         .res = "1",
         .tol_narrow = 1e-6,
         .every = 3},
        {.op = OP_moe_combine_grad,
         .tol = 1e-5,
         .src = "110",
         .res = "10",
         .tol_narrow = 1e-5,
         .every = 3},
        {.op = OP_moe_load, .tol = 0, .every = 4},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops)};
    return cmocka_run_group_tests_name("cuda_moe", tests, NULL, NULL);
}
