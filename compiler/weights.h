/* Weights in memory and their named tensors: initialising, loading, listing for a file. `memory`
 * has one float32 array per parameter, in params order. */
#ifndef STRATA_COMPILER_WEIGHTS_H
#define STRATA_COMPILER_WEIGHTS_H
#include "compiler/params.h"
#include "runtime/tensorfile.h"
#include "runtime/thread.h"

/* The tensor of a part without its data: name, shape, float32. */
struct tf_tensor part_tensor(const struct param_part *q);
/* Fresh weights, by the pool or, where it is NULL, alone: a pure function of (seed, tensor name),
 * so that a twin shares every common tensor. */
void weights_init(const struct params *ps, uint64_t seed, float *const *memory, struct pool *pool);
/* Where the values of a part lie in a file: as they are, or as MXFP4 codes with their scales. */
struct weight_source {
    const struct tf_tensor *values, *scale; /* scale is NULL but for MXFP4 */
};
/* The source of every part, in params order, in the arena. Every tensor of the file is used, known
 * to be of no use to a model of text (a vision tower, rotary periods, heads that draft; a note says
 * so), or a mistake; every mistake is a diagnostic, and then it is NULL. Read are the names and
 * shapes of Hugging Face: a prefix `language_model.`, A_log in its shapes, MXFP4 experts, and
 * a tied head stored a second time. */
struct weight_source *weights_match(struct arena *a, const struct params *ps,
                                    const struct tensorfile *f, const char *label, struct diag *d);
/* The values of a part, part_count of them. */
enum rt_status weight_read(const struct param_part *q, const struct weight_source *s, float *out,
                           struct rt_error *err);
/* Reads a safetensors file or folder as weights_match has it. Nothing is written to memory unless
 * all is well. */
enum rt_status weights_load(const struct params *ps, const char *path, float *const *memory,
                            struct diag *d, struct rt_error *err);
/* The tensors of all parameters (of those with keep[i], where keep is not NULL) as views into
 * memory, names with `prefix` in front; appended to *out in the arena. */
typedef VEC(struct tf_tensor) tf_list;
void weights_list(struct arena *a, const struct params *ps, float *const *memory, const bool *keep,
                  const char *prefix, tf_list *out);
/* The reverse: fills memory from tensors with that prefix, named and shaped as weights_list has
 * them, or leaves it as it is; each mistake is a diagnostic. */
enum rt_status weights_read(const struct params *ps, const struct tensorfile *f, const char *label,
                            const char *prefix, const bool *keep, float *const *memory,
                            struct diag *d, struct rt_error *err);
#endif
