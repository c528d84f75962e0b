/* tiktoken's rank files: a line for each token, its bytes in base64, a space, its rank, which is
 * its id. openai/tiktoken tiktoken/load.py. */
#include "runtime/tokenizer_file.h"
#include "base/map.h"
#include "runtime/tokenizer_bpe.h"
#include <jansson.h>
#include <stdlib.h>

/* ---- encodings known by their tokens ---- */

struct known {
    const char *name, *pattern;
    size_t ranks;
    uint64_t hash; /* of the tokens in order of rank: fingerprint() */
    int32_t ids;   /* in all */
    int32_t bos;
    int32_t stop[2];
    const struct tok_name *special; /* ends with NULL */
};
static const struct tok_name gpt2_special[] = {{"<|endoftext|>", 50256}, {NULL, 0}};
static const struct tok_name cl100k_special[] = {
    {"<|endoftext|>", 100257},  {"<|fim_prefix|>", 100258},  {"<|fim_middle|>", 100259},
    {"<|fim_suffix|>", 100260}, {"<|endofprompt|>", 100276}, {NULL, 0}};
/* Where no tokenizer_config.json says otherwise: the names of Kimi-Linear. */
static const struct tok_name kimi_special[] = {{"[BOS]", 163584},
                                               {"[EOS]", 163585},
                                               {"<|im_end|>", 163586},
                                               {"<|im_user|>", 163587},
                                               {"<|im_assistant|>", 163588},
                                               {"[EOT]", 163593},
                                               {"<|im_system|>", 163594},
                                               {"<|im_middle|>", 163601},
                                               {"[UNK]", 163838},
                                               {"[PAD]", 163839},
                                               {NULL, 0}};
enum { KIMI = 2 };
static const struct known known_encodings[] = {
    {"gpt2", pattern_gpt2, 50256, 0xba7b784c20858a8f, 50257, -1, {50256, -1}, gpt2_special},
    {"cl100k",
     pattern_cl100k,
     100256,
     0x3ea96d09680d25f2,
     100277,
     -1,
     {100257, -1},
     cl100k_special},
    {"kimi",
     pattern_kimi,
     163584,
     0x93bf4edffd2094e9,
     163840,
     163584,
     {163585, 163586},
     kimi_special},
};

static uint64_t fingerprint(const struct bpe *b)
{
    uint64_t h = b->n;
    for (size_t id = 0; id < b->n; id++) {
        struct str s = bpe_text(b, (int32_t)id);
        h = hash_bytes(s.p, s.n, h + s.n);
    }
    return h;
}

/* ---- reading ---- */

struct reading {
    const struct tok_file_text *f;
    struct bpe_tokenizer *t;
    const struct known *known; /* NULL: another */
    size_t ranks;
    struct rt_error *err;
};

static enum rt_status at_line(const struct reading *r, size_t line, const char *what)
{
    return rt_fail(r->err, RT_user, "'%s' line %zu: %s", r->f->label, line, what);
}

static int digit64(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Appends what n characters of base64 say, padding included; false when they say nothing. */
static bool base64(const char *p, size_t n, struct sb *out)
{
    if (!n || n % 4) return false;
    size_t pad = p[n - 1] != '=' ? 0 : p[n - 2] != '=' ? 1 : 2;
    uint32_t v = 0;
    for (size_t i = 0; i < n; i++) {
        int d = i >= n - pad ? 0 : digit64(p[i]);
        if (d < 0) return false;
        v = v << 6 | (uint32_t)d;
        if (i % 4 != 3) continue;
        bool end = i == n - 1;
        const char three[3] = {(char)(v >> 16), (char)(v >> 8), (char)v};
        if (end && pad && (v & (pad == 2 ? 0xffff : 0xff))) return false;
        sb_add(out, three, end ? 3 - pad : 3);
        v = 0;
    }
    return true;
}

void tokenizer_rank_line(struct str s, uint32_t rank, struct sb *out)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < s.n; i += 3) {
        uint32_t v = 0;
        for (size_t k = 0; k < 3; k++) v = v << 8 | (i + k < s.n ? (unsigned char)s.p[i + k] : 0);
        for (size_t k = 0; k < 4; k++)
            sb_char(out, i + k <= s.n ? digit[v >> (18 - 6 * k) & 63] : '=');
    }
    sb_printf(out, " %u\n", (unsigned)rank);
}

/* The decimal number that is all of the text, or -1. */
static int64_t number(const char *p, size_t n)
{
    int64_t v = 0;
    if (!n || n > 10) return -1;
    for (size_t i = 0; i < n; i++) {
        if (p[i] < '0' || p[i] > '9') return -1;
        v = v * 10 + (p[i] - '0');
    }
    return v;
}

