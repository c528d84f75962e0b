#include "runtime/json_guide.h"
#include <string.h>

enum state {
    START,      /* { */
    FIRST_KEY,  /* after {: a string or } */
    NEXT_KEY,   /* after , in an object: a string */
    COLON,      /* after a key */
    FIRST_ITEM, /* after [: a value or ] */
    VALUE,
    AFTER,    /* after a value: , or the end of its container */
    COMPLETE, /* white space */
    STRING,
    CHARACTER, /* in a string, inside a character of several bytes */
    ESCAPE,    /* after a backslash */
    HEX,
    PAIR,    /* after the first half of a pair: a backslash, */
    PAIR_U,  /* and u */
    LITERAL, /* inside true, false, null */
    MINUS,
    ZERO,
    INTEGER,
    POINT, /* after it: a digit */
    FRACTION,
    EXPONENT, /* after e: a sign or a digit */
    SIGNED,   /* after the sign: a digit */
    POWER,    /* one digit of the exponent, */
    POWER2,   /* two */
};

static const char *const literals[] = {"true", "false", "null"};
static const uint8_t literal_bytes[] = {4, 5, 4};

static bool to(struct json_guide *g, enum state s)
{
    g->state = (uint8_t)s;
    g->space = 0;
    return true;
}

static bool open_level(struct json_guide *g, bool object)
{
    if (g->depth == JSON_DEPTH) return false;
    uint64_t bit = (uint64_t)1 << g->depth++;
    g->objects = object ? g->objects | bit : g->objects & ~bit;
    return to(g, object ? FIRST_KEY : FIRST_ITEM);
}

static bool in_object(const struct json_guide *g)
{
    return g->objects >> (g->depth - 1) & 1;
}

static bool close_level(struct json_guide *g)
{
    g->depth--;
    return to(g, g->depth ? AFTER : COMPLETE);
}

static bool string(struct json_guide *g, bool key)
{
    g->key = key;
    return to(g, STRING);
}

static bool digit(unsigned char c)
{
    return c >= '0' && c <= '9';
}

static bool value(struct json_guide *g, unsigned char c)
{
    if (c == '{' || c == '[') return open_level(g, c == '{');
    if (c == '"') return string(g, false);
    g->digits = 1;
    if (c == '-') return to(g, MINUS);
    if (digit(c)) return to(g, c == '0' ? ZERO : INTEGER);
    for (uint8_t i = 0; i < 3; i++)
        if (c == literals[i][0]) {
            g->literal = i;
            g->left = (uint8_t)(literal_bytes[i] - 1);
            return to(g, LITERAL);
        }
    return false;
}

static bool after(struct json_guide *g, unsigned char c)
{
    if (c == ',') return to(g, in_object(g) ? NEXT_KEY : VALUE);
    return c == (in_object(g) ? '}' : ']') && close_level(g);
}

/* A byte of a string that begins a character (Unicode 15, table 3-7). */
static bool in_string(struct json_guide *g, unsigned char c)
{
    if (c == '"') return to(g, g->key ? COLON : AFTER);
    if (c == '\\') {
        g->low = false;
        return to(g, ESCAPE);
    }
    if (c < 0x80) return c >= 0x20;
    if (c < 0xc2 || c > 0xf4) return false;
    g->left = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    g->lo = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    g->hi = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    return to(g, CHARACTER);
}

static bool in_character(struct json_guide *g, unsigned char c)
{
    if (c < g->lo || c > g->hi) return false;
    g->lo = 0x80;
    g->hi = 0xbf;
    return --g->left || to(g, STRING);
}

static bool begin_hex(struct json_guide *g)
{
    g->code = 0;
    g->left = 4;
    return to(g, HEX);
}

static bool escape(struct json_guide *g, unsigned char c)
{
    if (c == 'u') return begin_hex(g);
    return (c == '"' || c == '\\' || c == '/' || c == 'b' || c == 'f' || c == 'n' || c == 'r' ||
            c == 't') &&
           to(g, STRING);
}

