/* Bodies of requests: what is read from them, and a refusal for every limit and every field. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include "runtime/api.h"

static const struct api_limits limits = {.model = "m", .vocab_size = 100};

static struct api_request *parse(enum api_route route, const char *body)
{
    struct api_error err = {0};
    struct api_request *r = api_parse(route, str_of(body), &limits, &err);
    if (!r) fail_msg("%s: %s", body, err.message);
    return r;
}

static void assert_str(struct str s, const char *want)
{
    if (!str_is(s, want)) fail_msg("\"%.*s\" is not \"%s\"", (int)s.n, s.p, want);
}

static void test_defaults(void **state)
{
    (void)state;
    struct api_request *r =
        parse(API_chat, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
                        "\"temperature\":null,\"stop\":null,\"tools\":null,\"foo\":null}");
    assert_int_equal(r->num_messages, 1);
    assert_int_equal(r->messages[0].role, CHAT_user);
    assert_str(r->messages[0].content, "hi");
    assert_int_equal(r->messages[0].name.n, 0);
    assert_true(r->temperature == 1 && r->top_p == 1 && r->min_p == 0 && r->top_k == 0);
    assert_true(r->repetition_penalty == 1 && r->presence_penalty == 0);
    assert_true(r->n == 1 && r->best_of == 1 && r->max_tokens == 0 && !r->has_seed);
    assert_true(!r->stream && !r->logprobs && !r->json && !r->num_stops && !r->num_bias);
    assert_string_equal(r->unknown, "");
    api_request_close(r);
    r = parse(API_completions, "{\"model\":\"m\",\"prompt\":\"\"}");
    assert_int_equal(r->max_tokens, 16);
    assert_int_equal(r->num_prompts, 1);
    assert_false(r->prompt[0].is_ids);
    assert_int_equal(r->prompt[0].text.n, 0);
    api_request_close(r);
    api_request_close(NULL);
}

static void test_chat_fields(void **state)
{
    (void)state;
    struct api_request *r = parse(
        API_chat,
        "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"
        "{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
        "{\"type\":\"text\",\"text\":\"b\"}]},"
        "{\"role\":\"user\",\"name\":\"Ann\",\"content\":\"\"},{\"role\":\"assistant\","
        "\"content\":\"\\u0000\\ud83d\\ude00\",\"refusal\":null,\"tool_calls\":null}],"
        "\"max_completion_tokens\":7,\"temperature\":0,\"top_p\":0.5,\"top_k\":40,\"min_p\":0.1,"
        "\"n\":2,\"stream\":true,\"stream_options\":{\"include_usage\":true},"
        "\"stop\":[\"a\",\"bc\"],\"logprobs\":true,\"top_logprobs\":20,\"seed\":-"
        "9223372036854775808,"
        "\"presence_penalty\":-2,\"frequency_penalty\":2,\"repetition_penalty\":1.5,"
        "\"logit_bias\":{\"0\":-100,\"99\":1.5},\"response_format\":{\"type\":\"json_object\"},"
        "\"user\":\"u\",\"metadata\":{\"a\":\"b\"},\"store\":false,\"service_tier\":\"auto\","
        "\"prompt_cache_key\":\"k\",\"cache_salt\":\"x\",\"priority\":-1,\"ignore_eos\":true,"
        "\"min_tokens\":3,\"modalities\":[\"text\"],\"frob\":{\"x\":[1]},\"more\":1}");
    assert_int_equal(r->num_messages, 4);
    assert_int_equal(r->messages[1].role, CHAT_system);
    assert_str(r->messages[1].content, "a\nb");
    assert_str(r->messages[2].name, "Ann");
    assert_int_equal(r->messages[3].content.n, 5);
    assert_memory_equal(r->messages[3].content.p, "\0\xf0\x9f\x98\x80", 5);
    assert_true(r->max_tokens == 7 && r->min_tokens == 3 && r->temperature == 0);
    assert_true(r->top_p == 0.5 && r->top_k == 40 && r->min_p == 0.1 && r->n == 2);
    assert_true(r->stream && r->include_usage && r->logprobs && r->top_logprobs == 20);
    assert_int_equal(r->num_stops, 2);
    assert_str(r->stop[1], "bc");
    assert_true(r->has_seed && r->seed == INT64_MIN);
    assert_true(r->presence_penalty == -2 && r->frequency_penalty == 2);
    assert_true(r->repetition_penalty == 1.5);
    assert_int_equal(r->num_bias, 2);
    assert_true(r->bias[1].id == 99 && r->bias[1].add == 1.5);
    assert_true(r->json && r->ignore_eos && r->priority == -1);
    assert_str(r->user, "u");
    assert_str(r->cache_salt, "x");
    assert_string_equal(r->unknown, "frob");
    api_request_close(r);
}

static void test_completions_fields(void **state)
{
    (void)state;
    struct api_request *r =
        parse(API_completions, "{\"model\":\"m\",\"prompt\":[\"a\",\"\"],\"max_tokens\":1,"
                               "\"echo\":true,\"logprobs\":0,\"stop\":\"x\",\"top_k\":-1,"
                               "\"best_of\":2,\"response_format\":{\"type\":\"text\"}}");
    assert_int_equal(r->num_prompts, 2);
    assert_str(r->prompt[0].text, "a");
    assert_true(r->echo && r->logprobs && r->top_logprobs == 0 && r->top_k == 0);
    assert_true(r->num_stops == 1 && r->best_of == 2 && r->n == 1);
    api_request_close(r);
    r = parse(API_completions, "{\"model\":\"m\",\"prompt\":[1,99]}");
    assert_int_equal(r->num_prompts, 1);
    assert_true(r->prompt[0].is_ids && r->prompt[0].num_ids == 2 && r->prompt[0].ids[1] == 99);
    api_request_close(r);
    r = parse(API_completions, "{\"model\":\"m\",\"prompt\":[[1],[2,3]]}");
    assert_int_equal(r->num_prompts, 2);
    assert_true(r->prompt[1].is_ids && r->prompt[1].num_ids == 2 && r->prompt[1].ids[0] == 2);
    api_request_close(r);
}

static void test_tokenize_fields(void **state)
{
    (void)state;
    struct api_request *r = parse(API_tokenize, "{\"prompt\":\"abc\",\"return_token_strs\":true}");
    assert_true(r->add_special_tokens && r->add_generation_prompt && r->token_texts);
    assert_str(r->prompt[0].text, "abc");
    api_request_close(r);
    r = parse(API_tokenize, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
                            "\"add_generation_prompt\":false,\"add_special_tokens\":false}");
    assert_true(r->num_messages == 1 && !r->prompt && !r->add_generation_prompt);
    assert_false(r->add_special_tokens);
    api_request_close(r);
    r = parse(API_detokenize, "{\"model\":\"m\",\"tokens\":[]}");
    assert_true(r->num_prompts == 1 && r->prompt[0].num_ids == 0);
    api_request_close(r);
}

/* Refusals: `body` stands behind the fields that the route needs, where it begins with a comma. */
struct refusal {
    const char *body, *param, *code, *message;
};
static const char *const needed[API_ROUTES] = {
    "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]",
    "{\"model\":\"m\",\"prompt\":\"a\"", "{\"prompt\":\"a\"", "{\"tokens\":[1]"};

