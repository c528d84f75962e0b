/* safetensors files: a reader that trusts nothing (mmap, every offset checked before use) and a
 * writer. Format: u64 little-endian header length N, N bytes of JSON, then the data; see
 * huggingface/safetensors README. Sharded folders with model.safetensors.index.json are read too.
 */
#ifndef STRATA_RUNTIME_TENSORFILE_H
#define STRATA_RUNTIME_TENSORFILE_H
#include "runtime/status.h"
#include <stddef.h>
#include <stdint.h>

enum tf_dtype {
    TF_BOOL,
    TF_U8,
    TF_I8,
    TF_F8_E5M2,
    TF_F8_E4M3,
    TF_I16,
    TF_U16,
    TF_F16,
    TF_BF16,
    TF_I32,
    TF_U32,
    TF_F32,
    TF_F64,
    TF_I64,
    TF_U64,
    TF_DTYPES
};
enum { TF_MAX_RANK = 8 };

struct tf_tensor {
    const char *name; /* terminated UTF-8 */
    enum tf_dtype dtype;
    int rank;
    int64_t shape[TF_MAX_RANK];
    const void *data; /* row-major, little-endian; NOT aligned in general when read from a file */
    size_t count;     /* elements; set by the reader, ignored by the writer */
    size_t bytes;     /* likewise */
    const char *file; /* the file it was read from, for messages */
};

struct tensorfile;
/* Opens a .safetensors file, or a folder that holds model.safetensors.index.json with its shards or
 * a single model.safetensors. RT_user with the file's name and the rule it breaks. The caller
 * closes it; the tensors live as long. A file that is cut while it is open raises SIGBUS, as with
 * any mmap. */
enum rt_status tensorfile_open(const char *path, struct tensorfile **out, struct rt_error *err);
/* The same from memory that outlives the handle; `label` names it in messages. */
enum rt_status tensorfile_memory(const void *bytes, size_t n, const char *label,
                                 struct tensorfile **out, struct rt_error *err);
void tensorfile_close(struct tensorfile *f);
/* Tensors in the order of their data (shard by shard). */
size_t tensorfile_count(const struct tensorfile *f);
const struct tf_tensor *tensorfile_at(const struct tensorfile *f, size_t i);
/* The tensor of that name or NULL. */
const struct tf_tensor *tensorfile_find(const struct tensorfile *f, const char *name);
/* The value of a __metadata__ key (the first shard that has it) or NULL. */
const char *tensorfile_metadata(const struct tensorfile *f, const char *key);

/* Elements first .. first+n-1 as float32. F64, F32, F16 and BF16; another dtype is RT_user. The
 * range must lie inside the tensor. */
enum rt_status tf_read_f32(const struct tf_tensor *t, size_t first, size_t n, float *out,
                           struct rt_error *err);
/* The same n numbers as BF16, rounded to nearest, ties to even; NaN stays NaN. */
void tf_to_bf16(const float *in, size_t n, uint16_t *out);
/* Bytes of one element; the name the format uses ("BF16"). */
size_t tf_dtype_size(enum tf_dtype d);
const char *tf_dtype_name(enum tf_dtype d);
/* "[2, 3]" for messages; returns buf. */
const char *tf_shape_text(const struct tf_tensor *t, char *buf, size_t n);

struct tf_meta {
    const char *key, *value;
};
/* What to write. `source`, when not NULL, gives the data of tensor i just before it is written (and
 * may reuse one buffer), so that a file larger than memory can be made; otherwise tensors[i].data.
 */
struct tf_content {
    const struct tf_tensor *tensors; /* name, dtype, rank, shape (and data) are read */
    size_t count;
    const struct tf_meta *meta;
    size_t num_meta;
    const void *(*source)(void *ctx, size_t i);
    void *ctx;
};
/* Takes the file's bytes in order; returns 0 or an errno value, which ends the writing. */
typedef int tf_sink(void *ctx, const void *p, size_t n);
/* Streams a whole file into a sink: 0 or the sink's errno value. Data starts at a multiple of 64.
 */
int tensorfile_stream(const struct tf_content *c, tf_sink *sink, void *ctx);
/* Writes to an open descriptor (no fsync); `path` is for the message only. RT_machine on failure.
 */
enum rt_status tensorfile_write_fd(int fd, const char *path, const struct tf_content *c,
                                   struct rt_error *err);
/* Writes a file that is whole or absent: temporary name, fsync, rename, fsync of the folder.
 * RT_user when it cannot be created, RT_machine when writing fails. */
enum rt_status tensorfile_write(const char *path, const struct tf_content *c, struct rt_error *err);
#endif
