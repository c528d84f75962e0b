/* tokenizer.json of Hugging Face's tokenizers: model BPE, either over bytes (GPT-2, Llama 3, Qwen)
 * or over characters with byte_fallback (Llama 2). What is not understood is refused by its name.
 * Source: huggingface/tokenizers, tokenizers/src. */
#include "runtime/tokenizer_file.h"
#include "runtime/tokenizer_bpe.h"
#include "runtime/utf8.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#define UNDERLINE "\xe2\x96\x81" /* U+2581 stands for a space */

struct reading {
    const struct tok_file_text *f;
    struct bpe_tokenizer *t;
    json_t *root;
    const json_t *model, *vocab;
    bool bytes;      /* tokens are written in the alphabet of ByteLevel */
    int16_t of[512]; /* its letters: byte or -1 */
    bool *ordinary;  /* [ids] tokens that merging may give */
    size_t ids;
    struct rt_error *err;
};

static enum rt_status wrong(const struct reading *r, const char *what)
{
    return rt_fail(r->err, RT_user, "'%s': %s", r->f->label, what);
}

static enum rt_status refuse(const struct reading *r, const char *where, const char *what)
{
    return rt_fail(r->err, RT_user, "'%s': %s '%.64s' is not supported", r->f->label, where, what);
}

static const char *text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

/* Whether the object is of that type. */
static bool is(const json_t *o, const char *type)
{
    return !strcmp(text(o, "type"), type);
}

/* A flag that is off where it is absent or null. */
static bool on(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_false(v) && !json_is_null(v);
}

/* Refuses keys that are not in the list (NULL at its end). */
static enum rt_status only(const struct reading *r, const char *where, const json_t *o,
                           const char *const *keys)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)o, key, v)
    {
        size_t i = 0;
        while (keys[i] && strcmp(keys[i], key)) i++;
        if (!keys[i]) return refuse(r, where, key);
    }
    return RT_ok;
}
#define KEYS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* ---- how text is cut ---- */

static enum rt_status set_pattern(struct reading *r, const char *pattern)
{
    struct rt_error why;
    if (r->t->pattern) return wrong(r, "more than one pattern in pre_tokenizer is not supported");
    enum rt_status st = pattern_open(pattern, &r->t->pattern, &why);
    return st == RT_ok ? st : rt_fail(r->err, st, "'%s': %s", r->f->label, why.text);
}

static enum rt_status split(struct reading *r, const json_t *o)
{
    RT_TRY(only(r, "Split", o, KEYS("type", "pattern", "behavior", "invert")));
    const char *behavior = text(o, "behavior");
    /* every match is a piece; text between matches too, which `Removed` would lose */
    if (strcmp(behavior, on(o, "invert") ? "Removed" : "Isolated"))
        return refuse(r, "the Split behavior", behavior);
    const json_t *regex = json_object_get(json_object_get(o, "pattern"), "Regex");
    if (!json_is_string(regex)) return refuse(r, "a Split by", "String");
    return set_pattern(r, json_string_value(regex));
}

static enum rt_status byte_level(struct reading *r, const json_t *o)
{
    RT_TRY(only(r, "ByteLevel", o, KEYS("type", "add_prefix_space", "trim_offsets", "use_regex")));
    if (on(o, "add_prefix_space")) return refuse(r, "ByteLevel with", "add_prefix_space");
    r->bytes = true;
    const json_t *regex = json_object_get(o, "use_regex");
    if (!regex || json_is_true(regex)) return set_pattern(r, pattern_gpt2);
    return r->t->pattern ? RT_ok : refuse(r, "ByteLevel without", "use_regex");
}

static enum rt_status metaspace(struct reading *r, const json_t *o)
{
    struct split_rules *s = &r->t->rules;
    RT_TRY(only(
        r, "Metaspace", o,
        KEYS("type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep")));
    if (strcmp(text(o, "replacement"), UNDERLINE))
        return refuse(r, "the Metaspace replacement", text(o, "replacement"));
    const char *scheme = text(o, "prepend_scheme");
    const json_t *add = json_object_get(o, "add_prefix_space");
    if (!*scheme) scheme = !add || json_is_true(add) ? "always" : "never";
    if (!strcmp(scheme, "always"))
        s->space_first = s->space_each = true;
    else if (!strcmp(scheme, "first"))
        s->space_first = true;
    else if (strcmp(scheme, "never"))
        return refuse(r, "the Metaspace prepend_scheme", scheme);
    const json_t *cut = json_object_get(o, "split");
    s->space_once = true;
    s->space_cuts = !cut || json_is_true(cut);
    s->spaces = true;
    return RT_ok;
}

