/* Mixes over depth on a GPU. Sources are tensors of their own, reached through a table of pointers
 * in the kernel's parameters, whose capacity is a power of two: entries beyond the count repeat
 * others. All arithmetic is float32; a row's results depend on that row only. */
//== types
enum { @FN@_D = ${D} };
/* Bit j of a word of `kind`: source j (v), row output or its gradient (o), source gradient (d) is
 * stored as bf16; source j has an accumulator (have). Where all of a sort are alike the text says
 * it instead. */
struct @FN@_kind {
    uint64_t v[${WORDS}], o[${QWORDS}], d[${WORDS}], have[${WORDS}];
};
#define @FN@_bit(kind, name, j) ((kind).name[(j) / 64] >> (j) % 64 & 1)
#define @FN@_v_narrow(kind, j) ${V_NARROW}
#define @FN@_o_narrow(kind, i) ${O_NARROW}
#define @FN@_d_narrow(kind, j) ${D_NARROW}
INLINE float @FN@_get(const void *p, bool narrow, int64_t i) {
    return narrow ? bf16_to_f32(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}
INLINE void @FN@_put(void *p, bool narrow, int64_t i, float x) {
    if (narrow)
        ((uint16_t *)p)[i] = f32_to_bf16(x);
    else
        ((float *)p)[i] = x;
}
//== mix_plain
struct @FN@_queries {
    const float *u[${QCAP}]; /* times the gains */
    void *o[${QCAP}];        /* mixes */
};
struct @FN@_sources {
    const void *v[${CAP}];
};
/* Any row size and alignment: a block per row reads the sources twice per query, for logits, then
 * for the sum (from a cache). Dynamic shared memory: a float per source. */
extern "C" __global__ void __launch_bounds__(128)
@FN@(const __grid_constant__ struct @FN@_queries query,
     const __grid_constant__ struct @FN@_sources source, float *s, float *r, float *lse, int64_t n,
     int64_t q, const __grid_constant__ struct @FN@_kind kind) {
    DYNAMIC_SHARED(float, w);
    __shared__ float part[WARP];
    const int64_t row = blockIdx.x, at = row * @FN@_D;
    for (int64_t i = 0; i < q; i++) {
        const float *u = query.u[i];
        float top = -INFF, sum = 0;
        for (int64_t j = 0; j < n; j++) {
            const void *v = source.v[j];
            float dot = 0, square = 0;
            for (int d = threadIdx.x; d < @FN@_D; d += 128) {
                float x = @FN@_get(v, @FN@_v_narrow(kind, j), at + d);
                dot = fma1(u[d], x, dot);
                square = fma1(x, x, square);
            }
            dot = block_sum(dot, part);
            float rj = rsqrt1(block_sum(square, part) * (1.0f / @FN@_D) + ${EPS});
            if (threadIdx.x == 0) {
                w[j] = s[(row * q + i) * n + j] = rj * dot;
                r[row * n + j] = rj;
            }
            top = max1(top, rj * dot);
        }
        __syncthreads();
        for (int64_t j = 0; j < n; j++) sum += exp1(w[j] - top);
        __syncthreads();
        for (int64_t j = threadIdx.x; j < n; j += 128) w[j] = div1(exp1(w[j] - top), sum);
        if (threadIdx.x == 0) lse[row * q + i] = top + log1(sum);
        __syncthreads();
        for (int d = threadIdx.x; d < @FN@_D; d += 128) {
            float y = 0;
            for (int64_t j = 0; j < n; j++)
                y = fma1(w[j], @FN@_get(source.v[j], @FN@_v_narrow(kind, j), at + d), y);
            @FN@_put(query.o[i], @FN@_o_narrow(kind, i), at + d, y);
        }
    }
}
//== quads
INLINE void @FN@_get4(float x[4], const void *p, bool narrow, int64_t i) {
    if (narrow) {
        uint2 v = *(const uint2 *)((const uint16_t *)p + i);
        x[0] = __uint_as_float(v.x << 16), x[1] = __uint_as_float(v.x & 0xffff0000u);
        x[2] = __uint_as_float(v.y << 16), x[3] = __uint_as_float(v.y & 0xffff0000u);
    } else {
        ld_f32x4(x, (const float *)p + i);
    }
}
INLINE void @FN@_put4(void *p, bool narrow, int64_t i, const float x[4]) {
    if (narrow)
        st_whole((uint2 *)((uint16_t *)p + i), make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])));
    else
        st_f32x4((float *)p + i, x);
}
//== stream
/* Rows whose size and addresses are multiples of 16 bytes pass through a ring of shared memory,
 * copied long before they are needed, so that memory is always busy. A unit of W warps takes one
 * row at a time; warp w has the columns w * SPAN .. + SPAN - 1, and of those its lane l the quads
 * 128 k + 4 l, k < V: full sectors in both types. A warp reads only what it copied itself. */
