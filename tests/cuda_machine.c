#include "cuda_machine.h"
#include "runtime/gpu.h"
#include "runtime/nvrtc.h"
#include <stdio.h>
#include <stdlib.h>

enum { GUARD = 256, ARRAYS = 1024 };

struct array {
    char *p; /* the first byte of the value */
    size_t bytes;
};
struct cuda_machine {
    struct arena *a;
    struct cudacpu *cpu; /* NULL: a GPU */
    struct gpu *gpu;
    struct CUmod_st *module;
    bool products;
    struct array array[ARRAYS];
};

static const char *compiler(void)
{
    const char *env = getenv("STRATA_CLANG");
    if (env && *env) return env;
    return system("command -v clang-19 >/dev/null") == 0 ? "clang-19" : "clang-14";
}

static void must(enum rt_status st, const struct rt_error *err)
{
    if (!st) return;
    fprintf(stderr, "GPU: %s\n", err->text);
    exit((int)st);
}

static void open_device(struct cuda_machine *m, const char *name, const char *text)
{
    struct rt_error err;
    struct nvrtc_image image;
    struct sb all = {0};
    const char *colon = strchr(name, ':');
    must(gpu_open(colon ? atoi(colon + 1) : 0, &m->gpu, &err), &err);
    sb_printf(&all, "%s\n%s", cg_cuda_prelude(), text);
    must(nvrtc_compile(m->a, all.p, gpu_about(m->gpu)->arch, true, &image, &err), &err);
    must(gpu_load(m->gpu, image.code.p, &m->module, &err), &err);
    sb_free(&all);
}

struct cuda_machine *cuda_machine_open(const char *text)
{
    struct arena *a = arena_open("cuda_machine");
    struct cuda_machine *m = NEW(a, struct cuda_machine, 1);
    const char *device = getenv("STRATA_TEST_DEVICE");
    m->a = a;
    if (device && *device)
        open_device(m, device, text);
    else
        m->cpu = cudacpu_open(compiler(), text, true);
    return m;
}

void cuda_machine_close(struct cuda_machine *m)
{
    if (m->cpu) cudacpu_close(m->cpu);
    if (m->gpu) gpu_unload(m->gpu, m->module);
    gpu_close(m->gpu);
    arena_close(m->a);
}

bool cuda_machine_is_device(const struct cuda_machine *m)
{
    return m->gpu != NULL;
}

char *cuda_machine_alloc(struct cuda_machine *m, size_t bytes)
{
    struct rt_error err;
    cu_ptr at;
    if (m->cpu) return cudacpu_alloc(bytes);
    int i = 0;
    while (i < ARRAYS && m->array[i].p) i++;
    CHECK(i < ARRAYS);
    size_t all = bytes + 2 * GUARD;
    char *nan = malloc(all);
    CHECK(nan);
    memset(nan, 0xff, all);
    must(gpu_alloc(m->gpu, all, "a test", &at, &err), &err);
    must(gpu_put(m->gpu, at, nan, all, &err), &err);
    free(nan);
    m->array[i] = (struct array){(char *)(uintptr_t)at + GUARD, bytes};
    return m->array[i].p;
}

const char *cuda_machine_free(struct cuda_machine *m, char *p)
{
    if (m->cpu) {
        cudacpu_free(p);
        return NULL;
    }
    unsigned char guard[2 * GUARD];
    const char *why = NULL;
    int i = 0;
    while (i < ARRAYS && m->array[i].p != p) i++;
    CHECK(i < ARRAYS);
    cuda_machine_get(m, guard, p - GUARD, GUARD);
    cuda_machine_get(m, guard + GUARD, p + m->array[i].bytes, GUARD);
    for (size_t k = 0; k < sizeof guard; k++)
        if (guard[k] != 0xff) why = "written beside its memory";
    gpu_free(m->gpu, (cu_ptr)(uintptr_t)(p - GUARD));
    m->array[i].p = NULL;
    return why;
}

void cuda_machine_put(struct cuda_machine *m, char *to, const void *from, size_t bytes)
{
    struct rt_error err;
    if (m->cpu)
        memcpy(to, from, bytes);
    else
        must(gpu_put(m->gpu, (cu_ptr)(uintptr_t)to, from, bytes, &err), &err);
}

