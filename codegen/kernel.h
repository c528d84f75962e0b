/* How a node of the K stage becomes steps: kernel text plus the buffers, integers and item counts
 * of a run. The text depends on feature sizes only, so one kernel set serves every batch size; the
 * rest of a step is numbers for one (B, T). The planner turns the references into addresses.
 *
 * On the CPU a kernel is an sa_kernel. On a GPU it is
 *     extern "C" __global__ void __launch_bounds__(threads) @FN@(parameters)
 * whose parameters are eight bytes each: an address for every reference, then an int64_t for every
 * number. A struct by value takes as many references as it holds pointers (tables of sources).
 * Everything a text defines at file scope has @FN@ in its name: one translation unit holds all. */
#ifndef STRATA_CODEGEN_KERNEL_H
#define STRATA_CODEGEN_KERNEL_H
#include "abi.h"
#include "graph.h"

enum cg_ref_kind {
    CG_SRC, /* operand `index` of the node (a view of a larger buffer is resolved by the planner) */
    CG_RES, /* result element `index` (0 for a single result) */
    CG_WORK, /* the node's workspace, `index` unused */
};
struct cg_ref {
    enum cg_ref_kind kind;
    uint32_t index;
    int64_t offset; /* bytes added to the address */
};

/* CUDA: steps of one kernel that follow each other may be one launch. The kernel has a table of up
 * to `most` rows: `refs` addresses a row, first of all its references, and `cols` numbers a row,
 * column by column, first of all its numbers; column 0 counts blocks up to and with each row. Then,
 * the same in all, further references, and how many rows there are. Rows are independent. */
struct cg_join {
    uint32_t most, refs, cols; /* most 0: stays alone */
};

struct cg_step {
    const char *symbol; /* function name; made of the content hash of `text`, set by cg_add */
    struct str
        text; /* one complete C function, or several (plus what they need beyond the prelude) */
    const char *label; /* what people see in profiles: "rmsnorm l3", "matmul [N,256]x[256,768]" */
    const char *why;   /* there is a faster form, for which the node does not qualify: why; else NULL */
    struct cg_ref *ref;
    size_t nref;
    int64_t *num; /* run-time integers n[0..] of the kernel */
    size_t nnum;
    int64_t items, grain; /* CPU: work items; at least `grain` of them go to one thread at a time */
    size_t scratch;       /* CPU: bytes of per-thread scratch */
    struct sa_launch
        launch; /* CUDA: grid, threads, dynamic shared memory; no blocks: nothing to do */
    struct cg_join join;
    const char *route; /* CUDA: of products and depth, what computes it and why, for reports */
    bool product; /* CUDA: a matrix product of cuBLAS instead of a kernel: refs A, B, C, nums as
                     enum sa_product; neither symbol nor text */
};

struct cg_memo; /* texts of the regions of one graph that were lowered already */
struct cg_memo *cg_memo_open(struct arena *a, const struct ir_graph *g);

struct cg_lowering {
    struct cg_memo *memo; /* NULL: every text is made anew */
    VEC(struct cg_step) step;
    size_t workspace; /* bytes that live only during this node's steps */
};

struct cg_target {   /* what the emitter must know of the machine */
    unsigned sm;     /* compute capability, as 90; 0: a CPU */
    bool no_library; /* CUDA: all products by kernels of ours */
};

/* Steps of node n for the sizes b; appended to out. Views and leaves give none. Everything is in
 * the arena. Ops that the back end does not know are BUG(). (cpu.c and cuda.c dispatch to the
 * emitters below.) */
void cg_lower_node(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                   const struct cg_target *t, struct cg_lowering *out);
/* What users have to change before node n can be lowered for the target, a message in the arena;
 * NULL: nothing, cg_lower_node takes it. */
const char *cg_refusal(struct arena *a, const struct ir_graph *g, ir_id n,
                       const struct cg_target *t);

/* Which operand's memory a result element takes over (adamw's weight, a depth accumulator ...), or
 * -1. Valid only where that operand has no later reader (the verifier checks). */
int cg_in_place(const struct ir_graph *g, ir_id n, uint32_t result);
/* Whether result element i may be written with a row stride other than its columns, i.e. straight
 * into a piece of a column concat. */
bool cg_strided_result(const struct ir_graph *g, ir_id n, uint32_t result);
/* Row stride in elements that result element i of node n is written with: its columns, or the
 * concat's where it is a piece of one (the only reader is the concat). */
