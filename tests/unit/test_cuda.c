/* CUDA's libraries: the table beside NVIDIA's headers, libraries made here that fail in every way,
 * `strata doctor` over them, and NVRTC where it is installed. */
#if defined __has_include
#if __has_include(<cuda.h>) && __has_include(<nvrtc.h>) && __has_include(<cublas_v2.h>) && \
    __has_include(<cublasLt.h>) && __has_include(<nccl.h>)
#define HEADERS
#include <cuda.h>
#include <nvrtc.h>
#include <cublas_v2.h>
#include <cublasLt.h>
#include <nccl.h>
#endif
#endif
#include "runtime/cc.h"
#include "runtime/cuda_api.h"
#include "runtime/nvrtc.h"
#include "runtime/store.h"
#include "scratch.h"
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <cmocka.h>

static struct arena *a;
static struct rt_error err;
static char strata[512]; /* the program beside this one */

/* ---- the table ---- */

#ifdef HEADERS
#define SAME(name, type)                                            \
    {                                                               \
#name, __builtin_types_compatible_p(__typeof__(name), type) \
    }
/* Types without a tag, which no other declaration is compatible with; seen to below. */
static bool untagged(const char *name)
{
    return str_starts(str_of(name), "cublasLtMat") || !strcmp(name, "cuLaunchKernelEx") ||
           !strcmp(name, "ncclGetUniqueId") || !strcmp(name, "ncclCommInitRank");
}

static void headers(void **state)
{
    (void)state;
    const struct {
        const char *name;
        bool same;
    } function[] = {
#define API(lib, result, name, arguments) SAME(name, result arguments),
#include "runtime/cuda_api.def"
    };
    for (size_t i = 0; i < sizeof function / sizeof *function; i++)
        if (!function[i].same && !untagged(function[i].name))
            fail_msg("%s has another prototype", function[i].name);
#define CONST(name, value) assert_int_equal((int)name, value);
#include "runtime/cuda_api.def"
    assert_int_equal(sizeof(CUlaunchConfig), sizeof(struct cu_launch));
    assert_int_equal(offsetof(CUlaunchConfig, blockDimX), offsetof(struct cu_launch, block));
    assert_int_equal(offsetof(CUlaunchConfig, hStream), offsetof(struct cu_launch, stream));
    assert_int_equal(offsetof(CUlaunchConfig, numAttrs), offsetof(struct cu_launch, attributes));
    assert_int_equal(sizeof(ncclUniqueId), sizeof(struct nccl_id));
    assert_int_equal(sizeof(cublasLtMatmulAlgo_t), sizeof(struct lt_algo));
    assert_int_equal(sizeof(cublasLtMatmulHeuristicResult_t), sizeof(struct lt_heuristic));
    assert_int_equal(offsetof(cublasLtMatmulHeuristicResult_t, state),
                     offsetof(struct lt_heuristic, state));
}
#else
static void headers(void **state)
{
    (void)state;
    printf("skipped: no headers of CUDA\n");
    skip();
}
#endif

/* ---- libraries made here ---- */

/* All functions of a library; the text of some, and one that is missing. Others return 0. */
static void make_library(enum cuda_library lib, const char *file, const char *text,
                         const char *missing)
{
    static const struct {
        enum cuda_library lib;
        const char *name;
    } all[] = {
#define API(lib, result, name, arguments) {CUDA_##lib, #name},
#include "runtime/cuda_api.def"
    };
    struct sb s = {0};
    sb_printf(&s, "#include <string.h>\n%s\n", text);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].lib == lib && strcmp(all[i].name, missing) &&
            !strstr(text, str_fmt(a, " %s(", all[i].name)))
            sb_printf(&s, "int %s(void) { return 0; }\n", all[i].name);
    const char *clang, *source = in_dir("fake.c");
    assert_int_equal(io_write_atomic(source, s.p, s.n), 0);
    sb_free(&s);
    assert_int_equal(cc_find(a, &clang, &err), RT_ok);
    assert_non_null(clang);
    struct cc_unit u = {source, in_dir(file), in_dir("fake.log"), NULL};
    if (cc_compile(a, clang, cc_flags(a, "native"), &u, 1, &err)) fail_msg("%s", err.text);
}

