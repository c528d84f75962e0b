/* precision: bf16: the compiled program against the float64 evaluator of the same graph, which
 * rounds at the same points. What is left are values on the edge between two bf16 numbers that fall
 * differently, so the distance must be well below that between bf16 and float32. */
#include "compiled.h"
#include "eval.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

struct got { /* logits, loss and gradients, as doubles */
    VEC(double) v;
};

static void add(struct arena *a, struct got *g, const double *d, const float *f, int64_t n)
{
    for (int64_t i = 0; i < n; i++) vec_push(a, &g->v, d ? d[i] : (double)f[i]);
}

static struct ir_graph *program(struct arena *a, const struct fixture *f, enum build_program which)
{
    const struct build_options plain = {0};
    struct ir_graph *g = build_model(a, f->model, f->params, which, &plain);
    if (which == BUILD_train) build_gradients(g);
    return g;
}

static void evaluated(struct arena *a, const struct fixture *f, enum build_program which,
                      struct got *out)
{
    struct ir_graph *g = program(a, f, which);
    struct ir_values v = fixture_eval(f, a, g);
    for (size_t i = 0; i < g->out.n; i++) {
        struct ir_array x = ir_eval_output(&v, intern_text(g->names, g->out.p[i].name));
        add(a, out, x.v, NULL, x.n);
    }
}

/* The fixture is the caller's: it is closed with c. */
static void compiled(struct arena *a, const struct compiled *c, enum build_program which,
                     struct got *out)
{
    const struct plan *p = which == BUILD_train ? c->train : c->forward;
    struct ir_graph *g = program(a, c->f, which);
    for (size_t i = 0; i < g->out.n; i++) {
        const struct plan_value *x = plan_value(p, intern_text(g->names, g->out.p[i].name));
        add(a, out, NULL, x->p, x->count);
    }
}

static void check(const char *name)
{
    struct arena *a = arena_open("bf16");
    struct fixture *f = fixture_open(name, NULL);
    struct got full[2] = {0}, want[2] = {0}, got[2] = {0};
    static const enum build_program which[2] = {BUILD_forward, BUILD_train};
    const struct compiled_options plain = {0};
    for (int i = 0; i < 2; i++) evaluated(a, f, which[i], &full[i]);
    f->model->train.precision = PREC_bf16;
    for (int i = 0; i < 2; i++) evaluated(a, f, which[i], &want[i]);
    struct compiled *c = compiled_open(f, &plain);
    compiled_run(c);
    for (int i = 0; i < 2; i++) {
        compiled(a, c, which[i], &got[i]);
        assert_int_equal(got[i].v.n, want[i].v.n);
        double apart = relative_error(full[i].v.p, want[i].v.p, want[i].v.n);
        double off = relative_error(got[i].v.p, want[i].v.p, want[i].v.n);
        print_message("%s %s: bf16 is %.2g from float32, the program %.2g from its definition\n",
                      name, i ? "gradients" : "logits", apart, off);
        assert_true(apart > 1e-4 && apart < 0.1);
        assert_true(off < apart / 2);
    }
    compiled_close(c);
    arena_close(a);
}

static void programs_round_where_the_evaluator_does(void **state)
{
    (void)state;
    static const char *const name[] = {"attention-all", "attnres-size-3", "moe-sigmoid",
                                       "everything", "kda-bounded-full"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) check(name[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(programs_round_where_the_evaluator_does)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
