#include "op_cases.h"
#include <math.h>
#include <stdlib.h>

static const struct {
    int64_t B, T, C;
} sizes[OP_CASE_SIZES] = {{1, 1, 1},   {1, 1, 7},   {2, 3, 5},   {1, 7, 8},   {3, 5, 15}, {1, 16, 16},
                          {1, 17, 17}, {2, 16, 33}, {3, 11, 64}, {5, 13, 65}, {1, 129, 24}};

/* What a build function works with. */
struct k {
    struct ir_graph *g;
    int64_t C, C2, option; /* feature sizes; which form of the op */
    struct ir_dim N;
};

static struct k start(struct arena *a, int variant, enum ir_stage stage)
{
    struct k k = {graph_open(a, "case", stage, NULL, NULL), sizes[variant % OP_CASE_SIZES].C,
                  sizes[(variant * 7 + 3) % OP_CASE_SIZES].C, variant / OP_CASE_SIZES,
                  dim_sym(SYM_N, 1)};
    return k;
}

static ir_id input(struct k *k, const char *name, ir_type_id type)
{
    return ir_add_typed(k->g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

static ir_id mat(struct k *k, const char *name, struct ir_dim rows, int64_t cols)
{
    return input(k, name, ir_type2(k->g, IR_f32, rows, dim_const(cols)));
}

static ir_id vec(struct k *k, const char *name, int64_t n)
{
    return input(k, name, ir_type1(k->g, IR_f32, dim_const(n)));
}

static ir_id ids(struct k *k, int64_t limit)
{
    return input(k, str_fmt(k->g->arena, "ids.%lld", (long long)limit),
                 ir_type1(k->g, IR_i32, k->N));
}

static ir_id scalar(struct k *k, const char *name)
{
    return input(k, name, 0);
}

static struct ir_graph *finish(struct k *k, ir_id n)
{
    const struct ir_type *t = ir_ty(k->g, n);
    if (t->dtype != IR_tuple) {
        ir_output(k->g, "out", n);
        return k->g;
    }
    uint32_t count = t->count;
    for (uint32_t i = 0; i < count; i++)
        ir_output(k->g, str_fmt(k->g->arena, "out.%u", i), ir_get(k->g, n, i));
    return k->g;
}

#define BUILD(name)                                                                                \
    static struct ir_graph *build_##name(struct arena *a __attribute__((unused)), int variant)

/* ---- leaves, elementwise, reductions, views ---- */

BUILD(param)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, ir_add_typed(k.g, OP_param, ir_type1(k.g, IR_f32, dim_const(k.C)), NO_SRCS,
                                   ATTRS(A_STR(name, "model.norm.weight")), "model.norm.weight"));
}

BUILD(input)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, mat(&k, "x", k.N, k.C));
}

BUILD(const)
{
    struct k k = start(a, variant, STAGE_T);
    ir_type_id t = k.option ? ir_type2(k.g, IR_f32, k.N, dim_const(k.C)) : 0;
    return finish(&k, ir_add_typed(k.g, OP_const, t, NO_SRCS, ATTRS(A_NUM(value, -0.625)), NULL));
}

BUILD(get)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id t = ir_add(k.g, OP_cross_entropy, SRCS(mat(&k, "x", k.N, k.C), ids(&k, k.C)), NO_ATTRS,
                     NULL);
    ir_output(k.g, "lse", ir_get(k.g, t, 1));
    return finish(&k, ir_get(k.g, t, 0));
}

static struct ir_graph *unary(struct arena *a, int variant, enum ir_op op, const char *name)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id x = k.option == 1 ? vec(&k, name, k.C) : mat(&k, name, k.N, k.C);
    return finish(&k, ir_unary(k.g, op, x));
}

/* Every form of broadcasting, in both orders. */
static struct ir_graph *binary(struct arena *a, int variant, enum ir_op op, const char *second)
{
    struct k k = start(a, variant, STAGE_T);
    const char *first = k.option == 4 && *second == 'p' ? "pos.x" : "x"; /* it becomes the divisor */
    ir_id x = k.option == 5   ? mat(&k, first, k.N, 1)
              : k.option == 6 ? vec(&k, first, k.C)
                              : mat(&k, first, k.N, k.C);
    ir_id y = k.option == 1   ? mat(&k, second, k.N, 1)
              : k.option == 3 ? scalar(&k, second)
              : k.option == 2 || k.option == 5 ? vec(&k, second, k.C)
                                               : mat(&k, second, k.N, k.C);
    return finish(&k, k.option == 4 ? ir_binary(k.g, op, y, x) : ir_binary(k.g, op, x, y));
}

