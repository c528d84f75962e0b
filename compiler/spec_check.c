/* From the merged tree to the checked model: the generic reader does keys, kinds and ranges; here
 * is what involves several keys. */
#include "compiler/spec_read.h"
#include "base/map.h"
#include "runtime/chat.h"

struct checking {
    struct spec_ctx *c;
    const struct node *root;
    struct model *m;
    struct map mixer, ffn; /* name -> 1 + index */
    VEC(struct layer) layer;
    bool layers_whole; /* the list was expanded to its end */
};

static void check_heads(struct spec_ctx *c, const struct model *m, const struct node *n,
                        struct mixer *x)
{
    if (!spec_entry(n, "num_kv_heads")) x->num_kv_heads = x->num_heads;
    if (x->num_heads % x->num_kv_heads &&
        spec_err(c, D_spec_not_divisible, spec_where(n, "num_kv_heads"), "num_heads", x->num_heads,
                 "num_kv_heads", x->num_kv_heads))
        diag_note(c->d, spec_where(n, "num_heads"), "num_heads is set here");
    if (!spec_entry(n, "head_dim") && m->hidden_size) {
        if (m->hidden_size % x->num_heads) {
            if (spec_err(c, D_spec_not_divisible, spec_where(n, "num_heads"), "hidden_size",
                         m->hidden_size, "num_heads", x->num_heads))
                diag_hint(c->d, "Give head_dim.");
            return;
        }
        x->head_dim = m->hidden_size / x->num_heads;
    }
    if (x->rope && x->head_dim % 2)
        spec_err(c, D_spec_rope_odd, spec_where(n, "head_dim"), "head_dim", x->head_dim);
}

static void check_mixer(struct spec_ctx *c, const struct model *m, const struct entry *e,
                        struct mixer *x)
{
    x->name = e->key.p;
    x->at = e->key_at;
    const char *what = str_fmt(c->a, "mixer '%s'", spec_shown(c, e->key));
    if (!spec_read_object(c, OBJ_mixer, e->value, e->key_at, what, x)) return;
    if (x->type == MIXER_attention) check_heads(c, m, e->value, x);
    if (x->type == MIXER_mla && x->rope && x->qk_rope_head_dim % 2)
        spec_err(c, D_spec_rope_odd, spec_where(e->value, "qk_rope_head_dim"), "qk_rope_head_dim",
                 x->qk_rope_head_dim);
}

static void check_ffn(struct spec_ctx *c, const struct entry *e, struct ffn *x)
{
    x->name = e->key.p;
    x->at = e->key_at;
    const char *what = str_fmt(c->a, "ffn '%s'", spec_shown(c, e->key));
    if (!spec_read_object(c, OBJ_ffn, e->value, e->key_at, what, x)) return;
    if (x->type == FFN_moe && x->experts_per_token > x->num_experts &&
        spec_err(c, D_spec_experts_few, spec_where(e->value, "experts_per_token"),
                 x->experts_per_token, x->num_experts)) {
        diag_note(c->d, spec_where(e->value, "num_experts"), "num_experts is set here");
        diag_hint(c->d, "Use a value from 1 to %lld.", (long long)x->num_experts);
    }
}

static bool check_name(struct spec_ctx *c, const struct entry *e)
{
    if (spec_is_name(e->key)) return true;
    spec_err(c, D_spec_name_form, e->key_at, "a name", spec_shown(c, e->key));
    return false;
}

static void check_named(struct checking *k, const struct node *model)
{
    struct spec_ctx *c = k->c;
    struct model *m = k->m;
    const struct node *mixers = spec_get(model, "mixers"), *ffns = spec_get(model, "ffns");
    map_init(&k->mixer, c->a);
    map_init(&k->ffn, c->a);
    m->num_mixers = mixers && mixers->kind == NODE_map ? mixers->n : 0;
    m->num_ffns = ffns && ffns->kind == NODE_map ? ffns->n : 0;
    m->mixer = NEW(c->a, struct mixer, m->num_mixers);
    m->ffn = NEW(c->a, struct ffn, m->num_ffns);
    for (size_t i = 0; i < m->num_mixers; i++) {
        *map_str(&k->mixer, mixers->entry[i].key) = (uint32_t)i + 1;
        if (check_name(c, &mixers->entry[i])) check_mixer(c, m, &mixers->entry[i], &m->mixer[i]);
    }
    for (size_t i = 0; i < m->num_ffns; i++) {
        *map_str(&k->ffn, ffns->entry[i].key) = (uint32_t)i + 1;
        if (check_name(c, &ffns->entry[i])) check_ffn(c, &ffns->entry[i], &m->ffn[i]);
    }
}

