#include "base/str.h"
#include "base/map.h"
#include "base/vec.h"
#include <stdio.h>
#include <stdlib.h>

bool str_starts(struct str s, const char *prefix)
{
    size_t n = strlen(prefix);
    return s.n >= n && memcmp(s.p, prefix, n) == 0;
}

bool str_ends(struct str s, const char *suffix)
{
    size_t n = strlen(suffix);
    return s.n >= n && memcmp(s.p + s.n - n, suffix, n) == 0;
}

int str_cmp(struct str a, struct str b)
{
    size_t n = a.n < b.n ? a.n : b.n;
    int c = n ? memcmp(a.p, b.p, n) : 0;
    return c ? c : (a.n > b.n) - (a.n < b.n);
}

char *str_dup(struct arena *a, struct str s)
{
    char *p = arena_alloc(a, s.n + 1, 1, STRATA_SITE);
    if (s.n) memcpy(p, s.p, s.n);
    return p;
}

char *str_fmt(struct arena *a, const char *fmt, ...)
{
    char small[256]; /* most texts are short: formatted once */
    va_list ap, ap2;
    va_start(ap, fmt);
    va_copy(ap2, ap);
    int n = vsnprintf(small, sizeof small, fmt, ap);
    va_end(ap);
    CHECK(n >= 0);
    char *p = arena_alloc(a, (size_t)n + 1, 1, STRATA_SITE);
    if ((size_t)n < sizeof small)
        memcpy(p, small, (size_t)n);
    else
        vsnprintf(p, (size_t)n + 1, fmt, ap2);
    va_end(ap2);
    return p;
}

unsigned str_distance(struct str a, struct str b)
{
    enum { MAX = 64 };
    unsigned row[3][MAX + 1];
    if (a.n > MAX || b.n > MAX) return MAX;
    for (unsigned j = 0; j <= b.n; j++) row[0][j] = j;
    for (size_t i = 1; i <= a.n; i++) {
        unsigned *now = row[i % 3], *prev = row[(i + 2) % 3], *prev2 = row[(i + 1) % 3];
        now[0] = (unsigned)i;
        for (size_t j = 1; j <= b.n; j++) {
            unsigned best = prev[j - 1] + (a.p[i - 1] != b.p[j - 1]);
            if (prev[j] + 1 < best) best = prev[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a.p[i - 1] == b.p[j - 2] && a.p[i - 2] == b.p[j - 1] &&
                prev2[j - 2] + 1 < best)
                best = prev2[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[a.n % 3][b.n];
}

static void sb_room(struct sb *s, size_t more)
{
    if (s->cap - s->n > more) return;
    size_t cap = s->cap ? s->cap : 256;
    while (cap - s->n <= more) {
        if (cap > SIZE_MAX / 2) BUG("text of over %zu bytes", s->n);
        cap *= 2;
    }
    char *p = realloc(s->p, cap);
    if (!p) BUG("no memory for a text of %zu bytes", cap);
    s->p = p;
    s->cap = cap;
}

void sb_add(struct sb *s, const char *p, size_t n)
{
    sb_room(s, n);
    if (n) memcpy(s->p + s->n, p, n);
    s->n += n;
    s->p[s->n] = 0;
}

void sb_str(struct sb *s, const char *z)
{
    sb_add(s, z, strlen(z));
}

void sb_char(struct sb *s, char c)
{
    sb_add(s, &c, 1);
}

void sb_vprintf(struct sb *s, const char *fmt, va_list ap)
{
    va_list ap2;
    va_copy(ap2, ap);
    sb_room(s, 64);
    size_t room = s->cap - s->n;
    int n = vsnprintf(s->p + s->n, room, fmt, ap2);
    va_end(ap2);
    CHECK(n >= 0);
    if ((size_t)n >= room) {
        sb_room(s, (size_t)n);
        vsnprintf(s->p + s->n, (size_t)n + 1, fmt, ap);
    }
    s->n += (size_t)n;
}

void sb_printf(struct sb *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    sb_vprintf(s, fmt, ap);
    va_end(ap);
}

struct str sb_take(struct sb *s, struct arena *a)
{
    struct str r = {str_dup(a, (struct str){s->p, s->n}), s->n};
    sb_free(s);
    return r;
}

void sb_free(struct sb *s)
{
    free(s->p);
    *s = (struct sb){0};
}

struct intern {
    struct arena *arena;
    struct map map;
    VEC(const char *) text;
};

struct intern *intern_open(struct arena *a)
{
    struct intern *t = NEW(a, struct intern, 1);
    t->arena = a;
    map_init(&t->map, a);
    intern_add(t, STR(""));
    return t;
}

uint32_t intern_add(struct intern *t, struct str s)
{
    uint32_t *at = map_str(&t->map, s);
    if (*at) return *at - 1;
    uint32_t id = (uint32_t)t->text.n;
    vec_push(t->arena, &t->text, (const char *)str_dup(t->arena, s));
    *at = id + 1;
    return id;
}

const char *intern_text(const struct intern *t, uint32_t id)
{
    CHECK(id < t->text.n);
    return t->text.p[id];
}