/* With only the libraries in the test's folder. */
static struct str run_doctor(int status, char *option)
{
    struct str out;
    int got;
    char *argv[] = {"env", str_fmt(a, "STRATA_CUDA_PATH=%s", scratch_dir), strata, "doctor", option,
                    NULL};
    assert_int_equal(io_spawn(a, argv, STR(""), &out, &got), 0);
    if (!WIFEXITED(got) || WEXITSTATUS(got) != status) fail_msg("status %d: %s", got, out.p);
    return out;
}

/* What doctor says with only the libraries made so far; they are then gone. */
static json_t *doctor(int status)
{
    json_error_t e;
    json_t *j = json_loads(run_doctor(status, "--json").p, 0, &e);
    if (!j) fail_msg("%s", e.text);
    unlink(in_dir("libcuda.so.1"));
    unlink(in_dir("libnvrtc.so.13"));
    return j;
}

static const char *error_of(json_t *j, const char *key)
{
    const char *text = NULL;
    json_t *row = json_object_get(json_object_get(j, "cuda"), key);
    json_unpack(row, "{s:s}", "error", &text);
    return text ? text : "";
}

#define HAS(text, part)                                                    \
    do {                                                                   \
        if (!strstr(text, part)) fail_msg("no '%s' in: %s", part, (text)); \
    } while (0)

static void works(json_t *j, int cpu, int compile, int gpu)
{
    int is[3];
    assert_int_equal(json_unpack(j, "{s:{s:b, s:b, s:b}}", "works", "cpu", &is[0], "cuda_compile",
                                 &is[1], "gpu", &is[2]),
                     0);
    assert_true(is[0] == cpu && is[1] == compile && is[2] == gpu);
}

static void nothing_there(void **state)
{
    (void)state;
    json_t *j = doctor(0);
    works(j, 1, 0, 0);
    HAS(error_of(j, "driver"), "looked for libcuda.so.1 in ");
    HAS(error_of(j, "driver"), scratch_dir);
    HAS(error_of(j, "driver"), "install NVIDIA's driver");
    HAS(error_of(j, "nvrtc"), "libnvrtc.so.13 libnvrtc.so.12 libnvrtc.so");
    HAS(error_of(j, "nvrtc"), "CUDA_HOME");
    HAS(error_of(j, "nccl"), "libnccl2");
    json_decref(j);
}

static void broken_libraries(void **state)
{
    (void)state;
    assert_int_equal(io_write_atomic(in_dir("libcuda.so.1"), "no ELF", 6), 0);
    json_t *j = doctor(0);
    HAS(error_of(j, "driver"), "the CUDA driver does not load: ");
    json_decref(j);
    make_library(CUDA_driver, "libcuda.so.1", "", "cuLaunchKernelEx");
    j = doctor(0);
    HAS(error_of(j, "driver"), "libcuda.so.1' is too old, it has no cuLaunchKernelEx");
    json_decref(j);
    static const char lost[] = "int cuInit(unsigned f) { return 999; }\n"
                               "int cuGetErrorString(unsigned c, const char **t)\n"
                               "{ *t = c == 999 ? \"all is lost\" : \"?\"; return 0; }\n";
    make_library(CUDA_driver, "libcuda.so.1", lost, "");
    j = doctor(0);
    HAS(error_of(j, "devices"), "cuInit(0) failed with 999: all is lost");
    works(j, 1, 0, 0);
    json_decref(j);
}

