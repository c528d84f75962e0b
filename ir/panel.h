/* How a parameter of a serving program lies in memory (attribute `store` of `param` and `input`):
 * what its values are rounded to, and where each of them is. Type and shape of the node stay those
 * of float32.
 *
 * On a GPU all lie row-major: `rows` in float32, `rows_bf16` (matrices) as two bytes a value, which
 * kernels see as an operand in two bytes (ir_narrow).
 *
 * On a CPU matrices W [N,K], `parts` of them one after the other, lie in panels of 16 rows (output
 * channels; rows beyond N are zero), the same on every CPU, all others in `rows`:
 *   f32    [K][16] floats
 *   bf16   [ceil(K/2)][16] words of two: even k in the low half (K odd: the last high half is zero)
 *   i8     [K][16] bytes; behind all panels, on a multiple of 64 bytes, a float32 scale for each
 * row i8 is symmetric per row: scale = max |w| / 127 in float32 (a row of zeros: 0), q = w / scale
 * to the nearest integer, ties to even; the value is q * scale. bf16 is nearest, ties to even. */
#ifndef STRATA_IR_PANEL_H
#define STRATA_IR_PANEL_H
#include "graph.h"

enum ir_store {
    STORE_none, /* no attribute: float32, row-major, with all named values */
    STORE_rows, /* float32, row-major */
    STORE_rows_bf16,
    STORE_f32, /* panels from here on */
    STORE_bf16,
    STORE_i8,
    STORE_KINDS
};
enum { STORE_PANEL = 16 }; /* rows of W in a panel */

/* The attribute's word ("" for none), and back: STORE_KINDS where there is none such. */
const char *store_word(enum ir_store s);
enum ir_store store_of_word(const char *word);
/* How the parameter is stored that operand n shows (reshapes followed). */
enum ir_store ir_stored(const struct ir_graph *g, ir_id n);

struct store_shape {
    int64_t parts, n,
        k; /* matrices, rows and columns of each; without panels only their product counts */
};
static inline bool store_in_panels(enum ir_store s)
{
    return s >= STORE_f32;
}
/* Bytes of a value that lies in rows. */
static inline int64_t store_row_bytes(enum ir_store s)
{
    return s == STORE_rows_bf16 ? 2 : 4;
}
/* Of a node whose dims are constants: rank 2 is one matrix, rank 3 dim[0] of them. */
struct store_shape store_shape(const struct ir_graph *g, ir_id n);
static inline int64_t store_panels(struct store_shape x)
{
    return (x.n + STORE_PANEL - 1) / STORE_PANEL;
}
/* Bytes of one panel, of all of it (with scales), and from its beginning to the scales. Those of
 * part p begin at p * store_panels * 16 of them. */
int64_t store_panel_bytes(enum ir_store s, int64_t k);
int64_t store_total_bytes(enum ir_store s, struct store_shape x);
int64_t store_scales(struct store_shape x);
#endif
