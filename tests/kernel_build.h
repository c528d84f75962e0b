/* Builds emitted C into a shared object and loads it, for tests and benchmarks of the kernels. */
#ifndef STRATA_TESTS_KERNEL_BUILD_H
#define STRATA_TESTS_KERNEL_BUILD_H
#include "base/io.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

typedef void kernel_fn(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch);

/* A symbol of the object, NULL where it is missing. */
static inline kernel_fn *kernel_of(void *so, const char *name)
{
    void *at = dlsym(so, name);
    kernel_fn *fn;
    memcpy(&fn, &at, sizeof fn);
    return fn;
}

/* Compiles `text` with clang-19 or clang-14 for `march` and loads it; exits with the compiler's
 * output when that fails. The object stays loaded; its files are removed. */
static inline void *kernel_build(const struct sb *text, const char *march)
{
    struct arena *a = arena_open("kernel_build");
    const char *tmp = getenv("TMPDIR");
    char *dir = str_fmt(a, "%s/strata-kernels-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) {
        perror(dir);
        exit(EXIT_MACHINE);
    }
    char *src = str_fmt(a, "%s/k.c", dir), *so = str_fmt(a, "%s/k.so", dir);
    char *arch = str_fmt(a, "-march=%s", march);
    struct str out = {0};
    int status = -1, err = io_write_atomic(src, text->p, text->n);
    static const char *const compilers[] = {"clang-19", "clang-14"};
    for (int i = 0; i < 2 && !err && status != 0; i++) {
        char *argv[] = {(char *)compilers[i],
                        "-O2",
                        arch,
                        "-mprefer-vector-width=512",
                        "-fno-math-errno",
                        "-ffp-contract=off",
                        "-Wall",
                        "-Wextra",
                        "-Werror",
                        "-shared",
                        "-fPIC",
                        "-o",
                        so,
                        src,
                        NULL};
        char *env = getenv("STRATA_CLANG");
        if (env) argv[0] = env;
        if (io_spawn(a, argv, (struct str){0}, &out, &status) != 0) status = -1;
    }
    void *lib = status == 0 ? dlopen(so, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!lib) {
        fprintf(stderr, "%.*s\nkernels: cannot build %s\n", (int)out.n, out.p ? out.p : "", src);
        exit(EXIT_MACHINE);
    }
    io_remove_tree(dir);
    arena_close(a);
    return lib;
}
#endif
