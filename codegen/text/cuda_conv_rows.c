/* N channels side by side, 1, 2 or 4, in one access. */
template <int N> INLINE void conv_load(float y[N], const float *p) {
    if (N == 4) {
        const float4 v = *(const float4 *)p;
        y[0] = v.x, y[1 % N] = v.y, y[2 % N] = v.z, y[3 % N] = v.w;
    } else if (N == 2) {
        const float2 v = *(const float2 *)p;
        y[0] = v.x, y[1 % N] = v.y;
    } else {
        y[0] = *p;
    }
}
template <int N> INLINE void conv_load(float y[N], const uint16_t *p) {
    if (N == 4) {
        const uint2 v = *(const uint2 *)p;
        y[0] = __uint_as_float(v.x << 16), y[1 % N] = __uint_as_float(v.x & 0xffff0000u);
        y[2 % N] = __uint_as_float(v.y << 16), y[3 % N] = __uint_as_float(v.y & 0xffff0000u);
    } else if (N == 2) {
        const uint32_t v = *(const uint32_t *)p;
        y[0] = __uint_as_float(v << 16), y[1 % N] = __uint_as_float(v & 0xffff0000u);
    } else {
        y[0] = bf16_to_f32(*p);
    }
}
template <int N> INLINE void conv_store(float *p, const float y[N]) {
    if (N == 4)
        st_whole((float4 *)p, make_float4(y[0], y[1 % N], y[2 % N], y[3 % N]));
    else if (N == 2)
        st_whole((float2 *)p, make_float2(y[0], y[1 % N]));
    else
        *p = y[0];
}
template <int N> INLINE void conv_store(uint16_t *p, const float y[N]) {
    if (N == 4)
        st_whole((uint2 *)p, make_uint2(pack_bf16(y[0], y[1 % N]), pack_bf16(y[2 % N], y[3 % N])));
    else if (N == 2)
        *(uint32_t *)p = pack_bf16(y[0], y[1 % N]);
    else
        *p = f32_to_bf16(y[0]);
}
/* The sigmoid for a result of type T: coarse where it is rounded to bf16. */
INLINE float conv_sigmoid(const float *, float x) { return sigmoid1(x); }
INLINE float conv_sigmoid(const uint16_t *, float x) { return sigmoid_coarse1(x); }
/* Row `at` of x, zero before the sequence. */
template <int N, class T> INLINE void conv_row(float y[N], const T *x, int64_t at, int64_t ld) {
    if (at >= 0)
        conv_load<N>(y, x + at * ld);
    else
        UNROLL for (int i = 0; i < N; i++) y[i] = 0.0f;
}
/* The J weights of N channels. */
template <int N, int J> INLINE void conv_weights(float w[J][N], const float *p) {
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int j = 0; j < J; j++) w[j][i] = p[i * J + j];
}
