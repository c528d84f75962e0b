#include "compiler/cli.h"
#include "compiler/tokens.h"
#include "runtime/meter.h"
#include "runtime/npy.h"
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char help[] =
    "usage: strata tokenize (--tokenizer NAME | --spec SPEC) [--text FILE] [--pattern P]\n"
    "                       [--allow-special] [--ids] [-o X.npy] < TEXT\n"
    "       strata tokenize (--tokenizer NAME | --spec SPEC) --decode < IDS\n\n"
    "Turns standard input, byte for byte, into token ids and prints how many there are. The input "
    "is\n"
    "UTF-8, of any length; anything else is an error.\n\n"
    "  printf 'In the beginning' | strata tokenize --tokenizer bytes --ids\n"
    "  strata tokenize --tokenizer gpt2.tiktoken -o ids.npy < play.txt\n"
    "  strata tokenize --tokenizer gpt2.tiktoken --ids < play.txt |\n"
    "      strata tokenize --tokenizer gpt2.tiktoken --decode\n\n"
    "  --tokenizer NAME  bytes, chars (the distinct characters of the text of --text), or a file: "
    "a\n"
    "                    rank file of tiktoken, a tokenizer.json of Hugging Face, a tokenizer.bin "
    "of\n"
    "                    llama2.c\n"
    "  --spec SPEC       the tokenizer of a spec; chars then come from its training text\n"
    "  --text FILE       the text whose characters are the vocabulary of chars\n"
    "  --pattern P       for rank files other than those of gpt2, cl100k and kimi: one of these "
    "words\n"
    "                    or a regular expression\n"
    "  --allow-special   names of special tokens in the text become those tokens; without it they "
    "are\n"
    "                    text like any other\n"
    "  --ids             the ids on one line, and nothing else\n"
    "  -o X.npy          writes the ids: int32, one dimension\n"
    "  --decode          the other way: ids from standard input, with spaces or commas between\n"
    "  --set KEY=VALUE   change a value of the spec\n";

struct options {
    const char *tokenizer, *spec, *text, *out, *pattern;
    bool ids, special, decode;
};
enum { BLOCK = 1 << 18 };

/* Less than a block at the end of the input only. */
static enum rt_status read_block(char *p, size_t *n, struct rt_error *err)
{
    *n = fread(p, 1, BLOCK, stdin);
    if (!ferror(stdin)) return RT_ok;
    return rt_fail(err, RT_machine, "cannot read standard input: %s", strerror(errno));
}

static struct tokenizer *open_tokenizer(struct cli *c, const struct options *o)
{
    struct tokenizer *t = NULL;
    bool file = false;
    if (o->spec) {
        const struct model *m = cli_model(c, o->spec);
        cli_check(c, tokens_open(m, o->text, &t, &c->err));
        if (!t) cli_fail(RT_user, "%s names no tokenizer", o->spec);
        if (o->pattern) cli_fail(RT_usage, "--pattern goes with --tokenizer; a spec has its own");
        return t;
    } else if (!strcmp(o->tokenizer, "bytes")) {
        cli_check(c, tokenizer_bytes(&t, &c->err));
    } else if (strcmp(o->tokenizer, "chars")) {
        const struct tok_options with = {.pattern = o->pattern};
        if (!io_exists(o->tokenizer))
            cli_fail(RT_user, "no tokenizer '%s': it is bytes, chars or a file", o->tokenizer);
        cli_check(c, tokenizer_file_open(o->tokenizer, &with, &t, &c->err));
        file = true;
    } else if (!o->text) {
        cli_fail(RT_usage,
                 "chars needs --text FILE, the text whose characters are the vocabulary, or "
                 "--spec SPEC");
    } else {
        cli_check(c, tokenizer_chars_of_file(o->text, &t, &c->err));
    }
    if (o->pattern && !file) cli_fail(RT_usage, "%s has no --pattern", o->tokenizer);
    return t;
}

/* Prints the ids of a part; they are all on one line. */
static void print_ids(const struct tok_ids *v, uint64_t before)
{
    for (size_t i = 0; i < v->n; i++) {
        char text[16], *p = text + sizeof text;
        int32_t id = v->p[i];
        do *--p = (char)('0' + id % 10);
        while (id /= 10);
        if (before + i) *--p = ' ';
        fwrite(p, 1, (size_t)(text + sizeof text - p), stdout);
    }
}

