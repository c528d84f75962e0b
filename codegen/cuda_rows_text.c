/* Row regions as CUDA C: see cuda_rows.c for who computes what.
 *
 * Names carry the number that a value has in the comment over the kernel: a and o are rows of
 * operands and results, x loaded elements, t computed ones, k kept ones, s numbers per row and
 * scalars, m parts of row reductions; c and z column sums of result i. */
#include "codegen/cuda_rows.h"

static bool is_kept_in(const struct rows_gen *e, ir_id n, uint32_t k)
{
    return e->keep[n] >= 0 && (e->again[n] >> k & 1);
}

/* Index of an element among a thread's columns of the row. */
static const char *own_index(const struct cuda_rows *c, const char *v)
{
    return c->pieces > 1 ? str_fmt(c->e->a, "c * %d + %s", c->v, v) : v;
}

/* Element v of a value in loop k, or a number of the row. */
static const char *element(const struct cuda_rows *c, ir_id n, uint32_t k)
{
    struct rows_gen *e = c->e;
    if (rows_op(e, n) == OP_const) return rows_literal(e, n);
    if (e->kind[n] == SCALAR || e->kind[n] == ROW) return str_fmt(e->a, "s%u", n);
    bool arg = rows_op(e, n) == OP_arg;
    if (e->keep[n] >= 0 && (arg || is_kept_in(e, n, k)))
        return str_fmt(e->a, "k%u[%s]", n, own_index(c, "v"));
    return str_fmt(e->a, arg ? "x%u[v]" : "t%u", n);
}

/* The function of an operation, or a coarse form of it. */
static const char *function(enum ir_op op, bool coarse)
{
    switch (op) {
    case OP_exp: return coarse ? "exp_coarse1" : "exp1";
    case OP_tanh: return coarse ? "tanh_coarse1" : "tanh1";
    case OP_sigmoid: return coarse ? "sigmoid_coarse1" : "sigmoid1";
    case OP_log: return "log1";
    case OP_softplus: return "softplus1";
    case OP_round: return "round1";
    case OP_sqrt: return "sqrt1";
    case OP_rsqrt: return "rsqrt1";
    case OP_round_bf16: return "bf16_round1";
    case OP_max: return "max1";
    case OP_min: return "min1";
    default: BUG("rows: no expression for %s", op_info(op)->name);
    }
}

/* The C expression of an elementwise operation. */
static const char *expression(const struct cuda_rows *c, ir_id n, uint32_t k)
{
    struct rows_gen *e = c->e;
    enum ir_op op = rows_op(e, n);
    uint32_t nsrc = ir_at(e->r, n)->nsrc;
    const char *a = element(c, ir_src(e->r, n, 0), k);
    const char *b = nsrc > 1 ? element(c, ir_src(e->r, n, 1), k) : NULL;
    bool coarse = ir_int(e->r, n, AK_coarse, 0) != 0;
    switch (op) {
    case OP_neg: return str_fmt(e->a, "-%s", a);
    case OP_recip: return str_fmt(e->a, "1.0f / %s", a);
    case OP_add: return str_fmt(e->a, "%s + %s", a, b);
    case OP_sub: return str_fmt(e->a, "%s - %s", a, b);
    case OP_mul: return str_fmt(e->a, "%s * %s", a, b);
    case OP_div:
        if (coarse) return str_fmt(e->a, "%s * (1.0f / %s)", a, b);
        return str_fmt(e->a, "%s / %s", a, b);
    case OP_rowsum:
    case OP_rowmax: return a; /* of one column */
    default:
        if (b) return str_fmt(e->a, "%s(%s, %s)", function(op, coarse), a, b);
        return str_fmt(e->a, "%s(%s)", function(op, coarse), a);
    }
}

static const char *type_of(const struct rows_gen *e, size_t place)
{
    return e->place[place].narrow ? "uint16_t" : "float";
}

/* ---- around the rows ---- */

