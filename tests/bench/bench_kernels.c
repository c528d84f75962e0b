/* Speed of the CPU kernel texts: every kernel as a share of the float32 multiply-add peak that a
 * tiny loop reaches on this machine in the same seconds, on 1 and 2 threads. Best of many runs. */
#include "codegen/gemm_shape.h"
#include "codegen/kernel.h"
#include "codegen/text.h"
#include "kernel_build.h"
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

enum { THREADS = 2, SCRATCH = 8 << 20 };

static const char loops_text[] =
    "void peak(void *const *p, const int64_t *n, int64_t lo, int64_t hi, UNUSED void *s) {\n"
    "    v16 a[24], x = ld16(p[0]), y = x * 0.5f;\n"
    "    for (int i = 0; i < 24; i++) a[i] = x * (float)i;\n"
    "    for (int64_t k = lo * n[0]; k < hi * n[0]; k++)\n"
    "        _Pragma(\"clang loop unroll(full)\")\n"
    "        for (int i = 0; i < 24; i++) a[i] = fma16(a[i], x, y);\n"
    "    for (int i = 0; i < 24; i++) x += a[i];\n"
    "    if (hsum16(x) == 12345.0f) *(float *)p[0] = 1.0f;\n"
    "}\n"
    "#ifdef __AVX512BF16__\n"
    "void peak_bf16(void *const *p, const int64_t *n, int64_t lo, int64_t hi, UNUSED void *s) {\n"
    "    v16 a[24], x = ld16(p[0]);\n"
    "    for (int i = 0; i < 24; i++) a[i] = x * (float)i;\n"
    "    for (int64_t k = lo * n[0]; k < hi * n[0]; k++)\n"
    "        _Pragma(\"clang loop unroll(full)\")\n"
    "        for (int i = 0; i < 24; i++) a[i] = tile_dot(x, x, a[i], 1);\n"
    "    for (int i = 0; i < 24; i++) x += a[i];\n"
    "    if (hsum16(x) == 12345.0f) *(float *)p[0] = 1.0f;\n"
    "}\n"
    "#endif\n"
    "void read_all(void *const *p, const int64_t *n, int64_t lo, int64_t hi, UNUSED void *s) {\n"
    "    const float *x = p[0];\n"
    "    v16 a = splat16(0), b = a, c = a, d = a;\n"
    "    for (int64_t i = lo * n[0]; i < hi * n[0]; i += 64) {\n"
    "        a += ld16(x + i); b += ld16(x + i + 16); c += ld16(x + i + 32); d += ld16(x + i + "
    "48);\n"
    "    }\n"
    "    if (hsum16(a + b + c + d) == 12345.0f) *(float *)p[0] = 1.0f;\n"
    "}\n";

/* A kernel call; items are handed out one by one. */
struct job {
    kernel_fn *fn;
    void *p[12];
    int64_t n[12], items;
    double flops;
};

static struct {
    pthread_barrier_t start, end;
    const struct job *job;
    atomic_llong next;
    void *scratch[THREADS];
} pool;

static void work(int me)
{
    const struct job *j = pool.job;
    for (int64_t i; (i = atomic_fetch_add(&pool.next, 1)) < j->items;)
        j->fn(j->p, j->n, i, i + 1, pool.scratch[me]);
}

static void *worker(void *arg)
{
    (void)arg;
    for (;;) {
        pthread_barrier_wait(&pool.start);
        if (!pool.job) return NULL;
        work(1);
        pthread_barrier_wait(&pool.end);
    }
}

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of one run of the jobs, one after the other; of this thread's own time where it is alone,
 * so that other programs on the machine disturb it less. */
static double once(const struct job *jobs, int count, int threads)
{
    const clockid_t clock = threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    double t = now(clock);
    for (int i = 0; i < count; i++) {
        pool.job = &jobs[i];
        atomic_store(&pool.next, 0);
        if (threads == 1) {
            work(0);
            continue;
        }
        pthread_barrier_wait(&pool.start);
        work(0);
        pthread_barrier_wait(&pool.end);
    }
    return now(clock) - t;
}

