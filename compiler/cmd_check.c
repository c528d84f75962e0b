#include "compiler/cli.h"
#include "compiler/draw.h"
#include "compiler/fit.h"
#include "compiler/sites.h"
#include "compiler/survey.h"
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static const char help[] =
    "usage: strata check SPEC [--json] [--draw OUT.svg] [--device D [--floor]] [--set "
    "KEY=VALUE]\n\n"
    "Checks a spec and tells what it describes: parameters, layers, depth blocks, the\n"
    "sources every site reads, operations per token, what decoding keeps of a sequence, and the\n"
    "memory that training plans. Nothing is compiled or run.\n\n"
    "  strata check examples/tiny-moe/spec.yaml\n"
    "  strata check examples/tiny-moe/spec.yaml --set model.residual.blocks=2 --draw moe.svg\n\n"
    "  --json          one JSON object on standard output instead of the text\n"
    "  --draw OUT.svg  a drawing: layers, blocks, and which sources each site reads\n"
    "  --device D      plan for a GPU: cuda or cuda:N for what is free there, or an amount of\n"
    "                  memory, as 80GB; says whether training fits, and what to change, and\n"
    "                  whether serving does, with weights and caches as they are stored there\n"
    "  --floor         with --device: kernels of a training step by kind, what they must move and\n"
    "                  compute, and the least time that takes\n" FLOOR_HELP
    "  --threads N     threads to plan memory for; default as in training\n"
    "  --set KEY=VALUE change a value of the spec, as model.residual.blocks=2\n\n"
    "Active parameters are what one token uses, with the head, without the embedding table and\n"
    "without router biases. Memory is what the process takes beside its own code, or with "
    "--device\n"
    "what lies on the GPU; the exit status is 1 where that does not fit (of a spec without a "
    "train\n"
    "section: where serving does not).\n";

struct check {
    struct cli *c;
    const struct model *m;
    const struct survey *v;
    const struct site *site;
    size_t num_sites;
    const char *verdict, *serving; /* with --device */
    bool fits;
    const struct kinds *floor; /* with --floor */
};

/* ---- text ---- */

static void print_parameters(const struct check *k)
{
    struct arena *a = k->c->arena;
    printf("parameters     %15s\n", cli_count(a, k->v->total));
    printf("  active       %15s  a token uses, with the head, without the embedding table\n",
           cli_count(a, k->v->active));
    for (int p = 0; p < PARTS; p++)
        if (k->v->part[p])
            printf("  %-12s %15s  %5.1f %%%s\n", survey_part_name((enum survey_part)p),
                   cli_count(a, k->v->part[p]), 100 * (double)k->v->part[p] / (double)k->v->total,
                   p == PART_embedding && k->m->tie_embeddings ? "  (also the head)" : "");
}

static bool same_layer(const struct layer *x, const struct layer *y)
{
    return x->mixer == y->mixer && x->ffn == y->ffn;
}

/* One line for each run of equal layers. */
static void print_layers(const struct check *k)
{
    const struct model *m = k->m;
    struct arena *a = k->c->arena;
    printf("layers         %15zu  hidden %lld, vocabulary %lld\n", m->num_layers,
           (long long)m->hidden_size, (long long)m->vocab_size);
    for (size_t i = 0, end; i < m->num_layers; i = end) {
        const struct layer *y = &m->layer[i];
        for (end = i + 1; end < m->num_layers && same_layer(y, &m->layer[end]); end++) {
        }
        const char *range = end - i > 1 ? str_fmt(a, "%zu-%zu", i, end - 1) : str_fmt(a, "%zu", i);
        printf("  %-8s %s; %s\n", range, mixer_text(a, &m->mixer[y->mixer]),
               ffn_text(a, &m->ffn[y->ffn]));
    }
}

