/* What a model needs, before anything runs: parameters by part, operations per token, and memory
 * from the same plans that training runs. Needs no compiler and starts no threads. */
#ifndef STRATA_COMPILER_SURVEY_H
#define STRATA_COMPILER_SURVEY_H
#include "compiler/caches.h"
#include "compiler/cli.h"
#include "compiler/kinds.h"

/* Parameters by part; e_score_correction_bias counts as ffn. */
enum survey_part {
    PART_embedding, /* embed_tokens, lm_head */
    PART_attention, /* token mixers */
    PART_ffn,       /* dense ones, shared experts, routers */
    PART_experts,   /* routed experts */
    PART_norm,
    PART_depth, /* queries and key gains of AttnRes */
    PARTS
};
const char *survey_part_name(enum survey_part p);

struct survey {
    int64_t total, active, part[PARTS];
    int64_t B, T; /* sizes of the programs planned: sequences of a micro-batch, positions */
    bool train;   /* false: no train section, memory is that of the forward program */
    double forward_flops;
    double train_flops; /* with gradients, without the update; both per token */
    struct caches served;
    uint64_t cache[CACHES]; /* bytes, of a sequence of served.context tokens */
    struct { /* bytes of a server on a GPU, weights and caches as they are stored there; else 0 */
        uint64_t weights, caches, activations, all;
    } serving;
    double graph_bytes; /* graphs and plans, in this process as in a run */
    struct {            /* bytes */
        uint64_t weights, gradients, optimizer, inputs, activations, micro_sums, threads;
        uint64_t library; /* of cuBLAS, on a GPU */
        unsigned num_threads;
        uint64_t peak; /* on a GPU what lies there: neither threads nor graphs */
    } memory;
};
/* Planned for a CPU, or (`gpu` is not NULL) for a GPU of that architecture, as sm_90a. Exits with
 * diagnostics where a program cannot be made. */
struct survey survey_model(struct cli *c, const struct model *m, int64_t threads, const char *gpu);
/* Kernels of a whole training step (of a forward run, without a train section) on a GPU of that
 * architecture, by kind, sorted. In c's arena. */
const struct kinds *survey_kinds(struct cli *c, const struct model *m, const char *gpu,
                                 const struct floor_rates *rates);
#endif
