/* Kernels of every kind, small: what the prelude and the CPU machine are tested by. */

/* y = silu(a x + b), four at a time and a ragged tail; any grid. */
extern "C" __global__ void __launch_bounds__(128)
    k_silu(float *y, const float *x, float a, float b, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    int64_t me = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (int64_t i = me; i < n / 4; i += step) {
        float v[4];
        ld_f32x4(v, x + 4 * i);
        UNROLL for (int j = 0; j < 4; j++) {
            v[j] = fma1(a, v[j], b);
            v[j] = v[j] * sigmoid1(v[j]);
        }
        st_f32x4(y + 4 * i, v);
    }
    for (int64_t i = n / 4 * 4 + me; i < n; i += step) {
        float v = fma1(a, x[i], b);
        y[i] = v * sigmoid1(v);
    }
}

/* Elementary functions, one row of y each. */
extern "C" __global__ void k_math(float *y, const float *x, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    y[i] = exp1(v);
    y[n + i] = log1(v);
    y[2 * n + i] = tanh1(v);
    y[3 * n + i] = sigmoid1(v);
    y[4 * n + i] = softplus1(v);
    y[5 * n + i] = rsqrt1(v);
    y[6 * n + i] = bf16_round1(v);
}

/* The coarse ones. */
extern "C" __global__ void k_coarse(float *y, const float *x, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[i] = exp_coarse1(x[i]);
    y[n + i] = tanh_coarse1(x[i]);
    y[2 * n + i] = sigmoid_coarse1(x[i]);
}

/* Rows of bf16 to bf16: x w / rms(x); a block a row. */
extern "C" __global__ void __launch_bounds__(256)
    k_rms_block(uint16_t *y, const uint16_t *x, const float *w, int d, float eps)
{
    __shared__ float part[WARP];
    const uint16_t *row = x + (int64_t)blockIdx.x * d;
    uint16_t *out = y + (int64_t)blockIdx.x * d;
    float sum = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float v = bf16_to_f32(row[i]);
        sum = fma1(v, v, sum);
    }
    float scale = rsqrt1(block_sum(sum, part) / (float)d + eps);
    for (int i = threadIdx.x; i < d; i += blockDim.x)
        out[i] = f32_to_bf16(bf16_to_f32(row[i]) * scale * w[i]);
}

/* The same, a warp a row, eight values a load; d is a multiple of 8. */
extern "C" __global__ void k_rms_warp(uint16_t *y, const uint16_t *x, const float *w, int d,
                                      float eps, int rows)
{
    int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    x += (int64_t)row * d, y += (int64_t)row * d;
    float sum = 0;
    for (int i = 8 * lane; i < d; i += 8 * WARP) {
        float v[8];
        ld_bf16x8(v, x + i);
        UNROLL for (int j = 0; j < 8; j++) sum = fma1(v[j], v[j], sum);
    }
    float scale = rsqrt1(warp_sum(sum) / (float)d + eps);
    for (int i = 8 * lane; i < d; i += 8 * WARP) {
        float v[8];
        ld_bf16x8(v, x + i);
        UNROLL for (int j = 0; j < 8; j++) v[j] = v[j] * scale * w[i + j];
        st_bf16x8(y + i, v);
    }
}

/* Softmax in one reading: every thread keeps its largest value and its sum under that. */
extern "C" __global__ void k_softmax(float *y, const float *x, int d)
{
    __shared__ float part[WARP];
    x += (int64_t)blockIdx.x * d, y += (int64_t)blockIdx.x * d;
    float top = -INFF, sum = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float v = x[i], now = max1(top, v);
        sum = fma1(sum, exp1(top - now), exp1(v - now));
        top = now;
    }
    float all = block_max(top, part);
    sum = block_sum(top == -INFF ? 0.0f : sum * exp1(top - all), part);
    for (int i = threadIdx.x; i < d; i += blockDim.x) y[i] = exp1(x[i] - all) / sum;
}

/* c = a b: a (m,k), b (k,n) bf16, c float32; k and n multiples of 8. A block of 4 warps makes 32x32
 * of c in steps of 32 along k, two stages of shared memory, copies one stage ahead. */
