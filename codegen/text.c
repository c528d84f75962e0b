/* See text.h. */
#include "codegen/text.h"
#include "codegen/gemm_shape.h"
#include <inttypes.h>
#include <stdio.h>

#pragma GCC diagnostic ignored "-Woverlength-strings"
const char cg_text_prelude[] =
#include "text/prelude.c.inc"
    ;
const char cg_text_tile[] =
#include "text/tile.c.inc"
    ;
const char cg_text_gemm[] =
#include "text/gemm.c.inc"
    ;
const char cg_text_gemm_bf16[] =
#include "text/gemm_bf16.c.inc"
    ;
const char cg_text_attention_rows[] =
#include "text/attention_rows.c.inc"
    ;
const char cg_text_attention[] =
#include "text/attention.c.inc"
    ;
const char cg_text_cuda_prelude[] =
#include "text/cuda_prelude.c.inc"
#include "text/cuda_tile.c.inc"
    ;
const char cg_text_peak[] =
#include "text/peak.c.inc"
    ;

void cg_text(struct sb *out, const char *text, const struct cg_var *vars, size_t n)
{
    CHECK(n <= 64);
    uint64_t used = 0;
    for (const char *at; (at = strstr(text, "${")); text++) {
        sb_add(out, text, (size_t)(at - text));
        text = strchr(at, '}');
        if (!text) BUG("unfinished variable: %.20s", at);
        struct str name = {at + 2, (size_t)(text - at - 2)};
        size_t i = 0;
        while (i < n && !str_is(name, vars[i].name)) i++;
        if (i == n) BUG("text wants ${%.*s}, which is not given", (int)name.n, name.p);
        sb_str(out, vars[i].value);
        used |= UINT64_C(1) << i;
    }
    sb_str(out, text);
    for (size_t i = 0; i < n; i++)
        if (!(used >> i & 1)) BUG("text does not use ${%s}", vars[i].name);
}

void cg_attn_text(struct sb *out, const struct cg_attn *a)
{
    const struct {
        const char *name;
        int64_t value;
    } ints[] = {
        {"H", a->h},           {"KV", a->kv},
        {"HD", a->hd},         {"VD", a->vd},
        {"WINDOW", a->window}, {"LDQ", a->ldq},
        {"LDK", a->ldk},       {"LDV", a->ldv},
        {"LDO", a->ldo},       {"LDDO", a->lddo},
        {"LDDQ", a->lddq},     {"LDDK", a->lddk},
        {"LDDV", a->lddv},     {"QB", cg_attn_query_rows(a->h, a->kv)},
    };
    enum { INTS = sizeof ints / sizeof *ints };
    char text[INTS + 1][32];
    struct cg_var vars[INTS + 2];
    for (size_t i = 0; i < INTS; i++) {
        snprintf(text[i], sizeof text[i], "%" PRId64, ints[i].value);
        vars[i] = (struct cg_var){ints[i].name, text[i]};
    }
    snprintf(text[INTS], sizeof text[INTS], "%.9e", (double)a->scale);
    vars[INTS] = (struct cg_var){"SCALE", text[INTS]};
    vars[INTS + 1] = (struct cg_var){"FN", a->fn};
    cg_text(out, cg_text_attention, vars, INTS + 2);
}
