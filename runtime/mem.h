/* Memory of the runtime, aligned and counted, and the clock. */
#ifndef STRATA_RUNTIME_MEM_H
#define STRATA_RUNTIME_MEM_H
#include <stddef.h>
#include <stdint.h>

/* `size` zeroed bytes, aligned to 64; from 2 MiB on a mapping of its own with huge pages asked for.
 * NULL when the machine has no more. size 0 gives a valid pointer. */
void *mem_alloc(size_t size);
/* Gives back what mem_alloc gave, with the same size. NULL is fine. */
void mem_free(void *p, size_t size);
/* How often this thread called mem_alloc: steps compare it to show that none of them does. */
uint64_t mem_allocations(void);
/* Seconds of the monotonic clock. */
double mem_seconds(void);
#endif
