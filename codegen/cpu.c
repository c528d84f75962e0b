/* The CPU back end: which emitter lowers which operation, and what emitters share. */
#include "codegen/cpu.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"

static cg_emit_fn *emitter(const struct ir_graph *g, ir_id n)
{
    switch (ir_at(g, n)->op) {
    case OP_rows: return cg_cpu_rows;
    case OP_matmul:
    case OP_grouped_matmul:
    case OP_grouped_matmul_dw:
    case OP_head_loss:
    case OP_head_nll: return cg_cpu_gemm;
    case OP_rope_table:
    case OP_rope:
    case OP_attention:
    case OP_attention_grad: return cg_cpu_attention;
    case OP_mla_keys:
    case OP_mla_keys_grad:
    case OP_mla_cached: return cg_cpu_mla;
    case OP_last_rows:
    case OP_cache_write:
    case OP_attention_cached: return cg_cpu_cache;
    case OP_repeat:
    case OP_short_conv:
    case OP_short_conv_grad:
    case OP_kda:
    case OP_kda_grad:
    case OP_conv_cached:
    case OP_kda_cached: return cg_cpu_kda;
    case OP_depth_mix:
    case OP_depth_mix_grad:
    case OP_depth_inter:
    case OP_depth_inter_grad: return cg_cpu_depth;
    case OP_embed:
    case OP_embed_grad:
    case OP_cross_entropy:
    case OP_cross_entropy_grad:
    case OP_count_valid:
    case OP_sum:
    case OP_colmax:
    case OP_concat:
    case OP_reshape: return cg_cpu_token;
    case OP_moe_route:
    case OP_moe_weights:
    case OP_moe_route_grad:
    case OP_moe_sort:
    case OP_moe_gather:
    case OP_moe_gather_grad:
    case OP_moe_combine:
    case OP_moe_combine_grad:
    case OP_moe_load: return cg_cpu_moe;
    case OP_adamw:
    case OP_momentum:
    case OP_muon_step:
    case OP_grad_norm:
    case OP_qk_clip:
    case OP_balance: return cg_cpu_optim;
    default: return NULL;
    }
}

void cg_lower_node(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                   const struct cg_target *t, struct cg_lowering *out)
{
    if (t->sm) {
        cg_cuda_lower_node(a, g, n, b, t, out);
        return;
    }
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    cg_emit_fn *fn = emitter(g, n);
    if (fn)
        fn(a, g, n, b, t, out);
    else if (!(op_info(op)->flags & (F_LEAF | F_VIEW)))
        BUG("the CPU back end has no emitter for %s", op_info(op)->name);
}

const char *cg_cpu_prelude(void)
{
    static const char text[] =
#include "text/prelude.c.inc"
#include "text/tile.c.inc"
#include "text/attention_rows.c.inc"
        ;
    return text;
}

const char *cg_number(const struct cg_emit *e, int64_t n)
{
    return str_fmt(e->a, "%lld", (long long)n);
}

struct str cg_section(struct arena *a, const char *text, const char *name,
                      const struct cg_var *vars, size_t n)
{
    static const char mark[] = "//== ";
    size_t len = strlen(name);
    for (const char *at = strstr(text, mark); at; at = strstr(at, mark)) {
        at += sizeof mark - 1;
        if (strncmp(at, name, len) || at[len] != '\n') continue;
        at += len + 1;
        const char *end = strstr(at, mark);
        struct sb s = {0};
        cg_text(&s, str_dup(a, (struct str){at, end ? (size_t)(end - at) : strlen(at)}), vars, n);
        return sb_take(&s, a);
    }
    BUG("no kernel text %s", name);
}

struct cg_step *cg_add_section(struct arena *a, const struct ir_graph *g, ir_id n,
                               struct cg_lowering *out, const char *text, const char *name,
                               const struct cg_var *vars, size_t nvars)
{
    const char *node = ir_name(g, n);
    const char *label = *node ? str_fmt(a, "%s %s", name, node) : name;
    return cg_add(a, out, name, cg_section(a, text, name, vars, nvars), label);
}

int64_t cg_src_ld(const struct ir_graph *g, ir_id n, uint32_t i)
{
    return ir_view(g, ir_src(g, n, i)).ld;
}

int64_t cg_src_rows(const struct ir_graph *g, ir_id n, uint32_t i, struct ir_bind b)
{
    return dim_value(ir_rows(g, ir_src(g, n, i)), b);
}

int64_t cg_src_cols(const struct ir_graph *g, ir_id n, uint32_t i, struct ir_bind b)
{
    return dim_value(ir_cols(g, ir_src(g, n, i)), b);
}

/* Do the rows of a value lie end to end? A vector's one row always does. */
static bool dense(const struct ir_graph *g, ir_id v)
{
    struct ir_dim cols = ir_cols(g, v);
    return ir_ty(g, v)->rank <= 1 || (dim_is_const(cols) && ir_view(g, v).ld == cols.add);
}

void cg_need_dense(const struct ir_graph *g, ir_id n, uint32_t i)
{
    if (!dense(g, ir_src(g, n, i)))
        BUG("%s: the rows of operand %u do not lie end to end", op_info(ir_at(g, n)->op)->name, i);
}

int64_t cg_pages(const struct ir_graph *g, ir_id n)
{
    return ir_int(g, n, AK_context, 0) / IR_PAGE;
}

int64_t cg_grain(int64_t bytes)
{
    enum { PIECE_BYTES = 1 << 19 };
    return bytes >= PIECE_BYTES ? 1 : PIECE_BYTES / (bytes > 0 ? bytes : 1);
}

void cg_items(struct cg_step *s, int64_t items, int64_t bytes_each)
{
    s->items = items;
    s->grain = cg_grain(bytes_each);
}

struct cg_flat cg_flat(const struct ir_graph *g, ir_id n, const uint32_t *operand, size_t count,
                       struct ir_bind b)
{
    bool all = true;
    for (size_t i = 0; i < count; i++) all = all && dense(g, ir_src(g, n, operand[i]));
    int64_t total = type_count(g->types, ir_at(g, ir_src(g, n, operand[0]))->type, b);
    struct cg_flat f = {.rows = 1, .cols = total};
    if (!all) {
        f.cols = cg_src_cols(g, n, operand[0], b);
        f.rows = total / f.cols;
    }
    f.pieces = f.rows * ((f.cols + CG_PIECE - 1) / CG_PIECE);
    return f;
}

int64_t cg_flat_ld(const struct ir_graph *g, ir_id n, uint32_t i, struct cg_flat f)
{
    return f.rows == 1 ? f.cols : cg_src_ld(g, n, i);
}
