/* Attention over caches on a GPU. */
#include "codegen/cuda_cached.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_cached.c.inc"
    ;

enum {
    LIMIT = 163 << 10,      /* shared memory of a block, at most */
    PIECE = 256,            /* keys, as in the text */
    FEW_BLOCKS = 264,       /* fewer do not fill an H200: then pieces are spread over blocks */
    MOST_PARTS = 256 << 20, /* bytes */
};

/* How rows are cut: tiles of 16 r rows and 16 rk keys. The bits depend on rk only. */
struct cut {
    int64_t r, rk, ldh, ldv;
};

static int64_t bytes_of(const struct cg_cached *x, struct cut c)
{
    int64_t keys = 16 * c.rk, each = c.ldh + (x->same ? 0 : c.ldv);
    return (16 * c.r * (c.ldh + keys + 4) + keys * each) * 4;
}

/* The cut for many rows; few go in tiles of 16. */
static struct cut cut_of(const struct cg_cached *x)
{
    enum { WIDEST = 512 }; /* values of four rows of which stay in registers, of two twice that */
    int64_t limit = x->shared < LIMIT ? x->shared : LIMIT;
    struct cut c = {.ldh = (x->hd + 63) / 64 * 64 + 4, .ldv = (x->vd + 63) / 64 * 64 + 4};
    for (int64_t least = 2; least; least--)
        for (c.rk = 4; c.rk; c.rk /= 2)
            for (c.r = 4; c.r >= least; c.r /= 2)
                if (c.r * x->vd <= 2 * WIDEST && bytes_of(x, c) <= limit) return c;
    BUG("attention over caches: heads of %lld are too large", (long long)x->hd);
}

static struct cg_step *add(const struct cg_emit *e, const char *name, const struct cg_var *v,
                           size_t n)
{
    const char *node = ir_name(e->g, e->n);
    return cg_add(e->a, e->out, name, cg_cuda_section(e->a, text, name, v, n),
                  *node ? str_fmt(e->a, "%s %s", name, node) : name);
}

/* The most pieces that a block of `rows` rows sees. */
static int64_t most_pieces(const struct cg_cached *x, int64_t rows)
{
    int64_t all = (x->table * IR_PAGE + PIECE - 1) / PIECE;
    int64_t tokens = rows / x->g + 2,
            seen = IR_PAGE + x->window + tokens; /* the first tile is whole */
    int64_t some = (seen + PIECE - 1) / PIECE + 1;
    return x->window > 0 && some < all ? some : all;
}

int64_t cg_cuda_cached(const struct cg_emit *e, const struct cg_cached *x, int64_t at)
{
    enum { MANY = 24 };
    struct cut many = cut_of(x), few = many, c;
    few.r = 1;
    bool is_many = e->b.T * x->g > MANY;
    c = is_many ? many : few;
    int64_t h = x->g * x->kv, T = e->b.T, rows = e->b.B * T * h;
    int64_t tiles = (T * x->g + 16 * c.r - 1) / (16 * c.r), blocks = e->b.B * x->kv * tiles;
    int64_t pieces = most_pieces(x, 16 * c.r);
    bool split = pieces > 1 && blocks < FEW_BLOCKS && pieces <= 65535 &&
                 rows * pieces * (x->vd + 2) * 4 <= MOST_PARTS;
    int64_t stat = at, part = stat + (rows * pieces * 8 + 255) / 256 * 256;
    struct cg_var v[] = {{"R", cg_number(e, few.r)},
                         {"G", cg_number(e, x->g)},
                         {"KV", cg_number(e, x->kv)},
                         {"HD", cg_number(e, x->hd)},
                         {"VD", cg_number(e, x->vd)},
                         {"WINDOW", cg_number(e, x->window)},
                         {"RK", cg_number(e, c.rk)},
                         {"SAME", cg_number(e, x->same)},
                         {"LDH", cg_number(e, c.ldh)},
                         {"LDV", cg_number(e, c.ldv)},
                         {"SCALE", str_fmt(e->a, "%.9e", x->scale)},
                         {"TQ", x->tq},
                         {"TK", x->tk},
                         {"TO", x->to},
                         {"LD_Q", cg_number(e, x->ldq)},
                         {"LD_K", cg_number(e, x->ldk)},
                         {"LD_O", cg_number(e, x->ldo)},
                         {"VEC_K", cg_number(e, x->vec_k)},
                         {"VEC_V", cg_number(e, x->vec_v)},
                         {"VEC_P", cg_number(e, x->vd % 4 ? 1 : 4)},
                         {"VEC_O", cg_number(e, x->vec_o)}};
    struct cg_ref parts = split ? W_(part) : x->o, stats = split ? W_(stat) : x->o;
    struct cg_step *s;
    for (int i = 0; i < 2; i++) { /* the texts are the same for all sizes */
        if (i) v[0].value = cg_number(e, many.r);
        s = add(e, "attend_cached", v, sizeof v / sizeof *v);
        s->why = x->why;
        cg_refs(e->a, s, CG_REFS(x->q, x->k, x->v, x->pages, x->past, x->o, parts, stats));
        cg_nums(e->a, s, CG_NUMS(T, x->table, tiles, split));
        cg_launch(s, is_many == i ? blocks : 0, 256, bytes_of(x, i ? many : few));
        if (split && is_many == i) s->launch.grid[1] = (uint32_t)pieces;
    }
    s = add(e, "attend_join", v, sizeof v / sizeof *v);
    cg_refs(e->a, s, CG_REFS(parts, stats, x->past, x->o));
    cg_nums(e->a, s, CG_NUMS(T, pieces));
    cg_launch(s, split ? rows : 0, 128, 0);
    return split ? part + rows * pieces * x->vd * 4 : at;
}
