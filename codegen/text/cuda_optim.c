/* The apply program on a GPU. ctl = norm, clip factor, 1 if finite, 0: nothing is written where
 * ctl[2] is 0. hyper = lr, 1 - beta1^t, 1 - beta2^t, 0. Elementwise kernels: a block has a piece of
 * 1024 elements of a row (tensors without gaps are one row), a thread four of them; numbers are the
 * columns, the pieces of a row and the row stride of every tensor in the order of the addresses. */
//== piece
/* Where a thread's elements are, and how many. */
struct @FN@_piece {
    int64_t row, col;
    int count;
};
INLINE struct @FN@_piece @FN@_mine(int64_t cols, int64_t pieces) {
    int64_t row = blockIdx.x / (unsigned)pieces;
    int64_t col = blockIdx.x % (unsigned)pieces * (int64_t)1024 + threadIdx.x * 4;
    int64_t left = cols - col;
    return {row, col, left < 4 ? left > 0 ? (int)left : 0 : 4};
}
INLINE void @FN@_load(float x[4], const float *p, int n) {
    if (${W} == 4 && n == 4) ld_f32x4(x, p);
    else UNROLL for (int i = 0; i < 4; i++) x[i] = i < n ? p[i] : 0.0f;
}
INLINE void @FN@_store(float *p, const float x[4], int n) {
    if (${W} == 4 && n == 4) st_f32x4(p, x);
    else UNROLL for (int i = 0; i < 4; i++) if (i < n) p[i] = x[i];
}
//== adamw
/* Floor: weight and moments in and out, the gradient in, 28 bytes an element. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(float *weight, float *first, float *second, const float *gradient, const float *ctl,
     const float *hyper, int64_t cols, int64_t pieces, int64_t ld_w, int64_t ld_m, int64_t ld_v,
     int64_t ld_g)
{
    struct @FN@_piece at = @FN@_mine(cols, pieces);
    if (ctl[2] == 0 || at.count == 0) return;
    const float clip = ctl[1], decay = 1.0f - hyper[0] * ${WD};
    const float step = div1(hyper[0], hyper[1]), unbias = div1(1.0f, hyper[2]);
    weight += at.row * ld_w + at.col, first += at.row * ld_m + at.col;
    second += at.row * ld_v + at.col, gradient += at.row * ld_g + at.col;
    float w[4], m[4], v[4], g[4];
    @FN@_load(g, gradient, at.count), @FN@_load(m, first, at.count);
    @FN@_load(v, second, at.count), @FN@_load(w, weight, at.count);
    UNROLL for (int i = 0; i < 4; i++) {
        float gi = clip * g[i];
        m[i] = ${BETA1} * m[i] + ${REST1} * gi;
        v[i] = ${BETA2} * v[i] + ${REST2} * (gi * gi);
        w[i] = decay * w[i] - div1(step * m[i], sqrt1(v[i] * unbias) + ${EPS});
    }
    @FN@_store(first, m, at.count), @FN@_store(second, v, at.count);
    @FN@_store(weight, w, at.count);
}
//== momentum
extern "C" __global__ void __launch_bounds__(256)
@FN@(float *moment, float *update, const float *gradient, const float *ctl, int64_t cols,
     int64_t pieces, int64_t ld_m, int64_t ld_u, int64_t ld_g)
{
    struct @FN@_piece at = @FN@_mine(cols, pieces);
    if (ctl[2] == 0 || at.count == 0) return;
    moment += at.row * ld_m + at.col, update += at.row * ld_u + at.col;
    gradient += at.row * ld_g + at.col;
    float m[4], g[4];
    @FN@_load(g, gradient, at.count), @FN@_load(m, moment, at.count);
    UNROLL for (int i = 0; i < 4; i++) {
        g[i] = ctl[1] * g[i];
        m[i] = ${MU} * m[i] + g[i];
        g[i] = g[i] + ${MU} * m[i];
    }
    @FN@_store(moment, m, at.count), @FN@_store(update, g, at.count);
}
//== muon_step
extern "C" __global__ void __launch_bounds__(256)
@FN@(float *weight, const float *update, const float *ctl, const float *hyper, int64_t cols,
     int64_t pieces, int64_t ld_w, int64_t ld_x)
{
    struct @FN@_piece at = @FN@_mine(cols, pieces);
    if (ctl[2] == 0 || at.count == 0) return;
    weight += at.row * ld_w + at.col, update += at.row * ld_x + at.col;
    float w[4], x[4];
    @FN@_load(w, weight, at.count), @FN@_load(x, update, at.count);
    UNROLL for (int i = 0; i < 4; i++)
        w[i] = w[i] - hyper[0] * (${SCALE} * x[i] + ${WD} * w[i]);
    @FN@_store(weight, w, at.count);
}
//== grad_norm
/* Sums of squares of pieces of up to 64 gradients, in double; a block a piece. end: pieces up to
 * and with each gradient; those of the whole program are numbered from `first` on, and also lie in
 * `ends`, for the kernel that adds them. Floor: the gradients once. */