#define UNARY(op, name)                                                                            \
    BUILD(op)                                                                                      \
    {                                                                                              \
        return unary(a, variant, OP_##op, name);                                                   \
    }
#define BINARY(op, name)                                                                           \
    BUILD(op)                                                                                      \
    {                                                                                              \
        return binary(a, variant, OP_##op, name);                                                  \
    }
UNARY(neg, "x")
UNARY(exp, "x")
UNARY(log, "pos")
UNARY(tanh, "x")
UNARY(sigmoid, "x")
UNARY(sqrt, "pos")
UNARY(rsqrt, "pos")
UNARY(recip, "pos")
UNARY(round_bf16, "x")
UNARY(rowsum, "x")
UNARY(rowmax, "x")
UNARY(sum, "x")
UNARY(colsum, "x")
BINARY(add, "y")
BINARY(sub, "y")
BINARY(mul, "y")
BINARY(div, "pos")
BINARY(max, "y")
BINARY(min, "y")

BUILD(slice)
{
    struct k k = start(a, variant, STAGE_T);
    int64_t from = k.C / 3, to = from + 1 + k.C / 4;
    if (k.option == 0) return finish(&k, ir_slice(k.g, mat(&k, "x", k.N, k.C), 1, from, to));
    if (k.option == 1)
        return finish(&k, ir_slice(k.g, mat(&k, "x", dim_const(k.C), k.C2), 0, from, to));
    struct ir_dim d[3] = {dim_const(3), dim_const(k.C), dim_const(k.C2)};
    return finish(&k, ir_slice(k.g, input(&k, "x", type_add(k.g->types, IR_f32, 3, d)), 1, from, to));
}

BUILD(concat)
{
    struct k k = start(a, variant, STAGE_T);
    if (k.option == 0)
        return finish(&k, ir_add(k.g, OP_concat,
                                 SRCS(mat(&k, "x", k.N, k.C), mat(&k, "y", k.N, k.C2),
                                      mat(&k, "z", k.N, 1)),
                                 ATTRS(A_INT(axis, 1)), NULL));
    return finish(&k, ir_add(k.g, OP_concat,
                             SRCS(mat(&k, "x", dim_const(k.C), 5), mat(&k, "y", dim_const(k.C2), 5)),
                             ATTRS(A_INT(axis, 0)), NULL));
}

BUILD(reshape)
{
    struct k k = start(a, variant, STAGE_T);
    if (k.option == 0)
        return finish(&k, ir_reshape(k.g, mat(&k, "x", k.N, 3 * k.C),
                                     ir_type2(k.g, IR_f32, dim_scale(k.N, 3), dim_const(k.C))));
    return finish(&k, ir_reshape(k.g, mat(&k, "x", dim_const(1), k.C),
                                 ir_type1(k.g, IR_f32, dim_const(k.C))));
}

/* ---- products ---- */

BUILD(matmul)
{
    struct k k = start(a, variant, STAGE_T);
    int64_t o = k.option, wide = o == 7 ? 300 : k.C;
    struct ir_dim C = dim_const(wide), C2 = dim_const(k.C2), K = dim_const(k.C + 2);
    if (o == 0) return finish(&k, ir_matmul(k.g, mat(&k, "x", k.N, wide), mat(&k, "w", C, k.C2), 0, 0, NULL));
    if (o == 1 || o == 7)
        return finish(&k, ir_matmul(k.g, mat(&k, "x", k.N, wide), mat(&k, "w", C2, wide), 0, 1, NULL));
    if (o == 2)
        return finish(&k, ir_matmul(k.g, mat(&k, "x", k.N, wide), mat(&k, "w", k.N, k.C2), 1, 0, NULL));
    if (o == 3)
        return finish(&k, ir_matmul(k.g, mat(&k, "x", K, wide), mat(&k, "w", C2, k.C + 2), 1, 1, NULL));
    bool ta = o == 6, tb = o == 5;
    struct ir_dim x[3] = {dim_const(3), ta ? K : C, ta ? C : K};
    struct ir_dim w[3] = {dim_const(3), tb ? C2 : K, tb ? K : C2};
    return finish(&k, ir_matmul(k.g, input(&k, "x", type_add(k.g->types, IR_f32, 3, x)),
                                input(&k, "w", type_add(k.g->types, IR_f32, 3, w)), ta, tb, NULL));
}

/* ---- mixture of experts ---- */

struct routed {
    int64_t E, k;
    ir_id logits, ids, offsets, order, place;
    struct ir_dim A;
};

static ir_id route(struct k *k, int64_t experts, int64_t slots, ir_id logits)
{
    return ir_add(k->g, OP_moe_route, SRCS(logits, vec(k, "bias", experts)),
                  ATTRS(A_INT(k, slots), A_STR(score, k->option & 1 ? "softmax" : "sigmoid"),
                        A_INT(renormalize, k->option != 2), A_NUM(scale, k->option == 3 ? 2.5 : 1)),
                  NULL);
}

/* Sizes by option: one expert, some, more experts than tokens often reach. */
static struct routed routed(struct k *k)
{
    static const int64_t experts[4] = {3, 8, 1, 33}, slots[4] = {2, 1, 1, 3};
    struct routed r = {experts[k->option & 3], slots[k->option & 3], 0, 0, 0, 0, 0, {0, 0, 0}};
    r.A = dim_scale(k->N, r.k);
    r.logits = mat(k, "logits", k->N, r.E);
    ir_id t = route(k, r.E, r.k, r.logits);
    r.ids = ir_get(k->g, t, 0);
    t = ir_add(k->g, OP_moe_sort, SRCS(r.ids), ATTRS(A_INT(experts, r.E)), NULL);
    r.offsets = ir_get(k->g, t, 0), r.order = ir_get(k->g, t, 1), r.place = ir_get(k->g, t, 2);
    return r;
}

static ir_id expert_weights(struct k *k, int64_t E, int64_t rows, int64_t cols)
{
    struct ir_dim d[3] = {dim_const(E), dim_const(rows), dim_const(cols)};
    return input(k, "w", type_add(k->g->types, IR_f32, 3, d));
}

BUILD(grouped_matmul)
{
    struct k k = start(a, variant, STAGE_T);
    bool tb = k.option < 4;
    struct routed r = routed(&k);
    ir_id x = mat(&k, "x", r.A, k.C);
    ir_id w = tb ? expert_weights(&k, r.E, k.C2, k.C) : expert_weights(&k, r.E, k.C, k.C2);
    return finish(&k, ir_add(k.g, OP_grouped_matmul, SRCS(x, w, r.offsets), ATTRS(A_INT(tb, tb)), NULL));
}

BUILD(grouped_matmul_dw)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k, ir_add(k.g, OP_grouped_matmul_dw,
                             SRCS(mat(&k, "dy", r.A, k.C2), mat(&k, "x", r.A, k.C), r.offsets),
                             NO_ATTRS, NULL));
}

