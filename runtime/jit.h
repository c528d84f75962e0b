/* Kernel texts to machine code, with a cache of what was compiled before. Once a kernel is in the
 * cache, loading it needs no compiler. */
#ifndef STRATA_RUNTIME_JIT_H
#define STRATA_RUNTIME_JIT_H
#include "base/str.h"
#include "runtime/status.h"

struct jit;

struct jit_options {
    const char *cpu;      /* native (also NULL), x86-64-v3, x86-64-v4 */
    uint64_t cache_bytes; /* what the cache may hold, oldest use goes first; 0 means 512 MiB */
};

/* A kernel to load. The text defines the function `symbol`, not static. Several kernels may share
 * one text, which is then compiled once. Different texts of one jit_load may share a translation
 * unit, after the prelude: their global and static names must differ (begin them with the symbol).
 * The cache knows a kernel by its text and its symbol, so symbols need not contain a hash; all
 * symbols of a text that was compiled are there.
 *
 * A prelude may have a part that is compiled once for all: where its text says JIT_SHARED, it is
 * also a unit of its own, with JIT_SHARED defined, that defines the object jit_shared. In all other
 * units JIT_UNIT is defined, and a pointer jit_given that they define gets the address of
 * jit_shared. */
struct jit_kernel {
    const char *symbol; /* a C identifier */
    struct str text;
    void *fn; /* set by jit_load; lives until jit_close */
};

/* What one jit_load did. Texts belong to the jit. */
struct jit_report {
    size_t compiled, cached; /* different kernels */
    size_t units;            /* translation units compiled, all at the same time */
    double seconds;          /* spent in the compiler, wall clock */
    size_t code_bytes;       /* shared objects loaded by this call */
    const char *compiler;    /* first line of --version; NULL when nothing was compiled */
    const char *flags;
};

/* A loader of kernels for one kind of processor. The cache lies in io_cache_dir(). RT_usage for
 * an unknown cpu, RT_user for one that this machine is not, or a bad STRATA_CLANG. options may be
 * NULL. */
enum rt_status jit_open(const struct jit_options *options, struct jit **out, struct rt_error *err);
/* Unloads all kernels. NULL is fine. */
void jit_close(struct jit *j);
/* Gives all kernels their addresses: from memory, else from the cache, else compiled together, in
 * as many translation units as there are cores. rep may be NULL. RT_user when something must be
 * compiled and no clang is installed (the message has the command that installs it) or the cache
 * cannot be written, RT_machine when the disk or a process fails. A text with errors is our bug and
 * aborts; its source stays and the message names it. */
enum rt_status jit_load(struct jit *j, const char *prelude, struct jit_kernel *k, size_t n,
                        struct jit_report *rep, struct rt_error *err);
#endif
