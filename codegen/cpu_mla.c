/* Multi-head latent attention on the CPU, beyond what plain attention does. */
#include "codegen/cpu.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/mla.c.inc"
    ;

/* mla_keys and its gradient: moves, a token at a time. */
static void keys(const struct cg_emit *e, const char *name, int64_t r)
{
    int64_t h = ir_int(e->g, e->n, AK_heads, 0), n = ir_int(e->g, e->n, AK_head_dim, 0),
            v = ir_int(e->g, e->n, AK_v_dim, 0);
    const struct cg_var vars[] = {{"H", cg_number(e, h)},
                                  {"N", cg_number(e, n)},
                                  {"R", cg_number(e, r)},
                                  {"V", cg_number(e, v)}};
    struct str moves = cg_section(e->a, text, "mla_moves", NULL, 0);
    struct str body = cg_section(e->a, text, name, vars, 4);
    const char *node = ir_name(e->g, e->n);
    struct cg_step *s = cg_add(e->a, e->out, name, str_of(str_fmt(e->a, "%s%s", moves.p, body.p)),
                               *node ? str_fmt(e->a, "%s %s", name, node) : name);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0), R_(1)));
    cg_nums(e->a, s,
            CG_NUMS(cg_src_ld(e->g, e->n, 0), cg_src_ld(e->g, e->n, 1), cg_result_ld(e->g, e->n, 0),
                    cg_result_ld(e->g, e->n, 1)));
    cg_items(s, cg_src_rows(e->g, e->n, 0, e->b), 8 * h * (n + r + v));
}

void cg_cpu_mla(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    (void)t;
    switch (ir_at(g, n)->op) {
    case OP_mla_keys: keys(&e, "mla_keys", cg_src_cols(g, n, 1, b)); break;
    case OP_mla_keys_grad:
        keys(&e, "mla_keys_grad",
             cg_src_cols(g, n, 0, b) / ir_int(g, n, AK_heads, 1) - ir_int(g, n, AK_head_dim, 0));
        break;
    default: BUG("not a latent operation: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
