/* KDA: the delta rule with a decay per channel (needs cuda_kda_rows.c). Heads with keys of ${K} and
 * values of ${V}; a sequence is T rows. State S [K,V], zero at first:
 *   S = diag(exp g) S;  e = v - S^T k;  S += beta k e^T;  o = scale S^T q
 * In chunks (the pairs' decays are in L and A): z = Z (v - kd S), u = beta z, o = qd S + A u,
 * S' = diag(total) S + kg^T u. All but the last chain is parallel over chunks. A launch has `heads` heads
 * from head0 on: bh = sequence * heads + head. Operands `past`, state: of the form over states only. */
//== kda_prep
/* Block: one chunk of one head, two channels a thread; writes its record. Sums over channels of the pairs
 * of tokens j and 15 - j with later ones, 32 in all, are made together. */
extern "C" __global__ void __launch_bounds__(${THREADS})
@FN@(const ${TQ} *q, const ${TK} *k, const float *g, const float *beta, const int32_t *past, char *records,
     int64_t T, int64_t ldq, int64_t ldk, int64_t ldg, int64_t ldb, int64_t chunks, int64_t head0, int64_t heads)
{
    enum { K = ${K}, P = ${P}, N = ${N}, WARPS = (K + 63) / 64 };
    typedef kda_record<K, P> R;
    __shared__ float pairs[WARPS][2][KDA_C][KDA_C + 1], bs[KDA_C]; /* l, a [i][j] */
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP, ch = 2 * tid;
    const int64_t c = blockIdx.x % chunks, bh = blockIdx.x / chunks, h = head0 + bh % heads, b = bh / heads;
    const kda_span at = kda_span_of(c, T, ${CACHED} ? past[b] : 0);
    if (at.n <= 0) return;
    const int64_t row = b * T + at.t0;
    k += row * ldk + h * K + ch;
    q += row * ldq + h * K + ch;
    g += row * ldg + h * K + ch;
    float ks[KDA_C][2], qs[KDA_C][2], alpha[KDA_C][2];
    UNROLL for (int i = 0; i < KDA_C; i++) {
        const int have = i < at.n ? K - ch : 0;
        kda_two<N>(ks[i], k + i * ldk, have);
        kda_two<N>(qs[i], q + i * ldq, have);
        kda_two<N>(alpha[i], g + i * ldg, have);
    }
    UNROLL for (int i = 0; i < KDA_C; i++) UNROLL for (int e = 0; e < 2; e++) {
        qs[i][e] *= ${SCALE}f;
        alpha[i][e] = kda_exp<P>(alpha[i][e]);
    }
    if (tid < KDA_C) bs[tid] = tid < at.n ? beta[(row + tid) * ldb + h] : 0.0f;

    UNROLL for (int j = 0; j < KDA_C / 2; j++) {
        const int other = KDA_C - 1 - j;
        float sums[WARP]; /* of l: with j, with the other; of a: the same */
        kda_pairs(sums, sums + KDA_C - 1, j, ks, qs, alpha);
        kda_pairs(sums + other, sums + KDA_C - 1 + KDA_C - j, other, ks, qs, alpha);
        const float sum = warp_spread(sums);
        const int is_a = lane >= KDA_C - 1, at_j = lane - is_a * (KDA_C - 1), n = other + is_a;
        const int column = at_j < n ? j : other, token = at_j < n ? j + 1 - is_a + at_j : at_j + 1 - 2 * is_a;
        pairs[warp][is_a][token][column] = sum;
    }

    uint16_t *to = (uint16_t *)(records + (bh * chunks + c) * R::BYTES);
    float *numbers = (float *)to;
    if (ch < R::KP) { /* forward, and back */
        float run[2] = {1.0f, 1.0f};
        UNROLL for (int i = 0; i < KDA_C; i++) {
            UNROLL for (int e = 0; e < 2; e++) run[e] *= alpha[i][e];
            kda_split_to<P>(to + R::kd + i * R::LK + ch, R::BIG, ks[i][0] * run[0], ks[i][1] * run[1]);
            kda_split_to<P>(to + R::qd + i * R::LK + ch, R::BIG, qs[i][0] * run[0], qs[i][1] * run[1]);
        }
        UNROLL for (int e = 0; e < 2; e++) numbers[R::total + ch + e] = run[e], run[e] = 1.0f;
        UNROLL for (int i = KDA_C - 1; i >= 0; i--) {
            kda_split_to<P>(to + R::kg + i * R::LK + ch, R::BIG, ks[i][0] * run[0], ks[i][1] * run[1]);
            UNROLL for (int e = 0; e < 2; e++) run[e] *= alpha[i][e];
        }
    }
    __syncthreads();
    for (int x = tid; x < 2 * KDA_C * KDA_C; x += 32 * WARPS) { /* over warps, in their order */
        const int is_a = x / (KDA_C * KDA_C), i = x / KDA_C % KDA_C, j = x % KDA_C;
        float sum = 0.0f;
        if (j < i + is_a) UNROLL for (int w = 0; w < WARPS; w++) sum += pairs[w][is_a][i][j];
        pairs[0][is_a][i][j] = sum;
    }
    if (tid < KDA_C) numbers[R::beta + tid] = bs[tid];
    __syncthreads();
    if (warp == 0) kda_inverses<K, P>(to, pairs[0][0], bs);
    if (warp == WARPS - 1) {
        for (int x = 2 * lane; x < KDA_C * KDA_C; x += 2 * WARP) {
            const float *from = &pairs[0][1][x / KDA_C][x % KDA_C];
            kda_split_to<P>(to + R::a + x / KDA_C * KDA_SL + x % KDA_C, R::SMALL, from[0], from[1]);
        }
    }
}
//== kda_scan
/* The chain over chunks. Warp: 16 columns of V of one head; a block's warps share the records, which
 * come one chunk ahead. For gradients (${KEEP}) z and the states before chunks are kept instead of o. */
