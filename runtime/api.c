#include "runtime/api.h"
#include "runtime/api_json.h"
#include <stdio.h>

static const struct problem {
    int status, retry_after;
    const char *type, *code;
} problems[API_PROBLEMS] = {
    [API_invalid] = {400, 0, "invalid_request_error", NULL},
    [API_context] = {400, 0, "invalid_request_error", "context_length_exceeded"},
    [API_key] = {401, 0, "invalid_request_error", "invalid_api_key"},
    [API_forbidden] = {403, 0, "invalid_request_error", "forbidden"},
    [API_no_route] = {404, 0, "invalid_request_error", "not_found"},
    [API_no_model] = {404, 0, "invalid_request_error", "model_not_found"},
    [API_bad_method] = {405, 0, "invalid_request_error", "method_not_allowed"},
    [API_slow] = {408, 0, "invalid_request_error", "request_timeout"},
    [API_too_large] = {413, 0, "invalid_request_error", "request_too_large"},
    [API_long_line] = {414, 0, "invalid_request_error", "request_line_too_long"},
    [API_media_type] = {415, 0, "invalid_request_error", "unsupported_media_type"},
    [API_rate] = {429, 1, "rate_limit_error", "rate_limit_exceeded"},
    [API_large_head] = {431, 0, "invalid_request_error", "request_headers_too_large"},
    [API_internal] = {500, 0, "server_error", NULL},
    [API_overloaded] = {503, 1, "server_error", "overloaded"},
    [API_loading] = {503, 2, "server_error", "loading"},
    [API_draining] = {503, 5, "server_error", "draining"},
};

bool api_fail(struct api_error *e, enum api_problem p, const char *fmt, ...)
{
    va_list ap;
    const struct problem *row = &problems[p];
    *e = (struct api_error){.problem = p,
                            .status = row->status,
                            .retry_after = row->retry_after,
                            .type = row->type,
                            .code = row->code};
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof e->message, fmt, ap);
    va_end(ap);
    return false;
}

static void set_defaults(struct api_request *r)
{
    r->temperature = r->top_p = r->repetition_penalty = 1;
    r->n = 1;
    r->add_special_tokens = r->add_generation_prompt = true;
}

/* An error of one field, found when all are read. */
static bool wrong(struct api_error *err, const char *param, const char *code, const char *message)
{
    api_fail(err, API_invalid, "%s", message);
    err->code = code;
    snprintf(err->param, sizeof err->param, "%s", param);
    return false;
}
static bool missing(struct api_error *err, const char *param)
{
    char text[96];
    snprintf(text, sizeof text, "'%s' is required.", param);
    return wrong(err, param, "missing_required_parameter", text);
}

static bool check_present(const struct api_request *r, const struct api_limits *lim,
                          struct api_error *err)
{
    bool talks = r->route == API_chat || r->route == API_completions;
    if (talks && !r->model.n) return missing(err, "model");
    if (r->model.n && lim->model && !str_is(r->model, lim->model)) {
        api_fail(err, API_no_model, "The model '%.*s' does not exist; this server has '%s'.",
                 (int)(r->model.n < 100 ? r->model.n : 100), r->model.p, lim->model);
        snprintf(err->param, sizeof err->param, "model");
        return false;
    }
    if (r->route == API_chat && !r->messages) return missing(err, "messages");
    if (r->route == API_completions && !r->prompt) return missing(err, "prompt");
    if (r->route == API_detokenize && !r->prompt) return missing(err, "tokens");
    if (r->route == API_tokenize && !r->prompt && !r->messages) return missing(err, "prompt");
    if (r->route == API_tokenize && r->prompt && r->messages)
        return wrong(err, "messages", "invalid_value",
                     "'messages' and 'prompt' exclude each other.");
    return true;
}

/* What one field demands of another; fills in what follows from others. */
static bool check_together(struct api_request *r, bool stream_options, struct api_error *err)
{
    if (r->max_completion_tokens) {
        if (r->max_tokens && r->max_tokens != r->max_completion_tokens)
            return wrong(err, "max_tokens", "invalid_value",
                         "'max_tokens' and 'max_completion_tokens' differ.");
        r->max_tokens = r->max_completion_tokens;
    }
    if (r->route == API_completions && !r->max_tokens) r->max_tokens = 16;
    if (r->max_tokens && r->min_tokens > r->max_tokens)
        return wrong(err, "min_tokens", "invalid_value", "'min_tokens' exceeds 'max_tokens'.");
    if (stream_options && !r->stream)
        return wrong(err, "stream_options", "invalid_value",
                     "'stream_options' is allowed with 'stream': true only.");
    if (r->route == API_chat && r->top_logprobs && !r->logprobs)
        return wrong(err, "top_logprobs", "invalid_value",
                     "'top_logprobs' is allowed with 'logprobs': true only.");
    if (r->depth && !r->stream)
        return wrong(err, "strata_depth", "invalid_value",
                     "'strata_depth' is allowed with 'stream': true only.");
    if (!r->best_of) r->best_of = r->n;
    if (r->best_of < r->n)
        return wrong(err, "best_of", "invalid_value", "'best_of' is less than 'n'.");
    if (r->best_of > r->n && r->stream)
        return wrong(err, "best_of", "invalid_value",
                     "'best_of' greater than 'n' cannot be streamed.");
    if ((int64_t)r->num_prompts * r->best_of > API_CHOICES)
        return wrong(err, "n", "invalid_value", "More than 64 answers are asked for at once.");
    if (r->top_k < 0) r->top_k = 0;
    return true;
}

struct api_request *api_parse(enum api_route route, struct str body, const struct api_limits *lim,
                              struct api_error *err)
{
    json_t *root = api_json_load(body, err);
    if (!root) return NULL;
    struct arena *a = arena_open("request");
    struct api_request *r = NEW(a, struct api_request, 1);
    r->arena = a;
    r->route = route;
    set_defaults(r);
    const json_t *options = json_object_get(root, "stream_options");
    bool ok = api_read_body(r, root, lim, err) && check_present(r, lim, err) &&
              check_together(r, options && !json_is_null(options), err);
    json_decref(root);
    if (ok) return r;
    arena_close(a);
    return NULL;
}

void api_request_close(struct api_request *r)
{
    if (r) arena_close(r->arena);
}

bool api_fit_context(const struct api_request *r, int64_t prompt_tokens, int64_t context,
                     int64_t *max_tokens, struct api_error *err)
{
    const char *param = r->route == API_chat ? "messages" : "prompt";
    int64_t left = context - prompt_tokens;
    if (left <= 0) {
        api_fail(err, API_context,
                 "This model's context has %lld tokens; the prompt alone has %lld.",
                 (long long)context, (long long)prompt_tokens);
    } else if (r->max_tokens > left) {
        api_fail(err, API_context,
                 "This model's context has %lld tokens; %lld were asked for, %lld in the prompt "
                 "and %lld in the answer.",
                 (long long)context, (long long)(prompt_tokens + r->max_tokens),
                 (long long)prompt_tokens, (long long)r->max_tokens);
    } else {
        *max_tokens = r->max_tokens ? r->max_tokens : left;
        return true;
    }
    snprintf(err->param, sizeof err->param, "%s", param);
    return false;
}
