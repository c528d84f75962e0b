#include "graph.h"
#include "panel.h"

static const struct {
    const char *name;
    char kind;
} keys[AK_COUNT] = {
#define ATTR(name, kind) {#name, #kind[0]},
#include "attr.def"
};

char attr_kind(enum ir_attr_key k)
{
    return keys[k].kind;
}

const char *attr_name(enum ir_attr_key k)
{
    return keys[k].name;
}

struct ir_graph *graph_open(struct arena *a, const char *program, enum ir_stage stage,
                            struct ir_types *types, struct intern *names)
{
    struct ir_graph *g = NEW(a, struct ir_graph, 1);
    g->arena = a;
    g->types = types ? types : types_open(a);
    g->names = names ? names : intern_open(a);
    g->stage = stage;
    g->program = str_dup(a, str_of(program));
    map_init(&g->cse, a);
    map_init(&g->attr_map, a);
    map_init(&g->out_names, a);
    vec_push(a, &g->attrs, ((struct str){"", 0}));
    vec_push(a, &g->spans, ((struct span){0, 0, 0}));
    return g;
}

/* ---- attribute lists: encoded as key byte + 8 value bytes (numbers) or key, 4-byte length, text
 * ---- */

static uint32_t attrs_id(struct ir_graph *g, struct str s)
{
    if (!s.n) return 0;
    uint32_t *at = map_str(&g->attr_map, s);
    if (!*at) {
        *at = (uint32_t)g->attrs.n;
        vec_push(g->arena, &g->attrs, ((struct str){str_dup(g->arena, s), s.n}));
        return (uint32_t)g->attrs.n - 1;
    }
    return *at;
}

static uint32_t attrs_encode(struct ir_graph *g, const struct ir_attr *attr, size_t n)
{
    if (!n) return 0;
    struct sb s = {0};
    for (int k = 0; k < AK_COUNT; k++) /* canonical: in the order of attr.def */
        for (size_t i = 0; i < n; i++) {
            if (attr[i].key != (enum ir_attr_key)k) continue;
            sb_char(&s, (char)k);
            if (keys[k].kind == 's') {
                uint32_t len = (uint32_t)strlen(attr[i].s);
                sb_add(&s, (const char *)&len, 4);
                sb_add(&s, attr[i].s, len + 1);
            } else if (keys[k].kind == 'i') {
                sb_add(&s, (const char *)&attr[i].i, 8);
            } else {
                sb_add(&s, (const char *)&attr[i].f, 8);
            }
        }
    uint32_t id = attrs_id(g, (struct str){s.p, s.n});
    sb_free(&s);
    return id;
}

/* The attribute at s.p + at; returns where the next one begins. */
static size_t attr_decode(struct str s, size_t at, struct ir_attr *x)
{
    *x = (struct ir_attr){.key = (enum ir_attr_key)s.p[at++]};
    if (keys[x->key].kind == 's') {
        uint32_t len;
        memcpy(&len, s.p + at, 4);
        x->s = s.p + at + 4;
        return at + 5 + (size_t)len;
    }
    memcpy(keys[x->key].kind == 'i' ? (void *)&x->i : (void *)&x->f, s.p + at, 8);
    return at + 8;
}

size_t ir_attrs(const struct ir_graph *g, ir_id n, struct ir_attr *out)
{
    struct str s = g->attrs.p[ir_at(g, n)->attr];
    size_t count = 0;
    for (size_t at = 0; at < s.n;) at = attr_decode(s, at, &out[count++]);
    return count;
}

static bool find_attr(const struct ir_graph *g, ir_id n, enum ir_attr_key k, struct ir_attr *out)
{
    struct str s = g->attrs.p[ir_at(g, n)->attr];
    for (size_t at = 0; at < s.n;) {
        at = attr_decode(s, at, out);
        if (out->key == k) return true;
    }
    return false;
}

