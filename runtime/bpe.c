#include "runtime/bpe.h"
#include "base/map.h"
#include "runtime/utf8.h"
#include <stdlib.h>

/* ---- the vocabulary ---- */

static enum rt_status no_memory(struct rt_error *err)
{
    return rt_fail(err, RT_machine, "no memory for a tokenizer");
}

static enum rt_status room(struct bpe *b, int64_t id, struct str bytes, struct rt_error *err)
{
    if (id < 0 || id >= BPE_IDS)
        return rt_fail(err, RT_user, "the id %lld is not in [0, %d)", (long long)id, BPE_IDS);
    if (!bytes.n || bytes.n > BPE_TOKEN_BYTES)
        return rt_fail(err, RT_user, "token %lld has %zu bytes; 1 to %d are allowed", (long long)id,
                       bytes.n, BPE_TOKEN_BYTES);
    if (b->text.n + bytes.n > UINT32_MAX)
        return rt_fail(err, RT_user, "the tokens have more than 4 GiB of text");
    if ((size_t)id >= b->cap) {
        size_t cap = b->cap ? b->cap : 1024;
        while (cap <= (size_t)id) cap *= 2;
        struct bpe_token *t = realloc(b->token, cap * sizeof *t);
        if (!t) return no_memory(err);
        memset(t + b->cap, 0, (cap - b->cap) * sizeof *t);
        b->token = t;
        b->cap = cap;
    }
    if ((size_t)id >= b->n) b->n = (size_t)id + 1;
    return RT_ok;
}

enum rt_status bpe_name(struct bpe *b, int64_t id, struct str bytes, struct rt_error *err)
{
    RT_TRY(room(b, id, bytes, err));
    b->token[id] = (struct bpe_token){(uint32_t)b->text.n, (uint32_t)bytes.n, UINT32_MAX};
    sb_add(&b->text, bytes.p, bytes.n);
    return RT_ok;
}

enum rt_status bpe_add(struct bpe *b, int64_t id, struct str bytes, uint32_t rank,
                       struct rt_error *err)
{
    RT_TRY(room(b, id, bytes, err));
    if (b->token[id].n) return rt_fail(err, RT_user, "the id %lld is given twice", (long long)id);
    RT_TRY(bpe_name(b, id, bytes, err));
    b->token[id].rank = rank;
    return RT_ok;
}

enum rt_status bpe_pair(struct bpe *b, struct bpe_pair p, struct rt_error *err)
{
    if (b->pairs == b->pair_cap) {
        size_t cap = b->pair_cap ? 2 * b->pair_cap : 1024;
        struct bpe_pair *q = realloc(b->pair, cap * sizeof *q);
        if (!q) return no_memory(err);
        b->pair = q;
        b->pair_cap = cap;
    }
    b->pair[b->pairs++] = p;
    return RT_ok;
}

void bpe_free(struct bpe *b)
{
    free(b->token);
    sb_free(&b->text);
    free(b->slot);
    free(b->pair);
    *b = (struct bpe){.n = 0};
}

/* A power of two, at most half of it used. */
static size_t table_size(size_t n)
{
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    return size;
}

