/* A hash map from byte strings or 64-bit keys to uint32 values, in an arena. No deletion. */
#ifndef STRATA_BASE_MAP_H
#define STRATA_BASE_MAP_H
#include "base/arena.h"
#include "base/str.h"
#include <stdint.h>

struct map_slot {
    uint64_t hash;
    struct str key; /* owned copy for string keys; n == SIZE_MAX marks an integer key */
    uint64_t num;
    uint32_t value;
    uint32_t used;
};
struct map {
    struct arena *arena;
    struct map_slot *slot;
    size_t n, cap;
};

void map_init(struct map *m, struct arena *a);
/* Room for n keys in all, so that growing moves nothing. */
void map_reserve(struct map *m, size_t n);
/* The value of a key, created as 0 where there is none. Valid until the next insertion. */
uint32_t *map_str(struct map *m, struct str key);
uint32_t *map_num(struct map *m, uint64_t key);
/* The value or NULL, without creating it. */
uint32_t *map_find(const struct map *m, struct str key);
uint32_t *map_find_num(const struct map *m, uint64_t key);

/* 64-bit hash (XXH3) of bytes; stable between runs and machines, so file names may be made of it.
 */
uint64_t hash_bytes(const void *p, size_t n, uint64_t seed);
/* 128-bit hash as 32 hex digits and a terminator. */
void hash_hex(const void *p, size_t n, char out[33]);
#endif
