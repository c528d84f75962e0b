#include "compiler/objects.h"
#include "base/io.h"
#include "codegen/kernel.h"
#include "runtime/app_set.h"
#include "runtime/cc.h"
#include "runtime/store.h"
#include <stdlib.h>

/* Translation units of a set: not the machine's cores, as the file must not depend on them. */
enum { UNITS = 4 };

void object_set_init(struct object_set *s, struct arena *a, enum cpu_kind cpu)
{
    *s = (struct object_set){.cpu = cpu};
    map_init(&s->seen, a);
}

void object_set_text(struct object_set *s, struct arena *a, const char *symbol, struct str text)
{
    uint32_t *at = map_str(&s->seen, str_of(symbol));
    if (*at) return;
    *at = 1;
    vec_push(a, &s->symbol, symbol);
    vec_push(a, &s->text, text);
}

void object_set_add(struct object_set *s, struct arena *a, const struct lowered *l)
{
    for (uint32_t i = 0; i < l->plan.num_kernels; i++)
        object_set_text(s, a, l->code[i].symbol, l->kernel[i].text);
}

/* ---- texts ---- */

struct kernel {
    const char *symbol;
    struct str text;
};

static int longest_first(const void *pa, const void *pb)
{
    const struct kernel *a = pa, *b = pb;
    if (a->text.n != b->text.n) return a->text.n > b->text.n ? -1 : 1;
    int order = str_cmp(a->text, b->text);
    return order ? order : strcmp(a->symbol, b->symbol);
}

struct unit {
    struct sb text;
    struct map has; /* hashes of its texts */
    size_t size;
};

/* What a kernel is called outside its unit. */
static const char *shown(struct arena *a, const struct object_set *s, const char *symbol)
{
    return str_fmt(a, "app_%d_%s", (int)s->cpu, symbol);
}

/* Texts define more kernels than are wanted of this unit, and other units the same ones: all are
 * internal, so that the others cost nothing, and those that are wanted get another name. */
static void write_unit(struct arena *a, const struct object_set *s, struct unit *u,
                       const struct kernel *k, size_t n)
{
    sb_str(&u->text, cg_cpu_prelude());
    sb_str(&u->text, "\n#pragma clang attribute push(__attribute__((internal_linkage)), "
                     "apply_to = function)\n");
    for (size_t i = 0; i < n; i++) {
        char hex[33];
        hash_hex(k[i].text.p, k[i].text.n, hex);
        uint32_t *at = map_str(&u->has, str_of(hex));
        if (!*at) sb_add(&u->text, k[i].text.p, k[i].text.n);
        *at = 1;
        sb_char(&u->text, '\n');
    }
    sb_str(&u->text, "#pragma clang attribute pop\n");
    for (size_t i = 0; i < n; i++)
        sb_printf(&u->text, "extern __typeof(%s) %s __attribute__((alias(\"%s\")));\n", k[i].symbol,
                  shown(a, s, k[i].symbol), k[i].symbol);
}

/* Deals the texts out, with all that is wanted of each: the longest first, always to the shortest
 * unit. */
static void split(struct arena *a, const struct object_set *s, struct unit unit[UNITS])
{
    size_t n = s->symbol.n;
    struct kernel *k = NEW(a, struct kernel, n);
    VEC(struct kernel) of[UNITS] = {{0}};
    for (size_t i = 0; i < n; i++) k[i] = (struct kernel){s->symbol.p[i], s->text.p[i]};
    qsort(k, n, sizeof *k, longest_first);
    int at = 0;
    for (int i = 0; i < UNITS; i++) map_init(&unit[i].has, a);
    for (size_t i = 0; i < n; i++) {
        if (!i || !str_eq(k[i].text, k[i - 1].text)) {
            at = 0;
            for (int c = 1; c < UNITS; c++)
                if (unit[c].size < unit[at].size) at = c;
            unit[at].size += k[i].text.n;
        }
        vec_push(a, &of[at], k[i]);
    }
    for (int i = 0; i < UNITS; i++) write_unit(a, s, &unit[i], of[i].p, of[i].n);
}

static int by_name(const void *pa, const void *pb)
{
    return strcmp(*(const char *const *)pa, *(const char *const *)pb);
}

#define TEXT(...) TEXT_OF(__VA_ARGS__)
#define TEXT_OF(...) #__VA_ARGS__
static const char declarations[] =
    "typedef void sa_kernel(void *const *, const long *, long, long, void *);\n" /* ir/abi.h */
    TEXT(APP_SETS) "\n";

static const char *set_name(struct arena *a, const struct object_set *s)
{
    return str_fmt(a, "app_set_%d", (int)s->cpu);
}

static void table_text(struct arena *a, const struct object_set *s, struct sb *out)
{
    const char **name = arena_dup(a, s->symbol.p, s->symbol.n * sizeof *name, STRATA_SITE);
    qsort(name, s->symbol.n, sizeof *name, by_name);
    sb_str(out, declarations);
    for (size_t i = 0; i < s->symbol.n; i++)
        sb_printf(out, "extern sa_kernel %s;\n", shown(a, s, name[i]));
    sb_str(out, "static const struct app_kernel kernel[] = {\n");
    for (size_t i = 0; i < s->symbol.n; i++)
        sb_printf(out, "    {\"%s\", %s},\n", name[i], shown(a, s, name[i]));
    sb_printf(out, "};\nconst struct app_set %s = {%d, %zu, kernel};\n", set_name(a, s),
              (int)s->cpu, s->symbol.n);
}

