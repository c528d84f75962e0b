/* The op table (op.def) as data: names, arity, flags, stages, and the shape rules. */
#ifndef STRATA_IR_OP_H
#define STRATA_IR_OP_H
#include "type.h"

enum ir_op {
#define OP(name, sources, shape, vjp, cost, stages, flags) OP_##name,
#include "op.def"
    OP_COUNT
};
enum { F_EW = 1, F_ROW = 2, F_COMM = 4, F_VIEW = 8, F_STATE = 16, F_LEAF = 32 };

struct op_info {
    const char *name;
    int sources; /* -1: any number */
    unsigned stages, flags;
};
const struct op_info *op_info(enum ir_op op);
/* The op of a name, OP_COUNT where there is none. */
enum ir_op op_find(struct str name);
/* True for elementwise ops and row reductions: what fuse-rows may put into a region. */
static inline bool op_fusable(enum ir_op op)
{
    return (op_info(op)->flags & (F_EW | F_ROW)) != 0;
}

enum { IR_PAGE = 64 }; /* positions of a page of a paged cache */

struct ir_graph;
struct ir_attr;
/* What a shape rule sees: operand types and attributes of the node to be. */
struct shape_ctx {
    const struct ir_graph *g;
    struct ir_types *types;
    const ir_type_id *src;
    size_t nsrc;
    const struct ir_attr *attr;
    size_t nattr;
    ir_type_id given; /* for `given` and reshape: the stated type */
};
/* Result type, or a message in *why. */
bool op_shape(enum ir_op op, const struct shape_ctx *c, ir_type_id *out, const char **why);

/* Cost per run: floating-point operations and bytes touched by a node (cost.c). */
struct ir_cost {
    double flops, bytes;
};
struct ir_cost op_cost(const struct ir_graph *g, uint32_t n, struct ir_bind b);
#endif
