/* Fuzz target: any bytes as the body of a request; the first is the route, as a digit. It is
 * refused with an error that names a status, a type and a reason, or everything in it is valid and
 * in range, and its messages have a prompt in every template that allows their order. */
#include "runtime/api.h"
#include "runtime/utf8.h"

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
        api_request_close(r);
    } else {
        CHECK(err.status >= 400 && err.status < 500 && err.type && err.message[0]);
    }
    return 0;
}
