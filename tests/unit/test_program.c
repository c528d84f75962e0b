/* The whole chain on the CPU, model to numbers: passes, memory plan, kernels, run. Models of the
 * fixtures against the float64 oracle, the apply program against the evaluator. */
#include "compiler/program.h"
#include "eval.h"
#include "fixture.h"
#include "scratch.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static struct rt_error err;
#define OK(expr)                                                                                   \
    do {                                                                                           \
        if ((expr) != RT_ok) fail_msg("%s: %s", #expr, err.text);                                  \
    } while (0)

static struct session *open_session(struct session_options o)
{
    struct session *s;
    OK(session_open(&o, &s, &err));
    return s;
}

static void set(struct plan *p, const char *name, const void *data, size_t bytes)
{
    const struct plan_value *v = plan_value(p, name);
    if (!v) return; /* a program that does not need it */
    assert_int_equal(v->bytes, bytes);
    memcpy(v->p, data, bytes);
}

static void set_inputs(struct plan *p, const struct fixture *f)
{
    size_t n = (size_t)(f->B * f->T);
    float count = (float)f->count;
    set(p, "tokens", f->tokens, 4 * n);
    set(p, "targets", f->targets, 4 * n);
    set(p, "count", &count, 4);
    for (size_t i = 0; i < f->params->n; i++)
        set(p, f->params->p[i].name, f->weights[i], 4 * (size_t)f->params->p[i].count);
}

static double *doubles(struct arena *a, const float *p, int64_t n)
{
    double *v = NEW(a, double, n);
    for (int64_t i = 0; i < n; i++) v[i] = (double)p[i];
    return v;
}

/* Against `want` or, where it is zero, against 0. */
static void expect(const struct fixture *f, const char *what, const float *got, const double *want,
                   size_t n, double tol)
{
    double scale = 0, worst = 0;
    for (size_t i = 0; i < n; i++) scale += want[i] * want[i];
    double *d = doubles(f->arena, got, (int64_t)n);
    double e = scale > 0 ? relative_error(d, want, n) : 0;
    for (size_t i = 0; i < n; i++)
        if (!(fabs(d[i]) <= worst)) worst = fabs(d[i]);
    if (!(e <= tol) || (scale == 0 && !(worst <= 1e-6)))
        fail_msg("%s: %s: relative error %g, largest %g", f->name, what, e, worst);
}

static void check_grads(struct plan *p, const struct fixture *f, double tol)
{
    for (size_t i = 0; i < tensorfile_count(f->want); i++) {
        const char *name = tensorfile_at(f->want, i)->name;
        if (!str_starts(str_of(name), "grad.")) continue;
        size_t param, n;
        const struct param_part *q = fixture_part(f, name + 5, &param);
        const struct plan_value *g =
            plan_value(p, str_fmt(f->arena, "grad.%s", f->params->p[param].name));
        assert_non_null(g);
        const double *want = fixture_want(f, name, &n);
        expect(f, name, (float *)g->p + q->offset, want, n, tol);
    }
}

struct models { /* a fixture's programs */
    struct fixture *f;
    struct plan *forward, *train;
};

static struct models open_models(struct session *s, struct arena *a, const char *name)
{
    struct models m = {.f = fixture_open(name, NULL)};
    const struct build_options o = {0};
    struct ir_bind b = {m.f->B, m.f->T};
    struct ir_graph *g = build_model(a, m.f->model, m.f->params, BUILD_forward, &o);
    struct program *p = program_open(s, g, name, b);
    assert_non_null(p);
    m.forward = program_plan(p, b.B, b.T);
    g = build_model(a, m.f->model, m.f->params, BUILD_train, &o);
    build_gradients(g);
    p = program_open(s, g, name, b);
    assert_non_null(p);
    m.train = program_plan(p, b.B, b.T);
    return m;
}

static void check_models(const struct models *m)
{
    size_t n;
    set_inputs(m->forward, m->f);
    plan_run(m->forward);
    const double *want = fixture_want(m->f, "logits", &n);
    expect(m->f, "logits", plan_value(m->forward, "logits")->p, want, n, 1e-5);
    set_inputs(m->train, m->f);
    plan_run(m->train);
    want = fixture_want(m->f, "loss", &n);
    expect(m->f, "loss", plan_value(m->train, "loss")->p, want, n, 1e-6);
    check_grads(m->train, m->f, 1e-4);
}

static void fixtures_are_met(const char *skip)
{
    struct arena *a = arena_open("test");
    const char *const *name = fixture_names(a);
    for (; *name; name++) {
        struct session *s = open_session((struct session_options){.pipeline = {.skip = skip}});
        struct models m = open_models(s, a, *name);
        OK(session_compile(s, NULL, &err));
        check_models(&m);
        fixture_close(m.f);
        session_close(s);
    }
    arena_close(a);
}

static void models_are_the_oracles(void **state)
{
    (void)state;
    fixtures_are_met(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_are_the_oracles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
