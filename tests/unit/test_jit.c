/* Compiling, the cache, and what goes wrong with both. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "abi.h"
#include "base/io.h"
#include "base/map.h"
#include "runtime/cc.h"
#include "runtime/cpu.h"
#include "runtime/jit.h"
#include "runtime/store.h"

static const char prelude[] = "typedef __INT64_TYPE__ int64_t;\n"
                              "typedef float v16 __attribute__((vector_size(64), aligned(4)));\n";
static struct arena *arena;
static char *path_variable;

/* A kernel that multiplies by a constant, named by the hash of its text as the emitter does. */
static struct jit_kernel kernel(int factor)
{
    char *body = str_fmt(arena,
                         "(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *s)\n{\n"
                         "    float *x = p[0];\n    int64_t w = n[0];\n"
                         "    for (int64_t r = lo; r < hi; r++)\n"
                         "        for (int64_t i = 0; i < w; i += 16)\n"
                         "            *(v16 *)(x + r * w + i) *= %d.0f;\n}\n",
                         factor);
    char hex[33];
    hash_hex(body, strlen(body), hex);
    struct jit_kernel k = {.symbol = str_fmt(arena, "k_scale_%.16s", hex)};
    k.text = str_of(str_fmt(arena, "void %s%s", k.symbol, body));
    return k;
}

static void check_kernel(const struct jit_kernel *k, float factor)
{
    float x[64];
    for (int i = 0; i < 64; i++) x[i] = (float)i;
    void *p[] = {x};
    int64_t n[] = {32};
    sa_kernel *fn;
    memcpy(&fn, &k->fn, sizeof fn);
    assert_non_null(fn);
    fn(p, n, 1, 2, NULL);
    for (int i = 0; i < 64; i++) assert_true(x[i] == (i < 32 ? (float)i : factor * (float)i));
}

static struct jit *open_jit(const char *cpu)
{
    struct jit *j;
    struct rt_error err = {{0}};
    struct jit_options o = {.cpu = cpu};
    if (jit_open(&o, &j, &err)) fail_msg("%s", err.text);
    return j;
}

static struct jit_report load(struct jit *j, struct jit_kernel *k, size_t n)
{
    struct jit_report rep;
    struct rt_error err = {{0}};
    if (jit_load(j, prelude, k, n, &rep, &err)) fail_msg("%s", err.text);
    return rep;
}

