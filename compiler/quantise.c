#include "compiler/quantise.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const char *quantised_name(enum quantised_part p)
{
    static const char *const name[QUANT_PARTS] = {
        "embedding", "head",           "attention",      "KDA", "MLA", "dense FFN",
        "experts",   "shared experts", "AttnRes sources"};
    return name[p];
}

static enum quantised_part mixer_part(const struct model *m, const char *name)
{
    long long layer = 0;
    if (sscanf(name, "model.layers.%lld.", &layer) != 1 || layer < 0 ||
        (size_t)layer >= m->num_layers)
        BUG("no layer in %s", name);
    switch (m->mixer[m->layer[layer].mixer].type) {
    case MIXER_attention: return QUANT_attention;
    case MIXER_kda: return QUANT_kda;
    case MIXER_mla: return QUANT_mla;
    }
    BUG("a mixer without a type");
}

enum quantised_part quantised_part(const struct model *m, const struct param *p)
{
    const char *n = p->name;
    if (!strcmp(n, "model.embed_tokens.weight")) return QUANT_embedding;
    if (!strcmp(n, "lm_head.weight")) return QUANT_head;
    if (strstr(n, ".self_attn.")) return mixer_part(m, n);
    if (strstr(n, ".shared_experts.")) return QUANT_shared;
    if (strstr(n, ".block_sparse_moe.")) return QUANT_experts;
    if (strstr(n, ".mlp.")) return QUANT_ffn;
    BUG("%s belongs to no part", n);
}

bool *quantised_params(struct arena *a, const struct model *m, const struct params *ps,
                       enum ir_store store)
{
    struct arena *s = arena_open("quantised");
    const struct build_options o = {.pages = 1, .states = 1, .context = IR_PAGE, .store = store};
    const struct ir_graph *g = build_model(s, m, ps, BUILD_decode, &o);
    bool *in = NEW(a, bool, ps->n);
    for (ir_id n = 0; n < g->node.n; n++) {
        if (ir_at(g, n)->op != OP_param || !store_in_panels(ir_stored(g, n))) continue;
        const struct param *p = params_find(ps, ir_word(g, n, AK_name, ""));
        CHECK(p);
        in[p - ps->p] = true;
    }
    arena_close(s);
    return in;
}

static void quantise_row(float *x, int64_t k)
{
    float most = 0;
    for (int64_t i = 0; i < k; i++) most = fmaxf(most, fabsf(x[i]));
    float scale = most / 127;
    for (int64_t i = 0; i < k; i++) x[i] = scale > 0 ? rintf(x[i] / scale) * scale : 0;
}

void quantise_rows(enum ir_store store, float *x, int64_t rows, int64_t k)
{
    uint16_t half[256];
    for (int64_t i = 0; store == STORE_i8 && i < rows; i++) quantise_row(x + i * k, k);
    for (int64_t i = 0; store == STORE_bf16 && i < rows * k; i += 256) {
        int64_t n = rows * k - i < 256 ? rows * k - i : 256;
        tf_to_bf16(x + i, (size_t)n, half);
        for (int64_t j = 0; j < n; j++) {
            uint32_t bits = (uint32_t)half[j] << 16;
            memcpy(&x[i + j], &bits, sizeof bits);
        }
    }
}

/* ---- losses ---- */

struct losses {
    struct run *r;
    const bool *in;
    struct plan *plan;
};

static double run_loss(struct run *r, struct plan *p)
{
    run_now(r, p);
    return (double)*(const float *)plan_value(p, "loss")->p;
}

static bool finite_all(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* The loss with one part (or all: QUANT_PARTS) rounded. */
static enum rt_status loss_with(const struct losses *c, enum quantised_part part, double *out,
                                struct rt_error *err)
{
    const struct params *ps = c->r->params;
    struct arena *a = arena_open("quantise");
    float **kept = NEW(a, float *, ps->n);
    enum rt_status st = RT_ok;
    for (size_t i = 0; i < ps->n && !st; i++) {
        const struct param *p = &ps->p[i];
        if (!c->in[i] || (part != QUANT_PARTS && quantised_part(c->r->model, p) != part)) continue;
        size_t bytes = (size_t)p->count * sizeof(float);
        if (!finite_all(c->r->weights[i], p->count))
            st = rt_fail(err, RT_user, "%s has numbers that are not finite", p->name);
        else if (!(kept[i] = malloc(bytes)))
            st = rt_fail(err, RT_machine, "no memory for a copy of %s", p->name);
        if (st) continue;
        memcpy(kept[i], c->r->weights[i], bytes);
        int64_t k = p->dim[p->rank - 1];
        quantise_rows(c->r->store, c->r->weights[i], p->count / k, k);
    }
    if (!st) *out = run_loss(c->r, c->plan);
    for (size_t i = 0; i < ps->n; i++) {
        if (kept[i]) memcpy(c->r->weights[i], kept[i], (size_t)ps->p[i].count * sizeof(float));
        free(kept[i]);
    }
    arena_close(a);
    return st;
}

enum rt_status quantise_losses(struct run *r, struct plan *loss, struct plan *sources,
                               struct quantised *out, struct rt_error *err)
{
    struct arena *a = r->cli->arena;
    const struct losses c = {r, quantised_params(a, r->model, r->params, r->store), loss};
    *out = (struct quantised){.plain = run_loss(r, loss)};
    for (size_t i = 0; i < r->params->n; i++)
        if (c.in[i])
            out->weights[quantised_part(r->model, &r->params->p[i])] += r->params->p[i].count;
    for (int p = 0; p < QUANT_sources; p++)
        if (out->weights[p]) RT_TRY(loss_with(&c, (enum quantised_part)p, &out->loss[p], err));
    RT_TRY(loss_with(&c, QUANT_PARTS, &out->all, err));
    if (!sources) return RT_ok;
    out->weights[QUANT_sources] = (int64_t)r->model->num_boundaries;
    out->loss[QUANT_sources] = run_loss(r, sources);
    return RT_ok;
}
