#include "compiler/session.h"
#include "compiler/streams.h"
#include "runtime/cc.h"
#include "runtime/cpu.h"
#include "runtime/mem.h"
#include <stdio.h>

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
    if (!st && o->device && strcmp(o->device, "cpu")) st = device_open(s, o->device, err);
    if (st) {
        arena_close(a);
        return st;
    }
    s->target.no_library = o->no_library;
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
    for (size_t i = 0; i < s->script.n; i++) script_close(s->script.p[i]);
    device_close(s);
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
    reserve_close(&s->weights);
    arena_close(s->a);
}

const struct gpu_about *session_device(const struct session *s)
{
    return s->device.gpu ? gpu_about(s->device.gpu) : NULL;
}

enum rt_status session_memory(const struct session *s, size_t *left, struct rt_error *err)
{
    CHECK(s->device.gpu);
    return gpu_memory(s->device.gpu, left, err);
}

enum rt_status session_status(const struct session *s, struct rt_error *err)
{
    const struct device *d = &s->device;
    return d->failed ? rt_fail(err, d->failed, "%s", d->failure.text) : RT_ok;
}

struct pool *session_pool(const struct session *s)
{
    return s->pool;
}

struct program *program_open(struct session *s, const struct ir_graph *g, const char *name,
                             struct ir_bind bind)
{
    struct pass_ctx c = {.arena = s->a,
                         .diag = s->o.diag,
                         .bind = bind,
                         .gpu = s->o.gpu != NULL,
                         .serving = s->o.no_library};
    size_t n;
    const struct pass_row *rows = pass_rows(&n);
    if (g->stage == STAGE_T) g = pipeline_run(&c, &s->o.pipeline, rows, n, g);
    if (!g) return NULL;
    if (g->stage != STAGE_K) {
        diag_add(s->o.diag, D_plain, (struct span){0}, "the passes given do not end in kernels");
        return NULL;
    }
    bool refused = false;
    for (ir_id i = 0; i < g->node.n; i++) {
        const char *why = cg_refusal(s->a, g, i, &s->target);
        if (why) diag_add(s->o.diag, D_plain, ir_span(g, i), why);
        refused = refused || why;
    }
    if (refused) return NULL;
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

static void set_streams(const struct program *p, struct lowered *l)
{
    const struct session_options *o = &p->s->o;
    streams_assign(p->s->a, l, o->streams ? o->streams : SA_STREAMS);
    if (o->pipeline.report)
        sb_printf(o->pipeline.report, "streams: %u of %u steps beside the others, %u waits\n",
                  streams_beside(l), l->plan.num_steps, l->plan.num_waits);
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
    if (s->target.sm) set_streams(p, plan->l);
    vec_push(s->a, &p->plan, plan);
    return plan;
}

struct plan *const *program_plans(const struct program *p, size_t *n)
{
    *n = p->plan.n;
    return p->plan.p;
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
    if (!s->jit && !s->device.gpu) RT_TRY(jit_open(&o, &s->jit, err));
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
    if (s->layout.stored_bytes) RT_TRY(reserve_grow(&s->weights, s->layout.stored_bytes, err));
    return s->device.gpu ? RT_ok : reserve_grow(&s->scratch, scratch, err);
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
    p->move = NEW(s->a, uint8_t, sa->num_values);
    for (uint32_t i = 0; i < sa->num_values; i++) {
        const struct sa_value *x = &sa->values[i];
        struct plan_value *v = &p->value[i];
        char *base = x->at.arena == SA_persistent ? s->persistent.base : p->slot;
        *v = (struct plan_value){.name = x->name,
                                 .p = base + x->at.offset,
                                 .dtype = (enum sa_dtype)x->dtype,
                                 .rank = x->rank,
                                 .count = 1};
        for (uint32_t d = 0; d < x->rank; d++) v->count *= v->dims[d] = x->dims[d];
        v->bytes = sa_value_bytes(x);
    }
}

enum name_use { NAME_read = 1, NAME_made = 2 };

/* Whether value i is a leaf of the graph; else it is an output. */
static bool is_leaf(const struct plan *p, uint32_t i, enum ir_op *op)
{
    const struct mem_named *x = &p->l->mem->named.p[i];
    const struct ir_graph *g = p->program->g;
    *op = (enum ir_op)ir_at(g, x->node)->op;
    if (*op != OP_param && *op != OP_input) return false;
    return !strcmp(x->name, ir_word(g, x->node, AK_name, ir_name(g, x->node)));
}

/* Which names the programs of the session read and make. */
static void find_uses(struct session *s, struct map *uses)
{
    enum ir_op op;
    for (size_t i = 0; i < s->program.n; i++) {
        const struct program *x = s->program.p[i];
        const struct plan *p = x->plan.n ? x->plan.p[0] : NULL;
        for (uint32_t k = 0; p && k < p->l->plan.num_values; k++)
            if (is_leaf(p, k, &op)) *map_str(uses, str_of(p->l->plan.values[k].name)) |= NAME_read;
        for (size_t k = 0; k < x->g->out.n; k++) {
            const char *name = intern_text(x->g->names, x->g->out.p[k].name);
            *map_str(uses, str_of(name)) |= NAME_made;
            if (!strncmp(name, "new.", 4)) *map_str(uses, str_of(name + 4)) |= NAME_made;
        }
    }
}

static void find_moves(struct session *s)
{
    struct arena *a = arena_open("moves");
    struct map uses;
    enum ir_op op;
    map_init(&uses, a);
    find_uses(s, &uses);
    for (size_t i = 0; i < s->program.n; i++)
        for (size_t k = 0; k < s->program.p[i]->plan.n; k++) {
            struct plan *p = s->program.p[i]->plan.p[k];
            for (uint32_t v = 0; v < p->l->plan.num_values; v++) {
                const char *name = p->l->plan.values[v].name;
                uint32_t use = *map_str(&uses, str_of(name));
                bool leaf = is_leaf(p, v, &op), replaces = !strncmp(name, "new.", 4);
                p->move[v] = 0;
                if (leaf && op == OP_input && !(use & NAME_made)) p->move[v] = MOVE_in;
                if (!leaf && !replaces && !(use & NAME_read)) p->move[v] = MOVE_out;
            }
        }
    arena_close(a);
}

static enum rt_status ready(struct session *s, struct plan *p, struct rt_error *err)
{
    if (p->exec) return RT_ok;
    for (uint32_t j = 0; j < p->l->plan.num_kernels; j++)
        p->l->code[j].fn = s->fn.p[*map_find(&s->loaded, str_of(p->l->code[j].symbol)) - 1];
    struct exec_options o = {.memory = {[SA_persistent] = s->persistent.base,
                                        [SA_slot] = p->slot,
                                        [SA_weights] = s->weights.base,
                                        [SA_scratch] = s->scratch.base}};
    return exec_open(&p->l->plan, s->pool, &o, &p->exec, err);
}

static enum rt_status cpu_compile(struct session *s, struct jit_report *rep, struct rt_error *err)
{
    RT_TRY(load_kernels(s, rep, err));
    for (size_t i = 0; i < s->program.n; i++)
        for (size_t k = 0; k < s->program.p[i]->plan.n; k++)
            RT_TRY(ready(s, s->program.p[i]->plan.p[k], err));
    return RT_ok;
}

enum rt_status session_compile(struct session *s, struct jit_report *rep, struct rt_error *err)
{
    if (rep) *rep = (struct jit_report){0};
    if (s->target.sm && !s->device.gpu) BUG("a session that only plans for a GPU cannot run");
    RT_TRY(start(s, err));
    RT_TRY(get_memory(s, err));
    for (size_t i = 0; i < s->program.n; i++)
        for (size_t k = 0; k < s->program.p[i]->plan.n; k++)
            if (!s->program.p[i]->plan.p[k]->value) find_values(s, s->program.p[i]->plan.p[k]);
    RT_TRY(s->device.gpu ? device_compile(s, rep, err) : cpu_compile(s, rep, err));
    find_moves(s);
    for (size_t i = 0; i < s->own.n; i++) {
        uint64_t offset = layout_find(&s->layout, s->own.p[i]->name)->offset;
        s->own.p[i]->p = (char *)s->persistent.base + offset;
        s->own.p[i]->device = device_persistent(s, offset);
    }
    return RT_ok;
}

/* ---- values ---- */

const struct plan_value *session_value(struct session *s, const char *name, int64_t count)
{
    struct plan_value *v = NEW(s->a, struct plan_value, 1);
    layout_add(&s->layout, name, IR_f32, 1, &count);
    *v = (struct plan_value){.name = str_dup(s->a, str_of(name)),
                             .dtype = SA_f32,
                             .rank = 1,
                             .dims = {count},
                             .count = count,
                             .bytes = (size_t)count * sizeof(float)};
    vec_push(s->a, &s->own, v);
    return v;
}

enum rt_status session_push(struct session *s, const struct plan_value *v, struct rt_error *err)
{
    if (!s->device.gpu) return RT_ok;
    RT_TRY(session_status(s, err));
    RT_TRY(gpu_use(s->device.gpu, err));
    RT_TRY(gpu_put(s->device.gpu, v->device, v->p, v->bytes, err));
    return gpu_wait(s->device.gpu, err); /* a device that reads all memory may take its time */
}

enum rt_status session_pull(struct session *s, const struct plan_value *v, struct rt_error *err)
{
    if (!s->device.gpu) return RT_ok;
    RT_TRY(session_status(s, err));
    RT_TRY(gpu_use(s->device.gpu, err));
    RT_TRY(gpu_get(s->device.gpu, v->p, v->device, v->bytes, err));
    return gpu_wait(s->device.gpu, err);
}

struct combine {
    float *to;
    const float *a, *b;
    enum combine_op op;
};

static void combine_part(void *arg, int64_t lo, int64_t hi, unsigned worker)
{
    const struct combine *x = arg;
    (void)worker;
    if (x->op == COMBINE_sum)
        for (int64_t i = lo; i < hi; i++) x->to[i] = x->a[i] + x->b[i];
    else if (x->op == COMBINE_max)
        for (int64_t i = lo; i < hi; i++) x->to[i] = x->a[i] > x->b[i] ? x->a[i] : x->b[i];
    else
        memcpy(x->to + lo, x->a + lo, (size_t)(hi - lo) * sizeof *x->to);
}

void session_combine(struct session *s, struct session_span to, struct session_span a,
                     struct session_span b, enum combine_op op)
{
    struct device *d = &s->device;
    struct combine x = {to.p, a.p, b.p, op};
    if (!d->gpu)
        pool_run(s->pool, combine_part, &x, (int64_t)to.n, 65536);
    else if (!d->failed)
        d->failed = device_combine(s, to, a, b, op, &d->failure);
}

const struct layout_stored *session_stored(const struct session *s, size_t *n)
{
    *n = s->layout.stored.n;
    return s->layout.stored.p;
}

uint64_t session_weights_bytes(const struct session *s)
{
    return s->layout.stored_bytes;
}

void *session_weights(const struct session *s)
{
    return s->weights.base;
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
    if (!plan_ready(plan)) BUG("%s: run before session_compile", plan->program->name);
    if (plan->gpu_exec)
        device_run(plan);
    else
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

const struct sa_plan *plan_flat(const struct plan *plan, void *memory[SA_external])
{
    const struct session *s = plan->program->s;
    CHECK(plan->exec);
    memory[SA_persistent] = s->persistent.base;
    memory[SA_slot] = plan->slot;
    memory[SA_scratch] = s->scratch.base;
    memory[SA_weights] = s->weights.base;
    return &plan->l->plan;
}

struct ir_bind plan_bind(const struct plan *plan)
{
    return plan->bind;
}

bool plan_ready(const struct plan *plan)
{
    return plan->exec || plan->gpu_exec;
}

void plan_profile(struct plan *plan, bool on)
{
    struct device *d = &plan->program->s->device;
    if (plan->exec)
        exec_profile(plan->exec, on);
    else if (!d->failed)
        d->failed = gpu_exec_profile(plan->gpu_exec, on, &d->failure);
}

const struct exec_tally *plan_tally(const struct plan *plan)
{
    if (plan->exec) return exec_tally(plan->exec);
    return plan->gpu_exec ? gpu_exec_tally(plan->gpu_exec) : NULL;
}

double plan_event_seconds(const struct plan *plan)
{
    return plan->gpu_exec ? gpu_exec_event_seconds(plan->gpu_exec) : 0;
}

void program_memory(const struct plan *plan, uint64_t bytes[SA_external])
{
    for (int i = 0; i < SA_external; i++) bytes[i] = plan->l->plan.arena_bytes[i];
    bytes[SA_persistent] = plan->program->s->layout.bytes;
    bytes[SA_weights] = plan->program->s->layout.stored_bytes;
}

struct plan_size plan_size(const struct plan *plan)
{
    const struct sa_plan *p = &plan->l->plan;
    struct plan_size z = {.steps = p->num_steps, .kernels = p->num_kernels};
    for (uint32_t i = 0; i < p->num_steps; i++) {
        z.products += p->steps[i].kernel == SA_PRODUCT;
        if (p->steps[i].scratch_bytes > z.thread_scratch)
            z.thread_scratch = p->steps[i].scratch_bytes;
    }
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
