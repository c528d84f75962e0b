/* CUDA kernels of the delta rule (codegen/cuda_kda.c): the table of operations; gates of every size
 * against float64, relative to the largest value of each result; the same bits whatever comes
 * later, beside, and wherever a sequence is cut between chunks. */
#include "cuda_ops.h"
#include "cudacpu.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

enum { HEADS = 2, OPERANDS = 8, STATES = 3 };

static struct arena *arena;
static uint64_t seed = 1;

static void test_ops(void **state)
{
    /* Narrow forms are below too: kernels take a second to compile. */
    static const struct cuda_op ops[] = {
        {.op = OP_kda, 3e-6, .every = 37},
        {.op = OP_kda_cached, 3e-6, "11100", "10", 5e-5, .every = 31},
        {.op = OP_kda_grad, 5e-6, .every = 42},
    };
    (void)state;
    cuda_ops_check(ops, sizeof ops / sizeof *ops);
}

static double uniform(void) /* -1 .. 1 */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 40) / (1 << 23) - 1;
}

/* kda, kda_grad and kda_cached over heads of k keys and v values. */
struct ops {
    struct ir_graph *g;
    int64_t k, v;
    ir_id src[OPERANDS + 1], kda, grad, cached;
};

static const char *const names[OPERANDS + 1] = {"q",  "unit.128.k", "v",      "decay", "frac",
                                                "do", "state",      "states", "past1"};

