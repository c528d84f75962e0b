/* two-phase: the sites of one block read the same finished sources with queries that are
 * parameters, so one op reads each source once for all of them (attnres-paper.md 3.1), forward and
 * backward.
 *
 * In Full attention residuals a GPU takes several sites for such a block, too: those after the
 * first have more sources of their own, P and the outputs since, which merge alike.
 *
 * Forward, for the sites i of a block with finished sources F and, but for the first, a partial sum
 * P: %m_i = depth_mix u_i, F.., P_i     =>   %t = depth_inter u_1..u_q, F..          (once) s2 =
 * (u_i . P) rsqrt(mean P^2 + eps), M = max(lse1, s2), a = e^(lse1-M), b = e^(s2-M), z = a + b, h =
 * (a o_i + b P) / z, lse = M + log z Backward (11.1, with p_j = e^(s_j - lse), delta = dh . h): per
 * site only the partial's gradient and query part; when the block is done one depth_inter_grad adds
 * to the gradient of every source in F. %d_i = depth_mix_grad ...          =>   ds = b/z (dh.P -
 * delta), dP = b/z dh + ds r2 u - ds s2 r2^2/D P and at the block's first site depth_inter_grad
 *
 * The merge is made of row operations, so fuse-rows joins it with the add before and the norm after
 * it. Legal only where no u depends on activations ([D], not [N,D]) and nobody reads the
 * accumulators of F between the sites' backward ops; both are checked. */
#include "compiler/pass.h"

enum {
    MIN_SITES = 2, /* a block with one site gains nothing */
    MAX_OWN = 5    /* sources that a site has to itself */
};

struct site {
    ir_id mix, grad; /* grad IR_NONE in forward programs */
    uint32_t own;    /* how many of the last sources are not the group's */
};
struct group {
    size_t first, count;          /* slice of the sites, in forward order */
    uint32_t finished;            /* number of shared sources */
    ir_id inter;                  /* new graph: depth_inter, once built */
    ir_id *dh, *delta, *lse, *s2; /* new graph, per site: filled on the way */
};
struct tp {
    struct pass_ctx *c;
    const struct ir_graph *g;
    struct ir_graph *r;
    struct arena *s;
    ir_id *map;
    VEC(struct site) site;
    VEC(struct group) group;
    uint32_t *mix_site, *grad_site; /* node -> site + 1 */
    uint32_t *site_group;           /* site -> group + 1, 0 = stays one-pass */
};

static uint32_t sources(const struct tp *t, ir_id mix)
{
    return (uint32_t)ir_int(t->g, mix, AK_sources, 0);
}

static ir_id finished(const struct tp *t, ir_id mix, uint32_t j)
{
    return ir_src(t->g, mix, 1 + j);
}

static bool same_prefix(const struct tp *t, ir_id a, ir_id b, uint32_t n)
{
    for (uint32_t j = 0; j < n; j++)
        if (finished(t, a, j) != finished(t, b, j)) return false;
    return true;
}

static void find_sites(struct tp *t)
{
    const struct ir_graph *g = t->g;
    t->mix_site = NEW(t->s, uint32_t, g->node.n);
    t->grad_site = NEW(t->s, uint32_t, g->node.n);
    for (ir_id n = 0; n < g->node.n; n++) {
        if (ir_at(g, n)->op == OP_depth_mix) {
            struct site x = {n, IR_NONE, 0};
            vec_push(t->s, &t->site, x);
            t->mix_site[n] = (uint32_t)t->site.n;
        }
        if (ir_at(g, n)->op == OP_depth_mix_grad) { /* its h is get 0 of the mix */
            ir_id mix = ir_src(g, ir_src(g, n, 1), 0);
            CHECK(ir_at(g, mix)->op == OP_depth_mix);
            t->grad_site[n] = t->mix_site[mix];
            t->site.p[t->mix_site[mix] - 1].grad = n;
        }
    }
}

/* Between two backward ops of a group (later site first) each accumulator must go straight from one
 * to the other: element j of `later` is read by accumulator slot j of `earlier` only. */
