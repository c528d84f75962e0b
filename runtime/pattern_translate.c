/* From the dialect of the reference encoders to PCRE2's: see pattern.h. */
#include "runtime/pattern.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* The property White_Space (PropList.txt; the same from Unicode 6.3 to 17), and all else. PCRE2's
 * own \s has U+180E too. */
#define SPACE                                                                   \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\" \
    "x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NO_SPACE                                                                         \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681" \
    "}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{" \
    "2fff}\\x{3001}-\\x{10ffff}"
/* \w of Unicode TS 18 */
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}"
#define ANY "[\\x{0}-\\x{10ffff}]"

struct reader {
    struct str s;
    size_t at;
    unsigned depth;
    struct rt_error *err;
};

static enum rt_status wrong(const struct reader *r, const char *what)
{
    return rt_fail(r->err, RT_user, "the pattern is not understood at byte %zu: %s", r->at, what);
}

static bool ahead(const struct reader *r, const char *z)
{
    return str_starts((struct str){r->s.p + r->at, r->s.n - r->at}, z);
}

/* Whether \p{sc:NAME} exists. */
static bool is_script(struct str name)
{
    struct sb s = {0};
    sb_printf(&s, "\\p{sc:%.*s}", (int)name.n, name.p);
    int code;
    PCRE2_SIZE at;
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)s.p, s.n, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    pcre2_code_free(c);
    sb_free(&s);
    return c != NULL;
}

/* At the p or P of a property. */
static enum rt_status property(struct reader *r, struct sb *out)
{
    char letter = r->s.p[r->at++];
    if (!ahead(r, "{")) {
        if (r->at >= r->s.n) return wrong(r, "\\p without a name");
        sb_printf(out, "\\%c%c", letter, r->s.p[r->at++]);
        return RT_ok;
    }
    const char *begin = r->s.p + r->at + 1,
               *end = memchr(begin, '}', (size_t)(r->s.p + r->s.n - begin));
    if (!end || end - begin > 64) return wrong(r, "\\p{ without its }");
    struct str name = {begin, (size_t)(end - begin)};
    bool script = name.n > 2 && !memchr(name.p, '=', name.n) && !memchr(name.p, ':', name.n) &&
                  name.p[0] != '^' && is_script(name);
    sb_printf(out, "\\%c{%s%.*s}", letter, script ? "sc:" : "", (int)name.n, name.p);
    r->at += name.n + 2;
    return RT_ok;
}

/* At the u or x of a code point: xHH, x{H}, uHHHH, u{H}. */
static enum rt_status code_point(struct reader *r, struct sb *out)
{
    size_t digits = r->s.p[r->at] == 'x' ? 2 : 4, n = 0;
    r->at++;
    bool brace = ahead(r, "{");
    if (brace) r->at++, digits = 6;
    while (n < digits && r->at + n < r->s.n &&
           strchr("0123456789abcdefABCDEF", r->s.p[r->at + n]) && r->s.p[r->at + n])
        n++;
    if (!n || (!brace && n < digits)) return wrong(r, "a code point needs its hexadecimal digits");
    sb_printf(out, "\\x{%.*s}", (int)n, r->s.p + r->at);
    r->at += n;
    if (brace && !ahead(r, "}")) return wrong(r, "a code point without its }");
    r->at += brace;
    return RT_ok;
}

/* At a backslash. */
static enum rt_status escape(struct reader *r, bool in_class, struct sb *out)
{
    if (++r->at >= r->s.n) return wrong(r, "it ends in a backslash");
    char c = r->s.p[r->at];
    if (c == 'p' || c == 'P') return property(r, out);
    if (c == 'x' || c == 'u') return code_point(r, out);
    const char *to = NULL;
    switch (c) {
    case 's': to = in_class ? SPACE : "[" SPACE "]"; break;
    case 'S': to = in_class ? NO_SPACE : "[^" SPACE "]"; break;
    case 'w': to = in_class ? WORD : "[" WORD "]"; break;
    case 'W': to = in_class ? NULL : "[^" WORD "]"; break;
    case 'v': to = "\\x{b}"; break;
    case 'f': to = "\\x{c}"; break;
    case 'a': to = "\\x{7}"; break;
    case 'd': to = "\\p{Nd}"; break;
    case 'D': to = "\\P{Nd}"; break;
    case 'n': to = "\\n"; break;
    case 'r': to = "\\r"; break;
    case 't': to = "\\t"; break;
    case 'z': to = in_class ? NULL : "\\z"; break;
    default: break;
    }
    bool letter = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!to && letter) return wrong(r, "this escape is not supported");
    if (to)
        sb_str(out, to);
    else if (c & 0x80)
        sb_char(out, c);
    else
        sb_printf(out, "\\%c", c);
    r->at++;
    return RT_ok;
}

