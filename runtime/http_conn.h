/* The insides of http.h: http.c (the thread and its deadlines), http_request.c (what libmicrohttpd
 * calls). All of it belongs to the I/O thread but for the list of exchanges that are ready. */
#ifndef STRATA_RUNTIME_HTTP_CONN_H
#define STRATA_RUNTIME_HTTP_CONN_H
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include "runtime/http.h"

enum conn_state {
    CONN_head, /* a request's head is being read, or its first byte is awaited */
    CONN_idle, /* kept alive; the next request's first line has not come */
    CONN_body,
    CONN_work, /* the request is complete */
    CONN_ended /* shut down; libmicrohttpd has still to notice */
};
struct conn {
    struct conn *next, *prev;
    struct http *h;
    struct MHD_Connection *mhd;
    int fd;
    enum conn_state state;
    double since; /* when the state began, of mem_seconds */
    size_t line_bytes;
    bool nul;         /* its target has a %00, at which the path would end */
    int64_t received; /* bytes of the body */
    double heard;     /* when the last of them came */
    int64_t marked;   /* how many had come */
    double mark;      /* at that time: where its rate is measured from */
    struct exchange *x;
    bool suspended;
    double gone; /* when the client closed its side; 0: it has not */
    bool linger; /* something unread is left: a plain close would destroy the answer */
};

enum { LINGERING = 64 };
struct lingering { /* a socket whose answer is on its way; what comes in is thrown away */
    int fd;
    double until;
};
struct http {
    const struct serve_options *o;
    struct service *s;
    struct MHD_Daemon *daemon;
    int listening, epoll, wake;
    struct conn *first;
    int64_t num_conns;
    _Atomic int64_t busy;
    _Atomic bool stop, cut;
    double ticked;
    struct lingering lingering[LINGERING];
    size_t num_lingering;
    pthread_t thread;
    bool running;
    pthread_mutex_t lock; /* of the list */
    struct exchange **ready;
    size_t num_ready, ready_cap;
};

/* Of http_request.c. */
struct MHD_Daemon *http_daemon(struct http *h);
/* Answers on the socket itself, in the middle of a request, and ends the connection. */
void conn_refuse(struct conn *c, enum api_problem p, const char *message);
/* Lets a suspended connection go on. */
void conn_resume(struct conn *c);

/* Of http.c: a connection has come (false: no room) and gone. */
struct conn *http_join(struct http *h, struct MHD_Connection *mhd, int fd);
void http_leave(struct conn *c);
#endif
