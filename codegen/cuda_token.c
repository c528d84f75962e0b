/* Token operations on a GPU: embedding, cross-entropy, counts, sums, and copies for concats and
 * reshapes that cannot be views. */
#include "codegen/cuda.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_token.c.inc"
    ;

enum { THREADS = 256 };

static int64_t blocks_of(int64_t items, int64_t each)
{
    return (items + each - 1) / each;
}

/* A kernel over rows of `name` = `cols` elements, W of which go at once; ${T} is the type of
 * operand 0, ${U} that of result 0. */
static struct cg_step *rows_step(const struct cg_emit *e, const char *kernel, const char *name,
                                 int64_t cols, int64_t width)
{
    const struct cg_var vars[] = {{"T", cg_cuda_src_type(e->g, e->n, 0)},
                                  {name, cg_number(e, cols)},
                                  {"W", cg_number(e, width)},
                                  {"U", cg_cuda_res_type(e->g, e->n, 0)}};
    return cg_add_section(e->a, e->g, e->n, e->out, text, kernel, vars, 4);
}

static void embed(const struct cg_emit *e)
{
    const uint32_t zero = 0;
    int64_t d = cg_src_cols(e->g, e->n, 0, e->b), rows = cg_src_cols(e->g, e->n, 1, e->b);
    int64_t w = cg_cuda_width(e->g, e->n, d, &zero, 1, &zero, 1);
    struct cg_step *s = rows_step(e, "embed", "D", d, w);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_src_ld(e->g, e->n, 0), rows));
    cg_launch(s, blocks_of(rows * (d / w), THREADS), THREADS, 0);
}

/* Sorts the keys of all tokens; returns where in the workspace they are. */
static int64_t sort_keys(const struct cg_emit *e, int64_t tokens)
{
    enum { RUN = 1024, WAYS = 16 };
    int64_t at = 0, other = tokens * 8;
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "embed_sort", NULL, 0);
    cg_refs(e->a, s, CG_REFS(S_(1), W_(at)));
    cg_nums(e->a, s, CG_NUMS(tokens));
    cg_launch(s, blocks_of(tokens, RUN), RUN / 2, 0);
    for (int64_t run = RUN; run < tokens; run *= WAYS) {
        s = cg_add_section(e->a, e->g, e->n, e->out, text, "embed_merge", NULL, 0);
        cg_refs(e->a, s, CG_REFS(W_(at), W_(other)));
        cg_nums(e->a, s, CG_NUMS(tokens, run));
        cg_launch(s, blocks_of(tokens, THREADS), THREADS, 0);
        at = other, other = tokens * 8 - at;
    }
    return at;
}

static void embed_grad(const struct cg_emit *e)
{
    const uint32_t zero = 0;
    int64_t d = cg_src_cols(e->g, e->n, 0, e->b), tokens = cg_src_rows(e->g, e->n, 0, e->b);
    int64_t v = dim_value(ir_rows(e->g, e->n), e->b);
    int64_t keys = sort_keys(e, tokens);
    e->out->workspace = (size_t)(2 * tokens * 8);
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "embed_zero", NULL, 0);
    cg_refs(e->a, s, CG_REFS(R_(0)));
    cg_nums(e->a, s, CG_NUMS(v * d));
    cg_launch(s, blocks_of(v * d, 4096), THREADS, 0);

    CHECK(!ir_narrow_result(e->g, e->n, 0));
    int64_t w = cg_cuda_width(e->g, e->n, d, &zero, 1, &zero, 1);
    const struct cg_var vars[] = {
        {"T", cg_cuda_src_type(e->g, e->n, 0)}, {"D", cg_number(e, d)}, {"W", cg_number(e, w)}};
    s = cg_add_section(e->a, e->g, e->n, e->out, text, "embed_grad", vars, 3);
    cg_refs(e->a, s, CG_REFS(S_(0), W_(keys), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_src_ld(e->g, e->n, 0), tokens));
    cg_launch(s, blocks_of(tokens, THREADS / 32), THREADS, 0);
    s->launch.grid[1] = (uint32_t)blocks_of(d, 32 * w);
}

