/* Runs CUDA kernels on the CPU, for tests. The text of kernels (codegen/text/cuda_prelude.c and
 * what follows it) is compiled as C++17 with the lower half of this header in place of CUDA's
 * names: C++ because that is what NVRTC reads (overloaded intrinsics, templates); no C++ library is
 * used, so clang 14, clang 19 and gcc 12 with its C++ front end do. cudacpu.c is the machine: a
 * fiber per thread, one block after another. What it finds wrong becomes a report with the line:
 *   race                two threads touch a byte, one writes, no barrier (or __syncwarp) orders
 * them; also between blocks, unless both use __threadfence out of bounds       beyond dynamic
 * shared memory or an array of cudacpu_alloc misaligned          an access wider than its address
 * is aligned divergent barrier   threads at different __syncthreads, or some of them gone deadlock
 * named and warp barriers that can never fill, divergent warp operations cp.async            data
 * read or left before its wait Accesses are seen through the calls that -fsanitize=thread has
 * compilers insert, without its library. Not modelled: weak memory within a warp, bank conflicts,
 * wgmma, TMA, mbarrier. */
#ifndef STRATA_TESTS_CUDACPU_H
#define STRATA_TESTS_CUDACPU_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct dim3 {
    unsigned x, y, z;
};

#ifndef __cplusplus
/* The order in which blocks run, and threads between barriers; results must not depend on it. */
enum cudacpu_order { CUDACPU_forward, CUDACPU_reversed, CUDACPU_shuffled, CUDACPU_orders };
/* A loaded text of kernels. */
struct cudacpu;
/* Compiles prelude and `text` with `compiler` (a name in PATH) and loads them. `checked`: with the
 * report of memory accesses above; else quicker, and under AddressSanitizer where this program is.
 * Exits with the compiler's output when that fails. */
struct cudacpu *cudacpu_open(const char *compiler, const char *text, bool checked);
void cudacpu_close(struct cudacpu *c);
/* Global memory: NaNs, 256-byte aligned, with guards around it; freed by cudacpu_free. */
void *cudacpu_alloc(size_t bytes);
void cudacpu_free(void *p);
struct cudacpu_launch {
    struct dim3 grid, block;
    size_t shared; /* bytes of dynamic shared memory */
    enum cudacpu_order order;
    unsigned seed; /* of CUDACPU_shuffled */
};
/* Runs a kernel; args[i] points to the i-th argument, as for cuLaunchKernel. NULL, or the report of
 * what was wrong, valid until the next call; the launch ends there. */
const char *cudacpu_run(struct cudacpu *c, const char *kernel, struct cudacpu_launch launch,
                        void *const *args);
/* The same with the parameters as they lie in CUDA's parameter buffer: each aligned to its type,
 * one after the other, structs by value. */
const char *cudacpu_run_packed(struct cudacpu *c, const char *kernel, struct cudacpu_launch launch,
                               const void *parameters);
#endif