static uint64_t pair_hash(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

static const struct bpe_pair *pair_find(const struct bpe *b, int32_t left, int32_t right)
{
    for (size_t i = pair_hash(left, right) & (b->pair_cap - 1);; i = (i + 1) & (b->pair_cap - 1)) {
        const struct bpe_pair *p = &b->pair[i];
        if (p->id < 0) return NULL;
        if (p->left == left && p->right == right) return p;
    }
}

enum rt_status bpe_ready_pairs(struct bpe *b, struct rt_error *err)
{
    size_t size = table_size(b->pairs);
    struct bpe_pair *list = b->pair, *table = malloc(size * sizeof *table);
    if (!table) return no_memory(err);
    for (size_t i = 0; i < size; i++) table[i].id = -1;
    b->pair = table;
    b->pair_cap = size;
    for (size_t k = 0; k < b->pairs; k++) {
        if (pair_find(b, list[k].left, list[k].right)) continue; /* the first has the lowest rank */
        size_t i = pair_hash(list[k].left, list[k].right) & (size - 1);
        while (table[i].id >= 0) i = (i + 1) & (size - 1);
        table[i] = list[k];
    }
    free(list);
    return RT_ok;
}

int32_t bpe_find(const struct bpe *b, const char *p, size_t n)
{
    for (size_t i = hash_bytes(p, n, 0) & (b->slots - 1); b->slot[i];
         i = (i + 1) & (b->slots - 1)) {
        const struct bpe_token *t = &b->token[b->slot[i] - 1];
        if (t->n == n && !memcmp(b->text.p + t->at, p, n)) return (int32_t)(b->slot[i] - 1);
    }
    return -1;
}

enum rt_status bpe_ready(struct bpe *b, size_t merged, const bool *use, struct rt_error *err)
{
    CHECK(merged <= b->n);
    b->slots = table_size(merged);
    b->slot = calloc(b->slots, sizeof *b->slot);
    if (!b->slot) return no_memory(err);
    for (size_t id = 0; id < merged; id++) {
        struct bpe_token t = b->token[id];
        if (!t.n || (use && !use[id])) continue;
        const char *p = b->text.p + t.at;
        int32_t other = bpe_find(b, p, t.n);
        if (other >= 0)
            return rt_fail(err, RT_user, "tokens %d and %zu have the same bytes", other, id);
        size_t i = hash_bytes(p, t.n, 0) & (b->slots - 1);
        while (b->slot[i]) i = (i + 1) & (b->slots - 1);
        b->slot[i] = (uint32_t)id + 1;
    }
    return RT_ok;
}

/* ---- merging ---- */

struct bpe_node { /* a token so far; its bytes begin at `at` */
    uint32_t at, n, prev, next;
    int32_t id; /* -1: merged into the one before */
    bool fixed;
};
struct bpe_merge {
    uint32_t rank, left;
    int32_t left_id, right_id, id;
};
enum { SEEN = 1 << 15, SEEN_BYTES = 30, SEEN_IDS = 8 };
struct bpe_seen { /* a piece and its ids; n is 0 where there is none */
    int32_t id[SEEN_IDS];
    uint8_t n, ids;
    char piece[SEEN_BYTES];
};
static const uint32_t none = UINT32_MAX;

void bpe_work_free(struct bpe_work *w)
{
    free(w->node);
    free(w->heap);
    free(w->seen);
    *w = (struct bpe_work){.heap_n = 0};
}

static bool before(const struct bpe_merge *a, const struct bpe_merge *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static void push(struct bpe_work *w, struct bpe_merge m)
{
    size_t i = w->heap_n++;
    for (; i && before(&m, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = m;
}

static struct bpe_merge pop(struct bpe_work *w)
{
    struct bpe_merge top = w->heap[0], m = w->heap[--w->heap_n];
    size_t i = 0, n = w->heap_n;
    for (size_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && before(&w->heap[c + 1], &w->heap[c])) c++;
        if (!before(&w->heap[c], &m)) break;
        w->heap[i] = w->heap[c];
    }
    w->heap[i] = m;
    return top;
}

/* Puts the merge of a node with the next one on the heap, where there is one. */
static void offer(const struct bpe *b, struct bpe_work *w, const char *text, uint32_t left)
{
    const struct bpe_node *l = &w->node[left];
    if (l->next == none) return;
    const struct bpe_node *r = &w->node[l->next];
    if (l->fixed || r->fixed) return;
    struct bpe_merge m = {0, left, l->id, r->id, -1};
    if (b->listed) {
        const struct bpe_pair *p = pair_find(b, l->id, r->id);
        if (p) m.id = p->id, m.rank = p->rank;
    } else {
        m.id = bpe_find(b, text + l->at, l->n + r->n);
        if (m.id >= 0) m.rank = b->token[m.id].rank;
    }
    if (m.id >= 0) push(w, m);
}

static enum rt_status work_room(struct bpe_work *w, size_t n, struct rt_error *err)
{
    if (n >= none / 4) return rt_fail(err, RT_user, "a piece of the text has %zu bytes", n);
    if (n > w->node_cap) {
        size_t cap = n < 256 ? 256 : n;
        free(w->node);
        w->node = malloc(cap * sizeof *w->node);
        w->node_cap = w->node ? cap : 0;
        free(w->heap);
        /* every pair once, and two new ones for each merge, which takes one */
        w->heap = malloc(2 * cap * sizeof *w->heap);
        w->heap_cap = w->heap ? 2 * cap : 0;
    }
    return w->node && w->heap ? RT_ok : no_memory(err);
}

static enum rt_status no_id(struct str piece, size_t at, struct rt_error *err)
{
    return rt_fail(err, RT_user, "the tokenizer has no token for the byte 0x%02x",
                   (unsigned)(unsigned char)piece.p[at]);
}

/* The tokens that merging starts from; their number. */
static enum rt_status split(const struct bpe *b, struct bpe_work *w, struct str s, size_t *count,
                            struct rt_error *err)
{
    size_t k = 0;
    for (size_t i = 0; i < s.n;) {
        uint32_t cp;
        int n = b->chars ? utf8_next(s.p + i, s.n - i, &cp) : 1;
        if (n <= 0) return no_id(s, i, err);
        int32_t id = b->chars ? bpe_find(b, s.p + i, (size_t)n) : b->byte[(unsigned char)s.p[i]];
        bool whole = id >= 0;
        size_t step = whole ? (size_t)n : 1;
        for (int c = 0; c < n; c += (int)step, i += step, k++) {
            int32_t one = whole ? id : b->byte[(unsigned char)s.p[i]];
            if (one < 0) return no_id(s, i, err);
            w->node[k] = (struct bpe_node){
                (uint32_t)i, (uint32_t)step,    k ? (uint32_t)k - 1 : none, (uint32_t)k + 1,
                one,         b->chars && !whole};
        }
    }
    w->node[k - 1].next = none;
    *count = k;
    return RT_ok;
}

static enum rt_status merge(const struct bpe *b, struct bpe_work *w, struct str s,
                            struct tok_ids *out, struct rt_error *err)
{
    size_t count = 0;
    RT_TRY(work_room(w, s.n, err));
    RT_TRY(split(b, w, s, &count, err));
    w->heap_n = 0;
    for (size_t i = 0; i + 1 < count; i++) offer(b, w, s.p, (uint32_t)i);
    while (w->heap_n) {
        struct bpe_merge m = pop(w);
        struct bpe_node *l = &w->node[m.left];
        if (l->id != m.left_id || l->next == none || w->node[l->next].id != m.right_id) continue;
        struct bpe_node *r = &w->node[l->next];
        l->id = m.id;
        l->n += r->n;
        l->next = r->next;
        r->id = -1;
        if (l->next != none) w->node[l->next].prev = m.left;
        offer(b, w, s.p, m.left);
        if (l->prev != none) offer(b, w, s.p, l->prev);
    }
    for (uint32_t i = 0; i != none; i = w->node[i].next)
        RT_TRY(tok_ids_add(out, w->node[i].id, err));
    return RT_ok;
}

enum rt_status bpe_encode(const struct bpe *b, struct bpe_work *w, struct str piece,
                          struct tok_ids *out, struct rt_error *err)
{
    if (!piece.n) return RT_ok;
    struct bpe_seen *seen = NULL;
    if (piece.n <= SEEN_BYTES) {
        if (!w->seen && !(w->seen = calloc(SEEN, sizeof *w->seen))) return no_memory(err);
        seen = &w->seen[hash_bytes(piece.p, piece.n, 0) >> 40 & (SEEN - 1)];
        if (seen->n == piece.n && !memcmp(seen->piece, piece.p, piece.n)) {
            for (int i = 0; i < seen->ids; i++) RT_TRY(tok_ids_add(out, seen->id[i], err));
            return RT_ok;
        }
    }
    size_t first = out->n;
    int32_t id = b->whole ? bpe_find(b, piece.p, piece.n) : -1;
    if (id >= 0)
        RT_TRY(tok_ids_add(out, id, err));
    else
        RT_TRY(merge(b, w, piece, out, err));
    if (seen && out->n - first <= SEEN_IDS) {
        seen->n = (uint8_t)piece.n;
        seen->ids = (uint8_t)(out->n - first);
        memcpy(seen->piece, piece.p, piece.n);
        memcpy(seen->id, out->p + first, (out->n - first) * sizeof *out->p);
    }
    return RT_ok;
}
