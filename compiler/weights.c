#include "compiler/weights.h"
#include "base/map.h"
#include "runtime/mxfp4.h"
#include <stdio.h>

struct tf_tensor part_tensor(const struct param_part *q)
{
    struct tf_tensor t = {.name = q->tensor, .dtype = TF_F32, .rank = q->rank};
    for (int i = 0; i < q->rank; i++) t.shape[i] = q->dim[i];
    return t;
}

struct filling {
    struct init_rule rule;
    uint64_t seed, stream;
    float *to;
};

static void fill_piece(void *arg, int64_t lo, int64_t hi, unsigned worker)
{
    const struct filling *f = arg;
    (void)worker;
    init_fill(f->rule, f->seed, f->stream, (uint64_t)lo, (size_t)(hi - lo), f->to + lo);
}

void weights_init(const struct params *ps, uint64_t seed, float *const *memory, struct pool *pool)
{
    enum { PIECE = 1 << 14 };
    for (size_t i = 0; i < ps->n; i++) {
        const struct param *p = &ps->p[i];
        for (size_t k = 0; k < p->num_parts; k++) {
            const struct param_part *q = &p->part[k];
            struct filling f = {p->init, seed, rng_stream(q->tensor), memory[i] + q->offset};
            if (pool)
                pool_run(pool, fill_piece, &f, part_count(q), PIECE);
            else
                fill_piece(&f, 0, part_count(q), 0);
        }
    }
}

void weights_list(struct arena *a, const struct params *ps, float *const *memory, const bool *keep,
                  const char *prefix, tf_list *out)
{
    for (size_t i = 0; i < ps->n; i++)
        for (size_t k = 0; k < ps->p[i].num_parts && (!keep || keep[i]); k++) {
            const struct param_part *q = &ps->p[i].part[k];
            struct tf_tensor t = part_tensor(q);
            t.data = memory[i] + q->offset;
            if (*prefix) t.name = str_fmt(a, "%s%s", prefix, q->tensor);
            vec_push(a, out, t);
        }
}

/* ---- reading ---- */

struct match {
    struct arena *a;
    const struct tensorfile *f;
    const char *label; /* of the file, for messages */
    struct diag *d;
    struct map known; /* names of tensors that are used, or wrong and reported */
};

static void complain_shape(struct match *m, const struct tf_tensor *t, const struct tf_tensor *want)
{
    char got[128], need[128];
    diag_add(m->d, D_weight_shape, (struct span){0}, m->label, t->name,
             tf_shape_text(t, got, sizeof got), tf_shape_text(want, need, sizeof need));
}

static bool same_shape(const struct tf_tensor *t, const struct tf_tensor *want)
{
    if (t->rank != want->rank) return false;
    for (int i = 0; i < want->rank; i++)
        if (t->shape[i] != want->shape[i]) return false;
    return true;
}

/* A_log as the releases have it: [n] or [1, 1, n, 1], of which the first H count. */
static bool fits_per_head(const struct tf_tensor *t, int64_t heads)
{
    const int64_t *s = t->shape;
    if (t->rank == 1) return s[0] >= heads;
    return t->rank == 4 && s[0] == 1 && s[1] == 1 && s[2] >= heads && s[3] == 1;
}

/* Whether the tensor can be read as that part; else it is reported. */
static bool fits(struct match *m, const struct tf_tensor *t, const struct param_part *q)
{
    struct tf_tensor want = part_tensor(q);
    if (!same_shape(t, &want) && !(q->per_head && fits_per_head(t, q->dim[0]))) {
        complain_shape(m, t, &want);
        return false;
    }
    if (t->dtype == TF_F32 || t->dtype == TF_BF16 || t->dtype == TF_F16 || t->dtype == TF_F64)
        return true;
    diag_add(m->d, D_weight_dtype, (struct span){0}, m->label, t->name, tf_dtype_name(t->dtype));
    return false;
}

static const struct tf_tensor *find(struct match *m, const char *name)
{
    const struct tf_tensor *t = tensorfile_find(m->f, name);
    if (t) *map_str(&m->known, str_of(name)) = 1;
    return t;
}

static void missing(struct match *m, const char *name)
{
    diag_add(m->d, D_weight_missing, (struct span){0}, m->label, name);
    if (!strcmp(name, "lm_head.weight"))
        diag_hint(m->d,
                  "If the head shares the embedding table, set model.tie_embeddings to true.");
}