BUILD(moe_route)
{
    struct k k = start(a, variant, STAGE_T);
    int64_t E = k.C + 1;
    return finish(&k, route(&k, E, k.option == 4 ? E : 1 + k.C / 8, mat(&k, "logits", k.N, E)));
}

BUILD(moe_route_grad)
{
    struct k k = start(a, variant, STAGE_T);
    int64_t E = k.C + 1;
    ir_id logits = mat(&k, "logits", k.N, E), t = route(&k, E, 1 + k.C / 8, logits);
    struct ir_attr attr[AK_COUNT];
    size_t n = ir_attrs(k.g, t, attr);
    ir_id chosen = ir_get(k.g, t, 0), dw = mat(&k, "dw", k.N, 1 + k.C / 8);
    return finish(&k, ir_add(k.g, OP_moe_route_grad, SRCS(logits, chosen, dw), attr, n, NULL));
}

BUILD(moe_sort)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k, ir_src(k.g, r.offsets, 0));
}

BUILD(moe_gather)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k, ir_add(k.g, OP_moe_gather, SRCS(mat(&k, "x", k.N, k.C), r.order, r.place),
                             ATTRS(A_INT(k, r.k)), NULL));
}

BUILD(moe_gather_grad)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k, ir_add(k.g, OP_moe_gather_grad, SRCS(mat(&k, "dy", r.A, k.C), r.order, r.place),
                             ATTRS(A_INT(k, r.k)), NULL));
}

BUILD(moe_combine)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k, ir_add(k.g, OP_moe_combine,
                             SRCS(mat(&k, "y", r.A, k.C), mat(&k, "w", k.N, r.k), r.order, r.place),
                             ATTRS(A_INT(k, r.k)), NULL));
}

