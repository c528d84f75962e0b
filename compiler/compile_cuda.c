#include "compiler/compile_cuda.h"
#include "base/map.h"
#include "compiler/cuda_units.h"
#include "runtime/cuda_api.h"
#include "runtime/mem.h"
#include "runtime/nvrtc.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

bool compile_cuda_form(const char *emit)
{
    return !strcmp(emit, "ptx") || !strcmp(emit, "cubin");
}

const char *compile_cuda_arch(struct cli *c, const char *target, const char *emit)
{
    const char *arch = target + strlen("cuda:");
    if (compile_cuda_form(emit)) cli_check(c, cuda_load(CUDA_nvrtc, NULL, &c->err));
    cli_check(c, nvrtc_known(c->arena, arch, &c->err));
    if (!str_starts(str_of(arch), "sm_"))
        cli_fail(RT_usage, "no target '%s': it is cuda:sm_90a, say; --emit ptx makes PTX of it",
                 target);
    return arch;
}

/* ---- what kernels take ---- */

struct row { /* a kernel, or the worst of a kind */
    const char *name;
    unsigned kernels, registers, spilled;
    uint64_t shared; /* static, and most of the dynamic */
};
struct table {
    struct arena *a;
    struct map index; /* name: row + 1 */
    VEC(struct row) row;
};

/* The symbol without the hash of its text. */
static const char *kind_of(struct arena *a, const char *symbol)
{
    const char *end = strrchr(symbol, '_');
    return end ? str_dup(a, (struct str){symbol, (size_t)(end - symbol)}) : symbol;
}

/* Most dynamic shared memory of the steps that launch a kernel. */
static uint64_t dynamic_shared(const struct lowered *l, const char *symbol)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < l->plan.num_steps; i++) {
        const struct sa_step *s = &l->plan.steps[i];
        if (s->kernel == SA_PRODUCT || strcmp(l->plan.kernels[s->kernel].symbol, symbol)) continue;
        if (s->launch.shared > most) most = s->launch.shared;
    }
    return most;
}

/* Whether a block of every launch finds room: its registers come in eights, and shared memory is
 * what the architecture gives a block at most (cuda_ops.c asks the same of single operations). */
static void check_room(const struct lowered *l, const struct nvrtc_kernel *k, const char *arch)
{
    enum { REGISTERS = 64 << 10 };
    static const struct {
        unsigned sm, kib;
    } most[] = {{80, 163}, {86, 99}, {87, 163}, {89, 99}, {90, 227}, {100, 227}, {103, 227}};
    unsigned sm = (unsigned)atoi(arch + strlen("sm_")), kib = 99;
    for (size_t i = 0; i < sizeof most / sizeof *most; i++)
        if (most[i].sm == sm) kib = most[i].kib;
    for (uint32_t i = 0; i < l->plan.num_steps; i++) {
        const struct sa_step *s = &l->plan.steps[i];
        if (s->kernel == SA_PRODUCT || strcmp(l->plan.kernels[s->kernel].symbol, k->name)) continue;
        if ((k->registers + 7) / 8 * 8 * s->launch.threads <= REGISTERS &&
            k->shared + s->launch.shared <= kib << 10)
            continue;
        fprintf(stderr,
                "strata: warning: step '%s' cannot be launched on %s: %u threads of %u registers, "
                "%u bytes of shared memory\n",
                s->label, arch, s->launch.threads, k->registers, k->shared + s->launch.shared);
        return;
    }
}

static void add_kernel(struct table *t, const struct lowered *l, const struct nvrtc_kernel *k,
                       bool all)
{
    const char *name = all ? k->name : kind_of(t->a, k->name);
    uint32_t *at = map_str(&t->index, str_of(name));
    if (!*at) {
        vec_push(t->a, &t->row, (struct row){.name = name});
        *at = (uint32_t)t->row.n;
    }
    struct row *r = &t->row.p[*at - 1];
    uint64_t shared = k->shared + dynamic_shared(l, k->name);
    unsigned spilled = k->spill_stores + k->spill_loads;
    r->kernels++;
    if (k->registers > r->registers) r->registers = k->registers;
    if (shared > r->shared) r->shared = shared;
    if (spilled > r->spilled) r->spilled = spilled;
    if (spilled || k->stack)
        fprintf(stderr,
                "strata: warning: kernel %s has %u bytes of stack, and moves %u bytes of registers "
                "there (spills)\n",
                k->name, k->stack, spilled);
}

static int by_name(const void *pa, const void *pb)
{
    const struct row *a = pa, *b = pb;
    return strcmp(a->name, b->name);
}

