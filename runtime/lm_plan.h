/* A language model (runtime/lm.h) as plans of the decode program, on the CPU. All that it needs
 * says a plan itself, by the names and sizes of its values:
 *   tokens i32[B*T], past i32[B], pages i32[B * context/64], states i32[B]   inputs; the last two
 *                         only where a layer looks at them
 *   logits f32[B,V]
 *   depth.SITE, depth.partial.SITE   f32[B*T, sources] of the active sites, in their order
 *   cache.page.NAME       64 rows for each page
 *   cache.state.NAME      as many rows for each state
 * so plans of the compiler's session and plans of a file are run alike. */
#ifndef STRATA_RUNTIME_LM_PLAN_H
#define STRATA_RUNTIME_LM_PLAN_H
#include "abi.h"
#include "base/arena.h"
#include "runtime/lm.h"
#include "runtime/thread.h"

/* B sequences of T new tokens. Of all plans of a model caches and parameters have the same places.
 */
struct lm_plan {
    int64_t B, T;
    const struct sa_plan *plan; /* kernels have their addresses */
    /* Memory by arena, as in exec_options; for those that are NULL the model has memory, which all
     * its plans share. */
    void *memory[SA_external];
};
struct lm_parts {
    int64_t context, pages, states; /* as the program was built */
    int64_t batch;                  /* 0: the largest B of its plans */
    const struct lm_plan *plan;
    size_t num_plans; /* at least 1 */
    struct pool *pool;
    /* Gives the plan of a shape that is run and not there; NULL: that is a bug. */
    enum rt_status (*missing)(void *arg, int64_t B, int64_t T, struct lm_plan *out,
                              struct rt_error *err);
    void *arg;
};
/* For plans of a file, which may say anything: RT_user with what is false where they are no decode
 * programs of these sizes, which lm_plan_open and others take for a bug. `cpu`: to be run by exec.
 */
enum rt_status lm_plans_check(const struct lm_parts *parts, bool cpu, struct rt_error *err);
/* Plans and pool stay the caller's and outlive the model; lm_ops.close ends it. RT_machine without
 * memory; a plan that is no decode program of these sizes is a bug and aborts. */
enum rt_status lm_plan_open(const struct lm_parts *parts, struct lm **out, struct rt_error *err);

/* ---- for others that run such plans ---- */

struct lm_cache {
    uint32_t value; /* index into sa_plan.values */
    uint64_t bytes; /* of a page or state */
    bool paged;
};
/* Where the values of a plan are in sa_plan.values: UINT32_MAX for an input that it has not. */
struct lm_values {
    uint32_t tokens, past, pages, states, logits;
    uint32_t *site;
    struct lm_cache *cache;
    size_t num_sites, num_caches;
};
/* Arrays are in the arena. */
struct lm_values lm_values_of(struct arena *a, const struct lm_parts *parts,
                              const struct lm_plan *p);
/* What a plan says of the model; `batch` is that of the parts. Sites are in the arena. */
struct lm_about lm_about_of(struct arena *a, const struct lm_parts *parts, const struct lm_plan *p,
                            const struct lm_values *v);
/* BUG where a call does not fit the model. */
void lm_call_check(const struct lm_about *m, const struct lm_call *c);
#endif
