/* Growing arrays in an arena: VEC(int) v = {0}; vec_push(a, &v, 3); v.p[i], v.n. */
#ifndef STRATA_BASE_VEC_H
#define STRATA_BASE_VEC_H
#include "base/arena.h"
#include <string.h>

#define VEC(type)      \
    struct {           \
        type *p;       \
        size_t n, cap; \
    }

/* Room for `more` further elements; what moved leaves its old storage to the arena. */
#define vec_room(a, v, more)               \
    ((void)((v)->n + (more) <= (v)->cap || \
            ((v)->p = vec_grow((a), (v)->p, (v)->n, (more), &(v)->cap, sizeof *(v)->p), 1)))
#define vec_push(a, v, x) (vec_room((a), (v), 1), (void)((v)->p[(v)->n++] = (x)))
#define vec_last(v) ((v)->p[(v)->n - 1])

static inline void *vec_grow(struct arena *a, void *p, size_t n, size_t more, size_t *cap,
                             size_t size)
{
#ifdef HOSTILE
    size_t want = n + more;
#else
    size_t want = *cap * 2 > n + more ? *cap * 2 : n + more;
    if (want < 8) want = 8;
#endif
    void *q = arena_alloc(a, arena_size(want, size, STRATA_SITE), 16, STRATA_SITE);
    if (n) memcpy(q, p, n * size);
    *cap = want;
    return q;
}
#endif