static struct job peak, peak_bf16;
static double bandwidth[THREADS + 1]; /* bytes a second, by threads */

/* Best times of the jobs together, as GFLOP/s and share of the peak measured in between. */
static void report_of(const struct job *top, const char *name, const struct job *jobs, int count)
{
    double flops = 0;
    for (int i = 0; i < count; i++) flops += jobs[i].flops;
    double one = 0; /* what one thread alone reaches in the peak loop */
    printf("%-34s", name);
    for (int threads = 1; threads <= THREADS; threads++) {
        double best = 1e9, best_peak = 1e9, stop = now(CLOCK_MONOTONIC) + 0.4;
        for (int r = 0; r < 5 || now(CLOCK_MONOTONIC) < stop; r++) {
            double t = once(jobs, count, threads), u = once(top, 1, 1);
            best = t < best ? t : best;
            best_peak = u < best_peak ? u : best_peak;
        }
        if (top->flops / best_peak > one) one = top->flops / best_peak;
        printf("  %d: %7.1f GFLOP/s %5.1f %%", threads, flops / best * 1e-9,
               100 * flops / best / (one * threads));
    }
    printf("\n");
    fflush(stdout);
}

static void report(const char *name, const struct job *jobs, int count)
{
    report_of(&peak, name, jobs, count);
}

static float *buffer(int64_t n)
{
    float *x = aligned_alloc(64, ((size_t)n * 4 + 4096) / 64 * 64);
    if (!x) exit(EXIT_MACHINE);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(i * 2654435761u % 1000) * 1e-3f - 0.5f;
    return x;
}

static void bench_gemm(void *so, int64_t M, int64_t N, int64_t K)
{
    float *a = buffer(M * K), *b = buffer(N * K), *c = buffer(M * N);
    float *packed = buffer(cg_gemm_packed(K, N));
    struct cg_gemm_plan plan = cg_gemm_plan(M, N, K);
    struct job rows = {
        kernel_of(so, "k_pack_rows"), {packed, b}, {K, N, N}, cg_pack_rows_items(K, N), 0};
    struct job cols = {
        kernel_of(so, "k_pack_cols"), {packed, b}, {K, N, K}, cg_pack_cols_items(K, N), 0};
    struct job j = {kernel_of(so, "k_gemm"),
                    {c, a, packed},
                    {M, N, K, K, N, 0, plan.mb, plan.nb},
                    plan.items,
                    2.0 * (double)M * (double)N * (double)K};
    once(&rows, 1, 1);
    char name[80];
    snprintf(name, sizeof name, "gemm %lldx%lldx%lld packed before", (long long)M, (long long)N,
             (long long)K);
    report(name, &j, 1);
    report("  packing weights [N,K] too", (struct job[]){cols, j}, 2);
    struct job t = j;
    t.n[3] = M;
    t.n[5] = 1;
    report("  transposed A, packed before", &t, 1);
    report("  transposed A, packing [K,N] too", (struct job[]){rows, t}, 2);
    if (peak_bf16.fn) {
        rows.fn = kernel_of(so, "k_pack_rows_bf16");
        once(&rows, 1, 1);
        j.fn = t.fn = kernel_of(so, "k_gemm_bf16");
        report_of(&peak_bf16, "  bf16", &j, 1);
        report_of(&peak_bf16, "  bf16, transposed A", &t, 1);
    }
    free(a), free(b), free(c), free(packed);
}

/* Few rows, as in decoding: 64 MiB of weights [N,K], or [K,N], so that none is in a cache, read by
 * one step, as GB/s of them, share of the read bandwidth and GFLOP/s. `kind`: "" or "_bf16". */
