/* Where the time of a step goes, by kind of kernel. */
#include "compiler/bench.h"
#include <stdlib.h>

enum group { PRODUCTS, ATTENTION, PACK, ROWS, DEPTH, EXPERTS, OPTIMISER, OTHER, GROUPS };
static const char *const group_name[] = {"products", "attention", "pack",      "rows",
                                         "depth",    "experts",   "optimiser", "other"};

struct kind {
    const char *name;
    enum group group;
    double best[2], mean[2]; /* seconds of a step, per subject */
    double flops, bytes;     /* of subject `who` in a step */
    size_t who;
    unsigned calls[2];
};
struct kinds {
    struct arena *a;
    VEC(struct kind) row;
    struct map index; /* name: row + 1 */
    size_t who;
};

static void plans_of(const struct bench *b, struct plan *p[2], size_t *n)
{
    bool train = b->program == BENCH_train;
    p[0] = train ? b->t.train : b->plan;
    p[1] = b->t.apply;
    *n = train ? 2 : 1;
}

void bench_profile(struct bench *b)
{
    struct plan *p[2];
    size_t n;
    plans_of(b, p, &n);
    for (size_t i = 0; i < n; i++) plan_profile(p[i], true);
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

static enum group group_of(const struct plan *p, uint32_t step, bool main, bool update)
{
    const struct ir_graph *g = program_graph(plan_program(p));
    ir_id n = plan_lowered(p)->node_of_step[step];
    if (n >= g->node.n) return OTHER;
    if (!main) return PACK;
    enum ir_op op = (enum ir_op)ir_at(g, n)->op;
    struct str name = str_of(op_info(op)->name);
    if (op == OP_attention || op == OP_attention_cached || op == OP_mla_cached ||
        op == OP_attention_grad)
        return ATTENTION;
    if (bench_flops(g, n, plan_bind(p)) > 0) return PRODUCTS;
    if (op == OP_rows || op == OP_rope) return ROWS;
    if (str_starts(name, "depth_")) return DEPTH;
    if (str_starts(name, "moe_")) return EXPERTS;
    return update ? OPTIMISER : OTHER;
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

static void add_plan(struct kinds *k, const struct plan *p, double times, bool update)
{
    const struct lowered *l = plan_lowered(p);
    const struct ir_graph *g = program_graph(plan_program(p));
    bool *done = NEW(k->a, bool, g->node.n);
    const struct exec_tally *tally = plan_tally(p);
    for (uint32_t i = 0; i < l->plan.num_steps && tally; i++) {
        const struct exec_tally t = tally[i];
        if (!t.calls) continue;
        bool main;
        struct kind *x = kind_at(k, kind_name(k->a, p, i, &main));
        ir_id n = l->node_of_step[i];
        x->group = group_of(p, i, main, update);
        x->best[k->who] += times * t.best;
        x->mean[k->who] += times * t.seconds / (double)t.calls;
        x->calls[k->who] += (unsigned)times;
        if (!main || done[n] || x->who != k->who) continue;
        done[n] = true;
        for (ir_id m = n; m <= l->last_of_step[i]; m++) {
            if (ir_at(g, m)->op != ir_at(g, n)->op) continue;
            x->flops += times * bench_flops(g, m, plan_bind(p));
            x->bytes += times * op_cost(g, m, plan_bind(p)).bytes;
        }
    }
}

static int longest_first(const void *pa, const void *pb)
{
    const struct kind *a = pa, *b = pb;
    double x = a->best[0] + a->best[1], y = b->best[0] + b->best[1];
    if (x != y) return x > y ? -1 : 1;
    return strcmp(a->name, b->name);
}

static void print_rate(const struct kind *x, double flops, struct sb *out)
{
    double t = x->best[x->who];
    if (x->flops > 0 && flops > 0)
        sb_printf(out, "%6.1f %% peak", 100 * x->flops / t / flops);
    else if (x->flops > 0)
        sb_printf(out, "%5.1f TFLOP/s", 1e-12 * x->flops / t);
    else if (x->bytes > 0 && t > 0)
        sb_printf(out, "%7.1f GB/s ", x->bytes / t * 1e-9);
    else
        sb_printf(out, "%13s", "");
}

static void print_groups(const struct kinds *k, size_t who, double all, struct sb *out)
{
    double sum[GROUPS] = {0};
    for (size_t i = 0; i < k->row.n; i++) sum[k->row.p[i].group] += k->row.p[i].best[who];
    for (int g = 0; g < GROUPS; g++)
        if (sum[g] > 0)
            sb_printf(out, "%s %.2f ms (%.1f %%)%s", group_name[g], 1e3 * sum[g],
                      100 * sum[g] / all, g + 1 < GROUPS ? "  " : "");
    sb_char(out, '\n');
}

static void print_kind(const struct kind *x, size_t n, const double *all, double flops,
                       struct sb *out)
{
    sb_printf(out, "%9.3f %5.1f%% ", 1e3 * x->best[0], 100 * x->best[0] / all[0]);
    if (n == 2) sb_printf(out, "%9.3f %+9.3f ", 1e3 * x->best[1], 1e3 * (x->best[0] - x->best[1]));
    sb_printf(out, "%5u ", x->calls[x->who]);
    print_rate(x, flops, out);
    sb_printf(out, "  %s\n", x->name);
}

void bench_profile_print(struct arena *a, struct bench *const *b, size_t n, double flops,
                         struct sb *out)
{
    struct kinds k = {.a = a};
    double best[2] = {0}, mean[2] = {0};
    map_init(&k.index, a);
    for (k.who = 0; k.who < n; k.who++) {
        struct plan *p[2];
        size_t plans;
        plans_of(b[k.who], p, &plans);
        add_plan(&k, p[0], plans == 2 ? (double)b[k.who]->t.micro : 1, false);
        if (plans == 2) add_plan(&k, p[1], 1, true);
    }
    for (size_t i = 0; i < k.row.n; i++)
        for (size_t j = 0; j < n; j++) best[j] += k.row.p[i].best[j], mean[j] += k.row.p[i].mean[j];
    qsort(k.row.p, k.row.n, sizeof *k.row.p, longest_first);
    for (size_t j = 0; j < n; j++) {
        sb_printf(out, "%s: %.2f ms in kernels at best, %.2f ms on average\n  ", b[j]->path,
                  1e3 * best[j], 1e3 * mean[j]);
        print_groups(&k, j, best[j], out);
    }
    sb_str(out, "  best ms  share ");
    if (n == 2) sb_str(out, "second ms 1st - 2nd ");
    sb_str(out, "calls          rate  kind\n");
    for (size_t i = 0; i < k.row.n; i++) print_kind(&k.row.p[i], n, best, flops, out);
}