static enum rt_status pre_tokenizer(struct reading *r, const json_t *o)
{
    if (!o || json_is_null(o)) return RT_ok;
    if (is(o, "Split")) return split(r, o);
    if (is(o, "ByteLevel")) return byte_level(r, o);
    if (is(o, "Metaspace")) return metaspace(r, o);
    if (!is(o, "Sequence")) return refuse(r, "the pre_tokenizer", text(o, "type"));
    size_t i;
    const json_t *part, *list = json_object_get(o, "pretokenizers");
    json_array_foreach(list, i, part)
    {
        if (is(part, "Sequence") || is(part, "Metaspace"))
            return refuse(r, "a pre_tokenizer in a Sequence,", text(part, "type"));
        RT_TRY(pre_tokenizer(r, part));
        if (r->bytes && i + 1 < json_array_size(list))
            return wrong(r, "a pre_tokenizer after ByteLevel is not supported");
    }
    return RT_ok;
}

static enum rt_status normalizer(struct reading *r, const json_t *o)
{
    struct split_rules *s = &r->t->rules;
    if (!o || json_is_null(o)) return RT_ok;
    if (is(o, "Prepend") && !strcmp(text(o, "prepend"), UNDERLINE)) {
        s->space_first = s->space_each = true;
        return RT_ok;
    }
    if (is(o, "Replace") && !strcmp(text(o, "content"), UNDERLINE) &&
        !strcmp(text(json_object_get(o, "pattern"), "String"), " ")) {
        s->spaces = true;
        return RT_ok;
    }
    if (is(o, "NFC")) {
        r->t->base.nfc = true;
        return RT_ok;
    }
    if (!is(o, "Sequence")) return refuse(r, "the normalizer", text(o, "type"));
    size_t i;
    const json_t *part;
    json_array_foreach(json_object_get(o, "normalizers"), i, part)
    {
        if (is(part, "Sequence")) return refuse(r, "a normalizer in a Sequence,", "Sequence");
        RT_TRY(normalizer(r, part));
    }
    return RT_ok;
}

/* What is done around encoding adds special tokens, which is asked for otherwise here. */
static enum rt_status post_processor(const struct reading *r, const json_t *o)
{
    if (!o || json_is_null(o) || is(o, "ByteLevel") || is(o, "TemplateProcessing")) return RT_ok;
    if (!is(o, "Sequence")) return refuse(r, "the post_processor", text(o, "type"));
    size_t i;
    const json_t *part;
    json_array_foreach(
        json_object_get(o, "processors"), i,
        part) if (!is(part, "ByteLevel") &&
                  !is(part, "TemplateProcessing")) return refuse(r, "the post_processor",
                                                                 text(part, "type"));
    return RT_ok;
}

static enum rt_status cutting(struct reading *r)
{
    struct split_rules *s = &r->t->rules;
    RT_TRY(only(r, "the key", r->root,
                KEYS("version", "truncation", "padding", "added_tokens", "normalizer",
                     "pre_tokenizer", "post_processor", "decoder", "model")));
    if (on(r->root, "truncation")) return refuse(r, "the key", "truncation");
    if (on(r->root, "padding")) return refuse(r, "the key", "padding");
    RT_TRY(normalizer(r, json_object_get(r->root, "normalizer")));
    bool normalized = s->space_first || s->spaces;
    RT_TRY(pre_tokenizer(r, json_object_get(r->root, "pre_tokenizer")));
    RT_TRY(post_processor(r, json_object_get(r->root, "post_processor")));
    if (r->bytes)
        return normalized ? wrong(r, "this normalizer with ByteLevel is not supported") : RT_ok;
    if (r->t->pattern) return wrong(r, "a Split without ByteLevel is not supported");
    if (normalized && s->space_once)
        return wrong(r, "a normalizer together with Metaspace is not supported");
    if (!s->spaces)
        return wrong(r, "neither ByteLevel nor Metaspace nor their normalizer: not supported");
    return RT_ok;
}

