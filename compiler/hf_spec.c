/* A spec as readable YAML text: named mixers and ffns, and layers in as few lines as repeats allow.
 */
#include "compiler/hf_config.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const char *hf_number_text(struct arena *a, double x)
{
    if (x == floor(x) && fabs(x) < 1e15) return str_fmt(a, "%.0f", x);
    for (int digits = 1; digits < 17; digits++) {
        char *s = str_fmt(a, "%.*g", digits, x);
        if (strtod(s, NULL) == x) return s;
    }
    return str_fmt(a, "%.17g", x);
}

static void print_mixer(struct sb *s, struct arena *a, const struct mixer *x)
{
    sb_printf(s, "    %s: {type: %s, num_heads: %lld, ", x->name,
              spec_enum_name("mixer_type", (int)x->type), (long long)x->num_heads);
    switch (x->type) {
    case MIXER_attention:
        sb_printf(s, "num_kv_heads: %lld, head_dim: %lld, rope: {theta: %s}",
                  (long long)x->num_kv_heads, (long long)x->head_dim, hf_number_text(a, x->theta));
        if (x->qk_norm) sb_str(s, ", qk_norm: true");
        if (x->window) sb_printf(s, ", window: %lld", (long long)x->window);
        break;
    case MIXER_mla:
        if (x->q_lora_rank) sb_printf(s, "q_lora_rank: %lld, ", (long long)x->q_lora_rank);
        sb_printf(s,
                  "kv_lora_rank: %lld,\n          qk_nope_head_dim: %lld, qk_rope_head_dim: %lld, "
                  "v_head_dim: %lld, rope: none, output_gate: %s",
                  (long long)x->kv_lora_rank, (long long)x->qk_nope_head_dim,
                  (long long)x->qk_rope_head_dim, (long long)x->v_head_dim,
                  x->output_gate ? "true" : "false");
        break;
    case MIXER_kda:
        sb_printf(s, "head_dim: %lld, conv_size: %lld,\n          ", (long long)x->head_dim,
                  (long long)x->conv_size);
        if (x->gate == GATE_bounded)
            sb_printf(s, "gate: {type: bounded, lower_bound: %s}, ",
                      hf_number_text(a, x->lower_bound));
        else
            sb_str(s, "gate: softplus, ");
        sb_printf(s, "output_gate: %s", spec_enum_name("gate_rank", (int)x->output_gate_rank));
        break;
    }
    sb_str(s, "}\n");
}

static void print_ffn(struct sb *s, struct arena *a, const struct ffn *f)
{
    sb_printf(s, "    %s: {type: %s, intermediate_size: %lld, activation: %s", f->name,
              spec_enum_name("ffn_type", (int)f->type), (long long)f->intermediate_size,
              spec_enum_name("activation", (int)f->activation));
    if (f->type == FFN_moe) {
        sb_printf(s,
                  ", num_experts: %lld, experts_per_token: %lld,\n          num_shared_experts: "
                  "%lld, ",
                  (long long)f->num_experts, (long long)f->experts_per_token,
                  (long long)f->num_shared_experts);
        if (f->latent_size) sb_printf(s, "latent_size: %lld, ", (long long)f->latent_size);
        sb_printf(
            s,
            "router: {score: %s, renormalize: %s, scale: %s,\n          balance: {type: bias, "
            "rate: %s}}",
            spec_enum_name("router_score", (int)f->score), f->renormalize ? "true" : "false",
            hf_number_text(a, f->scale), hf_number_text(a, f->balance_rate));
    }
    sb_str(s, "}\n");
}

/* ---- layers ---- */

enum { MAX_PERIOD = 64 };

struct group { /* of `period` layers, `times` over */
    size_t period, times;
};

static bool same(const struct model *m, size_t i, size_t j)
{
    return m->layer[i].mixer == m->layer[j].mixer && m->layer[i].ffn == m->layer[j].ffn;
}

/* The groups of fewest lines from every layer on, from the last layer to the first. A group of
 * several layers ends with another kind than it begins with, so that 3 kda and 1 mla are
 * repeated as they are thought of and not as 2 kda, 1 mla, 1 kda. */
