/* From a checked model to config.json: the family that can say it, and its keys. */
#include "compiler/hf_config.h"
#include <math.h>

struct writing {
    struct arena *a;
    struct diag *d;
    const struct model *m;
    struct sb out;
    bool failed;
};

/* "KEY is VALUE: why" and a hint (NULL none). */
static void refuse(struct writing *w, const char *key, const char *value, const char *why,
                   const char *hint)
{
    w->failed = true;
    diag_add(w->d, D_hf_cannot_say, (struct span){0}, key, value, why);
    if (hint) diag_hint(w->d, "%s", hint);
}

#define F(...) str_fmt(w->a, __VA_ARGS__)
#define HEAD(key) sb_str(&w->out, ",\n  \"" #key "\": ")

static const char *real(struct writing *w, double x)
{
    const char *s = hf_number_text(w->a, x);
    return strpbrk(s, ".en") ? s : F("%s.0", s);
}

#define INT(key, x) (HEAD(key), sb_printf(&w->out, "%lld", (long long)(x)))
#define REAL(key, x) (HEAD(key), sb_str(&w->out, real(w, x)))
#define BOOL(key, x) (HEAD(key), sb_str(&w->out, (x) ? "true" : "false"))
#define WORD(key, x) (HEAD(key), sb_printf(&w->out, "\"%s\"", (x)))
/* A size, of which 0 is null. */
#define SIZE(key, x) ((x) ? INT(key, x) : (HEAD(key), sb_str(&w->out, "null")))

/* ---- what several layers must agree in ---- */

/* Whether two entries say the same; names and places aside. */
static bool same_mixer(const struct mixer *x, const struct mixer *y, bool window)
{
    return x->type == y->type && x->num_heads == y->num_heads &&
           x->num_kv_heads == y->num_kv_heads && x->head_dim == y->head_dim && x->rope == y->rope &&
           x->theta == y->theta && x->qk_norm == y->qk_norm &&
           (!window || x->window == y->window) && x->conv_size == y->conv_size &&
           x->gate == y->gate && x->lower_bound == y->lower_bound &&
           x->output_gate_rank == y->output_gate_rank && x->q_lora_rank == y->q_lora_rank &&
           x->kv_lora_rank == y->kv_lora_rank && x->qk_nope_head_dim == y->qk_nope_head_dim &&
           x->qk_rope_head_dim == y->qk_rope_head_dim && x->v_head_dim == y->v_head_dim &&
           x->output_gate == y->output_gate;
}

static bool same_ffn(const struct ffn *x, const struct ffn *y)
{
    return x->type == y->type && x->intermediate_size == y->intermediate_size &&
           x->activation == y->activation && x->num_experts == y->num_experts &&
           x->experts_per_token == y->experts_per_token &&
           x->num_shared_experts == y->num_shared_experts && x->latent_size == y->latent_size &&
           x->score == y->score && x->renormalize == y->renormalize && x->scale == y->scale &&
           x->balance == y->balance && x->balance_rate == y->balance_rate;
}

/* The one mixer of a type that layers use, NULL where none do. */
static const struct mixer *the_mixer(struct writing *w, enum mixer_type type, bool window)
{
    const struct mixer *found = NULL;
    for (size_t i = 0; i < w->m->num_layers; i++) {
        const struct mixer *x = &w->m->mixer[w->m->layer[i].mixer];
        if (x->type != type) continue;
        if (!found) found = x;
        if (same_mixer(x, found, window)) continue;
        refuse(w, F("model.mixers.%s", x->name), F("unlike model.mixers.%s", found->name),
               "config.json has the sizes of one", NULL);
        return found;
    }
    return found;
}

static const struct ffn *the_ffn(struct writing *w, enum ffn_type type)
{
    const struct ffn *found = NULL;
    for (size_t i = 0; i < w->m->num_layers; i++) {
        const struct ffn *x = &w->m->ffn[w->m->layer[i].ffn];
        if (x->type != type) continue;
        if (!found) found = x;
        if (same_ffn(x, found)) continue;
        refuse(w, F("model.ffns.%s", x->name), F("unlike model.ffns.%s", found->name),
               "config.json has the sizes of one", NULL);
        return found;
    }
    return found;
}

static const struct mixer *mixer_of(const struct model *m, size_t layer)
{
    return &m->mixer[m->layer[layer].mixer];
}

