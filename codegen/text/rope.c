/* Rotary position embedding. */
//== rope_table
/* p: table [T,${HD}].  n: T.  Item = position. */
void @FN@(void *const *p, const int64_t *n UNUSED, int64_t lo, int64_t hi, void *scratch UNUSED) {
    for (int64_t t = lo; t < hi; t++) rope_angles((float *)p[0] + t * ${HD}, t, ${HD}, ${THETA});
}
//== rope_table_at
/* p: table [B*T,${HD}], past i32[B].  n: T.  Item = token: row b*T+t is of position past[b] + t. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const int32_t *past = p[1];
    for (int64_t r = lo; r < hi; r++)
        rope_angles((float *)p[0] + r * ${HD}, past[r / n[0]] + r % n[0], ${HD}, ${THETA});
}
//== rope
/* Channels i and i + ${ROTARY}/2 of the last ${ROTARY} of each head turn by the angle of their position.
 * p: x, table, out.  n: rows of the table, row strides of x and out.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    enum { HALF = ${ROTARY} / 2, TAIL = HALF % 16, FULL = HALF - TAIL, STILL = ${HD} - 2 * HALF };
    for (int64_t row = lo; row < hi; row++) {
        const float *cosine = (const float *)p[1] + row % n[0] * (2 * HALF), *sine = cosine + HALF;
        for (int64_t h = 0; h < ${H}; h++) {
            const float *x = (const float *)p[0] + row * n[1] + h * ${HD};
            float *y = (float *)p[2] + row * n[2] + h * ${HD};
            for (int64_t k = 0; k < STILL; k += 16)
                st16k(y + k, ld16k(x + k, min64(16, STILL - k)), min64(16, STILL - k));
            x += STILL;
            y += STILL;
            int64_t i = 0;
            for (; i < FULL; i += 16) {
                const v16 a = ld16(x + i), b = ld16(x + HALF + i), c = ld16(cosine + i);
                const v16 s = ${SIGN} ld16(sine + i);
                st16(y + i, a * c - b * s);
                st16(y + HALF + i, b * c + a * s);
            }
            if (TAIL) {
                const v16 a = ld16k(x + i, TAIL), b = ld16k(x + HALF + i, TAIL);
                const v16 c = ld16k(cosine + i, TAIL), s = ${SIGN} ld16k(sine + i, TAIL);
                st16k(y + i, a * c - b * s, TAIL);
                st16k(y + HALF + i, b * c + a * s, TAIL);
            }
        }
    }
}
