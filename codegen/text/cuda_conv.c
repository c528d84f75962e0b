/* Beside the recurrence of KDA. Convolutions are causal and of every channel with its own J weights:
 * y[t] = silu(c[t]), c[t] = sum over j of w[:,j] x[t-J+1+j] in the order of j. A thread has ${N}
 * channels of a piece of ${R} rows: every element is read from memory once, the J-1 rows before a piece
 * again. The floor is one read of x and one write of y. */
//== repeat
/* Each element of a `times` times side by side. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const float *a, float *out, int64_t n, int64_t times)
{
    int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x;
    if (i < n) out[i] = a[i / times];
}
//== short_conv
/* Block: 128 threads of ${N} channels, one piece of a sequence. */
extern "C" __global__ void __launch_bounds__(128)
@FN@(const ${TX} *x, const float *weight, ${TY} *y, int64_t T, int64_t C, int64_t ldx, int64_t ldy)
{
    enum { J = ${J}, N = ${N}, R = ${R}, U = 4 }; /* U rows are fetched at once */
    const int64_t blocks = div_up(C, 128 * N), pieces = div_up(T, R), it = blockIdx.x / blocks;
    const int64_t c = (blockIdx.x % blocks * 128 + threadIdx.x) * N;
    if (c >= C) return;
    const int64_t t0 = it % pieces * R, t1 = min64(t0 + R, T);
    x += it / pieces * T * ldx + c;
    y += it / pieces * T * ldy + c;
    float w[J][N], in[J - 1 + U][N];
    conv_weights<N, J>(w, weight + c * J);
    UNROLL for (int j = 0; j < J - 1; j++) conv_row<N>(in[j], x, t0 - J + 1 + j, ldx);
    for (int64_t t = t0; t < t1; t += U) {
        UNROLL for (int u = 0; u < U; u++) conv_row<N>(in[J - 1 + u], x, min64(t + u, T - 1), ldx);
        UNROLL for (int u = 0; u < U; u++) {
            float s[N];
            UNROLL for (int i = 0; i < N; i++) {
                s[i] = 0.0f;
                UNROLL for (int j = 0; j < J; j++) s[i] = fma1(in[u + j][i], w[j][i], s[i]);
                s[i] = s[i] * conv_sigmoid(y, s[i]);
            }
            if (t + u < t1) conv_store<N>(y + (t + u) * ldy, s);
        }
        UNROLL for (int j = 0; j < J - 1; j++) UNROLL for (int i = 0; i < N; i++) in[j][i] = in[j + U][i];
    }
}
//== short_conv_grad
/* The same pieces: dx, and in part[piece][C][J] what the piece's rows give dw. Gradients of the c of
 * J-1 rows behind the piece are computed again. */
extern "C" __global__ void __launch_bounds__(128, 1)
@FN@(const ${TD} *dy, const ${TX} *x, const float *weight, ${TO} *dx, float *part, int64_t T, int64_t C,
     int64_t ldd, int64_t ldx, int64_t ldo)
{
    enum { J = ${J}, N = ${N}, R = ${R}, U = 4 };
    const int64_t blocks = div_up(C, 128 * N), pieces = div_up(T, R), it = blockIdx.x / blocks;
    const int64_t c = (blockIdx.x % blocks * 128 + threadIdx.x) * N;
    if (c >= C) return;
    const int64_t t0 = it % pieces * R, t1 = min64(t0 + R, T), row = it / pieces * T;
    dy += row * ldd + c;
    x += row * ldx + c;
    dx += row * ldo + c;
    /* in: inputs of rows t-J+1 .. t+U-1; dc: the same rows' */
    float w[J][N], dw[J][N], in[J - 1 + U][N], dc[J - 1 + U][N];
    conv_weights<N, J>(w, weight + c * J);
    UNROLL for (int j = 0; j < J; j++) UNROLL for (int i = 0; i < N; i++) dw[j][i] = 0.0f;
    UNROLL for (int j = 0; j < J - 1; j++) {
        conv_row<N>(in[j], x, t0 - J + 1 + j, ldx);
        UNROLL for (int i = 0; i < N; i++) dc[j][i] = 0.0f;
    }
    for (int64_t t = t0; t < t1 + J - 1; t += U) {
        float d[U][N];
        UNROLL for (int u = 0; u < U; u++) {
            conv_row<N>(in[J - 1 + u], x, min64(t + u, T - 1), ldx);
            conv_row<N>(d[u], dy, min64(t + u, T - 1), ldd);
        }
        UNROLL for (int u = 0; u < U; u++) {
            UNROLL for (int i = 0; i < N; i++) {
                float s = 0.0f, sum = 0.0f;
                UNROLL for (int j = 0; j < J; j++) s = fma1(in[u + j][i], w[j][i], s);
                const float sig = conv_sigmoid(dx, s);
                const float of_c = t + u < T ? d[u][i] * sig * (1.0f + s * (1.0f - sig)) : 0.0f;
                dc[J - 1 + u][i] = of_c;
                if (t + u < t1) UNROLL for (int j = 0; j < J; j++) dw[j][i] = fma1(of_c, in[u + j][i], dw[j][i]);
                UNROLL for (int j = 0; j < J; j++) sum = fma1(w[j][i], dc[J - 1 + u - j][i], sum);
                d[u][i] = sum; /* dx of row t+u-J+1 */
            }
            const int64_t to = t + u - J + 1;
            if (to >= t0 && to < t1) conv_store<N>(dx + to * ldo, d[u]);
        }
        UNROLL for (int j = 0; j < J - 1; j++) UNROLL for (int i = 0; i < N; i++) {
            in[j][i] = in[j + U][i];
            dc[j][i] = dc[j + U][i];
        }
    }
    part += (it * C + c) * J;
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int j = 0; j < J; j++) part[i * J + j] = dw[j][i];
}
//== conv_cached
/* T new rows of every sequence. state [S * ${J}-1, C] = the inputs of a sequence before the new ones;
 * where a sequence is one piece it is brought up to date here, else by conv_state. A thread has one
 * channel of a piece. */