static void devices(void **state)
{
    (void)state;
    make_library(CUDA_driver, "libcuda.so.1", "int cuInit(unsigned f) { return 100; }\n", "");
    json_t *j = doctor(0), *list = json_object_get(json_object_get(j, "cuda"), "devices");
    assert_true(json_is_array(list) && json_array_size(list) == 0);
    json_decref(j);
    static const char two[] =
        "int cuDriverGetVersion(int *v) { *v = 12080; return 0; }\n"
        "int cuDeviceGetCount(int *n) { *n = 2; return 0; }\n"
        "int cuDeviceGet(int *d, int i) { *d = i + 7; return 0; }\n"
        "int cuDeviceGetName(char *s, int n, int d) { memcpy(s, \"card 7\", 7); s[5] += d - 7;"
        " return 0; }\n"
        "int cuDeviceTotalMem_v2(size_t *n, int d) { *n = (size_t)d << 30; return 0; }\n"
        "int cuDeviceGetAttribute(int *v, unsigned k, int d)\n"
        "{ *v = k == 75 ? 9 : k == 76 ? 0 : 132; return 0; }\n";
    make_library(CUDA_driver, "libcuda.so.1", two, "");
    j = doctor(0);
    const char *version, *name, *arch;
    json_int_t bytes;
    int sm;
    json_t *found = json_object_get(j, "cuda");
    list = json_object_get(found, "devices");
    assert_int_equal(json_array_size(list), 2);
    assert_int_equal(json_unpack(found, "{s:{s:s}}", "driver", "version", &version), 0);
    assert_string_equal(version, "12.8");
    assert_int_equal(json_unpack(json_array_get(list, 1), "{s:s, s:s, s:I, s:i}", "name", &name,
                                 "arch", &arch, "memory", &bytes, "multiprocessors", &sm),
                     0);
    assert_string_equal(name, "card 8");
    assert_string_equal(arch, "sm_90");
    assert_true(bytes == (json_int_t)8 << 30 && sm == 132);
    json_decref(j);
}

static void old_nvrtc(void **state)
{
    (void)state;
    static const char text[] = "int nvrtcVersion(int *a, int *b) { *a = 12; *b = 4; return 0; }\n"
                               "int nvrtcGetNumSupportedArchs(int *n) { *n = 1; return 0; }\n"
                               "int nvrtcGetSupportedArchs(int *x) { *x = 50; return 0; }\n";
    make_library(CUDA_nvrtc, "libnvrtc.so.13", text, "");
    json_t *j = doctor(0);
    HAS(error_of(j, "self-test"), "NVRTC 12.4 does not compile for 'sm_90': it knows sm_50");
    works(j, 1, 0, 0);
    json_decref(j);
}

static void no_compiler(void **state)
{
    (void)state;
    setenv("STRATA_CLANG", "no-such-clang", 1);
    json_t *j = doctor(3);
    unsetenv("STRATA_CLANG");
    works(j, 0, 0, 0);
    json_decref(j);
}

/* Headings and keys, without what differs between machines. UPDATE=1 rewrites the file. */
static void structure(void **state)
{
    (void)state;
    static const char path[] = "tests/cli/doctor.want";
    struct str all = run_doctor(0, NULL), want;
    struct sb s = {0};
    for (const char *p = all.p, *e; *p; p = e + 1) {
        e = p + strcspn(p, "\n");
        const char *cut = e - p > 2 ? strstr(p + 2, str_starts(str_of(p), "next") ? " " : "  ") : e;
        sb_printf(&s, "%.*s\n", (int)((cut && cut < e ? cut : e) - p), p);
    }
    if (getenv("UPDATE")) assert_int_equal(io_write_atomic(path, s.p, s.n), 0);
    assert_int_equal(io_read(a, path, 1 << 16, &want), 0);
    assert_string_equal(s.p, want.p);
    sb_free(&s);
}

/* ---- the cache of bytes ---- */

