/* NumPy .npy files: a checked reader (format versions 1, 2 and 3; little-endian; C order; at most 4
 * dimensions) and a writer. Format: numpy/lib/format.py. */
#ifndef STRATA_RUNTIME_NPY_H
#define STRATA_RUNTIME_NPY_H
#include "runtime/mapped.h"
#include "runtime/outfile.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum npy_type { NPY_u8, NPY_u16, NPY_i32, NPY_i64, NPY_f32, NPY_TYPES };
enum { NPY_MAX_RANK = 4 };

struct npy {
    enum npy_type type;
    int rank;
    int64_t shape[NPY_MAX_RANK];
    size_t count;              /* elements */
    const unsigned char *data; /* not aligned in general */
    struct mapped map;         /* empty when parsed from memory */
};

/* Opens (maps) a file. RT_user naming the file and what is wrong. The caller closes it, after a
 * failure too (then it does nothing). */
enum rt_status npy_open(const char *path, struct npy *out, struct rt_error *err);
/* The same from memory that outlives `out`; `label` names it in messages. */
enum rt_status npy_memory(const void *bytes, size_t n, const char *label, struct npy *out,
                          struct rt_error *err);
void npy_close(struct npy *a);
/* Whether the first bytes are those of an .npy file. */
bool npy_magic(const void *bytes, size_t n);
/* Element i < count of an integer array. */
int64_t npy_int(const struct npy *a, size_t i);
/* Element i < count of a float32 array. */
float npy_float(const struct npy *a, size_t i);

/* Writes a whole array (row-major, `shape` of `rank` dimensions) atomically: the file is whole or
 * absent. RT_user when it cannot be created, RT_machine when writing fails. */
enum rt_status npy_write_f32(const char *path, const float *data, int rank, const int64_t *shape,
                             struct rt_error *err);
enum rt_status npy_write_i32(const char *path, const int32_t *data, int rank, const int64_t *shape,
                             struct rt_error *err);

/* A 1-D int32 array written as it comes, whose length is known at the end only. The file is whole
 * or absent; into a pipe it goes at the end, from a temporary file. */
struct npy_stream {
    struct outfile file;
    void *spool; /* of a pipe */
    int64_t count;
};
enum rt_status npy_stream_open(const char *path, struct npy_stream *s, struct rt_error *err);
/* On failure the caller calls npy_stream_drop. */
enum rt_status npy_stream_add(struct npy_stream *s, const int32_t *data, size_t n,
                              struct rt_error *err);
/* Ends the file; on failure it is absent. */
enum rt_status npy_stream_commit(struct npy_stream *s, struct rt_error *err);
void npy_stream_drop(struct npy_stream *s);
#endif
