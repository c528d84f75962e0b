/* tokenizer.bin of karpathy/llama2.c (tokenizer.py, run.c): int32 length of the longest token, then
 * for each token a float32 score, its length as int32, its bytes. Tokens 0, 1 and 2 are <unk>, BOS
 * and EOS, 3 to 258 the bytes. A text begins with an added space. */
#include "runtime/tokenizer_file.h"
#include "runtime/tokenizer_bpe.h"
#include "runtime/utf8.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { BOS = 1, EOS = 2, FIRST_BYTE = 3, FIRST_PIECE = 259 };

struct scored {
    float score;
    uint32_t id;
};

static int by_score(const void *a, const void *b)
{
    float x = ((const struct scored *)a)->score, y = ((const struct scored *)b)->score;
    return x > y ? -1 : x < y;
}

static int32_t word(const char *p)
{
    const unsigned char *u = (const unsigned char *)p;
    return (int32_t)(u[0] | (uint32_t)u[1] << 8 | (uint32_t)u[2] << 16 | (uint32_t)u[3] << 24);
}

static enum rt_status wrong(const struct tok_file_text *f, size_t id, const char *what,
                            struct rt_error *err)
{
    return rt_fail(err, RT_user, "'%s' is not a tokenizer of llama2.c: token %zu %s", f->label, id,
                   what);
}

/* The fixed tokens; their texts say what they are. */
static enum rt_status fixed(struct bpe_tokenizer *t, const struct tok_file_text *f, size_t id,
                            struct str s, struct rt_error *err)
{
    char name[8];
    if (id == BOS || id == EOS) return RT_ok; /* no text */
    if (id < FIRST_BYTE) return bpe_name(&t->bpe, (int64_t)id, s, err);
    snprintf(name, sizeof name, "<0x%02X>", (unsigned)(id - FIRST_BYTE));
    if (!str_is(s, name)) return wrong(f, id, "is not the byte it should be", err);
    t->bpe.byte[id - FIRST_BYTE] = (int32_t)id;
    return bpe_name(&t->bpe, (int64_t)id, (struct str){(const char[]){(char)(id - FIRST_BYTE)}, 1},
                    err);
}

/* Tokens and scores; their number. */
static enum rt_status read_tokens(struct bpe_tokenizer *t, const struct tok_file_text *f,
                                  struct scored *list, size_t *count, struct rt_error *err)
{
    struct str s = f->text;
    int32_t longest = word(s.p);
    size_t id = 0;
    for (size_t i = 4; i < s.n; id++) {
        if (s.n - i < 8) return wrong(f, id, "is cut", err);
        int32_t bits = word(s.p + i), n = word(s.p + i + 4);
        float score;
        memcpy(&score, &bits, 4);
        i += 8;
        if (n < 1 || n > longest || (size_t)n > s.n - i)
            return wrong(f, id, "has a length that cannot be", err);
        if (!isfinite(score)) return wrong(f, id, "has no score", err);
        struct str text = {s.p + i, (size_t)n};
        i += (size_t)n;
        if (id < FIRST_PIECE) {
            RT_TRY(fixed(t, f, id, text, err));
            continue;
        }
        if (utf8_check(text) < text.n) return wrong(f, id, "is not UTF-8", err);
        RT_TRY(bpe_add(&t->bpe, (int64_t)id, text, 0, err));
        list[id - FIRST_PIECE] = (struct scored){score, (uint32_t)id};
    }
    if (id < FIRST_PIECE) return wrong(f, id, "is missing", err);
    *count = id;
    return RT_ok;
}

static enum rt_status read_all(struct bpe_tokenizer *t, const struct tok_file_text *f,
                               struct scored *list, struct rt_error *err)
{
    struct bpe *b = &t->bpe;
    size_t n = 0;
    RT_TRY(read_tokens(t, f, list, &n, err));
    /* the best score merges first; equal scores from the left */
    qsort(list, n - FIRST_PIECE, sizeof *list, by_score);
    uint32_t rank = 0;
    for (size_t i = 0; i < n - FIRST_PIECE; i++) {
        if (i && list[i].score < list[i - 1].score) rank++;
        b->token[list[i].id].rank = rank;
    }
    b->chars = true;
    bool *use = calloc(n, sizeof *use);
    if (!use) return rt_fail(err, RT_machine, "no memory for a tokenizer");
    for (size_t id = FIRST_PIECE; id < n; id++) use[id] = true;
    enum rt_status st = bpe_ready(b, n == FIRST_PIECE ? 0 : n, use, err);
    if (st == RT_ok) st = bpe_tokenizer_joins(t, n == FIRST_PIECE ? 0 : n, use, err);
    free(use);
    if (st != RT_ok) return st;
    t->base.bos = BOS;
    t->base.stop[0] = EOS;
    t->base.num_stop = 1;
    t->base.space_first = t->rules.space_first = true;
    bpe_tokenizer_ready(t, (int64_t)n);
    bpe_tokenizer_keep(t, 0, "tokenizer.bin", f->text);
    return RT_ok;
}

enum rt_status tokenizer_llama2c_parse(const struct tok_file_text *f, struct tokenizer **out,
                                       struct rt_error *err)
{
    struct bpe_tokenizer *t;
    struct rt_error why;
    *out = NULL;
    if (f->text.n < 4) return rt_fail(err, RT_user, "'%s' is too short", f->label);
    if (f->o && (f->o->pattern || f->o->num_special))
        return rt_fail(err, RT_user,
                       "'%s' is a tokenizer of llama2.c, which takes no pattern or special tokens",
                       f->label);
    struct scored *list = malloc((f->text.n / 9 + 1) * sizeof *list);
    if (!list) return rt_fail(err, RT_machine, "no memory for a tokenizer");
    enum rt_status st = bpe_tokenizer_new(&t, &why);
    if (st == RT_ok) {
        st = read_all(t, f, list, &why);
        if (st == RT_ok)
            *out = &t->base;
        else
            tokenizer_close(&t->base);
    }
    free(list);
    return st == RT_ok ? st : rt_fail(err, st, "%s", why.text);
}
