/* Composing: extends and --set. Nodes are never changed, every step makes new mappings. */
#include "compiler/spec_tree.h"
#include "base/map.h"

static const char *const block_keys[] = {"block_size", "blocks", "boundaries"};

static bool is_block_key(struct str key)
{
    for (size_t i = 0; i < 3; i++)
        if (str_is(key, block_keys[i])) return true;
    return false;
}

static struct node *new_map(struct spec_ctx *c, struct span at, size_t room)
{
    struct node *n = NEW(c->a, struct node, 1);
    n->kind = NODE_map;
    n->at = at;
    n->entry = NEW(c->a, struct entry, room);
    return n;
}

static struct node *merge(struct spec_ctx *c, enum spec_obj object, bool named, struct node *base,
                          struct node *over);

static struct node *merge_maps(struct spec_ctx *c, enum spec_obj object, bool named,
                               struct node *base, struct node *over)
{
    struct node *n = new_map(c, over->at, base->n + over->n);
    struct map at; /* key -> 1 + index in over */
    map_init(&at, c->a);
    bool blocks = false;
    for (size_t i = 0; i < over->n; i++) {
        *map_str(&at, over->entry[i].key) = (uint32_t)i + 1;
        blocks |= object == OBJ_residual && !named && is_block_key(over->entry[i].key);
    }
    for (size_t i = 0; i < base->n; i++) {
        struct entry e = base->entry[i];
        uint32_t *found = map_find(&at, e.key);
        if (found) {
            const struct entry *o = &over->entry[*found - 1];
            bool inner = false;
            enum spec_obj child = named ? object : spec_child(object, e.key, &inner);
            e.key_at = o->key_at;
            e.value = merge(c, child, inner, e.value, o->value);
            *found = 0;
        } else if (blocks && is_block_key(e.key)) {
            continue;
        }
        n->entry[n->n++] = e;
    }
    for (size_t i = 0; i < over->n; i++)
        if (*map_find(&at, over->entry[i].key)) n->entry[n->n++] = over->entry[i];
    return n;
}

/* `named`: the mapping's keys are names and their values are the object. */
static struct node *merge(struct spec_ctx *c, enum spec_obj object, bool named, struct node *base,
                          struct node *over)
{
    enum spec_obj typed = named ? OBJ_COUNT : object;
    base = spec_unbare(c, typed, base);
    over = spec_unbare(c, typed, over);
    if (base->kind != NODE_map || over->kind != NODE_map) return over;
    bool own_type = spec_get(over, "type") || (typed == OBJ_tokenizer && spec_get(over, "path"));
    if (!named && own_type && !str_eq(spec_type_of(typed, base), spec_type_of(typed, over)))
        return over;
    return merge_maps(c, object, named, base, over);
}

static struct node *without(struct spec_ctx *c, struct node *map, const char *key)
{
    struct node *n = new_map(c, map->at, map->n);
    for (size_t i = 0; i < map->n; i++)
        if (!str_is(map->entry[i].key, key)) n->entry[n->n++] = map->entry[i];
    return n;
}

static struct node *with(struct spec_ctx *c, struct node *map, struct str key, struct span key_at,
                         struct node *value)
{
    struct node *n = new_map(c, map->at, map->n + 1);
    struct entry e = {key, key_at, value};
    bool found = false;
    for (size_t i = 0; i < map->n; i++) {
        bool same = str_eq(map->entry[i].key, key);
        n->entry[n->n++] = same ? e : map->entry[i];
        found |= same;
    }
    if (!found) n->entry[n->n++] = e;
    return n;
}

/* A list of layers without the attnres keys of its items; counts those that had one. */
static struct node *without_sites(struct spec_ctx *c, struct node *list, size_t *dropped)
{
    if (!list || list->kind != NODE_list) return list;
    struct node *n = NEW(c->a, struct node, 1);
    *n = *list;
    n->item = NEW(c->a, struct node *, list->n);
    for (size_t i = 0; i < list->n; i++) {
        struct node *item = list->item[i];
        struct entry *inner = spec_entry(item, "layers");
        if (spec_entry(item, "attnres")) {
            item = without(c, item, "attnres");
            ++*dropped;
        }
        if (inner)
            item =
                with(c, item, inner->key, inner->key_at, without_sites(c, inner->value, dropped));
        n->item[i] = item;
    }
    return n;
}

