/* The tokenizer a spec asks for. */
#ifndef STRATA_COMPILER_TOKENS_H
#define STRATA_COMPILER_TOKENS_H
#include "compiler/model.h"
#include "runtime/tokenize.h"

/* `source` is the text whose characters a `chars` vocabulary has, or a folder that may hold
 * chars.json (NULL: the spec's training text). *out is NULL where the spec names no tokenizer. */
enum rt_status tokens_open(const struct model *m, const char *source, struct tokenizer **out,
                           struct rt_error *err);
#endif
