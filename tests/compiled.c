#include "compiled.h"
#include "compiler/pack.h"
#include "runtime/lm_gpu.h"
#include <errno.h>
#include <math.h>

static struct plan *plan_of(struct compiled *c, struct ir_graph *g, const char *name, int64_t B,
                            int64_t T, struct program **out)
{
    struct program *p = program_open(c->session, g, name, (struct ir_bind){B, T});
    if (!p) BUG("%s: the %s program does not pass", c->f->name, name);
    if (out) *out = p;
    return program_plan(p, B, T);
}

struct compiled *compiled_open(struct fixture *f, const struct compiled_options *o)
{
    struct arena *a = arena_open("compiled");
    struct compiled *c = NEW(a, struct compiled, 1);
    struct rt_error err;
    c->arena = a;
    c->f = f;
    const struct session_options so = {.cpu = o->cpu,
                                       .device = o->device,
                                       .threads = o->threads ? o->threads : 2,
                                       .diag = diag_open(a),
                                       .pipeline = {.skip = o->skip}};
    if (session_open(&so, &c->session, &err)) BUG("%s", err.text);
    const struct build_options forward = {.depth_weights = o->depth_weights,
                                          .given_routes = o->given_routes},
                               train = {.given_routes = o->given_routes};
    struct ir_graph *g = build_model(a, f->model, f->params, BUILD_forward, &forward);
    c->forward = plan_of(c, g, "forward", f->B, f->T, &c->forward_program);
    if (!o->forward_only) {
        g = build_model(a, f->model, f->params, BUILD_train, &train);
        build_gradients(g);
        c->train = plan_of(c, g, "train", f->B, f->T, &c->train_program);
    }
    if (f->model->train.present && !o->forward_only)
        c->apply = plan_of(c, build_apply(a, f->model, f->params), "apply", 1, 1, NULL);
    if (session_compile(c->session, NULL, &err)) BUG("%s", err.text);
    return c;
}

void compiled_close(struct compiled *c)
{
    session_close(c->session);
    fixture_close(c->f);
    arena_close(c->arena);
}

void compiled_set(const struct plan *p, const char *name, const void *data, size_t bytes)
{
    const struct plan_value *v = plan_value(p, name);
    if (!v) return;
    if (v->bytes != bytes) BUG("%s has %zu bytes, not %zu", name, v->bytes, bytes);
    memcpy(v->p, data, bytes);
}

void compiled_bind_weights(const struct compiled *c, const struct plan *p)
{
    const struct params *ps = c->f->params;
    for (size_t i = 0; i < ps->n; i++) {
        const struct plan_value *v = plan_value(p, ps->p[i].name);
        compiled_set(p, ps->p[i].name, c->f->weights[i], 4 * (size_t)ps->p[i].count);
        if (v && session_push(c->session, v, NULL)) BUG("%s does not go to the device", v->name);
    }
}

void compiled_bind(const struct compiled *c, const struct plan *p)
{
    const struct fixture *f = c->f;
    size_t n = (size_t)(f->B * f->T);
    float count = (float)f->count;
    compiled_set(p, "tokens", f->tokens, 4 * n);
    compiled_set(p, "targets", f->targets, 4 * n);
    compiled_set(p, "count", &count, 4);
    const struct tf_tensor *t;
    for (size_t i = 0; (t = fixture_routes(f, i)); i++) compiled_set(p, t->name, t->data, t->bytes);
    compiled_bind_weights(c, p);
}

static void check_status(const struct compiled *c)
{
    struct rt_error err;
    if (session_status(c->session, &err)) BUG("%s: %s", c->f->name, err.text);
}

void compiled_run(const struct compiled *c)
{
    compiled_bind(c, c->forward);
    plan_run(c->forward);
    compiled_bind(c, c->train);
    plan_run(c->train);
    check_status(c);
}

void compiled_step(const struct compiled *c)
{
    const struct train_spec *s = &c->f->model->train;
    const float hyper[4] = {(float)s->lr, (float)(1 - s->beta1), (float)(1 - s->beta2)};
    compiled_set(c->apply, "hyper", hyper, sizeof hyper);
    plan_run(c->apply);
    check_status(c);
}

const double *compiled_get(const struct compiled *c, const struct plan *p, const char *name,
                           size_t *n)
{
    const struct plan_value *v = plan_value(p, name);
    if (!v) BUG("%s: no value %s", c->f->name, name);
    if (session_pull(c->session, v, NULL)) BUG("%s does not come from the device", name);
    double *d = NEW(c->arena, double, v->count);
    for (int64_t i = 0; i < v->count; i++) d[i] = (double)((const float *)v->p)[i];
    *n = (size_t)v->count;
    return d;
}

const double *compiled_grad(const struct compiled *c, const char *tensor, size_t *n)
{
    size_t param, all;
    const struct param_part *q = fixture_part(c->f, tensor, &param);
    if (!q) BUG("%s: no weight %s", c->f->name, tensor);
    const char *name = str_fmt(c->arena, "grad.%s", c->f->params->p[param].name);
    const double *g = compiled_get(c, c->train, name, &all);
    *n = (size_t)part_count(q);
    return g + q->offset;
}

/* ---- serving ---- */

struct to_gpu {
    struct lm *lm;
    uint64_t at;
};

static int to_gpu(void *ctx, const void *p, size_t n)
{
    struct to_gpu *x = ctx;
    struct rt_error err;
    x->at += n;
    return lm_gpu_write(x->lm, x->at - n, p, n, &err) ? EIO : 0;
}

static void serve_weights(const struct fixture *f, struct session *s, const struct plan *plan,
                          struct lm *lm, bool gpu)
{
    size_t n;
    struct rt_error err;
    const struct layout_stored *items = session_stored(s, &n);
    struct pack *from = pack_memory(f->params, f->weights);
    struct to_gpu x = {lm, 0};
    const struct compiled c = {.session = s, .f = (struct fixture *)(uintptr_t)f};
    if (!gpu) compiled_bind_weights(&c, plan);
    if (gpu ? weights_pack_stream(from, items, n, session_weights_bytes(s), NULL, to_gpu, &x, &err)
            : weights_pack(from, items, n, session_weights(s), NULL, &err))
        BUG("%s", err.text);
    pack_close(from);
}

struct lm *compiled_serve(struct arena *a, const struct fixture *f, const struct compiled_served *o,
                          struct session **session)
{
    struct rt_error err;
    struct lm *lm;
    struct gpu *gpu = NULL;
    struct session_options so = {.threads = o->threads, .diag = diag_open(a), .no_library = true};
    if (o->device && gpu_open_named(o->device, &gpu, &err)) BUG("%s", err.text);
    if (gpu) so.gpu = gpu_about(gpu)->arch;
    if (session_open(&so, session, &err)) BUG("%s", err.text);
    struct served_options x = {.session = *session,
                               .build = o->build,
                               .batch = o->batch,
                               .lazy = o->lazy,
                               .gpu = gpu,
                               .threads = o->threads};
    const struct ir_graph *g = build_model(a, f->model, f->params, BUILD_decode, &x.build);
    x.program = program_open(*session, g, "decode", (struct ir_bind){1, 1});
    if (!x.program) BUG("%s: the decode program does not pass", f->name);
    if (served_open(a, &x, &lm, &err)) BUG("%s", err.text);
    serve_weights(f, *session, program_plan(x.program, 1, 1), lm, gpu != NULL);
    return lm;
}
