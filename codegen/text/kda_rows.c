/* One chunk of the delta rule with a decay per channel (needs prelude.c, tile.c). A chunk is 16
 * tokens: on a CPU the work per token grows with the chunk (16 is a vector's lanes and a register
 * tile's rows) and nothing is gained by longer ones.
 *
 * Numbers of a chunk are rows of 16 tokens, padded to whole vectors; a token that is not there has
 * k = q = v = beta = 0 and decay 1. All decays between two tokens are products of exp(g) of the
 * tokens between them: no sum of gates is ever formed, no exponent is positive, no product exceeds 1
 * and every one keeps its relative accuracy, whatever the gates are. */
enum { KDA_C = 16 };
#ifdef __AVX512F__
enum { KDA_WIDE = 2 }; /* panels of a register tile */
#else
enum { KDA_WIDE = 1 };
#endif

/* C[m][n] = start + sum over k of A(m,k) B[k][n], k ascending; rows and cols are multiples of 16, kn
 * of 4. */
struct kda_product {
    const float *a; /* element (m,k): a[m * am + k * ak] */
    int64_t am, ak;
    const float *b;
    int64_t ldb;
    float *c;
    int64_t ldc;
    const float *from;  /* start: from[m][n] decay[m], stride ldc; NULL: zero */
    const float *decay;
    int64_t rows, cols, kn;
};

INLINE void kda_tile(const struct kda_product *t, int64_t m0, int64_t n0, int mr, int nv) {
    v16 acc[16][KDA_WIDE];
    const float *a = t->a + m0 * t->am, *b = t->b + n0;
    const int64_t am = t->am, ak = t->ak, ldb = t->ldb, ldc = t->ldc, kn = t->kn;
#pragma clang loop unroll(full)
    for (int m = 0; m < mr; m++)
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++)
            acc[m][j] = t->from ? ld16(t->from + (m0 + m) * ldc + n0 + 16 * j) * t->decay[m0 + m]
                                : splat16(0.0f);
    for (int64_t k = 0; k < kn; k += 4) {
#pragma clang loop unroll(full)
        for (int u = 0; u < 4; u++) {
            v16 bv[KDA_WIDE];
#pragma clang loop unroll(full)
            for (int j = 0; j < nv; j++) bv[j] = ld16(b + 16 * j);
#pragma clang loop unroll(full)
            for (int m = 0; m < mr; m++) {
                v16 x = splat16(a[m * am]);
#pragma clang loop unroll(full)
                for (int j = 0; j < nv; j++) acc[m][j] = fma16(x, bv[j], acc[m][j]);
            }
            a += ak;
            b += ldb;
        }
    }
#pragma clang loop unroll(full)
    for (int m = 0; m < mr; m++)
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++) st16(t->c + (m0 + m) * ldc + n0 + 16 * j, acc[m][j]);
}

/* Columns outside, rows inside: B is read once, in blocks that stay near. */
UNUSED static void kda_multiply(const struct kda_product *t) {
    int64_t n = 0;
#if defined(__AVX512F__)
    for (; n + 32 <= t->cols; n += 32)
        for (int64_t m = 0; m < t->rows; m += 8) kda_tile(t, m, n, 8, 2);
    for (; n < t->cols; n += 16)
        for (int64_t m = 0; m < t->rows; m += 16) kda_tile(t, m, n, 16, 1);
#else
    for (; n < t->cols; n += 16)
        for (int64_t m = 0; m < t->rows; m += 4) kda_tile(t, m, n, 4, 1);
#endif
}

/* The same with rows outside: for few k, where C is what is large. */
UNUSED static void kda_update(const struct kda_product *t) {
#if defined(__AVX512F__)
    const int64_t pairs = t->cols / 32 * 32;
    for (int64_t m = 0; m < t->rows; m += 8)
        for (int64_t n = 0; n < pairs; n += 32) kda_tile(t, m, n, 8, 2);
    for (int64_t m = 0; m < t->rows && pairs < t->cols; m += 16) kda_tile(t, m, pairs, 16, 1);
#else
    for (int64_t m = 0; m < t->rows; m += 4)
        for (int64_t n = 0; n < t->cols; n += 16) kda_tile(t, m, n, 4, 1);
#endif
}

