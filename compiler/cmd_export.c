#include "compiler/cli.h"
#include "compiler/hf_config.h"
#include "compiler/run.h"
#include "compiler/tokens.h"
#include "runtime/checkpoint.h"
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char help[] =
    "usage: strata export SPEC --weights W -o DIR [--dtype f32|bf16] [--shard-bytes N]\n"
    "                     [--set KEY=VALUE]\n\n"
    "Writes a folder that loaders of Hugging Face checkpoints read: config.json, safetensors,\n"
    "generation_config.json and the tokenizer's files. DIR appears whole or not at all. What no\n"
    "family (llama, mistral, qwen3, kimi_linear) can say is refused, naming the key of the "
    "spec.\n\n"
    "  strata export specs/stories260k.yaml --weights out/step-100 -o stories\n"
    "  strata import stories -o again.yaml\n\n"
    "  --weights W        safetensors file, Hugging Face folder, step folder or run folder\n"
    "  --dtype NAME       f32 (default) or bf16; gates, convolutions and router biases stay f32\n"
    "  --shard-bytes N    most bytes of tensors in a file; default 5000000000\n"
    "  --set KEY=VALUE    change a value of the spec, as model.residual.eps=1e-5\n";

enum { MAX_CONFIG = 16 << 20 };

/* What is written, tensor by tensor, so that models larger than memory can be. */
struct export
{
    struct cli *c;
    const struct model *m;
    const char *dir, *stage; /* the folder, and the one beside it that becomes it */
    bool bf16;
    int64_t shard_bytes;
    const struct param_part **part; /* per tensor */
    const struct weight_source *source;
    VEC(struct tf_tensor) tensor;
    VEC(size_t) shard; /* first tensor of each */
    size_t at;         /* of the shard being written */
    float *buffer;
    uint16_t *half;
};

static void check(struct export *e, enum rt_status st)
{
    if (st != RT_ok && e->stage) io_remove_tree(e->stage);
    cli_check(e->c, st);
}

static void put(struct export *e, const char *name, const void *data, size_t n)
{
    const char *path = io_join(e->c->arena, e->stage, name);
    int code = io_write_atomic(path, data, n);
    if (code)
        check(e, rt_fail(&e->c->err, RT_machine, "cannot write '%s': %s", path, strerror(code)));
}

/* Kept in float32: exponents and gates, what is added to scores, and what is tiny. */
static bool stays_f32(const char *name)
{
    static const char *const end[] = {".A_log", ".dt_bias", "conv1d.weight", ".o_norm.weight",
                                      ".e_score_correction_bias"};
    for (size_t i = 0; i < sizeof end / sizeof *end; i++)
        if (str_ends(str_of(name), end[i])) return true;
    return false;
}

static void plan_tensors(struct export *e, const struct params *ps)
{
    struct arena *a = e->c->arena;
    int64_t most = 0, bytes = 0;
    size_t n = 0;
    for (size_t i = 0; i < ps->n; i++) n += ps->p[i].num_parts;
    e->part = NEW(a, const struct param_part *, n);
    for (size_t i = 0; i < ps->n; i++)
        for (size_t k = 0; k < ps->p[i].num_parts; k++) {
            const struct param_part *q = &ps->p[i].part[k];
            struct tf_tensor t = part_tensor(q);
            int64_t count = part_count(q);
            if (e->bf16 && !stays_f32(q->tensor)) t.dtype = TF_BF16;
            if (q->per_head) t.rank = 4, t.shape[2] = t.shape[0], t.shape[0] = 1;
            if (q->per_head) t.shape[1] = t.shape[3] = 1;
            int64_t size = count * (int64_t)tf_dtype_size(t.dtype);
            if (!e->shard.n || bytes + size > e->shard_bytes) {
                vec_push(a, &e->shard, e->tensor.n);
                bytes = 0;
            }
            bytes += size;
            if (count > most) most = count;
            e->part[e->tensor.n] = q;
            vec_push(a, &e->tensor, t);
        }
    e->buffer = NEW(a, float, most);
    e->half = NEW(a, uint16_t, e->bf16 ? most : 0);
}

static const void *values(void *ctx, size_t i)
{
    struct export *e = ctx;
    i += e->at;
    size_t n = (size_t)part_count(e->part[i]);
    check(e, weight_read(e->part[i], &e->source[i], e->buffer, &e->c->err));
    if (e->tensor.p[i].dtype == TF_F32) return e->buffer;
    tf_to_bf16(e->buffer, n, e->half);
    return e->half;
}