int64_t ir_int(const struct ir_graph *g, ir_id n, enum ir_attr_key k, int64_t absent)
{
    struct ir_attr x;
    return find_attr(g, n, k, &x) ? x.i : absent;
}

double ir_num(const struct ir_graph *g, ir_id n, enum ir_attr_key k, double absent)
{
    struct ir_attr x;
    return find_attr(g, n, k, &x) ? x.f : absent;
}

const char *ir_word(const struct ir_graph *g, ir_id n, enum ir_attr_key k, const char *absent)
{
    struct ir_attr x;
    return find_attr(g, n, k, &x) ? x.s : absent;
}

/* ---- nodes ---- */

static ir_id insert(struct ir_graph *g, const struct ir_node *x, const ir_id *src)
{
    enum { HEAD = 5, FEW = 32 };
    uint32_t few[HEAD + FEW], *key = few;
    if (x->nsrc > FEW) key = NEW(g->arena, uint32_t, HEAD + (size_t)x->nsrc);
    memcpy(key, (uint32_t[HEAD]){x->op, x->type, x->attr, x->instance, x->nsrc}, HEAD * 4);
    if (x->nsrc) memcpy(key + HEAD, src, x->nsrc * sizeof *src);
    uint32_t *at =
        map_str(&g->cse, (struct str){(const char *)key, (HEAD + (size_t)x->nsrc) * sizeof *key});
    if (*at) return *at - 1;
    ir_id id = (ir_id)g->node.n;
    *at = id + 1;
    struct ir_node n = *x;
    n.src = (uint32_t)g->edge.n;
    for (uint32_t i = 0; i < x->nsrc; i++) {
        CHECK(src[i] < id);
        vec_push(g->arena, &g->edge, src[i]);
    }
    vec_push(g->arena, &g->node, n);
    return id;
}

static uint32_t span_id(struct ir_graph *g, struct span s)
{
    if (!s.file) return 0;
    struct span last = vec_last(&g->spans);
    if (memcmp(&last, &s, sizeof s)) vec_push(g->arena, &g->spans, s);
    return (uint32_t)g->spans.n - 1;
}

static bool is_const(const struct ir_graph *g, ir_id n, double value)
{
    return ir_at(g, n)->op == OP_const && ir_num(g, n, AK_value, 0) == value;
}

/* Identities that hold bit for bit in every arithmetic (x + 0 is left out for the sign of zero only
 * where x is a constant). IR_NONE where nothing folds. */
static ir_id fold(struct ir_graph *g, enum ir_op op, const ir_id *src, ir_type_id type)
{
    if (op == OP_mul || op == OP_add || op == OP_sub || op == OP_div) {
        double unit = op == OP_mul || op == OP_div;
        bool comm = op == OP_mul || op == OP_add;
        if (is_const(g, src[1], unit) && ir_at(g, src[0])->type == type) return src[0];
        if (comm && is_const(g, src[0], unit) && ir_at(g, src[1])->type == type) return src[1];
    }
    if (op == OP_neg && ir_at(g, src[0])->op == OP_neg) return ir_src(g, src[0], 0);
    if (op == OP_reshape && ir_at(g, src[0])->type == type) return src[0];
    return IR_NONE;
}

/* Operands of a commutative op by rising id, in `two`. */
static const ir_id *in_order(enum ir_op op, const ir_id *src, ir_id two[2])
{
    if (!(op_info(op)->flags & F_COMM) || src[0] <= src[1]) return src;
    two[0] = src[1], two[1] = src[0];
    return two;
}