static void sets_text(struct arena *a, const struct object_set *set, size_t n, struct sb *out)
{
    sb_str(out, declarations);
    for (size_t i = 0; i < n; i++)
        sb_printf(out, "extern const struct app_set %s;\n", set_name(a, &set[i]));
    sb_str(out, "const struct app_set *const app_sets[] = {");
    for (int k = CPU_KINDS - 1; k >= 0; k--)
        for (size_t i = 0; i < n; i++)
            if ((int)set[i].cpu == k) sb_printf(out, "&%s, ", set_name(a, &set[i]));
    sb_str(out, "0};\n");
}

/* ---- files ---- */

struct objects {
    struct arena *a;
    const char *dir, *clang;
    struct rt_error *err;
    VEC(struct cc_unit) missing; /* what the cache has not */
    VEC(const char *) key;       /* of each */
    object_paths *path;
};

/* Where the cache keeps the object of a text. */
static const char *cache_key(struct objects *o, const struct cc_unit *u, const struct sb *text)
{
    struct sb s = {0};
    char *hex = NEW(o->a, char, 33);
    sb_printf(&s, "strata objects 1\n%s\n", cc_identity(o->a, o->clang));
    for (size_t i = 0; u->flags[i]; i++) sb_printf(&s, "%s\n", u->flags[i]);
    sb_add(&s, text->p, text->n);
    hash_hex(s.p, s.n, hex);
    sb_free(&s);
    return hex;
}

static const char *cache_root(struct objects *o)
{
    return io_join(o->a, io_cache_dir(o->a), "kernels");
}

/* The object of a text, from the cache or to be compiled. Frees the text. */
static enum rt_status add_unit(struct objects *o, enum cpu_kind cpu, const char *name,
                               struct sb *text)
{
    const struct cc_unit u = {
        str_fmt(o->a, "%s/%s.c", o->dir, name), str_fmt(o->a, "%s/%s.o", o->dir, name),
        str_fmt(o->a, "%s/%s.log", o->dir, name), cc_object_flags(o->a, cpu_about(cpu)->name)};
    const char *key = cache_key(o, &u, text);
    struct str object;
    bool found = store_read_blob(o->a, io_join(o->a, cache_root(o), "objects"), key, &object);
    int e = found ? io_write_atomic(u.object, object.p, object.n)
                  : io_write_atomic(u.source, text->p, text->n);
    sb_free(text);
    if (e) return rt_fail(o->err, RT_machine, "cannot write to '%s': %s", o->dir, strerror(e));
    vec_push(o->a, o->path, u.object);
    if (found) return RT_ok;
    vec_push(o->a, &o->missing, u);
    vec_push(o->a, &o->key, key);
    return RT_ok;
}

/* Compiles what is missing, into the cache too. */
static enum rt_status compile(struct objects *o)
{
    RT_TRY(cc_compile(o->a, o->clang, NULL, o->missing.p, o->missing.n, o->err));
    for (size_t i = 0; i < o->missing.n; i++) {
        struct str object;
        const char *path = o->missing.p[i].object;
        int e = io_read(o->a, path, SIZE_MAX / 2, &object);
        if (e) return rt_fail(o->err, RT_machine, "cannot read '%s': %s", path, strerror(e));
        RT_TRY(
            store_write_blob(io_join(o->a, cache_root(o), "objects"), o->key.p[i], object, o->err));
    }
    return RT_ok;
}

static enum rt_status add_set(struct objects *o, const struct object_set *s)
{
    struct unit u[UNITS] = {{.size = 0}};
    struct sb table = {0};
    const char *name = cpu_about(s->cpu)->name;
    split(o->a, s, u);
    for (int i = 0; i < UNITS; i++)
        RT_TRY(add_unit(o, s->cpu, str_fmt(o->a, "%s-%d", name, i), &u[i].text));
    table_text(o->a, s, &table);
    return add_unit(o, s->cpu, str_fmt(o->a, "%s-table", name), &table);
}

enum rt_status objects_make(struct arena *a, const char *dir, const struct object_set *set,
                            size_t n, object_paths *path, struct rt_error *err)
{
    struct objects o = {.a = a, .dir = dir, .err = err, .path = path};
    struct sb sets = {0};
    RT_TRY(cc_find(a, &o.clang, err));
    if (!o.clang)
        return rt_fail(err, RT_user,
                       "neither clang-19 nor clang-14 is in PATH: run 'apt-get install "
                       "--no-install-recommends clang-19' as root");
    for (size_t i = 0; i < n; i++) RT_TRY(add_set(&o, &set[i]));
    sets_text(a, set, n, &sets);
    RT_TRY(add_unit(&o, CPU_v3, "sets", &sets));
    RT_TRY(compile(&o));
    store_trim(cache_root(&o), STORE_MAX_BYTES);
    return RT_ok;
}
