/* Multi-head latent attention on a GPU, beyond what plain attention does. */
#include "codegen/cuda_cached.h"
#include "codegen/cuda_gemm.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_mla.c.inc"
    ;

/* mla_keys and its gradient: moves. */
static void keys(const struct cg_emit *e, const char *name, int64_t r, bool grad)
{
    static const uint32_t both[] = {0, 1};
    const struct ir_graph *g = e->g;
    int64_t h = ir_int(g, e->n, AK_heads, 0), n = ir_int(g, e->n, AK_head_dim, 0),
            v = ir_int(g, e->n, AK_v_dim, 0), rows = cg_src_rows(g, e->n, 0, e->b);
    int64_t w = cg_cuda_width(g, e->n, n, both, 2, both, 2);
    while (r % w || v % w) w /= 2;
    const struct cg_var vars[] = {{"H", cg_number(e, h)},
                                  {"N", cg_number(e, n)},
                                  {"R", cg_number(e, r)},
                                  {"V", cg_number(e, v)},
                                  {"W", cg_number(e, w)},
                                  {"TA", cg_cuda_src_type(g, e->n, 0)},
                                  {"TB", cg_cuda_src_type(g, e->n, 1)},
                                  {"TC", cg_cuda_res_type(g, e->n, 0)},
                                  {"TD", cg_cuda_res_type(g, e->n, 1)},
                                  {"LDA", cg_number(e, cg_src_ld(g, e->n, 0))},
                                  {"LDB", cg_number(e, cg_src_ld(g, e->n, 1))},
                                  {"LDC", cg_number(e, cg_result_ld(g, e->n, 0))},
                                  {"LDD", cg_number(e, cg_result_ld(g, e->n, 1))}};
    struct cg_step *s =
        cg_add_section(e->a, g, e->n, e->out, text, name, vars, sizeof vars / sizeof *vars);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0), R_(1)));
    cg_nums(e->a, s, CG_NUMS(rows));
    int64_t threads = rows * (grad ? h * ((n + v) / w) + r / w : h * ((n + r + v) / w));
    cg_launch(s, (threads + 255) / 256, 256, 0);
}

/* A step over 16 tokens, one head and one of `parts` of the columns a block. */
static struct cg_step *product(const struct cg_emit *e, const char *name, const struct cg_var *v,
                               size_t n, int64_t h, int64_t parts, int64_t shared)
{
    const char *node = ir_name(e->g, e->n);
    struct cg_step *s = cg_add(e->a, e->out, name, cg_cuda_section(e->a, text, name, v, n),
                               *node ? str_fmt(e->a, "%s %s", name, node) : name);
    cg_nums(e->a, s, CG_NUMS(e->b.B * e->b.T));
    cg_launch(s, (e->b.B * e->b.T + 15) / 16 * h, 256, shared);
    s->launch.grid[1] = (uint32_t)parts;
    return s;
}

static int64_t round_up(int64_t x, int64_t to)
{
    return (x + to - 1) / to * to;
}

