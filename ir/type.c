#include "type.h"
#include "base/map.h"
#include "base/vec.h"
#include <ctype.h>
#include <stdlib.h>

struct ir_types {
    struct arena *arena;
    VEC(struct ir_type) type;
    VEC(ir_type_id) elem;
    struct map map;
};

static const struct {
    const char *name;
    size_t size;
} dtypes[IR_DTYPES] = {{"f32", 4}, {"bf16", 2}, {"f64", 8}, {"i32", 4}, {"tuple", 0}};
static const char *const syms[SYM_COUNT] = {"", "B", "T", "N"};

size_t dtype_size(enum ir_dtype t)
{
    return dtypes[t].size;
}

const char *dtype_name(enum ir_dtype t)
{
    return dtypes[t].name;
}

int64_t dim_value(struct ir_dim d, struct ir_bind b)
{
    int64_t v = d.sym == SYM_B ? b.B : d.sym == SYM_T ? b.T : b.B * b.T;
    return d.sym == SYM_one ? d.add : d.mul * v + d.add;
}

struct ir_types *types_open(struct arena *a)
{
    struct ir_types *t = NEW(a, struct ir_types, 1);
    t->arena = a;
    map_init(&t->map, a);
    type_add(t, IR_f32, 0, NULL);
    return t;
}

static ir_type_id intern(struct ir_types *t, const struct ir_type *ty, const ir_type_id *elem)
{
    /* The key holds values, not the slice's position; unused dims are zero. */
    struct {
        struct ir_dim dim[IR_MAX_RANK];
        uint64_t dtype, rank, count;
    } k;
    memset(&k, 0, sizeof k);
    memcpy(k.dim, ty->dim, sizeof k.dim);
    k.dtype = ty->dtype, k.rank = ty->rank, k.count = ty->count;
    struct sb s = {0};
    sb_add(&s, (const char *)&k, sizeof k);
    sb_add(&s, (const char *)elem, ty->count * sizeof *elem);
    uint32_t *at = map_str(&t->map, (struct str){s.p, s.n});
    sb_free(&s);
    if (*at) return *at - 1;
    ir_type_id id = (ir_type_id)t->type.n;
    struct ir_type n = *ty;
    n.first = (uint32_t)t->elem.n;
    for (uint32_t i = 0; i < ty->count; i++) vec_push(t->arena, &t->elem, elem[i]);
    vec_push(t->arena, &t->type, n);
    *at = id + 1;
    return id;
}

ir_type_id type_add(struct ir_types *t, enum ir_dtype dtype, unsigned rank,
                    const struct ir_dim *dim)
{
    CHECK(rank <= IR_MAX_RANK);
    struct ir_type ty = {.dtype = (uint8_t)dtype, .rank = (uint8_t)rank};
    for (unsigned i = 0; i < rank; i++) ty.dim[i] = dim[i];
    return intern(t, &ty, NULL);
}

ir_type_id type_tuple(struct ir_types *t, const ir_type_id *elem, uint32_t n)
{
    struct ir_type ty = {.dtype = IR_tuple, .count = n};
    return intern(t, &ty, elem);
}

const struct ir_type *type_get(const struct ir_types *t, ir_type_id id)
{
    CHECK(id < t->type.n);
    return &t->type.p[id];
}

ir_type_id type_elem(const struct ir_types *t, ir_type_id tuple, uint32_t i)
{
    const struct ir_type *ty = type_get(t, tuple);
    CHECK(ty->dtype == IR_tuple && i < ty->count);
    return t->elem.p[ty->first + i];
}

int64_t type_count(const struct ir_types *t, ir_type_id id, struct ir_bind b)
{
    const struct ir_type *ty = type_get(t, id);
    int64_t n = 1;
    for (unsigned i = 0; i < ty->rank; i++)
        if (__builtin_mul_overflow(n, dim_value(ty->dim[i], b), &n)) BUG("element count overflows");
    return n;
}

