/* See memplan.h. In order: elements (results of nodes) and their lifetimes; buffers, where elements
 * that share memory share one; places of named values; lifetimes of buffers; offsets. */
#include "compiler/memplan.h"
#include "codegen/kernel.h"
#include "compiler/memplan_place.h"
#include <search.h>
#include <stdlib.h>

#define NOBUF UINT32_MAX
/* Large places in scratch are an odd number of cache lines longer: values of one size, one after
 * the other, would all begin at the same set of the first-level cache, and kernels that walk over
 * many of them at once would push their own rows out. */
enum { ALIGN = 64, SPREAD_FROM = 1 << 14, SPREAD = 11 * 64 };

struct planner {
    struct arena *a;
    const struct ir_graph *g;
    struct memplan *p;
    struct layout *layout;
    const size_t *workspace;
    uint32_t *concat_buf; /* of each node: buffer of a concat that has pieces already */
    struct map named;     /* input names of this graph: buffer + 1 */
    uint32_t end;         /* number of nodes: the time after the last one */
};

static uint64_t aligned(uint64_t bytes)
{
    return bytes ? (bytes + ALIGN - 1) / ALIGN * ALIGN : ALIGN;
}

static uint64_t spread(uint64_t bytes)
{
    return aligned(bytes) + (bytes < SPREAD_FROM ? 0 : SPREAD);
}

/* ---- elements ---- */

static bool is_view(const struct ir_graph *g, ir_id n)
{
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    return op == OP_get || op == OP_slice || (op == OP_reshape && ir_view(g, n).root != n);
}

static uint32_t num_results(const struct ir_graph *g, ir_id n)
{
    if (is_view(g, n)) return 0;
    return ir_ty(g, n)->dtype == IR_tuple ? ir_ty(g, n)->count : 1;
}

static ir_type_id result_type(const struct ir_graph *g, ir_id n, uint32_t i)
{
    ir_type_id t = ir_at(g, n)->type;
    return type_get(g->types, t)->dtype == IR_tuple ? type_elem(g->types, t, i) : t;
}

static uint64_t result_bytes(const struct planner *c, ir_id n, uint32_t i)
{
    return (uint64_t)type_count(c->g->types, result_type(c->g, n, i), c->p->bind) *
           ir_result_bytes(c->g, n, i);
}

/* Of a value: views and elements of tuples too. */
static uint64_t value_bytes(const struct planner *c, ir_id n)
{
    return (uint64_t)type_count(c->g->types, ir_at(c->g, n)->type, c->p->bind) *
           ir_elem_bytes(c->g, n);
}

/* The element that a value (not a tuple) shows, and how far behind its beginning in bytes. */
static uint32_t elem_of(const struct memplan *p, ir_id n, uint64_t *offset)
{
    const struct ir_graph *g = p->g;
    struct ir_view v = ir_view(g, n);
    if (offset) *offset = (uint64_t)dim_value(v.offset, p->bind) * ir_elem_bytes(g, n);
    if (ir_at(g, v.root)->op != OP_get) return p->first_elem[v.root];
    ir_id tuple = ir_src(g, v.root, 0);
    return p->first_elem[tuple] + (uint32_t)ir_int(g, v.root, AK_index, 0);
}

/* Definition and last use of every element; outputs are used after the last node. */
static void find_elems(struct planner *c)
{
    struct memplan *p = c->p;
    p->first_elem = NEW(c->a, uint32_t, c->end);
    for (ir_id n = 0; n < c->end; n++) {
        p->first_elem[n] = (uint32_t)p->num_elems;
        p->num_elems += num_results(c->g, n);
    }
    p->elem = NEW(c->a, struct mem_elem, p->num_elems);
    for (ir_id n = 0; n < c->end; n++) {
        for (uint32_t i = 0; i < num_results(c->g, n); i++)
            p->elem[p->first_elem[n] + i] = (struct mem_elem){NOBUF, 0, IR_NONE, n, n};
        if (is_view(c->g, n)) continue;
        for (uint32_t i = 0; i < ir_at(c->g, n)->nsrc; i++)
            p->elem[elem_of(p, ir_src(c->g, n, i), NULL)].last = n;
    }
    for (size_t i = 0; i < c->g->out.n; i++)
        p->elem[elem_of(p, c->g->out.p[i].id, NULL)].last = c->end;
}

