/* Needs: stage T. Gives: stage K, where every elementwise operation and row reduction is inside
 * a `rows` node. Keeps: outputs, every other node, and every bit of the results. Cost: linear
 * in the edges.
 *
 *   %x : f32[N,64] = embed %w, %ids             %x : f32[N,64] = embed %w, %ids
 *   %2 : f32[N,64] = mul %x, %x                 %y : f32[N,64] = rows %x, %g {region=0}
 *   %3 : f32[N,1] = rowsum %2                   region 0 rows {
 *   %c : f32[] = const {value=0.015625}    =>     %0 : f32[N,64] = arg {index=0}
 *   %4 : f32[N,1] = mul %3, %c                    %1 : f32[N,64] = mul %0, %0
 *   %5 : f32[N,1] = rsqrt %4                      ...
 *   %6 : f32[N,64] = mul %x, %5                   %7 : f32[64] = arg {index=1}
 *   %y : f32[N,64] = mul %6, %g                   %8 : f32[N,64] = mul %6, %7
 *   out y = %y                                    out r0 = %8
 *                                               }
 *
 * Kernels (groups) are formed by fuse_plan.c. A value that leaves its group is written to
 * memory where
 *   - it is an output, or an operation that is no row operation reads it,
 *   - it is a number per row, a vector or a column sum (small), or
 *   - other groups need it and computing it again would read more than itself: a value is
 *     computed again from one stored [R,C] value (%6 above, if a backward needs it: from %x and
 *     the stored %5), or from two where the other group reads both anyway (sigmoid(gate) * up).
 *     So a residual sum h + y is written once, and a normalised x * r never.
 * Slices and reshapes stay views: the region's arg has the row stride {ld}. A result that
 * nothing but a column concat reads is written in its place there (out {ld}), so that the
 * concat has nothing to do. On a GPU what is written of a round_bf16 is bf16 (narrow.c). */
#include "compiler/fuse_plan.h"
#include "compiler/narrow.h"
#include "compiler/pass.h"

struct fuse {
    struct pass_ctx *c;
    struct arena *scratch, *temp; /* temp: regions under construction */
    const struct ir_graph *in;
    struct ir_graph *out;
    struct fuse_plan *plan;
    ir_id *now;               /* new id of what is in memory; IR_NONE = not yet */
    uint32_t *first, *member; /* stored members of group n: member[first[n] .. first[n + 1]) */
    ir_id *last;              /* last node of each group: where its kernel is placed */
    struct map regions;       /* text -> index + 1 */
    ir_id *memo;              /* id in the region under construction, where memo_of says so */
    ir_id *memo_of;
    size_t stored;
};

struct region { /* under construction */
    struct ir_graph *g;
    ir_id group;
    VEC(ir_id) operand; /* old ids */
};

static const char *const reasons[] = {
    [FS_no] = "",
    [FS_output] = "an output",
    [FS_reader] = "read by another operation",
    [FS_row] = "small, needed by another kernel",
    [FS_colsum] = "a sum over rows",
    [FS_costly] = "needed by other kernels; computing it again would read more",
    [FS_unfused] = "fusion is off",
};

static ir_id region_arg(struct fuse *f, struct region *r, ir_id n)
{
    struct ir_attr attr[2] = {A_INT(index, r->operand.n)};
    size_t count = 1;
    struct ir_view v = ir_view(f->in, n);
    if (ir_ty(f->in, n)->rank >= 2 && v.ld != ir_cols(f->in, n).add)
        attr[count++] = A_INT(ld, v.ld);
    vec_push(f->temp, &r->operand, n);
    return ir_add_typed(r->g, OP_arg, ir_at(f->in, n)->type, NO_SRCS, attr, count, NULL);
}

