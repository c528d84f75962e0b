/* What a model needs, before anything runs: parameters by part, operations per token, and memory
 * from the same plans that training runs. Needs no compiler and starts no threads. */
#ifndef STRATA_COMPILER_SURVEY_H
#define STRATA_COMPILER_SURVEY_H
#include "compiler/cli.h"

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

/* What an incremental program keeps of a sequence, by what it is for. */
enum survey_cache {
    CACHE_keys,   /* attention: keys and values of all positions, or of the window */
    CACHE_latent, /* mla: latents and shared keys */
    CACHE_conv,   /* kda: the last inputs of the short convolutions */
    CACHE_state,  /* kda: the recurrent state */
    CACHES
};
const char *survey_cache_name(enum survey_cache c);

struct survey {
    int64_t total, active, part[PARTS];
    int64_t B, T; /* sizes of the programs planned: sequences of a micro-batch, positions */
    bool train;   /* false: no train section, memory is that of the forward program */
    double forward_flops;
    double train_flops;     /* with gradients, without the update; both per token */
    int64_t context;        /* tokens that `cache` is for: serve.max_context, in whole pages */
    uint64_t cache[CACHES]; /* bytes */
    double graph_bytes;     /* graphs and plans, in this process as in a run */
    struct {                /* bytes */
        uint64_t weights, gradients, optimizer, inputs, activations, micro_sums, threads;
        uint64_t library; /* of cuBLAS, on a GPU */
        unsigned num_threads;
        uint64_t peak; /* on a GPU what lies there: neither threads nor graphs */
    } memory;
};
/* Planned for a CPU, or (`gpu` is not NULL) for a GPU of that architecture, as sm_90a. Exits with
 * diagnostics where a program cannot be made. */
struct survey survey_model(struct cli *c, const struct model *m, int64_t threads, const char *gpu);
#endif
