/* Short convolutions on a GPU, and repeat (text/cuda_conv.c). */
#include "codegen/cuda.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_conv.c.inc"
    ;
/* What the kernels of all sizes share; a translation unit has it once. */
static const char rows_text[] = "#ifndef K_CUDA_CONV\n"
                                "#define K_CUDA_CONV\n"
#include "text/cuda_conv_rows.c.inc"
                                "#endif\n";

enum { ROWS = 32, THREADS = 128 }; /* of a piece; of a block */

static struct cg_step *step(const struct cg_emit *e, const char *name, const struct cg_var *vars,
                            size_t n)
{
    const char *body = cg_section(e->a, text, name, vars, n).p;
    const char *node = ir_name(e->g, e->n);
    const char *label = *node ? str_fmt(e->a, "%s %s", name, node) : name;
    return cg_add(e->a, e->out, name, str_of(str_fmt(e->a, "%s%s", rows_text, body)), label);
}

static int64_t up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Elements of operand i, or of result i, that one access may take: 4 at most. */
static int64_t elements(const struct cg_emit *e, uint32_t i, bool result)
{
    int64_t bytes = (int64_t)(result ? ir_result_bytes(e->g, e->n, i)
                                     : ir_elem_bytes(e->g, ir_src(e->g, e->n, i)));
    int64_t n = (result ? cg_cuda_res_align : cg_cuda_src_align)(e->g, e->n, i) / bytes;
    return n < 4 ? n : 4;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Channels of a thread: all operands allow them, and they divide the channels. */
static int64_t together(int64_t n, int64_t channels)
{
    while (channels % n) n /= 2;
    return n;
}

/* Weights are one run of memory of float32; rows are those of B sequences. */
static void need(const struct cg_emit *e, uint32_t rows, uint32_t weight)
{
    cg_need_dense(e->g, e->n, weight);
    CHECK(!ir_narrow(e->g, ir_src(e->g, e->n, weight)));
    CHECK(cg_src_rows(e->g, e->n, rows, e->b) == e->b.B * e->b.T);
}

static void repeat(const struct cg_emit *e)
{
    CHECK(!ir_narrow(e->g, ir_src(e->g, e->n, 0)) && !ir_narrow(e->g, e->n));
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "repeat", NULL, 0);
    int64_t times = ir_int(e->g, e->n, AK_times, 1), n = cg_src_cols(e->g, e->n, 0, e->b) * times;
    cg_refs(e->a, s, CG_REFS(S_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(n, times));
    cg_launch(s, up(n, 256), 256, 0);
}

static void short_conv(const struct cg_emit *e)
{
    need(e, 0, 1);
    int64_t c = cg_src_cols(e->g, e->n, 0, e->b);
    int64_t n = together(least(elements(e, 0, false), elements(e, 0, true)), c);
    const struct cg_var v[] = {{"TX", cg_cuda_src_type(e->g, e->n, 0)},
                               {"TY", cg_cuda_res_type(e->g, e->n, 0)},
                               {"J", cg_number(e, cg_src_cols(e->g, e->n, 1, e->b))},
                               {"N", cg_number(e, n)},
                               {"R", cg_number(e, ROWS)}};
    struct cg_step *s = step(e, "short_conv", v, 5);
    s->why = n < 4 ? "four channels of a row do not lie together" : NULL;
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0)));
    cg_nums(e->a, s, CG_NUMS(e->b.T, c, cg_src_ld(e->g, e->n, 0), cg_result_ld(e->g, e->n, 0)));
    cg_launch(s, e->b.B * up(e->b.T, ROWS) * up(c, THREADS * n), THREADS, 0);
}

static void short_conv_grad(const struct cg_emit *e)
{
    enum { GRAD_ROWS = 64 };
    need(e, 1, 2);
    CHECK(!ir_narrow_result(e->g, e->n, 1));
    int64_t c = cg_src_cols(e->g, e->n, 1, e->b), j = cg_src_cols(e->g, e->n, 2, e->b);
    int64_t most = least(elements(e, 0, false), elements(e, 1, false)), pieces;
    /* Two channels a thread: four windows of J numbers each stay in registers. */
    int64_t n = together(least(least(most, elements(e, 0, true)), 2), c);
    const struct cg_var v[] = {{"TD", cg_cuda_src_type(e->g, e->n, 0)},
                               {"TX", cg_cuda_src_type(e->g, e->n, 1)},
                               {"TO", cg_cuda_res_type(e->g, e->n, 0)},
                               {"J", cg_number(e, j)},
                               {"N", cg_number(e, n)},
                               {"R", cg_number(e, GRAD_ROWS)}};
    struct cg_step *s = step(e, "short_conv_grad", v, 6);
    pieces = e->b.B * up(e->b.T, GRAD_ROWS);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), R_(0), W_(0)));
    cg_nums(e->a, s,
            CG_NUMS(e->b.T, c, cg_src_ld(e->g, e->n, 0), cg_src_ld(e->g, e->n, 1),
                    cg_result_ld(e->g, e->n, 0)));
    cg_launch(s, pieces * up(c, THREADS * n), THREADS, 0);
    e->out->workspace = (size_t)(4 * pieces * c * j);
    cg_cuda_colsum(e->a, e->out, W_(0), R_(1), pieces, c * j);
}

static void conv_cached(const struct cg_emit *e)
{
    need(e, 0, 1);
    cg_need_dense(e->g, e->n, 2);
    CHECK(!ir_narrow(e->g, ir_src(e->g, e->n, 2)) && !ir_narrow_result(e->g, e->n, 1));
    int64_t c = cg_src_cols(e->g, e->n, 0, e->b), j = cg_src_cols(e->g, e->n, 1, e->b);
    int64_t ldx = cg_src_ld(e->g, e->n, 0), rows = j > ROWS ? j : ROWS;
    const struct cg_var v[] = {{"TX", cg_cuda_src_type(e->g, e->n, 0)},
                               {"J", cg_number(e, j)},
                               {"TY", cg_cuda_res_type(e->g, e->n, 0)},
                               {"R", cg_number(e, rows)}};
    struct cg_step *s = step(e, "conv_cached", v, 4);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(1), S_(3), S_(4), R_(0)));
    cg_nums(e->a, s, CG_NUMS(e->b.T, c, ldx, cg_result_ld(e->g, e->n, 0)));
    cg_launch(s, e->b.B * up(e->b.T, rows) * up(c, THREADS), THREADS, 0);
    if (e->b.T <= rows) return;
    s = step(e, "conv_state", v, 2);
    cg_refs(e->a, s, CG_REFS(S_(0), R_(1), S_(3)));
    cg_nums(e->a, s, CG_NUMS(e->b.T, c, ldx));
    cg_launch(s, e->b.B * up(c, THREADS), THREADS, 0);
}

void cg_cuda_conv(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                  const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    (void)t;
    switch (ir_at(g, n)->op) {
    case OP_repeat: repeat(&e); break;
    case OP_short_conv: short_conv(&e); break;
    case OP_short_conv_grad: short_conv_grad(&e); break;
    case OP_conv_cached: conv_cached(&e); break;
    default: BUG("not a convolution: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
