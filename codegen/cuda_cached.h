/* Attention over caches, shared by attention_cached (cuda_cache.c) and mla_cached (cuda_mla.c): by
 * tensor cores (cuda_paged.c) where queries and caches are bf16 whose heads lie on 16 bytes, else
 * in float32 (cuda_cached.c). */
#ifndef STRATA_CODEGEN_CUDA_CACHED_H
#define STRATA_CODEGEN_CUDA_CACHED_H
#include "codegen/cuda.h"

/* Rows of g heads for each of kv key heads, over keys of hd and values of vd elements. */
struct cg_cached {
    int64_t g, kv, hd, vd, window;
    double scale;
    bool same;             /* values are the first vd elements of keys */
    struct cg_ref q, k, v; /* v: any reference where `same` */
    struct cg_ref
        q2; /* tensor cores: columns from qn on of a query come from here; qn = hd: none */
    int64_t qn, ldq2, head_q, head_q2; /* and elements from head to head of q and q2 */
    struct cg_ref pages, past, o;
    const char *tq, *tk, *to;           /* C types of q, k and v, o */
    int64_t ldq, ldk, ldo;              /* row strides in elements */
    int64_t vec_q, vec_k, vec_v, vec_o; /* as cg_cuda_vector; vec_q: of q2 too */
    int64_t table;                      /* pages of a sequence's table */
    int64_t shared;                     /* bytes that a block has */
    const char *why;                    /* of steps in float32: why no tensor cores */
};
/* Adds the steps (text/cuda_cached.c). Their workspace begins at byte `at` of the node's; returns
 * its end. */
int64_t cg_cuda_cached(const struct cg_emit *e, const struct cg_cached *x, int64_t at);
/* NULL where tensor cores take it: q and q2 are bf16 on 16 bytes (vec_q), caches too, and a tile
 * fits into shared memory; else why not. */
const char *cg_cuda_paged_why(const struct cg_cached *x);
/* Then the same as cg_cuda_cached, by text/cuda_paged.c. */
int64_t cg_cuda_paged(const struct cg_emit *e, const struct cg_cached *x, int64_t at);
#endif
