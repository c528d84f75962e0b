/* AttnRes against what it must equal: the standard residual at its start, and the paper's algorithm
 * (arXiv:2603.15031, written out here in plain loops) for every block size. */
#include "compiled.h"
#include "eval.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

/* ---- a model in the evaluator ---- */

static struct ir_values evaluate(struct arena *a, const struct fixture *f, const struct ir_graph *g)
{
    int64_t n = f->B * f->T;
    double *tokens = NEW(a, double, n), *targets = NEW(a, double, n), *count = NEW(a, double, 1);
    for (int64_t i = 0; i < n; i++) tokens[i] = f->tokens[i], targets[i] = f->targets[i];
    *count = f->count;
    VEC(struct ir_named) in = {0};
    vec_push(a, &in, ((struct ir_named){"tokens", tokens, n}));
    vec_push(a, &in, ((struct ir_named){"targets", targets, n}));
    vec_push(a, &in, ((struct ir_named){"count", count, 1}));
    for (size_t i = 0; i < f->params->n; i++) {
        const struct param *p = &f->params->p[i];
        double *v = NEW(a, double, p->count);
        for (int64_t k = 0; k < p->count; k++) v[k] = (double)f->weights[i][k];
        vec_push(a, &in, ((struct ir_named){p->name, v, p->count}));
    }
    return ir_eval(a, g, (struct ir_bind){f->B, f->T}, in.p, in.n);
}

static struct ir_values evaluate_train(struct arena *a, const struct fixture *f)
{
    const struct build_options o = {0};
    struct ir_graph *g = build_model(a, f->model, f->params, BUILD_train, &o);
    build_gradients(g);
    return evaluate(a, f, g);
}

/* ---- the twin ---- */

/* With tiny eps everywhere, so that the norms do not see that a mean is a sum divided by a number.
 */
#define TWIN(residual)                                                                            \
    "strata: 1\nname: twin\n"                                                                     \
    "model:\n  vocab_size: 37\n  hidden_size: 24\n  norm: {type: rmsnorm, eps: 1.0e-30}\n"        \
    "  residual: " residual "\n"                                                                  \
    "  mixers:\n    full: {type: attention, num_heads: 4, num_kv_heads: 2, rope: {theta: 100}}\n" \
    "  ffns:\n    dense: {type: mlp, intermediate_size: 33}\n"                                    \
    "    moe: {type: moe, num_experts: 5, experts_per_token: 2, intermediate_size: 11}\n"         \
    "  layers:\n    - {mixer: full, ffn: dense}\n    - {mixer: full, ffn: moe}\n"                 \
    "    - {mixer: full, ffn: dense}\n"

static const char *const residuals[] = {
    TWIN("{type: attnres, block_size: 1, eps: 1.0e-30}"),
    TWIN("{type: attnres, block_size: 2, eps: 1.0e-30}"),
    TWIN("{type: attnres, boundaries: [1, 4], eps: 1.0e-30}"),
    TWIN("{type: attnres, blocks: 1, eps: 1.0e-30}"),
    TWIN("{type: attnres, block_size: 64, eps: 1.0e-30}"),
};
enum { FORMS = sizeof residuals / sizeof *residuals };

static struct fixture *twin(const char *text)
{
    return fixture_fresh("twin.yaml", str_of(text), 2, 19, false);
}

static void expect(const char *name, const double *x, const double *y, size_t n, double tol)
{
    double e = relative_error(x, y, n);
    if (!(e <= tol)) fail_msg("%s: relative error %g, allowed %g", name, e, tol);
}

static void test_twin_exact(void **state)
{
    (void)state;
    struct arena *a = arena_open("twin");
    struct fixture *s = twin(TWIN("standard"));
    struct ir_values want = evaluate_train(a, s);
    for (size_t k = 0; k < FORMS; k++) {
        struct fixture *f = twin(residuals[k]);
        struct ir_values got = evaluate_train(a, f);
        expect("loss", ir_eval_output(&got, "loss").v, ir_eval_output(&want, "loss").v, 1, 1e-12);
        for (size_t i = 0; i < s->params->n; i++) {
            if (s->params->p[i].kind == PARAM_state) continue;
            const char *name = str_fmt(a, "grad.%s", s->params->p[i].name);
            struct ir_array x = ir_eval_output(&got, name), y = ir_eval_output(&want, name);
            expect(name, x.v, y.v, (size_t)y.n, 1e-9);
        }
        fixture_close(f);
    }
    fixture_close(s);
    arena_close(a);
}

