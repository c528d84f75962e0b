/* Gradients of mixes over depth on a GPU; after `types`, `quads` and `stream` of cuda_depth.c. */
//== grad_tables
struct @FN@_queries {
    const float *u[${QCAP}];
    const void *dh[${QCAP}];
    const void *delta[${QCAP}]; /* dh . h, or (FROM_MIX) the mix h itself */
    const float *lse[${QCAP}];
};
struct @FN@_strides { /* of rows, in elements */
    int64_t delta[${QCAP}], lse[${QCAP}];
};
struct @FN@_sources {
    const void *v[${CAP}];
    const void *acc[${CAP}]; /* may be dv */
    void *dv[${CAP}];
};
//== grad_plain
/* With p_ij the weight of source j in query i and ds_ij the gradient of its logit, one row adds
 *   dv_j += sum_i p_ij dh_i + ds_ij r_j u_i + c_j v_j,  c_j = -sum_i ds_ij s_ij r_j^2 / D,
 *   du_i += sum_j ds_ij r_j v_j.
 * Any row size and alignment: a block takes `chunk` rows one by one and adds its part of du in
 * global memory. Dynamic shared memory: per query delta, p and ds r. */
extern "C" __global__ void __launch_bounds__(128)
@FN@(const float *s, const float *r, const __grid_constant__ struct @FN@_queries query,
     const __grid_constant__ struct @FN@_sources source, float *part_du, int64_t rows, int64_t n,
     int64_t q, int64_t chunk, const __grid_constant__ struct @FN@_strides ld,
     const __grid_constant__ struct @FN@_kind kind) {
    DYNAMIC_SHARED(float, delta);
    __shared__ float part[WARP];
    float *p = delta + q, *t = p + q, *du = part_du + blockIdx.x * q * @FN@_D;
    const int64_t first = blockIdx.x * chunk, end = min64(first + chunk, rows);
    for (int64_t row = first; row < end; row++) {
        const int64_t at = row * @FN@_D;
        for (int64_t i = 0; i < q; i++) {
            float sum = 0;
            if (${FROM_MIX}) { /* the whole mix is there */
                for (int d = threadIdx.x; d < @FN@_D; d += 128)
                    sum = fma1(@FN@_get(query.dh[i], @FN@_o_narrow(kind, i), at + d),
                               @FN@_get(query.delta[i], ${H_NARROW}, at + d), sum);
                sum = block_sum(sum, part);
            } else {
                sum = ((const float *)query.delta[i])[row * ld.delta[i]];
            }
            if (threadIdx.x == 0) delta[i] = sum;
        }
        for (int64_t j = 0; j < n; j++) {
            const void *v = source.v[j];
            const float rj = r[row * n + j];
            float c = 0;
            for (int64_t i = 0; i < q; i++) {
                float dot = 0;
                for (int d = threadIdx.x; d < @FN@_D; d += 128)
                    dot = fma1(@FN@_get(query.dh[i], @FN@_o_narrow(kind, i), at + d),
                               @FN@_get(v, @FN@_v_narrow(kind, j), at + d), dot);
                dot = block_sum(dot, part);
                const float sj = s[(row * q + i) * n + j];
                const float pj = exp1(sj - query.lse[i][row * ld.lse[i]]);
                const float tj = pj * (dot - delta[i]) * rj;
                c -= tj * sj * rj * (1.0f / @FN@_D);
                if (threadIdx.x == 0) p[i] = pj, t[i] = tj;
            }
            __syncthreads();
            for (int d = threadIdx.x; d < @FN@_D; d += 128) {
                const float x = @FN@_get(v, @FN@_v_narrow(kind, j), at + d);
                float y = c * x;
                if (@FN@_bit(kind, have, j))
                    y += @FN@_get(source.acc[j], @FN@_d_narrow(kind, j), at + d);
                for (int64_t i = 0; i < q; i++) {
                    y = fma1(p[i], @FN@_get(query.dh[i], @FN@_o_narrow(kind, i), at + d), y);
                    y = fma1(t[i], query.u[i][d], y);
                    float before = row == first && j == 0 ? 0 : du[i * @FN@_D + d];
                    du[i * @FN@_D + d] = fma1(t[i], x, before);
                }
                @FN@_put(source.dv[j], @FN@_d_narrow(kind, j), at + d, y);
            }
        }
    }
}
//== grad_stream
enum { @FN@_Q = ${Q}, @FN@_G = ${G} };
enum { @FN@_ACC = ${ACC} }; /* where accumulators begin in a warp's slot */
struct @FN@_flow { /* what is copied next, and where to; j < 0: dh of query j + Q, and the mix */
    int row, j, slot;
};
INLINE void @FN@_issue(struct @FN@_flow *f, const struct @FN@_queries &query,
                       const struct @FN@_sources &source, const struct @FN@_kind &kind,
                       shared_at ring, int rows, int n, int step, int warp, int lane) {
    const shared_at to = ring + f->slot * @FN@_SLOT;
    if (f->row < rows) {
        if (f->j < 0) {
            const int i = f->j + @FN@_Q;
            @FN@_copy(to, query.dh[i], @FN@_o_narrow(kind, i), f->row, warp, lane);
            if (${FROM_MIX})
                @FN@_copy(to + @FN@_ACC, query.delta[0], ${H_NARROW}, f->row, warp, lane);
        } else {
            @FN@_copy(to, source.v[f->j], @FN@_v_narrow(kind, f->j), f->row, warp, lane);
            if (@FN@_bit(kind, have, f->j))
                @FN@_copy(to + @FN@_ACC, source.acc[f->j], @FN@_d_narrow(kind, f->j), f->row, warp,
                          lane);
        }
        if (++f->j == n) f->j = -@FN@_Q, f->row += step;
    }
    cp_async_commit();
    f->slot = @FN@_after(f->slot, 1);
}
/* One query or two: everything is read once. A round takes `per` <= G sources: the dots of all with
 * every dh in one reduction (the first one also brings dh . h), then their gradients. With p_ij the
 * weight of source j in query i and ds_ij the gradient of its logit, one row adds
 *   dv_j += sum_i p_ij dh_i + ds_ij r_j u_i - ds_ij s_ij r_j^2 / D v_j,
 *   du_i += sum_j ds_ij r_j v_j.
 * du stays in registers over a unit's rows; units of a block add theirs in order at the end.
 * Bytes a row: n sources, n accumulators, n gradients, q of dh, and h. */
