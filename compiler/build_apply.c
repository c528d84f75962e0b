/* The optimiser as a graph: clipping, AdamW, Muon, router-bias balancing (spec-contract section 2).
 */
#include "compiler/build_parts.h"
#include <math.h>
#include <stdlib.h>

bool build_uses_muon(const struct model *m, const struct param *p)
{
    return m->train.optimizer == OPT_muon && p->kind == PARAM_matrix;
}

static ir_id named(struct builder *b, ir_type_id t, const char *name)
{
    return ir_add_typed(b->g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

static ir_type_id type_of(struct builder *b, const struct param *p)
{
    struct ir_dim d[3];
    for (int i = 0; i < p->rank; i++) d[i] = dim_const(p->dim[i]);
    return type_add(b->g->types, IR_f32, (unsigned)p->rank, d);
}

static ir_id scaled(struct builder *b, ir_id x, double c)
{
    return ir_binary(b->g, OP_mul, x, ir_const(b->g, c));
}

/* x / (|x|_F + 1e-7) for each matrix of a stack [E,R,C], or of one [R,C]. */
static ir_id frobenius(struct builder *b, ir_id x)
{
    struct ir_graph *g = b->g;
    const struct ir_type *t = ir_ty(g, x);
    ir_type_id own = ir_at(g, x)->type;
    int64_t e = t->rank == 3 ? t->dim[0].add : 1;
    int64_t each = t->dim[t->rank - 1].add * t->dim[t->rank - 2].add;
    ir_id flat = ir_reshape(g, x, ir_type2(g, IR_f32, dim_const(e), dim_const(each)));
    ir_id norm = ir_unary(g, OP_sqrt, ir_unary(g, OP_rowsum, ir_binary(g, OP_mul, flat, flat)));
    ir_id y = ir_binary(g, OP_div, flat, ir_binary(g, OP_add, norm, ir_const(g, 1e-7)));
    return ir_reshape(g, y, own);
}

/* Five Newton-Schulz steps X = a X + (b Y + c Y Y) X, Y = X X^T; a tall matrix is worked on from
 * the other side, Y = X^T X and X (b Y + c Y Y), which is the transposed iteration without
 * transposing. In bf16 everything between the first norm and the last sum is rounded, as in the
 * published optimiser: the iteration pulls singular values towards 1 whatever they are. */
static ir_id newton_schulz(struct builder *b, ir_id x)
{
    struct ir_graph *g = b->g;
    const struct ir_type *t = ir_ty(g, x);
    bool tall = t->dim[t->rank - 2].add > t->dim[t->rank - 1].add, bf16 = b_bf16(b);
    double scale = 0.2 * sqrt((double)t->dim[t->rank - (tall ? 2 : 1)].add);
    x = b_round(b, frobenius(b, x));
    for (int i = 0; i < 5; i++) {
        ir_id y = b_round(b, ir_matmul_as(g, x, x, tall, !tall, bf16, NULL));
        ir_id yy = b_round(b, ir_matmul_as(g, y, y, false, false, bf16, NULL));
        ir_id z = ir_binary(g, OP_add, scaled(b, y, -4.7750), scaled(b, yy, 2.0315));
        z = b_round(b, z);
        ir_id zx = ir_matmul_as(g, tall ? x : z, tall ? z : x, false, false, bf16, NULL);
        x = ir_binary(g, OP_add, scaled(b, x, 3.4445), b_round(b, zx));
        if (i < 4) x = b_round(b, x);
    }
    return scaled(b, x, scale);
}

/* ---- Muon's matrices of one shape are worked on together: on a GPU the products of a small one
 * leave most of it idle, and each is a launch ---- */

enum { STACK_ELEMENTS = 1 << 24, STACK_PARAMS = 64 };

/* Do two parameters consist of the same pieces? Merged products are orthogonalised piece by piece,
 * as the tensors they are. */
static bool alike(const struct param *p, const struct param *q)
{
    if (p->rank != q->rank || p->num_parts != q->num_parts || p->dim[1] != q->dim[1]) return false;
    if (p->rank != 2) return false; /* those of experts are many already */
    for (size_t i = 0; i < p->num_parts; i++)
        if (p->part[i].dim[0] != q->part[i].dim[0]) return false;
    return true;
}

static ir_id concat_rows(struct builder *b, const ir_id *x, size_t n)
{
    return n == 1 ? x[0] : ir_add(b->g, OP_concat, x, n, ATTRS(A_INT(axis, 0)), NULL);
}

/* Rows of matrices below each other, orthogonalised `rows` rows at a time. */
static ir_id stack_orthogonal(struct builder *b, ir_id x, int64_t rows)
{
    struct ir_dim all = ir_ty(b->g, x)->dim[0], cols = ir_cols(b->g, x);
    if (all.add == rows) return newton_schulz(b, x);
    const struct ir_dim d[3] = {dim_const(all.add / rows), dim_const(rows), cols};
    ir_id y = newton_schulz(b, ir_reshape(b->g, x, type_add(b->g->types, IR_f32, 3, d)));
    return ir_reshape(b->g, y, ir_type2(b->g, IR_f32, all, cols));
}

/* x[i], the update of parameter i of n that are alike, becomes its orthogonal factor. */
static void orthogonal(struct builder *b, const struct param *p, ir_id *x, size_t n)
{
    if (p->rank == 3) {
        CHECK(n == 1);
        x[0] = newton_schulz(b, x[0]);
        return;
    }
    bool even = true;
    for (size_t k = 1; k < p->num_parts; k++) even = even && p->part[k].dim[0] == p->part[0].dim[0];
    size_t cuts = even ? 1 : p->num_parts; /* equal pieces stay together */
    ir_id *piece = NEW(b->g->arena, ir_id, n * cuts), *own = NEW(b->g->arena, ir_id, n);
    for (size_t k = 0; k < cuts; k++) {
        int64_t from = even ? 0 : p->part[k].offset / p->dim[1];
        int64_t rows = p->part[k].dim[0], step = even ? p->dim[0] : rows;
        for (size_t i = 0; i < n; i++)
            own[i] = even ? x[i] : ir_slice(b->g, x[i], 0, from, from + rows);
        ir_id y = stack_orthogonal(b, concat_rows(b, own, n), rows);
        for (int64_t i = 0; i < (int64_t)n; i++)
            piece[(size_t)i * cuts + k] =
                n == 1 ? y : ir_slice(b->g, y, 0, i * step, (i + 1) * step);
    }
    for (size_t i = 0; i < n; i++) x[i] = concat_rows(b, piece + i * cuts, cuts);
}

struct step {
    ir_id ctl, hyper;
};

/* Rows first.. of w, which are the heads of mixer x, scaled by what their logits went over. */
static ir_id clip(struct builder *b, const struct mixer *x, ir_id w, ir_id top, ir_id ctl,
                  const char *part, int64_t first, int64_t head, int64_t from, int64_t to)
{
    int64_t kv = x->type == MIXER_mla ? x->num_heads : x->num_kv_heads;
    return ir_add(b->g, OP_qk_clip, SRCS(w, top, ctl),
                  ATTRS(A_NUM(value, b->m->train.qk_clip), A_INT(heads, x->num_heads),
                        A_INT(kv_heads, kv), A_INT(head_dim, head), A_INT(index, first),
                        A_INT(from, from), A_INT(to, to), A_STR(part, part)),
                  NULL);
}

/* QK-clip (kimi-linear.md 5) of the updated value w of a parameter, where it holds query or key
 * rows. In mla the rotated part of the queries takes the whole factor, as all heads share its key.
 */
static ir_id clip_logits(struct builder *b, const struct param *p, ir_id w, ir_id ctl)
{
    if (!strstr(p->name, ".self_attn.") || p->rank != 2) return w;
    unsigned long layer = strtoul(p->name + strlen("model.layers."), NULL, 10);
    const struct mixer *x = &b->m->mixer[b->m->layer[layer].mixer];
    if (!build_clips_logits(b->m, x)) return w;
    ir_id top = named(b, ir_type1(b->g, IR_f32, dim_const(x->num_heads)),
                      b_name(b, "logit_max.model.layers.%lu", layer));
    bool mla = x->type == MIXER_mla;
    int64_t nope = x->qk_nope_head_dim, head = mla ? nope + x->qk_rope_head_dim : x->head_dim;
    for (size_t i = 0; i < p->num_parts; i++) {
        struct str t = str_of(p->part[i].tensor);
        int64_t first = p->part[i].offset / p->dim[1];
        if (str_ends(t, ".q_proj.weight") || str_ends(t, ".q_b_proj.weight")) {
            w = clip(b, x, w, top, ctl, "q", first, head, 0, mla ? nope : head);
            if (mla) w = clip(b, x, w, top, ctl, "rope", first, head, nope, head);
        } else if (str_ends(t, ".k_proj.weight")) {
            w = clip(b, x, w, top, ctl, "k", first, head, 0, head);
        } else if (str_ends(t, ".kv_b_proj.weight")) {
            w = clip(b, x, w, top, ctl, "k", first, nope + x->v_head_dim, 0, nope);
        }
    }
    return w;
}

static ir_id moment(struct builder *b, const struct param *p, const char *which)
{
    return named(b, type_of(b, p), b_name(b, "%s.%s", which, p->name));
}

static double decay_of(const struct builder *b, const struct param *p)
{
    return p->kind == PARAM_vector ? 0 : b->m->train.weight_decay;
}

static void adamw(struct builder *b, const struct param *p, ir_id grad, struct step s)
{
    const struct train_spec *t = &b->m->train;
    ir_id w = named(b, type_of(b, p), p->name);
    ir_id r =
        ir_add(b->g, OP_adamw, SRCS(w, grad, moment(b, p, "m"), moment(b, p, "v"), s.ctl, s.hyper),
               ATTRS(A_NUM(beta1, t->beta1), A_NUM(beta2, t->beta2), A_NUM(eps, t->eps),
                     A_NUM(weight_decay, decay_of(b, p))),
               NULL);
    ir_output(b->g, b_name(b, "new.%s", p->name), clip_logits(b, p, ir_get(b->g, r, 0), s.ctl));
    ir_output(b->g, b_name(b, "new.m.%s", p->name), ir_get(b->g, r, 1));
    ir_output(b->g, b_name(b, "new.v.%s", p->name), ir_get(b->g, r, 2));
}

/* n parameters that are alike. */
static void muon(struct builder *b, const struct param *const *p, const ir_id *grad, size_t n,
                 struct step s)
{
    ir_id x[STACK_PARAMS];
    for (size_t i = 0; i < n; i++) {
        ir_id r = ir_add(b->g, OP_momentum, SRCS(grad[i], moment(b, p[i], "m"), s.ctl, s.hyper),
                         ATTRS(A_NUM(momentum, b->m->train.momentum)), NULL);
        x[i] = ir_get(b->g, r, 0);
        ir_output(b->g, b_name(b, "new.m.%s", p[i]->name), ir_get(b->g, r, 1));
    }
    orthogonal(b, p[0], x, n);
    for (size_t i = 0; i < n; i++) {
        ir_id w = named(b, type_of(b, p[i]), p[i]->name);
        ir_id next = ir_add(b->g, OP_muon_step, SRCS(w, x[i], s.ctl, s.hyper),
                            ATTRS(A_NUM(scale, 1), A_NUM(weight_decay, decay_of(b, p[i]))), NULL);
        ir_output(b->g, b_name(b, "new.%s", p[i]->name), clip_logits(b, p[i], next, s.ctl));
    }
}

/* All parameters of Muon, those that are alike together, as long as they are not too many. */
static void muon_all(struct builder *b, const ir_id *grad, struct step s)
{
    const struct params *ps = b->ps;
    bool *done = NEW(b->g->arena, bool, ps->n);
    for (size_t i = 0; i < ps->n; i++) {
        const struct param *p[STACK_PARAMS];
        ir_id of[STACK_PARAMS];
        int64_t count = 0;
        size_t n = 0;
        if (done[i] || !build_uses_muon(b->m, &ps->p[i])) continue;
        for (size_t k = i; k < ps->n && n < STACK_PARAMS; k++) {
            const struct param *q = &ps->p[k];
            if (done[k] || !build_uses_muon(b->m, q) || (n && !alike(p[0], q))) continue;
            if (n && count + q->count > STACK_ELEMENTS) break;
            p[n] = q, of[n++] = grad[k];
            count += q->count;
            done[k] = true;
        }
        CHECK(n);
        muon(b, p, of, n, s);
    }
}

/* The rate of the router whose bias has this name. */
static double balance_rate(const struct model *m, const char *bias)
{
    unsigned long layer = strtoul(bias + strlen("model.layers."), NULL, 10);
    return m->ffn[m->layer[layer].ffn].balance_rate;
}

struct ir_graph *build_apply(struct arena *a, const struct model *m, const struct params *ps)
{
    struct builder builder = {.m = m, .ps = ps}, *b = &builder;
    struct ir_graph *g = b->g = graph_open(a, "apply", STAGE_T, NULL, NULL);
    ir_type_id four = ir_type1(g, IR_f32, dim_const(4));
    VEC(ir_id) all = {0}; /* loss, then every gradient in params order */
    ir_id *grad = NEW(a, ir_id, ps->n);
    vec_push(a, &all, named(b, 0, "loss"));
    for (size_t i = 0; i < ps->n; i++) {
        if (ps->p[i].kind == PARAM_state) continue;
        grad[i] = named(b, type_of(b, &ps->p[i]), b_name(b, "grad.%s", ps->p[i].name));
        vec_push(a, &all, grad[i]);
    }
    ir_id norm =
        ir_add(g, OP_grad_norm, all.p, all.n, ATTRS(A_NUM(clip, m->train.grad_clip)), NULL);
    struct step s = {ir_get(g, norm, 0), named(b, four, "hyper")};
    ir_output(g, "ctl", s.ctl);
    ir_output(g, "sumsq", ir_get(g, norm, 1));
    for (size_t i = 0; i < ps->n; i++) /* one after the other: a GPU joins their launches */
        if (ps->p[i].kind != PARAM_state && !build_uses_muon(m, &ps->p[i]))
            adamw(b, &ps->p[i], grad[i], s);
    muon_all(b, grad, s);
    for (size_t i = 0; i < ps->n; i++) {
        const struct param *p = &ps->p[i];
        if (p->kind != PARAM_state) continue;
        ir_id bias = named(b, type_of(b, p), p->name);
        size_t stem = strlen(p->name) - strlen(".gate.e_score_correction_bias");
        ir_id load = named(b, type_of(b, p), b_name(b, "load.%.*s", (int)stem, p->name));
        ir_output(g, b_name(b, "new.%s", p->name),
                  ir_add(g, OP_balance, SRCS(bias, load, s.ctl),
                         ATTRS(A_NUM(rate, balance_rate(m, p->name))), NULL));
    }
    return g;
}
