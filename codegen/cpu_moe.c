/* Mixture of experts on the CPU: routing, sorting, gathering, combining; products are gemm's. */
#include "codegen/cpu.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/moe.c.inc"
    ;

static struct cg_var number(const struct cg_emit *e, const char *name, int64_t value)
{
    return (struct cg_var){name, cg_number(e, value)};
}

static int64_t src_ld(const struct cg_emit *e, uint32_t i)
{
    return cg_src_ld(e->g, e->n, i);
}

/* moe_route, weights of experts that are given, and the gradient of both. */
static void route(const struct cg_emit *e)
{
    enum ir_op op = (enum ir_op)ir_at(e->g, e->n)->op;
    bool grad = op == OP_moe_route_grad, given = op != OP_moe_route;
    const char *name = op_info(op)->name, *node = ir_name(e->g, e->n);
    int64_t experts = cg_src_cols(e->g, e->n, 0, e->b), rows = cg_src_rows(e->g, e->n, 0, e->b);
    int64_t k = given ? cg_src_cols(e->g, e->n, 1, e->b) : ir_int(e->g, e->n, AK_k, 0);
    bool softmax = !strcmp(ir_word(e->g, e->n, AK_score, "sigmoid"), "softmax");
    const struct cg_var of_scores[] = {number(e, "E", experts), number(e, "K", k),
                                       number(e, "SOFTMAX", softmax)};
    const struct cg_var vars[] = {
        {"SCALE", str_fmt(e->a, "%.9ef", ir_num(e->g, e->n, AK_scale, 1))},
        number(e, "RENORMALIZE", ir_int(e->g, e->n, AK_renormalize, 1)),
        of_scores[2], /* SOFTMAX, which only the gradient asks for again */
    };
    struct str scores = cg_section(e->a, text, "scores", of_scores, 3);
    struct str body = cg_section(e->a, text, name, vars, grad ? 3 : 2);
    struct cg_step *s = cg_add(e->a, e->out, name, str_of(str_fmt(e->a, "%s%s", scores.p, body.p)),
                               *node ? str_fmt(e->a, "%s %s", name, node) : name);
    if (given) cg_need_dense(e->g, e->n, 1);
    switch (op) {
    case OP_moe_route: cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0), R_(1))); break;
    case OP_moe_weights: cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0))); break;
    default: cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), R_(0)));
    }
    if (grad)
        cg_nums(e->a, s, CG_NUMS(src_ld(e, 0), src_ld(e, 2)));
    else
        cg_nums(e->a, s, CG_NUMS(src_ld(e, 0)));
    s->scratch = (size_t)((experts + 15) / 16 * 16) * sizeof(float);
    cg_items(s, rows, 32 * experts);
}

static void sort(const struct cg_emit *e)
{
    int64_t experts = ir_int(e->g, e->n, AK_experts, 0);
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "moe_sort", NULL, 0);
    cg_need_dense(e->g, e->n, 0);
    cg_refs(e->a, s, CG_REFS(S_(0), R_(0), R_(1), R_(2)));
    ir_type_id ids = ir_at(e->g, ir_src(e->g, e->n, 0))->type;
    cg_nums(e->a, s, CG_NUMS(type_count(e->g->types, ids, e->b), experts));
    s->scratch = (size_t)experts * sizeof(int32_t);
    s->items = 1;
}

/* A kernel that works on rows of D with k slots a token; `bytes` a column and item. */
static struct cg_step *rows_step(const struct cg_emit *e, const char *name, int64_t items,
                                 int64_t bytes)
{
    int64_t d = cg_src_cols(e->g, e->n, 0, e->b);
    int64_t k = ir_int(e->g, e->n, AK_k, 0);
    const struct cg_var vars[] = {number(e, "D", d), number(e, "K", k)};
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, name, vars, 2);
    cg_items(s, items, bytes * d);
    return s;
}

static void gather(const struct cg_emit *e)
{
    int64_t a = cg_src_cols(e->g, e->n, 1, e->b);
    struct cg_step *s = rows_step(e, "moe_gather", a, 8);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0)));
    cg_nums(e->a, s, CG_NUMS(src_ld(e, 0)));
}

static void gather_grad(const struct cg_emit *e)
{
    int64_t k = ir_int(e->g, e->n, AK_k, 0), tokens = cg_src_cols(e->g, e->n, 2, e->b) / k;
    struct cg_step *s = rows_step(e, "moe_gather_grad", tokens, 4 * (k + 1));
    cg_refs(e->a, s, CG_REFS(S_(0), S_(2), R_(0)));
    cg_nums(e->a, s, CG_NUMS(src_ld(e, 0)));
}

static void combine(const struct cg_emit *e)
{
    int64_t k = ir_int(e->g, e->n, AK_k, 0), tokens = cg_src_rows(e->g, e->n, 1, e->b);
    struct cg_step *s = rows_step(e, "moe_combine", tokens, 4 * (k + 1));
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(3), R_(0)));
    cg_nums(e->a, s, CG_NUMS(src_ld(e, 0), src_ld(e, 1)));
}

static void combine_grad(const struct cg_emit *e)
{
    int64_t k = ir_int(e->g, e->n, AK_k, 0), tokens = cg_src_rows(e->g, e->n, 0, e->b);
    struct cg_step *s = rows_step(e, "moe_combine_grad", tokens, 4 * (2 * k + 1));
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(4), R_(0), R_(1)));
    cg_nums(e->a, s, CG_NUMS(src_ld(e, 0), src_ld(e, 1), src_ld(e, 2)));
}

static void load(const struct cg_emit *e)
{
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "moe_load", NULL, 0);
    cg_refs(e->a, s, CG_REFS(S_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_src_cols(e->g, e->n, 0, e->b) - 1));
    s->items = 1;
}

void cg_cpu_moe(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                const struct cg_target *t, struct cg_lowering *out)
{
    (void)t;
    const struct cg_emit e = {a, g, n, b, out};
    switch (ir_at(g, n)->op) {
    case OP_moe_route:
    case OP_moe_weights:
    case OP_moe_route_grad: route(&e); break;
    case OP_moe_sort: sort(&e); break;
    case OP_moe_gather: gather(&e); break;
    case OP_moe_gather_grad: gather_grad(&e); break;
    case OP_moe_combine: combine(&e); break;
    case OP_moe_combine_grad: combine_grad(&e); break;
    case OP_moe_load: load(&e); break;
    default: BUG("not of the mixture of experts: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
