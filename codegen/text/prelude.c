/* Prelude of emitted C: 16-lane float vectors and elementary functions with fixed rounding.
 * Results are the same bits on every x86-64 with FMA (AVX2 or AVX-512): always 16 lanes, a fixed
 * tree for sums, and fused multiply-add only where fma16 says so (build with -ffp-contract=off). */
#pragma clang diagnostic ignored "-Wpsabi" /* vectors are passed only to inlined functions */
typedef __INT64_TYPE__ int64_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __INT32_TYPE__ int32_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __UINT8_TYPE__ uint8_t;

/* Unaligned on purpose: rows of a tensor start anywhere. */
typedef float v16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t v16i __attribute__((vector_size(64), aligned(4)));
typedef uint32_t v16u __attribute__((vector_size(64), aligned(4)));
typedef float v4 __attribute__((vector_size(16), aligned(4)));
typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t v8i __attribute__((vector_size(32), aligned(4)));
typedef uint16_t v16h __attribute__((vector_size(32), aligned(2))); /* 16 bf16 values */

#define INLINE static inline __attribute__((always_inline, unused))
#define UNUSED __attribute__((unused))
#define INFF __builtin_inff()

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

INLINE v16 splat16(float x) {
    return (v16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}
INLINE v16i splat16i(int32_t x) {
    return (v16i){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}
INLINE v16i iota16(void) {
    return (v16i){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}
INLINE v16 ld16(const float *p) { return *(const v16 *)p; }
INLINE void st16(float *p, v16 v) { *(v16 *)p = v; }

/* Loads and stores of the first k lanes, 0 <= k <= 16; lanes that are not loaded are zero and
 * memory beyond lane k is never touched. */
#ifdef __AVX512F__
INLINE v16 ld16k(const float *p, int64_t k) {
    typedef float full __attribute__((vector_size(64)));
    full v = __builtin_ia32_loadups512_mask((const float *)p, (full){0}, (uint16_t)((1u << k) - 1u));
    return (v16)v;
}
INLINE void st16k(float *p, v16 v, int64_t k) {
    typedef float full __attribute__((vector_size(64)));
    __builtin_ia32_storeups512_mask((float *)p, (full)v, (uint16_t)((1u << k) - 1u));
}
INLINE v16 sqrt16(v16 x) {
    typedef float full __attribute__((vector_size(64)));
    return (v16)(full)__builtin_ia32_sqrtps512((full)x, 4);
}
#else
INLINE v16 ld16k(const float *p, int64_t k) {
    typedef float half __attribute__((vector_size(32)));
    typedef int32_t halfi __attribute__((vector_size(32)));
    halfi lane = {0, 1, 2, 3, 4, 5, 6, 7};
    halfi n = (halfi){0} + (int32_t)k;
    half a = __builtin_ia32_maskloadps256((const half *)p, lane < n);
    half b = __builtin_ia32_maskloadps256((const half *)(p + 8), lane + 8 < n);
    return (v16)__builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
INLINE void st16k(float *p, v16 v, int64_t k) {
    typedef float half __attribute__((vector_size(32)));
    typedef int32_t halfi __attribute__((vector_size(32)));
    halfi lane = {0, 1, 2, 3, 4, 5, 6, 7};
    halfi n = (halfi){0} + (int32_t)k;
    __builtin_ia32_maskstoreps256((half *)p, lane < n,
                                  (half)__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7));
    __builtin_ia32_maskstoreps256((half *)(p + 8), lane + 8 < n,
                                  (half)__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}
INLINE v16 sqrt16(v16 x) {
    typedef float half __attribute__((vector_size(32)));
    half a = __builtin_ia32_sqrtps256((half)__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7));
    half b = __builtin_ia32_sqrtps256((half)__builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
    return (v16)__builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
#endif

/* The same for k numbers that lie ld floats apart. */
INLINE v16 ldrows16(const float *p, int64_t ld, int64_t k) {
    float x[16] = {0};
    for (int64_t i = 0; i < k; i++) x[i] = p[i * ld];
    return ld16(x);
}
INLINE void strows16(float *p, int64_t ld, v16 v, int64_t k) {
    float x[16];
    st16(x, v);
    for (int64_t i = 0; i < k; i++) p[i * ld] = x[i];
}

/* a * b + c, rounded once. */
INLINE v16 fma16(v16 a, v16 b, v16 c) {
#pragma clang fp contract(on)
    return a * b + c;
}
/* m ? a : b per lane, m as comparisons give it (all ones or zero). */
INLINE v16 sel16(v16i m, v16 a, v16 b) { return (v16)((m & (v16i)a) | (~m & (v16i)b)); }
/* The second operand where either is NaN, as the x86 instructions do. */
INLINE v16 max16(v16 a, v16 b) { return sel16(a > b, a, b); }
INLINE v16 min16(v16 a, v16 b) { return sel16(a < b, a, b); }
INLINE v16 abs16(v16 x) { return (v16)((v16i)x & 0x7fffffff); }
INLINE v16 rsqrt16(v16 x) { return 1.0f / sqrt16(x); }

/* The nearest integer, ties to even: from 2^23 on there is nothing to round. */
INLINE v16 round16(v16 x) {
    const v16 magic = splat16(8388608.0f), a = abs16(x);
    const v16 r = sel16(a < magic, (a + magic) - magic, a);
    return sel16(x < 0.0f, -r, r);
}

#define LOWER8(v) __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)
#define UPPER8(v) __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)
/* Sum of the lanes: lane i with i+8, then i+4, i+2, i+1. */
INLINE float hsum16(v16 v) {
    typedef float f8 __attribute__((vector_size(32)));
    typedef float f4 __attribute__((vector_size(16)));
    f8 a = (f8)LOWER8(v) + (f8)UPPER8(v);
    f4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    b += __builtin_shufflevector(b, b, 2, 3, 2, 3);
    return b[0] + b[1];
}
/* Largest lane; a NaN may be lost. */
INLINE float hmax16(v16 v) {
    typedef float f8 __attribute__((vector_size(32)));
    typedef float f4 __attribute__((vector_size(16)));
    typedef int32_t i8 __attribute__((vector_size(32)));
    typedef int32_t i4 __attribute__((vector_size(16)));
    f8 a = (f8)LOWER8(v), b = (f8)UPPER8(v);
    i8 m8 = a > b;
    a = (f8)((m8 & (i8)a) | (~m8 & (i8)b));
    f4 c = __builtin_shufflevector(a, a, 0, 1, 2, 3), d = __builtin_shufflevector(a, a, 4, 5, 6, 7);
    i4 m4 = c > d;
    c = (f4)((m4 & (i4)c) | (~m4 & (i4)d));
    d = __builtin_shufflevector(c, c, 2, 3, 2, 3);
    m4 = c > d;
    c = (f4)((m4 & (i4)c) | (~m4 & (i4)d));
    return c[0] > c[1] ? c[0] : c[1];
}

/* e^r for |r| <= ln 2 / 2. */
INLINE v16 exp_poly16(v16 r) {
    v16 y = splat16(1.9875691500e-4f);
    y = fma16(y, r, splat16(1.3981999507e-3f));
    y = fma16(y, r, splat16(8.3334519073e-3f));
    y = fma16(y, r, splat16(4.1665795894e-2f));
    y = fma16(y, r, splat16(1.6666665459e-1f));
    y = fma16(y, r, splat16(5.0000001201e-1f));
    return fma16(y, r * r, r) + 1.0f;
}

/* e^x: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial in r (Cephes), then 2^n in two steps so
 * that subnormal results and overflow round as they should. exp(-inf) = 0, NaN stays NaN. */
INLINE v16 exp16(v16 x) {
    x = sel16(x > 89.0f, splat16(89.0f), x);
    x = sel16(x < -104.0f, splat16(-104.0f), x);
    const v16 magic = splat16(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    v16 t = fma16(x, splat16(1.44269504088896341f), magic);
    v16i n = (v16i)t - (v16i)magic;
    v16 nf = t - magic;
    v16 r = fma16(nf, splat16(-0.693359375f), x);
    r = fma16(nf, splat16(2.12194440e-4f), r);
    v16 y = exp_poly16(r);
    v16i h = n >> 1;
    v16 s0 = (v16)((h + 127) << 23), s1 = (v16)((n - h + 127) << 23);
    return y * s0 * s1;
}

/* Natural logarithm (Cephes): x = m 2^e with m in [sqrt(1/2), sqrt(2)). log(0) = -inf, negative
 * arguments give NaN, subnormal ones are scaled first. */
INLINE v16 log16(v16 x) {
    v16i tiny = x < 1.17549435e-38f;
    v16 z = sel16(tiny, x * 8388608.0f, x);
    v16i bits = (v16i)z;
    v16i e = (bits >> 23) - 126 - (tiny & 23);
    v16 m = (v16)((bits & 0x007fffff) | 0x3f000000); /* [0.5, 1) */
    v16i low = m < 0.707106781186547524f;
    e += low;
    m = m + (v16)(low & (v16i)m) - 1.0f;
    v16 f = __builtin_convertvector(e, v16);
    v16 y = splat16(7.0376836292e-2f);
    y = fma16(y, m, splat16(-1.1514610310e-1f));
    y = fma16(y, m, splat16(1.1676998740e-1f));
    y = fma16(y, m, splat16(-1.2420140846e-1f));
    y = fma16(y, m, splat16(1.4249322787e-1f));
    y = fma16(y, m, splat16(-1.6668057665e-1f));
    y = fma16(y, m, splat16(2.0000714765e-1f));
    y = fma16(y, m, splat16(-2.4999993993e-1f));
    y = fma16(y, m, splat16(3.3333331174e-1f));
    v16 m2 = m * m;
    y = y * m * m2;
    y = fma16(f, splat16(-2.12194440e-4f), y);
    y = fma16(m2, splat16(-0.5f), y);
    y = fma16(f, splat16(0.693359375f), m + y);
    y = sel16(x == INFF, x, y);
    y = sel16(x == 0.0f, splat16(-INFF), y);
    return sel16(x >= 0.0f, y, splat16(__builtin_nanf("")));
}

/* tanh: odd polynomial below 0.625 (Cephes), 1 - 2 / (e^2|x| + 1) above. */
INLINE v16 tanh16(v16 x) {
    v16 a = abs16(x), z = x * x;
    v16 p = splat16(-5.70498872745e-3f);
    p = fma16(p, z, splat16(2.06390887954e-2f));
    p = fma16(p, z, splat16(-5.37397155531e-2f));
    p = fma16(p, z, splat16(1.33314422036e-1f));
    p = fma16(p, z, splat16(-3.33332819422e-1f));
    p = fma16(p * z, a, a);
    v16 q = 1.0f - 2.0f / (exp16(a + a) + 1.0f);
    p = sel16(a < 0.625f, p, q);
    return (v16)((v16i)p | ((v16i)x & (int32_t)0x80000000));
}
/* 1 / (1 + e^-x). One scaling of e^-x does, unlike in exp16: below -88.4, where the result is under
 * 1e-38, it is infinite and the result 0; above 87 the result is 1. */
INLINE v16 sigmoid16(v16 x) {
    x = sel16(x > 87.0f, splat16(87.0f), x);
    x = sel16(x < -89.0f, splat16(-89.0f), x);
    const v16 magic = splat16(12582912.0f);
    v16 t = fma16(x, splat16(-1.44269504088896341f), magic);
    v16 scale = (v16)(((v16i)t << 23) + 0x3f800000); /* 2^n: magic's own bits are shifted out */
    v16 nf = t - magic;
    v16 r = fma16(nf, splat16(-0.693359375f), -x);
    r = fma16(nf, splat16(2.12194440e-4f), r);
    return 1.0f / (1.0f + exp_poly16(r) * scale);
}
/* log(1 + e^x) = max(x, 0) + log(1 + e) with e = e^-|x|: log(1 + e) = 2 artanh(s), s = e / (2 + e), a
 * series in s^2 <= 1/9. */
INLINE v16 softplus16(v16 x) {
    v16 e = exp16(-abs16(x)), s = e / (2.0f + e), z = s * s;
    v16 y = splat16(1.0f / 15);
    y = fma16(y, z, splat16(1.0f / 13));
    y = fma16(y, z, splat16(1.0f / 11));
    y = fma16(y, z, splat16(1.0f / 9));
    y = fma16(y, z, splat16(1.0f / 7));
    y = fma16(y, z, splat16(1.0f / 5));
    y = fma16(y, z, splat16(1.0f / 3));
    s = s + s;
    y = sel16(x > 0.0f, x, splat16(0.0f)) + fma16(s * z, y, s);
    return sel16(x > 20.0f, x, y);
}

/* One value, the same bits as a lane of the vector form. */
INLINE float exp1(float x) { return exp16(splat16(x))[0]; }
INLINE float log1(float x) { return log16(splat16(x))[0]; }
INLINE float tanh1(float x) { return tanh16(splat16(x))[0]; }
INLINE float sigmoid1(float x) { return sigmoid16(splat16(x))[0]; }
INLINE float sqrt1(float x) { return __builtin_sqrtf(x); }
INLINE float rsqrt1(float x) { return 1.0f / __builtin_sqrtf(x); }
INLINE float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

/* bf16: the upper half of a float32, rounded to nearest even; NaN stays NaN (made quiet). */
INLINE v16 bf16_to_f32(v16h h) { return (v16)(__builtin_convertvector(h, v16u) << 16); }
INLINE v16h f32_to_bf16(v16 x) {
    v16u u = (v16u)x;
    v16u r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    v16u nan = (v16u)(x != x);
    r = (nan & ((u >> 16) | 0x40u)) | (~nan & r);
    return __builtin_convertvector(r, v16h);
}
INLINE float bf16_round1(float x) { return bf16_to_f32(f32_to_bf16(splat16(x)))[0]; }