BUILD(moe_combine_grad)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    ir_id d = mat(&k, "dout", k.N, k.C), y = mat(&k, "y", r.A, k.C), w = mat(&k, "w", k.N, r.k);
    return finish(&k, ir_add(k.g, OP_moe_combine_grad, SRCS(d, y, w, r.order, r.place),
                             ATTRS(A_INT(k, r.k)), NULL));
}

BUILD(moe_load)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k, ir_add_typed(k.g, OP_moe_load, ir_type1(k.g, IR_f32, dim_const(r.E)),
                                   SRCS(r.offsets), NO_ATTRS, NULL));
}

/* ---- tokens ---- */

BUILD(embed)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, ir_add(k.g, OP_embed, SRCS(mat(&k, "table", dim_const(k.C2), k.C), ids(&k, k.C2)),
                             NO_ATTRS, NULL));
}

BUILD(embed_grad)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, ir_add_typed(k.g, OP_embed_grad,
                                   ir_type2(k.g, IR_f32, dim_const(k.C2), dim_const(k.C)),
                                   SRCS(mat(&k, "dy", k.N, k.C), ids(&k, k.C2)), NO_ATTRS, NULL));
}

static ir_id rope_angles(struct k *k, int64_t hd)
{
    return ir_add_typed(k->g, OP_rope_table,
                        ir_type2(k->g, IR_f32, dim_sym(SYM_T, 1), dim_const(hd)), NO_SRCS,
                        ATTRS(A_NUM(theta, k->option == 1 ? 500000 : 10000)), NULL);
}

BUILD(rope_table)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, rope_angles(&k, (k.C + 1) / 2 * 2));
}

BUILD(rope)
{
    struct k k = start(a, variant, STAGE_T);
    int64_t heads = 1 + k.option % 3, hd = (k.C + 1) / 2 * 2;
    return finish(&k, ir_add(k.g, OP_rope, SRCS(mat(&k, "x", k.N, heads * hd), rope_angles(&k, hd)),
                             ATTRS(A_INT(heads, heads), A_INT(head_dim, hd),
                                   A_INT(inverse, k.option == 2)),
                             NULL));
}

static ir_id attend(struct k *k, ir_id *q, ir_id *kk, ir_id *v, struct ir_attr *attr, size_t *n)
{
    static const int64_t heads[4] = {1, 4, 4, 3}, kv[4] = {1, 2, 4, 1}, window[4] = {0, 0, 3, 1};
    int64_t o = k->option, hd = k->C;
    const struct ir_attr all[] = {A_INT(heads, heads[o]), A_INT(kv_heads, kv[o]), A_INT(head_dim, hd),
                                  A_NUM(scale, o == 3 ? 0.3 : 1 / sqrt((double)hd)),
                                  A_INT(window, window[o])};
    *n = window[o] ? 5 : 4; /* no window: no attribute */
    memcpy(attr, all, sizeof all);
    *q = mat(k, "q", k->N, heads[o] * hd);
    *kk = mat(k, "k", k->N, kv[o] * hd);
    *v = mat(k, "v", k->N, kv[o] * hd);
    return ir_add(k->g, OP_attention, SRCS(*q, *kk, *v), attr, *n, NULL);
}

BUILD(attention)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id q, kk, v;
    struct ir_attr attr[5];
    size_t n;
    return finish(&k, attend(&k, &q, &kk, &v, attr, &n));
}

BUILD(attention_grad)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id q, kk, v;
    struct ir_attr attr[5];
    size_t n;
    ir_id t = attend(&k, &q, &kk, &v, attr, &n), o = ir_get(k.g, t, 0), lse = ir_get(k.g, t, 1);
    ir_id d = mat(&k, "do", k.N, ir_cols(k.g, o).add);
    return finish(&k, ir_add(k.g, OP_attention_grad, SRCS(q, kk, v, o, lse, d), attr, n, NULL));
}

/* ---- depth ---- */

enum { MAX_SOURCES = 10, MAX_QUERIES = 7 };

struct depth {
    uint32_t n, q;
    ir_id u[MAX_QUERIES], v[MAX_SOURCES];
};

