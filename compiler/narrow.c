/* Needs: stage T. Gives: stage T. Does nothing for a CPU and where no product has the attribute
 * bf16. Keeps: outputs, but for bf16 roundings of activations (4 below). Cost: linear in the edges.
 *
 * What lies in memory as bf16 on a GPU (attribute `narrow`; its elements are rounded):
 *   1. Operands of bf16 products, which round them anyway: a round_bf16 before the product, one for
 *      all products of a value, weights too (not in serving programs, which read a weight once: our
 *      products round it on the way). Exact.
 *   2. Results that nothing reads but round_bf16: the operation rounds, the rounding goes. Exact.
 *   3. Moves (concat, moe_gather, mla_keys ...) of rounded values; a rounding behind a move that
 *      nothing else reads goes before it. Exact.
 *   4. Results [N,...] of products and of attention, rope, mixes of finished blocks ... that only
 *      kernels which take bf16 read, and gradients of mixes for the kernels that bring them to the
 *      sources: as models in bf16 round what each layer computes. Never statistics, logits, router
 *      weights, what decays are computed of, states, gradients of weights or sums over depth
 *      (narrow_ops.c), nor what KDA brings to length 1 (exact_only).
 * Results of elementwise operations follow in fuse-rows: what is stored of a round_bf16 is narrow.
 * Functions that reach nothing but such roundings, element by element, get the attribute `coarse`:
 * the evaluator does not mind, a GPU computes them with its own exponential and reciprocal.
 *
 *   %y : f32[N,64] = matmul %x, %w {bf16=1}     %1 : f32[N,64] = round_bf16 %x
 *   %z : f32[N,64] = round_bf16 %y         =>   %2 : f32[64,64] = round_bf16 %w
 *   %a : f32[N,64] = rope %z, %t                %y : f32[N,64] = matmul %1, %2 {bf16=1, narrow=1}
 *                                               %a : f32[N,64] = rope %y, %t {narrow=1} */
#include "compiler/narrow.h"
#include "compiler/pass.h"

/* What the readers of a value do with it, views and moves followed. */
struct use {
    bool read;   /* there are some */
    bool rounds; /* all of them round it to bf16 */
    bool takes;  /* all of them take bf16 */
    bool some;   /* one of them rounds it */
    bool decays; /* log decays or betas of KDA are computed of it, element by element */
    bool coarse; /* what is computed of it element by element is rounded to bf16 in the end */
};

struct narrow {
    struct pass_ctx *c;
    const struct ir_graph *in;
    struct ir_graph *out;
    struct arena *scratch;
    struct use *use; /* of nodes of `in`; of a tuple: nothing */
    ir_id *map;      /* new id of an old node */
    size_t values;   /* narrow results, and their bytes as float32 */
    double bytes;
};

static bool is_view(enum ir_op op)
{
    return op == OP_get || op == OP_slice || op == OP_reshape;
}

/* Operands that a node only moves: bf16 numbers come out of it where such go in. */
static bool moves(const struct ir_graph *g, ir_id n, uint32_t i)
{
    switch (ir_at(g, n)->op) {
    case OP_concat:
    case OP_mla_keys: return true;
    case OP_last_rows:
    case OP_moe_gather: return i == 0;
    default: return false;
    }
}

static const struct use unused = {.rounds = true, .takes = true, .coarse = true};

static void join(struct use *u, struct use v)
{
    u->read = true;
    u->rounds = u->rounds && v.rounds && v.read;
    u->takes = u->takes && v.takes;
    u->some = u->some || v.some;
    u->decays = u->decays || v.decays;
    u->coarse = u->coarse && v.coarse;
}

/* The use of result values of node n, all of them together. */
static struct use result_use(const struct narrow *p, ir_id n)
{
    if (ir_ty(p->in, n)->dtype != IR_tuple) return p->use[n];
    const struct ir_readers *r = ir_readers(p->in);
    struct use u = unused;
    for (uint32_t k = r->first[n]; k < r->first[n + 1]; k++) join(&u, p->use[r->reader[k]]);
    return u;
}

/* Is operand i one that attention multiplies? Tensor cores take it as bf16; what an elementwise
 * operation gives (normed queries, the gradient behind an output gate) is rounded for them. */
static bool attends(const struct narrow *p, ir_id n, uint32_t i)
{
    enum ir_op op = (enum ir_op)ir_at(p->in, n)->op;
    return (op == OP_attention && i < 3) || (op == OP_attention_grad && (i < 3 || i == 5));
}

/* Does node n round operand i, as a product does, or as bf16 models do for attention and gradients
 * of mixes? */
static bool rounds(const struct narrow *p, ir_id n, uint32_t i)
{
    if (narrow_rounds(p->in, n, i)) return true;
    return !p->c->exact && (attends(p, n, i) || narrow_mix_gradient(p->in, n, i));
}