static void bench_few(void *so, const char *kind, bool trans, int64_t M, int64_t N, int64_t K)
{
    int64_t copies = ((int64_t)16 << 20) / (N * K);
    float *a = buffer(M * K), *w = buffer(copies * N * K), *c = buffer(M * N);
    struct cg_stack_plan own = cg_gemm_stack_plan(1, M, N, K);
    char symbol[40];
    snprintf(symbol, sizeof symbol, "k_gemm_stack%s", kind);
    printf("%2lld rows%-6s weights %s %4lldx%-4lld ", (long long)M, *kind ? " bf16," : ",",
           trans ? "[N,K]" : "[K,N]", (long long)N, (long long)K);
    for (int threads = 1; threads <= THREADS; threads++) {
        double best = 1e9, bytes = (double)(copies * N * K) * 4;
        for (int r = 0; r < 8; r++) {
            double t = 0;
            for (int64_t i = 0; i < copies; i++) {
                struct job one = {kernel_of(so, symbol),
                                  {c, a, w + i * N * K},
                                  {M, N, K, K, N, trans ? K : N, trans ? 8 : 0, own.nb},
                                  own.items,
                                  0};
                t += once(&one, 1, threads);
            }
            best = t < best ? t : best;
        }
        printf("  %d: %5.1f GB/s %5.1f %% %6.1f GFLOP/s", threads, bytes * 1e-9 / best,
               100 * bytes / best / bandwidth[threads], bytes / 2 * (double)M * 1e-9 / best);
    }
    printf("\n");
    fflush(stdout);
    free(a), free(w), free(c);
}

/* The read bandwidth, and what products of few rows reach of it. */
static void bench_reading(void *so)
{
    float *x = buffer(32 << 20);
    struct job reads = {kernel_of(so, "read_all"), {x}, {1 << 17}, 256, 0};
    for (int threads = 1; threads <= THREADS; threads++) {
        double best = 1e9;
        for (int r = 0; r < 10; r++) {
            double t = once(&reads, 1, threads);
            best = t < best ? t : best;
        }
        bandwidth[threads] = (double)(128 << 20) / best;
        printf("read bandwidth, %d threads: %.1f GB/s\n", threads, bandwidth[threads] * 1e-9);
    }
    free(x);
    static const int64_t rows[] = {1, 4, 6, 8, 12, 16, 32, 48};
    for (int kind = 0; kind < (peak_bf16.fn ? 2 : 1); kind++)
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            bench_few(so, kind ? "_bf16" : "", true, rows[i], 4096, 4096);
            bench_few(so, kind ? "_bf16" : "", true, rows[i], 768, 3072);
        }
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        bench_few(so, "", false, rows[i], 4096, 4096);
}

static void bench_grouped(void *so, int64_t E, int64_t rows, int64_t N, int64_t K)
{
    float *a = buffer(rows * K), *c = buffer(rows * N), *dw = buffer(E * N * K);
    float *w = buffer(E * K * N), *x = buffer(cg_gemm_packed(rows, K));
    int32_t *off = malloc((size_t)(E + 1) * sizeof *off);
    for (int64_t e = 0; e <= E; e++) off[e] = (int32_t)(rows * e * (e + E) / (2 * E * E));
    struct cg_stack_plan f = cg_gemm_stack_plan(E, rows / E, N, K);
    struct cg_gemm_plan g = cg_gemm_grouped_dw_plan(rows, N, K, E);
    double flops = 2.0 * (double)rows * (double)N * (double)K;
    struct job fwd = {
        kernel_of(so, "k_gemm_grouped"), {c, a, w, off}, {N, K, K, N, K, 8, f.nb}, f.items, flops};
    struct job pack = {
        kernel_of(so, "k_pack_rows"), {x, a}, {rows, K, K}, cg_pack_rows_items(rows, K), 0};
    struct job bwd = {kernel_of(so, "k_gemm_grouped_dw"),
                      {dw, c, x, off},
                      {rows, N, K, N, K, 0, g.mb, g.nb, E},
                      g.items,
                      flops};
    char name[80];
    snprintf(name, sizeof name, "grouped %d x, %lld rows, %lldx%lld", (int)E, (long long)rows,
             (long long)N, (long long)K);
    report(name, &fwd, 1);
    report("  weight gradients, packing x too", (struct job[]){pack, bwd}, 2);
    free(a), free(c), free(dw), free(w), free(x), free(off);
}

