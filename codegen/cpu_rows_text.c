/* Row regions as C with explicit 16-lane vectors: see cpu_rows.c for what is computed when. */
#include "codegen/cpu_rows.h"

/* Variables carry the number that the value has in the comment over the kernel: x full
 * operands, t other full values, w vectors, s numbers per row (vectors, a row to a lane) and
 * scalars; in column loops, q the number of the row at hand. */
static const char *var(struct rows_gen *e, ir_id n, bool column)
{
    static const char letter[] = {[SCALAR] = 's', [VECTOR] = 'w', [ROW] = 's', [FULL] = 't'};
    if (rows_op(e, n) == OP_const) return rows_literal(e, n);
    enum rows_kind k = e->kind[n];
    char c = k == FULL && rows_op(e, n) == OP_arg ? 'x' : k == ROW && column ? 'q' : letter[k];
    return str_fmt(e->a, "%c%u", c, n);
}

static bool is_vector(const struct rows_gen *e, ir_id n, bool column)
{
    enum rows_kind k = e->kind[n];
    return rows_op(e, n) != OP_const && (k == FULL || k == VECTOR || (k == ROW && !column));
}

static const char *as_vector(struct rows_gen *e, ir_id n, bool column)
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
    case OP_softplus: return "softplus16";
    case OP_round: return "round16";
    case OP_sqrt: return "sqrt16";
    case OP_rsqrt: return "rsqrt16";
    case OP_max: return "max16";
    case OP_min: return "min16";
    default: return NULL;
    }
}

/* The C expression of an elementwise operation. */
static const char *expression(struct rows_gen *e, ir_id n)
{
    enum ir_op op = rows_op(e, n);
    uint32_t nsrc = ir_at(e->r, n)->nsrc;
    bool column = e->kind[n] == FULL;
    ir_id s0 = ir_src(e->r, n, 0), s1 = nsrc > 1 ? ir_src(e->r, n, 1) : s0;
    /* an infix operator takes a number beside a vector as it is */
    bool mixed =
        nsrc > 1 && !function(op) && (is_vector(e, s0, column) || is_vector(e, s1, column));
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
    case OP_rowsum:
    case OP_rowmax: return a; /* of one column */
    default:
        if (!function(op)) BUG("rows: no expression for %s", op_info(op)->name);
        if (nsrc > 1) return str_fmt(e->a, "%s(%s, %s)", function(op), a, b);
        return str_fmt(e->a, "%s(%s)", function(op), a);
    }
}

/* Pointers that hold for all rows, and scalars. */
static void prologue(struct rows_gen *e)
{
    size_t args = rows_args(e);
    for (ir_id n = 0; n < e->r->node.n; n++) {
        if (rows_op(e, n) != OP_arg) continue;
        long long i = (long long)ir_int(e->r, n, AK_index, 0);
        if (e->kind[n] == SCALAR)
            rows_line(e, "const float s%u = *(const float *)p[%lld];", n, i);
        else
            rows_line(e, "const float *restrict p%u = p[%lld];", n, i);
    }
    for (size_t i = 0; i < e->r->out.n; i++)
        rows_line(e, "float *restrict y%zu = p[%zu];", i, args + i);
    if (e->kept) rows_line(e, "float *restrict keep = scratch;");
}

/* For row r: pointers and numbers that loop k reads. */
static void row_pointers(struct rows_gen *e, uint32_t k)
{
    const struct ir_graph *r = e->r;
    if (e->blocked) rows_line(e, "const int64_t r = r0 + q;");
    for (ir_id n = 0; n < r->node.n; n++) {
        bool arg = rows_op(e, n) == OP_arg;
        long long ld = arg ? (long long)rows_arg_ld(e, n) : 1;
        if (arg && e->kind[n] == FULL && (e->need[n] >> k & 1))
            rows_line(e, "const float *a%u = p%u + r * %lld;", n, n, ld);
        if (e->kind[n] != ROW || !e->used[n] || !(e->need[n] >> k & 1) || rows_op(e, n) == OP_const)
            continue;
        if (!arg)
            rows_line(e, "const float q%u = b%u[q];", n, n);
        else if (ld == 1)
            rows_line(e, "const float q%u = p%u[r];", n, n);
        else
            rows_line(e, "const float q%u = p%u[r * %lld];", n, n, ld);
    }
    for (size_t i = 0; i < r->out.n; i++) {
        ir_id n = r->out.p[i].id;
        bool again =
            e->keep[n] == ROWS_KEEP_OUT && rows_result(e, n) == (int)i && (e->again[n] >> k & 1);
        if (e->kind[n] == FULL && (e->loop[n] == k || again))
            rows_line(e, "float *o%zu = y%zu + r * %lld;", i, i, (long long)rows_out_ld(e, i));
    }
}