static void encode(struct cli *c, const struct options *o, const struct tokenizer *t)
{
    static char block[BLOCK];
    struct tok_encoder *e;
    struct tok_ids v = {0};
    struct npy_stream npy;
    struct meter meter;
    struct stat st;
    uint64_t bytes = 0, count = 0;
    cli_check(c, tok_encoder_open(t, TOK_utf8 | (o->special ? TOK_special : 0), &e, &c->err));
    if (o->out) cli_check(c, npy_stream_open(o->out, &npy, &c->err));
    bool sized = fstat(STDIN_FILENO, &st) == 0 && S_ISREG(st.st_mode);
    meter_start(&meter, STDERR_FILENO, "tokenizing", sized ? (uint64_t)st.st_size : 0);
    enum rt_status status = RT_ok;
    for (size_t n = BLOCK; n == BLOCK && status == RT_ok; count += v.n) {
        v.n = 0;
        status = read_block(block, &n, &c->err);
        bytes += n;
        if (status == RT_ok)
            status = tok_encoder_add(e, (struct str){block, n}, n < BLOCK, &v, &c->err);
        if (status == RT_ok && o->ids) print_ids(&v, count);
        if (status == RT_ok && o->out) status = npy_stream_add(&npy, v.p, v.n, &c->err);
        meter_step(&meter, bytes);
    }
    meter_end(&meter);
    if (o->out && status != RT_ok) npy_stream_drop(&npy);
    cli_check(c, status);
    if (o->out) cli_check(c, npy_stream_commit(&npy, &c->err));
    if (o->ids)
        putchar('\n');
    else
        printf("%llu tokens from %llu bytes, vocabulary %d\n", (unsigned long long)count,
               (unsigned long long)bytes, t->vocab_size);
    free(v.p);
    tok_encoder_close(e);
}

static void decode(struct cli *c, const struct tokenizer *t)
{
    static char block[BLOCK];
    struct tok_ids v = {0};
    struct sb text = {0};
    int64_t id = -1;
    for (size_t n = BLOCK; n == BLOCK;) {
        cli_check(c, read_block(block, &n, &c->err));
        for (size_t i = 0; i <= n; i++) {
            bool end = i == n && n < BLOCK;
            if (i == n && !end) break;
            char ch = end ? ' ' : block[i];
            if (isdigit((unsigned char)ch)) {
                id = (id < 0 ? 0 : id) * 10 + (ch - '0');
                if (id >= t->vocab_size)
                    cli_fail(RT_user, "id %lld is not in the vocabulary of %d", (long long)id,
                             t->vocab_size);
                continue;
            }
            if (!isspace((unsigned char)ch) && ch != ',')
                cli_fail(RT_user, "--decode needs ids with spaces or commas between");
            if (id >= 0) cli_check(c, tok_ids_add(&v, (int32_t)id, &c->err));
            id = -1;
        }
    }
    tokenizer_decode(t, v.p, v.n, &text);
    fwrite(text.p, 1, text.n, stdout);
    sb_free(&text);
    free(v.p);
}

int cmd_tokenize(int argc, char **argv)
{
    struct cli c = {0};
    struct options o = {0};
    cli_parse(&c, argc, argv, help, 0,
              CLI_OPTIONS({"tokenizer", CLI_text, &o.tokenizer}, {"spec", CLI_text, &o.spec},
                          {"text", CLI_text, &o.text}, {"pattern", CLI_text, &o.pattern},
                          {"allow-special", CLI_flag, &o.special}, {"ids", CLI_flag, &o.ids},
                          {"output", CLI_text, &o.out}, {"decode", CLI_flag, &o.decode}));
    if (!o.tokenizer == !o.spec) cli_fail(RT_usage, "tokenize needs either --tokenizer or --spec");
    if (o.decode && (o.ids || o.out || o.special))
        cli_fail(RT_usage, "--decode prints text: no --ids, -o, --allow-special");
    if (!o.spec) cli_no_set(&c);
    struct tokenizer *t = open_tokenizer(&c, &o);
    if (o.decode)
        decode(&c, t);
    else
        encode(&c, &o, t);
    tokenizer_close(t);
    return 0;
}