enum { TILE = 32, PITCH = TILE + 8 }; /* pitch: rows of ldmatrix in different banks */
INLINE void load_tile(uint16_t *to, const uint16_t *from, int64_t row, int64_t col, int64_t rows,
                      int64_t cols)
{
    int r = threadIdx.x / 4, c = threadIdx.x % 4 * 8;
    bool valid = row + r < rows && col + c < cols;
    cp_async16(to + r * PITCH + c, valid ? from + (row + r) * cols + col + c : from, valid);
}
extern "C" __global__ void __launch_bounds__(128)
    k_matmul(float *c, const uint16_t *a, const uint16_t *b, int m, int n, int k)
{
    DYNAMIC_SHARED(uint16_t, tiles); /* [stage][a, b][TILE][PITCH] */
    int row = blockIdx.y * TILE, col = blockIdx.x * TILE, lane = threadIdx.x % WARP;
    int wm = threadIdx.x / WARP / 2 * 16, wn = threadIdx.x / WARP % 2 * 16;
    float sum[2][4] = {};
    load_tile(tiles, a, row, 0, m, k);
    load_tile(tiles + TILE * PITCH, b, 0, col, k, n);
    cp_async_commit();
    for (int k0 = 0, stage = 0; k0 < k; k0 += TILE, stage ^= 1) {
        uint16_t *next = tiles + (stage ^ 1) * 2 * TILE * PITCH;
        if (k0 + TILE < k) {
            load_tile(next, a, row, k0 + TILE, m, k);
            load_tile(next + TILE * PITCH, b, k0 + TILE, col, k, n);
        }
        cp_async_commit();
        cp_async_wait(1);
        __syncthreads();
        const uint16_t *ta = tiles + stage * 2 * TILE * PITCH, *tb = ta + TILE * PITCH;
        UNROLL for (int kk = 0; kk < TILE; kk += 16) {
            uint32_t fa[4], fb[4];
            ldmatrix4(fa, ta + (wm + lane % 16) * PITCH + kk + lane / 16 * 8);
            ldmatrix4_trans(fb, tb + (kk + lane % 16) * PITCH + wn + lane / 16 * 8);
            mma_bf16(sum[0], fa, fb);
            mma_bf16(sum[1], fa, fb + 2);
        }
        __syncthreads();
    }
    cp_async_wait(0);
    UNROLL for (int j = 0; j < 2; j++)
        UNROLL for (int i = 0; i < 4; i++) {
            int r = row + wm + lane / 4 + i / 2 * 8, q = col + wn + 8 * j + lane % 4 * 2 + i % 2;
            if (r < m && q < n) c[(int64_t)r * n + q] = sum[j][i];
        }
}

