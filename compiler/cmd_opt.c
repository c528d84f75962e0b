#include "compiler/cli.h"
#include "compiler/pipeline.h"
#include <errno.h>
#include <stdio.h>

static const char help[] =
    "usage: strata opt GRAPH.ir [--passes=A,B] [--batch B] [--seq T] [--target NAME]\n"
    "                  [-o OUT.ir]\n\n"
    "Runs passes on the text of a graph and prints the result: how passes are looked at.\n"
    "Without --passes all of them run. A reproducer (--repro) of a failed pass says in its first\n"
    "line which passes to run.\n\n"
    "  strata opt tests/ir/norm.ir --passes=fuse-rows --report\n\n"
    "  --passes=A,B   passes in order; their names:\n"
#define PASS(name, function, in, out, skippable, help) "                   " name ": " help "\n"
#include "compiler/pass.def"
    "  --batch B      sequences, for cost decisions; default 8\n"
    "  --seq T        positions; default 128\n"
    "  --target NAME  cpu (default) or cuda: whose kernels follow\n"
    "  -o OUT.ir      instead of standard output\n"
    "  --report       what the passes decided, and why, on standard error\n"
    "  --time-passes  milliseconds a pass, on standard error\n";

static void show(struct sb *s, bool on)
{
    if (on && s->n) fputs(s->p, stderr);
    sb_free(s);
}

int cmd_opt(int argc, char **argv)
{
    struct cli c = {0};
    const char *out = NULL, *target = "cpu";
    int64_t B = 8, T = 128;
    bool report = false, time_passes = false;
    struct pipeline_options o = {0};
    struct sb reports = {0}, times = {0}, text = {0};
    struct str in;
    size_t n;
    cli_parse(&c, argc, argv, help, 1,
              CLI_OPTIONS({"passes", CLI_text, &o.passes}, {"batch", CLI_int, &B},
                          {"seq", CLI_int, &T}, {"target", CLI_text, &target},
                          {"output", CLI_text, &out}, {"report", CLI_flag, &report},
                          {"time-passes", CLI_flag, &time_passes}));
    cli_no_set(&c);
    cli_passes(&c, "passes", o.passes);
    if (B < 1 || T < 1) cli_fail(RT_usage, "--batch and --seq must be at least 1");
    bool gpu = !strcmp(target, "cuda");
    if (!gpu && strcmp(target, "cpu") != 0) cli_fail(RT_usage, "--target must be cpu or cuda");
    const char *path = c.arg.p[0];
    int e = io_read(c.arena, path, 1 << 28, &in);
    if (e) cli_fail(RT_user, "cannot read '%s': %s", path, strerror(e));
    struct ir_graph *g = graph_parse(c.arena, c.diag, diag_file(c.diag, path, in), in, NULL, NULL);
    if (g) {
        struct pass_ctx ctx = {.arena = c.arena, .diag = c.diag, .bind = {B, T}, .gpu = gpu};
        const struct pass_row *rows = pass_rows(&n);
        o.report = &reports, o.times = &times;
        g = pipeline_run(&ctx, &o, rows, n, g);
    }
    cli_diagnostics(&c);
    if (!g) return EXIT_USER;
    show(&reports, report);
    show(&times, time_passes);
    graph_print(g, NULL, &text);
    if (!out)
        fwrite(text.p, 1, text.n, stdout);
    else if ((e = io_write_atomic(out, text.p, text.n)))
        cli_fail(RT_user, "cannot write '%s': %s", out, strerror(e));
    sb_free(&text);
    return 0;
}