static void parameters(struct cuda_rows *c)
{
    struct rows_gen *e = c->e;
    size_t args = rows_args(e);
    struct sb s = {0};
    for (size_t i = 0; i < args; i++)
        sb_printf(&s, "const %s *__restrict__ p%zu, ", type_of(e, i), i);
    for (size_t i = 0; i < e->r->out.n; i++)
        sb_printf(&s, "%s *__restrict__ y%zu, ", type_of(e, args + i), i);
    sb_char(&s, 0);
    rows_line(e, "extern \"C\" __global__ void __launch_bounds__(%d, 1)", c->threads);
    rows_line(e, "@FN@(%sint64_t rows%s)", s.p, e->chunked ? ", int64_t chunk" : "");
    sb_free(&s);
}

/* The number at `index` of operand i. */
static const char *number(const struct rows_gen *e, long long i, const char *index)
{
    const char *f = e->place[i].narrow ? "bf16_to_f32(p%lld[%s])" : "p%lld[%s]";
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    return str_fmt(e->a, f, i, index);
#pragma GCC diagnostic pop
}

static void scalars(struct cuda_rows *c)
{
    struct rows_gen *e = c->e;
    for (ir_id n = 0; n < e->r->node.n; n++)
        if (rows_op(e, n) == OP_arg && e->kind[n] == SCALAR)
            rows_line(e, "const float s%u = %s;", n,
                      number(e, (long long)ir_int(e->r, n, AK_index, 0), "0"));
}

/* Which thread of the team, which team of the block. */
static const char *lane(const struct cuda_rows *c)
{
    return c->team > 1 ? "lane" : "0";
}
static const char *team(const struct cuda_rows *c)
{
    if (c->threads == c->team) return "0";
    return c->team > 1 ? "team" : "(int)threadIdx.x";
}

static bool has_columns(const struct rows_gen *e)
{
    for (ir_id n = 0; n < e->r->node.n; n++)
        if (e->kind[n] == FULL) return true;
    for (size_t i = 0; i < e->r->out.n; i++)
        if (e->kind[e->r->out.p[i].id] == ROW) return true;
    return e->chunked;
}

static void positions(struct cuda_rows *c)
{
    struct rows_gen *e = c->e;
    if (c->team > 1 && has_columns(e)) rows_line(e, "const int lane = threadIdx.x %% %d;", c->team);
    if (c->team > 1 && c->threads > c->team)
        rows_line(e, "const int team = threadIdx.x / %d;", c->team);
    if (c->team > CUDA_WARP && e->reduces) rows_line(e, "__shared__ float warps[WARP];");
}

/* Elements of column sum i that a thread keeps: one where it is a sum of numbers per row. */
static int sum_size(const struct cuda_rows *c, size_t i)
{
    const struct rows_gen *e = c->e;
    return e->kind[ir_src(e->r, e->r->out.p[i].id, 0)] == FULL ? c->pieces * c->v : 1;
}

static bool is_colsum(const struct rows_gen *e, size_t i)
{
    return e->kind[e->r->out.p[i].id] == COLSUM;
}

/* Do a thread's columns go beyond the row? */
static bool beyond(const struct cuda_rows *c)
{
    return c->e->cols % ((int64_t)c->team * c->v * (c->tiles > 1 ? 1 : c->pieces)) != 0;
}

/* Opens the loop over a thread's columns of a row: i, where it is used, is the first of v
 * neighbours. */
static void open_columns(struct cuda_rows *c, bool unrolled, bool used)
{
    struct rows_gen *e = c->e;
    const char *at = c->tiles > 1 ? str_fmt(e->a, "(int)(blockIdx.y * %d + %s)", c->team, lane(c))
                     : c->pieces > 1 ? str_fmt(e->a, "(c * %d + %s)", c->team, lane(c))
                                     : lane(c);
    const char *loop =
        unrolled ? "UNROLL for (int c = 0; c < %d; c++) {" : "for (int c = 0; c < %d; c++) {";
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    rows_enter(e, c->pieces > 1 ? str_fmt(e->a, loop, c->pieces) : "{");
#pragma GCC diagnostic pop
    if (used || beyond(c)) rows_line(e, "const int i = %s * %d;", at, c->v);
    if (beyond(c)) rows_enter(e, str_fmt(e->a, "if (i < %lld) {", (long long)e->cols));
}

static void close_columns(struct cuda_rows *c)
{
    if (beyond(c)) rows_leave(c->e);
    rows_leave(c->e);
}

/* ---- a row ---- */

