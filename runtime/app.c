#include "runtime/app.h"
#include "runtime/lm_plan.h"
#include "runtime/tokenizer_file.h"
#include <stdlib.h>

/* ---- meta ---- */

struct meta {
    const char *missing; /* the first key that is not there, or not what it should be */
};

static const json_t *get(struct meta *m, const json_t *from, const char *key, json_type type)
{
    const json_t *x = json_object_get(from, key);
    if ((!x || json_typeof(x) != type) && !m->missing) m->missing = key;
    return x && json_typeof(x) == type ? x : NULL;
}

static int64_t number(struct meta *m, const json_t *from, const char *key, int64_t least,
                      int64_t most)
{
    const json_t *x = get(m, from, key, JSON_INTEGER);
    int64_t n = x ? json_integer_value(x) : least;
    if ((n < least || n > most) && !m->missing) m->missing = key;
    return n < least || n > most ? least : n;
}

static const char *text(struct meta *m, const json_t *from, const char *key)
{
    const json_t *x = get(m, from, key, JSON_STRING);
    return x ? json_string_value(x) : "";
}

static void read_stops(struct app *p, struct meta *m, const json_t *tok)
{
    const json_t *list = get(m, tok, "stop", JSON_ARRAY);
    size_t n = json_array_size(list);
    int32_t *stop = NEW(p->a, int32_t, n);
    for (size_t i = 0; i < n; i++) {
        int64_t id = json_integer_value(json_array_get(list, i));
        if (id < 0 || id >= p->about.vocab) m->missing = "stop";
        stop[i] = (int32_t)id;
    }
    p->about.stop = stop;
    p->about.num_stop = n;
}

static void read_about(struct app *p, struct meta *m)
{
    enum { MOST = INT32_MAX };
    struct app_about *x = &p->about;
    const json_t *weights = get(m, p->meta, "weights", JSON_OBJECT);
    const json_t *params = get(m, p->meta, "parameters", JSON_OBJECT);
    const json_t *tok = get(m, p->meta, "tokenizer", JSON_OBJECT);
    x->name = text(m, p->meta, "name");
    x->dtype = text(m, p->meta, "dtype");
    x->target = text(m, p->meta, "target");
    x->spec_hash = text(m, p->meta, "spec");
    x->template = json_string_value(json_object_get(p->meta, "chat_template"));
    x->vocab = number(m, p->meta, "vocab", 1, MOST);
    x->context = number(m, p->meta, "context", LM_PAGE, MOST);
    x->pages = number(m, p->meta, "pages", 1, MOST);
    x->states = number(m, p->meta, "states", 0, MOST);
    x->batch = number(m, p->meta, "batch", 1, MOST);
    x->snapshots = number(m, p->meta, "snapshots", 0, MOST);
    x->parameters = number(m, params, "total", 0, INT64_MAX);
    x->active = number(m, params, "active", 0, INT64_MAX);
    x->weight_bytes = (uint64_t)number(m, weights, "bytes", 0, INT64_MAX);
    x->token_bytes = (uint64_t)number(m, weights, "read_by_token", 0, INT64_MAX);
    x->weight_hash = strtoull(text(m, weights, "hash"), NULL, 16);
    x->beside = json_is_true(json_object_get(weights, "beside"));
    x->bos = number(m, tok, "bos", -1, x->vocab - 1);
    read_stops(p, m, tok);
    if (x->context % LM_PAGE || x->context / LM_PAGE > x->pages) m->missing = "context";
}

/* A section that is small enough to be checked whenever it is used. */
static enum rt_status section(const struct app *p, const char *name,
                              const struct bundle_section **out, struct rt_error *err)
{
    *out = bundle_find(&p->own, name);
    if (!*out) return rt_fail(err, RT_user, "'%s' is damaged: it has no section %s", p->path, name);
    if (!bundle_whole(*out))
        return rt_fail(err, RT_user, "'%s' is damaged: section %s was changed", p->path, name);
    return RT_ok;
}

static enum rt_status read_meta(struct app *p, struct rt_error *err)
{
    const struct bundle_section *s;
    struct meta m = {NULL};
    RT_TRY(section(p, "meta", &s, err));
    p->meta = json_loadb(s->p, s->bytes, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(p->meta)) m.missing = "{";
    read_about(p, &m);
    if (m.missing)
        return rt_fail(err, RT_user, "'%s' is of another version of strata: %s", p->path,
                       m.missing);
    return RT_ok;
}

/* ---- parts ---- */

static enum rt_status choose_set(struct app *p, const char *cpu, struct rt_error *err)
{
    enum cpu_kind want = cpu ? cpu_find(cpu) : CPU_KINDS, last = CPU_KINDS;
    for (size_t i = 0; app_sets[i] && !p->set; i++) {
        last = (enum cpu_kind)app_sets[i]->cpu;
        if (cpu ? last == want : cpu_runs(last)) p->set = app_sets[i];
    }
    if (!p->set && cpu)
        return rt_fail(err, RT_user, "'%s' has no kernels for '%s': '%s info' lists them", p->path,
                       cpu, p->path);
    if (p->set && cpu_runs((enum cpu_kind)p->set->cpu)) return RT_ok;
    if (p->set) last = want;
    return rt_fail(err, RT_user, "this processor has no %s, which '%s' needs", cpu_about(last)->has,
                   p->path);
}

static enum rt_status find_weights(struct app *p, const char *beside, struct rt_error *err)
{
    const struct bundle *from = &p->own;
    if (p->about.beside) {
        if (!beside) beside = str_fmt(p->a, "%s.weights", p->path);
        RT_TRY(bundle_open(beside, &p->other, err));
        from = &p->other;
    }
    p->weights = bundle_find(from, "weights");
    if (!p->weights || p->weights->bytes != p->about.weight_bytes ||
        p->weights->hash != p->about.weight_hash)
        return rt_fail(err, RT_user, "'%s' has not the weights that '%s' was built with",
                       p->about.beside ? beside : p->path, p->path);
    return RT_ok;
}

