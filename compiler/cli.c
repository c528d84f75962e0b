#include "compiler/cli.h"
#include "compiler/pipeline.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

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
    struct command_line o = {"strata", c->command, c->arena, {0}};
    struct cli_option *all = NEW(c->arena, struct cli_option, nopt + 1);
    if (nopt) memcpy(all, opt, nopt * sizeof *all);
    all[nopt] = (struct cli_option){"set", CLI_list, &c->set};
    options_parse(&o, argc, argv, help, npos, max_pos, all, nopt + 1);
    c->arg = o.arg;
}

void cli_no_set(const struct cli *c)
{
    const struct command_line o = {"strata", c->command, c->arena, {0}};
    if (c->set.n) options_wrong(&o, "--set %s changes a spec, and there is none", c->set.p[0]);
}

void cli_passes(const struct cli *c, const char *option, const char *list)
{
    size_t n;
    const struct pass_row *row = pass_rows(&n);
    const struct command_line o = {"strata", c->command, c->arena, {0}};
    for (const char *p = list ? list + strspn(list, ", ") : ""; *p; p += strspn(p, ", ")) {
        struct str s = {p, strcspn(p, ", ")};
        size_t near = 0;
        unsigned least = UINT_MAX;
        for (size_t i = 0; i < n; i++) {
            unsigned d = str_distance(s, str_of(row[i].name));
            if (d < least) near = i, least = d;
        }
        if (least)
            options_wrong(&o, "--%s: no pass is named '%.*s'; did you mean %s?", option, (int)s.n,
                          s.p, row[near].name);
        p += s.n;
    }
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
