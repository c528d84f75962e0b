#include "compiler/run.h"
#include "runtime/checkpoint.h"
#include "runtime/lm_gpu.h"
#include "runtime/mem.h"
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>

struct texts { /* of passes, shown when the session is ready */
    struct sb times, report, dump;
};
static struct texts texts;

/* The storage of serving programs by --dtype. Float32 under bf16 products is bf16: the same bits.
 */
static enum ir_store store_of(const struct model *m, const struct run_options *o)
{
    bool device = o->gpu || (o->device && strcmp(o->device, "cpu"));
    enum ir_store exact = build_store(m, device);
    if (device && o->dtype && !o->no_library)
        cli_fail(RT_usage, "with --device cuda this command has no --dtype");
    if (!o->dtype || !strcmp(o->dtype, "fp32")) return exact;
    if (!strcmp(o->dtype, "bf16")) return device ? STORE_rows_bf16 : STORE_bf16;
    if (strcmp(o->dtype, "int8"))
        cli_fail(RT_usage, "--dtype must be fp32, bf16 or int8, not '%s'", o->dtype);
    if (device) cli_fail(RT_usage, "--dtype int8 is for CPUs: on a GPU weights are fp32 or bf16");
    return STORE_i8;
}

/* On a GPU --dtype bf16 is the precision of a serving program: its products are tensor cores' and
 * its caches bf16, as if it had been trained so. */
static const struct model *model_of(struct run *r, const struct model *m)
{
    if (r->store != STORE_rows_bf16 || m->train.precision == PREC_bf16) return m;
    struct model *x = NEW(r->cli->arena, struct model, 1);
    *x = *m;
    x->train.precision = PREC_bf16;
    return x;
}

/* Serving programs run on a GPU beside the session, which only plans for it. */
static void open_device(struct run *r, const struct run_options *o, struct session_options *s)
{
    struct cli *c = r->cli;
    if (!o->device || !strcmp(o->device, "cpu") || !o->no_library) {
        s->device = o->device;
        return;
    }
    cli_check(c, gpu_open_named(o->device, &r->gpu, &c->err));
    r->device = gpu_about(r->gpu);
    s->gpu = r->device->arch;
}

void run_open(struct run *r, struct cli *c, const struct model *m, const struct run_options *o)
{
    *r = (struct run){.cli = c, .model = m, .params = params_of(c->arena, m)};
    r->store = store_of(m, o);
    r->model = model_of(r, m);
    r->threads = (unsigned)o->threads;
    struct session_options s = {.cpu = o->cpu,
                                .gpu = o->gpu,
                                .no_library = o->no_library,
                                .threads = (unsigned)o->threads,
                                .streams = (unsigned)o->streams,
                                .diag = c->diag};
    cli_passes(c, "skip", o->skip);
    if (o->threads < 0 || o->threads > 1024) cli_fail(RT_usage, "--threads must be from 1 to 1024");
    if (o->streams < 0 || o->streams > SA_STREAMS)
        cli_fail(RT_usage, "--streams must be from 1 to %d", SA_STREAMS);
    s.pipeline = (struct pipeline_options){
        .skip = o->skip, .dump_ir = o->dump_ir, .repro = o->repro, .roundtrip_each = o->roundtrip};
    if (o->dump_ir) s.pipeline.dump = &texts.dump;
    if (o->report) s.pipeline.report = &texts.report;
    if (o->time_passes) s.pipeline.times = &texts.times;
    open_device(r, o, &s);
    cli_check(c, session_open(&s, &r->session, &c->err));
    if (!r->device) r->device = session_device(r->session);
}

static struct program *open_program(struct run *r, const struct ir_graph *g, const char *name,
                                    struct ir_bind b)
{
    struct program *p = program_open(r->session, g, name, b);
    if (p) return p;
    cli_diagnostics(r->cli);
    exit(EXIT_USER);
}

struct program *run_program(struct run *r, enum build_program which, const struct build_options *o,
                            int64_t B, int64_t T)
{
    static const char *const name[] = {"forward", "loss", "train", "decode"};
    double begin = mem_seconds();
    struct build_options options = *o;
    if (which == BUILD_decode) options.store = r->store;
    struct ir_graph *g = build_model(r->cli->arena, r->model, r->params, which, &options);
    if (which == BUILD_train) build_gradients(g);
    struct program *p = open_program(r, g, name[which], (struct ir_bind){B, T});
    r->seconds[RUN_graphs] += mem_seconds() - begin;
    return p;
}

struct plan *run_planned(struct run *r, struct program *p, int64_t B, int64_t T)
{
    double begin = mem_seconds();
    struct plan *plan = program_plan(p, B, T);
    r->seconds[RUN_plans] += mem_seconds() - begin;
    return plan;
}

struct plan *run_plan(struct run *r, const struct ir_graph *g, const char *name, int64_t B,
                      int64_t T)
{
    double begin = mem_seconds();
    struct program *p = open_program(r, g, name, (struct ir_bind){B, T});
    r->seconds[RUN_graphs] += mem_seconds() - begin;
    return run_planned(r, p, B, T);
}

struct plan *run_model_plan(struct run *r, enum build_program which, const struct build_options *o,
                            int64_t B, int64_t T)
{
    return run_planned(r, run_program(r, which, o, B, T), B, T);
}

static void show(struct sb *s)
{
    if (s->n) fputs(s->p, stderr);
    sb_free(s);
}

void run_texts(void)
{
    show(&texts.dump);
    show(&texts.report);
    show(&texts.times);
}

