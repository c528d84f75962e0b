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

/* Tokens and heads of an item: rows enough to use what they read, items enough for threads. */
static int64_t item_heads(struct ir_bind b, int64_t heads)
{
    int64_t want = b.T <= 3 ? 4 : b.T <= 8 ? 2 : 1, most = b.B >= 4 ? heads : (heads + 1) / 2;
    return want < most ? want : most;
}

static void cached(const struct cg_emit *e)
{
    enum { TOKENS = 24, KEYS = 64 };
    const struct ir_graph *g = e->g;
    int64_t h = ir_int(g, e->n, AK_heads, 0), T = e->b.T, l = cg_src_cols(g, e->n, 1, e->b);
    int64_t lr = cg_src_cols(g, e->n, 2, e->b), v = ir_int(g, e->n, AK_v_dim, 0);
    double scale = (double)(float)ir_num(g, e->n, AK_scale, 1);
    const struct cg_var vars[] = {
        {"H", cg_number(e, h)},      {"N", cg_number(e, ir_int(g, e->n, AK_head_dim, 0))},
        {"R", cg_number(e, lr - l)}, {"V", cg_number(e, v)},
        {"L", cg_number(e, l)},      {"SCALE", str_fmt(e->a, "%.9e", scale)}};
    cg_need_dense(g, e->n, 2);
    struct str parts = cg_section(e->a, text, "mla_dots", NULL, 0);
    struct str body = cg_section(e->a, text, "mla_cached", vars, 6);
    struct cg_step *s =
        cg_add(e->a, e->out, "mla_cached", str_of(str_fmt(e->a, "%s%s", parts.p, body.p)),
               str_fmt(e->a, "mla_cached %s", ir_name(g, e->n)));
    int64_t tokens = T < TOKENS ? T : TOKENS, heads = item_heads(e->b, h), rows = tokens * heads;
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(3), S_(4), R_(0)));
    cg_nums(e->a, s,
            CG_NUMS(T, cg_pages(g, e->n), cg_src_ld(g, e->n, 0), cg_src_ld(g, e->n, 1), h * v,
                    tokens, heads));
    s->items = e->b.B * ((h + heads - 1) / heads) * ((T + tokens - 1) / tokens);
    int64_t qp = (lr + 15) / 16 * 16, lp = (l + 15) / 16 * 16;
    s->scratch = (size_t)(rows * (qp + lp + KEYS + 16) + (rows + 15) / 16 * 16) * sizeof(float);
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
    case OP_mla_cached: cached(&e); break;
    default: BUG("not a latent operation: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
