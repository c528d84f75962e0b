/* The whole chain, spec to numbers: passes, memory plan, kernels, run; held to the independent
 * float64 oracle by the rule of tests/fixtures/README.md. On the CPU or, with
 * STRATA_TEST_DEVICE=cuda, on a GPU. */
#include "compiled.h"
#include "compiler/trainer.h"
#include "scratch.h"
#include <math.h>
#include <stdlib.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

enum { STEPS = 20 };

static struct { /* of all fixtures: the largest share of a tolerance that was used */
    double share;
    char name[128];
} worst;

/* `noise` is the fixture's tensor that says how far rounding of the weights moves this reference.
 */
static void expect(const struct fixture *f, const char *name, const char *noise, const double *got,
                   size_t count, double tol)
{
    size_t n, one;
    const double *want = fixture_want(f, name, &n);
    if (!want) fail_msg("%s: no reference %s", f->name, name);
    if (n != count) fail_msg("%s: %s has %zu elements, not %zu", f->name, name, count, n);
    const double *moved = noise ? fixture_want(f, noise, &one) : NULL;
    if (moved && 10 * *moved > tol) tol = 10 * *moved;
    double e = relative_error(got, want, n);
    if (!(e <= tol)) fail_msg("%s: %s: relative error %g, allowed %g", f->name, name, e, tol);
    if (e / tol > worst.share) {
        worst.share = e / tol;
        snprintf(worst.name, sizeof worst.name, "%s %s", f->name, name);
    }
}

/* [B*T, n] as [n, B, T]. */
static const double *turned(const struct compiled *c, const double *p, size_t count)
{
    size_t rows = (size_t)(c->f->B * c->f->T), n = count / rows;
    double *out = NEW(c->arena, double, count);
    for (size_t r = 0; r < rows; r++)
        for (size_t s = 0; s < n; s++) out[s * rows + r] = p[r * n + s];
    return out;
}

static void check_tensors(const struct compiled *c)
{
    struct arena *a = c->arena;
    size_t sites = 0, n, count;
    for (size_t i = 0; i < tensorfile_count(c->f->want); i++) {
        const char *name = tensorfile_at(c->f->want, i)->name;
        if (str_starts(str_of(name), "grad.")) {
            const double *g = compiled_grad(c, name + 5, &n);
            expect(c->f, name, str_fmt(a, "noise.%s", name + 5), g, n, 1e-4);
        } else if (str_starts(str_of(name), "depth.")) {
            const double *d = compiled_get(c, c->forward, name, &n);
            expect(c->f, name, str_fmt(a, "noise.%s", name), turned(c, d, n), n, 1e-5);
            sites++;
        }
    }
    const struct plan_value *v = plan_values(c->forward, &count);
    for (size_t i = 0; i < count; i++) sites -= str_starts(str_of(v[i].name), "depth.");
    assert_int_equal(sites, 0);
}

static const char *device(void)
{
    const char *name = getenv("STRATA_TEST_DEVICE");
    return name && *name ? name : NULL;
}

static void check_fixture(const char *name)
{
    const struct compiled_options o = {.depth_weights = true, .device = device()};
    struct compiled *c = compiled_open(fixture_open(name, NULL), &o);
    size_t n;
    compiled_run(c);
    const double *logits = compiled_get(c, c->forward, "logits", &n);
    expect(c->f, "logits", "noise.logits", logits, n, 1e-5);
    const double *loss = compiled_get(c, c->train, "loss", &n);
    expect(c->f, "loss", "noise.loss", loss, n, 1e-5);
    check_tensors(c);
    compiled_close(c);
}

static void test_fixtures(void **state)
{
    (void)state;
    struct arena *a = arena_open("names");
    size_t n = 0;
    for (const char *const *p = fixture_names(a); *p; p++, n++) check_fixture(*p);
    printf("%zu fixtures; most of a tolerance used: %.3f (%s)\n", n, worst.share, worst.name);
    assert_true(n >= 32);
    arena_close(a);
}

/* ---- bf16 ---- */

/* Logits in bf16 beside those of the oracle that rounds at the same places, both with the experts
 * that it chooses without rounding: no further from the exact ones than half as much again. */
static double bf16_share(const char *name)
{
    struct fixture *f = fixture_open(name, NULL);
    f->model->train.precision = PREC_bf16;
    const struct compiled_options o = {
        .device = device(), .forward_only = true, .given_routes = true};
    struct compiled *c = compiled_open(f, &o);
    compiled_bind(c, c->forward);
    plan_run(c->forward);
    size_t n, m;
    const double *got = compiled_get(c, c->forward, "logits", &n);
    const double *exact = fixture_want(f, "logits", &m);
    double allowed, error = relative_error(got, exact, n);
    memcpy(&allowed, tensorfile_find(f->rounded, "error")->data, sizeof allowed);
    if (!(error <= 1.5 * allowed))
        fail_msg("%s: bf16 logits are %.2e off, the oracle's %.2e", name, error, allowed);
    compiled_close(c);
    return error / allowed;
}

/* Rounding would move tokens of these to other experts. */
static bool moves_tokens(const char *name)
{
    static const char *const moved[] = {"attnres-boundaries", "k3-mini", "kimi-mini", "moe-latent"};
    for (size_t i = 0; i < sizeof moved / sizeof *moved; i++)
        if (!strcmp(name, moved[i])) return true;
    return false;
}

