/* Caches of the decode program: named inputs of constant size, replaced in place. */
#include "compiler/build_parts.h"

static ir_id cache(struct builder *b, const char *name, enum ir_dtype dtype, int64_t rows,
                   int64_t cols)
{
    ir_type_id t = ir_type2(b->g, dtype, dim_const(rows), dim_const(cols));
    return ir_add_typed(b->g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

ir_id b_cache_state(struct builder *b, const char *name, int64_t rows, int64_t cols)
{
    return cache(b, name, IR_f32, b->options->states * rows, cols);
}

void b_cache_put(struct builder *b, const char *name, ir_id now)
{
    ir_output(b->g, b_name(b, "new.%s", name), now);
}

const char *b_cache_name(struct builder *b, const char *pool, const char *p, const char *what)
{
    return b_name(b, "cache.%s.%s.%s", pool, p + strlen("model."), what);
}

ir_id b_cache_write(struct builder *b, const char *name, ir_id x, bool latent)
{
    enum ir_store s = b->options->store;
    bool bf16 = b_bf16(b) && (latent ? s && !store_in_panels(s) : s); /* latents: on a GPU */
    ir_id old =
        cache(b, name, bf16 ? IR_bf16 : IR_f32, b->options->pages * IR_PAGE, ir_cols(b->g, x).add);
    ir_id now = ir_add(b->g, OP_cache_write, SRCS(old, x, b->pages, b->past),
                       ATTRS(A_INT(context, b->options->context)), b_name(b, "%s.write", name));
    b_cache_put(b, name, now);
    return now;
}
