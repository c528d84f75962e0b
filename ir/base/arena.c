#include "base/arena.h"
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define ARENA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_ASAN 1
#endif
#endif
#ifndef ARENA_ASAN
#define ARENA_ASAN 0
#endif
#if ARENA_ASAN
void __asan_poison_memory_region(void const volatile *p, size_t n);
void __asan_unpoison_memory_region(void const volatile *p, size_t n);
#define POISON(p, n) __asan_poison_memory_region((p), (n))
#define UNPOISON(p, n) __asan_unpoison_memory_region((p), (n))
#define RED 16
#else
#define POISON(p, n) ((void)(p))
#define UNPOISON(p, n) ((void)(p))
#define RED 0
#endif

#ifdef HOSTILE
#define BLOCK_MIN 64 /* every allocation meets a block border sooner or later */
#else
#define BLOCK_MIN (64u << 10)
#endif

struct block {
    struct block *prev;
    size_t size, used; /* bytes of data behind the header */
};
#define HEADER ((sizeof(struct block) + 63) & ~(size_t)63)
#define HUGE ((size_t)2 << 20)          /* a large page of the machine */
#define BLOCK_MAX ((4u << 20) - HEADER) /* whole large pages */

struct arena {
    const char *name;
    struct block *top;
    size_t total;
};

static void (*bug_fn)(void *);
static void *bug_arg;

void bug_context(void (*fn)(void *), void *arg)
{
    bug_fn = fn;
    bug_arg = arg;
}

_Noreturn void bug_abort(const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    fflush(stdout);
    fprintf(stderr, "strata: internal error: %s:%d: ", file, line);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    void (*fn)(void *) = bug_fn;
    bug_fn = NULL;
    if (fn) fn(bug_arg);
    fprintf(stderr, "This is a bug in strata, not in your input.\n");
    fflush(stderr);
    abort();
}

size_t arena_size(size_t n, size_t size, const char *site)
{
    size_t total;
    if (__builtin_mul_overflow(n, size, &total))
        BUG("%s: %zu objects of %zu bytes overflow", site, n, size);
    return total;
}

struct arena *arena_open(const char *name)
{
    struct arena *a = calloc(1, sizeof *a);
    if (!a) BUG("no memory for arena '%s'", name);
    a->name = name;
    return a;
}

void arena_close(struct arena *a)
{
    if (!a) return;
    while (a->top) {
        struct block *b = a->top;
        a->top = b->prev;
        UNPOISON((char *)b, HEADER + b->size);
        free(b);
    }
    free(a);
}

static void grow(struct arena *a, size_t need, const char *site)
{
    size_t size = a->top && a->top->size * 2 < BLOCK_MAX ? a->top->size * 2 : BLOCK_MAX;
    if (!a->top || size < BLOCK_MIN) size = BLOCK_MIN;
#ifdef HOSTILE
    size = BLOCK_MIN;
#endif
    if (size < need) size = need;
    if (size > SIZE_MAX - HEADER - 64) BUG("%s: arena '%s': %zu bytes asked", site, a->name, need);
    size_t bytes = (HEADER + size + 63) & ~(size_t)63;
    const int huge = bytes >= HUGE;
    if (huge) bytes = (bytes + HUGE - 1) & ~(size_t)(HUGE - 1);
    struct block *b = aligned_alloc(huge ? HUGE : 64, bytes);
    if (!b) BUG("%s: arena '%s' is out of memory: %zu bytes asked", site, a->name, need);
    if (huge) madvise(b, bytes, MADV_HUGEPAGE); /* fewer page faults; a wish */
    b->prev = a->top;
    b->size = bytes - HEADER;
    b->used = 0;
    POISON((char *)b + HEADER, b->size);
    a->top = b;
}

void *arena_alloc(struct arena *a, size_t size, size_t align, const char *site)
{
    if (size > SIZE_MAX / 2) BUG("%s: arena '%s': %zu bytes asked", site, a->name, size);
    if (align < 8) align = 8;
    struct block *b = a->top;
    size_t at = b ? (b->used + align - 1) & ~(align - 1) : 0;
    if (!b || at > b->size || size + RED > b->size - at) {
        grow(a, size + RED + align, site);
        b = a->top;
        at = 0;
    }
    char *p = (char *)b + HEADER + at;
    UNPOISON(p, size);
    memset(p, 0, size);
    b->used = at + size + RED;
    a->total += size;
    return p;
}

void *arena_dup(struct arena *a, const void *p, size_t size, const char *site)
{
    void *q = arena_alloc(a, size, 16, site);
    if (size) memcpy(q, p, size);
    return q;
}

struct arena_mark arena_mark(struct arena *a)
{
    return (struct arena_mark){a->top, a->top ? a->top->used : 0};
}

void arena_release(struct arena *a, struct arena_mark m)
{
    while (a->top != m.block) {
        struct block *b = a->top;
        CHECK(b);
        a->top = b->prev;
        UNPOISON((char *)b, HEADER + b->size);
        free(b);
    }
    if (a->top) {
        a->top->used = m.used;
        POISON((char *)a->top + HEADER + m.used, a->top->size - m.used);
    }
}

size_t arena_used(const struct arena *a)
{
    return a->total;
}
