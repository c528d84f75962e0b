/* Rows in and out of caches, and attention over them, on a GPU. */
#include "codegen/cuda.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_cache.c.inc"
    ;

static void last_rows(const struct cg_emit *e)
{
    CHECK(ir_narrow(e->g, ir_src(e->g, e->n, 0)) == ir_narrow(e->g, e->n));
    const struct cg_var vars[] = {{"T", cg_cuda_src_type(e->g, e->n, 0)},
                                  {"C", cg_number(e, cg_src_cols(e->g, e->n, 0, e->b))}};
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "last_rows", vars, 2);
    cg_refs(e->a, s, CG_REFS(S_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(e->b.T, cg_src_ld(e->g, e->n, 0)));
    cg_launch(s, e->b.B, 128, 0);
}

void cg_cuda_cache(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                   const struct cg_target *t, struct cg_lowering *out)
{
    (void)t;
    const struct cg_emit e = {a, g, n, b, out};
    switch (ir_at(g, n)->op) {
    case OP_last_rows: last_rows(&e); break;
    default: BUG("not a cache operation: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
