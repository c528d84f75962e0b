/* The step folders of a run, seen from outside: names, the state in them, what killed saves left.
 */
#ifndef STRATA_RUNTIME_STEPS_H
#define STRATA_RUNTIME_STEPS_H
#include "runtime/checkpoint.h"

struct step_list {
    uint64_t *p; /* falling; in the arena */
    size_t n;
};
/* Every folder named step-<digits> (no leading zero). An absent folder is an empty list. */
enum rt_status steps_list(struct arena *a, const char *dir, struct step_list *out,
                          struct rt_error *err);
/* Removes what killed saves and removals left in a run folder. */
enum rt_status steps_clear_leftovers(const char *dir, struct rt_error *err);
/* Appends the text of state.json. */
void ckpt_state_text(const struct ckpt_state *s, struct sb *out);
#endif