/* A matrix `name` as NAME_packed and NAME_scale; false where neither is there. */
static bool find_mxfp4(struct match *m, const struct param_part *q, const char *name,
                       struct weight_source *s)
{
    const char *packed = str_fmt(m->a, "%s_packed", name), *scale = str_fmt(m->a, "%s_scale", name);
    const struct tf_tensor *t[2] = {find(m, packed), find(m, scale)};
    if (!t[0] && !t[1]) return false;
    if (!t[0]) missing(m, packed);
    if (!t[1]) missing(m, scale);
    if (!t[0] || !t[1]) return true;
    bool whole = q->rank == 2 && q->dim[1] % MXFP4_BLOCK == 0;
    if (!whole) {
        char need[128];
        struct tf_tensor w = part_tensor(q);
        diag_add(m->d, D_weight_mxfp4, (struct span){0}, m->label, packed,
                 tf_shape_text(&w, need, sizeof need));
        return true;
    }
    for (int i = 0; i < 2; i++) {
        struct tf_tensor want = {.rank = 2, .shape = {q->dim[0], q->dim[1] / (i ? 32 : 2)}};
        if (!same_shape(t[i], &want)) {
            complain_shape(m, t[i], &want);
            whole = false;
        } else if (t[i]->dtype != TF_U8) {
            diag_add(m->d, D_weight_dtype, (struct span){0}, m->label, t[i]->name,
                     tf_dtype_name(t[i]->dtype));
            whole = false;
        }
    }
    if (whole) *s = (struct weight_source){t[0], t[1]};
    return true;
}

/* ---- tensors that a model of text has no use for ---- */

enum reason { TIED, ROTARY, VISION, DRAFT, REASONS };
static const char *const reason_text[REASONS] = {
    [TIED] = "the head shares the embedding table",
    [ROTARY] = "rotary periods follow from theta",
    [VISION] = "they are of the vision part",
    [DRAFT] = "they are of heads that predict further tokens",
};

/* lm_head beside tied embeddings, the same bytes. */
static bool is_tied(const struct match *m, const struct params *ps, const char *prefix,
                    const struct tf_tensor *t)
{
    if (params_find(ps, "lm_head.weight")) return false;
    if (strcmp(t->name, str_fmt(m->a, "%slm_head.weight", prefix)) != 0) return false;
    const struct tf_tensor *e =
        tensorfile_find(m->f, str_fmt(m->a, "%smodel.embed_tokens.weight", prefix));
    return e && e->dtype == t->dtype && same_shape(e, t) && !memcmp(e->data, t->data, t->bytes);
}

/* DeepSeek's way of storing them: layers after the last, known by the projection of a token and the
 * state before it. */
static bool is_draft_layer(const struct match *m, const char *prefix, const char *name)
{
    long long n;
    int end = 0;
    if (sscanf(name + strlen(prefix), "model.layers.%lld.%n", &n, &end) != 1 || !end) return false;
    return tensorfile_find(m->f, str_fmt(m->a, "%smodel.layers.%lld.eh_proj.weight", prefix, n));
}

static enum reason no_use(const struct match *m, const struct params *ps, const char *prefix,
                          const struct tf_tensor *t)
{
    static const char *const vision[] = {"vision_tower.", "vision_model.", "visual.",
                                         "mm_projector.", "multi_modal_projector."};
    static const char *const draft[] = {"mtp.", "mtp_", "draft_model.", "eagle."};
    struct str name = str_of(t->name);
    if (is_tied(m, ps, prefix, t)) return TIED;
    if (str_ends(name, "rotary_emb.inv_freq")) return ROTARY;
    if (str_starts(name, prefix) && is_draft_layer(m, prefix, t->name)) return DRAFT;
    if (str_starts(name, prefix)) name.p += strlen(prefix), name.n -= strlen(prefix);
    if (str_starts(name, "model.")) name.p += 6, name.n -= 6;
    for (size_t i = 0; i < sizeof vision / sizeof *vision; i++)
        if (str_starts(name, vision[i])) return VISION;
    for (size_t i = 0; i < sizeof draft / sizeof *draft; i++)
        if (str_starts(name, draft[i])) return DRAFT;
    return REASONS;
}

static void account_for_rest(struct match *m, const struct params *ps, const char *prefix)
{
    size_t count[REASONS] = {0};
    const char *first[REASONS] = {0};
    for (size_t i = 0; i < tensorfile_count(m->f); i++) {
        const struct tf_tensor *t = tensorfile_at(m->f, i);
        if (map_find(&m->known, str_of(t->name))) continue;
        enum reason r = no_use(m, ps, prefix, t);
        if (r == REASONS)
            diag_add(m->d, D_weight_unexpected, (struct span){0}, m->label, t->name);
        else if (!count[r]++)
            first[r] = t->name;
    }
    for (int r = 0; r < REASONS; r++)
        if (count[r] == 1)
            diag_add(m->d, D_weight_unused, (struct span){0}, m->label, first[r], reason_text[r]);
        else if (count[r])
            diag_add(m->d, D_weights_unused, (struct span){0}, m->label, count[r], first[r],
                     reason_text[r]);
}

