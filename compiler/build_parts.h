/* What the files of the model builder share. */
#ifndef STRATA_COMPILER_BUILD_PARTS_H
#define STRATA_COMPILER_BUILD_PARTS_H
#include "compiler/autodiff.h"
#include "compiler/build.h"

struct builder {
    const struct model *m;
    const struct params *ps;
    const struct build_options *options;
    struct ir_graph *g;
    /* of the decode program, else IR_NONE: pages i32[B * context / 64], states and past i32[B] */
    ir_id pages, states, past;
    VEC(struct top {
        const char *layer; /* model.layers.N */
        ir_id id;
    })
    tops; /* largest logit per head, where train.optimizer.qk_clip asks for it */
    VEC(struct load {
        const char *name;
        ir_id id;
    })
    loads; /* tokens per expert of every MoE sublayer */
};

/* Formatted text that lives as long as the graph. */
const char *b_name(struct builder *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A parameter by its IR name. */
ir_id b_param(struct builder *b, const char *name);
/* The same for one that only products read as their second operand, transposed, or embeddings; as
 * `parts` matrices where that is not 0. */
ir_id b_weight(struct builder *b, const char *name, int64_t parts);
/* The same for one that absorbed attention reads: on a GPU in bf16 where other weights are. */
ir_id b_weight_absorbed(struct builder *b, const char *name);
/* Whether products round their operands to bf16. */
bool b_bf16(const struct builder *b);
/* bf16 rounding of a value where the precision asks for it. */
ir_id b_round(struct builder *b, ir_id x);
/* x W^T for a parameter W. Serving programs store it in build_options.store; of b_linear_gate in
 * float32 or bf16, never int8; of b_linear_exact in float32, or bf16 under bf16 products on a GPU.
 */
ir_id b_linear(struct builder *b, ir_id x, const char *w, const char *name);
ir_id b_linear_gate(struct builder *b, ir_id x, const char *w, const char *name);
ir_id b_linear_exact(struct builder *b, ir_id x, const char *w, const char *name);
/* RMSNorm over the columns with the model eps; b_norm follows model.norm.type. */
ir_id b_rmsnorm(struct builder *b, ir_id x, const char *gain);
ir_id b_norm(struct builder *b, ir_id x, const char *gain);
/* The last `rotary` elements of every head turned by its row's position, where the mixer has rope.
 */
ir_id b_rope(struct builder *b, const struct mixer *m, ir_id x, int64_t heads, int64_t head_dim,
             int64_t rotary);
ir_id b_activation(struct builder *b, enum activation act, ir_id x, ir_id up);
/* ---- caches of the decode program (build_cached.c) ---- */

/* Whether the program is incremental: mixers continue from caches. */
static inline bool b_cached(const struct builder *b)
{
    return b->past != IR_NONE;
}
/* The cache NAME of `rows` rows a state, f32[states * rows, cols]; its new value is given to
 * b_cache_put. */
ir_id b_cache_state(struct builder *b, const char *name, int64_t rows, int64_t cols);
void b_cache_put(struct builder *b, const char *name, ir_id now);
/* The paged cache NAME with x [N,C], rounded by b_round, at the positions of the tokens. It is bf16
 * where that keeps every bit of x and whoever reads it can: of keys and values in serving programs,
 * of latents in those for a GPU. */
ir_id b_cache_write(struct builder *b, const char *name, ir_id x, bool latent);
/* The name of a layer's cache: "cache.POOL.layers.N.what" for p = "model.layers.N"; pools are page
 * and state. */
const char *b_cache_name(struct builder *b, const char *pool, const char *p, const char *what);

/* What the heads of an attention node give; notes their largest logits where they are clipped. */
ir_id b_attended(struct builder *b, const struct mixer *m, ir_id attention, const char *p);
/* Sublayers on a normalised input x [N,D]; p is "model.layers.N". */
ir_id b_mla(struct builder *b, const struct mixer *m, ir_id x, const char *p);
ir_id b_mixer(struct builder *b, const struct mixer *m, ir_id x, const char *p);
ir_id b_kda(struct builder *b, const struct mixer *m, ir_id x, const char *p);
ir_id b_ffn(struct builder *b, const struct ffn *f, ir_id x, const char *p);
#endif