extern "C" __global__ void __launch_bounds__(@FN@_UNITS *@FN@_W *WARP, ${RESIDENT})
@FN@(const float *s, const float *r, const __grid_constant__ struct @FN@_queries query,
     const __grid_constant__ struct @FN@_sources source, float *part_du, int64_t row_count,
     int64_t source_count, int64_t per_round, const __grid_constant__ struct @FN@_strides ld,
     const __grid_constant__ struct @FN@_kind kind) {
    DYNAMIC_SHARED(char, shared);
    const int rows = (int)row_count, n = (int)source_count, per = (int)per_round;
    __shared__ __align__(16) float part[@FN@_UNITS][2][@FN@_P][@FN@_PART];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP % @FN@_W;
    const int unit = threadIdx.x / WARP / @FN@_W, column = warp * @FN@_SPAN + 4 * lane;
    const int step = gridDim.x * @FN@_UNITS;
    const int first = blockIdx.x * @FN@_UNITS + unit;
    char *ring = shared + unit * @FN@_STAGES * @FN@_SLOT + warp * (@FN@_SLOT / @FN@_W);
    const shared_at ring_at = at_shared(ring);
    struct @FN@_flow flow = {first, -@FN@_Q, 0};
    for (int k = 0; k < @FN@_STAGES; k++)
        @FN@_issue(&flow, query, source, kind, ring_at, rows, n, step, warp, lane);
    float u[@FN@_Q][@FN@_V][4], du[@FN@_Q][@FN@_V][4], dh[@FN@_Q][@FN@_V][4], v[4], y[4];
    UNROLL for (int i = 0; i < @FN@_Q; i++)
        UNROLL for (int k = 0; k < @FN@_V; k++) {
            UNROLL for (int e = 0; e < 4; e++) u[i][k][e] = du[i][k][e] = 0;
            if (column + 128 * k < @FN@_D) ld_f32x4(u[i][k], query.u[i] + column + 128 * k);
        }
    for (int k = threadIdx.x; k < @FN@_UNITS * 2 * @FN@_P * @FN@_PART;
         k += @FN@_UNITS * @FN@_W * WARP)
        (&part[0][0][0][0])[k] = 0;
    __syncthreads();

    /* a lane deals with source g of a round and query i; its numbers are fetched a round ahead */
    const int g_mine = lane / @FN@_EACH / @FN@_Q, i_mine = lane / @FN@_EACH % @FN@_Q;
    const float *numbers = query.lse[i_mine], *deltas = (const float *)query.delta[i_mine];
    const int64_t ld_lse = ld.lse[i_mine], ld_delta = ld.delta[i_mine];
    float s_next = 0, r_next = 0, lse_next = 0, delta_next = 0;
    if (first < rows) {
        if (g_mine < per) {
            s_next = s[((int64_t)first * @FN@_Q + i_mine) * n + g_mine];
            r_next = r[(int64_t)first * n + g_mine];
        }
        lse_next = numbers[first * ld_lse];
        if (!${FROM_MIX}) delta_next = deltas[first * ld_delta];
    }
    int slot = 0, turn = 0;
    for (int row = first; row < rows; row += step) {
        const float lse = lse_next;
        float delta = delta_next, product = 0; /* this lane's part of dh . h */
        if (row + step < rows) {
            lse_next = numbers[(row + step) * ld_lse];
            if (!${FROM_MIX}) delta_next = deltas[(row + step) * ld_delta];
        }
        @FN@_await(@FN@_Q);
        UNROLL for (int i = 0; i < @FN@_Q; i++)
            UNROLL for (int k = 0; k < @FN@_V; k++) {
                const char *at = ring + @FN@_after(slot, i) * @FN@_SLOT;
                @FN@_get4(dh[i][k], at, @FN@_o_narrow(kind, i), 4 * lane + 128 * k);
                if (!${FROM_MIX}) continue;
                @FN@_get4(v, at + @FN@_ACC, ${H_NARROW}, 4 * lane + 128 * k);
                UNROLL for (int e = 0; e < 4; e++) product = fma1(dh[i][k][e], v[e], product);
            }
        __syncwarp(); /* all have read what the next copies replace */
        for (int i = 0; i < @FN@_Q; i++)
            @FN@_issue(&flow, query, source, kind, ring_at, rows, n, step, warp, lane);
        slot = @FN@_after(slot, @FN@_Q);
        for (int j = 0; j < n; j += per) {
            const int count = per < n - j ? per : n - j;
            const float sj = s_next, rj = r_next;
            const int row1 = j + per < n ? row : row + step, j1 = j + per < n ? j + per : 0;
            if (row1 < rows && g_mine < per && j1 + g_mine < n) {
                s_next = s[((int64_t)row1 * @FN@_Q + i_mine) * n + j1 + g_mine];
                r_next = r[(int64_t)row1 * n + j1 + g_mine];
            }
            float x[@FN@_P];
            UNROLL for (int k = 0; k < @FN@_P; k++) x[k] = 0;
            if (${FROM_MIX}) x[@FN@_G * @FN@_Q] = j == 0 ? product : 0;
            @FN@_await(count);
            UNROLL for (int g = 0; g < @FN@_G; g++) {
                if (g >= count) continue;
                UNROLL for (int k = 0; k < @FN@_V; k++) {
                    @FN@_get4(v, ring + @FN@_after(slot, g) * @FN@_SLOT,
                              @FN@_v_narrow(kind, j + g), 4 * lane + 128 * k);
                    UNROLL for (int i = 0; i < @FN@_Q; i++)
                        UNROLL for (int e = 0; e < 4; e++)
                            x[g * @FN@_Q + i] = fma1(dh[i][k][e], v[e], x[g * @FN@_Q + i]);
                }
            }
            const float total = @FN@_total(x, part[unit][turn], unit, warp, lane);
            turn ^= 1;
            if (${FROM_MIX} && j == 0)
                delta = __shfl_sync(ALL_LANES, total, @FN@_G * @FN@_Q * @FN@_EACH);
            const float pj = exp1(sj - lse), tj = pj * (total - delta) * rj;
            const float cj = -tj * sj * rj * (1.0f / @FN@_D);
            UNROLL for (int g = 0; g < @FN@_G; g++) {
                if (g >= count) continue;
                float p[@FN@_Q], t[@FN@_Q], c = 0;
                UNROLL for (int i = 0; i < @FN@_Q; i++) {
                    const int from = (g * @FN@_Q + i) * @FN@_EACH;
                    p[i] = __shfl_sync(ALL_LANES, pj, from);
                    t[i] = __shfl_sync(ALL_LANES, tj, from);
                    c += __shfl_sync(ALL_LANES, cj, from);
                }
                const char *at = ring + @FN@_after(slot, g) * @FN@_SLOT;
                UNROLL for (int k = 0; k < @FN@_V; k++) {
                    @FN@_get4(v, at, @FN@_v_narrow(kind, j + g), 4 * lane + 128 * k);
                    UNROLL for (int e = 0; e < 4; e++) y[e] = 0;
                    if (@FN@_bit(kind, have, j + g))
                        @FN@_get4(y, at + @FN@_ACC, @FN@_d_narrow(kind, j + g),
                                  4 * lane + 128 * k);
                    UNROLL for (int e = 0; e < 4; e++) y[e] = fma1(c, v[e], y[e]);
                    UNROLL for (int i = 0; i < @FN@_Q; i++)
                        UNROLL for (int e = 0; e < 4; e++) {
                            y[e] = fma1(p[i], dh[i][k][e], y[e]);
                            y[e] = fma1(t[i], u[i][k][e], y[e]);
                            du[i][k][e] = fma1(t[i], v[e], du[i][k][e]);
                        }
                    if (column + 128 * k < @FN@_D)
                        @FN@_put4(source.dv[j + g], @FN@_d_narrow(kind, j + g),
                                  (int64_t)row * @FN@_D + column + 128 * k, y);
                }
            }
            __syncwarp();
            for (int g = 0; g < count; g++)
                @FN@_issue(&flow, query, source, kind, ring_at, rows, n, step, warp, lane);
            slot = @FN@_after(slot, count);
        }
    }
    cp_async_wait(0);
    float *parts = (float *)shared; /* the ring's memory takes the units' parts */
    UNROLL for (int i = 0; i < @FN@_Q; i++) {
        __syncthreads();
        UNROLL for (int k = 0; k < @FN@_V; k++)
            st_f32x4(parts + unit * @FN@_WIDTH + column + 128 * k, du[i][k]);
        __syncthreads();
        for (int d = threadIdx.x; d < @FN@_D; d += @FN@_UNITS * @FN@_W * WARP) {
            float sum = parts[d];
            for (int k = 1; k < @FN@_UNITS; k++) sum += parts[k * @FN@_WIDTH + d];
            part_du[(blockIdx.x * (int64_t)@FN@_Q + i) * @FN@_D + d] = sum;
        }
    }
}
//== grad_dots
enum { @FN@_ALL = ${QUERIES}, @FN@_Q = ${Q}, @FN@_G = ${G}, @FN@_BLOCKS = ${QBLOCKS} };
struct @FN@_flow { /* what is copied next, and where to; j < 0: dh of query j + Q */
    int row, j, slot;
};
INLINE void @FN@_issue(struct @FN@_flow *f, const struct @FN@_queries &query,
                       const struct @FN@_sources &source, const struct @FN@_kind &kind,
                       shared_at ring, int rows, int n, int from, int step, int warp, int lane) {
    const shared_at to = ring + f->slot * @FN@_SLOT;
    if (f->row < rows) {
        const int i = from + f->j + @FN@_Q < @FN@_ALL ? from + f->j + @FN@_Q : from;
        if (f->j < 0)
            @FN@_copy(to, query.dh[i], @FN@_o_narrow(kind, i), f->row, warp, lane);
        else
            @FN@_copy(to, source.v[f->j], @FN@_v_narrow(kind, f->j), f->row, warp, lane);
        if (++f->j == n) f->j = -@FN@_Q, f->row += step;
    }
    cp_async_commit();
    f->slot = @FN@_after(f->slot, 1);
}
/* Several queries, first part: of every row, source j and query i the coefficients (p, t, c, 0) of
 *   dv_j += sum_i p_ij dh_i + t_ij u_i + c_ij v_j,  du_i += sum_j t_ij v_j,
 * with p the weight of the source, t = p (dh_i . v_j - delta_i) r_j, c = -t s r_j / D. A block has
 * Q queries, whose dh stay in registers during a row; `per` <= G sources go through one reduction.
 * Bytes a row: n sources and q of dh. */
