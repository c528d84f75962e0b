/* Register tiles: the inner loops of every matrix product (needs prelude.c).
 *
 * A packed matrix B[K,N] is a sequence of 16-column panels, panel j = columns 16j..16j+15 stored as
 * [K][16], zero beyond column N. A tile is C[mr,16 nv] with mr <= 6 rows and nv <= TILE_NV panels.
 * Every element of C is one accumulator that takes k = 0, 1, 2, ... with fused multiply-adds, so
 * its bits depend on nothing but its own row and column: not on the tile, the blocks or the CPU. */
#define TILE_MR 6
#ifdef __AVX512F__
#define TILE_NV 4 /* 6 x 64: 24 accumulators + 4 of B + 1 of A in 32 registers */
#else
#define TILE_NV 1 /* 6 x 16: 12 + 2 + 1 of 16 (a v16 is two registers) */
#endif

struct tile {
    const float *a[TILE_MR]; /* a[m] + k * ks: element (m, k) of A */
    int64_t ks;
    const float *b; /* first panel */
    int64_t bp;     /* floats from one panel to the next */
    int64_t kn;     /* how many k */
    float *c;
    int64_t ldc;
    int64_t cols;          /* columns of C, 1 .. 16 TILE_NV */
    int64_t load;          /* start from C (else from zero) */
    const float *prefetch; /* one line is fetched into L2 every 4 k from here on; speed only */
};

/* acc + a b, or with PAIRS on two bf16 values per lane: acc + a0 b0 + a1 b1. */
#ifdef __AVX512BF16__
INLINE v16 tile_dot(v16 a, v16 b, v16 acc, int pairs) {
    typedef float full __attribute__((vector_size(64)));
#if __clang_major__ >= 16
    typedef __bf16 half __attribute__((vector_size(64)));
#else
    typedef int32_t half __attribute__((vector_size(64)));
#endif
    return pairs ? (v16)__builtin_ia32_dpbf16ps_512((full)acc, (half)a, (half)b) : fma16(a, b, acc);
}
#else
INLINE v16 tile_dot(v16 a, v16 b, v16 acc, int pairs) {
    if (!pairs) return fma16(a, b, acc);
    const v16u x = (v16u)a, y = (v16u)b;
    acc = fma16((v16)(x << 16), (v16)(y << 16), acc);
    return fma16((v16)(x & 0xffff0000u), (v16)(y & 0xffff0000u), acc);
}
#endif

INLINE void tile_k(v16 acc[TILE_MR][TILE_NV], int mr, int nv, int pairs, const float *const *a,
                   int64_t ak, const float *b, int64_t bp) {
    v16 bv[TILE_NV];
#pragma clang loop unroll(full)
    for (int j = 0; j < nv; j++) bv[j] = ld16(b + j * bp);
#pragma clang loop unroll(full)
    for (int m = 0; m < mr; m++) {
        v16 x = splat16(a[m][ak]);
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++) acc[m][j] = tile_dot(x, bv[j], acc[m][j], pairs);
    }
}

INLINE void tile_body(const struct tile *t, int mr, int nv, int pairs) {
    v16 acc[TILE_MR][TILE_NV];
    const float *a[TILE_MR];
    const float *b = t->b, *pf = t->prefetch;
    float *c = t->c;
    const int64_t ks = t->ks, bp = t->bp, kn = t->kn, ldc = t->ldc;
    const int64_t tail = t->cols - 16 * (nv - 1); /* columns in the last panel */
#pragma clang loop unroll(full)
    for (int m = 0; m < mr; m++) {
        a[m] = t->a[m];
        __builtin_prefetch(c + m * ldc, 1, 3);
        __builtin_prefetch(c + m * ldc + t->cols - 1, 1, 3);
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++) {
            acc[m][j] = splat16(0.0f);
            if (t->load)
                acc[m][j] = j < nv - 1 || tail == 16 ? ld16(c + m * ldc + 16 * j)
                                                     : ld16k(c + m * ldc + 16 * j, tail);
        }
    }
    int64_t k = 0, ak = 0;
    for (; k + 4 <= kn; k += 4) {
        __builtin_prefetch(pf, 0, 2);
        pf += 16;
#pragma clang loop unroll(full)
        for (int u = 0; u < 4; u++) {
            tile_k(acc, mr, nv, pairs, a, ak, b, bp);
            ak += ks;
            b += 16;
            /* One index for all rows and no loads ahead of their k: else pointers or vectors spill. */
            __asm__("" : "+r"(ak) : : "memory");
        }
    }
    for (; k < kn; k++) {
        tile_k(acc, mr, nv, pairs, a, ak, b, bp);
        ak += ks;
        b += 16;
    }
#pragma clang loop unroll(full)
    for (int m = 0; m < mr; m++)
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++) {
            if (j < nv - 1 || tail == 16)
                st16(c + m * ldc + 16 * j, acc[m][j]);
            else
                st16k(c + m * ldc + 16 * j, acc[m][j], tail);
        }
}

typedef void tile_fn(const struct tile *t);
typedef tile_fn *const tile_table[TILE_NV][TILE_MR];

/* All tiles of one kind, NAME_<rows>_<panels>, and their table NAME. */
#define TILE_ROWS(name, pairs, mr, nv)                                                             \
    UNUSED static __attribute__((noinline)) void name##_##mr##_##nv(const struct tile *t) {        \
        tile_body(t, mr, nv, pairs);                                                               \
    }
