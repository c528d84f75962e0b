/* The fake CUDA installation (tests/fakecuda/fake.h) behind the runtime's loader: kernels, streams,
 * graphs and products run, and what a GPU would refuse is refused. */
#include "codegen/text.h"
#include "runtime/cuda_api.h"
#include "runtime/nvrtc.h"
#include "scratch.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <cmocka.h>

static struct arena *a;
static const struct cuda_api *cu;
static struct rt_error err;
static struct CUmod_st *module;
static struct CUstream_st *s;

#define OK(call) assert_int_equal(cu->call, 0)
#define FAILS(code, call) assert_int_equal(cu->call, code)

enum { N = 1000, THREADS = 128 };

/* Sums of neighbours through dynamic shared memory; `wide` takes more of it than a launch may by
 * itself; `race` and `beyond` are wrong. */
static const char text[] =
    "extern \"C\" __global__ void __launch_bounds__(128) neighbours(float *y, const float *x, "
    "int64_t n) {\n"
    "    DYNAMIC_SHARED(float, t);\n"
    "    int64_t i = (int64_t)blockIdx.x * 128 + threadIdx.x;\n"
    "    t[threadIdx.x] = i < n ? x[i] : 0.0f;\n"
    "    __syncthreads();\n"
    "    if (i < n) y[i] = t[threadIdx.x] + t[threadIdx.x ^ 1];\n"
    "}\n"
    "extern \"C\" __global__ void __launch_bounds__((64 + 64), 2) twice(float *x, int64_t n) {\n"
    "    int64_t i = (int64_t)blockIdx.x * 128 + threadIdx.x;\n"
    "    if (i < n) x[i] = x[i] + x[i];\n"
    "}\n"
    "extern \"C\" __global__ void __launch_bounds__(128) race(float *x) {\n"
    "    x[0] = (float)threadIdx.x;\n"
    "}\n"
    "extern \"C\" __global__ void __launch_bounds__(128) beyond(float *x, int64_t n) {\n"
    "    if (threadIdx.x == 0) x[n] = 1.0f;\n"
    "}\n";

static unsigned launch(struct CUstream_st *to, const char *name, unsigned blocks, unsigned shared,
                       const void *parameters, size_t bytes)
{
    struct CUfunc_st *f;
    OK(cuModuleGetFunction(&f, module, name));
    const struct cu_launch l = {
        .grid = {blocks, 1, 1}, .block = {THREADS, 1, 1}, .shared_bytes = shared, .stream = to};
    void *extra[] = {(void *)1, (void *)(uintptr_t)parameters, (void *)2, &bytes, NULL};
    return cu->cuLaunchKernelEx(&l, f, NULL, extra);
}

static unsigned neighbours(struct CUstream_st *to, cu_ptr y, cu_ptr x)
{
    const uint64_t parameters[] = {y, x, N};
    return launch(to, "neighbours", (N + THREADS - 1) / THREADS, THREADS * 4, parameters,
                  sizeof parameters);
}

static unsigned twice(struct CUstream_st *to, cu_ptr x)
{
    const uint64_t parameters[] = {x, N};
    return launch(to, "twice", (N + THREADS - 1) / THREADS, 0, parameters, sizeof parameters);
}

static cu_ptr device(size_t bytes)
{
    cu_ptr p;
    OK(cuMemAlloc_v2(&p, bytes));
    return p;
}

static void *host(size_t bytes)
{
    void *p;
    OK(cuMemHostAlloc(&p, bytes, 0));
    return p;
}

