#include "op.h"

enum { T = 1, K = 2 }; /* stage letters of op.def; enum ir_stage has the same values */
static const struct op_info table[OP_COUNT] = {
#define OP(name, sources, shape, vjp, cost, stages, flags) {#name, sources, stages, flags},
#include "op.def"
};

const struct op_info *op_info(enum ir_op op)
{
    CHECK((unsigned)op < OP_COUNT);
    return &table[op];
}

enum ir_op op_find(struct str name)
{
    for (int i = 0; i < OP_COUNT; i++)
        if (str_is(name, table[i].name)) return (enum ir_op)i;
    return OP_COUNT;
}
