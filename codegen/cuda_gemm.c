/* Products on a GPU. Plain ones and batches go to the library (cuBLAS), or, where one order of sums
 * is needed whatever M is, to kernels of ours; grouped ones always to ours. Operands that are
 * rounded to bf16, or are bf16 numbers by themselves, are multiplied on tensor cores, others in
 * float32.
 *
 * Forms of our tiles on tensor cores, all of the same bits (text/cuda_gemm.c):
 *   warps   16 x 16 or 32, pieces of K side by side in a block, one launch: M <= 16, rows on 16
 * bytes few     16 x 64: the other M <= 16, or so many rows an expert middle  64 x 64: M <= 64,
 * likewise, and where wide tiles would be fewer than the SMs wide    128 x 128 In float32: simt, 64
 * x 64, and for few rows a thread for every piece of an element's sum. Up to 64 rows are bound by
 * reading B, once, in the type it has; for more, float32 operands are first copied as bf16. With
 * too few tiles for the SMs, the pieces of K lie side by side in the grid, and a second step adds
 * them. */
#include "codegen/cuda_gemm.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_gemm.c.inc"
    ;

enum { PIECE = 256, SMS = 132 };

struct form {
    int64_t bm, bn, bk, warps_m, warps_n, stages, piece;
};
static const struct form few = {16, 64, 64, 1, 4, 4, PIECE}, middle = {64, 64, 32, 2, 2, 4, PIECE},
                         wide = {128, 128, 32, 2, 4, 4, PIECE}, simt = {64, 64, 16, 0, 0, 0, PIECE};
/* Grouped products have no form with pieces side by side, so they add in one chain, and a warp has
 * registers for 64 x 64. */
static const struct form grouped_few = {16, 64, 64, 1, 4, 4, 0},
                         grouped_middle = {64, 64, 32, 2, 2, 4, 0},
                         grouped_wide = {128, 128, 32, 2, 2, 4, 0};

static int64_t tiles(int64_t n, int64_t tile)
{
    return (n + tile - 1) / tile;
}

/* ---- matrices ---- */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t bytes_of(struct cg_matrix m)
{
    return m.narrow ? 2 : 4;
}

struct cg_matrix cg_cuda_src_matrix(const struct cg_emit *e, uint32_t i)
{
    return (struct cg_matrix){S_(i), ir_narrow(e->g, ir_src(e->g, e->n, i)),
                              cg_src_ld(e->g, e->n, i), cg_cuda_src_align(e->g, e->n, i)};
}

struct cg_matrix cg_cuda_res_matrix(const struct cg_emit *e, uint32_t i)
{
    return (struct cg_matrix){R_(i), ir_narrow_result(e->g, e->n, i), cg_result_ld(e->g, e->n, i),
                              cg_cuda_res_align(e->g, e->n, i)};
}

struct cg_matrix cg_cuda_rows_from(struct cg_matrix m, int64_t row)
{
    m.at.offset += row * m.ld * bytes_of(m);
    return m;
}

struct cg_matrix cg_cuda_room(const struct cg_emit *e, bool narrow, int64_t rows, int64_t cols)
{
    struct cg_matrix m = {W_(e->out->workspace), narrow, cols, 0};
    int64_t line = cols * bytes_of(m);
    m.align = least(line & -line, 16);
    e->out->workspace += ((size_t)(rows * line) + 255) & ~(size_t)255;
    return m;
}

static const char *type_of(struct cg_matrix m)
{
    return m.narrow ? "uint16_t" : "float";
}

/* Adds a step of a text made of `text`'s section. */
static struct cg_step *add(const struct cg_emit *e, const char *name, struct str made)
{
    const char *node = ir_name(e->g, e->n);
    return cg_add(e->a, e->out, str_fmt(e->a, "gemm_%s", name), made,
                  *node ? str_fmt(e->a, "%s %s", name, node) : name);
}

