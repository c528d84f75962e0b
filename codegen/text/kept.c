/* Products by weights that lie in panels for good (ir/panel.h; needs gemm.c, gemm_bf16.c): C = A W^T.
 * Panels of float32, and of bf16 under bf16 arithmetic, are what gemm.c packs, and are used in place.
 * Others are widened on the way: for few rows in registers, so that memory gives one or two bytes a
 * weight, for more into panels of the thread's own. An element adds its products in the order of k in
 * every case (i8: x times integers, the scale meets the sum), so a row has the same bits alone and
 * among any others. */
enum {
    KEPT_FLOATS, /* in place: float32 */
    KEPT_PAIRS,  /* in place: words of two bf16, bf16 arithmetic */
    KEPT_HALVES, /* words of two bf16, float32 arithmetic */
    KEPT_BYTES,  /* i8, float32 arithmetic */
    KEPT_BYTES2  /* i8, bf16 arithmetic: words of two are made of two bytes */
};
enum { KEPT_AHEAD = 256 }; /* bytes of a panel that are fetched before they are used */
enum { KEPT_MC = 192 };    /* rows of a block where weights are widened */
enum { KEPT_FEW = 24 };    /* rows for which panels in place are fetched from memory like a stream */

/* W of one product. */
struct kept {
    const char *w;      /* panels */
    const float *scale; /* of rows of W; NULL: none */
    int64_t panel;      /* bytes from panel to panel */
};

INLINE v16 kept_bytes(const char *p) {
    typedef signed char v16b __attribute__((vector_size(16), aligned(1)));
    return __builtin_convertvector(*(const v16b *)p, v16);
}
INLINE v16 kept_low(v16u x) { return (v16)(x << 16); }
INLINE v16 kept_high(v16u x) { return (v16)(x & 0xffff0000u); }
/* Two bf16 numbers a lane of two float32 that are such numbers. */
INLINE v16 kept_pair(v16 low, v16 high) { return (v16)(((v16u)low >> 16) | ((v16u)high & 0xffff0000u)); }
INLINE v16u kept_words(const char *p) { return *(const v16u *)p; }

#ifdef __AVX512VBMI__
/* Four k of a panel of bytes as two vectors of words of two, by tables of the bf16 numbers 0 .. 127:
 * the same words as kept_pair makes, in fewer steps. */
typedef char kept64 __attribute__((vector_size(64), aligned(1)));
struct kept_tables {
    kept64 low[2], high[2], place[2];
};
INLINE struct kept_tables kept_tables_of(void) {
    struct kept_tables t;
    for (int i = 0; i < 128; i++) {
        const float x = (float)i;
        uint32_t u;
        __builtin_memcpy(&u, &x, 4);
        t.low[i / 64][i % 64] = (char)(u >> 16), t.high[i / 64][i % 64] = (char)(u >> 24);
    }
    for (int v = 0; v < 2; v++)
        for (int i = 0; i < 64; i++) /* lane i / 4: low and high byte of k, then of k + 1 */
            t.place[v][i] = (char)((i % 2) * 64 + 32 * v + i / 2 % 2 * 16 + i / 4);
    return t;
}
INLINE kept64 kept_pick(kept64 a, kept64 index, kept64 b) {
    typedef char full __attribute__((vector_size(64)));
    return (kept64)(full)__builtin_ia32_vpermi2varqi512((full)a, (full)index, (full)b);
}
INLINE void kept_four(v16 out[2], const char *p, const struct kept_tables *t) {
    typedef signed char s64 __attribute__((vector_size(64)));
    const kept64 x = *(const kept64 *)p, size = (kept64)__builtin_elementwise_abs((s64)x);
    const kept64 low = kept_pick(t->low[0], size, t->low[1]);
    const kept64 high = kept_pick(t->high[0], size, t->high[1]) | (x & (char)0x80);
    out[0] = (v16)kept_pick(low, t->place[0], high);
    out[1] = (v16)kept_pick(low, t->place[1], high);
}
#endif

struct kept_tile {
    const float *a[TILE_MR]; /* of words of the arithmetic, from k0 on */
    const char *b;           /* first panel, from k0 on */
    const char *turn;        /* the end of the first panel, or beyond what is fetched */
    int64_t panel, kn;       /* kn: words of the arithmetic */
    int64_t odd;             /* KEPT_BYTES2: the last word has one byte */
    float *c;
    int64_t ldc, cols, load;
};

