#include "compiler/quantise.h"
#include "compiler/run.h"
#include "runtime/dataset.h"
#include "runtime/npy.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static const char help[] =
    "usage: strata eval SPEC --weights W --tokens TOK.npy [--logits L.npy] [--grads "
    "G.safetensors]\n"
    "                   [--depth-weights A.safetensors]\n"
    "       strata eval SPEC --weights W --tokens TOK.npy --dtype int8\n\n"
    "Runs the model on token ids int32 [B, T+1]: inputs are all columns but the last, targets all "
    "but\n"
    "the first. Prints 'loss X': the mean cross-entropy in nats over all targets that are not "
    "negative.\n"
    "Loss and gradients come from the training program, logits and depth weights from the forward\n"
    "program.\n\n"
    "With --dtype also the loss of the model whose weights are stored so (serve, generate, build), "
    "and how\n"
    "much of it comes from which part: each of them quantised alone, and the finished blocks that "
    "attention\n"
    "residuals look back at, rounded per token, with weights as they are.\n\n"
    "  strata init specs/tiny-attnres.yaml -o w.safetensors\n"
    "  strata eval specs/tiny-attnres.yaml --weights w.safetensors --tokens tok.npy --logits "
    "l.npy\n\n"
    "  --weights W        safetensors file, Hugging Face folder, step folder or run folder\n"
    "  --logits L.npy     float32 [B, T, V]\n"
    "  --grads G          one gradient per trainable weight, under the weight's name\n"
    "  --depth-weights A  one tensor [n, B, T] per active depth site, sources in "
    "order\n"
    "  --dtype D          int8 or bf16: the loss of weights stored so, and of each part alone\n"
    "  --json             one JSON object on standard output instead of the "
    "text\n" RUN_DEVICE_HELP RUN_HELP;

struct batch {
    int64_t B, T;
    int32_t *in, *target;
    double count;
};

static struct batch read_tokens(struct cli *c, const char *path, int64_t vocab)
{
    struct npy n;
    cli_check(c, npy_open(path, &n, &c->err));
    if (n.type != NPY_i32 || n.rank != 2 || n.shape[0] < 1 || n.shape[1] < 2)
        cli_fail(RT_user,
                 "%s: eval needs int32 token ids [B, T+1], one row and two columns at least", path);
    struct batch b = {.B = n.shape[0], .T = n.shape[1] - 1};
    size_t w = (size_t)n.shape[1], rows = (size_t)b.B, t = (size_t)b.T;
    int32_t *row = NEW(c->arena, int32_t, w);
    b.in = NEW(c->arena, int32_t, rows * t);
    b.target = NEW(c->arena, int32_t, rows * t);
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < w; i++) {
            int64_t id = npy_int(&n, r * w + i);
            if (id >= vocab || id < INT32_MIN)
                cli_fail(RT_user, "%s: id %lld in row %zu is not in the vocabulary of %lld", path,
                         (long long)id, r, (long long)vocab);
            row[i] = (int32_t)id;
        }
        dataset_targets(row, t, b.in + r * t, b.target + r * t);
    }
    for (size_t i = 0; i < rows * t; i++) b.count += b.target[i] >= 0;
    if (b.count == 0) cli_fail(RT_user, "%s: every target is negative, so there is no loss", path);
    npy_close(&n);
    return b;
}

static void bind(const struct plan *p, const struct batch *b)
{
    memcpy(plan_value(p, "tokens")->p, b->in, (size_t)(b->B * b->T) * 4);
    const struct plan_value *target = plan_value(p, "targets");
    if (!target) return;
    memcpy(target->p, b->target, (size_t)(b->B * b->T) * 4);
    *(float *)plan_value(p, "count")->p = (float)b->count;
}

static void write_grads(struct run *r, const struct plan *p, const char *path)
{
    struct cli *c = r->cli;
    bool *keep = NEW(c->arena, bool, r->params->n);
    float **grad = NEW(c->arena, float *, r->params->n);
    for (size_t i = 0; i < r->params->n; i++) {
        keep[i] = r->params->p[i].kind != PARAM_state;
        if (keep[i]) grad[i] = plan_value(p, str_fmt(c->arena, "grad.%s", r->params->p[i].name))->p;
    }
    tf_list list = {0};
    weights_list(c->arena, r->params, grad, keep, "", &list);
    const struct tf_content content = {.tensors = list.p, .count = list.n};
    cli_check(c, tensorfile_write(path, &content, &c->err));
}

/* [B*T, n] of each site as [n, B, T]. */
static void write_depth(struct run *r, const struct plan *p, const struct batch *b,
                        const char *path)
{
    struct cli *c = r->cli;
    VEC(struct tf_tensor) list = {0};
    size_t count;
    const struct plan_value *v = plan_values(p, &count);
    for (size_t i = 0; i < count; i++) {
        if (!str_starts(str_of(v[i].name), "depth.")) continue;
        int64_t n = v[i].dims[1], rows = v[i].dims[0];
        float *out = NEW(c->arena, float, n *rows);
        for (int64_t t = 0; t < rows; t++)
            for (int64_t s = 0; s < n; s++) out[s * rows + t] = ((const float *)v[i].p)[t * n + s];
        struct tf_tensor x = {.name = v[i].name + strlen("depth."),
                              .dtype = TF_F32,
                              .rank = 3,
                              .shape = {n, b->B, b->T},
                              .data = out};
        vec_push(c->arena, &list, x);
    }
    const struct tf_content content = {.tensors = list.p, .count = list.n};
    cli_check(c, tensorfile_write(path, &content, &c->err));
}

