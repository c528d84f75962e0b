/* Alarms of a training run, on values made up for it. */
#include "compiler/alarms.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static struct param_part part[2] = {{.tensor = "w.a", .dim = {2, 2}, .rank = 2},
                                    {.tensor = "w.b", .dim = {2, 2}, .rank = 2, .offset = 4}};
static struct param_part gain = {.tensor = "g", .dim = {4}, .rank = 1};
static struct param table[2] = {
    {.name = "w", .kind = PARAM_matrix, .count = 8, .part = part, .num_parts = 2},
    {.name = "g", .kind = PARAM_vector, .count = 4, .part = &gain, .num_parts = 1}};
static const struct params params = {.p = table, .n = 2};

static void test_weights(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    float w[8] = {1, 2, 3, 4, 5, 6, 7, 8}, g[4] = {1, 1, 1, 1};
    float *const memory[2] = {w, g};
    assert_null(alarm_weights(a, &params, memory)); /* gains may be constant */
    for (int i = 4; i < 8; i++) w[i] = 0;
    assert_string_equal(alarm_weights(a, &params, memory), "w.b is constant (not initialised?)");
    g[2] = INFINITY;
    assert_string_equal(alarm_weights(a, &params, memory),
                        "w.b is constant (not initialised?), g is not finite");
    w[0] = NAN;
    assert_non_null(strstr(alarm_weights(a, &params, memory), "w.a is not finite"));
    arena_close(a);
}

static void test_first_loss(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct model m = {.vocab_size = 1000, .hidden_size = 2500, .init_std = 0.02};
    double want = log(1000) + 0.5;
    assert_null(alarm_first_loss(a, &m, want));
    assert_null(alarm_first_loss(a, &m, want + 0.4));
    assert_non_null(alarm_first_loss(a, &m, want + 0.6));
    assert_non_null(alarm_first_loss(a, &m, want - 0.6));
    assert_non_null(alarm_first_loss(a, &m, (double)INFINITY));
    arena_close(a);
}

static void test_dead_experts(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    float load[4] = {3, 0, 1, 0}, counts[4] = {0};
    float *const idle[1] = {counts};
    const struct span_f l = {"load.model.layers.1.block_sparse_moe", load, 4, 0};
    const char *dead;
    for (int i = 1; i <= 2 * ALARM_DEAD_STEPS; i++) {
        if (i == 50) load[3] = 1;
        if (i == 51) load[3] = 0;
        struct balance_state b = alarm_loads(a, &l, idle, 1, &dead);
        assert_int_equal(b.idle, i == 50 ? 1 : 2);
        if (i == 1) assert_true(b.max_load == 3.0);
        if (i == ALARM_DEAD_STEPS)
            assert_string_equal(
                dead, "model.layers.1.block_sparse_moe expert 1 had no token for 100 steps");
        else
            assert_int_equal(dead != NULL, i == ALARM_DEAD_STEPS + 50);
    }
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_weights),
                                       cmocka_unit_test(test_first_loss),
                                       cmocka_unit_test(test_dead_experts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
