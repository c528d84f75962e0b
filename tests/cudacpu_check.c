/* Which accesses of a kernel are wrong (cudacpu.h). Order is kept in vector clocks: clock_of[t][u]
 * is how far thread t has seen thread u; a barrier joins the clocks of those who meet. Every byte
 * of a region has a shadow: its last write and two reads since, the first and the last of unordered
 * ones. */
#include "cudacpu_machine.h"
#include <stdio.h>
#include <stdlib.h>

struct access {
    uint32_t block, clock, pc; /* block 0: none; pc relative to the object */
    uint16_t thread;
    uint8_t kind;
};
struct cell {
    struct access write, read[2];
};
struct region {
    char *begin;
    size_t n, made;
    bool shared, slack;
    struct cell *cell;
};

enum { REGIONS = 2064 };
static struct region regions[REGIONS];
static struct region *regions_end = regions, *recent; /* none from here on; found last */
static uint32_t clock_of[THREADS][THREADS];
static bool *fenced; /* per block of the launch: has used __threadfence */

struct region *cudacpu_region(char *begin, size_t n, bool shared, bool slack)
{
    for (struct region *r = regions; r < regions + REGIONS; r++)
        if (!r->begin) {
            struct cell *cell = calloc(n + 1, sizeof *cell);
            if (!cell) abort();
            *r = (struct region){begin, n, n, shared, slack, cell};
            if (r >= regions_end) regions_end = r + 1;
            return r;
        }
    fprintf(stderr, "cudacpu: more than %d arrays\n", REGIONS);
    abort();
}

void cudacpu_region_free(struct region *r)
{
    free(r->cell);
    *r = (struct region){0};
}

void cudacpu_region_resize(struct region *r, size_t n)
{
    r->n = n;
}

void cudacpu_region_fill(struct region *r)
{
    memset(r->begin, 0xff, r->n);
}

void cudacpu_checks_launch(unsigned blocks)
{
    free(fenced);
    fenced = calloc(blocks + 1, sizeof *fenced);
    if (!fenced) abort();
}

void cudacpu_checks_block(void)
{
    if (!cudacpu_machine.c->checked) return;
    for (unsigned t = 0; t < cudacpu_machine.threads; t++) {
        memset(clock_of[t], 0, cudacpu_machine.threads * sizeof clock_of[t][0]);
        clock_of[t][t] = 1;
    }
}

void cudacpu_join(const int *thread, int n)
{
    static uint32_t all[THREADS];
    unsigned threads = cudacpu_machine.threads;
    if (!cudacpu_machine.c->checked) return;
    if ((unsigned)n == threads) {
        for (unsigned u = 0; u < threads; u++) all[u] = clock_of[u][u];
    } else {
        memset(all, 0, sizeof all);
        for (int i = 0; i < n; i++)
            for (unsigned u = 0; u < threads; u++)
                if (clock_of[thread[i]][u] > all[u]) all[u] = clock_of[thread[i]][u];
    }
    for (int i = 0; i < n; i++) {
        int t = thread[i];
        memcpy(clock_of[t], all, threads * sizeof all[0]);
        clock_of[t][t]++;
    }
}

void cudacpu_fence(void)
{
    fenced[cudacpu_machine.block - cudacpu_machine.first_block] = true;
}

/* Whether access x lies before `now` for certain. */
static bool ordered(const struct region *r, const struct access *x, const struct access *now)
{
    uint32_t first = cudacpu_machine.first_block;
    if (x->block == now->block)
        return x->thread == now->thread || clock_of[now->thread][x->thread] >= x->clock;
    if (r->shared || x->block < first) return true;
    return fenced[x->block - first] && fenced[now->block - first];
}

static bool conflicts(const struct region *r, const struct access *x, const struct access *now)
{
    if (x->kind == ACCESS_pending && x->block == now->block) return true;
    if (x->kind == ACCESS_atomic && now->kind == ACCESS_atomic) return false;
    return !ordered(r, x, now);
}

/* "kernels:12" for a place in the object, where addr2line is installed. */
static const char *line_of(uint32_t pc)
{
    static char text[2][256];
    static int turn;
    char command[512], *at = text[turn ^= 1];
    snprintf(at, sizeof text[0], "object+0x%x", pc);
    snprintf(command, sizeof command, "addr2line -s -e %s 0x%x 2>&1", cudacpu_machine.c->object,
             pc - 1);
    FILE *f = popen(command, "r");
    char line[256];
    if (f && fgets(line, sizeof line, f) && strchr(line, ':') && line[0] != '?') {
        line[strcspn(line, " \n")] = 0;
        snprintf(at, sizeof text[0], "%s", line);
    }
    if (f) pclose(f);
    return at;
}

static const char *const words[] = {"", "reads", "writes", "changes atomically", "copies"};
static const char *const past[] = {"", "read", "written", "changed atomically", "copied"};

static _Noreturn void race(const struct region *r, size_t at, const struct access *x,
                           const struct access *now)
{
    const char *memory = r->shared ? "shared" : "global";
    if (x->kind == ACCESS_pending)
        cudacpu_fail("cp.async: %s %s byte %zu of %s memory before the wait for the copy of %s",
                     line_of(now->pc), words[now->kind], at, memory, line_of(x->pc));
    cudacpu_fail("race: %s %s byte %zu of %s memory, %s by thread %d%s at %s; no barrier between",
                 line_of(now->pc), words[now->kind], at, memory, past[x->kind], x->thread,
                 x->block == now->block ? "" : " of another block", line_of(x->pc));
}

