#include "compiler/bench.h"
#include "compiler/bench_url.h"
#include "compiler/machine.h"
#include "runtime/gpu.h"
#include "runtime/mem.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static const char help[] =
    "usage: strata bench SPEC [--steps N] [--profile]\n"
    "       strata bench --pair A.yaml B.yaml [--pairs N]\n"
    "       strata bench --url http://127.0.0.1:8080 [--clients N | --rate R]\n\n"
    "Measures whole steps (gradients and the optimiser) on random tokens, beside what the machine "
    "can\n"
    "do: its float32 multiply-add peak and the speed at which it reads memory, measured in the "
    "same\n"
    "process before and after (not on a GPU). --pair alternates steps of two specs and prints the "
    "median of the\n"
    "ratios of their times. --url puts a server under load and reports times to the first token, "
    "per token\n"
    "and between tokens, and throughput.\n\n"
    "  strata bench specs/bench-c.yaml --profile\n"
    "  strata bench --pair specs/bench-a.yaml specs/bench-a-standard.yaml\n"
    "  strata bench --url http://127.0.0.1:8080 --rate 2.5 --seconds 60\n\n"
    "  --steps N          steps to measure (30), after 3 that are not\n"
    "  --pair             two specs, step by step in turns\n"
    "  --pairs N          pairs of steps to measure (100)\n"
    "  --program NAME     train (default), forward, decode: one more token for every sequence, or\n"
    "                     prefill: a prompt\n"
    "  --context N        of decode: tokens of a sequence, in whole pages of 64 (1024)\n"
    "  --batch N          of decode: sequences (1)\n"
    "  --profile          where the time goes, by kind of kernel; on a GPU beside the least that "
    "each "
    "kind\n"
    "                     can take ('strata check --floor' tells that without a GPU)\n" FLOOR_HELP
    "  --first            only the way to the first step: what each part of it takes\n"
    "  --json             one JSON object on standard output instead of the text\n" RUN_DTYPE_HELP
        RUN_DEVICE_HELP RUN_HELP BENCH_URL_HELP;

enum { WARM_UP = 3, PROFILED = 5 };

struct options {
    int64_t steps, pairs;
    bool pair, profile, first, json;
    const char *program;
    struct bench_options bench;
    struct run_options run;
    struct bench_url_options url;
    const char *ceilings;
    struct floor_rates rates;
};

struct result { /* of one subject */
    double *seconds;
    size_t n;
    double median, best;
};

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of sorted numbers, between neighbours where q falls between them. */
static double quantile(const double *x, size_t n, double q)
{
    double at = q * (double)(n - 1);
    size_t i = (size_t)at;
    double rest = at - (double)i;
    return i + 1 < n ? x[i] * (1 - rest) + x[i + 1] * rest : x[i];
}

static void summarise(struct arena *a, struct result *r)
{
    double *x = NEW(a, double, r->n);
    memcpy(x, r->seconds, r->n * sizeof *x);
    qsort(x, r->n, sizeof *x, by_size);
    r->median = quantile(x, r->n, 0.5);
    r->best = x[0];
}

/* The peak of the arithmetic of its products. */
static double peak_of(const struct bench *b, const struct machine *m)
{
    return b->model->train.precision == PREC_bf16 ? m->bf16 : m->flops;
}

/* The least time that a step can take on this CPU, in seconds. */
static double least(const struct bench *b, const struct machine *m)
{
    double math = b->flops / peak_of(b, m), move = b->bytes / m->bytes;
    return math > move ? math : move;
}

