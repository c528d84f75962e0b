/* Multi-head latent attention: per head N = k_nope, R = k_rope (one for all heads), V = value. */
//== mla_moves
INLINE void @FN@_copy(float *to, const float *from, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) st16(to + i, ld16(from + i));
    if (i < n) st16k(to + i, ld16k(from + i, n - i), n - i);
}
//== mla_keys
/* k = per head (k_nope | kr), v = per head the rest of kv.
 * p: kv, kr, k, v.  n: row strides.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    enum { N = ${N}, R = ${R}, V = ${V} };
    for (int64_t t = lo; t < hi; t++) {
        const float *kv = (const float *)p[0] + t * n[0], *kr = (const float *)p[1] + t * n[1];
        float *k = (float *)p[2] + t * n[2], *v = (float *)p[3] + t * n[3];
        for (int64_t h = 0; h < ${H}; h++, kv += N + V, k += N + R, v += V) {
            @FN@_copy(k, kv, N);
            @FN@_copy(k + N, kr, R);
            @FN@_copy(v, kv + N, V);
        }
    }
}
//== mla_keys_grad
/* dkv = per head (dk_nope | dv), dkr = sum of the heads' last R of dk, in head order.
 * p: dk, dv, dkv, dkr.  n: row strides.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    enum { N = ${N}, R = ${R}, V = ${V}, H = ${H} };
    for (int64_t t = lo; t < hi; t++) {
        const float *dk = (const float *)p[0] + t * n[0], *dv = (const float *)p[1] + t * n[1];
        float *dkv = (float *)p[2] + t * n[2], *dkr = (float *)p[3] + t * n[3];
        for (int64_t i = 0; i < R; i += 16) {
            const int64_t w = min64(16, R - i);
            v16 sum = splat16(0.0f);
            for (int64_t h = 0; h < H; h++) sum += ld16k(dk + h * (N + R) + N + i, w);
            st16k(dkr + i, sum, w);
        }
        for (int64_t h = 0; h < H; h++) {
            @FN@_copy(dkv + h * (N + V), dk + h * (N + R), N);
            @FN@_copy(dkv + h * (N + V) + N, dv + h * V, V);
        }
    }
}
//== mla_dots
/* C[m][j] = a_m . b_j for MR rows of A and NJ of B, MR * NJ <= 16; of C `cols` columns are stored, and
 * B has as many rows. Lane i sums k = i, i + 16, ...; the lanes are added in hsum16's order, so an
 * element's bits depend on its two rows only. */
INLINE void @FN@_dots_tile(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb,
                           int64_t kn, int64_t cols, const int MR, const int NJ) {
    v16 r[16];
    const float *row[8];
    float sums[16];
    for (int j = 0; j < NJ; j++) row[j] = b + min64(j, cols - 1) * ldb;
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; i++) r[i] = splat16(0.0f);
    int64_t k = 0;
    for (; k + 16 <= kn; k += 16)
#pragma clang loop unroll(full)
        for (int m = 0; m < MR; m++) {
            const v16 x = ld16(a + m * lda + k);
#pragma clang loop unroll(full)
            for (int j = 0; j < NJ; j++) r[m * NJ + j] = fma16(x, ld16(row[j] + k), r[m * NJ + j]);
        }
    if (k < kn)
#pragma clang loop unroll(full)
        for (int m = 0; m < MR; m++) {
            const v16 x = ld16k(a + m * lda + k, kn - k);
#pragma clang loop unroll(full)
            for (int j = 0; j < NJ; j++)
                r[m * NJ + j] = fma16(x, ld16k(row[j] + k, kn - k), r[m * NJ + j]);
        }
    transpose16(r);
#pragma clang loop unroll(full)
    for (int w = 8; w > 0; w /= 2)
