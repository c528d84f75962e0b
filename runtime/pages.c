#include "runtime/pages.h"
#include "base/arena.h"
#include "runtime/lm.h"
#include "runtime/mem.h"
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

struct page {
    struct page_key key;
    uint64_t salt;
    uint64_t used;    /* tick of the last release */
    int32_t holders;  /* 0: free, or kept */
    int32_t children; /* indexed pages that follow it */
    int32_t parent;
    int32_t next;     /* free list, or chain of the index */
    int32_t heap;     /* place in the heap of pages to evict, or -1 */
    int32_t snapshot; /* index of a slot, or -1 */
    bool indexed;
};
struct slot {
    int32_t page; /* whose snapshot it is, or PAGE_none */
    uint64_t used;
};
struct pages {
    int64_t num, num_free, num_cached;
    int64_t first_state, num_slots, slots_used;
    int32_t free; /* head of the list */
    uint64_t tick;
    struct page *page;
    int32_t *tokens; /* [num][LM_PAGE] */
    int32_t *bucket; /* [mask + 1]: heads of chains */
    uint64_t mask;
    int32_t *heap; /* kept pages without children and holders, least recently used on top */
    int64_t num_heap;
    struct slot *slot;
};

struct page_key page_key_of(const struct page_key *parent, uint64_t salt, const int32_t *tokens)
{
    struct {
        struct page_key parent;
        uint64_t salt;
        int32_t tokens[LM_PAGE];
    } text = {.salt = salt};
    if (parent) text.parent = *parent;
    memcpy(text.tokens, tokens, sizeof text.tokens);
    XXH128_hash_t h = XXH3_128bits(&text, sizeof text);
    return (struct page_key){h.low64, h.high64};
}

struct pages *pages_open(int64_t pages, int64_t first_state, int64_t snapshots)
{
    CHECK(pages > 0 && pages < INT32_MAX / LM_PAGE && snapshots >= 0);
    struct pages *p = mem_alloc(sizeof *p);
    if (!p) return NULL;
    p->num = pages;
    p->num_slots = snapshots;
    p->first_state = first_state;
    for (p->mask = 15; p->mask < (uint64_t)pages * 2; p->mask = p->mask * 2 + 1) continue;
    size_t n = (size_t)pages;
    p->page = mem_alloc(n * sizeof *p->page);
    p->tokens = mem_alloc(n * LM_PAGE * sizeof *p->tokens);
    p->bucket = mem_alloc((size_t)(p->mask + 1) * sizeof *p->bucket);
    p->heap = mem_alloc(n * sizeof *p->heap);
    p->slot = mem_alloc((size_t)snapshots * sizeof *p->slot);
    if (!p->page || !p->tokens || !p->bucket || !p->heap || !p->slot) {
        pages_close(p);
        return NULL;
    }
    for (uint64_t i = 0; i <= p->mask; i++) p->bucket[i] = PAGE_none;
    for (int64_t i = 0; i < snapshots; i++) p->slot[i].page = PAGE_none;
    p->free = PAGE_none;
    for (int64_t i = pages; i-- > 0;) {
        p->page[i] =
            (struct page){.parent = PAGE_none, .next = p->free, .heap = -1, .snapshot = -1};
        p->free = (int32_t)i;
    }
    p->num_free = pages;
    return p;
}

void pages_close(struct pages *p)
{
    if (!p) return;
    size_t n = (size_t)p->num;
    mem_free(p->page, n * sizeof *p->page);
    mem_free(p->tokens, n * LM_PAGE * sizeof *p->tokens);
    mem_free(p->bucket, (size_t)(p->mask + 1) * sizeof *p->bucket);
    mem_free(p->heap, n * sizeof *p->heap);
    mem_free(p->slot, (size_t)p->num_slots * sizeof *p->slot);
    mem_free(p, sizeof *p);
}

/* ---- the heap ---- */

static bool before(const struct pages *p, int32_t a, int32_t b)
{
    return p->page[a].used < p->page[b].used;
}

