#include "compiler/hf_json.h"
#include <math.h>
#include <stdlib.h>

enum { SHOWN = 60 };

bool hf_parse(struct arena *a, struct diag *d, const char *path, struct str text, bool loose,
              struct hf_object *o)
{
    struct hf_text *t = NEW(a, struct hf_text, 1);
    *t = (struct hf_text){a, d, diag_file(d, path, text), text};
    *o = (struct hf_object){.t = t, .path = ""};
    map_init(&o->used, a);
    json_error_t je;
    json_t *j = json_loadb(text.p, text.n,
                           JSON_REJECT_DUPLICATES | (loose ? JSON_DECODE_INT_AS_REAL : 0), &je);
    if (!j) {
        size_t at = je.position > 0 ? (size_t)je.position - 1 : 0;
        diag_add(d, D_hf_json, (struct span){t->file, (uint32_t)(at < text.n ? at : text.n), 1},
                 je.text);
        return false;
    }
    if (!json_is_object(j)) {
        diag_add(d, D_hf_kind, (struct span){t->file, 0, 1}, "the file", "an object",
                 json_is_array(j) ? "a list" : "a value");
        json_decref(j);
        return false;
    }
    o->json = j;
    o->at = (size_t)((const char *)memchr(text.p, '{', text.n) - text.p);
    return true;
}

static size_t skip_space(struct str t, size_t i)
{
    while (i < t.n && strchr(" \t\r\n", t.p[i])) i++;
    return i;
}

/* Offset of the value of a key in the object at `at` of a valid text, and of the key's quote;
 * SIZE_MAX where the key is written with escapes. */
static size_t find_value(struct str t, size_t at, const char *key, size_t *quote)
{
    int depth = 0;
    size_t n = strlen(key);
    for (size_t i = at; i < t.n; i++) {
        char c = t.p[i];
        if (c == '{' || c == '[') depth++;
        if ((c == '}' || c == ']') && --depth == 0) break;
        if (c != '"') continue;
        size_t from = i + 1;
        for (i = from; i < t.n && t.p[i] != '"'; i++)
            if (t.p[i] == '\\') i++;
        if (depth != 1 || i - from != n || memcmp(t.p + from, key, n) != 0) continue;
        size_t colon = skip_space(t, i + 1);
        if (colon >= t.n || t.p[colon] != ':') continue;
        *quote = from - 1;
        return skip_space(t, colon + 1);
    }
    return SIZE_MAX;
}

struct span hf_place(const struct hf_object *o, const char *key)
{
    size_t quote, at = find_value(o->t->text, o->at, key, &quote);
    struct span s = {o->t->file, (uint32_t)o->at, 1};
    if (at != SIZE_MAX) s.off = (uint32_t)quote, s.len = (uint32_t)strlen(key) + 2;
    return s;
}

const json_t *hf_get(struct hf_object *o, const char *key)
{
    *map_str(&o->used, str_of(key)) = 1;
    const json_t *v = json_object_get(o->json, key);
    return json_is_null(v) ? NULL : v;
}

const char *hf_show(const struct hf_object *o, const char *key)
{
    const json_t *v = json_object_get(o->json, key);
    char *s = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    if (!s) BUG("no memory to show %s", key);
    size_t n = strlen(s);
    if (n > SHOWN)
        for (n = SHOWN; n && ((unsigned char)s[n] & 0xc0) == 0x80;) n--;
    const char *shown = str_fmt(o->t->a, "%.*s%s", (int)n, s, s[n] ? "..." : "");
    free(s);
    return shown;
}

static void wrong(struct hf_object *o, const char *key, const char *kind)
{
    diag_add(o->t->d, D_hf_kind, hf_place(o, key), str_fmt(o->t->a, "%s%s", o->path, key), kind,
             hf_show(o, key));
}

static void missing(struct hf_object *o, const char *key)
{
    diag_add(o->t->d, D_hf_missing, (struct span){o->t->file, (uint32_t)o->at, 1},
             str_fmt(o->t->a, "%s%s", o->path, key));
}

int64_t hf_int(struct hf_object *o, const char *key, int64_t low, int64_t high, int64_t absent)
{
    const json_t *v = hf_get(o, key);
    if (!v && absent == HF_REQUIRED) missing(o, key);
    if (!v) return absent == HF_REQUIRED ? low : absent;
    int64_t n = json_integer_value(v);
    if (json_is_integer(v) && n >= low && n <= high) return n;
    wrong(o, key,
          str_fmt(o->t->a, "a whole number from %lld to %lld", (long long)low, (long long)high));
    return low;
}

double hf_number(struct hf_object *o, const char *key, double absent)
{
    const json_t *v = hf_get(o, key);
    if (!v && isnan(absent)) missing(o, key);
    if (!v) return isnan(absent) ? 1 : absent;
    if (json_is_number(v)) return json_number_value(v);
    wrong(o, key, "a number");
    return 1;
}

bool hf_bool(struct hf_object *o, const char *key, bool absent)
{
    const json_t *v = hf_get(o, key);
    if (!v) return absent;
    if (!json_is_boolean(v)) wrong(o, key, "true or false");
    return json_is_true(v);
}

const char *hf_word(struct hf_object *o, const char *key, const char *absent)
{
    const json_t *v = hf_get(o, key);
    if (!v && !absent) missing(o, key);
    if (!v) return absent ? absent : "";
    if (json_is_string(v)) return json_string_value(v);
    wrong(o, key, "a text");
    return "";
}

bool hf_int_list(struct hf_object *o, const char *key, int64_t low, int64_t high, hf_ints *out)
{
    const json_t *v = hf_get(o, key), *item;
    size_t i;
    bool ok = json_is_array(v);
    if (!v) missing(o, key);
    if (!v) return false;
    json_array_foreach(v, i, item)
    {
        int64_t n = json_integer_value(item);
        ok = ok && json_is_integer(item) && n >= low && n <= high;
        vec_push(o->t->a, out, n);
    }
    if (!ok)
        wrong(o, key,
              str_fmt(o->t->a, "a list of whole numbers from %lld to %lld", (long long)low,
                      (long long)high));
    return ok;
}

bool hf_sub(struct hf_object *o, const char *key, struct hf_object *sub)
{
    const json_t *v = hf_get(o, key);
    size_t quote, at = find_value(o->t->text, o->at, key, &quote);
    *sub = (struct hf_object){.t = o->t, .json = v, .at = at == SIZE_MAX ? o->at : at};
    sub->path = str_fmt(o->t->a, "%s%s.", o->path, key);
    map_init(&sub->used, o->t->a);
    if (!v) return false;
    if (json_is_object(v)) return true;
    wrong(o, key, "an object");
    return false;
}

void hf_refuse(struct hf_object *o, const char *key, const char *why)
{
    diag_add(o->t->d, D_hf_refused, hf_place(o, key), str_fmt(o->t->a, "%s%s", o->path, key),
             hf_show(o, key), why);
}

void hf_unknown(const struct hf_object *o, bool (*known)(const char *key))
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)o->json, key, v)
    {
        if (map_find(&o->used, str_of(key)) || known(key)) continue;
        diag_add(o->t->d, D_hf_unknown, hf_place(o, key), str_fmt(o->t->a, "%s%s", o->path, key));
    }
}
