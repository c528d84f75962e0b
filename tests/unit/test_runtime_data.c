/* Data sets, sampling, metrics and progress. */
#include "runtime/dataset.h"
#include "runtime/metrics.h"
#include "runtime/npy.h"
#include "runtime/progress.h"
#include "runtime/sample.h"
#include "scratch.h"
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>
#include <cmocka.h>

static void put(const char *path, const char *text)
{
    assert_int_equal(io_write_atomic(path, text, strlen(text)), 0);
}

static void expect_file(const char *path, const char *want)
{
    struct arena *a = arena_open("test");
    struct str s;
    assert_int_equal(io_read(a, path, 1 << 20, &s), 0);
    assert_string_equal(s.p, want);
    arena_close(a);
}

/* ---- order ---- */

static void permutations(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {1, 2, 3, 4, 5, 16, 17, 255, 1000, 4097};
    static uint8_t seen[4097];
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint64_t n = sizes[s], moved = 0, differ = 0;
        memset(seen, 0, sizeof seen);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t to = permute_index(1, 0, n, i);
            assert_true(to < n && !seen[to]);
            seen[to] = 1;
            moved += to != i;
            differ += to != permute_index(1, 1, n, i);
        }
        if (n >= 255) assert_true(moved > n * 9 / 10 && differ > n * 9 / 10);
    }
    assert_true(permute_index(1, 0, (uint64_t)1 << 40, 12345) < (uint64_t)1 << 40);
    /* every place is reached about as often from index 0 over many epochs */
    unsigned count[10] = {0};
    for (uint64_t epoch = 0; epoch < 10000; epoch++) count[permute_index(3, epoch, 10, 0)]++;
    for (int i = 0; i < 10; i++) assert_in_range(count[i], 850, 1150);
}

static struct dataset *open_bytes(const char *path, double val, bool shuffled, int64_t seq_len,
                                  const struct tokenizer *t)
{
    struct dataset *d;
    struct rt_error err = {""};
    struct dataset_options o = {path, val, shuffled, seq_len, 256, 7, t, false};
    if (dataset_open(&o, &d, &err) != RT_ok) fail_msg("%s", err.text);
    return d;
}

static void windows(void **state)
{
    (void)state;
    struct tokenizer *t;
    tokenizer_bytes(&t, NULL);
    put(in_dir("t.txt"), "abcdefghijklmnopqrstuvwxyz");
    struct dataset *d = open_bytes(in_dir("t.txt"), 0.25, false, 4, t);
    assert_int_equal(dataset_tokens(d), 26);
    assert_int_equal(dataset_train_tokens(d), 19);
    assert_int_equal(dataset_train_windows(d), 4);
    assert_int_equal(dataset_val_windows(d), 1);
    int32_t ids[5], in[4], out[4];
    assert_int_equal(dataset_train(d, 5, ids, NULL), RT_ok); /* 5 mod 4 = window 1 */
    for (int i = 0; i < 5; i++) assert_int_equal(ids[i], 'e' + i);
    assert_int_equal(dataset_val(d, 0, ids, NULL), RT_ok);
    for (int i = 0; i < 5; i++) assert_int_equal(ids[i], 't' + i);
    uint64_t print = dataset_fingerprint(d);
    dataset_close(d);
    d = open_bytes(in_dir("t.txt"), 0, true, 4, t);
    assert_int_equal(dataset_fingerprint(d), print);
    assert_int_equal(dataset_train_windows(d), 6);
    for (uint64_t epoch = 0; epoch < 3; epoch++) {
        unsigned seen = 0;
        for (uint64_t i = 0; i < 6; i++) seen |= 1u << dataset_order(d, epoch * 6 + i);
        assert_int_equal(seen, 63);
    }
    dataset_close(d);
    put(in_dir("t.txt"), "abcdefghijklmnopqrstuvwxyZ");
    d = open_bytes(in_dir("t.txt"), 0, true, 4, t);
    assert_true(dataset_fingerprint(d) != print);
    dataset_close(d);
    dataset_targets((int32_t[]){-1, 3, -1, 4, 5}, 4, in, out);
    assert_true(in[0] == 0 && in[1] == 3 && in[2] == 0 && in[3] == 4);
    assert_true(out[0] == 3 && out[1] == -1 && out[2] == 4 && out[3] == 5);
    tokenizer_close(t);
}

