/* Gradients built by autodiff against central differences of the loss, all in float64: every
 * differentiable op over its cases, compositions as models have them, and random graphs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compiler/autodiff.h"
#include "fd.h"
#include "net.h"
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
    if (op == OP_round_bf16 || op == OP_round)
        return true; /* staircases; the rule is the identity */
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
            ir_output(g, "loss", net_weighed(g, n));
            bool routes = op == OP_moe_route || op == OP_moe_weights;
            if (!routes || !routing_is_near_a_tie(g, op_case_bind(variant)))
                check_graph(g, op_case_bind(variant), &wrt, str_fmt(a, "%s %d", c->name, variant));
            arena_close(a);
        }
    }
}

/* ---- compositions and random graphs ---- */

static void compositions(void **state)
{
    (void)state;
    for (int which = 0; which < NET_COMPOSITIONS; which++) {
        struct arena *a = arena_open("net");
        struct net t = {graph_open(a, "net", STAGE_T, NULL, NULL), dim_sym(SYM_N, 1)};
        ir_output(t.g, "loss", net_compose(&t, which));
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
        ir_id v[40] = {net_mat(&t, "x", 4, 4), net_mat(&t, "y", 4, 4)};
        size_t n = 2, steps = 3 + (size_t)k % 20;
        while (n < steps) v[n] = random_step(&t, v, n, &seed), n++;
        ir_output(t.g, "loss", net_weighed(t.g, ir_unary(t.g, OP_tanh, v[n - 1])));
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
