/* Attention of whole sequences over bf16 operands by tensor cores; what is computed is in cuda_attention.c.
 * Probabilities and their gradients are rounded to bf16 for the products, sums are float32. */
//== flash
/* A block has ${BQ} queries of one head, 16 M a warp, and goes through the keys they see in tiles of ${BK} on absolute
 * positions, of which the next is on its way while one is worked on. With SPLIT = 2 two warps have the same queries
 * and each takes one half of every tile, so that a block alone keeps a multiprocessor busy. Probabilities are
 * relative to a score of the row that its largest so far exceeds by slack at most, a factor of 2^8: sums are
 * multiplied only when it grows by more, which is rare. What a row does not see has the probability 0, so a NaN
 * among values reaches the rows before it within its tile. Floor: 2 (HD + VD) T^2/2 FLOPs a head at the rate of
 * mma.sync. */
extern "C" __global__ void __launch_bounds__(32 * ${WARPS}, ${BLOCKS})
@FN@(const uint16_t *q, const uint16_t *k, const uint16_t *v, ${TO} *o, float *lse, float *most,
     int64_t steps, int64_t tiles)
{
    enum { H = ${H}, G = H / ${KV}, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, WARPS = ${WARPS}, M = ${M}, SPLIT = ${SPLIT} };
    enum { GROUPS = WARPS / SPLIT, BQ = 16 * M * GROUPS, BK = ${BK}, OWN = BK / SPLIT, NK = OWN / 8 };
    enum { HP = (HD + 15) / 16 * 16, VP = (VD + 15) / 16 * 16, NV = VP / 8 };
    const float scale = ${SCALE}f, base2 = scale * 1.44269504088896341f, slack = 8 / base2;
    DYNAMIC_SHARED(uint16_t, qs); /* [BQ][HP + 8] */
    uint16_t *const ks = qs + BQ * (HP + 8), *const vs = ks + 2 * BK * (HP + 8); /* two tiles each */
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    /* The longest rows begin first. */
    const unsigned others = gridDim.x / (unsigned)tiles;
    const int h = blockIdx.x % others % H, q0 = ((int)tiles - 1 - (int)(blockIdx.x / others)) * BQ;
    const int T = (int)steps;
    const int64_t row0 = (int64_t)(blockIdx.x % others / H) * T;
    const int end = min64(q0 + BQ, T), part = warp / GROUPS; /* of every tile of keys */
    const int w0 = q0 + 16 * M * (warp % GROUPS); /* the warp's first query */
    const int begin = W > 0 ? max64(0, q0 - W + 1) / BK * BK : 0;
    auto fetch = [&](int to, int k0) {
        mma_copy<BK, HD, 32 * WARPS>(ks + to * BK * (HP + 8), k + (row0 + k0) * ${LD_K} + h / G * HD, ${LD_K}, T - k0);
        mma_copy<BK, VD, 32 * WARPS>(vs + to * BK * (VP + 8), v + (row0 + k0) * ${LD_V} + h / G * VD, ${LD_V}, T - k0);
        cp_async_commit();
    };
    mma_copy<BQ, HD, 32 * WARPS>(qs, q + (row0 + q0) * ${LD_Q} + h * HD, ${LD_Q}, end - q0);
    fetch(0, begin);
    float acc[M][NV][4] = {}, top[M][2], largest[M][2], sum[M][2];
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int half = 0; half < 2; half++)
            top[m][half] = largest[m][half] = -1e30f, sum[m][half] = 0;
    int stage = 0;
    for (int k0 = begin; k0 < end; k0 += BK, stage ^= 1) {
        cp_async_wait(0);
        __syncthreads(); /* this tile has come, the one before is done with */
        if (k0 + BK < end) fetch(stage ^ 1, k0 + BK);
        const int from = k0 + OWN * part;
        if (from > w0 + 16 * M - 1 || (W > 0 && from + OWN - 1 <= w0 - W)) continue; /* the warp sees none */
        float s[M][NK][4], best[M][2];
        mma_dots<M, NK, HP, 0>(s, 0, qs + (w0 - q0) * (HP + 8), ks + (stage * BK + OWN * part) * (HP + 8));
        if (from + OWN - 1 > w0 || (W > 0 && from <= w0 + 16 * M - 1 - W))
            UNROLL for (int m = 0; m < M; m++)
                UNROLL for (int n = 0; n < NK; n++)
                    UNROLL for (int e = 0; e < 4; e++) {
                        const int row = w0 + 16 * m + g + e / 2 * 8, key = from + 8 * n + 2 * t + e % 2;
                        if (key > row || (W > 0 && key <= row - W)) s[m][n][e] = -INFF;
                    }
        bool grows = false;
        UNROLL for (int m = 0; m < M; m++)
            UNROLL for (int half = 0; half < 2; half++) {
                float x = s[m][0][2 * half];
                UNROLL for (int i = 1; i < 2 * NK; i++) x = max_fast(x, s[m][i / 2][2 * half + i % 2]);
                x = max_fast(x, __shfl_xor_sync(ALL_LANES, x, 1));
                x = max_fast(x, __shfl_xor_sync(ALL_LANES, x, 2));
                best[m][half] = x;
                largest[m][half] = max_fast(largest[m][half], x);
                grows |= x > top[m][half] + slack;
            }
        if (__any_sync(ALL_LANES, grows))
            UNROLL for (int m = 0; m < M; m++)
                UNROLL for (int half = 0; half < 2; half++) {
                    const float x = best[m][half] > top[m][half] + slack ? best[m][half] : top[m][half];
                    const float factor = exp2_fast(mul1(top[m][half] - x, base2));
                    UNROLL for (int n = 0; n < NV; n++)
                        UNROLL for (int e = 2 * half; e < 2 * half + 2; e++)
                            acc[m][n][e] = mul1(acc[m][n][e], factor);
                    sum[m][half] = mul1(sum[m][half], factor);
                    top[m][half] = x;
                }
        uint32_t p[NK / 2][M][4];
        UNROLL for (int m = 0; m < M; m++) {
            UNROLL for (int half = 0; half < 2; half++) {
                const float shift = mul1(top[m][half], base2);
                float total = 0;
                UNROLL for (int n = 0; n < NK; n++)
                    UNROLL for (int e = 2 * half; e < 2 * half + 2; e++) {
                        s[m][n][e] = exp2_fast(fma1(s[m][n][e], base2, -shift));
                        total += s[m][n][e];
                    }
                sum[m][half] += total;
            }
            UNROLL for (int n = 0; n < NK; n += 2) mma_again(p[n / 2][m], s[m][n], s[m][n + 1]);
        }
        mma_sums<M, NV, NK / 2>(acc, p, vs + (stage * BK + OWN * part) * (VP + 8));
    }
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int half = 0; half < 2; half++) {
            sum[m][half] += __shfl_xor_sync(ALL_LANES, sum[m][half], 1);
            sum[m][half] += __shfl_xor_sync(ALL_LANES, sum[m][half], 2);
        }
    if constexpr (SPLIT == 2) { /* the second half's results join those of the first */
        enum { N = 32 * GROUPS };
        float *const to = (float *)qs + threadIdx.x % N;
        __syncthreads();
        if (part)
            UNROLL for (int m = 0; m < M; m++) {
                UNROLL for (int i = 0; i < 4 * NV; i++) to[(m * 4 * NV + i) * N] = acc[m][i / 4][i % 4];
                UNROLL for (int half = 0; half < 2; half++) {
                    float *const at = to + (M * 4 * NV + 3 * (2 * m + half)) * N;
                    at[0] = top[m][half], at[N] = sum[m][half], at[2 * N] = largest[m][half];
                }
            }
        __syncthreads();
        if (part) return;
        UNROLL for (int m = 0; m < M; m++)
            UNROLL for (int half = 0; half < 2; half++) {
                const float *const at = to + (M * 4 * NV + 3 * (2 * m + half)) * N;
                const float x = max_fast(top[m][half], at[0]);
                const float mine = exp2_fast(mul1(top[m][half] - x, base2)), other = exp2_fast(mul1(at[0] - x, base2));
                UNROLL for (int n = 0; n < NV; n++)
                    UNROLL for (int e = 2 * half; e < 2 * half + 2; e++)
                        acc[m][n][e] = fma1(acc[m][n][e], mine, mul1(to[(m * 4 * NV + 4 * n + e) * N], other));
                sum[m][half] = fma1(sum[m][half], mine, mul1(at[N], other));
                largest[m][half] = max_fast(largest[m][half], at[2 * N]);
                top[m][half] = x;
            }
    }
    UNROLL for (int m = 0; m < M; m++) {
        const float by[2] = {div1(1.0f, sum[m][0]), div1(1.0f, sum[m][1])};
        mma_store<NV, VD, ${VEC_O}>(o + (row0 + w0 + 16 * m) * ${LD_O} + h * VD, ${LD_O}, acc[m], by,
                                    end - w0 - 16 * m);
    }
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int half = 0; half < 2; half++) {
            const int row = w0 + 16 * m + g + 8 * half;
            if (t || row >= end) continue;
            lse[(row0 + row) * H + h] = mul1(top[m][half], scale) + log1(sum[m][half]);
            most[(row0 + row) * H + h] = mul1(largest[m][half], scale);
        }
}
//== flash_delta
/* For the backward: lse times log2 e, and o . do of ${VD} columns, each [B][H][steps]. Eight lanes a row of a head. Bound
 * by memory. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${TO} *o, const ${TD} *d, const float *lse, float *shift, float *delta, int64_t steps,
     int64_t tiles)
{
    enum { H = ${H}, VD = ${VD}, V = ${VEC_O} < ${VEC_D} ? ${VEC_O} : ${VEC_D}, LANES = 8, ROWS = 256 / LANES };
    const unsigned seq = blockIdx.x / (unsigned)tiles, h = seq % H;
    const int64_t r = blockIdx.x % (unsigned)tiles * ROWS + threadIdx.x / LANES, row = seq / H * steps + r;
    const int lane = threadIdx.x % LANES;
    float sum = 0, x[V], y[V];
    if (r < steps)
        for (int c = lane * V; c < VD; c += LANES * V) {
            ld_row<V>(x, o + row * ${LD_O} + h * VD + c);
            ld_row<V>(y, d + row * ${LD_D} + h * VD + c);
            UNROLL for (int e = 0; e < V; e++) sum = fma1(x[e], y[e], sum);
        }
    UNROLL for (int i = LANES / 2; i; i /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, i);
    if (lane || r >= steps) return;
    shift[seq * steps + r] = mul1(lse[row * H + h], 1.44269504088896341f);
    delta[seq * steps + r] = sum;
}
//== flash_dkv
/* Gradients of keys and values: a block has ${BK} keys of a key head and goes through its query heads, and for each
 * through tiles of ${BQ} queries, in order. Scores are made transposed, [key][query], so that they are the first
 * operand of the products that follow without leaving registers. A pair of warps has 16 M keys: the first makes
 * probabilities P from scores and sums dv = P do, the second dP = v do and sums dk = P (dP - delta) q, with the P
 * that the first rounded to bf16, CHUNK queries at a time. So the sums of both fit into registers, and while one
 * takes exponentials the other multiplies. */