static enum rt_status read_line(struct reading *r, struct str s, size_t line, size_t lines,
                                struct sb *bytes)
{
    const char *space = memchr(s.p, ' ', s.n);
    if (!space) return at_line(r, line, "there is no space between token and rank");
    size_t n = (size_t)(space - s.p);
    if (n > BPE_TOKEN_BYTES) return at_line(r, line, "the token is longer than 48 KiB");
    bytes->n = 0;
    if (!base64(s.p, n, bytes)) return at_line(r, line, "the token is not base64");
    int64_t rank = number(space + 1, s.n - n - 1);
    if (rank < 0) return at_line(r, line, "the rank is not a number");
    /* special tokens may lie between; a far one is a mistake, and would take memory */
    if ((size_t)rank >= lines + 65536) return at_line(r, line, "the rank is too large");
    struct rt_error why;
    enum rt_status st =
        bpe_add(&r->t->bpe, rank, (struct str){bytes->p, bytes->n}, (uint32_t)rank, &why);
    return st == RT_ok ? st : rt_fail(r->err, st, "'%s' line %zu: %s", r->f->label, line, why.text);
}

static enum rt_status read_ranks(struct reading *r)
{
    struct str s = r->f->text;
    size_t lines = 1, line = 0;
    for (size_t i = 0; i < s.n; i++) lines += s.p[i] == '\n';
    struct sb bytes = {0};
    enum rt_status st = RT_ok;
    for (size_t i = 0; i < s.n && st == RT_ok;) {
        const char *nl = memchr(s.p + i, '\n', s.n - i);
        size_t end = nl ? (size_t)(nl - s.p) : s.n, n = end - i;
        if (n && s.p[end - 1] == '\r') n--;
        line++;
        if (n) st = read_line(r, (struct str){s.p + i, n}, line, lines, &bytes);
        i = end + 1;
    }
    sb_free(&bytes);
    if (st == RT_ok && !r->t->bpe.n)
        return rt_fail(r->err, RT_user, "'%s' has no tokens", r->f->label);
    return st;
}

/* ---- special tokens ---- */

static enum rt_status add_special(struct reading *r, const char *text, int64_t id)
{
    struct bpe_tokenizer *t = r->t;
    if (id >= 0 && (size_t)id < r->ranks && t->bpe.token[id].n &&
        t->bpe.token[id].rank != UINT32_MAX)
        return rt_fail(r->err, RT_user,
                       "'%s': the special token '%.64s' has the id %lld of another", r->f->label,
                       text, (long long)id);
    /* the first to name an id goes before */
    for (size_t i = 0; i < t->num_special; i++)
        if (t->special[i].id == id) return RT_ok;
    struct rt_error why;
    enum rt_status st = bpe_tokenizer_special(t, str_of(text), id, false, &why);
    return st == RT_ok ? st : rt_fail(r->err, st, "'%s': %s", r->f->label, why.text);
}

static enum rt_status parse_json(const struct reading *r, struct str text, const char *what,
                                 size_t flags, json_t **out)
{
    json_error_t je;
    *out = json_loadb(text.p, text.n, flags, &je);
    if (json_is_object(*out)) return RT_ok;
    json_decref(*out);
    *out = NULL;
    return rt_fail(r->err, RT_user, "%s beside '%s' is not a JSON object: %s (line %d)", what,
                   r->f->label, je.text, je.line);
}

/* added_tokens_decoder of a tokenizer_config.json. */
static enum rt_status config_special(struct reading *r)
{
    json_t *root, *v;
    const char *key;
    /* its model_max_length is larger than any integer */
    RT_TRY(parse_json(r, r->f->config, "tokenizer_config.json", JSON_DECODE_INT_AS_REAL, &root));
    enum rt_status st = RT_ok;
    json_object_foreach(json_object_get(root, "added_tokens_decoder"), key, v)
    {
        const char *text = json_string_value(json_object_get(v, "content"));
        int64_t id = number(key, strlen(key));
        if (st != RT_ok) break;
        if (id < 0 || !text || !*text)
            st = rt_fail(r->err, RT_user,
                         "tokenizer_config.json beside '%s': added_tokens_decoder has no token "
                         "at '%.32s'",
                         r->f->label, key);
        else if (!r->known || (id >= (int64_t)r->known->ranks && id < r->known->ids))
            st = add_special(r, text, id);
    }
    json_decref(root);
    return st;
}

static enum rt_status wrong_beside(const struct reading *r, const char *what)
{
    return rt_fail(r->err, RT_user, "'%s.json': %s", r->f->label, what);
}

