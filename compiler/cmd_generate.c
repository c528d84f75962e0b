#include "compiler/run.h"
#include "compiler/served.h"
#include "compiler/tokens.h"
#include "runtime/checkpoint.h"
#include "runtime/generate.h"
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
    "  --weights W        safetensors file, Hugging Face folder, step folder or run "
    "folder\n" GENERATE_HELP RUN_DTYPE_HELP RUN_DEVICE_HELP RUN_HELP;

struct gen {
    struct run r;
    struct tokenizer *tok; /* NULL: ids only */
    struct lm *lm;
    struct generate g;
};

/* Ids that end a text. `weights` is the file or folder of the weights: a tokenizer that was saved
 * lies there too. */
static void open_tokenizer(struct gen *g, const struct generate_options *o, const char *weights)
{
    struct cli *c = g->r.cli;
    const struct model *m = g->r.model;
    struct stat st;
    if (!stat(weights, &st) && !S_ISDIR(st.st_mode)) weights = io_dirname(c->arena, weights);
    /* where the spec does not, the file says where texts end */
    bool ends = m->tokenizer.type == TOK_file && m->tokenizer.eos < 0 && !m->tokenizer.num_stop;
    if (o->prompt || !o->print_ids || ends) cli_check(c, tokens_open(m, weights, &g->tok, &c->err));
    g->g = (struct generate){.tok = g->tok, .bos = m->tokenizer.bos};
    g->g.stop = tokens_stops(m, g->tok, c->arena, &g->g.num_stop);
}

/* The model with room for the prompt and `max` more tokens. */
static void open_model(struct gen *g, int64_t max)
{
    int64_t limit = g->r.model->serve_max_context, prompt = (int64_t)g->g.text.n;
    if (max > limit || prompt > limit - max)
        cli_fail(RT_user,
                 "a prompt of %lld tokens and --max-tokens %lld do not fit in serve.max_context, "
                 "which is %lld\nhint: --set serve.max_context=%lld",
                 (long long)prompt, (long long)max, (long long)limit, (long long)(prompt + max));
    int64_t pages = build_pages(prompt + max);
    struct served_options o = {.batch = 1, .lazy = true};
    o.build = (struct build_options){.pages = pages, .states = 1, .context = pages * IR_PAGE};
    o.program = run_program(&g->r, BUILD_decode, &o.build, 1, 1);
    for (int64_t left = prompt; left > 0; left -= lm_cut(left, LM_CHUNK))
        program_plan(o.program, 1, lm_cut(left, LM_CHUNK));
    run_serve(&g->r, &o, &g->lm);
}

int cmd_generate(int argc, char **argv)
{
    struct cli c = {0};
    struct gen g = {0};
    struct run_options o = {.no_library = true}; /* a prompt and a token alone: the same sums */
    struct generate_options what = GENERATE_DEFAULTS;
    char found[PATH_MAX];
    const char *weights = NULL;
    cli_parse(&c, argc, argv, help, 1,
              CLI_OPTIONS({"weights", CLI_text, &weights}, GENERATE_OPTIONS(what), RUN_DTYPE(o),
                          RUN_DEVICE(o), RUN_OPTIONS(o)));
    if (!weights) cli_fail(RT_usage, "generate needs --weights");
    const char *wrong = generate_wrong(&what);
    if (wrong) cli_fail(RT_usage, "%s", wrong);
    const struct model *m = cli_model(&c, c.arg.p[0]);
    run_open(&g.r, &c, m, &o);
    cli_check(&c, ckpt_weights(weights, run_refused, &c, found, &c.err));
    open_tokenizer(&g, &what, found);
    cli_check(&c, generate_prompt(&g.g, &what, m->vocab_size, &c.err));
    open_model(&g, what.max);
    run_load(&g.r, found, NULL);
    generate_begin(&g.g, c.arena, g.lm);
    cli_check(&c, generate_run(&g.g, &what, stdout, &c.err));
    generate_end(&g.g);
    g.lm->ops->close(g.lm);
    tokenizer_close(g.tok);
    run_close(&g.r);
    return 0;
}
