/* See http_reader.h. */
#include "runtime/http_reader.h"
#include <stdlib.h>
#include <strings.h>

enum state {
    S_status,
    S_header,
    S_fixed,     /* a body of `left` more bytes */
    S_until_end, /* a body until the connection ends */
    S_chunk_size,
    S_chunk,
    S_chunk_end, /* the empty line behind a chunk */
    S_trailer,
    S_end,
    S_bad
};

/* Digits only, as in Content-Length and chunk sizes: no sign, no space, no overflow. */
static bool number(struct str s, unsigned base, uint64_t *out)
{
    uint64_t x = 0;
    if (!s.n) return false;
    for (size_t i = 0; i < s.n; i++) {
        unsigned c = (unsigned char)s.p[i], letter = c | 32;
        unsigned d = c >= '0' && c <= '9' ? c - '0' : letter >= 'a' ? letter - 'a' + 10 : 99;
        if (d >= base || x > (UINT64_MAX >> 2) / base) return false;
        x = x * base + d;
    }
    *out = x;
    return true;
}

static struct str trimmed(struct str s)
{
    while (s.n && (s.p[0] == ' ' || s.p[0] == '\t')) s.p++, s.n--;
    while (s.n && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t')) s.n--;
    return s;
}

static bool is_word(struct str s, const char *word)
{
    return s.n == strlen(word) && !strncasecmp(s.p, word, s.n);
}

/* "HTTP/1.1 200 OK" */
static bool status_line(struct http_reader *r)
{
    uint64_t status = 0;
    if (r->n < 12 || memcmp(r->line, "HTTP/1.", 7) || r->line[8] != ' ' ||
        (r->n > 12 && r->line[12] != ' ') || !number((struct str){r->line + 9, 3}, 10, &status) ||
        status < 100)
        return false;
    r->status = (int)status;
    r->retry_after = -1;
    r->length = -1;
    return true;
}

static bool header_line(struct http_reader *r)
{
    const char *colon = memchr(r->line, ':', r->n);
    if (!colon || colon == r->line) return false;
    struct str name = {r->line, (size_t)(colon - r->line)};
    struct str value = trimmed((struct str){colon + 1, r->n - name.n - 1});
    uint64_t x = 0;
    if (is_word(name, "content-length")) {
        if (!number(value, 10, &x) || (r->has_length && x != r->left)) return false;
        r->has_length = true;
        r->left = x;
    } else if (is_word(name, "transfer-encoding")) {
        if (!is_word(value, "chunked")) return false;
        r->chunked = true;
    } else if (is_word(name, "content-type")) {
        r->events = value.n >= 17 && !strncasecmp(value.p, "text/event-stream", 17);
    } else if (is_word(name, "retry-after")) {
        if (number(value, 10, &x)) r->retry_after = x < 1 << 30 ? (int)x : 1 << 30;
    }
    return true;
}

/* What follows the head. */
static enum state body_state(struct http_reader *r)
{
    if (r->status < 200) { /* 100 Continue and the like: another head follows */
        int lines = r->lines;
        *r = (struct http_reader){.state = S_status, .lines = lines};
        return S_status;
    }
    if (r->chunked && r->has_length) return S_bad; /* two meanings of where it ends */
    if (r->status == 204 || r->status == 304) return S_end;
    if (r->chunked) return S_chunk_size;
    if (!r->has_length) return S_until_end;
    r->length = (int64_t)r->left;
    return r->left ? S_fixed : S_end;
}

static enum state chunk_size(struct http_reader *r)
{
    const char *semicolon = memchr(r->line, ';', r->n);
    struct str size = {r->line, semicolon ? (size_t)(semicolon - r->line) : r->n};
    if (!number(trimmed(size), 16, &r->left)) return S_bad;
    r->lines = 0;
    return r->left ? S_chunk : S_trailer;
}

static enum state take_line(struct http_reader *r)
{
    if (r->n && r->line[r->n - 1] == '\r') r->n--;
    if (++r->lines > HTTP_LINES && r->state != S_chunk_size) return S_bad;
    switch (r->state) {
    case S_status: return status_line(r) ? S_header : S_bad;
    case S_header: return !r->n ? body_state(r) : header_line(r) ? S_header : S_bad;
    case S_chunk_size: return chunk_size(r);
    case S_chunk_end: return r->n ? S_bad : S_chunk_size;
    default: return r->n ? S_trailer : S_end;
    }
}

/* Reads a line, and says how many bytes that took. */
static size_t read_line(struct http_reader *r, const char *p, size_t n)
{
    const char *nl = memchr(p, '\n', n);
    size_t m = nl ? (size_t)(nl - p) : n;
    if (m > sizeof r->line - r->n) {
        r->state = S_bad;
        return 0;
    }
    memcpy(r->line + r->n, p, m);
    r->n += m;
    if (!nl) return n;
    r->state = (int)take_line(r);
    r->n = 0;
    return m + 1;
}

enum http_got http_read(struct http_reader *r, const char *p, size_t n, size_t *used,
                        struct str *body)
{
    *used = 0;
    while (r->state != S_end && r->state != S_bad && *used < n) {
        const char *at = p + *used;
        size_t rest = n - *used;
        if (r->state != S_fixed && r->state != S_until_end && r->state != S_chunk) {
            *used += read_line(r, at, rest);
            continue;
        }
        size_t m = r->state != S_until_end && rest > r->left ? (size_t)r->left : rest;
        *body = (struct str){at, m};
        *used += m;
        if (r->state != S_until_end && !(r->left -= m))
            r->state = r->state == S_chunk ? S_chunk_end : S_end;
        return HTTP_body;
    }
    return r->state == S_end ? HTTP_end : r->state == S_bad ? HTTP_bad : HTTP_more;
}

bool http_ends(const struct http_reader *r)
{
    return r->state == S_until_end || r->state == S_end;
}

/* ---- events ---- */

/* A line is whole: "data: ..." adds to the event, an empty one ends it. */
static bool sse_line(struct sse_reader *r, bool (*event)(void *arg, struct str data), void *arg)
{
    struct str s = {r->line.p, r->line.n};
    r->line.n = 0;
    if (!s.n) {
        struct str data = {r->data.p, r->data.n};
        bool has = r->has_data;
        r->data.n = 0;
        r->has_data = false;
        return !has || event(arg, data);
    }
    if (s.n < 5 || memcmp(s.p, "data:", 5)) return true;
    size_t from = s.n > 5 && s.p[5] == ' ' ? 6 : 5;
    if (r->data.n + s.n > SSE_EVENT) return false;
    if (r->has_data) sb_char(&r->data, '\n');
    sb_add(&r->data, s.p + from, s.n - from);
    r->has_data = true;
    return true;
}

bool sse_read(struct sse_reader *r, struct str bytes, bool (*event)(void *arg, struct str data),
              void *arg)
{
    for (size_t i = 0; i < bytes.n;) {
        if (bytes.p[i] == '\n' || bytes.p[i] == '\r') {
            bool half = bytes.p[i] == '\n' && r->after_cr; /* of one that was taken */
            r->after_cr = bytes.p[i++] == '\r';
            if (!half && !sse_line(r, event, arg)) return false;
            continue;
        }
        size_t m = i;
        while (m < bytes.n && bytes.p[m] != '\n' && bytes.p[m] != '\r') m++;
        if (r->line.n + (m - i) > SSE_EVENT) return false;
        sb_add(&r->line, bytes.p + i, m - i);
        r->after_cr = false;
        i = m;
    }
    return true;
}

void sse_close(struct sse_reader *r)
{
    sb_free(&r->line);
    sb_free(&r->data);
    *r = (struct sse_reader){0};
}
