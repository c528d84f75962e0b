/* The I/O thread: waits on libmicrohttpd's sockets, on exchanges that are ready and on clients that
 * close, and looks at every connection's deadline some twenty times a second. */
#include "runtime/http_conn.h"
#include "runtime/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define TICK 0.05          /* seconds between looks at the deadlines */
#define LINGER_SECONDS 2.0 /* for a client to read an answer that it did not wait for */

/* ---- exchanges that are ready */

static void wake(struct http *h)
{
    const uint64_t one = 1;
    if (write(h->wake, &one, sizeof one) < 0) errno = 0; /* full: it wakes anyway */
}

static void ready(void *arg, struct exchange *x)
{
    struct http *h = arg;
    if (!exchange_mark(x)) return;
    exchange_hold(x);
    pthread_mutex_lock(&h->lock);
    if (h->num_ready == h->ready_cap) {
        h->ready_cap = h->ready_cap ? 2 * h->ready_cap : 64;
        h->ready = realloc(h->ready, h->ready_cap * sizeof *h->ready);
        if (!h->ready) BUG("no memory for the list of requests");
    }
    bool first = !h->num_ready;
    h->ready[h->num_ready++] = x;
    pthread_mutex_unlock(&h->lock);
    if (first) wake(h);
}

struct service_hooks http_hooks(struct http *h)
{
    return (struct service_hooks){ready, h};
}

static struct exchange *next_ready(struct http *h)
{
    pthread_mutex_lock(&h->lock);
    struct exchange *x = h->num_ready ? h->ready[--h->num_ready] : NULL;
    pthread_mutex_unlock(&h->lock);
    return x;
}

static void end(struct conn *c)
{
    c->state = CONN_ended;
    shutdown(c->fd, SHUT_RDWR);
    conn_resume(c);
}

static void take_ready(struct http *h)
{
    struct exchange *x;
    while ((x = next_ready(h))) {
        exchange_unmark(x);
        struct conn *c = exchange_owner(x);
        if (c && exchange_overflowed(x))
            end(c);
        else if (c && exchange_state(x) != EXCHANGE_wait)
            conn_resume(c);
        exchange_drop(x);
    }
}

/* ---- sockets that linger */

static void linger_close(struct http *h, size_t i)
{
    close(h->lingering[i].fd);
    h->lingering[i] = h->lingering[--h->num_lingering];
}

static void linger(struct http *h, int fd)
{
    size_t oldest = 0;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) return;
    for (size_t i = 1; i < h->num_lingering; i++)
        if (h->lingering[i].until < h->lingering[oldest].until) oldest = i;
    if (h->num_lingering == LINGERING) linger_close(h, oldest);
    shutdown(copy, SHUT_WR);
    h->lingering[h->num_lingering++] = (struct lingering){copy, mem_seconds() + LINGER_SECONDS};
}

/* Throws away what came; at most a few hundred KiB at a time. */
static void linger_tick(struct http *h, double now)
{
    for (size_t i = h->num_lingering; i-- > 0;) {
        ssize_t n = 1;
        for (int k = 0; k < 8 && n > 0; k++)
            n = recv(h->lingering[i].fd, NULL, 65536, MSG_TRUNC | MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN) || now > h->lingering[i].until) linger_close(h, i);
    }
}

/* ---- connections */

/* Of those whose request is not complete the oldest gives way: a client that does its part asks at
 * once. */
static void make_room(struct http *h)
{
    struct conn *oldest = NULL;
    for (struct conn *c = h->first; c; c = c->next)
        if (c->state != CONN_work && c->state != CONN_ended &&
            (!oldest || c->since < oldest->since))
            oldest = c;
    if (!oldest) return;
    service_refused(h->s, API_overloaded);
    end(oldest);
}

