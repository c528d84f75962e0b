/* Finite differences of a graph in the float64 evaluator. */
#ifndef STRATA_TESTS_FD_H
#define STRATA_TESTS_FD_H
#include "eval.h"

/* One evaluated graph, whose outputs may be differentiated. */
struct fd {
    const struct ir_graph *g;
    struct ir_bind b;
    const struct ir_named *in;
    size_t nin;
    const char *loss; /* output f32[] */
};
/* Central difference of the loss along `direction` from the inputs `input`. */
double fd_slope(const struct fd *f, const char *input, const double *direction, double step);
/* Compares gradient `grad` of input `input` with central differences along `directions` random
 * ones. Returns the worst error relative to the size of the slope, or of a typical one where it
 * cancels. */
double fd_error(const struct fd *f, const char *input, const double *grad, int directions);
/* A random number in -1..1; advances the state. */
double fd_random(uint64_t *state);
#endif
