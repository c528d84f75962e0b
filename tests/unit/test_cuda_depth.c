/* CUDA kernels of the depth mix, depth_inter and their gradients (codegen/cuda_depth.c). */
#include "cuda_ops.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

enum storage { WIDE, NARROW, LAST_WIDE, MIXED, STORAGES };

/* '1' for bf16: tensor i of n that belong together. */
static char stored(enum storage how, int64_t i, int64_t n)
{
    switch (how) {
    case WIDE: return '0';
    case NARROW: return '1';
    case LAST_WIDE: return i == n - 1 ? '0' : '1';
    default: return i % 3 == 1 ? '1' : '0';
    }
}

static void put(char **at, enum storage how, int64_t n)
{
    for (int64_t i = 0; i < n; i++) *(*at)++ = stored(how, i, n);
}

/* Node n of g (of a graph in an arena of its own) with sources, row gradients and results stored
 * so; accumulators are stored as the source gradients. */
static void add(struct cuda_ops *c, const char *name, int64_t variant, double tol,
                enum storage source, enum storage result, struct ir_graph *g, ir_id n,
                struct ir_bind b)
{
    if (source == WIDE && result == WIDE) {
        cuda_ops_add(c, name, variant, tol, g, n, b);
        return;
    }
    char src[1024], res[1024], *s = src, *r = res;
    int64_t count = ir_int(g, n, AK_sources, 0), q = ir_int(g, n, AK_queries, 1);
    const char *have = ir_word(g, n, AK_have, "");
    switch (ir_at(g, n)->op) {
    case OP_depth_mix:
    case OP_depth_inter:
        put(&s, WIDE, q);
        put(&s, source, count);
        put(&r, result, q);
        put(&r, WIDE, 3);
        break;
    case OP_depth_mix_grad:
        put(&s, source, 2); /* dh, h */
        put(&s, WIDE, 4);
        break;
    default:
        put(&s, WIDE, 2 + q);
        put(&s, source, q); /* dh */
        put(&s, WIDE, 2 * q);
        break;
    }
    if (*have) {
        put(&s, source, count);
        for (int64_t j = 0; j < count; j++)
            if (have[j] == '1') *s++ = stored(result, j, count);
        put(&r, result, count);
        put(&r, WIDE, q);
    }
    *s = *r = 0;
    cuda_ops_add_narrow(c, name, variant, tol, src, res, g, n, b);
}

static void test_table(void **state)
{
    (void)state;
    static const struct {
        enum ir_op op;
        double tol;
    } ops[] = {{OP_depth_mix, 1e-5},
               {OP_depth_inter, 1e-5},
               {OP_depth_mix_grad, 2e-5},
               {OP_depth_inter_grad, 2e-5}};
    struct cuda_ops *c = cuda_ops_open();
    struct arena *a = arena_open("test_cuda_depth");
    for (size_t k = 0; k < sizeof ops / sizeof *ops; k++) {
        const struct op_case *oc = op_case_find(ops[k].op);
        for (int i = 0; i < oc->variants; i += 5) {
            struct ir_graph *g = oc->build(a, i);
            double tol = ops[k].tol * (i / OP_CASE_SIZES == 3 ? 50 : 1); /* large logits */
            add(c, oc->name, i, tol, (enum storage)(i % STORAGES), (enum storage)(i / 3 % STORAGES),
                g, op_case_node(g, oc), op_case_bind(i));
        }
    }
    cuda_ops_run(c);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_table)};
    return cmocka_run_group_tests_name("cuda_depth", tests, NULL, NULL);
}
