#include "compiler/weights.h"

struct tf_tensor part_tensor(const struct param_part *q)
{
    struct tf_tensor t = {.name = q->tensor, .dtype = TF_F32, .rank = q->rank};
    for (int i = 0; i < q->rank; i++) t.shape[i] = q->dim[i];
    return t;
}

void weights_init(const struct params *ps, uint64_t seed, float *const *memory)
{
    for (size_t i = 0; i < ps->n; i++) {
        const struct param *p = &ps->p[i];
        for (size_t k = 0; k < p->num_parts; k++) {
            const struct param_part *q = &p->part[k];
            init_fill(p->init, seed, rng_stream(q->tensor), 0, (size_t)part_count(q),
                      memory[i] + q->offset);
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

static bool same_shape(const struct tf_tensor *t, const struct param_part *q)
{
    if (t->rank != q->rank) return false;
    for (int i = 0; i < q->rank; i++)
        if (t->shape[i] != q->dim[i]) return false;
    return true;
}

/* The tensor of a part, or a diagnostic. */
static const struct tf_tensor *find(const struct tensorfile *f, const char *label,
                                    const struct param_part *q, const char *name, struct diag *d)
{
    char got[128], want[128];
    const struct tf_tensor *t = tensorfile_find(f, name);
    if (!t) {
        diag_add(d, D_weight_missing, (struct span){0}, label, name);
        return NULL;
    }
    struct tf_tensor w = part_tensor(q);
    if (!same_shape(t, q)) {
        diag_add(d, D_weight_shape, (struct span){0}, label, name,
                 tf_shape_text(t, got, sizeof got), tf_shape_text(&w, want, sizeof want));
        return NULL;
    }
    if (t->dtype != TF_F32 && t->dtype != TF_BF16 && t->dtype != TF_F16 && t->dtype != TF_F64) {
        diag_add(d, D_weight_dtype, (struct span){0}, label, name, tf_dtype_name(t->dtype));
        return NULL;
    }
    return t;
}

enum rt_status weights_read(const struct params *ps, const struct tensorfile *f, const char *label,
                            const char *prefix, const bool *keep, float *const *memory,
                            struct diag *d, struct rt_error *err)
{
    struct arena *a = arena_open("weights");
    struct map known;
    map_init(&known, a);
    VEC(const struct tf_tensor *) found = {0};
    size_t before = diag_errors(d);
    for (size_t i = 0; i < ps->n; i++)
        for (size_t k = 0; k < ps->p[i].num_parts && (!keep || keep[i]); k++) {
            const char *name = str_fmt(a, "%s%s", prefix, ps->p[i].part[k].tensor);
            const struct tf_tensor *t = find(f, label, &ps->p[i].part[k], name, d);
            vec_push(a, &found, t);
            *map_str(&known, str_of(name)) = 1;
        }
    for (size_t i = 0; i < tensorfile_count(f); i++) {
        const char *name = tensorfile_at(f, i)->name;
        if (str_starts(str_of(name), prefix) && !map_find(&known, str_of(name)))
            diag_add(d, D_weight_unexpected, (struct span){0}, label, name);
    }
    enum rt_status st = RT_ok;
    if (diag_errors(d) > before)
        st = rt_fail(err, RT_user, "%s does not fit the model; nothing was loaded", label);
    size_t at = 0;
    for (size_t i = 0; st == RT_ok && i < ps->n; i++)
        for (size_t k = 0; st == RT_ok && k < ps->p[i].num_parts && (!keep || keep[i]); k++) {
            const struct tf_tensor *t = found.p[at++];
            st = tf_read_f32(t, 0, t->count, memory[i] + ps->p[i].part[k].offset, err);
        }
    arena_close(a);
    return st;
}

enum rt_status weights_load(const struct params *ps, const char *path, float *const *memory,
                            struct diag *d, struct rt_error *err)
{
    struct tensorfile *f;
    enum rt_status st = tensorfile_open(path, &f, err);
    if (st != RT_ok) return st;
    st = weights_read(ps, f, path, "", NULL, memory, d, err);
    tensorfile_close(f);
    return st;
}
