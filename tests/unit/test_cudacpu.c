/* The CUDA prelude, and kernels of every kind written with it, on the CPU machine of cudacpu.h:
 * against float64 at odd sizes, in all orders of threads and blocks, with every access checked; and
 * kernels with a mistake each, which it must find. */
#include "base/io.h"
#include "codegen/text.h"
#include "cudacpu.h"
#include "kernel_build.h"
#include "runtime/nvrtc.h"
#include "runtime/philox.h"
#include <math.h>
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>

static struct cudacpu *good, *wrong;

static char *text_of(struct arena *a, const char *path)
{
    struct str s;
    if (io_read(a, path, 1 << 20, &s) != 0) fail_msg("cannot read %s", path);
    return str_fmt(a, "%.*s", (int)s.n, s.p);
}

static const char *compiler(void)
{
    const char *env = getenv("STRATA_CLANG");
    if (env && *env) return env;
    return system("command -v clang-19 >/dev/null") == 0 ? "clang-19" : "clang-14";
}

static int setup(void **state)
{
    (void)state;
    struct arena *a = arena_open("test_cudacpu");
    good = cudacpu_open(compiler(), text_of(a, "tests/cuda/kernels.cu"), true);
    wrong = cudacpu_open(compiler(), text_of(a, "tests/cuda/wrong.cu"), true);
    arena_close(a);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    cudacpu_close(good);
    cudacpu_close(wrong);
    return 0;
}

static uint64_t seed;
static float number(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(seed >> 40) / (1 << 23) - 1.0);
}

static float *numbers(int64_t n)
{
    float *x = cudacpu_alloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = number();
    return x;
}

static float wide(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Numbers that bf16 has. */
static uint16_t *halves(int64_t n)
{
    uint16_t *x = cudacpu_alloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        float f = number();
        memcpy(&x[i], (char *)&f + 2, 2);
    }
    return x;
}

/* Runs a kernel in every order: the results must be the same bits each time. */
static void run(const char *name, struct dim3 grid, struct dim3 block, size_t shared, void *y,
                size_t bytes, void *const *args)
{
    char *first = malloc(bytes + 1);
    assert_non_null(first);
    for (unsigned i = 0; i < CUDACPU_orders; i++) {
        struct cudacpu_launch l = {grid, block, shared, (enum cudacpu_order)i, 7};
        memset(y, 0xff, bytes);
        const char *report = cudacpu_run(good, name, l, args);
        if (report) fail_msg("%s", report);
        if (i == 0)
            memcpy(first, y, bytes);
        else if (memcmp(first, y, bytes) != 0)
            fail_msg("%s: results depend on the order", name);
    }
    free(first);
}
#define ONE(n) ((struct dim3){(unsigned)(n), 1, 1})
#define ARGS(...) ((void *[]){__VA_ARGS__})

static void close_to(const char *what, int64_t i, float got, double want, double tolerance)
{
    if (!(fabs((double)got - want) <= tolerance * (1 + fabs(want))))
        fail_msg("%s: element %lld is %.9g, not %.9g", what, (long long)i, (double)got, want);
}

static void test_elementwise(void **state)
{
    (void)state;
    float a = 1.5f, b = -0.25f;
    for (int64_t n = 1; n < 1300; n = n * 3 + 2) {
        float *x = numbers(n), *y = cudacpu_alloc((size_t)n * 4);
        run("k_silu", ONE(2), ONE(128), 0, y, (size_t)n * 4, ARGS(&y, &x, &a, &b, &n));
        for (int64_t i = 0; i < n; i++) {
            double v = 1.5 * (double)x[i] - 0.25;
            close_to("silu", i, y[i], v / (1 + exp(-v)), 1e-6);
        }
        cudacpu_free(x), cudacpu_free(y);
    }
}