static bool residual_is(const struct node *root, const char *word)
{
    const struct node *n = spec_get(spec_get(root, "model"), "residual");
    return n ? str_is(spec_type_of(OBJ_residual, n), word) : strcmp(word, "standard") == 0;
}

/* The per-layer attnres keys of `base` lose their meaning where a later step made the residual
 * standard; layers that the later step wrote itself are left alone. */
static struct node *drop_sites(struct spec_ctx *c, const struct node *base, struct node *root)
{
    struct entry *model = spec_entry(root, "model");
    struct node *layers = spec_get(spec_get(root, "model"), "layers");
    if (!residual_is(base, "attnres") || !residual_is(root, "standard") || !layers ||
        layers != spec_get(spec_get(base, "model"), "layers"))
        return root;
    size_t dropped = 0;
    layers = without_sites(c, layers, &dropped);
    if (!dropped) return root;
    diag_add(c->d, D_spec_sites_dropped, spec_where(root, "model.residual"), dropped);
    struct entry *old = spec_entry(model->value, "layers");
    struct node *m = with(c, model->value, old->key, old->key_at, layers);
    return with(c, root, model->key, model->key_at, m);
}

struct node *spec_merge(struct spec_ctx *c, struct node *base, struct node *over)
{
    return drop_sites(c, base, merge(c, OBJ_root, false, base, over));
}

struct setting {
    uint32_t file;
    struct str key; /* dotted, all of it */
    struct node *value;
};

/* The node with the value put at key[from..]; NULL after an error. */
static struct node *set_in(struct spec_ctx *c, const struct setting *s, size_t from,
                           enum spec_obj object, bool named, struct node *n)
{
    size_t end = from;
    while (end < s->key.n && s->key.p[end] != '.') end++;
    struct str key = {str_dup(c->a, (struct str){s->key.p + from, end - from}), end - from};
    struct span at = {s->file, (uint32_t)from, (uint32_t)key.n};
    n = spec_unbare(c, named ? OBJ_COUNT : object, n);
    if (!n) n = new_map(c, at, 0);
    if (n->kind != NODE_map) {
        struct str before = {s->key.p, from ? from - 1 : 0};
        spec_err(c, D_spec_set_path, at, str_dup(c->a, before), spec_describe(c, n));
        return NULL;
    }
    bool inner = false, last = end == s->key.n;
    enum spec_obj child = named ? object : spec_child(object, key, &inner);
    struct entry *old = spec_entry(n, key.p);
    struct node *value =
        last ? s->value : set_in(c, s, end + 1, child, inner, old ? old->value : NULL);
    if (!value) return NULL;
    if (object == OBJ_residual && !named && last) {
        if (is_block_key(key))
            for (size_t i = 0; i < 3; i++) n = without(c, n, block_keys[i]);
        /* The other keys belong to attnres. */
        if (str_is(key, "type") && spec_plain(value, "standard")) n = new_map(c, n->at, 0);
    }
    return with(c, n, key, last || !old ? at : old->key_at, value);
}

struct node *spec_set(struct spec_ctx *c, struct node *root, const char *arg)
{
    arg = str_dup(c->a, str_of(arg)); /* messages point into it */
    const char *eq = strchr(arg, '=');
    size_t n = eq ? (size_t)(eq - arg) : strlen(arg);
    struct setting s = {0};
    s.file = spec_source_add(c, "--set", str_of(arg), ".", (struct span){0});
    s.key = (struct str){arg, n};
    bool holes = !n || arg[0] == '.' || arg[n - 1] == '.';
    for (size_t i = 0; i + 1 < n; i++) holes |= arg[i] == '.' && arg[i + 1] == '.';
    if (!eq || holes) {
        if (spec_err(c, D_spec_set_form, ((struct span){s.file, 0, (uint32_t)n})))
            diag_hint(c->d, "Write for example train.steps=100.");
        return NULL;
    }
    if (n > 1024) {
        spec_err(c, D_spec_set_form, ((struct span){s.file, 0, 1}));
        return NULL;
    }
    if (!eq[1]) {
        spec_err(c, D_spec_set_form, ((struct span){s.file, (uint32_t)n, 1}));
        return NULL;
    }
    s.value = spec_tree_read(c, s.file, str_of(arg), n + 1);
    if (!s.value) return NULL;
    struct node *after = set_in(c, &s, 0, OBJ_root, false, root);
    return after ? drop_sites(c, root, after) : NULL;
}