/* Whether all parameters of a plan lie in SA_weights. */
static bool serving_only(const struct run *r, const struct plan *plan)
{
    return r->store && !strcmp(program_graph(plan_program(plan))->program, "decode");
}

static void count_compiled(struct run *r, const struct jit_report *rep, double begin)
{
    r->compiled += rep->compiled;
    r->cached += rep->cached;
    r->seconds[RUN_compile] += rep->seconds;
    r->seconds[RUN_load] += mem_seconds() - begin - rep->seconds;
    run_texts();
}

static void find_weights(struct run *r, const struct plan *plan)
{
    if (r->weights) return;
    r->weights_plan = plan;
    r->weights = NEW(r->cli->arena, float *, r->params->n);
    for (size_t i = 0; i < r->params->n && !r->on_gpu; i++) {
        const struct param *p = &r->params->p[i];
        const struct plan_value *v = plan_value(plan, p->name);
        if (v)
            r->weights[i] = v->p;
        else if (!serving_only(r, plan))
            r->weights[i] = NEW(r->cli->arena, float, p->count);
    }
}

void run_ready(struct run *r, const struct plan *plan, struct jit_report *rep)
{
    struct jit_report own;
    double begin = mem_seconds();
    if (!rep) rep = &own;
    cli_check(r->cli, session_compile(r->session, rep, &r->cli->err));
    count_compiled(r, rep, begin);
    find_weights(r, plan);
}

void run_serve(struct run *r, struct served_options *o, struct lm **out)
{
    struct jit_report rep;
    double begin = mem_seconds();
    o->session = r->session;
    o->gpu = r->gpu;
    o->threads = r->threads;
    o->report = &rep;
    r->gpu = NULL;
    cli_check(r->cli, served_open(r->cli->arena, o, out, &r->cli->err));
    if (o->gpu) r->on_gpu = *out;
    count_compiled(r, &rep, begin);
    find_weights(r, program_plan(o->program, 1, 1));
}

void run_close(struct run *r)
{
    session_close(r->session);
}

static void move_weights(struct run *r, bool push)
{
    struct rt_error *err = &r->cli->err;
    if (!session_device(r->session)) return;
    for (size_t i = 0; i < r->params->n; i++) {
        const struct plan_value *v = plan_value(r->weights_plan, r->params->p[i].name);
        if (!v) continue;
        cli_check(r->cli,
                  push ? session_push(r->session, v, err) : session_pull(r->session, v, err));
    }
}

void run_push(struct run *r)
{
    move_weights(r, true);
}

void run_pull(struct run *r)
{
    move_weights(r, false);
}

void run_now(struct run *r, struct plan *p)
{
    plan_run(p);
    cli_check(r->cli, session_status(r->session, &r->cli->err));
}

void run_refused(void *cli, const char *step_dir, const char *why)
{
    (void)cli;
    fprintf(stderr, "strata: warning: %s is not used: %s\n", step_dir, why);
}

struct to_gpu {
    struct run *r;
    uint64_t at;
    XXH3_state_t *hash;
};

static int write_gpu(void *ctx, const void *p, size_t n)
{
    struct to_gpu *x = ctx;
    XXH3_64bits_update(x->hash, p, n);
    cli_check(x->r->cli, lm_gpu_write(x->r->on_gpu, x->at, p, n, &x->r->cli->err));
    x->at += n;
    return 0;
}

static void stream_stored(struct run *r, struct pack *from)
{
    size_t n;
    const struct layout_stored *items = session_stored(r->session, &n);
    struct to_gpu x = {.r = r, .hash = XXH3_createState()};
    struct pool *pool;
    if (!x.hash) cli_fail(RT_machine, "no memory for a hash");
    XXH3_64bits_reset(x.hash);
    cli_check(r->cli, pool_open(r->threads, &pool, &r->cli->err));
    cli_check(r->cli, weights_pack_stream(from, items, n, session_weights_bytes(r->session), pool,
                                          write_gpu, &x, &r->cli->err));
    pool_close(pool);
    r->weights_hash = XXH3_64bits_digest(x.hash);
    XXH3_freeState(x.hash);
}

/* SA_weights; closes `from`. */
static void fill_stored(struct run *r, struct pack *from)
{
    size_t n;
    const struct layout_stored *items = session_stored(r->session, &n);
    if (r->on_gpu)
        stream_stored(r, from);
    else
        cli_check(r->cli, weights_pack(from, items, n, session_weights(r->session),
                                       session_pool(r->session), &r->cli->err));
    pack_close(from);
}

void run_load(struct run *r, const char *path, char found[PATH_MAX])
{
    char own[PATH_MAX], *real = found ? found : own;
    struct cli *c = r->cli;
    cli_check(c, ckpt_weights(path, run_refused, c, real, &c->err));
    if (!serving_only(r, r->weights_plan)) {
        cli_check(c, weights_load(r->params, real, r->weights, c->diag, &c->err));
        run_push(r);
    } else {
        struct pack *from;
        cli_check(c, pack_open(r->params, real, c->diag, &from, &c->err));
        fill_stored(r, from);
    }
    cli_diagnostics(c); /* tensors that are not used */
}

void run_init(struct run *r, uint64_t seed)
{
    if (serving_only(r, r->weights_plan)) {
        fill_stored(r, pack_fresh(r->params, seed));
        return;
    }
    weights_init(r->params, seed, r->weights, session_pool(r->session));
    run_push(r);
}