/* The id in the region of an old node: an operand, or computed in it. */
static ir_id region_value(struct fuse *f, struct region *r, ir_id n)
{
    if (f->memo_of[n] == r->group) return f->memo[n];
    const struct ir_node *x = ir_at(f->in, n);
    bool row_op = fuse_is_row_op(f->in, n);
    bool here = row_op && (x->op == OP_const || fuse_group(f->plan, n) == r->group);
    ir_id id;
    if (!row_op || (!here && f->plan->store[n])) {
        id = region_arg(f, r, n);
    } else {
        ir_id src[2];
        struct ir_attr attr[AK_COUNT];
        size_t nattr = ir_attrs(f->in, n, attr);
        CHECK(x->nsrc <= 2);
        for (uint32_t i = 0; i < x->nsrc; i++) src[i] = region_value(f, r, ir_src(f->in, n, i));
        r->g->cur_span = ir_span(f->in, n);
        id = ir_add_typed(r->g, (enum ir_op)x->op, x->type, src, x->nsrc, attr, nattr, NULL);
        CHECK(ir_at(r->g, id)->type == x->type);
    }
    f->memo_of[n] = r->group, f->memo[n] = id;
    return id;
}

/* What distinguishes regions: operations, types, attributes, operands, results. */
static void region_key(const struct ir_graph *r, struct sb *key)
{
    for (ir_id n = 0; n < r->node.n; n++) {
        const struct ir_node *x = ir_at(r, n);
        struct str attr = r->attrs.p[x->attr];
        uint32_t head[4] = {x->op, x->type, (uint32_t)attr.n, x->nsrc};
        sb_add(key, (const char *)head, sizeof head);
        sb_add(key, attr.p, attr.n);
        sb_add(key, (const char *)ir_srcs(r, n), x->nsrc * sizeof(ir_id));
    }
    for (size_t i = 0; i < r->out.n; i++) {
        int64_t out[2] = {r->out.p[i].id, r->out.p[i].ld};
        sb_add(key, (const char *)out, sizeof out);
    }
}

/* A copy in the arena of the output graph. */
static struct ir_graph *copy_region(struct fuse *f, const struct ir_graph *r)
{
    struct ir_graph *g = graph_open(f->out->arena, r->program, r->stage, r->types, r->names);
    for (ir_id n = 0; n < r->node.n; n++) CHECK(ir_copy(g, r, n, ir_srcs(r, n)) == n);
    for (size_t i = 0; i < r->out.n; i++) {
        ir_output(g, intern_text(r->names, r->out.p[i].name), r->out.p[i].id);
        vec_last(&g->out).ld = r->out.p[i].ld;
    }
    return g;
}

/* The index of the region, equal ones once. */
static int64_t keep_region(struct fuse *f, struct region *r)
{
    struct sb key = {0};
    region_key(r->g, &key);
    uint32_t *at = map_str(&f->regions, (struct str){key.p, key.n});
    sb_free(&key);
    if (!*at) {
        vec_push(f->out->arena, &f->out->region, copy_region(f, r->g));
        *at = (uint32_t)f->out->region.n;
    }
    return *at - 1;
}

static void report_bytes(struct sb *out, double bytes)
{
    if (bytes >= 1e6)
        sb_printf(out, "%.1f MB", bytes / 1e6);
    else if (bytes >= 1e3)
        sb_printf(out, "%.1f kB", bytes / 1e3);
    else
        sb_printf(out, "%.0f B", bytes);
}

/* The first operation that reads n and is no row operation. */
static ir_id other_reader(const struct fuse *f, ir_id n)
{
    const struct fuse_plan *p = f->plan;
    for (uint32_t u = p->first_user[n]; u < p->first_user[n + 1]; u++)
        if (!fuse_is_row_op(f->in, p->users[u])) return p->users[u];
    return IR_NONE;
}

/* What people see of a kernel: the name of its first named result, or of what its results go
 * into. */
static const char *region_name(struct fuse *f, const ir_id *member, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (*ir_name(f->in, member[i]))
            return str_fmt(f->scratch, "%s%s", ir_name(f->in, member[i]), count > 1 ? ".rows" : "");
    for (uint32_t i = 0; i < count; i++) {
        ir_id m = other_reader(f, member[i]);
        for (int hops = 0; m != IR_NONE && hops < 4; hops++) { /* through concats and views */
            if (*ir_name(f->in, m)) return str_fmt(f->scratch, "%s.in", ir_name(f->in, m));
            const char *site = ir_word(f->in, m, AK_site, "");
            if (*site) return str_fmt(f->scratch, "%s.in", site);
            m = other_reader(f, m);
        }
    }
    return NULL;
}