static void blobs(void **state)
{
    (void)state;
    const char *root = in_dir("cache"), *dir = str_fmt(a, "%s/x", root);
    struct str data;
    for (int i = 0; i < 3; i++) {
        const char *key = str_fmt(a, "k%d", i), *path = str_fmt(a, "%s/%s.blob", dir, key);
        assert_false(store_read_blob(a, dir, key, &data));
        assert_int_equal(store_write_blob(dir, key, (struct str){"a\0b", 3}, &err), RT_ok);
        struct timespec old[2] = {{.tv_sec = 1000 + i}, {.tv_sec = 1000 + i}};
        utimensat(AT_FDCWD, path, old, 0);
    }
    assert_true(store_read_blob(a, dir, "k0", &data)); /* now the newest */
    assert_true(data.n == 3 && !memcmp(data.p, "a\0b", 3));
    uint64_t one = store_bytes(root) / 3;
    store_trim(root, 2 * one);
    assert_int_equal(store_bytes(root), 2 * one);
    assert_false(store_read_blob(a, dir, "k1", &data));
    const char *path = str_fmt(a, "%s/k2.blob", dir);
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fseek(f, -1, SEEK_END);
    fputc('c', f);
    fclose(f);
    assert_false(store_read_blob(a, dir, "k2", &data)); /* damaged: gone */
    assert_false(io_exists(path));
}

/* ---- NVRTC ---- */

static const char kernels[] =
    "extern \"C\" __global__ void turn(float *x)\n{\n    __shared__ float s[256];\n"
    "    s[threadIdx.x] = x[threadIdx.x];\n    __syncthreads();\n"
    "    x[threadIdx.x] = s[255 - threadIdx.x];\n}\n"
    /* 64 sums in 32 registers */
    "extern \"C\" __global__ void __launch_bounds__(1024, 2) spill(float *x, int n)\n{\n"
    "    float a[64] = {0};\n    for (int k = 0; k < n; k++)\n#pragma unroll\n"
    "        for (int i = 0; i < 64; i++) a[i] = a[i] * x[i] + x[k];\n"
    "#pragma unroll\n    for (int i = 0; i < 64; i++) x[i] = a[i];\n}\n";

static bool no_nvrtc(void)
{
    if (!cuda_load(CUDA_nvrtc, NULL, &err)) return false;
    printf("skipped: %s\n", err.text);
    return true;
}

static struct nvrtc_image compiled(const char *text, const char *arch)
{
    struct nvrtc_image image;
    if (nvrtc_compile(a, text, arch, true, &image, &err)) fail_msg("%s", err.text);
    return image;
}

static void architectures(void **state)
{
    (void)state;
    if (no_nvrtc()) skip();
    static const char *const arch[] = {"sm_80", "sm_90", "sm_90a", "sm_100"};
    for (size_t i = 0; i < sizeof arch / sizeof *arch; i++) {
        struct nvrtc_image im = compiled(kernels, arch[i]);
        assert_true(im.code.n > 1000 && !memcmp(im.code.p, "\177ELF", 4));
        assert_int_equal(im.kernels, 2);
        for (int k = 0; k < 2; k++) {
            const struct nvrtc_kernel *x = &im.kernel[k];
            bool spills = !strcmp(x->name, "spill");
            assert_true(spills || !strcmp(x->name, "turn"));
            assert_int_equal(x->shared, spills ? 0 : 1024);
            assert_true(x->registers > 0 && x->registers <= 32);
            assert_int_equal(x->spill_stores > 0 && x->spill_loads > 0 && x->stack > 0, spills);
        }
    }
    struct nvrtc_image ptx = compiled(kernels, "compute_90");
    HAS(ptx.code.p, ".target sm_90");
    assert_int_equal(ptx.kernels, 0);
    static const char *const bad[] = {"sm_80a", "sm_70", "gfx942", "sm_90x", "sm_", "sm_9999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        enum rt_status want = i ? RT_usage : RT_user; /* the first is for NVRTC to say */
        assert_int_equal(nvrtc_compile(a, kernels, bad[i], true, &ptx, &err), want);
        HAS(err.text, bad[i]);
    }
}

static void cached(void **state)
{
    (void)state;
    if (no_nvrtc()) skip();
    const char *text = str_fmt(a, "// cached\n%s", kernels);
    struct nvrtc_image first = compiled(text, "sm_90"), second = compiled(text, "sm_90");
    assert_true(!first.cached && second.cached && second.seconds == 0);
    assert_true(str_eq(first.code, second.code) && second.kernels == 2);
    assert_memory_equal(&first.kernel[0].registers, &second.kernel[0].registers,
                        5 * sizeof(unsigned));
    assert_false(compiled(text, "sm_80").cached);
    assert_false(compiled(str_fmt(a, "%s ", text), "sm_90").cached);
    assert_int_equal(nvrtc_compile(a, text, "sm_90", false, &second, &err), RT_ok);
    assert_false(second.cached);
}

