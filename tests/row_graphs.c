/* See row_graphs.h. */
#include "row_graphs.h"

uint64_t row_graph_seed = 1;
double row_graph_uniform(void) /* -1 .. 1 */
{
    row_graph_seed = row_graph_seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(row_graph_seed >> 40) / (double)(1 << 23) - 1.0;
}

unsigned row_graph_pick(unsigned n)
{
    row_graph_uniform();
    return (unsigned)(row_graph_seed >> 33) % n;
}

static ir_id input(struct ir_graph *g, const char *name, ir_type_id type)
{
    return ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

static ir_id mat_input(struct ir_graph *g, const char *name, int64_t cols)
{
    return input(g, name, ir_type2(g, IR_f32, dim_sym(SYM_N, 1), dim_const(cols)));
}

static ir_id vec_input(struct ir_graph *g, const char *name, int64_t cols)
{
    return input(g, name, ir_type1(g, IR_f32, dim_const(cols)));
}

static ir_id b2(struct ir_graph *g, enum ir_op op, ir_id a, ir_id b)
{
    return ir_binary(g, op, a, b);
}

static ir_id norm_scale(struct ir_graph *g, ir_id x, int64_t cols)
{
    ir_id ss = ir_unary(g, OP_rowsum, b2(g, OP_mul, x, x));
    ir_id ms = b2(g, OP_mul, ss, ir_const(g, 1.0 / (double)cols));
    return ir_unary(g, OP_rsqrt, b2(g, OP_add, ms, ir_const(g, 1e-6)));
}

/* h + x w^T normalised, a product, and the backward of the norm. */
struct ir_graph *row_graph_norm(struct arena *a, int64_t cols)
{
    struct ir_graph *g = graph_open(a, "norm", STAGE_T, NULL, NULL);
    ir_id h = mat_input(g, "h", cols), x = mat_input(g, "x", 3), gain = vec_input(g, "gain", cols);
    ir_id w = input(g, "w", ir_type2(g, IR_f32, dim_const(cols), dim_const(3)));
    ir_id s = b2(g, OP_add, h, ir_matmul(g, x, w, false, true, NULL));
    ir_id r = norm_scale(g, s, cols), n = b2(g, OP_mul, s, r), y = b2(g, OP_mul, n, gain);
    ir_id z = ir_matmul(g, y, w, false, false, NULL);
    ir_id dz = ir_unary(g, OP_tanh, z), dy = ir_matmul(g, dz, w, false, true, NULL);
    ir_id dn = b2(g, OP_mul, dy, gain), dgain = ir_unary(g, OP_colsum, b2(g, OP_mul, dy, n));
    ir_id dot = b2(g, OP_mul, ir_unary(g, OP_rowsum, b2(g, OP_mul, dn, n)),
                   ir_const(g, 1.0 / (double)cols));
    ir_id ds = b2(g, OP_mul, b2(g, OP_sub, dn, b2(g, OP_mul, n, dot)), r);
    ir_output(g, "sum", s);
    ir_output(g, "dgain", dgain);
    ir_output(g, "ds", ds);
    return g;
}

/* swiglu of slices of one product, its backward into a concat, softmax, layer norm. */
struct ir_graph *row_graph_swiglu(struct arena *arena, int64_t cols)
{
    struct ir_graph *g = graph_open(arena, "swiglu", STAGE_T, NULL, NULL);
    ir_id x = mat_input(g, "x", 5);
    ir_id w = input(g, "w", ir_type2(g, IR_f32, dim_const(2 * cols), dim_const(5)));
    ir_id ab = ir_matmul(g, x, w, false, true, NULL);
    ir_id a = ir_slice(g, ab, 1, 0, cols), b = ir_slice(g, ab, 1, cols, 2 * cols);
    ir_id sig = ir_unary(g, OP_sigmoid, a), silu = b2(g, OP_mul, a, sig);
    ir_id y = b2(g, OP_mul, silu, b);
    ir_id wo = ir_slice(g, w, 0, 0, cols);
    ir_id z = ir_matmul(g, y, wo, false, false, NULL);
    ir_id dy = ir_matmul(g, ir_unary(g, OP_neg, z), wo, false, true, NULL);
    ir_id one = ir_const(g, 1);
    ir_id slope = b2(g, OP_mul, sig, b2(g, OP_add, one, b2(g, OP_mul, a, b2(g, OP_sub, one, sig))));
    ir_id da = b2(g, OP_mul, b2(g, OP_mul, dy, b), slope), db = b2(g, OP_mul, dy, silu);
    ir_id dab = ir_add(g, OP_concat, SRCS(da, db), ATTRS(A_INT(axis, 1)), NULL);
    ir_output(g, "dx", ir_matmul(g, dab, w, false, false, NULL));
    ir_id m = ir_unary(g, OP_rowmax, a), e = ir_unary(g, OP_exp, b2(g, OP_sub, a, m));
    ir_id total = ir_unary(g, OP_rowsum, e);
    ir_output(g, "softmax", b2(g, OP_div, e, total));
    ir_output(g, "lse", b2(g, OP_add, m, ir_unary(g, OP_log, total)));
    ir_id mean = b2(g, OP_mul, ir_unary(g, OP_rowsum, b), ir_const(g, 1.0 / (double)cols));
    ir_id centred = b2(g, OP_sub, b, mean);
    ir_output(g, "layernorm", b2(g, OP_mul, centred, norm_scale(g, centred, cols)));
    return g;
}

/* Norms of heads through reshapes, vectors and scalars on their own, constants that are
 * results. */
struct ir_graph *row_graph_mixed(struct arena *a, int64_t cols)
{
    struct ir_graph *g = graph_open(a, "mixed", STAGE_T, NULL, NULL);
    ir_id x = mat_input(g, "x", 4 * cols), u = vec_input(g, "u", cols), v = vec_input(g, "v", cols);
    ir_id heads = ir_reshape(g, x, ir_type2(g, IR_f32, dim_sym(SYM_N, 4), dim_const(cols)));
    ir_id uv = b2(g, OP_mul, u, ir_unary(g, OP_exp, v));
    ir_id q = b2(g, OP_mul, b2(g, OP_mul, heads, norm_scale(g, heads, cols)), uv);
    ir_id back = ir_reshape(g, q, ir_at(g, x)->type);
    ir_id one = ir_slice(g, back, 1, 1, 2); /* a column: a number per row, strided */
    ir_id weight = ir_unary(g, OP_sigmoid, b2(g, OP_add, one, ir_const(g, 0.5)));
    ir_output(g, "weighted", b2(g, OP_mul, back, weight));
    ir_output(g, "outer", b2(g, OP_mul, weight, uv));
    ir_output(g, "weight", weight);
    ir_output(g, "columns", ir_unary(g, OP_colsum, weight));
    ir_output(g, "same", b2(g, OP_max, b2(g, OP_min, x, ir_const(g, 0.25)), ir_const(g, -0.25)));
    ir_id z = ir_add_typed(g, OP_const, ir_at(g, x)->type, NO_SRCS, ATTRS(A_NUM(value, 3)), NULL);
    ir_output(g, "three", z);
    ir_id pieces = ir_add(g, OP_concat, SRCS(ir_unary(g, OP_tanh, x), weight, one),
                          ATTRS(A_INT(axis, 1)), NULL);
    ir_output(g, "pieces", b2(g, OP_mul, pieces, pieces));
    ir_output(g, "bf16", ir_unary(g, OP_round_bf16, x));
    ir_id shift = ir_slice(g, vec_input(g, "long", cols + 3), 0, 3, cols + 3);
    struct ir_dim d[] = {dim_const(3), dim_const(5), dim_const(cols)};
    ir_id cube = input(g, "cube", type_add(g->types, IR_f32, 3, d));
    ir_id part = ir_slice(g, cube, 0, 1, 3);
    ir_output(g, "part", b2(g, OP_mul, part, shift));
    ir_output(g, "cube", b2(g, OP_sub, cube, ir_unary(g, OP_rowsum, cube)));
    return g;
}

struct pool {
    struct ir_graph *g;
    ir_id full[200], row[200], vec[200];
    unsigned nfull, nrow, nvec;
    int64_t cols;
};

static ir_id random_operand(struct pool *p, bool vectors)
{
    switch (row_graph_pick(vectors ? 8 : 6)) {
    case 0: return p->row[row_graph_pick(p->nrow)];
    case 1: return ir_const(p->g, (double)row_graph_pick(5) * 0.5 - 0.75);
    case 6:
    case 7: return p->vec[row_graph_pick(p->nvec)];
    default: return p->full[p->nfull - 1 - row_graph_pick(p->nfull < 6 ? p->nfull : 6)];
    }
}

static ir_id random_unary(struct ir_graph *g, ir_id x)
{
    static const enum ir_op plain[] = {OP_neg, OP_tanh, OP_sigmoid};
    static const enum ir_op positive[] = {OP_log, OP_sqrt, OP_rsqrt, OP_recip};
    unsigned k = row_graph_pick(8);
    if (k < 3) return ir_unary(g, plain[k], x);
    if (k == 7) return ir_unary(g, OP_exp, ir_unary(g, OP_tanh, x));
    return ir_unary(g, positive[k - 3], b2(g, OP_add, b2(g, OP_mul, x, x), ir_const(g, 1)));
}

static void random_op(struct pool *p)
{
    static const enum ir_op ops[] = {OP_add, OP_sub, OP_mul, OP_max, OP_min};
    struct ir_graph *g = p->g;
    ir_id x = p->full[p->nfull - 1 - row_graph_pick(p->nfull < 6 ? p->nfull : 6)], y;
    switch (row_graph_pick(12)) {
    case 0: p->row[p->nrow++] = ir_unary(g, row_graph_pick(2) ? OP_rowsum : OP_rowmax, x); return;
    case 1: y = b2(g, OP_mul, ir_unary(g, OP_colsum, x), ir_const(g, 0.125)); break;
    case 2:
        y = random_unary(g, p->row[row_graph_pick(p->nrow)]);
        p->row[p->nrow++] = y;
        return;
    case 3:
        y = b2(g, ops[row_graph_pick(5)], p->vec[row_graph_pick(p->nvec)],
               p->vec[row_graph_pick(p->nvec)]);
        break;
    case 4: y = random_unary(g, p->vec[row_graph_pick(p->nvec)]); break;
    case 5:
    case 6: p->full[p->nfull++] = random_unary(g, x); return;
    case 7: { /* a barrier */
        ir_id w = ir_add(g, OP_matmul, SRCS(x, x), ATTRS(A_INT(ta, 1), A_INT(tb, 0)), NULL);
        y = ir_matmul(g, x, ir_unary(g, OP_tanh, w), false, false, NULL);
        p->full[p->nfull++] = ir_unary(g, OP_tanh, y);
        return;
    }
    default: /* keep values from growing */
        y = b2(g, ops[row_graph_pick(5)], x, random_operand(p, true));
        p->full[p->nfull++] = row_graph_pick(3) ? y : ir_unary(g, OP_tanh, y);
        return;
    }
    p->vec[p->nvec++] = ir_unary(g, OP_tanh, y);
}

struct ir_graph *row_graph_random(struct arena *a, unsigned k, int64_t cols)
{
    struct pool p = {.g = graph_open(a, str_fmt(a, "random%u", k), STAGE_T, NULL, NULL)};
    p.cols = cols;
    p.full[p.nfull++] = mat_input(p.g, "x", cols);
    p.full[p.nfull++] = mat_input(p.g, "y", cols);
    p.row[p.nrow++] = mat_input(p.g, "r", 1);
    p.vec[p.nvec++] = vec_input(p.g, "v", cols);
    for (int i = 0; i < 30; i++) random_op(&p);
    for (unsigned i = 0; i < 4; i++) {
        ir_output(p.g, str_fmt(a, "f%u", i), p.full[p.nfull - 1 - (i < p.nfull ? i : 0)]);
        ir_output(p.g, str_fmt(a, "r%u", i), p.row[i < p.nrow ? p.nrow - 1 - i : 0]);
        ir_output(p.g, str_fmt(a, "v%u", i), p.vec[i < p.nvec ? p.nvec - 1 - i : 0]);
    }
    return p.g;
}
