/* Row work between the products of attention.c (needs prelude.c, tile.c). Columns are keys of one
 * tile; `diag` is the column of the first row's own key, each further row's is one more. */

/* -1 in the columns that a row may not see: after its own key, or `window` (if not 0) before it. */
INLINE v16i attn_hidden(int64_t col, int64_t diag, int64_t window) {
    v16i c = iota16() + (int32_t)col;
    v16i out = c > (int32_t)diag;
    if (window) out |= c <= (int32_t)(diag - window);
    return out;
}

/* 2^(x c - top) for arguments up to about 0; below 2^-126 the result is 0. Cephes' polynomial. */
INLINE v16 attn_exp2(v16 x, float c, float top) {
    const v16 magic = splat16(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    v16 t = fma16(x, splat16(c), splat16(-top));
    v16 n = t + magic;
    v16 f = t - (n - magic);
    v16 y = splat16(1.535336188319500e-4f);
    y = fma16(y, f, splat16(1.339887440266574e-3f));
    y = fma16(y, f, splat16(9.618437357674640e-3f));
    y = fma16(y, f, splat16(5.550332471162809e-2f));
    y = fma16(y, f, splat16(2.402264791363012e-1f));
    y = fma16(y, f, splat16(6.931472028550421e-1f));
    y = fma16(y, f, splat16(1.0f));
    y = (v16)((v16i)y + ((v16i)n << 23));
    return (v16)(~(t < -126.0f) & (v16i)y); /* a NaN stays */
}

/* One online-softmax step for mr rows of scores s[mr][64] / scale, 16 nv columns: top and sum advance,
 * acc (rows of vp floats) is rescaled, s becomes probabilities relative to the new top. Row m's own
 * key is column diag[m]. */
UNUSED static void attn_softmax_at(float *s, float *top, float *sum, float *acc, int64_t vp, float scale,
                                   int64_t mr, int64_t nv, const int64_t *diag, int64_t window) {
    const float log2e = 1.44269504088896341f;
    float was[16] = {0}, now[16] = {0}, factor[16];
    int64_t changed = 0;
    for (int64_t m = 0; m < mr; m++) {
        v16 best = splat16(-INFF);
        for (int64_t j = 0; j < nv; j++) {
            v16 x = ld16(s + m * 64 + 16 * j);
            if (16 * j + 15 > diag[m] || (window && 16 * j <= diag[m] - window)) {
                x = sel16(attn_hidden(16 * j, diag[m], window), splat16(-INFF), x);
                st16(s + m * 64 + 16 * j, x);
            }
            best = max16(x, best);
        }
        float most = hmax16(best) * scale;
        was[m] = top[m];
        now[m] = most > top[m] ? most : top[m];
        changed |= now[m] > was[m];
        top[m] = now[m];
    }
    if (changed) {
        st16(factor, exp16(ld16(was) - ld16(now)));
        for (int64_t m = 0; m < mr; m++) {
            st16(sum + 16 * m, ld16(sum + 16 * m) * factor[m]);
            for (int64_t d = 0; d < vp; d += 16) st16(acc + m * vp + d, ld16(acc + m * vp + d) * factor[m]);
        }
    }
    for (int64_t m = 0; m < mr; m++) {
        v16 total = ld16(sum + 16 * m);
        for (int64_t j = 0; j < nv; j++) {
            v16 e = attn_exp2(ld16(s + m * 64 + 16 * j), scale * log2e, now[m] * log2e);
            st16(s + m * 64 + 16 * j, e);
            total += e;
        }
        st16(sum + 16 * m, total);
    }
}

/* The same for rows one after the other. */
UNUSED static void attn_softmax(float *s, float *top, float *sum, float *acc, int64_t vp, float scale,
                                int64_t mr, int64_t nv, int64_t diag, int64_t window) {
    int64_t at[TILE_MR];
    for (int64_t m = 0; m < mr; m++) at[m] = diag + m;
    attn_softmax_at(s, top, sum, acc, vp, scale, mr, nv, at, window);
}

/* For one row: s = scores / scale -> probabilities, ds = do v -> scale p (do v - delta). */
UNUSED static void attn_dscore(float *s, float *ds, int64_t nv, float scale, float lse, float delta,
                               int64_t diag, int64_t window) {
    const float log2e = 1.44269504088896341f;
    for (int64_t j = 0; j < nv; j++) {
        v16 e = attn_exp2(ld16(s + 16 * j), scale * log2e, lse * log2e);
        v16 d = e * (ld16(ds + 16 * j) - delta) * scale;
        if (16 * j + 15 > diag || (window && 16 * j <= diag - window)) {
            v16i out = attn_hidden(16 * j, diag, window);
            e = (v16)(~out & (v16i)e);
            d = (v16)(~out & (v16i)d);
        }
        st16(s + 16 * j, e);
        st16(ds + 16 * j, d);
    }
}

INLINE float attn_dot(const float *a, const float *b, int64_t n) {
    v16 s = splat16(0.0f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) s = fma16(ld16(a + i), ld16(b + i), s);
    if (i < n) s = fma16(ld16k(a + i, n - i), ld16k(b + i, n - i), s);
    return hsum16(s);
}

/* c[key][ld] (+)= sum over rows of x[row][key] b[row][..]; b in panels of 64 rows. On the diagonal
 * tile a key starts at its own row: earlier rows do not see it. */
UNUSED static void attn_tokens(float *c, int64_t ld, const float *x, const float *b, int64_t keys,
                               int64_t rows, int64_t diagonal, int64_t add) {
    for (int64_t d = 0; d < ld; d += 64)
        for (int64_t m0 = 0; m0 < keys; m0 += TILE_MR) {
            const int64_t mr = min64(TILE_MR, keys - m0), r0 = diagonal ? m0 : 0;
            struct tile t = {.ks = 64, .b = b + d * 64 + r0 * 16, .bp = 64 * 16, .kn = rows - r0,
                             .c = c + m0 * ld + d, .ldc = ld, .cols = min64(64, ld - d), .load = add,
                             .prefetch = b};
            for (int64_t m = 0; m < mr; m++) t.a[m] = x + r0 * 64 + m0 + m;
            tile_run(&t, mr);
        }
}

/* One row of a rotary table: cosines, then sines, of position * theta^(-2i/hd). */
UNUSED static void rope_angles(float *row, int64_t position, int64_t hd, double theta) {
    for (int64_t i = 0; i < hd / 2; i++) {
        const double angle = (double)position * __builtin_pow(theta, -2.0 * (double)i / (double)hd);
        row[i] = (float)__builtin_cos(angle);
        row[hd / 2 + i] = (float)__builtin_sin(angle);
    }
}
