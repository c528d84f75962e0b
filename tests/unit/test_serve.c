/* The server over a model that is a table: routes, answers, streams, errors, keys. */
#include "serve_fake.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static struct fake_server server;

static int open_server(void **state)
{
    (void)state;
    fake_server_options(&server);
    server.o.depth = true;
    fake_server_open(&server);
    return 0;
}
static int close_server(void **state)
{
    (void)state;
    fake_server_close(&server);
    return 0;
}

/* The answer's body as JSON, with this status. */
static json_t *json_of(struct client_answer *a, int status)
{
    json_error_t e;
    if (a->status != status) fail_msg("status %d: %s", a->status, a->body.p);
    json_t *j = json_loads(a->body.p, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!j) fail_msg("%s: %s", e.text, a->body.p);
    client_free(a);
    return j;
}
static json_t *ask(const char *path, const char *body, int status)
{
    struct client_answer a = client_ask(server.port, path, body);
    return json_of(&a, status);
}

static const char *text_at(json_t *j, const char *path)
{
    char key[64];
    for (; *path; path += strcspn(path, "."), path += *path == '.') {
        snprintf(key, sizeof key, "%.*s", (int)strcspn(path, "."), path);
        j = key[0] >= '0' && key[0] <= '9' ? json_array_get(j, (size_t)atoi(key))
                                           : json_object_get(j, key);
    }
    if (!j || json_is_null(j)) return "(null)";
    if (json_is_string(j)) return json_string_value(j);
    static char number[32];
    snprintf(number, sizeof number, "%g", json_number_value(j));
    return number;
}
#define EXPECT(j, path, want) assert_string_equal(text_at(j, path), want)

static void refused(const char *path, const char *body, int status, const char *param,
                    const char *code)
{
    json_t *j = ask(path, body, status);
    EXPECT(j, "error.param", param);
    EXPECT(j, "error.code", code);
    assert_true(strlen(text_at(j, "error.message")) > 5);
    json_decref(j);
}

#define MODEL "\"model\":\"fake\","
#define CHAT(text) MODEL "\"messages\":[{\"role\":\"user\",\"content\":\"" text "\"}]"

static void test_small_routes(void **state)
{
    (void)state;
    json_t *j = ask("/v1/models", NULL, 200);
    EXPECT(j, "data.0.id", "fake");
    EXPECT(j, "object", "list");
    json_decref(j);
    j = ask("/models/fake", NULL, 200);
    EXPECT(j, "id", "fake");
    json_decref(j);
    refused("/v1/models/other", NULL, 404, "model", "model_not_found");
    refused("/nowhere", NULL, 404, "(null)", "not_found");
    refused("/v1/embeddings", "{}", 404, "(null)", "not_found");
    refused("/responses", "{}", 404, "(null)", "not_found");
    j = ask("/health", NULL, 200);
    EXPECT(j, "status", "ok");
    json_decref(j);
    j = ask("/version", NULL, 200);
    EXPECT(j, "system_fingerprint", "fp_fake");
    assert_true(json_is_true(json_object_get(j, "depth")));
    json_decref(j);
    j = ask("/strata/depth/sites", NULL, 200);
    EXPECT(j, "sites.1.name", "layers.1.attn_res");
    json_decref(j);
    struct client_answer a = client_ask(server.port, "/", NULL);
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(client_header(&a, "Content-Type"), "text/html"));
    assert_non_null(client_header(&a, "Content-Security-Policy"));
    client_free(&a);
}

