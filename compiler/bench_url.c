/* See bench_url.h. */
#include "compiler/bench_url.h"
#include "runtime/load.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct spread { /* of sorted times, in milliseconds */
    size_t n;
    double mean, p50, p90, p99, max;
};
struct report {
    int64_t outcome[LOAD_OUTCOMES];
    int64_t status[600]; /* by HTTP status */
    int64_t prompt, completion, good, without_retry_after;
    double seconds;
    struct spread ttft, tpot, itl, latency, refusal;
};

/* ---- numbers ---- */

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds to a spread; sorts them. A percentile is the least value that so many do not exceed. */
static struct spread spread_of(double *x, size_t n)
{
    if (!n) return (struct spread){0};
    qsort(x, n, sizeof *x, by_size);
    double sum = 0, p[3];
    for (size_t i = 0; i < n; i++) sum += x[i];
    const unsigned percent[3] = {50, 90, 99};
    for (int i = 0; i < 3; i++) p[i] = 1e3 * x[(n * percent[i] + 99) / 100 - 1];
    return (struct spread){n, 1e3 * sum / (double)n, p[0], p[1], p[2], 1e3 * x[n - 1]};
}

static double tpot_of(const struct load_request *r)
{
    return r->completion > 1 ? (r->last - r->first) / (double)(r->completion - 1) : 0;
}

static bool meets(const struct load_request *r, const struct bench_url_options *o)
{
    return (o->slo_ttft <= 0 || 1e3 * (r->first - r->due) <= o->slo_ttft) &&
           (o->slo_tpot <= 0 || 1e3 * tpot_of(r) <= o->slo_tpot);
}

static void summarise(struct arena *a, const struct load_result *l,
                      const struct bench_url_options *o, struct report *out)
{
    size_t n = l->request.n, m[4] = {0};
    double *x[4]; /* time to first token, per token, whole, refused */
    for (int i = 0; i < 4; i++) x[i] = NEW(a, double, n + 1);
    out->seconds = l->seconds;
    for (size_t i = 0; i < n; i++) {
        const struct load_request *r = &l->request.p[i];
        out->outcome[r->outcome]++;
        if (r->status > 0 && r->status < 600) out->status[r->status]++;
        if (r->outcome == LOAD_refused) {
            x[3][m[3]++] = r->end - r->due;
            out->without_retry_after += r->retry_after < 0;
        }
        if (r->outcome != LOAD_ok) continue;
        out->prompt += r->prompt;
        out->completion += r->completion;
        out->good += meets(r, o);
        if (r->first > 0) x[0][m[0]++] = r->first - r->due;
        if (r->completion > 1) x[1][m[1]++] = tpot_of(r);
        x[2][m[2]++] = r->end - r->due;
    }
    double *gap = NEW(a, double, l->gap.n + 1);
    for (size_t i = 0; i < l->gap.n; i++) gap[i] = (double)l->gap.p[i];
    out->ttft = spread_of(x[0], m[0]);
    out->tpot = spread_of(x[1], m[1]);
    out->latency = spread_of(x[2], m[2]);
    out->refusal = spread_of(x[3], m[3]);
    out->itl = spread_of(gap, l->gap.n);
}

static double per_second(const struct report *r, int64_t n)
{
    return r->seconds > 0 ? (double)n / r->seconds : 0;
}

/* ---- as text ---- */

static void print_spread(const char *name, const struct spread *s)
{
    if (s->n)
        printf("  %-14s %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, s->mean, s->p50, s->p90,
               s->p99, s->max);
}

static void print_report(const struct load_options *l, const struct load_result *run,
                         const struct bench_url_options *o, const struct report *r)
{
    printf("%s, model %s, ", o->url, l->model);
    if (l->clients)
        printf("%lld client%s\n", (long long)l->clients, l->clients == 1 ? "" : "s");
    else
        printf("%g requests a second\n", l->rate);
    printf("  requests       %10lld ok in %.2f s\n", (long long)r->outcome[LOAD_ok], r->seconds);
    for (int i = LOAD_ok + 1; i < LOAD_OUTCOMES; i++)
        if (r->outcome[i])
            printf("                 %10lld %s%s%s\n", (long long)r->outcome[i],
                   load_outcome_name((enum load_outcome)i), run->said[i][0] ? ": " : "",
                   run->said[i]);
    for (int i = 0; i < 600; i++)
        if (r->status[i] && i != 200)
            printf("                 %10lld with status %d\n", (long long)r->status[i], i);
    printf("  rate           %10.2f requests/s\n", per_second(r, r->outcome[LOAD_ok]));
    if (o->slo_ttft > 0 || o->slo_tpot > 0)
        printf("  goodput        %10.2f requests/s within the limits\n", per_second(r, r->good));
    printf("  output         %10.2f tokens/s (%lld)\n", per_second(r, r->completion),
           (long long)r->completion);
    printf("  input          %10.2f tokens/s (%lld)\n", per_second(r, r->prompt),
           (long long)r->prompt);
    printf("  %-14s %10s %10s %10s %10s %10s\n", "milliseconds", "mean", "p50", "p90", "p99",
           "max");
    print_spread("first token", &r->ttft);
    print_spread("per token", &r->tpot);
    print_spread("between tokens", &r->itl);
    print_spread("whole", &r->latency);
    print_spread("refused", &r->refusal);
}

/* ---- as JSON ---- */

