/* A language model as a C library, made by `strata build SPEC --weights W --lib -o DIR`:
 *
 *   cc main.c -IDIR DIR/libNAME.a -lm -lpthread
 *
 * DIR/NAME.model holds the model itself (weights, tokenizer, plans), which strata_open maps; only
 * the library that was built with it runs it. Functions return STRATA_OK, or a status whose message
 * strata_error has. A model is used by one thread at a time; it has threads of its own, and the
 * same bits come out for any number of them, whatever else is in a batch. */
#ifndef STRATA_H
#define STRATA_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum strata_status {
    STRATA_OK = 0,
    STRATA_INPUT = 1,  /* what was given is wrong: a path, an id, a text without ids, no room */
    STRATA_MACHINE = 3 /* memory, threads, or numbers that are not numbers */
};

struct strata_model;
struct strata_options {
    int threads;     /* 0: $STRATA_THREADS, else the cores that this process may use */
    const char *cpu; /* kernels for an older processor, as "x86-64-v3"; NULL: the best that runs */
};
/* Opens DIR/NAME.model; options may be NULL. *out is to be freed after a failure too (NULL where
 * there was no memory), when it has nothing but strata_error. */
int strata_open(const char *path, const struct strata_options *options, struct strata_model **out);
/* Ends the model with all its sequences. NULL is fine. */
void strata_free(struct strata_model *m);
/* The message of the last failure; valid until the next call. */
const char *strata_error(const struct strata_model *m);

int64_t strata_vocab(const struct strata_model *m);   /* ids are 0 .. vocab - 1 */
int64_t strata_context(const struct strata_model *m); /* most tokens of a sequence */
int64_t strata_batch(const struct strata_model *m);   /* most sequences of a strata_decode */

/* Ids of a text of n bytes, begun with the model's first token where it has one (begin not 0). Free
 * with strata_release. */
int strata_tokenize(struct strata_model *m, const char *text, size_t n, int begin, int32_t **ids,
                    size_t *num_ids);
/* The text of ids, terminated. Free with strata_release. */
int strata_detokenize(struct strata_model *m, const int32_t *ids, size_t n, char **text,
                      size_t *bytes);
void strata_release(void *p);
/* Whether this id ends a text. */
int strata_stops(const struct strata_model *m, int32_t id);

/* A sequence: what the model has read of one text. */
struct strata_sequence;
/* A new one. STRATA_INPUT where the model has no room for another. */
int strata_begin(struct strata_model *m, struct strata_sequence **out);
/* Gives its memory back. NULL is fine. */
void strata_end(struct strata_sequence *s);
/* Tokens that it has read. */
int64_t strata_length(const struct strata_sequence *s);
/* Reads n >= 1 tokens. *logits, [vocab], are those after the last of them, valid until the next
 * call. */
int strata_prefill(struct strata_sequence *s, const int32_t *ids, size_t n, const float **logits);
/* Reads one token of each of n different sequences of one model, at most strata_batch. *logits is
 * [n][vocab], valid until the next call. */
int strata_decode(struct strata_sequence *const *s, const int32_t *ids, size_t n,
                  const float **logits);

struct strata_sampler {
    double temperature; /* 0: the most likely token */
    double top_p;       /* 0 or 1: all tokens; else the most likely ones that make up so much */
    uint64_t seed;
};
/* The next token of a sequence from its logits [vocab]: a function of these, the seed and the
 * sequence's length only. */
int strata_sample(struct strata_sequence *s, const struct strata_sampler *sampler,
                  const float *logits, int32_t *id);

#ifdef __cplusplus
}
#endif
#endif
