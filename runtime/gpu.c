#include "runtime/gpu.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct gpu {
    const struct cuda_api *cu;
    struct gpu_about about;
    int device;
    bool retained;
    struct CUctx_st *context;
    struct lane {
        struct CUstream_st *stream;
        struct cublasContext *blas;
        cu_ptr workspace;
        struct CUevent_st *end; /* where stream 0 waits for it */
    } lane[SA_STREAMS];
    unsigned lanes, now; /* streams there are; the selected one */
    struct CUevent_st *fork;
    bool products;
};
struct gpu_recording {
    struct CUgraph_st *graph;
    struct CUgraphExec_st *exec;
};

#define TRY(call) RT_TRY(cuda_check(CUDA_driver, g->cu->call, #call, err))
#define BLAS(call) RT_TRY(cuda_check(CUDA_cublas, g->cu->call, #call, err))

/* ---- the device ---- */

/* Those of 8.x differ in shared memory; from 9.0 on the suffix a gives what only that one has. */
const char *gpu_arch(int major, int minor)
{
    if (major < 8) return NULL;
    if (major == 8 && minor < 6) return "sm_80";
    if (major == 8) return minor == 7 ? "sm_87" : minor < 9 ? "sm_86" : "sm_89";
    if (major == 9) return "sm_90a";
    if (major == 10) return minor == 3 ? "sm_103a" : "sm_100a";
    return major == 11 ? "sm_110a" : "sm_120";
}

static enum rt_status find_device(struct gpu *g, int ordinal, struct rt_error *err)
{
    int count = 0, major = 0, minor = 0;
    struct gpu_about *x = &g->about;
    unsigned code = g->cu->cuInit(0);
    if (code != C_CUDA_ERROR_NO_DEVICE) {
        RT_TRY(cuda_check(CUDA_driver, code, "cuInit(0)", err));
        TRY(cuDeviceGetCount(&count));
    }
    if (!count) return rt_fail(err, RT_user, "the CUDA driver finds no GPU on this machine");
    if (ordinal < 0 || ordinal >= count)
        return rt_fail(err, RT_user, "there is no device cuda:%d: the driver finds %d, from cuda:0",
                       ordinal, count);
    TRY(cuDeviceGet(&g->device, ordinal));
    TRY(cuDeviceGetName(x->name, sizeof x->name, g->device));
    TRY(cuDeviceTotalMem_v2(&x->bytes, g->device));
    const struct {
        unsigned attribute;
        int *to;
    } ask[] = {{C_CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &major},
               {C_CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &minor},
               {C_CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &x->multiprocessors},
               {C_CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &x->shared_bytes}};
    for (size_t i = 0; i < sizeof ask / sizeof *ask; i++)
        TRY(cuDeviceGetAttribute(ask[i].to, ask[i].attribute, g->device));
    const char *arch = gpu_arch(major, minor);
    if (!arch)
        return rt_fail(err, RT_user, "cuda:%d, %s, has compute capability %d.%d; 8.0 is the least",
                       ordinal, x->name, major, minor);
    snprintf(x->arch, sizeof x->arch, "%s", arch);
    x->ordinal = ordinal;
    return RT_ok;
}

static enum rt_status start(struct gpu *g, int ordinal, struct rt_error *err)
{
    RT_TRY(find_device(g, ordinal, err));
    TRY(cuDevicePrimaryCtxRetain(&g->context, g->device));
    g->retained = true;
    TRY(cuCtxSetCurrent(g->context));
    return gpu_open_streams(g, 1, err);
}

enum rt_status gpu_open(int ordinal, struct gpu **out, struct rt_error *err)
{
    const struct cuda_api *cu;
    *out = NULL;
    RT_TRY(cuda_load(CUDA_driver, &cu, err));
    struct gpu *g = calloc(1, sizeof *g);
    CHECK(g);
    g->cu = cu;
    enum rt_status st = start(g, ordinal, err);
    if (st)
        gpu_close(g);
    else
        *out = g;
    return st;
}

