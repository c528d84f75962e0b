#include "runtime/store.h"
#include "base/io.h"
#include "base/map.h"
#include "base/vec.h"
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HEADER "strata-objects 1\n"
enum { NAME = 32, MAX_OBJECT = 1 << 30, MAX_INDEX = 64 << 20 };

enum state { UNLOADED, LOADED, BROKEN };

struct object {
    char name[NAME + 1]; /* checksum in hex */
    enum state state;
    void *handle;
};

struct store {
    struct arena *arena;
    const char *dir;
    VEC(struct object) object;
    struct map by_name;  /* checksum to object + 1 */
    struct map by_entry; /* entry to object + 1 */
    void *given;         /* store_give */
};

static const char *object_path(struct store *s, struct arena *a, const char *name, const char *end)
{
    return str_fmt(a, "%s/%s.%s", s->dir, name, end);
}

static uint32_t add_object(struct store *s, const char *name)
{
    struct object o = {.state = UNLOADED};
    memcpy(o.name, name, NAME);
    vec_push(s->arena, &s->object, o);
    *map_str(&s->by_name, str_of(o.name)) = (uint32_t)s->object.n;
    return (uint32_t)s->object.n;
}

/* The entries of an index, a line each; false when it is not whole. */
static bool read_entries(struct store *s, struct arena *a, const char *name, struct str *lines)
{
    struct str text;
    if (io_read(a, object_path(s, a, name, "idx"), MAX_INDEX, &text)) return false;
    if (!str_starts(text, HEADER) || !str_ends(text, "\nend\n")) return false;
    const char *p = text.p + strlen(HEADER), *end = text.p + text.n - strlen("end\n");
    p += strcspn(p, "\n") + 1; /* the size is for people */
    *lines = (struct str){p, p < end ? (size_t)(end - p) : 0};
    return true;
}

/* Takes an index; false when it is not whole. Entries that another sound object has stay there. */
static bool read_index(struct store *s, struct arena *a, const char *name)
{
    struct str lines;
    if (!read_entries(s, a, name, &lines)) return false;
    uint32_t id = add_object(s, name);
    for (const char *p = lines.p; p < lines.p + lines.n; p += strcspn(p, "\n") + 1) {
        uint32_t *at = map_str(&s->by_entry, (struct str){p, strcspn(p, "\n")});
        if (!*at || s->object.p[*at - 1].state == BROKEN) *at = id;
    }
    return true;
}

static void discard(struct store *s, struct object *o)
{
    struct arena *a = arena_open("store");
    unlink(object_path(s, a, o->name, "idx"));
    unlink(object_path(s, a, o->name, "so"));
    o->state = BROKEN;
    arena_close(a);
}

static bool is_hex(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strchr("0123456789abcdef", p[i]) || !p[i]) return false;
    return true;
}

/* "<name>.idx" */
static bool is_index(const char *file)
{
    return strlen(file) == NAME + 4 && is_hex(file, NAME) && !strcmp(file + NAME, ".idx");
}

void store_rescan(struct store *s)
{
    DIR *d = opendir(s->dir);
    if (!d) return;
    struct arena *a = arena_open("store");
    for (struct dirent *e; (e = readdir(d));) {
        if (!is_index(e->d_name)) continue;
        const uint32_t *known = map_find(&s->by_name, (struct str){e->d_name, NAME});
        if (known && s->object.p[*known - 1].state != BROKEN) continue;
        char name[NAME + 1] = {0};
        memcpy(name, e->d_name, NAME);
        if (!read_index(s, a, name)) unlink(object_path(s, a, name, "idx"));
    }
    closedir(d);
    arena_close(a);
}

static enum rt_status make_folder(const char *dir, struct rt_error *err)
{
    int e = io_mkdirs(dir);
    if (!e) return RT_ok;
    return rt_fail(err, e == ENOSPC || e == EIO ? RT_machine : RT_user,
                   "cannot make the cache folder '%s': %s (STRATA_CACHE names another)", dir,
                   strerror(e));
}

enum rt_status store_open(struct arena *a, const char *dir, struct store **out,
                          struct rt_error *err)
{
    struct store *s = NEW(a, struct store, 1);
    s->arena = a;
    s->dir = str_dup(a, str_of(dir));
    map_init(&s->by_name, a);
    map_init(&s->by_entry, a);
    *out = s;
    RT_TRY(make_folder(dir, err));
    store_rescan(s);
    return RT_ok;
}

