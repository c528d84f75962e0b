#include "runtime/stops.h"

/* One automaton per string (Knuth, Morris, Pratt): `at` bytes of it are the end of the text so far,
 * as many as possible. The longest of these ends is what is held back, and since it is a beginning
 * of its string, no other copy of it is kept. */
struct stop {
    struct str text;
    uint16_t *fail; /* fail[k]: the longest proper end of text[0..k) that is a beginning of text */
    size_t at;
};
struct stops {
    struct stop *stop;
    size_t n;
    size_t held; /* of longest->text */
    const struct stop *longest;
    bool found;
};

static size_t step(const struct stop *s, size_t at, char b)
{
    while (at && s->text.p[at] != b) at = s->fail[at];
    return at + (s->text.p[at] == b);
}

struct stops *stops_open(struct arena *a, const struct str *stop, size_t n)
{
    struct stops *s = NEW(a, struct stops, 1);
    s->stop = NEW(a, struct stop, n);
    s->n = n;
    for (size_t i = 0; i < n; i++) {
        struct stop *t = &s->stop[i];
        CHECK(stop[i].n > 0 && stop[i].n <= UINT16_MAX);
        t->text = (struct str){str_dup(a, stop[i]), stop[i].n};
        t->fail = NEW(a, uint16_t, t->text.n + 1);
        for (size_t k = 1; k < t->text.n; k++)
            t->fail[k + 1] = (uint16_t)step(t, t->fail[k], t->text.p[k]);
    }
    return s;
}

/* Appends the first n bytes of what is held and byte b behind it. */
static void emit(const struct stops *s, size_t n, char b, struct sb *out)
{
    size_t of_held = n < s->held ? n : s->held;
    if (of_held) sb_add(out, s->longest->text.p, of_held);
    if (n > s->held) sb_char(out, b);
}

bool stops_add(struct stops *s, struct str part, struct sb *out)
{
    if (!s->n && part.n) sb_add(out, part.p, part.n);
    for (size_t i = 0; s->n && !s->found && i < part.n; i++) {
        const struct stop *longest = NULL;
        size_t whole = 0;
        for (size_t k = 0; k < s->n; k++) {
            struct stop *t = &s->stop[k];
            t->at = step(t, t->at, part.p[i]);
            if (!longest || t->at > longest->at) longest = t;
            if (t->at == t->text.n && t->at > whole) whole = t->at;
        }
        s->found = whole > 0;
        emit(s, s->held + 1 - (whole ? whole : longest->at), part.p[i], out);
        s->longest = longest;
        s->held = whole ? 0 : longest->at;
    }
    return s->found;
}

void stops_end(struct stops *s, struct sb *out)
{
    if (s->held) sb_add(out, s->longest->text.p, s->held);
    s->held = 0;
    for (size_t k = 0; k < s->n; k++) s->stop[k].at = 0;
}

size_t stops_held(const struct stops *s)
{
    return s->held;
}

bool answer_text_add(struct answer_text *t, const struct tokenizer *tok, int32_t id, struct sb *out)
{
    t->piece.n = 0;
    tok_stream_add(&t->utf8, tok, id, &t->piece);
    return stops_add(t->stops, (struct str){t->piece.p, t->piece.n}, out);
}

bool answer_text_end(struct answer_text *t, struct sb *out)
{
    t->piece.n = 0;
    tok_stream_end(&t->utf8, &t->piece);
    bool found = stops_add(t->stops, (struct str){t->piece.p, t->piece.n}, out);
    stops_end(t->stops, out);
    return found;
}

void answer_text_close(struct answer_text *t)
{
    sb_free(&t->piece);
}
