/* The main program of what strata build makes. */
#include "base/io.h"
#include "runtime/app.h"
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static const struct {
    const char *name, *help;
    int (*run)(const char *program, int argc, char **argv);
} commands[] = {
#define APP_COMMAND(name, help) {#name, help, app_##name##_command},
#include "runtime/app_command.def"
};

static void print_help(const char *program, FILE *to)
{
    fprintf(to,
            "A language model as one program, made by strata build.\n\n"
            "usage: %s COMMAND ...\n\n",
            program);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(to,
            "\n'%s COMMAND --help' explains a command. Start with\n"
            "  %s generate --prompt 'Once upon a time'\n"
            "Exit status: 0 done, 1 wrong input or a damaged file, 2 wrong command line, 3 the "
            "machine failed, 4 a bug.\n",
            program, program);
}

/* What ends in abort() is a bug of ours, and has said so. */
static void on_abort(int sig)
{
    (void)sig;
    _exit(EXIT_BUG);
}

/* What a command printed must have arrived. */
static int finish(const char *program, int status)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return status;
    fprintf(stderr, "%s: error: cannot write to standard output\n", program);
    return status ? status : EXIT_MACHINE;
}

int main(int argc, char **argv)
{
    const char *slash = argc ? strrchr(argv[0], '/') : NULL, *program = slash  ? slash + 1
                                                                        : argc ? argv[0]
                                                                               : "app";
    signal(SIGABRT, on_abort);
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") ||
        !strcmp(argv[1], "help")) {
        print_help(program, argc < 2 ? stderr : stdout);
        return finish(program, argc < 2 ? EXIT_USAGE : 0);
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name))
            return finish(program, commands[i].run(program, argc - 1, argv + 1));
    fprintf(stderr, "%s: no command '%s'\nhint: '%s --help' lists the commands.\n", program,
            argv[1], program);
    return EXIT_USAGE;
}
