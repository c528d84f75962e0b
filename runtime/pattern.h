/* Regular expressions that cut text into pieces before merging, as the reference encoders write
 * them (Rust's regex and fancy-regex, Oniguruma), run by PCRE2. */
#ifndef STRATA_RUNTIME_PATTERN_H
#define STRATA_RUNTIME_PATTERN_H
#include "base/str.h"
#include "runtime/status.h"

/* Patterns known by a word. */
extern const char pattern_gpt2[], pattern_cl100k[], pattern_kimi[];
/* The pattern of that word, or NULL. */
const char *pattern_named(const char *word);

/* Appends the same expression for PCRE2 with UTF and UCP: classes with intersection (&&) and nested
 * classes become lookaheads and alternatives, \s is exactly the property White_Space, a bare script
 * name is Script (not Script_Extensions). RT_user, with the offset, for what PCRE2 would read
 * otherwise than the references: other flags than i, backreferences, set difference, POSIX classes
 * and uncommon escapes. */
enum rt_status pattern_translate(struct str pattern, struct sb *out, struct rt_error *err);

struct pattern;                 /* compiled; never changes, so threads may share it */
enum { PATTERN_CONTEXT = 256 }; /* bytes in front of a position that a pattern may look at */
enum rt_status pattern_open(const char *text, struct pattern **out, struct rt_error *err);
void pattern_close(struct pattern *p);

/* What matching needs to write to: one for each thread. */
struct matcher;
enum rt_status matcher_open(const struct pattern *p, struct matcher **out, struct rt_error *err);
void matcher_close(struct matcher *m);

enum match { MATCH_found, MATCH_none, MATCH_more };
/* The next non-empty match in valid UTF-8 s at or after `from` (the bytes before are context), as
 * [begin, end). With `more`, text may follow s, and MATCH_more is the answer wherever that could
 * change the match. RT_user when the pattern gives up (match or memory limits): never a wrong
 * match. Where the compiled code of PCRE2 runs out of its stack the interpreter takes over. */
enum rt_status matcher_next(struct matcher *m, struct str s, size_t from, bool more,
                            enum match *what, size_t *begin, size_t *end, struct rt_error *err);
#endif