/* Sources and queries by option; option 3 has logits that overflow exp without the maximum taken off. */
static struct depth depth(struct k *k)
{
    static const uint32_t n[4] = {2, 1, 10, 5}, q[4] = {3, 2, 7, 1};
    struct depth d = {n[k->option & 3], q[k->option & 3], {0}, {0}};
    struct arena *a = k->g->arena;
    for (uint32_t i = 0; i < d.q; i++)
        d.u[i] = vec(k, str_fmt(a, "%s.u%u", k->option == 3 ? "big" : "q", i), k->C);
    for (uint32_t j = 0; j < d.n; j++) d.v[j] = mat(k, str_fmt(a, "v%u", j), k->N, k->C);
    return d;
}

/* Accumulators for all sources (options 1, 2), every second one (4) or none; fills `have`. */
static size_t accumulators(struct k *k, uint32_t n, ir_id *src, char *have)
{
    size_t count = 0;
    for (uint32_t j = 0; j < n; j++) {
        bool use = k->option == 1 || k->option == 2 || (k->option == 4 && j % 2 == 1);
        have[j] = use ? '1' : '0';
        if (use) src[count++] = mat(k, str_fmt(k->g->arena, "acc%u", j), k->N, k->C);
    }
    have[n] = 0;
    return count;
}

static ir_id mix(struct k *k, const struct depth *d, uint32_t i)
{
    ir_id src[1 + MAX_SOURCES] = {d->u[i]};
    memcpy(src + 1, d->v, d->n * sizeof *src);
    return ir_add(k->g, OP_depth_mix, src, 1 + d->n,
                  ATTRS(A_STR(site, "site"), A_INT(sources, d->n), A_NUM(eps, 1e-6)), NULL);
}

BUILD(depth_mix)
{
    struct k k = start(a, variant, STAGE_T);
    struct depth d = depth(&k);
    return finish(&k, mix(&k, &d, 0));
}

BUILD(depth_mix_grad)
{
    struct k k = start(a, variant, STAGE_T);
    struct depth d = depth(&k);
    ir_id t = mix(&k, &d, 0), src[6 + 2 * MAX_SOURCES];
    char have[MAX_SOURCES + 1];
    src[0] = mat(&k, "dh", k.N, k.C), src[1] = ir_get(k.g, t, 0), src[2] = d.u[0];
    for (uint32_t i = 0; i < 3; i++) src[3 + i] = ir_get(k.g, t, 1 + i);
    memcpy(src + 6, d.v, d.n * sizeof *src);
    size_t n = 6 + d.n + accumulators(&k, d.n, src + 6 + d.n, have);
    return finish(&k, ir_add(k.g, OP_depth_mix_grad, src, n,
                             ATTRS(A_STR(site, "site"), A_INT(sources, d.n), A_STR(have, have)), NULL));
}

static ir_id inter(struct k *k, const struct depth *d)
{
    ir_id src[MAX_QUERIES + MAX_SOURCES];
    memcpy(src, d->u, d->q * sizeof *src);
    memcpy(src + d->q, d->v, d->n * sizeof *src);
    return ir_add(k->g, OP_depth_inter, src, d->q + d->n,
                  ATTRS(A_INT(sources, d->n), A_INT(queries, d->q), A_NUM(eps, 1e-6)), NULL);
}

BUILD(depth_inter)
{
    struct k k = start(a, variant, STAGE_T);
    struct depth d = depth(&k);
    return finish(&k, inter(&k, &d));
}

/* delta is an input of its own: in a program it belongs to the merged mix, not to this part. */
BUILD(depth_inter_grad)
{
    struct k k = start(a, variant, STAGE_T);
    struct depth d = depth(&k);
    ir_id t = inter(&k, &d), src[2 + 4 * MAX_QUERIES + 2 * MAX_SOURCES];
    ir_id lse = ir_get(k.g, t, d.q + 2);
    char have[MAX_SOURCES + 1];
    src[0] = ir_get(k.g, t, d.q), src[1] = ir_get(k.g, t, d.q + 1);
    for (uint32_t i = 0; i < d.q; i++) {
        src[2 + i] = d.u[i];
        src[2 + d.q + i] = mat(&k, str_fmt(k.g->arena, "dh%u", i), k.N, k.C);
        src[2 + 2 * d.q + i] = mat(&k, str_fmt(k.g->arena, "delta%u", i), k.N, 1);
        /* the whole mix has more sources, so a larger lse */
        src[2 + 3 * d.q + i] = ir_binary(k.g, OP_add, ir_slice(k.g, lse, 1, i, i + 1),
                                         mat(&k, str_fmt(k.g->arena, "pos%u", i), k.N, 1));
    }
    memcpy(src + 2 + 4 * d.q, d.v, d.n * sizeof *src);
    size_t n = 2 + 4 * d.q + d.n;
    n += accumulators(&k, d.n, src + n, have);
    return finish(&k, ir_add(k.g, OP_depth_inter_grad, src, n,
                             ATTRS(A_INT(sources, d.n), A_INT(queries, d.q), A_STR(have, have)), NULL));
}

