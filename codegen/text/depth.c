/* Mixes over depth. A row (token) at a time, so that after the first touch its source rows are in the
 * L1 cache: first all dot products with a source in one read, then softmax, then weighted sums.
 * Queries go in blocks of at most ${QB}; sums over columns and queries have one fixed order. */
//== dots
enum { @FN@_D = ${D}, @FN@_QB = ${QB} };
/* dot[i * ld] = a_i . v for i < q, and *square = v . v where wanted; `un` independent sums each. */
INLINE void @FN@_dots(const int q, const int un, const float *const *a, const float *v, float *dot,
                      int64_t ld, float *square) {
    v16 s[4][@FN@_QB], sq[4];
    for (int c = 0; c < un; c++) {
        sq[c] = splat16(0);
        for (int i = 0; i < q; i++) s[c][i] = splat16(0);
    }
    int64_t d = 0;
    for (; d + 16 * un <= @FN@_D; d += 16 * un) {
        for (int c = 0; c < un; c++) {
            v16 x = ld16(v + d + 16 * c);
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
    if (square) *square = hsum16(sq[0]);
    for (int i = 0; i < q; i++) dot[i * ld] = hsum16(s[0][i]);
}
//== depth_mix
/* s (n values, in memory up to a multiple of 16) becomes its softmax; returns the log-sum-exp. */
INLINE float @FN@_softmax(float *s, int64_t n) {
    v16 m = splat16(-INFF), z = splat16(0);
    for (int64_t j = 0; j < n; j += 16) {
        v16 x = sel16(iota16() < (int32_t)min64(n - j, 16), ld16(s + j), splat16(-INFF));
        st16(s + j, x);
        m = max16(m, x);
    }
    float top = hmax16(m);
    for (int64_t j = 0; j < n; j += 16) {
        v16 e = exp16(ld16(s + j) - top);
        st16(s + j, e);
        z += e;
    }
    float sum = hsum16(z), inv = 1.0f / sum;
    for (int64_t j = 0; j < n; j += 16) st16(s + j, ld16(s + j) * inv);
    return top + log1(sum);
}
/* out_i = sum_j w_ij v_j for one row and q queries; w of query i at w + i * ld. */
INLINE void @FN@_sum(const int q, const int un, const float *w, int64_t ld, void *const *v, int64_t n,
                     int64_t row, void *const *out) {
    v16 o[@FN@_QB][4];
    int64_t d = 0;
    for (; d + 16 * un <= @FN@_D; d += 16 * un) {
        for (int i = 0; i < q; i++)
            for (int c = 0; c < un; c++) o[i][c] = splat16(0);
        for (int64_t j = 0; j < n; j++) {
            const float *x = (const float *)v[j] + row * @FN@_D + d;
            for (int i = 0; i < q; i++)
                for (int c = 0; c < un; c++)
                    o[i][c] = fma16(splat16(w[i * ld + j]), ld16(x + 16 * c), o[i][c]);
        }
        for (int i = 0; i < q; i++)
            for (int c = 0; c < un; c++)
                st16((float *)out[i] + row * @FN@_D + d + 16 * c, o[i][c]);
    }
    for (; d < @FN@_D; d += 16) {
        int64_t k = min64(@FN@_D - d, 16);
        for (int i = 0; i < q; i++) o[i][0] = splat16(0);
        for (int64_t j = 0; j < n; j++) {
            v16 x = ld16k((const float *)v[j] + row * @FN@_D + d, k);
            for (int i = 0; i < q; i++) o[i][0] = fma16(splat16(w[i * ld + j]), x, o[i][0]);
        }
        for (int i = 0; i < q; i++) st16k((float *)out[i] + row * @FN@_D + d, o[i][0], k);
    }
}
/* One row and queries from..from+q-1. w: q rows of scratch. */
INLINE void @FN@_block(const int q, const int un, void *const *p, const int64_t *n, int64_t row,
                       int64_t from, float *w) {
    const int64_t count = n[1], all = n[2], ld = (count + 15) & ~(int64_t)15;
    void *const *u = p + from, *const *v = p + all, *const *o = v + count + from;
    float *s = (float *)p[2 * all + count] + row * all * count + from * count;
    float *r = (float *)p[2 * all + count + 1] + row * count;
    float *lse = (float *)p[2 * all + count + 2] + row * all + from;
    for (int64_t j = 0; j < count; j++) {
        float square;
        @FN@_dots(q, un, (const float *const *)u, (const float *)v[j] + row * @FN@_D, w + j, ld,
                  &square);
        r[j] = rsqrt1(square / (float)@FN@_D + ${EPS});
    }
    for (int i = 0; i < q; i++) {
        for (int64_t j = 0; j < count; j++) s[i * count + j] = w[i * ld + j] *= r[j];
        lse[i] = @FN@_softmax(w + i * ld, count);
    }
    @FN@_sum(q, un, w, ld, v, count, row, o);
}
/* p: queries (times gains), sources, mixes, logits [N,q*n], reciprocal rms [N,n], log-sum-exp [N,q].
 * n: rows, sources, queries.  Item = row. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    for (int64_t row = lo; row < hi; row++) {
        int64_t from = 0;
        for (; from + @FN@_QB <= n[2]; from += @FN@_QB)
            @FN@_block(@FN@_QB, @FN@_QB == 1 ? 4 : 2, p, n, row, from, scratch);
        if (@FN@_QB > 3 && n[2] - from == 3) @FN@_block(3, 2, p, n, row, from, scratch);
        if (@FN@_QB > 2 && n[2] - from == 2) @FN@_block(2, 2, p, n, row, from, scratch);
        if (@FN@_QB > 1 && n[2] - from == 1) @FN@_block(1, 2, p, n, row, from, scratch);
    }
}
//== depth_grad
/* What one row's queries (p_j = weight, ds_j = gradient of the logit) add to every source gradient,
 *   dv_j += sum_i p_ij dh_i + ds_ij r_j u_i,  and  c_j v_j  with  c_j = -sum_i ds_ij s_ij r_j^2 / D,
 * and to the query gradients, du_i += sum_j ds_ij r_j v_j. a = p_ij, b = ds_ij r_j: rows of ld. */
INLINE void @FN@_add(const int q, const int un, const float *a, const float *b, const float *c,
                     int64_t ld, const float *const *dh, const float *const *u, void *const *v,
                     void *const *acc, void *const *dv, const int64_t *have, int64_t n, int64_t row,
                     float *du) {
    v16 h[@FN@_QB][4], w[@FN@_QB][4], g[@FN@_QB][4], y[4];
    int64_t d = 0;
    for (; d + 16 * un <= @FN@_D; d += 16 * un) {
        for (int i = 0; i < q; i++)
            for (int k = 0; k < un; k++) {
                h[i][k] = ld16(dh[i] + d + 16 * k);
                w[i][k] = ld16(u[i] + d + 16 * k);
                g[i][k] = ld16(du + i * @FN@_D + d + 16 * k);
            }
        for (int64_t j = 0; j < n; j++) {
            const float *x = (const float *)v[j] + row * @FN@_D + d;
            const float *from = (const float *)acc[j] + row * @FN@_D + d;
            float *to = (float *)dv[j] + row * @FN@_D + d;
            for (int k = 0; k < un; k++) y[k] = splat16(c[j]) * ld16(x + 16 * k);
            if (have[j])
                for (int k = 0; k < un; k++) y[k] += ld16(from + 16 * k);
            for (int i = 0; i < q; i++)
                for (int k = 0; k < un; k++) {
                    y[k] = fma16(splat16(a[i * ld + j]), h[i][k], y[k]);
                    y[k] = fma16(splat16(b[i * ld + j]), w[i][k], y[k]);
                    g[i][k] = fma16(splat16(b[i * ld + j]), ld16(x + 16 * k), g[i][k]);
                }
            for (int k = 0; k < un; k++) st16(to + 16 * k, y[k]);
        }
        for (int i = 0; i < q; i++)
            for (int k = 0; k < un; k++) st16(du + i * @FN@_D + d + 16 * k, g[i][k]);
    }
    for (; d < @FN@_D; d += 16) {
        int64_t k = min64(@FN@_D - d, 16);
        for (int i = 0; i < q; i++) g[i][0] = ld16k(du + i * @FN@_D + d, k);
        for (int64_t j = 0; j < n; j++) {
            int64_t at = row * @FN@_D + d;
            v16 x = ld16k((const float *)v[j] + at, k);
            y[0] = splat16(c[j]) * x;
            if (have[j]) y[0] += ld16k((const float *)acc[j] + at, k);
            for (int i = 0; i < q; i++) {
                y[0] = fma16(splat16(a[i * ld + j]), ld16k(dh[i] + d, k), y[0]);
                y[0] = fma16(splat16(b[i * ld + j]), ld16k(u[i] + d, k), y[0]);
                g[i][0] = fma16(splat16(b[i * ld + j]), x, g[i][0]);
            }
            st16k((float *)dv[j] + at, y[0], k);
        }
        for (int i = 0; i < q; i++) st16k(du + i * @FN@_D + d, g[i][0], k);
    }
}
/* One row and queries from..from+q-1; later blocks of queries add to what the first has written. */
INLINE void @FN@_block(const int q, const int un, void *const *p, const int64_t *n, int64_t row,
                       int64_t from, float *scratch, float *du) {
    const int64_t count = n[1], all = n[2], ld = (count + 15) & ~(int64_t)15;
    void *const *u = p + 2 + from, *const *delta = u + 2 * all;
    void *const *lse = delta + all, *const *v = p + 2 + 4 * all, *const *dv = v + 2 * count;
    float *a = scratch, *b = a + q * ld, *c = b + q * ld;
    const float *s = (const float *)p[0] + row * all * count + from * count;
    const float *r = (const float *)p[1] + row * count, *dh[@FN@_QB];
    for (int i = 0; i < q; i++) dh[i] = (const float *)u[all + i] + row * @FN@_D;
    for (int64_t j = 0; j < count; j++)
        @FN@_dots(q, un, dh, (const float *)v[j] + row * @FN@_D, b + j, ld, 0);
    for (int64_t j = 0; j < count; j += 16) st16(c + j, splat16(0));
    for (int i = 0; i < q; i++) {
        float sum, l = ((const float *)lse[i])[row];
        if (${FROM_MIX}) /* the whole mix is there, delta = dh . h */
            @FN@_dots(1, un, dh + i, (const float *)delta[i] + row * @FN@_D, &sum, 0, 0);
        else
            sum = ((const float *)delta[i])[row];
        for (int64_t j = 0; j < count; j += 16) {
            int64_t k = min64(count - j, 16);
            v16 sj = ld16k(s + i * count + j, k), rj = ld16k(r + j, k);
            v16 pj = exp16(sj - l), t = pj * (ld16(b + i * ld + j) - sum) * rj;
            st16(a + i * ld + j, pj);
            st16(b + i * ld + j, t);
            st16(c + j, ld16(c + j) - t * sj * rj * (1.0f / (float)@FN@_D));
        }
    }
    const int64_t *have = from ? n + 3 + count : n + 3;
    @FN@_add(q, un, a, b, c, ld, dh, (const float *const *)u, v, from ? dv : v + count, dv, have,
             count, row, du + from * @FN@_D);
}
/* p: logits [N,q*n], reciprocal rms [N,n], queries (times gains), dh, ${FROM_MIX} ? mixes : dh . h,
 * log-sum-exps, sources, accumulators, source gradients (accumulator and gradient may be one),
 * partial sums of the query gradients [items, q, D].  n: rows, sources, queries, per source whether
 * it has an accumulator, then as many ones.  Item = ${ROWS} rows. */
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
