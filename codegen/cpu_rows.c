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
    MAX_LOOPS = 60,
    CHEAP = 5,           /* cost up to which a value is computed again rather than kept */
    CHEAP_RESULT = 2,    /* the same where it is a result and can be read again */
    BLOCK_BYTES = 49152, /* what a block of rows may touch */
};

static bool row_reduction(enum ir_op op)
{
    return op == OP_rowsum || op == OP_rowmax;
}

bool rows_reduces(const struct rows_gen *e, ir_id n)
{
    return row_reduction(rows_op(e, n)) && e->kind[ir_src(e->r, n, 0)] == FULL;
}

/* ---- analysis ---- */

static void find_domain(struct rows_gen *e)
{
    const struct ir_graph *r = e->r;
    e->rows = dim_const(1);
    for (ir_id n = 0; n < r->node.n; n++)
        if (ir_ty(r, n)->rank >= 2 && !dim_eq(ir_rows(r, n), dim_const(1))) e->rows = ir_rows(r, n);
    for (ir_id n = 0; n < r->node.n; n++) {
        struct ir_dim c = ir_cols(r, n);
        CHECK(dim_is_const(c));
        if (dim_eq(ir_rows(r, n), e->rows) && c.add > e->cols) e->cols = c.add;
    }
}

static enum rows_kind kind_of(const struct rows_gen *e, ir_id n)
{
    int64_t cols = ir_cols(e->r, n).add;
    bool rows = dim_eq(ir_rows(e->r, n), e->rows);
    if (ir_ty(e->r, n)->dtype != IR_f32) BUG("rows: %%%u is not float32", n);
    if (rows_op(e, n) == OP_colsum) return COLSUM;
    if (cols != 1 && cols != e->cols)
        BUG("rows: %lld columns in a region of %lld", (long long)cols, (long long)e->cols);
    if (rows) return cols > 1 ? FULL : ROW;
    if (!dim_eq(ir_rows(e->r, n), dim_const(1))) BUG("rows: two numbers of rows in a region");
    return cols > 1 ? VECTOR : SCALAR;
}

static uint32_t weight(enum ir_op op)
{
    switch (op) {
    case OP_exp:
    case OP_log:
    case OP_tanh:
    case OP_sigmoid: return 10;
    case OP_sqrt:
    case OP_rsqrt:
    case OP_recip:
    case OP_div: return 3;
    case OP_const: return 0;
    default: return 1; /* a load, too */
    }
}

int rows_result(const struct rows_gen *e, ir_id n)
{
    for (size_t i = 0; i < e->r->out.n; i++)
        if (e->r->out.p[i].id == n) return (int)i;
    return -1;
}

/* In which loop each value is computed, and what it costs. */
static void find_loops(struct rows_gen *e)
{
    for (ir_id n = 0; n < e->r->node.n; n++) {
        bool leaf = rows_op(e, n) == OP_arg || rows_op(e, n) == OP_const;
        e->kind[n] = kind_of(e, n);
        e->cost[n] = weight(rows_op(e, n));
        e->keep[n] = -1;
        for (uint32_t i = 0; i < ir_at(e->r, n)->nsrc; i++) {
            ir_id s = ir_src(e->r, n, i);
            uint32_t l = e->loop[s] + (rows_reduces(e, n) ? 1 : 0);
            if (l > e->loop[n]) e->loop[n] = l;
            if (e->kind[n] == FULL && e->kind[s] == VECTOR) e->cost[n]++;
            if (e->kind[n] != FULL || e->kind[s] != FULL) continue;
            e->cost[n] += rows_result(e, s) >= 0 && e->cost[s] > 0 ? 1 : e->cost[s];
        }
        if (e->kind[n] == ROW && !leaf) e->blocked = true;
        if (!leaf && (e->kind[n] == SCALAR || e->kind[n] == VECTOR))
            BUG("rows: %%%u has no rows", n);
        if (e->kind[n] == COLSUM) e->chunked = true;
        uint32_t last = e->loop[n] + (e->kind[n] == FULL);
        if (e->kind[n] == COLSUM) last = e->kind[ir_src(e->r, n, 0)] == FULL ? last + 1 : 0;
        if (last > e->loops) e->loops = last;
    }
    for (size_t i = 0; i < e->r->out.n; i++)
        e->blocked = e->blocked || e->cols == 1 || e->kind[e->r->out.p[i].id] == ROW;
    if (e->loops > MAX_LOOPS) BUG("rows: %u column loops in a region", e->loops);
}

