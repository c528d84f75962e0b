/* Needs: stage T, a scalar loss. Gives: gradient nodes behind the forward ones. Keeps: every
 * forward node. Cost: one visit per node.
 *
 *   %y = mul %x, %g            =>   %dx = mul %dy, %g ; %dg = colsum (mul %dy, %x)
 */
#include "compiler/autodiff.h"
#include <stdlib.h>

struct piece { /* gradient of columns or rows from..to-1 of a value, from a slice */
    ir_id of;
    int64_t axis, from, to;
    ir_id grad;
};
struct ad {
    struct ir_graph *g;
    struct arena *scratch;
    ir_id *adj;       /* gradient so far of each forward node, IR_NONE = none yet */
    struct map elems; /* (tuple node, element) -> gradient + 1 */
    VEC(struct piece) pieces;
};

/* ---- adding nodes ---- */

static ir_id op2(struct ad *c, enum ir_op op, ir_id a, ir_id b)
{
    return ir_binary(c->g, op, a, b);
}

static ir_type_id type_of(struct ad *c, ir_id n)
{
    return ir_at(c->g, n)->type;
}

static ir_id filled(struct ad *c, ir_type_id type, double value)
{
    return ir_add_typed(c->g, OP_const, type, NO_SRCS, ATTRS(A_NUM(value, value)), NULL);
}

/* The per-row number or scalar behind a value that only spreads it over a type, else IR_NONE. */
static ir_id spread_of(struct ad *c, ir_id n)
{
    const struct ir_node *x = ir_at(c->g, n);
    if (x->op != OP_mul) return IR_NONE;
    for (uint32_t i = 0; i < 2; i++) {
        ir_id one = ir_src(c->g, n, i), other = ir_src(c->g, n, 1 - i);
        if (ir_at(c->g, one)->op == OP_const && ir_num(c->g, one, AK_value, 0) == 1 &&
            type_of(c, one) == x->type && type_of(c, other) != x->type)
            return other;
    }
    return IR_NONE;
}

/* a * b, where a spread operand is used unspread: mul(ones * s, x) = mul(s, x). */
static ir_id times(struct ad *c, ir_id a, ir_id b)
{
    ir_id s = spread_of(c, a);
    if (s != IR_NONE && type_of(c, a) == type_of(c, b)) return op2(c, OP_mul, s, b);
    s = spread_of(c, b);
    if (s != IR_NONE && type_of(c, a) == type_of(c, b)) return op2(c, OP_mul, a, s);
    return op2(c, OP_mul, a, b);
}

/* y spread over a type that y broadcasts to. */
static ir_id spread(struct ad *c, ir_id y, ir_type_id type)
{
    return type_of(c, y) == type ? y : op2(c, OP_mul, filled(c, type, 1), y);
}

/* Sums a gradient of the broadcast result down to its operand's type. */
static ir_id unbroadcast(struct ad *c, ir_id d, ir_type_id to)
{
    const struct ir_type *a = ir_ty(c->g, d), *b = type_get(c->g->types, to);
    if (type_of(c, d) == to) return d;
    if (b->rank == 0) return ir_unary(c->g, OP_sum, d);
    if (b->rank == a->rank && dim_eq(b->dim[b->rank - 1], dim_const(1)))
        return ir_unary(c->g, OP_rowsum, d);
    if (b->rank == 1 && a->rank == 2) return ir_unary(c->g, OP_colsum, d);
    if (b->rank == 1 && a->rank == 3) { /* [E,R,C] -> [C]: as one matrix */
        ir_type_id flat = ir_type2(c->g, IR_f32, type_rows(c->g->types, type_of(c, d)), a->dim[2]);
        return ir_unary(c->g, OP_colsum, ir_reshape(c->g, d, flat));
    }
    BUG("no rule to sum a gradient of rank %d down to rank %d", a->rank, b->rank);
}

static void add_to(struct ad *c, ir_id n, ir_id d)
{
    d = unbroadcast(c, d, type_of(c, n));
    c->adj[n] = c->adj[n] == IR_NONE ? d : op2(c, OP_add, c->adj[n], d);
}

static uint64_t elem_key(ir_id n, uint32_t i)
{
    return (uint64_t)n << 32 | i;
}

