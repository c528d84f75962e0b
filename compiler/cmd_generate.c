#include "compiler/run.h"
#include "compiler/served.h"
#include "compiler/tokens.h"
#include "runtime/checkpoint.h"
#include "runtime/mem.h"
#include "runtime/sample.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static const char help[] =
    "usage: strata generate SPEC --weights W (--prompt TEXT | --prompt-ids 1,2,3) [--max-tokens "
    "N]\n"
    "                       [--temperature X] [--top-p P] [--seed S] [--print-ids] [--stats]\n\n"
    "Continues a prompt and prints prompt and continuation as they come. Temperature 0 (the "
    "default) is\n"
    "greedy. Stops at the tokenizer's eos and stop ids, or after --max-tokens. Prompt and new "
    "tokens\n"
    "together are at most serve.max_context. The prompt is read in pieces of 256 tokens, then "
    "every\n"
    "token is one step over the caches of those before it, with the logits of the whole text at "
    "once.\n\n"
    "  strata generate examples/tiny-moe/spec.yaml --weights out/tiny-moe --prompt 'And God "
    "said'\n\n"
    "  --weights W        safetensors file, Hugging Face folder, step folder or run folder\n"
    "  --max-tokens N     default 256\n"
    "  --temperature X    default 0; 0.8 is a good start\n"
    "  --top-p P          keep the most likely tokens that make up P; default 1\n"
    "  --seed S           of sampling; default 0\n"
    "  --print-ids        the new token ids on one line, and nothing else\n"
    "  --stats            time to the first token and tokens per second, on standard "
    "error\n" RUN_DEVICE_HELP RUN_HELP;

struct gen {
    struct run r;
    struct tokenizer *tok; /* NULL: ids only */
    struct lm *lm;
    int32_t *pages;      /* of the only sequence: all of them */
    struct tok_ids text; /* prompt and what came after it */
    size_t known;        /* how many of them are in the caches */
    bool print_ids, stats;
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
    /* where the spec does not, the file says where texts end */
    bool ends = m->tokenizer.type == TOK_file && m->tokenizer.eos < 0 && !m->tokenizer.num_stop;
    if (prompt || !g->print_ids || ends) cli_check(c, tokens_open(m, weights, &g->tok, &c->err));
    if (prompt && !g->tok)
        cli_fail(RT_user, "the spec names no tokenizer, so the prompt must come as --prompt-ids");
    if (prompt && m->tokenizer.bos >= 0)
        cli_check(c, tok_ids_add(&g->text, (int32_t)m->tokenizer.bos, &c->err));
    if (prompt) cli_check(c, tokenizer_encode(g->tok, str_of(prompt), &g->text, &c->err));
    if (ids) parse_ids(g, ids);
    if (!g->text.n) cli_fail(RT_user, "the prompt is empty");
}

/* The model with room for the prompt and `max` more tokens. */
static void open_model(struct gen *g, int64_t max)
{
    int64_t limit = g->r.model->serve_max_context, prompt = (int64_t)g->text.n;
    if (max > limit || prompt > limit - max)
        cli_fail(RT_user,
                 "a prompt of %lld tokens and --max-tokens %lld do not fit in serve.max_context, "
                 "which is %lld\nhint: --set serve.max_context=%lld",
                 (long long)prompt, (long long)max, (long long)limit, (long long)(prompt + max));
    int64_t rest = prompt % LM_CHUNK, pages = build_pages(prompt + max);
    struct served_options o = {.session = g->r.session, .batch = 1, .lazy = true};
    o.build = (struct build_options){.pages = pages, .states = 1, .context = pages * IR_PAGE};
    o.program = run_program(&g->r, BUILD_decode, &o.build, 1, 1);
    struct plan *one = program_plan(o.program, 1, 1);
    if (prompt >= LM_CHUNK) program_plan(o.program, 1, LM_CHUNK);
    if (rest) program_plan(o.program, 1, rest);
    run_ready(&g->r, one, NULL);
    cli_check(g->r.cli, served_open(g->r.cli->arena, &o, &g->lm, &g->r.cli->err));
    g->pages = NEW(g->r.cli->arena, int32_t, pages);
    for (int32_t i = 0; i < pages; i++) g->pages[i] = i;
}

