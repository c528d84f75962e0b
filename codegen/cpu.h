/* Shared by the emitters of the CPU back end. */
#ifndef STRATA_CODEGEN_CPU_H
#define STRATA_CODEGEN_CPU_H
#include "codegen/kernel.h"
#include "codegen/text.h"

/* The arguments of an emitter (cg_emit_fn), for its parts. */
struct cg_emit {
    struct arena *a;
    const struct ir_graph *g;
    ir_id n;
    struct ir_bind b;
    struct cg_lowering *out;
};
/* cg_lower_node where the target is a GPU (cuda.c). */
void cg_cuda_lower_node(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                        const struct cg_target *t, struct cg_lowering *out);
/* A number as the text of a placeholder; in the arena. */
const char *cg_number(const struct cg_emit *e, int64_t n);

/* A kernel text file holds several kernels, each after a line "//== name". Returns the one of that
 * name with its placeholders filled in; BUG() where there is none. */
struct str cg_section(struct arena *a, const char *text, const char *name,
                      const struct cg_var *vars, size_t n);
/* Adds the step of a section: kind = name, label = operation and the node's name. */
struct cg_step *cg_add_section(struct arena *a, const struct ir_graph *g, ir_id n,
                               struct cg_lowering *out, const char *text, const char *name,
                               const struct cg_var *vars, size_t nvars);

/* Row stride in elements of operand i, whatever it is a view of. */
int64_t cg_src_ld(const struct ir_graph *g, ir_id n, uint32_t i);
/* Rows and columns of operand i for the sizes b. */
int64_t cg_src_rows(const struct ir_graph *g, ir_id n, uint32_t i, struct ir_bind b);
int64_t cg_src_cols(const struct ir_graph *g, ir_id n, uint32_t i, struct ir_bind b);
/* BUG() where operand i is not one run of memory. */
void cg_need_dense(const struct ir_graph *g, ir_id n, uint32_t i);

/* Pages of a sequence's table, of an operation over pages. */
int64_t cg_pages(const struct ir_graph *g, ir_id n);

/* Items that make about 20 microseconds of work when one moves `bytes` through memory. */
int64_t cg_grain(int64_t bytes);
/* Sets items and grain of a step. */
void cg_items(struct cg_step *s, int64_t items, int64_t bytes_each);

/* Elements as pieces of at most CG_PIECE within rows; values without gaps are one row. */
enum { CG_PIECE = 16384 };
struct cg_flat {
    int64_t rows, cols, pieces; /* pieces = rows * pieces of a row */
};
/* The form common to `count` operands of equal element count, from operand `first` on. */
struct cg_flat cg_flat(const struct ir_graph *g, ir_id n, const uint32_t *operand, size_t count,
                       struct ir_bind b);
/* Row stride of operand i in that form. */
int64_t cg_flat_ld(const struct ir_graph *g, ir_id n, uint32_t i, struct cg_flat f);
#endif
