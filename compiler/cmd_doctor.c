/* What this machine has. Every fact is a row of a section, with a text for people and a value for
 * programs; findings decide the verdicts at the end. */
#include "compiler/build_app.h"
#include "compiler/cli.h"
#include "runtime/cc.h"
#include "runtime/cuda_api.h"
#include "runtime/gpu.h"
#include "runtime/mem.h"
#include "runtime/nvrtc.h"
#include "runtime/store.h"
#include "runtime/thread.h"
#include <dlfcn.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char help[] =
    "usage: strata doctor [--json]\n\n"
    "Says what this machine has for strata: processor, C compiler and cache of kernels, and "
    "CUDA's\n"
    "libraries, each with file and version, or what was looked for and how to install it. "
    "Compiles\n"
    "and runs a small kernel on each to see that it works. Ends with what works and the next\n"
    "command. What is missing is no error, except for training on this CPU: then the status is "
    "3.\n\n"
    "  strata doctor\n"
    "  strata doctor --json | jq .works\n"
    "  STRATA_CLANG=clang-14 CUDA_HOME=/opt/cuda-13 strata doctor\n\n"
    "  --json             one JSON object on standard output instead of the text\n\n"
    "environment\n"
    "  STRATA_CLANG       the clang to use: a path, or a name in PATH\n"
    "  STRATA_CACHE       the folder of compiled kernels (~/.cache/strata)\n"
    "  STRATA_THREADS     threads to use (all cores)\n"
    "  CUDA_HOME          the CUDA toolkit, looked into before /usr/local/cuda\n"
    "  STRATA_CUDA_PATH   folders of CUDA's libraries, separated by colons; then nothing else is\n"
    "                     looked into\n";

struct doctor {
    struct arena *a;
    json_t *all;                                     /* section -> key -> value */
    bool quiet;                                      /* no text */
    const char *shown;                               /* the last section printed */
    const char *cpu_lacks, *nvrtc_lacks, *gpu_lacks; /* NULL: works */
    const char *install;                             /* what would make the CPU work */
};

/* One fact; takes over `value`. */
static void tell(struct doctor *d, const char *section, const char *key, json_t *value,
                 const char *fmt, ...) __attribute__((format(printf, 5, 6)));
static void tell(struct doctor *d, const char *section, const char *key, json_t *value,
                 const char *fmt, ...)
{
    json_t *rows = json_object_get(d->all, section);
    if (!rows) json_object_set_new(d->all, section, rows = json_object());
    CHECK(value && !json_object_set_new(rows, key, value));
    if (d->quiet) return;
    if (d->shown != section) printf("%s%s\n", d->shown ? "\n" : "", section);
    d->shown = section;
    va_list ap;
    va_start(ap, fmt);
    printf("  %-12s ", key);
    vprintf(fmt, ap);
    putchar('\n');
    va_end(ap);
}

static void lacks(struct doctor *d, const char *section, const char *key, const char *why)
{
    tell(d, section, key, json_pack("{s:b, s:s}", "ok", 0, "error", why), "no: %s", why);
}

/* ---- processor ---- */

static const char cpu[] = "cpu", cuda[] = "cuda", works[] = "works";

/* The first line of /proc/cpuinfo for this key, after its colon. */
static const char *cpuinfo(struct doctor *d, const char *key)
{
    struct str all;
    if (io_read(d->a, "/proc/cpuinfo", 16u << 20, &all)) return "";
    const char *p = strstr(all.p, str_fmt(d->a, "%s\t", key));
    if (p) p = strchr(p, ':');
    return p ? str_dup(d->a, (struct str){p + 2, strcspn(p + 2, "\n")}) : "";
}

static void look_at_cpu(struct doctor *d)
{
    static const char *const kinds[] = {"avx2",        "fma",         "avx512f",  "avx512_vnni",
                                        "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"};
    struct rt_error err;
    const char *text, *flags = str_fmt(d->a, " %s ", cpuinfo(d, "flags"));
    json_t *has = json_array();
    struct sb s = {0};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (!strstr(flags, str_fmt(d->a, " %s ", kinds[i]))) continue;
        json_array_append_new(has, json_string(kinds[i]));
        sb_printf(&s, "%s ", kinds[i]);
    }
    text = cpuinfo(d, "model name");
    tell(d, cpu, "model", json_string(text), "%s", text);
    tell(d, cpu, "features", has, "%s", s.n ? s.p : "none that matter");
    sb_free(&s);
    if (cc_cpu(d->a, "native", &text, &err)) d->cpu_lacks = str_dup(d->a, str_of(err.text));
    unsigned threads;
    if (pool_wanted(&threads, &err)) {
        d->cpu_lacks = str_dup(d->a, str_of(err.text));
        lacks(d, cpu, "threads", d->cpu_lacks);
    } else {
        tell(d, cpu, "threads", json_integer(threads), "%u", threads);
    }
    double page = (double)sysconf(_SC_PAGESIZE), total = page * (double)sysconf(_SC_PHYS_PAGES);
    tell(d, cpu, "memory", json_integer((json_int_t)total), "%s", cli_bytes(d->a, total));
}

