#include "runtime/app.h"
#include "runtime/exec.h"
#include <stdlib.h>

static const char help[] =
    "What the program holds: its spec and hashes, parameters, memory, and kernels for which\n"
    "processors.\n\n"
    "  --json             for programs\n"
    "  --spec             prints the spec, and nothing else\n"
    "  --verify           reads all of it and compares the hashes\n" APP_HELP;

/* Memory of the model beside its weights: caches, and what a run takes. */
static uint64_t caches_of(const struct app *p)
{
    const struct lm_about *x = &p->lm->about;
    return (uint64_t)x->pages * x->page_bytes + (uint64_t)x->states * x->state_bytes;
}

static uint64_t activations_of(const struct app *p)
{
    uint64_t bytes[SA_external] = {0};
    for (size_t i = 0; i < p->plans.n; i++)
        for (int k = 0; k < SA_external; k++)
            if (p->plans.item[i].plan.arena_bytes[k] > bytes[k])
                bytes[k] = p->plans.item[i].plan.arena_bytes[k];
    return bytes[SA_scratch] + bytes[SA_slot];
}

static const char *hash_text(struct arena *a, uint64_t hash)
{
    return str_fmt(a, "%016llx", (unsigned long long)hash);
}

static json_t *sections_json(const struct app *p, const struct bundle *b)
{
    json_t *list = json_array();
    for (size_t i = 0; i < b->n; i++) {
        const struct bundle_section *s = &b->section[i];
        json_array_append_new(list,
                              json_pack("{s:s, s:I, s:s}", "name", s->name, "bytes",
                                        (json_int_t)s->bytes, "hash", hash_text(p->a, s->hash)));
    }
    return list;
}

static json_t *kernels_json(const struct app *p)
{
    json_t *list = json_array();
    for (size_t i = 0; app_sets[i]; i++) {
        const struct app_set *s = app_sets[i];
        json_array_append_new(
            list, json_pack("{s:s, s:I, s:b, s:b}", "cpu", cpu_about((enum cpu_kind)s->cpu)->name,
                            "kernels", (json_int_t)s->n, "runs_here",
                            cpu_runs((enum cpu_kind)s->cpu), "used", s == p->set));
    }
    return list;
}

static void print_json(const struct app *p)
{
    json_t *j = json_deep_copy(p->meta), *file = sections_json(p, &p->own);
    if (p->about.beside) json_array_extend(file, sections_json(p, &p->other));
    json_object_set_new(j, "kernels", kernels_json(p));
    json_object_set_new(j, "sections", file);
    json_object_set_new(
        j, "memory",
        json_pack("{s:I, s:I, s:I, s:I, s:I}", "weights", (json_int_t)p->about.weight_bytes,
                  "caches", (json_int_t)caches_of(p), "activations", (json_int_t)activations_of(p),
                  "page", (json_int_t)p->lm->about.page_bytes, "state",
                  (json_int_t)p->lm->about.state_bytes));
    json_object_set_new(j, "plans", json_integer((json_int_t)p->plans.n));
    json_dumpf(j, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(j);
}

static double mb(uint64_t bytes)
{
    return 1e-6 * (double)bytes;
}

static void print_text(const struct app *p)
{
    const struct app_about *x = &p->about;
    printf("model       %s\n", x->name);
    printf("spec        %s\n", x->spec_hash);
    printf("parameters  %lld, %lld of them used by a token\n", (long long)x->parameters,
           (long long)x->active);
    printf("weights     %.2f MB as %s, hash %016llx%s\n", mb(x->weight_bytes), x->dtype,
           (unsigned long long)x->weight_hash, x->beside ? ", in a file beside this one" : "");
    printf("tokenizer   %s; chat template %s\n",
           json_string_value(json_object_get(json_object_get(p->meta, "tokenizer"), "type")),
           x->template ? x->template : "none");
    printf("context     %lld tokens of a sequence, %lld sequences at a time\n",
           (long long)x->context, (long long)x->batch);
    printf("caches      %lld pages of %d tokens, %llu bytes each", (long long)p->lm->about.pages,
           LM_PAGE, (unsigned long long)p->lm->about.page_bytes);
    if (p->lm->about.recurrent)
        printf("; %lld states of %llu bytes", (long long)p->lm->about.states,
               (unsigned long long)p->lm->about.state_bytes);
    printf("\nmemory      %.2f MB of caches, %.2f MB of activations, beside the weights\n",
           mb(caches_of(p)), mb(activations_of(p)));
    printf("plans       %zu\n", p->plans.n);
    if (app_on_gpu(p)) printf("kernels     %u for %s\n", p->plans.num_code, x->target);
    for (size_t i = 0; app_sets[i]; i++)
        printf("kernels     %lu for %s%s\n", app_sets[i]->n,
               cpu_about((enum cpu_kind)app_sets[i]->cpu)->name,
               app_sets[i] == p->set                       ? ": used here"
               : cpu_runs((enum cpu_kind)app_sets[i]->cpu) ? ""
                                                           : ": not this processor");
}

static enum rt_status verify(const struct app *p, const struct bundle *b, struct rt_error *err)
{
    for (size_t i = 0; i < b->n; i++)
        if (!bundle_whole(&b->section[i]))
            return rt_fail(err, RT_user, "'%s' is damaged: section %s was changed", p->path,
                           b->section[i].name);
    return RT_ok;
}

int app_info_command(const char *program, int argc, char **argv)
{
    struct command_line c = {program, argv[0], arena_open("options"), {0}};
    struct app_options run = {0};
    struct rt_error err;
    bool json = false, check = false, spec = false;
    options_parse(&c, argc, argv, help, 0, 0,
                  CLI_OPTIONS({"json", CLI_flag, &json}, {"verify", CLI_flag, &check},
                              {"spec", CLI_flag, &spec}, APP_OPTIONS(run)));
    struct app *p = app_self(program, &run, true);
    if (check) app_check(program, verify(p, &p->own, &err), &err);
    if (check) app_check(program, verify(p, &p->other, &err), &err);
    const struct bundle_section *text = bundle_find(&p->own, "spec.yaml");
    if (spec && text)
        fwrite(text->p, 1, text->bytes, stdout);
    else if (json)
        print_json(p);
    else
        print_text(p);
    if (check && !json && !spec) puts("all sections have their hashes");
    app_close(p);
    arena_close(c.arena);
    return 0;
}
