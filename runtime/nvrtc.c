#include "runtime/nvrtc.h"
#include "base/io.h"
#include "base/map.h"
#include "base/vec.h"
#include "runtime/cc.h"
#include "runtime/cuda_api.h"
#include "runtime/mem.h"
#include "runtime/store.h"
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

/* Raised when the layout of a cached result changes: the size of the log, a line break, log, code.
 */
#define FORMAT "strata cuda 1"

static const char *const options[] = {"--std=c++17", "--fmad=false", "-lineinfo", "-Xptxas=-v"};
enum { OPTIONS = sizeof options / sizeof *options };

#define TRY(call) RT_TRY(cuda_check(CUDA_nvrtc, cu->call, #call, err))

/* ---- architectures ---- */

static enum rt_status supported(struct arena *a, int **arch, int *n, struct rt_error *err)
{
    const struct cuda_api *cu;
    RT_TRY(cuda_load(CUDA_nvrtc, &cu, err));
    TRY(nvrtcGetNumSupportedArchs(n));
    *arch = NEW(a, int, (size_t)*n);
    TRY(nvrtcGetSupportedArchs(*arch));
    return RT_ok;
}

enum rt_status nvrtc_archs(struct arena *a, const char **list, struct rt_error *err)
{
    int *arch, n;
    struct sb s = {0};
    RT_TRY(supported(a, &arch, &n, err));
    for (int i = 0; i < n; i++) sb_printf(&s, "%ssm_%d", i ? " " : "", arch[i]);
    *list = sb_take(&s, a).p;
    return RT_ok;
}

/* The number in sm_NN, sm_NNa or compute_NN, or 0. */
static long arch_number(const char *name)
{
    const char *digits = str_starts(str_of(name), "sm_")        ? name + 3
                         : str_starts(str_of(name), "compute_") ? name + 8
                                                                : "";
    char *end;
    long number = strtol(digits, &end, 10);
    bool whole = end > digits && (!*end || ((*end == 'a' || *end == 'f') && !end[1]));
    return whole ? number : 0;
}

/* The architectures from sm_80 on that NVRTC of CUDA 12 and 13 has, one or the other. */
static const int published[] = {80, 86, 87, 88, 89, 90, 100, 101, 103, 110, 120, 121};
enum { PUBLISHED = sizeof published / sizeof *published };

static bool is_published(long number)
{
    for (int i = 0; i < PUBLISHED; i++)
        if (published[i] == number) return true;
    return false;
}

static enum rt_status unknown_arch(const char *name, struct rt_error *err)
{
    struct sb s = {0};
    for (int i = 0; i < PUBLISHED; i++) sb_printf(&s, "%ssm_%d", i ? " " : "", published[i]);
    rt_fail(err, RT_usage,
            "no architecture '%.40s': those of CUDA 12 and 13 are %s (90a, 100a, 100f and the like "
            "too; later ones are known where NVRTC is)",
            name, s.p);
    sb_free(&s);
    return RT_usage;
}

/* Whether it is one that NVRTC has. */
static enum rt_status check_arch(struct arena *a, const char *name, struct rt_error *err)
{
    int *arch, n;
    const char *list;
    RT_TRY(supported(a, &arch, &n, err));
    for (int i = 0; i < n; i++)
        if (arch[i] == arch_number(name)) return RT_ok;
    RT_TRY(nvrtc_archs(a, &list, err));
    return rt_fail(err, is_published(arch_number(name)) ? RT_user : RT_usage,
                   "NVRTC %s does not compile for '%s': it knows %s (also compute_NN for PTX)",
                   cuda_version(CUDA_nvrtc), name, list);
}

