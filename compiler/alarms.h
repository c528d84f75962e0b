/* Alarms of a training run: things that a loss curve shows too late. Each is one sentence on
 * standard error and the field "alarm" of that step's metrics line; none of them stops a run. */
#ifndef STRATA_COMPILER_ALARMS_H
#define STRATA_COMPILER_ALARMS_H
#include "compiler/trainer.h"

/* Steps in a row without a token after which an expert counts as dead. */
enum { ALARM_DEAD_STEPS = 100 };

/* Weights before the first step: a tensor with a value that is not finite, or a matrix that is
 * constant, which no training brings back (a stack of zeros that a loader forgot). NULL where there
 * is none; else a sentence in the arena that names the first few. */
const char *alarm_weights(struct arena *a, const struct params *ps, float *const *weights);
/* The loss of step 0 of fresh weights: ln V + D std^2 / 2 is expected, since logits are normal with
 * variance D std^2. NULL within ALARM_LOSS nats of it. */
#define ALARM_LOSS 0.5
const char *alarm_first_loss(struct arena *a, const struct model *m, double loss);

/* How evenly the tokens of a step fell on the experts. */
struct balance_state {
    int64_t idle;    /* experts without a token in this step, of all layers */
    double max_load; /* largest load over the mean load of its layer */
};
/* Counts the loads of a step; idle[i] (one per load, E floats each) is how many steps in a row an
 * expert has had no token, and goes on. `dead` is a sentence in the arena where an expert has just
 * reached ALARM_DEAD_STEPS, else NULL. */
struct balance_state alarm_loads(struct arena *a, const struct span_f *load, float *const *idle,
                                 size_t n, const char **dead);
#endif
