/* Kernels of the apply program. ctl = norm, clip factor, 1 if finite, 0: nothing is written where
 * ctl[2] is 0, so that a step with a non-finite gradient changes nothing. hyper = lr, 1 - beta1^t,
 * 1 - beta2^t, 0. Elementwise kernels work on pieces of rows: n: columns, pieces of a row, then the
 * row stride of every tensor in the order of p. Item = piece. */
//== adamw
/* p: weight, first moment, second moment, gradient, ctl, hyper. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const float *ctl = p[4], *hyper = p[5];
    if (ctl[2] == 0) return;
    const float clip = ctl[1], decay = 1.0f - hyper[0] * ${WD};
    const float step = hyper[0] / hyper[1], unbias = 1.0f / hyper[2];
    for (int64_t at = lo; at < hi; at++) {
        int64_t row = at / n[1], from = at % n[1] * ${PIECE}, count = min64(n[0] - from, ${PIECE});
        float *w = (float *)p[0] + row * n[2] + from, *m = (float *)p[1] + row * n[3] + from;
        float *v = (float *)p[2] + row * n[4] + from;
        const float *g = (const float *)p[3] + row * n[5] + from;
        for (int64_t i = 0; i < count; i += 16) {
            int64_t k = min64(count - i, 16);
            v16 gi = clip * (k == 16 ? ld16(g + i) : ld16k(g + i, k));
            v16 mi = k == 16 ? ld16(m + i) : ld16k(m + i, k);
            v16 vi = k == 16 ? ld16(v + i) : ld16k(v + i, k);
            v16 wi = k == 16 ? ld16(w + i) : ld16k(w + i, k);
            mi = ${BETA1} * mi + ${REST1} * gi;
            vi = ${BETA2} * vi + ${REST2} * (gi * gi);
            wi = decay * wi - step * mi / (sqrt16(vi * unbias) + ${EPS});
            if (k == 16) {
                st16(m + i, mi), st16(v + i, vi), st16(w + i, wi);
            } else {
                st16k(m + i, mi, k), st16k(v + i, vi, k), st16k(w + i, wi, k);
            }
        }
    }
}
//== momentum
/* p: m, update, gradient, ctl. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const float *ctl = p[3];
    if (ctl[2] == 0) return;
    for (int64_t at = lo; at < hi; at++) {
        int64_t row = at / n[1], from = at % n[1] * ${PIECE}, count = min64(n[0] - from, ${PIECE});
        float *m = (float *)p[0] + row * n[2] + from, *u = (float *)p[1] + row * n[3] + from;
        const float *g = (const float *)p[2] + row * n[4] + from;
        for (int64_t i = 0; i < count; i += 16) {
            int64_t k = min64(count - i, 16);
            v16 gi = ctl[1] * ld16k(g + i, k), mi = ${MU} * ld16k(m + i, k) + gi;
            st16k(m + i, mi, k);
            st16k(u + i, gi + ${MU} * mi, k);
        }
    }
}
//== muon_step
/* p: weight, orthogonalised update, ctl, hyper. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const float *ctl = p[2], *hyper = p[3];
    if (ctl[2] == 0) return;
    for (int64_t at = lo; at < hi; at++) {
        int64_t row = at / n[1], from = at % n[1] * ${PIECE}, count = min64(n[0] - from, ${PIECE});
        float *w = (float *)p[0] + row * n[2] + from;
        const float *x = (const float *)p[1] + row * n[3] + from;
        for (int64_t i = 0; i < count; i += 16) {
            int64_t k = min64(count - i, 16);
            v16 wi = ld16k(w + i, k);
            st16k(w + i, wi - hyper[0] * (${SCALE} * ld16k(x + i, k) + ${WD} * wi), k);
        }
    }
}
//== grad_norm
/* Sums of squares of pieces of all gradients.  p: gradients, partial f64.  n: gradients, then for
 * each: columns, row stride, pieces of a row, pieces.  Item = piece, in the order of gradients. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    typedef double v8d __attribute__((vector_size(64)));
    double *partial = p[n[0]];
    int64_t g = 0, before = 0;
    for (int64_t at = lo; at < hi; at++) {
        while (at - before >= n[4 * g + 4]) before += n[4 * g++ + 4];
        const int64_t *size = n + 1 + 4 * g;
        int64_t row = (at - before) / size[2], from = (at - before) % size[2] * ${PIECE};
        const float *x = (const float *)p[g] + row * size[1] + from;
        int64_t count = min64(size[0] - from, ${PIECE}), i = 0;
        v8d a = {0}, b = {0};
        for (; i < count; i += 16) {
            v16 v = i + 16 <= count ? ld16(x + i) : ld16k(x + i, count - i);
            v8d v0 = __builtin_convertvector((v8)LOWER8(v), v8d);
            v8d v1 = __builtin_convertvector((v8)UPPER8(v), v8d);
            a += v0 * v0;
            b += v1 * v1;
        }
        a += b;
        partial[at] = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
    }
}
//== grad_norm_end
/* p: partial f64, loss, ctl, sums of squares f64.  n: gradients, then the pieces of each.  One
 * item. A sum in double overflows only where a gradient is infinite. */
