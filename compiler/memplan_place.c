/* Greedy interval packing: blocks in some order, each at the lowest offset (or in the tightest gap)
 * that is free during its whole life. The order decides how good it gets, so several are tried and
 * the smallest result is kept. */
#include "compiler/memplan_place.h"
#include <stdlib.h>
#include <string.h>

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

uint64_t memplan_place(struct arena *a, struct mem_block *block, size_t n)
{
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
