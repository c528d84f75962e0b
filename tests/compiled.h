/* A fixture's programs, compiled: forward, train and (where it has a train section) apply, in one
 * session, with the fixture's weights and tokens as inputs. */
#ifndef STRATA_TESTS_COMPILED_H
#define STRATA_TESTS_COMPILED_H
#include "compiler/served.h"
#include "fixture.h"

struct compiled_options {
    const char *skip, *cpu; /* as in session_options and pipeline_options; may be NULL */
    const char *device;     /* likewise */
    unsigned threads;       /* 0 means 2 */
    bool forward_only;      /* no train, no apply */
    bool depth_weights;     /* the forward program also gives depth.SITE */
    bool given_routes;      /* build_options.given_routes */
};
struct compiled {
    struct arena *arena;
    struct fixture *f;
    struct session *session;
    struct program *forward_program, *train_program;
    struct plan *forward, *train, *apply; /* apply is NULL for a fixture that does not train */
};

/* Compiles; the fixture is closed with the programs. Failures abort the test program. */
struct compiled *compiled_open(struct fixture *f, const struct compiled_options *o);
void compiled_close(struct compiled *c);
/* The fixture's model as it is served (compiler/served.h), with its weights: the sizes are those of
 * `build`, whose store is that of weights (on a device STORE_rows or STORE_rows_bf16). The session
 * is to be closed behind the model. Failures abort the test program. */
struct compiled_served {
    const char *device; /* NULL: the CPU */
    unsigned threads;
    struct build_options build;
    int64_t batch;
    bool lazy;
};
struct lm *compiled_serve(struct arena *a, const struct fixture *f, const struct compiled_served *o,
                          struct session **session);
/* Copies data to a value of a plan; nothing where the plan has no such value, BUG on another size.
 */
void compiled_set(const struct plan *p, const char *name, const void *data, size_t bytes);
/* Copies the fixture's weights to a plan. */
void compiled_bind_weights(const struct compiled *c, const struct plan *p);
/* Copies the fixture's weights, tokens, targets, count and routes to a plan. */
void compiled_bind(const struct compiled *c, const struct plan *p);
/* Binds and runs forward and train. */
void compiled_run(const struct compiled *c);
/* The first update of the weights, by the gradients that compiled_run left. Needs apply. */
void compiled_step(const struct compiled *c);
/* A float value of a plan (from the device, where that is) as doubles in c's arena; BUG where there
 * is none. */
const double *compiled_get(const struct compiled *c, const struct plan *p, const char *name,
                           size_t *n);
/* Gradient of a checkpoint tensor after compiled_run. */
const double *compiled_grad(const struct compiled *c, const char *tensor, size_t *n);
#endif
