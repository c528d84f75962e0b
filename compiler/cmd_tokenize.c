#include "compiler/cli.h"
#include "compiler/tokens.h"
#include "runtime/npy.h"
#include "runtime/utf8.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static const char help[] =
    "usage: strata tokenize (--tokenizer NAME | --spec SPEC) [--text FILE] [--ids] [-o X.npy]\n"
    "                       < TEXT\n\n"
    "Turns standard input, byte for byte, into token ids and prints how many there are. The input "
    "is\n"
    "UTF-8; anything else is an error.\n\n"
    "  printf 'In the beginning' | strata tokenize --tokenizer bytes --ids\n"
    "  strata tokenize --spec specs/shakespeare-block.yaml -o ids.npy < play.txt\n\n"
    "  --tokenizer NAME  bytes, or chars (the distinct characters of the text of --text)\n"
    "  --spec SPEC       the tokenizer of a spec; chars then come from its training text\n"
    "  --text FILE       the text whose characters are the vocabulary of chars\n"
    "  --ids             the ids on one line, and nothing else\n"
    "  -o X.npy          writes the ids: int32, one dimension\n"
    "  --set KEY=VALUE   change a value of the spec\n";

struct options {
    const char *tokenizer, *spec, *text, *out;
    bool ids;
};

static void read_input(struct sb *in)
{
    static char part[1 << 16];
    size_t n;
    while ((n = fread(part, 1, sizeof part, stdin)) > 0) sb_add(in, part, n);
    if (ferror(stdin)) cli_fail(RT_machine, "cannot read standard input: %s", strerror(errno));
}

static struct tokenizer *open_tokenizer(struct cli *c, const struct options *o)
{
    struct tokenizer *t = NULL;
    if (o->spec) {
        const struct model *m = cli_model(c, o->spec);
        cli_check(c, tokens_open(m, o->text, &t, &c->err));
        if (!t) cli_fail(RT_user, "%s names no tokenizer", o->spec);
    } else if (!strcmp(o->tokenizer, "bytes")) {
        cli_check(c, tokenizer_bytes(&t, &c->err));
    } else if (strcmp(o->tokenizer, "chars")) {
        if (!io_exists(o->tokenizer))
            cli_fail(RT_user, "no tokenizer '%s': it is bytes, chars or a file", o->tokenizer);
        cli_fail(RT_user, "tokenizer files are not supported yet (%s): use bytes or chars",
                 o->tokenizer);
    } else if (!o->text) {
        cli_fail(RT_user,
                 "chars needs --text FILE, the text whose characters are the vocabulary, or "
                 "--spec SPEC");
    } else {
        cli_check(c, tokenizer_chars_of_file(o->text, &t, &c->err));
    }
    return t;
}

static void print_ids(const struct tok_ids *v)
{
    for (size_t i = 0; i < v->n; i++) printf("%s%d", i ? " " : "", v->p[i]);
    putchar('\n');
}

int cmd_tokenize(int argc, char **argv)
{
    struct cli c = {0};
    struct options o = {0};
    cli_parse(&c, argc, argv, help, 0,
              CLI_OPTIONS({"tokenizer", CLI_text, &o.tokenizer}, {"spec", CLI_text, &o.spec},
                          {"text", CLI_text, &o.text}, {"ids", CLI_flag, &o.ids},
                          {"output", CLI_text, &o.out}));
    if (!o.tokenizer == !o.spec)
        cli_fail((enum rt_status)EXIT_USAGE, "tokenize needs either --tokenizer or --spec");
    if (!o.spec) cli_no_set(&c);
    struct sb in = {0};
    struct tok_ids v = {0};
    struct tokenizer *t = open_tokenizer(&c, &o);
    read_input(&in);
    size_t bad = utf8_check((struct str){in.p, in.n});
    if (bad < in.n) cli_fail(RT_user, "invalid UTF-8 at byte %zu of the text", bad);
    cli_check(&c, tokenizer_encode(t, (struct str){in.p, in.n}, &v, &c.err));
    if (o.out) cli_check(&c, npy_write_i32(o.out, v.p, 1, (const int64_t[]){(int64_t)v.n}, &c.err));
    if (o.ids)
        print_ids(&v);
    else
        printf("%zu tokens from %zu bytes, vocabulary %d\n", v.n, in.n, t->vocab_size);
    free(v.p);
    sb_free(&in);
    tokenizer_close(t);
    return 0;
}
