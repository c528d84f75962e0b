/* Shape rules named by op.def: operand types in, result type out, or a message. */
#include "graph.h"

#define FAIL(msg)     \
    do {              \
        *why = (msg); \
        return false; \
    } while (0)
#define NEED(cond, msg)         \
    do {                        \
        if (!(cond)) FAIL(msg); \
    } while (0)
#define RULE(name)                                                       \
    static bool shape_##name(const struct shape_ctx *c, ir_type_id *out, \
                             const char **why __attribute__((unused)))

static const struct ir_type *ty(const struct shape_ctx *c, size_t i)
{
    return type_get(c->types, c->src[i]);
}

static const struct ir_attr *attr(const struct shape_ctx *c, enum ir_attr_key k)
{
    for (size_t i = 0; i < c->nattr; i++)
        if (c->attr[i].key == k) return &c->attr[i];
    return NULL;
}

static int64_t int_of(const struct shape_ctx *c, enum ir_attr_key k, int64_t absent)
{
    const struct ir_attr *a = attr(c, k);
    return a ? a->i : absent;
}

static ir_type_id mat(const struct shape_ctx *c, enum ir_dtype d, struct ir_dim r, struct ir_dim n)
{
    return type_add(c->types, d, 2, (const struct ir_dim[]){r, n});
}

static ir_type_id vector(const struct shape_ctx *c, enum ir_dtype d, struct ir_dim n)
{
    return type_add(c->types, d, 1, &n);
}

static ir_type_id scalar_type(const struct shape_ctx *c)
{
    return type_add(c->types, IR_f32, 0, NULL);
}

/* [rows, cols] of rank 2 and a given element type. */
static bool is_mat(const struct shape_ctx *c, size_t i, enum ir_dtype d)
{
    return i < c->nsrc && ty(c, i)->rank == 2 && ty(c, i)->dtype == d;
}

static bool is_vec(const struct shape_ctx *c, size_t i, enum ir_dtype d)
{
    return i < c->nsrc && ty(c, i)->rank == 1 && ty(c, i)->dtype == d;
}

RULE(given)
{
    NEED(c->given != UINT32_MAX, "the result type must be stated");
    *out = c->given;
    return true;
}

RULE(get)
{
    const struct ir_type *t = ty(c, 0);
    int64_t i = int_of(c, AK_index, -1);
    NEED(t->dtype == IR_tuple, "get needs a tuple");
    NEED(i >= 0 && i < t->count, "get: no such element");
    *out = type_elem(c->types, c->src[0], (uint32_t)i);
    return true;
}

RULE(same)
{
    NEED(ty(c, 0)->dtype != IR_tuple, "a tuple has no elements to work on");
    *out = c->src[0];
    return true;
}

/* Does b broadcast to a? Equal, scalar, vector of a's columns, or [rows,1]. */
static bool broadcasts(const struct ir_type *a, const struct ir_type *b)
{
    if (b->rank == 0) return true;
    if (a->rank == 0) return false;
    if (b->rank == 1) return dim_eq(a->dim[a->rank - 1], b->dim[0]);
    if (b->rank != a->rank) return false;
    for (int i = 0; i + 1 < a->rank; i++)
        if (!dim_eq(a->dim[i], b->dim[i])) return false;
    return dim_eq(b->dim[b->rank - 1], dim_const(1)) ||
           dim_eq(b->dim[b->rank - 1], a->dim[a->rank - 1]);
}

RULE(broadcast)
{
    const struct ir_type *a = ty(c, 0), *b = ty(c, 1);
    NEED(a->dtype == b->dtype && a->dtype != IR_tuple, "element types differ");
    if (c->src[0] == c->src[1]) {
        *out = c->src[0];
        return true;
    }
    if (broadcasts(a, b)) {
        *out = c->src[0];
        return true;
    }
    if (broadcasts(b, a)) {
        *out = c->src[1];
        return true;
    }
    /* [rows,1] with [cols]: the outer form */
    if (a->rank == 2 && b->rank == 1 && dim_eq(a->dim[1], dim_const(1))) {
        *out = mat(c, a->dtype, a->dim[0], b->dim[0]);
        return true;
    }
    if (b->rank == 2 && a->rank == 1 && dim_eq(b->dim[1], dim_const(1))) {
        *out = mat(c, a->dtype, b->dim[0], a->dim[0]);
        return true;
    }
    FAIL("operands do not broadcast");
}