static bool is_moe(const struct model *m, size_t layer)
{
    return m->ffn[m->layer[layer].ffn].type == FFN_moe;
}

/* ---- keys of all families ---- */

static void write_head(struct writing *w, const char *class, const char *type, const char *dtype)
{
    const struct model *m = w->m;
    sb_printf(&w->out, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\"", class, type);
    INT(vocab_size, m->vocab_size);
    INT(hidden_size, m->hidden_size);
    INT(num_hidden_layers, m->num_layers);
    INT(max_position_embeddings, m->serve_max_context);
    REAL(rms_norm_eps, m->norm_eps);
    REAL(initializer_range, m->init_std);
    BOOL(tie_word_embeddings, m->tie_embeddings);
    WORD(torch_dtype, dtype);
    BOOL(use_cache, true);
    if (m->tokenizer.bos >= 0) INT(bos_token_id, m->tokenizer.bos);
    if (m->tokenizer.eos >= 0) INT(eos_token_id, m->tokenizer.eos);
}

/* ---- llama, mistral, qwen3 ---- */

static const char *attention_class(struct writing *w, const struct mixer *x, const char **type)
{
    size_t windowed = 0, n = w->m->num_layers;
    for (size_t i = 0; i < n; i++) windowed += mixer_of(w->m, i)->window > 0;
    *type = x->qk_norm ? "qwen3" : windowed ? "mistral" : "llama";
    if (x->qk_norm) return "Qwen3ForCausalLM";
    if (windowed && windowed < n)
        refuse(w, F("model.mixers.%s.window", x->name), "not that of every layer",
               "without qk_norm all layers have the window (mistral) or none (llama)", NULL);
    return windowed ? "MistralForCausalLM" : "LlamaForCausalLM";
}

static void write_windows(struct writing *w)
{
    const struct model *m = w->m;
    int64_t window = 0;
    for (size_t i = 0; i < m->num_layers; i++) {
        int64_t x = mixer_of(m, i)->window;
        if (x && window && x != window)
            refuse(w, F("model.mixers.%s.window", mixer_of(m, i)->name), F("%lld", (long long)x),
                   F("another layer has %lld, and config.json has one", (long long)window), NULL);
        if (x) window = x;
    }
    SIZE(sliding_window, window);
    if (!mixer_of(m, 0)->qk_norm) return;
    BOOL(use_sliding_window, window > 0);
    HEAD(layer_types);
    for (size_t i = 0; i < m->num_layers; i++)
        sb_printf(&w->out, "%s\"%s\"", i ? ", " : "[",
                  mixer_of(m, i)->window ? "sliding_attention" : "full_attention");
    sb_char(&w->out, ']');
    HEAD(max_window_layers); /* what layer_types says, for those that do not read it */
    size_t first = 0;
    while (first < m->num_layers && !mixer_of(m, first)->window) first++;
    sb_printf(&w->out, "%zu", first);
}

static void write_attention_family(struct writing *w, const char *dtype)
{
    const char *type;
    const struct mixer *x = the_mixer(w, MIXER_attention, false);
    const struct ffn *f = the_ffn(w, FFN_mlp);
    const char *class = attention_class(w, x, &type);
    if (!x->rope)
        refuse(w, F("model.mixers.%s.rope", x->name), "none", "attention of every family has rope",
               NULL);
    if (f->activation != ACT_swiglu)
        refuse(w, F("model.ffns.%s.activation", f->name),
               spec_enum_name("activation", (int)f->activation), F("%s has swiglu", type), NULL);
    write_head(w, class, type, dtype);
    INT(num_attention_heads, x->num_heads);
    INT(num_key_value_heads, x->num_kv_heads);
    INT(head_dim, x->head_dim);
    REAL(rope_theta, x->theta);
    HEAD(rope_scaling), sb_str(&w->out, "null");
    BOOL(attention_bias, false);
    INT(intermediate_size, f->intermediate_size);
    WORD(hidden_act, "silu");
    if (!strcmp(type, "llama"))
        BOOL(mlp_bias, false);
    else
        write_windows(w);
}

/* ---- kimi_linear ---- */

/* A list of layers, counted from 1. */
static void write_layers(struct writing *w, const char *key, enum mixer_type type)
{
    const char *comma = "";
    sb_printf(&w->out, "\n    \"%s\": [", key);
    for (size_t i = 0; i < w->m->num_layers; i++) {
        if (mixer_of(w->m, i)->type != type) continue;
        sb_printf(&w->out, "%s%zu", comma, i + 1);
        comma = ", ";
    }
    sb_str(&w->out, "],");
}

