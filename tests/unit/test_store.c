/* Weights in panels: products and embeddings of every storage under both arithmetics against the
 * evaluator, at odd sizes, on the native CPU and on x86-64-v3; a row alone has the bits it has
 * among others; the image in memory is the one of the stream; whole models of the fixtures. */
#include "compiled.h"
#include "compiler/pack.h"
#include "eval.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

static struct rt_error err;
#define OK(expr)                                                  \
    do {                                                          \
        if ((expr) != RT_ok) fail_msg("%s: %s", #expr, err.text); \
    } while (0)

enum { MOST_ROWS = 100 };
struct form {
    enum ir_store store;
    bool bf16;
};
static const struct form forms[] = {{STORE_f32, false},
                                    {STORE_bf16, false},
                                    {STORE_i8, false},
                                    {STORE_bf16, true},
                                    {STORE_i8, true}};
enum { FORMS = sizeof forms / sizeof *forms };

/* One weight [E,N,K] (E = 0: [N,K]), a product with it and, of a matrix, rows of it. */
struct ops {
    struct arena *a;
    struct form form;
    int64_t E, N, K;
    struct params ps;
    float *w;
    struct ir_graph *g;
    struct session *s;
    struct program *p;
};

static float draw(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(*seed >> 40) / (1 << 23) - 1.0);
}

static ir_id input(struct ops *o, ir_type_id t, const char *name)
{
    return ir_add_typed(o->g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, name)), name);
}

static void make_params(struct ops *o)
{
    struct arena *a = o->a;
    struct param *p = o->ps.p = NEW(a, struct param, 1);
    struct param_part *q = p->part = NEW(a, struct param_part, 1);
    *p = (struct param){.name = "w", .part = q, .num_parts = 1, .rank = o->E ? 3 : 2};
    p->count = (o->E ? o->E : 1) * o->N * o->K;
    *q = (struct param_part){.tensor = "w", .dim = {p->count / o->K, o->K}, .rank = 2};
    o->ps.n = 1;
    map_init(&o->ps.by_name, a);
    *map_str(&o->ps.by_name, str_of("w")) = 1;
    o->w = NEW(a, float, p->count);
    uint64_t seed = 5;
    for (int64_t i = 0; i < p->count; i++) o->w[i] = draw(&seed);
    for (int64_t i = 0; o->N > 2 && i < o->K; i++) o->w[o->K + i] = 0; /* a row of zeros */
}

static void make_graph(struct ops *o)
{
    struct ir_graph *g = o->g = graph_open(o->a, "ops", STAGE_T, NULL, NULL);
    struct ir_dim dim[] = {dim_const(o->E), dim_const(o->N), dim_const(o->K)},
                  n = dim_sym(SYM_N, 1);
    ir_type_id wt =
        o->E ? type_add(g->types, IR_f32, 3, dim) : type_add(g->types, IR_f32, 2, dim + 1);
    const struct ir_attr attr[] = {A_STR(name, "w"), A_STR(store, store_word(o->form.store))};
    ir_id w = ir_add_typed(g, OP_param, wt, NO_SRCS, attr, 2, "w");
    ir_id x = input(o, ir_type2(g, IR_f32, n, dim_const(o->K)), "x");
    if (o->E) {
        ir_id off = input(o, ir_type1(g, IR_i32, dim_const(o->E + 1)), "off");
        ir_output(g, "y",
                  ir_add(g, OP_grouped_matmul, SRCS(x, w, off),
                         ATTRS(A_INT(tb, 1), A_INT(bf16, o->form.bf16)), NULL));
    } else {
        ir_output(g, "y", ir_matmul_as(g, x, w, false, true, o->form.bf16, NULL));
        ir_id ids = input(o, type_add(g->types, IR_i32, 1, &n), "ids");
        ir_output(g, "e", ir_add(g, OP_embed, SRCS(w, ids), NO_ATTRS, NULL));
    }
    const char *why = graph_verify(g, STAGE_T);
    if (why) fail_msg("%s", why);
}

static const int64_t rows_of[] = {1, 2, 5, 6, 7, 13, 16, 48, 49, 70, MOST_ROWS};
enum { CASES = sizeof rows_of / sizeof *rows_of };