enum {
    @FN@_V = ${V}, @FN@_W = ${W}, @FN@_UNITS = ${UNITS}, @FN@_SPAN = 128 * @FN@_V,
    @FN@_WIDTH = @FN@_W * @FN@_SPAN, @FN@_STAGES = ${STAGES}, @FN@_SLOT = ${SLOT}
};
/* Copies a warp's columns of a row of elements of `bytes` bytes to its part of a slot, zeros beyond
 * the row's end. */
INLINE void @FN@_copy_span(shared_at slot, const void *p, const int bytes, int row, int warp,
                           int lane) {
    const int span = @FN@_SPAN * bytes, at = warp * span + 16 * lane, end = @FN@_D * bytes;
    const char *from = (const char *)p + (int64_t)row * end + at;
    const shared_at to = slot + 16 * lane;
    UNROLL for (int k = 0; k < span; k += 512) {
        if (span - k < 512 && 16 * lane >= span - k) continue;
        const bool in = @FN@_WIDTH == @FN@_D || at + k < end;
        cp_async16(to + k, in ? from + k : (const char *)p, in);
    }
}
INLINE void @FN@_copy(shared_at slot, const void *p, bool narrow, int row, int warp, int lane) {
    if (narrow)
        @FN@_copy_span(slot, p, 2, row, warp, lane);
    else
        @FN@_copy_span(slot, p, 4, row, warp, lane);
}
INLINE int @FN@_after(int slot, int by) {
    return slot + by < @FN@_STAGES ? slot + by : slot + by - @FN@_STAGES;
}
/* Waits for the oldest c of STAGES groups of copies, 1 <= c < STAGES. */
INLINE void @FN@_await(int c) {
    switch (c) {
${WAITS}    default: cp_async_wait(@FN@_STAGES - 1); break;
    }
    __syncwarp();
}
/* Sums of P values over a unit's lanes. First halves of a warp trade halves of the values, and so
 * on, then the warps' sums meet in `part`, of which calls must use two by turns and whose columns
 * from W on are zeros. Lane l returns value l / (32 / P). */