static void expect_bad(const char *path, const struct tokenizer *t, int64_t vocab,
                       const char *phrase)
{
    struct dataset *d;
    struct rt_error err;
    struct dataset_options o = {path, 0, true, 4, vocab, 7, t, false};
    assert_int_equal(dataset_open(&o, &d, &err), RT_user);
    if (!strstr(err.text, phrase)) fail_msg("'%s' does not say '%s'", err.text, phrase);
    assert_null(d);
}

static void dataset_refuses(void **state)
{
    (void)state;
    struct tokenizer *b, *c;
    tokenizer_bytes(&b, NULL);
    tokenizer_chars(STR("abc"), "x", &c, NULL);
    put(in_dir("short.txt"), "abcd");
    put(in_dir("bad.txt"), "abcdefgh\xff");
    expect_bad(in_dir("absent.txt"), b, 256, "cannot read");
    expect_bad(in_dir("short.txt"), b, 256, "has 4 tokens; a window of seq_len 4 needs 5");
    expect_bad(in_dir("short.txt"), b, 255, "at least 256");
    expect_bad(in_dir("short.txt"), c, 4, "3 distinct");
    expect_bad(in_dir("short.txt"), c, 3, "U+0064 at byte 3");
    expect_bad(in_dir("bad.txt"), NULL, 256, "needs a tokenizer");
    npy_write_i32(in_dir("i.npy"), (int32_t[]){1, 2, -3, 9, 5}, 1, (int64_t[]){5}, NULL);
    npy_write_i32(in_dir("2d.npy"), (int32_t[]){1, 2, 3, 9}, 2, (int64_t[]){2, 2}, NULL);
    npy_write_f32(in_dir("f.npy"), (float[]){1, 2, 3, 9, 5}, 1, (int64_t[]){5}, NULL);
    expect_bad(in_dir("i.npy"), NULL, 9, "token 3 is 9, which is not below vocab_size 9");
    expect_bad(in_dir("2d.npy"), NULL, 256, "2 dimensions");
    expect_bad(in_dir("f.npy"), NULL, 256, "not hold int32 or uint16");
    put(in_dir("fake.npy"), "text that is long enough");
    expect_bad(in_dir("fake.npy"), b, 256, "magic");
    struct dataset_options o = {in_dir("i.npy"), 0, true, 4, 10, 7, NULL, false};
    struct dataset *d;
    int32_t ids[5];
    assert_int_equal(dataset_open(&o, &d, NULL), RT_ok);
    assert_int_equal(dataset_train(d, 0, ids, NULL), RT_ok);
    assert_true(ids[2] == -1 && ids[3] == 9);
    dataset_close(d);
    tokenizer_close(b);
    tokenizer_close(c);
}

static void dataset_real(void **state)
{
    (void)state;
    struct tokenizer *t;
    struct dataset *d;
    const char *path = shared_data("tinyshakespeare.txt");
    if (!path) skip();
    assert_int_equal(tokenizer_chars_of_file(path, &t, NULL), RT_ok);
    struct dataset_options o = {path, 0.1, true, 128, 65, 1, t, false};
    assert_int_equal(dataset_open(&o, &d, NULL), RT_ok);
    assert_int_equal(dataset_train_tokens(d), 1003854);
    assert_int_equal(dataset_train_windows(d), 7842);
    assert_int_equal(dataset_val_windows(d), 871);
    dataset_close(d);
    tokenizer_close(t);
}

