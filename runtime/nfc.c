#include "runtime/nfc.h"
#include "runtime/utf8.h"
#include <stdlib.h>

enum { FIRST = 0x300 }; /* below it every character is normal and starts anew */
enum { S = 0xac00, L = 0x1100, V = 0x1161, T = 0x11a7, VS = 21, TS = 28, SS = 11172 }; /* Hangul */

static const struct decomposition {
    uint32_t c, first, second;
} decompositions[] = {
#define DECOMPOSE(c, first, second) {c, first, second},
#include "runtime/nfc.def"
};
static const struct composition {
    uint32_t first, second, c;
} compositions[] = {
#define COMPOSE(first, second, c) {first, second, c},
#include "runtime/nfc.def"
};
static const struct class_run {
    uint32_t first, last;
    uint8_t ccc;
} classes[] = {
#define CLASS(first, last, ccc) {first, last, ccc},
#include "runtime/nfc.def"
};
#define COUNT(a) (sizeof(a) / sizeof *(a))

static unsigned class_of(uint32_t c)
{
    size_t lo = 0, hi = COUNT(classes);
    if (c < FIRST) return 0;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (c > classes[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < COUNT(classes) && c >= classes[lo].first ? classes[lo].ccc : 0;
}

static const struct decomposition *decomposition_of(uint32_t c)
{
    size_t lo = 0, hi = COUNT(decompositions);
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (c > decompositions[mid].c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < COUNT(decompositions) && decompositions[lo].c == c ? &decompositions[lo] : NULL;
}

/* The character that two become, or 0. */
static uint32_t compose(uint32_t first, uint32_t second)
{
    if (first - L < S - L && first < L + 19 && second - V < VS)
        return S + ((first - L) * VS + (second - V)) * TS;
    if (first - S < SS && (first - S) % TS == 0 && second > T && second < T + TS)
        return first + (second - T);
    size_t lo = 0, hi = COUNT(compositions);
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const struct composition *p = &compositions[mid];
        if (first > p->first || (first == p->first && second > p->second))
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == COUNT(compositions)) return 0;
    const struct composition *p = &compositions[lo];
    return p->first == first && p->second == second ? p->c : 0;
}

bool nfc_begins(uint32_t c)
{
    static const uint32_t back[] = {
#define BACK(c) c,
#include "runtime/nfc.def"
    };
    if (c < FIRST) return true;
    if (class_of(c) || c - V < VS || (c > T && c < T + TS)) return false;
    for (size_t i = 0; i < COUNT(back) && back[i] <= c; i++)
        if (back[i] == c) return false;
    return true;
}

bool nfc_plain(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] >= 0xcc) return false; /* leads a character from U+0300 on */
    return true;
}

struct letters {
    uint32_t *c;
    size_t n, cap;
};

static void put(struct letters *l, uint32_t c)
{
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 64;
        l->c = realloc(l->c, l->cap * sizeof *l->c);
        if (!l->c) BUG("no memory for %zu characters", l->cap);
    }
    l->c[l->n++] = c;
}

static void decompose(struct letters *l, uint32_t c)
{
    if (c - S < SS) {
        uint32_t i = c - S;
        put(l, L + i / (VS * TS));
        put(l, V + i % (VS * TS) / TS);
        if (i % TS) put(l, T + i % TS);
        return;
    }
    const struct decomposition *d = decomposition_of(c);
    if (!d) {
        put(l, c);
        return;
    }
    decompose(l, d->first);
    if (d->second) put(l, d->second); /* never decomposes further */
}

/* Puts each run of marks in the order of their classes, equal ones as they came. */
static void order(struct letters *l)
{
    for (size_t i = 0, end; i < l->n; i = end) {
        end = i + 1;
        if (!class_of(l->c[i])) continue;
        while (end < l->n && class_of(l->c[end])) end++;
        if (end - i == 1) continue;
        struct letters sorted = {.n = 0};
        for (unsigned k = 1; k < 256; k++)
            for (size_t j = i; j < end; j++)
                if (class_of(l->c[j]) == k) put(&sorted, l->c[j]);
        memcpy(l->c + i, sorted.c, (end - i) * sizeof *l->c);
        free(sorted.c);
    }
}

static void recompose(struct letters *l)
{
    size_t n = 0, starter = SIZE_MAX;
    unsigned last = 0; /* class of the character before, in the result */
    for (size_t i = 0; i < l->n; i++) {
        uint32_t c = l->c[i], joined;
        unsigned k = class_of(c);
        bool next = starter != SIZE_MAX && n == starter + 1;
        if (starter != SIZE_MAX && (next || (last && last < k)) &&
            (joined = compose(l->c[starter], c))) {
            l->c[starter] = joined;
            continue;
        }
        if (!k) starter = n;
        last = k;
        l->c[n++] = c;
    }
    l->n = n;
}

void nfc_add(struct str s, struct sb *out)
{
    struct letters l = {.n = 0};
    char text[UTF8_MAX];
    uint32_t c = 0;
    for (size_t i = 0, end; i < s.n; i = end) {
        /* from a character that begins to the next one that does */
        l.n = 0;
        for (end = i; end < s.n;) {
            int k = utf8_next(s.p + end, s.n - end, &c);
            CHECK(k > 0);
            if (end > i && nfc_begins(c)) break;
            put(&l, c);
            end += (size_t)k;
        }
        if (l.n == 1 && l.c[0] < FIRST) {
            sb_add(out, s.p + i, end - i);
            continue;
        }
        size_t n = l.n;
        for (size_t k = 0; k < n; k++) decompose(&l, l.c[k]);
        memmove(l.c, l.c + n, (l.n - n) * sizeof *l.c);
        l.n -= n;
        order(&l);
        recompose(&l);
        for (size_t k = 0; k < l.n; k++) sb_add(out, text, (size_t)utf8_put(l.c[k], text));
    }
    free(l.c);
}
