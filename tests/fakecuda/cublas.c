/* The fake cuBLAS: products in float32, each sum in the order of k, whatever the other sizes. */
#include "fake.h"
#include <stdio.h>
#include <stdlib.h>

enum { NOT_READY_STATUS = 1, INVALID = 7, EXECUTION = 13, UNSUPPORTED = 15 };

struct cublasContext {
    struct CUstream_st *stream;
    size_t workspace;
};

const char *cublasGetStatusString(unsigned code)
{
    switch (code) {
    case 0: return "CUBLAS_STATUS_SUCCESS";
    case NOT_READY_STATUS: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID: return "CUBLAS_STATUS_INVALID_VALUE";
    case EXECUTION: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case UNSUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_unknown";
    }
}

unsigned cublasGetProperty(unsigned property, int *value)
{
    *value = property == C_MAJOR_VERSION ? 13 : property == C_MINOR_VERSION ? 999 : 0;
    return property > C_PATCH_LEVEL ? INVALID : 0;
}

unsigned cublasCreate_v2(struct cublasContext **handle)
{
    LOCKED;
    *handle = calloc(1, sizeof **handle);
    return *handle && !fake_uncaptured() ? 0 : NOT_READY_STATUS;
}

unsigned cublasDestroy_v2(struct cublasContext *handle)
{
    free(handle);
    return 0;
}

/* Takes the workspace away, as NVIDIA's does. */
unsigned cublasSetStream_v2(struct cublasContext *handle, struct CUstream_st *stream)
{
    *handle = (struct cublasContext){.stream = stream};
    return 0;
}

unsigned cublasSetWorkspace_v2(struct cublasContext *handle, void *workspace, size_t bytes)
{
    LOCKED;
    if ((uintptr_t)workspace % 256 || !fake_on_device((uintptr_t)workspace, bytes)) return INVALID;
    handle->workspace = bytes;
    return 0;
}

unsigned cublasSetMathMode(struct cublasContext *handle, unsigned mode)
{
    return handle && mode < 1u << 9 ? 0 : INVALID;
}

struct product {
    bool ta, tb, narrow_in, narrow_out; /* narrow: bf16 */
    int m, n, k, lda, ldb, ldc, batch;
    long long stride_a, stride_b, stride_c;
    float alpha, beta;
    const void *a, *b;
    void *c;
};