static void print_json(json_t *top)
{
    CHECK(top);
    json_dumpf(top, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(top);
}

/* ---- quantised weights ---- */

static json_t *parts_json(const struct quantised *q)
{
    json_t *parts = json_array();
    for (int p = 0; p < QUANT_PARTS; p++)
        if (q->weights[p])
            json_array_append_new(parts, json_pack("{s:s, s:I, s:f, s:f}", "part",
                                                   quantised_name((enum quantised_part)p),
                                                   p == QUANT_sources ? "blocks" : "weights",
                                                   (json_int_t)q->weights[p], "loss", q->loss[p],
                                                   "difference", q->loss[p] - q->plain));
    return parts;
}

static void print_parts(struct arena *a, const struct quantised *q, const char *dtype)
{
    printf("loss %.9g\nloss of %s %.9g, difference %+.3g\n\n", q->plain, dtype, q->all,
           q->all - q->plain);
    printf("%-16s %16s %14s %12s\n", "alone", "weights", "loss", "difference");
    for (int p = 0; p < QUANT_PARTS; p++) {
        if (!q->weights[p]) continue;
        const char *n = p == QUANT_sources ? str_fmt(a, "%lld blocks", (long long)q->weights[p])
                                           : cli_count(a, q->weights[p]);
        printf("%-16s %16s %14.9g %+12.3g\n", quantised_name((enum quantised_part)p), n, q->loss[p],
               q->loss[p] - q->plain);
    }
}

static void eval_quantised(struct run *r, const struct batch *b, const char *weights,
                           const char *dtype, bool json)
{
    struct cli *c = r->cli;
    const struct model *m = r->model;
    const struct build_options plain = {0}, rounded = {.sources = r->store};
    struct plan *loss = run_model_plan(r, BUILD_loss, &plain, b->B, b->T), *sources = NULL;
    if (m->residual == RESIDUAL_attnres && m->num_boundaries)
        sources = run_model_plan(r, BUILD_loss, &rounded, b->B, b->T);
    run_ready(r, loss, NULL);
    run_load(r, weights, NULL);
    bind(loss, b);
    if (sources) bind(sources, b);
    struct quantised q;
    cli_check(c, quantise_losses(r, loss, sources, &q, &c->err));
    if (json)
        print_json(json_pack("{s:f, s:s, s:f, s:o}", "loss", q.plain, "dtype", dtype,
                             "loss_quantised", q.all, "parts", parts_json(&q)));
    else
        print_parts(c->arena, &q, dtype);
}

int cmd_eval(int argc, char **argv)
{
    struct cli c = {0};
    struct run_options o = {0};
    bool json = false;
    const char *weights = NULL, *tokens = NULL, *logits = NULL, *grads = NULL, *depth = NULL;
    cli_parse(&c, argc, argv, help, 1,
              CLI_OPTIONS({"weights", CLI_text, &weights}, {"tokens", CLI_text, &tokens},
                          {"logits", CLI_text, &logits}, {"grads", CLI_text, &grads},
                          {"depth-weights", CLI_text, &depth}, {"json", CLI_flag, &json},
                          RUN_DTYPE(o), RUN_DEVICE(o), RUN_OPTIONS(o)));
    if (!weights || !tokens) cli_fail(RT_usage, "eval needs --weights and --tokens");
    const struct model *m = cli_model(&c, c.arg.p[0]);
    const struct batch b = read_tokens(&c, tokens, m->vocab_size);
    if (o.dtype && (logits || grads || depth || !strcmp(o.dtype, "fp32")))
        cli_fail(RT_usage,
                 "--dtype is int8 or bf16, without --logits, --grads and --depth-weights");
    struct run r;
    run_open(&r, &c, m, &o);
    if (o.dtype) {
        eval_quantised(&r, &b, weights, o.dtype, json);
        run_close(&r);
        return 0;
    }
    const struct build_options build = {.depth_weights = depth != NULL}, plain = {0};
    struct plan *train = program_plan(run_program(&r, BUILD_train, &plain, b.B, b.T), b.B, b.T);
    struct plan *forward = NULL;
    if (logits || depth)
        forward = program_plan(run_program(&r, BUILD_forward, &build, b.B, b.T), b.B, b.T);
    run_ready(&r, train, NULL);
    run_load(&r, weights, NULL);
    bind(train, &b);
    run_now(&r, train);
    if (forward) {
        bind(forward, &b);
        run_now(&r, forward);
    }
    if (logits)
        cli_check(&c, npy_write_f32(logits, plan_value(forward, "logits")->p, 3,
                                    (const int64_t[]){b.B, b.T, m->vocab_size}, &c.err));
    if (grads) write_grads(&r, train, grads);
    if (depth) write_depth(&r, forward, &b, depth);
    double loss = (double)*(const float *)plan_value(train, "loss")->p;
    if (json)
        print_json(json_pack("{s:f}", "loss", loss));
    else
        printf("loss %.9g\n", loss);
    run_close(&r);
    return 0;
}
