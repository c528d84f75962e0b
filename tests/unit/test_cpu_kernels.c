/* The hand-written CPU kernel texts against naive double references, at odd sizes, for the native
 * CPU and for x86-64-v3, whose results must be the same bits. */
#include "codegen/gemm_shape.h"
#include "codegen/text.h"
#include "kernel_build.h"
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

enum { LIBS = 2, MAXN = 1 << 21 };
static void *lib[LIBS]; /* native, x86-64-v3 */
static void *scratch;

/* Attention cases: sizes odd in every way. */
static const struct cg_attn cases[] = {
    {"att_a", 4, 2, 16, 16, 0, 64 + 64, 64 + 64, 64 + 64, 64, 64, 128, 128, 128, 0.25f},
    {"att_b", 3, 3, 10, 7, 0, 33, 31, 29, 21, 23, 34, 35, 36, 0.3f},
    {"att_c", 2, 1, 64, 64, 19, 128, 64, 64, 128, 128, 128, 64, 64, 0.125f},
    {"att_d", 1, 1, 128, 80, 70, 128, 128, 80, 80, 80, 128, 128, 80, 0.088f},
    {"att_e", 8, 1, 8, 8, 1, 64, 8, 8, 64, 64, 64, 8, 8, 0.35f},
};
enum { CASES = sizeof cases / sizeof *cases };

/* One vector function per name, over whole vectors and the tail; used to test the prelude. */
static const char math_text[] =
    "#define MAP(name, e) void name(void *const *p, const int64_t *n, int64_t lo, int64_t hi, \\\n"
    "    UNUSED void *s) { (void)n; const float *x = p[1]; float *y = p[0]; int64_t i = lo; \\\n"
    "    for (; i + 16 <= hi; i += 16) { v16 v = ld16(x + i); st16(y + i, e); } \\\n"
    "    if (i < hi) { v16 v = ld16k(x + i, hi - i); st16k(y + i, e, hi - i); } }\n"
    "MAP(m_exp, exp16(v)) MAP(m_log, log16(v)) MAP(m_tanh, tanh16(v)) MAP(m_sigmoid, "
    "sigmoid16(v)) MAP(m_softplus, softplus16(v))\n"
    "MAP(m_sqrt, sqrt16(v)) MAP(m_rsqrt, rsqrt16(v)) MAP(m_bf16, bf16_to_f32(f32_to_bf16(v))) "
    "MAP(m_round, round16(v))\n"
    "MAP(m_exp1, splat16(exp1(v[0]))) MAP(m_sum, splat16(hsum16(v))) MAP(m_max, "
    "splat16(hmax16(v)))\n";

static int setup(void **state)
{
    (void)state;
    static const char *const march[LIBS] = {"native", "x86-64-v3"};
    struct sb text = {0};
    sb_str(&text, cg_text_prelude);
    sb_str(&text, cg_text_tile);
    sb_str(&text, cg_text_gemm);
    sb_str(&text, cg_text_gemm_bf16);
    sb_str(&text, cg_text_attention_rows);
    for (int i = 0; i < CASES; i++) cg_attn_text(&text, &cases[i]);
    sb_str(&text, math_text);
    for (int i = 0; i < LIBS; i++) lib[i] = kernel_build(&text, march[i]);
    sb_free(&text);
    scratch = aligned_alloc(64, 4 << 20);
    return scratch ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    free(scratch);
    return 0;
}

/* A new array of n floats in [-1, 1), 64-byte aligned, with one page of NaN after it. */
static float *numbers(int64_t n, uint64_t seed)
{
    float *x = aligned_alloc(64, (size_t)(n * 4 + 63) / 64 * 64 + 4096);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)((double)(seed >> 40) / (1 << 23) - 1.0);
    }
    for (int64_t i = n; i < n + 512; i++) x[i] = nanf("");
    return x;
}