static enum rt_status open_tokenizer(struct app *p, struct rt_error *err)
{
    struct meta m = {NULL};
    const json_t *tok = json_object_get(p->meta, "tokenizer"),
                 *files = get(&m, tok, "files", JSON_ARRAY);
    const char *type = text(&m, tok, "type");
    const struct bundle_section *s;
    struct str file[TOK_FILES] = {{"", 0}, {"", 0}};
    const char *label = "tokenizer";
    for (size_t i = 0; i < json_array_size(files) && i < TOK_FILES; i++) {
        const char *name = json_string_value(json_array_get(files, i));
        RT_TRY(section(p, str_fmt(p->a, "tokenizer/%s", name ? name : ""), &s, err));
        file[i] = (struct str){s->p, s->bytes};
        if (!i) label = s->name;
    }
    if (!strcmp(type, "none")) return RT_ok;
    if (!strcmp(type, "bytes")) return tokenizer_bytes(&p->tok, err);
    if (!strcmp(type, "chars")) return tokenizer_chars_parse(file[0], label, &p->tok, err);
    const struct tok_file_text f = {
        .text = file[0], .beside = file[1], .config = {"", 0}, .label = label};
    return tokenizer_file_parse(&f, &p->tok, err);
}

static enum rt_status open_parts(struct app *p, const char *weights, const struct app_options *o,
                                 struct rt_error *err)
{
    RT_TRY(bundle_open(p->path, &p->own, err));
    RT_TRY(read_meta(p, err));
    if (!app_on_gpu(p)) RT_TRY(choose_set(p, o->cpu, err));
    RT_TRY(find_weights(p, weights, err));
    return open_tokenizer(p, err);
}

enum rt_status app_open(const char *path, const char *weights, const struct app_options *o,
                        struct app **out, struct rt_error *err)
{
    struct arena *a = arena_open("app");
    struct app *p = NEW(a, struct app, 1);
    *out = NULL;
    p->a = a;
    p->path = str_dup(a, str_of(path));
    enum rt_status st = open_parts(p, weights, o, err);
    if (st)
        app_close(p);
    else
        *out = p;
    return st;
}

void app_close(struct app *p)
{
    if (!p) return;
    if (p->lm) p->lm->ops->close(p->lm);
    pool_close(p->pool);
    tokenizer_close(p->tok);
    json_decref(p->meta);
    bundle_close(&p->own);
    bundle_close(&p->other);
    arena_close(p->a);
}

/* ---- the model ---- */

static int by_symbol(const void *key, const void *row)
{
    return strcmp(key, ((const struct app_kernel *)row)->symbol);
}

/* Plans of a section, with the addresses of their kernels. */
static enum rt_status read_plans(struct app *p, const char *name, struct plan_set *out,
                                 struct rt_error *err)
{
    const struct bundle_section *s;
    RT_TRY(section(p, name, &s, err));
    RT_TRY(plan_file_read(p->a, (struct str){s->p, s->bytes}, out, err));
    for (uint32_t i = 0; i < out->num_code && !app_on_gpu(p); i++) {
        const struct app_kernel *k = bsearch(out->code[i].symbol, p->set->kernel, p->set->n,
                                             sizeof *p->set->kernel, by_symbol);
        if (!k)
            return rt_fail(err, RT_user, "'%s' is damaged: it has no kernel %s", p->path,
                           out->code[i].symbol);
        out->code[i].fn = k->fn;
    }
    return RT_ok;
}

static enum rt_status open_lm(struct app *p, const struct plan_set *set, struct lm **out,
                              struct rt_error *err)
{
    const struct app_about *x = &p->about;
    struct lm_plan *plan = NEW(p->a, struct lm_plan, set->n);
    for (size_t i = 0; i < set->n; i++) {
        const struct plan_item *item = &set->item[i];
        if (item->plan.arena_bytes[SA_weights] > p->weights->bytes)
            return rt_fail(err, RT_user, "'%s' is damaged: its weights are cut", p->path);
        plan[i] = (struct lm_plan){.B = item->B, .T = item->T, .plan = &item->plan};
        /* read only, as the mapping is */
        plan[i].memory[SA_weights] = (void *)(uintptr_t)p->weights->p;
    }
    const struct lm_parts parts = {.context = x->context,
                                   .pages = x->pages,
                                   .states = x->states,
                                   .plan = plan,
                                   .num_plans = set->n,
                                   .pool = p->pool};
    RT_TRY(lm_plans_check(&parts, true, err));
    return lm_plan_open(&parts, out, err);
}

enum rt_status app_load(struct app *p, const struct app_options *o, struct rt_error *err)
{
    if (o->threads < 0 || o->threads > 1024)
        return rt_fail(err, RT_usage, "--threads must be from 1 to 1024");
    if (o->depth && !bundle_find(&p->own, "depth"))
        return rt_fail(err, RT_user, "'%s' has no attention over depth to show", p->path);
    RT_TRY(read_plans(p, o->depth ? "depth" : o->score ? "score" : "plans", &p->plans, err));
    if (app_on_gpu(p)) return app_device_open(p, &p->plans, &p->lm, err);
    RT_TRY(pool_open((unsigned)o->threads, &p->pool, err));
    return open_lm(p, &p->plans, &p->lm, err);
}

struct generate app_generate(struct app *p)
{
    struct generate g = {
        .tok = p->tok, .bos = p->about.bos, .stop = p->about.stop, .num_stop = p->about.num_stop};
    generate_begin(&g, p->a, p->lm);
    return g;
}
