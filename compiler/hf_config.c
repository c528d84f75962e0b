/* From config.json to what a spec says. Sources: the configuration classes of transformers (llama,
 * mistral, qwen3) and of the Kimi releases. */
#include "compiler/hf_config.h"
#include "compiler/hf_json.h"
#include <math.h>

enum hf_family { HF_llama = 1, HF_mistral = 2, HF_qwen3 = 4, HF_kimi = 8, HF_ALL = 15 };
enum { MAX_LAYERS = 4096, MAX_SIZE = 1 << 24, MAX_POSITIONS = 1 << 30 };

struct reading {
    struct arena *a;
    struct diag *d;
    enum hf_family family;
    struct hf_object o; /* with the sizes: the file, or its text_config */
    struct hf_config *c;
    int64_t layers;
};

/* ---- keys of one value, and keys without effect ---- */

static const struct {
    unsigned models;
    const char *key, *values, *why;
} fixed[] = {
#define FIXED(models, key, values, why) {models, #key, values, why},
#include "compiler/hf_key.def"
};

static bool is_one_of(const json_t *v, const char *values)
{
    bool found = false;
    while (!found && *values) {
        size_t n = strcspn(values, "|");
        json_t *want = json_loadb(values, n, JSON_DECODE_ANY, NULL);
        found = json_equal(want, v);
        json_decref(want);
        values += n + (values[n] == '|');
    }
    return found;
}

/* A key whose default (where it is absent) is as unsupported as what it says. */
static void refuse_or_missing(struct hf_object *o, const char *key, const char *why)
{
    if (hf_get(o, key))
        hf_refuse(o, key, why);
    else
        hf_word(o, key, NULL);
}

static void check_fixed(struct reading *r, struct hf_object *o)
{
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        if (!(fixed[i].models & r->family) || !json_object_get(o->json, fixed[i].key)) continue;
        const json_t *v = hf_get(o, fixed[i].key);
        if (v && !is_one_of(v, fixed[i].values)) hf_refuse(o, fixed[i].key, fixed[i].why);
    }
}

static bool is_plain(const char *key)
{
    static const char *const plain[] = {
#define PLAIN(key) #key,
#include "compiler/hf_key.def"
    };
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (!strcmp(plain[i], key)) return true;
    return false;
}

static bool none_known(const char *key)
{
    (void)key;
    return false;
}

/* ---- what the families share ---- */

static struct mixer *add_mixer(struct reading *r, enum mixer_type type, const char *name)
{
    struct model *m = &r->c->model;
    struct mixer *x = &m->mixer[m->num_mixers++];
    *x = (struct mixer){.name = name, .type = type};
    return x;
}

static struct ffn *add_ffn(struct reading *r, enum ffn_type type, const char *name)
{
    struct model *m = &r->c->model;
    struct ffn *f = &m->ffn[m->num_ffns++];
    *f = (struct ffn){.name = name, .type = type};
    return f;
}

/* Weights in other formats than MXFP4 would be read as numbers that they are not. */
static void check_quantization(struct hf_object *o)
{
    struct hf_object q, groups, group, weights;
    if (!hf_sub(o, "quantization_config", &q)) return;
    bool ok = !strcmp(hf_word(&q, "format", ""), "mxfp4-pack-quantized") &&
              !strcmp(hf_word(&q, "quant_method", ""), "compressed-tensors");
    if (ok && hf_sub(&q, "config_groups", &groups)) {
        const char *name;
        json_t *v;
        json_object_foreach((json_t *)groups.json, name, v)
        {
            ok = ok && hf_sub(&groups, name, &group) &&
                 !strcmp(hf_word(&group, "format", "mxfp4-pack-quantized"), "mxfp4-pack-quantized");
            if (ok && hf_sub(&group, "weights", &weights))
                ok = hf_int(&weights, "group_size", 1, MAX_SIZE, 32) == 32 &&
                     hf_int(&weights, "num_bits", 1, 64, 4) == 4;
        }
    }
    if (!ok) hf_refuse(o, "quantization_config", "of quantised weights only MXFP4 is read");
}