/* Gradient of element i of tuple n, IR_NONE where nobody read it. */
static ir_id elem(struct ad *c, ir_id n, uint32_t i)
{
    uint32_t *p = map_find_num(&c->elems, elem_key(n, i));
    return p && *p ? *p - 1 : IR_NONE;
}

static ir_id src(struct ad *c, ir_id n, uint32_t i)
{
    return ir_src(c->g, n, i);
}

/* Copies the attributes of n. */
static ir_id like(struct ad *c, enum ir_op op, ir_id n, const ir_id *s, size_t ns)
{
    struct ir_attr attr[AK_COUNT];
    size_t na = ir_attrs(c->g, n, attr);
    const char *name = ir_name(c->g, n);
    return ir_add(c->g, op, s, ns, attr, na, *name ? str_fmt(c->scratch, "d.%s", name) : NULL);
}

/* ---- rules: d is the gradient of node n; for tuples d is IR_NONE and elem() is asked ---- */

#define VJP(name)                                                                                 \
    static void vjp_##name(struct ad *c __attribute__((unused)), ir_id n __attribute__((unused)), \
                           ir_id d __attribute__((unused)))

VJP(leaf)
{
}

VJP(none)
{
    BUG("%s is not differentiable", op_info((enum ir_op)ir_at(c->g, n)->op)->name);
}

VJP(get)
{
    uint32_t *p =
        map_num(&c->elems, elem_key(src(c, n, 0), (uint32_t)ir_int(c->g, n, AK_index, 0)));
    ir_id sum = *p ? op2(c, OP_add, *p - 1, d) : d;
    *map_num(&c->elems, elem_key(src(c, n, 0), (uint32_t)ir_int(c->g, n, AK_index, 0))) = sum + 1;
}

VJP(pass)
{
    add_to(c, src(c, n, 0), d);
}

VJP(neg)
{
    add_to(c, src(c, n, 0), ir_unary(c->g, OP_neg, d));
}

VJP(exp)
{
    add_to(c, src(c, n, 0), times(c, d, n));
}

VJP(log)
{
    add_to(c, src(c, n, 0), op2(c, OP_div, d, src(c, n, 0)));
}

VJP(tanh) /* d (1 - y^2) */
{
    ir_id y2 = op2(c, OP_mul, n, n);
    add_to(c, src(c, n, 0), times(c, d, op2(c, OP_sub, ir_const(c->g, 1), y2)));
}

VJP(sigmoid) /* d y (1 - y) */
{
    ir_id s = op2(c, OP_mul, n, op2(c, OP_sub, ir_const(c->g, 1), n));
    add_to(c, src(c, n, 0), times(c, d, s));
}

VJP(softplus) /* d sigmoid(x) */
{
    add_to(c, src(c, n, 0), times(c, d, ir_unary(c->g, OP_sigmoid, src(c, n, 0))));
}

VJP(sqrt) /* d / (2 y) */
{
    add_to(c, src(c, n, 0), op2(c, OP_div, op2(c, OP_mul, d, ir_const(c->g, 0.5)), n));
}

VJP(rsqrt) /* -d y^3 / 2 */
{
    ir_id y3 = op2(c, OP_mul, op2(c, OP_mul, n, n), n);
    add_to(c, src(c, n, 0), times(c, d, op2(c, OP_mul, y3, ir_const(c->g, -0.5))));
}

VJP(recip) /* -d y^2 */
{
    add_to(c, src(c, n, 0), ir_unary(c->g, OP_neg, times(c, d, op2(c, OP_mul, n, n))));
}

VJP(add)
{
    add_to(c, src(c, n, 0), d);
    add_to(c, src(c, n, 1), d);
}

VJP(sub)
{
    add_to(c, src(c, n, 0), d);
    add_to(c, src(c, n, 1), ir_unary(c->g, OP_neg, d));
}

VJP(mul)
{
    ir_id a = src(c, n, 0), b = src(c, n, 1);
    if (ir_at(c->g, a)->op != OP_const) add_to(c, a, times(c, d, b));
    if (ir_at(c->g, b)->op != OP_const) add_to(c, b, times(c, d, a));
}

VJP(div) /* da = d / b, db = -d y / b */
{
    ir_id a = src(c, n, 0), b = src(c, n, 1);
    if (ir_at(c->g, a)->op != OP_const) add_to(c, a, op2(c, OP_div, d, b));
    if (ir_at(c->g, b)->op == OP_const) return;
    add_to(c, b, ir_unary(c->g, OP_neg, op2(c, OP_div, times(c, d, n), b)));
}

