#include "compiler/params.h"
#include <math.h>

static const struct init_rule ones = {INIT_constant, 1, 0}, zeros = {INIT_constant, 0, 0};

struct table {
    struct arena *a;
    const struct model *m;
    struct init_rule normal; /* of linears */
    VEC(struct param) v;
};

static struct param *add(struct table *t, enum param_kind kind, struct init_rule init, int rank,
                         int64_t d0, int64_t d1, int64_t d2, const char *name)
{
    struct param p = {.name = name, .kind = kind, .init = init, .rank = rank};
    p.dim[0] = d0, p.dim[1] = d1, p.dim[2] = d2;
    p.count = d0 * (rank > 1 ? d1 : 1) * (rank > 2 ? d2 : 1);
    p.active_num = p.active_den = 1;
    vec_push(t->a, &t->v, p);
    return &vec_last(&t->v);
}

/* A parameter that is one tensor: vectors [n], matrices [rows, cols]. */
static struct param *single(struct table *t, enum param_kind kind, struct init_rule init,
                            int64_t rows, int64_t cols, const char *name)
{
    int rank = cols ? 2 : 1;
    struct param *p = add(t, kind, init, rank, rows, cols, 0, name);
    p->part = NEW(t->a, struct param_part, 1);
    p->num_parts = 1;
    p->part[0] = (struct param_part){.tensor = name, .dim = {rows, cols}, .rank = rank};
    return p;
}

static void vector(struct table *t, int64_t n, const char *name)
{
    single(t, PARAM_vector, ones, n, 0, name);
}

static struct param *matrix(struct table *t, int64_t rows, int64_t cols, const char *name)
{
    return single(t, PARAM_matrix, t->normal, rows, cols, name);
}

/* Matrices of one input side by side: rows[i] x cols each, stored one below the other. */
static struct param *merged(struct table *t, const char *name, int64_t cols, size_t n,
                            const int64_t *rows, const char *const *tensor)
{
    int64_t total = 0;
    for (size_t i = 0; i < n; i++) total += rows[i];
    struct param *p = add(t, PARAM_matrix, t->normal, 2, total, cols, 0, name);
    p->part = NEW(t->a, struct param_part, n);
    p->num_parts = n;
    int64_t at = 0;
    for (size_t i = 0; i < n; at += rows[i++] * cols)
        p->part[i] = (struct param_part){
            .tensor = tensor[i], .dim = {rows[i], cols}, .rank = 2, .offset = at};
    return p;
}

#define F(...) str_fmt(t->a, __VA_ARGS__)

static void attention(struct table *t, const char *p, const struct mixer *x)
{
    int64_t d = t->m->hidden_size, q = x->num_heads * x->head_dim,
            kv = x->num_kv_heads * x->head_dim;
    if (x->qk_norm) { /* normalised heads must lie end to end, so these products stay apart */
        matrix(t, q, d, F("%s.self_attn.q_proj.weight", p));
        matrix(t, kv, d, F("%s.self_attn.k_proj.weight", p));
        matrix(t, kv, d, F("%s.self_attn.v_proj.weight", p));
        vector(t, x->head_dim, F("%s.self_attn.q_norm.weight", p));
        vector(t, x->head_dim, F("%s.self_attn.k_norm.weight", p));
    } else {
        const char *const name[] = {F("%s.self_attn.q_proj.weight", p),
                                    F("%s.self_attn.k_proj.weight", p),
                                    F("%s.self_attn.v_proj.weight", p)};
        merged(t, F("%s.self_attn.qkv_proj.weight", p), d, 3, (const int64_t[]){q, kv, kv}, name);
    }
    matrix(t, d, q, F("%s.self_attn.o_proj.weight", p));
}

/* Stored [channels, 1, taps], as a depthwise convolution of PyTorch. */
static void conv(struct table *t, int64_t channels, int64_t taps, const char *name)
{
    double most = 1 / sqrt((double)taps);
    struct param *p = single(t, PARAM_vector, (struct init_rule){INIT_uniform, -most, most},
                             channels, taps, name);
    p->part[0] = (struct param_part){.tensor = name, .dim = {channels, 1, taps}, .rank = 3};
}