/* Sources of the sites of one block, equal neighbours merged: "2, 3 x5". */
static const char *sources_text(const struct check *k, struct block b)
{
    struct sb s = {0};
    for (size_t i = b.first, end; i < b.end; i = end) {
        size_t n = site_sources(&k->site[i]);
        for (end = i + 1; end < b.end && site_sources(&k->site[end]) == n; end++) {
        }
        sb_printf(&s, "%s%zu", i > b.first ? ", " : "", n);
        if (end - i > 1) sb_printf(&s, " x%zu", end - i);
    }
    return sb_take(&s, k->c->arena).p;
}

static void print_off(const struct check *k)
{
    bool any = false;
    for (size_t i = 1; i < k->num_sites; i++) {
        const struct site *s = &k->site[i];
        if (s->mixes) continue;
        if (!any) printf("  off, these read the plain sum of their sources:\n");
        printf("    %s\n", s->name);
        any = true;
    }
}

static void print_depth(const struct check *k)
{
    if (!k->num_sites) {
        printf("depth                 standard  every sublayer reads the running sum\n");
        return;
    }
    size_t blocks = k->m->num_boundaries + 1, shown = 0;
    printf("depth          %15zu  block%s of Attention Residuals over %zu sublayers\n", blocks,
           blocks == 1 ? "" : "s", 2 * k->m->num_layers);
    printf("  block  sublayers  sources each site reads\n");
    for (size_t i = 1; i <= blocks; i++) {
        struct block b = block_of(k->m, i);
        if (blocks > 40 && i > 3 && i + 3 <= blocks) { /* --json has all of them */
            if (!shown++) printf("    ...\n");
            continue;
        }
        printf("  %5zu  %9s  %s\n", i, str_fmt(k->c->arena, "%zu-%zu", b.first, b.end - 1),
               sources_text(k, b));
    }
    printf("  readout           %3zu\n", site_sources(&k->site[k->num_sites - 1]));
    print_off(k);
}

static void print_bytes(const struct check *k, const char *what, uint64_t n, const char *more)
{
    if (n)
        printf("  %-12s %15s%s%s\n", what, cli_bytes(k->c->arena, (double)n), *more ? "  " : "",
               more);
}

static void print_caches(const struct check *k)
{
    const struct survey *v = k->v;
    struct arena *a = k->c->arena;
    printf("cache            a sequence of %s tokens (serve.max_context)\n",
           cli_count(a, v->served.context));
    for (int i = 0; i < CACHES; i++) {
        int64_t n = (int64_t)v->cache[i];
        print_bytes(k, cache_kind_name((enum cache_kind)i), v->cache[i],
                    cache_paged((enum cache_kind)i)
                        ? str_fmt(a, "%s bytes a token", cli_count(a, n / v->served.context))
                        : "");
    }
    const struct caches *s = &v->served;
    print_bytes(k, "served", s->bytes,
                str_fmt(a, "%s tokens in pages%s", cli_count(a, s->pages * IR_PAGE),
                        s->states > 1 ? str_fmt(a, ", %s states", cli_count(a, s->states)) : ""));
}

static void print_floor(const struct check *k)
{
    struct sb s = {0};
    kinds_print(k->floor, &s);
    fputs(s.p, stdout);
    sb_free(&s);
}

static void print_costs(const struct check *k)
{
    const struct survey *v = k->v;
    struct arena *a = k->c->arena;
    printf("FLOPs per token  T %lld\n", (long long)v->T);
    printf("  forward      %15s\n", cli_count(a, (int64_t)v->forward_flops));
    printf("  training     %15s  (6 x active parameters: %s)\n",
           cli_count(a, (int64_t)v->train_flops), cli_count(a, 6 * v->active));
    print_caches(k);
    printf("memory           %s, B %lld, T %lld%s\n", v->train ? "training" : "forward",
           (long long)v->B, (long long)v->T, v->train ? "" : " (the spec has no train section)");
    print_bytes(k, "weights", v->memory.weights, "");
    print_bytes(k, "gradients", v->memory.gradients, "");
    print_bytes(k, "optimizer", v->memory.optimizer, "");
    print_bytes(k, "sums", v->memory.micro_sums, "partial gradients of micro-batches");
    print_bytes(k, "activations", v->memory.activations, "");
    print_bytes(k, "inputs", v->memory.inputs, "");
    print_bytes(k, "library", v->memory.library, "cuBLAS");
    if (!k->verdict) {
        print_bytes(k, "threads", v->memory.threads,
                    str_fmt(a, "scratch of %u", v->memory.num_threads));
        print_bytes(k, "graphs", (uint64_t)v->graph_bytes, "the compiler's own");
    }
    print_bytes(k, "peak", v->memory.peak, "");
    if (k->verdict) printf("device         %s\n               %s\n", k->verdict, k->serving);
    if (k->floor) print_floor(k);
}

