#include "runtime/app.h"
#include <stdlib.h>

void app_check(const char *program, enum rt_status st, const struct rt_error *err)
{
    if (st == RT_ok) return;
    fflush(stdout);
    fprintf(stderr, "%s: error: %s\n", program, err->text);
    exit((int)st);
}

struct app *app_self(const char *program, const struct app_options *o, bool load)
{
    struct app *p;
    struct rt_error err;
    const char *own = bundle_own_path();
    char *real = realpath(own, NULL); /* where the weights lie beside it */
    app_check(program, app_open(real ? real : own, NULL, o, &p, &err), &err);
    free(real);
    if (load) app_check(program, app_load(p, o, &err), &err);
    return p;
}

/* ---- generate ---- */

static const char generate_help[] =
    "Continues a prompt and prints prompt and continuation as they come. Temperature 0 (the "
    "default) is\ngreedy. Stops at the model's stop ids, or after --max-tokens.\n\n"
    "  generate --prompt 'Once upon a time' --temperature 0.8\n"
    "  generate --prompt-ids 1,2,3 --print-ids\n\n" GENERATE_HELP APP_HELP;

int app_generate_command(const char *program, int argc, char **argv)
{
    struct command_line c = {program, argv[0], arena_open("options"), {0}};
    struct generate_options o = GENERATE_DEFAULTS;
    struct app_options run = {0};
    struct rt_error err;
    options_parse(&c, argc, argv, generate_help, 0, 0,
                  CLI_OPTIONS(GENERATE_OPTIONS(o), APP_OPTIONS(run)));
    const char *wrong = generate_wrong(&o);
    if (wrong) options_wrong(&c, "%s", wrong);
    struct app *p = app_self(program, &run, true);
    struct generate g = app_generate(p);
    app_check(program, generate_prompt(&g, &o, p->about.vocab, &err), &err);
    app_check(program, generate_run(&g, &o, stdout, &err), &err);
    generate_end(&g);
    app_close(p);
    arena_close(c.arena);
    return 0;
}