/* theta of plain rope, from rope_theta or the newer rope_parameters. */
static double read_rope(struct reading *r)
{
    static const char why[] = "scaled rotary positions are not supported";
    struct hf_object *o = &r->o, s;
    double theta = hf_number(o, "rope_theta", 10000);
    static const char *const keys[] = {"rope_scaling", "rope_parameters"};
    for (int i = 0; i < 2; i++) {
        if (!hf_sub(o, keys[i], &s)) continue;
        const char *type = hf_word(&s, "rope_type", hf_word(&s, "type", i ? "?" : ""));
        if (strcmp(type, "default") != 0) {
            hf_refuse(o, keys[i], why);
            continue;
        }
        theta = hf_number(&s, "rope_theta", theta);
        if (hf_number(&s, "partial_rotary_factor", 1) != 1)
            hf_refuse(&s, "partial_rotary_factor", "rope rotates whole heads here");
        hf_unknown(&s, none_known);
    }
    return theta;
}

static enum activation read_activation(struct reading *r)
{
    struct hf_object *o = &r->o;
    const char *act = hf_word(o, "hidden_act", "silu");
    bool situ = r->family == HF_kimi && !strcmp(act, "situ");
    if (r->family == HF_kimi) {
        static const char *const key[] = {"activation_situ_beta", "activation_situ_linear_beta"};
        for (int i = 0; i < 2; i++)
            if (hf_number(o, key[i], situ ? NAN : 1) != (i ? 25 : 4) && situ && hf_get(o, key[i]))
                hf_refuse(o, key[i], i ? "situ has 25 here" : "situ has 4 here");
    }
    if (situ) return ACT_situ;
    if (*act && strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        hf_refuse(o, "hidden_act", "the gate of a feed-forward network is silu or situ");
    return ACT_swiglu;
}

static void read_common(struct reading *r)
{
    struct hf_object *o = &r->o;
    struct model *m = &r->c->model;
    m->vocab_size = hf_int(o, "vocab_size", 1, MAX_SIZE, HF_REQUIRED);
    m->hidden_size = hf_int(o, "hidden_size", 1, MAX_SIZE, HF_REQUIRED);
    m->tie_embeddings = hf_bool(o, "tie_word_embeddings", false);
    m->norm_eps = hf_number(o, "rms_norm_eps", 1e-6);
    m->init_std = m->init_embedding_std = hf_number(o, "initializer_range", 0.02);
    r->layers = hf_int(o, "num_hidden_layers", 1, MAX_LAYERS, HF_REQUIRED);
    m->num_layers = (size_t)r->layers;
    m->layer = NEW(r->a, struct layer, r->layers);
    m->mixer = NEW(r->a, struct mixer, 2);
    m->ffn = NEW(r->a, struct ffn, 2);
    r->c->context = hf_int(o, "max_position_embeddings", 0, MAX_POSITIONS, 0);
    if (!r->c->context) r->c->context = hf_int(o, "model_max_length", 0, MAX_POSITIONS, 0);
    check_fixed(r, o);
    check_quantization(o);
}

/* ---- llama, mistral, qwen3 ---- */

/* The window of attention: 0 none. `from` is the first layer that has it by default. */
static int64_t read_window(struct reading *r, int64_t *from)
{
    struct hf_object *o = &r->o;
    *from = 0;
    if (r->family == HF_llama) return 0;
    if (r->family == HF_mistral) { /* the class has a default that null takes away */
        bool said = json_object_get(o->json, "sliding_window");
        return hf_int(o, "sliding_window", 1, MAX_POSITIONS, said ? 0 : 4096);
    }
    bool use = hf_bool(o, "use_sliding_window", false);
    int64_t window = hf_int(o, "sliding_window", 1, MAX_POSITIONS, use ? 4096 : 0);
    *from = hf_int(o, "max_window_layers", 0, MAX_POSITIONS, 28);
    return use ? window : 0;
}

/* Which layers have the window. */
static void read_layer_types(struct reading *r, int64_t window, int64_t from, bool *windowed)
{
    struct hf_object *o = &r->o;
    const json_t *types = hf_get(o, "layer_types");
    for (int64_t i = 0; i < r->layers; i++) windowed[i] = window && i >= from;
    if (!types) return;
    if (json_array_size(types) != (size_t)r->layers) {
        hf_refuse(o, "layer_types", "it must be a list with a word for every layer");
        return;
    }
    for (int64_t i = 0; i < r->layers; i++) {
        const char *word = json_string_value(json_array_get(types, (size_t)i));
        windowed[i] = word && !strcmp(word, "sliding_attention");
        const char *why = NULL;
        if (!word || (!windowed[i] && strcmp(word, "full_attention") != 0))
            why = "layers are full_attention or sliding_attention here";
        else if (windowed[i] && !window)
            why = "a layer has a window, but no size of it is set";
        else if (r->family != HF_qwen3 && windowed[i] != (window > 0))
            why = "all layers of the family are alike";
        if (!why) continue;
        hf_refuse(o, "layer_types", why);
        return;
    }
}

static void read_heads(struct reading *r, struct mixer *x)
{
    struct hf_object *o = &r->o;
    struct model *m = &r->c->model;
    x->num_heads = hf_int(o, "num_attention_heads", 1, MAX_SIZE, HF_REQUIRED);
    int64_t kv = r->family == HF_llama ? x->num_heads : HF_REQUIRED; /* others have odd defaults */
    x->num_kv_heads = hf_int(o, "num_key_value_heads", 1, MAX_SIZE, kv);
    int64_t each = m->hidden_size / x->num_heads;
    if (r->family == HF_qwen3) each = HF_REQUIRED;
    x->head_dim = hf_int(o, "head_dim", 1, MAX_SIZE, each ? each : 1);
    x->rope = true;
    x->theta = read_rope(r);
    x->qk_norm = r->family == HF_qwen3;
}

static void read_attention_family(struct reading *r)
{
    struct model *m = &r->c->model;
    int64_t from, window = read_window(r, &from);
    bool *windowed = NEW(r->a, bool, r->layers);
    read_layer_types(r, window, from, windowed);
    struct mixer x = {.type = MIXER_attention};
    read_heads(r, &x);
    int64_t index[2] = {-1, -1}; /* of the mixer without and with the window */
    for (int64_t i = 0; i < r->layers; i++) {
        bool w = windowed[i];
        if (index[w] < 0) {
            struct mixer *y = add_mixer(r, MIXER_attention, "");
            index[w] = y - m->mixer;
            *y = x;
            y->name = w ? "window" : "full";
            y->window = w ? window : 0;
        }
        m->layer[i].mixer = (uint32_t)index[w];
    }
    struct ffn *f = add_ffn(r, FFN_mlp, "dense");
    f->intermediate_size = hf_int(&r->o, "intermediate_size", 1, MAX_SIZE, HF_REQUIRED);
    f->activation = read_activation(r);
    r->c->adds_bos = r->family != HF_qwen3;
}

/* ---- kimi_linear ---- */

static void read_kda(struct reading *r, struct hf_object *l)
{
    struct mixer *x = add_mixer(r, MIXER_kda, "kda");
    x->num_heads = hf_int(l, "num_heads", 1, MAX_SIZE, HF_REQUIRED);
    x->head_dim = hf_int(l, "head_dim", 1, MAX_SIZE, HF_REQUIRED);
    x->conv_size = hf_int(l, "short_conv_kernel_size", 1, 64, 4);
    bool bounded = hf_get(l, "gate_lower_bound");
    x->gate = bounded ? GATE_bounded : GATE_softplus;
    x->lower_bound = bounded ? hf_number(l, "gate_lower_bound", -5) : -5;
    if (bounded && !(x->lower_bound < 0))
        hf_refuse(l, "gate_lower_bound", "a log decay is below 0");
    x->output_gate_rank = hf_bool(l, "use_full_rank_gate", false) ? GATE_full : GATE_low_rank;
}

static void read_mla(struct reading *r)
{
    struct hf_object *o = &r->o;
    struct mixer *x = add_mixer(r, MIXER_mla, "mla");
    x->num_heads = hf_int(o, "num_attention_heads", 1, MAX_SIZE, HF_REQUIRED);
    if (hf_int(o, "num_key_value_heads", 1, MAX_SIZE, x->num_heads) != x->num_heads)
        hf_refuse(o, "num_key_value_heads", "every head of mla has keys and values of its own");
    x->q_lora_rank = hf_int(o, "q_lora_rank", 1, MAX_SIZE, 0);
    x->kv_lora_rank = hf_int(o, "kv_lora_rank", 1, MAX_SIZE, HF_REQUIRED);
    x->qk_nope_head_dim = hf_int(o, "qk_nope_head_dim", 1, MAX_SIZE, HF_REQUIRED);
    x->qk_rope_head_dim = hf_int(o, "qk_rope_head_dim", 1, MAX_SIZE, HF_REQUIRED);
    x->v_head_dim = hf_int(o, "v_head_dim", 1, MAX_SIZE, HF_REQUIRED);
    x->output_gate = hf_bool(o, "mla_use_output_gate", false);
    if (hf_bool(o, "mla_use_nope", false)) return;
    refuse_or_missing(o, "mla_use_nope", "positions that rotate neighbours in pairs are not here");
}

/* Which layers are kda, from the two lists that count from 1. */
static bool read_kinds(struct reading *r, struct hf_object *l, bool *kda)
{
    hf_ints k = {0}, f = {0};
    bool ok = hf_int_list(l, "kda_layers", 1, r->layers, &k);
    ok &= hf_int_list(l, "full_attn_layers", 1, r->layers, &f);
    if (!ok) return false;
    int *count = NEW(r->a, int, r->layers);
    for (size_t i = 0; i < k.n; i++) count[k.p[i] - 1]++, kda[k.p[i] - 1] = true;
    for (size_t i = 0; i < f.n; i++) count[f.p[i] - 1]++;
    for (int64_t i = 0; i < r->layers; i++)
        if (count[i] != 1) {
            diag_add(r->d, D_hf_layer, hf_place(&r->o, "linear_attn_config"), (long long)i + 1,
                     count[i] ? "more than once in kda_layers and full_attn_layers"
                              : "neither in kda_layers nor in full_attn_layers");
            ok = false;
        }
    return ok;
}

static void read_kimi_mixers(struct reading *r)
{
    static const char *const unused[] = {
        "q_lora_rank",         "kv_lora_rank",        "qk_nope_head_dim", "qk_rope_head_dim",
        "v_head_dim",          "mla_use_output_gate", "mla_use_nope",     "head_dim",
        "num_attention_heads", "num_key_value_heads"};
    struct model *m = &r->c->model;
    struct hf_object l;
    bool *kda = NEW(r->a, bool, r->layers), any[2] = {false, false};
    bool given = hf_sub(&r->o, "linear_attn_config", &l);
    for (size_t i = 0; i < sizeof unused / sizeof *unused; i++) hf_get(&r->o, unused[i]);
    read_rope(r); /* nothing is rotated, yet a scaling also changes scores */
    if (given && !read_kinds(r, &l, kda)) return;
    for (int64_t i = 0; i < r->layers; i++) any[kda[i]] = true;
    if (any[1]) read_kda(r, &l);
    if (any[0]) read_mla(r);
    for (int64_t i = 0; i < r->layers; i++) m->layer[i].mixer = any[1] && !kda[i];
    if (!given) return;
    static const char *const sizes[] = {"num_heads", "head_dim", "short_conv_kernel_size",
                                        "gate_lower_bound", "use_full_rank_gate"};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) hf_get(&l, sizes[i]);
    check_fixed(r, &l);
    hf_unknown(&l, none_known);
}