/* ---- JSON ---- */

static json_t *json_bytes(const struct survey *v)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "program",
                     v->train ? "train" : "forward", "B", (json_int_t)v->B, "T", (json_int_t)v->T,
                     "weights", (json_int_t)v->memory.weights, "gradients",
                     (json_int_t)v->memory.gradients, "optimizer", (json_int_t)v->memory.optimizer,
                     "micro_batch_sums", (json_int_t)v->memory.micro_sums, "activations",
                     (json_int_t)v->memory.activations, "inputs", (json_int_t)v->memory.inputs,
                     "threads", (json_int_t)v->memory.threads, "graphs", (json_int_t)v->graph_bytes,
                     "peak", (json_int_t)v->memory.peak);
}

static json_t *json_cache(const struct survey *v)
{
    uint64_t total = 0;
    json_t *all = json_pack("{s:I}", "context", (json_int_t)v->served.context);
    for (int i = 0; i < CACHES; i++) {
        total += v->cache[i];
        json_object_set_new(all, cache_kind_name((enum cache_kind)i),
                            json_integer((json_int_t)v->cache[i]));
    }
    json_object_set_new(all, "total", json_integer((json_int_t)total));
    json_object_set_new(
        all, "served",
        json_pack("{s:I, s:I, s:I}", "tokens", (json_int_t)(v->served.pages * IR_PAGE), "states",
                  (json_int_t)v->served.states, "bytes", (json_int_t)v->served.bytes));
    return all;
}

static json_t *json_depth(const struct check *k)
{
    json_t *blocks = json_array(), *sites = json_array();
    for (size_t i = 1; k->num_sites && i <= k->m->num_boundaries + 1; i++) {
        struct block b = block_of(k->m, i);
        json_array_append_new(blocks, json_pack("{s:I, s:I}", "first", (json_int_t)b.first, "last",
                                                (json_int_t)b.end - 1));
    }
    for (size_t i = 0; i < k->num_sites; i++) {
        const struct site *s = &k->site[i];
        json_array_append_new(sites, json_pack("{s:s, s:I, s:b, s:b}", "site", s->name, "sources",
                                               (json_int_t)site_sources(s), "partial", s->partial,
                                               "mixes", s->mixes));
    }
    return json_pack("{s:s, s:o, s:o}", "residual",
                     spec_enum_name("residual_type", (int)k->m->residual), "blocks", blocks,
                     "sites", sites);
}

static json_t *json_layers(const struct check *k)
{
    json_t *layers = json_array();
    for (size_t i = 0; i < k->m->num_layers; i++) {
        const struct layer *y = &k->m->layer[i];
        json_array_append_new(layers, json_pack("{s:s, s:s}", "mixer", k->m->mixer[y->mixer].name,
                                                "ffn", k->m->ffn[y->ffn].name));
    }
    return layers;
}