static void test_twin_compiled(void **state)
{
    (void)state;
    const struct compiled_options o = {0};
    struct compiled *want = compiled_open(twin(TWIN("standard")), &o);
    compiled_run(want);
    for (size_t k = 0; k < FORMS; k++) {
        struct compiled *got = compiled_open(twin(residuals[k]), &o);
        size_t n, count;
        compiled_run(got);
        const struct plan_value *v = plan_values(want->train, &count);
        for (size_t i = 0; i < count; i++) {
            if (strcmp(v[i].name, "loss") && !str_starts(str_of(v[i].name), "grad.")) continue;
            const double *x = compiled_get(got, got->train, v[i].name, &n);
            expect(v[i].name, x, compiled_get(want, want->train, v[i].name, &n), n, 1e-5);
        }
        compiled_close(got);
    }
    compiled_close(want);
}

/* ---- the paper's algorithm ---- */

enum { D = 12, H = 2, HD = 5, F = 7, V = 11, LAYERS = 3, B = 2, T = 6, S_MAX = 2 * LAYERS + 1 };
#define EPS 1e-5

static const char *paper_text(struct arena *a, int block_size)
{
    return str_fmt(a,
                   "strata: 1\nname: paper\nmodel:\n  vocab_size: %d\n  hidden_size: %d\n"
                   "  norm: {type: rmsnorm, eps: 1.0e-5}\n"
                   "  residual: {type: attnres, block_size: %d, eps: 1.0e-5}\n"
                   "  mixers: {full: {type: attention, num_heads: %d, head_dim: %d}}\n"
                   "  ffns: {dense: {type: mlp, intermediate_size: %d}}\n"
                   "  layers: [{repeat: %d, layers: [{mixer: full, ffn: dense}]}]\n",
                   V, D, block_size, H, HD, F, LAYERS);
}

static const float *weight(const struct fixture *f, const char *fmt, int layer)
{
    size_t p;
    char name[128];
    /* Names without a layer have no %d. */
    if (strstr(fmt, "@")) {
        const char *rest = strchr(fmt, '@') + 1;
        snprintf(name, sizeof name, "model.layers.%d.%s", layer, rest);
    } else {
        snprintf(name, sizeof name, "%s", fmt);
    }
    const struct param_part *q = fixture_part(f, name, &p);
    if (!q) fail_msg("no weight %s", name);
    return f->weights[p] + q->offset;
}

static void linear(const float *w, const double *x, int in, int out, double *y)
{
    for (int o = 0; o < out; o++) {
        y[o] = 0;
        for (int i = 0; i < in; i++) y[o] += (double)w[o * in + i] * x[i];
    }
}

static void norm(const float *g, const double *x, double *y)
{
    double sq = 0;
    for (int i = 0; i < D; i++) sq += x[i] * x[i];
    for (int i = 0; i < D; i++) y[i] = (double)g[i] * x[i] / sqrt(sq / D + EPS);
}

typedef double rows[T][D];

static void attention(const struct fixture *f, int l, rows h, rows y)
{
    double q[T][H * HD], k[T][H * HD], v[T][H * HD], x[D], out[H * HD];
    for (int t = 0; t < T; t++) {
        norm(weight(f, "@input_layernorm.weight", l), h[t], x);
        linear(weight(f, "@self_attn.q_proj.weight", l), x, D, H * HD, q[t]);
        linear(weight(f, "@self_attn.k_proj.weight", l), x, D, H * HD, k[t]);
        linear(weight(f, "@self_attn.v_proj.weight", l), x, D, H * HD, v[t]);
    }
    for (int t = 0; t < T; t++) {
        for (int a = 0; a < H; a++) {
            double p[T], sum = 0;
            for (int s = 0; s <= t; s++) {
                p[s] = 0;
                for (int i = 0; i < HD; i++) p[s] += q[t][a * HD + i] * k[s][a * HD + i];
                sum += p[s] = exp(p[s] / sqrt(HD));
            }
            for (int i = 0; i < HD; i++) {
                out[a * HD + i] = 0;
                for (int s = 0; s <= t; s++) out[a * HD + i] += p[s] / sum * v[s][a * HD + i];
            }
        }
        linear(weight(f, "@self_attn.o_proj.weight", l), out, H * HD, D, y[t]);
    }
}

