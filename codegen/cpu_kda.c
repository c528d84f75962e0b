/* Kimi Delta Attention on the CPU: short convolutions and the recurrence (text/conv.c, text/kda.c).
 */
#include "codegen/cpu.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char conv_text[] =
#include "text/conv.c.inc"
    ;
static const char kda_text[] =
#include "text/kda.c.inc"
    ;
/* What the kernels of all sizes share; a translation unit has it once. */
static const char rows_text[] = "#ifndef K_KDA\n"
                                "#define K_KDA\n"
#include "text/kda_rows.c.inc"
                                "#endif\n";

enum { CHUNK = 16, LANES = 16 };    /* KDA_C; a vector */
enum { BLOCK = 64, FORWARD = 256 }; /* channels of an item of conv.c: of most, of short_conv */

static int64_t round_up(int64_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

/* One operand is all rows of B sequences. */
static void need_sequences(const struct cg_emit *e)
{
    CHECK(cg_src_rows(e->g, e->n, 0, e->b) == e->b.B * e->b.T);
}

static struct cg_step *conv_step(const struct cg_emit *e, const char *name, uint32_t weight)
{
    int64_t j = cg_src_cols(e->g, e->n, weight, e->b);
    const struct cg_var v = {"J", cg_number(e, j)};
    cg_need_dense(e->g, e->n, weight);
    need_sequences(e);
    return cg_add_section(e->a, e->g, e->n, e->out, conv_text, name, &v, 1);
}

static void short_conv(const struct cg_emit *e)
{
    enum { ROWS = 64 };
    int64_t c = cg_src_cols(e->g, e->n, 0, e->b), blocks = (c + FORWARD - 1) / FORWARD;
    struct cg_step *s = conv_step(e, "short_conv", 1);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0)));
    cg_nums(e->a, s,
            CG_NUMS(e->b.T, c, cg_src_ld(e->g, e->n, 0), cg_result_ld(e->g, e->n, 0), ROWS));
    int64_t rows = e->b.T < ROWS ? e->b.T : ROWS;
    cg_items(s, e->b.B * ((e->b.T + ROWS - 1) / ROWS) * blocks,
             16 * rows * (c < FORWARD ? c : FORWARD));
}

static void short_conv_grad(const struct cg_emit *e)
{
    int64_t c = cg_src_cols(e->g, e->n, 1, e->b);
    struct cg_step *s = conv_step(e, "short_conv_grad", 2);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), R_(0), R_(1)));
    cg_nums(e->a, s,
            CG_NUMS(e->b.B, e->b.T, c, cg_src_ld(e->g, e->n, 0), cg_src_ld(e->g, e->n, 1),
                    cg_result_ld(e->g, e->n, 0)));
    cg_items(s, (c + BLOCK - 1) / BLOCK, 64 * e->b.B * e->b.T * BLOCK);
}

static void conv_cached(const struct cg_emit *e)
{
    int64_t c = cg_src_cols(e->g, e->n, 0, e->b);
    cg_need_dense(e->g, e->n, 2);
    struct cg_step *s = conv_step(e, "conv_cached", 1);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(1), S_(3), S_(4), R_(0)));
    cg_nums(e->a, s, CG_NUMS(e->b.T, c, cg_src_ld(e->g, e->n, 0), cg_result_ld(e->g, e->n, 0)));
    cg_items(s, e->b.B * ((c + BLOCK - 1) / BLOCK), 32 * (e->b.T + 4) * BLOCK);
}

static void repeat(const struct cg_emit *e)
{
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, conv_text, "repeat", NULL, 0);
    int64_t times = ir_int(e->g, e->n, AK_times, 1);
    cg_refs(e->a, s, CG_REFS(S_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(times));
    cg_items(s, cg_src_cols(e->g, e->n, 0, e->b), 4 * times);
}

/* Sizes of a kda node; keys and values of one head, padded. */
struct kda {
    int64_t h, k, v, kp, vp;
};

static struct kda kda_of(const struct cg_emit *e)
{
    int64_t h = ir_int(e->g, e->n, AK_heads, 1);
    struct kda x = {.h = h,
                    .k = cg_src_cols(e->g, e->n, 0, e->b) / h,
                    .v = cg_src_cols(e->g, e->n, 2, e->b) / h};
    x.kp = round_up(x.k);
    x.vp = round_up(x.v);
    return x;
}

