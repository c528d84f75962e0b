/* A plan made by hand: y = a * x + y row by row, then the sum of y, over all arenas, in two slots.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "runtime/exec.h"
#include "runtime/mem.h"

enum { ROWS = 33, COLS = 48, SIZE = ROWS * COLS };

/* p: a [rows], x [rows,cols], y [rows,cols]; n: cols. An item is a row. */
static void k_axpy(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch)
{
    const float *a = p[0], *x = p[1];
    float *y = p[2], *t = scratch;
    int64_t cols = n[0];
    for (int64_t r = lo; r < hi; r++) {
        for (int64_t i = 0; i < cols; i++) t[i] = a[r] * x[r * cols + i];
        for (int64_t i = 0; i < cols; i++) y[r * cols + i] += t[i];
    }
}

/* p: y [n0], sum [1], calls [1] */
static void k_sum(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch)
{
    (void)lo, (void)hi, (void)scratch;
    float s = 0;
    for (int64_t i = 0; i < n[0]; i++) s += ((const float *)p[0])[i];
    *(float *)p[1] = s;
    ++*(float *)p[2];
}

static struct sa_code kernels[] = {{"axpy", k_axpy}, {"sum", k_sum}};
static const struct sa_buf bufs[] = {{SA_persistent, 64}, {SA_external, 0},     {SA_slot, 128},
                                     {SA_slot, 128},      {SA_external + 1, 4}, {SA_persistent, 0}};
static const int64_t ints[] = {COLS, SIZE};
/* bufs, ints, items, grain, scratch */
#define STEP(code, b, nb, i, n, g, bytes, text)                                                    \
    {                                                                                              \
        .kernel = code, .first_buf = b, .num_bufs = nb, .first_int = i, .num_ints = 1, .items = n, \
        .grain = g, .scratch_bytes = bytes, .label = text                                          \
    }
static const struct sa_step steps[] = {
    STEP(0, 0, 3, 0, ROWS, 2, COLS * sizeof(float), "axpy"),
    STEP(1, 3, 3, 1, 1, 1, 0, "sum"),
    STEP(0, 0, 3, 0, 0, 2, 0, "empty"),
    STEP(0, 0, 3, 0, ROWS, ROWS, COLS * sizeof(float), "axpy"),
};
static const struct sa_entry entries[] = {{"both", 0, 3}, {"axpy", 3, 1}};
static const struct sa_value values[] = {
    {"a", SA_f32, 1, {ROWS}, {SA_persistent, 64}},
    {"y", SA_f32, 2, {ROWS, COLS}, {SA_slot, 128}},
    {"calls", SA_f32, 0, {0}, {SA_persistent, 0}},
    {"sum", SA_f32, 0, {0}, {SA_external + 1, 4}},
};
static const struct sa_extern externs[] = {{"x", SIZE * sizeof(float)}, {"out", 8}};

static struct sa_plan plan_of(void)
{
    return (struct sa_plan){
        .kernels = kernels,
        .steps = steps,
        .bufs = bufs,
        .ints = ints,
        .entries = entries,
        .values = values,
        .externs = externs,
        .num_kernels = 2,
        .num_steps = 4,
        .num_bufs = 6,
        .num_ints = 2,
        .num_entries = 2,
        .num_values = 4,
        .num_externs = 2,
        .arena_bytes = {64 + ROWS * 4, 128 + SIZE * 4, 0},
    };
}

static struct pool *open_pool(unsigned threads)
{
    struct rt_error err;
    struct pool *p;
    assert_int_equal(pool_open(threads, &p, &err), RT_ok);
    return p;
}

static struct exec *open_exec(const struct sa_plan *plan, struct pool *pool, unsigned slots)
{
    struct rt_error err;
    struct exec *x;
    assert_int_equal(exec_open(plan, pool, &(struct exec_options){.slots = slots}, &x, &err),
                     RT_ok);
    return x;
}

static void fill(float *p, int n, float scale)
{
    for (int i = 0; i < n; i++) p[i] = scale * (float)(i % 17 - 5);
}

static void test_run(void **state)
{
    (void)state;
    struct sa_plan plan = plan_of();
    for (unsigned threads = 1; threads <= 4; threads++) {
        struct pool *pool = open_pool(threads);
        struct exec *x = open_exec(&plan, pool, 2);
        static float in[SIZE];
        float out[2] = {-1, -1}, sum = 0;
        fill(in, SIZE, 0.25f);
        exec_bind(x, exec_find_extern(x, "x"), in);
        exec_bind(x, exec_find_extern(x, "out"), out);
        float *a = exec_value(x, exec_find_value(x, "a"), 0);
        assert_ptr_equal(a, exec_value(x, exec_find_value(x, "a"), 1));
        assert_ptr_equal((char *)a - 64, exec_arena(x, SA_persistent));
        fill(a, ROWS, 1);
        struct mallinfo2 before = mallinfo2();
        exec_run(x, exec_find_entry(x, "both"), 0);
        exec_run(x, exec_find_entry(x, "axpy"), 1);
        exec_run(x, exec_find_entry(x, "axpy"), 1);
        struct mallinfo2 after = mallinfo2();
        assert_int_equal(before.uordblks, after.uordblks);
        const float *y0 = exec_value(x, exec_find_value(x, "y"), 0);
        const float *y1 = exec_value(x, exec_find_value(x, "y"), 1);
        for (int i = 0; i < SIZE; i++) {
            float want = a[i / COLS] * in[i];
            sum += want;
            assert_true(y0[i] == want && y1[i] == 2 * want);
        }
        assert_true(out[0] == -1 && out[1] == sum);
        assert_true(*(float *)exec_value(x, exec_find_value(x, "calls"), 0) == 1);
        assert_ptr_equal(exec_value(x, exec_find_value(x, "sum"), 0), out + 1);
        exec_close(x);
        pool_close(pool);
    }
}

