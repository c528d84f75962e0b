/* The IR: a graph of nodes in topological order, in three stages of one language (design section
 * 1): T tensor graph, K fused kernels, P = K with run-time sizes bound and buffers planned
 * (plan.h). A node is 32 bytes; operands are a slice of one edge array; types, attributes and names
 * are interned. Building merges equal nodes and folds trivial identities, so there is no separate
 * CSE. */
#ifndef STRATA_IR_GRAPH_H
#define STRATA_IR_GRAPH_H
#include "base/diag.h"
#include "base/map.h"
#include "base/vec.h"
#include "op.h"
#include "type.h"

typedef uint32_t ir_id;
#define IR_NONE UINT32_MAX

/* Attribute keys (attr.def): AK_heads ... */
enum ir_attr_key {
#define ATTR(name, kind) AK_##name,
#include "attr.def"
    AK_COUNT
};
struct ir_attr { /* one key and its value; which member is used follows from the key's kind */
    enum ir_attr_key key;
    int64_t i;
    double f;
    const char *s;
};
#define A_INT(k, v) ((struct ir_attr){AK_##k, (int64_t)(v), 0, NULL})
#define A_NUM(k, v) ((struct ir_attr){AK_##k, 0, (double)(v), NULL})
#define A_STR(k, v) ((struct ir_attr){AK_##k, 0, 0, (v)})
/* An attribute list for ir_add: ATTRS(A_INT(heads, 4), A_NUM(scale, .5)), or NO_ATTRS. */
#define ATTRS(...)                         \
    (const struct ir_attr[]){__VA_ARGS__}, \
        sizeof((const struct ir_attr[]){__VA_ARGS__}) / sizeof(struct ir_attr)
#define NO_ATTRS NULL, 0
/* An operand list: SRCS(a, b, c). */
#define SRCS(...) (const ir_id[]){__VA_ARGS__}, sizeof((const ir_id[]){__VA_ARGS__}) / sizeof(ir_id)
#define NO_SRCS NULL, 0

struct ir_node {
    uint16_t op;    /* enum ir_op */
    uint16_t flags; /* for passes; 0 otherwise */
    uint32_t nsrc;
    uint32_t src;  /* first operand in the edge array */
    uint32_t type; /* ir_type_id */
    uint32_t attr; /* id of an interned attribute list; 0 = none */
    uint32_t name; /* id of an interned name; 0 = none (printed as %opN) */
    uint32_t span; /* index of a span; 0 = none */
    uint32_t
        instance; /* nodes that differ only here are not merged (STATE ops, recomputed clones) */
};

enum ir_stage { STAGE_T = 1, STAGE_K = 2, STAGE_P = 4 };

struct ir_output {
    uint32_t name; /* interned: "loss", "grad.model.norm.weight" */
    ir_id id;
    int64_t ld; /* regions: row stride of the destination, 0 = columns */
};

struct ir_graph {
    struct arena *arena;
    struct ir_types *types; /* may be shared between graphs */
    struct intern *names;   /* likewise */
    enum ir_stage stage;
    const char *program; /* "train", "forward", "loss", "apply", or a region's name */
    VEC(struct ir_node) node;
    VEC(ir_id) edge;
    VEC(struct span) spans;
    VEC(struct ir_output) out;
    VEC(struct ir_graph *) region; /* sub-graphs of `rows` nodes; share types and names */
    VEC(struct str) attrs;         /* interned encoded lists */
    struct map cse, attr_map, out_names;
    struct ir_readers *readers; /* of the graph so far; see ir_readers */
    struct span cur_span; /* given to new nodes; set by the builder and by passes that replace */
    uint32_t next_instance;
};

/* An empty graph. types and names may come from another graph (of a longer-lived arena) or be NULL.
 */
struct ir_graph *graph_open(struct arena *a, const char *program, enum ir_stage stage,
                            struct ir_types *types, struct intern *names);

/* Adds a node and returns its id, or the id of an equal node that is there already, or of what it
 * folds to (x*1, x+0, get of a known tuple ...). The result type is inferred; a wrong operand is
 * BUG() with the rule's message. `name` may be NULL: names are for people; a merged node keeps its
 * first name. */
ir_id ir_add(struct ir_graph *g, enum ir_op op, const ir_id *src, size_t nsrc,
             const struct ir_attr *attr, size_t nattr, const char *name);
/* The same for ops with shape `given` (and reshape): the type is stated. */
ir_id ir_add_typed(struct ir_graph *g, enum ir_op op, ir_type_id type, const ir_id *src,
                   size_t nsrc, const struct ir_attr *attr, size_t nattr, const char *name);
/* The same with a stated instance: merged only with an equal node of that instance (0: as above).
 */
ir_id ir_add_instance(struct ir_graph *g, enum ir_op op, ir_type_id type, const ir_id *src,
                      size_t nsrc, const struct ir_attr *attr, size_t nattr, uint32_t instance,
                      const char *name);
/* Copies node n of graph `from` (which shares types and names) with new operands; keeps type,
 * attrs, name, span, instance. The workhorse of passes. */
ir_id ir_copy(struct ir_graph *g, const struct ir_graph *from, ir_id n, const ir_id *src);
/* Declares an output; names are unique within a graph. */
void ir_output(struct ir_graph *g, const char *name, ir_id id);
/* The id of a named output, IR_NONE where there is none. */
ir_id ir_find_output(const struct ir_graph *g, const char *name);

