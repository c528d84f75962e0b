/* Stop strings: finds the first of a few texts in a text that comes in parts, and says of every
 * part what can already be shown. Text that may be the beginning of a stop string is held back. */
#ifndef STRATA_RUNTIME_STOPS_H
#define STRATA_RUNTIME_STOPS_H
#include "base/str.h"
#include "runtime/tokenize.h"

struct stops;
/* For n stop strings, none empty, each of at most 65535 bytes; n = 0 holds nothing back. Memory and
 * the strings' copies are the arena's; nothing is allocated later. */
struct stops *stops_open(struct arena *a, const struct str *stop, size_t n);
/* Appends what is certain to be before any stop string. True when one is complete: all text before
 * it has been appended then, the rest of the part is dropped, and so is everything added later. Of
 * several, the one that ends first counts, the longest of those that end together. Where parts are
 * whole characters, what is appended is too. */
bool stops_add(struct stops *s, struct str part, struct sb *out);
/* Appends what is held back: the text has ended without a stop string. */
void stops_end(struct stops *s, struct sb *out);
/* Bytes held back. */
size_t stops_held(const struct stops *s);

/* The text of an answer, token by token: cut characters are held back (tok_stream), then beginnings
 * of stop strings. */
struct answer_text {
    struct tok_stream utf8;
    struct stops *stops;
    struct sb piece; /* room for one token's text; answer_text_close frees it */
};
/* Appends what can be shown after this token; true when a stop string is complete. */
bool answer_text_add(struct answer_text *t, const struct tokenizer *tok, int32_t id,
                     struct sb *out);
/* The answer has ended: appends what is held back; true when a stop string was completed by it. */
bool answer_text_end(struct answer_text *t, struct sb *out);
void answer_text_close(struct answer_text *t);
#endif
