#include "runtime/tensorfile.h"
#include "base/arena.h"
#include "base/io.h"
#include "runtime/mapped.h"
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

/* __builtin_mul_overflow and __builtin_add_overflow are GNU extensions both compilers have. */
enum { MAX_HEADER = 100 * 1000 * 1000, MAX_INDEX = 256 << 20, MAX_SHARDS = 100000 };

static const struct {
    const char *name;
    size_t size;
} dtypes[TF_DTYPES] = {
    [TF_BOOL] = {"BOOL", 1},       [TF_U8] = {"U8", 1},           [TF_I8] = {"I8", 1},
    [TF_F8_E5M2] = {"F8_E5M2", 1}, [TF_F8_E4M3] = {"F8_E4M3", 1}, [TF_I16] = {"I16", 2},
    [TF_U16] = {"U16", 2},         [TF_F16] = {"F16", 2},         [TF_BF16] = {"BF16", 2},
    [TF_I32] = {"I32", 4},         [TF_U32] = {"U32", 4},         [TF_F32] = {"F32", 4},
    [TF_F64] = {"F64", 8},         [TF_I64] = {"I64", 8},         [TF_U64] = {"U64", 8},
};

struct shard {
    char *path;
    struct mapped map; /* empty when read from memory */
    const unsigned char *bytes;
    size_t size;
    json_t *header; /* owns the names of the tensors */
};

struct tensorfile {
    struct shard *shard;
    size_t num_shards;
    struct tf_tensor *t;
    size_t n;
    uint32_t *by_name; /* indices into t, in order of name */
};

size_t tf_dtype_size(enum tf_dtype d)
{
    CHECK(d < TF_DTYPES);
    return dtypes[d].size;
}

const char *tf_dtype_name(enum tf_dtype d)
{
    CHECK(d < TF_DTYPES);
    return dtypes[d].name;
}

const char *tf_shape_text(const struct tf_tensor *t, char *buf, size_t n)
{
    size_t at = 0;
    for (int i = 0; i < t->rank && at < n; i++)
        at += (size_t)snprintf(buf + at, n - at, "%s%lld", i ? ", " : "[", (long long)t->shape[i]);
    if (at < n) snprintf(buf + at, n - at, "%s", t->rank ? "]" : "[]");
    return buf;
}

/* ---- reading ---- */

static enum rt_status bad(struct rt_error *err, const struct shard *s, const char *tensor,
                          const char *what)
{
    if (!tensor)
        return rt_fail(err, RT_user, "'%s' is not a valid safetensors file: %s", s->path, what);
    return rt_fail(err, RT_user, "'%s' is not a valid safetensors file: tensor '%.100s': %s",
                   s->path, tensor, what);
}

static bool parse_dtype(const json_t *j, enum tf_dtype *out)
{
    const char *name = json_string_value(j);
    for (int d = 0; name && d < TF_DTYPES; d++) {
        if (strcmp(name, dtypes[d].name)) continue;
        *out = (enum tf_dtype)d;
        return true;
    }
    return false;
}

/* NULL or what is wrong with the entry. */
static const char *parse_entry(json_t *j, size_t data_bytes, const unsigned char *data,
                               struct tf_tensor *t)
{
    if (!json_is_object(j)) return "its entry is not an object";
    if (json_object_size(j) != 3) return "its entry must have dtype, shape and data_offsets only";
    if (!parse_dtype(json_object_get(j, "dtype"), &t->dtype)) return "unknown dtype";
    const json_t *shape = json_object_get(j, "shape"), *off = json_object_get(j, "data_offsets");
    if (!json_is_array(shape)) return "shape is not a list";
    if (json_array_size(shape) > TF_MAX_RANK) return "more than 8 dimensions";
    t->rank = (int)json_array_size(shape);
    t->count = 1;
    for (int i = 0; i < t->rank; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        if (!json_is_integer(d) || json_integer_value(d) < 0) return "a dimension is not a count";
        t->shape[i] = json_integer_value(d);
        if (__builtin_mul_overflow(t->count, (size_t)t->shape[i], &t->count))
            return "shape overflows";
    }
    if (__builtin_mul_overflow(t->count, dtypes[t->dtype].size, &t->bytes))
        return "shape overflows";
    if (!json_is_array(off) || json_array_size(off) != 2) return "data_offsets is not a pair";
    const json_t *b = json_array_get(off, 0), *e = json_array_get(off, 1);
    if (!json_is_integer(b) || !json_is_integer(e)) return "data_offsets is not a pair of counts";
    json_int_t begin = json_integer_value(b), end = json_integer_value(e);
    if (begin < 0 || end < begin) return "data_offsets is not a range";
    if ((size_t)end > data_bytes) return "data_offsets lie beyond the end of the file";
    if ((size_t)(end - begin) != t->bytes) return "data_offsets do not fit dtype and shape";
    t->data = data + begin;
    return NULL;
}