void store_close(struct store *s)
{
    if (!s) return;
    for (size_t i = 0; i < s->object.n; i++)
        if (s->object.p[i].handle) dlclose(s->object.p[i].handle);
    s->object.n = 0;
}

const char *store_dir(const struct store *s)
{
    return s->dir;
}

void store_give(struct store *s, void *shared)
{
    s->given = shared;
}

static void give(const struct store *s, const struct object *o)
{
    void *at = dlsym(o->handle, "jit_given");
    if (!at) return;
    CHECK(s->given);
    memcpy(at, &s->given, sizeof s->given);
}

/* Verifies and loads; raises *bytes. */
static bool load(struct store *s, struct object *o, size_t *bytes)
{
    if (o->state == LOADED) return true;
    if (o->state == BROKEN) return false;
    struct arena *a = arena_open("store");
    const char *path = object_path(s, a, o->name, "so");
    struct str data;
    char sum[NAME + 1] = "";
    if (!io_read(a, path, MAX_OBJECT, &data)) hash_hex(data.p, data.n, sum);
    if (!strcmp(sum, o->name)) o->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (o->handle) {
        o->state = LOADED;
        give(s, o);
        utimensat(AT_FDCWD, path, NULL, 0); /* used now, for store_trim */
        if (bytes) *bytes += data.n;
    } else {
        discard(s, o);
    }
    arena_close(a);
    return o->state == LOADED;
}

void *store_find(struct store *s, const char *entry, const char *symbol, size_t *bytes)
{
    const uint32_t *at = map_find(&s->by_entry, str_of(entry));
    if (!at || !*at || !load(s, &s->object.p[*at - 1], bytes)) return NULL;
    return dlsym(s->object.p[*at - 1].handle, symbol);
}

/* The index of an object with these entries and those of `old`. */
static int write_index(struct store *s, struct arena *a, const char *name, size_t bytes,
                       const char *const *entry, size_t n, struct str old)
{
    struct sb idx = {0};
    struct map seen;
    map_init(&seen, a);
    sb_printf(&idx, HEADER "%zu bytes\n", bytes);
    sb_add(&idx, old.p, old.n);
    for (const char *p = old.p; p < old.p + old.n; p += strcspn(p, "\n") + 1)
        *map_str(&seen, (struct str){p, strcspn(p, "\n")}) = 1;
    for (size_t i = 0; i < n; i++) {
        uint32_t *at = map_str(&seen, str_of(entry[i]));
        if (!*at) sb_printf(&idx, "%s\n", entry[i]);
        *at = 1;
    }
    sb_str(&idx, "end\n");
    int e = io_write_atomic(object_path(s, a, name, "idx"), idx.p, idx.n);
    sb_free(&idx);
    return e;
}

enum rt_status store_add(struct store *s, const char *path, const char *const *entry, size_t n,
                         struct rt_error *err)
{
    struct arena *a = arena_open("store");
    struct str data;
    char name[NAME + 1];
    int e = io_read(a, path, MAX_OBJECT, &data);
    if (!e) {
        hash_hex(data.p, data.n, name);
        if (rename(path, object_path(s, a, name, "so"))) e = errno;
    }
    if (!e) {
        struct str old = {"", 0};
        read_entries(s, a, name, &old);
        e = write_index(s, a, name, data.n, entry, n, old);
    }
    if (!e) {
        const uint32_t *known = map_find(&s->by_name, str_of(name));
        uint32_t id =
            known && s->object.p[*known - 1].state != BROKEN ? *known : add_object(s, name);
        for (size_t i = 0; i < n; i++) *map_str(&s->by_entry, str_of(entry[i])) = id;
    }
    arena_close(a);
    if (e)
        return rt_fail(err, RT_machine, "cannot write to the cache '%s': %s", s->dir, strerror(e));
    return RT_ok;
}

