/* Weights in memory and their named tensors: initialising, loading, listing for a file. `memory`
 * has one float32 array per parameter, in params order. */
#ifndef STRATA_COMPILER_WEIGHTS_H
#define STRATA_COMPILER_WEIGHTS_H
#include "compiler/params.h"
#include "runtime/tensorfile.h"

/* The tensor of a part without its data: name, shape, float32. */
struct tf_tensor part_tensor(const struct param_part *q);
/* Fresh weights: a pure function of (seed, tensor name), so that a twin shares every common tensor.
 */
void weights_init(const struct params *ps, uint64_t seed, float *const *memory);
/* Reads a safetensors file or folder. Every tensor of the model must be there with its shape, and
 * nothing else; each mistake is a diagnostic. Nothing is written to memory unless all is well. */
enum rt_status weights_load(const struct params *ps, const char *path, float *const *memory,
                            struct diag *d, struct rt_error *err);
/* The tensors of all parameters (of those with keep[i], where keep is not NULL) as views into
 * memory, names with `prefix` in front; appended to *out in the arena. */
typedef VEC(struct tf_tensor) tf_list;
void weights_list(struct arena *a, const struct params *ps, float *const *memory, const bool *keep,
                  const char *prefix, tf_list *out);
/* The reverse: fills memory from tensors with that prefix; as weights_load. With an empty prefix
 * every tensor of the file must be one of the model's. */
enum rt_status weights_read(const struct params *ps, const struct tensorfile *f, const char *label,
                            const char *prefix, const bool *keep, float *const *memory,
                            struct diag *d, struct rt_error *err);
#endif
