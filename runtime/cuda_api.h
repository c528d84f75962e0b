/* NVIDIA's libraries through dlopen, with our own prototypes: no header of theirs, nothing linked,
 * and a machine without them builds and runs everything else. cuda_api.def lists what is used. */
#ifndef STRATA_RUNTIME_CUDA_API_H
#define STRATA_RUNTIME_CUDA_API_H
#include "base/arena.h"
#include "runtime/status.h"
#include <stdint.h>

/* Tags are NVIDIA's where its headers have one. */
struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUstream_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphExec_st;
struct _nvrtcProgram;
struct cublasContext;
struct cublasLtContext;
struct lt_matmul;
struct lt_layout;
struct lt_preference;
struct ncclComm;

typedef unsigned long long cu_ptr; /* an address on the device */

struct cu_launch {         /* CUlaunchConfig */
    unsigned grid[3];      /* blocks */
    unsigned block[3];     /* threads */
    unsigned shared_bytes; /* dynamic */
    struct CUstream_st *stream;
    void *attribute; /* NULL */
    unsigned attributes;
};
struct lt_algo {
    uint64_t data[8];
};
struct lt_heuristic { /* cublasLtMatmulHeuristicResult_t */
    struct lt_algo algo;
    size_t workspace_bytes;
    unsigned state; /* 0: the rest is valid */
    float waves;
    int reserved[4];
};
struct nccl_id { /* bytes that rank 0 makes and tells the others */
    char data[128];
};

enum {
#define CONST(name, value) C_##name = value,
#include "runtime/cuda_api.def"
};

enum cuda_library {
#define LIB(id, title, files, install) CUDA_##id,
#include "runtime/cuda_api.def"
    CUDA_LIBRARIES
};

struct cuda_api {
#define API(lib, result, name, arguments) result(*name) arguments;
#include "runtime/cuda_api.def"
};

/* Loads a library on first use, from any thread, and gives the table of functions (may be NULL), of
 * which those of this library may then be called. Looked for in the folders of STRATA_CUDA_PATH
 * (separated by colons; then nowhere else, the driver too), or in $CUDA_HOME, the loader's path and
 * /usr/local/cuda; without STRATA_CUDA_PATH the driver is the loader's only. RT_user when it is not
 * there or too old, with what was looked for and what to install; RT_machine when it is there and
 * does not load. The answer stays the same for the life of the process. */
enum rt_status cuda_load(enum cuda_library lib, const struct cuda_api **api, struct rt_error *err);
/* Its id in the table: driver, nvrtc, ... */
const char *cuda_name(enum cuda_library lib);
/* File and version ("13.0") of a library that was loaded; else NULL. */
const char *cuda_path(enum cuda_library lib);
const char *cuda_version(enum cuda_library lib);
/* RT_ok for code 0, else RT_machine with the call and the library's words. */
enum rt_status cuda_check(enum cuda_library lib, unsigned code, const char *call,
                          struct rt_error *err);

struct cuda_device {
    char name[128];
    int major, minor; /* compute capability */
    int multiprocessors;
    size_t bytes; /* of memory */
};
/* All devices, in the driver's order; none is no error. As cuda_load of the driver, or RT_machine
 * when a call fails. */
enum rt_status cuda_devices(struct arena *a, struct cuda_device **device, size_t *n,
                            struct rt_error *err);
#endif