static void ops_open(struct ops *o, struct form form, int64_t E, int64_t N, int64_t K,
                     const char *cpu)
{
    *o = (struct ops){.a = arena_open("ops"), .form = form, .E = E, .N = N, .K = K};
    make_params(o);
    make_graph(o);
    const struct session_options so = {.cpu = cpu, .threads = 2, .diag = diag_open(o->a)};
    OK(session_open(&so, &o->s, &err));
    o->p = program_open(o->s, o->g, "ops", (struct ir_bind){1, 1});
    assert_non_null(o->p);
    for (size_t i = 0; i < CASES; i++) program_plan(o->p, rows_of[i], 1);
    OK(session_compile(o->s, NULL, &err));
    size_t n;
    const struct layout_stored *items = session_stored(o->s, &n);
    assert_int_equal(n, 1);
    float *memory[] = {o->w};
    struct pack *from = pack_memory(&o->ps, memory);
    OK(weights_pack(from, items, n, session_weights(o->s), session_pool(o->s), &err));
    pack_close(from);
}

static void ops_close(struct ops *o)
{
    session_close(o->s);
    arena_close(o->a);
}

/* Rows from..from+rows-1 of x and ids (row m is a function of m). */
static const float *run(struct ops *o, int64_t from, int64_t rows, const int32_t *off,
                        const float **e)
{
    struct plan *p = program_plan(o->p, rows, 1);
    float *x = plan_value(p, "x")->p;
    for (int64_t m = 0; m < rows; m++) {
        uint64_t seed = (uint64_t)(from + m) * 977 + 3;
        for (int64_t k = 0; k < o->K; k++) x[m * o->K + k] = draw(&seed);
    }
    if (off) memcpy(plan_value(p, "off")->p, off, (size_t)(o->E + 1) * 4);
    const struct plan_value *ids = plan_value(p, "ids");
    for (int64_t m = 0; ids && m < rows; m++)
        ((int32_t *)ids->p)[m] = (int32_t)((from + m) * 7 % (o->N + 1)) - 1;
    plan_run(p);
    if (e) *e = plan_value(p, "e") ? plan_value(p, "e")->p : NULL;
    return plan_value(p, "y")->p;
}

static double *doubles(struct arena *a, const struct plan_value *v)
{
    double *d = NEW(a, double, v->count);
    for (int64_t i = 0; i < v->count; i++)
        d[i] = v->dtype == SA_i32 ? ((const int32_t *)v->p)[i] : (double)((const float *)v->p)[i];
    return d;
}

static void close_to(const struct ops *o, const char *what, const struct plan_value *got,
                     struct ir_array want)
{
    double most = 1e-3;
    assert_int_equal(got->count, want.n);
    for (int64_t i = 0; i < want.n; i++) most = fmax(most, fabs(want.v[i]));
    for (int64_t i = 0; i < want.n; i++)
        if (!(fabs((double)((const float *)got->p)[i] - want.v[i]) <= 1e-5 * most))
            fail_msg("%s of %s, bf16 %d, %lld x %lld x %lld: element %lld is %.9g, not %.9g", what,
                     store_word(o->form.store), o->form.bf16, (long long)o->E, (long long)o->N,
                     (long long)o->K, (long long)i, (double)((const float *)got->p)[i], want.v[i]);
}

/* The last run of `rows` rows against the evaluator. */
static void check(struct ops *o, int64_t rows)
{
    struct arena *a = arena_open("check");
    struct plan *p = program_plan(o->p, rows, 1);
    VEC(struct ir_named) in = {0};
    double *w = NEW(a, double, o->ps.p[0].count);
    for (int64_t i = 0; i < o->ps.p[0].count; i++) w[i] = (double)o->w[i];
    vec_push(a, &in, ((struct ir_named){"w", w, o->ps.p[0].count}));
    static const char *const name[] = {"x", "ids", "off"};
    for (int i = 0; i < 3; i++) {
        const struct plan_value *v = plan_value(p, name[i]);
        if (v) vec_push(a, &in, ((struct ir_named){name[i], doubles(a, v), v->count}));
    }
    struct ir_values v = ir_eval(a, o->g, (struct ir_bind){rows, 1}, in.p, in.n);
    close_to(o, "the product", plan_value(p, "y"), ir_eval_output(&v, "y"));
    if (!o->E) close_to(o, "the embedding", plan_value(p, "e"), ir_eval_output(&v, "e"));
    arena_close(a);
}

