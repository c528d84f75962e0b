/* Speed of single operations on a GPU, each from a recording of many runs: JSON with the bytes an
 * operation has to move and the products it has to do, for tests/bench/gpu.py, which knows the
 * card's ceilings.
 *
 *   bench_gpu [--list] [--small] [--once] [WORD | =NAME]...
 *
 * The cases with that name, or whose name holds the word; all without one. --list names them,
 * --small takes 64 tokens at most, to see that they run, --once runs each once, for profilers. */
#include "codegen/kernel.h"
#include "compiler/lower.h"
#include "compiler/pass.h"
#include "runtime/gpu_exec.h"
#include "runtime/nvrtc.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { SAMPLES = 15, MAX_OPERANDS = 128 };

struct bench { /* what a case builds and says */
    struct arena *a;
    struct ir_graph *g;
    struct ir_bind b;
    int64_t N;
    double bytes, flops; /* that cannot be avoided */
};

/* ---- graphs ---- */

static ir_id typed(struct bench *b, const char *name, ir_type_id t, bool narrow)
{
    const struct ir_attr attr[] = {A_STR(name, name), A_STR(narrow, "1")};
    return ir_add_typed(b->g, OP_input, t, NO_SRCS, attr, narrow ? 2 : 1, name);
}

/* [N,cols] in two bytes an element, or four. */
static ir_id rows(struct bench *b, const char *name, int64_t cols, bool narrow)
{
    b->bytes += (double)(b->N * cols) * (narrow ? 2 : 4);
    return typed(b, name, ir_type2(b->g, IR_f32, dim_sym(SYM_N, 1), dim_const(cols)), narrow);
}

static ir_id matrix(struct bench *b, const char *name, int64_t n, int64_t cols, bool narrow)
{
    b->bytes += (double)(n * cols) * (narrow ? 2 : 4);
    return typed(b, name, ir_type2(b->g, IR_f32, dim_const(n), dim_const(cols)), narrow);
}

static ir_id vector(struct bench *b, const char *name, int64_t n)
{
    return typed(b, name, ir_type1(b->g, IR_f32, dim_const(n)), false);
}

static ir_id name_of(struct bench *b, const char *format, uint32_t i, int64_t cols, bool narrow)
{
    return rows(b, str_fmt(b->a, format, i), cols, narrow);
}

/* Blocks in two bytes, the running sum after them in four where `part`. */
static ir_id mix(struct bench *b, int64_t d, uint32_t n, bool part)
{
    ir_id src[MAX_OPERANDS];
    src[0] = vector(b, "u", d);
    for (uint32_t i = 0; i < n; i++) src[1 + i] = name_of(b, "v%u", i, d, !part || i + 1 < n);
    b->bytes += (double)(b->N * d) * 2;
    b->flops = 4.0 * (double)(b->N * d) * n;
    return ir_add(
        b->g, OP_depth_mix, src, 1 + n,
        ATTRS(A_STR(site, "bench"), A_INT(sources, n), A_NUM(eps, 1e-6), A_STR(narrow, "1000")),
        NULL);
}

static ir_id mix_large(struct bench *b)
{
    return mix(b, 7168, 9, false);
}

static ir_id mix_gradient(struct bench *b)
{
    enum { D = 7168, SOURCES = 9 };
    ir_id t = mix(b, D, SOURCES, false), src[MAX_OPERANDS];
    char have[SOURCES + 1] = {0};
    double forward = b->bytes - 2.0 * (double)(b->N * D); /* the sources, read again */
    src[0] = rows(b, "dh", D, true), src[1] = ir_get(b->g, t, 0), src[2] = ir_src(b->g, t, 0);
    for (uint32_t i = 0; i < 3; i++) src[3 + i] = ir_get(b->g, t, 1 + i);
    for (uint32_t i = 0; i < SOURCES; i++) {
        src[6 + i] = ir_src(b->g, t, 1 + i);
        src[6 + SOURCES + i] = name_of(b, "acc%u", i, D, false);
        have[i] = '1';
    }
    b->bytes = forward + 4.0 * (double)(b->N * D) + 8.0 * (double)(b->N * D) * SOURCES;
    b->flops *= 3;
    return ir_add(b->g, OP_depth_mix_grad, src, 6 + 2 * SOURCES,
                  ATTRS(A_STR(site, "bench"), A_INT(sources, SOURCES), A_STR(have, have)), NULL);
}