/* How node n uses its operand i. */
static struct use use_by(const struct narrow *p, ir_id n, uint32_t i)
{
    enum ir_op op = (enum ir_op)ir_at(p->in, n)->op;
    bool kda = op == OP_kda || op == OP_kda_grad || op == OP_kda_cached;
    struct use u = {.read = true, .takes = narrow_reads(p->in, n, i)};
    if (is_view(op))
        u = p->use[n];
    else if (moves(p->in, n, i))
        u = result_use(p, n);
    else if (op == OP_round_bf16) /* it goes where the operand is bf16 */
        u.rounds = u.some = true, u.takes = p->use[n].takes;
    else
        u.rounds = u.some = rounds(p, n, i);
    bool elementwise = op_info(op)->flags & F_EW;
    if (!is_view(op) && !moves(p->in, n, i))
        u.coarse = u.rounds || (elementwise && p->use[n].coarse);
    bool whole = op_fusable(op) || op == OP_reshape; /* slices of large products do not count */
    u.decays = (kda && (i == 3 || i == 4)) || (whole && p->use[n].decays);
    return u;
}

static void find_uses(struct narrow *p)
{
    const struct ir_graph *g = p->in;
    const struct ir_readers *r = ir_readers(g);
    p->use = NEW(p->scratch, struct use, g->node.n);
    for (ir_id n = (ir_id)g->node.n; n-- > 0;) {
        struct use u = unused;
        for (uint32_t k = r->first[n]; k < r->first[n + 1]; k++) {
            ir_id m = r->reader[k];
            for (uint32_t i = 0; i < ir_at(g, m)->nsrc; i++)
                if (ir_src(g, m, i) == n) join(&u, use_by(p, m, i));
        }
        if (r->output[n]) u.rounds = u.takes = u.coarse = false;
        p->use[n] = u;
    }
}

/* Are all elements of a value of the new graph bf16 numbers, whoever asks? */
static bool known(const struct ir_graph *g, ir_id n)
{
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    if (op == OP_round_bf16) return true;
    if (op == OP_slice || op == OP_reshape) return known(g, ir_src(g, n, 0));
    return ir_narrow(g, n);
}

/* Must a reshape of `src` (new graph) to columns `to` copy? The rule of ir_view. */
static bool copies(const struct narrow *p, ir_id src, struct ir_dim to)
{
    struct ir_dim from = ir_cols(p->out, src);
    return ir_view(p->out, src).ld != from.add && !dim_eq(from, to);
}

/* The bf16 roundings of a value of the new graph: those of a reshape before it, where they become
 * part of the kernel that computes what is reshaped. */
static ir_id rounded(struct narrow *p, ir_id n)
{
    if (ir_ty(p->out, n)->dtype != IR_f32 || known(p->out, n)) return n;
    if (p->c->serving && ir_at(p->out, ir_view(p->out, n).root)->op == OP_param) return n;
    if (ir_at(p->out, n)->op == OP_reshape) {
        ir_id src = ir_src(p->out, n, 0);
        if (op_fusable((enum ir_op)ir_at(p->out, src)->op) && !copies(p, src, ir_cols(p->out, n)))
            return ir_reshape(p->out, rounded(p, src), ir_at(p->out, n)->type);
    }
    return ir_unary(p->out, OP_round_bf16, n);
}

static void count(struct narrow *p, ir_type_id type)
{
    p->values++;
    p->bytes += 4 * (double)type_count(p->in->types, type, p->c->bind);
}

/* Results that are bf16 only where that is exact. KDA's queries, keys and outputs are normed per
 * head and rounded after that: rounding before it too makes the logits' error of k3-mini 1.5 times
 * that of the contract's roundings alone, and 1.0 times without (test_compiled). */
static bool exact_only(enum ir_op op)
{
    return op == OP_embed || op == OP_short_conv || op == OP_conv_cached || op == OP_kda ||
           op == OP_kda_cached;
}

/* Does operation n, no move, write its result i (value v of `in`) in bf16? */
static bool writes(const struct narrow *p, ir_id n, uint32_t i, ir_id v)
{
    struct use u = p->use[v];
    if (!u.read || !u.takes || !narrow_writes(p->in, n, i, u.rounds)) return false;
    enum ir_op op = (enum ir_op)ir_at(p->in, n)->op;
    if (u.rounds || p->c->exact || exact_only(op)) return u.rounds;
    return u.some || (op != OP_depth_mix && !u.decays);
}

/* The value that stands for result i of node n, IR_NONE where nobody reads it. */
static ir_id value_of(const struct narrow *p, ir_id n, uint32_t i)
{
    if (ir_ty(p->in, n)->dtype != IR_tuple) return n;
    const struct ir_readers *r = ir_readers(p->in);
    for (uint32_t k = r->first[n]; k < r->first[n + 1]; k++)
        if (ir_int(p->in, r->reader[k], AK_index, 0) == (int64_t)i) return r->reader[k];
    return IR_NONE;
}

/* Is node n a function whose result nothing sees but through bf16? */
static bool is_coarse(const struct narrow *p, ir_id n)
{
    if (!p->use[n].read || !p->use[n].coarse) return false;
    switch (ir_at(p->in, n)->op) {
    case OP_exp:
    case OP_tanh:
    case OP_sigmoid: return true;
    case OP_div: return ir_at(p->in, ir_src(p->in, n, 1))->op == OP_const;
    default: return false;
    }
}