/* Elementary functions have the bits of the CPU's prelude, whatever the argument. */
static void test_math(void **state)
{
    (void)state;
    enum { N = 1003, ROWS = 7 };
    static const float special[] = {0.0f,   -0.0f, 1e-40f,  -1e-40f, 1e30f,
                                    -1e30f, 88.9f, -103.9f, 1.0f};
    static const char text[] =
        "void f(void *const *p, const int64_t *n, int64_t lo, int64_t hi, UNUSED void *s) {\n"
        "const float *x = p[1]; float *y = p[0]; int64_t m = n[0]; (void)lo, (void)hi;\n"
        "for (int64_t i = 0; i < m; i++) { y[i] = exp1(x[i]); y[m + i] = log1(x[i]);\n"
        "y[2 * m + i] = tanh1(x[i]); y[3 * m + i] = sigmoid1(x[i]);\n"
        "y[4 * m + i] = softplus16(splat16(x[i]))[0]; y[5 * m + i] = rsqrt1(x[i]);\n"
        "y[6 * m + i] = bf16_round1(x[i]); } }\n";
    int64_t n = N;
    float *x = numbers(N), *y = cudacpu_alloc(ROWS * N * 4), *want = calloc(ROWS * N, 4);
    for (int i = 0; i < N; i++) x[i] *= i % 3 ? 10.0f : 100.0f;
    for (size_t i = 0; i < sizeof special / sizeof *special; i++) x[i] = special[i];
    x[20] = INFINITY, x[21] = -INFINITY, x[22] = NAN;
    run("k_math", ONE(8), ONE(128), 0, y, ROWS * N * 4, ARGS(&y, &x, &n));
    struct sb s = {0};
    sb_printf(&s, "%s%s", cg_text_prelude, text);
    kernel_fn *f = kernel_of(kernel_build(&s, "native"), "f");
    f(ARGS(want, x), &n, 0, 1, NULL);
    for (int i = 0; i < ROWS * N; i++)
        if (memcmp(&y[i], &want[i], 4) != 0 && !(isnan(y[i]) && isnan(want[i])))
            fail_msg("function %d of %.9g is %.9g, on the CPU %.9g", i / N, (double)x[i % N],
                     (double)y[i], (double)want[i]);
    sb_free(&s), free(want), cudacpu_free(x), cudacpu_free(y);
}

/* The coarse forms keep 18 bits, of small results and of large ones, and have the limits of the
 * others. */
static void test_coarse(void **state)
{
    (void)state;
    enum { N = 4003, ROWS = 3 };
    static const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, 1e-30f, 0.3f, -0.3f, NAN};
    int64_t n = N;
    float *x = numbers(N), *y = cudacpu_alloc(ROWS * N * 4);
    for (int i = 0; i < N; i++) x[i] *= i % 3 ? 8.0f : i % 2 ? 80.0f : 0.01f;
    memcpy(x, special, sizeof special);
    run("k_coarse", ONE(32), ONE(128), 0, y, ROWS * N * 4, ARGS(&y, &x, &n));
    for (int i = 0; i < ROWS * N; i++) {
        double v = (double)x[i % N];
        double want = i < N ? exp(v) : i < 2 * N ? tanh(v) : 1 / (1 + exp(-v));
        double off = isinf(want) ? 0 : fabs((double)y[i] - want);
        bool right =
            isnan(v) ? isnan(y[i]) : off <= 4e-6 * fmin(fmax(1, fabs(v) / 8), 20) * want + 0x1p-126;
        if (v < 0 && i >= N && i < 2 * N) right = off <= -4e-6 * want;
        if (!right || (isinf(want) && y[i] != (float)want))
            fail_msg("function %d of %g is %g", i / N, v, (double)y[i]);
    }
    cudacpu_free(x), cudacpu_free(y);
}

static void test_rms(void **state)
{
    (void)state;
    float eps = 1e-5f;
    for (int d = 8, rows = 5; d < 900; d = d * 4 + 8) {
        uint16_t *x = halves(rows * d), *y = cudacpu_alloc((size_t)(rows * d) * 2);
        float *w = numbers(d);
        for (int kind = 0; kind < 2; kind++) {
            if (kind)
                run("k_rms_warp", ONE(2), ONE(96), 0, y, (size_t)(rows * d) * 2,
                    ARGS(&y, &x, &w, &d, &eps, &rows));
            else
                run("k_rms_block", ONE(rows), ONE(96), 0, y, (size_t)(rows * d) * 2,
                    ARGS(&y, &x, &w, &d, &eps));
            for (int i = 0; i < rows * d; i++) {
                double sum = 0;
                for (int j = 0; j < d; j++) sum += pow((double)wide(x[i / d * d + j]), 2);
                close_to("rms", i, wide(y[i]), wide(x[i]) * w[i % d] / sqrt(sum / d + 1e-5), 4e-3);
            }
        }
        cudacpu_free(x), cudacpu_free(y), cudacpu_free(w);
    }
}

