/* Which depth sources every site of a model reads (spec-contract section 2), for people: what
 * `check` prints and draws. The builder makes the same lists as graph nodes. */
#ifndef STRATA_COMPILER_SITES_H
#define STRATA_COMPILER_SITES_H
#include "compiler/model.h"

struct site {
    const char *name; /* as depth weights are named: "model.layers.3.mlp_res_proj" */
    size_t sublayer;  /* 2 * num_layers for the readout */
    size_t block;     /* from 1: the block of the sublayer; the readout is in the last one */
    size_t finished;  /* finished blocks that it reads, besides the embedding */
    bool partial;     /* whether it also reads the running sum of its own block */
    bool mixes;       /* false: switched off, or layer 0's mixer, which reads the embedding alone */
};
/* 1 (the embedding) + finished blocks + the running sum. */
size_t site_sources(const struct site *s);
/* All 2 * num_layers + 1 sites, sublayers in order, then the readout; NULL and 0 for the standard
 * residual. In the arena. */
struct site *sites_of(struct arena *a, const struct model *m, size_t *n);

/* Blocks of an attnres model: num_boundaries + 1. Sublayers first .. end-1 of block k, from 1. */
struct block {
    size_t first, end;
};
struct block block_of(const struct model *m, size_t k);
#endif
