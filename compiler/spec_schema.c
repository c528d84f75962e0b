/* The JSON Schema of the spec language. `part` definitions are for specs that extend another one:
 * there nothing is required. */
#include "compiler/spec_doc.h"
#include "compiler/spec_table.h"
#include <math.h>

struct schema {
    struct sb *out;
    bool part;
    const char *sep; /* what the next member begins with */
};

static void ref(struct schema *s, enum spec_obj o)
{
    sb_printf(s->out, "{\"$ref\": \"#/$defs/%s%s\"}", spec_objects[o].id, s->part ? "_part" : "");
}

static void range(struct schema *s, const char *text)
{
    struct spec_range r = spec_range_of(text);
    if (isfinite(r.lo))
        sb_printf(s->out, ", \"%s\": %.17g", r.lo_open ? "exclusiveMinimum" : "minimum", r.lo);
    if (isfinite(r.hi) && r.hi < 0x1p62)
        sb_printf(s->out, ", \"%s\": %.17g", r.hi_open ? "exclusiveMaximum" : "maximum", r.hi);
}

static void words(struct schema *s, enum spec_list list)
{
    bool first = true;
    sb_str(s->out, "\"enum\": [");
    for (size_t i = 0; i < spec_num_words; i++) {
        if (spec_words[i].list != list) continue;
        sb_printf(s->out, "%s\"%s\"", first ? "" : ", ", spec_words[i].word);
        first = false;
    }
    sb_char(s->out, ']');
}

static void list_of(struct schema *s, const char *item, const struct spec_key *k)
{
    sb_printf(s->out, "\"type\": \"array\", \"items\": {\"type\": \"%s\"", item);
    range(s, k->range);
    sb_char(s->out, '}');
}

static void scalar(struct schema *s, const struct spec_key *k)
{
    bool num = k->kind == K_num || k->kind == K_num0;
    bool null = k->kind == K_int0 || k->kind == K_num0;
    const char *type = num ? "number" : "integer";
    if (k->kind == K_int_all)
        sb_str(s->out, "\"anyOf\": [{\"const\": \"all\"}, {\"type\": \"integer\"");
    else if (null)
        sb_printf(s->out, "\"type\": [\"%s\", \"null\"]", type);
    else
        sb_printf(s->out, "\"type\": \"%s\"", type);
    range(s, k->range);
    if (k->kind == K_int_all) sb_str(s->out, "}]");
}

static void layers(struct schema *s)
{
    sb_str(s->out, "\"type\": \"array\", \"minItems\": 1, \"items\": {\"anyOf\": [");
    sb_str(s->out, "{\"$ref\": \"#/$defs/layer\"}, {\"$ref\": \"#/$defs/repeat\"}]}");
}

static void value(struct schema *s, const struct spec_key *k)
{
    switch (k->kind) {
    case K_bool: sb_str(s->out, "\"type\": \"boolean\""); break;
    case K_str:
    case K_path: sb_str(s->out, "\"type\": \"string\", \"minLength\": 1"); break;
    case K_name:
        sb_str(s->out, "\"type\": \"string\", \"pattern\": \"^[A-Za-z0-9._-]{1,64}$\"");
        break;
    case K_word: words(s, (enum spec_list)k->arg); break;
    case K_obj:
        sb_str(s->out, "\"allOf\": [");
        ref(s, (enum spec_obj)k->arg);
        sb_char(s->out, ']');
        break;
    case K_named:
        sb_str(s->out, "\"type\": \"object\", \"propertyNames\": {\"pattern\": "
                       "\"^[A-Za-z0-9._-]{1,64}$\"}, \"additionalProperties\": ");
        ref(s, (enum spec_obj)k->arg);
        break;
    case K_layers: layers(s); break;
    case K_pair:
        list_of(s, "number", k);
        sb_str(s->out, ", \"minItems\": 2, \"maxItems\": 2");
        break;
    case K_ints:
    case K_stop: list_of(s, "integer", k); break;
    case K_special:
        sb_str(s->out, "\"type\": \"object\", \"additionalProperties\": {\"type\": \"integer\"");
        range(s, k->range);
        sb_char(s->out, '}');
        break;
    case K_any: sb_str(s->out, "\"type\": \"object\""); break;
    default: scalar(s, k);
    }
}

static void dflt(struct schema *s, const struct spec_key *k)
{
    if (!*k->dflt || strchr("!={", *k->dflt)) return;
    bool text = k->kind == K_word || k->kind == K_obj || k->kind == K_int_all;
    sb_printf(s->out, ", \"default\": %s%s%s", text ? "\"" : "", k->dflt, text ? "\"" : "");
}

static void property(struct schema *s, const struct spec_key *k, const char *only)
{
    sb_printf(s->out, "%s\n          \"%s\": {", s->sep, k->name);
    s->sep = ",";
    if (only)
        sb_printf(s->out, "\"const\": \"%s\"", only);
    else
        value(s, k);
    dflt(s, k);
    sb_printf(s->out, ", \"description\": \"%s\"}", k->help);
}

static bool is_type(const struct spec_key *k)
{
    return k->kind == K_word && strcmp(k->name, "type") == 0;
}

