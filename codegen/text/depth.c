/* Mixes over depth. A row (token) or a few at a time, so that their sources are in the L1 cache
 * after the first touch: all dot products with a source in one read, softmax, weighted sums. What
 * comes next is prefetched, since reading many tensors at once defeats the hardware. Queries go
 * in blocks of at most four; sums over columns and queries have one fixed order. */
//== dots
enum { @FN@_D = ${D}, @FN@_QB = ${QB} };
/* Lane sums of the products a_i * v in sum[i * ld] for i < q, and of v * v in *square where wanted:
 * lane l has the columns l, l + 16 ... in `un` independent chains. Fetches what lies `ahead`. */
INLINE void @FN@_dots(const int q, const int un, const float *const *a, const float *v,
                      const int64_t ahead, v16 *sum, int64_t ld, v16 *square) {
    v16 s[4][@FN@_QB], sq[4];
    for (int c = 0; c < un; c++) {
        sq[c] = splat16(0);
        for (int i = 0; i < q; i++) s[c][i] = splat16(0);
    }
    int64_t d = 0;
    for (; d + 16 * un <= @FN@_D; d += 16 * un) {
        for (int c = 0; c < un; c++) {
            v16 x = ld16(v + d + 16 * c);
            if (ahead) __builtin_prefetch(v + d + 16 * c + ahead);
            if (square) sq[c] = fma16(x, x, sq[c]);
            for (int i = 0; i < q; i++) s[c][i] = fma16(ld16(a[i] + d + 16 * c), x, s[c][i]);
        }
    }
    for (; d < @FN@_D; d += 16) {
        int64_t k = min64(@FN@_D - d, 16);
        v16 x = ld16k(v + d, k);
        if (square) sq[0] = fma16(x, x, sq[0]);
        for (int i = 0; i < q; i++) s[0][i] = fma16(ld16k(a[i] + d, k), x, s[0][i]);
    }
    for (int c = 1; c < un; c++) {
        sq[0] += sq[c];
        for (int i = 0; i < q; i++) s[0][i] += s[c][i];
    }
    if (square) *square = sq[0];
    for (int i = 0; i < q; i++) sum[i * ld] = s[0][i];
}
#define @FN@_2(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
/* hsum16 of 16 vectors at once: lane l is the sum of t[l]. */
INLINE v16 @FN@_sums(const v16 *t) {
    v16 a[8], b[4], c[2];
    for (int k = 0; k < 8; k++)
        a[k] = @FN@_2(t[k], t[k + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               @FN@_2(t[k], t[k + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int k = 0; k < 4; k++)
        b[k] = @FN@_2(a[k], a[k + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               @FN@_2(a[k], a[k + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int k = 0; k < 2; k++)
        c[k] = @FN@_2(b[k], b[k + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               @FN@_2(b[k], b[k + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return @FN@_2(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           @FN@_2(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}
//== depth_mix
/* A tile is as many rows as fit in 16 lanes with the queries of a block and one lane for the mean
 * square of the row's source: row r has the lanes r * LANES .. r * LANES + QB. */
enum { @FN@_LANES = @FN@_QB + 1, @FN@_ROWS = ${ROWS} };
/* w[j], a lane per logit: what dots gave becomes the logits. Unused lanes hold anything. */
INLINE v16 @FN@_logit(v16 x, v16 *r) {
    v16 sq = __builtin_shufflevector(x, x, ${SQUARE_LANE}); /* each lane its row's */
    *r = rsqrt16(sq * (1.0f / (float)@FN@_D) + ${EPS});
    return x * *r;
}
/* The logits w[0..n-1] become their softmax lane by lane; returns the log-sum-exp. */
INLINE v16 @FN@_softmax(v16 *w, int64_t n) {
    v16 m = w[0], z = splat16(0);
    for (int64_t j = 1; j < n; j++) m = max16(m, w[j]);
    for (int64_t j = 0; j < n; j++) {
        w[j] = exp16(w[j] - m);
        z += w[j];
    }
    v16 inv = 1.0f / z;
    for (int64_t j = 0; j < n; j++) w[j] *= inv;
    return m + log16(z);
}
/* out_i = sum_j w_ij v_j for one row and q queries; w_ij is w[16 * j + i]. */
INLINE void @FN@_sum(const int q, const int un, const float *w, void *const *v, int64_t n,
                     int64_t row, void *const *out) {
    v16 o[@FN@_QB][8];
    int64_t d = 0;
    for (; d + 16 * un <= @FN@_D; d += 16 * un) {
        for (int i = 0; i < q; i++)
            for (int c = 0; c < un; c++) o[i][c] = splat16(0);
        for (int64_t j = 0; j < n; j++) {
            const float *x = (const float *)v[j] + row * @FN@_D + d;
            for (int c = 0; c < un; c++)
                for (int i = 0; i < q; i++)
                    o[i][c] = fma16(splat16(w[16 * j + i]), ld16(x + 16 * c), o[i][c]);
        }
        for (int i = 0; i < q; i++)
            for (int c = 0; c < un; c++) {
                float *to = (float *)out[i] + row * @FN@_D + d + 16 * c;
                if (q > 1) __builtin_prefetch(to + @FN@_ROWS * @FN@_D, 1);
                st16(to, o[i][c]);
            }
    }
    for (; d < @FN@_D; d += 16) {
        int64_t k = min64(@FN@_D - d, 16);
        for (int i = 0; i < q; i++) o[i][0] = splat16(0);
        for (int64_t j = 0; j < n; j++) {
            v16 x = ld16k((const float *)v[j] + row * @FN@_D + d, k);
            for (int i = 0; i < q; i++) o[i][0] = fma16(splat16(w[16 * j + i]), x, o[i][0]);
        }
        for (int i = 0; i < q; i++) st16k((float *)out[i] + row * @FN@_D + d, o[i][0], k);
    }
}
/* A tile and queries from..from+q-1. w: a vector per source. */
INLINE void @FN@_block(const int q, const int un, void *const *p, const int64_t *n, int64_t tile,
                       int64_t from, v16 *w) {
    const int64_t count = n[1], all = n[2];
    int64_t row[@FN@_ROWS]; /* the last tile does its last row again instead of rows beyond it */
    for (int i = 0; i < @FN@_ROWS; i++) row[i] = min64(tile * @FN@_ROWS + i, n[0] - 1);
    void *const *u = p + from, *const *v = p + all, *const *o = v + count + from;
    float *s = (float *)p[2 * all + count] + from * count, *r = (float *)p[2 * all + count + 1];
    float *lse = (float *)p[2 * all + count + 2] + from;
    v16 t[16], rj;
    for (int i = 0; i < 16; i++) t[i] = splat16(1);
    for (int64_t j = 0; j < count; j++) {
        for (int i = 0; i < @FN@_ROWS; i++)
            @FN@_dots(q, un, (const float *const *)u, (const float *)v[j] + row[i] * @FN@_D,
                      @FN@_ROWS * @FN@_D, t + i * @FN@_LANES, 1, t + i * @FN@_LANES + @FN@_QB);
        w[j] = @FN@_logit(@FN@_sums(t), &rj);
#pragma clang loop unroll(full)
        for (int i = 0; i < @FN@_ROWS; i++) {
            r[row[i] * count + j] = rj[i * @FN@_LANES];
#pragma clang loop unroll(full)
            for (int k = 0; k < q; k++)
                s[(row[i] * all + k) * count + j] = w[j][i * @FN@_LANES + k];
        }
    }
    t[0] = @FN@_softmax(w, count);
    for (int i = 0; i < @FN@_ROWS; i++) {
        for (int k = 0; k < q; k++) lse[row[i] * all + k] = t[0][i * @FN@_LANES + k];
        @FN@_sum(q, q == 1 ? 8 : 2, (const float *)w + i * @FN@_LANES, v, count, row[i], o);
    }
}
/* p: queries (times gains), sources, mixes, logits [N,q*n], reciprocal rms [N,n], log-sum-exp
 * [N,q].  n: rows, sources, queries.  Item = tile of rows. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    for (int64_t tile = lo; tile < hi; tile++) {
        int64_t from = 0;
        for (; from + @FN@_QB <= n[2]; from += @FN@_QB)
            @FN@_block(@FN@_QB, @FN@_QB == 1 ? 4 : 2, p, n, tile, from, scratch);
        if (@FN@_QB > 3 && n[2] - from == 3) @FN@_block(3, 2, p, n, tile, from, scratch);
        if (@FN@_QB > 2 && n[2] - from == 2) @FN@_block(2, 2, p, n, tile, from, scratch);
        if (@FN@_QB > 1 && n[2] - from == 1) @FN@_block(1, 2, p, n, tile, from, scratch);
    }
}
//== depth_grad
/* With p_ij the weight of source j in query i and ds_ij the gradient of its logit, one row adds
 *   dv_j += sum_i p_ij dh_i + ds_ij r_j u_i + c_j v_j,  c_j = -sum_i ds_ij s_ij r_j^2 / D,
 *   du_i += sum_j ds_ij r_j v_j.
 * Coefficients lie in groups of 16 sources, each with its c, then p_i and ds_i r of every query. */
INLINE void @FN@_add(const int q, const int un, const float *w, const float *const *dh,
                     const float *const *u, void *const *v, void *const *acc, void *const *dv,
                     const int64_t *have, int64_t n, int64_t row, float *du) {
    v16 h[@FN@_QB][4], e[@FN@_QB][4], g[@FN@_QB][4], x[4], y[4];
    int64_t d = 0;
    for (; d + 16 * un <= @FN@_D; d += 16 * un) {
        for (int i = 0; i < q; i++)
            for (int k = 0; k < un; k++) {
                h[i][k] = ld16(dh[i] + d + 16 * k);
                e[i][k] = ld16(u[i] + d + 16 * k);
                g[i][k] = ld16(du + i * @FN@_D + d + 16 * k);
                __builtin_prefetch(dh[i] + d + 16 * k + @FN@_D);
            }
        for (int64_t j = 0; j < n; j++) {
            const float *f = w + (j & -16) * (2 * q + 1) + (j & 15);
            int64_t at = row * @FN@_D + d;
            const float *from = (const float *)v[j] + at, *more = (const float *)acc[j] + at;
            float *to = (float *)dv[j] + at;
            for (int k = 0; k < un; k++) { /* and fetch the next row */
                __builtin_prefetch(from + 16 * k + @FN@_D);
                __builtin_prefetch(more + 16 * k + @FN@_D, 1);
                x[k] = ld16(from + 16 * k);
                y[k] = splat16(f[0]) * x[k];
            }
            if (have[j])
                for (int k = 0; k < un; k++) y[k] += ld16(more + 16 * k);
            for (int i = 0; i < q; i++)
                for (int k = 0; k < un; k++) {
                    y[k] = fma16(splat16(f[32 * i + 16]), h[i][k], y[k]);
                    y[k] = fma16(splat16(f[32 * i + 32]), e[i][k], y[k]);
                    g[i][k] = fma16(splat16(f[32 * i + 32]), x[k], g[i][k]);
                }
            for (int k = 0; k < un; k++) st16(to + 16 * k, y[k]);
        }
        for (int i = 0; i < q; i++)
            for (int k = 0; k < un; k++) st16(du + i * @FN@_D + d + 16 * k, g[i][k]);
    }
    for (; d < @FN@_D; d += 16) {
        int64_t k = min64(@FN@_D - d, 16), at = row * @FN@_D + d;
        for (int i = 0; i < q; i++) g[i][0] = ld16k(du + i * @FN@_D + d, k);
        for (int64_t j = 0; j < n; j++) {
            const float *f = w + (j & -16) * (2 * q + 1) + (j & 15);
            x[0] = ld16k((const float *)v[j] + at, k);
            y[0] = splat16(f[0]) * x[0];
            if (have[j]) y[0] += ld16k((const float *)acc[j] + at, k);
            for (int i = 0; i < q; i++) {
                y[0] = fma16(splat16(f[32 * i + 16]), ld16k(dh[i] + d, k), y[0]);
                y[0] = fma16(splat16(f[32 * i + 32]), ld16k(u[i] + d, k), y[0]);
                g[i][0] = fma16(splat16(f[32 * i + 32]), x[0], g[i][0]);
            }
            st16k((float *)dv[j] + at, y[0], k);
        }
        for (int i = 0; i < q; i++) st16k(du + i * @FN@_D + d, g[i][0], k);
    }
}
/* One row and queries from..from+q-1; later blocks of queries add to what the first has written. */
INLINE void @FN@_block(const int q, const int un, void *const *p, const int64_t *n, int64_t row,
                       int64_t from, v16 *sums, float *du) {
    const int64_t count = n[1], all = n[2], ld = (count + 15) & -16;
    const int64_t *ld_delta = n + 3 + 2 * count + from, *ld_lse = ld_delta + all;
    void *const *u = p + 2 + from, *const *delta = u + 2 * all;
    void *const *lse = delta + all, *const *v = p + 2 + 4 * all, *const *dv = v + 2 * count;
    float *w = (float *)(sums + q * ld);
    const float *s = (const float *)p[0] + row * all * count + from * count;
    const float *r = (const float *)p[1] + row * count, *dh[@FN@_QB];
    float sub[@FN@_QB], top[@FN@_QB];
    for (int i = 0; i < q; i++) {
        dh[i] = (const float *)u[all + i] + row * @FN@_D;
        top[i] = ((const float *)lse[i])[row * ld_lse[i]];
        if (${FROM_MIX}) { /* the whole mix is there, delta = dh . h */
            v16 lanes;
            @FN@_dots(1, un, dh + i, (const float *)delta[i] + row * @FN@_D, @FN@_D, &lanes, 0, 0);
            sub[i] = hsum16(lanes);
        } else {
            sub[i] = ((const float *)delta[i])[row * ld_delta[i]];
        }
    }
    for (int64_t j = 0; j < count; j++)
        @FN@_dots(q, un, dh, (const float *)v[j] + row * @FN@_D, 0, sums + j, ld, 0);
    for (int64_t j = 0; j < count; j += 16) {
        int64_t k = min64(count - j, 16);
        v16 rj = ld16k(r + j, k), c = splat16(0);
        float *f = w + j * (2 * q + 1);
        for (int i = 0; i < q; i++) {
            v16 sj = ld16k(s + i * count + j, k), pj = exp16(sj - top[i]);
            v16 t = pj * (@FN@_sums(sums + i * ld + j) - sub[i]) * rj;
            c -= t * sj * rj * (1.0f / (float)@FN@_D);
            st16(f + 32 * i + 16, pj);
            st16(f + 32 * i + 32, t);
        }
        st16(f, c);
    }
    const int64_t *have = from ? n + 3 + count : n + 3;
    @FN@_add(q, un, w, dh, (const float *const *)u, v, from ? dv : v + count, dv, have, count, row,
             du + from * @FN@_D);
}
/* p: logits [N,q*n], reciprocal rms [N,n], queries (times gains), dh, ${FROM_MIX} ? mixes : dh . h,
 * log-sum-exps, sources, accumulators, source gradients (accumulator and gradient may be one),
 * partial sums of the query gradients [items, q, D].  n: rows, sources, queries, per source whether
 * it has an accumulator, as many ones, row strides of the dh . h and of the log-sum-exps.
 * Item = ${ROWS} rows. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    for (int64_t item = lo; item < hi; item++) {
        float *du = (float *)p[2 + 4 * n[2] + 3 * n[1]] + item * n[2] * @FN@_D;
        __builtin_memset(du, 0, (uint64_t)(n[2] * @FN@_D) * sizeof(float));
        for (int64_t row = item * ${ROWS}; row < min64((item + 1) * ${ROWS}, n[0]); row++) {
            int64_t from = 0;
            for (; from + @FN@_QB <= n[2]; from += @FN@_QB)
                @FN@_block(@FN@_QB, @FN@_QB == 1 ? 4 : 2, p, n, row, from, scratch, du);
            if (@FN@_QB > 3 && n[2] - from == 3) @FN@_block(3, 2, p, n, row, from, scratch, du);
            if (@FN@_QB > 2 && n[2] - from == 2) @FN@_block(2, 2, p, n, row, from, scratch, du);
            if (@FN@_QB > 1 && n[2] - from == 1) @FN@_block(1, 2, p, n, row, from, scratch, du);
        }
    }
}
//== depth_grad_end
/* p: partial sums [items, q, D], then the q query gradients.  n: items, queries.  Item = query. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    for (int64_t q = lo; q < hi; q++)
        for (int64_t d = 0; d < ${D}; d += 16) {
            int64_t k = min64(${D} - d, 16);
            const float *x = (const float *)p[0] + q * ${D} + d;
            v16 s = ld16k(x, k);
            for (int64_t i = 1; i < n[0]; i++) s += ld16k(x + i * n[1] * ${D}, k);
            st16k((float *)p[1 + q] + d, s, k);
        }
}
