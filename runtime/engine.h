/* The serving engine: runs many sequences through one model (runtime/lm.h) at once. Its own thread
 * does step after step: sequences that have read their prompt get a token each, in one call; beside
 * them prompts are read in chunks (at most step_tokens a step). Requests wait in a bounded queue;
 * pages of prompts that were read before are found again (prefix cache: by hash of tokens and salt,
 * clamped, where the model has states, to the deepest position whose state was kept); when pages
 * run out, the newest request is set aside with its pages and state saved, and goes on later.
 * Whatever is beside it, a request gets the tokens that it gets alone. Steps allocate nothing and
 * wait for nobody. */
#ifndef STRATA_RUNTIME_ENGINE_H
#define STRATA_RUNTIME_ENGINE_H
#include "base/str.h"
#include "runtime/lm.h"
#include "runtime/sample.h"

struct engine_options {
    int64_t max_sequences;      /* running at once; 0: as many as the model's calls take */
    int64_t max_waiting;        /* requests in the queue; 0: 64 */
    int64_t max_waiting_tokens; /* their prompts together; 0: no limit but max_waiting */
    int64_t step_tokens;        /* prompt tokens of a step; 0: LM_CHUNK */
    int64_t snapshots; /* states kept for the prefix cache; 0: none, as in models without */
    bool no_prefix_cache;
    /* Text of an id for requests with `json`: empty where it has none (special tokens), so that it
     * is never taken there. Called for every id in engine_open. NULL: such requests are refused. */
    struct str (*text)(void *arg, int32_t id);
    void *arg;
};

enum engine_finish {
    ENGINE_stop,      /* a stop id, which is not given out; with `json` the end of the object */
    ENGINE_text,      /* `token` said so */
    ENGINE_length,    /* max_tokens */
    ENGINE_cancelled, /* engine_cancel, or the engine was closed */
    ENGINE_failed,    /* the model's numbers are broken, or the device failed */
    ENGINE_FINISHES
};
struct engine_top {
    int32_t id;
    float logprob;
};
struct engine_token {
    int32_t id;
    float logprob;                /* natural logarithm of the model's probability (temperature 1,
                                   * before penalties and cuts); 0 where not asked for */
    const struct engine_top *top; /* the most likely ones, falling; valid during the call */
    int num_top;
    const float *depth; /* weights of all sites one after the other, of the token that was read to
                         * get this one; NULL where not asked for */
};
struct engine_done {
    enum engine_finish why;
    struct rt_error error;              /* of ENGINE_failed */
    int64_t prompt, cached, completion; /* tokens; cached ones are among the prompt's */
    double queued, prefill, decode;     /* seconds */
};

enum { ENGINE_MAX_TOP = 20 };
struct engine_bias {
    int32_t id;
    float add;
};
struct engine_request {
    const int32_t *prompt;          /* all arrays are copied */
    int64_t num_prompt;             /* 1 or more; with max_tokens at most the model's context */
    int64_t max_tokens, min_tokens; /* before min_tokens no stop id is taken */
    struct sampler sampler;
    const struct engine_bias *bias;
    size_t num_bias;
    const int32_t *stop; /* ids that end the answer */
    size_t num_stop;
    bool logprobs;
    int top_logprobs; /* 0 to ENGINE_MAX_TOP */
    bool depth;       /* weights of depth attention with every token */
    bool json;        /* the answer is one JSON object (runtime/json_guide.h), and ends with it */
    uint64_t salt;    /* pages are shared among requests of one salt only */
    int64_t priority; /* lower goes first (vLLM's meaning); among equals the order of arrival */
    /* Both are called on the engine's thread and must not wait. `token`: true ends the answer with
     * this token. `done`: the last call for this request, exactly one, also where it was cancelled
     * in the queue. */
    bool (*token)(void *arg, const struct engine_token *t);
    void (*done)(void *arg, const struct engine_done *d);
    void *arg;
};

struct engine;
/* The model stays the caller's and outlives the engine, which is the only one to use it from now
 * on. RT_machine without memory; RT_user for options that do not fit the model. */
enum rt_status engine_open(struct lm *m, const struct engine_options *o, struct engine **out,
                           struct rt_error *err);
/* Starts the engine's thread; without it engine_step is the caller's to call. */
enum rt_status engine_start(struct engine *e, struct rt_error *err);
/* Does one step; false when there is nothing to do. Only where no thread was started. */
bool engine_step(struct engine *e);
/* Ends the thread. Requests that are left are cancelled. NULL is fine. */
void engine_close(struct engine *e);

/* Takes a place in the queue for a request that is still to be made (parsed, tokenised), so that
 * what does not fit is refused before any work: `tokens` is a guess at its prompt. False: full, or
 * draining. In an empty queue a prompt of any length has a place; so have 0 tokens, those of
 * further answers to a prompt whose place is taken, where there is any. A place is given back by
 * engine_release, or used up by engine_submit with the same `tokens`. */
bool engine_reserve(struct engine *e, int64_t tokens);
void engine_release(struct engine *e, int64_t tokens);
/* Queues a request in a reserved place; *id names it. Any thread. RT_user where prompt or
 * max_tokens do not fit the model (the place is kept), RT_machine without memory. */
enum rt_status engine_submit(struct engine *e, const struct engine_request *r, int64_t reserved,
                             uint64_t *id, struct rt_error *err);
/* Ends a request within one step; nothing where it has ended. Any thread. */
void engine_cancel(struct engine *e, uint64_t id);
/* No request is queued any more by engine_reserve (false); those that are there go on. */
void engine_drain(struct engine *e);

enum { ENGINE_BUCKETS = 24 };
struct engine_histogram { /* bucket i counts what is at most 2^(i-14) seconds, the last all others
                           */
    uint64_t bucket[ENGINE_BUCKETS], count;
    double sum;
};
struct engine_stats {                         /* a copy at one time; counters only grow */
    int64_t running, waiting, waiting_tokens; /* waiting: reserved places too */
    int64_t pages, pages_used, pages_cached;  /* cached: of no sequence, but can be found again */
    int64_t states, states_used;
    uint64_t steps, requests[ENGINE_FINISHES], refused, preemptions;
    uint64_t prompt_tokens, completion_tokens; /* prompts of all that were admitted, */
    uint64_t cached_tokens;                    /* what was found of them, not computed */
    uint64_t prefix_queries, prefix_hits; /* the same in tokens, where there is a prefix cache */
    struct engine_histogram first_token, between_tokens, whole, queued, prefill, decode;
};
void engine_stats(struct engine *e, struct engine_stats *out);
#endif
