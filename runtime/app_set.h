/* Kernels that were linked into a program, for one kind of processor, in order of their symbols.
 * compiler/objects.c makes these tables as C text, which declares them by the same macro. */
#ifndef STRATA_RUNTIME_APP_SET_H
#define STRATA_RUNTIME_APP_SET_H
#include "abi.h"

/* cpu: enum cpu_kind; n: kernels. app_sets: newest processor first; ends with NULL. */
#define APP_SETS                         \
    struct app_kernel {                  \
        const char *symbol;              \
        sa_kernel *fn;                   \
    };                                   \
    struct app_set {                     \
        unsigned long cpu, n;            \
        const struct app_kernel *kernel; \
    };                                   \
    extern const struct app_set *const app_sets[];
APP_SETS
#endif
