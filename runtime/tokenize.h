/* Tokenizers: text to ids and back behind one table of functions. `bytes` and `chars` are here;
 * further kinds fill struct tokenizer themselves. */
#ifndef STRATA_RUNTIME_TOKENIZE_H
#define STRATA_RUNTIME_TOKENIZE_H
#include "base/str.h"
#include "runtime/status.h"

/* A growing list of ids on the heap; zero-initialise to start, free(p) to end. */
struct tok_ids {
    int32_t *p;
    size_t n, cap;
};
/* Appends; RT_machine without memory. */
enum rt_status tok_ids_add(struct tok_ids *v, int32_t id, struct rt_error *err);

struct tokenizer;
struct tokenizer_ops {
    const char *type; /* the spec's word for it */
    const char *file; /* name of its file in a checkpoint, NULL where it needs none */
    /* Appends the ids of a text. RT_user where the text has no ids, with the byte offset. */
    enum rt_status (*encode)(const struct tokenizer *t, struct str text, struct tok_ids *out,
                             struct rt_error *err);
    /* The bytes of an id in [0, vocab_size); they live as long as the tokenizer. */
    struct str (*piece)(const struct tokenizer *t, int32_t id);
    /* Appends the text of `file`. NULL where file is NULL. */
    void (*save)(const struct tokenizer *t, struct sb *out);
    /* Whether a model with this many ids fits; the message says what it must be. */
    enum rt_status (*fits)(const struct tokenizer *t, int64_t vocab_size, struct rt_error *err);
    void (*close)(struct tokenizer *t);
};
struct tokenizer {
    const struct tokenizer_ops *ops;
    int32_t vocab_size;
};

/* Ids 0 to 255 are the bytes; any bytes are a text. vocab_size of the model must be at least 256.
 */
enum rt_status tokenizer_bytes(struct tokenizer **out, struct rt_error *err);
/* Ids are the distinct code points of `text` in code-point order. Invalid UTF-8 is RT_user with the
 * byte offset; `label` names the text. vocab_size of the model must equal their number. */
enum rt_status tokenizer_chars(struct str text, const char *label, struct tokenizer **out,
                               struct rt_error *err);
/* The same from the whole text of a file (mapped while it is read). */
enum rt_status tokenizer_chars_of_file(const char *path, struct tokenizer **out,
                                       struct rt_error *err);
/* A chars vocabulary as saved in a checkpoint: the text of chars.json, or its path. */
enum rt_status tokenizer_chars_parse(struct str json, const char *label, struct tokenizer **out,
                                     struct rt_error *err);
enum rt_status tokenizer_chars_load(const char *path, struct tokenizer **out, struct rt_error *err);
void tokenizer_close(struct tokenizer *t);

enum rt_status tokenizer_encode(const struct tokenizer *t, struct str text, struct tok_ids *out,
                                struct rt_error *err);
/* Appends the bytes of the ids, unchanged; an id without text (outside the vocabulary) gives
 * U+FFFD. */
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, struct sb *out);

/* Text of ids as they come: bytes of a cut UTF-8 sequence are held back until it is whole, invalid
 * ones come out as U+FFFD, so that every piece given out is valid UTF-8. Zero-initialise to start.
 */
struct tok_stream {
    char held[4]; /* the beginning of one sequence */
    size_t n;
};
/* Appends what can be shown after this id. */
void tok_stream_add(struct tok_stream *s, const struct tokenizer *t, int32_t id, struct sb *out);
/* Appends what is still held (U+FFFD for a cut sequence). */
void tok_stream_end(struct tok_stream *s, struct sb *out);
#endif
