/* Sizes of the CPU kernels in codegen/text (gemm.c, attention.c): how a product is cut into work
 * items, how large packed matrices and per-thread scratch are. Cuts depend on shapes only, never on
 * the number of threads, and no cut changes any bit of a result. */
#ifndef STRATA_CODEGEN_GEMM_SHAPE_H
#define STRATA_CODEGEN_GEMM_SHAPE_H

#include <stdint.h>

/* A cut: items = row blocks of `mb` times column blocks of `nb`, as the kernels' n[] wants them. */
struct cg_gemm_plan {
    int64_t mb, nb, items;
};

/* Floats of a packed [k,n] matrix: 16-column panels, ceil(n/16) * 16 * k. */
int64_t cg_gemm_packed(int64_t k, int64_t n);
/* The same for the bf16 kernels, in 32-bit words (two k each). */
int64_t cg_gemm_packed_bf16(int64_t k, int64_t n);
/* Items of k_pack_rows and k_pack_cols for a [k,n] matrix. */
int64_t cg_pack_rows_items(int64_t k, int64_t n);
int64_t cg_pack_cols_items(int64_t k, int64_t n);
/* The cut of k_gemm for C[m,n] with inner size k. */
struct cg_gemm_plan cg_gemm_plan(int64_t m, int64_t n, int64_t k);
/* The same where weights are widened first (kept.c): blocks of more rows. */
struct cg_gemm_plan cg_gemm_kept_plan(int64_t m, int64_t n, int64_t k);
/* plan.items alone. */
int64_t cg_gemm_items(int64_t m, int64_t n, int64_t k);
/* The cut of k_gemm_stack and k_gemm_grouped: items = products times column blocks of `nb`, at
 * least `grain` of them to a thread at a time. m: rows of one product, of an expert on average. */
struct cg_stack_plan {
    int64_t nb, items, grain;
};
struct cg_stack_plan cg_gemm_stack_plan(int64_t products, int64_t m, int64_t n, int64_t k);
/* Bytes of scratch per thread for items that pack `nb` columns themselves. */
int64_t cg_gemm_own_scratch(int64_t k, int64_t nb);
/* Bytes of scratch per thread for products by weights in panels (kept.c). */
int64_t cg_gemm_kept_scratch(void);
/* The cut of k_gemm_grouped_dw: per expert C_e[m,n]. */
struct cg_gemm_plan cg_gemm_grouped_dw_plan(int64_t rows, int64_t m, int64_t n, int64_t experts);
/* Bytes of scratch per thread for every other kernel of gemm.c. */
int64_t cg_gemm_scratch(void);

/* Attention (attention.c): h query heads over kv key heads, head sizes hd (q, k) and vd (v, o). */
int64_t cg_attn_fwd_items(int64_t b, int64_t t, int64_t h, int64_t kv);
int64_t cg_attn_bwd_items(int64_t b, int64_t kv);
/* Bytes of scratch per thread. */
int64_t cg_attn_fwd_scratch(int64_t h, int64_t kv, int64_t hd, int64_t vd);
int64_t cg_attn_bwd_scratch(int64_t hd, int64_t vd);
/* Query rows per forward item and head: the template's ${QB}. */
int64_t cg_attn_query_rows(int64_t h, int64_t kv);

#endif
