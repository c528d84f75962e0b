/* Fixtures of tests/fixtures: a spec, its weights and tokens, and what the oracle made of them. */
#ifndef STRATA_TESTS_FIXTURE_H
#define STRATA_TESTS_FIXTURE_H
#include "compiler/build.h"
#include "eval.h"
#include "runtime/tensorfile.h"

struct fixture {
    struct arena *arena;
    const char *name;
    struct model *model;
    struct params *params;
    float **weights; /* per parameter */
    int64_t B, T;
    int32_t *tokens, *targets;         /* [B*T] */
    double count;                      /* targets >= 0 */
    struct tensorfile *want, *rounded; /* and those in bf16; NULL where there are none */
};

/* Names of all evaluation fixtures (folders with want.safetensors and no trajectory), terminated by
 * NULL. */
const char *const *fixture_names(struct arena *a);
/* Opens one; failures abort the test program. `set` may be NULL or one --set KEY=VALUE. */
struct fixture *fixture_open(const char *name, const char *set);
/* One without references: the spec in `text` (or, where that is empty, in the file
 * `name`), the weights of seed 0 and drawn tokens. `moved` also moves gains and queries, which
 * otherwise start at 1 and 0. */
struct fixture *fixture_fresh(const char *name, struct str text, int64_t B, int64_t T, bool moved);
void fixture_close(struct fixture *f);
/* Reference tensor as doubles in the fixture's arena; NULL where there is none. */
const double *fixture_want(const struct fixture *f, const char *name, size_t *n);
/* The i-th input routes.LAYER of programs with build_options.given_routes: data is i32 [N,k] by
 * falling score. NULL where there are no more. */
const struct tf_tensor *fixture_routes(const struct fixture *f, size_t i);
/* All values of a graph of the fixture's model by the evaluator: weights, tokens, targets, count
 * and routes are its inputs. In the arena. */
struct ir_values fixture_eval(const struct fixture *f, struct arena *a, const struct ir_graph *g);
/* ||got - want|| / ||want||; a zero reference must be met exactly (else infinity). */
double relative_error(const double *got, const double *want, size_t n);
/* Gradient of a checkpoint tensor within the IR gradient of its parameter: offset and count. */
const struct param_part *fixture_part(const struct fixture *f, const char *tensor, size_t *param);
#endif
