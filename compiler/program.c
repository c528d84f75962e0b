#include "compiler/program.h"
#include "runtime/cc.h"
#include "runtime/mem.h"
#include "runtime/reserve.h"
#include <stdio.h>

struct plan {
    struct program *program;
    struct ir_bind bind;
    struct lowered *l;
    void *slot; /* inputs and outputs of run-time size */
    struct exec *exec;
    struct plan_value *value;
};
struct program {
    struct session *s;
    const char *name;
    const struct ir_graph *g; /* stage K */
    VEC(struct plan *) plan;
};
struct session {
    struct arena *a;
    struct session_options o;
    struct cg_target target;
    struct layout layout;
    struct reserve persistent, scratch;
    struct pool *pool;
    struct jit *jit;
    VEC(struct program *) program;
    struct map loaded; /* symbol: index + 1 into fn */
    VEC(sa_kernel *) fn;
};

enum rt_status session_open(const struct session_options *o, struct session **out,
                            struct rt_error *err)
{
    struct arena *a = arena_open("session");
    struct session *s = NEW(a, struct session, 1);
    *out = NULL;
    s->a = a;
    s->o = *o;
    if (!s->o.cpu) s->o.cpu = "native";
    if (!s->o.diag) s->o.diag = diag_open(a);
    enum rt_status st = cc_cpu_known(s->o.cpu, err);
    if (st) {
        arena_close(a);
        return st;
    }
    s->target.bf16_dot = !strcmp(s->o.cpu, "native") && __builtin_cpu_supports("avx512bf16");
    if (s->o.gpu && (sscanf(s->o.gpu, "sm_%u", &s->target.sm) != 1 || !s->target.sm)) {
        st = rt_fail(err, RT_user, "no architecture '%s': it is sm_80, sm_90a, sm_100 ...",
                     s->o.gpu);
        arena_close(a);
        return st;
    }
    layout_init(&s->layout, a);
    map_init(&s->loaded, a);
    *out = s;
    return RT_ok;
}

void session_close(struct session *s)
{
    if (!s) return;
    for (size_t i = 0; i < s->program.n; i++)
        for (size_t k = 0; k < s->program.p[i]->plan.n; k++) {
            struct plan *p = s->program.p[i]->plan.p[k];
            exec_close(p->exec);
            mem_free(p->slot, p->l->plan.arena_bytes[SA_slot]);
        }
    pool_close(s->pool);
    jit_close(s->jit);
    reserve_close(&s->persistent);
    reserve_close(&s->scratch);
    arena_close(s->a);
}

bool session_bf16(const struct session *s)
{
    return s->target.bf16_dot;
}

struct pool *session_pool(const struct session *s)
{
    return s->pool;
}

struct program *program_open(struct session *s, const struct ir_graph *g, const char *name,
                             struct ir_bind bind)
{
    struct pass_ctx c = {.arena = s->a, .diag = s->o.diag, .bind = bind, .gpu = s->o.gpu != NULL};
    size_t n;
    const struct pass_row *rows = pass_rows(&n);
    if (g->stage == STAGE_T) g = pipeline_run(&c, &s->o.pipeline, rows, n, g);
    if (!g) return NULL;
    if (g->stage != STAGE_K) {
        diag_add(s->o.diag, D_plain, (struct span){0}, "the passes given do not end in kernels");
        return NULL;
    }
    struct program *p = NEW(s->a, struct program, 1);
    p->s = s;
    p->name = str_dup(s->a, str_of(name));
    p->g = g;
    vec_push(s->a, &s->program, p);
    return p;
}

const struct ir_graph *program_graph(const struct program *p)
{
    return p->g;
}

struct plan *program_plan(struct program *p, int64_t B, int64_t T)
{
    struct session *s = p->s;
    for (size_t i = 0; i < p->plan.n; i++)
        if (p->plan.p[i]->bind.B == B && p->plan.p[i]->bind.T == T) return p->plan.p[i];
    struct plan *plan = NEW(s->a, struct plan, 1);
    plan->program = p;
    plan->bind = (struct ir_bind){B, T};
    plan->l = lower(s->a, p->g, plan->bind, &s->target, &s->layout);
    const char *why = memplan_check(plan->l->mem, s->a);
    if (why) BUG("%s: memory plan: %s", p->name, why);
    vec_push(s->a, &p->plan, plan);
    return plan;
}

void program_emit_c(struct program *p, int64_t B, int64_t T, const char *title, struct sb *out)
{
    lower_emit_c(program_plan(p, B, T)->l, p->s->o.diag, title, out);
}

/* ---- making plans ready ---- */

static enum rt_status start(struct session *s, struct rt_error *err)
{
    struct jit_options o = {s->o.cpu, s->o.cache_bytes};
    if (!s->pool) RT_TRY(pool_open(s->o.threads, &s->pool, err));
    if (!s->jit) RT_TRY(jit_open(&o, &s->jit, err));
    return RT_ok;
}

/* Memory for everything planned so far. Shared arenas stay where they are. */
static enum rt_status get_memory(struct session *s, struct rt_error *err)
{
    uint64_t scratch = 0;
    for (size_t i = 0; i < s->program.n; i++)
        for (size_t k = 0; k < s->program.p[i]->plan.n; k++) {
            struct plan *p = s->program.p[i]->plan.p[k];
            const uint64_t *bytes = p->l->plan.arena_bytes;
            if (bytes[SA_scratch] > scratch) scratch = bytes[SA_scratch];
            if (p->slot) continue;
            p->slot = mem_alloc(bytes[SA_slot]);
            if (!p->slot)
                return rt_fail(err, RT_machine, "no memory for %llu bytes of inputs and outputs",
                               (unsigned long long)bytes[SA_slot]);
        }
    RT_TRY(reserve_grow(&s->persistent, s->layout.bytes, err));
    return reserve_grow(&s->scratch, scratch, err);
}

