/* Attention of whole sequences and rotary embedding on a GPU. */
#include "codegen/cuda.h"
#include <math.h>

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_attention.c.inc"
    ;
static const char flash_text[] =
#include "text/cuda_flash.c.inc"
    ;

/* A thread for each of `count` things, in blocks of 256. */
static void launch_flat(struct cg_step *s, int64_t count)
{
    cg_launch(s, (count + 255) / 256, 256, 0);
}

/* ---- rotary embedding ---- */

static void rope_table(const struct cg_emit *e)
{
    int64_t hd = ir_cols(e->g, e->n).add, rows = dim_value(ir_rows(e->g, e->n), e->b);
    double theta = ir_num(e->g, e->n, AK_theta, 10000);
    bool cached = ir_at(e->g, e->n)->nsrc > 0;
    struct sb rates = {0};
    for (int64_t i = 0; i < hd / 2; i++)
        sb_printf(&rates, "%s%.17g", i ? ", " : "", pow(theta, -2.0 * (double)i / (double)hd));
    const struct cg_var v[] = {{"HD", cg_number(e, hd)},
                               {"RATES", sb_take(&rates, e->a).p},
                               {"PAST", cached ? "const int32_t *past, " : ""},
                               {"POSITION", cached ? "past[r / steps] + r % steps" : "r % steps"}};
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "rope_table", v, 4);
    if (cached)
        cg_refs(e->a, s, CG_REFS(R_(0), S_(0)));
    else
        cg_refs(e->a, s, CG_REFS(R_(0)));
    cg_nums(e->a, s, CG_NUMS(rows, e->b.T));
    launch_flat(s, rows * (hd / 2));
}

static void rope(const struct cg_emit *e)
{
    const struct ir_graph *g = e->g;
    int64_t hd = ir_int(g, e->n, AK_head_dim, 0), h = ir_int(g, e->n, AK_heads, 0);
    int64_t turned = cg_src_cols(g, e->n, 1, e->b), rows = cg_src_rows(g, e->n, 0, e->b);
    const uint32_t x = 0;
    int64_t v = cg_cuda_width(g, e->n, hd - turned, &x, 1, &x, 1);
    while (turned / 2 % v) v /= 2;
    const struct cg_var vars[] = {{"HD", cg_number(e, hd)},
                                  {"ROTARY", cg_number(e, turned)},
                                  {"H", cg_number(e, h)},
                                  {"V", cg_number(e, v)},
                                  {"TX", cg_cuda_src_type(g, e->n, 0)},
                                  {"TY", cg_cuda_res_type(g, e->n, 0)},
                                  {"LDX", cg_number(e, cg_src_ld(g, e->n, 0))},
                                  {"LDY", cg_number(e, cg_result_ld(g, e->n, 0))},
                                  {"SIGN", ir_int(g, e->n, AK_inverse, 0) ? "-" : ""}};
    struct cg_step *s = cg_add_section(e->a, g, e->n, e->out, text, "rope", vars, 9);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0)));
    cg_nums(e->a, s, CG_NUMS(rows, cg_src_rows(g, e->n, 1, e->b)));
    launch_flat(s, rows * h * ((hd - turned + turned / 2) / v));
}

/* ---- attention ---- */

enum { LIMIT = 163 << 10 }; /* shared memory of a block, at most */

struct attend {
    int64_t h, kv, hd, vd, window, ldh, ldv; /* ldh, ldv: row strides of tiles in shared memory */
    int64_t r;                               /* a tile has 16 r rows */
    int64_t limit;                           /* bytes of shared memory */
    double scale;
};

static struct attend attend_of(const struct cg_emit *e, const struct cg_target *t)
{
    int64_t shared = cg_cuda_shared(t);
    struct attend x = {.h = ir_int(e->g, e->n, AK_heads, 0),
                       .kv = ir_int(e->g, e->n, AK_kv_heads, 0),
                       .hd = ir_int(e->g, e->n, AK_head_dim, 0),
                       .vd = ir_int(e->g, e->n, AK_v_dim, 0),
                       .window = ir_int(e->g, e->n, AK_window, 0),
                       .limit = shared < LIMIT ? shared : LIMIT,
                       .scale = (double)(float)ir_num(e->g, e->n, AK_scale, 1)};
    if (!x.vd) x.vd = x.hd;
    x.ldh = (x.hd + 63) / 64 * 64 + 4, x.ldv = (x.vd + 63) / 64 * 64 + 4;
    return x;
}

/* Bytes of `h` tiles as wide as keys, `v` as values and `p` of probabilities; sets r to the largest
 * that has room for them. */