static void kda(struct table *t, const char *layer, const struct mixer *x)
{
    static const struct init_rule a_log = {INIT_log_uniform, 1, 16},
                                  dt_bias = {INIT_dt_bias, 1e-3, 0.1};
    int64_t d = t->m->hidden_size, k = x->head_dim, w = x->num_heads * k, n = 0, rows[3];
    static const char *const one[] = {"q", "k", "v"};
    bool low_rank = x->output_gate_rank == GATE_low_rank;
    const char *name[3], *p = F("%s.self_attn", layer);
    for (; n < 3; n++) rows[n] = w, name[n] = F("%s.%s_proj.weight", p, one[n]);
    merged(t, F("%s.in_proj.weight", p), d, (size_t)n, rows, name);
    n = 0; /* gates and decays are stored in more bits than the others, so they stay apart */
    rows[n] = k, name[n++] = F("%s.f_a_proj.weight", p);
    if (low_rank) rows[n] = k, name[n++] = F("%s.g_a_proj.weight", p);
    rows[n] = x->num_heads, name[n++] = F("%s.b_proj.weight", p);
    merged(t, F("%s.gates_proj.weight", p), d, (size_t)n, rows, name);
    for (int i = 0; i < 3; i++) conv(t, w, x->conv_size, F("%s.%s_conv1d.weight", p, one[i]));
    single(t, PARAM_vector, x->gate == GATE_softplus ? a_log : zeros, x->num_heads, 0,
           F("%s.A_log", p))
        ->part[0]
        .per_head = true;
    single(t, PARAM_vector, dt_bias, w, 0, F("%s.dt_bias", p));
    matrix(t, w, k, F("%s.f_b_proj.weight", p));
    if (low_rank)
        matrix(t, w, k, F("%s.g_b_proj.weight", p));
    else
        matrix(t, w, d, F("%s.g_proj.weight", p));
    vector(t, k, F("%s.o_norm.weight", p));
    matrix(t, d, w, F("%s.o_proj.weight", p));
}

/* All that read the input are one parameter, but for the gate, which is stored in more bits. */
static void mla(struct table *t, const char *p, const struct mixer *x)
{
    int64_t d = t->m->hidden_size, h = x->num_heads, lora = x->q_lora_rank;
    int64_t q = h * (x->qk_nope_head_dim + x->qk_rope_head_dim), o = h * x->v_head_dim;
    const char *const name[] = {lora ? F("%s.self_attn.q_a_proj.weight", p)
                                     : F("%s.self_attn.q_proj.weight", p),
                                F("%s.self_attn.kv_a_proj_with_mqa.weight", p)};
    const int64_t rows[] = {lora ? lora : q, x->kv_lora_rank + x->qk_rope_head_dim};
    merged(t, F("%s.self_attn.in_proj.weight", p), d, 2, rows, name);
    if (x->output_gate) matrix(t, o, d, F("%s.self_attn.g_proj.weight", p));
    if (lora) {
        vector(t, lora, F("%s.self_attn.q_a_layernorm.weight", p));
        matrix(t, q, lora, F("%s.self_attn.q_b_proj.weight", p));
    }
    vector(t, x->kv_lora_rank, F("%s.self_attn.kv_a_layernorm.weight", p));
    matrix(t, h * (x->qk_nope_head_dim + x->v_head_dim), x->kv_lora_rank,
           F("%s.self_attn.kv_b_proj.weight", p));
    matrix(t, d, o, F("%s.self_attn.o_proj.weight", p));
}

static void mlp(struct table *t, const char *p, int64_t width)
{
    const char *const name[] = {F("%s.gate_proj.weight", p), F("%s.up_proj.weight", p)};
    merged(t, F("%s.gate_up_proj.weight", p), t->m->hidden_size, 2, (const int64_t[]){width, width},
           name);
    matrix(t, t->m->hidden_size, width, F("%s.down_proj.weight", p));
}

/* Experts stacked: w13 [2E, F, d] holds w1 and w3 of each expert in turn, w2 [E, d, F]. */
static void experts(struct table *t, const char *p, const struct ffn *f, int64_t d)
{
    int64_t e = f->num_experts, w = f->intermediate_size;
    struct param *up = add(t, PARAM_matrix, t->normal, 3, 2 * e, w, d, F("%s.experts.w13", p));
    up->part = NEW(t->a, struct param_part, 2 * e);
    up->num_parts = (size_t)(2 * e);
    for (int64_t i = 0; i < 2 * e; i++)
        up->part[i] = (struct param_part){
            .tensor = F("%s.experts.%lld.w%d.weight", p, (long long)(i / 2), i % 2 ? 3 : 1),
            .dim = {w, d},
            .rank = 2,
            .offset = i * w * d};
    up->active_num = f->experts_per_token, up->active_den = e;
    struct param *down = add(t, PARAM_matrix, t->normal, 3, e, d, w, F("%s.experts.w2", p));
    down->part = NEW(t->a, struct param_part, e);
    down->num_parts = (size_t)e;
    for (int64_t i = 0; i < e; i++)
        down->part[i] =
            (struct param_part){.tensor = F("%s.experts.%lld.w2.weight", p, (long long)i),
                                .dim = {d, w},
                                .rank = 2,
                                .offset = i * d * w};
    down->active_num = f->experts_per_token, down->active_den = e;
}

