/* Attention over caches of bf16 by tensor cores, for attention_cached and mla_cached. The keys of a sequence are
 * cut into pieces on absolute positions: 32 of PIECE keys, 16 of twice that, 16 of four times that and so on, so that
 * long sequences have few; a piece into tiles of 64, which are pages. A piece's part of a
 * row is an online softmax over its tiles: scores are sums over the even and the odd 16 columns of a key, each
 * in order, probabilities are rounded to bf16, their sum and that of the values are sums over 16 keys at a time in
 * order. All relative to 2^top, top the largest score rounded up to a whole number: factors between tops are powers of
 * two, exact (down to the least float), so that pieces can be added in order by one block or by another kernel with
 * the same bits. A row's bits depend on nothing but its own query and keys: not on the batch, on where its
 * sequence is cut, or on how many rows a block has. */
//== paged_parts
/* 2^d of a whole number d <= 0; 0 below 2^-126. */
INLINE float exp2_whole_@FN@(float d)
{
    const float t = max1(d, -127.0f) + 12582912.0f;
    return __uint_as_float((__float_as_uint(t) + 127u) << 23);
}
/* The least whole number that is not below x. */
INLINE float whole_up_@FN@(float x)
{
    const float r = (x + 12582912.0f) - 12582912.0f;
    return x < 4e6f && x > -4e6f ? r + (r < x ? 1.0f : 0.0f) : x;
}
/* The piece of a position, and where a piece begins. */
INLINE int piece_of_@FN@(int at)
{
    int size = ${PIECE}, first = 0;
    for (; at >= 32 * size; first += 16) size *= 2;
    return first + at / size;
}
INLINE int piece_begin_@FN@(int piece)
{
    int size = ${PIECE}, first = 0;
    for (; piece >= first + 32; first += 16) size *= 2;
    return (piece - first) * size;
}
/* Begins to copy 64 rows of COLS elements, of which `have` exist, as ACROSS pieces of 16 bytes; the rest is
 * zeros. Where a thread begins is its own, all else are constants of the copies. */
template <int COLS, int ACROSS, int LD, int THREADS>
INLINE void paged_rows_@FN@(uint16_t *to, const uint16_t *from, int have)
{
    enum { LANES = ACROSS <= 4 ? 4 : ACROSS <= 8 ? 8 : ACROSS <= 16 ? 16 : 32, AT_ONCE = THREADS / LANES };
    const int r0 = threadIdx.x / LANES, c0 = threadIdx.x % LANES;
    to += r0 * LD + c0 * 8;
    from += r0 * ${LD_K} + c0 * 8;
    UNROLL for (int c = 0; c < ACROSS; c += LANES) {
        if (c + LANES > ACROSS && c + c0 >= ACROSS) continue;
        const int left = (c + c0) * 8 < COLS ? have - r0 : 0;
        UNROLL for (int r = 0; r < 64; r += AT_ONCE)
            cp_async16(to + r * LD + c * 8, from + r * ${LD_K} + c * 8, r < left);
    }
}
//== attend_paged
/* A block has ${M}*16 rows of one key head of one sequence (the ${G} heads of its first token, then of the next) and
 * either one piece, the blockIdx.y-th from the first that the block sees, whose part goes to the workspace
 * (part [rows of heads][piece mod pieces][VD], stat likewise [2]: top, sum of probabilities), or, split = 0, all of them.
 * Warps share the 64 keys for scores and the columns of values for sums; the next tiles are on their way meanwhile.
 * Columns from ${QN} on of a query come from q2. Stale rows behind the last token are never read: 0 times NaN is NaN.
 * Floor: keys and values once through memory. */
