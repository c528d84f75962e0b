/* How a run is shared out. A 64-bit ticket holds the number of the run (high half) and how many of
 * its pieces are left (low half). A thread takes a piece by lowering the ticket by one with
 * compare-and-swap, which fails once the run is over. A thread that wakes up late thus finds
 * nothing to take, and nobody waits for it: a run ends when its pieces are done, not when all
 * threads have looked at it.
 *
 * Waiting is a bounded spin, then a futex. A spin without bound would lose a thousandfold as soon
 * as something else takes a core; a futex alone costs microseconds at each of thousands of steps.
 */
#include "runtime/thread.h"
#include "runtime/mem.h"
#include "base/arena.h"
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 1024, LINE = 64 };
static const long SPIN_NS = 5000;

struct worker {
    struct pool *pool;
    pthread_t thread;
    unsigned index;
    void *scratch;
};

/* Fields that different threads write stand in cache lines of their own. */
struct pool {
    _Alignas(LINE) _Atomic uint64_t ticket;
    _Alignas(LINE) _Atomic uint32_t wake; /* raised by every run; what idle workers sleep on */
    _Atomic uint32_t sleepers;
    _Atomic bool quit;
    /* The run. Atomic because a late worker may read them while the next run is written; it then
     * fails to take a piece and uses nothing of what it read. */
    _Atomic(pool_fn *) fn;
    _Atomic(void *) arg;
    _Atomic int64_t items, grain;
    _Atomic uint32_t pieces;
    _Alignas(LINE) _Atomic uint32_t done; /* pieces finished; the caller may sleep on it */
    _Atomic bool caller_sleeps;
    _Alignas(LINE) _Atomic bool busy;
    unsigned threads;
    bool spin;
    uint32_t forks; /* process the workers live in, see fork_count */
    size_t scratch_bytes;
    struct worker *worker;
};

/* Raised in every forked child: workers exist only in the process that made them. */
static _Atomic uint32_t fork_count;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void fork_child(void)
{
    atomic_fetch_add(&fork_count, 1);
}

static void fork_watch(void)
{
    pthread_atfork(NULL, NULL, fork_child);
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, (void *)word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, (void *)word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static long now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long)t.tv_sec * 1000000000L + t.tv_nsec;
}

static void relax(void)
{
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* Waits until *word is no longer `seen`, for SPIN_NS at most. */
static bool spin_while(_Atomic uint32_t *word, uint32_t seen)
{
    long end = 0;
    for (unsigned i = 0;; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen) return true;
        relax();
        if (i % 16) continue;
        long t = now_ns();
        if (!end) end = t + SPIN_NS;
        if (t >= end) return false;
    }
}

/* Takes and does pieces until there are none. */
static void work(struct pool *p, unsigned index)
{
    uint32_t mine = 0;
    for (;;) {
        uint64_t t = atomic_load_explicit(&p->ticket, memory_order_acquire);
        uint32_t left = (uint32_t)t;
        if (!left) break;
        uint32_t pieces = atomic_load_explicit(&p->pieces, memory_order_relaxed);
        pool_fn *fn = atomic_load_explicit(&p->fn, memory_order_relaxed);
        void *arg = atomic_load_explicit(&p->arg, memory_order_relaxed);
        int64_t items = atomic_load_explicit(&p->items, memory_order_relaxed);
        int64_t grain = atomic_load_explicit(&p->grain, memory_order_relaxed);
        if (!atomic_compare_exchange_weak_explicit(&p->ticket, &t, t - 1, memory_order_acq_rel,
                                                   memory_order_relaxed))
            continue;
        /* The run was still open when the piece was taken, and stays open until it is counted
         * below, so what was read above belongs to it. */
        int64_t lo = (int64_t)(pieces - left) * grain, hi = items - lo < grain ? items : lo + grain;
        fn(arg, lo, hi, index);
        mine++;
    }
    if (!mine) return;
    /* Nothing but the memory of the pool may be relied on after this: the run may be over. The
     * caller sleeps only after it has said so and looked at `done` again, hence seq_cst. */
    atomic_fetch_add(&p->done, mine);
    if (index && atomic_load(&p->caller_sleeps)) futex_wake(&p->done, 1);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    for (;;) {
        uint32_t seen = atomic_load(&p->wake);
        if (atomic_load(&p->quit)) return NULL;
        work(p, w->index);
        if (p->spin && spin_while(&p->wake, seen)) continue;
        atomic_fetch_add(&p->sleepers, 1);
        futex_wait(&p->wake, seen); /* returns at once when `wake` has moved on */
        atomic_fetch_sub(&p->sleepers, 1);
    }
}

unsigned pool_cores(void)
{
    for (size_t max = 1024; max <= 1u << 20; max *= 4) {
        cpu_set_t *set = CPU_ALLOC(max);
        size_t size = CPU_ALLOC_SIZE(max);
        int n = set && !sched_getaffinity(0, size, set) ? CPU_COUNT_S(size, set) : 0;
        bool more = set && !n && errno == EINVAL; /* the mask was too small for this machine */
        CPU_FREE(set);
        if (n > 0) return (unsigned)n;
        if (!more) break;
    }
    return 1;
}

enum rt_status pool_wanted(unsigned *threads, struct rt_error *err)
{
    const char *s = getenv("STRATA_THREADS");
    if (!s || !*s) {
        unsigned n = pool_cores();
        *threads = n < MAX_THREADS ? n : MAX_THREADS;
        return RT_ok;
    }
    char *end;
    errno = 0;
    long n = strtol(s, &end, 10);
    if (*end || errno || n < 1 || n > MAX_THREADS)
        return rt_fail(err, RT_user, "STRATA_THREADS is '%s', not a number from 1 to %d", s,
                       MAX_THREADS);
    *threads = (unsigned)n;
    return RT_ok;
}

