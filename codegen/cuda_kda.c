/* Kimi Delta Attention on a GPU: chunks of 16 tokens, made in parallel (kda_prep), a chain over
 * them (kda_scan, kda_back), gradients in parallel again (kda_chunk); text/cuda_kda.c. */
#include "codegen/cuda.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_kda.c.inc"
    ;
/* What the kernels of all sizes share; a translation unit has it once. */
static const char rows_text[] = "#ifndef K_CUDA_KDA\n"
                                "#define K_CUDA_KDA\n"
#include "text/cuda_kda_rows.c.inc"
                                "#endif\n";

enum { CHUNK = 16, SMS = 120 }; /* of an H200, nearly */

static int64_t up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Sizes of a node, and which heads the steps in hand are for. */
struct kda {
    const struct cg_emit *e;
    int64_t h, k, v, kp, vp, parts, state_parts;
    bool cached, keep;
    int64_t chunks; /* of a sequence, at most */
    int64_t head0, heads;
    /* where in the workspace: records, z, dr, states, their gradients, dbeta by columns of V */
    int64_t records, z, dr, s, ds, dbeta, bytes;
};

static bool narrow(const struct cg_emit *e, uint32_t i)
{
    return ir_narrow(e->g, ir_src(e->g, e->n, i));
}

static struct kda kda_of(const struct cg_emit *e)
{
    int64_t h = ir_int(e->g, e->n, AK_heads, 1);
    struct kda x = {.e = e, .h = h};
    CHECK(cg_src_rows(e->g, e->n, 0, e->b) == e->b.B * e->b.T);
    CHECK(!narrow(e, 3) && !narrow(e, 4));
    x.k = cg_src_cols(e->g, e->n, 0, e->b) / h;
    x.v = cg_src_cols(e->g, e->n, 2, e->b) / h;
    x.kp = up(x.k, 16) * 16;
    x.vp = up(x.v, 16) * 16;
    /* Float32 operands are products of 24 bits, bf16 ones of 16: what they get by decays too. */
    x.parts = narrow(e, 0) && narrow(e, 1) && narrow(e, 2) ? 2 : 3;
    /* States that only a chunk's own gradients read: float32, or one rounding of what is narrow. */
    x.state_parts = x.parts == 2 ? 1 : 3;
    x.cached = ir_at(e->g, e->n)->op == OP_kda_cached;
    x.keep = ir_at(e->g, e->n)->op == OP_kda_grad;
    x.chunks = up(e->b.T, CHUNK) + x.cached;
    return x;
}

/* Bytes of a record: kda_record of the text. */
static int64_t record(const struct kda *x)
{
    return x->parts * 3 * 2 * CHUNK * (x->kp + 8 + 24) + 4 * (x->kp + CHUNK);
}

/* Places in the workspace for `heads` heads at a time. */
static int64_t place(struct kda *x, int64_t heads)
{
    int64_t n = x->e->b.B * heads, rows = n * x->e->b.T;
    int64_t states = n * x->chunks * x->state_parts * 2 * x->vp * x->kp;
    x->heads = heads;
    x->records = 0;
    x->z = n * x->chunks * record(x);
    if (!x->keep) return x->bytes = x->z;
    x->dr = up(x->z + 4 * rows * x->v, 256) * 256;
    x->s = up(x->dr + 4 * rows * x->v, 256) * 256;
    x->ds = x->s + states;
    x->dbeta = x->ds + states;
    return x->bytes = x->dbeta + 4 * rows * (x->vp / 16);
}

/* As many heads at a time as a workspace of 2 GiB holds, at least one. */
static void place_all(struct kda *x)
{
    for (int64_t groups = 1;; groups++) {
        int64_t heads = up(x->h, groups);
        if (place(x, heads) <= INT64_C(2) << 30 || heads == 1) break;
    }
    x->e->out->workspace = (size_t)x->bytes;
}

static const char *number(const struct kda *x, int64_t n)
{
    return cg_number(x->e, n);
}

static struct cg_step *step(const struct kda *x, const char *name, const struct cg_var *vars,
                            size_t n, const char *why)
{
    struct arena *a = x->e->a;
    const char *body = cg_section(a, text, name, vars, n).p, *node = ir_name(x->e->g, x->e->n);
    const char *label = *node ? str_fmt(a, "%s %s", name, node) : name;
    struct cg_step *s =
        cg_add(a, x->e->out, name, str_of(str_fmt(a, "%s%s", rows_text, body)), label);
    s->why = why;
    return s;
}

/* Why products need three parts of bf16, that is six products of tensor cores for one; NULL: two,
 * three. */
static const char *parts_why(const struct kda *x)
{
    return x->parts == 2 ? NULL : "queries, keys or values are float32, not bf16";
}

