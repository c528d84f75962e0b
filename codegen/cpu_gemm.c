/* Products: a plain one is a packing of the second operand and a blocked product over it; a stack
 * of them, however large, and one of few rows (a step of decoding) is one step whose items pack for
 * themselves (text/gemm.c, compiled once for all models). */
#include "codegen/cpu.h"
#include "codegen/gemm_shape.h"
#include "panel.h"

enum { TRANS_A = 1, ADD = 2, TRANS_B = 8 }; /* GEMM_* of text/gemm.c */

/* Up to so many rows a panel of weights is used once or twice, and not worth a place in memory. */
enum { FEW_ROWS = 48 };

/* The head applies the loss kernels to its chunks; grouped weight gradients round their operands.
 */
#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char loss_text[] =
#include "text/token.c.inc"
    ;

/* The products; those on bf16 stand on the float32 text, those by weights in panels on both, and a
 * translation unit has each text once. */
#define ONCE(name) "#ifndef " name "\n#define " name "\n"
#define END_ONCE "#endif\n"
static const char gemm_text[] = ONCE("K_GEMM")
#include "text/gemm.c.inc"
    END_ONCE;
static const char gemm_bf16_text[] = ONCE("K_GEMM")
#include "text/gemm.c.inc"
    END_ONCE ONCE("K_GEMM_BF16")
#include "text/gemm_bf16.c.inc"
        END_ONCE;
static const char kept_text[] = ONCE("K_KEPT")
#include "text/kept.c.inc"
    END_ONCE;

/* Operands are rounded to bf16 and multiplied in pairs. Not where k is the rows of an expert, as a
 * pair may belong to two. */
static bool bf16(const struct cg_emit *e)
{
    return ir_int(e->g, e->n, AK_bf16, 0) && ir_at(e->g, e->n)->op != OP_grouped_matmul_dw;
}

static const char *symbol_of(const struct cg_emit *e, const char *name)
{
    return bf16(e) ? str_fmt(e->a, "%s_bf16", name) : name;
}

/* A step of one of the shared kernels. */
static struct cg_step *shared(const struct cg_emit *e, const char *name, const char *label)
{
    struct cg_step s = {.symbol = symbol_of(e, name), .grain = 1};
    s.text = bf16(e) ? str_of(gemm_bf16_text) : str_of(gemm_text);
    s.scratch = (size_t)cg_gemm_scratch();
    const char *node = ir_name(e->g, e->n);
    s.label = *node ? str_fmt(e->a, "%s %s", label, node) : label;
    vec_push(e->a, &e->out->step, s);
    return &vec_last(&e->out->step);
}

/* Room in the workspace; returns the byte offset. */
static int64_t room(const struct cg_emit *e, int64_t floats)
{
    int64_t at = (int64_t)e->out->workspace;
    e->out->workspace += ((size_t)floats * 4 + 63) & ~(size_t)63;
    return at;
}

/* Words of a packed [k,n] matrix. */
static int64_t packed(const struct cg_emit *e, int64_t k, int64_t n)
{
    return bf16(e) ? cg_gemm_packed_bf16(k, n) : cg_gemm_packed(k, n);
}

static struct cg_ref moved(struct cg_ref r, int64_t floats)
{
    r.offset += floats * 4;
    return r;
}

/* Packs B [K,N] from rows [K,N] or, transposed, from [N,K]. */
static void pack(const struct cg_emit *e, struct cg_ref to, struct cg_ref from, int64_t k,
                 int64_t n, int64_t ld, bool trans)
{
    struct cg_step *s = shared(e, trans ? "k_pack_cols" : "k_pack_rows", "pack");
    cg_refs(e->a, s, CG_REFS(to, from));
    cg_nums(e->a, s, CG_NUMS(k, n, ld));
    s->items = trans ? cg_pack_cols_items(k, n) : cg_pack_rows_items(k, n);
    s->grain = cg_grain((trans ? 16 * 256 : 64 * 256) * 8);
}

