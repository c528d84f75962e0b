/* Row regions as C with explicit 16-lane vectors. A region's values are full [R,C], a number per row
 * [R,1], a vector [C] or a scalar; C is a constant of the text, R is n[0].
 *
 * A row is computed in column loops: a value that needs a reduction of the row is in the loop after it.
 * What a later loop needs again is computed again where that is cheap, read from its own result row, or
 * kept in scratch. Numbers per row are computed for a block of up to 16 rows at once, a row to a lane, so
 * each column loop runs over the block's rows before the next one begins.
 * Sums over columns use up to four accumulators in an order that depends on C only, sums over rows are
 * formed per 32 rows and those partial sums added in order: the same in every region, so fused and
 * unfused programs give the same bits. */
#include "codegen/kernel.h"
#include <math.h>
#include <stdio.h>

enum {
    LANES = 16,
    CHUNK = 32,          /* rows of one partial column sum */
    MAX_LOOPS = 60,
    CHEAP = 5,           /* cost up to which a value is computed again rather than kept */
    CHEAP_RESULT = 2,    /* the same where it is a result and can be read again */
    BLOCK_BYTES = 49152, /* what a block of rows touches: the first-level cache */
    GRAIN_BYTES = 65536,
};
enum kind { SCALAR, VECTOR, ROW, FULL, COLSUM };

struct gen {
    struct arena *a;
    const struct ir_graph *r; /* the region */
    struct ir_dim rows;
    int64_t cols;
    uint32_t loops, kept;     /* column loops a row; rows of scratch */
    bool chunked;             /* has a sum over rows: items are chunks */
    bool blocked;             /* computes numbers per row: loops over blocks of rows */
    enum kind *kind;
    uint32_t *loop;           /* FULL: the loop it is computed in; ROW: the loop before which it is known */
    uint64_t *need;           /* loops that use a FULL or VECTOR value */
    uint32_t *cost;           /* of a FULL value in a later loop: loads and operations */
    uint64_t *again;          /* loops that read a kept value */
    bool *used;               /* a ROW value that column loops read */
    int32_t *keep;            /* scratch row, -1 none; KEEP_OUT: re-read from its result */
    struct sb out;
    int indent;
};
enum { KEEP_OUT = -2 };

static enum ir_op op_of(const struct gen *e, ir_id n)
{
    return (enum ir_op)ir_at(e->r, n)->op;
}

static bool row_reduction(enum ir_op op)
{
    return op == OP_rowsum || op == OP_rowmax;
}

/* A reduction of a value with one column is that value. */
static bool reduces(const struct gen *e, ir_id n)
{
    return row_reduction(op_of(e, n)) && e->kind[ir_src(e->r, n, 0)] == FULL;
}

/* ---- analysis ---- */

static void find_domain(struct gen *e)
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

static enum kind kind_of(const struct gen *e, ir_id n)
{
    int64_t cols = ir_cols(e->r, n).add;
    bool rows = dim_eq(ir_rows(e->r, n), e->rows);
    if (op_of(e, n) == OP_colsum) return COLSUM;
    if (cols != 1 && cols != e->cols) BUG("rows: %lld columns in a region of %lld", (long long)cols,
                                          (long long)e->cols);
    if (rows) return cols > 1 ? FULL : ROW;
    if (!dim_eq(ir_rows(e->r, n), dim_const(1))) BUG("rows: two numbers of rows in a region");
    return cols > 1 ? VECTOR : SCALAR;
}

static uint32_t weight(enum ir_op op)
{
    switch (op) {
    case OP_exp: case OP_log: case OP_tanh: case OP_sigmoid: return 10;
    case OP_sqrt: case OP_rsqrt: case OP_recip: case OP_div: return 3;
    case OP_const: return 0;
    default: return 1; /* a load, too */
    }
}

/* The number of the result that n is, -1 where it is none. */
static int result_of(const struct gen *e, ir_id n)
{
    for (size_t i = 0; i < e->r->out.n; i++)
        if (e->r->out.p[i].id == n) return (int)i;
    return -1;
}

