/* Texts of emitted C and their substitution. The texts are files in codegen/text, compiled in as
 * strings; variables are written ${NAME}. */
#ifndef STRATA_CODEGEN_TEXT_H
#define STRATA_CODEGEN_TEXT_H
#include "base/str.h"

/* CPU kernels, in the order in which an emitted file needs them: every file starts with the
 * prelude; tile is for products and attention, attention_rows for attention. */
extern const char cg_text_prelude[], cg_text_tile[], cg_text_gemm[];
extern const char cg_text_gemm_bf16[], cg_text_attention_rows[], cg_text_attention[];
/* What every CUDA translation unit starts with. */
extern const char cg_text_cuda_prelude[];
/* Loops that show the machine's limits: strata_peak_fma, strata_peak_bf16 and strata_peak_read, see
 * peak.c. */
extern const char cg_text_peak[];

struct cg_var {
    const char *name, *value; /* ${name} becomes value */
};
/* Appends `text` with every ${NAME} replaced. Aborts (a bug of ours) on a name that is not among
 * vars[0..n), on a variable the text does not use and on an unfinished ${. */
void cg_text(struct sb *out, const char *text, const struct cg_var *vars, size_t n);

/* One attention kernel pair FN_fwd and FN_bwd. Strides are in floats from token to token. */
struct cg_attn {
    const char *fn;
    int h, kv, hd, vd, window; /* head counts, head sizes of q/k and v/o, window (0: none) */
    int64_t ldq, ldk, ldv, ldo, lddo, lddq, lddk, lddv;
    float scale;
};
/* Appends attention.c for these sizes; h is a multiple of kv. */
void cg_attn_text(struct sb *out, const struct cg_attn *a);
#endif
