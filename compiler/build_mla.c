/* Multi-head latent attention (kimi-linear.md 3) as a graph. */
#include "compiler/build_parts.h"
#include <math.h>

struct mla {
    struct builder *b;
    const struct mixer *m;
    const char *p; /* "model.layers.N" */
    ir_id in;      /* product of the weights that read the input, but for the gate's */
    int64_t taken; /* its columns so far */
};

static ir_id linear(struct mla *k, ir_id x, const char *name)
{
    struct builder *b = k->b;
    return b_linear(b, x, b_name(b, "%s.self_attn.%s_proj.weight", k->p, name),
                    b_name(b, "%s.%s", k->p, name));
}

static ir_id norm(struct mla *k, ir_id x, const char *name)
{
    return b_rmsnorm(k->b, x, b_name(k->b, "%s.self_attn.%s_layernorm.weight", k->p, name));
}

/* The next columns of the merged product. */
static ir_id take(struct mla *k, int64_t cols)
{
    k->taken += cols;
    return ir_slice(k->b->g, k->in, 1, k->taken - cols, k->taken);
}

/* What both forms of the mixer need: q with its last r elements per head turned, the latent, the
 * shared part of the keys, turned too, and the gate (IR_NONE where there is none). */
struct parts {
    ir_id q, c, kr, gate;
};

static struct parts project(struct mla *k, ir_id x)
{
    const struct mixer *m = k->m;
    int64_t r = m->qk_rope_head_dim, qk = m->qk_nope_head_dim + r;
    struct parts y = {.gate = IR_NONE};
    k->in = linear(k, x, "in");
    if (m->q_lora_rank)
        y.q = linear(k, norm(k, take(k, m->q_lora_rank), "q_a"), "q_b");
    else
        y.q = take(k, m->num_heads * qk);
    y.c = norm(k, take(k, m->kv_lora_rank), "kv_a");
    y.kr = take(k, r);
    if (m->output_gate) {
        struct builder *b = k->b;
        ir_id gate = b_linear_gate(b, x, b_name(b, "%s.self_attn.g_proj.weight", k->p),
                                   b_name(b, "%s.g", k->p));
        y.gate = ir_unary(b->g, OP_sigmoid, gate);
    }
    y.q = b_round(k->b, b_rope(k->b, m, y.q, m->num_heads, qk, r));
    y.kr = b_round(k->b, b_rope(k->b, m, y.kr, 1, r, r));
    return y;
}

/* Attention over the tokens of the program, keys and values written out. */
static ir_id attend(struct mla *k, const struct parts *y)
{
    struct builder *b = k->b;
    int64_t h = k->m->num_heads, n = k->m->qk_nope_head_dim, qk = n + k->m->qk_rope_head_dim;
    ir_id kv = b_round(b, linear(k, y->c, "kv_b"));
    ir_id keys = ir_add(b->g, OP_mla_keys, SRCS(kv, y->kr),
                        ATTRS(A_INT(heads, h), A_INT(head_dim, n), A_INT(v_dim, k->m->v_head_dim)),
                        b_name(b, "%s.keys", k->p));
    ir_id t = ir_add(b->g, OP_attention, SRCS(y->q, ir_get(b->g, keys, 0), ir_get(b->g, keys, 1)),
                     ATTRS(A_INT(heads, h), A_INT(kv_heads, h), A_INT(head_dim, qk),
                           A_INT(v_dim, k->m->v_head_dim), A_NUM(scale, 1 / sqrt((double)qk))),
                     b_name(b, "%s.attention", k->p));
    return b_attended(b, k->m, t, k->p);
}

/* Absorbed, over the cache of latents and shared keys. */
static ir_id attend_cached(struct mla *k, const struct parts *y)
{
    struct builder *b = k->b;
    int64_t n = k->m->qk_nope_head_dim;
    ir_id now = ir_add(b->g, OP_concat, SRCS(b_round(b, y->c), y->kr), ATTRS(A_INT(axis, 1)), NULL);
    ir_id cache = b_cache_write(b, b_cache_name(b, "page", k->p, "latent"), now, true);
    ir_id w = b_weight_absorbed(b, b_name(b, "%s.self_attn.kv_b_proj.weight", k->p));
    return ir_add(b->g, OP_mla_cached, SRCS(y->q, w, cache, b->pages, b->past),
                  ATTRS(A_INT(heads, k->m->num_heads), A_INT(head_dim, n),
                        A_INT(v_dim, k->m->v_head_dim),
                        A_NUM(scale, 1 / sqrt((double)(n + k->m->qk_rope_head_dim))),
                        A_INT(context, b->options->context)),
                  b_name(b, "%s.attention", k->p));
}

/* The output product; the gate meets the attention's result before any rounding. */
static ir_id finish(struct mla *k, ir_id o, ir_id gate)
{
    return linear(k, gate == IR_NONE ? o : ir_binary(k->b->g, OP_mul, o, gate), "o");
}

ir_id b_mla(struct builder *b, const struct mixer *m, ir_id x, const char *p)
{
    struct mla mla = {b, m, p, IR_NONE, 0}, *k = &mla;
    struct parts y = project(k, x);
    return finish(k, b_cached(b) ? attend_cached(k, &y) : attend(k, &y), y.gate);
}
