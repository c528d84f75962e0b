/* The pass manager: runs passes over a graph; it alone times, numbers, dumps, verifies and skips.
 */
#ifndef STRATA_COMPILER_PIPELINE_H
#define STRATA_COMPILER_PIPELINE_H
#include "compiler/pass.h"

/* A row of pass.def, as data. */
struct pass_row {
    const char *name;
    pass_fn *fn;
    enum ir_stage in, out;
    bool skippable;
    const char *help;
};
/* The rows of pass.def, which are also the default pipeline; *n receives their number. */
const struct pass_row *pass_rows(size_t *n);

/* All of it zero is the default. Lists are names with commas. */
struct pipeline_options {
    const char *passes;   /* run these, in this order, instead of the default pipeline */
    const char *skip;     /* do not run these; a pass that changes the stage runs with `unfused` */
    const char *dump_ir;  /* "before:PASS", "after:PASS", "after:all" ...: graphs to print */
    const char *dump_dir; /* folder for dumps, NN-after-PASS.ir; NULL = into *dump */
    struct sb *dump;      /* needed where dump_ir is given and dump_dir is not */
    const char *repro;    /* file for pipeline and graph when a pass aborts; NULL = none */
    struct sb *times;     /* one line per pass; NULL = none */
    struct sb *report;    /* what passes say of their decisions; NULL = none */
    bool no_verify;       /* leave out the check of every invariant after each pass */
    bool roundtrip_each;  /* print, parse and print again after each pass; a difference is a bug */
    bool limited; /* only the first pass_limit passes do their work, the rest as in `skip` */
    unsigned pass_limit;
};

/* Runs the pipeline over g, which stays as it is. `rows` (NULL = pass_rows) is where names are
 * looked up. Graphs are made in c->arena; c->report is taken from the options, c->unfused is set
 * here. NULL means diagnostics in c->diag. A graph that breaks an invariant is a bug and aborts. */
struct ir_graph *pipeline_run(struct pass_ctx *c, const struct pipeline_options *o,
                              const struct pass_row *rows, size_t nrows, const struct ir_graph *g);
#endif
