/* The evaluator defines the ops, so here every op meets an independent statement of what it does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "op_cases.h"
#include <math.h>
#include <stdio.h>

/* One variant of a case, evaluated. */
struct ran {
    struct arena *a;
    const struct op_case *c;
    struct ir_graph *g;
    int variant;
    struct ir_bind b;
    struct ir_named *in;
    size_t nin;
    struct ir_values v;
    ir_id n; /* the node under test */
};

static void run(struct ran *r, const struct op_case *c, int variant)
{
    r->a = arena_open("case");
    r->c = c, r->variant = variant, r->b = op_case_bind(variant);
    r->g = c->build(r->a, variant);
    const char *why = graph_verify(r->g, r->g->stage);
    if (why) fail_msg("%s %d: %s", c->name, variant, why);
    r->in = op_case_inputs(r->a, r->g, r->b, 1, &r->nin);
    r->v = ir_eval(r->a, r->g, r->b, r->in, r->nin);
    r->n = op_case_node(r->g, c);
}

static void every_op_has_cases(void **state)
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
            arena_close(r.a);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op_has_cases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
