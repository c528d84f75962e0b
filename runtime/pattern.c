#include "runtime/pattern.h"
#include <stdlib.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
#define TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
const char pattern_gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
                            "|\\s+(?!\\S)|\\s+";
const char pattern_cl100k[] = CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" TAIL;
const char pattern_kimi[] =
    "[\\p{Han}]+|[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" CONTRACTION
    "?|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" CONTRACTION "?|\\p{N}{1,3}" TAIL;

const char *pattern_named(const char *word)
{
    if (!strcmp(word, "gpt2")) return pattern_gpt2;
    if (!strcmp(word, "cl100k")) return pattern_cl100k;
    return strcmp(word, "kimi") ? NULL : pattern_kimi;
}

struct pattern {
    pcre2_code *code;
    bool jit;
};
struct matcher {
    const struct pattern *pattern;
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

static void message(int code, char *buf, size_t n)
{
    if (pcre2_get_error_message(code, (PCRE2_UCHAR *)buf, n) < 0) strcpy(buf, "unknown error");
}

enum rt_status pattern_open(const char *text, struct pattern **out, struct rt_error *err)
{
    *out = NULL;
    struct sb s = {0};
    sb_add(&s, "", 0);
    enum rt_status st = pattern_translate(str_of(text), &s, err);
    if (st != RT_ok || !s.n) {
        sb_free(&s);
        return st != RT_ok ? st : rt_fail(err, RT_user, "the pattern is empty");
    }
    int code;
    PCRE2_SIZE at;
    uint32_t back = 0;
    struct pattern *p = calloc(1, sizeof *p);
    pcre2_compile_context *c = pcre2_compile_context_create(NULL);
    if (p && c) {
        pcre2_set_newline(c, PCRE2_NEWLINE_LF);
        p->code = pcre2_compile((PCRE2_SPTR)s.p, s.n,
                                PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK | PCRE2_DOLLAR_ENDONLY |
                                    PCRE2_NEVER_BACKSLASH_C,
                                &code, &at, c);
        if (!p->code) {
            char why[128];
            message(code, why, sizeof why);
            st = rt_fail(err, RT_user, "the pattern is not a regular expression: %s (near '%.20s')",
                         why, s.p + (at < s.n ? at : s.n));
        }
    } else {
        st = rt_fail(err, RT_machine, "no memory for a pattern");
    }
    pcre2_compile_context_free(c);
    sb_free(&s);
    if (st == RT_ok) pcre2_pattern_info(p->code, PCRE2_INFO_MAXLOOKBEHIND, &back);
    if (back * 4 + 4 > PATTERN_CONTEXT)
        st = rt_fail(err, RT_user, "the pattern looks back over %u characters, more than %d",
                     (unsigned)back, PATTERN_CONTEXT / 4 - 1);
    if (st != RT_ok) {
        pattern_close(p);
        return st;
    }
    /* without it (a machine that PCRE2 has no compiler for) the interpreter gives the same */
    p->jit = pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD) == 0;
    *out = p;
    return RT_ok;
}

void pattern_close(struct pattern *p)
{
    if (!p) return;
    pcre2_code_free(p->code);
    free(p);
}

enum rt_status matcher_open(const struct pattern *p, struct matcher **out, struct rt_error *err)
{
    enum { STACK_MIN = 32 << 10, STACK_MAX = 64 << 20, HEAP_KIB = 1 << 20, STEPS = 1 << 27 };
    struct matcher *m = *out = calloc(1, sizeof *m);
    if (!m) return rt_fail(err, RT_machine, "no memory to match a pattern");
    m->pattern = p;
    m->data = pcre2_match_data_create(1, NULL);
    m->context = pcre2_match_context_create(NULL);
    if (p->jit) m->stack = pcre2_jit_stack_create(STACK_MIN, STACK_MAX, NULL);
    if (!m->data || !m->context || (p->jit && !m->stack)) {
        matcher_close(m);
        *out = NULL;
        return rt_fail(err, RT_machine, "no memory to match a pattern");
    }
    pcre2_set_match_limit(m->context, STEPS);
    pcre2_set_heap_limit(m->context, HEAP_KIB);
    if (p->jit) pcre2_jit_stack_assign(m->context, NULL, m->stack);
    return RT_ok;
}

void matcher_close(struct matcher *m)
{
    if (!m) return;
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    pcre2_jit_stack_free(m->stack);
    free(m);
}

enum rt_status matcher_next(struct matcher *m, struct str s, size_t from, bool more,
                            enum match *what, size_t *begin, size_t *end, struct rt_error *err)
{
    uint32_t opt = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | (more ? PCRE2_PARTIAL_HARD : 0);
    PCRE2_SPTR text = (PCRE2_SPTR)s.p;
    int r = PCRE2_ERROR_JIT_STACKLIMIT;
    if (m->pattern->jit)
        r = pcre2_jit_match(m->pattern->code, text, s.n, from, opt, m->data, m->context);
    if (r == PCRE2_ERROR_JIT_STACKLIMIT)
        r = pcre2_match(m->pattern->code, text, s.n, from, opt | PCRE2_NO_JIT, m->data, m->context);
    *what = r == PCRE2_ERROR_PARTIAL ? MATCH_more : r >= 0 ? MATCH_found : MATCH_none;
    if (r < 0 && r != PCRE2_ERROR_PARTIAL && r != PCRE2_ERROR_NOMATCH) {
        char why[128];
        message(r, why, sizeof why);
        return rt_fail(err, RT_user, "the pattern cannot cut this text: %s", why);
    }
    *begin = pcre2_get_ovector_pointer(m->data)[0];
    *end = pcre2_get_ovector_pointer(m->data)[1];
    /* \K or a lookbehind could begin a match before `from` */
    if (*what == MATCH_found && (*begin < from || *end <= *begin))
        return rt_fail(err, RT_user, "the pattern matches nothing or text that is done already");
    return RT_ok;
}