static void moe(struct table *t, const char *layer, const struct ffn *f)
{
    int64_t d = t->m->hidden_size, l = f->latent_size;
    const char *p = F("%s.block_sparse_moe", layer);
    matrix(t, f->num_experts, d, F("%s.gate.weight", p));
    if (f->balance == BALANCE_bias)
        single(t, PARAM_state, zeros, f->num_experts, 0, F("%s.gate.e_score_correction_bias", p));
    if (l) matrix(t, l, d, F("%s.routed_expert_down_proj.weight", p));
    experts(t, p, f, l ? l : d);
    if (l) {
        vector(t, l, F("%s.routed_expert_norm.weight", p));
        matrix(t, d, l, F("%s.routed_expert_up_proj.weight", p));
    }
    if (f->num_shared_experts)
        mlp(t, F("%s.shared_experts", p), f->num_shared_experts * f->intermediate_size);
}

static void site(struct table *t, const char *proj, const char *norm)
{
    int64_t d = t->m->hidden_size;
    struct param *q = single(t, PARAM_vector, zeros, d, 0, proj);
    q->part[0] = (struct param_part){.tensor = proj, .dim = {1, d}, .rank = 2}; /* stored [1, D] */
    vector(t, d, norm);
}

static void layer(struct table *t, size_t i)
{
    const struct model *m = t->m;
    const struct layer *l = &m->layer[i];
    const char *p = F("model.layers.%zu", i);
    if (m->residual == RESIDUAL_attnres)
        site(t, F("%s.self_attention_res_proj.weight", p),
             F("%s.self_attention_res_norm.weight", p));
    vector(t, m->hidden_size, F("%s.input_layernorm.weight", p));
    const struct mixer *x = &m->mixer[l->mixer];
    switch (x->type) {
    case MIXER_attention: attention(t, p, x); break;
    case MIXER_kda: kda(t, p, x); break;
    case MIXER_mla: mla(t, p, x); break;
    }
    if (m->residual == RESIDUAL_attnres)
        site(t, F("%s.mlp_res_proj.weight", p), F("%s.mlp_res_norm.weight", p));
    vector(t, m->hidden_size, F("%s.post_attention_layernorm.weight", p));
    const struct ffn *f = &m->ffn[l->ffn];
    if (f->type == FFN_mlp)
        mlp(t, F("%s.mlp", p), f->intermediate_size);
    else
        moe(t, p, f);
}

struct params *params_of(struct arena *a, const struct model *m)
{
    struct table table = {.a = a, .m = m, .normal = {INIT_normal, m->init_std, 0}}, *t = &table;
    struct init_rule embedding = {INIT_normal, m->init_embedding_std, 0};
    single(t, PARAM_embedding, embedding, m->vocab_size, m->hidden_size,
           "model.embed_tokens.weight");
    for (size_t i = 0; i < m->num_layers; i++) layer(t, i);
    if (m->residual == RESIDUAL_attnres)
        site(t, "model.output_attn_res_proj.weight", "model.output_attn_res_norm.weight");
    vector(t, m->hidden_size, "model.norm.weight");
    if (!m->tie_embeddings)
        single(t, PARAM_embedding, t->normal, m->vocab_size, m->hidden_size, "lm_head.weight");
    struct params *ps = NEW(a, struct params, 1);
    ps->p = t->v.p;
    ps->n = t->v.n;
    map_init(&ps->by_name, a);
    for (size_t i = 0; i < ps->n; i++)
        *map_str(&ps->by_name, str_of(ps->p[i].name)) = (uint32_t)i + 1;
    return ps;
}

int64_t part_count(const struct param_part *q)
{
    int64_t n = 1;
    for (int i = 0; i < q->rank; i++) n *= q->dim[i];
    return n;
}

const struct param *params_find(const struct params *ps, const char *name)
{
    const uint32_t *i = map_find(&ps->by_name, str_of(name));
    return i && *i ? &ps->p[*i - 1] : NULL;
}

int64_t params_total(const struct params *ps)
{
    int64_t n = 0;
    for (size_t i = 0; i < ps->n; i++) n += ps->p[i].count;
    return n;
}

int64_t params_active(const struct params *ps, const struct model *m)
{
    int64_t n = 0;
    for (size_t i = 0; i < ps->n; i++) {
        const struct param *p = &ps->p[i];
        bool table = !strcmp(p->name, "model.embed_tokens.weight") && !m->tie_embeddings;
        if (p->kind != PARAM_state && !table) n += p->count / p->active_den * p->active_num;
    }
    return n;
}