/* Lane i of the result = sum of the lanes of r[i]. */
INLINE v16 kda_sums(v16 r[16]) {
    v16 a[8], b[4], c[2];
#pragma clang loop unroll(full)
    for (int i = 0; i < 8; i++)
        a[i] = ZIP(r[i], r[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               ZIP(r[i], r[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; i++)
        b[i] = ZIP(a[i], a[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               ZIP(a[i], a[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
#pragma clang loop unroll(full)
    for (int i = 0; i < 2; i++)
        c[i] = ZIP(b[i], b[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               ZIP(b[i], b[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return ZIP(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           ZIP(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

/* dst[c][r] = src[r][c] for 16 rows r and `cols` columns, a multiple of 16. */
UNUSED static void kda_transpose(float *dst, int64_t ldd, const float *src, int64_t lds, int64_t cols) {
    for (int64_t c = 0; c < cols; c += 16) {
        v16 r[16];
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) r[i] = ld16(src + i * lds + c);
        transpose16(r);
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) st16(dst + (c + i) * ldd, r[i]);
    }
}

/* 16 rows of x, rows from n on zero and columns from `cols` on too. */
UNUSED static void kda_rows(float *dst, int64_t ldd, const float *x, int64_t ldx, int64_t n, int64_t cols,
                            float scale) {
    for (int64_t i = 0; i < KDA_C; i++)
        for (int64_t c = 0; c < ldd; c += 16)
            st16(dst + i * ldd + c,
                 i < n ? ld16k(x + i * ldx + c, min64(16, cols - c)) * scale : splat16(0.0f));
}

/* What the products of a chunk need of q, k and g: [16][kp] each. */
struct kda_keys {
    float *q, *k;    /* scale q, k */
    float *alpha;    /* exp(g) */
    float *kd, *qd;  /* k and q times the decay since the chunk's start, one behind the other */
    float *kg;       /* k times the decay up to the chunk's end */
    float *total;    /* [kp]: decay of the whole chunk */
};
enum { KDA_KEYS = 6 * KDA_C + 1 }; /* times kp floats */

INLINE struct kda_keys kda_keys_at(float *p, int64_t kp) {
    const int64_t one = KDA_C * kp;
    return (struct kda_keys){p, p + one, p + 2 * one, p + 3 * one, p + 4 * one, p + 5 * one, p + 6 * one};
}

UNUSED static void kda_load(const struct kda_keys *x, const float *q, int64_t ldq, const float *k, int64_t ldk,
                            const float *g, int64_t ldg, int64_t n, int64_t K, int64_t kp, float scale) {
    for (int64_t c = 0; c < kp; c += 16) {
        const int64_t w = min64(16, K - c);
        v16 run = splat16(1.0f);
        for (int64_t i = 0; i < KDA_C; i++) {
            const int64_t at = i * kp + c;
            v16 a = splat16(1.0f), kk = splat16(0.0f), qq = kk;
            if (i < n) {
                a = exp16(ld16k(g + i * ldg + c, w));
                kk = ld16k(k + i * ldk + c, w);
                qq = ld16k(q + i * ldq + c, w) * scale;
            }
            run = run * a;
            st16(x->alpha + at, a);
            st16(x->k + at, kk);
            st16(x->q + at, qq);
            st16(x->kd + at, kk * run);
            st16(x->qd + at, qq * run);
        }
        st16(x->total + c, run);
        run = splat16(1.0f);
        for (int64_t i = KDA_C - 1; i >= 0; i--) {
            const int64_t at = i * kp + c;
            st16(x->kg + at, ld16(x->k + at) * run);
            run = run * ld16(x->alpha + at);
        }
    }
}

/* Column j of l and a, see kda_pairs. */
INLINE void kda_pair_column(const struct kda_keys *x, int64_t kp, int j, float *l, float *a) {
    v16 lacc[16], aacc[16];
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; i++) lacc[i] = aacc[i] = splat16(0.0f);
    for (int64_t c = 0; c < kp; c += 16) {
        v16 m = ld16(x->k + j * kp + c);
        const float *alpha = x->alpha + c, *k = x->k + c, *q = x->q + c;
#pragma clang loop unroll(full)
        for (int i = j + 1; i < 16; i++) {
            m = m * ld16(alpha + i * kp);
            lacc[i] = fma16(ld16(k + i * kp), m, lacc[i]);
            aacc[i] = fma16(ld16(q + i * kp), m, aacc[i]);
        }
    }
    st16(l + 16 * j, kda_sums(lacc));
    st16(a + 16 * j, kda_sums(aacc));
}

/* For tokens j < i: l[j][i] = k_i . (k_j decayed from j to i), a[j][i] = q_i . likewise, and
 * a[i][i] = q_i . k_i; zero below the diagonal. */
UNUSED static void kda_pairs(const struct kda_keys *x, int64_t kp, float *l, float *a) {
    v16 own[16];
#pragma clang loop unroll(full)
    for (int i = 0; i < 16; i++) own[i] = splat16(0.0f);
    for (int64_t c = 0; c < kp; c += 16)
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++)
            own[i] = fma16(ld16(x->q + i * kp + c), ld16(x->k + i * kp + c), own[i]);
#define KDA_COLUMN(j) kda_pair_column(x, kp, j, l, a);
    KDA_COLUMN(0) KDA_COLUMN(1) KDA_COLUMN(2) KDA_COLUMN(3) KDA_COLUMN(4) KDA_COLUMN(5) KDA_COLUMN(6)
    KDA_COLUMN(7) KDA_COLUMN(8) KDA_COLUMN(9) KDA_COLUMN(10) KDA_COLUMN(11) KDA_COLUMN(12)
    KDA_COLUMN(13) KDA_COLUMN(14) KDA_COLUMN(15)
    float diagonal[16];
    st16(diagonal, kda_sums(own));
    for (int i = 0; i < 16; i++) a[17 * i] = diagonal[i];
}

/* The errors z_i = v_i - kd_i S - sum over j < i of l[j][i] beta_j z_j, and of y = qd S + a^T (beta z)
 * the output rows. In: s [32][vp] = kd S, then qd S. Out: z [16][vp], u = beta z, o (n rows). */
UNUSED static void kda_errors(const float *s, const float *v, int64_t ldv, const float *beta, const float *l,
                              const float *a, float *z, float *u, float *o, int64_t ldo, int64_t n, int64_t V,
                              int64_t vp) {
    for (int64_t c = 0; c < vp; c += 16) {
        const int64_t w = min64(16, V - c);
        v16 x[16];
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++)
            x[i] = (i < n ? ld16k(v + i * ldv + c, w) : splat16(0.0f)) - ld16(s + i * vp + c);
#pragma clang loop unroll(full)
        for (int j = 0; j < 16; j++) {
            st16(z + j * vp + c, x[j]);
            x[j] = x[j] * beta[j];
            st16(u + j * vp + c, x[j]);
            const v16 minus = -x[j];
#pragma clang loop unroll(full)
            for (int i = j + 1; i < 16; i++) x[i] = fma16(splat16(l[16 * j + i]), minus, x[i]);
        }
        if (!o) continue;
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) {
            v16 y = ld16(s + (16 + i) * vp + c);
#pragma clang loop unroll(full)
            for (int j = 0; j <= i; j++) y = fma16(splat16(a[16 * j + i]), x[j], y);
            if (i < n) st16k(o + i * ldo + c, y, w);
        }
    }
}

/* Where the rows of one head are. */
struct kda_rows_of {
    const float *q, *k, *v, *g, *beta; /* of the head's first channel, token 0 of the sequence */
    int64_t ldq, ldk, ldv, ldg, ldb;
    int64_t K, V, kp, vp;
    float scale;
};

INLINE void kda_betas(float *beta, const struct kda_rows_of *x, int64_t t0, int64_t n) {
    for (int64_t i = 0; i < KDA_C; i++) beta[i] = i < n ? x->beta[(t0 + i) * x->ldb] : 0.0f;
}

/* Tokens t0 .. t0 + n - 1 of a head from the state `from` to `to` (which may be the same, or NULL);
 * o may be NULL. z, l and a are kept for the backward pass. */
UNUSED static void kda_chunk(const struct kda_rows_of *x, int64_t t0, int64_t n, const float *from, float *to,
                             float *o, int64_t ldo, float *z, float *l, float *a, float *work) {
    const int64_t kp = x->kp, vp = x->vp;
    const struct kda_keys keys = kda_keys_at(work, kp);
    float *s = work + KDA_KEYS * kp, *u = s + 2 * KDA_C * vp, beta[16];
    kda_load(&keys, x->q + t0 * x->ldq, x->ldq, x->k + t0 * x->ldk, x->ldk, x->g + t0 * x->ldg, x->ldg, n,
             x->K, kp, x->scale);
    kda_betas(beta, x, t0, n);
    kda_pairs(&keys, kp, l, a);
    kda_multiply(&(struct kda_product){.a = keys.kd, .am = kp, .ak = 1, .b = from, .ldb = vp, .c = s,
                                       .ldc = vp, .rows = o ? 32 : 16, .cols = vp, .kn = kp});
    kda_errors(s, x->v + t0 * x->ldv, x->ldv, beta, l, a, z, u, o, ldo, n, x->V, vp);
    if (to)
        kda_update(&(struct kda_product){.a = keys.kg, .am = 1, .ak = kp, .b = u, .ldb = vp, .c = to,
                                         .ldc = vp, .from = from, .decay = keys.total, .rows = kp,
                                         .cols = vp, .kn = KDA_C});
}
/* Floats of `work` of kda_chunk. */
#define KDA_WORK(kp, vp) (KDA_KEYS * (kp) + 3 * KDA_C * (vp))

UNUSED static void kda_clear(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) st16(x + i, splat16(0.0f));
}

/* Gradients within a chunk of l and a, all [16][kp]: dq, dk (as row and as column operand) and dg.
 * da, dl are [i][j], j <= i and j < i; what the diagonal of da gives q and k is left to the caller.
 * dg of token i sums pairs of a token before it with one from it on, each a value before i times its
 * gradient behind i: it is as small as the decay between them, which differences of row and column
 * sums would not be. */
UNUSED static void kda_pairs_grad(const struct kda_keys *x, int64_t kp, const float *dl, const float *da,
                                  float *dq, float *dk, float *dg) {
    for (int64_t c = 0; c < kp; c += 16) {
        v16 m[16], before[120]; /* k_j decayed up to token i - 1, at i (i - 1) / 2 + j */
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) {
            const v16 alpha = ld16(x->alpha + i * kp + c);
            v16 y = splat16(0.0f), r = y;
#pragma clang loop unroll(full)
            for (int j = 0; j < i; j++) {
                before[i * (i - 1) / 2 + j] = m[j];
                m[j] = m[j] * alpha;
                y = fma16(splat16(da[16 * i + j]), m[j], y);
                r = fma16(splat16(dl[16 * i + j]), m[j], r);
            }
            m[i] = ld16(x->k + i * kp + c);
            st16(dq + i * kp + c, y);
            st16(dk + i * kp + c, r);
        }
#pragma clang loop unroll(full)
        for (int j = 0; j < 16; j++) m[j] = splat16(0.0f);
#pragma clang loop unroll(full)
        for (int i = 15; i >= 0; i--) {
            const v16 alpha = ld16(x->alpha + i * kp + c), k = ld16(x->k + i * kp + c),
                      q = ld16(x->q + i * kp + c);
            v16 sum = splat16(0.0f);
            st16(dk + i * kp + c, ld16(dk + i * kp + c) + m[i]);
#pragma clang loop unroll(full)
            for (int j = 0; j < i; j++) {
                m[j] = fma16(splat16(dl[16 * i + j]), k, fma16(splat16(da[16 * i + j]), q, m[j])) * alpha;
                sum = fma16(before[i * (i - 1) / 2 + j], m[j], sum);
            }
            st16(dg + i * kp + c, sum);
        }
    }
}

/* Gradients of the errors. In: d = kg dS1 [16][vp]; by, dout = the two halves of `bd` [32][vp], where
 * dout is filled. Solves (I + L)^T y = d + a dout; out: bd's first half = -beta y, dv = beta y (n
 * rows), dbeta[i] = y_i . z_i. */
UNUSED static void kda_errors_grad(const float *d, float *bd, const float *z, const float *beta, const float *l,
                                   const float *a, float *dv, int64_t ldv, float *dbeta, int64_t n, int64_t V,
                                   int64_t vp) {
    v16 sum[16];
    for (int i = 0; i < 16; i++) sum[i] = splat16(0.0f);
    for (int64_t c = 0; c < vp; c += 16) {
        const int64_t w = min64(16, V - c);
        v16 x[16];
#pragma clang loop unroll(full)
        for (int j = 0; j < 16; j++) x[j] = ld16(d + j * vp + c);
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) {
            const v16 g = ld16(bd + (16 + i) * vp + c);
#pragma clang loop unroll(full)
            for (int j = 0; j <= i; j++) x[j] = fma16(splat16(a[16 * j + i]), g, x[j]);
        }
#pragma clang loop unroll(full)
        for (int i = 15; i >= 0; i--) {
            sum[i] = fma16(x[i], ld16(z + i * vp + c), sum[i]);
            const v16 y = x[i] * beta[i], minus = -y;
            if (i < n) st16k(dv + i * ldv + c, y, w);
            st16(bd + i * vp + c, minus);
#pragma clang loop unroll(full)
            for (int j = 0; j < i; j++) x[j] = fma16(splat16(l[16 * j + i]), minus, x[j]);
        }
    }
    st16(dbeta, kda_sums(sum));
}

/* Where the gradients of one head go. */
struct kda_grads_of {
    float *dq, *dk, *dv, *dg, *dbeta;
    int64_t ldq, ldk, ldv, ldg, ldb;
};

/* Brings together the gradients of q, k and g of a chunk. flat: parts through the state, [32][kp]
 * d(kd), d(qd); dkg [16][kp]; dq, dk, dpair (of g) of kda_pairs_grad; da for its diagonal; carry[k] =
 * the chunk's decay times sum over v of S0 dS1. */
UNUSED static void kda_finish(const struct kda_keys *x, const struct kda_rows_of *in,
                              const struct kda_grads_of *to, int64_t t0, int64_t n, const float *flat,
                              const float *dkg, const float *dq, const float *dk, const float *dpair,
                              const float *da, const float *carry) {
    const int64_t kp = in->kp;
    for (int64_t c = 0; c < kp; c += 16) {
        const int64_t w = min64(16, in->K - c);
        v16 dg[16], run = splat16(1.0f), part[16], later = splat16(0.0f);
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) {
            const int64_t at = i * kp + c;
            const v16 k = ld16(x->k + at), q = ld16(x->q + at), own = splat16(da[17 * i]);
            run = run * ld16(x->alpha + at);
            const v16 dks = ld16(flat + at) * run, dqs = ld16(flat + KDA_C * kp + at) * run;
            dg[i] = k * dks + q * dqs;
            part[i] = dks + (ld16(dk + at) + own * q);
            if (i < n)
                st16k(to->dq + (t0 + i) * to->ldq + c, (dqs + (ld16(dq + at) + own * k)) * in->scale, w);
        }
        run = splat16(1.0f);
#pragma clang loop unroll(full)
        for (int i = 15; i >= 0; i--) {
            const int64_t at = i * kp + c;
            const v16 up = ld16(dkg + at) * run;
            run = run * ld16(x->alpha + at);
            if (i < n) st16k(to->dk + (t0 + i) * to->ldk + c, part[i] + up, w);
            later = later + dg[i];
            dg[i] = later + ld16(dpair + at);
            part[i] = up * ld16(x->k + at);
        }
        v16 before = ld16(carry + c);
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) {
            if (i < n) st16k(to->dg + (t0 + i) * to->ldg + c, dg[i] + before, w);
            before = before + part[i];
        }
    }
}

/* carry[k] = total[k] sum over v of s[k][v] d[k][v]. */
UNUSED static void kda_carry(float *carry, const float *total, const float *s, const float *d, int64_t kp,
                             int64_t vp) {
    for (int64_t k = 0; k < kp; k += 16) {
        v16 sum[16];
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++) sum[i] = splat16(0.0f);
        for (int64_t c = 0; c < vp; c += 16)
#pragma clang loop unroll(full)
            for (int i = 0; i < 16; i++)
                sum[i] = fma16(ld16(s + (k + i) * vp + c), ld16(d + (k + i) * vp + c), sum[i]);
        st16(carry + k, kda_sums(sum) * ld16(total + k));
    }
}

/* The gradients of a chunk. state = before the chunk; ds [kp][vp] = gradient of the state after it,
 * replaced by that before it; z, l, a as kda_chunk left them. */
UNUSED static void kda_chunk_grad(const struct kda_rows_of *x, const struct kda_grads_of *to, const float *dout,
                                  int64_t lddo, int64_t t0, int64_t n, const float *state, const float *z,
                                  const float *l, const float *a, float *ds, float *work) {
    const int64_t kp = x->kp, vp = x->vp, kc = KDA_C * kp, vc = KDA_C * vp;
    const struct kda_keys keys = kda_keys_at(work, kp);
    float *bd = work + KDA_KEYS * kp;    /* [32][vp]: -beta y, do */
    float *d = bd + 2 * vc;              /* [16][vp] */
    float *ut = d + vc, *bdt = ut + vc;  /* [vp][16], [vp][32] */
    float *pt = bdt + 2 * vc;            /* [kp][32], then [kp][16] */
    float *flat = pt + 3 * kc, *dkg = flat + 2 * kc, *dq = dkg + kc, *dk = dq + kc, *dpair = dk + kc;
    float *dla = dpair + kc, *carry = dla + 2 * 256, beta[16], dbeta[16];
    kda_load(&keys, x->q + t0 * x->ldq, x->ldq, x->k + t0 * x->ldk, x->ldk, x->g + t0 * x->ldg, x->ldg, n,
             x->K, kp, x->scale);
    kda_betas(beta, x, t0, n);
    kda_rows(bd + vc, vp, dout + t0 * lddo, lddo, n, x->V, 1.0f);
    kda_multiply(&(struct kda_product){.a = keys.kg, .am = kp, .ak = 1, .b = ds, .ldb = vp, .c = d,
                                       .ldc = vp, .rows = 16, .cols = vp, .kn = kp});
    kda_errors_grad(d, bd, z, beta, l, a, to->dv + t0 * to->ldv, to->ldv, dbeta, n, x->V, vp);
    for (int64_t i = 0; i < n; i++) to->dbeta[(t0 + i) * to->ldb] = dbeta[i];
    for (int64_t i = 0; i < KDA_C; i++)
        for (int64_t c = 0; c < vp; c += 16) st16(d + i * vp + c, ld16(z + i * vp + c) * beta[i]);
    kda_transpose(ut, 16, d, vp, vp);
    kda_transpose(bdt, 32, bd, vp, vp);
    kda_transpose(bdt + 16, 32, bd + vc, vp, vp);
    kda_multiply(&(struct kda_product){.a = bd, .am = vp, .ak = 1, .b = ut, .ldb = 16, .c = dla, .ldc = 16,
                                       .rows = 32, .cols = 16, .kn = vp});
    kda_pairs_grad(&keys, kp, dla, dla + 256, dq, dk, dpair);
    kda_multiply(&(struct kda_product){.a = state, .am = vp, .ak = 1, .b = bdt, .ldb = 32, .c = pt, .ldc = 32,
                                       .rows = kp, .cols = 32, .kn = vp});
    kda_multiply(&(struct kda_product){.a = ds, .am = vp, .ak = 1, .b = ut, .ldb = 16, .c = pt + 2 * kc,
                                       .ldc = 16, .rows = kp, .cols = 16, .kn = vp});
    for (int64_t k = 0; k < kp; k += 16) {
        kda_transpose(flat + k, kp, pt + k * 32, 32, 16);
        kda_transpose(flat + kc + k, kp, pt + k * 32 + 16, 32, 16);
        kda_transpose(dkg + k, kp, pt + 2 * kc + k * 16, 16, 16);
    }
    kda_carry(carry, keys.total, state, ds, kp, vp);
    kda_finish(&keys, x, to, t0, n, flat, dkg, dq, dk, dpair, dla + 256, carry);
    kda_update(&(struct kda_product){.a = keys.kd, .am = 1, .ak = kp, .b = bd, .ldb = vp, .c = ds, .ldc = vp,
                                     .from = ds, .decay = keys.total, .rows = kp, .cols = vp,
                                     .kn = 2 * KDA_C});
}
#define KDA_GRAD_WORK(kp, vp) ((KDA_KEYS + 9 * KDA_C + 1) * (kp) + 6 * KDA_C * (vp) + 512)

/* Columns c .. of the one token of kda_one. */
INLINE void kda_one_columns(const float *keys, const float *v, float beta, float own, float *state, float *o,
                            int64_t K, int64_t V, int64_t c, int64_t fresh, int nv, int64_t tail) {
    v16 s[8], y[8];
    const float *alpha = keys, *k = keys + K, *kd = k + K, *qd = kd + K;
#pragma clang loop unroll(full)
    for (int j = 0; j < nv; j++) s[j] = y[j] = splat16(0.0f);
    for (int64_t i = 0; i < K && !fresh; i++)
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++) {
            const v16 x = ld16k(state + i * V + c + 16 * j, j + 1 < nv ? 16 : tail);
            s[j] = fma16(splat16(kd[i]), x, s[j]);
            y[j] = fma16(splat16(qd[i]), x, y[j]);
        }
#pragma clang loop unroll(full)
    for (int j = 0; j < nv; j++) {
        const int64_t w = j + 1 < nv ? 16 : tail;
        s[j] = (ld16k(v + c + 16 * j, w) - s[j]) * beta;
        st16k(o + c + 16 * j, fma16(splat16(own), s[j], y[j]), w);
    }
    for (int64_t i = 0; i < K; i++)
#pragma clang loop unroll(full)
        for (int j = 0; j < nv; j++) {
            const int64_t w = j + 1 < nv ? 16 : tail;
            const v16 x = fresh ? splat16(0.0f) : ld16k(state + i * V + c + 16 * j, w);
            st16k(state + i * V + c + 16 * j, fma16(splat16(k[i]), s[j], x * alpha[i]), w);
        }
}

/* One token of a head on its state [K,V] in place (zero where `fresh`), row t of x: the bits of a chunk
 * that begins with it. work: 4 K floats and 64. */
UNUSED static void kda_one(const struct kda_rows_of *x, int64_t t, float *state, int64_t fresh, float *o,
                           float *work) {
    const int64_t K = x->K, V = x->V;
    float *alpha = work, *k = alpha + K, *kd = k + K, *qd = kd + K;
    const float *v = x->v + t * x->ldv, beta = x->beta[t * x->ldb];
    v16 sum = splat16(0.0f);
    for (int64_t c = 0; c < K; c += 16) {
        const int64_t w = min64(16, K - c);
        const v16 a = exp16(ld16k(x->g + t * x->ldg + c, w)), kk = ld16k(x->k + t * x->ldk + c, w);
        const v16 qq = ld16k(x->q + t * x->ldq + c, w) * x->scale;
        sum = fma16(qq, kk, sum);
        st16k(alpha + c, a, w);
        st16k(k + c, kk, w);
        st16k(kd + c, kk * a, w);
        st16k(qd + c, qq * a, w);
    }
    const float own = hsum16(sum);
    int64_t c = 0;
    for (; c + 128 <= V; c += 128) kda_one_columns(work, v, beta, own, state, o, K, V, c, fresh, 8, 16);
    for (; c + 32 <= V; c += 32) kda_one_columns(work, v, beta, own, state, o, K, V, c, fresh, 2, 16);
    for (; c < V; c += 16)
        kda_one_columns(work, v, beta, own, state, o, K, V, c, fresh, 1, min64(16, V - c));
}
