/* The apply program on a GPU. ctl = norm, clip factor, 1 if finite, 0: nothing is written where
 * ctl[2] is 0. hyper = lr, 1 - beta1^t, 1 - beta2^t, 0. A launch of an elementwise kernel has a table
 * of up to 40 tensors; a block has a piece of 4096 elements of a row of one of them (tensors without
 * gaps are one row). Their weight decays are numbers of the table, so that all are of one text. */
//== table
struct @FN@_tensors {
    float *p[40][${P}];
};
struct @FN@_sizes { /* end: pieces up to and with each tensor; pieces: of a row; decay: a float's bits */
    int64_t end[40], cols[40], pieces[40], decay[40], ld[${P}][40];
};
/* The tensor of this block: the first one that ends behind its number. */
INLINE int @FN@_tensor(const int64_t *end, int64_t count) {
    int t = 0;
    UNROLL for (int step = 32; step; step /= 2)
        if (t + step <= count && end[t + step - 1] <= blockIdx.x) t += step;
    return t;
}
INLINE void @FN@_load(float x[4], const float *p, int n) {
    if (${W} == 4 && n == 4) ld_f32x4(x, p);
    else UNROLL for (int i = 0; i < 4; i++) x[i] = i < n ? p[i] : 0.0f;
}
INLINE void @FN@_store(float *p, const float x[4], int n) {
    if (${W} == 4 && n == 4) st_f32x4(p, x);
    else UNROLL for (int i = 0; i < 4; i++) if (i < n) p[i] = x[i];
}
/* In a kernel with `at` and `size`: t becomes this block's tensor, row and from its piece's row and
 * first column, left the columns from there on. A thread has four at a time, 1024 columns apart. */
#define PIECE_@FN@                                                                                 \
    const int t = @FN@_tensor(size.end, count);                                                    \
    const unsigned piece = blockIdx.x - (unsigned)(t ? size.end[t - 1] : 0);                       \
    const unsigned across = (unsigned)size.pieces[t];                                              \
    const int64_t row = piece / across, from = piece % across * (int64_t)4096;                     \
    const int64_t left = size.cols[t] - from;                                                      \
    const int all = (int)(left < 4096 ? left : 4096)
//== adamw
/* Floor: weight and moments in and out, the gradient in, 28 bytes an element. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const struct @FN@_tensors at, const float *ctl, const float *hyper,
     const struct @FN@_sizes size, int64_t count)
{
    PIECE_@FN@;
    if (ctl[2] == 0) return;
    const float clip = ctl[1], decay = 1.0f - hyper[0] * __int_as_float((int)size.decay[t]);
    const float step = div1(hyper[0], hyper[1]), unbias = div1(1.0f, hyper[2]);
    float *weight = at.p[t][0] + row * size.ld[0][t] + from;
    float *first = at.p[t][1] + row * size.ld[1][t] + from;
    float *second = at.p[t][2] + row * size.ld[2][t] + from;
    const float *gradient = at.p[t][3] + row * size.ld[3][t] + from;
    UNROLL_BY(2) for (int c = threadIdx.x * 4; c < all; c += 1024) {
        float w[4], m[4], v[4], g[4];
        const int n = all - c < 4 ? all - c : 4;
        @FN@_load(g, gradient + c, n), @FN@_load(m, first + c, n);
        @FN@_load(v, second + c, n), @FN@_load(w, weight + c, n);
        UNROLL for (int i = 0; i < 4; i++) {
            float gi = clip * g[i];
            m[i] = ${BETA1} * m[i] + ${REST1} * gi;
            v[i] = ${BETA2} * v[i] + ${REST2} * (gi * gi);
            w[i] = decay * w[i] - div1(step * m[i], sqrt1(v[i] * unbias) + ${EPS});
        }
        @FN@_store(first + c, m, n), @FN@_store(second + c, v, n);
        @FN@_store(weight + c, w, n);
    }
}
//== momentum
/* Floor: the average in and out, the gradient in, the update out, 16 bytes an element. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const struct @FN@_tensors at, const float *ctl, const struct @FN@_sizes size, int64_t count)
{
    PIECE_@FN@;
    if (ctl[2] == 0) return;
    float *moment = at.p[t][0] + row * size.ld[0][t] + from;
    float *update = at.p[t][1] + row * size.ld[1][t] + from;
    const float *gradient = at.p[t][2] + row * size.ld[2][t] + from, clip = ctl[1];
    UNROLL_BY(2) for (int c = threadIdx.x * 4; c < all; c += 1024) {
        float m[4], g[4];
        const int n = all - c < 4 ? all - c : 4;
        @FN@_load(g, gradient + c, n), @FN@_load(m, moment + c, n);
        UNROLL for (int i = 0; i < 4; i++) {
            g[i] = clip * g[i];
            m[i] = ${MU} * m[i] + g[i];
            g[i] = g[i] + ${MU} * m[i];
        }
        @FN@_store(moment + c, m, n), @FN@_store(update + c, g, n);
    }
}
//== muon_step
/* Floor: the weight in and out, the update in, 12 bytes an element. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const struct @FN@_tensors at, const float *ctl, const float *hyper,
     const struct @FN@_sizes size, int64_t count)
{
    PIECE_@FN@;
    if (ctl[2] == 0) return;
    const float lr = hyper[0], decay = __int_as_float((int)size.decay[t]);
    float *weight = at.p[t][0] + row * size.ld[0][t] + from;
    const float *update = at.p[t][1] + row * size.ld[1][t] + from;
    UNROLL_BY(2) for (int c = threadIdx.x * 4; c < all; c += 1024) {
        float w[4], x[4];
        const int n = all - c < 4 ? all - c : 4;
        @FN@_load(w, weight + c, n), @FN@_load(x, update + c, n);
        UNROLL for (int i = 0; i < 4; i++) w[i] = w[i] - lr * (${SCALE} * x[i] + decay * w[i]);
        @FN@_store(weight + c, w, n);
    }
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
