/* Texts of kernels to shared objects (cudacpu.h). */
#include "cudacpu_build.h"
#include "base/io.h"
#include "base/str.h"
#include <ctype.h>

#if defined __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

static const char *skip_space(const char *p)
{
    while (isspace((unsigned char)*p)) p++;
    return p;
}

/* After the parenthesis that closes the one at p. */
static const char *skip_group(const char *p)
{
    int depth = 0;
    do {
        depth += (*p == '(') - (*p == ')');
        p += *p != 0;
    } while (depth && *p);
    return p;
}

/* Looks for `__global__ void [__launch_bounds__(...)] NAME(`. */
void cudacpu_kernels(struct arena *a, const char *text, cudacpu_kernel_fn *fn, void *ctx)
{
    static const char bounds[] = "__launch_bounds__";
    for (const char *p = text; (p = strstr(p, "__global__"));) {
        const char *threads = "1024";
        p = skip_space(p + strlen("__global__"));
        while (strncmp(p, "void", 4) == 0 || strncmp(p, bounds, strlen(bounds)) == 0) {
            p = skip_space(p + (*p == 'v' ? 4 : strlen(bounds)));
            if (*p == '(') {
                const char *end = skip_group(p);
                threads = str_dup(a, (struct str){p + 1, (size_t)(end - p) - 2});
                p = skip_space(end);
            }
        }
        fn(ctx, str_dup(a, (struct str){p, strcspn(p, "(")}), threads);
    }
}

static void add_entry(void *ctx, const char *name, const char *threads)
{
    sb_printf(ctx, "CUDACPU_ENTRY(%s, %s)\n", name, threads);
}

/* NULL, or what the compiler said. */
static const char *run(struct arena *a, char **argv)
{
    struct str out = {0};
    int status = -1, e = io_spawn(a, argv, (struct str){0}, &out, &status);
    if (e == 0 && status == 0) return NULL;
    const char *why = e ? strerror(e) : "kernels do not build";
    return str_fmt(a, "%.*s\ncudacpu: %s: %s\n", (int)out.n, out.p ? out.p : "", argv[0], why);
}

const char *cudacpu_build(struct arena *a, const struct cudacpu_source *b)
{
    const char *dir = io_dirname(a, b->object);
    char *source = str_fmt(a, "%s/k.cu", dir), *part = str_fmt(a, "%s/k.o", dir);
    struct sb s = {0};
    sb_str(&s, b->text);
    sb_char(&s, '\n');
    cudacpu_kernels(a, b->text, add_entry, &s);
    sb_str(&s, "CUDACPU_END\n");
    int e = io_write_atomic(source, s.p, s.n);
    sb_free(&s);
    if (e) return str_fmt(a, "cudacpu: cannot write '%s': %s", source, strerror(e));
    const char *sanitize = b->checked ? "-fsanitize=thread" : "-fno-sanitize=all";
#if SANITIZED
    if (!b->checked && !b->quick) sanitize = "-fsanitize=address";
#endif
    /* Accesses wider than 16 bytes have no call. Multiply-adds are spelled out, as for NVRTC. */
    char *argv[] = {(char *)b->compiler,
                    "-xc++",
                    "-std=gnu++17",
                    "-nostdinc++",
                    "-fno-exceptions",
                    "-fno-rtti",
                    "-O1",
                    b->quick ? "-g0" : "-g",
                    "-fPIC",
                    "-mfma",
                    "-mprefer-vector-width=128",
                    "-fno-tree-vectorize",
                    "-fno-tree-slp-vectorize",
                    "-ffp-contract=off",
                    "-fno-math-errno",
                    "-Wall",
                    "-Wextra",
                    b->quick ? "-w" : "-Werror",
                    (char *)sanitize,
                    "-include",
                    (char *)b->header,
                    "-c",
                    "-o",
                    part,
                    source,
                    NULL};
    const char *why = run(a, argv);
    char *link[] = {(char *)b->compiler, "-shared", "-o", (char *)b->object, part,
                    (char *)b->library,  NULL};
    return why ? why : run(a, link);
}