static void cross_entropy(const struct cg_emit *e)
{
    const uint32_t zero = 0;
    int64_t v = cg_src_cols(e->g, e->n, 0, e->b), rows = cg_src_rows(e->g, e->n, 0, e->b);
    int64_t w = cg_cuda_width(e->g, e->n, v, &zero, 1, NULL, 0);
    int64_t threads = blocks_of(v / w, 32) * 32 < 512 ? blocks_of(v / w, 32) * 32 : 512;
    const struct cg_var vars[] = {{"T", cg_cuda_src_type(e->g, e->n, 0)},
                                  {"V", cg_number(e, v)},
                                  {"W", cg_number(e, w)},
                                  {"THREADS", cg_number(e, threads)}};
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "cross_entropy", vars, 4);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0), R_(1)));
    cg_nums(e->a, s, CG_NUMS(cg_src_ld(e->g, e->n, 0)));
    cg_launch(s, rows, threads, 0);
}

static void cross_entropy_grad(const struct cg_emit *e)
{
    const uint32_t zero = 0;
    int64_t v = cg_src_cols(e->g, e->n, 0, e->b), rows = cg_src_rows(e->g, e->n, 0, e->b);
    int64_t w = cg_cuda_width(e->g, e->n, v, &zero, 1, &zero, 1);
    cg_need_dense(e->g, e->n, 2);
    cg_need_dense(e->g, e->n, 3);
    struct cg_step *s = rows_step(e, "cross_entropy_grad", "V", v, w);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(3), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_src_ld(e->g, e->n, 0), rows));
    cg_launch(s, blocks_of(rows * (v / w), THREADS), THREADS, 0);
}

static void count_valid(const struct cg_emit *e)
{
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "count_valid", NULL, 0);
    cg_refs(e->a, s, CG_REFS(S_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_src_cols(e->g, e->n, 0, e->b)));
    cg_launch(s, 1, 1024, 0);
}

/* Passes over 256 rows each, until one row is left. */
static void colmax(const struct cg_emit *e)
{
    enum { ROWS = 256 };
    int64_t rows = cg_src_rows(e->g, e->n, 0, e->b), cols = cg_src_cols(e->g, e->n, 0, e->b);
    int64_t ld = cg_src_ld(e->g, e->n, 0), at = 0;
    struct cg_ref from = S_(0);
    for (bool first = true; first || rows > 1; first = false) {
        int64_t chunks = blocks_of(rows, ROWS);
        const struct cg_var type = {"T", first ? cg_cuda_src_type(e->g, e->n, 0) : "float"};
        struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "colmax", &type, 1);
        struct cg_ref to = chunks == 1 ? R_(0) : W_(at);
        cg_refs(e->a, s, CG_REFS(from, to));
        cg_nums(e->a, s, CG_NUMS(rows, cols, ld));
        cg_launch(s, chunks, THREADS, 0);
        s->launch.grid[1] = (uint32_t)blocks_of(cols, 32);
        if (chunks > 1) at += chunks * cols * 4;
        from = to, rows = chunks, ld = cols;
    }
    e->out->workspace = (size_t)at;
}

static void sum(const struct cg_emit *e)
{
    const uint32_t first = 0;
    struct cg_flat f = cg_flat(e->g, e->n, &first, 1, e->b);
    const struct cg_var vars[] = {{"T", cg_cuda_src_type(e->g, e->n, 0)},
                                  {"PIECE", cg_number(e, CG_PIECE)}};
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "sum", vars, 2);
    cg_refs(e->a, s, CG_REFS(S_(0), W_(0)));
    cg_nums(e->a, s, CG_NUMS(f.cols, cg_flat_ld(e->g, e->n, 0, f), f.pieces / f.rows));
    cg_launch(s, f.pieces, THREADS, 0);
    s = cg_add_section(e->a, e->g, e->n, e->out, text, "sum_end", NULL, 0);
    cg_refs(e->a, s, CG_REFS(W_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(f.pieces));
    cg_launch(s, 1, THREADS, 0);
    e->out->workspace = (size_t)f.pieces * sizeof(double);
}

/* ---- copies ---- */

/* A copy moves bits between equal types; integers move as floats. */
static const char *copied(const char *type)
{
    return strcmp(type, "int32_t") ? type : "float";
}