static void pointers(struct cuda_rows *c)
{
    struct rows_gen *e = c->e;
    for (ir_id n = 0; n < e->r->node.n; n++) {
        if (rows_op(e, n) != OP_arg) continue;
        long long i = (long long)ir_int(e->r, n, AK_index, 0), ld = (long long)rows_arg_ld(e, n);
        if (e->kind[n] == FULL)
            rows_line(e, "const %s *const a%u = p%lld + r * %lld;", type_of(e, (size_t)i), n, i,
                      ld);
        if (e->kind[n] == ROW)
            rows_line(e, "const float s%u = %s;", n,
                      number(e, i, ld == 1 ? "r" : str_fmt(e->a, "r * %lld", ld)));
    }
    for (size_t i = 0; i < e->r->out.n; i++)
        if (e->kind[e->r->out.p[i].id] == FULL)
            rows_line(e, "%s *const o%zu = y%zu + r * %lld;", type_of(e, rows_args(e) + i), i, i,
                      (long long)rows_out_ld(e, i));
    for (ir_id n = 0; n < e->r->node.n; n++)
        if (e->keep[n] >= 0) rows_line(e, "float k%u[%d];", n, c->pieces * c->v);
}

/* Loads operand n, a row or a vector, from column i on. */
static void load(struct cuda_rows *c, ir_id n)
{
    struct rows_gen *e = c->e;
    long long p = (long long)ir_int(e->r, n, AK_index, 0);
    const char *to = str_fmt(e->a, "x%u", n);
    if (e->keep[n] >= 0)
        to = str_fmt(e->a, c->pieces > 1 ? "k%u + c * %d" : "k%u", n, c->v);
    else
        rows_line(e, "float x%u[%d];", n, c->v);
    const char *from = e->kind[n] == FULL ? str_fmt(e->a, "a%u", n) : str_fmt(e->a, "p%lld", p);
    rows_line(e, "load<%d, %d>(%s, %s + i);", c->v, (int)e->place[p].align, to, from);
}

/* What loop k does with element v of a value: reductions, results. */
static void use_elements(struct cuda_rows *c, uint32_t k)
{
    struct rows_gen *e = c->e;
    for (ir_id n = 0; n < e->r->node.n; n++) {
        if (!rows_reduces(e, n) || e->loop[n] != k + 1) continue;
        const char *x = element(c, ir_src(e->r, n, 0), k);
        if (rows_op(e, n) == OP_rowmax)
            rows_line(e, "m%u = max1(m%u, %s);", n, n, x);
        else
            rows_line(e, "m%u += %s;", n, x);
    }
    for (size_t i = 0; i < e->r->out.n; i++) {
        ir_id n = e->r->out.p[i].id, s = is_colsum(e, i) ? ir_src(e->r, n, 0) : n;
        if (e->kind[s] != FULL || e->loop[s] != k) continue;
        const char *x = element(c, s, k);
        if (s == n)
            rows_line(e, "w%zu[v] = %s;", i, x);
        else if (c->sums_in_memory)
            rows_line(e, "%sz%zu[i + v] += %s;", c->clones ? "if (live) " : "", i, x);
        else if (c->clones)
            rows_line(e, "c%zu[%s] += live ? %s : 0.0f;", i, own_index(c, "v"), x);
        else
            rows_line(e, "c%zu[%s] += %s;", i, own_index(c, "v"), x);
    }
}

/* Does operand n, a row or a vector, come from memory in loop k? */
static bool is_loaded(const struct rows_gen *e, ir_id n, uint32_t k)
{
    return rows_op(e, n) == OP_arg && (e->kind[n] == FULL || e->kind[n] == VECTOR) &&
           (e->need[n] >> k & 1) && !is_kept_in(e, n, k);
}

static bool touches_memory(const struct cuda_rows *c, uint32_t k)
{
    const struct rows_gen *e = c->e;
    for (ir_id n = 0; n < e->r->node.n; n++)
        if (is_loaded(e, n, k)) return true;
    for (size_t i = 0; i < e->r->out.n; i++) {
        ir_id n = e->r->out.p[i].id;
        if (e->kind[n] == FULL && e->loop[n] == k) return true;
    }
    return c->sums_in_memory;
}

