/* --device cuda from end to end on the fake CUDA installation (tests/fakecuda/fake.h): models
 * against the oracle, training and generating against the CPU, recordings, memory. With
 * STRATA_TEST_DEVICE=cuda what needs no CPU's kernels, on a GPU. */
#include "compiled.h"
#include "compiler/trainer.h"
#include "eval.h"
#include "runtime/gpu.h"
#include "scratch.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

enum { STEPS = 3 };

/* ---- whole models ---- */

static double tolerance(const struct fixture *f, const char *noise)
{
    size_t n;
    const double *moved = fixture_want(f, noise, &n);
    return moved && 10 * *moved > 1e-4 ? 10 * *moved : 1e-4;
}

static void expect(const struct fixture *f, const char *name, const char *noise, const double *got,
                   size_t count)
{
    size_t n;
    const double *want = fixture_want(f, name, &n);
    assert_non_null(want);
    assert_int_equal(n, count);
    double e = relative_error(got, want, n);
    if (!(e <= tolerance(f, noise))) fail_msg("%s: %s: relative error %g", f->name, name, e);
}

static void check_model(const char *name)
{
    const struct compiled_options o = {.device = "cuda"};
    struct compiled *c = compiled_open(fixture_open(name, NULL), &o);
    struct arena *a = c->arena;
    size_t n;
    compiled_run(c);
    for (size_t i = 0; i < tensorfile_count(c->f->want); i++) {
        const char *x = tensorfile_at(c->f->want, i)->name;
        if (!str_starts(str_of(x), "grad.")) continue;
        const double *g = compiled_grad(c, x + 5, &n);
        expect(c->f, x, str_fmt(a, "noise.%s", x + 5), g, n);
    }
    const double *logits = compiled_get(c, c->forward, "logits", &n);
    expect(c->f, "logits", "noise.logits", logits, n);
    const double *loss = compiled_get(c, c->train, "loss", &n);
    expect(c->f, "loss", "noise.loss", loss, n);
    compiled_close(c);
}

static void models(void **state)
{
    (void)state;
    static const char *const name[] = {"attention-all", "attnres-size-2", "kimi-mini"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) check_model(name[i]);
}

/* ---- bf16 ---- */

typedef VEC(double) numbers;

/* Loss and gradients by the evaluator, which rounds where the graph says. */
static numbers evaluated(struct arena *a, const struct fixture *f, const struct ir_graph *g)
{
    numbers all = {0};
    struct ir_values v = fixture_eval(f, a, g);
    for (size_t i = 0; i < g->out.n; i++) {
        struct ir_array x = ir_eval_output(&v, intern_text(g->names, g->out.p[i].name));
        for (int64_t k = 0; k < x.n; k++) vec_push(a, &all, x.v[k]);
    }
    return all;
}

/* What is left are values on the edge between two bf16 numbers that fall differently, and what
 * tensor cores take as bf16 within a kernel (probabilities of attention, parts of KDA). */
static void check_bf16(const char *name)
{
    struct arena *a = arena_open("bf16");
    struct fixture *f = fixture_open(name, NULL);
    const struct compiled_options o = {.device = "cuda"};
    const struct build_options plain = {0};
    struct ir_graph *g = build_model(a, f->model, f->params, BUILD_train, &plain);
    build_gradients(g);
    numbers full = evaluated(a, f, g), got = {0};
    f->model->train.precision = PREC_bf16;
    struct compiled *c = compiled_open(f, &o);
    numbers want =
        evaluated(a, f, program_graph(c->train_program)); /* has all that the GPU rounds */
    compiled_run(c);
    for (size_t i = 0; i < g->out.n; i++) {
        size_t n;
        const double *x = compiled_get(c, c->train, intern_text(g->names, g->out.p[i].name), &n);
        for (size_t k = 0; k < n; k++) vec_push(a, &got, x[k]);
    }
    assert_int_equal(got.n, want.n);
    double apart = relative_error(full.p, want.p, want.n);
    double off = relative_error(got.p, want.p, want.n);
    printf("%s: bf16 is %.2g from float32, the device %.2g from bf16\n", name, apart, off);
    assert_true(apart > 1e-4 && off < apart);
    compiled_close(c);
    arena_close(a);
}

