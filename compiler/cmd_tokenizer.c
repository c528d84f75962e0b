#include "compiler/cli.h"
#include "runtime/bpe_train.h"
#include "runtime/mapped.h"
#include "runtime/mem.h"
#include <stdio.h>

static const char help[] =
    "usage: strata tokenizer train TEXT -o FILE.tiktoken --vocab-size N [--pattern P]\n"
    "                              [--special NAME,NAME...]\n\n"
    "Makes a vocabulary of N tokens from a text: the bytes, then what stands together most often. "
    "Writes\n"
    "FILE.tiktoken, a rank file, and FILE.tiktoken.json beside it with the pattern and the "
    "special\n"
    "tokens; the two are used together, as the tokenizer of a spec or of `strata tokenize`.\n\n"
    "  strata tokenizer train kjv.txt -o kjv.tiktoken --vocab-size 4096\n"
    "  strata tokenize --tokenizer kjv.tiktoken --ids < psalm.txt\n"
    "and in a spec:\n"
    "  tokenizer: {path: kjv.tiktoken}\n"
    "  model: {vocab_size: 4096, ...}\n\n"
    "  --vocab-size N   ids in all, with the special tokens\n"
    "  --pattern P      what cuts the text into words, which tokens do not cross: gpt2, cl100k "
    "(the\n"
    "                   default), kimi or a regular expression\n"
    "  --special NAMES  special tokens; they get the last ids, and the first of them ends a text\n";

int cmd_tokenizer(int argc, char **argv)
{
    struct cli c = {0};
    struct bpe_train_options o = {.pattern = "cl100k", .vocab_size = 0, .progress = true};
    const char *file = NULL, *special = NULL;
    cli_parse(&c, argc, argv, help, 2,
              CLI_OPTIONS({"output", CLI_text, &file}, {"vocab-size", CLI_int, &o.vocab_size},
                          {"pattern", CLI_text, &o.pattern}, {"special", CLI_text, &special}));
    cli_no_set(&c);
    if (strcmp(c.arg.p[0], "train"))
        cli_fail(RT_usage, "strata tokenizer train is all there is, not '%s'", c.arg.p[0]);
    if (!file || !o.vocab_size) cli_fail(RT_usage, "tokenizer train needs -o and --vocab-size");
    VEC(const char *) names = {0};
    for (const char *p = special, *end; p; p = *end ? end + 1 : NULL) {
        end = strchrnul(p, ',');
        vec_push(c.arena, &names, str_dup(c.arena, (struct str){p, (size_t)(end - p)}));
    }
    o.special = names.p;
    o.num_special = names.n;
    struct mapped m;
    struct bpe_trained t;
    double begin = mem_seconds();
    const char *text = c.arg.p[1], *beside = str_fmt(c.arena, "%s.json", file);
    cli_check(&c, mapped_open(text, &m, &c.err));
    cli_check(&c, bpe_train(&o, (struct str){m.bytes, m.size}, text, &t, &c.err));
    int e = io_write_atomic(beside, t.beside.p, t.beside.n);
    if (e) cli_fail(RT_user, "cannot write '%s': %s", beside, strerror(e));
    e = io_write_atomic(file, t.ranks.p, t.ranks.n);
    if (e) cli_fail(RT_user, "cannot write '%s': %s", file, strerror(e));
    printf("%s: %lld tokens in %.1f s; %s bytes of %s are %s tokens of it (%.2f bytes each)\n",
           file, (long long)o.vocab_size, mem_seconds() - begin,
           cli_count(c.arena, (int64_t)m.size), text, cli_count(c.arena, (int64_t)t.tokens),
           t.tokens ? (double)m.size / (double)t.tokens : 0.0);
    sb_free(&t.ranks);
    sb_free(&t.beside);
    mapped_close(&m);
    return 0;
}
