/* The pool: every item once, visible at the end, for any number of threads, pieces and repeats. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "runtime/mem.h"
#include "runtime/thread.h"

struct job {
    uint32_t *hits;
    int64_t items, grain;
    unsigned threads;
    _Atomic int bad;
    _Atomic int in_use[64];
    struct pool *pool;
};

static void count(void *arg, int64_t lo, int64_t hi, unsigned worker)
{
    struct job *j = arg;
    if (worker >= j->threads || lo % j->grain || hi > j->items || hi <= lo || hi - lo > j->grain)
        atomic_store(&j->bad, 1);
    if (atomic_exchange(&j->in_use[worker], 1)) atomic_store(&j->bad, 2);
    for (int64_t i = lo; i < hi; i++) j->hits[i]++;
    atomic_store(&j->in_use[worker], 0);
}

static struct pool *open_pool(unsigned threads)
{
    struct rt_error err = {{0}};
    struct pool *p;
    if (pool_open(threads, &p, &err)) fail_msg("%s", err.text);
    return p;
}

static void run_sizes(unsigned threads)
{
    static const int64_t sizes[] = {0, 1, 2, 3, 7, 64, 1000};
    static const int64_t grains[] = {1, 2, 5, 64, 5000};
    struct pool *p = open_pool(threads);
    assert_int_equal(pool_threads(p), threads);
    uint32_t hits[1000];
    for (int round = 0; round < 40; round++)
        for (unsigned s = 0; s < 7; s++)
            for (unsigned g = 0; g < 5; g++) {
                struct job j = {
                    .hits = hits, .items = sizes[s], .grain = grains[g], .threads = threads};
                memset(hits, 0, sizeof hits);
                pool_run(p, count, &j, sizes[s], grains[g]);
                assert_int_equal(j.bad, 0);
                for (int64_t i = 0; i < 1000; i++) assert_int_equal(hits[i], i < sizes[s]);
            }
    pool_close(p);
}

static void test_sizes(void **state)
{
    (void)state;
    run_sizes(1);
    run_sizes(2);
    run_sizes(5);
    run_sizes(17);
}

static void add_one(void *arg, int64_t lo, int64_t hi, unsigned worker)
{
    (void)worker;
    int64_t *v = arg;
    for (int64_t i = lo; i < hi; i++) v[i] += i + 1;
}

/* Short runs one after the other, with pauses that let the workers fall asleep: a worker that is
 * late for one run must not touch the next. Plain additions, so that a lost or doubled one shows.
 */
static void test_many_short_runs(void **state)
{
    (void)state;
    struct pool *p = open_pool(4);
    int64_t v[37] = {0}, runs = 20000;
    for (int64_t r = 0; r < runs; r++) {
        pool_run(p, add_one, v, 2 + r % 36, 1 + r % 3);
        if (r % 500 == 0) usleep(200);
    }
    for (int64_t i = 0; i < 37; i++) {
        int64_t times = 0;
        for (int64_t r = 0; r < runs; r++) times += i < 2 + r % 36;
        assert_int_equal(v[i], times * (i + 1));
    }
    pool_close(p);
}

static void use_scratch(void *arg, int64_t lo, int64_t hi, unsigned worker)
{
    struct job *j = arg;
    unsigned char *s = pool_scratch(j->pool, worker);
    if ((uintptr_t)s % 64) atomic_store(&j->bad, 1);
    for (int64_t i = lo; i < hi; i++) {
        memset(s, (int)(i & 255), 100000);
        for (int k = 0; k < 100000; k += 999)
            if (s[k] != (i & 255)) atomic_store(&j->bad, 2);
    }
}

static void test_scratch(void **state)
{
    (void)state;
    struct pool *p = open_pool(3);
    struct rt_error err;
    assert_null(pool_scratch(p, 0));
    assert_int_equal(pool_reserve(p, 10, &err), RT_ok);
    assert_int_equal(pool_reserve(p, 100000, &err), RT_ok);
    uint64_t before = mem_allocations();
    assert_int_equal(pool_reserve(p, 5000, &err), RT_ok);
    struct job j = {.pool = p};
    pool_run(p, use_scratch, &j, 200, 1);
    assert_int_equal(j.bad, 0);
    assert_int_equal(mem_allocations(), before);
    pool_close(p);
}

static void test_environment(void **state)
{
    (void)state;
    struct rt_error err;
    struct pool *p;
    setenv("STRATA_THREADS", "3", 1);
    p = open_pool(0);
    assert_int_equal(pool_threads(p), 3);
    pool_close(p);
    static const char *const bad[] = {"0", "-1", "two", "3x", "99999999999999999999", "100000"};
    for (unsigned i = 0; i < 6; i++) {
        setenv("STRATA_THREADS", bad[i], 1);
        assert_int_equal(pool_open(0, &p, &err), RT_user);
        assert_non_null(strstr(err.text, bad[i]));
        assert_null(p);
    }
    unsetenv("STRATA_THREADS");
    p = open_pool(0);
    assert_int_equal(pool_threads(p), pool_cores());
    pool_close(p);
}

static void test_fork(void **state)
{
    (void)state;
    struct pool *p = open_pool(2);
    int64_t v[50] = {0};
    pool_run(p, add_one, v, 50, 1);
    pid_t pid = fork();
    if (pid == 0) {
        pool_run(p, add_one, v, 50, 1);
        int ok = v[49] == 100;
        pool_close(p);
        _exit(ok ? 0 : 1);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    pool_run(p, add_one, v, 50, 1);
    assert_int_equal(v[49], 100);
    pool_close(p);
}

static void test_large_memory(void **state)
{
    (void)state;
    size_t n = (5u << 20) + 12345;
    unsigned char *p = mem_alloc(n);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % (2u << 20), 0);
    for (size_t i = 0; i < n; i += 4096) assert_int_equal(p[i], 0);
    memset(p, 1, n);
    mem_free(p, n);
    assert_null(mem_alloc(SIZE_MAX));
    assert_null(mem_alloc(SIZE_MAX / 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),   cmocka_unit_test(test_many_short_runs),
        cmocka_unit_test(test_scratch), cmocka_unit_test(test_environment),
        cmocka_unit_test(test_fork),    cmocka_unit_test(test_large_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