static void bf16(void **state)
{
    (void)state;
    check_bf16("attention-all");
    check_bf16("moe-sigmoid");
    check_bf16("kimi-mini");
}

/* ---- training steps ---- */

struct steps {
    struct cli c;
    struct trainer t;
    struct step_result r[STEPS];
};

static struct steps *train_in(const char *device, unsigned streams, const char *batch,
                              const char *micro)
{
    struct arena *a = arena_open("steps");
    struct steps *x = NEW(a, struct steps, 1);
    const struct run_options o = {.threads = 2, .device = device, .streams = streams};
    const char *dir = "tests/fixtures/traj-kimi";
    x->c.arena = a, x->c.diag = diag_open(a);
    vec_push(a, &x->c.set, batch);
    vec_push(a, &x->c.set, micro);
    vec_push(a, &x->c.set, "train.seq_len=9");
    trainer_open(&x->t, &x->c, cli_model(&x->c, io_join(a, dir, "spec.yaml")), &o);
    trainer_start(&x->t, io_join(a, dir, "weights.safetensors"));
    for (int i = 0; i < STEPS; i++) x->r[i] = trainer_step(&x->t);
    run_pull(&x->t.run);
    return x;
}

static struct steps *train(const char *device, const char *batch, const char *micro)
{
    return train_in(device, 0, batch, micro);
}

static void train_close(struct steps *x)
{
    trainer_close(&x->t);
    arena_close(x->c.arena);
}

/* The largest relative error of a parameter; `same`: all bits must be equal. */
static void compare(const struct steps *x, const struct steps *y, bool same)
{
    for (int i = 0; i < STEPS; i++) {
        double loss = fabs((double)x->r[i].loss / (double)y->r[i].loss - 1);
        double norm = fabs((double)x->r[i].grad_norm / (double)y->r[i].grad_norm - 1);
        if (!(loss <= (same ? 0 : 1e-6) && norm <= (same ? 0 : 1e-4)))
            fail_msg("step %d: loss is %g off, the gradient's norm %g", i, loss, norm);
    }
    for (size_t i = 0; i < x->t.run.params->n; i++) {
        const struct param *p = &x->t.run.params->p[i];
        double diff = 0, size = 0;
        for (int64_t k = 0; k < p->count; k++) {
            double u = (double)x->t.run.weights[i][k], v = (double)y->t.run.weights[i][k];
            diff += (u - v) * (u - v), size += v * v;
        }
        if (diff > (same ? 0 : 1e-8 * size)) fail_msg("%s differs: %g", p->name, sqrt(diff / size));
    }
    for (size_t i = 0; i < x->t.loads.n; i++)
        assert_memory_equal(x->t.loads.p[i].p, y->t.loads.p[i].p, 4 * x->t.loads.p[i].n);
}

/* The last step in the log: after the first two, which are launched and recorded, it is one launch
 * of a graph and a wait for its end. */
static void check_log(const char *path, struct arena *a)
{
    struct str log;
    size_t launches = 0, waits = 0;
    assert_int_equal(io_read(a, path, SIZE_MAX / 2, &log), 0);
    const char *end = strstr(log.p, "graph-launch");
    assert_non_null(end);
    const char *second = strstr(end + 1, "graph-launch"), *from = strstr(end, "sync event\n");
    assert_true(from && second && from < second);
    for (const char *p = strchr(from, '\n') + 1; waits == 0; p = strchr(p, '\n') + 1) {
        const char *e = strchr(p, '\n');
        struct str line = {p, (size_t)(e - p)};
        if (str_starts(line, "graph-launch"))
            launches++;
        else if (str_starts(line, "sync event"))
            waits++;
        else if (!str_starts(line, "record-event"))
            fail_msg("in a step: %.*s", (int)line.n, line.p);
    }
    assert_int_equal(launches, 1);
}

static void steps(void **state)
{
    (void)state;
    static const char *const batch[] = {"train.batch_size=4", "train.batch_size=3"};
    static const char *const micro[] = {"train.micro_batches=1", "train.micro_batches=3"};
    for (int i = 0; i < 2; i++) {
        setenv("STRATA_FAKE_LOG", in_dir("log"), 1);
        struct steps *gpu = train("cuda", batch[i], micro[i]),
                     *cpu = train(NULL, batch[i], micro[i]);
        if (i == 0) check_log(in_dir("log"), gpu->c.arena);
        compare(gpu, cpu, false);
        if (i == 1) {
            struct steps *again = train("cuda:0", batch[i], micro[i]);
            compare(gpu, again, true);
            train_close(again);
        }
        train_close(gpu), train_close(cpu);
    }
}

