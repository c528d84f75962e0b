/* Shared by the emitters of the CUDA back end. */
#ifndef STRATA_CODEGEN_CUDA_H
#define STRATA_CODEGEN_CUDA_H
#include "codegen/cpu.h"

/* C type of an operand's or result's elements: "float", "uint16_t" (bf16) or "int32_t". */
const char *cg_cuda_src_type(const struct ir_graph *g, ir_id n, uint32_t i);
const char *cg_cuda_res_type(const struct ir_graph *g, ir_id n, uint32_t i);
/* The largest power of two up to 16 that divides the address of every row of operand i, or of
 * result i where the kernel writes it: what vector accesses may rely on. A matter of feature sizes.
 */
int64_t cg_cuda_src_align(const struct ir_graph *g, ir_id n, uint32_t i);
int64_t cg_cuda_res_align(const struct ir_graph *g, ir_id n, uint32_t i);
/* How many elements of rows of `cols` one access moves (1, 2, 4, 8) where that many of every
 * operand and result listed go together: ld_row, st_row of the prelude. The rows' sizes are a
 * multiple. */
int64_t cg_cuda_width(const struct ir_graph *g, ir_id n, int64_t cols, const uint32_t *src,
                      size_t nsrc, const uint32_t *res, size_t nres);

/* How many elements at once a kernel moves of operand i, or of result i, whose rows hold pieces of
 * `size` elements: those of 16 bytes where all pieces lie so, else 1. */
int64_t cg_cuda_vector(const struct cg_emit *e, bool result, uint32_t i, int64_t size);
/* As cg_section, of variables that the text need not all use. */
struct str cg_cuda_section(struct arena *a, const char *text, const char *name,
                           const struct cg_var *vars, size_t n);

/* The most shared memory that a block has on the target, in bytes. */
int64_t cg_cuda_shared(const struct cg_target *t);
/* Sets a one-dimensional launch: blocks (0: nothing to do), threads of each, dynamic shared bytes.
 */
void cg_launch(struct cg_step *s, int64_t blocks, int64_t threads, int64_t shared);
/* Adds the step that sums `count` rows of `cols` float32 numbers, in an order of count's
 * (cuda_rows.c). */
void cg_cuda_colsum(struct arena *a, struct cg_lowering *out, struct cg_ref from, struct cg_ref to,
                    int64_t count, int64_t cols);
/* cg_refusal of operations over depth, whose kernels take a table of all sources as a parameter. */
const char *cg_cuda_depth_refusal(struct arena *a, const struct ir_graph *g, ir_id n);
/* Adds a product of cuBLAS; the caller sets refs (A, B, C) and nums (enum sa_product). */
struct cg_step *cg_add_product(struct arena *a, struct cg_lowering *out, const char *label);
#endif
