/* See load.h. A connection is a state machine over non-blocking sockets and one epoll; a request
 * has a connection of its own. */
#include "runtime/load.h"
#include "runtime/http_reader.h"
#include "runtime/mem.h"
#include "runtime/philox.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 16, REFUSAL_BYTES = 1 << 16, EVENTS = 256, STREAM_cancel = 3 };

struct conn {
    struct load *l;
    int fd;
    size_t slot; /* in load.live */
    uint64_t number;
    struct load_request r;
    struct sb out; /* the request; what is sent of it */
    size_t sent;
    struct http_reader http;
    struct sse_reader sse;
    struct sb refusal; /* the body of an answer that is not 200 */
    VEC(float) gap;
    int64_t events;  /* with text */
    int64_t give_up; /* after so many of them; 0: never */
    bool done, bad;  /* [DONE] was read; an event was no JSON or an error */
    enum load_outcome why;
};
struct load {
    struct arena *a;
    const struct load_options *o;
    struct load_result *out;
    struct addrinfo *address;
    int epoll;
    double begin;
    uint64_t next;  /* number of the next request */
    double due;     /* of it, in an open loop */
    int64_t tokens; /* so far */
    struct conn **live;
    size_t num_live;
    char *buffer;
};

const char *load_outcome_name(enum load_outcome o)
{
    static const char *const name[LOAD_OUTCOMES] = {
        [LOAD_ok] = "ok",
        [LOAD_refused] = "refused",
        [LOAD_connect] = "no connection",
        [LOAD_timeout] = "timeout",
        [LOAD_cut] = "cut",
        [LOAD_malformed] = "malformed",
        [LOAD_error] = "error",
        [LOAD_cancelled] = "cancelled",
    };
    return name[o];
}

static double now(const struct load *l)
{
    return mem_seconds() - l->begin;
}

/* The first message of an outcome; of an error's body its message. */
static void note(struct load *l, enum load_outcome why, struct str text)
{
    char *said = l->out->said[why];
    if (said[0]) return;
    json_t *j = json_loadb(text.p ? text.p : "", text.n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    const json_t *e = json_object_get(j, "error");
    const char *message = json_string_value(json_object_get(e, "message"));
    size_t n = message ? strlen(message) : text.n, room = sizeof l->out->said[0] - 1;
    if (n > room) n = room;
    if (n) memcpy(said, message ? message : text.p, n);
    said[n] = 0;
    for (char *p = said; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 127) *p = ' '; /* nothing that moves a cursor */
    json_decref(j);
}

/* ---- a request's end ---- */

static void finish(struct conn *c, enum load_outcome why)
{
    struct load *l = c->l;
    struct load_result *out = l->out;
    c->r.end = now(l);
    c->r.outcome = why;
    c->r.status = c->http.status;
    c->r.retry_after = c->http.status ? c->http.retry_after : -1;
    if (!c->r.completion) c->r.completion = c->events;
    vec_push(l->a, &out->request, c->r);
    for (size_t i = 0; why == LOAD_ok && i < c->gap.n; i++) vec_push(l->a, &out->gap, c->gap.p[i]);
    if (c->r.end > out->seconds) out->seconds = c->r.end;
    if (c->fd >= 0) close(c->fd);
    l->live[c->slot] = l->live[--l->num_live];
    l->live[c->slot]->slot = c->slot;
    free(c->gap.p);
    sb_free(&c->out);
    sb_free(&c->refusal);
    sse_close(&c->sse);
    free(c);
}

/* A connection's end that the server or the network made. */
static void fail_errno(struct conn *c, enum load_outcome why)
{
    note(c->l, why, str_of(strerror(errno)));
    finish(c, why);
}

/* ---- reading ---- */

static void got_text(struct conn *c)
{
    double t = now(c->l);
    if (!c->events++) {
        c->r.first = t;
    } else {
        if (c->gap.n == c->gap.cap) {
            c->gap.cap = c->gap.cap ? 2 * c->gap.cap : 64;
            c->gap.p = realloc(c->gap.p, c->gap.cap * sizeof *c->gap.p);
            CHECK(c->gap.p);
        }
        c->gap.p[c->gap.n++] = (float)(t - c->r.last);
    }
    c->r.last = t;
    c->l->tokens++;
}

static int64_t count_of(const json_t *usage, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(usage, key));
    return n > 0 && n < 1 << 30 ? n : 0;
}

