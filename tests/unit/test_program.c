/* The whole chain on the CPU, model to numbers: passes, memory plan, kernels, run. Models of the
 * fixtures against the float64 oracle, the apply program against the evaluator. */
#include "compiler/program.h"
#include "eval.h"
#include "fixture.h"
#include "random_graph.h"
#include "scratch.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static struct rt_error err;
#define OK(expr)                                                  \
    do {                                                          \
        if ((expr) != RT_ok) fail_msg("%s: %s", #expr, err.text); \
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
static void expect(struct arena *a, const char *name, const char *what, const float *got,
                   const double *want, size_t n, double tol)
{
    double scale = 0, worst = 0;
    for (size_t i = 0; i < n; i++) scale += want[i] * want[i];
    double *d = doubles(a, got, (int64_t)n);
    double e = scale > 0 ? relative_error(d, want, n) : 0;
    for (size_t i = 0; i < n; i++)
        if (!(fabs(d[i]) <= worst)) worst = fabs(d[i]);
    if (!(e <= tol) || (scale == 0 && !(worst <= 1e-6)))
        fail_msg("%s: %s: relative error %g, largest %g", name, what, e, worst);
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
        expect(f->arena, f->name, name, (float *)g->p + q->offset, want, n, tol);
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
    expect(m->f->arena, m->f->name, "logits", plan_value(m->forward, "logits")->p, want, n, 1e-5);
    set_inputs(m->train, m->f);
    plan_run(m->train);
    want = fixture_want(m->f, "loss", &n);
    expect(m->f->arena, m->f->name, "loss", plan_value(m->train, "loss")->p, want, n, 1e-6);
    check_grads(m->train, m->f, 1e-4);
}

static void models_are_the_oracles(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    for (const char *const *name = fixture_names(a); *name; name++) {
        struct session *s = open_session((struct session_options){0});
        struct models m = open_models(s, a, *name);
        OK(session_compile(s, NULL, &err));
        check_models(&m);
        fixture_close(m.f);
        session_close(s);
    }
    arena_close(a);
}

/* All outputs of a fixture's training program under some options, one after the other. */
static struct str outputs(struct arena *a, const char *name, struct session_options o)
{
    struct session *s = open_session(o);
    struct models m = open_models(s, a, name);
    OK(session_compile(s, NULL, &err));
    set_inputs(m.train, m.f);
    plan_run(m.train);
    struct sb all = {0};
    size_t n;
    const struct plan_value *v = plan_values(m.train, &n);
    for (size_t i = 0; i < n; i++) sb_add(&all, v[i].p, v[i].bytes);
    fixture_close(m.f);
    session_close(s);
    return sb_take(&all, a);
}

static void bits_do_not_depend_on_threads_or_fusion(void **state)
{
    (void)state;
    static const char *const name[] = {"everything", "attnres-full", "moe-softmax"};
    struct arena *a = arena_open("test");
    for (int i = 0; i < 3; i++) {
        struct str one = outputs(a, name[i], (struct session_options){.threads = 1});
        assert_true(str_eq(one, outputs(a, name[i], (struct session_options){.threads = 3})));
        struct session_options o = {.threads = 2, .pipeline = {.skip = "fuse-rows"}};
        if (!str_eq(one, outputs(a, name[i], o))) fail_msg("%s: unfused is different", name[i]);
    }
    arena_close(a);
}

static void sizes_share_kernels_and_weights(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct session *s = open_session((struct session_options){0});
    struct fixture *f = fixture_open("everything", NULL);
    const struct build_options o = {0};
    struct ir_bind b = {f->B, f->T};
    struct program *p =
        program_open(s, build_model(a, f->model, f->params, BUILD_forward, &o), "forward", b);
    struct plan *all = program_plan(p, b.B, b.T);
    assert_ptr_equal(all, program_plan(p, b.B, b.T));
    OK(session_compile(s, NULL, &err));
    set_inputs(all, f);
    plan_run(all);
    struct plan *one = program_plan(p, 1, b.T); /* the last sequence alone */
    struct jit_report rep;
    OK(session_compile(s, &rep, &err));
    assert_int_equal(rep.compiled + rep.code_bytes, 0); /* symbols of texts that are loaded */
    assert_ptr_equal(plan_value(one, f->params->p[0].name)->p,
                     plan_value(all, f->params->p[0].name)->p);
    set(one, "tokens", f->tokens + (b.B - 1) * b.T, 4 * (size_t)b.T);
    plan_run(one);
    const struct plan_value *few = plan_value(one, "logits"), *many = plan_value(all, "logits");
    assert_int_equal(few->dims[0], b.T);
    assert_memory_equal(few->p, (char *)many->p + many->bytes - few->bytes, few->bytes);
    fixture_close(f);
    session_close(s);
    arena_close(a);
}

/* The apply program on random state against the evaluator. */
static void check_apply(const char *name)
{
    struct arena *a = arena_open("test");
    struct session *s = open_session((struct session_options){0});
    const struct spec_options none = {0};
    struct model *m =
        spec_load(a, diag_open(a), str_fmt(a, "tests/fixtures/%s/spec.yaml", name), &none);
    assert_non_null(m);
    struct ir_graph *g = build_apply(a, m, params_of(a, m));
    struct plan *p = program_plan(program_open(s, g, name, (struct ir_bind){1, 1}), 1, 1);
    OK(session_compile(s, NULL, &err));
    size_t n;
    const struct plan_value *v = plan_values(p, &n);
    VEC(struct ir_named) in = {0};
    uint64_t seed = 1;
    for (size_t i = 0; i < n; i++) {
        if (ir_find_output(g, v[i].name) != IR_NONE) continue;
        for (int64_t k = 0; k < v[i].count; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            ((float *)v[i].p)[k] = 0.1f + (float)(seed >> 40) / (float)(1 << 25);
        }
        vec_push(a, &in,
                 ((struct ir_named){v[i].name, doubles(a, v[i].p, v[i].count), v[i].count}));
    }
    struct ir_values want = ir_eval(a, g, (struct ir_bind){1, 1}, in.p, in.n);
    plan_run(p);
    for (size_t i = 0; i < n; i++) {
        if (ir_find_output(g, v[i].name) == IR_NONE || v[i].dtype != SA_f32) continue;
        struct ir_array w = ir_eval_output(&want, v[i].name);
        expect(a, name, v[i].name, v[i].p, w.v, (size_t)w.n, 1e-5);
        if (str_starts(str_of(v[i].name), "new."))
            assert_ptr_equal(v[i].p, plan_value(p, v[i].name + 4)->p);
    }
    session_close(s);
    arena_close(a);
}

static void optimisers_are_the_evaluators(void **state)
{
    (void)state;
    check_apply("traj-adamw");
    check_apply("traj-muon");
}

/* The apply program in bf16 against the evaluator's in float32: Newton-Schulz steps round what they
 * multiply; 3 % on these. */
static void muon_in_bf16(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct session *s = open_session((struct session_options){0});
    static const char *const set[] = {"train.precision=bf16"};
    const struct spec_options o[2] = {{0}, {set, 1}};
    struct ir_graph *g[2];
    for (int i = 0; i < 2; i++) {
        struct model *m = spec_load(a, diag_open(a), "tests/fixtures/traj-muon/spec.yaml", &o[i]);
        assert_non_null(m);
        g[i] = build_apply(a, m, params_of(a, m));
    }
    struct plan *p = program_plan(program_open(s, g[1], "bf16", (struct ir_bind){1, 1}), 1, 1);
    OK(session_compile(s, NULL, &err));
    size_t n, matrices = 0;
    const struct plan_value *v = plan_values(p, &n);
    VEC(struct ir_named) in = {0};
    struct map old;
    map_init(&old, a);
    for (size_t i = 0; i < n; i++) {
        if (ir_find_output(g[1], v[i].name) != IR_NONE) continue;
        bool any_sign = str_starts(str_of(v[i].name), "grad.");
        for (int64_t k = 0; k < v[i].count; k++)
            ((float *)v[i].p)[k] =
                (float)random_below(1 << 20) / (1 << 20) - (any_sign ? 0.5f : -0.1f);
        if (str_starts(str_of(v[i].name), "m.")) memset(v[i].p, 0, 4 * (size_t)v[i].count);
        double *x = doubles(a, v[i].p, v[i].count);
        vec_push(a, &in, ((struct ir_named){v[i].name, x, v[i].count}));
        *map_str(&old, str_of(v[i].name)) = (uint32_t)in.n;
    }
    struct ir_values want = ir_eval(a, g[0], (struct ir_bind){1, 1}, in.p, in.n);
    plan_run(p);
    for (size_t i = 0; i < n; i++) {
        if (!str_starts(str_of(v[i].name), "new.model.layers") || v[i].rank < 2) continue;
        struct ir_array w = ir_eval_output(&want, v[i].name);
        const double *was = in.p[*map_str(&old, str_of(v[i].name + 4)) - 1].v;
        double wrong = 0, size = 0;
        for (int64_t k = 0; k < w.n; k++) {
            double d = w.v[k] - was[k], e = (double)((float *)v[i].p)[k] - w.v[k];
            size += d * d, wrong += e * e;
        }
        if (!(wrong < 0.05 * 0.05 * size))
            fail_msg("%s: the step is off by %.3f of its size", v[i].name, sqrt(wrong / size));
        matrices++;
    }
    assert_true(matrices >= 8);
    session_close(s);
    arena_close(a);
}

/* Views, concats and in-place results of every kind, as the kernels see them. */
static void random_graphs_are_the_evaluators(void **state)
{
    (void)state;
    enum { GRAPHS = 40 };
    struct arena *a = arena_open("test");
    struct session *s = open_session((struct session_options){0});
    struct ir_graph *g[GRAPHS];
    struct plan *p[GRAPHS];
    struct ir_bind b[GRAPHS];
    for (unsigned i = 0; i < GRAPHS; i++) {
        g[i] = random_graph(a, i, STAGE_T, str_fmt(a, "g%u.", i));
        b[i] = (struct ir_bind){1 + i % 3, 1 + 5 * (i % 12)};
        p[i] = program_plan(program_open(s, g[i], "random", b[i]), b[i].B, b[i].T);
    }
    OK(session_compile(s, NULL, &err));
    for (unsigned i = 0; i < GRAPHS; i++) {
        size_t n;
        const struct plan_value *v = plan_values(p[i], &n);
        struct ir_named *in = NEW(a, struct ir_named, g[i]->node.n);
        size_t nin = 0;
        for (ir_id k = 0; k < g[i]->node.n; k++) { /* also what no output needs */
            if (!(op_info((enum ir_op)ir_at(g[i], k)->op)->flags & F_LEAF)) continue;
            const char *name = ir_word(g[i], k, AK_name, "");
            int64_t count = type_count(g[i]->types, ir_at(g[i], k)->type, b[i]);
            double *x = NEW(a, double, count);
            for (int64_t j = 0; j < count; j++)
                x[j] = (double)((float)random_below(1 << 20) / (1 << 20) - 0.5f);
            const struct plan_value *to = plan_value(p[i], name);
            for (int64_t j = 0; to && j < count; j++) ((float *)to->p)[j] = (float)x[j];
            in[nin++] = (struct ir_named){name, x, count};
        }
        struct ir_values want = ir_eval(a, g[i], b[i], in, nin);
        plan_run(p[i]);
        for (size_t k = 0; k < n; k++) {
            if (ir_find_output(g[i], v[k].name) == IR_NONE) continue;
            struct ir_array w = ir_eval_output(&want, v[k].name);
            expect(a, "random", v[k].name, v[k].p, w.v, (size_t)w.n, 1e-4);
        }
    }
    session_close(s);
    arena_close(a);
}

static void emitted_text_is_whole(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct diag *d = diag_open(a);
    struct session *s = open_session((struct session_options){.cpu = "x86-64-v3", .diag = d});
    const struct spec_options none = {0};
    const struct build_options o = {0};
    struct model *m = spec_load(a, d, "tests/fixtures/mlp-situ/spec.yaml", &none);
    assert_non_null(m);
    struct ir_graph *g = build_model(a, m, params_of(a, m), BUILD_train, &o);
    build_gradients(g);
    struct program *p = program_open(s, g, "train", (struct ir_bind){2, 9});
    uint64_t bytes[SA_external];
    program_memory(program_plan(p, 2, 9), bytes);
    assert_true(bytes[SA_persistent] > 0 && bytes[SA_slot] > 0 && bytes[SA_scratch] > 0);
    struct sb text = {0}, plan = {0};
    program_emit_c(p, 2, 9, "mlp-situ 0123", &text);
    assert_true(!strncmp(text.p, "/* mlp-situ 0123\n", 17));
    assert_non_null(strstr(text.p, "spec.yaml:"));
    assert_true(scratch_open());
    assert_int_equal(io_write_atomic(in_dir("all.c"), text.p, text.n), 0);
    char *argv[] = {"sh",
                    "-c",
                    "clang-19 \"$@\" || clang-14 \"$@\"",
                    "sh",
                    "-std=gnu11",
                    "-fsyntax-only",
                    "-march=x86-64-v3",
                    "-Wall",
                    "-Werror",
                    in_dir("all.c"),
                    NULL};
    struct str out;
    int status;
    assert_int_equal(io_spawn(a, argv, (struct str){0}, &out, &status), 0);
    if (status) fail_msg("%.2000s", out.p);
    plan_print(program_plan(p, 2, 9), &plan);
    assert_non_null(strstr(plan.p, "step 0 node "));
    scratch_close();
    sb_free(&text);
    sb_free(&plan);
    session_close(s);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_are_the_oracles),
        cmocka_unit_test(bits_do_not_depend_on_threads_or_fusion),
        cmocka_unit_test(sizes_share_kernels_and_weights),
        cmocka_unit_test(optimisers_are_the_evaluators),
        cmocka_unit_test(muon_in_bf16),
        cmocka_unit_test(random_graphs_are_the_evaluators),
        cmocka_unit_test(emitted_text_is_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