struct weight_source *weights_match(struct arena *a, const struct params *ps,
                                    const struct tensorfile *f, const char *label, struct diag *d)
{
    struct match m = {.a = a, .f = f, .label = label, .d = d};
    VEC(struct weight_source) v = {0};
    size_t before = diag_errors(d);
    const char *prefix = "language_model.";
    if (!tensorfile_find(f, "language_model.model.embed_tokens.weight")) prefix = "";
    map_init(&m.known, a);
    for (size_t i = 0; i < ps->n; i++)
        for (size_t k = 0; k < ps->p[i].num_parts; k++) {
            const struct param_part *q = &ps->p[i].part[k];
            const char *name = *prefix ? str_fmt(a, "%s%s", prefix, q->tensor) : q->tensor;
            struct weight_source s = {find(&m, name), NULL};
            if (s.values)
                fits(&m, s.values, q);
            else if (!find_mxfp4(&m, q, name, &s))
                missing(&m, name);
            vec_push(a, &v, s);
        }
    account_for_rest(&m, ps, prefix);
    return diag_errors(d) > before ? NULL : v.p;
}

enum rt_status weight_read(const struct param_part *q, const struct weight_source *s, float *out,
                           struct rt_error *err)
{
    if (!s->scale) return tf_read_f32(s->values, 0, (size_t)part_count(q), out, err);
    mxfp4_read(s->values->data, s->scale->data, (size_t)q->dim[0], (size_t)q->dim[1], out);
    return RT_ok;
}

static enum rt_status nothing_loaded(const char *label, struct rt_error *err)
{
    return rt_fail(err, RT_user, "%s does not fit the model; nothing was loaded", label);
}

enum rt_status weights_load(const struct params *ps, const char *path, float *const *memory,
                            struct diag *d, struct rt_error *err)
{
    struct tensorfile *f;
    RT_TRY(tensorfile_open(path, &f, err));
    struct arena *a = arena_open("weights");
    const struct weight_source *s = weights_match(a, ps, f, path, d);
    enum rt_status st = s ? RT_ok : nothing_loaded(path, err);
    for (size_t i = 0; st == RT_ok && i < ps->n; i++)
        for (size_t k = 0; st == RT_ok && k < ps->p[i].num_parts; k++, s++) {
            const struct param_part *q = &ps->p[i].part[k];
            st = weight_read(q, s, memory[i] + q->offset, err);
        }
    arena_close(a);
    tensorfile_close(f);
    return st;
}

enum rt_status weights_read(const struct params *ps, const struct tensorfile *f, const char *label,
                            const char *prefix, const bool *keep, float *const *memory,
                            struct diag *d, struct rt_error *err)
{
    struct arena *a = arena_open("weights");
    struct match m = {.a = a, .f = f, .label = label, .d = d};
    VEC(const struct tf_tensor *) found = {0};
    size_t before = diag_errors(d), at = 0;
    map_init(&m.known, a);
    for (size_t i = 0; i < ps->n; i++)
        for (size_t k = 0; k < ps->p[i].num_parts && (!keep || keep[i]); k++) {
            const char *name = str_fmt(a, "%s%s", prefix, ps->p[i].part[k].tensor);
            const struct tf_tensor *t = find(&m, name);
            if (!t)
                missing(&m, name);
            else
                fits(&m, t, &ps->p[i].part[k]);
            vec_push(a, &found, t);
        }
    for (size_t i = 0; i < tensorfile_count(f); i++) {
        const char *name = tensorfile_at(f, i)->name;
        if (str_starts(str_of(name), prefix) && !map_find(&m.known, str_of(name)))
            diag_add(d, D_weight_unexpected, (struct span){0}, label, name);
    }
    enum rt_status st = diag_errors(d) > before ? nothing_loaded(label, err) : RT_ok;
    for (size_t i = 0; st == RT_ok && i < ps->n; i++)
        for (size_t k = 0; st == RT_ok && k < ps->p[i].num_parts && (!keep || keep[i]); k++) {
            const struct tf_tensor *t = found.p[at++];
            st = tf_read_f32(t, 0, (size_t)part_count(&ps->p[i].part[k]),
                             memory[i] + ps->p[i].part[k].offset, err);
        }
    arena_close(a);
    return st;
}