/* Index of the mixer or ffn that a layer names; -1 after an error. */
static int64_t resolve(struct checking *k, const struct node *item, const char *key,
                       const char *name)
{
    bool mixer = strcmp(key, "mixer") == 0;
    const struct node *all = spec_get(spec_get(k->root, "model"), mixer ? "mixers" : "ffns");
    uint32_t *at = map_find(mixer ? &k->mixer : &k->ffn, str_of(name));
    if (at) return *at - 1;
    if (!all || all->kind != NODE_map) return -1; /* reported already */
    struct spec_ctx *c = k->c;
    if (!spec_err(c, D_spec_ref_unknown, spec_where(item, key), key, spec_shown(c, str_of(name))))
        return -1;
    const char **names = NEW(c->a, const char *, all->n);
    for (size_t i = 0; i < all->n; i++) names[i] = all->entry[i].key.p;
    const char *near = spec_nearest(str_of(name), names, all->n);
    if (near) diag_hint(c->d, "Did you mean '%s'?", near);
    return -1;
}

static bool check_layer(struct checking *k, const struct node *item)
{
    struct spec_ctx *c = k->c;
    struct spec_item x = {0};
    struct layer l = {.at = item->at};
    if (!spec_read_object(c, OBJ_layer, item, item->at, "a layer", &x)) return false;
    int64_t mixer = resolve(k, item, "mixer", x.mixer), ffn = resolve(k, item, "ffn", x.ffn);
    struct entry *sites = spec_entry(item, "attnres");
    if (sites && k->m->residual == RESIDUAL_standard &&
        spec_err(c, D_spec_sites_unused, sites->key_at))
        diag_hint(c->d, "Remove the key, or set model.residual to attnres.");
    if (mixer < 0 || ffn < 0) return false;
    l.mixer = (uint32_t)mixer;
    l.ffn = (uint32_t)ffn;
    l.attnres_mixer = k->m->residual == RESIDUAL_attnres && x.sites[0];
    l.attnres_ffn = k->m->residual == RESIDUAL_attnres && x.sites[1];
    vec_push(c->a, &k->layer, l);
    return true;
}

static bool too_many(struct checking *k, struct span at)
{
    k->layers_whole = false;
    spec_err(k->c, D_spec_layers_many, at, SPEC_MAX_LAYERS);
    return false;
}

/* Appends the layers of a list; false where it was not appended whole. */
static bool check_layers(struct checking *k, const struct node *list, struct span key_at)
{
    bool ok = true;
    if (list->kind != NODE_list) return false; /* reported by the reader */
    if (!list->n) {
        spec_err(k->c, D_spec_layers_none, key_at);
        return false;
    }
    for (size_t i = 0; i < list->n; i++) {
        const struct node *item = list->item[i];
        struct entry *inner = spec_entry(item, "layers");
        if (k->layer.n >= SPEC_MAX_LAYERS) return too_many(k, item->at);
        if (!inner && !spec_entry(item, "repeat")) {
            ok &= check_layer(k, item);
            continue;
        }
        struct spec_item x = {0};
        bool good = spec_read_object(k->c, OBJ_repeat, item, item->at, "a repeat", &x);
        size_t from = k->layer.n;
        if (inner) good &= check_layers(k, inner->value, inner->key_at);
        size_t num = k->layer.n - from;
        ok &= good;
        if (!good) continue;
        if (num * (size_t)x.repeat > SPEC_MAX_LAYERS - from)
            return too_many(k, spec_where(item, "repeat"));
        for (int64_t r = 1; r < x.repeat; r++)
            for (size_t j = 0; j < num; j++) vec_push(k->c->a, &k->layer, k->layer.p[from + j]);
    }
    return ok;
}

