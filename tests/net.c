#include "net.h"
#include <stdio.h>

enum { MOST_BLOCKS = 16 };

ir_id net_input(struct ir_graph *g, const char *name, ir_type_id type)
{
    return ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

/* <x, a random weight of x's type>. */
ir_id net_weighed(struct ir_graph *g, ir_id x)
{
    char name[32];
    snprintf(name, sizeof name, "weight.%u", x);
    return ir_unary(g, OP_sum, ir_binary(g, OP_mul, x, net_input(g, name, ir_at(g, x)->type)));
}

ir_id net_mat(struct net *t, const char *name, int64_t rows, int64_t cols) /* rows 0: N */
{
    struct ir_dim r = rows ? dim_const(rows) : t->N;
    return net_input(t->g, name, ir_type2(t->g, IR_f32, r, dim_const(cols)));
}

static ir_id vec(struct net *t, const char *name, int64_t n)
{
    return net_input(t->g, name, ir_type1(t->g, IR_f32, dim_const(n)));
}

static ir_id ids(struct net *t, const char *name)
{
    return net_input(t->g, name, ir_type1(t->g, IR_i32, t->N));
}

static ir_id linear(struct net *t, ir_id x, const char *name, int64_t out)
{
    return ir_matmul(t->g, x, net_mat(t, name, out, ir_cols(t->g, x).add), false, true, NULL);
}

static ir_id mean(struct net *t, ir_id x)
{
    return ir_binary(t->g, OP_mul, ir_unary(t->g, OP_rowsum, x),
                     ir_const(t->g, 1.0 / (double)ir_cols(t->g, x).add));
}

static ir_id rmsnorm(struct net *t, ir_id x, const char *gain)
{
    ir_id m = ir_binary(t->g, OP_add, mean(t, ir_binary(t->g, OP_mul, x, x)), ir_const(t->g, 1e-6));
    ir_id y = ir_binary(t->g, OP_mul, x, ir_unary(t->g, OP_rsqrt, m));
    return ir_binary(t->g, OP_mul, y, vec(t, gain, ir_cols(t->g, x).add));
}

static ir_id layernorm(struct net *t, ir_id x, const char *gain)
{
    return rmsnorm(t, ir_binary(t->g, OP_sub, x, mean(t, x)), gain);
}

static ir_id swiglu(struct net *t, ir_id both)
{
    int64_t half = ir_cols(t->g, both).add / 2;
    ir_id a = ir_slice(t->g, both, 1, 0, half), b = ir_slice(t->g, both, 1, half, 2 * half);
    return ir_binary(t->g, OP_mul, ir_binary(t->g, OP_mul, a, ir_unary(t->g, OP_sigmoid, a)), b);
}

/* 4 tanh(a/4) sigmoid(a) * 25 tanh(b/25) */
static ir_id situ(struct net *t, ir_id a, ir_id b)
{
    struct ir_graph *g = t->g;
    ir_id x = ir_binary(g, OP_mul, ir_const(g, 4),
                        ir_unary(g, OP_tanh, ir_binary(g, OP_mul, a, ir_const(g, 0.25))));
    ir_id y = ir_binary(g, OP_mul, ir_const(g, 25),
                        ir_unary(g, OP_tanh, ir_binary(g, OP_div, b, ir_const(g, 25))));
    return ir_binary(g, OP_mul, ir_binary(g, OP_mul, x, ir_unary(g, OP_sigmoid, a)), y);
}

static ir_id norm_heads(struct net *t, ir_id x, int64_t heads, int64_t hd, const char *gain)
{
    ir_type_id flat = ir_type2(t->g, IR_f32, dim_scale(t->N, heads), dim_const(hd));
    return ir_reshape(t->g, rmsnorm(t, ir_reshape(t->g, x, flat), gain), ir_at(t->g, x)->type);
}

static ir_id rope(struct net *t, ir_id x, int64_t heads, int64_t hd)
{
    ir_id angles =
        ir_add_typed(t->g, OP_rope_table, ir_type2(t->g, IR_f32, dim_sym(SYM_T, 1), dim_const(hd)),
                     NO_SRCS, ATTRS(A_NUM(theta, 100)), NULL);
    return ir_add(t->g, OP_rope, SRCS(x, angles), ATTRS(A_INT(heads, heads), A_INT(head_dim, hd)),
                  NULL);
}

/* One product for q, k, v; norms over heads; rotation; attention; output product. */
static ir_id attention(struct net *t, ir_id x, const char *p)
{
    struct arena *a = t->g->arena;
    ir_id all = linear(t, x, str_fmt(a, "%s.qkv", p), 16 + 8 + 8);
    ir_id q = norm_heads(t, ir_slice(t->g, all, 1, 0, 16), 4, 4, str_fmt(a, "%s.qn", p));
    ir_id k = norm_heads(t, ir_slice(t->g, all, 1, 16, 24), 2, 4, str_fmt(a, "%s.kn", p));
    ir_id v = ir_slice(t->g, all, 1, 24, 32);
    ir_id o = ir_add(t->g, OP_attention, SRCS(rope(t, q, 4, 4), rope(t, k, 2, 4), v),
                     ATTRS(A_INT(heads, 4), A_INT(kv_heads, 2), A_INT(head_dim, 4),
                           A_NUM(scale, 0.5), A_INT(window, 3)),
                     NULL);
    return linear(t, ir_get(t->g, o, 0), str_fmt(a, "%s.o", p), ir_cols(t->g, x).add);
}

static ir_id mlp(struct net *t, ir_id x, const char *p)
{
    struct arena *a = t->g->arena;
    return linear(t, swiglu(t, linear(t, x, str_fmt(a, "%s.up", p), 14)), str_fmt(a, "%s.down", p),
                  ir_cols(t->g, x).add);
}

static ir_id stack(struct net *t, const char *name, int64_t e, int64_t m, int64_t k)
{
    struct ir_dim d[3] = {dim_const(e), dim_const(m), dim_const(k)};
    return net_input(t->g, name, type_add(t->g->types, IR_f32, 3, d));
}

static ir_id moe(struct net *t, ir_id x, const char *score)
{
    struct ir_graph *g = t->g;
    int64_t D = ir_cols(g, x).add;
    ir_id route = ir_add(
        g, OP_moe_route, SRCS(linear(t, x, "gate", 5), vec(t, "bias", 5)),
        ATTRS(A_INT(k, 2), A_STR(score, score), A_INT(renormalize, 1), A_NUM(scale, 1.7)), NULL);
    ir_id sort = ir_add(g, OP_moe_sort, SRCS(ir_get(g, route, 0)), ATTRS(A_INT(experts, 5)), NULL);
    ir_id off = ir_get(g, sort, 0), order = ir_get(g, sort, 1), place = ir_get(g, sort, 2);
    ir_id y = ir_add(g, OP_moe_gather, SRCS(x, order, place), ATTRS(A_INT(k, 2)), NULL);
    y = ir_add(g, OP_grouped_matmul, SRCS(y, stack(t, "w13", 5, 6, D), off), ATTRS(A_INT(tb, 1)),
               NULL);
    y = ir_add(g, OP_grouped_matmul, SRCS(swiglu(t, y), stack(t, "w2", 5, D, 3), off),
               ATTRS(A_INT(tb, 1)), NULL);
    y = ir_add(g, OP_moe_combine, SRCS(y, ir_get(g, route, 1), order, place), ATTRS(A_INT(k, 2)),
               NULL);
    return ir_binary(g, OP_add, y, mlp(t, x, "shared"));
}

/* Mean cross-entropy over the valid targets. */
static ir_id token_loss(struct net *t, ir_id logits)
{
    ir_id target = ids(t, "ids.11.target");
    ir_id ce = ir_add(t->g, OP_cross_entropy, SRCS(logits, target), NO_ATTRS, NULL);
    ir_id valid = ir_add(t->g, OP_count_valid, SRCS(target), NO_ATTRS, NULL);
    return ir_binary(t->g, OP_div, ir_unary(t->g, OP_sum, ir_get(t->g, ce, 0)), valid);
}

static ir_id mix(struct net *t, const char *site, const ir_id *v, size_t n)
{
    struct arena *a = t->g->arena;
    ir_id src[MOST_BLOCKS] = {ir_binary(t->g, OP_mul, vec(t, str_fmt(a, "%s.w", site), 6),
                                        vec(t, str_fmt(a, "%s.g", site), 6))};
    memcpy(src + 1, v, n * sizeof *v);
    return ir_get(t->g,
                  ir_add(t->g, OP_depth_mix, src, n + 1,
                         ATTRS(A_STR(site, site), A_INT(sources, n), A_NUM(eps, 1e-6)), NULL),
                  0);
}

ir_id net_attnres(struct net *t, size_t L, size_t S, unsigned off)
{
    struct ir_graph *g = t->g;
    ir_id table = net_mat(t, "table", 11, 6), done[MOST_BLOCKS], src[MOST_BLOCKS], part = IR_NONE;
    ir_id emb = ir_add(g, OP_embed, SRCS(table, ids(t, "ids.11.token")), NO_ATTRS, NULL);
    size_t n = 1;
    done[0] = emb;
    for (size_t l = 0;; l++) {
        const char *p = str_fmt(g->arena, "l%zu", l);
        if (l > 0 && l < L && l % S == 0) done[n++] = part, part = IR_NONE;
        size_t count = n;
        CHECK(n + 1 < MOST_BLOCKS);
        memcpy(src, done, n * sizeof *done);
        if (part != IR_NONE) src[count++] = part;
        ir_id h = src[0];
        if (l > 0 && (off >> l & 1))
            for (size_t j = 1; j < count; j++) h = ir_binary(g, OP_add, h, src[j]);
        else if (l > 0)
            h = mix(t, p, src, count);
        ir_id x = rmsnorm(t, h, str_fmt(g->arena, "%s.norm", p));
        if (l == L) return token_loss(t, ir_matmul(g, x, table, false, true, NULL));
        ir_id y = l % 2 ? mlp(t, x, p) : attention(t, x, p);
        part = part == IR_NONE ? y : ir_binary(g, OP_add, part, y);
    }
}

ir_id net_compose(struct net *t, int which)
{
    struct ir_graph *g = t->g;
    ir_id x = which < 10 ? net_mat(t, "x", 0, 6) : IR_NONE, y;
    switch (which) {
    case 0: return net_weighed(g, rmsnorm(t, x, "gain"));
    case 1: return net_weighed(g, layernorm(t, x, "gain"));
    case 2: return net_weighed(g, mlp(t, x, "mlp"));
    case 3: return net_weighed(g, situ(t, x, linear(t, x, "w", 6)));
    case 4: return net_weighed(g, attention(t, x, "att"));
    case 5: return net_weighed(g, moe(t, x, "sigmoid"));
    case 6: return net_weighed(g, moe(t, x, "softmax"));
    case 7: /* one value read in many ways */
        y = ir_binary(g, OP_mul, x, x);
        y = ir_binary(g, OP_add, ir_binary(g, OP_mul, y, ir_unary(g, OP_exp, x)), y);
        return net_weighed(
            g, ir_binary(g, OP_sub, y, ir_binary(g, OP_div, x, ir_unary(g, OP_exp, y))));
    case 8: /* softmax by hand, of which a part is read, the other operand not at all */
        y = ir_unary(g, OP_exp, x);
        y = ir_binary(g, OP_div, y, ir_unary(g, OP_rowsum, y));
        net_mat(t, "unused", 0, 3);
        return net_weighed(g, ir_slice(g, y, 1, 2, 5));
    case 9: /* slices of rows, side by side and on top, batched products */
        y = stack(t, "w3", 2, 6, 6);
        y = ir_matmul(g, y, y, true, false, NULL);
        y = ir_reshape(g, y, ir_type2(g, IR_f32, dim_const(12), dim_const(6)));
        y = ir_add(g, OP_concat, SRCS(ir_slice(g, y, 0, 3, 7), ir_slice(g, y, 0, 7, 9)),
                   ATTRS(A_INT(axis, 0)), NULL);
        y = ir_matmul(g, x, y, false, true, NULL);
        return net_weighed(g, ir_add(g, OP_concat, SRCS(y, x, y), ATTRS(A_INT(axis, 1)), NULL));
    case 10: return net_attnres(t, 6, 1, 0);
    case 11: return net_attnres(t, 6, 2, 0);
    case 12: return net_attnres(t, 6, 3, 0x2a);
    case 13: return net_attnres(t, 6, 4, 0);
    case 14: return net_attnres(t, 6, 6, 0x2a);
    default: /* a site that reads one source, and sources that are leaves */
        x = net_mat(t, "x", 0, 6), y = net_mat(t, "y", 0, 6);
        ir_id one = mix(t, "one", &x, 1), two = mix(t, "two", (const ir_id[]){x, y, one}, 3);
        return net_weighed(g, ir_binary(g, OP_add, ir_binary(g, OP_add, two, one), y));
    }
}
