/* Mixes over depth on the CPU: depth_mix is depth_inter with one query, and so are their gradients,
 * except that a whole mix forms dh . h itself. */
#include "codegen/cpu.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/depth.c.inc"
    ;

enum { MAX_BLOCK = 4, GRAD_ROWS = 32 };

struct depth { /* the sizes of a node */
    uint32_t q, n;
    int64_t rows, d;
};

static struct depth sizes(const struct ir_graph *g, ir_id node, uint32_t v, struct ir_bind b)
{
    struct depth s = {(uint32_t)ir_int(g, node, AK_queries, 1),
                      (uint32_t)ir_int(g, node, AK_sources, 0), cg_src_rows(g, node, v, b),
                      cg_src_cols(g, node, v, b)};
    bool inter = ir_at(g, node)->op == OP_depth_inter_grad;
    for (uint32_t i = 0; i < ir_at(g, node)->nsrc; i++)
        if (!inter || i < 2 + 2 * s.q || i >= 2 + 4 * s.q) /* numbers per row may be views */
            cg_need_dense(g, node, i);
    return s;
}

/* Queries of a block. */
static uint32_t block(struct depth s)
{
    return s.q < MAX_BLOCK ? s.q : MAX_BLOCK;
}

/* dots + a kernel's own section. */
static struct str kernel(struct arena *a, const char *name, struct depth s,
                         const struct cg_var *more, size_t nmore)
{
    const struct cg_var vars[] = {{"D", str_fmt(a, "%lld", (long long)s.d)},
                                  {"QB", str_fmt(a, "%u", block(s))}};
    struct str dots = cg_section(a, text, "dots", vars, 2);
    struct str body = cg_section(a, text, name, more, nmore);
    return str_of(str_fmt(a, "%s%s", dots.p, body.p));
}

static const char *label(struct arena *a, const struct ir_graph *g, ir_id node, const char *name)
{
    return str_fmt(a, "%s %s", name, ir_word(g, node, AK_site, ""));
}

static void mix(struct arena *a, const struct ir_graph *g, ir_id node, struct ir_bind b,
                struct cg_lowering *out)
{
    struct depth s = sizes(g, node, ir_at(g, node)->nsrc - 1, b);
    int64_t lanes = block(s) + 1, tile = 16 / lanes, tiles = (s.rows + tile - 1) / tile;
    struct sb square = {0}; /* per lane, where its row's mean square is */
    for (int64_t i = 0; i < 16; i++)
        sb_printf(&square, "%s%lld", i ? ", " : "",
                  (long long)(i / lanes < tile ? i / lanes * lanes + lanes - 1 : 15));
    const struct cg_var vars[] = {{"EPS", str_fmt(a, "%.9ef", ir_num(g, node, AK_eps, 1e-6))},
                                  {"ROWS", str_fmt(a, "%lld", (long long)tile)},
                                  {"SQUARE_LANE", sb_take(&square, a).p}};
    const char *name = op_info((enum ir_op)ir_at(g, node)->op)->name;
    struct cg_step *step =
        cg_add(a, out, "depth_mix", kernel(a, "depth_mix", s, vars, 3), label(a, g, node, name));
    uint32_t nref = 2 * s.q + s.n + 3;
    struct cg_ref *ref = NEW(a, struct cg_ref, nref);
    for (uint32_t i = 0; i < s.q + s.n; i++) ref[i] = S_(i);
    for (uint32_t i = 0; i < s.q + 3; i++) ref[s.q + s.n + i] = R_(i);
    cg_refs(a, step, ref, nref);
    cg_nums(a, step, CG_NUMS(s.rows, s.n, s.q));
    step->scratch = s.n * 16 * sizeof(float);
    cg_items(step, tiles, tile * 4 * s.d * (int64_t)(s.n + s.q));
}

/* Operands of a gradient in the kernel's order: s, r, u.., dh.., h or delta.., lse.., v.., acc...
 * Returns the index of the first source. */