/* ---- loss ---- */

static ir_id logits(struct k *k)
{
    return mat(k, k->option ? "big.logits" : "logits", k->N, k->C);
}

BUILD(cross_entropy)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, ir_add(k.g, OP_cross_entropy, SRCS(logits(&k), ids(&k, k.C)), NO_ATTRS, NULL));
}

BUILD(cross_entropy_grad)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id x = logits(&k), target = ids(&k, k.C);
    ir_id lse = ir_get(k.g, ir_add(k.g, OP_cross_entropy, SRCS(x, target), NO_ATTRS, NULL), 1);
    return finish(&k, ir_add(k.g, OP_cross_entropy_grad, SRCS(x, target, lse, mat(&k, "d", k.N, 1)),
                             NO_ATTRS, NULL));
}

BUILD(count_valid)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, ir_add(k.g, OP_count_valid, SRCS(ids(&k, 1 + k.option)), NO_ATTRS, NULL));
}

BUILD(head_loss)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id h = mat(&k, "h", k.N, k.C), w = mat(&k, "w", dim_const(k.C2), k.C);
    return finish(&k, ir_add(k.g, OP_head_loss, SRCS(h, w, ids(&k, k.C2), mat(&k, "d", k.N, 1)),
                             ATTRS(A_INT(chunk, k.option ? 16 : 256)), NULL));
}

BUILD(head_nll)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id h = mat(&k, "h", k.N, k.C), w = mat(&k, "w", dim_const(k.C2), k.C);
    return finish(&k, ir_add(k.g, OP_head_nll, SRCS(h, w, ids(&k, k.C2)),
                             ATTRS(A_INT(chunk, k.option ? 16 : 256)), NULL));
}

/* ---- apply ---- */

/* Options: a matrix, a vector, a stack of matrices, and a step that is skipped. */
static ir_type_id weight_type(struct k *k)
{
    struct ir_dim d[3] = {dim_const(3), dim_const(k->C2), dim_const(k->C)};
    return k->option == 1   ? ir_type1(k->g, IR_f32, d[2])
           : k->option == 2 ? type_add(k->g->types, IR_f32, 3, d)
                            : ir_type2(k->g, IR_f32, d[1], d[2]);
}

static ir_id ctl(struct k *k)
{
    return vec(k, k->option == 3 ? "ctl0" : "ctl", 4);
}

BUILD(adamw)
{
    struct k k = start(a, variant, STAGE_T);
    ir_type_id t = weight_type(&k);
    ir_id p = input(&k, "p", t), g = input(&k, "g", t), m = input(&k, "m", t), v = input(&k, "pos.v", t);
    return finish(&k, ir_add(k.g, OP_adamw, SRCS(p, g, m, v, ctl(&k), vec(&k, "hyper", 4)),
                             ATTRS(A_NUM(beta1, 0.9), A_NUM(beta2, 0.95), A_NUM(eps, 1e-8),
                                   A_NUM(weight_decay, k.option == 1 ? 0 : 0.1)),
                             NULL));
}

BUILD(momentum)
{
    struct k k = start(a, variant, STAGE_T);
    ir_type_id t = weight_type(&k);
    ir_id g = input(&k, "g", t), m = input(&k, "m", t);
    return finish(&k, ir_add(k.g, OP_momentum, SRCS(g, m, ctl(&k), vec(&k, "hyper", 4)),
                             ATTRS(A_NUM(momentum, 0.95)), NULL));
}

BUILD(muon_step)
{
    struct k k = start(a, variant, STAGE_T);
    ir_type_id t = weight_type(&k);
    ir_id p = input(&k, "p", t), x = input(&k, "x", t);
    return finish(&k, ir_add(k.g, OP_muon_step, SRCS(p, x, ctl(&k), vec(&k, "hyper", 4)),
                             ATTRS(A_NUM(scale, 1.6), A_NUM(weight_decay, 0.1)), NULL));
}

