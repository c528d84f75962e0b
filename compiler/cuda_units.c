#include "compiler/cuda_units.h"
#include "runtime/mem.h"
#include "base/map.h"
#include "base/vec.h"
#include "codegen/kernel.h"
#include <stdlib.h>

enum {
    UNIT_BYTES = 32 << 10, /* half a second of NVRTC or more, beside a tenth for the prelude */
    UNITS = 16
};

struct piece { /* a distinct text */
    struct str text;
    uint32_t index, unit; /* index: of the first */
};

/* The longest first; equally long ones as they came. */
static int longest(const void *pa, const void *pb)
{
    const struct piece *a = pa, *b = pb;
    if (a->text.n != b->text.n) return a->text.n < b->text.n ? 1 : -1;
    return a->index < b->index ? -1 : 1;
}

static int as_given(const void *pa, const void *pb)
{
    const struct piece *a = pa, *b = pb;
    return a->index < b->index ? -1 : a->index > b->index;
}

/* The longest that is left goes where there is least. */
static void spread(struct piece *p, size_t n, size_t units)
{
    size_t load[UNITS] = {0};
    qsort(p, n, sizeof *p, longest);
    for (size_t i = 0; i < n; i++) {
        uint32_t to = 0;
        for (uint32_t u = 1; u < units; u++)
            if (load[u] < load[to]) to = u;
        p[i].unit = to;
        load[to] += p[i].text.n;
    }
    qsort(p, n, sizeof *p, as_given);
}

struct cuda_units cuda_units(struct arena *a, const struct str *text, size_t n, size_t most,
                             uint32_t *unit_of)
{
    VEC(struct piece) piece = {0};
    struct map seen; /* text: index of its piece + 1 */
    struct cuda_units u = {0};
    map_init(&seen, a);
    for (size_t i = 0; i < n; i++) {
        uint32_t *at = map_str(&seen, text[i]);
        if (!*at) {
            vec_push(a, &piece, ((struct piece){text[i], (uint32_t)i, 0}));
            *at = (uint32_t)piece.n;
            u.kernel_bytes += text[i].n;
        }
        unit_of[i] = *at - 1;
    }
    u.n = u.kernel_bytes / UNIT_BYTES + 1;
    if (u.n > UNITS) u.n = UNITS;
    if (most && u.n > most) u.n = most;
    if (!n) u.n = 0;
    if (n) spread(piece.p, piece.n, u.n);
    for (size_t i = 0; i < n; i++) unit_of[i] = piece.p[unit_of[i]].unit;
    u.text = NEW(a, const char *, u.n);
    for (size_t k = 0; k < u.n; k++) {
        struct sb s = {0};
        sb_str(&s, cg_cuda_prelude());
        for (size_t i = 0; i < piece.n; i++) {
            if (piece.p[i].unit != k) continue;
            sb_char(&s, '\n');
            sb_add(&s, piece.p[i].text.p, piece.p[i].text.n);
        }
        u.text[k] = sb_take(&s, a).p;
    }
    return u;
}

enum rt_status cuda_compile(struct arena *a, const struct str *text, size_t n, const char *arch,
                            unsigned threads, uint32_t *unit_of, struct nvrtc_image **image,
                            size_t *num, struct rt_error *err)
{
    const struct cuda_units u = cuda_units(a, text, n, 0, unit_of);
    *image = NEW(a, struct nvrtc_image, u.n + 1);
    *num = u.n;
    return u.n ? nvrtc_compile_all(a, u.text, u.n, arch, true, threads, *image, err) : RT_ok;
}

void cuda_compile_report(struct jit_report *rep, const struct nvrtc_image *image, size_t num,
                         const uint32_t *unit_of, size_t n, double begin)
{
    for (size_t i = 0; i < n; i++) *(image[unit_of[i]].cached ? &rep->cached : &rep->compiled) += 1;
    for (size_t i = 0; i < num; i++) {
        rep->units += !image[i].cached;
        rep->code_bytes += image[i].code.n;
    }
    if (rep->units) rep->seconds = mem_seconds() - begin;
}
