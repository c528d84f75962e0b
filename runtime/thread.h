/* A pool of threads that run independent items in pieces of fixed size. Which thread takes which
 * piece is left to chance, so functions must give the same bits whoever runs them. */
#ifndef STRATA_RUNTIME_THREAD_H
#define STRATA_RUNTIME_THREAD_H
#include <stddef.h>
#include <stdint.h>
#include "runtime/status.h"

struct pool;
/* Does items lo..hi-1. `worker` is below pool_threads; no two calls that run at the same time have
 * the same one. */
typedef void pool_fn(void *arg, int64_t lo, int64_t hi, unsigned worker);

/* Cores that this process may use (its affinity mask), at least 1. */
unsigned pool_cores(void);
/* The number of threads of pool_open(0): STRATA_THREADS, or else pool_cores. RT_user when that is
 * no number of threads. */
enum rt_status pool_wanted(unsigned *threads, struct rt_error *err);
/* A pool of `threads` threads, the caller of pool_run among them; 0 means STRATA_THREADS, or else
 * pool_cores. RT_user for a bad STRATA_THREADS, RT_machine when threads cannot be made. */
enum rt_status pool_open(unsigned threads, struct pool **out, struct rt_error *err);
/* Ends and joins the threads. NULL is fine. */
void pool_close(struct pool *pool);
unsigned pool_threads(const struct pool *pool);
/* Runs fn over items 0..items-1 in pieces of `grain` (the last may be short) and returns when all
 * are done; what they wrote is then visible. One piece runs here at once, without waking anybody.
 * Not to be called from inside fn, nor by two threads at the same time. In a forked child, whose
 * workers do not exist, the caller does everything. */
void pool_run(struct pool *pool, pool_fn *fn, void *arg, int64_t items, int64_t grain);
/* Gives every worker at least `bytes` of scratch memory; what was in it is lost. RT_machine when
 * there is no memory. Not during a pool_run. */
enum rt_status pool_reserve(struct pool *pool, size_t bytes, struct rt_error *err);
/* A worker's scratch memory, aligned to 64; NULL before the first pool_reserve. */
void *pool_scratch(const struct pool *pool, unsigned worker);
#endif
