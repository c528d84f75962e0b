#include "compiler/machine.h"
#include "abi.h"
#include "codegen/kernel.h"
#include "codegen/text.h"
#include "runtime/jit.h"
#include "runtime/mem.h"
#include "runtime/thread.h"

enum {
    ROUNDS = 10000,               /* of 24 multiply-adds: a piece of some 50 microseconds ... */
    PIECES = 40,                  /* ... and so many for each thread in one run */
    TRIES = 6,                    /* where the machine is busy */
    CHUNK = 1 << 16,              /* floats of a piece that is read */
    READ_BYTES = 256 * (1 << 20), /* beyond any cache */
};
static const double FMA_SECONDS = 0.4, READ_SECONDS = 0.4;

struct job {
    sa_kernel *fn;
    void *p[1];
    int64_t n[1];
};

static void work(void *arg, int64_t lo, int64_t hi, unsigned worker)
{
    const struct job *j = arg;
    (void)worker;
    j->fn(j->p, j->n, lo, hi, NULL);
}

enum rt_status machine_open(unsigned threads, struct machine *m, struct rt_error *err)
{
    *m = (struct machine){0};
    struct jit_kernel k[] = {{"strata_peak_fma", str_of(cg_text_peak), NULL},
                             {"strata_peak_bf16", str_of(cg_text_peak), NULL},
                             {"strata_peak_read", str_of(cg_text_peak), NULL}};
    RT_TRY(pool_open(threads, &m->pool, err));
    m->threads = pool_threads(m->pool);
    m->memory = mem_alloc(READ_BYTES);
    if (!m->memory) return rt_fail(err, RT_machine, "no memory to measure reads");
    for (size_t i = 0; i < READ_BYTES / sizeof(float); i += 512) m->memory[i] = 1e-3f;
    RT_TRY(jit_open(NULL, &m->jit, err));
    RT_TRY(jit_load(m->jit, cg_cpu_prelude(), k, 3, NULL, err));
    m->fma = k[0].fn;
    m->bf16_fma = k[1].fn;
    m->read = k[2].fn;
    return RT_ok;
}

void machine_close(struct machine *m)
{
    pool_close(m->pool);
    jit_close(m->jit);
    mem_free(m->memory, READ_BYTES);
}

/* The shortest run of all items in `seconds` of trying. */
static double best(struct machine *m, struct job *j, int64_t items, double seconds)
{
    double least = 1e30, end = mem_seconds() + seconds;
    for (double t = mem_seconds(), u; t < end; t = u) {
        pool_run(m->pool, work, j, items, 1);
        u = mem_seconds();
        if (u - t < least) least = u - t;
    }
    return least;
}

bool machine_busy(const struct machine *m)
{
    return m->flops < 0.85 * m->alone;
}

void machine_measure(struct machine *m)
{
    struct job fma = {.p = {m->memory}, .n = {ROUNDS}}, read = {.p = {m->memory}, .n = {CHUNK}};
    memcpy(&fma.fn, &m->fma, sizeof fma.fn);
    memcpy(&read.fn, &m->read, sizeof read.fn);
    int64_t items = PIECES * (int64_t)m->threads;
    double each = ROUNDS * 24.0 * 16 * 2;
    double alone =
        m->threads * each / best(m, &fma, 1, FMA_SECONDS / 8); /* one item: this thread */
    if (alone > m->alone) m->alone = alone;
    for (int i = 0; i < TRIES && (!i || machine_busy(m)); i++) {
        double flops = (double)items * each / best(m, &fma, items, FMA_SECONDS);
        if (flops > m->flops) m->flops = flops;
    }
    memcpy(&fma.fn, &m->bf16_fma, sizeof fma.fn);
    double bf16 = (double)items * 2 * each / best(m, &fma, items, FMA_SECONDS);
    if (bf16 > m->bf16) m->bf16 = bf16;
    double bytes = READ_BYTES / best(m, &read, READ_BYTES / (4 * CHUNK), READ_SECONDS);
    if (bytes > m->bytes) m->bytes = bytes;
}
