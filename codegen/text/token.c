/* Kernels of token operations. Every kernel: p buffers, n integers as each one says. */
//== embed
/* p: table, ids, out.  n: row strides of table and out.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const int32_t *ids = p[1];
    for (int64_t t = lo; t < hi; t++) {
        int64_t id = ids[t] > 0 ? ids[t] : 0;
        const float *from = (const float *)p[0] + id * n[0];
        float *to = (float *)p[2] + t * n[1];
        int64_t d = 0;
        for (; d + 16 <= ${D}; d += 16) st16(to + d, ld16(from + d));
        if (d < ${D}) st16k(to + d, ld16k(from + d, ${D} - d), ${D} - d);
    }
}
//== embed_f32
/* From panels (ir/panel.h). p: panels, ids, out.  n: row stride of out.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const int32_t *ids = p[1];
    for (int64_t t = lo; t < hi; t++) {
        const int64_t id = ids[t] > 0 ? ids[t] : 0;
        const float *from = (const float *)p[0] + id / 16 * ${D} * 16 + id % 16;
        float *to = (float *)p[2] + t * n[0];
        for (int64_t d = 0; d < ${D}; d++) to[d] = from[d * 16];
    }
}
//== embed_bf16
/* The same of bf16: words of two. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    enum { D = ${D}, WORDS = (D + 1) / 2 };
    const int32_t *ids = p[1];
    for (int64_t t = lo; t < hi; t++) {
        const int64_t id = ids[t] > 0 ? ids[t] : 0;
        const uint16_t *from = (const uint16_t *)p[0] + (id / 16 * WORDS * 16 + id % 16) * 2;
        uint32_t *to = (uint32_t *)p[2] + t * n[0];
        for (int64_t d = 0; d < D; d++) to[d] = (uint32_t)from[d / 2 * 32 + d % 2] << 16;
    }
}
//== embed_i8
/* The same of integers. p: panels, ids, out, scales. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const int32_t *ids = p[1];
    for (int64_t t = lo; t < hi; t++) {
        const int64_t id = ids[t] > 0 ? ids[t] : 0;
        const signed char *from = (const signed char *)p[0] + id / 16 * ${D} * 16 + id % 16;
        const float scale = ((const float *)p[3])[id];
        float *to = (float *)p[2] + t * n[0];
        for (int64_t d = 0; d < ${D}; d++) to[d] = (float)from[d * 16] * scale;
    }
}
//== embed_grad
/* p: dy, ids, out [V,D].  n: row stride of dy, tokens, V, table rows of an item.  Item = a range of
 * table rows: set to zero, then the tokens of the range are added in token order. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const int32_t *ids = p[1];
    int64_t first = lo * n[3], last = min64(hi * n[3], n[2]);
    float *out = p[2];
    __builtin_memset(out + first * ${D}, 0, (uint64_t)((last - first) * ${D}) * sizeof(float));
    for (int64_t t = 0; t < n[1]; t++) {
        int64_t id = ids[t] > 0 ? ids[t] : 0;
        if (id < first || id >= last) continue;
        const float *from = (const float *)p[0] + t * n[0];
        float *to = out + id * ${D};
        int64_t d = 0;
        for (; d + 16 <= ${D}; d += 16) st16(to + d, ld16(to + d) + ld16(from + d));
        if (d < ${D})
            st16k(to + d, ld16k(to + d, ${D} - d) + ld16k(from + d, ${D} - d), ${D} - d);
    }
}
//== cross_entropy
/* p: logits, targets, nll, lse.  n: row stride of logits.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    enum { V = ${V}, TAIL = V % 16, FULL = V - TAIL };
    const int32_t *target = p[1];
    for (int64_t t = lo; t < hi; t++) {
        const float *x = (const float *)p[0] + t * n[0];
        v16i out_of = iota16() >= TAIL; /* lanes beyond the last column */
        v16 m0 = splat16(-INFF), m1 = m0, s0 = splat16(0), s1 = s0;
        int64_t i = 0;
        for (; i + 32 <= FULL; i += 32) {
            m0 = max16(m0, ld16(x + i));
            m1 = max16(m1, ld16(x + i + 16));
        }
        for (; i < FULL; i += 16) m0 = max16(m0, ld16(x + i));
        v16 tail = TAIL ? sel16(out_of, splat16(-INFF), ld16k(x + FULL, TAIL)) : splat16(-INFF);
        float top = hmax16(max16(max16(m0, m1), tail));
        for (i = 0; i + 32 <= FULL; i += 32) {
            s0 += exp16(ld16(x + i) - top);
            s1 += exp16(ld16(x + i + 16) - top);
        }
        for (; i < FULL; i += 16) s0 += exp16(ld16(x + i) - top);
        if (TAIL) s1 += exp16(tail - top);
        float lse = top + log1(hsum16(s0 + s1));
        ((float *)p[3])[t] = lse;
        ((float *)p[2])[t] = target[t] < 0 ? 0.0f : lse - x[target[t]];
    }
}
//== cross_entropy_grad
/* p: logits, targets, lse, dnll, dlogits.  n: row stride of logits.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    enum { V = ${V}, TAIL = V % 16, FULL = V - TAIL };
    const int32_t *target = p[1];
    for (int64_t t = lo; t < hi; t++) {
        const float *x = (const float *)p[0] + t * n[0];
        float *dx = (float *)p[4] + t * V;
        float lse = ((const float *)p[2])[t], w = ((const float *)p[3])[t];
        if (target[t] < 0) {
            __builtin_memset(dx, 0, V * sizeof(float));
            continue;
        }
        for (int64_t i = 0; i < FULL; i += 16) st16(dx + i, exp16(ld16(x + i) - lse) * w);
        if (TAIL) st16k(dx + FULL, exp16(ld16k(x + FULL, TAIL) - lse) * w, TAIL);
        dx[target[t]] -= w;
    }
}
//== count_valid
/* p: targets, out.  n: tokens.  One item. */
void @FN@(void *const *p, const int64_t *n, int64_t lo UNUSED, int64_t hi UNUSED,
          void *scratch UNUSED) {
    const int32_t *target = p[0];
    int64_t count = 0;
    for (int64_t t = 0; t < n[0]; t++) count += target[t] >= 0;
    *(float *)p[1] = (float)(count > 1 ? count : 1);
}
//== colmax
/* p: x, out.  n: rows, row stride.  Item = column; few columns, so a row is a cache line. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const float *x = p[0];
    for (int64_t c = lo; c < hi; c++) {
        float top = x[c];
        for (int64_t r = 1; r < n[0]; r++) top = x[r * n[1] + c] > top ? x[r * n[1] + c] : top;
        ((float *)p[1])[c] = top;
    }
}
//== sum
/* Sums of pieces.  p: x, partial f64.  n: columns, row stride, pieces of a row.  Item = piece. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    typedef double v8d __attribute__((vector_size(64)));
    for (int64_t at = lo; at < hi; at++) {
        int64_t row = at / n[2], from = at % n[2] * ${PIECE};
        const float *x = (const float *)p[0] + row * n[1] + from;
        int64_t count = min64(n[0] - from, ${PIECE}), i = 0;
        v8d a = {0}, b = {0};
        for (; i < count; i += 16) {
            v16 v = i + 16 <= count ? ld16(x + i) : ld16k(x + i, count - i);
            a += __builtin_convertvector((v8)LOWER8(v), v8d);
            b += __builtin_convertvector((v8)UPPER8(v), v8d);
        }
        a += b;
        ((double *)p[1])[at] = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
    }
}
//== sum_end
/* p: partial f64, out.  n: pieces.  One item. */
void @FN@(void *const *p, const int64_t *n, int64_t lo UNUSED, int64_t hi UNUSED,
          void *scratch UNUSED) {
    double s = 0;
    for (int64_t i = 0; i < n[0]; i++) s += ((const double *)p[0])[i];
    *(float *)p[1] = (float)s;
}
//== round_rows
/* Rows rounded to bf16 numbers.  p: from, to without gaps.  n: columns, row stride of from.
 * Item = row. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    for (int64_t at = lo; at < hi; at++) {
        const float *from = (const float *)p[0] + at * n[1];
        float *to = (float *)p[1] + at * n[0];
        int64_t i = 0, left = n[0] % 16;
        for (; i + 16 <= n[0]; i += 16) st16(to + i, bf16_to_f32(f32_to_bf16(ld16(from + i))));
        if (left) st16k(to + i, bf16_to_f32(f32_to_bf16(ld16k(from + i, left))), left);
    }
}
//== copy
/* Rows of 4-byte elements.  p: from, to.  n: columns, row strides of from and to, pieces of a row.
 * Item = piece. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    for (int64_t at = lo; at < hi; at++) {
        int64_t row = at / n[3], first = at % n[3] * ${PIECE};
        int64_t count = min64(n[0] - first, ${PIECE}), i = 0;
        const float *from = (const float *)p[0] + row * n[1] + first;
        float *to = (float *)p[1] + row * n[2] + first;
        for (; i + 16 <= count; i += 16) st16(to + i, ld16(from + i));
        if (i < count) st16k(to + i, ld16k(from + i, count - i), count - i);
    }
}
