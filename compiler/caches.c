#include "compiler/caches.h"
#include "compiler/build.h"

/* What the pages take where the spec does not say: no more than this. */
#define MOST_BYTES ((uint64_t)4 << 30)

const char *cache_kind_name(enum cache_kind k)
{
    static const char *const name[] = {"keys_values", "latent", "convolutions", "states"};
    return name[k];
}

static enum cache_kind kind_of(const char *name)
{
    struct str s = str_of(name);
    if (str_ends(s, ".k") || str_ends(s, ".v")) return CACHE_keys;
    if (str_ends(s, ".latent")) return CACHE_latent;
    if (str_ends(s, "_conv")) return CACHE_conv;
    if (!str_ends(s, ".S")) BUG("what is %s for?", name);
    return CACHE_state;
}

void cache_bytes(const struct model *m, const struct params *ps, bool gpu, uint64_t bytes[CACHES])
{
    struct arena *a = arena_open("caches");
    const struct build_options o = {
        .pages = 1, .states = 1, .context = IR_PAGE, .store = build_store(m, gpu)};
    const struct ir_graph *g = build_model(a, m, ps, BUILD_decode, &o);
    for (int i = 0; i < CACHES; i++) bytes[i] = 0;
    for (ir_id n = 0; n < g->node.n; n++) {
        const char *name = ir_word(g, n, AK_name, "");
        if (ir_at(g, n)->op != OP_input || !str_starts(str_of(name), "cache.")) continue;
        int64_t count = type_count(g->types, ir_at(g, n)->type, (struct ir_bind){1, 1});
        bytes[kind_of(name)] += dtype_size(ir_ty(g, n)->dtype) * (uint64_t)count;
    }
    arena_close(a);
}

struct caches caches_served(const struct model *m, const struct params *ps, bool gpu)
{
    uint64_t each[CACHES], page = 0, state = 0;
    int64_t one = build_pages(m->serve_max_context), most = one * m->serve_max_sequences;
    cache_bytes(m, ps, gpu, each);
    for (int i = 0; i < CACHES; i++) *(cache_paged((enum cache_kind)i) ? &page : &state) += each[i];
    if (m->serve_cache_tokens)
        most = build_pages(m->serve_cache_tokens);
    else if (page && (uint64_t)most > MOST_BYTES / page)
        most = (int64_t)(MOST_BYTES / page);
    struct caches c = {.pages = most > one ? most : one, .states = 1, .context = one * IR_PAGE};
    if (state) c.states = m->serve_max_sequences + m->serve_snapshots;
    c.bytes = (uint64_t)c.pages * page + (uint64_t)c.states * state;
    return c;
}