RULE(rowreduce)
{
    const struct ir_type *t = ty(c, 0);
    NEED(t->rank >= 1 && t->dtype != IR_tuple, "needs rows");
    struct ir_dim d[IR_MAX_RANK];
    memcpy(d, t->dim, sizeof d);
    d[t->rank - 1] = dim_const(1);
    *out = type_add(c->types, t->dtype, t->rank, d);
    return true;
}

RULE(colreduce)
{
    const struct ir_type *t = ty(c, 0);
    NEED(t->rank == 2 && t->dtype != IR_tuple, "needs a matrix");
    *out = vector(c, t->dtype, t->dim[1]);
    return true;
}

RULE(scalar)
{
    *out = scalar_type(c);
    return true;
}

RULE(slice)
{
    const struct ir_type *t = ty(c, 0);
    int64_t axis = int_of(c, AK_axis, 0), from = int_of(c, AK_from, -1), to = int_of(c, AK_to, -1);
    NEED(axis >= 0 && axis < t->rank, "slice: no such axis");
    NEED(dim_is_const(t->dim[axis]), "slice: the axis has a run-time size");
    NEED(from >= 0 && from < to && to <= t->dim[axis].add, "slice: out of range");
    struct ir_dim d[IR_MAX_RANK];
    memcpy(d, t->dim, sizeof d);
    d[axis] = dim_const(to - from);
    *out = type_add(c->types, t->dtype, t->rank, d);
    return true;
}

RULE(concat)
{
    NEED(c->nsrc >= 1, "concat of nothing");
    const struct ir_type *t = ty(c, 0);
    int64_t axis = int_of(c, AK_axis, 0), n = 0;
    NEED(axis >= 0 && axis < t->rank, "concat: no such axis");
    for (size_t i = 0; i < c->nsrc; i++) {
        const struct ir_type *u = ty(c, i);
        NEED(u->rank == t->rank && u->dtype == t->dtype, "concat: ranks or element types differ");
        for (int k = 0; k < t->rank; k++)
            NEED(k == axis ? dim_is_const(u->dim[k]) : dim_eq(u->dim[k], t->dim[k]),
                 "concat: other dims differ");
        NEED(n < (int64_t)1 << 40, "concat: too long");
        n += u->dim[axis].add;
    }
    struct ir_dim d[IR_MAX_RANK];
    memcpy(d, t->dim, sizeof d);
    d[axis] = dim_const(n);
    *out = type_add(c->types, t->dtype, t->rank, d);
    return true;
}

/* Elements for a size of no particular kind; false where they are too many to count. */
static bool probe_count(const struct ir_type *t, int64_t *out)
{
    *out = 1;
    for (int i = 0; i < t->rank; i++)
        if (__builtin_mul_overflow(*out, dim_value(t->dim[i], (struct ir_bind){7, 11}), out))
            return false;
    return true;
}

RULE(reshape)
{
    NEED(c->given != UINT32_MAX, "the result type must be stated");
    int64_t before, after;
    NEED(type_get(c->types, c->given)->dtype == ty(c, 0)->dtype, "reshape: element types differ");
    NEED(probe_count(ty(c, 0), &before) && probe_count(type_get(c->types, c->given), &after) &&
             before == after,
         "reshape: element counts differ");
    *out = c->given;
    return true;
}

RULE(repeat)
{
    int64_t times = int_of(c, AK_times, 0), n;
    NEED(is_vec(c, 0, IR_f32) && dim_is_const(ty(c, 0)->dim[0]), "repeat: operand");
    NEED(times >= 1 && !__builtin_mul_overflow(ty(c, 0)->dim[0].add, times, &n), "repeat: times");
    *out = vector(c, IR_f32, dim_const(n));
    return true;
}