/* Whether the stream goes on. */
static bool on_event(void *arg, struct str data)
{
    struct conn *c = arg;
    if (str_is(data, "[DONE]")) {
        c->done = true;
        return true;
    }
    json_t *j = json_loadb(data.p ? data.p : "", data.n, JSON_ALLOW_NUL, NULL);
    c->bad = true;
    c->why = LOAD_malformed;
    if (json_is_object(json_object_get(j, "error"))) {
        c->why = LOAD_error;
    } else if (json_is_object(j)) {
        const json_t *choice = json_array_get(json_object_get(j, "choices"), 0);
        const json_t *usage = json_object_get(j, "usage");
        const json_t *text = json_object_get(choice, "text");
        if (!text) text = json_object_get(json_object_get(choice, "delta"), "content");
        if (json_string_length(text)) got_text(c);
        if (json_is_object(usage)) {
            c->r.prompt = count_of(usage, "prompt_tokens");
            c->r.completion = count_of(usage, "completion_tokens");
        }
        c->bad = false;
    }
    if (c->bad) note(c->l, c->why, data);
    json_decref(j);
    if (!c->bad && c->give_up && c->events >= c->give_up) {
        c->bad = true;
        c->why = LOAD_cancelled;
    }
    return !c->bad;
}

/* The answer is over, and its connection. */
static void whole(struct conn *c)
{
    if (c->http.status != 200) {
        note(c->l, LOAD_refused, (struct str){c->refusal.p, c->refusal.n});
        finish(c, LOAD_refused);
    } else if (!c->http.events) {
        note(c->l, LOAD_malformed, STR("the answer is no stream of events"));
        finish(c, LOAD_malformed);
    } else {
        if (!c->done) note(c->l, LOAD_cut, STR("the stream ended without [DONE]"));
        finish(c, c->done ? LOAD_ok : LOAD_cut);
    }
}

/* Takes in what was read; whether the connection goes on. */
static bool take(struct conn *c, const char *p, size_t n)
{
    for (size_t at = 0;;) {
        size_t used = 0;
        struct str body = {0};
        enum http_got got = http_read(&c->http, p + at, n - at, &used, &body);
        at += used;
        if (got == HTTP_more) return true;
        if (got == HTTP_bad) {
            note(c->l, LOAD_malformed, STR("not HTTP"));
            finish(c, LOAD_malformed);
            return false;
        }
        if (got == HTTP_end) {
            whole(c);
            return false;
        }
        if (c->http.status != 200) {
            if (c->refusal.n + body.n <= REFUSAL_BYTES) sb_add(&c->refusal, body.p, body.n);
        } else if (!sse_read(&c->sse, body, on_event, c)) {
            finish(c, c->bad ? c->why : LOAD_malformed);
            return false;
        }
    }
}

static void on_readable(struct conn *c)
{
    ssize_t n = recv(c->fd, c->l->buffer, READ_BYTES, 0);
    if (n > 0) {
        take(c, c->l->buffer, (size_t)n);
    } else if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    } else if (n < 0) {
        fail_errno(c, c->http.status || c->sent ? LOAD_cut : LOAD_connect);
    } else if (http_ends(&c->http)) {
        whole(c);
    } else {
        note(c->l, LOAD_cut, STR("the connection ended before the answer did"));
        finish(c, LOAD_cut);
    }
}

/* ---- sending ---- */

static void wait_for(struct conn *c, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = c};
    CHECK(epoll_ctl(c->l->epoll, EPOLL_CTL_MOD, c->fd, &e) == 0);
}

static void on_writable(struct conn *c)
{
    while (c->sent < c->out.n) {
        ssize_t n = send(c->fd, c->out.p + c->sent, c->out.n - c->sent, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n < 0) { /* an answer that came before all was sent may lie there to be read */
            if (c->sent)
                wait_for(c, EPOLLIN);
            else
                fail_errno(c, LOAD_connect);
            return;
        }
        c->sent += (size_t)n;
    }
    wait_for(c, EPOLLIN);
}

static void put_head(const struct load_options *o, const char *method, const char *route,
                     size_t body, struct sb *out)
{
    bool six = strchr(o->url.host, ':');
    sb_printf(out, "%s %s%s HTTP/1.1\r\nHost: %s%s%s:%s\r\nConnection: close\r\n", method,
              o->url.prefix, route, six ? "[" : "", o->url.host, six ? "]" : "", o->url.port);
    if (o->key) sb_printf(out, "Authorization: Bearer %s\r\n", o->key);
    if (body) sb_printf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", body);
    sb_str(out, "\r\n");
}