static void test_softmax(void **state)
{
    (void)state;
    for (int d = 1; d < 700; d = d * 5 + 2) {
        float *x = numbers(3 * d), *y = cudacpu_alloc((size_t)d * 12);
        for (int i = 0; i < 3 * d; i++) x[i] *= 30;
        run("k_softmax", ONE(3), ONE(64), 0, y, (size_t)d * 12, ARGS(&y, &x, &d));
        for (int i = 0; i < 3 * d; i++) {
            double sum = 0;
            for (int j = 0; j < d; j++) sum += exp((double)x[i / d * d + j] - (double)x[i]);
            close_to("softmax", i, y[i], 1 / sum, 2e-6);
        }
        cudacpu_free(x), cudacpu_free(y);
    }
}

static void test_matmul(void **state)
{
    (void)state;
    static const int sizes[][3] = {{1, 8, 8}, {33, 40, 72}, {50, 8, 32}, {32, 64, 104}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
        uint16_t *a = halves(m * k), *b = halves(k * n);
        float *c = cudacpu_alloc((size_t)(m * n) * 4);
        struct dim3 grid = {(unsigned)(n + 31) / 32, (unsigned)(m + 31) / 32, 1};
        run("k_matmul", grid, ONE(128), 2 * 2 * 32 * 40 * 2, c, (size_t)(m * n) * 4,
            ARGS(&c, &a, &b, &m, &n, &k));
        for (int i = 0; i < m * n; i++) {
            double sum = 0;
            for (int j = 0; j < k; j++)
                sum += (double)wide(a[i / n * k + j]) * (double)wide(b[j * n + i % n]);
            close_to("matmul", i, c[i], sum, 1e-6);
        }
        cudacpu_free(a), cudacpu_free(b), cudacpu_free(c);
    }
    float *a = numbers(128), *b = numbers(64), *c = cudacpu_alloc(512);
    run("k_tf32", ONE(1), ONE(32), 0, c, 512, ARGS(&c, &a, &b));
    for (int i = 0; i < 128; i++) {
        double sum = 0;
        for (int j = 0; j < 8; j++) sum += (double)a[i / 8 * 8 + j] * (double)b[j * 8 + i % 8];
        close_to("tf32", i, c[i], sum, 3e-3);
    }
    cudacpu_free(a), cudacpu_free(b), cudacpu_free(c);
}

static void test_transpose(void **state)
{
    (void)state;
    int m = 37, n = 65;
    float *x = numbers(m * n), *y = cudacpu_alloc((size_t)(m * n) * 4);
    run("k_transpose", (struct dim3){3, 2, 1}, (struct dim3){32, 8, 1}, 0, y, (size_t)(m * n) * 4,
        ARGS(&y, &x, &m, &n));
    for (int i = 0; i < m * n; i++) assert_true(y[i % n * m + i / n] == x[i]);
    cudacpu_free(x), cudacpu_free(y);
}

static void test_sum(void **state)
{
    (void)state;
    int64_t n = 5003;
    float *x = numbers(n), *y = cudacpu_alloc(4), *parts = cudacpu_alloc(20);
    unsigned *done = cudacpu_alloc(4);
    double want = 0;
    *done = 0;
    for (int64_t i = 0; i < n; i++) want += (double)x[i];
    run("k_sum", ONE(5), ONE(96), 0, y, 4, ARGS(&y, &parts, &done, &x, &n));
    close_to("sum", 0, *y, want, 1e-5);
    cudacpu_free(x), cudacpu_free(y), cudacpu_free(parts), cudacpu_free(done);
}

