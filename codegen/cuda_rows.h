/* Between the two halves of the emitter for row regions on a GPU: cuda_rows.c and
 * cuda_rows_text.c. */
#ifndef STRATA_CODEGEN_CUDA_ROWS_H
#define STRATA_CODEGEN_CUDA_ROWS_H
#include "codegen/cuda.h"
#include "codegen/rows.h"

enum { CUDA_WARP = 32 };
/* How threads share rows and columns; all of it a matter of the region and C. */
struct cuda_rows {
    struct rows_gen *e;
    int v;               /* neighbouring columns of a thread, loaded at once; divides C */
    int team, teams;     /* threads of a row; rows of a block at a time */
    int threads;         /* of a block = team * teams but for clones of one row */
    int pieces;          /* a thread has so many times v columns of its row */
    int64_t tiles;       /* blockIdx.y: tiles of team * v columns */
    bool clones;         /* a team may be without a row of its own; it works on another's, since
                            its warp's shuffles need it, and stores nothing */
    bool sums_in_memory; /* column sums have no room in registers: one team adds in memory */
};

/* The kernel's text, in the arena. */
struct str cuda_rows_text(struct cuda_rows *c);
#endif
