/* Gradients built by autodiff against central differences of the loss, all in float64: every
 * differentiable op over its cases, compositions as models have them, and random graphs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compiler/autodiff.h"
#include "fd.h"
#include "op_cases.h"
#include <math.h>
#include <stdio.h>

enum { MOST = 64 };
static const double TOLERANCE = 1e-6;

struct inputs { /* what to differentiate by */
    ir_id id[MOST];
    size_t n;
};

/* All float inputs of g that are there now. */
static struct inputs float_inputs(const struct ir_graph *g)
{
    struct inputs in = {{0}, 0};
    for (ir_id n = 0; n < g->node.n; n++)
        if ((ir_at(g, n)->op == OP_input || ir_at(g, n)->op == OP_param) &&
            ir_ty(g, n)->dtype == IR_f32)
            in.id[in.n++] = n;
    return in;
}

/* Differentiates output "loss" by `wrt` and compares; `what` is for messages. */
static void check_graph(struct ir_graph *g, struct ir_bind b, const struct inputs *wrt,
                        const char *what)
{
    struct arena *a = arena_open("grad");
    ir_id grad[MOST];
    struct fd f = {g, b, NULL, 0, "loss"};
    f.in = op_case_inputs(a, g, b, 3, &f.nin);
    autodiff(g, ir_find_output(g, "loss"), wrt->id, wrt->n, grad);
    const char *why = graph_verify(g, STAGE_T);
    if (why) fail_msg("%s: %s", what, why);
    struct ir_values v = ir_eval(a, g, b, f.in, f.nin);
    for (size_t i = 0; i < wrt->n; i++) {
        const char *name = ir_word(g, wrt->id[i], AK_name, "");
        if (ir_at(g, grad[i])->type != ir_at(g, wrt->id[i])->type)
            fail_msg("%s: the gradient of %s has another type", what, name);
        double error = fd_error(&f, name, v.node[grad[i]].e[0].v, 2);
        if (!(error <= TOLERANCE)) fail_msg("%s: slope of %s is off by %g", what, name, error);
    }
    arena_close(a);
}