static void load(struct rows_gen *e, ir_id n, const char *base, int tail)
{
    if (tail)
        rows_line(e, "const v16 %s = ld16k(%s + i, %d);", var(e, n, true), base, tail);
    else
        rows_line(e, "const v16 %s = ld16(%s + i);", var(e, n, true), base);
}

static void store(struct rows_gen *e, const char *base, const char *value, int tail)
{
    if (tail)
        rows_line(e, "st16k(%s + i, %s, %d);", base, value, tail);
    else
        rows_line(e, "st16(%s + i, %s);", base, value);
}

static const char *kept_base(struct rows_gen *e, ir_id n)
{
    if (e->keep[n] == ROWS_KEEP_OUT) return str_fmt(e->a, "o%d", rows_result(e, n));
    return str_fmt(e->a, "k%u", n);
}

/* The value of n in loop k at columns i.. . */
static void vector_value(struct rows_gen *e, ir_id n, uint32_t k, int tail)
{
    if (rows_op(e, n) == OP_const) return;
    if (rows_op(e, n) == OP_arg)
        load(e, n, str_fmt(e->a, e->kind[n] == FULL ? "a%u" : "p%u", n), tail);
    else if (e->keep[n] != -1 && e->loop[n] < k)
        load(e, n, kept_base(e, n), tail);
    else
        rows_line(e, "const v16 %s = %s;", var(e, n, true), expression(e, n));
    if (e->keep[n] >= 0 && e->loop[n] == k) store(e, kept_base(e, n), var(e, n, true), 0);
}

/* The part of row reduction n at columns i.. goes to accumulator `at`; lanes beyond the row are
 * neutral. */
static void accumulate(struct rows_gen *e, ir_id n, const char *at, int tail)
{
    bool max = rows_op(e, n) == OP_rowmax;
    const char *v = as_vector(e, ir_src(e->r, n, 0), true);
    if (tail)
        v = str_fmt(e->a, "sel16(iota16() < %d, %s, splat16(%s))", tail, v, max ? "-INFF" : "0.0f");
    if (max)
        rows_line(e, "m%u[%s] = max16(m%u[%s], %s);", n, at, n, at, v);
    else
        rows_line(e, "m%u[%s] += %s;", n, at, v);
}

/* Everything loop k does at columns i..; `tail` lanes where it is not 0. */
static void loop_body(struct rows_gen *e, uint32_t k, const char *at, int tail)
{
    const struct ir_graph *r = e->r;
    for (ir_id n = 0; n < r->node.n; n++)
        if ((e->kind[n] == FULL || e->kind[n] == VECTOR) && (e->need[n] >> k & 1))
            vector_value(e, n, k, tail);
    for (ir_id n = 0; n < r->node.n; n++)
        if (rows_reduces(e, n) && e->loop[n] == k + 1 && at) accumulate(e, n, at, tail);
    for (size_t i = 0; i < r->out.n; i++) {
        ir_id n = r->out.p[i].id;
        if (e->kind[n] == FULL && e->loop[n] == k)
            store(e, str_fmt(e->a, "o%zu", i), as_vector(e, n, true), tail);
        if (e->kind[n] != COLSUM) continue;
        ir_id s = ir_src(r, n, 0);
        if (e->kind[s] != FULL || e->loop[s] != k) continue;
        const char *v = as_vector(e, s, true);
        if (tail)
            rows_line(e, "st16k(c%zu + i, ld16k(c%zu + i, %d) + %s, %d);", i, i, tail, v, tail);
        else
            rows_line(e, "st16(c%zu + i, ld16(c%zu + i) + %s);", i, i, v);
    }
}

static bool loop_reduces(const struct rows_gen *e, uint32_t k)
{
    for (ir_id n = 0; n < e->r->node.n; n++)
        if (rows_reduces(e, n) && e->loop[n] == k + 1) return true;
    return false;
}

static int64_t accumulators(const struct rows_gen *e)
{
    int64_t n = (e->cols + ROWS_LANES - 1) / ROWS_LANES;
    return n < 4 ? n : 4;
}

/* Columns i = from, from + 16 ... below `to` with accumulator u = 0, 1 ... */
static void reducing_blocks(struct rows_gen *e, uint32_t k, int64_t from, int64_t to)
{
    rows_line(e, "#pragma clang loop unroll(full)");
    rows_line(e, "for (int u = 0; u < %lld; u++) {", (long long)((to - from) / ROWS_LANES));
    e->indent++;
    if (from)
        rows_line(e, "const int64_t i = %lld + 16 * u;", (long long)from);
    else
        rows_line(e, "const int64_t i = j + 16 * u;");
    loop_body(e, k, "u", 0);
    rows_leave(e);
}