VJP(rowsum)
{
    add_to(c, src(c, n, 0), spread(c, d, type_of(c, src(c, n, 0))));
}

VJP(sum)
{
    add_to(c, src(c, n, 0), spread(c, d, type_of(c, src(c, n, 0))));
}

VJP(slice)
{
    struct piece p = {src(c, n, 0), ir_int(c->g, n, AK_axis, 0), ir_int(c->g, n, AK_from, 0),
                      ir_int(c->g, n, AK_to, 0), d};
    vec_push(c->scratch, &c->pieces, p);
}

VJP(concat)
{
    int64_t axis = ir_int(c->g, n, AK_axis, 0), at = 0;
    for (uint32_t i = 0; i < ir_at(c->g, n)->nsrc; i++) {
        int64_t w = ir_ty(c->g, src(c, n, i))->dim[axis].add;
        add_to(c, src(c, n, i), ir_slice(c->g, d, (int)axis, at, at + w));
        at += w;
    }
}

VJP(reshape)
{
    add_to(c, src(c, n, 0), ir_reshape(c->g, d, type_of(c, src(c, n, 0))));
}

VJP(repeat) /* sums of `times` neighbours */
{
    struct ir_dim each = ir_ty(c->g, src(c, n, 0))->dim[0];
    ir_type_id rows = ir_type2(c->g, IR_f32, each, dim_const(ir_int(c->g, n, AK_times, 1)));
    ir_id sums = ir_unary(c->g, OP_rowsum, ir_reshape(c->g, d, rows));
    add_to(c, src(c, n, 0), ir_reshape(c->g, sums, type_of(c, src(c, n, 0))));
}

static ir_id product(struct ad *c, ir_id a, ir_id b, bool ta, bool tb, const char *tag, ir_id n)
{
    const char *name = ir_name(c->g, n);
    return ir_matmul_as(c->g, a, b, ta, tb, ir_int(c->g, n, AK_bf16, 0),
                        *name ? str_fmt(c->scratch, "%s.%s", tag, name) : NULL);
}

VJP(matmul)
{
    ir_id a = src(c, n, 0), b = src(c, n, 1);
    bool ta = ir_int(c->g, n, AK_ta, 0), tb = ir_int(c->g, n, AK_tb, 0);
    add_to(c, a, ta ? product(c, b, d, tb, true, "dx", n) : product(c, d, b, false, !tb, "dx", n));
    add_to(c, b, tb ? product(c, d, a, true, ta, "dw", n) : product(c, a, d, !ta, false, "dw", n));
}

VJP(grouped)
{
    ir_id x = src(c, n, 0), w = src(c, n, 1), off = src(c, n, 2);
    CHECK(ir_int(c->g, n, AK_tb, 1) == 1);
    add_to(c, x,
           ir_add(c->g, OP_grouped_matmul, SRCS(d, w, off),
                  ATTRS(A_INT(tb, 0), A_INT(bf16, ir_int(c->g, n, AK_bf16, 0))), NULL));
    add_to(c, w,
           ir_add(c->g, OP_grouped_matmul_dw, SRCS(d, x, off),
                  ATTRS(A_INT(bf16, ir_int(c->g, n, AK_bf16, 0))), NULL));
}

VJP(embed)
{
    ir_id table = src(c, n, 0);
    add_to(c, table,
           ir_add_typed(c->g, OP_embed_grad, type_of(c, table), SRCS(d, src(c, n, 1)), NO_ATTRS,
                        "d.embed"));
}

VJP(rope)
{
    struct ir_attr attr[AK_COUNT];
    size_t na = ir_attrs(c->g, n, attr);
    bool inverse = ir_int(c->g, n, AK_inverse, 0);
    size_t k = 0;
    while (k < na && attr[k].key != AK_inverse) k++;
    attr[k] = A_INT(inverse, !inverse);
    if (k == na) na++;
    add_to(c, src(c, n, 0), ir_add(c->g, OP_rope, SRCS(d, src(c, n, 1)), attr, na, NULL));
}