static ir_id inter(struct bench *b, uint32_t sources, uint32_t queries)
{
    enum { D = 1024 };
    ir_id src[MAX_OPERANDS];
    char narrow[MAX_OPERANDS] = {0};
    memset(narrow, '0', queries + 3);
    memset(narrow, '1', queries);
    for (uint32_t i = 0; i < queries; i++) src[i] = vector(b, str_fmt(b->a, "u%u", i), D);
    for (uint32_t i = 0; i < sources; i++) src[queries + i] = name_of(b, "v%u", i, D, true);
    b->bytes += 2.0 * (double)(b->N * D) * queries;
    return ir_add(b->g, OP_depth_inter, src, queries + sources,
                  ATTRS(A_INT(sources, sources), A_INT(queries, queries), A_NUM(eps, 1e-6),
                        A_STR(narrow, narrow)),
                  NULL);
}

/* What it reads and writes once; of more than two queries sources and dh are read again. */
static ir_id inter_gradient(struct bench *b, uint32_t sources, uint32_t queries)
{
    enum { D = 1024 };
    ir_id t = inter(b, sources, queries), src[MAX_OPERANDS];
    uint32_t k = 0;
    char have[MAX_OPERANDS] = {0};
    src[k++] = ir_get(b->g, t, queries), src[k++] = ir_get(b->g, t, queries + 1);
    for (uint32_t i = 0; i < queries; i++) src[k++] = ir_src(b->g, t, i);
    b->bytes = 0;
    for (uint32_t i = 0; i < queries; i++) src[k++] = name_of(b, "dh%u", i, D, true);
    for (uint32_t i = 0; i < queries; i++) src[k++] = name_of(b, "delta%u", i, 1, false);
    for (uint32_t i = 0; i < queries; i++)
        src[k++] = ir_slice(b->g, ir_get(b->g, t, queries + 2), 1, i, i + 1);
    for (uint32_t i = 0; i < sources; i++) src[k++] = ir_src(b->g, t, queries + i);
    for (uint32_t i = 0; i < sources; i++) src[k++] = name_of(b, "acc%u", i, D, false);
    memset(have, '1', sources);
    b->bytes += (double)(b->N * D) * sources * (2 + 4);
    return ir_add(b->g, OP_depth_inter_grad, src, k,
                  ATTRS(A_INT(sources, sources), A_INT(queries, queries), A_STR(have, have)), NULL);
}

static ir_id inter_block(struct bench *b)
{
    return inter(b, 8, 6);
}
static ir_id inter_full(struct bench *b)
{
    return inter(b, 36, 6);
}
static ir_id inter_block_gradient(struct bench *b)
{
    return inter_gradient(b, 8, 6);
}
static ir_id inter_full_gradient(struct bench *b)
{
    return inter_gradient(b, 36, 6);
}
static ir_id inter_two_gradient(struct bench *b)
{
    return inter_gradient(b, 36, 2);
}

static ir_id attend(struct bench *b, int64_t heads, int64_t kv, int64_t hd, int64_t vd)
{
    ir_id q = rows(b, "q", heads * hd, true), k = rows(b, "k", kv * hd, true);
    ir_id v = rows(b, "v", kv * vd, true);
    b->bytes += 2.0 * (double)(b->N * heads * vd);
    b->flops = (double)(b->N * b->b.T * heads * (hd + vd)); /* the lower half */
    const struct ir_attr attr[] = {A_INT(heads, heads),
                                   A_INT(kv_heads, kv),
                                   A_INT(head_dim, hd),
                                   A_INT(v_dim, vd == hd ? 0 : vd),
                                   A_NUM(scale, 1 / sqrt((double)hd)),
                                   A_STR(narrow, "100")};
    return ir_add(b->g, OP_attention, SRCS(q, k, v), attr, 6, NULL);
}

static ir_id attend_gradient(struct bench *b, ir_id t, int64_t heads, int64_t kv, int64_t hd,
                             int64_t vd)
{
    ir_id d = rows(b, "do", heads * vd, true);
    b->bytes *= 2;
    b->flops *= 2.5;
    return ir_add(b->g, OP_attention_grad,
                  SRCS(ir_src(b->g, t, 0), ir_src(b->g, t, 1), ir_src(b->g, t, 2),
                       ir_get(b->g, t, 0), ir_get(b->g, t, 1), d),
                  ATTRS(A_INT(heads, heads), A_INT(kv_heads, kv), A_INT(head_dim, hd),
                        A_INT(v_dim, vd == hd ? 0 : vd), A_NUM(scale, 1 / sqrt((double)hd)),
                        A_STR(narrow, "111")),
                  NULL);
}

