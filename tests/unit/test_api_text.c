/* Bodies of answers, byte for byte, and texts that stop: at every cut, beside an obvious search. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "runtime/api_text.h"
#include "runtime/stops.h"
#include "runtime/utf8.h"

static const struct api_reply chat = {API_chat, "chatcmpl-1", 1700000000, "m", "fp_1", false};
static const struct api_reply text = {API_completions, "cmpl-1", 1700000000, "m", NULL, false};
#define HEAD(object, id, fp)                                                               \
    "{\"id\":\"" id "\",\"object\":\"" object "\",\"created\":1700000000,\"model\":\"m\"," \
    "\"system_fingerprint\":" fp ",\"choices\":["
#define CHUNK "data: " HEAD("chat.completion.chunk", "chatcmpl-1", "\"fp_1\"")
#define USAGE                                                                         \
    "{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5,"                \
    "\"prompt_tokens_details\":{\"cached_tokens\":1},\"completion_tokens_details\":{" \
    "\"reasoning_tokens\":0}}"
static const struct api_usage usage = {3, 2, 1, 0};

static void expect(struct sb *got, const char *want)
{
    assert_string_equal(got->p ? got->p : "", want);
    /* a body is JSON, and so is every event; a comment and [DONE] are not */
    for (const char *p = want; p && (p = strchr(p, '{')); p = strstr(p, "\n\n")) {
        json_error_t e;
        json_t *j = json_loads(p, JSON_REJECT_DUPLICATES | JSON_DISABLE_EOF_CHECK, &e);
        if (!j) fail_msg("%s at %d of %s", e.text, e.position, p);
        json_decref(j);
        if (*want == '{') break;
    }
    sb_free(got);
}