VJP(attention)
{
    ir_id d_o = elem(c, n, 0), q = src(c, n, 0), k = src(c, n, 1), v = src(c, n, 2);
    CHECK(elem(c, n, 1) == IR_NONE);
    const ir_id s[] = {q, k, v, ir_get(c->g, n, 0), ir_get(c->g, n, 1), d_o};
    ir_id t = like(c, OP_attention_grad, n, s, 6);
    add_to(c, q, ir_get(c->g, t, 0));
    add_to(c, k, ir_get(c->g, t, 1));
    add_to(c, v, ir_get(c->g, t, 2));
}

VJP(short_conv)
{
    ir_id x = src(c, n, 0), w = src(c, n, 1);
    ir_id t = ir_add(c->g, OP_short_conv_grad, SRCS(d, x, w), NO_ATTRS, NULL);
    add_to(c, x, ir_get(c->g, t, 0));
    add_to(c, w, ir_get(c->g, t, 1));
}

VJP(kda)
{
    ir_id s[6];
    for (uint32_t i = 0; i < 5; i++) s[i] = src(c, n, i);
    s[5] = d;
    ir_id t = like(c, OP_kda_grad, n, s, 6);
    for (uint32_t i = 0; i < 5; i++) add_to(c, s[i], ir_get(c->g, t, i));
}

VJP(mla_keys) /* a part that nobody read has gradient zero */
{
    ir_id s[2];
    for (uint32_t i = 0; i < 2; i++) {
        s[i] = elem(c, n, i);
        if (s[i] == IR_NONE) s[i] = filled(c, type_elem(c->g->types, type_of(c, n), i), 0);
    }
    ir_id t = like(c, OP_mla_keys_grad, n, s, 2);
    add_to(c, src(c, n, 0), ir_get(c->g, t, 0));
    add_to(c, src(c, n, 1), ir_get(c->g, t, 1));
}

VJP(depth_mix)
{
    ir_id dh = elem(c, n, 0);
    uint32_t count = (uint32_t)ir_int(c->g, n, AK_sources, 0);
    if (dh == IR_NONE) return;           /* only its statistics were read */
    for (uint32_t j = 0; j < count; j++) /* a second accumulator would lose what the first has */
        for (uint32_t k = 0; k < j; k++) CHECK(src(c, n, 1 + j) != src(c, n, 1 + k));
    VEC(ir_id) s = {0};
    char *have = arena_alloc(c->scratch, count + 1, 1, STRATA_SITE);
    vec_push(c->scratch, &s, dh);
    vec_push(c->scratch, &s, ir_get(c->g, n, 0));
    vec_push(c->scratch, &s, src(c, n, 0));
    for (uint32_t i = 1; i < 4; i++) vec_push(c->scratch, &s, ir_get(c->g, n, i));
    for (uint32_t j = 0; j < count; j++) vec_push(c->scratch, &s, src(c, n, 1 + j));
    for (uint32_t j = 0; j < count; j++) {
        ir_id acc = c->adj[src(c, n, 1 + j)];
        have[j] = acc == IR_NONE ? '0' : '1';
        if (acc != IR_NONE) vec_push(c->scratch, &s, acc);
    }
    ir_id t = ir_add(c->g, OP_depth_mix_grad, s.p, s.n,
                     ATTRS(A_STR(site, ir_word(c->g, n, AK_site, "")), A_INT(sources, count),
                           A_STR(have, have), A_NUM(eps, ir_num(c->g, n, AK_eps, 0))),
                     NULL);
    for (uint32_t j = 0; j < count; j++) c->adj[src(c, n, 1 + j)] = ir_get(c->g, t, j);
    add_to(c, src(c, n, 0), ir_get(c->g, t, count));
}

VJP(cross_entropy)
{
    CHECK(elem(c, n, 1) == IR_NONE);
    add_to(c, src(c, n, 0),
           ir_add(c->g, OP_cross_entropy_grad,
                  SRCS(src(c, n, 0), src(c, n, 1), ir_get(c->g, n, 1), elem(c, n, 0)), NO_ATTRS,
                  NULL));
}

VJP(moe_route)
{
    ir_id dw = elem(c, n, 1), logits = src(c, n, 0);
    if (dw == IR_NONE) return;
    const ir_id s[] = {logits, ir_get(c->g, n, 0), dw};
    add_to(c, logits, like(c, OP_moe_route_grad, n, s, 3));
}