/* ---- buffers ---- */

static const char *label_of(const struct planner *c, ir_id n, const char *what)
{
    const char *name = ir_name(c->g, n), *op = op_info((enum ir_op)ir_at(c->g, n)->op)->name;
    if (*name) return str_fmt(c->a, "%s%s", name, what);
    return str_fmt(c->a, "%s.%u%s", op, n, what);
}

static uint32_t new_buffer(struct planner *c, const char *name, uint64_t bytes)
{
    struct mem_buffer b = {.name = name, .at = {SA_scratch, 0}, .bytes = bytes};
    vec_push(c->a, &c->p->buf, b);
    return (uint32_t)c->p->buf.n - 1;
}

/* The place of a name: persistent where all dims are constants, else of this plan. */
static struct sa_buf named_place(struct planner *c, const char *name, ir_type_id type)
{
    const struct ir_type *t = type_get(c->g->types, type);
    uint64_t bytes =
        (uint64_t)type_count(c->g->types, type, c->p->bind) * dtype_size((enum ir_dtype)t->dtype);
    int64_t dims[SA_RANK];
    bool constant = true;
    for (unsigned i = 0; i < t->rank; i++) {
        constant = constant && dim_is_const(t->dim[i]);
        dims[i] = dim_value(t->dim[i], c->p->bind);
    }
    if (!constant) {
        struct sa_buf at = {SA_slot, c->p->bytes[SA_slot]};
        c->p->bytes[SA_slot] += aligned(bytes);
        return at;
    }
    const struct layout_item *have =
        layout_add(c->layout, name, (enum ir_dtype)t->dtype, t->rank, dims);
    if (!have) BUG("%s: '%s' has another type than in an earlier program", c->g->program, name);
    return (struct sa_buf){SA_persistent, have->offset};
}

static void add_named(struct planner *c, const char *name, ir_id n, struct sa_buf at)
{
    struct mem_named x = {name, n, at};
    vec_push(c->a, &c->p->named, x);
}

/* The place of a parameter with the attribute `store`; its memory is no array of its type, so it is
 * no named value. */
static uint32_t stored_buffer(struct planner *c, const char *name, ir_id n)
{
    const struct layout_stored *x =
        layout_store(c->layout, name, ir_stored(c->g, n), store_shape(c->g, n));
    if (!x) BUG("%s: '%s' is stored otherwise in an earlier program", c->g->program, name);
    uint32_t b = new_buffer(c, name, x->bytes);
    c->p->buf.p[b].at = (struct sa_buf){SA_weights, x->offset};
    return b;
}

static uint32_t leaf_buffer(struct planner *c, ir_id n)
{
    const char *name = ir_word(c->g, n, AK_name, NULL);
    if (!name) name = ir_name(c->g, n);
    if (!*name) BUG("%s: node %u has no name", c->g->program, n);
    uint32_t *have = map_str(&c->named, str_of(name)), b;
    if (*have) return *have - 1;
    if (ir_stored(c->g, n)) {
        b = stored_buffer(c, name, n);
    } else {
        b = new_buffer(c, name, value_bytes(c, n));
        c->p->buf.p[b].at = named_place(c, name, ir_at(c->g, n)->type);
        add_named(c, name, n, c->p->buf.p[b].at);
    }
    c->p->buf.p[b].named = true;
    *map_str(&c->named, str_of(name)) = b + 1;
    return b;
}

/* Bytes from the beginning of a concat to its piece `v`. */
static uint64_t piece_offset(const struct planner *c, ir_id concat, ir_id v)
{
    const struct ir_graph *g = c->g;
    uint32_t axis = (uint32_t)ir_int(g, concat, AK_axis, 0);
    int64_t at = 0;
    for (uint32_t k = 0;; k++) {
        ir_id s = ir_src(g, concat, k);
        if (s == v) break;
        int64_t inner = 1;
        for (uint32_t d = axis; d < ir_ty(g, s)->rank; d++)
            inner *= dim_value(ir_ty(g, s)->dim[d], c->p->bind);
        at += inner;
    }
    return (uint64_t)at * ir_elem_bytes(g, v);
}