static int64_t tiles_bytes(struct attend *x, int64_t h, int64_t v, int64_t p)
{
    for (x->r = 4;; x->r /= 2) {
        int64_t rows = 16 * x->r, bytes = rows * (h * x->ldh + v * x->ldv + p * (rows + 4)) * 4;
        if (bytes <= x->limit) return bytes;
        if (x->r == 1) BUG("attention: heads of %lld are too large", (long long)x->hd);
    }
}

enum { VARS = 40 };
struct vars {
    struct cg_var v[VARS];
    size_t n;
};

static void set(struct vars *v, const char *name, const char *value)
{
    CHECK(v->n < VARS);
    v->v[v->n++] = (struct cg_var){name, value};
}

/* Type, vector width and row stride of operand or result i as ${Tname}, ${VEC_name}, ${LD_name}. */
static void set_value(const struct cg_emit *e, struct vars *v, bool result, uint32_t i,
                      const char *name, int64_t size)
{
    int64_t ld = result ? cg_result_ld(e->g, e->n, i) : cg_src_ld(e->g, e->n, i);
    set(v, str_fmt(e->a, "T%s", name),
        result ? cg_cuda_res_type(e->g, e->n, i) : cg_cuda_src_type(e->g, e->n, i));
    set(v, str_fmt(e->a, "VEC_%s", name), cg_number(e, cg_cuda_vector(e, result, i, size)));
    set(v, str_fmt(e->a, "LD_%s", name), cg_number(e, ld));
}

static void set_sizes(const struct cg_emit *e, struct vars *v, const struct attend *x)
{
    set(v, "H", cg_number(e, x->h));
    set(v, "KV", cg_number(e, x->kv));
    set(v, "HD", cg_number(e, x->hd));
    set(v, "VD", cg_number(e, x->vd));
    set(v, "WINDOW", cg_number(e, x->window));
    set(v, "LDH", cg_number(e, x->ldh));
    set(v, "LDV", cg_number(e, x->ldv));
    set(v, "R", cg_number(e, x->r));
    set(v, "SCALE", str_fmt(e->a, "%.9e", x->scale));
    set_value(e, v, false, 0, "Q", x->hd);
    set_value(e, v, false, 1, "K", x->hd);
    set_value(e, v, false, 2, "V", x->vd);
}

/* A step of a section of `from` behind another one (NULL: none), with those of the variables it
 * uses. */
static struct cg_step *add(const struct cg_emit *e, const char *from, const char *before,
                           const char *name, const struct vars *v)
{
    const char *node = ir_name(e->g, e->n);
    struct str t = cg_cuda_section(e->a, from, name, v->v, v->n);
    if (before)
        t = str_of(str_fmt(e->a, "%s%s", cg_cuda_section(e->a, from, before, v->v, v->n).p, t.p));
    return cg_add(e->a, e->out, name, t, *node ? str_fmt(e->a, "%s %s", name, node) : name);
}

/* A block of `threads` for each of `heads` and tile of `rows` of a sequence. */
static void launch_tiles(const struct cg_emit *e, struct cg_step *s, int64_t heads, int64_t rows,
                         int64_t threads, int64_t bytes)
{
    int64_t tiles = (e->b.T + rows - 1) / rows;
    cg_nums(e->a, s, CG_NUMS(e->b.T, tiles));
    cg_launch(s, e->b.B * heads * tiles, threads, bytes);
}

/* ---- by tensor cores ---- */

/* The form for bf16 operands: a block's warps have 16 m rows each and go through tiles of `other`
 * rows, of which two are in shared memory, in the backward `chunk` rows of them at a time. */
struct flash {
    int64_t m, warps, split, other, chunk; /* split: warps that share their rows */
    int64_t rows, bytes;                   /* of a block */
    int64_t blocks;                        /* of a multiprocessor at a time, at least */
};

/* Is operand i bf16 and every head of its rows aligned to 16 bytes? */
static bool copies(const struct cg_emit *e, uint32_t i, int64_t size)
{
    return ir_narrow(e->g, ir_src(e->g, e->n, i)) && cg_cuda_vector(e, false, i, size) == 8;
}

/* Can result i be stored in pairs? */
static bool pairs(const struct cg_emit *e, uint32_t i)
{
    return cg_cuda_res_align(e->g, e->n, i) >= 2 * (int64_t)ir_result_bytes(e->g, e->n, i);
}

/* Why node e->n cannot be computed by tensor cores in blocks of `bytes` bytes of shared memory;
 * NULL: it can. */
