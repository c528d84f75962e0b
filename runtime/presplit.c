#include "runtime/presplit.h"
#include "runtime/utf8.h"
#include <stdlib.h>

enum { GUARD_TEXT = 400000, GUARD_RUN = 25000 };

struct splitter {
    const struct split_rules *r;
    struct matcher *matcher;
    bool first[256];  /* bytes that begin the name of a special token to be found */
    bool always_only; /* names of ordinary special tokens are text */
    size_t longest;   /* name */
    struct sb copy;   /* a piece with its spaces put in place */
    uint64_t begin;   /* of the present segment, an offset in the text */
    bool fresh;       /* no special token came before it */
    /* the guard */
    uint64_t scanned, cut; /* offsets: read so far; of the next cut */
    bool has_cut, run_space;
    uint32_t chars, run;
    /* special tokens */
    uint64_t searched;                 /* no name begins before this offset */
    const struct split_special *found; /* begins at `searched` */
};

bool split_joined(const struct split_rules *r, uint32_t first, uint32_t second)
{
    uint64_t key = split_join(first, second);
    for (size_t i = (size_t)(key * 0x9e3779b97f4a7c15u >> 32) & (r->joined_size - 1); r->joined[i];
         i = (i + 1) & (r->joined_size - 1))
        if (r->joined[i] == key) return true;
    return false;
}

int split_special_order(const void *a, const void *b)
{
    const struct split_special *x = a, *y = b;
    int d = (unsigned char)x->text.p[0] - (unsigned char)y->text.p[0];
    if (d) return d;
    if (x->text.n != y->text.n) return x->text.n > y->text.n ? -1 : 1;
    return str_cmp(x->text, y->text);
}

enum rt_status splitter_open(const struct split_rules *r, bool special, struct splitter **out,
                             struct rt_error *err)
{
    struct splitter *s = *out = calloc(1, sizeof *s);
    if (!s) return rt_fail(err, RT_machine, "no memory to cut a text");
    s->r = r;
    s->always_only = !special;
    for (size_t i = 0; i < r->num_special; i++) {
        const struct split_special *t = &r->special[i];
        if (!special && !t->always) continue;
        s->first[(unsigned char)t->text.p[0]] = true;
        if (t->text.n > s->longest) s->longest = t->text.n;
    }
    enum rt_status st = r->pattern ? matcher_open(r->pattern, &s->matcher, err) : RT_ok;
    if (st == RT_ok) return RT_ok;
    free(s);
    *out = NULL;
    return st;
}

void splitter_close(struct splitter *s)
{
    if (!s) return;
    matcher_close(s->matcher);
    sb_free(&s->copy);
    free(s);
}

/* ---- segments ---- */

