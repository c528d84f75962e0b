#include "runtime/reserve.h"
#include <stdint.h>
#include <sys/mman.h>

#define PAGE ((size_t)2 << 20) /* a huge page */
#define MOST ((size_t)1 << 38) /* addresses asked for at first; they cost nothing */

static enum rt_status open_at(struct reserve *r, size_t bytes, struct rt_error *err)
{
    for (size_t n = MOST > bytes ? MOST : bytes; n >= bytes; n /= 2) {
        void *p =
            mmap(NULL, n + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) continue;
        r->map = p;
        r->map_bytes = n + PAGE;
        r->base = (void *)(((uintptr_t)p + PAGE - 1) / PAGE * PAGE);
        return RT_ok;
    }
    return rt_fail(err, RT_machine, "no addresses for %zu bytes of memory", bytes);
}

enum rt_status reserve_grow(struct reserve *r, size_t bytes, struct rt_error *err)
{
    size_t want = bytes ? (bytes + PAGE - 1) / PAGE * PAGE : PAGE;
    if (!r->base) RT_TRY(open_at(r, want, err));
    if (want <= r->bytes) return RT_ok;
    char *end = (char *)r->base + r->bytes;
    if (want > r->map_bytes - PAGE || mprotect(end, want - r->bytes, PROT_READ | PROT_WRITE))
        return rt_fail(err, RT_machine, "no memory for %zu bytes", want);
    madvise(end, want - r->bytes, MADV_HUGEPAGE);
    r->bytes = want;
    return RT_ok;
}

void reserve_close(struct reserve *r)
{
    if (r->map) munmap(r->map, r->map_bytes);
    *r = (struct reserve){0};
}