static void test_names_and_rebinding(void **state)
{
    (void)state;
    struct sa_plan plan = plan_of();
    struct pool *pool = open_pool(2);
    struct exec *x = open_exec(&plan, pool, 0);
    assert_int_equal(exec_find_entry(x, "none"), UINT32_MAX);
    assert_int_equal(exec_find_value(x, ""), UINT32_MAX);
    assert_int_equal(exec_find_extern(x, "y"), UINT32_MAX);
    assert_null(exec_value(x, 3, 0));
    static float one[SIZE], two[SIZE];
    fill(one, SIZE, 1);
    fill(two, SIZE, 3);
    fill(exec_value(x, 0, 0), ROWS, 1);
    exec_bind(x, 0, one);
    exec_run(x, 1, 0);
    exec_bind(x, 0, two);
    exec_run(x, 1, 0);
    const float *a = exec_value(x, 0, 0), *y = exec_value(x, 1, 0);
    for (int i = 0; i < SIZE; i++) assert_true(y[i] == a[i / COLS] * one[i] * 4);
    exec_close(x);
    pool_close(pool);
}

/* Two plans on one memory for parameters. */
static void test_shared_memory(void **state)
{
    (void)state;
    struct sa_plan plan = plan_of();
    struct pool *pool = open_pool(1);
    struct exec *x = open_exec(&plan, pool, 1), *z;
    struct exec_options o = {.memory = {[SA_persistent] = exec_arena(x, SA_persistent)}};
    struct rt_error err;
    assert_int_equal(exec_open(&plan, pool, &o, &z, &err), RT_ok);
    assert_ptr_equal(exec_value(x, 0, 0), exec_value(z, 0, 0));
    assert_ptr_not_equal(exec_value(x, 1, 0), exec_value(z, 1, 0));
    exec_close(z);
    *(float *)exec_value(x, 0, 0) = 7;
    exec_close(x);
    pool_close(pool);
}

static void test_too_large(void **state)
{
    (void)state;
    struct sa_plan plan = plan_of();
    plan.arena_bytes[SA_scratch] = UINT64_C(1) << 60;
    struct pool *pool = open_pool(1);
    struct exec *x;
    struct rt_error err;
    assert_int_equal(exec_open(&plan, pool, NULL, &x, &err), RT_machine);
    assert_non_null(strstr(err.text, "scratch"));
    assert_null(x);
    pool_close(pool);
}

static void test_profile(void **state)
{
    (void)state;
    struct sa_plan plan = plan_of();
    struct pool *pool = open_pool(2);
    struct exec *x = open_exec(&plan, pool, 1);
    static float in[SIZE], out[2];
    exec_bind(x, 0, in);
    exec_bind(x, 1, out);
    struct sb s = {0};
    exec_profile_print(x, &s);
    assert_int_equal(s.n, 0);
    exec_profile(x, true);
    for (int i = 0; i < 3; i++) exec_run(x, 0, 0);
    exec_run(x, 1, 0);
    exec_profile(x, false);
    exec_run(x, 1, 0);
    exec_profile_print(x, &s);
    const char *axpy = strstr(s.p, "  axpy\n");
    assert_non_null(axpy);
    assert_null(strstr(axpy + 1, "  axpy\n"));
    assert_non_null(strstr(s.p, "        4 ")); /* axpy: 3 + 1 calls */
    assert_non_null(strstr(s.p, "        3 "));
    assert_non_null(strstr(s.p, "100.0%"));
    sb_free(&s);
    exec_close(x);
    pool_close(pool);
}

/* An input nobody bound is a bug of the caller: it aborts with the names, it does not crash. */
static void test_unbound(void **state)
{
    (void)state;
    int fd[2], status;
    char text[512];
    assert_int_equal(pipe(fd), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct sa_plan plan = plan_of();
        struct pool *pool = open_pool(1);
        struct exec *x = open_exec(&plan, pool, 1);
        dup2(fd[1], 2);
        exec_run(x, 1, 0);
        _exit(0);
    }
    close(fd[1]);
    size_t at = 0;
    for (ssize_t n; (n = read(fd[0], text + at, sizeof text - 1 - at)) > 0;) at += (size_t)n;
    text[at] = 0;
    close(fd[0]);
    waitpid(pid, &status, 0);
    assert_true(status != 0);
    assert_non_null(strstr(text, "axpy"));
    assert_non_null(strstr(text, "'x'"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run),           cmocka_unit_test(test_names_and_rebinding),
        cmocka_unit_test(test_shared_memory), cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_profile),       cmocka_unit_test(test_unbound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