static uint32_t concat_buffer(struct planner *c, ir_id concat)
{
    uint32_t *b = &c->concat_buf[concat];
    if (*b == NOBUF) *b = new_buffer(c, label_of(c, concat, ""), value_bytes(c, concat));
    return *b;
}

/* The value that stands for result i of n among the operands of `reader`. */
static ir_id operand_for(const struct ir_graph *g, ir_id reader, ir_id n, uint32_t i)
{
    for (uint32_t k = 0; k < ir_at(g, reader)->nsrc; k++) {
        ir_id s = ir_src(g, reader, k);
        if (s == n) return s;
        if (ir_at(g, s)->op == OP_get && ir_src(g, s, 0) == n && ir_int(g, s, AK_index, 0) == i)
            return s;
    }
    BUG("%s: result %u of node %u is no piece of node %u", g->program, i, n, reader);
}

/* Whether result i of n may take over the memory of operand j. */
static bool may_take(const struct planner *c, ir_id n, uint32_t i, uint32_t j)
{
    const struct memplan *p = c->p;
    ir_id s = ir_src(c->g, n, j);
    uint64_t offset;
    uint32_t e = elem_of(p, s, &offset);
    uint64_t bytes = result_bytes(c, n, i);
    bool whole = offset == 0 && p->elem[e].buf != NOBUF && p->elem[e].concat == IR_NONE &&
                 p->elem[e].offset == 0 && p->buf.p[p->elem[e].buf].bytes == bytes &&
                 value_bytes(c, s) == bytes;
    if (op_info((enum ir_op)ir_at(c->g, n)->op)->flags & F_STATE) {
        if (!whole || p->elem[e].last != n)
            BUG("%s: node %u cannot replace operand %u", c->g->program, n, j);
        return true;
    }
    if (!whole || p->elem[e].last != n || p->buf.p[p->elem[e].buf].named) return false;
    for (uint32_t k = 0; k < ir_at(c->g, n)->nsrc; k++)
        if (k != j && elem_of(p, ir_src(c->g, n, k), NULL) == e) return false;
    return true;
}

static void result_buffer(struct planner *c, ir_id n, uint32_t i)
{
    struct mem_elem *e = &c->p->elem[c->p->first_elem[n] + i];
    ir_id concat = cg_concat_of(c->g, n, i);
    if (concat != IR_NONE) {
        e->concat = concat;
        e->buf = concat_buffer(c, concat);
        e->offset = piece_offset(c, concat, operand_for(c->g, concat, n, i));
        return;
    }
    int j = cg_in_place(c->g, n, i);
    if (j >= 0 && may_take(c, n, i, (uint32_t)j)) {
        e->buf = c->p->elem[elem_of(c->p, ir_src(c->g, n, (uint32_t)j), NULL)].buf;
        return;
    }
    bool tuple = ir_ty(c->g, n)->dtype == IR_tuple;
    const char *name = label_of(c, n, tuple ? str_fmt(c->a, ".%u", i) : "");
    e->buf = new_buffer(c, name, result_bytes(c, n, i));
}

static void find_buffers(struct planner *c)
{
    c->concat_buf = NEW(c->a, uint32_t, c->end);
    c->p->work = NEW(c->a, uint32_t, c->end);
    for (ir_id n = 0; n < c->end; n++) c->concat_buf[n] = c->p->work[n] = NOBUF;
    for (ir_id n = 0; n < c->end; n++) {
        struct mem_elem *e = c->p->elem + c->p->first_elem[n];
        enum ir_op op = (enum ir_op)ir_at(c->g, n)->op;
        if (op == OP_param || op == OP_input)
            e->buf = leaf_buffer(c, n);
        else if (op == OP_concat)
            e->buf = concat_buffer(c, n);
        else if (op != OP_const || e->last > n)
            for (uint32_t i = 0; i < num_results(c->g, n); i++) result_buffer(c, n, i);
        if (c->workspace[n]) {
            c->p->work[n] = new_buffer(c, label_of(c, n, ".work"), c->workspace[n]);
            c->p->buf.p[c->p->work[n]].first = c->p->buf.p[c->p->work[n]].last = n;
        }
    }
}

/* ---- outputs ---- */

