/* Passes: graph in, new graph out (house.md 3.4). Only the manager times, dumps, verifies and
 * skips. */
#ifndef STRATA_COMPILER_PASS_H
#define STRATA_COMPILER_PASS_H
#include "graph.h"

struct pass_ctx {
    struct arena *arena; /* new graphs and everything in them */
    struct diag *diag;
    struct sb *report;   /* --report text: what was fused, what was not and why; may be NULL */
    struct ir_bind bind; /* sizes for cost decisions */
    bool gpu;            /* the kernels will be CUDA's */
    bool serving;        /* products are ours, whatever their number of rows; weights read once */
    bool exact;          /* narrow: only what changes no value */
    bool unfused;        /* fuse-rows: every operation a kernel of its own (--skip=fuse-rows) */
};
/* Never changes its input. NULL means diagnostics were issued. */
typedef struct ir_graph *pass_fn(struct pass_ctx *c, const struct ir_graph *g);

enum pass_id {
#define PASS(name, function, in, out, skippable, help) PASS_##function,
#include "compiler/pass.def"
    PASS_COUNT
};
#define PASS(name, function, in, out, skippable, help) pass_fn pass_##function;
#include "compiler/pass.def"
#endif