static ir_id attention_64(struct bench *b)
{
    return attend(b, 16, 16, 64, 64);
}
static ir_id attention_64_gradient(struct bench *b)
{
    return attend_gradient(b, attend(b, 16, 16, 64, 64), 16, 16, 64, 64);
}
static ir_id attention_128(struct bench *b)
{
    return attend(b, 16, 4, 128, 128);
}
static ir_id attention_128_gradient(struct bench *b)
{
    return attend_gradient(b, attend(b, 16, 4, 128, 128), 16, 4, 128, 128);
}
static ir_id attention_mla(struct bench *b)
{
    return attend(b, 16, 16, 192, 128);
}
static ir_id attention_mla_gradient(struct bench *b)
{
    return attend_gradient(b, attend(b, 16, 16, 192, 128), 16, 16, 192, 128);
}

static ir_id kda(struct bench *b, int64_t heads)
{
    enum { DIM = 128 };
    int64_t c = heads * DIM;
    ir_id q = rows(b, "unit.q", c, true), k = rows(b, "unit.k", c, true);
    ir_id v = rows(b, "v", c, true);
    ir_id g = rows(b, "decay.g", c, false), beta = rows(b, "frac.beta", heads, false);
    b->bytes += 2.0 * (double)(b->N * c);
    b->flops = (double)(b->N * c) * (6 * DIM + 6 * 64);
    return ir_add(b->g, OP_kda, SRCS(q, k, v, g, beta),
                  ATTRS(A_INT(heads, heads), A_NUM(scale, 0.0884), A_STR(narrow, "1")), NULL);
}
static ir_id kda_gradient(struct bench *b, int64_t heads)
{
    ir_id t = kda(b, heads), src[6];
    for (uint32_t i = 0; i < 5; i++) src[i] = ir_src(b->g, t, i);
    src[5] = rows(b, "do", heads * 128, true);
    b->bytes *= 2;
    b->flops *= 3;
    return ir_add(b->g, OP_kda_grad, src, 6,
                  ATTRS(A_INT(heads, heads), A_NUM(scale, 0.0884), A_STR(narrow, "11100")), NULL);
}
static ir_id kda_4(struct bench *b)
{
    return kda(b, 4);
}
static ir_id kda_4_gradient(struct bench *b)
{
    return kda_gradient(b, 4);
}
static ir_id kda_16(struct bench *b)
{
    return kda(b, 16);
}
static ir_id kda_16_gradient(struct bench *b)
{
    return kda_gradient(b, 16);
}
static ir_id kda_32(struct bench *b)
{
    return kda(b, 32);
}
static ir_id kda_32_gradient(struct bench *b)
{
    return kda_gradient(b, 32);
}
static ir_id conv(struct bench *b)
{
    enum { C = 512, J = 4 };
    ir_id x = rows(b, "x", C, true);
    b->bytes += 2.0 * (double)(b->N * C);
    return ir_add(b->g, OP_short_conv, SRCS(x, matrix(b, "w", C, J, false)),
                  ATTRS(A_STR(narrow, "1")), NULL);
}
static ir_id conv_gradient(struct bench *b)
{
    ir_id y = conv(b), dy = rows(b, "dy", 512, true);
    return ir_add(b->g, OP_short_conv_grad, SRCS(dy, ir_src(b->g, y, 0), ir_src(b->g, y, 1)),
                  ATTRS(A_STR(narrow, "10")), NULL);
}

/* ---- row regions ---- */

/* Regions are made by the pass, of a graph of single operations. */
static void open_region(struct bench *b)
{
    b->g = graph_open(b->a, "bench", STAGE_T, NULL, NULL);
}

static ir_id two(struct bench *b, enum ir_op op, ir_id x, ir_id y)
{
    return ir_binary(b->g, op, x, y);
}

/* A function whose result is only seen through bf16. */
static ir_id coarse(struct bench *b, enum ir_op op, ir_id x)
{
    return ir_add(b->g, op, &x, 1, ATTRS(A_INT(coarse, 1)), NULL);
}

static void result(struct bench *b, const char *name, ir_id x, int64_t cols)
{
    b->bytes += 2.0 * (double)(b->N * cols);
    ir_output(b->g, name, ir_unary(b->g, OP_round_bf16, x));
}

