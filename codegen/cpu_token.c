/* Token operations on the CPU: embedding, cross-entropy, counts, sums, and copies for concats and
 * reshapes that cannot be views. */
#include "codegen/cpu.h"
#include "panel.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/token.c.inc"
    ;

static struct cg_step *add(const struct cg_emit *e, const char *name, const char *var,
                           int64_t value)
{
    struct cg_var v = {var, cg_number(e, value)};
    return cg_add_section(e->a, e->g, e->n, e->out, text, name, &v, var != NULL);
}

/* From a table in panels. */
static void embed_kept(const struct cg_emit *e, enum ir_store store)
{
    int64_t d = cg_src_cols(e->g, e->n, 0, e->b), rows = cg_src_cols(e->g, e->n, 1, e->b);
    struct cg_step *s = add(e, str_fmt(e->a, "embed_%s", store_word(store)), "D", d);
    struct cg_ref refs[] = {S_(0), S_(1), R_(0), S_(0)};
    if (store == STORE_i8) refs[3].offset = store_scales(store_shape(e->g, ir_src(e->g, e->n, 0)));
    cg_refs(e->a, s, refs, store == STORE_i8 ? 4 : 3);
    cg_nums(e->a, s, CG_NUMS(d));
    cg_items(s, rows, 64 * d); /* a line of memory for every element or two */
}

static void embed(const struct cg_emit *e)
{
    enum ir_store store = ir_stored(e->g, ir_src(e->g, e->n, 0));
    if (store_in_panels(store)) {
        embed_kept(e, store);
        return;
    }
    int64_t d = cg_src_cols(e->g, e->n, 0, e->b), rows = cg_src_cols(e->g, e->n, 1, e->b);
    struct cg_step *s = add(e, "embed", "D", d);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_src_ld(e->g, e->n, 0), d));
    cg_items(s, rows, 8 * d);
}

static void embed_grad(const struct cg_emit *e)
{
    enum { RANGES = 64 }; /* each reads all ids: more of them would cost more than they spread */
    int64_t d = cg_src_cols(e->g, e->n, 0, e->b), tokens = cg_src_rows(e->g, e->n, 0, e->b);
    int64_t v = dim_value(ir_rows(e->g, e->n), e->b), span = (v + RANGES - 1) / RANGES;
    struct cg_step *s = add(e, "embed_grad", "D", d);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_src_ld(e->g, e->n, 0), tokens, v, span));
    cg_items(s, (v + span - 1) / span, 4 * span * d + 12 * d * (tokens / RANGES + 1));
}

static void cross_entropy(const struct cg_emit *e)
{
    int64_t v = cg_src_cols(e->g, e->n, 0, e->b), rows = cg_src_rows(e->g, e->n, 0, e->b);
    struct cg_step *s = add(e, "cross_entropy", "V", v);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0), R_(1)));
    cg_nums(e->a, s, CG_NUMS(cg_src_ld(e->g, e->n, 0)));
    cg_items(s, rows, 16 * v);
}

static void cross_entropy_grad(const struct cg_emit *e)
{
    int64_t v = cg_src_cols(e->g, e->n, 0, e->b), rows = cg_src_rows(e->g, e->n, 0, e->b);
    cg_need_dense(e->g, e->n, 2);
    cg_need_dense(e->g, e->n, 3);
    struct cg_step *s = add(e, "cross_entropy_grad", "V", v);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(3), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_src_ld(e->g, e->n, 0)));
    cg_items(s, rows, 16 * v);
}

static void count_valid(const struct cg_emit *e)
{
    struct cg_step *s = add(e, "count_valid", NULL, 0);
    cg_refs(e->a, s, CG_REFS(S_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_src_cols(e->g, e->n, 0, e->b)));
    s->items = 1;
}