static struct group *group_layers(struct arena *a, const struct model *m)
{
    size_t n = m->num_layers;
    struct group *best = NEW(a, struct group, n + 1);
    size_t *lines = NEW(a, size_t, n + 1);
    uint32_t *run =
        NEW(a, uint32_t, n * MAX_PERIOD); /* layers from i on that are as those p later */
    for (size_t i = n; i-- > 0;) {
        best[i] = (struct group){1, 1};
        lines[i] = 1 + lines[i + 1];
        for (size_t p = 1; p < MAX_PERIOD && i + p < n; p++) {
            uint32_t r =
                same(m, i, i + p) ? 1 + (i + 1 + p < n ? run[(i + 1) * MAX_PERIOD + p] : 0) : 0;
            run[i * MAX_PERIOD + p] = r;
            if (p > 1 && same(m, i, i + p - 1)) continue;
            size_t times = 1 + r / p;
            if (times < 2 || lines[i + times * p] + p + 2 > lines[i]) continue;
            if (lines[i + times * p] + p + 2 == lines[i] && best[i].times == 1) continue;
            best[i] = (struct group){p, times};
            lines[i] = lines[i + times * p] + p + 2;
        }
    }
    return best;
}

static void print_layers(struct sb *s, struct arena *a, const struct model *m)
{
    const struct group *g = group_layers(a, m);
    sb_str(s, "  layers:\n");
    for (size_t i = 0; i < m->num_layers;) {
        size_t period = g[i].period, times = g[i].times;
        if (times > 1) sb_printf(s, "    - repeat: %zu\n      layers:\n", times);
        for (size_t k = i; k < i + period; k++)
            sb_printf(s, "%s- {mixer: %s, ffn: %s}\n", times > 1 ? "        " : "    ",
                      m->mixer[m->layer[k].mixer].name, m->ffn[m->layer[k].ffn].name);
        i += period * times;
    }
}

static void print_tokenizer(struct sb *s, const struct tokenizer_spec *t)
{
    if (t->type != TOK_file) return;
    sb_str(s, "tokenizer: {path: \"");
    for (const char *p = t->path; *p; p++) {
        if (*p == '"' || *p == '\\') sb_char(s, '\\');
        if ((unsigned char)*p < 32 || *p == 127)
            sb_printf(s, "\\x%02x", (unsigned char)*p);
        else
            sb_char(s, *p);
    }
    sb_char(s, '"');
    if (t->bos >= 0) sb_printf(s, ", bos: %lld", (long long)t->bos);
    if (t->eos >= 0) sb_printf(s, ", eos: %lld", (long long)t->eos);
    for (size_t i = 0; i < t->num_stop; i++)
        sb_printf(s, "%s%lld", i ? ", " : ", stop: [", (long long)t->stop[i]);
    sb_str(s, t->num_stop ? "]}\n\n" : "}\n\n");
}

struct str hf_spec_text(struct arena *a, const struct hf_config *c, const char *name)
{
    const struct model *m = &c->model;
    struct sb s = {0};
    sb_printf(&s, "# Made by strata import from a config.json of type %s.\n", c->type);
    if (c->context)
        sb_printf(&s, "# It was made for texts of up to %lld tokens.\n", (long long)c->context);
    sb_printf(&s, "strata: 1\nname: %s\n\n", name);
    print_tokenizer(&s, &m->tokenizer);
    sb_printf(&s, "model:\n  vocab_size: %lld\n  hidden_size: %lld\n  tie_embeddings: %s\n",
              (long long)m->vocab_size, (long long)m->hidden_size,
              m->tie_embeddings ? "true" : "false");
    sb_printf(&s, "  norm: {type: rmsnorm, eps: %s}\n", hf_number_text(a, m->norm_eps));
    sb_printf(&s, "  init: {std: %s, embedding_std: %s}\n", hf_number_text(a, m->init_std),
              hf_number_text(a, m->init_embedding_std));
    if (c->block_size)
        sb_printf(&s,
                  "  residual:\n    type: attnres\n    block_size: %lld    # sublayers; "
                  "attn_res_block_size counts layers, of two each\n    eps: %s\n",
                  (long long)c->block_size, hf_number_text(a, m->key_eps));
    else
        sb_str(&s, "  residual: standard\n");
    sb_str(&s, "  mixers:\n");
    for (size_t i = 0; i < m->num_mixers; i++) print_mixer(&s, a, &m->mixer[i]);
    sb_str(&s, "  ffns:\n");
    for (size_t i = 0; i < m->num_ffns; i++) print_ffn(&s, a, &m->ffn[i]);
    print_layers(&s, a, m);
    return sb_take(&s, a);
}
