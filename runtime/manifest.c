#include "runtime/manifest.h"
#include "base/io.h"
#include "base/map.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* The text ends with this, where the digits are the hash of everything before it. */
#define TAIL_HEAD ",\n \"check\": \""
#define TAIL_END "\"}\n"
enum {
    MAX_MANIFEST = 16 << 20,
    HASH = 32,
    TAIL = sizeof TAIL_HEAD - 1 + HASH + sizeof TAIL_END - 1
};

void manifest_text(const struct manifest_file *file, size_t n, struct sb *out)
{
    size_t start = out->n;
    sb_str(out, "{\"format\": 1,\n \"files\": {");
    for (size_t i = 0; i < n; i++)
        sb_printf(out, "%s\n  \"%s\": {\"size\": %llu, \"xxh3_128\": \"%s\"}", i ? "," : "",
                  file[i].name, (unsigned long long)file[i].size, file[i].hash);
    sb_str(out, "}");
    char hash[HASH + 1];
    hash_hex(out->p + start, out->n - start, hash);
    sb_printf(out, TAIL_HEAD "%s" TAIL_END, hash);
}

static bool check_own_hash(struct str s)
{
    char hash[HASH + 1];
    if (s.n < TAIL) return false;
    const char *tail = s.p + s.n - TAIL;
    hash_hex(s.p, s.n - TAIL, hash);
    return !memcmp(tail, TAIL_HEAD, sizeof TAIL_HEAD - 1) &&
           !memcmp(tail + sizeof TAIL_HEAD - 1, hash, HASH) &&
           !memcmp(tail + TAIL - (sizeof TAIL_END - 1), TAIL_END, sizeof TAIL_END - 1);
}

/* Reads with read(2), not a mapping, so that a bad disk is an error and not a signal. */
static enum rt_status check_stream(int fd, const char *path, const char *want, struct rt_error *err)
{
    enum { CHUNK = 1 << 20 };
    char *buf = malloc(CHUNK);
    XXH3_state_t *state = XXH3_createState();
    enum rt_status r = RT_ok;
    if (!buf || !state)
        r = rt_fail(err, RT_machine, "no memory to check '%s'", path);
    else
        XXH3_128bits_reset(state);
    while (r == RT_ok) {
        ssize_t n = read(fd, buf, CHUNK);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) r = rt_fail(err, RT_machine, "cannot read '%s': %s", path, strerror(errno));
        if (n <= 0) break;
        XXH3_128bits_update(state, buf, (size_t)n);
    }
    if (r == RT_ok) {
        XXH128_hash_t h = XXH3_128bits_digest(state);
        char hash[HASH + 1];
        snprintf(hash, sizeof hash, "%016llx%016llx", (unsigned long long)h.high64,
                 (unsigned long long)h.low64);
        if (strcmp(hash, want)) r = rt_fail(err, RT_user, "'%s' is damaged: wrong checksum", path);
    }
    XXH3_freeState(state);
    free(buf);
    return r;
}

static enum rt_status check_file(const char *path, const json_t *entry, struct rt_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) return rt_fail(err, RT_user, "'%s' is missing", path);
    if (fd < 0) return rt_fail(err, RT_machine, "cannot read '%s': %s", path, strerror(errno));
    json_int_t size = json_integer_value(json_object_get(entry, "size"));
    const char *hash = json_string_value(json_object_get(entry, "xxh3_128"));
    struct stat st;
    enum rt_status r;
    if (fstat(fd, &st))
        r = rt_fail(err, RT_machine, "cannot read '%s': %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode) || st.st_size != size)
        r = rt_fail(err, RT_user, "'%s' is damaged: %lld bytes instead of %lld", path,
                    (long long)st.st_size, (long long)size);
    else
        r = check_stream(fd, path, hash ? hash : "", err);
    close(fd);
    return r;
}

static enum rt_status check_files(struct arena *a, const char *dir, const char *path,
                                  const json_t *root, struct rt_error *err)
{
    json_t *files = json_object_get(root, "files"), *entry;
    const char *name;
    if (!json_object_size(files)) return rt_fail(err, RT_user, "'%s' lists no files", path);
    json_object_foreach(files, name, entry)
    {
        if (!*name || *name == '.' || strchr(name, '/'))
            return rt_fail(err, RT_user, "'%s' names no plain file", path);
        RT_TRY(check_file(str_fmt(a, "%s/%s", dir, name), entry, err));
    }
    return RT_ok;
}

enum rt_status manifest_verify(const char *dir, struct rt_error *err)
{
    struct arena *a = arena_open("manifest");
    const char *path = str_fmt(a, "%s/manifest.json", dir);
    struct str text = {0};
    enum rt_status r = RT_ok;
    int e = io_read(a, path, MAX_MANIFEST, &text);
    if (e == ENOENT)
        r = rt_fail(err, RT_user, "'%s' is missing", path);
    else if (e)
        r = rt_fail(err, e == EFBIG || e == EISDIR ? RT_user : RT_machine, "cannot read '%s': %s",
                    path, strerror(e));
    else if (!check_own_hash(text))
        r = rt_fail(err, RT_user, "'%s' is damaged: wrong checksum", path);
    if (r == RT_ok) {
        json_t *root = json_loadb(text.p, text.n, JSON_REJECT_DUPLICATES, NULL);
        if (json_integer_value(json_object_get(root, "format")) != 1)
            r = rt_fail(err, RT_user, "'%s' is of an unknown format", path);
        else
            r = check_files(a, dir, path, root, err);
        json_decref(root);
    }
    arena_close(a);
    return r;
}