/* ---- the vocabulary ---- */

/* GPT-2's bytes_to_unicode: printable bytes are themselves, the others follow from 256. */
static void alphabet(int16_t of[512])
{
    int next = 256;
    for (int c = 0; c < 512; c++) of[c] = -1;
    for (int b = 0; b < 256; b++) {
        bool plain = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        of[plain ? b : next++] = (int16_t)b;
    }
}

/* Appends the bytes of a token as the file writes it; false when it is none. */
static bool token_bytes(const struct reading *r, struct str s, struct sb *out)
{
    uint32_t c;
    out->n = 0;
    for (size_t i = 0; i < s.n;) {
        int n = utf8_next(s.p + i, s.n - i, &c);
        if (n <= 0) return false;
        if (r->bytes) {
            if (c >= 512 || r->of[c] < 0) return false;
            sb_char(out, (char)r->of[c]);
        } else if (c == 0x2581) {
            sb_char(out, ' ');
        } else {
            sb_add(out, s.p + i, (size_t)n);
        }
        i += (size_t)n;
    }
    return out->n > 0;
}

static bool is_added(const struct reading *r, const char *content)
{
    size_t i;
    const json_t *a;
    json_array_foreach(json_object_get(r->root, "added_tokens"), i,
                       a) if (!strcmp(text(a, "content"), content)) return true;
    return false;
}

/* <0x00> to <0xFF> of a vocabulary of characters. */
static bool is_byte(const struct reading *r, const char *s, int *byte)
{
    char again[8];
    unsigned b;
    if (r->bytes || sscanf(s, "<0x%2X>", &b) != 1) return false;
    snprintf(again, sizeof again, "<0x%02X>", b);
    *byte = (int)b;
    return !strcmp(s, again);
}

static enum rt_status add_token(struct reading *r, const char *s, size_t n, int64_t id,
                                struct sb *bytes)
{
    struct bpe *b = &r->t->bpe;
    int byte;
    if (id < 0 || id >= BPE_IDS) return wrong(r, "an id of the vocabulary is out of range");
    if (is_byte(r, s, &byte)) {
        if (b->byte[byte] >= 0) return refuse(r, "twice the token", s);
        b->byte[byte] = (int32_t)id;
        return bpe_add(b, id, (struct str){(const char[]){(char)byte}, 1}, 0, r->err);
    }
    bool added = is_added(r, s);
    if (added) return RT_ok; /* added_tokens has its text */
    if (!token_bytes(r, (struct str){s, n}, bytes)) return refuse(r, "the token", s);
    RT_TRY(bpe_add(b, id, (struct str){bytes->p, bytes->n}, 0, r->err));
    r->ordinary[id] = true;
    return RT_ok;
}

static enum rt_status vocabulary(struct reading *r, struct sb *bytes)
{
    const char *key;
    json_t *v;
    int64_t most = -1;
    json_object_foreach((json_t *)r->vocab, key, v)
    {
        int64_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id >= BPE_IDS) return wrong(r, "model.vocab has an id that cannot be");
        if (id > most) most = id;
    }
    /* ids far beyond their number are a mistake, and would take memory */
    size_t count = json_object_size(r->vocab);
    if (most < 0) return wrong(r, "model.vocab has no tokens");
    if ((size_t)most >= 2 * count + 65536)
        return wrong(r, "model.vocab has an id that is too large");
    r->ids = (size_t)most + 1;
    r->ordinary = calloc(r->ids, sizeof *r->ordinary);
    if (!r->ordinary) return rt_fail(r->err, RT_machine, "no memory for a tokenizer");
    json_object_foreach((json_t *)r->vocab, key, v)
        RT_TRY(add_token(r, key, strlen(key), json_integer_value(v), bytes));
    struct bpe *b = &r->t->bpe;
    size_t merged = b->n < r->ids ? b->n : r->ids;
    RT_TRY(bpe_ready(b, merged, r->ordinary, r->err));
    if (!r->bytes) RT_TRY(bpe_tokenizer_joins(r->t, merged, r->ordinary, r->err));
    for (int c = 0; c < 256; c++) {
        if (r->bytes) b->byte[c] = bpe_find(b, (const char[]){(char)c}, 1);
        if (b->byte[c] < 0)
            return rt_fail(r->err, RT_user, "'%s': no token is the byte 0x%02x", r->f->label,
                           (unsigned)c);
    }
    return RT_ok;
}

