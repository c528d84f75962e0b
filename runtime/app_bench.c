#include "runtime/app.h"
#include "runtime/mem.h"
#include <stdlib.h>

static const char help[] =
    "How fast the model reads a prompt and makes tokens for one sequence, and what share that is "
    "of\n"
    "the bytes this machine can read in a second: every token reads the weights once. The best of\n"
    "--repeat runs each.\n\n"
    "  --prompt-tokens N  default 512\n"
    "  --max-tokens N     default 64\n"
    "  --repeat N         default 5\n"
    "  --json             for programs\n" APP_HELP;

enum { READ_CHUNK = 1 << 16 };                      /* floats of a piece */
static const size_t read_bytes = (size_t)256 << 20; /* far more than caches hold */

struct bench {
    struct app *p;
    int64_t prompt, max, repeat;
    double prefill, decode, bandwidth; /* tokens, tokens, bytes a second; best so far */
};

struct read {
    sa_kernel *fn;
    void *p[1];
    int64_t n[1];
};

static void read_piece(void *arg, int64_t lo, int64_t hi, unsigned worker)
{
    struct read *r = arg;
    (void)worker;
    r->fn(r->p, r->n, lo, hi, NULL);
}

/* Reads memory as the kernels do (codegen/text/peak.c), by all threads. */
static enum rt_status read_memory(struct bench *b, struct rt_error *err)
{
    struct read r = {.n = {READ_CHUNK}};
    for (size_t i = 0; i < b->p->set->n; i++)
        if (!strcmp(b->p->set->kernel[i].symbol, "strata_peak_read"))
            r.fn = b->p->set->kernel[i].fn;
    float *memory = mem_alloc(read_bytes);
    if (!memory || !r.fn) return rt_fail(err, RT_machine, "no memory to measure reads");
    for (size_t i = 0; i < read_bytes / sizeof *memory; i++) memory[i] = 1;
    r.p[0] = memory;
    for (int64_t i = 0; i < 2 * b->repeat; i++) {
        double t = mem_seconds();
        pool_run(b->p->pool, read_piece, &r, (int64_t)(read_bytes / 4 / READ_CHUNK), 1);
        t = (double)read_bytes / (mem_seconds() - t);
        if (t > b->bandwidth) b->bandwidth = t;
    }
    mem_free(memory, read_bytes);
    return RT_ok;
}

static enum rt_status once(struct bench *b, struct rt_error *err)
{
    const struct sampler greedy = {.top_p = 1};
    struct generate g = app_generate(b->p);
    const float *logits;
    enum rt_status st = RT_ok;
    int32_t id;
    bool end;
    g.num_stop = 0;
    for (int64_t i = 0; i < b->prompt && !st; i++)
        st = tok_ids_add(&g.text, (int32_t)(i * 7 % b->p->about.vocab), err);
    double t = mem_seconds();
    if (!st) st = generate_logits(&g, &logits, err);
    double first = mem_seconds();
    for (int64_t i = 0; i < b->max && !st; i++) st = generate_next(&g, &greedy, &id, &end, err);
    if (!st) st = generate_logits(&g, &logits, err);
    double last = mem_seconds(), prefill = (double)b->prompt / (first - t),
           decode = (double)b->max / (last - first);
    if (prefill > b->prefill) b->prefill = prefill;
    if (decode > b->decode) b->decode = decode;
    generate_end(&g);
    return st;
}

static void print(const struct bench *b, bool json)
{
    const struct app_about *x = &b->p->about;
    double share =
        b->bandwidth > 0 ? b->decode * (double)x->token_bytes / b->bandwidth : 0; /* GPU: 0 */
    if (json) {
        printf("{\"prompt_tokens\": %lld, \"prefill_tokens_per_second\": %.6g, "
               "\"decode_tokens_per_second\": %.6g, \"weight_bytes_per_token\": %llu, "
               "\"read_bytes_per_second\": %.6g, \"share_of_reads\": %.4g}\n",
               (long long)b->prompt, b->prefill, b->decode, (unsigned long long)x->token_bytes,
               b->bandwidth, share);
        return;
    }
    printf("prefill of %lld tokens  %10.1f tokens/s\n", (long long)b->prompt, b->prefill);
    printf("decode                %10.1f tokens/s\n", b->decode);
    if (!b->p->pool) return;
    printf("reads of memory       %10.2f GB/s\n", 1e-9 * b->bandwidth);
    printf("weights of a token    %10.2f MB, %.1f %% of the reads%s\n",
           1e-6 * (double)x->token_bytes, 100 * share,
           x->weight_bytes < read_bytes / 4 ? " (small enough for caches)" : "");
}

int app_bench_command(const char *program, int argc, char **argv)
{
    struct command_line c = {program, argv[0], arena_open("options"), {0}};
    struct bench b = {.prompt = 512, .max = 64, .repeat = 5};
    struct app_options run = {0};
    struct rt_error err;
    bool json = false;
    options_parse(&c, argc, argv, help, 0, 0,
                  CLI_OPTIONS({"prompt-tokens", CLI_int, &b.prompt},
                              {"max-tokens", CLI_int, &b.max}, {"repeat", CLI_int, &b.repeat},
                              {"json", CLI_flag, &json}, APP_OPTIONS(run)));
    if (b.prompt < 1 || b.max < 1 || b.repeat < 1)
        options_wrong(&c, "--prompt-tokens, --max-tokens and --repeat must be at least 1");
    b.p = app_self(program, &run, true);
    if (b.prompt + b.max > b.p->about.context) {
        if (b.max >= b.p->about.context) b.max = b.p->about.context / 2;
        b.prompt = b.p->about.context - b.max;
    }
    for (int64_t i = 0; i < b.repeat; i++) {
        if (b.p->pool) app_check(program, read_memory(&b, &err), &err);
        app_check(program, once(&b, &err), &err);
    }
    print(&b, json);
    app_close(b.p);
    arena_close(c.arena);
    return 0;
}