BUILD(grad_norm)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id loss = scalar(&k, "loss"), x = mat(&k, "g0", dim_const(k.C2), k.C), y = vec(&k, "g1", k.C);
    ir_id z = mat(&k, "g2", dim_const(97), 3 * k.C2);
    return finish(&k, ir_add(k.g, OP_grad_norm, SRCS(loss, x, y, z),
                             ATTRS(A_NUM(clip, k.option ? 0.5 : 0)), NULL));
}

BUILD(balance)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id bias = vec(&k, "bias", k.C), load = vec(&k, "load", k.C);
    return finish(&k, ir_add(k.g, OP_balance, SRCS(bias, load, vec(&k, k.option ? "ctl0" : "ctl", 4)),
                             ATTRS(A_NUM(rate, 1e-3)), NULL));
}

/* ---- kernels ---- */

static ir_id arg(struct ir_graph *r, int64_t index, ir_type_id type)
{
    return ir_add_typed(r, OP_arg, type, NO_SRCS, ATTRS(A_INT(index, index)), NULL);
}

/* Residual add and RMSNorm (option 0), swiglu (1), the gain's gradient (2). */
static struct ir_graph *region(struct k *k)
{
    struct ir_graph *r = graph_open(k->g->arena, "region", STAGE_K, k->g->types, k->g->names);
    ir_type_id full = ir_type2(r, IR_f32, k->N, dim_const(k->C));
    ir_id x = arg(r, 0, full), y = arg(r, 1, full);
    if (k->option == 0) {
        ir_id h = ir_binary(r, OP_add, x, y), gain = arg(r, 2, ir_type1(r, IR_f32, dim_const(k->C)));
        ir_id mean = ir_binary(r, OP_mul, ir_unary(r, OP_rowsum, ir_binary(r, OP_mul, h, h)),
                               ir_const(r, 1.0 / (double)k->C));
        ir_id rms = ir_unary(r, OP_rsqrt, ir_binary(r, OP_add, mean, ir_const(r, 1e-6)));
        ir_output(r, "h", h);
        ir_output(r, "rms", rms);
        ir_output(r, "norm", ir_binary(r, OP_mul, ir_binary(r, OP_mul, h, rms), gain));
    } else if (k->option == 1) {
        ir_id s = ir_binary(r, OP_mul, x, ir_unary(r, OP_sigmoid, x));
        ir_output(r, "act", ir_binary(r, OP_mul, s, y));
    } else {
        ir_output(r, "sum", ir_unary(r, OP_colsum, ir_binary(r, OP_mul, x, y)));
        ir_output(r, "max", ir_unary(r, OP_rowmax, ir_binary(r, OP_sub, x, y)));
    }
    return r;
}

static struct ir_graph *with_region(struct arena *a, int variant)
{
    struct k k = start(a, variant, STAGE_K);
    ir_id src[3] = {mat(&k, "x", k.N, k.C), mat(&k, "y", k.N, k.C)};
    if (k.option == 0) src[2] = vec(&k, "gain", k.C);
    struct ir_graph *r = region(&k);
    vec_push(k.g->arena, &k.g->region, r);
    ir_type_id e[3], type;
    for (size_t i = 0; i < r->out.n; i++) e[i] = ir_at(r, r->out.p[i].id)->type;
    type = r->out.n == 1 ? e[0] : type_tuple(k.g->types, e, (uint32_t)r->out.n);
    return finish(&k, ir_add_typed(k.g, OP_rows, type, src, k.option == 0 ? 3 : 2,
                                   ATTRS(A_INT(region, 0)), NULL));
}

BUILD(rows)
{
    return with_region(a, variant);
}

BUILD(arg)
{
    return with_region(a, variant);
}

BUILD(pack)
{
    struct k k = start(a, variant, STAGE_K);
    ir_id w = mat(&k, "w", dim_const(k.C2), k.C);
    ir_id packed = ir_add_typed(k.g, OP_pack, ir_at(k.g, w)->type, SRCS(w), ATTRS(A_INT(tb, 1)), NULL);
    return finish(&k, ir_matmul(k.g, mat(&k, "x", k.N, k.C), packed, 0, 1, NULL));
}

/* ---- the table: how many options each op has ---- */

