/* The C compiler as child processes: finds clang, describes the processor, compiles in parallel. */
#ifndef STRATA_RUNTIME_CC_H
#define STRATA_RUNTIME_CC_H
#include "base/str.h"
#include "runtime/status.h"

/* The path of clang: $STRATA_CLANG (a path, or a name in PATH), else clang-19, else clang-14 in
 * PATH; NULL where none of the latter is installed. RT_user when STRATA_CLANG names no program. */
enum rt_status cc_find(struct arena *a, const char **path, struct rt_error *err);
/* Path, size and time of change: differs whenever the compiler does, and needs no process. */
const char *cc_identity(struct arena *a, const char *path);
/* First line of --version. RT_user for clang 16, whose optimiser does not end on bf16 kernels, and
 * for what is no clang at all. */
enum rt_status cc_version(struct arena *a, const char *path, const char **version,
                          struct rt_error *err);
/* RT_usage when `cpu` is neither native nor a name of runtime/cpu.h. */
enum rt_status cc_cpu_known(const char *cpu, struct rt_error *err);
/* What code for `cpu` depends on, as text: for native the model and features of this machine's
 * processor, for others their names. RT_usage when `cpu` is none of them, RT_user when this
 * processor cannot run it, RT_machine when it cannot run what we generate at all. */
enum rt_status cc_cpu(struct arena *a, const char *cpu, const char **text, struct rt_error *err);
/* All flags but file names for `cpu`, terminated by NULL: for shared objects, and for object files.
 */
const char **cc_flags(struct arena *a, const char *cpu);
const char **cc_object_flags(struct arena *a, const char *cpu);

/* One source file to turn into one shared object, or what the flags say. */
struct cc_unit {
    const char *source, *object, *log; /* paths; the log takes what the compiler says */
    const char **flags;                /* instead of those of cc_compile; NULL: those */
};
/* Compiles all units, one process each, as many at the same time as there are cores. RT_machine
 * when a process cannot be started, is killed or fails for a reason outside the source. Errors in a
 * source are our bug: aborts with the messages and the path of the source. */
enum rt_status cc_compile(struct arena *a, const char *path, const char **flags,
                          const struct cc_unit *unit, size_t n, struct rt_error *err);
#endif