static int by_data(const void *pa, const void *pb)
{
    const struct tf_tensor *a = pa, *b = pb;
    if (a->data != b->data) return (uintptr_t)a->data < (uintptr_t)b->data ? -1 : 1;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1;
    return strcmp(a->name, b->name);
}

static const char *check_metadata(json_t *m)
{
    const char *key;
    json_t *v;
    if (!json_is_object(m)) return "__metadata__ is not an object";
    json_object_foreach(m, key, v) if (!json_is_string(v)) return "__metadata__ holds a non-string";
    return NULL;
}

/* Parses the header of a shard into s->header; *data is where the tensors' bytes start. */
static enum rt_status parse_header(struct shard *s, size_t *data, struct rt_error *err)
{
    if (s->size < 8) return bad(err, s, NULL, "shorter than 8 bytes");
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | s->bytes[i];
    if (n > MAX_HEADER) return bad(err, s, NULL, "its header is longer than 100 MB");
    if (n > s->size - 8) return bad(err, s, NULL, "its header is longer than the file");
    if (n == 0 || s->bytes[8] != '{') return bad(err, s, NULL, "its header does not start with {");
    json_error_t je;
    s->header = json_loadb((const char *)s->bytes + 8, (size_t)n, JSON_REJECT_DUPLICATES, &je);
    if (!s->header) {
        char what[JSON_ERROR_TEXT_LENGTH + 32];
        snprintf(what, sizeof what, "its header: %s", je.text);
        return bad(err, s, NULL, what);
    }
    *data = (size_t)n + 8;
    json_t *meta = json_object_get(s->header, "__metadata__");
    const char *wrong = meta ? check_metadata(meta) : NULL;
    return wrong ? bad(err, s, NULL, wrong) : RT_ok;
}

/* Adds the tensors of a shard whose bytes are set. */
static enum rt_status read_shard(struct tensorfile *f, struct shard *s, struct rt_error *err)
{
    size_t start, first = f->n, at = 0;
    RT_TRY(parse_header(s, &start, err));
    size_t add = json_object_size(s->header);
    struct tf_tensor *t = realloc(f->t, (f->n + add + 1) * sizeof *t);
    if (!t) return rt_fail(err, RT_machine, "no memory for the tensors of '%s'", s->path);
    f->t = t;
    const char *key;
    json_t *v;
    json_object_foreach(s->header, key, v)
    {
        if (!strcmp(key, "__metadata__")) continue;
        t[f->n] = (struct tf_tensor){.name = key, .file = s->path};
        const char *wrong = parse_entry(v, s->size - start, s->bytes + start, &t[f->n]);
        if (wrong) return bad(err, s, key, wrong);
        f->n++;
    }
    if (f->n > UINT32_MAX) return bad(err, s, NULL, "too many tensors");
    qsort(t + first, f->n - first, sizeof *t, by_data);
    for (size_t i = first; i < f->n; i++) {
        if ((const unsigned char *)t[i].data != s->bytes + start + at)
            return bad(err, s, t[i].name, "its data overlaps another's or leaves a gap");
        at += t[i].bytes;
    }
    if (at != s->size - start) return bad(err, s, NULL, "bytes after the last tensor");
    return RT_ok;
}