static int64_t divides(int64_t x)
{
    int64_t p = x & -x;
    return p && p < 16 ? p : 16;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Of all heads together: a matrix each, `head` elements apart in rows of `ld`. */
static struct cg_matrix heads_of(struct cg_ref at, int64_t ld, int64_t head, int64_t align)
{
    return (struct cg_matrix){at, true, ld, least(align, divides(2 * head))};
}

/* In bf16, by tensor cores: absorbed queries and values are a product each over all heads at once.
 * NULL, or why not. */
static const char *cached_bf16(const struct cg_emit *e, const struct cg_target *t)
{
    const struct ir_graph *g = e->g;
    int64_t h = ir_int(g, e->n, AK_heads, 0), l = cg_src_cols(g, e->n, 1, e->b),
            lr = cg_src_cols(g, e->n, 2, e->b), n = ir_int(g, e->n, AK_head_dim, 0),
            v = ir_int(g, e->n, AK_v_dim, 0), tokens = e->b.B * e->b.T, qr = n + lr - l;
    int64_t latent = round_up(tokens * h * l * 2, 256), end = 2 * latent;
    struct cg_cached x = {.g = h, .kv = 1, .hd = lr, .vd = l, .qn = l, .same = true};
    x.scale = (double)(float)ir_num(g, e->n, AK_scale, 1);
    x.q = W_(0), x.q2 = S_(0), x.k = x.v = S_(2), x.pages = S_(3), x.past = S_(4);
    x.q2.offset = 2 * n;
    x.o = W_(latent);
    x.tq = cg_cuda_src_type(g, e->n, 0), x.tk = cg_cuda_src_type(g, e->n, 2), x.to = "uint16_t";
    x.ldq = x.ldo = h * l, x.head_q = l, x.ldq2 = cg_src_ld(g, e->n, 0), x.head_q2 = qr, x.ldk = lr;
    int64_t align = cg_cuda_src_align(g, e->n, 0);
    bool turned = align == 16 && n % 8 == 0 && qr % 8 == 0 && l % 8 == 0;
    x.vec_q = turned ? 8 : 1, x.vec_k = cg_cuda_vector(e, false, 2, lr), x.vec_o = l % 8 ? 1 : 8;
    x.table = cg_pages(g, e->n), x.shared = cg_cuda_shared(t);
    const char *why = cg_cuda_paged_why(&x);
    if (why) return why;
    if (!ir_narrow(g, ir_src(g, e->n, 1))) return "its weights are not stored in bf16";
    struct cg_matrix w = cg_cuda_src_matrix(e, 1), w_v = cg_cuda_rows_from(w, n);
    struct cg_matrix y = cg_cuda_res_matrix(e, 0);
    y.align = least(y.align, divides(v * (y.narrow ? 2 : 4)));
    struct cg_product p = {.a = heads_of(S_(0), x.ldq2, qr, align),
                           .b = w,
                           .c = heads_of(W_(0), h * l, l, divides(2 * h * l)),
                           .bf16 = true,
                           .m = tokens,
                           .n = l,
                           .k = n,
                           .batch = h,
                           .stride_a = qr,
                           .stride_b = (n + v) * w.ld,
                           .stride_c = l};
    e->out->workspace = (size_t)end;
    cg_cuda_product(e, t, p);
    e->out->workspace = (size_t)cg_cuda_paged(e, &x, (int64_t)e->out->workspace);
    p.a = heads_of(x.o, h * l, l, divides(2 * h * l)), p.b = w_v, p.c = y;
    p.tb = true, p.n = v, p.k = l, p.stride_a = l, p.stride_c = v;
    cg_cuda_product(e, t, p);
    return NULL;
}

static void cached(const struct cg_emit *e, const struct cg_target *t)
{
    const char *why = cached_bf16(e, t);
    if (!why) return;
    const struct ir_graph *g = e->g;
    int64_t h = ir_int(g, e->n, AK_heads, 0), l = cg_src_cols(g, e->n, 1, e->b);
    int64_t lr = cg_src_cols(g, e->n, 2, e->b), rows = e->b.B * e->b.T * h;
    int64_t latent = round_up(rows * lr * 4, 256), end = latent + round_up(rows * l * 4, 256);
    const uint32_t weight = 1;
    int64_t vd = ir_int(g, e->n, AK_v_dim, 0);
    int64_t w = cg_cuda_width(g, e->n, l, &weight, 1, NULL, 0);
    const struct cg_var v[] = {{"H", cg_number(e, h)},
                               {"N", cg_number(e, ir_int(g, e->n, AK_head_dim, 0))},
                               {"R", cg_number(e, lr - l)},
                               {"V", cg_number(e, vd)},
                               {"W", cg_number(e, w < 4 ? w : 4)},
                               {"L", cg_number(e, l)},
                               {"TQ", cg_cuda_src_type(g, e->n, 0)},
                               {"TW", cg_cuda_src_type(g, e->n, 1)},
                               {"TO", cg_cuda_res_type(g, e->n, 0)},
                               {"LDQ", cg_number(e, cg_src_ld(g, e->n, 0))},
                               {"LDW", cg_number(e, cg_src_ld(g, e->n, 1))},
                               {"LDO", cg_number(e, cg_result_ld(g, e->n, 0))}};
    cg_need_dense(g, e->n, 2);
    struct cg_step *s = product(e, "mla_queries", v, sizeof v / sizeof *v, h, (l + 255) / 256, 0);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), W_(0)));
    const struct cg_cached x = {.g = h,
                                .kv = 1,
                                .hd = lr,
                                .vd = l,
                                .scale = (double)(float)ir_num(g, e->n, AK_scale, 1),
                                .same = true,
                                .q = W_(0),
                                .k = S_(2),
                                .v = S_(2),
                                .pages = S_(3),
                                .past = S_(4),
                                .o = W_(latent),
                                .tq = "float",
                                .tk = cg_cuda_src_type(g, e->n, 2),
                                .to = "float",
                                .ldq = h * lr,
                                .ldk = lr,
                                .ldo = h * l,
                                .vec_k = cg_cuda_vector(e, false, 2, lr),
                                .vec_v = 1,
                                .vec_o = l % 4 ? 1 : 4,
                                .table = cg_pages(g, e->n),
                                .shared = cg_cuda_shared(t),
                                .why = why};
    e->out->workspace = (size_t)cg_cuda_cached(e, &x, end);
    s = product(e, "mla_values", v, sizeof v / sizeof *v, h, (vd + 31) / 32, 16 * l * 4);
    cg_refs(e->a, s, CG_REFS(W_(latent), S_(1), R_(0)));
}

void cg_cuda_mla(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                 const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    switch (ir_at(g, n)->op) {
    case OP_mla_keys: keys(&e, "mla_keys", cg_src_cols(g, n, 1, b), false); break;
    case OP_mla_keys_grad:
        keys(&e, "mla_keys_grad",
             cg_src_cols(g, n, 0, b) / ir_int(g, n, AK_heads, 1) - ir_int(g, n, AK_head_dim, 0),
             true);
        break;
    case OP_mla_cached: cached(&e, t); break;
    default: BUG("not a latent operation: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