static void copy_output(struct planner *c, ir_id n, struct sa_buf to)
{
    struct ir_view v = ir_view(c->g, n);
    struct mem_copy x = {.node = n, .from = memplan_value(c->p, n), .to = to, .ld = v.ld};
    x.rows = dim_value(ir_rows(c->g, n), c->p->bind);
    x.cols = dim_value(ir_cols(c->g, n), c->p->bind);
    if (ir_ty(c->g, n)->rank <= 1 || !x.ld) x.ld = x.cols;
    x.elem_bytes = (uint32_t)ir_elem_bytes(c->g, n);
    vec_push(c->a, &c->p->copy, x);
}

/* An output goes straight to its place where its memory is not yet bound to another and no input of
 * this graph is there; new.NAME is another word for NAME. */
static void place_output(struct planner *c, const struct ir_output *o)
{
    const char *name = intern_text(c->g->names, o->name);
    uint32_t *input = map_find(&c->named, str_of(name));
    if (!input && !strncmp(name, "new.", 4)) input = map_find(&c->named, str_of(name + 4));
    uint64_t offset;
    struct mem_elem *e = &c->p->elem[elem_of(c->p, o->id, &offset)];
    struct mem_buffer *b = &c->p->buf.p[e->buf];
    if (input) {
        struct sa_buf at = c->p->buf.p[*input - 1].at;
        add_named(c, name, o->id, at);
        if (e->buf != *input - 1) copy_output(c, o->id, at);
        return;
    }
    struct sa_buf at = named_place(c, name, ir_at(c->g, o->id)->type);
    add_named(c, name, o->id, at);
    if (b->named || offset || e->offset || b->bytes != value_bytes(c, o->id)) {
        copy_output(c, o->id, at);
        return;
    }
    b->named = true;
    b->name = name;
    b->at = at;
}

/* Copies out of named places come first: such a place may be the target of another copy. */
static void find_outputs(struct planner *c)
{
    for (size_t i = 0; i < c->g->out.n; i++) place_output(c, &c->g->out.p[i]);
    size_t n = c->p->copy.n, at = 0;
    struct mem_copy *sorted = NEW(c->a, struct mem_copy, n);
    for (int first = 1; first >= 0; first--)
        for (size_t i = 0; i < n; i++)
            if ((c->p->copy.p[i].from.arena != SA_scratch) == first) sorted[at++] = c->p->copy.p[i];
    if (n) c->p->copy.p = sorted;
}

/* ---- scratch ---- */

static void find_lifetimes(struct planner *c)
{
    struct memplan *p = c->p;
    bool *seen = NEW(c->a, bool, p->buf.n);
    for (size_t i = 0; i < p->num_elems; i++) {
        const struct mem_elem *e = &p->elem[i];
        if (e->buf == NOBUF) continue;
        struct mem_buffer *b = &p->buf.p[e->buf];
        if (!seen[e->buf] || e->def < b->first) b->first = e->def;
        if (!seen[e->buf] || e->last > b->last) b->last = e->last;
        seen[e->buf] = true;
    }
}

static void place_scratch(struct planner *c)
{
    struct memplan *p = c->p;
    struct mem_block *block = NEW(c->a, struct mem_block, p->buf.n);
    size_t n = 0;
    for (size_t i = 0; i < p->buf.n; i++) {
        struct mem_buffer *b = &p->buf.p[i];
        if (b->named)
            b->first = 0, b->last = c->end;
        else
            block[n++] = (struct mem_block){spread(b->bytes), b->first, b->last, 0};
    }
    p->live = memplan_live(c->a, block, n);
    p->bytes[SA_scratch] = memplan_place(c->a, block, n);
    n = 0;
    for (size_t i = 0; i < p->buf.n; i++)
        if (!p->buf.p[i].named) p->buf.p[i].at.offset = block[n++].offset;
    for (size_t i = 0; i < p->copy.n; i++) /* what they read has its offset only now */
        p->copy.p[i].from = memplan_value(p, p->copy.p[i].node);
}

