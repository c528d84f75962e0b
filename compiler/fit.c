#include "compiler/fit.h"
#include "compiler/program.h"
#include "runtime/gpu.h"
#include <stdlib.h>

/* What a driver takes of a GPU for its context and the code of kernels. */
#define CONTEXT 0.6e9

/* Bytes of "80GB" or "24GiB"; 0 where it is no amount. */
static double amount(const char *text)
{
    static const struct {
        const char *unit;
        double bytes;
    } units[] = {{"GB", 1e9}, {"GiB", 1 << 30}, {"MB", 1e6}, {"MiB", 1 << 20}};
    char *end;
    double n = strtod(text, &end);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (end > text && !strcmp(end, units[i].unit) && n > 0) return n * units[i].bytes;
    return 0;
}

static struct fit real_device(struct cli *c, const char *device)
{
    struct session *s;
    const struct session_options o = {.device = device, .diag = c->diag};
    struct fit f = {0};
    size_t left = 0;
    cli_check(c, session_open(&o, &s, &c->err));
    const struct gpu_about *g = session_device(s);
    cli_check(c, session_memory(s, &left, &c->err));
    f.name = str_fmt(c->arena, "cuda:%d (%s)", g->ordinal, g->name);
    f.arch = str_dup(c->arena, str_of(g->arch));
    f.bytes = (double)left;
    session_close(s);
    return f;
}

struct fit fit_open(struct cli *c, const char *device)
{
    double bytes = amount(device);
    if (bytes > 0)
        return (struct fit){str_fmt(c->arena, "a GPU of %s", device), "sm_90a",
                            bytes > CONTEXT ? bytes - CONTEXT : 0};
    if (!strcmp(device, "cuda") || !strncmp(device, "cuda:", 5)) return real_device(c, device);
    cli_fail(RT_usage, "--device needs cuda, cuda:N or an amount of memory as 80GB, not '%s'",
             device);
}

static uint64_t peak(struct cli *c, const struct model *m, const struct fit *f)
{
    return survey_model(c, m, 1, f->arch).memory.peak;
}

/* Another number of micro-batches, the smallest that fits, then (with one sequence in each) shorter
 * sequences; NULL where neither is enough. `fixed` bytes are needed whatever the batch. */
static const char *advice(struct cli *c, const struct model *m, const struct fit *f, double fixed)
{
    struct model x = *m;
    struct train_spec *t = &x.train;
    if (!t->present || fixed > f->bytes) return NULL;
    for (int64_t n = 1; n <= m->train.batch_size; n++) {
        if (m->train.batch_size % n || n == m->train.micro_batches) continue;
        t->micro_batches = n;
        uint64_t need = peak(c, &x, f);
        if ((double)need <= f->bytes)
            return str_fmt(c->arena, "--set train.micro_batches=%lld needs %s", (long long)n,
                           cli_bytes(c->arena, (double)need));
    }
    t->micro_batches = m->train.batch_size;
    while (t->seq_len >= 256) {
        t->seq_len /= 2;
        uint64_t need = peak(c, &x, f);
        if ((double)need > f->bytes) continue;
        const char *first =
            t->micro_batches == m->train.micro_batches
                ? ""
                : str_fmt(c->arena, "--set train.micro_batches=%lld ", (long long)t->micro_batches);
        return str_fmt(c->arena, "%s--set train.seq_len=%lld needs %s", first,
                       (long long)t->seq_len, cli_bytes(c->arena, (double)need));
    }
    return NULL;
}

const char *fit_serving(struct cli *c, const struct fit *f, const struct survey *v, bool *fits)
{
    struct arena *a = c->arena;
    *fits = (double)v->serving.all <= f->bytes;
    return str_fmt(
        a, "serving %s %s: %s of weights, %s of caches, %s of activations%s",
        *fits ? "fits" : "does not fit", f->name, cli_bytes(a, (double)v->serving.weights),
        cli_bytes(a, (double)v->serving.caches), cli_bytes(a, (double)v->serving.activations),
        *fits ? ""
              : "; less with train.precision=bf16, or smaller serve.cache_tokens, "
                "serve.max_sequences or serve.max_context");
}

const char *fit_verdict(struct cli *c, const struct model *m, const struct fit *f,
                        const struct survey *v, bool *fits)
{
    struct arena *a = c->arena;
    double need = (double)v->memory.peak;
    const char *have = cli_bytes(a, f->bytes), *all = cli_bytes(a, need);
    if (fits) *fits = need <= f->bytes;
    if (need <= f->bytes) return str_fmt(a, "fits %s: %s of %s that are free", f->name, all, have);
    double fixed = (double)(v->memory.weights + v->memory.gradients + v->memory.optimizer);
    const char *change = advice(c, m, f, fixed);
    if (!change) change = "only a smaller model does";
    return str_fmt(a, "does not fit %s: %s, but %s are free; %s", f->name, all, have, change);
}
