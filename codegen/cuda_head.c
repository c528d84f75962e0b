/* The head on a GPU: logits of a chunk of tokens at a time in the workspace, where their gradients
 * replace them; the three products of a chunk are those of cuda_gemm.c. */
#include "codegen/cuda_gemm.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_head.c.inc"
    ;

/* Logits of a chunk. dw is read and written once a chunk, 8 V D bytes, while its products are
 * 6 rows V D: on an H200 (4.3 TB/s, 700 TFLOP/s) that adds 217 / rows to the head's time. So chunks
 * are as large as memory bears; 2 GiB are 3200 rows of the largest vocabularies. */
static const int64_t chunk_bytes = (int64_t)2 << 30;
enum { CHUNK_UNIT = 128, FEW_ROWS = 64 };

struct head {
    const struct cg_emit *e;
    const struct cg_target *t;
    struct cg_matrix h, w, logits;
    int64_t rows, vocab, width, chunk;
    bool bf16;
};

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Tokens a chunk: equal parts, whole tiles. */
static int64_t chunk_of(int64_t rows, int64_t vocab)
{
    int64_t most = chunk_bytes / (4 * vocab) / CHUNK_UNIT * CHUNK_UNIT;
    if (most < CHUNK_UNIT) most = CHUNK_UNIT;
    int64_t chunks = (rows + most - 1) / most;
    if (!chunks) return 1;
    int64_t chunk = ((rows + chunks - 1) / chunks + CHUNK_UNIT - 1) / CHUNK_UNIT * CHUNK_UNIT;
    return least(chunk, rows);
}

static struct head head_open(const struct cg_emit *e, const struct cg_target *t)
{
    struct head h = {.e = e,
                     .t = t,
                     .h = cg_cuda_src_matrix(e, 0),
                     .w = cg_cuda_src_matrix(e, 1),
                     .rows = cg_src_rows(e->g, e->n, 0, e->b),
                     .vocab = cg_src_rows(e->g, e->n, 1, e->b),
                     .width = cg_src_cols(e->g, e->n, 0, e->b),
                     .bf16 = ir_int(e->g, e->n, AK_bf16, 0) != 0};
    /* A few rows read the weights once, as they are. */
    if (!t->no_library || h.rows > FEW_ROWS) {
        h.h = cg_cuda_as(e, h.h, h.bf16, h.rows, h.width);
        h.w = cg_cuda_as(e, h.w, h.bf16, h.vocab, h.width);
    }
    h.chunk = chunk_of(h.rows, h.vocab);
    h.logits = cg_cuda_room(e, false, h.chunk, h.vocab);
    return h;
}

static struct cg_step *loss_kernel(const struct head *h, const char *name, int64_t rows,
                                   const struct cg_var *vars, size_t nvars)
{
    struct arena *a = h->e->a;
    /* Two large blocks an SM: their rows of up to 56 thousand logits stay in L2. */
    int64_t threads = h->vocab >= 16384 ? 1024 : 256;
    const struct cg_var v[] = {{"V", h->vocab % 4 ? "1" : "4"},
                               {"THREADS", cg_number(h->e, threads)}};
    struct sb s = {0};
    struct str part = cg_section(a, text, "rows", v, 2);
    sb_add(&s, part.p, part.n);
    part = cg_section(a, text, name, vars, nvars);
    sb_add(&s, part.p, part.n);
    const char *kind = str_fmt(a, "head_%s", name);
    struct cg_step *step = cg_add(a, h->e->out, kind, sb_take(&s, a), kind);
    cg_launch(step, rows, threads, 0);
    return step;
}

static struct cg_ref moved(struct cg_ref r, int64_t words)
{
    r.offset += words * 4;
    return r;
}

/* logits = h w^T of the tokens from `at` on. */
static void logits(const struct head *h, int64_t at, int64_t rows)
{
    cg_cuda_product(h->e, h->t,
                    (struct cg_product){.a = cg_cuda_rows_from(h->h, at),
                                        .b = h->w,
                                        .c = h->logits,
                                        .tb = true,
                                        .bf16 = h->bf16,
                                        .m = rows,
                                        .n = h->vocab,
                                        .k = h->width,
                                        .batch = 1});
}

static void head_nll(const struct cg_emit *e, const struct cg_target *t)
{
    struct head h = head_open(e, t);
    for (int64_t at = 0; at < h.rows; at += h.chunk) {
        int64_t rows = least(h.chunk, h.rows - at);
        logits(&h, at, rows);
        struct cg_step *s = loss_kernel(&h, "nll", rows, NULL, 0);
        cg_refs(e->a, s, CG_REFS(h.logits.at, moved(S_(2), at), moved(R_(0), at)));
        cg_nums(e->a, s, CG_NUMS(h.vocab));
    }
}

/* dh = d w, and dw (+)= d^T h, for the gradients d of a chunk. */
static void gradients(const struct head *h, struct cg_matrix d, int64_t at, int64_t rows)
{
    struct cg_product p = {.a = d,
                           .b = h->w,
                           .c = cg_cuda_rows_from(cg_cuda_res_matrix(h->e, 1), at),
                           .bf16 = h->bf16,
                           .m = rows,
                           .n = h->width,
                           .k = h->vocab,
                           .batch = 1};
    cg_cuda_product(h->e, h->t, p);
    p.b = cg_cuda_rows_from(h->h, at);
    p.c = cg_cuda_res_matrix(h->e, 2);
    p.ta = true;
    p.add = at > 0;
    p.m = h->vocab, p.k = rows;
    cg_cuda_product(h->e, h->t, p);
}

static void head_loss(const struct cg_emit *e, const struct cg_target *t)
{
    struct head h = head_open(e, t);
    struct cg_matrix d = h.logits;
    if (h.bf16) d.narrow = true, d.ld *= 2;
    const char *store = h.vocab % 4 ? "to[i] = x[0];" : "st_f32x4(to + i, x);";
    if (h.bf16)
        store = h.vocab % 4 ? "to[i] = f32_to_bf16(x[0]);"
                            : "st_whole((uint2 *)(to + i), make_uint2(pack_bf16(x[0], x[1]), "
                              "pack_bf16(x[2], x[3])));";
    const struct cg_var vars[] = {{"T", h.bf16 ? "uint16_t" : "float"}, {"STORE", store}};
    for (int64_t at = 0; at < h.rows; at += h.chunk) {
        int64_t rows = least(h.chunk, h.rows - at);
        logits(&h, at, rows);
        struct cg_step *s = loss_kernel(&h, "loss", rows, vars, 2);
        cg_refs(e->a, s,
                CG_REFS(h.logits.at, moved(S_(2), at), moved(S_(3), at), moved(R_(0), at)));
        cg_nums(e->a, s, CG_NUMS(h.vocab));
        gradients(&h, d, at, rows);
    }
}

void cg_cuda_head(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                  const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    switch (ir_at(g, n)->op) {
    case OP_head_nll: head_nll(&e, t); break;
    case OP_head_loss: head_loss(&e, t); break;
    default: BUG("not a head: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
