#include "runtime/options.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

_Noreturn void options_wrong(const struct command_line *o, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "%s %s: ", o->program, o->command);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\nhint: '%s %s --help' lists what it takes.\n", o->program, o->command);
    va_end(ap);
    exit(2);
}

static void set_value(struct command_line *c, const struct cli_option *o, const char *v)
{
    char *end = NULL;
    errno = 0;
    switch (o->kind) {
    case CLI_flag: break;
    case CLI_text: *(const char **)o->to = v; return;
    case CLI_int: *(int64_t *)o->to = strtoll(v, &end, 10); break;
    case CLI_num: *(double *)o->to = strtod(v, &end); break;
    case CLI_list: vec_push(c->arena, (struct option_list *)o->to, v); return;
    }
    if (end == v || *end || errno) options_wrong(c, "--%s needs a number, not '%s'", o->name, v);
}

static const struct cli_option *find(const struct cli_option *opt, size_t n, struct str name)
{
    for (size_t i = 0; i < n; i++)
        if (str_is(name, opt[i].name)) return &opt[i];
    return NULL;
}

_Noreturn static void unknown(const struct command_line *c, const struct cli_option *opt, size_t n,
                              const char *arg)
{
    const char *best = NULL;
    unsigned least = 4;
    for (size_t i = 0; i < n && arg[1] == '-'; i++) {
        unsigned d = str_distance(str_of(arg + 2), str_of(opt[i].name));
        if (d < least) best = opt[i].name, least = d;
    }
    if (best) options_wrong(c, "no option %s; did you mean --%s?", arg, best);
    options_wrong(c, "no option %s", arg);
}

/* The option at argv[*i], with its value. */
static void parse_one(struct command_line *c, int argc, char **argv, int *i,
                      const struct cli_option *opt, size_t nopt)
{
    const char *a = argv[*i], *eq = strchr(a, '=');
    struct str name = STR("");
    if (!strcmp(a, "-o"))
        name = STR("output"), eq = NULL;
    else if (a[1] == '-')
        name = (struct str){a + 2, eq ? (size_t)(eq - a) - 2 : strlen(a) - 2};
    const struct cli_option *o = find(opt, nopt, name);
    if (!o) unknown(c, opt, nopt, a);
    if (o->kind == CLI_flag) {
        if (eq) options_wrong(c, "--%s takes no value", o->name);
        *(bool *)o->to = true;
        return;
    }
    if (!eq && *i + 1 >= argc) options_wrong(c, "%s needs a value", a);
    set_value(c, o, eq ? eq + 1 : argv[++*i]);
}

void options_parse(struct command_line *c, int argc, char **argv, const char *help, size_t npos,
                   size_t max_pos, const struct cli_option *opt, size_t nopt)
{
    bool only_args = false;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (only_args || a[0] != '-' || !a[1]) {
            vec_push(c->arena, &c->arg, a);
        } else if (!strcmp(a, "--help") || !strcmp(a, "-h")) {
            fputs(help, stdout);
            exit(0);
        } else if (!strcmp(a, "--")) {
            only_args = true;
        } else {
            parse_one(c, argc, argv, &i, opt, nopt);
        }
    }
    if (c->arg.n < npos || c->arg.n > max_pos)
        options_wrong(c, "needs %zu%s argument%s, got %zu", npos, max_pos > npos ? " or more" : "",
                      npos == 1 && max_pos == 1 ? "" : "s", c->arg.n);
}