static void bench_attention(int64_t B, int64_t T, int h, int kv, int hd, int vd)
{
    int64_t n = B * T, ld = (h + kv) * hd + kv * vd;
    struct cg_attn a = {"att", h, kv, hd, vd, 0, ld, ld, ld, h * vd, h * vd, ld, ld, ld, 0.125f};
    struct sb text = {0};
    sb_str(&text, cg_text_prelude);
    sb_str(&text, cg_text_tile);
    sb_str(&text, cg_text_attention_rows);
    cg_attn_text(&text, &a);
    void *so = kernel_build(&text, "native");
    sb_free(&text);
    float *qkv = buffer(n * ld), *o = buffer(n * h * vd), *lse = buffer(n * h),
          *most = buffer(n * h);
    float *dout = buffer(n * h * vd), *dqkv = buffer(n * ld);
    double pairs = (double)(B * h) * (double)T * (double)(T + 1); /* the causal half, 2 each */
    int64_t k = h * hd, v = (h + kv) * hd;
    struct job fwd = {kernel_of(so, "att_fwd"),
                      {qkv, qkv + k, qkv + v, o, lse, most},
                      {B, T},
                      cg_attn_fwd_items(B, T, h, kv),
                      pairs * (hd + vd)};
    struct job bwd = {kernel_of(so, "att_bwd"),
                      {qkv, qkv + k, qkv + v, o, lse, dout, dqkv, dqkv + k, dqkv + v},
                      {B, T},
                      cg_attn_bwd_items(B, kv),
                      pairs * (3 * hd + 2 * vd)};
    char name[80];
    snprintf(name, sizeof name, "attention B%d T%d H%d/%d HD%d/%d", (int)B, (int)T, h, kv, hd, vd);
    report(name, &fwd, 1);
    report("  backward", &bwd, 1);
    free(qkv), free(o), free(lse), free(most), free(dout), free(dqkv);
}

/* The one step of node n as a job over `buf`, as many as it refers to. */
static struct job job_of(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                         float *const *buf, double flops)
{
    struct cg_lowering low = {0};
    const struct cg_target t = {false};
    cg_lower_node(a, g, n, b, &t, &low);
    const struct cg_step *s = &low.step.p[0];
    CHECK(s->scratch <= SCRATCH && s->nref <= 12 && s->nnum <= 12);
    struct sb text = {0};
    sb_str(&text, cg_cpu_prelude());
    sb_str(&text, s->text.p);
    struct job j = {.fn = kernel_of(kernel_build(&text, "native"), s->symbol),
                    .items = s->items,
                    .flops = flops};
    sb_free(&text);
    for (size_t i = 0; i < s->nref; i++) j.p[i] = buf[i];
    memcpy(j.n, s->num, s->nnum * sizeof *s->num);
    return j;
}

/* Work is counted as that of chunks of 16, whole squares: 6 D^2 + 10 * 16 D a token and head, and
 * 16 D^2 + 24 * 16 D backward, which computes the states again. */
