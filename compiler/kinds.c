#include "compiler/kinds.h"
#include "compiler/bench.h"
#include <math.h>
#include <stdlib.h>

const char *kind_group_name(enum kind_group g)
{
    static const char *const name[] = {
#define GROUP(name) #name,
        KIND_GROUPS(GROUP)
#undef GROUP
    };
    return name[g];
}

static const char *product_name(struct arena *a, const struct ir_graph *g, ir_id n,
                                struct ir_bind b)
{
    bool ta = ir_int(g, n, AK_ta, 0);
    bool tb = ir_int(g, n, AK_tb, ir_at(g, n)->op == OP_grouped_matmul);
    const struct ir_type *x = ir_ty(g, ir_src(g, n, 0)), *y = ir_ty(g, ir_src(g, n, 1));
    long long rows = dim_value(x->dim[x->rank - (ta ? 1 : 2)], b);
    long long inner = dim_value(x->dim[x->rank - (ta ? 2 : 1)], b);
    long long cols = dim_value(y->dim[y->rank - (tb ? 2 : 1)], b);
    return str_fmt(a, "%s %s%s %lldx%lldx%lld", op_info((enum ir_op)ir_at(g, n)->op)->name,
                   ta ? "A'" : "A", tb ? "B'" : "B", rows, cols, inner);
}

/* "layers.12.x" as "layers.*.x": what all layers do alike is one line. */
static const char *any_layer(struct arena *a, const char *label)
{
    static const char mark[] = "layers.";
    const char *at = strstr(label, mark), *digits = at ? at + strlen(mark) : NULL;
    if (!at) return label;
    size_t n = strspn(digits, "0123456789");
    return str_fmt(a, "%.*s*%s", (int)(digits - label), label, digits + n);
}

/* What a step is called in the table; *main is false for steps that only prepare a node's work. */
static const char *kind_name(struct arena *a, const struct plan *p, uint32_t step, bool *main)
{
    const struct lowered *l = plan_lowered(p);
    const struct ir_graph *g = program_graph(plan_program(p));
    const struct sa_step *s = &l->plan.steps[step];
    ir_id n = l->node_of_step[step];
    *main = false;
    if (n >= g->node.n) return "output copies";
    if (s->kernel != SA_PRODUCT && str_starts(str_of(l->plan.kernels[s->kernel].symbol), "k_pack"))
        return "pack";
    *main = true;
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    if (op == OP_matmul || op == OP_grouped_matmul) return product_name(a, g, n, plan_bind(p));
    if (op != OP_rows) return op_info(op)->name;
    return str_fmt(a, "rows %s", any_layer(a, s->label));
}

static enum kind_group group_of(const struct plan *p, uint32_t step, bool main, bool update)
{
    const struct ir_graph *g = program_graph(plan_program(p));
    ir_id n = plan_lowered(p)->node_of_step[step];
    if (n >= g->node.n) return KIND_other;
    if (!main) return KIND_pack;
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    struct str name = str_of(op_info(op)->name);
    if (op == OP_attention || op == OP_attention_cached || op == OP_mla_cached ||
        op == OP_attention_grad)
        return KIND_attention;
    if (bench_flops(g, n, plan_bind(p)) > 0) return KIND_products;
    if (op == OP_rows || op == OP_rope) return KIND_rows;
    if (str_starts(name, "depth_")) return KIND_depth;
    if (str_starts(name, "moe_")) return KIND_experts;
    return update ? KIND_optimiser : KIND_other;
}

static struct kind *kind_at(struct kinds *k, const char *name)
{
    uint32_t *at = map_str(&k->index, str_of(name));
    if (!*at) {
        vec_push(k->a, &k->row, ((struct kind){.name = name, .who = k->who}));
        *at = (uint32_t)k->row.n;
    }
    return &k->row.p[*at - 1];
}

struct kinds *kinds_open(struct arena *a, const struct floor_rates *rates)
{
    struct kinds *k = NEW(a, struct kinds, 1);
    k->a = a;
    k->rates = rates ? *rates : (struct floor_rates)FLOOR_H200;
    map_init(&k->index, a);
    return k;
}

/* On a GPU: nothing is launched, as other sizes use it. */
static bool idle(const struct sa_step *s)
{
    return s->kernel != SA_PRODUCT && s->launch.threads && !s->launch.grid[0];
}

/* Launches of each node. */
static unsigned *launches_of(struct arena *a, const struct plan *p)
{
    const struct lowered *l = plan_lowered(p);
    size_t nodes = program_graph(plan_program(p))->node.n;
    unsigned *n = NEW(a, unsigned, nodes);
    for (uint32_t i = 0; i < l->plan.num_steps; i++)
        if (l->node_of_step[i] < nodes && !idle(&l->plan.steps[i])) n[l->node_of_step[i]]++;
    return n;
}

