/* Mixture of experts on a GPU: routing, sorting, gathering, combining; products are gemm's. Sizes
 * that only the device knows (tokens of an expert) never leave it. */
#include "codegen/cuda.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_moe.c.inc"
    ;

enum { THREADS = 256, WARPS = THREADS / 32 };

static int64_t blocks_of(int64_t items, int64_t each)
{
    return (items + each - 1) / each;
}

static struct cg_var number(const struct cg_emit *e, const char *name, int64_t value)
{
    return (struct cg_var){name, cg_number(e, value)};
}

static int64_t src_ld(const struct cg_emit *e, uint32_t i)
{
    return cg_src_ld(e->g, e->n, i);
}

static struct cg_step *section(const struct cg_emit *e, const char *name, const struct cg_var *vars,
                               size_t n)
{
    return cg_add_section(e->a, e->g, e->n, e->out, text, name, vars, n);
}

/* Warps of a block that has `experts` numbers of shared memory for each. */
static int64_t warps_for(int64_t experts)
{
    int64_t most = 8192 / experts;
    if (most < 1) BUG("%lld experts", (long long)experts);
    return most < WARPS ? most : WARPS;
}

/* moe_route, weights of experts that are given, and the gradient of both. */
static void route(const struct cg_emit *e)
{
    enum ir_op op = (enum ir_op)ir_at(e->g, e->n)->op;
    bool grad = op == OP_moe_route_grad, given = op != OP_moe_route;
    const char *name = op_info(op)->name, *node = ir_name(e->g, e->n);
    int64_t experts = cg_src_cols(e->g, e->n, 0, e->b), rows = cg_src_rows(e->g, e->n, 0, e->b);
    int64_t k = given ? cg_src_cols(e->g, e->n, 1, e->b) : ir_int(e->g, e->n, AK_k, 0);
    int64_t warps = given ? WARPS : warps_for(experts);
    bool softmax = !strcmp(ir_word(e->g, e->n, AK_score, "sigmoid"), "softmax");
    const struct cg_var vars[] = {
        number(e, "E", experts),
        number(e, "SOFTMAX", softmax),
        number(e, "K", k),
        {"SCALE", str_fmt(e->a, "%.9ef", ir_num(e->g, e->n, AK_scale, 1))},
        number(e, "RENORMALIZE", ir_int(e->g, e->n, AK_renormalize, 1) != 0),
        number(e, "WARPS", warps),
    };
    struct str scores = cg_section(e->a, text, "scores", vars, 2);
    struct str body = cg_cuda_section(e->a, text, name, vars, 6);
    struct cg_step *s = cg_add(e->a, e->out, name, str_of(str_fmt(e->a, "%s%s", scores.p, body.p)),
                               *node ? str_fmt(e->a, "%s %s", name, node) : name);
    if (given) cg_need_dense(e->g, e->n, 1);
    switch (op) {
    case OP_moe_route: cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0), R_(1))); break;
    case OP_moe_weights: cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0))); break;
    default: cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), R_(0)));
    }
    if (grad)
        cg_nums(e->a, s, CG_NUMS(src_ld(e, 0), src_ld(e, 2), rows));
    else
        cg_nums(e->a, s, CG_NUMS(src_ld(e, 0), rows));
    cg_launch(s, blocks_of(rows, warps), warps * 32, 0);
}

/* Counts of chunks, their sums over chunks for every expert, then the places. Where there is one
 * chunk, as in decoding, the first two have nothing to do. */
static void sort(const struct cg_emit *e)
{
    int64_t experts = ir_int(e->g, e->n, AK_experts, 0), warps = warps_for(experts);
    int64_t chunk = warps * 256;
    cg_need_dense(e->g, e->n, 0);
    ir_type_id ids = ir_at(e->g, ir_src(e->g, e->n, 0))->type;
    int64_t assignments = type_count(e->g->types, ids, e->b);
    int64_t chunks = blocks_of(assignments, chunk), total = chunks * experts * 4;
    const struct cg_var vars[] = {number(e, "E", experts), number(e, "CHUNK", chunk),
                                  number(e, "WARPS", warps)};
    struct cg_step *s = section(e, "moe_count", vars, 2);
    cg_refs(e->a, s, CG_REFS(S_(0), W_(0)));
    cg_nums(e->a, s, CG_NUMS(assignments, chunks));
    cg_launch(s, chunks > 1 ? chunks : 0, THREADS, 0);
    s = section(e, "moe_scan", vars, 1);
    cg_refs(e->a, s, CG_REFS(W_(0), W_(total)));
    cg_nums(e->a, s, CG_NUMS(chunks));
    cg_launch(s, chunks > 1 ? blocks_of(experts, WARPS) : 0, THREADS, 0);
    s = section(e, "moe_sort", vars, 3);
    cg_refs(e->a, s, CG_REFS(S_(0), W_(0), W_(total), R_(0), R_(1), R_(2)));
    cg_nums(e->a, s, CG_NUMS(assignments, chunks));
    cg_launch(s, chunks, warps * 32, 0);
    e->out->workspace = (size_t)(total + experts * 4);
}

