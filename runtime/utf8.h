/* Strict UTF-8 (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF). */
#ifndef STRATA_RUNTIME_UTF8_H
#define STRATA_RUNTIME_UTF8_H
#include "base/str.h"

enum { UTF8_MAX = 4, UTF8_LIMIT = 0x110000 };

/* Length of the sequence at the start of n > 0 bytes and its code point; 0 when it is invalid, -1
 * when the bytes are a valid beginning that is cut. */
int utf8_next(const char *p, size_t n, uint32_t *cp);
/* Writes a code point, returns its length (1 to 4). */
int utf8_put(uint32_t cp, char out[UTF8_MAX]);
/* Offset of the first byte that is not valid UTF-8 (a cut sequence included), or s.n. */
size_t utf8_check(struct str s);
#endif