static void refuse_text(enum api_route route, struct str body, const struct refusal *f, int status)
{
    struct api_error err = {0};
    struct api_request *r = api_parse(route, body, &limits, &err);
    if (r) fail_msg("accepted: %.*s", (int)(body.n < 300 ? body.n : 300), body.p);
    if (err.status != status || strcmp(err.param, f->param) ||
        strcmp(err.code ? err.code : "", f->code) || !strstr(err.message, f->message))
        fail_msg("%.200s\n  gave %d, param %s, code %s: %s\n  not %s, %s: %s", body.p, err.status,
                 err.param, err.code ? err.code : "null", err.message, f->param, f->code,
                 f->message);
    assert_string_equal(err.type, "invalid_request_error");
}

static void refuse_all(enum api_route route, const struct refusal *f, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct sb s = {0};
        if (f[i].body[0] == ',')
            sb_printf(&s, "%s%s}", needed[route], f[i].body);
        else
            sb_str(&s, f[i].body);
        refuse_text(route, (struct str){s.p ? s.p : "", s.n}, &f[i], 400);
        sb_free(&s);
    }
}
#define REFUSE(route, list) refuse_all(route, list, sizeof(list) / sizeof *(list))

static void test_body(void **state)
{
    (void)state;
    static const struct refusal f[] = {
        {"", "", "", "is empty"},
        {"[]", "", "", "must be a JSON object"},
        {"1", "", "invalid_json", "expected near"},
        {"{", "", "invalid_json", "not valid JSON"},
        {"{} {}", "", "invalid_json", "not valid JSON"},
        {"{\"model\":\"\xff\"}", "", "", "not valid UTF-8 at byte 10"},
        {"{\"model\":\"\xed\xa0\x80\"}", "", "", "not valid UTF-8"},
        {"{\"model\":\"\\ud800\"}", "model", "invalid_json", "not valid JSON"},
        {"{\"model\":\"m\",\"model\":\"m\"}", "model", "invalid_json", "duplicate"},
        {",\"n\":1,\"n\":1", "n", "invalid_json", "duplicate"},
        {",\"temperature\":NaN", "temperature", "invalid_json", "NaN"},
        {",\"temperature\":Infinity", "temperature", "invalid_json", "not valid JSON"},
        {",\"temperature\":1e999", "temperature", "invalid_value", "not valid JSON"},
        {",\"n\":99999999999999999999", "n", "invalid_value", "too big integer"},
        {",\"logit_bias\":{\"1\":-99999999999999999999}", "logit_bias", "invalid_value", "integer"},
    };
    REFUSE(API_chat, f);
}

