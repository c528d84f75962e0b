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
