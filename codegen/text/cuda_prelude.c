/* Prelude of emitted CUDA C: no header, C++17 as NVRTC reads it. The same text runs on the CPU
 * under tests/cudacpu.h, which has CUDA's own names and stands in for PTX instructions.
 * Elementary functions are those of prelude.c, step by step: the same bits as on the CPU, whatever
 * --fmad says; what kernels add themselves needs --fmad=false for that. */
#ifdef __CUDACC_RTC__
#pragma nv_diag_suppress 177 /* not every kernel uses every function */
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define INLINE static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ALIGNED16(p) ((void)0)
/* Has the float x in a register from here on: compilers like to convert it again at every use. */
#define KEEP(x) asm volatile("" : "+f"(x))
/* `name` points to the launch's dynamic shared memory, aligned to 16 bytes. */
#define DYNAMIC_SHARED(type, name)                                                                 \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];                                \
    type *const name = (type *)dynamic_shared

/* A store of 16 or 8 bytes. NVRTC 13.0 cuts an assignment through a pointer into words where it knows
 * much about the address (base + row * constant + column), a quarter of a line each; this one stays
 * whole. Where the kind of memory is known, nothing remains of the question. */
template <class T> INLINE void st_whole(T *p, T v) {
    if (__isGlobal(p)) __stwb(p, v);
    else *p = v;
}

INLINE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
/* A place in shared memory to which constants are added for nothing, for cp_async16. */
typedef uint32_t shared_at;
INLINE shared_at at_shared(const void *p) { return shared_address(p); }

/* bf16 is the upper half of a float32: nearest, ties to even; every NaN becomes 0x7fff. */
INLINE uint32_t pack_bf16(float low, float high) {
    uint32_t u;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low));
    return u;
}
/* By way of the pair: ptxas makes F2FP of that, and of cvt.rn.bf16.f32 F2F, which has the rate of an
 * exponential. */
INLINE uint16_t f32_to_bf16(float x) { return (uint16_t)pack_bf16(x, 0.0f); }
/* 2^x and 1 / x as the hardware has them: within 2^-22 and 2^-23 of the value, in one instruction. What is
 * below 2^-126 is zero, 1 / 0 and 2^128 are infinity. */
INLINE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
INLINE float recip_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* The larger; the other one where one is NaN. One instruction, as max1 is not. */
INLINE float max_fast(float x, float y) {
    asm("max.f32 %0, %0, %1;" : "+f"(x) : "f"(y));
    return x;
}
/* tf32 keeps 10 bits of the fraction: nearest, ties away from zero. */
INLINE uint32_t f32_to_tf32(float x) {
    uint32_t u;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(x));
    return u;
}

/* Meets `threads` threads (a multiple of 32) at barrier id, 1..15; 0 is that of __syncthreads. */
INLINE void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* c += a b over one warp, in PTX's fragments (tables in tests/cudacpu.h): a 16x16 of bf16 by rows,
 * b 16x8 by columns, c 16x8 of float32. */
