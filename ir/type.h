/* Types: an element type and dims; dims are constants or linear in one run-time size. Interned, so
 * that equality is ==. */
#ifndef STRATA_IR_TYPE_H
#define STRATA_IR_TYPE_H
#include "base/str.h"

enum ir_dtype { IR_f32, IR_bf16, IR_f64, IR_i32, IR_tuple, IR_DTYPES };

/* Sizes that belong to a run. N = B * T tokens. Everything else is a feature size (a constant). */
enum ir_sym { SYM_one, SYM_B, SYM_T, SYM_N, SYM_COUNT };

/* mul * sym + add; a constant has sym == SYM_one, mul == 0. */
struct ir_dim {
    int64_t add;
    int32_t mul;
    int32_t sym;
};
#define IR_MAX_RANK 4
#define IR_MAX_TUPLE 8448 /* a full depth mix of 4096 layers and a few */

typedef uint32_t ir_type_id; /* index into the graph's type table; 0 = f32[] */

struct ir_type {
    uint8_t dtype, rank;
    struct ir_dim dim[IR_MAX_RANK];
    uint32_t first, count; /* a tuple's element types: slice of the table's element list */
};

/* Run-time sizes bound to numbers. */
struct ir_bind {
    int64_t B, T;
};

static inline struct ir_dim dim_const(int64_t n)
{
    return (struct ir_dim){n, 0, SYM_one};
}
static inline struct ir_dim dim_sym(enum ir_sym s, int64_t mul)
{
    return (struct ir_dim){0, (int32_t)mul, (int32_t)s};
}
static inline bool dim_eq(struct ir_dim a, struct ir_dim b)
{
    return a.add == b.add && a.mul == b.mul && a.sym == b.sym;
}
static inline bool dim_is_const(struct ir_dim d)
{
    return d.sym == SYM_one;
}
/* a * n for a constant n. */
static inline struct ir_dim dim_scale(struct ir_dim d, int64_t n)
{
    return (struct ir_dim){d.add * n, (int32_t)(d.mul * n), d.sym};
}
int64_t dim_value(struct ir_dim d, struct ir_bind b);
/* Bytes of one element; 0 for a tuple. */
size_t dtype_size(enum ir_dtype t);
const char *dtype_name(enum ir_dtype t);

struct ir_types;
struct ir_types *types_open(struct arena *a);
ir_type_id type_add(struct ir_types *t, enum ir_dtype dtype, unsigned rank,
                    const struct ir_dim *dim);
ir_type_id type_tuple(struct ir_types *t, const ir_type_id *elem, uint32_t n);
const struct ir_type *type_get(const struct ir_types *t, ir_type_id id);
ir_type_id type_elem(const struct ir_types *t, ir_type_id tuple, uint32_t i);
/* Elements of a bound (non-tuple) type. */
int64_t type_count(const struct ir_types *t, ir_type_id id, struct ir_bind b);
/* Rows = product of all dims but the last (1 for rank <= 1) and columns = last dim, as the row
 * kernels see a value. Rows of rank >= 3 must have at most one symbolic factor. */
struct ir_dim type_rows(const struct ir_types *t, ir_type_id id);
struct ir_dim type_cols(const struct ir_types *t, ir_type_id id);
/* "f32[N,256]", "(f32[N,4], i32[N,2])". */
void type_print(const struct ir_types *t, ir_type_id id, struct sb *out);
/* Parses what type_print prints; *at advances. false on a mistake. */
bool type_parse(struct ir_types *t, const char **at, ir_type_id *out);
#endif
