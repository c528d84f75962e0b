/* Kinds of processors that code is made for, and which of them this machine's is. */
#ifndef STRATA_RUNTIME_CPU_H
#define STRATA_RUNTIME_CPU_H
#include <stdbool.h>

/* From the oldest to the newest; each runs the code of those before it. */
enum cpu_kind { CPU_v3, CPU_v4, CPU_v4_bf16, CPU_KINDS };
struct cpu_about {
    const char *name, *has; /* x86-64-v3; what it has beyond the one before, for messages */
    const char *flag[4];    /* of the compiler, terminated by NULL */
    bool bf16_dot;          /* products of bf16 (vdpbf16ps) */
};
/* A kind, by number. */
const struct cpu_about *cpu_about(enum cpu_kind k);
/* The kind of a name; CPU_KINDS where there is none. */
enum cpu_kind cpu_find(const char *name);
/* Whether this processor runs code for kind k. */
bool cpu_runs(enum cpu_kind k);
#endif
