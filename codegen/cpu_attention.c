/* Attention and rotary embedding on the CPU. */
#include "codegen/cpu.h"
#include "codegen/gemm_shape.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char rope_text[] =
#include "text/rope.c.inc"
    ;

static void rope_table(const struct cg_emit *e)
{
    int64_t hd = ir_cols(e->g, e->n).add;
    const struct cg_var v[] = {
        {"HD", cg_number(e, hd)},
        {"THETA", str_fmt(e->a, "%.17g", ir_num(e->g, e->n, AK_theta, 10000))}};
    bool cached = ir_at(e->g, e->n)->nsrc > 0;
    const char *name = cached ? "rope_table_at" : "rope_table";
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, rope_text, name, v, 2);
    if (cached)
        cg_refs(e->a, s, CG_REFS(R_(0), S_(0)));
    else
        cg_refs(e->a, s, CG_REFS(R_(0)));
    cg_nums(e->a, s, CG_NUMS(e->b.T));
    s->items = dim_value(ir_rows(e->g, e->n), e->b);
    s->grain = cg_grain(hd * 200); /* a sine takes as long as 100 bytes */
}

static void rope(const struct cg_emit *e)
{
    int64_t hd = ir_int(e->g, e->n, AK_head_dim, 0), h = ir_int(e->g, e->n, AK_heads, 0);
    bool inverse = ir_int(e->g, e->n, AK_inverse, 0);
    const struct cg_var v[] = {{"HD", cg_number(e, hd)},
                               {"ROTARY", cg_number(e, cg_src_cols(e->g, e->n, 1, e->b))},
                               {"H", cg_number(e, h)},
                               {"SIGN", inverse ? "-" : ""}};
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, rope_text, "rope", v, 4);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0)));
    cg_nums(e->a, s,
            CG_NUMS(cg_src_rows(e->g, e->n, 1, e->b), cg_src_ld(e->g, e->n, 0),
                    cg_result_ld(e->g, e->n, 0)));
    cg_items(s, cg_src_rows(e->g, e->n, 0, e->b), 8 * h * hd);
}

/* The forward or the backward kernel of text/attention.c, which has one behind the other. */
static struct str half(const struct cg_emit *e, const struct cg_attn *x, bool grad)
{
    struct sb both = {0};
    cg_attn_text(&both, x);
    struct str t = sb_take(&both, e->a);
    const char *cut = strstr(t.p, "/* Backward.");
    CHECK(cut);
    size_t n = (size_t)(cut - t.p);
    return grad ? (struct str){cut, t.n - n} : (struct str){t.p, n};
}

static struct cg_step *attend(const struct cg_emit *e, bool grad)
{
    struct cg_attn x = {.fn = "@FN@",
                        .h = (int)ir_int(e->g, e->n, AK_heads, 0),
                        .kv = (int)ir_int(e->g, e->n, AK_kv_heads, 0),
                        .hd = (int)ir_int(e->g, e->n, AK_head_dim, 0),
                        .window = (int)ir_int(e->g, e->n, AK_window, 0),
                        .scale = (float)ir_num(e->g, e->n, AK_scale, 1)};
    x.vd = (int)ir_int(e->g, e->n, AK_v_dim, 0);
    if (!x.vd) x.vd = x.hd;
    x.ldq = cg_src_ld(e->g, e->n, 0), x.ldk = cg_src_ld(e->g, e->n, 1);
    x.ldv = cg_src_ld(e->g, e->n, 2);
    if (!grad) {
        x.ldo = cg_result_ld(e->g, e->n, 0);
        x.lddo = x.h * x.vd;
    } else {
        cg_need_dense(e->g, e->n, 4);
        x.ldo = cg_src_ld(e->g, e->n, 3), x.lddo = cg_src_ld(e->g, e->n, 5);
        x.lddq = cg_result_ld(e->g, e->n, 0), x.lddk = cg_result_ld(e->g, e->n, 1);
        x.lddv = cg_result_ld(e->g, e->n, 2);
    }
    const char *label =
        str_fmt(e->a, "%s %s", grad ? "attention_grad" : "attention", ir_name(e->g, e->n));
    struct cg_step *s = cg_add(e->a, e->out, "attention", half(e, &x, grad), label);
    s->symbol = str_fmt(e->a, "%s_%s", s->symbol, grad ? "bwd" : "fwd");
    cg_nums(e->a, s, CG_NUMS(e->b.B, e->b.T));
    s->items =
        grad ? cg_attn_bwd_items(e->b.B, x.kv) : cg_attn_fwd_items(e->b.B, e->b.T, x.h, x.kv);
    s->scratch = (size_t)(grad ? cg_attn_bwd_scratch(x.hd, x.vd)
                               : cg_attn_fwd_scratch(x.h, x.kv, x.hd, x.vd));
    return s;
}

void cg_cpu_attention(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                      const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    (void)t;
    switch (ir_at(g, n)->op) {
    case OP_rope_table: rope_table(&e); break;
    case OP_rope: rope(&e); break;
    case OP_attention:
        cg_refs(a, attend(&e, false), CG_REFS(S_(0), S_(1), S_(2), R_(0), R_(1), R_(2)));
        break;
    case OP_attention_grad:
        cg_refs(a, attend(&e, true),
                CG_REFS(S_(0), S_(1), S_(2), S_(3), S_(4), S_(5), R_(0), R_(1), R_(2)));
        break;
    default: BUG("not an attention operation: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
