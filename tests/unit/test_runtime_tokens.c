/* Philox, initial values, UTF-8 and the bytes and chars tokenizers. */
#include "base/map.h"
#include "runtime/philox.h"
#include "runtime/tokenize.h"
#include "runtime/utf8.h"
#include "scratch.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

/* Known answers of Random123 (kat_vectors). */
static void philox_known(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } kat[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof kat / sizeof *kat; i++) {
        uint32_t out[4];
        philox4x32(kat[i].counter, kat[i].key, out);
        assert_memory_equal(out, kat[i].out, sizeof out);
    }
}

static void init_any_slice(void **state)
{
    (void)state;
    static const struct init_rule rules[] = {
        {INIT_normal, 0.02, 0},    {INIT_uniform, -0.5, 0.5}, {INIT_log_uniform, 1, 16},
        {INIT_dt_bias, 1e-3, 0.1}, {INIT_constant, 1, 0},
    };
    enum { N = 97 };
    float whole[N], part[N];
    for (size_t r = 0; r < sizeof rules / sizeof *rules; r++) {
        uint64_t stream = rng_stream("model.layers.0.x");
        init_fill(rules[r], 7, stream, 0, N, whole);
        for (size_t first = 0; first < N; first += 1 + first / 3) {
            size_t n = first * 2 < N ? first + 1 : N - first;
            init_fill(rules[r], 7, stream, first, n, part);
            assert_memory_equal(part, whole + first, n * sizeof *part);
        }
    }
    assert_true(rng_stream("a") != rng_stream("b"));
    assert_true(rng_bits(1, 2, 3) != rng_bits(2, 2, 3) && rng_bits(1, 2, 3) != rng_bits(1, 3, 3));
}

static void init_distributions(void **state)
{
    (void)state;
    enum { N = 200000 };
    static float x[N];
    double m1 = 0, m2 = 0, m4 = 0, lag = 0;
    init_fill((struct init_rule){INIT_normal, 1, 0}, 1, rng_stream("w"), 0, N, x);
    for (int i = 0; i < N; i++) {
        double v = x[i];
        m1 += v / N, m2 += v * v / N, m4 += v * v * v * v / N;
        if (i) lag += v * (double)x[i - 1] / N;
    }
    assert_true(fabs(m1) < 0.01 && fabs(m2 - 1) < 0.02 && fabs(m4 - 3) < 0.15 && fabs(lag) < 0.01);
    init_fill((struct init_rule){INIT_log_uniform, 1, 16}, 1, 2, 0, N, x);
    double mean = 0;
    for (int i = 0; i < N; i++) {
        assert_true(x[i] >= 0 && x[i] <= logf(16) + 1e-6f);
        mean += exp((double)x[i]) / N;
    }
    assert_true(fabs(mean - 8.5) < 0.05);
    init_fill((struct init_rule){INIT_dt_bias, 1e-3, 0.1}, 1, 3, 0, N, x);
    mean = 0;
    for (int i = 0; i < N; i++) mean += log(log1p(exp((double)x[i]))) / N; /* log of softplus */
    assert_true(fabs(mean - log(1e-2)) < 0.02);
}

static void utf8_is_strict(void **state)
{
    (void)state;
    uint32_t got;
    char b[4];
    for (uint32_t cp = 0; cp < UTF8_LIMIT; cp++) {
        int n = utf8_put(cp, b);
        bool surrogate = cp >= 0xd800 && cp < 0xe000;
        assert_int_equal(utf8_next(b, (size_t)n, &got), surrogate ? 0 : n);
        if (!surrogate) assert_int_equal(got, cp);
        for (int cut = 1; cut < n && !surrogate; cut++)
            assert_int_equal(utf8_next(b, (size_t)cut, &got), -1);
    }
    static const char *const bad[] = {"\x80",     "\xc0\x80", "\xc1\xbf", "\xe0\x80",
                                      "\xed\xa0", "\xf0\x80", "\xf4\x90", "\xf5",
                                      "\xff",     "\xc3(",    "\xe2\x82("};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(utf8_next(bad[i], strlen(bad[i]), &got), 0);
    assert_int_equal(utf8_check(STR("ab\xc3")), 2);
    assert_int_equal(utf8_check(STR("ab\xc3\xa9")), 4);
}

static void bytes_tokens(void **state)
{
    (void)state;
    struct tokenizer *t;
    struct rt_error err;
    struct tok_ids ids = {0};
    struct sb out = {0};
    assert_int_equal(tokenizer_bytes(&t, &err), RT_ok);
    assert_int_equal(tokenizer_encode(t, (struct str){"a\0\xff", 3}, &ids, &err), RT_ok);
    assert_true(ids.n == 3 && ids.p[0] == 97 && ids.p[1] == 0 && ids.p[2] == 255);
    tokenizer_decode(t, ids.p, 3, &out);
    assert_true(out.n == 3 && !memcmp(out.p, "a\0\xff", 3));
    tokenizer_decode(t, (int32_t[]){300, -1}, 2, &out);
    assert_string_equal(out.p + 3, "\xef\xbf\xbd\xef\xbf\xbd");
    assert_int_equal(t->ops->fits(t, 256, &err), RT_ok);
    assert_int_equal(t->ops->fits(t, 255, &err), RT_user);
    assert_null(t->ops->file);
    free(ids.p);
    sb_free(&out);
    tokenizer_close(t);
}