static void read_moe(struct reading *r, struct ffn *f, enum activation act)
{
    struct hf_object *o = &r->o;
    f->intermediate_size = hf_int(o, "moe_intermediate_size", 1, MAX_SIZE, HF_REQUIRED);
    f->activation = act;
    f->experts_per_token = hf_int(o, "num_experts_per_token", 1, MAX_SIZE, HF_REQUIRED);
    f->num_shared_experts = hf_int(o, "num_shared_experts", 0, MAX_SIZE, 0);
    f->latent_size = hf_int(o, "routed_expert_hidden_size", 1, MAX_SIZE, 0);
    if (!hf_bool(o, "latent_moe_use_norm", false) && f->latent_size)
        refuse_or_missing(o, "latent_moe_use_norm", "what comes out of a latent is normed here");
    const char *score = hf_word(o, "moe_router_activation_func", "sigmoid");
    f->score = !strcmp(score, "softmax") ? SCORE_softmax : SCORE_sigmoid;
    if (*score && f->score == SCORE_sigmoid && strcmp(score, "sigmoid") != 0)
        hf_refuse(o, "moe_router_activation_func", "scores are sigmoid or softmax");
    /* The releases do not divide a single weight by itself. */
    f->renormalize = hf_bool(o, "moe_renormalize", true) && f->experts_per_token > 1;
    f->scale = hf_number(o, "routed_scaling_factor", 1);
    f->balance = BALANCE_bias; /* every router of the family has the bias */
    f->balance_rate = 1e-3;
}