static void test_methods(void **state)
{
    (void)state;
    struct client_answer a = client_ask(server.port, "/v1/models", "{}");
    assert_int_equal(a.status, 405);
    assert_string_equal(client_header(&a, "Allow"), "GET, HEAD");
    client_free(&a);
    a = client_ask(server.port, "/v1/chat/completions", NULL);
    assert_int_equal(a.status, 405);
    assert_string_equal(client_header(&a, "Allow"), "POST");
    client_free(&a);
    static const char head[] = "HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n"
                               "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    int fd = client_open(server.port);
    client_send(fd, head, sizeof head - 1);
    a = client_head_answer(fd);
    assert_int_equal(a.status, 200);
    assert_string_equal(client_header(&a, "Content-Length"), "15");
    client_free(&a);
    a = client_answer(fd); /* HEAD had no body: the next answer follows at once */
    assert_string_equal(a.body.p, "{\"status\":\"ok\"}");
    client_free(&a);
    close(fd);
}

static void test_chat(void **state)
{
    (void)state;
    /* plain: "User: TEXT\n\nAssistant:", and ':' is followed by a */
    json_t *j = ask("/v1/chat/completions", "{" CHAT("hi") ",\"max_tokens\":5}", 200);
    EXPECT(j, "object", "chat.completion");
    EXPECT(j, "model", "fake");
    EXPECT(j, "system_fingerprint", "fp_fake");
    EXPECT(j, "choices.0.message.content", "abcde");
    EXPECT(j, "choices.0.message.role", "assistant");
    EXPECT(j, "choices.0.finish_reason", "length");
    EXPECT(j, "usage.prompt_tokens", "20");
    EXPECT(j, "usage.completion_tokens", "5");
    EXPECT(j, "usage.total_tokens", "25");
    assert_int_equal(strlen(text_at(j, "id")), 9 + 32);
    json_decref(j);
    /* a stop string across tokens, and its text is not shown */
    j = ask("/chat/completions", "{" CHAT("hi") ",\"stop\":[\"def\"]}", 200);
    EXPECT(j, "choices.0.message.content", "abc");
    EXPECT(j, "choices.0.finish_reason", "stop");
    EXPECT(j, "usage.completion_tokens", "6");
    json_decref(j);
    /* plain's "Assistant: ": its space is not the answer's */
    j = ask("/chat/completions", "{" CHAT("hi") ",\"logit_bias\":{\"32\":100},\"max_tokens\":3}",
            200);
    EXPECT(j, "choices.0.message.content", "  ");
    json_decref(j);
    j = ask("/chat/completions", "{" CHAT("hi") ",\"n\":3,\"max_completion_tokens\":2}", 200);
    assert_int_equal(json_array_size(json_object_get(j, "choices")), 3);
    EXPECT(j, "choices.2.index", "2");
    EXPECT(j, "choices.2.message.content", "ab");
    EXPECT(j, "usage.prompt_tokens", "20"); /* a prompt counts once */
    EXPECT(j, "usage.completion_tokens", "6");
    json_decref(j);
}

static void test_completions(void **state)
{
    (void)state;
    json_t *j = ask("/v1/completions", "{" MODEL "\"prompt\":\"U\"}", 200);
    EXPECT(j, "object", "text_completion");
    EXPECT(j, "choices.0.text", "\xc3\xa9\xf0\x9f\x98\x80!");
    EXPECT(j, "choices.0.finish_reason", "stop");
    json_decref(j);
    j = ask("/completions",
            "{" MODEL "\"prompt\":[\"x\",\"ab\"],\"n\":2,\"max_tokens\":3,"
            "\"echo\":true}",
            200);
    EXPECT(j, "choices.0.text", "xyza");
    EXPECT(j, "choices.1.text", "xyza");
    EXPECT(j, "choices.3.text", "abcde");
    EXPECT(j, "usage.prompt_tokens", "3");
    json_decref(j);
    j = ask("/completions", "{" MODEL "\"prompt\":[97,98],\"max_tokens\":2,\"echo\":true}", 200);
    EXPECT(j, "choices.0.text", "abcd");
    json_decref(j);
    /* a character that is cut at the end of the answer */
    j = ask("/completions", "{" MODEL "\"prompt\":\"X\"}", 200);
    EXPECT(j, "choices.0.text", "\xef\xbf\xbd");
    json_decref(j);
    j = ask("/completions", "{" MODEL "\"prompt\":\"E\"}", 200);
    EXPECT(j, "choices.0.text", "");
    EXPECT(j, "choices.0.finish_reason", "stop");
    EXPECT(j, "usage.completion_tokens", "0");
    json_decref(j);
    j = ask("/completions", "{" MODEL "\"prompt\":\"E\",\"ignore_eos\":true,\"max_tokens\":3}",
            200);
    EXPECT(j, "choices.0.finish_reason", "length");
    json_decref(j);
    j = ask("/completions",
            "{" MODEL "\"prompt\":\"a\",\"best_of\":4,\"n\":2,\"max_tokens\":2,\"temperature\":2}",
            200);
    assert_int_equal(json_array_size(json_object_get(j, "choices")), 2);
    EXPECT(j, "usage.completion_tokens", "8");
    json_decref(j);
}

