/* Building and loading texts of kernels apart, for who keeps objects (tests/fakecuda). */
#ifndef STRATA_TESTS_CUDACPU_BUILD_H
#define STRATA_TESTS_CUDACPU_BUILD_H
#include "base/arena.h"
#include "cudacpu_machine.h"

struct cudacpu_source {
    const char *compiler; /* a name in PATH */
    const char *header;   /* path of cudacpu.h */
    const char *text;     /* prelude and kernels */
    const char *object;   /* the shared object to write; its folder takes the source too */
    const char *library;  /* what the object needs: has the machine's symbols; or NULL */
    bool checked;         /* see cudacpu_open */
    bool quick;           /* no warnings, no debugging information */
};
/* NULL, or what the compiler said (in the arena). */
const char *cudacpu_build(struct arena *a, const struct cudacpu_source *s);
/* Calls back with the name of every kernel of a text and its launch bounds, "1024" without any. */
typedef void cudacpu_kernel_fn(void *ctx, const char *name, const char *threads);
void cudacpu_kernels(struct arena *a, const char *text, cudacpu_kernel_fn *fn, void *ctx);

/* Loads an object, whose file stays the caller's; NULL, and what dlerror said. */
struct cudacpu *cudacpu_load(const char *object, bool checked, const char **why);
void cudacpu_unload(struct cudacpu *c);
/* Bytes of parameters that a kernel takes and most threads of a block, as its text says; false
 * where there is no such kernel. */
bool cudacpu_bounds(const struct cudacpu *c, const char *kernel, size_t *bytes, unsigned *threads);
#endif
