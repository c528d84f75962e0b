//== colsum
/* y = the sum over rows of part[count,cols]. Block: 32 columns; each of 32 warps adds consecutive rows in
 * their order, the first one then the warps' sums in theirs. */
extern "C" __global__ void __launch_bounds__(1024)
@FN@(const float *__restrict__ part, float *__restrict__ y, int64_t count, int64_t cols)
{
    __shared__ float sum[WARP][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t column = blockIdx.x * (int64_t)WARP + lane, each = div_up(count, WARP);
    const int64_t first = warp * each, end = min64(first + each, count);
    float s = 0.0f;
    if (column < cols) {
#pragma unroll 8
        for (int64_t i = first; i < end; i++) s += part[i * cols + column];
    }
    sum[warp][lane] = s;
    __syncthreads();
    if (warp || column >= cols) return;
    UNROLL for (int w = 1; w < WARP; w++) s += sum[w][lane];
    y[column] = s;
}
