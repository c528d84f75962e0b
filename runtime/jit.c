#include "runtime/jit.h"
#include "base/io.h"
#include "base/map.h"
#include "base/vec.h"
#include "runtime/cc.h"
#include "runtime/mem.h"
#include "runtime/store.h"
#include "runtime/thread.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

/* Raised when the calling convention of kernels or the layout of the cache changes. */
#define FORMAT "strata kernels 1"

struct set {
    char key[33];
    struct store *store;
};

struct jit {
    struct arena *arena;
    const char *root;  /* the cache folder */
    const char *clang; /* NULL: none installed */
    const char *identity, *version;
    const char **flags;
    const char *flag_text, *cpu;
    uint64_t cache_bytes;
    VEC(struct set) sets; /* one for each prelude seen, usually one */
};

static const char *join_flags(struct arena *a, const char **flags)
{
    struct sb s = {0};
    for (size_t i = 0; flags[i]; i++) sb_printf(&s, "%s%s", i ? " " : "", flags[i]);
    return sb_take(&s, a).p;
}

/* The file that remembers which compiler filled the cache last (its identity, then its version, a
 * line each), so that the cache can be read where there is none, and --version need not be asked
 * again. */
static const char *memo_path(struct jit *j)
{
    char hex[33];
    const char *t = str_fmt(j->arena, FORMAT "\n%s\n%s", j->flag_text, j->cpu);
    hash_hex(t, strlen(t), hex);
    return str_fmt(j->arena, "%s/compiler-%.16s", j->root, hex);
}

static void recall(struct jit *j)
{
    struct str memo;
    const char *nl = NULL;
    if (!io_read(j->arena, memo_path(j), 65536, &memo)) nl = strchr(memo.p, '\n');
    const char *identity = nl ? str_dup(j->arena, (struct str){memo.p, (size_t)(nl - memo.p)}) : "";
    if (!j->clang)
        j->identity = identity;
    else if (nl && nl[1] && !strcmp(identity, j->identity))
        j->version = nl + 1;
}

enum rt_status jit_open(const struct jit_options *options, struct jit **out, struct rt_error *err)
{
    *out = NULL;
    struct arena *a = arena_open("jit");
    struct jit *j = NEW(a, struct jit, 1);
    const char *cpu = options && options->cpu ? options->cpu : "native";
    j->arena = a;
    j->root = io_join(a, io_cache_dir(a), "kernels");
    j->cache_bytes = options && options->cache_bytes ? options->cache_bytes : STORE_MAX_BYTES;
    enum rt_status st = cc_cpu(a, cpu, &j->cpu, err);
    if (!st) st = cc_find(a, &j->clang, err);
    if (st) {
        arena_close(a);
        return st;
    }
    j->flags = cc_flags(a, cpu);
    j->flag_text = join_flags(a, j->flags);
    if (j->clang) j->identity = cc_identity(a, j->clang);
    recall(j);
    *out = j;
    return RT_ok;
}

void jit_close(struct jit *j)
{
    if (!j) return;
    for (size_t i = 0; i < j->sets.n; i++) store_close(j->sets.p[i].store);
    arena_close(j->arena);
}

/* The part of the cache for this prelude, these flags, this compiler and this processor. */
static enum rt_status find_set(struct jit *j, const char *prelude, struct store **out,
                               struct rt_error *err)
{
    struct set set;
    struct sb s = {0};
    sb_printf(&s, FORMAT "\n%s\n%s\n%s\n%s", j->flag_text, j->cpu, j->identity, prelude);
    hash_hex(s.p, s.n, set.key);
    sb_free(&s);
    for (size_t i = 0; i < j->sets.n; i++)
        if (!strcmp(j->sets.p[i].key, set.key)) {
            *out = j->sets.p[i].store;
            return RT_ok;
        }
    RT_TRY(store_open(j->arena, io_join(j->arena, j->root, set.key), &set.store, err));
    vec_push(j->arena, &j->sets, set);
    *out = set.store;
    return RT_ok;
}

/* ---- what the units of a prelude share ---- */

static const char shared_entry[] = "what units share";

/* Whether objects of the store can be loaded: what they share is there, or there is no such thing.
 */
static bool have_shared(struct store *store, const char *prelude, size_t *bytes)
{
    if (!strstr(prelude, "JIT_SHARED")) return true;
    void *shared = store_find(store, shared_entry, "jit_shared", bytes);
    store_give(store, shared);
    return shared != NULL;
}

