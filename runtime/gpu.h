/* One GPU through NVIDIA's driver: memory, copies, launches, products of cuBLAS, and recordings of
 * all these that run again at one call. Everything is ordered in one stream, but for what lies
 * between gpu_fork and gpu_join, where gpu_select says who goes where. Every function that returns
 * a status gives RT_machine when the driver refuses; what a kernel does wrong is found by a later
 * call, gpu_wait at the latest. A gpu is used by one thread at a time: the one that opened it, or
 * one that called gpu_use. */
#ifndef STRATA_RUNTIME_GPU_H
#define STRATA_RUNTIME_GPU_H
#include "abi.h"
#include "runtime/cuda_api.h"
#include <stdbool.h>

struct gpu;

struct gpu_about {
    char name[128];
    char arch[16]; /* what kernels are compiled for: sm_80, sm_90a ... */
    int ordinal;
    int multiprocessors;
    int shared_bytes; /* the most shared memory of a block */
    size_t bytes;     /* of memory */
};

/* The architecture for a compute capability; NULL for one that kernels do not run on. */
const char *gpu_arch(int major, int minor);
/* Opens the device with this number, as the driver counts. RT_user without a driver, without such a
 * device, or for one older than compute capability 8.0. */
enum rt_status gpu_open(int ordinal, struct gpu **out, struct rt_error *err);
/* The same by name: cuda, which is the first, or cuda:N. RT_usage for any other. */
enum rt_status gpu_open_named(const char *name, struct gpu **out, struct rt_error *err);
/* Frees everything that came from it. NULL is fine. */
void gpu_close(struct gpu *g);
const struct gpu_about *gpu_about(const struct gpu *g);
/* From now on this thread uses it. Cheap. */
enum rt_status gpu_use(struct gpu *g, struct rt_error *err);

/* Bytes of the device that nobody has. */
enum rt_status gpu_memory(struct gpu *g, size_t *left, struct rt_error *err);
/* Memory of the device, aligned to 256 bytes, whatever was in it. `what` is what it is for, in the
 * message when there is not enough, which says how much was asked for and how much is free; `less`,
 * where it is not NULL, is what the user can change to need less. */
enum rt_status gpu_alloc_for(struct gpu *g, size_t bytes, const char *what, const char *less,
                             cu_ptr *p, struct rt_error *err);
static inline enum rt_status gpu_alloc(struct gpu *g, size_t bytes, const char *what, cu_ptr *p,
                                       struct rt_error *err)
{
    return gpu_alloc_for(g, bytes, what, NULL, p, err);
}
enum rt_status gpu_zero(struct gpu *g, cu_ptr p, size_t bytes, struct rt_error *err);
/* After everything that was launched. 0 is fine. */
void gpu_free(struct gpu *g, cu_ptr p);
/* Zeroed memory of the host that the device copies from and to by itself. */
enum rt_status gpu_pin(struct gpu *g, size_t bytes, void **p, struct rt_error *err);
void gpu_unpin(struct gpu *g, void *p);

/* Copies in the order of launches. Ordinary memory of the host may be changed, and has what was
 * asked for, when the call returns; pinned memory when the device has come that far (gpu_wait). */
enum rt_status gpu_put(struct gpu *g, cu_ptr to, const void *from, size_t bytes,
                       struct rt_error *err);
enum rt_status gpu_get(struct gpu *g, void *to, cu_ptr from, size_t bytes, struct rt_error *err);
/* On the device; they do not overlap. */
enum rt_status gpu_copy(struct gpu *g, cu_ptr to, cu_ptr from, size_t bytes, struct rt_error *err);
/* Waits until everything launched so far is done. */
enum rt_status gpu_wait(struct gpu *g, struct rt_error *err);

/* Kernels: a cubin or PTX, and a kernel of it, which is allowed that much dynamic shared memory (or
 * what it was allowed before, if that is more). */
enum rt_status gpu_load(struct gpu *g, const void *image, struct CUmod_st **module,
                        struct rt_error *err);
void gpu_unload(struct gpu *g, struct CUmod_st *module);
enum rt_status gpu_function(struct gpu *g, struct CUmod_st *module, const char *symbol,
                            struct CUfunc_st **fn, struct rt_error *err);
enum rt_status gpu_allow_shared(struct gpu *g, struct CUfunc_st *fn, const char *label,
                                uint32_t bytes, struct rt_error *err);
/* Launches a kernel; `parameters` are its parameters one after the other, as the device has them.
 * A grid without blocks does nothing. */
enum rt_status gpu_launch(struct gpu *g, struct CUfunc_st *fn, const struct sa_launch *l,
                          const void *parameters, size_t bytes, struct rt_error *err);
/* Loads cuBLAS, for gpu_product, and gives it a workspace, as large as it advises for large
 * devices; once is enough. RT_user when it is not installed. */
enum { GPU_PRODUCT_WORKSPACE = 32 << 20 };
enum rt_status gpu_open_products(struct gpu *g, struct rt_error *err);
/* C = op(A) op(B) or C += op(A) op(B), by cuBLAS; n as enum sa_product, at are A, B, C. */
enum rt_status gpu_product(struct gpu *g, const int64_t *n, const cu_ptr at[3],
                           struct rt_error *err);

/* Makes streams 0..n-1 (n <= SA_STREAMS) usable; each has its own workspace for products. */
enum rt_status gpu_open_streams(struct gpu *g, unsigned n, struct rt_error *err);
/* The other streams begin where stream 0 is now; later launches, products and events go to the
 * selected one, 0 at first. Copies and waits of the host belong to stream 0. */
enum rt_status gpu_fork(struct gpu *g, struct rt_error *err);
void gpu_select(struct gpu *g, unsigned stream);
/* What is submitted to the selected stream from here on waits for an event of another one. */
enum rt_status gpu_event_await(struct gpu *g, struct CUevent_st *e, struct rt_error *err);
/* Stream 0 waits for the others, and is selected. */
enum rt_status gpu_join(struct gpu *g, struct rt_error *err);

/* Points in the order of launches (of the selected stream). */
enum rt_status gpu_event_open(struct gpu *g, bool timing, struct CUevent_st **e,
                              struct rt_error *err);
void gpu_event_close(struct gpu *g, struct CUevent_st *e);
enum rt_status gpu_event_record(struct gpu *g, struct CUevent_st *e, struct rt_error *err);
/* In a recording: every replay records the event there. */
enum rt_status gpu_event_record_inside(struct gpu *g, struct CUevent_st *e, struct rt_error *err);
enum rt_status gpu_event_wait(struct gpu *g, struct CUevent_st *e, struct rt_error *err);
/* Seconds between two events with timing that have come. */
enum rt_status gpu_event_seconds(struct gpu *g, struct CUevent_st *from, struct CUevent_st *to,
                                 double *seconds, struct rt_error *err);

/* Between begin and end nothing runs: copies (of pinned memory) and launches are noted, with their
 * addresses and parameters, and gpu_replay runs them all at one call. */
struct gpu_recording;
enum rt_status gpu_record_begin(struct gpu *g, struct rt_error *err);
enum rt_status gpu_record_end(struct gpu *g, struct gpu_recording **out, struct rt_error *err);
enum rt_status gpu_replay(struct gpu *g, const struct gpu_recording *r, struct rt_error *err);
/* NULL is fine. */
void gpu_recording_close(struct gpu *g, struct gpu_recording *r);
#endif