struct ir_dim type_rows(const struct ir_types *t, ir_type_id id)
{
    const struct ir_type *ty = type_get(t, id);
    struct ir_dim r = dim_const(1);
    for (int i = 0; i + 1 < ty->rank; i++) {
        if (dim_is_const(r))
            r = dim_scale(ty->dim[i], r.add);
        else if (dim_is_const(ty->dim[i]))
            r = dim_scale(r, ty->dim[i].add);
        else
            BUG("a type with two run-time row sizes");
    }
    return r;
}

struct ir_dim type_cols(const struct ir_types *t, ir_type_id id)
{
    const struct ir_type *ty = type_get(t, id);
    return ty->rank ? ty->dim[ty->rank - 1] : dim_const(1);
}

static void dim_print(struct ir_dim d, struct sb *out)
{
    if (d.sym == SYM_one) {
        sb_printf(out, "%lld", (long long)d.add);
        return;
    }
    if (d.mul != 1) sb_printf(out, "%d", d.mul);
    sb_str(out, syms[d.sym]);
    if (d.add) sb_printf(out, "+%lld", (long long)d.add);
}

void type_print(const struct ir_types *t, ir_type_id id, struct sb *out)
{
    const struct ir_type *ty = type_get(t, id);
    if (ty->dtype == IR_tuple) {
        sb_char(out, '(');
        for (uint32_t i = 0; i < ty->count; i++) {
            if (i) sb_str(out, ", ");
            type_print(t, t->elem.p[ty->first + i], out);
        }
        sb_char(out, ')');
        return;
    }
    sb_printf(out, "%s[", dtypes[ty->dtype].name);
    for (unsigned i = 0; i < ty->rank; i++) {
        if (i) sb_char(out, ',');
        dim_print(ty->dim[i], out);
    }
    sb_char(out, ']');
}

/* Sizes are below 2^40, so that products of two with a factor do not overflow unnoticed. */
#define MOST_ELEMENTS ((long long)1 << 40)

static bool dim_parse(const char **at, struct ir_dim *out)
{
    char *end;
    bool digits = isdigit((unsigned char)**at);
    long long n = digits ? strtoll(*at, &end, 10) : 1;
    if (digits) *at = end;
    if (n > MOST_ELEMENTS) return false;
    for (int s = 1; s < SYM_COUNT; s++) {
        if (**at != syms[s][0]) continue;
        if (n > INT32_MAX) return false;
        ++*at;
        *out = dim_sym((enum ir_sym)s, n);
        if (**at == '+') {
            ++*at;
            if (!isdigit((unsigned char)**at)) return false;
            out->add = strtoll(*at, &end, 10);
            *at = end;
            if (out->add > MOST_ELEMENTS) return false;
        }
        return true;
    }
    *out = dim_const(n);
    return digits;
}

static bool tuple_parse(struct ir_types *t, const char **at, ir_type_id *out)
{
    ir_type_id elem[IR_MAX_TUPLE];
    uint32_t n = 0;
    while (**at != ')') {
        if (n && strncmp(*at, ", ", 2) == 0) *at += 2;
        if (n == IR_MAX_TUPLE || **at == '(' || !type_parse(t, at, &elem[n++])) return false;
    }
    ++*at;
    *out = type_tuple(t, elem, n);
    return true;
}

bool type_parse(struct ir_types *t, const char **at, ir_type_id *out)
{
    if (**at == '(') {
        ++*at;
        return tuple_parse(t, at, out);
    }
    for (int d = 0; d < IR_tuple; d++) {
        size_t n = strlen(dtypes[d].name);
        if (strncmp(*at, dtypes[d].name, n) || (*at)[n] != '[') continue;
        *at += n + 1;
        struct ir_dim dim[IR_MAX_RANK];
        unsigned rank = 0;
        while (**at != ']') {
            if (rank && *(*at)++ != ',') return false;
            if (rank == IR_MAX_RANK || !dim_parse(at, &dim[rank++])) return false;
        }
        ++*at;
        *out = type_add(t, (enum ir_dtype)d, rank, dim);
        return true;
    }
    return false;
}