static void heap_set(struct pages *p, int64_t i, int32_t page)
{
    p->heap[i] = page;
    p->page[page].heap = (int32_t)i;
}

/* The page at place i goes up or down to where it belongs. */
static void heap_fix(struct pages *p, int64_t i)
{
    int32_t page = p->heap[i];
    for (; i > 0 && before(p, page, p->heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap_set(p, i, p->heap[(i - 1) / 2]);
    for (int64_t c; (c = 2 * i + 1) < p->num_heap; i = c) {
        if (c + 1 < p->num_heap && before(p, p->heap[c + 1], p->heap[c])) c++;
        if (!before(p, p->heap[c], page)) break;
        heap_set(p, i, p->heap[c]);
    }
    heap_set(p, i, page);
}

static void heap_remove(struct pages *p, int32_t page)
{
    int64_t i = p->page[page].heap;
    p->page[page].heap = -1;
    int32_t last = p->heap[--p->num_heap];
    if (last == page) return;
    heap_set(p, i, last);
    heap_fix(p, i);
}

/* A page whose holders or children changed is in the heap or not. */
static void heap_update(struct pages *p, int32_t page)
{
    struct page *g = &p->page[page];
    bool in = g->indexed && !g->holders && !g->children;
    if (in && g->heap < 0) {
        heap_set(p, p->num_heap, page);
        heap_fix(p, p->num_heap++);
    } else if (!in && g->heap >= 0) {
        heap_remove(p, page);
    }
}

/* ---- free, held, kept ---- */

static void set_free(struct pages *p, int32_t page)
{
    p->page[page].next = p->free;
    p->free = page;
    p->num_free++;
}

static void evict(struct pages *p, int32_t page)
{
    struct page *g = &p->page[page];
    heap_remove(p, page);
    pages_drop_snapshot(p, page);
    int32_t *at = &p->bucket[g->key.low & p->mask];
    while (*at != page) at = &p->page[*at].next;
    *at = g->next;
    g->indexed = false;
    p->num_cached--;
    if (g->parent != PAGE_none) {
        p->page[g->parent].children--;
        heap_update(p, g->parent);
    }
    g->parent = PAGE_none;
    set_free(p, page);
}

int64_t pages_available(const struct pages *p)
{
    return p->num_free + p->num_cached;
}

int64_t pages_cached(const struct pages *p)
{
    return p->num_cached;
}

int32_t pages_take(struct pages *p)
{
    if (!p->num_free && p->num_heap) evict(p, p->heap[0]);
    if (!p->num_free) return PAGE_none;
    int32_t page = p->free;
    p->free = p->page[page].next;
    p->num_free--;
    p->page[page].holders = 1;
    return page;
}

void pages_hold(struct pages *p, int32_t page)
{
    struct page *g = &p->page[page];
    CHECK(g->indexed);
    if (!g->holders++) p->num_cached--;
    heap_update(p, page);
}

int32_t pages_holders(const struct pages *p, int32_t page)
{
    return p->page[page].holders;
}

void pages_release(struct pages *p, const int32_t *page, int64_t n)
{
    p->tick++;
    for (int64_t i = n; i-- > 0;) {
        struct page *g = &p->page[page[i]];
        CHECK(g->holders > 0);
        g->used = p->tick;
        if (--g->holders) continue;
        if (g->indexed) {
            p->num_cached++;
            heap_update(p, page[i]);
        } else {
            set_free(p, page[i]);
        }
    }
}

/* ---- the index ---- */

static bool same_text(const struct pages *p, int32_t page, const struct page_text *t)
{
    const struct page *g = &p->page[page];
    return g->key.low == t->key.low && g->key.high == t->key.high && g->parent == t->parent &&
           g->salt == t->salt &&
           !memcmp(p->tokens + (int64_t)page * LM_PAGE, t->tokens, LM_PAGE * sizeof *t->tokens);
}

int32_t pages_find(const struct pages *p, const struct page_text *t)
{
    int32_t page = p->bucket[t->key.low & p->mask];
    while (page != PAGE_none && !same_text(p, page, t)) page = p->page[page].next;
    return page;
}

int32_t pages_add(struct pages *p, const struct page_text *t, int32_t page)
{
    struct page *g = &p->page[page];
    CHECK(g->holders == 1 && !g->indexed);
    CHECK(t->parent == PAGE_none || p->page[t->parent].holders);
    int32_t there = pages_find(p, t);
    if (there != PAGE_none) {
        pages_hold(p, there);
        g->holders = 0;
        set_free(p, page);
        return there;
    }
    g->indexed = true;
    g->key = t->key;
    g->salt = t->salt;
    g->parent = t->parent;
    g->children = 0;
    memcpy(p->tokens + (int64_t)page * LM_PAGE, t->tokens, LM_PAGE * sizeof *t->tokens);
    int32_t *head = &p->bucket[t->key.low & p->mask];
    g->next = *head;
    *head = page;
    if (t->parent != PAGE_none) p->page[t->parent].children++;
    return page;
}

/* ---- snapshots ---- */

int32_t pages_snapshot(const struct pages *p, int32_t page)
{
    int32_t s = p->page[page].snapshot;
    return s < 0 ? -1 : (int32_t)(p->first_state + s);
}

void pages_touch_snapshot(struct pages *p, int32_t page)
{
    p->slot[p->page[page].snapshot].used = ++p->tick;
}

void pages_drop_snapshot(struct pages *p, int32_t page)
{
    int32_t s = p->page[page].snapshot;
    if (s < 0) return;
    p->slot[s].page = PAGE_none;
    p->page[page].snapshot = -1;
    p->slots_used--;
}

int32_t pages_keep_snapshot(struct pages *p, int32_t page)
{
    CHECK(p->page[page].indexed);
    if (!p->num_slots || p->page[page].snapshot >= 0) return -1;
    int64_t best = 0;
    for (int64_t i = 0; i < p->num_slots && p->slot[best].page != PAGE_none; i++)
        if (p->slot[i].page == PAGE_none || p->slot[i].used < p->slot[best].used) best = i;
    if (p->slot[best].page != PAGE_none) pages_drop_snapshot(p, p->slot[best].page);
    p->slot[best] = (struct slot){page, ++p->tick};
    p->page[page].snapshot = (int32_t)best;
    p->slots_used++;
    return (int32_t)(p->first_state + best);
}

int64_t pages_snapshots(const struct pages *p)
{
    return p->slots_used;
}

/* ---- for tests ---- */

static void check_page(const struct pages *p, int32_t i)
{
    const struct page *g = &p->page[i];
    bool in = g->indexed && !g->holders && !g->children;
    CHECK(in == (g->heap >= 0));
    if (in) CHECK(p->heap[g->heap] == i);
    CHECK(g->indexed || (g->parent == PAGE_none && g->children == 0 && g->snapshot < 0));
    if (g->snapshot >= 0) CHECK(p->slot[g->snapshot].page == i);
    if (g->parent != PAGE_none) {
        CHECK(p->page[g->parent].indexed);
        CHECK(!g->holders || p->page[g->parent].holders);
    }
}

void pages_check(const struct pages *p)
{
    int64_t free = 0, idle = 0, kept = 0, slots = 0, children = 0, parents = 0;
    for (int32_t i = p->free; i != PAGE_none; i = p->page[i].next, free++)
        CHECK(!p->page[i].holders && !p->page[i].indexed && free < p->num);
    for (int32_t i = 0; i < p->num; i++) {
        const struct page *g = &p->page[i];
        check_page(p, i);
        idle += !g->holders && !g->indexed;
        kept += !g->holders && g->indexed;
        slots += g->snapshot >= 0;
        children += g->children;
        parents += g->parent != PAGE_none;
    }
    CHECK(free == p->num_free && idle == free && kept == p->num_cached && slots == p->slots_used);
    CHECK(children == parents);
    for (int64_t i = 1; i < p->num_heap; i++) CHECK(!before(p, p->heap[i], p->heap[(i - 1) / 2]));
}