RULE(matmul)
{
    const struct ir_type *a = ty(c, 0), *b = ty(c, 1);
    NEED(a->rank == b->rank && (a->rank == 2 || a->rank == 3), "matmul: ranks");
    NEED(a->dtype == b->dtype && a->dtype != IR_tuple, "matmul: element types differ");
    int r = a->rank, ta = int_of(c, AK_ta, 0) != 0, tb = int_of(c, AK_tb, 0) != 0;
    if (r == 3) NEED(dim_eq(a->dim[0], b->dim[0]), "matmul: batch sizes differ");
    NEED(dim_eq(a->dim[r - 1 - ta], b->dim[r - 2 + tb]), "matmul: inner sizes differ");
    struct ir_dim d[3] = {a->dim[0]};
    d[r - 2] = a->dim[r - 2 + ta];
    d[r - 1] = b->dim[r - 1 - tb];
    *out = type_add(c->types, a->dtype, (unsigned)r, d);
    return true;
}

RULE(grouped)
{
    NEED(is_mat(c, 0, IR_f32) && ty(c, 1)->rank == 3 && is_vec(c, 2, IR_i32), "grouped: operands");
    int tb = int_of(c, AK_tb, 1) != 0;
    NEED(dim_eq(ty(c, 0)->dim[1], ty(c, 1)->dim[1 + tb]), "grouped: inner sizes differ");
    *out = mat(c, IR_f32, ty(c, 0)->dim[0], ty(c, 1)->dim[2 - tb]);
    return true;
}

RULE(grouped_dw)
{
    NEED(is_mat(c, 0, IR_f32) && is_mat(c, 1, IR_f32) && is_vec(c, 2, IR_i32), "grouped: operands");
    NEED(dim_eq(ty(c, 0)->dim[0], ty(c, 1)->dim[0]), "grouped: rows differ");
    struct ir_dim e = ty(c, 2)->dim[0];
    NEED(dim_is_const(e) && e.add >= 1, "grouped: offsets");
    e.add -= 1;
    *out = type_add(c->types, IR_f32, 3, (struct ir_dim[]){e, ty(c, 0)->dim[1], ty(c, 1)->dim[1]});
    return true;
}

RULE(embed)
{
    NEED(is_mat(c, 0, IR_f32) && is_vec(c, 1, IR_i32), "embed needs a table and ids");
    *out = mat(c, IR_f32, ty(c, 1)->dim[0], ty(c, 0)->dim[1]);
    return true;
}

/* Is d exactly h heads of size hd? */
static bool is_heads(struct ir_dim d, int64_t h, int64_t hd)
{
    return dim_is_const(d) && hd > 0 && d.add % hd == 0 && d.add / hd == h;
}

RULE(rope_table)
{
    NEED(c->given != UINT32_MAX, "the result type must be stated");
    const struct ir_type *t = type_get(c->types, c->given);
    NEED(c->nsrc <= 1 && (c->nsrc == 0 || is_vec(c, 0, IR_i32)), "rope_table: operands");
    NEED(t->rank == 2 && t->dtype == IR_f32 && dim_is_const(t->dim[1]) && t->dim[1].add % 2 == 0 &&
             dim_eq(t->dim[0], dim_sym(c->nsrc ? SYM_N : SYM_T, 1)),
         "rope_table: result");
    *out = c->given;
    return true;
}

RULE(rope)
{
    int64_t hd = int_of(c, AK_head_dim, 0), h = int_of(c, AK_heads, 0);
    NEED(is_mat(c, 0, IR_f32) && is_mat(c, 1, IR_f32), "rope: operands");
    int64_t rotary = int_of(c, AK_rotary, 0);
    NEED(hd > 0 && is_heads(ty(c, 0)->dim[1], h, hd), "rope: heads");
    NEED(rotary >= 0 && rotary <= hd, "rope: turns more than a head");
    if (!rotary) rotary = hd;
    NEED(rotary % 2 == 0, "rope: turns pairs");
    struct ir_dim rows = ty(c, 1)->dim[0];
    NEED((dim_eq(rows, dim_sym(SYM_T, 1)) || dim_eq(rows, ty(c, 0)->dim[0])) &&
             dim_eq(ty(c, 1)->dim[1], dim_const(rotary)),
         "rope: table");
    *out = c->src[0];
    return true;
}

