/* Continues a prompt with a model that was built as a library:
 *   strata build SPEC --weights W --lib -o lib
 *   cc main.c -DHEADER='"NAME.h"' -Ilib lib/libNAME.a -lm -lpthread -o continue
 *   ./continue lib/NAME.model 'Once upon a time' 64 */
#include HEADER
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(const struct strata_model *m, int status)
{
    if (status == STRATA_OK) return;
    fprintf(stderr, "%s\n", strata_error(m));
    exit(status);
}

int main(int argc, char **argv)
{
    if (argc != 4) return fputs("usage: continue MODEL PROMPT TOKENS\n", stderr), 2;
    const struct strata_sampler greedy = {.temperature = 0};
    struct strata_model *m;
    struct strata_sequence *s;
    const float *logits;
    int32_t *ids, id;
    size_t n, bytes;
    char *text;
    int status = strata_open(argv[1], NULL, &m);
    check(m, status);
    check(m, strata_tokenize(m, argv[2], strlen(argv[2]), 1, &ids, &n));
    check(m, strata_begin(m, &s));
    check(m, strata_prefill(s, ids, n, &logits));
    ids = realloc(ids, (n + (size_t)atoi(argv[3])) * sizeof *ids);
    if (!ids) return 3;
    for (int i = 0; i < atoi(argv[3]); i++) {
        check(m, strata_sample(s, &greedy, logits, &id));
        if (strata_stops(m, id)) break;
        ids[n++] = id;
        check(m, strata_decode(&s, &id, 1, &logits));
    }
    check(m, strata_detokenize(m, ids, n, &text, &bytes));
    puts(text);
    strata_release(text);
    strata_release(ids);
    strata_free(m);
    return 0;
}
