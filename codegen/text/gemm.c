/* Float32 matrix products for all shapes (needs prelude.c, tile.c). Compiled once for all models.
 *
 * C[M,N] = A B or C += A B. A is read in place, row-major or transposed; B is packed in panels
 * (tile.c), by a step of its own or, in stacks, by each item for its columns. Every C element adds its products in the order k = 0 .. K-1, whatever the blocks, the
 * shape and the form; with GEMM_ADD it starts from the old C. Block sizes come from cg_gemm_plan. */
enum { GEMM_TRANS_A = 1, GEMM_ADD = 2, GEMM_GATHER = 4, GEMM_TRANS_B = 8 };
enum { GEMM_KC = 1152, GEMM_MC = 96 }; /* a block of A and two of B (64 columns) stay in 1 MiB */

struct gemm {
    const struct gemm_kind *kind;
    const float *a, *b; /* a: element (0,0); b: panel of column 0 at k = 0 */
    float *c;
    int64_t lda, ldc, bp, k; /* bp: floats from panel to panel; k: inner size, in words of the kind */
    int64_t depth;           /* inner size */
    int64_t flags;
    const int32_t *index; /* GEMM_GATHER: row m of A is a + index[m] * lda */
    const float *after;   /* the panels that the next item probably reads first; speed only */
};

/* Copies rows m0 .. m0+rows of A, kn words of k from k0 on, to scratch: transposed A to panels
 * [rows / 16][kn][16], else to [rows][kn]. */
typedef void gemm_pack(const struct gemm *g, float *dst, int64_t m0, int64_t rows, int64_t k0, int64_t kn);
/* Panels of B, `bp` floats apart: `cols` columns from `depth` rows of src, or from `cols` rows. */
typedef void gemm_panels(float *dst, int64_t bp, const float *src, int64_t ld, int64_t cols, int64_t depth);

/* Columns n0 .. n1-1 of `rows` <= GEMM_FEW rows of C by W [N,K] in place. */
typedef void gemm_in_place(const struct gemm *g, const float *w, int64_t ldw, int64_t rows, int64_t n0,
                           int64_t n1, float *scratch);

struct gemm_kind {
    tile_fn *const (*const *tiles)[TILE_MR];
    int64_t per;       /* k in a 32-bit word of A and B: 1, or 2 for bf16 pairs */
    gemm_pack *pack_a; /* NULL: A is read in place */
    gemm_pack *pack_trans_a;
    gemm_panels *pack_b, *pack_trans_b;
    gemm_in_place *few;
};

INLINE const float *gemm_row(const struct gemm *g, int64_t m) {
    return g->a + (g->flags & GEMM_GATHER ? g->index[m] : m) * g->lda;
}

static void gemm_pack_trans_a(const struct gemm *g, float *dst, int64_t m0, int64_t rows, int64_t k0,
                              int64_t kn) {
    const float *src = g->a + k0 * g->lda + m0;
    for (int64_t k = 0; k < kn; k += 8) {
        const int64_t part = min64(8, kn - k), ahead = min64(k + 16, kn);
        for (int64_t i = k + 8; i < ahead; i++)
            for (int64_t m = 0; m < rows; m += 16) __builtin_prefetch(src + i * g->lda + m, 0, 3);
        panels_from_cols(dst + k * 16, kn * 16, src + k * g->lda, g->lda, rows, part);
    }
}
static void gemm_pack_trans_b(float *dst, int64_t bp, const float *src, int64_t ld, int64_t cols,
                              int64_t depth) {
    for (int64_t n = 0; n < cols; n += 16)
        panel_from_rows(dst + n / 16 * bp, src + n * ld, ld, min64(16, cols - n), depth);
}

