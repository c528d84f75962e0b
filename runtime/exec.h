/* Runs a plan: gives its arenas memory, resolves buffers to pointers, calls kernels through the
 * pool, and measures steps when asked. */
#ifndef STRATA_RUNTIME_EXEC_H
#define STRATA_RUNTIME_EXEC_H
#include <stdbool.h>
#include "abi.h"
#include "base/str.h"
#include "runtime/status.h"
#include "runtime/thread.h"

struct exec;

struct exec_options {
    unsigned slots; /* micro-batches in flight, 0 means 1 */
    /* Memory to use instead of an allocation of our own, by arena: how plans of several shapes
     * share their parameters. Aligned to 64, at least the plan's arena_bytes (of SA_slot: slots
     * times, each rounded up to 64), outlives the exec. */
    void *memory[SA_external];
};

/* Prepares a plan whose kernels have addresses. The plan and the pool stay the caller's and outlive
 * the exec; options NULL means all defaults. Own memory is zeroed. RT_machine without memory. An
 * inconsistent plan is a bug and aborts. */
enum rt_status exec_open(const struct sa_plan *plan, struct pool *pool,
                         const struct exec_options *options, struct exec **out,
                         struct rt_error *err);
void exec_close(struct exec *x);

/* Binds external input i (SA_external + i) to memory of at least its `bytes`, until bound anew. */
void exec_bind(struct exec *x, uint32_t i, void *p);
/* The index of an external input, an entry point, a named value; UINT32_MAX when there is none. */
uint32_t exec_find_extern(const struct exec *x, const char *name);
uint32_t exec_find_entry(const struct exec *x, const char *name);
uint32_t exec_find_value(const struct exec *x, const char *name);
/* Where a named value lives (in that slot, where it is in SA_slot); NULL for an unbound input. */
void *exec_value(const struct exec *x, uint32_t value, unsigned slot);
/* The memory of an arena (of SA_slot: slot 0), to share it with another plan. */
void *exec_arena(const struct exec *x, enum sa_arena arena);

/* Runs all steps of an entry point with the activations of `slot`. Every external input that its
 * steps touch must be bound. Allocates nothing (checked). */
void exec_run(struct exec *x, uint32_t entry, unsigned slot);

/* Measures every step from now on, from zero (on), or stops (off; what was measured stays). */
void exec_profile(struct exec *x, bool on);
/* What a step has taken since profiling began. */
struct exec_tally {
    double seconds, best; /* all its runs; the shortest */
    uint64_t calls;
};
/* Of step i of the plan; all zero where nothing was measured. */
struct exec_tally exec_profile_step(const struct exec *x, uint32_t i);
/* Per step, NULL where nothing was measured. */
const struct exec_tally *exec_tally(const struct exec *x);
/* The table so far, one line per label, longest time first: seconds, share, calls, us a call. */
void exec_profile_print(const struct exec *x, struct sb *out);
/* The same of any tallies of a plan's steps (NULL: nothing). */
void exec_tally_print(const struct sa_plan *p, const struct exec_tally *tally, struct sb *out);
#endif