extern "C" __global__ void __launch_bounds__(128)
@FN@(const ${TX} *x, const float *weight, float *state, const int32_t *states, const int32_t *past, ${TY} *y,
     int64_t T, int64_t C, int64_t ldx, int64_t ldy)
{
    enum { J = ${J}, R = ${R}, U = 4 };
    const int64_t blocks = div_up(C, 128), pieces = div_up(T, R), it = blockIdx.x / blocks;
    const int64_t c = blockIdx.x % blocks * 128 + threadIdx.x, b = it / pieces;
    if (c >= C) return;
    const int64_t t0 = it % pieces * R, t1 = min64(t0 + R, T), before = past[b];
    x += b * T * ldx + c;
    y += b * T * ldy + c;
    state += states[b] * (int64_t)(J - 1) * C + c;
    float w[J][1], in[J - 1 + U][1];
    conv_weights<1, J>(w, weight + c * J);
    UNROLL for (int j = 0; j < J - 1; j++) {
        const int64_t at = t0 - J + 1 + j;
        if (at >= 0)
            conv_load<1>(in[j], x + at * ldx);
        else
            in[j][0] = before + at >= 0 ? state[(J - 1 + at) * C] : 0.0f;
    }
    for (int64_t t = t0; t < t1; t += U) {
        const int n = (int)min64(U, t1 - t);
        UNROLL for (int u = 0; u < U; u++) conv_load<1>(in[J - 1 + u], x + min64(t + u, T - 1) * ldx);
        UNROLL for (int u = 0; u < U; u++) {
            float s = 0.0f;
            UNROLL for (int j = 0; j < J; j++) s = fma1(in[u + j][0], w[j][0], s);
            s = s * conv_sigmoid(y, s);
            if (u < n) conv_store<1>(y + (t + u) * ldy, &s);
        }
        UNROLL for (int u = 0; u < U; u++)
            if (u < n) UNROLL for (int j = 0; j < J - 1 + U - 1; j++) in[j][0] = in[j + 1][0];
    }
    if (pieces == 1) UNROLL for (int j = 0; j < J - 1; j++) state[j * C] = in[j][0];
}
//== conv_state
/* The last ${J}-1 inputs of sequences of at least so many rows. */
extern "C" __global__ void __launch_bounds__(128)
@FN@(const ${TX} *x, float *state, const int32_t *states, int64_t T, int64_t C, int64_t ldx)
{
    enum { J = ${J} };
    const int64_t blocks = div_up(C, 128), b = blockIdx.x / blocks;
    const int64_t c = blockIdx.x % blocks * 128 + threadIdx.x;
    if (c >= C) return;
    UNROLL for (int j = 0; j < J - 1; j++) {
        float v;
        conv_load<1>(&v, x + (b * T + T - J + 1 + j) * ldx + c);
        state[(states[b] * (int64_t)(J - 1) + j) * C + c] = v;
    }
}