static void product(const struct cg_emit *e, struct cg_ref c, struct cg_ref a, struct cg_ref panels,
                    int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldc, int64_t flags)
{
    struct cg_gemm_plan p = cg_gemm_plan(m, n, k);
    struct cg_step *s = shared(e, "k_gemm", "gemm");
    cg_refs(e->a, s, CG_REFS(c, a, panels));
    cg_nums(e->a, s, CG_NUMS(m, n, k, lda, ldc, flags, p.mb, p.nb));
    s->items = p.items;
}

static int64_t dim(const struct cg_emit *e, uint32_t src, int from_last)
{
    const struct ir_type *t = ir_ty(e->g, ir_src(e->g, e->n, src));
    return dim_value(t->dim[t->rank - 1 - from_last], e->b);
}

/* A step whose items pack their own columns. */
static struct cg_step *own(const struct cg_emit *e, const char *symbol, const char *label,
                           struct cg_stack_plan p, int64_t k)
{
    struct cg_step *s = shared(e, symbol, label);
    s->items = p.items;
    s->grain = p.grain;
    s->scratch = (size_t)cg_gemm_own_scratch(k, p.nb);
    return s;
}

/* A step of the product by the stored parameter that is operand 1: `what` is k_kept or
 * k_kept_grouped. `refs` gets the scales where there are some. */
static struct cg_step *kept_step(const struct cg_emit *e, const char *what, const char *label,
                                 struct cg_ref *refs, size_t n)
{
    ir_id w = ir_src(e->g, e->n, 1);
    enum ir_store store = ir_stored(e->g, w);
    if (store == STORE_f32 && bf16(e)) BUG("float32 panels for a product of bf16 numbers");
    const char *form = symbol_of(e, store_word(store));
    struct cg_step *s = shared(e, str_fmt(e->a, "%s_%s", what, store_word(store)), label);
    s->text = str_of(
        str_fmt(e->a, "%s%sKEPT_%s\n", bf16(e) ? gemm_bf16_text : gemm_text, kept_text, form));
    s->scratch = (size_t)cg_gemm_kept_scratch();
    if (store == STORE_i8) {
        refs[n] = S_(1);
        refs[n++].offset = store_scales(store_shape(e->g, w));
    }
    cg_refs(e->a, s, refs, n);
    return s;
}

static void kept(const struct cg_emit *e)
{
    int64_t m = dim(e, 0, 1), k = dim(e, 0, 0), n = dim(e, 1, 1);
    enum ir_store store = ir_stored(e->g, ir_src(e->g, e->n, 1));
    bool widened = store == STORE_i8 || (store == STORE_bf16 && !bf16(e));
    struct cg_gemm_plan p = widened ? cg_gemm_kept_plan(m, n, k) : cg_gemm_plan(m, n, k);
    struct cg_ref refs[4] = {R_(0), S_(0), S_(1)};
    struct cg_step *s = kept_step(e, "k_kept", "gemm", refs, 3);
    cg_nums(e->a, s,
            CG_NUMS(m, n, k, cg_src_ld(e->g, e->n, 0), cg_result_ld(e->g, e->n, 0), p.mb, p.nb));
    s->items = p.items;
}

static void kept_grouped(const struct cg_emit *e)
{
    int64_t rows = dim(e, 0, 1), k = dim(e, 0, 0), experts = dim(e, 1, 2), n = dim(e, 1, 1);
    struct cg_stack_plan p = cg_gemm_stack_plan(experts, (rows + experts - 1) / experts, n, k);
    struct cg_ref refs[5] = {R_(0), S_(0), S_(1), S_(2)};
    struct cg_step *s = kept_step(e, "k_kept_grouped", "grouped", refs, 4);
    cg_nums(e->a, s, CG_NUMS(n, k, cg_src_ld(e->g, e->n, 0), cg_result_ld(e->g, e->n, 0), p.nb));
    s->items = p.items;
    s->grain = p.grain;
}

static bool is_kept(const struct cg_emit *e)
{
    return store_in_panels(ir_stored(e->g, ir_src(e->g, e->n, 1)));
}