static void matrices(const char *cpu)
{
    static const int64_t sizes[][2] = {{1, 1},   {17, 15},    {16, 64},
                                       {70, 33}, {130, 1201}, {64, 2306}};
    for (int f = 0; f < FORMS; f++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            struct ops o;
            ops_open(&o, forms[f], 0, sizes[i][0], sizes[i][1], cpu);
            const float *e;
            size_t row = (size_t)o.N * sizeof(float);
            float *all = NEW(o.a, float, MOST_ROWS *o.N);
            memcpy(all, run(&o, 0, MOST_ROWS, NULL, &e), MOST_ROWS * row);
            check(&o, MOST_ROWS);
            for (size_t c = 0; c + 1 < CASES; c++) { /* alone, and in every kind of company */
                int64_t rows = rows_of[c], from = (MOST_ROWS - rows) / 2;
                assert_memory_equal(run(&o, from, rows, NULL, NULL), all + from * o.N,
                                    (size_t)rows * row);
                if (rows == 1 || rows == 7) check(&o, rows);
            }
            ops_close(&o);
        }
}

static void test_native(void **state)
{
    (void)state;
    matrices("native");
}

static void test_v3(void **state)
{
    (void)state;
    matrices("x86-64-v3");
}

/* Experts, some without rows. */
static void test_grouped(void **state)
{
    (void)state;
    static const int32_t off[][6] = {{0, 0, 30, 31, 31, 49}, {0, 49, 49, 49, 49, 49}};
    static const int32_t one[] = {0, 0, 1, 1, 1, 1};
    for (int f = 0; f < FORMS; f++)
        for (int i = 0; i < 2; i++) {
            struct ops o;
            ops_open(&o, forms[f], 5, i ? 70 : 24, i ? 33 : 50, i ? "x86-64-v3" : "native");
            float *all = NEW(o.a, float, 49 * o.N);
            memcpy(all, run(&o, 0, 49, off[i], NULL), 49 * (size_t)o.N * sizeof(float));
            check(&o, 49);
            if (!i) { /* row 9 is one of expert 1 */
                const float *y = run(&o, 9, 1, one, NULL);
                assert_memory_equal(y, all + 9 * o.N, (size_t)o.N * sizeof(float));
            }
            ops_close(&o);
        }
}

/* ---- the image ---- */

struct bytes {
    char *p;
    size_t n, room;
};

static int take(void *ctx, const void *p, size_t n)
{
    struct bytes *b = ctx;
    if (n > b->room - b->n) return 28;
    memcpy(b->p + b->n, p, n);
    b->n += n;
    return 0;
}

static void test_image(void **state)
{
    (void)state;
    struct fixture *f = fixture_open("everything", NULL);
    for (enum ir_store store = STORE_f32; store <= STORE_i8; store++) {
        struct arena *a = arena_open("image");
        const struct build_options bo = {
            .pages = 1, .states = 1, .context = IR_PAGE, .store = store};
        const struct session_options so = {.threads = 2, .diag = diag_open(a)};
        struct session *s;
        OK(session_open(&so, &s, &err));
        struct ir_graph *g = build_model(a, f->model, f->params, BUILD_decode, &bo);
        struct program *p = program_open(s, g, "decode", (struct ir_bind){1, 1});
        program_plan(p, 1, 1);
        OK(session_compile(s, NULL, &err));
        size_t n;
        const struct layout_stored *items = session_stored(s, &n);
        assert_true(n > 0 && n <= f->params->n); /* not those that no operation reads */
        struct bytes b = {.room = session_weights_bytes(s)};
        b.p = malloc(b.room);
        struct pack *from = pack_memory(f->params, f->weights);
        OK(weights_pack(from, items, n, session_weights(s), session_pool(s), &err));
        OK(weights_pack_stream(from, items, n, b.room, NULL, take, &b, &err));
        assert_int_equal(b.n, b.room);
        assert_memory_equal(b.p, session_weights(s), b.n);
        b.n = 0, b.room /= 2; /* a full disk */
        assert_int_equal(weights_pack_stream(from, items, n, 2 * b.room, NULL, take, &b, &err),
                         RT_machine);
        pack_close(from);
        free(b.p);
        session_close(s);
        arena_close(a);
    }
    fixture_close(f);
}

