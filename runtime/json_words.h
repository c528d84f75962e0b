/* A vocabulary beside a JSON text (runtime/json_guide.h): which of its tokens can follow. */
#ifndef STRATA_RUNTIME_JSON_WORDS_H
#define STRATA_RUNTIME_JSON_WORDS_H
#include "base/str.h"
#include "runtime/json_guide.h"

struct json_words;
/* The texts of ids 0 .. num-1, copied; an empty one never follows. NULL without memory. */
struct json_words *json_words_open(struct str (*text)(void *arg, int32_t id), void *arg,
                                   int64_t num);
void json_words_close(struct json_words *w);
/* Whether the token can follow. */
bool json_words_accepts(const struct json_words *w, const struct json_guide *g, int32_t id);
/* to[id] becomes from[id] where it can, else -infinity; false where none can. to may be from. */
bool json_words_mask(const struct json_words *w, const struct json_guide *g, const float *from,
                     float *to);
/* The guide goes on by a token that can follow. */
void json_words_take(const struct json_words *w, struct json_guide *g, int32_t id);
#endif
