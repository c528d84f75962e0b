/* Matrix products for the emitters of the CUDA back end. */
#ifndef STRATA_CODEGEN_CUDA_GEMM_H
#define STRATA_CODEGEN_CUDA_GEMM_H
#include "codegen/cuda.h"

/* A matrix in memory, rows of `ld` elements; of several, one behind the other. */
struct cg_matrix {
    struct cg_ref at;
    bool narrow; /* bf16 in two bytes; else float32 */
    int64_t ld;
    int64_t align; /* a power of two up to 16 that divides the address of every row */
};
/* C = op(A) op(B), or C += with `add` (then C is float32): row-major, C [m,n], inner size k. Of
 * `batch` products the matrices lie stride_a, stride_b, stride_c elements apart. */
struct cg_product {
    struct cg_matrix a, b, c;
    bool ta, tb; /* A is stored as [k,m], B as [n,k] */
    bool bf16;   /* operands are rounded to bf16 */
    bool add;
    int64_t m, n, k, batch, stride_a, stride_b, stride_c;
};

/* Adds the steps of a product: of the library unless t->no_library; with copies of operands in
 * another type, which it makes in the workspace. */
void cg_cuda_product(const struct cg_emit *e, const struct cg_target *t, struct cg_product p);
/* Operand i, and result i. */
struct cg_matrix cg_cuda_src_matrix(const struct cg_emit *e, uint32_t i);
struct cg_matrix cg_cuda_res_matrix(const struct cg_emit *e, uint32_t i);
/* The matrix from row `row` on. */
struct cg_matrix cg_cuda_rows_from(struct cg_matrix m, int64_t row);
/* Adds what copies rows x cols of a matrix to another one, as the type of that. */
void cg_cuda_cast(const struct cg_emit *e, struct cg_matrix from, struct cg_matrix to, int64_t rows,
                  int64_t cols);
/* The matrix in the type asked for: itself, or (adding a step) a copy in the workspace. */
struct cg_matrix cg_cuda_as(const struct cg_emit *e, struct cg_matrix m, bool narrow, int64_t rows,
                            int64_t cols);
/* Room for a matrix without gaps in the workspace. */
struct cg_matrix cg_cuda_room(const struct cg_emit *e, bool narrow, int64_t rows, int64_t cols);
#endif