extern "C" __global__ void __launch_bounds__(256, 1)
@FN@(const char *records, const ${TV} *v, ${TO} *o, float *kept_states, const int32_t *which, const int32_t *past,
     float *zs, uint16_t *states, int64_t T, int64_t ldv, int64_t ldo, int64_t chunks, int64_t head0, int64_t heads,
     int64_t all_heads)
{
    enum { K = ${K}, V = ${V}, P = ${P}, VT = (V + 15) / 16, SUMS = kda_sums<P>::N };
    typedef kda_record<K, P> R;
    DYNAMIC_SHARED(char, shared);
    const int warps = blockDim.x / WARP, v0 = (blockIdx.x % (VT / warps) * warps + threadIdx.x / WARP) * 16;
    const int64_t bh = blockIdx.x / (VT / warps), h = head0 + bh % heads, b = bh / heads;
    const int64_t before = ${CACHED} ? past[b] : 0;
    const int count = (int)kda_chunks(T, before);
    float *kept = ${CACHED} ? kept_states + (which[b] * all_heads + h) * K * V : 0;
    float s[R::KP / 8][4];
    UNROLL for (int i = 0; i < R::KP / 8; i++) UNROLL for (int e = 0; e < 4; e++) {
        const int ch = kda_token(i, e), x = v0 + kda_column(e);
        s[i][e] = ${CACHED} && before > 0 && ch < K && x < V ? kept[ch * V + x] : 0.0f;
    }
    records += bh * chunks * R::BYTES;
    v += b * T * ldv + h * V;
    o += b * T * ldo + h * V;
    zs += bh * T * V;
    states += (bh * chunks * ${STATE_PARTS} * VT * 16 + v0) * R::KP;
    kda_fetch<R::BYTES>(shared, records);
    cp_async_commit();
    kda_ahead<${TV}> values;
    kda_load(&values, v, ldv, kda_span_of(0, T, before).n, v0, V);
    for (int c = 0; c < count; c++) {
        const kda_span at = kda_span_of(c, T, before);
        const uint16_t *rec = (const uint16_t *)(shared + c % 2 * R::BYTES);
        const uint16_t *big_rows = rec + kda_by_rows(R::LK), *big_cols = rec + kda_by_columns(R::LK);
        const uint16_t *small_rows = rec + kda_by_rows(KDA_SL);
        const float *numbers = (const float *)rec;
        records += R::BYTES;
        if (c + 1 < count) kda_fetch<R::BYTES>(shared + (c + 1) % 2 * R::BYTES, records);
        cp_async_commit();
        float x[2][4], y[2 * SUMS][4] = {}, z[2 * SUMS][4] = {};
        uint32_t op[P][4];
        cp_async_wait(1);
        __syncthreads();
        if (${KEEP}) {
            kda_keep<R::KP / 8, ${STATE_PARTS}>(states, VT * 16 * R::KP, s);
            states += ${STATE_PARTS} * VT * 16 * R::KP;
        }
        UNROLL for (int i = 0; i < R::KP / 16; i++) { /* kd S and qd S */
            __syncwarp(); /* or the parts of all of S are made at once: registers */
            kda_operand<P>(op, s + 2 * i);
            kda_times_rows<P, SUMS>(z, op, big_rows + R::kd + 16 * i, R::BIG);
            if (!${KEEP}) kda_times_rows<P, SUMS>(y, op, big_rows + R::qd + 16 * i, R::BIG);
        }
        kda_join<SUMS>(z);
        kda_join<SUMS>(y);
        kda_take(x, &values);
        const kda_span then = kda_span_of(c + 1, T, before);
        kda_load(&values, v + then.t0 * ldv, ldv, then.n, v0, V);
        UNROLL for (int i = 0; i < 2; i++) UNROLL for (int e = 0; e < 4; e++) x[i][e] -= z[i][e], z[i][e] = 0.0f;
        kda_operand<P>(op, x);
        kda_times_rows<P>(z, op, small_rows + R::z, R::SMALL);
        if (${KEEP}) kda_store(zs + at.t0 * V, V, z, at.n, v0, V);
        kda_scale(z, z, numbers + R::beta);
        kda_operand<P>(op, z);
        if (!${KEEP}) {
            kda_times_rows<P>(y, op, small_rows + R::a, R::SMALL);
            kda_store(o + at.t0 * ldo, ldo, y, at.n, v0, V);
        }
        UNROLL for (int i = 0; i < R::KP / 16; i++) {
            kda_decay(s + 2 * i, numbers + R::total + 16 * i);
            kda_times_cols<P>(s + 2 * i, op, big_cols + R::kg + 16 * i, R::BIG);
        }
        __syncthreads();
    }
    if (!${CACHED}) return;
    UNROLL for (int i = 0; i < R::KP / 8; i++) UNROLL for (int e = 0; e < 4; e++) {
        const int ch = kda_token(i, e), x = v0 + kda_column(e);
        if (ch < K && x < V) kept[ch * V + x] = s[i][e];
    }
}
//== kda_one
/* One token of every sequence on its state: read once, written once. Block: ${COLUMNS}
 * columns of V of one head, 8 lanes of ${N} columns and 32 times that with a part of the channels each. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${TQ} *q, const ${TK} *k, const ${TV} *v, const float *g, const float *beta, float *states,
     const int32_t *which, const int32_t *past, ${TO} *o, int64_t ldq, int64_t ldk, int64_t ldv, int64_t ldg,
     int64_t ldb, int64_t ldo)
{
    enum { H = ${H}, K = ${K}, V = ${V}, N = ${N}, ROWS = (K + 31) / 32, TILES = (V + 8 * N - 1) / (8 * N) };
    __shared__ float sums[8][8][2 * N + 1]; /* of warps and lanes: kd S, qd S, q . k */
    const int lane = threadIdx.x % 8, part = threadIdx.x / 8, warp = threadIdx.x / WARP;
    const int c = (blockIdx.x % TILES * 8 + lane) * N;
    const int64_t bh = blockIdx.x / TILES, h = bh % H, b = bh / H;
    const bool in = c < V, old = past[b] > 0;
    float *state = states + (which[b] * (int64_t)H + h) * K * V + c;
    float s[ROWS][N], key[ROWS], alpha[ROWS], sum[2 * N + 1];
    UNROLL for (int i = 0; i < 2 * N + 1; i++) sum[i] = 0.0f;
    UNROLL for (int r = 0; r < ROWS; r++) {
        const int ch = r * 32 + part;
        UNROLL for (int i = 0; i < N; i++) s[r][i] = 0.0f;
        if (ch < K && in && old) kda_load_row<N>(s[r], state + ch * V);
    }
    UNROLL for (int r = 0; r < ROWS; r++) {
        const int ch = r * 32 + part;
        key[r] = ch < K ? kda_get(k + b * ldk + h * K + ch) : 0.0f;
        alpha[r] = ch < K ? exp1(g[b * ldg + h * K + ch]) : 1.0f;
        const float query = ch < K ? kda_get(q + b * ldq + h * K + ch) * ${SCALE}f : 0.0f;
        sum[2 * N] = fma1(query, key[r], sum[2 * N]);
        UNROLL for (int i = 0; i < N; i++) {
            s[r][i] *= alpha[r];
            sum[i] = fma1(key[r], s[r][i], sum[i]);
            sum[N + i] = fma1(query, s[r][i], sum[N + i]);
        }
    }
    UNROLL for (int i = 0; i < 2 * N + 1; i++) {
        sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 8);
        sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 16);
        if (threadIdx.x % WARP < 8) sums[warp][lane][i] = sum[i];
    }
    __syncthreads();
    if (!in) return;
    UNROLL for (int i = 0; i < 2 * N + 1; i++) {
        sum[i] = 0.0f;
        UNROLL for (int w = 0; w < 8; w++) sum[i] += sums[w][lane][i];
    }
    const float weight = beta[b * ldb + h];
    UNROLL for (int i = 0; i < N; i++) {
        sum[i] = (kda_get(v + b * ldv + h * V + c + i) - sum[i]) * weight;
        if (part == 0) kda_put(o + b * ldo + h * V + c + i, fma1(sum[2 * N], sum[i], sum[N + i]));
    }
    UNROLL for (int r = 0; r < ROWS; r++) {
        UNROLL for (int i = 0; i < N; i++) s[r][i] = fma1(key[r], sum[i], s[r][i]);
        if (r * 32 + part < K) kda_store_row<N>(state + (r * 32 + part) * V, s[r]);
    }
}
//== kda_back
/* The chain back over chunks, of dS, in the layout of kda_scan. Keeps dS behind every chunk, dr of
 * r = v - kd S (which is dv) and what these columns of V give dbeta:
 *   du = dS'^T kg + A^T do;  w = Q^T du;  dr = beta w;  dbeta = w . z;
 *   dS = diag(total) dS' + qd^T do - kd^T dr */
