#include "compiler/cli.h"
#include "compiler/hf_config.h"
#include "compiler/hf_json.h"
#include "compiler/tokens.h"
#include "compiler/weights.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

static const char help[] =
    "usage: strata import DIR [-o SPEC.yaml] [--name NAME] [--config-only]\n\n"
    "Reads the config.json of a Hugging Face folder into a spec, and checks every tensor of the\n"
    "folder against it by name, shape and type: each is used, told to be of no use, or an error.\n"
    "Then DIR is good for --weights. Families: llama, mistral, qwen3, kimi_linear, kimi_k3 "
    "(text).\n"
    "Whatever changes the arithmetic and has no place in a spec is refused by name.\n\n"
    "  strata import ~/models/stories260K -o stories.yaml\n"
    "  strata generate stories.yaml --weights ~/models/stories260K --prompt-ids 1 --print-ids\n\n"
    "  -o SPEC.yaml       default: standard output\n"
    "  --name NAME        name of the spec; default that of the folder\n"
    "  --config-only      the folder has no weights; nothing is checked against them\n";

enum { MAX_CONFIG = 16 << 20 };

struct import {
    struct cli *c;
    const char *dir, *out;
};

static struct str read_file(struct import *i, const char *path)
{
    struct str text;
    int e = io_read(i->c->arena, path, MAX_CONFIG, &text);
    if (e)
        cli_fail(RT_user, "cannot read '%s': %s", path,
                 e == EFBIG ? "it is over 16 MiB" : strerror(e));
    return text;
}

/* Ends the program after errors. */
static void stop_at_errors(struct import *i)
{
    if (!diag_errors(i->c->diag)) return;
    cli_diagnostics(i->c);
    cli_fail(RT_user, "%s is not imported", i->dir);
}

/* A file as the spec names it: relative where it lies below the spec's folder. */
static const char *seen_from_spec(struct import *i, const char *file)
{
    struct arena *a = i->c->arena;
    char *real = realpath(file, NULL);
    char *base = i->out ? realpath(io_dirname(a, i->out), NULL) : NULL;
    const char *path = str_dup(a, str_of(real ? real : file));
    size_t n = base ? strlen(base) : 0;
    if (n && !strncmp(path, base, n) && path[n] == '/') path += n + 1;
    free(real);
    free(base);
    return path;
}

/* An id, or a list of which the first is the one and the others stop too. */
static void read_eos(struct tokenizer_spec *t, const json_t *v, struct arena *a)
{
    if (json_is_integer(v)) t->eos = json_integer_value(v);
    if (!json_is_array(v) || !json_array_size(v)) return;
    t->stop = NEW(a, int64_t, json_array_size(v));
    t->num_stop = 0;
    for (size_t k = 0; k < json_array_size(v); k++) {
        const json_t *id = json_array_get(v, k);
        if (!json_is_integer(id)) return;
        if (!k)
            t->eos = json_integer_value(id);
        else
            t->stop[t->num_stop++] = json_integer_value(id);
    }
}

/* A JSON file of the folder that may be absent. */
static json_t *read_json(struct import *i, const char *name, bool loose, struct hf_object *o)
{
    const char *path = io_join(i->c->arena, i->dir, name);
    if (!io_exists(path)) return NULL;
    if (!hf_parse(i->c->arena, i->c->diag, path, read_file(i, path), loose, o)) stop_at_errors(i);
    return (json_t *)o->json;
}

