#include "runtime/tokenize.h"
#include "runtime/mapped.h"
#include "runtime/utf8.h"
#include <jansson.h>
#include <stdlib.h>

#define REPLACEMENT "\xef\xbf\xbd"

enum rt_status tok_ids_add(struct tok_ids *v, int32_t id, struct rt_error *err)
{
    if (v->n == v->cap) {
        size_t cap = v->cap ? 2 * v->cap : 256;
        int32_t *p = realloc(v->p, cap * sizeof *p);
        if (!p) return rt_fail(err, RT_machine, "no memory for %zu token ids", cap);
        v->p = p;
        v->cap = cap;
    }
    v->p[v->n++] = id;
    return RT_ok;
}

/* ---- bytes ---- */

static enum rt_status bytes_encode(const struct tokenizer *t, void *state, struct tok_part *p,
                                   struct tok_ids *out, struct rt_error *err)
{
    (void)t, (void)state;
    for (; p->from < p->text.n; p->from++, p->offset++)
        RT_TRY(tok_ids_add(out, (unsigned char)p->text.p[p->from], err));
    return RT_ok;
}

struct bytes_tokenizer {
    struct tokenizer base;
    char text[256];
};

static struct str bytes_piece(const struct tokenizer *t, int32_t id)
{
    return (struct str){((const struct bytes_tokenizer *)t)->text + id, 1};
}

static enum rt_status bytes_fits(const struct tokenizer *t, int64_t v, struct rt_error *err)
{
    (void)t;
    if (v >= 256) return RT_ok;
    return rt_fail(err, RT_user,
                   "the tokenizer 'bytes' needs a vocab_size of at least 256, not %lld",
                   (long long)v);
}

static void plain_close(struct tokenizer *t)
{
    free(t);
}

static const struct tokenizer_ops bytes_ops = {.type = "bytes",
                                               .any_bytes = true,
                                               .encode = bytes_encode,
                                               .piece = bytes_piece,
                                               .fits = bytes_fits,
                                               .close = plain_close};

enum rt_status tokenizer_bytes(struct tokenizer **out, struct rt_error *err)
{
    struct bytes_tokenizer *t = calloc(1, sizeof *t);
    *out = t ? &t->base : NULL;
    if (!t) return rt_fail(err, RT_machine, "no memory for a tokenizer");
    t->base = (struct tokenizer){&bytes_ops, 256, .bos = -1};
    for (int i = 0; i < 256; i++) t->text[i] = (char)i;
    return RT_ok;
}

/* ---- chars ---- */

struct letter {
    uint32_t cp;
    char text[UTF8_MAX];
    uint8_t n;
};
struct chars_tokenizer {
    struct tokenizer base;
    int32_t ascii[128];     /* id or -1 */
    struct letter letter[]; /* [vocab_size], in order of code point */
};

static int32_t chars_id(const struct chars_tokenizer *t, uint32_t cp)
{
    if (cp < 128) return t->ascii[cp];
    int32_t lo = 0, hi = t->base.vocab_size;
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2;
        if (t->letter[mid].cp == cp) return mid;
        if (t->letter[mid].cp < cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    return -1;
}

static enum rt_status chars_encode(const struct tokenizer *base, void *state, struct tok_part *p,
                                   struct tok_ids *out, struct rt_error *err)
{
    (void)state;
    const struct chars_tokenizer *t = (const struct chars_tokenizer *)base;
    while (p->from < p->text.n) {
        uint32_t cp = 0;
        int n = utf8_next(p->text.p + p->from, p->text.n - p->from, &cp);
        CHECK(n > 0);
        int32_t id = chars_id(t, cp);
        if (id < 0)
            return rt_fail(err, RT_user,
                           "the character U+%04X at byte %llu is not in the vocabulary",
                           (unsigned)cp, (unsigned long long)p->offset);
        RT_TRY(tok_ids_add(out, id, err));
        p->from += (size_t)n, p->offset += (size_t)n;
    }
    return RT_ok;
}

static struct str chars_piece(const struct tokenizer *t, int32_t id)
{
    const struct letter *l = &((const struct chars_tokenizer *)t)->letter[id];
    return (struct str){l->text, l->n};
}

static const char *chars_file(const struct tokenizer *t, int i)
{
    (void)t;
    return i ? NULL : "chars.json";
}

static void chars_save(const struct tokenizer *t, int file, struct sb *out)
{
    (void)file;
    sb_str(out, "{\"type\": \"chars\", \"code_points\": [");
    for (int32_t i = 0; i < t->vocab_size; i++)
        sb_printf(out, "%s%u", i ? ", " : "",
                  (unsigned)((const struct chars_tokenizer *)t)->letter[i].cp);
    sb_str(out, "]}\n");
}

static enum rt_status chars_fits(const struct tokenizer *t, int64_t v, struct rt_error *err)
{
    if (v == t->vocab_size) return RT_ok;
    return rt_fail(err, RT_user, "the text has %d distinct characters but vocab_size is %lld",
                   (int)t->vocab_size, (long long)v);
}

static const struct tokenizer_ops chars_ops = {.type = "chars",
                                               .file = chars_file,
                                               .save = chars_save,
                                               .encode = chars_encode,
                                               .piece = chars_piece,
                                               .fits = chars_fits,
                                               .close = plain_close};

/* From one flag a code point. */
static enum rt_status chars_build(const bool *used, struct tokenizer **out, struct rt_error *err)
{
    size_t n = 0;
    for (uint32_t cp = 0; cp < UTF8_LIMIT; cp++) n += used[cp];
    struct chars_tokenizer *t = calloc(1, sizeof *t + n * sizeof t->letter[0]);
    if (!t) return rt_fail(err, RT_machine, "no memory for a vocabulary of %zu characters", n);
    t->base = (struct tokenizer){&chars_ops, (int32_t)n, .bos = -1};
    for (int i = 0; i < 128; i++) t->ascii[i] = -1;
    n = 0;
    for (uint32_t cp = 0; cp < UTF8_LIMIT; cp++) {
        if (!used[cp]) continue;
        if (cp < 128) t->ascii[cp] = (int32_t)n;
        t->letter[n].cp = cp;
        t->letter[n].n = (uint8_t)utf8_put(cp, t->letter[n].text);
        n++;
    }
    *out = &t->base;
    return RT_ok;
}

enum rt_status tokenizer_chars(struct str text, const char *label, struct tokenizer **out,
                               struct rt_error *err)
{
    *out = NULL;
    bool *used = calloc(UTF8_LIMIT, sizeof *used);
    if (!used) return rt_fail(err, RT_machine, "no memory for a vocabulary");
    enum rt_status r = RT_ok;
    for (size_t i = 0; i < text.n && r == RT_ok;) {
        uint32_t cp = 0;
        int n = utf8_next(text.p + i, text.n - i, &cp);
        if (n <= 0) {
            r = rt_fail(err, RT_user, "'%s' has invalid UTF-8 at byte %zu", label, i);
        } else {
            used[cp] = true;
            i += (size_t)n;
        }
    }
    if (r == RT_ok && !text.n) r = rt_fail(err, RT_user, "'%s' is empty", label);
    if (r == RT_ok) r = chars_build(used, out, err);
    free(used);
    return r;
}

enum rt_status tokenizer_chars_of_file(const char *path, struct tokenizer **out,
                                       struct rt_error *err)
{
    struct mapped m;
    *out = NULL;
    RT_TRY(mapped_open(path, &m, err));
    enum rt_status r = tokenizer_chars((struct str){m.bytes, m.size}, path, out, err);
    mapped_close(&m);
    return r;
}

static const char *read_points(const json_t *root, bool *used)
{
    const char *type = json_string_value(json_object_get(root, "type"));
    const json_t *list = json_object_get(root, "code_points");
    if (!type || strcmp(type, "chars")) return "its type is not chars";
    if (!json_is_array(list) || !json_array_size(list)) return "code_points is not a list";
    json_int_t last = -1;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *j = json_array_get(list, i);
        json_int_t cp = json_integer_value(j);
        if (!json_is_integer(j) || cp <= last || cp >= UTF8_LIMIT || (cp >= 0xd800 && cp < 0xe000))
            return "code_points are not rising code points";
        used[last = cp] = true;
    }
    return NULL;
}