static ir_id close_region(struct bench *b)
{
    struct pass_ctx c = {.arena = b->a, .bind = b->b, .gpu = true};
    b->g = pass_fuse_rows(&c, b->g);
    b->g->out.n = 0; /* the operation alone matters */
    for (ir_id n = 0; n < b->g->node.n; n++)
        if (ir_at(b->g, n)->op == OP_rows) return n;
    BUG("no region");
}

static ir_id swiglu(struct bench *b)
{
    enum { C = 2816 };
    open_region(b);
    ir_id x = rows(b, "x", C, true), z = rows(b, "z", C, true);
    ir_id silu = two(b, OP_mul, x, coarse(b, OP_sigmoid, x));
    result(b, "y", two(b, OP_mul, silu, z), C);
    return close_region(b);
}

/* situ of experts backward: x sigmoid 4 tanh(x / 4) and 25 tanh(z / 25), each times the other. */
static ir_id situ_gradient(struct bench *b)
{
    enum { C = 416 };
    open_region(b);
    ir_id x = rows(b, "x", C, true), z = rows(b, "z", C, true), dy = rows(b, "dy", C, true);
    ir_id one = ir_const(b->g, 1), s = coarse(b, OP_sigmoid, x);
    ir_id t = coarse(b, OP_tanh, two(b, OP_mul, x, ir_const(b->g, 0.25)));
    ir_id u = coarse(b, OP_tanh, two(b, OP_mul, z, ir_const(b->g, 0.04)));
    ir_id up = two(b, OP_mul, dy, u), gate = two(b, OP_mul, s, t);
    ir_id dt = two(b, OP_mul, s, two(b, OP_sub, one, two(b, OP_mul, t, t)));
    ir_id ds = two(b, OP_mul, gate, two(b, OP_sub, one, s));
    result(b, "dx", two(b, OP_mul, up, two(b, OP_add, dt, ds)), C);
    ir_id du = two(b, OP_sub, one, two(b, OP_mul, u, u));
    result(b, "dz", two(b, OP_mul, two(b, OP_mul, dy, gate), du), C);
    return close_region(b);
}

static ir_id norm_gradient(struct bench *b, int64_t c)
{
    open_region(b);
    ir_id x = rows(b, "x", c, true), dy = rows(b, "dy", c, true), more = rows(b, "dsum", c, true);
    ir_id r = rows(b, "r", 1, false), gain = vector(b, "gain", c);
    ir_id n = two(b, OP_mul, x, r), dn = two(b, OP_mul, dy, gain);
    ir_id mean = two(b, OP_mul, ir_unary(b->g, OP_rowsum, two(b, OP_mul, dn, n)),
                     ir_const(b->g, 1.0 / (double)c));
    ir_id dx = two(b, OP_mul, two(b, OP_sub, dn, two(b, OP_mul, n, mean)), r);
    result(b, "dx", two(b, OP_add, more, dx), c);
    ir_output(b->g, "dgain", ir_unary(b->g, OP_colsum, two(b, OP_mul, dy, n)));
    return close_region(b);
}
static ir_id norm_gradient_512(struct bench *b)
{
    return norm_gradient(b, 512);
}
static ir_id norm_gradient_1024(struct bench *b)
{
    return norm_gradient(b, 1024);
}

static ir_id product(struct bench *b, int64_t k, int64_t n)
{
    ir_id x = rows(b, "x", k, true), w = matrix(b, "w", n, k, true);
    b->bytes += 2.0 * (double)(b->N * n);
    b->flops = 2.0 * (double)(b->N * k * n);
    return ir_add(b->g, OP_matmul, SRCS(x, w),
                  ATTRS(A_INT(tb, 1), A_INT(bf16, 1), A_STR(narrow, "1")), NULL);
}
static ir_id product_large(struct bench *b)
{
    return product(b, 4096, 4096);
}
static ir_id product_decode(struct bench *b)
{
    return product(b, 4096, 14336);
}
static ir_id product_2304(struct bench *b)
{
    return product(b, 2304, 2304);
}
static ir_id product_768(struct bench *b)
{
    return product(b, 768, 3072);
}
/* A router: float32. */
static ir_id router(struct bench *b)
{
    enum { WIDTH = 2304, EXPERTS = 256 };
    ir_id x = rows(b, "x", WIDTH, false), w = matrix(b, "w", EXPERTS, WIDTH, false);
    b->bytes += 4.0 * (double)(b->N * EXPERTS);
    b->flops = 2.0 * (double)(b->N * WIDTH * EXPERTS);
    return ir_add(b->g, OP_matmul, SRCS(x, w), ATTRS(A_INT(tb, 1)), NULL);
}

