/* Which kernels of the CUDA back end are compiled together: translation units that are worth a
 * thread each, made of the texts alone, so that the same kernels give the same units everywhere. */
#ifndef STRATA_COMPILER_CUDA_UNITS_H
#define STRATA_COMPILER_CUDA_UNITS_H
#include "base/str.h"
#include "runtime/jit.h"
#include "runtime/nvrtc.h"

struct cuda_units {
    const char **text; /* after the prelude, ready for nvrtc_compile_all */
    size_t n;
    size_t kernel_bytes; /* of all texts, once each, without preludes */
};
/* The n texts in units, texts that are equal once. unit_of[i] is that of text i. At most `most`
 * units (0: as many as pay). All in the arena. */
struct cuda_units cuda_units(struct arena *a, const struct str *text, size_t n, size_t most,
                             uint32_t *unit_of);
/* Cubins of the units of n texts: *num of them, for `arch`, compiled by up to `threads` threads or
 * taken from the cache. All in the arena; statuses as nvrtc_compile_all. */
enum rt_status cuda_compile(struct arena *a, const struct str *text, size_t n, const char *arch,
                            unsigned threads, uint32_t *unit_of, struct nvrtc_image **image,
                            size_t *num, struct rt_error *err);
/* Adds what that did, since `begin` (mem_seconds), to a report. */
void cuda_compile_report(struct jit_report *rep, const struct nvrtc_image *image, size_t num,
                         const uint32_t *unit_of, size_t n, double begin);
#endif
