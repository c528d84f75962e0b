/* Kernels of the mixture of experts. Assignment a = token * k + slot; rows sorted by expert. */
//== scores
enum { @FN@_E = ${E}, @FN@_K = ${K}, @FN@_TAIL = @FN@_E % 16, @FN@_FULL = @FN@_E - @FN@_TAIL };
/* Scores of one row of logits, in memory up to a multiple of 16 (what is beyond E is 0). */
INLINE void @FN@_scores(const float *x, float *s) {
    if (!${SOFTMAX}) {
        for (int64_t e = 0; e < @FN@_FULL; e += 16) st16(s + e, sigmoid16(ld16(x + e)));
        if (@FN@_TAIL) {
            v16 y = sigmoid16(ld16k(x + @FN@_FULL, @FN@_TAIL));
            st16(s + @FN@_FULL, sel16(iota16() < @FN@_TAIL, y, splat16(0)));
        }
        return;
    }
    v16 m = splat16(-INFF), z = splat16(0), last = m;
    if (@FN@_TAIL)
        m = last = sel16(iota16() < @FN@_TAIL, ld16k(x + @FN@_FULL, @FN@_TAIL), splat16(-INFF));
    for (int64_t e = 0; e < @FN@_FULL; e += 16) m = max16(m, ld16(x + e));
    float top = hmax16(m);
    for (int64_t e = 0; e < @FN@_E; e += 16) {
        v16 y = exp16((e < @FN@_FULL ? ld16(x + e) : last) - top);
        st16(s + e, y);
        z += y;
    }
    float inv = 1.0f / hsum16(z);
    for (int64_t e = 0; e < @FN@_E; e += 16) st16(s + e, ld16(s + e) * inv);
}
//== moe_route
/* p: logits, bias, ids, weights.  n: row stride of logits.  Item = token. The largest of score +
 * bias, falling, ties to the lower index; not-a-number comes last, so ids are always valid. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    float *s = scratch, choice[16], best[@FN@_K];
    const float *bias = p[1];
    for (int64_t t = lo; t < hi; t++) {
        int32_t *id = (int32_t *)p[2] + t * @FN@_K;
        float *w = (float *)p[3] + t * @FN@_K, sum = 0;
        int64_t have = 0;
        @FN@_scores((const float *)p[0] + t * n[0], s);
        for (int64_t e = 0; e < @FN@_E; e += 16) {
            int64_t lanes = min64(@FN@_E - e, 16);
            v16 x = ld16(s + e) + ld16k(bias + e, lanes);
            x = sel16(iota16() < (int32_t)lanes, x, splat16(-INFF));
            if (have == @FN@_K && !(hmax16(x) > best[@FN@_K - 1])) continue;
            st16(choice, x);
            for (int64_t i = 0; i < lanes; i++) {
                if (have == @FN@_K && !(choice[i] > best[@FN@_K - 1])) continue;
                int64_t at = have < @FN@_K ? have++ : @FN@_K - 1;
                for (; at > 0 && choice[i] > best[at - 1]; at--) {
                    best[at] = best[at - 1];
                    id[at] = id[at - 1];
                }
                best[at] = choice[i];
                id[at] = (int32_t)(e + i);
            }
        }
        for (int64_t i = 0; i < @FN@_K; i++) sum += s[id[i]];
        for (int64_t i = 0; i < @FN@_K; i++)
            w[i] = ${RENORMALIZE} ? s[id[i]] / (sum + 1e-20f) * ${SCALE} : s[id[i]] * ${SCALE};
    }
}
//== moe_weights
/* p: logits, ids, weights.  n: row stride of logits.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    float *s = scratch;
    for (int64_t t = lo; t < hi; t++) {
        const int32_t *id = (const int32_t *)p[1] + t * @FN@_K;
        float *w = (float *)p[2] + t * @FN@_K, sum = 0;
        @FN@_scores((const float *)p[0] + t * n[0], s);
        for (int64_t i = 0; i < @FN@_K; i++) sum += s[id[i]];
        for (int64_t i = 0; i < @FN@_K; i++)
            w[i] = ${RENORMALIZE} ? s[id[i]] / (sum + 1e-20f) * ${SCALE} : s[id[i]] * ${SCALE};
    }
}
//== moe_route_grad
/* p: logits, ids, dw, dlogits.  n: row stride of logits, of dw.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    float *s = scratch, ds[@FN@_K];
    for (int64_t t = lo; t < hi; t++) {
        const int32_t *id = (const int32_t *)p[1] + t * @FN@_K;
        const float *dw = (const float *)p[2] + t * n[1];
        float *dx = (float *)p[3] + t * @FN@_E, sum = 1e-20f, back = 0, mean = 0;
        @FN@_scores((const float *)p[0] + t * n[0], s);
        for (int64_t i = 0; i < @FN@_K; i++) sum += s[id[i]];
        /* this order leaves exactly 0 below where the one chosen has all the weight */
        for (int64_t i = 0; i < @FN@_K; i++) back += dw[i] * (s[id[i]] / sum);
        for (int64_t i = 0; i < @FN@_K; i++)
            ds[i] = ${SCALE} * (${RENORMALIZE} ? (dw[i] - back) / sum : dw[i]);
        if (${SOFTMAX})
            for (int64_t i = 0; i < @FN@_K; i++) mean += ds[i] * s[id[i]];
        for (int64_t e = 0; e < @FN@_FULL; e += 16) st16(dx + e, ld16(s + e) * -mean);
        if (@FN@_TAIL) st16k(dx + @FN@_FULL, ld16(s + @FN@_FULL) * -mean, @FN@_TAIL);
        for (int64_t i = 0; i < @FN@_K; i++) {
            float x = s[id[i]];
            dx[id[i]] = ${SOFTMAX} ? x * (ds[i] - mean) : ds[i] * x * (1 - x);
        }
    }
}
//== moe_sort
/* p: ids, offsets, order, place.  n: assignments, experts.  One item; scratch: cursors. */
void @FN@(void *const *p, const int64_t *n, int64_t lo UNUSED, int64_t hi UNUSED, void *scratch) {
    const int32_t *ids = p[0];
    int32_t *offset = p[1], *order = p[2], *place = p[3], *next = scratch;
    for (int64_t e = 0; e < n[1]; e++) next[e] = 0;
    for (int64_t a = 0; a < n[0]; a++) next[ids[a]]++;
    int32_t sum = 0;
    for (int64_t e = 0; e < n[1]; e++) {
        int32_t count = next[e];
        offset[e] = next[e] = sum;
        sum += count;
    }
    offset[n[1]] = sum;
    for (int64_t a = 0; a < n[0]; a++) {
        int32_t at = next[ids[a]]++;
        order[at] = (int32_t)a;
        place[a] = at;
    }
}
//== moe_gather
/* p: x, order, out.  n: row stride of x.  Item = sorted row. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const int32_t *order = p[1];
    for (int64_t r = lo; r < hi; r++) {
        const float *from = (const float *)p[0] + order[r] / ${K} * n[0];
        float *to = (float *)p[2] + r * ${D};
        int64_t d = 0;
        for (; d + 16 <= ${D}; d += 16) st16(to + d, ld16(from + d));
        if (d < ${D}) st16k(to + d, ld16k(from + d, ${D} - d), ${D} - d);
    }
}
//== moe_gather_grad
/* p: dy, place, out.  n: row stride of dy.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    for (int64_t t = lo; t < hi; t++) {
        const int32_t *place = (const int32_t *)p[1] + t * ${K};
        for (int64_t d = 0; d < ${D}; d += 16) {
            int64_t k = min64(${D} - d, 16);
            const float *y = (const float *)p[0] + d;
            v16 s = ld16k(y + place[0] * n[0], k);
            for (int64_t i = 1; i < ${K}; i++) s += ld16k(y + place[i] * n[0], k);
            st16k((float *)p[2] + t * ${D} + d, s, k);
        }
    }
}
//== moe_combine
/* p: y, weights, place, out.  n: row strides of y and weights.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    for (int64_t t = lo; t < hi; t++) {
        const int32_t *place = (const int32_t *)p[2] + t * ${K};
        const float *w = (const float *)p[1] + t * n[1];
        for (int64_t d = 0; d < ${D}; d += 16) {
            int64_t k = min64(${D} - d, 16);
            const float *y = (const float *)p[0] + d;
            v16 s = w[0] * ld16k(y + place[0] * n[0], k);
            for (int64_t i = 1; i < ${K}; i++)
                s = fma16(splat16(w[i]), ld16k(y + place[i] * n[0], k), s);
            st16k((float *)p[3] + t * ${D} + d, s, k);
        }
    }
}
//== moe_combine_grad
/* p: dout, y, weights, place, dy, dw.  n: row strides of dout, y and weights.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    for (int64_t t = lo; t < hi; t++) {
        const int32_t *place = (const int32_t *)p[3] + t * ${K};
        const float *d = (const float *)p[0] + t * n[0], *w = (const float *)p[2] + t * n[2];
        for (int64_t i = 0; i < ${K}; i++) {
            const float *y = (const float *)p[1] + place[i] * n[1];
            float *dy = (float *)p[4] + (int64_t)place[i] * ${D};
            v16 s0 = splat16(0), s1 = s0;
            int64_t c = 0;
            for (; c + 32 <= ${D}; c += 32) {
                v16 d0 = ld16(d + c), d1 = ld16(d + c + 16);
                s0 = fma16(d0, ld16(y + c), s0);
                s1 = fma16(d1, ld16(y + c + 16), s1);
                st16(dy + c, w[i] * d0);
                st16(dy + c + 16, w[i] * d1);
            }
            for (; c < ${D}; c += 16) {
                int64_t k = min64(${D} - c, 16);
                v16 x = ld16k(d + c, k);
                s0 = fma16(x, ld16k(y + c, k), s0);
                st16k(dy + c, w[i] * x, k);
            }
            ((float *)p[5])[t * ${K} + i] = hsum16(s0 + s1);
        }
    }
}
//== moe_load
/* p: offsets, load.  n: experts.  One item. */
void @FN@(void *const *p, const int64_t *n, int64_t lo UNUSED, int64_t hi UNUSED,
          void *scratch UNUSED) {
    const int32_t *offset = p[0];
    for (int64_t e = 0; e < n[0]; e++) ((float *)p[1])[e] = (float)(offset[e + 1] - offset[e]);
}