static void print_json(const struct check *k)
{
    const struct survey *v = k->v;
    json_t *params =
        json_pack("{s:I, s:I}", "total", (json_int_t)v->total, "active", (json_int_t)v->active);
    for (int p = 0; p < PARTS; p++)
        json_object_set_new(params, survey_part_name((enum survey_part)p),
                            json_integer(v->part[p]));
    json_t *all = json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:{s:f, s:f, s:f}}", "name", k->m->name,
                            "parameters", params, "layers", json_layers(k), "depth", json_depth(k),
                            "memory", json_bytes(v), "cache", json_cache(v), "flops_per_token",
                            "forward", v->forward_flops, "training", v->train_flops, "six_active",
                            6.0 * (double)v->active);
    if (k->verdict)
        json_object_set_new(all, "device",
                            json_pack("{s:b, s:s, s:{s:I, s:I, s:I, s:s}}", "fits", k->fits,
                                      "verdict", k->verdict, "serving", "weights",
                                      (json_int_t)v->serving.weights, "caches",
                                      (json_int_t)v->serving.caches, "activations",
                                      (json_int_t)v->serving.activations, "verdict", k->serving));
    if (k->floor) json_object_set_new(all, "floor", kinds_json(k->floor));
    if (!all || json_dumpf(all, stdout, JSON_INDENT(2))) BUG("no JSON");
    putchar('\n');
    json_decref(all);
}

/* ---- command ---- */

static const char *short_count(struct arena *a, int64_t n)
{
    if (n >= 1000000000) return str_fmt(a, "%.2f B", (double)n / 1e9);
    if (n >= 1000000) return str_fmt(a, "%.2f M", (double)n / 1e6);
    if (n >= 10000) return str_fmt(a, "%.0f K", (double)n / 1e3);
    return cli_count(a, n);
}

static void draw(const struct check *k, const char *path)
{
    struct sb s = {0};
    struct arena *a = k->c->arena;
    const char *active = "";
    if (k->v->part[PART_experts]) active = str_fmt(a, " (%s active)", short_count(a, k->v->active));
    draw_model(a, k->m, str_fmt(a, "%s parameters%s", short_count(a, k->v->total), active), &s);
    int e = io_write_atomic(path, s.p, s.n);
    if (e)
        cli_fail(e == ENOSPC || e == EIO ? RT_machine : RT_user, "cannot write '%s': %s", path,
                 strerror(e));
    sb_free(&s);
}

int cmd_check(int argc, char **argv)
{
    struct cli c = {0};
    const char *svg = NULL, *device = NULL;
    bool json = false, floor = false;
    int64_t threads = 0;
    struct floor_rates rates = FLOOR_H200;
    const char *ceilings = NULL;
    cli_parse(&c, argc, argv, help, 1,
              CLI_OPTIONS({"json", CLI_flag, &json}, {"draw", CLI_text, &svg},
                          {"device", CLI_text, &device}, {"threads", CLI_int, &threads},
                          {"floor", CLI_flag, &floor}, {"ceilings", CLI_text, &ceilings}));
    if (!floor_read(ceilings, &rates))
        cli_fail(RT_usage, "--ceilings is three positive numbers, as 4.3,790,2");
    if (floor && !device) cli_fail(RT_usage, "--floor needs --device: floors are those of a GPU");
    if (threads < 0 || threads > 1024) cli_fail(RT_usage, "--threads must be from 1 to 1024");
    const struct model *m = cli_model(&c, c.arg.p[0]);
    const struct fit fit = device ? fit_open(&c, device) : (struct fit){0};
    const struct survey v = survey_model(&c, m, threads, fit.arch);
    struct check k = {.c = &c, .m = m, .v = &v, .fits = true};
    if (device) {
        bool serves;
        k.verdict = fit_verdict(&c, m, &fit, &v, &k.fits);
        k.serving = fit_serving(&c, &fit, &v, &serves);
        if (!v.train) k.fits = serves; /* nothing else is wanted of such a spec */
    }
    if (floor) k.floor = survey_kinds(&c, m, fit.arch, &rates);
    k.site = sites_of(c.arena, m, &k.num_sites);
    if (json) {
        print_json(&k);
    } else {
        printf("%s is fine (%s)\n", m->name, m->path);
        print_parameters(&k);
        print_layers(&k);
        print_depth(&k);
        print_costs(&k);
    }
    if (svg) draw(&k, svg);
    return k.fits ? 0 : EXIT_USER;
}