/* Of node n, and of those up to `last` that its launches do along with it. */
static void add_work(struct kinds *k, struct kind *x, const struct plan *p, ir_id n, ir_id last,
                     double times, unsigned launches)
{
    const struct ir_graph *g = program_graph(plan_program(p));
    double seconds = 0;
    for (ir_id m = n; m <= last; m++) {
        if (ir_at(g, m)->op != ir_at(g, n)->op) continue;
        struct floor f = floor_of(g, m, plan_bind(p), &k->rates);
        x->work += times * bench_flops(g, m, plan_bind(p));
        x->floor.bytes += times * f.bytes;
        x->floor.flops += times * f.flops;
        x->floor.bf16 |= f.bf16;
        seconds += f.seconds;
    }
    x->floor.seconds += times * fmax(seconds, launches * k->rates.launch);
}

void kinds_add(struct kinds *k, const struct plan *p, const struct exec_tally *tally, double times,
               bool update)
{
    const struct lowered *l = plan_lowered(p);
    const struct ir_graph *g = program_graph(plan_program(p));
    const unsigned *launches = launches_of(k->a, p);
    bool *done = NEW(k->a, bool, g->node.n);
    for (uint32_t i = 0; i < l->plan.num_steps; i++) {
        const struct exec_tally t = tally ? tally[i] : (struct exec_tally){0};
        bool main;
        if (idle(&l->plan.steps[i]) || (tally && !t.calls)) continue;
        struct kind *x = kind_at(k, kind_name(k->a, p, i, &main));
        ir_id n = l->node_of_step[i];
        x->group = group_of(p, i, main, update);
        x->best[k->who] += times * t.best;
        if (t.calls) x->mean[k->who] += times * t.seconds / (double)t.calls;
        x->calls[k->who] += (unsigned)times;
        if (!main || done[n] || x->who != k->who) continue;
        done[n] = true;
        add_work(k, x, p, n, l->last_of_step[i], times, launches[n]);
    }
}

static int longest_first(const void *pa, const void *pb)
{
    const struct kind *a = pa, *b = pb;
    double x = a->best[0] + a->best[1], y = b->best[0] + b->best[1];
    if (x != y) return x > y ? -1 : 1;
    if (a->floor.seconds != b->floor.seconds) return a->floor.seconds > b->floor.seconds ? -1 : 1;
    return strcmp(a->name, b->name);
}

void kinds_sort(struct kinds *k)
{
    qsort(k->row.p, k->row.n, sizeof *k->row.p, longest_first);
}

json_t *kinds_json(const struct kinds *k)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < k->row.n; i++) {
        const struct kind *x = &k->row.p[i];
        json_array_append_new(
            rows, json_pack("{s:s, s:s, s:i, s:f, s:f, s:f, s:f, s:b}", "name", x->name, "group",
                            kind_group_name(x->group), "launches", (int)x->calls[0], "ms",
                            1e3 * x->best[0], "floor_ms", 1e3 * x->floor.seconds, "bytes",
                            x->floor.bytes, "flops", x->floor.flops, "bf16", x->floor.bf16));
    }
    return rows;
}

/* One line of the table. */
static void print_floor(const char *name, const struct kind *x, double all, struct sb *out)
{
    sb_printf(out, "%9.3f %5.1f%% %6u %10.2f %10.1f  %s\n", 1e3 * x->floor.seconds,
              100 * x->floor.seconds / all, x->calls[0], 1e-6 * x->floor.bytes,
              1e-9 * x->floor.flops, name);
}

void kinds_print(const struct kinds *k, struct sb *out)
{
    struct kind group[KINDS] = {0}, all = {0};
    for (size_t i = 0; i < k->row.n; i++) {
        const struct kind *x = &k->row.p[i];
        struct kind *to[] = {&group[x->group], &all};
        for (int j = 0; j < 2; j++) {
            to[j]->floor.seconds += x->floor.seconds;
            to[j]->floor.bytes += x->floor.bytes;
            to[j]->floor.flops += x->floor.flops;
            to[j]->calls[0] += x->calls[0];
        }
    }
    sb_printf(out,
              "floor            %.3f ms a step, of kernels one after the other at %.2f TB/s, %.0f "
              "TFLOP/s in bf16, %.1f us a launch\n",
              1e3 * all.floor.seconds, 1e-12 * k->rates.bytes, 1e-12 * k->rates.bf16,
              1e6 * k->rates.launch);
    sb_str(out, "       ms  share launch         MB     GFLOP  kind\n");
    for (int g = 0; g < KINDS; g++)
        if (group[g].calls[0])
            print_floor(kind_group_name((enum kind_group)g), &group[g], all.floor.seconds, out);
    print_floor("all", &all, all.floor.seconds, out);
    sb_char(out, '\n');
    for (size_t i = 0; i < k->row.n; i++)
        print_floor(k->row.p[i].name, &k->row.p[i], all.floor.seconds, out);
}
