/* simplify: algebra that holds bit for bit in floating point. dce: drop what no output needs.
 *
 * Three requirements for a rule: it keeps the type, it makes no new work, it ends (every rule
 * removes a node from the path to its result).
 *
 *   %s = slice %cat {from, to}   with %cat = concat %a, %b   =>   %b
 *   %c = concat (slice %x, 0, k), (slice %x, k, n)           =>   %x
 *   %r = reshape (reshape %x)                                =>   reshape %x */
#include "compiler/pass.h"

/* slice(concat(...)) that takes exactly one piece. */
static ir_id slice_of_concat(struct ir_graph *g, ir_id cat, int64_t axis, int64_t from, int64_t to)
{
    if (ir_at(g, cat)->op != OP_concat || ir_int(g, cat, AK_axis, 0) != axis) return IR_NONE;
    int64_t at = 0;
    for (uint32_t i = 0; i < ir_at(g, cat)->nsrc; i++) {
        int64_t w = ir_ty(g, ir_src(g, cat, i))->dim[axis].add;
        if (at == from && at + w == to) return ir_src(g, cat, i);
        at += w;
    }
    return IR_NONE;
}

/* concat of all the slices of one value, in order. */
static ir_id concat_of_slices(struct ir_graph *g, const ir_id *src, uint32_t n, int64_t axis,
                              ir_type_id type)
{
    ir_id whole = IR_NONE;
    int64_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (ir_at(g, src[i])->op != OP_slice || ir_int(g, src[i], AK_axis, 0) != axis)
            return IR_NONE;
        if (ir_int(g, src[i], AK_from, 0) != at) return IR_NONE;
        at = ir_int(g, src[i], AK_to, 0);
        if (i && ir_src(g, src[i], 0) != whole) return IR_NONE;
        whole = ir_src(g, src[i], 0);
    }
    return ir_at(g, whole)->type == type ? whole : IR_NONE;
}

/* What node n of `from` becomes, given its new operands. */
static ir_id rewrite(struct ir_graph *g, const struct ir_graph *from, ir_id n, const ir_id *src)
{
    const struct ir_node *x = ir_at(from, n);
    ir_id r = IR_NONE;
    switch (x->op) {
    case OP_slice:
        r = slice_of_concat(g, src[0], ir_int(from, n, AK_axis, 0), ir_int(from, n, AK_from, 0),
                            ir_int(from, n, AK_to, 0));
        break;
    case OP_concat:
        r = concat_of_slices(g, src, x->nsrc, ir_int(from, n, AK_axis, 0), x->type);
        break;
    case OP_reshape:
        if (ir_at(g, src[0])->op == OP_reshape) r = ir_reshape(g, ir_src(g, src[0], 0), x->type);
        break;
    default: break;
    }
    return r != IR_NONE ? r : ir_copy(g, from, n, src);
}

static void copy_outputs(struct ir_graph *to, const struct ir_graph *from, const ir_id *map)
{
    for (size_t i = 0; i < from->out.n; i++)
        ir_output(to, intern_text(from->names, from->out.p[i].name), map[from->out.p[i].id]);
}

struct ir_graph *pass_simplify(struct pass_ctx *c, const struct ir_graph *g)
{
    struct ir_graph *r = graph_open(c->arena, g->program, g->stage, g->types, g->names);
    struct arena *s = arena_open("simplify");
    ir_id *map = NEW(s, ir_id, g->node.n);
    for (ir_id n = 0; n < g->node.n; n++) {
        uint32_t k = ir_at(g, n)->nsrc;
        ir_id *src = NEW(s, ir_id, k);
        for (uint32_t i = 0; i < k; i++) src[i] = map[ir_src(g, n, i)];
        map[n] = rewrite(r, g, n, src);
    }
    copy_outputs(r, g, map);
    arena_close(s);
    return r;
}

struct ir_graph *pass_dce(struct pass_ctx *c, const struct ir_graph *g)
{
    struct ir_graph *r = graph_open(c->arena, g->program, g->stage, g->types, g->names);
    struct arena *s = arena_open("dce");
    bool *live = NEW(s, bool, g->node.n);
    ir_id *map = NEW(s, ir_id, g->node.n);
    for (size_t i = 0; i < g->out.n; i++) live[g->out.p[i].id] = true;
    for (ir_id n = (ir_id)g->node.n; n-- > 0;)
        for (uint32_t i = 0; live[n] && i < ir_at(g, n)->nsrc; i++) live[ir_src(g, n, i)] = true;
    for (ir_id n = 0; n < g->node.n; n++) {
        if (!live[n]) continue;
        uint32_t k = ir_at(g, n)->nsrc;
        ir_id *src = NEW(s, ir_id, k);
        for (uint32_t i = 0; i < k; i++) src[i] = map[ir_src(g, n, i)];
        map[n] = ir_copy(r, g, n, src);
    }
    copy_outputs(r, g, map);
    arena_close(s);
    return r;
}
