/* Mixture of experts on a GPU. Assignment a = token * k + slot; rows sorted by expert. */
//== scores
/* Largest logit of a row and 1 / (sum of e^(x - largest)): what the score of a row's elements needs
 * besides them. A warp a row; sums in the CPU's order, by 16 columns. */
struct @FN@_norm {
    float top, inv;
};
INLINE struct @FN@_norm @FN@_norm_of(const float *x, int lane) {
    struct @FN@_norm n = {0, 1};
    if (!${SOFTMAX}) return n;
    float top = -INFF, sum = 0;
    for (int e = lane; e < ${E}; e += WARP) top = max1(x[e], top);
    n.top = warp_max(top);
    for (int e = 0; e < ${E}; e += WARP) {
        float y = e + lane < ${E} ? exp1(x[e + lane] - n.top) : 0.0f;
        float upper = __shfl_xor_sync(ALL_LANES, y, 16);
        sum = lane < 16 ? sum + y + upper : sum + upper + y;
    }
    UNROLL for (int d = 8; d; d /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, d);
    n.inv = div1(1.0f, sum);
    return n;
}
INLINE float @FN@_score(float x, struct @FN@_norm n) {
    return ${SOFTMAX} ? exp1(x - n.top) * n.inv : sigmoid1(x);
}
//== moe_route
/* The largest of score + bias, falling, ties to the lower id, as numbers that compare alike: 0 is
 * taken, 1 a NaN, so that ids are always valid. A warp a token; each lane knows the best of its
 * experts and looks anew only when that is taken. Floor: the logits once. */
