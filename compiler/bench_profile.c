/* Where the time of a step goes, by kind of kernel. */
#include "compiler/bench.h"
#include "compiler/kinds.h"
#include "runtime/lm_gpu.h"

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
    if (b->lm) {
        struct cli *c = b->t.run.cli;
        cli_check(c, lm_gpu_profile(b->lm, b->call.B, b->call.T, true, &c->err));
        return;
    }
    for (size_t i = 0; i < n; i++) plan_profile(p[i], true);
}

static void print_rate(const struct kind *x, double flops, struct sb *out)
{
    double t = x->best[x->who];
    if (x->work > 0 && flops > 0)
        sb_printf(out, "%6.1f %% peak", 100 * x->work / t / flops);
    else if (x->work > 0)
        sb_printf(out, "%5.1f TFLOP/s", 1e-12 * x->work / t);
    else if (x->floor.bytes > 0 && t > 0)
        sb_printf(out, "%7.1f GB/s ", x->floor.bytes / t * 1e-9);
    else
        sb_printf(out, "%13s", "");
}

static void print_groups(const struct kinds *k, size_t who, double all, struct sb *out)
{
    double sum[KINDS] = {0};
    for (size_t i = 0; i < k->row.n; i++) sum[k->row.p[i].group] += k->row.p[i].best[who];
    for (int g = 0; g < KINDS; g++)
        if (sum[g] > 0)
            sb_printf(out, "%s %.2f ms (%.1f %%)%s", kind_group_name((enum kind_group)g),
                      1e3 * sum[g], 100 * sum[g] / all, g + 1 < KINDS ? "  " : "");
    sb_char(out, '\n');
}

static void print_kind(const struct kind *x, size_t n, const double *all, double flops, bool floors,
                       struct sb *out)
{
    sb_printf(out, "%9.3f %5.1f%% ", 1e3 * x->best[0], 100 * x->best[0] / all[0]);
    if (n == 2) sb_printf(out, "%9.3f %+9.3f ", 1e3 * x->best[1], 1e3 * (x->best[0] - x->best[1]));
    if (floors) sb_printf(out, "%9.3f ", 1e3 * x->floor.seconds);
    sb_printf(out, "%5u ", x->calls[x->who]);
    print_rate(x, flops, out);
    sb_printf(out, "  %s\n", x->name);
}

static void add_subject(struct kinds *k, const struct bench *b)
{
    struct plan *p[2];
    size_t plans;
    plans_of(b, p, &plans);
    const struct exec_tally *tally =
        b->lm ? lm_gpu_tally(b->lm, b->call.B, b->call.T) : plan_tally(p[0]);
    kinds_add(k, p[0], tally, plans == 2 ? (double)b->t.micro : 1, false);
    if (plans == 2) kinds_add(k, p[1], plan_tally(p[1]), 1, true);
}

/* What the events between steps add to each of them. */
static double between(const struct bench *b)
{
    struct plan *p[2];
    size_t plans;
    if (b->lm) return lm_gpu_event_seconds(b->lm, b->call.B, b->call.T);
    plans_of(b, p, &plans);
    return plan_event_seconds(p[0]);
}

void bench_profile_print(struct arena *a, struct bench *const *b, size_t n, double flops,
                         const struct floor_rates *rates, struct sb *out)
{
    struct kinds *k = kinds_open(a, rates);
    double best[2] = {0}, mean[2] = {0}, least = 0;
    for (k->who = 0; k->who < n; k->who++) add_subject(k, b[k->who]);
    for (size_t i = 0; i < k->row.n; i++) {
        for (size_t j = 0; j < n; j++)
            best[j] += k->row.p[i].best[j], mean[j] += k->row.p[i].mean[j];
        least += k->row.p[i].floor.seconds;
    }
    kinds_sort(k);
    for (size_t j = 0; j < n; j++) {
        sb_printf(out, "%s: %.2f ms in kernels at best, %.2f ms on average\n  ", b[j]->path,
                  1e3 * best[j], 1e3 * mean[j]);
        print_groups(k, j, best[j], out);
    }
    if (rates)
        sb_printf(out, "  floors add up to %.2f ms; measuring adds %.1f us to every launch\n",
                  1e3 * least, 1e6 * between(b[0]));
    sb_str(out, "  best ms  share ");
    if (n == 2) sb_str(out, "second ms 1st - 2nd ");
    if (rates) sb_str(out, " floor ms ");
    sb_str(out, "calls          rate  kind\n");
    for (size_t i = 0; i < k->row.n; i++)
        print_kind(&k->row.p[i], n, best, flops, rates != NULL, out);
}

json_t *bench_profile_json(struct arena *a, const struct bench *b, const struct floor_rates *rates)
{
    struct kinds *k = kinds_open(a, rates);
    double best = 0, mean = 0, least = 0;
    add_subject(k, b);
    kinds_sort(k);
    for (size_t i = 0; i < k->row.n; i++) {
        const struct kind *x = &k->row.p[i];
        best += x->best[0], mean += x->mean[0], least += x->floor.seconds;
    }
    return json_pack("{s:f, s:f, s:f, s:f, s:o}", "measured_ms", 1e3 * best, "mean_ms", 1e3 * mean,
                     "floor_ms", 1e3 * least, "event_us", 1e6 * between(b), "kinds", kinds_json(k));
}
