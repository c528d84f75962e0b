/* One check per op: what the evaluator's result must be, said independently of the evaluator. */
#ifndef STRATA_TESTS_EVAL_CHECK_H
#define STRATA_TESTS_EVAL_CHECK_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fd.h"
#include "op_cases.h"
#include <math.h>

/* One variant of a case, evaluated. */
struct ran {
    struct arena *a;
    const struct op_case *c;
    struct ir_graph *g;
    int variant, option;
    struct ir_bind b;
    int64_t N;
    struct ir_named *in;
    size_t nin;
    struct ir_values v;
    ir_id n; /* the node under test */
};

static inline void evaluate(struct ran *r)
{
    const char *why = graph_verify(r->g, r->g->stage);
    if (why) fail_msg("%s %d: %s", r->c->name, r->variant, why);
    r->in = op_case_inputs(r->a, r->g, r->b, 1, &r->nin);
    r->v = ir_eval(r->a, r->g, r->b, r->in, r->nin);
}

static inline const double *src(const struct ran *r, uint32_t i)
{
    return r->v.node[ir_src(r->g, r->n, i)].e[0].v;
}

static inline int64_t src_count(const struct ran *r, uint32_t i)
{
    return r->v.node[ir_src(r->g, r->n, i)].e[0].n;
}

static inline int64_t cols(const struct ran *r, uint32_t i)
{
    return dim_value(ir_cols(r->g, ir_src(r->g, r->n, i)), r->b);
}

static inline int64_t rows(const struct ran *r, uint32_t i)
{
    return dim_value(ir_rows(r->g, ir_src(r->g, r->n, i)), r->b);
}

static inline const double *out(const struct ran *r, uint32_t i)
{
    return r->v.node[r->n].e[i].v;
}

static inline int64_t out_count(const struct ran *r, uint32_t i)
{
    return r->v.node[r->n].e[i].n;
}

static inline int64_t num(const struct ran *r, enum ir_attr_key k)
{
    return ir_int(r->g, r->n, k, 0);
}

static inline void near(const struct ran *r, double got, double want)
{
    if (!(fabs(got - want) <= 1e-11 * fmax(1, fabs(want))))
        fail_msg("%s %d: %.17g, not %.17g", r->c->name, r->variant, got, want);
}

static inline void near_all(const struct ran *r, const double *got, const double *want, int64_t n)
{
    for (int64_t i = 0; i < n; i++) near(r, got[i], want[i]);
}

/* Adds "fd.loss" = sum over the pairs of <value, weight>, and evaluates anew. */
static inline struct fd loss_of(struct ran *r, const ir_id (*pair)[2], size_t n)
{
    ir_id loss = IR_NONE;
    for (size_t i = 0; i < n; i++) {
        ir_id x = ir_unary(r->g, OP_sum, ir_binary(r->g, OP_mul, pair[i][0], pair[i][1]));
        loss = loss == IR_NONE ? x : ir_binary(r->g, OP_add, loss, x);
    }
    ir_output(r->g, "fd.loss", loss);
    evaluate(r);
    return (struct fd){r->g, r->b, r->in, r->nin, "fd.loss"};
}

static inline void slope(const struct ran *r, const struct fd *f, uint32_t operand, uint32_t result)
{
    const char *name = ir_word(r->g, ir_src(r->g, r->n, operand), AK_name, "");
    double error = fd_error(f, name, out(r, result), 2);
    if (!(error <= 1e-6))
        fail_msg("%s %d: slope of %s is off by %g", r->c->name, r->variant, name, error);
}

static inline ir_id fresh(struct ran *r, const char *name, ir_type_id type)
{
    return ir_add_typed(r->g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

/* Bit arithmetic on the float, which the input is. */
static inline double bf16_bits(double x)
{
    float f = (float)x;
    uint32_t u;
    memcpy(&u, &f, 4);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&f, &u, 4);
    return f;
}

/* check_NAME fails the test where a variant of the op's case is not what it should be. */
#define CHECK_OP(name) void check_##name(struct ran *r)
#define OP(name, sources, shape, vjp, cost, stages, flags) CHECK_OP(name);
#include "op.def"
#endif
