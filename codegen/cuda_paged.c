/* Attention over caches of bf16 on a GPU, by tensor cores. */
#include "codegen/cuda_cached.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_paged.c.inc"
    ;

enum {
    TILE = 64,
    SMS = 132,
    MOST_PARTS = 256 << 20, /* bytes */
    ENOUGH = 96 << 10,      /* bytes of tiles of a block: more are not on their way at once */
    WIDE = 128,             /* values beyond that take eight warps */
};

/* What all sizes of a model share. */
struct form {
    int64_t warps, blocks, piece, stages, ldh, ldv, m; /* m: the most 16 rows of a block */
};

/* Shared bytes of a block of 16 m rows; the text says of what. */
static int64_t bytes_of(const struct cg_cached *x, const struct form *f, int64_t m)
{
    int64_t tile = TILE * (f->ldh + (x->same ? 0 : f->ldv)) * 2;
    return f->stages * tile + 16 * m * (2 * (f->ldh + TILE + 8) + 4 * (f->warps + 4));
}

/* Pieces are small where there are few key heads, so that a sequence of 4096 tokens keeps all SMs
 * busy; of latents, whose parts are as large as they, twice that. */
static bool form_of(const struct cg_cached *x, struct form *f)
{
    *f = (struct form){.warps = x->vd > WIDE ? 8 : 4, .piece = x->kv >= 4 || x->same ? 128 : 64};
    f->ldh = (x->hd + 31) / 32 * 32 + 8, f->ldv = x->vd + 8;
    int64_t tile = TILE * (f->ldh + (x->same ? 0 : f->ldv)) * 2,
            values = (x->vd / 8 + f->warps - 1) / f->warps;
    f->stages = ENOUGH / tile < 2 ? 2 : ENOUGH / tile > 4 ? 4 : ENOUGH / tile;
    for (f->m = values <= 8 ? 2 : 1; f->m; f->m--)
        if (bytes_of(x, f, f->m) <= x->shared) break;
    f->blocks = f->m && f->warps == 4 ? x->shared / (bytes_of(x, f, f->m) + 1024) : 1;
    if (f->blocks > 3) f->blocks = 3;
    if (!f->blocks) f->blocks = 1;
    return f->m && values <= 16;
}

const char *cg_cuda_paged_why(const struct cg_cached *x)
{
    struct form f;
    if (strcmp(x->tq, "uint16_t") || strcmp(x->tk, "uint16_t"))
        return "queries and caches are not all bf16";
    if (!(x->scale > 0)) return "the scale is not positive";
    bool lies = x->vec_q == 8 && x->vec_k == 8 && (x->same || x->vec_v == 8) && x->vec_o > 1;
    if (!lies || x->hd % 8 || x->vd % 8 || x->qn % 8) return "heads do not lie on 16 bytes";
    return form_of(x, &f) ? NULL : "a tile of keys and values does not fit";
}

/* The most pieces that a block of `rows` rows sees: the text says how large they are. */
static int64_t pieces_of(const struct cg_cached *x, int64_t piece, int64_t rows)
{
    int64_t last = x->table * IR_PAGE - 1, size = piece, first = 0;
    int64_t seen = IR_PAGE + x->window + rows / x->g + 2; /* the first tile is whole */
    for (; last >= 32 * size; first += 16) size *= 2;
    int64_t all = first + last / size + 1, some = (seen + piece - 1) / piece + 1;
    return x->window > 0 && some < all ? some : all;
}

/* How one size is cut. */
struct cut {
    int64_t m, tiles, blocks, pieces, rows;
    bool split;
};

/* Rows of 32 share what they read, where that leaves blocks for all SMs; so do pieces in one block,
 * where they need not be side by side for that. */
