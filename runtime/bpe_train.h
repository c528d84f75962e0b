/* Training a byte-pair vocabulary: from the 256 bytes, the most frequent pair of neighbours within
 * the pieces of the text becomes a token, again and again (Sennrich, Haddow and Birch 2016). */
#ifndef STRATA_RUNTIME_BPE_TRAIN_H
#define STRATA_RUNTIME_BPE_TRAIN_H
#include "runtime/tokenizer_file.h"

struct bpe_train_options {
    const char *pattern;        /* gpt2, cl100k, kimi or a regular expression */
    int64_t vocab_size;         /* ids in all, special tokens included; at least 256 and those */
    const char *const *special; /* their names; they end pieces and get the last ids */
    size_t num_special;
    bool progress; /* bars on standard error, where that is a terminal */
};
struct bpe_trained {
    struct sb ranks;  /* text of the rank file */
    struct sb beside; /* text of FILE.json, which holds pattern and special tokens */
    uint64_t tokens;  /* that the text has with it */
    size_t pieces;    /* different ones */
};
/* The vocabulary of a text (UTF-8). The same for the same text everywhere: among pairs that are
 * equally frequent the one with the lower ids goes first. Pieces of more than 1024 bytes are cut
 * for this. RT_user: invalid UTF-8 or pattern, or a text that has fewer pairs than asked for. The
 * caller frees both texts. */
enum rt_status bpe_train(const struct bpe_train_options *o, struct str text, const char *label,
                         struct bpe_trained *out, struct rt_error *err);
#endif