static void write_shards(struct export *e)
{
    struct arena *a = e->c->arena;
    const struct tf_meta meta = {"format", "pt"};
    struct sb index = {0};
    long long total = 0;
    for (size_t s = 0; s < e->shard.n; s++) {
        const char *name = e->shard.n == 1
                               ? "model.safetensors"
                               : str_fmt(a, "model-%05zu-of-%05zu.safetensors", s + 1, e->shard.n);
        e->at = e->shard.p[s];
        size_t end = s + 1 < e->shard.n ? e->shard.p[s + 1] : e->tensor.n;
        const struct tf_content content = {e->tensor.p + e->at, end - e->at, &meta, 1, values, e};
        check(e, tensorfile_write(io_join(a, e->stage, name), &content, &e->c->err));
        for (size_t i = e->at; i < end; i++) {
            total += part_count(e->part[i]) * (long long)tf_dtype_size(e->tensor.p[i].dtype);
            sb_printf(&index, "%s\n    \"%s\": \"%s\"", i ? "," : "", e->tensor.p[i].name, name);
        }
    }
    const char *text =
        str_fmt(a, "{\n  \"metadata\": {\"total_size\": %lld},\n  \"weight_map\": {%s\n  }\n}\n",
                total, index.p);
    if (e->shard.n > 1) put(e, "model.safetensors.index.json", text, strlen(text));
    sb_free(&index);
}

static void write_generation(struct export *e)
{
    const struct tokenizer_spec *t = &e->m->tokenizer;
    struct sb s = {0};
    sb_str(&s, "{\n  \"_from_model_config\": true");
    if (t->bos >= 0) sb_printf(&s, ",\n  \"bos_token_id\": %lld", (long long)t->bos);
    if (t->eos >= 0 && !t->num_stop)
        sb_printf(&s, ",\n  \"eos_token_id\": %lld", (long long)t->eos);
    const char *before = ",\n  \"eos_token_id\": [";
    if (t->eos >= 0 && t->num_stop)
        sb_printf(&s, "%s%lld", before, (long long)t->eos), before = ", ";
    for (size_t i = 0; i < t->num_stop; i++, before = ", ")
        sb_printf(&s, "%s%lld", before, (long long)t->stop[i]);
    sb_str(&s, t->num_stop ? "]\n}\n" : "\n}\n");
    put(e, "generation_config.json", s.p, s.n);
    sb_free(&s);
}

/* tokenizer_config.json: what there is, and whether bos goes before every text. */
static void write_tokenizer_config(struct export *e, struct str text, bool hf)
{
    struct arena *a = e->c->arena;
    const char *path = io_join(a, io_dirname(a, e->m->tokenizer.path), "tokenizer_config.json");
    if (!text.n && io_read(a, path, MAX_CONFIG, &text)) text = STR("{}");
    json_error_t je;
    json_t *root = json_loadb(text.p, text.n, 0, &je);
    if (!root) root = json_loadb(text.p, text.n, JSON_DECODE_INT_AS_REAL, &je); /* as 10^30 */
    if (!json_is_object(root))
        check(e, rt_fail(&e->c->err, RT_user, "'%s' is no object of JSON: %s", path, je.text));
    json_object_set_new(root, "add_bos_token", json_boolean(e->m->tokenizer.bos >= 0));
    if (hf && !json_object_get(root, "tokenizer_class"))
        json_object_set_new(root, "tokenizer_class", json_string("PreTrainedTokenizerFast"));
    char *out = json_dumps(root, JSON_INDENT(2));
    if (!out) check(e, rt_fail(&e->c->err, RT_machine, "no memory for tokenizer_config.json"));
    put(e, "tokenizer_config.json", out, strlen(out));
    free(out);
    json_decref(root);
}

/* The tokenizer's files under the names that loaders look for; `weights` may be a step folder that
 * holds them. */