/* What kernels call. file, line: where they do. */
#ifdef __cplusplus
extern "C" {
#endif
extern struct dim3 threadIdx, blockIdx, blockDim, gridDim;
extern char *cudacpu_dynamic;
/* Meets `threads` threads, 0 for all of the block. */
void cudacpu_barrier(int id, int threads, const char *file, int line);
/* Lane exchange: the value of lane `from`, a lane of the mask; otherwise unspecified as in PTX. */
uint64_t cudacpu_shuffle(unsigned mask, uint64_t value, int from, const char *file, int line);
unsigned cudacpu_ballot(unsigned mask, bool p, const char *file, int line);
void cudacpu_syncwarp(unsigned mask, const char *file, int line);
/* The two halves of an atomic operation; no other thread runs between them. */
void cudacpu_atomic_load(void *to, const void *p, size_t n);
void cudacpu_atomic_store(void *p, const void *from, size_t n);
/* Fails where n does not divide the address: compilers cut vectors that kernels load into pieces.
 */
void cudacpu_aligned(const void *p, size_t n, const char *file, int line);
void cudacpu_fence(void);
int cudacpu_lane(void);
/* mma.sync m16n8k16 (bf16) and m16n8k8 (tf32), c += a b. With g = lane / 4, t = lane % 4:
 *            bf16: row, columns (two a register)    tf32: row, column
 *   a[0]     g,      2t, 2t+1                       g,     t
 *   a[1]     g + 8,  2t, 2t+1                       g + 8, t
 *   a[2]     g,      2t+8, 2t+9                     g,     t + 4
 *   a[3]     g + 8,  2t+8, 2t+9                     g + 8, t + 4
 *   b[0]     2t, 2t+1 (rows), column g              t,     g
 *   b[1]     2t+8, 2t+9 (rows), column g            t + 4, g
 *   c[0..1]  g,      2t, 2t+1                       the same
 *   c[2..3]  g + 8,  2t, 2t+1                       the same
 * Sums are made in double and rounded once; a GPU's order is its own. */
void cudacpu_mma(float c[4], const uint32_t *a, const uint32_t *b, bool bf16, const char *file,
                 int line);
/* n matrices: lanes 8i..8i+7 point to the rows of matrix i; r[i] takes row g, columns 2t, 2t+1 of
 * it, transposed: rows 2t, 2t+1 of column g. */
void cudacpu_ldmatrix(uint32_t *r, const void *row, int n, bool trans, const char *file, int line);
/* The copy is made at the wait; until then dst holds NaNs. */
void cudacpu_cp_async(void *dst, const void *src, size_t n, bool valid, const char *file, int line);
void cudacpu_cp_commit(void);
void cudacpu_cp_wait(int pending);
#ifdef __cplusplus
}

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
/* All static shared memory lies in one section, which the machine fills with NaNs for a block. */
#define __shared__ static __attribute__((section("cudashared")))

#define __syncthreads() cudacpu_barrier(0, 0, __FILE__, __LINE__)
#define __syncwarp(...) cudacpu_syncwarp(cudacpu_mask(__VA_ARGS__), __FILE__, __LINE__)
#define __threadfence() cudacpu_fence()
#define __threadfence_block() ((void)0)
#define __ballot_sync(mask, p) cudacpu_ballot(mask, (p) != 0, __FILE__, __LINE__)
#define __any_sync(mask, p) (__ballot_sync(mask, p) != 0)
#define __all_sync(mask, p) (__ballot_sync(mask, !(p)) == 0)
#define __shfl_sync(mask, v, ...) CUDACPU_SHUFFLE(mask, v, cudacpu_from_lane(__VA_ARGS__))
#define __shfl_xor_sync(mask, v, ...) CUDACPU_SHUFFLE(mask, v, cudacpu_from_xor(__VA_ARGS__))
#define __shfl_up_sync(mask, v, ...) CUDACPU_SHUFFLE(mask, v, cudacpu_from_up(__VA_ARGS__))
#define __shfl_down_sync(mask, v, ...) CUDACPU_SHUFFLE(mask, v, cudacpu_from_down(__VA_ARGS__))
#define CUDACPU_SHUFFLE(mask, v, from) cudacpu_shfl(mask, v, from, __FILE__, __LINE__)
#define CUDACPU_FN static inline __attribute__((always_inline, unused))

CUDACPU_FN unsigned cudacpu_mask(unsigned mask = 0xffffffffu)
{
    return mask;
}
/* The lane read, within groups of `width` lanes; one's own where that leaves the group. */
CUDACPU_FN int cudacpu_from_lane(int lane, int width = 32)
{
    return (cudacpu_lane() & -width) | (lane & (width - 1));
}
CUDACPU_FN int cudacpu_from_xor(int bits, int width = 32)
{
    int me = cudacpu_lane(), from = me ^ bits;
    return from < (me & -width) + width ? from : me;
}
CUDACPU_FN int cudacpu_from_up(unsigned by, int width = 32)
{
    int me = cudacpu_lane(), from = me - (int)by;
    return from >= (me & -width) ? from : me;
}
CUDACPU_FN int cudacpu_from_down(unsigned by, int width = 32)
{
    int me = cudacpu_lane(), from = me + (int)by;
    return from < (me & -width) + width ? from : me;
}
template <class T>
CUDACPU_FN T cudacpu_shfl(unsigned mask, T v, int from, const char *file, int line)
{
    static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    bits = cudacpu_shuffle(mask, bits, from, file, line);
    memcpy(&v, &bits, sizeof v);
    return v;
}

