#include "compiler/spec_tree.h"

enum { MAX_REPORTED = 400 };

static bool fresh(struct spec_ctx *c, enum diag_id id, struct span at)
{
    if (c->seen.n >= MAX_REPORTED) return false;
    for (size_t i = 0; i < c->seen.n; i++) {
        const struct spec_seen *s = &c->seen.p[i];
        if (s->id == id && s->at.file == at.file && s->at.off == at.off) return false;
    }
    struct spec_seen s = {id, at};
    vec_push(c->a, &c->seen, s);
    return true;
}

static const struct spec_source *source_of(const struct spec_ctx *c, uint32_t file)
{
    for (size_t i = 0; i < c->source.n; i++)
        if (c->source.p[i].file == file) return &c->source.p[i];
    return NULL;
}

bool spec_err(struct spec_ctx *c, enum diag_id id, struct span at, ...)
{
    c->errors++;
    if (!fresh(c, id, at)) return false;
    const struct spec_source *s = source_of(c, at.file);
    va_list ap;
    va_start(ap, at);
    diag_addv(c->d, id, at, ap);
    va_end(ap);
    if (s && s->from.file) diag_note(c->d, s->from, "extended from here");
    return true;
}

uint32_t spec_source_add(struct spec_ctx *c, const char *name, struct str text, const char *dir,
                         struct span from)
{
    struct spec_source s = {diag_file(c->d, name, text), dir, from};
    vec_push(c->a, &c->source, s);
    return s.file;
}

const char *spec_dir_of(const struct spec_ctx *c, struct span at)
{
    const struct spec_source *s = source_of(c, at.file);
    return s ? s->dir : ".";
}

struct entry *spec_entry(const struct node *map, const char *key)
{
    if (!map || map->kind != NODE_map) return NULL;
    for (size_t i = 0; i < map->n; i++)
        if (str_is(map->entry[i].key, key)) return &map->entry[i];
    return NULL;
}

struct node *spec_get(const struct node *map, const char *key)
{
    struct entry *e = spec_entry(map, key);
    return e ? e->value : NULL;
}

struct span spec_where(const struct node *map, const char *path)
{
    struct span at = map ? map->at : (struct span){0};
    while (map && *path) {
        char key[80];
        size_t n = strcspn(path, ".");
        CHECK(n < sizeof key);
        memcpy(key, path, n);
        key[n] = 0;
        struct entry *e = spec_entry(map, key);
        if (!e) break;
        map = e->value;
        at = map->kind == NODE_scalar ? map->at : e->key_at;
        path += n + (path[n] == '.');
    }
    return at;
}

bool spec_plain(const struct node *n, const char *text)
{
    return n && n->kind == NODE_scalar && !n->quoted && str_is(n->text, text);
}

struct str spec_type_of(enum spec_obj object, const struct node *n)
{
    struct str none = {"", 0};
    if (!n) return none;
    if (n->kind == NODE_scalar)
        return object != OBJ_COUNT && spec_objects[object].bare == BARE_type ? n->text : none;
    const struct node *type = spec_get(n, "type");
    if (type) return type->kind == NODE_scalar ? type->text : none;
    if (object == OBJ_COUNT || n->kind != NODE_map) return none;
    if (object == OBJ_tokenizer) return spec_get(n, "path") ? STR("file") : none;
    const struct spec_key *k = spec_key_find(object, STR("type"), -1);
    return k && *k->dflt != '!' ? str_of(k->dflt) : none;
}

struct node *spec_unbare(struct spec_ctx *c, enum spec_obj object, struct node *n)
{
    if (!n || n->kind != NODE_scalar || object == OBJ_COUNT ||
        spec_objects[object].bare != BARE_type || spec_plain(n, "null"))
        return n;
    struct node *map = NEW(c->a, struct node, 1);
    struct entry e = {STR("type"), n->at, n};
    map->kind = NODE_map;
    map->at = n->at;
    map->height = 1;
    map->entry = arena_dup(c->a, &e, sizeof e, STRATA_SITE);
    map->n = 1;
    return map;
}

enum spec_obj spec_child(enum spec_obj object, struct str key, bool *named)
{
    const struct spec_key *k = object == OBJ_COUNT ? NULL : spec_key_find(object, key, -1);
    *named = k && k->kind == K_named;
    return k && (k->kind == K_obj || k->kind == K_named) ? (enum spec_obj)k->arg : OBJ_COUNT;
}

const char *spec_nearest(struct str text, const char *const *names, size_t n)
{
    const char *best = NULL;
    unsigned limit = text.n < 3 ? 1 : text.n < 6 ? 2 : 3, least = limit + 1;
    for (size_t i = 0; i < n; i++) {
        unsigned far = str_distance(text, str_of(names[i]));
        if (far && far < least && far < text.n && far < strlen(names[i]))
            least = far, best = names[i];
    }
    return best;
}

const char *spec_shown(struct spec_ctx *c, struct str text)
{
    enum { SHOWN = 40 };
    bool cut = text.n > SHOWN;
    size_t n = cut ? SHOWN : text.n;
    while (cut && n && ((unsigned char)text.p[n] & 0xc0) == 0x80) n--;
    char *p = str_fmt(c->a, "%.*s%s", (int)n, text.p, cut ? "..." : "");
    for (char *q = p; *q; q++)
        if ((unsigned char)*q < 32 || *q == 127) *q = '?';
    return p;
}

const char *spec_describe(struct spec_ctx *c, const struct node *n)
{
    if (n->kind == NODE_map) return "a mapping";
    if (n->kind == NODE_list)
        return n->n == 1 ? "a list of 1" : str_fmt(c->a, "a list of %zu", n->n);
    if (n->quoted) return str_fmt(c->a, "the quoted text \"%s\"", spec_shown(c, n->text));
    if (n->text.n == 0) return "an empty value";
    return str_fmt(c->a, "'%s'", spec_shown(c, n->text));
}