static void run(int l, const char *name, void *const *p, const int64_t *n, int64_t items)
{
    kernel_fn *fn = kernel_of(lib[l], name);
    assert_non_null(fn);
    /* In pieces and out of order: items are independent. */
    int64_t half = items / 2;
    fn(p, n, half, items, scratch);
    memset(scratch, 0x7f, 4 << 20);
    fn(p, n, 0, half, scratch);
}

static void close_to(const float *got, const double *want, int64_t n, double tol, const char *what)
{
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= tol * (1.0 + fabs(want[i]))))
            fail_msg("%s: element %lld is %.9g, not %.9g", what, (long long)i, (double)got[i],
                     want[i]);
}

/* C (+)= A B with A (m,k) at a[m*am + k*ak], B (k,n) at b[k*bk + n*bn]. */
static void ref_gemm(double *c, const float *a, int64_t am, int64_t ak, const float *b, int64_t bk,
                     int64_t bn, int64_t M, int64_t N, int64_t K, int64_t ldc)
{
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++)
            for (int64_t k = 0; k < K; k++)
                c[m * ldc + n] += (double)a[m * am + k * ak] * (double)b[k * bk + n * bn];
}

static void gemm_case(int64_t M, int64_t N, int64_t K, int flags, int cols)
{
    int64_t lda = (flags & 1 ? M : K) + 3, ldb = (cols ? K : N) + 5, ldc = N + 2;
    float *a = numbers((flags & 1 ? K : M) * lda, 1), *b = numbers((cols ? N : K) * ldb, 2);
    float *c[LIBS], *packed = numbers(cg_gemm_packed(K, N), 3);
    double *want = calloc((size_t)(M * ldc + 1), sizeof *want);
    float *old = numbers(M * ldc, 4);
    for (int64_t i = 0; i < M * ldc; i++)
        want[i] = flags & 2 || i % ldc >= N ? (double)old[i] : 0.0;
    ref_gemm(want, a, flags & 1 ? 1 : lda, flags & 1 ? lda : 1, b, cols ? 1 : ldb, cols ? ldb : 1,
             M, N, K, ldc);
    struct cg_gemm_plan plan = cg_gemm_plan(M, N, K);
    for (int l = 0; l < LIBS; l++) {
        c[l] = numbers(M * ldc, 4);
        run(l, cols ? "k_pack_cols" : "k_pack_rows", (void *[]){packed, b}, (int64_t[]){K, N, ldb},
            cols ? cg_pack_cols_items(K, N) : cg_pack_rows_items(K, N));
        run(l, "k_gemm", (void *[]){c[l], a, packed},
            (int64_t[]){M, N, K, lda, ldc, flags, plan.mb, plan.nb}, plan.items);
        close_to(c[l], want, M * ldc, 3e-5, "gemm");
    }
    assert_memory_equal(c[0], c[1], (size_t)(M * ldc * 4));
    /* A row alone has the bits of the row among others. */
    if (M > 1 && !flags) {
        int64_t m = M - 1;
        plan = cg_gemm_plan(1, N, K);
        run(0, "k_gemm", (void *[]){c[1], a + m * lda, packed},
            (int64_t[]){1, N, K, lda, ldc, 0, plan.mb, plan.nb}, plan.items);
        assert_memory_equal(c[0] + m * ldc, c[1], (size_t)(N * 4));
    }
    free(a), free(b), free(packed), free(want), free(old);
    for (int l = 0; l < LIBS; l++) free(c[l]);
}

static void test_gemm(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{1, 1, 1},     {1, 70, 33},   {6, 64, 16},    {7, 65, 17},
                                       {5, 63, 513},  {13, 100, 0},  {0, 5, 5},      {5, 0, 5},
                                       {145, 130, 9}, {250, 33, 40}, {37, 200, 1030}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int flags = 0; flags < 4; flags++)
            for (int cols = 0; cols < 2; cols++)
                gemm_case(sizes[i][0], sizes[i][1], sizes[i][2], flags, cols);
}

static float bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &u, 4);
    return x;
}

