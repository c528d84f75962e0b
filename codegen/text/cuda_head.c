//== rows
/* Logits of one token, by a whole block: 4 elements a thread at a time where rows allow it. */
namespace head_@FN@ {
enum { THREADS = ${THREADS}, V = ${V}, STEP = THREADS * V };
constexpr float LOG2E = 1.44269504088896341f;

INLINE void fetch(float x[V], const float *row, int64_t i)
{
    if (V == 4)
        ld_f32x4(x, row + i);
    else
        x[0] = row[i];
}
/* log(sum(exp(row))), and the target's logit where there is a target. Every thread keeps the
 * largest of its elements and the sum relative to that; then the block joins them. */
INLINE float log_sum_exp(const float *row, int64_t vocab, int target, float *picked)
{
    __shared__ float part[WARP];
    float most = -3.402823466e38f, sum = 0; /* finite, so that -inf - most is no NaN */
    UNROLL_BY(2) for (int64_t i = threadIdx.x * V; i < vocab; i += STEP) {
        float x[V], high = most;
        fetch(x, row, i);
        UNROLL for (int j = 0; j < V; j++) high = max1(x[j], high);
        sum = most == high ? sum : sum * exp2_fast((most - high) * LOG2E);
        UNROLL for (int j = 0; j < V; j++) sum += exp2_fast((x[j] - high) * LOG2E);
        most = high;
    }
    *picked = target >= 0 ? row[target] : 0.0f;
    float all = block_max(most, part);
    return all + log1(block_sum(sum * exp2_fast((most - all) * LOG2E), part));
}
} /* namespace */
//== nll
/* Block b: -log p of token b's target, 0 where there is none. Floor: the logits once. */
extern "C" __global__ void __launch_bounds__(head_@FN@::THREADS)
@FN@(const float *logits, const int32_t *targets, float *nll, int64_t vocab)
{
    int target = targets[blockIdx.x];
    float picked, lse = head_@FN@::log_sum_exp(logits + blockIdx.x * vocab, vocab, target, &picked);
    if (threadIdx.x == 0) nll[blockIdx.x] = target < 0 ? 0.0f : lse - picked;
}
//== loss
/* Block b: the same, and the gradient dnll (p - one hot) of token b in place of its logits: read
 * once from memory, once more (from L2, where the rows at work fit into it), written once. In two
 * bytes an element it begins where the logits do, so what is written next has been read by all. */
extern "C" __global__ void __launch_bounds__(head_@FN@::THREADS)
@FN@(float *logits, const int32_t *targets, const float *dnll, float *nll, int64_t vocab)
{
    using namespace head_@FN@;
    int target = targets[blockIdx.x];
    float *row = logits + blockIdx.x * vocab, picked, x[V] = {}, next[V] = {};
    float lse = log_sum_exp(row, vocab, target, &picked), d = target < 0 ? 0.0f : dnll[blockIdx.x];
    if (threadIdx.x == 0) nll[blockIdx.x] = target < 0 ? 0.0f : lse - picked;
    ${T} *to = (${T} *)row;
    if (threadIdx.x * V < vocab) fetch(next, row, threadIdx.x * V);
    for (int64_t base = 0; base < vocab; base += STEP) {
        int64_t i = base + threadIdx.x * V;
        UNROLL for (int j = 0; j < V; j++) {
            x[j] = target < 0 ? 0.0f : d * exp2_fast((next[j] - lse) * LOG2E);
            if (i + j == target) x[j] -= d;
        }
        if (i + STEP < vocab) fetch(next, row, i + STEP); /* on its way over the barrier */
        __syncthreads();
        if (i < vocab) {
            ${STORE}
        }
    }
}
