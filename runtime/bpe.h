/* Byte-pair merging: a vocabulary of byte strings, and the ids of one piece of text. Sources:
 * openai/tiktoken src/lib.rs (lowest rank first, leftmost among equals), SentencePiece's
 * bpe_model.cc and llama2.c's run.c (best score first), Hugging Face tokenizers models/bpe. */
#ifndef STRATA_RUNTIME_BPE_H
#define STRATA_RUNTIME_BPE_H
#include "runtime/tokenize.h"

/* Ids are below this, as the spec's vocab_size is. */
enum { BPE_IDS = 1 << 24, BPE_TOKEN_BYTES = 1 << 16 };

struct bpe_token {
    uint32_t at, n; /* its bytes in `text`; n is 0 where the id has none */
    uint32_t rank;  /* merges of lower rank go first */
};
struct bpe_pair { /* of a vocabulary that lists its merges */
    int32_t left, right, id;
    uint32_t rank;
};
/* A vocabulary: fill with the functions below, then bpe_ready; it does not change any more. */
struct bpe {
    struct bpe_token *token; /* [n] by id */
    size_t n, cap;
    struct sb text;
    bool whole;        /* a piece that is a token is that token, whatever the merges say */
    bool listed;       /* only listed pairs merge; else any whose joined bytes are a token */
    bool chars;        /* pieces begin as characters, and as bytes where one is no token; such bytes
                        * merge no further */
    int32_t byte[256]; /* ids of single bytes, -1 where there is none */
    uint32_t *slot;    /* hash of the tokens' bytes: id + 1, 0 is free */
    size_t slots;
    struct bpe_pair *pair; /* the listed merges, then their hash in place (id -1 is free) */
    size_t pairs, pair_cap;
};

/* The id's bytes (copied) and rank. RT_user, as "...", when the id has bytes already or is out of
 * range; RT_machine without memory. */
enum rt_status bpe_add(struct bpe *b, int64_t id, struct str bytes, uint32_t rank,
                       struct rt_error *err);
/* The text of an id that merging never gives, as a special token's; replaces one that is there. */
enum rt_status bpe_name(struct bpe *b, int64_t id, struct str bytes, struct rt_error *err);
/* One more merge; of equal pairs the first counts. */
enum rt_status bpe_pair(struct bpe *b, struct bpe_pair p, struct rt_error *err);
/* Builds the hash of tokens 0 .. merged - 1 (those from there on have names only) that `use` (NULL:
 * all) marks. RT_user when two of them have the same bytes. */
enum rt_status bpe_ready(struct bpe *b, size_t merged, const bool *use, struct rt_error *err);
/* Of a vocabulary that lists its merges, after all bpe_pair. */
enum rt_status bpe_ready_pairs(struct bpe *b, struct rt_error *err);
void bpe_free(struct bpe *b);

static inline struct str bpe_text(const struct bpe *b, int32_t id)
{
    return (struct str){b->text.p + b->token[id].at, b->token[id].n};
}
/* The token with these bytes, or -1. */
int32_t bpe_find(const struct bpe *b, const char *p, size_t n);

/* Scratch memory of one thread, and the pieces it has seen last. Zero-initialise to start. */
struct bpe_work {
    struct bpe_node *node;
    struct bpe_merge *heap;
    size_t node_cap, heap_cap, heap_n;
    struct bpe_seen *seen;
};
void bpe_work_free(struct bpe_work *w);
/* Appends the ids of a piece (valid UTF-8 where b->chars). O(n log n). RT_user when a byte or
 * character has no id; RT_machine without memory. */
enum rt_status bpe_encode(const struct bpe *b, struct bpe_work *w, struct str piece,
                          struct tok_ids *out, struct rt_error *err);
#endif