static void bf16_case(int l, int64_t M, int64_t N, int64_t K, int flags, int cols)
{
    int64_t lda = (flags & 1 ? M : K) + 3, ldb = (cols ? K : N) + 5, na = (flags & 1 ? K : M) * lda;
    float *a = numbers(na, 1), *b = numbers((cols ? N : K) * ldb, 2), *row = numbers(N, 3);
    float *c = numbers(M * N, 4), *packed = numbers(cg_gemm_packed_bf16(K, N), 3);
    double *want = calloc((size_t)(M * N + 1), sizeof *want);
    for (int64_t i = 0; i < M * N; i++) want[i] = flags & 2 ? (double)c[i] : 0.0;
    struct cg_gemm_plan plan = cg_gemm_plan(M, N, K);
    run(l, cols ? "k_pack_cols_bf16" : "k_pack_rows_bf16", (void *[]){packed, b},
        (int64_t[]){K, N, ldb}, cols ? cg_pack_cols_items(K, N) : cg_pack_rows_items(K, N));
    run(l, "k_gemm_bf16", (void *[]){c, a, packed},
        (int64_t[]){M, N, K, lda, N, flags, plan.mb, plan.nb}, plan.items);
    run(l, "k_gemm_bf16", (void *[]){row, flags & 1 ? a : a + (M - 1) * lda, packed},
        (int64_t[]){1, N, K, lda, N, flags & 1, 6, 64}, (N + 63) / 64);
    if (flags < 2) assert_memory_equal(row, flags & 1 ? c : c + (M - 1) * N, (size_t)N * 4);
    for (int64_t i = 0; i < na; i++) a[i] = bf16(a[i]);
    for (int64_t i = 0; i < (cols ? N : K) * ldb; i++) b[i] = bf16(b[i]);
    ref_gemm(want, a, flags & 1 ? 1 : lda, flags & 1 ? lda : 1, b, cols ? 1 : ldb, cols ? ldb : 1,
             M, N, K, N);
    close_to(c, want, M * N, 1e-4, "bf16 gemm");
    free(a), free(b), free(row), free(c), free(packed), free(want);
}

/* Grouped rows have the bits of the plain product of each row. */
static void bf16_grouped(int l)
{
    enum { E = 3, ROWS = 40, N = 70, K = 37 };
    static const int32_t off[E + 1] = {0, 7, 7, 33};
    int32_t index[ROWS];
    for (int i = 0; i < ROWS; i++) index[i] = (i * 31 + 7) % ROWS;
    float *a = numbers(ROWS * K, 1), *w = numbers(E * N * K, 2);
    float *packed = numbers(cg_gemm_packed_bf16(K, N), 3);
    float *c = numbers(ROWS * N, 4), *row = numbers(N, 5);
    struct cg_stack_plan plan = cg_gemm_stack_plan(E, ROWS / E, N, K);
    run(l, "k_gemm_grouped_bf16", (void *[]){c, a, w, (void *)off, index},
        (int64_t[]){N, K, K, N, K, 4 | 8, plan.nb}, plan.items);
    for (int e = 0; e < E; e++) {
        run(l, "k_pack_cols_bf16", (void *[]){packed, w + e * N * K}, (int64_t[]){K, N, K},
            cg_pack_cols_items(K, N));
        for (int r = off[e]; r < off[e + 1]; r++) {
            run(l, "k_gemm_bf16", (void *[]){row, a + index[r] * K, packed},
                (int64_t[]){1, N, K, K, N, 0, 6, 64}, (N + 63) / 64);
            assert_memory_equal(row, c + r * N, N * 4);
        }
    }
    free(a), free(w), free(packed), free(c), free(row);
}

/* A product of a stack, of few rows by weights in place or packed by its items, has the bits of the
 * plain one. */