static void set_boundaries(struct checking *k, int64_t size, int64_t blocks)
{
    struct model *m = k->m;
    int64_t num = 2 * (int64_t)m->num_layers, each = blocks ? num / blocks : size;
    int64_t longer = blocks ? num % blocks : 0, at = 0;
    m->boundary = NEW(k->c->a, int64_t, num);
    for (int64_t b = 0;; b++) {
        at += each + (b < longer);
        if (at >= num) break;
        m->boundary[m->num_boundaries++] = at;
    }
}

static void check_boundaries(struct checking *k, const struct node *list, int64_t num)
{
    struct model *m = k->m;
    if (!spec_read_ints(k->c, list, "[1,8191]", "boundaries", &m->boundary, &m->num_boundaries))
        return;
    for (size_t i = 0; i < m->num_boundaries; i++) {
        struct span at = list->item[i]->at;
        if (m->boundary[i] >= num)
            spec_err(k->c, D_spec_boundary_far, at, m->boundary[i], num - 1, num);
        else if (i && m->boundary[i] <= m->boundary[i - 1])
            spec_err(k->c, D_spec_boundary_order, at, m->boundary[i], m->boundary[i - 1]);
    }
}

static void check_blocks(struct checking *k, const struct node *residual, struct span key_at)
{
    static const char *const keys[] = {"block_size", "blocks", "boundaries"};
    struct spec_ctx *c = k->c;
    struct entry *found = NULL;
    for (size_t i = 0; i < 3; i++) {
        struct entry *e = spec_entry(residual, keys[i]);
        if (e && found && spec_err(c, D_spec_blocks_twice, e->key_at, keys[i], found->key.p))
            diag_note(c->d, found->key_at, "%s is set here", found->key.p);
        if (e && !found) found = e;
    }
    if (!found) {
        if (spec_err(c, D_spec_blocks_none, key_at))
            diag_hint(c->d, "Write for example residual: {type: attnres, blocks: 4}.");
        return;
    }
    if (!k->layers_whole) return;
    int64_t num = 2 * (int64_t)k->m->num_layers, v;
    if (str_is(found->key, "boundaries")) {
        check_boundaries(k, found->value, num);
    } else if (spec_parse_int(found->value, &v) && v >= 1) {
        bool blocks = str_is(found->key, "blocks");
        if (blocks && v > num)
            spec_err(c, D_spec_blocks_many, found->value->at, v, num);
        else
            set_boundaries(k, blocks ? 0 : v, blocks ? v : 0);
    }
}

static void check_model(struct checking *k)
{
    struct model *m = k->m;
    const struct node *model = spec_get(k->root, "model");
    if (!model || model->kind != NODE_map) return;
    check_named(k, model);
    struct entry *layers = spec_entry(model, "layers"), *res = spec_entry(model, "residual");
    k->layers_whole = layers != NULL;
    if (layers) k->layers_whole &= check_layers(k, layers->value, layers->key_at);
    m->layer = k->layer.p;
    m->num_layers = k->layer.n;
    if (res && m->residual == RESIDUAL_attnres) check_blocks(k, res->value, res->key_at);
}

static void check_ids(struct spec_ctx *c, const struct model *m, const struct node *n,
                      const char *what, int64_t id)
{
    if (m->vocab_size && id >= m->vocab_size)
        spec_err(c, D_spec_token_far, n->at, what, id, m->vocab_size);
}

static void check_special(struct spec_ctx *c, struct model *m, const struct node *map)
{
    struct tokenizer_spec *t = &m->tokenizer;
    t->special = NEW(c->a, struct special_token, map->n);
    for (size_t i = 0; i < map->n; i++) {
        const struct entry *e = &map->entry[i];
        struct special_token s = {e->key.p, 0};
        if (!e->key.n || strlen(e->key.p) != e->key.n)
            spec_err(c, D_spec_text_form, e->key_at, "a special token",
                     e->key.n ? "hold a zero byte" : "be empty");
        if (!spec_read_int(c, e->value, "[0,16777215]", "the id of a special token", &s.id))
            continue;
        check_ids(c, m, e->value, "special token", s.id);
        t->special[t->num_special++] = s;
    }
}

