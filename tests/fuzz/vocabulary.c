/* Fuzz target: chars.json of a checkpoint; an accepted vocabulary is saved, decoded and encoded. */
#include "runtime/tokenize.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tokenizer *t;
    struct rt_error err;
    if (tokenizer_chars_parse((struct str){(const char *)data, size}, "fuzz", &t, &err) != RT_ok)
        return 0;
    struct sb text = {0};
    struct tok_ids ids = {0};
    for (int32_t id = -1; id <= t->vocab_size; id++) tokenizer_decode(t, &id, 1, &text);
    tokenizer_encode(t, (struct str){text.p, text.n}, &ids, &err);
    text.n = 0;
    t->ops->save(t, 0, &text);
    free(ids.p);
    sb_free(&text);
    tokenizer_close(t);
    return 0;
}