RULE(attention)
{
    for (size_t i = 0; i < 3; i++) NEED(is_mat(c, i, IR_f32), "attention: operands");
    int64_t h = int_of(c, AK_heads, 0), kv = int_of(c, AK_kv_heads, 0),
            hd = int_of(c, AK_head_dim, 0), vd = int_of(c, AK_v_dim, 0);
    if (!vd) vd = hd;
    NEED(h > 0 && kv > 0 && h % kv == 0 && hd > 0 && vd > 0, "attention: heads");
    struct ir_dim rows = ty(c, 0)->dim[0];
    NEED(is_heads(ty(c, 0)->dim[1], h, hd) && is_heads(ty(c, 1)->dim[1], kv, hd) &&
             is_heads(ty(c, 2)->dim[1], kv, vd) && h <= INT32_MAX && vd <= INT32_MAX &&
             dim_eq(rows, ty(c, 1)->dim[0]) && dim_eq(rows, ty(c, 2)->dim[0]),
         "attention: sizes");
    ir_type_id each = mat(c, IR_f32, rows, dim_const(h));
    ir_type_id e[3] = {mat(c, IR_f32, rows, dim_const(h * vd)), each, each};
    *out = type_tuple(c->types, e, 3);
    return true;
}

RULE(attention_grad)
{
    *out = type_tuple(c->types, c->src, 3);
    return true;
}

RULE(short_conv)
{
    NEED(is_mat(c, 0, IR_f32) && is_mat(c, 1, IR_f32), "short_conv: operands");
    NEED(dim_is_const(ty(c, 1)->dim[1]) && dim_eq(ty(c, 0)->dim[1], ty(c, 1)->dim[0]),
         "short_conv: channels");
    *out = c->src[0];
    return true;
}

RULE(short_conv_grad)
{
    NEED(is_mat(c, 1, IR_f32) && is_mat(c, 2, IR_f32), "short_conv_grad: operands");
    NEED(c->src[0] == c->src[1] && dim_eq(ty(c, 1)->dim[1], ty(c, 2)->dim[0]),
         "short_conv_grad: channels");
    *out = type_tuple(c->types, c->src + 1, 2);
    return true;
}

RULE(kda)
{
    int64_t h = int_of(c, AK_heads, 0);
    for (size_t i = 0; i < 5; i++)
        NEED(is_mat(c, i, IR_f32) && dim_eq(ty(c, i)->dim[0], ty(c, 0)->dim[0]), "kda: operands");
    struct ir_dim k = ty(c, 0)->dim[1], v = ty(c, 2)->dim[1];
    NEED(h > 0 && dim_is_const(k) && dim_is_const(v) && k.add % h == 0 && v.add % h == 0,
         "kda: heads");
    NEED(c->src[0] == c->src[1] && c->src[0] == c->src[3] && dim_eq(ty(c, 4)->dim[1], dim_const(h)),
         "kda: sizes");
    *out = c->src[2];
    return true;
}

RULE(kda_grad)
{
    ir_type_id o;
    if (!shape_kda(c, &o, why)) return false;
    NEED(c->src[5] == o, "kda_grad: the gradient differs from the result");
    *out = type_tuple(c->types, c->src, 5);
    return true;
}

/* Sizes of a node of mla_*; false where an attribute is missing. */
static bool mla_sizes(const struct shape_ctx *c, int64_t *h, int64_t *n, int64_t *v)
{
    *h = int_of(c, AK_heads, 0), *n = int_of(c, AK_head_dim, 0), *v = int_of(c, AK_v_dim, 0);
    return *h > 0 && *h <= 1 << 20 && *n > 0 && *n <= 1 << 20 && *v > 0 && *v <= 1 << 20;
}

RULE(mla_keys)
{
    int64_t h, n, v;
    NEED(is_mat(c, 0, IR_f32) && is_mat(c, 1, IR_f32) && mla_sizes(c, &h, &n, &v),
         "mla_keys: operands");
    struct ir_dim rows = ty(c, 0)->dim[0], r = ty(c, 1)->dim[1];
    NEED(is_heads(ty(c, 0)->dim[1], h, n + v) && dim_is_const(r) && r.add <= 1 << 20 &&
             dim_eq(rows, ty(c, 1)->dim[0]),
         "mla_keys: sizes");
    ir_type_id e[2] = {mat(c, IR_f32, rows, dim_const(h * (n + r.add))),
                       mat(c, IR_f32, rows, dim_const(h * v))};
    *out = type_tuple(c->types, e, 2);
    return true;
}