enum { EXPERTS = 256, CHOSEN = 6, LATENT = 256 }; /* of mini-k3, ids as they come */

static ir_id chosen_rows(struct bench *b, const char *name, int64_t cols)
{
    ir_type_id t = ir_type2(b->g, IR_f32, dim_sym(SYM_N, CHOSEN), dim_const(cols));
    return typed(b, name, t, true);
}
static ir_id expert_offsets(struct bench *b)
{
    ir_type_id t = ir_type2(b->g, IR_i32, dim_sym(SYM_N, 1), dim_const(CHOSEN));
    ir_id ids = typed(b, "ids.255", t, false);
    return ir_get(b->g, ir_add(b->g, OP_moe_sort, SRCS(ids), ATTRS(A_INT(experts, EXPERTS)), NULL),
                  0);
}
/* What moving and multiplying costs at least, with matrices of weights that take `each` bytes. */
static void experts_cost(struct bench *b, double inner, double each)
{
    double assignments = (double)(b->N * CHOSEN);
    b->bytes = 2 * assignments * (LATENT + inner) + each * EXPERTS * inner * LATENT;
    b->flops = 2 * assignments * LATENT * inner;
}
static ir_id experts(struct bench *b, int64_t inner)
{
    const struct ir_dim w[] = {dim_const(EXPERTS), dim_const(inner), dim_const(LATENT)};
    ir_id weights = typed(b, "w", type_add(b->g->types, IR_f32, 3, w), true);
    experts_cost(b, (double)inner, 2);
    return ir_add(b->g, OP_grouped_matmul,
                  SRCS(chosen_rows(b, "x", LATENT), weights, expert_offsets(b)),
                  ATTRS(A_INT(tb, 1), A_INT(bf16, 1), A_STR(narrow, "1")), NULL);
}
static ir_id experts_416(struct bench *b)
{
    return experts(b, 416);
}
static ir_id experts_832(struct bench *b)
{
    return experts(b, 832);
}
static ir_id experts_dw(struct bench *b)
{
    experts_cost(b, 832, 4);
    return ir_add(b->g, OP_grouped_matmul_dw,
                  SRCS(chosen_rows(b, "dy", 832), chosen_rows(b, "x", LATENT), expert_offsets(b)),
                  ATTRS(A_INT(bf16, 1)), NULL);
}

static ir_id adam(struct bench *b)
{
    enum { ROWS = 32768, COLS = 1024 };
    ir_id p = matrix(b, "p", ROWS, COLS, false), g = matrix(b, "g", ROWS, COLS, false);
    ir_id m = matrix(b, "m", ROWS, COLS, false), v = matrix(b, "frac.v", ROWS, COLS, false);
    ir_id ctl = vector(b, "frac.ctl", 4), hyper = vector(b, "frac.hyper", 4);
    b->bytes += 3.0 * 4 * ROWS * COLS;
    return ir_add(
        b->g, OP_adamw, SRCS(p, g, m, v, ctl, hyper),
        ATTRS(A_NUM(beta1, .9), A_NUM(beta2, .95), A_NUM(eps, 1e-8), A_NUM(weight_decay, .1)),
        NULL);
}

static ir_id loss(struct bench *b)
{
    enum { V = 32768 };
    ir_id logits = rows(b, "logits", V, false);
    ir_id ids = typed(b, "ids.32767", ir_type1(b->g, IR_i32, dim_sym(SYM_N, 1)), false);
    return ir_add(b->g, OP_cross_entropy, SRCS(logits, ids), NO_ATTRS, NULL);
}

/* The head with its three products: dw in float32, logits once each way and again to subtract. */
static ir_id head(struct bench *b, int64_t vocab, int64_t width)
{
    ir_id h = rows(b, "unit.h", width, true), w = matrix(b, "unit.w", vocab, width, true);
    ir_id ids = typed(b, str_fmt(b->a, "ids.%lld", (long long)vocab - 1),
                      ir_type1(b->g, IR_i32, dim_sym(SYM_N, 1)), false);
    ir_id d = rows(b, "frac.d", 1, false);
    b->bytes += 4.0 * (double)(vocab * width) + 8.0 * (double)(b->N * vocab);
    b->flops = 6.0 * (double)(b->N * vocab * width);
    return ir_add(b->g, OP_head_loss, SRCS(h, w, ids, d),
                  ATTRS(A_INT(bf16, 1), A_STR(narrow, "010")), NULL);
}
static ir_id head_step(struct bench *b)
{
    return head(b, 32768, 1024);
}
static ir_id head_k3(struct bench *b)
{
    return head(b, 163840, 512);
}

