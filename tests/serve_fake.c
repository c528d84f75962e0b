#include "serve_fake.h"
#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* ---- the model */

static enum rt_status run(struct lm *lm, const struct lm_call *c, struct rt_error *err)
{
    struct fake_lm *m = (struct fake_lm *)lm;
    (void)err;
    int64_t us = m->sleep;
    const struct timespec t = {us / 1000000, us % 1000000 * 1000};
    if (us) nanosleep(&t, NULL);
    int64_t call = atomic_fetch_add(&m->calls, 1), breaks = m->breaks;
    for (int64_t b = 0; b < c->B; b++) {
        float *row = m->logits + b * FAKE_VOCAB;
        for (int i = 0; i < FAKE_VOCAB; i++) row[i] = 0;
        row[m->next[c->tokens[(b + 1) * c->T - 1]]] = breaks && call >= breaks ? NAN : 30;
    }
    return RT_ok;
}
static const float *logits(const struct lm *lm)
{
    return ((const struct fake_lm *)lm)->logits;
}
static const float *depth(const struct lm *lm, size_t i)
{
    (void)i;
    return ((const struct fake_lm *)lm)->depth;
}
static enum rt_status copy_state(struct lm *m, int32_t from, int32_t to, struct rt_error *err)
{
    (void)m, (void)from, (void)to, (void)err;
    return RT_ok;
}
static enum rt_status save(struct lm *m, int32_t i, void *to, struct rt_error *err)
{
    (void)m, (void)i, (void)err;
    memset(to, 0, 4);
    return RT_ok;
}
static enum rt_status load(struct lm *m, int32_t i, const void *from, struct rt_error *err)
{
    (void)m, (void)i, (void)from, (void)err;
    return RT_ok;
}
static void no_close(struct lm *m)
{
    (void)m;
}

/* The capital letter is followed by the text, then by the end. Every byte occurs once. */
static void say(struct fake_lm *m, unsigned char letter, const char *text)
{
    int32_t at = letter;
    for (const char *p = text; *p; p++) at = m->next[at] = (unsigned char)*p;
    m->next[at] = FAKE_EOS;
}

void fake_lm_open(struct fake_lm *m)
{
    static const struct lm_ops ops = {run,  logits, depth, copy_state, save,
                                      load, save,   load,  no_close};
    memset(m, 0, sizeof *m);
    m->lm.ops = &ops;
    for (int i = 0; i < FAKE_VOCAB; i++) m->next[i] = 'a';
    for (int i = 'a'; i < 'z'; i++) m->next[i] = i + 1;
    m->next['z'] = 'a';
    say(m, 'E', "");
    say(m, 'U', "\xc3\xa9\xf0\x9f\x98\x80!"); /* characters of two and four bytes */
    say(m, 'X', "\xe2\x82");                  /* ends within one */
    m->site[0] = (struct lm_site){"layers.0.attn_res", 1, false};
    m->site[1] = (struct lm_site){"layers.1.attn_res", 2, true};
    for (size_t i = 0; i < sizeof m->depth / sizeof *m->depth; i++) m->depth[i] = 0.5f;
    m->lm.about = (struct lm_about){.vocab = FAKE_VOCAB,
                                    .context = FAKE_CONTEXT,
                                    .pages = 8 * FAKE_CONTEXT / LM_PAGE,
                                    .batch = 16,
                                    .page_bytes = 4,
                                    .site = m->site,
                                    .num_sites = FAKE_SITES};
}

/* ---- the server */

void fake_server_options(struct fake_server *s)
{
    struct rt_error err;
    memset(s, 0, sizeof *s);
    fake_lm_open(&s->lm);
    serve_defaults(&s->o);
    s->o.port = 0;
    if (tokenizer_bytes(&s->tok, &err) != RT_ok) fail_msg("%s", err.text);
}

void fake_server_open(struct fake_server *s)
{
    static const int32_t stop[] = {FAKE_EOS};
    struct rt_error err;
    const struct serve_model m = {.lm = &s->lm.lm,
                                  .tok = s->tok,
                                  .name = "fake",
                                  .fingerprint = "fp_fake",
                                  .chat = s->no_chat ? NULL : chat_template_find("plain"),
                                  .bos = -1,
                                  .stop = stop,
                                  .num_stop = 1,
                                  .program = "strata test"};
    if (serve_open(&m, &s->o, &s->serve, &err) != RT_ok) fail_msg("%s", err.text);
    s->port = serve_port(s->serve);
}

void fake_server_close(struct fake_server *s)
{
    serve_close(s->serve);
    tokenizer_close(s->tok);
}

/* ---- the client */

int client_open(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_true(fd >= 0);
    if (connect(fd, (const struct sockaddr *)&to, sizeof to)) fail_msg("cannot connect");
    return fd;
}

void client_send(int fd, const char *text, size_t n)
{
    while (n) {
        ssize_t k = send(fd, text, n, MSG_NOSIGNAL);
        if (k <= 0) return; /* the server may have closed; its answer tells */
        text += k;
        n -= (size_t)k;
    }
}

/* Appends what comes; false at the end. */
static bool receive(int fd, struct sb *out)
{
    char buf[16384];
    struct pollfd p = {fd, POLLIN, 0};
    if (poll(&p, 1, 10000) < 1) fail_msg("nothing came for ten seconds, after: %s", out->p);
    ssize_t n = recv(fd, buf, sizeof buf, 0);
    if (n <= 0) return false;
    sb_add(out, buf, (size_t)n);
    return true;
}