static void stack_case(int l, const char *kind, int64_t M, int64_t N, int64_t K, int flags)
{
    enum { E = 3 };
    char name[3][40];
    const char *const form[] = {"k_gemm_stack%s", "k_gemm%s",
                                flags & 8 ? "k_pack_cols%s" : "k_pack_rows%s"};
    for (int i = 0; i < 3; i++) snprintf(name[i], sizeof name[i], form[i], kind);
    int64_t lda = flags & 1 ? M : K, ldb = flags & 8 ? K : N;
    float *a = numbers(E * M * K, 1), *b = numbers(E * K * N, 2), *c = numbers(E * M * N, 3);
    float *one = numbers(M * N, 4), *packed = numbers(cg_gemm_packed(K, N), 5);
    struct cg_stack_plan s = cg_gemm_stack_plan(E, M, N, K);
    struct cg_gemm_plan p = cg_gemm_plan(M, N, K);
    assert_true(cg_gemm_own_scratch(K, s.nb) <= 4 << 20);
    run(l, name[0], (void *[]){c, a, b}, (int64_t[]){M, N, K, lda, N, ldb, flags, s.nb}, s.items);
    for (int i = 0; i < E; i++) {
        run(l, name[2], (void *[]){packed, b + i * K * N}, (int64_t[]){K, N, ldb},
            flags & 8 ? cg_pack_cols_items(K, N) : cg_pack_rows_items(K, N));
        run(l, name[1], (void *[]){one, a + i * M * K, packed},
            (int64_t[]){M, N, K, lda, N, flags & 1, p.mb, p.nb}, p.items);
        assert_memory_equal(one, c + i * M * N, (size_t)(M * N * 4));
    }
    free(a), free(b), free(c), free(one), free(packed);
}

static void test_stack(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{1, 1, 1},    {1, 70, 33},    {2, 3, 16},
                                       {3, 130, 50}, {4, 65, 1517},  {4, 16, 0},
                                       {7, 65, 517}, {145, 300, 31}, {40, 64, 1200}};
    static const int flags[] = {0, 1, 8, 9};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int f = 0; f < 4; f++) {
            for (int l = 0; l < 2 * LIBS; l++)
                stack_case(l / 2, l % 2 ? "_bf16" : "", sizes[i][0], sizes[i][1], sizes[i][2],
                           flags[f]);
        }
}

/* As many rows as a server decodes at once: the bits of a large product, whatever the number. */
static void test_few(void **state)
{
    (void)state;
    for (int64_t m = 1; m <= 64; m++)
        for (int f = 0; f <= 8; f += 8) {
            int64_t n = 16 + m % 3 * 16 + m % 2 * 5, k = m % 4 ? 128 + m * 3 : 320;
            for (int l = 0; l < 2 * LIBS; l++) stack_case(l / 2, l % 2 ? "_bf16" : "", m, n, k, f);
        }
}

static void test_bf16(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{1, 1, 1},   {1, 70, 33},    {7, 65, 17},    {5, 63, 513},
                                       {13, 16, 2}, {145, 130, 31}, {37, 200, 2503}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int flags = 0; flags < 8; flags++)
            for (int l = 0; l < LIBS; l++)
                bf16_case(l, sizes[i][0], sizes[i][1], sizes[i][2], flags % 4, flags / 4);
    for (int l = 0; l < LIBS; l++) bf16_grouped(l);
}

