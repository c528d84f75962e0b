#include "op_build.h"
#include <math.h>
#include <stdlib.h>

static const struct {
    int64_t B, T, C;
} sizes[OP_CASE_SIZES] = {{1, 1, 1},   {1, 1, 7},   {2, 3, 5},   {1, 7, 8},
                          {3, 5, 15},  {1, 16, 16}, {1, 17, 17}, {2, 16, 33},
                          {3, 11, 64}, {5, 13, 65}, {1, 129, 24}};

struct k start(struct arena *a, int variant, enum ir_stage stage)
{
    struct k k = {graph_open(a, "case", stage, NULL, NULL), sizes[variant % OP_CASE_SIZES].C,
                  sizes[(variant * 7 + 3) % OP_CASE_SIZES].C, variant / OP_CASE_SIZES,
                  dim_sym(SYM_N, 1)};
    return k;
}

/* ---- the table: how many options each op has ---- */

#define CASE(op, options)                         \
    {                                             \
#op, build_##op, OP_CASE_SIZES *(options) \
    }
const struct op_case op_cases[] = {
    CASE(param, 1),
    CASE(input, 1),
    CASE(const, 2),
    CASE(arg, 1),
    CASE(get, 1),
    CASE(neg, 2),
    CASE(exp, 2),
    CASE(log, 2),
    CASE(tanh, 2),
    CASE(sigmoid, 2),
    CASE(sqrt, 2),
    CASE(rsqrt, 2),
    CASE(recip, 2),
    CASE(softplus, 2),
    CASE(round_bf16, 2),
    CASE(round, 2),
    CASE(add, 7),
    CASE(sub, 7),
    CASE(mul, 7),
    CASE(div, 7),
    CASE(max, 7),
    CASE(min, 7),
    CASE(rowsum, 1),
    CASE(rowmax, 1),
    CASE(colsum, 1),
    CASE(colmax, 1),
    CASE(sum, 2),
    CASE(slice, 3),
    CASE(concat, 2),
    CASE(reshape, 2),
    CASE(repeat, 2),
    CASE(matmul, 8),
    CASE(grouped_matmul, 8),
    CASE(grouped_matmul_dw, 4),
    CASE(embed, 1),
    CASE(embed_grad, 1),
    CASE(rope_table, 3),
    CASE(short_conv, 3),
    CASE(short_conv_grad, 3),
    CASE(kda, 5),
    CASE(kda_grad, 5),
    CASE(rope, 6),
    CASE(attention, 6),
    CASE(attention_grad, 6),
    CASE(mla_keys, 3),
    CASE(mla_keys_grad, 3),
    CASE(last_rows, 1),
    CASE(cache_write, 2),
    CASE(attention_cached, 7),
    CASE(mla_cached, 4),
    CASE(conv_cached, 2),
    CASE(kda_cached, 5),
    CASE(depth_mix, 4),
    CASE(depth_mix_grad, 5),
    CASE(depth_inter, 4),
    CASE(depth_inter_grad, 5),
    CASE(cross_entropy, 2),
    CASE(cross_entropy_grad, 2),
    CASE(count_valid, 2),
    CASE(head_loss, 2),
    CASE(head_nll, 2),
    CASE(moe_route, 5),
    CASE(moe_weights, 4),
    CASE(moe_route_grad, 4),
    CASE(moe_sort, 4),
    CASE(moe_gather, 4),
    CASE(moe_gather_grad, 4),
    CASE(moe_combine, 4),
    CASE(moe_combine_grad, 4),
    CASE(moe_load, 4),
    CASE(adamw, 4),
    CASE(momentum, 4),
    CASE(muon_step, 4),
    CASE(grad_norm, 2),
    CASE(qk_clip, 4),
    CASE(balance, 2),
    CASE(rows, 3),
    CASE(pack, 1),
};
const size_t op_case_count = sizeof op_cases / sizeof *op_cases;

const struct op_case *op_case_find(enum ir_op op)
{
    for (size_t i = 0; i < op_case_count; i++)
        if (!strcmp(op_cases[i].name, op_info(op)->name)) return &op_cases[i];
    return NULL;
}