int64_t cg_result_ld(const struct ir_graph *g, ir_id n, uint32_t result);
/* The concat that result element i is written straight into (row or column pieces), or IR_NONE:
 * then a concat that reads it copies. One rule for planner and emitters. */
ir_id cg_concat_of(const struct ir_graph *g, ir_id n, uint32_t result);

/* ---- for emitters ---- */

/* Names a kernel by the hash of its text and appends a step. `text` has @FN@ where its function
 * name goes. Returns the step to fill in refs, nums, items. */
struct cg_step *cg_add(struct arena *a, struct cg_lowering *out, const char *kind, struct str text,
                       const char *label);
void cg_refs(struct arena *a, struct cg_step *s, const struct cg_ref *ref, size_t n);
void cg_nums(struct arena *a, struct cg_step *s, const int64_t *num, size_t n);
#define CG_REFS(...)                      \
    (const struct cg_ref[]){__VA_ARGS__}, \
        sizeof((const struct cg_ref[]){__VA_ARGS__}) / sizeof(struct cg_ref)
#define CG_NUMS(...) \
    (const int64_t[]){__VA_ARGS__}, sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)
#define S_(i) ((struct cg_ref){CG_SRC, (uint32_t)(i), 0})
#define R_(i) ((struct cg_ref){CG_RES, (uint32_t)(i), 0})
#define W_(off) ((struct cg_ref){CG_WORK, 0, (int64_t)(off)})

/* Emitters, one file each; each handles the ops its name says (see cpu.c for the table). */
typedef void cg_emit_fn(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                        const struct cg_target *t, struct cg_lowering *out);
cg_emit_fn cg_cpu_rows;      /* rows: fused row regions (cpu_rows.c) */
cg_emit_fn cg_cpu_gemm;      /* matmul, grouped_matmul, grouped_matmul_dw, head_* (cpu_gemm.c) */
cg_emit_fn cg_cpu_attention; /* attention, attention_grad, rope (cpu_attention.c) */
cg_emit_fn cg_cpu_mla;       /* mla_keys, mla_keys_grad, mla_cached (cpu_mla.c) */
cg_emit_fn cg_cpu_cache;     /* last_rows, cache_write, attention_cached (cpu_cache.c) */
cg_emit_fn cg_cpu_kda;       /* repeat, short_conv, kda, gradients and cached forms (cpu_kda.c) */
cg_emit_fn cg_cpu_depth;     /* depth_mix, depth_mix_grad, depth_inter, depth_inter_grad */
cg_emit_fn cg_cpu_token; /* embed, embed_grad, cross_entropy*, count_valid, sum, concat copies */
cg_emit_fn cg_cpu_moe;   /* moe_* (cpu_moe.c) */
cg_emit_fn cg_cpu_optim; /* adamw, momentum, muon_step, grad_norm, balance (cpu_optim.c) */
cg_emit_fn cg_cuda_rows; /* rows (cuda_rows.c) */
cg_emit_fn cg_cuda_gemm; /* matmul, grouped_matmul, grouped_matmul_dw (cuda_gemm.c) */
cg_emit_fn cg_cuda_head; /* head_loss, head_nll (cuda_head.c) */
cg_emit_fn cg_cuda_attention; /* attention, attention_grad, rope, rope_table (cuda_attention.c) */
cg_emit_fn cg_cuda_cache;     /* last_rows, cache_write, attention_cached (cuda_cache.c) */
cg_emit_fn cg_cuda_mla;       /* mla_keys, mla_keys_grad, mla_cached (cuda_mla.c) */
cg_emit_fn cg_cuda_conv;      /* repeat, short_conv(_grad), conv_cached (cuda_conv.c) */
cg_emit_fn cg_cuda_kda;       /* kda, kda_grad, kda_cached (cuda_kda.c) */
cg_emit_fn cg_cuda_depth;     /* depth_mix, depth_inter, and their gradients (cuda_depth.c) */
cg_emit_fn cg_cuda_token; /* embed(_grad), cross_entropy(_grad), count_valid, sum, colmax, concat
                             and reshape copies (cuda_token.c) */
cg_emit_fn cg_cuda_moe;   /* moe_* (cuda_moe.c) */
cg_emit_fn
    cg_cuda_optim; /* adamw, momentum, muon_step, grad_norm, balance, qk_clip (cuda_optim.c) */
/* The text every kernel of the CPU back end is compiled after (codegen/text/prelude.c). */
const char *cg_cpu_prelude(void);
/* The text every CUDA translation unit starts with (codegen/text/cuda_prelude.c). */
const char *cg_cuda_prelude(void);
#endif