extern "C" __global__ void __launch_bounds__(@FN@_UNITS *@FN@_W *WARP, ${RESIDENT})
@FN@(const float *s, const float *r, const __grid_constant__ struct @FN@_queries query,
     const __grid_constant__ struct @FN@_sources source, float *coefficients, int64_t row_count,
     int64_t source_count, int64_t per_round, const __grid_constant__ struct @FN@_strides ld,
     const __grid_constant__ struct @FN@_kind kind) {
    DYNAMIC_SHARED(char, shared);
    const int rows = (int)row_count, n = (int)source_count, per = (int)per_round;
    __shared__ __align__(16) float part[@FN@_UNITS][2][@FN@_P][@FN@_PART];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP % @FN@_W;
    const int unit = threadIdx.x / WARP / @FN@_W, from = blockIdx.x % @FN@_BLOCKS * @FN@_Q;
    const int step = gridDim.x / @FN@_BLOCKS * @FN@_UNITS;
    const int first = blockIdx.x / @FN@_BLOCKS * @FN@_UNITS + unit;
    char *ring = shared + unit * @FN@_STAGES * @FN@_SLOT + warp * (@FN@_SLOT / @FN@_W);
    const shared_at ring_at = at_shared(ring);
    struct @FN@_flow flow = {first, -@FN@_Q, 0};
    for (int k = 0; k < @FN@_STAGES; k++)
        @FN@_issue(&flow, query, source, kind, ring_at, rows, n, from, step, warp, lane);
    for (int k = threadIdx.x; k < @FN@_UNITS * 2 * @FN@_P * @FN@_PART;
         k += @FN@_UNITS * @FN@_W * WARP)
        (&part[0][0][0][0])[k] = 0;
    __syncthreads();

    /* a lane deals with source g of a round and query i; its numbers are fetched a round ahead */
    const int g_mine = lane / @FN@_EACH / @FN@_Q, i_mine = from + lane / @FN@_EACH % @FN@_Q;
    const bool some = g_mine < per && i_mine < @FN@_ALL;
    const int i_safe = some ? i_mine : from;
    const float *lse = query.lse[i_safe], *delta = (const float *)query.delta[i_safe];
    float s_next = 0, r_next = 0, lse_next = 0, delta_next = 0;
    if (first < rows && some) {
        if (g_mine < n) s_next = s[((int64_t)first * @FN@_ALL + i_mine) * n + g_mine];
        if (g_mine < n) r_next = r[(int64_t)first * n + g_mine];
        lse_next = lse[first * ld.lse[i_safe]];
        delta_next = delta[first * ld.delta[i_safe]];
    }
    int slot = 0, turn = 0;
    for (int row = first; row < rows; row += step) {
        const float lse_row = lse_next, delta_row = delta_next;
        if (row + step < rows) {
            lse_next = lse[(row + step) * ld.lse[i_safe]];
            delta_next = delta[(row + step) * ld.delta[i_safe]];
        }
        float dh[@FN@_Q][@FN@_V][4], v[4];
        @FN@_await(@FN@_Q);
        UNROLL for (int i = 0; i < @FN@_Q; i++)
            UNROLL for (int k = 0; k < @FN@_V; k++) {
                @FN@_get4(dh[i][k], ring + @FN@_after(slot, i) * @FN@_SLOT,
                          @FN@_o_narrow(kind, from + i < @FN@_ALL ? from + i : from),
                          4 * lane + 128 * k);
                UNROLL for (int e = 0; e < 4; e++) KEEP(dh[i][k][e]);
            }
        __syncwarp(); /* all have read what the next copies replace */
        for (int i = 0; i < @FN@_Q; i++)
            @FN@_issue(&flow, query, source, kind, ring_at, rows, n, from, step, warp, lane);
        slot = @FN@_after(slot, @FN@_Q);
        for (int j = 0; j < n; j += per) {
            const int count = per < n - j ? per : n - j;
            const float sj = s_next, rj = r_next;
            const int row1 = j + per < n ? row : row + step, j1 = j + per < n ? j + per : 0;
            if (row1 < rows && some && j1 + g_mine < n) {
                s_next = s[((int64_t)row1 * @FN@_ALL + i_mine) * n + j1 + g_mine];
                r_next = r[(int64_t)row1 * n + j1 + g_mine];
            }
            float x[@FN@_P];
            UNROLL for (int k = 0; k < @FN@_P; k++) x[k] = 0;
            @FN@_await(count);
            UNROLL for (int g = 0; g < @FN@_G; g++) {
                if (g >= count) continue;
                UNROLL for (int k = 0; k < @FN@_V; k++) {
                    @FN@_get4(v, ring + @FN@_after(slot, g) * @FN@_SLOT,
                              @FN@_v_narrow(kind, j + g), 4 * lane + 128 * k);
                    UNROLL for (int i = 0; i < @FN@_Q; i++)
                        UNROLL for (int e = 0; e < 4; e++)
                            x[g * @FN@_Q + i] = fma1(dh[i][k][e], v[e], x[g * @FN@_Q + i]);
                }
            }
            __syncwarp();
            for (int g = 0; g < count; g++)
                @FN@_issue(&flow, query, source, kind, ring_at, rows, n, from, step, warp, lane);
            slot = @FN@_after(slot, count);
            const float dot = @FN@_total(x, part[unit][turn], unit, warp, lane);
            turn ^= 1;
            const float p = exp1(sj - lse_row), t = p * (dot - delta_row) * rj;
            const float out[4] = {p, t, -t * sj * rj * (1.0f / @FN@_D), 0};
            if (warp == 0 && lane % @FN@_EACH == 0 && g_mine < count && some)
                st_f32x4(coefficients +
                             4 * (((int64_t)row * n + j + g_mine) * @FN@_ALL + i_mine),
                         out);
        }
    }
}
//== grad_apply
enum { @FN@_Q = ${Q}, @FN@_J = 4 };
/* Several queries, second part: applies the coefficients of queries from..from+Q-1. A block has
 * 512 columns, four a thread, in registers with u, dh and du of its queries, and goes through
 * `chunk` rows; J sources are read before the first of their gradients is written. Bytes a row: n
 * sources, n accumulators, n gradients and Q of dh. */