/* A kernel during one jit_load. */
struct item {
    struct jit_kernel *k;
    const char *entry; /* its text's in the store */
    uint32_t text;     /* equal for equal texts */
};

static struct item *name_kernels(struct arena *a, struct jit_kernel *k, size_t n)
{
    struct map texts;
    map_init(&texts, a);
    struct item *item = NEW(a, struct item, n);
    for (size_t i = 0; i < n; i++) {
        char *hex = NEW(a, char, 33);
        hash_hex(k[i].text.p, k[i].text.n, hex);
        uint32_t *text = map_str(&texts, str_of(hex));
        if (!*text) *text = (uint32_t)i + 1;
        item[i] = (struct item){&k[i], hex, *text};
    }
    return item;
}

/* Looks up kernels; what is missing goes into `missing`, equal ones once. All are where what they
 * share is. */
static size_t look_up(struct store *store, const char *prelude, struct arena *a, struct item *item,
                      size_t n, struct item **missing, size_t *found, size_t *bytes)
{
    bool usable = have_shared(store, prelude, bytes);
    struct map seen;
    map_init(&seen, a);
    size_t lost = 0;
    *found = 0;
    for (size_t i = 0; i < n; i++) {
        const char *symbol = item[i].k->symbol;
        uint32_t *at = map_str(&seen, str_of(str_fmt(a, "%s %s", symbol, item[i].entry)));
        if (usable && !item[i].k->fn)
            item[i].k->fn = store_find(store, item[i].entry, symbol, bytes);
        if (!*at && item[i].k->fn) ++*found;
        if (!*at && !item[i].k->fn) missing[lost++] = &item[i];
        *at = 1;
    }
    return lost;
}

struct unit {
    VEC(struct item *) item; /* those of one text follow one another; none: what the others share */
    size_t bytes;
};

static int longest_first(const void *pa, const void *pb)
{
    const struct item *a = *(struct item *const *)pa, *b = *(struct item *const *)pb;
    if (a->k->text.n != b->k->text.n) return a->k->text.n > b->k->text.n ? -1 : 1;
    if (a->text != b->text) return a->text < b->text ? -1 : 1;
    return strcmp(a->k->symbol, b->k->symbol);
}

/* Deals texts out to units of about equal length: the longest first, always to the shortest unit.
 */
static void split(struct arena *a, struct item **item, size_t n, struct unit *u, size_t units)
{
    qsort(item, n, sizeof *item, longest_first);
    for (size_t i = 0, at = 0; i < n; i++) {
        if (!i || item[i]->text != item[i - 1]->text) {
            at = 0;
            for (size_t c = 1; c < units; c++)
                if (u[c].bytes < u[at].bytes) at = c;
            u[at].bytes += item[i]->k->text.n;
        }
        vec_push(a, &u[at].item, item[i]);
    }
}