/* ---- C compiler and cache ---- */

/* Compiles a kernel in the folder of the cache, loads and runs it. */
static enum rt_status try_clang(struct doctor *d, const char *clang, const char *dir,
                                struct rt_error *err)
{
    static const char text[] = "void doctor(float *x, const float *y)\n"
                               "{\n    for (int i = 0; i < 64; i++) x[i] += 2 * y[i];\n}\n";
    struct cc_unit u = {io_join(d->a, dir, "doctor.c"), io_join(d->a, dir, "doctor.so"),
                        io_join(d->a, dir, "doctor.log"), NULL};
    int e = io_write_atomic(u.source, text, strlen(text));
    if (e) return rt_fail(err, RT_machine, "cannot write '%s': %s", u.source, strerror(e));
    RT_TRY(cc_compile(d->a, clang, cc_flags(d->a, "native"), &u, 1, err));
    void *so = dlopen(u.object, RTLD_NOW | RTLD_LOCAL), *p = so ? dlsym(so, "doctor") : NULL;
    if (!p) return rt_fail(err, RT_machine, "compiled code does not load: %s", dlerror());
    void (*fn)(float *, const float *);
    float x[64], y[64];
    for (int i = 0; i < 64; i++) x[i] = 1, y[i] = (float)i;
    memcpy(&fn, &p, sizeof fn);
    fn(x, y);
    dlclose(so);
    for (int i = 0; i < 64; i++)
        if (x[i] != (float)(1 + 2 * i))
            return rt_fail(err, RT_machine, "compiled code computes %g, not %d", x[i], 1 + 2 * i);
    return RT_ok;
}

/* As try_clang, in a folder of its own in `root`. */
static enum rt_status self_test(struct doctor *d, const char *clang, const char *root,
                                struct rt_error *err)
{
    char *dir = str_fmt(d->a, "%s/doctor-XXXXXX", root);
    int e = io_mkdirs(root);
    if (!e && !mkdtemp(dir)) e = errno;
    if (e)
        return rt_fail(err, RT_user,
                       "cannot write to the cache '%s': %s (STRATA_CACHE names "
                       "another)",
                       root, strerror(e));
    enum rt_status st = try_clang(d, clang, dir, err);
    io_remove_tree(dir);
    return st;
}

static void look_at_clang(struct doctor *d)
{
    struct rt_error err;
    const char *clang = NULL, *version, *root = io_join(d->a, io_cache_dir(d->a), "kernels");
    double bytes = (double)store_bytes(root), most = (double)STORE_MAX_BYTES;
    enum rt_status st = cc_find(d->a, &clang, &err);
    if (!st && !clang) {
        d->install = "apt-get install --no-install-recommends clang-19";
        st = rt_fail(&err, RT_user, "neither clang-19 nor clang-14 is in PATH: run '%s' as root",
                     d->install);
    }
    if (!st) st = cc_version(d->a, clang, &version, &err);
    if (st)
        lacks(d, cpu, "clang", err.text);
    else
        tell(d, cpu, "clang",
             json_pack("{s:b, s:s, s:s}", "ok", 1, "path", clang, "version", version), "%s, %s",
             version, clang);
    tell(d, cpu, "cache",
         json_pack("{s:s, s:I, s:I}", "path", root, "bytes", (json_int_t)bytes, "most",
                   (json_int_t)most),
         "%s, %s of at most %s", root, cli_bytes(d->a, bytes), cli_bytes(d->a, most));
    if (!st && !d->cpu_lacks) {
        double begin = mem_seconds(), ms;
        st = self_test(d, clang, root, &err);
        ms = 1e3 * (mem_seconds() - begin);
        if (st)
            lacks(d, cpu, "self-test", err.text);
        else
            tell(d, cpu, "self-test", json_pack("{s:b, s:f}", "ok", 1, "ms", ms),
                 "compiled and ran a kernel in %.0f ms", ms);
    }
    if (st && !d->cpu_lacks) d->cpu_lacks = str_dup(d->a, str_of(err.text));
}

