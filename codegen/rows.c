#include "codegen/rows.h"
#include <math.h>
#include <stdio.h>

enum {
    MAX_LOOPS = 60,
    CHEAP = 5,        /* cost up to which a value is computed again rather than kept */
    CHEAP_RESULT = 2, /* the same where it is a result and can be read again */
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

uint32_t rows_weight(enum ir_op op)
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
        e->cost[n] = rows_weight(rows_op(e, n));
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
        if (rows_reduces(e, n)) e->reduces = true;
        uint32_t last = e->loop[n] + (e->kind[n] == FULL);
        if (e->kind[n] == COLSUM) last = e->kind[ir_src(e->r, n, 0)] == FULL ? last + 1 : 0;
        if (last > e->loops) e->loops = last;
    }
    for (size_t i = 0; i < e->r->out.n; i++)
        e->blocked = e->blocked || e->cols == 1 || e->kind[e->r->out.p[i].id] == ROW;
    if (e->loops > MAX_LOOPS) BUG("rows: %u column loops in a region", e->loops);
}

/* Decides whether FULL value n is kept; the loops that compute it. */
static uint64_t find_keep(struct rows_gen *e, ir_id n)
{
    uint64_t loops = e->need[n], own = UINT64_C(1) << e->loop[n];
    bool result = rows_result(e, n) >= 0, leaf = rows_op(e, n) == OP_arg;
    bool memory = e->rule == ROWS_MEMORY;
    bool cheap = e->cost[n] <= (result && memory ? CHEAP_RESULT : CHEAP);
    if (e->rule == ROWS_AGAIN || (leaf ? memory || !(loops & (loops - 1)) : cheap)) return loops;
    if (leaf) own = loops & -loops;
    if (!(loops & ~own)) return loops;
    e->keep[n] = result && memory ? ROWS_KEEP_OUT : (int32_t)e->kept++;
    e->again[n] = loops & ~own;
    e->need[n] |= own;
    return own;
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
            loops = find_keep(e, n);
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

int64_t rows_full(const struct rows_gen *e)
{
    int64_t n = (int64_t)e->kept;
    for (ir_id i = 0; i < e->r->node.n; i++) n += e->kind[i] == FULL && rows_op(e, i) == OP_arg;
    for (size_t i = 0; i < e->r->out.n; i++) n += e->kind[e->r->out.p[i].id] == FULL;
    return n;
}

void rows_analyse(struct rows_gen *e, struct arena *a, const struct ir_graph *region,
                  enum rows_rule rule)
{
    *e = (struct rows_gen){.a = a, .r = region, .rule = rule};
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

/* ---- memo ---- */

struct cg_memo {
    struct map at; /* key: index + 1 */
    VEC(struct rows_memo) entry;
};

struct cg_memo *cg_memo_open(struct arena *a, const struct ir_graph *g)
{
    struct cg_memo *m = NEW(a, struct cg_memo, 1);
    map_init(&m->at, a);
    map_reserve(&m->at, g->region.n);
    return m;
}

struct rows_memo *rows_memo(struct cg_memo *m, struct arena *a, struct str key)
{
    if (!m) return NEW(a, struct rows_memo, 1);
    uint32_t *at = map_str(&m->at, key);
    if (!*at) {
        vec_push(a, &m->entry, (struct rows_memo){0});
        *at = (uint32_t)m->entry.n;
    }
    return &m->entry.p[*at - 1];
}

/* ---- text ---- */

void rows_line(struct rows_gen *e, const char *fmt, ...)
{
    va_list ap;
    for (int i = 0; i < e->indent; i++) sb_str(&e->out, "    ");
    va_start(ap, fmt);
    sb_vprintf(&e->out, fmt, ap);
    va_end(ap);
    sb_char(&e->out, '\n');
}

void rows_enter(struct rows_gen *e, const char *text)
{
    rows_line(e, "%s", text);
    e->indent++;
}

void rows_leave(struct rows_gen *e)
{
    e->indent--;
    rows_line(e, "}");
}

const char *rows_literal(const struct rows_gen *e, ir_id n)
{
    float v = (float)ir_num(e->r, n, AK_value, 0);
    if (isnan(v)) return e->place ? "__int_as_float(0x7fc00000)" : "__builtin_nanf(\"\")";
    if (isinf(v)) return v > 0 ? "INFF" : "(-INFF)";
    char digits[40];
    snprintf(digits, sizeof digits, "%.9g", (double)v);
    bool point = strpbrk(digits, ".e") != NULL;
    return str_fmt(e->a, v < 0 || signbit(v) ? "(%s%sf)" : "%s%sf", digits, point ? "" : ".0");
}

static const char *shape_text(const struct rows_gen *e, ir_id n)
{
    static const char *const one[] = {[SCALAR] = "", [ROW] = "R,1"};
    enum rows_kind k = e->kind[n];
    if (k == SCALAR || k == ROW) return one[k];
    long long cols = (long long)ir_cols(e->r, n).add;
    return str_fmt(e->a, k == FULL ? "R,%lld" : "%lld", cols);
}

void rows_header(struct rows_gen *e)
{
    const struct ir_graph *r = e->r;
    rows_line(e, "/* Row region, R = %s:", e->place ? "rows" : "n[0]");
    for (ir_id n = 0; n < r->node.n; n++) {
        struct sb s = {0};
        sb_printf(&s, " *   %%%u [%s] = %s", n, shape_text(e, n), op_info(rows_op(e, n))->name);
        if (rows_op(e, n) == OP_const) sb_printf(&s, " %s", rows_literal(e, n));
        if (rows_op(e, n) == OP_arg) {
            int64_t i = ir_int(r, n, AK_index, 0);
            sb_printf(&s, e->place ? " p%lld" : " p[%lld]", (long long)i);
            if (e->place && e->place[i].narrow) sb_str(&s, " bf16");
            int64_t ld = ir_int(r, n, AK_ld, 0);
            if (ld) sb_printf(&s, " row stride %lld", (long long)ld);
        }
        for (uint32_t i = 0; i < ir_at(r, n)->nsrc; i++)
            sb_printf(&s, "%s%%%u", i ? ", " : " ", ir_src(r, n, i));
        sb_char(&s, 0);
        rows_line(e, "%s", s.p);
        sb_free(&s);
    }
    struct sb s = {0};
    for (size_t i = 0; i < r->out.n; i++) {
        sb_printf(&s, " %%%u", r->out.p[i].id);
        if (e->place && e->place[rows_args(e) + i].narrow) sb_str(&s, " bf16");
    }
    sb_char(&s, 0);
    rows_line(e, " *   results%s */", s.p);
    sb_free(&s);
}

int64_t rows_arg_ld(const struct rows_gen *e, ir_id n)
{
    return ir_int(e->r, n, AK_ld, ir_cols(e->r, n).add);
}

int64_t rows_out_ld(const struct rows_gen *e, size_t i)
{
    const struct ir_output *o = &e->r->out.p[i];
    return o->ld ? o->ld : ir_cols(e->r, o->id).add;
}
