#include "fixture.h"
#include "compiler/weights.h"
#include "runtime/npy.h"
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define DIR_ "tests/fixtures"

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

const char *const *fixture_names(struct arena *a)
{
    VEC(const char *) v = {0};
    DIR *d = opendir(DIR_);
    CHECK(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.' || str_starts(str_of(e->d_name), "traj-")) continue;
        FILE *f = fopen(str_fmt(a, DIR_ "/%s/want.safetensors", e->d_name), "r");
        if (!f) continue;
        fclose(f);
        vec_push(a, &v, (const char *)str_dup(a, str_of(e->d_name)));
    }
    closedir(d);
    qsort(v.p, v.n, sizeof *v.p, by_name);
    vec_push(a, &v, (const char *)NULL);
    return v.p;
}

static void must(enum rt_status st, const struct rt_error *err)
{
    if (st != RT_ok) BUG("%s", err->text);
}

static void read_tokens(struct fixture *f, const char *path)
{
    struct npy n;
    struct rt_error err;
    must(npy_open(path, &n, &err), &err);
    CHECK(n.rank == 2);
    f->B = n.shape[0], f->T = n.shape[1] - 1;
    f->tokens = NEW(f->arena, int32_t, f->B * f->T);
    f->targets = NEW(f->arena, int32_t, f->B * f->T);
    for (int64_t b = 0; b < f->B; b++)
        for (int64_t t = 0; t < f->T; t++) {
            f->tokens[b * f->T + t] = (int32_t)npy_int(&n, (size_t)(b * (f->T + 1) + t));
            f->targets[b * f->T + t] = (int32_t)npy_int(&n, (size_t)(b * (f->T + 1) + t + 1));
            f->count += f->targets[b * f->T + t] >= 0;
        }
    npy_close(&n);
}

static void make_params(struct fixture *f, struct diag *d, struct model *m)
{
    if (!m) {
        struct sb s = {0};
        diag_print(d, &s);
        BUG("%s", s.p);
    }
    f->model = m;
    f->params = params_of(f->arena, m);
    f->weights = NEW(f->arena, float *, f->params->n);
    for (size_t i = 0; i < f->params->n; i++)
        f->weights[i] = NEW(f->arena, float, f->params->p[i].count);
}

struct fixture *fixture_open(const char *name, const char *set)
{
    struct arena *a = arena_open("fixture");
    struct fixture *f = NEW(a, struct fixture, 1);
    struct diag *d = diag_open(a);
    struct rt_error err = {0};
    f->arena = a;
    f->name = name;
    const struct spec_options o = {&set, set ? 1 : 0};
    make_params(f, d, spec_load(a, d, str_fmt(a, DIR_ "/%s/spec.yaml", name), &o));
    struct sb s = {0};
    if (weights_load(f->params, str_fmt(a, DIR_ "/%s/weights.safetensors", name), f->weights, d,
                     &err)) {
        diag_print(d, &s);
        BUG("%s\n%s", err.text, s.p ? s.p : "");
    }
    read_tokens(f, str_fmt(a, DIR_ "/%s/tokens.npy", name));
    must(tensorfile_open(str_fmt(a, DIR_ "/%s/want.safetensors", name), &f->want, &err), &err);
    const char *rounded = str_fmt(a, DIR_ "/%s/bf16.safetensors", name);
    if (!access(rounded, R_OK)) must(tensorfile_open(rounded, &f->rounded, &err), &err);
    return f;
}

struct fixture *fixture_fresh(const char *name, struct str text, int64_t B, int64_t T, bool moved)
{
    struct arena *a = arena_open("fixture");
    struct fixture *f = NEW(a, struct fixture, 1);
    struct diag *d = diag_open(a);
    const struct spec_options o = {0};
    *f = (struct fixture){.arena = a, .name = name, .B = B, .T = T, .count = (double)(B * T)};
    make_params(f, d, text.n ? spec_parse(a, d, name, text, &o) : spec_load(a, d, name, &o));
    weights_init(f->params, 0, f->weights, NULL);
    for (size_t i = 0; moved && i < f->params->n; i++) {
        const struct param *p = &f->params->p[i];
        if (p->kind != PARAM_vector) continue;
        for (int64_t k = 0; k < p->count; k++)
            f->weights[i][k] += (float)(0.1 * rng_normal(1, rng_stream(p->name), (uint64_t)k));
    }
    f->tokens = NEW(a, int32_t, B * T);
    f->targets = NEW(a, int32_t, B * T);
    uint64_t stream = rng_stream("tokens"), V = (uint64_t)f->model->vocab_size;
    for (int64_t i = 0; i < B * T; i++) {
        f->tokens[i] = (int32_t)(rng_bits(2, stream, (uint64_t)i) % V);
        f->targets[i] = (int32_t)(rng_bits(3, stream, (uint64_t)i) % V);
    }
    return f;
}