static void print_kernels(struct cli *c, const struct lowered *l, const struct nvrtc_image *image,
                          size_t n, const char *arch, bool all)
{
    struct table t = {.a = c->arena};
    int width = 6;
    map_init(&t.index, c->arena);
    for (size_t u = 0; u < n; u++)
        for (size_t i = 0; i < image[u].kernels; i++) {
            add_kernel(&t, l, &image[u].kernel[i], all);
            check_room(l, &image[u].kernel[i], arch);
        }
    if (!t.row.n) return;
    qsort(t.row.p, t.row.n, sizeof *t.row.p, by_name);
    for (size_t i = 0; i < t.row.n; i++)
        if ((int)strlen(t.row.p[i].name) > width) width = (int)strlen(t.row.p[i].name);
    printf("%-*s %7s %9s %12s %7s\n", width, all ? "kernel" : "kind", all ? "" : "kernels",
           "registers", "shared bytes", "spilled");
    for (size_t i = 0; i < t.row.n; i++) {
        const struct row *r = &t.row.p[i];
        const char *count = all ? "" : str_fmt(c->arena, "%u", r->kernels);
        printf("%-*s %7s %9u %12llu %7u\n", width, r->name, count, r->registers,
               (unsigned long long)r->shared, r->spilled);
    }
    for (uint32_t i = 0; i < l->plan.num_kernels; i++)
        if (all && l->kernel[i].why)
            printf("%s: not the faster form (%s): %s\n", l->code[i].symbol, l->kernel[i].label,
                   l->kernel[i].why);
}

/* ---- files ---- */

/* x.cubin to x.2.cubin. */
static const char *numbered(struct arena *a, const char *path, size_t i)
{
    const char *dot = strrchr(path, '.'), *slash = strrchr(path, '/');
    if (!dot || (slash && dot < slash) || dot == path) return str_fmt(a, "%s.%zu", path, i + 1);
    return str_fmt(a, "%.*s.%zu%s", (int)(dot - path), path, i + 1, dot);
}

/* Removes machine code of a GPU, and nothing else; false where there is none. */
static bool remove_code(const char *path)
{
    unsigned char begin[20] = {0}; /* of an ELF header, up to e_machine: EM_CUDA is 190 */
    FILE *f = fopen(path, "rb");
    bool code = f && fread(begin, 1, sizeof begin, f) == sizeof begin &&
                !memcmp(begin, "\177ELF", 4) && begin[18] == 190 && !begin[19];
    if (f) fclose(f);
    return code && !unlink(path);
}

/* Whoever reads x.*.cubin must not find those of an earlier, larger set. */
static void remove_others(struct arena *a, const char *path, size_t n)
{
    if (n > 1) remove_code(path);
    size_t i = n > 1 ? n : 0;
    while (remove_code(numbered(a, path, i))) i++;
}

/* One image of one is the file `out`, several have numbers. */
static void write_images(struct cli *c, const struct nvrtc_image *image, size_t n, bool ptx,
                         const char *out)
{
    for (size_t i = 0; i < n; i++) {
        const char *path = n == 1 ? out : numbered(c->arena, out, i);
        size_t bytes = ptx ? strnlen(image[i].code.p, image[i].code.n) : image[i].code.n;
        int e = io_write_atomic(path, image[i].code.p, bytes);
        if (e)
            cli_fail(e == ENOSPC || e == EIO ? RT_machine : RT_user, "cannot write '%s': %s", path,
                     strerror(e));
        printf("%s %s\n", path, cli_bytes(c->arena, (double)bytes));
    }
    remove_others(c->arena, out, n);
}

void compile_cuda(struct cli *c, const struct lowered *l, const char *arch, const char *emit,
                  const char *out, unsigned threads, bool all)
{
    struct arena *a = c->arena;
    bool ptx = !strcmp(emit, "ptx");
    uint32_t n = l->plan.num_kernels;
    struct str *text = NEW(a, struct str, n);
    uint32_t *unit_of = NEW(a, uint32_t, n);
    for (uint32_t i = 0; i < n; i++) text[i] = l->kernel[i].text;
    const struct cuda_units u = cuda_units(a, text, n, ptx ? 1 : 0, unit_of);
    struct nvrtc_image *image = NEW(a, struct nvrtc_image, u.n);
    const char *to = ptx ? str_fmt(a, "compute_%s", arch + strlen("sm_")) : arch;
    double begin = mem_seconds();
    cli_check(c, nvrtc_compile_all(a, u.text, u.n, to, true, threads, image, &c->err));
    double seconds = mem_seconds() - begin;
    size_t cached = 0;
    for (size_t i = 0; i < u.n; i++) cached += image[i].cached;
    printf("NVRTC %s for %s: %zu unit%s, %zu of them compiled before, %.1f s\n",
           cuda_version(CUDA_nvrtc), to, u.n, u.n == 1 ? "" : "s", cached, seconds);
    print_kernels(c, l, image, u.n, arch, all);
    write_images(c, image, u.n, ptx, out);
}
