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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops)};
    return cmocka_run_group_tests_name("cuda_optim", tests, NULL, NULL);
}
