/* Objects of kernels in this process, and their global memory (cudacpu.h). */
#include "cudacpu_build.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#if defined __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define FORBID(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define ALLOW(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define FORBID(p, n) ((void)(p), (void)(n))
#define ALLOW(p, n) ((void)(p), (void)(n))
#endif

struct cudacpu *cudacpu_load(const char *object, bool checked, const char **why)
{
    struct cudacpu *c = calloc(1, sizeof *c);
    char *begin, *end;
    Dl_info info;
    void (*range)(char **, char **);
    if (!c) abort();
    c->lib = dlopen(object, RTLD_NOW | RTLD_LOCAL);
    void *at = c->lib ? dlsym(c->lib, "cudacpu_shared_range") : NULL;
    if (!at || !dladdr(at, &info)) {
        *why = dlerror();
        free(c);
        return NULL;
    }
    c->object = strdup(object);
    c->checked = checked;
    memcpy(&range, &at, sizeof range);
    range(&begin, &end);
    c->base = info.dli_fbase;
    if (end > begin) c->shared = cudacpu_region(begin, (size_t)(end - begin), true, false);
    return c;
}

void cudacpu_unload(struct cudacpu *c)
{
    if (c->shared) cudacpu_region_free(c->shared);
    dlclose(c->lib);
    free(c->object), free(c);
}

bool cudacpu_bounds(const struct cudacpu *c, const char *kernel, size_t *bytes, unsigned *threads)
{
    char name[256];
    snprintf(name, sizeof name, "%s_bounds", kernel);
    void *at = dlsym(c->lib, name);
    void (*fn)(size_t *, unsigned *);
    if (!at) return false;
    memcpy(&fn, &at, sizeof fn);
    fn(bytes, threads);
    return true;
}

/* Arrays of global memory, for their regions. */
enum { ARRAYS = 2048 };
static struct {
    char *p;
    size_t room; /* with guards */
    struct region *region;
} arrays[ARRAYS];

void *cudacpu_alloc(size_t bytes)
{
    size_t room = (bytes + 255) / 256 * 256 + 2 * SLACK;
    char *at = aligned_alloc(256, room);
    int i = 0;
    while (i < ARRAYS && arrays[i].p) i++;
    CHECK(at && i < ARRAYS);
    memset(at, 0xff, room);
    FORBID(at, SLACK);
    FORBID(at + SLACK + bytes, room - SLACK - bytes);
    arrays[i].p = at + SLACK;
    arrays[i].room = room;
    arrays[i].region = cudacpu_region(at + SLACK, bytes, false, true);
    return arrays[i].p;
}

void cudacpu_free(void *p)
{
    for (int i = 0; p && i < ARRAYS; i++)
        if (arrays[i].p == p) {
            cudacpu_region_free(arrays[i].region);
            ALLOW(arrays[i].p - SLACK, arrays[i].room);
            free(arrays[i].p - SLACK);
            arrays[i].p = NULL;
        }
}
