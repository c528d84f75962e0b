#include "compiler/run.h"
#include "compiler/tokens.h"
#include "runtime/sample.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static const char help[] =
    "usage: strata generate SPEC --weights W (--prompt TEXT | --prompt-ids 1,2,3) [--max-tokens "
    "N]\n"
    "                       [--temperature X] [--top-p P] [--seed S] [--print-ids]\n\n"
    "Continues a prompt and prints prompt and continuation as they come. Temperature 0 (the "
    "default) is\n"
    "greedy. Stops at the tokenizer's eos and stop ids, or after --max-tokens.\n\n"
    "  strata generate examples/tiny-moe/spec.yaml --weights out/tiny-moe --prompt 'And God "
    "said'\n\n"
    "  --weights W        safetensors file, Hugging Face folder, step folder or run folder\n"
    "  --max-tokens N     default 256\n"
    "  --temperature X    default 0; 0.8 is a good start\n"
    "  --top-p P          keep the most likely tokens that make up P; default 1\n"
    "  --seed S           of sampling; default 0\n"
    "  --print-ids        the new token ids on one line, and nothing else\n" RUN_HELP;

enum { STEP = 64 }; /* contexts are padded to a multiple, so that few plans serve all lengths */

struct gen {
    struct run r;
    struct tokenizer *tok; /* NULL: ids only */
    struct program *forward;
    struct tok_ids text; /* prompt and what came after it */
    bool print_ids;
};

static void parse_ids(struct gen *g, const char *s)
{
    struct cli *c = g->r.cli;
    for (char *end; *s; s = *end == ',' ? end + 1 : end) {
        long long id = strtoll(s, &end, 10);
        if (end == s || (*end && *end != ',') || (*end == ',' && !end[1]))
            cli_fail(RT_user, "--prompt-ids needs numbers with commas between, as 1,2,3");
        if (id < 0 || id >= g->r.model->vocab_size)
            cli_fail(RT_user, "id %lld is not in the vocabulary of %lld", id,
                     (long long)g->r.model->vocab_size);
        cli_check(c, tok_ids_add(&g->text, (int32_t)id, &c->err));
    }
}

/* `weights` is the file or folder of the weights: a tokenizer that was saved lies there too. */
static void read_prompt(struct gen *g, const char *prompt, const char *ids, const char *weights)
{
    struct cli *c = g->r.cli;
    const struct model *m = g->r.model;
    struct stat st;
    if (!stat(weights, &st) && !S_ISDIR(st.st_mode)) weights = io_dirname(c->arena, weights);
    if (prompt || !g->print_ids) cli_check(c, tokens_open(m, weights, &g->tok, &c->err));
    if (prompt && !g->tok)
        cli_fail(RT_user, "the spec names no tokenizer, so the prompt must come as --prompt-ids");
    if (prompt && m->tokenizer.bos >= 0)
        cli_check(c, tok_ids_add(&g->text, (int32_t)m->tokenizer.bos, &c->err));
    if (prompt) cli_check(c, tokenizer_encode(g->tok, str_of(prompt), &g->text, &c->err));
    if (ids) parse_ids(g, ids);
    if (!g->text.n) cli_fail(RT_user, "the prompt is empty");
}

/* Logits after the last token. Every token is computed with the whole context in front of it;
 * padding behind it cannot be seen by it. */
static const float *logits(struct gen *g)
{
    int64_t T = ((int64_t)g->text.n + STEP - 1) / STEP * STEP;
    struct plan *p = program_plan(g->forward, 1, T);
    cli_check(g->r.cli, session_compile(g->r.session, NULL, &g->r.cli->err));
    int32_t *in = plan_value(p, "tokens")->p;
    memset(in, 0, (size_t)T * sizeof *in);
    memcpy(in, g->text.p, g->text.n * sizeof *in);
    plan_run(p);
    const struct plan_value *v = plan_value(p, "logits");
    return (const float *)v->p + ((int64_t)g->text.n - 1) * v->dims[1];
}

static bool stops(const struct model *m, int32_t id)
{
    if (m->tokenizer.type == TOK_none) return false;
    for (size_t i = 0; i < m->tokenizer.num_stop; i++)
        if (m->tokenizer.stop[i] == id) return true;
    return m->tokenizer.eos == id;
}

static void show(struct gen *g, struct tok_stream *s, int32_t id, bool first)
{
    struct sb out = {0};
    if (g->print_ids || !g->tok)
        sb_printf(&out, first ? "%d" : " %d", id);
    else
        tok_stream_add(s, g->tok, id, &out);
    if (out.n) fwrite(out.p, 1, out.n, stdout);
    fflush(stdout);
    sb_free(&out);
}

static void generate(struct gen *g, const struct sampler *s, int64_t max)
{
    struct cli *c = g->r.cli;
    size_t vocab = (size_t)g->r.model->vocab_size;
    struct sample_slot *slots = NEW(c->arena, struct sample_slot, vocab);
    struct tok_stream stream = {.n = 0};
    for (size_t i = 0; i < g->text.n && !g->print_ids && g->tok; i++)
        show(g, &stream, g->text.p[i], false);
    for (int64_t i = 0; i < max; i++) {
        int32_t id;
        cli_check(c, sample_token(s, logits(g), vocab, g->text.n, slots, &id, &c->err));
        if (stops(g->r.model, id)) break;
        cli_check(c, tok_ids_add(&g->text, id, &c->err));
        show(g, &stream, id, i == 0);
    }
    struct sb rest = {0};
    tok_stream_end(&stream, &rest);
    if (rest.n) fwrite(rest.p, 1, rest.n, stdout);
    sb_free(&rest);
    putchar('\n');
}

int cmd_generate(int argc, char **argv)
{
    struct cli c = {0};
    struct gen g = {0};
    struct run_options o = {0};
    struct sampler s = {.top_p = 1};
    char found[PATH_MAX];
    const char *weights = NULL, *prompt = NULL, *ids = NULL;
    int64_t max = 256, seed = 0;
    cli_parse(&c, argc, argv, help, 1,
              CLI_OPTIONS({"weights", CLI_text, &weights}, {"prompt", CLI_text, &prompt},
                          {"prompt-ids", CLI_text, &ids}, {"max-tokens", CLI_int, &max},
                          {"temperature", CLI_num, &s.temperature}, {"top-p", CLI_num, &s.top_p},
                          {"seed", CLI_int, &seed}, {"print-ids", CLI_flag, &g.print_ids},
                          RUN_OPTIONS(o)));
    if (!weights) cli_fail((enum rt_status)EXIT_USAGE, "generate needs --weights");
    if (!prompt == !ids)
        cli_fail((enum rt_status)EXIT_USAGE, "generate needs either --prompt or --prompt-ids");
    if (!(s.temperature >= 0) || !(s.top_p > 0 && s.top_p <= 1))
        cli_fail((enum rt_status)EXIT_USAGE, "--temperature must be at least 0, --top-p in (0, 1]");
    if (max < 0 || seed < 0)
        cli_fail((enum rt_status)EXIT_USAGE, "--max-tokens and --seed must be at least 0");
    s.seed = (uint64_t)seed;
    const struct model *m = cli_model(&c, c.arg.p[0]);
    run_open(&g.r, &c, m, &o);
    const struct build_options plain = {0};
    g.forward = run_program(&g.r, BUILD_forward, &plain, 1, STEP);
    run_ready(&g.r, program_plan(g.forward, 1, STEP), NULL);
    run_load(&g.r, weights, found);
    read_prompt(&g, prompt, ids, found);
    generate(&g, &s, max);
    run_close(&g.r);
    return 0;
}