/* ---- merges ---- */

static enum rt_status half(const struct reading *r, struct str s, size_t line, struct sb *bytes,
                           int32_t *id)
{
    *id = token_bytes(r, s, bytes) ? bpe_find(&r->t->bpe, bytes->p, bytes->n) : -1;
    if (*id >= 0) return RT_ok;
    return rt_fail(r->err, RT_user, "'%s': merge %zu names the token '%.*s', which is not there",
                   r->f->label, line, (int)(s.n < 64 ? s.n : 64), s.p);
}

static enum rt_status merge(struct reading *r, const json_t *m, size_t i, struct sb *bytes)
{
    struct str s = str_of(json_string_value(m)), a, b;
    if (json_is_array(m) && json_array_size(m) == 2) {
        a = str_of(json_string_value(json_array_get(m, 0)));
        b = str_of(json_string_value(json_array_get(m, 1)));
    } else {
        const char *space = s.p ? memchr(s.p, ' ', s.n) : NULL;
        if (!space) return wrong(r, "a merge is not two tokens");
        a = (struct str){s.p, (size_t)(space - s.p)};
        b = (struct str){space + 1, s.n - a.n - 1};
    }
    struct bpe_pair p = {.rank = (uint32_t)i};
    RT_TRY(half(r, a, i, bytes, &p.left));
    RT_TRY(half(r, b, i, bytes, &p.right));
    struct str x = bpe_text(&r->t->bpe, p.left), y = bpe_text(&r->t->bpe, p.right);
    bytes->n = 0;
    sb_add(bytes, x.p, x.n);
    sb_add(bytes, y.p, y.n);
    p.id = bpe_find(&r->t->bpe, bytes->p, bytes->n);
    if (p.id < 0)
        return rt_fail(r->err, RT_user, "'%s': what merge %zu makes is no token", r->f->label, i);
    return bpe_pair(&r->t->bpe, p, r->err);
}