static bool chained(const struct tp *t, const uint32_t *uses, ir_id later, ir_id earlier,
                    uint32_t n)
{
    const struct ir_graph *g = t->g;
    uint32_t k = 6 + sources(t, earlier); /* operands: 6 fixed, sources, accumulators */
    const char *have = ir_word(g, earlier, AK_have, "");
    for (uint32_t j = 0; j < n; j++) {
        if (have[j] != '1') return false;
        ir_id acc = ir_src(g, earlier, k++);
        if (ir_at(g, acc)->op != OP_get || ir_src(g, acc, 0) != later ||
            ir_int(g, acc, AK_index, -1) != j || uses[acc] != 1)
            return false;
    }
    return true;
}

/* A query that is a parameter, or made of parameters element by element. */
static bool is_parameter(const struct ir_graph *g, ir_id u)
{
    const struct op_info *op = op_info((enum ir_op)ir_at(g, u)->op);
    if (op->flags & F_LEAF) return true;
    bool all = (op->flags & F_EW) != 0;
    for (uint32_t i = 0; all && i < ir_at(g, u)->nsrc; i++) all = is_parameter(g, ir_src(g, u, i));
    return all;
}

/* Whether everything the grouped depth_inter_grad will need exists when the group's first site (the
 * last to run) is reached holds by order; here: all sites have gradients, or none has. */
static bool legal(const struct tp *t, const uint32_t *uses, const struct group *gr)
{
    const struct site *x = &t->site.p[gr->first];
    for (size_t i = 0; i < gr->count; i++) {
        ir_id u = ir_src(t->g, x[i].mix, 0);
        if (ir_ty(t->g, u)->rank != 1 || !is_parameter(t->g, u)) return false;
        if ((x[i].grad == IR_NONE) != (x[0].grad == IR_NONE)) return false;
        if (i && x[0].grad != IR_NONE && !chained(t, uses, x[i].grad, x[i - 1].grad, gr->finished))
            return false;
    }
    return true;
}

/* Sites from `first` on that make a group; gr.finished is set. */
static size_t group_size(const struct tp *t, size_t first, struct group *gr)
{
    const struct site *x = t->site.p;
    /* A site without a partial starts a block; in the first block every site has one. */
    ir_id mix = x[first].mix;
    uint32_t n = sources(t, mix);
    size_t next = first + 1, left = t->site.n;
    bool starts =
        next < left && sources(t, x[next].mix) == n + 1 && same_prefix(t, mix, x[next].mix, n);
    gr->finished = starts ? n : n - 1;
    while (next < left && sources(t, x[next].mix) == gr->finished + 1 &&
           same_prefix(t, mix, x[next].mix, gr->finished))
        next++;
    /* Full: every site has one source more. A group of S reads n + S (S - 1) / 2 sources, so
     * another site makes that less for each of them while n > S (S + 1) / 2; two more for what a
     * group of many queries reads twice. */
    size_t count = next - first;
    while (t->c->gpu && starts && count >= 2 && count <= MAX_OWN && next < left &&
           n > count * (count + 1) / 2 + 2 && sources(t, x[next].mix) == n + count &&
           same_prefix(t, mix, x[next].mix, n))
        next++, count++;
    return count;
}

static void find_groups(struct tp *t)
{
    t->site_group = NEW(t->s, uint32_t, t->site.n);
    uint32_t *uses = ir_uses(t->g, t->s);
    for (size_t i = 0; i < t->site.n;) {
        ir_id mix = t->site.p[i].mix;
        struct group gr = {.first = i, .inter = IR_NONE};
        gr.count = group_size(t, i, &gr);
        if (gr.count >= MIN_SITES && gr.finished >= 1 && legal(t, uses, &gr)) {
            for (size_t k = 0; k < gr.count; k++) {
                t->site_group[i + k] = (uint32_t)t->group.n + 1;
                t->site.p[i + k].own = sources(t, t->site.p[i + k].mix) - gr.finished;
            }
            gr.dh = NEW(t->s, ir_id, 4 * gr.count);
            gr.delta = gr.dh + gr.count, gr.lse = gr.delta + gr.count, gr.s2 = gr.lse + gr.count;
            vec_push(t->s, &t->group, gr);
        }
        if (t->c->report)
            sb_printf(t->c->report, "two-phase: %s: %zu site%s over %u finished sources: %s\n",
                      ir_word(t->g, mix, AK_site, ""), gr.count, gr.count > 1 ? "s" : "",
                      gr.finished,
                      t->site_group[i] ? "one pass over the sources" : "one pass per site");
        i += gr.count;
    }
}