INLINE void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* The same for a 16x8 and b 8x8 of tf32. */
INLINE void mma_tf32(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* 8x8 matrices of 16-bit elements from shared memory: lane 8 i + j gives the address of row j of
 * matrix i, 16 bytes; r[i] is this lane's pair of matrix i, or of its transpose. */
INLINE void ldmatrix4(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)) : "memory");
}
INLINE void ldmatrix2(uint32_t r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
INLINE void ldmatrix4_trans(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)) : "memory");
}
INLINE void ldmatrix2_trans(uint32_t r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

/* Copies 4, 8 or 16 bytes, aligned so, from global to shared memory, later; zeros where !valid
 * (then src is not read). */
INLINE void cp_async4(void *dst, const void *src, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" 
                 ::"r"(shared_address(dst)), "l"(src), "r"(valid ? 4 : 0) : "memory");
}
INLINE void cp_async8(void *dst, const void *src, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" 
                 ::"r"(shared_address(dst)), "l"(src), "r"(valid ? 8 : 0) : "memory");
}
INLINE void cp_async16(shared_at dst, const void *src, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" 
                 ::"r"(dst), "l"(src), "r"(valid ? 16 : 0) : "memory");
}
INLINE void cp_async16(void *dst, const void *src, bool valid) {
    cp_async16(shared_address(dst), src, valid);
}
/* The same of 16 bytes that are there: without the size, which costs four more instructions. */
INLINE void cp_async16_all(void *dst, const void *src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 ::"r"(shared_address(dst)), "l"(src) : "memory");
}
/* Ends this thread's group of copies. */
INLINE void cp_async_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Waits until all but the last n of this thread's groups have come; n is a constant. */
#define cp_async_wait(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")
#else
#define UNROLL
template <class T> static inline void st_whole(T *p, T v) { *p = v; }
#define ALIGNED16(p) cudacpu_aligned(p, 16, __FILE__, __LINE__)
#define KEEP(x) ((void)0)
#define INLINE static inline __attribute__((always_inline, unused))
typedef char *shared_at;
#define at_shared(p) ((shared_at)(p))
#define DYNAMIC_SHARED(type, name) type *const name = (type *)cudacpu_dynamic
#define f32_to_bf16 cudacpu_bf16
#define f32_to_tf32 cudacpu_tf32
#define exp2_fast cudacpu_exp2_fast
#define recip_fast cudacpu_recip_fast
#define max_fast(x, y) __builtin_fmaxf(x, y)
#define named_sync(id, threads) cudacpu_barrier(id, threads, __FILE__, __LINE__)
#define mma_bf16(c, a, b) cudacpu_mma(c, a, b, true, __FILE__, __LINE__)
#define mma_tf32(c, a, b) cudacpu_mma(c, a, b, false, __FILE__, __LINE__)
#define ldmatrix4(r, row) cudacpu_ldmatrix(r, row, 4, false, __FILE__, __LINE__)
#define ldmatrix2(r, row) cudacpu_ldmatrix(r, row, 2, false, __FILE__, __LINE__)
#define ldmatrix4_trans(r, row) cudacpu_ldmatrix(r, row, 4, true, __FILE__, __LINE__)
#define ldmatrix2_trans(r, row) cudacpu_ldmatrix(r, row, 2, true, __FILE__, __LINE__)
#define cp_async4(dst, src, valid) cudacpu_cp_async(dst, src, 4, valid, __FILE__, __LINE__)
#define cp_async8(dst, src, valid) cudacpu_cp_async(dst, src, 8, valid, __FILE__, __LINE__)
#define cp_async16(dst, src, valid) cudacpu_cp_async(dst, src, 16, valid, __FILE__, __LINE__)
#define cp_async16_all(dst, src) cp_async16(dst, src, true)
#define cp_async_commit cudacpu_cp_commit
#define cp_async_wait cudacpu_cp_wait
INLINE uint32_t pack_bf16(float low, float high) {
    return f32_to_bf16(low) | (uint32_t)f32_to_bf16(high) << 16;
}
#endif

enum { WARP = 32 };
#define ALL_LANES 0xffffffffu
#define INFF __int_as_float(0x7f800000)

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

INLINE float bf16_to_f32(uint16_t h) { return __uint_as_float((uint32_t)h << 16); }
INLINE float round1(float x) {
    const float a = x < 0.0f ? -x : x, r = a < 8388608.0f ? (a + 8388608.0f) - 8388608.0f : a;
    return x < 0.0f ? -r : r;
}
INLINE float bf16_round1(float x) { return bf16_to_f32(f32_to_bf16(x)); }

/* 16 bytes at once, aligned to 16: four floats, eight bf16 values. */
INLINE void ld_f32x4(float x[4], const float *p) {
    ALIGNED16(p);
    float4 v = *(const float4 *)p;
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
INLINE void st_f32x4(float *p, const float x[4]) {
    ALIGNED16(p);
    st_whole((float4 *)p, make_float4(x[0], x[1], x[2], x[3]));
}
INLINE void ld_bf16x8(float x[8], const uint16_t *p) {
    ALIGNED16(p);
    uint4 v = *(const uint4 *)p;
    const uint32_t u[4] = {v.x, v.y, v.z, v.w};
    UNROLL for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(u[i] << 16);
        x[2 * i + 1] = __uint_as_float(u[i] & 0xffff0000u);
    }
}
INLINE void st_bf16x8(uint16_t *p, const float x[8]) {
    ALIGNED16(p);
    st_whole((uint4 *)p, make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]),
                                    pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])));
}