static void test_dispatch(void **state)
{
    (void)state;
    static const int sizes[][2] = {{101, 7}, {1, 64}, {0, 3}, {64, 1}, {200, 70}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int n = sizes[s][0], experts = sizes[s][1], at = 0;
        int *expert = cudacpu_alloc((size_t)n * 4),
            *out = cudacpu_alloc((size_t)(n + experts + 1) * 4);
        int *start = out + n;
        for (int i = 0; i < n; i++)
            expert[i] = (int)(fabsf(number()) * (float)experts) / 2 * 2 % experts;
        run("k_dispatch", ONE(1), ONE(256), 0, out, (size_t)(n + experts + 1) * 4,
            ARGS(&out, &start, &expert, &n, &experts));
        for (int e = 0; e < experts; e++) {
            assert_int_equal(start[e], at);
            for (int i = 0; i < n; i++)
                if (expert[i] == e) assert_int_equal(out[i], at++);
        }
        assert_int_equal(start[experts], n);
        cudacpu_free(expert), cudacpu_free(out);
    }
}

static void test_named_and_random(void **state)
{
    (void)state;
    float *x = numbers(64), *y = cudacpu_alloc(256);
    run("k_named", ONE(1), ONE(128), 0, y, 256, ARGS(&y, &x));
    for (int i = 0; i < 64; i++) assert_true(y[i] == 2 * x[63 - i] + 1);
    uint64_t key = 0x123456789abcdef, stream = 77, *bits = cudacpu_alloc(101 * 8);
    int n = 101;
    run("k_random", ONE(4), ONE(32), 0, bits, 101 * 8, ARGS(&bits, &key, &stream, &n));
    for (int i = 0; i < n; i++) assert_true(bits[i] == rng_bits(key, stream, (uint64_t)i));
    cudacpu_free(x), cudacpu_free(y), cudacpu_free(bits);
}

static void test_pieces(void **state)
{
    (void)state;
    uint16_t *x = cudacpu_alloc(256);
    uint32_t *c = cudacpu_alloc(320 * 4);
    int *top = cudacpu_alloc(8);
    for (int i = 0; i < 128; i++) x[i] = (uint16_t)(i + 1);
    top[0] = top[1] = 0;
    run("k_pieces", ONE(1), ONE(32), 0, c, 320 * 4, ARGS(&c, &x, &top));
    for (int l = 0; l < 32; l++) {
        int g = l / 4, t = l % 4, base = l / 8 * 8, in = l % 8;
        for (int i = 0; i < 2; i++) {
            /* The last copy of four brings zeros. */
            int at = 64 * i + 8 * g + 2 * t, low = at < 124 ? at + 1 : 0, high = low ? low + 1 : 0;
            assert_int_equal(c[32 * i + l], low | high << 16);
            at = 64 * i + 16 * t + g;
            low = at < 124 ? at + 1 : 0, high = at + 8 < 124 ? at + 9 : 0;
            assert_int_equal(c[32 * (2 + i) + l], low | high << 16);
        }
        assert_int_equal(c[32 * 4 + l], in + 3 < 8 ? l + 3 : l);
        assert_int_equal(c[32 * 5 + l], in >= 3 ? l - 3 : l);
        assert_int_equal(c[32 * 6 + l], base + (in ^ 5));
        assert_int_equal(c[32 * 7 + l], base + 1);
        assert_int_equal(c[32 * 8 + l], 3);
        assert_int_equal(c[32 * 9 + l], l < 16 ? 15 - l : 16);
    }
    assert_int_equal(top[0], 31);
    assert_int_equal(top[1], CUDACPU_orders * 31 * 32 / 2);
    cudacpu_free(x), cudacpu_free(c), cudacpu_free(top);
}

