/* Caches of the decode program: named inputs of constant size, replaced in place. */
#include "compiler/build_parts.h"

ir_id b_cache(struct builder *b, const char *name, int64_t rows, int64_t cols)
{
    const char *full = b_name(b, "cache.%s", name);
    ir_type_id t = ir_type2(b->g, IR_f32, dim_const(b->options->slots * rows), dim_const(cols));
    return ir_add_typed(b->g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, full)), full);
}

void b_cache_put(struct builder *b, const char *name, ir_id now)
{
    ir_output(b->g, b_name(b, "new.cache.%s", name), now);
}

const char *b_cache_name(struct builder *b, const char *p, const char *what)
{
    return b_name(b, "%s.%s", p + strlen("model."), what);
}

/* A call writes all its tokens before the first of them looks back. Key tiles of 64 positions must
 * not be cut where the ring closes. */
int64_t b_cache_rows(const struct builder *b, int64_t window)
{
    enum { TILE = 64 };
    const struct build_options *o = b->options;
    if (!window || window > o->context) return o->context;
    int64_t ring = (window - 1 + o->chunk + TILE - 1) / TILE * TILE;
    return ring < o->context ? ring : o->context;
}

ir_id b_cache_write(struct builder *b, const char *name, ir_id x, int64_t rows)
{
    ir_id cache = b_cache(b, name, rows, ir_cols(b->g, x).add);
    ir_id now = ir_add(b->g, OP_cache_write, SRCS(cache, x, b->slots, b->past),
                       ATTRS(A_INT(context, rows)), b_name(b, "%s.write", name));
    b_cache_put(b, name, now);
    return now;
}
