/* Cutting text into the pieces that are merged each by itself: the guard against endless runs, then
 * the names of special tokens, then a pattern (or, where the vocabulary has none, the places where
 * no token could join two characters). Works on text that comes in parts. */
#ifndef STRATA_RUNTIME_PRESPLIT_H
#define STRATA_RUNTIME_PRESPLIT_H
#include "runtime/pattern.h"
#include "runtime/tokenize.h"

struct split_special {
    struct str text;
    int32_t id;
    bool always; /* found also in text whose special tokens are text */
};
struct split_rules {               /* kept by reference; do not change while a splitter uses them */
    const struct pattern *pattern; /* NULL: cut between characters that `joined` does not hold */
    const uint64_t *joined;        /* hash set of split_join(first, second), 0 is free */
    size_t joined_size;            /* a power of two */
    bool space_first;              /* without a pattern: a text begins with a space that is added */
    bool space_each;               /* so does what follows a special token */
    bool space_once;               /* no space is added where there is one */
    bool space_cuts;               /* a piece begins at every space */
    bool spaces;                   /* U+2581 is a space too */
    /* Kimi's guard (tokenization_kimi.py): the text is cut every 400,000 characters, and runs of
     * white space or of anything else after 25,000. */
    bool guard;
    const struct split_special *special; /* sorted by split_special_order */
    size_t num_special;
};
/* Two characters that follow each other in a token, as one number that is not 0. */
static inline uint64_t split_join(uint32_t first, uint32_t second)
{
    return ((uint64_t)first << 32 | second) + 1;
}
bool split_joined(const struct split_rules *r, uint32_t first, uint32_t second);
/* For qsort: by first byte, longest first, then by text. */
int split_special_order(const void *a, const void *b);

/* Where the pieces go. */
struct split_sink {
    void *to;
    enum rt_status (*piece)(void *to, struct str piece, struct rt_error *err);
    enum rt_status (*special)(void *to, int32_t id, struct rt_error *err);
};

struct splitter;
/* `special`: names of all special tokens are found in the text; else of those with `always`. */
enum rt_status splitter_open(const struct split_rules *r, bool special, struct splitter **out,
                             struct rt_error *err);
void splitter_close(struct splitter *s);
/* Gives out the pieces of p (valid UTF-8) that further text cannot change, all of them with
 * p->last, and moves p->from and p->offset behind them. The next part begins there; offset 0 begins
 * a new text. */
enum rt_status splitter_run(struct splitter *s, struct tok_part *p, const struct split_sink *sink,
                            struct rt_error *err);
#endif