/* Feeds bytes one by one; every piece must be valid UTF-8, the whole as expected. */
static void expect_stream(const char *bytes, size_t n, const char *want)
{
    struct tokenizer *t;
    assert_int_equal(tokenizer_bytes(&t, NULL), RT_ok);
    struct tok_stream s = {.n = 0};
    struct sb out = {0};
    sb_str(&out, "");
    for (size_t i = 0; i < n; i++) {
        tok_stream_add(&s, t, (unsigned char)bytes[i], &out);
        assert_int_equal(utf8_check((struct str){out.p, out.n}), out.n);
    }
    tok_stream_end(&s, &out);
    assert_string_equal(out.p, want);
    sb_free(&out);
    tokenizer_close(t);
}

static void stream_holds_back(void **state)
{
    (void)state;
#define R "\xef\xbf\xbd"
    expect_stream("a\xe2\x82\xac", 4, "a\xe2\x82\xac");
    expect_stream("\xf0\x9f\x98\x80!", 5, "\xf0\x9f\x98\x80!");
    expect_stream("\xe2\x82", 2, R);
    expect_stream("\xe2\x82x", 3, R "x");
    expect_stream("\xe2\xe2\x82\xac", 4, R "\xe2\x82\xac");
    expect_stream("\x80\xff", 2, R R);
    expect_stream("\xed\xa0\x80", 3, R R R);
}

static void chars_tokens(void **state)
{
    (void)state;
    struct tokenizer *t, *u;
    struct rt_error err;
    struct tok_ids ids = {0};
    struct sb out = {0}, json = {0};
    struct str text = STR("ba\xf0\x9f\x98\x80\xc3\xa9"
                          "ab");
    assert_int_equal(tokenizer_chars(text, "x", &t, &err), RT_ok);
    assert_int_equal(t->vocab_size, 4);
    assert_int_equal(tokenizer_encode(t, text, &ids, &err), RT_ok);
    const int32_t want[] = {1, 0, 3, 2, 0, 1};
    assert_int_equal(ids.n, 6);
    assert_memory_equal(ids.p, want, sizeof want);
    tokenizer_decode(t, ids.p, ids.n, &out);
    assert_true(str_eq(text, (struct str){out.p, out.n}));
    assert_int_equal(t->ops->fits(t, 4, &err), RT_ok);
    assert_int_equal(t->ops->fits(t, 5, &err), RT_user);
    assert_non_null(strstr(err.text, "4 distinct"));
    assert_int_equal(tokenizer_encode(t, STR("abz"), &ids, &err), RT_user);
    assert_non_null(strstr(err.text, "U+007A at byte 2"));
    assert_int_equal(tokenizer_encode(t, STR("a\xff"), &ids, &err), RT_user);
    t->ops->save(t, 0, &json);
    io_write_atomic(in_dir("chars.json"), json.p, json.n);
    assert_int_equal(tokenizer_chars_load(in_dir("chars.json"), &u, &err), RT_ok);
    out.n = 0;
    u->ops->save(u, 0, &out);
    assert_string_equal(out.p, json.p);
    tokenizer_close(u);
    tokenizer_close(t);
    free(ids.p);
    sb_free(&out);
    sb_free(&json);
}

static void chars_refuses(void **state)
{
    (void)state;
    struct tokenizer *t;
    struct rt_error err;
    assert_int_equal(tokenizer_chars(STR("ab\xc3("), "x.txt", &t, &err), RT_user);
    assert_non_null(strstr(err.text, "'x.txt' has invalid UTF-8 at byte 2"));
    assert_int_equal(tokenizer_chars(STR(""), "x.txt", &t, &err), RT_user);
    static const char *const bad[] = {"",
                                      "{}",
                                      "[]",
                                      "{\"type\":\"chars\"}",
                                      "{\"type\":\"bytes\",\"code_points\":[1]}",
                                      "{\"type\":\"chars\",\"code_points\":[]}",
                                      "{\"type\":\"chars\",\"code_points\":[2,1]}",
                                      "{\"type\":\"chars\",\"code_points\":[1,1]}",
                                      "{\"type\":\"chars\",\"code_points\":[-1]}",
                                      "{\"type\":\"chars\",\"code_points\":[55296]}",
                                      "{\"type\":\"chars\",\"code_points\":[1114112]}",
                                      "{\"type\":\"chars\",\"code_points\":[\"a\"]}",
                                      "{\"type\":\"chars\",\"code_points\":[1.5]}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(tokenizer_chars_parse(str_of(bad[i]), "x", &t, &err), RT_user);
    assert_int_equal(tokenizer_chars_of_file(in_dir("absent"), &t, &err), RT_user);
    const char *path = shared_data("tinyshakespeare.txt");
    if (!path) skip();
    assert_int_equal(tokenizer_chars_of_file(path, &t, &err), RT_ok);
    assert_int_equal(t->vocab_size, 65);
    tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known),       cmocka_unit_test(init_any_slice),
        cmocka_unit_test(init_distributions), cmocka_unit_test(utf8_is_strict),
        cmocka_unit_test(bytes_tokens),       cmocka_unit_test(stream_holds_back),
        cmocka_unit_test(chars_tokens),       cmocka_unit_test(chars_refuses),
    };
    if (!scratch_open()) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_close();
    return failed;
}