/* A body of `head`, n times `item`, and `tail`. */
static void refuse_many(enum api_route route, const char *head, size_t n, const char *item,
                        const char *tail, const struct refusal *f, int status)
{
    struct sb s = {0};
    sb_str(&s, head);
    for (size_t i = 0; i < n; i++) sb_printf(&s, item, (int)i);
    sb_str(&s, tail);
    refuse_text(route, (struct str){s.p, s.n}, f, status);
    sb_free(&s);
}

static void test_sizes(void **state)
{
    (void)state;
#define MANY(route, head, n, item, tail, param, code, message, status) \
    refuse_many(route, head, n, item, tail, &(struct refusal){NULL, param, code, message}, status)
    MANY(API_chat, "{\"model\":\"", API_BODY_BYTES, "a", "\"}", "", "request_too_large",
         "larger than 8388608", 413);
    MANY(API_chat, "{\"x\":", 64, "[", "", "", "", "nests deeper than 64", 400);
    MANY(API_chat, "{\"x\":", 5000000, "[", "", "", "", "nests deeper than 64", 400);
    MANY(API_chat, "{\"x\":[", API_CONTAINERS, "{},", "1]}", "", "", "arrays and objects", 400);
    MANY(API_chat, "{\"x\":{", API_KEYS, "\"%d\":1,", "\"a\":1}}", "", "", "members", 400);
    MANY(API_completions, "{\"prompt\":[", API_VALUES, "1,", "1]}", "", "", "1048576 values", 400);
    MANY(API_chat, "{", API_FIELDS, "\"%d\":1,", "\"a\":1}", "", "", "more than 128 fields", 400);
    MANY(API_chat, "{\"model\":\"m\",\"messages\":[", API_MESSAGES, "{},", "{}]}", "messages",
         "invalid_value", "2048 messages", 400);
    MANY(API_chat, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[", API_PARTS,
         "{},", "{}]}]}", "messages[0].content", "invalid_value", "1024 parts", 400);
    MANY(API_completions, "{\"model\":\"m\",\"prompt\":[", API_PROMPTS, "\"a\",", "\"\"]}",
         "prompt", "invalid_value", "64 prompts", 400);
    MANY(API_completions, "{\"model\":\"m\",\"n\":16,\"prompt\":[", 4, "\"a\",", "\"\"]}", "n",
         "invalid_value", "More than 64 answers", 400);
    MANY(API_chat, "{\"logit_bias\":{", API_BIASES, "\"%d\":1,", "\"a\":1}}", "logit_bias",
         "invalid_value", "1024 members", 400);
    MANY(API_chat, "{\"stop\":\"", API_STOP_BYTES + 1, "a", "\"}", "stop", "invalid_value",
         "longer than 1024 bytes", 400);
    MANY(API_chat, "{\"user\":\"", API_NAME_BYTES + 1, "a", "\"}", "user", "invalid_value",
         "longer than 512 bytes", 400);
#undef MANY
}

/* The largest of what is allowed, which must pass. */
static void test_largest(void **state)
{
    (void)state;
    struct sb s = {0};
    sb_str(&s, "{\"model\":\"m\",\"messages\":[");
    for (int i = 0; i < API_MESSAGES; i++)
        sb_printf(&s, "%s{\"role\":\"user\",\"content\":\"%d\"}", i ? "," : "", i);
    sb_str(&s, "],\"x\":");
    for (int i = 0; i < API_DEPTH - 1; i++) sb_char(&s, '[');
    for (int i = 0; i < API_DEPTH - 1; i++) sb_char(&s, ']');
    sb_char(&s, '}');
    struct api_request *r = parse(API_chat, s.p);
    assert_int_equal(r->num_messages, API_MESSAGES);
    api_request_close(r);
    s.n = 0;
    sb_str(&s, "{\"model\":\"m\",\"prompt\":[");
    for (int i = 0; i < 300000; i++) sb_str(&s, i ? ",1" : "1");
    sb_str(&s, "]}");
    r = parse(API_completions, s.p);
    assert_int_equal(r->prompt[0].num_ids, 300000);
    api_request_close(r);
    sb_free(&s);
}

static void test_messages(void **state)
{
    (void)state;
#define MSG(m) "{\"model\":\"m\",\"messages\":[" m "]}"
    static const struct refusal f[] = {
        {"{\"model\":\"m\"}", "messages", "missing_required_parameter", "required"},
        {"{\"model\":\"m\",\"messages\":\"hi\"}", "messages", "invalid_type", "not a string"},
        {MSG(""), "messages", "invalid_value", "empty"},
        {MSG("1"), "messages[0]", "invalid_type", "not an integer"},
        {MSG("{\"content\":\"a\"}"), "messages[0].role", "missing_required_parameter", "required"},
        {MSG("{\"role\":1,\"content\":\"a\"}"), "messages[0].role", "invalid_type", "a string"},
        {MSG("{\"role\":\"boss\",\"content\":\"a\"}"), "messages[0].role", "invalid_value", "user"},
        {MSG("{\"role\":\"tool\",\"content\":\"a\"}"), "messages[0].role", "unsupported_value",
         "no tools"},
        {MSG("{\"role\":\"user\"}"), "messages[0].content", "missing_required_parameter", ""},
        {MSG("{\"role\":\"user\",\"content\":null}"), "messages[0].content",
         "missing_required_parameter", ""},
        {MSG("{\"role\":\"user\",\"content\":{}}"), "messages[0].content", "invalid_type", "parts"},
        {MSG("{\"role\":\"user\",\"content\":[]}"), "messages[0].content", "invalid_value",
         "empty"},
        {MSG("{\"role\":\"user\",\"content\":[\"a\"]}"), "messages[0].content[0]", "invalid_type",
         "an object"},
        {MSG("{\"role\":\"user\",\"content\":[{\"text\":\"a\"}]}"), "messages[0].content[0].type",
         "missing_required_parameter", ""},
        {MSG("{\"role\":\"user\",\"content\":[{\"type\":1}]}"), "messages[0].content[0].type",
         "invalid_type", "a string"},
        {MSG("{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
             "{\"type\":\"image_url\",\"image_url\":{\"url\":\"x\"}}]}"),
         "messages[0].content[1].type", "unsupported_value", "'image_url' is not supported"},
        {MSG("{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}"),
         "messages[0].content[0].text", "missing_required_parameter", ""},
        {MSG("{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":[]}]}"),
         "messages[0].content[0].text", "invalid_type", "a string"},
        {MSG("{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"\","
             "\"tool_calls\":[]}"),
         "messages[1].tool_calls", "unsupported_parameter", "not supported"},
        {MSG("{\"role\":\"assistant\",\"content\":\"\",\"audio\":{}}"), "messages[0].audio",
         "unsupported_parameter", ""},
        {MSG("{\"role\":\"user\",\"content\":\"\",\"name\":1}"), "messages[0].name", "invalid_type",
         ""},
        {MSG("{\"role\":\"user\",\"content\":\"\",\"name\":\"0123456789012345678901234567890123456"
             "7890123456789012345678901234\"}"),
         "messages[0].name", "invalid_value", "longer than 64"},
    };
    REFUSE(API_chat, f);
}

