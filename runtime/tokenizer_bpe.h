/* The tokenizer behind every file format that merges byte pairs: a format's reader fills it. */
#ifndef STRATA_RUNTIME_TOKENIZER_BPE_H
#define STRATA_RUNTIME_TOKENIZER_BPE_H
#include "runtime/bpe.h"
#include "runtime/presplit.h"

struct bpe_tokenizer {
    struct tokenizer base; /* first */
    struct bpe bpe;
    struct split_rules rules;
    struct pattern *pattern;       /* owned; rules.pattern */
    uint64_t *joined;              /* owned; rules.joined */
    struct split_special *special; /* owned, with their texts; rules.special */
    size_t num_special, special_cap;
    const char *special_refused; /* why --allow-special cannot be done, NULL where it can */
    struct tok_file {            /* what a checkpoint keeps */
        const char *name;
        struct sb text;
    } file[TOK_FILES];
};
/* An empty one. */
enum rt_status bpe_tokenizer_new(struct bpe_tokenizer **out, struct rt_error *err);
/* A special token: its text becomes the id's, and it is found in text when asked for. */
enum rt_status bpe_tokenizer_special(struct bpe_tokenizer *t, struct str text, int64_t id,
                                     bool always, struct rt_error *err);
/* Which characters may follow each other within a token of `use` (NULL: all) below `merged`: for
 * vocabularies without a pattern. */
enum rt_status bpe_tokenizer_joins(struct bpe_tokenizer *t, size_t merged, const bool *use,
                                   struct rt_error *err);
/* After the vocabulary is ready: the rules and vocab_size = max(ids, least). */
void bpe_tokenizer_ready(struct bpe_tokenizer *t, int64_t least);
/* Keeps a file of it for checkpoints. */
void bpe_tokenizer_keep(struct bpe_tokenizer *t, int i, const char *name, struct str text);
#endif
