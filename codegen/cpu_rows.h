/* Between the two halves of the emitter for row regions: what cpu_rows.c finds out about a
 * region and cpu_rows_text.c writes down as C. */
#ifndef STRATA_CODEGEN_CPU_ROWS_H
#define STRATA_CODEGEN_CPU_ROWS_H
#include "codegen/cpu.h"

enum {
    ROWS_LANES = 16,
    ROWS_CHUNK = 32,    /* rows of one partial column sum */
    ROWS_KEEP_OUT = -2, /* rows_gen.keep: read again from its result */
};
/* What a value is to the region: a scalar, a vector [C], a number per row, [R,C], a sum over
 * rows. */
enum rows_kind { SCALAR, VECTOR, ROW, FULL, COLSUM };

struct rows_gen {
    struct arena *a;
    const struct ir_graph *r; /* the region */
    struct ir_dim rows;
    int64_t cols;
    uint32_t loops, kept; /* column loops a row; values kept in scratch */
    bool chunked;         /* has a sum over rows: items are chunks */
    bool blocked;         /* computes numbers per row: loops over blocks of rows */
    /* by value of the region */
    enum rows_kind *kind;
    uint32_t *loop;  /* FULL: the loop that computes it; ROW: the loop before which it is known */
    uint64_t *need;  /* loops that compute or load it */
    uint64_t *again; /* loops that read a kept value */
    uint32_t *cost;  /* FULL: of having it in a later loop, in loads and operations */
    bool *used;      /* ROW: column loops read it */
    int32_t *keep;   /* place in scratch, -1 none, or ROWS_KEEP_OUT */
    struct sb out;
    int indent;
};

static inline enum ir_op rows_op(const struct rows_gen *e, ir_id n)
{
    return (enum ir_op)ir_at(e->r, n)->op;
}
/* Is n a row reduction of more than one column (else it is its operand)? */
bool rows_reduces(const struct rows_gen *e, ir_id n);
/* The number of the result that n is, -1 where it is none. */
int rows_result(const struct rows_gen *e, ir_id n);
/* Number of operands. */
size_t rows_args(const struct rows_gen *e);
/* Floats of a kept row. */
int64_t rows_kept(const struct rows_gen *e);
/* FULL values of a row that are in memory. */
int64_t rows_full(const struct rows_gen *e);
/* Rows of a block: 16 or, so that it stays in the first-level cache, 8, 4, 2, 1. */
int64_t rows_block(const struct rows_gen *e);
/* The kernel's text, in the arena. */
struct str rows_text(struct rows_gen *e);
#endif
