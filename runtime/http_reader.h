/* Answers of an HTTP/1.1 server and server-sent events, read in whatever pieces they come: state
 * machines without I/O. No input crashes them or makes them hold more than the limits below. */
#ifndef STRATA_RUNTIME_HTTP_READER_H
#define STRATA_RUNTIME_HTTP_READER_H
#include "base/str.h"

enum {
    HTTP_LINE = 8192,    /* bytes of a line of the head, or of a chunk's size */
    HTTP_LINES = 128,    /* lines of a head or a trailer */
    SSE_EVENT = 4 << 20, /* bytes of an event's data, and of one line */
};

/* An answer. Zero-initialise to start; the members above the line are valid once the head is read.
 */
struct http_reader {
    int status;
    int retry_after;      /* seconds of Retry-After, -1 without */
    bool chunked, events; /* the body's form: chunks; text/event-stream */
    int64_t length;       /* of the body; -1: chunked, or until the connection ends */
    /* ---- */
    int state;
    bool has_length;
    int lines;
    uint64_t left; /* of the body or chunk */
    size_t n;
    char line[HTTP_LINE];
};
enum http_got {
    HTTP_more, /* all was used, the answer goes on */
    HTTP_body, /* *body is a part of the body, within the input */
    HTTP_end,  /* the answer is over; what is left of the input belongs to the next */
    HTTP_bad,  /* this is no answer; the reader is of no more use */
};
/* Reads from p[0..n); *used says how far. To be called again for the rest after HTTP_body. */
enum http_got http_read(struct http_reader *r, const char *p, size_t n, size_t *used,
                        struct str *body);
/* Whether the end of the connection is a fair end here: of a body without a length. */
bool http_ends(const struct http_reader *r);

/* Events. Zero-initialise to start, sse_close to end. */
struct sse_reader {
    struct sb line, data;
    bool has_data, after_cr;
};
/* Gives the data of each event that is complete to `event`, which says whether to go on. False:
 * it said no, or a line or event is longer than SSE_EVENT. */
bool sse_read(struct sse_reader *r, struct str bytes, bool (*event)(void *arg, struct str data),
              void *arg);
void sse_close(struct sse_reader *r);
#endif
