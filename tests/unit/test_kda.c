/* The kernels of KDA where the table of operations does not reach: gates of every size against
 * float64 relative to the largest value of each result, bits that depend on no later token,
 * sequences in pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "abi.h"
#include "codegen/kernel.h"
#include "eval.h"
#include "runtime/jit.h"
#include <math.h>
#include <stdlib.h>

enum { HEADS = 2, OPERANDS = 9 };

static struct arena *arena;
static struct jit *jit;
static uint64_t seed = 1;

static double uniform(void) /* -1 .. 1 */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 40) / (1 << 23) - 1;
}

/* A graph of one operation whose operands are inputs x0, x1 ... */
struct one {
    struct ir_graph *g;
    ir_id n;
    ir_id src[OPERANDS];
};

static ir_id operand(struct one *o, size_t i, ir_type_id type)
{
    const char *name = str_fmt(arena, "x%zu", i);
    return o->src[i] = ir_add_typed(o->g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

static ir_type_id tokens(struct one *o, int64_t cols)
{
    return ir_type2(o->g, IR_f32, dim_sym(SYM_N, 1), dim_const(cols));
}

/* q, k, v, g, beta of HEADS heads. */
static struct one open_kda(int64_t k, int64_t v)
{
    struct one o = {.g = graph_open(arena, "kda", STAGE_K, NULL, NULL)};
    for (size_t i = 0; i < 5; i++)
        operand(&o, i, tokens(&o, i == 2 ? HEADS * v : i == 4 ? HEADS : HEADS * k));
    return o;
}

static void close_op(struct one *o, enum ir_op op, size_t n)
{
    o->n = ir_add(o->g, op, o->src, n, ATTRS(A_INT(heads, HEADS), A_NUM(scale, 0.25)), NULL);
}

/* Runs the steps of the operation on buffers of operands and results. */
static void launch(const struct one *o, struct ir_bind b, void *const *src, void *const *res)
{
    struct cg_lowering low = {0};
    const struct cg_target t = {false};
    struct rt_error err = {{0}};
    cg_lower_node(arena, o->g, o->n, b, &t, &low);
    assert_int_equal(low.step.n, 1);
    const struct cg_step *s = &low.step.p[0];
    struct jit_kernel k = {s->symbol, s->text, NULL};
    assert_int_equal(jit_load(jit, cg_cpu_prelude(), &k, 1, NULL, &err), RT_ok);
    void *p[2 * OPERANDS];
    for (size_t i = 0; i < s->nref; i++)
        p[i] = s->ref[i].kind == CG_SRC ? src[s->ref[i].index] : res[s->ref[i].index];
    size_t bytes = (s->scratch + 63) / 64 * 64;
    void *scratch = aligned_alloc(64, bytes ? bytes : 64);
    memset(scratch, 0xff, bytes);
    sa_kernel *fn;
    memcpy(&fn, &k.fn, sizeof fn);
    fn(p, s->num, 0, s->items, scratch);
    free(scratch);
}

static int64_t elements(const struct one *o, ir_type_id t, struct ir_bind b)
{
    return type_count(o->g->types, t, b);
}

static float *room(int64_t n)
{
    float *x = arena_alloc(arena, (size_t)n * sizeof *x, 64, STRATA_SITE);
    for (int64_t i = 0; i < n; i++) x[i] = nanf("");
    return x;
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

/* Float32 values of the operands: keys and queries of length 1, beta in 0 .. 1. */
static void fill(const struct one *o, size_t nsrc, int64_t k, struct ir_bind b, enum gates kind,
                 float **x)
{
    for (size_t i = 0; i < nsrc; i++) {
        int64_t n = elements(o, ir_at(o->g, o->src[i])->type, b);
        x[i] = room(n);
        for (int64_t j = 0; j < n; j++)
            x[i][j] = (float)(i == 3   ? gate(kind, j / (HEADS * k))
                              : i == 4 ? (1 + uniform()) / 2
                                       : uniform());
        for (int64_t r = 0; i < 2 && r < n / k; r++) {
            double sum = 0;
            for (int64_t j = 0; j < k; j++) sum += (double)(x[i][r * k + j] * x[i][r * k + j]);
            for (int64_t j = 0; j < k; j++) x[i][r * k + j] /= (float)sqrt(sum);
        }
    }
}

static struct ir_value in_float64(const struct one *o, size_t nsrc, struct ir_bind b, float **x)
{
    struct ir_named in[OPERANDS];
    for (size_t i = 0; i < nsrc; i++) {
        int64_t n = elements(o, ir_at(o->g, o->src[i])->type, b);
        double *v = NEW(arena, double, (size_t)n);
        for (int64_t j = 0; j < n; j++) v[j] = (double)x[i][j];
        in[i] = (struct ir_named){str_fmt(arena, "x%zu", i), v, n};
    }
    return ir_eval(arena, o->g, b, in, nsrc).node[o->n];
}

/* Results within `tol` of the largest element of each. */
static void compare(struct ir_value want, void *const *got, double tol, const char *what)
{
    for (uint32_t i = 0; i < want.count; i++) {
        double most = 0, worst = 0;
        for (int64_t j = 0; j < want.e[i].n; j++) {
            double off = fabs((double)((float *)got[i])[j] - want.e[i].v[j]);
            if (!(off <= worst)) worst = off;
            most = fmax(most, fabs(want.e[i].v[j]));
        }
        if (!(worst <= tol * most))
            fail_msg("%s: result %u is off by %g of %g", what, i, worst, most);
    }
}

/* Gradients of gates times gates, as what makes the gates sees them, are as right: where a gate is
 * -50 its gradient is as small as the decay. */
static void compare_gates(const float *g, struct ir_array want, const float *got, const char *what)
{
    double most = 0, worst = 0;
    for (int64_t j = 0; j < want.n; j++) {
        double off = fabs(((double)got[j] - want.v[j]) * (double)g[j]);
        if (!(off <= worst)) worst = off;
        most = fmax(most, fabs(want.v[j] * (double)g[j]));
    }
    if (!(worst <= 5e-6 * most)) fail_msg("%s: g dg is off by %g of %g", what, worst, most);
}

/* The operation over `nsrc` operands, all gates and lengths. */
static void check_sizes(enum ir_op op, size_t nsrc, int64_t k, int64_t v)
{
    static const int64_t lengths[] = {1, 15, 16, 17, 63, 64, 65, 130};
    for (int kind = 0; kind < GATES; kind++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            const struct ir_bind b = {2, lengths[i]};
            struct one o = open_kda(k, v);
            if (nsrc > 5) operand(&o, 5, tokens(&o, HEADS * v));
            close_op(&o, op, nsrc);
            float *x[OPERANDS];
            void *got[OPERANDS];
            fill(&o, nsrc, k, b, (enum gates)kind, x);
            struct ir_value want = in_float64(&o, nsrc, b, x);
            for (uint32_t r = 0; r < want.count; r++) got[r] = room(want.e[r].n);
            launch(&o, b, (void **)x, got);
            const char *what = str_fmt(arena, "%s K %d V %d T %d gates %d", op_info(op)->name,
                                       (int)k, (int)v, (int)b.T, kind);
            compare(want, got, 5e-6, what);
            if (nsrc > 5) compare_gates(x[3], want.e[3], got[3], what);
        }
}

static void gates_of_every_size(void **state)
{
    (void)state;
    check_sizes(OP_kda, 5, 32, 32);
    check_sizes(OP_kda, 5, 5, 7);
    check_sizes(OP_kda, 5, 37, 50);
    check_sizes(OP_kda_grad, 6, 32, 32);
    check_sizes(OP_kda_grad, 6, 5, 7);
    check_sizes(OP_kda_grad, 6, 37, 50);
}

/* Whatever comes later, be it no number at all, a row keeps its bits. */
static void rows_see_nothing_later(void **state)
{
    (void)state;
    enum { K = 20, V = 33, T = 50 };
    for (int64_t less = 1; less < T; less++) {
        struct one o = open_kda(K, V);
        close_op(&o, OP_kda, 5);
        const struct ir_bind b = {1, T}, part = {1, less};
        float *x[OPERANDS], *all = room(T * HEADS * V), *prefix = room(less * HEADS * V);
        fill(&o, 5, K, b, MIXED, x);
        launch(&o, part, (void **)x, (void *[]){prefix});
        for (size_t i = 0; i < 5; i++) {
            int64_t n = elements(&o, ir_at(o.g, o.src[i])->type, b);
            for (int64_t j = n / T * less; j < n; j++) x[i][j] = nanf("");
        }
        launch(&o, b, (void **)x, (void *[]){all});
        assert_memory_equal(all, prefix, (size_t)less * HEADS * V * sizeof *all);
        assert_true(isnan(all[less * HEADS * V]));
    }
}

/* ---- sequences in pieces, over a state ---- */

enum { STATES = 3, STATE = 1 };

static ir_id sequences(struct one *o, size_t i)
{
    return operand(o, i, ir_type1(o->g, IR_i32, dim_sym(SYM_B, 1)));
}

/* Rows `from` to `to` of one sequence; operands 0 .. ntoken-1 have a row for every token, then come
 * those of src, with states and past at their end. out[0] has all rows too, out[1] is the state. */
static void run_rows(const struct one *o, size_t ntoken, float *const *x, size_t nsrc,
                     float *const *rest, int64_t from, int64_t to, float *const *out)
{
    const struct ir_bind b = {1, to - from};
    int32_t which = STATE, past = (int32_t)from;
    void *src[OPERANDS];
    for (size_t i = 0; i < ntoken; i++) src[i] = x[i] + from * ir_cols(o->g, o->src[i]).add;
    for (size_t i = 0; i < nsrc; i++) src[ntoken + i] = rest[i];
    src[ntoken + nsrc] = &which;
    src[ntoken + nsrc + 1] = &past;
    const struct ir_type *t = ir_ty(o->g, o->n);
    const struct ir_type *y =
        type_get(o->g->types, type_elem(o->g->types, ir_at(o->g, o->n)->type, 0));
    assert_int_equal(t->dtype, IR_tuple);
    launch(o, b, src, (void *[]){out[0] + from * y->dim[1].add, out[1]});
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

/* The state of all but one stays as it was: NaN. */
static void others_untouched(const float *state, int64_t each)
{
    for (int64_t i = 0; i < STATES * each; i++)
        if (i / each != STATE) assert_true(isnan(state[i]));
}

static void kda_in_pieces(int64_t k, int64_t v, int64_t T, enum gates kind)
{
    const struct ir_bind b = {1, T};
    const int64_t width = HEADS * v, each = HEADS * k * v;
    struct one whole = open_kda(k, v), o = open_kda(k, v);
    close_op(&whole, OP_kda, 5);
    operand(&o, 5, ir_type2(o.g, IR_f32, dim_const(STATES * HEADS * k), dim_const(v)));
    sequences(&o, 6);
    sequences(&o, 7);
    close_op(&o, OP_kda_cached, 8);
    float *x[OPERANDS], *want = room(T * width), *state = room(STATES * each);
    float *got = room(T * width), *after = room(STATES * each);
    fill(&o, 5, k, b, kind, x);
    launch(&whole, b, (void **)x, (void *[]){want});
    run_rows(&o, 5, x, 1, &state, 0, T, (float *[]){got, state});
    assert_memory_equal(got, want, (size_t)(T * width) * sizeof *got);
    for (int64_t cut = 1; cut < T;
         cut++) { /* from whole chunks on, also for one token: same bits */
        const char *what =
            str_fmt(arena, "kda K %d V %d gates %d cut at %d", (int)k, (int)v, (int)kind, (int)cut);
        for (int64_t i = 0; i < STATES * each; i++) after[i] = nanf("");
        run_rows(&o, 5, x, 1, &after, 0, cut, (float *[]){got, after});
        run_rows(&o, 5, x, 1, &after, cut, T, (float *[]){got, after});
        near(got, want, T * width, cut % 16 == 0, what);
        near(after + STATE * each, state + STATE * each, each, cut % 16 == 0, what);
        others_untouched(after, each);
    }
    for (int64_t t = 0; t < T; t++)
        run_rows(&o, 5, x, 1, &after, t, t + 1, (float *[]){got, after});
    near(got, want, T * width, false, "kda token by token");
    near(after + STATE * each, state + STATE * each, each, false, "kda token by token");
}

static void kda_over_a_state(void **state)
{
    (void)state;
    kda_in_pieces(32, 32, 65, MILD);
    kda_in_pieces(5, 7, 70, MIXED);
    kda_in_pieces(37, 150, 49, WEAK);
    kda_in_pieces(16, 48, 38, ALTERNATE);
}

/* A convolution's rows are the same wherever the sequence is cut. */
static void conv_over_a_state(void **state)
{
    (void)state;
    enum { T = 12, C = 83, J = 4, EACH = (J - 1) * C };
    struct one whole = {.g = graph_open(arena, "conv", STAGE_K, NULL, NULL)};
    struct one o = {.g = graph_open(arena, "conv", STAGE_K, NULL, NULL)};
    for (int i = 0; i < 2; i++) {
        struct one *g = i ? &o : &whole;
        operand(g, 0, tokens(g, C));
        operand(g, 1, ir_type2(g->g, IR_f32, dim_const(C), dim_const(J)));
    }
    whole.n = ir_add(whole.g, OP_short_conv, whole.src, 2, NO_ATTRS, NULL);
    operand(&o, 2, ir_type2(o.g, IR_f32, dim_const(STATES * (J - 1)), dim_const(C)));
    sequences(&o, 3);
    sequences(&o, 4);
    o.n = ir_add(o.g, OP_conv_cached, o.src, 5, NO_ATTRS, NULL);
    float *x = room(T * C), *w = room(C * J), *want = room(T * C), *got = room(T * C);
    for (int64_t i = 0; i < T * C; i++) x[i] = (float)uniform();
    for (int64_t i = 0; i < C * J; i++) w[i] = (float)uniform();
    launch(&whole, (struct ir_bind){1, T}, (void *[]){x, w}, (void *[]){want});
    for (int64_t cut = 0; cut < T; cut++) {
        float *kept = room(STATES * EACH), *rest[] = {w, kept}, *out[] = {got, kept};
        if (cut) run_rows(&o, 1, &x, 2, rest, 0, cut, out);
        run_rows(&o, 1, &x, 2, rest, cut, T, out);
        assert_memory_equal(got, want, T * C * sizeof *got);
        assert_memory_equal(kept + STATE * EACH, x + (T - J + 1) * C, EACH * sizeof *got);
        others_untouched(kept, EACH);
    }
}

static int set_up(void **state)
{
    (void)state;
    struct rt_error err = {{0}};
    arena = arena_open("test_kda");
    return jit_open(NULL, &jit, &err) ? 1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    jit_close(jit);
    arena_close(arena);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gates_of_every_size),
        cmocka_unit_test(rows_see_nothing_later),
        cmocka_unit_test(kda_over_a_state),
        cmocka_unit_test(conv_over_a_state),
    };
    return cmocka_run_group_tests_name("kda", tests, set_up, tear_down);
}
