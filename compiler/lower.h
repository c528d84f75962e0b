/* K graph and sizes to an executable plan: node by node kernel steps, their buffers resolved to
 * places, kernels merged by symbol. */
#ifndef STRATA_COMPILER_LOWER_H
#define STRATA_COMPILER_LOWER_H
#include "codegen/kernel.h"
#include "compiler/memplan.h"

struct lower_kernel { /* parallel to sa_plan.kernels */
    struct str text;
    const char *label; /* of the first step that uses it */
    const char *why;   /* as in cg_step, of that step */
    ir_id node;        /* whose step that is */
    uint32_t steps;    /* how many use it */
};
struct lowered {
    struct sa_plan plan;  /* one entry point, named like the program; kernels without address */
    struct sa_code *code; /* plan.kernels, to set addresses */
    struct sa_step *step; /* plan.steps, to set streams */
    struct lower_kernel *kernel;
    struct memplan *mem;
    uint32_t *node_of_step; /* node of each step; the number of nodes for copies of outputs */
    uint32_t *last_of_step; /* the last node of a launch for several (cg_join): those of its kind up
                               to there; else the same */
    const char **route;     /* of each step: cg_step's */
    bool gpu;               /* kernels are CUDA C */
};

/* Lowers a K graph for the sizes b. Names get places in the layout. Everything is in the arena,
 * which must outlive the plan, as must g. */
struct lowered *lower(struct arena *a, const struct ir_graph *g, struct ir_bind b,
                      const struct cg_target *t, struct layout *l);
/* The stage-P text: steps with kernel, places and numbers, then the memory plan. */
void lower_print(const struct lowered *l, struct sb *out);
/* A line for every kind of product and of operation over depth on a GPU: how many steps, and what
 * computes them. */
void lower_routes(const struct lowered *l, struct sb *out);
/* C or CUDA C text of all kernels after the prelude. `title` and lines about origin go into
 * comments; d gives the places in the specification and may be NULL. */
void lower_emit_c(const struct lowered *l, const struct diag *d, const char *title, struct sb *out);
#endif