static void reducing_loop(struct rows_gen *e, uint32_t k)
{
    int64_t acc = accumulators(e), body = e->cols / (4 * ROWS_LANES) * (4 * ROWS_LANES);
    int64_t whole = e->cols / ROWS_LANES * ROWS_LANES;
    for (ir_id n = 0; n < e->r->node.n; n++) {
        if (!rows_reduces(e, n) || e->loop[n] != k + 1) continue;
        const char *zero = rows_op(e, n) == OP_rowmax ? "-INFF" : "0.0f";
        rows_line(e, "v16 m%u[%lld];", n, (long long)acc);
        rows_line(e, "for (int u = 0; u < %lld; u++) m%u[u] = splat16(%s);", (long long)acc, n,
                  zero);
    }
    if (body) {
        rows_line(e, "for (int64_t j = 0; j < %lld; j += 64) {", (long long)body);
        e->indent++;
        reducing_blocks(e, k, 0, 64);
        rows_leave(e);
    }
    if (whole > body && body) reducing_blocks(e, k, body, whole);
    if (whole > body && !body) {
        rows_enter(e, "{");
        rows_line(e, "const int64_t j = 0;");
        reducing_blocks(e, k, 0, whole);
        rows_leave(e);
    }
    if (whole < e->cols) {
        rows_enter(e, "{");
        rows_line(e, "const int64_t i = %lld;", (long long)whole);
        loop_body(e, k, str_fmt(e->a, "%lld", (long long)(whole - body) / ROWS_LANES),
                  (int)(e->cols - whole));
        rows_leave(e);
    }
}

static void plain_loop(struct rows_gen *e, uint32_t k)
{
    int64_t whole = e->cols / ROWS_LANES * ROWS_LANES;
    if (whole) {
        rows_line(e, "for (int64_t i = 0; i < %lld; i += 16) {", (long long)whole);
        e->indent++;
        loop_body(e, k, NULL, 0);
        rows_leave(e);
    }
    if (whole < e->cols) {
        rows_enter(e, "{");
        rows_line(e, "const int64_t i = %lld;", (long long)whole);
        loop_body(e, k, NULL, (int)(e->cols - whole));
        rows_leave(e);
    }
}

/* The sums of row q that loop k formed. */
static void reduced_numbers(struct rows_gen *e, uint32_t k)
{
    for (ir_id n = 0; n < e->r->node.n; n++) {
        if (!rows_reduces(e, n) || e->loop[n] != k + 1) continue;
        int64_t acc = accumulators(e);
        const char *v = str_fmt(e->a, "m%u[0]", n);
        bool max = rows_op(e, n) == OP_rowmax;
        const char *two = max ? "max16(%s, m%u[%d])" : "%s + m%u[%d]";
        if (acc > 1) v = str_fmt(e->a, two, v, n, 1);
        if (acc == 3) v = str_fmt(e->a, two, v, n, 2);
        if (acc == 4 && max) v = str_fmt(e->a, "max16(%s, max16(m%u[2], m%u[3]))", v, n, n);
        if (acc == 4 && !max) v = str_fmt(e->a, "(%s) + (m%u[2] + m%u[3])", v, n, n);
        rows_line(e, "b%u[q] = %s(%s);", n, max ? "hmax16" : "hsum16", v);
    }
}

/* Is the ROW value n read a row to a lane? */
static bool read_in_lanes(const struct rows_gen *e, ir_id n)
{
    if (rows_result(e, n) >= 0) return true;
    for (ir_id m = n + 1; m < e->r->node.n; m++)
        for (uint32_t i = 0; i < ir_at(e->r, m)->nsrc && e->kind[m] == ROW; i++)
            if (ir_src(e->r, m, i) == n) return true;
    return false;
}

/* Numbers of the block's rows that are known before loop k. */
static void row_numbers(struct rows_gen *e, uint32_t k)
{
    for (ir_id n = 0; n < e->r->node.n; n++) {
        enum ir_op op = rows_op(e, n);
        if (e->kind[n] != ROW || e->loop[n] != k || op == OP_const) continue;
        bool given = op == OP_arg || rows_reduces(e, n); /* in memory already */
        if (given && !read_in_lanes(e, n)) continue;
        long long ld = op == OP_arg ? (long long)rows_arg_ld(e, n) : 1;
        if (op == OP_arg && ld == 1)
            rows_line(e, "const v16 s%u = ld16k(p%u + r0, rows);", n, n);
        else if (op == OP_arg)
            rows_line(e, "const v16 s%u = ldrows16(p%u + r0 * %lld, %lld, rows);", n, n, ld, ld);
        else if (rows_reduces(e, n))
            rows_line(e, "const v16 s%u = ld16(b%u);", n, n);
        else
            rows_line(e, "const v16 s%u = %s;", n, expression(e, n));
        if (given || !e->used[n]) continue;
        rows_line(e, "float b%u[16];", n);
        rows_line(e, "st16(b%u, s%u);", n, n);
    }
}