static ir_id fresh(struct ir_graph *g, const char *name, ir_type_id type)
{
    return ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

/* <x, a random weight of x's type>. */
static ir_id weighed(struct ir_graph *g, ir_id x)
{
    char name[32];
    snprintf(name, sizeof name, "weight.%u", x);
    return ir_unary(g, OP_sum, ir_binary(g, OP_mul, x, fresh(g, name, ir_at(g, x)->type)));
}

/* ---- every op ---- */

static const struct {
    const char *name, *vjp;
} rules[OP_COUNT] = {
#define OP(name, sources, shape, vjp, cost, stages, flags) {#name, #vjp},
#include "op.def"
};

/* The element of a tuple that a gradient flows through; statistics are for the backward alone. */
static uint32_t differentiable_element(enum ir_op op)
{
    return op == OP_moe_route ? 1 : 0;
}

/* Cases that central differences cannot judge. */
static bool unfit(enum ir_op op, int option)
{
    if (op == OP_round_bf16) return true; /* a staircase; its rule is the identity */
    if (op == OP_grouped_matmul && option >= 4) return true; /* tb=0 occurs in backwards only */
    if (op == OP_depth_mix && option == 3) return true;      /* logits of hundreds: too bent */
    return false;
}

/* A choice of experts that a step changes gives a jump; the smallest gap must be wide. */
static bool routing_is_near_a_tie(const struct ir_graph *g, struct ir_bind b)
{
    struct arena *a = arena_open("ties");
    size_t n;
    struct ir_named *in = op_case_inputs(a, g, b, 3, &n),
                    *moved = arena_dup(a, in, n * sizeof *in, STRATA_SITE);
    struct ir_values v = ir_eval(a, g, b, in, n);
    bool near = false;
    uint64_t state = 1;
    for (int k = 0; k < 20 && !near; k++) {
        for (size_t i = 0; i < n; i++) {
            double *p = arena_dup(a, in[i].v, (size_t)in[i].n * sizeof *p, STRATA_SITE);
            for (int64_t j = 0; j < in[i].n; j++) p[j] += 1e-4 * fd_random(&state);
            moved[i].v = p;
        }
        struct ir_values w = ir_eval(a, g, b, moved, n);
        for (ir_id x = 0; x < g->node.n; x++)
            if (ir_at(g, x)->op == OP_moe_route)
                near |= memcmp(v.node[x].e[0].v, w.node[x].e[0].v,
                               (size_t)v.node[x].e[0].n * sizeof(double)) != 0;
    }
    arena_close(a);
    return near;
}

static void every_op(void **state)
{
    (void)state;
    for (int op = 0; op < OP_COUNT; op++) {
        if (!strcmp(rules[op].vjp, "none") || !strcmp(rules[op].vjp, "leaf")) continue;
        const struct op_case *c = op_case_find((enum ir_op)op);
        for (int variant = 0; variant < c->variants; variant++) {
            if (unfit((enum ir_op)op, variant / OP_CASE_SIZES)) continue;
            struct arena *a = arena_open("op");
            struct ir_graph *g = c->build(a, variant);
            struct inputs wrt = float_inputs(g);
            ir_id n = op_case_node(g, c);
            if (ir_ty(g, n)->dtype == IR_tuple)
                n = ir_get(g, n, differentiable_element((enum ir_op)op));
            ir_output(g, "loss", weighed(g, n));
            if (op != OP_moe_route || !routing_is_near_a_tie(g, op_case_bind(variant)))
                check_graph(g, op_case_bind(variant), &wrt, str_fmt(a, "%s %d", c->name, variant));
            arena_close(a);
        }
    }
}

/* ---- compositions ---- */

struct net {
    struct ir_graph *g;
    struct ir_dim N;
};

static ir_id mat(struct net *t, const char *name, int64_t rows, int64_t cols) /* rows 0: N */
{
    struct ir_dim r = rows ? dim_const(rows) : t->N;
    return fresh(t->g, name, ir_type2(t->g, IR_f32, r, dim_const(cols)));
}

static ir_id vec(struct net *t, const char *name, int64_t n)
{
    return fresh(t->g, name, ir_type1(t->g, IR_f32, dim_const(n)));
}

static ir_id ids(struct net *t, const char *name)
{
    return fresh(t->g, name, ir_type1(t->g, IR_i32, t->N));
}

static ir_id linear(struct net *t, ir_id x, const char *name, int64_t out)
{
    return ir_matmul(t->g, x, mat(t, name, out, ir_cols(t->g, x).add), false, true, NULL);
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
    return fresh(t->g, name, type_add(t->g->types, IR_f32, 3, d));
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
    ir_id src[16] = {ir_binary(t->g, OP_mul, vec(t, str_fmt(a, "%s.w", site), 6),
                               vec(t, str_fmt(a, "%s.g", site), 6))};
    memcpy(src + 1, v, n * sizeof *v);
    return ir_get(t->g,
                  ir_add(t->g, OP_depth_mix, src, n + 1,
                         ATTRS(A_STR(site, site), A_INT(sources, n), A_NUM(eps, 1e-6)), NULL),
                  0);
}

/* The reference algorithm of attnres-paper 2.2 over six sublayers, blocks of S, the embedding tied
 * to the head, and every second site switched off where `off` says so. */
static ir_id attnres(struct net *t, size_t S, bool off)
{
    struct ir_graph *g = t->g;
    ir_id table = mat(t, "table", 11, 6), done[8], src[8], part = IR_NONE;
    ir_id emb = ir_add(g, OP_embed, SRCS(table, ids(t, "ids.11.token")), NO_ATTRS, NULL);
    size_t n = 1;
    done[0] = emb;
    for (size_t l = 0; l <= 6; l++) {
        const char *p = str_fmt(g->arena, "l%zu", l);
        if (l > 0 && l < 6 && l % S == 0) done[n++] = part, part = IR_NONE;
        size_t count = n;
        memcpy(src, done, n * sizeof *done);
        if (part != IR_NONE) src[count++] = part;
        ir_id h = src[0];
        if (l > 0 && off && l % 2)
            for (size_t j = 1; j < count; j++) h = ir_binary(g, OP_add, h, src[j]);
        else if (l > 0)
            h = mix(t, p, src, count);
        ir_id x = rmsnorm(t, h, str_fmt(g->arena, "%s.norm", p));
        if (l == 6) return token_loss(t, ir_matmul(g, x, table, false, true, NULL));
        ir_id y = l % 2 ? mlp(t, x, p) : attention(t, x, p);
        part = part == IR_NONE ? y : ir_binary(g, OP_add, part, y);
    }
    return IR_NONE;
}

enum { COMPOSITIONS = 16 };

static ir_id compose(struct net *t, int which)
{
    struct ir_graph *g = t->g;
    ir_id x = which < 10 ? mat(t, "x", 0, 6) : IR_NONE, y;
    switch (which) {
    case 0: return weighed(g, rmsnorm(t, x, "gain"));
    case 1: return weighed(g, layernorm(t, x, "gain"));
    case 2: return weighed(g, mlp(t, x, "mlp"));
    case 3: return weighed(g, situ(t, x, linear(t, x, "w", 6)));
    case 4: return weighed(g, attention(t, x, "att"));
    case 5: return weighed(g, moe(t, x, "sigmoid"));
    case 6: return weighed(g, moe(t, x, "softmax"));
    case 7: /* one value read in many ways */
        y = ir_binary(g, OP_mul, x, x);
        y = ir_binary(g, OP_add, ir_binary(g, OP_mul, y, ir_unary(g, OP_exp, x)), y);
        return weighed(g, ir_binary(g, OP_sub, y, ir_binary(g, OP_div, x, ir_unary(g, OP_exp, y))));
    case 8: /* softmax by hand, of which a part is read, the other operand not at all */
        y = ir_unary(g, OP_exp, x);
        y = ir_binary(g, OP_div, y, ir_unary(g, OP_rowsum, y));
        mat(t, "unused", 0, 3);
        return weighed(g, ir_slice(g, y, 1, 2, 5));
    case 9: /* slices of rows, side by side and on top, batched products */
        y = stack(t, "w3", 2, 6, 6);
        y = ir_matmul(g, y, y, true, false, NULL);
        y = ir_reshape(g, y, ir_type2(g, IR_f32, dim_const(12), dim_const(6)));
        y = ir_add(g, OP_concat, SRCS(ir_slice(g, y, 0, 3, 7), ir_slice(g, y, 0, 7, 9)),
                   ATTRS(A_INT(axis, 0)), NULL);
        y = ir_matmul(g, x, y, false, true, NULL);
        return weighed(g, ir_add(g, OP_concat, SRCS(y, x, y), ATTRS(A_INT(axis, 1)), NULL));
    case 10: return attnres(t, 1, false);
    case 11: return attnres(t, 2, false);
    case 12: return attnres(t, 3, true);
    case 13: return attnres(t, 4, false);
    case 14: return attnres(t, 6, true);
    default: /* a site that reads one source, and sources that are leaves */
        x = mat(t, "x", 0, 6), y = mat(t, "y", 0, 6);
        ir_id one = mix(t, "one", &x, 1), two = mix(t, "two", (const ir_id[]){x, y, one}, 3);
        return weighed(g, ir_binary(g, OP_add, ir_binary(g, OP_add, two, one), y));
    }
}

static void compositions(void **state)
{
    (void)state;
    for (int which = 0; which < COMPOSITIONS; which++) {
        struct arena *a = arena_open("net");
        struct net t = {graph_open(a, "net", STAGE_T, NULL, NULL), dim_sym(SYM_N, 1)};
        ir_output(t.g, "loss", compose(&t, which));
        struct inputs wrt = float_inputs(t.g);
        struct ir_bind b = {2, 5};
        if (!routing_is_near_a_tie(t.g, b))
            check_graph(t.g, b, &wrt, str_fmt(a, "composition %d", which));
        arena_close(a);
    }
}

/* ---- random graphs of smooth ops ---- */

static ir_id pick(const ir_id *v, size_t n, uint64_t *state)
{
    return v[(size_t)((fd_random(state) + 1) / 2 * (double)n) % n];
}

static ir_id random_step(struct net *t, ir_id *v, size_t n, uint64_t *state)
{
    struct ir_graph *g = t->g;
    ir_id a = pick(v, n, state), b = pick(v, n, state);
    switch ((int)((fd_random(state) + 1) * 5)) {
    case 0: return ir_unary(g, OP_tanh, a);
    case 1: return ir_unary(g, OP_sigmoid, ir_binary(g, OP_sub, a, b));
    case 2: return ir_binary(g, OP_add, a, b);
    case 3: return ir_binary(g, OP_mul, ir_unary(g, OP_tanh, a), ir_unary(g, OP_rowsum, b));
    case 4: return ir_binary(g, OP_mul, a, ir_unary(g, OP_sigmoid, b));
    case 5:
        return ir_binary(g, OP_div, a,
                         ir_binary(g, OP_add, ir_const(g, 2), ir_unary(g, OP_tanh, b)));
    case 6: return ir_matmul(g, ir_unary(g, OP_tanh, a), pick(v, n, state), false, false, NULL);
    case 7:
        return ir_binary(g, OP_mul, ir_unary(g, OP_neg, a),
                         ir_unary(g, OP_recip, ir_unary(g, OP_exp, ir_unary(g, OP_tanh, b))));
    case 8:
        return ir_binary(
            g, OP_add, a,
            ir_unary(g, OP_sqrt, ir_binary(g, OP_add, ir_const(g, 1), ir_binary(g, OP_mul, b, b))));
    default:
        return ir_unary(g, OP_log,
                        ir_binary(g, OP_add, ir_const(g, 1.5), ir_unary(g, OP_sigmoid, a)));
    }
}

static void random_graphs(void **state)
{
    (void)state;
    uint64_t seed = 12345;
    for (int k = 0; k < 60; k++) {
        struct arena *a = arena_open("random");
        struct net t = {graph_open(a, "random", STAGE_T, NULL, NULL), dim_sym(SYM_N, 1)};
        ir_id v[40] = {mat(&t, "x", 4, 4), mat(&t, "y", 4, 4)};
        size_t n = 2, steps = 3 + (size_t)k % 20;
        while (n < steps) v[n] = random_step(&t, v, n, &seed), n++;
        ir_output(t.g, "loss", weighed(t.g, ir_unary(t.g, OP_tanh, v[n - 1])));
        struct inputs wrt = float_inputs(t.g);
        check_graph(t.g, (struct ir_bind){1, 1}, &wrt, str_fmt(a, "random %d", k));
        arena_close(a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op),
        cmocka_unit_test(compositions),
        cmocka_unit_test(random_graphs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
