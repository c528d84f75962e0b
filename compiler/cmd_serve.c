#include "compiler/caches.h"
#include "compiler/run.h"
#include "compiler/served.h"
#include "compiler/tokens.h"
#include "runtime/checkpoint.h"
#include "runtime/serve.h"
#include <stdio.h>
#include <sys/stat.h>
#include <xxhash.h>

static const char help[] =
    "usage: strata serve SPEC --weights W [--port N] ...\n\n"
    "Serves a model to clients of OpenAI's API: chat and text completions, streamed or not, and a "
    "page\n"
    "to chat at http://127.0.0.1:8080/. Sizes are those of the spec's serve section: sequences at "
    "once,\n"
    "tokens of one, tokens of the caches. SIGTERM or Ctrl-C lets answers finish, then ends it; a "
    "second\n"
    "one ends it now.\n\n"
    "  strata serve examples/tiny-moe/spec.yaml --weights out/tiny-moe\n"
    "  curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' \\\n"
    "    -d '{\"model\": \"tiny-moe\", \"prompt\": \"And God said\"}'\n\n"
    "  --weights W                safetensors file, Hugging Face folder, step folder or run "
    "folder\n";

struct server {
    struct run r;
    struct serve_options o;
    struct serve_model m;
    struct tokenizer *tok;
    struct lm *lm;
};

/* The text of --help: what is particular, the server's options, those of all commands. */
static const char *help_text(struct arena *a)
{
    struct sb s = {0};
    sb_str(&s, help);
    serve_help(&s);
    sb_str(&s, RUN_DTYPE_HELP RUN_DEVICE_HELP RUN_HELP);
    return sb_take(&s, a).p;
}

static void parse(struct server *s, struct cli *c, int argc, char **argv, const char **weights,
                  struct run_options *run)
{
    const struct cli_option own[] = {
        {"weights", CLI_text, weights}, RUN_DTYPE(*run), RUN_DEVICE(*run), RUN_OPTIONS(*run)};
    enum { OWN = sizeof own / sizeof *own };
    struct cli_option all[OWN + SERVE_ROWS];
    serve_defaults(&s->o);
    memcpy(all, own, sizeof own);
    size_t n = OWN + serve_rows(&s->o, all + OWN);
    struct arena *a = arena_open("help");
    cli_parse(c, argc, argv, help_text(a), 1, all, n);
    arena_close(a);
    if (!*weights) cli_fail(RT_usage, "serve needs --weights");
    cli_check(c, serve_check(&s->o, c->arena, &c->err));
}

/* The tokenizer, the template and the ids that end a text. */
static void open_texts(struct server *s, const char *weights)
{
    struct cli *c = s->r.cli;
    const struct model *m = s->r.model;
    struct stat st;
    if (!stat(weights, &st) && !S_ISDIR(st.st_mode)) weights = io_dirname(c->arena, weights);
    cli_check(c, tokens_open(m, weights, &s->tok, &c->err));
    if (!s->tok)
        cli_fail(RT_user, "the spec names no tokenizer, which a server needs\n"
                          "hint: add tokenizer: {path: FILE} to it");
    const char *chat = m->tokenizer.chat_template;
    s->m.stop = tokens_stops(m, s->tok, c->arena, &s->m.num_stop);
    s->m.tok = s->tok;
    s->m.bos = m->tokenizer.bos;
    s->m.chat = chat ? chat_template_find(chat) : NULL;
    s->m.name = m->name ? m->name : "strata";
    s->m.program = "strata";
}

static void open_model(struct server *s)
{
    const struct model *m = s->r.model;
    const struct caches size = caches_served(m, s->r.params, s->r.device != NULL);
    struct served_options o = {.batch = m->serve_max_sequences};
    o.build = (struct build_options){.depth_weights = s->o.depth,
                                     .pages = size.pages,
                                     .states = size.states,
                                     .context = size.context};
    o.program = run_program(&s->r, BUILD_decode, &o.build, 1, 1);
    run_serve(&s->r, &o, &s->lm);
    s->m.lm = s->lm;
    if (!s->lm->about.recurrent)
        s->o.engine.snapshots = 0;
    else if (!s->o.engine.snapshots)
        s->o.engine.snapshots = m->serve_snapshots;
}

/* Of the spec as resolved and of all weights. */
static const char *fingerprint(const struct run *r)
{
    XXH3_state_t *h = XXH3_createState();
    if (!h) cli_fail(RT_machine, "no memory for a hash");
    XXH3_64bits_reset(h);
    XXH3_64bits_update(h, r->model->canonical, strlen(r->model->canonical));
    if (r->on_gpu)
        XXH3_64bits_update(h, &r->weights_hash, sizeof r->weights_hash);
    else
        XXH3_64bits_update(h, session_weights(r->session), session_weights_bytes(r->session));
    for (size_t i = 0; i < r->params->n; i++)
        if (r->weights[i])
            XXH3_64bits_update(h, r->weights[i], (size_t)r->params->p[i].count * sizeof(float));
    const char *text =
        str_fmt(r->cli->arena, "fp_%016llx", (unsigned long long)XXH3_64bits_digest(h));
    XXH3_freeState(h);
    return text;
}

int cmd_serve(int argc, char **argv)
{
    struct cli c = {0};
    static struct server s;
    struct run_options o = {.no_library = true}; /* a row alone has the bits it has in a batch */
    char found[PATH_MAX];
    const char *weights = NULL;
    parse(&s, &c, argc, argv, &weights, &o);
    const struct model *m = cli_model(&c, c.arg.p[0]);
    run_open(&s.r, &c, m, &o);
    cli_check(&c, ckpt_weights(weights, run_refused, &c, found, &c.err));
    open_texts(&s, found);
    open_model(&s);
    run_load(&s.r, found, NULL);
    s.m.fingerprint = fingerprint(&s.r);
    cli_check(&c, serve_run(&s.m, &s.o, &c.err));
    s.lm->ops->close(s.lm);
    tokenizer_close(s.tok);
    run_close(&s.r);
    return 0;
}