extern "C" __global__ void __launch_bounds__(128, ${RESIDENT})
@FN@(const __grid_constant__ struct @FN@_queries query,
     const __grid_constant__ struct @FN@_sources source, const float *coefficients, float *part_du,
     int64_t rows, int64_t source_count, int64_t queries, int64_t from, int64_t chunk,
     const __grid_constant__ struct @FN@_kind kind) {
    const int column = 4 * (blockIdx.x * 128 + threadIdx.x), n = (int)source_count;
    if (column >= @FN@_D) return;
    float u[@FN@_Q][4], du[@FN@_Q][4], dh[@FN@_Q][4];
    UNROLL for (int i = 0; i < @FN@_Q; i++) {
        UNROLL for (int e = 0; e < 4; e++) du[i][e] = 0;
        ld_f32x4(u[i], query.u[from + i] + column);
    }
    const int64_t end = min64((blockIdx.y + 1) * chunk, rows);
    for (int64_t row = blockIdx.y * chunk; row < end; row++) {
        const int64_t at = row * @FN@_D + column;
        UNROLL for (int i = 0; i < @FN@_Q; i++)
            @FN@_get4(dh[i], query.dh[from + i], @FN@_o_narrow(kind, from + i), at);
        for (int j = 0; j < n; j += @FN@_J) {
            float v[@FN@_J][4], y[@FN@_J][4];
            UNROLL for (int g = 0; g < @FN@_J; g++) {
                if (j + g >= n) continue;
                @FN@_get4(v[g], source.v[j + g], @FN@_v_narrow(kind, j + g), at);
                UNROLL for (int e = 0; e < 4; e++) y[g][e] = 0;
                if (@FN@_bit(kind, have, j + g))
                    @FN@_get4(y[g], source.acc[j + g], @FN@_d_narrow(kind, j + g), at);
            }
            UNROLL for (int g = 0; g < @FN@_J; g++) {
                if (j + g >= n) continue;
                const float *f = coefficients + 4 * ((row * n + j + g) * queries + from);
                float c = 0;
                UNROLL for (int i = 0; i < @FN@_Q; i++) {
                    float w[4];
                    ld_f32x4(w, f + 4 * i);
                    c += w[2];
                    UNROLL for (int e = 0; e < 4; e++) {
                        y[g][e] = fma1(w[0], dh[i][e], y[g][e]);
                        y[g][e] = fma1(w[1], u[i][e], y[g][e]);
                        du[i][e] = fma1(w[1], v[g][e], du[i][e]);
                    }
                }
                UNROLL for (int e = 0; e < 4; e++) y[g][e] = fma1(c, v[g][e], y[g][e]);
                @FN@_put4(source.dv[j + g], @FN@_d_narrow(kind, j + g), at, y[g]);
            }
        }
    }
    UNROLL for (int i = 0; i < @FN@_Q; i++)
        st_f32x4(part_du + (blockIdx.y * queries + from + i) * @FN@_D + column, du[i]);
}
//== grad_end
struct @FN@_queries {
    float *du[${QCAP}];
};
/* The sum over chunks of the parts [chunks, q, D] of du: block (x, i) has 32 columns of query i;
 * warp w takes the parts w, w + 16 ..., then warp 0 adds the warps' sums in order. */
extern "C" __global__ void __launch_bounds__(512)
@FN@(const float *part, const __grid_constant__ struct @FN@_queries query, int64_t chunks,
     int64_t q) {
    __shared__ float sums[16][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t d = blockIdx.x * (int64_t)WARP + lane, i = blockIdx.y;
    float sum = 0;
    if (d < ${D})
        for (int64_t c = warp; c < chunks; c += 16) sum += part[(c * q + i) * ${D} + d];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp || d >= ${D}) return;
    for (int k = 1; k < 16; k++) sum += sums[k][lane];
    query.du[i][d] = sum;
}