void cg_cuda_cast(const struct cg_emit *e, struct cg_matrix from, struct cg_matrix to, int64_t rows,
                  int64_t cols)
{
    bool vector = from.align == 16 && to.align == 16 && cols % 8 == 0;
    const char *move = to.narrow ? "*q = f32_to_bf16(*p);" : "*q = bf16_to_f32(*p);";
    if (vector)
        move = to.narrow ? "float x[8];\n    ld_f32x4(x, p), ld_f32x4(x + 4, p + 4);\n"
                           "    st_bf16x8(q, x);"
                         : "float x[8];\n    ld_bf16x8(x, p);\n"
                           "    st_f32x4(q, x), st_f32x4(q + 4, x + 4);";
    CHECK(from.narrow != to.narrow);
    if (from.ld == cols && to.ld == cols) cols *= rows, rows = 1;
    const struct cg_var vars[] = {
        {"FROM", type_of(from)}, {"TO", type_of(to)}, {"V", vector ? "8" : "1"}, {"MOVE", move}};
    struct cg_step *s = add(e, "cast", cg_section(e->a, text, "cast", vars, 4));
    cg_refs(e->a, s, CG_REFS(from.at, to.at));
    cg_nums(e->a, s, CG_NUMS(rows, cols, from.ld, to.ld));
    cg_launch(s, tiles(rows * cols, vector ? 2048 : 256), 256, 0);
}

struct cg_matrix cg_cuda_as(const struct cg_emit *e, struct cg_matrix m, bool narrow, int64_t rows,
                            int64_t cols)
{
    if (m.narrow == narrow) return m;
    struct cg_matrix to = cg_cuda_room(e, narrow, rows, cols);
    cg_cuda_cast(e, m, to, rows, cols);
    return to;
}

/* ---- the library ---- */

/* Operands in the common type; their strides follow. */
static void common_types(const struct cg_emit *e, struct cg_product *p)
{
    struct cg_matrix a = p->a, b = p->b;
    p->a = cg_cuda_as(e, a, p->bf16, p->batch * (p->ta ? p->k : p->m), p->ta ? p->m : p->k);
    p->b = cg_cuda_as(e, b, p->bf16, p->batch * (p->tb ? p->n : p->k), p->tb ? p->k : p->n);
    if (p->a.at.kind != a.at.kind) p->stride_a = p->m * p->k;
    if (p->b.at.kind != b.at.kind) p->stride_b = p->n * p->k;
}

/* For reports: who multiplies what. */
static const char *route(const struct cg_emit *e, const struct cg_product *p, const char *who)
{
    const char *type = p->bf16 ? "bf16" : "float32";
    const char *many = p->batch > 1 ? str_fmt(e->a, "%lld x ", (long long)p->batch) : "";
    return str_fmt(e->a, "product %s%s [%lld,%lld] x [%lld,%lld]: %s", many, type, (long long)p->m,
                   (long long)p->k, (long long)p->k, (long long)p->n, who);
}

static void library(const struct cg_emit *e, struct cg_product p)
{
    struct cg_matrix c = p.c;
    common_types(e, &p);
    bool copy = c.narrow && !p.bf16; /* no product of float32 gives bf16 */
    if (copy) {
        p.c = cg_cuda_room(e, false, p.batch * p.m, p.n);
        p.stride_c = p.m * p.n;
    }
    const char *node = ir_name(e->g, e->n);
    struct cg_step *s =
        cg_add_product(e->a, e->out, *node ? str_fmt(e->a, "product %s", node) : "product");
    cg_refs(e->a, s, CG_REFS(p.a.at, p.b.at, p.c.at));
    int64_t num[SA_P_ints] = {
        [SA_P_ta] = p.ta,
        [SA_P_tb] = p.tb,
        [SA_P_M] = p.m,
        [SA_P_N] = p.n,
        [SA_P_K] = p.k,
        [SA_P_lda] = p.a.ld,
        [SA_P_ldb] = p.b.ld,
        [SA_P_ldc] = p.c.ld,
        [SA_P_batch] = p.batch,
        [SA_P_stride_a] = p.stride_a,
        [SA_P_stride_b] = p.stride_b,
        [SA_P_stride_c] = p.stride_c,
        [SA_P_bf16_in] = p.bf16,
        [SA_P_bf16_out] = p.c.narrow,
        [SA_P_accumulate] = p.add,
    };
    cg_nums(e->a, s, num, SA_P_ints);
    s->route = route(e, &p, p.bf16 ? "cuBLAS" : "cuBLAS, without TF32");
    if (copy) cg_cuda_cast(e, p.c, c, p.batch * p.m, p.n);
}