/* Python's str.isspace: White_Space and the four information separators. */
static bool is_space(uint32_t c)
{
    if (c < 0x80) return c == 0x20 || (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x1f);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Reads on to the next cut of the guard or the end of the part. */
static void guard(struct splitter *s, const struct tok_part *p)
{
    size_t i = p->from + (size_t)(s->scanned - p->offset);
    while (i < p->text.n && !s->has_cut) {
        uint32_t c;
        int n = utf8_next(p->text.p + i, p->text.n - i, &c);
        CHECK(n > 0);
        bool space = is_space(c), cut = false;
        if (s->chars == GUARD_TEXT) s->chars = s->run = 0, cut = true;
        if (!s->chars) s->run_space = space;
        s->chars++;
        if (space != s->run_space) {
            s->run_space = space;
            s->run = 1;
        } else if (++s->run > GUARD_RUN) {
            s->run = 1;
            cut = true;
        }
        if (cut) s->has_cut = true, s->cut = s->scanned;
        i += (size_t)n;
        s->scanned += (size_t)n;
    }
}

/* The longest name at the beginning of `at`. */
static const struct split_special *name_at(const struct splitter *s, struct str at)
{
    const struct split_rules *r = s->r;
    size_t lo = 0, hi = r->num_special;
    while (lo < hi) { /* the first of that byte */
        size_t mid = lo + (hi - lo) / 2;
        if ((unsigned char)r->special[mid].text.p[0] < (unsigned char)at.p[0])
            lo = mid + 1;
        else
            hi = mid;
    }
    for (; lo < r->num_special && r->special[lo].text.p[0] == at.p[0]; lo++) {
        const struct split_special *t = &r->special[lo];
        if ((t->always || !s->always_only) && t->text.n <= at.n &&
            !memcmp(t->text.p, at.p, t->text.n))
            return t;
    }
    return NULL;
}

/* Looks for a name that ends at or before `end`; where more text may come (not hard), one that is
 * cut there must not be missed. */
static void search(struct splitter *s, const struct tok_part *p, size_t end, bool hard)
{
    if (s->found) return;
    if (s->searched < p->offset) s->searched = p->offset;
    size_t i = p->from + (size_t)(s->searched - p->offset);
    if (!hard) end = end >= s->longest ? end - s->longest + 1 : 0;
    for (; i < end && !s->found; i++) {
        if (!s->first[(unsigned char)p->text.p[i]]) continue;
        size_t room = (hard ? end : end + s->longest - 1) - i;
        s->found = name_at(s, (struct str){p->text.p + i, room});
        if (s->found) break;
    }
    s->searched = p->offset + (i - p->from);
}

/* Where the present segment ends in the part, as far as it is known; *hard: it ends there. */
static size_t segment(struct splitter *s, const struct tok_part *p, bool *hard)
{
    size_t end = p->text.n;
    *hard = p->last;
    if (s->r->guard) {
        guard(s, p);
        if (s->has_cut) end = p->from + (size_t)(s->cut - p->offset), *hard = true;
    }
    if (!s->longest) return end;
    search(s, p, end, *hard);
    size_t to = p->from + (size_t)(s->searched - p->offset);
    if (s->found) {
        *hard = true;
        return to;
    }
    if (*hard) return end;
    if (to > end) to = end;
    while (to > p->from && to < p->text.n && (p->text.p[to] & 0xc0) == 0x80) to--;
    return to;
}

/* ---- pieces ---- */

static void move(struct tok_part *p, size_t to)
{
    p->offset += to - p->from;
    p->from = to;
}

/* The next piece by the pattern: *done when more text is needed. */
static enum rt_status by_pattern(struct splitter *s, struct tok_part *p, size_t end, bool hard,
                                 const struct split_sink *sink, bool *done, struct rt_error *err)
{
    size_t back = (size_t)(p->offset - s->begin), base, begin, to;
    enum match what;
    base = back < p->from ? p->from - back : 0;
    while (base < p->from && (p->text.p[base] & 0xc0) == 0x80) base++;
    struct str view = {p->text.p + base, end - base};
    RT_TRY(matcher_next(s->matcher, view, p->from - base, !hard, &what, &begin, &to, err));
    if (what == MATCH_more || (what == MATCH_none && !hard)) {
        *done = true;
        return RT_ok;
    }
    /* what a pattern leaves out is a piece too: text is never lost */
    begin = what == MATCH_none ? end : base + begin;
    to = what == MATCH_none ? end : base + to;
    if (begin > p->from)
        RT_TRY(sink->piece(sink->to, (struct str){p->text.p + p->from, begin - p->from}, err));
    if (to > begin) RT_TRY(sink->piece(sink->to, (struct str){p->text.p + begin, to - begin}, err));
    move(p, to);
    return RT_ok;
}

/* The next piece without a pattern. */
static enum rt_status by_joins(struct splitter *s, struct tok_part *p, size_t end, bool hard,
                               const struct split_sink *sink, bool *done, struct rt_error *err)
{
    const struct split_rules *r = s->r;
    size_t i = p->from, lone = 0; /* lone: bytes of an added space that is a piece by itself */
    uint32_t before = 0;
    s->copy.n = 0;
    bool add = p->offset == s->begin && (s->fresh ? r->space_first : r->space_each);
    struct str rest = {p->text.p + i, end - i};
    if (add && r->space_once && rest.n < 3 && !hard) {
        *done = true; /* the first character may be cut off */
        return RT_ok;
    }
    if (add && !(r->space_once &&
                 (str_starts(rest, " ") || (r->spaces && str_starts(rest, "\xe2\x96\x81"))))) {
        sb_char(&s->copy, ' ');
        before = ' ';
    }
    for (uint32_t c; i < end; before = c) {
        int n = utf8_next(p->text.p + i, end - i, &c);
        CHECK(n > 0);
        if (r->spaces && c == 0x2581) c = ' ';
        if (s->copy.n && ((r->space_cuts && c == ' ') || !split_joined(r, before, c))) {
            if (i > p->from) break;
            lone = s->copy.n;
        }
        if (c == ' ')
            sb_char(&s->copy, ' ');
        else
            sb_add(&s->copy, p->text.p + i, (size_t)n);
        i += (size_t)n;
    }
    *done = i == end && !hard;
    if (*done) return RT_ok;
    if (lone) RT_TRY(sink->piece(sink->to, (struct str){s->copy.p, lone}, err));
    RT_TRY(sink->piece(sink->to, (struct str){s->copy.p + lone, s->copy.n - lone}, err));
    move(p, i);
    return RT_ok;
}

enum rt_status splitter_run(struct splitter *s, struct tok_part *p, const struct split_sink *sink,
                            struct rt_error *err)
{
    if (!p->offset) {
        s->begin = s->scanned = s->searched = 0;
        s->chars = s->run = 0;
        s->has_cut = false;
        s->found = NULL;
        s->fresh = true;
    }
    for (bool done = false; !done;) {
        bool hard;
        size_t end = segment(s, p, &hard);
        if (p->from < end) {
            RT_TRY(s->r->pattern ? by_pattern(s, p, end, hard, sink, &done, err)
                                 : by_joins(s, p, end, hard, sink, &done, err));
        } else if (s->found) {
            RT_TRY(sink->special(sink->to, s->found->id, err));
            move(p, p->from + s->found->text.n);
            s->found = NULL;
            s->fresh = false;
            s->begin = s->searched = p->offset;
        } else if (s->has_cut && s->cut == p->offset) {
            s->has_cut = false;
            s->begin = p->offset;
        } else {
            done = true;
        }
    }
    return RT_ok;
}
