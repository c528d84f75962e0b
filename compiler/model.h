/* The checked model: what a spec says after defaults, extends, --set and every check. Plain data in
 * an arena; nothing behind it knows YAML except through spans. spec-contract section 1 is the
 * reference for every field. */
#ifndef STRATA_COMPILER_MODEL_H
#define STRATA_COMPILER_MODEL_H
#include "base/diag.h"

enum norm_type { NORM_rmsnorm, NORM_layernorm };
enum residual_type { RESIDUAL_standard, RESIDUAL_attnres };
enum mixer_type { MIXER_attention, MIXER_mla, MIXER_kda };
enum ffn_type { FFN_mlp, FFN_moe };
enum activation { ACT_swiglu, ACT_situ };
enum router_score { SCORE_sigmoid, SCORE_softmax };
enum balance_type { BALANCE_none, BALANCE_bias };
enum optimizer_type { OPT_adamw, OPT_muon };
enum schedule_type { SCHED_constant, SCHED_wsd, SCHED_cosine };
enum data_order { ORDER_shuffled, ORDER_sequential };
enum precision { PREC_fp32, PREC_bf16 };
enum tokenizer_type { TOK_none, TOK_bytes, TOK_chars, TOK_file };
enum gate_type { GATE_softplus, GATE_bounded };
enum gate_rank { GATE_low_rank, GATE_full };

struct mixer { /* one entry of model.mixers */
    const char *name;
    enum mixer_type type;
    struct span at;
    int64_t num_heads, num_kv_heads, head_dim;
    bool rope;
    double theta;
    bool qk_norm;
    int64_t window; /* 0 = null */
    /* kda */
    int64_t conv_size;
    enum gate_type gate;
    double lower_bound;
    enum gate_rank output_gate_rank;
    /* mla */
    int64_t q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim,
        v_head_dim; /* 0 = null */
    bool output_gate;
};

struct ffn { /* one entry of model.ffns */
    const char *name;
    enum ffn_type type;
    struct span at;
    int64_t intermediate_size;
    enum activation activation;
    int64_t num_experts, experts_per_token, num_shared_experts;
    int64_t latent_size; /* 0 = null */
    enum router_score score;
    bool renormalize;
    double scale;
    enum balance_type balance;
    double balance_rate;
};

struct layer {                       /* after expansion of repeat */
    uint32_t mixer, ffn;             /* indices into model.mixers, model.ffns */
    bool attnres_mixer, attnres_ffn; /* false: this site reads the plain sum */
    struct span at;
};

struct tokenizer_spec {
    enum tokenizer_type type;
    const char *path; /* resolved against the file that names it; TOK_file only */
    const char *pattern, *chat_template; /* NULL where absent */
    int64_t bos, eos;                    /* -1 = none */
    int64_t *stop;
    size_t num_stop;
    struct special_token {
        const char *text;
        int64_t id;
    } * special;
    size_t num_special;
    struct span at;
};

struct train_spec {
    bool present;
    const char *data_path; /* resolved against the file that names it */
    struct span data_at;
    double val_fraction;
    enum data_order order;
    int64_t seq_len, batch_size, micro_batches, steps;
    enum optimizer_type optimizer;
    double lr, beta1, beta2, eps, weight_decay, momentum;
    double qk_clip; /* 0 = null */
    enum schedule_type schedule;
    int64_t warmup, decay;
    double min_lr;
    double grad_clip; /* 0 = null */
    enum precision precision;
    uint64_t seed;
    int64_t eval_every;                        /* 0 = no evaluation */
    int64_t eval_sequences;                    /* 0 = all */
    const char *checkpoint_dir;                /* NULL = none; relative to the working directory */
    int64_t checkpoint_every, checkpoint_keep; /* 0 = at the end only; 0 = keep all */
};

struct model {
    const char *name;
    const char *path;      /* file the spec came from */
    const char *canonical; /* resolved spec as YAML text (extends and --set applied, no comments):
                            * what a checkpoint stores; parsing it gives an equal model. data and
                            * tokenizer paths in it are absolute or as resolved. */
    int64_t vocab_size, hidden_size;
    bool tie_embeddings;
    enum norm_type norm;
    double norm_eps;
    double init_std, init_embedding_std;
    enum residual_type residual;
    /* attnres: first sublayer of every block after the first, ascending, each in 1..2*num_layers-1;
     * whichever of block_size / blocks / boundaries was written. num_blocks = num_boundaries + 1.
     */
    int64_t *boundary;
    size_t num_boundaries;
    double key_eps;
    bool attnres_output;
    struct mixer *mixer;
    size_t num_mixers;
    struct ffn *ffn;
    size_t num_ffns;
    struct layer *layer;
    size_t num_layers; /* 2 * num_layers sublayers */
    struct tokenizer_spec tokenizer;
    struct train_spec train;
    int64_t serve_max_sequences, serve_max_context, serve_cache_tokens, serve_snapshots;
};

/* One --set KEY=VALUE (dotted path, YAML value), applied in order after extends. */
struct spec_options {
    const char *const *set;
    size_t num_set;
};

/* Reads, merges, checks a spec file. NULL when there were errors (then diag_errors(d) > 0).
 * Warnings and notes may be added in any case. Everything is kept in the arena. */
struct model *spec_load(struct arena *a, struct diag *d, const char *path,
                        const struct spec_options *opt);
/* The same from text; `path` names it in messages and anchors relative paths. */
struct model *spec_parse(struct arena *a, struct diag *d, const char *path, struct str text,
                         const struct spec_options *opt);
/* The most tokens of a program, B * T: what its 32-bit counts hold. */
int64_t model_max_tokens(const struct model *m);
/* The first thing in which two models would train differently, as "KEY is X, but was Y" in the
 * arena; NULL where there is none. Evaluation, checkpoint and serve settings are not compared. */
const char *spec_difference(struct arena *a, const struct model *now, const struct model *then);
/* The word of an enum value; key is the enum's tag: "mixer_type", "activation", ... */
const char *spec_enum_name(const char *key, int value);
#endif