struct @FN@_table {
    const float *p[64];
};
struct @FN@_sizes {
    int64_t end[64], cols[64], ld[64], pieces[64]; /* pieces: of a row */
};
extern "C" __global__ void __launch_bounds__(256)
@FN@(const struct @FN@_table gradients, double *partial, int64_t *ends,
     const struct @FN@_sizes size, int64_t count, int64_t first)
{
    __shared__ double part[WARP];
    int64_t at = blockIdx.x;
    if (at == 0 && threadIdx.x < count) ends[threadIdx.x] = first + size.end[threadIdx.x];
    int g = 0;
    for (int step = 32; step; step /= 2) /* gradients that end at or before this piece */
        if (g + step <= count && size.end[g + step - 1] <= at) g += step;
    if (g) at -= size.end[g - 1];
    int64_t row = at / size.pieces[g], from = at % size.pieces[g] * ${PIECE};
    int64_t n = min64(${PIECE}, size.cols[g] - from), done = 0;
    const float *x = gradients.p[g] + row * size.ld[g] + from;
    double sum = 0;
    if ((uint64_t)x % 16 == 0) { /* four at a time */
        done = n / 4 * 4;
        for (int64_t i = threadIdx.x * 4; i < done; i += 1024) {
            float v[4];
            ld_f32x4(v, x + i);
            UNROLL for (int j = 0; j < 4; j++) sum += (double)v[j] * (double)v[j];
        }
    }
    for (int64_t i = done + threadIdx.x; i < n; i += 256) sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum, part);
    if (threadIdx.x == 0) partial[first + blockIdx.x] = sum;
}
//== grad_norm_end
/* One block: a warp adds the pieces of a gradient, then all add the gradients. A sum in double
 * overflows only where a gradient is infinite. */
extern "C" __global__ void __launch_bounds__(1024)
@FN@(const double *partial, const int64_t *ends, const float *loss, float *ctl, double *sumsq,
     int64_t count)
{
    __shared__ double part[WARP];
    int lane = threadIdx.x % WARP;
    for (int64_t g = threadIdx.x / WARP; g < count; g += WARP) {
        double sum = 0;
        for (int64_t i = (g ? ends[g - 1] : 0) + lane; i < ends[g]; i += WARP) sum += partial[i];
        sum = warp_sum(sum);
        if (lane == 0) sumsq[g] = sum;
    }
    __syncthreads();
    double all = 0;
    for (int64_t g = threadIdx.x; g < count; g += 1024) all += sumsq[g];
    all = block_sum(all, part);
    if (threadIdx.x) return;
    bool finite = all - all == 0 && *loss - *loss == 0;
    double norm = __dsqrt_rn(all), factor = ${CLIP} / (norm + 1e-6);
    ctl[0] = (float)norm;
    ctl[1] = ${CLIP} > 0 && finite && factor < 1 ? (float)factor : 1.0f;
    ctl[2] = finite ? 1.0f : 0.0f;
    ctl[3] = 0;
}
//== qk_clip
/* Block h * rows + r scales one row of head h. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(float *weight, const float *top, const float *ctl, int64_t cols, int64_t ld, int64_t first,
     int64_t head_rows, int64_t from, int64_t to, int64_t group)
{
    int64_t h = blockIdx.x / (to - from), r = blockIdx.x % (to - from) + from;
    if (ctl[2] == 0) return;
    int64_t g = ${KEYS} ? h : h / group;
    float least = ${TAU}, f = 1;
    for (int64_t i = g * group; i < (g + 1) * group; i++) least = top[i] > least ? top[i] : least;
    least = div1(${TAU}, least);
    if (!${KEYS} && top[h] > ${TAU}) f = div1(${TAU}, top[h]);
    f = ${KEYS} ? sqrt1(least) : ${ROPE} ? f : div1(f, sqrt1(least));
    if (f == 1.0f) return;
    float *w = weight + (first + h * head_rows + r) * ld;
    for (int64_t i = threadIdx.x; i < cols; i += 256) w[i] *= f;
}
//== balance
/* One block. Loads are whole numbers: sums in any order are exact, and so are comparisons. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(float *bias, const float *load, const float *ctl, int64_t experts)
{
    __shared__ double part[WARP];
    if (ctl[2] == 0) return;
    double all = 0, signs = 0;
    for (int64_t e = threadIdx.x; e < experts; e += 256) all += (double)load[e];
    all = block_sum(all, part);
    for (int64_t e = threadIdx.x; e < experts; e += 256) {
        double mine = (double)load[e] * (double)experts;
        signs += (all > mine) - (all < mine);
    }
    signs = block_sum(signs, part);
    float mean = (float)(signs / (double)experts);
    for (int64_t e = threadIdx.x; e < experts; e += 256) {
        double mine = (double)load[e] * (double)experts;
        bias[e] += ${RATE} * ((float)((all > mine) - (all < mine)) - mean);
    }
}
