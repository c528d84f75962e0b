/* The CUDA back end: which emitter lowers which operation, and what emitters share. */
#include "codegen/cuda.h"

static cg_emit_fn *emitter(enum ir_op op)
{
    switch (op) {
    case OP_rows: return cg_cuda_rows;
    case OP_matmul:
    case OP_grouped_matmul:
    case OP_grouped_matmul_dw: return cg_cuda_gemm;
    case OP_head_loss:
    case OP_head_nll: return cg_cuda_head;
    case OP_attention:
    case OP_attention_grad:
    case OP_rope:
    case OP_rope_table: return cg_cuda_attention;
    case OP_cache_write:
    case OP_attention_cached:
    case OP_last_rows: return cg_cuda_cache;
    case OP_mla_keys:
    case OP_mla_keys_grad:
    case OP_mla_cached: return cg_cuda_mla;
    case OP_repeat:
    case OP_short_conv:
    case OP_short_conv_grad:
    case OP_conv_cached: return cg_cuda_conv;
    case OP_kda:
    case OP_kda_grad:
    case OP_kda_cached: return cg_cuda_kda;
    case OP_depth_mix:
    case OP_depth_inter:
    case OP_depth_mix_grad:
    case OP_depth_inter_grad: return cg_cuda_depth;
    case OP_embed:
    case OP_embed_grad:
    case OP_cross_entropy:
    case OP_cross_entropy_grad:
    case OP_count_valid:
    case OP_sum:
    case OP_colmax:
    case OP_concat:
    case OP_reshape: return cg_cuda_token;
    case OP_moe_route:
    case OP_moe_weights:
    case OP_moe_route_grad:
    case OP_moe_sort:
    case OP_moe_gather:
    case OP_moe_gather_grad:
    case OP_moe_combine:
    case OP_moe_combine_grad:
    case OP_moe_load: return cg_cuda_moe;
    case OP_adamw:
    case OP_momentum:
    case OP_muon_step:
    case OP_grad_norm:
    case OP_qk_clip:
    case OP_balance: return cg_cuda_optim;
    default: return NULL;
    }
}

void cg_cuda_lower_node(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                        const struct cg_target *t, struct cg_lowering *out)
{
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    cg_emit_fn *fn = emitter(op);
    if (fn)
        fn(a, g, n, b, t, out);
    else if (!(op_info(op)->flags & (F_LEAF | F_VIEW)))
        BUG("the CUDA back end has no emitter for %s", op_info(op)->name);
}

const char *cg_refusal(struct arena *a, const struct ir_graph *g, ir_id n,
                       const struct cg_target *t)
{
    bool depth = t->sm && emitter((enum ir_op)ir_at(g, n)->op) == cg_cuda_depth;
    return depth ? cg_cuda_depth_refusal(a, g, n) : NULL;
}

const char *cg_cuda_prelude(void)
{
    return cg_text_cuda_prelude;
}

static const char *type_name(enum ir_dtype t, bool narrow)
{
    if (narrow || t == IR_bf16) return "uint16_t";
    if (t == IR_i32) return "int32_t";
    if (t == IR_f64) return "double";
    CHECK(t == IR_f32);
    return "float";
}

const char *cg_cuda_src_type(const struct ir_graph *g, ir_id n, uint32_t i)
{
    ir_id v = ir_src(g, n, i);
    return type_name((enum ir_dtype)ir_ty(g, v)->dtype, ir_narrow(g, v));
}

const char *cg_cuda_res_type(const struct ir_graph *g, ir_id n, uint32_t i)
{
    const struct ir_type *t = ir_ty(g, n);
    if (t->dtype == IR_tuple) t = type_get(g->types, type_elem(g->types, ir_at(g, n)->type, i));
    return type_name((enum ir_dtype)t->dtype, ir_narrow_result(g, n, i));
}

