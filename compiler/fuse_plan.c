/* See fuse_plan.h. Groups are formed inside one level (number of barriers before a node) and
 * one domain, and every edge between different domains of a level leads upwards in the order
 *   vectors < numbers per row < rows,
 * any other such edge starting a new level. So groups cannot depend on each other in a circle. */
#include "compiler/fuse_plan.h"

enum { MAX_CLONE = 12 }; /* operations of a value that is computed again elsewhere */

bool fuse_is_row_op(const struct ir_graph *g, ir_id n)
{
    return op_fusable((enum ir_op)ir_at(g, n)->op);
}

static bool is_const(const struct ir_graph *g, ir_id n)
{
    return ir_at(g, n)->op == OP_const;
}

static bool is_view(const struct ir_graph *g, ir_id n)
{
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    return op == OP_get || op == OP_slice || op == OP_reshape;
}

static int64_t cols_of(const struct ir_graph *g, ir_id n)
{
    struct ir_dim c = ir_cols(g, n);
    if (!dim_is_const(c)) BUG("fuse-rows: node %u has a run-time number of columns", n);
    return c.add;
}

static bool same_domain(struct fuse_domain a, struct fuse_domain b)
{
    return dim_eq(a.rows, b.rows) && a.cols == b.cols;
}

bool fuse_is_full(const struct ir_graph *g, ir_id n, struct fuse_domain d)
{
    return dim_eq(ir_rows(g, n), d.rows) && cols_of(g, n) == d.cols;
}

/* Place in the order of domains that may feed each other within a level. */
static int domain_rank(struct fuse_domain d)
{
    return 2 * !dim_eq(d.rows, dim_const(1)) + (d.cols != 1);
}

/* ---- domains and levels ---- */

static struct fuse_domain own_domain(const struct fuse_plan *p, ir_id n)
{
    const struct ir_graph *g = p->g;
    bool reduction = (op_info((enum ir_op)ir_at(g, n)->op)->flags & F_ROW) != 0;
    ir_id of = reduction ? ir_src(g, n, 0) : n;
    struct fuse_domain d = {ir_rows(g, of), cols_of(g, of)};
    if (d.cols != 1) return d;
    /* Numbers per row belong to the kernel that made what they are computed from. */
    uint32_t best = 0;
    for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) {
        ir_id s = ir_src(g, n, i);
        if (!fuse_is_row_op(g, s) || ir_at(g, s)->op == OP_colsum || is_const(g, s)) continue;
        if (!dim_eq(p->domain[s].rows, d.rows) || p->domain[s].cols == 1) continue;
        if (d.cols == 1 || p->level[s] > best) d.cols = p->domain[s].cols, best = p->level[s];
    }
    return d;
}

/* The least level of node n because of its operand s. */
static uint32_t level_after(const struct fuse_plan *p, ir_id n, ir_id s)
{
    const struct ir_graph *g = p->g;
    ir_id root = s;
    while (is_view(g, root)) root = ir_src(g, root, 0);
    if (op_info((enum ir_op)ir_at(g, root)->op)->flags & F_LEAF || is_const(g, root)) return 0;
    if (!fuse_is_row_op(g, root)) return p->level[root] + 1;
    if (!fuse_is_row_op(g, n)) return p->level[root];
    if (root != s || ir_at(g, root)->op == OP_colsum) return p->level[root] + 1;
    bool direct = same_domain(p->domain[s], p->domain[n]) ||
                  domain_rank(p->domain[s]) < domain_rank(p->domain[n]);
    return p->level[s] + !direct;
}

static void find_levels(struct fuse_plan *p)
{
    const struct ir_graph *g = p->g;
    for (ir_id n = 0; n < g->node.n; n++) {
        if (fuse_is_row_op(g, n)) p->domain[n] = own_domain(p, n);
        for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) {
            uint32_t l = level_after(p, n, ir_src(g, n, i));
            if (l > p->level[n]) p->level[n] = l;
        }
    }
    /* A per-row computation on its own joins its readers where they all are of one kind of row. */
    for (ir_id n = (ir_id)g->node.n; n-- > 0;) {
        if (!fuse_is_row_op(g, n) || p->domain[n].cols != 1 || ir_at(g, n)->op == OP_colsum)
            continue;
        int64_t cols = 0;
        for (uint32_t u = p->first_user[n]; u < p->first_user[n + 1]; u++) {
            ir_id m = p->users[u];
            if (!fuse_is_row_op(g, m) || p->level[m] != p->level[n]) continue;
            bool fits = dim_eq(p->domain[m].rows, p->domain[n].rows);
            int64_t c = fits ? p->domain[m].cols : -1;
            cols = cols == 0 || cols == c ? c : -1;
        }
        if (cols > 1) p->domain[n].cols = cols;
    }
}

