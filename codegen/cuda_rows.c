/* Row regions on a GPU: who computes what, and the steps. C is a constant of the text, R a number.
 *
 * A team of threads does a row: a thread where C is a few columns, lanes of a warp or the whole
 * warp up to 512, a block beyond. What later column loops of a row need again stays in registers,
 * so each operand is read once; only where a row is too long for that is it read again. Without
 * row reductions a team has team * v columns and blockIdx.y counts such tiles: one access of v
 * elements (16 bytes of bf16, 32 of float32) a thread and operand, all independent; these regions
 * are meant to run at the speed of memory. Sums of a row have an order that depends on C only.
 * Column sums: a block adds a chunk of rows in registers, then over its teams, and a second kernel
 * the blocks' sums. A chunk is two rows of every team, or what makes four blocks a multiprocessor.
 */
#include "codegen/cuda_rows.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_rows.c.inc"
    ;

enum {
    BLOCK = 256,
    LONG_BLOCK = 512, /* of rows beyond WARP_COLS, at most */
    WARP_COLS = 512,  /* longest row of a warp */
    MAX_LOADED = 128, /* elements that a thread without reductions holds */
    CHUNKS = 528,     /* partial column sums at most, four for each multiprocessor of an H200 */
};

static int ceil_div(int64_t a, int64_t b)
{
    return (int)((a + b - 1) / b);
}

static int power_of_two(int64_t least)
{
    int p = 1;
    while (p < least && p < CUDA_WARP) p *= 2;
    return p;
}

/* Floats that column sums keep, for every column that a thread has. */
static int column_sums(const struct rows_gen *e)
{
    int n = 0;
    for (size_t i = 0; i < e->r->out.n; i++) n += e->kind[e->r->out.p[i].id] == COLSUM;
    return n;
}

static void whole_rows(struct cuda_rows *c)
{
    int64_t lanes = c->e->cols / c->v;
    if (lanes <= CUDA_WARP || c->e->cols <= WARP_COLS) {
        c->team = power_of_two(lanes);
        c->threads = BLOCK;
    } else {
        c->team = ceil_div((lanes + 1) / 2, CUDA_WARP) * CUDA_WARP;
        if (c->team > LONG_BLOCK) c->team = LONG_BLOCK;
        c->threads = c->team;
    }
    c->pieces = ceil_div(lanes, c->team);
}

static void tiles_of_rows(struct cuda_rows *c)
{
    const struct rows_gen *e = c->e;
    while (c->v > 1 && rows_full(e) * c->v > MAX_LOADED) c->v /= 2;
    int64_t lanes = e->cols / c->v;
    c->team = power_of_two(lanes);
    c->threads = BLOCK;
    if (!e->chunked && lanes > CUDA_WARP && lanes <= BLOCK && lanes % CUDA_WARP) {
        c->team = (int)lanes; /* nobody is idle beyond the row */
        c->threads = BLOCK / c->team * c->team;
    }
    if (dim_eq(e->rows, dim_const(1)) && lanes > CUDA_WARP) {
        c->team = ceil_div(lanes < BLOCK ? lanes : BLOCK, CUDA_WARP) * CUDA_WARP;
        c->threads = c->team;
    }
    c->pieces = 1;
    c->tiles = ceil_div(lanes, c->team);
}

/* Chooses all of c for region r, and whether registers hold what is kept. */
static void plan(struct cuda_rows *c, struct arena *a, const struct ir_graph *r)
{
    struct rows_gen *e = c->e;
    const struct rows_place *place = e->place;
    rows_analyse(e, a, r, ROWS_REGISTERS);
    c->v = 8;
    while (e->cols % c->v) c->v /= 2;
    c->tiles = 1;
    if (e->reduces)
        whole_rows(c);
    else
        tiles_of_rows(c);
    c->teams = c->threads / c->team;
    int room = c->threads > BLOCK ? 56 : 112, own = c->pieces * c->v;
    int sums = column_sums(e) * own;
    if (sums > room / 2) {
        c->sums_in_memory = true, sums = 0;
        if (c->team <= CUDA_WARP) c->threads = CUDA_WARP, c->teams = 1;
    }
    if ((int64_t)e->kept * own + sums > room) rows_analyse(e, a, r, ROWS_AGAIN);
    e->place = place;
    c->clones = c->team < CUDA_WARP && (c->sums_in_memory || (e->reduces && c->team > 1));
}

/* Why accesses or passes over a row are not the best there are; NULL: they are. */
static const char *slow_why(const struct cuda_rows *c)
{
    const struct rows_gen *e = c->e;
    if (e->rule == ROWS_AGAIN && e->loops > 1)
        return "a row has no room in registers: operands are read again";
    if (c->sums_in_memory) return "column sums have no room in registers";
    if (e->cols > 8 && e->cols % 8) return "columns are not a multiple of 8";
    size_t args = rows_args(e), places = args + e->r->out.n;
    for (ir_id n = 0; n < e->r->node.n; n++) {
        if (e->kind[n] != FULL || rows_op(e, n) != OP_arg || e->cols < 8) continue;
        if (e->place[ir_int(e->r, n, AK_index, 0)].align < 16)
            return "rows of operands do not lie at multiples of 16 bytes";
    }
    for (size_t i = args; i < places; i++)
        if (e->kind[e->r->out.p[i - args].id] == FULL && e->cols >= 8 && e->place[i].align < 16)
            return "rows of results do not lie at multiples of 16 bytes";
    return NULL;
}