static uint32_t grad_operands(const struct ir_graph *g, ir_id node, struct depth s,
                              struct cg_ref *ref)
{
    if (ir_at(g, node)->op == OP_depth_mix_grad) { /* dh, h, u, s, r, lse */
        static const uint32_t order[] = {3, 4, 2, 0, 1, 5};
        for (uint32_t i = 0; i < 6; i++) ref[i] = S_(order[i]);
        return 6;
    }
    for (uint32_t i = 0; i < 2 + 4 * s.q; i++) ref[i] = S_(i);
    return 2 + 4 * s.q;
}

static void grad(struct arena *a, const struct ir_graph *g, ir_id node, struct ir_bind b,
                 struct cg_lowering *out)
{
    bool whole = ir_at(g, node)->op == OP_depth_mix_grad;
    struct depth s = sizes(g, node, ir_at(g, node)->nsrc - 1, b);
    const struct cg_var vars[] = {{"FROM_MIX", whole ? "1" : "0"}, {"ROWS", STRATA_STR(32)}};
    _Static_assert(GRAD_ROWS == 32, "the text's rows");
    const char *have = ir_word(g, node, AK_have, ""), *name = op_info(ir_at(g, node)->op)->name;
    struct cg_step *step =
        cg_add(a, out, "depth_grad", kernel(a, "depth_grad", s, vars, 2), label(a, g, node, name));
    uint32_t nref = 2 + 4 * s.q + 3 * s.n + 1, nnum = 3 + 2 * s.n + 2 * s.q, at;
    struct cg_ref *ref = NEW(a, struct cg_ref, nref);
    int64_t *num = NEW(a, int64_t, nnum);
    uint32_t v = grad_operands(g, node, s, ref), acc = v + s.n;
    num[0] = s.rows, num[1] = s.n, num[2] = s.q;
    for (uint32_t j = 0; j < s.n; j++) {
        bool has = have[j] == '1';
        ref[v + j] = S_(v + j);
        ref[v + s.n + j] = has ? S_(acc++) : S_(v + j); /* without one: any address, not read */
        ref[v + 2 * s.n + j] = R_(j);
        num[3 + j] = has;
        num[3 + s.n + j] = 1;
    }
    at = v + 3 * s.n;
    ref[at] = W_(0);
    cg_refs(a, step, ref, nref);
    for (uint32_t i = 0; i < 2 * s.q; i++) /* dh . h (or, whole, the mix: dense) and log-sum-exp */
        num[3 + 2 * s.n + i] = whole ? 1 : cg_src_ld(g, node, 2 + 2 * s.q + i);
    cg_nums(a, step, num, nnum);
    /* per source and query 16 lane sums and two coefficients, per source one more */
    step->scratch = ((s.n + 15u) / 16 * 16) * (block(s) * 18 + 1) * sizeof(float);
    int64_t items = (s.rows + GRAD_ROWS - 1) / GRAD_ROWS;
    cg_items(step, items, GRAD_ROWS * 4 * s.d * (int64_t)(3 * s.n + s.q));

    const struct cg_var d = {"D", str_fmt(a, "%lld", (long long)s.d)};
    step = cg_add(a, out, "depth_grad_end", cg_section(a, text, "depth_grad_end", &d, 1),
                  label(a, g, node, "depth_grad_end"));
    ref = NEW(a, struct cg_ref, 1 + s.q);
    ref[0] = W_(0);
    for (uint32_t i = 0; i < s.q; i++) ref[1 + i] = R_(s.n + i);
    cg_refs(a, step, ref, 1 + s.q);
    cg_nums(a, step, CG_NUMS(items, s.q));
    cg_items(step, s.q, 4 * s.d * items);
    out->workspace = (size_t)(items * s.q * s.d) * sizeof(float);
}

void cg_cpu_depth(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                  const struct cg_target *t, struct cg_lowering *out)
{
    (void)t;
    switch (ir_at(g, n)->op) {
    case OP_depth_mix:
    case OP_depth_inter: mix(a, g, n, b, out); break;
    case OP_depth_mix_grad:
    case OP_depth_inter_grad: grad(a, g, n, b, out); break;
    default: BUG("not a depth operation: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
