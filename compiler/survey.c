#include "compiler/survey.h"
#include "compiler/run.h"
#include "runtime/gpu.h"
#include "runtime/lm.h"
#include "runtime/thread.h"
#include <stdlib.h>

const char *survey_part_name(enum survey_part p)
{
    static const char *const name[] = {"embedding", "attention", "ffn", "experts", "norm", "depth"};
    return name[p];
}

static enum survey_part part_of(const struct param *p)
{
    if (p->kind == PARAM_embedding) return PART_embedding;
    if (strstr(p->name, "_res_proj.") || strstr(p->name, "_res_norm.")) return PART_depth;
    if (strstr(p->name, ".self_attn.")) return PART_attention;
    if (strstr(p->name, ".block_sparse_moe.experts.")) return PART_experts;
    if (strstr(p->name, ".mlp.") || strstr(p->name, ".block_sparse_moe.")) return PART_ffn;
    return PART_norm;
}

/* ---- operations ---- */

/* Of what the outputs need: autodiff leaves nodes behind that nothing reads. */
static double flops_per_token(const struct ir_graph *g, struct ir_bind b)
{
    struct arena *a = arena_open("flops");
    bool *need = NEW(a, bool, g->node.n);
    double sum = 0;
    for (size_t i = 0; i < g->out.n; i++) need[g->out.p[i].id] = true;
    for (ir_id n = (ir_id)g->node.n; n-- > 0;) {
        if (!need[n]) continue;
        sum += op_cost(g, n, b).flops;
        for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) need[ir_src(g, n, i)] = true;
    }
    arena_close(a);
    return sum / (double)(b.B * b.T);
}

/* ---- memory ---- */

struct programs {
    struct cli *c;
    const struct model *m;
    struct params *ps;
    struct session *s;
    struct survey *v;
    uint64_t thread_scratch;
};

static const struct plan *plan_of(struct cli *c, struct session *s, const struct ir_graph *g,
                                  const char *name, int64_t B, int64_t T)
{
    struct program *p = program_open(s, g, name, (struct ir_bind){B, T});
    if (p) return program_plan(p, B, T);
    cli_diagnostics(c);
    exit(EXIT_USER);
}

static void add_plan(struct programs *x, const struct ir_graph *g, const char *name, int64_t B,
                     int64_t T)
{
    uint64_t bytes[SA_external];
    struct survey *v = x->v;
    const struct plan *plan = plan_of(x->c, x->s, g, name, B, T);
    struct plan_size z = plan_size(plan);
    program_memory(plan, bytes);
    if (bytes[SA_scratch] > v->memory.activations) v->memory.activations = bytes[SA_scratch];
    if (z.thread_scratch > x->thread_scratch) x->thread_scratch = z.thread_scratch;
    v->memory.inputs += bytes[SA_slot];
    v->memory.optimizer = bytes[SA_persistent]; /* all named values so far; see divide */
}

static void add_model(struct programs *x, enum build_program which, bool probes)
{
    static const char *const name[] = {"forward", "loss", "train"};
    const struct build_options o = {.probes = probes};
    struct ir_graph *g = build_model(x->c->arena, x->m, x->ps, which, &o);
    const struct ir_bind b = {x->v->B, x->v->T};
    if (which == BUILD_train) build_gradients(g);
    if (which == BUILD_train && !probes) x->v->train_flops = flops_per_token(g, b);
    add_plan(x, g, name[which], b.B, b.T);
}

/* Named values of constant size are weights, gradients, and what the optimiser keeps; partial sums
 * of a tree over micro-batches hold one more set of gradients a level. */
static void divide(struct programs *x)
{
    struct survey *v = x->v;
    uint64_t named = v->memory.optimizer, trained = 0;
    for (size_t i = 0; i < x->ps->n; i++)
        if (x->ps->p[i].kind != PARAM_state) trained += 4 * (uint64_t)x->ps->p[i].count;
    v->memory.weights = 4 * (uint64_t)v->total;
    if (v->train) {
        v->memory.gradients = trained;
        for (int64_t k = x->m->train.micro_batches - 1; k; k >>= 1) v->memory.micro_sums += trained;
    }
    uint64_t known = v->memory.weights + v->memory.gradients;
    v->memory.optimizer = named > known ? named - known : 0;
}