/* One object of one type: `word` is what its `type` says, NULL where the object has no type. */
static void variant(struct schema *s, enum spec_obj o, int type, const char *word)
{
    sb_str(s->out, "{\n        \"type\": \"object\", \"additionalProperties\": false,");
    if (word) sb_printf(s->out, " \"title\": \"%s\",", word);
    sb_str(s->out, "\n        \"properties\": {");
    s->sep = "";
    bool file = o == OBJ_tokenizer && type == TOK_file;
    for (size_t i = 0; i < spec_num_keys; i++) {
        const struct spec_key *k = &spec_keys[i];
        if (k->object != o || !(k->when >> type & 1) || (file && is_type(k))) continue;
        property(s, k, is_type(k) ? word : NULL);
    }
    sb_str(s->out, "\n        }");
    const char *sep = ",\n        \"required\": [";
    const char *end = "";
    for (size_t i = 0; i < spec_num_keys && !s->part; i++) {
        const struct spec_key *k = &spec_keys[i];
        if (k->object != o || !(k->when >> type & 1) || (file && is_type(k))) continue;
        bool needed = *k->dflt == '!' || (is_type(k) && strcmp(k->dflt, word) != 0);
        if (!needed) continue;
        sb_printf(s->out, "%s\"%s\"", sep, k->name);
        sep = ", ";
        end = "]";
    }
    sb_str(s->out, end);
    if (o == OBJ_residual && type == RESIDUAL_attnres && !s->part)
        sb_str(s->out, ",\n        \"oneOf\": [{\"required\": [\"block_size\"]}, "
                       "{\"required\": [\"blocks\"]}, {\"required\": [\"boundaries\"]}]");
    sb_str(s->out, "\n      }");
}

/* Whether a type needs nothing but its name, so that its bare word may stand for the mapping. */
static bool alone(enum spec_obj o, int type)
{
    if (o == OBJ_residual && type == RESIDUAL_attnres) return false;
    for (size_t i = 0; i < spec_num_keys; i++) {
        const struct spec_key *k = &spec_keys[i];
        if (k->object == o && !is_type(k) && (k->when >> type & 1) && *k->dflt == '!') return false;
    }
    return true;
}

static void bare_words(struct schema *s, enum spec_obj o, enum spec_list list)
{
    const char *sep = "{\"enum\": [", *end = "";
    for (size_t i = 0; i < spec_num_words; i++) {
        const struct spec_word *w = &spec_words[i];
        if (w->list != list || !(s->part || alone(o, w->value))) continue;
        sb_printf(s->out, "%s\"%s\"", sep, w->word);
        sep = ", ";
        end = "]}, ";
    }
    sb_str(s->out, end);
}

/* The scalar that may stand for the object, as the first alternative. */
static void bare(struct schema *s, enum spec_obj o, enum spec_list list)
{
    enum spec_bare b = spec_objects[o].bare;
    if (b == BARE_type) bare_words(s, o, list);
    if (b == BARE_none) sb_str(s->out, "{\"const\": \"none\"}, ");
    if (b == BARE_flag) sb_str(s->out, "{\"type\": \"boolean\"}, ");
}

static void definition(struct schema *s, enum spec_obj o)
{
    enum spec_list list = spec_type_list(o);
    bool single = list == LIST_none && spec_objects[o].bare == BARE_no;
    sb_printf(s->out, "    \"%s%s\": {\n      \"description\": \"%s\",\n      \"%s\": [",
              spec_objects[o].id, s->part ? "_part" : "", spec_objects[o].help,
              single    ? "allOf"
              : s->part ? "anyOf"
                        : "oneOf");
    bare(s, o, list);
    const char *sep = "";
    for (size_t i = 0; i < spec_num_words && list != LIST_none; i++) {
        const struct spec_word *w = &spec_words[i];
        if (w->list != list) continue;
        sb_str(s->out, sep);
        sep = ", ";
        variant(s, o, w->value, w->word);
    }
    if (o == OBJ_tokenizer) {
        sb_str(s->out, sep);
        variant(s, o, TOK_file, "file");
    }
    if (list == LIST_none) variant(s, o, 0, NULL);
    sb_str(s->out, "]\n    }");
}

void spec_schema(struct sb *out)
{
    struct schema s = {out, false, ""};
    sb_str(out, "{\n  \"$schema\": \"https://json-schema.org/draft/2020-12/schema\",\n"
                "  \"title\": \"strata spec\",\n"
                "  \"description\": \"Made by strata spec --schema from compiler/spec.def.\",\n"
                "  \"if\": {\"required\": [\"extends\"]},\n"
                "  \"then\": {\"$ref\": \"#/$defs/root_part\"},\n"
                "  \"else\": {\"$ref\": \"#/$defs/root\"},\n"
                "  \"$defs\": {\n");
    for (int part = 0; part < 2; part++)
        for (int o = 0; o < OBJ_COUNT; o++) {
            /* Lists are replaced as a whole, so there is no part of a layer. */
            if (part && (o == OBJ_layer || o == OBJ_repeat || o == OBJ_sites)) continue;
            if (part || o) sb_str(out, ",\n");
            s.part = part;
            definition(&s, (enum spec_obj)o);
        }
    sb_str(out, "\n  }\n}\n");
}
