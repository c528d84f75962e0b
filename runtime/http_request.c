/* What libmicrohttpd calls: connections that come and go, requests, answers. */
#include "runtime/api_text.h"
#include "runtime/http_conn.h"
#include "runtime/mem.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/socket.h>

/* A body of at most this is read to its end after a refusal, so that the connection can be kept. */
enum { DRAIN_BYTES = 16384 };

static struct conn *conn_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return i ? i->socket_context : NULL;
}

static void enter(struct conn *c, enum conn_state state)
{
    c->state = state;
    c->since = mem_seconds();
}

void conn_resume(struct conn *c)
{
    if (c->suspended) MHD_resume_connection(c->mhd);
    c->suspended = false;
}

static void suspend(struct conn *c)
{
    MHD_suspend_connection(c->mhd);
    c->suspended = true;
}

/* ---- answers */

static void put(struct MHD_Response *r, const char *name, const char *value)
{
    if (value) MHD_add_response_header(r, name, value);
}

static void put_common(struct conn *c, struct MHD_Response *r)
{
    const char *cors = c->h->o->cors;
    put(r, "Access-Control-Allow-Origin", cors);
    if (cors && strcmp(cors, "*")) put(r, "Vary", "Origin");
    if (service_draining(c->h->s)) put(r, "Connection", "close");
}

static ssize_t read_stream(void *arg, uint64_t at, char *to, size_t max)
{
    struct conn *c = arg;
    (void)at;
    int64_t n = exchange_read(c->x, to, max);
    if (n == -1) return MHD_CONTENT_READER_END_OF_STREAM;
    if (n < 0) return MHD_CONTENT_READER_END_WITH_ERROR;
    if (!n) suspend(c);
    return n;
}

static struct MHD_Response *stream_response(struct conn *c)
{
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, read_stream, c, NULL);
    if (!r) return NULL;
    put(r, "Content-Type", "text/event-stream; charset=utf-8");
    put(r, "Cache-Control", "no-cache");
    put(r, "X-Accel-Buffering", "no");
    return r;
}