/* W elements (1, 2, 4 or 8) as float32, at an address that their size, up to 16 bytes, divides. */
template <int W> INLINE void ld_row(float *x, const float *p) {
    if constexpr (W == 8) ld_f32x4(x, p), ld_f32x4(x + 4, p + 4);
    if constexpr (W == 4) ld_f32x4(x, p);
    if constexpr (W == 2) {
        float2 v = *(const float2 *)p;
        x[0] = v.x, x[1] = v.y;
    }
    if constexpr (W == 1) x[0] = *p;
}
template <int W> INLINE void st_row(float *p, const float *x) {
    if constexpr (W == 8) st_f32x4(p, x), st_f32x4(p + 4, x + 4);
    if constexpr (W == 4) st_f32x4(p, x);
    if constexpr (W == 2) st_whole((float2 *)p, make_float2(x[0], x[1]));
    if constexpr (W == 1) *p = x[0];
}
template <int W> INLINE void ld_row(float *x, const uint16_t *p) {
    if constexpr (W == 8) ld_bf16x8(x, p);
    if constexpr (W == 4) {
        uint2 v = *(const uint2 *)p;
        x[0] = __uint_as_float(v.x << 16), x[1] = __uint_as_float(v.x & 0xffff0000u);
        x[2] = __uint_as_float(v.y << 16), x[3] = __uint_as_float(v.y & 0xffff0000u);
    }
    if constexpr (W == 2) {
        uint32_t v = *(const uint32_t *)p;
        x[0] = __uint_as_float(v << 16), x[1] = __uint_as_float(v & 0xffff0000u);
    }
    if constexpr (W == 1) x[0] = bf16_to_f32(*p);
}
template <int W> INLINE void st_row(uint16_t *p, const float *x) {
    if constexpr (W == 8) st_bf16x8(p, x);
    if constexpr (W == 4)
        st_whole((uint2 *)p, make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])));
    if constexpr (W == 2) *(uint32_t *)p = pack_bf16(x[0], x[1]);
    if constexpr (W == 1) *p = f32_to_bf16(x[0]);
}
/* N elements (1, 2, 4 or 8) of either type from an address that ALIGN divides. */
template <int N, int ALIGN, typename T> INLINE void load(float *x, const T *p) {
    constexpr int most = ALIGN / (int)sizeof(T), W = most < N ? most : N;
    UNROLL for (int i = 0; i < N; i += W) ld_row<W>(x + i, p + i);
}
template <int N, int ALIGN, typename T> INLINE void store(T *p, const float *x) {
    constexpr int most = ALIGN / (int)sizeof(T), W = most < N ? most : N;
    UNROLL for (int i = 0; i < N; i += W) st_row<W>(p + i, x + i);
}
/* The threads of a grid along rows of n units, one row after the other: this thread's row, and its
 * unit in there. n: a constant, for the divisions. */
INLINE int64_t thread_row(int n, int *unit) {
    int64_t first = (int64_t)blockIdx.x * blockDim.x;
    unsigned at = (unsigned)(first % n) + threadIdx.x;
    *unit = (int)(at % (unsigned)n);
    return first / n + at / (unsigned)n;
}

/* Rounded once each, and never contracted. */
INLINE float fma1(float a, float b, float c) { return __fmaf_rn(a, b, c); }
INLINE float mul1(float a, float b) { return __fmul_rn(a, b); }
INLINE float div1(float a, float b) { return __fdiv_rn(a, b); }
INLINE float sqrt1(float x) { return __fsqrt_rn(x); }
INLINE float rsqrt1(float x) { return div1(1.0f, sqrt1(x)); }
/* The second operand where either is NaN. */
INLINE float max1(float a, float b) { return a > b ? a : b; }
INLINE float min1(float a, float b) { return a < b ? a : b; }