RULE(mla_keys_grad)
{
    int64_t h, n, v;
    NEED(is_mat(c, 0, IR_f32) && is_mat(c, 1, IR_f32) && mla_sizes(c, &h, &n, &v),
         "mla_keys_grad: operands");
    struct ir_dim rows = ty(c, 0)->dim[0], cols = ty(c, 0)->dim[1];
    NEED(dim_is_const(cols) && cols.add % h == 0 && cols.add / h > n &&
             is_heads(ty(c, 1)->dim[1], h, v) && dim_eq(rows, ty(c, 1)->dim[0]),
         "mla_keys_grad: sizes");
    ir_type_id e[2] = {mat(c, IR_f32, rows, dim_const(h * (n + v))),
                       mat(c, IR_f32, rows, dim_const(cols.add / h - n))};
    *out = type_tuple(c->types, e, 2);
    return true;
}

RULE(last_rows)
{
    NEED(is_mat(c, 0, IR_f32) && dim_eq(ty(c, 0)->dim[0], dim_sym(SYM_N, 1)), "last_rows: operand");
    *out = mat(c, IR_f32, dim_sym(SYM_B, 1), ty(c, 0)->dim[1]);
    return true;
}

/* Operands i and i + 1 are `each` numbers for every sequence, and past. */
static bool are_sequences(const struct shape_ctx *c, size_t i, int64_t each)
{
    return is_vec(c, i, IR_i32) && is_vec(c, i + 1, IR_i32) &&
           dim_eq(ty(c, i)->dim[0], dim_sym(SYM_B, each)) &&
           dim_eq(ty(c, i + 1)->dim[0], dim_sym(SYM_B, 1));
}

/* Operands i and i + 1 are tables of pages, and past. */
static bool are_paged(const struct shape_ctx *c, size_t i)
{
    int64_t context = int_of(c, AK_context, 0);
    return context > 0 && context % IR_PAGE == 0 && are_sequences(c, i, context / IR_PAGE);
}

/* Is operand i a cache of pages or states of `each` rows? */
static bool is_cache(const struct shape_ctx *c, size_t i, int64_t each)
{
    if (!is_mat(c, i, IR_f32) && !is_mat(c, i, IR_bf16)) return false;
    struct ir_dim rows = ty(c, i)->dim[0];
    return each > 0 && dim_is_const(rows) && rows.add % each == 0;
}

RULE(cache_write)
{
    NEED(is_cache(c, 0, IR_PAGE), "cache_write: cache");
    NEED(is_mat(c, 1, IR_f32) && dim_eq(ty(c, 1)->dim[0], dim_sym(SYM_N, 1)) &&
             dim_eq(ty(c, 1)->dim[1], ty(c, 0)->dim[1]) && are_paged(c, 2),
         "cache_write: operands");
    *out = c->src[0];
    return true;
}

RULE(attention_cached)
{
    int64_t h = int_of(c, AK_heads, 0), kv = int_of(c, AK_kv_heads, 0),
            hd = int_of(c, AK_head_dim, 0);
    NEED(h > 0 && kv > 0 && h % kv == 0 && hd > 0, "attention_cached: heads");
    NEED(is_mat(c, 0, IR_f32) && dim_eq(ty(c, 0)->dim[0], dim_sym(SYM_N, 1)) &&
             is_heads(ty(c, 0)->dim[1], h, hd) && are_paged(c, 3),
         "attention_cached: operands");
    NEED(is_cache(c, 1, IR_PAGE) && c->src[1] == c->src[2] && is_heads(ty(c, 1)->dim[1], kv, hd),
         "attention_cached: caches");
    *out = c->src[0];
    return true;
}

