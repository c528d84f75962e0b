/* The apply program on the CPU: norms, clipping, AdamW, Muon's elementwise parts, router biases. */
#include "codegen/cpu.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/optim.c.inc"
    ;

/* A float32 constant of C with all its digits. */
static struct cg_var constant(struct arena *a, const char *name, double value)
{
    return (struct cg_var){name, str_fmt(a, "%.9ef", value)};
}

static const struct cg_var piece = {"PIECE", STRATA_STR(16384)};
_Static_assert(CG_PIECE == 16384, "the text's piece");

/* Adds the integers of an elementwise kernel over `operand`s in the order of its buffers (IR_NONE:
 * a result of its own, dense rows), and the items. */
static void elementwise(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                        struct cg_step *s, const uint32_t *operand, size_t count, int64_t bytes)
{
    uint32_t real[4];
    size_t reals = 0;
    for (size_t i = 0; i < count; i++)
        if (operand[i] != IR_NONE) real[reals++] = operand[i];
    struct cg_flat f = cg_flat(g, n, real, reals, b);
    int64_t num[6] = {f.cols, f.pieces / (f.rows ? f.rows : 1)};
    for (size_t i = 0; i < count; i++)
        num[2 + i] = operand[i] == IR_NONE ? f.cols : cg_flat_ld(g, n, operand[i], f);
    cg_nums(a, s, num, 2 + count);
    cg_items(s, f.pieces, bytes * (f.cols < CG_PIECE ? f.cols : CG_PIECE));
}

static void adamw(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                  struct cg_lowering *out)
{
    double b1 = ir_num(g, n, AK_beta1, 0.9), b2 = ir_num(g, n, AK_beta2, 0.95);
    const struct cg_var vars[] = {constant(a, "BETA1", b1),
                                  constant(a, "REST1", 1 - b1),
                                  constant(a, "BETA2", b2),
                                  constant(a, "REST2", 1 - b2),
                                  constant(a, "EPS", ir_num(g, n, AK_eps, 1e-8)),
                                  constant(a, "WD", ir_num(g, n, AK_weight_decay, 0)),
                                  piece};
    struct cg_step *s = cg_add_section(a, g, n, out, text, "adamw", vars, 7);
    cg_refs(a, s, CG_REFS(S_(0), S_(2), S_(3), S_(1), S_(4), S_(5)));
    const uint32_t operand[] = {0, 2, 3, 1};
    elementwise(a, g, n, b, s, operand, 4, 28);
}

static void momentum(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                     struct cg_lowering *out)
{
    const struct cg_var vars[] = {constant(a, "MU", ir_num(g, n, AK_momentum, 0.95)), piece};
    struct cg_step *s = cg_add_section(a, g, n, out, text, "momentum", vars, 2);
    cg_refs(a, s, CG_REFS(S_(1), R_(0), S_(0), S_(2)));
    const uint32_t operand[] = {1, IR_NONE, 0};
    elementwise(a, g, n, b, s, operand, 3, 16);
}

static void muon_step(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                      struct cg_lowering *out)
{
    const struct cg_var vars[] = {constant(a, "SCALE", ir_num(g, n, AK_scale, 1)),
                                  constant(a, "WD", ir_num(g, n, AK_weight_decay, 0)), piece};
    struct cg_step *s = cg_add_section(a, g, n, out, text, "muon_step", vars, 3);
    cg_refs(a, s, CG_REFS(S_(0), S_(1), S_(2), S_(3)));
    const uint32_t operand[] = {0, 1};
    elementwise(a, g, n, b, s, operand, 2, 12);
}

static void grad_norm(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                      struct cg_lowering *out)
{
    uint32_t count = ir_at(g, n)->nsrc - 1;
    struct cg_ref *ref = NEW(a, struct cg_ref, count + 1);
    int64_t *num = NEW(a, int64_t, 1 + 4 * (size_t)count);
    int64_t *end = NEW(a, int64_t, 1 + (size_t)count);
    int64_t pieces = 0, most = 1;
    num[0] = end[0] = count;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t operand = i + 1;
        struct cg_flat f = cg_flat(g, n, &operand, 1, b);
        ref[i] = S_(operand);
        num[1 + 4 * i] = f.cols;
        num[2 + 4 * i] = cg_flat_ld(g, n, operand, f);
        num[3 + 4 * i] = f.pieces / f.rows;
        num[4 + 4 * i] = end[1 + i] = f.pieces;
        pieces += f.pieces;
        if (f.cols > most) most = f.cols;
    }
    ref[count] = W_(0);
    struct cg_step *s = cg_add_section(a, g, n, out, text, "grad_norm", &piece, 1);
    cg_refs(a, s, ref, count + 1);
    cg_nums(a, s, num, 1 + 4 * (size_t)count);
    cg_items(s, pieces, 4 * (most < CG_PIECE ? most : CG_PIECE));
    const struct cg_var clip = {"CLIP", str_fmt(a, "%.17e", ir_num(g, n, AK_clip, 0))};
    s = cg_add_section(a, g, n, out, text, "grad_norm_end", &clip, 1);
    cg_refs(a, s, CG_REFS(W_(0), S_(0), R_(0), R_(1)));
    cg_nums(a, s, end, 1 + (size_t)count);
    s->items = 1;
    out->workspace = (size_t)pieces * sizeof(double);
}

static void balance(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                    struct cg_lowering *out)
{
    const struct cg_var rate = constant(a, "RATE", ir_num(g, n, AK_rate, 1e-3));
    struct cg_step *s = cg_add_section(a, g, n, out, text, "balance", &rate, 1);
    cg_refs(a, s, CG_REFS(S_(0), S_(1), S_(2)));
    cg_nums(a, s, CG_NUMS(cg_src_cols(g, n, 0, b)));
    s->items = 1;
}

static void qk_clip(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                    struct cg_lowering *out)
{
    const char *part = ir_word(g, n, AK_part, "q");
    int64_t heads = ir_int(g, n, AK_heads, 1), kv = ir_int(g, n, AK_kv_heads, 1);
    const struct cg_var v[] = {constant(a, "TAU", ir_num(g, n, AK_value, 0)),
                               {"KEYS", *part == 'k' ? "1" : "0"},
                               {"ROPE", *part == 'r' ? "1" : "0"}};
    struct cg_step *s = cg_add_section(a, g, n, out, text, "qk_clip", v, 3);
    int64_t cols = cg_src_cols(g, n, 0, b), head = ir_int(g, n, AK_head_dim, 1);
    cg_refs(a, s, CG_REFS(S_(0), S_(1), S_(2)));
    cg_nums(a, s,
            CG_NUMS(cols, cg_src_ld(g, n, 0), ir_int(g, n, AK_index, 0), head,
                    ir_int(g, n, AK_from, 0), ir_int(g, n, AK_to, 0), heads / kv));
    cg_items(s, *part == 'k' ? kv : heads, 8 * head * cols);
}

void cg_cpu_optim(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                  const struct cg_target *t, struct cg_lowering *out)
{
    (void)t;
    switch (ir_at(g, n)->op) {
    case OP_adamw: adamw(a, g, n, b, out); break;
    case OP_momentum: momentum(a, g, n, b, out); break;
    case OP_muon_step: muon_step(a, g, n, b, out); break;
    case OP_grad_norm: grad_norm(a, g, n, b, out); break;
    case OP_qk_clip: qk_clip(a, g, n, b, out); break;
    case OP_balance: balance(a, g, n, b, out); break;
    default: BUG("not of the apply program: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
