#include "compiler/spec_read.h"
#include "base/io.h"
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

_Static_assert(sizeof(enum mixer_type) == sizeof(unsigned), "enums are stored as unsigned");

bool spec_is_name(struct str s)
{
    if (s.n < 1 || s.n > 64) return false;
    for (size_t i = 0; i < s.n; i++) {
        char ch = s.p[i];
        bool ok = (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') ||
                  (ch >= '0' && ch <= '9') || ch == '.' || ch == '_' || ch == '-';
        if (!ok) return false;
    }
    return true;
}

/* Sign and digits without a leading zero; the rest is strtod's and strtoll's to judge. */
static bool decimal(struct str s)
{
    size_t i = s.n && (s.p[0] == '-' || s.p[0] == '+');
    if (i == s.n || !(s.p[i] == '.' || (s.p[i] >= '0' && s.p[i] <= '9'))) return false;
    if (s.p[i] == '0' && i + 1 < s.n && s.p[i + 1] >= '0' && s.p[i + 1] <= '9') return false;
    return strspn(s.p, "+-.0123456789eE") == s.n;
}

bool spec_parse_int(const struct node *n, int64_t *out)
{
    if (n->kind != NODE_scalar || n->quoted || !decimal(n->text)) return false;
    char *end;
    errno = 0;
    long long v = strtoll(n->text.p, &end, 10);
    *out = v;
    return !errno && end == n->text.p + n->text.n;
}

static bool parse_num(const struct node *n, double *out)
{
    if (n->kind != NODE_scalar || n->quoted || !decimal(n->text)) return false;
    char *end;
    *out = strtod(n->text.p, &end);
    return end == n->text.p + n->text.n;
}

static void wrong_kind(struct spec_ctx *c, const struct node *n, const char *what, const char *want)
{
    if (n->kind == NODE_scalar && !n->quoted && !n->text.n) {
        spec_err(c, D_spec_value_empty, n->at, what, want);
        return;
    }
    if (!spec_err(c, D_spec_value_kind, n->at, what, want, spec_describe(c, n))) return;
    int64_t i;
    double x;
    struct node plain = *n;
    plain.quoted = false;
    bool number = spec_parse_int(&plain, &i) || parse_num(&plain, &x);
    if (n->kind != NODE_scalar) return;
    if (n->quoted &&
        (number || str_is(n->text, "true") || str_is(n->text, "false") || str_is(n->text, "null")))
        diag_hint(c->d, "Remove the quotes.");
    else if (strstr(want, "true or false") &&
             (str_is(n->text, "yes") || str_is(n->text, "on") || str_is(n->text, "True")))
        diag_hint(c->d, "Write true.");
    else if (strstr(want, "true or false") &&
             (str_is(n->text, "no") || str_is(n->text, "off") || str_is(n->text, "False")))
        diag_hint(c->d, "Write false.");
    else if (strstr(want, "null") && (str_is(n->text, "~") || str_is(n->text, "none")))
        diag_hint(c->d, "Write null.");
    else if (n->text.n > 1 && strspn(n->text.p, "0123456789") == n->text.n && *n->text.p == '0')
        diag_hint(c->d, "Remove the leading zeros.");
}

static bool in_range(struct spec_ctx *c, const struct node *n, const char *range, const char *what,
                     double v)
{
    struct spec_range r = spec_range_of(range);
    if (v >= r.lo && v <= r.hi && !(r.lo_open && v <= r.lo) && !(r.hi_open && v >= r.hi))
        return true;
    struct sb s = {0};
    spec_range_phrase(&s, range);
    spec_err(c, D_spec_value_range, n->at, what, s.p, spec_shown(c, n->text));
    sb_free(&s);
    return false;
}

static bool read_int(struct spec_ctx *c, const struct node *n, const char *range, const char *what,
                     const char *want, int64_t *out)
{
    if (!spec_parse_int(n, out)) {
        double x;
        if (parse_num(n, &x) && x == floor(x) && fabs(x) >= 0x1p63)
            in_range(c, n, range, what, x);
        else
            wrong_kind(c, n, what, want);
        return false;
    }
    return in_range(c, n, range, what, (double)*out);
}

bool spec_read_int(struct spec_ctx *c, const struct node *n, const char *range, const char *what,
                   int64_t *out)
{
    return read_int(c, n, range, what, "an integer", out);
}

static bool read_num(struct spec_ctx *c, const struct node *n, const char *range, const char *what,
                     const char *want, double *out)
{
    if (!parse_num(n, out)) {
        wrong_kind(c, n, what, want);
        return false;
    }
    return in_range(c, n, range, what, *out);
}

bool spec_read_ints(struct spec_ctx *c, const struct node *n, const char *range, const char *what,
                    int64_t **out, size_t *count)
{
    if (n->kind != NODE_list) {
        wrong_kind(c, n, what, "a list of integers");
        return false;
    }
    bool ok = true;
    *out = NEW(c->a, int64_t, n->n);
    *count = n->n;
    const char *each = str_fmt(c->a, "an entry of %s", what);
    for (size_t i = 0; i < n->n; i++) ok &= spec_read_int(c, n->item[i], range, each, *out + i);
    return ok;
}

static bool read_pair(struct spec_ctx *c, const struct node *n, const struct spec_key *k,
                      double *out)
{
    if (n->kind != NODE_list || n->n != 2) {
        wrong_kind(c, n, k->name, "a list of two numbers");
        return false;
    }
    const char *each = str_fmt(c->a, "an entry of %s", k->name);
    bool ok = read_num(c, n->item[0], k->range, each, "a number", out);
    return read_num(c, n->item[1], k->range, each, "a number", out + 1) && ok;
}

static bool read_bool(struct spec_ctx *c, const struct node *n, const char *what, bool *out)
{
    if (!spec_plain(n, "true") && !spec_plain(n, "false")) {
        wrong_kind(c, n, what, "true or false");
        return false;
    }
    *out = spec_plain(n, "true");
    return true;
}

static const char *absolute(struct spec_ctx *c, const char *path)
{
    char cwd[PATH_MAX];
    if (path[0] == '/' || !getcwd(cwd, sizeof cwd)) return path;
    while (path[0] == '.' && path[1] == '/') path += 2;
    return io_join(c->a, cwd, path);
}

static bool read_text(struct spec_ctx *c, const struct node *n, const struct spec_key *k,
                      const char **out)
{
    if (n->kind != NODE_scalar || spec_plain(n, "null") || (!n->quoted && !n->text.n)) {
        wrong_kind(c, n, k->name, "a text");
        return false;
    }
    if (k->kind == K_name && !spec_is_name(n->text)) {
        spec_err(c, D_spec_name_form, n->at, k->name, spec_shown(c, n->text));
        return false;
    }
    if (n->text.n == 0 || strlen(n->text.p) != n->text.n) {
        spec_err(c, D_spec_text_form, n->at, k->name, n->text.n ? "hold a zero byte" : "be empty");
        return false;
    }
    *out = n->text.p;
    if (k->kind == K_path) *out = absolute(c, io_join(c->a, spec_dir_of(c, n->at), n->text.p));
    return true;
}

/* The value of a word, -1 after an error. */
static int read_word(struct spec_ctx *c, const struct node *n, enum spec_list list,
                     const char *what)
{
    const struct spec_word *w = n->kind == NODE_scalar ? spec_word_find(list, n->text) : NULL;
    if (w) return w->value;
    struct sb s = {0};
    spec_words_phrase(&s, list);
    if (n->kind != NODE_scalar || !n->text.n) {
        wrong_kind(c, n, what, str_fmt(c->a, "one of %s", s.p));
    } else if (spec_err(c, D_spec_value_word, n->at, what, s.p, spec_describe(c, n))) {
        const char *names[16];
        size_t num = 0;
        for (size_t i = 0; i < spec_num_words && num < 16; i++)
            if (spec_words[i].list == list) names[num++] = spec_words[i].word;
        const char *near = spec_nearest(n->text, names, num);
        if (near) diag_hint(c->d, "Did you mean '%s'?", near);
    }
    sb_free(&s);
    return -1;
}

static void *field_of(const struct spec_key *k, void *base, void *nowhere)
{
    return k->field == SPEC_NOWHERE ? nowhere : (char *)base + k->field;
}

static bool read_number(struct spec_ctx *c, const struct spec_key *k, const struct node *n,
                        void *base)
{
    union {
        int64_t i;
        double x;
    } none;
    void *field = field_of(k, base, &none);
    int64_t i = 0;
    double x = 0;
    bool null = spec_plain(n, "null");
    bool ok, may = k->kind == K_num0 || k->kind == K_int0;
    if (k->kind == K_num || k->kind == K_num0) {
        ok = (k->kind == K_num0 && null) ||
             read_num(c, n, k->range, k->name, k->kind == K_num ? "a number" : "a number or null",
                      &x);
        if (ok) memcpy(field, &x, sizeof x);
    } else {
        const char *want = k->kind == K_int0      ? "an integer or null"
                           : k->kind == K_int_all ? "an integer or the word all"
                                                  : "an integer";
        ok = (k->kind == K_int0 && null) || (k->kind == K_int_all && spec_plain(n, "all")) ||
             read_int(c, n, k->range, k->name, want, &i);
        if (ok) memcpy(field, &i, sizeof i);
    }
    if (!ok && may && spec_plain(n, "0")) diag_hint(c->d, "Write null for none.");
    return ok;
}

static bool read_child(struct spec_ctx *c, const struct spec_key *k, const struct node *n,
                       struct span key_at, void *base)
{
    enum spec_obj child = (enum spec_obj)k->arg;
    bool none = spec_objects[child].bare == BARE_none && spec_plain(n, "none");
    if (k->field != SPEC_NOWHERE) *(bool *)field_of(k, base, NULL) = !none;
    return none || spec_read_object(c, child, n, key_at, k->name, base);
}

static bool check_form(struct spec_ctx *c, const struct spec_key *k, const struct node *n)
{
    bool list = k->kind == K_layers || k->kind == K_ints || k->kind == K_stop;
    if (n->kind == (list ? NODE_list : NODE_map)) return true;
    wrong_kind(c, n, k->name, list ? "a list" : "a mapping");
    return false;
}

static bool read_value(struct spec_ctx *c, const struct spec_key *k, const struct node *n,
                       struct span key_at, void *base)
{
    union {
        double pair[2];
        bool flag;
        const char *text;
    } none;
    void *field = field_of(k, base, &none);
    int word;
    switch (k->kind) {
    case K_pair: return read_pair(c, n, k, field);
    case K_bool: return read_bool(c, n, k->name, field);
    case K_str:
    case K_name:
    case K_path: return read_text(c, n, k, field);
    case K_word:
        word = read_word(c, n, (enum spec_list)k->arg, k->name);
        if (word >= 0 && k->field != SPEC_NOWHERE) memcpy(field, &word, sizeof word);
        return word >= 0;
    case K_obj: return read_child(c, k, n, key_at, base);
    case K_named:
    case K_layers:
    case K_ints:
    case K_stop:
    case K_special: return check_form(c, k, n);
    case K_any: return true;
    default: return read_number(c, k, n, base);
    }
}

/* Reads the default of a row as if it were written in the spec. */
static void read_default(struct spec_ctx *c, const struct spec_key *k, void *base)
{
    const char *text = k->dflt;
    if (!*text || *text == '!' || *text == '=') return;
    bool ok;
    if (k->kind == K_obj && *text == '{') {
        ok = spec_read_object(c, (enum spec_obj)k->arg, NULL, (struct span){0}, k->name, base);
    } else if (k->kind == K_pair) {
        double *pair = field_of(k, base, NULL);
        ok = sscanf(text, "[%lf, %lf]", pair, pair + 1) == 2;
    } else {
        struct node n = {.kind = NODE_scalar, .text = str_of(text)};
        ok = read_value(c, k, &n, (struct span){0}, base);
    }
    CHECK(ok);
}

/* The names of an object's keys; layers and repeats stand in one list, so they share theirs. */
static size_t key_names(enum spec_obj object, const char **names, size_t max)
{
    size_t num = 0;
    bool items = object == OBJ_layer || object == OBJ_repeat;
    for (size_t i = 0; i < spec_num_keys && num < max; i++) {
        enum spec_obj o = spec_keys[i].object;
        if (o == object || (items && (o == OBJ_layer || o == OBJ_repeat)))
            names[num++] = spec_keys[i].name;
    }
    return num;
}

/* Whether an unknown key of the mapping is likely meant to be this one: it is not missing then. */
static bool misspelled(enum spec_obj object, const struct node *n, const char *name)
{
    const char *names[64];
    size_t num = key_names(object, names, 64);
    for (size_t i = 0; n->kind == NODE_map && i < n->n && i < 256; i++) {
        if (spec_key_find(object, n->entry[i].key, -1)) continue;
        const char *near = spec_nearest(n->entry[i].key, names, num);
        if (near && strcmp(near, name) == 0) return true;
    }
    return false;
}

static void unknown_key(struct spec_ctx *c, enum spec_obj object, const struct entry *e,
                        const char *what)
{
    const char *names[64];
    size_t num = key_names(object, names, 64);
    if (!spec_err(c, D_spec_key_unknown, e->key_at, spec_shown(c, e->key), what)) return;
    const char *near = spec_nearest(e->key, names, num);
    if (near) {
        diag_hint(c->d, "Did you mean '%s'?", near);
        return;
    }
    for (size_t i = 0; i < spec_num_keys; i++)
        if (str_is(e->key, spec_keys[i].name) && *spec_objects[spec_keys[i].object].path) {
            diag_hint(c->d, "'%s' is a key of %s.", spec_keys[i].name,
                      spec_objects[spec_keys[i].object].path);
            return;
        }
    struct sb s = {0};
    for (size_t i = 0; i < num; i++) sb_printf(&s, "%s%s", i ? ", " : "", names[i]);
    diag_hint(c->d, "The keys are: %s.", s.p);
    sb_free(&s);
}

static void unused_key(struct spec_ctx *c, enum spec_obj object, const struct entry *e,
                       const char *type)
{
    if (!spec_err(c, D_spec_key_unused, e->key_at, spec_shown(c, e->key), type)) return;
    enum spec_list list = spec_type_list(object);
    struct sb s = {0};
    for (size_t i = 0; i < spec_num_words; i++) {
        const struct spec_word *w = &spec_words[i];
        if (w->list == list && spec_key_find(object, e->key, w->value))
            sb_printf(&s, "%s%s", s.n ? ", " : "", w->word);
    }
    if (s.n) diag_hint(c->d, "It belongs to type: %s.", s.p);
    if (object == OBJ_tokenizer) diag_hint(c->d, "It belongs to a tokenizer with a path.");
    sb_free(&s);
}

/* The object's type: a value of its list, 0 where it has none, -1 after an error. */
static int object_type(struct spec_ctx *c, enum spec_obj object, const struct node *n,
                       struct span key_at, const char *what)
{
    enum spec_list list = spec_type_list(object);
    if (list == LIST_none) return 0;
    const struct node *type = n->kind == NODE_scalar ? n : spec_get(n, "type");
    if (type) return read_word(c, type, list, n->kind == NODE_scalar ? what : "type");
    struct str text = spec_type_of(object, n);
    if (object == OBJ_tokenizer) {
        if (text.n) return TOK_file;
        spec_err(c, D_spec_tokenizer_form, key_at);
        return -1;
    }
    return text.n ? spec_word_find(list, text)->value : -1; /* read_keys reports it as missing */
}

static const char *type_name(enum spec_obj object, int type)
{
    enum spec_list list = spec_type_list(object);
    for (size_t i = 0; i < spec_num_words; i++)
        if (spec_words[i].list == list && spec_words[i].value == type) return spec_words[i].word;
    return "file";
}

static bool read_flags(struct spec_ctx *c, enum spec_obj object, const struct node *n,
                       const char *what, void *base)
{
    bool flag;
    if (!spec_plain(n, "true") && !spec_plain(n, "false")) {
        wrong_kind(c, n, what, "true or false or a mapping");
        return false;
    }
    flag = spec_plain(n, "true");
    for (size_t i = 0; i < spec_num_keys; i++)
        if (spec_keys[i].object == object) *((bool *)((char *)base + spec_keys[i].field)) = flag;
    return true;
}

/* The rows of the object that its type uses, each from its entry or its default. */
static void read_keys(struct spec_ctx *c, enum spec_obj object, int type, const struct node *n,
                      struct span key_at, const char *what, void *base)
{
    struct sb missing = {0};
    for (size_t i = 0; i < spec_num_keys; i++) {
        const struct spec_key *k = &spec_keys[i];
        if (k->object != object || (type >= 0 && !(k->when >> type & 1))) continue;
        if (type < 0 && k->when != SPEC_ANY) continue; /* an unknown type uses unknown keys */
        bool is_type = k->kind == K_word && strcmp(k->name, "type") == 0;
        struct entry *e = spec_entry(n, k->name);
        if (is_type && type >= 0)
            memcpy((char *)base + k->field, &type, sizeof type);
        else if (e && !is_type)
            read_value(c, k, e->value, e->key_at, base);
        else if (!e && *k->dflt == '!' && misspelled(object, n, k->name))
            c->errors++; /* reported as an unknown key */
        else if (!e && *k->dflt == '!')
            sb_printf(&missing, "%s'%s'", missing.n ? ", " : "", k->name);
        else if (!e)
            read_default(c, k, base);
    }
    if (missing.n)
        spec_err(c, D_spec_key_missing, key_at, what, strchr(missing.p, ',') ? "keys" : "key",
                 missing.p);
    sb_free(&missing);
}

bool spec_read_object(struct spec_ctx *c, enum spec_obj object, const struct node *n,
                      struct span key_at, const char *what, void *base)
{
    size_t errors = c->errors;
    enum spec_bare bare = spec_objects[object].bare;
    static const struct node empty = {.kind = NODE_map};
    if (n && n->kind == NODE_scalar && bare == BARE_flag)
        return read_flags(c, object, n, what, base);
    bool word =
        n && n->kind == NODE_scalar && bare == BARE_type && n->text.n && !spec_plain(n, "null");
    if (n && n->kind != NODE_map && !word) {
        wrong_kind(c, n, what,
                   bare == BARE_type   ? "a mapping or the name of a type"
                   : bare == BARE_none ? "a mapping or the word none"
                   : bare == BARE_flag ? "true or false or a mapping"
                                       : "a mapping");
        return false;
    }
    int type = object_type(c, object, n ? n : &empty, key_at, what);
    for (size_t i = 0; n && n->kind == NODE_map && i < n->n; i++) {
        const struct entry *e = &n->entry[i];
        if (!spec_key_find(object, e->key, -1))
            unknown_key(c, object, e, what);
        else if (type >= 0 && !spec_key_find(object, e->key, type))
            unused_key(c, object, e, type_name(object, type));
    }
    read_keys(c, object, type, n, key_at, what, base);
    return c->errors == errors;
}
