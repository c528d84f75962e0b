/* See narrow.h. Activations are; statistics, ids, weights of experts, decays, states, gradients of
 * weights and accumulators of depth gradients are not. */
#include "compiler/narrow.h"

/* Operands and results as a 0 or 1 each, the last one for all that follow. */
static const struct narrow_op {
    const char *reads, *writes;
} table[OP_COUNT] = {
    [OP_matmul] = {"1", "1"},
    [OP_grouped_matmul] = {"110", "1"},
    [OP_grouped_matmul_dw] = {"110", "0"},
    [OP_head_loss] = {"110", "010"},
    [OP_head_nll] = {"110", "0"},
    [OP_embed] = {"0", "1"},
    [OP_embed_grad] = {"10", "0"},
    [OP_rope] = {"10", "1"},
    [OP_attention] = {"1", "10"},
    [OP_attention_grad] = {"111101", "1"},
    [OP_short_conv] = {"10", "1"},
    [OP_short_conv_grad] = {"110", "10"},
    [OP_kda] = {"1110", "1"},
    [OP_kda_grad] = {"111001", "1110"},
    [OP_mla_keys] = {"1", "1"},
    [OP_mla_keys_grad] = {"1", "1"},
    [OP_last_rows] = {"1", "1"},
    [OP_cache_write] = {"010", "0"},
    [OP_attention_cached] = {"10", "1"},
    [OP_mla_cached] = {"10", "1"},
    [OP_conv_cached] = {"10", "10"},
    [OP_kda_cached] = {"1110", "10"},
    [OP_moe_gather] = {"10", "1"},
    [OP_moe_gather_grad] = {"10", "1"},
    [OP_moe_combine] = {"10", "1"},
    [OP_moe_combine_grad] = {"110", "10"},
    [OP_concat] = {"1", "1"},
};

static bool marked(const char *words, uint32_t i)
{
    if (!words) return false;
    size_t n = strlen(words);
    return words[i < n ? i : n - 1] == '1';
}

static bool product(enum ir_op op)
{
    return op == OP_matmul || op == OP_grouped_matmul || op == OP_grouped_matmul_dw ||
           op == OP_head_loss || op == OP_head_nll;
}

/* Is i one of `count` operands from `first` on? */
static bool within(uint32_t i, uint32_t first, uint32_t count)
{
    return i >= first && i < first + count;
}

bool narrow_reads(const struct ir_graph *g, ir_id n, uint32_t i)
{
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    uint32_t sources = (uint32_t)ir_int(g, n, AK_sources, 0);
    uint32_t queries = (uint32_t)ir_int(g, n, AK_queries, 0);
    if (op_fusable(op) || op == OP_rows) return true;
    if (product(op)) return narrow_rounds(g, n, i);
    switch (op) { /* u and statistics, sources, accumulators */
    case OP_depth_mix: return within(i, 1, sources);
    case OP_depth_mix_grad: return i < 2 || within(i, 6, sources);
    case OP_depth_inter: return within(i, queries, sources);
    case OP_depth_inter_grad:
        return within(i, 2 + queries, queries) || within(i, 2 + 4 * queries, sources);
    default: return marked(table[op].reads, i);
    }
}

bool narrow_writes(const struct ir_graph *g, ir_id n, uint32_t i, bool rounds)
{
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    if (product(op) && !ir_int(g, n, AK_bf16, 0)) return false;
    if (op == OP_depth_mix) return i == 0;
    if (op == OP_depth_inter) return i < (uint32_t)ir_int(g, n, AK_queries, 0);
    if (!marked(table[op].writes, i)) return false;
    const struct ir_type *t = ir_ty(g, n);
    if (t->dtype == IR_tuple) t = type_get(g->types, type_elem(g->types, ir_at(g, n)->type, i));
    return t->dtype == IR_f32 && t->rank >= 2 && (rounds || !dim_is_const(t->dim[0]));
}

bool narrow_rounds(const struct ir_graph *g, ir_id n, uint32_t i)
{
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    return product(op) && ir_int(g, n, AK_bf16, 0) && marked(table[op].reads, i);
}

bool narrow_mix_gradient(const struct ir_graph *g, ir_id n, uint32_t i)
{
    uint32_t queries = (uint32_t)ir_int(g, n, AK_queries, 0);
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    return (op == OP_depth_mix_grad && i == 0) ||
           (op == OP_depth_inter_grad && within(i, 2 + queries, queries));
}
