#include "base/map.h"
#include <stdio.h>
#define XXH_INLINE_ALL
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wconversion"
#include <xxhash.h>
#pragma GCC diagnostic pop

uint64_t hash_bytes(const void *p, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(p, n, seed);
}

void hash_hex(const void *p, size_t n, char out[33])
{
    XXH128_hash_t h = XXH3_128bits(p, n);
    snprintf(out, 33, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
}

void map_init(struct map *m, struct arena *a)
{
    *m = (struct map){.arena = a};
}

static uint64_t num_hash(uint64_t x)
{
    x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
    return x ^ (x >> 29);
}

static struct map_slot *probe(const struct map *m, uint64_t hash, struct str key, uint64_t num)
{
    size_t mask = m->cap - 1;
    for (size_t i = hash & mask;; i = (i + 1) & mask) {
        struct map_slot *s = &m->slot[i];
        if (!s->used) return s;
        if (s->hash != hash || s->num != num || (s->key.n == SIZE_MAX) != (key.n == SIZE_MAX))
            continue;
        if (key.n == SIZE_MAX || str_eq(s->key, key)) return s;
    }
}

static void rehash(struct map *m, size_t cap)
{
    struct map old = *m;
    m->cap = cap;
    m->slot = NEW(m->arena, struct map_slot, m->cap);
    for (size_t i = 0; i < old.cap; i++)
        if (old.slot[i].used)
            *probe(m, old.slot[i].hash, old.slot[i].key, old.slot[i].num) = old.slot[i];
}

void map_reserve(struct map *m, size_t n)
{
    size_t cap = 16;
    while (cap * 3 < n * 4 + 4) cap *= 2;
    if (cap > m->cap) rehash(m, cap);
}

static uint32_t *insert(struct map *m, uint64_t hash, struct str key, uint64_t num)
{
    if (m->n * 4 >= m->cap * 3) rehash(m, m->cap ? m->cap * 2 : 16);
    struct map_slot *s = probe(m, hash, key, num);
    if (!s->used) {
        if (key.n != SIZE_MAX) key.p = str_dup(m->arena, key);
        *s = (struct map_slot){hash, key, num, 0, 1};
        m->n++;
    }
    return &s->value;
}

uint32_t *map_str(struct map *m, struct str key)
{
    return insert(m, hash_bytes(key.p, key.n, 0), key, 0);
}

uint32_t *map_num(struct map *m, uint64_t key)
{
    return insert(m, num_hash(key), (struct str){NULL, SIZE_MAX}, key);
}

uint32_t *map_find(const struct map *m, struct str key)
{
    if (!m->cap) return NULL;
    struct map_slot *s = probe(m, hash_bytes(key.p, key.n, 0), key, 0);
    return s->used ? &s->value : NULL;
}

uint32_t *map_find_num(const struct map *m, uint64_t key)
{
    if (!m->cap) return NULL;
    struct map_slot *s = probe(m, num_hash(key), (struct str){NULL, SIZE_MAX}, key);
    return s->used ? &s->value : NULL;
}