static ir_id operand(struct ops *o, size_t i, ir_type_id type)
{
    const char *name = names[i];
    return o->src[i] = ir_add_typed(o->g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

static struct ops open_ops(int64_t k, int64_t v)
{
    struct ops o = {.g = graph_open(arena, "kda", STAGE_K, NULL, NULL), .k = k, .v = v};
    const int64_t cols[6] = {k, k, v, k, 1, v};
    const struct ir_dim rows = dim_sym(SYM_N, 1);
    for (size_t i = 0; i < 6; i++)
        operand(&o, i, ir_type2(o.g, IR_f32, rows, dim_const(HEADS * cols[i])));
    operand(&o, 6, ir_type2(o.g, IR_f32, dim_const(STATES * HEADS * k), dim_const(v)));
    for (size_t i = 7; i < 9; i++) operand(&o, i, ir_type1(o.g, IR_i32, dim_sym(SYM_B, 1)));
#define KDA_ATTRS ATTRS(A_INT(heads, HEADS), A_NUM(scale, 0.25))
    o.kda = ir_add(o.g, OP_kda, o.src, 5, KDA_ATTRS, NULL);
    o.grad = ir_add(o.g, OP_kda_grad, o.src, 6, KDA_ATTRS, NULL);
    ir_id c[OPERANDS];
    for (size_t i = 0; i < OPERANDS; i++) c[i] = o.src[i < 5 ? i : i + 1];
    o.cached = ir_add(o.g, OP_kda_cached, c, OPERANDS, KDA_ATTRS, NULL);
    return o;
}

static struct cg_lowering lower(const struct ops *o, ir_id n, struct ir_bind b)
{
    struct cg_lowering low = {0};
    const struct cg_target t = {.sm = 90};
    cg_lower_node(arena, o->g, n, b, &t, &low);
    return low;
}

/* A machine with the kernels of some nodes. */
static struct cudacpu *machine(const struct ops *o, const ir_id *n, const int64_t *T, size_t count)
{
    struct sb text = {0};
    struct map have;
    map_init(&have, arena);
    for (size_t i = 0; i < count; i++) {
        struct cg_lowering low = lower(o, n[i], (struct ir_bind){1, T[i]});
        for (size_t k = 0; k < low.step.n; k++) {
            if ((*map_str(&have, str_of(low.step.p[k].symbol)))++) continue;
            sb_add(&text, low.step.p[k].text.p, low.step.p[k].text.n);
            sb_char(&text, '\n');
        }
    }
    const char *env = getenv("STRATA_CLANG");
    bool newer = system("command -v clang-19 >/dev/null") == 0;
    const char *compiler = env && *env ? env : newer ? "clang-19" : "clang-14";
    struct cudacpu *cpu = cudacpu_open(compiler, text.p, false);
    sb_free(&text);
    return cpu;
}

/* Runs the steps of node n; src and res are memory of cudacpu_alloc. */
static void run(struct cudacpu *cpu, const struct ops *o, ir_id n, struct ir_bind b,
                void *const *src, void *const *res)
{
    struct cg_lowering low = lower(o, n, b);
    char *work = cudacpu_alloc(low.workspace + 1);
    for (size_t i = 0; i < low.step.n; i++) {
        const struct cg_step *s = &low.step.p[i];
        uint64_t p[64];
        CHECK(s->nref + s->nnum <= 64);
        for (size_t k = 0; k < s->nref; k++) {
            struct cg_ref r = s->ref[k];
            char *base = r.kind == CG_SRC ? src[r.index] : r.kind == CG_RES ? res[r.index] : work;
            p[k] = (uint64_t)(uintptr_t)(base + r.offset);
        }
        memcpy(p + s->nref, s->num, s->nnum * sizeof *p);
        const struct cudacpu_launch l = {
            .grid = {s->launch.grid[0], s->launch.grid[1], s->launch.grid[2]},
            .block = {s->launch.threads, 1, 1},
            .shared = s->launch.shared,
        };
        const char *why = cudacpu_run_packed(cpu, s->symbol, l, p);
        if (why) fail_msg("%s", why);
    }
    cudacpu_free(work);
}

enum gates { MILD, STRONG, WEAK, ALTERNATE, MIXED, GATES };

static double gate(enum gates kind, int64_t token)
{
    double u = uniform();
    switch (kind) {
    case MILD: return -0.2 * fabs(u);
    case STRONG: return -50 + u;
    case WEAK: return -1e-6 * fabs(u);
    case ALTERNATE: return token % 2 ? -50 : -1e-4;
    default: return u > 0 ? -50 : u > -0.5 ? 0 : -8 * fabs(uniform());
    }
}

static int64_t elements(const struct ops *o, ir_id n, struct ir_bind b)
{
    return type_count(o->g->types, ir_at(o->g, n)->type, b);
}

/* q, k, v, g, beta, do: keys and queries of length 1, beta in 0 .. 1. */
static void fill(const struct ops *o, struct ir_bind b, enum gates kind, float **x)
{
    for (size_t i = 0; i < 6; i++) {
        int64_t n = elements(o, o->src[i], b);
        x[i] = cudacpu_alloc((size_t)n * sizeof **x);
        for (int64_t j = 0; j < n; j++)
            x[i][j] = (float)(i == 3   ? gate(kind, j / (HEADS * o->k))
                              : i == 4 ? (1 + uniform()) / 2
                                       : uniform());
        for (int64_t r = 0; i < 2 && r < n / o->k; r++) {
            double sum = 0;
            for (int64_t j = 0; j < o->k; j++) sum += pow((double)x[i][r * o->k + j], 2);
            for (int64_t j = 0; j < o->k; j++) x[i][r * o->k + j] /= (float)sqrt(sum);
        }
    }
}

static void release(float **x, size_t n)
{
    for (size_t i = 0; i < n; i++) cudacpu_free(x[i]);
}

static struct ir_values in_float64(const struct ops *o, struct ir_bind b, float **x)
{
    struct ir_named in[OPERANDS + 1];
    for (size_t i = 0; i < OPERANDS + 1; i++) {
        int64_t n = elements(o, o->src[i], b);
        double *v = NEW(arena, double, (size_t)n);
        for (int64_t j = 0; j < n && i < 6; j++) v[j] = (double)x[i][j];
        in[i] = (struct ir_named){names[i], v, n};
    }
    return ir_eval(arena, o->g, b, in, OPERANDS + 1);
}

/* Results within `tol` of the largest element of each, where each is multiplied by `weight`. */
static void compare(struct ir_array want, const float *got, const float *weight, const char *what)
{
    const double tol = 5e-6;
    double most = 0, worst = 0;
    for (int64_t j = 0; j < want.n; j++) {
        double w = weight ? fabs((double)weight[j]) : 1;
        double off = fabs((double)got[j] - want.v[j]) * w;
        if (!(off <= worst)) worst = off;
        most = fmax(most, fabs(want.v[j]) * w);
    }
    if (!(worst <= tol * most)) fail_msg("%s is off by %g of %g", what, worst, most);
}

static void check(struct cudacpu *cpu, const struct ops *o, ir_id n, struct ir_bind b,
                  struct ir_values all, float **x, enum gates kind)
{
    struct ir_value want = all.node[n];
    float *got[5] = {0};
    for (uint32_t r = 0; r < want.count; r++)
        got[r] = cudacpu_alloc((size_t)want.e[r].n * sizeof **got);
    run(cpu, o, n, b, (void **)x, (void **)got);
    for (uint32_t r = 0; r < want.count; r++) {
        const char *what = str_fmt(arena, "%s K %d V %d T %d gates %d: result %u",
                                   op_info((enum ir_op)ir_at(o->g, n)->op)->name, (int)o->k,
                                   (int)o->v, (int)b.T, (int)kind, r);
        compare(want.e[r], got[r], NULL, what);
        /* Gradients of gates times gates, as what makes the gates sees them, are as right. */
        if (n == o->grad && r == 3) compare(want.e[r], got[r], x[3], what);
    }
    release(got, want.count);
}

static void gates_of_every_size(void **state)
{
    static const int64_t sizes[][2] = {{5, 7}, {37, 50}, {128, 128}};
    static const int64_t lengths[] = {1, 17, 64, 130};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const bool large = sizes[i][0] >= 64;
        const struct ops o = open_ops(sizes[i][0], sizes[i][1]);
        struct cudacpu *cpu =
            machine(&o, (const ir_id[]){o.kda, o.grad}, (const int64_t[]){64, 64}, 2);
        for (int kind = 0; kind < GATES; kind++)
            for (size_t j = 0; j < sizeof lengths / sizeof *lengths; j++) {
                if (large && (kind % 2 == 0 || lengths[j] != 17)) continue;
                const struct ir_bind b = {1, lengths[j]};
                float *x[6];
                fill(&o, b, (enum gates)kind, x);
                struct ir_values want = in_float64(&o, b, x);
                check(cpu, &o, o.kda, b, want, x, (enum gates)kind);
                check(cpu, &o, o.grad, b, want, x, (enum gates)kind);
                release(x, 6);
            }
        cudacpu_close(cpu);
    }
}

/* Of two sequences, one alone, and a part of it, and what comes later changed: the same bits. */
static void rows_see_nothing_else(void **state)
{
    enum { K = 20, V = 33, T = 50, PART = 23 };
    const struct ops o = open_ops(K, V);
    const struct ir_bind two = {2, T}, alone = {1, T}, part = {1, PART};
    const size_t bytes = (size_t)T * HEADS * V * sizeof(float);
    struct cudacpu *cpu = machine(&o, &o.kda, (const int64_t[]){T}, 1);
    float *x[6], *second[5], *y[4];
    (void)state;
    fill(&o, two, MIXED, x);
    for (int i = 0; i < 4; i++) y[i] = cudacpu_alloc(2 * bytes);
    for (size_t i = 0; i < 5; i++) second[i] = x[i] + elements(&o, o.src[i], alone);
    run(cpu, &o, o.kda, two, (void **)x, (void *[]){y[0]});
    run(cpu, &o, o.kda, alone, (void **)second, (void *[]){y[1]});
    assert_memory_equal((char *)y[0] + bytes, y[1], bytes);
    run(cpu, &o, o.kda, part, (void **)second, (void *[]){y[2]});
    for (size_t i = 0; i < 5; i++)
        for (int64_t j = elements(&o, o.src[i], part); j < elements(&o, o.src[i], alone); j++)
            second[i][j] *= 0.7f;
    run(cpu, &o, o.kda, alone, (void **)second, (void *[]){y[3]});
    assert_memory_equal(y[1], y[2], bytes / T * PART);
    assert_memory_equal(y[1], y[3], bytes / T * PART);
    assert_memory_not_equal(y[1], y[3], bytes);
    release(x, 6);
    release(y, 4);
    cudacpu_close(cpu);
}

static void near(const float *got, const float *want, int64_t n, bool same, const char *what)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)want[i]));
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)(got[i] - want[i])) <= (same ? 0 : 1e-5 * most)))
            fail_msg("%s: element %d is %.9g, in one piece %.9g", what, (int)i, (double)got[i],
                     (double)want[i]);
}

