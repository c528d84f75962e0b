#include "compiler/bench.h"
#include "runtime/mem.h"

static void some_tokens(struct bench *b, int32_t *tokens)
{
    for (int64_t i = 0; i < b->B * b->T; i++)
        tokens[i] = (int32_t)((uint64_t)i * 2654435761u % (uint64_t)b->model->vocab_size);
}

static void open_forward(struct bench *b, struct cli *c, const struct run_options *o)
{
    const struct train_spec *s = &b->model->train;
    const struct build_options plain = {0};
    b->B = s->present ? s->batch_size : 1;
    b->T = s->present ? s->seq_len : 512;
    run_open(&b->t.run, c, b->model, o);
    b->plan = run_model_plan(&b->t.run, BUILD_forward, &plain, b->B, b->T);
    run_ready(&b->t.run, b->plan, NULL);
    some_tokens(b, plan_value(b->plan, "tokens")->p);
}

/* Where an input of the decode program is; NULL where it has none. */
static int32_t *input(struct bench *b, const char *name)
{
    const struct lm_call *c = &b->call;
    const struct {
        const char *name;
        const int32_t *p;
    } own[] = {
        {"tokens", c->tokens}, {"past", c->past}, {"pages", c->pages}, {"states", c->states}};
    for (size_t i = 0; b->lm && i < sizeof own / sizeof *own; i++)
        if (!strcmp(name, own[i].name)) return (int32_t *)(uintptr_t)own[i].p;
    const struct plan_value *v = plan_value(b->plan, name);
    return v ? v->p : NULL;
}

/* Of an input the first n: first, first + step ... */
static void fill(struct bench *b, const char *name, int64_t n, int32_t first, int32_t step)
{
    int32_t *p = input(b, name);
    for (int64_t i = 0; p && i < n; i++) p[i] = first + (int32_t)i * step;
}

/* The decode program's plan for B sequences of T, ready: on a GPU run by its model. */
static void open_cached(struct bench *b, struct cli *c, const struct build_options *build,
                        const struct run_options *o, int64_t B, int64_t T)
{
    struct run *r = &b->t.run;
    struct served_options s = {.build = *build, .batch = B, .lazy = true};
    run_open(r, c, b->model, o);
    s.program = run_program(r, BUILD_decode, build, B, T);
    b->plan = run_planned(r, s.program, B, T);
    if (!r->gpu) {
        run_ready(r, b->plan, NULL);
        return;
    }
    run_serve(r, &s, &b->lm);
    int64_t P = build->context / IR_PAGE;
    int32_t *p = NEW(c->arena, int32_t, B * (T + P + 2));
    b->call = (struct lm_call){B, T, p, p + B * T, p + B * T + B, p + B * T + 2 * B};
}

/* Caches of zeros that count as full: a step takes as long as on a text. */
static void open_decode(struct bench *b, struct cli *c, const struct bench_options *x,
                        const struct run_options *o)
{
    int64_t P = build_pages(x->context);
    const struct build_options build = {
        .pages = x->batch * P, .states = x->batch, .context = P * IR_PAGE};
    b->B = x->batch;
    b->T = 1;
    open_cached(b, c, &build, o, b->B, b->T);
    some_tokens(b, input(b, "tokens"));
    fill(b, "past", b->B, (int32_t)(P * IR_PAGE) - 1, 0);
    fill(b, "pages", b->B * P, 0, 1);
    fill(b, "states", b->B, 0, 1);
}

/* A prompt in pieces as generate and serve read it. */
static void open_prefill(struct bench *b, struct cli *c, const struct bench_options *x,
                         const struct run_options *o)
{
    int64_t P = build_pages(x->context), T = x->context < LM_CHUNK ? x->context : LM_CHUNK;
    const struct build_options build = {.pages = P, .states = 1, .context = P * IR_PAGE};
    if (x->context % T)
        cli_fail(RT_usage, "--context of prefill must be at most %d or a multiple of it", LM_CHUNK);
    b->B = 1;
    b->T = x->context;
    b->calls = x->context / T;
    open_cached(b, c, &build, o, 1, T);
    int32_t *tokens = input(b, "tokens");
    for (int64_t i = 0; i < T; i++) tokens[i] = (int32_t)(i % b->model->vocab_size);
    fill(b, "pages", P, 0, 1);
    fill(b, "states", 1, 0, 1);
}

static void open_train(struct bench *b, struct cli *c, const struct run_options *o)
{
    const struct train_spec *s = &b->model->train;
    if (!s->present)
        cli_fail(RT_user, "%s has no train section\nhint: --program forward needs none.", b->path);
    b->B = s->batch_size;
    b->T = s->seq_len;
    trainer_open_random(&b->t, c, b->model, o);
}

/* ---- what a step must do ---- */

double bench_flops(const struct ir_graph *g, ir_id n, struct ir_bind b)
{
    double flops = op_cost(g, n, b).flops;
    switch (ir_at(g, n)->op) {
    case OP_matmul:
    case OP_grouped_matmul:
    case OP_grouped_matmul_dw:
    case OP_head_loss:
    case OP_head_nll:
    case OP_attention:
    case OP_attention_cached:
    case OP_mla_cached: return flops;
    case OP_attention_grad: return flops * 4 / 5; /* one of its five products is the scores again */
    default: return 0;
    }
}

