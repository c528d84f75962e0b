/* The fake driver: device, context, modules, memory. */
#include "fake.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MULTIPROCESSORS = 132, MAJOR = 9, MINOR = 0, OPTIN_SHARED = 227 << 10, SHARED = 48 << 10 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool started;
static unsigned broken; /* an error that stays */
static struct CUctx_st {
    int unused;
} context;
static _Thread_local struct CUctx_st *current;

void fake_lock(void)
{
    pthread_mutex_lock(&lock);
}

void fake_unlock(int *unused)
{
    (void)unused;
    pthread_mutex_unlock(&lock);
}

void fake_log(const struct CUstream_st *s, const char *format, ...)
{
    static FILE *f;
    static bool tried;
    const char *path = getenv("STRATA_FAKE_LOG");
    if (!tried && path && *path) f = fopen(path, "ae");
    tried = true;
    if (!f) return;
    va_list ap;
    va_start(ap, format);
    if (s && fake_capturing(s)) fputs("captured ", f);
    vfprintf(f, format, ap);
    fputc('\n', f);
    fflush(f);
    va_end(ap);
}

unsigned fake_state(void)
{
    if (!started) return NOT_INITIALIZED;
    return broken ? broken : current ? 0 : INVALID_CONTEXT;
}

/* ---- device, context ---- */

unsigned cuDriverGetVersion(int *version)
{
    *version = 13000;
    return 0;
}

static const struct {
    unsigned code;
    const char *name, *text;
} errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {C_CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {C_CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for the device"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {LAUNCH_FAILED, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
     "too many resources requested for launch"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
     "capture was not initiated in this stream"},
    {CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
};

unsigned cuGetErrorName(unsigned code, const char **text)
{
    *text = NULL;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) *text = errors[i].name;
    return *text ? 0 : INVALID_VALUE;
}

unsigned cuGetErrorString(unsigned code, const char **text)
{
    *text = NULL;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) *text = errors[i].text;
    return *text ? 0 : INVALID_VALUE;
}

unsigned cuInit(unsigned flags)
{
    LOCKED;
    started = true;
    return flags ? INVALID_VALUE : 0;
}

unsigned cuDeviceGetCount(int *count)
{
    *count = 1;
    return started ? 0 : NOT_INITIALIZED;
}

unsigned cuDeviceGet(int *device, int ordinal)
{
    *device = 0;
    return !started ? NOT_INITIALIZED : ordinal ? 101 : 0;
}

unsigned cuDeviceGetName(char *name, int len, int device)
{
    snprintf(name, (size_t)len, "strata fake device");
    return device ? 101 : 0;
}

unsigned cuDeviceGetAttribute(int *value, unsigned attribute, int device)
{
    static const struct {
        unsigned attribute;
        int value;
    } known[] = {
        {C_CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, MULTIPROCESSORS},
        {C_CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, MAJOR},
        {C_CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, MINOR},
        {C_CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, OPTIN_SHARED},
        {1, 1024},       /* threads of a block */
        {8, SHARED},     /* shared memory of a block */
        {10, WARP},      /* warp size */
        {38, 50 << 20},  /* L2 */
        {39, 2048},      /* threads of a multiprocessor */
        {81, 228 << 10}, /* shared memory of a multiprocessor */
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].attribute == attribute) {
            *value = known[i].value;
            return device ? 101 : 0;
        }
    return INVALID_VALUE;
}

static size_t device_bytes(void)
{
    const char *text = getenv("STRATA_FAKE_BYTES");
    return text && *text ? strtoull(text, NULL, 10) : (size_t)8 << 30;
}

unsigned cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    *bytes = device_bytes();
    return device ? 101 : 0;
}

unsigned cuDevicePrimaryCtxRetain(struct CUctx_st **out, int device)
{
    *out = &context;
    return !started ? NOT_INITIALIZED : device ? 101 : 0;
}

unsigned cuDevicePrimaryCtxRelease_v2(int device)
{
    return device ? 101 : 0;
}

unsigned cuCtxSetCurrent(struct CUctx_st *c)
{
    if (c && c != &context) return INVALID_CONTEXT;
    current = c;
    return 0;
}

/* ---- modules ---- */

/* Of STRATA_FAKE_NULL. */
static unsigned load_nothing(struct CUmod_st **out)
{
    *out = calloc(1, sizeof **out);
    if (!*out) abort();
    (*out)->fd = -1;
    return 0;
}