static const struct {
    const char *name;
    ir_id (*build)(struct bench *b);
    int64_t B, T;
    bool ours; /* products by our own kernels */
} cases[] = {
    {"depth_mix 9x8192x7168", mix_large, 1, 8192, false},
    {"depth_mix_grad 9x8192x7168", mix_gradient, 1, 8192, false},
    {"depth_mix decode 1", mix_large, 1, 1, false},
    {"depth_mix decode 8", mix_large, 8, 1, false},
    {"depth_mix decode 64", mix_large, 64, 1, false},
    {"depth_inter 8x6 16384x1024", inter_block, 1, 16384, false},
    {"depth_inter 36x6 2048x1024", inter_full, 2, 1024, false},
    {"depth_inter_grad 8x6 16384x1024", inter_block_gradient, 1, 16384, false},
    {"depth_inter_grad 36x6 2048x1024", inter_full_gradient, 2, 1024, false},
    {"depth_inter_grad 36x2 2048x1024", inter_two_gradient, 2, 1024, false},
    {"attention 2x1024 16h64", attention_64, 2, 1024, false},
    {"attention_grad 2x1024 16h64", attention_64_gradient, 2, 1024, false},
    {"attention 4x4096 16h64", attention_64, 4, 4096, false},
    {"attention_grad 4x4096 16h64", attention_64_gradient, 4, 4096, false},
    {"attention 4x4096 16/4h128", attention_128, 4, 4096, false},
    {"attention_grad 4x4096 16/4h128", attention_128_gradient, 4, 4096, false},
    {"attention 2x4096 16h192/128", attention_mla, 2, 4096, false},
    {"attention_grad 2x4096 16h192/128", attention_mla_gradient, 2, 4096, false},
    {"kda 1x4096 16h128", kda_16, 1, 4096, false},
    {"kda_grad 1x4096 16h128", kda_16_gradient, 1, 4096, false},
    {"kda 16x4096 4h128", kda_4, 16, 4096, false},
    {"kda_grad 16x4096 4h128", kda_4_gradient, 16, 4096, false},
    {"kda 1x4096 32h128", kda_32, 1, 4096, false},
    {"kda_grad 1x4096 32h128", kda_32_gradient, 1, 4096, false},
    {"short_conv 16x4096x512", conv, 16, 4096, false},
    {"short_conv_grad 16x4096x512", conv_gradient, 16, 4096, false},
    {"rows swiglu 2048x2816", swiglu, 2, 1024, false},
    {"rows swiglu 65536x2816", swiglu, 16, 4096, false},
    {"rows situ_grad 393216x416", situ_gradient, 96, 4096, false},
    {"rows norm_grad 2048x1024", norm_gradient_1024, 2, 1024, false},
    {"rows norm_grad 65536x512", norm_gradient_512, 16, 4096, false},
    {"product 8192x4096x4096 library", product_large, 1, 8192, false},
    {"product 8192x4096x4096 ours", product_large, 1, 8192, true},
    {"product 1x4096x14336 ours", product_decode, 1, 1, true},
    {"product 8x4096x14336 ours", product_decode, 8, 1, true},
    {"product 1x2304x2304 ours", product_2304, 1, 1, true},
    {"product 16x2304x2304 ours", product_2304, 16, 1, true},
    {"product 64x2304x2304 ours", product_2304, 64, 1, true},
    {"product 1x768x3072 ours", product_768, 1, 1, true},
    {"router 1x2304x256 ours", router, 1, 1, true},
    {"router 65536x2304x256 library", router, 16, 4096, false},
    {"grouped_matmul 256e 32768x6", experts_416, 8, 4096, false},
    {"grouped_matmul 256e 65536x6 x832", experts_832, 16, 4096, false},
    {"grouped_matmul 256e 16x6 x832", experts_832, 16, 1, true},
    {"grouped_dw 256e 65536x6 832x256", experts_dw, 16, 4096, false},
    {"head_loss 2048x32768x1024", head_step, 2, 1024, false},
    {"head_loss 8192x163840x512", head_k3, 2, 4096, false},
    {"adamw 33M", adam, 1, 1, false},
    {"cross_entropy 8192x32768", loss, 8, 1024, false},
};

