/* The load generator: what it reads of answers in any pieces, what it asks and when, and a run
 * beside a scripted server that does what servers should not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "runtime/http_reader.h"
#include "runtime/load.h"

/* ---- readers ---- */

struct seen {
    struct sb body;
    enum http_got end;
    struct http_reader r;
};

/* Reads an answer in pieces of `step` bytes. */
static void read_all(struct seen *s, const char *p, size_t n, size_t step)
{
    *s = (struct seen){.end = HTTP_more};
    for (size_t at = 0; at < n && s->end == HTTP_more; at += step) {
        size_t m = n - at < step ? n - at : step, done = 0;
        do {
            size_t used = 0;
            struct str body = {0};
            s->end = http_read(&s->r, p + at + done, m - done, &used, &body);
            if (s->end == HTTP_body) sb_add(&s->body, body.p, body.n);
            done += used;
        } while (s->end == HTTP_body);
    }
}

static void reads(const char *answer, enum http_got end, int status, const char *body)
{
    for (size_t step = 1; step <= strlen(answer); step++) {
        struct seen s;
        read_all(&s, answer, strlen(answer), step);
        if (s.end != end) fail_msg("ends as %d in pieces of %zu: %s", (int)s.end, step, answer);
        if (end != HTTP_bad) {
            assert_int_equal(s.r.status, status);
            assert_string_equal(s.body.p ? s.body.p : "", body);
        }
        sb_free(&s.body);
    }
}

#define OK "HTTP/1.1 200 OK\r\n"
#define CHUNKED OK "Transfer-Encoding: chunked\r\n\r\n"

static void test_answers(void **state)
{
    (void)state;
    reads(OK "Content-Length: 5\r\n\r\nhello", HTTP_end, 200, "hello");
    reads(OK "content-length:5\n\nhello, this is the next", HTTP_end, 200, "hello");
    reads(OK "\r\nuntil it ends", HTTP_more, 200, "until it ends");
    reads(CHUNKED "3\r\nabc\r\n0A;x=\"y\"\r\n0123456789\r\n0\r\n\r\n", HTTP_end, 200,
          "abc0123456789");
    reads(CHUNKED "1\r\na\r\n0\r\nTrailer: x\r\n\r\n", HTTP_end, 200, "a");
    reads("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", HTTP_end,
          503, "");
    reads("HTTP/1.0 204\r\n\r\n", HTTP_end, 204, "");
}

static void test_wrong_answers(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/2 200\r\n",
        "HTTP/1.1 2x0 OK\r\n",
        "HTTP/1.1 099 OK\r\n",
        OK "no colon\r\n",
        OK ": no name\r\n",
        OK "Content-Length: -1\r\n",
        OK "Content-Length: 0x10\r\n",
        OK "Content-Length: 99999999999999999999\r\n",
        OK "Content-Length: 1\r\nContent-Length: 2\r\n",
        OK "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK "Transfer-Encoding: gzip, chunked\r\n",
        CHUNKED "\r\n",
        CHUNKED "x\r\n",
        CHUNKED "fffffffffffffffff\r\n",
        CHUNKED "1\r\nab\r\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) reads(bad[i], HTTP_bad, 0, "");
}

static void test_endless_heads(void **state)
{
    (void)state;
    struct sb s = {0};
    sb_str(&s, OK "X: ");
    for (int i = 0; i < 2 * HTTP_LINE; i++) sb_char(&s, 'x');
    struct seen got;
    read_all(&got, s.p, s.n, 100);
    assert_int_equal(got.end, HTTP_bad);
    s.n = strlen(OK);
    for (int i = 0; i < 2 * HTTP_LINES; i++) sb_str(&s, "A: b\r\n");
    read_all(&got, s.p, s.n, 100);
    assert_int_equal(got.end, HTTP_bad);
    s.n = 0;
    for (int i = 0; i < HTTP_LINES; i++) sb_str(&s, "HTTP/1.1 100 Continue\r\n\r\n");
    read_all(&got, s.p, s.n, 100);
    assert_int_equal(got.end, HTTP_bad);
    sb_free(&s);
}

static bool note_event(void *arg, struct str data)
{
    sb_char(arg, '<');
    sb_add(arg, data.p ? data.p : "", data.n);
    sb_char(arg, '>');
    return !str_is(data, "stop");
}

static void events(const char *stream, const char *want, bool goes_on)
{
    for (size_t step = 1; step <= strlen(stream); step++) {
        struct sse_reader r = {0};
        struct sb out = {0};
        bool on = true;
        for (size_t at = 0; on && at < strlen(stream); at += step) {
            size_t m = strlen(stream) - at < step ? strlen(stream) - at : step;
            on = sse_read(&r, (struct str){stream + at, m}, note_event, &out);
        }
        assert_int_equal(on, goes_on);
        assert_string_equal(out.p ? out.p : "", want);
        sb_free(&out);
        sse_close(&r);
    }
}