static void column_loop(struct cuda_rows *c, uint32_t k)
{
    struct rows_gen *e = c->e;
    for (ir_id n = 0; n < e->r->node.n; n++)
        if (rows_reduces(e, n) && e->loop[n] == k + 1)
            rows_line(e, "float m%u = %s;", n, rows_op(e, n) == OP_rowmax ? "-INFF" : "0.0f");
    open_columns(c, e->rule == ROWS_REGISTERS || (e->chunked && !c->sums_in_memory),
                 touches_memory(c, k));
    for (ir_id n = 0; n < e->r->node.n; n++)
        if (is_loaded(e, n, k)) load(c, n);
    for (size_t i = 0; i < e->r->out.n; i++)
        if (e->kind[e->r->out.p[i].id] == FULL && e->loop[e->r->out.p[i].id] == k)
            rows_line(e, "float w%zu[%d];", i, c->v);
    rows_enter(e, str_fmt(e->a, "UNROLL for (int v = 0; v < %d; v++) {", c->v));
    for (ir_id n = 0; n < e->r->node.n; n++) {
        bool computed = rows_op(e, n) != OP_arg && rows_op(e, n) != OP_const;
        if (e->kind[n] != FULL || !computed || !(e->need[n] >> k & 1) || is_kept_in(e, n, k))
            continue;
        rows_line(e, "const float t%u = %s;", n, expression(c, n, k));
        if (e->keep[n] >= 0) rows_line(e, "k%u[%s] = t%u;", n, own_index(c, "v"), n);
    }
    use_elements(c, k);
    rows_leave(e);
    for (size_t i = 0; i < e->r->out.n; i++)
        if (e->kind[e->r->out.p[i].id] == FULL && e->loop[e->r->out.p[i].id] == k)
            rows_line(e, "%sstore<%d, %d>(o%zu + i, w%zu);", c->clones ? "if (live) " : "", c->v,
                      (int)e->place[rows_args(e) + i].align, i, i);
    close_columns(c);
}

/* The sums over the team of what its threads have of row reduction n. */
static void reduce(struct cuda_rows *c, ir_id n)
{
    struct rows_gen *e = c->e;
    bool max = rows_op(e, n) == OP_rowmax;
    const char *name = max ? "max" : "sum";
    if (c->team > CUDA_WARP) {
        rows_line(e, "const float s%u = block_%s(m%u, warps);", n, name, n);
        return;
    }
    if (c->team == CUDA_WARP) {
        rows_line(e, "const float s%u = warp_%s(m%u);", n, name, n);
        return;
    }
    for (int d = c->team / 2; d; d /= 2)
        if (max)
            rows_line(e, "m%u = max1(m%u, __shfl_xor_sync(ALL_LANES, m%u, %d));", n, n, n, d);
        else
            rows_line(e, "m%u += __shfl_xor_sync(ALL_LANES, m%u, %d);", n, n, d);
    rows_line(e, "const float s%u = m%u;", n, n);
}

/* Numbers of the row that are known before loop k. */
static void row_numbers(struct cuda_rows *c, uint32_t k)
{
    struct rows_gen *e = c->e;
    for (ir_id n = 0; n < e->r->node.n; n++) {
        enum ir_op op = rows_op(e, n);
        if (e->kind[n] != ROW || e->loop[n] != k || op == OP_const || op == OP_arg) continue;
        if (rows_reduces(e, n))
            reduce(c, n);
        else
            rows_line(e, "const float s%u = %s;", n, expression(c, n, 0));
    }
}

/* Results that are numbers per row, and column sums of such numbers. */
static void row_results(struct cuda_rows *c)
{
    struct rows_gen *e = c->e;
    struct sb s = {0};
    if (c->team > 1) sb_str(&s, " && lane == 0");
    if (c->clones) sb_str(&s, " && live");
    if (c->tiles > 1) sb_str(&s, " && blockIdx.y == 0");
    sb_char(&s, 0);
    const char *one = s.n > 1 ? str_fmt(e->a, "if (%s) ", s.p + 4) : "";
    for (size_t i = 0; i < e->r->out.n; i++) {
        ir_id n = e->r->out.p[i].id;
        if (e->kind[n] == ROW) {
            long long ld = (long long)rows_out_ld(e, i);
            const char *x = element(c, n, 0), *at = ld == 1 ? "r" : str_fmt(e->a, "r * %lld", ld);
            if (e->place[rows_args(e) + i].narrow) x = str_fmt(e->a, "f32_to_bf16(%s)", x);
            rows_line(e, "%sy%zu[%s] = %s;", one, i, at, x);
        } else if (is_colsum(e, i) && e->kind[ir_src(e->r, n, 0)] != FULL) {
            const char *x = element(c, ir_src(e->r, n, 0), 0);
            if (c->clones) x = str_fmt(e->a, "live ? %s : 0.0f", x);
            rows_line(e, "c%zu[0] += %s;", i, x);
        }
    }
    sb_free(&s);
}

