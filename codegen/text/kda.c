/* KDA: the delta rule with a decay per channel (needs kda_rows.c). ${H} heads with keys of ${K} and
 * values of ${V}; a sequence is T rows. State S [K,V], zero at first:
 *   S = diag(exp g) S;  e = v - S^T k;  S += beta k e^T;  o = ${SCALE} S^T q
 * Chunks of 16 tokens lie on absolute positions; a row's bits depend on no later token. */
//== kda
/* p = q, k, v, g, beta, o; n = T, ldq, ldk, ldv, ldg, ldbeta, ldo; items = B x ${H}. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    enum { H = ${H}, K = ${K}, V = ${V}, KP = (K + 15) / 16 * 16, VP = (V + 15) / 16 * 16 };
    const int64_t T = n[0];
    float *state = scratch, *z = state + KP * VP, *l = z + KDA_C * VP, *a = l + 256, *work = a + 256;
    for (int64_t it = lo; it < hi; it++) {
        const int64_t h = it % H, row = it / H * T;
        const struct kda_rows_of x = {
            (const float *)p[0] + row * n[1] + h * K, (const float *)p[1] + row * n[2] + h * K,
            (const float *)p[2] + row * n[3] + h * V, (const float *)p[3] + row * n[4] + h * K,
            (const float *)p[4] + row * n[5] + h, n[1], n[2], n[3], n[4], n[5], K, V, KP, VP, ${SCALE}f};
        float *o = (float *)p[5] + row * n[6] + h * V;
        kda_clear(state, KP * VP);
        for (int64_t t = 0; t < T; t += KDA_C)
            kda_chunk(&x, t, min64(KDA_C, T - t), state, t + KDA_C < T ? state : 0, o + t * n[6], n[6], z, l, a,
                      work);
    }
}
//== kda_grad
/* p = q, k, v, g, beta, do, dq, dk, dv, dg, dbeta; n = T, their strides; items = B x ${H}. States at
 * the beginnings of chunks are computed again and kept for the way back. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    enum { H = ${H}, K = ${K}, V = ${V}, KP = (K + 15) / 16 * 16, VP = (V + 15) / 16 * 16 };
    enum { EACH = KP * VP + KDA_C * VP + 512 }; /* state before a chunk, z, l, a */
    const int64_t T = n[0], chunks = div_up(T, KDA_C);
    float *kept = scratch, *ds = kept + chunks * EACH, *work = ds + KP * VP;
    for (int64_t it = lo; it < hi; it++) {
        const int64_t h = it % H, row = it / H * T;
        const struct kda_rows_of x = {
            (const float *)p[0] + row * n[1] + h * K, (const float *)p[1] + row * n[2] + h * K,
            (const float *)p[2] + row * n[3] + h * V, (const float *)p[3] + row * n[4] + h * K,
            (const float *)p[4] + row * n[5] + h, n[1], n[2], n[3], n[4], n[5], K, V, KP, VP, ${SCALE}f};
        const struct kda_grads_of to = {
            (float *)p[6] + row * n[7] + h * K, (float *)p[7] + row * n[8] + h * K,
            (float *)p[8] + row * n[9] + h * V, (float *)p[9] + row * n[10] + h * K,
            (float *)p[10] + row * n[11] + h, n[7], n[8], n[9], n[10], n[11]};
        const float *dout = (const float *)p[5] + row * n[6] + h * V;
        kda_clear(kept, KP * VP);
        for (int64_t c = 0; c < chunks; c++) {
            float *at = kept + c * EACH, *z = at + KP * VP, *l = z + KDA_C * VP;
            kda_chunk(&x, c * KDA_C, min64(KDA_C, T - c * KDA_C), at, c + 1 < chunks ? at + EACH : 0, 0, 0, z, l,
                      l + 256, work);
        }
        kda_clear(ds, KP * VP);
        for (int64_t c = chunks - 1; c >= 0; c--) {
            const float *at = kept + c * EACH, *z = at + KP * VP, *l = z + KDA_C * VP;
            kda_chunk_grad(&x, &to, dout, n[6], c * KDA_C, min64(KDA_C, T - c * KDA_C), at, z, l, l + 256, ds,
                           work);
        }
    }
}
//== kda_cached
/* T new tokens of every sequence. p = q, k, v, g, beta, state [S * ${H} * ${K}, ${V}], states, past, o; the
 * state of a sequence advances in place; it is zero where nothing is past. n = T, ldq, ldk, ldv, ldg,
 * ldbeta, ldo; items = B x ${H}. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    enum { H = ${H}, K = ${K}, V = ${V}, KP = (K + 15) / 16 * 16, VP = (V + 15) / 16 * 16 };
    const int64_t T = n[0];
    float *state = scratch, *z = state + KP * VP, *l = z + KDA_C * VP, *a = l + 256, *work = a + 256;
    for (int64_t it = lo; it < hi; it++) {
        const int64_t h = it % H, b = it / H, row = b * T, past = ((const int32_t *)p[7])[b];
        const struct kda_rows_of x = {
            (const float *)p[0] + row * n[1] + h * K, (const float *)p[1] + row * n[2] + h * K,
            (const float *)p[2] + row * n[3] + h * V, (const float *)p[3] + row * n[4] + h * K,
            (const float *)p[4] + row * n[5] + h, n[1], n[2], n[3], n[4], n[5], K, V, KP, VP, ${SCALE}f};
        float *kept = (float *)p[5] + (((const int32_t *)p[6])[b] * (int64_t)H + h) * K * V;
        float *o = (float *)p[8] + row * n[6] + h * V;
        if (T == 1) {
            kda_one(&x, 0, kept, past == 0, o, scratch);
            continue;
        }
        kda_clear(state, KP * VP);
        for (int64_t k = 0; k < K && past > 0; k++)
            for (int64_t c = 0; c < V; c += 16)
                st16(state + k * VP + c, ld16k(kept + k * V + c, min64(16, V - c)));
        for (int64_t t = 0, m; t < T; t += m) {
            m = min64(KDA_C - (past + t) % KDA_C, T - t);
            kda_chunk(&x, t, m, state, state, o + t * n[6], n[6], z, l, a, work);
        }
        for (int64_t k = 0; k < K; k++)
            for (int64_t c = 0; c < V; c += 16)
                st16k(kept + k * V + c, ld16(state + k * VP + c), min64(16, V - c));
    }
}
