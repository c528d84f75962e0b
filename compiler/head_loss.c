/* head-loss: the head's product, the cross-entropy and both gradients chunk by chunk, so that
 * [tokens, vocabulary] never exists as a whole.
 *
 *   %z = matmul %h, %w {tb=1}
 *   %c = cross_entropy %z, %t
 *   %d = cross_entropy_grad %z, %t, %lse, %dn       =>   %x = head_loss %h, %w, %t, %dn
 *   %dh = matmul %d, %w                                   (get 0: nll, 1: dh, 2: dw)
 *   %dw = matmul %d, %h {ta=1}
 *
 * Without gradients the first two become head_nll. Needs: %z and %d have no other readers. */
#include "compiler/pass.h"

/* Tokens a chunk: about 4 MiB of logits, so that they stay in cache between the products. */
static int64_t chunk_of(const struct ir_graph *g, ir_id logits)
{
    int64_t rows = (1 << 20) / ir_cols(g, logits).add;
    return rows < 96 ? 96 : rows > 2048 ? 2048 : rows;
}

struct match {
    ir_id z, ce, d, dh, dw;
};

static bool is_product(const struct ir_graph *g, ir_id n, ir_id a, ir_id b, bool ta, bool tb)
{
    return ir_at(g, n)->op == OP_matmul && ir_src(g, n, 0) == a && ir_src(g, n, 1) == b &&
           ir_int(g, n, AK_ta, 0) == ta && ir_int(g, n, AK_tb, 0) == tb;
}

static bool find(const struct ir_graph *g, const uint32_t *uses, struct match *m)
{
    *m = (struct match){IR_NONE, IR_NONE, IR_NONE, IR_NONE, IR_NONE};
    for (ir_id n = 0; n < g->node.n; n++)
        if (ir_at(g, n)->op == OP_cross_entropy) m->ce = n;
    if (m->ce == IR_NONE) return false;
    m->z = ir_src(g, m->ce, 0);
    if (ir_at(g, m->z)->op != OP_matmul || ir_int(g, m->z, AK_ta, 0) || !ir_int(g, m->z, AK_tb, 0))
        return false;
    ir_id h = ir_src(g, m->z, 0), w = ir_src(g, m->z, 1);
    for (ir_id n = m->ce; n < g->node.n; n++) {
        if (ir_at(g, n)->op == OP_cross_entropy_grad && ir_src(g, n, 0) == m->z) m->d = n;
        if (m->d != IR_NONE && is_product(g, n, m->d, w, false, false)) m->dh = n;
        if (m->d != IR_NONE && is_product(g, n, m->d, h, true, false)) m->dw = n;
    }
    if (m->d == IR_NONE) return uses[m->z] == 1;
    return m->dh != IR_NONE && m->dw != IR_NONE && uses[m->z] == 2 && uses[m->d] == 2;
}

static ir_id build(struct ir_graph *r, const struct ir_graph *g, const struct match *m,
                   const ir_id *map, ir_id dn)
{
    ir_id h = map[ir_src(g, m->z, 0)], w = map[ir_src(g, m->z, 1)], t = map[ir_src(g, m->ce, 1)];
    const struct ir_attr attr[] = {A_INT(chunk, chunk_of(g, m->z)),
                                   A_INT(bf16, ir_int(g, m->z, AK_bf16, 0))};
    if (dn == IR_NONE) return ir_add(r, OP_head_nll, SRCS(h, w, t), attr, 2, "head");
    return ir_add(r, OP_head_loss, SRCS(h, w, t, dn), attr, 2, "head");
}

/* dn depends on the number of targets only, so it can be moved in front of the head. */
static ir_id hoist(struct ir_graph *r, const struct ir_graph *g, ir_id n, ir_id *map)
{
    if (map[n] != IR_NONE) return map[n];
    ir_id src[8];
    CHECK(ir_at(g, n)->nsrc <= 8);
    for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) src[i] = hoist(r, g, ir_src(g, n, i), map);
    return map[n] = ir_copy(r, g, n, src);
}

static bool depends_on(const struct ir_graph *g, ir_id n, ir_id on)
{
    if (n == on) return true;
    if (n < on) return false;
    for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++)
        if (depends_on(g, ir_src(g, n, i), on)) return true;
    return false;
}

struct ir_graph *pass_head_loss(struct pass_ctx *c, const struct ir_graph *g)
{
    struct ir_graph *r = graph_open(c->arena, g->program, g->stage, g->types, g->names);
    struct arena *s = arena_open("head-loss");
    struct match m;
    bool found = find(g, ir_uses(g, s), &m);
    if (found && m.d != IR_NONE && depends_on(g, ir_src(g, m.d, 3), m.ce)) found = false;
    if (!found && c->report)
        sb_str(c->report, "head-loss: no head product with a loss on it alone\n");
    ir_id *map = NEW(s, ir_id, g->node.n), head = IR_NONE;
    for (ir_id n = 0; n < g->node.n; n++) map[n] = IR_NONE;
    for (ir_id n = 0; n < g->node.n; n++) {
        if (map[n] != IR_NONE) continue;
        if (found && (n == m.z || n == m.d)) continue;
        if (found && n == m.ce) {
            head = build(r, g, &m, map,
                         m.d == IR_NONE ? IR_NONE : hoist(r, g, ir_src(g, m.d, 3), map));
            continue;
        }
        if (found && ir_at(g, n)->op == OP_get && ir_src(g, n, 0) == m.ce) {
            bool nll = ir_int(g, n, AK_index, 0) ==
                       0; /* the log-sum-exp had only the gradient reading it */
            map[n] = nll ? (m.d == IR_NONE ? head : ir_get(r, head, 0)) : IR_NONE;
            continue;
        }
        if (found && (n == m.dh || n == m.dw)) {
            map[n] = ir_get(r, head, n == m.dh ? 1 : 2);
            continue;
        }
        uint32_t k = ir_at(g, n)->nsrc;
        ir_id *src = NEW(s, ir_id, k);
        for (uint32_t i = 0; i < k; i++) src[i] = map[ir_src(g, n, i)];
        map[n] = ir_copy(r, g, n, src);
    }
    for (size_t i = 0; i < g->out.n; i++)
        ir_output(r, intern_text(g->names, g->out.p[i].name), map[g->out.p[i].id]);
    arena_close(s);
    return r;
}
