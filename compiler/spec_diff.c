/* What differs between two checked models, by the rows of spec.def: a resumed run names it. */
#include "compiler/spec_table.h"

static size_t size_of(enum spec_kind kind)
{
    switch (kind) {
    case K_bool:
    case K_obj: return sizeof(bool);
    case K_word: return sizeof(unsigned);
    case K_pair: return 2 * sizeof(double);
    default: return sizeof(int64_t); /* texts are compared before */
    }
}

static bool is_text(enum spec_kind kind)
{
    return kind == K_str || kind == K_name || kind == K_path;
}

static bool same(enum spec_kind kind, const void *x, const void *y)
{
    if (!is_text(kind)) return memcmp(x, y, size_of(kind)) == 0;
    const char *s = *(const char *const *)x, *t = *(const char *const *)y;
    return s && t ? strcmp(s, t) == 0 : s == t;
}

static void print(struct sb *out, const struct spec_key *k, const void *at)
{
    const double *pair = at;
    if (is_text(k->kind))
        sb_printf(out, "'%s'", *(const char *const *)at ? *(const char *const *)at : "");
    else if (k->kind == K_bool || k->kind == K_obj)
        sb_str(out, *(const bool *)at ? "true" : "false");
    else if (k->kind == K_word)
        sb_str(out, spec_enum_name(spec_list_name((enum spec_list)k->arg), *(const int *)at));
    else if (k->kind == K_pair)
        sb_printf(out, "[%.9g, %.9g]", pair[0], pair[1]);
    else if (k->kind == K_num || k->kind == K_num0)
        sb_printf(out, "%.9g", *pair);
    else
        sb_printf(out, "%lld", (long long)*(const int64_t *)at);
}

/* The rows of one object; `name` takes the place of NAME in its path. */
static const char *object_diff(struct arena *a, enum spec_obj object, const char *name,
                               const void *now, const void *then)
{
    const char *path = spec_objects[object].path, *mark = strstr(path, "NAME");
    for (size_t i = 0; i < spec_num_keys; i++) {
        const struct spec_key *k = &spec_keys[i];
        if (k->object != object || k->field == SPEC_NOWHERE) continue;
        const void *x = (const char *)now + k->field, *y = (const char *)then + k->field;
        if (same(k->kind, x, y)) continue;
        struct sb s = {0};
        if (mark)
            sb_printf(&s, "%.*s%s%s.", (int)(mark - path), path, name, mark + 4);
        else if (*path)
            sb_printf(&s, "%s.", path);
        sb_printf(&s, "%s is ", k->name);
        print(&s, k, x);
        sb_str(&s, ", but was ");
        print(&s, k, y);
        return sb_take(&s, a).p;
    }
    return NULL;
}

static const char *count_diff(struct arena *a, const char *what, size_t now, size_t then)
{
    return now == then ? NULL : str_fmt(a, "%s is %zu, but was %zu", what, now, then);
}

static const char *named_diff(struct arena *a, const struct model *x, const struct model *y)
{
    const char *d = count_diff(a, "the number of mixers", x->num_mixers, y->num_mixers);
    if (!d) d = count_diff(a, "the number of ffns", x->num_ffns, y->num_ffns);
    for (size_t i = 0; !d && i < x->num_mixers; i++) {
        const struct mixer *p = &x->mixer[i], *q = &y->mixer[i];
        if (strcmp(p->name, q->name) != 0)
            return str_fmt(a, "mixer %zu is '%s', but was '%s'", i, p->name, q->name);
        d = object_diff(a, OBJ_mixer, p->name, p, q);
        if (!d) d = object_diff(a, OBJ_rope, p->name, p, q);
        if (!d) d = object_diff(a, OBJ_gate, p->name, p, q);
    }
    for (size_t i = 0; !d && i < x->num_ffns; i++) {
        const struct ffn *p = &x->ffn[i], *q = &y->ffn[i];
        if (strcmp(p->name, q->name) != 0)
            return str_fmt(a, "ffn %zu is '%s', but was '%s'", i, p->name, q->name);
        d = object_diff(a, OBJ_ffn, p->name, p, q);
        if (!d) d = object_diff(a, OBJ_router, p->name, p, q);
        if (!d) d = object_diff(a, OBJ_balance, p->name, p, q);
    }
    return d;
}

static const char *layers_diff(struct arena *a, const struct model *x, const struct model *y)
{
    const char *d = count_diff(a, "the number of layers", x->num_layers, y->num_layers);
    for (size_t i = 0; !d && i < x->num_layers; i++) {
        const struct layer *p = &x->layer[i], *q = &y->layer[i];
        const char *key = p->mixer != q->mixer ? "mixer" : p->ffn != q->ffn ? "ffn" : NULL;
        if (p->attnres_mixer != q->attnres_mixer || p->attnres_ffn != q->attnres_ffn)
            key = "attnres";
        if (key) d = str_fmt(a, "%s of layer %zu has changed", key, i);
    }
    return d;
}

static const char *blocks_diff(struct arena *a, const struct model *x, const struct model *y)
{
    const char *d =
        count_diff(a, "the number of depth blocks", x->num_boundaries + 1, y->num_boundaries + 1);
    for (size_t i = 0; !d && i < x->num_boundaries; i++)
        if (x->boundary[i] != y->boundary[i])
            d = str_fmt(a, "depth block %zu begins at sublayer %lld, but was %lld", i + 1,
                        (long long)x->boundary[i], (long long)y->boundary[i]);
    return d;
}

const char *spec_difference(struct arena *a, const struct model *now, const struct model *then)
{
    static const enum spec_obj objects[] = {OBJ_model,     OBJ_norm,     OBJ_init,
                                            OBJ_residual,  OBJ_train,    OBJ_data,
                                            OBJ_optimizer, OBJ_schedule, OBJ_tokenizer};
    const char *d = object_diff(a, OBJ_root, "", now, then);
    for (size_t i = 0; !d && i < sizeof objects / sizeof *objects; i++)
        d = object_diff(a, objects[i], "", now, then);
    /* After the sizes of the model, from which head_dim may come. */
    if (!d) d = named_diff(a, now, then);
    if (!d) d = layers_diff(a, now, then);
    return d ? d : blocks_diff(a, now, then);
}