/* FILE.json: {"pattern": "...", "special": {"...": id}}, and of a saved one also guard, ids, bos
 * and stop. */
static enum rt_status read_beside(struct reading *r, json_t *root, int64_t *ids)
{
    const char *key;
    json_t *v, *item;
    size_t i;
    struct tokenizer *base = &r->t->base;
    json_object_foreach(root, key, v)
    {
        if (!strcmp(key, "special") && json_is_object(v)) {
            const char *text;
            json_object_foreach(v, text, item)
            {
                if (!json_is_integer(item) || !*text) return wrong_beside(r, "special");
                RT_TRY(add_special(r, text, json_integer_value(item)));
            }
        } else if (!strcmp(key, "guard") && json_is_boolean(v)) {
            r->t->rules.guard = json_is_true(v);
        } else if (!strcmp(key, "ids") && json_is_integer(v) && json_integer_value(v) > 0 &&
                   json_integer_value(v) <= BPE_IDS) {
            *ids = json_integer_value(v);
        } else if (!strcmp(key, "bos") && json_is_integer(v)) {
            base->bos = (int32_t)json_integer_value(v);
        } else if (!strcmp(key, "stop") && json_array_size(v) <= TOK_STOPS) {
            json_array_foreach(v, i, item) base->stop[base->num_stop++] =
                (int32_t)json_integer_value(item);
        } else if (strcmp(key, "pattern") || !json_is_string(v)) {
            return rt_fail(r->err, RT_user, "'%s.json': '%.32s' is not understood", r->f->label,
                           key);
        }
    }
    return RT_ok;
}

static enum rt_status known_special(struct reading *r)
{
    char name[32];
    const struct known *k = r->known;
    struct tokenizer *base = &r->t->base;
    base->bos = k->bos;
    for (int i = 0; i < 2; i++)
        if (k->stop[i] >= 0) base->stop[base->num_stop++] = k->stop[i];
    bool config = k == &known_encodings[KIMI] && r->f->config.n;
    if (config) RT_TRY(config_special(r));
    for (const struct tok_name *s = k->special; s->text && !config; s++)
        RT_TRY(add_special(r, s->text, s->id));
    for (int32_t id = (int32_t)k->ranks; k == &known_encodings[KIMI] && id < k->ids; id++) {
        snprintf(name, sizeof name, "<|reserved_token_%d|>", id);
        RT_TRY(add_special(r, name, id));
    }
    return RT_ok;
}

static enum rt_status all_special(struct reading *r, json_t *beside, int64_t *ids)
{
    const struct tok_options *o = r->f->o;
    for (size_t i = 0; o && i < o->num_special; i++) {
        for (size_t k = 0; k < i; k++)
            if (o->special[k].id == o->special[i].id)
                return rt_fail(r->err, RT_user, "two special tokens have the id %lld",
                               (long long)o->special[i].id);
        RT_TRY(add_special(r, o->special[i].text, o->special[i].id));
    }
    if (beside) return read_beside(r, beside, ids);
    if (r->known) return known_special(r);
    return r->f->config.n ? config_special(r) : RT_ok;
}

/* ---- the whole ---- */

static enum rt_status set_pattern(struct reading *r, const json_t *beside)
{
    const char *p = r->f->o ? r->f->o->pattern : NULL;
    if (!p) p = json_string_value(json_object_get(beside, "pattern"));
    bool given = p != NULL, kimi = p && !strcmp(p, "kimi");
    if (given && pattern_named(p)) p = pattern_named(p);
    if (!p && r->known) p = r->known->pattern, kimi = r->known == &known_encodings[KIMI];
    if (!p)
        return rt_fail(r->err, RT_user,
                       "'%s' is none of the rank files that are known by their tokens (gpt2, "
                       "cl100k, kimi), so it needs a pattern: --pattern, or tokenizer.pattern in "
                       "the spec",
                       r->f->label);
    r->t->rules.guard |= kimi;
    struct rt_error why;
    enum rt_status st = pattern_open(p, &r->t->pattern, &why);
    return st == RT_ok ? st : rt_fail(r->err, st, "'%s': %s", r->f->label, why.text);
}