/* Of the keys that bench_flops counts, the share that the tokens of a prompt see. */
static double seen(const struct bench *b, enum ir_op op)
{
    if (b->program != BENCH_prefill || (op != OP_attention_cached && op != OP_mla_cached)) return 1;
    return (double)(b->T + 1) / 2 / (double)(build_pages(b->T) * IR_PAGE);
}

static void add_work(struct bench *b, const struct plan *p, double times)
{
    const struct ir_graph *g = program_graph(plan_program(p));
    const struct sa_plan *sa = &plan_lowered(p)->plan;
    size_t n;
    for (ir_id i = 0; i < g->node.n; i++)
        b->flops += times * seen(b, (enum ir_op)ir_at(g, i)->op) * bench_flops(g, i, plan_bind(p));
    for (size_t i = 0; i < sa->num_values; i++)
        if (!str_starts(str_of(sa->values[i].name), "new.cache."))
            b->bytes += times * (double)sa_value_bytes(&sa->values[i]);
    const struct layout_stored *w = session_stored(b->t.run.session, &n);
    for (size_t i = 0; i < n; i++) b->weights += times * (double)w[i].bytes;
}

static double weight_bytes(const struct ir_graph *g, ir_id w, struct ir_bind bind)
{
    enum ir_store s = ir_stored(g, w);
    if (s == STORE_none) return 4 * (double)type_count(g->types, ir_at(g, w)->type, bind);
    return (double)store_total_bytes(s, store_shape(g, ir_view(g, w).root));
}

/* Bytes of pages that no window reaches. */
static double unseen(const struct bench *b)
{
    const struct ir_graph *g = program_graph(plan_program(b->plan));
    double bytes = 0;
    for (ir_id n = 0; n < g->node.n; n++) {
        if (ir_at(g, n)->op != OP_attention_cached) continue;
        int64_t w = ir_int(g, n, AK_window, 0), context = ir_int(g, n, AK_context, 0);
        double cols = (double)(ir_cols(g, ir_src(g, n, 1)).add + ir_cols(g, ir_src(g, n, 2)).add);
        double each = (double)dtype_size(ir_ty(g, ir_src(g, n, 1))->dtype) * cols;
        if (w > 0 && w < context) bytes += (double)b->B * (double)(context - w) * each;
    }
    return bytes;
}

/* Bytes of weights that a decode step leaves alone: table rows of other tokens, other experts. */
static double unread(const struct bench *b)
{
    const struct ir_graph *g = program_graph(plan_program(b->plan));
    double bytes = 0;
    for (ir_id n = 0; n < g->node.n; n++) {
        enum ir_op op = (enum ir_op)ir_at(g, n)->op;
        if (op != OP_grouped_matmul && (op != OP_embed || b->model->tie_embeddings)) continue;
        ir_id w = ir_src(g, n, op == OP_embed ? 0 : 1);
        const struct ir_bind bind = plan_bind(b->plan);
        double parts = (double)dim_value(ir_ty(g, w)->dim[0], bind);
        double used = (double)dim_value(ir_rows(g, n), bind);
        if (used < parts) bytes += (1 - used / parts) * weight_bytes(g, w, bind);
    }
    return bytes;
}

void bench_open(struct bench *b, struct cli *c, const char *path, const struct bench_options *o,
                const struct run_options *run)
{
    enum bench_program program = o->program;
    struct bench_options x = *o;
    if (!x.context) x.context = program == BENCH_prefill ? 512 : 1024;
    *b = (struct bench){.path = path, .program = program, .calls = 1};
    double begin = mem_seconds();
    b->model = cli_model(c, path);
    b->seconds.spec = mem_seconds() - begin;
    if (program == BENCH_train)
        open_train(b, c, run);
    else if (program == BENCH_forward)
        open_forward(b, c, run);
    else if (program == BENCH_prefill)
        open_prefill(b, c, &x, run);
    else
        open_decode(b, c, &x, run);
    begin = mem_seconds();
    run_init(&b->t.run, b->model->train.seed);
    b->seconds.init = mem_seconds() - begin;
    if (program == BENCH_train) {
        add_work(b, b->t.train, (double)b->t.micro);
        add_work(b, b->t.apply, 1);
    } else {
        add_work(b, b->plan, (double)b->calls);
        if (program == BENCH_decode) *(b->weights > 0 ? &b->weights : &b->bytes) -= unread(b);
        if (program == BENCH_decode) b->bytes -= unseen(b);
        b->bytes += b->weights;
    }
}

void bench_close(struct bench *b)
{
    if (b->lm) b->lm->ops->close(b->lm);
    if (b->program == BENCH_train)
        trainer_close(&b->t);
    else
        run_close(&b->t.run);
}

double bench_step(struct bench *b)
{
    double begin = mem_seconds();
    if (b->program == BENCH_train)
        trainer_step(&b->t);
    else
        for (int64_t i = 0; i < b->calls; i++) {
            if (b->program == BENCH_prefill)
                fill(b, "past", 1, (int32_t)(i * plan_bind(b->plan).T), 0);
            if (b->lm)
                cli_check(b->t.run.cli, b->lm->ops->run(b->lm, &b->call, &b->t.run.cli->err));
            else
                run_now(&b->t.run, b->plan);
        }
    return mem_seconds() - begin;
}
