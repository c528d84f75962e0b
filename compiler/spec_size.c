/* Limits of size that involve the whole model: what may be too large to count, to address or to
 * name. Sizes are estimated in floating point, so that nothing here overflows. */
#include "compiler/spec_read.h"

enum {
    MAX_TOKENS = 1 << 28,  /* of a program: token ids, rows and offsets are 32-bit */
    MAX_TENSORS = 1 << 20, /* of a checkpoint */
};
#define MAX_BYTES 0x1p60 /* of everything that training and serving hold, as estimated */

int64_t model_max_tokens(const struct model *m)
{
    int64_t most = MAX_TOKENS;
    for (size_t i = 0; i < m->num_ffns; i++) /* rows of experts are counted in 32 bits too */
        if (m->ffn[i].type == FFN_moe && INT32_MAX / m->ffn[i].experts_per_token < most)
            most = INT32_MAX / m->ffn[i].experts_per_token;
    return most;
}

/* Rough counts: parameters, what a token's activations take (both in numbers), and what a cache
 * holds of a sequence. */
struct size {
    double params, token, cache, tensors;
};

static struct size mixer_size(const struct model *m, const struct mixer *x)
{
    double d = (double)m->hidden_size, h = (double)m->serve_max_context;
    double heads = (double)x->num_heads, q = heads * (double)x->head_dim;
    if (x->type == MIXER_kda)
        return (struct size){10 * d * q, 16 * q, q * (double)x->head_dim + 3 * q * 64, 20};
    if (x->type == MIXER_attention) {
        double kv = (double)x->num_kv_heads * (double)x->head_dim;
        return (struct size){2 * d * (q + kv), 4 * (q + kv), 2 * h * kv, 8};
    }
    double qk = heads * (double)(x->qk_nope_head_dim + x->qk_rope_head_dim);
    double v = heads * (double)x->v_head_dim, l = (double)x->kv_lora_rank;
    double latent = l + (double)x->qk_rope_head_dim, r = (double)x->q_lora_rank;
    return (struct size){(r > 0 ? r : d) * qk + d * (r + latent + 2 * v) + l * (qk + v),
                         4 * (qk + v + latent + r), h * latent, 12};
}

static struct size ffn_size(const struct model *m, const struct ffn *f)
{
    double d = (double)m->hidden_size, w = (double)f->intermediate_size;
    if (f->type == FFN_mlp) return (struct size){3 * d * w, 4 * w, 0, 4};
    double e = (double)f->num_experts, k = (double)f->experts_per_token;
    double l = (double)f->latent_size, shared = (double)f->num_shared_experts * w;
    double in = l > 0 ? l : d;
    return (struct size){3 * e * in * w + 3 * d * shared + d * e + 2 * d * l,
                         k * (4 * w + 2 * in) + 4 * shared + 2 * e, 0, 3 * e + 10};
}

static struct size model_size(const struct model *m)
{
    double d = (double)m->hidden_size, v = (double)m->vocab_size;
    struct size s = {2 * d * v, v, 0, 8};
    for (size_t i = 0; i < m->num_layers; i++) {
        struct size x = mixer_size(m, &m->mixer[m->layer[i].mixer]);
        struct size f = ffn_size(m, &m->ffn[m->layer[i].ffn]);
        s.params += x.params + f.params + 8 * d;
        s.token += x.token + f.token + 16 * d;
        s.cache += x.cache;
        s.tensors += x.tensors + f.tensors;
    }
    return s;
}

/* Bytes: weights, gradients, moments, and a set of gradients for each level of micro-batches;
 * activations; the caches of all sequences that are served. */
static double all_bytes(const struct model *m, struct size s)
{
    const struct train_spec *t = &m->train;
    double sets = 4, tokens = t->present
                                  ? (double)(t->batch_size / t->micro_batches) * (double)t->seq_len
                                  : 512;
    for (int64_t k = t->present ? t->micro_batches : 1; k > 1; k /= 2) sets++;
    double caches = s.cache * (double)m->serve_max_sequences;
    return 4 * (sets * s.params + 2 * tokens * s.token + caches);
}

void spec_check_size(struct spec_ctx *c, const struct node *root, const struct model *m)
{
    const struct train_spec *t = &m->train;
    struct size s = model_size(m);
    if (s.tensors > MAX_TENSORS)
        spec_err(c, D_spec_tensors_many, spec_where(root, "model.layers"), s.tensors, MAX_TENSORS);
    if (t->present) {
        const struct node *train = spec_get(root, "train");
        int64_t tokens = t->batch_size / t->micro_batches * t->seq_len, most = model_max_tokens(m);
        if (tokens > most &&
            spec_err(c, D_spec_tokens_many, spec_where(train, "batch_size"), tokens, most)) {
            diag_note(c->d, spec_where(train, "seq_len"), "seq_len is set here");
            diag_hint(c->d, "Cut the batch into more micro_batches.");
            return;
        }
    }
    double bytes = all_bytes(m, s);
    if (bytes > MAX_BYTES)
        spec_err(c, D_spec_large, spec_where(root, "model.hidden_size"), bytes, MAX_BYTES);
}