unsigned cuModuleLoadData(struct CUmod_st **out, const void *image)
{
    LOCKED;
    struct fake_image head;
    unsigned code = fake_uncaptured();
    if (code) return code;
    if (fake_null()) return load_nothing(out);
    memcpy(&head, image, sizeof head);
    if (memcmp(head.magic, FAKE_MAGIC, sizeof FAKE_MAGIC)) return INVALID_IMAGE;
    if (strcmp(head.arch, "sm_90") && strcmp(head.arch, "sm_90a")) return NO_BINARY;
    char path[64];
    const char *why = "no memory file", *p = (const char *)image + sizeof head;
    int fd = memfd_create("strata fake cubin", MFD_CLOEXEC);
    for (size_t at = 0; fd >= 0 && at < head.bytes;) {
        ssize_t n = write(fd, p + at, head.bytes - at);
        if (n <= 0) abort();
        at += (size_t)n;
    }
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), fd);
    struct CUmod_st *m = calloc(1, sizeof *m);
    if (m) m->code = cudacpu_load(path, head.checked, &why);
    if (!m || !m->code) {
        fprintf(stderr, "strata fake device: %s\n", why);
        free(m);
        return INVALID_IMAGE;
    }
    m->fd = fd;
    if (head.checked) fake_check_memory();
    *out = m;
    fake_log(NULL, "module %zu bytes", (size_t)head.bytes);
    return 0;
}

unsigned cuModuleUnload(struct CUmod_st *m)
{
    LOCKED;
    unsigned code = fake_uncaptured();
    if (!code) code = fake_flush();
    for (struct CUfunc_st *f = m->functions, *next; f; f = next) {
        next = f->next;
        free(f->name), free(f);
    }
    if (m->code) {
        cudacpu_unload(m->code);
        close(m->fd);
    }
    free(m);
    return code;
}

unsigned cuModuleGetFunction(struct CUfunc_st **function, struct CUmod_st *m, const char *name)
{
    LOCKED;
    unsigned code = fake_state();
    if (code) return code;
    struct CUfunc_st *f = m->functions;
    while (f && strcmp(f->name, name)) f = f->next;
    *function = f;
    if (f) return 0;
    f = calloc(1, sizeof *f);
    if (!f) abort();
    f->threads = 1024;
    if (m->code && !cudacpu_bounds(m->code, name, &f->bytes, &f->threads)) {
        free(f);
        return NOT_FOUND;
    }
    f->next = m->functions, f->module = m;
    f->name = strdup(name), f->most_shared = SHARED;
    *function = m->functions = f;
    return 0;
}

unsigned cuFuncGetAttribute(int *value, unsigned attribute, struct CUfunc_st *f)
{
    LOCKED;
    switch (attribute) {
    case 0: *value = (int)f->threads; break;
    case C_CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
    case C_CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = 0; break;
    case C_CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
    case C_CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = (int)f->most_shared; break;
    default: return INVALID_VALUE;
    }
    return fake_state();
}

unsigned cuFuncSetAttribute(struct CUfunc_st *f, unsigned attribute, int value)
{
    LOCKED;
    if (attribute == 9) return fake_state(); /* how much of the cache is shared memory */
    if (attribute != C_CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 ||
        value > OPTIN_SHARED)
        return INVALID_VALUE;
    f->most_shared = (unsigned)value;
    return fake_state();
}

unsigned fake_run(const struct CUfunc_st *f, const struct cu_launch *l, const void *parameters)
{
    const struct cudacpu_launch how = {
        .grid = {l->grid[0], l->grid[1], l->grid[2]},
        .block = {l->block[0], l->block[1], l->block[2]},
        .shared = l->shared_bytes,
    };
    const char *why = cudacpu_run_packed(f->module->code, f->name, how, parameters);
    if (!why) return 0;
    fprintf(stderr, "strata fake device: %s\n", why);
    fake_log(NULL, "error %s", why);
    return broken = LAUNCH_FAILED;
}

/* ---- memory ---- */

enum { ALLOCATIONS = 4096, PAGE = 4096 };
static struct allocation {
    char *p;
    size_t n, mapped; /* mapped: with guards; 0: of the host */
    struct region *region;
} allocations[ALLOCATIONS];
static size_t used;
static bool checked;
static int key = -2; /* of protection; -1: the CPU has none */

void fake_access(bool allowed)
{
    if (key >= 0) pkey_set(key, allowed ? 0 : PKEY_DISABLE_ACCESS);
}

static struct allocation *find(uint64_t p, size_t n, bool device)
{
    for (struct allocation *a = allocations; a < allocations + ALLOCATIONS; a++)
        if (a->p && (a->mapped != 0) == device && p >= (uintptr_t)a->p &&
            p - (uintptr_t)a->p <= a->n && n <= a->n - (p - (uintptr_t)a->p))
            return a;
    return NULL;
}