static int set_up(void **state)
{
    char *dir = strdup(io_join(arena, getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp", "jit-XXXXXX"));
    if (!dir || !mkdtemp(dir)) return 1;
    setenv("STRATA_CACHE", dir, 1);
    setenv("PATH", path_variable, 1);
    *state = dir;
    return 0;
}

static int tear_down(void **state)
{
    io_remove_tree(*state);
    free(*state);
    return 0;
}

/* All files of the cache with this end, up to 64. */
static size_t cache_files(const char *end, const char *out[64])
{
    const char *root = io_join(arena, getenv("STRATA_CACHE"), "kernels");
    size_t n = 0;
    DIR *d = opendir(root);
    for (struct dirent *e; d && (e = readdir(d));) {
        const char *sub = io_join(arena, root, e->d_name);
        DIR *ds = e->d_name[0] == '.' ? NULL : opendir(sub);
        for (struct dirent *f; ds && (f = readdir(ds));)
            if (n < 64 && str_ends(str_of(f->d_name), end))
                out[n++] = io_join(arena, sub, f->d_name);
        if (ds) closedir(ds);
    }
    if (d) closedir(d);
    return n;
}

static void test_compile_and_cache(void **state)
{
    (void)state;
    struct jit_kernel k[] = {kernel(2), kernel(3), kernel(2)};
    struct jit *j = open_jit("native");
    struct jit_report rep = load(j, k, 3);
    assert_int_equal(rep.compiled, 2);
    assert_int_equal(rep.cached, 0);
    assert_true(rep.seconds > 0 && rep.code_bytes > 0 && rep.units >= 1);
    assert_non_null(strstr(rep.compiler, "clang version"));
    assert_non_null(strstr(rep.flags, "-march=native"));
    check_kernel(&k[0], 2);
    check_kernel(&k[1], 3);
    assert_ptr_equal(k[0].fn, k[2].fn);
    rep = load(j, k, 3);
    assert_int_equal(rep.compiled, 0);
    assert_int_equal(rep.cached, 2);
    jit_close(j);
    /* A new process has the cache only, and here no compiler either. */
    setenv("PATH", "", 1);
    j = open_jit(NULL);
    rep = load(j, k, 3);
    assert_int_equal(rep.compiled, 0);
    assert_int_equal(rep.cached, 2);
    assert_null(rep.compiler);
    check_kernel(&k[1], 3);
    struct jit_kernel more = kernel(4);
    struct rt_error err;
    assert_int_equal(jit_load(j, prelude, &more, 1, NULL, &err), RT_user);
    assert_non_null(strstr(err.text, "apt-get install"));
    jit_close(j);
    /* Adding a kernel compiles only that one; another prelude shares nothing. */
    setenv("PATH", path_variable, 1);
    j = open_jit("native");
    struct jit_kernel both[] = {kernel(4), kernel(2)};
    rep = load(j, both, 2);
    assert_int_equal(rep.compiled, 1);
    assert_int_equal(rep.cached, 1);
    check_kernel(&both[0], 4);
    check_kernel(&both[1], 2);
    char *other = str_fmt(arena, "%s#define OTHER 1\n", prelude);
    assert_int_equal(jit_load(j, other, both, 2, &rep, &err), RT_ok);
    assert_int_equal(rep.compiled, 2);
    const char *file[64];
    assert_int_equal(cache_files(".log", file) + cache_files(".c", file), 0);
    jit_close(j);
}

/* Two kernels of one text, and another text under the same symbol: never the wrong one. */
static void test_texts(void **state)
{
    (void)state;
    struct str pair =
        STR("static float half(float x) { return x / 2; }\n"
            "void k_half(void **p) { *(float *)p[0] = half(*(float *)p[0]); }\n"
            "void k_quarter(void **p) { *(float *)p[0] = half(*(float *)p[0]) / 2; }\n");
    struct str third = STR("void k_half(void **p) { *(float *)p[0] = -1; }\n");
    for (int round = 0; round < 2; round++) {
        struct jit_kernel k[] = {{"k_half", pair, NULL}, kernel(3), {"k_quarter", pair, NULL}};
        struct jit_kernel other = {"k_half", third, NULL};
        struct jit *j = open_jit("native");
        assert_int_equal(load(j, k, 1).compiled, round ? 0 : 1);
        assert_int_equal(load(j, k, 3).compiled, round ? 0 : 1); /* k_quarter came with k_half */
        assert_int_equal(load(j, &other, 1).compiled, round ? 0 : 1);
        check_kernel(&k[1], 3);
        float x = 8;
        void *p[] = {&x};
        ((void (*)(void **))(uintptr_t)k[0].fn)(p);
        assert_true(x == 4);
        ((void (*)(void **))(uintptr_t)k[2].fn)(p);
        assert_true(x == 1);
        ((void (*)(void **))(uintptr_t)other.fn)(p);
        assert_true(x == -1);
        jit_close(j);
    }
    struct jit *j = open_jit("x86-64-v3");
    struct jit_kernel k[] = {{"k_half", pair, NULL}, {"k_quarter", pair, NULL}};
    struct jit_report rep = load(j, k, 2);
    assert_int_equal(rep.compiled, 2);
    assert_int_equal(rep.units, 1);
    jit_close(j);
}

/* Texts of the same code: one object, found by either. */
static void test_same_object(void **state)
{
    (void)state;
    const char *text = "void k_same(void **p) { *(float *)p[0] = 3; }\n";
    struct jit_kernel k[] = {{"k_same", str_of(text), NULL},
                             {"k_same", str_of(str_fmt(arena, "/* again */ %s", text)), NULL}};
    const char *file[64];
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < 2; i++) {
            struct jit *j = open_jit("native");
            assert_int_equal(load(j, &k[i], 1).compiled, round ? 0 : 1);
            jit_close(j);
        }
    assert_int_equal(cache_files(".so", file), 1);
}

/* ---- what all units share ---- */

static const char sharing[] = "#ifdef JIT_SHARED\nconst int jit_shared = %d;\n#endif\n"
                              "#ifdef JIT_UNIT\nconst int *jit_given;\n#endif\n";

static int call_shared(const struct jit_kernel *k)
{
    int x = 0;
    void *p[] = {&x};
    ((void (*)(void **))(uintptr_t)k->fn)(p);
    return x;
}

static void test_shared(void **state)
{
    (void)state;
    struct str text = STR("void k_give(void **p) { *(int *)p[0] = *jit_given; }\n");
    struct str more = STR("void k_more(void **p) { *(int *)p[0] = 1 + *jit_given; }\n");
    struct jit_kernel k[] = {{"k_give", text, NULL}, {"k_more", more, NULL}}, other = k[0];
    const char *p = str_fmt(arena, sharing, 7), *q = str_fmt(arena, sharing, 9), *file[64];
    struct jit_report rep;
    struct rt_error err;
    for (int round = 0; round < 4; round++) {
        struct jit *j = open_jit("native");
        assert_int_equal(jit_load(j, p, k, 1, &rep, &err), RT_ok);
        assert_int_equal(rep.compiled, round == 0 || round == 2);
        assert_int_equal(jit_load(j, p, k, 2, &rep, &err), RT_ok);
        assert_int_equal(rep.compiled, round == 0);
        assert_int_equal(jit_load(j, q, &other, 1, &rep, &err), RT_ok);
        assert_int_equal(call_shared(&k[0]), 7);
        assert_int_equal(call_shared(&k[1]), 8);
        assert_int_equal(call_shared(&other), 9);
        jit_close(j);
        if (round != 1) continue;
        for (size_t i = cache_files(".so", file); i-- > 0;) { /* without it the rest is of no use */
            struct str object;
            assert_int_equal(io_read(arena, file[i], 1 << 20, &object), 0);
            if (!memmem(object.p, object.n, "k_give", 6) &&
                !memmem(object.p, object.n, "k_more", 6))
                assert_int_equal(unlink(file[i]), 0);
        }
    }
}

static void overwrite(const char *path, long at, const char *with)
{
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fseek(f, at, SEEK_SET);
    fputs(with, f);
    fclose(f);
}

static void test_broken_cache(void **state)
{
    (void)state;
    struct jit_kernel k[] = {kernel(2), kernel(3)};
    struct jit *j = open_jit("native");
    load(j, k, 2);
    jit_close(j);
    const char *file[64];
    for (int what = 0; what < 6; what++) {
        size_t objects = cache_files(".so", file);
        assert_true(objects >= 1 && objects <= 2);
        size_t wrong = 1;
        const char *idx = str_fmt(arena, "%.*sidx", (int)strlen(file[0]) - 2, file[0]);
        switch (what) {
        case 0: overwrite(file[0], 1000, "corrupt"); break;
        case 1: assert_int_equal(truncate(file[0], 0), 0); break;
        case 2: assert_int_equal(unlink(file[0]), 0); break;
        case 3: assert_int_equal(truncate(idx, 40), 0); break;
        case 4: assert_int_equal(truncate(idx, 0), 0); break;
        default:
            wrong = 0;
            assert_int_equal(io_write_atomic(io_join(arena, io_dirname(arena, idx),
                                                     "0123456789abcdef0123456789abcdef.idx"),
                                             "\377\0\n", 3),
                             0);
        }
        j = open_jit("native");
        struct jit_report rep = load(j, k, 2);
        if (wrong) assert_true(rep.compiled >= 1);
        if (!wrong) assert_int_equal(rep.compiled, 0);
        check_kernel(&k[0], 2);
        check_kernel(&k[1], 3);
        jit_close(j);
        j = open_jit("native");
        assert_int_equal(load(j, k, 2).compiled, 0);
        jit_close(j);
    }
}

/* Four processes at once: all get working code, and the lock lets only one compile. */
static void test_concurrent(void **state)
{
    (void)state;
    pid_t pid[4];
    int compiled = 0, status;
    for (int i = 0; i < 4; i++) {
        pid[i] = fork();
        if (pid[i]) continue;
        struct jit_kernel k[] = {kernel(5), kernel(6), kernel(7)};
        struct jit *j = open_jit("native");
        struct jit_report rep = load(j, k, 3);
        check_kernel(&k[2], 7);
        jit_close(j);
        _exit(rep.compiled == 3 ? 3 : rep.compiled ? 1 : 0);
    }
    for (int i = 0; i < 4; i++) {
        waitpid(pid[i], &status, 0);
        assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3));
        compiled += WEXITSTATUS(status) == 3;
    }
    assert_int_equal(compiled, 1);
}