static void test_grouped(void **state)
{
    (void)state;
    enum { E = 5, ROWS = 200, TOKENS = 90, N = 70, K = 37 };
    static const int32_t off[E + 1] = {0, 7, 7, 160, 161, 190}; /* an empty one, rows left over */
    int32_t index[ROWS];
    for (int i = 0; i < ROWS; i++) index[i] = (i * 31 + 7) % TOKENS;
    float *a = numbers(TOKENS * K, 1), *w = numbers(E * N * K, 2), *dy = numbers(ROWS * N, 3);
    float *x = numbers(ROWS * K, 5);
    float *c[LIBS], *dw[LIBS], *xp = numbers(cg_gemm_packed(ROWS, K), 6);
    double *want = calloc(ROWS * N, sizeof *want), *want_dw = calloc(E * N * K, sizeof *want_dw);
    for (int e = 0; e < E; e++) {
        for (int r = off[e]; r < off[e + 1]; r++)
            ref_gemm(want + r * N, a + index[r] * K, 0, 1, w + e * N * K, 1, K, 1, N, K, N);
        ref_gemm(want_dw + e * N * K, dy + off[e] * N, 1, N, x + off[e] * K, K, 1, N, K,
                 off[e + 1] - off[e], K);
    }
    struct cg_stack_plan fwd = cg_gemm_stack_plan(E, ROWS / E, N, K);
    struct cg_gemm_plan bwd = cg_gemm_grouped_dw_plan(ROWS, N, K, E);
    for (int l = 0; l < LIBS; l++) {
        c[l] = numbers(ROWS * N, 7);
        dw[l] = numbers(E * N * K, 8);
        run(l, "k_gemm_grouped", (void *[]){c[l], a, w, (void *)off, index},
            (int64_t[]){N, K, K, N, K, 4 | 8, fwd.nb}, fwd.items);
        close_to(c[l], want, off[E] * N, 1e-5, "grouped");
        run(l, "k_pack_rows", (void *[]){xp, x}, (int64_t[]){ROWS, K, K},
            cg_pack_rows_items(ROWS, K));
        run(l, "k_gemm_grouped_dw", (void *[]){dw[l], dy, xp, (void *)off},
            (int64_t[]){ROWS, N, K, N, K, 0, bwd.mb, bwd.nb, E}, bwd.items);
        close_to(dw[l], want_dw, E * N * K, 1e-5, "grouped dw");
    }
    assert_memory_equal(c[0], c[1], ROWS * N * 4);
    assert_memory_equal(dw[0], dw[1], E * N * K * 4);
    free(a), free(w), free(dy), free(x), free(xp), free(want), free(want_dw);
    for (int l = 0; l < LIBS; l++) free(c[l]), free(dw[l]);
}

/* Attention in double. g may be NULL (forward only); dq, dk, dv must be zero before. */
struct att_ref {
    double *o, *lse, *dq, *dk, *dv;
};
static double score(const struct cg_attn *a, const float *q, const float *k, int64_t i, int64_t j)
{
    double s = 0;
    for (int d = 0; d < a->hd; d++) s += (double)q[i * a->ldq + d] * (double)k[j * a->ldk + d];
    return s * (double)a->scale;
}

static void ref_row(const struct cg_attn *a, float *const *p, int64_t i, int64_t first, int h,
                    const float *dout, struct att_ref *r)
{
    int kv = h / (a->h / a->kv);
    const float *q = p[0] + h * a->hd, *k = p[1] + kv * a->hd, *v = p[2] + kv * a->vd;
    int64_t j0 = a->window && i - a->window + 1 > first ? i - a->window + 1 : first;
    double sum = 0, *o = r->o + i * a->ldo + h * a->vd, delta = 0;
    for (int64_t j = j0; j <= i; j++) sum += exp(score(a, q, k, i, j));
    double lse = r->lse[i * a->h + h] = log(sum);
    memset(o, 0, sizeof *o * (size_t)a->vd);
    for (int64_t j = j0; j <= i; j++)
        for (int d = 0; d < a->vd; d++)
            o[d] += exp(score(a, q, k, i, j) - lse) * (double)v[j * a->ldv + d];
    dout += i * a->lddo + h * a->vd;
    for (int d = 0; d < a->vd; d++) delta += o[d] * (double)dout[d];
    for (int64_t j = j0; j <= i; j++) {
        double w = exp(score(a, q, k, i, j) - lse), dw = 0;
        for (int d = 0; d < a->vd; d++) {
            dw += (double)dout[d] * (double)v[j * a->ldv + d];
            r->dv[j * a->lddv + kv * a->vd + d] += w * (double)dout[d];
        }
        double ds = w * (dw - delta) * (double)a->scale;
        for (int d = 0; d < a->hd; d++) {
            r->dq[i * a->lddq + h * a->hd + d] += ds * (double)k[j * a->ldk + d];
            r->dk[j * a->lddk + kv * a->hd + d] += ds * (double)q[i * a->ldq + d];
        }
    }
}

