/* The fake NVRTC: "cubins" are shared objects that a C++ compiler makes of the text. With CHECKED
 * they report races and accesses out of bounds. */
#include "fake.h"
#include "base/io.h"
#include "base/map.h"
#include "base/str.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#ifndef CHECKED
#define CHECKED 0
#endif

static const int archs[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

struct _nvrtcProgram {
    struct arena *a;
    const char *text, *name, *log;
    struct str image;
};

const char *nvrtcGetErrorString(unsigned code)
{
    return code == C_NVRTC_ERROR_COMPILATION      ? "NVRTC_ERROR_COMPILATION"
           : code == C_NVRTC_ERROR_INVALID_OPTION ? "NVRTC_ERROR_INVALID_OPTION"
                                                  : "NVRTC error";
}

unsigned nvrtcVersion(int *major, int *minor)
{
    *major = 13, *minor = 999;
    return 0;
}

unsigned nvrtcGetNumSupportedArchs(int *n)
{
    *n = sizeof archs / sizeof *archs;
    return 0;
}

unsigned nvrtcGetSupportedArchs(int *list)
{
    memcpy(list, archs, sizeof archs);
    return 0;
}

unsigned nvrtcCreateProgram(struct _nvrtcProgram **program, const char *text, const char *name,
                            int headers, const char *const *header, const char *const *header_name)
{
    (void)header, (void)header_name;
    if (headers) return 3;
    struct arena *a = arena_open("fake nvrtc");
    *program = NEW(a, struct _nvrtcProgram, 1);
    **program =
        (struct _nvrtcProgram){a, str_dup(a, str_of(text)), str_dup(a, str_of(name)), "", {"", 0}};
    return 0;
}

unsigned nvrtcDestroyProgram(struct _nvrtcProgram **program)
{
    arena_close((*program)->a);
    *program = NULL;
    return 0;
}

/* clang where there is one (quick), else g++. */
static const char *compiler(void)
{
    static const char *const names[] = {"clang-19", "clang-14", "clang", "g++"};
    const char *env = getenv("STRATA_CLANG");
    if (env && *env) return env;
    for (int i = 0; i < 3; i++) {
        char command[64];
        snprintf(command, sizeof command, "command -v %s >/dev/null", names[i]);
        if (system(command) == 0) return names[i];
    }
    return names[3];
}

struct lines {
    struct sb s;
    const char *arch;
};

/* What ptxas says of a kernel. */
static void kernel_lines(void *ctx, const char *name, const char *threads)
{
    struct lines *l = ctx;
    const char *spills = getenv("STRATA_FAKE_SPILLS");
    int bytes = spills && *spills && strstr(name, spills) ? 64 : 0;
    (void)threads;
    sb_printf(&l->s,
              "ptxas info    : Compiling entry function '%s' for '%s'\n"
              "ptxas info    : Function properties for %s\n"
              "    %d bytes stack frame, %d bytes spill stores, %d bytes spill loads\n"
              "ptxas info    : Used 32 registers, used 1 barriers\n",
              name, l->arch, name, bytes, bytes, bytes);
}

/* The folder of this library, which has the machine's header and its driver. */
static const char *own_folder(struct arena *a)
{
    Dl_info info;
    void *at = NULL;
    unsigned (*self)(int *, int *) = nvrtcVersion;
    memcpy(&at, &self, sizeof at);
    return dladdr(at, &info) ? io_dirname(a, info.dli_fname) : ".";
}

static void make_image(struct _nvrtcProgram *p, const char *arch, struct str object)
{
    struct fake_image head = {.magic = FAKE_MAGIC, .checked = CHECKED, .bytes = object.n};
    snprintf(head.arch, sizeof head.arch, "%s", arch);
    char *image = arena_alloc(p->a, sizeof head + object.n, 64, STRATA_SITE);
    memcpy(image, &head, sizeof head);
    memcpy(image + sizeof head, object.p, object.n);
    p->image = (struct str){image, sizeof head + object.n};
}

/* To the folder of STRATA_FAKE_TEXTS. */
static bool keep_text(struct _nvrtcProgram *p, const char *arch)
{
    const char *dir = getenv("STRATA_FAKE_TEXTS");
    char hex[33];
    if (!dir || !*dir) return true;
    hash_hex(p->text, strlen(p->text), hex);
    const char *path = str_fmt(p->a, "%s/%s-%s.cu", dir, arch, hex);
    return !io_write_atomic(path, p->text, strlen(p->text));
}

static const char *build(struct _nvrtcProgram *p, const char *dir, const char *arch)
{
    struct arena *a = p->a;
    const char *own = own_folder(a);
    const struct cudacpu_source s = {
        .compiler = compiler(),
        .header = str_fmt(a, "%s/cudacpu.h", own),
        .text = str_fmt(a, "#line 1 \"%s\"\n%s", p->name, p->text),
        .object = str_fmt(a, "%s/k.so", dir),
        .library = str_fmt(a, "%s/libcuda.so.1", own),
        .checked = CHECKED,
        .quick = !CHECKED,
    };
    struct str object;
    const char *why = cudacpu_build(a, &s);
    if (!why && io_read(a, s.object, SIZE_MAX / 2, &object)) why = "no object";
    if (why) return why;
    make_image(p, arch, object);
    return NULL;
}

unsigned nvrtcCompileProgram(struct _nvrtcProgram *p, int n, const char *const *option)
{
    static const char wanted[] = "--gpu-architecture=";
    const char *arch = "", *tmp = getenv("TMPDIR");
    for (int i = 0; i < n; i++)
        if (str_starts(str_of(option[i]), wanted)) arch = option[i] + strlen(wanted);
    if (*arch == 'c') { /* PTX: nothing runs it */
        p->image = str_of(str_fmt(p->a, "// fake PTX for %s\n", arch));
        p->image.n++;
        return 0;
    }
    if (!str_starts(str_of(arch), "sm_")) return C_NVRTC_ERROR_INVALID_OPTION;
    if (!keep_text(p, arch)) return 1;
    if (fake_null()) {
        make_image(p, arch, (struct str){"", 0});
        return 0;
    }
    char *dir = str_fmt(p->a, "%s/strata-nvrtc-XXXXXX", tmp && *tmp ? tmp : P_tmpdir);
    if (!mkdtemp(dir)) return 1;
    const char *why = build(p, dir, arch);
    io_remove_tree(dir);
    if (why) {
        p->log = str_fmt(p->a, "%s(1): error: the fake NVRTC cannot build this\n%s", p->name, why);
        return C_NVRTC_ERROR_COMPILATION;
    }
    struct lines l = {{0}, arch};
    cudacpu_kernels(p->a, p->text, kernel_lines, &l);
    p->log = sb_take(&l.s, p->a).p;
    return 0;
}

unsigned nvrtcGetProgramLogSize(struct _nvrtcProgram *p, size_t *bytes)
{
    *bytes = strlen(p->log) + 1;
    return 0;
}

unsigned nvrtcGetProgramLog(struct _nvrtcProgram *p, char *log)
{
    memcpy(log, p->log, strlen(p->log) + 1);
    return 0;
}

unsigned nvrtcGetCUBINSize(struct _nvrtcProgram *p, size_t *bytes)
{
    *bytes = p->image.n;
    return 0;
}

unsigned nvrtcGetCUBIN(struct _nvrtcProgram *p, char *cubin)
{
    memcpy(cubin, p->image.p, p->image.n);
    return 0;
}

unsigned nvrtcGetPTXSize(struct _nvrtcProgram *p, size_t *bytes)
{
    return nvrtcGetCUBINSize(p, bytes);
}

unsigned nvrtcGetPTX(struct _nvrtcProgram *p, char *ptx)
{
    return nvrtcGetCUBIN(p, ptx);
}
