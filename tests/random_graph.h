/* Random graphs for tests of the memory planner and of what runs by its plans. */
#ifndef STRATA_TESTS_RANDOM_GRAPH_H
#define STRATA_TESTS_RANDOM_GRAPH_H
#include "graph.h"

static uint64_t random_seed;

static inline uint32_t random_below(uint32_t n)
{
    random_seed = random_seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_seed >> 33) % n;
}

struct random_maker {
    struct arena *a;
    struct ir_graph *g;
    VEC(ir_id) value; /* f32[N,C] */
    unsigned params;
    const char *prefix; /* of names */
};

static inline ir_id random_leaf(struct random_maker *m, enum ir_op op, const char *name,
                                ir_type_id type)
{
    return ir_add_typed(m->g, op, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

static inline ir_id random_any(struct random_maker *m)
{
    uint32_t near = m->value.n > 6 && random_below(3) ? 6 : (uint32_t)m->value.n;
    return m->value.p[m->value.n - 1 - random_below(near)];
}

static inline ir_type_id random_matrix(struct random_maker *m, int64_t cols)
{
    return ir_type2(m->g, IR_f32, dim_sym(SYM_N, 1), dim_const(cols));
}

static inline int64_t random_cols(struct random_maker *m, ir_id x)
{
    return ir_cols(m->g, x).add;
}

static inline ir_id random_product(struct random_maker *m, ir_id x, int64_t to)
{
    const char *name = str_fmt(m->a, "%sw%u", m->prefix, m->params++);
    ir_type_id t = ir_type2(m->g, IR_f32, dim_const(to), dim_const(random_cols(m, x)));
    return ir_matmul(m->g, x, random_leaf(m, OP_param, name, t), false, true, NULL);
}

static inline void random_concat(struct random_maker *m)
{
    ir_id part[4];
    uint32_t n = 2 + random_below(3);
    for (uint32_t i = 0; i < n; i++)
        part[i] = random_below(3) ? random_product(m, random_any(m), 8 * (1 + random_below(3)))
                                  : random_any(m);
    vec_push(m->a, &m->value, ir_add(m->g, OP_concat, part, n, ATTRS(A_INT(axis, 1)), NULL));
}

static inline void random_slice(struct random_maker *m)
{
    ir_id x = random_any(m);
    int64_t n = random_cols(m, x) / 8, from = random_below((uint32_t)n),
            to = from + 1 + random_below((uint32_t)(n - from));
    vec_push(m->a, &m->value, ir_slice(m->g, x, 1, 8 * from, 8 * to));
}

static inline void random_rope(struct random_maker *m)
{
    ir_id x = random_any(m);
    ir_type_id t = ir_type2(m->g, IR_f32, dim_sym(SYM_T, 1), dim_const(8));
    ir_id table = ir_add_typed(m->g, OP_rope_table, t, NO_SRCS, ATTRS(A_NUM(theta, 1e4)), NULL);
    vec_push(m->a, &m->value,
             ir_add(m->g, OP_rope, SRCS(x, table),
                    ATTRS(A_INT(heads, random_cols(m, x) / 8), A_INT(head_dim, 8)), NULL));
}

/* A mix of some sources and its gradient, which takes over what was gathered so far. */
static inline void random_depth(struct random_maker *m)
{
    ir_id v[3], src[16];
    uint32_t n = 1 + random_below(3), k = 0;
    for (uint32_t i = 0; i < n; i++) v[i] = random_product(m, random_any(m), 16);
    ir_id u = random_leaf(m, OP_param, str_fmt(m->a, "%su", m->prefix),
                          ir_type1(m->g, IR_f32, dim_const(16)));
    ir_id acc[3];
    for (uint32_t i = 0; i < n; i++) acc[i] = random_product(m, random_any(m), 16);
    if (random_below(2)) acc[0] = v[0];
    src[k++] = u;
    for (uint32_t i = 0; i < n; i++) src[k++] = v[i];
    ir_id mix =
        ir_add(m->g, OP_depth_mix, src, k, ATTRS(A_INT(sources, n), A_NUM(eps, 1e-6)), NULL);
    ir_id dh = random_product(m, random_any(m), 16);
    k = 0;
    char have[4] = {0};
    src[k++] = dh, src[k++] = ir_get(m->g, mix, 0), src[k++] = u;
    for (uint32_t i = 1; i < 4; i++) src[k++] = ir_get(m->g, mix, i);
    for (uint32_t i = 0; i < n; i++) src[k++] = v[i];
    for (uint32_t i = 0; i < n; i++) {
        have[i] = random_below(4) ? '1' : '0';
        if (have[i] == '1') src[k++] = acc[i];
    }
    ir_id grad = ir_add(m->g, OP_depth_mix_grad, src, k,
                        ATTRS(A_INT(sources, n), A_NUM(eps, 1e-6), A_STR(have, have)), NULL);
    for (uint32_t i = 0; i < n; i++) vec_push(m->a, &m->value, ir_get(m->g, grad, i));
    vec_push(m->a, &m->value, ir_get(m->g, mix, 0));
}

/* A graph of products, concats, slices, rotations and depth mixes with their gradients, all of
 * f32[N,C]; inputs and outputs are named prefix + x, u, w0 .., out.0 .. */
static inline struct ir_graph *random_graph(struct arena *a, uint64_t seed, enum ir_stage stage,
                                            const char *prefix)
{
    random_seed = seed;
    struct random_maker m = {
        .a = a, .g = graph_open(a, "random", stage, NULL, NULL), .prefix = prefix};
    vec_push(a, &m.value,
             random_leaf(&m, OP_input, str_fmt(a, "%sx", prefix), random_matrix(&m, 24)));
    vec_push(
        a, &m.value,
        ir_add_typed(m.g, OP_const, random_matrix(&m, 16), NO_SRCS, ATTRS(A_NUM(value, 0)), NULL));
    for (uint32_t n = 5 + random_below(40); n; n--) switch (random_below(5)) {
        case 0:
            vec_push(a, &m.value, random_product(&m, random_any(&m), 8 * (1 + random_below(4))));
            break;
        case 1: random_concat(&m); break;
        case 2: random_slice(&m); break;
        case 3: random_depth(&m); break;
        default: random_rope(&m);
        }
    for (uint32_t i = 0; i < 1 + random_below(4); i++)
        ir_output(m.g, str_fmt(a, "%sout.%u", prefix, i),
                  random_below(8) ? random_any(&m) : m.value.p[random_below(2)]);
    return m.g;
}
#endif