struct sb client_rest(int fd)
{
    struct sb s = {0};
    sb_add(&s, "", 0);
    while (receive(fd, &s)) continue;
    return s;
}

/* One byte at a time where it has to be: what follows the answer stays in the socket. */
static bool receive_byte(int fd, struct sb *out)
{
    char b;
    struct pollfd p = {fd, POLLIN, 0};
    if (poll(&p, 1, 10000) < 1) fail_msg("nothing came for ten seconds, after: %s", out->p);
    if (recv(fd, &b, 1, 0) != 1) return false;
    sb_char(out, b);
    return true;
}

static bool receive_line(int fd, struct sb *out)
{
    while (receive_byte(fd, out))
        if (out->p[out->n - 1] == '\n') return true;
    return false;
}

static void receive_exactly(int fd, struct sb *out, size_t n)
{
    char buf[16384];
    while (n) {
        struct pollfd p = {fd, POLLIN, 0};
        if (poll(&p, 1, 10000) < 1) fail_msg("a body stopped after: %s", out->p);
        ssize_t k = recv(fd, buf, n < sizeof buf ? n : sizeof buf, 0);
        if (k <= 0) fail_msg("a body was cut after: %s", out->p);
        sb_add(out, buf, (size_t)k);
        n -= (size_t)k;
    }
}

const char *client_header(const struct client_answer *a, const char *name)
{
    static char value[512];
    size_t n = strlen(name);
    for (const char *p = a->head.p; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : "")
        if (!strncasecmp(p, name, n) && p[n] == ':') {
            p += n + 1;
            while (*p == ' ') p++;
            snprintf(value, sizeof value, "%.*s", (int)strcspn(p, "\r\n"), p);
            return value;
        }
    return NULL;
}

struct client_answer client_head_answer(int fd)
{
    struct client_answer a = {0};
    size_t before;
    do {
        before = a.head.n;
        if (!receive_line(fd, &a.head)) break;
    } while (a.head.n - before > 2);
    if (!a.head.n) return a; /* closed without an answer: status 0 */
    if (sscanf(a.head.p, "HTTP/1.%*d %d", &a.status) != 1) fail_msg("no answer: %s", a.head.p);
    sb_add(&a.body, "", 0);
    const char *c = client_header(&a, "Connection");
    a.closes = c && !strcasecmp(c, "close");
    return a;
}

static void receive_chunks(int fd, struct client_answer *a)
{
    struct sb line = {0};
    for (;;) {
        line.n = 0;
        if (!receive_line(fd, &line)) fail_msg("a chunked body was cut after: %s", a->body.p);
        size_t n = strtoul(line.p, NULL, 16);
        receive_exactly(fd, &a->body, n);
        line.n = 0;
        receive_line(fd, &line);
        if (!n) break;
    }
    sb_free(&line);
}

struct client_answer client_answer(int fd)
{
    struct client_answer a = client_head_answer(fd);
    if (a.status == 100) {
        client_free(&a);
        a = client_head_answer(fd);
    }
    if (!a.status || a.status == 204) return a;
    const char *length = client_header(&a, "Content-Length");
    if (length) {
        receive_exactly(fd, &a.body, strtoul(length, NULL, 10));
    } else if (client_header(&a, "Transfer-Encoding")) {
        receive_chunks(fd, &a);
    } else {
        while (receive(fd, &a.body)) continue;
    }
    return a;
}

void client_free(struct client_answer *a)
{
    sb_free(&a->head);
    sb_free(&a->body);
}

struct client_answer client_ask(int port, const char *path, const char *body)
{
    struct sb s = {0};
    int fd = client_open(port);
    sb_printf(&s, "%s %s HTTP/1.1\r\nHost: x\r\n", body ? "POST" : "GET", path);
    if (body)
        sb_printf(&s, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    sb_printf(&s, "\r\n%s", body ? body : "");
    client_send(fd, s.p, s.n);
    struct client_answer a = client_answer(fd);
    sb_free(&s);
    close(fd);
    return a;
}

double client_metric(int port, const char *name)
{
    struct client_answer a = client_ask(port, "/metrics", NULL);
    size_t n = strlen(name);
    double v = -1;
    for (const char *p = a.body.p; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : "")
        if (!strncmp(p, name, n) && p[n] == ' ') v = strtod(p + n, NULL);
    client_free(&a);
    return v;
}

void client_post(struct sb *out, const char *path, const char *body, const char *headers)
{
    sb_printf(out,
              "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
              "Content-Length: %zu\r\n%s\r\n%s",
              path, strlen(body), headers, body);
}

int client_start(int port, const char *path, const char *body)
{
    struct sb t = {0};
    int fd = client_open(port);
    client_post(&t, path, body, "");
    client_send(fd, t.p, t.n);
    sb_free(&t);
    return fd;
}

void client_nap(double seconds)
{
    const struct timespec t = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&t, NULL);
}

void client_wait(int port, const char *name, double want)
{
    double v = -1;
    for (int i = 0; i < 500; i++) {
        if ((v = client_metric(port, name)) == want) return;
        client_nap(0.01);
    }
    fail_msg("%s is %g, not %g", name, v, want);
}