struct memplan *memplan_make(struct arena *a, const struct ir_graph *g, struct ir_bind b,
                             const size_t *workspace, struct layout *l)
{
    struct planner c = {.a = a, .g = g, .layout = l, .workspace = workspace};
    c.end = (uint32_t)g->node.n;
    c.p = NEW(a, struct memplan, 1);
    c.p->g = g;
    c.p->bind = b;
    map_init(&c.named, a);
    find_elems(&c);
    find_buffers(&c);
    find_outputs(&c);
    find_lifetimes(&c);
    place_scratch(&c);
    c.p->bytes[SA_persistent] = l->bytes;
    c.p->bytes[SA_weights] = l->stored_bytes;
    return c.p;
}

/* ---- answers ---- */

static struct sa_buf place_of(const struct memplan *p, uint32_t elem, uint64_t offset)
{
    const struct mem_elem *e = &p->elem[elem];
    CHECK(e->buf != NOBUF);
    struct sa_buf at = p->buf.p[e->buf].at;
    at.offset += e->offset + offset;
    return at;
}

struct sa_buf memplan_value(const struct memplan *p, ir_id n)
{
    uint64_t offset;
    uint32_t e = elem_of(p, n, &offset);
    return place_of(p, e, offset);
}

struct sa_buf memplan_result(const struct memplan *p, ir_id n, uint32_t i)
{
    CHECK(i < num_results(p->g, n));
    return place_of(p, p->first_elem[n] + i, 0);
}

struct sa_buf memplan_work(const struct memplan *p, ir_id n)
{
    CHECK(p->work[n] != NOBUF);
    return p->buf.p[p->work[n]].at;
}

uint32_t memplan_results(const struct memplan *p, ir_id n)
{
    return num_results(p->g, n);
}

static struct mem_range range_of(const struct memplan *p, uint32_t buf)
{
    if (buf == NOBUF) return (struct mem_range){0};
    const struct mem_buffer *b = &p->buf.p[buf];
    return (struct mem_range){b->at.arena, b->at.offset, b->at.offset + b->bytes};
}

struct mem_range memplan_value_range(const struct memplan *p, ir_id n)
{
    return range_of(p, p->elem[elem_of(p, n, NULL)].buf);
}

struct mem_range memplan_result_range(const struct memplan *p, ir_id n, uint32_t i)
{
    CHECK(i < num_results(p->g, n));
    const struct mem_elem *e = &p->elem[p->first_elem[n] + i];
    struct mem_range r = range_of(p, e->buf);
    if (e->concat == IR_NONE || ir_int(p->g, e->concat, AK_axis, 0)) return r;
    r.from += e->offset;
    r.to = r.from + (uint64_t)type_count(p->g->types, result_type(p->g, n, i), p->bind) *
                        ir_result_bytes(p->g, n, i);
    return r;
}

struct mem_range memplan_work_range(const struct memplan *p, ir_id n)
{
    return range_of(p, p->work[n]);
}

bool memplan_has(const struct memplan *p, ir_id n)
{
    return num_results(p->g, n) && p->elem[p->first_elem[n]].buf != NOBUF;
}

void layout_init(struct layout *l, struct arena *a)
{
    *l = (struct layout){.arena = a};
    map_init(&l->by_name, a);
    map_init(&l->stored_by_name, a);
}

const struct layout_item *layout_find(const struct layout *l, const char *name)
{
    uint32_t *at = map_find(&l->by_name, str_of(name));
    return at ? &l->item.p[*at - 1] : NULL;
}

const struct layout_item *layout_add(struct layout *l, const char *name, enum ir_dtype dtype,
                                     uint32_t rank, const int64_t *dims)
{
    struct layout_item x = {NULL, dtype, rank, {0}, l->bytes, dtype_size(dtype)};
    CHECK(rank <= SA_RANK);
    for (uint32_t i = 0; i < rank; i++) x.bytes *= (uint64_t)(x.dims[i] = dims[i]);
    uint32_t *at = map_str(&l->by_name, str_of(name));
    if (!*at) {
        x.name = str_dup(l->arena, str_of(name));
        l->bytes += aligned(x.bytes);
        vec_push(l->arena, &l->item, x);
        *at = (uint32_t)l->item.n;
    }
    const struct layout_item *have = &l->item.p[*at - 1];
    bool same = have->dtype == dtype && have->rank == rank;
    return same && !memcmp(have->dims, x.dims, sizeof x.dims) ? have : NULL;
}