/* ---- running ---- */

struct how {
    bool list, small, once;
};

static struct gpu *gpu;

static void must(enum rt_status st, const struct rt_error *err)
{
    if (!st) return;
    fprintf(stderr, "bench_gpu: %s\n", err->text);
    exit(st);
}

struct memory {
    cu_ptr arena[SA_external];
};

static cu_ptr address(const void *arg, struct sa_buf at)
{
    return ((const struct memory *)arg)->arena[at.arena] + at.offset;
}

static double uniform(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (double)(*s >> 33) / 2147483648.0;
}

static bool begins(const char *name, const char *with)
{
    return !strncmp(name, with, strlen(with));
}

/* Values as the name says (as op_case_inputs does), the same million of them over and over. */
static void fill(const struct bench *b, ir_id n, const char *name, cu_ptr at)
{
    enum { PIECE = 1 << 20 };
    bool narrow = ir_narrow(b->g, n), ids = ir_ty(b->g, n)->dtype == IR_i32;
    size_t count = (size_t)type_count(b->g->types, ir_at(b->g, n)->type, b->b);
    uint32_t *words = malloc(PIECE * 4);
    uint16_t *half = (uint16_t *)words;
    uint64_t seed = hash_bytes(name, strlen(name), 1);
    struct rt_error err;
    CHECK(words);
    for (size_t i = 0; i < PIECE; i++) {
        double x = uniform(&seed);
        float f = (float)(begins(name, "frac")    ? x
                          : begins(name, "decay") ? -0.2 * x
                          : begins(name, "unit")  ? (2 * x - 1) / 6.5
                                                  : 2 * x - 1);
        uint32_t bits;
        memcpy(&bits, &f, 4);
        if (ids) bits = (uint32_t)(x * (atof(name + 4) + 1));
        if (narrow)
            half[i] = (uint16_t)(bits >> 16);
        else
            words[i] = bits;
    }
    for (size_t i = 0, size = narrow ? 2 : 4; i < count; i += PIECE) {
        size_t k = count - i < PIECE ? count - i : PIECE;
        must(gpu_put(gpu, at + i * size, words, k * size, &err), &err);
    }
    free(words);
}

static void compile(struct arena *a, const struct lowered *l, struct CUmod_st **module,
                    struct CUfunc_st **fn)
{
    struct sb text = {0};
    struct nvrtc_image image;
    struct rt_error err;
    lower_emit_c(l, NULL, "bench_gpu", &text);
    must(nvrtc_compile(a, text.p, gpu_about(gpu)->arch, true, &image, &err), &err);
    must(gpu_load(gpu, image.code.p, module, &err), &err);
    for (uint32_t i = 0; i < l->plan.num_kernels; i++)
        must(gpu_function(gpu, *module, l->code[i].symbol, &fn[i], &err), &err);
    sb_free(&text);
}

static int ascending(const void *pa, const void *pb)
{
    double a = *(const double *)pa, b = *(const double *)pb;
    return (a > b) - (a < b);
}

/* Seconds of one run, by recordings of `runs` of them. */
static void measure(struct gpu_exec *x, int runs, double sample[SAMPLES])
{
    struct CUevent_st *from, *to;
    struct gpu_recording *r;
    struct rt_error err;
    must(gpu_event_open(gpu, true, &from, &err), &err);
    must(gpu_event_open(gpu, true, &to, &err), &err);
    must(gpu_record_begin(gpu, &err), &err);
    for (int i = 0; i < runs; i++) must(gpu_exec_run(x, &err), &err);
    must(gpu_record_end(gpu, &r, &err), &err);
    for (int i = -2; i < SAMPLES; i++) {
        double s;
        must(gpu_event_record(gpu, from, &err), &err);
        must(gpu_replay(gpu, r, &err), &err);
        must(gpu_event_record(gpu, to, &err), &err);
        must(gpu_event_wait(gpu, to, &err), &err);
        must(gpu_event_seconds(gpu, from, to, &s, &err), &err);
        if (i >= 0) sample[i] = s / runs;
    }
    qsort(sample, SAMPLES, sizeof *sample, ascending);
    gpu_recording_close(gpu, r);
    gpu_event_close(gpu, from);
    gpu_event_close(gpu, to);
}

