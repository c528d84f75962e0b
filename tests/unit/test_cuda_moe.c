/* CUDA kernels of the mixture of experts (codegen/cuda_moe.c). */
#include "cuda_ops.h"
#include "cudacpu.h"
#include "runtime/jit.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static void test_ops(void **state)
{
    static const struct cuda_op ops[] = {
        {.op = OP_moe_route, .tol = 1e-6, .every = 2},
        {.op = OP_moe_weights, .tol = 1e-6, .every = 2},
        {.op = OP_moe_route_grad, .tol = 1e-5, .every = 2},
        {.op = OP_moe_sort, .tol = 0, .every = 2},
        {.op = OP_moe_gather, .tol = 0, .src = "1", .res = "1", .every = 5},
        {.op = OP_moe_gather_grad,
         .tol = 1e-6,
         .src = "1",
         .res = "1",
         .tol_narrow = 1e-6,
         .every = 5},
        {.op = OP_moe_combine,
         .tol = 1e-6,
         .src = "10",
         .res = "1",
         .tol_narrow = 1e-6,
         .every = 5},
        {.op = OP_moe_combine_grad,
         .tol = 1e-5,
         .src = "110",
         .res = "10",
         .tol_narrow = 1e-5,
         .every = 5},
        {.op = OP_moe_load, .tol = 0, .every = 5},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

/* ---- many experts, most of them empty; chunks of assignments; rows of several warps ---- */

static const struct ir_bind one = {1, 1};

struct sizes {
    int64_t tokens, experts, k, cols;
    bool softmax;
};

static ir_id in(struct ir_graph *g, const char *name, int64_t rows, int64_t cols)
{
    ir_type_id type = rows ? ir_type2(g, IR_f32, dim_const(rows), dim_const(cols))
                           : ir_type1(g, IR_f32, dim_const(cols));
    return ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

/* Columns of something wider. */
static ir_id columns(struct ir_graph *g, const char *name, int64_t rows, int64_t cols)
{
    return ir_slice(g, in(g, name, rows, cols + 16), 1, 8, 8 + cols);
}

static ir_id route(struct ir_graph *g, const struct sizes *s, ir_id logits)
{
    return ir_add(g, OP_moe_route, SRCS(logits, in(g, "bias", 0, s->experts)),
                  ATTRS(A_INT(k, s->k), A_STR(score, s->softmax ? "softmax" : "sigmoid"),
                        A_INT(renormalize, 1), A_NUM(scale, 2.446)),
                  NULL);
}

static void routing(struct cuda_ops *c, struct arena *a, const struct sizes *s)
{
    struct ir_graph *g = graph_open(a, "route", STAGE_K, NULL, NULL);
    ir_id x = columns(g, "logits", s->tokens, s->experts), r = route(g, s, x),
          ids = ir_get(g, r, 0);
    cuda_ops_add(c, "moe_route", s->experts, 1e-6, g, r, one);
    struct ir_attr attr[AK_COUNT];
    size_t n = ir_attrs(g, r, attr);
    ir_id w = ir_add(g, OP_moe_weights, SRCS(x, ids), attr, n, NULL);
    cuda_ops_add(c, "moe_weights", s->experts, 1e-6, g, w, one);
    ir_id dw = in(g, "dw", s->tokens, s->k);
    ir_id d = ir_add(g, OP_moe_route_grad, SRCS(x, ids, dw),
                     ATTRS(A_STR(score, s->softmax ? "softmax" : "sigmoid"), A_INT(renormalize, 1),
                           A_NUM(scale, 2.446)),
                     NULL);
    cuda_ops_add(c, "moe_route_grad", s->experts, 1e-5, g, d, one);
    ir_id sort = ir_add(g, OP_moe_sort, SRCS(ids), ATTRS(A_INT(experts, s->experts)), NULL);
    cuda_ops_add(c, "moe_sort", s->experts, 0, g, sort, one);
}

static void rows(struct cuda_ops *c, struct arena *a, const struct sizes *s)
{
    struct ir_graph *g = graph_open(a, "rows", STAGE_K, NULL, NULL);
    ir_id r = route(g, s, in(g, "logits", s->tokens, s->experts));
    ir_id w = ir_get(g, r, 1), ids = ir_get(g, r, 0);
    ir_id sort = ir_add(g, OP_moe_sort, SRCS(ids), ATTRS(A_INT(experts, s->experts)), NULL);
    ir_id order = ir_get(g, sort, 1), place = ir_get(g, sort, 2);
    ir_id x = columns(g, "x", s->tokens, s->cols);
    ir_id y = columns(g, "y", s->tokens * s->k, s->cols);
    ir_id n[] = {
        ir_add(g, OP_moe_gather, SRCS(x, order, place), ATTRS(A_INT(k, s->k)), NULL),
        ir_add(g, OP_moe_gather_grad, SRCS(y, order, place), ATTRS(A_INT(k, s->k)), NULL),
        ir_add(g, OP_moe_combine, SRCS(y, w, order, place), ATTRS(A_INT(k, s->k)), NULL),
        ir_add(g, OP_moe_combine_grad, SRCS(x, y, w, order, place), ATTRS(A_INT(k, s->k)), NULL),
    };
    static const char *const src[] = {"10", "10", "10", "010"}, *const res[] = {"0", "0", "1",
                                                                                "10"};
    for (size_t i = 0; i < sizeof n / sizeof *n; i++) {
        const char *name = op_info((enum ir_op)ir_at(g, n[i])->op)->name;
        cuda_ops_add(c, name, s->cols, 1e-5, g, n[i], one);
        cuda_ops_add_narrow(c, name, s->cols, 1e-5, src[i], res[i], g, n[i], one);
    }
}

static void test_sizes(void **state)
{
    static const struct sizes routes[] = {{1100, 300, 5, 0, false},
                                          {40, 256, 8, 0, true},
                                          {9, 1000, 2, 0, true},
                                          {3, 4096, 40, 0, false}};
    static const struct sizes moved[] = {{30, 300, 5, 264, false}, {11, 20, 3, 130, false}};
    struct cuda_ops *c = cuda_ops_open();
    struct arena *a = arena_open("sizes");
    (void)state;
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) routing(c, a, &routes[i]);
    for (size_t i = 0; i < sizeof moved / sizeof *moved; i++) rows(c, a, &moved[i]);
    cuda_ops_run(c);
    arena_close(a);
}

/* ---- the CPU's choices, bit for bit ---- */

enum { TOKENS = 200, EXPERTS = 90, SLOTS = 6 };
struct routed {
    int32_t ids[TOKENS * SLOTS];
    float weights[TOKENS * SLOTS];
};

static void on_cpu(struct arena *a, struct ir_graph *g, ir_id n, float *logits, float *bias,
                   struct routed *out)
{
    const struct cg_target t = {false};
    struct cg_lowering low = {0};
    cg_lower_node(a, g, n, one, &t, &low);
    const struct cg_step *s = &low.step.p[0];
    struct jit_kernel k = {s->symbol, s->text, NULL};
    struct jit *jit;
    struct rt_error err;
    if (jit_open(NULL, &jit, &err) || jit_load(jit, cg_cpu_prelude(), &k, 1, NULL, &err))
        fail_msg("%s", err.text);
    sa_kernel *fn;
    memcpy(&fn, &k.fn, sizeof fn);
    void *scratch = aligned_alloc(64, s->scratch), *p[] = {logits, bias, out->ids, out->weights};
    fn(p, s->num, 0, s->items, scratch);
    free(scratch);
    jit_close(jit);
}

static void on_gpu(struct arena *a, struct ir_graph *g, ir_id n, float *logits, float *bias,
                   struct routed *out)
{
    const struct cg_target t = {.sm = 90};
    struct cg_lowering low = {0};
    cg_lower_node(a, g, n, one, &t, &low);
    const struct cg_step *s = &low.step.p[0];
    const char *env = getenv("STRATA_CLANG");
    bool clang_19 = system("command -v clang-19 >/dev/null") == 0;
    struct cudacpu *cpu = cudacpu_open(env && *env ? env
                                       : clang_19  ? "clang-19"
                                                   : "clang-14",
                                       s->text.p, false);
    void *arg[6] = {&(void *){logits},       &(void *){bias}, &(void *){out->ids},
                    &(void *){out->weights}, &s->num[0],      &s->num[1]};
    const struct cudacpu_launch l = {.grid = {s->launch.grid[0], 1, 1},
                                     .block = {s->launch.threads, 1, 1},
                                     .shared = s->launch.shared};
    const char *why = cudacpu_run(cpu, s->symbol, l, arg);
    if (why) fail_msg("%s", why);
    cudacpu_close(cpu);
}

/* Logits and biases from few values, so that many choices are ties. */
static void test_same_choices(void **state)
{
    static float logits[TOKENS * EXPERTS], bias[EXPERTS];
    static struct routed cpu, gpu;
    struct arena *a = arena_open("choices");
    (void)state;
    srand(3);
    for (int i = 0; i < TOKENS * EXPERTS; i++)
        logits[i] = i / EXPERTS % 2 ? (float)(rand() % 9 - 4) / 4 : (float)rand() / 1e9f - 1;
    for (int i = 0; i < EXPERTS; i++) bias[i] = (float)(rand() % 3 - 1) / 8;
    for (int softmax = 0; softmax < 2; softmax++) {
        const struct sizes s = {TOKENS, EXPERTS, SLOTS, 0, softmax};
        struct ir_graph *g = graph_open(a, "choices", STAGE_K, NULL, NULL);
        ir_id n = route(g, &s, in(g, "logits", TOKENS, EXPERTS));
        on_cpu(a, g, n, logits, bias, &cpu);
        on_gpu(a, g, n, logits, bias, &gpu);
        assert_memory_equal(&cpu, &gpu, sizeof cpu);
    }
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops), cmocka_unit_test(test_sizes),
                                       cmocka_unit_test(test_same_choices)};
    return cmocka_run_group_tests_name("cuda_moe", tests, NULL, NULL);
}
