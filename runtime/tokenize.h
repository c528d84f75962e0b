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
/* A part of a text on its way through an encoding. */
struct tok_part {
    struct str text; /* valid UTF-8, or any bytes where ops->any_bytes */
    size_t from;     /* bytes of it that are done; some of them may be context */
    uint64_t offset; /* of byte `from` in the whole text */
    bool last;       /* nothing follows it */
};
/* Files of a tokenizer in a checkpoint. */
enum { TOK_FILES = 2 };
struct tokenizer_ops {
    const char *type; /* the spec's word for it */
    /* Name of its i-th file, i < TOK_FILES, NULL where it has no more; NULL where it needs none. */
    const char *(*file)(const struct tokenizer *t, int i);
    /* Appends the text of that file. */
    void (*save)(const struct tokenizer *t, int i, struct sb *out);
    bool any_bytes; /* a text is any bytes */
    /* Appends the ids of a beginning of the text from p->from on, and moves p->from (and offset)
     * behind it: as far as what follows the part cannot change them, to the end where p->last.
     * `state` is what state_open made. RT_user where the text has no ids, with the offset. */
    enum rt_status (*encode)(const struct tokenizer *t, void *state, struct tok_part *p,
                             struct tok_ids *out, struct rt_error *err);
    /* What one encoding needs to write to; both NULL where that is nothing. `special`: the names of
     * special tokens in the text become those tokens. */
    enum rt_status (*state_open)(const struct tokenizer *t, bool special, void **out,
                                 struct rt_error *err);
    void (*state_close)(void *state);
    /* The bytes of an id in [0, vocab_size); they live as long as the tokenizer. */
    struct str (*piece)(const struct tokenizer *t, int32_t id);
    /* Whether a model with this many ids fits; the message says what it must be. */
    enum rt_status (*fits)(const struct tokenizer *t, int64_t vocab_size, struct rt_error *err);
    void (*close)(struct tokenizer *t);
};
enum { TOK_STOPS = 8 };
struct tokenizer {
    const struct tokenizer_ops *ops;
    int32_t vocab_size;
    /* What its file says of them; -1 is none. A spec may say otherwise. */
    int32_t bos;
    int32_t stop[TOK_STOPS]; /* ids that end a text, num_stop of them */
    int num_stop;
    bool nfc;         /* texts are brought to Normalization Form C first */
    bool space_first; /* texts are encoded with a space in front, which decoding takes off again */
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

/* Appends the ids of a whole text. Names of special tokens in it are text. */
enum rt_status tokenizer_encode(const struct tokenizer *t, struct str text, struct tok_ids *out,
                                struct rt_error *err);

/* Encoding text that comes in parts, cut anywhere, also inside a character: the ids are those of
 * the whole text, and memory is bounded by the longest piece that the tokenizer merges at once. */
struct tok_encoder;
enum tok_flags {
    TOK_special = 1, /* names of special tokens become those tokens */
    TOK_utf8 = 2,    /* invalid UTF-8 is an error also where the tokenizer takes any bytes */
};
enum rt_status tok_encoder_open(const struct tokenizer *t, unsigned flags, struct tok_encoder **out,
                                struct rt_error *err);
/* Appends what is known after this part; all that is left with `last`, after which the next part
 * begins a new text. RT_user, with the byte offset in the text, for invalid UTF-8 and text without
 * ids; the encoder then can only be closed. */
enum rt_status tok_encoder_add(struct tok_encoder *e, struct str part, bool last,
                               struct tok_ids *out, struct rt_error *err);
void tok_encoder_close(struct tok_encoder *e);

/* Appends the bytes of the ids; an id without text (outside the vocabulary) gives U+FFFD. */
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, struct sb *out);

/* Text of ids as they come: bytes of a cut UTF-8 sequence are held back until it is whole, invalid
 * ones come out as U+FFFD, so that every piece given out is valid UTF-8. Zero-initialise to start.
 */
struct tok_stream {
    char held[4]; /* the beginning of one sequence */
    size_t n;
    bool begun; /* some text was seen */
};
/* Appends what can be shown after this id. */
void tok_stream_add(struct tok_stream *s, const struct tokenizer *t, int32_t id, struct sb *out);
/* Appends what is still held (U+FFFD for a cut sequence). */
void tok_stream_end(struct tok_stream *s, struct sb *out);
#endif