struct ir_bind op_case_bind(int variant)
{
    return (struct ir_bind){sizes[variant % OP_CASE_SIZES].B, sizes[variant % OP_CASE_SIZES].T};
}

ir_id op_case_node(const struct ir_graph *g, const struct op_case *c)
{
    for (ir_id n = (ir_id)g->node.n; n-- > 0;)
        if (!strcmp(op_info((enum ir_op)ir_at(g, n)->op)->name, c->name)) return n;
    return IR_NONE;
}

/* ---- inputs ---- */

static double uniform(uint64_t *state) /* 0..1, splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

static bool begins(const char *name, const char *with)
{
    return !strncmp(name, with, strlen(with));
}

static int64_t tokens_before(int64_t sequence, int64_t times)
{
    int64_t n = 23 * sequence + 17 * (sequence % 2);
    return times < 0 ? n - times : n * times;
}

/* Entry i of "pages.TIMES.P.TOTAL", tables of P pages for past TIMES; 11 and TOTAL have no common
 * divisor. */
static double page(const char *name, int64_t i, int64_t T)
{
    char *at;
    int64_t times = strtoll(name + 6, &at, 10), P = strtoll(at + 1, &at, 10);
    int64_t total = strtoll(at + 1, &at, 10), b = i / P, past = tokens_before(b, times);
    if (i % P * IR_PAGE >= past + T) return -1e6;
    if (b > 1 && (i % P + 1) * IR_PAGE <= past) b = 5; /* as if of one more sequence */
    return (double)((11 * (b * P + i % P) + 5) % total);
}

static double element(const char *name, int64_t i, uint64_t *state)
{
    static const double control[4] = {1.5, 0.625, 1, 0}, hyper[4] = {0.01, 0.271, 0.142625, 0};
    double x = uniform(state);
    if (begins(name, "ids.")) return floor(x * (atof(name + 4) + 1)) - 1;
    if (begins(name, "states")) return (double)((3 * i + 2) % 7); /* of 7, at most 5 sequences */
    if (begins(name, "past")) return (double)tokens_before(i, atoi(name + 4));
    if (begins(name, "pos")) return 0.1 + 1.9 * x;
    if (begins(name, "frac")) return x;
    if (begins(name, "unit.")) return (3 * x - 1.5) / (1.5 * sqrt(atof(name + 5)));
    if (begins(name, "fast")) return -50;
    if (begins(name, "slow")) return -1e-4 * x;
    if (begins(name, "mixed")) return i / 3 % 2 ? -50 : -1e-3 * x;
    if (begins(name, "decay")) return -2 * x;
    if (begins(name, "big")) return 120 * x - 60;
    if (begins(name, "load")) return floor(10 * x);
    if (begins(name, "ctl")) return i == 2 && name[3] == '0' ? 0 : control[i & 3];
    if (begins(name, "hyper")) return hyper[i & 3];
    return 3 * x - 1.5;
}

struct ir_named *op_case_inputs(struct arena *a, const struct ir_graph *g, struct ir_bind b,
                                uint64_t seed, size_t *n)
{
    struct ir_named *in = NEW(a, struct ir_named, g->node.n);
    *n = 0;
    for (ir_id x = 0; x < g->node.n; x++) {
        if (ir_at(g, x)->op != OP_input && ir_at(g, x)->op != OP_param) continue;
        struct ir_named *v = &in[(*n)++];
        v->name = ir_word(g, x, AK_name, "");
        v->n = type_count(g->types, ir_at(g, x)->type, b);
        double *p = NEW(a, double, v->n);
        uint64_t state = seed ^ hash_bytes(v->name, strlen(v->name), 7);
        for (int64_t i = 0; i < v->n; i++) {
            double e =
                begins(v->name, "pages") ? page(v->name, i, b.T) : element(v->name, i, &state);
            p[i] = (double)(float)e;
        }
        v->v = p;
    }
    return in;
}