static void plan_memory(struct programs *x)
{
    struct survey *v = x->v;
    const struct train_spec *t = &x->m->train;
    v->train = t->present;
    v->B = t->present ? t->batch_size / t->micro_batches : 1;
    v->T = t->present ? t->seq_len : 512;
    const struct build_options plain = {0};
    struct ir_graph *forward = build_model(x->c->arena, x->m, x->ps, BUILD_forward, &plain);
    v->forward_flops = flops_per_token(forward, (struct ir_bind){v->B, v->T});
    if (t->present) {
        add_model(x, BUILD_train, false);
        add_plan(x, build_apply(x->c->arena, x->m, x->ps), "apply", 1, 1);
        if (t->eval_every) {
            add_model(x, BUILD_loss, false);
            add_model(x, BUILD_train, true);
        }
    } else {
        struct ir_graph *g = build_model(x->c->arena, x->m, x->ps, BUILD_train, &plain);
        build_gradients(g);
        v->train_flops = flops_per_token(g, (struct ir_bind){v->B, v->T});
        add_plan(x, forward, "forward", v->B, v->T);
    }
    divide(x);
}

/* The decode program as a server runs it, with the largest piece of a prompt. */
static void plan_serving(struct programs *x, const char *gpu)
{
    struct survey *v = x->v;
    struct session *s;
    uint64_t bytes[SA_external];
    const struct session_options o = {.diag = x->c->diag, .gpu = gpu, .no_library = true};
    const struct build_options b = {.pages = v->served.pages,
                                    .states = v->served.states,
                                    .context = v->served.context,
                                    .store = build_store(x->m, true)};
    cli_check(x->c, session_open(&o, &s, &x->c->err));
    struct ir_graph *g = build_model(x->c->arena, x->m, x->ps, BUILD_decode, &b);
    struct program *p = program_open(s, g, "decode", (struct ir_bind){1, 1});
    if (!p) {
        cli_diagnostics(x->c);
        exit(EXIT_USER);
    }
    program_memory(program_plan(p, 1, LM_CHUNK), bytes);
    v->serving.weights = bytes[SA_weights];
    v->serving.caches = bytes[SA_persistent];
    v->serving.activations = bytes[SA_scratch] + bytes[SA_slot];
    v->serving.all = v->serving.weights + v->serving.caches + v->serving.activations;
    session_close(s);
}

struct survey survey_model(struct cli *c, const struct model *m, int64_t threads, const char *gpu)
{
    struct survey v = {0};
    struct programs x = {.c = c, .m = m, .ps = params_of(c->arena, m), .v = &v};
    v.total = params_total(x.ps);
    v.active = params_active(x.ps, m);
    for (size_t i = 0; i < x.ps->n; i++) v.part[part_of(&x.ps->p[i])] += x.ps->p[i].count;
    const struct session_options o = {.diag = c->diag, .gpu = gpu};
    cli_check(c, session_open(&o, &x.s, &c->err));
    plan_memory(&x);
    v.served = caches_served(m, x.ps, gpu != NULL);
    cache_bytes(m, x.ps, gpu != NULL, v.cache);
    if (gpu) plan_serving(&x, gpu);
    for (int i = 0; i < CACHES; i++)
        if (cache_paged((enum cache_kind)i)) v.cache[i] *= (uint64_t)(v.served.context / IR_PAGE);
    unsigned n = (unsigned)threads;
    if (!n) cli_check(c, pool_wanted(&n, &c->err));
    v.memory.num_threads = n;
    v.memory.threads = n * x.thread_scratch;
    v.graph_bytes = (double)(session_bytes(x.s) + arena_used(c->arena));
    v.memory.peak = v.memory.weights + v.memory.gradients + v.memory.optimizer + v.memory.inputs +
                    v.memory.activations + v.memory.micro_sums;
    if (gpu)
        v.memory.peak += v.memory.library = GPU_PRODUCT_WORKSPACE;
    else
        v.memory.peak += v.memory.threads + (uint64_t)v.graph_bytes;
    session_close(x.s);
    return v;
}

const struct kinds *survey_kinds(struct cli *c, const struct model *m, const char *gpu,
                                 const struct floor_rates *rates)
{
    const struct train_spec *t = &m->train;
    const struct build_options plain = {0};
    const struct session_options o = {.diag = c->diag, .gpu = gpu};
    int64_t micro = t->present ? t->micro_batches : 1;
    int64_t B = t->present ? t->batch_size / micro : 1, T = t->present ? t->seq_len : 512;
    enum build_program which = t->present ? BUILD_train : BUILD_forward;
    struct params *ps = params_of(c->arena, m);
    struct kinds *k = kinds_open(c->arena, rates);
    struct session *s;
    cli_check(c, session_open(&o, &s, &c->err));
    struct ir_graph *g = build_model(c->arena, m, ps, which, &plain);
    if (t->present) build_gradients(g);
    kinds_add(k, plan_of(c, s, g, t->present ? "train" : "forward", B, T), NULL, (double)micro,
              false);
    if (t->present)
        kinds_add(k, plan_of(c, s, build_apply(c->arena, m, ps), "apply", 1, 1), NULL, 1, true);
    kinds_sort(k);
    return k; /* names are of the session's arenas, which lives on */
}
