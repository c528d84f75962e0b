/* The insides of service.h, for its files: service.c (heads, routes, threads), service_read.c
 * (bodies to requests of the engine), service_write.c (tokens to answers), service_metrics.c. */
#ifndef STRATA_RUNTIME_EXCHANGE_H
#define STRATA_RUNTIME_EXCHANGE_H
#include <pthread.h>
#include <stdatomic.h>
#include "runtime/api_text.h"
#include "runtime/service.h"
#include "runtime/stops.h"

struct service {
    struct serve_model model;
    struct serve_options o;
    struct engine *engine;
    struct service_hooks hooks;
    int64_t created; /* seconds since 1970 */
    double begun;    /* of mem_seconds */
    int32_t *stop;   /* ids that end an answer: of completions, then of chat too */
    size_t num_stop, num_chat_stop;
    _Atomic bool draining, warned;
    _Atomic int64_t active, reading, bodies, connections;
    _Atomic uint64_t refused[API_PROBLEMS], tokenized; /* tokenized: requests for answers */
    _Atomic uint64_t longest_write; /* nanoseconds of a call on the engine's thread for a token */
    /* exchanges whose body is complete, first come first served */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct exchange *first, *last;
    bool stopping;
    pthread_t *thread;
    size_t num_threads;
};

/* Tokens with their probabilities that are not written yet. */
struct token_log {
    struct api_token *token; /* ->top is set when they are written */
    size_t *begin;           /* where the token's text begins in the answer, in bytes */
    struct api_top *top;     /* `width` a token */
    size_t n, cap, width;
};

/* An answer on its way. All but id and submitted belong to the engine's thread until the exchange
 * is finished. */
struct choice {
    struct exchange *x;
    int64_t index;
    size_t prompt;  /* of the request's prompts */
    uint64_t id;    /* of the engine; under the exchange's lock */
    bool submitted; /* under the lock */
    struct answer_text text;
    struct sb shown;     /* text to write: of a stream the next event's, else all */
    size_t bytes, chars; /* text so far, written or not; characters before the next event */
    struct token_log log;
    bool depth_named; /* sites were told */
    bool ended;       /* a stop text was found */
    bool space;       /* a space that comes first is the template's */
    double sum;       /* of logarithms of probabilities, for best_of */
    enum api_finish finish;
    struct engine_done done;
};

struct exchange {
    struct service *s;
    struct exchange *next; /* in the queue of the threads */
    void *owner;
    _Atomic int refs;
    _Atomic bool marked;
    const struct route *route; /* NULL: none */
    enum api_route kind;       /* of the body */
    bool wants_body;
    /* Of the thread that reads requests, then of the one that reads the body. */
    struct sb body;
    bool has_body;
    int64_t charged;       /* bytes that count in service.bodies */
    bool reading;          /* counts in service.reading */
    int64_t places, guess; /* reserved with the engine, the first of them with this many tokens */
    struct api_request *r;
    char id[API_ID_BYTES];
    struct api_reply reply;
    struct choice *choice;
    size_t num_choices;
    struct str *echo; /* of each prompt */
    bool streams;
    struct sb event;   /* scratch of the engine's thread */
    int64_t collected; /* bytes of answers that are not streamed */

    pthread_mutex_t lock; /* of what follows */
    bool submitted;       /* the body is complete */
    bool started;         /* the first event is written */
    bool begun;           /* the stream was given out */
    bool told;            /* its error is among the events */
    bool finished, active;
    bool gone, cut, overflowed, failed;
    struct api_error error; /* where failed */
    struct http_answer answer;
    struct sb out; /* of a stream */
    size_t taken;  /* bytes of it that were read */
    double last_out;
    int pending; /* parts that must end before it is finished */
};

/* Of service_route.c: all that is known from the head. False with *err: refused. Without
 * wants_body the answer is there. Order: framing, key, route, method, type, length, room. */
bool exchange_check(struct exchange *x, const struct http_head *h, struct api_error *err);
/* The body is complete: counts it among those being read and takes a place in the engine's queue.
 * False with *err: there is none. */
bool exchange_take_room(struct exchange *x, struct api_error *err);
/* The error of a queue that is full or draining. Always false. */
bool exchange_no_place(struct exchange *x, struct api_error *err);

/* Of service.c. */
uint64_t service_random(void);
/* The exchange ends with this error (the first one stays), and no answer of it goes on after its
 * next token. */
void exchange_error(struct exchange *x, const struct api_error *err);
/* The same, at once. Not on the engine's thread. */
void exchange_fail(struct exchange *x, const struct api_error *err);
/* One of `pending` has ended; the last finishes the exchange. */
void exchange_part_done(struct exchange *x);
/* Gives back the places that were reserved and not used. */
void exchange_release(struct exchange *x);
/* The client has gone or reads too little: the engine is told to cancel all of it. */
bool exchange_left(struct exchange *x);
/* Whether nobody wants more of it. */
bool exchange_ended(struct exchange *x);

/* Of service_read.c: the body to an answer or to requests of the engine. */
void exchange_work(struct exchange *x);

/* Of service_write.c. */
bool choice_token(void *choice, const struct engine_token *t);
void choice_done(void *choice, const struct engine_done *d);
/* The whole answer, of an exchange that is finished and does not stream. */
void exchange_put_answer(struct exchange *x, struct sb *out);
/* The last events of a stream. */
void exchange_put_end(struct exchange *x, struct sb *out);
void choice_close(struct choice *c);
/* Bytes of a token. */
struct str service_piece(const struct tokenizer *t, int32_t id);

/* Of service_metrics.c. */
void service_put_metrics(struct service *s, struct sb *out);
#endif
