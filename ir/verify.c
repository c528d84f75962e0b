/* Invariants of a graph, checked after every pass (--verify-each, always on in tests). */
#include "panel.h"

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

/* What is narrow is float32, is no named value and knows its words. */
static const char *check_narrow(const struct ir_graph *g, ir_id n)
{
    const char *w = ir_word(g, n, AK_narrow, NULL);
    if (!w) return NULL;
    const struct ir_type *t = ir_ty(g, n);
    bool tuple = t->dtype == IR_tuple;
    if (strlen(w) != (tuple ? t->count : 1) || strspn(w, "01") != strlen(w))
        return "`narrow` is a 0 or 1 for each result";
    for (uint32_t i = 0; w[i]; i++) {
        const struct ir_type *e =
            tuple ? type_get(g->types, type_elem(g->types, ir_at(g, n)->type, i)) : t;
        if (w[i] == '1' && e->dtype != IR_f32) return "a narrow result that is not float32";
    }
    return NULL;
}

/* Panels and rows of bf16 are of float32 matrices, and only products and embeddings read them, and
 * absorbed attention rows of bf16. */
static const char *check_store(const struct ir_graph *g, ir_id n)
{
    const char *w = ir_word(g, n, AK_store, NULL);
    const struct ir_type *t = ir_ty(g, n);
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    if (w) {
        enum ir_store s = store_of_word(w);
        if (s == STORE_none || s == STORE_KINDS)
            return "`store` is rows, rows_bf16, f32, bf16 or i8";
        if (op != OP_param && op != OP_input) return "`store` of what is no parameter";
        for (unsigned i = 0; i < t->rank; i++)
            if (!dim_is_const(t->dim[i])) return "a stored parameter of run-time size";
        if (t->dtype != IR_f32 || (s != STORE_rows && t->rank != 2 && t->rank != 3))
            return "panels or bf16 of what is no matrix of float32";
    }
    for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) {
        enum ir_store s = ir_stored(g, ir_src(g, n, i));
        if (s <= STORE_rows) continue;
        bool product = (op == OP_matmul || op == OP_grouped_matmul) && i == 1 &&
                       ir_int(g, n, AK_tb, op == OP_grouped_matmul) && !ir_int(g, n, AK_ta, 0);
        bool one = op != OP_matmul || ir_ty(g, n)->rank == 2;
        bool absorbed = s == STORE_rows_bf16 && op == OP_mla_cached && i == 1;
        if (!(product && one) && !(op == OP_embed && i == 0) && !absorbed)
            return "an operation that does not read panels";
    }
    return NULL;
}

/* Which source an op's result element `index` replaces in place; -1 where it has memory of its own.
 */
static int replaces(const struct ir_graph *g, ir_id n, uint32_t index)
{
    const struct ir_node *x = ir_at(g, n);
    switch (x->op) {
    case OP_adamw: return index == 0 ? 0 : (int)index + 1;
    case OP_momentum: return index == 1 ? 1 : -1;
    case OP_muon_step:
    case OP_cache_write:
    case OP_qk_clip:
    case OP_balance: return 0;
    case OP_conv_cached: return index == 1 ? 2 : -1;
    case OP_kda_cached: return index == 1 ? 5 : -1;
    default: return -1;
    }
}

/* The value whose memory n shows. */
static ir_id owner(const struct ir_graph *g, ir_id n)
{
    while (ir_at(g, n)->op == OP_slice || ir_at(g, n)->op == OP_reshape) n = ir_src(g, n, 0);
    return n;
}

/* The last node that reads each owner (views are read where their readers are), node.n for outputs.
 */
static ir_id *last_readers(const struct ir_graph *g, struct arena *a)
{
    ir_id *last = NEW(a, ir_id, g->node.n);
    for (ir_id n = 0; n < g->node.n; n++)
        for (uint32_t k = 0; k < ir_at(g, n)->nsrc && owner(g, n) == n; k++)
            last[owner(g, ir_src(g, n, k))] = n;
    for (size_t k = 0; k < g->out.n; k++) last[owner(g, g->out.p[k].id)] = (ir_id)g->node.n;
    return last;
}

/* A value replaced in place must have no later reader. */
static const char *check_in_place(const struct ir_graph *g, ir_id n, const ir_id *last)
{
    uint32_t results = ir_ty(g, n)->dtype == IR_tuple ? ir_ty(g, n)->count : 1;
    for (uint32_t i = 0; i < results; i++) {
        int s = replaces(g, n, i);
        if (s >= 0 && last[owner(g, ir_src(g, n, (uint32_t)s))] > n)
            return "a replaced value is read afterwards";
    }
    return NULL;
}

/* Checks of single nodes, then of what needs all of them to be sound. */
static const char *check_nodes(struct ir_graph *g, enum ir_stage stage, ir_id *at)
{
    const char *why = NULL;
    for (*at = 0; *at < g->node.n; ++*at)
        if ((why = check_node(g, *at, stage)) || (why = check_narrow(g, *at)) ||
            (why = check_store(g, *at)))
            return why;
    for (size_t i = 0; i < g->out.n; i++) {
        if (g->out.p[i].id >= g->node.n) return "an output that does not exist";
        if (ir_narrow(g, g->out.p[i].id)) return "an output in two bytes";
    }
    struct arena *a = arena_open("verify");
    const ir_id *last = last_readers(g, a);
    for (*at = 0; *at < g->node.n && !why; ++*at)
        if (op_info((enum ir_op)ir_at(g, *at)->op)->flags & F_STATE)
            why = check_in_place(g, *at, last);
    if (why) --*at;
    arena_close(a);
    return why;
}

const char *graph_verify(struct ir_graph *g, enum ir_stage stage)
{
    if (stage == STAGE_P) stage = STAGE_K;
    ir_id n;
    const char *why = check_nodes(g, stage, &n);
    if (why && n == g->node.n) return str_fmt(g->arena, "%s: %s", g->program, why);
    if (why) {
        enum ir_op op = (enum ir_op)ir_at(g, n)->op;
        return str_fmt(g->arena, "%s: node %u (%s %%%s): %s", g->program, n,
                       op < OP_COUNT ? op_info(op)->name : "?", ir_name(g, n), why);
    }
    struct map seen;
    map_init(&seen, g->arena);
    for (size_t i = 0; i < g->out.n; i++)
        if ((*map_num(&seen, g->out.p[i].name))++) return "two outputs of one name";
    for (size_t r = 0; r < g->region.n; r++) {
        why = graph_verify(g->region.p[r], STAGE_K);
        if (why) return why;
    }
    return NULL;
}