static void test_events(void **state)
{
    (void)state;
    events("data: a\n\ndata:b\r\n\r\ndata:  c\r\rdata: d", "<a><b>< c>", true);
    events(": ping\n\nevent: x\nid: 1\ndata: a\ndata: b\n\n\n\ndata:\n\n", "<a\nb><>", true);
    events("data: a\n\ndata: stop\n\n", "<a><stop>", false);
    struct sse_reader r = {0};
    struct sb out = {0}, part = {0};
    for (int i = 0; i < 1 << 16; i++) sb_char(&part, 'x');
    int parts = 0;
    while (sse_read(&r, (struct str){part.p, part.n}, note_event, &out)) parts++;
    assert_int_equal(parts, SSE_EVENT >> 16);
    sse_close(&r);
    sb_str(&part, "\n");
    memcpy(part.p, "data:", 5);
    for (parts = 0; sse_read(&r, (struct str){part.p, part.n}, note_event, &out);) parts++;
    assert_in_range(parts, (SSE_EVENT >> 16) - 1, SSE_EVENT >> 16);
    sse_close(&r);
    sb_free(&part);
    sb_free(&out);
}

/* ---- what is asked ---- */

static struct load_options options(void)
{
    return (struct load_options){.model = "m",
                                 .clients = 1,
                                 .requests = 1,
                                 .timeout = 20,
                                 .prompt = {4, 4},
                                 .max_tokens = {8, 8},
                                 .temperature = 0.5,
                                 .seed = 7};
}

static void body_is(const struct load_options *o, uint64_t i, const char *want)
{
    struct sb s = {0};
    load_body(o, i, &s);
    assert_string_equal(s.p, want);
    sb_free(&s);
}

#define TAIL                                                                               \
    ",\"max_tokens\":8,\"temperature\":0.5,\"seed\":3,\"stream\":true,\"stream_options\":" \
    "{\"include_usage\":true}}"

static void test_bodies(void **state)
{
    (void)state;
    struct load_options o = options();
    const struct str given[] = {STR("one"), STR("a \"b\"\n")};
    o.given = given;
    o.num_given = 2;
    body_is(&o, 3, "{\"model\":\"m\",\"prompt\":\"a \\\"b\\\"\\n\"" TAIL);
    o.chat = true;
    body_is(
        &o, 3,
        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"a \\\"b\\\"\\n\"}]" TAIL);
    o = options();
    struct sb a = {0}, b = {0};
    load_body(&o, 3, &a);
    load_body(&o, 3, &b);
    assert_string_equal(a.p, b.p); /* a function of seed and number */
    int spaces = 0;
    for (const char *p = strchr(a.p, '[') ? NULL : strstr(a.p, "prompt"); *p != ','; p++)
        spaces += *p == ' ';
    assert_int_equal(spaces, 3);
    b.n = 0;
    o.vocab = 9;
    o.prompt = (struct load_range){2, 5};
    int64_t lowest = 99, highest = 0;
    for (uint64_t i = 0; i < 200; i++, b.n = 0) {
        load_body(&o, i, &b);
        int64_t n = 1;
        for (const char *p = strchr(b.p, '['); *p != ']'; p++) {
            n += *p == ',';
            assert_true(strchr("[,012345678", *p));
        }
        if (n < lowest) lowest = n;
        if (n > highest) highest = n;
    }
    assert_int_equal(lowest, 2);
    assert_int_equal(highest, 5);
    sb_free(&a);
    sb_free(&b);
}

static void test_arrivals(void **state)
{
    (void)state;
    struct load_options o = options();
    o.rate = 4;
    enum { N = 20000 };
    double t = 0, squares = 0;
    for (uint64_t i = 0; i < N; i++) {
        double next = load_due(&o, i, t);
        assert_true(next >= t);
        squares += (next - t) * (next - t);
        t = next;
    }
    /* mean and deviation of exponential gaps are both 1 / rate */
    double mean = t / N, deviation = sqrt(squares / N - mean * mean);
    assert_true(fabs(mean - 0.25) < 0.01 && fabs(deviation - 0.25) < 0.01);
}

