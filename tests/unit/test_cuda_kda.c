/* CUDA kernels of the delta rule (codegen/cuda_kda.c). */
#include "cuda_ops.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_kda, 3e-6, "11100", "1", 5e-5, .every = 23},
        {.op = OP_kda_cached, 3e-6, "11100", "10", 5e-5, .every = 23},
        {.op = OP_kda_grad, 5e-6, "111001", "11100", 1e-4, .every = 29},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops)};
    return cmocka_run_group_tests_name("cuda_kda", tests, NULL, NULL);
}
