/* What the server does with a request, without sockets: a head is checked (route, key, media type,
 * lengths, room) before any of the body is read; the body is collected; a thread of the service
 * reads it, tokenises and submits to the engine, whose callbacks write the answer. An exchange is
 * one request and its answer. Its functions here are for one thread, the one that reads requests;
 * `ready` is called by any. */
#ifndef STRATA_RUNTIME_SERVICE_H
#define STRATA_RUNTIME_SERVICE_H
#include "runtime/serve.h"

/* Of a request. Texts are terminated, NULL where there are none. */
struct http_head {
    const char *method, *path; /* path: without query, unescaped */
    const char *authorization, *api_key, *content_type, *content_encoding;
    const char *content_length, *transfer_encoding;
    bool nul;      /* the target has a NUL, which ends `path` early */
    bool repeated; /* Content-Length or Transfer-Encoding occurs more than once */
    size_t line_bytes, header_bytes, headers;
};
/* What an answer has beside its body. */
struct http_answer {
    int status;
    const char *type;   /* of content */
    const char *allow;  /* methods, of a 405 and of OPTIONS; NULL */
    const char *policy; /* Content-Security-Policy; NULL */
    int retry_after;    /* seconds; 0: none */
    bool challenge;     /* WWW-Authenticate: Bearer */
    bool preflight;     /* the answer to a browser's OPTIONS */
    struct sb body;     /* whoever takes the answer frees it */
};

struct service;
struct exchange;
struct service_hooks {
    /* There is something new of the exchange. Any thread, also the caller's own. */
    void (*ready)(void *arg, struct exchange *x);
    void *arg;
};

/* `e` has been opened with service_engine's options. Without threads (o->parse_threads 0)
 * exchange_submit does the work itself. */
enum rt_status service_open(const struct serve_model *m, const struct serve_options *o,
                            struct engine *e, const struct service_hooks *hooks,
                            struct service **out, struct rt_error *err);
/* Ends the threads; what they had not begun is answered with 503. */
void service_stop(struct service *s);
/* After service_stop and engine_close, when all exchanges are dropped. */
void service_close(struct service *s);
/* What engine_open needs to know of a model's texts. */
void service_engine(const struct serve_model *m, struct engine_options *o);
void service_drain(struct service *s);
bool service_draining(const struct service *s);
/* Exchanges that are not finished and were not refused. */
int64_t service_active(struct service *s);
const struct serve_options *service_options(const struct service *s);
/* A gauge of the metrics that the caller knows. */
void service_connections(struct service *s, int64_t n);
/* Counts a request that was refused elsewhere. */
void service_refused(struct service *s, enum api_problem p);

enum exchange_state {
    EXCHANGE_body,   /* wants more of the body, or its end (exchange_submit) */
    EXCHANGE_wait,   /* nothing to send yet */
    EXCHANGE_answer, /* exchange_answer gives all of it */
    EXCHANGE_stream, /* 200 with events, which exchange_read gives */
};
/* A new exchange, with one reference. One that is refused has the state `answer`. */
struct exchange *service_begin(struct service *s, const struct http_head *h);
enum exchange_state exchange_state(struct exchange *x);
/* The body has a declared or unknown length, is empty, or the exchange does not care: whether there
 * is something to read. */
bool exchange_has_body(const struct exchange *x);
/* Bytes of the body. Where it gets too long or there is no room, the exchange is refused and this
 * is false. */
bool exchange_add(struct exchange *x, const char *p, size_t n);
/* Makes a refusal of an exchange whose body is not complete. */
void exchange_refuse(struct exchange *x, enum api_problem p, const char *message);
/* The body is complete. Refuses the exchange where there is no room for it any more. */
void exchange_submit(struct exchange *x);
/* In state `answer`, once. */
void exchange_answer(struct exchange *x, struct http_answer *out);
/* In state `stream`: takes at most `max` bytes; 0: none yet; -1: the end; -2: the client has not
 * read for too long, or has gone. */
int64_t exchange_read(struct exchange *x, char *to, size_t max);
/* A stream's client has left more unread than it may; exchange_read gives -2. */
bool exchange_overflowed(struct exchange *x);
/* Writes a comment where a stream has been silent since `before` (seconds of mem_seconds). */
void exchange_ping(struct exchange *x, double before);
/* Nobody waits for the answer any more: ends it within a step of the engine. */
void exchange_cancel(struct exchange *x);
/* Ends it with an error that says that the server stops. */
void exchange_cut(struct exchange *x);
/* References; the last one frees. */
void exchange_hold(struct exchange *x);
void exchange_drop(struct exchange *x);
/* For a list of exchanges that are ready: true where it was not marked. Any thread. */
bool exchange_mark(struct exchange *x);
void exchange_unmark(struct exchange *x);
/* A place for the caller's pointer. */
void exchange_set_owner(struct exchange *x, void *owner);
void *exchange_owner(const struct exchange *x);
#endif
