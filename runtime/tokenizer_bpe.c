#include "runtime/tokenizer_bpe.h"
#include "runtime/utf8.h"
#include <stdlib.h>

static const struct bpe_tokenizer *self(const struct tokenizer *t)
{
    return (const struct bpe_tokenizer *)t;
}

/* ---- encoding ---- */

struct bpe_state {
    const struct bpe *bpe;
    struct splitter *splitter;
    struct bpe_work work;
    struct tok_ids *out;
};

static enum rt_status put_piece(void *to, struct str piece, struct rt_error *err)
{
    struct bpe_state *s = to;
    return bpe_encode(s->bpe, &s->work, piece, s->out, err);
}

static enum rt_status put_special(void *to, int32_t id, struct rt_error *err)
{
    return tok_ids_add(((struct bpe_state *)to)->out, id, err);
}

static void state_close(void *state)
{
    struct bpe_state *s = state;
    splitter_close(s->splitter);
    bpe_work_free(&s->work);
    free(s);
}

static enum rt_status state_open(const struct tokenizer *base, bool special, void **out,
                                 struct rt_error *err)
{
    const struct bpe_tokenizer *t = self(base);
    *out = NULL;
    if (special && t->special_refused)
        return rt_fail(err, RT_user, "special tokens cannot be found in text: %s",
                       t->special_refused);
    struct bpe_state *s = calloc(1, sizeof *s);
    if (!s) return rt_fail(err, RT_machine, "no memory to encode a text");
    s->bpe = &t->bpe;
    enum rt_status st = splitter_open(&t->rules, special, &s->splitter, err);
    if (st == RT_ok)
        *out = s;
    else
        state_close(s);
    return st;
}

static enum rt_status encode(const struct tokenizer *t, void *state, struct tok_part *p,
                             struct tok_ids *out, struct rt_error *err)
{
    (void)t;
    struct bpe_state *s = state;
    s->out = out;
    const struct split_sink sink = {s, put_piece, put_special};
    struct rt_error why;
    enum rt_status st = splitter_run(s->splitter, p, &sink, &why);
    if (st == RT_ok) return st;
    return rt_fail(err, st, "%s (at byte %llu of the text)", why.text,
                   (unsigned long long)p->offset);
}

/* ---- the other functions of a tokenizer ---- */

static struct str piece(const struct tokenizer *t, int32_t id)
{
    const struct bpe *b = &self(t)->bpe;
    if ((size_t)id < b->n && b->token[id].n) return bpe_text(b, id);
    for (int i = 0; i < t->num_stop; i++)
        if (t->stop[i] == id) return (struct str){"", 0};
    return id == t->bos ? (struct str){"", 0} : STR("\xef\xbf\xbd");
}

static const char *file(const struct tokenizer *t, int i)
{
    return self(t)->file[i].name;
}

static void save(const struct tokenizer *t, int i, struct sb *out)
{
    sb_add(out, self(t)->file[i].text.p, self(t)->file[i].text.n);
}

static enum rt_status fits(const struct tokenizer *t, int64_t v, struct rt_error *err)
{
    if (v >= t->vocab_size) return RT_ok;
    return rt_fail(err, RT_user, "the tokenizer has %d ids, but vocab_size is %lld", t->vocab_size,
                   (long long)v);
}

static void close_(struct tokenizer *base)
{
    struct bpe_tokenizer *t = (struct bpe_tokenizer *)base;
    bpe_free(&t->bpe);
    pattern_close(t->pattern);
    free(t->joined);
    for (size_t i = 0; i < t->num_special; i++) free((char *)t->special[i].text.p);
    free(t->special);
    for (int i = 0; i < TOK_FILES; i++) sb_free(&t->file[i].text);
    free(t);
}

static const struct tokenizer_ops ops = {.type = "file",
                                         .file = file,
                                         .save = save,
                                         .encode = encode,
                                         .state_open = state_open,
                                         .state_close = state_close,
                                         .piece = piece,
                                         .fits = fits,
                                         .close = close_};

/* ---- making one ---- */

enum rt_status bpe_tokenizer_new(struct bpe_tokenizer **out, struct rt_error *err)
{
    struct bpe_tokenizer *t = *out = calloc(1, sizeof *t);
    if (!t) return rt_fail(err, RT_machine, "no memory for a tokenizer");
    t->base.ops = &ops;
    t->base.bos = -1;
    for (int i = 0; i < 256; i++) t->bpe.byte[i] = -1;
    return RT_ok;
}

enum rt_status bpe_tokenizer_special(struct bpe_tokenizer *t, struct str text, int64_t id,
                                     bool always, struct rt_error *err)
{
    for (size_t i = 0; i < t->num_special; i++)
        if (str_eq(t->special[i].text, text))
            return rt_fail(err, RT_user, "the special token '%.*s' is given twice",
                           (int)(text.n < 64 ? text.n : 64), text.p);
    RT_TRY(bpe_name(&t->bpe, id, text, err));
    if (t->num_special == t->special_cap) {
        size_t cap = t->special_cap ? 2 * t->special_cap : 64;
        struct split_special *s = realloc(t->special, cap * sizeof *s);
        if (!s) return rt_fail(err, RT_machine, "no memory for a tokenizer");
        t->special = s;
        t->special_cap = cap;
    }
    char *copy = malloc(text.n);
    if (!copy) return rt_fail(err, RT_machine, "no memory for a tokenizer");
    memcpy(copy, text.p, text.n);
    t->special[t->num_special++] = (struct split_special){{copy, text.n}, (int32_t)id, always};
    return RT_ok;
}

/* Adds a pair of characters to the set, which has room. */
static void join(uint64_t *set, size_t size, uint64_t key)
{
    size_t i = (size_t)(key * 0x9e3779b97f4a7c15u >> 32) & (size - 1);
    while (set[i] && set[i] != key) i = (i + 1) & (size - 1);
    set[i] = key;
}

enum rt_status bpe_tokenizer_joins(struct bpe_tokenizer *t, size_t merged, const bool *use,
                                   struct rt_error *err)
{
    size_t size = 16;
    while (size < 2 * t->bpe.text.n) size *= 2; /* no more pairs than bytes */
    t->joined = calloc(size, sizeof *t->joined);
    if (!t->joined) return rt_fail(err, RT_machine, "no memory for a tokenizer");
    for (size_t id = 0; id < merged; id++) {
        if (!t->bpe.token[id].n || (use && !use[id])) continue;
        struct str s = bpe_text(&t->bpe, (int32_t)id);
        uint32_t c, before = 0;
        for (size_t i = 0; i < s.n; before = c) {
            int n = utf8_next(s.p + i, s.n - i, &c);
            if (n <= 0) return rt_fail(err, RT_user, "token %zu is not valid UTF-8", id);
            if (i) join(t->joined, size, split_join(before, c));
            i += (size_t)n;
        }
    }
    t->rules.joined = t->joined;
    t->rules.joined_size = size;
    return RT_ok;
}

void bpe_tokenizer_ready(struct bpe_tokenizer *t, int64_t least)
{
    if (t->num_special) qsort(t->special, t->num_special, sizeof *t->special, split_special_order);
    t->rules.special = t->special;
    t->rules.num_special = t->num_special;
    t->rules.pattern = t->pattern;
    t->base.vocab_size = (int32_t)(least > (int64_t)t->bpe.n ? least : (int64_t)t->bpe.n);
}

void bpe_tokenizer_keep(struct bpe_tokenizer *t, int i, const char *name, struct str text)
{
    t->file[i].name = name;
    sb_add(&t->file[i].text, text.p ? text.p : "", text.n);
}
