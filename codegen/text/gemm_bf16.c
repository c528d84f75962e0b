/* Matrix products on bf16 values with float32 accumulators (needs prelude.c, tile.c, gemm.c): by
 * vdpbf16ps, or where the CPU has none by two multiply-adds a word (tile_dot), whose bits differ. B is packed as bf16, A is float32 and
 * rounded to bf16 on the way. A word is two consecutive k of one row or column (low half first), so
 * panels are [ceil(K / 2)][16] words; an odd K is padded with a zero. Each element of C adds its
 * pairs in order of k. Arguments are those of the float32 kernels. */
TILES(tile_bf16, 1)
static tile_fn *const (*const tiles_bf16)[TILE_MR] = tile_bf16;

/* Lane i: bf16(a[i]) low, bf16(b[i]) high. */
INLINE v16 bf16_pair(v16 a, v16 b) {
    typedef uint16_t halves __attribute__((vector_size(64), aligned(4)));
    const halves h = (halves)bf16_words(a, b);
    return (v16)__builtin_shufflevector(h, h, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25,
                                        10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* Panels of pairs from columns, as panels_from_cols: `depth` rows of src. */
static void pairs_from_cols(float *dst, int64_t bp, const float *src, int64_t ld, int64_t cols,
                            int64_t depth) {
    for (int64_t k = 0; k < depth; k += 2) {
        const float *s = src + k * ld;
        const int64_t odd = k + 1 == depth;
        for (int64_t j = 0; j < cols; j += 16) {
            const int64_t w = min64(16, cols - j);
            v16 a = ld16k(s + j, w), b = ld16k(s + ld + j, odd ? 0 : w);
            st16(dst + j / 16 * bp + k * 8, bf16_pair(a, b));
        }
    }
}

static void gemm_pack_a_bf16(const struct gemm *g, float *dst, int64_t m0, int64_t rows, int64_t k0,
                             int64_t kn) {
    const int64_t depth = min64(2 * kn, g->depth - 2 * k0);
    for (int64_t m = 0; m < rows; m++) {
        const float *s = gemm_row(g, m0 + m) + 2 * k0;
        float *d = dst + m * kn;
        int64_t k = 0;
        for (; 2 * (k + 16) <= depth; k += 16) st16(d + k, few_words(s, k, depth, 1, 1));
        if (k < kn) st16k(d + k, few_words(s, k, depth, 1, 0), kn - k);
    }
}

static void gemm_pack_trans_a_bf16(const struct gemm *g, float *dst, int64_t m0, int64_t rows, int64_t k0,
                                   int64_t kn) {
    pairs_from_cols(dst, kn * 16, g->a + 2 * k0 * g->lda + m0, g->lda, rows,
                    min64(2 * kn, g->depth - 2 * k0));
}
static void pairs_from_rows(float *dst, int64_t bp, const float *src, int64_t ld, int64_t cols, int64_t depth) {
    for (int64_t n = 0; n < cols; n += 16)
        for (int64_t k = 0; k < depth; k += 16) {
            float part[256];
            const int64_t w = min64(16, depth - k);
            panel_from_rows(part, src + n * ld + k, ld, min64(16, cols - n), w);
            pairs_from_cols(dst + n / 16 * bp + k * 8, 0, part, 16, 16, w);
        }
}

FEWS(few_bf16, 1)
static void few_rows_bf16(const struct gemm *g, const float *w, int64_t ldw, int64_t rows, int64_t n0,
                          int64_t n1, float *scratch) {
    gemm_few(g, few_bf16, w, ldw, rows, n0, n1, 1, scratch);
}
static const struct gemm_kind gemm_bf16 = {&tiles_bf16,     2,               gemm_pack_a_bf16, gemm_pack_trans_a_bf16,
                                           pairs_from_cols, pairs_from_rows, few_rows_bf16};

void k_gemm_bf16(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    gemm_plain(&gemm_bf16, p, n, lo, hi, scratch);
}
void k_gemm_stack_bf16(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    gemm_stack(&gemm_bf16, p, n, lo, hi, scratch);
}
void k_gemm_grouped_bf16(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    gemm_grouped(&gemm_bf16, p, n, lo, hi, scratch);
}

void k_pack_rows_bf16(void *const *p, const int64_t *n, int64_t lo, int64_t hi, UNUSED void *scratch) {
    const int64_t K = n[0], N = n[1], ldb = n[2], nb = div_up(N, 256), bp = div_up(K, 2) * 16;
    for (int64_t it = lo; it < hi; it++) {
        const int64_t k0 = it / nb * 64, n0 = it % nb * 256;
        pairs_from_cols((float *)p[0] + n0 / 16 * bp + k0 * 8, bp, (const float *)p[1] + k0 * ldb + n0,
                        ldb, min64(256, N - n0), min64(64, K - k0));
    }
}

void k_pack_cols_bf16(void *const *p, const int64_t *n, int64_t lo, int64_t hi, UNUSED void *scratch) {
    const int64_t K = n[0], N = n[1], ldw = n[2], kb = div_up(K, 256), bp = div_up(K, 2) * 16;
    for (int64_t it = lo; it < hi; it++) {
        const int64_t n0 = it / kb * 16, k0 = it % kb * 256;
        pairs_from_rows((float *)p[0] + n0 / 16 * bp + k0 * 8, bp, (const float *)p[1] + n0 * ldw + k0, ldw,
                        min64(16, N - n0), min64(256, K - k0));
    }
}