static void test_strings(void **state)
{
    (void)state;
    static const struct {
        struct str from;
        const char *to;
    } rows[] = {
        {{"", 0}, "\"\""},
        {{NULL, 0}, "\"\""},
        {{"a\"b\\c/", 6}, "\"a\\\"b\\\\c/\""},
        {{"\b\t\n\v\f\r", 6}, "\"\\b\\t\\n\\u000b\\f\\r\""},
        {{"\0\x1f\x7f", 3}, "\"\\u0000\\u001f\x7f\""},
        {{"\xc3\xa9\xf0\x9f\x98\x80", 6}, "\"\xc3\xa9\xf0\x9f\x98\x80\""},
        {{"a\xff\"\xc3", 4}, "\"a\xef\xbf\xbd\\\"\xef\xbf\xbd\""},
        {{"\xf0\x9f\x98", 3}, "\"\xef\xbf\xbd\""},
        {{"\xe2\x28\xa1", 3}, "\"\xef\xbf\xbd(\xef\xbf\xbd\""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sb s = {0};
        api_put_string(&s, rows[i].from);
        assert_string_equal(s.p, rows[i].to);
        sb_free(&s);
    }
    /* every byte alone is a string that a parser takes */
    for (int b = 0; b < 256; b++) {
        struct sb s = {0};
        char c = (char)b;
        api_put_string(&s, (struct str){&c, 1});
        json_t *j = json_loadb(s.p, s.n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        assert_non_null(j);
        if (b < 128) assert_memory_equal(json_string_value(j), &c, 1);
        json_decref(j);
        sb_free(&s);
    }
}

static void test_answers(void **state)
{
    (void)state;
    struct sb s = {0};
    const struct api_choice c[] = {{0, STR("Hi \"you\""), NULL, API_stop, NULL},
                                   {1, STR(""), NULL, API_length, NULL}};
    api_put_answer(&s, &chat, c, 2, &usage);
    expect(&s, HEAD("chat.completion", "chatcmpl-1",
                    "\"fp_1\"") "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hi "
                                "\\\"you\\\"\","
                                "\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"},"
                                "{\"index\":1,\"message\":{\"role\":\"assistant\",\"content\":\"\","
                                "\"refusal\":null},"
                                "\"logprobs\":null,\"finish_reason\":\"length\"}],\"usage\":" USAGE
                                "}");
    api_put_answer(&s, &text, c, 1, &usage);
    expect(&s, HEAD("text_completion", "cmpl-1",
                    "null") "{\"index\":0,\"text\":\"Hi "
                            "\\\"you\\\"\",\"logprobs\":null,\"finish_reason\":\"stop\"}]"
                            ",\"usage\":" USAGE "}");
}

static void test_logprobs(void **state)
{
    (void)state;
    const struct api_top top[] = {{STR("a"), -0.25}, {STR("\xe2\x82"), -INFINITY}, {STR("a"), -9}};
    const struct api_token t[] = {{STR("\xc3\xa9"), 0, true, NULL, 0},
                                  {STR("a"), -0.25, false, top, 3},
                                  {STR("\xe2\x82"), NAN, false, NULL, 0},
                                  {STR("\xac"), 1e-12, false, NULL, 0}};
    const struct api_logprobs l = {t, 4, 10}, l1 = {t + 1, 2, 0};
    const struct api_choice c = {0, STR("x"), &l, API_stop, NULL},
                            d = {0, STR("x"), &l1, API_stop, NULL};
    struct sb s = {0};
    api_put_answer(&s, &text, &c, 1, &usage);
    expect(
        &s,
        HEAD("text_completion", "cmpl-1",
             "null") "{\"index\":0,\"text\":\"x\",\"logprobs\":{\"tokens\":[\"\xc3\xa9\",\"a\","
                     "\"bytes:\\\\xe2\\\\x82\",\"bytes:\\\\xac\"],"
                     "\"token_logprobs\":[null,-0.25,-9999.0,0.0],"
                     "\"top_logprobs\":[null,{\"a\":-0.25,\"bytes:\\\\xe2\\\\x82\":-9999.0},{},{}],"
                     "\"text_offset\":[10,11,12,13]},\"finish_reason\":\"stop\"}],\"usage\":" USAGE
                     "}");
    api_put_answer(&s, &chat, &d, 1, &usage);
    expect(&s,
           HEAD("chat.completion", "chatcmpl-1",
                "\"fp_1\"") "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"x\","
                            "\"refusal\":null},"
                            "\"logprobs\":{\"content\":[{\"token\":\"a\",\"logprob\":-0.25,"
                            "\"bytes\":[97],"
                            "\"top_logprobs\":[{\"token\":\"a\",\"logprob\":-0.25,\"bytes\":[97]},"
                            "{\"token\":\"bytes:\\\\xe2\\\\x82\",\"logprob\":-9999.0,\"bytes\":["
                            "226,130]},"
                            "{\"token\":\"a\",\"logprob\":-9,\"bytes\":[97]}]},"
                            "{\"token\":\"bytes:\\\\xe2\\\\x82\",\"logprob\":-9999.0,\"bytes\":["
                            "226,130],"
                            "\"top_logprobs\":[]}],\"refusal\":null},\"finish_reason\":\"stop\"}],"
                            "\"usage\":" USAGE "}");
}

static void test_chat_stream(void **state)
{
    (void)state;
    struct sb s = {0};
    struct api_reply r = chat;
    api_put_begin(&s, &r, 1);
    expect(&s, CHUNK "{\"index\":1,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":"
                     "null},\"logprobs\":null,\"finish_reason\":null}]}\n\n");
    const struct api_choice c = {1, STR("a\nb"), NULL, API_unfinished, NULL};
    api_put_delta(&s, &r, &c);
    expect(&s, CHUNK "{\"index\":1,\"delta\":{\"content\":\"a\\nb\"},\"logprobs\":null,"
                     "\"finish_reason\":null}]}\n\n");
    const struct api_choice nothing = {1, STR(""), NULL, API_unfinished, NULL};
    api_put_delta(&s, &r, &nothing);
    expect(&s, "");
    api_put_usage(&s, &r, &usage);
    expect(&s, "");
    r.include_usage = true;
    const struct api_choice last = {1, STR("z"), NULL, API_length, NULL};
    api_put_delta(&s, &r, &last);
    expect(&s, CHUNK "{\"index\":1,\"delta\":{\"content\":\"z\"},\"logprobs\":null,"
                     "\"finish_reason\":null}],\"usage\":null}\n\n" CHUNK
                     "{\"index\":1,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}],"
                     "\"usage\":null}\n\n");
    api_put_usage(&s, &r, &usage);
    expect(&s, CHUNK "],\"usage\":" USAGE "}\n\n");
    api_put_done(&s);
    api_put_ping(&s);
    expect(&s, "data: [DONE]\n\n: ping\n\n");
}

static void test_depth(void **state)
{
    (void)state;
    static const struct lm_site site[] = {{"layers.0.attn_res", 1, false},
                                          {"layers.1.attn_res", 2, true}};
    static const float weights[] = {1, 0.25f, NAN};
    struct sb s = {0};
    struct api_reply r = chat;
    struct api_depth d = {site, 2, true, weights};
    const struct api_choice c = {0, STR(""), NULL, API_unfinished, &d};
#define SITES                                                                      \
    "\"sites\":[{\"name\":\"layers.0.attn_res\",\"sources\":1,\"partial\":false}," \
    "{\"name\":\"layers.1.attn_res\",\"sources\":2,\"partial\":true}]"
#define EVENT \
    CHUNK "{\"index\":0,\"delta\":{\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]"
#define WEIGHTS "\"weights\":[[1],[0.25,null]]}"
    api_put_delta(&s, &r, &c);
    expect(&s, EVENT ",\"strata_depth\":{" SITES "," WEIGHTS "}\n\n");
    d.names = false;
    r.include_usage = true;
    api_put_delta(&s, &r, &c);
    expect(&s, EVENT ",\"strata_depth\":{" WEIGHTS ",\"usage\":null}\n\n");
    api_put_sites(&s, site, 2);
    expect(&s, "{" SITES "}");
}

static void test_text_stream(void **state)
{
    (void)state;
    struct sb s = {0};
    api_put_begin(&s, &text, 0);
    expect(&s, "");
    const struct api_token t = {STR("a"), -1, false, NULL, 0};
    const struct api_logprobs l = {&t, 1, 2};
    const struct api_choice c = {0, STR("a"), &l, API_stop, NULL};
    api_put_delta(&s, &text, &c);
    expect(&s,
           "data: " HEAD(
               "text_completion", "cmpl-1",
               "null") "{\"index\":0,\"text\":\"a\",\"logprobs\":{\"tokens\":[\"a\"],\"token_"
                       "logprobs\":[-1],"
                       "\"top_logprobs\":[{}],\"text_offset\":[2]},\"finish_reason\":null}]}\n\n"
                       "data: " HEAD("text_completion", "cmpl-1",
                                     "null") "{\"index\":0,\"text\":\"\",\"logprobs\":null,"
                                             "\"finish_reason\":\"stop\"}]}\n\n");
}

static void test_other_bodies(void **state)
{
    (void)state;
    struct sb s = {0};
    struct api_error e;
    api_fail(&e, API_no_model, "no model '%s'", "\xff");
    api_put_error(&s, &e);
    expect(&s, "{\"error\":{\"message\":\"no model '\xef\xbf\xbd'\",\"type\":"
               "\"invalid_request_error\",\"param\":null,\"code\":\"model_not_found\"}}");
    api_fail(&e, API_internal, "It broke.");
    snprintf(e.param, sizeof e.param, "n");
    api_put_error_event(&s, &e);
    expect(&s, "data: {\"error\":{\"message\":\"It broke.\",\"type\":\"server_error\","
               "\"param\":\"n\",\"code\":null}}\n\n");
    const struct api_model m[] = {{"a", 1, 10}, {"b/c", 2, 20}};
    api_put_models(&s, m, 2);
    expect(&s, "{\"object\":\"list\",\"data\":[{\"id\":\"a\",\"object\":\"model\",\"created\":1,"
               "\"owned_by\":\"strata\",\"max_model_len\":10},{\"id\":\"b/c\",\"object\":\"model\","
               "\"created\":2,\"owned_by\":\"strata\",\"max_model_len\":20}]}");
    const int32_t ids[] = {1, 2};
    const struct str texts[] = {STR("a"), STR("\xff")};
    api_put_tokens(&s, ids, 2, texts, 16);
    expect(&s, "{\"count\":2,\"max_model_len\":16,\"tokens\":[1,2],"
               "\"token_strs\":[\"a\",\"bytes:\\\\xff\"]}");
    api_put_tokens(&s, ids, 2, NULL, 16);
    expect(&s, "{\"count\":2,\"max_model_len\":16,\"tokens\":[1,2],\"token_strs\":null}");
    api_put_tokens(&s, ids, 0, texts, 16);
    expect(&s, "{\"count\":0,\"max_model_len\":16,\"tokens\":[],\"token_strs\":[]}");
    api_put_text(&s, STR("a\x01"));
    expect(&s, "{\"prompt\":\"a\\u0001\"}");
    char id[API_ID_BYTES];
    api_reply_id(id, API_chat, 1, UINT64_MAX);
    assert_string_equal(id, "chatcmpl-0000000000000001ffffffffffffffff");
    api_reply_id(id, API_completions, 0, 0);
    assert_string_equal(id, "cmpl-00000000000000000000000000000000");
}

/* The obvious search: the stop string that ends first, of those the longest. Returns the length of
 * the text before it, or of all. */
static size_t obvious(struct str t, const struct str *stop, size_t n, bool *found)
{
    *found = false;
    for (size_t end = 1; end <= t.n; end++) {
        size_t longest = 0;
        for (size_t k = 0; k < n; k++)
            if (stop[k].n <= end && !memcmp(t.p + end - stop[k].n, stop[k].p, stop[k].n) &&
                stop[k].n > longest)
                longest = stop[k].n;
        if (longest) {
            *found = true;
            return end - longest;
        }
    }
    return t.n;
}

/* What may not be shown yet of a text without a stop string: its longest end that begins one. */
static size_t held_back(struct str t, const struct str *stop, size_t n)
{
    size_t longest = 0;
    for (size_t k = 0; k < n; k++)
        for (size_t len = 1; len < stop[k].n && len <= t.n; len++)
            if (!memcmp(t.p + t.n - len, stop[k].p, len) && len > longest) longest = len;
    return longest;
}

/* The text in parts that end at the bits of `cuts`. */
static void run_cuts(struct str t, const struct str *stop, size_t n, unsigned cuts)
{
    struct arena *a = arena_open("test");
    struct stops *s = stops_open(a, stop, n);
    struct sb out = {0};
    bool want_found, found = false;
    size_t want = obvious(t, stop, n, &want_found), from = 0;
    for (size_t i = 1; i <= t.n; i++) {
        if (i < t.n && !(cuts >> (i - 1) & 1)) continue;
        struct str seen = {t.p, i};
        bool there;
        size_t shown = obvious(seen, stop, n, &there);
        found = stops_add(s, (struct str){t.p + from, i - from}, &out);
        assert_int_equal(found, there);
        if (!there) shown -= held_back(seen, stop, n);
        assert_int_equal(out.n, shown);
        assert_int_equal(stops_held(s), there ? 0 : i - shown);
        from = i;
    }
    assert_int_equal(found, want_found);
    stops_end(s, &out);
    assert_int_equal(out.n, want);
    if (want) assert_memory_equal(out.p, t.p, want);
    sb_free(&out);
    arena_close(a);
}

static void test_stops_every_cut(void **state)
{
    (void)state;
    const struct {
        struct str text;
        struct str stop[4];
        size_t n;
    } rows[] = {
        {STR("hello END x"), {STR("END")}, 1},
        {STR("hello EN"), {STR("END")}, 1},
        {STR("EENEND"), {STR("END")}, 1},
        {STR("aabaabaaab"), {STR("aabaaa")}, 1},
        {STR("xabcdabce"), {STR("abcdabcd"), STR("bce")}, 2},
        {STR("\n\n\nUser:"), {STR("\n\nUser:"), STR("\n\n\n\n")}, 2},
        {STR("abcab"), {STR("bca"), STR("ca"), STR("abca"), STR("zz")}, 4},
        {STR("stop"), {STR("stop")}, 1},
        {STR("aaaaaaa"), {STR("aaaaaaaa")}, 1},
        {STR("no stops"), {STR("")}, 0},
        {STR("a\0b\0c"), {STR("b\0c")}, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (unsigned cuts = 0; cuts < 1u << (rows[i].text.n - 1); cuts++)
            run_cuts(rows[i].text, rows[i].stop, rows[i].n, cuts);
}

/* Texts of two letters and random stop strings, where everything overlaps. */
static void test_stops_random(void **state)
{
    (void)state;
    uint32_t x = 12345;
    char t[12], s[4][4];
    for (int round = 0; round < 20000; round++) {
#define RANDOM(n) (((x = x * 1664525u + 1013904223u) >> 16) % (n))
        struct str stop[4];
        size_t n = 1 + RANDOM(4), len = 1 + RANDOM(12);
        for (size_t i = 0; i < len; i++) t[i] = (char)('a' + RANDOM(2));
        for (size_t k = 0; k < n; k++) {
            stop[k] = (struct str){s[k], 1 + RANDOM(4)};
            for (size_t i = 0; i < stop[k].n; i++) s[k][i] = (char)('a' + RANDOM(2));
        }
        run_cuts((struct str){t, len}, stop, n, RANDOM(1u << 12));
    }
}

/* Tokens of single bytes: whole characters only, and stop strings of several tokens. */
static void test_answer_text(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct tokenizer *tok;
    struct rt_error err;
    struct sb all = {0};
    assert_int_equal(tokenizer_bytes(&tok, &err), RT_ok);
    const struct str stop[] = {STR("\xe2\x82\xac!")};
    struct answer_text t = {.stops = stops_open(a, stop, 1)};
    static const char in[] = "a\xc3\xa9\xe2\x82\xac?\xff\xe2\x82\xac!b";
    static const size_t shown[] = {1, 1, 3, 3, 3, 3, 7, 10, 10, 10, 10, 10, 10};
    for (size_t i = 0; in[i]; i++) {
        bool end = answer_text_add(&t, tok, (unsigned char)in[i], &all);
        assert_int_equal(end, i >= 11);
        assert_int_equal(all.n, shown[i]);
        assert_int_equal(utf8_check((struct str){all.p, all.n}), all.n);
    }
    assert_true(answer_text_end(&t, &all));
    assert_string_equal(all.p, "a\xc3\xa9\xe2\x82\xac?\xef\xbf\xbd");
    answer_text_close(&t);
    /* the end gives out what was held, a cut character as U+FFFD */
    t = (struct answer_text){.stops = stops_open(a, stop, 1)};
    all.n = 0;
    for (const char *p = "\xe2\x82\xac\xe2"; *p; p++)
        assert_false(answer_text_add(&t, tok, (unsigned char)*p, &all));
    assert_int_equal(all.n, 0);
    assert_false(answer_text_end(&t, &all));
    assert_string_equal(all.p, "\xe2\x82\xac\xef\xbf\xbd");
    answer_text_close(&t);
    sb_free(&all);
    tokenizer_close(tok);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strings),      cmocka_unit_test(test_answers),
        cmocka_unit_test(test_logprobs),     cmocka_unit_test(test_chat_stream),
        cmocka_unit_test(test_depth),        cmocka_unit_test(test_text_stream),
        cmocka_unit_test(test_other_bodies), cmocka_unit_test(test_stops_every_cut),
        cmocka_unit_test(test_stops_random), cmocka_unit_test(test_answer_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