int store_lock(struct store *s)
{
    struct arena *a = arena_open("store");
    int fd = open(io_join(a, s->dir, "lock"), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    arena_close(a);
    if (fd < 0) return -1;
    while (flock(fd, LOCK_EX)) {
        if (errno == EINTR) continue;
        close(fd);
        return -1;
    }
    return fd;
}

void store_unlock(int lock)
{
    if (lock >= 0) close(lock);
}

/* ---- blobs: the checksum in hex, a line break, the bytes ---- */

bool store_read_blob(struct arena *a, const char *dir, const char *key, struct str *data)
{
    const char *path = str_fmt(a, "%s/%s.blob", dir, key);
    struct str file;
    char sum[NAME + 1];
    if (io_read(a, path, MAX_OBJECT, &file)) return false;
    if (file.n > NAME) {
        *data = (struct str){file.p + NAME + 1, file.n - NAME - 1};
        hash_hex(data->p, data->n, sum);
        if (!memcmp(sum, file.p, NAME)) {
            utimensat(AT_FDCWD, path, NULL, 0); /* used now, for store_trim */
            return true;
        }
    }
    unlink(path);
    return false;
}

enum rt_status store_write_blob(const char *dir, const char *key, struct str data,
                                struct rt_error *err)
{
    RT_TRY(make_folder(dir, err));
    struct arena *a = arena_open("store");
    struct sb s = {0};
    char sum[NAME + 1];
    hash_hex(data.p, data.n, sum);
    sb_printf(&s, "%s\n", sum);
    sb_add(&s, data.p, data.n);
    int e = io_write_atomic(str_fmt(a, "%s/%s.blob", dir, key), s.p, s.n);
    sb_free(&s);
    arena_close(a);
    return e ? rt_fail(err, RT_machine, "cannot write to the cache '%s': %s", dir, strerror(e))
             : RT_ok;
}

/* ---- size ---- */

struct file {
    const char *path; /* of the shared object or blob */
    struct timespec used;
    uint64_t bytes;
};
struct files {
    VEC(struct file) list;
    uint64_t bytes;
};

/* Also clears away folders that a killed compiler run left more than a day ago. */
static void list_objects(struct arena *a, const char *dir, struct files *f)
{
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        struct stat st;
        const char *path = io_join(a, dir, e->d_name);
        if (stat(path, &st)) continue;
        if (S_ISDIR(st.st_mode) && str_starts(str_of(e->d_name), "work-") &&
            st.st_mtim.tv_sec < time(NULL) - 86400)
            io_remove_tree(path);
        struct str name = str_of(e->d_name);
        if (!S_ISREG(st.st_mode) || !(str_ends(name, ".so") || str_ends(name, ".blob"))) continue;
        struct file one = {path, st.st_mtim, (uint64_t)st.st_size};
        vec_push(a, &f->list, one);
        f->bytes += one.bytes;
    }
    closedir(d);
}

static int oldest_first(const void *pa, const void *pb)
{
    const struct file *a = pa, *b = pb;
    if (a->used.tv_sec != b->used.tv_sec) return a->used.tv_sec < b->used.tv_sec ? -1 : 1;
    if (a->used.tv_nsec != b->used.tv_nsec) return a->used.tv_nsec < b->used.tv_nsec ? -1 : 1;
    return strcmp(a->path, b->path);
}

static struct files list_stores(struct arena *a, const char *root)
{
    struct files f = {0};
    DIR *d = opendir(root);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.') list_objects(a, io_join(a, root, e->d_name), &f);
    if (d) closedir(d);
    return f;
}

uint64_t store_bytes(const char *root)
{
    struct arena *a = arena_open("store");
    uint64_t bytes = list_stores(a, root).bytes;
    arena_close(a);
    return bytes;
}

void store_trim(const char *root, uint64_t bytes)
{
    struct arena *a = arena_open("store");
    struct files f = list_stores(a, root);
    if (f.bytes > bytes) qsort(f.list.p, f.list.n, sizeof *f.list.p, oldest_first);
    for (size_t i = 0; i < f.list.n && f.bytes > bytes; i++) {
        const char *path = f.list.p[i].path;
        if (str_ends(str_of(path), ".so"))
            unlink(str_fmt(a, "%sidx", str_dup(a, (struct str){path, strlen(path) - 2})));
        unlink(path);
        f.bytes -= f.list.p[i].bytes;
    }
    arena_close(a);
}
