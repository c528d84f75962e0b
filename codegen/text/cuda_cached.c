/* Attention over caches, for attention_cached and mla_cached. The keys of a sequence are cut into pieces of 256
 * on absolute positions. A piece's part of a row is an online softmax over tiles of BK keys; parts are
 * joined in order of pieces. A block has BQ rows of one key head of one sequence (the ${G} heads of its first
 * token, then of the next) and either one piece, whose part goes to the workspace, or all of them: the
 * same bits, so that a token has the same bits wherever its sequence is cut and whatever is beside it. */
//== attend_cached
/* part [rows of heads][piece mod pieces][${VD}], stat likewise [2]: largest score and sum of probabilities; blockIdx.y is
 * the piece from the first that the block sees on; split = 0: no parts, one block does it all. Position i is row
 * pages[b * table + i/64] * 64 + i mod 64 of k and v; a tile lies in one page. Floor: the keys and values once through memory. */
extern "C" __global__ void __launch_bounds__(256, 1)
@FN@(const ${TQ} *q, const ${TK} *k, const ${TK} *v, const int32_t *pages, const int32_t *past,
     ${TO} *o, float *part, float *stat, int64_t steps, int64_t table, int64_t tiles, int64_t split)
{
    enum { G = ${G}, KV = ${KV}, H = G * KV, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, R = ${R}, BQ = 16 * R };
    enum { RK = ${RK}, BK = 16 * RK, PAGE = 64, PIECE = ATTN_PIECE, SAME = ${SAME} }; /* SAME: values are the beginnings of keys */
    enum { HC = (HD + 3) / 4 * 4, LDH = ${LDH}, LDV = SAME ? LDH : ${LDV}, J = (VD + 63) / 64, LDP = BK + 4 };
    const float scale = ${SCALE}f;
    DYNAMIC_SHARED(float, qs); /* [BQ][LDH] */
    float *const ks = qs + BQ * LDH, *const vs = SAME ? ks : ks + BK * LDH;
    float *const ps = vs + BK * LDV;
    const int ty = threadIdx.x / TILE_SIDE, tx = threadIdx.x % TILE_SIDE;
    const int64_t r0 = blockIdx.x % tiles * BQ, kv = blockIdx.x / tiles % KV, b = blockIdx.x / tiles / KV;
    const int64_t rows = min64(BQ, steps * G - r0), before = past[b];
    const int64_t at0 = before + r0 / G, end = before + (r0 + rows - 1) / G + 1; /* positions of rows */
    const int64_t begin = W > 0 ? max64(0, at0 - W + 1) / BK * BK : 0;
    int64_t from = begin / PIECE, to = div_up(end, PIECE);
    if (split) {
        from += blockIdx.y;
        if (from >= to) return;
        to = from + 1;
    }
    for (int i = threadIdx.x; i < BQ * HC; i += 256) {
        const int64_t r = r0 + i / HC;
        float x = 0;
        if (i / HC < rows && i % HC < HD)
            ld_row<1>(&x, q + (b * steps + r / G) * ${LD_Q} + (kv * G + r % G) * HD + i % HC);
        qs[i / HC * LDH + i % HC] = x;
    }
    k += kv * HD;
    v += kv * VD;
    pages += b * table;
    float total[R][4 * J] = {}, all_top[R], all_sum[R], acc[R][4 * J] = {}, top[R], sum[R];
    UNROLL for (int i = 0; i < R; i++)
        all_top[i] = top[i] = ATTN_LOWEST, all_sum[i] = sum[i] = 0;
    const int64_t lo = max64(begin, from * PIECE), hi = min64(end, to * PIECE);
    /* Keys of the next tile come while values of this one are summed, its values while the next
     * scores are made; one group of copies for each. */
    const int64_t first = (pages[lo / PAGE] * (int64_t)PAGE + lo % PAGE) * ${LD_K};
    tile_fetch<BK, HD, LDH, ${VEC_K}>(ks, k + first, ${LD_K}, end - lo);
    cp_async_commit();
    if constexpr (!SAME) {
        tile_fetch<BK, VD, LDV, ${VEC_V}>(vs, v + first, ${LD_K}, end - lo);
        cp_async_commit();
    }
    for (int64_t k0 = lo; k0 < hi; k0 += BK) {
        const int64_t next = k0 + BK, left = next < hi ? end - next : 0;
        const int64_t row = left ? (pages[next / PAGE] * (int64_t)PAGE + next % PAGE) * ${LD_K} : 0;
        cp_async_wait(SAME ? 0 : 1);
        __syncthreads();
        float s[R][RK];
        tile_dots<R, RK, HC, LDH, LDH>(s, qs, ks);
        if constexpr (!SAME) {
            __syncthreads();
            if (left) tile_fetch<BK, HD, LDH, ${VEC_K}>(ks, k + row, ${LD_K}, left);
            cp_async_commit();
        }
        UNROLL for (int i = 0; i < R; i++) {
            const int64_t mine = before + (r0 + R * ty + i) / G;
            UNROLL for (int j = 0; j < RK; j++) {
                const int64_t key = k0 + tx + TILE_SIDE * j;
                const bool sees = key <= mine && key < end && (W == 0 || key > mine - W);
                s[i][j] = sees ? mul1(s[i][j], scale) : -INFF;
            }
            const float factor = softmax_step<RK>(s[i], &top[i], &sum[i]);
            UNROLL for (int c = 0; c < 4 * J; c++) acc[i][c] = mul1(acc[i][c], factor);
            UNROLL for (int j = 0; j < RK; j++)
                ps[(R * ty + i) * LDP + tx + TILE_SIDE * j] = s[i][j];
        }
        if constexpr (!SAME) cp_async_wait(1);
        __syncthreads();
        tile_sums<R, J, BK, LDP, 1, LDV>(acc, ps, vs);
        __syncthreads();
        if constexpr (SAME) {
            if (left) tile_fetch<BK, HD, LDH, ${VEC_K}>(ks, k + row, ${LD_K}, left);
        } else {
            if (left) tile_fetch<BK, VD, LDV, ${VEC_V}>(vs, v + row, ${LD_K}, left);
        }
        cp_async_commit();
        if (next < hi && next % PIECE) continue;
        UNROLL for (int i = 0; i < R; i++) { /* the piece is complete */
            const int64_t r = r0 + R * ty + i;
            if (R * ty + i >= rows) continue;
            if (split) {
                const int64_t at = ((b * steps + r / G) * H + kv * G + r % G) * gridDim.y + from % gridDim.y;
                tile_store<J, VD, ${VEC_P}>(part + at * VD, acc[i], 1.0f);
                if (tx == 0) stat[2 * at] = top[i], stat[2 * at + 1] = sum[i];
                continue;
            }
            float mine, other;
            softmax_join(&all_top[i], &all_sum[i], top[i], sum[i], &mine, &other);
            UNROLL for (int c = 0; c < 4 * J; c++) {
                total[i][c] = mul1(total[i][c], mine) + mul1(acc[i][c], other);
                acc[i][c] = 0;
            }
            top[i] = ATTN_LOWEST, sum[i] = 0;
        }
    }
    if (split) return;
    UNROLL for (int i = 0; i < R; i++) {
        const int64_t r = r0 + R * ty + i;
        if (R * ty + i < rows)
            tile_store<J, VD, ${VEC_O}>(o + (b * steps + r / G) * ${LD_O} + (kv * G + r % G) * VD, total[i],
                                        div1(1.0f, all_sum[i]));
    }
}
//== attend_join
/* Joins the parts of a row and head: a block each, a thread for every 128th column. */
extern "C" __global__ void __launch_bounds__(128)
@FN@(const float *part, const float *stat, const int32_t *past, ${TO} *o, int64_t steps, int64_t pieces)
{
    enum { H = ${G} * ${KV}, VD = ${VD}, W = ${WINDOW}, PIECE = ATTN_PIECE, EACH = 8 };
    const int64_t row = blockIdx.x / H, at = past[row / steps] + row % steps;
    const int64_t from = W > 0 ? max64(0, at - W + 1) / PIECE : 0, to = at / PIECE + 1;
    stat += 2 * blockIdx.x * pieces;
    part += blockIdx.x * pieces * VD;
    for (int c = threadIdx.x; c < VD; c += 128) {
        float top = ATTN_LOWEST, sum = 0, total = 0;
        for (int64_t p = from; p < to; p += EACH) {
            float t[EACH], s[EACH], x[EACH];
            UNROLL for (int i = 0; i < EACH; i++) { /* loads that wait together */
                const bool is = p + i < to;
                const int64_t at_part = (p + i) % pieces;
                t[i] = is ? stat[2 * at_part] : ATTN_LOWEST;
                s[i] = is ? stat[2 * at_part + 1] : 0.0f;
                x[i] = is ? part[at_part * VD + c] : 0.0f;
            }
            UNROLL for (int i = 0; i < EACH; i++) {
                float mine, other;
                softmax_join(&top, &sum, t[i], s[i], &mine, &other);
                total = mul1(total, mine) + mul1(x[i], other);
            }
        }
        const float y = mul1(total, div1(1.0f, sum)) + 0.0f;
        st_row<1>(o + row * ${LD_O} + blockIdx.x % H * VD + c, &y);
    }
}