static void test_logprobs(void **state)
{
    (void)state;
    json_t *j = ask("/chat/completions",
                    "{" CHAT("hi") ",\"logprobs\":true,\"top_logprobs\":2,\"stop\":\"d\"}", 200);
    json_t *content = json_object_get(
        json_object_get(json_array_get(json_object_get(j, "choices"), 0), "logprobs"), "content");
    assert_int_equal(json_array_size(content), 3); /* d is not shown */
    EXPECT(content, "0.token", "a");
    EXPECT(content, "2.token", "c");
    EXPECT(content, "0.bytes.0", "97");
    EXPECT(content, "0.top_logprobs.0.token", "a");
    assert_int_equal(json_array_size(json_object_get(json_array_get(content, 0), "top_logprobs")),
                     2);
    assert_true(json_number_value(json_object_get(json_array_get(content, 0), "logprob")) <= 0);
    json_decref(j);
    j = ask("/completions", "{" MODEL "\"prompt\":\"U\",\"logprobs\":1}", 200);
    json_t *l = json_object_get(json_array_get(json_object_get(j, "choices"), 0), "logprobs");
    assert_int_equal(json_array_size(json_object_get(l, "tokens")), 7);
    EXPECT(l, "tokens.0", "bytes:\\xc3");
    EXPECT(l, "text_offset.6", "2");
    json_decref(j);
}

/* Data of all events of a stream, in an array; the last must be [DONE], or an error. */
static json_t *events(const char *path, const char *body)
{
    struct client_answer a = client_ask(server.port, path, body);
    json_t *all = json_array();
    if (a.status != 200) fail_msg("status %d: %s", a.status, a.body.p);
    assert_non_null(strstr(client_header(&a, "Content-Type"), "text/event-stream"));
    assert_string_equal(client_header(&a, "Cache-Control"), "no-cache");
    bool done = false;
    for (char *p = a.body.p; *p;) {
        assert_false(done);
        char *end = strstr(p, "\n\n");
        assert_non_null(end);
        *end = 0;
        if (!strncmp(p, "data: ", 6) && strcmp(p, "data: [DONE]")) {
            json_t *j = json_loads(p + 6, JSON_REJECT_DUPLICATES, NULL);
            assert_non_null(j);
            json_array_append_new(all, j);
        } else {
            done = !strcmp(p, "data: [DONE]");
            assert_true(done || *p == ':');
        }
        p = end + 2;
    }
    assert_true(done);
    client_free(&a);
    return all;
}

