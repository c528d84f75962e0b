/* Continuing a text on a model (runtime/lm.h): what `strata generate` and the programs of `strata
 * build` share. One sequence, in pages 0, 1, 2 ... and state 0. */
#ifndef STRATA_RUNTIME_GENERATE_H
#define STRATA_RUNTIME_GENERATE_H
#include <stdio.h>
#include "runtime/lm.h"
#include "runtime/options.h"
#include "runtime/sample.h"
#include "runtime/tokenize.h"

/* What a prompt is, and how it goes on. */
struct generate_options {
    const char *prompt, *ids; /* one of them; ids as "1,2,3" */
    int64_t max, seed;
    double temperature, top_p;
    bool print_ids, stats;
};
#define GENERATE_DEFAULTS       \
    (struct generate_options)   \
    {                           \
        .max = 256, .top_p = 1, \
    }
#define GENERATE_OPTIONS(o)                                                            \
    {"prompt", CLI_text, &(o).prompt}, {"prompt-ids", CLI_text, &(o).ids},             \
        {"max-tokens", CLI_int, &(o).max}, {"temperature", CLI_num, &(o).temperature}, \
        {"top-p", CLI_num, &(o).top_p}, {"seed", CLI_int, &(o).seed},                  \
        {"print-ids", CLI_flag, &(o).print_ids},                                       \
    {                                                                                  \
        "stats", CLI_flag, &(o).stats                                                  \
    }
#define GENERATE_HELP                                                              \
    "  --max-tokens N     default 256\n"                                           \
    "  --temperature X    default 0; 0.8 is a good start\n"                        \
    "  --top-p P          keep the most likely tokens that make up P; default 1\n" \
    "  --seed S           of sampling; default 0\n"                                \
    "  --print-ids        the new token ids on one line, and nothing else\n"       \
    "  --stats            time to the first token and tokens per second, on standard error\n"
/* NULL, or what is wrong with the options as a command line: a mistake of usage. */
const char *generate_wrong(const struct generate_options *o);

/* A sequence on a model. */
struct generate {
    struct lm *lm;
    const struct tokenizer *tok; /* NULL: ids only */
    int64_t bos;                 /* -1: none; begins prompts, and is not shown */
    const int32_t *stop;         /* ids that end a text */
    size_t num_stop;
    struct tok_ids text; /* prompt and what came after it */
    size_t known;        /* how many of them are in the caches */
    int32_t *pages;
    struct sample_slot *slots;
};
/* Appends the prompt's ids to the text: its ids or, with bos before it, its text. RT_user for an id
 * outside `vocab` and for an empty prompt. */
enum rt_status generate_prompt(struct generate *g, const struct generate_options *o, int64_t vocab,
                               struct rt_error *err);
/* Gives it its model, which stays the caller's; tables are in the arena. */
void generate_begin(struct generate *g, struct arena *a, struct lm *lm);
/* Logits f32[V] after the last token: what the caches do not know yet is run. The text must fit the
 * model's context. */
enum rt_status generate_logits(struct generate *g, const float **out, struct rt_error *err);
/* The next token, chosen by `s` and appended to the text unless it ends it (*end). */
enum rt_status generate_next(struct generate *g, const struct sampler *s, int32_t *id, bool *end,
                             struct rt_error *err);
/* Prints prompt and continuation as they come, or ids, to `out`, and what --stats tells to standard
 * error. RT_user where it does not fit the model's context. */
enum rt_status generate_run(struct generate *g, const struct generate_options *o, FILE *out,
                            struct rt_error *err);
void generate_end(struct generate *g);
#endif
