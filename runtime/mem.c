#include "runtime/mem.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { ALIGN = 64, HUGE = 2 << 20 };

static _Thread_local uint64_t allocations;

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

void *mem_alloc(size_t size)
{
    allocations++;
    if (size > SIZE_MAX - HUGE) return NULL;
    if (size < HUGE) {
        void *p = aligned_alloc(ALIGN, round_up(size ? size : 1, ALIGN));
        if (p) memset(p, 0, size);
        return p;
    }
    /* Huge pages begin at multiples of their size: map more, then cut the ends off. */
    size_t n = round_up(size, HUGE);
    char *p = mmap(NULL, n + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    char *q = (char *)round_up((uintptr_t)p, HUGE);
    if (q > p) munmap(p, (size_t)(q - p));
    if (q < p + HUGE) munmap(q + n, (size_t)(p + HUGE - q));
    madvise(q, n, MADV_HUGEPAGE); /* speed only: a kernel without them refuses */
    return q;
}

void mem_free(void *p, size_t size)
{
    if (size < HUGE)
        free(p);
    else if (p)
        munmap(p, round_up(size, HUGE));
}

uint64_t mem_allocations(void)
{
    return allocations;
}

double mem_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