/* ---- CUDA ---- */

/* Whether the library is there. */
static bool library(struct doctor *d, enum cuda_library lib)
{
    struct rt_error err;
    if (cuda_load(lib, NULL, &err)) {
        lacks(d, cuda, cuda_name(lib), err.text);
        return false;
    }
    const char *path = cuda_path(lib), *version = cuda_version(lib);
    tell(d, cuda, cuda_name(lib),
         json_pack("{s:b, s:s, s:s}", "ok", 1, "path", path, "version", version), "%s, %s", version,
         path);
    return true;
}

static void look_at_devices(struct doctor *d)
{
    struct rt_error err;
    struct cuda_device *dev;
    size_t n;
    d->gpu_lacks = "no driver (libcuda.so.1)";
    if (!library(d, CUDA_driver)) return;
    if (cuda_devices(d->a, &dev, &n, &err)) {
        lacks(d, cuda, "devices", err.text);
        d->gpu_lacks = str_dup(d->a, str_of(err.text));
        return;
    }
    json_t *list = json_array();
    struct sb s = {0};
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:i}", "name", dev[i].name, "arch",
                                              str_fmt(d->a, "sm_%d%d", dev[i].major, dev[i].minor),
                                              "memory", (json_int_t)dev[i].bytes, "multiprocessors",
                                              dev[i].multiprocessors));
        sb_printf(&s, "%s%zu: %s, sm_%d%d, %s, %d multiprocessors", i ? "; " : "", i, dev[i].name,
                  dev[i].major, dev[i].minor, cli_bytes(d->a, (double)dev[i].bytes),
                  dev[i].multiprocessors);
    }
    tell(d, cuda, "devices", list, "%s", n ? s.p : "none");
    sb_free(&s);
    d->gpu_lacks = n ? NULL : "the driver finds no GPU";
    if (n && !gpu_arch(dev[0].major, dev[0].minor))
        d->gpu_lacks = str_fmt(d->a, "%s has compute capability %d.%d; 8.0 is the least",
                               dev[0].name, dev[0].major, dev[0].minor);
}

static const char kernel_text[] =
    "extern \"C\" __global__ void __launch_bounds__(256) doctor(float *x)\n{\n"
    "    __shared__ float s[256];\n    s[threadIdx.x] = x[threadIdx.x];\n"
    "    __syncthreads();\n    x[threadIdx.x] = s[255 - threadIdx.x];\n}\n";

static void try_nvrtc(struct doctor *d)
{
    struct rt_error err;
    struct nvrtc_image image;
    const char *archs;
    d->nvrtc_lacks = "no NVRTC (libnvrtc.so)";
    if (!library(d, CUDA_nvrtc)) return;
    d->nvrtc_lacks = NULL;
    enum rt_status st = nvrtc_archs(d->a, &archs, &err);
    if (!st) tell(d, cuda, "targets", json_string(archs), "%s", archs);
    if (!st) st = nvrtc_compile(d->a, kernel_text, "sm_90", false, &image, &err);
    if (!st && image.kernels != 1)
        st = rt_fail(&err, RT_machine, "NVRTC does not tell the kernel's registers");
    if (st) {
        lacks(d, cuda, "self-test", err.text);
        d->nvrtc_lacks = str_dup(d->a, str_of(err.text));
        return;
    }
    const struct nvrtc_kernel *k = image.kernel;
    unsigned spilled = k->spill_stores + k->spill_loads;
    tell(d, cuda, "self-test",
         json_pack("{s:b, s:f, s:i, s:i, s:i}", "ok", 1, "ms", 1e3 * image.seconds, "registers",
                   (int)k->registers, "shared", (int)k->shared, "spilled", (int)spilled),
         "compiled a kernel for sm_90 in %.0f ms: %u registers, %u bytes shared, %u spilled",
         1e3 * image.seconds, k->registers, k->shared, spilled);
}