enum rt_status tokenizer_chars_parse(struct str json, const char *label, struct tokenizer **out,
                                     struct rt_error *err)
{
    *out = NULL;
    json_error_t je;
    bool *used = calloc(UTF8_LIMIT, sizeof *used);
    if (!used) return rt_fail(err, RT_machine, "no memory for a vocabulary");
    json_t *root = json_loadb(json.p ? json.p : "", json.n, JSON_REJECT_DUPLICATES, &je);
    const char *wrong = root ? read_points(root, used) : je.text;
    enum rt_status r;
    if (wrong)
        r = rt_fail(err, RT_user, "'%s' is not a vocabulary of characters: %s", label, wrong);
    else
        r = chars_build(used, out, err);
    json_decref(root);
    free(used);
    return r;
}

enum rt_status tokenizer_chars_load(const char *path, struct tokenizer **out, struct rt_error *err)
{
    struct mapped m;
    *out = NULL;
    RT_TRY(mapped_open(path, &m, err));
    enum rt_status r = tokenizer_chars_parse((struct str){m.bytes, m.size}, path, out, err);
    mapped_close(&m);
    return r;
}

/* ---- all kinds ---- */

void tokenizer_close(struct tokenizer *t)
{
    if (t) t->ops->close(t);
}

static struct str piece_of(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->vocab_size ? t->ops->piece(t, id) : STR(REPLACEMENT);
}

/* The text of the next id of a sequence. */
static struct str text_of(const struct tokenizer *t, int32_t id, bool *begun)
{
    struct str s = piece_of(t, id);
    if (t->space_first && !*begun && s.n && *s.p == ' ') s.p++, s.n--, *begun = true;
    *begun |= s.n > 0;
    return s;
}

void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, struct sb *out)
{
    bool begun = false;
    for (size_t i = 0; i < n; i++) {
        struct str s = text_of(t, ids[i], &begun);
        sb_add(out, s.p, s.n);
    }
}

void tok_stream_add(struct tok_stream *s, const struct tokenizer *t, int32_t id, struct sb *out)
{
    struct str piece = text_of(t, id, &s->begun);
    for (size_t i = 0; i < piece.n; i++) {
        s->held[s->n++] = piece.p[i];
        uint32_t cp;
        int n;
        /* a byte that cannot follow ends the sequence before it and may start one itself */
        while (s->n && (n = utf8_next(s->held, s->n, &cp)) >= 0) {
            size_t gone = n ? (size_t)n : s->n > 1 ? s->n - 1 : 1;
            sb_add(out, n ? s->held : REPLACEMENT, n ? (size_t)n : 3);
            memmove(s->held, s->held + gone, s->n - gone);
            s->n -= gone;
        }
    }
}

void tok_stream_end(struct tok_stream *s, struct sb *out)
{
    if (s->n) sb_str(out, REPLACEMENT);
    *s = (struct tok_stream){.n = 0};
}