static void mlp(const struct fixture *f, int l, rows h, rows y)
{
    double x[D], a[F], b[F];
    for (int t = 0; t < T; t++) {
        norm(weight(f, "@post_attention_layernorm.weight", l), h[t], x);
        linear(weight(f, "@mlp.gate_proj.weight", l), x, D, F, a);
        linear(weight(f, "@mlp.up_proj.weight", l), x, D, F, b);
        for (int i = 0; i < F; i++) a[i] *= b[i] / (1 + exp(-a[i]));
        linear(weight(f, "@mlp.down_proj.weight", l), a, F, D, y[t]);
    }
}

static void mix(const float *w, const float *g, rows *const *src, int n, rows h)
{
    for (int t = 0; t < T; t++) {
        double p[S_MAX], sum = 0;
        for (int j = 0; j < n; j++) {
            double dot = 0, sq = 0, *v = (*src[j])[t];
            for (int i = 0; i < D; i++)
                dot += (double)w[i] * (double)g[i] * v[i], sq += v[i] * v[i];
            sum += p[j] = exp(dot / sqrt(sq / D + EPS));
        }
        for (int i = 0; i < D; i++) {
            h[t][i] = 0;
            for (int j = 0; j < n; j++) h[t][i] += p[j] / sum * (*src[j])[t][i];
        }
    }
}

/* Logits [T,V] of one row of tokens. */
static void paper(const struct fixture *f, const int32_t *tokens, int block_size, double *logits)
{
    static rows value[S_MAX], h, y;
    rows *src[S_MAX];
    int done = 1, part = 0;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < D; i++)
            value[0][t][i] = (double)weight(f, "model.embed_tokens.weight", 0)[tokens[t] * D + i];
    for (int j = 0; j < S_MAX; j++) src[j] = &value[j];
    for (int l = 0; l < 2 * LAYERS; l++) {
        if (l > 0 && l % block_size == 0) done++, part = 0;
        const char *w = l % 2 ? "@mlp_res_proj.weight" : "@self_attention_res_proj.weight";
        const char *g = l % 2 ? "@mlp_res_norm.weight" : "@self_attention_res_norm.weight";
        if (l == 0)
            memcpy(h, value[0], sizeof h);
        else
            mix(weight(f, w, l / 2), weight(f, g, l / 2), src, done + part, h);
        if (l % 2)
            mlp(f, l / 2, h, y);
        else
            attention(f, l / 2, h, y);
        for (int t = 0; t < T; t++)
            for (int i = 0; i < D; i++)
                value[done][t][i] = (part ? value[done][t][i] : 0) + y[t][i];
        part = 1;
    }
    mix(weight(f, "model.output_attn_res_proj.weight", 0),
        weight(f, "model.output_attn_res_norm.weight", 0), src, done + part, h);
    for (int t = 0; t < T; t++) {
        double x[D];
        norm(weight(f, "model.norm.weight", 0), h[t], x);
        linear(weight(f, "lm_head.weight", 0), x, D, V, logits + t * V);
    }
}

/* Size 1 is Full AttnRes; sizes from the number of sublayers on are one block. */
static void test_paper(void **state)
{
    (void)state;
    for (int size = 1; size <= 2 * LAYERS + 2; size++) {
        struct arena *a = arena_open("paper");
        struct fixture *f = fixture_fresh("paper.yaml", str_of(paper_text(a, size)), B, T, true);
        const struct build_options o = {0};
        struct ir_values got =
            evaluate(a, f, build_model(a, f->model, f->params, BUILD_forward, &o));
        double want[B * T * V];
        for (int b = 0; b < B; b++) paper(f, f->tokens + b * T, size, want + b * T * V);
        expect(str_fmt(a, "block size %d", size), ir_eval_output(&got, "logits").v, want, B * T * V,
               1e-12);
        fixture_close(f);
        arena_close(a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_twin_exact),
        cmocka_unit_test(test_twin_compiled),
        cmocka_unit_test(test_paper),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