/* One k range of C[m0..m1, n0..n1]; `pa` is the packed block of A or NULL. */
static void gemm_slab(const struct gemm *g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, int64_t k0,
                      int64_t kn, const float *pa) {
    struct tile t = {.bp = g->bp, .kn = kn, .ldc = g->ldc, .load = k0 > 0 || g->flags & GEMM_ADD};
    for (int64_t n = n0; n < n1; n += 64) {
        t.b = g->b + n / 16 * g->bp + k0 * 16;
        t.cols = min64(64, n1 - n);
        /* Meanwhile the 64 columns of B that come next are fetched into L2. */
        const float *next = n + 64 < n1        ? t.b + 4 * g->bp
                            : k0 + kn < g->k ? g->b + n0 / 16 * g->bp + (k0 + kn) * 16
                                             : g->after;
        for (int64_t m = m0; m < m1; m += TILE_MR) {
            const int64_t mr = min64(TILE_MR, m1 - m), step = (m - m0) / TILE_MR;
            t.c = g->c + m * g->ldc + n;
            t.prefetch = step < 16 ? next + step / 4 * g->bp + step % 4 * (kn / 4 * 16) : t.b;
            for (int64_t i = 0; i < mr; i++) {
                const int64_t r = m - m0 + i;
                if (g->flags & GEMM_TRANS_A)
                    t.a[i] = pa + r / 16 * 16 * kn + r % 16;
                else
                    t.a[i] = pa ? pa + r * kn : gemm_row(g, m + i) + k0;
            }
            t.ks = g->flags & GEMM_TRANS_A ? 16 : 1;
            tile_run_of(*g->kind->tiles, &t, mr);
        }
    }
}

static void gemm_block(const struct gemm *g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float *scratch) {
    gemm_pack *pack = g->flags & GEMM_TRANS_A ? g->kind->pack_trans_a : g->kind->pack_a;
    for (int64_t mc = m0; mc < m1; mc += GEMM_MC) {
        const int64_t me = min64(mc + GEMM_MC, m1);
        /* equal parts, so that none is too short to hide the loads and stores of C */
        const int64_t part = div_up(g->k, max64(1, div_up(g->k, GEMM_KC)));
        int64_t k0 = 0;
        do {
            const int64_t kn = min64(part, g->k - k0);
            if (pack) pack(g, scratch, mc, me - mc, k0, kn);
            gemm_slab(g, mc, me, n0, n1, k0, kn, pack ? scratch : 0);
            k0 += kn;
        } while (k0 < g->k);
    }
}

#ifdef __AVX512BF16__
/* 32 numbers as 16 words: those of a, then those of b, rounded to nearest even; with vdpbf16ps, as in the
 * products themselves, what is smaller than 2^-126 is zero. */
INLINE v16 bf16_words(v16 a, v16 b) {
    typedef float full __attribute__((vector_size(64)));
    return (v16)__builtin_ia32_cvtne2ps2bf16_512((full)b, (full)a);
}
#else
INLINE v16 bf16_words(v16 a, v16 b) {
    const v16h x = f32_to_bf16(a), y = f32_to_bf16(b);
    return (v16)__builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
                                        20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
}
#endif

/* ---- few rows: B is read once and in place ----
 *
 * Words of 16 rows of W are turned in registers. An element adds its products as everywhere, in the
 * order of k. Rows go in equal groups of at most FEW_MR, each packed [k][group]; the first group meets
 * W as it comes from memory and leaves it in a panel for the others, while what follows is fetched. */
enum { GEMM_ALONE = 4, GEMM_FEW = 48, FEW_WORDS = 64, FEW_AHEAD = 128 };
#ifdef __AVX512F__
enum { FEW_MR = 24 };
#else
enum { FEW_MR = 4 };
#endif