/* Every mistake is found in every order of threads, and named with its kernel. */
static void test_mistakes(void **state)
{
    (void)state;
    static const struct {
        const char *kernel, *report;
        unsigned blocks;
    } rows[] = {
        {"w_race", "race: ", 1},
        {"w_reuse", "race: ", 1},
        {"w_shuffle", "race: ", 1},
        {"w_blocks", "race: ", 3},
        {"w_divergent", "divergent barrier: ", 1},
        {"w_two_barriers", "divergent barrier: ", 1},
        {"w_deadlock", "deadlock: ", 1},
        {"w_lanes", "deadlock: ", 1},
        {"w_no_wait", "cp.async: ", 1},
        {"w_no_barrier", "race: ", 1},
        {"w_left", "cp.async: ", 1},
        {"w_shared", "out of bounds: ", 1},
        {"w_global", "out of bounds: ", 1},
        {"w_misaligned", "misaligned: ", 1},
    };
    float *y = cudacpu_alloc(256), *x = numbers(64);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (unsigned o = 0; o < CUDACPU_orders; o++) {
            unsigned threads = strcmp(rows[i].kernel, "w_shuffle") == 0 ? 32 : 64;
            struct cudacpu_launch l = {ONE(rows[i].blocks), ONE(threads), 256,
                                       (enum cudacpu_order)o, 3};
            const char *report = cudacpu_run(wrong, rows[i].kernel, l, ARGS(&y, &x));
            if (o == 0) printf("%s\n", report ? report : "nothing");
            if (!report || strncmp(report, rows[i].report, strlen(rows[i].report)) != 0 ||
                !strstr(report, rows[i].kernel))
                fail_msg("%s: %s", rows[i].kernel, report ? report : "not found");
        }
    cudacpu_free(x), cudacpu_free(y);
}

/* Every compiler builds the texts; without checks, too, which AddressSanitizer replaces. */
static void test_compilers(void **state)
{
    (void)state;
    static const char *const names[] = {"clang-19", "clang-14", "gcc-12"};
    struct arena *a = arena_open("test_compilers");
    char *text = text_of(a, "tests/cuda/kernels.cu");
    struct cudacpu *checked = good;
    const char *env = getenv("STRATA_CLANG");
    for (int i = 0; i < 3; i++) {
        const char *probe =
            "command -v %s >/dev/null && echo 'int f();' | %s -xc++ -fsyntax-only - "
            "2>/dev/null";
        if (system(str_fmt(a, probe, names[i], names[i])) != 0) continue;
        if (env && strcmp(env, names[i]) != 0) continue;
        good = cudacpu_open(names[i], text, i == 2);
        test_matmul(NULL);
        test_sum(NULL);
        cudacpu_close(good);
    }
    good = checked;
    arena_close(a);
}

/* The same texts are CUDA: NVRTC takes them without a warning, and no kernel spills. */
static void test_nvrtc(void **state)
{
    (void)state;
    static const char *const arch[] = {"sm_80", "sm_90", "sm_100"};
    static const char *const paths[] = {"tests/cuda/kernels.cu", "tests/cuda/wrong.cu"};
    struct arena *a = arena_open("test_nvrtc");
    struct rt_error err = {0};
    const char *known;
    if (nvrtc_archs(a, &known, &err) != RT_ok) {
        printf("skipped: no NVRTC\n");
        arena_close(a);
        skip();
    }
    for (int i = 0; i < 6; i++) {
        const char *text = str_fmt(a, "%s\n#line 1 \"kernels\"\n%s", cg_text_cuda_prelude,
                                   text_of(a, paths[i / 3]));
        struct nvrtc_image image;
        assert_int_equal(nvrtc_compile(a, text, arch[i % 3], false, &image, &err), RT_ok);
        assert_int_equal(image.kernels, 14);
        if (strstr(image.log, "warning")) fail_msg("%s: %s", arch[i % 3], image.log);
        for (size_t k = 0; k < image.kernels; k++)
            if (image.kernel[k].spill_stores || image.kernel[k].spill_loads)
                fail_msg("%s spills on %s", image.kernel[k].name, arch[i % 3]);
    }
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise), cmocka_unit_test(test_math),
        cmocka_unit_test(test_coarse),      cmocka_unit_test(test_rms),
        cmocka_unit_test(test_softmax),     cmocka_unit_test(test_matmul),
        cmocka_unit_test(test_transpose),   cmocka_unit_test(test_sum),
        cmocka_unit_test(test_dispatch),    cmocka_unit_test(test_named_and_random),
        cmocka_unit_test(test_pieces),      cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_compilers),   cmocka_unit_test(test_nvrtc),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
