/* Between the two halves of the emitter for row regions on the CPU: cpu_rows.c and
 * cpu_rows_text.c. */
#ifndef STRATA_CODEGEN_CPU_ROWS_H
#define STRATA_CODEGEN_CPU_ROWS_H
#include "codegen/rows.h"

enum {
    ROWS_LANES = 16,
    ROWS_CHUNK = 32, /* rows of one partial column sum */
};
/* Floats of a kept row. */
int64_t rows_kept(const struct rows_gen *e);
/* Rows of a block: 16 or, so that it stays in the first-level cache, 8, 4, 2, 1. */
int64_t rows_block(const struct rows_gen *e);
/* The kernel's text, in the arena. */
struct str rows_text(struct rows_gen *e);
#endif
