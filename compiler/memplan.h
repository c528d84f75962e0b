/* Memory planning: every value of a K graph gets a place (arena, offset) for one (B, T).
 *   SA_persistent  named values of constant size: one layout for all programs of a process
 *   SA_weights     parameters with the attribute `store`, likewise
 *   SA_slot        named inputs and outputs whose size depends on the run
 *   SA_scratch     everything else, by lifetimes
 * A lifetime goes from the definition to the last use, in node order. Views share the memory of
 * what they show; pieces of a concat are computed straight into it where the back end can
 * (cg_concat_of); in-place results take over their operand's memory where it dies there
 * (cg_in_place). */
#ifndef STRATA_COMPILER_MEMPLAN_H
#define STRATA_COMPILER_MEMPLAN_H
#include "abi.h"
#include "panel.h"

/* Where named values of constant size lie. Grows; what has a place keeps it. */
struct layout_item {
    const char *name;
    enum ir_dtype dtype;
    uint32_t rank;
    int64_t dims[SA_RANK];
    uint64_t offset, bytes;
};
struct layout_stored { /* a parameter in SA_weights */
    const char *name;
    enum ir_store store;
    struct store_shape shape;
    uint64_t offset, bytes;
};
struct layout {
    struct arena *arena;
    struct map by_name; /* index + 1 */
    VEC(struct layout_item) item;
    uint64_t bytes; /* of SA_persistent */
    struct map stored_by_name;
    VEC(struct layout_stored) stored; /* offsets ascend */
    uint64_t stored_bytes;            /* of SA_weights */
};
void layout_init(struct layout *l, struct arena *a);
/* The place of a name in SA_persistent, NULL where it has none. */
const struct layout_item *layout_find(const struct layout *l, const char *name);
/* The place of a name of this type, a new one where it has none; NULL where it has another type. */
const struct layout_item *layout_add(struct layout *l, const char *name, enum ir_dtype dtype,
                                     uint32_t rank, const int64_t *dims);
/* The same in SA_weights. */
const struct layout_stored *layout_store(struct layout *l, const char *name, enum ir_store store,
                                         struct store_shape shape);

struct mem_buffer {
    const char *name; /* of the value it was made for, for people */
    struct sa_buf at;
    uint64_t bytes;
    uint32_t first, last; /* nodes; named places live always */
    bool named;           /* lies under a name: not in scratch */
};
struct mem_elem {    /* a result of a node: a single one, or one element of a tuple */
    uint32_t buf;    /* index into buf; UINT32_MAX = none (views, values nobody needs) */
    uint64_t offset; /* bytes in it */
    ir_id concat;    /* the concat that it is a piece of, or IR_NONE */
    uint32_t def, last;
};
struct mem_named { /* an input or output */
    const char *name;
    ir_id node;
    struct sa_buf at;
};
struct mem_copy { /* an output that lies elsewhere: rows of `cols` elements with stride ld */
    ir_id node;
    struct sa_buf from, to;
    int64_t rows, cols, ld;
    uint32_t elem_bytes;
};
struct memplan {
    const struct ir_graph *g;
    struct ir_bind bind;
    VEC(struct mem_buffer) buf;
    uint32_t *first_elem; /* of each node: index into elem */
    struct mem_elem *elem;
    size_t num_elems;
    uint32_t *work; /* buffer of each node's workspace, UINT32_MAX = none */
    VEC(struct mem_named) named;
    VEC(struct mem_copy) copy;   /* to be done after the last node, in this order */
    uint64_t bytes[SA_external]; /* of each arena; of persistent and weights: the whole layout's */
    uint64_t live;               /* most scratch bytes alive at once: no plan can be smaller */
};

/* Plans g; workspace[n] is what node n needs during its steps. Adds names to the layout; a name
 * that is there with another type is a bug. Everything is in the arena. */
struct memplan *memplan_make(struct arena *a, const struct ir_graph *g, struct ir_bind b,
                             const size_t *workspace, struct layout *l);
/* Where a value begins (views followed); of a tuple use memplan_result. */
struct sa_buf memplan_value(const struct memplan *p, ir_id n);
/* Where result element i of node n (0 of a single result) is written. */
struct sa_buf memplan_result(const struct memplan *p, ir_id n, uint32_t i);
struct sa_buf memplan_work(const struct memplan *p, ir_id n);
/* What a step that uses these may touch, or nothing (from = to): the buffers that they lie in, or of
 * a result that is rows of a concat those rows. */
struct mem_range {
    uint32_t arena;
    uint64_t from, to; /* bytes */
};
/* How many results node n has: one, the elements of a tuple, none for a view. */
uint32_t memplan_results(const struct memplan *p, ir_id n);
struct mem_range memplan_value_range(const struct memplan *p, ir_id n);
struct mem_range memplan_result_range(const struct memplan *p, ir_id n, uint32_t i);
struct mem_range memplan_work_range(const struct memplan *p, ir_id n);
/* Whether node n has memory of its own: false for views and for constants that nobody reads. */
bool memplan_has(const struct memplan *p, ir_id n);
/* NULL when no two buffers that live at the same time overlap, else a message (in the arena). */
const char *memplan_check(const struct memplan *p, struct arena *a);
/* Arenas, then buffers: name, place, bytes, lifetime. */
void memplan_print(const struct memplan *p, struct sb *out);
#endif