static float get(const void *p, bool narrow, long long i)
{
    if (!narrow) return ((const float *)p)[i];
    uint32_t u = (uint32_t)((const uint16_t *)p)[i] << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static void put(void *p, bool narrow, long long i, float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (!narrow)
        ((float *)p)[i] = x;
    else
        ((uint16_t *)p)[i] = x != x ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* One of the batch: op(A) as float32 with its columns together, then a column of C at a time. */
static void multiply(const struct product *x, long long z, float *packed, float *sum)
{
    size_t m = (size_t)x->m;
    for (int k = 0; k < x->k; k++)
        for (int i = 0; i < x->m; i++) {
            long long at = x->ta ? (long long)i * x->lda + k : (long long)k * x->lda + i;
            packed[(size_t)k * m + (size_t)i] = get(x->a, x->narrow_in, z * x->stride_a + at);
        }
    for (int j = 0; j < x->n; j++) {
        memset(sum, 0, m * sizeof *sum);
        for (int k = 0; k < x->k; k++) {
            long long at = x->tb ? (long long)k * x->ldb + j : (long long)j * x->ldb + k;
            float b = get(x->b, x->narrow_in, z * x->stride_b + at);
            const float *restrict a = packed + (size_t)k * m;
            float *restrict s = sum;
            for (size_t i = 0; i < m; i++) s[i] += a[i] * b;
        }
        for (int i = 0; i < x->m; i++) {
            long long at = z * x->stride_c + (long long)j * x->ldc + i;
            float old = x->beta != 0 ? x->beta * get(x->c, x->narrow_out, at) : 0;
            put(x->c, x->narrow_out, at, x->alpha * sum[i] + old);
        }
    }
}

static unsigned run_product(void *data)
{
    const struct product *x = data;
    if (fake_null()) return 0;
    size_t m = (size_t)x->m, k = (size_t)x->k;
    float *packed = malloc((m * k + 1) * sizeof *packed), *sum = malloc((m + 1) * sizeof *sum);
    if (!packed || !sum) abort();
    for (int z = 0; z < x->batch; z++) multiply(x, z, packed, sum);
    free(packed), free(sum);
    return 0;
}

/* Whether a batch of matrices of that many rows and columns lies on the device. */
static bool matrix(const void *p, bool narrow, int rows, int columns, int ld, long long stride,
                   int batch)
{
    if (ld < (rows > 1 ? rows : 1)) return false;
    long long last = (long long)(columns - 1) * ld + rows + (batch - 1) * stride;
    size_t size = narrow ? 2 : 4;
    return (uintptr_t)p % size == 0 && fake_on_device((uintptr_t)p, (size_t)last * size);
}

static unsigned submit(struct cublasContext *h, struct product x, const unsigned types[3],
                       unsigned compute)
{
    bool known = compute == C_CUBLAS_COMPUTE_32F || compute == C_CUBLAS_COMPUTE_32F_PEDANTIC;
    for (int i = 0; i < 3; i++) known &= types[i] == C_CUDA_R_32F || types[i] == C_CUDA_R_16BF;
    if (!known || types[0] != types[1] || (types[0] == C_CUDA_R_32F && types[2] != C_CUDA_R_32F))
        return UNSUPPORTED;
    if (x.m < 0 || x.n < 0 || x.k < 0 || x.batch < 0) return INVALID;
    fake_log(h->stream, "product %d %d %d batch %d %s", x.m, x.n, x.k, x.batch,
             types[0] == C_CUDA_R_16BF ? "bf16" : "f32");
    if (!x.m || !x.n || !x.batch) return 0;
    x.narrow_in = types[0] == C_CUDA_R_16BF, x.narrow_out = types[2] == C_CUDA_R_16BF;
    bool right = matrix(x.c, x.narrow_out, x.m, x.n, x.ldc, x.stride_c, x.batch);
    if (x.k)
        right = right &&
                matrix(x.a, x.narrow_in, x.ta ? x.k : x.m, x.ta ? x.m : x.k, x.lda, x.stride_a,
                       x.batch) &&
                matrix(x.b, x.narrow_in, x.tb ? x.n : x.k, x.tb ? x.k : x.n, x.ldb, x.stride_b,
                       x.batch);
    if (!right) return INVALID;
    if (fake_capturing(h->stream) && !h->workspace) {
        fake_break(h->stream);
        fprintf(stderr, "strata fake device: a captured product needs a workspace\n");
        return EXECUTION;
    }
    return fake_submit(h->stream, run_product, &x, sizeof x) ? EXECUTION : 0;
}

unsigned cublasGemmStridedBatchedEx(struct cublasContext *h, unsigned trans_a, unsigned trans_b,
                                    int m, int n, int k, const void *alpha, const void *a,
                                    unsigned type_a, int ld_a, long long stride_a, const void *b,
                                    unsigned type_b, int ld_b, long long stride_b, const void *beta,
                                    void *c, unsigned type_c, int ld_c, long long stride_c,
                                    int batch, unsigned compute, int algo)
{
    LOCKED;
    (void)algo;
    if (trans_a > 1 || trans_b > 1) return INVALID;
    const struct product x = {.ta = trans_a,
                              .tb = trans_b,
                              .m = m,
                              .n = n,
                              .k = k,
                              .lda = ld_a,
                              .ldb = ld_b,
                              .ldc = ld_c,
                              .batch = batch,
                              .stride_a = stride_a,
                              .stride_b = stride_b,
                              .stride_c = stride_c,
                              .alpha = *(const float *)alpha,
                              .beta = *(const float *)beta,
                              .a = a,
                              .b = b,
                              .c = c};
    return submit(h, x, (const unsigned[]){type_a, type_b, type_c}, compute);
}

unsigned cublasGemmEx(struct cublasContext *h, unsigned trans_a, unsigned trans_b, int m, int n,
                      int k, const void *alpha, const void *a, unsigned type_a, int ld_a,
                      const void *b, unsigned type_b, int ld_b, const void *beta, void *c,
                      unsigned type_c, int ld_c, unsigned compute, int algo)
{
    return cublasGemmStridedBatchedEx(h, trans_a, trans_b, m, n, k, alpha, a, type_a, ld_a, 0, b,
                                      type_b, ld_b, 0, beta, c, type_c, ld_c, 0, 1, compute, algo);
}
