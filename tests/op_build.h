/* What the build functions of op_cases.h share. */
#ifndef STRATA_TESTS_OP_BUILD_H
#define STRATA_TESTS_OP_BUILD_H
#include "op_cases.h"

/* What a build function works with. */
struct k {
    struct ir_graph *g;
    int64_t C, C2, option; /* feature sizes; which form of the op */
    struct ir_dim N;
};

/* An empty graph for a variant. */
struct k start(struct arena *a, int variant, enum ir_stage stage);

static inline ir_id input(struct k *k, const char *name, ir_type_id type)
{
    return ir_add_typed(k->g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

static inline ir_id mat(struct k *k, const char *name, struct ir_dim rows, int64_t cols)
{
    return input(k, name, ir_type2(k->g, IR_f32, rows, dim_const(cols)));
}

static inline ir_id vec(struct k *k, const char *name, int64_t n)
{
    return input(k, name, ir_type1(k->g, IR_f32, dim_const(n)));
}

static inline ir_id ids(struct k *k, int64_t limit)
{
    return input(k, str_fmt(k->g->arena, "ids.%lld", (long long)limit),
                 ir_type1(k->g, IR_i32, k->N));
}

static inline ir_id scalar(struct k *k, const char *name)
{
    return input(k, name, 0);
}

enum { CONTEXT = 256, PAGES = 29, STATES = 7 }; /* of caches */

/* Tokens before those of a call: past of the sequences (0 of the first) times `times`, or as many
 * more as it is below 0. */
static inline ir_id past(struct k *k, int times)
{
    return input(k, str_fmt(k->g->arena, "past%d", times),
                 ir_type1(k->g, IR_i32, dim_sym(SYM_B, 1)));
}

/* Tables of pages for sequences of so many tokens, for 5 sequences at most: in no order, full pages
 * of the third sequence on are shared, and entries behind the last token lead out of memory. */
static inline ir_id pages(struct k *k, int times)
{
    const char *name = str_fmt(k->g->arena, "pages.%d.%d.%d", times, CONTEXT / IR_PAGE, PAGES);
    return input(k, name, ir_type1(k->g, IR_i32, dim_sym(SYM_B, CONTEXT / IR_PAGE)));
}

static inline ir_id states(struct k *k)
{
    return input(k, "states", ir_type1(k->g, IR_i32, dim_sym(SYM_B, 1)));
}

static inline struct ir_graph *finish(struct k *k, ir_id n)
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

/* build_NAME: op_case.build of the op. */
#define BUILD(name) struct ir_graph *build_##name(struct arena *a, int variant)
#define OP(name, sources, shape, vjp, cost, stages, flags) BUILD(name);
#include "op.def"
#endif