static void touch_byte(const struct region *r, size_t at, const struct access *now)
{
    struct cell *c = &r->cell[at];
    if (conflicts(r, &c->write, now)) race(r, at, &c->write, now);
    if (now->kind == ACCESS_read) {
        c->read[ordered(r, &c->read[0], now) ? 0 : 1] = *now;
        return;
    }
    for (int i = 0; i < 2; i++)
        if (conflicts(r, &c->read[i], now)) race(r, at, &c->read[i], now);
    *c = (struct cell){.write = *now};
}

static struct region *find(const char *p)
{
    if (recent && recent->begin && p >= recent->begin && p < recent->begin + recent->made)
        return recent;
    for (struct region *r = regions; r < regions_end; r++) {
        size_t slack = r->slack ? SLACK : 0;
        if (r->begin && p >= r->begin - slack && p < r->begin + r->made + slack) return recent = r;
    }
    return NULL;
}

void cudacpu_touch(int thread, const void *p, size_t n, size_t align, enum access_kind kind,
                   const void *pc)
{
    const struct machine *m = &cudacpu_machine;
    const char *at = p;
    if (thread < 0 || !m->c->checked) return;
    if (at >= m->stacks && at < m->stacks + (size_t)THREADS * STACK) return;
    struct region *r = find(at);
    if (!r) return;
    struct access now = {m->block, clock_of[thread][thread],
                         (uint32_t)((const char *)pc - m->c->base), (uint16_t)thread,
                         (uint8_t)kind};
    if (at < r->begin || at + n > r->begin + r->n)
        cudacpu_fail("out of bounds: %s %s %zu bytes at %td of %zu of %s memory", line_of(now.pc),
                     words[kind], n, at - r->begin, r->n, r->shared ? "shared" : "global");
    if ((uintptr_t)p % align)
        cudacpu_fail("misaligned: %s %s %zu bytes at %td", line_of(now.pc), words[kind], n,
                     at - r->begin);
    for (size_t i = 0; i < n; i++) touch_byte(r, (size_t)(at - r->begin) + i, &now);
}

void cudacpu_arrived(int thread, const void *p, size_t n)
{
    const struct machine *m = &cudacpu_machine;
    struct region *r = m->c->checked ? find(p) : NULL;
    for (size_t i = 0; r && i < n; i++) {
        struct access *w = &r->cell[(size_t)((const char *)p - r->begin) + i].write;
        w->kind = ACCESS_write;
        w->clock = clock_of[thread][thread];
    }
}

/* What -fsanitize=thread has compilers insert. */
#if defined __has_feature
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#ifndef __SANITIZE_THREAD__
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#ifdef __clang__
#pragma clang diagnostic ignored "-Wreserved-identifier"
#endif
#define HOOK(name, n, align, kind)                                                             \
    void name(void *p)                                                                         \
    {                                                                                          \
        cudacpu_touch(cudacpu_machine.thread, p, n, align, kind, __builtin_return_address(0)); \
    }
#define HOOKS(n)                                       \
    HOOK(__tsan_read##n, n, n, ACCESS_read)            \
    HOOK(__tsan_write##n, n, n, ACCESS_write)          \
    HOOK(__tsan_volatile_read##n, n, n, ACCESS_read)   \
    HOOK(__tsan_volatile_write##n, n, n, ACCESS_write) \
    HOOK(__tsan_unaligned_read##n, n, 1, ACCESS_read)  \
    HOOK(__tsan_unaligned_write##n, n, 1, ACCESS_write)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
#define RANGE(name, kind)                                                                  \
    void name(void *p, size_t n)                                                           \
    {                                                                                      \
        cudacpu_touch(cudacpu_machine.thread, p, n, 1, kind, __builtin_return_address(0)); \
    }
RANGE(__tsan_read_range, ACCESS_read)
RANGE(__tsan_write_range, ACCESS_write)
void *__tsan_memcpy(void *to, const void *from, size_t n)
{
    const void *pc = __builtin_return_address(0);
    cudacpu_touch(cudacpu_machine.thread, from, n, 1, ACCESS_read, pc);
    cudacpu_touch(cudacpu_machine.thread, to, n, 1, ACCESS_write, pc);
    return memcpy(to, from, n);
}
void *__tsan_memmove(void *to, const void *from, size_t n)
{
    const void *pc = __builtin_return_address(0);
    cudacpu_touch(cudacpu_machine.thread, from, n, 1, ACCESS_read, pc);
    cudacpu_touch(cudacpu_machine.thread, to, n, 1, ACCESS_write, pc);
    return memmove(to, from, n);
}
void *__tsan_memset(void *to, int v, size_t n)
{
    cudacpu_touch(cudacpu_machine.thread, to, n, 1, ACCESS_write, __builtin_return_address(0));
    return memset(to, v, n);
}
void __tsan_init(void)
{
}
void __tsan_func_entry(void *pc)
{
    (void)pc;
}
void __tsan_func_exit(void)
{
}
#endif

/* The atomic operations of kernels. */
void cudacpu_atomic_load(void *to, const void *p, size_t n)
{
    cudacpu_touch(cudacpu_machine.thread, p, n, n, ACCESS_atomic, __builtin_return_address(0));
    memcpy(to, p, n);
}

void cudacpu_atomic_store(void *p, const void *from, size_t n)
{
    memcpy(p, from, n);
}
