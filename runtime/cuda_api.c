#include "runtime/cuda_api.h"
#include "base/str.h"
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static const struct {
    const char *name, *title, *files, *install;
} about[] = {
#define LIB(id, title, files, install) {#id, title, files, install},
#include "runtime/cuda_api.def"
};

static const struct {
    enum cuda_library lib;
    const char *name;
    size_t at; /* in struct cuda_api */
} symbols[] = {
#define API(lib, result, name, arguments) {CUDA_##lib, #name, offsetof(struct cuda_api, name)},
#include "runtime/cuda_api.def"
};

static struct library {
    bool tried;
    enum rt_status status;
    struct rt_error err;
    char path[512], version[32];
} libraries[CUDA_LIBRARIES];
static struct cuda_api table;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- finding the file ---- */

/* Folders to look in, separated by colons; an empty one is the loader's path. */
static const char *folders(struct arena *a, enum cuda_library lib)
{
    const char *own = getenv("STRATA_CUDA_PATH"), *home = getenv("CUDA_HOME");
    if (own && *own) return own;
    if (lib == CUDA_driver) return ""; /* a toolkit has a stub of this name */
    const char *first = home && *home ? str_fmt(a, "%s/lib64:%s/lib:", home, home) : "";
    return str_fmt(a, "%s:/usr/local/cuda/lib64:/usr/local/cuda/lib", first);
}

/* The next piece of *list up to `end`, in the arena; NULL after the last. */
static const char *next(struct arena *a, const char **list, char end)
{
    if (!*list) return NULL;
    const char *p = *list, *e = strchr(p, end);
    *list = e ? e + 1 : NULL;
    return e ? str_dup(a, (struct str){p, (size_t)(e - p)}) : p;
}

/* Opens the first file that there is. *broken: why one that is there does not load. */
static void *open_first(struct arena *a, const char *dirs, const char *files, const char **broken)
{
    for (const char *dir; (dir = next(a, &dirs, ':'));)
        for (const char *list = files, *file; (file = next(a, &list, ' '));) {
            const char *path = *dir ? str_fmt(a, "%s/%s", dir, file) : file;
            void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (handle) return handle;
            const char *why = dlerror();
            bool absent = str_starts(str_of(why), path) && strstr(why, "No such file");
            if (!absent && !*broken) *broken = str_dup(a, str_of(why));
        }
    return NULL;
}

static enum rt_status not_found(struct arena *a, enum cuda_library lib, const char *dirs,
                                struct rt_error *err)
{
    struct sb s = {0};
    for (const char *dir; (dir = next(a, &dirs, ':'));)
        sb_printf(&s, "%s%s", s.n ? ", " : "", *dir ? dir : "the loader's path");
    return rt_fail(err, RT_user, "cannot find %s: looked for %s in %s; %s%s", about[lib].title,
                   about[lib].files, sb_take(&s, a).p, about[lib].install,
                   lib == CUDA_driver ? "" : ", or set CUDA_HOME or STRATA_CUDA_PATH");
}

/* ---- what is in it ---- */

static enum rt_status take_symbols(enum cuda_library lib, void *handle, const char *path,
                                   struct rt_error *err)
{
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        if (symbols[i].lib != lib) continue;
        void *p = dlsym(handle, symbols[i].name);
        if (!p)
            return rt_fail(err, RT_user, "%s '%s' is too old, it has no %s: %s", about[lib].title,
                           path, symbols[i].name, about[lib].install);
        memcpy((char *)&table + symbols[i].at, &p, sizeof p);
    }
    return RT_ok;
}