static void print_subject(const struct bench *b, const struct result *r, const struct machine *m)
{
    double tokens = (double)(b->B * b->T);
    printf("%s\n", b->path);
    printf("  step          %10.3f ms median, %.3f ms best of %zu, B %lld, T %lld\n",
           1e3 * r->median, 1e3 * r->best, r->n, (long long)b->B, (long long)b->T);
    printf("  tokens        %10.0f per second\n", tokens / r->median);
    printf("  work          %10.3f GFLOP a step in products and attention\n", 1e-9 * b->flops);
    if (!m) {
        printf("  speed         %10.3f TFLOP/s median, %.3f best\n", 1e-12 * b->flops / r->median,
               1e-12 * b->flops / r->best);
        return;
    }
    printf("  share of peak %10.1f %% median, %.1f %% best\n",
           100 * b->flops / r->median / peak_of(b, m), 100 * b->flops / r->best / peak_of(b, m));
    if (b->weights > 0)
        printf("  weights       %10.3f MB a step, %.1f GB/s: %.1f %% of memory's speed, %.1f %% "
               "best\n",
               1e-6 * b->weights, 1e-9 * b->weights / r->median,
               100 * b->weights / r->median / m->bytes, 100 * b->weights / r->best / m->bytes);
    double f = least(b, m);
    printf("  floor         %10.3f ms (%s), %.1f %% of the median\n", 1e3 * f,
           f > b->flops / peak_of(b, m) ? "memory" : "arithmetic", 100 * f / r->median);
}

static json_t *subject_json(const struct bench *b, const struct result *r, const struct machine *m)
{
    if (!m)
        return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f}", "spec", b->path, "median_ms",
                         1e3 * r->median, "best_ms", 1e3 * r->best, "tokens_per_second",
                         (double)(b->B * b->T) / r->median, "flops", b->flops, "bytes", b->bytes);
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "spec", b->path,
                     "median_ms", 1e3 * r->median, "best_ms", 1e3 * r->best, "tokens_per_second",
                     (double)(b->B * b->T) / r->median, "flops", b->flops, "bytes", b->bytes,
                     "share_of_peak", b->flops / r->median / peak_of(b, m), "best_share_of_peak",
                     b->flops / r->best / peak_of(b, m), "share_of_floor", least(b, m) / r->median,
                     "weight_bytes", b->weights, "weight_share_of_memory",
                     b->weights / r->median / m->bytes);
}

static void print_json(json_t *top)
{
    CHECK(top);
    json_dumpf(top, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(top);
}

/* ---- the way to the first step ---- */

static void first_step(struct cli *c, struct bench *b, const struct options *o)
{
    double begin = mem_seconds();
    bench_open(b, c, c->arg.p[0], &o->bench, &o->run);
    double step = bench_step(b), all = mem_seconds() - begin;
    const double *s = b->t.run.seconds;
    const struct {
        const char *key, *text;
        double seconds;
    } part[] = {{"front_end", "front end", b->seconds.spec},
                {"passes", "graphs and passes", s[RUN_graphs]},
                {"text", "kernel text, memory plan", s[RUN_plans]},
                {"compiler", o->run.device ? "compiler" : "compiler (C, LLVM)", s[RUN_compile]},
                {"start", "cache, memory, threads", s[RUN_load]},
                {"weights", "initial weights", b->seconds.init},
                {"step", "first step", step},
                {"total", "total", all}};
    const struct run *r = &b->t.run;
    json_t *top = json_pack("{s:I, s:I}", "kernels_compiled", (json_int_t)r->compiled,
                            "kernels_cached", (json_int_t)r->cached);
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        json_object_set_new(top, part[i].key, json_real(part[i].seconds));
        if (!o->json) printf("%-24s %9.1f ms\n", part[i].text, 1e3 * part[i].seconds);
    }
    if (o->json) {
        print_json(top);
        return;
    }
    printf("%-24s %9zu compiled, %zu from the cache\n", "kernels", r->compiled, r->cached);
    json_decref(top);
}

/* ---- one, and two in turns ---- */

/* Steps on a device are recorded, and those that are profiled are not: they come after the others.
 */
static void warm_up(struct bench *b, bool profile)
{
    for (int i = 0; i < WARM_UP; i++) bench_step(b);
    if (profile) bench_profile(b);
}

static void show_profile(struct cli *c, struct bench *const *b, size_t n, const struct machine *m,
                         const struct floor_rates *rates)
{
    struct sb s = {0};
    bench_profile_print(c->arena, b, n, m ? m->flops : 0, m ? NULL : rates, &s);
    fputs(s.p, stdout);
    sb_free(&s);
}

