/* Feed-forward sublayers: the dense MLP and the mixture of experts. */
#include "compiler/build_parts.h"

/* down(act(gate x, up x)) with gate and up as one product. */
static ir_id mlp(struct builder *b, ir_id x, int64_t width, enum activation act, const char *p)
{
    ir_id h = b_linear(b, x, b_name(b, "%s.gate_up_proj.weight", p), b_name(b, "%s.gate_up", p));
    ir_id y = b_activation(b, act, ir_slice(b->g, h, 1, 0, width),
                           ir_slice(b->g, h, 1, width, 2 * width));
    return b_linear(b, y, b_name(b, "%s.down_proj.weight", p), b_name(b, "%s.down", p));
}

static ir_id router_bias(struct builder *b, const struct ffn *f, const char *p)
{
    if (f->balance == BALANCE_bias)
        return b_param(b, b_name(b, "%s.gate.e_score_correction_bias", p));
    ir_type_id t = ir_type1(b->g, IR_f32, dim_const(f->num_experts));
    return ir_add_typed(b->g, OP_const, t, NO_SRCS, ATTRS(A_NUM(value, 0)), NULL);
}

/* The matrices of all experts as [E,n,k]. Panels are cut by what the node says, so there it says
 * so; elsewhere it has its own dims in all programs. */
static ir_id stack(struct builder *b, const char *name, int64_t e, int64_t n, int64_t k)
{
    if (b->options->store) return b_weight(b, name, e);
    ir_type_id t = type_add(b->g->types, IR_f32, 3,
                            (struct ir_dim[]){dim_const(e), dim_const(n), dim_const(k)});
    return ir_reshape(b->g, b_param(b, name), t);
}

/* The routed experts on x [N,d] -> [N,d]: sort assignments by expert, two grouped products,
 * combine. */
static ir_id routed(struct builder *b, const struct ffn *f, ir_id x, ir_id ids, ir_id w,
                    const char *p)
{
    struct ir_graph *g = b->g;
    int64_t e = f->num_experts, width = f->intermediate_size, k = f->experts_per_token;
    int64_t d = ir_cols(g, x).add;
    ir_id sorted =
        ir_add(g, OP_moe_sort, SRCS(ids), ATTRS(A_INT(experts, e)), b_name(b, "%s.sort", p));
    ir_id off = ir_get(g, sorted, 0), order = ir_get(g, sorted, 1), place = ir_get(g, sorted, 2);
    ir_id xg = ir_add(g, OP_moe_gather, SRCS(x, order, place), ATTRS(A_INT(k, k)), NULL);
    ir_id w13 = stack(b, b_name(b, "%s.experts.w13", p), e, 2 * width, d);
    ir_id h = ir_add(g, OP_grouped_matmul, SRCS(xg, w13, off),
                     ATTRS(A_INT(tb, 1), A_INT(bf16, b_bf16(b))), b_name(b, "%s.w13", p));
    ir_id y = b_activation(b, f->activation, ir_slice(g, h, 1, 0, width),
                           ir_slice(g, h, 1, width, 2 * width));
    ir_id w2 = b_weight(b, b_name(b, "%s.experts.w2", p), 0);
    y = ir_add(g, OP_grouped_matmul, SRCS(y, w2, off), ATTRS(A_INT(tb, 1), A_INT(bf16, b_bf16(b))),
               b_name(b, "%s.w2", p));
    ir_type_id load_t = ir_type1(g, IR_f32, dim_const(e));
    struct load load = {p, ir_add_typed(g, OP_moe_load, load_t, SRCS(off), NO_ATTRS, NULL)};
    vec_push(g->arena, &b->loads, load);
    return ir_add(g, OP_moe_combine, SRCS(y, w, order, place), ATTRS(A_INT(k, k)),
                  b_name(b, "%s.combine", p));
}

/* Experts of every token and their weights. */
static void route(struct builder *b, const struct ffn *f, ir_id logits, const char *p, ir_id out[2])
{
    struct ir_graph *g = b->g;
    struct ir_attr attr[] = {A_STR(score, f->score == SCORE_sigmoid ? "sigmoid" : "softmax"),
                             A_INT(renormalize, f->renormalize), A_NUM(scale, f->scale),
                             A_INT(k, f->experts_per_token)};
    const char *name = b_name(b, "%s.route", p);
    if (b->options->given_routes) {
        ir_type_id t = ir_type2(g, IR_i32, dim_sym(SYM_N, 1), dim_const(f->experts_per_token));
        const char *ids = b_name(b, "routes.%s", p);
        out[0] = ir_add_typed(g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, ids)), ids);
        out[1] = ir_add(g, OP_moe_weights, SRCS(logits, out[0]), attr, 3, name);
        return;
    }
    ir_id r = ir_add(g, OP_moe_route, SRCS(logits, router_bias(b, f, p)), attr, 4, name);
    out[0] = ir_get(g, r, 0), out[1] = ir_get(g, r, 1);
}

static ir_id moe(struct builder *b, const struct ffn *f, ir_id x, const char *layer)
{
    struct ir_graph *g = b->g;
    const char *p = b_name(b, "%s.block_sparse_moe", layer);
    ir_id gate = b_param(b, b_name(b, "%s.gate.weight", p)); /* the router stays in float32 */
    ir_id logits = ir_matmul(g, x, gate, false, true, b_name(b, "%s.router", p));
    ir_id r[2];
    route(b, f, logits, p, r);
    ir_id in = f->latent_size
                   ? b_linear(b, x, b_name(b, "%s.routed_expert_down_proj.weight", p), NULL)
                   : x;
    ir_id y = routed(b, f, in, r[0], r[1], p);
    if (f->latent_size) {
        y = b_rmsnorm(b, y, b_name(b, "%s.routed_expert_norm.weight", p));
        y = b_linear(b, y, b_name(b, "%s.routed_expert_up_proj.weight", p), NULL);
    }
    if (f->num_shared_experts)
        y = ir_binary(g, OP_add, y,
                      mlp(b, x, f->num_shared_experts * f->intermediate_size, f->activation,
                          b_name(b, "%s.shared_experts", p)));
    return y;
}

ir_id b_ffn(struct builder *b, const struct ffn *f, ir_id x, const char *p)
{
    if (f->type == FFN_moe) return moe(b, f, x, p);
    return mlp(b, x, f->intermediate_size, f->activation, b_name(b, "%s.mlp", p));
}