/* Logits after the last token: what the caches do not know yet goes through the program. */
static const float *logits(struct gen *g)
{
    static const int32_t state = 0;
    while (g->known < g->text.n) {
        size_t left = g->text.n - g->known, T = left < LM_CHUNK ? left : LM_CHUNK;
        int32_t past = (int32_t)g->known;
        const struct lm_call c = {1, (int64_t)T, g->text.p + g->known, &past, &state, g->pages};
        cli_check(g->r.cli, g->lm->ops->run(g->lm, &c, &g->r.cli->err));
        g->known += T;
    }
    return g->lm->ops->logits(g->lm);
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

/* Seconds to the first of `now` new tokens, and for those after it. */
static void show_stats(size_t prompt, size_t now, double first, double rest)
{
    fprintf(stderr, "first token after %.1f ms, a prompt of %zu tokens: %.0f tokens/s\n",
            1e3 * first, prompt, first > 0 ? (double)prompt / first : 0);
    if (now > 1)
        fprintf(stderr, "%zu more tokens in %.1f ms: %.1f tokens/s\n", now - 1, 1e3 * rest,
                rest > 0 ? (double)(now - 1) / rest : 0);
}

static void generate(struct gen *g, const struct sampler *s, int64_t max)
{
    struct cli *c = g->r.cli;
    size_t vocab = (size_t)g->r.model->vocab_size;
    struct sample_slot *slots = NEW(c->arena, struct sample_slot, vocab);
    struct tok_stream stream = {.n = 0};
    size_t bos = g->text.p[0] == g->r.model->tokenizer.bos; /* is not shown */
    for (size_t i = bos; i < g->text.n && !g->print_ids && g->tok; i++)
        show(g, &stream, g->text.p[i], false);
    double begin = mem_seconds(), first = begin;
    size_t prompt = g->text.n;
    for (int64_t i = 0; i < max; i++) {
        int32_t id;
        cli_check(c, sample_token(s, logits(g), vocab, g->text.n, slots, &id, &c->err));
        if (!i) first = mem_seconds();
        if (tokens_stop(g->r.model, g->tok, id)) break;
        cli_check(c, tok_ids_add(&g->text, id, &c->err));
        show(g, &stream, id, i == 0);
    }
    struct sb rest = {0};
    tok_stream_end(&stream, &rest);
    if (rest.n) fwrite(rest.p, 1, rest.n, stdout);
    sb_free(&rest);
    putchar('\n');
    if (g->stats) show_stats(prompt, g->text.n - prompt, first - begin, mem_seconds() - first);
}

int cmd_generate(int argc, char **argv)
{
    struct cli c = {0};
    struct gen g = {0};
    struct run_options o = {.no_library = true}; /* a prompt and a token alone: the same sums */
    struct sampler s = {.top_p = 1};
    char found[PATH_MAX];
    const char *weights = NULL, *prompt = NULL, *ids = NULL;
    int64_t max = 256, seed = 0;
    cli_parse(&c, argc, argv, help, 1,
              CLI_OPTIONS({"weights", CLI_text, &weights}, {"prompt", CLI_text, &prompt},
                          {"prompt-ids", CLI_text, &ids}, {"max-tokens", CLI_int, &max},
                          {"temperature", CLI_num, &s.temperature}, {"top-p", CLI_num, &s.top_p},
                          {"seed", CLI_int, &seed}, {"print-ids", CLI_flag, &g.print_ids},
                          {"stats", CLI_flag, &g.stats}, RUN_DEVICE(o), RUN_OPTIONS(o)));
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
    cli_check(&c, ckpt_weights(weights, run_refused, &c, found, &c.err));
    read_prompt(&g, prompt, ids, found);
    open_model(&g, max);
    run_load(&g.r, found, NULL);
    generate(&g, &s, max);
    g.lm->ops->close(g.lm);
    run_close(&g.r);
    return 0;
}
