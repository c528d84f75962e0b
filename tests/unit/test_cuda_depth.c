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
        for (int i = 0; i < oc->variants; i += 8) {
            struct ir_graph *g = oc->build(a, i);
            double tol = ops[k].tol * (i / OP_CASE_SIZES == 3 ? 50 : 1); /* large logits */
            add(c, oc->name, i, tol, (enum storage)(i % STORAGES), (enum storage)(i / 3 % STORAGES),
                g, op_case_node(g, oc), op_case_bind(i));
        }
    }
    cuda_ops_run(c);
    arena_close(a);
}

/* Sizes the table lacks: rows of one or more warps and beyond what streams, groups of queries, many
 * sources, and more rows than blocks run at once. */
struct size {
    int64_t d, n, q, rows;
    enum storage source, result;
    bool forward, gradient;
};
static const struct size sizes[] = {
    /* clang-format off */
    {7168, 9, 1, 2, NARROW, NARROW, true, true},
    {7168, 1, 1, 133, NARROW, NARROW, true, false},
    {7168, 10, 1, 1, LAST_WIDE, NARROW, true, true},
    {7168, 3, 2, 1, NARROW, NARROW, true, true},
    {1024, 33, 1, 2, NARROW, WIDE, true, true},
    {1024, 2, 3, 2, WIDE, WIDE, true, true},
    {1024, 2, 8, 2, MIXED, MIXED, true, true},
    {1032, 4, 4, 2, WIDE, WIDE, true, true},
    {136, 2, 9, 2, NARROW, WIDE, true, true},
    {16384, 2, 1, 1, NARROW, NARROW, true, false},
    {16392, 2, 1, 1, NARROW, NARROW, true, true},
    {1, 5, 2, 4, NARROW, NARROW, true, true},
    {7, 17, 1, 5, WIDE, WIDE, true, true},
    {129, 12, 3, 2, NARROW, MIXED, true, true},
    {8, 300, 1, 1, NARROW, WIDE, true, true},
    {24, 70, 6, 2, MIXED, MIXED, true, true},
    {8, 1, 1, 3700, NARROW, WIDE, true, false},
    {16, 1, 1, 1100, NARROW, WIDE, false, true},
    {520, 1, 2, 1060, NARROW, NARROW, true, false},
    {72, 1, 2, 1600, NARROW, WIDE, false, true},
    {520, 1, 3, 270, NARROW, NARROW, false, true},
    {7168, 2, 3, 1, NARROW, WIDE, false, true},
    /* clang-format on */
};

static ir_id matrix(struct ir_graph *g, const char *name, uint32_t i, int64_t cols)
{
    const char *s = str_fmt(g->arena, "%s%u", name, i);
    ir_type_id t = ir_type2(g, IR_f32, dim_sym(SYM_N, 1), dim_const(cols));
    return ir_add_typed(g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, s)), s);
}

static struct ir_graph *build(struct arena *a, const struct size *z, bool gradient, ir_id *node)
{
    struct ir_graph *g = graph_open(a, "case", STAGE_K, NULL, NULL);
    uint32_t n = (uint32_t)z->n, q = (uint32_t)z->q, k = 0;
    ir_id *u = NEW(a, ir_id, q), *v = NEW(a, ir_id, n), *src = NEW(a, ir_id, 8 + 4 * q + 2 * n);
    for (uint32_t i = 0; i < q; i++) {
        const char *s = str_fmt(a, "unit.%lld.%u", (long long)z->d, i);
        ir_type_id t = ir_type1(g, IR_f32, dim_const(z->d));
        u[i] = src[k++] = ir_add_typed(g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, s)), s);
    }
    for (uint32_t j = 0; j < n; j++) v[j] = src[k++] = matrix(g, "v", j, z->d);
    bool inter = q > 1;
    if (inter)
        *node = ir_add(g, OP_depth_inter, src, k,
                       ATTRS(A_INT(sources, n), A_INT(queries, q), A_NUM(eps, 1e-6)), NULL);
    else
        *node = ir_add(g, OP_depth_mix, src, k,
                       ATTRS(A_STR(site, "s"), A_INT(sources, n), A_NUM(eps, 1e-6)), NULL);
    if (!gradient) {
        ir_output(g, "out", ir_get(g, *node, 0));
        return g;
    }
    ir_id t = *node, s = ir_get(g, t, q), r = ir_get(g, t, q + 1), lse = ir_get(g, t, q + 2);
    char *have = NEW(a, char, n + 1);
    k = 0;
    if (inter) {
        src[k++] = s, src[k++] = r;
        for (uint32_t i = 0; i < q; i++) src[k++] = u[i];
        for (uint32_t i = 0; i < q; i++) src[k++] = matrix(g, "dh", i, z->d);
        for (uint32_t i = 0; i < q; i++) src[k++] = matrix(g, "delta", i, 1);
        for (uint32_t i = 0; i < q; i++) src[k++] = ir_slice(g, lse, 1, i, i + 1);
    } else {
        src[k++] = matrix(g, "dh", 0, z->d), src[k++] = ir_get(g, t, 0), src[k++] = u[0];
        src[k++] = s, src[k++] = r, src[k++] = lse;
    }
    for (uint32_t j = 0; j < n; j++) src[k++] = v[j];
    for (uint32_t j = 0; j < n; j++) {
        have[j] = j % 4 == 2 ? '0' : '1';
        if (have[j] == '1') src[k++] = matrix(g, "acc", j, z->d);
    }
    if (inter)
        *node = ir_add(g, OP_depth_inter_grad, src, k,
                       ATTRS(A_INT(sources, n), A_INT(queries, q), A_STR(have, have)), NULL);
    else
        *node = ir_add(g, OP_depth_mix_grad, src, k,
                       ATTRS(A_STR(site, "s"), A_INT(sources, n), A_STR(have, have)), NULL);
    ir_output(g, "out", ir_get(g, *node, 0));
    return g;
}