enum {
    @FN@_P = ${P}, @FN@_EACH = WARP / @FN@_P, /* lanes of a value */
    @FN@_COLUMNS = @FN@_W <= 4 ? 4 : @FN@_W <= 8 ? 8 : 16,
    @FN@_PART = @FN@_COLUMNS + (@FN@_W <= 4 ? 0 : 4), /* a row of `part`, without bank conflicts */
    @FN@_SHARES = @FN@_EACH < @FN@_COLUMNS / 4 ? @FN@_EACH : @FN@_COLUMNS / 4
};
INLINE float @FN@_total(float x[@FN@_P], float (*part)[@FN@_PART], int unit, int warp, int lane) {
    UNROLL for (int level = 1; level <= 5; level++) {
        const int n = @FN@_P >> level; /* values left */
        const bool upper = lane & n * @FN@_EACH;
        UNROLL for (int i = 0; i < @FN@_P / 2; i++) {
            if (i >= n) continue;
            const float keep = upper ? x[i + n] : x[i], give = upper ? x[i] : x[i + n];
            x[i] = keep + __shfl_xor_sync(ALL_LANES, give, n * @FN@_EACH);
        }
    }
    float sum = x[0];
    UNROLL for (int d = @FN@_EACH / 2; d; d /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, d);
    if (@FN@_W == 1) return sum;
    const int value = lane / @FN@_EACH, share = lane % @FN@_SHARES;
    if (lane % @FN@_EACH == 0) part[value][warp] = sum;
    named_sync(1 + unit, @FN@_W * WARP);
    sum = 0;
    UNROLL for (int i = 0; i < @FN@_COLUMNS / @FN@_SHARES; i += 4) {
        float y[4];
        ld_f32x4(y, &part[value][share * (@FN@_COLUMNS / @FN@_SHARES) + i]);
        sum += y[0] + y[1] + (y[2] + y[3]);
    }
    UNROLL for (int d = @FN@_SHARES / 2; d; d /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, d);
    return sum;
}
//== held_narrow
/* What stays in registers of a quad between logit and sum. */
struct @FN@_quad {
    uint2 x;
};
INLINE void @FN@_hold(struct @FN@_quad *q, const char *slot, bool narrow, int i) {
    (void)narrow;
    q->x = *(const uint2 *)(slot + 2 * i);
}
INLINE void @FN@_held(float x[4], struct @FN@_quad q) {
    x[0] = __uint_as_float(q.x.x << 16), x[1] = __uint_as_float(q.x.x & 0xffff0000u);
    x[2] = __uint_as_float(q.x.y << 16), x[3] = __uint_as_float(q.x.y & 0xffff0000u);
}
//== held_wide
struct @FN@_quad { /* what stays in registers of a quad between logit and sum */
    float x[4];
};
INLINE void @FN@_hold(struct @FN@_quad *q, const char *slot, bool narrow, int i) {
    @FN@_get4(q->x, slot, narrow, i);
}
INLINE void @FN@_held(float x[4], struct @FN@_quad q) {
    UNROLL for (int e = 0; e < 4; e++) x[e] = q.x[e];
}
//== mix_stream
struct @FN@_queries {
    const float *u[${QCAP}]; /* times the gains */
    void *o[${QCAP}];        /* mixes */
};
struct @FN@_sources {
    const void *v[${CAP}];
};
enum { @FN@_ALL = ${QUERIES}, @FN@_Q = ${Q}, @FN@_G = ${G}, @FN@_BLOCKS = ${QBLOCKS} };
struct @FN@_flow { /* what is copied next, and where to */
    int row, j, slot;
};
INLINE void @FN@_issue(struct @FN@_flow *f, const struct @FN@_sources &source,
                       const struct @FN@_kind &kind, shared_at ring, int rows, int n, int step,
                       int warp, int lane) {
    if (f->row < rows) {
        @FN@_copy(ring + f->slot * @FN@_SLOT, source.v[f->j], @FN@_v_narrow(kind, f->j), f->row,
                  warp, lane);
        if (++f->j == n) f->j = 0, f->row += step;
    }
    cp_async_commit();
    f->slot = @FN@_after(f->slot, 1);
}
/* Adds a quad to the dot products with the queries, and to the square behind them. */
INLINE void @FN@_dots(float y[@FN@_Q + 1], const float u[@FN@_Q][4], struct @FN@_quad q) {
    float v[4];
    @FN@_held(v, q);
    UNROLL for (int e = 0; e < 4; e++) {
        UNROLL for (int i = 0; i < @FN@_Q; i++) y[i] = fma1(u[i][e], v[e], y[i]);
        y[@FN@_Q] = fma1(v[e], v[e], y[@FN@_Q]);
    }
}
/* The lane of @FN@_total that has logit i of a round's source g; the mean square is i = Q. */
INLINE int @FN@_lane(int g, int i) { return (g * (@FN@_Q + 1) + i) * @FN@_EACH; }
/* Every source of a row is read once for Q queries, `per` <= G sources a round, and stays in
 * registers from the logits, which one reduction makes, to the sum; its slots are filled again
 * before the reduction. Rounds are joined by an online softmax: sums so far shrink where a larger
 * logit comes. What a lane knows of logits is about its own one (@FN@_lane). With more than Q
 * queries as many blocks take the same rows at about the same time, and find them in the L2 cache.
 * Bytes a row: n sources and q mixes. */
