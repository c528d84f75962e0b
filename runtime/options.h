/* The command line of a main program: options and arguments, with hints on mistakes. */
#ifndef STRATA_RUNTIME_OPTIONS_H
#define STRATA_RUNTIME_OPTIONS_H
#include "base/str.h"
#include "base/vec.h"
#include "runtime/status.h"

enum cli_kind { CLI_flag, CLI_text, CLI_int, CLI_num, CLI_list };
/* An option "--name VALUE" (also --name=VALUE); flags take no value. `to` is bool, const char *,
 * int64_t, double, or a struct option_list, which takes every value. -o is --output. */
struct cli_option {
    const char *name;
    enum cli_kind kind;
    void *to;
};
struct option_list {
    const char **p;
    size_t n, cap;
};
#define CLI_OPTIONS(...)                      \
    (const struct cli_option[]){__VA_ARGS__}, \
        sizeof((const struct cli_option[]){__VA_ARGS__}) / sizeof(struct cli_option)

/* Who is called, for messages: "strata generate". */
struct command_line {
    const char *program, *command;
    struct arena *arena;
    struct option_list arg; /* positional arguments */
};
/* Parses; exits with status 2 and a hint on a mistake, prints help and exits 0 on --help. From npos
 * to max_pos positional arguments. argv[0] is the command. */
void options_parse(struct command_line *o, int argc, char **argv, const char *help, size_t npos,
                   size_t max_pos, const struct cli_option *opt, size_t nopt);
/* "strata generate: ..." with a hint, and exit with status 2. */
_Noreturn void options_wrong(const struct command_line *o, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
#endif