/* ---- groups ---- */

static ir_id find(ir_id *parent, ir_id n)
{
    while (parent[n] != n) n = parent[n] = parent[parent[n]];
    return n;
}

ir_id fuse_group(const struct fuse_plan *p, ir_id n)
{
    return find(p->parent, n);
}

static void join(struct fuse_plan *p, ir_id a, ir_id b)
{
    a = find(p->parent, a), b = find(p->parent, b);
    if (a < b)
        p->parent[b] = a;
    else
        p->parent[a] = b;
}

static bool may_join(const struct fuse_plan *p, ir_id a, ir_id b)
{
    return p->level[a] == p->level[b] && same_domain(p->domain[a], p->domain[b]);
}

static void form_groups(struct fuse_plan *p)
{
    const struct ir_graph *g = p->g;
    for (ir_id n = 0; n < g->node.n; n++) {
        bool producer = fuse_is_row_op(g, n) && !is_const(g, n);
        for (uint32_t u = p->first_user[n]; u < p->first_user[n + 1]; u++) {
            ir_id m = p->users[u];
            if (!fuse_is_row_op(g, m)) continue;
            if (producer && ir_at(g, n)->op != OP_colsum && may_join(p, n, m)) join(p, n, m);
            if (!fuse_is_full(g, n, p->domain[m]) || is_const(g, n)) continue;
            for (uint32_t w = p->first_user[n]; w < u; w++) {
                ir_id mate = p->users[w];
                if (!fuse_is_row_op(g, mate) || !may_join(p, mate, m)) continue;
                join(p, mate, m);
                break;
            }
        }
    }
}

static uint64_t read_key(ir_id group, ir_id operand)
{
    return (uint64_t)group << 32 | operand;
}

static void note_reads(struct fuse_plan *p)
{
    const struct ir_graph *g = p->g;
    for (ir_id n = 0; n < g->node.n; n++) {
        if (!fuse_is_row_op(g, n)) continue;
        for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++)
            *map_num(&p->reads, read_key(fuse_group(p, n), ir_src(g, n, i))) = 1;
    }
}

/* ---- what is written to memory ---- */

struct clone {               /* what computing a value again in another group takes */
    ir_id root[8], small[8]; /* values read: of full size, and others that must be stored for it */
    uint32_t roots, smalls, ops;
    bool failed;
};

static void add_once(ir_id *list, uint32_t *n, ir_id x, bool *failed)
{
    for (uint32_t i = 0; i < *n; i++)
        if (list[i] == x) return;
    if (*n == 8)
        *failed = true;
    else
        list[(*n)++] = x;
}

static void clone_tree(const struct fuse_plan *p, ir_id n, struct fuse_domain d, struct clone *c)
{
    const struct ir_graph *g = p->g;
    if (c->failed || is_const(g, n)) return;
    bool full = fuse_is_full(g, n, d), row_op = fuse_is_row_op(g, n);
    bool elementwise = (op_info((enum ir_op)ir_at(g, n)->op)->flags & F_EW) != 0;
    if (row_op && !full) {
        add_once(c->small, &c->smalls, n, &c->failed);
    } else if (!row_op || p->store[n]) {
        if (full) add_once(c->root, &c->roots, n, &c->failed);
    } else if (!elementwise || ++c->ops > MAX_CLONE) {
        c->failed = true;
    } else {
        for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) clone_tree(p, ir_src(g, n, i), d, c);
    }
}

/* May group `into` compute n itself? From one stored value of full size always (it replaces the
 * load of n), from two where the group reads both anyway. */
static bool cheap_in(const struct fuse_plan *p, ir_id n, ir_id into, struct clone *c)
{
    *c = (struct clone){0};
    if (!fuse_is_full(p->g, n, p->domain[n]) || !same_domain(p->domain[n], p->domain[into]))
        return false;
    clone_tree(p, n, p->domain[n], c);
    if (c->failed || c->roots > 2) return false;
    if (c->roots < 2) return true;
    for (uint32_t i = 0; i < 2; i++)
        if (!map_find_num(&p->reads, read_key(into, c->root[i]))) return false;
    return true;
}

static void set_store(struct fuse_plan *p, ir_id n, enum fuse_store why)
{
    if (!p->store[n]) p->store[n] = why;
}