static void row(struct cuda_rows *c)
{
    pointers(c);
    row_numbers(c, 0);
    for (uint32_t k = 0; k < c->e->loops; k++) {
        column_loop(c, k);
        row_numbers(c, k + 1);
    }
    row_results(c);
}

/* ---- column sums ---- */

static void begin_sums(struct cuda_rows *c)
{
    struct rows_gen *e = c->e;
    for (size_t i = 0; i < e->r->out.n; i++) {
        if (!is_colsum(e, i)) continue;
        ir_id s = ir_src(e->r, e->r->out.p[i].id, 0);
        if (c->sums_in_memory && e->kind[s] == FULL) {
            rows_line(e, "float *const z%zu = y%zu + blockIdx.x * (int64_t)%lld;", i, i,
                      (long long)e->cols);
            open_columns(c, false, true);
            rows_line(e, "%sfor (int v = 0; v < %d; v++) z%zu[i + v] = 0.0f;",
                      c->clones ? "if (team == 0) " : "", c->v, i);
            close_columns(c);
        } else {
            rows_line(e, "float c%zu[%d] = {0.0f};", i, sum_size(c, i));
        }
    }
}

/* Columns of a block, or of one of its tiles; floats that they take in shared memory, where v
 * columns of a thread have one more beside them, so that a warp's stores meet different banks. */
static int width(const struct cuda_rows *c)
{
    return c->pieces * c->team * c->v;
}
static int padded(const struct cuda_rows *c)
{
    return c->pieces * c->team * (c->v + 1);
}

/* Adds column sum i over the teams of a warp and has each warp's in its row of `part`. */
static void put_warp_sums(struct cuda_rows *c, size_t i, bool full)
{
    struct rows_gen *e = c->e;
    if (c->team < CUDA_WARP) {
        rows_enter(e, str_fmt(e->a, "UNROLL for (int j = 0; j < %d; j++) {", sum_size(c, i)));
        for (int d = c->team; d < CUDA_WARP; d *= 2)
            rows_line(e, "c%zu[j] += __shfl_xor_sync(ALL_LANES, c%zu[j], %d);", i, i, d);
        rows_leave(e);
    }
    rows_enter(e, str_fmt(e->a, "if (threadIdx.x %% WARP < %d) {", full ? c->team : 1));
    if (full) {
        rows_line(e, "float *const to = part + threadIdx.x / WARP * %d + %s * %d;", padded(c),
                  lane(c), c->v + 1);
        rows_enter(e, str_fmt(e->a, "UNROLL for (int j = 0; j < %d; j++) {", sum_size(c, i)));
        rows_line(e, "to[j / %d * %d + j %% %d] = c%zu[j];", c->v, c->team * (c->v + 1), c->v, i);
        rows_leave(e);
    } else {
        rows_line(e, "part[threadIdx.x / WARP * %d] = c%zu[0];", padded(c), i);
    }
    rows_leave(e);
}

/* Writes column sum i of the block: over its warps, in their order. */
static void add_warp_sums(struct cuda_rows *c, size_t i, bool full)
{
    struct rows_gen *e = c->e;
    int warps = c->threads / CUDA_WARP, n = full ? width(c) : 1;
    const char *first = "0";
    if (full && c->tiles > 1) first = str_fmt(e->a, "blockIdx.y * %d", width(c));
    rows_enter(e, str_fmt(e->a, "for (int j = threadIdx.x; j < %d; j += %d) {", n, c->threads));
    rows_line(e, "const float *const from = part + j / %d + j;", c->v);
    rows_line(e, "float sum = *from;");
    rows_line(e, "UNROLL for (int w = 1; w < %d; w++) sum += from[w * %d];", warps, padded(c));
    if (full)
        rows_line(e, "if (%s + j < %lld) y%zu[blockIdx.x * (int64_t)%lld + %s + j] = sum;", first,
                  (long long)e->cols, i, (long long)e->cols, first);
    else
        rows_line(e, "%sy%zu[blockIdx.x] = sum;", c->tiles > 1 ? "if (blockIdx.y == 0) " : "", i);
    rows_leave(e);
}