/* Starts workers 1..threads-1; returns how many threads the pool then has. Signals are the business
 * of the thread that opened the pool. */
static unsigned start(struct pool *p, unsigned threads, int *error)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    unsigned n = 1;
    for (*error = 0; n < threads; n++) {
        struct worker *w = &p->worker[n];
        *error = pthread_create(&w->thread, NULL, worker_main, w);
        if (*error) break;
        char name[16];
        snprintf(name, sizeof name, "strata-%u", n % 10000);
        pthread_setname_np(w->thread, name);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return n;
}

enum rt_status pool_open(unsigned threads, struct pool **out, struct rt_error *err)
{
    *out = NULL;
    if (!threads) RT_TRY(pool_wanted(&threads, err));
    if (threads > MAX_THREADS)
        return rt_fail(err, RT_user, "%u threads asked for, at most %d", threads, MAX_THREADS);
    pthread_once(&fork_once, fork_watch);
    struct pool *p = mem_alloc(sizeof *p);
    struct worker *w = mem_alloc(threads * sizeof *w);
    if (!p || !w) {
        mem_free(p, sizeof *p);
        mem_free(w, threads * sizeof *w);
        return rt_fail(err, RT_machine, "no memory for %u threads", threads);
    }
    p->worker = w;
    p->forks = atomic_load(&fork_count);
    p->spin = threads <= pool_cores(); /* more threads than cores: spinning only keeps others off */
    for (unsigned i = 0; i < threads; i++) w[i] = (struct worker){.pool = p, .index = i};
    int error;
    p->threads = threads;
    unsigned n = start(p, threads, &error);
    if (error) {
        p->threads = n;
        pool_close(p);
        return rt_fail(err, RT_machine, "cannot start thread %u of %u: %s", n + 1, threads,
                       strerror(error));
    }
    *out = p;
    return RT_ok;
}

void pool_close(struct pool *p)
{
    if (!p) return;
    if (p->forks == atomic_load(&fork_count)) {
        atomic_store(&p->quit, true);
        atomic_fetch_add(&p->wake, 1);
        futex_wake(&p->wake, MAX_THREADS);
        for (unsigned i = 1; i < p->threads; i++) pthread_join(p->worker[i].thread, NULL);
    }
    for (unsigned i = 0; i < p->threads; i++) mem_free(p->worker[i].scratch, p->scratch_bytes);
    mem_free(p->worker, p->threads * sizeof *p->worker);
    mem_free(p, sizeof *p);
}

unsigned pool_threads(const struct pool *p)
{
    return p->threads;
}

/* Publishes the run and wakes sleepers, one for each piece beyond the caller's first. */
static void publish(struct pool *p, pool_fn *fn, void *arg, int64_t items, int64_t grain,
                    uint32_t pieces)
{
    uint64_t t = atomic_load_explicit(&p->ticket, memory_order_relaxed);
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    atomic_store_explicit(&p->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&p->arg, arg, memory_order_relaxed);
    atomic_store_explicit(&p->items, items, memory_order_relaxed);
    atomic_store_explicit(&p->grain, grain, memory_order_relaxed);
    atomic_store_explicit(&p->pieces, pieces, memory_order_relaxed);
    atomic_store_explicit(&p->ticket, ((t >> 32) + 1) << 32 | pieces, memory_order_release);
    atomic_fetch_add(&p->wake, 1);
    uint32_t asleep = atomic_load(&p->sleepers);
    if (asleep) futex_wake(&p->wake, (int)(asleep < pieces - 1 ? asleep : pieces - 1));
}

void pool_run(struct pool *p, pool_fn *fn, void *arg, int64_t items, int64_t grain)
{
    CHECK(grain >= 1);
    if (items <= 0) return;
    int64_t pieces = (items - 1) / grain + 1;
    CHECK(pieces <= UINT32_MAX);
    CHECK(!atomic_exchange_explicit(&p->busy, true, memory_order_acquire));
    if (pieces == 1 || p->threads == 1 ||
        p->forks != atomic_load_explicit(&fork_count, memory_order_relaxed)) {
        for (int64_t lo = 0; lo < items; lo += grain)
            fn(arg, lo, items - lo < grain ? items : lo + grain, 0);
    } else {
        publish(p, fn, arg, items, grain, (uint32_t)pieces);
        work(p, 0);
        for (uint32_t done; (done = atomic_load(&p->done)) != (uint32_t)pieces;) {
            if (p->spin && spin_while(&p->done, done)) continue;
            atomic_store(&p->caller_sleeps, true);
            if (atomic_load(&p->done) == done) futex_wait(&p->done, done);
            atomic_store(&p->caller_sleeps, false);
        }
    }
    atomic_store_explicit(&p->busy, false, memory_order_release);
}

enum rt_status pool_reserve(struct pool *p, size_t bytes, struct rt_error *err)
{
    CHECK(!atomic_load(&p->busy));
    if (bytes <= p->scratch_bytes) return RT_ok;
    size_t want = (bytes + 4095) / 4096 * 4096;
    for (unsigned i = 0; i < p->threads; i++) {
        mem_free(p->worker[i].scratch, p->scratch_bytes);
        p->worker[i].scratch = NULL;
    }
    p->scratch_bytes = want;
    for (unsigned i = 0; i < p->threads; i++) {
        p->worker[i].scratch = mem_alloc(want);
        if (!p->worker[i].scratch)
            return rt_fail(err, RT_machine, "no memory for %zu bytes of scratch in each thread",
                           bytes);
    }
    return RT_ok;
}

void *pool_scratch(const struct pool *p, unsigned worker)
{
    return p->worker[worker].scratch;
}
