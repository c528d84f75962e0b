/* Model -> graphs of stage T. Training and serving come from the same builder, so that a served
 * logit is a trained logit. Arithmetic: spec-contract section 2. */
#ifndef STRATA_COMPILER_BUILD_H
#define STRATA_COMPILER_BUILD_H
#include "compiler/params.h"

enum build_program {
    BUILD_forward, /* tokens i32[N] -> logits f32[N,V] */
    BUILD_loss,    /* tokens, targets i32[N], count f32[] -> loss f32[] = sum of nll / count */
    BUILD_train,   /* the loss program; autodiff adds grad.NAME for every trainable parameter, and
                    * load.model.layers.N.block_sparse_moe (tokens per expert, f32[E]) for every
                    * router, and logit_max.model.layers.N (f32[heads]) where logits are clipped */
    BUILD_decode,  /* one step of incremental decoding, or of prefill: B sequences of T new tokens:
                    * tokens i32[N], past i32[B] (tokens before them), slots i32[B] (the cache slot
                    * of each sequence, all different) -> logits f32[B,V] of each sequence's last
                    * token. Caches are inputs cache.NAME of constant size, replaced by outputs
                    * new.cache.NAME; with past 0 what a slot held does not matter. */
};
struct build_options {
    bool depth_weights; /* also outputs depth.SITE f32[N,n]: the weights of every active site */
    bool probes;        /* also outputs probe.* (magnitudes and entropies, for metrics) */
    /* BUILD_decode: slots of the caches, positions of a slot (past + T at most), the most tokens of
     * a sequence in one call, and whether logits are those of all tokens, f32[N,V] */
    int64_t slots, context, chunk;
    bool all_logits;
};

/* Inputs are named tokens, targets, count, and router biases by their parameter's name. */
struct ir_graph *build_model(struct arena *a, const struct model *m, const struct params *ps,
                             enum build_program program, const struct build_options *o);

/* The optimiser as a graph: inputs NAME, grad.NAME, m.NAME, v.NAME (AdamW; Muon matrices: m.NAME
 * only) for every trainable parameter, bias and load of balanced routers, logit_max of
 * clipped layers, loss f32[], hyper
 * f32[4]; outputs: new.NAME ..., ctl f32[4] and sumsq f64[trainable tensors in params order]. */
struct ir_graph *build_apply(struct arena *a, const struct model *m, const struct params *ps);
/* Whether a parameter is updated by Muon (else AdamW), under the model's optimiser. */
bool build_uses_muon(const struct model *m, const struct param *p);
/* Whether train.optimizer.qk_clip bounds the logits of this mixer. */
bool build_clips_logits(const struct model *m, const struct mixer *x);
/* Adds gradients: outputs grad.NAME of the output "loss" for every `param` node of g (in place). */
void build_gradients(struct ir_graph *g);
#endif