static enum rt_status check_ranks(struct reading *r)
{
    struct bpe *b = &r->t->bpe;
    struct rt_error why;
    for (size_t id = 0; id < r->ranks; id++)
        if (!b->token[id].n)
            return rt_fail(r->err, RT_user, "'%s': no token has the rank %zu", r->f->label, id);
    b->whole = true;
    bool *use = calloc(r->ranks, sizeof *use);
    if (!use) return rt_fail(r->err, RT_machine, "no memory for a tokenizer");
    for (size_t id = 0; id < r->ranks; id++) use[id] = b->token[id].rank != UINT32_MAX;
    enum rt_status st = bpe_ready(b, r->ranks, use, &why);
    free(use);
    if (st != RT_ok) return rt_fail(r->err, st, "'%s': %s", r->f->label, why.text);
    for (int c = 0; c < 256; c++) {
        b->byte[c] = bpe_find(b, (const char[]){(char)c}, 1);
        if (b->byte[c] < 0)
            return rt_fail(r->err, RT_user, "'%s': no token is the byte 0x%02x", r->f->label,
                           (unsigned)c);
    }
    return RT_ok;
}

/* FILE.json with all that is known now. */
static enum rt_status describe(const struct bpe_tokenizer *t, const char *pattern, int64_t ids,
                               struct sb *out, struct rt_error *err)
{
    json_t *root = json_object(), *special = json_object(), *stop = json_array();
    json_object_set_new(root, "pattern", json_string(pattern));
    if (t->rules.guard) json_object_set_new(root, "guard", json_true());
    if (ids) json_object_set_new(root, "ids", json_integer(ids));
    if (t->base.bos >= 0) json_object_set_new(root, "bos", json_integer(t->base.bos));
    for (int i = 0; i < t->base.num_stop; i++)
        json_array_append_new(stop, json_integer(t->base.stop[i]));
    json_object_set_new(root, "stop", stop);
    for (size_t i = 0; i < t->num_special; i++)
        json_object_setn_new(special, t->special[i].text.p, t->special[i].text.n,
                             json_integer(t->special[i].id));
    json_object_set_new(root, "special", special);
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    if (!text) return rt_fail(err, RT_user, "pattern and special tokens cannot be written as JSON");
    sb_str(out, text);
    sb_char(out, '\n');
    free(text);
    return RT_ok;
}

static enum rt_status read_all(struct reading *r)
{
    struct bpe *b = &r->t->bpe;
    json_t *beside = NULL;
    int64_t ids = 0;
    RT_TRY(read_ranks(r));
    r->ranks = b->n;
    uint64_t hash = fingerprint(b);
    for (size_t i = 0; i < sizeof known_encodings / sizeof *known_encodings; i++)
        if (known_encodings[i].ranks == b->n && known_encodings[i].hash == hash)
            r->known = &known_encodings[i];
    if (r->f->beside.n)
        RT_TRY(parse_json(r, r->f->beside, "the .json", JSON_REJECT_DUPLICATES, &beside));
    if (r->known) ids = r->known->ids;
    enum rt_status st = all_special(r, beside, &ids);
    if (st == RT_ok) st = set_pattern(r, beside);
    if (st == RT_ok) st = check_ranks(r);
    struct sb about = {0};
    const char *p = r->f->o ? r->f->o->pattern : NULL;
    if (!p) p = json_string_value(json_object_get(beside, "pattern"));
    if (!p && r->known) p = r->known->name;
    if (st == RT_ok) st = describe(r->t, p, ids, &about, r->err);
    json_decref(beside);
    if (st == RT_ok) {
        bpe_tokenizer_ready(r->t, ids);
        bpe_tokenizer_keep(r->t, 0, "tokenizer.tiktoken", r->f->text);
        bpe_tokenizer_keep(r->t, 1, "tokenizer.tiktoken.json", (struct str){about.p, about.n});
    }
    sb_free(&about);
    return st;
}

enum rt_status tokenizer_rank_parse(const struct tok_file_text *f, struct tokenizer **out,
                                    struct rt_error *err)
{
    struct reading r = {.f = f, .err = err};
    *out = NULL;
    RT_TRY(bpe_tokenizer_new(&r.t, err));
    enum rt_status st = read_all(&r);
    if (st == RT_ok)
        *out = &r.t->base;
    else
        tokenizer_close(&r.t->base);
    return st;
}

enum rt_status tokenizer_rank_beside(const struct tok_options *o, struct sb *out,
                                     struct rt_error *err)
{
    struct bpe_tokenizer *t;
    RT_TRY(bpe_tokenizer_new(&t, err));
    enum rt_status st = RT_ok;
    for (size_t i = 0; i < o->num_special && st == RT_ok; i++) {
        st = bpe_tokenizer_special(t, str_of(o->special[i].text), o->special[i].id, false, err);
        if (t->base.num_stop < 1) t->base.stop[t->base.num_stop++] = (int32_t)o->special[i].id;
    }
    if (st == RT_ok) st = describe(t, o->pattern, 0, out, err);
    tokenizer_close(&t->base);
    return st;
}