struct conn *http_join(struct http *h, struct MHD_Connection *mhd, int fd)
{
    struct conn *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    *c = (struct conn){.h = h, .mhd = mhd, .fd = fd, .since = mem_seconds()};
    struct epoll_event ev = {.events = EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (epoll_ctl(h->epoll, EPOLL_CTL_ADD, fd, &ev)) {
        free(c);
        return NULL;
    }
    if (h->num_conns >= h->o->connections) make_room(h);
    c->next = h->first;
    if (c->next) c->next->prev = c;
    h->first = c;
    service_connections(h->s, ++h->num_conns);
    return c;
}

void http_leave(struct conn *c)
{
    struct http *h = c->h;
    if (c->linger) linger(h, c->fd);
    epoll_ctl(h->epoll, EPOLL_CTL_DEL, c->fd, NULL);
    if (c->next) c->next->prev = c->prev;
    if (c->prev)
        c->prev->next = c->next;
    else
        h->first = c->next;
    service_connections(h->s, --h->num_conns);
    free(c);
}

/* The client has closed, or will not send any more: it does not wait for an answer. */
static void gone(struct conn *c)
{
    c->gone = mem_seconds();
    if (c->state != CONN_work || !c->x) return;
    enum exchange_state st = exchange_state(c->x);
    if (st != EXCHANGE_wait && st != EXCHANGE_stream) return;
    exchange_cancel(c->x);
    conn_resume(c);
}

/* Too little of a body has come: nothing for a while, or less than its rate since the last look,
 * so that nobody who has sent much may then be slow for long. */
static bool slow_body(struct conn *c, double now)
{
    const struct serve_options *o = c->h->o;
    if (now - c->heard > o->header_seconds) return true;
    if (now - c->mark <= o->header_seconds) return false;
    bool slow = (double)(c->received - c->marked) < o->header_seconds * (double)o->body_rate;
    c->mark = now;
    c->marked = c->received;
    return slow;
}

static void check_deadline(struct conn *c, double now)
{
    const struct serve_options *o = c->h->o;
    double spent = now - c->since;
    /* A request that was complete is being answered by now. libmicrohttpd does not see an end that
     * came together with the last bytes: that is no edge for its epoll. */
    if (c->gone > 0 && now > c->gone + 0.5 && now > c->heard + 0.5 && c->state != CONN_work &&
        c->state != CONN_ended) {
        end(c);
        return;
    }
    switch (c->state) {
    case CONN_head:
        if (spent > o->header_seconds)
            conn_refuse(c, API_slow, "The request's head took too long.");
        break;
    case CONN_idle:
        if (spent > o->idle_seconds) end(c);
        break;
    case CONN_body:
        if (slow_body(c, now)) conn_refuse(c, API_slow, "The request's body came too slowly.");
        break;
    case CONN_work:
        if (c->x) exchange_ping(c->x, now - o->ping_seconds);
        break;
    case CONN_ended: break;
    }
}

static void tick(struct http *h)
{
    double now = mem_seconds();
    if (now - h->ticked < TICK) return;
    h->ticked = now;
    for (struct conn *c = h->first; c; c = c->next) check_deadline(c, now);
    linger_tick(h, now);
    if (!atomic_exchange(&h->cut, false)) return;
    for (struct conn *c = h->first; c; c = c->next)
        if (c->x) exchange_cut(c->x);
}

/* ---- the thread */

static int timeout(struct http *h)
{
    MHD_UNSIGNED_LONG_LONG ms;
    int most = h->first || h->num_lingering ? (int)(1000 * TICK) : 500;
    if (MHD_get_timeout(h->daemon, &ms) != MHD_YES || ms > (unsigned)most) return most;
    return (int)ms;
}

static void events(struct http *h)
{
    struct epoll_event ev[64];
    uint64_t count;
    int n = epoll_wait(h->epoll, ev, 64, timeout(h));
    for (int i = 0; i < n; i++) {
        if (ev[i].data.ptr == &h->wake) {
            if (read(h->wake, &count, sizeof count) < 0) errno = 0;
        } else if (ev[i].data.ptr != h) {
            gone(ev[i].data.ptr);
        }
    }
}

static void *run(void *arg)
{
    struct http *h = arg;
    while (!h->stop) {
        events(h);
        take_ready(h);
        tick(h);
        MHD_run(h->daemon);
    }
    for (struct conn *c = h->first; c; c = c->next) {
        if (c->x) exchange_cancel(c->x);
        end(c);
    }
    MHD_run(h->daemon);
    MHD_stop_daemon(h->daemon);
    while (h->num_lingering) linger_close(h, 0);
    return NULL;
}

/* ---- opening */

static enum rt_status cannot_listen(const struct serve_options *o, int error, struct rt_error *err)
{
    if (error == EADDRINUSE)
        return rt_fail(err, RT_user,
                       "port %lld of %s is in use: stop the other server, or choose another port "
                       "with --port (0 takes a free one)",
                       (long long)o->port, o->host);
    if (error == EACCES)
        return rt_fail(err, RT_user, "port %lld needs root: choose one from 1024 on with --port",
                       (long long)o->port);
    return rt_fail(err, RT_user, "cannot listen on port %lld of %s: %s", (long long)o->port,
                   o->host, strerror(error));
}

static int try_listen(const struct addrinfo *a)
{
    const int one = 1;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (!bind(fd, a->ai_addr, a->ai_addrlen) && !listen(fd, 1024)) return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static int port_of(int fd)
{
    struct sockaddr_storage at;
    socklen_t n = sizeof at;
    char text[16] = "0";
    if (!getsockname(fd, (struct sockaddr *)&at, &n))
        getnameinfo((struct sockaddr *)&at, n, NULL, 0, text, sizeof text, NI_NUMERICSERV);
    return atoi(text);
}

static enum rt_status open_socket(struct http *h, int *port, struct rt_error *err)
{
    const struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found;
    char service[16];
    snprintf(service, sizeof service, "%lld", (long long)h->o->port);
    int e = getaddrinfo(h->o->host, service, &want, &found);
    if (e) return rt_fail(err, RT_user, "--host %s is no address: %s", h->o->host, gai_strerror(e));
    for (const struct addrinfo *a = found; a && h->listening < 0; a = a->ai_next)
        h->listening = try_listen(a);
    e = errno;
    freeaddrinfo(found);
    if (h->listening < 0) return cannot_listen(h->o, e, err);
    *port = port_of(h->listening);
    return RT_ok;
}

/* Every connection is a file. */
static enum rt_status raise_files(const struct serve_options *o, struct rt_error *err)
{
    struct rlimit r;
    rlim_t want = (rlim_t)o->connections + 2 * LINGERING + 64;
    if (getrlimit(RLIMIT_NOFILE, &r) || r.rlim_cur >= want) return RT_ok;
    r.rlim_cur = want;
    if (r.rlim_max >= want && !setrlimit(RLIMIT_NOFILE, &r)) return RT_ok;
    return rt_fail(err, RT_user,
                   "%lld connections need %llu open files, and the limit is %llu: raise it "
                   "(ulimit -n), or lower --max-connections",
                   (long long)o->connections, (unsigned long long)want,
                   (unsigned long long)r.rlim_max);
}

static bool watch(struct http *h, int fd, void *ptr)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = ptr};
    return fd >= 0 && !epoll_ctl(h->epoll, EPOLL_CTL_ADD, fd, &ev);
}