/* ---- short forms in the new graph ---- */

static ir_id op2(struct tp *t, enum ir_op op, ir_id a, ir_id b)
{
    return ir_binary(t->r, op, a, b);
}

static ir_id dot(struct tp *t, ir_id a, ir_id b)
{
    return ir_unary(t->r, OP_rowsum, op2(t, OP_mul, a, b));
}

static ir_id mapped(struct tp *t, ir_id old, uint32_t i)
{
    return t->map[ir_src(t->g, old, i)];
}

/* ---- forward ---- */

/* Copies a parameter expression and what it needs, where that has not been done. */
static void hoist(struct tp *t, ir_id u)
{
    if (t->map[u] != IR_NONE) return;
    uint32_t n = ir_at(t->g, u)->nsrc;
    ir_id *src = NEW(t->s, ir_id, n);
    for (uint32_t i = 0; i < n; i++) {
        hoist(t, ir_src(t->g, u, i));
        src[i] = mapped(t, u, i);
    }
    t->map[u] = ir_copy(t->r, t->g, u, src);
}

static ir_id inter(struct tp *t, struct group *gr)
{
    if (gr->inter != IR_NONE) return gr->inter;
    VEC(ir_id) src = {0};
    ir_id first = t->site.p[gr->first].mix;
    for (size_t i = 0; i < gr->count; i++) {
        ir_id u = ir_src(t->g, t->site.p[gr->first + i].mix, 0);
        hoist(t, u); /* queries of later sites are made where they are first needed */
        vec_push(t->s, &src, t->map[u]);
    }
    for (uint32_t j = 0; j < gr->finished; j++) vec_push(t->s, &src, t->map[finished(t, first, j)]);
    gr->inter =
        ir_add(t->r, OP_depth_inter, src.p, src.n,
               ATTRS(A_STR(site, ir_word(t->g, first, AK_site, "")), A_INT(sources, gr->finished),
                     A_INT(queries, gr->count), A_NUM(eps, ir_num(t->g, first, AK_eps, 0))),
               str_fmt(t->s, "inter.%s", ir_word(t->g, first, AK_site, "")));
    return gr->inter;
}

struct merge { /* what a site's own sources P do to a mix */
    ir_id p[MAX_OWN], r2[MAX_OWN], s2[MAX_OWN], b[MAX_OWN]; /* [N,1]: rsqrt(mean P^2 + eps), logit,
                                                               weight */
    ir_id h, lse;
};

/* The mix as its reader takes it: rounded in a bf16 program, so that only that is stored. */
static ir_id taken(struct tp *t, ir_id mix, ir_id h)
{
    const struct ir_readers *r = ir_readers(t->g);
    for (uint32_t u = r->first[mix]; u < r->first[mix + 1]; u++) {
        ir_id get = r->reader[u];
        if (ir_at(t->g, get)->op != OP_get || ir_int(t->g, get, AK_index, 0) != 0) continue;
        for (uint32_t v = r->first[get]; v < r->first[get + 1]; v++)
            if (ir_at(t->g, r->reader[v])->op == OP_round_bf16)
                return ir_unary(t->r, OP_round_bf16, h);
    }
    return h;
}

