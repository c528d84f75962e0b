/* Runs a plan on a GPU: what exec.h is for the CPU. Parameters of every launch are packed once, so
 * a run is a walk over the steps; it may stand in a recording. */
#ifndef STRATA_RUNTIME_GPU_EXEC_H
#define STRATA_RUNTIME_GPU_EXEC_H
#include "runtime/exec.h"
#include "runtime/gpu.h"

struct gpu_exec;

/* Where a place of the plan is on the device. */
typedef cu_ptr gpu_address(const void *arg, struct sa_buf at);

/* Prepares a plan of one entry point without external inputs; fn[i] is the loaded kernel i of it.
 * The plan and the gpu outlive the exec. Loads cuBLAS where the plan has products. Addresses are
 * set by gpu_exec_place before the first run. RT_machine where a kernel needs more shared memory
 * than there is. */
enum rt_status gpu_exec_open(struct gpu *g, const struct sa_plan *plan, struct CUfunc_st *const *fn,
                             struct gpu_exec **out, struct rt_error *err);
void gpu_exec_close(struct gpu_exec *x);
/* Asks where everything is; again when something has moved. */
void gpu_exec_place(struct gpu_exec *x, gpu_address *address, const void *arg);
/* Launches all steps, without waiting. While profiling it waits for every run, and must not stand
 * in a recording: it makes one of its own. */
enum rt_status gpu_exec_run(struct gpu_exec *x, struct rt_error *err);

/* As exec_profile; times are the device's, between events around each step of a recording, so that
 * they do not depend on how quickly the host launches. The first run after it is not measured: it
 * loads what cuBLAS needs. */
enum rt_status gpu_exec_profile(struct gpu_exec *x, bool on, struct rt_error *err);
bool gpu_exec_profiling(const struct gpu_exec *x);
/* Per step, NULL where nothing was measured. */
const struct exec_tally *gpu_exec_tally(const struct gpu_exec *x);
/* What an event adds to the time of the step before it: the shortest time between two of them. */
double gpu_exec_event_seconds(const struct gpu_exec *x);
#endif