/* One word of k of the arithmetic (KEPT_HALVES: two, of which `half` leaves out the second). */
INLINE void kept_step(v16 acc[TILE_MR][TILE_NV], const int mr, const int nv, const int form, const float *const *a,
                      int64_t ak, const char *b, int64_t panel, int half) {
    v16 low[TILE_NV], high[TILE_NV];
#pragma clang loop unroll(full)
    for (int j = 0; j < nv; j++) {
        const char *p = b + j * panel;
        if (form <= KEPT_PAIRS) {
            low[j] = (v16)kept_words(p);
        } else if (form == KEPT_HALVES) {
            low[j] = kept_low(kept_words(p));
        } else if (form == KEPT_BYTES) {
            low[j] = kept_bytes(p);
        } else {
            low[j] = kept_pair(kept_bytes(p), half ? splat16(0.0f) : kept_bytes(p + 16));
        }
    }
#pragma clang loop unroll(full)
    for (int m = 0; m < mr; m++) {
        v16 x = splat16(a[m][ak]);
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++) acc[m][j] = tile_dot(x, low[j], acc[m][j], form == KEPT_PAIRS || form == KEPT_BYTES2);
    }
    if (form != KEPT_HALVES || half) return;
#pragma clang loop unroll(full)
    for (int j = 0; j < nv; j++) high[j] = kept_high(kept_words(b + j * panel));
#pragma clang loop unroll(full)
    for (int m = 0; m < mr; m++) {
        v16 x = splat16(a[m][ak + 1]);
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++) acc[m][j] = fma16(x, high[j], acc[m][j]);
    }
}

INLINE void kept_tile_body(const struct kept_tile *t, const int mr, const int nv, const int form) {
    v16 acc[TILE_MR][TILE_NV];
    const float *a[TILE_MR];
    /* words of A in a step, bytes of a panel in it, steps in 64 bytes */
    const int64_t per = form == KEPT_HALVES ? 2 : 1;
    const int64_t width = form <= KEPT_HALVES ? 64 : form == KEPT_BYTES ? 16 : 32;
    const int steps = form <= KEPT_HALVES ? 1 : form == KEPT_BYTES ? 4 : 2;
    const int64_t panel = t->panel, whole = (t->kn - (form == KEPT_BYTES2 && t->odd)) / per;
    const int64_t tail = t->cols - 16 * (nv - 1), ldc = t->ldc;
    const char *b = t->b;
    float *c = t->c;
#pragma clang loop unroll(full)
    for (int m = 0; m < mr; m++) {
        a[m] = t->a[m];
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++)
            acc[m][j] = t->load ? ld16k(c + m * ldc + 16 * j, j < nv - 1 ? 16 : tail) : splat16(0.0f);
    }
#ifdef __AVX512VBMI__
    struct kept_tables tables;
    if (form == KEPT_BYTES2 && mr <= 2) tables = kept_tables_of();
#endif
    int64_t k = 0, ak = 0, ahead = KEPT_AHEAD;
    for (; k + steps <= whole; k += steps) {
        /* behind the end of these panels come, in fours, the next */
        if (b + ahead == t->turn) ahead += (nv - 1) * panel;
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++) __builtin_prefetch(b + j * panel + ahead, 0, 3);
#ifdef __AVX512VBMI__
        if (form == KEPT_BYTES2 && mr <= 2) {
            v16 w[TILE_NV][2];
#pragma clang loop unroll(full)
            for (int j = 0; j < nv; j++) kept_four(w[j], b + j * panel, &tables);
#pragma clang loop unroll(full)
            for (int u = 0; u < 2; u++)
#pragma clang loop unroll(full)
                for (int m = 0; m < mr; m++)
#pragma clang loop unroll(full)
                    for (int j = 0; j < nv; j++) acc[m][j] = tile_dot(splat16(a[m][ak + u]), w[j][u], acc[m][j], 1);
            ak += 2, b += 64;
            continue;
        }
#endif
#pragma clang loop unroll(full)
        for (int u = 0; u < steps; u++) {
            kept_step(acc, mr, nv, form, a, ak, b, panel, 0);
            ak += per;
            b += width;
            __asm__("" : "+r"(ak) : : "memory"); /* as in tile_body */
        }
    }
    for (; k < whole; k++, ak += per, b += width) kept_step(acc, mr, nv, form, a, ak, b, panel, 0);
    if (ak < t->kn) kept_step(acc, mr, nv, form, a, ak, b, panel, 1);