bool fake_on_device(uint64_t p, size_t n)
{
    return find(p, n, true) != NULL;
}

bool fake_pinned(const void *p, size_t n)
{
    return find((uintptr_t)p, n, false) != NULL;
}

static struct allocation *free_row(void)
{
    struct allocation *a = allocations;
    while (a < allocations + ALLOCATIONS && a->p) a++;
    if (a == allocations + ALLOCATIONS) abort();
    return a;
}

void fake_check_memory(void)
{
    checked = true;
    for (struct allocation *a = allocations; a < allocations + ALLOCATIONS; a++)
        if (a->mapped && !a->region) a->region = cudacpu_region(a->p, a->n, false, true);
}

static unsigned allocate(cu_ptr *out, size_t n)
{
    if (!n) return INVALID_VALUE;
    if (n > device_bytes() || used > device_bytes() - n) return C_CUDA_ERROR_OUT_OF_MEMORY;
    size_t room = (n + PAGE - 1) / PAGE * PAGE, mapped = room + 2 * SLACK;
    char *p = mmap(NULL, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p + SLACK, room, PROT_READ | PROT_WRITE))
        return C_CUDA_ERROR_OUT_OF_MEMORY;
    struct allocation *a = free_row();
    *a = (struct allocation){p + SLACK, n, mapped, NULL};
    if (n <= (size_t)1 << 30 && !fake_null()) memset(a->p, 0xff, n);
    if (checked) a->region = cudacpu_region(a->p, n, false, true);
    if (key == -2) key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
    if (key >= 0 && pkey_mprotect(a->p, room, PROT_READ | PROT_WRITE, key)) abort();
    used += n;
    *out = (uintptr_t)a->p;
    return 0;
}

static unsigned release(cu_ptr p)
{
    struct allocation *a = find(p, 0, true);
    if (!a || p != (uintptr_t)a->p) return INVALID_VALUE;
    if (a->region) cudacpu_region_free(a->region);
    munmap(a->p - SLACK, a->mapped);
    used -= a->n;
    *a = (struct allocation){0};
    return 0;
}

unsigned cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    LOCKED;
    *total = device_bytes();
    *free_bytes = used < *total ? *total - used : 0;
    return fake_state();
}

unsigned cuMemAlloc_v2(cu_ptr *p, size_t n)
{
    LOCKED;
    unsigned code = fake_uncaptured();
    if (!code) code = allocate(p, n);
    fake_log(NULL, "alloc %zu bytes: %u", n, code);
    return code;
}

unsigned cuMemFree_v2(cu_ptr p)
{
    LOCKED;
    unsigned code = p ? fake_uncaptured() : 0;
    if (p) fake_log(NULL, "free");
    if (p && !code) code = fake_flush();
    return code || !p ? code : release(p);
}

unsigned cuMemAllocAsync(cu_ptr *p, size_t n, struct CUstream_st *s)
{
    LOCKED;
    unsigned code = fake_capturing(s) ? fake_break(s) : fake_state();
    if (!code) code = allocate(p, n);
    fake_log(s, "alloc-async %zu bytes: %u", n, code);
    return code;
}

static unsigned release_later(void *data)
{
    return release(*(cu_ptr *)data);
}

unsigned cuMemFreeAsync(cu_ptr p, struct CUstream_st *s)
{
    LOCKED;
    unsigned code = fake_capturing(s) ? fake_break(s) : fake_state();
    fake_log(s, "free-async");
    if (!code && !fake_on_device(p, 0)) code = INVALID_VALUE;
    return code ? code : fake_submit(s, release_later, &p, sizeof p);
}

unsigned cuMemHostAlloc(void **p, size_t n, unsigned flags)
{
    LOCKED;
    unsigned code = fake_uncaptured();
    if (code) return code;
    if (!n || flags > 7) return INVALID_VALUE;
    *p = aligned_alloc(PAGE, (n + PAGE - 1) / PAGE * PAGE);
    if (!*p) return C_CUDA_ERROR_OUT_OF_MEMORY;
    memset(*p, 0xff, n);
    *free_row() = (struct allocation){*p, n, 0, NULL};
    fake_log(NULL, "host-alloc %zu bytes", n);
    return 0;
}

unsigned cuMemFreeHost(void *p)
{
    LOCKED;
    unsigned code = fake_uncaptured();
    struct allocation *a = find((uintptr_t)p, 0, false);
    if (!a || p != a->p) return INVALID_VALUE;
    if (!code) code = fake_flush();
    free(p);
    *a = (struct allocation){0};
    return code;
}