/* Code that was brought along needs no NVRTC and no cache; what lacks there does. */
static void carried(void **state)
{
    (void)state;
    const char *dir = in_dir("carried");
    char log[] = "ptxas info    : Compiling entry function 'k' for 'sm_90a'\n"
                 "ptxas info    : Used 40 registers\n";
    const struct nvrtc_image made = {.code = str_of("code of k"), .log = log};
    struct nvrtc_image got;
    assert_int_equal(nvrtc_carry(a, dir, "text of k", "sm_90a", &made, &err), RT_ok);
    setenv("STRATA_CUBINS", dir, 1);
    assert_int_equal(nvrtc_compile(a, "text of k", "sm_90a", true, &got, &err), RT_ok);
    assert_true(got.cached && str_eq(got.code, made.code) && got.kernels == 1);
    assert_int_equal(got.kernel[0].registers, 40);
    struct rt_error none;
    if (cuda_load(CUDA_nvrtc, NULL, &none) == RT_ok) {
        const char *other = str_fmt(a, "// not there\n%s", kernels);
        assert_int_equal(nvrtc_compile(a, other, "sm_90a", true, &got, &err), RT_ok);
        assert_true(!got.cached && got.kernels == 2);
    }
    unsetenv("STRATA_CUBINS");
}

static void *compile_one(void *number)
{
    struct arena *own = arena_open("thread");
    struct nvrtc_image im;
    const char *text = str_fmt(own, "__global__ void k%d(int *x) { *x = 1; }", *(int *)number);
    enum rt_status st = nvrtc_compile(own, text, "sm_90", true, &im, NULL);
    bool good = !st && im.kernels == 1 && im.code.n;
    arena_close(own);
    return good ? number : NULL;
}

static void threads(void **state)
{
    (void)state;
    if (no_nvrtc()) skip();
    pthread_t thread[4];
    int number[4] = {0, 1, 2, 3};
    void *good;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, compile_one, &number[i]), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(thread[i], &good);
        assert_ptr_equal(good, &number[i]);
    }
}

static void bad_text(void **state)
{
    (void)state;
    if (no_nvrtc()) skip();
    const char *log = in_dir("bug");
    struct str said;
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        struct nvrtc_image im;
        if (!freopen(log, "w", stderr)) _exit(1);
        signal(SIGABRT, SIG_DFL);
        nvrtc_compile(a, "__global__ void k(int *x)\n{\n    *x = nonsense;\n}\n", "sm_90", true,
                      &im, &err);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_int_equal(io_read(a, log, 1 << 16, &said), 0);
    HAS(said.p, ".cu(3): error: identifier \"nonsense\" is undefined");
    const char *source = strstr(said.p, "source: ");
    assert_non_null(source);
    source += strlen("source: ");
    assert_true(io_exists(str_dup(a, (struct str){source, strcspn(source, "\n")})));
}

static int open_all(void **state)
{
    (void)state;
    if (!strata_path(strata) || !scratch_open()) return -1;
    a = arena_open("test");
    return setenv("STRATA_CACHE", in_dir("strata-cache"), 1);
}

static int close_all(void **state)
{
    (void)state;
    scratch_close();
    arena_close(a);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers),          cmocka_unit_test(nothing_there),
        cmocka_unit_test(broken_libraries), cmocka_unit_test(devices),
        cmocka_unit_test(old_nvrtc),        cmocka_unit_test(no_compiler),
        cmocka_unit_test(structure),        cmocka_unit_test(blobs),
        cmocka_unit_test(architectures),    cmocka_unit_test(carried),
        cmocka_unit_test(cached),           cmocka_unit_test(threads),
        cmocka_unit_test(bad_text),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