#pragma clang loop unroll(full)
    for (int m = 0; m < mr; m++)
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++) st16k(c + m * ldc + 16 * j, acc[m][j], j < nv - 1 ? 16 : tail);
}

typedef void kept_tile_fn(const struct kept_tile *t);
#define KEPT_ROWS(name, form, mr, nv)                                                              \
    UNUSED static __attribute__((noinline)) void name##_##mr##_##nv(const struct kept_tile *t) {   \
        kept_tile_body(t, mr, nv, form);                                                           \
    }
#define KEPT_NV(name, form, nv)                                                                    \
    KEPT_ROWS(name, form, 1, nv) KEPT_ROWS(name, form, 2, nv) KEPT_ROWS(name, form, 3, nv)         \
    KEPT_ROWS(name, form, 4, nv) KEPT_ROWS(name, form, 5, nv) KEPT_ROWS(name, form, 6, nv)
#if TILE_NV == 4
#define KEPT_TILES(name, form)                                                                     \
    KEPT_NV(name, form, 1) KEPT_NV(name, form, 2) KEPT_NV(name, form, 3) KEPT_NV(name, form, 4)    \
    UNUSED static kept_tile_fn *const name[TILE_NV][TILE_MR] = {TILE_TABLE(name, 1), TILE_TABLE(name, 2), \
                                                                TILE_TABLE(name, 3), TILE_TABLE(name, 4)};
#else
#define KEPT_TILES(name, form)                                                                     \
    KEPT_NV(name, form, 1)                                                                         \
    UNUSED static kept_tile_fn *const name[TILE_NV][TILE_MR] = {TILE_TABLE(name, 1)};
#endif
/* How a storage is used under an arithmetic. */
struct kept_kind {
    const struct gemm_kind *gemm; /* the arithmetic */
    int form;
    kept_tile_fn *const (*tiles)[TILE_MR];
    int64_t bytes; /* of a panel for each word of the arithmetic */
};
/* kn words of the arithmetic of one panel; `odd`: the last one has one number. */
INLINE void kept_widen(float *dst, const char *b, int64_t kn, int64_t odd, const int form) {
    if (form == KEPT_HALVES) {
        int64_t k = 0;
        for (; k + 2 <= kn; k += 2, b += 64) {
            st16(dst + k * 16, kept_low(kept_words(b)));
            st16(dst + k * 16 + 16, kept_high(kept_words(b)));
        }
        if (k < kn) st16(dst + k * 16, kept_low(kept_words(b)));
    } else if (form == KEPT_BYTES) {
        for (int64_t k = 0; k < kn; k++, b += 16) st16(dst + k * 16, kept_bytes(b));
    } else {
        const int64_t whole = kn - odd;
        for (int64_t k = 0; k < whole; k++, b += 32)
            st16(dst + k * 16, kept_pair(kept_bytes(b), kept_bytes(b + 16)));
        if (odd) st16(dst + whole * 16, kept_pair(kept_bytes(b), splat16(0.0f)));
    }
}
static void kept_widen_of(int form, float *dst, const char *b, int64_t kn, int64_t odd) {
    switch (form) {
    case KEPT_HALVES: kept_widen(dst, b, kn, odd, KEPT_HALVES); break;
    case KEPT_BYTES: kept_widen(dst, b, kn, odd, KEPT_BYTES); break;
    default: kept_widen(dst, b, kn, odd, KEPT_BYTES2);
    }
}

/* A range of k of few rows, by panels in place or widened in registers; pa: packed words of the rows
 * or NULL. The first rows read the panels from memory, the others find them in a cache. */