extern "C" __global__ void __launch_bounds__(32 * ${WARPS}, ${BLOCKS})
@FN@(const uint16_t *q, const uint16_t *q2, const uint16_t *k, const uint16_t *v, const int32_t *pages,
     const int32_t *past, ${TO} *o, float *part, float *stat, int64_t steps, int64_t table, int64_t tiles, int64_t split)
{
    enum { G = ${G}, KV = ${KV}, H = G * KV, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, M = ${M}, BQ = 16 * M, WARPS = ${WARPS} };
    enum { THREADS = 32 * WARPS, BK = 64, SAME = ${SAME}, STAGES = ${STAGES} }; /* SAME: values are the beginnings of keys */
    enum { HP = (HD + 31) / 32 * 32, LDH = HP + 8, LDV = SAME ? LDH : VD + 8, LDP = BK + 8, LDM = WARPS + 4 };
    enum { KW = BK / WARPS, NK = KW / 8, NB = VD / 8, NV = (NB + WARPS - 1) / WARPS, AHEAD = STAGES - 1 };
    const float base2 = ${SCALE}f * 1.44269504088896341f;
    DYNAMIC_SHARED(uint16_t, qs); /* [BQ][LDH] */
    uint16_t *const ks = qs + BQ * LDH, *const vs = SAME ? ks : ks + STAGES * BK * LDH; /* STAGES tiles each */
    uint16_t *const ps = ks + STAGES * BK * (LDH + (SAME ? 0 : LDV)); /* [BQ][LDP] */
    float *const most = (float *)(ps + BQ * LDP); /* [BQ][LDM]: of each warp's keys */
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    const unsigned tile = blockIdx.x % (unsigned)tiles, others = blockIdx.x / (unsigned)tiles;
    const int64_t kv = others % KV, b = others / KV;
    pages += b * table;
    /* Without a window this is the first page whatever past is: their loads wait together. */
    const int guess = split && W == 0 ? pages[piece_begin_@FN@(blockIdx.y) / BK] : 0;
    const int r0 = (int)tile * BQ, rows = (int)min64(BQ, steps * G - r0), before = past[b];
    const int at0 = before + r0 / G, end = before + (r0 + rows - 1) / G + 1; /* positions of rows */
    const int begin = W > 0 ? (int)max64(0, at0 - W + 1) / BK * BK : 0;
    int piece = piece_of_@FN@(begin);
    if (split) piece += blockIdx.y;
    const int lo = (int)max64(begin, piece_begin_@FN@(piece));
    if (lo >= end) return;
    int stop = piece_begin_@FN@(piece + 1); /* of the piece */
    const int hi = split ? (int)min64(end, stop) : end;
    k += kv * HD;
    v += kv * VD;
    for (int i = threadIdx.x; i < BQ * (HP / 8); i += THREADS) {
        const int r = i / (HP / 8), c = i % (HP / 8) * 8;
        const bool is = r < rows && c < HD;
        const int64_t token = b * steps + (r0 + r) / G;
        const int64_t head = kv * G + (r0 + r) % G;
        const uint16_t *x = c < ${QN} ? q + token * ${LD_Q} + head * ${HEAD_Q} + c
                                      : q2 + token * ${LD_Q2} + head * ${HEAD_Q2} + c - ${QN};
        cp_async16(qs + r * LDH + c, is ? x : q, is);
    }
    /* Begins to copy the tile at k0, which lies in one page; keys and values are a group each, also where
     * there is no such tile. */
    const auto fetch = [&](int slot, int k0, int page) {
        const int64_t row = (int64_t)page * BK * ${LD_K};
        const int have = k0 < hi ? end - k0 : 0;
        if (have > 0) paged_rows_@FN@<HD, HP / 8, LDH, THREADS>(ks + slot * BK * LDH, k + row, have);
        cp_async_commit();
        if constexpr (!SAME) {
            if (have > 0) paged_rows_@FN@<VD, NB, LDV, THREADS>(vs + slot * BK * LDV, v + row, have);
            cp_async_commit();
        }
    };
    UNROLL for (int i = 0; i < AHEAD; i++) {
        const int k0 = lo + i * BK;
        fetch(i, k0, i == 0 && split && W == 0 ? guess : k0 < hi ? pages[k0 / BK] : 0);
    }
    int page = lo + AHEAD * BK < hi ? pages[lo / BK + AHEAD] : 0; /* of the tile that is fetched next */
    float total[M][NV][4] = {}, acc[M][NV][4] = {}, all_sum[M][2] = {}, sum[M][4] = {};
    float all_top[M][2], top[M][2];
    int mine[M][2]; /* position */
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int half = 0; half < 2; half++) {
            all_top[m][half] = top[m][half] = -1e30f;
            mine[m][half] = before + (r0 + 16 * m + g + 8 * half) / G;
        }
    int slot = 0;
    for (int k0 = lo; k0 < hi; k0 += BK, slot = slot + 1 == STAGES ? 0 : slot + 1) {
        cp_async_wait(SAME ? AHEAD - 1 : 2 * AHEAD - 1);
        __syncthreads(); /* these keys have come, the tile before is done with */
        fetch(slot ? slot - 1 : AHEAD, k0 + AHEAD * BK, page);
        page = k0 + (AHEAD + 1) * BK < hi ? pages[k0 / BK + AHEAD + 1] : 0;
        float c[2][M][NK][4] = {};
        const uint16_t *const key = ks + (slot * BK + warp * KW + lane % 8) * LDH + lane / 8 * 8;
        UNROLL_BY(2) for (int h = 0; h < HP; h += 32) {
            uint32_t x[4], y[NK][4];
            UNROLL for (int n = 0; n < NK; n++) ldmatrix4(y[n], key + 8 * n * LDH + h);
            UNROLL for (int m = 0; m < M; m++)
                UNROLL for (int odd = 0; odd < 2; odd++) {
                    mma_rows(x, qs + 16 * m * LDH + h + 16 * odd, LDH);
                    UNROLL for (int n = 0; n < NK; n++) mma_bf16(c[odd][m][n], x, y[n] + 2 * odd);
                }
        }
        const bool edge = k0 + BK - 1 > at0 || (W > 0 && k0 <= end - 1 - W);
        UNROLL for (int m = 0; m < M; m++)
            UNROLL for (int half = 0; half < 2; half++) {
                float best = -INFF;
                UNROLL for (int n = 0; n < NK; n++)
                    UNROLL for (int e = 2 * half; e < 2 * half + 2; e++) {
                        const int at = k0 + warp * KW + 8 * n + 2 * t + e % 2;
                        float s = c[0][m][n][e] + c[1][m][n][e];
                        if (edge && (at > mine[m][half] || (W > 0 && at <= mine[m][half] - W))) s = -INFF;
                        c[0][m][n][e] = s;
                        best = max1(s, best);
                    }
                best = max1(best, __shfl_xor_sync(ALL_LANES, best, 1));
                best = max1(best, __shfl_xor_sync(ALL_LANES, best, 2));
                if (t == 0) most[(16 * m + g + 8 * half) * LDM + warp] = best;
            }
        __syncthreads();
        UNROLL for (int m = 0; m < M; m++)
            UNROLL for (int half = 0; half < 2; half++) {
                const int r = 16 * m + g + 8 * half;
                float best = -INFF, x[4];
                UNROLL for (int w = 0; w < WARPS; w += 4) {
                    ld_f32x4(x, most + r * LDM + w);
                    UNROLL for (int i = 0; i < 4; i++) best = max1(x[i], best);
                }
                best = max1(whole_up_@FN@(mul1(best, base2)), top[m][half]);
                const float factor = exp2_whole_@FN@(top[m][half] - best);
                top[m][half] = best;
                UNROLL for (int n = 0; n < NK; n++) {
                    const float a = exp2_fast(fma1(c[0][m][n][2 * half], base2, -best));
                    const float d = exp2_fast(fma1(c[0][m][n][2 * half + 1], base2, -best));
                    *(uint32_t *)(ps + r * LDP + warp * KW + 8 * n + 2 * t) = pack_bf16(a, d);
                }
                sum[m][2 * half] = mul1(sum[m][2 * half], factor);
                UNROLL for (int n = 0; n < NV; n++)
                    UNROLL for (int e = 2 * half; e < 2 * half + 2; e++) acc[m][n][e] = mul1(acc[m][n][e], factor);
            }
        if constexpr (!SAME) cp_async_wait(2 * AHEAD);
        __syncthreads(); /* probabilities, and the values have come */
        const uint16_t *const value = vs + (slot * BK + lane) * LDV + warp * NV * 8;
        UNROLL for (int h = 0; h < BK; h += 32) {
            const uint32_t ones[2] = {0x3f803f80u, 0x3f803f80u}; /* bf16: every column is the sum */
            if constexpr (M * NV <= 8) {
                uint32_t x[M][2][4], y[4];
                UNROLL for (int m = 0; m < M; m++)
                    UNROLL for (int j = 0; j < 2; j++) {
                        mma_rows(x[m][j], ps + 16 * m * LDP + h + 16 * j, LDP);
                        mma_bf16(sum[m], x[m][j], ones);
                    }
                UNROLL for (int n = 0; n < NV; n++) {
                    if (NB % WARPS && warp * NV + n >= NB) continue;
                    ldmatrix4_trans(y, value + h * LDV + 8 * n);
                    UNROLL for (int j = 0; j < 2; j++)
                        UNROLL for (int m = 0; m < M; m++) mma_bf16(acc[m][n], x[m][j], y + 2 * j);
                }
            } else { /* the same in fewer registers, by twice as many loads */
                UNROLL for (int j = 0; j < 2; j++) {
                    uint32_t x[M][4], y[2];
                    UNROLL for (int m = 0; m < M; m++) {
                        mma_rows(x[m], ps + 16 * m * LDP + h + 16 * j, LDP);
                        mma_bf16(sum[m], x[m], ones);
                    }
                    UNROLL for (int n = 0; n < NV; n++) {
                        if (NB % WARPS && warp * NV + n >= NB) continue;
                        ldmatrix2_trans(y, value + (h + 16 * j) * LDV + 8 * n);
                        UNROLL for (int m = 0; m < M; m++) mma_bf16(acc[m][n], x[m], y);
                    }
                }
            }
        }
        if (split || (k0 + BK < hi && k0 + BK < stop)) continue;
        stop = piece_begin_@FN@(++piece + 1);
        UNROLL for (int m = 0; m < M; m++) /* the piece is complete */
            UNROLL for (int half = 0; half < 2; half++) {
                const float best = max1(all_top[m][half], top[m][half]);
                const float f = exp2_whole_@FN@(all_top[m][half] - best), own = exp2_whole_@FN@(top[m][half] - best);
                all_top[m][half] = best, top[m][half] = -1e30f;
                all_sum[m][half] = mul1(all_sum[m][half], f) + mul1(sum[m][2 * half], own);
                sum[m][2 * half] = 0;
                UNROLL for (int n = 0; n < NV; n++)
                    UNROLL for (int e = 2 * half; e < 2 * half + 2; e++) {
                        total[m][n][e] = mul1(total[m][n][e], f) + mul1(acc[m][n][e], own);
                        acc[m][n][e] = 0;
                    }
            }
    }
    cp_async_wait(0);
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int half = 0; half < 2; half++) {
            const int r = 16 * m + g + 8 * half;
            if (r >= rows) continue;
            const int64_t token = b * steps + (r0 + r) / G, head = kv * G + (r0 + r) % G;
            const int64_t at = (token * H + head) * gridDim.y + piece % (int)gridDim.y;
            const float by = split ? 1.0f : div1(1.0f, all_sum[m][half]);
            if (split && warp == 0 && t == 0) stat[2 * at] = top[m][half], stat[2 * at + 1] = sum[m][2 * half];
            UNROLL for (int n = 0; n < NV; n++) {
                if (NB % WARPS && warp * NV + n >= NB) continue;
                const int col = (warp * NV + n) * 8 + 2 * t;
                float x[2];
                UNROLL for (int e = 0; e < 2; e++)
                    x[e] = split ? acc[m][n][2 * half + e] : mul1(total[m][n][2 * half + e], by) + 0.0f;
                if (split)
                    st_row<2>(part + at * VD + col, x);
                else
                    st_row<2>(o + token * ${LD_O} + head * VD + col, x);
            }
        }
}
//== join_paged
/* Adds the parts of row and head blockIdx.x in order of pieces, 128 columns a block: warps fetch ${EACH} parts each,
 * then a thread adds a column. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const float *part, const float *stat, const int32_t *past, ${TO} *o, int64_t steps, int64_t pieces)
{
    enum { H = ${G} * ${KV}, VD = ${VD}, W = ${WINDOW}, WARPS = 8, EACH = ${EACH}, SOME = WARPS * EACH };
    __shared__ __align__(16) float tile[SOME][132]; /* 128 columns, the sum */
    __shared__ float reduce[WARP];
    const unsigned row = blockIdx.x / H;
    const int at = past[row / (unsigned)steps] + (int)(row % (unsigned)steps), ring = (int)pieces;
    const int from = W > 0 ? piece_of_@FN@((int)max64(0, at - W + 1)) : 0, to = piece_of_@FN@(at) + 1;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, col = blockIdx.y * 128 + lane * 4;
    stat += 2 * blockIdx.x * pieces;
    part += blockIdx.x * pieces * VD;
    float top = -1e30f, total = 0;
    for (int p = from + threadIdx.x; p < to; p += 256) top = max1(stat[2 * (W > 0 ? p % ring : p)], top);
    top = block_max(top, reduce);
    for (int p0 = from; p0 < to; p0 += SOME) {
        float x[EACH][4] = {}, f[EACH], s[EACH];
        UNROLL for (int i = 0; i < EACH; i++) { /* loads that wait together */
            const int p = p0 + i * WARPS + warp;
            const int64_t slot = W > 0 ? p % ring : p;
            f[i] = p < to ? stat[2 * slot] : -1e30f;
            s[i] = p < to ? stat[2 * slot + 1] : 0.0f;
            if (p < to && col < VD) ld_f32x4(x[i], part + slot * VD + col);
        }
        __syncthreads(); /* the tile before is done with */
        UNROLL for (int i = 0; i < EACH; i++) {
            const float factor = exp2_whole_@FN@(f[i] - top);
            UNROLL for (int e = 0; e < 4; e++) x[i][e] = mul1(x[i][e], factor);
            st_f32x4(tile[i * WARPS + warp] + lane * 4, x[i]);
            if (lane == 0) tile[i * WARPS + warp][128] = mul1(s[i], factor);
        }
        __syncthreads();
        const int have = (int)min64(SOME, to - p0);
        if (threadIdx.x <= 128)
            UNROLL_BY(8) for (int i = 0; i < have; i++) total += tile[i][threadIdx.x];
    }
    if (threadIdx.x == 128) reduce[0] = div1(1.0f, total);
    __syncthreads();
    const int c = blockIdx.y * 128 + threadIdx.x;
    if (threadIdx.x >= 128 || c >= VD) return;
    const float y = mul1(total, reduce[0]) + 0.0f;
    st_row<1>(o + row * ${LD_O} + blockIdx.x % H * VD + c, &y);
}
