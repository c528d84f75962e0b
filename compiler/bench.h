/* Measuring a spec's programs: one subject is a model in a session of its own that does whole steps
 * on random tokens. cmd_bench.c alternates subjects and prints. */
#ifndef STRATA_COMPILER_BENCH_H
#define STRATA_COMPILER_BENCH_H
#include "compiler/floor.h"
#include "compiler/trainer.h"
#include "runtime/lm.h"
#include <jansson.h>

enum bench_program { BENCH_train, BENCH_forward, BENCH_decode, BENCH_prefill };

struct bench {
    const char *path;
    const struct model *model;
    enum bench_program program;
    struct trainer t;    /* of other programs than BENCH_train only its run is open */
    struct plan *plan;   /* of other programs than BENCH_train */
    int64_t B, T;        /* of a whole step */
    int64_t calls;       /* of the plan in a step: BENCH_prefill reads a prompt in pieces */
    struct lm *lm;       /* BENCH_decode and BENCH_prefill on a GPU: it runs the plan, */
    struct lm_call call; /* by this call */
    double weights;      /* of `bytes`: of weights, where the program has them in SA_weights */
    double flops; /* of the products and attention in a step, no recomputation, no other op */
    double bytes; /* every named tensor of the programs, once: nothing can move fewer; of decode
                   * only the rows and experts that its tokens need */
    struct {
        double spec, init; /* seconds: reading the spec; initial weights. The rest is in t.run */
    } seconds;
};

struct bench_options {
    enum bench_program program;
    int64_t context; /* BENCH_decode: tokens of every sequence, the one of the step included;
                      * rounded up to whole pages. BENCH_prefill: of the prompt. 0: 1024, and 512 */
    int64_t batch;   /* BENCH_decode: sequences */
};
/* Reads the spec, compiles its programs and sets its initial weights. Exits on failure. A step of
 * BENCH_decode is one more token for every sequence, always at the same position; of BENCH_prefill
 * a whole prompt. */
void bench_open(struct bench *b, struct cli *c, const char *path, const struct bench_options *o,
                const struct run_options *run);
void bench_close(struct bench *b);
/* One step, in seconds. */
double bench_step(struct bench *b);

/* Time by kind of kernel. */
void bench_profile(struct bench *b);
/* One table with a column of milliseconds a step for each of n profiled subjects (1 or 2): for each
 * kernel the best run of each of its calls, so that neighbours on the machine disturb little; for
 * products also the share of `flops` (a second; 0: the speed), for others bytes a second. With
 * `rates`, on a device, also the floor of each kind (of the first subject that has it). */
void bench_profile_print(struct arena *a, struct bench *const *b, size_t n, double flops,
                         const struct floor_rates *rates, struct sb *out);
/* The same of one subject: times, floors and work of every kind in a whole step. */
json_t *bench_profile_json(struct arena *a, const struct bench *b, const struct floor_rates *rates);
/* Operations of a node that count as its work: those of products and attention (not what is
 * computed twice on purpose), 0 for all others. */
double bench_flops(const struct ir_graph *g, ir_id n, struct ir_bind b);
#endif