static void close_lane(struct gpu *g, struct lane *x)
{
    if (x->blas) g->cu->cublasDestroy_v2(x->blas);
    if (x->workspace) g->cu->cuMemFree_v2(x->workspace);
    gpu_event_close(g, x->end);
    if (x->stream) g->cu->cuStreamDestroy_v2(x->stream);
}

enum rt_status gpu_open_named(const char *name, struct gpu **out, struct rt_error *err)
{
    char *end = (char *)(uintptr_t)name;
    long n = 0;
    *out = NULL;
    if (!strncmp(name, "cuda:", 5)) n = strtol(name + 5, &end, 10);
    if (strcmp(name, "cuda") && (end == name || end == name + 5 || *end || n < 0 || n > 1023))
        return rt_fail(err, RT_usage, "no device '%.40s': it is cpu, cuda or cuda:N", name);
    return gpu_open((int)n, out, err);
}

void gpu_close(struct gpu *g)
{
    if (!g) return;
    for (unsigned i = 0; i < g->lanes; i++) g->cu->cuStreamSynchronize(g->lane[i].stream);
    for (unsigned i = 0; i < SA_STREAMS; i++) close_lane(g, &g->lane[i]);
    gpu_event_close(g, g->fork);
    if (g->retained) g->cu->cuDevicePrimaryCtxRelease_v2(g->device);
    free(g);
}

enum rt_status gpu_use(struct gpu *g, struct rt_error *err)
{
    TRY(cuCtxSetCurrent(g->context));
    return RT_ok;
}

const struct gpu_about *gpu_about(const struct gpu *g)
{
    return &g->about;
}

/* ---- memory ---- */

enum rt_status gpu_memory(struct gpu *g, size_t *left, struct rt_error *err)
{
    size_t total;
    TRY(cuMemGetInfo_v2(left, &total));
    return RT_ok;
}

enum rt_status gpu_alloc_for(struct gpu *g, size_t bytes, const char *what, const char *less,
                             cu_ptr *p, struct rt_error *err)
{
    const double gb = 1e-9;
    size_t left = 0, total = g->about.bytes;
    *p = 0;
    if (!bytes) bytes = 256;
    unsigned code = g->cu->cuMemAlloc_v2(p, bytes);
    if (code == C_CUDA_ERROR_OUT_OF_MEMORY) {
        *p = 0;
        if (g->cu->cuMemGetInfo_v2(&left, &total)) left = 0;
        return rt_fail(err, RT_machine,
                       "no memory on cuda:%d (%s) for %.3f GB of %s: %.3f GB of its %.3f GB are "
                       "free%s%s",
                       g->about.ordinal, g->about.name, gb * (double)bytes, what, gb * (double)left,
                       gb * (double)total, less ? "; what needs less: " : "", less ? less : "");
    }
    return cuda_check(CUDA_driver, code, "cuMemAlloc_v2", err);
}

enum rt_status gpu_zero(struct gpu *g, cu_ptr p, size_t bytes, struct rt_error *err)
{
    if (bytes) TRY(cuMemsetD8Async(p, 0, bytes, g->lane[0].stream));
    return RT_ok;
}

void gpu_free(struct gpu *g, cu_ptr p)
{
    if (!p) return;
    g->cu->cuStreamSynchronize(g->lane[0].stream);
    g->cu->cuMemFree_v2(p);
}

enum rt_status gpu_pin(struct gpu *g, size_t bytes, void **p, struct rt_error *err)
{
    *p = NULL;
    if (!bytes) bytes = 64;
    unsigned code = g->cu->cuMemHostAlloc(p, bytes, 0);
    if (code == C_CUDA_ERROR_OUT_OF_MEMORY)
        return rt_fail(err, RT_machine,
                       "no memory of this machine for %zu bytes that the GPU reads", bytes);
    RT_TRY(cuda_check(CUDA_driver, code, "cuMemHostAlloc", err));
    memset(*p, 0, bytes);
    return RT_ok;
}

void gpu_unpin(struct gpu *g, void *p)
{
    if (p) g->cu->cuMemFreeHost(p);
}