static ir_id add_node(struct ir_graph *g, enum ir_op op, ir_type_id type, const ir_id *src,
                      size_t nsrc, const struct ir_attr *attr, size_t nattr, uint32_t instance,
                      const char *name)
{
    ir_id two[2];
    src = in_order(op, src, two);
    ir_id folded = instance ? IR_NONE : fold(g, op, src, type);
    if (folded != IR_NONE) return folded;
    struct ir_node x = {.op = (uint16_t)op, .nsrc = (uint32_t)nsrc, .type = type};
    x.attr = attrs_encode(g, attr, nattr);
    x.instance = instance || !(op_info(op)->flags & F_STATE) ? instance : ++g->next_instance;
    if (instance > g->next_instance) g->next_instance = instance;
    x.span = span_id(g, g->cur_span);
    if (name && *name) x.name = intern_add(g->names, str_of(name));
    return insert(g, &x, src);
}

static ir_id checked(struct ir_graph *g, enum ir_op op, ir_type_id given, const ir_id *src,
                     size_t nsrc, const struct ir_attr *attr, size_t nattr, uint32_t instance,
                     const char *name)
{
    ir_type_id small[64], *types = nsrc <= 64 ? small : NEW(g->arena, ir_type_id, nsrc);
    for (size_t i = 0; i < nsrc; i++) types[i] = ir_at(g, src[i])->type;
    struct shape_ctx c = {g, g->types, types, nsrc, attr, nattr, given};
    ir_type_id type;
    const char *why = NULL;
    if (!op_shape(op, &c, &type, &why))
        BUG("%s%s%s: %s", op_info(op)->name, name ? " " : "", name ? name : "", why);
    return add_node(g, op, type, src, nsrc, attr, nattr, instance, name);
}

ir_id ir_add(struct ir_graph *g, enum ir_op op, const ir_id *src, size_t nsrc,
             const struct ir_attr *attr, size_t nattr, const char *name)
{
    return checked(g, op, UINT32_MAX, src, nsrc, attr, nattr, 0, name);
}

ir_id ir_add_typed(struct ir_graph *g, enum ir_op op, ir_type_id type, const ir_id *src,
                   size_t nsrc, const struct ir_attr *attr, size_t nattr, const char *name)
{
    return checked(g, op, type, src, nsrc, attr, nattr, 0, name);
}

ir_id ir_add_instance(struct ir_graph *g, enum ir_op op, ir_type_id type, const ir_id *src,
                      size_t nsrc, const struct ir_attr *attr, size_t nattr, uint32_t instance,
                      const char *name)
{
    return checked(g, op, type, src, nsrc, attr, nattr, instance, name);
}

ir_id ir_copy(struct ir_graph *g, const struct ir_graph *from, ir_id n, const ir_id *src)
{
    const struct ir_node *o = ir_at(from, n);
    CHECK(g->types == from->types && g->names == from->names);
    if (!g->node.n) { /* most passes keep most nodes */
        vec_room(g->arena, &g->node, from->node.n);
        vec_room(g->arena, &g->edge, from->edge.n);
        vec_room(g->arena, &g->spans, from->spans.n);
        map_reserve(&g->cse, from->node.n);
    }
    ir_id two[2];
    src = in_order((enum ir_op)o->op, src, two);
    ir_id folded = fold(g, (enum ir_op)o->op, src, o->type);
    if (folded != IR_NONE) return folded;
    struct ir_node x = *o;
    x.attr = attrs_id(g, from->attrs.p[o->attr]);
    x.span = span_id(g, from->spans.p[o->span]);
    if (x.instance > g->next_instance) g->next_instance = x.instance;
    return insert(g, &x, src);
}

void ir_output(struct ir_graph *g, const char *name, ir_id id)
{
    struct ir_output o = {intern_add(g->names, str_of(name)), id, 0};
    uint32_t *have = map_num(&g->out_names, o.name);
    CHECK(!*have);
    *have = 1;
    vec_push(g->arena, &g->out, o);
}

ir_id ir_find_output(const struct ir_graph *g, const char *name)
{
    for (size_t i = 0; i < g->out.n; i++)
        if (!strcmp(intern_text(g->names, g->out.p[i].name), name)) return g->out.p[i].id;
    return IR_NONE;
}

/* ---- short forms ---- */

