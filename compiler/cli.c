#include "compiler/cli.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

_Noreturn static void usage(const struct cli *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

_Noreturn static void usage(const struct cli *c, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "strata %s: ", c->command);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\nhint: 'strata %s --help' lists what it takes.\n", c->command);
    va_end(ap);
    exit(EXIT_USAGE);
}

_Noreturn void cli_fail(enum rt_status st, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fflush(stdout);
    fputs("strata: error: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit((int)st);
}

void cli_diagnostics(const struct cli *c)
{
    struct sb s = {0};
    diag_print(c->diag, &s);
    fflush(stdout);
    if (s.n) fputs(s.p, stderr);
    sb_free(&s);
}

void cli_check(struct cli *c, enum rt_status st)
{
    if (st == RT_ok) return;
    cli_diagnostics(c);
    cli_fail(st, "%s", c->err.text);
}

static void set_value(struct cli *c, const struct cli_option *o, const char *v)
{
    char *end = NULL;
    errno = 0;
    if (o->kind == CLI_text) *(const char **)o->to = v;
    if (o->kind == CLI_int) *(int64_t *)o->to = strtoll(v, &end, 10);
    if (o->kind == CLI_num) *(double *)o->to = strtod(v, &end);
    if (o->kind != CLI_text && (end == v || *end || errno))
        usage(c, "--%s needs a number, not '%s'", o->name, v);
}

static const struct cli_option *find(const struct cli_option *opt, size_t n, struct str name)
{
    for (size_t i = 0; i < n; i++)
        if (str_is(name, opt[i].name)) return &opt[i];
    return NULL;
}

static void unknown(struct cli *c, const struct cli_option *opt, size_t n, const char *arg)
{
    const char *best = NULL;
    unsigned least = 4;
    for (size_t i = 0; i < n && arg[1] == '-'; i++) {
        unsigned d = str_distance(str_of(arg + 2), str_of(opt[i].name));
        if (d < least) best = opt[i].name, least = d;
    }
    if (best) usage(c, "no option %s; did you mean --%s?", arg, best);
    usage(c, "no option %s", arg);
}

void cli_parse(struct cli *c, int argc, char **argv, const char *help, size_t npos,
               const struct cli_option *opt, size_t nopt)
{
    cli_parse_range(c, argc, argv, help, npos, npos, opt, nopt);
}

void cli_parse_range(struct cli *c, int argc, char **argv, const char *help, size_t npos,
                     size_t max_pos, const struct cli_option *opt, size_t nopt)
{
    c->command = argv[0];
    c->arena = arena_open("cli");
    c->diag = diag_open(c->arena);
    bool only_args = false;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (only_args || a[0] != '-' || !a[1]) {
            vec_push(c->arena, &c->arg, a);
            continue;
        }
        if (!strcmp(a, "--help") || !strcmp(a, "-h")) {
            fputs(help, stdout);
            exit(0);
        }
        if (!strcmp(a, "--")) {
            only_args = true;
            continue;
        }
        const char *eq = strchr(a, '=');
        struct str name = STR("");
        if (!strcmp(a, "-o"))
            name = STR("output"), eq = NULL;
        else if (a[1] == '-')
            name = (struct str){a + 2, eq ? (size_t)(eq - a) - 2 : strlen(a) - 2};
        const struct cli_option *o = find(opt, nopt, name);
        bool set = str_is(name, "set");
        if (!o && !set) unknown(c, opt, nopt, a);
        if (o && o->kind == CLI_flag) {
            if (eq) usage(c, "--%s takes no value", o->name);
            *(bool *)o->to = true;
            continue;
        }
        if (!eq && i + 1 >= argc) usage(c, "%s needs a value", a);
        const char *v = eq ? eq + 1 : argv[++i];
        if (set)
            vec_push(c->arena, &c->set, v);
        else
            set_value(c, o, v);
    }
    if (c->arg.n < npos || c->arg.n > max_pos)
        usage(c, "needs %zu%s argument%s, got %zu", npos, max_pos > npos ? " or more" : "",
              npos == 1 && max_pos == 1 ? "" : "s", c->arg.n);
}

void cli_no_set(const struct cli *c)
{
    if (c->set.n) usage(c, "--set %s changes a spec, and there is none", c->set.p[0]);
}

struct model *cli_model(struct cli *c, const char *path)
{
    const struct spec_options o = {c->set.p, c->set.n};
    struct model *m = spec_load(c->arena, c->diag, path, &o);
    cli_diagnostics(c);
    if (!m) exit(EXIT_USER);
    diag_clear(c->diag); /* shown */
    return m;
}

const char *cli_count(struct arena *a, int64_t n)
{
    char raw[32];
    struct sb s = {0};
    int len = snprintf(raw, sizeof raw, "%lld", (long long)n);
    for (int i = 0; i < len; i++) {
        sb_char(&s, raw[i]);
        if ((len - 1 - i) % 3 == 0 && i + 1 < len && raw[i] != '-') sb_char(&s, ',');
    }
    return sb_take(&s, a).p;
}

const char *cli_bytes(struct arena *a, double n)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;
    while (n >= 1024 && u < 4) n /= 1024, u++;
    return str_fmt(a, u ? "%.2f %s" : "%.0f %s", n, unit[u]);
}
