/* Caches of incremental programs on the CPU. */
#include "codegen/cpu.h"
#include "codegen/gemm_shape.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cache.c.inc"
    ;

static void last_rows(const struct cg_emit *e)
{
    int64_t c = cg_src_cols(e->g, e->n, 0, e->b);
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "last_rows", NULL, 0);
    cg_refs(e->a, s, CG_REFS(S_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(e->b.T, cg_src_ld(e->g, e->n, 0), c));
    cg_items(s, e->b.B, 8 * c);
}

static void cache_write(const struct cg_emit *e)
{
    int64_t c = cg_src_cols(e->g, e->n, 1, e->b);
    cg_need_dense(e->g, e->n, 0);
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "cache_write", NULL, 0);
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

/* One token of every sequence, or more of them: two kernels, so that the texts are those of all
 * sizes, of which one has nothing to do. */
static void attention_cached(const struct cg_emit *e)
{
    int64_t h = ir_int(e->g, e->n, AK_heads, 0), kv = ir_int(e->g, e->n, AK_kv_heads, 0);
    int64_t hd = ir_int(e->g, e->n, AK_head_dim, 0), T = e->b.T, vp = (hd + 15) / 16 * 16;
    int64_t hb = item_heads(e->b.B, kv, hd), n = heads_at_once(h / kv);
    double scale = (double)(float)ir_num(e->g, e->n, AK_scale, 1);
    const struct cg_var v[] = {{"H", cg_number(e, h)},
                               {"KV", cg_number(e, kv)},
                               {"HD", cg_number(e, hd)},
                               {"WINDOW", cg_number(e, ir_int(e->g, e->n, AK_window, 0))},
                               {"SCALE", str_fmt(e->a, "%.9e", scale)},
                               {"QB", cg_number(e, cg_attn_query_rows(h, kv))}};
    const struct cg_var w[] = {v[0], v[1], v[2], v[3], v[4], {"N", cg_number(e, n)}};
    cg_need_dense(e->g, e->n, 1);
    cg_need_dense(e->g, e->n, 2);
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "attention_cached", v, 6);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(3), S_(4), R_(0)));
    cg_nums(e->a, s, CG_NUMS(T, cg_pages(e->g, e->n), cg_src_ld(e->g, e->n, 0), h * hd));
    s->items = T > 1 ? cg_attn_fwd_items(e->b.B, T, h, kv) : 0;
    s->scratch = T > 1 ? (size_t)cg_attn_fwd_scratch(h, kv, hd, hd) : 0;
    struct str rows = cg_section(e->a, text, "attend_rows", NULL, 0);
    struct str one = cg_section(e->a, text, "attention_one", w, 6);
    s = cg_add(e->a, e->out, "attention_one", str_of(str_fmt(e->a, "%s%s", rows.p, one.p)),
               str_fmt(e->a, "attention_cached %s", ir_name(e->g, e->n)));
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(3), S_(4), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_pages(e->g, e->n), cg_src_ld(e->g, e->n, 0), h * hd, hb));
    s->items = T > 1 ? 0 : e->b.B * ((kv + hb - 1) / hb);
    s->scratch = (size_t)(n * IR_PAGE + hb * (h / kv) * (vp + 17)) * sizeof(float);
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