#pragma clang loop unroll(full)
        for (int i = 0; i < w; i++) r[i] += r[i + w];
    st16(sums, r[0]);
    for (int m = 0; m < MR; m++)
        for (int64_t j = 0; j < min64(NJ, cols); j++) c[m * ldc + j] = sums[m * NJ + j];
}
/* The same for any number of rows. `more`: floats from b to what will be read next. */
static void @FN@_dots(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb,
                      int64_t kn, int64_t rows, int64_t cols, int64_t more) {
    for (int64_t j = 0; j < cols; j += 8) {
        const float *bj = b + j * ldb;
        int64_t m = 0;
        for (int64_t i = 0; more && i < 8 * ldb; i += 16) __builtin_prefetch(bj + more + i, 0, 2);
        for (; m + 4 <= rows; m += 4)
            for (int64_t i = 0; i < min64(8, cols - j); i += 4)
                @FN@_dots_tile(c + m * ldc + j + i, ldc, a + m * lda, lda, bj + i * ldb, ldb, kn,
                               cols - j - i, 4, 4);
        for (; m + 2 <= rows; m += 2)
            @FN@_dots_tile(c + m * ldc + j, ldc, a + m * lda, lda, bj, ldb, kn, cols - j, 2, 8);
        if (m < rows) @FN@_dots_tile(c + m * ldc + j, ldc, a + m * lda, lda, bj, ldb, kn, cols - j, 1, 8);
    }
}
/* C[m] += sum over k of x[m][k] b_k, k in ascending order, for MR rows of C and KN of B. */
INLINE void @FN@_sums_tile(float *c, int64_t ldc, const float *x, int64_t ldx, const float *b, int64_t ldb,
                           int64_t cols, const int MR, const int KN) {
    v16 w[3 * 8];
#pragma clang loop unroll(full)
    for (int m = 0; m < MR; m++)
#pragma clang loop unroll(full)
        for (int k = 0; k < KN; k++) w[m * KN + k] = splat16(x[m * ldx + k]);
    int64_t i = 0;
    for (; i + 16 <= cols; i += 16) {
        v16 acc[3];
#pragma clang loop unroll(full)
        for (int m = 0; m < MR; m++) acc[m] = ld16(c + m * ldc + i);
#pragma clang loop unroll(full)
        for (int k = 0; k < KN; k++) {
            const v16 y = ld16(b + k * ldb + i);
#pragma clang loop unroll(full)
            for (int m = 0; m < MR; m++) acc[m] = fma16(w[m * KN + k], y, acc[m]);
        }
#pragma clang loop unroll(full)
        for (int m = 0; m < MR; m++) st16(c + m * ldc + i, acc[m]);
    }
    for (int m = 0; m < MR && i < cols; m++) {
        v16 acc = ld16k(c + m * ldc + i, cols - i);
        for (int k = 0; k < KN; k++) acc = fma16(w[m * KN + k], ld16k(b + k * ldb + i, cols - i), acc);
        st16k(c + m * ldc + i, acc, cols - i);
    }
}
static void @FN@_sums(float *c, int64_t ldc, const float *x, int64_t ldx, const float *b, int64_t ldb,
                      int64_t cols, int64_t rows, int64_t kn) {
    for (int64_t k = 0; k < kn;) {
        const int64_t whole = k + 8 <= kn;
        const float *bk = b + k * ldb, *xk = x + k;
        int64_t m = 0;
        for (; whole && m + 3 <= rows; m += 3)
            @FN@_sums_tile(c + m * ldc, ldc, xk + m * ldx, ldx, bk, ldb, cols, 3, 8);
        for (; whole && m < rows; m++)
            @FN@_sums_tile(c + m * ldc, ldc, xk + m * ldx, ldx, bk, ldb, cols, 1, 8);
        for (; m < rows; m++) @FN@_sums_tile(c + m * ldc, ldc, xk + m * ldx, ldx, bk, ldb, cols, 1, 1);
        k += whole ? 8 : 1;
    }
}
//== mla_cached
/* Absorbed attention over a cache of latents: q' = W_k^T q, scores of (q' | q_rope) with rows of the
 * cache, their weighted sum, W_v times that. W and the cache are read in place. Key tiles of 64 lie
 * on absolute positions, a tile a page, and every sum has one order, so that a token has the same bits wherever its
 * sequence is cut.
 * p: q, w [H*(N+V), ldw], cache of L+R columns, pages, past, o (position i of sequence b is row
 * pages[b*P + i/64] * 64 + i mod 64 of the cache).
 * n: T, P, row strides of q, w, o, tokens and heads of an item.
 * Items = B x head groups x tiles of tokens; rows of an item are the tokens of its first head, then of
 * the next. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    enum { H = ${H}, N = ${N}, R = ${R}, V = ${V}, L = ${L}, KB = 64 };
    enum { LR = L + R, QP = (LR + 15) / 16 * 16, LP = (L + 15) / 16 * 16 };
    const float scale = ${SCALE}f, lowest = -1e38f;
    const int64_t T = n[0], ldq = n[2], ldw = n[3], ldo = n[4], QB = n[5], HB = n[6];
    const int64_t tiles = div_up(T, QB), groups = div_up(H, HB);
    const int32_t *pages = p[3], *past = p[4];
    float *qc = scratch;            /* [QB*HB][QP]: q' | q_rope */
    float *acc = qc + QB * HB * QP; /* [QB*HB][LP]: sum of p c, relative to the row's maximum */
    float *s = acc + QB * HB * LP;  /* [QB*HB][64]: scores, then probabilities */
    float *sum = s + QB * HB * KB;  /* [QB*HB][16]: sum of p, by column mod 16 */
    float *top = sum + QB * HB * 16; /* [QB*HB]: maximum so far */
    for (int64_t it = lo; it < hi; it++) {
        const int64_t t0 = (tiles - 1 - it % tiles) * QB, h0 = it / tiles % groups * HB, b = it / tiles / groups;
        const int64_t tokens = min64(QB, T - t0), heads = min64(HB, H - h0), rows = heads * tokens;
        const int64_t q0 = past[b] + t0, end = q0 + tokens;
        const float *q = (const float *)p[0] + (b * T + t0) * ldq + h0 * (N + R);
        const float *w = (const float *)p[1] + h0 * (N + V) * ldw;
        float *o = (float *)p[5] + (b * T + t0) * ldo + h0 * V;
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t i = 0; i < QP; i += 16) st16(qc + r * QP + i, splat16(0.0f));
            for (int64_t i = 0; i < LP; i += 16) st16(acc + r * LP + i, splat16(0.0f));
            st16(sum + r * 16, splat16(0.0f));
            top[r] = lowest;
        }
        for (int64_t h = 0; h < heads; h++) {
            float *qh = qc + h * tokens * QP;
            const float *from = q + h * (N + R);
            @FN@_sums(qh, QP, from, ldq, w + h * (N + V) * ldw, ldw, L, tokens, N);
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t i = 0; i < R; i += 16)
                    st16k(qh + t * QP + L + i, ld16k(from + t * ldq + N + i, min64(16, R - i)),
                          min64(16, R - i));
        }
        for (int64_t k0 = 0; k0 < end; k0 += KB) {
            const int64_t keys = min64(KB, end - k0);
            const int32_t *page = pages + b * n[1] + k0 / KB;
            const float *cache = (const float *)p[2] + (int64_t)page[0] * KB * LR;
            const int64_t more = k0 + KB < end ? (page[1] - page[0]) * (int64_t)(KB * LR) : 0;
            @FN@_dots(s, KB, qc, QP, cache, LR, LR, rows, keys, more);
            for (int64_t r = 0; r < rows; r += TILE_MR) {
                const int64_t mr = min64(TILE_MR, rows - r);
                int64_t diag[TILE_MR];
                for (int64_t m = 0; m < mr; m++) diag[m] = q0 + (r + m) % tokens - k0;
                attn_softmax_at(s + r * KB, top + r, sum + r * 16, acc + r * LP, LP, scale, mr,
                                div_up(keys, 16), diag, 0);
            }
            @FN@_sums(acc, LP, s, KB, cache, LR, L, rows, keys);
        }
        for (int64_t r = 0; r < rows; r++) {
            const float part = 1.0f / hsum16(ld16(sum + r * 16));
            for (int64_t i = 0; i < LP; i += 16)
                st16(acc + r * LP + i, ld16(acc + r * LP + i) * part + 0.0f);
        }
        for (int64_t h = 0; h < heads; h++)
            @FN@_dots(o + h * V, ldo, acc + h * tokens * LP, LP, w + (h * (N + V) + N) * ldw, ldw, L,
                      tokens, V, 0);
    }
}