static void test_numbers(void **state)
{
    (void)state;
    static const struct refusal f[] = {
        {",\"temperature\":\"hot\"", "temperature", "invalid_type", "a number, not a string"},
        {",\"temperature\":-0.1", "temperature", "invalid_value", "from 0 to 2, not -0.1"},
        {",\"temperature\":2.1", "temperature", "invalid_value", "from 0 to 2"},
        {",\"top_p\":0", "top_p", "invalid_value", "greater than 0 and at most 1"},
        {",\"top_p\":1.01", "top_p", "invalid_value", ""},
        {",\"top_p\":[]", "top_p", "invalid_type", "not an array"},
        {",\"top_k\":-2", "top_k", "invalid_value", "from -1"},
        {",\"top_k\":1.5", "top_k", "invalid_type", "an integer, not a number"},
        {",\"top_k\":2147483648", "top_k", "invalid_value", ""},
        {",\"min_p\":-1", "min_p", "invalid_value", ""},
        {",\"min_p\":2", "min_p", "invalid_value", ""},
        {",\"min_p\":true", "min_p", "invalid_type", "a boolean"},
        {",\"presence_penalty\":2.5", "presence_penalty", "invalid_value", "from -2 to 2"},
        {",\"presence_penalty\":\"\"", "presence_penalty", "invalid_type", ""},
        {",\"frequency_penalty\":-3", "frequency_penalty", "invalid_value", "from -2 to 2"},
        {",\"frequency_penalty\":{}", "frequency_penalty", "invalid_type", "an object"},
        {",\"repetition_penalty\":0", "repetition_penalty", "invalid_value", ""},
        {",\"repetition_penalty\":3", "repetition_penalty", "invalid_value", ""},
        {",\"repetition_penalty\":\"1\"", "repetition_penalty", "invalid_type", ""},
        {",\"n\":0", "n", "invalid_value", "from 1 to 16"},
        {",\"n\":17", "n", "invalid_value", "from 1 to 16, not 17"},
        {",\"n\":1.0", "n", "invalid_type", ""},
        {",\"n\":9223372036854775807", "n", "invalid_value", ""},
        {",\"seed\":1.5", "seed", "invalid_type", ""},
        {",\"seed\":\"1\"", "seed", "invalid_type", ""},
        {",\"max_tokens\":0", "max_tokens", "invalid_value", "from 1"},
        {",\"max_tokens\":-1", "max_tokens", "invalid_value", ""},
        {",\"max_tokens\":4294967297", "max_tokens", "invalid_value", ""},
        {",\"max_completion_tokens\":0", "max_completion_tokens", "invalid_value", ""},
        {",\"max_completion_tokens\":\"9\"", "max_completion_tokens", "invalid_type", ""},
        {",\"max_tokens\":1,\"max_completion_tokens\":2", "max_tokens", "invalid_value", "differ"},
        {",\"min_tokens\":-1", "min_tokens", "invalid_value", ""},
        {",\"min_tokens\":3,\"max_tokens\":2", "min_tokens", "invalid_value", "exceeds"},
        {",\"priority\":2147483648", "priority", "invalid_value", ""},
        {",\"priority\":\"high\"", "priority", "invalid_type", ""},
        {",\"top_logprobs\":21,\"logprobs\":true", "top_logprobs", "invalid_value", "0 to 20"},
        {",\"top_logprobs\":-1,\"logprobs\":true", "top_logprobs", "invalid_value", ""},
        {",\"top_logprobs\":2", "top_logprobs", "invalid_value", "logprobs"},
    };
    REFUSE(API_chat, f);
}