static void test_cpus(void **state)
{
    (void)state;
    struct rt_error err;
    struct jit *j;
    static const char *const cpu[] = {"x86-64-v3", "x86-64-v4", "x86-64-v4-bf16"};
    for (int i = 0; i < 3; i++) {
        if (!cpu_runs(cpu_find(cpu[i]))) {
            print_message("not this processor: %s is only refused\n", cpu[i]);
            assert_int_equal(jit_open(&(struct jit_options){.cpu = cpu[i]}, &j, &err), RT_user);
            continue;
        }
        struct jit_kernel k = kernel(9);
        j = open_jit(cpu[i]);
        assert_int_equal(load(j, &k, 1).compiled, 1);
        check_kernel(&k, 9);
        jit_close(j);
    }
    assert_int_equal(jit_open(&(struct jit_options){.cpu = "z80"}, &j, &err), RT_usage);
    assert_non_null(strstr(err.text, "x86-64-v3"));
    assert_null(j);
}

/* Code for "native" is found again only on a processor of the same kind. */
static void test_native_name(void **state)
{
    (void)state;
    struct rt_error err = {{0}};
    const char *text;
    assert_int_equal(cc_cpu(arena, "native", &text, &err), RT_ok);
    assert_non_null(strstr(text, "avx2"));
    assert_int_equal(cc_cpu_known("x86-64-v4", &err), RT_ok);
    assert_int_equal(cc_cpu_known("x86-64-v2", &err), RT_usage);
}