static enum rt_status model(struct reading *r, struct sb *bytes)
{
    const json_t *m = r->model = json_object_get(r->root, "model"), *list, *one;
    size_t i;
    /* files older than the key `type` have BPE by their merges */
    if (!json_is_object(m)) return wrong(r, "there is no model");
    if (*text(m, "type") ? !is(m, "BPE") : !json_object_get(m, "merges"))
        return refuse(r, "the model", *text(m, "type") ? text(m, "type") : "without type");
    RT_TRY(
        only(r, "the key of model", m,
             KEYS("type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                  "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges")));
    if (on(m, "dropout") && json_number_value(json_object_get(m, "dropout")) != 0)
        return refuse(r, "the key of model", "dropout");
    if (*text(m, "continuing_subword_prefix"))
        return refuse(r, "the key of model", "continuing_subword_prefix");
    if (*text(m, "end_of_word_suffix")) return refuse(r, "the key of model", "end_of_word_suffix");
    if (!r->bytes && !on(m, "byte_fallback"))
        return wrong(r, "a model of characters without byte_fallback is not supported");
    r->vocab = json_object_get(m, "vocab");
    if (!json_is_object(r->vocab)) return wrong(r, "model.vocab is not an object");
    r->t->bpe.whole = on(m, "ignore_merges");
    r->t->bpe.listed = true;
    r->t->bpe.chars = !r->bytes;
    RT_TRY(vocabulary(r, bytes));
    list = json_object_get(m, "merges");
    if (!json_is_array(list)) return wrong(r, "model.merges is not a list");
    json_array_foreach(list, i, one) RT_TRY(merge(r, one, i, bytes));
    return bpe_ready_pairs(&r->t->bpe, r->err);
}

/* ---- added tokens ---- */

static enum rt_status added_tokens(struct reading *r)
{
    size_t i;
    const json_t *a, *list = json_object_get(r->root, "added_tokens");
    if (json_array_size(list) > 1 << 14) return wrong(r, "there are too many added_tokens");
    json_array_foreach(list, i, a)
    {
        const char *s = text(a, "content");
        const json_t *id = json_object_get(a, "id"), *known = json_object_get(r->vocab, s);
        bool special = on(a, "special");
        if (!*s || !json_is_integer(id))
            return wrong(r, "one of added_tokens has no content or id");
        if (json_integer_value(id) < 0 || json_integer_value(id) >= (int64_t)r->ids + (1 << 16) ||
            (known && json_integer_value(known) != json_integer_value(id)))
            return refuse(r, "the id of the added token", s);
        if (on(a, "lstrip") || on(a, "rstrip") || on(a, "single_word")) {
            if (!special) return refuse(r, "lstrip, rstrip or single_word of the added token", s);
            r->t->special_refused =
                "some of them take neighbouring spaces (lstrip, rstrip) or only "
                "single words, which is not supported";
        }
        size_t at = (size_t)json_integer_value(id);
        if (at < r->t->bpe.n && r->t->bpe.token[at].n)
            return refuse(r, "the id of the added token", s);
        RT_TRY(bpe_tokenizer_special(r->t, str_of(s), (int64_t)at, !special, r->err));
    }
    return RT_ok;
}

/* The id of a token that tokenizer_config.json names, as text or {"content": text}. */
static int32_t config_id(const struct reading *r, const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    const char *s = json_is_string(v) ? json_string_value(v) : text(v, "content");
    for (size_t i = 0; i < r->t->num_special; i++)
        if (str_is(r->t->special[i].text, s)) return r->t->special[i].id;
    return -1;
}

static enum rt_status config(struct reading *r)
{
    json_error_t je;
    if (!r->f->config.n) return RT_ok;
    json_t *root = json_loadb(r->f->config.p, r->f->config.n, JSON_DECODE_INT_AS_REAL, &je);
    if (!root)
        return rt_fail(r->err, RT_user, "tokenizer_config.json beside '%s': %s (line %d)",
                       r->f->label, je.text, je.line);
    struct tokenizer *base = &r->t->base;
    int32_t eos = config_id(r, root, "eos_token");
    base->bos = config_id(r, root, "bos_token");
    if (eos >= 0) base->stop[base->num_stop++] = eos;
    json_decref(root);
    bpe_tokenizer_keep(r->t, 1, "tokenizer_config.json", r->f->config);
    return RT_ok;
}

static enum rt_status read_all(struct reading *r)
{
    json_error_t je;
    struct sb bytes = {0};
    r->root = json_loadb(r->f->text.p, r->f->text.n, JSON_REJECT_DUPLICATES, &je);
    if (!json_is_object(r->root))
        return rt_fail(r->err, RT_user, "'%s' is not JSON: %s (line %d)", r->f->label, je.text,
                       je.line);
    alphabet(r->of);
    RT_TRY(cutting(r));
    enum rt_status st = model(r, &bytes);
    sb_free(&bytes);
    RT_TRY(st);
    RT_TRY(added_tokens(r));
    RT_TRY(config(r));
    r->t->base.space_first = r->t->rules.space_first;
    bpe_tokenizer_ready(r->t, (int64_t)r->ids);
    bpe_tokenizer_keep(r->t, 0, "tokenizer.json", r->f->text);
    return RT_ok;
}

enum rt_status tokenizer_json_parse(const struct tok_file_text *f, struct tokenizer **out,
                                    struct rt_error *err)
{
    struct rt_error why;
    struct reading r = {.f = f, .err = &why};
    *out = NULL;
    if (f->o && (f->o->pattern || f->o->num_special))
        return rt_fail(err, RT_user,
                       "'%s' says its pattern and special tokens itself; none can be given",
                       f->label);
    RT_TRY(bpe_tokenizer_new(&r.t, err));
    enum rt_status st = read_all(&r);
    json_decref(r.root);
    free(r.ordinary);
    if (st == RT_ok) {
        *out = &r.t->base;
        return RT_ok;
    }
    tokenizer_close(&r.t->base);
    bool named = strstr(why.text, f->label) != NULL;
    return rt_fail(err, st, named ? "%s" : "%s (in '%s')", why.text, f->label);
}
