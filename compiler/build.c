#include "compiler/build.h"
#include "compiler/build_parts.h"

/* ---- shared parts (build_parts.h) ---- */

const char *b_name(struct builder *b, const char *fmt, ...)
{
    va_list ap;
    struct sb s = {0};
    va_start(ap, fmt);
    sb_vprintf(&s, fmt, ap);
    va_end(ap);
    return sb_take(&s, b->g->arena).p;
}

static ir_id leaf(struct builder *b, const struct param *p, enum ir_store store, int rank,
                  const int64_t *dim)
{
    struct ir_dim d[3];
    for (int i = 0; i < rank; i++) d[i] = dim_const(dim[i]);
    ir_type_id t = type_add(b->g->types, IR_f32, (unsigned)rank, d);
    enum ir_op op = p->kind == PARAM_state ? OP_input : OP_param;
    const struct ir_attr attr[] = {A_STR(name, p->name), A_STR(store, store_word(store))};
    return ir_add_typed(b->g, op, t, NO_SRCS, attr, store ? 2 : 1, p->name);
}

static const struct param *find(struct builder *b, const char *name)
{
    const struct param *p = params_find(b->ps, name);
    if (!p) BUG("no parameter %s", name);
    return p;
}

ir_id b_param(struct builder *b, const char *name)
{
    const struct param *p = find(b, name);
    return leaf(b, p, b->options->store ? STORE_rows : STORE_none, p->rank, p->dim);
}

ir_id b_weight(struct builder *b, const char *name, int64_t parts)
{
    const struct param *p = find(b, name);
    int64_t k = p->dim[p->rank - 1];
    const int64_t dim[] = {parts, parts ? p->count / k / parts : 0, k};
    return parts ? leaf(b, p, b->options->store, 3, dim)
                 : leaf(b, p, b->options->store, p->rank, p->dim);
}

ir_id b_weight_absorbed(struct builder *b, const char *name)
{
    return b->options->store == STORE_rows_bf16 ? b_weight(b, name, 0) : b_param(b, name);
}

enum ir_store build_store(const struct model *m, bool gpu)
{
    bool bf16 = m->train.precision == PREC_bf16;
    if (gpu) return bf16 ? STORE_rows_bf16 : STORE_rows;
    return bf16 ? STORE_bf16 : STORE_f32;
}

bool b_bf16(const struct builder *b)
{
    return b->m->train.precision == PREC_bf16;
}

ir_id b_round(struct builder *b, ir_id x)
{
    return b_bf16(b) ? ir_unary(b->g, OP_round_bf16, x) : x;
}

ir_id b_linear(struct builder *b, ir_id x, const char *w, const char *name)
{
    return ir_matmul_as(b->g, x, b_weight(b, w, 0), false, true, b_bf16(b), name);
}

ir_id b_linear_gate(struct builder *b, ir_id x, const char *w, const char *name)
{
    const struct param *p = find(b, w);
    enum ir_store s = b->options->store == STORE_i8 ? build_store(b->m, false) : b->options->store;
    return ir_matmul_as(b->g, x, leaf(b, p, s, p->rank, p->dim), false, true, b_bf16(b), name);
}

ir_id b_linear_exact(struct builder *b, ir_id x, const char *w, const char *name)
{
    bool half = b->options->store == STORE_rows_bf16 && b_bf16(b); /* as the product rounds it */
    ir_id y = half ? b_weight(b, w, 0) : b_param(b, w);
    return ir_matmul_as(b->g, x, y, false, true, b_bf16(b), name);
}

/* 1 / sqrt(mean(x^2) + eps), per row. */
static ir_id inverse_rms(struct builder *b, ir_id x, double eps)
{
    struct ir_graph *g = b->g;
    ir_id sum = ir_unary(g, OP_rowsum, ir_binary(g, OP_mul, x, x));
    ir_id mean = ir_binary(g, OP_div, sum, ir_const(g, (double)ir_cols(g, x).add));
    return ir_unary(g, OP_rsqrt, ir_binary(g, OP_add, mean, ir_const(g, eps)));
}