/* The steps of node n alone. */
static struct sa_plan part(const struct lowered *l, ir_id n)
{
    struct sa_plan p = l->plan;
    uint32_t first = 0, end;
    while (first < p.num_steps && l->node_of_step[first] != n) first++;
    for (end = first; end < p.num_steps && l->node_of_step[end] == n;) end++;
    struct sa_entry *entry = malloc(sizeof *entry);
    CHECK(entry);
    *entry = (struct sa_entry){"bench", 0, end - first};
    p.steps += first, p.num_steps = end - first, p.entries = entry;
    return p;
}

static void run(size_t c, const struct how *how)
{
    struct bench b = {.a = arena_open("bench_gpu"), .b = {cases[c].B, cases[c].T}};
    if (how->small && b.b.T > 1) b.b = (struct ir_bind){1, 64};
    struct layout layout;
    struct rt_error err;
    struct memory m = {{0}};
    double s[SAMPLES] = {0};
    unsigned sm = 0;
    b.N = b.b.B * b.b.T;
    b.g = graph_open(b.a, "bench", STAGE_K, NULL, NULL);
    ir_id n = cases[c].build(&b);
    CHECK(sscanf(gpu_about(gpu)->arch, "sm_%u", &sm) == 1);
    const struct cg_target target = {.sm = sm, .no_library = cases[c].ours};
    layout_init(&layout, b.a);
    struct lowered *l = lower(b.a, b.g, b.b, &target, &layout);
    struct CUmod_st *module;
    struct CUfunc_st **fn = NEW(b.a, struct CUfunc_st *, l->plan.num_kernels);
    compile(b.a, l, &module, fn);
    for (int i = 0; i < SA_external; i++) {
        uint64_t bytes = i == SA_persistent ? layout.bytes : l->plan.arena_bytes[i];
        must(gpu_alloc(gpu, bytes + 256, "a benchmark", &m.arena[i], &err), &err);
    }
    for (size_t i = 0; i < l->mem->named.n; i++) {
        const struct mem_named *x = &l->mem->named.p[i];
        fill(&b, x->node, x->name, address(&m, x->at));
    }
    struct sa_plan op = part(l, n);
    struct gpu_exec *all, *one;
    must(gpu_exec_open(gpu, &l->plan, fn, &all, &err), &err);
    must(gpu_exec_open(gpu, &op, fn, &one, &err), &err);
    gpu_exec_place(all, address, &m);
    gpu_exec_place(one, address, &m);
    must(gpu_exec_run(all, &err), &err);
    must(gpu_wait(gpu, &err), &err);
    if (!how->once) {
        measure(one, 1, s);
        int runs = s[0] > 0 && s[0] < 0.002 ? (int)(0.005 / s[0]) + 1 : 2;
        measure(one, runs < 400 ? runs : 400, s);
    }
    printf("{\"name\": \"%s\", \"median_us\": %.3f, \"best_us\": %.3f, \"bytes\": %.0f, \"flops\": "
           "%.0f, \"steps\": %u}\n",
           cases[c].name, 1e6 * s[SAMPLES / 2], 1e6 * s[0], b.bytes, b.flops, op.num_steps);
    fflush(stdout);
    gpu_exec_close(one);
    gpu_exec_close(all);
    gpu_unload(gpu, module);
    for (int i = 0; i < SA_external; i++) gpu_free(gpu, m.arena[i]);
    free((void *)op.entries);
    arena_close(b.a);
}

static bool wanted(const char *name, char *const *word, int n)
{
    bool any = !n;
    for (int i = 0; i < n; i++)
        any |= *word[i] == '=' ? !strcmp(name, word[i] + 1) : strstr(name, word[i]) != NULL;
    return any;
}

int main(int argc, char **argv)
{
    struct rt_error err;
    struct how how = {0};
    int at = 1;
    for (; at < argc && begins(argv[at], "--"); at++) {
        how.list |= !strcmp(argv[at], "--list");
        how.small |= !strcmp(argv[at], "--small");
        how.once |= !strcmp(argv[at], "--once");
    }
    if (!how.list) must(gpu_open(0, &gpu, &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!wanted(cases[i].name, argv + at, argc - at)) continue;
        if (how.list)
            printf("%s\n", cases[i].name);
        else
            run(i, &how);
    }
    gpu_close(gpu);
    return 0;
}
