#include "compiler/build_app.h"
#include "runtime/cc.h"
#include <stdlib.h>
#include <unistd.h>

enum rt_status app_beside(struct arena *a, const char *name, const char **path,
                          struct rt_error *err)
{
    char *own = realpath(bundle_own_path(), NULL);
    *path = str_fmt(a, "%s/%s", io_dirname(a, own ? own : "strata"), name);
    free(own);
    if (io_exists(*path)) return RT_ok;
    return rt_fail(err, RT_user,
                   "there is no '%s': strata build needs it beside the strata program, where make "
                   "leaves it",
                   *path);
}

enum rt_status app_can_link(struct arena *a, struct rt_error *err)
{
    const char *clang, *path;
    struct str out;
    int status;
    RT_TRY(app_beside(a, "strata-app.o", &path, err));
    RT_TRY(cc_find(a, &clang, err));
    if (!clang) return rt_fail(err, RT_user, "no clang");
    char *argv[] = {str_dup(a, str_of(clang)), "-print-file-name=libc.a", NULL};
    int e = io_spawn(a, argv, (struct str){0}, &out, &status);
    if (!e && !status && out.n && out.p[0] == '/') return RT_ok; /* else the name alone */
    return rt_fail(err, RT_user, "no static libc (libc.a): apt-get install libc6-dev");
}

static enum rt_status spawn(struct arena *a, const char **argv, const char *hint,
                            struct rt_error *err)
{
    struct str out;
    int status, e = io_spawn(a, (char *const *)argv, (struct str){0}, &out, &status);
    if (e) return rt_fail(err, RT_machine, "cannot run '%s': %s", argv[0], strerror(e));
    if (!status) return RT_ok;
    return rt_fail(err, RT_user, "'%s' cannot link (%s): %.3000s", argv[0], hint, out.p);
}

typedef VEC(const char *) words;

static void add_all(struct arena *a, words *w, const char *const *p, size_t n)
{
    for (size_t i = 0; i < n; i++) vec_push(a, w, p[i]);
}

enum rt_status app_link(struct arena *a, const char *const *object, size_t n, bool is_static,
                        const char *out, struct rt_error *err)
{
    const char *clang, *options[] = {is_static ? "-static" : "-s", "-s", "-Wl,--build-id=none",
                                     "-Wl,--gc-sections",          "-o", out};
    words argv = {0};
    RT_TRY(cc_find(a, &clang, err));
    vec_push(a, &argv, clang ? clang : "cc");
    add_all(a, &argv, options, sizeof options / sizeof *options);
    add_all(a, &argv, object, n);
    vec_push(a, &argv, "-lm");
    vec_push(a, &argv, "-lpthread");
    vec_push(a, &argv, "-ldl");
    vec_push(a, &argv, NULL);
    return spawn(a, argv.p, "it needs libc6-dev", err);
}

enum rt_status app_archive(struct arena *a, const char *dir, const char *const *object, size_t n,
                           const char *out, struct rt_error *err)
{
    const char *clang, *joined = str_fmt(a, "%s/library.o", dir);
    const char *options[] = {"-r", "-nostdlib", "-Wl,--build-id=none", "-o", joined};
    words argv = {0};
    RT_TRY(cc_find(a, &clang, err));
    vec_push(a, &argv, clang ? clang : "cc");
    add_all(a, &argv, options, sizeof options / sizeof *options);
    add_all(a, &argv, object, n);
    vec_push(a, &argv, NULL);
    RT_TRY(spawn(a, argv.p, "it needs binutils", err));
    const char *keep[] = {
        "objcopy", "--strip-debug", "--wildcard", "--keep-global-symbol=strata_*", joined, NULL};
    RT_TRY(spawn(a, keep, "it needs binutils", err));
    unlink(out);
    const char *archive[] = {"ar", "rcsD", out, joined, NULL};
    return spawn(a, archive, "it needs binutils", err);
}
