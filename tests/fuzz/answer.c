/* Fuzz target: any bytes as what a server answers. Read whole or a byte at a time, the body, the
 * events and the end are the same, and nothing is longer than its limit. */
#include "runtime/http_reader.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct seen {
    struct http_reader http;
    struct sse_reader sse;
    struct sb text;
    enum http_got end;
};

static bool on_event(void *arg, struct str data)
{
    struct seen *s = arg;
    CHECK(data.n <= SSE_EVENT);
    sb_add(&s->text, data.p ? data.p : "", data.n);
    sb_char(&s->text, 0);
    return true;
}

static void read_in_pieces(struct seen *s, const char *p, size_t n, size_t step)
{
    *s = (struct seen){.end = HTTP_more};
    for (size_t at = 0; at < n && s->end == HTTP_more;) {
        size_t used = 0, m = n - at < step ? n - at : step;
        struct str body = {0};
        s->end = http_read(&s->http, p + at, m, &used, &body);
        CHECK(used <= m);
        at += used;
        if (s->end != HTTP_body) continue;
        CHECK(body.n && body.p >= p && body.p + body.n <= p + n);
        CHECK(sse_read(&s->sse, body, on_event, s)); /* inputs are shorter than the limit */
        s->end = HTTP_more;
    }
    CHECK(s->http.n <= HTTP_LINE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct seen a, b;
    read_in_pieces(&a, (const char *)data, size, size);
    read_in_pieces(&b, (const char *)data, size, 1);
    CHECK(a.http.status == b.http.status && a.http.state == b.http.state);
    CHECK(a.text.n == b.text.n && (!a.text.n || !memcmp(a.text.p, b.text.p, a.text.n)));
    CHECK(http_ends(&a.http) == http_ends(&b.http));
    struct seen *both[] = {&a, &b};
    for (int i = 0; i < 2; i++) {
        sse_close(&both[i]->sse);
        sb_free(&both[i]->text);
    }
    return 0;
}