static void check_tokenizer(struct checking *k)
{
    struct spec_ctx *c = k->c;
    struct model *m = k->m;
    struct tokenizer_spec *t = &m->tokenizer;
    const struct node *top = spec_get(k->root, "tokenizer");
    const struct node *data = spec_get(spec_get(k->root, "train"), "data");
    const struct node *word = spec_get(data, "tokenizer"), *path = spec_get(data, "path");
    if (top) t->at = top->at;
    const struct spec_word *w =
        word && word->kind == NODE_scalar ? spec_word_find(LIST_tokenizer_type, word->text) : NULL;
    if (w && top && (int)t->type != w->value) {
        if (spec_err(c, D_spec_tokenizer_twice, word->at))
            diag_note(c->d, top->at, "the tokenizer is set here");
    } else if (w && !top) {
        t->type = (enum tokenizer_type)w->value;
        t->at = word->at;
    }
    bool npy = path && path->kind == NODE_scalar && str_ends(path->text, ".npy");
    if (word && npy) spec_err(c, D_spec_tokenizer_npy, spec_where(data, "tokenizer"));
    if (path && path->kind == NODE_scalar && !npy && !top && !word)
        diag_add(c->d, D_spec_tokenizer_none, path->at);
    if (t->type == TOK_bytes && m->vocab_size && m->vocab_size < 256 &&
        spec_err(c, D_spec_vocab_bytes, spec_where(k->root, "model.vocab_size"), m->vocab_size))
        diag_note(c->d, t->at, "the tokenizer is set here");
    if (t->type != TOK_file || !top || top->kind != NODE_map) return;
    if (t->chat_template && !chat_template_find(t->chat_template))
        spec_err(c, D_spec_value_word, spec_where(top, "chat_template"), "chat_template",
                 chat_names(), t->chat_template);
    if (spec_get(top, "bos")) check_ids(c, m, spec_get(top, "bos"), "bos", t->bos);
    if (spec_get(top, "eos")) check_ids(c, m, spec_get(top, "eos"), "eos", t->eos);
    const struct node *stop = spec_get(top, "stop"), *special = spec_get(top, "special");
    if (stop && stop->kind == NODE_list &&
        spec_read_ints(c, stop, "[0,16777215]", "stop", &t->stop, &t->num_stop))
        for (size_t i = 0; i < stop->n; i++) check_ids(c, m, stop->item[i], "stop", t->stop[i]);
    if (special && special->kind == NODE_map) check_special(c, m, special);
}

static void check_train(struct checking *k)
{
    struct spec_ctx *c = k->c;
    struct train_spec *t = &k->m->train;
    const struct node *train = spec_get(k->root, "train");
    if (!train) return;
    t->data_at = spec_where(train, "data.path");
    if (t->micro_batches > 0 && t->batch_size % t->micro_batches &&
        spec_err(c, D_spec_not_divisible, spec_where(train, "micro_batches"), "batch_size",
                 t->batch_size, "micro_batches", t->micro_batches))
        diag_note(c->d, spec_where(train, "batch_size"), "batch_size is set here");
    if (t->steps > 0 && t->warmup + t->decay > t->steps)
        diag_add(c->d, D_spec_schedule_long, spec_where(train, "schedule.warmup"), t->warmup,
                 t->decay, t->steps);
}

static void check_later(struct checking *k)
{
    const struct node *parallel = spec_get(k->root, "parallel");
    for (size_t i = 0; parallel && parallel->kind == NODE_map && i < parallel->n; i++) {
        const struct entry *e = &parallel->entry[i];
        int64_t v;
        if (spec_key_find(OBJ_parallel, e->key, -1) && spec_parse_int(e->value, &v) && v > 1)
            spec_err(k->c, D_spec_parallel_later, e->value->at, e->key.p, v);
    }
    struct entry *sweep = spec_entry(k->root, "sweep");
    if (sweep) spec_err(k->c, D_spec_sweep_later, sweep->key_at);
}

struct model *spec_check(struct spec_ctx *c, struct node *root)
{
    struct model *m = NEW(c->a, struct model, 1);
    struct checking k = {.c = c, .root = root, .m = m};
    size_t errors = c->errors;
    m->tokenizer.bos = m->tokenizer.eos = -1;
    spec_read_object(c, OBJ_root, root, (struct span){root->at.file, root->at.off, 1}, "the spec",
                     m);
    check_model(&k);
    check_tokenizer(&k);
    check_train(&k);
    check_later(&k);
    if (c->errors == errors) spec_check_size(c, root, m);
    return c->errors > errors ? NULL : m;
}
