/* CUDA kernels over caches (codegen/cuda_cache.c). */
#include "cuda_ops.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_last_rows, .tol = 0, .src = "1", .res = "1"},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops)};
    return cmocka_run_group_tests_name("cuda_cache", tests, NULL, NULL);
}
