/* Token operations on a GPU. Rows move W elements a thread, whatever their storage types are. */
//== embed
/* Row t of out is row ids[t] of the table; a negative id reads row 0. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${T} *table, const int32_t *ids, ${U} *out, int64_t ld, int64_t tokens)
{
    int unit;
    int64_t t = thread_row(${D} / ${W}, &unit);
    if (t >= tokens) return;
    int64_t id = ids[t] > 0 ? ids[t] : 0;
    float x[${W}];
    ld_row<${W}>(x, table + id * ld + unit * ${W});
    st_row<${W}>(out + t * ${D} + unit * ${W}, x);
}
//== embed_sort
/* Keys of all tokens, id and token in one number, sorted within runs of 1024: a block a run, a
 * bitonic network in shared memory. No two keys are equal, so the order is one. */
extern "C" __global__ void __launch_bounds__(512)
@FN@(const int32_t *ids, uint64_t *key, int64_t tokens)
{
    __shared__ uint64_t k[1024];
    int64_t first = (int64_t)blockIdx.x * 1024;
    for (int i = threadIdx.x; i < 1024; i += 512) {
        int64_t t = first + i;
        uint64_t id = t < tokens && ids[t] > 0 ? (uint64_t)ids[t] : 0;
        k[i] = t < tokens ? id << 32 | (uint64_t)t : ~(uint64_t)0;
    }
    for (int size = 2; size <= 1024; size *= 2)
        for (int d = size / 2; d; d /= 2) {
            __syncthreads();
            int i = 2 * threadIdx.x - (threadIdx.x & (d - 1)); /* bit d of i is 0 */
            uint64_t a = k[i], b = k[i + d];
            if ((a > b) == !(i & size)) k[i] = b, k[i + d] = a;
        }
    __syncthreads();
    for (int i = threadIdx.x; i < 1024 && first + i < tokens; i += 512) key[first + i] = k[i];
}
//== embed_merge
/* Merges each 16 sorted runs of `run` keys to one: a key's place is its place in its own run plus
 * how many keys of each other run are smaller. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const uint64_t *from, uint64_t *to, int64_t tokens, int64_t run)
{
    int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (i >= tokens) return;
    uint64_t key = from[i];
    int64_t mine = i / run, group = mine / 16 * 16, at = group * run + i % run;
    for (int64_t r = group; r < group + 16 && r * run < tokens; r++) {
        int64_t lo = r * run, hi = r == mine ? lo : min64(lo + run, tokens);
        while (lo < hi) { /* the first key that is not smaller */
            int64_t mid = (lo + hi) / 2;
            if (from[mid] < key) lo = mid + 1;
            else hi = mid;
        }
        at += lo - r * run;
    }
    to[at] = key;
}
//== embed_zero
/* Most rows of a table have no token: all become zeros, 4096 elements a block. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(float *out, int64_t count)
{
    const float zero[4] = {0};
    int64_t first = (int64_t)blockIdx.x * 4096 + threadIdx.x * 4;
    UNROLL for (int64_t i = first; i < first + 4096; i += 1024)
        if (i + 4 <= count) st_f32x4(out + i, zero);
        else for (int64_t j = i; j < count && j < i + 4; j++) out[j] = 0;
}
//== embed_grad
/* Rows of out that have tokens: the sum of their rows of dy, in token order. Warp i has the row of
 * sorted key i where that is its row's first, and 32 W columns of it; eight rows are on their way
 * at a time. Floor: dy once, out once. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${T} *dy, const uint64_t *key, float *out, int64_t ld, int64_t tokens)
{
    int lane = threadIdx.x % WARP, c = (blockIdx.y * WARP + lane) * ${W}, n = WARP;
    int64_t i = (int64_t)blockIdx.x * 8 + threadIdx.x / WARP;
    if (i >= tokens) return;
    uint32_t id = (uint32_t)(key[i] >> 32);
    if (i > 0 && (uint32_t)(key[i - 1] >> 32) == id) return;
    float sum[${W}] = {0};
    for (int64_t from = i; n == WARP; from += WARP) {
        uint64_t mine = from + lane < tokens ? key[from + lane] : ~(uint64_t)0;
        n = __popc(__ballot_sync(ALL_LANES, (uint32_t)(mine >> 32) == id));
        for (int j = 0; j < n; j += 8) {
            float x[8][${W}];
            UNROLL for (int u = 0; u < 8; u++) {
                int64_t t = __shfl_sync(ALL_LANES, (int)(uint32_t)mine, j + u);
                if (j + u < n && c < ${D}) ld_row<${W}>(x[u], dy + t * ld + c);
            }
            UNROLL for (int u = 0; u < 8; u++)
                if (j + u < n && c < ${D})
                    UNROLL for (int k = 0; k < ${W}; k++) sum[k] += x[u][k];
        }
    }
    if (c < ${D}) st_row<${W}>(out + (int64_t)id * ${D} + c, sum);
}
//== cross_entropy
/* A block a row, read once: every thread keeps the largest of its columns and the sum of e^(x -
 * largest), which then become the row's. Floor: the logits once. */
