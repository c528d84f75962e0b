#include "compiler/sites.h"

size_t site_sources(const struct site *s)
{
    return 1 + s->finished + s->partial;
}

struct block block_of(const struct model *m, size_t k)
{
    size_t first = k > 1 ? (size_t)m->boundary[k - 2] : 0;
    size_t end = k <= m->num_boundaries ? (size_t)m->boundary[k - 1] : 2 * m->num_layers;
    return (struct block){first, end};
}

struct site *sites_of(struct arena *a, const struct model *m, size_t *n)
{
    size_t l = 2 * m->num_layers, block = 1;
    *n = 0;
    if (m->residual != RESIDUAL_attnres) return NULL;
    struct site *s = NEW(a, struct site, l + 1);
    for (size_t i = 0; i < l; i++) {
        const struct layer *y = &m->layer[i / 2];
        bool first = i > 0 && block <= m->num_boundaries && (size_t)m->boundary[block - 1] == i;
        block += first;
        s[i] = (struct site){.sublayer = i,
                             .block = block,
                             .finished = block - 1,
                             .partial = i > 0 && !first,
                             .mixes = i > 0 && (i % 2 ? y->attnres_ffn : y->attnres_mixer)};
        s[i].name =
            str_fmt(a, "model.layers.%zu.%s_res_proj", i / 2, i % 2 ? "mlp" : "self_attention");
    }
    s[l] =
        (struct site){"model.output_attn_res_proj", l, block, block - 1, true, m->attnres_output};
    *n = l + 1;
    return s;
}