/* ---- our tiles ---- */

/* May 16 bytes be moved at once where the inner index runs over `inner`? */
static bool vector(struct cg_matrix m, int64_t inner)
{
    return m.align == 16 && inner * bytes_of(m) % 16 == 0;
}

/* Elements of an operand of r rows in a stage, as struct operand of the text has them. */
static int64_t stage_bytes(struct cg_matrix m, bool along, int64_t r, int64_t bk)
{
    int64_t lines = along ? r : bk, width = along ? bk : r;
    return lines * (width + (m.narrow || along ? 8 : 4)) * bytes_of(m);
}

/* Bytes of an operand pair in a stage. */
static int64_t pair_bytes(const struct form *f, const struct cg_product *p)
{
    return stage_bytes(p->a, !p->ta, f->bm, f->bk) + stage_bytes(p->b, p->tb, f->bn, f->bk);
}

static void append(const struct cg_emit *e, struct sb *s, const char *name,
                   const struct cg_var *vars, size_t n)
{
    struct str part = cg_cuda_section(e->a, text, name, vars, n);
    sb_add(s, part.p, part.n);
}

/* The text of kernel `name` over tiles of form f; p says what the operands are. */
static struct str tile_text(const struct cg_emit *e, const char *name, const struct form *f,
                            const struct cg_product *p, bool warps, const struct cg_var *more,
                            size_t nmore)
{
    const struct cg_var vars[] = {
        {"TA", type_of(p->a)},
        {"TB", type_of(p->b)},
        {"TC", type_of(p->c)},
        {"ta", p->ta ? "1" : "0"},
        {"tb", p->tb ? "1" : "0"},
        {"VA", vector(p->a, p->ta ? p->m : p->k) ? "true" : "false"},
        {"VB", vector(p->b, p->tb ? p->k : p->n) ? "true" : "false"},
        {"VC", !vector(p->c, p->n) ? "1"
               : p->c.narrow       ? "8"
                                   : "4"},
        {"BM", cg_number(e, f->bm)},
        {"BN", cg_number(e, f->bn)},
        {"BK", cg_number(e, f->bk)},
        {"WM", cg_number(e, f->warps_m)},
        {"WN", cg_number(e, f->warps_n)},
        {"STAGES", cg_number(e, f->stages)},
        {"PIECE", cg_number(e, f->piece)},
        {"COPIERS", warps ? "WARP" : "THREADS"},
    };
    struct sb s = {0};
    bool own = f == &simt; /* its text has its sizes in it */
    append(e, &s, own ? "simt" : "mma", vars, sizeof vars / sizeof *vars);
    if (!own && !warps) append(e, &s, "tile", NULL, 0);
    append(e, &s, name, more, nmore);
    return sb_take(&s, e->a);
}

/* A step of kernel `name`, a block a tile. */
static struct cg_step *tiled(const struct cg_emit *e, const char *name, const struct form *f,
                             const struct cg_product *p)
{
    struct cg_step *step = add(e, name, tile_text(e, name, f, p, false, NULL, 0));
    bool own = f == &simt;
    step->launch.threads = own ? 256 : (uint32_t)(32 * f->warps_m * f->warps_n);
    if (own) return step;
    int64_t stages = f->stages * pair_bytes(f, p),
            tile = f->bm * (f->bn + 8) * 4; /* takes their place in the end */
    step->launch.shared = (uint32_t)(stages > tile ? stages : tile);
    return step;
}

/* Of our kernels where the library would do: one order of sums, whatever M is. */
static const char *tiles_of(const struct cg_emit *e, const struct form *f, const char *more)
{
    return str_fmt(e->a, "our tiles of %lld x %lld%s, so that a row is the same in every batch",
                   (long long)f->bm, (long long)f->bn, more);
}

static void grid(struct cg_step *s, int64_t x, int64_t y, int64_t z)
{
    CHECK(x <= INT32_MAX && y <= 65535 && z <= 65535);
    bool none = !x || !y || !z;
    s->launch.grid[0] = none ? 0 : (uint32_t)x;
    s->launch.grid[1] = (uint32_t)y, s->launch.grid[2] = (uint32_t)z;
}

