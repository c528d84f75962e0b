/* The report on quantised weights: rounding in memory is the evaluator's of stored parameters; the
 * loss with all weights rounded is that of the serving program whose weights are stored so; weights
 * are afterwards as they were. */
#include "compiled.h"
#include "compiler/quantise.h"
#include "eval.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static struct rt_error err;
#define OK(expr)                                                  \
    do {                                                          \
        if ((expr) != RT_ok) fail_msg("%s: %s", #expr, err.text); \
    } while (0)

static void test_rows(void **state)
{
    (void)state;
    enum { N = 7, K = 300 };
    for (enum ir_store s = STORE_bf16; s <= STORE_i8; s++) {
        struct arena *a = arena_open("rows");
        struct ir_graph *g = graph_open(a, "w", STAGE_T, NULL, NULL);
        const struct ir_attr attr[] = {A_STR(name, "w"), A_STR(store, store_word(s))};
        ir_type_id t = ir_type2(g, IR_f32, dim_const(N), dim_const(K));
        ir_output(g, "w", ir_add_typed(g, OP_param, t, NO_SRCS, attr, 2, "w"));
        float x[N * K];
        double v[N * K];
        for (int i = 0; i < N * K; i++) {
            x[i] = i / K == 3 ? 0 : sinf((float)(i * i % 1013)) * (float)(1 + i / K);
            v[i] = (double)x[i];
        }
        const struct ir_named in = {"w", v, N * K};
        struct ir_values e = ir_eval(a, g, (struct ir_bind){1, 1}, &in, 1);
        struct ir_array want = ir_eval_output(&e, "w");
        quantise_rows(s, x, N, K);
        for (int i = 0; i < N * K; i++) assert_true(x[i] == (float)want.v[i]);
        arena_close(a);
    }
}

static void fill(const struct plan *p, const char *name, int32_t step)
{
    const struct plan_value *v = plan_value(p, name);
    for (int32_t i = 0; v && i < v->count; i++) ((int32_t *)v->p)[i] = i * step;
}

/* The loss of the serving program whose weights are stored as `store`. */
static double served_loss(const struct fixture *f, enum ir_store store)
{
    struct arena *a = arena_open("served");
    const int64_t pages = build_pages(f->T), V = f->model->vocab_size;
    const struct build_options bo = {.pages = f->B * pages,
                                     .states = f->B,
                                     .context = pages * IR_PAGE,
                                     .all_logits = true,
                                     .store = store};
    const struct session_options so = {.threads = 2, .diag = diag_open(a)};
    struct session *s;
    OK(session_open(&so, &s, &err));
    struct ir_graph *g = build_model(a, f->model, f->params, BUILD_decode, &bo);
    struct plan *p =
        program_plan(program_open(s, g, "decode", (struct ir_bind){f->B, f->T}), f->B, f->T);
    OK(session_compile(s, NULL, &err));
    size_t n;
    const struct layout_stored *items = session_stored(s, &n);
    struct pack *from = pack_memory(f->params, f->weights);
    OK(weights_pack(from, items, n, session_weights(s), session_pool(s), &err));
    pack_close(from);
    compiled_set(p, "tokens", f->tokens, (size_t)(f->B * f->T) * 4);
    fill(p, "past", 0), fill(p, "pages", 1), fill(p, "states", 1);
    plan_run(p);
    const float *x = plan_value(p, "logits")->p;
    double sum = 0;
    for (int64_t t = 0; t < f->B * f->T; t++) {
        double all = 0;
        if (f->targets[t] < 0) continue;
        for (int64_t i = 0; i < V; i++) all += exp((double)(x[t * V + i] - x[t * V]));
        sum += log(all) - (double)(x[t * V + f->targets[t]] - x[t * V]);
    }
    session_close(s);
    arena_close(a);
    return sum / f->count;
}

static void bind(const struct plan *p, const struct fixture *f)
{
    float count = (float)f->count;
    compiled_set(p, "tokens", f->tokens, (size_t)(f->B * f->T) * 4);
    compiled_set(p, "targets", f->targets, (size_t)(f->B * f->T) * 4);
    compiled_set(p, "count", &count, 4);
}

static void one_model(const char *name, enum ir_store store)
{
    struct fixture *f = fixture_open(name, NULL);
    struct cli c = {.arena = arena_open("cli")};
    c.diag = diag_open(c.arena);
    const struct run_options o = {.threads = 2, .dtype = store == STORE_i8 ? "int8" : "bf16"};
    const struct build_options plain = {0}, rounded = {.sources = store};
    struct run r;
    run_open(&r, &c, f->model, &o);
    struct plan *loss = run_model_plan(&r, BUILD_loss, &plain, f->B, f->T);
    struct plan *sources = run_model_plan(&r, BUILD_loss, &rounded, f->B, f->T);
    run_ready(&r, loss, NULL);
    for (size_t i = 0; i < r.params->n; i++)
        memcpy(r.weights[i], f->weights[i], (size_t)r.params->p[i].count * sizeof(float));
    bind(loss, f), bind(sources, f);
    struct quantised q;
    OK(quantise_losses(&r, loss, sources, &q, &err));
    for (size_t i = 0; i < r.params->n; i++)
        assert_memory_equal(r.weights[i], f->weights[i],
                            (size_t)r.params->p[i].count * sizeof(float));
    double plain_loss = served_loss(f, STORE_f32), all = served_loss(f, store);
    if (!(fabs(q.plain - plain_loss) < 1e-5 * plain_loss && fabs(q.all - all) < 1e-5 * all))
        fail_msg("%s: loss %.9g, of %s %.9g, serving program %.9g and %.9g", name, q.plain, o.dtype,
                 q.all, plain_loss, all);
    for (int p = 0; p < QUANT_PARTS; p++)
        if (q.weights[p]) assert_true(q.loss[p] != q.plain && fabs(q.loss[p] - q.plain) < 0.1);
    assert_true(q.weights[QUANT_embedding] && q.weights[QUANT_experts] && q.weights[QUANT_sources]);
    run_close(&r);
    arena_close(c.arena);
    fixture_close(f);
}

static void test_losses(void **state)
{
    (void)state;
    one_model("everything", STORE_i8);
    one_model("everything", STORE_bf16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows), cmocka_unit_test(test_losses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
