/* What `bench` counts and reports. Speeds are not tested: they belong to the machine. */
#include "compiler/bench.h"
#include "compiler/survey.h"
#include "compiler/machine.h"
#include "scratch.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static const char spec[] = "strata: 1\n"
                           "name: counted\n"
                           "tokenizer: bytes\n"
                           "model:\n"
                           "  vocab_size: 256\n"
                           "  hidden_size: 32\n"
                           "  residual: {type: attnres, blocks: 2}\n"
                           "  mixers: {full: {type: attention, num_heads: 2, head_dim: 16}}\n"
                           "  ffns: {dense: {type: mlp, intermediate_size: 64}}\n"
                           "  layers: [{repeat: 3, layers: [{mixer: full, ffn: dense}]}]\n"
                           "train:\n"
                           "  data: {path: there-is-none.txt}\n"
                           "  seq_len: 8\n"
                           "  batch_size: 6\n"
                           "  micro_batches: 2\n"
                           "  steps: 10\n"
                           "  optimizer: {type: adamw, lr: 1.0e-3}\n";

enum { D = 32, F = 64, V = 256, L = 3, B = 6, T = 8 };
static const double PRODUCTS = L * (4.0 * D * D + 3.0 * D * F) + D * V; /* weights in products */
static const double SCORES = L * 2.0 * D * (T + 1) / 2;                 /* q.k and p.v, causal */

static void open_spec(struct bench *b, struct cli *c, enum bench_program program)
{
    static struct run_options o = {.threads = 2};
    const char *path = str_dup(c->arena, str_of(in_dir("counted.yaml")));
    assert_int_equal(io_write_atomic(path, spec, sizeof spec - 1), 0);
    const struct bench_options x = {program, 40, 3};
    bench_open(b, c, path, &x, &o);
}

static struct cli new_cli(void)
{
    struct cli c = {.command = "bench", .arena = arena_open("cli")};
    c.diag = diag_open(c.arena);
    return c;
}

static void test_train(void **state)
{
    (void)state;
    struct cli c = new_cli();
    static struct bench b;
    open_spec(&b, &c, BENCH_train);
    /* forward, and twice that backward, without what is computed again */
    assert_true(b.flops == 3 * 2 * B * T * (PRODUCTS + SCORES));
    double weights = 4 * (PRODUCTS + V * D);
    assert_true(b.bytes > 8 * weights && b.bytes < 15 * weights);
    assert_true(bench_step(&b) > 0);
    bench_profile(&b);
    for (int i = 0; i < 3; i++) assert_true(bench_step(&b) > 0);
    assert_int_equal(b.t.step, 4);
    assert_int_equal(b.t.skipped, 0);
    struct bench *both[] = {&b, &b};
    struct sb s = {0};
    bench_profile_print(c.arena, both, 2, 1e12, NULL, &s);
    assert_non_null(strstr(s.p, "attention_grad"));
    assert_non_null(strstr(s.p, "optimiser "));
    assert_non_null(strstr(s.p, "matmul AB' 24x128x32")); /* gate and up are one product */
    sb_free(&s);
    bench_close(&b);
    arena_close(c.arena);
}

/* The floor of a training step on a GPU: products of a known size, at least. */
static void test_floor(void **state)
{
    (void)state;
    struct cli c = new_cli();
    struct floor_rates rates = FLOOR_H200;
    assert_false(floor_read("4,790", &rates) || floor_read("4,0,2", &rates) ||
                 floor_read("4,790,2x", &rates));
    assert_true(floor_read("2,500,3", &rates));
    assert_true(rates.bytes == 2e12 && rates.bf16 == 500e12 && rates.launch == 3e-6);
    const char *path = str_dup(c.arena, str_of(in_dir("counted.yaml")));
    assert_int_equal(io_write_atomic(path, spec, sizeof spec - 1), 0);
    const struct kinds *k = survey_kinds(&c, cli_model(&c, path), "sm_90a", &rates);
    double work = 0, least = 0, launches = 0;
    bool optimiser = false;
    for (size_t i = 0; i < k->row.n; i++) {
        const struct kind *x = &k->row.p[i];
        work += x->work, least += x->floor.seconds, launches += x->calls[0];
        optimiser |= x->group == KIND_optimiser && !strcmp(x->name, "adamw") && x->calls[0];
        assert_true(x->floor.seconds >= x->floor.bytes / 2e12);
    }
    assert_true(optimiser && work == 3 * 2 * B * T * (PRODUCTS + SCORES));
    assert_true(least >= 0.99 * 3e-6 * (launches - 2)); /* copies of outputs have no node */
    arena_close(c.arena);
}

static void test_forward(void **state)
{
    (void)state;
    struct cli c = new_cli();
    static struct bench b;
    open_spec(&b, &c, BENCH_forward);
    assert_true(b.flops == 2 * B * T * (PRODUCTS + SCORES));
    assert_true(bench_step(&b) > 0);
    bench_close(&b);
    arena_close(c.arena);
}

/* Three sequences of 40 tokens, the last of which is the step's. */
static void test_decode(void **state)
{
    (void)state;
    struct cli c = new_cli();
    static struct bench b;
    open_spec(&b, &c, BENCH_decode);
    assert_true(b.B == 3 && b.T == 1);
    double scores = SCORES * 64 / ((T + 1) / 2.0);
    assert_true(fabs(b.flops - 2 * 3 * (PRODUCTS + scores)) < 1);
    double weights = 4 * (PRODUCTS + 3 * D),
           caches = L * 3 * 64 * 2 * D * 4; /* 40 tokens in pages */
    assert_true(b.bytes > weights + caches && b.bytes < 1.2 * (weights + caches) + 3 * V * 4);
    assert_true(bench_step(&b) > 0);
    bench_close(&b);
    arena_close(c.arena);
}

static void test_machine(void **state)
{
    (void)state;
    struct machine m;
    struct rt_error err;
    assert_int_equal(machine_open(1, &m, &err), RT_ok);
    machine_measure(&m);
    double flops = m.flops, bytes = m.bytes;
    assert_true(flops > 1e9 && bytes > 1e8);
    machine_measure(&m);
    assert_true(m.flops >= flops && m.bytes >= bytes);
    machine_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_train), cmocka_unit_test(test_floor), cmocka_unit_test(test_forward),
        cmocka_unit_test(test_decode), cmocka_unit_test(test_machine)};
    if (!scratch_open()) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_close();
    return failed;
}