static int open_device(void **state)
{
    (void)state;
    struct cuda_device *d;
    struct CUctx_st *context;
    struct nvrtc_image image;
    size_t n;
    if (!scratch_open()) return -1;
    a = arena_open("test_fakecuda");
    setenv("STRATA_FAKE_LOG", in_dir("log"), 1);
    if (cuda_devices(a, &d, &n, &err)) fail_msg("%s", err.text);
    assert_int_equal(n, 1);
    assert_string_equal(d->name, "strata fake device");
    assert_true(d->major == 9 && d->minor == 0 && d->multiprocessors == 132);
    assert_int_equal(cuda_load(CUDA_driver, &cu, &err), RT_ok);
    assert_int_equal(cuda_load(CUDA_cublas, NULL, &err), RT_ok);
    const char *all = str_fmt(a, "%s%s", cg_text_cuda_prelude, text);
    if (nvrtc_compile(a, all, "sm_90a", false, &image, &err)) fail_msg("%s", err.text);
    assert_string_equal(cuda_version(CUDA_nvrtc), "13.999");
    assert_int_equal(image.kernels, 4);
    assert_string_equal(image.kernel[1].name, "twice");
    assert_true(image.kernel[0].registers == 32 && !image.kernel[0].stack);
    FAILS(201, cuModuleLoadData(&module, image.code.p)); /* no context */
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    OK(cuModuleLoadData(&module, image.code.p));
    OK(cuStreamCreate(&s, C_CU_STREAM_NON_BLOCKING));
    return 0;
}

static int close_device(void **state)
{
    (void)state;
    OK(cuStreamDestroy_v2(s));
    OK(cuModuleUnload(module));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    arena_close(a);
    scratch_close();
    return 0;
}

/* The log so far, which begins anew. */
static const char *take_log(void)
{
    struct str log;
    assert_int_equal(io_read(a, in_dir("log"), 1 << 20, &log), 0);
    assert_int_equal(truncate(in_dir("log"), 0), 0);
    return str_fmt(a, "%.*s", (int)log.n, log.p);
}

static int count(const char *log, const char *word)
{
    int n = 0;
    for (; (log = strstr(log, word)); log++) n++;
    return n;
}

/* ---- work of a stream ---- */

static void streams(void **state)
{
    (void)state;
    float *in = host(N * 4), *out = host(N * 4);
    cu_ptr x = device(N * 4), y = device(N * 4);
    for (int i = 0; i < N; i++) in[i] = (float)i;
    OK(cuMemcpyHtoDAsync_v2(x, in, N * 4, s));
    assert_int_equal(neighbours(s, y, x), 0);
    assert_int_equal(twice(s, y), 0);
    OK(cuMemcpyDtoHAsync_v2(out, y, N * 4, s));
    assert_true(isnan(out[0])); /* nobody waited */
    OK(cuStreamSynchronize(s));
    for (int i = 0; i < N; i++) assert_true(out[i] == 2 * (float)(i + (i ^ 1)));
    OK(cuMemsetD8Async(y, 0, N * 4, s));
    assert_int_equal(launch(s, "twice", 1, 0, (uint64_t[]){x, N}, 8), 1); /* half the parameters */
    OK(cuStreamSynchronize(s));
    OK(cuMemcpyDtoH_v2(out, y, N * 4));
    assert_true(out[0] == 0 && out[N - 1] == 0);
    OK(cuMemFree_v2(x));
    OK(cuMemFree_v2(y));
    OK(cuMemFreeHost(in));
    OK(cuMemFreeHost(out));
}

static void events(void **state)
{
    (void)state;
    struct CUstream_st *other;
    struct CUevent_st *begin, *end;
    float ms = -1, *out = host(4);
    cu_ptr x = device(N * 4);
    OK(cuStreamCreate(&other, C_CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&begin, 0));
    OK(cuEventCreate(&end, 0));
    OK(cuMemsetD8Async(x, 0, N * 4, s));
    OK(cuEventRecord(begin, s));
    OK(cuStreamWaitEvent(other, begin, 0));
    OK(cuMemcpyDtoHAsync_v2(out, x, 4, other));
    OK(cuEventRecord(end, other));
    FAILS(600, cuEventElapsedTime(&ms, begin, end));
    OK(cuEventSynchronize(end));
    assert_true(*out == 0);
    OK(cuEventElapsedTime(&ms, begin, end));
    assert_true(ms >= 0);
    OK(cuEventDestroy_v2(begin));
    OK(cuEventDestroy_v2(end));
    OK(cuStreamDestroy_v2(other));
    OK(cuMemFree_v2(x));
    OK(cuMemFreeHost(out));
}

/* ---- graphs ---- */

