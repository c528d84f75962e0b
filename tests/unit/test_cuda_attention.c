/* CUDA kernels of attention and rotary embedding (codegen/cuda_attention.c). */
#include "cuda_ops.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_rope_table, .tol = 1e-5},
        {.op = OP_rope, .tol = 1e-5, .src = "10", .res = "1", .tol_narrow = 1e-5, .every = 3},
        {.op = OP_attention, .tol = 1e-5, .src = "1", .res = "100", .tol_narrow = 4e-3, .every = 7},
        {.op = OP_attention_grad,
         .tol = 2e-5,
         .src = "111101",
         .res = "1",
         .tol_narrow = 4e-3,
         .every = 13},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops)};
    return cmocka_run_group_tests_name("cuda_attention", tests, NULL, NULL);
}