/* From users to operands: the loops that need a value, and how later loops get it. */
static void find_needs(struct rows_gen *e)
{
    const struct ir_graph *r = e->r;
    for (size_t i = 0; i < r->out.n; i++) {
        ir_id n = r->out.p[i].id;
        if (e->kind[n] == FULL) e->need[n] |= UINT64_C(1) << e->loop[n];
        if (e->kind[n] == SCALAR || e->kind[n] == VECTOR) BUG("rows: a result without rows");
    }
    for (ir_id n = (ir_id)r->node.n; n-- > 0;) {
        uint64_t loops = e->need[n];
        if (e->kind[n] == FULL && loops) {
            uint64_t own = UINT64_C(1) << e->loop[n];
            bool result = rows_result(e, n) >= 0, leaf = rows_op(e, n) == OP_arg;
            bool cheap = e->cost[n] <= (result ? CHEAP_RESULT : CHEAP);
            if (!leaf && (loops & ~own) && !cheap) {
                e->keep[n] = result ? ROWS_KEEP_OUT : (int32_t)e->kept++;
                e->again[n] = loops & ~own;
                loops = own;
                e->need[n] |= own;
            }
        } else if (rows_reduces(e, n) || e->kind[n] == COLSUM) {
            ir_id s = ir_src(r, n, 0);
            loops = e->kind[s] == FULL ? UINT64_C(1) << e->loop[s] : 0;
        } else {
            continue;
        }
        for (uint32_t i = 0; i < ir_at(r, n)->nsrc; i++) {
            e->need[ir_src(r, n, i)] |= loops;
            if (e->kind[n] == FULL || e->kind[n] == COLSUM) e->used[ir_src(r, n, i)] = true;
        }
    }
}

size_t rows_args(const struct rows_gen *e)
{
    size_t n = 0;
    for (ir_id i = 0; i < e->r->node.n; i++) n += rows_op(e, i) == OP_arg;
    return n;
}

int64_t rows_kept(const struct rows_gen *e)
{
    return (e->cols + ROWS_LANES - 1) / ROWS_LANES * ROWS_LANES;
}

int64_t rows_full(const struct rows_gen *e)
{
    int64_t n = (int64_t)e->kept;
    for (ir_id i = 0; i < e->r->node.n; i++) n += e->kind[i] == FULL && rows_op(e, i) == OP_arg;
    for (size_t i = 0; i < e->r->out.n; i++) n += e->kind[e->r->out.p[i].id] == FULL;
    return n;
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
        full += e->kind[n] == FULL && e->need[n] && weight(rows_op(e, n)) > 3;
    return 4 * e->cols * full;
}

static void analyse(struct rows_gen *e)
{
    size_t n = e->r->node.n;
    find_domain(e);
    e->kind = NEW(e->a, enum rows_kind, n);
    e->loop = NEW(e->a, uint32_t, n);
    e->need = NEW(e->a, uint64_t, n);
    e->cost = NEW(e->a, uint32_t, n);
    e->keep = NEW(e->a, int32_t, n);
    e->again = NEW(e->a, uint64_t, n);
    e->used = NEW(e->a, bool, n);
    find_loops(e);
    find_needs(e);
}

struct cg_memo {
    struct rows_gen *gen; /* by region; r is NULL where it was not met yet */
    struct cg_step *kernel;
};

struct cg_memo *cg_memo_open(struct arena *a, const struct ir_graph *g)
{
    struct cg_memo *m = NEW(a, struct cg_memo, 1);
    m->gen = NEW(a, struct rows_gen, g->region.n);
    m->kernel = NEW(a, struct cg_step, g->region.n);
    return m;
}

/* What the region is, and a step for its kernel. */
static struct cg_step *region_step(struct arena *a, const struct ir_graph *g, int64_t region,
                                   struct cg_lowering *out, struct rows_gen *e)
{
    struct cg_memo *m = out->memo;
    if (m && m->gen[region].r) {
        *e = m->gen[region];
        vec_push(a, &out->step, m->kernel[region]);
        return &vec_last(&out->step);
    }
    *e = (struct rows_gen){.a = a, .r = g->region.p[region]};
    analyse(e);
    struct cg_step *s = cg_add(a, out, "rows", rows_text(e), "");
    if (m) m->gen[region] = *e, m->kernel[region] = *s;
    return s;
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