static void report_region(struct fuse *f, const struct region *r, ir_id rows)
{
    struct sb *out = f->c->report;
    if (!out) return;
    size_t ops = 0, loads = 0;
    for (ir_id n = 0; n < r->g->node.n; n++) {
        if (ir_at(r->g, n)->op == OP_arg)
            loads++;
        else
            ops += ir_at(r->g, n)->op != OP_const;
    }
    sb_printf(out, "kernel %%%u %s (region %lld): %zu operations, %zu loads, %zu stores, ", rows,
              ir_name(f->out, rows), (long long)ir_int(f->out, rows, AK_region, 0), ops, loads,
              r->g->out.n);
    report_bytes(out, op_cost(f->out, rows, f->c->bind).bytes);
    sb_char(out, '\n');
    for (uint32_t i = f->first[r->group]; i < f->first[r->group + 1]; i++) {
        ir_id n = f->member[i], m = other_reader(f, n);
        sb_printf(out, "  writes %%%u ", f->now[n]);
        type_print(f->in->types, ir_at(f->in, n)->type, out);
        sb_char(out, ' ');
        report_bytes(out, (double)ir_elem_bytes(f->out, f->now[n]) *
                              (double)type_count(f->in->types, ir_at(f->in, n)->type, f->c->bind));
        if (f->plan->store[n] == FS_reader)
            sb_printf(out, ": read by %s %s", op_info((enum ir_op)ir_at(f->in, m)->op)->name,
                      ir_name(f->in, m));
        else
            sb_printf(out, ": %s", reasons[f->plan->store[n]]);
        if (f->plan->ld[n]) sb_str(out, ", in place");
        sb_char(out, '\n');
    }
}

/* Do all readers of value n, views of it followed, take it as bf16? */
static bool read_narrow(const struct fuse *f, ir_id n)
{
    const struct fuse_plan *p = f->plan;
    if (p->is_output[n]) return false;
    for (uint32_t u = p->first_user[n]; u < p->first_user[n + 1]; u++) {
        ir_id m = p->users[u];
        enum ir_op op = (enum ir_op)ir_at(f->in, m)->op;
        bool view = op == OP_slice || op == OP_reshape, takes = view && read_narrow(f, m);
        for (uint32_t i = 0; i < ir_at(f->in, m)->nsrc && !view; i++)
            if (ir_src(f->in, m, i) == n)
                takes = op == OP_concat ? ir_narrow(f->in, m) : narrow_reads(f->in, m, i);
        if (!takes) return false;
    }
    return true;
}

/* GPU: the results that are stored as bf16, "" for none. */
static const char *narrow_results(struct fuse *f, const ir_id *member, uint32_t count)
{
    char *word = NEW(f->scratch, char, count + 1);
    for (uint32_t i = 0; i < count; i++) {
        bool round = ir_at(f->in, member[i])->op == OP_round_bf16;
        word[i] = "01"[f->c->gpu && round && read_narrow(f, member[i])];
    }
    return strchr(word, '1') ? word : "";
}

static void need(struct fuse *f, ir_id n);

/* The `rows` node of a region and what reads its results. */
static void place_rows(struct fuse *f, struct region *r, int64_t index)
{
    struct ir_graph *g = f->out;
    const ir_id *member = f->member + f->first[r->group];
    uint32_t count = f->first[r->group + 1] - f->first[r->group];
    ir_id *src = NEW(f->scratch, ir_id, r->operand.n);
    ir_type_id *types = NEW(f->scratch, ir_type_id, count);
    for (size_t i = 0; i < r->operand.n; i++) {
        need(f, r->operand.p[i]);
        src[i] = f->now[r->operand.p[i]];
    }
    for (uint32_t i = 0; i < count; i++) types[i] = ir_at(f->in, member[i])->type;
    const char *name = region_name(f, member, count);
    g->cur_span = ir_span(f->in, member[0]);
    ir_type_id type = count == 1 ? types[0] : type_tuple(g->types, types, count);
    const char *narrow = narrow_results(f, member, count);
    ir_id rows = ir_add_typed(g, OP_rows, type, src, r->operand.n,
                              (struct ir_attr[]){A_INT(region, index), A_STR(narrow, narrow)},
                              *narrow ? 2 : 1, name);
    for (uint32_t i = 0; i < count; i++) {
        g->cur_span = ir_span(f->in, member[i]);
        ir_id id = f->now[member[i]] = count == 1 ? rows : ir_get(g, rows, i);
        if (*ir_name(f->in, member[i])) ir_set_name(g, id, ir_name(f->in, member[i]));
    }
    report_region(f, r, rows);
}

