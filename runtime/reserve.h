/* A stretch of addresses that memory is added to at its end: it grows without moving. */
#ifndef STRATA_RUNTIME_RESERVE_H
#define STRATA_RUNTIME_RESERVE_H
#include <stddef.h>
#include "runtime/status.h"

struct reserve {
    void *base;   /* aligned to 2 MiB; NULL before the first reserve_grow */
    size_t bytes; /* usable from base on */
    void *map;    /* the whole stretch of addresses */
    size_t map_bytes;
};
/* Makes at least `bytes` usable; what is new is zero, what was there stays where it is. RT_machine
 * when there is no memory. A zeroed struct is an empty stretch. */
enum rt_status reserve_grow(struct reserve *r, size_t bytes, struct rt_error *err);
void reserve_close(struct reserve *r);
#endif