INLINE uint32_t @FN@_key(float x) {
    uint32_t u = __float_as_uint(x + 0.0f); /* -0 is 0 */
    return x != x ? 1 : u >> 31 ? ~u : u | 0x80000000u;
}
extern "C" __global__ void __launch_bounds__(${WARPS} * WARP)
@FN@(const float *logits, const float *bias, int32_t *ids, float *weights, int64_t ld,
     int64_t tokens)
{
    __shared__ uint32_t keys[${WARPS}][${E}];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int64_t t = (int64_t)blockIdx.x * ${WARPS} + warp;
    if (t >= tokens) return;
    const float *x = logits + t * ld;
    uint32_t *key = keys[warp], best = 0;
    int at = ${E};
    struct @FN@_norm norm = @FN@_norm_of(x, lane);
    for (int e = lane; e < ${E}; e += WARP) {
        uint32_t k = key[e] = @FN@_key(@FN@_score(x[e], norm) + bias[e]);
        if (k > best) best = k, at = e;
    }
    int32_t *id = ids + t * ${K};
    float *w = weights + t * ${K}, sum = 0;
    for (int i = 0; i < ${K}; i++) {
        uint32_t top = best;
        int e = at;
        UNROLL for (int d = WARP / 2; d; d /= 2) {
            uint32_t k = __shfl_xor_sync(ALL_LANES, top, d);
            int other = __shfl_xor_sync(ALL_LANES, e, d);
            if (k > top || (k == top && other < e)) top = k, e = other;
        }
        float s = @FN@_score(x[e], norm);
        sum += s;
        if (lane == 0) id[i] = e, w[i] = s;
        if (e != at) continue;
        key[e] = best = 0, at = ${E};
        for (int o = lane; o < ${E}; o += WARP)
            if (key[o] > best) best = key[o], at = o;
    }
    __syncwarp();
    for (int i = lane; i < ${K}; i += WARP)
        w[i] = ${RENORMALIZE} ? div1(w[i], sum + 1e-20f) * ${SCALE} : w[i] * ${SCALE};
}
//== moe_weights
/* A warp a token; every lane sums, so that the order is that of the slots. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const float *logits, const int32_t *ids, float *weights, int64_t ld, int64_t tokens)
{
    int lane = threadIdx.x % WARP;
    int64_t t = (int64_t)blockIdx.x * 8 + threadIdx.x / WARP;
    if (t >= tokens) return;
    const float *x = logits + t * ld;
    const int32_t *id = ids + t * ${K};
    float *w = weights + t * ${K}, sum = 0;
    struct @FN@_norm norm = @FN@_norm_of(x, lane);
    for (int i = 0; i < ${K}; i++) sum += @FN@_score(x[id[i]], norm);
    for (int i = lane; i < ${K}; i += WARP) {
        float s = @FN@_score(x[id[i]], norm);
        w[i] = ${RENORMALIZE} ? div1(s, sum + 1e-20f) * ${SCALE} : s * ${SCALE};
    }
}
//== moe_route_grad
/* A warp a token; what concerns the slots is computed by every lane. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const float *logits, const int32_t *ids, const float *dweights, float *dlogits, int64_t ld,
     int64_t ld_dw, int64_t tokens)
{
    int lane = threadIdx.x % WARP;
    int64_t t = (int64_t)blockIdx.x * 8 + threadIdx.x / WARP;
    if (t >= tokens) return;
    const float *x = logits + t * ld, *dw = dweights + t * ld_dw;
    const int32_t *id = ids + t * ${K};
    float *dx = dlogits + t * ${E}, sum = 1e-20f, back = 0, mean = 0;
    struct @FN@_norm norm = @FN@_norm_of(x, lane);
    if (${RENORMALIZE}) {
        for (int i = 0; i < ${K}; i++) sum += @FN@_score(x[id[i]], norm);
        /* this order leaves exactly 0 below where the one chosen has all the weight */
        for (int i = 0; i < ${K}; i++) back += dw[i] * div1(@FN@_score(x[id[i]], norm), sum);
    }
    for (int i = 0; i < ${K} && ${SOFTMAX}; i++) {
        float ds = ${SCALE} * (${RENORMALIZE} ? div1(dw[i] - back, sum) : dw[i]);
        mean += ds * @FN@_score(x[id[i]], norm);
    }
    for (int e = lane; e < ${E}; e += WARP)
        dx[e] = ${SOFTMAX} ? @FN@_score(x[e], norm) * -mean : 0.0f;
    __syncwarp();
    for (int i = lane; i < ${K}; i += WARP) {
        float ds = ${SCALE} * (${RENORMALIZE} ? div1(dw[i] - back, sum) : dw[i]);
        float s = @FN@_score(x[id[i]], norm);
        dx[id[i]] = ${SOFTMAX} ? s * (ds - mean) : ds * s * (1 - s);
    }
}
//== moe_count
/* How many assignments of chunk c go to expert e, at count[e * chunks + c]; a block a chunk. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const int32_t *ids, int32_t *count, int64_t assignments, int64_t chunks)
{
    __shared__ int mine[${E}];
    for (int e = threadIdx.x; e < ${E}; e += 256) mine[e] = 0;
    __syncthreads();
    int64_t first = (int64_t)blockIdx.x * ${CHUNK}, end = min64(first + ${CHUNK}, assignments);
    for (int64_t a = first + threadIdx.x; a < end; a += 256) atomicAdd(&mine[ids[a]], 1);
    __syncthreads();
    for (int e = threadIdx.x; e < ${E}; e += 256) count[e * chunks + blockIdx.x] = mine[e];
}
//== moe_scan
/* count[e][c] becomes what earlier chunks have of expert e, total[e] what all have; a warp an
 * expert. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(int32_t *count, int32_t *total, int64_t chunks)
{
    int lane = threadIdx.x % WARP, e = blockIdx.x * 8 + threadIdx.x / WARP, before = 0;
    if (e >= ${E}) return;
    for (int64_t c = lane; c < chunks + lane; c += WARP) {
        int v = c < chunks ? count[e * chunks + c] : 0, upto = warp_scan(v);
        if (c < chunks) count[e * chunks + c] = before + upto - v;
        before += __shfl_sync(ALL_LANES, upto, WARP - 1);
    }
    if (lane == 0) total[e] = before;
}
//== moe_sort
/* Places of the assignments of a chunk, a block each: a warp has 256 in a row, counts them, learns
 * from the other warps' counts where its own begin, and goes over them in order; lanes with one
 * expert find each other by its bits. Block 0 writes the offsets, too. A chunk that is the only one
 * has all counts itself. */