RULE(mla_cached)
{
    int64_t h, n, v;
    NEED(is_mat(c, 0, IR_f32) && is_mat(c, 1, IR_f32) && mla_sizes(c, &h, &n, &v),
         "mla_cached: operands");
    NEED(dim_eq(ty(c, 0)->dim[0], dim_sym(SYM_N, 1)) && are_paged(c, 3) && is_cache(c, 2, IR_PAGE),
         "mla_cached: operands");
    struct ir_dim q = ty(c, 0)->dim[1], l = ty(c, 1)->dim[1], lr = ty(c, 2)->dim[1];
    NEED(dim_is_const(q) && dim_is_const(l) && dim_is_const(lr) && l.add >= 1 && lr.add > l.add &&
             is_heads(ty(c, 1)->dim[0], h, n + v) && is_heads(q, h, n + lr.add - l.add),
         "mla_cached: sizes");
    *out = mat(c, IR_f32, ty(c, 0)->dim[0], dim_const(h * v));
    return true;
}

RULE(conv_cached)
{
    ir_type_id y;
    if (!shape_short_conv(c, &y, why)) return false;
    int64_t rows = ty(c, 1)->dim[1].add - 1;
    NEED(is_mat(c, 2, IR_f32) && is_cache(c, 2, rows) &&
             dim_eq(ty(c, 2)->dim[1], ty(c, 0)->dim[1]) &&
             dim_eq(ty(c, 0)->dim[0], dim_sym(SYM_N, 1)) && are_sequences(c, 3, 1),
         "conv_cached: operands");
    ir_type_id e[2] = {y, c->src[2]};
    *out = type_tuple(c->types, e, 2);
    return true;
}

RULE(kda_cached)
{
    ir_type_id o;
    if (!shape_kda(c, &o, why)) return false;
    int64_t h = int_of(c, AK_heads, 0);
    NEED(is_mat(c, 5, IR_f32) && is_cache(c, 5, ty(c, 0)->dim[1].add) &&
             ty(c, 5)->dim[1].add == ty(c, 2)->dim[1].add / h &&
             dim_eq(ty(c, 0)->dim[0], dim_sym(SYM_N, 1)) && are_sequences(c, 6, 1),
         "kda_cached: operands");
    ir_type_id e[2] = {o, c->src[5]};
    *out = type_tuple(c->types, e, 2);
    return true;
}

RULE(depth_mix)
{
    int64_t n = int_of(c, AK_sources, 0);
    NEED(n >= 1 && c->nsrc == (size_t)n + 1, "depth_mix: number of sources");
    NEED(is_vec(c, 0, IR_f32) && is_mat(c, 1, IR_f32), "depth_mix: operands");
    for (int64_t i = 1; i <= n; i++) NEED(c->src[i] == c->src[1], "depth_mix: source types differ");
    struct ir_dim rows = ty(c, 1)->dim[0];
    ir_type_id sn = mat(c, IR_f32, rows, dim_const(n));
    ir_type_id e[4] = {c->src[1], sn, sn, mat(c, IR_f32, rows, dim_const(1))};
    *out = type_tuple(c->types, e, 4);
    return true;
}

/* Types of (dv_0..dv_n-1, du_1..du_q). */
static bool depth_grads(const struct shape_ctx *c, size_t fixed, int64_t n, int64_t q, ir_type_id v,
                        ir_type_id u, ir_type_id *out, const char **why __attribute__((unused)))
{
    const struct ir_attr *have = attr(c, AK_have);
    NEED(have && strlen(have->s) == (size_t)n, "depth grad: `have` does not match the sources");
    size_t acc = 0;
    for (const char *p = have->s; *p; p++) acc += *p == '1';
    NEED(c->nsrc == fixed + (size_t)n + acc, "depth grad: number of operands");
    ir_type_id e[IR_MAX_TUPLE];
    NEED(n + q <= IR_MAX_TUPLE, "depth grad: too many sources");
    for (int64_t i = 0; i < n + q; i++) e[i] = i < n ? v : u;
    *out = type_tuple(c->types, e, (uint32_t)(n + q));
    return true;
}

RULE(depth_mix_grad)
{
    int64_t n = int_of(c, AK_sources, 0);
    NEED(n >= 1 && n < IR_MAX_TUPLE && c->nsrc >= 6, "depth_mix_grad: operands");
    return depth_grads(c, 6, n, 1, c->src[0], c->src[2], out, why);
}

