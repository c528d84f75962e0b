/* Training as state and one step: data in, gradients over micro-batches, the optimiser's program.
 * The loop, its options and signals are cmd_train.c; saving and resuming trainer_save.c. */
#ifndef STRATA_COMPILER_TRAINER_H
#define STRATA_COMPILER_TRAINER_H
#include "compiler/run.h"
#include "compiler/script.h"
#include "runtime/checkpoint.h"
#include "runtime/dataset.h"
#include "runtime/metrics.h"

/* Non-finite steps in a row that end a run. */
enum { TRAIN_MAX_BAD = 10 };

struct span_f { /* a gradient, or the load of a router, in memory (see session_span) */
    const char *name;
    float *p;
    size_t n;
    uint64_t device;
};
struct trainer {
    struct run run;
    struct tokenizer *tokenizer;               /* NULL for .npy data */
    struct dataset *data;                      /* NULL: random ids */
    struct plan *train, *apply, *loss, *probe; /* loss, probe: NULL where nothing is evaluated */
    int64_t micro, rows;                       /* micro-batches; sequences in one */
    int32_t *inputs, *targets;                 /* of the whole batch of step batch_step */
    double count;                              /* its targets that count */
    uint64_t batch_step;                       /* UINT64_MAX: none was read */
    int32_t *window;                           /* T + 1 */
    VEC(struct span_f) grads;                  /* grad.* in params order, then load.* */
    VEC(struct span_f) tops;                   /* logit_max.*: largest logit per head */
    VEC(struct span_f) loads;                  /* tokens per expert, of every MoE sublayer */
    float **idle;          /* per load and expert: steps in a row without a token (alarms.h) */
    struct script *script; /* a whole step, */
    size_t *micro_run;     /* in it the run of every micro-batch, */
    size_t apply_run;      /* and of the optimiser */
    uint64_t step;         /* steps done */
    uint64_t skipped;      /* of them, left out because something was not finite */
    unsigned bad_in_row;
};
struct step_result {
    float loss, grad_norm;
    float logit_max; /* over all layers; of models whose logits are clipped */
    double lr, seconds;
    bool finite;
    const char *culprit; /* the first tensor whose gradient is not finite, or "loss" */
};

/* Opens data and programs and compiles them; weights are not set yet. Exits on failure. */
void trainer_open(struct trainer *t, struct cli *c, const struct model *m,
                  const struct run_options *o);
/* The same without data: every step trains on random ids, for measuring. Nothing can be evaluated.
 */
void trainer_open_random(struct trainer *t, struct cli *c, const struct model *m,
                         const struct run_options *o);
void trainer_close(struct trainer *t);
/* Puts the step together as a script (trainer_script.c); for trainer_open. */
void trainer_script(struct trainer *t);
/* Fresh weights of the seed, or those of a file (NULL = fresh). Moments are zero. */
void trainer_start(struct trainer *t, const char *weights);
/* Learning rate of step s (spec-contract section 2, schedule). */
double train_lr(const struct train_spec *t, uint64_t s);
/* One step; t->step goes up by one. A step with a non-finite loss or gradient changes nothing else.
 */
struct step_result trainer_step(struct trainer *t);
/* Mean loss over the first `sequences` validation windows (0 = all); -1 where there are none. */
double trainer_validate(struct trainer *t);
/* Adds per-block magnitudes and the entropy per depth site to a metrics line (first validation
 * batch). */
void trainer_probes(struct trainer *t, struct metrics *m);

/* Saves a checkpoint of the state now. */
enum rt_status trainer_save(struct trainer *t, struct ckpt_dir *dir, struct rt_error *err);
/* Continues from the newest valid checkpoint; false where there is none. Refused ones are named on
 * standard error. A checkpoint of another spec or other data is refused; exits on failure. */
bool trainer_resume(struct trainer *t, const char *dir);
#endif
