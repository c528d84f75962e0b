/* Bodies of answers of the OpenAI-compatible server, appended to a text. Every text given here may
 * be any bytes: what is not UTF-8 is written as U+FFFD, so that every body is valid JSON. */
#ifndef STRATA_RUNTIME_API_TEXT_H
#define STRATA_RUNTIME_API_TEXT_H
#include "runtime/api.h"
#include "runtime/lm.h"

/* A JSON string with its quotes; only ", \ and control characters are escaped. */
void api_put_string(struct sb *out, struct str s);

/* An answer's id, chatcmpl-HEX or cmpl-HEX, from 128 random bits. */
enum { API_ID_BYTES = 48 };
void api_reply_id(char out[API_ID_BYTES], enum api_route route, uint64_t high, uint64_t low);

/* What all parts of one answer share. */
struct api_reply {
    enum api_route route; /* API_chat or API_completions */
    const char *id;
    int64_t created; /* seconds since 1970 */
    const char *model, *fingerprint;
    bool include_usage; /* of a stream: usage is null in all chunks but the last */
};
struct api_usage {
    int64_t prompt, completion, cached, reasoning; /* tokens; cached ones are among the prompt's */
};

/* Logarithms of probabilities: at most 0; -9999 stands for what is less, and for no number. */
struct api_top {
    struct str bytes; /* of the token; those that are not UTF-8 are shown as bytes:\xe2\x80 */
    double logprob;
};
struct api_token {
    struct str bytes;
    double logprob;
    bool no_logprob; /* the first token of an echoed prompt: null */
    const struct api_top *top;
    size_t num_top;
};
struct api_logprobs {
    const struct api_token *token;
    size_t n;
    size_t offset; /* completions: characters of text before the first token */
};
enum api_finish { API_unfinished, API_stop, API_length };
/* An extension of events, beside `choices`: "strata_depth": {"sites": [{"name": NAME, "sources": N,
 * "partial": false}, ...], "weights": [[...], ...]} of the token whose text the event has. */
struct api_depth {
    const struct lm_site *site;
    size_t num_sites;
    bool names;           /* writes `sites`; the first event of a choice has them */
    const float *weights; /* of all sites one after the other */
};
struct api_choice {
    int64_t index;
    struct str text;
    const struct api_logprobs *logprobs; /* NULL: not asked for */
    enum api_finish finish;
    const struct api_depth *depth; /* events only; NULL: not asked for */
};

/* A whole answer: chat.completion or text_completion. */
void api_put_answer(struct sb *out, const struct api_reply *r, const struct api_choice *c, size_t n,
                    const struct api_usage *u);

/* The same as a stream of server-sent events, in this order: begin for every choice (chat: the
 * role; else nothing), deltas of text, of which each choice's last has its finish_reason and no
 * text (it is an event of its own), usage where include_usage, done. A delta without text, log
 * probabilities, depth and finish writes nothing. */
void api_put_begin(struct sb *out, const struct api_reply *r, int64_t index);
void api_put_delta(struct sb *out, const struct api_reply *r, const struct api_choice *c);
void api_put_usage(struct sb *out, const struct api_reply *r, const struct api_usage *u);
void api_put_done(struct sb *out);
/* An error in the middle of a stream, which ends it; a comment that keeps a connection alive. */
void api_put_error_event(struct sb *out, const struct api_error *e);
void api_put_ping(struct sb *out);

/* {"error": {message, type, param, code}}. */
void api_put_error(struct sb *out, const struct api_error *e);

struct api_model {
    const char *id;
    int64_t created, context;
};
void api_put_model(struct sb *out, const struct api_model *m);
void api_put_models(struct sb *out, const struct api_model *m, size_t n);
/* {"sites": [...]} as in an event: what the weights of depth attention belong to. */
void api_put_sites(struct sb *out, const struct lm_site *site, size_t n);

/* Answers of /tokenize (texts: the tokens', or NULL where they are not asked for) and /detokenize.
 */
void api_put_tokens(struct sb *out, const int32_t *ids, size_t n, const struct str *texts,
                    int64_t context);
void api_put_text(struct sb *out, struct str text);
#endif