RULE(depth_inter)
{
    int64_t n = int_of(c, AK_sources, 0), q = int_of(c, AK_queries, 0);
    NEED(n >= 1 && n <= IR_MAX_TUPLE && q >= 1 && q <= 4096 && c->nsrc == (size_t)(n + q),
         "depth_inter: operands");
    NEED(is_vec(c, 0, IR_f32) && is_mat(c, (size_t)q, IR_f32), "depth_inter: operands");
    struct ir_dim rows = ty(c, (size_t)q)->dim[0];
    ir_type_id e[4100];
    for (int64_t i = 0; i < q; i++) e[i] = c->src[q];
    e[q] = mat(c, IR_f32, rows, dim_const(q * n));
    e[q + 1] = mat(c, IR_f32, rows, dim_const(n));
    e[q + 2] = mat(c, IR_f32, rows, dim_const(q));
    *out = type_tuple(c->types, e, (uint32_t)(q + 3));
    return true;
}

RULE(depth_inter_grad)
{
    int64_t n = int_of(c, AK_sources, 0), q = int_of(c, AK_queries, 0);
    NEED(n >= 1 && n <= IR_MAX_TUPLE && q >= 1 && q <= 4096 && c->nsrc >= (size_t)(2 + 4 * q + n),
         "depth_inter_grad: operands");
    return depth_grads(c, (size_t)(2 + 4 * q), n, q, c->src[2 + q], c->src[2], out, why);
}

RULE(cross_entropy)
{
    NEED(is_mat(c, 0, IR_f32) && is_vec(c, 1, IR_i32), "cross_entropy: operands");
    ir_type_id r = mat(c, IR_f32, ty(c, 0)->dim[0], dim_const(1)), e[2] = {r, r};
    *out = type_tuple(c->types, e, 2);
    return true;
}

RULE(cross_entropy_grad)
{
    NEED(is_mat(c, 0, IR_f32) && is_vec(c, 1, IR_i32), "cross_entropy_grad: operands");
    *out = c->src[0];
    return true;
}

RULE(head_nll)
{
    NEED(is_mat(c, 0, IR_f32) && is_mat(c, 1, IR_f32) && is_vec(c, 2, IR_i32), "head: operands");
    NEED(dim_eq(ty(c, 0)->dim[1], ty(c, 1)->dim[1]), "head: inner sizes differ");
    *out = mat(c, IR_f32, ty(c, 0)->dim[0], dim_const(1));
    return true;
}

RULE(head_loss)
{
    ir_type_id e[3];
    if (!shape_head_nll(c, &e[0], why)) return false;
    e[1] = c->src[0], e[2] = c->src[1];
    *out = type_tuple(c->types, e, 3);
    return true;
}

RULE(moe_route)
{
    int64_t k = int_of(c, AK_k, 0);
    NEED(is_mat(c, 0, IR_f32) && is_vec(c, 1, IR_f32), "moe_route: operands");
    NEED(dim_eq(ty(c, 0)->dim[1], ty(c, 1)->dim[0]), "moe_route: bias size");
    NEED(k >= 1 && dim_is_const(ty(c, 0)->dim[1]) && k <= ty(c, 0)->dim[1].add, "moe_route: k");
    struct ir_dim r = ty(c, 0)->dim[0];
    ir_type_id e[2] = {mat(c, IR_i32, r, dim_const(k)), mat(c, IR_f32, r, dim_const(k))};
    *out = type_tuple(c->types, e, 2);
    return true;
}

RULE(moe_weights)
{
    NEED(is_mat(c, 0, IR_f32) && is_mat(c, 1, IR_i32), "moe_weights: operands");
    NEED(dim_eq(ty(c, 0)->dim[0], ty(c, 1)->dim[0]), "moe_weights: rows differ");
    *out = mat(c, IR_f32, ty(c, 1)->dim[0], ty(c, 1)->dim[1]);
    return true;
}

RULE(moe_route_grad)
{
    NEED(is_mat(c, 0, IR_f32) && is_mat(c, 1, IR_i32) && is_mat(c, 2, IR_f32), "moe_route_grad");
    *out = c->src[0];
    return true;
}

