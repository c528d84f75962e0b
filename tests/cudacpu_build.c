/* Texts of kernels to loaded objects, and their global memory (cudacpu.h). */
#include "cudacpu_machine.h"
#include "base/io.h"
#include "codegen/text.h"
#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#if defined __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define FORBID(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define ALLOW(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define FORBID(p, n) ((void)(p), (void)(n))
#define ALLOW(p, n) ((void)(p), (void)(n))
#endif

static const char *skip_space(const char *p)
{
    while (isspace((unsigned char)*p)) p++;
    return p;
}

/* An entry for every `__global__ void [__launch_bounds__(...)] NAME(` of the text. */
static void add_entries(struct sb *out, const char *text)
{
    static const char bounds[] = "__launch_bounds__";
    for (const char *p = text; (p = strstr(p, "__global__"));) {
        p = skip_space(p + strlen("__global__"));
        while (strncmp(p, "void", 4) == 0 || strncmp(p, bounds, strlen(bounds)) == 0) {
            p += *p == 'v' ? 4 : strlen(bounds);
            if (*p == '(') p += strcspn(p, ")") + 1;
            p = skip_space(p);
        }
        size_t n = strcspn(p, "(");
        sb_printf(out, "CUDACPU_ENTRY(%.*s)\n", (int)n, p);
    }
    sb_str(out, "CUDACPU_END\n");
}

/* Runs a compiler; exits with what it says when it fails. */
static void compile(struct arena *a, char **argv)
{
    struct str out = {0};
    int status = -1;
    if (io_spawn(a, argv, (struct str){0}, &out, &status) == 0 && status == 0) return;
    fprintf(stderr, "%.*s\ncudacpu: %s cannot build kernels\n", (int)out.n, out.p ? out.p : "",
            argv[0]);
    exit(EXIT_MACHINE);
}

static void load(struct cudacpu *c)
{
    char *begin, *end;
    Dl_info info;
    void (*range)(char **, char **);
    c->lib = dlopen(c->object, RTLD_NOW | RTLD_LOCAL);
    void *at = c->lib ? dlsym(c->lib, "cudacpu_shared_range") : NULL;
    if (!at || !dladdr(at, &info)) {
        fprintf(stderr, "cudacpu: %s\n", dlerror());
        exit(EXIT_MACHINE);
    }
    memcpy(&range, &at, sizeof range);
    range(&begin, &end);
    c->base = info.dli_fbase;
    if (end > begin) c->shared = cudacpu_region(begin, (size_t)(end - begin), true, false);
}

struct cudacpu *cudacpu_open(const char *compiler, const char *text, bool checked)
{
    struct arena *a = arena_open("cudacpu");
    const char *tmp = getenv("TMPDIR");
    char *dir = str_fmt(a, "%s/strata-cuda-XXXXXX", tmp && *tmp ? tmp : P_tmpdir);
    struct cudacpu *c = calloc(1, sizeof *c);
    if (!c || !mkdtemp(dir)) {
        perror(dir);
        exit(EXIT_MACHINE);
    }
    char *source = str_fmt(a, "%s/k.cu", dir), *part = str_fmt(a, "%s/k.o", dir);
    c->dir = strdup(dir), c->object = strdup(str_fmt(a, "%s/k.so", dir)), c->checked = checked;
    struct sb s = {0};
    sb_printf(&s, "#line 1 \"prelude\"\n%s\n#line 1 \"kernels\"\n%s\n", cg_text_cuda_prelude, text);
    add_entries(&s, text);
    CHECK(io_write_atomic(source, s.p, s.n) == 0);
    sb_free(&s);
    const char *sanitize = checked ? "-fsanitize=thread" : "-fno-sanitize=all";
#ifdef __SANITIZE_ADDRESS__
    if (!checked) sanitize = "-fsanitize=address";
#endif
    /* Accesses wider than 16 bytes have no call. Multiply-adds are spelled out, as for NVRTC. */
    char *argv[] = {(char *)compiler,
                    "-xc++",
                    "-std=gnu++17",
                    "-nostdinc++",
                    "-fno-exceptions",
                    "-fno-rtti",
                    "-O1",
                    "-g",
                    "-fPIC",
                    "-mfma",
                    "-mprefer-vector-width=128",
                    "-fno-tree-vectorize",
                    "-fno-tree-slp-vectorize",
                    "-ffp-contract=off",
                    "-fno-math-errno",
                    "-Wall",
                    "-Wextra",
                    "-Werror",
                    (char *)sanitize,
                    "-include",
                    "tests/cudacpu.h",
                    "-c",
                    "-o",
                    part,
                    source,
                    NULL};
    compile(a, argv);
    char *link[] = {(char *)compiler, "-shared", "-o", c->object, part, NULL};
    compile(a, link);
    load(c);
    arena_close(a);
    return c;
}

void cudacpu_close(struct cudacpu *c)
{
    if (!c) return;
    if (c->shared) cudacpu_region_free(c->shared);
    dlclose(c->lib);
    io_remove_tree(c->dir);
    free(c->dir), free(c->object), free(c);
}

/* Arrays of global memory, for their regions. */
enum { ARRAYS = 512 };
static struct {
    char *p;
    size_t room; /* with guards */
    struct region *region;
} arrays[ARRAYS];

void *cudacpu_alloc(size_t bytes)
{
    size_t room = (bytes + 255) / 256 * 256 + 2 * SLACK;
    char *at = aligned_alloc(256, room);
    int i = 0;
    while (i < ARRAYS && arrays[i].p) i++;
    CHECK(at && i < ARRAYS);
    memset(at, 0xff, room);
    FORBID(at, SLACK);
    FORBID(at + SLACK + bytes, room - SLACK - bytes);
    arrays[i].p = at + SLACK;
    arrays[i].room = room;
    arrays[i].region = cudacpu_region(at + SLACK, bytes, false, true);
    return arrays[i].p;
}

void cudacpu_free(void *p)
{
    for (int i = 0; p && i < ARRAYS; i++)
        if (arrays[i].p == p) {
            cudacpu_region_free(arrays[i].region);
            ALLOW(arrays[i].p - SLACK, arrays[i].room);
            free(arrays[i].p - SLACK);
            arrays[i].p = NULL;
        }
}