static void test_other_fields(void **state)
{
    (void)state;
    static const struct refusal f[] = {
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "model",
         "missing_required_parameter", "'model' is required"},
        {"{\"model\":1}", "model", "invalid_type", "a string, not an integer"},
        {",\"logprobs\":1", "logprobs", "invalid_type", "a boolean"},
        {",\"stream\":\"yes\"", "stream", "invalid_type", "a boolean"},
        {",\"stream_options\":{}", "stream_options", "invalid_value", "stream"},
        {",\"stream\":true,\"stream_options\":1", "stream_options", "invalid_type", "an object"},
        {",\"stream\":true,\"stream_options\":{\"include_usage\":1}",
         "stream_options.include_usage", "invalid_type", "a boolean"},
        {",\"stop\":1", "stop", "invalid_type", "array of strings"},
        {",\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]", "stop", "invalid_value", "more than 4"},
        {",\"stop\":[\"a\",1]", "stop[1]", "invalid_type", "a string"},
        {",\"stop\":\"\"", "stop", "invalid_value", "empty"},
        {",\"stop\":[\"\"]", "stop[0]", "invalid_value", "empty"},
        {",\"logit_bias\":[]", "logit_bias", "invalid_type", "an object"},
        {",\"logit_bias\":{\"x\":1}", "logit_bias.x", "invalid_value", "token id from 0 to 99"},
        {",\"logit_bias\":{\"01\":1}", "logit_bias.01", "invalid_value", ""},
        {",\"logit_bias\":{\"-1\":1}", "logit_bias.-1", "invalid_value", ""},
        {",\"logit_bias\":{\"100\":1}", "logit_bias.100", "invalid_value", ""},
        {",\"logit_bias\":{\"99999999999999999999\":1}", "logit_bias.99999999999999999999",
         "invalid_value", ""},
        {",\"logit_bias\":{\"1\":101}", "logit_bias.1", "invalid_value", "from -100 to 100"},
        {",\"logit_bias\":{\"1\":\"2\"}", "logit_bias.1", "invalid_type", "a number"},
        {",\"response_format\":\"json\"", "response_format", "invalid_type", "an object"},
        {",\"response_format\":{}", "response_format.type", "missing_required_parameter", ""},
        {",\"response_format\":{\"type\":1}", "response_format.type", "invalid_type", ""},
        {",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{}}",
         "response_format.type", "unsupported_value", "'json_schema' is not supported"},
        {",\"user\":1", "user", "invalid_type", "a string"},
        {",\"cache_salt\":\"\"", "cache_salt", "invalid_value", "empty"},
        {",\"cache_salt\":1", "cache_salt", "invalid_type", ""},
        {",\"ignore_eos\":1", "ignore_eos", "invalid_type", ""},
        {",\"metadata\":1", "metadata", "invalid_type", "an object"},
        {",\"store\":1", "store", "invalid_type", "a boolean"},
        {",\"service_tier\":1", "service_tier", "invalid_type", "a string"},
        {",\"modalities\":[\"text\",\"audio\"]", "modalities[1]", "unsupported_value", "only text"},
        {",\"modalities\":\"text\"", "modalities", "invalid_type", "an array"},
    };
    REFUSE(API_chat, f);
}

