/* One table of small graphs for every op of op.def, at sizes 1, odd and around tiles. The
 * evaluator's tests, the IR's text tests and the kernel tests run the same cases. */
#ifndef STRATA_TESTS_OP_CASES_H
#define STRATA_TESTS_OP_CASES_H
#include "eval.h"

/* A case builds graphs around one op. Operands are inputs, or (ids, offsets, log-sum-exps, ...)
 * nodes that compute what the op needs, so that every operand holds sensible values. Outputs:
 * "out", or "out.0", "out.1" ... for a tuple. */
struct op_case {
    const char *name; /* the op's */
    struct ir_graph *(*build)(struct arena *a, int variant);
    int variants; /* a multiple of OP_CASE_SIZES: variant = size + OP_CASE_SIZES * option */
};
enum { OP_CASE_SIZES = 11 };
extern const struct op_case op_cases[];
extern const size_t op_case_count;

/* The case of an op, NULL where there is none. */
const struct op_case *op_case_find(enum ir_op op);
/* Run-time sizes of a variant; N grows from 1 to 129. */
struct ir_bind op_case_bind(int variant);
/* The node under test: the last one of the case's op. */
ir_id op_case_node(const struct ir_graph *g, const struct op_case *c);
/* Random values for all inputs, each exactly a float32, *n of them, in the arena. The input's name
 * says the range by its beginning: "ids.V" integers -1..V-1, "pos" 0.1..2, "big" -60..60, "load"
 * 0..9, "frac" 0..1, "unit.C" rows of C of a length up to 1, log decays "decay" -2..0, "slow" near
 * 0, "fast" -50, "mixed" both; "ctl" and "hyper" as the apply program makes them ("ctl0": not
 * finite), anything else -1.5..1.5. */
struct ir_named *op_case_inputs(struct arena *a, const struct ir_graph *g, struct ir_bind b,
                                uint64_t seed, size_t *n);
#endif