/* Equal nodes are merged, so calling this in the backward again costs nothing. */
static void merge(struct tp *t, const struct site *x, ir_id o, ir_id lse1, ir_id u, struct merge *m)
{
    double d = (double)ir_cols(t->r, u).add, eps = ir_num(t->g, x->mix, AK_eps, 0);
    struct ir_graph *r = t->r;
    ir_id max = lse1;
    for (uint32_t i = 0; i < x->own; i++) {
        ir_id mean = op2(t, OP_div, dot(t, m->p[i], m->p[i]), ir_const(r, d));
        m->r2[i] = ir_unary(r, OP_rsqrt, op2(t, OP_add, mean, ir_const(r, eps)));
        m->s2[i] = op2(t, OP_mul, dot(t, m->p[i], u), m->r2[i]);
        max = op2(t, OP_max, max, m->s2[i]);
    }
    ir_id ea = ir_unary(r, OP_exp, op2(t, OP_sub, lse1, max)), z = ea;
    for (uint32_t i = 0; i < x->own; i++) {
        m->b[i] = ir_unary(r, OP_exp, op2(t, OP_sub, m->s2[i], max));
        z = op2(t, OP_add, z, m->b[i]);
    }
    m->h = op2(t, OP_mul, o, op2(t, OP_div, ea, z));
    for (uint32_t i = 0; i < x->own; i++) {
        m->b[i] = op2(t, OP_div, m->b[i], z);
        m->h = op2(t, OP_add, m->h, op2(t, OP_mul, m->p[i], m->b[i]));
    }
    m->lse = op2(t, OP_add, max, ir_unary(r, OP_log, z));
}

static struct merge site_merge(struct tp *t, size_t site, ir_id *o, ir_id *lse1)
{
    const struct site *x = &t->site.p[site];
    struct group *gr = &t->group.p[t->site_group[site] - 1];
    uint32_t i = (uint32_t)(site - gr->first), q = (uint32_t)gr->count;
    ir_id in = inter(t, gr);
    *o = ir_get(t->r, in, i);
    *lse1 = ir_slice(t->r, ir_get(t->r, in, q + 2), 1, i, i + 1);
    struct merge m = {.h = *o, .lse = *lse1};
    for (uint32_t k = 0; k < x->own; k++) m.p[k] = mapped(t, x->mix, 1 + gr->finished + k);
    if (x->own) merge(t, x, *o, *lse1, mapped(t, x->mix, 0), &m);
    return m;
}

/* Element `index` of an old depth_mix in the new graph. */
static ir_id mix_element(struct tp *t, ir_id mix, uint32_t index)
{
    size_t site = t->mix_site[mix] - 1;
    struct group *gr = &t->group.p[t->site_group[site] - 1];
    ir_id o, lse1, in = inter(t, gr);
    struct merge m = site_merge(t, site, &o, &lse1);
    uint32_t i = (uint32_t)(site - gr->first), q = (uint32_t)gr->count, n = gr->finished;
    if (index == 0) return m.h;
    if (index == 3) return m.lse;
    /* logits and reciprocal rms: those of the finished sources beside the site's own */
    ir_id all = ir_get(t->r, in, q + (index == 1 ? 0 : 1));
    ir_id part = index == 1 && q > 1 ? ir_slice(t->r, all, 1, i * n, (i + 1) * n) : all;
    ir_id src[1 + MAX_OWN] = {part};
    uint32_t own = t->site.p[site].own;
    for (uint32_t k = 0; k < own; k++) src[1 + k] = index == 1 ? m.s2[k] : m.r2[k];
    return own ? ir_add(t->r, OP_concat, src, 1 + own, ATTRS(A_INT(axis, 1)), NULL) : part;
}

/* ---- backward ---- */