template <bool FIRST>
INLINE void @FN@_half(const uint16_t *q, const uint16_t *k, const uint16_t *v, const float *shift,
                      const uint16_t *d, const float *delta, ${TDK} *dk, ${TDV} *dv, int64_t steps, int64_t tiles)
{
    enum { H = ${H}, KV = ${KV}, G = H / KV, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, THREADS = 32 * ${WARPS}, M = ${M} };
    enum { PAIRS = ${WARPS} / 2, BK = 16 * M * PAIRS, BQ = ${BQ}, CHUNK = ${CHUNK}, NQ = CHUNK / 8 };
    enum { HP = (HD + 15) / 16 * 16, VP = (VD + 15) / 16 * 16, K = FIRST ? HP : VP, N = FIRST ? VP : HP };
    enum { BLOCK = 1, PAIR = 2, LEFT = (176 - M * N / 2 - M * CHUNK / 2) / (4 * M) }; /* of a thread's registers */
    enum { HELD = LEFT < 0 ? 0 : LEFT < K / 16 ? LEFT : K / 16 };
    const float base2 = ${SCALE}f * 1.44269504088896341f;
    DYNAMIC_SHARED(uint16_t, ks); /* [BK][HP + 8] */
    uint16_t *const vs = ks + BK * (HP + 8), *const qs = vs + BK * (VP + 8); /* qs, os: two tiles */
    uint16_t *const os = qs + 2 * BQ * (HP + 8);
    uint16_t *const ps = os + 2 * BQ * (VP + 8); /* [2][PAIRS][CHUNK / 16 * M][32] of 8 */
    float *const ls = (float *)(ps + 2 * PAIRS * 16 * M * CHUNK), *const ds = ls + 2 * BQ;
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, pair = threadIdx.x / WARP % PAIRS;
    const unsigned others = gridDim.x / (unsigned)tiles;
    const int kv = blockIdx.x % others % KV, b = blockIdx.x % others / KV, k0 = blockIdx.x / others * BK;
    const int T = (int)steps, end = W > 0 ? min64(T, k0 + BK - 1 + W) : T; /* later rows see none of the keys */
    const int64_t row0 = (int64_t)b * T;
    const int w0 = k0 + 16 * M * pair;
    int h = kv * G, q0 = k0, stage = 0, turn = 0;
    auto fetch = [&](int to) { /* tile (h, q0) */
        mma_copy<BQ, HD, THREADS>(qs + to * BQ * (HP + 8), q + (row0 + q0) * ${LD_Q} + h * HD, ${LD_Q}, end - q0);
        mma_copy<BQ, VD, THREADS>(os + to * BQ * (VP + 8), d + (row0 + q0) * ${LD_D} + h * VD, ${LD_D}, end - q0);
        static_assert(2 * BQ <= THREADS, "a thread copies one of a row's two numbers");
        const int r = threadIdx.x % BQ;
        if (threadIdx.x < 2 * BQ) {
            const float *const from = (threadIdx.x < BQ ? shift : delta) + ((int64_t)b * H + h) * T;
            cp_async4((threadIdx.x < BQ ? ls : ds) + to * BQ + r, q0 + r < end ? from + q0 + r : from, q0 + r < end);
        }
        cp_async_commit();
    };
    mma_copy<BK, HD, THREADS>(ks, k + (row0 + k0) * ${LD_K} + kv * HD, ${LD_K}, T - k0);
    mma_copy<BK, VD, THREADS>(vs, v + (row0 + k0) * ${LD_V} + kv * VD, ${LD_V}, T - k0);
    fetch(0);
    cp_async_wait(0);
    named_sync(BLOCK, THREADS);
    const uint16_t *const own = (FIRST ? ks : vs) + 16 * M * pair * (K + 8);
    uint32_t held[HELD + 1][M][4];
    UNROLL for (int i = 0; i < HELD; i++) mma_first<M, K + 8>(held[i], own, 16 * i);
    float acc[M][N / 8][4] = {};
    while (true) {
        const int at = q0; /* of this tile; then h and q0 go to the next */
        q0 += BQ;
        if (q0 >= end) q0 = k0, h++;
        const bool more = h < (kv + 1) * G;
        if (more) fetch(stage ^ 1);
        const uint16_t *const one = FIRST ? qs + stage * BQ * (HP + 8) : os + stage * BQ * (VP + 8);
        const uint16_t *const two = FIRST ? os + stage * BQ * (VP + 8) : qs + stage * BQ * (HP + 8);
        UNROLL_BY(1) for (int c = 0; c < BQ; c += CHUNK) {
            const int from = at + c; /* rows beyond the end are zeros and add nothing */
            if (from >= end || from + CHUNK - 1 < w0 || (W > 0 && from > w0 + 16 * M - 1 + W - 1)) continue;
            float s[M][NQ][4];
            uint32_t p[NQ / 2][M][4];
            mma_dots<M, NQ, K, HELD>(s, held, own, one + c * (K + 8));
            uint4 *const shared = (uint4 *)ps + (turn * PAIRS + pair) * (NQ / 2 * M * 32) + lane;
            turn ^= 1;
            if constexpr (FIRST) {
                UNROLL for (int n = 0; n < NQ; n++) {
                    float l[2];
                    ld_row<2>(l, ls + stage * BQ + c + 8 * n + 2 * t);
                    UNROLL for (int m = 0; m < M; m++)
                        UNROLL for (int e = 0; e < 4; e++) s[m][n][e] = exp2_fast(fma1(s[m][n][e], base2, -l[e % 2]));
                }
                if (from < w0 + 16 * M - 1 || (W > 0 && from + CHUNK - 1 >= w0 + W))
                    UNROLL for (int m = 0; m < M; m++)
                        UNROLL for (int n = 0; n < NQ; n++)
                            UNROLL for (int e = 0; e < 4; e++) {
                                const int row = from + 8 * n + 2 * t + e % 2, key = w0 + 16 * m + g + e / 2 * 8;
                                if (key > row || (W > 0 && key <= row - W)) s[m][n][e] = 0;
                            }
                UNROLL for (int i = 0; i < NQ / 2; i++)
                    UNROLL for (int m = 0; m < M; m++) {
                        mma_again(p[i][m], s[m][2 * i], s[m][2 * i + 1]);
                        shared[(i * M + m) * 32] = make_uint4(p[i][m][0], p[i][m][1], p[i][m][2], p[i][m][3]);
                    }
                named_sync(PAIR + pair, 64);
            } else {
                named_sync(PAIR + pair, 64);
                UNROLL for (int i = 0; i < NQ / 2; i++) {
                    float less[2][2];
                    ld_row<2>(less[0], ds + stage * BQ + c + 16 * i + 2 * t);
                    ld_row<2>(less[1], ds + stage * BQ + c + 16 * i + 8 + 2 * t);
                    UNROLL for (int m = 0; m < M; m++) {
                        const uint4 x = shared[(i * M + m) * 32];
                        const uint32_t u[4] = {x.x, x.y, x.z, x.w};
                        UNROLL for (int e = 0; e < 8; e++) { /* block e / 4 */
                            const uint32_t w = u[e / 4 * 2 + e % 4 / 2];
                            const float y = __uint_as_float(e % 2 ? w & 0xffff0000u : w << 16);
                            float *const z = &s[m][2 * i + e / 4][e % 4];
                            *z = mul1(y, *z - less[e / 4][e % 2]);
                        }
                    }
                }
                /* A row that sees one key only: its probability is 1 whatever the score. */
                if (W == 1 || from == 0)
                    UNROLL for (int m = 0; m < M; m++)
                        UNROLL for (int n = 0; n < NQ; n++)
                            UNROLL for (int e = 0; e < 4; e++)
                                if (W == 1 || 8 * n + 2 * t + e % 2 == 0) s[m][n][e] = 0;
                UNROLL for (int i = 0; i < NQ / 2; i++)
                    UNROLL for (int m = 0; m < M; m++) mma_again(p[i][m], s[m][2 * i], s[m][2 * i + 1]);
            }
            mma_sums<M, N / 8, NQ / 2>(acc, p, two + c * (N + 8));
        }
        if (!more) break;
        cp_async_wait(0);
        named_sync(BLOCK, THREADS); /* the next tile has come, this one is done with */
        stage ^= 1;
    }
    const float f = FIRST ? 1.0f : ${SCALE}f, by[2] = {f, f};
    UNROLL for (int m = 0; m < M; m++) {
        const int r = w0 + 16 * m;
        if constexpr (FIRST)
            mma_store<N / 8, VD, ${VEC_DV}>(dv + (row0 + r) * ${LD_DV} + kv * VD, ${LD_DV}, acc[m], by, T - r);
        else
            mma_store<N / 8, HD, ${VEC_DK}>(dk + (row0 + r) * ${LD_DK} + kv * HD, ${LD_DK}, acc[m], by, T - r);
    }
}
extern "C" __global__ void __launch_bounds__(32 * ${WARPS}, ${BLOCKS})
@FN@(const uint16_t *q, const uint16_t *k, const uint16_t *v, const float *shift, const uint16_t *d,
     const float *delta, ${TDK} *dk, ${TDV} *dv, int64_t steps, int64_t tiles)
{
    if (threadIdx.x < 16 * ${WARPS})
        @FN@_half<true>(q, k, v, shift, d, delta, dk, dv, steps, tiles);
    else
        @FN@_half<false>(q, k, v, shift, d, delta, dk, dv, steps, tiles);
}
//== flash_dq
/* Gradients of queries: a block has ${BQ} queries of a head, 16 M a warp, and goes through the keys they see, CHUNK
 * at a time. With SPLIT = 2 two warps have the same queries and take turns with the keys. */
