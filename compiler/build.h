/* Model -> graphs of stage T. Training and serving come from the same builder, so that a served
 * logit is a trained logit. Arithmetic: spec-contract section 2. */
#ifndef STRATA_COMPILER_BUILD_H
#define STRATA_COMPILER_BUILD_H
#include "compiler/params.h"
#include "panel.h"

enum build_program {
    BUILD_forward, /* tokens i32[N] -> logits f32[N,V] */
    BUILD_loss,    /* tokens, targets i32[N], count f32[] -> loss f32[] = sum of nll / count */
    BUILD_train,   /* the loss program; autodiff adds grad.NAME for every trainable parameter, and
                    * load.model.layers.N.block_sparse_moe (tokens per expert, f32[E]) for every
                    * router, and logit_max.model.layers.N (f32[heads]) where logits are clipped */
    BUILD_decode,  /* one step of incremental decoding, or of prefill: B sequences of T new tokens:
                    * tokens i32[N], past i32[B] (tokens before them), pages i32[B * context / 64]
                    * (page of every 64 positions; entries behind the last token are not read),
                    * states i32[B] (all different) -> logits f32[B,V] of each sequence's last
                    * token. Inputs that no layer needs are absent. Caches are inputs of constant
                    * size, cache.page.NAME (64 rows a page) and cache.state.NAME (so many rows a
                    * state), replaced by outputs new.cache...; with past 0 it does not matter
                    * what a page or state held. */
};
struct build_options {
    /* also outputs depth.SITE f32[N,n]: the weights of every active site; in BUILD_decode it is
     * depth.partial.SITE where the last source is the running sum of the site's own block */
    bool depth_weights;
    /* finished blocks, as the depth sites of later blocks read them, are rounded per token: to
     * bf16, or to i8 as ir/panel.h rounds a row. STORE_none: they are not */
    enum ir_store sources;
    /* the experts of every token are an input, routes.model.layers.N.block_sparse_moe i32[N,k]
     * (ids that differ, in any order), not the router's choice; it gives their weights */
    bool given_routes;
    bool probes; /* also outputs probe.* (magnitudes and entropies, for metrics) */
    /* BUILD_decode: pages and states of the caches, positions of a sequence (past + T at most, a
     * multiple of 64), and whether logits are those of all tokens, f32[N,V] */
    int64_t pages, states, context;
    bool all_logits;
    /* BUILD_decode: what matrices of products and the embedding table are stored as (panels on a
     * CPU, rows on a GPU), which puts all parameters into SA_weights (panel.h); then keys, values
     * and, on a GPU, latents are kept in bf16 where products round to it anyway. Gates that read
     * the input are never i8 (b_linear_gate); the router's matrix, low-rank gates and decays, and
     * everything that is no such matrix, stay float32. STORE_none: all are named values. */
    enum ir_store store;
};
/* The storage on a CPU or a GPU that changes no bit of the model's logits (but what absorbed MLA is
 * on a GPU, where kv_b_proj is stored as its products in training round it): where products round
 * to bf16, bf16, else float32. */
enum ir_store build_store(const struct model *m, bool gpu);

/* Pages of a sequence of so many tokens. */
static inline int64_t build_pages(int64_t tokens)
{
    return (tokens + IR_PAGE - 1) / IR_PAGE;
}

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