static const struct form *form_of(const struct cg_product *p)
{
    if (!p->bf16) return &simt;
    if (p->m <= few.bm && p->batch == 1) return &few;
    if (p->m <= middle.bm) return &middle;
    return tiles(p->m, wide.bm) * tiles(p->n, wide.bn) * p->batch >= SMS ? &wide : &middle;
}

/* Are there too few tiles to keep all SMs busy, a small one with reading? */
static bool cut_in_pieces(const struct form *f, const struct cg_product *p)
{
    int64_t enough = f == &few ? 4 * SMS : f == &middle ? SMS / 2 : f == &simt ? SMS : 0;
    return p->batch == 1 && p->k > PIECE && tiles(p->m, f->bm) * tiles(p->n, f->bn) < enough;
}

/* K in pieces side by side, then their sum. */
static void in_pieces(const struct cg_emit *e, const struct form *f, const struct cg_product *p)
{
    int64_t pieces = tiles(p->k, PIECE);
    struct cg_product own = *p;
    own.c = cg_cuda_room(e, false, pieces * p->m, p->n);
    struct cg_step *s = tiled(e, "pieces", f, &own);
    cg_refs(e->a, s, CG_REFS(p->a.at, p->b.at, own.c.at));
    cg_nums(e->a, s, CG_NUMS(p->m, p->n, p->k, p->a.ld, p->b.ld));
    grid(s, tiles(p->n, f->bn), tiles(p->m, f->bm), pieces);
    s->route = route(e, p, tiles_of(e, f, ", pieces of K side by side for more blocks"));
    const struct cg_var vars[] = {
        {"TC", type_of(p->c)},
        {"ROUND", p->c.narrow ? "f32_to_bf16" : ""},
        {"WIDEN", p->c.narrow ? "bf16_to_f32" : ""},
    };
    s = add(e, "finish", cg_section(e->a, text, "finish", vars, 3));
    cg_refs(e->a, s, CG_REFS(own.c.at, p->c.at));
    cg_nums(e->a, s, CG_NUMS(p->m, p->n, p->c.ld, pieces, p->add));
    cg_launch(s, tiles(p->m * p->n, 256), 256, 0);
}

/* Few rows in one launch, where all of this suits; false: not done. Blocks of up to six warps, of
 * which two fit on an SM: 12 warps there have 3 or more KB each on their way. Every block reads all
 * of A, so columns are 32 where there are enough, and with very many the plain tiles are better. */
static bool few_rows(const struct cg_emit *e, const struct cg_target *t, const struct cg_product *p)
{
    enum { WARPS = 6, ROUNDS = 8 };
    struct form f = {16, tiles(p->n, 32) >= 2 * SMS ? 32 : 16, 64, 1, 1, 4, PIECE};
    int64_t pieces = tiles(p->k, PIECE), rounds = tiles(pieces, WARPS);
    if (tiles(p->n, few.bn) >= 4 * SMS) return false;
    if (!p->bf16 || p->m > f.bm || p->batch != 1 || !pieces || rounds > ROUNDS) return false;
    if (!vector(p->a, p->ta ? p->m : p->k) || !vector(p->b, p->tb ? p->k : p->n)) return false;
    int64_t warps = tiles(pieces, rounds), pair = pair_bytes(&f, p);
    int64_t fit = (cg_cuda_shared(t) / 2 - 1024) / (warps * pair); /* a block has 1 KB of its own */
    if (fit < 2) return false;
    f.stages = least(fit, f.stages);
    const struct cg_var more[] = {{"WARPS", cg_number(e, warps)}, {"ROUNDS", cg_number(e, rounds)}};
    struct cg_step *s = add(e, "few", tile_text(e, "few", &f, p, true, more, 2));
    cg_refs(e->a, s, CG_REFS(p->a.at, p->b.at, p->c.at));
    cg_nums(e->a, s, CG_NUMS(p->m, p->n, p->k, p->a.ld, p->b.ld, p->c.ld, p->add));
    int64_t stages = warps * f.stages * pair, parts = pieces * f.bm * (f.bn + 8) * 4;
    cg_launch(s, p->m ? tiles(p->n, f.bn) : 0, 32 * warps, stages > parts ? stages : parts);
    s->route = route(e, p, tiles_of(e, &f, ", a warp a piece of K"));
    return true;
}

