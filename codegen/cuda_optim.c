/* The apply program on a GPU: norms, clipping, AdamW, Muon's elementwise parts, router biases.
 * Everything here is float32. */
#include "codegen/cuda.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_optim.c.inc"
    ;

enum { THREADS = 256, ELEMENTS = 4096 /* of a block of an elementwise kernel */ };
/* Tensors of a launch, 12 numbers each: 3.9 KB of parameters, of 4 KB that all drivers take. */
enum { TENSORS = 40, COLUMNS = 4 /* of the table, before row strides */ };

/* A float32 constant of C with all its digits. */
static struct cg_var constant(const struct cg_emit *e, const char *name, double value)
{
    return (struct cg_var){name, str_fmt(e->a, "%.9ef", value)};
}

static int64_t float_bits(double value)
{
    float f = (float)value;
    int32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* One tensor of an elementwise kernel: operands in the order of its addresses (IR_NONE: result 0,
 * without gaps), what is common to all tensors behind them. */
struct tensor {
    const char *name;
    const uint32_t *operand;
    uint32_t count;
    const struct cg_ref *common;
    size_t commons;
    double decay;
};

/* Sizes of the tensor as the first row of its table; whether all elements can go four at a time. */
static bool sizes(const struct cg_emit *e, const struct tensor *x, int64_t *num, int64_t *blocks)
{
    uint32_t real[4];
    size_t reals = 0;
    for (size_t i = 0; i < x->count; i++)
        if (x->operand[i] != IR_NONE) real[reals++] = x->operand[i];
    struct cg_flat f = cg_flat(e->g, e->n, real, reals, e->b);
    int64_t pieces = (f.cols + ELEMENTS - 1) / ELEMENTS;
    bool aligned = true;
    num[0] = *blocks = f.rows * pieces;
    num[TENSORS] = f.cols, num[2 * TENSORS] = pieces, num[3 * TENSORS] = float_bits(x->decay);
    for (size_t i = 0; i < x->count; i++) {
        uint32_t k = x->operand[i];
        int64_t ld = k == IR_NONE ? f.cols : cg_flat_ld(e->g, e->n, k, f);
        num[(COLUMNS + i) * TENSORS] = ld;
        aligned = aligned && (f.rows == 1 || ld % 4 == 0);
        if (k == IR_NONE) continue;
        struct ir_dim offset = ir_view(e->g, ir_src(e->g, e->n, k)).offset;
        aligned = aligned && offset.add % 4 == 0 && offset.mul % 4 == 0;
        CHECK(!ir_narrow(e->g, ir_src(e->g, e->n, k)));
    }
    return aligned;
}

/* A launch of one tensor, which `lower` joins with those of its neighbours. */
static void elementwise(const struct cg_emit *e, const struct tensor *x, const struct cg_var *vars,
                        size_t nvars)
{
    struct cg_ref ref[TENSORS * 4 + 2];
    int64_t num[TENSORS * (COLUMNS + 4) + 1] = {0}, blocks;
    bool aligned = sizes(e, x, num, &blocks);
    size_t nref = 0, nnum = (size_t)TENSORS * (COLUMNS + x->count);
    for (size_t t = 0; t < TENSORS; t++) /* unused rows of the table repeat the first one's */
        for (size_t i = 0; i < x->count; i++)
            ref[nref++] = x->operand[i] == IR_NONE ? R_(0) : S_(x->operand[i]);
    for (size_t i = 0; i < x->commons; i++) ref[nref++] = x->common[i];
    num[nnum++] = 1;
    const struct cg_var table[] = {{"W", aligned ? "4" : "1"}, {"P", cg_number(e, x->count)}};
    const char *node = ir_name(e->g, e->n);
    struct str head = cg_section(e->a, text, "table", table, 2);
    struct str body = cg_section(e->a, text, x->name, vars, nvars);
    struct cg_step *s = cg_add(e->a, e->out, x->name, str_of(str_fmt(e->a, "%s%s", head.p, body.p)),
                               *node ? str_fmt(e->a, "%s %s", x->name, node) : x->name);
    cg_refs(e->a, s, ref, nref);
    cg_nums(e->a, s, num, nnum);
    cg_launch(s, blocks, THREADS, 0);
    s->join = (struct cg_join){TENSORS, x->count, COLUMNS + x->count};
}

static void adamw(const struct cg_emit *e)
{
    double b1 = ir_num(e->g, e->n, AK_beta1, 0.9), b2 = ir_num(e->g, e->n, AK_beta2, 0.95);
    const struct cg_var vars[] = {constant(e, "BETA1", b1), constant(e, "REST1", 1 - b1),
                                  constant(e, "BETA2", b2), constant(e, "REST2", 1 - b2),
                                  constant(e, "EPS", ir_num(e->g, e->n, AK_eps, 1e-8))};
    static const uint32_t operand[] = {0, 2, 3, 1};
    const struct cg_ref common[] = {S_(4), S_(5)};
    double decay = ir_num(e->g, e->n, AK_weight_decay, 0);
    elementwise(e, &(struct tensor){"adamw", operand, 4, common, 2, decay}, vars, 5);
}

static void momentum(const struct cg_emit *e)
{
    const struct cg_var mu = constant(e, "MU", ir_num(e->g, e->n, AK_momentum, 0.95));
    static const uint32_t operand[] = {1, IR_NONE, 0};
    const struct cg_ref common[] = {S_(2)};
    CHECK(!ir_narrow_result(e->g, e->n, 0));
    elementwise(e, &(struct tensor){"momentum", operand, 3, common, 1, 0}, &mu, 1);
}

static void muon_step(const struct cg_emit *e)
{
    const struct cg_var scale = constant(e, "SCALE", ir_num(e->g, e->n, AK_scale, 1));
    static const uint32_t operand[] = {0, 1};
    const struct cg_ref common[] = {S_(2), S_(3)};
    double decay = ir_num(e->g, e->n, AK_weight_decay, 0);
    elementwise(e, &(struct tensor){"muon_step", operand, 2, common, 2, decay}, &scale, 1);
}

/* ---- the norm ---- */

enum { TABLE = 64 }; /* gradients of a launch: 2.6 KB of parameters, of 4 KB that all GPUs take */

/* Sums of squares of gradients from..from+count-1, whose pieces are numbered from `first` on. The
 * workspace has the ends of all gradients, then at `partial` the sums. Returns how many pieces. */
static int64_t sums_of(const struct cg_emit *e, uint32_t from, uint32_t count, int64_t first,
                       int64_t partial)
{
    struct cg_ref ref[TABLE + 2];
    int64_t num[4 * TABLE + 2] = {0}, pieces = 0;
    const struct cg_var piece = {"PIECE", cg_number(e, CG_PIECE)};
    for (uint32_t i = 0; i < TABLE; i++) {
        uint32_t operand = from + (i < count ? i : 0) + 1;
        ref[i] = S_(operand);
        if (i >= count) continue;
        struct cg_flat f = cg_flat(e->g, e->n, &operand, 1, e->b);
        CHECK(!ir_narrow(e->g, ir_src(e->g, e->n, operand)));
        pieces += f.pieces;
        num[i] = pieces;
        num[TABLE + i] = f.cols;
        num[2 * TABLE + i] = cg_flat_ld(e->g, e->n, operand, f);
        num[3 * TABLE + i] = f.pieces / f.rows;
    }
    ref[TABLE] = W_(partial);
    ref[TABLE + 1] = W_((int64_t)from * 8);
    num[4 * TABLE] = count, num[4 * TABLE + 1] = first;
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "grad_norm", &piece, 1);
    cg_refs(e->a, s, ref, TABLE + 2);
    cg_nums(e->a, s, num, 4 * TABLE + 2);
    cg_launch(s, pieces, THREADS, 0);
    return pieces;
}

