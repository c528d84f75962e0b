/* Runs of plans and sums between them, put together once and run as one: on a device a recording
 * that one call launches, without the host in between; on a CPU the same things in the same order.
 *
 *   struct script *x = script_open(s);
 *   size_t first = script_run(x, plan);
 *   script_result(x, plan_value(plan, "loss"));
 *   ... per launch: memcpy(script_input(x, first, "tokens"), ...); script_launch(x, &err);
 *       (work of the host) script_wait(x, &err); read plan_value(plan, "loss")->p */
#ifndef STRATA_COMPILER_SCRIPT_H
#define STRATA_COMPILER_SCRIPT_H
#include "compiler/program.h"

struct script;

/* An empty script over plans of the session that are ready; lives as long as the session. */
struct script *script_open(struct session *s);
/* Adds a run of a plan; *run becomes its number. */
enum rt_status script_run(struct script *x, struct plan *p, size_t *run, struct rt_error *err);
/* Where the caller writes an input of that run before a launch; every run has inputs of its own,
 * which are those that plan_run would copy to a device. NULL where it has no such input. */
void *script_input(struct script *x, size_t run, const char *name);
/* Adds session_combine. */
void script_combine(struct script *x, struct session_span to, struct session_span a,
                    struct session_span b, enum combine_op op);
/* Adds a value that is in v->p after script_wait. Before the first launch. */
void script_result(struct script *x, const struct plan_value *v);
/* Starts it; the last launch has been waited for. Inputs may be written again after script_wait.
 * RT_machine when the device fails. */
enum rt_status script_launch(struct script *x, struct rt_error *err);
enum rt_status script_wait(struct script *x, struct rt_error *err);
#endif