void cuda_machine_get(struct cuda_machine *m, void *to, const char *from, size_t bytes)
{
    struct rt_error err;
    if (m->cpu)
        memcpy(to, from, bytes);
    else
        must(gpu_get(m->gpu, to, (cu_ptr)(uintptr_t)from, bytes, &err), &err);
}

/* ---- steps ---- */

double cuda_element(const void *p, bool bf16, int64_t i)
{
    uint32_t u;
    float f;
    if (!bf16) return (double)((const float *)p)[i];
    u = (uint32_t)((const uint16_t *)p)[i] << 16;
    memcpy(&f, &u, sizeof f);
    return (double)f;
}

void cuda_put_element(void *p, bool bf16, int64_t i, double x)
{
    float f = (float)x;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (bf16)
        ((uint16_t *)p)[i] = f != f ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
    else
        ((float *)p)[i] = f;
}

/* What cuBLAS would do. */
static void product(const int64_t *n, char *const *p)
{
    bool in = n[SA_P_bf16_in], out = n[SA_P_bf16_out];
    for (int64_t z = 0; z < n[SA_P_batch]; z++)
        for (int64_t i = 0; i < n[SA_P_M]; i++)
            for (int64_t k = 0; k < n[SA_P_N]; k++) {
                int64_t at = z * n[SA_P_stride_c] + i * n[SA_P_ldc] + k;
                double sum = n[SA_P_accumulate] ? cuda_element(p[2], false, at) : 0;
                for (int64_t q = 0; q < n[SA_P_K]; q++) {
                    int64_t x = n[SA_P_ta] ? q * n[SA_P_lda] + i : i * n[SA_P_lda] + q;
                    int64_t y = n[SA_P_tb] ? k * n[SA_P_ldb] + q : q * n[SA_P_ldb] + k;
                    sum += cuda_element(p[0], in, z * n[SA_P_stride_a] + x) *
                           cuda_element(p[1], in, z * n[SA_P_stride_b] + y);
                }
                cuda_put_element(p[2], out, at, sum);
            }
}

static const char *device_step(struct cuda_machine *m, const struct cg_step *s, char *const *p,
                               const char *parameters, size_t bytes)
{
    struct rt_error err;
    struct CUfunc_st *fn;
    if (s->product) {
        const cu_ptr at[3] = {(cu_ptr)(uintptr_t)p[0], (cu_ptr)(uintptr_t)p[1],
                              (cu_ptr)(uintptr_t)p[2]};
        if (!m->products) must(gpu_open_products(m->gpu, &err), &err);
        m->products = true;
        must(gpu_product(m->gpu, s->num, at, &err), &err);
        return NULL;
    }
    must(gpu_function(m->gpu, m->module, s->symbol, &fn, &err), &err);
    must(gpu_allow_shared(m->gpu, fn, s->label, s->launch.shared, &err), &err);
    if (gpu_launch(m->gpu, fn, &s->launch, parameters, bytes, &err) || gpu_wait(m->gpu, &err))
        return str_fmt(m->a, "%s: %s", s->symbol, err.text);
    return NULL;
}

const char *cuda_machine_step(struct cuda_machine *m, const struct cg_step *s, char *const *p,
                              enum cudacpu_order order, unsigned seed)
{
    char parameters[32764];
    size_t bytes = 8 * (s->nref + s->nnum);
    if (!s->product && !s->launch.grid[0]) return NULL;
    CHECK(bytes <= sizeof parameters);
    if (s->nref) memcpy(parameters, p, s->nref * 8);
    if (s->nnum) memcpy(parameters + s->nref * 8, s->num, s->nnum * 8);
    if (m->gpu) return device_step(m, s, p, parameters, bytes);
    if (s->product) {
        product(s->num, p);
        return NULL;
    }
    const struct cudacpu_launch l = {
        .grid = {s->launch.grid[0], s->launch.grid[1], s->launch.grid[2]},
        .block = {s->launch.threads, 1, 1},
        .shared = s->launch.shared,
        .order = order,
        .seed = seed,
    };
    return cudacpu_run_packed(m->cpu, s->symbol, l, parameters);
}
