/* Training data: a text or an .npy of token ids as one sequence of tokens, cut into a training and
 * a validation part and those into windows (spec-contract section 2, "data"). Which window is the
 * k-th training sequence is a pure function of (seed, k), so a resumed run needs integers only. */
#ifndef STRATA_RUNTIME_DATASET_H
#define STRATA_RUNTIME_DATASET_H
#include "runtime/tokenize.h"

struct dataset_options {
    const char *path;    /* text, or .npy (1-D integers), which is told by its content */
    double val_fraction; /* [0, 1) */
    bool shuffled;       /* order: shuffled | sequential */
    int64_t seq_len;     /* T > 0; a window is T + 1 tokens */
    int64_t vocab_size;  /* ids must be below */
    uint64_t seed;
    /* for text; not used for .npy; kept by reference. Its fit with vocab_size is checked here. */
    const struct tokenizer *tokenizer;
    bool progress; /* of tokenizing: a bar on standard error, where that is a terminal */
};

struct dataset;
/* Opens the data. RT_user: file missing, text without a tokenizer, invalid text, an id outside
 * [0, vocab_size) (negative ids in .npy are allowed: dataset_targets), training part shorter than
 * one window. Big files stay mapped; `bytes` text and .npy are never copied. */
enum rt_status dataset_open(const struct dataset_options *o, struct dataset **out,
                            struct rt_error *err);
void dataset_close(struct dataset *d);

/* Tokens in all; in the training part, floor(n (1 - val_fraction)). */
uint64_t dataset_tokens(const struct dataset *d);
uint64_t dataset_train_tokens(const struct dataset *d);
/* Windows of either part: floor((m - 1) / T). */
uint64_t dataset_train_windows(const struct dataset *d);
uint64_t dataset_val_windows(const struct dataset *d);
/* A hash of the token count and of samples of the data (all of it when small), to notice on resume
 * that the data changed. */
uint64_t dataset_fingerprint(const struct dataset *d);

/* The window index of the k-th training sequence, k = step * batch_size + row. */
uint64_t dataset_order(const struct dataset *d, uint64_t k);
/* The T + 1 tokens of the k-th training sequence. RT_user for an id that is not below vocab_size.
 */
enum rt_status dataset_train(const struct dataset *d, uint64_t k, int32_t *ids,
                             struct rt_error *err);
/* The T + 1 tokens of validation window i < dataset_val_windows. */
enum rt_status dataset_val(const struct dataset *d, uint64_t i, int32_t *ids, struct rt_error *err);

/* A window of T + 1 ids as T inputs (a negative one is read as 0) and T targets (a negative one is
 * not counted). This is the rule for token files of `eval` too. */
void dataset_targets(const int32_t *ids, size_t seq_len, int32_t *inputs, int32_t *targets);
/* A permutation of 0 .. n-1 for (seed, epoch): where index i < n goes. No memory, any i alone: a
 * Feistel network over Philox, walked until it lands inside (Black and Rogaway 2002). */
uint64_t permute_index(uint64_t seed, uint64_t epoch, uint64_t n, uint64_t i);
#endif