/* One stream, and several orders that the waits between two allow: the same bits. */
static void orders(void **state)
{
    (void)state;
    static const char *const batch = "train.batch_size=2", *const micro = "train.micro_batches=2";
    struct steps *one = train_in("cuda", 1, batch, micro);
    for (int i = 0; i < 4; i++) {
        char seed[] = {(char)('0' + i), 0};
        if (i) setenv("STRATA_FAKE_ORDER", seed, 1);
        struct steps *two = train_in("cuda", 2, batch, micro);
        compare(one, two, true);
        train_close(two);
    }
    unsetenv("STRATA_FAKE_ORDER");
    train_close(one);
}

static void combinations(void **state)
{
    (void)state;
    enum { N = 10000 };
    struct rt_error err;
    struct session *s;
    const struct session_options o = {.device = "cuda", .threads = 1};
    if (session_open(&o, &s, &err)) fail_msg("%s", err.text);
    const struct plan_value *x = session_value(s, "x", N), *y = session_value(s, "y", N);
    assert_int_equal(session_compile(s, NULL, &err), 0);
    float *a = x->p, *b = y->p;
    for (int i = 0; i < N; i++) a[i] = (float)(i % 7), b[i] = (float)(i % 5);
    assert_int_equal(session_push(s, x, &err) | session_push(s, y, &err), 0);
    const size_t n = N - 3; /* the last ones stay */
    struct session_span u = {x->p, x->device, n}, v = {y->p, y->device, n};
    session_combine(s, u, v, u, COMBINE_max);
    session_combine(s, v, u, v, COMBINE_sum);
    assert_int_equal(session_pull(s, x, &err) | session_pull(s, y, &err), 0);
    for (int i = 0; i < N; i++) {
        float p = (float)(i % 7), q = (float)(i % 5), most = p > q ? p : q;
        bool in = (size_t)i < n;
        if (a[i] != (in ? most : p) || b[i] != (in ? most + q : q)) fail_msg("element %d", i);
    }
    session_combine(s, v, u, u, COMBINE_copy);
    assert_int_equal(session_pull(s, y, &err), 0);
    assert_memory_equal(a, b, n * sizeof *a);
    assert_int_equal(session_status(s, &err), 0);
    session_close(s);
}

/* ---- the commands ---- */

enum { MOST = 24 };

/* Runs build/strata and returns what it prints; fails where its exit status is another. */
static char *strata(struct arena *a, int want, const char *const *arg)
{
    static char self[512];
    char *argv[MOST] = {self};
    struct str out;
    int status, n = 1;
    if (!strata_path(self)) fail_msg("no build/strata");
    for (; *arg; arg++) {
        assert_true(n + 1 < MOST);
        argv[n++] = str_dup(a, str_of(*arg));
    }
    if (io_spawn(a, argv, STR(""), &out, &status)) fail_msg("%s does not run", self);
    char *text = str_dup(a, out);
    if (status != want << 8) fail_msg("%s %s: status %d\n%s", argv[1], argv[2], status, text);
    return text;
}
#define STRATA(a, want, ...) strata(a, want, (const char *const[]){__VA_ARGS__, NULL})