template <class T, class F> CUDACPU_FN T cudacpu_atomic(T *p, F change)
{
    T old, now;
    cudacpu_atomic_load(&old, p, sizeof old);
    now = change(old);
    cudacpu_atomic_store(p, &now, sizeof now);
    return old;
}
#define CUDACPU_ATOMIC(name, T, e)                               \
    CUDACPU_FN T name(T *p, T v)                                 \
    {                                                            \
        return cudacpu_atomic(p, [v](T old) -> T { return e; }); \
    }
#define CUDACPU_ATOMICS(T)                \
    CUDACPU_ATOMIC(atomicAdd, T, old + v) \
    CUDACPU_ATOMIC(atomicExch, T, (void(old), v))
#define CUDACPU_INT_ATOMICS(T)                                                             \
    CUDACPU_ATOMICS(T)                                                                     \
    CUDACPU_ATOMIC(atomicMax, T, old > v ? old : v)                                        \
    CUDACPU_ATOMIC(atomicMin, T, old < v ? old : v)                                        \
    CUDACPU_ATOMIC(atomicOr, T, old | v)                                                   \
    CUDACPU_ATOMIC(atomicAnd, T, old &v)                                                   \
    CUDACPU_FN T atomicCAS(T *p, T want, T v)                                              \
    {                                                                                      \
        return cudacpu_atomic(p, [want, v](T old) -> T { return old == want ? v : old; }); \
    }
CUDACPU_ATOMICS(float)
CUDACPU_INT_ATOMICS(int)
CUDACPU_INT_ATOMICS(unsigned)
CUDACPU_INT_ATOMICS(unsigned long long)
CUDACPU_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)

#define CUDACPU_VECTOR2(name, T)          \
    struct __align__(2 * sizeof(T)) name  \
    {                                     \
        T x, y;                           \
    };                                    \
    CUDACPU_FN name make_##name(T x, T y) \
    {                                     \
        return name{x, y};                \
    }
#define CUDACPU_VECTOR4(name, T)                    \
    struct __align__(4 * sizeof(T)) name            \
    {                                               \
        T x, y, z, w;                               \
    };                                              \
    CUDACPU_FN name make_##name(T x, T y, T z, T w) \
    {                                               \
        return name{x, y, z, w};                    \
    }
CUDACPU_VECTOR2(float2, float)
CUDACPU_VECTOR4(float4, float)
CUDACPU_VECTOR2(int2, int)
CUDACPU_VECTOR4(int4, int)
CUDACPU_VECTOR2(uint2, unsigned)
CUDACPU_VECTOR4(uint4, unsigned)

template <class T, class F> CUDACPU_FN T cudacpu_bits(F v)
{
    static_assert(sizeof(T) == sizeof(F), "a cast of bits keeps the size");
    T r;
    memcpy(&r, &v, sizeof r);
    return r;
}
#define __float_as_int(x) cudacpu_bits<int>((float)(x))
#define __float_as_uint(x) cudacpu_bits<unsigned>((float)(x))
#define __int_as_float(x) cudacpu_bits<float>((int)(x))
#define __uint_as_float(x) cudacpu_bits<float>((unsigned)(x))
#define __fmaf_rn(a, b, c) __builtin_fmaf(a, b, c)
#define __fmul_rn(a, b) ((float)(a) * (float)(b))
#define __fadd_rn(a, b) ((float)(a) + (float)(b))
#define __fdiv_rn(a, b) ((float)(a) / (float)(b))
#define __fsqrt_rn(x) __builtin_sqrtf(x)
#define __frsqrt_rn(x) ((float)(1 / __builtin_sqrt((double)(float)(x))))
#define __dsqrt_rn(x) __builtin_sqrt(x)
#define __popc(x) __builtin_popcount((unsigned)(x))
#define __ffs(x) __builtin_ffs((int)(x))
#define __ldg(p) (*(p))
CUDACPU_FN int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}