/* The version as text; "" where the library does not tell. */
static void ask_version(enum cuda_library lib, char *out, size_t n)
{
    int v = 0, major = 0, minor = 0, patch = 0;
    *out = 0;
    switch (lib) {
    case CUDA_driver: /* 13000: the newest CUDA that it runs */
        if (!table.cuDriverGetVersion(&v)) snprintf(out, n, "%d.%d", v / 1000, v % 1000 / 10);
        break;
    case CUDA_nvrtc:
        if (!table.nvrtcVersion(&major, &minor)) snprintf(out, n, "%d.%d", major, minor);
        break;
    case CUDA_cublasLt: /* 130100 */
        v = (int)table.cublasLtGetVersion();
        snprintf(out, n, "%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
        break;
    case CUDA_cublas:
        if (!table.cublasGetProperty(C_MAJOR_VERSION, &major) &&
            !table.cublasGetProperty(C_MINOR_VERSION, &minor) &&
            !table.cublasGetProperty(C_PATCH_LEVEL, &patch))
            snprintf(out, n, "%d.%d.%d", major, minor, patch);
        break;
    case CUDA_nccl: /* 22809 */
        if (!table.ncclGetVersion(&v))
            snprintf(out, n, "%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
        break;
    case CUDA_LIBRARIES: break;
    }
}

static enum rt_status load(struct arena *a, enum cuda_library lib)
{
    struct library *l = &libraries[lib];
    const char *dirs = folders(a, lib), *broken = NULL;
    void *handle = open_first(a, dirs, about[lib].files, &broken);
    if (!handle && broken)
        return rt_fail(&l->err, RT_machine, "%s does not load: %s", about[lib].title, broken);
    if (!handle) return not_found(a, lib, dirs, &l->err);
    struct link_map *map;
    bool known = !dlinfo(handle, RTLD_DI_LINKMAP, &map);
    snprintf(l->path, sizeof l->path, "%s", known ? map->l_name : "?");
    enum rt_status st = take_symbols(lib, handle, l->path, &l->err);
    if (st) {
        dlclose(handle);
        return st;
    }
    ask_version(lib, l->version, sizeof l->version);
    return RT_ok;
}

enum rt_status cuda_load(enum cuda_library lib, const struct cuda_api **api, struct rt_error *err)
{
    struct library *l = &libraries[lib];
    pthread_mutex_lock(&lock);
    if (!l->tried) {
        struct arena *a = arena_open("cuda_load");
        l->status = load(a, lib);
        l->tried = true;
        arena_close(a);
    }
    pthread_mutex_unlock(&lock);
    if (api) *api = &table;
    return l->status ? rt_fail(err, l->status, "%s", l->err.text) : RT_ok;
}

const char *cuda_name(enum cuda_library lib)
{
    return about[lib].name;
}

static const char *if_loaded(enum cuda_library lib, const char *text)
{
    pthread_mutex_lock(&lock);
    bool loaded = libraries[lib].tried && !libraries[lib].status;
    pthread_mutex_unlock(&lock);
    return loaded ? text : NULL;
}

const char *cuda_path(enum cuda_library lib)
{
    return if_loaded(lib, libraries[lib].path);
}

const char *cuda_version(enum cuda_library lib)
{
    return if_loaded(lib, libraries[lib].version);
}

/* ---- errors, devices ---- */

enum rt_status cuda_check(enum cuda_library lib, unsigned code, const char *call,
                          struct rt_error *err)
{
    if (!code) return RT_ok;
    const char *text = NULL;
    if (lib == CUDA_driver && table.cuGetErrorString(code, &text)) text = NULL;
    if (lib == CUDA_nvrtc) text = table.nvrtcGetErrorString(code);
    if (lib == CUDA_cublas) text = table.cublasGetStatusString(code);
    if (lib == CUDA_cublasLt) text = table.cublasLtGetStatusString(code);
    if (lib == CUDA_nccl) text = table.ncclGetErrorString(code);
    return rt_fail(err, RT_machine, "%s failed with %u: %s", call, code, text ? text : "unknown");
}

#define TRY(call) RT_TRY(cuda_check(CUDA_driver, cu->call, #call, err))

enum rt_status cuda_devices(struct arena *a, struct cuda_device **device, size_t *n,
                            struct rt_error *err)
{
    const struct cuda_api *cu;
    int count = 0;
    *n = 0;
    RT_TRY(cuda_load(CUDA_driver, &cu, err));
    unsigned code = cu->cuInit(0);
    if (code == C_CUDA_ERROR_NO_DEVICE) return RT_ok;
    RT_TRY(cuda_check(CUDA_driver, code, "cuInit(0)", err));
    TRY(cuDeviceGetCount(&count));
    *device = NEW(a, struct cuda_device, (size_t)count);
    for (int i = 0; i < count; i++) {
        struct cuda_device *d = &(*device)[i];
        int id;
        TRY(cuDeviceGet(&id, i));
        TRY(cuDeviceGetName(d->name, sizeof d->name, id));
        TRY(cuDeviceTotalMem_v2(&d->bytes, id));
        const struct {
            unsigned attribute;
            int *to;
        } ask[] = {{C_CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &d->major},
                   {C_CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &d->minor},
                   {C_CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &d->multiprocessors}};
        for (size_t k = 0; k < sizeof ask / sizeof *ask; k++)
            TRY(cuDeviceGetAttribute(ask[k].to, ask[k].attribute, id));
    }
    *n = (size_t)count;
    return RT_ok;
}