void @FN@(void *const *p, const int64_t *n, int64_t lo UNUSED, int64_t hi UNUSED,
          void *scratch UNUSED) {
    const double *partial = p[0];
    double *sumsq = p[3], all = 0;
    float *ctl = p[2], loss = *(const float *)p[1];
    for (int64_t g = 0; g < n[0]; g++) {
        double s = 0;
        for (int64_t i = 0; i < n[1 + g]; i++) s += *partial++;
        sumsq[g] = s;
        all += s;
    }
    _Bool finite = all - all == 0 && loss - loss == 0;
    double norm = __builtin_sqrt(all), factor = ${CLIP} / (norm + 1e-6);
    ctl[0] = (float)norm;
    ctl[1] = ${CLIP} > 0 && finite && factor < 1 ? (float)factor : 1.0f;
    ctl[2] = finite ? 1.0f : 0.0f;
    ctl[3] = 0;
}
//== qk_clip
/* p: weight, largest logits, ctl.  n: columns, row stride, first row, rows of a head, from, to,
 * query heads of a group.  Item = one of the heads that the weight has. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const float *top = p[1], *ctl = p[2];
    if (ctl[2] == 0) return;
    for (int64_t h = lo; h < hi; h++) {
        const int64_t g = ${KEYS} ? h : h / n[6];
        float least = ${TAU}, f = 1;
        for (int64_t i = g * n[6]; i < (g + 1) * n[6]; i++) least = top[i] > least ? top[i] : least;
        least = ${TAU} / least;
        if (!${KEYS} && top[h] > ${TAU}) f = ${TAU} / top[h];
        f = ${KEYS} ? __builtin_sqrtf(least) : ${ROPE} ? f : f / __builtin_sqrtf(least);
        if (f == 1.0f) continue;
        for (int64_t r = n[2] + h * n[3] + n[4]; r < n[2] + h * n[3] + n[5]; r++) {
            float *w = (float *)p[0] + r * n[1];
            for (int64_t i = 0; i < n[0]; i++) w[i] *= f;
        }
    }
}
//== balance
/* p: bias, load, ctl.  n: experts.  One item. Loads are whole numbers: exact comparisons. */
void @FN@(void *const *p, const int64_t *n, int64_t lo UNUSED, int64_t hi UNUSED,
          void *scratch UNUSED) {
    float *bias = p[0];
    const float *load = p[1], *ctl = p[2];
    if (ctl[2] == 0) return;
    double all = 0;
    int64_t signs = 0, e;
    for (e = 0; e < n[0]; e++) all += (double)load[e];
    for (e = 0; e < n[0]; e++) {
        double mine = (double)load[e] * (double)n[0];
        signs += (all > mine) - (all < mine);
    }
    float mean = (float)((double)signs / (double)n[0]);
    for (e = 0; e < n[0]; e++) {
        double mine = (double)load[e] * (double)n[0];
        bias[e] += ${RATE} * ((float)((all > mine) - (all < mine)) - mean);
    }
}
