/* A language model (runtime/lm.h) as plans of the decode program on a GPU: what lm_plan.h is for
 * the CPU. What a plan says by its values is the same. */
#ifndef STRATA_RUNTIME_LM_GPU_H
#define STRATA_RUNTIME_LM_GPU_H
#include "base/str.h"
#include "runtime/gpu.h"
#include "runtime/lm_plan.h"

/* What a named value in SA_persistent holds when the model begins: a parameter. */
struct lm_gpu_value {
    const char *name;
    const void *p;
};
struct lm_gpu_parts {
    struct lm_parts parts;   /* no pool, no memory of the plans, nothing missing */
    const struct str *image; /* cubins, which together have all kernels */
    size_t num_images;
    const struct lm_gpu_value *value;
    size_t num_values;
};
/* Opens the device, copies the values there and loads the kernels. Plans outlive the model, images
 * and values need not. It is used from any thread, by one at a time. RT_user without such a device,
 * RT_machine without memory, and where the device refuses a cubin. A plan that is no decode program
 * is a bug. */
enum rt_status lm_gpu_open(int ordinal, const struct lm_gpu_parts *parts, struct lm **out,
                           struct rt_error *err);
/* What it runs on. */
const struct gpu_about *lm_gpu_about(const struct lm *m);
#endif