/* Five steps here; and there two, then two, then the last one again here. */
static void checkpoints(void **state)
{
    (void)state;
    struct arena *a = arena_open("checkpoints");
    const char *spec = "tests/fixtures/traj-muon/spec.yaml";
    const char *one = str_fmt(a, "train.checkpoint.dir=%s", in_dir("one"));
    const char *two = str_fmt(a, "train.checkpoint.dir=%s", in_dir("two"));
    STRATA(a, 0, "train", spec, "--set", one, "--steps", "5");
    STRATA(a, 0, "train", spec, "--set", two, "--steps", "2");
    STRATA(a, 0, "train", spec, "--set", two, "--steps", "4", "--resume", "--device", "cuda");
    STRATA(a, 0, "train", spec, "--set", two, "--steps", "5", "--resume");
    for (int file = 0; file < 2; file++) {
        struct tensorfile *f[2];
        struct rt_error err;
        for (int i = 0; i < 2; i++) {
            const char *path = str_fmt(a, "%s/step-5/%s.safetensors", in_dir(i ? "two" : "one"),
                                       file ? "optimizer" : "model");
            if (tensorfile_open(path, &f[i], &err)) fail_msg("%s", err.text);
        }
        assert_int_equal(tensorfile_count(f[0]), tensorfile_count(f[1]));
        for (size_t i = 0; i < tensorfile_count(f[0]); i++) {
            const struct tf_tensor *x = tensorfile_at(f[0], i);
            const struct tf_tensor *y = tensorfile_find(f[1], x->name);
            float *u = NEW(a, float, x->count), *v = NEW(a, float, x->count);
            assert_non_null(y);
            assert_int_equal(tf_read_f32(x, 0, x->count, u, &err), 0);
            assert_int_equal(tf_read_f32(y, 0, x->count, v, &err), 0);
            double diff = 0, size = 0;
            for (size_t k = 0; k < x->count; k++) {
                diff += ((double)u[k] - (double)v[k]) * ((double)u[k] - (double)v[k]);
                size += (double)u[k] * (double)u[k];
            }
            if (diff > 1e-8 * size) fail_msg("%s: %g", x->name, sqrt(diff / size));
        }
        tensorfile_close(f[0]), tensorfile_close(f[1]);
    }
    arena_close(a);
}

static size_t count_lines(const char *from, const char *to, const char *with)
{
    size_t n = 0;
    for (const char *p = from; (p = strstr(p, with)) && p < to; p++) n++;
    return n;
}

/* A token is one launch of a graph, in which one copy goes to the device and one comes back, and
 * one wait. */
static void check_decoding(const char *path, struct arena *a)
{
    struct str log;
    assert_int_equal(io_read(a, path, SIZE_MAX / 2, &log), 0);
    const char *begin = strstr(log.p, "begin-capture"), *end = strstr(log.p, "end-capture");
    assert_true(begin && end && begin < end);
    assert_int_equal(count_lines(begin, end, "htod-async"), 1);
    assert_int_equal(count_lines(begin, end, "dtoh-async"), 1);
    const char *p = strstr(end, "graph-launch"), *next;
    for (int i = 0; i < 3; i++, p = next) {
        next = strstr(p + 1, "graph-launch");
        assert_non_null(next);
        assert_int_equal(count_lines(p, next, "\n"), 2); /* the launch and */
        assert_int_equal(count_lines(p, next, "sync stream"), 1);
    }
}

static void generate(void **state)
{
    (void)state;
    struct arena *a = arena_open("generate");
    static const char *const name[] = {"attention-window", "kimi-mini"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        const char *spec = str_fmt(a, "tests/fixtures/%s/spec.yaml", name[i]), *out[2];
        const char *weights = str_fmt(a, "tests/fixtures/%s/weights.safetensors", name[i]);
        const char *file = str_dup(a, str_of(in_dir(str_fmt(a, "log-%zu", i))));
        setenv("STRATA_FAKE_LOG", file, 1);
        for (int d = 0; d < 2; d++)
            out[d] = STRATA(a, 0, "generate", spec, "--weights", weights, "--prompt-ids",
                            "3,5,7,2,3,1", "--max-tokens", "7", "--set", "serve.max_context=64",
                            "--print-ids", "--device", d ? "cuda" : "cpu");
        unsetenv("STRATA_FAKE_LOG");
        assert_string_equal(out[0], out[1]);
        check_decoding(file, a);
        out[1] = STRATA(a, 0, "generate", spec, "--weights", weights, "--prompt-ids", "3,5,7",
                        "--max-tokens", "4", "--print-ids", "--device", "cuda", "--dtype", "bf16");
        assert_non_null(strchr(out[1], ' '));
    }
    arena_close(a);
}