static void grad_norm(const struct cg_emit *e)
{
    uint32_t count = ir_at(e->g, e->n)->nsrc - 1;
    int64_t pieces = 0, partial = (int64_t)(count + 1) * 8;
    for (uint32_t i = 0; i < count; i += TABLE)
        pieces += sums_of(e, i, count - i < TABLE ? count - i : TABLE, pieces, partial);
    const struct cg_var clip = {"CLIP", str_fmt(e->a, "%.17e", ir_num(e->g, e->n, AK_clip, 0))};
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "grad_norm_end", &clip, 1);
    cg_refs(e->a, s, CG_REFS(W_(partial), W_(0), S_(0), R_(0), R_(1)));
    cg_nums(e->a, s, CG_NUMS(count));
    cg_launch(s, 1, 1024, 0);
    e->out->workspace = (size_t)(partial + pieces * 8);
}

/* ---- router biases, large logits ---- */

static void balance(const struct cg_emit *e)
{
    const struct cg_var rate = constant(e, "RATE", ir_num(e->g, e->n, AK_rate, 1e-3));
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "balance", &rate, 1);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2)));
    cg_nums(e->a, s, CG_NUMS(cg_src_cols(e->g, e->n, 0, e->b)));
    cg_launch(s, 1, THREADS, 0);
}

static void qk_clip(const struct cg_emit *e)
{
    const char *part = ir_word(e->g, e->n, AK_part, "q");
    int64_t heads = ir_int(e->g, e->n, AK_heads, 1), kv = ir_int(e->g, e->n, AK_kv_heads, 1);
    int64_t from = ir_int(e->g, e->n, AK_from, 0), to = ir_int(e->g, e->n, AK_to, 0);
    const struct cg_var v[] = {constant(e, "TAU", ir_num(e->g, e->n, AK_value, 0)),
                               {"KEYS", *part == 'k' ? "1" : "0"},
                               {"ROPE", *part == 'r' ? "1" : "0"}};
    struct cg_step *s = cg_add_section(e->a, e->g, e->n, e->out, text, "qk_clip", v, 3);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2)));
    cg_nums(e->a, s,
            CG_NUMS(cg_src_cols(e->g, e->n, 0, e->b), cg_src_ld(e->g, e->n, 0),
                    ir_int(e->g, e->n, AK_index, 0), ir_int(e->g, e->n, AK_head_dim, 1), from, to,
                    heads / kv));
    cg_launch(s, (*part == 'k' ? kv : heads) * (to - from), THREADS, 0);
}

void cg_cuda_optim(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                   const struct cg_target *t, struct cg_lowering *out)
{
    (void)t;
    const struct cg_emit e = {a, g, n, b, out};
    switch (ir_at(g, n)->op) {
    case OP_adamw: adamw(&e); break;
    case OP_momentum: momentum(&e); break;
    case OP_muon_step: muon_step(&e); break;
    case OP_grad_norm: grad_norm(&e); break;
    case OP_qk_clip: qk_clip(&e); break;
    case OP_balance: balance(&e); break;
    default: BUG("not of the apply program: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