/* MR rows of A in place by 16 columns, of which `cols` are stored; w: the first column's row of W. */
INLINE void gemm_alone_tile(const struct gemm *g, const float *w, int64_t ldw, float *c, int64_t cols,
                          const int MR) {
    v16 acc[GEMM_ALONE], r[16];
    const float *a[GEMM_ALONE], *row[16];
    for (int i = 0; i < 16; i++) row[i] = w + min64(i, cols - 1) * ldw;
#pragma clang loop unroll(full)
    for (int m = 0; m < MR; m++) {
        a[m] = gemm_row(g, m);
        acc[m] = g->flags & GEMM_ADD ? ld16k(c + m * g->ldc, cols) : splat16(0.0f);
    }
    int64_t k = 0;
    for (; k + 16 <= g->depth; k += 16) {
        /* what these rows, or the next 16, hold 256 bytes further on */
        const int64_t ahead = k + 64 < g->depth ? k + 64 : 16 * ldw + k + 64 - g->depth;
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) {
            r[i] = ld16(row[i] + k);
            __builtin_prefetch(row[i] + ahead, 0, 3);
        }
        transpose16(r);
#pragma clang loop unroll(full)
        for (int u = 0; u < 16; u++)
#pragma clang loop unroll(full)
            for (int m = 0; m < MR; m++) acc[m] = fma16(splat16(a[m][k + u]), r[u], acc[m]);
    }
    if (k < g->depth) {
        for (int i = 0; i < 16; i++) r[i] = ld16k(row[i] + k, g->depth - k);
        transpose16(r);
        for (int u = 0; u < g->depth - k; u++)
#pragma clang loop unroll(full)
            for (int m = 0; m < MR; m++) acc[m] = fma16(splat16(a[m][k + u]), r[u], acc[m]);
    }
    for (int m = 0; m < MR; m++) st16k(c + m * g->ldc, acc[m], cols);
}

static void gemm_alone(const struct gemm *g, const float *w, int64_t ldw, int64_t rows, int64_t n0, int64_t n1) {
    for (int64_t n = n0; n < n1; n += 16) {
        const int64_t cols = min64(16, n1 - n);
        switch (rows) {
        case 1: gemm_alone_tile(g, w + n * ldw, ldw, g->c + n, cols, 1); break;
        case 2: gemm_alone_tile(g, w + n * ldw, ldw, g->c + n, cols, 2); break;
        case 3: gemm_alone_tile(g, w + n * ldw, ldw, g->c + n, cols, 3); break;
        default: gemm_alone_tile(g, w + n * ldw, ldw, g->c + n, cols, 4);
        }
    }
}

/* Words k .. k+15 of a row that has `depth` numbers, zero beyond. */
INLINE v16 few_words(const float *row, int64_t k, int64_t depth, int pairs, int whole) {
    if (!pairs) return whole ? ld16(row + k) : ld16k(row + k, depth - k);
    const float *x = row + 2 * k;
    const int64_t left = depth - 2 * k;
    if (whole) return bf16_words(ld16(x), ld16(x + 16));
    return bf16_words(ld16k(x, min64(left, 16)), left > 16 ? ld16k(x + 16, left - 16) : splat16(0.0f));
}

/* All words of rows m0 .. m0+rows-1 of A as [k][group], zero for rows that are missing. */
INLINE void few_pack_a(const struct gemm *g, float *dst, int64_t m0, int64_t rows, int64_t group, int pairs) {
    for (int64_t part = 0; part < group; part += 16)
        for (int64_t k = 0; k < g->k; k += 16) {
            v16 r[16];
            const int whole = (k + 16) * (pairs ? 2 : 1) <= g->depth;
#pragma clang loop unroll(full)
            for (int i = 0; i < 16; i++)
                r[i] = part + i >= rows ? splat16(0.0f)
                       : whole ? few_words(gemm_row(g, m0 + part + i), k, g->depth, pairs, 1)
                               : few_words(gemm_row(g, m0 + part + i), k, g->depth, pairs, 0);
            transpose16(r);
#pragma clang loop unroll(full)
            for (int u = 0; u < 16; u++)
                if (k + u < g->k) st16k(dst + (k + u) * group + part, r[u], min64(16, group - part));
        }
}

