#include "runtime/app.h"
#include "base/map.h"
#include "runtime/chat.h"
#include "runtime/serve.h"

static const char help[] =
    "Serves the model to clients of OpenAI's API: chat and text completions, streamed or not, and "
    "a\n"
    "page to chat at http://127.0.0.1:8080/. SIGTERM or Ctrl-C lets answers finish, then ends it; "
    "a\n"
    "second one ends it now.\n\n"
    "  serve --port 8000\n"
    "  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\\n"
    "    -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 32}'\n\n";

static void parse(struct command_line *c, int argc, char **argv, struct serve_options *o,
                  struct app_options *run)
{
    const struct cli_option own[] = {APP_OPTIONS(*run)};
    enum { OWN = sizeof own / sizeof *own };
    struct cli_option all[OWN + SERVE_ROWS];
    struct sb text = {0};
    serve_defaults(o);
    memcpy(all, own, sizeof own);
    sb_str(&text, help);
    serve_help(&text);
    sb_str(&text, APP_HELP);
    options_parse(c, argc, argv, sb_take(&text, c->arena).p, 0, 0, all,
                  OWN + serve_rows(o, all + OWN));
}

int app_serve_command(const char *program, int argc, char **argv)
{
    struct command_line c = {program, argv[0], arena_open("options"), {0}};
    struct serve_options o;
    struct app_options run = {0};
    struct rt_error err;
    parse(&c, argc, argv, &o, &run);
    app_check(program, serve_check(&o, c.arena, &err), &err);
    run.depth = o.depth;
    struct app *p = app_self(program, &run, true);
    const struct app_about *x = &p->about;
    if (!p->tok) {
        rt_fail(&err, RT_user, "this program has no tokenizer, which a server needs");
        app_check(program, RT_user, &err);
    }
    if (!p->lm->about.recurrent)
        o.engine.snapshots = 0;
    else if (!o.engine.snapshots)
        o.engine.snapshots = x->snapshots;
    const struct serve_model m = {
        .lm = p->lm,
        .tok = p->tok,
        .name = x->name,
        .fingerprint =
            str_fmt(p->a, "fp_%016llx",
                    (unsigned long long)(x->weight_hash ^
                                         hash_bytes(x->spec_hash, strlen(x->spec_hash), 0))),
        .chat = x->template ? chat_template_find(x->template) : NULL,
        .bos = x->bos,
        .stop = x->stop,
        .num_stop = x->num_stop,
        .program = program,
    };
    app_check(program, serve_run(&m, &o, &err), &err);
    app_close(p);
    arena_close(c.arena);
    return 0;
}
