/* Speed of the depth kernels on one thread: microseconds, bytes that must move (every tensor once)
 * and GB/s, beside what a copy of as many bytes reaches. `make bench-depth`, or
 * bench_depth D ROWS QUERIES. */
#include "abi.h"
#include "codegen/kernel.h"
#include "runtime/jit.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MAX_SOURCES = 64, MAX_QUERIES = 16 };

static struct arena *arena;
static struct jit *jit;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *memory(int64_t floats)
{
    float *p = aligned_alloc(4096, (size_t)(floats + 1024) / 1024 * 4096);
    if (!p) exit(3);
    for (int64_t i = 0; i < floats; i++) p[i] = (float)((i * 2654435761u >> 8) % 2001) * 1e-3f - 1;
    return p;
}

/* Seconds of the fastest of many runs of a node's steps; operands and results in fresh memory,
 * source gradients in place. *bytes: operands and results, once each. */
static double measure(const struct ir_graph *g, ir_id n, struct ir_bind b, double *bytes)
{
    struct cg_lowering low = {0};
    const struct cg_target t = {false};
    cg_lower_node(arena, g, n, b, &t, &low);
    const struct ir_node *x = ir_at(g, n);
    const struct ir_type *ty = ir_ty(g, n);
    float *src[4 * MAX_QUERIES + 2 * MAX_SOURCES + 6], *res[MAX_QUERIES + MAX_SOURCES + 3];
    *bytes = 0;
    for (uint32_t i = 0; i < x->nsrc; i++) {
        int64_t count = type_count(g->types, ir_at(g, ir_src(g, n, i))->type, b);
        src[i] = memory(count);
        *bytes += 4 * (double)count;
    }
    for (uint32_t i = 0; i < ty->count; i++) {
        int64_t count = type_count(g->types, type_elem(g->types, x->type, i), b);
        int at = cg_in_place(g, n, i);
        res[i] = at < 0 ? memory(count) : src[at];
        *bytes += 4 * (double)count;
    }
    char *work = (char *)memory((int64_t)low.workspace / 4 + 1);
    struct jit_kernel k[4];
    void **p[4], *scratch[4];
    struct rt_error err;
    for (size_t i = 0; i < low.step.n; i++) {
        const struct cg_step *s = &low.step.p[i];
        k[i] = (struct jit_kernel){s->symbol, s->text, NULL};
        scratch[i] = memory((int64_t)s->scratch / 4 + 1);
        p[i] = NEW(arena, void *, s->nref);
        for (size_t r = 0; r < s->nref; r++)
            p[i][r] = (s->ref[r].kind == CG_SRC   ? (char *)src[s->ref[r].index]
                       : s->ref[r].kind == CG_RES ? (char *)res[s->ref[r].index]
                                                  : work) +
                      s->ref[r].offset;
    }
    if (jit_load(jit, cg_cpu_prelude(), k, low.step.n, NULL, &err)) exit(3);
    double best = 1e9;
    for (double end = now() + 0.4; now() < end;) {
        double start = now();
        for (size_t i = 0; i < low.step.n; i++) {
            sa_kernel *fn;
            memcpy(&fn, &k[i].fn, sizeof fn);
            fn(p[i], low.step.p[i].num, 0, low.step.p[i].items, scratch[i]);
        }
        double s = now() - start;
        if (s < best) best = s;
    }
    for (uint32_t i = 0; i < ty->count; i++)
        if (cg_in_place(g, n, i) < 0) free(res[i]);
    for (uint32_t i = 0; i < x->nsrc; i++) free(src[i]);
    for (size_t i = 0; i < low.step.n; i++) free(scratch[i]);
    free(work);
    return best;
}

/* Seconds in which memcpy moves so many bytes (half read, half written). */
static double copy_time(double bytes)
{
    int64_t count = (int64_t)(bytes / 8);
    float *a = memory(count), *b = memory(count);
    double best = 1e9;
    for (double end = now() + 0.1; now() < end;) {
        double start = now();
        memcpy(b, a, (size_t)count * 4);
        __asm__ volatile("" : : "r"(b) : "memory");
        double s = now() - start;
        if (s < best) best = s;
    }
    free(a);
    free(b);
    return best;
}

