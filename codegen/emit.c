/* What every emitter needs: kernels named by the content of their text, steps and their
 * references. */
#include "codegen/kernel.h"

struct cg_step *cg_add(struct arena *a, struct cg_lowering *out, const char *kind, struct str text,
                       const char *label)
{
    static const char mark[] = "@FN@";
    char hex[33];
    hash_hex(text.p, text.n, hex);
    hex[16] = 0; /* 64 bits: enough for the few thousand kernels of a program */
    struct cg_step s = {.symbol = str_fmt(a, "%s_%s", kind, hex), .grain = 1};
    s.label = str_dup(a, str_of(label));
    struct sb named = {0};
    const char *at = text.p, *end = text.p + text.n;
    for (const char *next; (next = memmem(at, (size_t)(end - at), mark, 4)); at = next + 4) {
        sb_add(&named, at, (size_t)(next - at));
        sb_str(&named, s.symbol);
    }
    if (at == text.p) BUG("kernel text of %s has no @FN@", kind);
    sb_add(&named, at, (size_t)(end - at));
    s.text = sb_take(&named, a);
    vec_push(a, &out->step, s);
    return &vec_last(&out->step);
}

void cg_refs(struct arena *a, struct cg_step *s, const struct cg_ref *ref, size_t n)
{
    s->ref = arena_dup(a, ref, n * sizeof *ref, STRATA_SITE);
    s->nref = n;
}

void cg_nums(struct arena *a, struct cg_step *s, const int64_t *num, size_t n)
{
    s->num = arena_dup(a, num, n * sizeof *num, STRATA_SITE);
    s->nnum = n;
}
