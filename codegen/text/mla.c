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
