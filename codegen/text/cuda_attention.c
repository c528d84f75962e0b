/* Rotary embedding and attention of whole sequences. */
//== rope_table
/* Rows of cosines, then sines, of position * theta^(-2i/${HD}), in double precision; row r is of position
 * r mod steps, plus past[r / steps] where there is `past`. A thread makes one pair. */
__constant__ double @FN@_rate[] = {${RATES}};
extern "C" __global__ void __launch_bounds__(256, 1)
@FN@(float *table, ${PAST}int64_t rows, int64_t steps)
{
    enum { HALF = ${HD} / 2 };
    const int64_t at = blockIdx.x * (int64_t)256 + threadIdx.x, r = at / HALF;
    const int i = (int)(at % HALF);
    if (r >= rows) return;
    const double x = (double)(${POSITION}) * @FN@_rate[i];
    /* x = quarter turns + z, |z| <= pi/4: pi/2 in two parts, of which the first has 33 bits. */
    const double turns = (double)(int64_t)(x * 0.63661977236758134308 + 0.5);
    const double z = x - turns * 1.57079632673412561417e+00 - turns * 6.07710050650619224932e-11;
    const double y = z * z;
    const double s =
        z + z * y * (-1.66666666666666324348e-01 + y * (8.33333333332248946124e-03 +
            y * (-1.98412698298579493134e-04 + y * (2.75573137070700676789e-06 +
            y * (-2.50507602534068634195e-08 + y * 1.58969099521155010221e-10)))));
    const double c =
        1 - 0.5 * y + y * y * (4.16666666666666019037e-02 + y * (-1.38888888888741095749e-03 +
            y * (2.48015872894767294178e-05 + y * (-2.75573143513906633035e-07 +
            y * (2.08757232129817482790e-09 + y * -1.13596475577881948265e-11)))));
    const int quarter = (int)((int64_t)turns & 3);
    const double cosine = quarter & 1 ? s : c, sine = quarter & 1 ? c : s;
    float *row = table + r * ${HD};
    row[i] = (float)(quarter == 1 || quarter == 2 ? -cosine : cosine);
    row[HALF + i] = (float)(quarter >= 2 ? -sine : sine);
}
//== rope
/* Channels i and i + ${ROTARY}/2 of the last ${ROTARY} of each of ${H} heads turn by the angle of their row; the
 * others stay. A thread moves ${V} pairs, or ${V} channels that stay. Bound by memory: x once in, once out. */
extern "C" __global__ void __launch_bounds__(256, 1)
@FN@(const ${TX} *x, const float *table, ${TY} *y, int64_t rows, int64_t angles)
{
    enum { V = ${V}, HALF = ${ROTARY} / 2, STILL = ${HD} - 2 * HALF };
    enum { STAY = STILL / V, OWN = STAY + HALF / V, ALL = ${H} * OWN };
    int unit;
    const int64_t r = thread_row(ALL, &unit);
    const int head = unit / OWN, part = unit % OWN;
    if (r >= rows) return;
    x += r * ${LDX} + head * ${HD};
    y += r * ${LDY} + head * ${HD};
    float a[V], b[V];
    if (part < STAY) {
        ld_row<V>(a, x + part * V);
        st_row<V>(y + part * V, a);
        return;
    }
    const int i = (part - STAY) * V;
    const float *const angle = table + (unsigned)r % (unsigned)angles * (2 * HALF) + i; /* both below 2^31 */
    float cosine[V], sine[V];
    load<V, HALF % 4 ? 4 : 16>(cosine, angle);
    load<V, HALF % 4 ? 4 : 16>(sine, angle + HALF);
    ld_row<V>(a, x + STILL + i);
    ld_row<V>(b, x + STILL + HALF + i);
    UNROLL for (int e = 0; e < V; e++) {
        const float c = cosine[e], s = ${SIGN} sine[e], first = a[e];
        a[e] = mul1(first, c) - mul1(b[e], s);
        b[e] = mul1(b[e], c) + mul1(first, s);
    }
    st_row<V>(y + STILL + i, a);
    st_row<V>(y + STILL + HALF + i, b);
}
//== attention
/* Causal attention, computed in float32. ${H} query heads over ${KV} key heads of ${HD} (q, k) and ${VD} (v, o), window
 * ${WINDOW} (0: none). A block has BQ queries of one head and goes through the keys they see in tiles of BK on
 * absolute positions, so a row's bits depend neither on later tokens nor on its neighbours; attention over caches
 * does the same steps, pieces included. Thread (ty, tx)
 * has ${R} queries from ${R} ty on; of a tile of scores the keys tx + 16 j, of the result columns 64 j + 4 tx + e.
 * Floor: 2 (HD + VD) T^2/2 FLOPs a head at the rate of plain FMAs. */