static void bench_kda(int64_t B, int64_t T, int64_t h, int64_t d)
{
    struct arena *a = arena_open("bench_kda");
    struct ir_graph *g = graph_open(a, "kda", STAGE_K, NULL, NULL);
    const struct ir_bind b = {B, T};
    ir_id src[6];
    float *buf[11];
    for (int i = 0; i < 11; i++) {
        const char *name = str_fmt(a, "x%d", i);
        int64_t cols = i % 6 == 4 ? h : h * d, n = B * T * cols;
        ir_type_id type = ir_type2(g, IR_f32, dim_sym(SYM_N, 1), dim_const(cols));
        if (i < 6)
            src[i] = ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, name)), name);
        buf[i] = buffer(B * T * h * d);
        for (int64_t k = 0; k < n; k++)
            buf[i][k] = i == 3   ? -0.2f - 0.4f * buf[i][k]
                        : i == 4 ? 0.5f
                        : i < 2  ? buf[i][k] * 3 / sqrtf((float)d)
                                 : buf[i][k];
    }
    double size = (double)d, tokens = (double)(B * T * h);
    ir_id f = ir_add(g, OP_kda, src, 5, ATTRS(A_INT(heads, h), A_NUM(scale, 0.125)), NULL);
    ir_id r = ir_add(g, OP_kda_grad, src, 6, ATTRS(A_INT(heads, h), A_NUM(scale, 0.125)), NULL);
    struct job fwd = job_of(a, g, f, b, buf, tokens * (6 * size * size + 160 * size));
    struct job bwd = job_of(a, g, r, b, buf, tokens * (16 * size * size + 384 * size));
    char name[80];
    snprintf(name, sizeof name, "kda B%d T%d H%d D%d", (int)B, (int)T, (int)h, (int)d);
    report(name, &fwd, 1);
    report("  backward", &bwd, 1);
    for (int i = 0; i < 11; i++) free(buf[i]);
    arena_close(a);
}

int main(int argc, char **argv)
{
    struct sb text = {0};
    sb_str(&text, cg_text_prelude);
    sb_str(&text, cg_text_tile);
    sb_str(&text, cg_text_gemm);
    sb_str(&text, cg_text_gemm_bf16);
    sb_str(&text, loops_text);
    void *so = kernel_build(&text, argc > 1 ? argv[1] : "native");
    sb_free(&text);
    pthread_t thread;
    pthread_barrier_init(&pool.start, NULL, THREADS);
    pthread_barrier_init(&pool.end, NULL, THREADS);
    for (int i = 0; i < THREADS; i++) pool.scratch[i] = buffer(SCRATCH / 4);
    if (pthread_create(&thread, NULL, worker, NULL) != 0) return EXIT_MACHINE;
    float *x = buffer(64);
    peak = (struct job){kernel_of(so, "peak"), {x}, {10000}, 8, 8.0 * 10000 * 24 * 32};
    report("peak", &peak, 1);
    peak_bf16 = peak;
    peak_bf16.fn = kernel_of(so, "peak_bf16");
    peak_bf16.flops *= 2;
    if (peak_bf16.fn) report_of(&peak_bf16, "peak bf16", &peak_bf16, 1);
    bench_reading(so);
    if (argc > 2 && strcmp(argv[2], "few") == 0) return 0;
    static const int64_t shapes[][3] = {{1024, 256, 256},  {2048, 768, 256},  {2048, 384, 384},
                                        {2048, 1152, 384}, {2048, 384, 1024}, {2048, 768, 768},
                                        {2048, 2304, 768}, {2048, 768, 2304}, {1024, 1024, 1024},
                                        {64, 512, 512},    {1, 768, 768},     {1, 4096, 4096}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        bench_gemm(so, shapes[i][0], shapes[i][1], shapes[i][2]);
    bench_grouped(so, 8, 4096, 512, 256);
    bench_grouped(so, 32, 4096, 384, 384);
    bench_attention(8, 256, 6, 6, 64, 64);
    bench_attention(8, 128, 8, 8, 32, 32);
    bench_attention(4, 256, 8, 2, 64, 64);
    bench_attention(2, 1024, 6, 6, 64, 64);
    bench_attention(8, 128, 2, 2, 24, 16);
    bench_attention(1, 1024, 8, 8, 192, 128);
    bench_kda(1, 512, 4, 32);
    bench_kda(1, 512, 4, 64);
    bench_kda(1, 512, 4, 128);
    bench_kda(8, 512, 4, 32);
    bench_kda(4, 512, 4, 128);
    pool.job = NULL;
    pthread_barrier_wait(&pool.start);
    pthread_join(thread, NULL);
    return 0;
}