#define TILE_PANELS(name, pairs, nv)                                                               \
    TILE_ROWS(name, pairs, 1, nv) TILE_ROWS(name, pairs, 2, nv) TILE_ROWS(name, pairs, 3, nv)      \
    TILE_ROWS(name, pairs, 4, nv) TILE_ROWS(name, pairs, 5, nv) TILE_ROWS(name, pairs, 6, nv)
#define TILE_TABLE(name, nv)                                                                       \
    {name##_1_##nv, name##_2_##nv, name##_3_##nv, name##_4_##nv, name##_5_##nv, name##_6_##nv}
#if TILE_NV == 4
#define TILES(name, pairs)                                                                         \
    TILE_PANELS(name, pairs, 1) TILE_PANELS(name, pairs, 2) TILE_PANELS(name, pairs, 3)            \
    TILE_PANELS(name, pairs, 4)                                                                    \
    UNUSED static tile_table name = {TILE_TABLE(name, 1), TILE_TABLE(name, 2),                     \
                                     TILE_TABLE(name, 3), TILE_TABLE(name, 4)};
#else
#define TILES(name, pairs)                                                                         \
    TILE_PANELS(name, pairs, 1) UNUSED static tile_table name = {TILE_TABLE(name, 1)};
#endif
/* Those of float32 are what takes longest to compile of most units. Units that are loaded together share
 * them (runtime/jit.h); one that stands alone has its own. */
#ifdef JIT_UNIT
tile_fn *const (*jit_given)[TILE_MR];
#define tiles_f32 jit_given
#else
TILES(tile, 0)
UNUSED static tile_fn *const (*const tiles_f32)[TILE_MR] = tile;
#ifdef JIT_SHARED
extern tile_table jit_shared __attribute__((alias("tile")));
#endif
#endif

/* C[mr, cols] for up to 64 columns; t->cols holds the columns wanted. */
INLINE void tile_run_of(tile_fn *const (*table)[TILE_MR], const struct tile *t, int64_t mr) {
#if TILE_NV == 4
    table[(t->cols - 1) / 16][mr - 1](t);
#else
    struct tile u = *t;
    for (int64_t j = 0; j < t->cols; j += 16) {
        u.cols = min64(16, t->cols - j);
        u.c = t->c + j;
        u.b = t->b + j / 16 * t->bp;
        table[0][mr - 1](&u);
    }
#endif
}
INLINE void tile_run(const struct tile *t, int64_t mr) { tile_run_of(tiles_f32, t, mr); }

#define ZIP(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
/* r[i] lane j <-> r[j] lane i, in four rounds of pairwise shuffles. */
INLINE void transpose16(v16 r[16]) {
    v16 t[16];
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; i += 2) {
        t[i] = ZIP(r[i], r[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        t[i + 1] = ZIP(r[i], r[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; i += 4)
#pragma clang loop unroll(full)
        for (int h = 0; h < 2; h++) {
            v16 a = t[i + h], b = t[i + h + 2];
            r[i + 2 * h] = ZIP(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            r[i + 2 * h + 1] = ZIP(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
    /* r[4g + c] now holds, in its 128-bit lane l, column 4l + c of rows 4g .. 4g+3. */
#pragma clang loop unroll(full)
    for (int c = 0; c < 4; c++) {
        v16 a = r[c], b = r[c + 4], d = r[c + 8], e = r[c + 12];
        v16 p = ZIP(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        v16 q = ZIP(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        v16 s = ZIP(d, e, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        v16 u = ZIP(d, e, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        t[c] = ZIP(p, s, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        t[c + 4] = ZIP(q, u, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
        t[c + 8] = ZIP(p, s, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
        t[c + 12] = ZIP(q, u, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

/* One panel from rows: dst[k][c] = src[c * ld + k], c < rows <= 16 (zero above), k < kn. */
UNUSED static void panel_from_rows(float *dst, const float *src, int64_t ld, int64_t rows, int64_t kn) {
    for (int64_t k = 0; k < kn; k += 16) {
        v16 r[16];
        int64_t w = min64(16, kn - k);
        if (w == 16 && rows == 16) {
#pragma clang loop unroll(full)
            for (int c = 0; c < 16; c++) r[c] = ld16(src + c * ld + k);
        } else {
#pragma clang loop unroll(full)
            for (int c = 0; c < 16; c++)
                r[c] = c < rows ? ld16k(src + c * ld + k, w) : splat16(0.0f);
        }
        transpose16(r);
#pragma clang loop unroll(full)
        for (int c = 0; c < 16; c++)
            if (c < w) st16(dst + (k + c) * 16, r[c]);
    }
}

/* Panels from columns: panel j, dst[j * bp + k * 16 + c] = src[k * ld + 16 j + c], zero from
 * column `cols` on. */
UNUSED static void panels_from_cols(float *dst, int64_t bp, const float *src, int64_t ld, int64_t cols,
                                    int64_t kn) {
    const int64_t full = cols / 16, tail = cols % 16;
    for (int64_t k = 0; k < kn; k++) {
        const float *s = src + k * ld;
        float *d = dst + k * 16;
        for (int64_t j = 0; j < full; j++) st16(d + j * bp, ld16(s + 16 * j));
        if (tail) st16(d + full * bp, ld16k(s + 16 * full, tail));
    }
}
