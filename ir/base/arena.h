/* Arenas: compile-time memory with one stated lifetime. Allocation never fails softly: exhaustion
 * aborts with the size and the site. Under AddressSanitizer every block has its own red zone. */
#ifndef STRATA_BASE_ARENA_H
#define STRATA_BASE_ARENA_H
#include <stddef.h>

struct arena;
struct arena_mark {
    void *block;
    size_t used;
};

/* A new empty arena; `name` (not copied) appears in messages. The caller closes it. */
struct arena *arena_open(const char *name);
/* Frees the arena and everything allocated from it. NULL is fine. */
void arena_close(struct arena *a);
/* `size` zeroed bytes aligned to `align` (a power of two up to 64). Owned by the arena. */
void *arena_alloc(struct arena *a, size_t size, size_t align, const char *site);
/* A copy of `size` bytes. */
void *arena_dup(struct arena *a, const void *p, size_t size, const char *site);
/* A position to return to: everything allocated after it is released at once. */
struct arena_mark arena_mark(struct arena *a);
void arena_release(struct arena *a, struct arena_mark m);
/* Bytes handed out so far (for --stats and tests). */
size_t arena_used(const struct arena *a);

#define STRATA_STR2(x) #x
#define STRATA_STR(x) STRATA_STR2(x)
#define STRATA_SITE __FILE__ ":" STRATA_STR(__LINE__)
/* n zeroed objects of a type; n may be 0. Aborts when n * sizeof overflows. */
#define NEW(a, type, n)                                                                           \
    ((type *)arena_alloc((a), arena_size((size_t)(n), sizeof(type), STRATA_SITE), _Alignof(type), \
                         STRATA_SITE))
/* n * size, aborting at `site` on overflow. */
size_t arena_size(size_t n, size_t size, const char *site);

/* A bug of ours: prints file, line and message, writes the reproducer set by bug_context, aborts.
 */
#define BUG(...) bug_abort(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(cond)                                  \
    do {                                             \
        if (!(cond)) BUG("check failed: %s", #cond); \
    } while (0)
_Noreturn void bug_abort(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Called (once) by bug_abort before it aborts, to add context (pass, node) and write a reproducer.
 */
void bug_context(void (*fn)(void *), void *arg);
#endif
