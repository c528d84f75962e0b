/* Row regions, for both back ends: what each value of a region is, in which column loop it is
 * computed, which values are kept from one loop to the next, and the beginnings of the text.
 *
 * A row is computed in column loops: a value that needs a reduction of the row is in the loop
 * after it. */
#ifndef STRATA_CODEGEN_ROWS_H
#define STRATA_CODEGEN_ROWS_H
#include "codegen/cpu.h"

enum { ROWS_KEEP_OUT = -2 }; /* rows_gen.keep: read again from its result */
/* What a value is to the region: a scalar, a vector [C], a number per row, [R,C], a sum over
 * rows. */
enum rows_kind { SCALAR, VECTOR, ROW, FULL, COLSUM };

/* How later loops get a value that is not computed again. */
enum rows_rule {
    ROWS_MEMORY,    /* operands and results are read again, others kept in scratch */
    ROWS_REGISTERS, /* all of them, operands too, are kept */
    ROWS_AGAIN,     /* nothing is kept: operands are read and values computed again */
};

/* CUDA: how an operand or result lies in memory. */
struct rows_place {
    bool narrow;   /* bf16 */
    int64_t align; /* bytes, as cg_cuda_src_align */
};

struct rows_gen {
    struct arena *a;
    const struct ir_graph *r; /* the region */
    enum rows_rule rule;
    const struct rows_place *place; /* CUDA: of operands, then results */
    struct ir_dim rows;
    int64_t cols;
    uint32_t loops, kept; /* column loops a row; values kept */
    bool chunked;         /* has a sum over rows: items are chunks */
    bool blocked;         /* computes numbers per row */
    bool reduces;         /* has a row reduction */
    /* by value of the region */
    enum rows_kind *kind;
    uint32_t *loop;  /* FULL: the loop that computes it; ROW: the loop before which it is known */
    uint64_t *need;  /* loops that compute or load it */
    uint64_t *again; /* loops that read a kept value */
    uint32_t *cost;  /* FULL: of having it in a later loop, in loads and operations */
    bool *used;      /* ROW: column loops read it */
    int32_t *keep;   /* number among the kept, -1 none, or ROWS_KEEP_OUT */
    struct sb out;
    int indent;
};

/* Finds out all of it but place, out and indent. */
void rows_analyse(struct rows_gen *e, struct arena *a, const struct ir_graph *region,
                  enum rows_rule rule);

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
/* FULL values of a row that are in memory. */
int64_t rows_full(const struct rows_gen *e);
/* Row strides in elements of operand n (a node) and of result i. */
int64_t rows_arg_ld(const struct rows_gen *e, ir_id n);
int64_t rows_out_ld(const struct rows_gen *e, size_t i);
/* What an operation costs beside a load. */
uint32_t rows_weight(enum ir_op op);

/* What was found out of a region, and its kernel. */
struct rows_memo {
    struct rows_gen gen;
    struct cg_step kernel;
    const void *more; /* of the back end */
};
/* The entry of a key, which has no gen.r where it is new. Without a memo (NULL) always a new one.
 * Valid until the next call. */
struct rows_memo *rows_memo(struct cg_memo *m, struct arena *a, struct str key);

/* ---- text ---- */

void rows_line(struct rows_gen *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A line, after which the text is one step further in; and the way back. */
void rows_enter(struct rows_gen *e, const char *text);
void rows_leave(struct rows_gen *e);
/* A constant in C. */
const char *rows_literal(const struct rows_gen *e, ir_id n);
/* The comment over a kernel. */
void rows_header(struct rows_gen *e);
#endif
