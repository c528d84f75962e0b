/* The architecture drawing of `check --draw`. */
#ifndef STRATA_COMPILER_DRAW_H
#define STRATA_COMPILER_DRAW_H
#include "compiler/model.h"

/* Appends an SVG text: sublayers bottom to top in frames of their blocks, and beside them, for
 * every site, a dot for each source it reads. `subtitle` goes under the name. */
void draw_model(struct arena *a, const struct model *m, const char *subtitle, struct sb *out);
/* A mixer or FFN in few words: "attention, 5 heads", "moe 160, 8 experts, top 2". In the arena. */
const char *mixer_text(struct arena *a, const struct mixer *x);
const char *ffn_text(struct arena *a, const struct ffn *f);
#endif
