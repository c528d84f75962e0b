/* The server and clients that are slow, large, many, rude or gone. */
#include "serve_fake.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "runtime/mem.h"

static struct fake_server s;

static void send_text(int fd, const char *text)
{
    client_send(fd, text, strlen(text));
}

/* The status of one request's bytes, sent at once on a connection of its own. */
static int status_of(const char *text)
{
    int fd = client_open(s.port);
    send_text(fd, text);
    struct client_answer a = client_answer(fd);
    int status = a.status;
    if (status >= 400) assert_non_null(strstr(a.body.p, "\"error\":{\"message\":"));
    client_free(&a);
    close(fd);
    return status;
}

/* The same of what libmicrohttpd answers, in its own words. */
static int plain_status_of(const char *text)
{
    int fd = client_open(s.port);
    send_text(fd, text);
    struct client_answer a = client_answer(fd);
    int status = a.status;
    client_free(&a);
    close(fd);
    return status;
}

static void test_key(void **state)
{
    (void)state;
    fake_server_options(&s);
    s.o.api_key = "secret";
    fake_server_open(&s);
    struct client_answer a = client_ask(s.port, "/v1/models", NULL);
    assert_int_equal(a.status, 401);
    assert_string_equal(client_header(&a, "WWW-Authenticate"), "Bearer");
    assert_non_null(strstr(a.body.p, "invalid_api_key"));
    client_free(&a);
#define GET(path, header) status_of("GET " path " HTTP/1.1\r\nHost: x\r\n" header "\r\n")
    assert_int_equal(GET("/v1/models", "Authorization: Bearer secret\r\n"), 200);
    assert_int_equal(GET("/v1/models", "X-Api-Key: secret\r\n"), 200);
    assert_int_equal(GET("/v1/models", "Authorization: Bearer secre\r\n"), 401);
    assert_int_equal(GET("/v1/models", "Authorization: Bearer secrets\r\n"), 401);
    assert_int_equal(GET("/v1/models", "Authorization: Basic secret\r\n"), 401);
    assert_int_equal(GET("/v1/models", "X-Api-Key: \r\n"), 401);
    assert_int_equal(GET("/health", ""), 200);
    assert_int_equal(GET("/", ""), 200);
    static const char *const closed[] = {
        "/metrics",        "/version",  "/strata/depth/sites", "/nowhere",
        "/v1/models/fake", "/tokenize", "/v1/completions",     "//"};
    for (size_t i = 0; i < sizeof closed / sizeof *closed; i++) {
        a = client_ask(s.port, closed[i], i % 2 ? "{}" : NULL);
        assert_int_equal(a.status, 401);
        client_free(&a);
    }
    assert_int_equal(status_of("OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"), 401);
    fake_server_close(&s);
}

static void test_cors(void **state)
{
    (void)state;
    fake_server_options(&s);
    s.o.cors = "https://example.org";
    s.o.api_key = "k";
    fake_server_open(&s);
    int fd = client_open(s.port);
    send_text(fd, "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: "
                  "https://example.org\r\nAccess-Control-Request-Method: POST\r\n\r\n");
    struct client_answer a = client_answer(fd);
    assert_int_equal(a.status, 204);
    assert_string_equal(client_header(&a, "Access-Control-Allow-Origin"), "https://example.org");
    assert_non_null(strstr(client_header(&a, "Access-Control-Allow-Headers"), "Authorization"));
    client_free(&a);
    close(fd);
    a = client_ask(s.port, "/v1/models", NULL);
    assert_int_equal(a.status, 401);
    assert_string_equal(client_header(&a, "Access-Control-Allow-Origin"), "https://example.org");
    client_free(&a);
    fake_server_close(&s);
}

static int open_small(void **state)
{
    (void)state;
    fake_server_options(&s);
    s.o.line_bytes = 200;
    s.o.headers = 10;
    s.o.header_bytes = 2000;
    s.o.body_bytes = 100000;
    fake_server_open(&s);
    return 0;
}
static int close_small(void **state)
{
    (void)state;
    fake_server_close(&s);
    return 0;
}

static void put_filler(struct sb *t, size_t n)
{
    for (size_t i = 0; i < n; i++) sb_char(t, 'x');
}

