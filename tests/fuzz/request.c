/* Fuzz target: any bytes as the body of a request; the first is the route, as a digit. It is
 * refused with an error that names a status, a type and a reason, or everything in it is valid and
 * in range, and its messages have a prompt in every template that allows their order. */
#include "runtime/api_text.h"
#include "runtime/stops.h"
#include "runtime/utf8.h"
#include <jansson.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_text(struct str s)
{
    CHECK(utf8_check(s) == s.n);
}

static void check_request(const struct api_request *r, const struct api_limits *lim)
{
    check_text(r->model);
    check_text(r->user);
    check_text(r->cache_salt);
    CHECK(r->num_messages <= API_MESSAGES && r->num_prompts <= API_CHOICES);
    for (size_t i = 0; i < r->num_prompts; i++) {
        const struct api_prompt *p = &r->prompt[i];
        check_text(p->text);
        for (size_t k = 0; k < p->num_ids; k++)
            CHECK(p->ids[k] >= 0 && p->ids[k] < lim->vocab_size);
    }
    CHECK(r->num_stops <= API_STOPS);
    for (size_t i = 0; i < r->num_stops; i++) {
        check_text(r->stop[i]);
        CHECK(r->stop[i].n > 0 && r->stop[i].n <= API_STOP_BYTES);
    }
    for (size_t i = 0; i < r->num_bias; i++)
        CHECK(r->bias[i].id < lim->vocab_size && r->bias[i].add >= -100 && r->bias[i].add <= 100);
    CHECK(r->temperature >= 0 && r->temperature <= 2 && r->top_p > 0 && r->top_p <= 1);
    CHECK(r->min_p >= 0 && r->min_p <= 1 && r->top_k >= 0 && r->repetition_penalty > 0);
    CHECK(r->n >= 1 && r->n <= r->best_of && r->best_of <= API_MAX_N);
    CHECK(r->max_tokens >= 0 && r->top_logprobs >= 0 && r->top_logprobs <= API_MAX_TOP);
}

static void render(const struct api_request *r)
{
    static const char *const names[] = {"kimi", "llama", "chatml", "plain"};
    for (int i = 0; i < 4; i++) {
        struct rt_error err = {{0}};
        struct chat_prompt p;
        size_t bad = 0;
        if (chat_render(r->arena, chat_template_find(names[i]), r->messages, r->num_messages, true,
                        &p, &bad, &err))
            CHECK(err.text[0] && bad < r->num_messages);
        else
            for (size_t k = 0; k < p.n; k++) check_text(p.piece[k].text);
    }
}

/* The text as an answer that stops at the request's stop strings, given in parts of 3 bytes. */
static void answer(const struct api_request *r, struct str text)
{
    const struct api_reply reply = {API_chat, "chatcmpl-0", 0, "m", NULL, true};
    const struct api_usage usage = {1, 2, 0, 0};
    struct stops *stops = stops_open(r->arena, r->stop, r->num_stops);
    struct sb shown = {0}, body = {0};
    bool found = false;
    for (size_t i = 0; i < text.n && !found; i += 3)
        found = stops_add(stops, (struct str){text.p + i, text.n - i < 3 ? text.n - i : 3}, &shown);
    stops_end(stops, &shown);
    CHECK(found ? shown.n < text.n : shown.n == text.n);
    CHECK(!shown.n || !memcmp(shown.p, text.p, shown.n));
    CHECK(utf8_check((struct str){shown.p, shown.n}) == shown.n);
    const struct api_choice c = {0, {shown.p, shown.n}, NULL, API_stop, NULL};
    api_put_answer(&body, &reply, &c, 1, &usage);
    json_t *j = json_loadb(body.p, body.n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL), *got;
    CHECK(j && !json_unpack(j, "{s:[{s:{s:o}}]}", "choices", "message", "content", &got));
    CHECK(str_eq((struct str){json_string_value(got), json_string_length(got)}, c.text));
    json_decref(j);
    sb_free(&shown);
    sb_free(&body);
}

static void refused(const struct api_error *e)
{
    struct sb body = {0};
    CHECK(e->status >= 400 && e->status < 500 && e->type && e->message[0]);
    api_put_error(&body, e);
    json_t *j = json_loadb(body.p, body.n, JSON_REJECT_DUPLICATES, NULL);
    CHECK(j);
    json_decref(j);
    sb_free(&body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct api_error err = {0};
    struct api_limits lim = {.vocab_size = 1000, .strict = size && data[0] >= '4'};
    enum api_route route = (enum api_route)(size ? data[0] % API_ROUTES : 0);
    struct str body = {(const char *)data + (size > 0), size - (size > 0)};
    struct api_request *r = api_parse(route, body, &lim, &err);
    if (r) {
        check_request(r, &lim);
        if (r->num_messages) render(r);
        for (size_t i = 0; i < r->num_messages; i++) answer(r, r->messages[i].content);
        api_request_close(r);
    } else {
        refused(&err);
    }
    return 0;
}
