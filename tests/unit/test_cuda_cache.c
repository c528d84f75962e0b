/* CUDA kernels over caches (codegen/cuda_cache.c). */
#include "cuda_ops.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_last_rows, .tol = 0, .src = "1", .res = "1", .every = 3},
        {.op = OP_cache_write, .tol = 0, .src = "110", .res = "1", .every = 3},
        {.op = OP_attention_cached,
         .tol = 1e-5,
         .src = "10",
         .res = "1",
         .tol_narrow = 1e-5,
         .every = 7},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops)};
    return cmocka_run_group_tests_name("cuda_cache", tests, NULL, NULL);
}
