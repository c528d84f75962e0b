/* A language model (runtime/lm.h) as plans of the decode program on a GPU: what lm_plan.h is for
 * the CPU, and the only one there is for generate, serve, bench and built programs. What a plan
 * says by its values is the same; all its parameters lie in SA_weights.
 *
 * A call is one recording for its shape, played by one call of the driver, and one wait: inputs go
 * to the device and results come back in copies that stand in it, from and to a pinned mirror of
 * the arena of inputs and outputs. The first call of a shape runs unrecorded, so that what the
 * driver loads late is there when the second is recorded. */
#ifndef STRATA_RUNTIME_LM_GPU_H
#define STRATA_RUNTIME_LM_GPU_H
#include "base/str.h"
#include "runtime/exec.h"
#include "runtime/gpu.h"
#include "runtime/lm_plan.h"

/* A plan, and cubins of those of its kernels that none before it has; the plan outlives the model.
 */
struct lm_gpu_more {
    struct lm_plan plan;
    const struct str *image;
    size_t num_images;
};
struct lm_gpu_parts {
    struct lm_parts parts;   /* no pool, no memory of the plans, nothing missing */
    const struct str *image; /* cubins, which together have all kernels */
    size_t num_images;
    const void *weights; /* SA_weights; NULL: zeros, until lm_gpu_write */
    /* Gives a shape that is run and not there; NULL: that is a bug. */
    enum rt_status (*more)(void *arg, int64_t B, int64_t T, struct lm_gpu_more *out,
                           struct rt_error *err);
    void *arg;
};
/* Gets memory, copies the weights there and loads the kernels. The gpu becomes the model's, also
 * where that fails. Plans outlive the model, images and weights need not. It is used from any
 * thread, by one at a time. RT_machine without memory, and where the device refuses a cubin. A plan
 * that is no decode program is a bug. */
enum rt_status lm_gpu_open(struct gpu *g, const struct lm_gpu_parts *parts, struct lm **out,
                           struct rt_error *err);
/* What it runs on. */
const struct gpu_about *lm_gpu_about(const struct lm *m);
/* Bytes at .. at + n - 1 of SA_weights. */
enum rt_status lm_gpu_write(struct lm *m, uint64_t at, const void *from, size_t n,
                            struct rt_error *err);
/* Measures every step of a shape that was run, from zero (on), or stops; such calls are not
 * recorded. Per step of its plan, NULL where nothing was measured. */
enum rt_status lm_gpu_profile(struct lm *m, int64_t B, int64_t T, bool on, struct rt_error *err);
const struct exec_tally *lm_gpu_tally(const struct lm *m, int64_t B, int64_t T);
/* What measuring adds to the time of every step. */
double lm_gpu_event_seconds(const struct lm *m, int64_t B, int64_t T);
#endif