/* Results and operands as they lie in memory. */
static struct rows_place *places(struct arena *a, const struct ir_graph *g, ir_id n, size_t results)
{
    uint32_t args = ir_at(g, n)->nsrc;
    struct rows_place *p = NEW(a, struct rows_place, args + results);
    for (uint32_t i = 0; i < args; i++) {
        p[i].narrow = ir_narrow(g, ir_src(g, n, i));
        p[i].align = cg_cuda_src_align(g, n, i);
    }
    for (uint32_t i = 0; i < results; i++) {
        p[args + i].narrow = ir_narrow_result(g, n, i);
        p[args + i].align = cg_cuda_res_align(g, n, i);
    }
    return p;
}

/* How the region is computed, and a step for its kernel. */
static struct cg_step *region_step(struct arena *a, const struct ir_graph *g, ir_id n,
                                   struct cg_lowering *out, struct cuda_rows *c)
{
    int64_t region = ir_int(g, n, AK_region, -1);
    const struct ir_graph *r = g->region.p[region];
    const struct rows_place *place = places(a, g, n, r->out.n);
    struct sb key = {0};
    sb_add(&key, (const char *)&region, sizeof region);
    for (size_t i = 0; i < ir_at(g, n)->nsrc + r->out.n; i++)
        sb_printf(&key, "%d%x", place[i].narrow, (unsigned)place[i].align);
    struct rows_memo *m = rows_memo(out->memo, a, (struct str){key.p, key.n});
    sb_free(&key);
    if (m->more) {
        *c = *(const struct cuda_rows *)m->more;
        vec_push(a, &out->step, m->kernel);
        return &vec_last(&out->step);
    }
    *c = (struct cuda_rows){.e = NEW(a, struct rows_gen, 1)};
    c->e->place = place;
    plan(c, a, r);
    struct cg_step *s = cg_add(a, out, "rows", cuda_rows_text(c), "");
    s->why = slow_why(c);
    m->kernel = *s;
    m->more = arena_dup(a, c, sizeof *c, STRATA_SITE);
    return &vec_last(&out->step);
}

/* Rows of one partial column sum. */
static int64_t chunk_of(const struct cuda_rows *c, int64_t rows)
{
    int64_t least = 2 * c->teams, share = ceil_div(rows, CHUNKS);
    return share <= least ? least : ceil_div(share, c->teams) * (int64_t)c->teams;
}

void cg_cuda_colsum(struct arena *a, struct cg_lowering *out, struct cg_ref from, struct cg_ref to,
                    int64_t count, int64_t cols)
{
    struct cg_step *s =
        cg_add(a, out, "colsum", cg_section(a, text, "colsum", NULL, 0), "rows colsum");
    cg_refs(a, s, CG_REFS(from, to));
    cg_nums(a, s, CG_NUMS(count, cols));
    cg_launch(s, ceil_div(cols, CUDA_WARP), CUDA_WARP * CUDA_WARP, 0);
}

void cg_cuda_rows(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                  const struct cg_target *t, struct cg_lowering *out)
{
    (void)t;
    struct cuda_rows c;
    struct cg_step *s = region_step(a, g, n, out, &c);
    const struct rows_gen *e = c.e;
    int64_t rows = dim_value(e->rows, b), offset = 0;
    int64_t chunk = chunk_of(&c, rows), blocks = ceil_div(rows, e->chunked ? chunk : c.teams);
    size_t args = rows_args(e), results = e->r->out.n;
    CHECK(args == ir_at(g, n)->nsrc);
    s->label = str_fmt(a, "%s [%lld,%lld]", *ir_name(g, n) ? ir_name(g, n) : "rows",
                       (long long)rows, (long long)e->cols);
    struct cg_ref *ref = NEW(a, struct cg_ref, args + results);
    for (size_t i = 0; i < args; i++) ref[i] = S_(i);
    int64_t *part = NEW(a, int64_t, results);
    for (size_t i = 0; i < results; i++) {
        ir_id o = e->r->out.p[i].id;
        ref[args + i] = R_(i);
        if (e->kind[o] != COLSUM || blocks <= 1) continue;
        part[i] = offset;
        ref[args + i] = W_(offset);
        offset += (blocks * ir_cols(e->r, o).add * 4 + 63) / 64 * 64;
    }
    cg_refs(a, s, ref, args + results);
    const int64_t num[] = {rows, chunk};
    cg_nums(a, s, num, e->chunked ? 2 : 1);
    cg_launch(s, blocks, c.threads, 0);
    s->launch.grid[1] = (uint32_t)c.tiles;
    CHECK(c.tiles <= UINT16_MAX);
    for (size_t i = 0; i < results && blocks > 1; i++)
        if (e->kind[e->r->out.p[i].id] == COLSUM)
            cg_cuda_colsum(a, out, W_(part[i]), R_(i), blocks,
                           ir_cols(e->r, e->r->out.p[i].id).add);
    out->workspace = (size_t)offset > out->workspace ? (size_t)offset : out->workspace;
}