static void row_results(struct rows_gen *e)
{
    for (size_t i = 0; i < e->r->out.n; i++) {
        ir_id n = e->r->out.p[i].id;
        long long ld = (long long)rows_out_ld(e, i);
        const char *v = e->kind[n] == ROW ? as_vector(e, n, false) : NULL;
        if (e->kind[n] == ROW && ld == 1)
            rows_line(e, "st16k(y%zu + r0, %s, rows);", i, v);
        else if (e->kind[n] == ROW)
            rows_line(e, "strows16(y%zu + r0 * %lld, %lld, %s, rows);", i, ld, ld, v);
        if (e->kind[n] != COLSUM) continue;
        ir_id s = ir_src(e->r, n, 0);
        if (e->kind[s] != ROW) continue;
        v = rows_op(e, s) == OP_const ? rows_literal(e, s)
            : rows_op(e, s) == OP_arg
                ? str_fmt(e->a, "p%u[(r0 + q) * %lld]", s, (long long)rows_arg_ld(e, s))
                : str_fmt(e->a, "b%u[q]", s);
        rows_line(e, "for (int64_t q = 0; q < rows; q++) c%zu[0] += %s;", i, v);
    }
}

static void kept_rows(struct rows_gen *e, uint32_t k)
{
    for (ir_id n = 0; n < e->r->node.n; n++)
        if (e->keep[n] >= 0 && (e->loop[n] == k || (e->again[n] >> k & 1)))
            rows_line(e, "float *k%u = keep + (q + %lld) * %lld;", n,
                      (long long)(e->keep[n] * rows_block(e)), (long long)rows_kept(e));
}

static void column_loop(struct rows_gen *e, uint32_t k)
{
    row_pointers(e, k);
    kept_rows(e, k);
    if (loop_reduces(e, k))
        reducing_loop(e, k);
    else
        plain_loop(e, k);
    reduced_numbers(e, k);
}

/* Rows from..to-1 of the step, in blocks where there are numbers per row to compute. */
static void all_rows(struct rows_gen *e, const char *from, const char *to)
{
    if (!e->blocked) {
        rows_enter(e, str_fmt(e->a, "for (int64_t r = %s; r < %s; r++) {", from, to));
        for (uint32_t k = 0; k < e->loops; k++) column_loop(e, k);
        rows_leave(e);
        return;
    }
    long long block = (long long)rows_block(e);
    rows_enter(e, str_fmt(e->a, "for (int64_t r0 = %s; r0 < %s; r0 += %lld) {", from, to, block));
    rows_line(e, "const int64_t rows = min64(%lld, %s - r0);", block, to);
    row_numbers(e, 0);
    for (uint32_t k = 0; k < e->loops; k++) {
        for (ir_id n = 0; n < e->r->node.n; n++)
            if (rows_reduces(e, n) && e->loop[n] == k + 1) rows_line(e, "float b%u[16] = {0};", n);
        rows_enter(e, "for (int64_t q = 0; q < rows; q++) {");
        column_loop(e, k);
        rows_leave(e);
        row_numbers(e, k + 1);
    }
    row_results(e);
    rows_leave(e);
}

static void chunk_sums(struct rows_gen *e)
{
    for (size_t i = 0; i < e->r->out.n; i++) {
        ir_id n = e->r->out.p[i].id;
        if (e->kind[n] != COLSUM) continue;
        long long cols = (long long)ir_cols(e->r, n).add;
        rows_line(e, "float *c%zu = y%zu + chunk * %lld;", i, i, cols);
        rows_line(e, "for (int64_t i = 0; i < %lld; i++) c%zu[i] = 0.0f;", cols, i);
    }
}

struct str rows_text(struct rows_gen *e)
{
    rows_header(e);
    rows_line(e,
              "void @FN@(void *const *p, %sconst int64_t *n, int64_t lo, int64_t hi, "
              "%svoid *scratch)",
              e->chunked ? "" : "UNUSED ", e->kept ? "" : "UNUSED ");
    rows_enter(e, "{");
    prologue(e);
    if (e->chunked) {
        rows_enter(e, "for (int64_t chunk = lo; chunk < hi; chunk++) {");
        chunk_sums(e);
        rows_line(e, "const int64_t end = min64(n[0], (chunk + 1) * %d);", ROWS_CHUNK);
        all_rows(e, str_fmt(e->a, "chunk * %d", ROWS_CHUNK), "end");
        rows_leave(e);
    } else {
        all_rows(e, "lo", "hi");
    }
    rows_leave(e);
    return sb_take(&e->out, e->a);
}