static struct cg_var var_type(const struct kda *x, const char *name, uint32_t i)
{
    return (struct cg_var){name, cg_cuda_src_type(x->e->g, x->e->n, i)};
}

static struct cg_var var_result(const struct kda *x, const char *name, uint32_t i)
{
    return (struct cg_var){name, cg_cuda_res_type(x->e->g, x->e->n, i)};
}

static struct cg_var var_number(const struct kda *x, const char *name, int64_t n)
{
    return (struct cg_var){name, number(x, n)};
}

static struct cg_var var_scale(const struct kda *x)
{
    double scale = (double)(float)ir_num(x->e->g, x->e->n, AK_scale, 1);
    return (struct cg_var){"SCALE", str_fmt(x->e->a, "%.9e", scale)};
}

static int64_t src_ld(const struct kda *x, uint32_t i)
{
    return cg_src_ld(x->e->g, x->e->n, i);
}

static int64_t res_ld(const struct kda *x, uint32_t i)
{
    return cg_result_ld(x->e->g, x->e->n, i);
}

/* Shared memory of a block has a limit that K of about 300 reaches. */
static void launch(struct cg_step *s, int64_t blocks, int64_t threads, int64_t shared)
{
    if (shared > 227 << 10) BUG("%s: heads of this size do not fit a GPU", s->label);
    cg_launch(s, blocks, threads, shared);
}

/* Two columns of a head in one access: where all heads' rows of operand i allow it. */
static bool in_twos(const struct kda *x, uint32_t i, int64_t columns)
{
    return columns % 2 == 0 && cg_cuda_src_align(x->e->g, x->e->n, i) >= (narrow(x->e, i) ? 4 : 8);
}

static void prep(const struct kda *x)
{
    const struct cg_emit *e = x->e;
    int64_t threads = 32 * up(x->k, 64);
    bool twos = in_twos(x, 0, x->k) && in_twos(x, 1, x->k) && in_twos(x, 3, x->k);
    const struct cg_var v[] = {
        var_type(x, "TQ", 0),
        var_type(x, "TK", 1),
        var_number(x, "K", x->k),
        var_number(x, "P", x->parts),
        var_number(x, "N", twos ? 2 : 1),
        var_number(x, "THREADS", threads),
        var_scale(x),
        var_number(x, "CACHED", x->cached),
    };
    const char *why = twos ? parts_why(x) : "channels of heads do not lie in aligned pairs";
    struct cg_step *s = step(x, "kda_prep", v, 8, why);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(3), S_(4), S_(x->cached ? 7 : 4), W_(x->records)));
    cg_nums(e->a, s,
            CG_NUMS(e->b.T, src_ld(x, 0), src_ld(x, 1), src_ld(x, 3), src_ld(x, 4), x->chunks,
                    x->head0, x->heads));
    launch(s, e->b.B * x->heads * x->chunks, threads, 0);
}

/* Warps of a block of the chains: a block reads a record once for all of them, so the more the
 * better while blocks remain for all multiprocessors. */
static int64_t warps(const struct kda *x)
{
    int64_t tiles = x->vp / 16, n = tiles < 8 ? tiles : 8;
    while (n > 1 && (tiles % n || x->e->b.B * x->heads * (tiles / n) < SMS)) n--;
    return n;
}

static void chain(const struct kda *x, struct cg_step *s)
{
    int64_t w = warps(x);
    launch(s, x->e->b.B * x->heads * (x->vp / 16 / w), 32 * w, 2 * record(x));
}

static void scan(const struct kda *x)
{
    const struct cg_emit *e = x->e;
    const struct cg_var v[] = {
        var_type(x, "TV", 2),           {"TO", x->keep ? "float" : cg_cuda_res_type(e->g, e->n, 0)},
        var_number(x, "K", x->k),       var_number(x, "V", x->v),
        var_number(x, "P", x->parts),   var_number(x, "CACHED", x->cached),
        var_number(x, "KEEP", x->keep), var_number(x, "STATE_PARTS", x->state_parts),
    };
    struct cg_step *s = step(x, "kda_scan", v, 8, parts_why(x));
    struct cg_ref none = W_(0);
    cg_refs(e->a, s,
            CG_REFS(W_(x->records), S_(2), x->keep ? none : R_(0), x->cached ? R_(1) : none,
                    x->cached ? S_(6) : none, x->cached ? S_(7) : none, W_(x->keep ? x->z : 0),
                    W_(x->keep ? x->s : 0)));
    cg_nums(e->a, s,
            CG_NUMS(e->b.T, src_ld(x, 2), x->keep ? 0 : res_ld(x, 0), x->chunks, x->head0, x->heads,
                    x->h));
    chain(x, s);
}