ir_id ir_const(struct ir_graph *g, double value)
{
    return ir_add_typed(g, OP_const, 0, NO_SRCS, ATTRS(A_NUM(value, value)), NULL);
}

ir_id ir_unary(struct ir_graph *g, enum ir_op op, ir_id a)
{
    return ir_add(g, op, SRCS(a), NO_ATTRS, NULL);
}

ir_id ir_binary(struct ir_graph *g, enum ir_op op, ir_id a, ir_id b)
{
    return ir_add(g, op, SRCS(a, b), NO_ATTRS, NULL);
}

ir_id ir_get(struct ir_graph *g, ir_id tuple, uint32_t index)
{
    return ir_add(g, OP_get, SRCS(tuple), ATTRS(A_INT(index, index)), NULL);
}

ir_id ir_matmul_as(struct ir_graph *g, ir_id a, ir_id b, bool ta, bool tb, bool bf16,
                   const char *name)
{
    if (!bf16) return ir_matmul(g, a, b, ta, tb, name);
    return ir_add(g, OP_matmul, SRCS(a, b), ATTRS(A_INT(ta, ta), A_INT(tb, tb), A_INT(bf16, 1)),
                  name);
}

ir_id ir_matmul(struct ir_graph *g, ir_id a, ir_id b, bool ta, bool tb, const char *name)
{
    return ir_add(g, OP_matmul, SRCS(a, b), ATTRS(A_INT(ta, ta), A_INT(tb, tb)), name);
}

ir_id ir_slice(struct ir_graph *g, ir_id a, int axis, int64_t from, int64_t to)
{
    return ir_add(g, OP_slice, SRCS(a), ATTRS(A_INT(axis, axis), A_INT(from, from), A_INT(to, to)),
                  NULL);
}

ir_id ir_reshape(struct ir_graph *g, ir_id a, ir_type_id type)
{
    return ir_add_typed(g, OP_reshape, type, SRCS(a), NO_ATTRS, NULL);
}

ir_type_id ir_type2(struct ir_graph *g, enum ir_dtype t, struct ir_dim rows, struct ir_dim cols)
{
    return type_add(g->types, t, 2, (const struct ir_dim[]){rows, cols});
}

ir_type_id ir_type1(struct ir_graph *g, enum ir_dtype t, struct ir_dim n)
{
    return type_add(g->types, t, 1, &n);
}

/* ---- access ---- */

struct ir_dim ir_rows(const struct ir_graph *g, ir_id n)
{
    return type_rows(g->types, ir_at(g, n)->type);
}

struct ir_dim ir_cols(const struct ir_graph *g, ir_id n)
{
    return type_cols(g->types, ir_at(g, n)->type);
}

const char *ir_name(const struct ir_graph *g, ir_id n)
{
    return intern_text(g->names, ir_at(g, n)->name);
}

void ir_set_name(struct ir_graph *g, ir_id n, const char *name)
{
    ir_at(g, n);
    if (!g->node.p[n].name) g->node.p[n].name = intern_add(g->names, str_of(name));
}

struct span ir_span(const struct ir_graph *g, ir_id n)
{
    return g->spans.p[ir_at(g, n)->span];
}

uint32_t *ir_uses(const struct ir_graph *g, struct arena *a)
{
    uint32_t *u = NEW(a, uint32_t, g->node.n);
    for (ir_id n = 0; n < g->node.n; n++)
        for (uint32_t i = 0; i < g->node.p[n].nsrc; i++) u[ir_src(g, n, i)]++;
    for (size_t i = 0; i < g->out.n; i++) u[g->out.p[i].id]++;
    return u;
}