static struct cut cut_of(const struct cg_emit *e, const struct cg_cached *x, const struct form *f)
{
    int64_t T = e->b.T, h = x->g * x->kv, few = T * x->g <= 32 && !x->same ? 2 * SMS : SMS;
    struct cut c = {.rows = e->b.B * T * h};
    for (c.m = T * x->g > 16 ? f->m : 1;; c.m--) {
        c.tiles = (T * x->g + 16 * c.m - 1) / (16 * c.m);
        c.blocks = e->b.B * x->kv * c.tiles;
        c.pieces = pieces_of(x, f->piece, 16 * c.m);
        c.split = c.pieces > 1 && c.blocks < few && c.pieces <= 65535 &&
                  c.rows * c.pieces * (x->vd + 2) * 4 <= MOST_PARTS;
        if (c.m == 1 || c.blocks * (c.split ? c.pieces : 1) >= SMS) return c;
    }
}

static struct cg_step *add(const struct cg_emit *e, const char *name, const struct cg_var *v,
                           size_t n)
{
    const char *node = ir_name(e->g, e->n);
    struct str parts = cg_cuda_section(e->a, text, "paged_parts", v, n),
               own = cg_cuda_section(e->a, text, name, v, n);
    struct sb s = {0};
    sb_add(&s, parts.p, parts.n);
    sb_add(&s, own.p, own.n);
    return cg_add(e->a, e->out, name, sb_take(&s, e->a),
                  *node ? str_fmt(e->a, "%s %s", name, node) : name);
}

int64_t cg_cuda_paged(const struct cg_emit *e, const struct cg_cached *x, int64_t at)
{
    struct form f;
    CHECK(form_of(x, &f));
    struct cut c = cut_of(e, x, &f);
    int64_t stat = at, part = stat + (c.rows * c.pieces * 8 + 255) / 256 * 256;
    struct cg_var v[] = {{"M", "1"},
                         {"G", cg_number(e, x->g)},
                         {"KV", cg_number(e, x->kv)},
                         {"HD", cg_number(e, x->hd)},
                         {"VD", cg_number(e, x->vd)},
                         {"WINDOW", cg_number(e, x->window)},
                         {"WARPS", cg_number(e, f.warps)},
                         {"BLOCKS", cg_number(e, f.blocks)},
                         {"STAGES", cg_number(e, f.stages)},
                         {"PIECE", cg_number(e, f.piece)},
                         {"SAME", cg_number(e, x->same)},
                         {"SCALE", str_fmt(e->a, "%.9e", x->scale)},
                         {"TO", x->to},
                         {"QN", cg_number(e, x->qn)},
                         {"LD_Q", cg_number(e, x->ldq)},
                         {"LD_Q2", cg_number(e, x->ldq2)},
                         {"HEAD_Q", cg_number(e, x->head_q)},
                         {"HEAD_Q2", cg_number(e, x->head_q2)},
                         {"LD_K", cg_number(e, x->ldk)},
                         {"LD_O", cg_number(e, x->ldo)},
                         {"EACH", "4"}};
    struct cg_ref parts = c.split ? W_(part) : x->o, stats = c.split ? W_(stat) : x->o;
    struct cg_step *s;
    CHECK(e->b.T * x->g < INT32_MAX / 2 && x->table * IR_PAGE < INT32_MAX / 2);
    for (int64_t m = 1; m <= f.m; m++) { /* the texts are the same for all sizes */
        v[0].value = cg_number(e, m);
        s = add(e, "attend_paged", v, sizeof v / sizeof *v);
        cg_refs(e->a, s, CG_REFS(x->q, x->q2, x->k, x->v, x->pages, x->past, x->o, parts, stats));
        cg_nums(e->a, s, CG_NUMS(e->b.T, x->table, c.tiles, c.split));
        cg_launch(s, m == c.m ? c.blocks : 0, 32 * f.warps, bytes_of(x, &f, m));
        if (c.split && m == c.m) s->launch.grid[1] = (uint32_t)c.pieces;
    }
    s = add(e, "join_paged", v, sizeof v / sizeof *v);
    cg_refs(e->a, s, CG_REFS(parts, stats, x->past, x->o));
    cg_nums(e->a, s, CG_NUMS(e->b.T, c.pieces));
    cg_launch(s, c.split ? c.rows : 0, 256, 0);
    if (c.split) s->launch.grid[1] = (uint32_t)((x->vd + 127) / 128);
    return c.split ? part + c.rows * c.pieces * x->vd * 4 : at;
}