RULE(moe_sort)
{
    int64_t e = int_of(c, AK_experts, 0);
    NEED(is_mat(c, 0, IR_i32) && e >= 1, "moe_sort: operands");
    struct ir_dim rows = ty(c, 0)->dim[0], k = ty(c, 0)->dim[1];
    NEED(dim_is_const(k) && k.add <= 4096 && rows.mul <= 4096 && e < INT32_MAX, "moe_sort: sizes");
    struct ir_dim a = dim_scale(rows, k.add);
    ir_type_id t = vector(c, IR_i32, a), el[3] = {vector(c, IR_i32, dim_const(e + 1)), t, t};
    *out = type_tuple(c->types, el, 3);
    return true;
}

RULE(moe_gather)
{
    NEED(is_mat(c, 0, IR_f32) && is_vec(c, 1, IR_i32), "moe_gather: operands");
    *out = mat(c, IR_f32, ty(c, 1)->dim[0], ty(c, 0)->dim[1]);
    return true;
}

/* Rows of one slot: A / k tokens. */
static struct ir_dim per_token(struct ir_dim a, int64_t k)
{
    return (struct ir_dim){a.add / k, (int32_t)(a.mul / k), a.sym};
}

RULE(moe_gather_grad)
{
    int64_t k = int_of(c, AK_k, 0);
    NEED(is_mat(c, 0, IR_f32) && is_vec(c, 1, IR_i32) && k >= 1, "moe_gather_grad: operands");
    *out = mat(c, IR_f32, per_token(ty(c, 0)->dim[0], k), ty(c, 0)->dim[1]);
    return true;
}

RULE(moe_combine)
{
    int64_t k = int_of(c, AK_k, 0);
    NEED(is_mat(c, 0, IR_f32) && is_mat(c, 1, IR_f32) && k >= 1, "moe_combine: operands");
    NEED(dim_eq(ty(c, 1)->dim[1], dim_const(k)), "moe_combine: one weight per slot");
    *out = mat(c, IR_f32, ty(c, 1)->dim[0], ty(c, 0)->dim[1]);
    return true;
}

RULE(moe_combine_grad)
{
    NEED(is_mat(c, 0, IR_f32) && is_mat(c, 1, IR_f32) && is_mat(c, 2, IR_f32), "moe_combine_grad");
    ir_type_id e[2] = {c->src[1], c->src[2]};
    *out = type_tuple(c->types, e, 2);
    return true;
}

RULE(adamw)
{
    NEED(c->src[0] == c->src[2] && c->src[0] == c->src[3], "adamw: moments differ from the weight");
    ir_type_id e[3] = {c->src[0], c->src[0], c->src[0]};
    *out = type_tuple(c->types, e, 3);
    return true;
}

RULE(momentum)
{
    NEED(c->src[0] == c->src[1], "momentum: the average differs from the gradient");
    ir_type_id e[2] = {c->src[0], c->src[0]};
    *out = type_tuple(c->types, e, 2);
    return true;
}

RULE(muon_step)
{
    NEED(c->src[0] == c->src[1], "muon_step: the update differs from the weight");
    *out = c->src[0];
    return true;
}

RULE(grad_norm)
{
    NEED(c->nsrc >= 1, "grad_norm: operands");
    ir_type_id e[2] = {vector(c, IR_f32, dim_const(4)),
                       vector(c, IR_f64, dim_const((int64_t)c->nsrc - 1))};
    *out = type_tuple(c->types, e, 2);
    return true;
}

RULE(qk_clip)
{
    NEED(ty(c, 0)->rank == 2, "qk_clip: a matrix");
    NEED(ty(c, 1)->rank == 1 && ty(c, 2)->rank == 1, "qk_clip: largest logits and ctl");
    *out = c->src[0];
    return true;
}

RULE(balance)
{
    NEED(c->src[0] == c->src[1], "balance: one load per expert");
    *out = c->src[0];
    return true;
}

bool op_shape(enum ir_op op, const struct shape_ctx *c, ir_type_id *out,
              const char **why __attribute__((unused)))
{
    int want = op_info(op)->sources;
    NEED(want < 0 || (size_t)want == c->nsrc, "wrong number of operands");
    switch (op) {
/* clang-format off */
#define OP(name, sources, shape, vjp, cost, stages, flags)                                         \
    case OP_##name: return shape_##shape(c, out, why);
#include "op.def"
    /* clang-format on */
    case OP_COUNT: break;
    }
    FAIL("no such operation");
}