const struct ir_readers *ir_readers(const struct ir_graph *g)
{
    struct ir_readers *r = g->readers;
    if (r && r->nodes == g->node.n && r->outs == g->out.n) return r;
    r = NEW(g->arena, struct ir_readers, 1);
    r->nodes = g->node.n, r->outs = g->out.n;
    r->first = NEW(g->arena, uint32_t, r->nodes + 2);
    r->reader = NEW(g->arena, ir_id, g->edge.n);
    r->output = NEW(g->arena, bool, r->nodes);
    for (size_t i = 0; i < g->edge.n; i++) r->first[g->edge.p[i] + 2]++;
    for (size_t i = 2; i < r->nodes + 2; i++) r->first[i] += r->first[i - 1];
    for (ir_id n = 0; n < r->nodes; n++) /* moves every first[n + 1] to where it belongs */
        for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++)
            r->reader[r->first[ir_src(g, n, i) + 1]++] = n;
    for (size_t i = 0; i < r->outs; i++) r->output[g->out.p[i].id] = true;
    ((struct ir_graph *)g)->readers = r; /* what is kept is no change of the graph */
    return r;
}

struct ir_view ir_view(const struct ir_graph *g, ir_id n)
{
    const struct ir_node *x = ir_at(g, n);
    struct ir_dim cols = ir_cols(g, n);
    int64_t axis = ir_int(g, n, AK_axis, 0), last = (int64_t)ir_ty(g, n)->rank - 1;
    /* a slice of an axis between rows and columns has no single row stride */
    if (x->op == OP_slice && (axis == 0 || axis == last)) {
        struct ir_view v = ir_view(g, ir_src(g, n, 0));
        int64_t step = axis == last ? 1 : v.ld;
        for (int64_t i = 1; i < last && axis != last; i++) {
            CHECK(dim_is_const(ir_ty(g, n)->dim[i]));
            step *= ir_ty(g, n)->dim[i].add;
        }
        CHECK(dim_is_const(v.offset));
        v.offset.add += ir_int(g, n, AK_from, 0) * step;
        return v;
    }
    if (x->op == OP_reshape) {
        struct ir_view v = ir_view(g, ir_src(g, n, 0));
        struct ir_dim from = ir_cols(g, ir_src(g, n, 0));
        /* rows that do not lie end to end cannot be cut anew, except to themselves */
        if (v.ld == from.add || dim_eq(from, cols)) {
            v.ld = v.ld == from.add ? cols.add : v.ld;
            return v;
        }
    }
    return (struct ir_view){n, dim_const(0), dim_is_const(cols) ? cols.add : 0};
}

uint64_t graph_hash(const struct ir_graph *g)
{
    struct sb s = {0};
    graph_print(g, NULL, &s);
    uint64_t h = hash_bytes(s.p, s.n, 0);
    sb_free(&s);
    return h;
}

bool ir_narrow_result(const struct ir_graph *g, ir_id n, uint32_t i)
{
    const char *w = ir_word(g, n, AK_narrow, "");
    if (strlen(w) > i && w[i] == '1') return true;
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    return (op == OP_param || op == OP_input) && ir_stored(g, n) == STORE_rows_bf16;
}

bool ir_narrow(const struct ir_graph *g, ir_id n)
{
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    if (op == OP_get)
        return ir_narrow_result(g, ir_src(g, n, 0), (uint32_t)ir_int(g, n, AK_index, 0));
    if ((op == OP_slice || op == OP_reshape) && ir_view(g, n).root != n)
        return ir_narrow(g, ir_src(g, n, 0));
    return ir_narrow_result(g, n, 0);
}

size_t ir_elem_bytes(const struct ir_graph *g, ir_id n)
{
    return ir_narrow(g, n) ? 2 : dtype_size((enum ir_dtype)ir_ty(g, n)->dtype);
}

size_t ir_result_bytes(const struct ir_graph *g, ir_id n, uint32_t i)
{
    const struct ir_type *t = ir_ty(g, n);
    if (ir_narrow_result(g, n, i)) return 2;
    if (t->dtype == IR_tuple) t = type_get(g->types, type_elem(g->types, ir_at(g, n)->type, i));
    return dtype_size((enum ir_dtype)t->dtype);
}