static void replay(void **state)
{
    (void)state;
    struct CUgraph_st *graph;
    struct CUgraphExec_st *exec;
    float *in = host(N * 4), *out = host(N * 4);
    cu_ptr x = device(N * 4);
    OK(cuStreamBeginCapture_v2(s, C_CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(cuMemcpyHtoDAsync_v2(x, in, N * 4, s));
    assert_int_equal(twice(s, x), 0);
    OK(cuMemcpyDtoHAsync_v2(out, x, N * 4, s));
    OK(cuStreamEndCapture(s, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroy(graph));
    OK(cuStreamSynchronize(s));
    assert_true(isnan(out[3])); /* nothing ran */
    take_log();
    for (int step = 0; step < 3; step++) {
        for (int i = 0; i < N; i++) in[i] = (float)(i + step);
        OK(cuGraphLaunch(exec, s));
        OK(cuStreamSynchronize(s));
        for (int i = 0; i < N; i++) assert_true(out[i] == 2 * (float)(i + step));
    }
    const char *log = take_log();
    assert_int_equal(count(log, "graph-launch 3 nodes"), 3);
    assert_int_equal(count(log, "sync"), 3);
    assert_int_equal(count(log, "launch twice"), 0);
    OK(cuGraphExecDestroy(exec));
    OK(cuMemFree_v2(x));
    OK(cuMemFreeHost(in));
    OK(cuMemFreeHost(out));
}

enum violation { WAITS, ALLOCATES, COPIES, PAGEABLE, ELSEWHERE, UNJOINED, JOINED, VIOLATIONS };

/* The code of the call, and that of the end of the capture. */
static unsigned violate(enum violation v, struct CUstream_st *other, cu_ptr x, unsigned *end)
{
    struct CUgraph_st *graph;
    struct CUevent_st *e;
    cu_ptr p;
    float pageable[4] = {0};
    unsigned code = 0;
    OK(cuEventCreate(&e, C_CU_EVENT_DISABLE_TIMING));
    if (v == ELSEWHERE) OK(cuEventRecord(e, other));
    OK(cuStreamBeginCapture_v2(s, C_CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    switch (v) {
    case WAITS: code = cu->cuStreamSynchronize(s); break;
    case ALLOCATES: code = cu->cuMemAlloc_v2(&p, 64); break;
    case COPIES: code = cu->cuMemcpyHtoD_v2(x, pageable, 4); break;
    case PAGEABLE: code = cu->cuMemcpyHtoDAsync_v2(x, pageable, 4, s); break;
    case ELSEWHERE: code = cu->cuStreamWaitEvent(s, e, 0); break;
    default:
        OK(cuEventRecord(e, s));
        OK(cuStreamWaitEvent(other, e, 0));
        code = twice(other, x);
        if (v == UNJOINED) break;
        OK(cuEventRecord(e, other));
        OK(cuStreamWaitEvent(s, e, 0));
    }
    *end = cu->cuStreamEndCapture(s, &graph);
    if (graph) OK(cuGraphDestroy(graph));
    assert_true((graph == NULL) == (*end != 0));
    OK(cuEventDestroy_v2(e));
    return code;
}

static void violations(void **state)
{
    (void)state;
    static const unsigned want[VIOLATIONS][2] = {
        [WAITS] = {900, 901},    [ALLOCATES] = {900, 901}, [COPIES] = {900, 901},
        [PAGEABLE] = {900, 901}, [ELSEWHERE] = {905, 901}, [UNJOINED] = {0, 904},
        [JOINED] = {0, 0},
    };
    struct CUstream_st *other;
    cu_ptr x = device(N * 4);
    OK(cuStreamCreate(&other, C_CU_STREAM_NON_BLOCKING));
    for (int v = 0; v < VIOLATIONS; v++) {
        unsigned end, code = violate((enum violation)v, other, x, &end);
        if (code != want[v][0] || end != want[v][1])
            fail_msg("%d: %u and %u, wanted %u and %u", v, code, end, want[v][0], want[v][1]);
        assert_int_equal(twice(s, x), 0); /* streams work again */
        OK(cuStreamSynchronize(s));
    }
    OK(cuStreamDestroy_v2(other));
    OK(cuMemFree_v2(x));
}

/* ---- memory, launches: what is refused ---- */

static void refused(void **state)
{
    (void)state;
    cu_ptr x = device(4096), p;
    char bytes[8192];
    struct CUfunc_st *f;
    FAILS(1, cuMemcpyHtoD_v2(x, bytes, 4097));
    FAILS(1, cuMemcpyHtoD_v2(x + 4000, bytes, 97));
    FAILS(1, cuMemcpyDtoH_v2((void *)(uintptr_t)x, x, 16));
    FAILS(1, cuMemcpyDtoDAsync_v2(x, (uintptr_t)bytes, 16, s));
    FAILS(1, cuMemFree_v2(x + 64));
    OK(cuMemcpyHtoD_v2(x + 4000, bytes, 96));
    setenv("STRATA_FAKE_BYTES", "1048576", 1);
    FAILS(C_CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc_v2(&p, 1048576));
    assert_int_equal(cuda_check(CUDA_driver, 2, "cuMemAlloc(...)", &err), RT_machine);
    assert_non_null(strstr(err.text, "out of memory"));
    OK(cuMemAlloc_v2(&p, 1048576 - 4096));
    OK(cuMemFree_v2(p));
    unsetenv("STRATA_FAKE_BYTES");
    OK(cuMemFree_v2(x));
    FAILS(500, cuModuleGetFunction(&f, module, "nothing"));
    const uint64_t parameters[] = {x, x, 0};
    assert_int_equal(launch(s, "neighbours", 0, 0, parameters, 24), 1); /* no blocks */
    assert_int_equal(launch(s, "neighbours", 1, 50000, parameters, 24), 1);
    OK(cuModuleGetFunction(&f, module, "neighbours"));
    FAILS(1, cuFuncSetAttribute(f, C_CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 232449));
    OK(cuFuncSetAttribute(f, C_CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 50000));
    assert_int_equal(launch(s, "neighbours", 1, 50000, parameters, 24), 0);
    const struct cu_launch l = {.grid = {1, 1, 1}, .block = {256, 1, 1}, .stream = s};
    void *extra[] = {(void *)1, (void *)(uintptr_t)parameters, (void *)2, &(size_t){24}, NULL};
    FAILS(701, cuLaunchKernelEx(&l, f, NULL, extra)); /* beyond its bounds */
    OK(cuStreamSynchronize(s));
}

/* ---- cuBLAS ---- */

static float value(int i)
{
    return (float)((i * 37) % 19 - 9);
}

static uint16_t narrow(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)(u >> 16); /* of small integers */
}

/* C[m,n] = A^T B + 2 C, by columns, over small integers, which float32 sums exactly. */
static void product(bool bf16, struct cublasContext *h)
{
    enum { M = 33, NN = 7, K = 20, LD = 40, BATCH = 2 };
    static float c[BATCH * NN * LD], in[BATCH * M * K + BATCH * NN * K];
    uint16_t in16[sizeof in / 4];
    const float one = 1, two = 2;
    size_t size = bf16 ? 2 : 4;
    for (size_t i = 0; i < sizeof in / 4; i++) in16[i] = narrow(in[i] = value((int)i));
    for (int i = 0; i < BATCH * NN * LD; i++) c[i] = (float)i;
    cu_ptr da = device(sizeof in), dc = device(sizeof c), db = da + BATCH * M * K * size;
    OK(cuMemcpyHtoDAsync_v2(da, bf16 ? (void *)in16 : (void *)in, size * sizeof in / 4, s));
    OK(cuMemcpyHtoDAsync_v2(dc, c, sizeof c, s));
    unsigned t = bf16 ? C_CUDA_R_16BF : C_CUDA_R_32F;
    OK(cublasGemmStridedBatchedEx(h, C_CUBLAS_OP_T, C_CUBLAS_OP_N, M, NN, K, &one,
                                  (void *)(uintptr_t)da, t, K, M * K, (void *)(uintptr_t)db, t, K,
                                  NN * K, &two, (void *)(uintptr_t)dc, C_CUDA_R_32F, LD, NN * LD,
                                  BATCH, C_CUBLAS_COMPUTE_32F, C_CUBLAS_GEMM_DEFAULT));
    OK(cuMemcpyDtoHAsync_v2(c, dc, sizeof c, s));
    for (int z = 0; z < BATCH; z++)
        for (int j = 0; j < NN; j++)
            for (int i = 0; i < LD; i++) {
                int at = (z * NN + j) * LD + i;
                float sum = (float)at;
                if (i < M) sum *= 2;
                for (int k = 0; k < K && i < M; k++)
                    sum += value((z * M + i) * K + k) * value(BATCH * M * K + (z * NN + j) * K + k);
                if (c[at] != sum) fail_msg("%d: %g, wanted %g", at, (double)c[at], (double)sum);
            }
    OK(cuMemFree_v2(da));
    OK(cuMemFree_v2(dc));
}

static void products(void **state)
{
    (void)state;
    struct cublasContext *h;
    struct CUgraph_st *graph;
    const float one = 1, zero = 0;
    OK(cublasCreate_v2(&h));
    OK(cublasSetStream_v2(h, s));
    OK(cublasSetMathMode(h, C_CUBLAS_PEDANTIC_MATH));
    product(false, h);
    product(true, h);
    cu_ptr x = device(4096), work = device(4096);
    void *p = (void *)(uintptr_t)x;
#define GEMM(m)                                                                               \
    cublasGemmEx(h, 0, 0, m, 16, 16, &one, p, C_CUDA_R_32F, m, p, C_CUDA_R_32F, 16, &zero, p, \
                 C_CUDA_R_32F, m, C_CUBLAS_COMPUTE_32F_PEDANTIC, C_CUBLAS_GEMM_DEFAULT)
    FAILS(7, GEMM(80)); /* beyond the array */
    OK(cuStreamBeginCapture_v2(s, C_CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    FAILS(13, GEMM(16)); /* no workspace */
    FAILS(901, cuStreamEndCapture(s, &graph));
    OK(cublasSetWorkspace_v2(h, (void *)(uintptr_t)work, 4096));
    OK(cuStreamBeginCapture_v2(s, C_CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(GEMM(16));
    OK(cuStreamEndCapture(s, &graph));
    OK(cuGraphDestroy(graph));
    OK(cublasDestroy_v2(h));
    OK(cuMemFree_v2(x));
    OK(cuMemFree_v2(work));
}

/* ---- the checked installation ---- */

/* In a process of its own: the error stays. Prints its report. */
static void broken(const char *kernel)
{
    cu_ptr x = device(4096), y = device(4096);
    const uint64_t parameters[] = {x, 1024};
    assert_int_equal(neighbours(s, y, x), 0);
    OK(cuStreamSynchronize(s));
    bool race = !strcmp(kernel, "race");
    assert_int_equal(launch(s, kernel, 1, 0, parameters, race ? 8 : 16), 0);
    FAILS(700, cuStreamSynchronize(s));
    FAILS(700, cuMemAlloc_v2(&x, 16));
    fflush(NULL);
    _exit(0);
}

static void reports(void **state)
{
    const char *const *row = *state;
    struct str out;
    int status;
    char *argv[] = {"/proc/self/exe", str_dup(a, str_of(row[0])), NULL};
    char own[512];
    ssize_t n = readlink(argv[0], own, sizeof own - 1);
    assert_true(n > 0);
    own[n] = 0;
    argv[0] = own;
    assert_int_equal(io_spawn(a, argv, STR(""), &out, &status), 0);
    if (status || !strstr(out.p, row[1])) fail_msg("status %d: %s", status, out.p);
}

int main(int argc, char **argv)
{
    char path[512];
    if (!strata_path(path)) return 1;
    bool checked = argc > 1;
    strcpy(strrchr(path, '/'), checked ? "/fakecuda/checked" : "/fakecuda");
    setenv("STRATA_CUDA_PATH", path, 1);
    if (checked) {
        if (open_device(NULL)) return 1;
        broken(argv[1]);
    }
    static const char *race[] = {"race", "race: "}, *beyond[] = {"beyond", "out of bounds: "};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streams),
        cmocka_unit_test(events),
        cmocka_unit_test(replay),
        cmocka_unit_test(violations),
        cmocka_unit_test(refused),
        cmocka_unit_test(products),
        cmocka_unit_test_prestate(reports, race),
        cmocka_unit_test_prestate(reports, beyond),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
