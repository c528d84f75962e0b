#include "compiler/spec_doc.h"
#include "compiler/spec_table.h"

static const char intro[] =
    "# The keys of a spec\n\n"
    "Made by `strata spec --reference` from `compiler/spec.def`; edit that file, never this\n"
    "one.\n\n"
    "A spec is one YAML document, UTF-8, at most 4 MiB. Numbers are decimal without leading\n"
    "zeros, booleans are `true` and `false` only, what is quoted is text, `null` is allowed\n"
    "where it says so. Tags and `<<` are refused; anchors and aliases are fine. Every key is\n"
    "known and used by the chosen type, or it is an error. **required** keys may come from\n"
    "the file that `extends` names.\n\n"
    "`extends: FILE` starts from another spec: mappings merge key by key; a mapping whose\n"
    "`type` differs replaces the other; naming one of `block_size`, `blocks` and `boundaries`\n"
    "removes the other two; everything else replaces. `--set KEY=VALUE` (dotted key, YAML\n"
    "value) then replaces single values. Data and tokenizer paths are relative to the file\n"
    "that names them, `train.checkpoint.dir` and paths in `--set` to the working directory.\n";

static void words_code(struct sb *out, enum spec_list list)
{
    bool first = true;
    for (size_t i = 0; i < spec_num_words; i++) {
        if (spec_words[i].list != list) continue;
        sb_printf(out, "%s`%s`", first ? "" : ", ", spec_words[i].word);
        first = false;
    }
}

/* The type list's words for which a row holds, "all" where it is all of them. */
static void when_text(struct sb *out, const struct spec_key *k)
{
    enum spec_list list = spec_type_list(k->object);
    bool first = true;
    if (k->when == SPEC_ANY || list == LIST_none) return;
    for (size_t i = 0; i < spec_num_words; i++) {
        if (spec_words[i].list != list || !(k->when >> spec_words[i].value & 1)) continue;
        sb_printf(out, "%s`%s`", first ? "" : ", ", spec_words[i].word);
        first = false;
    }
    if (first) sb_str(out, "with `path`");
}

static void value_text(struct sb *out, const struct spec_key *k)
{
    static const char *const kinds[] = {[K_int] = "integer",
                                        [K_int0] = "`null` or integer",
                                        [K_int_all] = "`all` or integer",
                                        [K_seed] = "integer",
                                        [K_num] = "number",
                                        [K_num0] = "`null` or number",
                                        [K_pair] = "two numbers",
                                        [K_bool] = "`true`, `false`",
                                        [K_str] = "text",
                                        [K_name] = "name",
                                        [K_path] = "file name",
                                        [K_ints] = "list of integers",
                                        [K_stop] = "list of ids",
                                        [K_special] = "texts to ids",
                                        [K_any] = "keys to lists",
                                        [K_layers] = "list of layers"};
    if (k->kind == K_word) {
        words_code(out, (enum spec_list)k->arg);
    } else if (k->kind == K_obj || k->kind == K_named) {
        const char *name = spec_objects[k->arg].id;
        sb_printf(out, "%s[%s](#%s)", k->kind == K_named ? "names to " : "", name, name);
    } else {
        sb_str(out, kinds[k->kind]);
    }
    if (*k->range) {
        sb_char(out, ' ');
        spec_range_phrase(out, k->range);
    }
}

static void reference_row(struct sb *out, const struct spec_key *k)
{
    bool typed = spec_type_list(k->object) != LIST_none;
    sb_printf(out, "| `%s` | ", k->name);
    value_text(out, k);
    sb_str(out, " | ");
    if (*k->dflt == '!')
        sb_str(out, "**required**");
    else if (*k->dflt == '=')
        sb_str(out, k->dflt + 1);
    else if (*k->dflt && *k->dflt != '{')
        sb_printf(out, "`%s`", k->dflt);
    sb_str(out, " | ");
    if (typed) {
        when_text(out, k);
        sb_str(out, " | ");
    }
    sb_printf(out, "%s |\n", k->help);
}

void spec_reference(struct sb *out)
{
    sb_str(out, intro);
    for (int o = 0; o < OBJ_COUNT; o++) {
        const struct spec_object *obj = &spec_objects[o];
        bool typed = spec_type_list((enum spec_obj)o) != LIST_none;
        sb_printf(out, "\n## %s\n\n", spec_objects[o].id);
        if (*obj->path) sb_printf(out, "`%s`: ", obj->path);
        sb_str(out, obj->help);
        if (obj->bare == BARE_type)
            sb_str(out, " Where only the type is given, its bare word may stand for the mapping.");
        if (obj->bare == BARE_flag) sb_str(out, " A bare `true` or `false` stands for all keys.");
        sb_printf(out, "\n\n| key | value | default | %smeaning |\n|---|---|---|---|%s\n",
                  typed ? "types | " : "", typed ? "---|" : "");
        for (size_t i = 0; i < spec_num_keys; i++)
            if (spec_keys[i].object == (enum spec_obj)o) reference_row(out, &spec_keys[i]);
    }
}