/* Every field that the table refuses, by name. */
static void test_unsupported(void **state)
{
    (void)state;
    enum { C = 1, T = 2, K = 4, D = 8 };
#define FIELD(name, routes, reader, to, lo, hi)
#define REFUSED(name, routes) {name, routes},
    static const struct {
        const char *name;
        unsigned routes;
    } rows[] = {
#include "runtime/api_field.def"
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int route = 0; route < API_ROUTES; route++) {
            char body[96];
            if (!(rows[i].routes & 1u << route)) continue;
            snprintf(body, sizeof body, ",\"%s\":[]", rows[i].name);
            const struct refusal f = {body, rows[i].name, "unsupported_parameter", rows[i].name};
            refuse_all((enum api_route)route, &f, 1);
        }
}

static void test_completions(void **state)
{
    (void)state;
    static const struct refusal f[] = {
        {"{\"model\":\"m\"}", "prompt", "missing_required_parameter", ""},
        {"{\"model\":\"m\",\"prompt\":1}", "prompt", "invalid_type", "string or an array"},
        {"{\"model\":\"m\",\"prompt\":[]}", "prompt", "invalid_value", "empty"},
        {"{\"model\":\"m\",\"prompt\":[[]]}", "prompt[0]", "invalid_value", "empty"},
        {"{\"model\":\"m\",\"prompt\":[\"a\",1]}", "prompt[1]", "invalid_type", "kind"},
        {"{\"model\":\"m\",\"prompt\":[null]}", "prompt[0]", "invalid_type", ""},
        {"{\"model\":\"m\",\"prompt\":[1,\"a\"]}", "prompt[1]", "invalid_type", "token id"},
        {"{\"model\":\"m\",\"prompt\":[1.5]}", "prompt[0]", "invalid_type", "token id"},
        {"{\"model\":\"m\",\"prompt\":[1,100]}", "prompt[1]", "invalid_value", "0 to 99"},
        {"{\"model\":\"m\",\"prompt\":[-1]}", "prompt[0]", "invalid_value", ""},
        {"{\"model\":\"m\",\"prompt\":[[1],[4294967296]]}", "prompt[1][0]", "invalid_value", ""},
        {",\"logprobs\":6", "logprobs", "invalid_value", "0 to 5"},
        {",\"logprobs\":true", "logprobs", "invalid_type", "an integer"},
        {",\"echo\":1", "echo", "invalid_type", ""},
        {",\"best_of\":1,\"n\":2", "best_of", "invalid_value", "less than"},
        {",\"best_of\":17", "best_of", "invalid_value", ""},
        {",\"best_of\":2,\"stream\":true", "best_of", "invalid_value", "streamed"},
        {",\"suffix\":\"x\"", "suffix", "unsupported_parameter", ""},
    };
    REFUSE(API_completions, f);
}

