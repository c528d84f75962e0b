/* Kernels with one mistake each, which the CPU machine has to find. */

/* A barrier is missing before the neighbour's value is read. */
extern "C" __global__ void w_race(float *y)
{
    __shared__ float box[64];
    box[threadIdx.x] = (float)threadIdx.x;
    y[threadIdx.x] = box[(threadIdx.x + 1) % blockDim.x];
}

/* The buffer is written anew while others may still read it. */
extern "C" __global__ void w_reuse(float *y)
{
    __shared__ float box[64];
    float sum = 0;
    for (int k = 0; k < 3; k++) {
        box[threadIdx.x] = (float)k;
        __syncthreads();
        sum += box[63 - threadIdx.x];
    }
    y[threadIdx.x] = sum;
}

/* A shuffle orders lanes but not their memory. */
extern "C" __global__ void w_shuffle(float *y)
{
    __shared__ float box[32];
    box[threadIdx.x] = warp_sum((float)threadIdx.x);
    y[threadIdx.x] = __shfl_sync(ALL_LANES, 1.0f, 0) + box[31 - threadIdx.x];
}

/* All blocks write the same place. */
extern "C" __global__ void w_blocks(float *y)
{
    if (threadIdx.x == 0) y[0] = (float)blockIdx.x;
}

/* Half of the threads reach the barrier, the others end. */
extern "C" __global__ void w_divergent(float *y)
{
    if (threadIdx.x < 32) {
        __syncthreads();
        y[threadIdx.x] = 1;
    }
}

/* Two barriers, each for one half. */
extern "C" __global__ void w_two_barriers(float *y)
{
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        y[threadIdx.x] = 2;
        __syncthreads();
    }
}

/* The halves wait at named barriers that need both. */
extern "C" __global__ void w_deadlock(float *y)
{
    named_sync(threadIdx.x < 32 ? 1 : 2, 64);
    y[threadIdx.x] = 1;
}

/* Half a warp reduces over the whole warp. */
extern "C" __global__ void w_lanes(float *y)
{
    if (threadIdx.x < 16) y[threadIdx.x] = warp_sum(1.0f);
}

/* Reads what cp.async brings without waiting. */
extern "C" __global__ void w_no_wait(float *y, const float *x)
{
    __shared__ __align__(16) float box[64];
    cp_async4(box + threadIdx.x, x + threadIdx.x, true);
    cp_async_commit();
    cp_async_wait(1);
    y[threadIdx.x] = box[threadIdx.x];
    cp_async_wait(0);
}

/* Waits for its own copies, but not for those of others. */
extern "C" __global__ void w_no_barrier(float *y, const float *x)
{
    __shared__ __align__(16) float box[64];
    cp_async4(box + threadIdx.x, x + threadIdx.x, true);
    cp_async_commit();
    cp_async_wait(0);
    y[threadIdx.x] = box[63 - threadIdx.x];
}

/* Ends with a copy under way. */
extern "C" __global__ void w_left(float *y, const float *x)
{
    __shared__ __align__(16) float box[64];
    cp_async4(box + threadIdx.x, x + threadIdx.x, true);
    y[threadIdx.x] = 0;
}

/* One beyond the dynamic shared memory of the launch. */
extern "C" __global__ void w_shared(float *y)
{
    DYNAMIC_SHARED(float, box);
    box[threadIdx.x + 1] = 1;
    y[threadIdx.x] = 1;
}

/* One beyond the array. */
extern "C" __global__ void w_global(float *y)
{
    y[threadIdx.x + 1] = 1;
}

/* Four floats from an address that is no multiple of 16. */
extern "C" __global__ void w_misaligned(float *y, const float *x)
{
    float v[4];
    ld_f32x4(v, x + 1);
    y[threadIdx.x] = v[0] + v[3];
}