ir_id b_rmsnorm(struct builder *b, ir_id x, const char *gain)
{
    ir_id xr = ir_binary(b->g, OP_mul, x, inverse_rms(b, x, b->m->norm_eps));
    return ir_binary(b->g, OP_mul, xr, b_param(b, gain));
}

ir_id b_norm(struct builder *b, ir_id x, const char *gain)
{
    if (b->m->norm == NORM_layernorm) {
        ir_id sum = ir_unary(b->g, OP_rowsum, x);
        ir_id mean = ir_binary(b->g, OP_div, sum, ir_const(b->g, (double)ir_cols(b->g, x).add));
        x = ir_binary(b->g, OP_sub, x, mean);
    }
    return b_rmsnorm(b, x, gain);
}

ir_id b_activation(struct builder *b, enum activation act, ir_id x, ir_id up)
{
    struct ir_graph *g = b->g;
    ir_id s = ir_unary(g, OP_sigmoid, x);
    if (act == ACT_swiglu) return ir_binary(g, OP_mul, ir_binary(g, OP_mul, x, s), up);
    ir_id t = ir_unary(g, OP_tanh, ir_binary(g, OP_mul, x, ir_const(g, 0.25)));
    ir_id left = ir_binary(g, OP_mul, ir_binary(g, OP_mul, t, ir_const(g, 4)), s);
    ir_id u = ir_unary(g, OP_tanh, ir_binary(g, OP_div, up, ir_const(g, 25)));
    return ir_binary(g, OP_mul, left, ir_binary(g, OP_mul, u, ir_const(g, 25)));
}

/* ---- depth: which sources each sublayer reads (attnres-paper.md 2.2) ---- */

struct depth {
    VEC(ir_id) done; /* embedding and finished blocks */
    ir_id part;      /* running sum of this block, IR_NONE = none yet */
};

static bool starts_block(const struct model *m, size_t l)
{
    for (size_t i = 0; i < m->num_boundaries; i++)
        if ((size_t)m->boundary[i] == l) return true;
    return false;
}

/* The mix of one site over all present sources, or their plain sum where the site is off. */
static ir_id mix(struct builder *b, const struct depth *d, bool on, const char *proj,
                 const char *norm)
{
    struct ir_graph *g = b->g;
    VEC(ir_id) src = {0};
    ir_id query = b_param(b, proj), gain = b_param(b, norm);
    vec_push(g->arena, &src, ir_binary(g, OP_mul, query, gain));
    for (size_t i = 0; i < d->done.n; i++) vec_push(g->arena, &src, d->done.p[i]);
    if (d->part != IR_NONE) vec_push(g->arena, &src, d->part);
    if (!on) {
        ir_id sum = src.p[1];
        for (size_t i = 2; i < src.n; i++) sum = ir_binary(g, OP_add, sum, src.p[i]);
        return sum;
    }
    size_t stem = strlen(proj) - strlen(".weight");
    const char *site = b_name(b, "%.*s", (int)stem, proj);
    ir_id t = ir_add(g, OP_depth_mix, src.p, src.n,
                     ATTRS(A_STR(site, site), A_INT(sources, src.n - 1), A_NUM(eps, b->m->key_eps)),
                     site);
    /* who runs a decode program knows no model */
    const char *partial = b_cached(b) && d->part != IR_NONE ? "partial." : "";
    if (b->options->depth_weights || b->options->probes) {
        ir_id s = ir_binary(g, OP_sub, ir_get(g, t, 1), ir_get(g, t, 3));
        ir_id p = ir_unary(g, OP_exp, s);
        if (b->options->depth_weights) ir_output(g, b_name(b, "depth.%s%s", partial, site), p);
        if (b->options->probes) { /* mean over tokens comes from the runtime's division by count */
            ir_id h = ir_unary(g, OP_neg, ir_unary(g, OP_sum, ir_binary(g, OP_mul, p, s)));
            ir_output(g, b_name(b, "probe.entropy.%s", site), h);
        }
    }
    return b_round(b, ir_get(g, t, 0));
}