static void test_trim(void **state)
{
    (void)state;
    const char *file[64];
    for (int i = 0; i < 3; i++) {
        struct jit_kernel k = kernel(20 + i);
        struct jit *j = open_jit("native");
        load(j, &k, 1);
        jit_close(j);
        usleep(20000);
    }
    assert_int_equal(cache_files(".so", file), 3);
    struct stat st;
    assert_int_equal(stat(file[0], &st), 0);
    const char *root = io_join(arena, getenv("STRATA_CACHE"), "kernels");
    store_trim(root, 3 * (uint64_t)st.st_size + 1000);
    assert_int_equal(cache_files(".so", file), 3);
    struct jit_kernel k[] = {kernel(20), kernel(21), kernel(22)};
    struct jit *j = open_jit("native");
    load(j, k, 1); /* the first one is now the one used last */
    jit_close(j);
    store_trim(root, 2 * (uint64_t)st.st_size + 1000);
    assert_int_equal(cache_files(".so", file), 2);
    assert_int_equal(cache_files(".idx", file), 2);
    j = open_jit("native");
    assert_int_equal(load(j, k, 1).compiled, 0);
    assert_int_equal(load(j, k + 1, 1).compiled, 1);
    assert_int_equal(load(j, k + 2, 1).compiled, 0);
    jit_close(j);
}

static const char *script(const char *text)
{
    const char *path = io_join(arena, getenv("STRATA_CACHE"), "compiler");
    assert_int_equal(io_write_atomic(path, text, strlen(text)), 0);
    assert_int_equal(chmod(path, 0755), 0);
    return path;
}

