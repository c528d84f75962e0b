/* Texts in parts: what is not done yet is kept until there is more of it. */
#include "runtime/tokenize.h"
#include "runtime/nfc.h"
#include "runtime/pattern.h"
#include "runtime/utf8.h"
#include <stdlib.h>

struct tok_encoder {
    const struct tokenizer *t;
    void *state;
    bool check;      /* for UTF-8 */
    struct sb held;  /* context, text that is not done, a cut character */
    size_t from;     /* of held: where what is not done begins */
    size_t valid;    /* of held: checked to be whole characters */
    size_t want;     /* bytes of held without which trying again would be wasted */
    uint64_t offset; /* of held.p[from] in the text */
    /* a text that is normalized first: what may still change with what follows, checked so far */
    struct sb raw;
    size_t raw_valid;
    uint64_t raw_offset;
};

enum rt_status tok_encoder_open(const struct tokenizer *t, unsigned flags, struct tok_encoder **out,
                                struct rt_error *err)
{
    struct tok_encoder *e = *out = calloc(1, sizeof *e);
    if (!e) return rt_fail(err, RT_machine, "no memory to encode a text");
    e->t = t;
    e->check = !t->ops->any_bytes || (flags & TOK_utf8);
    if (!t->ops->state_open) return RT_ok;
    enum rt_status st = t->ops->state_open(t, flags & TOK_special, &e->state, err);
    if (st == RT_ok) return RT_ok;
    free(e);
    *out = NULL;
    return st;
}

void tok_encoder_close(struct tok_encoder *e)
{
    if (!e) return;
    if (e->state) e->t->ops->state_close(e->state);
    sb_free(&e->held);
    sb_free(&e->raw);
    free(e);
}

/* Moves *valid, whose offset in the text is `offset`, behind the whole characters of s. */
static enum rt_status check(struct str s, bool last, size_t *valid, uint64_t offset,
                            struct rt_error *err)
{
    size_t first = *valid, i = first;
    while (i < s.n) {
        uint64_t eight; /* mostly ASCII */
        if (s.n - i >= 8 && (memcpy(&eight, s.p + i, 8), !(eight & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        uint32_t cp;
        int n = utf8_next(s.p + i, s.n - i, &cp);
        if (n < 0 && !last) break;
        if (n <= 0)
            return rt_fail(err, RT_user, "invalid UTF-8 at byte %llu of the text",
                           (unsigned long long)(offset + (i - first)));
        i += (size_t)n;
    }
    *valid = i;
    return RT_ok;
}

/* Adds a part to `raw` and moves the normal form of what cannot change any more to `held`. */
static enum rt_status normalize(struct tok_encoder *e, struct str part, bool last,
                                struct rt_error *err)
{
    size_t before = e->raw_valid;
    sb_add(&e->raw, part.p ? part.p : "", part.n);
    struct str s = {e->raw.p, e->raw.n};
    RT_TRY(check(s, last, &e->raw_valid, e->raw_offset + before, err));
    size_t cut = e->raw_valid;
    while (!last && cut > 0) { /* in front of the last character that begins */
        uint32_t cp;
        do cut--;
        while (cut > 0 && (s.p[cut] & 0xc0) == 0x80);
        if (cut < before) cut = 0; /* there was none in what came before */
        if (cut && utf8_next(s.p + cut, s.n - cut, &cp) > 0 && nfc_begins(cp)) break;
    }
    nfc_add((struct str){s.p, cut}, &e->held);
    memmove(e->raw.p, e->raw.p + cut, e->raw.n - cut);
    e->raw.n -= cut;
    e->raw_valid -= cut;
    e->raw_offset += cut;
    return RT_ok;
}

static enum rt_status encode(struct tok_encoder *e, struct str text, bool last, struct tok_ids *out,
                             struct rt_error *err)
{
    struct tok_part p = {{text.p, e->valid}, e->from, e->offset, last};
    RT_TRY(e->t->ops->encode(e->t, e->state, &p, out, err));
    CHECK(p.from <= e->valid && (!last || p.from == text.n));
    e->from = p.from;
    e->offset = p.offset;
    return RT_ok;
}

/* Forgets what is done but for the context of patterns. */
static void drop(struct tok_encoder *e)
{
    if (e->from <= PATTERN_CONTEXT) return;
    size_t cut = e->from - PATTERN_CONTEXT;
    while (cut < e->from && (e->held.p[cut] & 0xc0) == 0x80) cut++;
    memmove(e->held.p, e->held.p + cut, e->held.n - cut);
    e->held.n -= cut;
    e->from -= cut;
    e->valid -= cut;
}

enum rt_status tok_encoder_add(struct tok_encoder *e, struct str part, bool last,
                               struct tok_ids *out, struct rt_error *err)
{
    struct str text = part;
    bool plain = !e->t->nfc || (last && !e->raw.n && nfc_plain(part));
    bool whole = plain && last && !e->held.n; /* without a copy */
    if (!plain) RT_TRY(normalize(e, part, last, err));
    if (plain && !whole) sb_add(&e->held, part.p ? part.p : "", part.n);
    if (!whole) text = (struct str){e->held.p ? e->held.p : "", e->held.n};
    if (!plain || !e->check)
        e->valid = text.n;
    else
        RT_TRY(check(text, last, &e->valid, e->offset + (e->valid - e->from), err));
    if (last || e->valid >= e->want) RT_TRY(encode(e, text, last, out, err));
    if (last) {
        e->held.n = e->from = e->valid = e->want = 0;
        e->offset = e->raw_offset = 0;
    } else if (e->valid >= e->want) {
        drop(e);
        /* a long piece is tried again only when it is twice as long */
        e->want = e->from + 2 * (e->valid - e->from);
    }
    return RT_ok;
}

enum rt_status tokenizer_encode(const struct tokenizer *t, struct str text, struct tok_ids *out,
                                struct rt_error *err)
{
    struct tok_encoder *e;
    RT_TRY(tok_encoder_open(t, 0, &e, err));
    enum rt_status st = tok_encoder_add(e, text, true, out, err);
    tok_encoder_close(e);
    return st;
}