/* The largest power of two up to 16 that divides x. */
static int64_t divides(int64_t x)
{
    int64_t p = x & -x;
    return p && p < 16 ? p : 16;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

int64_t cg_cuda_src_align(const struct ir_graph *g, ir_id n, uint32_t i)
{
    ir_id v = ir_src(g, n, i);
    struct ir_view w = ir_view(g, v);
    int64_t bytes = (int64_t)ir_elem_bytes(g, v), rows = ir_ty(g, v)->rank > 1 ? w.ld : 0;
    int64_t at = least(divides(w.offset.add * bytes), divides(w.offset.mul * bytes));
    return least(at, divides(rows * bytes));
}

int64_t cg_cuda_res_align(const struct ir_graph *g, ir_id n, uint32_t i)
{
    int64_t bytes = (int64_t)ir_result_bytes(g, n, i), at = 0;
    ir_id c = cg_concat_of(g, n, i);
    if (c == IR_NONE || ir_int(g, c, AK_axis, 0) != 1)
        return divides(cg_result_ld(g, n, i) * bytes);
    for (uint32_t k = 0; k < ir_at(g, c)->nsrc; k++) { /* where the pieces of a row begin */
        ir_id s = ir_src(g, c, k);
        bool get = ir_at(g, s)->op == OP_get;
        if ((get ? ir_src(g, s, 0) : s) == n && (!get || ir_int(g, s, AK_index, 0) == i)) break;
        at += ir_cols(g, s).add;
    }
    return least(divides(at * bytes), divides(cg_result_ld(g, n, i) * bytes));
}

/* Whether w elements of `bytes` go in one access, or in two. */
static bool fits(int64_t w, int64_t bytes, int64_t align)
{
    return w * bytes <= 16 ? align >= w * bytes : align == 16;
}

int64_t cg_cuda_width(const struct ir_graph *g, ir_id n, int64_t cols, const uint32_t *src,
                      size_t nsrc, const uint32_t *res, size_t nres)
{
    bool narrow = false;
    for (size_t i = 0; i < nsrc; i++) narrow |= ir_elem_bytes(g, ir_src(g, n, src[i])) == 2;
    for (size_t i = 0; i < nres; i++) narrow |= ir_result_bytes(g, n, res[i]) == 2;
    int64_t w = narrow ? 8 : 4;
    while (cols % w) w /= 2;
    for (size_t i = 0; i < nsrc; i++) {
        int64_t bytes = (int64_t)ir_elem_bytes(g, ir_src(g, n, src[i]));
        while (!fits(w, bytes, cg_cuda_src_align(g, n, src[i]))) w /= 2;
    }
    for (size_t i = 0; i < nres; i++) {
        int64_t bytes = (int64_t)ir_result_bytes(g, n, res[i]);
        while (!fits(w, bytes, cg_cuda_res_align(g, n, res[i]))) w /= 2;
    }
    return w;
}

int64_t cg_cuda_vector(const struct cg_emit *e, bool result, uint32_t i, int64_t size)
{
    int64_t align = result ? cg_cuda_res_align(e->g, e->n, i) : cg_cuda_src_align(e->g, e->n, i);
    int64_t bytes = (int64_t)(result ? ir_result_bytes(e->g, e->n, i)
                                     : ir_elem_bytes(e->g, ir_src(e->g, e->n, i)));
    return align == 16 && size * bytes % 16 == 0 ? 16 / bytes : 1;
}

struct str cg_cuda_section(struct arena *a, const char *text, const char *name,
                           const struct cg_var *vars, size_t n)
{
    struct cg_var *used = NEW(a, struct cg_var, n + 1);
    size_t count = 0;
    const char *at = strstr(text, str_fmt(a, "//== %s\n", name));
    CHECK(at);
    const char *end = strstr(at + 5, "//== ");
    for (size_t i = 0; i < n; i++) {
        const char *use = strstr(at, str_fmt(a, "${%s}", vars[i].name));
        if (use && (!end || use < end)) used[count++] = vars[i];
    }
    return cg_section(a, text, name, used, count);
}

int64_t cg_cuda_shared(const struct cg_target *t)
{
    if (t->sm == 80 || t->sm == 87) return 163 << 10;
    return (t->sm >= 90 && t->sm < 120 ? 227 : 99) << 10;
}

void cg_launch(struct cg_step *s, int64_t blocks, int64_t threads, int64_t shared)
{
    CHECK(blocks >= 0 && blocks <= INT32_MAX && threads > 0 && threads <= 1024 && shared >= 0);
    s->launch = (struct sa_launch){{(uint32_t)blocks, 1, 1}, (uint32_t)threads, (uint32_t)shared};
}

struct cg_step *cg_add_product(struct arena *a, struct cg_lowering *out, const char *label)
{
    struct cg_step s = {.product = true, .grain = 1, .label = str_dup(a, str_of(label))};
    vec_push(a, &out->step, s);
    return &vec_last(&out->step);
}