/* A kernel over `rows` rows of D, a thread for W elements, with k slots a token. */
static struct cg_step *rows_step(const struct cg_emit *e, const char *name, int64_t rows)
{
    const uint32_t zero = 0;
    int64_t d = cg_src_cols(e->g, e->n, 0, e->b);
    int64_t w = cg_cuda_width(e->g, e->n, d, &zero, 1, &zero, 1);
    const struct cg_var vars[] = {number(e, "D", d),
                                  number(e, "K", ir_int(e->g, e->n, AK_k, 0)),
                                  number(e, "W", w),
                                  {"T", cg_cuda_src_type(e->g, e->n, 0)},
                                  {"U", cg_cuda_res_type(e->g, e->n, 0)}};
    struct cg_step *s = section(e, name, vars, 5);
    cg_launch(s, blocks_of(rows * (d / w), THREADS), THREADS, 0);
    return s;
}

static void gather(const struct cg_emit *e)
{
    int64_t rows = cg_src_cols(e->g, e->n, 1, e->b);
    struct cg_step *s = rows_step(e, "moe_gather", rows);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), R_(0)));
    cg_nums(e->a, s, CG_NUMS(src_ld(e, 0), rows));
}

static void gather_grad(const struct cg_emit *e)
{
    int64_t k = ir_int(e->g, e->n, AK_k, 0), tokens = cg_src_cols(e->g, e->n, 2, e->b) / k;
    struct cg_step *s = rows_step(e, "moe_gather_grad", tokens);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(2), R_(0)));
    cg_nums(e->a, s, CG_NUMS(src_ld(e, 0), tokens));
}

static void combine(const struct cg_emit *e)
{
    int64_t tokens = cg_src_rows(e->g, e->n, 1, e->b);
    struct cg_step *s = rows_step(e, "moe_combine", tokens);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(3), R_(0)));
    cg_nums(e->a, s, CG_NUMS(src_ld(e, 0), src_ld(e, 1), tokens));
}

static void combine_grad(const struct cg_emit *e)
{
    const uint32_t src[] = {0, 1}, res[] = {0};
    int64_t k = ir_int(e->g, e->n, AK_k, 0), d = cg_src_cols(e->g, e->n, 0, e->b);
    int64_t assignments = k * cg_src_rows(e->g, e->n, 0, e->b);
    const struct cg_var vars[] = {number(e, "D", d),
                                  number(e, "K", k),
                                  number(e, "W", cg_cuda_width(e->g, e->n, d, src, 2, res, 1)),
                                  {"T", cg_cuda_src_type(e->g, e->n, 0)},
                                  {"Y", cg_cuda_src_type(e->g, e->n, 1)},
                                  {"U", cg_cuda_res_type(e->g, e->n, 0)}};
    struct cg_step *s = section(e, "moe_combine_grad", vars, 6);
    cg_refs(e->a, s, CG_REFS(S_(0), S_(1), S_(2), S_(4), R_(0), R_(1)));
    cg_nums(e->a, s, CG_NUMS(src_ld(e, 0), src_ld(e, 1), src_ld(e, 2), assignments));
    cg_launch(s, blocks_of(assignments, WARPS), THREADS, 0);
}

static void load(const struct cg_emit *e)
{
    struct cg_step *s = section(e, "moe_load", NULL, 0);
    cg_refs(e->a, s, CG_REFS(S_(0), R_(0)));
    cg_nums(e->a, s, CG_NUMS(cg_src_cols(e->g, e->n, 0, e->b) - 1));
    cg_launch(s, 1, THREADS, 0);
}

void cg_cuda_moe(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                 const struct cg_target *t, struct cg_lowering *out)
{
    (void)t;
    const struct cg_emit e = {a, g, n, b, out};
    switch (ir_at(g, n)->op) {
    case OP_moe_route:
    case OP_moe_weights:
    case OP_moe_route_grad: route(&e); break;
    case OP_moe_sort: sort(&e); break;
    case OP_moe_gather: gather(&e); break;
    case OP_moe_gather_grad: gather_grad(&e); break;
    case OP_moe_combine: combine(&e); break;
    case OP_moe_combine_grad: combine_grad(&e); break;
    case OP_moe_load: load(&e); break;
    default: BUG("not of the mixture of experts: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
