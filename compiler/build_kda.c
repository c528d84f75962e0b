/* Kimi Delta Attention (kimi-linear.md 2.1) as a graph. */
#include "compiler/build_parts.h"
#include <math.h>

struct kda {
    struct builder *b;
    const struct mixer *m;
    const char *p; /* "model.layers.N" */
    ir_id in;      /* product of weights that read the input: queries, keys, values; then gates */
    int64_t taken; /* its columns so far */
};

static ir_id param(struct kda *k, const char *name)
{
    return b_param(k->b, b_name(k->b, "%s.self_attn.%s", k->p, name));
}

static ir_id linear(struct kda *k, ir_id x, const char *name)
{
    struct builder *b = k->b;
    return b_linear(b, x, b_name(b, "%s.self_attn.%s_proj.weight", k->p, name),
                    b_name(b, "%s.%s", k->p, name));
}

/* Low-rank gates and decays, which stay float32. */
static ir_id low_linear(struct kda *k, ir_id x, const char *name)
{
    struct builder *b = k->b;
    return b_linear_exact(b, x, b_name(b, "%s.self_attn.%s_proj.weight", k->p, name),
                          b_name(b, "%s.%s", k->p, name));
}

static ir_id gate_linear(struct kda *k, ir_id x, const char *name)
{
    struct builder *b = k->b;
    return b_linear_gate(b, x, b_name(b, "%s.self_attn.%s_proj.weight", k->p, name),
                         b_name(b, "%s.%s", k->p, name));
}

/* The next columns of the merged product. */
static ir_id take(struct kda *k, int64_t cols)
{
    k->taken += cols;
    return ir_slice(k->b->g, k->in, 1, k->taken - cols, k->taken);
}

/* The heads of all tokens as rows. */
static ir_id head_rows(struct kda *k, ir_id x)
{
    struct ir_graph *g = k->b->g;
    struct ir_dim rows = dim_scale(ir_rows(g, x), k->m->num_heads);
    return ir_reshape(g, x, ir_type2(g, IR_f32, rows, dim_const(k->m->head_dim)));
}

static ir_id short_conv(struct kda *k, const char *which)
{
    ir_id w = param(k, b_name(k->b, "%s_conv1d.weight", which));
    struct builder *b = k->b;
    ir_id x = take(k, k->m->num_heads * k->m->head_dim);
    const char *name = b_name(b, "%s.%s_conv", k->p, which);
    if (!b_cached(b) || k->m->conv_size == 1) /* one tap looks at no earlier token */
        return ir_add(b->g, OP_short_conv, SRCS(x, w), NO_ATTRS, name);
    const char *cache = b_cache_name(b, "state", k->p, b_name(b, "%s_conv", which));
    ir_id state = b_cache_state(b, cache, k->m->conv_size - 1, ir_cols(b->g, x).add);
    ir_id t = ir_add(b->g, OP_conv_cached, SRCS(x, w, state, b->states, b->past), NO_ATTRS, name);
    b_cache_put(b, cache, ir_get(b->g, t, 1));
    return ir_get(b->g, t, 0);
}

/* Every head of x at length 1. */
static ir_id unit(struct kda *k, ir_id x)
{
    struct ir_graph *g = k->b->g;
    ir_type_id whole = ir_at(g, x)->type;
    ir_id h = head_rows(k, x);
    ir_id sum = ir_unary(g, OP_rowsum, ir_binary(g, OP_mul, h, h));
    ir_id r = ir_unary(g, OP_rsqrt, ir_binary(g, OP_add, sum, ir_const(g, 1e-6)));
    return ir_reshape(g, ir_binary(g, OP_mul, h, r), whole);
}

/* Log decay of every channel, at most 0. */
static ir_id decay(struct kda *k, ir_id low)
{
    struct ir_graph *g = k->b->g;
    const struct mixer *m = k->m;
    ir_id z = ir_binary(g, OP_add, low_linear(k, low, "f_b"), param(k, "dt_bias"));
    ir_id a = ir_add(g, OP_repeat, SRCS(ir_unary(g, OP_exp, param(k, "A_log"))),
                     ATTRS(A_INT(times, m->head_dim)), b_name(k->b, "%s.A", k->p));
    if (m->gate == GATE_softplus)
        return ir_unary(g, OP_neg, ir_binary(g, OP_mul, ir_unary(g, OP_softplus, z), a));
    ir_id u = ir_unary(g, OP_sigmoid, ir_binary(g, OP_mul, z, a));
    return ir_binary(g, OP_mul, u, ir_const(g, m->lower_bound));
}

/* The recurrence over (q, k, v, g, beta), from nothing or from the state of the sequence. */
static ir_id recur(struct kda *k, const ir_id s[5])
{
    struct builder *b = k->b;
    const struct ir_attr attr[] = {A_INT(heads, k->m->num_heads),
                                   A_NUM(scale, 1 / sqrt((double)k->m->head_dim))};
    const char *name = b_name(b, "%s.kda", k->p);
    if (!b_cached(b)) return ir_add(b->g, OP_kda, s, 5, attr, 2, name);
    const char *cache = b_cache_name(b, "state", k->p, "S");
    ir_id state = b_cache_state(b, cache, k->m->num_heads * k->m->head_dim, k->m->head_dim);
    ir_id t = ir_add(b->g, OP_kda_cached,
                     SRCS(s[0], s[1], s[2], s[3], s[4], state, b->states, b->past), attr, 2, name);
    b_cache_put(b, cache, ir_get(b->g, t, 1));
    return ir_get(b->g, t, 0);
}

ir_id b_kda(struct builder *b, const struct mixer *m, ir_id x, const char *p)
{
    struct kda kda = {b, m, p, IR_NONE, 0}, *k = &kda;
    struct ir_graph *g = b->g;
    bool low_rank = m->output_gate_rank == GATE_low_rank;
    k->in = linear(k, x, "in");
    ir_id s[5];
    s[0] = b_round(b, unit(k, short_conv(k, "q")));
    s[1] = b_round(b, unit(k, short_conv(k, "k")));
    s[2] = b_round(b, short_conv(k, "v"));
    k->in = gate_linear(k, x, "gates");
    k->taken = 0;
    s[3] = decay(k, take(k, m->head_dim));
    ir_id gate = low_rank ? low_linear(k, take(k, m->head_dim), "g_b") : gate_linear(k, x, "g");
    s[4] = ir_unary(g, OP_sigmoid, take(k, m->num_heads));
    ir_id o = recur(k, s);
    ir_type_id whole = ir_at(g, o)->type;
    o = b_rmsnorm(b, head_rows(k, o), b_name(b, "%s.self_attn.o_norm.weight", p));
    o = ir_binary(g, OP_mul, o, ir_unary(g, OP_sigmoid, head_rows(k, gate)));
    return linear(k, ir_reshape(g, o, whole), "o");
}
