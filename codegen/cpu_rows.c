/* Row regions on the CPU: what is computed when, and the steps. C is a constant of the text, R
 * is n[0].
 *
 * A row is computed in column loops: a value that needs a reduction of the row is in the loop
 * after it. What a later loop needs again is computed again where that is cheap, read from its
 * own result row, or kept in scratch. Numbers per row are computed for a block of up to 16 rows
 * at once, a row to a lane, so each column loop runs over the block's rows before the next one
 * begins. Sums over columns use up to four accumulators in an order that depends on C only,
 * sums over rows are formed per 32 rows and those partial sums added in order: the same in
 * every region, so fused and unfused programs give the same bits. */
#include "codegen/cpu_rows.h"

enum {
    BLOCK_BYTES = 49152, /* what a block of rows may touch */
};

int64_t rows_kept(const struct rows_gen *e)
{
    return (e->cols + ROWS_LANES - 1) / ROWS_LANES * ROWS_LANES;
}

int64_t rows_block(const struct rows_gen *e)
{
    int64_t rows = e->blocked ? ROWS_LANES : 1;
    while (rows > 1 && rows * rows_full(e) * e->cols * 4 > BLOCK_BYTES) rows /= 2;
    return rows;
}

/* ---- steps ---- */

static const char finish_text[] =
    "/* Column sums: the partial sums of %lld columns, added in order; n[0] of them. */\n"
    "void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, UNUSED void *scratch)\n"
    "{\n"
    "    const float *part = p[0];\n"
    "    float *y = p[1];\n"
    "    for (int64_t g = lo; g < hi; g++) {\n"
    "        const int64_t i = g * 16, k = min64(16, %lld - i);\n"
    "        v16 sum = ld16k(part + i, k);\n"
    "        for (int64_t c = 1; c < n[0]; c++) sum += ld16k(part + c * %lld + i, k);\n"
    "        st16k(y + i, sum, k);\n"
    "    }\n"
    "}\n";

static void finish_step(struct rows_gen *e, struct cg_lowering *out, size_t result, int64_t offset,
                        int64_t chunks, const char *label)
{
    long long cols = (long long)ir_cols(e->r, e->r->out.p[result].id).add;
    struct sb s = {0};
    sb_printf(&s, finish_text, cols, cols, cols);
    struct cg_step *step =
        cg_add(e->a, out, "colsum_finish", sb_take(&s, e->a), str_fmt(e->a, "%s colsum", label));
    cg_refs(e->a, step, CG_REFS(W_(offset), R_(result)));
    cg_nums(e->a, step, CG_NUMS(chunks));
    step->items = (cols + ROWS_LANES - 1) / ROWS_LANES;
    step->grain = cg_grain(64 * chunks);
}

/* Bytes a row touches; an exponential takes about as long as a load. */
static int64_t row_bytes(const struct rows_gen *e)
{
    int64_t full = 1 + rows_full(e);
    for (ir_id n = 0; n < e->r->node.n; n++)
        full += e->kind[n] == FULL && e->need[n] && rows_weight(rows_op(e, n)) > 3;
    return 4 * e->cols * full;
}

/* What the region is, and a step for its kernel. */
static struct cg_step *region_step(struct arena *a, const struct ir_graph *g, int64_t region,
                                   struct cg_lowering *out, struct rows_gen *e)
{
    struct rows_memo *m = rows_memo(out->memo, a, (struct str){(char *)&region, sizeof region});
    if (!m->gen.r) {
        rows_analyse(e, a, g->region.p[region], ROWS_MEMORY);
        m->kernel = *cg_add(a, out, "rows", rows_text(e), "");
        m->gen = *e;
        return &vec_last(&out->step);
    }
    *e = m->gen;
    vec_push(a, &out->step, m->kernel);
    return &vec_last(&out->step);
}

void cg_cpu_rows(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                 const struct cg_target *t, struct cg_lowering *out)
{
    (void)t;
    struct rows_gen e;
    struct cg_step *s = region_step(a, g, ir_int(g, n, AK_region, -1), out, &e);
    int64_t rows = dim_value(e.rows, b), chunks = (rows + ROWS_CHUNK - 1) / ROWS_CHUNK, offset = 0;
    if (chunks < 1) chunks = 1;
    size_t args = rows_args(&e), results = e.r->out.n;
    CHECK(args == ir_at(g, n)->nsrc);
    const char *name = *ir_name(g, n) ? ir_name(g, n) : "rows";
    const char *label = str_fmt(a, "%s [%lld,%lld]", name, (long long)rows, (long long)e.cols);
    s->label = label;
    struct cg_ref *ref = NEW(a, struct cg_ref, args + results);
    for (size_t i = 0; i < args; i++) ref[i] = S_(i);
    int64_t *part = NEW(a, int64_t, results);
    for (size_t i = 0; i < results; i++) {
        ir_id o = e.r->out.p[i].id;
        ref[args + i] = R_(i);
        if (e.kind[o] != COLSUM || chunks == 1) continue;
        part[i] = offset;
        ref[args + i] = W_(offset);
        offset += (chunks * ir_cols(e.r, o).add * 4 + 63) / 64 * 64;
    }
    cg_refs(a, s, ref, args + results);
    cg_nums(a, s, CG_NUMS(rows));
    s->items = e.chunked ? chunks : rows;
    s->grain = cg_grain(row_bytes(&e) * (e.chunked ? ROWS_CHUNK : 1));
    if (!e.chunked) /* whole blocks */
        s->grain = (s->grain + ROWS_LANES - 1) / ROWS_LANES * ROWS_LANES;
    s->scratch = (size_t)(e.kept * rows_block(&e) * rows_kept(&e) * 4);
    out->workspace = (size_t)offset > out->workspace ? (size_t)offset : out->workspace;
    for (size_t i = 0; i < results && chunks > 1; i++)
        if (e.kind[e.r->out.p[i].id] == COLSUM) finish_step(&e, out, i, part[i], chunks, label);
}