static void write_tokenizer(struct export *e, const char *weights)
{
    const struct tokenizer_spec *t = &e->m->tokenizer;
    struct cli *c = e->c;
    struct tokenizer *tok;
    struct str config = {0};
    bool hf = false;
    if (t->type == TOK_bytes || t->type == TOK_chars)
        diag_add(c->diag, D_hf_left_out, (struct span){0}, "a tokenizer of bytes or chars");
    if (t->type != TOK_file) return;
    check(e, tokens_open(e->m, weights, &tok, &c->err));
    for (int i = 0; i < TOK_FILES && tok->ops->file; i++) {
        const char *name = tok->ops->file(tok, i), *rank = "tokenizer.tiktoken";
        struct sb s = {0};
        if (!name) break;
        tok->ops->save(tok, i, &s);
        if (str_starts(str_of(name), rank))
            name = str_fmt(c->arena, "tiktoken.model%s", name + strlen(rank));
        hf |= !strcmp(name, "tokenizer.json");
        struct str text = sb_take(&s, c->arena);
        if (!strcmp(name, "tokenizer_config.json"))
            config = text;
        else
            put(e, name, text.p, text.n);
    }
    tokenizer_close(tok);
    write_tokenizer_config(e, config, hf);
}

/* A folder that is there may be empty only: it is replaced. */
static void refuse_used(const char *dir)
{
    DIR *d = opendir(dir);
    if (!d && errno == ENOENT) return;
    if (!d) cli_fail(RT_user, "cannot write '%s': %s", dir, strerror(errno));
    size_t n = 0;
    while (readdir(d)) n++;
    closedir(d);
    if (n > 2) cli_fail(RT_user, "'%s' is a folder that holds files; name a new one", dir);
}

static void make_stage(struct export *e)
{
    struct arena *a = e->c->arena;
    size_t n = strlen(e->dir);
    while (n > 1 && e->dir[n - 1] == '/') n--;
    e->dir = str_dup(a, (struct str){e->dir, n});
    refuse_used(e->dir);
    e->stage = str_fmt(a, "%s.export-%ld", e->dir, (long)getpid());
    int code = io_mkdirs(e->stage);
    if (code) cli_fail(RT_user, "cannot write '%s': %s", e->dir, strerror(code));
}

int cmd_export(int argc, char **argv)
{
    struct cli c = {0};
    struct export e = {.c = &c, .shard_bytes = 5000000000};
    struct tensorfile *f;
    char real[PATH_MAX];
    const char *weights = NULL, *dtype = "f32";
    cli_parse(&c, argc, argv, help, 1,
              CLI_OPTIONS({"output", CLI_text, &e.dir}, {"weights", CLI_text, &weights},
                          {"dtype", CLI_text, &dtype}, {"shard-bytes", CLI_int, &e.shard_bytes}));
    if (!e.dir || !*e.dir || !weights) cli_fail(RT_usage, "export needs --weights W and -o DIR");
    e.bf16 = !strcmp(dtype, "bf16");
    if (!e.bf16 && strcmp(dtype, "f32") != 0) cli_fail(RT_usage, "--dtype must be f32 or bf16");
    if (e.shard_bytes < 1) cli_fail(RT_usage, "--shard-bytes must be at least 1");
    e.m = cli_model(&c, c.arg.p[0]);
    const char *config = hf_config_write(c.arena, c.diag, e.m, e.bf16 ? "bfloat16" : "float32");
    if (!config) {
        cli_diagnostics(&c);
        cli_fail(RT_user, "%s is not exported", c.arg.p[0]);
    }
    const struct params *ps = params_of(c.arena, e.m);
    cli_check(&c, ckpt_weights(weights, run_refused, &c, real, &c.err));
    cli_check(&c, tensorfile_open(real, &f, &c.err));
    e.source = weights_match(c.arena, ps, f, real, c.diag);
    if (!e.source) {
        cli_diagnostics(&c);
        cli_fail(RT_user, "%s does not fit the model; nothing was written", real);
    }
    plan_tensors(&e, ps);
    make_stage(&e);
    put(&e, "config.json", config, strlen(config));
    write_generation(&e);
    write_tokenizer(&e, real);
    write_shards(&e);
    tensorfile_close(f);
    if (rename(e.stage, e.dir))
        check(&e, rt_fail(&c.err, RT_machine, "cannot name '%s': %s", e.dir, strerror(errno)));
    io_sync_dir(io_dirname(c.arena, e.dir));
    cli_diagnostics(&c);
    fprintf(stderr, "%s: %zu tensors in %zu file%s, %s parameters\n", e.dir, e.tensor.n, e.shard.n,
            e.shard.n == 1 ? "" : "s", cli_count(c.arena, params_total(ps)));
    return 0;
}