static enum rt_status load_with(const char *clang, struct rt_error *err)
{
    struct jit *j;
    struct jit_kernel k = kernel(31);
    setenv("STRATA_CLANG", clang, 1);
    enum rt_status st = jit_open(NULL, &j, err);
    if (!st) st = jit_load(j, prelude, &k, 1, NULL, err);
    jit_close(j);
    unsetenv("STRATA_CLANG");
    return st;
}

static void test_bad_compilers(void **state)
{
    (void)state;
    struct rt_error err;
    assert_int_equal(load_with("no-such-compiler", &err), RT_user);
    assert_non_null(strstr(err.text, "no-such-compiler"));
    assert_int_equal(load_with(script("#!/bin/sh\necho Debian clang version 16.0.6\n"), &err),
                     RT_user);
    assert_non_null(strstr(err.text, "clang 16"));
    assert_int_equal(load_with(script("#!/bin/sh\necho tcc 1\n"), &err), RT_user);
    assert_int_equal(load_with(script("#!/bin/sh\n[ $1 = --version ] && echo clang version 19\n"
                                      "[ $1 = --version ] || kill -9 $$\n"),
                               &err),
                     RT_machine);
    assert_non_null(strstr(err.text, "signal 9"));
    assert_int_equal(load_with(script("#!/bin/sh\n[ $1 = --version ] && echo clang version 19 && "
                                      "exit\necho 'disk full'; exit 1\n"),
                               &err),
                     RT_machine);
    assert_non_null(strstr(err.text, "disk full"));
    /* Succeeds without an object: nothing is taken into the cache. */
    assert_int_equal(load_with(script("#!/bin/sh\necho clang version 19\n"), &err), RT_machine);
    const char *file[64];
    assert_int_equal(cache_files(".idx", file) + cache_files(".so", file), 0);
}

static void test_unusable_folder(void **state)
{
    (void)state;
    struct rt_error err;
    const char *path = io_join(arena, getenv("STRATA_CACHE"), "file");
    assert_int_equal(io_write_atomic(path, "x", 1), 0);
    setenv("STRATA_CACHE", path, 1);
    struct jit_kernel k = kernel(2);
    struct jit *j = open_jit("native");
    assert_int_equal(jit_load(j, prelude, &k, 1, NULL, &err), RT_user);
    assert_non_null(strstr(err.text, "STRATA_CACHE"));
    jit_close(j);
}

/* A text with an error is our bug: the process aborts, names the source, and leaves it. */
static void test_bad_text(void **state)
{
    (void)state;
    int fd[2], status;
    char text[8192];
    assert_int_equal(pipe(fd), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fd[1], 2);
        struct jit_kernel k = {.symbol = "k_bad",
                               .text = STR("void k_bad(void) { return nonsense; }")};
        load(open_jit("native"), &k, 1);
        _exit(0);
    }
    close(fd[1]);
    size_t at = 0;
    for (ssize_t n; (n = read(fd[0], text + at, sizeof text - 1 - at)) > 0;) at += (size_t)n;
    text[at] = 0;
    close(fd[0]);
    waitpid(pid, &status, 0);
    assert_true(status != 0);
    assert_non_null(strstr(text, "undeclared identifier"));
    char *source = strstr(text, "source: ");
    assert_non_null(source);
    source += strlen("source: ");
    source[strcspn(source, "\n")] = 0;
    assert_true(io_exists(source));
}

int main(void)
{
    arena = arena_open("test");
    path_variable = str_dup(arena, str_of(getenv("PATH")));
    unsetenv("STRATA_CLANG");
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_compile_and_cache),
        TEST(test_broken_cache),
        TEST(test_concurrent),
        TEST(test_texts),
        TEST(test_same_object),
        TEST(test_shared),
        TEST(test_cpus),
        TEST(test_native_name),
        TEST(test_trim),
        TEST(test_bad_compilers),
        TEST(test_unusable_folder),
        TEST(test_bad_text),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_close(arena);
    return failed;
}
