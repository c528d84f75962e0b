/* The contract between generated code and the runtime: kernels, and the plan that strings them
 * together. A plan is flat arrays and indices (pointers only to whole arrays, texts and kernels),
 * so that it can be written to a file. Whoever builds a plan owns its arrays. */
#ifndef STRATA_ABI_H
#define STRATA_ABI_H
#include <stdint.h>

/* Computes items lo..hi-1 of a step. Items are independent of each other: neither who runs them,
 * nor in which pieces, nor in which order changes a bit of the result.
 *
 *   p        the step's buffers, in the order that the kernel's text defines
 *   n        the step's integers (sizes, strides, counts), likewise
 *   scratch  the step's scratch_bytes for this call alone, aligned to 64, contents undefined */
typedef void sa_kernel(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch);

/* Arenas: stretches of memory with one lifetime each. Ids from SA_external on are buffers of the
 * caller, one id each: SA_external + i is external input i, bound before a run. */
enum sa_arena {
    SA_persistent, /* parameters, optimiser moments, caches: lives as long as the run */
    SA_slot,       /* one per micro-batch in flight: activations saved for its backward */
    SA_scratch,    /* dead once an entry point has ended */
    SA_weights, /* parameters of serving programs (attribute `store`): read only, the same bytes on
                 * every CPU, so that they may be a mapped file */
    SA_external,
};

enum sa_dtype { SA_f32, SA_bf16, SA_i32, SA_i64, SA_u8, SA_u16, SA_f64, SA_DTYPES };

enum { SA_RANK = 6 }; /* the most dimensions of a named value */

/* A place in memory. */
struct sa_buf {
    uint32_t arena;  /* enum sa_arena, or SA_external + index */
    uint64_t offset; /* bytes from its beginning; a multiple of 64 for whole tensors */
};

/* A kernel: its name in the compiled code, and its address once that is loaded. */
struct sa_code {
    const char *symbol;
    sa_kernel *fn;
};

/* How a CUDA kernel is launched. */
struct sa_launch {
    uint32_t grid[3]; /* blocks; [0] = 0: nothing to do */
    uint32_t threads; /* of a block */
    uint32_t shared;  /* bytes of dynamic shared memory */
};

/* The kernel of a step that is a product by a library, C = op(A) op(B) for row-major matrices
 * [M,K] [K,N], and what its integers are. Sums are float32. */
#define SA_PRODUCT UINT32_MAX
enum sa_product {
    SA_P_ta, /* A is stored as [K,M] */
    SA_P_tb, /* B is stored as [N,K] */
    SA_P_M,
    SA_P_N,
    SA_P_K,
    SA_P_lda, /* row strides in elements */
    SA_P_ldb,
    SA_P_ldc,
    SA_P_batch, /* so many products, matrices that far apart (elements) */
    SA_P_stride_a,
    SA_P_stride_b,
    SA_P_stride_c,
    SA_P_bf16_in, /* A and B, C: bf16 or else float32 */
    SA_P_bf16_out,
    SA_P_accumulate, /* C += op(A) op(B); C is float32 */
    SA_P_ints
};

/* One kernel call over `items` items, or (GPU) one launch. */
struct sa_step {
    uint32_t kernel;              /* index into sa_plan.kernels, or SA_PRODUCT */
    uint32_t first_buf, num_bufs; /* p: slice of sa_plan.bufs */
    uint32_t first_int, num_ints; /* n: slice of sa_plan.ints */
    int64_t items;                /* 0: nothing to do */
    int64_t grain;                /* items of one piece of work (>= 1); a step of one piece runs on
                                     the calling thread, so pieces are worth 20 microseconds */
    uint64_t scratch_bytes;       /* per call; 0: none, the pointer is then undefined */
    const char *label;            /* for profiles and messages: "layers.3.ffn gemm+swiglu" */
    struct sa_launch launch;      /* GPU */
    uint32_t stream;              /* GPU, < SA_STREAMS: steps of one stream run in order */
    uint32_t first_wait, num_waits; /* GPU: slice of sa_plan.waits: steps of other streams, before
                                       this one, that must have ended when it begins */
};
enum { SA_STREAMS = 2 }; /* a plan begins and ends in stream 0, which then waits for the other */

/* A part of the program that can be run: forward, backward, apply, ... */
struct sa_entry {
    const char *name;
    uint32_t first_step, num_steps;
};

/* A tensor that the outside knows by name: inputs, outputs, parameters, moments. */
struct sa_value {
    const char *name;
    uint32_t dtype; /* enum sa_dtype */
    uint32_t rank;
    int64_t dims[SA_RANK]; /* row-major, contiguous */
    struct sa_buf at;
};

/* Bytes of an element, and of a value. */
static inline uint64_t sa_dtype_bytes(uint32_t dtype)
{
    static const uint8_t size[SA_DTYPES] = {[SA_f32] = 4, [SA_bf16] = 2, [SA_i32] = 4, [SA_i64] = 8,
                                            [SA_u8] = 1,  [SA_u16] = 2,  [SA_f64] = 8};
    return size[dtype];
}
static inline uint64_t sa_value_bytes(const struct sa_value *v)
{
    uint64_t bytes = sa_dtype_bytes(v->dtype);
    for (uint32_t i = 0; i < v->rank; i++) bytes *= (uint64_t)v->dims[i];
    return bytes;
}

/* An input that stays in the caller's memory. */
struct sa_extern {
    const char *name;
    uint64_t bytes; /* how much the kernels may touch */
};

struct sa_plan {
    struct sa_code *kernels;
    const struct sa_step *steps;
    const struct sa_buf *bufs;
    const int64_t *ints;
    const uint32_t *waits;
    const struct sa_entry *entries;
    const struct sa_value *values;
    const struct sa_extern *externs;
    uint32_t num_kernels, num_steps, num_bufs, num_ints, num_waits, num_entries, num_values,
        num_externs;
    uint64_t arena_bytes[SA_external]; /* size of each arena; of SA_slot: of one slot */
};
#endif
