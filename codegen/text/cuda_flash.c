/* Attention of whole sequences over bf16 operands by tensor cores; what is computed is in cuda_attention.c.
 * Probabilities and their gradients are rounded to bf16 for the products, sums are float32. */
//== flash
/* A block has ${WARPS} warps of ${M}*16 queries of one head; it goes through the keys they see in tiles of ${BK} on absolute
 * positions, of which the next is on its way while one is worked on. Floor: 2 (HD + VD) T^2/2 FLOPs a
 * head at the rate of mma.sync. */
extern "C" __global__ void __launch_bounds__(32 * ${WARPS}, ${BLOCKS})
@FN@(const uint16_t *q, const uint16_t *k, const uint16_t *v, ${TO} *o, float *lse, float *most,
     int64_t steps, int64_t tiles)
{
    enum { H = ${H}, G = H / ${KV}, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, WARPS = ${WARPS}, M = ${M}, BQ = 16 * M * WARPS };
    enum { BK = ${BK}, NK = BK / 8, HP = (HD + 15) / 16 * 16, VP = (VD + 15) / 16 * 16, NV = VP / 8 };
    const float scale = ${SCALE}f, base2 = scale * 1.44269504088896341f;
    DYNAMIC_SHARED(uint16_t, qs); /* [BQ][HP + 8] */
    uint16_t *const ks = qs + BQ * (HP + 8), *const vs = ks + 2 * BK * (HP + 8); /* two tiles each */
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    /* The longest rows begin first. */
    const unsigned others = gridDim.x / (unsigned)tiles;
    const int h = blockIdx.x % others % H, q0 = ((int)tiles - 1 - (int)(blockIdx.x / others)) * BQ;
    const int64_t row0 = blockIdx.x % others / H * steps;
    const int end = min64(q0 + BQ, steps), w0 = q0 + 16 * M * warp; /* w0: the warp's first */
    const int begin = W > 0 ? max64(0, q0 - W + 1) / BK * BK : 0;
    k += row0 * ${LD_K} + h / G * HD;
    v += row0 * ${LD_V} + h / G * VD;
    mma_copy<BQ, HD, 32 * WARPS>(qs, q + (row0 + q0) * ${LD_Q} + h * HD, ${LD_Q}, end - q0);
    mma_copy<BK, HD, 32 * WARPS>(ks, k + (int64_t)begin * ${LD_K}, ${LD_K}, steps - begin);
    mma_copy<BK, VD, 32 * WARPS>(vs, v + (int64_t)begin * ${LD_V}, ${LD_V}, steps - begin);
    cp_async_commit();
    float acc[M][NV][4] = {}, top[M][2], sum[M][2];
    UNROLL for (int m = 0; m < M; m++) top[m][0] = top[m][1] = -1e30f, sum[m][0] = sum[m][1] = 0;
    int stage = 0;
    for (int k0 = begin; k0 < end; k0 += BK, stage ^= 1) {
        cp_async_wait(0);
        __syncthreads(); /* this tile has come, the one before is done with */
        if (k0 + BK < end) {
            const int next = k0 + BK;
            mma_copy<BK, HD, 32 * WARPS>(ks + (stage ^ 1) * BK * (HP + 8), k + (int64_t)next * ${LD_K}, ${LD_K},
                                         steps - next);
            mma_copy<BK, VD, 32 * WARPS>(vs + (stage ^ 1) * BK * (VP + 8), v + (int64_t)next * ${LD_V}, ${LD_V},
                                         steps - next);
            cp_async_commit();
        }
        /* A tile of which the warp sees nothing; with M = 2 the jump would cost too many registers. */
        if constexpr (M == 1)
            if (k0 > w0 + 15 || w0 >= end || (W > 0 && k0 + BK - 1 <= w0 - W)) continue;
        float s[M][NK][4];
        mma_dots<M, NK, HP>(s, qs + 16 * M * warp * (HP + 8), ks + stage * BK * (HP + 8));
        const bool edge = k0 + BK - 1 > w0 || (W > 0 && k0 <= w0 + 16 * M - 1 - W);
        UNROLL for (int m = 0; m < M; m++) {
            if (edge)
                UNROLL for (int n = 0; n < NK; n++)
                    UNROLL for (int e = 0; e < 4; e++) {
                        const int row = w0 + 16 * m + g + e / 2 * 8, key = k0 + 8 * n + 2 * t + e % 2;
                        if (key > row || (W > 0 && key <= row - W)) s[m][n][e] = -INFF;
                    }
            UNROLL for (int half = 0; half < 2; half++) {
                float best = top[m][half], total = 0;
                UNROLL for (int n = 0; n < NK; n++)
                    best = max1(max1(s[m][n][2 * half], s[m][n][2 * half + 1]), best);
                best = max1(best, __shfl_xor_sync(ALL_LANES, best, 1));
                best = max1(best, __shfl_xor_sync(ALL_LANES, best, 2));
                const float factor = exp2_fast(mul1(top[m][half] - best, base2)), shift = mul1(best, base2);
                UNROLL for (int n = 0; n < NK; n++)
                    UNROLL for (int e = 2 * half; e < 2 * half + 2; e++) {
                        s[m][n][e] = exp2_fast(fma1(s[m][n][e], base2, -shift));
                        total += s[m][n][e];
                    }
                UNROLL for (int n = 0; n < NV; n++)
                    UNROLL for (int e = 2 * half; e < 2 * half + 2; e++)
                        acc[m][n][e] = mul1(acc[m][n][e], factor);
                sum[m][half] = fma1(sum[m][half], factor, total);
                top[m][half] = best;
            }
        }
        mma_sums<M, NV, NK>(acc, s, vs + stage * BK * (VP + 8));
    }
    UNROLL for (int m = 0; m < M; m++) {
        float part[2];
        UNROLL for (int half = 0; half < 2; half++) {
            float all = sum[m][half];
            all += __shfl_xor_sync(ALL_LANES, all, 1);
            all += __shfl_xor_sync(ALL_LANES, all, 2);
            part[half] = div1(1.0f, all);
            const int row = w0 + 16 * m + g + 8 * half;
            if (t || row >= end) continue;
            lse[(row0 + row) * H + h] = mul1(top[m][half], scale) + log1(all);
            most[(row0 + row) * H + h] = mul1(top[m][half], scale);
        }
        mma_store<NV, VD>(o + (row0 + w0 + 16 * m) * ${LD_O} + h * VD, ${LD_O}, acc[m], part,
                          end - w0 - 16 * m);
    }
}
//== flash_dkv
/* Gradients of keys and values: a block has ${WARPS} warps of 16 keys of a key head and goes through its query heads,
 * and for each through tiles of ${BQ} queries, in order. Scores are made transposed, [key][query], so that they are
 * the first operand of the products that follow without leaving registers. */