static struct MHD_Response *whole_response(struct http_answer *a)
{
    char seconds[16];
    struct MHD_Response *r = MHD_create_response_from_buffer(
        a->body.n, a->body.p, a->body.p ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
    if (!r) {
        sb_free(&a->body);
        return NULL;
    }
    if (a->body.n) put(r, "Content-Type", a->type);
    put(r, "Allow", a->allow);
    put(r, "Content-Security-Policy", a->policy);
    put(r, "X-Content-Type-Options", "nosniff");
    put(r, "WWW-Authenticate", a->challenge ? "Bearer" : NULL);
    if (a->preflight) {
        put(r, "Access-Control-Allow-Methods", a->allow);
        put(r, "Access-Control-Allow-Headers", "Authorization, Content-Type, X-Api-Key");
        put(r, "Access-Control-Max-Age", "86400");
    }
    snprintf(seconds, sizeof seconds, "%d", a->retry_after);
    put(r, "Retry-After", a->retry_after ? seconds : NULL);
    return r;
}

static enum MHD_Result respond(struct conn *c)
{
    struct http_answer a = {.status = 200};
    struct MHD_Response *r;
    enter(c, CONN_work);
    if (exchange_state(c->x) == EXCHANGE_stream) {
        r = stream_response(c);
    } else {
        exchange_answer(c->x, &a);
        r = whole_response(&a);
    }
    if (!r) return MHD_NO;
    put_common(c, r);
    enum MHD_Result ok = MHD_queue_response(c->mhd, (unsigned)a.status, r);
    MHD_destroy_response(r);
    return ok;
}

/* The whole answer on the socket: libmicrohttpd takes none while it reads a body. */
static void send_raw(struct conn *c, struct http_answer *a)
{
    struct sb out = {0};
    sb_printf(&out,
              "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n",
              a->status, MHD_get_reason_phrase_for((unsigned)a->status), a->type, a->body.n);
    if (a->retry_after) sb_printf(&out, "Retry-After: %d\r\n", a->retry_after);
    if (c->h->o->cors) sb_printf(&out, "Access-Control-Allow-Origin: %s\r\n", c->h->o->cors);
    sb_str(&out, "\r\n");
    if (a->body.n) sb_add(&out, a->body.p, a->body.n);
    /* what does not fit into the socket's buffer is not worth waiting for */
    if (send(c->fd, out.p, out.n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) errno = 0;
    sb_free(&out);
    c->linger = true;
}

static void send_refusal(struct conn *c)
{
    struct http_answer a;
    exchange_answer(c->x, &a);
    send_raw(c, &a);
    sb_free(&a.body);
}

void conn_refuse(struct conn *c, enum api_problem p, const char *message)
{
    if (c->x) {
        exchange_refuse(c->x, p, message);
        send_refusal(c);
    } else {
        struct api_error err;
        api_fail(&err, p, "%s", message);
        struct http_answer a = {
            .status = err.status, .type = "application/json", .retry_after = err.retry_after};
        api_put_error(&a.body, &err);
        service_refused(c->h->s, p);
        send_raw(c, &a);
        sb_free(&a.body);
    }
    enter(c, CONN_ended);
    shutdown(c->fd, SHUT_RDWR);
}

/* ---- requests */

struct collected {
    struct http_head head;
    const char *expect;
};

static void take(const char **to, const char *value, bool *repeated)
{
    if (*to && repeated) *repeated = true;
    *to = value ? value : "";
}

static enum MHD_Result collect(void *arg, enum MHD_ValueKind kind, const char *name,
                               const char *value)
{
    struct collected *c = arg;
    struct http_head *h = &c->head;
    (void)kind;
    h->headers++;
    h->header_bytes += strlen(name) + (value ? strlen(value) : 0) + 4;
    if (!strcasecmp(name, "Content-Length"))
        take(&h->content_length, value, &h->repeated);
    else if (!strcasecmp(name, "Transfer-Encoding"))
        take(&h->transfer_encoding, value, &h->repeated);
    else if (!strcasecmp(name, "Content-Type"))
        take(&h->content_type, value, NULL);
    else if (!strcasecmp(name, "Content-Encoding"))
        take(&h->content_encoding, value, NULL);
    else if (!strcasecmp(name, "Authorization"))
        take(&h->authorization, value, NULL);
    else if (!strcasecmp(name, "X-Api-Key"))
        take(&h->api_key, value, NULL);
    else if (!strcasecmp(name, "Expect"))
        take(&c->expect, value, NULL);
    return MHD_YES;
}

/* The head is complete. A refused request's body is read where that is little, else the connection
 * ends with the answer, as libmicrohttpd ends those that are answered here. */
static enum MHD_Result head(struct conn *c, const char *path, const char *method,
                            const char *version)
{
    struct collected got = {.head = {.method = method, .path = path, .nul = c->nul}};
    MHD_get_connection_values(c->mhd, MHD_HEADER_KIND, collect, &got);
    got.head.line_bytes = c->line_bytes + strlen(method) + strlen(version) + 4;
    c->x = service_begin(c->h->s, &got.head);
    exchange_set_owner(c->x, c);
    c->received = c->marked = 0;
    c->heard = c->mark = mem_seconds();
    atomic_fetch_add(&c->h->busy, 1);
    const char *length = got.head.content_length;
    bool little = length && !got.head.transfer_encoding && !got.head.repeated && !got.expect &&
                  strlen(length) < 9 && atoll(length) <= DRAIN_BYTES;
    if (exchange_state(c->x) == EXCHANGE_body || !exchange_has_body(c->x) || little) {
        enter(c, CONN_body);
        return MHD_YES;
    }
    c->linger = true;
    return respond(c);
}

static enum MHD_Result body(struct conn *c, const char *p, size_t *n)
{
    c->received += (int64_t)*n;
    c->heard = mem_seconds();
    if (exchange_state(c->x) == EXCHANGE_body && !exchange_add(c->x, p, *n)) {
        send_refusal(c);
        return MHD_NO;
    }
    *n = 0;
    return MHD_YES;
}

static enum MHD_Result complete(struct conn *c)
{
    enum exchange_state st = exchange_state(c->x);
    if (st == EXCHANGE_body) {
        enter(c, CONN_work);
        exchange_submit(c->x);
        st = exchange_state(c->x);
    }
    if (st != EXCHANGE_wait) return respond(c);
    if (c->gone > 0) return MHD_NO;
    suspend(c);
    return MHD_YES;
}

static enum MHD_Result handle(void *arg, struct MHD_Connection *mhd, const char *path,
                              const char *method, const char *version, const char *data, size_t *n,
                              void **request)
{
    struct conn *c = conn_of(mhd);
    (void)arg, (void)request;
    if (!c || c->state == CONN_ended) return MHD_NO;
    if (!c->x) return head(c, path, method, version);
    return *n ? body(c, data, n) : complete(c);
}

static void completed(void *arg, struct MHD_Connection *mhd, void **request,
                      enum MHD_RequestTerminationCode why)
{
    struct conn *c = conn_of(mhd);
    (void)arg, (void)request, (void)why;
    if (!c || !c->x) return;
    exchange_set_owner(c->x, NULL);
    exchange_cancel(c->x);
    exchange_drop(c->x);
    c->x = NULL;
    c->suspended = false;
    atomic_fetch_sub(&c->h->busy, 1);
    if (c->state != CONN_ended) enter(c, CONN_idle);
}

static void *first_line(void *arg, const char *uri, struct MHD_Connection *mhd)
{
    struct conn *c = conn_of(mhd);
    (void)arg;
    if (!c) return NULL;
    c->line_bytes = strlen(uri);
    c->nul = strstr(uri, "%00");
    if (c->state == CONN_idle) enter(c, CONN_head);
    return NULL;
}

static void connection(void *arg, struct MHD_Connection *mhd, void **context,
                       enum MHD_ConnectionNotificationCode what)
{
    struct http *h = arg;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
        if (*context) http_leave(*context);
        *context = NULL;
        return;
    }
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    *context = http_join(h, mhd, i->connect_fd);
}

static void quiet(void *arg, const char *fmt, va_list ap)
{
    (void)arg, (void)fmt, (void)ap; /* it writes of what clients do wrong */
}

struct MHD_Daemon *http_daemon(struct http *h)
{
    const struct serve_options *o = h->o;
    size_t pool = (size_t)(o->header_bytes + o->line_bytes) + 49152;
    return MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, handle, h,
        MHD_OPTION_EXTERNAL_LOGGER, quiet, NULL, MHD_OPTION_LISTEN_SOCKET, h->listening,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, pool, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)o->connections + LINGERING, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)ceil(o->idle_seconds), MHD_OPTION_NOTIFY_COMPLETED, completed, h,
        MHD_OPTION_NOTIFY_CONNECTION, connection, h, MHD_OPTION_URI_LOG_CALLBACK, first_line, h,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
}