struct few {
    const float *a; /* one group, from word k0 on */
    const float *w; /* 16 rows of W from k0 on */
    int64_t ldw, kn; /* kn: words */
    const float *ahead, *then; /* what will be read FEW_AHEAD later: from ahead, or at word `turn` from then */
    int64_t turn;
    float *panel;                     /* those of the 16 columns, [kn][16] */
    float *sum;                       /* [group][16], added to */
    int64_t keep;                     /* write the panel */
};
typedef void few_fn(const struct few *f);

INLINE void few_rank1(v16 *acc, const float *a, v16 b, const int MR, int pairs) {
#pragma clang loop unroll(full)
    for (int m = 0; m < MR; m++) acc[m] = tile_dot(splat16(a[m]), b, acc[m], pairs);
}

/* No loads ahead of their k, and no products after the next: vectors would spill. */
INLINE void few_order(UNUSED v16 *acc, UNUSED const int MR) {
    __asm__("" : : : "memory");
#ifdef __AVX512F__
    typedef float full __attribute__((vector_size(64)));
#pragma clang loop unroll(full)
    for (int m = 0; m < MR; m++) {
        full x = (full)acc[m];
        __asm__ volatile("" : "+v"(x));
        acc[m] = (v16)x;
    }
#endif
}

/* A group of rows by a panel. */
INLINE void few_next(const struct few *f, const int MR, int pairs) {
    v16 acc[FEW_MR];
    const float *a = f->a, *b = f->panel;
#pragma clang loop unroll(full)
    for (int m = 0; m < MR; m++) acc[m] = ld16(f->sum + m * 16);
    int64_t k = 0;
    for (; k + 4 <= f->kn; k += 4)
#pragma clang loop unroll(full)
        for (int u = 0; u < 4; u++, a += MR, b += 16) few_rank1(acc, a, ld16(b), MR, pairs);
    for (; k < f->kn; k++, a += MR, b += 16) few_rank1(acc, a, ld16(b), MR, pairs);
#pragma clang loop unroll(full)
    for (int m = 0; m < MR; m++) st16(f->sum + m * 16, acc[m]);
}

/* Words 4 part .. of the 16 lines: r[u] lane i = word 4 part + u of line i. Quarters come by loads,
 * which leaves two rounds of shuffles. */