CUDACPU_FN uint16_t cudacpu_bf16(float x)
{
    uint32_t u = __float_as_uint(x);
    return x != x ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
/* As bad as PTX allows: the last bits are gone, and numbers below the normal ones. */
CUDACPU_FN float cudacpu_approximate(float y, uint32_t lost)
{
    y = __builtin_fabsf(y) < 0x1p-126f ? y * 0.0f : y;
    return y != y ? y : __uint_as_float(__float_as_uint(y) & ~lost);
}
CUDACPU_FN float cudacpu_exp2_fast(float x)
{
    return cudacpu_approximate(__builtin_exp2f(x), 1);
}
CUDACPU_FN float cudacpu_recip_fast(float x)
{
    return cudacpu_approximate(1.0f / (__builtin_fabsf(x) < 0x1p-126f ? x * 0.0f : x), 1);
}
CUDACPU_FN uint32_t cudacpu_tf32(float x)
{
    return (__float_as_uint(x) + 0x1000) & 0xffffe000u;
}

/* Calls a kernel with the arguments p[] points to: members of a braced list are made in order. */
struct cudacpu_call {
    template <class... A> cudacpu_call(void (*kernel)(A...), A... a)
    {
        kernel(a...);
    }
};
template <class T> CUDACPU_FN T cudacpu_next(void *const **p)
{
    return *(T *)*(*p)++;
}
template <class... A> static void cudacpu_unpack(void (*kernel)(A...), void *const *p)
{
    cudacpu_call{kernel, cudacpu_next<A>(&p)...};
    (void)p;
}
/* The same from a packed parameter buffer. */
template <class T> CUDACPU_FN T cudacpu_packed(const char **p)
{
    T v;
    uintptr_t at = ((uintptr_t)*p + alignof(T) - 1) / alignof(T) * alignof(T);
    memcpy(&v, (const void *)at, sizeof v);
    *p = (const char *)at + sizeof v;
    return v;
}
template <class... A> static void cudacpu_unpack_packed(void (*kernel)(A...), const char *p)
{
    cudacpu_call{kernel, cudacpu_packed<A>(&p)...};
    (void)p;
}
/* Bytes of that buffer. */
template <class... A> static size_t cudacpu_bytes(void (*)(A...))
{
    size_t at = 0;
    ((at = (at + alignof(A) - 1) / alignof(A) * alignof(A) + sizeof(A)), ...);
    return at;
}
/* One of these stands after the text for each of its kernels, with its launch bounds, and one
 * CUDACPU_END. */
#define CUDACPU_ENTRY(kernel, threads, ...)                          \
    extern "C" void kernel##_entry(void *const *p)                   \
    {                                                                \
        cudacpu_unpack(kernel, p);                                   \
    }                                                                \
    extern "C" void kernel##_packed(const char *p)                   \
    {                                                                \
        cudacpu_unpack_packed(kernel, p);                            \
    }                                                                \
    extern "C" void kernel##_bounds(size_t *bytes, unsigned *most)   \
    {                                                                \
        *bytes = cudacpu_bytes(kernel), *most = (unsigned)(threads); \
    }
#define CUDACPU_END                                                                   \
    extern "C" char __start_cudashared[] __attribute__((weak, visibility("hidden"))); \
    extern "C" char __stop_cudashared[] __attribute__((weak, visibility("hidden")));  \
    extern "C" void cudacpu_shared_range(char **begin, char **end)                    \
    {                                                                                 \
        *begin = __start_cudashared, *end = __stop_cudashared;                        \
    }
#endif
#endif
