/* The machine of cudacpu.h: the threads of a block are fibers, which run one at a time until a
 * barrier, a warp operation or their end. */
#include "cudacpu_machine.h"
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define LEAVE(keep, stack, n) __sanitizer_start_switch_fiber(keep, stack, n)
#define ENTER(keep, stack, n) __sanitizer_finish_switch_fiber(keep, stack, n)
#define CLEAN(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define LEAVE(keep, stack, n) ((void)(keep), (void)(stack), (void)(n))
#define ENTER(keep, stack, n) ((void)(keep), (void)(stack), (void)(n))
#define CLEAN(p, n) ((void)(p), (void)(n))
#endif

enum { BARRIERS = 16, COPIES = 512 };
enum state { READY, AT_BARRIER, AT_WARP, DONE };
typedef void finish_fn(void *const *arg, unsigned mask);

struct copy {
    void *dst;
    const void *src;
    size_t n;
    bool valid;
    int group, line;
    const char *file;
};
struct fiber {
    void *sp, *fake; /* fake: the sanitizer's */
    enum state state;
    const char *file; /* where it waits */
    int line, barrier;
    unsigned mask;
    finish_fn *finish;
    void *arg;
    struct dim3 index;
    int copies, group; /* cp.async: copies to be made, and the open group */
    struct copy *copy;
};
static struct barrier {
    int arrived, expected, line;
    const char *file;
} barriers[BARRIERS];

struct machine cudacpu_machine = {.thread = -1};
struct dim3 threadIdx, blockIdx, blockDim, gridDim;
char *cudacpu_dynamic;

static struct machine *const m = &cudacpu_machine;
static struct fiber fibers[THREADS]; /* small, as the scheduler looks at all of them */
static struct copy copies[THREADS][COPIES];
static void *scheduler_sp, *scheduler_fake;
static const void *scheduler_stack;
static size_t scheduler_size;
static struct region *dynamic;
static const char *kernel_name;
static void (*kernel)(void *const *);
static const void *kernel_args;
static uint32_t blocks_run;
static char report[1024];