static void refused(void **state)
{
    (void)state;
    struct arena *a = arena_open("refused");
    const char *spec = "tests/fixtures/traj-muon/spec.yaml";
    const char *dir = str_fmt(a, "train.checkpoint.dir=%s", in_dir("none"));
    char *out = STRATA(a, 1, "train", spec, "--set", dir, "--device", "cuda:7");
    assert_non_null(strstr(out, "there is no device cuda:7"));
    out = STRATA(a, 2, "train", spec, "--set", dir, "--device", "gpu");
    assert_non_null(strstr(out, "no device 'gpu': it is cpu, cuda or cuda:N"));
    setenv("STRATA_FAKE_BYTES", "200000", 1);
    out = STRATA(a, 3, "train", spec, "--set", dir, "--device", "cuda");
    unsetenv("STRATA_FAKE_BYTES");
    assert_non_null(strstr(out, "no memory on cuda:0"));
    assert_non_null(strstr(out, "train.micro_batches"));
    spec = "tests/fixtures/kimi-mini/spec.yaml";
    setenv("STRATA_FAKE_BYTES", "20000", 1);
    out =
        STRATA(a, 3, "generate", spec, "--weights", "tests/fixtures/kimi-mini/weights.safetensors",
               "--prompt-ids", "1", "--device", "cuda");
    unsetenv("STRATA_FAKE_BYTES");
    assert_non_null(strstr(out, "of caches: "));
    assert_non_null(strstr(out, "what needs less: a smaller serve.cache_tokens"));
    out = STRATA(a, 2, "generate", spec, "--weights", "none", "--prompt-ids", "1", "--device",
                 "cuda", "--dtype", "int8");
    assert_non_null(strstr(out, "on a GPU weights are fp32 or bf16"));
    arena_close(a);
}

/* Code for X.Y runs on X.Z with Z >= Y, and on no other X. */
static void architectures(void **state)
{
    (void)state;
    static const struct {
        int major, minor;
        const char *arch;
    } x[] = {{8, 0, "sm_80"},    {8, 6, "sm_86"},   {8, 7, "sm_87"},    {8, 8, "sm_86"},
             {8, 9, "sm_89"},    {9, 0, "sm_90a"},  {10, 0, "sm_100a"}, {10, 3, "sm_103a"},
             {11, 0, "sm_110a"}, {12, 0, "sm_120"}, {12, 1, "sm_120"}};
    assert_null(gpu_arch(7, 5));
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        assert_string_equal(gpu_arch(x[i].major, x[i].minor), x[i].arch);
}

/* `strata check --device`: what is planned, against a device or an amount. */
static void fits(void **state)
{
    (void)state;
    struct arena *a = arena_open("fits");
    const char *spec = "specs/bench-c.yaml";
    char *out = STRATA(a, 0, "check", spec, "--device", "cuda");
    assert_non_null(strstr(out, "fits cuda:0 (strata fake device): "));
    out = STRATA(a, 0, "check", spec, "--device", "80GB");
    assert_non_null(strstr(out, "fits a GPU of 80GB: "));
    out = STRATA(a, 1, "check", spec, "--device", "1.4GB", "--set", "train.batch_size=16");
    assert_non_null(strstr(out, "does not fit a GPU of 1.4GB: "));
    assert_non_null(strstr(out, "--set train.micro_batches="));
    out = STRATA(a, 1, "check", spec, "--device", "650MB", "--json");
    assert_non_null(strstr(out, "\"fits\": false"));
    assert_non_null(strstr(out, "only a smaller model does"));
    /* Tries all sizes of micro-batches, up to 256 sequences of 8192 tokens, then shorter ones. */
    out = STRATA(a, 1, "check", "specs/attnres-scaling-241m.yaml", "--device", "80GB");
    assert_non_null(strstr(out, "; --set train.seq_len=4096 needs "));
    STRATA(a, 2, "check", spec, "--device", "80XB");
    arena_close(a);
}

int main(void)
{
    char path[512];
    const char *real = getenv("STRATA_TEST_DEVICE");
    const struct CMUnitTest alone[] = {cmocka_unit_test(models), cmocka_unit_test(bf16)};
    if (real && *real) return cmocka_run_group_tests(alone, NULL, NULL);
    if (!strata_path(path)) return 1;
    strcpy(strrchr(path, '/'), "/fakecuda");
    setenv("STRATA_CUDA_PATH", path, 1);
    if (!scratch_open()) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps),        cmocka_unit_test(orders),
        cmocka_unit_test(models),       cmocka_unit_test(bf16),
        cmocka_unit_test(combinations), cmocka_unit_test(checkpoints),
        cmocka_unit_test(generate),     cmocka_unit_test(refused),
        cmocka_unit_test(fits),         cmocka_unit_test(architectures),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_close();
    return failed;
}