enum rt_status nvrtc_known(struct arena *a, const char *arch, struct rt_error *err)
{
    enum { OLDEST = 80 }; /* asynchronous copies, products of bf16 */
    struct rt_error none;
    long n = arch_number(arch);
    bool known = cuda_load(CUDA_nvrtc, NULL, &none) == RT_ok;
    if (n && n < OLDEST)
        return rt_fail(err, RT_usage, "kernels need sm_%d or newer, not %s", OLDEST, arch);
    if (known) return check_arch(a, arch, err);
    return is_published(n) ? RT_ok : unknown_arch(arch, err);
}

/* ---- what ptxas says ---- */

/* The number before `word` in a line, 0 where the word is not in it. */
static unsigned before(const char *line, const char *word)
{
    const char *p = strstr(line, word);
    if (!p) return 0;
    while (p > line && p[-1] >= '0' && p[-1] <= '9') p--;
    return (unsigned)strtoul(p, NULL, 10);
}

/* Each kernel has a line "Compiling entry function 'NAME'"; then lines of its own, and of functions
 * that were not inlined, whose stack and spills are counted to it. */
static void read_log(struct arena *a, struct nvrtc_image *out)
{
    static const char entry[] = "Compiling entry function '";
    VEC(struct nvrtc_kernel) list = {0};
    for (const char *p = out->log, *e; *p; p = *e ? e + 1 : e) {
        e = p + strcspn(p, "\n");
        const char *line = str_dup(a, (struct str){p, (size_t)(e - p)});
        const char *name = strstr(line, entry);
        if (name) {
            name += strlen(entry);
            struct nvrtc_kernel k = {.name = str_dup(a, (struct str){name, strcspn(name, "'")})};
            vec_push(a, &list, k);
        }
        if (!list.n) continue;
        struct nvrtc_kernel *k = &list.p[list.n - 1];
        k->stack += before(line, " bytes stack frame");
        k->spill_stores += before(line, " bytes spill stores");
        k->spill_loads += before(line, " bytes spill loads");
        k->registers += before(line, " registers");
        k->shared += before(line, " bytes smem");
    }
    out->kernel = list.p;
    out->kernels = list.n;
}

/* ---- compiling ---- */

static const char *folder(struct arena *a)
{
    return io_join(a, io_join(a, io_cache_dir(a), "kernels"), "cuda");
}

static const char *get_log(struct arena *a, const struct cuda_api *cu, struct _nvrtcProgram *p)
{
    size_t n = 0;
    if (cu->nvrtcGetProgramLogSize(p, &n) || !n) return "";
    char *log = NEW(a, char, n + 1);
    return cu->nvrtcGetProgramLog(p, log) ? "" : log;
}

/* A failed compilation: whose fault is it? Errors with a line of the text are ours. */
static enum rt_status judge(struct arena *a, unsigned code, const char *text, const char *name,
                            const char *arch, const char *log, struct rt_error *err)
{
    if (code == C_NVRTC_ERROR_COMPILATION && strstr(log, str_fmt(a, "%s(", name))) {
        const char *path = io_join(a, folder(a), name);
        io_mkdirs(folder(a));
        bool kept = !io_write_atomic(path, text, strlen(text));
        BUG("generated CUDA C does not compile for %s\n%.4000s\nsource: %s", arch, log,
            kept ? path : "could not be kept");
    }
    bool option = code == C_NVRTC_ERROR_INVALID_OPTION || strstr(log, "Command-line error");
    return rt_fail(err, option ? RT_user : RT_machine, "NVRTC cannot compile for '%s' (%u): %.300s",
                   arch, code, log);
}