/* In which loop each value is computed, and what it costs. */
static void find_loops(struct gen *e)
{
    for (ir_id n = 0; n < e->r->node.n; n++) {
        bool leaf = op_of(e, n) == OP_arg || op_of(e, n) == OP_const;
        e->kind[n] = kind_of(e, n);
        e->cost[n] = weight(op_of(e, n));
        e->keep[n] = -1;
        for (uint32_t i = 0; i < ir_at(e->r, n)->nsrc; i++) {
            ir_id s = ir_src(e->r, n, i);
            uint32_t l = e->loop[s] + (reduces(e, n) ? 1 : 0);
            if (l > e->loop[n]) e->loop[n] = l;
            if (e->kind[n] == FULL && e->kind[s] == VECTOR) e->cost[n]++;
            if (e->kind[n] != FULL || e->kind[s] != FULL) continue;
            e->cost[n] += result_of(e, s) >= 0 && e->cost[s] > 0 ? 1 : e->cost[s];
        }
        if (e->kind[n] == ROW && !leaf) e->blocked = true;
        if (!leaf && (e->kind[n] == SCALAR || e->kind[n] == VECTOR)) BUG("rows: %%%u has no rows", n);
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
static void find_needs(struct gen *e)
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
            bool result = result_of(e, n) >= 0, leaf = op_of(e, n) == OP_arg;
            bool cheap = e->cost[n] <= (result ? CHEAP_RESULT : CHEAP);
            if (!leaf && (loops & ~own) && !cheap) {
                e->keep[n] = result ? KEEP_OUT : (int32_t)e->kept++;
                e->again[n] = loops & ~own;
                loops = own;
                e->need[n] |= own;
            }
        } else if (reduces(e, n) || e->kind[n] == COLSUM) {
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

/* ---- text ---- */

static void line(struct gen *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void line(struct gen *e, const char *fmt, ...)
{
    va_list ap;
    for (int i = 0; i < e->indent; i++) sb_str(&e->out, "    ");
    va_start(ap, fmt);
    sb_vprintf(&e->out, fmt, ap);
    va_end(ap);
    sb_char(&e->out, '\n');
}

static const char *literal(struct gen *e, ir_id n)
{
    float v = (float)ir_num(e->r, n, AK_value, 0);
    if (isnan(v)) return "__builtin_nanf(\"\")";
    if (isinf(v)) return v > 0 ? "INFF" : "(-INFF)";
    char digits[40];
    snprintf(digits, sizeof digits, "%.9g", (double)v);
    bool point = strpbrk(digits, ".e") != NULL;
    return str_fmt(e->a, v < 0 || signbit(v) ? "(%s%sf)" : "%s%sf", digits, point ? "" : ".0");
}

/* Variables carry the number that the value has in the comment over the kernel: x full operands, t other
 * full values, w vectors, s numbers per row (vectors, a row to a lane) and scalars; in column loops, q the
 * number of the row at hand. */
static const char *var(struct gen *e, ir_id n, bool column)
{
    static const char letter[] = {[SCALAR] = 's', [VECTOR] = 'w', [ROW] = 's', [FULL] = 't'};
    if (op_of(e, n) == OP_const) return literal(e, n);
    enum kind k = e->kind[n];
    char c = k == FULL && op_of(e, n) == OP_arg ? 'x' : k == ROW && column ? 'q' : letter[k];
    return str_fmt(e->a, "%c%u", c, n);
}

static bool is_vector(const struct gen *e, ir_id n, bool column)
{
    enum kind k = e->kind[n];
    return op_of(e, n) != OP_const && (k == FULL || k == VECTOR || (k == ROW && !column));
}

static const char *as_vector(struct gen *e, ir_id n, bool column)
{
    const char *v = var(e, n, column);
    return is_vector(e, n, column) ? v : str_fmt(e->a, "splat16(%s)", v);
}

/* How an operation is called, NULL for an infix operator. */
static const char *function(enum ir_op op)
{
    switch (op) {
    case OP_exp: return "exp16";
    case OP_log: return "log16";
    case OP_tanh: return "tanh16";
    case OP_sigmoid: return "sigmoid16";
    case OP_sqrt: return "sqrt16";
    case OP_rsqrt: return "rsqrt16";
    case OP_max: return "max16";
    case OP_min: return "min16";
    default: return NULL;
    }
}

/* The C expression of an elementwise operation. */
static const char *expression(struct gen *e, ir_id n)
{
    enum ir_op op = op_of(e, n);
    uint32_t nsrc = ir_at(e->r, n)->nsrc;
    bool column = e->kind[n] == FULL;
    ir_id s0 = ir_src(e->r, n, 0), s1 = nsrc > 1 ? ir_src(e->r, n, 1) : s0;
    /* an infix operator takes a number beside a vector as it is */
    bool mixed = nsrc > 1 && !function(op) && (is_vector(e, s0, column) || is_vector(e, s1, column));
    const char *a = mixed ? var(e, s0, column) : as_vector(e, s0, column);
    const char *b = mixed ? var(e, s1, column) : as_vector(e, s1, column);
    switch (op) {
    case OP_neg: return str_fmt(e->a, "-%s", a);
    case OP_recip: return str_fmt(e->a, "1.0f / %s", a);
    case OP_add: return str_fmt(e->a, "%s + %s", a, b);
    case OP_sub: return str_fmt(e->a, "%s - %s", a, b);
    case OP_mul: return str_fmt(e->a, "%s * %s", a, b);
    case OP_div: return str_fmt(e->a, "%s / %s", a, b);
    case OP_round_bf16: return str_fmt(e->a, "bf16_to_f32(f32_to_bf16(%s))", a);
    case OP_rowsum: case OP_rowmax: return a; /* of one column */
    default:
        if (!function(op)) BUG("rows: no expression for %s", op_info(op)->name);
        if (nsrc > 1) return str_fmt(e->a, "%s(%s, %s)", function(op), a, b);
        return str_fmt(e->a, "%s(%s)", function(op), a);
    }
}

static const char *shape_text(const struct gen *e, ir_id n)
{
    static const char *const one[] = {[SCALAR] = "", [ROW] = "R,1"};
    enum kind k = e->kind[n];
    if (k == SCALAR || k == ROW) return one[k];
    long long cols = (long long)ir_cols(e->r, n).add;
    return str_fmt(e->a, k == FULL ? "R,%lld" : "%lld", cols);
}

static void header(struct gen *e)
{
    const struct ir_graph *r = e->r;
    line(e, "/* Row region, R = n[0]:");
    for (ir_id n = 0; n < r->node.n; n++) {
        struct sb s = {0};
        sb_printf(&s, " *   %%%u [%s] = %s", n, shape_text(e, n), op_info(op_of(e, n))->name);
        if (op_of(e, n) == OP_const) sb_printf(&s, " %s", literal(e, n));
        if (op_of(e, n) == OP_arg) {
            sb_printf(&s, " p[%lld]", (long long)ir_int(r, n, AK_index, 0));
            int64_t ld = ir_int(r, n, AK_ld, 0);
            if (ld) sb_printf(&s, " row stride %lld", (long long)ld);
        }
        for (uint32_t i = 0; i < ir_at(r, n)->nsrc; i++)
            sb_printf(&s, "%s%%%u", i ? ", " : " ", ir_src(r, n, i));
        sb_char(&s, 0);
        line(e, "%s", s.p);
        sb_free(&s);
    }
    struct sb s = {0};
    for (size_t i = 0; i < r->out.n; i++) sb_printf(&s, " %%%u", r->out.p[i].id);
    sb_char(&s, 0);
    line(e, " *   results%s */", s.p);
    sb_free(&s);
}

static int64_t arg_ld(const struct gen *e, ir_id n)
{
    return ir_int(e->r, n, AK_ld, ir_cols(e->r, n).add);
}

static int64_t out_ld(const struct gen *e, size_t i)
{
    const struct ir_output *o = &e->r->out.p[i];
    return o->ld ? o->ld : ir_cols(e->r, o->id).add;
}

static size_t num_args(const struct gen *e)
{
    size_t n = 0;
    for (ir_id i = 0; i < e->r->node.n; i++) n += op_of(e, i) == OP_arg;
    return n;
}

/* Pointers that hold for all rows, and scalars. */
static void prologue(struct gen *e)
{
    size_t args = num_args(e);
    for (ir_id n = 0; n < e->r->node.n; n++) {
        if (op_of(e, n) != OP_arg) continue;
        long long i = (long long)ir_int(e->r, n, AK_index, 0);
        if (e->kind[n] == SCALAR) line(e, "const float s%u = *(const float *)p[%lld];", n, i);
        else line(e, "const float *restrict p%u = p[%lld];", n, i);
    }
    for (size_t i = 0; i < e->r->out.n; i++)
        line(e, "float *restrict y%zu = p[%zu];", i, args + i);
    if (e->kept) line(e, "float *restrict keep = scratch;");
}

/* For row r: pointers and numbers that loop k reads. */
static void row_pointers(struct gen *e, uint32_t k)
{
    const struct ir_graph *r = e->r;
    if (e->blocked) line(e, "const int64_t r = r0 + q;");
    for (ir_id n = 0; n < r->node.n; n++) {
        bool arg = op_of(e, n) == OP_arg;
        long long ld = arg ? (long long)arg_ld(e, n) : 1;
        if (arg && e->kind[n] == FULL && (e->need[n] >> k & 1))
            line(e, "const float *a%u = p%u + r * %lld;", n, n, ld);
        if (e->kind[n] != ROW || !e->used[n] || !(e->need[n] >> k & 1) || op_of(e, n) == OP_const)
            continue;
        if (!arg) line(e, "const float q%u = b%u[q];", n, n);
        else if (ld == 1) line(e, "const float q%u = p%u[r];", n, n);
        else line(e, "const float q%u = p%u[r * %lld];", n, n, ld);
    }
    for (size_t i = 0; i < r->out.n; i++) {
        ir_id n = r->out.p[i].id;
        bool again = e->keep[n] == KEEP_OUT && result_of(e, n) == (int)i && (e->again[n] >> k & 1);
        if (e->kind[n] == FULL && (e->loop[n] == k || again))
            line(e, "float *o%zu = y%zu + r * %lld;", i, i, (long long)out_ld(e, i));
    }
}

static void load(struct gen *e, ir_id n, const char *base, int tail)
{
    if (tail) line(e, "const v16 %s = ld16k(%s + i, %d);", var(e, n, true), base, tail);
    else line(e, "const v16 %s = ld16(%s + i);", var(e, n, true), base);
}

static void store(struct gen *e, const char *base, const char *value, int tail)
{
    if (tail) line(e, "st16k(%s + i, %s, %d);", base, value, tail);
    else line(e, "st16(%s + i, %s);", base, value);
}

static int64_t kept_row(const struct gen *e)
{
    return (e->cols + LANES - 1) / LANES * LANES;
}

/* FULL values of a row that are in memory. */
static int64_t full_values(const struct gen *e)
{
    int64_t n = (int64_t)e->kept;
    for (ir_id i = 0; i < e->r->node.n; i++)
        n += e->kind[i] == FULL && op_of(e, i) == OP_arg;
    for (size_t i = 0; i < e->r->out.n; i++) n += e->kind[e->r->out.p[i].id] == FULL;
    return n;
}

/* Rows of a block: 16 or, so that it stays in the cache, 8, 4, 2, 1. */
static int64_t block_rows(const struct gen *e)
{
    int64_t rows = e->blocked ? LANES : 1;
    while (rows > 1 && rows * full_values(e) * e->cols * 4 > BLOCK_BYTES) rows /= 2;
    return rows;
}

static const char *kept_base(struct gen *e, ir_id n)
{
    if (e->keep[n] == KEEP_OUT) return str_fmt(e->a, "o%d", result_of(e, n));
    return str_fmt(e->a, "k%u", n);
}

/* The value of n in loop k at columns i.. . */
static void vector_value(struct gen *e, ir_id n, uint32_t k, int tail)
{
    if (op_of(e, n) == OP_const) return;
    if (op_of(e, n) == OP_arg)
        load(e, n, str_fmt(e->a, e->kind[n] == FULL ? "a%u" : "p%u", n), tail);
    else if (e->keep[n] != -1 && e->loop[n] < k)
        load(e, n, kept_base(e, n), tail);
    else
        line(e, "const v16 %s = %s;", var(e, n, true), expression(e, n));
    if (e->keep[n] >= 0 && e->loop[n] == k) store(e, kept_base(e, n), var(e, n, true), 0);
}

/* The part of row reduction n at columns i.. goes to accumulator `at`; lanes beyond the row are neutral. */
static void accumulate(struct gen *e, ir_id n, const char *at, int tail)
{
    bool max = op_of(e, n) == OP_rowmax;
    const char *v = as_vector(e, ir_src(e->r, n, 0), true);
    if (tail)
        v = str_fmt(e->a, "sel16(iota16() < %d, %s, splat16(%s))", tail, v, max ? "-INFF" : "0.0f");
    if (max) line(e, "m%u[%s] = max16(m%u[%s], %s);", n, at, n, at, v);
    else line(e, "m%u[%s] += %s;", n, at, v);
}

/* Everything loop k does at columns i..; `tail` lanes where it is not 0. */
static void loop_body(struct gen *e, uint32_t k, const char *at, int tail)
{
    const struct ir_graph *r = e->r;
    for (ir_id n = 0; n < r->node.n; n++)
        if ((e->kind[n] == FULL || e->kind[n] == VECTOR) && (e->need[n] >> k & 1))
            vector_value(e, n, k, tail);
    for (ir_id n = 0; n < r->node.n; n++)
        if (reduces(e, n) && e->loop[n] == k + 1 && at) accumulate(e, n, at, tail);
    for (size_t i = 0; i < r->out.n; i++) {
        ir_id n = r->out.p[i].id;
        if (e->kind[n] == FULL && e->loop[n] == k)
            store(e, str_fmt(e->a, "o%zu", i), as_vector(e, n, true), tail);
        if (e->kind[n] != COLSUM) continue;
        ir_id s = ir_src(r, n, 0);
        if (e->kind[s] != FULL || e->loop[s] != k) continue;
        const char *v = as_vector(e, s, true);
        if (tail) line(e, "st16k(c%zu + i, ld16k(c%zu + i, %d) + %s, %d);", i, i, tail, v, tail);
        else line(e, "st16(c%zu + i, ld16(c%zu + i) + %s);", i, i, v);
    }
}

static bool loop_reduces(const struct gen *e, uint32_t k)
{
    for (ir_id n = 0; n < e->r->node.n; n++)
        if (reduces(e, n) && e->loop[n] == k + 1) return true;
    return false;
}

static void open(struct gen *e, const char *text)
{
    line(e, "%s", text);
    e->indent++;
}

static void shut(struct gen *e)
{
    e->indent--;
    line(e, "}");
}

static int64_t accumulators(const struct gen *e)
{
    int64_t n = (e->cols + LANES - 1) / LANES;
    return n < 4 ? n : 4;
}

/* Columns i = from, from + 16 ... below `to` with accumulator u = 0, 1 ... */
static void reducing_blocks(struct gen *e, uint32_t k, int64_t from, int64_t to)
{
    line(e, "#pragma clang loop unroll(full)");
    line(e, "for (int u = 0; u < %lld; u++) {", (long long)((to - from) / LANES));
    e->indent++;
    if (from) line(e, "const int64_t i = %lld + 16 * u;", (long long)from);
    else line(e, "const int64_t i = j + 16 * u;");
    loop_body(e, k, "u", 0);
    shut(e);
}

static void reducing_loop(struct gen *e, uint32_t k)
{
    int64_t acc = accumulators(e), body = e->cols / 64 * 64, whole = e->cols / LANES * LANES;
    for (ir_id n = 0; n < e->r->node.n; n++) {
        if (!reduces(e, n) || e->loop[n] != k + 1) continue;
        const char *zero = op_of(e, n) == OP_rowmax ? "-INFF" : "0.0f";
        line(e, "v16 m%u[%lld];", n, (long long)acc);
        line(e, "for (int u = 0; u < %lld; u++) m%u[u] = splat16(%s);", (long long)acc, n, zero);
    }
    if (body) {
        line(e, "for (int64_t j = 0; j < %lld; j += 64) {", (long long)body);
        e->indent++;
        reducing_blocks(e, k, 0, 64);
        shut(e);
    }
    if (whole > body && body) reducing_blocks(e, k, body, whole);
    if (whole > body && !body) {
        open(e, "{");
        line(e, "const int64_t j = 0;");
        reducing_blocks(e, k, 0, whole);
        shut(e);
    }
    if (whole < e->cols) {
        open(e, "{");
        line(e, "const int64_t i = %lld;", (long long)whole);
        loop_body(e, k, str_fmt(e->a, "%lld", (long long)(whole - body) / LANES),
                  (int)(e->cols - whole));
        shut(e);
    }
}

static void plain_loop(struct gen *e, uint32_t k)
{
    int64_t whole = e->cols / LANES * LANES;
    if (whole) {
        line(e, "for (int64_t i = 0; i < %lld; i += 16) {", (long long)whole);
        e->indent++;
        loop_body(e, k, NULL, 0);
        shut(e);
    }
    if (whole < e->cols) {
        open(e, "{");
        line(e, "const int64_t i = %lld;", (long long)whole);
        loop_body(e, k, NULL, (int)(e->cols - whole));
        shut(e);
    }
}

/* The sums of row q that loop k formed. */
static void reduced_numbers(struct gen *e, uint32_t k)
{
    for (ir_id n = 0; n < e->r->node.n; n++) {
        if (!reduces(e, n) || e->loop[n] != k + 1) continue;
        int64_t acc = accumulators(e);
        const char *v = str_fmt(e->a, "m%u[0]", n);
        bool max = op_of(e, n) == OP_rowmax;
        const char *two = max ? "max16(%s, m%u[%d])" : "%s + m%u[%d]";
        if (acc > 1) v = str_fmt(e->a, two, v, n, 1);
        if (acc == 3) v = str_fmt(e->a, two, v, n, 2);
        if (acc == 4 && max) v = str_fmt(e->a, "max16(%s, max16(m%u[2], m%u[3]))", v, n, n);
        if (acc == 4 && !max) v = str_fmt(e->a, "(%s) + (m%u[2] + m%u[3])", v, n, n);
        line(e, "b%u[q] = %s(%s);", n, max ? "hmax16" : "hsum16", v);
    }
}

/* Is the ROW value n read a row to a lane? */
static bool read_in_lanes(const struct gen *e, ir_id n)
{
    if (result_of(e, n) >= 0) return true;
    for (ir_id m = n + 1; m < e->r->node.n; m++)
        for (uint32_t i = 0; i < ir_at(e->r, m)->nsrc && e->kind[m] == ROW; i++)
            if (ir_src(e->r, m, i) == n) return true;
    return false;
}

/* Numbers of the block's rows that are known before loop k. */
static void row_numbers(struct gen *e, uint32_t k)
{
    for (ir_id n = 0; n < e->r->node.n; n++) {
        enum ir_op op = op_of(e, n);
        if (e->kind[n] != ROW || e->loop[n] != k || op == OP_const) continue;
        bool given = op == OP_arg || reduces(e, n); /* in memory already */
        if (given && !read_in_lanes(e, n)) continue;
        long long ld = op == OP_arg ? (long long)arg_ld(e, n) : 1;
        if (op == OP_arg && ld == 1) line(e, "const v16 s%u = ld16k(p%u + r0, rows);", n, n);
        else if (op == OP_arg)
            line(e, "const v16 s%u = ldrows16(p%u + r0 * %lld, %lld, rows);", n, n, ld, ld);
        else if (reduces(e, n)) line(e, "const v16 s%u = ld16(b%u);", n, n);
        else line(e, "const v16 s%u = %s;", n, expression(e, n));
        if (given || !e->used[n]) continue;
        line(e, "float b%u[16];", n);
        line(e, "st16(b%u, s%u);", n, n);
    }
}

static void row_results(struct gen *e)
{
    for (size_t i = 0; i < e->r->out.n; i++) {
        ir_id n = e->r->out.p[i].id;
        long long ld = (long long)out_ld(e, i);
        const char *v = as_vector(e, n, false);
        if (e->kind[n] == ROW && ld == 1) line(e, "st16k(y%zu + r0, %s, rows);", i, v);
        else if (e->kind[n] == ROW)
            line(e, "strows16(y%zu + r0 * %lld, %lld, %s, rows);", i, ld, ld, v);
        if (e->kind[n] != COLSUM) continue;
        ir_id s = ir_src(e->r, n, 0);
        if (e->kind[s] != ROW) continue;
        v = op_of(e, s) == OP_const ? literal(e, s)
            : op_of(e, s) == OP_arg
                ? str_fmt(e->a, "p%u[(r0 + q) * %lld]", s, (long long)arg_ld(e, s))
                : str_fmt(e->a, "b%u[q]", s);
        line(e, "for (int64_t q = 0; q < rows; q++) c%zu[0] += %s;", i, v);
    }
}

static void kept_rows(struct gen *e, uint32_t k)
{
    for (ir_id n = 0; n < e->r->node.n; n++)
        if (e->keep[n] >= 0 && (e->loop[n] == k || (e->again[n] >> k & 1)))
            line(e, "float *k%u = keep + (q + %lld) * %lld;", n,
                 (long long)(e->keep[n] * block_rows(e)), (long long)kept_row(e));
}

static void column_loop(struct gen *e, uint32_t k)
{
    row_pointers(e, k);
    kept_rows(e, k);
    if (loop_reduces(e, k)) reducing_loop(e, k);
    else plain_loop(e, k);
    reduced_numbers(e, k);
}

/* Rows from..to-1 of the step, in blocks where there are numbers per row to compute. */
static void all_rows(struct gen *e, const char *from, const char *to)
{
    if (!e->blocked) {
        open(e, str_fmt(e->a, "for (int64_t r = %s; r < %s; r++) {", from, to));
        for (uint32_t k = 0; k < e->loops; k++) column_loop(e, k);
        shut(e);
        return;
    }
    long long block = (long long)block_rows(e);
    open(e, str_fmt(e->a, "for (int64_t r0 = %s; r0 < %s; r0 += %lld) {", from, to, block));
    line(e, "const int64_t rows = min64(%lld, %s - r0);", block, to);
    row_numbers(e, 0);
    for (uint32_t k = 0; k < e->loops; k++) {
        for (ir_id n = 0; n < e->r->node.n; n++)
            if (reduces(e, n) && e->loop[n] == k + 1) line(e, "float b%u[16] = {0};", n);
        open(e, "for (int64_t q = 0; q < rows; q++) {");
        column_loop(e, k);
        shut(e);
        row_numbers(e, k + 1);
    }
    row_results(e);
    shut(e);
}

static void chunk_sums(struct gen *e)
{
    for (size_t i = 0; i < e->r->out.n; i++) {
        ir_id n = e->r->out.p[i].id;
        if (e->kind[n] != COLSUM) continue;
        long long cols = (long long)ir_cols(e->r, n).add;
        line(e, "float *c%zu = y%zu + chunk * %lld;", i, i, cols);
        line(e, "for (int64_t i = 0; i < %lld; i++) c%zu[i] = 0.0f;", cols, i);
    }
}

static struct str kernel_text(struct gen *e)
{
    header(e);
    line(e, "void @FN@(void *const *p, %sconst int64_t *n, int64_t lo, int64_t hi, %svoid *scratch)",
         e->chunked ? "" : "UNUSED ", e->kept ? "" : "UNUSED ");
    open(e, "{");
    prologue(e);
    if (e->chunked) {
        open(e, "for (int64_t chunk = lo; chunk < hi; chunk++) {");
        chunk_sums(e);
        line(e, "const int64_t end = min64(n[0], (chunk + 1) * %d);", CHUNK);
        all_rows(e, str_fmt(e->a, "chunk * %d", CHUNK), "end");
        shut(e);
    } else {
        all_rows(e, "lo", "hi");
    }
    shut(e);
    return sb_take(&e->out, e->a);
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

static void finish_step(struct gen *e, struct cg_lowering *out, size_t result, int64_t offset,
                        int64_t chunks, const char *label)
{
    long long cols = (long long)ir_cols(e->r, e->r->out.p[result].id).add;
    struct sb s = {0};
    sb_printf(&s, finish_text, cols, cols, cols);
    struct cg_step *step = cg_add(e->a, out, "colsum_finish", sb_take(&s, e->a),
                                  str_fmt(e->a, "%s colsum", label));
    cg_refs(e->a, step, CG_REFS(W_(offset), R_(result)));
    cg_nums(e->a, step, CG_NUMS(chunks));
    step->items = (cols + LANES - 1) / LANES;
    step->grain = GRAIN_BYTES / (64 * chunks) + 1;
}

/* Rows that touch about GRAIN_BYTES; an exponential takes about as long as a load. */
static int64_t rows_of_grain(const struct gen *e)
{
    int64_t full = 1 + full_values(e);
    for (ir_id n = 0; n < e->r->node.n; n++)
        full += e->kind[n] == FULL && e->need[n] && weight(op_of(e, n)) > 3;
    int64_t rows = GRAIN_BYTES / (4 * e->cols * full), block = block_rows(e);
    return (rows + block) / block * block; /* whole blocks */
}

static void analyse(struct gen *e)
{
    size_t n = e->r->node.n;
    find_domain(e);
    e->kind = NEW(e->a, enum kind, n);
    e->loop = NEW(e->a, uint32_t, n);
    e->need = NEW(e->a, uint64_t, n);
    e->cost = NEW(e->a, uint32_t, n);
    e->keep = NEW(e->a, int32_t, n);
    e->again = NEW(e->a, uint64_t, n);
    e->used = NEW(e->a, bool, n);
    find_loops(e);
    find_needs(e);
}

void cg_cpu_rows(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                 const struct cg_target *t, struct cg_lowering *out)
{
    (void)t;
    struct gen e = {.a = a, .r = g->region.p[ir_int(g, n, AK_region, -1)]};
    analyse(&e);
    int64_t rows = dim_value(e.rows, b), chunks = (rows + CHUNK - 1) / CHUNK, offset = 0;
    if (chunks < 1) chunks = 1;
    size_t args = num_args(&e), results = e.r->out.n;
    CHECK(args == ir_at(g, n)->nsrc);
    const char *name = *ir_name(g, n) ? ir_name(g, n) : "rows";
    const char *label = str_fmt(a, "%s [%lld,%lld]", name, (long long)rows, (long long)e.cols);
    struct cg_step *s = cg_add(a, out, "rows", kernel_text(&e), label);
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
    s->grain = rows_of_grain(&e);
    if (e.chunked) s->grain = (s->grain + CHUNK - 1) / CHUNK;
    s->scratch = (size_t)(e.kept * block_rows(&e) * kept_row(&e) * 4);
    out->workspace = (size_t)offset > out->workspace ? (size_t)offset : out->workspace;
    for (size_t i = 0; i < results && chunks > 1; i++)
        if (e.kind[e.r->out.p[i].id] == COLSUM) finish_step(&e, out, i, part[i], chunks, label);
}