static void show_machine(const struct machine *m)
{
    printf("machine, %u thread%s\n  peak          %10.1f GFLOP/s float32\n                "
           "%10.1f GFLOP/s bf16\n  memory        %10.1f GB/s read\n",
           m->threads, m->threads == 1 ? "" : "s", 1e-9 * m->flops, 1e-9 * m->bf16,
           1e-9 * m->bytes);
    if (machine_busy(m))
        printf("  the machine is busy: one thread alone reaches %.1f, so shares of the peak are "
               "too high\n",
               1e-9 * m->alone / m->threads);
}

static void show_device(const struct gpu_about *g)
{
    printf("cuda:%d, %s (%s), %d multiprocessors\n", g->ordinal, g->name, g->arch,
           g->multiprocessors);
}

static json_t *device_json(const struct gpu_about *g)
{
    return json_pack("{s:s, s:s, s:i, s:I}", "name", g->name, "arch", g->arch, "multiprocessors",
                     g->multiprocessors, "bytes", (json_int_t)g->bytes);
}

static json_t *machine_json(const struct machine *m)
{
    return json_pack("{s:i, s:b, s:f, s:f, s:f}", "threads", (int)m->threads, "busy",
                     machine_busy(m), "flops_per_second", m->flops, "bf16_flops_per_second",
                     m->bf16, "bytes_per_second", m->bytes);
}

struct turn { /* what is measured */
    struct cli *c;
    struct bench *b[2];
    struct result r[2];
    struct machine own;
    struct machine *machine; /* NULL: on a device */
    const struct gpu_about *device;
    size_t n;      /* subjects */
    double *ratio; /* of n == 2: time of the first over that of the second, sorted */
    size_t rounds;
};

/* The subject that goes first changes every round. */
static void take_turns(struct turn *t, const struct options *o)
{
    struct arena *a = t->c->arena;
    t->ratio = NEW(a, double, t->rounds);
    for (size_t i = 0; i < t->n; i++) {
        warm_up(t->b[i], o->profile && !t->device);
        t->r[i] = (struct result){.seconds = NEW(a, double, t->rounds), .n = t->rounds};
    }
    if (t->machine) machine_measure(t->machine);
    for (size_t i = 0; i < t->rounds; i++) {
        for (size_t k = 0; k < t->n; k++) {
            size_t who = (k + i) % t->n;
            t->r[who].seconds[i] = bench_step(t->b[who]);
        }
        if (t->n == 2) t->ratio[i] = t->r[0].seconds[i] / t->r[1].seconds[i];
    }
    if (t->machine) machine_measure(t->machine);
    for (size_t i = 0; i < t->n && o->profile && t->device; i++) {
        bench_profile(t->b[i]);
        for (int k = 0; k < PROFILED; k++) bench_step(t->b[i]);
    }
    for (size_t i = 0; i < t->n; i++) summarise(a, &t->r[i]);
    qsort(t->ratio, t->rounds, sizeof *t->ratio, by_size);
}

static void show(const struct turn *t, const struct options *o)
{
    const double *x = t->ratio;
    double q[3];
    for (int i = 0; i < 3; i++) q[i] = quantile(x, t->rounds, 0.25 * (i + 1));
    if (o->json) {
        json_t *top = json_pack("{s:o, s:o}", t->device ? "device" : "machine",
                                t->device ? device_json(t->device) : machine_json(t->machine),
                                "subjects", json_array());
        for (size_t i = 0; i < t->n; i++) {
            json_t *s = subject_json(t->b[i], &t->r[i], t->machine);
            if (o->profile)
                json_object_set_new(s, "profile",
                                    bench_profile_json(t->c->arena, t->b[i], &o->rates));
            json_array_append_new(json_object_get(top, "subjects"), s);
        }
        if (t->n == 2) json_object_set_new(top, "ratio", json_pack("[f,f,f]", q[0], q[1], q[2]));
        print_json(top);
        return;
    }
    if (t->device)
        show_device(t->device);
    else
        show_machine(t->machine);
    for (size_t i = 0; i < t->n; i++) print_subject(t->b[i], &t->r[i], t->machine);
    if (t->n == 2) {
        printf("ratio %.4f\n", q[1]);
        printf("  quartiles     %.4f %.4f, of %zu pairs; of the best times %.4f\n", q[0], q[2],
               t->rounds, t->r[0].best / t->r[1].best);
    }
    if (o->profile) show_profile(t->c, t->b, t->n, t->machine, &o->rates);
}

