/* Where results lie: in the memory of an operand, or straight in a piece of a column concat. */
#include "codegen/kernel.h"

/* Operand index of the accumulator of source `result` of a depth gradient, -1 where it has none.
 * Accumulators follow the `fixed` operands and the sources, without gaps. */
static int accumulator(const struct ir_graph *g, ir_id n, uint32_t result, uint32_t fixed)
{
    const char *have = ir_word(g, n, AK_have, "");
    uint32_t sources = (uint32_t)ir_int(g, n, AK_sources, 0), before = 0;
    if (result >= sources || have[result] != '1') return -1;
    for (uint32_t i = 0; i < result; i++) before += have[i] == '1';
    return (int)(fixed + sources + before);
}

int cg_in_place(const struct ir_graph *g, ir_id n, uint32_t result)
{
    switch (ir_at(g, n)->op) {
    case OP_adamw: return result == 0 ? 0 : (int)result + 1;
    case OP_momentum: return result == 1 ? 1 : -1;
    case OP_muon_step:
    case OP_cache_write:
    case OP_qk_clip:
    case OP_balance: return 0;
    case OP_conv_cached: return result == 1 ? 2 : -1;
    case OP_kda_cached: return result == 1 ? 5 : -1;
    case OP_depth_mix_grad: return accumulator(g, n, result, 6);
    case OP_depth_inter_grad:
        return accumulator(g, n, result, 2 + 4 * (uint32_t)ir_int(g, n, AK_queries, 0));
    default: return -1;
    }
}

bool cg_strided_result(const struct ir_graph *g, ir_id n, uint32_t result)
{
    switch (ir_at(g, n)->op) {
    case OP_matmul: return ir_ty(g, n)->rank == 2;
    case OP_rows: { /* the pass decided: the stride is in the region's text */
        const struct ir_graph *r = g->region.p[ir_int(g, n, AK_region, 0)];
        return r->out.p[result].ld != 0;
    }
    case OP_rope:
    case OP_short_conv:
    case OP_kda:
    case OP_kda_grad:
    case OP_grouped_matmul: return true;
    case OP_short_conv_grad: return result == 0; /* not the weights' */
    case OP_attention: return result == 0;       /* not the log-sum-exp */
    case OP_attention_grad: return result < 3;
    case OP_mla_keys:
    case OP_mla_keys_grad: return true;
    default: return false;
    }
}

/* The node that stands for result element i: n itself, or its `get`; IR_NONE if nobody reads it. */
static ir_id value_of(const struct ir_graph *g, ir_id n, uint32_t result)
{
    if (ir_ty(g, n)->dtype != IR_tuple) return n;
    const struct ir_readers *r = ir_readers(g);
    for (uint32_t u = r->first[n]; u < r->first[n + 1]; u++) {
        ir_id m = r->reader[u];
        if (ir_at(g, m)->op == OP_get && ir_int(g, m, AK_index, 0) == (int64_t)result) return m;
    }
    return IR_NONE;
}

ir_id cg_concat_of(const struct ir_graph *g, ir_id n, uint32_t result)
{
    ir_id v = value_of(g, n, result), at = IR_NONE;
    bool dense = ir_at(g, n)->op == OP_momentum && !result; /* good for rows of a concat */
    bool may = dense || cg_strided_result(g, n, result);
    if (v == IR_NONE || !may || ir_ty(g, v)->rank != 2) return IR_NONE;
    const struct ir_readers *r = ir_readers(g);
    if (r->output[v]) return IR_NONE;
    for (uint32_t u = r->first[v]; u < r->first[v + 1]; u++) {
        if (at != IR_NONE || ir_at(g, r->reader[u])->op != OP_concat) return IR_NONE;
        at = r->reader[u];
    }
    if (at != IR_NONE && ir_narrow(g, at) != ir_narrow_result(g, n, result)) return IR_NONE;
    if (at != IR_NONE && dense && ir_int(g, at, AK_axis, 0)) return IR_NONE;
    return at;
}

int64_t cg_result_ld(const struct ir_graph *g, ir_id n, uint32_t result)
{
    ir_id c = cg_concat_of(g, n, result), v = value_of(g, n, result);
    if (c != IR_NONE && ir_int(g, c, AK_axis, 0) == 1) return ir_cols(g, c).add;
    if (v != IR_NONE) return ir_cols(g, v).add;
    return type_cols(g->types, type_elem(g->types, ir_at(g, n)->type, result)).add;
}
