/* CUDA C to machine code by NVRTC, which needs neither a GPU nor a driver, with a cache of what was
 * compiled before beside that of the CPU's kernels. Code may also be brought along: the folder
 * STRATA_CUBINS is looked at first, and holds what any NVRTC made of the same text and options for
 * the same architecture (nvrtc_carry); what it lacks is said on standard error, then compiled. */
#ifndef STRATA_RUNTIME_NVRTC_H
#define STRATA_RUNTIME_NVRTC_H
#include "base/str.h"
#include "runtime/status.h"

/* What ptxas says of one kernel. Bytes are per thread, of `shared` per block. */
struct nvrtc_kernel {
    const char *name;
    unsigned registers, shared, stack, spill_stores, spill_loads;
};

struct nvrtc_image {
    struct str code;             /* a cubin, or PTX (terminated), as cuModuleLoadData takes both */
    struct nvrtc_kernel *kernel; /* of a cubin, in ptxas's order */
    size_t kernels;
    const char *log; /* of NVRTC and ptxas */
    bool cached;     /* came from the cache */
    double seconds;  /* spent in NVRTC */
};

/* What NVRTC compiles for: "sm_75 sm_80 ...", in the arena. RT_* as cuda_load. */
enum rt_status nvrtc_archs(struct arena *a, const char **list, struct rt_error *err);
/* Whether `arch` can be compiled for, as nvrtc_compile answers. Where NVRTC is not there it must
 * be one of CUDA 12 or 13, and at least sm_80, which kernels need. RT_usage; RT_user where this
 * NVRTC does not have it. */
enum rt_status nvrtc_known(struct arena *a, const char *arch, struct rt_error *err);
/* Compiles for `arch`: sm_NN gives a cubin, compute_NN PTX, either with a suffix (sm_90a). The text
 * includes nothing: no header is found. Products and sums are not contracted, as on the CPU. With
 * `keep` the cache is looked at first and takes the result. All of *out lies in the arena.
 * RT_user when NVRTC is not there or does not know the architecture, RT_machine when it fails. An
 * error in the text is our bug: aborts with the log; the text stays in the cache's folder and its
 * lines are those of the log. */
enum rt_status nvrtc_compile(struct arena *a, const char *text, const char *arch, bool keep,
                             struct nvrtc_image *out, struct rt_error *err);
/* Puts an image of such a call into a folder for STRATA_CUBINS. RT_* as store_write_blob. */
enum rt_status nvrtc_carry(struct arena *a, const char *dir, const char *text, const char *arch,
                           const struct nvrtc_image *image, struct rt_error *err);
/* nvrtc_compile for n texts on up to `threads` threads at once (0: the cores this process may use);
 * each has its place in the cache. The first failure counts. */
enum rt_status nvrtc_compile_all(struct arena *a, const char *const *text, size_t n,
                                 const char *arch, bool keep, unsigned threads,
                                 struct nvrtc_image *out, struct rt_error *err);
#endif
