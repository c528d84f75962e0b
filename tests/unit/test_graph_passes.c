/* Passes keep every output of every program: one-pass equals two-phase, the chunked head equals the
 * plain one, fused equals unfused, all in the float64 evaluator. What a pass gives verifies and
 * prints and parses as itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compiler/autodiff.h"
#include "compiler/pass.h"
#include "net.h"
#include "op_cases.h"
#include <math.h>

static const struct {
    const char *name;
    pass_fn *run;
    enum ir_stage stage;
} passes[] = {
#define T STAGE_T
#define K STAGE_K
#define PASS(name, function, in, out, skippable, help) {name, pass_##function, out},
#include "compiler/pass.def"
#undef T
#undef K
};
enum { PASSES = sizeof passes / sizeof *passes };

static size_t count_op(const struct ir_graph *g, enum ir_op op)
{
    size_t n = 0;
    for (ir_id i = 0; i < g->node.n; i++) n += ir_at(g, i)->op == op;
    return n;
}

static void check_same(const struct ir_graph *g, const struct ir_values *x,
                       const struct ir_values *y, const char *what)
{
    for (size_t k = 0; k < g->out.n; k++) {
        const char *name = intern_text(g->names, g->out.p[k].name);
        struct ir_array p = ir_eval_output(x, name), q = ir_eval_output(y, name);
        double size = 1e-3;
        for (int64_t i = 0; i < p.n; i++) size = fmax(size, fabs(p.v[i]));
        for (int64_t i = 0; i < p.n; i++)
            if (!(fabs(p.v[i] - q.v[i]) <= 1e-11 * size))
                fail_msg("%s: %s[%lld] is %.17g, was %.17g", what, name, (long long)i, q.v[i],
                         p.v[i]);
    }
}

static void check_text(struct arena *a, struct ir_graph *g, const char *what)
{
    struct sb s = {0};
    graph_print(g, NULL, &s);
    struct str once = sb_take(&s, a);
    struct diag *d = diag_open(a);
    struct ir_graph *h = graph_parse(a, d, diag_file(d, "x.ir", once), once, NULL, NULL);
    if (!h) {
        diag_print(d, &s);
        fail_msg("%s: %s", what, s.p);
        return;
    }
    graph_print(h, NULL, &s);
    struct str twice = sb_take(&s, a);
    if (!str_eq(once, twice)) fail_msg("%s:\n%s\nreads as\n%s", what, once.p, twice.p);
}

/* Runs the default pipeline without the passes of `skip`, comparing after each. Returns the graph.
 */
static struct ir_graph *pipeline(struct arena *a, struct ir_graph *g, struct ir_bind b,
                                 unsigned skip, const char *what)
{
    size_t n;
    struct ir_named *in = op_case_inputs(a, g, b, 8, &n);
    struct ir_values before = ir_eval(a, g, b, in, n);
    struct pass_ctx c = {.arena = a, .diag = diag_open(a), .bind = b};
    struct ir_graph *at = g;
    for (unsigned p = 0; p < PASSES; p++) {
        if (skip >> p & 1) continue;
        const char *name = str_fmt(a, "%s after %s (skip %x)", what, passes[p].name, skip);
        at = passes[p].run(&c, at);
        if (!at) fail_msg("%s: refused", name);
        const char *why = graph_verify(at, passes[p].stage);
        if (why) fail_msg("%s: %s", name, why);
        check_text(a, at, name);
        struct ir_values after = ir_eval(a, at, b, in, n);
        check_same(g, &before, &after, name);
    }
    return at;
}

/* Adds the gradients of all float inputs as outputs. */
static void with_gradients(struct ir_graph *g, ir_id loss)
{
    ir_id wrt[96] = {0}, grad[96];
    size_t n = 0, leaves = g->node.n;
    for (ir_id i = 0; i < leaves; i++)
        if (ir_at(g, i)->op == OP_input && ir_ty(g, i)->dtype == IR_f32) {
            CHECK(n < 96);
            wrt[n++] = i;
        }
    autodiff(g, loss, wrt, n, grad);
    for (size_t i = 0; i < n; i++)
        ir_output(g, str_fmt(g->arena, "grad.%s", ir_word(g, wrt[i], AK_name, "")), grad[i]);
}

static void compositions(void **state)
{
    (void)state;
    for (int which = 0; which < NET_COMPOSITIONS; which++)
        for (unsigned skip = 0; skip < 1u << PASSES; skip += which < 10 ? 31 : 7) {
            struct arena *a = arena_open("net");
            struct net t = {graph_open(a, "net", STAGE_T, NULL, NULL), dim_sym(SYM_N, 1)};
            ir_output(t.g, "loss", net_compose(&t, which));
            with_gradients(t.g, ir_find_output(t.g, "loss"));
            pipeline(a, t.g, (struct ir_bind){2, 3}, skip, str_fmt(a, "composition %d", which));
            arena_close(a);
        }
}

/* Every block size of networks of up to 7 sublayers, with and without a backward, sites on and off.
 */
static void block_sizes(void **state)
{
    (void)state;
    size_t inters = 0, inter_grads = 0;
    for (size_t L = 1; L <= 7; L++)
        for (size_t S = 1; S <= L; S++)
            for (unsigned off = 0; off < 4; off++) {
                static const unsigned sites[4] = {0, 0x54, 0x06, 0xa8};
                struct arena *a = arena_open("net");
                struct net t = {graph_open(a, "net", STAGE_T, NULL, NULL), dim_sym(SYM_N, 1)};
                ir_output(t.g, "loss", net_attnres(&t, L, S, sites[off]));
                const char *what = str_fmt(a, "L %zu, S %zu, off %x", L, S, sites[off]);
                if (off % 2 == 0) with_gradients(t.g, ir_find_output(t.g, "loss"));
                struct ir_graph *g = pipeline(a, t.g, (struct ir_bind){1, 3}, 0, what);
                inters += count_op(g, OP_depth_inter);
                inter_grads += count_op(g, OP_depth_inter_grad);
                arena_close(a);
            }
    assert_true(inters > 20 && inter_grads > 10); /* the pass had something to do */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(compositions),
        cmocka_unit_test(block_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
