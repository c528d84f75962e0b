/* Beside the recurrence of KDA (needs prelude.c). Convolutions are causal and of every channel with
 * its own J weights: y[t] = silu(c[t]), c[t] = sum over j of w[:,j] x[t-J+1+j] in the order of j. */
//== repeat
/* p: a, out.  n: times.  Item = element of a, `times` times side by side in out. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    for (int64_t i = lo; i < hi; i++)
        for (int64_t j = 0; j < n[0]; j++) ((float *)p[1])[i * n[0] + j] = ((const float *)p[0])[i];
}
//== short_conv
/* p: x, w [C,${J}], y.  n: T, C, row strides of x and y, rows of an item.  Item = 256 channels of a
 * piece of a sequence's rows. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    enum { J = ${J}, W = 256 };
    const int64_t T = n[0], C = n[1], ldx = n[2], ldy = n[3], R = n[4], blocks = div_up(C, W);
    for (int64_t it = lo; it < hi; it++) {
        const int64_t pieces = div_up(T, R), t0 = it / blocks % pieces * R, row = it / blocks / pieces * T;
        const int64_t c0 = it % blocks * W, c1 = min64(c0 + W, C);
        const float *x = (const float *)p[0] + row * ldx;
        float *y = (float *)p[2] + row * ldy;
        v16 w[W / 16][J];
        for (int64_t c = c0; c < c1; c += 16)
            for (int j = 0; j < J; j++)
                w[(c - c0) / 16][j] = ldrows16((const float *)p[1] + c * J + j, J, min64(16, C - c));
        for (int64_t t = t0; t < min64(t0 + R, T); t++)
            for (int64_t c = c0; c < c1; c += 16) {
                const int64_t k = min64(16, C - c), soon = min64(t + 4, T - 1);
                v16 s = splat16(0.0f);
                __builtin_prefetch(x + soon * ldx + c, 0, 3);
                __builtin_prefetch(y + soon * ldy + c, 1, 3);
#pragma clang loop unroll(full)
                for (int j = 0; j < J; j++)
                    if (t - J + 1 + j >= 0)
                        s = fma16(ld16k(x + (t - J + 1 + j) * ldx + c, k), w[(c - c0) / 16][j], s);
                st16k(y + t * ldy + c, s * sigmoid16(s), k);
            }
    }
}
//== short_conv_grad
/* p: dy, x, w, dx, dw.  n: B, T, C, row strides of dy, x, dx.  Item = 64 channels of all rows, from the
 * last of a sequence to its first; dw is summed by 64 rows, then over those in their order. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    enum { J = ${J}, R = 64, W = 4 };
    const int64_t B = n[0], T = n[1], C = n[2], ldd = n[3], ldx = n[4], ldo = n[5];
    for (int64_t c0 = lo * 16 * W; c0 < min64(hi * 16 * W, C); c0 += 16 * W) {
        const int64_t width = min64(16 * W, C - c0);
        v16 w[W][J], dw[W][J], after[W][J]; /* after: gradients of c[t], c[t+1] ... */
        for (int64_t u = 0; u < W; u++)
            for (int j = 0; j < J; j++) {
                w[u][j] = ldrows16((const float *)p[2] + (c0 + 16 * u) * J + j, J,
                                   max64(0, min64(16, width - 16 * u)));
                dw[u][j] = splat16(0.0f);
            }
        for (int64_t b = 0; b < B; b++) {
            for (int64_t u = 0; u < W; u++)
                for (int j = 0; j < J; j++) after[u][j] = splat16(0.0f);
            for (int64_t end = T; end > 0; end = (end - 1) / R * R) {
                const int64_t from = (end - 1) / R * R;
                for (int64_t u = 0; 16 * u < width; u++) {
                    const int64_t c = c0 + 16 * u, k = min64(16, C - c);
                    const float *x = (const float *)p[1] + b * T * ldx + c;
                    const float *dy = (const float *)p[0] + b * T * ldd + c;
                    float *dx = (float *)p[3] + b * T * ldo + c;
                    v16 part[J], later[J];
                    for (int j = 0; j < J; j++) {
                        part[j] = splat16(0.0f);
                        later[j] = after[u][j];
                    }
                    for (int64_t t = end - 1; t >= from; t--) {
                        v16 in[J], s = splat16(0.0f), g = s;
                        const int64_t soon = max64(t - R, 0); /* the next piece is fetched meanwhile */
                        __builtin_prefetch(x + soon * ldx, 0, 3);
                        __builtin_prefetch(dy + soon * ldd, 0, 3);
                        __builtin_prefetch(dx + soon * ldo, 1, 3);
#pragma clang loop unroll(full)
                        for (int j = 0; j < J; j++) {
                            const int64_t at = t - J + 1 + j;
                            in[j] = at >= 0 ? ld16k(x + at * ldx, k) : splat16(0.0f);
                            s = fma16(in[j], w[u][j], s);
                        }
                        const v16 sig = sigmoid16(s);
#pragma clang loop unroll(full)
                        for (int j = J - 1; j > 0; j--) later[j] = later[j - 1];
                        later[0] = ld16k(dy + t * ldd, k) * sig * (1.0f + s * (1.0f - sig));
#pragma clang loop unroll(full)
                        for (int j = 0; j < J; j++) {
                            part[j] = fma16(later[0], in[j], part[j]);
                            g = fma16(w[u][j], later[J - 1 - j], g);
                        }
                        st16k(dx + t * ldo, g, k);
                    }
                    for (int j = 0; j < J; j++) {
                        dw[u][j] = dw[u][j] + part[j];
                        after[u][j] = later[j];
                    }
                }
            }
        }
        for (int64_t u = 0; 16 * u < width; u++)
            for (int j = 0; j < J; j++)
                strows16((float *)p[4] + (c0 + 16 * u) * J + j, J, dw[u][j], min64(16, width - 16 * u));
    }
}
//== conv_cached
/* The same for T new rows of every sequence. p: x, w, state [S * ${J}-1, C], states, past, y; a
 * state is the inputs before the new ones, and afterwards the last of these.  n: T, C, row
 * strides of x and y.  Item = 64 channels of a sequence. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    enum { J = ${J} };
    const int64_t T = n[0], C = n[1], ldx = n[2], ldy = n[3], blocks = div_up(C, 64);
    for (int64_t it = lo; it < hi; it++) {
        const int64_t b = it / blocks, c0 = it % blocks * 64, c1 = min64(c0 + 64, C);
        const int64_t past = ((const int32_t *)p[4])[b], state = ((const int32_t *)p[3])[b];
        for (int64_t c = c0; c < c1; c += 16) {
            const int64_t k = min64(16, C - c);
            const float *x = (const float *)p[0] + b * T * ldx + c;
            float *old = (float *)p[2] + state * (J - 1) * C + c, *y = (float *)p[5] + b * T * ldy + c;
            v16 w[J], in[J];
            for (int j = 0; j < J; j++) {
                w[j] = ldrows16((const float *)p[1] + c * J + j, J, k);
                /* in[j + 1] is the input j - J + 1 rows before the first new one */
                if (j + 1 < J)
                    in[j + 1] = past - J + 1 + j >= 0 ? ld16k(old + j * C, k) : splat16(0.0f);
            }
            for (int64_t t = 0; t < T; t++) {
                v16 s = splat16(0.0f);
#pragma clang loop unroll(full)
                for (int j = 0; j < J - 1; j++) in[j] = in[j + 1];
                in[J - 1] = ld16k(x + t * ldx, k);
#pragma clang loop unroll(full)
                for (int j = 0; j < J; j++)
                    if (past + t - J + 1 + j >= 0) s = fma16(in[j], w[j], s);
                st16k(y + t * ldy, s * sigmoid16(s), k);
            }
            for (int j = 0; j < J - 1; j++) st16k(old + j * C, in[j + 1], k);
        }
    }
}