extern "C" __global__ void __launch_bounds__(32 * ${WARPS}, ${BLOCKS})
@FN@(const uint16_t *q, const uint16_t *k, const uint16_t *v, const float *shift, const uint16_t *d,
     const float *delta, ${TDQ} *dq, int64_t steps, int64_t tiles)
{
    enum { H = ${H}, G = H / ${KV}, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, THREADS = 32 * ${WARPS}, M = ${M} };
    enum { SPLIT = ${SPLIT}, GROUPS = ${WARPS} / SPLIT, BQ = 16 * M * GROUPS, BK = ${BK}, CHUNK = ${CHUNK} };
    enum { NK = CHUNK / 8, HP = (HD + 15) / 16 * 16, VP = (VD + 15) / 16 * 16 };
    enum { LEFT = (176 - M * HP / 2 - M * CHUNK) / (4 * M) }; /* of a thread's registers */
    enum { HELD = LEFT < 0 ? 0 : LEFT < HP / 16 ? LEFT : HP / 16 };
    const float base2 = ${SCALE}f * 1.44269504088896341f;
    DYNAMIC_SHARED(uint16_t, qs); /* [BQ][HP + 8] */
    uint16_t *const os = qs + BQ * (HP + 8), *const ks = os + BQ * (VP + 8); /* ks, vs: two tiles */
    uint16_t *const vs = ks + 2 * BK * (HP + 8);
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const unsigned others = gridDim.x / (unsigned)tiles, seq = blockIdx.x % others;
    const int h = seq % H, q0 = ((int)tiles - 1 - (int)(blockIdx.x / others)) * BQ;
    const int T = (int)steps;
    const int64_t row0 = (int64_t)(seq / H) * T;
    const int end = min64(q0 + BQ, T), w0 = q0 + 16 * M * (warp % GROUPS), part = warp / GROUPS;
    const int begin = W > 0 ? max64(0, q0 - W + 1) / BK * BK : 0;
    auto fetch = [&](int to, int k0) {
        mma_copy<BK, HD, THREADS>(ks + to * BK * (HP + 8), k + (row0 + k0) * ${LD_K} + h / G * HD, ${LD_K}, T - k0);
        mma_copy<BK, VD, THREADS>(vs + to * BK * (VP + 8), v + (row0 + k0) * ${LD_V} + h / G * VD, ${LD_V}, T - k0);
        cp_async_commit();
    };
    mma_copy<BQ, HD, THREADS>(qs, q + (row0 + q0) * ${LD_Q} + h * HD, ${LD_Q}, end - q0);
    mma_copy<BQ, VD, THREADS>(os, d + (row0 + q0) * ${LD_D} + h * VD, ${LD_D}, end - q0);
    fetch(0, begin);
    float acc[M][HP / 8][4] = {}, l[M][2], less[M][2];
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int half = 0; half < 2; half++) {
            const int row = w0 + 16 * m + g + 8 * half;
            l[m][half] = row < end ? shift[(int64_t)seq * T + row] : 0.0f;
            less[m][half] = row < end ? delta[(int64_t)seq * T + row] : 0.0f;
        }
    cp_async_wait(0);
    __syncthreads();
    const uint16_t *const own = qs + (w0 - q0) * (HP + 8), *const od = os + (w0 - q0) * (VP + 8);
    uint32_t held[HELD + 1][M][4];
    UNROLL for (int i = 0; i < HELD; i++) mma_first<M, HP + 8>(held[i], own, 16 * i);
    int stage = 0;
    for (int k0 = begin; k0 < end; k0 += BK, stage ^= 1) {
        if (k0 > begin) {
            cp_async_wait(0);
            __syncthreads(); /* this tile has come, the one before is done with */
        }
        if (k0 + BK < end) fetch(stage ^ 1, k0 + BK);
        UNROLL_BY(1) for (int c = CHUNK * part; c < BK; c += CHUNK * SPLIT) {
            const int from = k0 + c;
            if (from > w0 + 16 * M - 1 || (W > 0 && from + CHUNK - 1 <= w0 - W)) continue;
            const uint16_t *const kc = ks + (stage * BK + c) * (HP + 8), *const vc = vs + (stage * BK + c) * (VP + 8);
            float s[M][NK][4], dp[M][NK][4];
            mma_dots<M, NK, HP, HELD>(s, held, own, kc);
            mma_dots<M, NK, VP, 0>(dp, 0, od, vc);
            UNROLL for (int m = 0; m < M; m++)
                UNROLL for (int n = 0; n < NK; n++)
                    UNROLL for (int e = 0; e < 4; e++) {
                        const float p = exp2_fast(fma1(s[m][n][e], base2, -l[m][e / 2]));
                        s[m][n][e] = mul1(p, dp[m][n][e] - less[m][e / 2]);
                    }
            if (from + CHUNK - 1 > w0 || (W > 0 && from <= w0 + 16 * M - 1 - W))
                UNROLL for (int m = 0; m < M; m++)
                    UNROLL for (int n = 0; n < NK; n++)
                        UNROLL for (int e = 0; e < 4; e++) {
                            const int row = w0 + 16 * m + g + e / 2 * 8, key = from + 8 * n + 2 * t + e % 2;
                            /* A row that sees one key only: its probability is 1 whatever the score. */
                            const bool counts = key <= row && (W == 0 || key > row - W) && W != 1 && row != 0;
                            if (!counts) s[m][n][e] = 0;
                        }
            uint32_t x[NK / 2][M][4];
            UNROLL for (int i = 0; i < NK / 2; i++)
                UNROLL for (int m = 0; m < M; m++) mma_again(x[i][m], s[m][2 * i], s[m][2 * i + 1]);
            mma_sums<M, HP / 8, NK / 2>(acc, x, kc);
        }
    }
    if constexpr (SPLIT == 2) { /* the second warp's sums join those of the first */
        enum { N = 32 * GROUPS };
        float *const to = (float *)qs + threadIdx.x % N;
        __syncthreads();
        if (part)
            UNROLL for (int i = 0; i < M * HP / 2; i++) to[i * N] = acc[i / (HP / 2)][i / 4 % (HP / 8)][i % 4];
        __syncthreads();
        if (part) return;
        UNROLL for (int i = 0; i < M * HP / 2; i++) acc[i / (HP / 2)][i / 4 % (HP / 8)][i % 4] += to[i * N];
    }
    const float by[2] = {${SCALE}f, ${SCALE}f};
    UNROLL for (int m = 0; m < M; m++)
        mma_store<HP / 8, HD, ${VEC_DQ}>(dq + (row0 + w0 + 16 * m) * ${LD_DQ} + h * HD, ${LD_DQ}, acc[m], by,
                                         end - w0 - 16 * m);
}