/* The gradients of this site's own sources and its share of du, from dh. */
static void site_grad(struct tp *t, size_t site, ir_id dp[MAX_OWN], ir_id *du)
{
    struct group *gr = &t->group.p[t->site_group[site] - 1];
    const struct site *x = &t->site.p[site];
    ir_id o, lse1, dh = mapped(t, x->grad, 0);
    struct merge m = site_merge(t, site, &o, &lse1);
    size_t i = site - gr->first;
    gr->dh[i] = dh;
    gr->delta[i] = dot(t, dh, taken(t, x->mix, m.h));
    gr->lse[i] = m.lse;
    if (!x->own) { /* a column of the op's log-sum-exps: the gradient wants it by itself */
        if (gr->count > 1)
            gr->lse[i] = ir_add(t->r, OP_concat, SRCS(m.lse), ATTRS(A_INT(axis, 1)), NULL);
        return;
    }
    ir_id u = mapped(t, x->mix, 0), sum = IR_NONE;
    for (uint32_t k = 0; k < x->own; k++) {
        ir_id p = m.p[k];
        ir_id ds = op2(t, OP_mul, m.b[k], op2(t, OP_sub, dot(t, dh, p), gr->delta[i]));
        ir_id dsr = op2(t, OP_mul, ds, m.r2[k]);
        ir_id c = op2(t, OP_mul, op2(t, OP_mul, dsr, m.s2[k]), m.r2[k]);
        c = op2(t, OP_div, c, ir_const(t->r, (double)ir_cols(t->r, p).add));
        dp[k] = op2(t, OP_add, op2(t, OP_mul, dh, m.b[k]),
                    op2(t, OP_sub, op2(t, OP_mul, dsr, u), op2(t, OP_mul, p, c)));
        ir_id share = op2(t, OP_mul, p, dsr);
        sum = sum == IR_NONE ? share : op2(t, OP_add, sum, share);
    }
    *du = ir_unary(t->r, OP_colsum, sum);
}

/* After the last site's backward: every finished source once, for all queries. */
static ir_id inter_grad(struct tp *t, struct group *gr)
{
    VEC(ir_id) src = {0};
    const struct site *x = &t->site.p[gr->first];
    uint32_t q = (uint32_t)gr->count, n = gr->finished;
    ir_id in = inter(t, gr), last = x[q - 1].grad; /* first to run: its accumulators come in */
    vec_push(t->s, &src, ir_get(t->r, in, q));
    vec_push(t->s, &src, ir_get(t->r, in, q + 1));
    for (uint32_t i = 0; i < q; i++) vec_push(t->s, &src, mapped(t, x[i].mix, 0));
    for (uint32_t i = 0; i < q; i++) vec_push(t->s, &src, gr->dh[i]);
    for (uint32_t i = 0; i < q; i++) vec_push(t->s, &src, gr->delta[i]);
    for (uint32_t i = 0; i < q; i++) vec_push(t->s, &src, gr->lse[i]);
    for (uint32_t j = 0; j < n; j++) vec_push(t->s, &src, t->map[finished(t, x->mix, j)]);
    char *have = str_dup(t->s, (struct str){ir_word(t->g, last, AK_have, ""), n});
    uint32_t k = 6 + sources(t, x[q - 1].mix);
    for (uint32_t j = 0; j < n; j++)
        if (have[j] == '1') vec_push(t->s, &src, mapped(t, last, k++));
    return ir_add(t->r, OP_depth_inter_grad, src.p, src.n,
                  ATTRS(A_STR(site, ir_word(t->g, x->mix, AK_site, "")), A_INT(sources, n),
                        A_INT(queries, q), A_STR(have, have),
                        A_NUM(eps, ir_num(t->g, x->mix, AK_eps, 0))),
                  NULL);
}

/* Results of one old depth_mix_grad: map of its get nodes is filled in by element. du of a site is
 * its partial's share plus the share of the finished sources, which is known only at the end of the
 * group; since nothing reads du before the end of the program, all of them are made there. */
struct grads {
    ir_id (*dp)[MAX_OWN], *du; /* per site, new graph; IR_NONE where there is none */
    ir_id *whole;              /* per group: depth_inter_grad */
};

static ir_id grad_element(struct tp *t, struct grads *gs, ir_id grad, uint32_t index)
{
    size_t site = t->grad_site[grad] - 1;
    struct group *gr = &t->group.p[t->site_group[site] - 1];
    const struct site *x = &t->site.p[site];
    ir_id whole = gs->whole[t->site_group[site] - 1];
    uint32_t n = sources(t, x->mix), i = (uint32_t)(site - gr->first);
    if (index < gr->finished) return whole == IR_NONE ? IR_NONE : ir_get(t->r, whole, index);
    if (index < n) { /* its own: what had gathered plus this site's part */
        ir_id dp = gs->dp[site][index - gr->finished];
        const char *have = ir_word(t->g, grad, AK_have, "");
        ir_id acc = IR_NONE;
        for (uint32_t j = 0, k = 6 + n; j <= index; j++)
            if (have[j] == '1') acc = j == index ? mapped(t, grad, k) : acc, k++;
        return acc == IR_NONE ? dp : op2(t, OP_add, acc, dp);
    }
    if (whole == IR_NONE) return IR_NONE;
    ir_id du = ir_get(t->r, whole, gr->finished + i);
    return gs->du[site] == IR_NONE ? du : op2(t, OP_add, du, gs->du[site]);
}

