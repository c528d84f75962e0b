/* The pass narrow and what fuse-rows narrows after it, in the float64 evaluator, over the fixtures'
 * models in bf16: its exact parts keep every bit of all outputs, the rest stays within bf16
 * rounding. And golden texts: tests/ir/narrow_*.ir (UPDATE=1). */
#include "base/io.h"
#include "compiler/pass.h"
#include "eval.h"
#include "fixture.h"
#include <glob.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

struct values {
    const struct ir_graph *g;
    struct ir_values v;
};

static struct values run(struct arena *a, const struct fixture *f, const struct ir_graph *g)
{
    return (struct values){g, fixture_eval(f, a, g)};
}

static struct ir_graph *apply(struct pass_ctx *c, const struct ir_graph *g, pass_fn *fn,
                              enum ir_stage stage)
{
    struct ir_graph *r = fn(c, g);
    assert_non_null(r);
    const char *why = graph_verify(r, stage);
    if (why) fail_msg("%s", why);
    return r;
}

static size_t narrow_values(const struct ir_graph *g)
{
    size_t n = 0;
    for (ir_id i = 0; i < g->node.n; i++)
        for (const char *w = ir_word(g, i, AK_narrow, ""); *w; w++) n += *w == '1';
    return n;
}

static double distance(struct ir_array p, struct ir_array q)
{
    double off = 0;
    for (int64_t i = 0; i < p.n; i++) off += (p.v[i] - q.v[i]) * (p.v[i] - q.v[i]);
    return sqrt(off);
}

/* All outputs are the same; or, where `plain` is what the graph without any bf16 gives, no farther
 * from each other than four times what the roundings of `x` change, or a hundredth. */
static void compare(const struct fixture *f, const char *what, const struct values *x,
                    const struct values *y, const struct values *plain)
{
    for (size_t k = 0; k < x->g->out.n; k++) {
        const char *name = intern_text(x->g->names, x->g->out.p[k].name);
        struct ir_array p = ir_eval_output(&x->v, name), q = ir_eval_output(&y->v, name);
        double off = distance(p, q), size = 0, tol = 0;
        for (int64_t i = 0; i < p.n; i++) size += p.v[i] * p.v[i];
        if (plain) tol = 4 * distance(p, ir_eval_output(&plain->v, name)) + 0.01 * sqrt(size);
        if (getenv("STRATA_TEST_VERBOSE") && plain)
            printf("%s %s: %g of %g, rounding %g\n", f->name, name, off, sqrt(size), tol);
        if (!(off <= tol)) fail_msg("%s, %s: %s is off by %g, %g", f->name, what, name, off, tol);
    }
}

static void check_program(struct arena *a, const struct fixture *f, struct ir_graph *g,
                          const struct values *plain)
{
    struct pass_ctx c = {.arena = a, .bind = {f->B, f->T}, .gpu = true, .exact = true};
    struct values before = run(a, f, g);
    struct ir_graph *t = apply(&c, g, pass_narrow, STAGE_T);
    struct values after = run(a, f, t);
    compare(f, "exact", &before, &after, NULL);
    struct ir_graph *k = apply(&c, t, pass_fuse_rows, STAGE_K);
    after = run(a, f, k);
    compare(f, "exact, fused", &before, &after, NULL);
    assert_true(narrow_values(t) > 0 && narrow_values(k) > narrow_values(t));
    size_t some = narrow_values(k);
    c.exact = false;
    t = apply(&c, g, pass_narrow, STAGE_T);
    after = run(a, f, t);
    compare(f, "rounded", &before, &after, plain);
    k = apply(&c, t, pass_fuse_rows, STAGE_K);
    struct values fused = run(a, f, k);
    compare(f, "rounded, fused", &after, &fused, NULL);
    assert_true(narrow_values(k) >= some);
    c.gpu = false;
    assert_int_equal(narrow_values(apply(&c, g, pass_narrow, STAGE_T)), 0);
}

static struct ir_graph *program(struct arena *a, const struct fixture *f, enum build_program which)
{
    const struct build_options o = {.given_routes = true}; /* rounding would change some */
    struct ir_graph *g = build_model(a, f->model, f->params, which, &o);
    if (which == BUILD_train) build_gradients(g);
    return g;
}

static void check_fixture(const char *name)
{
    struct arena *a = arena_open("narrow");
    struct fixture *f = fixture_open(name, NULL);
    struct values forward = run(a, f, program(a, f, BUILD_forward));
    struct values train = run(a, f, program(a, f, BUILD_train));
    f->model->train.precision = PREC_bf16;
    struct pass_ctx c = {.arena = a, .bind = {f->B, f->T}};
    pass_fn *const chain[] = {pass_simplify, pass_dce, pass_two_phase, pass_head_loss};
    struct ir_graph *g = program(a, f, BUILD_forward);
    check_program(a, f, apply(&c, g, pass_dce, STAGE_T), &forward);
    g = program(a, f, BUILD_train);
    for (size_t i = 0; i < sizeof chain / sizeof *chain; i++) {
        if (i == 2) check_program(a, f, g, &train);
        g = apply(&c, g, chain[i], STAGE_T);
    }
    check_program(a, f, g, &train);
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

/* Without products in bf16 nothing happens. */
static void test_float(void **state)
{
    (void)state;
    struct arena *a = arena_open("narrow");
    struct fixture *f = fixture_open("everything", NULL);
    const struct build_options o = {0};
    struct ir_graph *g = build_model(a, f->model, f->params, BUILD_train, &o);
    struct pass_ctx c = {.arena = a, .bind = {f->B, f->T}, .gpu = true};
    struct ir_graph *t = apply(&c, g, pass_narrow, STAGE_T);
    assert_true(graph_hash(t) == graph_hash(g));
    assert_int_equal(narrow_values(apply(&c, t, pass_fuse_rows, STAGE_K)), 0);
    fixture_close(f);
    arena_close(a);
}

static void test_golden(void **state)
{
    (void)state;
    struct arena *a = arena_open("narrow");
    glob_t files;
    assert_int_equal(glob("tests/ir/narrow_*.ir", 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        struct str text, want = {0};
        const char *path = files.gl_pathv[i];
        assert_int_equal(io_read(a, path, 1 << 20, &text), 0);
        struct diag *d = diag_open(a);
        struct ir_graph *g = graph_parse(a, d, diag_file(d, path, text), text, NULL, NULL);
        struct sb out = {0};
        if (!g) {
            diag_print(d, &out);
            fail_msg("%s", out.p);
        }
        struct pass_ctx c = {.arena = a, .diag = d, .bind = {2, 8}, .report = &out, .gpu = true};
        struct ir_graph *t = apply(&c, g, pass_narrow, STAGE_T);
        sb_str(&out, "\n");
        graph_print(t, NULL, &out);
        sb_str(&out, "\n");
        struct ir_graph *k = apply(&c, t, pass_fuse_rows, STAGE_K);
        sb_str(&out, "\n");
        graph_print(k, NULL, &out);
        const char *file = str_fmt(a, "%.*s.want", (int)strlen(path) - 3, path);
        if (getenv("UPDATE")) assert_int_equal(io_write_atomic(file, out.p, out.n), 0);
        assert_int_equal(io_read(a, file, 1 << 20, &want), 0);
        if (!str_eq(want, (struct str){out.p, out.n})) fail_msg("%s: got\n%s", file, out.p);
        sb_free(&out);
    }
    globfree(&files);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_float),
        cmocka_unit_test(test_fixtures),
    };
    return cmocka_run_group_tests_name("narrow", tests, NULL, NULL);
}
