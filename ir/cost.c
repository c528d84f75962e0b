/* Cost rules named by op.def: floating-point operations and bytes of one run of a node. */
#include "graph.h"

static double count(const struct ir_graph *g, ir_type_id t, struct ir_bind b)
{
    const struct ir_type *ty = type_get(g->types, t);
    double n = 0;
    if (ty->dtype != IR_tuple) return (double)type_count(g->types, t, b);
    for (uint32_t i = 0; i < ty->count; i++) n += count(g, type_elem(g->types, t, i), b);
    return n;
}

static double bytes(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    double sum = 4 * count(g, ir_at(g, n)->type, b); /* every element type here is about 4 bytes */
    for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++)
        sum += 4 * count(g, ir_at(g, ir_src(g, n, i))->type, b);
    return sum;
}

static double cost_none(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    (void)g, (void)n, (void)b;
    return 0;
}

static double cost_move(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    return cost_none(g, n, b);
}

static double cost_ew(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    return count(g, ir_at(g, n)->type, b);
}

static double cost_reduce(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    return ir_at(g, n)->nsrc ? count(g, ir_at(g, ir_src(g, n, 0))->type, b) : 0;
}

/* Inner size of a product: what the operands hold more than the result. */
static double cost_gemm(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    const struct ir_node *x = ir_at(g, n);
    const struct ir_type *a = ir_ty(g, ir_src(g, n, 0)), *w = ir_ty(g, ir_src(g, n, 1));
    double rows = (double)dim_value(a->dim[0], b);
    if (x->op == OP_matmul) {
        double k = (double)dim_value(a->dim[a->rank - (ir_int(g, n, AK_ta, 0) ? 2 : 1)], b);
        return 2 * k * count(g, x->type, b);
    }
    if (x->op == OP_grouped_matmul)
        return 2 * rows * (double)dim_value(w->dim[1], b) * (double)dim_value(w->dim[2], b);
    if (x->op == OP_grouped_matmul_dw)
        return 2 * rows * (double)dim_value(a->dim[1], b) * (double)dim_value(w->dim[1], b);
    double one = 2 * rows * (double)dim_value(w->dim[0], b) * (double)dim_value(w->dim[1], b);
    return x->op == OP_head_loss ? 3 * one : one;
}

/* Absorbed: queries and results pass the latent, scores and sums are as wide as it; at
 * most, with the cache full. */
static double cost_latent(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    double l = (double)ir_cols(g, ir_src(g, n, 1)).add,
           lr = (double)ir_cols(g, ir_src(g, n, 2)).add;
    double rows = 2 * (double)(b.B * b.T) * (double)ir_int(g, n, AK_heads, 1);
    double own = (double)(ir_int(g, n, AK_head_dim, 0) + ir_int(g, n, AK_v_dim, 0)) * l;
    return rows * (own + (double)ir_int(g, n, AK_context, 1) * (l + lr));
}

static double cost_attention(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    if (ir_at(g, n)->op == OP_mla_cached) return cost_latent(g, n, b);
    double w = (double)ir_int(g, n, AK_window, 0), t = (double)b.T;
    bool cached = ir_at(g, n)->op == OP_attention_cached;
    double keys =
        w > 0 && w < t ? w - w * (w - 1) / (2 * t) : (t + 1) / 2; /* mean keys a query sees */
    if (cached) { /* at most: with the caches full */
        double rows = (double)ir_int(g, n, AK_context, 1);
        keys = w > 0 && w < rows ? w : rows;
    }
    double qk = (double)ir_cols(g, ir_src(g, n, 0)).add, hd = (double)ir_int(g, n, AK_head_dim, 1);
    double vd = (double)ir_int(g, n, AK_v_dim, 0), pairs = 2 * (double)(b.B * b.T) * keys;
    double pv = vd > 0 ? qk / hd * vd : qk; /* all heads */
    return pairs * (ir_at(g, n)->op == OP_attention_grad ? 3 * qk + 2 * pv : qk + pv);
}

static double cost_conv(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    bool grad = ir_at(g, n)->op == OP_short_conv_grad;
    double taps = (double)dim_value(ir_cols(g, ir_src(g, n, grad ? 2 : 1)), b);
    return (grad ? 6 * taps + 8 : 2 * taps + 4) * count(g, ir_at(g, ir_src(g, n, 0))->type, b);
}

/* The chunkwise form in chunks of 64 (kimi-linear.md 2.11); the backward recomputes W, U, states.
 */
static double cost_kda(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    double h = (double)ir_int(g, n, AK_heads, 1), c = b.T < 64 ? (double)b.T : 64;
    double k = (double)ir_cols(g, ir_src(g, n, 0)).add / h;
    double v = (double)ir_cols(g, ir_src(g, n, 2)).add / h;
    double token = 6 * k * v + c * (6 * k + 4 * v) + c * c / 3;
    if (ir_at(g, n)->op == OP_kda_grad) token = 16 * k * v + c * (14 * k + 10 * v) + 4 * c * c;
    return (double)(b.B * b.T) * h * token;
}

static double cost_depth(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    double q = (double)ir_int(g, n, AK_queries, 1), s = (double)ir_int(g, n, AK_sources, 1);
    const struct ir_node *x = ir_at(g, n);
    bool grad = x->op == OP_depth_mix_grad || x->op == OP_depth_inter_grad;
    ir_id v = ir_src(g, n,
                     x->op == OP_depth_mix        ? 1
                     : x->op == OP_depth_inter    ? (uint32_t)q
                     : x->op == OP_depth_mix_grad ? 0
                                                  : (uint32_t)(2 + q));
    return (grad ? 8 : 4) * q * s * count(g, ir_at(g, v)->type, b);
}

struct ir_cost op_cost(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    struct ir_cost c = {0,
                        op_info((enum ir_op)ir_at(g, n)->op)->flags & F_VIEW ? 0 : bytes(g, n, b)};
    switch (ir_at(g, n)->op) {
#define OP(name, sources, shape, vjp, cost, stages, flags) \
    case OP_##name:                                        \
        c.flops = cost_##cost(g, n, b);                    \
        break;
#include "op.def"
    default: BUG("no cost rule for op %d", ir_at(g, n)->op);
    }
    return c;
}