/* The tokenizer's file and the ids around a text; the text of config.json parsed before. */
static void find_tokenizer(struct import *i, struct hf_config *c, struct str config)
{
    static const char *const files[] = {"tokenizer.json", "tiktoken.model", "tokenizer.bin",
                                        "tok512.bin"};
    struct tokenizer_spec *t = &c->model.tokenizer;
    struct arena *a = i->c->arena;
    struct hf_object o;
    t->bos = t->eos = -1;
    for (size_t k = 0; k < sizeof files / sizeof *files && !t->path; k++) {
        const char *path = io_join(a, i->dir, files[k]);
        if (io_exists(path)) t->path = seen_from_spec(i, path);
    }
    if (!t->path) return;
    t->type = TOK_file;
    json_t *root = json_loadb(config.p, config.n, 0, NULL);
    const json_t *text = json_object_get(root, "text_config"); /* of a wrapper */
    const json_t *eos = json_object_get(root, "eos_token_id");
    const json_t *bos = json_object_get(root, "bos_token_id");
    read_eos(t, eos ? eos : json_object_get(text, "eos_token_id"), a);
    if (!bos) bos = json_object_get(text, "bos_token_id");
    int64_t id = json_is_integer(bos) ? json_integer_value(bos) : -1;
    json_decref(root);
    if ((root = read_json(i, "generation_config.json", false, &o))) {
        read_eos(t, hf_get(&o, "eos_token_id"), a); /* what generation goes by */
        json_decref(root);
    }
    bool adds = c->adds_bos;
    if ((root = read_json(i, "tokenizer_config.json", true, &o))) { /* 10^30 is a length there */
        adds = hf_bool(&o, "add_bos_token", adds);
        json_decref(root);
    }
    stop_at_errors(i);
    if (adds) t->bos = id;
}

/* The folder's own name, in the letters of a spec's name. */
static const char *name_of(struct import *i)
{
    char *real = realpath(i->dir, NULL);
    const char *slash = real ? strrchr(real, '/') : NULL;
    char *name = str_dup(i->c->arena, str_of(slash && slash[1] ? slash + 1 : "imported"));
    free(real);
    if (strlen(name) > 64) name[64] = 0;
    for (char *p = name; *p; p++) {
        bool word = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
                    (*p >= '0' && *p <= '9') || *p == '.' || *p == '_' || *p == '-';
        if (!word) *p = '-';
    }
    return name;
}

/* A model is good for ids without its tokenizer. */
static void check_tokenizer(struct import *i, const struct model *m)
{
    struct tokenizer *t = NULL;
    if (tokens_open(m, NULL, &t, &i->c->err) != RT_ok)
        diag_add(i->c->diag, D_hf_tokenizer, (struct span){0}, i->c->err.text);
    if (t) tokenizer_close(t);
}

static void check_weights(struct import *i, const struct model *m)
{
    struct cli *c = i->c;
    struct tensorfile *f;
    const struct params *ps = params_of(c->arena, m);
    enum rt_status st = tensorfile_open(i->dir, &f, &c->err);
    if (st == RT_user)
        cli_fail(st, "%s\nhint: --config-only makes the spec without the weights.", c->err.text);
    cli_check(c, st);
    if (!weights_match(c->arena, ps, f, i->dir, c->diag)) stop_at_errors(i);
    cli_diagnostics(c);
    fprintf(stderr, "%s: %zu tensors accounted for, %s parameters\n", i->dir, tensorfile_count(f),
            cli_count(c->arena, params_total(ps)));
    tensorfile_close(f);
}

int cmd_import(int argc, char **argv)
{
    struct cli c = {0};
    struct import i = {.c = &c};
    const char *name = NULL;
    bool config_only = false;
    cli_parse(&c, argc, argv, help, 1,
              CLI_OPTIONS({"output", CLI_text, &i.out}, {"name", CLI_text, &name},
                          {"config-only", CLI_flag, &config_only}));
    cli_no_set(&c);
    i.dir = c.arg.p[0];
    const char *path = io_join(c.arena, i.dir, "config.json");
    struct str text = read_file(&i, path);
    struct hf_config *config = hf_config_read(c.arena, c.diag, path, text);
    stop_at_errors(&i);
    find_tokenizer(&i, config, text);
    struct str spec = hf_spec_text(c.arena, config, name ? name : name_of(&i));
    const char *out = i.out ? i.out : "spec.yaml";
    const struct model *m = spec_parse(c.arena, c.diag, out, spec, NULL);
    if (!m) stop_at_errors(&i);
    check_tokenizer(&i, m);
    if (config_only)
        cli_diagnostics(&c);
    else
        check_weights(&i, m);
    if (!i.out) {
        fwrite(spec.p, 1, spec.n, stdout);
        return 0;
    }
    int e = io_write_atomic(i.out, spec.p, spec.n);
    if (e) cli_fail(RT_user, "cannot write '%s': %s", i.out, strerror(e));
    return 0;
}