static enum bench_program program_of(const char *name)
{
    if (!strcmp(name, "train")) return BENCH_train;
    if (!strcmp(name, "forward")) return BENCH_forward;
    if (!strcmp(name, "decode")) return BENCH_decode;
    if (!strcmp(name, "prefill")) return BENCH_prefill;
    cli_fail(RT_usage, "--program must be train, forward, decode or prefill, not '%s'", name);
}

int cmd_bench(int argc, char **argv)
{
    struct cli c = {0};
    struct options o = {.steps = 30,
                        .pairs = 100,
                        .program = "train",
                        .bench = {.batch = 1},
                        .url = BENCH_URL_DEFAULTS,
                        .rates = FLOOR_H200};
    static struct bench b[2];
    cli_parse_range(&c, argc, argv, help, 0, 2,
                    CLI_OPTIONS({"steps", CLI_int, &o.steps}, {"pair", CLI_flag, &o.pair},
                                {"pairs", CLI_int, &o.pairs}, {"program", CLI_text, &o.program},
                                {"context", CLI_int, &o.bench.context},
                                {"batch", CLI_int, &o.bench.batch},
                                {"profile", CLI_flag, &o.profile}, {"first", CLI_flag, &o.first},
                                {"json", CLI_flag, &o.json}, {"ceilings", CLI_text, &o.ceilings},
                                RUN_DEVICE(o.run), RUN_DTYPE(o.run), RUN_OPTIONS(o.run),
                                BENCH_URL_OPTIONS(o.url)));
    if (o.url.url) {
        cli_no_set(&c);
        if (c.arg.n) cli_fail(RT_usage, "--url takes no spec");
        o.url.json = o.json;
        return bench_url(&c, &o.url);
    }
    if (!floor_read(o.ceilings, &o.rates))
        cli_fail(RT_usage, "--ceilings is three positive numbers, as 4.3,790,2");
    struct turn t = {.c = &c, .b = {&b[0], &b[1]}, .n = o.pair ? 2 : 1};
    o.bench.program = program_of(o.program);
    o.run.no_library = o.bench.program >= BENCH_decode; /* as generate does it */
    if (c.arg.n != t.n)
        cli_fail(RT_usage, o.pair    ? "--pair needs two specs"
                           : c.arg.n ? "two specs need --pair"
                                     : "a spec is missing, or --url");
    t.rounds = (size_t)(o.pair ? o.pairs : o.steps);
    if (o.bench.context < 0 || o.bench.context > 1 << 24 || o.bench.batch < 1 ||
        o.bench.batch > 4096)
        cli_fail(RT_usage, "--context must be in 1..2^24, --batch in 1..4096");
    if (o.pairs < 1 || o.steps < 1) cli_fail(RT_usage, "nothing to measure");
    if (o.first) {
        first_step(&c, &b[0], &o);
        return 0;
    }
    for (size_t i = 0; i < t.n; i++) bench_open(t.b[i], &c, c.arg.p[i], &o.bench, &o.run);
    t.device = b[0].t.run.device;
    if (!t.device) {
        unsigned threads = pool_threads(session_pool(b[0].t.run.session));
        cli_check(&c, machine_open(threads, &t.own, &c.err));
        t.machine = &t.own;
        machine_measure(t.machine);
    }
    take_turns(&t, &o);
    show(&t, &o);
    if (t.machine) machine_close(t.machine);
    for (size_t i = 0; i < t.n; i++) bench_close(t.b[i]);
    return 0;
}