extern "C" __global__ void __launch_bounds__(@FN@_UNITS *@FN@_W *WARP, 1)
@FN@(const __grid_constant__ struct @FN@_queries query,
     const __grid_constant__ struct @FN@_sources source, float *s, float *r, float *lse,
     int64_t row_count, int64_t source_count, int64_t per_round,
     const __grid_constant__ struct @FN@_kind kind) {
    DYNAMIC_SHARED(char, shared);
    const int rows = (int)row_count, n = (int)source_count, per = (int)per_round;
    __shared__ __align__(16) float part[@FN@_W > 1 ? @FN@_UNITS : 1][2][@FN@_P][@FN@_PART];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP % @FN@_W;
    const int unit = threadIdx.x / WARP / @FN@_W, units = blockDim.x / WARP / @FN@_W;
    const int from = blockIdx.x % @FN@_BLOCKS * @FN@_Q;
    const int step = gridDim.x / @FN@_BLOCKS * units;
    const int first = blockIdx.x / @FN@_BLOCKS * units + unit;
    const int column = warp * @FN@_SPAN + 4 * lane;
    float *queries = (float *)shared; /* several are there, a single one is in registers */
    char *ring = shared + (@FN@_Q > 1 ? @FN@_Q * @FN@_WIDTH * 4 : 0) +
                 unit * @FN@_STAGES * @FN@_SLOT + warp * (@FN@_SLOT / @FN@_W);
    float own[@FN@_V][1][4];
    if (@FN@_Q == 1) {
        UNROLL for (int k = 0; k < @FN@_V; k++) {
            UNROLL for (int e = 0; e < 4; e++) own[k][0][e] = 0;
            if (column + 128 * k < @FN@_D) ld_f32x4(own[k][0], query.u[from] + column + 128 * k);
        }
    }
    const shared_at ring_at = at_shared(ring);
    struct @FN@_flow flow = {first, 0, 0};
    for (int k = 0; k < @FN@_STAGES; k++)
        @FN@_issue(&flow, source, kind, ring_at, rows, n, step, warp, lane);
    for (int k = 4 * threadIdx.x; @FN@_Q > 1 && k < @FN@_Q * @FN@_WIDTH; k += 4 * blockDim.x) {
        const int i = from + k / @FN@_WIDTH, d = k % @FN@_WIDTH;
        float u[4] = {0};
        if (d < @FN@_D) ld_f32x4(u, query.u[i < @FN@_ALL ? i : from] + d);
        st_f32x4(queries + k, u);
    }
    for (int k = threadIdx.x; k < (int)(sizeof part / sizeof(float)); k += blockDim.x)
        (&part[0][0][0][0])[k] = 0;
    __syncthreads();

    const int mine_g = lane / @FN@_EACH / (@FN@_Q + 1), value_i = lane / @FN@_EACH % (@FN@_Q + 1);
    const int mine_i = value_i < @FN@_Q ? value_i : 0;
    const bool teller = warp == 0 && lane % @FN@_EACH == 0; /* lanes that write numbers */
    int slot = 0, turn = 0;
    for (int row = first; row < rows; row += step) {
        float acc[@FN@_Q][@FN@_V][4], top = -INFF, sum = 0;
        UNROLL for (int k = 0; k < @FN@_Q * @FN@_V * 4; k++) (&acc[0][0][0])[k] = 0;
        for (int j = 0; j < n; j += per) {
            const int count = per < n - j ? per : n - j;
            struct @FN@_quad held[@FN@_G][@FN@_V];
            float x[@FN@_P], v[4];
            UNROLL for (int k = 0; k < @FN@_P; k++) x[k] = 0;
            if (@FN@_Q == 1) { /* each source as it comes */
                UNROLL for (int g = 0; g < @FN@_G; g++) {
                    if (g >= count) continue;
                    @FN@_await(g + 1);
                    UNROLL for (int k = 0; k < @FN@_V; k++) {
                        @FN@_hold(&held[g][k], ring + @FN@_after(slot, g) * @FN@_SLOT,
                                  @FN@_v_narrow(kind, j + g), 4 * lane + 128 * k);
                        @FN@_dots(x + 2 * g, own[k], held[g][k]);
                    }
                }
            } else { /* each part of the queries once for all sources */
                @FN@_await(count);
                UNROLL for (int k = 0; k < @FN@_V; k++) {
                    float u[@FN@_Q][4];
                    UNROLL for (int i = 0; i < @FN@_Q; i++)
                        ld_f32x4(u[i], queries + i * @FN@_WIDTH + column + 128 * k);
                    UNROLL for (int g = 0; g < @FN@_G; g++) {
                        if (g >= count) continue;
                        @FN@_hold(&held[g][k], ring + @FN@_after(slot, g) * @FN@_SLOT,
                                  @FN@_v_narrow(kind, j + g), 4 * lane + 128 * k);
                        @FN@_dots(x + g * (@FN@_Q + 1), u, held[g][k]);
                    }
                }
            }
            __syncwarp(); /* all have read what the next copies replace */
            for (int g = 0; g < count; g++)
                @FN@_issue(&flow, source, kind, ring_at, rows, n, step, warp, lane);
            slot = @FN@_after(slot, count);
            const float total = @FN@_total(x, part[@FN@_W > 1 ? unit : 0][turn], unit, warp, lane);
            turn ^= 1;
            const float square = __shfl_sync(ALL_LANES, total, @FN@_lane(mine_g, @FN@_Q));
            const float rj = __frsqrt_rn(square * (1.0f / @FN@_D) + ${EPS}), logit = rj * total;
            if (teller && mine_g < count) {
                if (value_i == @FN@_Q && from == 0) r[(int64_t)row * n + j + mine_g] = rj;
                if (value_i < @FN@_Q && from + value_i < @FN@_ALL)
                    s[((int64_t)row * @FN@_ALL + from + value_i) * n + j + mine_g] = logit;
            }
            float high = top;
            UNROLL for (int g = 0; g < @FN@_G; g++) {
                const float other = __shfl_sync(ALL_LANES, logit, @FN@_lane(g, mine_i));
                if (g < count) high = max1(high, other);
            }
            const float p = exp1(logit - high);
            if (j) {
                const float shrink = exp1(top - high);
                sum *= shrink;
                UNROLL for (int i = 0; i < @FN@_Q; i++) {
                    const float f = __shfl_sync(ALL_LANES, shrink, @FN@_lane(0, i));
                    UNROLL for (int k = 0; k < @FN@_V * 4; k++) (&acc[i][0][0])[k] *= f;
                }
            }
            top = high;
            UNROLL for (int g = 0; g < @FN@_G; g++) {
                if (g >= count) continue;
                float w[@FN@_Q];
                UNROLL for (int i = 0; i < @FN@_Q; i++)
                    w[i] = __shfl_sync(ALL_LANES, p, @FN@_lane(g, i));
                sum += @FN@_Q == 1 ? w[0] : __shfl_sync(ALL_LANES, p, @FN@_lane(g, mine_i));
                UNROLL for (int k = 0; k < @FN@_V; k++) {
                    @FN@_held(v, held[g][k]);
                    UNROLL for (int i = 0; i < @FN@_Q; i++)
                        UNROLL for (int e = 0; e < 4; e++)
                            acc[i][k][e] = fma1(w[i], v[e], acc[i][k][e]);
                }
            }
        }
        if (teller && mine_g == 0 && value_i < @FN@_Q && from + value_i < @FN@_ALL)
            lse[(int64_t)row * @FN@_ALL + from + value_i] = top + log1(sum);
        const float inverse = div1(1.0f, sum);
        UNROLL for (int i = 0; i < @FN@_Q; i++) {
            const float all = __shfl_sync(ALL_LANES, inverse, @FN@_lane(0, i));
            const float f = @FN@_Q == 1 ? inverse : all;
            if (from + i >= @FN@_ALL) continue;
            UNROLL for (int k = 0; k < @FN@_V; k++) {
                UNROLL for (int e = 0; e < 4; e++) acc[i][k][e] *= f;
                if (column + 128 * k < @FN@_D)
                    @FN@_put4(query.o[from + i], @FN@_o_narrow(kind, from + i),
                              (int64_t)row * @FN@_D + column + 128 * k, acc[i][k]);
            }
        }
    }
    cp_async_wait(0); /* of empty groups */
}