static void test_bf16(void **state)
{
    (void)state;
    struct arena *a = arena_open("names");
    double most = 0;
    size_t n = 0;
    bool all = device() || getenv("STRATA_TEST_ALL"); /* on a CPU these and every fourth will do */
    int i = 0;
    for (const char *const *p = fixture_names(a); *p; p++, i++) {
        if (!all && i % 4 && !moves_tokens(*p)) continue;
        most = fmax(most, bf16_share(*p)), n++;
    }
    printf("bf16: %zu fixtures; errors at most %.3f times those of the oracle\n", n, most);
    assert_true(n >= (all ? 33 : 12));
    arena_close(a);
}

/* Programs that are given the experts which they would choose anyway. */
static void check_given_routes(const char *name)
{
    struct compiled_options o = {.device = device()};
    struct compiled *own = compiled_open(fixture_open(name, NULL), &o);
    o.given_routes = true;
    struct compiled *given = compiled_open(fixture_open(name, NULL), &o);
    compiled_run(own), compiled_run(given);
    size_t count, n, m;
    const struct plan_value *v = plan_values(own->train, &count);
    for (size_t i = 0; i < count; i++) {
        if (!str_starts(str_of(v[i].name), "grad.") && strcmp(v[i].name, "loss")) continue;
        const double *a = compiled_get(own, own->train, v[i].name, &n);
        const double *b = compiled_get(given, given->train, v[i].name, &m);
        if (n != m || memcmp(a, b, n * sizeof *a)) fail_msg("%s: %s differs", name, v[i].name);
    }
    const double *a = compiled_get(own, own->forward, "logits", &n);
    assert_memory_equal(a, compiled_get(given, given->forward, "logits", &m), n * sizeof *a);
    compiled_close(own), compiled_close(given);
}

static void test_given_routes(void **state)
{
    (void)state;
    check_given_routes("moe-softmax");
    check_given_routes("k3-mini");
}

static const double *reference(struct arena *a, const struct tensorfile *f, const char *name,
                               size_t *n)
{
    const struct tf_tensor *t = tensorfile_find(f, name);
    if (!t || t->dtype != TF_F64) fail_msg("no reference %s", name);
    double *v = NEW(a, double, t->count);
    memcpy(v, t->data, t->bytes);
    *n = t->count;
    return v;
}

static void check_final(struct trainer *t, const struct tensorfile *want)
{
    struct arena *a = t->run.cli->arena;
    size_t n, found = 0;
    run_pull(&t->run);
    for (size_t i = 0; i < t->run.params->n; i++) {
        const struct param *p = &t->run.params->p[i];
        for (size_t k = 0; k < p->num_parts; k++) {
            const struct param_part *q = &p->part[k];
            const double *w = reference(a, want, str_fmt(a, "final.%s", q->tensor), &n);
            double *got = NEW(a, double, n);
            for (size_t e = 0; e < n; e++)
                got[e] = (double)t->run.weights[i][(size_t)q->offset + e];
            double error = relative_error(got, w, n);
            if (!(error <= 1e-4)) fail_msg("final %s: relative error %g", q->tensor, error);
            found++;
        }
    }
    for (size_t i = 0; i < tensorfile_count(want); i++)
        found -= str_starts(str_of(tensorfile_at(want, i)->name), "final.");
    assert_int_equal(found, 0);
}

static void check_trajectory(const char *name)
{
    struct cli c = {.arena = arena_open("trajectory")};
    struct tensorfile *want;
    struct trainer t;
    const struct run_options o = {.threads = 2, .device = device()};
    size_t n;
    c.diag = diag_open(c.arena);
    const char *dir = str_fmt(c.arena, "tests/fixtures/%s", name);
    if (tensorfile_open(io_join(c.arena, dir, "want.safetensors"), &want, &c.err))
        fail_msg("%s", c.err.text);
    trainer_open(&t, &c, cli_model(&c, io_join(c.arena, dir, "spec.yaml")), &o);
    trainer_start(&t, io_join(c.arena, dir, "weights.safetensors"));
    const double *loss = reference(c.arena, want, "loss", &n), *lr, *norm;
    assert_int_equal(n, STEPS);
    lr = reference(c.arena, want, "lr", &n);
    norm = reference(c.arena, want, "grad_norm", &n);
    double most = 0;
    for (size_t i = 0; i < STEPS; i++) {
        struct step_result r = trainer_step(&t);
        double e = fabs((double)r.loss / loss[i] - 1), g = fabs((double)r.grad_norm / norm[i] - 1);
        if (!(e <= 1e-4 && g <= 1e-4))
            fail_msg("%s: step %zu: loss is %g off, the gradient's norm %g", name, i, e, g);
        if (fabs(r.lr / lr[i] - 1) > 1e-12)
            fail_msg("%s: step %zu: lr %.17g, not %.17g", name, i, r.lr, lr[i]);
        if (e > most) most = e;
    }
    printf("%s: largest relative error of a loss %.2g\n", name, most);
    check_final(&t, want);
    trainer_close(&t);
    tensorfile_close(want);
    arena_close(c.arena);
}

static void test_adamw(void **state)
{
    (void)state;
    check_trajectory("traj-adamw");
}

static void test_muon(void **state)
{
    (void)state;
    check_trajectory("traj-muon");
}

static void test_kimi(void **state)
{
    (void)state;
    check_trajectory("traj-kimi");
    check_trajectory("traj-kimi-adamw");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixtures),     cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_given_routes), cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_muon),         cmocka_unit_test(test_kimi),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
