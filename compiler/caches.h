/* Sizes of the decode program's caches: of one page or state, and of what a server keeps. */
#ifndef STRATA_COMPILER_CACHES_H
#define STRATA_COMPILER_CACHES_H
#include "compiler/params.h"

enum cache_kind { /* keys and latents lie in pages, the others in states */
                  CACHE_keys,
                  CACHE_latent,
                  CACHE_conv,
                  CACHE_state,
                  CACHES
};
const char *cache_kind_name(enum cache_kind k);
static inline bool cache_paged(enum cache_kind k)
{
    return k == CACHE_keys || k == CACHE_latent;
}
/* Bytes of a page or of a state by kind, all layers together, as programs for a GPU or a CPU store
 * them. */
void cache_bytes(const struct model *m, const struct params *ps, bool gpu, uint64_t bytes[CACHES]);

/* As the serve section says: what a program is built with (build_options). */
struct caches {
    int64_t pages, states, context; /* context: max_context in whole pages */
    uint64_t bytes;
};
struct caches caches_served(const struct model *m, const struct params *ps, bool gpu);
#endif