static void test_tokenize(void **state)
{
    (void)state;
    static const struct refusal f[] = {
        {"{}", "prompt", "missing_required_parameter", ""},
        {"{\"prompt\":[1]}", "prompt", "invalid_type", "a string"},
        {",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]", "messages", "invalid_value", ""},
        {",\"add_special_tokens\":1", "add_special_tokens", "invalid_type", ""},
        {",\"add_generation_prompt\":1", "add_generation_prompt", "invalid_type", ""},
        {",\"return_token_strs\":1", "return_token_strs", "invalid_type", ""},
    };
    REFUSE(API_tokenize, f);
    static const struct refusal g[] = {
        {"{}", "tokens", "missing_required_parameter", ""},
        {"{\"tokens\":\"a\"}", "tokens", "invalid_type", ""},
        {"{\"tokens\":[\"a\"]}", "tokens[0]", "invalid_type", ""},
        {"{\"tokens\":[0,100]}", "tokens[1]", "invalid_value", ""},
    };
    REFUSE(API_detokenize, g);
}

static void test_model(void **state)
{
    (void)state;
    const struct refusal f = {NULL, "model", "model_not_found", "'x' does not exist"};
    refuse_text(API_detokenize, STR("{\"tokens\":[1],\"model\":\"x\"}"), &f, 404);
}

static void test_strict(void **state)
{
    (void)state;
    const struct api_limits strict = {.strict = true};
    static const char *const bodies[][2] = {
        {"{\"frob\":null}", "frob"},
        {"{\"model\":\"any\",\"messages\":[{\"role\":\"user\",\"content\":\"\",\"x\":1}]}",
         "messages[0].x"},
        {"{\"stream\":true,\"stream_options\":{\"y\":1}}", "stream_options.y"},
    };
    for (int i = 0; i < 3; i++) {
        struct api_error err = {0};
        assert_null(api_parse(API_chat, str_of(bodies[i][0]), &strict, &err));
        assert_string_equal(err.code, "unknown_parameter");
        assert_string_equal(err.param, bodies[i][1]);
    }
}

static void test_context(void **state)
{
    (void)state;
    struct api_error err = {0};
    int64_t max = 0;
    struct api_request r = {.route = API_chat};
    assert_true(api_fit_context(&r, 10, 16, &max, &err) && max == 6);
    r.max_tokens = 6;
    assert_true(api_fit_context(&r, 10, 16, &max, &err) && max == 6);
    r.max_tokens = 7;
    assert_false(api_fit_context(&r, 10, 16, &max, &err));
    assert_string_equal(err.code, "context_length_exceeded");
    assert_string_equal(err.param, "messages");
    assert_int_equal(err.status, 400);
    r.max_tokens = 0;
    assert_false(api_fit_context(&r, 16, 16, &max, &err));
    assert_false(api_fit_context(&r, INT32_MAX, 16, &max, &err));
}

static void test_problems(void **state)
{
    (void)state;
    for (int p = 0; p < API_PROBLEMS; p++) {
        struct api_error e;
        assert_false(api_fail(&e, (enum api_problem)p, "x %d", p));
        assert_true(e.status >= 400 && e.type && !e.param[0] && e.message[0] == 'x');
        assert_int_equal(e.retry_after > 0, e.status == 429 || e.status == 503);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_chat_fields),
        cmocka_unit_test(test_completions_fields),
        cmocka_unit_test(test_tokenize_fields),
        cmocka_unit_test(test_body),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_largest),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_other_fields),
        cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_completions),
        cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_strict),
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_problems),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
