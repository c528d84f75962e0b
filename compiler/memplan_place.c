/* Greedy interval packing: blocks in some order, each at the lowest offset (or in the tightest gap)
 * that is free during its whole life. The order decides how good it gets, so several are tried and
 * the smallest result is kept. That is quadratic; above MANY blocks time runs forward once instead,
 * each block takes the tightest hole of its moment, and short lives are kept out of the way of long
 * ones (values saved for the backward pass, which nest). */
#include "compiler/memplan_place.h"
#include <stdlib.h>
#include <string.h>

enum { MANY = 1500 };

static int cmp(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

static int earlier(const struct mem_block *a, const struct mem_block *b)
{
    int c = cmp(a->first, b->first);
    return c ? c : a < b ? -1 : a > b;
}

static uint64_t life(const struct mem_block *b)
{
    return (uint64_t)b->last - b->first + 1;
}

/* Elements are pointers into one array: their addresses make every order total. */
static int by_size(const void *pa, const void *pb)
{
    const struct mem_block *a = *(struct mem_block *const *)pa, *b = *(struct mem_block *const *)pb;
    int c = cmp(b->bytes, a->bytes);
    return c ? c : earlier(a, b);
}

static int by_area(const void *pa, const void *pb)
{
    const struct mem_block *a = *(struct mem_block *const *)pa, *b = *(struct mem_block *const *)pb;
    int c = cmp(b->bytes / 64 * life(b), a->bytes / 64 * life(a));
    return c ? c : earlier(a, b);
}

static int by_life(const void *pa, const void *pb)
{
    const struct mem_block *a = *(struct mem_block *const *)pa, *b = *(struct mem_block *const *)pb;
    int c = cmp(life(b), life(a));
    return c ? c : by_size(pa, pb);
}

static bool meet(const struct mem_block *a, const struct mem_block *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* placed[0..n) is sorted by offset. */
static uint64_t offset_for(struct mem_block *const *placed, size_t n, const struct mem_block *b,
                           bool tight)
{
    uint64_t free_from = 0, best = UINT64_MAX, best_gap = UINT64_MAX;
    for (size_t i = 0; i < n; i++) {
        const struct mem_block *p = placed[i];
        if (!meet(p, b)) continue;
        if (p->offset >= free_from + b->bytes && p->offset - free_from < best_gap) {
            best = free_from, best_gap = p->offset - free_from;
            if (!tight) return best;
        }
        if (p->offset + p->bytes > free_from) free_from = p->offset + p->bytes;
    }
    return best != UINT64_MAX ? best : free_from;
}

static uint64_t pack(struct mem_block **order, size_t n, struct mem_block **placed, bool tight)
{
    uint64_t top = 0;
    for (size_t i = 0; i < n; i++) {
        struct mem_block *b = order[i];
        b->offset = offset_for(placed, i, b, tight);
        if (b->offset + b->bytes > top) top = b->offset + b->bytes;
        size_t at = i;
        while (at && placed[at - 1]->offset > b->offset) placed[at] = placed[at - 1], at--;
        placed[at] = b;
    }
    return top;
}

/* ---- many blocks ---- */

struct hole {
    uint64_t offset, bytes;
};
struct region { /* free memory below top, by offset; no two holes touch */
    struct hole *hole;
    size_t n;
    uint64_t top;
};

/* The first hole at or behind an offset. */
static size_t hole_at(const struct region *r, uint64_t offset)
{
    size_t lo = 0, hi = r->n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (r->hole[mid].offset < offset)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static void close_hole(struct region *r, size_t i)
{
    memmove(r->hole + i, r->hole + i + 1, (--r->n - i) * sizeof *r->hole);
}

static uint64_t take(struct region *r, uint64_t bytes)
{
    size_t best = r->n;
    for (size_t i = 0; i < r->n; i++)
        if (r->hole[i].bytes >= bytes && (best == r->n || r->hole[i].bytes < r->hole[best].bytes)) {
            best = i;
            if (r->hole[i].bytes == bytes) break;
        }
    uint64_t offset = r->top;
    if (best == r->n) { /* at the end, from the hole there on if there is one */
        if (r->n && r->hole[r->n - 1].offset + r->hole[r->n - 1].bytes == r->top)
            offset = r->hole[--r->n].offset;
        r->top = offset + bytes;
        return offset;
    }
    struct hole *h = &r->hole[best];
    offset = h->offset;
    h->offset += bytes;
    h->bytes -= bytes;
    if (!h->bytes) close_hole(r, best);
    return offset;
}

static void give(struct region *r, const struct mem_block *b)
{
    size_t i = hole_at(r, b->offset);
    bool before = i && r->hole[i - 1].offset + r->hole[i - 1].bytes == b->offset;
    bool after = i < r->n && b->offset + b->bytes == r->hole[i].offset;
    if (before) {
        r->hole[i - 1].bytes += b->bytes;
        if (!after) return;
        r->hole[i - 1].bytes += r->hole[i].bytes;
        close_hole(r, i);
    } else if (after) {
        r->hole[i].offset = b->offset;
        r->hole[i].bytes += b->bytes;
    } else {
        memmove(r->hole + i + 1, r->hole + i, (r->n++ - i) * sizeof *r->hole);
        r->hole[i] = (struct hole){b->offset, b->bytes};
    }
}

static int by_first(const void *pa, const void *pb)
{
    const struct mem_block *a = *(struct mem_block *const *)pa, *b = *(struct mem_block *const *)pb;
    int c = cmp(a->first, b->first);
    return c ? c : by_size(pa, pb);
}

static int by_last(const void *pa, const void *pb)
{
    const struct mem_block *a = *(struct mem_block *const *)pa, *b = *(struct mem_block *const *)pb;
    int c = cmp(a->last, b->last);
    return c ? c : by_first(pa, pb);
}

struct sweep {
    struct mem_block **first, **last; /* all blocks by their beginnings, by their ends */
    size_t n;
    struct hole *hole;
};

/* Places the blocks that live longer than `from` and at most `to` from `base` on. */
static uint64_t sweep(const struct sweep *s, uint64_t from, uint64_t to, uint64_t base)
{
    struct region r = {.hole = s->hole, .top = base};
    for (size_t i = 0, dead = 0; i < s->n; i++) {
        struct mem_block *b = s->first[i];
        if (life(b) <= from || life(b) > to) continue;
        for (; s->last[dead]->last < b->first; dead++)
            if (life(s->last[dead]) > from && life(s->last[dead]) <= to) give(&r, s->last[dead]);
        b->offset = take(&r, b->bytes);
    }
    return r.top;
}

/* What is long is not known beforehand: several limits are tried. */
static uint64_t place_many(struct arena *a, struct mem_block *block, size_t n)
{
    struct sweep s = {NEW(a, struct mem_block *, n), NEW(a, struct mem_block *, n), n,
                      NEW(a, struct hole, n + 1)};
    for (size_t i = 0; i < n; i++) s.first[i] = s.last[i] = &block[i];
    qsort(s.first, n, sizeof *s.first, by_first);
    qsort(s.last, n, sizeof *s.last, by_last);
    uint64_t best = UINT64_MAX, best_limit = 0;
    for (uint64_t limit = 8; limit <= 8192; limit *= 2) {
        uint64_t top = sweep(&s, 0, limit, sweep(&s, limit, UINT64_MAX, 0));
        if (top < best) best = top, best_limit = limit;
    }
    sweep(&s, 0, best_limit, sweep(&s, best_limit, UINT64_MAX, 0));
    return best;
}

uint64_t memplan_place(struct arena *a, struct mem_block *block, size_t n)
{
    if (n > MANY) return place_many(a, block, n);
    static int (*const orders[])(const void *, const void *) = {by_size, by_area, by_life};
    struct mem_block **order = NEW(a, struct mem_block *, n),
                     **placed = NEW(a, struct mem_block *, n);
    uint64_t *keep = NEW(a, uint64_t, n), best = UINT64_MAX, floor = memplan_live(a, block, n);
    for (size_t k = 0; k < 2 * sizeof orders / sizeof *orders && best > floor; k++) {
        for (size_t i = 0; i < n; i++) order[i] = &block[i];
        qsort(order, n, sizeof *order, orders[k / 2]);
        uint64_t top = pack(order, n, placed, k % 2 == 0);
        if (top >= best) continue;
        best = top;
        for (size_t i = 0; i < n; i++) keep[i] = block[i].offset;
    }
    for (size_t i = 0; i < n; i++) block[i].offset = keep[i];
    return n ? best : 0;
}

uint64_t memplan_live(struct arena *a, const struct mem_block *block, size_t n)
{
    uint32_t end = 0;
    for (size_t i = 0; i < n; i++)
        if (block[i].last >= end) end = block[i].last + 1;
    int64_t *change = NEW(a, int64_t, (size_t)end + 1), now = 0, most = 0;
    for (size_t i = 0; i < n; i++) {
        change[block[i].first] += (int64_t)block[i].bytes;
        change[block[i].last + 1] -= (int64_t)block[i].bytes;
    }
    for (uint32_t t = 0; t < end; t++) {
        now += change[t];
        if (now > most) most = now;
    }
    return (uint64_t)most;
}