static enum rt_status char_class(struct reader *r, struct sb *out);

/* The members up to && or the closing bracket, as an expression for one character. `flat` is set
 * where that is one plain class, whose members then are in `out` without brackets. */
static enum rt_status members(struct reader *r, bool first, bool *flat, struct sb *out)
{
    struct sb plain = {0}, nested = {0};
    enum rt_status st = RT_ok;
    for (; st == RT_ok; first = false) {
        if (r->at >= r->s.n)
            st = wrong(r, "a class without its ]");
        else if ((ahead(r, "]") && !first) || ahead(r, "&&"))
            break;
        else if (ahead(r, "[:"))
            st = wrong(r, "POSIX classes are not supported");
        else if (ahead(r, "--") || ahead(r, "~~"))
            st = wrong(r, "only && combines classes");
        else if (ahead(r, "\\"))
            st = escape(r, true, &plain);
        else if (ahead(r, "["))
            sb_char(&nested, '|'), st = char_class(r, &nested);
        else if (ahead(r, "]"))
            sb_str(&plain, "\\]"), r->at++;
        else
            sb_char(&plain, r->s.p[r->at++]);
    }
    *flat = !nested.n;
    if (st == RT_ok && !plain.n && !nested.n) st = wrong(r, "a class without members");
    if (!nested.n)
        sb_add(out, plain.p ? plain.p : "", plain.n);
    else if (plain.n)
        sb_printf(out, "(?:[%s]%s)", plain.p, nested.p);
    else
        sb_printf(out, "(?:%s)", nested.p + 1);
    sb_free(&plain);
    sb_free(&nested);
    return st;
}

/* At the [ of a class: it becomes an expression for one character. */
static enum rt_status char_class(struct reader *r, struct sb *out)
{
    if (++r->depth > 32) return wrong(r, "classes are nested too deeply");
    r->at++;
    bool negated = ahead(r, "^"), flat;
    r->at += negated;
    struct sb one = {0}, also = {0};
    enum rt_status st = members(r, true, &flat, &one);
    while (st == RT_ok && ahead(r, "&&")) {
        struct sb next = {0};
        bool plain;
        r->at += 2;
        st = members(r, false, &plain, &next);
        if (st == RT_ok) sb_printf(&also, plain ? "(?=[%s])" : "(?=%s)", next.p);
        sb_free(&next);
    }
    if (st == RT_ok) {
        r->at++; /* ] */
        bool simple = flat && !also.n;
        if (negated && !simple) sb_str(out, "(?:(?!");
        if (also.n) sb_printf(out, "(?:%s", also.p);
        sb_printf(out, !flat ? "%s" : negated && simple ? "[^%s]" : "[%s]", one.p);
        if (also.n) sb_char(out, ')');
        if (negated && !simple) sb_str(out, ")" ANY ")");
    }
    sb_free(&one);
    sb_free(&also);
    r->depth--;
    return st;
}

/* At a ( : groups that mean the same everywhere. */
static enum rt_status group(struct reader *r, struct sb *out)
{
    static const char *const known[] = {"(?:",  "(?=",  "(?!",   "(?<=",  "(?<!", "(?>",
                                        "(?i:", "(?i)", "(?-i:", "(?-i)", NULL};
    size_t n = 1;
    if (ahead(r, "(?")) {
        n = 0;
        for (int i = 0; known[i]; i++)
            if (ahead(r, known[i])) n = strlen(known[i]);
    }
    if (!n || ahead(r, "(*")) return wrong(r, "this kind of group is not supported");
    sb_add(out, r->s.p + r->at, n);
    r->at += n;
    return RT_ok;
}

enum rt_status pattern_translate(struct str pattern, struct sb *out, struct rt_error *err)
{
    struct reader r = {.s = pattern, .err = err};
    enum rt_status st = RT_ok;
    if (pattern.n > 65536) return wrong(&r, "it is longer than 65536 bytes");
    if (memchr(pattern.p, 0, pattern.n)) return wrong(&r, "it holds a zero byte");
    while (st == RT_ok && r.at < pattern.n) {
        char c = pattern.p[r.at];
        if (c == '\\')
            st = escape(&r, false, out);
        else if (c == '[')
            st = char_class(&r, out);
        else if (c == '(')
            st = group(&r, out);
        else
            sb_char(out, c), r.at++;
    }
    return st;
}