static void add_spread(json_t *top, const char *key, const struct spread *s)
{
    json_t *j = s->n
                    ? json_pack("{s:I, s:f, s:f, s:f, s:f, s:f}", "count", (json_int_t)s->n, "mean",
                                s->mean, "p50", s->p50, "p90", s->p90, "p99", s->p99, "max", s->max)
                    : json_null();
    json_object_set_new(top, key, j);
}

static void print_json(const struct load_options *l, const struct load_result *run,
                       const struct bench_url_options *o, const struct report *r)
{
    json_t *outcome = json_object(), *status = json_object(), *said = json_object();
    for (int i = 0; i < LOAD_OUTCOMES; i++) {
        const char *name = load_outcome_name((enum load_outcome)i);
        if (r->outcome[i]) json_object_set_new(outcome, name, json_integer(r->outcome[i]));
        json_t *text = run->said[i][0] ? json_string(run->said[i]) : NULL;
        if (text) json_object_set_new(said, name, text); /* not where it is no UTF-8 */
    }
    for (int i = 0; i < 600; i++) {
        char key[16];
        snprintf(key, sizeof key, "%d", i);
        if (r->status[i]) json_object_set_new(status, key, json_integer(r->status[i]));
    }
    json_t *top = json_pack(
        "{s:s, s:s, s:I, s:f, s:I, s:f, s:o, s:o, s:o, s:f, s:f, s:f, s:I, s:I, s:f, s:I}", "url",
        o->url, "model", l->model, "clients", (json_int_t)l->clients, "rate", l->rate, "seed",
        (json_int_t)o->seed, "seconds", r->seconds, "requests", outcome, "status", status,
        "messages", said, "requests_per_second", per_second(r, r->outcome[LOAD_ok]),
        "output_tokens_per_second", per_second(r, r->completion), "input_tokens_per_second",
        per_second(r, r->prompt), "output_tokens", (json_int_t)r->completion, "input_tokens",
        (json_int_t)r->prompt, "goodput", per_second(r, r->good), "without_retry_after",
        (json_int_t)r->without_retry_after);
    CHECK(top);
    add_spread(top, "first_token_ms", &r->ttft);
    add_spread(top, "per_token_ms", &r->tpot);
    add_spread(top, "between_tokens_ms", &r->itl);
    add_spread(top, "whole_ms", &r->latency);
    add_spread(top, "refused_ms", &r->refusal);
    json_dumpf(top, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(8));
    putchar('\n');
    json_decref(top);
}

/* ---- options ---- */

static struct load_range range_of(const char *name, const char *text)
{
    struct load_range r;
    char *end = NULL;
    r.low = r.high = strtoll(text, &end, 10);
    if (end != text && *end == ':') r.high = strtoll(end + 1, &end, 10);
    if (end == text || *end || r.low < 1 || r.high < r.low)
        cli_fail(RT_usage, "--%s must be N or N:M, not '%s'", name, text);
    return r;
}

/* The lines of a file. */
static void read_prompts(struct cli *c, const char *path, struct load_options *l)
{
    VEC(struct str) line = {0};
    struct str text;
    int e = io_read(c->arena, path, 64 << 20, &text);
    if (e) cli_fail(RT_user, "%s: %s", path, strerror(e));
    while (text.n) {
        const char *nl = memchr(text.p, '\n', text.n);
        size_t n = nl ? (size_t)(nl - text.p) : text.n;
        if (n) vec_push(c->arena, &line, ((struct str){text.p, n}));
        n += nl != NULL;
        text.p += n;
        text.n -= n;
    }
    if (!line.n) cli_fail(RT_user, "%s has no lines", path);
    l->given = line.p;
    l->num_given = line.n;
}

static void tick(void *arg, double seconds, int64_t done, int64_t running, int64_t tokens)
{
    (void)arg;
    fprintf(stderr, "\r\033[K%6.1f s  %lld done, %lld running, %.1f tokens/s", seconds,
            (long long)done, (long long)running, (double)tokens / (seconds + 1e-9));
}

int bench_url(struct cli *c, const struct bench_url_options *o)
{
    if (o->clients && o->rate > 0) cli_fail(RT_usage, "either --clients or --rate");
    struct load_options l = {
        .key = o->key,
        .model = o->model,
        .chat = o->chat,
        .ignore_eos = o->ignore_eos,
        .clients = o->clients || o->rate > 0 ? o->clients : 16,
        .rate = o->rate,
        .requests = o->requests ? o->requests : LOAD_REQUESTS,
        .seconds = o->seconds > 0 || o->requests ? o->seconds : 10,
        .timeout = o->timeout,
        .prompt = range_of("prompt-tokens", o->prompt),
        .max_tokens = range_of("max-tokens", o->max_tokens),
        .vocab = o->vocab,
        .temperature = o->temperature,
        .cancel = o->cancel,
        .seed = (uint64_t)o->seed,
    };
    if (o->prompts) read_prompts(c, o->prompts, &l);
    cli_check(c, load_url_read(o->url, &l.url, &c->err));
    if (!l.model) cli_check(c, load_model(c->arena, &l, &l.model, &c->err));
    bool terminal = isatty(STDERR_FILENO);
    if (terminal) l.tick = tick;
    struct load_result run = {0};
    cli_check(c, load_run(c->arena, &l, &run, &c->err));
    if (terminal) fputs("\r\033[K", stderr);
    struct report r = {0};
    summarise(c->arena, &run, o, &r);
    if (o->json)
        print_json(&l, &run, o, &r);
    else
        print_report(&l, &run, o, &r);
    return r.outcome[LOAD_ok] || r.outcome[LOAD_cancelled] ? 0 : RT_user;
}