extern "C" __global__ void __launch_bounds__(256, 1)
@FN@(const ${TQ} *q, const ${TK} *k, const ${TV} *v, ${TO} *o, float *lse, float *most,
     int64_t steps, int64_t tiles)
{
    enum { H = ${H}, G = H / ${KV}, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, R = ${R}, BQ = 16 * R, BK = BQ };
    enum { HC = (HD + 3) / 4 * 4, LDH = ${LDH}, LDV = ${LDV}, J = (VD + 63) / 64, LDP = BK + 4 };
    const float scale = ${SCALE}f;
    DYNAMIC_SHARED(float, qs); /* [BQ][LDH] */
    float *const ks = qs + BQ * LDH, *const vs = ks + BK * LDH, *const ps = vs + BK * LDV;
    const int ty = threadIdx.x / TILE_SIDE, tx = threadIdx.x % TILE_SIDE;
    /* The longest rows begin first. */
    const int64_t others = gridDim.x / tiles, q0 = (tiles - 1 - blockIdx.x / others) * BQ;
    const int64_t h = blockIdx.x % others % H, row0 = blockIdx.x % others / H * steps;
    const int64_t end = min64(q0 + BQ, steps);
    k += row0 * ${LD_K} + h / G * HD;
    v += row0 * ${LD_V} + h / G * VD;
    tile_load<BQ, HD, LDH, ${VEC_Q}>(qs, q + (row0 + q0) * ${LD_Q} + h * HD, ${LD_Q}, end - q0);
    float total[R][4 * J] = {}, all_top[R], all_sum[R], acc[R][4 * J] = {}, top[R], sum[R];
    UNROLL for (int i = 0; i < R; i++)
        all_top[i] = top[i] = ATTN_LOWEST, all_sum[i] = sum[i] = 0;
    for (int64_t k0 = W > 0 ? max64(0, q0 - W + 1) / BK * BK : 0; k0 < end; k0 += BK) {
        __syncthreads();
        tile_load<BK, HD, LDH, ${VEC_K}>(ks, k + k0 * ${LD_K}, ${LD_K}, steps - k0);
        tile_load<BK, VD, LDV, ${VEC_V}>(vs, v + k0 * ${LD_V}, ${LD_V}, steps - k0);
        __syncthreads();
        float s[R][R];
        tile_dots<R, R, HC, LDH, LDH>(s, qs, ks);
        UNROLL for (int i = 0; i < R; i++) {
            const int64_t row = q0 + R * ty + i;
            UNROLL for (int j = 0; j < R; j++) {
                const int64_t key = k0 + tx + TILE_SIDE * j;
                const bool sees = key <= row && (W == 0 || key > row - W);
                s[i][j] = sees ? mul1(s[i][j], scale) : -INFF;
            }
            const float factor = softmax_step<R>(s[i], &top[i], &sum[i]);
            UNROLL for (int c = 0; c < 4 * J; c++) acc[i][c] = mul1(acc[i][c], factor);
            UNROLL for (int j = 0; j < R; j++)
                ps[(R * ty + i) * LDP + tx + TILE_SIDE * j] = s[i][j];
        }
        __syncwarp(); /* a row of ps stays within a warp */
        tile_sums<R, J, BK, LDP, 1, LDV>(acc, ps, vs);
        if (k0 + BK < end && (k0 + BK) % ATTN_PIECE) continue;
        UNROLL for (int i = 0; i < R; i++) { /* the piece is complete */
            float mine, other;
            softmax_join(&all_top[i], &all_sum[i], top[i], sum[i], &mine, &other);
            UNROLL for (int c = 0; c < 4 * J; c++) {
                total[i][c] = mul1(total[i][c], mine) + mul1(acc[i][c], other);
                acc[i][c] = 0;
            }
            top[i] = ATTN_LOWEST, sum[i] = 0;
        }
    }
    UNROLL for (int i = 0; i < R; i++) {
        const int64_t t = row0 + q0 + R * ty + i;
        if (t >= row0 + end) continue;
        tile_store<J, VD, ${VEC_O}>(o + t * ${LD_O} + h * VD, total[i], div1(1.0f, all_sum[i]));
        if (tx == 0) lse[t * H + h] = all_top[i] + log1(all_sum[i]);
        if (tx == 0) most[t * H + h] = all_top[i];
    }
}
//== attention_delta
/* delta[row][head] = o . do of ${VD} columns, for the backward of attention. A warp per row and head. */
extern "C" __global__ void __launch_bounds__(256, 1)
@FN@(const ${TO} *o, const ${TD} *d, float *delta, int64_t count)
{
    enum { H = ${H}, VD = ${VD} };
    const int64_t at = blockIdx.x * (int64_t)8 + threadIdx.x / WARP;
    if (at >= count) return;
    o += at / H * ${LD_O} + at % H * VD;
    d += at / H * ${LD_D} + at % H * VD;
    float sum = 0, x, y;
    for (int c = threadIdx.x % WARP; c < VD; c += WARP) {
        ld_row<1>(&x, o + c);
        ld_row<1>(&y, d + c);
        sum = fma1(x, y, sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[at] = sum;
}
//== attention_scores
/* For the backward of attention, from tiles of R*16 queries and keys in shared memory: p = probabilities and ds =
 * gradients of the dots q . k, both [query][key]. Queries begin at q0, keys at k0; rows from `end` on are zeros. */
INLINE void @FN@_scores(float *p, float *ds, const float *qs, const float *ks, const float *os,
                        const float *vs, const float *lse, const float *delta, int64_t q0, int64_t k0,
                        int64_t end)
{
    enum { R = ${R}, HC = (${HD} + 3) / 4 * 4, VC = (${VD} + 3) / 4 * 4, W = ${WINDOW}, LDP = 16 * R + 4 };
    const int ty = threadIdx.x / TILE_SIDE, tx = threadIdx.x % TILE_SIDE;
    float s[R][R], dp[R][R];
    tile_dots<R, R, HC, ${LDH}, ${LDH}>(s, qs, ks);
    tile_dots<R, R, VC, ${LDV}, ${LDV}>(dp, os, vs);
    UNROLL for (int i = 0; i < R; i++) {
        const int64_t row = q0 + R * ty + i;
        const float l = row < end ? lse[row * ${H}] : 0.0f, dl = row < end ? delta[row * ${H}] : 0.0f;
        UNROLL for (int j = 0; j < R; j++) {
            const int64_t key = k0 + tx + TILE_SIDE * j;
            const bool sees = row < end && key <= row && (W == 0 || key > row - W);
            const float e = sees ? exp1(mul1(s[i][j], ${SCALE}f) - l) : 0.0f;
            /* A row that sees one key only: its probability is 1 whatever the score. */
            const bool fixed = !sees || W == 1 || row == 0;
            const int at = (R * ty + i) * LDP + tx + TILE_SIDE * j;
            p[at] = e;
            ds[at] = fixed ? 0.0f : mul1(mul1(e, dp[i][j] - dl), ${SCALE}f);
        }
    }
}
//== attention_dkv
/* Gradients of keys and values: a block has BK keys of a key head and goes through its query heads, and for each
 * through the tiles of queries that see them, in order. */
extern "C" __global__ void __launch_bounds__(256, 1)
@FN@(const ${TQ} *q, const ${TK} *k, const ${TV} *v, const float *lse, const ${TD} *d,
     const float *delta, ${TDK} *dk, ${TDV} *dv, int64_t steps, int64_t tiles)
{
    enum { H = ${H}, KV = ${KV}, G = H / KV, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, R = ${R}, BK = 16 * R, BQ = BK };
    enum { LDH = ${LDH}, LDV = ${LDV}, JH = (HD + 63) / 64, JV = (VD + 63) / 64, LDP = BK + 4 };
    DYNAMIC_SHARED(float, ks); /* [BK][LDH] */
    float *const vs = ks + BK * LDH, *const qs = vs + BK * LDV, *const os = qs + BQ * LDH;
    float *const ps = os + BQ * LDV, *const ds = ps + BQ * LDP;
    const int ty = threadIdx.x / TILE_SIDE;
    const int64_t others = gridDim.x / tiles, k0 = blockIdx.x / others * BK;
    const int64_t kv = blockIdx.x % others % KV, row0 = blockIdx.x % others / KV * steps;
    const int64_t end = W > 0 ? min64(steps, k0 + BK - 1 + W) : steps; /* later rows see none of the keys */
    tile_load<BK, HD, LDH, ${VEC_K}>(ks, k + (row0 + k0) * ${LD_K} + kv * HD, ${LD_K}, steps - k0);
    tile_load<BK, VD, LDV, ${VEC_V}>(vs, v + (row0 + k0) * ${LD_V} + kv * VD, ${LD_V}, steps - k0);
    float ak[R][4 * JH] = {}, av[R][4 * JV] = {};
    for (int64_t h = kv * G; h < (kv + 1) * G; h++)
        for (int64_t q0 = k0; q0 < end; q0 += BQ) {
            __syncthreads();
            tile_load<BQ, HD, LDH, ${VEC_Q}>(qs, q + (row0 + q0) * ${LD_Q} + h * HD, ${LD_Q}, end - q0);
            tile_load<BQ, VD, LDV, ${VEC_D}>(os, d + (row0 + q0) * ${LD_D} + h * VD, ${LD_D}, end - q0);
            __syncthreads();
            @FN@_scores(ps, ds, qs, ks, os, vs, lse + row0 * H + h, delta + row0 * H + h, q0, k0, end);
            __syncthreads();
            tile_sums<R, JV, BQ, 1, LDP, LDV>(av, ps, os);
            tile_sums<R, JH, BQ, 1, LDP, LDH>(ak, ds, qs);
        }
    UNROLL for (int i = 0; i < R; i++) {
        const int64_t t = k0 + R * ty + i;
        if (t >= steps) continue;
        tile_store<JH, HD, ${VEC_DK}>(dk + (row0 + t) * ${LD_DK} + kv * HD, ak[i], 1.0f);
        tile_store<JV, VD, ${VEC_DV}>(dv + (row0 + t) * ${LD_DV} + kv * VD, av[i], 1.0f);
    }
}
//== attention_dq
/* Gradients of queries: a block has BQ queries of a head and goes through the keys they see. */
extern "C" __global__ void __launch_bounds__(256, 1)
@FN@(const ${TQ} *q, const ${TK} *k, const ${TV} *v, const float *lse, const ${TD} *d,
     const float *delta, ${TDQ} *dq, int64_t steps, int64_t tiles)
{
    enum { H = ${H}, G = H / ${KV}, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, R = ${R}, BQ = 16 * R, BK = BQ };
    enum { LDH = ${LDH}, LDV = ${LDV}, J = (HD + 63) / 64, LDP = BK + 4 };
    DYNAMIC_SHARED(float, qs); /* [BQ][LDH] */
    float *const os = qs + BQ * LDH, *const ks = os + BQ * LDV, *const vs = ks + BK * LDH;
    float *const ps = vs + BK * LDV, *const ds = ps + BQ * LDP;
    const int ty = threadIdx.x / TILE_SIDE;
    const int64_t others = gridDim.x / tiles, q0 = (tiles - 1 - blockIdx.x / others) * BQ;
    const int64_t h = blockIdx.x % others % H, row0 = blockIdx.x % others / H * steps;
    const int64_t end = min64(q0 + BQ, steps);
    tile_load<BQ, HD, LDH, ${VEC_Q}>(qs, q + (row0 + q0) * ${LD_Q} + h * HD, ${LD_Q}, end - q0);
    tile_load<BQ, VD, LDV, ${VEC_D}>(os, d + (row0 + q0) * ${LD_D} + h * VD, ${LD_D}, end - q0);
    k += row0 * ${LD_K} + h / G * HD;
    v += row0 * ${LD_V} + h / G * VD;
    float acc[R][4 * J] = {};
    for (int64_t k0 = W > 0 ? max64(0, q0 - W + 1) / BK * BK : 0; k0 < end; k0 += BK) {
        __syncthreads();
        tile_load<BK, HD, LDH, ${VEC_K}>(ks, k + k0 * ${LD_K}, ${LD_K}, steps - k0);
        tile_load<BK, VD, LDV, ${VEC_V}>(vs, v + k0 * ${LD_V}, ${LD_V}, steps - k0);
        __syncthreads();
        @FN@_scores(ps, ds, qs, ks, os, vs, lse + row0 * H + h, delta + row0 * H + h, q0, k0, end);
        __syncwarp(); /* a row of ds stays within a warp */
        tile_sums<R, J, BK, LDP, 1, LDH>(acc, ds, ks);
    }
    UNROLL for (int i = 0; i < R; i++) {
        const int64_t t = q0 + R * ty + i;
        if (t < end) tile_store<J, HD, ${VEC_DQ}>(dq + (row0 + t) * ${LD_DQ} + h * HD, acc[i], 1.0f);
    }
}