static void write_kda(struct writing *w, const struct mixer *x)
{
    HEAD(linear_attn_config);
    if (!x) {
        sb_str(&w->out, "null");
        return;
    }
    sb_char(&w->out, '{');
    write_layers(w, "kda_layers", MIXER_kda);
    write_layers(w, "full_attn_layers", MIXER_mla);
    sb_printf(&w->out,
              "\n    \"num_heads\": %lld,\n    \"head_dim\": %lld,\n    "
              "\"short_conv_kernel_size\": %lld",
              (long long)x->num_heads, (long long)x->head_dim, (long long)x->conv_size);
    if (x->gate == GATE_bounded)
        sb_printf(&w->out, ",\n    \"gate_lower_bound\": %s", real(w, x->lower_bound));
    if (x->output_gate_rank == GATE_full) sb_str(&w->out, ",\n    \"use_full_rank_gate\": true");
    sb_str(&w->out, "\n  }");
}

static void write_mla(struct writing *w, const struct mixer *x, int64_t heads)
{
    static const struct mixer none;
    if (!x) x = &none; /* its sizes are null */
    if (x->rope)
        refuse(w, F("model.mixers.%s.rope", x->name), "rotating",
               "mla of the Kimi family has no positions", NULL);
    INT(num_attention_heads, heads);
    INT(num_key_value_heads, heads);
    SIZE(q_lora_rank, x->q_lora_rank);
    SIZE(kv_lora_rank, x->kv_lora_rank);
    SIZE(qk_nope_head_dim, x->qk_nope_head_dim);
    SIZE(qk_rope_head_dim, x->qk_rope_head_dim);
    SIZE(v_head_dim, x->v_head_dim);
    BOOL(mla_use_nope, true);
    if (x->output_gate) BOOL(mla_use_output_gate, true);
    REAL(rope_theta, 10000);
    HEAD(rope_scaling), sb_str(&w->out, "null");
}

/* moe is where a layer is at least `first` and a multiple of `every`. */
static bool find_pattern(const struct model *m, size_t *first, size_t *every)
{
    size_t n = m->num_layers;
    for (*first = 0; *first < n && !is_moe(m, *first);) ++*first;
    for (*every = 1; *every <= n; ++*every) {
        bool fits = true;
        for (size_t i = 0; i < n && fits; i++)
            fits = is_moe(m, i) == (i >= *first && i % *every == 0);
        if (fits) return true;
    }
    return false;
}

static void check_moe(struct writing *w, const struct ffn *f)
{
    const char *router = F("model.ffns.%s.router", f->name);
    if (f->balance != BALANCE_bias)
        refuse(w, F("%s.balance", router), spec_enum_name("balance_type", (int)f->balance),
               "every router of the family has a bias", "Train it with balance: bias.");
    if (f->renormalize && f->experts_per_token == 1)
        refuse(w, F("%s.renormalize", router), "true",
               "the family does not divide the weight of a single expert by itself",
               "Train it with renormalize: false.");
    if (f->balance_rate != 1e-3)
        diag_add(w->d, D_hf_left_out, (struct span){0}, F("%s.balance.rate", router));
}

static void write_ffns(struct writing *w)
{
    const struct ffn *dense = the_ffn(w, FFN_mlp), *moe = the_ffn(w, FFN_moe);
    size_t first, every;
    bool fits = find_pattern(w->m, &first, &every);
    const struct ffn *any = moe ? moe : dense;
    if (moe && !fits)
        refuse(w, "model.layers", "dense and moe in another order",
               "moe layers of the family are every n-th one from some layer on", NULL);
    if (dense && moe && dense->activation != moe->activation)
        refuse(w, F("model.ffns.%s.activation", dense->name),
               spec_enum_name("activation", (int)dense->activation),
               "all networks of the family have the same", NULL);
    INT(intermediate_size, dense ? dense->intermediate_size : moe->intermediate_size);
    WORD(hidden_act, any->activation == ACT_situ ? "situ" : "silu");
    if (any->activation == ACT_situ) {
        REAL(activation_situ_beta, 4);
        REAL(activation_situ_linear_beta, 25);
    }
    INT(first_k_dense_replace, first);
    INT(moe_layer_freq, fits ? every : 1);
    SIZE(num_experts, moe ? moe->num_experts : 0);
    if (!moe) return;
    check_moe(w, moe);
    INT(num_experts_per_token, moe->experts_per_token);
    INT(num_shared_experts, moe->num_shared_experts);
    INT(moe_intermediate_size, moe->intermediate_size);
    if (moe->latent_size) {
        INT(routed_expert_hidden_size, moe->latent_size);
        BOOL(latent_moe_use_norm, true);
    }
    WORD(moe_router_activation_func, spec_enum_name("router_score", (int)moe->score));
    BOOL(moe_renormalize, moe->renormalize);
    REAL(routed_scaling_factor, moe->scale);
    BOOL(use_grouped_topk, true);
    INT(num_expert_group, 1);
    INT(topk_group, 1);
}