/* Kernels of all plans that are not loaded yet, once each. */
static enum rt_status load_kernels(struct session *s, struct jit_report *rep, struct rt_error *err)
{
    struct arena *a = arena_open("kernels");
    VEC(struct jit_kernel) k = {0};
    size_t first = s->fn.n;
    for (size_t i = 0; i < s->program.n; i++)
        for (size_t m = 0; m < s->program.p[i]->plan.n; m++) {
            const struct lowered *l = s->program.p[i]->plan.p[m]->l;
            for (uint32_t j = 0; j < l->plan.num_kernels; j++) {
                uint32_t *at = map_str(&s->loaded, str_of(l->code[j].symbol));
                if (*at) continue;
                vec_push(s->a, &s->fn, NULL);
                *at = (uint32_t)s->fn.n;
                vec_push(a, &k, ((struct jit_kernel){l->code[j].symbol, l->kernel[j].text, NULL}));
            }
        }
    enum rt_status st = k.n ? jit_load(s->jit, cg_cpu_prelude(), k.p, k.n, rep, err) : RT_ok;
    for (size_t i = 0; i < k.n; i++) {
        if (st)
            *map_str(&s->loaded, str_of(k.p[i].symbol)) = 0;
        else
            memcpy(&s->fn.p[first + i], &k.p[i].fn, sizeof k.p[i].fn);
    }
    arena_close(a);
    return st;
}

static void find_values(struct session *s, struct plan *p)
{
    const struct sa_plan *sa = &p->l->plan;
    p->value = NEW(s->a, struct plan_value, sa->num_values);
    for (uint32_t i = 0; i < sa->num_values; i++) {
        const struct sa_value *x = &sa->values[i];
        struct plan_value *v = &p->value[i];
        char *base = x->at.arena == SA_persistent ? s->persistent.base : p->slot;
        *v = (struct plan_value){
            x->name, base + x->at.offset, (enum sa_dtype)x->dtype, x->rank, {0}, 1, 0};
        for (uint32_t d = 0; d < x->rank; d++) v->count *= v->dims[d] = x->dims[d];
        static const size_t size[SA_DTYPES] = {
            [SA_f32] = 4, [SA_bf16] = 2, [SA_i32] = 4, [SA_i64] = 8,
            [SA_u8] = 1,  [SA_u16] = 2,  [SA_f64] = 8};
        v->bytes = (size_t)v->count * size[x->dtype];
    }
}

static enum rt_status ready(struct session *s, struct plan *p, struct rt_error *err)
{
    if (p->exec) return RT_ok;
    for (uint32_t j = 0; j < p->l->plan.num_kernels; j++)
        p->l->code[j].fn = s->fn.p[*map_find(&s->loaded, str_of(p->l->code[j].symbol)) - 1];
    struct exec_options o = {.memory = {[SA_persistent] = s->persistent.base,
                                        [SA_slot] = p->slot,
                                        [SA_scratch] = s->scratch.base}};
    find_values(s, p);
    return exec_open(&p->l->plan, s->pool, &o, &p->exec, err);
}

enum rt_status session_compile(struct session *s, struct jit_report *rep, struct rt_error *err)
{
    if (rep) *rep = (struct jit_report){0};
    RT_TRY(start(s, err));
    RT_TRY(get_memory(s, err));
    RT_TRY(load_kernels(s, rep, err));
    for (size_t i = 0; i < s->program.n; i++)
        for (size_t k = 0; k < s->program.p[i]->plan.n; k++)
            RT_TRY(ready(s, s->program.p[i]->plan.p[k], err));
    return RT_ok;
}

/* ---- plans ---- */

const struct plan_value *plan_values(const struct plan *plan, size_t *n)
{
    CHECK(plan->value);
    *n = plan->l->plan.num_values;
    return plan->value;
}

const struct plan_value *plan_value(const struct plan *plan, const char *name)
{
    size_t n;
    const struct plan_value *v = plan_values(plan, &n);
    for (size_t i = 0; i < n; i++)
        if (!strcmp(v[i].name, name)) return &v[i];
    return NULL;
}

void plan_run(struct plan *plan)
{
    if (!plan->exec) BUG("%s: run before session_compile", plan->program->name);
    exec_run(plan->exec, 0, 0);
}

struct program *plan_program(const struct plan *plan)
{
    return plan->program;
}

const struct lowered *plan_lowered(const struct plan *plan)
{
    return plan->l;
}

struct ir_bind plan_bind(const struct plan *plan)
{
    return plan->bind;
}

struct exec *plan_exec(const struct plan *plan)
{
    return plan->exec;
}

void program_memory(const struct plan *plan, uint64_t bytes[SA_external])
{
    for (int i = 0; i < SA_external; i++) bytes[i] = plan->l->plan.arena_bytes[i];
    bytes[SA_persistent] = plan->program->s->layout.bytes;
}

struct plan_size plan_size(const struct plan *plan)
{
    const struct sa_plan *p = &plan->l->plan;
    struct plan_size z = {p->num_steps, p->num_kernels, 0};
    for (uint32_t i = 0; i < p->num_steps; i++)
        if (p->steps[i].scratch_bytes > z.thread_scratch)
            z.thread_scratch = p->steps[i].scratch_bytes;
    return z;
}

size_t session_bytes(const struct session *s)
{
    return arena_used(s->a);
}

void plan_print(const struct plan *plan, struct sb *out)
{
    lower_print(plan->l, out);
}