#define CASE(op, options) {#op, build_##op, OP_CASE_SIZES *(options)}
const struct op_case op_cases[] = {
    CASE(param, 1), CASE(input, 1), CASE(const, 2), CASE(arg, 1), CASE(get, 1),
    CASE(neg, 2), CASE(exp, 2), CASE(log, 2), CASE(tanh, 2), CASE(sigmoid, 2), CASE(sqrt, 2),
    CASE(rsqrt, 2), CASE(recip, 2), CASE(round_bf16, 2),
    CASE(add, 7), CASE(sub, 7), CASE(mul, 7), CASE(div, 7), CASE(max, 7), CASE(min, 7),
    CASE(rowsum, 1), CASE(rowmax, 1), CASE(colsum, 1), CASE(sum, 2),
    CASE(slice, 3), CASE(concat, 2), CASE(reshape, 2),
    CASE(matmul, 8), CASE(grouped_matmul, 8), CASE(grouped_matmul_dw, 4),
    CASE(embed, 1), CASE(embed_grad, 1), CASE(rope_table, 2), CASE(rope, 3), CASE(attention, 4), CASE(attention_grad, 4),
    CASE(depth_mix, 4), CASE(depth_mix_grad, 5), CASE(depth_inter, 4), CASE(depth_inter_grad, 5),
    CASE(cross_entropy, 2), CASE(cross_entropy_grad, 2), CASE(count_valid, 2), CASE(head_loss, 2),
    CASE(head_nll, 2),
    CASE(moe_route, 5), CASE(moe_route_grad, 4), CASE(moe_sort, 4), CASE(moe_gather, 4),
    CASE(moe_gather_grad, 4), CASE(moe_combine, 4), CASE(moe_combine_grad, 4), CASE(moe_load, 4),
    CASE(adamw, 4), CASE(momentum, 4), CASE(muon_step, 4), CASE(grad_norm, 2), CASE(balance, 2),
    CASE(rows, 3), CASE(pack, 1),
};
const size_t op_case_count = sizeof op_cases / sizeof *op_cases;

const struct op_case *op_case_find(enum ir_op op)
{
    for (size_t i = 0; i < op_case_count; i++)
        if (!strcmp(op_cases[i].name, op_info(op)->name)) return &op_cases[i];
    return NULL;
}

struct ir_bind op_case_bind(int variant)
{
    return (struct ir_bind){sizes[variant % OP_CASE_SIZES].B, sizes[variant % OP_CASE_SIZES].T};
}

ir_id op_case_node(const struct ir_graph *g, const struct op_case *c)
{
    for (ir_id n = (ir_id)g->node.n; n-- > 0;)
        if (!strcmp(op_info((enum ir_op)ir_at(g, n)->op)->name, c->name)) return n;
    return IR_NONE;
}

/* ---- inputs ---- */

static double uniform(uint64_t *state) /* 0..1, splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

static bool begins(const char *name, const char *with)
{
    return !strncmp(name, with, strlen(with));
}

static double element(const char *name, int64_t i, uint64_t *state)
{
    static const double control[4] = {1.5, 0.625, 1, 0}, hyper[4] = {0.01, 0.271, 0.142625, 0};
    double x = uniform(state);
    if (begins(name, "ids.")) return floor(x * (atof(name + 4) + 1)) - 1;
    if (begins(name, "pos")) return 0.1 + 1.9 * x;
    if (begins(name, "big")) return 120 * x - 60;
    if (begins(name, "load")) return floor(10 * x);
    if (begins(name, "ctl")) return i == 2 && name[3] == '0' ? 0 : control[i & 3];
    if (begins(name, "hyper")) return hyper[i & 3];
    return 3 * x - 1.5;
}

struct ir_named *op_case_inputs(struct arena *a, const struct ir_graph *g, struct ir_bind b,
                                uint64_t seed, size_t *n)
{
    struct ir_named *in = NEW(a, struct ir_named, g->node.n);
    *n = 0;
    for (ir_id x = 0; x < g->node.n; x++) {
        if (ir_at(g, x)->op != OP_input && ir_at(g, x)->op != OP_param) continue;
        struct ir_named *v = &in[(*n)++];
        v->name = ir_word(g, x, AK_name, "");
        v->n = type_count(g->types, ir_at(g, x)->type, b);
        double *p = NEW(a, double, v->n);
        uint64_t state = seed ^ hash_bytes(v->name, strlen(v->name), 7);
        for (int64_t i = 0; i < v->n; i++) p[i] = (double)(float)element(v->name, i, &state);
        v->v = p;
    }
    return in;
}
