//== colsum
/* Adds up partial column sums part[count,cols], 64 to one: block (x, y) does parts 64 x .. of
 * columns 32 y ... Each warp adds eight of them in order, the first one then the warps' sums. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const float *__restrict__ part, float *__restrict__ y, int64_t count, int64_t cols)
{
    __shared__ float sum[8][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t column = blockIdx.y * (int64_t)WARP + lane;
    const int64_t first = blockIdx.x * (int64_t)64 + warp * 8;
    float s = 0.0f;
    UNROLL for (int i = 0; i < 8; i++)
        if (column < cols && first + i < count) s += part[(first + i) * cols + column];
    sum[warp][lane] = s;
    __syncthreads();
    if (warp || column >= cols) return;
    for (int w = 1; w < 8; w++) s += sum[w][lane];
    y[blockIdx.x * cols + column] = s;
}
