#include "compiler/spec_table.h"
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#define ANY SPEC_ANY
#define T(type) (1u << (type))
#define NOWHERE SPEC_NOWHERE
#define MODEL(field) offsetof(struct model, field)
#define MIXER(field) offsetof(struct mixer, field)
#define FFN(field) offsetof(struct ffn, field)
#define LAYER(field) offsetof(struct spec_item, field)

const struct spec_object spec_objects[OBJ_COUNT] = {
#define OBJ(id, path, bare, help) {#id, path, BARE_##bare, help},
#include "compiler/spec.def"
};

const struct spec_key spec_keys[] = {
#define KEY(object, name, kind, arg, when, dflt, range, field, help) \
    {OBJ_##object, name, K_##kind, arg, when, dflt, range, field, help},
#include "compiler/spec.def"
};
const size_t spec_num_keys = sizeof spec_keys / sizeof *spec_keys;

const struct spec_word spec_words[] = {
#define WORD(list, prefix, word) {LIST_##list, prefix##word, #list, #word},
#include "compiler/spec.def"
};
const size_t spec_num_words = sizeof spec_words / sizeof *spec_words;

const struct spec_key *spec_key_find(enum spec_obj object, struct str name, int type)
{
    for (size_t i = 0; i < spec_num_keys; i++) {
        const struct spec_key *k = &spec_keys[i];
        if (k->object == object && str_is(name, k->name) && (type < 0 || k->when >> type & 1))
            return k;
    }
    return NULL;
}

const struct spec_word *spec_word_find(enum spec_list list, struct str text)
{
    for (size_t i = 0; i < spec_num_words; i++)
        if (spec_words[i].list == list && str_is(text, spec_words[i].word)) return &spec_words[i];
    return NULL;
}

const char *spec_list_name(enum spec_list list)
{
    for (size_t i = 0; i < spec_num_words; i++)
        if (spec_words[i].list == list) return spec_words[i].list_name;
    BUG("list %d has no words", (int)list);
}

enum spec_list spec_type_list(enum spec_obj object)
{
    if (object == OBJ_COUNT) return LIST_none;
    const struct spec_key *k = spec_key_find(object, STR("type"), -1);
    return k ? (enum spec_list)k->arg : LIST_none;
}

struct spec_range spec_range_of(const char *text)
{
    struct spec_range r = {-INFINITY, INFINITY, false, false};
    if (!*text) return r;
    char *end;
    r.lo_open = *text == '(';
    r.lo = strtod(text + 1, &end);
    CHECK(*end == ',');
    r.hi = strtod(end + 1, &end);
    r.hi_open = *end == ')';
    CHECK(*end == ')' || *end == ']');
    return r;
}

void spec_range_phrase(struct sb *out, const char *text)
{
    struct spec_range r = spec_range_of(text);
    if (r.hi >= 0x1p53) /* a limit that nobody means to reach */
        sb_printf(out, "%s %.17g", r.lo_open ? "above" : "at least", r.lo);
    else if (r.lo == r.hi)
        sb_printf(out, "%.17g", r.lo);
    else if (!r.lo_open && !r.hi_open)
        sb_printf(out, "from %.17g to %.17g", r.lo, r.hi);
    else
        sb_printf(out, "%s %.17g and %s %.17g", r.lo_open ? "above" : "at least", r.lo,
                  r.hi_open ? "below" : "at most", r.hi);
}

void spec_words_phrase(struct sb *out, enum spec_list list)
{
    size_t n = 0, seen = 0;
    for (size_t i = 0; i < spec_num_words; i++) n += spec_words[i].list == list;
    for (size_t i = 0; i < spec_num_words; i++) {
        if (spec_words[i].list != list) continue;
        if (seen) sb_str(out, seen + 1 == n ? " or " : ", ");
        sb_str(out, spec_words[i].word);
        seen++;
    }
}

const char *spec_enum_name(const char *key, int value)
{
    for (size_t i = 0; i < spec_num_words; i++)
        if (strcmp(spec_words[i].list_name, key) == 0 && spec_words[i].value == value)
            return spec_words[i].word;
    if (strcmp(key, "tokenizer_type") == 0) return value == TOK_file ? "file" : "none";
    BUG("no word for value %d of '%s'", value, key);
}
