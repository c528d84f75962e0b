/* Bodies of requests to the OpenAI-compatible server, read and checked: a function of the bytes.
 * No input crashes it or makes it hold more than a few times the body. What is wrong is an error
 * object that names the field. Fields are rows of api_field.def. */
#ifndef STRATA_RUNTIME_API_H
#define STRATA_RUNTIME_API_H
#include "runtime/chat.h"

enum {
    API_BODY_BYTES = 8 << 20,
    API_DEPTH = 64,           /* nested arrays and objects */
    API_VALUES = 1 << 20,     /* values in all, token ids included */
    API_CONTAINERS = 1 << 14, /* arrays and objects */
    API_KEYS = 1 << 16,       /* members of all objects */
    API_FIELDS = 128,         /* members of the body */
    API_MESSAGES = 2048,
    API_PARTS = 1024, /* of one message's content */
    API_PROMPTS = 64,
    API_MAX_N = 16,
    API_CHOICES = 64, /* prompts times n or best_of */
    API_STOPS = 4,
    API_STOP_BYTES = 1024,
    API_MAX_TOP = 20,     /* chat's top_logprobs */
    API_MAX_TEXT_TOP = 5, /* the other's logprobs */
    API_BIASES = 1024,
    API_NAME_BYTES = 512,
};

/* What is wrong with a request, or with us. */
enum api_problem {
    API_invalid,    /* 400 */
    API_context,    /* 400, code context_length_exceeded */
    API_key,        /* 401 */
    API_forbidden,  /* 403 */
    API_no_route,   /* 404 */
    API_no_model,   /* 404, code model_not_found */
    API_bad_method, /* 405 */
    API_slow,       /* 408 */
    API_too_large,  /* 413 */
    API_long_line,  /* 414 */
    API_media_type, /* 415 */
    API_rate,       /* 429 */
    API_large_head, /* 431 */
    API_internal,   /* 500 */
    API_overloaded, /* 503 */
    API_loading,    /* 503 */
    API_draining,   /* 503 */
    API_PROBLEMS,
};
struct api_error {
    enum api_problem problem;
    int status;
    int retry_after;         /* seconds for a Retry-After header, 0 for none */
    const char *type, *code; /* code may be NULL */
    char param[128];         /* the field, as messages[3].role; empty where none is to blame */
    char message[400];       /* both may hold any bytes; the writer makes them valid */
};
/* Fills e from the table of problems, without param. Always false. */
bool api_fail(struct api_error *e, enum api_problem p, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

enum api_route { API_chat, API_completions, API_tokenize, API_detokenize, API_ROUTES };

/* A text, or token ids. */
struct api_prompt {
    bool is_ids;
    struct str text;
    int32_t *ids;
    size_t num_ids;
};
struct api_bias {
    int32_t id;
    double add; /* to the logit */
};

/* A checked request. All memory is the arena's; texts are valid UTF-8 and may hold NUL. Every
 * member has its default where the body says nothing. */
struct api_request {
    struct arena *arena;
    enum api_route route;
    struct str model, user, cache_salt;
    struct chat_message *messages; /* chat; tokenize with messages */
    size_t num_messages;
    struct api_prompt *prompt; /* completions: 1 or more; tokenize, detokenize: one */
    size_t num_prompts;
    int64_t max_tokens;            /* 0: as many as fit (chat); completions: 16 by default */
    int64_t max_completion_tokens; /* another name, taken into max_tokens */
    int64_t min_tokens;
    double temperature, top_p, min_p;                               /* 1, 1, 0 */
    int64_t top_k;                                                  /* 0: all */
    double presence_penalty, frequency_penalty, repetition_penalty; /* 0, 0, 1 */
    struct api_bias *bias;                                          /* each id once */
    size_t num_bias;
    bool has_seed;
    int64_t seed;
    int64_t n, best_of; /* 1; best_of >= n, n by default */
    struct str stop[API_STOPS];
    size_t num_stops;
    bool stream, include_usage, echo, ignore_eos;
    bool logprobs;
    int64_t top_logprobs;
    bool json;  /* the answer is to be one JSON object */
    bool depth; /* "strata_depth": weights of depth attention with every event of a stream */
    int64_t priority;
    bool add_special_tokens, add_generation_prompt, token_texts; /* tokenize: true, true, false */
    char unknown[128]; /* the first field that was not known and is ignored; empty for none */
};

struct api_limits {
    const char *model;  /* the served name; NULL: any */
    int64_t vocab_size; /* token ids lie below; 0: any below 2^31 */
    bool strict;        /* unknown fields are refused */
};
/* Reads a body. NULL with *err filled in when it is refused (never API_internal but for want of
 * memory). */
struct api_request *api_parse(enum api_route route, struct str body, const struct api_limits *lim,
                              struct api_error *err);
void api_request_close(struct api_request *r);

/* The tokens to generate at most for a prompt of that many: max_tokens, or what the context leaves
 * where none is stated. False with API_context when they do not fit, or none are left. */
bool api_fit_context(const struct api_request *r, int64_t prompt_tokens, int64_t context,
                     int64_t *max_tokens, struct api_error *err);
#endif