/* Runs that kernel on the first device. */
static enum rt_status run_there(struct doctor *d, struct gpu *g, double *ms, struct rt_error *err)
{
    const struct sa_launch l = {{1, 1, 1}, 256, 0};
    struct nvrtc_image image;
    struct CUmod_st *module;
    struct CUfunc_st *fn;
    cu_ptr p;
    float x[256];
    for (int i = 0; i < 256; i++) x[i] = (float)i;
    RT_TRY(nvrtc_compile(d->a, kernel_text, gpu_about(g)->arch, false, &image, err));
    RT_TRY(gpu_load(g, image.code.p, &module, err));
    RT_TRY(gpu_function(g, module, "doctor", &fn, err));
    RT_TRY(gpu_alloc(g, sizeof x, "a test", &p, err));
    double begin = mem_seconds();
    RT_TRY(gpu_put(g, p, x, sizeof x, err));
    RT_TRY(gpu_launch(g, fn, &l, &p, sizeof p, err));
    RT_TRY(gpu_get(g, x, p, sizeof x, err));
    RT_TRY(gpu_wait(g, err));
    *ms = 1e3 * (mem_seconds() - begin);
    gpu_free(g, p);
    gpu_unload(g, module);
    for (int i = 0; i < 256; i++)
        if (x[i] != (float)(255 - i))
            return rt_fail(err, RT_machine, "a kernel computes %g, not %d", (double)x[i], 255 - i);
    return RT_ok;
}

static void try_gpu(struct doctor *d)
{
    struct rt_error err;
    struct gpu *g;
    double ms = 0;
    if (d->gpu_lacks) return;
    d->gpu_lacks = d->nvrtc_lacks;
    if (d->gpu_lacks) return;
    enum rt_status st = gpu_open(0, &g, &err);
    if (!st) st = run_there(d, g, &ms, &err);
    if (st) {
        lacks(d, cuda, "gpu-test", err.text);
        d->gpu_lacks = str_dup(d->a, str_of(err.text));
    } else {
        tell(d, cuda, "gpu-test",
             json_pack("{s:b, s:f, s:s}", "ok", 1, "ms", ms, "arch", gpu_about(g)->arch),
             "ran a kernel on cuda:0 (%s) in %.2f ms", gpu_about(g)->arch, ms);
    }
    gpu_close(g);
}

/* ---- verdicts ---- */

static void verdict(struct doctor *d, const char *key, const char *what, const char *lack,
                    const char *note)
{
    json_object_set_new(json_object_get(d->all, works), key, json_boolean(!lack));
    if (!d->quiet) printf("  %-32s %s%s\n", what, lack ? "no: " : "yes", lack ? lack : note);
}

int cmd_doctor(int argc, char **argv)
{
    struct cli c = {0};
    struct doctor d = {.all = json_object()};
    cli_parse(&c, argc, argv, help, 0, CLI_OPTIONS({"json", CLI_flag, &d.quiet}));
    cli_no_set(&c);
    d.a = c.arena;
    look_at_cpu(&d);
    look_at_clang(&d);
    look_at_devices(&d);
    try_nvrtc(&d);
    try_gpu(&d);
    if (!library(&d, CUDA_cublas) && !d.gpu_lacks) d.gpu_lacks = "no cuBLAS (libcublas.so)";
    library(&d, CUDA_cublasLt);
    library(&d, CUDA_nccl);
    json_object_set_new(d.all, works, json_object());
    if (!d.quiet) printf("\nwhat works\n");
    bool gpu = json_array_size(json_object_get(json_object_get(d.all, cuda), "devices")) > 0;
    verdict(&d, "cpu", "train and generate on this CPU", d.cpu_lacks, "");
    struct rt_error err;
    bool link = !d.cpu_lacks && app_can_link(d.a, &err);
    verdict(&d, "build", "make programs (strata build)",
            d.cpu_lacks ? d.cpu_lacks
            : link      ? err.text
                        : NULL,
            "");
    verdict(&d, "cuda_compile", "compile for CUDA", d.nvrtc_lacks, gpu ? "" : " (no GPU here)");
    verdict(&d, "gpu", "train and generate on a GPU", d.gpu_lacks, ": --device cuda");
    const char *next = !d.gpu_lacks   ? "strata bench specs/bench-c.yaml --device cuda"
                       : !d.cpu_lacks ? "strata check examples/tiny-moe/spec.yaml"
                       : d.install    ? d.install
                                      : "strata doctor --help";
    json_object_set_new(d.all, "next", json_string(next));
    if (d.quiet) {
        json_dumpf(d.all, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
        putchar('\n');
    } else {
        printf("\nnext: %s\n", next);
    }
    json_decref(d.all);
    return d.cpu_lacks ? EXIT_MACHINE : 0;
}
