/* strata: the command line. */
#include "compiler/cli.h"
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static const struct {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
#define COMMAND(name, help) {#name, help, cmd_##name},
#include "compiler/command.def"
};

static void help(FILE *to)
{
    fputs("strata - the compiler for models that attend over their own depth\n\n"
          "usage: strata COMMAND ...\n\n",
          to);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].help);
    fputs("\n'strata COMMAND --help' explains a command with an example. Start with\n"
          "  strata check examples/tiny-moe/spec.yaml\n",
          to);
}

/* What ends in abort() is a bug of ours, and has said so. */
static void on_abort(int sig)
{
    (void)sig;
    _exit(EXIT_BUG);
}

/* What a command printed must have arrived. */
static int finish(int status)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return status;
    fputs("strata: error: cannot write to standard output\n", stderr);
    return status ? status : EXIT_MACHINE;
}

int main(int argc, char **argv)
{
    signal(SIGABRT, on_abort);
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") ||
        !strcmp(argv[1], "help")) {
        help(argc < 2 ? stderr : stdout);
        return finish(argc < 2 ? EXIT_USAGE : 0);
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name)) return finish(commands[i].run(argc - 1, argv + 1));
    fprintf(stderr, "strata: no command '%s'\nhint: 'strata --help' lists the commands.\n",
            argv[1]);
    return EXIT_USAGE;
}