const struct layout_stored *layout_store(struct layout *l, const char *name, enum ir_store store,
                                         struct store_shape shape)
{
    uint32_t *at = map_str(&l->stored_by_name, str_of(name));
    if (!*at) {
        struct layout_stored x = {str_dup(l->arena, str_of(name)), store, shape, l->stored_bytes,
                                  (uint64_t)store_total_bytes(store, shape)};
        l->stored_bytes += aligned(x.bytes);
        vec_push(l->arena, &l->stored, x);
        *at = (uint32_t)l->stored.n;
    }
    const struct layout_stored *have = &l->stored.p[*at - 1];
    return have->store == store && !memcmp(&have->shape, &shape, sizeof shape) ? have : NULL;
}

/* ---- check ---- */

static int in_time(const void *pa, const void *pb)
{
    const struct mem_buffer *a = *(struct mem_buffer *const *)pa,
                            *b = *(struct mem_buffer *const *)pb;
    return (a->first > b->first) - (a->first < b->first);
}

static int by_end(const void *pa, const void *pb)
{
    const struct mem_buffer *a = *(struct mem_buffer *const *)pa,
                            *b = *(struct mem_buffer *const *)pb;
    return (a->last > b->last) - (a->last < b->last);
}

/* By place; what overlaps is the same. */
static int by_place(const void *pa, const void *pb)
{
    const struct mem_buffer *a = pa, *b = pb;
    if (a->at.arena != b->at.arena) return a->at.arena < b->at.arena ? -1 : 1;
    if (a->at.offset + a->bytes <= b->at.offset) return -1;
    return b->at.offset + b->bytes <= a->at.offset;
}

static void keep(void *p)
{
    (void)p;
}

/* Time runs forward over a tree of what is alive, ordered by place. */
const char *memplan_check(const struct memplan *p, struct arena *a)
{
    const struct mem_buffer **first = NEW(a, const struct mem_buffer *, p->buf.n),
                            **last = NEW(a, const struct mem_buffer *, p->buf.n);
    size_t n = 0, dead = 0;
    for (size_t i = 0; i < p->buf.n; i++)
        if (p->buf.p[i].bytes) first[n] = last[n] = &p->buf.p[i], n++;
    qsort(first, n, sizeof *first, in_time);
    qsort(last, n, sizeof *last, by_end);
    void *alive = NULL;
    const char *why = NULL;
    for (size_t i = 0; i < n && !why; i++) {
        const struct mem_buffer *x = first[i], **y;
        for (; last[dead]->last < x->first; dead++) tdelete(last[dead], &alive, by_place);
        y = tsearch(x, &alive, by_place);
        CHECK(y);
        if (*y != x)
            why = str_fmt(a, "%s: %s and %s overlap", p->g->program, x->name, (*y)->name);
        else if (x->at.offset % ALIGN)
            why = str_fmt(a, "%s is not aligned", x->name);
    }
    tdestroy(alive, keep);
    return why;
}

void memplan_print(const struct memplan *p, struct sb *out)
{
    static const char *const arena[] = {"persistent", "slot", "scratch", "weights"};
    for (int i = 0; i < SA_external; i++)
        sb_printf(out, "arena %d %s %llu bytes\n", i, arena[i], (unsigned long long)p->bytes[i]);
    sb_printf(out, "alive at once in scratch %llu bytes\n", (unsigned long long)p->live);
    for (size_t i = 0; i < p->buf.n; i++) {
        const struct mem_buffer *b = &p->buf.p[i];
        sb_printf(out, "@%u+%-10llu %10llu  ", b->at.arena, (unsigned long long)b->at.offset,
                  (unsigned long long)b->bytes);
        if (b->named)
            sb_printf(out, "always     ");
        else
            sb_printf(out, "%4u..%-5u", b->first, b->last);
        sb_printf(out, "  %s\n", b->name);
    }
    for (size_t i = 0; i < p->copy.n; i++)
        sb_printf(out, "copy @%u+%llu to @%u+%llu\n", p->copy.p[i].from.arena,
                  (unsigned long long)p->copy.p[i].from.offset, p->copy.p[i].to.arena,
                  (unsigned long long)p->copy.p[i].to.offset);
}