static void matmul(const struct cg_emit *e)
{
    bool ta = ir_int(e->g, e->n, AK_ta, 0), tb = ir_int(e->g, e->n, AK_tb, 0);
    int64_t m = dim(e, 0, ta ? 0 : 1), k = dim(e, 0, ta ? 1 : 0), n = dim(e, 1, tb ? 1 : 0);
    int64_t lda = cg_src_ld(e->g, e->n, 0), ldb = cg_src_ld(e->g, e->n, 1);
    int64_t ldc = cg_result_ld(e->g, e->n, 0);
    bool stack = ir_ty(e->g, e->n)->rank == 3;
    if (stack || (m <= FEW_ROWS && !ta)) {
        struct cg_stack_plan p = cg_gemm_stack_plan(stack ? dim(e, 0, 2) : 1, m, n, k);
        struct cg_step *s = own(e, "k_gemm_stack", stack ? "gemm stack" : "gemm", p, k);
        cg_refs(e->a, s, CG_REFS(R_(0), S_(0), S_(1)));
        cg_nums(e->a, s,
                CG_NUMS(m, n, k, lda, ldc, ldb, (ta ? TRANS_A : 0) | (tb ? TRANS_B : 0), p.nb));
        return;
    }
    int64_t at = room(e, packed(e, k, n));
    pack(e, W_(at), S_(1), k, n, ldb, tb);
    product(e, R_(0), S_(0), W_(at), m, n, k, lda, ldc, ta ? TRANS_A : 0);
}

static void grouped(const struct cg_emit *e)
{
    bool tb = ir_int(e->g, e->n, AK_tb, 1);
    int64_t rows = dim(e, 0, 1), k = dim(e, 0, 0), experts = dim(e, 1, 2),
            n = dim(e, 1, tb ? 1 : 0);
    struct cg_stack_plan p = cg_gemm_stack_plan(experts, (rows + experts - 1) / experts, n, k);
    struct cg_step *s = own(e, "k_gemm_grouped", "grouped", p, k);
    cg_refs(e->a, s, CG_REFS(R_(0), S_(0), S_(1), S_(2), S_(2)));
    cg_nums(e->a, s,
            CG_NUMS(n, k, cg_src_ld(e->g, e->n, 0), cg_result_ld(e->g, e->n, 0), tb ? k : n,
                    tb ? TRANS_B : 0, p.nb));
}

/* Operand i [rows,cols] of a product on bf16 numbers whose sums are float32: rounded, or itself. */
static struct cg_ref rounded(const struct cg_emit *e, uint32_t i, int64_t *ld)
{
    int64_t rows = dim(e, i, 1), cols = dim(e, i, 0);
    *ld = cg_src_ld(e->g, e->n, i);
    if (!ir_int(e->g, e->n, AK_bf16, 0)) return S_(i);
    struct cg_ref to = W_(room(e, rows * cols));
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, loss_text, "round_rows", NULL, 0);
    cg_refs(e->a, s, CG_REFS(S_(i), to));
    cg_nums(e->a, s, CG_NUMS(cols, *ld));
    cg_items(s, rows, 8 * cols);
    *ld = cols;
    return to;
}

static void grouped_dw(const struct cg_emit *e)
{
    int64_t rows = dim(e, 0, 1), m = dim(e, 0, 0), n = dim(e, 1, 0), experts = dim(e, 2, 0) - 1;
    int64_t at = room(e, packed(e, rows, n)), lda, ldx;
    struct cg_ref a = rounded(e, 0, &lda), x = rounded(e, 1, &ldx);
    pack(e, W_(at), x, rows, n, ldx, false);
    struct cg_gemm_plan p = cg_gemm_grouped_dw_plan(rows, m, n, experts);
    struct cg_step *s = shared(e, "k_gemm_grouped_dw", "grouped dw");
    cg_refs(e->a, s, CG_REFS(R_(0), a, W_(at), S_(2)));
    cg_nums(e->a, s, CG_NUMS(rows, m, n, lda, n, 0, p.mb, p.nb, experts));
    s->items = p.items;
}