/* A copy of node n with results in bf16 where a word says so. */
static ir_id copy(struct narrow *p, ir_id n, const ir_id *src, const char *word)
{
    bool some = strchr(word, '1'), coarse = is_coarse(p, n);
    if (!some && !coarse) return ir_copy(p->out, p->in, n, src);
    const struct ir_node *x = ir_at(p->in, n);
    struct ir_attr attr[AK_COUNT + 2];
    size_t nattr = ir_attrs(p->in, n, attr);
    if (some) attr[nattr++] = A_STR(narrow, word);
    if (coarse) attr[nattr++] = A_INT(coarse, 1);
    bool tuple = ir_ty(p->in, n)->dtype == IR_tuple;
    for (uint32_t i = 0; word[i]; i++)
        if (word[i] == '1') count(p, tuple ? type_elem(p->in->types, x->type, i) : x->type);
    p->out->cur_span = ir_span(p->in, n);
    const char *name = *ir_name(p->in, n) ? ir_name(p->in, n) : NULL;
    return ir_add_instance(p->out, (enum ir_op)x->op, x->type, src, x->nsrc, attr, nattr,
                           x->instance, name);
}

/* A move: bf16 where its operands are, or where nothing but roundings reads it. */
static ir_id move(struct narrow *p, ir_id n, ir_id *src)
{
    uint32_t results = ir_ty(p->in, n)->dtype == IR_tuple ? ir_ty(p->in, n)->count : 1;
    struct use u = result_use(p, n);
    bool all = true;
    for (uint32_t i = 0; i < ir_at(p->in, n)->nsrc; i++) {
        if (!moves(p->in, n, i)) continue;
        if (u.read && u.rounds) src[i] = rounded(p, src[i]);
        all = all && ir_ty(p->out, src[i])->dtype == IR_f32 && known(p->out, src[i]);
    }
    char *word = NEW(p->scratch, char, results + 1);
    memset(word, all && u.read && u.takes ? '1' : '0', results);
    return copy(p, n, src, word);
}

static ir_id place(struct narrow *p, ir_id n)
{
    const struct ir_graph *g = p->in;
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    uint32_t nsrc = ir_at(g, n)->nsrc;
    ir_id *src = NEW(p->scratch, ir_id, nsrc);
    for (uint32_t i = 0; i < nsrc; i++) src[i] = p->map[ir_src(g, n, i)];
    p->out->cur_span = ir_span(g, n);
    if (op == OP_round_bf16) {
        bool again = known(p->out, src[0]) || ir_at(p->out, src[0])->op == OP_reshape;
        return again ? rounded(p, src[0]) : ir_copy(p->out, g, n, src);
    }
    if (nsrc && moves(g, n, 0)) return move(p, n, src);
    if (op == OP_reshape && copies(p, src[0], ir_cols(g, n)) && known(p->out, src[0]) &&
        p->use[n].takes)
        return copy(p, n, src, "1");
    for (uint32_t i = 0; i < nsrc; i++)
        if (rounds(p, n, i)) src[i] = rounded(p, src[i]);
    bool tuple = ir_ty(g, n)->dtype == IR_tuple;
    uint32_t results = tuple ? ir_ty(g, n)->count : 1;
    char *word = NEW(p->scratch, char, results + 1);
    for (uint32_t i = 0; i < results; i++) {
        ir_id v = value_of(p, n, i);
        word[i] = "01"[v != IR_NONE && writes(p, n, i, v)];
    }
    return copy(p, n, src, word);
}

static bool has_bf16(const struct ir_graph *g)
{
    for (ir_id n = 0; n < g->node.n; n++)
        for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++)
            if (narrow_rounds(g, n, i)) return true;
    return false;
}

struct ir_graph *pass_narrow(struct pass_ctx *c, const struct ir_graph *g)
{
    struct arena *scratch = arena_open("narrow");
    struct narrow p = {.c = c, .in = g, .scratch = scratch};
    bool on = c->gpu && has_bf16(g);
    p.out = graph_open(c->arena, g->program, STAGE_T, g->types, g->names);
    p.out->next_instance = g->next_instance;
    p.map = NEW(scratch, ir_id, g->node.n);
    if (on) find_uses(&p);
    for (ir_id n = 0; n < g->node.n; n++) {
        if (on) {
            p.map[n] = place(&p, n);
            continue;
        }
        ir_id *src = NEW(scratch, ir_id, ir_at(g, n)->nsrc);
        for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) src[i] = p.map[ir_src(g, n, i)];
        p.map[n] = ir_copy(p.out, g, n, src);
    }
    for (size_t i = 0; i < g->out.n; i++) {
        ir_output(p.out, intern_text(g->names, g->out.p[i].name), p.map[g->out.p[i].id]);
        vec_last(&p.out->out).ld = g->out.p[i].ld;
    }
    if (c->report && on)
        sb_printf(c->report, "%zu values in two bytes an element: %.1f MB instead of %.1f MB\n",
                  p.values, p.bytes / 2e6, p.bytes / 1e6);
    arena_close(scratch);
    return on ? pass_dce(c, p.out) : p.out; /* reshapes that only roundings read are left over */
}