static void att_case(const struct cg_attn *a, int64_t B, int64_t T)
{
    int64_t n = B * T, size[9] = {n * a->ldq,  n * a->ldk,  n * a->ldv,  n * a->ldo, n * a->h,
                                  n * a->lddo, n * a->lddq, n * a->lddk, n * a->lddv};
    float *p[LIBS][9], *cut[9];
    double *want[9];
    for (int i = 0; i < 9; i++) {
        for (int l = 0; l < LIBS; l++) p[l][i] = numbers(size[i], (uint64_t)(i + 1));
        cut[i] = numbers(size[i], (uint64_t)(i + 1));
        want[i] = calloc((size_t)size[i] + 1, sizeof **want);
        for (int64_t t = 0; t < size[i]; t++) want[i][t] = i == 3 ? (double)cut[i][t] : 0.0;
    }
    for (int64_t t = 0; t < size[0]; t++) p[0][0][t] = p[1][0][t] = cut[0][t] *= 6.0f; /* sharper */
    struct att_ref ref = {want[3], want[4], want[6], want[7], want[8]};
    for (int64_t i = 0; i < n; i++)
        for (int h = 0; h < a->h; h++) ref_row(a, p[0], i, i / T * T, h, p[0][5], &ref);
    char name[32];
    float *most = numbers(n * a->h, 1);
    for (int l = 0; l < LIBS; l++) {
        float *const forward[6] = {p[l][0], p[l][1], p[l][2], p[l][3], p[l][4], most};
        for (int pass = 0; pass < 2; pass++) {
            snprintf(name, sizeof name, "%s_%s", a->fn, pass ? "bwd" : "fwd");
            run(l, name, pass ? (void *const *)p[l] : (void *const *)forward, (int64_t[]){B, T},
                pass ? cg_attn_bwd_items(B, a->kv) : cg_attn_fwd_items(B, T, a->h, a->kv));
        }
        static const int outs[] = {3, 4, 6, 7, 8};
        for (size_t x = 0; x < 5; x++) {
            int i = outs[x];
            int64_t ld = size[i] / n;
            int used[9] = {
                0, 0, 0, a->h * a->vd, a->h, 0, a->h * a->hd, a->kv * a->hd, a->kv * a->vd};
            for (int64_t t = 0; t < n; t++) {
                snprintf(name, sizeof name, "%s output %d T %d", a->fn, i, (int)T);
                close_to(p[l][i] + t * ld, want[i] + t * ld, used[i], 2e-5, name);
            }
        }
    }
    for (int i = 0; i < 9; i++) assert_memory_equal(p[0][i], p[1][i], (size_t)size[i] * 4);
    /* A prefix of the first sequence alone has the same bits. */
    int64_t less = (2 * T + 2) / 3;
    snprintf(name, sizeof name, "%s_fwd", a->fn);
    float *const forward[6] = {cut[0], cut[1], cut[2], cut[3], cut[4], most};
    run(0, name, (void *const *)forward, (int64_t[]){1, less},
        cg_attn_fwd_items(1, less, a->h, a->kv));
    assert_memory_equal(cut[3], p[0][3], (size_t)(less * a->ldo) * 4);
    assert_memory_equal(cut[4], p[0][4], (size_t)(less * a->h) * 4);
    for (int i = 0; i < 9; i++) {
        for (int l = 0; l < LIBS; l++) free(p[l][i]);
        free(cut[i]), free(want[i]);
    }
    free(most);
}

static void test_attention(void **state)
{
    (void)state;
    static const int64_t lengths[] = {1, 2, 16, 61, 64, 65, 97, 150, 203};
    for (int c = 0; c < CASES; c++) {
        const struct cg_attn *a = &cases[c];
        assert_in_range(cg_attn_fwd_scratch(a->h, a->kv, a->hd, a->vd), 1, 4 << 20);
        assert_in_range(cg_attn_bwd_scratch(a->hd, a->vd), 1, 4 << 20);
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            att_case(a, 1 + (int64_t)i % 2, lengths[i]);
    }
}