/* Nodes of one number of sources: mix, its gradient, q mixes at once, their gradient. */
static void build(struct ir_graph *g, int64_t d, uint32_t q, uint32_t n, ir_id out[4])
{
    struct ir_dim rows = dim_sym(SYM_N, 1);
    ir_type_id full = ir_type2(g, IR_f32, rows, dim_const(d));
    ir_type_id vec = ir_type1(g, IR_f32, dim_const(d));
    ir_type_id one = ir_type2(g, IR_f32, rows, dim_const(1));
    ir_id u[MAX_QUERIES], v[MAX_SOURCES], s[4 * MAX_QUERIES + 2 * MAX_SOURCES + 6];
    uint32_t made = 0;
#define INPUT(type)                                                                             \
    ir_add_typed(g, OP_input, type, NO_SRCS, ATTRS(A_STR(name, str_fmt(arena, "x%u", made++))), \
                 NULL)
    char have[MAX_SOURCES + 1] = {0};
    for (uint32_t i = 0; i < q; i++) u[i] = INPUT(vec);
    for (uint32_t j = 0; j < n; j++) v[j] = INPUT(full), have[j] = '1';
    s[0] = u[0];
    memcpy(s + 1, v, n * sizeof *v);
    out[0] = ir_add(g, OP_depth_mix, s, 1 + n, ATTRS(A_INT(sources, n), A_NUM(eps, 1e-6)), NULL);
    s[0] = INPUT(full), s[1] = ir_get(g, out[0], 0), s[2] = u[0];
    for (uint32_t i = 0; i < 3; i++) s[3 + i] = ir_get(g, out[0], 1 + i);
    memcpy(s + 6, v, n * sizeof *v);
    for (uint32_t j = 0; j < n; j++) s[6 + n + j] = INPUT(full);
    out[1] = ir_add(g, OP_depth_mix_grad, s, 6 + 2 * n, ATTRS(A_INT(sources, n), A_STR(have, have)),
                    NULL);
    memcpy(s, u, q * sizeof *u);
    memcpy(s + q, v, n * sizeof *v);
    out[2] = ir_add(g, OP_depth_inter, s, q + n,
                    ATTRS(A_INT(sources, n), A_INT(queries, q), A_NUM(eps, 1e-6)), NULL);
    s[0] = ir_get(g, out[2], q), s[1] = ir_get(g, out[2], q + 1);
    for (uint32_t i = 0; i < q; i++) {
        s[2 + i] = u[i];
        s[2 + q + i] = INPUT(full);
        s[2 + 2 * q + i] = INPUT(one);
        s[2 + 3 * q + i] = INPUT(one);
    }
    memcpy(s + 2 + 4 * q, v, n * sizeof *v);
    for (uint32_t j = 0; j < n; j++) s[2 + 4 * q + n + j] = INPUT(full);
    out[3] = ir_add(g, OP_depth_inter_grad, s, 2 + 4 * q + 2 * n,
                    ATTRS(A_INT(sources, n), A_INT(queries, q), A_STR(have, have)), NULL);
#undef INPUT
}

int main(int argc, char **argv)
{
    static const char *const names[4] = {"mix", "mix_grad", "inter", "inter_grad"};
    int64_t d = argc > 1 ? atoll(argv[1]) : 256, rows = argc > 2 ? atoll(argv[2]) : 1024;
    uint32_t q = argc > 3 ? (uint32_t)atoi(argv[3]) : 4;
    struct rt_error err;
    arena = arena_open("bench_depth");
    if (q > MAX_QUERIES || jit_open(NULL, &jit, &err)) return 1;
    printf("D %lld, %lld rows, %u queries, one thread\n", (long long)d, (long long)rows, q);
    printf("%-11s %3s %9s %8s %7s %9s\n", "kernel", "n", "us", "MB", "GB/s", "copy GB/s");
    for (int k = 0; k < 4; k++)
        for (uint32_t n = 1; n <= 9; n += 2) {
            struct ir_graph *g = graph_open(arena, "bench", STAGE_K, NULL, NULL);
            ir_id node[4];
            double bytes;
            build(g, d, q, n, node);
            double s = measure(g, node[k], (struct ir_bind){1, rows}, &bytes);
            printf("%-11s %3u %9.1f %8.2f %7.1f %9.1f\n", names[k], n, s * 1e6, bytes * 1e-6,
                   bytes / s * 1e-9, bytes / copy_time(bytes) * 1e-9);
        }
    jit_close(jit);
    arena_close(arena);
    return 0;
}
