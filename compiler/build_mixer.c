/* Sequence mixers. */
#include "compiler/build_parts.h"
#include <math.h>

ir_id b_rope(struct builder *b, const struct mixer *m, ir_id x, int64_t heads, int64_t head_dim,
             int64_t rotary)
{
    if (!m->rope) return x;
    enum ir_sym rows = b_cached(b) ? SYM_N : SYM_T;
    ir_type_id t = ir_type2(b->g, IR_f32, dim_sym(rows, 1), dim_const(rotary));
    ir_id table = ir_add_typed(b->g, OP_rope_table, t, &b->past, b_cached(b),
                               ATTRS(A_NUM(theta, m->theta)), "rope_table");
    const struct ir_attr attr[] = {A_INT(heads, heads), A_INT(head_dim, head_dim),
                                   A_INT(inverse, 0), A_INT(rotary, rotary)};
    return ir_add(b->g, OP_rope, SRCS(x, table), attr, rotary == head_dim ? 3 : 4, NULL);
}

/* RMSNorm of every head by itself: the heads of all tokens as rows. */
static ir_id head_norm(struct builder *b, ir_id x, int64_t heads, int64_t head_dim,
                       const char *gain)
{
    ir_type_id whole = ir_at(b->g, x)->type;
    ir_type_id rows =
        ir_type2(b->g, IR_f32, dim_scale(ir_rows(b->g, x), heads), dim_const(head_dim));
    return ir_reshape(b->g, b_rmsnorm(b, ir_reshape(b->g, x, rows), gain), whole);
}

bool build_clips_logits(const struct model *m, const struct mixer *x)
{
    return m->train.qk_clip > 0 &&
           (x->type == MIXER_mla || (x->type == MIXER_attention && !x->qk_norm));
}

ir_id b_attended(struct builder *b, const struct mixer *m, ir_id attention, const char *p)
{
    if (build_clips_logits(b->m, m)) {
        struct top top = {p, ir_unary(b->g, OP_colmax, ir_get(b->g, attention, 2))};
        vec_push(b->g->arena, &b->tops, top);
    }
    return ir_get(b->g, attention, 0);
}

/* The heads' outputs, over the tokens of the program or over caches. */
static ir_id attend(struct builder *b, const struct mixer *m, const ir_id qkv[3], const char *p)
{
    const char *name = b_name(b, "%s.attention", p);
    double scale = 1 / sqrt((double)m->head_dim);
    if (!b_cached(b))
        return b_attended(b, m,
                          ir_add(b->g, OP_attention, qkv, 3,
                                 ATTRS(A_INT(heads, m->num_heads), A_INT(kv_heads, m->num_kv_heads),
                                       A_INT(head_dim, m->head_dim), A_INT(window, m->window),
                                       A_NUM(scale, scale)),
                                 name),
                          p);
    ir_id k = b_cache_write(b, b_cache_name(b, "page", p, "k"), qkv[1], false);
    ir_id v = b_cache_write(b, b_cache_name(b, "page", p, "v"), qkv[2], false);
    return ir_add(b->g, OP_attention_cached, SRCS(qkv[0], k, v, b->pages, b->past),
                  ATTRS(A_INT(heads, m->num_heads), A_INT(kv_heads, m->num_kv_heads),
                        A_INT(head_dim, m->head_dim), A_INT(window, m->window), A_NUM(scale, scale),
                        A_INT(context, b->options->context)),
                  name);
}

static ir_id attention(struct builder *b, const struct mixer *m, ir_id x, const char *p)
{
    int64_t q = m->num_heads * m->head_dim, kv = m->num_kv_heads * m->head_dim;
    ir_id y[3];
    if (m->qk_norm) {
        static const char *const one[] = {"q", "k", "v"};
        for (int i = 0; i < 3; i++)
            y[i] = b_linear(b, x, b_name(b, "%s.self_attn.%s_proj.weight", p, one[i]),
                            b_name(b, "%s.%s", p, one[i]));
        y[0] = head_norm(b, y[0], m->num_heads, m->head_dim,
                         b_name(b, "%s.self_attn.q_norm.weight", p));
        y[1] = head_norm(b, y[1], m->num_kv_heads, m->head_dim,
                         b_name(b, "%s.self_attn.k_norm.weight", p));
    } else {
        ir_id qkv =
            b_linear(b, x, b_name(b, "%s.self_attn.qkv_proj.weight", p), b_name(b, "%s.qkv", p));
        y[0] = ir_slice(b->g, qkv, 1, 0, q);
        y[1] = ir_slice(b->g, qkv, 1, q, q + kv);
        y[2] = ir_slice(b->g, qkv, 1, q + kv, q + 2 * kv);
    }
    y[0] = b_rope(b, m, y[0], m->num_heads, m->head_dim, m->head_dim);
    y[1] = b_rope(b, m, y[1], m->num_kv_heads, m->head_dim, m->head_dim);
    for (int i = 0; i < 3; i++) y[i] = b_round(b, y[i]);
    return b_linear(b, attend(b, m, y, p), b_name(b, "%s.self_attn.o_proj.weight", p),
                    b_name(b, "%s.o", p));
}

ir_id b_mixer(struct builder *b, const struct mixer *m, ir_id x, const char *p)
{
    switch (m->type) {
    case MIXER_attention: return attention(b, m, x, p);
    case MIXER_kda: return b_kda(b, m, x, p);
    case MIXER_mla: return b_mla(b, m, x, p);
    }
    BUG("mixer %s has no type", m->name);
}
