/* Whether a text is the beginning of a JSON object (RFC 8259), byte by byte: a state that can be
 * copied, so that continuations are tried. What it accepts can always be completed. Not accepted,
 * so that every completed text can be read by every parser and comes to an end: nesting deeper than
 * JSON_DEPTH, more white space between two tokens than a line end and four bytes a level (a model
 * that is at a loss likes to go on with it), numbers of more than JSON_NUMBER bytes or three digits
 * of exponent, \u0000, surrogates without their other half, and strings that are not UTF-8. */
#ifndef STRATA_RUNTIME_JSON_GUIDE_H
#define STRATA_RUNTIME_JSON_GUIDE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_DEPTH = 64, JSON_NUMBER = 100 };
enum { JSON_LINE_END = 2, JSON_INDENT = 4 }; /* bytes of white space: so many, and a level */

struct json_guide {
    uint64_t objects; /* bit d: level d is an object, not an array */
    uint16_t code;    /* of a \u escape so far */
    uint16_t space;   /* bytes of white space so far */
    uint8_t state, depth;
    uint8_t digits;  /* bytes of a number so far */
    uint8_t left;    /* bytes that a literal, an escape or a character still has */
    uint8_t lo, hi;  /* range of the next byte of a character */
    uint8_t literal; /* which of true, false, null */
    bool key;        /* the string is one */
    bool low;        /* an escape must be the second half of a pair */
};
/* Before the first byte. */
void json_guide_start(struct json_guide *g);
/* Goes on by n bytes; false where they cannot follow, and g is of no more use. */
bool json_guide_take(struct json_guide *g, const char *p, size_t n);
/* Whether they can follow; g stays. */
bool json_guide_accepts(const struct json_guide *g, const char *p, size_t n);
/* Whether the object is closed: only white space can follow. */
bool json_guide_complete(const struct json_guide *g);

/* Speed only, for those who try many texts at one place. */
/* Whether it is between two characters of a string, where every plain text can follow. */
bool json_guide_in_string(const struct json_guide *g);
/* Whether white space can be anywhere here, and changes nothing (but its bound). */
bool json_guide_between(const struct json_guide *g);
/* Whole characters without quotes, backslashes and control characters. */
bool json_plain(const char *p, size_t n);
#endif