/* Saves the callee's registers on this stack, whose pointer goes to *save, and returns on `to`. */
__attribute__((naked, noinline)) static void switch_stack(void **save __attribute__((unused)),
                                                          void *to __attribute__((unused)))
{
    __asm__("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
            "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
            "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}

static char *stack_of(int thread)
{
    return m->stacks + (size_t)thread * STACK;
}

/* Back to the scheduler until it takes this fiber up again. */
static void yield(struct fiber *f, bool last)
{
    LEAVE(last ? NULL : &f->fake, scheduler_stack, scheduler_size);
    switch_stack(&f->sp, scheduler_sp);
    ENTER(f->fake, NULL, NULL);
}

static void resume(int thread)
{
    struct fiber *f = &fibers[thread];
    m->thread = thread;
    threadIdx = f->index;
    LEAVE(&scheduler_fake, stack_of(thread), STACK);
    switch_stack(&scheduler_sp, f->sp);
    ENTER(scheduler_fake, NULL, NULL);
    m->thread = -1;
}

void cudacpu_fail(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(report, sizeof report, format, ap);
    va_end(ap);
    size_t at = n < 0 ? 0 : (size_t)n < sizeof report ? (size_t)n : sizeof report - 1;
    n = snprintf(report + at, sizeof report - at, " [%s, block (%u,%u,%u)", kernel_name, blockIdx.x,
                 blockIdx.y, blockIdx.z);
    at = at + (size_t)n < sizeof report ? at + (size_t)n : sizeof report - 1;
    snprintf(report + at, sizeof report - at, m->thread < 0 ? "]" : ", thread (%u,%u,%u)]",
             threadIdx.x, threadIdx.y, threadIdx.z);
    if (m->thread < 0) abort(); /* only kernels fail */
    yield(&fibers[m->thread], true);
    abort();
}

static void fiber_main(void)
{
    ENTER(NULL, &scheduler_stack, &scheduler_size);
    struct fiber *f = &fibers[m->thread];
    kernel(kernel_args);
    if (f->copies)
        cudacpu_fail("cp.async: the copy of %s:%d is never waited for", f->copy[0].file,
                     f->copy[0].line);
    f->state = DONE;
    yield(f, true);
}

static void fiber_start(int thread, struct dim3 index)
{
    struct fiber *f = &fibers[thread];
    CLEAN(stack_of(thread), STACK);
    void **top = (void **)(void *)(stack_of(thread) + STACK);
    void (*entry)(void) = fiber_main;
    *--top = NULL; /* what fiber_main would return to */
    memcpy(--top, &entry, sizeof entry);
    for (int i = 0; i < 6; i++) *--top = NULL;
    f->sp = top;
    f->state = READY;
    f->index = index;
    f->copies = f->group = 0;
    f->copy = copies[thread];
}

static void wait_at(struct fiber *f, enum state state, const char *file, int line)
{
    f->state = state;
    f->file = file;
    f->line = line;
}

void cudacpu_barrier(int id, int threads, const char *file, int line)
{
    struct fiber *me = &fibers[m->thread];
    struct barrier *b = &barriers[id];
    static int met[THREADS];
    int expected = threads ? threads : (int)m->threads, n = 0;
    if (b->arrived == 0) *b = (struct barrier){0, expected, line, file};
    if (b->expected != expected)
        cudacpu_fail("deadlock: barrier %d is for %d threads at %s:%d, for %d at %s:%d", id,
                     b->expected, b->file, b->line, expected, file, line);
    if (!threads && (b->line != line || strcmp(b->file, file) != 0))
        cudacpu_fail("divergent barrier: threads are at %s:%d and at %s:%d", b->file, b->line, file,
                     line);
    wait_at(me, AT_BARRIER, file, line);
    me->barrier = id;
    if (++b->arrived == expected) {
        for (unsigned t = 0; t < m->threads; t++)
            if (fibers[t].state == AT_BARRIER && fibers[t].barrier == id) met[n++] = (int)t;
        cudacpu_join(met, n);
        for (int i = 0; i < n; i++) fibers[met[i]].state = READY;
        b->arrived = 0;
    }
    yield(me, false);
}

/* Waits for the lanes of the mask, the last of which calls `finish` with everybody's arg. */
static void meet_lanes(unsigned mask, finish_fn *finish, void *arg, const char *file, int line)
{
    int first = m->thread / WARP * WARP;
    struct fiber *me = &fibers[m->thread], *lanes = fibers + first;
    void *args[WARP] = {0};
    bool all = true;
    if (!(mask >> (m->thread - first) & 1))
        cudacpu_fail("deadlock: %s:%d: a lane outside of its own mask %08x", file, line, mask);
    wait_at(me, AT_WARP, file, line);
    me->mask = mask, me->finish = finish, me->arg = arg;
    for (int i = WARP - 1; i >= 0; i--) { /* the last to come first: they mostly come in order */
        struct fiber *f = &lanes[i];
        if (!(mask >> i & 1)) continue;
        if (first + i < (int)m->threads && f->state == READY) { /* its own arrival looks again */
            all = false;
            break;
        }
        if (first + i >= (int)m->threads || f->state == DONE)
            cudacpu_fail("deadlock: %s:%d waits for lane %d, which has ended", file, line, i);
        if (f->state != AT_WARP) {
            all = false;
            continue;
        }
        if (f->mask != mask || f->finish != finish || f->line != line)
            cudacpu_fail(
                "deadlock: divergent lanes: %s:%d with mask %08x, lane %d is at %s:%d with "
                "%08x",
                file, line, mask, i, f->file, f->line, f->mask);
        args[i] = f->arg;
    }
    if (all) {
        finish(args, mask);
        for (int i = 0; i < WARP; i++)
            if (mask >> i & 1) lanes[i].state = READY;
    }
    yield(me, false);
}

/* Warp operations: what a lane gives and takes. */
struct exchange {
    uint64_t in, out;
    int from;
};

static void finish_shuffle(void *const *arg, unsigned mask)
{
    for (int i = 0; i < WARP; i++)
        if (mask >> i & 1) {
            struct exchange *x = arg[i];
            const struct exchange *from = mask >> x->from & 1 ? arg[x->from] : NULL;
            x->out = from ? from->in : UINT64_MAX;
        }
}

uint64_t cudacpu_shuffle(unsigned mask, uint64_t value, int from, const char *file, int line)
{
    struct exchange x = {value, 0, from};
    meet_lanes(mask, finish_shuffle, &x, file, line);
    return x.out;
}

static void finish_ballot(void *const *arg, unsigned mask)
{
    uint64_t votes = 0;
    for (int i = 0; i < WARP; i++)
        if (mask >> i & 1) votes |= ((const struct exchange *)arg[i])->in << i;
    for (int i = 0; i < WARP; i++)
        if (mask >> i & 1) ((struct exchange *)arg[i])->out = votes;
}

unsigned cudacpu_ballot(unsigned mask, bool p, const char *file, int line)
{
    struct exchange x = {p, 0, 0};
    meet_lanes(mask, finish_ballot, &x, file, line);
    return (unsigned)x.out;
}

static void finish_syncwarp(void *const *arg, unsigned mask)
{
    (void)arg;
    int thread[WARP], n = 0, first = m->thread / WARP * WARP;
    for (int i = 0; i < WARP; i++)
        if (mask >> i & 1) thread[n++] = first + i;
    cudacpu_join(thread, n);
}

void cudacpu_syncwarp(unsigned mask, const char *file, int line)
{
    meet_lanes(mask, finish_syncwarp, NULL, file, line);
}

int cudacpu_lane(void)
{
    return m->thread % WARP;
}

struct mma {
    float *c;
    const uint32_t *a, *b;
};

static float bits_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Element i of a register file of bf16 pairs, or of tf32 values. */
static double element(const uint32_t *r, int i, bool bf16)
{
    if (!bf16) return (double)bits_float(r[i] & 0xffffe000u);
    return (double)bits_float(i & 1 ? r[i / 2] & 0xffff0000u : r[i / 2] << 16);
}

static void multiply(void *const *arg, bool bf16)
{
    double a[16][16], b[16][8];
    int per = bf16 ? 2 : 1, K = bf16 ? 16 : 8;
    for (int lane = 0; lane < WARP; lane++) {
        const struct mma *x = arg[lane];
        int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < per; i++)
                a[g + r % 2 * 8][per * t + i + r / 2 * K / 2] = element(x->a, per * r + i, bf16);
        for (int r = 0; r < 2; r++)
            for (int i = 0; i < per; i++)
                b[per * t + i + r * K / 2][g] = element(x->b, per * r + i, bf16);
    }
    for (int lane = 0; lane < WARP; lane++)
        for (int i = 0; i < 4; i++) {
            float *c = &((const struct mma *)arg[lane])->c[i];
            int row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
            double sum = (double)*c;
            for (int k = 0; k < K; k++) sum += a[row][k] * b[k][col];
            *c = (float)sum;
        }
}

static void finish_mma_bf16(void *const *arg, unsigned mask)
{
    (void)mask;
    multiply(arg, true);
}

static void finish_mma_tf32(void *const *arg, unsigned mask)
{
    (void)mask;
    multiply(arg, false);
}

void cudacpu_mma(float c[4], const uint32_t *a, const uint32_t *b, bool bf16, const char *file,
                 int line)
{
    struct mma x = {c, a, b};
    meet_lanes(UINT32_MAX, bf16 ? finish_mma_bf16 : finish_mma_tf32, &x, file, line);
}

struct matrices {
    uint32_t *r;
    const void *row, *pc;
    int n;
    bool trans;
};

static void finish_ldmatrix(void *const *arg, unsigned mask)
{
    (void)mask;
    uint16_t row[WARP][8];
    const struct matrices *x0 = arg[0];
    for (int lane = 0; lane < 8 * x0->n; lane++) {
        const struct matrices *x = arg[lane];
        int thread = m->thread / WARP * WARP + lane;
        cudacpu_touch(thread, x->row, 16, 16, ACCESS_read, x->pc);
        memcpy(row[lane], x->row, 16);
    }
    for (int lane = 0; lane < WARP; lane++)
        for (int i = 0; i < x0->n; i++) {
            uint16_t(*mat)[8] = &row[8 * i];
            int g = lane / 4, t = lane % 4;
            uint16_t low = x0->trans ? mat[2 * t][g] : mat[g][2 * t];
            uint16_t high = x0->trans ? mat[2 * t + 1][g] : mat[g][2 * t + 1];
            ((const struct matrices *)arg[lane])->r[i] = low | (uint32_t)high << 16;
        }
}

void cudacpu_ldmatrix(uint32_t *r, const void *row, int n, bool trans, const char *file, int line)
{
    struct matrices x = {r, row, __builtin_return_address(0), n, trans};
    meet_lanes(UINT32_MAX, finish_ldmatrix, &x, file, line);
}

void cudacpu_aligned(const void *p, size_t n, const char *file, int line)
{
    if ((uintptr_t)p % n)
        cudacpu_fail("misaligned: an access of %zu bytes at %s:%d", n, file, line);
}

void cudacpu_cp_async(void *dst, const void *src, size_t n, bool valid, const char *file, int line)
{
    struct fiber *me = &fibers[m->thread];
    const void *pc = __builtin_return_address(0);
    if (me->copies == COPIES) cudacpu_fail("cp.async: %d copies wait at %s:%d", COPIES, file, line);
    if (((uintptr_t)dst | (uintptr_t)src) % n)
        cudacpu_fail("misaligned: cp.async of %zu bytes at %s:%d", n, file, line);
    if (valid) cudacpu_touch(m->thread, src, n, n, ACCESS_read, pc);
    cudacpu_touch(m->thread, dst, n, n, ACCESS_pending, pc);
    memset(dst, 0xff, n);
    me->copy[me->copies++] = (struct copy){dst, src, n, valid, me->group, line, file};
}

void cudacpu_cp_commit(void)
{
    fibers[m->thread].group++;
}

void cudacpu_cp_wait(int pending)
{
    struct fiber *me = &fibers[m->thread];
    int left = 0;
    for (int i = 0; i < me->copies; i++) {
        struct copy *c = &me->copy[i];
        if (c->group >= me->group - pending) {
            me->copy[left++] = *c;
            continue;
        }
        if (c->valid)
            memcpy(c->dst, c->src, c->n);
        else
            memset(c->dst, 0, c->n);
        cudacpu_arrived(m->thread, c->dst, c->n);
    }
    me->copies = left;
}

/* Nobody can run: says who waits where, and who is elsewhere. */
static void stuck(void)
{
    const struct fiber *first = NULL, *other = NULL;
    int n = 0;
    for (unsigned t = 0; t < m->threads; t++) {
        const struct fiber *f = &fibers[t];
        if (!first && f->state != DONE) first = f;
    }
    for (unsigned t = 0; t < m->threads; t++) {
        const struct fiber *f = &fibers[t];
        if (f->state == first->state && f->line == first->line)
            n++;
        else if (!other)
            other = f;
    }
    bool barrier = first->state == AT_BARRIER && first->barrier == 0;
    int at = snprintf(report, sizeof report,
                      "%s: %d of %u threads wait at %s:%d [%s, block (%u,%u,%u), first thread "
                      "(%u,%u,%u)]",
                      barrier ? "divergent barrier" : "deadlock", n, m->threads, first->file,
                      first->line, kernel_name, blockIdx.x, blockIdx.y, blockIdx.z, first->index.x,
                      first->index.y, first->index.z);
    if (!other || at < 0 || (size_t)at >= sizeof report) return;
    char *p = report + at;
    size_t room = sizeof report - (size_t)at;
    if (other->state == DONE)
        snprintf(p, room, "; thread (%u,%u,%u) has ended", other->index.x, other->index.y,
                 other->index.z);
    else
        snprintf(p, room, "; thread (%u,%u,%u) waits at %s:%d", other->index.x, other->index.y,
                 other->index.z, other->file, other->line);
}

/* order[0..n): 0..n-1 as the launch wants them. */
static void put_in_order(unsigned *order, unsigned n, enum cudacpu_order how, unsigned *seed)
{
    for (unsigned i = 0; i < n; i++) order[i] = how == CUDACPU_reversed ? n - 1 - i : i;
    for (unsigned i = n; how == CUDACPU_shuffled && i > 1; i--) {
        *seed = *seed * 1664525u + 1013904223u;
        unsigned j = (unsigned)((uint64_t)*seed * i >> 32), t = order[i - 1];
        order[i - 1] = order[j];
        order[j] = t;
    }
}

static void run_block(struct cudacpu_launch l, unsigned *seed)
{
    unsigned order[THREADS];
    m->block = ++blocks_run;
    if (m->c->shared) cudacpu_region_fill(m->c->shared);
    cudacpu_region_fill(dynamic);
    memset(barriers, 0, sizeof barriers);
    cudacpu_checks_block();
    for (unsigned t = 0; t < m->threads; t++) {
        struct dim3 i = {t % l.block.x, t / l.block.x % l.block.y, t / l.block.x / l.block.y};
        fiber_start((int)t, i);
    }
    for (bool left = true, moved; left && !report[0];) {
        left = moved = false;
        put_in_order(order, m->threads, l.order, seed);
        for (unsigned i = 0; i < m->threads && !report[0]; i++) {
            struct fiber *f = &fibers[order[i]];
            if (f->state == READY) {
                resume((int)order[i]);
                moved = true;
            }
            left |= f->state != DONE;
        }
        if (left && !moved && !report[0]) stuck();
    }
}

static void machine_open(void)
{
    if (m->stacks) return;
    size_t n = (size_t)THREADS * STACK;
    m->stacks =
        mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *at = aligned_alloc(256, DYNAMIC + 2 * SLACK);
    if (m->stacks == MAP_FAILED || !at) abort();
    cudacpu_dynamic = at + SLACK;
    dynamic = cudacpu_region(cudacpu_dynamic, DYNAMIC, true, true);
}

static const char *launch(struct cudacpu *c, const char *name, const char *how,
                          struct cudacpu_launch l, const void *args)
{
    char entry[256];
    snprintf(entry, sizeof entry, "%s_%s", name, how);
    void *at = dlsym(c->lib, entry);
    unsigned blocks = l.grid.x * l.grid.y * l.grid.z;
    machine_open();
    m->c = c;
    m->threads = l.block.x * l.block.y * l.block.z;
    m->first_block = blocks_run + 1;
    report[0] = 0;
    if (!at || !m->threads || m->threads > THREADS || l.shared > DYNAMIC) {
        snprintf(report, sizeof report, "launch: no kernel %s, or it asks for too much", name);
        return report;
    }
    memcpy(&kernel, &at, sizeof kernel);
    kernel_name = name, kernel_args = args;
    blockDim = l.block, gridDim = l.grid;
    cudacpu_region_resize(dynamic, l.shared);
    cudacpu_checks_launch(blocks);
    unsigned *order = calloc(blocks + 1, sizeof *order), seed = l.seed;
    if (!order) abort();
    put_in_order(order, blocks, l.order, &seed);
    for (unsigned i = 0; i < blocks && !report[0]; i++) {
        unsigned b = order[i];
        blockIdx = (struct dim3){b % l.grid.x, b / l.grid.x % l.grid.y, b / l.grid.x / l.grid.y};
        run_block(l, &seed);
    }
    free(order);
    return report[0] ? report : NULL;
}

const char *cudacpu_run(struct cudacpu *c, const char *name, struct cudacpu_launch l,
                        void *const *args)
{
    return launch(c, name, "entry", l, args);
}

const char *cudacpu_run_packed(struct cudacpu *c, const char *name, struct cudacpu_launch l,
                               const void *parameters)
{
    return launch(c, name, "packed", l, parameters);
}
