/* What the commands share: options, loading a spec, reporting errors and leaving. One file per
 * command (cmd_NAME.c); main.c is only the table. */
#ifndef STRATA_COMPILER_CLI_H
#define STRATA_COMPILER_CLI_H
#include "base/io.h"
#include "compiler/params.h"
#include "runtime/options.h"

/* A command's context. Memory in the arena lives until the process ends. */
struct cli {
    const char *command;
    struct arena *arena;
    struct diag *diag;
    struct rt_error err;
    struct option_list set; /* --set KEY=VALUE, in order */
    struct option_list arg; /* positional arguments */
};

/* Parses arguments; exits with status 2 and a hint on a mistake, prints help and exits 0 on --help.
 * Exactly `npos` positional arguments. --set is known to every command. */
void cli_parse(struct cli *c, int argc, char **argv, const char *help, size_t npos,
               const struct cli_option *opt, size_t nopt);
/* The same with npos to max_pos positional arguments. */
void cli_parse_range(struct cli *c, int argc, char **argv, const char *help, size_t npos,
                     size_t max_pos, const struct cli_option *opt, size_t nopt);
/* Whether a list of passes, "A,B", that --OPTION gives has only passes that there are (NULL: it gives
 * none); exits with status 2 and the nearest name. */
void cli_passes(const struct cli *c, const char *option, const char *list);
/* Loads the spec of that path with --set; prints diagnostics; exits 1 when there are errors. */
struct model *cli_model(struct cli *c, const char *path);
/* Refuses --set (status 2): for commands, or forms of them, that read no spec. */
void cli_no_set(const struct cli *c);
/* Prints what is in the diagnostic list so far (and empties nothing). */
void cli_diagnostics(const struct cli *c);
/* Ends the program where st is not RT_ok: diagnostics, "strata: error: text", exit status st. */
void cli_check(struct cli *c, enum rt_status st);
/* "strata: error: ..." and exit. */
_Noreturn void cli_fail(enum rt_status st, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* 1234567 -> "1,234,567"; bytes -> "1.23 MiB"; in the arena. */
const char *cli_count(struct arena *a, int64_t n);
const char *cli_bytes(struct arena *a, double n);

/* Commands return the exit status. */
#define COMMAND(name, help) int cmd_##name(int argc, char **argv);
#include "compiler/command.def"
#endif
