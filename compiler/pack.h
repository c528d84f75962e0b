/* Weights of serving programs as they lie in SA_weights (ir/panel.h): read from where they are
 * stored, rounded, and put in panels, a few rows at a time, so that nothing but the image itself
 * takes memory.
 *
 *   size_t n;
 *   const struct layout_stored *items = session_stored(s, &n);        after the plans are made
 *   pack_open(params, path, diag, &from, &err)                        or pack_fresh, pack_memory
 *   weights_pack(from, items, n, session_weights(s), session_pool(s), &err)   into memory, or
 *   weights_pack_stream(from, items, n, session_weights_bytes(s), pool, sink, ctx, &err)   into a
 * file pack_close(from)
 *
 * The image depends on the weights and the items only: every byte of it, those between values
 * (zero) too. */
#ifndef STRATA_COMPILER_PACK_H
#define STRATA_COMPILER_PACK_H
#include "compiler/memplan.h"
#include "compiler/weights.h"
#include "runtime/thread.h"

/* Where values of parameters come from. */
struct pack;
/* A safetensors file or folder, as weights_load reads it; statuses and diagnostics likewise. */
enum rt_status pack_open(const struct params *ps, const char *path, struct diag *d,
                         struct pack **out, struct rt_error *err);
/* Initial weights (weights_init). */
struct pack *pack_fresh(const struct params *ps, uint64_t seed);
/* Arrays of all parameters, in params order; they outlive the pack. */
struct pack *pack_memory(const struct params *ps, float *const *memory);
void pack_close(struct pack *p);

/* Fills the image, which is zero at first; by the pool, where it is not NULL. Items of unknown
 * names are a bug. RT_user where a weight cannot be stored (i8 of what is not finite). */
enum rt_status weights_pack(struct pack *from, const struct layout_stored *items, size_t n,
                            void *image, struct pool *pool, struct rt_error *err);
/* Gives the `bytes` of the image to a sink, in order: nothing but a few megabytes is in memory. By
 * the pool, where it is not NULL; the sink is called on this thread. */
enum rt_status weights_pack_stream(struct pack *from, const struct layout_stored *items, size_t n,
                                   uint64_t bytes, struct pool *pool, tf_sink *sink, void *ctx,
                                   struct rt_error *err);
#endif