/* The same in float32: a router's, of one row, would have 4 tiles of the simt form. */
static bool few_rows_float(const struct cg_emit *e, const struct cg_product *p)
{
    enum { COLS = 8, MOST = 16, LINE = (PIECE + 4) * 4, SHARED = 90 << 10 };
    int64_t pieces = tiles(p->k, PIECE), each = (p->m + COLS) * LINE,
            sums = pieces * p->m * COLS * 4;
    int64_t group = least(pieces, (SHARED - sums) / each);
    if (p->bf16 || p->m > MOST || p->batch != 1 || group < 1 || p->ta || !p->tb) return false;
    if (p->a.narrow || p->b.narrow || !vector(p->a, p->k) || !vector(p->b, p->k)) return false;
    const struct cg_var vars[] = {{"TC", type_of(p->c)}, {"PIECE", cg_number(e, PIECE)}};
    struct cg_step *s = add(e, "simt_few", cg_section(e->a, text, "simt_few", vars, 2));
    cg_refs(e->a, s, CG_REFS(p->a.at, p->b.at, p->c.at));
    cg_nums(e->a, s, CG_NUMS(p->m, p->n, p->k, p->a.ld, p->b.ld, p->c.ld, group, p->add));
    cg_launch(s, p->m ? tiles(p->n, COLS) : 0, 256, group * each + sums);
    s->route =
        route(e, p, "our chains of a piece of K each, so that a row is the same in every batch");
    return true;
}

static void own_product(const struct cg_emit *e, const struct cg_target *t, struct cg_product p)
{
    const struct form *f = form_of(&p);
    if (few_rows(e, t, &p) || few_rows_float(e, &p)) return;
    if (p.bf16 && p.m > middle.bm) common_types(e, &p); /* else B is read once, as it is */
    if (cut_in_pieces(f, &p)) {
        in_pieces(e, f, &p);
        return;
    }
    struct cg_step *s = tiled(e, "product", f, &p);
    cg_refs(e->a, s, CG_REFS(p.a.at, p.b.at, p.c.at));
    cg_nums(
        e->a, s,
        CG_NUMS(p.m, p.n, p.k, p.a.ld, p.b.ld, p.c.ld, p.stride_a, p.stride_b, p.stride_c, p.add));
    grid(s, tiles(p.n, f->bn), tiles(p.m, f->bm), p.batch);
    s->route = route(e, &p, tiles_of(e, f, ""));
}

void cg_cuda_product(const struct cg_emit *e, const struct cg_target *t, struct cg_product p)
{
    CHECK(!p.add || !p.c.narrow);
    if (t->no_library)
        own_product(e, t, p);
    else
        library(e, p);
}

/* ---- operations ---- */

static int64_t dim(const struct cg_emit *e, uint32_t src, int from_last)
{
    const struct ir_type *t = ir_ty(e->g, ir_src(e->g, e->n, src));
    return dim_value(t->dim[t->rank - 1 - from_last], e->b);
}

/* Numbers that are bf16 already lose nothing on tensor cores. */
static bool in_bf16(const struct cg_emit *e, const struct cg_product *p)
{
    return ir_int(e->g, e->n, AK_bf16, 0) || (p->a.narrow && p->b.narrow);
}

static void matmul(const struct cg_emit *e, const struct cg_target *t)
{
    struct cg_product p = {.a = cg_cuda_src_matrix(e, 0),
                           .b = cg_cuda_src_matrix(e, 1),
                           .c = cg_cuda_res_matrix(e, 0),
                           .ta = ir_int(e->g, e->n, AK_ta, 0) != 0,
                           .tb = ir_int(e->g, e->n, AK_tb, 0) != 0};
    p.bf16 = in_bf16(e, &p);
    p.m = dim(e, 0, p.ta ? 0 : 1), p.k = dim(e, 0, p.ta ? 1 : 0), p.n = dim(e, 1, p.tb ? 1 : 0);
    p.batch = ir_ty(e->g, e->n)->rank == 3 ? dim(e, 0, 2) : 1;
    p.stride_a = p.m * p.k, p.stride_b = p.n * p.k, p.stride_c = p.m * p.n;
    cg_cuda_product(e, t, p);
}

