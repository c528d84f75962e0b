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
                    * router */
};
struct build_options {
    bool depth_weights; /* also outputs depth.SITE f32[N,n]: the weights of every active site */
    bool probes;        /* also outputs probe.* (magnitudes and entropies, for metrics) */
};

/* Inputs are named tokens, targets, count, and router biases by their parameter's name. */
struct ir_graph *build_model(struct arena *a, const struct model *m, const struct params *ps,
                             enum build_program program, const struct build_options *o);

/* The optimiser as a graph: inputs NAME, grad.NAME, m.NAME, v.NAME (AdamW; Muon matrices: m.NAME
 * only) for every trainable parameter, bias and load of balanced routers, loss f32[], hyper
 * f32[4]; outputs: new.NAME ..., ctl f32[4] and sumsq f64[trainable tensors in params order]. */
struct ir_graph *build_apply(struct arena *a, const struct model *m, const struct params *ps);
/* Whether a parameter is updated by Muon (else AdamW), under the model's optimiser. */
bool build_uses_muon(const struct model *m, const struct param *p);
/* Adds gradients: outputs grad.NAME of the output "loss" for every `param` node of g (in place). */
void build_gradients(struct ir_graph *g);
#endif