/* One old node. Returns its new id, or IR_NONE where it has none (yet): readers are delayed
 * likewise. */
static ir_id convert(struct tp *t, struct grads *gs, ir_id n)
{
    const struct ir_graph *g = t->g;
    const struct ir_node *x = ir_at(g, n);
    t->r->cur_span = ir_span(g, n);
    if (t->mix_site[n] && t->site_group[t->mix_site[n] - 1]) return IR_NONE;
    if (t->grad_site[n] && t->site_group[t->grad_site[n] - 1]) {
        size_t site = t->grad_site[n] - 1;
        struct group *gr = &t->group.p[t->site_group[site] - 1];
        site_grad(t, site, gs->dp[site], &gs->du[site]);
        if (site == gr->first) gs->whole[t->site_group[site] - 1] = inter_grad(t, gr);
        return IR_NONE;
    }
    if (x->op == OP_get) {
        ir_id of = ir_src(g, n, 0);
        uint32_t index = (uint32_t)ir_int(g, n, AK_index, 0);
        if (t->mix_site[of] && t->site_group[t->mix_site[of] - 1]) return mix_element(t, of, index);
        if (t->grad_site[of] && t->site_group[t->grad_site[of] - 1])
            return grad_element(t, gs, of, index);
    }
    ir_id *src = NEW(t->s, ir_id, x->nsrc);
    for (uint32_t i = 0; i < x->nsrc; i++)
        if ((src[i] = mapped(t, n, i)) == IR_NONE) return IR_NONE;
    return ir_copy(t->r, g, n, src);
}

/* Second round, with every group complete; tuples that were rewritten stay without an id. */
static ir_id convert_late(struct tp *t, struct grads *gs, ir_id n)
{
    bool gone = (t->mix_site[n] && t->site_group[t->mix_site[n] - 1]) ||
                (t->grad_site[n] && t->site_group[t->grad_site[n] - 1]);
    return gone ? IR_NONE : convert(t, gs, n);
}

struct ir_graph *pass_two_phase(struct pass_ctx *c, const struct ir_graph *g)
{
    struct tp tp = {.c = c, .g = g, .s = arena_open("two-phase")}, *t = &tp;
    t->r = graph_open(c->arena, g->program, g->stage, g->types, g->names);
    t->map = NEW(t->s, ir_id, g->node.n);
    for (ir_id n = 0; n < g->node.n; n++) t->map[n] = IR_NONE;
    find_sites(t);
    find_groups(t);
    struct grads gs = {(ir_id(*)[MAX_OWN])NEW(t->s, ir_id, MAX_OWN * t->site.n),
                       NEW(t->s, ir_id, t->site.n), NEW(t->s, ir_id, t->group.n)};
    for (size_t i = 0; i < t->site.n; i++) {
        gs.du[i] = IR_NONE;
        for (uint32_t k = 0; k < MAX_OWN; k++) gs.dp[i][k] = IR_NONE;
    }
    for (size_t i = 0; i < t->group.n; i++) gs.whole[i] = IR_NONE;
    for (ir_id n = 0; n < g->node.n; n++)
        if (t->map[n] == IR_NONE) t->map[n] = convert(t, &gs, n);
    for (ir_id n = 0; n < g->node.n; n++) /* what waited for the end of a group: query gradients */
        if (t->map[n] == IR_NONE) t->map[n] = convert_late(t, &gs, n);
    for (size_t i = 0; i < g->out.n; i++) {
        CHECK(t->map[g->out.p[i].id] != IR_NONE);
        ir_output(t->r, intern_text(g->names, g->out.p[i].name), t->map[g->out.p[i].id]);
    }
    arena_close(t->s);
    return pass_dce(c, t->r); /* elements that only rewritten ops had read */
}
