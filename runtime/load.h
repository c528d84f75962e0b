/* A load generator for OpenAI-compatible servers: streaming requests to /v1/completions or
 * /v1/chat/completions from so many clients, each asking again when it has its answer (closed
 * loop), or at random times at a rate, whatever the server does (open loop). One thread. What is
 * asked, and when in an open loop, depends on options and seed only. */
#ifndef STRATA_RUNTIME_LOAD_H
#define STRATA_RUNTIME_LOAD_H
#include "base/vec.h"
#include "base/str.h"
#include "runtime/status.h"

enum { LOAD_CLIENTS = 8192 }; /* requests at the same time */

/* "http://HOST[:PORT][/PREFIX]" in parts. */
struct load_url {
    char host[256], port[8], prefix[256]; /* prefix: without a slash at its end */
};
/* RT_user for anything else. */
enum rt_status load_url_read(const char *text, struct load_url *out, struct rt_error *err);

struct load_range { /* uniform in [low, high] */
    int64_t low, high;
};
struct load_options {
    struct load_url url;
    const char *key, *model; /* key: NULL without */
    bool chat, ignore_eos;
    int64_t clients;  /* closed loop, 1 or more; 0: open loop */
    double rate;      /* of the open loop, requests a second; gaps are exponential */
    int64_t requests; /* in all, LOAD_REQUESTS at most; */
    double seconds;   /* after them nothing new is asked; 0: no limit */
    double timeout;   /* of a request, seconds */
    struct load_range prompt, max_tokens;
    int64_t vocab;           /* > 0: prompts are ids below it; 0: words, one counted as a token */
    const struct str *given; /* prompts in turn instead of random ones; */
    size_t num_given;        /* 0: random ones */
    double temperature;
    double cancel; /* share of requests that are given up in the middle of their answer */
    uint64_t seed;
    /* Called now and then, for a progress line; NULL: nobody. */
    void (*tick)(void *arg, double seconds, int64_t done, int64_t running, int64_t tokens);
    void *arg;
};
enum { LOAD_REQUESTS = 1 << 24 };

enum load_outcome {
    LOAD_ok,
    LOAD_refused,   /* an answer with another status than 200 */
    LOAD_connect,   /* no connection */
    LOAD_timeout,   /* of the options */
    LOAD_cut,       /* the connection ended before the answer did */
    LOAD_malformed, /* no HTTP, or no stream of events with JSON */
    LOAD_error,     /* an error among the events */
    LOAD_cancelled, /* by us, as the options say */
    LOAD_OUTCOMES
};
/* "ok", "refused" and so on. */
const char *load_outcome_name(enum load_outcome o);

/* One request, times in seconds from the run's begin. */
struct load_request {
    double due;         /* when it was to be sent: latencies count from here */
    double first, last; /* tokens, 0 before there was one */
    double end;
    int64_t prompt, completion; /* tokens; as usage says, else events with text */
    enum load_outcome outcome;
    int status;      /* of HTTP, 0 without */
    int retry_after; /* -1 without */
};
struct load_result {
    VEC(struct load_request) request; /* in the order in which they ended */
    VEC(float) gap;                /* seconds between events with text, of requests that are ok */
    double seconds;                /* from the first request to the last end */
    char said[LOAD_OUTCOMES][200]; /* the first message of each outcome but ok; empty */
};
/* Runs all of it. The result is in the arena. RT_user where the host is unknown or options are out
 * of range; what a server does is never an error here. */
enum rt_status load_run(struct arena *a, const struct load_options *o, struct load_result *out,
                        struct rt_error *err);
/* The id of the first model that GET /v1/models lists; RT_user where there is no such answer. */
enum rt_status load_model(struct arena *a, const struct load_options *o, const char **model,
                          struct rt_error *err);

/* The body of request i. */
void load_body(const struct load_options *o, uint64_t i, struct sb *out);
/* When request i of an open loop is due, given when the one before it was (0 for the first). */
double load_due(const struct load_options *o, uint64_t i, double before);
#endif