static bool hex(struct json_guide *g, unsigned char c)
{
    unsigned char l = c | 0x20;
    if (!digit(c) && !(l >= 'a' && l <= 'f')) return false;
    g->code = (uint16_t)(g->code << 4 | (digit(c) ? c - '0' : l - 'a' + 10));
    g->left--;
    if (g->low && g->left == 3 && g->code != 0xd) return false;
    if (g->left == 2) { /* halves of pairs are told apart by two digits */
        bool low = g->code >= 0xdc && g->code <= 0xdf;
        if (low != g->low) return false;
    }
    if (g->left) return true;
    if (g->code == 0) return false;
    return to(g, g->code >= 0xd800 && g->code <= 0xdbff ? PAIR : STRING);
}

/* A byte of a number; false where it does not go on with c. */
static bool in_number(struct json_guide *g, unsigned char c)
{
    bool d = digit(c), e = c == 'e' || c == 'E', room = g->digits < JSON_NUMBER;
    if (c == '.' || e) room = g->digits < JSON_NUMBER - 3; /* more has to follow these */
    if (!room) return false;
    g->digits++;
    switch (g->state) {
    case MINUS: return d && to(g, c == '0' ? ZERO : INTEGER);
    case ZERO: return c == '.' ? to(g, POINT) : e && to(g, EXPONENT);
    case INTEGER: return d || (c == '.' ? to(g, POINT) : e && to(g, EXPONENT));
    case POINT: return d && to(g, FRACTION);
    case FRACTION: return d || (e && to(g, EXPONENT));
    case EXPONENT: return c == '+' || c == '-' ? to(g, SIGNED) : d && to(g, POWER);
    case SIGNED: return d && to(g, POWER);
    case POWER: return d && to(g, POWER2);
    default: return false;
    }
}

static bool may_end(enum state s)
{
    return s == ZERO || s == INTEGER || s == FRACTION || s == POWER || s == POWER2;
}

static bool take(struct json_guide *g, unsigned char c)
{
    if (g->state >= MINUS) {
        if (in_number(g, c)) return true;
        if (!may_end((enum state)g->state)) return false;
        to(g, AFTER);
    }
    if (g->state <= COMPLETE && (c == ' ' || c == '\t' || c == '\n' || c == '\r'))
        return g->space++ < JSON_LINE_END + JSON_INDENT * g->depth;
    switch (g->state) {
    case START: return c == '{' && open_level(g, true);
    case FIRST_KEY: return c == '"' ? string(g, true) : c == '}' && close_level(g);
    case NEXT_KEY: return c == '"' && string(g, true);
    case COLON: return c == ':' && to(g, VALUE);
    case FIRST_ITEM: return c == ']' ? close_level(g) : value(g, c);
    case VALUE: return value(g, c);
    case AFTER: return after(g, c);
    case STRING: return in_string(g, c);
    case CHARACTER: return in_character(g, c);
    case ESCAPE: return escape(g, c);
    case HEX: return hex(g, c);
    case PAIR: return c == '\\' && to(g, PAIR_U);
    case PAIR_U: g->low = true; return c == 'u' && begin_hex(g);
    case LITERAL:
        if (c != literals[g->literal][literal_bytes[g->literal] - g->left]) return false;
        return --g->left || to(g, AFTER);
    default: return false;
    }
}

void json_guide_start(struct json_guide *g)
{
    *g = (struct json_guide){.state = START};
}

bool json_guide_take(struct json_guide *g, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!take(g, (unsigned char)p[i])) return false;
    return true;
}

bool json_guide_accepts(const struct json_guide *g, const char *p, size_t n)
{
    struct json_guide copy = *g;
    return json_guide_take(&copy, p, n);
}

bool json_guide_complete(const struct json_guide *g)
{
    return g->state == COMPLETE;
}

bool json_guide_in_string(const struct json_guide *g)
{
    return g->state == STRING;
}

bool json_guide_between(const struct json_guide *g)
{
    return g->state <= COMPLETE;
}

bool json_plain(const char *p, size_t n)
{
    struct json_guide g = {.state = STRING};
    return !memchr(p, '"', n) && !memchr(p, '\\', n) && json_guide_take(&g, p, n) &&
           g.state == STRING;
}