/* attn_res_block_size counts layers: blocks begin with mixers, all equally far apart. */
static void write_attnres(struct writing *w)
{
    const struct model *m = w->m;
    int64_t num = 2 * (int64_t)m->num_layers, size = m->num_boundaries ? m->boundary[0] : num;
    bool even = size % 2 == 0 && (num + size - 1) / size == (int64_t)m->num_boundaries + 1;
    for (size_t i = 0; i < m->num_boundaries; i++)
        even = even && m->boundary[i] == ((int64_t)i + 1) * size;
    if (!even)
        refuse(w, "model.residual", "cut into other blocks than of n whole layers",
               "attn_res_block_size is a number of layers",
               "Use an even block_size, which counts the two sublayers of a layer.");
    for (size_t i = 0; i < m->num_layers; i++)
        if (!m->layer[i].attnres_mixer || !m->layer[i].attnres_ffn) {
            refuse(w, "model.layers.attnres", F("off in layer %zu", i),
                   "all inputs mix over depth in the family", NULL);
            break;
        }
    if (!m->attnres_output)
        refuse(w, "model.residual.output", "false", "the readout mixes over depth in the family",
               NULL);
    if (m->key_eps != m->norm_eps)
        refuse(w, "model.residual.eps", hf_number_text(w->a, m->key_eps),
               F("the family has that of the norms, %s", hf_number_text(w->a, m->norm_eps)),
               F("--set model.residual.eps=%s exports it; results move by about that much.",
                 hf_number_text(w->a, m->norm_eps)));
    INT(attn_res_block_size, size / 2);
}

static void write_kimi(struct writing *w, const char *dtype)
{
    const struct model *m = w->m;
    const struct mixer *attention = the_mixer(w, MIXER_attention, true);
    const struct mixer *kda = the_mixer(w, MIXER_kda, true), *mla = the_mixer(w, MIXER_mla, true);
    if (attention)
        refuse(w, F("model.mixers.%s.type", attention->name), "attention",
               m->residual == RESIDUAL_attnres
                   ? "of the families only kimi_linear has attnres, and its mixers are kda and mla"
                   : "of the families only kimi_linear has moe, kda and mla, and no attention",
               NULL);
    write_head(w, "KimiLinearForCausalLM", "kimi_linear", dtype);
    write_mla(w, mla, mla ? mla->num_heads : kda ? kda->num_heads : 1);
    write_kda(w, kda);
    write_ffns(w);
    if (m->residual == RESIDUAL_attnres) write_attnres(w);
    INT(num_nextn_predict_layers, 0);
}

const char *hf_config_write(struct arena *a, struct diag *d, const struct model *m,
                            const char *dtype)
{
    struct writing w = {.a = a, .d = d, .m = m};
    bool kimi = m->residual == RESIDUAL_attnres;
    for (size_t i = 0; i < m->num_layers; i++)
        kimi |= is_moe(m, i) || mixer_of(m, i)->type != MIXER_attention;
    if (m->norm != NORM_rmsnorm)
        refuse(&w, "model.norm.type", spec_enum_name("norm_type", (int)m->norm),
               "every family has rmsnorm", NULL);
    if (m->init_embedding_std != m->init_std)
        diag_add(d, D_hf_left_out, (struct span){0}, "model.init.embedding_std");
    if (m->train.present) diag_add(d, D_hf_left_out, (struct span){0}, "train");
    if (kimi)
        write_kimi(&w, dtype);
    else
        write_attention_family(&w, dtype);
    sb_str(&w.out, "\n}\n");
    const char *text = sb_take(&w.out, a).p;
    return w.failed ? NULL : text;
}