static void test_urls(void **state)
{
    (void)state;
    struct load_url u;
    struct rt_error err;
    assert_int_equal(load_url_read("http://127.0.0.1:8080", &u, &err), RT_ok);
    assert_string_equal(u.host, "127.0.0.1");
    assert_string_equal(u.port, "8080");
    assert_string_equal(u.prefix, "");
    assert_int_equal(load_url_read("http://a.b/x/y/", &u, &err), RT_ok);
    assert_string_equal(u.port, "80");
    assert_string_equal(u.prefix, "/x/y");
    assert_int_equal(load_url_read("http://[::1]:9/", &u, &err), RT_ok);
    assert_string_equal(u.host, "::1");
    assert_string_equal(u.port, "9");
    static const char *const bad[] = {"https://a",      "a:80",        "http://",
                                      "http://:80",     "http://a:",   "http://a:x",
                                      "http://a:99999", "http://a/?b", "http://[::1",
                                      "http://[::1]9"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (load_url_read(bad[i], &u, &err) != RT_user) fail_msg("%s was taken", bad[i]);
}

/* ---- a scripted server ---- */

struct script {
    int fd, port;
    const char *const *answer; /* one a connection */
    size_t n;
    char asked[8192]; /* the last request */
};

static void *serve(void *arg)
{
    struct script *s = arg;
    for (size_t i = 0; i < s->n; i++) {
        int fd = accept(s->fd, NULL, NULL);
        if (fd < 0) return NULL;
        size_t n = 0;
        memset(s->asked, 0, sizeof s->asked);
        while (!strstr(s->asked, "\r\n\r\n") ||
               (!strncmp(s->asked, "POST", 4) && !strstr(s->asked, "}}"))) {
            ssize_t m = recv(fd, s->asked + n, sizeof s->asked - 1 - n, 0);
            if (m <= 0) break;
            n += (size_t)m;
        }
        const char *p = s->answer[i];
        if (!strcmp(p, "silence")) {
            char c;
            while (recv(fd, &c, 1, 0) > 0) continue; /* until the client gives up */
        }
        for (; strcmp(s->answer[i], "silence") && *p; p++)
            if (send(fd, p, 1, MSG_NOSIGNAL) != 1) break; /* a byte at a time */
        shutdown(fd, SHUT_WR);
        char c;
        while (recv(fd, &c, 1, 0) > 0) continue; /* so that closing does not reset */
        close(fd);
    }
    return NULL;
}

static void start(struct script *s, pthread_t *thread)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof at;
    s->fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(s->fd >= 0 && bind(s->fd, (struct sockaddr *)&at, n) == 0 &&
                listen(s->fd, 16) == 0 && getsockname(s->fd, (struct sockaddr *)&at, &n) == 0);
    s->port = ntohs(at.sin_port);
    assert_int_equal(pthread_create(thread, NULL, serve, s), 0);
}

#define STREAM OK "Content-Type: text/event-stream\r\n\r\n"
#define TEXT(t) "data: {\"choices\":[{\"index\":0,\"text\":\"" t "\"}]}\n\n"
#define USAGE "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3}}\n\n"
#define DONE "data: [DONE]\n\n"

static void test_run(void **state)
{
    (void)state;
    static const struct {
        const char *answer;
        enum load_outcome outcome;
        int status;
        const char *said;
    } row[] = {
        {STREAM TEXT("a") TEXT("b") TEXT("") TEXT("c") USAGE DONE, LOAD_ok, 200, ""},
        {OK "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            "31\r\n" TEXT("\\u0000") "\r\n10\r\ndata: [DONE]\n\n: \r\n0\r\n\r\n",
         LOAD_ok, 200, ""},
        {"HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 29\r\n\r\n"
         "{\"error\":{\"message\":\"full\033\"}}",
         LOAD_refused, 503, "full"},
        {STREAM TEXT("a"), LOAD_cut, 200, "the stream ended without [DONE]"},
        {STREAM "data: {\"error\":{\"message\":\"it broke\"}}\n\n", LOAD_error, 200, "it broke"},
        {"220 mail\r\n", LOAD_malformed, 0, "not HTTP"},
        {STREAM "data: [1]\n\n", LOAD_malformed, 200, NULL},
        {OK "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", LOAD_malformed, 200,
         NULL},
        {"", LOAD_cut, 0, NULL},
        {"silence", LOAD_timeout, 0, "no whole answer in time"},
    };
    enum { N = sizeof row / sizeof *row };
    const char *answer[N];
    for (int i = 0; i < N; i++) answer[i] = row[i].answer;
    struct script s = {.answer = answer, .n = N};
    pthread_t thread;
    start(&s, &thread);
    char url[64];
    snprintf(url, sizeof url, "http://127.0.0.1:%d/x", s.port);
    struct load_options o = options();
    struct rt_error err;
    struct load_result r = {0};
    struct arena *a = arena_open("test");
    assert_int_equal(load_url_read(url, &o.url, &err), RT_ok);
    o.requests = N;
    o.timeout = 0.6;
    o.key = "k";
    assert_int_equal(load_run(a, &o, &r, &err), RT_ok);
    pthread_join(thread, NULL);
    close(s.fd);
    assert_int_equal(r.request.n, N);
    for (int i = 0; i < N; i++) {
        const struct load_request *q = &r.request.p[i];
        if (q->outcome != row[i].outcome || q->status != row[i].status)
            fail_msg("answer %d: %s, status %d", i, load_outcome_name(q->outcome), q->status);
        if (row[i].said && row[i].said[0]) assert_non_null(strstr(r.said[q->outcome], row[i].said));
        assert_true(q->end >= q->last && q->last >= q->first && q->end <= r.seconds);
    }
    assert_int_equal(r.request.p[0].prompt, 5);
    assert_int_equal(r.request.p[0].completion, 3);
    assert_int_equal(r.request.p[1].completion, 1); /* counted, where usage is silent */
    assert_int_equal(r.request.p[2].retry_after, 7);
    assert_null(strchr(r.said[LOAD_refused], '\033')); /* nothing that a terminal obeys */
    assert_int_equal(r.gap.n, 2);
    assert_true(r.request.p[N - 1].end - r.request.p[N - 1].due >= 0.6);
    assert_non_null(strstr(s.asked, "POST /x/v1/completions HTTP/1.1\r\nHost: 127.0.0.1:"));
    assert_non_null(strstr(s.asked, "\r\nAuthorization: Bearer k\r\n"));
    arena_close(a);
}