extern "C" __global__ void __launch_bounds__(${THREADS})
@FN@(const ${T} *logits, const int32_t *target, float *nll, float *lse, int64_t ld)
{
    __shared__ float part[WARP];
    const ${T} *row = logits + blockIdx.x * ld;
    float top = -3.402823466e38f, sum = 0; /* finite, so that -inf - top is no NaN */
    for (int c = threadIdx.x * ${W}; c < ${V}; c += ${THREADS} * ${W}) {
        float x[${W}], more;
        ld_row<${W}>(x, row + c);
        more = x[0];
        UNROLL for (int i = 1; i < ${W}; i++) more = max1(x[i], more);
        if (more > top) sum *= exp1(top - more), top = more;
        UNROLL for (int i = 0; i < ${W}; i++) sum += exp1(x[i] - top);
    }
    float all = block_max(top, part);
    sum = block_sum(sum * exp1(top - all), part);
    if (threadIdx.x == 0) {
        int t = target[blockIdx.x];
        float x[1] = {0}, l = all + log1(sum);
        if (t >= 0) ld_row<1>(x, row + t);
        lse[blockIdx.x] = l;
        nll[blockIdx.x] = t < 0 ? 0.0f : l - x[0];
    }
}
//== cross_entropy_grad
/* (softmax - one hot of the target) dnll, zeros where there is no target. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${T} *logits, const int32_t *target, const float *lse, const float *dnll, ${U} *out,
     int64_t ld, int64_t rows)
{
    int unit;
    int64_t r = thread_row(${V} / ${W}, &unit);
    if (r >= rows) return;
    int t = target[r];
    float x[${W}], l = lse[r], w = dnll[r];
    ld_row<${W}>(x, logits + r * ld + unit * ${W});
    UNROLL for (int i = 0; i < ${W}; i++) {
        float d = exp1(x[i] - l) * w;
        x[i] = t < 0 ? 0.0f : unit * ${W} + i == t ? d - w : d;
    }
    st_row<${W}>(out + r * ${V} + unit * ${W}, x);
}
//== count_valid
/* The number of targets that are not negative, at least 1. One block. */
extern "C" __global__ void __launch_bounds__(1024)
@FN@(const int32_t *target, float *out, int64_t tokens)
{
    __shared__ int part[WARP];
    int count = 0;
    for (int64_t t = threadIdx.x; t < tokens; t += 1024) count += target[t] >= 0;
    count = block_scan(count, part);
    if (threadIdx.x == 1023) *out = (float)(count > 1 ? count : 1);
}
//== colmax
/* Largest of each column over 256 rows: block (i, j) has rows 256 i.. and columns 32 j.., a thread
 * every eighth of the rows. A second pass takes the largest of those. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${T} *x, float *out, int64_t rows, int64_t cols, int64_t ld)
{
    __shared__ float top[8][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int64_t c = (int64_t)blockIdx.y * WARP + lane, first = (int64_t)blockIdx.x * 256;
    float m = -INFF;
    for (int64_t r = first + warp; r < min64(first + 256, rows) && c < cols; r += 8) {
        float v[1];
        ld_row<1>(v, x + r * ld + c);
        m = max1(v[0], m);
    }
    top[warp][lane] = m;
    __syncthreads();
    for (int i = 1; i < 8 && warp == 0; i++) m = max1(top[i][lane], m);
    if (warp == 0 && c < cols) out[blockIdx.x * cols + c] = m;
}
//== sum
/* Sum of a piece of a row, a block each, in double. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${T} *x, double *partial, int64_t cols, int64_t ld, int64_t pieces)
{
    __shared__ double part[WARP];
    int64_t row = blockIdx.x / pieces, from = blockIdx.x % pieces * ${PIECE};
    int64_t end = min64(cols, from + ${PIECE});
    double sum = 0;
    for (int64_t i = from + threadIdx.x; i < end; i += 256) {
        float v[1];
        ld_row<1>(v, x + row * ld + i);
        sum += (double)v[0];
    }
    sum = block_sum(sum, part);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
//== sum_end
/* One block: the sum of all pieces. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const double *partial, float *out, int64_t pieces)
{
    __shared__ double part[WARP];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < pieces; i += 256) sum += partial[i];
    sum = block_sum(sum, part);
    if (threadIdx.x == 0) *out = (float)sum;
}
//== copy
/* Rows of COLS elements with strides of their own. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${T} *from, ${U} *to, int64_t rows, int64_t ld_from, int64_t ld_to)
{
    int unit;
    int64_t r = thread_row(${COLS} / ${W}, &unit);
    if (r >= rows) return;
    float x[${W}];
    ld_row<${W}>(x, from + r * ld_from + unit * ${W});
    st_row<${W}>(to + r * ld_to + unit * ${W}, x);
}
//== copy_run
/* One run of elements, a multiple of W. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${T} *from, ${U} *to, int64_t count)
{
    int64_t i = ((int64_t)blockIdx.x * 256 + threadIdx.x) * ${W};
    if (i >= count) return;
    float x[${W}];
    ld_row<${W}>(x, from + i);
    st_row<${W}>(to + i, x);
}