static enum fuse_store why_stored(const struct fuse_plan *p, ir_id n, bool unfused)
{
    const struct ir_graph *g = p->g;
    struct clone c;
    bool other = false, cheap = true;
    if (p->is_output[n]) return FS_output;
    for (uint32_t u = p->first_user[n]; u < p->first_user[n + 1]; u++) {
        ir_id m = p->users[u];
        if (!fuse_is_row_op(g, m)) return FS_reader;
        if (fuse_group(p, m) == fuse_group(p, n)) continue;
        other = true;
        cheap = cheap && cheap_in(p, n, fuse_group(p, m), &c);
    }
    if (ir_at(g, n)->op == OP_colsum && p->first_user[n] < p->first_user[n + 1]) return FS_colsum;
    if (!other || is_const(g, n)) return FS_no;
    if (unfused) return FS_unfused;
    bool rows = !dim_eq(p->domain[n].rows, dim_const(1)) && p->domain[n].cols != 1;
    if (!rows || !fuse_is_full(g, n, p->domain[n])) return FS_row;
    return cheap ? FS_no : FS_costly;
}

/* Groups that compute n themselves read its roots; the small values it needs must be there for
 * them. */
static void accept_clones(struct fuse_plan *p, ir_id n)
{
    struct clone c;
    for (uint32_t u = p->first_user[n]; u < p->first_user[n + 1]; u++) {
        ir_id m = p->users[u];
        if (fuse_group(p, m) == fuse_group(p, n)) continue;
        CHECK(cheap_in(p, n, fuse_group(p, m), &c));
        for (uint32_t i = 0; i < c.roots; i++)
            *map_num(&p->reads, read_key(fuse_group(p, m), c.root[i])) = 1;
        for (uint32_t i = 0; i < c.smalls; i++)
            if (fuse_group(p, c.small[i]) != fuse_group(p, m)) set_store(p, c.small[i], FS_row);
    }
}

/* What only a column concat reads is written in its place (the rule of cg_concat_of). */
static void place_pieces(struct fuse_plan *p)
{
    const struct ir_graph *g = p->g;
    for (ir_id n = 0; n < g->node.n; n++) {
        if (ir_at(g, n)->op != OP_concat || ir_int(g, n, AK_axis, 0) != 1) continue;
        if (ir_ty(g, n)->rank != 2) continue;
        for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) {
            ir_id s = ir_src(g, n, i);
            bool once = p->first_user[s + 1] - p->first_user[s] == 1 && !p->is_output[s];
            if (once && fuse_is_row_op(g, s)) p->ld[s] = cols_of(g, n);
        }
    }
}

static void list_users(struct fuse_plan *p)
{
    const struct ir_graph *g = p->g;
    size_t edges = 0;
    for (ir_id n = 0; n < g->node.n; n++) {
        edges += ir_at(g, n)->nsrc;
        for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) p->first_user[ir_src(g, n, i) + 1]++;
    }
    for (ir_id n = 0; n < g->node.n; n++) p->first_user[n + 1] += p->first_user[n];
    p->users = NEW(p->arena, uint32_t, edges);
    uint32_t *at = arena_dup(p->arena, p->first_user, (g->node.n + 1) * sizeof *at, STRATA_SITE);
    for (ir_id n = 0; n < g->node.n; n++)
        for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) p->users[at[ir_src(g, n, i)]++] = n;
    for (size_t i = 0; i < g->out.n; i++) p->is_output[g->out.p[i].id] = true;
}

struct fuse_plan *fuse_plan(struct arena *a, const struct ir_graph *g, bool unfused)
{
    struct fuse_plan *p = NEW(a, struct fuse_plan, 1);
    size_t n = g->node.n;
    *p = (struct fuse_plan){.g = g, .arena = a};
    p->level = NEW(a, uint32_t, n);
    p->domain = NEW(a, struct fuse_domain, n);
    p->parent = NEW(a, ir_id, n);
    p->store = NEW(a, enum fuse_store, n);
    p->ld = NEW(a, int64_t, n);
    p->first_user = NEW(a, uint32_t, n + 1);
    p->is_output = NEW(a, bool, n);
    map_init(&p->reads, a);
    for (ir_id i = 0; i < n; i++) p->parent[i] = i;
    list_users(p);
    find_levels(p);
    if (!unfused) form_groups(p);
    note_reads(p);
    for (ir_id i = 0; i < n; i++) {
        if (!fuse_is_row_op(g, i)) continue;
        enum fuse_store why = why_stored(p, i, unfused);
        set_store(p, i, why);
        if (!why && !unfused && !is_const(g, i)) accept_clones(p, i);
    }
    place_pieces(p);
    return p;
}