/* e^r for |r| <= ln 2 / 2. */
INLINE float exp_poly1(float r) {
    float y = 1.9875691500e-4f;
    y = fma1(y, r, 1.3981999507e-3f);
    y = fma1(y, r, 8.3334519073e-3f);
    y = fma1(y, r, 4.1665795894e-2f);
    y = fma1(y, r, 1.6666665459e-1f);
    y = fma1(y, r, 5.0000001201e-1f);
    return fma1(y, mul1(r, r), r) + 1.0f;
}
/* e^x; exp(-inf) = 0, NaN stays NaN. */
INLINE float exp1(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float t = fma1(x, 1.44269504088896341f, magic);
    int n = (int)(__float_as_uint(t) - __float_as_uint(magic));
    float nf = t - magic;
    float r = fma1(nf, -0.693359375f, x);
    r = fma1(nf, 2.12194440e-4f, r);
    int h = n >> 1;
    float s0 = __uint_as_float((uint32_t)(h + 127) << 23);
    float s1 = __uint_as_float((uint32_t)(n - h + 127) << 23);
    return mul1(mul1(exp_poly1(r), s0), s1);
}
/* Natural logarithm: log(0) = -inf, negative arguments give NaN. */
INLINE float log1(float x) {
    bool tiny = x < 1.17549435e-38f;
    int bits = __float_as_int(tiny ? mul1(x, 8388608.0f) : x);
    int e = (bits >> 23) - 126 - (tiny ? 23 : 0);
    float m = __int_as_float((bits & 0x007fffff) | 0x3f000000); /* [0.5, 1) */
    bool low = m < 0.707106781186547524f;
    e -= low;
    m = m + (low ? m : 0.0f) - 1.0f;
    float f = (float)e;
    float y = 7.0376836292e-2f;
    y = fma1(y, m, -1.1514610310e-1f);
    y = fma1(y, m, 1.1676998740e-1f);
    y = fma1(y, m, -1.2420140846e-1f);
    y = fma1(y, m, 1.4249322787e-1f);
    y = fma1(y, m, -1.6668057665e-1f);
    y = fma1(y, m, 2.0000714765e-1f);
    y = fma1(y, m, -2.4999993993e-1f);
    y = fma1(y, m, 3.3333331174e-1f);
    float m2 = mul1(m, m);
    y = mul1(mul1(y, m), m2);
    y = fma1(f, -2.12194440e-4f, y);
    y = fma1(m2, -0.5f, y);
    y = fma1(f, 0.693359375f, m + y);
    y = x == INFF ? x : y;
    y = x == 0.0f ? -INFF : y;
    return x >= 0.0f ? y : __int_as_float(0x7fc00000);
}
INLINE float tanh1(float x) {
    float a = __uint_as_float(__float_as_uint(x) & 0x7fffffffu), z = mul1(x, x);
    float p = -5.70498872745e-3f;
    p = fma1(p, z, 2.06390887954e-2f);
    p = fma1(p, z, -5.37397155531e-2f);
    p = fma1(p, z, 1.33314422036e-1f);
    p = fma1(p, z, -3.33332819422e-1f);
    p = fma1(mul1(p, z), a, a);
    float q = 1.0f - div1(2.0f, exp1(a + a) + 1.0f);
    p = a < 0.625f ? p : q;
    return __uint_as_float(__float_as_uint(p) | (__float_as_uint(x) & 0x80000000u));
}
/* 1 / (1 + e^-x). */
INLINE float sigmoid1(float x) {
    x = x > 87.0f ? 87.0f : x;
    x = x < -89.0f ? -89.0f : x;
    const float magic = 12582912.0f;
    float t = fma1(x, -1.44269504088896341f, magic);
    float scale = __uint_as_float((__float_as_uint(t) << 23) + 0x3f800000u);
    float nf = t - magic;
    float r = fma1(nf, -0.693359375f, -x);
    r = fma1(nf, 2.12194440e-4f, r);
    return div1(1.0f, 1.0f + mul1(exp_poly1(r), scale));
}
/* log(1 + e^x). */
INLINE float softplus1(float x) {
    float e = exp1(-__uint_as_float(__float_as_uint(x) & 0x7fffffffu));
    float s = div1(e, 2.0f + e), z = mul1(s, s);
    float y = 1.0f / 15;
    y = fma1(y, z, 1.0f / 13);
    y = fma1(y, z, 1.0f / 11);
    y = fma1(y, z, 1.0f / 9);
    y = fma1(y, z, 1.0f / 7);
    y = fma1(y, z, 1.0f / 5);
    y = fma1(y, z, 1.0f / 3);
    s = s + s;
    y = max1(x, 0.0f) + fma1(mul1(s, z), y, s);
    return x > 20.0f ? x : y;
}

/* The same functions for results that are rounded to bf16 (IR attribute `coarse`): 21 bits of them in a
 * fifth of the instructions. Not the CPU's bits. */