/* ---- head: logits of one chunk of tokens at a time, in the workspace ---- */

struct head {
    int64_t rows, v, d, ldh;
    int64_t logits, lse, forward; /* workspace: [chunk,V], [chunk], packed W^T */
};

static struct cg_step *loss_kernel(const struct cg_emit *e, const char *name, int64_t v,
                                   int64_t rows)
{
    const struct cg_var var = {"V", cg_number(e, v)};
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, loss_text, name, &var, 1);
    cg_items(s, rows, 16 * v);
    return s;
}

/* Logits and nll of tokens first .. first+rows-1. */
static void head_chunk(const struct cg_emit *e, const struct head *h, int64_t first, int64_t rows)
{
    product(e, W_(h->logits), moved(S_(0), first * h->ldh), W_(h->forward), rows, h->v, h->d,
            h->ldh, h->v, 0);
    struct cg_step *s = loss_kernel(e, "cross_entropy", h->v, rows);
    cg_refs(e->a, s, CG_REFS(W_(h->logits), moved(S_(2), first), moved(R_(0), first), W_(h->lse)));
    cg_nums(e->a, s, CG_NUMS(h->v));
}

static struct head head_open(const struct cg_emit *e, int64_t chunk)
{
    struct head h = {.rows = dim(e, 0, 1), .v = dim(e, 1, 1), .d = dim(e, 0, 0)};
    h.ldh = cg_src_ld(e->g, e->n, 0);
    if (chunk > h.rows) chunk = h.rows;
    h.logits = room(e, chunk * h.v);
    h.lse = room(e, chunk);
    h.forward = room(e, packed(e, h.d, h.v));
    pack(e, W_(h.forward), S_(1), h.d, h.v, cg_src_ld(e->g, e->n, 1), true);
    return h;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void head_nll(const struct cg_emit *e)
{
    int64_t chunk = ir_int(e->g, e->n, AK_chunk, 256);
    struct head h = head_open(e, chunk);
    for (int64_t at = 0; at < h.rows; at += chunk) head_chunk(e, &h, at, least(chunk, h.rows - at));
}

/* Sums over tokens stay in token order: each chunk's dw product starts from what the last one left.
 */
static void head_loss(const struct cg_emit *e)
{
    int64_t chunk = ir_int(e->g, e->n, AK_chunk, 256);
    struct head h = head_open(e, chunk);
    int64_t back = room(e, packed(e, h.v, h.d)), in = room(e, packed(e, chunk, h.d));
    pack(e, W_(back), S_(1), h.v, h.d, cg_src_ld(e->g, e->n, 1), false);
    for (int64_t at = 0; at < h.rows; at += chunk) {
        int64_t rows = least(chunk, h.rows - at);
        head_chunk(e, &h, at, rows);
        struct cg_step *s = loss_kernel(e, "cross_entropy_grad", h.v, rows);
        cg_refs(e->a, s,
                CG_REFS(W_(h.logits), moved(S_(2), at), W_(h.lse), moved(S_(3), at), W_(h.logits)));
        cg_nums(e->a, s, CG_NUMS(h.v));
        product(e, moved(R_(1), at * h.d), W_(h.logits), W_(back), rows, h.d, h.v, h.v, h.d, 0);
        pack(e, W_(in), moved(S_(0), at * h.ldh), rows, h.d, h.ldh, false);
        product(e, R_(2), W_(h.logits), W_(in), h.v, h.d, rows, h.v, h.d, TRANS_A | (at ? ADD : 0));
    }
}

void cg_cpu_gemm(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                 const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    (void)t;
    switch (ir_at(g, n)->op) {
    case OP_matmul: is_kept(&e) ? kept(&e) : matmul(&e); break;
    case OP_grouped_matmul: is_kept(&e) ? kept_grouped(&e) : grouped(&e); break;
    case OP_grouped_matmul_dw: grouped_dw(&e); break;
    case OP_head_nll: head_nll(&e); break;
    case OP_head_loss: head_loss(&e); break;
    default: BUG("not a product: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
