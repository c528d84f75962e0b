/* The tokenizer a spec asks for. */
#ifndef STRATA_COMPILER_TOKENS_H
#define STRATA_COMPILER_TOKENS_H
#include "compiler/model.h"
#include "runtime/tokenizer_file.h"

/* `source` is the text whose characters a `chars` vocabulary has, or a folder that may hold
 * chars.json (NULL: the spec's training text). A step folder that holds a tokenizer's file goes
 * before the path in the spec. *out is NULL where the spec names no tokenizer. */
enum rt_status tokens_open(const struct model *m, const char *source, struct tokenizer **out,
                           struct rt_error *err);
/* What the spec says of a tokenizer's file: its pattern and special tokens. In the arena. */
struct tok_options tokens_options(const struct model *m, struct arena *a);
/* Ids that end a text, in the arena: eos and stop of the spec or, where it has neither, of the
 * file. */
const int32_t *tokens_stops(const struct model *m, const struct tokenizer *t, struct arena *a,
                            size_t *n);
#endif