static void need_group(struct fuse *f, ir_id group)
{
    uint32_t from = f->first[group], to = f->first[group + 1];
    if (from == to || f->now[f->member[from]] != IR_NONE) return;
    struct region r = {.group = group};
    struct arena_mark mark = arena_mark(f->temp);
    r.g = graph_open(f->temp, "rows", STAGE_K, f->out->types, f->out->names);
    for (uint32_t i = from; i < to; i++) {
        ir_id n = f->member[i];
        ir_output(r.g, str_fmt(f->scratch, "r%u", i - from), region_value(f, &r, n));
        vec_last(&r.g->out).ld = f->plan->ld[n];
    }
    place_rows(f, &r, keep_region(f, &r));
    arena_release(f->temp, mark);
}

/* Puts node n into the new graph, after what it needs. */
static void need(struct fuse *f, ir_id n)
{
    if (f->now[n] != IR_NONE) return;
    if (fuse_is_row_op(f->in, n)) {
        need_group(f, fuse_group(f->plan, n));
        return;
    }
    uint32_t count = ir_at(f->in, n)->nsrc;
    ir_id *src = NEW(f->scratch, ir_id, count);
    for (uint32_t i = 0; i < count; i++) {
        need(f, ir_src(f->in, n, i));
        src[i] = f->now[ir_src(f->in, n, i)];
        CHECK(src[i] != IR_NONE);
    }
    f->now[n] = ir_copy(f->out, f->in, n, src);
}

static void list_members(struct fuse *f)
{
    size_t n = f->in->node.n;
    f->first = NEW(f->scratch, uint32_t, n + 1);
    f->last = NEW(f->scratch, ir_id, n);
    for (ir_id i = 0; i < n; i++) {
        if (!fuse_is_row_op(f->in, i)) continue;
        ir_id group = fuse_group(f->plan, i);
        f->last[group] = i;
        if (f->plan->store[i]) f->first[group + 1]++, f->stored++;
    }
    for (ir_id i = 0; i < n; i++) f->first[i + 1] += f->first[i];
    f->member = NEW(f->scratch, uint32_t, f->stored);
    uint32_t *at = arena_dup(f->scratch, f->first, (n + 1) * sizeof *at, STRATA_SITE);
    for (ir_id i = 0; i < n; i++)
        if (fuse_is_row_op(f->in, i) && f->plan->store[i])
            f->member[at[fuse_group(f->plan, i)]++] = i;
}

struct ir_graph *pass_fuse_rows(struct pass_ctx *c, const struct ir_graph *g)
{
    struct arena *scratch = arena_open("fuse-rows");
    size_t n = g->node.n;
    struct fuse f = {.c = c, .scratch = scratch, .temp = arena_open("regions"), .in = g};
    f.out = graph_open(c->arena, g->program, STAGE_K, g->types, g->names);
    f.out->next_instance = g->next_instance;
    f.plan = fuse_plan(scratch, g, c->unfused);
    f.now = NEW(scratch, ir_id, n);
    f.memo = NEW(scratch, ir_id, n);
    f.memo_of = NEW(scratch, ir_id, n);
    for (ir_id i = 0; i < n; i++) f.now[i] = f.memo_of[i] = IR_NONE;
    map_init(&f.regions, scratch);
    list_members(&f);
    for (ir_id i = 0; i < n; i++) {
        if (!fuse_is_row_op(g, i))
            need(&f, i);
        else if (f.last[fuse_group(f.plan, i)] == i)
            need_group(&f, fuse_group(f.plan, i));
    }
    for (size_t i = 0; i < g->out.n; i++) {
        ir_output(f.out, intern_text(g->names, g->out.p[i].name), f.now[g->out.p[i].id]);
        vec_last(&f.out->out).ld = g->out.p[i].ld;
    }
    if (c->report)
        sb_printf(c->report, "%zu distinct row kernels, %zu values written\n", f.out->region.n,
                  f.stored);
    arena_close(f.temp);
    arena_close(scratch);
    return f.out;
}