static const char *plain_why(const struct cg_emit *e, const struct attend *x, int64_t bytes)
{
    enum { WIDEST = 256 }; /* sums of a head stay in registers */
    for (uint32_t i = 0; i < 3; i++)
        if (!ir_narrow(e->g, ir_src(e->g, e->n, i)))
            return "queries, keys or values are float32, not bf16";
    if (x->hd > WIDEST || x->vd > WIDEST) return "heads are wider than 256";
    if (x->scale <= 0) return "the scale is not positive";
    if (!copies(e, 0, x->hd) || !copies(e, 1, x->hd) || !copies(e, 2, x->vd) || !pairs(e, 0))
        return "heads do not lie at multiples of 16 bytes";
    return bytes > x->limit ? "tiles need more shared memory than the target has" : NULL;
}

static const char *plain_grad_why(const struct cg_emit *e, const struct attend *x, int64_t bytes)
{
    enum { WIDEST = 320 };
    const char *why = plain_why(e, x, bytes);
    if (why) return why;
    if (x->hd + x->vd > WIDEST) return "keys and values of a head are wider than 320 together";
    if (!ir_narrow(e->g, ir_src(e->g, e->n, 5)))
        return "gradients of results are float32, not bf16";
    if (!copies(e, 5, x->vd) || !pairs(e, 1) || !pairs(e, 2))
        return "gradients of heads do not lie at multiples of 16 bytes";
    return NULL;
}

/* Columns of a head in shared memory. */
static int64_t flash_cols(int64_t size)
{
    return (size + 15) / 16 * 16 + 8;
}

/* 32 queries a warp, so that a tile of keys is read from shared memory by few warps; sums of the
 * widest values leave no registers for that. Two blocks of four warps are on a multiprocessor; but
 * where registers allow tiles of 128 keys a block has eight, two for the same queries, and is there
 * alone: with sequences of 1024 there are two blocks for each of 132, and of two neighbours one
 * would end long before the other. */
static struct flash flash_of(const struct attend *x)
{
    int64_t h = flash_cols(x->hd), v = flash_cols(x->vd);
    struct flash f = {.m = 2, .warps = 4, .split = 1, .other = 64, .blocks = 2};
    if (x->vd > 112)
        f.other = 48; /* else sums, scores and addresses need more than 255 registers */
    if (x->hd > 128) f.other = 32;
    if (x->hd <= 128 && x->vd <= 64) f.warps = 8, f.split = 2, f.other = 128, f.blocks = 1;
    if (x->vd > 128) f = (struct flash){.m = 1, .warps = 8, .split = 1, .other = 32, .blocks = 1};
    f.rows = 16 * f.m * f.warps / f.split;
    f.bytes = 2 * (f.rows * h + 2 * f.other * (h + v));
    return f;
}

/* The backward of keys and values: two warps share 32 keys, of the widest heads 16. */
static struct flash flash_dkv_of(const struct attend *x)
{
    int64_t h = flash_cols(x->hd), v = flash_cols(x->vd);
    struct flash f = {.m = x->hd > 192 || x->vd > 192 ? 1 : 2, .warps = 8, .split = 2, .blocks = 1};
    f.other = x->hd + x->vd > 256 ? 32 : 64;
    f.chunk = x->hd + x->vd > 256 ? 16 : 32;
    f.rows = 16 * f.m * f.warps / f.split;
    f.bytes = 2 * ((f.rows + 2 * f.other) * (h + v) + 2 * f.rows * f.chunk) + 16 * f.other;
    return f;
}

/* The backward of queries, where a block keeps two tiles of its own. */
static struct flash flash_dq_of(const struct attend *x)
{
    int64_t h = flash_cols(x->hd), v = flash_cols(x->vd);
    struct flash f = {.m = 2, .warps = 4, .split = 1, .other = 32, .chunk = 32, .blocks = 2};
    if (x->hd > 128) f.m = 1, f.warps = 8, f.blocks = 1;
    if (x->hd + x->vd <= 128) f.warps = 8, f.split = 2, f.other = 64, f.blocks = 1;
    f.rows = 16 * f.m * f.warps / f.split;
    f.bytes = 2 * (f.rows + 2 * f.other) * (h + v);
    return f;
}

static void set_flash(const struct cg_emit *e, struct vars *v, const struct flash *f, bool keys)
{
    set(v, "WARPS", cg_number(e, f->warps));
    set(v, "M", cg_number(e, f->m));
    set(v, "BLOCKS", cg_number(e, f->blocks));
    set(v, "SPLIT", cg_number(e, f->split));
    set(v, "CHUNK", cg_number(e, f->chunk));
    set(v, "BK", cg_number(e, keys ? f->rows : f->other));
    set(v, "BQ", cg_number(e, keys ? f->other : f->rows));
}

