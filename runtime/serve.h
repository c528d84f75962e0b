/* The OpenAI-compatible server of one model: an I/O thread (runtime/http.h), threads that read
 * requests (runtime/service.h) and the engine's (runtime/engine.h). Nothing on the engine's thread
 * waits for a client. Routes, with and without /v1 in front:
 *   POST /chat/completions, /completions, /tokenize, /detokenize
 *   GET  /models, /models/ID, /health, /metrics, /version, / (a page to chat)
 *   GET  /strata/depth/sites (with the option depth), where events of streams can have weights of
 *        depth attention: "strata_depth": true in the request, api_text.h says what comes back
 * With an API key every request needs it, as "Authorization: Bearer KEY" or "X-Api-Key: KEY", but
 * for /health, the page (which holds nothing of the model, and has a field for the key) and a
 * browser's OPTIONS before it asks from another origin. Errors are {"error": {...}}, but for bytes
 * that are not HTTP, which libmicrohttpd answers. */
#ifndef STRATA_RUNTIME_SERVE_H
#define STRATA_RUNTIME_SERVE_H
#include "runtime/api.h"
#include "runtime/engine.h"
#include "runtime/options.h"

/* All of it stays the caller's and outlives the server, which is the only one to use the model. */
struct serve_model {
    struct lm *lm;
    const struct tokenizer *tok;
    const char *name;                 /* what requests call it */
    const char *fingerprint;          /* of spec and weights: system_fingerprint of answers */
    const struct chat_template *chat; /* NULL: chat completions are refused */
    int64_t bos;                      /* put before prompts; -1: none */
    const int32_t *stop;              /* ids that end an answer, beside the template's */
    size_t num_stop;
    const char *program; /* name and version, for /version */
};

struct serve_options {
    const char *host, *name, *chat_template, *api_key, *api_key_file, *cors;
    bool strict, no_priority, depth, vllm_metrics;
    struct engine_options engine; /* text and arg are the server's to set */
    int64_t port;
    int64_t connections, line_bytes, header_bytes, headers, body_bytes, bodies_bytes, reading;
    int64_t parse_threads, answer_bytes, backlog_bytes, body_rate;
    double drain_seconds, header_seconds, idle_seconds, ping_seconds;
};
void serve_defaults(struct serve_options *o);

enum { SERVE_ROWS = 64 };
/* Options of a command line (options_parse) for all members of o; returns their number. */
size_t serve_rows(struct serve_options *o, struct cli_option row[SERVE_ROWS]);
/* Lines of help on them all, with what is standard. */
void serve_help(struct sb *out);
/* Whether the values lie in their ranges (RT_usage), and the key from its file or environment: in
 * the arena. */
enum rt_status serve_check(struct serve_options *o, struct arena *a, struct rt_error *err);

struct serve;
/* Starts engine and threads and listens. RT_user for options that cannot be, a port that is in use
 * among them. */
enum rt_status serve_open(const struct serve_model *m, const struct serve_options *o,
                          struct serve **out, struct rt_error *err);
int serve_port(const struct serve *s);
/* From now on nothing new is taken: /health and requests are answered with 503. */
void serve_drain(struct serve *s);
/* Ends what still runs, with an error event in streams. */
void serve_cut(struct serve *s);
/* Requests that are being answered. */
int64_t serve_active(struct serve *s);
/* Ends all threads; what runs is lost. NULL is fine. */
void serve_close(struct serve *s);

/* The whole life of a server process: says on standard error where it listens, serves until
 * SIGTERM or SIGINT, drains for at most o->drain_seconds, closes. Another signal ends the process
 * with status 1 at once. */
enum rt_status serve_run(const struct serve_model *m, const struct serve_options *o,
                         struct rt_error *err);
#endif