static void test_cancel(void **state)
{
    (void)state;
    static const char *const answer[] = {
        STREAM TEXT("a") TEXT("b") TEXT("c") TEXT("d") TEXT("e") DONE,
        STREAM TEXT("a") TEXT("b") TEXT("c") TEXT("d") TEXT("e") DONE};
    struct script s = {.answer = answer, .n = 2};
    pthread_t thread;
    start(&s, &thread);
    struct load_options o = options();
    struct load_result r = {0};
    struct rt_error err;
    struct arena *a = arena_open("test");
    strcpy(o.url.host, "127.0.0.1");
    snprintf(o.url.port, sizeof o.url.port, "%d", s.port);
    o.requests = 2;
    o.cancel = 1;
    o.clients = 0; /* open loop */
    o.rate = 100;
    assert_int_equal(load_run(a, &o, &r, &err), RT_ok);
    pthread_join(thread, NULL);
    close(s.fd);
    assert_int_equal(r.request.n, 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(r.request.p[i].outcome, LOAD_cancelled);
        assert_in_range(r.request.p[i].completion, 1, 4); /* half of max_tokens at most */
    }
    arena_close(a);
}

static void test_nobody_there(void **state)
{
    (void)state;
    struct script s = {.n = 0};
    pthread_t thread;
    start(&s, &thread);
    pthread_join(thread, NULL);
    close(s.fd); /* the port is nobody's now */
    struct load_options o = options();
    struct load_result r = {0};
    struct rt_error err;
    const char *model = NULL;
    struct arena *a = arena_open("test");
    strcpy(o.url.host, "127.0.0.1");
    snprintf(o.url.port, sizeof o.url.port, "%d", s.port);
    o.requests = 3;
    assert_int_equal(load_run(a, &o, &r, &err), RT_ok);
    assert_int_equal(r.request.n, 3);
    for (int i = 0; i < 3; i++) assert_int_equal(r.request.p[i].outcome, LOAD_connect);
    assert_int_equal(load_model(a, &o, &model, &err), RT_user);
    assert_non_null(strstr(err.text, "refused"));
    o.clients = LOAD_CLIENTS + 1;
    assert_int_equal(load_run(a, &o, &r, &err), RT_user);
    arena_close(a);
}

static void test_model(void **state)
{
    (void)state;
    static const char *const answer[] = {
        OK "Content-Length: 29\r\n\r\n{\"data\":[{\"id\":\"the model\"}]}",
        "HTTP/1.1 401 No\r\n\r\n{\"error\":{\"message\":\"a key is needed\"}}"};
    struct script s = {.answer = answer, .n = 2};
    pthread_t thread;
    start(&s, &thread);
    struct load_options o = options();
    struct rt_error err;
    struct arena *a = arena_open("test");
    strcpy(o.url.host, "127.0.0.1");
    snprintf(o.url.port, sizeof o.url.port, "%d", s.port);
    const char *model = NULL;
    assert_int_equal(load_model(a, &o, &model, &err), RT_ok);
    assert_string_equal(model, "the model");
    assert_int_equal(load_model(a, &o, &model, &err), RT_user);
    assert_string_equal(err.text, "GET /v1/models gave no model, status 401: a key is needed");
    pthread_join(thread, NULL);
    close(s.fd);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),       cmocka_unit_test(test_wrong_answers),
        cmocka_unit_test(test_endless_heads), cmocka_unit_test(test_events),
        cmocka_unit_test(test_bodies),        cmocka_unit_test(test_arrivals),
        cmocka_unit_test(test_urls),          cmocka_unit_test(test_run),
        cmocka_unit_test(test_cancel),        cmocka_unit_test(test_nobody_there),
        cmocka_unit_test(test_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