VJP(moe_weights)
{
    const ir_id s[] = {src(c, n, 0), src(c, n, 1), d};
    add_to(c, s[0], like(c, OP_moe_route_grad, n, s, 3));
}

VJP(moe_gather)
{
    const ir_id s[] = {d, src(c, n, 1), src(c, n, 2)};
    add_to(c, src(c, n, 0), like(c, OP_moe_gather_grad, n, s, 3));
}

VJP(moe_combine)
{
    const ir_id s[] = {d, src(c, n, 0), src(c, n, 1), src(c, n, 2), src(c, n, 3)};
    ir_id t = like(c, OP_moe_combine_grad, n, s, 5);
    add_to(c, src(c, n, 0), ir_get(c->g, t, 0));
    add_to(c, src(c, n, 1), ir_get(c->g, t, 1));
}

/* ---- driver ---- */

static int by_from(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    return (x->from > y->from) - (x->from < y->from);
}

/* The slices of n become one concat; columns nobody took are zero. */
static void gather_pieces(struct ad *c, ir_id n)
{
    VEC(struct piece) mine = {0};
    for (size_t i = 0; i < c->pieces.n; i++)
        if (c->pieces.p[i].of == n) vec_push(c->scratch, &mine, c->pieces.p[i]);
    if (!mine.n) return;
    qsort(mine.p, mine.n, sizeof *mine.p, by_from);
    int64_t axis = mine.p[0].axis, at = 0, end = ir_ty(c->g, n)->dim[axis].add;
    VEC(ir_id) parts = {0};
    for (size_t i = 0; i <= mine.n; i++) {
        int64_t from = i < mine.n ? mine.p[i].from : end;
        if (from < at) BUG("slices of %s overlap", ir_name(c->g, n));
        if (from > at) {
            struct ir_type t = *ir_ty(c->g, n);
            t.dim[axis] = dim_const(from - at);
            ir_type_id type = type_add(c->g->types, (enum ir_dtype)t.dtype, t.rank, t.dim);
            vec_push(c->scratch, &parts, filled(c, type, 0));
        }
        if (i == mine.n) break;
        CHECK(mine.p[i].axis == axis);
        vec_push(c->scratch, &parts, mine.p[i].grad);
        at = mine.p[i].to;
    }
    add_to(c, n,
           parts.n == 1
               ? parts.p[0]
               : ir_add(c->g, OP_concat, parts.p, parts.n, ATTRS(A_INT(axis, axis)), NULL));
}

static bool any_elem(struct ad *c, ir_id n)
{
    for (uint32_t i = 0; i < ir_ty(c->g, n)->count; i++)
        if (elem(c, n, i) != IR_NONE) return true;
    return false;
}

static void visit(struct ad *c, ir_id n)
{
    gather_pieces(c, n);
    bool tuple = ir_ty(c->g, n)->dtype == IR_tuple;
    if (tuple ? !any_elem(c, n) : c->adj[n] == IR_NONE) return;
    c->g->cur_span = ir_span(c->g, n);
    switch (ir_at(c->g, n)->op) {
#define OP(name, sources, shape, vjp, cost, stages, flags) \
    case OP_##name:                                        \
        vjp_##vjp(c, n, c->adj[n]);                        \
        break;
#include "op.def"
    default: BUG("op %d", ir_at(c->g, n)->op);
    }
}

void autodiff(struct ir_graph *g, ir_id loss, const ir_id *wrt, size_t n, ir_id *grad)
{
    struct ad c = {.g = g, .scratch = arena_open("autodiff")};
    ir_id count = (ir_id)g->node.n;
    c.adj = NEW(c.scratch, ir_id, count);
    for (ir_id i = 0; i < count; i++) c.adj[i] = IR_NONE;
    map_init(&c.elems, c.scratch);
    CHECK(ir_ty(g, loss)->rank == 0);
    c.adj[loss] = ir_const(g, 1);
    for (ir_id i = count; i-- > 0;) visit(&c, i);
    for (size_t i = 0; i < n; i++)
        grad[i] = c.adj[wrt[i]] != IR_NONE ? c.adj[wrt[i]] : filled(&c, type_of(&c, wrt[i]), 0);
    g->cur_span = (struct span){0};
    arena_close(c.scratch);
}
