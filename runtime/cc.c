#include "runtime/cc.h"
#include "base/io.h"
#include "base/vec.h"
#include "runtime/cpu.h"
#include "runtime/thread.h"
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static bool runnable(const char *path)
{
    struct stat st;
    return !stat(path, &st) && S_ISREG(st.st_mode) && !access(path, X_OK);
}

static const char *search_path(struct arena *a, const char *name)
{
    if (strchr(name, '/')) return runnable(name) ? str_dup(a, str_of(name)) : NULL;
    const char *p = getenv("PATH");
    while (p && *p) {
        size_t n = strcspn(p, ":");
        const char *file = str_fmt(a, "%.*s/%s", (int)n, p, name);
        if (n && runnable(file)) return file;
        p += n + (p[n] == ':');
    }
    return NULL;
}

enum rt_status cc_find(struct arena *a, const char **path, struct rt_error *err)
{
    const char *own = getenv("STRATA_CLANG");
    if (own && *own) {
        *path = search_path(a, own);
        if (!*path) return rt_fail(err, RT_user, "STRATA_CLANG is '%s', not a program", own);
        return RT_ok;
    }
    *path = search_path(a, "clang-19");
    if (!*path) *path = search_path(a, "clang-14");
    return RT_ok;
}

const char *cc_identity(struct arena *a, const char *path)
{
    struct stat st;
    char *real = realpath(path, NULL);
    if (!real || stat(real, &st)) {
        free(real);
        return path;
    }
    const char *text = str_fmt(a, "%s size %lld time %lld.%09ld", real, (long long)st.st_size,
                               (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    free(real);
    return text;
}

enum rt_status cc_version(struct arena *a, const char *path, const char **version,
                          struct rt_error *err)
{
    char *argv[] = {str_dup(a, str_of(path)), "--version", NULL};
    struct str out;
    int status, e = io_spawn(a, argv, (struct str){0}, &out, &status);
    if (e) return rt_fail(err, RT_machine, "cannot run '%s': %s", path, strerror(e));
    const char *at = status || !out.n ? NULL : strstr(out.p, "clang version ");
    if (!at) return rt_fail(err, RT_user, "'%s' is not clang: it does not answer --version", path);
    int major = atoi(at + strlen("clang version "));
    if (major == 16)
        return rt_fail(err, RT_user,
                       "'%s' is clang 16, which crashes on bf16 kernels: use clang-19 or clang-14",
                       path);
    *version = str_dup(a, (struct str){out.p, strcspn(out.p, "\n")});
    return RT_ok;
}

/* The lines of /proc/cpuinfo that tell processors apart, of its first processor. */
static const char *cpu_of_machine(struct arena *a)
{
    static const char *const keep[] = {"vendor_id", "cpu family", "model", "stepping", "flags"};
    struct str all;
    struct sb s = {0};
    if (io_read(a, "/proc/cpuinfo", 16u << 20, &all)) all = STR("");
    for (const char *p = all.p, *nl; *p && *p != '\n' && (nl = strchr(p, '\n')); p = nl + 1)
        for (size_t i = 0; i < sizeof keep / sizeof *keep; i++)
            if (str_starts((struct str){p, (size_t)(nl - p)}, keep[i])) {
                sb_add(&s, p, (size_t)(nl + 1 - p));
                break;
            }
    sb_str(&s, "");
    return sb_take(&s, a).p;
}

enum rt_status cc_cpu_known(const char *cpu, struct rt_error *err)
{
    if (!strcmp(cpu, "native") || cpu_find(cpu) != CPU_KINDS) return RT_ok;
    return rt_fail(err, RT_usage,
                   "unknown cpu '%s': it is native, x86-64-v3, x86-64-v4 or x86-64-v4-bf16", cpu);
}

enum rt_status cc_cpu(struct arena *a, const char *cpu, const char **text, struct rt_error *err)
{
    RT_TRY(cc_cpu_known(cpu, err));
    enum cpu_kind kind = cpu_find(cpu);
    if (!cpu_runs(CPU_v3))
        return rt_fail(err, RT_machine, "this processor has no AVX2 and FMA (x86-64-v3)");
    if (kind != CPU_KINDS && !cpu_runs(kind))
        return rt_fail(err, RT_user, "this processor has no %s: use --cpu native",
                       cpu_about(kind)->has);
    *text = kind == CPU_KINDS ? cpu_of_machine(a) : cpu;
    return RT_ok;
}

/* Flags of every kernel, whatever becomes of it. */
static const char *const kernel_flags[] = {
    "-x",
    "c",
    "-std=gnu11",
    "-O2",
    "-mprefer-vector-width=512",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fPIC",
    "-w",
#ifdef STRATA_JIT_SANITIZE /* a sanitized build; the program has the sanitizers' functions */
    "-g",
    "-O1", /* checks make the large kernels very slow to compile */
    "-fsanitize=" STRATA_JIT_SANITIZE,
    "-fno-sanitize-recover=all",
#endif
};

static const char **all_flags(struct arena *a, const char *cpu, const char *const *more)
{
    VEC(const char *) f = {0};
    enum cpu_kind kind = cpu_find(cpu);
    for (size_t i = 0; i < sizeof kernel_flags / sizeof *kernel_flags; i++)
        vec_push(a, &f, kernel_flags[i]);
    if (kind == CPU_KINDS) vec_push(a, &f, "-march=native");
    for (int i = 0; kind != CPU_KINDS && cpu_about(kind)->flag[i]; i++)
        vec_push(a, &f, cpu_about(kind)->flag[i]);
    while (*more) vec_push(a, &f, *more++);
    vec_push(a, &f, NULL);
    return f.p;
}

const char **cc_flags(struct arena *a, const char *cpu)
{
    /* No libraries: kernels call nothing but memcpy and memset, which this process has. */
    static const char *const shared[] = {"-shared", "-nostdlib", "-Wl,--build-id=none", NULL};
    return all_flags(a, cpu, shared);
}

const char **cc_object_flags(struct arena *a, const char *cpu)
{
    static const char *const object[] = {"-c", "-fvisibility=hidden", "-ffunction-sections", NULL};
    return all_flags(a, cpu, object);
}

static int start(struct arena *a, const char *path, const char **flags, const struct cc_unit *u,
                 pid_t *pid)
{
    size_t n = 0;
    if (u->flags) flags = u->flags;
    while (flags[n]) n++;
    const char **argv = NEW(a, const char *, n + 5);
    argv[0] = path;
    memcpy(argv + 1, flags, n * sizeof *argv);
    argv[n + 1] = "-o";
    argv[n + 2] = u->object;
    argv[n + 3] = u->source;
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&fa, 1, u->log, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    posix_spawn_file_actions_adddup2(&fa, 1, 2);
    /* The pool's threads block signals; the compiler must hear an interrupt whoever starts it. */
    posix_spawnattr_t attr;
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
    int err = posix_spawn(pid, path, &fa, &attr, (char *const *)argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&fa);
    return err;
}

/* A failed unit: whose fault is it? Errors with a line of the source are ours. */
static enum rt_status judge(struct arena *a, const char *path, const struct cc_unit *u, int status,
                            struct rt_error *err)
{
    if (WIFSIGNALED(status))
        return rt_fail(err, RT_machine, "the compiler '%s' was killed by signal %d", path,
                       WTERMSIG(status));
    struct str log;
    if (io_read(a, u->log, 1 << 20, &log)) log = STR("");
    bool in_source = false;
    for (const char *p = log.p; (p = strstr(p, u->source)); p += strlen(u->source)) {
        const char *e = strstr(p, "error:");
        if (e && e < p + strcspn(p, "\n")) in_source = true;
    }
    if (in_source || strstr(log.p, "PLEASE submit a bug report"))
        BUG("generated code does not compile with %s\n%.4000s\nsource: %s", path, log.p, u->source);
    return rt_fail(err, RT_machine, "the compiler '%s' failed: %.300s", path, log.p);
}

enum rt_status cc_compile(struct arena *a, const char *path, const char **flags,
                          const struct cc_unit *unit, size_t n, struct rt_error *err)
{
    pid_t *pid = NEW(a, pid_t, n);
    int *status = NEW(a, int, n), failed = 0;
    size_t started = 0, cores = pool_cores();
    for (size_t ended = 0; ended < started || (started < n && !failed);) {
        if (started < n && !failed && started - ended < cores) {
            failed = start(a, path, flags, &unit[started], &pid[started]);
            started += !failed;
            continue;
        }
        while (waitpid(pid[ended], &status[ended], 0) < 0)
            if (errno != EINTR) {
                status[ended] = -1;
                break;
            }
        ended++;
    }
    if (failed) return rt_fail(err, RT_machine, "cannot run '%s': %s", path, strerror(failed));
    for (size_t i = 0; i < n; i++)
        if (status[i]) return judge(a, path, &unit[i], status[i], err);
    return RT_ok;
}
