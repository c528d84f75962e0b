/* The builder, autodiff and the graph passes against the independent float64 oracle, everything in
 * float64: what is left is rounding of double arithmetic. */
#include "compiler/pass.h"
#include "eval.h"
#include "fixture.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

static void expect(const char *what, const char *name, double err)
{
    if (err > 1e-10) fail_msg("%s: %s: relative error %g", what, name, err);
}

static void check_grads(struct arena *a, const struct fixture *f, const struct ir_values *v)
{
    for (size_t i = 0; i < tensorfile_count(f->want); i++) {
        const char *name = tensorfile_at(f->want, i)->name;
        if (!str_starts(str_of(name), "grad.")) continue;
        size_t param, n;
        const struct param_part *q = fixture_part(f, name + 5, &param);
        assert_non_null(q);
        struct ir_array g = ir_eval_output(v, str_fmt(a, "grad.%s", f->params->p[param].name));
        const double *want = fixture_want(f, name, &n);
        expect(f->name, name, relative_error(g.v + q->offset, want, n));
    }
}

static struct ir_graph *passed(struct arena *a, struct ir_graph *g, pass_fn *fn)
{
    struct pass_ctx c = {.arena = a};
    struct ir_graph *r = fn(&c, g);
    const char *why = graph_verify(r, STAGE_T);
    if (why) fail_msg("%s", why);
    return r;
}

static void check_fixture(const char *name)
{
    struct arena *a = arena_open("test");
    struct fixture *f = fixture_open(name, NULL);
    const struct build_options o = {.depth_weights = true};
    struct ir_graph *g = build_model(a, f->model, f->params, BUILD_forward, &o);
    size_t n;
    struct ir_values v = fixture_eval(f, a, g);
    const double *want = fixture_want(f, "logits", &n);
    expect(name, "logits", relative_error(ir_eval_output(&v, "logits").v, want, n));
    v = fixture_eval(f, a, passed(a, g, pass_two_phase));
    expect(name, "two-phase logits", relative_error(ir_eval_output(&v, "logits").v, want, n));
    for (size_t i = 0; i < tensorfile_count(f->want); i++) {
        const char *t = tensorfile_at(f->want, i)->name;
        if (!str_starts(str_of(t), "depth.")) continue;
        const double *p = fixture_want(f, t, &n); /* [n,B,T] against our [N,n] */
        struct ir_array got = ir_eval_output(&v, t);
        assert_int_equal(got.n, n);
        int64_t rows = f->B * f->T, src = got.n / rows;
        double *turned = NEW(a, double, n);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t s = 0; s < src; s++) turned[s * rows + r] = got.v[r * src + s];
        expect(name, t, relative_error(turned, p, n));
    }
    const struct build_options plain = {0};
    struct ir_graph *train = build_model(a, f->model, f->params, BUILD_train, &plain);
    build_gradients(train);
    const char *why = graph_verify(train, STAGE_T);
    if (why) fail_msg("%s", why);
    want = fixture_want(f, "loss", &n);
    pass_fn *const chain[] = {NULL, pass_simplify, pass_dce, pass_two_phase, pass_head_loss};
    for (size_t i = 0; i < sizeof chain / sizeof *chain; i++) {
        if (chain[i]) train = passed(a, train, chain[i]);
        if (i == 1 || i == 2) continue;
        v = fixture_eval(f, a, train);
        expect(name, "loss", relative_error(ir_eval_output(&v, "loss").v, want, n));
        check_grads(a, f, &v);
    }
    fixture_close(f);
    arena_close(a);
}

static void test_fixtures(void **state)
{
    (void)state;
    struct arena *a = arena_open("names");
    for (const char *const *p = fixture_names(a); *p; p++) check_fixture(*p);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fixtures)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