static void test_large_heads(void **state)
{
    (void)state;
    for (size_t n = 150; n < 300; n += 100) {
        struct sb t = {0};
        sb_str(&t, "GET /health?");
        put_filler(&t, n);
        sb_str(&t, " HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_int_equal(status_of(t.p), n < 200 ? 200 : 414);
        sb_free(&t);
    }
    for (int n = 9; n < 12; n++) {
        struct sb t = {0};
        sb_str(&t, "GET /health HTTP/1.1\r\nHost: x\r\n");
        for (int i = 1; i < n; i++) sb_printf(&t, "X-%d: y\r\n", i);
        sb_str(&t, "\r\n");
        assert_int_equal(status_of(t.p), n > 10 ? 431 : 200);
        sb_free(&t);
    }
    for (size_t n = 1000; n < 100000; n *= 9) {
        struct sb t = {0};
        sb_str(&t, "GET /health HTTP/1.1\r\nHost: x\r\nX: ");
        put_filler(&t, n);
        sb_str(&t, "\r\n\r\n");
        int fd = client_open(s.port);
        client_send(fd, t.p, t.n);
        struct client_answer a =
            client_answer(fd); /* what fits nowhere is libmicrohttpd's to say */
        if (n < 2000)
            assert_int_equal(a.status, 200);
        else
            assert_true(a.status == 431 || (n > 50000 && !a.status));
        client_free(&a);
        close(fd);
        sb_free(&t);
    }
}

#define POST "POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
#define JSON "Content-Type: application/json\r\n"
static void test_framing(void **state)
{
    (void)state;
    assert_int_equal(status_of(POST JSON "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}"), 400);
    assert_int_equal(
        status_of(POST JSON
                  "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        400);
    assert_int_equal(status_of(POST JSON "Transfer-Encoding: gzip\r\n\r\n{}"), 400);
    assert_int_equal(status_of(POST "Content-Length: 2\r\n\r\n{}"), 415);
    assert_int_equal(status_of(POST "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}"),
                     415);
    assert_int_equal(status_of(POST JSON "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"),
                     415);
    assert_int_equal(
        status_of(POST
                  "Content-Type: application/json; charset=latin1\r\nContent-Length: 2\r\n\r\n{}"),
        415);
    assert_int_equal(
        status_of(POST
                  "Content-Type: application/JSON; charset=UTF-8\r\nContent-Length: 2\r\n\r\n{}"),
        400);
    assert_int_equal(status_of(POST JSON "\r\n"), 400);
    assert_int_equal(status_of("BREW /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n"), 405);
    assert_int_equal(status_of("OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"), 405);
    /* said before the body: a client that asks gets no 100, nobody has to send what is refused */
    assert_int_equal(status_of(POST JSON "Content-Length: 100001\r\n\r\n"), 413);
    assert_int_equal(plain_status_of(POST JSON "Content-Length: 99999999999999999999\r\n\r\n"),
                     413);
    assert_int_equal(status_of(POST JSON "Content-Length: 100001\r\nExpect: 100-continue\r\n\r\n"),
                     413);
    int fd = client_open(s.port);
    send_text(fd, POST JSON "Content-Length: 46\r\nExpect: 100-continue\r\n\r\n");
    struct client_answer a = client_head_answer(fd);
    assert_int_equal(a.status, 100);
    client_free(&a);
    send_text(fd, "{" FAKE_MODEL "\"prompt\":\"a\",\"max_tokens\":3}   ");
    a = client_answer(fd);
    assert_int_equal(a.status, 200);
    client_free(&a);
    close(fd);
}

/* A body in chunks of `each` bytes that never ends; what the server says of it. */
static int endless_chunks(size_t each)
{
    int fd = client_open(s.port);
    struct sb chunk = {0};
    send_text(fd, POST JSON "Transfer-Encoding: chunked\r\n\r\n");
    sb_printf(&chunk, "%zx\r\n", each);
    put_filler(&chunk, each);
    sb_str(&chunk, "\r\n");
    struct pollfd p = {fd, POLLIN, 0};
    size_t sent = 0;
    while (poll(&p, 1, 0) == 0 && sent < 50000000) {
        client_send(fd, chunk.p, chunk.n);
        sent += each;
    }
    struct client_answer a = client_answer(fd);
    int status = a.status;
    client_free(&a);
    sb_free(&chunk);
    close(fd);
    assert_true(sent < 20000000);
    return status;
}

static void test_chunks(void **state)
{
    (void)state;
    /* cut within a character and within a chunk's size */
    static const char body[] =
        "{" FAKE_MODEL "\"prompt\":\"\xc3\xa9\",\"max_tokens\":1,\"echo\":true}";
    struct sb t = {0};
    sb_str(&t, POST JSON "Transfer-Encoding: chunked\r\n\r\n");
    for (size_t i = 0; i < sizeof body - 1; i++) sb_printf(&t, "1\r\n%c\r\n", body[i]);
    sb_str(&t, "0\r\n\r\n");
    int fd = client_open(s.port);
    for (size_t i = 0; i < t.n; i++) client_send(fd, t.p + i, 1);
    struct client_answer a = client_answer(fd);
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body.p, "\"text\":\"\xc3\xa9\xef\xbf\xbd\""));
    client_free(&a);
    close(fd);
    sb_free(&t);
    assert_int_equal(endless_chunks(1000), 413);
    assert_int_equal(endless_chunks(200000), 413);
    assert_int_equal(status_of(POST JSON "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400);
}

static void test_connections(void **state)
{
    (void)state;
    int fd[24];
    fake_server_options(&s);
    s.o.connections = 8;
    fake_server_open(&s);
    for (int i = 0; i < 24; i++) {
        fd[i] = client_open(s.port);
        send_text(fd[i], "GET /heal");
        client_nap(0.005);
    }
    struct client_answer a = client_ask(s.port, "/health", NULL);
    assert_int_equal(a.status, 200);
    client_free(&a);
    struct sb rest = client_rest(fd[0]); /* the oldest gave way */
    sb_free(&rest);
    send_text(fd[23], "th HTTP/1.1\r\nHost: x\r\n\r\n");
    a = client_answer(fd[23]);
    assert_int_equal(a.status, 200);
    client_free(&a);
    assert_true(client_metric(s.port, "strata_http_connections") <= 9);
    for (int i = 0; i < 24; i++) close(fd[i]);
    fake_server_close(&s);
}

static void test_overload(void **state)
{
    (void)state;
    fake_server_options(&s);
    s.o.engine.max_sequences = 1;
    s.o.engine.max_waiting = 2;
    s.lm.sleep = 2000;
    fake_server_open(&s);
    int busy = client_start(s.port, "/v1/completions", FAKE_ENDLESS);
    client_wait(s.port, "strata_num_requests_running", 1);
    int wait1 = client_start(s.port, "/v1/completions", FAKE_ENDLESS),
        wait2 = client_start(s.port, "/v1/completions", FAKE_ENDLESS);
    client_wait(s.port, "strata_num_requests_waiting", 2);
    struct client_answer a = client_ask(s.port, "/v1/completions", FAKE_SHORT);
    assert_int_equal(a.status, 503);
    assert_non_null(client_header(&a, "Retry-After"));
    assert_non_null(strstr(a.body.p, "\"overloaded\""));
    assert_false(a.closes);
    client_free(&a);
    /* before any of the body has come */
    assert_int_equal(status_of(POST JSON "Content-Length: 99999\r\n\r\n"), 503);
    assert_int_equal(status_of(POST JSON "Transfer-Encoding: chunked\r\n\r\n"), 503);
    /* what needs no place in the queue goes on */
    a = client_ask(s.port, "/tokenize", "{\"prompt\":\"ab\"}");
    assert_int_equal(a.status, 200);
    client_free(&a);
    assert_true(client_metric(s.port, "strata_requests_rejected_total{reason=\"overloaded\"}") ==
                3);
    close(wait1);
    client_wait(s.port, "strata_num_requests_waiting", 1);
    a = client_ask(s.port, "/v1/completions", "{" FAKE_MODEL "\"prompt\":\"a\",\"n\":2}");
    assert_int_equal(a.status, 503); /* one place is not enough for two answers */
    client_free(&a);
    a = client_ask(s.port, "/v1/completions", "{" FAKE_MODEL "\"prompt\":\"a\",\"n\":3}");
    assert_int_equal(a.status, 400); /* nor are all there are for three: no use to try again */
    assert_non_null(strstr(a.body.p, "2 places"));
    client_free(&a);
    client_wait(s.port, "strata_num_requests_waiting", 1);
    close(wait2);
    close(busy);
    client_wait(s.port, "strata_num_requests_running", 0);
    fake_server_close(&s);
}

/* A limit of tokens counts a body once, however many answers it asks for. */
static void test_waiting_tokens(void **state)
{
    (void)state;
    fake_server_options(&s);
    s.o.engine.max_waiting_tokens = 20;
    fake_server_open(&s);
    for (int i = 0; i < 3; i++) {
        struct client_answer a = client_ask(
            s.port, "/v1/completions",
            "{" FAKE_MODEL "\"prompt\":[\"abcdefgh\",\"b\",\"c\"],\"max_tokens\":2,\"n\":4}");
        assert_int_equal(a.status, 200);
        client_free(&a);
        client_wait(s.port, "strata_waiting_prompt_tokens", 0);
    }
    fake_server_close(&s);
}

/* Nobody goes before others where the server says so; 0 is what everybody has. */
static void test_no_priority(void **state)
{
    (void)state;
    for (int refuse = 0; refuse < 2; refuse++) {
        fake_server_options(&s);
        s.o.no_priority = refuse;
        fake_server_open(&s);
        for (int level = -1; level < 2; level++) {
            char body[256];
            snprintf(body, sizeof body, "{" FAKE_MODEL "\"prompt\":\"a\",\"priority\":%d}", level);
            struct client_answer a = client_ask(s.port, "/v1/completions", body);
            assert_int_equal(a.status, refuse && level ? 400 : 200);
            if (refuse && level) assert_non_null(strstr(a.body.p, "\"param\":\"priority\""));
            client_free(&a);
        }
        fake_server_close(&s);
    }
}

/* Clients that send bodies slowly hold no place in the queue, and of memory what they have sent. */
static void test_bodies(void **state)
{
    (void)state;
    int fd[40];
    fake_server_options(&s);
    s.o.bodies_bytes = 10000;
    s.o.engine.max_waiting = 2;
    s.o.connections = 30;
    fake_server_open(&s);
    for (int i = 0; i < 40; i++) {
        fd[i] = client_open(s.port);
        send_text(fd[i], POST JSON "Content-Length: 9000\r\n\r\n{");
        client_nap(0.002);
    }
    struct client_answer ok = client_ask(s.port, "/v1/completions", FAKE_SHORT);
    assert_int_equal(ok.status, 200);
    client_free(&ok);
    assert_true(client_metric(s.port, "strata_num_requests_waiting") == 0);
    struct sb rest = client_rest(fd[0]); /* the oldest gave way */
    sb_free(&rest);
    struct sb much = {0};
    put_filler(&much, 8900);
    client_send(fd[38], much.p, much.n);
    client_send(fd[39], much.p, much.n);
    ok = client_answer(fd[39]);
    if (ok.status != 503) fail_msg("status %d", ok.status);
    client_free(&ok);
    close(fd[38]);
    for (int i = 0; i < 40; i++)
        if (i != 38) close(fd[i]);
    client_wait(s.port, "strata_http_connections", 1);
    ok = client_ask(s.port, "/v1/completions", FAKE_SHORT);
    assert_int_equal(ok.status, 200);
    client_free(&ok);
    sb_free(&much);
    fake_server_close(&s);
}

static void test_answer_bytes(void **state)
{
    (void)state;
    fake_server_options(&s);
    s.o.answer_bytes = 1024;
    fake_server_open(&s);
    struct client_answer a = client_ask(s.port, "/v1/completions", FAKE_ENDLESS);
    assert_int_equal(a.status, 400);
    assert_non_null(strstr(a.body.p, "larger than 1024 bytes"));
    client_free(&a);
    client_wait(s.port, "strata_num_requests_running", 0);
    fake_server_close(&s);
}

static void test_port_in_use(void **state)
{
    (void)state;
    struct rt_error err;
    struct serve *second;
    fake_server_options(&s);
    fake_server_open(&s);
    struct serve_options o = s.o;
    o.port = s.port;
    const struct serve_model m = {.lm = &s.lm.lm, .tok = s.tok, .name = "m", .bos = -1};
    assert_int_equal(serve_open(&m, &o, &second, &err), RT_user);
    assert_non_null(strstr(err.text, "is in use"));
    assert_non_null(strstr(err.text, "--port"));
    o.port = 0;
    o.host = "not an address";
    assert_int_equal(serve_open(&m, &o, &second, &err), RT_user);
    o.host = "127.0.0.1";
    o.connections = 0;
    assert_int_equal(serve_open(&m, &o, &second, &err), RT_usage);
    assert_non_null(strstr(err.text, "--max-connections"));
    fake_server_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_key),
        cmocka_unit_test(test_cors),
        cmocka_unit_test_setup_teardown(test_large_heads, open_small, close_small),
        cmocka_unit_test_setup_teardown(test_framing, open_small, close_small),
        cmocka_unit_test_setup_teardown(test_chunks, open_small, close_small),
        cmocka_unit_test(test_connections),
        cmocka_unit_test(test_overload),
        cmocka_unit_test(test_waiting_tokens),
        cmocka_unit_test(test_no_priority),
        cmocka_unit_test(test_bodies),
        cmocka_unit_test(test_answer_bytes),
        cmocka_unit_test(test_port_in_use)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
