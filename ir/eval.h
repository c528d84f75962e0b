/* The reference interpreter: every op in float64, slow and obvious. It is the definition that
 * kernels and gradients are tested against. Integers are doubles too. Values are never rounded to
 * their element type (round_bf16 and round are the ops that round). Not part of any compiled program. */
#ifndef STRATA_IR_EVAL_H
#define STRATA_IR_EVAL_H
#include "graph.h"

struct ir_array { /* n elements, row-major */
    double *v;
    int64_t n;
};
/* What a node computes: one array, or a tuple's. */
struct ir_value {
    uint32_t count;
    struct ir_array *e;
};
/* A param or input of the graph, found by its `name` attribute. */
struct ir_named {
    const char *name;
    const double *v;
    int64_t n;
};
struct ir_values {
    const struct ir_graph *g;
    struct ir_value *node; /* by ir_id */
};

/* Values of all nodes for the sizes b; everything is in the arena. An input that is missing or has
 * another number of elements than its type is BUG(), as are ids out of range. */
struct ir_values ir_eval(struct arena *a, const struct ir_graph *g, struct ir_bind b,
                         const struct ir_named *in, size_t nin);
/* The array of a named output; BUG() where there is none or it is a tuple. */
struct ir_array ir_eval_output(const struct ir_values *v, const char *name);
#endif
