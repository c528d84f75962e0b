/* Offsets for blocks with lifetimes: the part of the memory planner that packs. */
#ifndef STRATA_COMPILER_MEMPLAN_PLACE_H
#define STRATA_COMPILER_MEMPLAN_PLACE_H
#include "base/arena.h"
#include <stdbool.h>
#include <stdint.h>

struct mem_block {
    uint64_t bytes; /* a multiple of 64 */
    uint32_t first, last;
    uint64_t offset; /* found */
};

/* Gives every block an offset so that blocks whose lifetimes meet do not overlap; returns the bytes
 * needed. Deterministic. */
uint64_t memplan_place(struct arena *a, struct mem_block *block, size_t n);
/* Most bytes alive at once. */
uint64_t memplan_live(struct arena *a, const struct mem_block *block, size_t n);
#endif