/* Rows `from` to `to` of one sequence over state 1. */
static void rows(struct cudacpu *cpu, const struct ops *o, float **x, float *kept, float *y,
                 int64_t from, int64_t to)
{
    int32_t *which = cudacpu_alloc(4), *past = cudacpu_alloc(4);
    void *src[OPERANDS] = {[5] = kept, [6] = which, [7] = past};
    *which = 1, *past = (int32_t)from;
    for (size_t i = 0; i < 5; i++) src[i] = x[i] + from * ir_cols(o->g, o->src[i]).add;
    run(cpu, o, o->cached, (struct ir_bind){1, to - from}, src,
        (void *[]){y + from * HEADS * o->v, kept});
    cudacpu_free(which);
    cudacpu_free(past);
}

static void over_a_state(void **state)
{
    enum { T = 50 };
    static const int64_t cuts[] = {1, 15, 16, 17, 32, 47, 49};
    const struct ops o = open_ops(37, 50);
    const int64_t each = HEADS * o.k * o.v, n = T * HEADS * o.v;
    const ir_id nodes[] = {o.kda, o.cached, o.cached};
    struct cudacpu *cpu = machine(&o, nodes, (const int64_t[]){T, T, 1}, 3);
    float *x[6], *y[4]; /* rows and state in one piece, in two */
    (void)state;
    fill(&o, (struct ir_bind){1, T}, MILD, x);
    for (int i = 0; i < 4; i++)
        y[i] = cudacpu_alloc((size_t)(i % 2 ? STATES * each : n) * sizeof(float));
    run(cpu, &o, o.kda, (struct ir_bind){1, T}, (void **)x, (void *[]){y[2]});
    rows(cpu, &o, x, y[1], y[0], 0, T);
    near(y[0], y[2], n, true, "over a state");
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        const char *what = str_fmt(arena, "cut at %d", (int)cuts[i]);
        rows(cpu, &o, x, y[3], y[2], 0, cuts[i]);
        rows(cpu, &o, x, y[3], y[2], cuts[i], T);
        near(y[2], y[0], n, cuts[i] % 16 == 0, what);
        near(y[3] + each, y[1] + each, each, cuts[i] % 16 == 0, what);
    }
    for (int64_t t = 0; t < T; t++) rows(cpu, &o, x, y[3], y[2], t, t + 1);
    near(y[2], y[0], n, false, "token by token");
    near(y[3] + each, y[1] + each, each, false, "token by token");
    for (int64_t i = 0; i < STATES * each; i++)
        if (i / each != 1) assert_true(isnan(y[3][i]));
    release(x, 6);
    release(y, 4);
    cudacpu_close(cpu);
}

/* Heads of 128, as the released models have: every access checked, and what NVRTC makes of it. */
static void heads_of_128(void **state)
{
    struct cuda_ops *c = cuda_ops_open();
    const struct ops o = open_ops(128, 128);
    const struct ir_bind b = {1, 18};
    (void)state;
    cuda_ops_add(c, "kda", 128, 3e-6, o.g, o.kda, b);
    cuda_ops_add(c, "kda_grad", 128, 3e-5, o.g, o.grad, b);
    cuda_ops_add_narrow(c, "kda", 128, 1e-4, "11100", "1", o.g, o.kda, b);
    cuda_ops_add_narrow(c, "kda_grad", 128, 1e-2, "111001", "11100", o.g, o.grad, b);
    cuda_ops_run(c);
}

static int set_up(void **state)
{
    (void)state;
    arena = arena_open("test_cuda_kda");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    arena_close(arena);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops),
        cmocka_unit_test(gates_of_every_size),
        cmocka_unit_test(rows_see_nothing_else),
        cmocka_unit_test(over_a_state),
        cmocka_unit_test(heads_of_128),
    };
    return cmocka_run_group_tests_name("cuda_kda", tests, set_up, tear_down);
}