static struct cg_step *kda_step(const struct cg_emit *e, const char *name, const struct kda *x)
{
    double scale = (double)(float)ir_num(e->g, e->n, AK_scale, 1);
    const struct cg_var v[] = {{"H", cg_number(e, x->h)},
                               {"K", cg_number(e, x->k)},
                               {"V", cg_number(e, x->v)},
                               {"SCALE", str_fmt(e->a, "%.9e", scale)}};
    const char *text = str_fmt(e->a, "%s%s", rows_text, cg_section(e->a, kda_text, name, v, 4).p);
    const char *node = ir_name(e->g, e->n);
    const char *label = *node ? str_fmt(e->a, "%s %s", name, node) : name;
    need_sequences(e);
    struct cg_step *s = cg_add(e->a, e->out, name, str_of(text), label);
    s->items = e->b.B * x->h;
    s->grain = cg_grain(e->b.T * x->k * x->v * 2);
    return s;
}

/* Bytes of scratch: a state, and what kda_chunk works in (KDA_WORK of kda_rows.c), z, l and a. */
static size_t chunk_scratch(const struct kda *x)
{
    int64_t work = (6 * CHUNK + 1) * x->kp + 3 * CHUNK * x->vp;
    return (size_t)(4 * (x->kp * x->vp + CHUNK * x->vp + 512 + work));
}

static void kda(const struct cg_emit *e)
{
    struct kda x = kda_of(e);
    struct cg_step *s = kda_step(e, "kda", &x);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(3), S_(4), R_(0)));
    int64_t num[7] = {e->b.T, [6] = cg_result_ld(e->g, e->n, 0)};
    for (uint32_t i = 0; i < 5; i++) num[1 + i] = cg_src_ld(e->g, e->n, i);
    cg_nums(e->a, s, num, 7);
    s->scratch = chunk_scratch(&x);
}

static void kda_cached(const struct cg_emit *e)
{
    struct kda x = kda_of(e);
    cg_need_dense(e->g, e->n, 5);
    struct cg_step *s = kda_step(e, "kda_cached", &x);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(3), S_(4), R_(1), S_(6), S_(7), R_(0)));
    int64_t num[7] = {e->b.T, [6] = cg_result_ld(e->g, e->n, 0)};
    for (uint32_t i = 0; i < 5; i++) num[1 + i] = cg_src_ld(e->g, e->n, i);
    cg_nums(e->a, s, num, 7);
    s->scratch = chunk_scratch(&x);
}

static void kda_grad(const struct cg_emit *e)
{
    struct kda x = kda_of(e);
    struct cg_step *s = kda_step(e, "kda_grad", &x);
    cg_refs(e->a, s,
            CG_REFS(S_(0), S_(1), S_(2), S_(3), S_(4), S_(5), R_(0), R_(1), R_(2), R_(3), R_(4)));
    int64_t num[12] = {e->b.T};
    for (uint32_t i = 0; i < 6; i++) num[1 + i] = cg_src_ld(e->g, e->n, i);
    for (uint32_t i = 0; i < 5; i++) num[7 + i] = cg_result_ld(e->g, e->n, i);
    cg_nums(e->a, s, num, 12);
    int64_t chunks = (e->b.T + CHUNK - 1) / CHUNK, each = (x.kp + CHUNK) * x.vp + 512;
    int64_t work = (15 * CHUNK + 2) * x.kp + 6 * CHUNK * x.vp + 512; /* KDA_GRAD_WORK */
    s->scratch = (size_t)(4 * (chunks * each + x.kp * x.vp + work));
}

void cg_cpu_kda(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    (void)t;
    switch (ir_at(g, n)->op) {
    case OP_repeat: repeat(&e); break;
    case OP_short_conv: short_conv(&e); break;
    case OP_short_conv_grad: short_conv_grad(&e); break;
    case OP_kda: kda(&e); break;
    case OP_kda_grad: kda_grad(&e); break;
    case OP_conv_cached: conv_cached(&e); break;
    case OP_kda_cached: kda_cached(&e); break;
    default: BUG("not an operation of KDA: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
