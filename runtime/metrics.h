/* metrics.jsonl: one JSON object a line, each written by a single write, so that a reader following
 * the file never sees half a line of a running process. */
#ifndef STRATA_RUNTIME_METRICS_H
#define STRATA_RUNTIME_METRICS_H
#include "base/str.h"
#include "runtime/status.h"

struct metrics;
/* Opens the file for appending, created where needed. Lines whose "step" is not below `from_step`
 * (lost steps of a run that resumes there; all of them for 0) and torn or foreign lines are dropped
 * by an atomic rewrite first. So a line written before the checkpoint of step N must carry a step
 * below N to survive resuming from it. RT_user when it cannot be opened. */
enum rt_status metrics_open(const char *path, uint64_t from_step, struct metrics **out,
                            struct rt_error *err);
void metrics_close(struct metrics *m);
/* Fields of the line being built, in order; names are plain. What is not finite is written as null.
 */
void metrics_int(struct metrics *m, const char *name, int64_t v);
void metrics_double(struct metrics *m, const char *name, double v);
/* The shortest text that reads back as the same float32. */
void metrics_float(struct metrics *m, const char *name, float v);
void metrics_text(struct metrics *m, const char *name, const char *v);
/* A list of float32. */
void metrics_floats(struct metrics *m, const char *name, const float *v, size_t n);
/* Writes the line. RT_machine, naming the path; the file then ends with the line before. */
enum rt_status metrics_end(struct metrics *m, struct rt_error *err);
/* fsync: call it before a checkpoint, which must not outlive the lines of its steps. */
enum rt_status metrics_sync(struct metrics *m, struct rt_error *err);

/* The shortest decimal text that reads back as the same number ("null" where it is not finite). */
const char *number_text(double v, char buf[32]);
const char *float_text(float v, char buf[32]);
#endif