static enum rt_status translate(struct arena *a, const struct cuda_api *cu, struct _nvrtcProgram *p,
                                const char *text, const char *name, const char *arch,
                                struct nvrtc_image *out, struct rt_error *err)
{
    const char *option[OPTIONS + 1];
    memcpy(option, options, sizeof options);
    option[OPTIONS] = str_fmt(a, "--gpu-architecture=%s", arch);
    unsigned code = cu->nvrtcCompileProgram(p, OPTIONS + 1, option);
    out->log = get_log(a, cu, p);
    if (code) return judge(a, code, text, name, arch, out->log, err);
    bool ptx = *arch == 'c';
    size_t n = 0;
    if (ptx)
        TRY(nvrtcGetPTXSize(p, &n));
    else
        TRY(nvrtcGetCUBINSize(p, &n));
    char *image = arena_alloc(a, n + 1, 64, STRATA_SITE);
    if (ptx)
        TRY(nvrtcGetPTX(p, image));
    else
        TRY(nvrtcGetCUBIN(p, image));
    out->code = (struct str){image, n};
    return RT_ok;
}

static enum rt_status compile(struct arena *a, const char *text, const char *key, const char *arch,
                              struct nvrtc_image *out, struct rt_error *err)
{
    const struct cuda_api *cu;
    struct _nvrtcProgram *p;
    const char *name = str_fmt(a, "%s.cu", key);
    RT_TRY(cuda_load(CUDA_nvrtc, &cu, err));
    double begin = mem_seconds();
    TRY(nvrtcCreateProgram(&p, text, name, 0, NULL, NULL));
    enum rt_status st = translate(a, cu, p, text, name, arch, out, err);
    cu->nvrtcDestroyProgram(&p);
    out->seconds = mem_seconds() - begin;
    return st;
}

/* ---- the cache ---- */

/* Of all that the result depends on; `compiler` says which NVRTC, "" any. */
static const char *key_of(struct arena *a, const char *text, const char *arch, const char *compiler)
{
    struct sb s = {0};
    char hex[33];
    sb_printf(&s, FORMAT "\n%s\n%s\n", compiler, arch);
    for (int i = 0; i < OPTIONS; i++) sb_printf(&s, "%s\n", options[i]);
    sb_str(&s, text);
    hash_hex(s.p, s.n, hex);
    sb_free(&s);
    return str_dup(a, str_of(hex));
}

static bool look_up(struct arena *a, const char *dir, const char *key, struct nvrtc_image *out)
{
    struct str data;
    if (!store_read_blob(a, dir, key, &data)) return false;
    char *log;
    size_t n = strtoul(data.p, &log, 10);
    if (*log != '\n' || n > data.n - (size_t)(log + 1 - data.p)) return false;
    log++;
    out->log = str_dup(a, (struct str){log, n});
    size_t bytes = data.n - (size_t)(log + n - data.p);
    char *image = arena_alloc(a, bytes + 1, 64, STRATA_SITE);
    memcpy(image, log + n, bytes);
    out->code = (struct str){image, bytes};
    out->cached = true;
    return true;
}

static enum rt_status keep_result(const char *dir, const char *key, const struct nvrtc_image *image,
                                  struct rt_error *err)
{
    struct sb s = {0};
    sb_printf(&s, "%zu\n%s", strlen(image->log), image->log);
    sb_add(&s, image->code.p, image->code.n);
    enum rt_status st = store_write_blob(dir, key, (struct str){s.p, s.n}, err);
    sb_free(&s);
    return st;
}

enum rt_status nvrtc_carry(struct arena *a, const char *dir, const char *text, const char *arch,
                           const struct nvrtc_image *image, struct rt_error *err)
{
    return keep_result(dir, key_of(a, text, arch, ""), image, err);
}

/* Looks in the folder of STRATA_CUBINS, where there is one. */
static bool carried(struct arena *a, const char *text, const char *arch, struct nvrtc_image *out)
{
    const char *dir = getenv("STRATA_CUBINS");
    if (!dir || !*dir) return false;
    if (look_up(a, dir, key_of(a, text, arch, ""), out)) return true;
    fprintf(
        stderr,
        "strata: STRATA_CUBINS (%s) has no code of a text of %zu bytes for %s: NVRTC compiles it\n",
        dir, strlen(text), arch);
    return false;
}