enum rt_status gpu_put(struct gpu *g, cu_ptr to, const void *from, size_t bytes,
                       struct rt_error *err)
{
    if (bytes) TRY(cuMemcpyHtoDAsync_v2(to, from, bytes, g->lane[0].stream));
    return RT_ok;
}

enum rt_status gpu_get(struct gpu *g, void *to, cu_ptr from, size_t bytes, struct rt_error *err)
{
    if (bytes) TRY(cuMemcpyDtoHAsync_v2(to, from, bytes, g->lane[0].stream));
    return RT_ok;
}

enum rt_status gpu_copy(struct gpu *g, cu_ptr to, cu_ptr from, size_t bytes, struct rt_error *err)
{
    if (bytes) TRY(cuMemcpyDtoDAsync_v2(to, from, bytes, g->lane[0].stream));
    return RT_ok;
}

enum rt_status gpu_wait(struct gpu *g, struct rt_error *err)
{
    TRY(cuStreamSynchronize(g->lane[0].stream));
    return RT_ok;
}

/* ---- kernels ---- */

enum rt_status gpu_load(struct gpu *g, const void *image, struct CUmod_st **module,
                        struct rt_error *err)
{
    TRY(cuModuleLoadData(module, image));
    return RT_ok;
}

void gpu_unload(struct gpu *g, struct CUmod_st *module)
{
    g->cu->cuModuleUnload(module);
}

enum rt_status gpu_function(struct gpu *g, struct CUmod_st *module, const char *symbol,
                            struct CUfunc_st **fn, struct rt_error *err)
{
    TRY(cuModuleGetFunction(fn, module, symbol));
    return RT_ok;
}

enum { SHARED_ALWAYS = 48 << 10 }; /* bytes that a block has without asking, static ones too */
/* What precedes the values in cuLaunchKernelEx's `extra`. */
#define PARAMETERS ((void *)1)
#define PARAMETER_BYTES ((void *)2)

enum rt_status gpu_allow_shared(struct gpu *g, struct CUfunc_st *fn, const char *label,
                                uint32_t bytes, struct rt_error *err)
{
    const unsigned most = C_CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    int now = 0, own = 0, all = g->about.shared_bytes;
    if (!bytes) return RT_ok;
    TRY(cuFuncGetAttribute(&own, C_CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, fn));
    if ((int64_t)bytes + own > all)
        return rt_fail(err, RT_machine,
                       "step '%s' needs %lld bytes of shared memory a block; cuda:%d (%s) has %d",
                       label, (long long)bytes + own, g->about.ordinal, g->about.name, all);
    if ((int64_t)bytes + own <= SHARED_ALWAYS) return RT_ok;
    TRY(cuFuncGetAttribute(&now, most, fn));
    if (now < (int)bytes) now = (int)bytes;
    if (now > all - own) now = all - own;
    TRY(cuFuncSetAttribute(fn, most, now));
    return RT_ok;
}

enum rt_status gpu_launch(struct gpu *g, struct CUfunc_st *fn, const struct sa_launch *l,
                          const void *parameters, size_t bytes, struct rt_error *err)
{
    const struct cu_launch c = {.grid = {l->grid[0], l->grid[1], l->grid[2]},
                                .block = {l->threads, 1, 1},
                                .shared_bytes = l->shared,
                                .stream = g->lane[g->now].stream};
    union {
        const void *in;
        void *out;
    } p = {parameters}; /* the driver only reads them */
    void *extra[] = {PARAMETERS, p.out, PARAMETER_BYTES, &bytes, NULL};
    if (!l->grid[0]) return RT_ok;
    TRY(cuLaunchKernelEx(&c, fn, NULL, extra));
    return RT_ok;
}

/* ---- streams ---- */