extern "C" __global__ void __launch_bounds__(${WARPS} * WARP)
@FN@(const int32_t *ids, const int32_t *count, const int32_t *total, int32_t *offset,
     int32_t *order, int32_t *place, int64_t assignments, int64_t chunks)
{
    __shared__ int part[WARP], next[${WARPS}][${E}];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int64_t first = (int64_t)blockIdx.x * ${CHUNK} + warp * 256;
    int64_t end = min64(first + 256, assignments);
    for (int e = lane; e < ${E}; e += WARP) next[warp][e] = 0;
    __syncwarp();
    for (int64_t a = first + lane; a < end; a += WARP) atomicAdd(&next[warp][ids[a]], 1);
    __syncthreads();
    int before = 0; /* assignments of the experts below e */
    for (int base = 0; base < ${E}; base += ${WARPS} * WARP) {
        int e = base + threadIdx.x, n = 0;
        if (e < ${E} && chunks > 1) n = total[e];
        for (int w = 0; w < ${WARPS} && e < ${E} && chunks == 1; w++) n += next[w][e];
        int upto = block_scan(n, part), at = before + upto - n;
        if (e < ${E}) {
            if (blockIdx.x == 0) offset[e] = at;
            if (chunks > 1) at += count[e * chunks + blockIdx.x];
            for (int w = 0; w < ${WARPS}; w++) {
                int here = next[w][e];
                next[w][e] = at;
                at += here;
            }
        }
        __syncthreads();
        if (threadIdx.x == ${WARPS} * WARP - 1) part[0] = upto;
        __syncthreads();
        before += part[0];
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) offset[${E}] = before;
    for (int64_t base = first; base < end; base += WARP) {
        int64_t a = base + lane;
        int e = a < end ? ids[a] : ${E};
        unsigned same = ALL_LANES;
        for (int bit = 1; bit <= ${E}; bit *= 2) {
            unsigned set = __ballot_sync(ALL_LANES, e & bit);
            same &= e & bit ? set : ~set;
        }
        int at = a < end ? next[warp][e] + __popc(same & ((1u << lane) - 1)) : 0;
        if (a < end) order[at] = (int32_t)a, place[a] = at;
        __syncwarp();
        if (a < end && same >> lane == 1) next[warp][e] = at + 1; /* the last of them */
        __syncwarp();
    }
}
//== moe_gather
/* Row r of out is the row of x of the token that is sorted there. Floor: x and out once. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${T} *x, const int32_t *order, ${U} *out, int64_t ld, int64_t rows)
{
    int unit;
    int64_t r = thread_row(${D} / ${W}, &unit);
    if (r >= rows) return;
    float v[${W}];
    ld_row<${W}>(v, x + order[r] / ${K} * ld + unit * ${W});
    st_row<${W}>(out + r * ${D} + unit * ${W}, v);
}
//== moe_gather_grad
/* Row t of out: the rows of dy of the token's slots, summed in slot order. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${T} *dy, const int32_t *place, ${U} *out, int64_t ld, int64_t tokens)
{
    int unit;
    int64_t t = thread_row(${D} / ${W}, &unit);
    if (t >= tokens) return;
    float sum[${W}], v[${W}];
    ld_row<${W}>(sum, dy + place[t * ${K}] * ld + unit * ${W});
    for (int i = 1; i < ${K}; i++) {
        ld_row<${W}>(v, dy + place[t * ${K} + i] * ld + unit * ${W});
        UNROLL for (int j = 0; j < ${W}; j++) sum[j] += v[j];
    }
    st_row<${W}>(out + t * ${D} + unit * ${W}, sum);
}
//== moe_combine
/* Row t of out is the sum of the k rows of y of token t, in order, times their weights. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${T} *y, const float *weight, const int32_t *place, ${U} *out, int64_t ld, int64_t ld_w,
     int64_t tokens)
{
    int unit;
    int64_t t = thread_row(${D} / ${W}, &unit);
    if (t >= tokens) return;
    const float *w = weight + t * ld_w;
    float sum[${W}], v[${W}];
    ld_row<${W}>(v, y + place[t * ${K}] * ld + unit * ${W});
    UNROLL for (int j = 0; j < ${W}; j++) sum[j] = w[0] * v[j];
    for (int i = 1; i < ${K}; i++) {
        ld_row<${W}>(v, y + place[t * ${K} + i] * ld + unit * ${W});
        UNROLL for (int j = 0; j < ${W}; j++) sum[j] = fma1(w[i], v[j], sum[j]);
    }
    st_row<${W}>(out + t * ${D} + unit * ${W}, sum);
}
//== moe_combine_grad
/* A warp an assignment: dy = weight dout, dweight = y . dout. Floor: y and dy once; the k warps of
 * a token share its row of dout in cache. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${T} *__restrict__ dout, const ${Y} *__restrict__ y, const float *weight,
     const int32_t *place, ${U} *__restrict__ dy, float *dw, int64_t ld, int64_t ld_y,
     int64_t ld_w, int64_t assignments)
{
    int lane = threadIdx.x % WARP;
    int64_t a = (int64_t)blockIdx.x * 8 + threadIdx.x / WARP, t = a / ${K};
    if (a >= assignments) return;
    int64_t row = place[a];
    float w = weight[t * ld_w + a % ${K}], dot = 0;
    for (int c = lane * ${W}; c < ${D}; c += WARP * ${W}) {
        float d[${W}], v[${W}];
        ld_row<${W}>(d, dout + t * ld + c);
        ld_row<${W}>(v, y + row * ld_y + c);
        UNROLL for (int j = 0; j < ${W}; j++) {
            dot = fma1(d[j], v[j], dot);
            d[j] = w * d[j];
        }
        st_row<${W}>(dy + row * ${D} + c, d);
    }
    dot = warp_sum(dot);
    if (lane == 0) dw[a] = dot;
}
//== moe_load
/* How many assignments every expert has. One block. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const int32_t *offset, float *load, int64_t experts)
{
    for (int64_t e = threadIdx.x; e < experts; e += 256)
        load[e] = (float)(offset[e + 1] - offset[e]);
}