static int by_name(const void *pa, const void *pb, void *arg)
{
    const struct tf_tensor *t = arg;
    return strcmp(t[*(const uint32_t *)pa].name, t[*(const uint32_t *)pb].name);
}

static enum rt_status index_names(struct tensorfile *f, struct rt_error *err)
{
    f->by_name = malloc((f->n + 1) * sizeof *f->by_name);
    if (!f->by_name) return rt_fail(err, RT_machine, "no memory for %zu tensors", f->n);
    for (size_t i = 0; i < f->n; i++) f->by_name[i] = (uint32_t)i;
    qsort_r(f->by_name, f->n, sizeof *f->by_name, by_name, f->t);
    for (size_t i = 1; i < f->n; i++) {
        const struct tf_tensor *a = &f->t[f->by_name[i - 1]], *b = &f->t[f->by_name[i]];
        if (!strcmp(a->name, b->name))
            return rt_fail(err, RT_user, "tensor '%.100s' is in both '%s' and '%s'", a->name,
                           a->file, b->file);
    }
    return RT_ok;
}

/* Appends an empty shard of that path (copied); NULL without memory. */
static struct shard *add_shard(struct tensorfile *f, const char *dir, const char *name)
{
    struct shard *s = realloc(f->shard, (f->num_shards + 1) * sizeof *s);
    if (!s) return NULL;
    f->shard = s;
    s += f->num_shards;
    *s = (struct shard){0};
    size_t n = (dir ? strlen(dir) + 1 : 0) + strlen(name) + 1;
    if (!(s->path = malloc(n))) return NULL;
    snprintf(s->path, n, "%s%s%s", dir ? dir : "", dir ? "/" : "", name);
    f->num_shards++;
    return s;
}

static enum rt_status open_one(struct tensorfile *f, const char *dir, const char *name,
                               struct rt_error *err)
{
    struct shard *s = add_shard(f, dir, name);
    if (!s) return rt_fail(err, RT_machine, "no memory to open '%s'", name);
    RT_TRY(mapped_open(s->path, &s->map, err));
    s->bytes = (const unsigned char *)s->map.bytes;
    s->size = s->map.size;
    return read_shard(f, s, err);
}

/* Every tensor of the index is in the shard it names, and the shards hold nothing else. */
static enum rt_status check_index(const struct tensorfile *f, const json_t *map, const char *path,
                                  struct rt_error *err)
{
    for (size_t i = 0; i < f->n; i++) {
        const char *want = json_string_value(json_object_get(map, f->t[i].name));
        const char *base = strrchr(f->t[i].file, '/') + 1;
        if (!want || strcmp(want, base))
            return rt_fail(err, RT_user, "'%s' does not list tensor '%.100s' of '%s'", path,
                           f->t[i].name, base);
    }
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)map, key, v)
    {
        if (!tensorfile_find(f, key))
            return rt_fail(err, RT_user, "'%s' lists tensor '%.100s', which '%s' does not hold",
                           path, key, json_string_value(v));
    }
    return RT_ok;
}

static enum rt_status open_shards(struct tensorfile *f, const char *dir, const json_t *map,
                                  const char *path, struct rt_error *err)
{
    const char *key;
    json_t *v, *seen = json_object();
    enum rt_status r = seen ? RT_ok : rt_fail(err, RT_machine, "no memory to read '%s'", path);
    json_object_foreach((json_t *)map, key, v)
    {
        const char *name = json_string_value(v);
        if (r != RT_ok) break;
        if (!name || !*name || *name == '.' || strchr(name, '/'))
            r = rt_fail(err, RT_user, "'%s' names no plain file for tensor '%.100s'", path, key);
        else if (json_object_get(seen, name))
            continue;
        else if (json_object_size(seen) >= MAX_SHARDS ||
                 json_object_set_new(seen, name, json_true()))
            r = rt_fail(err, RT_user, "'%s' names too many files", path);
        else
            r = open_one(f, dir, name, err);
    }
    json_decref(seen);
    return r;
}