static void kept_few(const struct gemm *g, const struct kept_kind *kind, const struct kept *w, int64_t m0,
                     int64_t m1, int64_t n0, int64_t n1, int64_t k0, int64_t kn, const float *pa) {
    struct kept_tile t = {.panel = w->panel, .kn = kn, .ldc = g->ldc, .load = k0 > 0};
    t.odd = 2 * (k0 + kn) > g->depth;
    for (int64_t n = n0; n < n1; n += 16 * TILE_NV) {
        t.cols = min64(16 * TILE_NV, n1 - n);
        t.b = w->w + n / 16 * w->panel + k0 * kind->bytes;
        t.turn = k0 ? 0 : t.b + w->panel;
        for (int64_t m = m0; m < m1; m += TILE_MR) {
            const int64_t mr = min64(TILE_MR, m1 - m);
            for (int64_t i = 0; i < mr; i++) t.a[i] = pa ? pa + (m - m0 + i) * kn : gemm_row(g, m + i) + k0;
            t.c = g->c + m * g->ldc + n;
            kind->tiles[(t.cols - 1) / 16][mr - 1](&t);
        }
    }
}

/* The same of any rows by way of panels of our own, 64 columns at a time. */
static void kept_many(const struct gemm *g, const struct kept_kind *kind, const struct kept *w, int64_t m0,
                      int64_t m1, int64_t n0, int64_t n1, int64_t k0, int64_t kn, const float *pa, float *own) {
    struct gemm h = *g;
    h.a += k0, h.b = h.after = own, h.bp = kn * 16, h.k = kn;
    h.flags |= k0 > 0 ? GEMM_ADD : 0;
    for (int64_t n = n0; n < n1; n += 64) {
        const int64_t cols = min64(64, n1 - n);
        for (int64_t j = 0; j < cols; j += 16)
            kept_widen_of(kind->form, own + j / 16 * h.bp, w->w + (n + j) / 16 * w->panel + k0 * kind->bytes, kn,
                          2 * (k0 + kn) > g->depth);
        h.c = g->c + n;
        gemm_slab(&h, m0, m1, 0, cols, 0, kn, pa);
    }
}

static void kept_scale(const struct gemm *g, const float *scale, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    for (int64_t m = m0; m < m1; m++)
        for (int64_t n = n0; n < n1; n += 16) {
            const int64_t cols = min64(16, n1 - n);
            float *c = g->c + m * g->ldc + n;
            st16k(c, ld16k(c, cols) * ld16k(scale + n, cols), cols);
        }
}

/* Rows m0 .. m1 - 1 and columns n0 .. n1 - 1 of C. */
static void kept_block(struct gemm *g, const struct kept_kind *kind, const struct kept *w, int64_t m0, int64_t m1,
                       int64_t n0, int64_t n1, float *scratch) {
    const int inplace = kind->form <= KEPT_PAIRS;
    if (inplace && m1 - m0 > KEPT_FEW) {
        g->b = (const float *)w->w;
        g->after = g->b + n1 / 16 * g->bp;
        gemm_block(g, m0, m1, n0, n1, scratch);
        return;
    }
    /* equal parts, even ones: words of two are not cut */
    const int64_t part = div_up(g->k, 2 * div_up(g->k, GEMM_KC)) * 2;
    /* what is widened serves as many rows as the block of A has room for */
    const int64_t most = max64(GEMM_MC, min64(KEPT_MC, GEMM_MC * GEMM_KC / part) / TILE_MR * TILE_MR);
    gemm_pack *pack = g->kind->pack_a;
    for (int64_t mc = m0; mc < m1; mc += most) {
        const int64_t me = min64(mc + most, m1);
        for (int64_t k0 = 0; k0 < g->k; k0 += part) {
            const int64_t kn = min64(part, g->k - k0);
            const float *pa = pack ? scratch : 0;
            if (pack) pack(g, scratch, mc, me - mc, k0, kn);
            if (me - mc <= TILE_MR || inplace)
                kept_few(g, kind, w, mc, me, n0, n1, k0, kn, pa);
            else
                kept_many(g, kind, w, mc, me, n0, n1, k0, kn, pa, scratch + GEMM_MC * GEMM_KC);
        }
    }
    if (w->scale) kept_scale(g, w->scale, m0, m1, n0, n1);
}

INLINE struct gemm kept_gemm(const struct kept_kind *kind, int64_t depth, int64_t lda, int64_t ldc) {
    const int64_t k = div_up(depth, kind->gemm->per);
    return (struct gemm){.kind = kind->gemm, .lda = lda, .ldc = ldc, .bp = k * 16, .k = k, .depth = depth};
}
INLINE struct kept kept_of(const struct kept_kind *kind, const void *w, const float *scale, int64_t part,
                           int64_t N, int64_t depth) {
    const int64_t panels = div_up(N, 16);
    struct kept x = {.panel = kind->form == KEPT_HALVES  ? div_up(depth, 2) * 64
                              : kind->form <= KEPT_PAIRS ? div_up(depth, kind->gemm->per) * 64
                                                          : depth * 16};
    x.w = (const char *)w + part * panels * x.panel;
    x.scale = scale ? scale + part * panels * 16 : 0;
    return x;
}