static void read_kimi_ffns(struct reading *r)
{
    static const char *const unused[] = {
        "moe_intermediate_size",     "num_experts_per_token", "num_shared_experts",
        "routed_expert_hidden_size", "latent_moe_use_norm",   "moe_router_activation_func",
        "moe_renormalize",           "routed_scaling_factor", "intermediate_size"};
    struct hf_object *o = &r->o;
    struct model *m = &r->c->model;
    int64_t experts = hf_int(o, "num_experts", 1, MAX_SIZE, 0);
    int64_t first = hf_int(o, "first_k_dense_replace", 0, MAX_SIZE, 0);
    int64_t every = hf_int(o, "moe_layer_freq", 1, MAX_SIZE, 1);
    enum activation act = read_activation(r);
    int64_t index[2] = {-1, -1}; /* of dense and moe */
    for (int64_t i = 0; i < r->layers; i++) {
        bool moe = experts && i >= first && i % every == 0;
        if (index[moe] < 0) {
            struct ffn *f = add_ffn(r, moe ? FFN_moe : FFN_mlp, moe ? "moe" : "dense");
            index[moe] = f - m->ffn;
            f->activation = act;
            f->num_experts = moe ? experts : 0;
            if (moe)
                read_moe(r, f, act);
            else
                f->intermediate_size = hf_int(o, "intermediate_size", 1, MAX_SIZE, HF_REQUIRED);
        }
        m->layer[i].ffn = (uint32_t)index[moe];
    }
    for (size_t i = 0; i < sizeof unused / sizeof *unused; i++) hf_get(o, unused[i]);
}