static enum rt_status open_index(struct tensorfile *f, const char *dir, const char *path,
                                 struct rt_error *err)
{
    struct mapped file;
    RT_TRY(mapped_open(path, &file, err));
    json_error_t je = {.text = "larger than 256 MiB"};
    json_t *root = NULL;
    if (file.size <= MAX_INDEX)
        root = json_loadb(file.bytes, file.size, JSON_REJECT_DUPLICATES, &je);
    mapped_close(&file);
    json_t *map = json_object_get(root, "weight_map");
    enum rt_status r;
    if (!root)
        r = rt_fail(err, RT_user, "'%s' is not valid JSON: %s", path, je.text);
    else if (!json_is_object(map))
        r = rt_fail(err, RT_user, "'%s' has no weight_map", path);
    else
        r = open_shards(f, dir, map, path, err);
    if (r == RT_ok) r = index_names(f, err);
    if (r == RT_ok) r = check_index(f, map, path, err);
    json_decref(root);
    return r;
}

static enum rt_status open_path(struct tensorfile *f, const char *path, struct rt_error *err)
{
    struct stat st;
    if (stat(path, &st))
        return rt_fail(err, RT_user, "cannot read '%s': %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode)) {
        RT_TRY(open_one(f, NULL, path, err));
        return index_names(f, err);
    }
    char index[PATH_MAX];
    int n = snprintf(index, sizeof index, "%s/model.safetensors.index.json", path);
    if (n < 0 || (size_t)n >= sizeof index)
        return rt_fail(err, RT_user, "path too long: '%s'", path);
    if (io_exists(index)) return open_index(f, path, index, err);
    RT_TRY(open_one(f, path, "model.safetensors", err));
    return index_names(f, err);
}

enum rt_status tensorfile_open(const char *path, struct tensorfile **out, struct rt_error *err)
{
    struct tensorfile *f = calloc(1, sizeof *f);
    if (!f) return rt_fail(err, RT_machine, "no memory to open '%s'", path);
    enum rt_status r = open_path(f, path, err);
    if (r != RT_ok) {
        tensorfile_close(f);
        f = NULL;
    }
    *out = f;
    return r;
}

enum rt_status tensorfile_memory(const void *bytes, size_t n, const char *label,
                                 struct tensorfile **out, struct rt_error *err)
{
    struct tensorfile *f = calloc(1, sizeof *f);
    struct shard *s = f ? add_shard(f, NULL, label) : NULL;
    enum rt_status r = s ? RT_ok : rt_fail(err, RT_machine, "no memory to open '%s'", label);
    if (s) {
        s->bytes = bytes;
        s->size = n;
        r = read_shard(f, s, err);
        if (r == RT_ok) r = index_names(f, err);
    }
    if (r != RT_ok) {
        tensorfile_close(f);
        f = NULL;
    }
    *out = f;
    return r;
}

void tensorfile_close(struct tensorfile *f)
{
    if (!f) return;
    for (size_t i = 0; i < f->num_shards; i++) {
        struct shard *s = &f->shard[i];
        mapped_close(&s->map);
        json_decref(s->header);
        free(s->path);
    }
    free(f->shard);
    free(f->t);
    free(f->by_name);
    free(f);
}

size_t tensorfile_count(const struct tensorfile *f)
{
    return f->n;
}

const struct tf_tensor *tensorfile_at(const struct tensorfile *f, size_t i)
{
    CHECK(i < f->n);
    return &f->t[i];
}

const struct tf_tensor *tensorfile_find(const struct tensorfile *f, const char *name)
{
    size_t lo = 0, hi = f->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const struct tf_tensor *t = &f->t[f->by_name[mid]];
        int c = strcmp(name, t->name);
        if (c == 0) return t;
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

const char *tensorfile_metadata(const struct tensorfile *f, const char *key)
{
    for (size_t i = 0; i < f->num_shards; i++) {
        const json_t *m = json_object_get(f->shard[i].header, "__metadata__");
        const char *v = json_string_value(json_object_get(m, key));
        if (v) return v;
    }
    return NULL;
}