enum rt_status http_open(const struct serve_options *o, struct http **out, int *port,
                         struct rt_error *err)
{
    RT_TRY(raise_files(o, err));
    struct http *h = calloc(1, sizeof *h);
    if (!h) return rt_fail(err, RT_machine, "no memory for the server");
    h->o = o;
    h->listening = -1;
    pthread_mutex_init(&h->lock, NULL);
    h->epoll = epoll_create1(EPOLL_CLOEXEC);
    h->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    enum rt_status st = open_socket(h, port, err);
    if (st == RT_ok && (h->epoll < 0 || !watch(h, h->wake, &h->wake)))
        st = rt_fail(err, RT_machine, "epoll: %s", strerror(errno));
    if (st == RT_ok) {
        *out = h;
        return st;
    }
    http_close(h);
    return st;
}

enum rt_status http_start(struct http *h, struct service *s, struct rt_error *err)
{
    h->s = s;
    h->daemon = http_daemon(h);
    if (!h->daemon) return rt_fail(err, RT_machine, "libmicrohttpd cannot start");
    h->listening = -1; /* its own now */
    const union MHD_DaemonInfo *i = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    if (!i || !watch(h, i->epoll_fd, h) || pthread_create(&h->thread, NULL, run, h)) {
        MHD_stop_daemon(h->daemon);
        return rt_fail(err, RT_machine, "the server's thread cannot start");
    }
    h->running = true;
    return RT_ok;
}

void http_cut(struct http *h)
{
    h->cut = true;
    wake(h);
}

int64_t http_busy(const struct http *h)
{
    return h->busy;
}

void http_stop(struct http *h)
{
    if (!h->running) return;
    h->stop = true;
    wake(h);
    pthread_join(h->thread, NULL);
    h->running = false;
}

void http_close(struct http *h)
{
    struct exchange *x;
    if (!h) return;
    while ((x = next_ready(h))) exchange_drop(x);
    if (h->listening >= 0) close(h->listening);
    if (h->epoll >= 0) close(h->epoll);
    if (h->wake >= 0) close(h->wake);
    free(h->ready);
    pthread_mutex_destroy(&h->lock);
    free(h);
}