void fixture_close(struct fixture *f)
{
    if (f->want) tensorfile_close(f->want);
    if (f->rounded) tensorfile_close(f->rounded);
    arena_close(f->arena);
}

const double *fixture_want(const struct fixture *f, const char *name, size_t *n)
{
    const struct tf_tensor *t = tensorfile_find(f->want, name);
    if (!t) return NULL;
    CHECK(t->dtype == TF_F64);
    double *v = NEW(f->arena, double, t->count);
    memcpy(v, t->data, t->bytes);
    *n = t->count;
    return v;
}

const struct tf_tensor *fixture_routes(const struct fixture *f, size_t i)
{
    for (size_t k = 0; f->rounded && k < tensorfile_count(f->rounded); k++) {
        const struct tf_tensor *t = tensorfile_at(f->rounded, k);
        if (!str_starts(str_of(t->name), "routes.") || i--) continue;
        CHECK(t->dtype == TF_I32);
        return t;
    }
    return NULL;
}

double relative_error(const double *got, const double *want, size_t n)
{
    double diff = 0, ref = 0;
    for (size_t i = 0; i < n; i++) {
        diff += (got[i] - want[i]) * (got[i] - want[i]);
        ref += want[i] * want[i];
    }
    if (ref == 0) return diff == 0 ? 0 : INFINITY;
    return isnan(diff) ? INFINITY : sqrt(diff / ref);
}

const struct param_part *fixture_part(const struct fixture *f, const char *tensor, size_t *param)
{
    for (size_t i = 0; i < f->params->n; i++)
        for (size_t k = 0; k < f->params->p[i].num_parts; k++)
            if (!strcmp(f->params->p[i].part[k].tensor, tensor)) {
                *param = i;
                return &f->params->p[i].part[k];
            }
    return NULL;
}

static double *doubles(struct arena *a, const float *p, int64_t n)
{
    double *v = NEW(a, double, n);
    for (int64_t i = 0; i < n; i++) v[i] = (double)p[i];
    return v;
}

struct ir_values fixture_eval(const struct fixture *f, struct arena *a, const struct ir_graph *g)
{
    int64_t n = f->B * f->T;
    double *tok = NEW(a, double, n), *tgt = NEW(a, double, n), *count = NEW(a, double, 1);
    for (int64_t i = 0; i < n; i++) tok[i] = f->tokens[i], tgt[i] = f->targets[i];
    *count = f->count;
    VEC(struct ir_named) in = {0};
    vec_push(a, &in, ((struct ir_named){"tokens", tok, n}));
    vec_push(a, &in, ((struct ir_named){"targets", tgt, n}));
    vec_push(a, &in, ((struct ir_named){"count", count, 1}));
    const struct tf_tensor *t;
    for (size_t k = 0; (t = fixture_routes(f, k)); k++) {
        double *ids = NEW(a, double, t->count);
        for (size_t i = 0; i < t->count; i++) {
            int32_t id;
            memcpy(&id, (const char *)t->data + i * sizeof id, sizeof id);
            ids[i] = id;
        }
        vec_push(a, &in, ((struct ir_named){t->name, ids, (int64_t)t->count}));
    }
    for (size_t i = 0; i < f->params->n; i++) {
        const struct param *p = &f->params->p[i];
        vec_push(a, &in,
                 ((struct ir_named){p->name, doubles(a, f->weights[i], p->count), p->count}));
    }
    return ir_eval(a, g, (struct ir_bind){f->B, f->T}, in.p, in.n);
}