static const char *grouped_tiles(const struct cg_emit *e, const struct form *f, int64_t experts)
{
    return str_fmt(e->a, "our tiles of %lld x %lld: only the device knows the rows of %lld experts",
                   (long long)f->bm, (long long)f->bn, (long long)experts);
}

/* Adds what lists the row tiles of all experts, `most` at most; returns where the list is. */
static struct cg_ref table(const struct cg_emit *e, const struct form *f, int64_t experts,
                           int64_t most)
{
    struct cg_ref at = W_(e->out->workspace);
    e->out->workspace += ((size_t)most * 12 + 255) & ~(size_t)255;
    const struct cg_var bm = {"BM", cg_number(e, f->bm)};
    struct cg_step *s = add(e, "table", cg_section(e->a, text, "table", &bm, 1));
    cg_refs(e->a, s, CG_REFS(S_(2), at));
    cg_nums(e->a, s, CG_NUMS(experts, most));
    cg_launch(s, 1, 256, 0);
    return at;
}

static void grouped(const struct cg_emit *e)
{
    struct cg_product p = {.a = cg_cuda_src_matrix(e, 0),
                           .b = cg_cuda_src_matrix(e, 1),
                           .c = cg_cuda_res_matrix(e, 0),
                           .tb = ir_int(e->g, e->n, AK_tb, 1) != 0};
    int64_t experts = dim(e, 1, 2);
    p.bf16 = in_bf16(e, &p);
    p.m = dim(e, 0, 1), p.k = dim(e, 0, 0), p.n = dim(e, 1, p.tb ? 1 : 0), p.batch = 1;
    const struct form *f = !p.bf16                              ? &simt
                           : p.m <= experts * grouped_few.bm    ? &grouped_few
                           : p.m <= experts * grouped_middle.bm ? &grouped_middle
                                                                : &grouped_wide;
    if (f == &grouped_wide) {
        p.a = cg_cuda_as(e, p.a, true, p.m, p.k);
        p.b = cg_cuda_as(e, p.b, true, experts * (p.tb ? p.n : p.k), p.tb ? p.k : p.n);
    }
    int64_t most = least(p.m, p.m / f->bm + experts); /* tiles of rows */
    struct cg_ref tiles_at = f == &grouped_few ? S_(2) : table(e, f, experts, most);
    struct cg_step *s = tiled(e, f == &grouped_few ? "grouped_few" : "grouped", f, &p);
    cg_refs(e->a, s, CG_REFS(p.a.at, p.b.at, p.c.at, tiles_at));
    const int64_t num[] = {p.n, p.k, p.a.ld, p.b.ld, p.c.ld, experts};
    cg_nums(e->a, s, num, f == &grouped_few ? 6 : 5);
    grid(s, tiles(p.n, f->bn) * most, 1, 1); /* y has no room for the tiles of many tokens */
    s->route = route(e, &p, grouped_tiles(e, f, experts));
}

static void grouped_dw(const struct cg_emit *e)
{
    struct cg_product p = {.a = cg_cuda_src_matrix(e, 0),
                           .b = cg_cuda_src_matrix(e, 1),
                           .c = cg_cuda_res_matrix(e, 0),
                           .ta = true};
    int64_t experts = dim(e, 2, 0) - 1;
    p.bf16 = in_bf16(e, &p);
    p.k = dim(e, 0, 1), p.m = dim(e, 0, 0), p.n = dim(e, 1, 0), p.batch = 1;
    if (p.bf16) common_types(e, &p);
    const struct form *f = !p.bf16 ? &simt : &grouped_wide;
    struct cg_step *s = tiled(e, "dw", f, &p);
    cg_refs(e->a, s, CG_REFS(p.a.at, p.b.at, S_(2), p.c.at));
    cg_nums(e->a, s, CG_NUMS(p.m, p.n, p.a.ld, p.b.ld));
    grid(s, tiles(p.n, f->bn), tiles(p.m, f->bm), experts);
    s->route = route(e, &p, grouped_tiles(e, f, experts));
}

void cg_cuda_gemm(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                  const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    switch (ir_at(g, n)->op) {
    case OP_matmul: matmul(&e, t); break;
    case OP_grouped_matmul: grouped(&e); break;
    case OP_grouped_matmul_dw: grouped_dw(&e); break;
    default: BUG("not a product: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