static void back(const struct kda *x)
{
    const struct cg_emit *e = x->e;
    const struct cg_var v[] = {
        var_type(x, "TD", 5),         var_result(x, "TV", 2),
        var_number(x, "K", x->k),     var_number(x, "V", x->v),
        var_number(x, "P", x->parts), var_number(x, "STATE_PARTS", x->state_parts),
    };
    struct cg_step *s = step(x, "kda_back", v, 6, parts_why(x));
    cg_refs(e->a, s,
            CG_REFS(W_(x->records), W_(x->z), S_(5), R_(2), W_(x->dr), W_(x->ds), W_(x->dbeta)));
    cg_nums(e->a, s, CG_NUMS(e->b.T, src_ld(x, 5), res_ld(x, 2), x->chunks, x->head0, x->heads));
    chain(x, s);
}

static void chunk_grad(const struct kda *x)
{
    const struct cg_emit *e = x->e;
    int64_t stages = x->state_parts == 1 ? 4 : 2; /* bytes under way hide memory's latency */
    const struct cg_var v[] = {
        var_type(x, "TQ", 0),
        var_type(x, "TK", 1),
        var_type(x, "TD", 5),
        var_result(x, "TDQ", 0),
        var_result(x, "TDK", 1),
        var_number(x, "K", x->k),
        var_number(x, "V", x->v),
        var_number(x, "P", x->parts),
        var_scale(x),
        var_number(x, "STATE_PARTS", x->state_parts),
        var_number(x, "STAGES", stages),
        var_number(x, "TWO", in_twos(x, 5, x->v) ? 2 : 1),
    };
    struct cg_step *s = step(x, "kda_chunk", v, 12, parts_why(x));
    cg_refs(e->a, s,
            CG_REFS(S_(0), S_(1), S_(3), S_(4), S_(5), W_(x->z), W_(x->dr), W_(x->s), W_(x->ds),
                    W_(x->dbeta), R_(0), R_(1), R_(3), R_(4)));
    cg_nums(e->a, s,
            CG_NUMS(e->b.T, src_ld(x, 0), src_ld(x, 1), src_ld(x, 3), src_ld(x, 4), src_ld(x, 5),
                    res_ld(x, 0), res_ld(x, 1), res_ld(x, 3), res_ld(x, 4), x->chunks, x->head0,
                    x->heads));
    int64_t products =
        stages * 2 * x->state_parts * 2 * CHUNK * x->kp + 3 * x->parts * 2 * CHUNK * (x->vp + 8);
    int64_t sums = 4 * (3 * CHUNK * (x->kp + 8) + x->kp); /* later, in the same place */
    launch(s, e->b.B * x->heads * x->chunks, 128,
           4 * 2 * CHUNK * CHUNK + (products > sums ? products : sums));
}

/* One token of every sequence: memory is all that counts, 8 K V bytes a head. */
static void one(const struct kda *x)
{
    const struct cg_emit *e = x->e;
    int64_t n = x->v % 4 == 0 ? 4 : x->v % 2 == 0 ? 2 : 1;
    const struct cg_var v[] = {
        var_type(x, "TQ", 0),
        var_type(x, "TK", 1),
        var_type(x, "TV", 2),
        var_result(x, "TO", 0),
        var_number(x, "H", x->h),
        var_number(x, "K", x->k),
        var_number(x, "V", x->v),
        var_number(x, "N", n),
        var_number(x, "COLUMNS", 8 * n),
        var_scale(x),
    };
    struct cg_step *s = step(x, "kda_one", v, 10, NULL);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(3), S_(4), R_(1), S_(6), S_(7), R_(0)));
    cg_nums(e->a, s,
            CG_NUMS(src_ld(x, 0), src_ld(x, 1), src_ld(x, 2), src_ld(x, 3), src_ld(x, 4),
                    res_ld(x, 0)));
    cg_launch(s, e->b.B * x->h * up(x->v, 8 * n), 256, 0);
}

void cg_cuda_kda(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                 const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    struct kda x = kda_of(&e);
    (void)t;
    if (x.cached) {
        cg_need_dense(g, n, 5);
        CHECK(!ir_narrow(g, ir_src(g, n, 5)));
        if (b.T == 1) {
            one(&x);
            return;
        }
    }
    place_all(&x);
    for (x.head0 = 0; x.head0 < x.h; x.head0 += x.heads) {
        if (x.head0 + x.heads > x.h) x.heads = x.h - x.head0;
        prep(&x);
        scan(&x);
        if (!x.keep) continue;
        back(&x);
        chunk_grad(&x);
    }
}