/* ---- both forms ---- */

static void attention(const struct cg_emit *e, const struct cg_target *t)
{
    struct attend x = attend_of(e, t);
    struct flash f = flash_of(&x);
    struct vars v = {0};
    struct cg_step *s;
    int64_t bytes = tiles_bytes(&x, 2, 1, 1);
    set_sizes(e, &v, &x);
    set_value(e, &v, true, 0, "O", x.vd);
    const char *why = plain_why(e, &x, f.bytes);
    if (!why) {
        set_flash(e, &v, &f, false);
        s = add(e, flash_text, NULL, "flash", &v);
        launch_tiles(e, s, x.h, f.rows, 32 * f.warps, f.bytes);
    } else {
        s = add(e, text, NULL, "attention", &v);
        launch_tiles(e, s, x.h, 16 * x.r, 256, bytes);
    }
    s->why = why;
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), R_(0), R_(1), R_(2)));
}

/* The backward by tensor cores: what both gradients need of a row, [B][H][T], then each of them. */
static void flash_grad(const struct cg_emit *e, const struct attend *x, const struct vars *sizes,
                       const struct flash *kf, const struct flash *qf)
{
    int64_t count = e->b.B * e->b.T * x->h, delta = count * (int64_t)sizeof(float);
    struct vars kv = *sizes, qv = *sizes;
    set_flash(e, &kv, kf, true);
    set_flash(e, &qv, qf, false);
    e->out->workspace = 2 * (size_t)delta;
    struct cg_step *s = add(e, flash_text, NULL, "flash_delta", sizes);
    cg_refs(e->a, s, CG_REFS(S_(3), S_(5), S_(4), W_(0), W_(delta)));
    launch_tiles(e, s, x->h, 32, 256, 0);
    s = add(e, flash_text, NULL, "flash_dkv", &kv);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), W_(0), S_(5), W_(delta), R_(1), R_(2)));
    launch_tiles(e, s, x->kv, kf->rows, 32 * kf->warps, kf->bytes);
    s = add(e, flash_text, NULL, "flash_dq", &qv);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), W_(0), S_(5), W_(delta), R_(0)));
    launch_tiles(e, s, x->h, qf->rows, 32 * qf->warps, qf->bytes);
}

static void attention_grad(const struct cg_emit *e, const struct cg_target *t)
{
    struct attend x = attend_of(e, t);
    struct vars v = {0};
    int64_t bytes = tiles_bytes(&x, 2, 2, 2), count = e->b.B * e->b.T * x.h;
    cg_need_dense(e->g, e->n, 4);
    set_sizes(e, &v, &x);
    set_value(e, &v, false, 3, "O", x.vd);
    set_value(e, &v, false, 5, "D", x.vd);
    set_value(e, &v, true, 0, "DQ", x.hd);
    set_value(e, &v, true, 1, "DK", x.hd);
    set_value(e, &v, true, 2, "DV", x.vd);
    struct flash kf = flash_dkv_of(&x), qf = flash_dq_of(&x);
    const char *why = plain_grad_why(e, &x, kf.bytes > qf.bytes ? kf.bytes : qf.bytes);
    if (!why) {
        flash_grad(e, &x, &v, &kf, &qf);
        return;
    }
    e->out->workspace = (size_t)count * sizeof(float);
    struct cg_step *s = add(e, text, NULL, "attention_delta", &v);
    cg_refs(e->a, s, CG_REFS(S_(3), S_(5), W_(0)));
    cg_nums(e->a, s, CG_NUMS(count));
    cg_launch(s, (count + 7) / 8, 256, 0);
    s = add(e, text, "attention_scores", "attention_dkv", &v);
    s->why = why;
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(4), S_(5), W_(0), R_(1), R_(2)));
    launch_tiles(e, s, x.kv, 16 * x.r, 256, bytes);
    s = add(e, text, "attention_scores", "attention_dq", &v);
    s->why = why;
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(4), S_(5), W_(0), R_(0)));
    launch_tiles(e, s, x.h, 16 * x.r, 256, bytes);
}

void cg_cuda_attention(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                       const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    switch (ir_at(g, n)->op) {
    case OP_rope_table: rope_table(&e); break;
    case OP_rope: rope(&e); break;
    case OP_attention: attention(&e, t); break;
    case OP_attention_grad: attention_grad(&e, t); break;
    default: BUG("not an attention operation: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
