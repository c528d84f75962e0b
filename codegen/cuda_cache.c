/* Rows in and out of caches, and attention over them, on a GPU. */
#include "codegen/cuda_cached.h"

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

static void cache_write(const struct cg_emit *e)
{
    int64_t c = cg_src_cols(e->g, e->n, 1, e->b), rows = e->b.B * e->b.T;
    const uint32_t x = 1, y = 0;
    int64_t v = cg_cuda_width(e->g, e->n, c, &x, 1, &y, 1);
    cg_need_dense(e->g, e->n, 0);
    const struct cg_var vars[] = {{"T", cg_cuda_res_type(e->g, e->n, 0)},
                                  {"TX", cg_cuda_src_type(e->g, e->n, 1)},
                                  {"C", cg_number(e, c)},
                                  {"V", cg_number(e, v)},
                                  {"LDX", cg_number(e, cg_src_ld(e->g, e->n, 1))}};
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "cache_write", vars, 5);
    cg_refs(e->a, s, CG_REFS(R_(0), S_(1), S_(2), S_(3)));
    cg_nums(e->a, s, CG_NUMS(rows, e->b.T, cg_pages(e->g, e->n)));
    cg_launch(s, (rows * (c / v) + 255) / 256, 256, 0);
}

static void attention_cached(const struct cg_emit *e, const struct cg_target *t)
{
    const struct ir_graph *g = e->g;
    int64_t h = ir_int(g, e->n, AK_heads, 0), kv = ir_int(g, e->n, AK_kv_heads, 0);
    int64_t hd = ir_int(g, e->n, AK_head_dim, 0), k = cg_cuda_vector(e, false, 1, hd);
    cg_need_dense(g, e->n, 1);
    cg_need_dense(g, e->n, 2);
    CHECK(ir_elem_bytes(g, ir_src(g, e->n, 1)) == ir_elem_bytes(g, ir_src(g, e->n, 2)));
    struct cg_cached x = {.g = h / kv,
                          .kv = kv,
                          .hd = hd,
                          .vd = hd,
                          .window = ir_int(g, e->n, AK_window, 0),
                          .scale = (double)(float)ir_num(g, e->n, AK_scale, 1),
                          .q = S_(0),
                          .q2 = S_(0),
                          .qn = hd,
                          .ldq2 = 0,
                          .head_q = hd,
                          .vec_q = cg_cuda_vector(e, false, 0, hd),
                          .k = S_(1),
                          .v = S_(2),
                          .pages = S_(3),
                          .past = S_(4),
                          .o = R_(0),
                          .tq = cg_cuda_src_type(g, e->n, 0),
                          .tk = cg_cuda_src_type(g, e->n, 1),
                          .to = cg_cuda_res_type(g, e->n, 0),
                          .ldq = cg_src_ld(g, e->n, 0),
                          .ldk = kv * hd,
                          .ldo = cg_result_ld(g, e->n, 0),
                          .vec_k = k,
                          .vec_v = cg_cuda_vector(e, false, 2, hd),
                          .vec_o = cg_cuda_vector(e, true, 0, hd),
                          .table = cg_pages(g, e->n),
                          .shared = cg_cuda_shared(t)};
    x.why = cg_cuda_paged_why(&x);
    e->out->workspace = (size_t)(x.why ? cg_cuda_cached(e, &x, 0) : cg_cuda_paged(e, &x, 0));
}

void cg_cuda_cache(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                   const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    switch (ir_at(g, n)->op) {
    case OP_last_rows: last_rows(&e); break;
    case OP_cache_write: cache_write(&e); break;
    case OP_attention_cached: attention_cached(&e, t); break;
    default: BUG("not a cache operation: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