/* Writes what one team has of column sum i. */
static void put_sums(struct cuda_rows *c, size_t i, bool full)
{
    struct rows_gen *e = c->e;
    if (!full) {
        rows_line(e, "if (threadIdx.x == 0%s) y%zu[blockIdx.x] = c%zu[0];",
                  c->tiles > 1 ? " && blockIdx.y == 0" : "", i, i);
        return;
    }
    int64_t align = e->cols * 4 & -(e->cols * 4);
    open_columns(c, true, true);
    rows_line(e, "store<%d, %d>(y%zu + blockIdx.x * (int64_t)%lld + i, c%zu%s);", c->v,
              (int)(align < 16 ? align : 16), i, (long long)e->cols, i,
              c->pieces > 1 ? str_fmt(e->a, " + c * %d", c->v) : "");
    close_columns(c);
}

/* Writes the block's column sums, row blockIdx.x of the partial sums. */
static void end_sums(struct cuda_rows *c)
{
    struct rows_gen *e = c->e;
    bool again = false;
    if (c->teams > 1)
        rows_line(e, "__shared__ float part[%d];", c->threads / CUDA_WARP * padded(c));
    for (size_t i = 0; i < e->r->out.n; i++) {
        if (!is_colsum(e, i)) continue;
        bool full = e->kind[ir_src(e->r, e->r->out.p[i].id, 0)] == FULL;
        if (full && c->sums_in_memory) continue;
        if (c->teams == 1) {
            put_sums(c, i, full);
            continue;
        }
        if (again) rows_line(e, "__syncthreads();");
        put_warp_sums(c, i, full);
        rows_line(e, "__syncthreads();");
        add_warp_sums(c, i, full);
        again = true;
    }
}

/* ---- the kernel ---- */

static void chunk_of_rows(struct cuda_rows *c)
{
    struct rows_gen *e = c->e;
    begin_sums(c);
    rows_line(e, "const int64_t first = blockIdx.x * chunk;");
    if (c->clones) {
        bool one = c->sums_in_memory;
        rows_enter(e, str_fmt(e->a, "for (int64_t q = %s; q < chunk; q += %d) {",
                              one ? "0" : team(c), c->teams));
        rows_line(e, "const bool live = first + q < rows%s;", one ? " && team == 0" : "");
        rows_line(e, "const int64_t r = min64(first + q, rows - 1);");
    } else {
        rows_line(e, "const int64_t end = min64(first + chunk, rows);");
        if (c->teams > 1)
            rows_enter(e, str_fmt(e->a, "for (int64_t r = first + %s; r < end; r += %d) {", team(c),
                                  c->teams));
        else
            rows_enter(e, "for (int64_t r = first; r < end; r++) {");
    }
    row(c);
    rows_leave(e);
    end_sums(c);
}

struct str cuda_rows_text(struct cuda_rows *c)
{
    struct rows_gen *e = c->e;
    rows_header(e);
    parameters(c);
    rows_enter(e, "{");
    positions(c);
    scalars(c);
    if (e->chunked) {
        chunk_of_rows(c);
    } else {
        const char *at = str_fmt(e->a, "blockIdx.x * (int64_t)%d + %s", c->teams, team(c));
        if (c->threads == c->team) at = "blockIdx.x";
        if (c->clones) {
            rows_line(e, "const int64_t at = %s, r = min64(at, rows - 1);", at);
            rows_line(e, "const bool live = at < rows;");
        } else {
            rows_line(e, "const int64_t r = %s;", at);
            rows_line(e, "if (r >= rows) return;");
        }
        row(c);
    }
    rows_leave(e);
    return sb_take(&e->out, e->a);
}