static void test_sizes(void **state)
{
    (void)state;
    struct cuda_ops *c = cuda_ops_open();
    struct arena *a = arena_open("test_cuda_depth");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int gradient = 0; gradient < 2; gradient++) {
            const struct size *z = &sizes[i];
            if (!(gradient ? z->gradient : z->forward)) continue;
            ir_id node;
            struct ir_graph *g = build(a, z, gradient, &node);
            add(c, gradient ? "gradient" : "mix", (int64_t)i, 3e-5, z->source, z->result, g, node,
                (struct ir_bind){.B = 1, .T = z->rows});
        }
    cuda_ops_run(c);
    arena_close(a);
}

/* More sources than a kernel's parameters hold are the user's to change, not a bug. */
static void test_refusal(void **state)
{
    (void)state;
    struct arena *a = arena_open("test_cuda_depth");
    for (int64_t n = 1024; n <= 1025; n++)
        for (int gradient = 0; gradient < 2; gradient++) {
            const struct size z = {.d = 8, .n = n, .q = 1, .rows = 1};
            const struct cg_target gpu = {.sm = 90}, cpu = {0};
            ir_id node;
            struct ir_graph *g = build(a, &z, gradient, &node);
            const char *why = cg_refusal(a, g, node, &gpu);
            assert_null(cg_refusal(a, g, node, &cpu));
            if (n > 1024) {
                assert_non_null(strstr(why, "1025 sources"));
                continue;
            }
            struct cg_lowering out = {0};
            assert_null(why);
            cg_lower_node(a, g, node, (struct ir_bind){1, 1}, &gpu, &out);
            assert_true(out.step.n >= 1);
        }
    arena_close(a);
}

/* Which form is taken, and what is said where it is not the fast one. */
static void test_forms(void **state)
{
    (void)state;
    static const struct {
        struct size size;
        unsigned sm;
        const char *mix, *gradient;
    } want[] = {
        {{.d = 7168, .n = 9, .q = 1}, 90, "ring of 8 rows, 5 at once", "ring of 4 rows, 2 at once"},
        {{.d = 7168, .n = 9, .q = 1}, 80, "ring of 5 rows, 2 at once", "ring of 2 rows, 1 at once"},
        {{.d = 1024, .n = 9, .q = 6}, 90, "ring of", "ring of"},
        {{.d = 1028, .n = 2, .q = 1}, 90, "no multiple of 8", "no multiple of 8"},
        {{.d = 20480, .n = 2, .q = 1}, 90, "too many columns", "too many columns"},
        {{.d = 7168, .n = 9, .q = 24}, 86, "1 query a block", "too little"},
    };
    struct arena *a = arena_open("test_cuda_depth");
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        for (int gradient = 0; gradient < 2; gradient++) {
            const struct cg_target gpu = {.sm = want[i].sm};
            struct cg_lowering out = {0};
            ir_id node;
            struct ir_graph *g = build(a, &want[i].size, gradient, &node);
            cg_lower_node(a, g, node, (struct ir_bind){1, 64}, &gpu, &out);
            const char *form = out.step.p[0].route;
            if (!strstr(form, gradient ? want[i].gradient : want[i].mix))
                fail_msg("%zu, %s: %s", i, gradient ? "gradient" : "mix", form);
        }
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_table), cmocka_unit_test(test_sizes),
                                       cmocka_unit_test(test_refusal),
                                       cmocka_unit_test(test_forms)};
    return cmocka_run_group_tests_name("cuda_depth", tests, NULL, NULL);
}
