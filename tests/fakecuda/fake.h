/* A CUDA installation that is not there: libcuda.so.1, libnvrtc.so.13 and libcublas.so.13 with the
 * functions of runtime/cuda_api.def, for tests of the real runtime on machines without a GPU. Set
 * STRATA_CUDA_PATH to the build's folder fakecuda. Kernels run on the CPU machine of cudacpu.h;
 * fakecuda/checked reports races and accesses out of bounds too (the launch then fails with 700).
 *
 *   STRATA_FAKE_BYTES=N   memory of the device; default 8 GiB
 *   STRATA_FAKE_LOG=FILE  gets a line for every call that launches, copies, waits or allocates
 *   STRATA_FAKE_EAGER=1   runs work when it is submitted
 *   STRATA_FAKE_ORDER=N   runs graphs in the N-th of many orders that their edges allow
 *   STRATA_FAKE_SPILLS=S  the log of NVRTC has spills for kernels whose name has S in it
 *   STRATA_FAKE_TEXTS=DIR gets every text that NVRTC is given, DIR/ARCH-HASH.cu (make gpu-bundle)
 *   STRATA_FAKE_NULL=1    nothing is compiled or run, any cubin loads, memory reads as zeros: for
 *                         the texts of programs that are too large for this machine, and to
 *                         rehearse what runs them
 *
 * Stricter than a GPU where that finds mistakes: work of streams runs when somebody waits for it,
 * in the order of submission (a result that is read too early is not there, a source changed too
 * early is wrong); device memory is NaNs first and, where the CPU has protection keys, not to be
 * touched by the host; copies inside a captured graph need host memory of cuMemHostAlloc, products
 * a workspace. */
#ifndef STRATA_TESTS_FAKECUDA_H
#define STRATA_TESTS_FAKECUDA_H
#include "cudacpu_build.h"
#include "runtime/cuda_api.h"
#include <stdlib.h>

#define API(lib, result, name, arguments) result name arguments;
#include "runtime/cuda_api.def"

/* Codes that the table does not need. */
enum {
    INVALID_VALUE = 1,
    NOT_INITIALIZED = 3,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILED = 700,
    OUT_OF_RESOURCES = 701,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
};

/* What NVRTC's fake gives as a cubin: this, then the object (none of STRATA_FAKE_NULL). */
struct fake_image {
    char magic[16];
    char arch[16]; /* sm_90a */
    uint32_t checked;
    uint64_t bytes;
};
#define FAKE_MAGIC "strata cubin 1\n"

/* ---- of libcuda, for its files and cuBLAS ---- */

struct CUmod_st {
    struct cudacpu *code;
    int fd;
    struct CUfunc_st *functions;
};
struct CUfunc_st {
    struct CUfunc_st *next;
    struct CUmod_st *module;
    char *name;
    size_t bytes; /* of parameters */
    unsigned threads, most_shared;
};

/* Whether STRATA_FAKE_NULL is set. */
static inline bool fake_null(void)
{
    const char *s = getenv("STRATA_FAKE_NULL");
    return s && *s == '1';
}
/* One piece of work: fn gets a copy of its data. 0, or the error that it ends with. */
typedef unsigned fake_fn(void *data);
/* All that the driver's functions do happens under one lock. */
void fake_lock(void);
void fake_unlock(int *unused);
#define LOCKED int locked __attribute__((cleanup(fake_unlock), unused)) = (fake_lock(), 0)
/* A line of the log; where the stream is captured, it says so. */
void fake_log(const struct CUstream_st *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* 0, or why nothing may be done: no context, or an error before that stays. */
unsigned fake_state(void);
/* The same for what no capture of this thread allows; breaks it. */
unsigned fake_uncaptured(void);
/* Submits work to a stream (NULL: the default one), or records it where that is captured. */
unsigned fake_submit(struct CUstream_st *s, fake_fn *fn, const void *data, size_t bytes);
/* Runs all that was submitted. */
unsigned fake_flush(void);
bool fake_capturing(const struct CUstream_st *s);
/* Breaks the capture of s, if any. Returns CAPTURE_UNSUPPORTED. */
unsigned fake_break(struct CUstream_st *s);
/* Whether p[0..n) lies in one allocation of the device, or of cuMemHostAlloc. */
bool fake_on_device(uint64_t p, size_t n);
bool fake_pinned(const void *p, size_t n);
/* Lets this thread touch device memory, or not. */
void fake_access(bool allowed);
/* From now on kernels are checked: allocations so far get their regions. */
void fake_check_memory(void);
/* A kernel over parameters as in CUDA's buffer. */
unsigned fake_run(const struct CUfunc_st *f, const struct cu_launch *l, const void *parameters);
#endif