static void test_stream(void **state)
{
    (void)state;
    json_t *e = events("/v1/chat/completions",
                       "{" CHAT("hi") ",\"stream\":true,\"max_tokens\":3,"
                                      "\"stream_options\":{\"include_usage\":true}}");
    assert_int_equal(json_array_size(e), 6); /* role, three tokens, the end, usage */
    EXPECT(e, "0.object", "chat.completion.chunk");
    EXPECT(e, "0.choices.0.delta.role", "assistant");
    EXPECT(e, "1.choices.0.delta.content", "a");
    EXPECT(e, "1.choices.0.delta.role", "(null)");
    EXPECT(e, "3.choices.0.delta.content", "c");
    EXPECT(e, "3.choices.0.finish_reason", "(null)");
    EXPECT(e, "4.choices.0.finish_reason", "length");
    EXPECT(e, "4.choices.0.delta.content", "(null)");
    EXPECT(e, "5.usage.completion_tokens", "3");
    EXPECT(e, "5.usage.prompt_tokens", "20");
    char id[64];
    snprintf(id, sizeof id, "%s", text_at(e, "0.id"));
    for (size_t i = 0; i < json_array_size(e); i++)
        assert_string_equal(json_string_value(json_object_get(json_array_get(e, i), "id")), id);
    json_decref(e);
}

static void test_stream_text(void **state)
{
    (void)state;
    /* never a cut character, never the beginning of a stop string */
    json_t *e =
        events("/completions", "{" MODEL "\"prompt\":\"U\",\"stream\":true,\"stop\":\"!?\"}");
    assert_int_equal(json_array_size(e), 4);
    EXPECT(e, "0.choices.0.text", "\xc3\xa9");
    EXPECT(e, "1.choices.0.text", "\xf0\x9f\x98\x80");
    EXPECT(e, "2.choices.0.text", "!"); /* was held back until the end */
    EXPECT(e, "3.choices.0.finish_reason", "stop");
    json_decref(e);
    e = events("/completions", "{" MODEL "\"prompt\":\"w\",\"stream\":true,\"stop\":\"yz\","
                               "\"echo\":true,\"n\":2}");
    /* two echoes, two x, two ends */
    assert_int_equal(json_array_size(e), 6);
    EXPECT(e, "0.choices.0.text", "w");
    EXPECT(e, "1.choices.0.index", "1");
    json_decref(e);
    /* log probabilities come with the text that they belong to */
    e = events("/completions", "{" MODEL "\"prompt\":\"U\",\"stream\":true,\"logprobs\":0}");
    assert_int_equal(json_array_size(e), 4);
    json_t *first = json_object_get(
        json_array_get(json_object_get(json_array_get(e, 0), "choices"), 0), "logprobs");
    assert_int_equal(json_array_size(json_object_get(first, "tokens")), 2);
    EXPECT(e, "1.choices.0.logprobs.text_offset.0", "1");
    json_decref(e);
}

static void test_depth(void **state)
{
    (void)state;
    json_t *e = events("/chat/completions",
                       "{" CHAT("hi") ",\"stream\":true,\"max_tokens\":3,\"strata_depth\":true}");
    assert_int_equal(json_array_size(e), 5);
    EXPECT(e, "1.strata_depth.sites.0.name", "layers.0.attn_res");
    EXPECT(e, "1.strata_depth.weights.1.1", "0.5");
    EXPECT(e, "2.strata_depth.sites", "(null)");
    EXPECT(e, "3.strata_depth.weights.0.0", "0.5");
    EXPECT(e, "4.strata_depth", "(null)");
    json_decref(e);
}

static void test_tokens(void **state)
{
    (void)state;
    json_t *j = ask("/tokenize", "{\"prompt\":\"ab\",\"return_token_strs\":true}", 200);
    EXPECT(j, "count", "2");
    EXPECT(j, "tokens.1", "98");
    EXPECT(j, "token_strs.0", "a");
    json_decref(j);
    j = ask("/v1/tokenize", "{" CHAT("hi") "}", 200);
    EXPECT(j, "count", "20");
    json_decref(j);
    j = ask("/detokenize", "{\"tokens\":[104,105]}", 200);
    EXPECT(j, "prompt", "hi");
    json_decref(j);
}

