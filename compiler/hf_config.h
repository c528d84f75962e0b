/* config.json of Hugging Face folders: to a spec, and from one. The families are llama, mistral,
 * qwen3, kimi_linear, and the text part of kimi_k3. */
#ifndef STRATA_COMPILER_HF_CONFIG_H
#define STRATA_COMPILER_HF_CONFIG_H
#include "compiler/model.h"

struct hf_config {
    const char *type;   /* model_type, for comments */
    struct model model; /* what the spec says of sizes, mixers, ffns and layers */
    int64_t block_size; /* of attnres, in sublayers; 0 where the residual is standard */
    int64_t context;    /* positions it was made for; 0 unknown */
    bool adds_bos;      /* the family puts bos before every text, where no file says otherwise */
};

/* Reads the text of a config.json; NULL after errors. Whatever would change the arithmetic and has
 * no place in a spec is an error that names key and value; keys nobody knows are warnings. */
struct hf_config *hf_config_read(struct arena *a, struct diag *d, const char *path,
                                 struct str text);
/* The spec as YAML text with comments, named `name`; the tokenizer is that of c->model. */
struct str hf_spec_text(struct arena *a, const struct hf_config *c, const char *name);

/* The config.json of a model as text, in the arena; NULL after errors, which name the key of the
 * spec that no family can express. What it has no place for and no model computes with is a note.
 * `dtype` is "float32" or "bfloat16". */
const char *hf_config_write(struct arena *a, struct diag *d, const struct model *m,
                            const char *dtype);
/* The shortest decimal that reads as the same double. */
const char *hf_number_text(struct arena *a, double x);
#endif