/* The largest error of y against f(x), in units of the last place of the true value. */
static double worst(const float *y, const float *x, int64_t n, double (*f)(double))
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        double want = f((double)x[i]);
        if (isnan(want) || fabs(want) > 3.4028236e38) {
            assert_true(isnan(want) ? isnan(y[i]) : isinf(y[i]));
            continue;
        }
        double ulp = ldexp(1.0, (fabs(want) < 1.2e-38 ? -126 : ilogb(want)) - 23);
        double err = fabs((double)y[i] - want) / ulp;
        if (err > most) most = err;
    }
    return most;
}

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}
static double softplus(double x)
{
    return x > 20 ? x : log1p(exp(x));
}
static double rsqrt(double x)
{
    return 1.0 / sqrt(x);
}

static void test_math(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double (*f)(double), lo, hi, ulps;
    } t[] = {
        {"m_exp", exp, -110, 95, 1.5},         {"m_exp", exp, -1e-3, 1e-3, 1},
        {"m_log", log, -1, 1e5, 1.5},          {"m_log", log, 0.5, 2, 1.5},
        {"m_log", log, 0, 1e-38, 1.5},         {"m_tanh", tanh, -12, 12, 2.5},
        {"m_tanh", tanh, -0.7, 0.7, 2.5},      {"m_sigmoid", sigmoid, -80, 80, 3},
        {"m_softplus", softplus, -105, 25, 3}, {"m_softplus", softplus, -1, 1, 3},
        {"m_round", rint, -9, 9, 0},           {"m_round", rint, -1e7, 1e7, 0},
        {"m_sqrt", sqrt, 0, 1e9, 0.5},         {"m_rsqrt", rsqrt, 1e-9, 1e3, 1.5},
    };
    enum { N = 100003 };
    float *x = numbers(N, 9), *y[LIBS] = {numbers(N, 1), numbers(N, 1)};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        for (int64_t k = 0; k < N; k++)
            x[k] = (float)(t[i].lo + (t[i].hi - t[i].lo) * (double)k / (N - 1));
        for (int l = 0; l < LIBS; l++)
            kernel_of(lib[l], t[i].name)((void *[]){y[l], x}, NULL, 0, N, NULL);
        assert_memory_equal(y[0], y[1], N * 4);
        double ulps = worst(y[0], x, N, t[i].f);
        if (ulps > t[i].ulps) fail_msg("%s is off by %.3f ulp", t[i].name, ulps);
        print_message("%s on [%g, %g]: %.3f ulp\n", t[i].name, t[i].lo, t[i].hi, ulps);
    }
    free(x), free(y[0]), free(y[1]);
}

static void test_math_special(void **state)
{
    (void)state;
    const float inf = INFINITY, nan = nanf("");
    float x[16] = {0,      -0.0f, inf,    -inf,     nan,      1,   -1,
                   1e-45f, 3e38f, -3e38f, 88.7228f, -103.97f, 0.5f};
    for (int l = 0; l < LIBS; l++) {
        float y[16], z[16];
        kernel_of(lib[l], "m_exp")((void *[]){y, x}, NULL, 0, 16, NULL);
        assert_true(y[0] == 1 && y[1] == 1 && y[2] == inf && y[3] == 0 && isnan(y[4]));
        assert_true(y[8] == inf && y[9] == 0 && y[10] < inf && y[11] == 1.40129846e-45f);
        for (int i = 0; i < 16; i++) {
            kernel_of(lib[l], "m_exp1")((void *[]){z, x + i}, NULL, 0, 1, NULL);
            assert_memory_equal(z, y + i, 4);
        }
        kernel_of(lib[l], "m_log")((void *[]){y, x}, NULL, 0, 16, NULL);
        assert_true(y[0] == -inf && y[1] == -inf && y[2] == inf && isnan(y[3]) && isnan(y[4]));
        assert_true(y[5] == 0 && isnan(y[6]) && fabsf(y[7] + 103.27893f) < 1e-4f);
        kernel_of(lib[l], "m_tanh")((void *[]){y, x}, NULL, 0, 16, NULL);
        assert_true(y[0] == 0 && signbit(y[1]) && y[2] == 1 && y[3] == -1 && isnan(y[4]));
        kernel_of(lib[l], "m_sigmoid")((void *[]){y, x}, NULL, 0, 16, NULL);
        assert_true(y[0] == 0.5f && y[2] == 1 && y[3] == 0 && isnan(y[4]) && y[8] == 1);
    }
}