/* ---- sampling ---- */

static int32_t sample1(double temperature, double top_p, const float *x, size_t n,
                       uint64_t position)
{
    struct sampler s = {.temperature = temperature, .top_p = top_p, .seed = 5};
    struct sample_slot scratch[8];
    int32_t id = -1;
    assert_int_equal(sample_token(&s, x, n, position, scratch, &id, NULL), RT_ok);
    return id;
}

static void sampling(void **state)
{
    (void)state;
    const float tie[4] = {1, 3, 3, -INFINITY};
    assert_int_equal(sample1(0, 1, tie, 4, 0), 1);
    assert_int_equal(sample1(1e-320, 1, tie, 4, 0), 1);
    const float x[4] = {logf(0.5f), logf(0.3f), logf(0.15f), logf(0.05f)};
    unsigned all[4] = {0}, nucleus[4] = {0}, hot[4] = {0};
    enum { N = 20000 };
    for (uint64_t i = 0; i < N; i++) {
        all[sample1(1, 1, x, 4, i)]++;
        nucleus[sample1(1, 0.7, x, 4, i)]++;
        hot[sample1(2, 1, x, 4, i)]++;
    }
    assert_in_range(all[0], 9700, 10300);
    assert_in_range(all[3], 850, 1150);
    assert_int_equal(nucleus[2] + nucleus[3], 0);
    assert_in_range(nucleus[0], 12200, 12800); /* 0.5 / 0.8 */
    assert_in_range(hot[3], 2050, 2650);       /* sqrt(0.05) over the sum of roots: 0.1177 */
    assert_int_equal(sample1(1, 0.7, x, 4, 3), sample1(1, 0.7, x, 4, 3));
    assert_int_equal(sample1(1, 1e-9, x, 4, 3), 0);
    const float wide[3] = {-FLT_MAX, FLT_MAX, -INFINITY}, one[1] = {2};
    assert_int_equal(sample1(1, 0.9, wide, 3, 3), 1);
    assert_int_equal(sample1(1, 0.9, one, 1, 3), 0);
    struct sampler s = {.temperature = 1, .top_p = 1, .seed = 5};
    struct rt_error err;
    int32_t id;
    assert_int_equal(sample_token(&s, (float[]){1, NAN}, 2, 9, NULL, &id, &err), RT_machine);
    assert_string_equal(err.text, "the logit of token 1 at position 9 is not a number");
    assert_int_equal(sample_token(&s, (float[]){-INFINITY, -INFINITY}, 2, 9, NULL, &id, &err),
                     RT_machine);
    assert_int_equal(sample_token(&s, (float[]){INFINITY, 1}, 2, 9, NULL, &id, &err), RT_machine);
}

/* ---- metrics ---- */

static void numbers(void **state)
{
    (void)state;
    char buf[32];
    assert_string_equal(float_text(0.1f, buf), "0.1");
    assert_string_equal(float_text(NAN, buf), "null");
    assert_string_equal(number_text(0.1, buf), "0.1");
    assert_string_equal(number_text(-INFINITY, buf), "null");
    uint64_t r = 88172645463325252u;
    for (int i = 0; i < 20000; i++) {
        r ^= r << 13, r ^= r >> 7, r ^= r << 17;
        double d;
        float f;
        uint32_t low = (uint32_t)r;
        memcpy(&d, &r, 8), memcpy(&f, &low, 4);
        if (isfinite(d)) assert_true(strtod(number_text(d, buf), NULL) == d);
        if (isfinite(f)) assert_true(strtof(float_text(f, buf), NULL) == f);
    }
}