/* ---- whole models ---- */

/* Numbers 0, step, 2 step ... */
static void fill(const struct plan *p, const char *name, int32_t step)
{
    const struct plan_value *v = plan_value(p, name);
    for (int32_t i = 0; v && i < v->count; i++) ((int32_t *)v->p)[i] = i * step;
}

/* Logits of all tokens: the compiled serving program with its storage against the evaluator of the
 * same graph. */
static void model(const char *name, enum ir_store store, bool bf16)
{
    struct fixture *f = fixture_open(name, NULL);
    struct arena *a = arena_open("model");
    if (bf16) f->model->train.precision = PREC_bf16;
    const int64_t pages = build_pages(f->T);
    const struct build_options bo = {.pages = f->B * pages,
                                     .states = f->B,
                                     .context = pages * IR_PAGE,
                                     .all_logits = true,
                                     .store = store};
    const struct session_options so = {.threads = 2, .diag = diag_open(a)};
    struct session *s;
    OK(session_open(&so, &s, &err));
    struct ir_graph *g = build_model(a, f->model, f->params, BUILD_decode, &bo);
    const char *why = graph_verify(g, STAGE_T);
    if (why) fail_msg("%s", why);
    struct program *p = program_open(s, g, "decode", (struct ir_bind){f->B, f->T});
    struct plan *plan = program_plan(p, f->B, f->T);
    OK(session_compile(s, NULL, &err));
    size_t n, num;
    const struct layout_stored *items = session_stored(s, &n);
    struct pack *from = pack_memory(f->params, f->weights);
    OK(weights_pack(from, items, n, session_weights(s), session_pool(s), &err));
    pack_close(from);
    compiled_set(plan, "tokens", f->tokens, (size_t)(f->B * f->T) * 4);
    VEC(struct ir_named) in = {0};
    const struct plan_value *v = plan_values(plan, &num);
    fill(plan, "past", 0), fill(plan, "pages", 1), fill(plan, "states", 1);
    for (size_t i = 0; i < num; i++)
        if (strncmp(v[i].name, "new.", 4))
            vec_push(a, &in, ((struct ir_named){v[i].name, doubles(a, &v[i]), v[i].count}));
    double none[8] = {0}; /* where the compiled program has no use for states */
    if (!plan_value(plan, "states")) vec_push(a, &in, ((struct ir_named){"states", none, f->B}));
    for (size_t i = 0; i < f->params->n; i++) {
        double *w = NEW(a, double, f->params->p[i].count);
        for (int64_t k = 0; k < f->params->p[i].count; k++) w[k] = (double)f->weights[i][k];
        vec_push(a, &in, ((struct ir_named){f->params->p[i].name, w, f->params->p[i].count}));
    }
    plan_run(plan);
    struct ir_values want = ir_eval(a, g, (struct ir_bind){f->B, f->T}, in.p, in.n);
    struct ir_array y = ir_eval_output(&want, "logits");
    const struct plan_value *got = plan_value(plan, "logits");
    assert_int_equal(got->count, y.n);
    double e = relative_error(doubles(a, got), y.v, (size_t)y.n);
    if (!(e < (bf16 ? 2e-2 : 2e-5)))
        fail_msg("%s, %s, bf16 %d: logits are off by %g", name, store_word(store), bf16, e);
    session_close(s);
    arena_close(a);
    fixture_close(f);
}

static void test_models(void **state)
{
    (void)state;
    static const char *const name[] = {"attention-all", "everything"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++)
        for (int k = 0; k < FORMS; k++) model(name[i], forms[k].store, forms[k].bf16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_native),  cmocka_unit_test(test_v3),
        cmocka_unit_test(test_grouped), cmocka_unit_test(test_image),
        cmocka_unit_test(test_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
