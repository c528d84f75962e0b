/* The sites of a block by one pass over the finished sources (two-phase) against one pass per site:
 * the mixes and all their gradients within 1e-6, compiled, with the same numbers going in. Logits
 * are of the size that training gives: flat, mild and sharp mixes (sharper ones lose more than that
 * to the float32 rounding of the logits themselves, in either form). And the groups that a GPU
 * makes of Full attention residuals, in float64. */
#include "compiler/autodiff.h"
#include "compiler/pass.h"
#include "compiler/program.h"
#include "fixture.h"
#include "runtime/philox.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

enum { SITES = 4, FINISHED = 3, B = 2, T = 33 };

static struct rt_error err;

static ir_id input(struct ir_graph *g, ir_type_id t, const char *name)
{
    return ir_add_typed(g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

/* One block: `finished` sources, a partial sum that grows by y_i (`full`: each y_i is one source
 * more), and a loss sum_i c_i . h_i. */
static struct ir_graph *block(struct arena *a, int64_t width, int finished, int sites, bool full)
{
    struct ir_graph *g = graph_open(a, "block", STAGE_T, NULL, NULL);
    ir_type_id row = ir_type2(g, IR_f32, dim_sym(SYM_N, 1), dim_const(width));
    ir_type_id vec = ir_type1(g, IR_f32, dim_const(width));
    ir_id src[64], wrt[64], grad[64], part = IR_NONE, loss = IR_NONE;
    size_t n = 0, fixed = 1 + (size_t)finished;
    for (int j = 0; j < finished; j++) wrt[n++] = src[1 + j] = input(g, row, str_fmt(a, "v%d", j));
    for (int i = 0; i < sites; i++) {
        wrt[n++] = src[0] = input(g, vec, str_fmt(a, "u%d", i));
        size_t k = fixed;
        if (part != IR_NONE) src[k++] = part;
        ir_id t = ir_add(
            g, OP_depth_mix, src, k,
            ATTRS(A_STR(site, str_fmt(a, "site%d", i)), A_INT(sources, k - 1), A_NUM(eps, 1e-6)),
            NULL);
        ir_id h = ir_get(g, t, 0), c = input(g, row, str_fmt(a, "c%d", i));
        ir_output(g, str_fmt(a, "h%d", i), h);
        ir_id l = ir_unary(g, OP_sum, ir_binary(g, OP_mul, h, c));
        loss = loss == IR_NONE ? l : ir_binary(g, OP_add, loss, l);
        if (i + 1 == sites) break;
        ir_id y = wrt[n++] = input(g, row, str_fmt(a, "y%d", i));
        if (full)
            src[fixed++] = y;
        else
            part = part == IR_NONE ? y : ir_binary(g, OP_add, part, y);
    }
    autodiff(g, loss, wrt, n, grad);
    for (size_t i = 0; i < n; i++) ir_output(g, str_fmt(a, "d.%s", ir_name(g, wrt[i])), grad[i]);
    return g;
}

struct results {
    const struct ir_graph *g;
    double **v; /* per output */
    size_t *n;
};

static struct results run(struct arena *a, int64_t width, double logit, const char *skip)
{
    struct session_options o = {.diag = diag_open(a), .pipeline = {.skip = skip}};
    struct session *s;
    struct ir_graph *g = block(a, width, FINISHED, SITES, false);
    if (session_open(&o, &s, &err)) fail_msg("%s", err.text);
    struct program *prog = program_open(s, g, "block", (struct ir_bind){B, T});
    bool grouped = false;
    for (ir_id n = 0; n < program_graph(prog)->node.n; n++)
        grouped |= ir_at(program_graph(prog), n)->op == OP_depth_inter_grad;
    assert_int_equal(grouped, skip == NULL);
    struct plan *p = program_plan(prog, B, T);
    if (session_compile(s, NULL, &err)) fail_msg("%s", err.text);
    for (ir_id n = 0; n < g->node.n; n++) {
        if (ir_at(g, n)->op != OP_input) continue;
        const struct plan_value *v = plan_value(p, ir_name(g, n));
        uint64_t stream = rng_stream(ir_name(g, n));
        double size = ir_name(g, n)[0] == 'u' ? logit / sqrt((double)width) : 1;
        for (int64_t i = 0; i < v->count; i++)
            ((float *)v->p)[i] = (float)(size * rng_normal(7, stream, (uint64_t)i));
    }
    plan_run(p);
    struct results r = {g, NEW(a, double *, g->out.n), NEW(a, size_t, g->out.n)};
    for (size_t i = 0; i < g->out.n; i++) {
        const struct plan_value *v = plan_value(p, intern_text(g->names, g->out.p[i].name));
        r.n[i] = (size_t)v->count;
        r.v[i] = NEW(a, double, v->count);
        for (int64_t k = 0; k < v->count; k++) r.v[i][k] = (double)((const float *)v->p)[k];
    }
    session_close(s);
    return r;
}

static void one_pass_over_the_sources_is_the_same_mix(void **state)
{
    static const int64_t width[] = {7, 48, 256};
    static const double logit[] = {0.1, 1, 3}; /* their standard deviation */
    double worst = 0;
    (void)state;
    for (size_t w = 0; w < 3; w++)
        for (size_t k = 0; k < 3; k++) {
            struct arena *a = arena_open("two-phase");
            struct results two = run(a, width[w], logit[k], NULL);
            struct results one = run(a, width[w], logit[k], "two-phase");
            for (size_t i = 0; i < two.g->out.n; i++) {
                const char *name = intern_text(two.g->names, two.g->out.p[i].name);
                double e = relative_error(two.v[i], one.v[i], one.n[i]);
                if (!(e <= 1e-6))
                    fail_msg("width %d, logits of %g: %s: relative difference %g", (int)width[w],
                             logit[k], name, e);
                if (e > worst) worst = e;
            }
            arena_close(a);
        }
    print_message("largest relative difference %.2g\n", worst);
}

/* Values of all outputs of g in float64, inputs by their names. */
static struct ir_values evaluate(struct arena *a, const struct ir_graph *g)
{
    const struct ir_bind bind = {1, 5};
    VEC(struct ir_named) in = {0};
    for (ir_id n = 0; n < g->node.n; n++) {
        if (ir_at(g, n)->op != OP_input) continue;
        const char *name = ir_word(g, n, AK_name, "");
        int64_t count = type_count(g->types, ir_at(g, n)->type, bind);
        double *v = NEW(a, double, count);
        for (int64_t i = 0; i < count; i++)
            v[i] = rng_normal(7, rng_stream(name), (uint64_t)i) * (*name == 'u' ? 0.3 : 1);
        vec_push(a, &in, ((struct ir_named){name, v, count}));
    }
    return ir_eval(a, g, bind, in.p, in.n);
}

/* Full: sites that each have one source more. */
static void gpu_groups_of_full_are_the_same_mixes(void **state)
{
    enum { WIDTH = 9, MOST = 9 };
    static const int queries[][MOST] = {{2, 2, 3, 2}, {3, 4, 2}, {5, 4}, {6, 3}};
    static const int finished[] = {3, 7, 14, 19};
    (void)state;
    for (size_t c = 0; c < sizeof finished / sizeof *finished; c++) {
        struct arena *a = arena_open("two-phase");
        struct pass_ctx ctx = {.arena = a, .gpu = true};
        struct ir_graph *g = block(a, WIDTH, finished[c], MOST, true);
        struct ir_graph *two = pass_two_phase(&ctx, g);
        const char *why = graph_verify(two, STAGE_T);
        if (why) fail_msg("%s", why);
        for (ir_id n = 0, k = 0; n < two->node.n; n++)
            if (ir_at(two, n)->op == OP_depth_inter)
                assert_int_equal(ir_int(two, n, AK_queries, 0), queries[c][k++]);
        struct ir_values want = evaluate(a, g), got = evaluate(a, two);
        for (size_t i = 0; i < g->out.n; i++) {
            const char *name = intern_text(g->names, g->out.p[i].name);
            struct ir_array x = ir_eval_output(&got, name), y = ir_eval_output(&want, name);
            double e = relative_error(x.v, y.v, (size_t)y.n);
            if (!(e <= 1e-12)) fail_msg("%d sources: %s: %g", finished[c], name, e);
        }
        arena_close(a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_pass_over_the_sources_is_the_same_mix),
                                       cmocka_unit_test(gpu_groups_of_full_are_the_same_mixes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
