/* Documents made from the rows of spec.def: specs/REFERENCE.md and specs/strata.schema.json. */
#ifndef STRATA_COMPILER_SPEC_DOC_H
#define STRATA_COMPILER_SPEC_DOC_H
#include "base/str.h"

/* Appends the key reference, Markdown. */
void spec_reference(struct sb *out);
/* Appends the JSON Schema (draft 2020-12) for completion in editors. Specs with `extends` are held
 * to a second set of definitions in which nothing is required. */
void spec_schema(struct sb *out);
#endif
