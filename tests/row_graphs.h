/* Graphs of row operations at any width, for the tests of both back ends' row kernels. Each is a
 * stage-T graph over inputs of N rows. */
#ifndef STRATA_TESTS_ROW_GRAPHS_H
#define STRATA_TESTS_ROW_GRAPHS_H
#include "graph.h"

/* h + x w^T normalised, a product, and the backward of the norm. */
struct ir_graph *row_graph_norm(struct arena *a, int64_t cols);
/* swiglu of slices of one product, its backward into a concat, softmax, layer norm. */
struct ir_graph *row_graph_swiglu(struct arena *a, int64_t cols);
/* Norms of heads through reshapes, vectors and scalars on their own, constants that are results. */
struct ir_graph *row_graph_mixed(struct arena *a, int64_t cols);
/* Thirty random operations; k is for the name, the rest comes from row_graph_seed. */
struct ir_graph *row_graph_random(struct arena *a, unsigned k, int64_t cols);

extern uint64_t row_graph_seed;
double row_graph_uniform(void); /* -1 .. 1 */
unsigned row_graph_pick(unsigned n);
#endif
