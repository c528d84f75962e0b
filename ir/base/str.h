/* Slices, a growing string builder, and interned strings. */
#ifndef STRATA_BASE_STR_H
#define STRATA_BASE_STR_H
#include "base/arena.h"
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* A slice of bytes; not terminated unless it says so. */
struct str {
    const char *p;
    size_t n;
};
#define STR(lit) ((struct str){(lit), sizeof(lit) - 1})

static inline struct str str_of(const char *z)
{
    return (struct str){z, z ? strlen(z) : 0};
}
static inline bool str_eq(struct str a, struct str b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}
static inline bool str_is(struct str a, const char *z)
{
    return str_eq(a, str_of(z));
}
bool str_starts(struct str s, const char *prefix);
bool str_ends(struct str s, const char *suffix);
/* Order of bytes, like strcmp. */
int str_cmp(struct str a, struct str b);
/* A terminated copy in the arena. */
char *str_dup(struct arena *a, struct str s);
/* Formatted, terminated text in the arena. */
char *str_fmt(struct arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Edit distance (insert, delete, replace, swap of neighbours), for nearest-name hints. */
unsigned str_distance(struct str a, struct str b);

/* A growing text. Lives on the heap: sb_free, or sb_take into an arena. Zero-initialise to start.
 */
struct sb {
    char *p; /* always terminated once anything was added */
    size_t n, cap;
};
void sb_add(struct sb *s, const char *p, size_t n);
void sb_str(struct sb *s, const char *z);
void sb_char(struct sb *s, char c);
void sb_printf(struct sb *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sb_vprintf(struct sb *s, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
/* The text as a terminated copy in the arena; the builder is emptied and freed. */
struct str sb_take(struct sb *s, struct arena *a);
void sb_free(struct sb *s);

/* Interned strings: equal text, equal id. Id 0 is the empty string. */
struct intern;
struct intern *intern_open(struct arena *a);
uint32_t intern_add(struct intern *t, struct str s);
/* Terminated text of an id. */
const char *intern_text(const struct intern *t, uint32_t id);
#endif