/* Starts request `number`, which was due then. */
static void start(struct load *l, uint64_t number, double due)
{
    const struct load_options *o = l->o;
    struct conn *c = calloc(1, sizeof *c);
    CHECK(c);
    *c = (struct conn){.l = l, .number = number, .slot = l->num_live};
    c->r.due = due;
    l->live[l->num_live++] = c;
    double u = rng_uniform(o->seed, STREAM_cancel, number);
    if (u < o->cancel) c->give_up = 1 + (int64_t)(u / o->cancel * (double)o->max_tokens.low / 2);
    struct sb body = {0};
    load_body(o, number, &body);
    put_head(o, "POST", o->chat ? "/v1/chat/completions" : "/v1/completions", body.n, &c->out);
    sb_add(&c->out, body.p, body.n);
    sb_free(&body);
    c->fd = socket(l->address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    if (c->fd >= 0) setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->fd < 0 || (connect(c->fd, l->address->ai_addr, l->address->ai_addrlen) != 0 &&
                      errno != EINPROGRESS)) {
        fail_errno(c, LOAD_connect);
        return;
    }
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
    CHECK(epoll_ctl(l->epoll, EPOLL_CTL_ADD, c->fd, &e) == 0);
}

/* ---- the run ---- */

static bool more_to_ask(const struct load *l)
{
    const struct load_options *o = l->o;
    double at = o->clients ? now(l) : l->due;
    return l->next < (uint64_t)o->requests && (o->seconds <= 0 || at < o->seconds);
}

/* A client whose server cannot even be reached waits before it asks again. */
static bool unreachable(const struct load *l)
{
    const struct load_result *out = l->out;
    return out->request.n && vec_last(&out->request).outcome == LOAD_connect &&
           now(l) - vec_last(&out->request).end < 0.01;
}

static void start_all(struct load *l)
{
    const struct load_options *o = l->o;
    if (o->clients) {
        while (l->num_live < (size_t)o->clients && more_to_ask(l) && !unreachable(l))
            start(l, l->next++, now(l));
        return;
    }
    while (more_to_ask(l) && l->due <= now(l) && l->num_live < LOAD_CLIENTS) {
        uint64_t i = l->next++;
        double due = l->due;
        l->due = load_due(o, i + 1, due);
        start(l, i, due);
    }
}

/* Milliseconds to the next request that is due, 50 at most. */
static int patience(const struct load *l)
{
    if (l->o->clients || !more_to_ask(l)) return l->num_live ? 50 : 10;
    double left = l->due - now(l);
    return left <= 0 ? (l->num_live < LOAD_CLIENTS ? 0 : 5) : left < 0.05 ? (int)(1e3 * left) : 50;
}

static void expire(struct load *l)
{
    double limit = now(l) - l->o->timeout;
    for (size_t i = l->num_live; i-- > 0;)
        if (l->live[i]->r.due < limit) {
            note(l, LOAD_timeout, STR("no whole answer in time"));
            finish(l->live[i], LOAD_timeout);
        }
}

static void run(struct load *l)
{
    struct epoll_event e[EVENTS];
    double told = 0;
    for (start_all(l); l->num_live || more_to_ask(l); start_all(l)) {
        int n = epoll_wait(l->epoll, e, EVENTS, patience(l));
        /* A connection has one event at most, and nothing else ends it before. */
        for (int i = 0; i < n; i++) {
            struct conn *c = e[i].data.ptr;
            if (e[i].events & EPOLLOUT)
                on_writable(c);
            else
                on_readable(c);
        }
        double t = now(l);
        if (t - told < 0.1) continue;
        told = t;
        expire(l);
        if (l->o->tick)
            l->o->tick(l->o->arg, t, (int64_t)l->out->request.n, (int64_t)l->num_live, l->tokens);
    }
}

static enum rt_status find_host(const struct load_options *o, struct addrinfo **out,
                                struct rt_error *err)
{
    const struct addrinfo want = {.ai_socktype = SOCK_STREAM};
    int e = getaddrinfo(o->url.host, o->url.port, &want, out);
    if (e) return rt_fail(err, RT_user, "%.200s: %s", o->url.host, gai_strerror(e));
    return RT_ok;
}