static void probe(struct builder *b, const char *what, size_t block, ir_id x)
{
    if (!b->options->probes) return;
    ir_id sq = ir_unary(b->g, OP_sum, ir_binary(b->g, OP_mul, x, x));
    ir_output(b->g, b_name(b, "probe.%s.%zu", what, block), sq);
    ir_output(b->g, b_name(b, "probed.%zu", block), x); /* build_gradients makes probe.grad of it */
}

/* A finished block as build_options.sources keeps it. */
static ir_id kept_source(struct builder *b, ir_id x)
{
    struct ir_graph *g = b->g;
    if (b->options->sources == STORE_bf16) return ir_unary(g, OP_round_bf16, x);
    if (b->options->sources != STORE_i8) return x;
    ir_id most = ir_unary(g, OP_rowmax, ir_binary(g, OP_max, x, ir_unary(g, OP_neg, x)));
    ir_id some = ir_binary(g, OP_max, most, ir_const(g, 1e-30)); /* a row of zeros stays so */
    ir_id scale = ir_binary(g, OP_div, some, ir_const(g, 127));
    return ir_binary(g, OP_mul, ir_unary(g, OP_round, ir_binary(g, OP_div, x, scale)), scale);
}

/* ---- the model ---- */

/* An input of n elements; SYM_one: a scalar. */
static ir_id input(struct builder *b, enum ir_dtype dtype, struct ir_dim n, const char *name)
{
    ir_type_id t = type_add(b->g->types, dtype, !dim_is_const(n), &n);
    return ir_add_typed(b->g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

static ir_id sublayer(struct builder *b, size_t l, ir_id h)
{
    const struct layer *y = &b->m->layer[l / 2];
    const char *p = b_name(b, "model.layers.%zu", l / 2);
    bool mixer = l % 2 == 0;
    ir_id x =
        b_norm(b, h, b_name(b, "%s.%s_layernorm.weight", p, mixer ? "input" : "post_attention"));
    b->g->cur_span = mixer ? b->m->mixer[y->mixer].at : b->m->ffn[y->ffn].at;
    x = mixer ? b_mixer(b, &b->m->mixer[y->mixer], x, p) : b_ffn(b, &b->m->ffn[y->ffn], x, p);
    return b_round(b, x);
}

static ir_id attnres(struct builder *b, ir_id emb)
{
    const struct model *m = b->m;
    struct depth d = {.part = IR_NONE};
    vec_push(b->g->arena, &d.done, emb);
    for (size_t l = 0; l < 2 * m->num_layers; l++) {
        const struct layer *y = &m->layer[l / 2];
        b->g->cur_span = y->at;
        if (l > 0 && starts_block(m, l)) {
            probe(b, "block", d.done.n - 1, d.part);
            vec_push(b->g->arena, &d.done, kept_source(b, b_round(b, d.part)));
            d.part = IR_NONE;
        }
        const char *site = l % 2 ? "mlp" : "self_attention";
        const char *proj = b_name(b, "model.layers.%zu.%s_res_proj.weight", l / 2, site);
        const char *norm = b_name(b, "model.layers.%zu.%s_res_norm.weight", l / 2, site);
        ir_id h = emb;
        if (l > 0)
            h = mix(b, &d, l % 2 ? y->attnres_ffn : y->attnres_mixer, proj, norm);
        else
            (void)b_param(b, proj), (void)b_param(b, norm);
        ir_id out = sublayer(b, l, h);
        d.part = d.part == IR_NONE ? out : ir_binary(b->g, OP_add, d.part, out);
    }
    probe(b, "block", d.done.n - 1, d.part);
    return mix(b, &d, m->attnres_output, "model.output_attn_res_proj.weight",
               "model.output_attn_res_norm.weight");
}

static ir_id standard(struct builder *b, ir_id h)
{
    for (size_t l = 0; l < 2 * b->m->num_layers; l++) {
        b->g->cur_span = b->m->layer[l / 2].at;
        h = ir_binary(b->g, OP_add, h, sublayer(b, l, h));
    }
    probe(b, "block", 0, h);
    return h;
}

struct ir_graph *build_model(struct arena *a, const struct model *m, const struct params *ps,
                             enum build_program program, const struct build_options *o)
{
    static const char *const name[] = {"forward", "loss", "train", "decode"};
    struct builder builder = {.m = m, .ps = ps, .options = o, .past = IR_NONE};
    struct builder *b = &builder;
    struct ir_graph *g = b->g = graph_open(a, name[program], STAGE_T, NULL, NULL);
    ir_id tokens = input(b, IR_i32, dim_sym(SYM_N, 1), "tokens");
    if (program == BUILD_decode) {
        CHECK(o->pages > 0 && o->states > 0 && o->context > 0 && o->context % IR_PAGE == 0);
        b->past = input(b, IR_i32, dim_sym(SYM_B, 1), "past");
        b->pages = input(b, IR_i32, dim_sym(SYM_B, o->context / IR_PAGE), "pages");
        b->states = input(b, IR_i32, dim_sym(SYM_B, 1), "states");
    }
    ir_id table = b_weight(b, "model.embed_tokens.weight", 0);
    ir_id emb = b_round(b, ir_add(g, OP_embed, SRCS(table, tokens), NO_ATTRS, "embed"));
    ir_id h = m->residual == RESIDUAL_attnres ? attnres(b, emb) : standard(b, emb);
    g->cur_span = (struct span){0};
    if (program == BUILD_decode && !o->all_logits)
        h = ir_add(g, OP_last_rows, SRCS(h), NO_ATTRS, "last");
    h = b_norm(b, h, "model.norm.weight");
    ir_id logits = b_linear(
        b, h, m->tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", "logits");
    if (program == BUILD_forward || program == BUILD_decode) {
        ir_output(g, "logits", logits);
        return g;
    }
    ir_id targets = input(b, IR_i32, dim_sym(SYM_N, 1), "targets");
    ir_id count = input(b, IR_f32, dim_const(1), "count");
    ir_id nll = ir_get(g, ir_add(g, OP_cross_entropy, SRCS(logits, targets), NO_ATTRS, "loss"), 0);
    ir_output(g, "loss", ir_binary(g, OP_div, ir_unary(g, OP_sum, nll), count));
    if (program == BUILD_train)
        for (size_t i = 0; i < b->loads.n; i++)
            ir_output(g, b_name(b, "load.%s", b->loads.p[i].name), b->loads.p[i].id);
    if (program == BUILD_train)
        for (size_t i = 0; i < b->tops.n; i++)
            ir_output(g, b_name(b, "logit_max.%s", b->tops.p[i].layer), b->tops.p[i].id);
    return g;
}

void build_gradients(struct ir_graph *g)
{
    struct arena *s = arena_open("gradients");
    VEC(ir_id) wrt = {0};
    for (ir_id n = 0; n < g->node.n; n++)
        if (ir_at(g, n)->op == OP_param) vec_push(s, &wrt, n);
    size_t params = wrt.n, kept = 0;
    for (size_t i = 0; i < g->out.n; i++) { /* probed.N: magnitudes of gradients of blocks */
        struct ir_output o = g->out.p[i];
        if (str_starts(str_of(intern_text(g->names, o.name)), "probed."))
            vec_push(s, &wrt, o.id);
        else
            g->out.p[kept++] = o;
    }
    g->out.n = kept;
    ir_id *grad = NEW(s, ir_id, wrt.n);
    autodiff(g, ir_find_output(g, "loss"), wrt.p, wrt.n, grad);
    for (size_t i = 0; i < params; i++)
        ir_output(g, str_fmt(s, "grad.%s", ir_name(g, wrt.p[i])), grad[i]);
    for (size_t i = params; i < wrt.n; i++)
        ir_output(g, str_fmt(s, "probe.grad.%zu", i - params),
                  ir_unary(g, OP_sum, ir_binary(g, OP_mul, grad[i], grad[i])));
    arena_close(s);
}
