/* Fuzz target: any bytes as a tokenizer file; what follows a byte 1 is the FILE.json beside it. An
 * accepted one encodes a text, whole and in parts, and decodes it to the same. */
#include "runtime/tokenizer_file.h"
#include <stdlib.h>

static const char sample[] =
    "The  cat's 12345 caf\xc3\xa9 \xe2\x96\x81 hello!\n\n <s> abab\xe4\xb8\xad ";

static void use(const struct tokenizer *t)
{
    struct rt_error err;
    struct tok_ids whole = {0}, parts = {0};
    struct tok_encoder *e;
    struct sb back = {0};
    struct str text = STR(sample);
    if (tokenizer_encode(t, text, &whole, &err) == RT_ok) {
        CHECK(tok_encoder_open(t, 0, &e, &err) == RT_ok);
        for (size_t i = 0; i < text.n; i++)
            CHECK(tok_encoder_add(e, (struct str){text.p + i, 1}, i + 1 == text.n, &parts, &err) ==
                  RT_ok);
        tok_encoder_close(e);
        CHECK(parts.n == whole.n && !memcmp(parts.p, whole.p, whole.n * sizeof *whole.p));
        for (size_t i = 0; i < whole.n; i++) CHECK(whole.p[i] >= 0 && whole.p[i] < t->vocab_size);
        tokenizer_decode(t, whole.p, whole.n, &back);
    }
    for (int32_t id = -1; id <= t->vocab_size && id < 2000; id++)
        tokenizer_decode(t, &id, 1, &back);
    for (int i = 0; i < TOK_FILES && t->ops->file(t, i); i++) t->ops->save(t, i, &back);
    whole.n = 0;
    if (tok_encoder_open(t, TOK_special, &e, &err) == RT_ok) {
        (void)!tok_encoder_add(e, text, true, &whole, &err);
        tok_encoder_close(e);
    }
    sb_free(&back);
    free(whole.p);
    free(parts.p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *p = (const char *)data, *one = size > 4 ? memchr(p + 4, 1, size - 4) : NULL;
    bool llama2c = size >= 4 && !data[3]; /* is full of bytes 1 */
    const struct tok_options with = {.pattern = "gpt2"};
    struct tok_file_text f = {.text = {p, size}, .label = "fuzz"};
    if (one && !llama2c) {
        f.text.n = (size_t)(one - p);
        f.beside = (struct str){one + 1, size - f.text.n - 1};
    }
    if (!f.beside.n && size && (data[0] >= '0' && data[0] <= 'z')) f.o = &with;
    struct tokenizer *t;
    struct rt_error err;
    if (tokenizer_file_parse(&f, &t, &err) != RT_ok) return 0;
    use(t);
    tokenizer_close(t);
    return 0;
}