extern "C" __global__ void __launch_bounds__(256, 1)
@FN@(const char *records, const float *zs, const ${TD} *dout, ${TV} *dv, float *drs, uint16_t *dstates, float *dbetas,
     int64_t T, int64_t ldd, int64_t ldv, int64_t chunks, int64_t head0, int64_t heads)
{
    enum { K = ${K}, V = ${V}, P = ${P}, VT = (V + 15) / 16, SUMS = kda_sums<P>::N };
    typedef kda_record<K, P> R;
    DYNAMIC_SHARED(char, shared);
    const int warps = blockDim.x / WARP, tile = blockIdx.x % (VT / warps) * warps + threadIdx.x / WARP;
    const int v0 = tile * 16;
    const int64_t bh = blockIdx.x / (VT / warps), h = head0 + bh % heads, b = bh / heads;
    float s[R::KP / 8][4];
    UNROLL for (int i = 0; i < R::KP / 8; i++) UNROLL for (int e = 0; e < 4; e++) s[i][e] = 0.0f;
    records += (bh * chunks + chunks - 1) * R::BYTES;
    zs += bh * T * V;
    drs += bh * T * V;
    dout += b * T * ldd + h * V;
    dv += b * T * ldv + h * V;
    dbetas += (bh * VT + tile) * T;
    dstates += ((bh + 1) * chunks * ${STATE_PARTS} * VT * 16 + v0) * R::KP;
    kda_fetch<R::BYTES>(shared + (chunks - 1) % 2 * R::BYTES, records);
    cp_async_commit();
    kda_ahead<${TD}> douts;
    kda_ahead<float> kept;
    const kda_span last = kda_span_of(chunks - 1, T, 0);
    kda_load(&douts, dout + last.t0 * ldd, ldd, last.n, v0, V);
    kda_load(&kept, zs + last.t0 * V, V, last.n, v0, V);
    for (int c = (int)chunks - 1; c >= 0; c--) {
        const kda_span at = kda_span_of(c, T, 0);
        const uint16_t *rec = (const uint16_t *)(shared + c % 2 * R::BYTES);
        const uint16_t *big_rows = rec + kda_by_rows(R::LK), *big_cols = rec + kda_by_columns(R::LK);
        const uint16_t *small_cols = rec + kda_by_columns(KDA_SL);
        const float *numbers = (const float *)rec;
        records -= R::BYTES;
        if (c > 0) kda_fetch<R::BYTES>(shared + (c - 1) % 2 * R::BYTES, records);
        cp_async_commit();
        const kda_span then = kda_span_of(c - 1, T, 0);
        float x[2][4], z[2][4], y[2 * SUMS][4] = {}, w[2][4] = {};
        uint32_t op[P][4], grad[P][4];
        kda_take(x, &douts);
        kda_operand<P>(grad, x);
        kda_load(&douts, dout + then.t0 * ldd, ldd, then.n, v0, V);
        cp_async_wait(1);
        __syncthreads();
        dstates -= ${STATE_PARTS} * VT * 16 * R::KP;
        kda_keep<R::KP / 8, ${STATE_PARTS}>(dstates, VT * 16 * R::KP, s);
        kda_times_cols<P, SUMS>(y, grad, small_cols + R::a, R::SMALL);
        UNROLL for (int i = 0; i < R::KP / 16; i++) {
            __syncwarp(); /* or the parts of all of S are made at once: registers */
            kda_operand<P>(op, s + 2 * i);
            kda_times_rows<P, SUMS>(y, op, big_rows + R::kg + 16 * i, R::BIG);
        }
        kda_join<SUMS>(y);
        kda_operand<P>(op, y);
        kda_times_cols<P>(w, op, small_cols + R::q, R::SMALL);
        kda_take(z, &kept);
        kda_load(&kept, zs + then.t0 * V, V, then.n, v0, V);
        UNROLL for (int i = 0; i < 2; i++) UNROLL for (int e = 0; e < 2; e++) {
            float sum = fma1(w[i][e], z[i][e], w[i][e + 2] * z[i][e + 2]);
            UNROLL for (int d = 4; d < WARP; d *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, d);
            const int token = kda_token(i, e);
            if (threadIdx.x % WARP < 4 && token < at.n) dbetas[at.t0 + token] = sum;
        }
        kda_scale(w, w, numbers + R::beta);
        kda_store(drs + at.t0 * V, V, w, at.n, v0, V);
        kda_store(dv + at.t0 * ldv, ldv, w, at.n, v0, V);
        UNROLL for (int i = 0; i < 2; i++) UNROLL for (int e = 0; e < 4; e++) w[i][e] = -w[i][e];
        kda_operand<P>(op, w);
        UNROLL for (int i = 0; i < R::KP / 16; i++) {
            kda_decay(s + 2 * i, numbers + R::total + 16 * i);
            kda_times_cols<P>(s + 2 * i, grad, big_cols + R::qd + 16 * i, R::BIG);
            kda_times_cols<P>(s + 2 * i, op, big_cols + R::kd + 16 * i, R::BIG);
        }
        __syncthreads();
    }
}
//== kda_chunk
/* Gradients of q, k, g and beta of one chunk of one head, all chunks in parallel. First, on tensor
 * cores, those of qd and kd, do S^T and -dr S^T, of kg, u dS'^T, of A, do u^T, and of L, -dr u^T; then a
 * thread per channel brings them through the decays. S and dS' come 16 rows of V at a time, as
 * ${STATE_PARTS} parts, and their bytes are the floor: ${STATE_PARTS} 4 K V a chunk. Gradients of a gate
 * sum pairs of a token before it with one from it on, each a value before it times its gradient behind
 * it: they are as small as the decay between them, which differences of row and column sums would not
 * be. */
