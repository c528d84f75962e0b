/* Attention over caches, shared by attention_cached (cuda_cache.c) and mla_cached (cuda_mla.c). */
#ifndef STRATA_CODEGEN_CUDA_CACHED_H
#define STRATA_CODEGEN_CUDA_CACHED_H
#include "codegen/cuda.h"

/* Rows of g heads for each of kv key heads, over keys of hd and values of vd elements. */
struct cg_cached {
    int64_t g, kv, hd, vd, window;
    double scale;
    bool same;             /* values are the first vd elements of keys */
    struct cg_ref q, k, v; /* v: any reference where `same` */
    struct cg_ref pages, past, o;
    const char *tq, *tk, *to;    /* C types of q, k and v, o */
    int64_t ldq, ldk, ldo;       /* row strides in elements */
    int64_t vec_k, vec_v, vec_o; /* as cg_cuda_vector */
    int64_t table;               /* pages of a sequence's table */
    int64_t shared;              /* bytes that a block has */
};
/* Adds the steps (text/cuda_cached.c). Their workspace begins at byte `at` of the node's; returns
 * its end. */
int64_t cg_cuda_cached(const struct cg_emit *e, const struct cg_cached *x, int64_t at);
#endif