INLINE float exp_coarse1(float x) { return exp2_fast(mul1(x, 1.44269504088896341f)); }
INLINE float sigmoid_coarse1(float x) { return recip_fast(1.0f + exp_coarse1(-x)); }
INLINE float tanh_coarse1(float x) {
    const float z = mul1(x, x), q = fma1(-2.0f, recip_fast(1.0f + exp_coarse1(x + x)), 1.0f);
    float p = fma1(-17.0f / 315, z, 2.0f / 15); /* near 0, where q has too few digits */
    p = fma1(p, z, -1.0f / 3);
    p = fma1(mul1(p, z), x, x);
    return z < 0.09f ? p : q;
}

/* Over a whole warp: lane i with i^16, then i^8, 4, 2, 1; every lane has the same bits. */
INLINE float warp_sum(float v) {
    UNROLL for (int d = WARP / 2; d; d /= 2) v += __shfl_xor_sync(ALL_LANES, v, d);
    return v;
}
INLINE double warp_sum(double v) {
    UNROLL for (int d = WARP / 2; d; d /= 2) v += __shfl_xor_sync(ALL_LANES, v, d);
    return v;
}
INLINE float warp_max(float v) {
    UNROLL for (int d = WARP / 2; d; d /= 2) v = max1(v, __shfl_xor_sync(ALL_LANES, v, d));
    return v;
}
/* Lane i gets the sum over lanes of v[i]: of 2 D values each lane gives D to the lane that wants them. */
template <int D = WARP / 2> INLINE float warp_spread(float v[2 * D]) {
    const bool upper = threadIdx.x & D;
    UNROLL for (int i = 0; i < D; i++) {
        const float other = upper ? v[i] : v[i + D], own = upper ? v[i + D] : v[i];
        v[i] = own + __shfl_xor_sync(ALL_LANES, other, D);
    }
    if constexpr (D > 1) return warp_spread<D / 2>(v);
    return v[0];
}
/* Sum of this lane's and all lower lanes' values. */
INLINE int warp_scan(int v) {
    UNROLL for (int d = 1; d < WARP; d *= 2) {
        int below = __shfl_up_sync(ALL_LANES, v, d);
        if ((int)(threadIdx.x % WARP) >= d) v += below;
    }
    return v;
}
/* The same over a block of whole warps along x; `part` is shared memory for a value of each warp,
 * and may be the one of the call before. Warps first, then their results as lanes of a warp. */
INLINE float block_sum(float v, float part[WARP]) {
    int lane = threadIdx.x % WARP;
    v = warp_sum(v);
    __syncthreads();
    if (lane == 0) part[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_sum(lane < (int)blockDim.x / WARP ? part[lane] : 0.0f);
}
INLINE double block_sum(double v, double part[WARP]) {
    int lane = threadIdx.x % WARP;
    v = warp_sum(v);
    __syncthreads();
    if (lane == 0) part[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_sum(lane < (int)blockDim.x / WARP ? part[lane] : 0.0);
}
INLINE float block_max(float v, float part[WARP]) {
    int lane = threadIdx.x % WARP;
    v = warp_max(v);
    __syncthreads();
    if (lane == 0) part[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_max(lane < (int)blockDim.x / WARP ? part[lane] : -INFF);
}
INLINE int block_scan(int v, int part[WARP]) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    v = warp_scan(v);
    __syncthreads();
    if (lane == WARP - 1) part[warp] = v;
    __syncthreads();
    int sums = warp_scan(lane < (int)blockDim.x / WARP ? part[lane] : 0);
    int before = __shfl_sync(ALL_LANES, sums, warp ? warp - 1 : 0);
    return warp ? v + before : v;
}

/* Philox4x32-10 and 64 bits of element i of a stream, as runtime/philox.h has them. */
INLINE void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    UNROLL for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}
INLINE uint64_t rng_bits(uint64_t seed, uint64_t stream, uint64_t i) {
    uint64_t j = i / 2;
    uint32_t counter[4] = {(uint32_t)j, (uint32_t)(j >> 32), (uint32_t)stream,
                           (uint32_t)(stream >> 32)};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, w[4];
    philox4x32(counter, key, w);
    return i & 1 ? w[2] | (uint64_t)w[3] << 32 : w[0] | (uint64_t)w[1] << 32;
}
/* Uniform in [0, 1), the upper 24 bits of those. */
INLINE float rng_uniform1(uint64_t seed, uint64_t stream, uint64_t i) {
    return (float)(uint32_t)(rng_bits(seed, stream, i) >> 40) * 0x1p-24f;
}