extern "C" __global__ void __launch_bounds__(128, 1)
@FN@(const ${TQ} *q, const ${TK} *k, const float *g, const float *beta, const ${TD} *dout, const float *zs,
     const float *drs, const uint16_t *states, const uint16_t *dstates, const float *dbetas, ${TDQ} *dq,
     ${TDK} *dk, float *dg, float *dbeta, int64_t T, int64_t ldq, int64_t ldk, int64_t ldg, int64_t ldb,
     int64_t ldd, int64_t lddq, int64_t lddk, int64_t lddg, int64_t lddb, int64_t chunks, int64_t head0,
     int64_t heads)
{
    enum { K = ${K}, V = ${V}, P = ${P}, KP = (K + 15) / 16 * 16, VP = (V + 15) / 16 * 16, LV = VP + 8 };
    enum { PART = KDA_C * LV, OPERAND = P * PART };
    enum { N = ${STATE_PARTS}, STAGES = ${STAGES}, SLICE = KDA_C * KP, STAGE = 2 * N * SLICE };
    enum { TILES = (KP + 63) / 64 }; /* of 16 channels for a warp */
    enum { LF = KP + 8 }; /* so that four rows of stores of 8 bytes meet all banks once */
    DYNAMIC_SHARED(float, pairs); /* gradients of a and l: [j][i][2] */
    uint16_t *ring = (uint16_t *)(pairs + KDA_PAIRS); /* parts of 16 rows of S, then of dS', for STAGES such */
    uint16_t *douts = ring + STAGES * STAGE, *drp = douts + OPERAND, *us = drp + OPERAND; /* [16][LV] */
    float *flat = (float *)ring; /* later: gradients of qd, kd, kg: [16][LF] each; carry [KP] */
    float *carry = flat + 3 * KDA_C * LF;
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int64_t c = blockIdx.x % chunks, bh = blockIdx.x / chunks, h = head0 + bh % heads, b = bh / heads;
    const kda_span at = kda_span_of(c, T, 0);
    const int64_t row = b * T + at.t0, own = bh * T + at.t0;
    states += (bh * chunks + c) * N * VP * KP;
    dstates += (bh * chunks + c) * N * VP * KP;
    const auto fetch = [&](int slice) {
        uint16_t *to = ring + slice % STAGES * STAGE;
        if (slice < VP / 16) UNROLL for (int p = 0; p < N; p++) {
            kda_fetch<2 * SLICE>((char *)(to + p * SLICE), (const char *)(states + p * VP * KP + slice * SLICE));
            kda_fetch<2 * SLICE>((char *)(to + (N + p) * SLICE),
                                 (const char *)(dstates + p * VP * KP + slice * SLICE));
        }
        cp_async_commit();
    };
    for (int i = 0; i < STAGES - 1; i++) fetch(i);
#pragma unroll 4
    for (int x = tid; x < KDA_C * VP / 2; x += 128) {
        const int i = x / (VP / 2), v = x % (VP / 2) * 2, to = i * LV + v, have = i < at.n ? V - v : 0;
        float d[2], r[2], z[2];
        kda_two<${TWO}>(d, dout + (row + i) * ldd + h * V + v, have);
        kda_two<${TWO}>(r, drs + (own + i) * V + v, have);
        kda_two<${TWO}>(z, zs + (own + i) * V + v, have);
        const float weight = have > 0 ? beta[(row + i) * ldb + h] : 0.0f;
        kda_split_to<P>(douts + to, PART, d[0], d[1]);
        kda_split_to<P>(drp + to, PART, -r[0], -r[1]);
        kda_split_to<P>(us + to, PART, z[0] * weight, z[1] * weight);
    }
    if (tid < at.n) {
        float sum = 0.0f;
        for (int64_t x = 0; x < VP / 16; x++) sum += dbetas[(bh * (VP / 16) + x) * T + at.t0 + tid];
        dbeta[(row + tid) * lddb + h] = sum;
    }

    float x[TILES][3][2][4] = {}, both[TILES][2] = {}, sums[2][4] = {};
#pragma unroll 1
    for (int slice = 0; slice < VP / 16; slice++) {
        uint32_t od[P][4], orp[P][4], ou[P][4];
        cp_async_wait(STAGES - 2);
        __syncthreads();
        fetch(slice + STAGES - 1);
        const uint16_t *block = douts + kda_by_columns(LV) + 16 * slice;
        kda_block<P>(od, block, PART);
        kda_block<P>(orp, block + OPERAND, PART);
        kda_block<P>(ou, block + 2 * OPERAND, PART);
        if (warp == 0) kda_times_rows<P>(sums, od, us + kda_by_rows(LV) + 16 * slice, PART);
        if (warp == 1) kda_times_rows<P>(sums, orp, us + kda_by_rows(LV) + 16 * slice, PART);
        UNROLL for (int t = 0; t < TILES; t++) {
            const int ch = 64 * t + 16 * warp;
            if (ch >= KP) continue;
            const uint16_t *from = ring + slice % STAGES * STAGE + kda_by_blocks<KP / 8>() + ch * 8;
            uint32_t s[N][4], ds[N][4];
            UNROLL for (int p = 0; p < N; p++) {
                ldmatrix4_trans(s[p], from + p * SLICE);
                ldmatrix4_trans(ds[p], from + (N + p) * SLICE);
            }
            UNROLL for (int i = 0; i < 4; i++) {
                float s0 = 0.0f, s1 = 0.0f, d0 = 0.0f, d1 = 0.0f;
                UNROLL for (int p = 0; p < N; p++) {
                    s0 += __uint_as_float(s[p][i] << 16), s1 += __uint_as_float(s[p][i] & 0xffff0000u);
                    d0 += __uint_as_float(ds[p][i] << 16), d1 += __uint_as_float(ds[p][i] & 0xffff0000u);
                }
                both[t][i / 2] = fma1(s0, d0, fma1(s1, d1, both[t][i / 2]));
            }
            UNROLL for (int o = N - 1; o >= 0; o--) UNROLL for (int p = P - 1 - o; p >= 0; p--) {
                UNROLL for (int n = 0; n < 2; n++) {
                    mma_bf16(x[t][0][n], od[p], s[o] + 2 * n);
                    mma_bf16(x[t][1][n], orp[p], s[o] + 2 * n);
                    mma_bf16(x[t][2][n], ou[p], ds[o] + 2 * n);
                }
            }
        }
    }
    __syncthreads(); /* the ring is done with */
    UNROLL for (int t = 0; t < TILES; t++) {
        const int ch = 64 * t + 16 * warp;
        if (ch >= KP) continue;
        UNROLL for (int m = 0; m < 3; m++) UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e += 2)
            st_row<2>(flat + (m * KDA_C + kda_column(e)) * LF + ch + kda_token(n, e), x[t][m][n] + e);
        UNROLL for (int n = 0; n < 2; n++) {
            both[t][n] += __shfl_xor_sync(ALL_LANES, both[t][n], 1);
            both[t][n] += __shfl_xor_sync(ALL_LANES, both[t][n], 2);
            if (lane % 4 == 0) carry[ch + 8 * n + lane / 4] = both[t][n];
        }
    }
    if (warp < 2) UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e++)
        pairs[(kda_token(n, e) * KDA_C + kda_column(e)) * 2 + warp] = sums[n][e];
    __syncthreads();

    for (int first = 0; first < K; first += 128) {
        const int ch = first + tid;
        kda_channel x;
        UNROLL for (int i = 0; i < KDA_C; i++) {
            const bool is = i < at.n && ch < K;
            x.k[i] = is ? kda_get(k + (row + i) * ldk + h * K + ch) : 0.0f;
            x.q[i] = is ? kda_get(q + (row + i) * ldq + h * K + ch) * ${SCALE}f : 0.0f;
            x.alpha[i] = is ? kda_exp<P>(g[(row + i) * ldg + h * K + ch]) : 1.0f;
        }
        kda_pair_grads(&x, pairs);
        if (ch >= K) continue;
        kda_state_grads(&x, flat + ch, LF, carry[ch]);
        UNROLL for (int i = 0; i < KDA_C; i++) {
            if (i >= at.n) break;
            kda_put(dq + (row + i) * lddq + h * K + ch, x.dq[i] * ${SCALE}f);
            kda_put(dk + (row + i) * lddk + h * K + ch, x.dk[i]);
            dg[(row + i) * lddg + h * K + ch] = x.dg[i];
        }
    }
}