static void metrics_resume(void **state)
{
    (void)state;
    struct metrics *m;
    char *path = in_dir("metrics.jsonl");
    assert_int_equal(metrics_open(path, 0, &m, NULL), RT_ok);
    for (int i = 0; i < 3; i++) {
        metrics_int(m, "step", i);
        metrics_float(m, "loss", i == 1 ? NAN : 0.5f);
        assert_int_equal(metrics_end(m, NULL), RT_ok);
    }
    metrics_int(m, "step", 2);
    metrics_text(m, "name", "a\"\n");
    metrics_floats(m, "entropy", (float[]){1, 2.5f}, 2);
    metrics_double(m, "lr", 1e-3);
    assert_int_equal(metrics_end(m, NULL), RT_ok);
    assert_int_equal(metrics_sync(m, NULL), RT_ok);
    metrics_close(m);
    expect_file(path,
                "{\"step\": 0, \"loss\": 0.5}\n{\"step\": 1, \"loss\": null}\n"
                "{\"step\": 2, \"loss\": 0.5}\n"
                "{\"step\": 2, \"name\": \"a\\\"\\n\", \"entropy\": [1, 2.5], \"lr\": 0.001}\n");
    put(path, "{\"step\": 0}\nnoise\n{\"step\": 2}\n{\"step\": 1}\n{\"step\": 1, \"los");
    assert_int_equal(metrics_open(path, 2, &m, NULL), RT_ok);
    metrics_int(m, "step", 2);
    assert_int_equal(metrics_end(m, NULL), RT_ok);
    metrics_close(m);
    expect_file(path, "{\"step\": 0}\n{\"step\": 1}\n{\"step\": 2}\n");
    assert_int_equal(metrics_open(in_dir("no/metrics.jsonl"), 0, &m, NULL), RT_user);
}

/* ---- progress ---- */

static void progress_fits(void **state)
{
    (void)state;
    struct progress p = {.total = 500,
                         .done = 125,
                         .loss = 2.34567,
                         .tokens_per_second = 12345,
                         .step_seconds = 0.5};
    char buf[512];
    assert_string_equal(
        progress_text(&p, 80, buf, sizeof buf),
        "step 125/500  [=====>                ]  loss 2.3457  12.3k tokens/s  3m08s left");
    for (int width = 1; width < 200; width++)
        assert_true((int)strlen(progress_text(&p, width, buf, sizeof buf)) < width);
    assert_non_null(strstr(progress_text(&p, 200, buf, sizeof buf), "[=======>"));
    assert_null(strchr(progress_text(&p, 60, buf, sizeof buf), '['));
    p.done = 500;
    assert_non_null(strstr(progress_text(&p, 200, buf, sizeof buf), "==]  loss"));
    char t[16];
    assert_string_equal(duration_text(7620, t), "2h07m");
    assert_string_equal(duration_text(-1, t), "?");
}

static void progress_piped(void **state)
{
    (void)state;
    struct progress p;
    FILE *f = fopen(in_dir("progress"), "w");
    progress_start(&p, fileno(f), 0, 5, 2);
    assert_false(p.terminal);
    for (uint64_t i = 1; i <= 5; i++) progress_step(&p, i, 1.5, 100);
    progress_message(&p, "saved %d", 5);
    progress_end(&p);
    fclose(f);
    struct arena *a = arena_open("test");
    struct str s;
    io_read(a, in_dir("progress"), 1 << 20, &s);
    assert_true(str_starts(s, "step 1/5  loss 1.5000  100 tokens/s  "));
    assert_true(str_ends(s, "\nstep 5/5  loss 1.5000  100 tokens/s  0s left\nsaved 5\n"));
    assert_null(strchr(s.p, '\r'));
    assert_null(strstr(s.p, "step 3"));
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(permutations),    cmocka_unit_test(windows),
        cmocka_unit_test(dataset_refuses), cmocka_unit_test(dataset_real),
        cmocka_unit_test(sampling),        cmocka_unit_test(numbers),
        cmocka_unit_test(metrics_resume),  cmocka_unit_test(progress_fits),
        cmocka_unit_test(progress_piped),
    };
    if (!scratch_open()) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_close();
    return failed;
}
