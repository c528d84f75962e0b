/* CUDA kernels of latent attention (codegen/cuda_mla.c). */
#include "cuda_ops.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_mla_keys, .tol = 0, .src = "10", .res = "1", .every = 2},
        {.op = OP_mla_keys_grad,
         .tol = 1e-6,
         .src = "10",
         .res = "1",
         .tol_narrow = 1e-6,
         .every = 2},
        {.op = OP_mla_cached, .tol = 1e-5, .src = "10", .res = "1", .tol_narrow = 1e-5, .every = 7},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops)};
    return cmocka_run_group_tests_name("cuda_mla", tests, NULL, NULL);
}