extern "C" __global__ void __launch_bounds__(32 * ${WARPS}, 1)
@FN@(const uint16_t *q, const uint16_t *k, const uint16_t *v, const float *lse, const uint16_t *d,
     const float *delta, ${TDK} *dk, ${TDV} *dv, int64_t steps, int64_t tiles)
{
    enum { H = ${H}, KV = ${KV}, G = H / KV, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, WARPS = ${WARPS}, BK = 16 * WARPS };
    enum { BQ = ${BQ}, NQ = BQ / 8, HP = (HD + 15) / 16 * 16, VP = (VD + 15) / 16 * 16 };
    const float scale = ${SCALE}f, log2e = 1.44269504088896341f, base2 = scale * log2e;
    DYNAMIC_SHARED(uint16_t, ks); /* [BK][HP + 8] */
    uint16_t *const vs = ks + BK * (HP + 8), *const qs = vs + BK * (VP + 8); /* qs, os: two tiles */
    uint16_t *const os = qs + 2 * BQ * (HP + 8);
    float *const ls = (float *)(os + 2 * BQ * (VP + 8)), *const ds = ls + 2 * BQ;
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const unsigned others = gridDim.x / (unsigned)tiles;
    const int kv = blockIdx.x % others % KV, k0 = blockIdx.x / others * BK;
    const int64_t row0 = blockIdx.x % others / KV * steps;
    const int end = W > 0 ? min64(steps, k0 + BK - 1 + W) : steps; /* later rows see none of the keys */
    const int w0 = k0 + 16 * warp, each = (end - k0 + BQ - 1) / BQ;
    mma_copy<BK, HD, 32 * WARPS>(ks, k + (row0 + k0) * ${LD_K} + kv * HD, ${LD_K}, steps - k0);
    mma_copy<BK, VD, 32 * WARPS>(vs, v + (row0 + k0) * ${LD_V} + kv * VD, ${LD_V}, steps - k0);
    float ak[1][HP / 8][4] = {}, av[1][VP / 8][4] = {};
    /* Tile i of all query heads, i = -1: nothing yet. */
    for (int i = -1; i < G * each; i++) {
        if (i >= 0) {
            cp_async_wait(0);
            __syncthreads(); /* this tile has come, the one before is done with */
        }
        if (i + 1 < G * each) {
            const int h = kv * G + (i + 1) / each, q0 = k0 + (i + 1) % each * BQ;
            const int to = (i + 1) % 2;
            mma_copy<BQ, HD, 32 * WARPS>(qs + to * BQ * (HP + 8), q + (row0 + q0) * ${LD_Q} + h * HD, ${LD_Q},
                                         end - q0);
            mma_copy<BQ, VD, 32 * WARPS>(os + to * BQ * (VP + 8), d + (row0 + q0) * ${LD_D} + h * VD, ${LD_D},
                                         end - q0);
            for (int r = threadIdx.x; r < 2 * BQ; r += 32 * WARPS) {
                const bool is = q0 + r % BQ < end;
                const int64_t at = is ? (row0 + q0 + r % BQ) * H + h : 0;
                cp_async4((r < BQ ? ls : ds) + to * BQ + r % BQ, (r < BQ ? lse : delta) + at, is);
            }
            cp_async_commit();
        }
        if (i < 0) continue;
        const int q0 = k0 + i % each * BQ;
        if (q0 + BQ - 1 < w0 || (W > 0 && q0 > w0 + 15 + W - 1)) continue;
        const int stage = i % 2;
        float p[1][NQ][4], s[1][NQ][4];
        mma_dots<1, NQ, HP>(p, ks + 16 * warp * (HP + 8), qs + stage * BQ * (HP + 8));
        UNROLL for (int n = 0; n < NQ; n++)
            UNROLL for (int e = 0; e < 4; e++) {
                const int at = 8 * n + 2 * t + e % 2;
                const int row = q0 + at, key = w0 + g + e / 2 * 8;
                const bool sees = row < end && key <= row && (W == 0 || key > row - W);
                p[0][n][e] = sees ? exp2_fast(fma1(p[0][n][e], base2, -mul1(ls[stage * BQ + at], log2e))) : 0.0f;
            }
        mma_sums<1, VP / 8, NQ>(av, p, os + stage * BQ * (VP + 8));
        mma_dots<1, NQ, VP>(s, vs + 16 * warp * (VP + 8), os + stage * BQ * (VP + 8));
        UNROLL for (int n = 0; n < NQ; n++)
            UNROLL for (int e = 0; e < 4; e++) {
                const int at = 8 * n + 2 * t + e % 2;
                /* A row that sees one key only: its probability is 1 whatever the score. */
                const bool fixed = W == 1 || q0 + at == 0;
                s[0][n][e] = fixed ? 0.0f : mul1(p[0][n][e], s[0][n][e] - ds[stage * BQ + at]);
            }
        mma_sums<1, HP / 8, NQ>(ak, s, qs + stage * BQ * (HP + 8));
    }
    const float by[2] = {scale, scale}, one[2] = {1, 1};
    mma_store<HP / 8, HD>(dk + (row0 + w0) * ${LD_DK} + kv * HD, ${LD_DK}, ak[0], by, steps - w0);
    mma_store<VP / 8, VD>(dv + (row0 + w0) * ${LD_DV} + kv * VD, ${LD_DV}, av[0], one, steps - w0);
}
//== flash_dq
/* Gradients of queries: a block has ${WARPS} warps of 16 queries of a head and goes through the keys they see. */
extern "C" __global__ void __launch_bounds__(32 * ${WARPS}, 1)
@FN@(const uint16_t *q, const uint16_t *k, const uint16_t *v, const float *lse, const uint16_t *d,
     const float *delta, ${TDQ} *dq, int64_t steps, int64_t tiles)
{
    enum { H = ${H}, G = H / ${KV}, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, WARPS = ${WARPS}, BQ = 16 * WARPS };
    enum { BK = ${BK}, NK = BK / 8, HP = (HD + 15) / 16 * 16, VP = (VD + 15) / 16 * 16 };
    const float scale = ${SCALE}f, log2e = 1.44269504088896341f, base2 = scale * log2e;
    DYNAMIC_SHARED(uint16_t, qs); /* [BQ][HP + 8] */
    uint16_t *const os = qs + BQ * (HP + 8), *const ks = os + BQ * (VP + 8); /* ks, vs: two tiles */
    uint16_t *const vs = ks + 2 * BK * (HP + 8);
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const unsigned others = gridDim.x / (unsigned)tiles;
    const int h = blockIdx.x % others % H, q0 = ((int)tiles - 1 - (int)(blockIdx.x / others)) * BQ;
    const int64_t row0 = blockIdx.x % others / H * steps;
    const int end = min64(q0 + BQ, steps), w0 = q0 + 16 * warp;
    const int begin = W > 0 ? max64(0, q0 - W + 1) / BK * BK : 0;
    k += row0 * ${LD_K} + h / G * HD;
    v += row0 * ${LD_V} + h / G * VD;
    mma_copy<BQ, HD, 32 * WARPS>(qs, q + (row0 + q0) * ${LD_Q} + h * HD, ${LD_Q}, end - q0);
    mma_copy<BQ, VD, 32 * WARPS>(os, d + (row0 + q0) * ${LD_D} + h * VD, ${LD_D}, end - q0);
    mma_copy<BK, HD, 32 * WARPS>(ks, k + (int64_t)begin * ${LD_K}, ${LD_K}, steps - begin);
    mma_copy<BK, VD, 32 * WARPS>(vs, v + (int64_t)begin * ${LD_V}, ${LD_V}, steps - begin);
    cp_async_commit();
    float acc[1][HP / 8][4] = {}, shift[2], less[2];
    UNROLL for (int half = 0; half < 2; half++) {
        const int row = w0 + g + 8 * half;
        const int64_t at = (row0 + row) * H + h;
        shift[half] = row < end ? mul1(lse[at], log2e) : 0.0f;
        less[half] = row < end ? delta[at] : 0.0f;
    }
    int stage = 0;
    for (int k0 = begin; k0 < end; k0 += BK, stage ^= 1) {
        cp_async_wait(0);
        __syncthreads(); /* this tile has come, the one before is done with */
        if (k0 + BK < end) {
            const int next = k0 + BK;
            mma_copy<BK, HD, 32 * WARPS>(ks + (stage ^ 1) * BK * (HP + 8), k + (int64_t)next * ${LD_K}, ${LD_K},
                                         steps - next);
            mma_copy<BK, VD, 32 * WARPS>(vs + (stage ^ 1) * BK * (VP + 8), v + (int64_t)next * ${LD_V}, ${LD_V},
                                         steps - next);
            cp_async_commit();
        }
        if (k0 > w0 + 15 || w0 >= end || (W > 0 && k0 + BK - 1 <= w0 - W)) continue;
        float s[1][NK][4], dp[1][NK][4];
        mma_dots<1, NK, HP>(s, qs + 16 * warp * (HP + 8), ks + stage * BK * (HP + 8));
        mma_dots<1, NK, VP>(dp, os + 16 * warp * (VP + 8), vs + stage * BK * (VP + 8));
        UNROLL for (int n = 0; n < NK; n++)
            UNROLL for (int e = 0; e < 4; e++) {
                const int row = w0 + g + e / 2 * 8, key = k0 + 8 * n + 2 * t + e % 2;
                /* A row that sees one key only: its probability is 1 whatever the score. */
                const bool counts = key <= row && (W == 0 || key > row - W) && W != 1 && row != 0;
                const float p = exp2_fast(fma1(s[0][n][e], base2, -shift[e / 2]));
                s[0][n][e] = counts ? mul1(p, dp[0][n][e] - less[e / 2]) : 0.0f;
            }
        mma_sums<1, HP / 8, NK>(acc, s, ks + stage * BK * (HP + 8));
    }
    const float by[2] = {scale, scale};
    mma_store<HP / 8, HD>(dq + (row0 + w0) * ${LD_DQ} + h * HD, ${LD_DQ}, acc[0], by, end - w0);
}