/* Types and width for operand i in pieces of `unit` elements; vars[3], which the kernels share. */
static int64_t copy_vars(const struct cg_emit *e, uint32_t i, int64_t unit, struct cg_var *vars)
{
    const uint32_t zero = 0;
    CHECK(dtype_size((enum ir_dtype)ir_ty(e->g, e->n)->dtype) == 4);
    int64_t w = cg_cuda_width(e->g, e->n, unit, &i, 1, &zero, 1);
    vars[0] = (struct cg_var){"T", copied(cg_cuda_src_type(e->g, e->n, i))};
    vars[1] = (struct cg_var){"U", copied(cg_cuda_res_type(e->g, e->n, 0))};
    vars[2] = (struct cg_var){"W", cg_number(e, w)};
    return w;
}

static struct cg_ref result_from(const struct cg_emit *e, int64_t element)
{
    return (struct cg_ref){CG_RES, 0, element * (int64_t)ir_result_bytes(e->g, e->n, 0)};
}

/* Operand i, without gaps, to the result from element `to` on, which `unit` divides. */
static void copy_run(const struct cg_emit *e, uint32_t i, int64_t unit, int64_t count, int64_t to)
{
    struct cg_var vars[3];
    int64_t w = copy_vars(e, i, unit, vars);
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "copy_run", vars, 3);
    cg_refs(e->a, s, CG_REFS(S_(i), result_from(e, to)));
    cg_nums(e->a, s, CG_NUMS(count));
    cg_launch(s, blocks_of(count / w, THREADS), THREADS, 0);
}

/* Rows of `cols` elements of operand i to the result from element `to` on. */
static void copy_rows(const struct cg_emit *e, uint32_t i, int64_t unit, int64_t rows, int64_t cols,
                      int64_t ld_from, int64_t ld_to, int64_t to)
{
    struct cg_var vars[4];
    int64_t w = copy_vars(e, i, unit, vars);
    vars[3] = (struct cg_var){"COLS", cg_number(e, cols)};
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "copy", vars, 4);
    cg_refs(e->a, s, CG_REFS(S_(i), result_from(e, to)));
    cg_nums(e->a, s, CG_NUMS(rows, ld_from, ld_to));
    cg_launch(s, blocks_of(rows * (cols / w), THREADS), THREADS, 0);
}

/* Elements of a value over the dims from `axis` on. */
static int64_t inner(const struct cg_emit *e, ir_id v, int64_t axis)
{
    const struct ir_type *t = ir_ty(e->g, v);
    int64_t n = 1;
    for (int64_t i = axis; i < t->rank; i++) n *= dim_value(t->dim[i], e->b);
    return n;
}

/* Piece i of a concat of rows of `all` elements, whose element `at` it is from on. What is common
 * to sizes in the text may not depend on the number of tokens: along axis 0 only rows repeat. */
static void piece(const struct cg_emit *e, uint32_t i, int64_t axis, int64_t all, int64_t at)
{
    ir_id v = ir_src(e->g, e->n, i);
    int64_t cols = ir_ty(e->g, v)->rank > 1 ? cg_src_cols(e->g, e->n, i, e->b) : 1;
    int64_t count = inner(e, v, 0), mine = inner(e, v, axis);
    int64_t ld = ir_ty(e->g, v)->rank > 1 ? cg_src_ld(e->g, e->n, i) : cols;
    if (ld != cols) /* gaps between rows: of rank 2 */
        copy_rows(e, i, axis ? cols | at | all : cols, count / cols, cols, ld, axis ? all : cols,
                  at);
    else if (axis)
        copy_rows(e, i, mine | at | all, count / mine, mine, mine, all, at);
    else
        copy_run(e, i, cols, count, at);
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
        if (cg_concat_of(e->g, from, result) != e->n) piece(e, i, axis, all, at);
        at += inner(e, v, axis);
    }
}

/* A reshape of rows with gaps: no view can express it. */
static void reshape(const struct cg_emit *e)
{
    if (ir_view(e->g, e->n).root != e->n) return;
    int64_t rows = cg_src_rows(e->g, e->n, 0, e->b), cols = cg_src_cols(e->g, e->n, 0, e->b);
    int64_t to = ir_ty(e->g, e->n)->rank > 1 ? ir_cols(e->g, e->n).add : cols;
    copy_rows(e, 0, cols | to, rows, cols, cg_src_ld(e->g, e->n, 0), cols, 0);
}

void cg_cuda_token(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
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
