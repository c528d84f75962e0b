/* What the functions that define the ops see (eval*.c): one per row of op.def, eval_NAME. */
#ifndef STRATA_IR_EVAL_OP_H
#define STRATA_IR_EVAL_OP_H
#include "eval.h"

struct eval_env { /* where leaves find their values */
    const struct ir_named *in;
    size_t nin;
    const struct ir_value *arg; /* operands of the `rows` node that a region belongs to */
    size_t nargs;
};
struct eval {
    struct arena *a;
    const struct ir_graph *g;
    ir_id n;
    struct ir_bind b;
    const struct eval_env *env;
    const struct ir_value *node; /* values of the nodes before n */
    struct ir_value out;         /* allocated and zero; the function fills it */
};
#define OP(name, sources, shape, vjp, cost, stages, flags) void eval_##name(struct eval *e);
#include "op.def"

/* Operand i (a plain value), its number of elements, its dim k (negative: from the last), its rows
 * and columns; the result's arrays likewise. */
const double *ev_src(const struct eval *e, size_t i);
int64_t ev_count(const struct eval *e, size_t i);
int64_t ev_dim(const struct eval *e, size_t i, int k);
int64_t ev_rows(const struct eval *e, size_t i);
int64_t ev_cols(const struct eval *e, size_t i);
double *ev_out(struct eval *e, size_t i);
/* Attributes of the node, with the value that absence means. */
int64_t ev_int(const struct eval *e, enum ir_attr_key k, int64_t absent);
double ev_num(const struct eval *e, enum ir_attr_key k, double absent);
/* An element that is an index: BUG() unless 0 <= v < limit. */
int64_t ev_index(const struct eval *e, double v, int64_t limit);
/* The row of operand `cache` that holds a position of sequence b, by its table in operand `pages`.
 */
int64_t ev_paged_row(const struct eval *e, size_t cache, size_t pages, int64_t b, int64_t position);
/* The nearest bf16 number of a float32, ties to even. */
double ev_bf16(double a);
/* Operand i of a product, rounded to bf16 where the product asks for it. */
const double *ev_operand(struct eval *e, size_t i);
/* All nodes of a graph; used for the whole and for regions. */
struct ir_values ev_graph(struct arena *a, const struct ir_graph *g, struct ir_bind b,
                          const struct eval_env *env);
#endif
