/* Which kernels of the CUDA back end are compiled together: translation units that are worth a
 * thread each, made of the texts alone, so that the same kernels give the same units everywhere. */
#ifndef STRATA_COMPILER_CUDA_UNITS_H
#define STRATA_COMPILER_CUDA_UNITS_H
#include "base/str.h"

struct cuda_units {
    const char **text; /* after the prelude, ready for nvrtc_compile_all */
    size_t n;
    size_t kernel_bytes; /* of all texts, once each, without preludes */
};
/* The n texts in units, texts that are equal once. unit_of[i] is that of text i. At most `most`
 * units (0: as many as pay). All in the arena. */
struct cuda_units cuda_units(struct arena *a, const struct str *text, size_t n, size_t most,
                             uint32_t *unit_of);
#endif