static void colmax(const struct cg_emit *e)
{
    struct cg_step *s = add(e, "colmax", NULL, 0);
    int64_t rows = cg_src_rows(e->g, e->n, 0, e->b);
    cg_refs(e->a, s, CG_REFS(S_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(rows, cg_src_ld(e->g, e->n, 0)));
    cg_items(s, cg_src_cols(e->g, e->n, 0, e->b), 8 * rows);
}

static void sum(const struct cg_emit *e)
{
    const uint32_t first = 0;
    struct cg_flat f = cg_flat(e->g, e->n, &first, 1, e->b);
    struct cg_step *s = add(e, "sum", "PIECE", CG_PIECE);
    cg_refs(e->a, s, CG_REFS(S_(0), W_(0)));
    cg_nums(e->a, s, CG_NUMS(f.cols, cg_flat_ld(e->g, e->n, 0, f), f.pieces / f.rows));
    cg_items(s, f.pieces, 4 * (f.cols < CG_PIECE ? f.cols : CG_PIECE));
    s = add(e, "sum_end", NULL, 0);
    cg_refs(e->a, s, CG_REFS(W_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(f.pieces));
    s->items = 1;
    e->out->workspace = (size_t)f.pieces * sizeof(double);
}

/* Copies operand i as rows of `cols` elements with stride ld_from to the result, from element
 * `offset` on with stride ld_to. */
static void copy(const struct cg_emit *e, uint32_t i, int64_t rows, int64_t cols, int64_t ld_from,
                 int64_t ld_to, int64_t offset)
{
    CHECK(dtype_size((enum ir_dtype)ir_ty(e->g, e->n)->dtype) == 4);
    if (cols == ld_from && cols == ld_to) cols *= rows, ld_from = ld_to = cols, rows = 1;
    struct cg_step *s = add(e, "copy", "PIECE", CG_PIECE);
    int64_t pieces = (cols + CG_PIECE - 1) / CG_PIECE;
    cg_refs(e->a, s, CG_REFS(S_(i), ((struct cg_ref){CG_RES, 0, offset * 4})));
    cg_nums(e->a, s, CG_NUMS(cols, ld_from, ld_to, pieces));
    cg_items(s, rows * pieces, 8 * (cols < CG_PIECE ? cols : CG_PIECE));
}

/* Elements of a value over the dims from `axis` on. */
static int64_t inner(const struct cg_emit *e, ir_id v, int64_t axis)
{
    const struct ir_type *t = ir_ty(e->g, v);
    int64_t n = 1;
    for (int64_t i = axis; i < t->rank; i++) n *= dim_value(t->dim[i], e->b);
    return n;
}

/* The pieces that their producers have not put into place. */
static void concat(const struct cg_emit *e)
{
    int64_t axis = ir_int(e->g, e->n, AK_axis, 0), all = inner(e, e->n, axis), at = 0;
    for (uint32_t i = 0; i < ir_at(e->g, e->n)->nsrc; i++) {
        ir_id v = ir_src(e->g, e->n, i);
        bool get = ir_at(e->g, v)->op == OP_get;
        ir_id from = get ? ir_src(e->g, v, 0) : v;
        uint32_t result = get ? (uint32_t)ir_int(e->g, v, AK_index, 0) : 0;
        int64_t cols = ir_ty(e->g, v)->rank ? cg_src_cols(e->g, e->n, i, e->b) : 1;
        int64_t ld = cg_src_ld(e->g, e->n, i), mine = inner(e, v, axis);
        int64_t rows = inner(e, v, 0) / cols;
        if (cg_concat_of(e->g, from, result) != e->n) {
            if (rows == 1 || ld == cols)
                copy(e, i, inner(e, v, 0) / mine, mine, mine, all, at);
            else /* a strided piece, of rank 2 */
                copy(e, i, rows, cols, ld, axis ? all : cols, at);
        }
        at += mine;
    }
}

/* A reshape of rows with gaps: no view can express it. */
static void reshape(const struct cg_emit *e)
{
    if (ir_view(e->g, e->n).root != e->n) return;
    int64_t rows = cg_src_rows(e->g, e->n, 0, e->b), cols = cg_src_cols(e->g, e->n, 0, e->b);
    copy(e, 0, rows, cols, cg_src_ld(e->g, e->n, 0), cols, 0);
}

void cg_cpu_token(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                  const struct cg_target *t, struct cg_lowering *out)
{
    (void)t;
    const struct cg_emit e = {a, g, n, b, out};
    switch (ir_at(g, n)->op) {
    case OP_embed: embed(&e); break;
    case OP_embed_grad: embed_grad(&e); break;
    case OP_cross_entropy: cross_entropy(&e); break;
    case OP_cross_entropy_grad: cross_entropy_grad(&e); break;
    case OP_count_valid: count_valid(&e); break;
    case OP_sum: sum(&e); break;
    case OP_colmax: colmax(&e); break;
    case OP_concat: concat(&e); break;
    case OP_reshape: reshape(&e); break;
    default: BUG("not a token operation: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
