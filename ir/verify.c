/* Invariants of a graph, checked after every pass (--verify-each, always on in tests). */
#include "graph.h"

static const char *check_node(struct ir_graph *g, ir_id n, enum ir_stage stage)
{
    const struct ir_node *x = ir_at(g, n);
    if (x->op >= OP_COUNT) return "no such operation";
    const struct op_info *op = op_info((enum ir_op)x->op);
    if (!(op->stages & (unsigned)stage)) return "operation is not legal in this stage";
    ir_type_id small[64], *types = x->nsrc <= 64 ? small : NEW(g->arena, ir_type_id, x->nsrc);
    for (uint32_t i = 0; i < x->nsrc; i++) {
        if (ir_src(g, n, i) >= n) return "operand is not earlier";
        types[i] = ir_at(g, ir_src(g, n, i))->type;
    }
    struct ir_attr attr[AK_COUNT];
    size_t nattr = ir_attrs(g, n, attr);
    struct shape_ctx c = {g, g->types, types, x->nsrc, attr, nattr, x->type};
    ir_type_id type;
    const char *why = "shape rule failed";
    if (!op_shape((enum ir_op)x->op, &c, &type, &why)) return why;
    if (type != x->type) return "type is not what the operands give";
    if (x->op == OP_rows) {
        int64_t r = ir_int(g, n, AK_region, -1);
        if (r < 0 || r >= (int64_t)g->region.n) return "no such region";
        if (stage == STAGE_T) return "a region before fusion";
    }
    return NULL;
}

/* Which source an op's result element `index` replaces in place; -1 where it has memory of its own. */
static int replaces(const struct ir_graph *g, ir_id n, uint32_t index)
{
    const struct ir_node *x = ir_at(g, n);
    switch (x->op) {
    case OP_adamw: return index == 0 ? 0 : (int)index + 1;
    case OP_momentum: return index == 1 ? 1 : -1;
    case OP_muon_step:
    case OP_balance: return 0;
    default: return -1;
    }
}

/* A value replaced in place must have no later reader. */
static const char *check_in_place(struct ir_graph *g, ir_id n)
{
    const struct ir_node *x = ir_at(g, n);
    if (!(op_info((enum ir_op)x->op)->flags & F_STATE)) return NULL;
    uint32_t results = ir_ty(g, n)->dtype == IR_tuple ? ir_ty(g, n)->count : 1;
    for (uint32_t i = 0; i < results; i++) {
        int s = replaces(g, n, i);
        if (s < 0) continue;
        ir_id old = ir_src(g, n, (uint32_t)s);
        for (ir_id m = n + 1; m < g->node.n; m++)
            for (uint32_t k = 0; k < ir_at(g, m)->nsrc; k++)
                if (ir_src(g, m, k) == old) return "a replaced value is read afterwards";
    }
    return NULL;
}

const char *graph_verify(struct ir_graph *g, enum ir_stage stage)
{
    if (stage == STAGE_P) stage = STAGE_K;
    for (ir_id n = 0; n < g->node.n; n++) {
        const char *why = check_node(g, n, stage);
        if (!why) why = check_in_place(g, n);
        if (why)
            return str_fmt(g->arena, "%s: node %u (%s %%%s): %s", g->program, n,
                           op_info((enum ir_op)ir_at(g, n)->op)->name, ir_name(g, n), why);
    }
    for (size_t i = 0; i < g->out.n; i++) {
        if (g->out.p[i].id >= g->node.n) return "an output that does not exist";
        for (size_t k = 0; k < i; k++)
            if (g->out.p[k].name == g->out.p[i].name) return "two outputs of one name";
    }
    for (size_t r = 0; r < g->region.n; r++) {
        const char *why = graph_verify(g->region.p[r], STAGE_K);
        if (why) return why;
    }
    return NULL;
}
