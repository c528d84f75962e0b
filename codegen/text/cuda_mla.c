/* Multi-head latent attention: per head N = k_nope, R = k_rope (one for all heads), V = value. */
//== mla_keys
/* k = per head (k_nope | kr), v = per head the rest of kv. A thread moves ${W} elements of k or v. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${TA} *kv, const ${TB} *kr, ${TC} *k, ${TD} *v, int64_t rows)
{
    enum { W = ${W}, N = ${N}, R = ${R}, V = ${V}, EACH = (N + R + V) / W, ALL = ${H} * EACH };
    const int64_t at = blockIdx.x * (int64_t)256 + threadIdx.x, r = at / ALL;
    const int h = (int)(at % ALL) / EACH, c = (int)(at % ALL) % EACH * W;
    if (r >= rows) return;
    const ${TA} *from = kv + r * ${LDA} + h * (N + V);
    float x[W];
    if (c < N)
        ld_row<W>(x, from + c);
    else if (c < N + R)
        ld_row<W>(x, kr + r * ${LDB} + c - N);
    else
        ld_row<W>(x, from + c - R);
    if (c < N + R)
        st_row<W>(k + r * ${LDC} + h * (N + R) + c, x);
    else
        st_row<W>(v + r * ${LDD} + h * V + c - N - R, x);
}
//== mla_keys_grad
/* dkv = per head (dk_nope | dv), dkr = sum of the heads' last R of dk, in head order. A thread makes ${W} elements
 * of dkv or dkr. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${TA} *dk, const ${TB} *dv, ${TC} *dkv, ${TD} *dkr, int64_t rows)
{
    enum { W = ${W}, N = ${N}, R = ${R}, V = ${V}, H = ${H}, EACH = (N + V) / W, ALL = H * EACH + R / W };
    const int64_t at = blockIdx.x * (int64_t)256 + threadIdx.x, r = at / ALL;
    const int i = (int)(at % ALL), h = i / EACH, c = i % EACH * W;
    if (r >= rows) return;
    float x[W];
    if (h < H) {
        if (c < N)
            ld_row<W>(x, dk + r * ${LDA} + h * (N + R) + c);
        else
            ld_row<W>(x, dv + r * ${LDB} + h * V + c - N);
        st_row<W>(dkv + r * ${LDC} + h * (N + V) + c, x);
        return;
    }
    const int e = (i - H * EACH) * W;
    float sum[W] = {};
    for (int head = 0; head < H; head++) {
        ld_row<W>(x, dk + r * ${LDA} + head * (N + R) + N + e);
        UNROLL for (int j = 0; j < W; j++) sum[j] += x[j];
    }
    st_row<W>(dkr + r * ${LDD} + e, sum);
}
//== mla_queries
/* Absorbed queries (W_k^T q | q_rope) of 16 tokens and one head, 256 columns a block: [token][H][L + R]. W_k is read
 * once for all of them. */
extern "C" __global__ void __launch_bounds__(256, 1)
@FN@(const ${TQ} *q, const ${TW} *w, float *out, int64_t rows)
{
    enum { H = ${H}, N = ${N}, R = ${R}, V = ${V}, L = ${L}, TOKENS = 16 };
    __shared__ __align__(16) float qs[N * TOKENS]; /* [N][TOKENS] */
    const int64_t h = blockIdx.x % H, t0 = blockIdx.x / H * TOKENS, left = min64(TOKENS, rows - t0);
    for (int i = threadIdx.x; i < N * TOKENS; i += 256) {
        const int t = i / N, n = i % N;
        float x = 0;
        if (t < left) ld_row<1>(&x, q + (t0 + t) * ${LDQ} + h * (N + R) + n);
        qs[n * TOKENS + t] = x;
    }
    for (int i = threadIdx.x; i < left * R && blockIdx.y == 0; i += 256)
        ld_row<1>(out + ((t0 + i / R) * H + h) * (L + R) + L + i % R,
                  q + (t0 + i / R) * ${LDQ} + h * (N + R) + N + i % R);
    __syncthreads();
    const int l = blockIdx.y * 256 + threadIdx.x;
    if (l >= L) return;
    w += h * (N + V) * ${LDW} + l;
    float sum[TOKENS] = {}, x, y[4];
    UNROLL_BY(16) for (int n = 0; n < N; n++) {
        ld_row<1>(&x, w + n * ${LDW});
        UNROLL for (int t = 0; t < TOKENS; t += 4) {
            ld_f32x4(y, qs + n * TOKENS + t);
            UNROLL for (int e = 0; e < 4; e++) sum[t + e] = fma1(y[e], x, sum[t + e]);
        }
    }
    UNROLL for (int t = 0; t < TOKENS; t++)
        if (t < left) out[((t0 + t) * H + h) * (L + R) + l] = sum[t];
}
//== mla_values
/* o = W_v times what attention gave, [token][H][L]: 16 tokens, one head and 32 columns a block, of which a warp makes
 * every eighth. Lanes take ${W} of a row's elements at once. */
extern "C" __global__ void __launch_bounds__(256, 1)
@FN@(const float *latent, const ${TW} *w, ${TO} *o, int64_t rows)
{
    enum { H = ${H}, N = ${N}, V = ${V}, L = ${L}, W = ${W}, TOKENS = 16, SOME = 4, COLS = 32 };
    DYNAMIC_SHARED(float, cs); /* [TOKENS][L] */
    const int lane = threadIdx.x % WARP, v0 = blockIdx.y * COLS;
    const int64_t h = blockIdx.x % H, t0 = blockIdx.x / H * TOKENS, left = min64(TOKENS, rows - t0);
    for (int i = threadIdx.x; i < TOKENS * L; i += 256)
        cs[i] = i / L < left ? latent[((t0 + i / L) * H + h) * L + i % L] : 0.0f;
    __syncthreads();
    w += (h * (N + V) + N) * ${LDW};
    for (int v = v0 + threadIdx.x / WARP; v < V && v < v0 + COLS; v += 8) {
        float sum[TOKENS] = {}, x[W], c[W];
        UNROLL_BY(4) for (int l = lane * W; l < L; l += WARP * W) {
            ld_row<W>(x, w + v * ${LDW} + l);
            UNROLL for (int t = 0; t < TOKENS; t++) {
                if (t / SOME * SOME >= left) continue;
                ld_row<W>(c, cs + t * L + l);
                UNROLL for (int e = 0; e < W; e++) sum[t] = fma1(c[e], x[e], sum[t]);
            }
        }
        UNROLL for (int t = 0; t < TOKENS; t++) {
            if (t / SOME * SOME >= left) continue;
            const float y = warp_sum(sum[t]);
            if (lane == 0 && t < left) st_row<1>(o + (t0 + t) * ${LDO} + h * V + v, &y);
        }
    }
}
