/* The generic reader: a mapping of the tree into a struct, by the rows of spec.def. */
#ifndef STRATA_COMPILER_SPEC_READ_H
#define STRATA_COMPILER_SPEC_READ_H
#include "compiler/spec_tree.h"

/* Reads `n` (NULL: absent, defaults only) as an object into the struct that its rows' fields belong
 * to: unknown, unused and missing keys, kinds, words and ranges are checked. `key_at` is where a
 * missing key is reported and `what` what it is missing from. True when there was no error. Kinds
 * named, layers, ints, stop and special are only checked for their form. */
bool spec_read_object(struct spec_ctx *c, enum spec_obj object, const struct node *n,
                      struct span key_at, const char *what, void *base);
/* A plain decimal integer: no leading zeros, nothing after it. */
bool spec_parse_int(const struct node *n, int64_t *out);
/* An integer in the row's range, or an error; `what` names it. */
bool spec_read_int(struct spec_ctx *c, const struct node *n, const char *range, const char *what,
                   int64_t *out);
/* A list of integers in the row's range; *out is in the arena. */
bool spec_read_ints(struct spec_ctx *c, const struct node *n, const char *range, const char *what,
                    int64_t **out, size_t *count);
/* 1 to 64 of A-Z a-z 0-9 . _ - */
bool spec_is_name(struct str s);
#endif
