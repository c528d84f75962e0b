/* Caches of incremental programs on the CPU. */
#include "codegen/cpu.h"
#include "codegen/gemm_shape.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cache.c.inc"
    ;

static bool is_bf16(const struct cg_emit *e, uint32_t cache)
{
    return ir_ty(e->g, ir_src(e->g, e->n, cache))->dtype == IR_bf16;
}

static void last_rows(const struct cg_emit *e)
{
    int64_t c = cg_src_cols(e->g, e->n, 0, e->b);
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "last_rows", NULL, 0);
    cg_refs(e->a, s, CG_REFS(S_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(e->b.T, cg_src_ld(e->g, e->n, 0), c));
    cg_items(s, e->b.B, 8 * c);
}

/* The kernel `name`: what rows of cache i are made of, and sections without variables (NULL ends
 * them), come before it. */
static struct cg_step *add(const struct cg_emit *e, const char *name, uint32_t cache,
                           const char *const *before, const struct cg_var *v, size_t n)
{
    const char *op = op_info((enum ir_op)ir_at(e->g, e->n)->op)->name, *node = ir_name(e->g, e->n);
    struct sb s = {0};
    sb_str(&s, cg_section(e->a, text, is_bf16(e, cache) ? "rows_bf16" : "rows_f32", NULL, 0).p);
    for (; *before; before++) sb_str(&s, cg_section(e->a, text, *before, NULL, 0).p);
    sb_str(&s, cg_section(e->a, text, name, v, n).p);
    return cg_add(e->a, e->out, name, sb_take(&s, e->a),
                  *node ? str_fmt(e->a, "%s %s", op, node) : op);
}

static const char *const nothing[] = {NULL};

static void cache_write(const struct cg_emit *e)
{
    int64_t c = cg_src_cols(e->g, e->n, 1, e->b);
    cg_need_dense(e->g, e->n, 0);
    struct cg_step *s = add(e, "cache_write", 0, nothing, NULL, 0);
    cg_refs(e->a, s, CG_REFS(R_(0), S_(1), S_(2), S_(3)));
    cg_nums(e->a, s, CG_NUMS(e->b.T, cg_pages(e->g, e->n), c, cg_src_ld(e->g, e->n, 1)));
    cg_items(s, e->b.B * e->b.T, 8 * c);
}

/* The heads of a group that one token's attention takes at once: a divisor of all that leaves
 * registers for the rest. */
static int64_t heads_at_once(int64_t heads)
{
    int64_t n = heads < 8 && heads != 6 ? heads : 4;
    while (heads % n) n--;
    return n;
}

/* Key heads of an item of attention_one: their part of a page, and that of the next, stay in a
 * core's cache; enough items for threads. */
static int64_t item_heads(int64_t B, int64_t kv, int64_t hd)
{
    enum { BYTES = 1 << 18, ITEMS = 8 };
    int64_t n = BYTES / (2 * IR_PAGE * 4 * hd);
    if (n > kv) n = kv;
    while (n > 1 && B * ((kv + n - 1) / n) < ITEMS) n = (n + 1) / 2;
    return n > 1 ? n : 1;
}

static void attend_many(const struct cg_emit *e, const struct cg_var common[5], int64_t h,
                        int64_t kv, int64_t hd)
{
    int64_t T = e->b.T;
    const struct cg_var v[] = {common[0], common[1],
                               common[2], common[3],
                               common[4], {"QB", cg_number(e, cg_attn_query_rows(h, kv))}};
    struct cg_step *s = add(e, "attention_cached", 1, nothing, v, 6);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(3), S_(4), R_(0)));
    cg_nums(e->a, s, CG_NUMS(T, cg_pages(e->g, e->n), cg_src_ld(e->g, e->n, 0), h * hd));
    if (T == 1) return;
    size_t room = is_bf16(e, 1) ? (size_t)(IR_PAGE * hd) * sizeof(float) : 0;
    s->items = cg_attn_fwd_items(e->b.B, T, h, kv);
    s->scratch = (size_t)cg_attn_fwd_scratch(h, kv, hd, hd) + room;
}

static void attend_one(const struct cg_emit *e, const struct cg_var common[5], int64_t h,
                       int64_t kv, int64_t hd)
{
    const char *const before[] = {is_bf16(e, 1) ? "scores_bf16" : "scores_f32", "attend_sums",
                                  NULL};
    int64_t hb = item_heads(e->b.B, kv, hd), n = heads_at_once(h / kv), vp = (hd + 15) / 16 * 16;
    const struct cg_var v[] = {common[0], common[1], common[2],
                               common[3], common[4], {"N", cg_number(e, n)}};
    struct cg_step *s = add(e, "attention_one", 1, before, v, 6);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(3), S_(4), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_pages(e->g, e->n), cg_src_ld(e->g, e->n, 0), h * hd, hb));
    s->items = e->b.T > 1 ? 0 : e->b.B * ((kv + hb - 1) / hb);
    s->scratch = (size_t)(n * IR_PAGE + hb * (h / kv) * (vp + 17)) * sizeof(float);
}

/* One token of every sequence, or more of them: two kernels, so that the texts are those of all
 * sizes, of which one has nothing to do. */
static void attention_cached(const struct cg_emit *e)
{
    int64_t h = ir_int(e->g, e->n, AK_heads, 0), kv = ir_int(e->g, e->n, AK_kv_heads, 0);
    int64_t hd = ir_int(e->g, e->n, AK_head_dim, 0);
    double scale = (double)(float)ir_num(e->g, e->n, AK_scale, 1);
    const struct cg_var v[] = {{"H", cg_number(e, h)},
                               {"KV", cg_number(e, kv)},
                               {"HD", cg_number(e, hd)},
                               {"WINDOW", cg_number(e, ir_int(e->g, e->n, AK_window, 0))},
                               {"SCALE", str_fmt(e->a, "%.9e", scale)}};
    cg_need_dense(e->g, e->n, 1);
    cg_need_dense(e->g, e->n, 2);
    attend_many(e, v, h, kv, hd);
    attend_one(e, v, h, kv, hd);
}

void cg_cpu_cache(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                  const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    (void)t;
    switch (ir_at(g, n)->op) {
    case OP_last_rows: last_rows(&e); break;
    case OP_cache_write: cache_write(&e); break;
    case OP_attention_cached: attention_cached(&e); break;
    default: BUG("not a cache operation: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