static void test_bad_requests(void **state)
{
    (void)state;
    refused("/v1/chat/completions", "{\"model\":\"other\",\"messages\":[]}", 400, "messages",
            "invalid_value");
    refused("/v1/chat/completions",
            "{\"model\":\"other\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 404,
            "model", "model_not_found");
    refused("/v1/chat/completions", "{", 400, "(null)", "invalid_json");
    refused("/v1/chat/completions", "", 400, "(null)", "(null)");
    refused("/v1/chat/completions", "{" CHAT("x") ",\"tools\":[]}", 400, "tools",
            "unsupported_parameter");
    refused("/v1/chat/completions", "{" CHAT("x") ",\"temperature\":3}", 400, "temperature",
            "invalid_value");
    refused("/v1/chat/completions", "{" CHAT("x") ",\"max_tokens\":5000}", 400, "messages",
            "context_length_exceeded");
    refused("/v1/completions", "{" MODEL "\"prompt\":\"x\",\"echo\":true,\"logprobs\":1}", 400,
            "echo", "unsupported_value");
    refused("/v1/completions", "{" MODEL "\"prompt\":\"\"}", 400, "prompt", "invalid_value");
    refused("/v1/completions", "{" MODEL "\"prompt\":\"a\",\"strata_depth\":true}", 400,
            "strata_depth", "invalid_value");
    refused("/v1/chat/completions",
            "{" MODEL "\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}", 400,
            "messages[0]", "invalid_value");
}

static void test_json_mode(void **state)
{
    (void)state;
    json_t *j = ask("/chat/completions",
                    "{" CHAT("hi") ",\"response_format\":{\"type\":\"json_object\"},"
                                   "\"temperature\":1,\"seed\":1,\"max_tokens\":200}",
                    200);
    if (!strcmp(text_at(j, "choices.0.finish_reason"), "stop")) {
        json_t *answer = json_loads(text_at(j, "choices.0.message.content"), 0, NULL);
        assert_true(json_is_object(answer));
        json_decref(answer);
    }
    assert_int_equal(text_at(j, "choices.0.message.content")[0], '{');
    json_decref(j);
}

static void test_seeds(void **state)
{
    (void)state;
    static const char body[] = "{" CHAT("hi") ",\"temperature\":2,\"seed\":5,\"n\":2,"
                                              "\"logit_bias\":{\"97\":-100},\"max_tokens\":8}";
    json_t *a = ask("/chat/completions", body, 200), *b = ask("/chat/completions", body, 200);
    char first[64];
    snprintf(first, sizeof first, "%s", text_at(a, "choices.0.message.content"));
    EXPECT(b, "choices.0.message.content", first);
    snprintf(first, sizeof first, "%s", text_at(a, "choices.1.message.content"));
    EXPECT(b, "choices.1.message.content", first);
    assert_null(strchr(first, 'a'));
    json_decref(a);
    json_decref(b);
}

static void test_metrics(void **state)
{
    (void)state;
    assert_true(client_metric(server.port, "strata_generation_tokens_total") > 0);
    assert_true(client_metric(server.port, "strata_requests_rejected_total{reason=\"no_model\"}") >=
                2);
    assert_true(
        client_metric(server.port, "strata_request_success_total{finished_reason=\"stop\"}") > 0);
    assert_true(client_metric(server.port, "strata_time_to_first_token_seconds_count") > 0);
    assert_true(client_metric(server.port, "process_resident_memory_bytes") > 1e6);
    assert_true(client_metric(server.port, "strata_num_requests_running") == 0);
    assert_true(client_metric(server.port, "vllm:num_requests_running{model_name=\"fake\"}") == -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_routes), cmocka_unit_test(test_methods),
        cmocka_unit_test(test_chat),         cmocka_unit_test(test_completions),
        cmocka_unit_test(test_logprobs),     cmocka_unit_test(test_stream),
        cmocka_unit_test(test_stream_text),  cmocka_unit_test(test_depth),
        cmocka_unit_test(test_tokens),       cmocka_unit_test(test_bad_requests),
        cmocka_unit_test(test_json_mode),    cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_metrics)};
    return cmocka_run_group_tests(tests, open_server, close_server);
}
