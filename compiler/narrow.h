/* Which operations read and write values stored in two bytes (attribute narrow) on a GPU: what the
 * passes narrow and fuse-rows agree on with the emitters. */
#ifndef STRATA_COMPILER_NARROW_H
#define STRATA_COMPILER_NARROW_H
#include "graph.h"

/* May operand i of node n lie in memory as bf16? */
bool narrow_reads(const struct ir_graph *g, ir_id n, uint32_t i);
/* May result i of node n be written as bf16, where all its elements are rounded? `rounds`: by its
 * readers anyway, so that results which are no activations may, too. */
bool narrow_writes(const struct ir_graph *g, ir_id n, uint32_t i, bool rounds);
/* Is operand i rounded to bf16 by node n, a product with the attribute bf16? */
bool narrow_rounds(const struct ir_graph *g, ir_id n, uint32_t i);
/* Is operand i of node n the gradient of a mix over depth? */
bool narrow_mix_gradient(const struct ir_graph *g, ir_id n, uint32_t i);
#endif
