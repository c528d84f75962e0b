/* The evaluator defines the ops, so here every op meets an independent statement of what it does:
 * plain loops, an invariant, a composition of other ops, or central differences
 * (tests/eval_check*.c). */
#include "eval_check.h"

static void run(struct ran *r, const struct op_case *c, int variant)
{
    *r = (struct ran){.a = arena_open("case"), .c = c, .variant = variant};
    r->option = variant / OP_CASE_SIZES;
    r->b = op_case_bind(variant), r->N = r->b.B * r->b.T;
    r->g = c->build(r->a, variant);
    r->n = op_case_node(r->g, c);
    evaluate(r);
}

/* ---- the loop over op.def ---- */

static void (*const checks[OP_COUNT])(struct ran *) = {
#define OP(name, sources, shape, vjp, cost, stages, flags) check_##name,
#include "op.def"
};

static void every_op(void **state)
{
    (void)state;
    for (int op = 0; op < OP_COUNT; op++) {
        const struct op_case *c = op_case_find((enum ir_op)op);
        if (!c) fail_msg("no case for %s", op_info((enum ir_op)op)->name);
        for (int i = 0; i < c->variants; i++) {
            struct ran r;
            run(&r, c, i);
            if (r.n == IR_NONE && op != OP_arg) fail_msg("%s %d does not use its op", c->name, i);
            for (size_t k = 0; k < r.g->out.n; k++) {
                struct ir_array x = r.v.node[r.g->out.p[k].id].e[0];
                for (int64_t j = 0; j < x.n; j++)
                    if (!isfinite(x.v[j])) fail_msg("%s %d: not finite", c->name, i);
            }
            checks[op](&r);
            arena_close(r.a);
        }
    }
}

/* ---- single facts that random cases do not meet ---- */

static struct ir_array eval_one(struct arena *a, struct ir_graph *g, ir_id n, uint32_t result)
{
    struct ir_values v = ir_eval(a, g, (struct ir_bind){1, 1}, NULL, 0);
    return v.node[n].e[result];
}

static ir_id numbers(struct ir_graph *g, const double *x, size_t n) /* f32[1,n] */
{
    ir_id src[16];
    for (size_t i = 0; i < n; i++)
        src[i] = ir_add_typed(g, OP_const, ir_type2(g, IR_f32, dim_const(1), dim_const(1)), NO_SRCS,
                              ATTRS(A_NUM(value, x[i])), NULL);
    return ir_add(g, OP_concat, src, n, ATTRS(A_INT(axis, 1)), NULL);
}

/* Equal scores go to the lower id; scores above 1 do not matter to the weights, the bias does not
 * enter. */
static void route_ties(void **state)
{
    (void)state;
    struct arena *a = arena_open("ties");
    struct ir_graph *g = graph_open(a, "ties", STAGE_T, NULL, NULL);
    ir_id x = numbers(g, (const double[]){0, 0, -1, 0}, 4);
    ir_id bias = ir_reshape(g, numbers(g, (const double[]){0, 0, 9, 0}, 4),
                            ir_type1(g, IR_f32, dim_const(4)));
    ir_id n = ir_add(g, OP_moe_route, SRCS(x, bias),
                     ATTRS(A_INT(k, 3), A_STR(score, "sigmoid"), A_INT(renormalize, 0)), NULL);
    struct ir_array ids = eval_one(a, g, n, 0), w = eval_one(a, g, n, 1);
    assert_true(ids.v[0] == 2 && ids.v[1] == 0 && ids.v[2] == 1);
    assert_true(fabs(w.v[0] - 1 / (1 + exp(1))) < 1e-15 && w.v[1] == 0.5 && w.v[2] == 0.5);
    arena_close(a);
}

/* Ties, subnormals, the largest numbers and the step to infinity, against bit arithmetic. */
static void rounding(void **state)
{
    (void)state;
    static const uint32_t bits[8] = {0x3f808000, 0x3f818000, 0x3f808001, 0xff7f7fff,
                                     0xff7f8000, 0x00018000, 0x80418000, 0x00008001};
    double x[8], bf16[8];
    for (size_t i = 0; i < 8; i++) {
        float f;
        memcpy(&f, &bits[i], 4);
        x[i] = (double)f, bf16[i] = bf16_bits(x[i]);
    }
    struct arena *a = arena_open("rounding");
    struct ir_graph *g = graph_open(a, "rounding", STAGE_T, NULL, NULL);
    struct ir_array y = eval_one(a, g, ir_unary(g, OP_round_bf16, numbers(g, x, 8)), 0);
    for (size_t i = 0; i < 8; i++) assert_true(y.v[i] == bf16[i]);
    assert_true(y.v[0] == 1 && y.v[4] == -INFINITY);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op),
        cmocka_unit_test(route_ties),
        cmocka_unit_test(rounding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