INLINE void kept_plain(const struct kept_kind *kind, void *const *p, const int64_t *n, int64_t lo, int64_t hi,
                       void *scratch, const float *scale) {
    const int64_t M = n[0], N = n[1], MB = n[5], NB = n[6], nb = div_up(N, NB);
    struct gemm g = kept_gemm(kind, n[2], n[3], n[4]);
    const struct kept w = kept_of(kind, p[2], scale, 0, N, n[2]);
    g.a = p[1], g.c = p[0];
    for (int64_t it = lo; it < hi; it++) {
        const int64_t m0 = it / nb * MB, n0 = it % nb * NB;
        kept_block(&g, kind, &w, m0, min64(m0 + MB, M), n0, min64(n0 + NB, N), scratch);
    }
}

INLINE void kept_grouped(const struct kept_kind *kind, void *const *p, const int64_t *n, int64_t lo, int64_t hi,
                         void *scratch, const float *scale) {
    const int64_t N = n[0], lda = n[2], NB = n[4], nb = div_up(N, NB);
    const int32_t *off = p[3];
    struct gemm g = kept_gemm(kind, n[1], lda, n[3]);
    for (int64_t it = lo; it < hi; it++) {
        const int64_t e = it / nb, n0 = it % nb * NB, rows = off[e + 1] - off[e];
        if (rows <= 0) continue;
        const struct kept w = kept_of(kind, p[2], scale, e, N, n[1]);
        g.a = (const float *)p[1] + off[e] * lda;
        g.c = (float *)p[0] + off[e] * g.ldc;
        kept_block(&g, kind, &w, 0, rows, n0, min64(n0 + NB, N), scratch);
    }
}

/* k_kept_STORAGE, under bf16 arithmetic k_kept_STORAGE_bf16: p = C, A, panels, and of i8 the scales;
 * n = M, N, K, lda, ldc, MB, NB; items = blocks of MB x NB.
 * k_kept_grouped_...: rows grouped by expert (k_gemm_grouped). p = C, A, panels of all experts,
 * offsets, and of i8 the scales; n = N, K, lda, ldc, NB; items = E x column blocks.
 * KEPT_NAME of the forms that are used follow this text; `by` is gemm_f32 or gemm_bf16. */
#define KEPT(name, by, form, tiles, bytes, i8)                                                     \
    static const struct kept_kind kept_##name = {&by, form, tiles, bytes};                         \
    void k_kept_##name(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {  \
        kept_plain(&kept_##name, p, n, lo, hi, scratch, i8 ? p[3] : 0);                            \
    }                                                                                              \
    void k_kept_grouped_##name(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) { \
        kept_grouped(&kept_##name, p, n, lo, hi, scratch, i8 ? p[4] : 0);                          \
    }
#define KEPT_f32 KEPT_TILES(kept_tile_f32, KEPT_FLOATS) KEPT(f32, gemm_f32, KEPT_FLOATS, kept_tile_f32, 64, 0)
#define KEPT_bf16_bf16                                                                             \
    KEPT_TILES(kept_tile_bf16_bf16, KEPT_PAIRS) KEPT(bf16_bf16, gemm_bf16, KEPT_PAIRS, kept_tile_bf16_bf16, 64, 0)
#define KEPT_bf16 KEPT_TILES(kept_tile_bf16, KEPT_HALVES) KEPT(bf16, gemm_f32, KEPT_HALVES, kept_tile_bf16, 32, 0)
#define KEPT_i8 KEPT_TILES(kept_tile_i8, KEPT_BYTES) KEPT(i8, gemm_f32, KEPT_BYTES, kept_tile_i8, 16, 1)
#define KEPT_i8_bf16                                                                               \
    KEPT_TILES(kept_tile_i8_bf16, KEPT_BYTES2) KEPT(i8_bf16, gemm_bf16, KEPT_BYTES2, kept_tile_i8_bf16, 32, 1)
