/* Leaves, elementwise ops, reductions, views, products, kernels. */
#include "op_build.h"

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
    ir_id t =
        ir_add(k.g, OP_cross_entropy, SRCS(mat(&k, "x", k.N, k.C), ids(&k, k.C)), NO_ATTRS, NULL);
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
    const char *first =
        k.option == 4 && *second == 'p' ? "pos.x" : "x"; /* it becomes the divisor */
    ir_id x = k.option == 5   ? mat(&k, first, k.N, 1)
              : k.option == 6 ? vec(&k, first, k.C)
                              : mat(&k, first, k.N, k.C);
    ir_id y = k.option == 1                    ? mat(&k, second, k.N, 1)
              : k.option == 3                  ? scalar(&k, second)
              : k.option == 2 || k.option == 5 ? vec(&k, second, k.C)
                                               : mat(&k, second, k.N, k.C);
    return finish(&k, k.option == 4 ? ir_binary(k.g, op, y, x) : ir_binary(k.g, op, x, y));
}

#define UNARY(op, name)                          \
    BUILD(op)                                    \
    {                                            \
        return unary(a, variant, OP_##op, name); \
    }
#define BINARY(op, name)                          \
    BUILD(op)                                     \
    {                                             \
        return binary(a, variant, OP_##op, name); \
    }
UNARY(neg, "x")
UNARY(exp, "x")
UNARY(log, "pos")
UNARY(tanh, "x")
UNARY(sigmoid, "x")
UNARY(sqrt, "pos")
UNARY(rsqrt, "pos")
UNARY(recip, "pos")
UNARY(softplus, "x")
UNARY(round_bf16, "x")
UNARY(round, "x")
UNARY(rowsum, "x")
UNARY(rowmax, "x")
UNARY(sum, "x")
UNARY(colsum, "x")
UNARY(colmax, "x")
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
    return finish(&k,
                  ir_slice(k.g, input(&k, "x", type_add(k.g->types, IR_f32, 3, d)), 1, from, to));
}

BUILD(concat)
{
    struct k k = start(a, variant, STAGE_T);
    if (k.option == 0)
        return finish(
            &k, ir_add(k.g, OP_concat,
                       SRCS(mat(&k, "x", k.N, k.C), mat(&k, "y", k.N, k.C2), mat(&k, "z", k.N, 1)),
                       ATTRS(A_INT(axis, 1)), NULL));
    return finish(&k,
                  ir_add(k.g, OP_concat,
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
    if (o == 0)
        return finish(&k,
                      ir_matmul(k.g, mat(&k, "x", k.N, wide), mat(&k, "w", C, k.C2), 0, 0, NULL));
    if (o == 1 || o == 7)
        return finish(&k,
                      ir_matmul(k.g, mat(&k, "x", k.N, wide), mat(&k, "w", C2, wide), 0, 1, NULL));
    if (o == 2)
        return finish(&k,
                      ir_matmul(k.g, mat(&k, "x", k.N, wide), mat(&k, "w", k.N, k.C2), 1, 0, NULL));
    if (o == 3)
        return finish(&k,
                      ir_matmul(k.g, mat(&k, "x", K, wide), mat(&k, "w", C2, k.C + 2), 1, 1, NULL));
    bool ta = o == 6, tb = o == 5;
    struct ir_dim x[3] = {dim_const(3), ta ? K : C, ta ? C : K};
    struct ir_dim w[3] = {dim_const(3), tb ? C2 : K, tb ? K : C2};
    return finish(&k, ir_matmul(k.g, input(&k, "x", type_add(k.g->types, IR_f32, 3, x)),
                                input(&k, "w", type_add(k.g->types, IR_f32, 3, w)), ta, tb, NULL));
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
        ir_id h = ir_binary(r, OP_add, x, y),
              gain = arg(r, 2, ir_type1(r, IR_f32, dim_const(k->C)));
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
    ir_id packed =
        ir_add_typed(k.g, OP_pack, ir_at(k.g, w)->type, SRCS(w), ATTRS(A_INT(tb, 1)), NULL);
    return finish(&k, ir_matmul(k.g, mat(&k, "x", k.N, k.C), packed, 0, 1, NULL));
}
