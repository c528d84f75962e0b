#include "compiler/floor.h"
#include <math.h>
#include <stdio.h>

bool floor_read(const char *text, struct floor_rates *r)
{
    double memory, products, launch;
    char end;
    if (!text) return true;
    if (sscanf(text, "%lf,%lf,%lf%c", &memory, &products, &launch, &end) != 3) return false;
    if (!(memory > 0 && products > 0 && launch > 0)) return false;
    r->bytes = 1e12 * memory, r->bf16 = 1e12 * products, r->launch = 1e-6 * launch;
    return true;
}

static double result_bytes(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    const struct ir_type *t = ir_ty(g, n);
    double sum = 0;
    if (t->dtype != IR_tuple)
        return (double)type_count(g->types, ir_at(g, n)->type, b) *
               (double)ir_result_bytes(g, n, 0);
    for (uint32_t i = 0; i < t->count; i++)
        sum += (double)type_count(g->types, type_elem(g->types, ir_at(g, n)->type, i), b) *
               (double)ir_result_bytes(g, n, i);
    return sum;
}

/* What it reads of operand i. */
static double operand_bytes(const struct ir_graph *g, ir_id n, uint32_t i, struct ir_bind b)
{
    ir_id s = ir_src(g, n, i);
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    double count = (double)type_count(g->types, ir_at(g, s)->type, b);
    double all = (double)dim_value(ir_ty(g, s)->dim[0], b);
    if (op == OP_embed && i == 0) { /* a row a token at most */
        double rows = (double)dim_value(ir_ty(g, ir_src(g, n, 1))->dim[0], b);
        if (rows < all) count *= rows / all;
    }
    if (op == OP_grouped_matmul && i == 1) { /* an expert a row at most */
        double rows = (double)dim_value(ir_ty(g, ir_src(g, n, 0))->dim[0], b);
        if (rows < all) count *= rows / all;
    }
    return count * (double)ir_elem_bytes(g, s);
}

static double moved(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    if (ir_at(g, n)->op == OP_cache_write) { /* new rows only: the cache stays where it is */
        ir_id x = ir_src(g, n, 1);
        return (double)type_count(g->types, ir_at(g, x)->type, b) *
               (double)(ir_elem_bytes(g, x) + ir_result_bytes(g, n, 0));
    }
    double sum = result_bytes(g, n, b);
    for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) {
        bool before = false;
        for (uint32_t k = 0; k < i; k++) before |= ir_src(g, n, k) == ir_src(g, n, i);
        if (!before && ir_ty(g, ir_src(g, n, i))->dtype != IR_tuple)
            sum += operand_bytes(g, n, i, b);
    }
    return sum;
}

/* Whether its operations are products that tensor cores do, of bf16. */
static bool products_of_bf16(const struct ir_graph *g, ir_id n)
{
    switch (ir_at(g, n)->op) {
    case OP_matmul:
    case OP_grouped_matmul:
    case OP_grouped_matmul_dw:
        return ir_int(g, n, AK_bf16, 0) ||
               (ir_narrow(g, ir_src(g, n, 0)) && ir_narrow(g, ir_src(g, n, 1)));
    case OP_head_loss:
    case OP_head_nll: return ir_int(g, n, AK_bf16, 0);
    case OP_attention:
    case OP_attention_grad:
    case OP_attention_cached:
    case OP_mla_cached:
    case OP_kda:
    case OP_kda_grad: return ir_narrow(g, ir_src(g, n, 0));
    default: return false;
    }
}

struct floor floor_of(const struct ir_graph *g, ir_id n, struct ir_bind b,
                      const struct floor_rates *r)
{
    struct floor f = {
        .bytes = moved(g, n, b), .flops = op_cost(g, n, b).flops, .bf16 = products_of_bf16(g, n)};
    f.seconds = fmax(f.bytes / r->bytes, f.flops / (f.bf16 ? r->bf16 : r->fp32));
    return f;
}
