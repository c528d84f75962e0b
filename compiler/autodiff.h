/* Reverse-mode differentiation of a stage-T graph, by one vjp rule per op (op.def). */
#ifndef STRATA_COMPILER_AUTODIFF_H
#define STRATA_COMPILER_AUTODIFF_H
#include "graph.h"

/* Appends to g the gradient of the scalar `loss` with respect to each of wrt[0..n-1] and stores the
 * ids in grad[]; a value that the loss does not depend on gets a constant 0 of its type. Gradients
 * of depth sources are accumulated in place by the backward ops of their readers (design 2.3): each
 * depth_mix_grad takes what has gathered so far and returns it with its own part added. */
void autodiff(struct ir_graph *g, ir_id loss, const ir_id *wrt, size_t n, ir_id *grad);
#endif