static enum rt_status open_products(struct gpu *g, struct lane *x, struct rt_error *err)
{
    if (x->blas) return RT_ok;
    if (!x->workspace)
        RT_TRY(gpu_alloc(g, GPU_PRODUCT_WORKSPACE, "workspace of cuBLAS", &x->workspace, err));
    BLAS(cublasCreate_v2(&x->blas));
    BLAS(cublasSetStream_v2(x->blas, x->stream)); /* forgets the workspace, so that comes after */
    BLAS(cublasSetWorkspace_v2(x->blas, (void *)(uintptr_t)x->workspace, GPU_PRODUCT_WORKSPACE));
    /* float32 products without TF32; sums of bf16 products stay float32 to the end */
    BLAS(cublasSetMathMode(x->blas, C_CUBLAS_DEFAULT_MATH |
                                        C_CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
    return RT_ok;
}

enum rt_status gpu_open_products(struct gpu *g, struct rt_error *err)
{
    RT_TRY(cuda_load(CUDA_cublas, NULL, err));
    g->products = true;
    for (unsigned i = 0; i < g->lanes; i++) RT_TRY(open_products(g, &g->lane[i], err));
    return RT_ok;
}

enum rt_status gpu_open_streams(struct gpu *g, unsigned n, struct rt_error *err)
{
    CHECK(n && n <= SA_STREAMS);
    if (n > 1 && !g->fork) RT_TRY(gpu_event_open(g, false, &g->fork, err));
    while (g->lanes < n) {
        struct lane *x = &g->lane[g->lanes];
        if (!x->end) RT_TRY(gpu_event_open(g, false, &x->end, err));
        TRY(cuStreamCreate(&x->stream, C_CU_STREAM_NON_BLOCKING));
        g->lanes++;
        if (g->products) RT_TRY(open_products(g, x, err));
    }
    return RT_ok;
}

void gpu_select(struct gpu *g, unsigned stream)
{
    CHECK(stream < g->lanes);
    g->now = stream;
}

enum rt_status gpu_event_await(struct gpu *g, struct CUevent_st *e, struct rt_error *err)
{
    TRY(cuStreamWaitEvent(g->lane[g->now].stream, e, 0));
    return RT_ok;
}

enum rt_status gpu_fork(struct gpu *g, struct rt_error *err)
{
    gpu_select(g, 0);
    RT_TRY(gpu_event_record(g, g->fork, err));
    for (unsigned i = 1; i < g->lanes; i++) {
        gpu_select(g, i);
        RT_TRY(gpu_event_await(g, g->fork, err));
    }
    gpu_select(g, 0);
    return RT_ok;
}

enum rt_status gpu_join(struct gpu *g, struct rt_error *err)
{
    for (unsigned i = 1; i < g->lanes; i++) {
        gpu_select(g, i);
        RT_TRY(gpu_event_record(g, g->lane[i].end, err));
        gpu_select(g, 0);
        RT_TRY(gpu_event_await(g, g->lane[i].end, err));
    }
    gpu_select(g, 0);
    return RT_ok;
}

/* ---- products ---- */

static int number(int64_t n)
{
    CHECK(n >= 0 && n <= INT32_MAX);
    return (int)n;
}

/* Row-major C = op(A) op(B) is column-major C' = op(B)' op(A)': a row-major matrix read by columns
 * is its transpose, so B goes first and transposed means the same as here. */
enum rt_status gpu_product(struct gpu *g, const int64_t *n, const cu_ptr at[3],
                           struct rt_error *err)
{
    const float one = 1, beta = n[SA_P_accumulate] ? 1 : 0;
    unsigned in = n[SA_P_bf16_in] ? C_CUDA_R_16BF : C_CUDA_R_32F;
    unsigned out = n[SA_P_bf16_out] ? C_CUDA_R_16BF : C_CUDA_R_32F;
    unsigned op_a = n[SA_P_ta] ? C_CUBLAS_OP_T : C_CUBLAS_OP_N;
    unsigned op_b = n[SA_P_tb] ? C_CUBLAS_OP_T : C_CUBLAS_OP_N;
    const void *a = (const void *)(uintptr_t)at[0], *b = (const void *)(uintptr_t)at[1];
    void *c = (void *)(uintptr_t)at[2];
    int M = number(n[SA_P_M]), N = number(n[SA_P_N]), K = number(n[SA_P_K]);
    int lda = number(n[SA_P_lda]), ldb = number(n[SA_P_ldb]), ldc = number(n[SA_P_ldc]);
    int batch = number(n[SA_P_batch]);
    struct cublasContext *blas = g->lane[g->now].blas;
    CHECK(blas);
    if (!M || !N || !batch) return RT_ok;
    if (batch == 1)
        BLAS(cublasGemmEx(blas, op_b, op_a, N, M, K, &one, b, in, ldb, a, in, lda, &beta, c, out,
                          ldc, C_CUBLAS_COMPUTE_32F, C_CUBLAS_GEMM_DEFAULT));
    else
        BLAS(cublasGemmStridedBatchedEx(blas, op_b, op_a, N, M, K, &one, b, in, ldb,
                                        n[SA_P_stride_b], a, in, lda, n[SA_P_stride_a], &beta, c,
                                        out, ldc, n[SA_P_stride_c], batch, C_CUBLAS_COMPUTE_32F,
                                        C_CUBLAS_GEMM_DEFAULT));
    return RT_ok;
}

/* ---- events ---- */

enum rt_status gpu_event_open(struct gpu *g, bool timing, struct CUevent_st **e,
                              struct rt_error *err)
{
    TRY(cuEventCreate(e, timing ? 0 : C_CU_EVENT_DISABLE_TIMING));
    return RT_ok;
}

void gpu_event_close(struct gpu *g, struct CUevent_st *e)
{
    if (e) g->cu->cuEventDestroy_v2(e);
}

enum rt_status gpu_event_record(struct gpu *g, struct CUevent_st *e, struct rt_error *err)
{
    TRY(cuEventRecord(e, g->lane[g->now].stream));
    return RT_ok;
}

enum rt_status gpu_event_record_inside(struct gpu *g, struct CUevent_st *e, struct rt_error *err)
{
    TRY(cuEventRecordWithFlags(e, g->lane[g->now].stream, C_CU_EVENT_RECORD_EXTERNAL));
    return RT_ok;
}

enum rt_status gpu_event_wait(struct gpu *g, struct CUevent_st *e, struct rt_error *err)
{
    TRY(cuEventSynchronize(e));
    return RT_ok;
}

enum rt_status gpu_event_seconds(struct gpu *g, struct CUevent_st *from, struct CUevent_st *to,
                                 double *seconds, struct rt_error *err)
{
    float ms = 0;
    TRY(cuEventElapsedTime(&ms, from, to));
    *seconds = 1e-3 * (double)ms;
    return RT_ok;
}

/* ---- recordings ---- */

enum rt_status gpu_record_begin(struct gpu *g, struct rt_error *err)
{
    TRY(cuStreamBeginCapture_v2(g->lane[0].stream, C_CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    return RT_ok;
}

enum rt_status gpu_record_end(struct gpu *g, struct gpu_recording **out, struct rt_error *err)
{
    struct gpu_recording r = {0};
    *out = NULL;
    TRY(cuStreamEndCapture(g->lane[0].stream, &r.graph));
    unsigned code = g->cu->cuGraphInstantiateWithFlags(&r.exec, r.graph, 0);
    if (code) {
        g->cu->cuGraphDestroy(r.graph);
        return cuda_check(CUDA_driver, code, "cuGraphInstantiateWithFlags", err);
    }
    *out = malloc(sizeof **out);
    CHECK(*out);
    **out = r;
    return RT_ok;
}

enum rt_status gpu_replay(struct gpu *g, const struct gpu_recording *r, struct rt_error *err)
{
    TRY(cuGraphLaunch(r->exec, g->lane[0].stream));
    return RT_ok;
}

void gpu_recording_close(struct gpu *g, struct gpu_recording *r)
{
    if (!r) return;
    g->cu->cuGraphExecDestroy(r->exec);
    g->cu->cuGraphDestroy(r->graph);
    free(r);
}