/* c (16,8) = a (16,8) b (8,8) in tf32; one warp. */
extern "C" __global__ void k_tf32(float *c, const float *a, const float *b)
{
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    float sum[4] = {0, 0, 0, 0};
    uint32_t fa[4] = {f32_to_tf32(a[g * 8 + t]), f32_to_tf32(a[(g + 8) * 8 + t]),
                      f32_to_tf32(a[g * 8 + t + 4]), f32_to_tf32(a[(g + 8) * 8 + t + 4])};
    uint32_t fb[2] = {f32_to_tf32(b[t * 8 + g]), f32_to_tf32(b[(t + 4) * 8 + g])};
    mma_tf32(sum, fa, fb);
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

/* y (n,m) = x (m,n) transposed; a block 8 rows of threads, a tile of 32x32. */
extern "C" __global__ void k_transpose(float *y, const float *x, int m, int n)
{
    __shared__ float tile[TILE][TILE + 1];
    int row = blockIdx.y * TILE, col = blockIdx.x * TILE, c = threadIdx.x;
    for (int r = threadIdx.y; r < TILE; r += blockDim.y)
        if (row + r < m && col + c < n) tile[r][c] = x[(int64_t)(row + r) * n + col + c];
    __syncthreads();
    for (int r = threadIdx.y; r < TILE; r += blockDim.y)
        if (col + r < n && row + c < m) y[(int64_t)(col + r) * m + row + c] = tile[c][r];
}

/* Sum of x in an order that depends on n and the launch alone: a part for every block, and the
 * block that comes last adds up the parts. *done starts at 0 and is 0 again. */
extern "C" __global__ void k_sum(float *y, float *parts, unsigned *done, const float *x, int64_t n)
{
    __shared__ float part[WARP];
    __shared__ bool last;
    float sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        sum += x[i];
    sum = block_sum(sum, part);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
        __threadfence();
        last = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    sum = 0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += parts[i];
    sum = block_sum(sum, part);
    if (threadIdx.x == 0) *y = sum;
}

/* Where MoE puts each of n choices: places by expert, and by position within one. One block, as
 * many threads as `experts` or more, 256 at most; start (experts + 1): the first place of each.
 * Experts may be empty. */
extern "C" __global__ void k_dispatch(int *place, int *start, const int *expert, int n, int experts)
{
    __shared__ int part[WARP], first[256], count[256];
    int me = threadIdx.x;
    if (me < 256) count[me] = 0;
    __syncthreads();
    for (int i = me; i < n; i += blockDim.x) atomicAdd(&count[expert[i]], 1);
    __syncthreads();
    int mine = me < experts ? count[me] : 0, upto = block_scan(mine, part);
    if (me < experts) {
        first[me] = upto - mine;
        start[me] = upto - mine;
        if (me == experts - 1) start[experts] = upto;
    }
    __syncthreads();
    /* A warp walks over all choices in order, for the experts that are its own. */
    int lane = me % WARP, warps = blockDim.x / WARP;
    for (int base = 0; base < n; base += WARP) {
        int e = base + lane < n ? expert[base + lane] : -1;
        for (int x = me / WARP; x < experts; x += warps) {
            unsigned who = __ballot_sync(ALL_LANES, e == x);
            if (e == x) place[base + lane] = first[x] + __popc(who & ((1u << lane) - 1));
            __syncwarp();
            if (lane == 0) first[x] += __popc(who);
            __syncwarp();
        }
    }
}

/* Two halves of a block hand over through named barriers: the lower doubles, the upper adds one. */
extern "C" __global__ void k_named(float *y, const float *x)
{
    __shared__ float box[64];
    int half = threadIdx.x / 64, i = threadIdx.x % 64;
    if (half == 0) {
        box[i] = 2 * x[i];
        named_sync(1, 128);
    } else {
        named_sync(1, 128);
        float v = box[63 - i] + 1;
        named_sync(2, 64);
        y[i] = v;
    }
}

/* What the others do not use, by one warp: rows of c (10,32) by lane. x (16,8) of 16-bit numbers;
 * top (2) starts at 0. */
extern "C" __global__ void k_pieces(uint32_t *c, const uint16_t *x, int *top)
{
    __shared__ __align__(16) uint16_t tile[16 * 8];
    int lane = threadIdx.x;
    cp_async8(tile + 4 * lane, x + 4 * lane, lane != 31);
    cp_async_commit();
    cp_async_wait(0);
    __syncwarp();
    uint32_t r[4];
    ldmatrix2(r, tile + lane % 16 * 8);
    ldmatrix2_trans(r + 2, tile + lane % 16 * 8);
    UNROLL for (int i = 0; i < 4; i++) c[32 * i + lane] = r[i];
    c[32 * 4 + lane] = __shfl_down_sync(ALL_LANES, lane, 3, 8);
    c[32 * 5 + lane] = __shfl_up_sync(ALL_LANES, lane, 3, 8);
    c[32 * 6 + lane] = __shfl_xor_sync(ALL_LANES, lane, 5, 8);
    c[32 * 7 + lane] = __shfl_sync(ALL_LANES, lane, 9, 8);
    c[32 * 8 + lane] = (uint32_t)__any_sync(ALL_LANES, lane == 7) +
                       2 * (uint32_t)__all_sync(ALL_LANES, lane < 32) +
                       4 * (uint32_t)__all_sync(ALL_LANES, lane < 31);
    uint32_t low = 0xffffu; /* half a warp on its own */
    if (lane < 16) c[32 * 9 + lane] = (uint32_t)__shfl_xor_sync(low, lane, 15);
    else c[32 * 9 + lane] = (uint32_t)__shfl_sync(~low, lane, 16);
    atomicMax(&top[0], lane * 37 % 32);
    int seen = 0; /* a sum by compare and swap */
    for (int was = -1; was != seen;) {
        was = seen;
        seen = atomicCAS(&top[1], was, was + lane);
    }
}

extern "C" __global__ void k_random(uint64_t *y, uint64_t seed, uint64_t stream, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = rng_bits(seed, stream, i);
}