static enum rt_status write_unit(struct jit *j, const char *prelude, const struct unit *u,
                                 const struct cc_unit *file, struct rt_error *err)
{
    struct sb s = {0};
    sb_printf(&s, "/* %zu kernels. %s %s */\n#define %s 1\n%s\n", u->item.n, j->clang, j->flag_text,
              u->item.n ? "JIT_UNIT" : "JIT_SHARED", prelude);
    for (size_t i = 0; i < u->item.n; i++) {
        if (i && u->item.p[i]->text == u->item.p[i - 1]->text) continue;
        sb_add(&s, u->item.p[i]->k->text.p, u->item.p[i]->k->text.n);
        sb_char(&s, '\n');
    }
    int fd = open(file->source, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int e = fd < 0 ? errno : io_write_all(fd, s.p, s.n);
    if (fd >= 0) close(fd);
    sb_free(&s);
    if (e) return rt_fail(err, RT_machine, "cannot write '%s': %s", file->source, strerror(e));
    return RT_ok;
}

/* Compiles the missing kernels in a folder of its own, which stays only when it aborts, and moves
 * the objects into the store. */
static enum rt_status compile_in(struct jit *j, struct arena *a, const char *work,
                                 const char *prelude, struct unit *u, size_t units,
                                 struct store *store, struct rt_error *err)
{
    struct cc_unit *file = NEW(a, struct cc_unit, units);
    for (size_t i = 0; i < units; i++) {
        file[i].source = str_fmt(a, "%s/unit%zu.c", work, i);
        file[i].object = str_fmt(a, "%s/unit%zu.so", work, i);
        file[i].log = str_fmt(a, "%s/unit%zu.log", work, i);
        RT_TRY(write_unit(j, prelude, &u[i], &file[i], err));
    }
    RT_TRY(cc_compile(a, j->clang, j->flags, file, units, err));
    for (size_t i = 0; i < units; i++) {
        const char **entry = NEW(a, const char *, u[i].item.n + 1);
        for (size_t c = 0; c < u[i].item.n; c++) entry[c] = u[i].item.p[c]->entry;
        if (!u[i].item.n) entry[0] = shared_entry;
        RT_TRY(store_add(store, file[i].object, entry, u[i].item.n ? u[i].item.n : 1, err));
    }
    return RT_ok;
}

static enum rt_status compile(struct jit *j, struct arena *a, const char *prelude,
                              struct item **item, size_t n, struct store *store,
                              struct jit_report *rep, struct rt_error *err)
{
    if (!j->clang)
        return rt_fail(err, RT_user,
                       "%zu kernels must be compiled and neither clang-19 nor clang-14 is in PATH: "
                       "run 'apt-get install --no-install-recommends clang-19' as root",
                       n);
    double t0 = mem_seconds();
    if (!j->version) RT_TRY(cc_version(j->arena, j->clang, &j->version, err));
    size_t units = pool_cores() < n ? pool_cores() : n;
    struct unit *u = NEW(a, struct unit, units + 1);
    split(a, item, n, u, units);
    while (!u[units - 1].item.n) units--; /* fewer texts than kernels */
    size_t shared = !have_shared(store, prelude, &rep->code_bytes);
    const char *work = str_fmt(a, "%s/work-%d", store_dir(store), (int)getpid());
    io_remove_tree(work);
    int e = io_mkdirs(work);
    if (e)
        return rt_fail(err, e == EACCES || e == EROFS ? RT_user : RT_machine,
                       "cannot write to the cache: '%s': %s (STRATA_CACHE names another)", work,
                       strerror(e));
    enum rt_status st = compile_in(j, a, work, prelude, u, units + shared, store, err);
    io_remove_tree(work);
    RT_TRY(st);
    const char *memo = str_fmt(a, "%s\n%s", j->identity, j->version);
    io_write_atomic(memo_path(j), memo, strlen(memo)); /* without it the next run asks again */
    rep->compiled = n;
    rep->units = units;
    rep->compiler = j->version;
    rep->seconds = mem_seconds() - t0;
    store_trim(j->root, j->cache_bytes);
    return RT_ok;
}

static enum rt_status load(struct jit *j, struct arena *a, const char *prelude,
                           struct jit_kernel *k, size_t n, struct jit_report *rep,
                           struct rt_error *err)
{
    struct store *store;
    RT_TRY(find_set(j, prelude, &store, err));
    struct item *item = name_kernels(a, k, n), **missing = NEW(a, struct item *, n);
    size_t lost = look_up(store, prelude, a, item, n, missing, &rep->cached, &rep->code_bytes);
    if (!lost) return RT_ok;
    /* Another process may be compiling the same: wait for it, and look again. */
    int lock = store_lock(store);
    store_rescan(store);
    lost = look_up(store, prelude, a, item, n, missing, &rep->cached, &rep->code_bytes);
    enum rt_status st = lost ? compile(j, a, prelude, missing, lost, store, rep, err) : RT_ok;
    store_unlock(lock);
    RT_TRY(st);
    size_t found;
    lost = look_up(store, prelude, a, item, n, missing, &found, &rep->code_bytes);
    if (lost)
        return rt_fail(err, RT_machine, "compiled kernel '%s' cannot be loaded from '%s'",
                       missing[0]->k->symbol, store_dir(store));
    return RT_ok;
}

enum rt_status jit_load(struct jit *j, const char *prelude, struct jit_kernel *k, size_t n,
                        struct jit_report *rep, struct rt_error *err)
{
    struct jit_report own;
    if (!rep) rep = &own;
    *rep = (struct jit_report){.flags = j->flag_text};
    for (size_t i = 0; i < n; i++) k[i].fn = NULL;
    struct arena *a = arena_open("jit_load");
    enum rt_status st = load(j, a, prelude, k, n, rep, err);
    arena_close(a);
    return st;
}