static bool is_range(struct load_range r, int64_t most)
{
    return r.low >= 1 && r.low <= r.high && r.high <= most;
}

static enum rt_status check_options(const struct load_options *o, struct rt_error *err)
{
    if (o->clients < 0 || o->clients > LOAD_CLIENTS || (!o->clients && !(o->rate > 0)) ||
        !(o->rate <= 1e6))
        return rt_fail(err, RT_user, "clients must be in 1..%d, or a rate in (0, 1e6]",
                       LOAD_CLIENTS);
    if (o->requests < 1 || o->requests > LOAD_REQUESTS || !(o->seconds >= 0))
        return rt_fail(err, RT_user, "requests must be in 1..%d, seconds not negative",
                       LOAD_REQUESTS);
    if (!is_range(o->prompt, 1 << 20) || !is_range(o->max_tokens, 1 << 20))
        return rt_fail(err, RT_user, "tokens must be in 1..%d", 1 << 20);
    if (!(o->timeout > 0) || !(o->cancel >= 0 && o->cancel <= 1) || o->vocab < 0)
        return rt_fail(err, RT_user, "the timeout must be positive, the share to cancel in [0, 1]");
    return RT_ok;
}

enum rt_status load_run(struct arena *a, const struct load_options *o, struct load_result *out,
                        struct rt_error *err)
{
    struct load l = {.a = a, .o = o, .out = out};
    RT_TRY(check_options(o, err));
    RT_TRY(find_host(o, &l.address, err));
    l.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (l.epoll < 0) {
        freeaddrinfo(l.address);
        return rt_fail(err, RT_machine, "epoll: %s", strerror(errno));
    }
    l.live = NEW(a, struct conn *, LOAD_CLIENTS + 1);
    l.buffer = NEW(a, char, READ_BYTES);
    l.begin = mem_seconds();
    if (!o->clients) l.due = load_due(o, 0, 0);
    run(&l);
    close(l.epoll);
    freeaddrinfo(l.address);
    return RT_ok;
}

/* ---- the model's name ---- */

/* A whole answer to GET `route`, at most REFUSAL_BYTES of body. */
static bool get(const struct load_options *o, int fd, const char *route, struct http_reader *http,
                struct sb *body)
{
    struct sb head = {0};
    put_head(o, "GET", route, 0, &head);
    bool ok = send(fd, head.p, head.n, MSG_NOSIGNAL) == (ssize_t)head.n;
    sb_free(&head);
    char buffer[4096];
    while (ok) {
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        if (n <= 0) return n == 0 && http_ends(http);
        for (size_t at = 0;;) {
            size_t used = 0;
            struct str part = {0};
            enum http_got got = http_read(http, buffer + at, (size_t)n - at, &used, &part);
            at += used;
            if (got == HTTP_end) return true;
            if (got == HTTP_more) break;
            if (got == HTTP_bad || body->n + part.n > REFUSAL_BYTES) return false;
            sb_add(body, part.p, part.n);
        }
    }
    return false;
}

enum rt_status load_model(struct arena *a, const struct load_options *o, const char **model,
                          struct rt_error *err)
{
    struct addrinfo *address = NULL;
    RT_TRY(find_host(o, &address, err));
    struct http_reader *http = NEW(a, struct http_reader, 1);
    struct sb body = {0};
    const struct timeval patience = {.tv_sec = 10};
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    bool reached = fd >= 0 && connect(fd, address->ai_addr, address->ai_addrlen) == 0;
    enum rt_status st = RT_ok;
    if (!reached)
        st = rt_fail(err, RT_user, "http://%s:%s: %s", o->url.host, o->url.port, strerror(errno));
    bool whole = reached && get(o, fd, "/v1/models", http, &body);
    if (fd >= 0) close(fd);
    freeaddrinfo(address);
    json_t *j = whole ? json_loadb(body.p ? body.p : "", body.n, 0, NULL) : NULL;
    const json_t *first = json_array_get(json_object_get(j, "data"), 0);
    const char *id = json_string_value(json_object_get(first, "id"));
    const char *said = json_string_value(json_object_get(json_object_get(j, "error"), "message"));
    if (id)
        *model = str_dup(a, str_of(id));
    else if (st == RT_ok)
        st = rt_fail(err, RT_user, "GET %s/v1/models gave no model, status %d%s%.300s",
                     o->url.prefix, http->status, said ? ": " : "", said ? said : "");
    json_decref(j);
    sb_free(&body);
    return st;
}