static void read_kimi(struct reading *r)
{
    struct model *m = &r->c->model;
    read_kimi_mixers(r);
    read_kimi_ffns(r);
    hf_int(&r->o, "num_nextn_predict_layers", 0, MAX_LAYERS, 0); /* tensors that are not used */
    /* Counted in decoder layers: layer n begins a block where n % size is 0, with its mixer. */
    int64_t layers = hf_int(&r->o, "attn_res_block_size", 1, MAX_SIZE, 0);
    if (!layers) return;
    if (layers > r->layers) layers = r->layers;
    r->c->block_size = 2 * layers;
    m->residual = RESIDUAL_attnres;
    m->key_eps = m->norm_eps;
    m->attnres_output = true;
}

/* ---- the file ---- */

/* The family, with r->o the object that has the sizes; 0 after an error. */
static enum hf_family read_family(struct reading *r, struct hf_object *root)
{
    const char *type = hf_word(root, "model_type", NULL);
    r->o = *root;
    r->c->type = str_dup(r->a, str_of(type));
    if (!strcmp(type, "llama")) return HF_llama;
    if (!strcmp(type, "mistral")) return HF_mistral;
    if (!strcmp(type, "qwen3")) return HF_qwen3;
    if (!strcmp(type, "kimi_linear")) return HF_kimi;
    if (!strcmp(type, "kimi_k3")) {
        if (!hf_sub(root, "text_config", &r->o)) {
            if (!hf_get(root, "text_config")) hf_word(root, "text_config", NULL);
            return 0;
        }
        if (!strcmp(hf_word(&r->o, "model_type", "kimi_linear"), "kimi_linear")) return HF_kimi;
        hf_refuse(&r->o, "model_type", "the text part of kimi_k3 is a kimi_linear");
        return 0;
    }
    if (!*type) return 0; /* reported */
    diag_add(r->d, D_hf_model, hf_place(root, "model_type"), hf_show(root, "model_type"));
    diag_hint(r->d, !strcmp(type, "qwen2")
                        ? "Its q, k and v projections have biases, which attention has not here."
                        : "Supported are llama, mistral, qwen3, kimi_linear and kimi_k3.");
    return 0;
}

/* The wrapper of kimi_k3 says some things a second time. */
static void check_wrapper(struct reading *r, struct hf_object *root)
{
    check_fixed(r, root);
    check_quantization(root);
    if (json_object_get(root->json, "tie_word_embeddings") &&
        hf_bool(root, "tie_word_embeddings", false) != r->c->model.tie_embeddings)
        hf_refuse(root, "tie_word_embeddings", "text_config says otherwise");
    hf_unknown(root, is_plain);
}

struct hf_config *hf_config_read(struct arena *a, struct diag *d, const char *path, struct str text)
{
    struct reading r = {.a = a, .d = d, .c = NEW(a, struct hf_config, 1)};
    struct hf_object root;
    size_t before = diag_errors(d);
    if (!hf_parse(a, d, path, text, false, &root)) return NULL;
    if ((r.family = read_family(&r, &root))) {
        read_common(&r);
        if (r.family == HF_kimi)
            read_kimi(&r);
        else
            read_attention_family(&r);
        hf_unknown(&r.o, is_plain);
        if (r.o.json != root.json) check_wrapper(&r, &root);
    }
    json_decref((json_t *)root.json);
    return diag_errors(d) > before ? NULL : r.c;
}