/* Short forms. Scalar constants are f32[] and broadcast. */
ir_id ir_const(struct ir_graph *g, double value);
ir_id ir_unary(struct ir_graph *g, enum ir_op op, ir_id a);
ir_id ir_binary(struct ir_graph *g, enum ir_op op, ir_id a, ir_id b);
ir_id ir_get(struct ir_graph *g, ir_id tuple, uint32_t index);
ir_id ir_matmul(struct ir_graph *g, ir_id a, ir_id b, bool ta, bool tb, const char *name);
/* The same with both operands rounded to bf16 where `bf16` is set. */
ir_id ir_matmul_as(struct ir_graph *g, ir_id a, ir_id b, bool ta, bool tb, bool bf16,
                   const char *name);
ir_id ir_slice(struct ir_graph *g, ir_id a, int axis, int64_t from, int64_t to);
ir_id ir_reshape(struct ir_graph *g, ir_id a, ir_type_id type);
ir_type_id ir_type2(struct ir_graph *g, enum ir_dtype t, struct ir_dim rows, struct ir_dim cols);
ir_type_id ir_type1(struct ir_graph *g, enum ir_dtype t, struct ir_dim n);

/* Access. */
static inline const struct ir_node *ir_at(const struct ir_graph *g, ir_id n)
{
    CHECK(n < g->node.n);
    return &g->node.p[n];
}
static inline ir_id ir_src(const struct ir_graph *g, ir_id n, uint32_t i)
{
    const struct ir_node *x = ir_at(g, n);
    CHECK(i < x->nsrc);
    return g->edge.p[x->src + i];
}
static inline const ir_id *ir_srcs(const struct ir_graph *g, ir_id n)
{
    return g->edge.n ? g->edge.p + ir_at(g, n)->src : NULL; /* a graph may have no edges */
}
static inline const struct ir_type *ir_ty(const struct ir_graph *g, ir_id n)
{
    return type_get(g->types, ir_at(g, n)->type);
}
struct ir_dim ir_rows(const struct ir_graph *g, ir_id n);
struct ir_dim ir_cols(const struct ir_graph *g, ir_id n);
/* Attribute of a node, or the default where it is not set. */
int64_t ir_int(const struct ir_graph *g, ir_id n, enum ir_attr_key k, int64_t absent);
double ir_num(const struct ir_graph *g, ir_id n, enum ir_attr_key k, double absent);
const char *ir_word(const struct ir_graph *g, ir_id n, enum ir_attr_key k, const char *absent);
/* All attributes of a node, at most AK_COUNT; returns how many. Words live as long as the graph. */
size_t ir_attrs(const struct ir_graph *g, ir_id n, struct ir_attr *out);
char attr_kind(enum ir_attr_key k); /* 'i', 'f', 's' */
const char *attr_name(enum ir_attr_key k);
/* The node's name, "" where it has none. */
const char *ir_name(const struct ir_graph *g, ir_id n);
void ir_set_name(struct ir_graph *g, ir_id n, const char *name);
struct span ir_span(const struct ir_graph *g, ir_id n);
/* Number of readers of each node (outputs count as one), in the arena. */
uint32_t *ir_uses(const struct ir_graph *g, struct arena *a);

/* Who reads what: node n is read by reader[first[n] .. first[n + 1]), ascending, once an operand.
 */
struct ir_readers {
    uint32_t *first;
    ir_id *reader;
    bool *output; /* the node is an output */
    size_t nodes, outs;
};
/* Computed on the first call after a change of the graph; lives as long as it. */
const struct ir_readers *ir_readers(const struct ir_graph *g);

/* What a view (get of a row value, slice, concat's piece, reshape) stands for: the node that owns
 * the memory (`get` of a tuple producer included: root is the get node), the element offset in it
 * and the row stride. Views of views are followed. */
struct ir_view {
    ir_id root;
    struct ir_dim offset; /* elements */
    int64_t ld;           /* row stride in elements */
};
struct ir_view ir_view(const struct ir_graph *g, ir_id n);

/* Whether result element i of node n (0 of a single result), or a value (views followed), holds
 * bf16 numbers only and is stored in two bytes an element: attribute `narrow`, or `store` of a
 * parameter (panel.h). */
bool ir_narrow_result(const struct ir_graph *g, ir_id n, uint32_t i);
bool ir_narrow(const struct ir_graph *g, ir_id n);
/* Bytes of an element of a value, or of result element i, as it is stored. */
size_t ir_elem_bytes(const struct ir_graph *g, ir_id n);
size_t ir_result_bytes(const struct ir_graph *g, ir_id n, uint32_t i);

/* Canonical text (print.c) and back (parse.c). Round trip is exact: print(parse(print(g))) =
 * print(g). Spans are printed as comments where d is given. */
void graph_print(const struct ir_graph *g, const struct diag *d, struct sb *out);
/* NULL with diagnostics on a mistake. `file` is the text's id in d. */
struct ir_graph *graph_parse(struct arena *a, struct diag *d, uint32_t file, struct str text,
                             struct ir_types *types, struct intern *names);
/* Checks every invariant of a stage: ids in order, arity, types as inferred, attributes known,
 * names unique, ops legal in the stage, in-place buffers not read later. NULL when fine, else a
 * message. */
const char *graph_verify(struct ir_graph *g, enum ir_stage stage);
/* 64-bit hash of the canonical text. */
uint64_t graph_hash(const struct ir_graph *g);
#endif