static void test_lanes(void **state)
{
    (void)state;
    float x[16], y[16];
    for (int l = 0; l < LIBS; l++) {
        float *r = numbers(16, 11);
        memcpy(x, r, sizeof x);
        free(r);
        float s[8], m = x[0];
        for (int i = 0; i < 8; i++) s[i] = x[i] + x[i + 8];
        for (int w = 4; w; w /= 2)
            for (int i = 0; i < w; i++) s[i] += s[i + w];
        for (int i = 1; i < 16; i++) m = x[i] > m ? x[i] : m;
        kernel_of(lib[l], "m_sum")((void *[]){y, x}, NULL, 0, 16, NULL);
        assert_memory_equal(y, s, 4);
        kernel_of(lib[l], "m_max")((void *[]){y, x}, NULL, 0, 16, NULL);
        assert_memory_equal(y, &m, 4);
        /* bf16: halfway cases go to even, NaN stays, overflow rounds to infinity */
        uint32_t in[16] = {0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0x7f7fffff,
                           0x7f800000, 0x7f800001, 0xff800000, 0x80000000, 1},
                 out[16] = {0x3f800000, 0x3f820000, 0x3f810000, 0x3f800000, 0x7f800000,
                            0x7f800000, 0x7fc00000, 0xff800000, 0x80000000, 0};
        kernel_of(lib[l], "m_bf16")((void *[]){y, in}, NULL, 0, 16, NULL);
        assert_memory_equal(y, out, sizeof y);
        /* a tail never touches what lies beyond it */
        for (int n = 0; n < 16; n++) {
            for (int i = 0; i < 16; i++) y[i] = 7;
            kernel_of(lib[l], "m_sqrt")((void *[]){y, x}, NULL, 0, n, NULL);
            for (int i = n; i < 16; i++) assert_true(y[i] == 7);
        }
    }
}

static void test_template(void **state)
{
    (void)state;
    struct sb out = {0};
    cg_text(&out, "int ${A}[${B}]; /* ${A} $ {} */", (struct cg_var[]){{"B", "3"}, {"A", "x"}}, 2);
    assert_string_equal(out.p, "int x[3]; /* x $ {} */");
    sb_free(&out);
    cg_attn_text(&out, &cases[0]);
    assert_null(strstr(out.p, "${"));
    sb_free(&out);
}

/* Unknown and unused variables and unfinished ones are bugs of the caller. */
static void test_template_bugs(void **state)
{
    (void)state;
    static const char *const texts[] = {"${A} ${B}", "nothing", "${A"};
    for (int i = 0; i < 3; i++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) {
            struct sb out = {0};
            if (freopen("/dev/null", "w", stderr))
                cg_text(&out, texts[i], &(struct cg_var){"A", "x"}, 1);
            _exit(0);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_not_equal(status, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_template),  cmocka_unit_test(test_template_bugs),
        cmocka_unit_test(test_math),      cmocka_unit_test(test_math_special),
        cmocka_unit_test(test_lanes),     cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_grouped),   cmocka_unit_test(test_stack),
        cmocka_unit_test(test_few),       cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_attention),
    };
    return cmocka_run_group_tests_name("cpu_kernels", tests, setup, teardown);
}
