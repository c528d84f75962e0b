/* What quantised weights cost: the loss with all of them, and with each part of the model alone. */
#ifndef STRATA_COMPILER_QUANTISE_H
#define STRATA_COMPILER_QUANTISE_H
#include "compiler/run.h"

enum quantised_part {
    QUANT_embedding, /* the table; the head too where they are tied */
    QUANT_head,
    QUANT_attention, /* projections of mixers, by their type */
    QUANT_kda,
    QUANT_mla,
    QUANT_ffn,     /* dense ones */
    QUANT_experts, /* routed ones, with the projections to and from their latent space */
    QUANT_shared,
    QUANT_sources, /* no weights: finished blocks, as the sites of later blocks read them */
    QUANT_PARTS
};
struct quantised {
    int64_t
        weights[QUANT_PARTS]; /* that are stored so; of QUANT_sources: blocks. 0: no such part */
    double loss[QUANT_PARTS]; /* with this part alone */
    double plain, all;        /* with none, with all but the sources */
};
const char *quantised_name(enum quantised_part p);

/* The part of a parameter that a serving program stores in r->store; QUANT_PARTS: it stays
 * float32. */
enum quantised_part quantised_part(const struct model *m, const struct param *p);
/* Which parameters (by index) a serving program of this storage has in panels; in the arena. */
bool *quantised_params(struct arena *a, const struct model *m, const struct params *ps,
                       enum ir_store store);
/* Rounds rows of k numbers as the storage does (ir/panel.h). */
void quantise_rows(enum ir_store store, float *x, int64_t rows, int64_t k);

/* The loss of every part. `loss` and `sources` (NULL where no site reads finished blocks) are ready
 * plans of BUILD_loss, the second with build_options.sources, with their inputs in place. Weights
 * are changed in memory, and afterwards as they were. RT_machine without memory for a copy of the
 * largest part; RT_user where weights are not finite. */
enum rt_status quantise_losses(struct run *r, struct plan *loss, struct plan *sources,
                               struct quantised *out, struct rt_error *err);
#endif