/* From this machine's cache, or by NVRTC. */
static enum rt_status make(struct arena *a, const char *text, const char *arch, bool keep,
                           struct nvrtc_image *out, struct rt_error *err)
{
    RT_TRY(check_arch(a, arch, err));
    const char *dir = folder(a);
    const char *key = key_of(a, text, arch, cc_identity(a, cuda_path(CUDA_nvrtc)));
    if (keep && look_up(a, dir, key, out)) return RT_ok;
    RT_TRY(compile(a, text, key, arch, out, err));
    if (!keep) return RT_ok;
    RT_TRY(keep_result(dir, key, out, err));
    store_trim(io_dirname(a, dir), STORE_MAX_BYTES);
    return RT_ok;
}

enum rt_status nvrtc_compile(struct arena *a, const char *text, const char *arch, bool keep,
                             struct nvrtc_image *out, struct rt_error *err)
{
    *out = (struct nvrtc_image){.log = ""};
    if (!keep || !carried(a, text, arch, out)) RT_TRY(make(a, text, arch, keep, out, err));
    read_log(a, out);
    return RT_ok;
}

/* ---- several texts ---- */

struct job {
    pthread_mutex_t lock;
    const char *const *text, *arch;
    struct nvrtc_image *out;
    struct arena *to; /* of the results */
    size_t n, next;
    bool keep;
    enum rt_status status; /* the first failure */
    struct rt_error *err;
};

/* An image that lies in its worker's arena, moved. */
static struct nvrtc_image copy_image(struct arena *a, const struct nvrtc_image *from)
{
    struct nvrtc_image to = *from;
    char *code = arena_alloc(a, from->code.n + 1, 64, STRATA_SITE);
    memcpy(code, from->code.p, from->code.n);
    to.code.p = code;
    to.log = str_dup(a, str_of(from->log));
    to.kernel = NEW(a, struct nvrtc_kernel, from->kernels);
    for (size_t i = 0; i < from->kernels; i++) {
        to.kernel[i] = from->kernel[i];
        to.kernel[i].name = str_dup(a, str_of(from->kernel[i].name));
    }
    return to;
}

/* Takes texts until none is left. */
static void *work(void *arg)
{
    struct job *j = arg;
    struct arena *a = arena_open("nvrtc");
    pthread_mutex_lock(&j->lock);
    while (j->next < j->n && !j->status) {
        size_t i = j->next++;
        struct nvrtc_image image;
        struct rt_error err;
        pthread_mutex_unlock(&j->lock);
        enum rt_status st = nvrtc_compile(a, j->text[i], j->arch, j->keep, &image, &err);
        pthread_mutex_lock(&j->lock);
        if (st && !j->status) *j->err = err, j->status = st;
        if (!st) j->out[i] = copy_image(j->to, &image);
    }
    pthread_mutex_unlock(&j->lock);
    arena_close(a);
    return NULL;
}

enum rt_status nvrtc_compile_all(struct arena *a, const char *const *text, size_t n,
                                 const char *arch, bool keep, unsigned threads,
                                 struct nvrtc_image *out, struct rt_error *err)
{
    enum { MOST = 16 };
    pthread_t thread[MOST];
    struct job j = {.text = text,
                    .arch = arch,
                    .out = out,
                    .to = a,
                    .n = n,
                    .keep = keep,
                    .status = RT_ok,
                    .err = err};
    cpu_set_t cores;
    if (!threads && !sched_getaffinity(0, sizeof cores, &cores)) threads = CPU_COUNT(&cores);
    if (threads > n) threads = (unsigned)n;
    if (threads > MOST) threads = MOST;
    pthread_mutex_init(&j.lock, NULL);
    unsigned running = 0;
    while (running + 1 < threads && !pthread_create(&thread[running], NULL, work, &j)) running++;
    work(&j);
    for (unsigned i = 0; i < running; i++) pthread_join(thread[i], NULL);
    pthread_mutex_destroy(&j.lock);
    return j.status;
}