INLINE void few_turn(v16 r[4], const float *line) {
    v16 q[4];
#pragma clang loop unroll(full)
    for (int j = 0; j < 4; j++) {
        const float *s = line + j * 16;
        const v4 x = *(const v4 *)s, y = *(const v4 *)(s + 64), z = *(const v4 *)(s + 128), t = *(const v4 *)(s + 192);
        const v8 lo = ZIP(x, y, 0, 1, 2, 3, 4, 5, 6, 7), hi = ZIP(z, t, 0, 1, 2, 3, 4, 5, 6, 7);
        q[j] = ZIP(lo, hi, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    }
    const v16 a = ZIP(q[0], q[1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    const v16 b = ZIP(q[0], q[1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    const v16 c = ZIP(q[2], q[3], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    const v16 d = ZIP(q[2], q[3], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    r[0] = ZIP(a, c, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    r[1] = ZIP(a, c, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    r[2] = ZIP(b, d, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    r[3] = ZIP(b, d, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}

/* Four lines, or pairs of lines, of rows `ld` apart; to the second cache when other groups come first. */
INLINE void few_fetch(const float *line, int64_t ld, int pairs, int64_t later) {
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; i++, line += ld) {
        if (later)
            __builtin_prefetch(line, 0, 2);
        else
            __builtin_prefetch(line, 0, 3);
        if (pairs && later)
            __builtin_prefetch(line + 16, 0, 2);
        else if (pairs)
            __builtin_prefetch(line + 16, 0, 3);
    }
}

/* The first group, by W in place; kn is a multiple of 16. Lines of W (64 bytes, often all in one set of
 * the cache, and needed four times) are read once, a block ahead of their use. */
INLINE void few_first(const struct few *f, const int MR, int pairs) {
    v16 acc[FEW_MR];
    float line[512] __attribute__((aligned(64)));
    const int64_t ldw = f->ldw, keep = f->keep, per = pairs ? 2 : 1;
    const float *a = f->a, *w = f->w, *ahead = f->ahead;
    float *panel = f->panel;
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; i++) st16(line + i * 16, few_words(w + i * ldw, 0, 0, pairs, 1));
#pragma clang loop unroll(full)
    for (int m = 0; m < MR; m++) acc[m] = ld16(f->sum + m * 16);
    for (int64_t k = 0; k < f->kn; k += 16) {
        const float *now = line + k % 32 * 16;
        float *next = line + (k + 16) % 32 * 16;
        if (k + 16 < f->kn) w += 16 * per;
        if (k == f->turn) ahead = f->then;
#pragma clang loop unroll(full)
        for (int part = 0; part < 4; part++) {
            v16 r[4];
            few_turn(r, now + part * 4);
#pragma clang loop unroll(full)
            for (int i = 4 * part; i < 4 * part + 4; i++)
                st16(next + i * 16, few_words(w + i * ldw, 0, 0, pairs, 1));
            if (!keep) {
                few_fetch(ahead + 4 * part * ldw, ldw, pairs, 0);
            } else {
                few_fetch(ahead + 4 * part * ldw, ldw, pairs, 1);
#pragma clang loop unroll(full)
                for (int u = 0; u < 4; u++) st16(panel + u * 16, r[u]);
                panel += 64;
            }
#pragma clang loop unroll(full)
            for (int u = 0; u < 4; u++) {
                few_rank1(acc, a + u * MR, r[u], MR, pairs);
                few_order(acc, MR);
            }
            a += 4 * MR;
        }
        ahead += 16 * per;
    }
#pragma clang loop unroll(full)
    for (int m = 0; m < MR; m++) st16(f->sum + m * 16, acc[m]);
}

/* Both for a group of 4, 8, .. FEW_MR rows. */
#define FEW(name, pairs, mr)                                                                       \
    UNUSED static __attribute__((noinline)) void name##_first_##mr(const struct few *f) {          \
        few_first(f, mr, pairs);                                                                   \
    }                                                                                              \
    UNUSED static __attribute__((noinline)) void name##_next_##mr(const struct few *f) {           \
        few_next(f, mr, pairs);                                                                    \
    }
#define FEW_OF(name, mr) {name##_first_##mr, name##_next_##mr}
#ifdef __AVX512F__
#define FEWS(name, pairs)                                                                          \
    FEW(name, pairs, 4) FEW(name, pairs, 8) FEW(name, pairs, 12)                                   \
    FEW(name, pairs, 16) FEW(name, pairs, 20) FEW(name, pairs, 24)                                 \
    static few_fn *const name[][2] = {FEW_OF(name, 4),  FEW_OF(name, 8),  FEW_OF(name, 12),        \
                                      FEW_OF(name, 16), FEW_OF(name, 20), FEW_OF(name, 24)};
#else
#define FEWS(name, pairs)                                                                          \
    FEW(name, pairs, 4)                                                                            \
    static few_fn *const name[][2] = {FEW_OF(name, 4)};
#endif
FEWS(few, 0)

/* C[rows, n0..n1] of up to 16 columns of C to or from sums. */
INLINE void few_load(const struct gemm *g, float *sum, int64_t rows, int64_t room, int64_t n, int64_t cols) {
    for (int64_t m = 0; m < room; m++)
        st16(sum + m * 16, m < rows && g->flags & GEMM_ADD ? ld16k(g->c + m * g->ldc + n, cols) : splat16(0.0f));
}
INLINE void few_store(const struct gemm *g, const float *sum, int64_t rows, int64_t n, int64_t cols) {
    for (int64_t m = 0; m < rows; m++) st16k(g->c + m * g->ldc + n, ld16(sum + m * 16), cols);
}

/* 16 or fewer columns by all groups; a: the packed rows, w: the columns' rows of W. */
INLINE void few_columns(const struct gemm *g, few_fn *const *fn, const float *a, float *sum, const float *w,
                        int64_t ldw, int64_t cols, int64_t groups, int64_t group) {
    float panel[FEW_WORDS * 16] __attribute__((aligned(64)));
    const int64_t per = g->kind->per, whole = cols == 16 ? g->depth / (16 * per) * 16 : 0;
    struct few f = {.ldw = ldw, .panel = panel, .keep = groups > 1};
    for (int64_t k = 0; k < g->k; k += f.kn) {
        const int inplace = k < whole;
        f.kn = min64(groups > 1 || !inplace ? FEW_WORDS : whole, inplace ? whole - k : g->k - k);
        f.w = w + k * per;
        /* in these rows, then in the next 16 */
        f.turn = whole - FEW_AHEAD - k;
        f.then = w + 16 * ldw;
        f.ahead = f.turn < 0 ? f.then - f.turn * per : f.w + FEW_AHEAD * per;
        if (!inplace) g->kind->pack_trans_b(panel, 0, f.w, ldw, cols, min64(f.kn * per, g->depth - k * per));
        for (int64_t i = 0; i < groups; i++) {
            f.a = a + (i * g->k + k) * group;
            f.sum = sum + i * group * 16;
            fn[i > 0 || !inplace](&f);
        }
    }
}

/* Columns n0 .. n1-1 of a product of up to GEMM_FEW rows; w: W [N,K]. */
INLINE void gemm_few(const struct gemm *g, few_fn *const (*table)[2], const float *w, int64_t ldw, int64_t rows,
                     int64_t n0, int64_t n1, int pairs, float *scratch) {
    const int64_t groups = div_up(rows, FEW_MR), group = div_up(rows, 4 * groups) * 4;
    few_fn *const *fn = table[group / 4 - 1];
    float sum[GEMM_FEW * 16] __attribute__((aligned(64)));
    for (int64_t i = 0; i < groups; i++)
        few_pack_a(g, scratch + i * group * g->k, i * group, min64(group, rows - i * group), group, pairs);
    for (int64_t n = n0; n < n1; n += 16) {
        const int64_t cols = min64(16, n1 - n);
        few_load(g, sum, rows, groups * group, n, cols);
        few_columns(g, fn, scratch, sum, w + n * ldw, ldw, cols, groups, group);
        few_store(g, sum, rows, n, cols);
    }
}

static void few_f32(const struct gemm *g, const float *w, int64_t ldw, int64_t rows, int64_t n0, int64_t n1,
                    float *scratch) {
    gemm_few(g, few, w, ldw, rows, n0, n1, 0, scratch);
}

static const struct gemm_kind gemm_f32 = {&tiles_f32,   1, 0, gemm_pack_trans_a, panels_from_cols, gemm_pack_trans_b,
                                          few_f32};

static void gemm_plain(const struct gemm_kind *kind, void *const *p, const int64_t *n, int64_t lo,
                       int64_t hi, void *scratch) {
    const int64_t M = n[0], N = n[1], K = div_up(n[2], kind->per), MB = n[6], NB = n[7], nb = div_up(N, NB);
    struct gemm g = {.kind = kind, .a = p[1], .b = p[2], .c = p[0], .lda = n[3], .ldc = n[4],
                     .bp = K * 16, .k = K, .depth = n[2], .flags = n[5]};
    for (int64_t it = lo; it < hi; it++) {
        const int64_t m0 = it / nb * MB, n0 = it % nb * NB;
        g.after = g.b + (it + 1) % nb * NB * K;
        gemm_block(&g, m0, min64(m0 + MB, M), n0, min64(n0 + NB, N), scratch);
    }
}
/* p = C, A, packed B; n = M, N, K, lda, ldc, flags, MB, NB; items = blocks of MB x NB. */
void k_gemm(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    gemm_plain(&gemm_f32, p, n, lo, hi, scratch);
}

/* Packs B from row-major [K,N]. p = packed, B; n = K, N, ldb; items = blocks of 64 k x 256 columns. */
void k_pack_rows(void *const *p, const int64_t *n, int64_t lo, int64_t hi, UNUSED void *scratch) {
    const int64_t K = n[0], N = n[1], ldb = n[2], nb = div_up(N, 256);
    float *dst = p[0];
    const float *src = p[1];
    for (int64_t it = lo; it < hi; it++) {
        const int64_t k0 = it / nb * 64, n0 = it % nb * 256;
        panels_from_cols(dst + n0 * K + k0 * 16, K * 16, src + k0 * ldb + n0, ldb, min64(256, N - n0),
                         min64(64, K - k0));
    }
}

/* Packs B = W^T from W row-major [N,K]. p = packed, W; n = K, N, ldw; items = blocks of 16 columns
 * of B x 256 k. */
void k_pack_cols(void *const *p, const int64_t *n, int64_t lo, int64_t hi, UNUSED void *scratch) {
    const int64_t K = n[0], N = n[1], ldw = n[2], kb = div_up(K, 256);
    float *dst = p[0];
    const float *src = p[1];
    for (int64_t it = lo; it < hi; it++) {
        const int64_t n0 = it / kb * 16, k0 = it % kb * 256;
        panel_from_rows(dst + n0 * K + k0 * 16, src + n0 * ldw + k0, ldw, min64(16, N - n0),
                        min64(256, K - k0));
    }
}

/* All rows of columns n0 .. n1-1 of one product of a stack; B is packed here, after the block of A. */
static void gemm_own(struct gemm g, const float *b, int64_t ldb, int64_t rows, int64_t n0, int64_t n1,
                     float *scratch) {
    if (rows <= GEMM_FEW && (g.flags & (GEMM_TRANS_B | GEMM_TRANS_A)) == GEMM_TRANS_B) {
        if (rows > GEMM_ALONE || (rows > 0 && g.kind->per > 1))
            g.kind->few(&g, b, ldb, rows, n0, n1, scratch);
        else if (rows > 0)
            gemm_alone(&g, b, ldb, rows, n0, n1);
        return;
    }
    float *own = scratch + GEMM_MC * GEMM_KC;
    for (int64_t k = 0; k < g.depth; k += 256) {
        float *to = own + k / g.kind->per * 16;
        const int64_t kn = min64(256, g.depth - k);
        if (g.flags & GEMM_TRANS_B)
            g.kind->pack_trans_b(to, g.bp, b + n0 * ldb + k, ldb, n1 - n0, kn);
        else
            g.kind->pack_b(to, g.bp, b + k * ldb + n0, ldb, n1 - n0, kn);
    }
    g.b = g.after = own;
    g.c += n0;
    gemm_block(&g, 0, rows, 0, n1 - n0, scratch);
}

static void gemm_stack(const struct gemm_kind *kind, void *const *p, const int64_t *n, int64_t lo,
                       int64_t hi, void *scratch) {
    const int64_t M = n[0], N = n[1], K = div_up(n[2], kind->per), NB = n[7], nb = div_up(N, NB);
    struct gemm g = {.kind = kind, .lda = n[3], .ldc = n[4], .bp = K * 16, .k = K, .depth = n[2], .flags = n[6]};
    for (int64_t it = lo; it < hi; it++) {
        const int64_t i = it / nb, n0 = it % nb * NB;
        g.a = (const float *)p[1] + i * M * n[2];
        g.c = (float *)p[0] + i * M * N;
        gemm_own(g, (const float *)p[2] + i * N * n[2], n[5], M, n0, min64(n0 + NB, N), scratch);
    }
}
/* A stack of products C_i[M,N] = A_i B_i, matrices end to end. p = C, A, B (not packed; [N,K] with
 * GEMM_TRANS_B); n = M, N, K, lda, ldc, ldb, flags, NB; items = matrices x column blocks. */
void k_gemm_stack(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    gemm_stack(&gemm_f32, p, n, lo, hi, scratch);
}

static void gemm_grouped(const struct gemm_kind *kind, void *const *p, const int64_t *n, int64_t lo,
                         int64_t hi, void *scratch) {
    const int64_t N = n[0], K = div_up(n[1], kind->per), lda = n[2], NB = n[6], nb = div_up(N, NB);
    const int32_t *off = p[3], *index = n[5] & GEMM_GATHER ? p[4] : 0;
    struct gemm g = {.kind = kind, .lda = lda, .ldc = n[3], .bp = K * 16, .k = K, .depth = n[1], .flags = n[5]};
    for (int64_t it = lo; it < hi; it++) {
        const int64_t e = it / nb, n0 = it % nb * NB, rows = off[e + 1] - off[e];
        if (rows <= 0) continue;
        g.a = (const float *)p[1] + (index ? 0 : off[e] * lda);
        g.index = index ? index + off[e] : 0;
        g.c = (float *)p[0] + off[e] * g.ldc;
        gemm_own(g, (const float *)p[2] + e * N * n[1], n[4], rows, n0, min64(n0 + NB, N), scratch);
    }
}

/* Rows grouped by expert: C[r,:] = A[r,:] B_e for offsets[e] <= r < offsets[e+1]. p = C, A, B of all
 * experts end to end (not packed; an expert without rows is not read), offsets int32 [E+1], index
 * int32 [rows] (GEMM_GATHER: row r of A is A + index[r] * lda); n = N, K, lda, ldc, ldb, flags, NB;
 * items = E x column blocks. */
void k_gemm_grouped(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    gemm_grouped(&gemm_f32, p, n, lo, hi, scratch);
}

/* Weight gradients per expert: C_e[M,N] = A_e^T X_e over the rows of expert e (none: C_e = 0, or
 * unchanged with GEMM_ADD). A is row-major [rows,M], X is packed once as a [rows,N] matrix: panels
 * run along rows, so an expert's rows are a k range of every panel.
 * p = C [E,M,N], A, packed X, offsets int32 [E+1]; n = rows (as packed), M, N, lda, ldc, flags, MB,
 * NB, E; items = E x row blocks x column blocks. */
void k_gemm_grouped_dw(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    const int64_t rows = n[0], M = n[1], N = n[2], lda = n[3], ldc = n[4], MB = n[6], NB = n[7];
    const int64_t mb = div_up(M, MB), nb = div_up(N, NB);
    const int32_t *off = p[3];
    struct gemm g = {.kind = &gemm_f32, .lda = lda, .ldc = ldc, .bp = rows * 16, .flags = n[5] | GEMM_TRANS_A};
    for (int64_t it = lo; it < hi; it++) {
        const int64_t e = it / (mb * nb), m0 = it / nb % mb * MB, n0 = it % nb * NB;
        g.k = g.depth = off[e + 1] - off[e];
        g.a = (const float *)p[1] + off[e] * lda;
        g.b = (const float *)p[2] + (int64_t)off[e] * 16;
        g.c = (float *)p[0] + e * M * ldc;
        g.after = it % (mb * nb) == mb * nb - 1 ? g.b + g.k * 16 : g.b + (n0 + NB < N ? n0 + NB : 0) * rows;
        gemm_block(&g, m0, min64(m0 + MB, M), n0, min64(n0 + NB, N), scratch);
    }
}
