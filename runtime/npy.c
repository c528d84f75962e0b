#include "runtime/npy.h"
#include "base/arena.h"
#include "base/str.h"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* __builtin_mul_overflow is a GNU extension both compilers have. */
enum { MAX_HEADER = 1 << 20 };

static const struct {
    const char *descr;
    size_t size;
} types[NPY_TYPES] = {
    [NPY_u8] = {"|u1", 1},  [NPY_u16] = {"<u2", 2}, [NPY_i32] = {"<i4", 4},
    [NPY_i64] = {"<i8", 8}, [NPY_f32] = {"<f4", 4},
};

/* The header is a Python dictionary of three known keys; this reads just that much of Python. */
struct lex {
    const char *p, *end;
};

static void skip(struct lex *l)
{
    while (l->p < l->end && (*l->p == ' ' || *l->p == '\n' || *l->p == '\t')) l->p++;
}

static bool take(struct lex *l, char c)
{
    skip(l);
    if (l->p >= l->end || *l->p != c) return false;
    l->p++;
    return true;
}

static bool take_word(struct lex *l, const char *word)
{
    size_t n = strlen(word);
    skip(l);
    if ((size_t)(l->end - l->p) < n || memcmp(l->p, word, n)) return false;
    l->p += n;
    return true;
}

static bool take_string(struct lex *l, struct str *out)
{
    skip(l);
    if (l->p >= l->end || (*l->p != '\'' && *l->p != '"')) return false;
    char quote = *l->p++;
    const char *start = l->p;
    while (l->p < l->end && *l->p != quote && *l->p != '\\') l->p++;
    if (l->p >= l->end || *l->p != quote) return false;
    *out = (struct str){start, (size_t)(l->p++ - start)};
    return true;
}

static bool take_count(struct lex *l, int64_t *out)
{
    skip(l);
    const char *start = l->p;
    int64_t v = 0;
    while (l->p < l->end && *l->p >= '0' && *l->p <= '9') {
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *l->p - '0', &v))
            return false;
        l->p++;
    }
    *out = v;
    return l->p > start;
}

static const char *take_shape(struct lex *l, struct npy *a)
{
    if (!take(l, '(')) return "shape is not a tuple";
    while (!take(l, ')')) {
        if (a->rank == NPY_MAX_RANK) return "more than 4 dimensions";
        if (!take_count(l, &a->shape[a->rank++])) return "a dimension is not a count";
        if (take(l, ',')) continue;
        if (!take(l, ')')) return "shape is not a tuple";
        break;
    }
    return NULL;
}

static const char *take_descr(struct lex *l, struct npy *a)
{
    struct str s;
    if (!take_string(l, &s)) return "descr is not a plain type";
    for (int t = 0; t < NPY_TYPES; t++) {
        /* one byte has no order, so every spelling of it is taken */
        bool u1 = t == NPY_u8 && s.n == 3 && !memcmp(s.p + 1, "u1", 2);
        if (!u1 && !str_is(s, types[t].descr)) continue;
        a->type = (enum npy_type)t;
        return NULL;
    }
    return s.n && *s.p == '>' ? "big-endian data is not supported"
                              : "its type is none of uint8, uint16, int32, int64, float32";
}

static const char *parse_dict(struct lex *l, struct npy *a)
{
    bool descr = false, order = false, shape = false, fortran = false;
    const char *wrong = NULL;
    if (!take(l, '{')) return "its header is not a dictionary";
    while (!take(l, '}')) {
        struct str key;
        if (!take_string(l, &key) || !take(l, ':')) return "its header is not a dictionary";
        if (str_is(key, "descr") && !descr) {
            descr = true;
            wrong = take_descr(l, a);
        } else if (str_is(key, "shape") && !shape) {
            shape = true;
            wrong = take_shape(l, a);
        } else if (str_is(key, "fortran_order") && !order) {
            order = true;
            fortran = take_word(l, "True");
            if (!fortran && !take_word(l, "False"))
                wrong = "fortran_order is neither True nor False";
        } else {
            wrong = "unknown or repeated key in its header";
        }
        if (wrong) return wrong;
        if (take(l, ',')) continue;
        if (!take(l, '}')) return "its header is not a dictionary";
        break;
    }
    skip(l);
    if (l->p != l->end) return "text after its header's dictionary";
    if (!descr || !order || !shape) return "its header lacks descr, fortran_order or shape";
    if (fortran && a->rank > 1) return "Fortran order is not supported";
    return NULL;
}

bool npy_magic(const void *bytes, size_t n)
{
    return n >= 6 && !memcmp(bytes, "\x93NUMPY", 6);
}

static const char *parse(const unsigned char *b, size_t n, struct npy *a)
{
    if (!npy_magic(b, n) || n < 10) return "no NumPy magic bytes";
    if (b[6] < 1 || b[6] > 3 || b[7] != 0) return "unknown format version";
    size_t at = b[6] == 1 ? 10 : 12;
    if (n < at) return "cut in its header";
    size_t len = b[8] | (size_t)b[9] << 8;
    if (b[6] > 1) len |= (size_t)b[10] << 16 | (size_t)b[11] << 24;
    if (len > n - at) return "its header is longer than the file";
    if (len > MAX_HEADER) return "its header is longer than 1 MiB";
    struct lex l = {(const char *)b + at, (const char *)b + at + len};
    const char *wrong = parse_dict(&l, a);
    if (wrong) return wrong;
    a->count = 1;
    for (int i = 0; i < a->rank; i++)
        if (__builtin_mul_overflow(a->count, (size_t)a->shape[i], &a->count))
            return "shape overflows";
    size_t bytes;
    if (__builtin_mul_overflow(a->count, types[a->type].size, &bytes)) return "shape overflows";
    if (bytes > n - at - len) return "shorter than its shape says";
    if (bytes < n - at - len) return "longer than its shape says";
    a->data = b + at + len;
    return NULL;
}

enum rt_status npy_memory(const void *bytes, size_t n, const char *label, struct npy *out,
                          struct rt_error *err)
{
    *out = (struct npy){0};
    const char *wrong = parse(bytes, n, out);
    if (!wrong) return RT_ok;
    *out = (struct npy){0};
    return rt_fail(err, RT_user, "'%s' is not a readable .npy file: %s", label, wrong);
}

enum rt_status npy_open(const char *path, struct npy *out, struct rt_error *err)
{
    struct mapped m;
    *out = (struct npy){0};
    RT_TRY(mapped_open(path, &m, err));
    enum rt_status r = npy_memory(m.bytes, m.size, path, out, err);
    if (r == RT_ok)
        out->map = m;
    else
        mapped_close(&m);
    return r;
}

void npy_close(struct npy *a)
{
    mapped_close(&a->map);
    *a = (struct npy){0};
}

int64_t npy_int(const struct npy *a, size_t i)
{
    CHECK(i < a->count);
    const unsigned char *p = a->data + i * types[a->type].size;
    uint16_t u2;
    int32_t i4;
    int64_t i8;
    switch (a->type) {
    case NPY_u8: return *p;
    case NPY_u16: return memcpy(&u2, p, 2), u2;
    case NPY_i32: return memcpy(&i4, p, 4), i4;
    case NPY_i64: return memcpy(&i8, p, 8), i8;
    default: BUG("npy_int of type %d", (int)a->type);
    }
}

float npy_float(const struct npy *a, size_t i)
{
    CHECK(i < a->count && a->type == NPY_f32);
    float f;
    memcpy(&f, a->data + i * sizeof f, sizeof f);
    return f;
}

enum { HEADER_MAX = 320 };

/* Writes the header of an array; its length, and of the data in *bytes. */
static size_t header_of(enum npy_type type, int rank, const int64_t *shape,
                        unsigned char header[HEADER_MAX], size_t *bytes)
{
    CHECK(rank >= 0 && rank <= NPY_MAX_RANK);
    char text[256];
    int n = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (",
                     types[type].descr);
    *bytes = types[type].size;
    for (int i = 0; i < rank; i++) {
        CHECK(shape[i] >= 0 && !__builtin_mul_overflow(*bytes, (size_t)shape[i], bytes));
        n += snprintf(text + n, sizeof text - (size_t)n, i + 1 < rank ? "%lld, " : "%lld",
                      (long long)shape[i]);
    }
    n += snprintf(text + n, sizeof text - (size_t)n, rank == 1 ? ",), }" : "), }");
    /* magic, version and length take 10 bytes; data starts at a multiple of 64 */
    size_t head = ((size_t)n + 11 + 63) / 64 * 64;
    memcpy(header, "\x93NUMPY\x01", 8);
    memset(header + 10, ' ', head - 10);
    memcpy(header + 10, text, (size_t)n);
    header[8] = (unsigned char)(head - 10);
    header[9] = (unsigned char)((head - 10) >> 8);
    header[head - 1] = '\n';
    return head;
}

static enum rt_status write_npy(const char *path, enum npy_type type, const void *data, int rank,
                                const int64_t *shape, struct rt_error *err)
{
    unsigned char header[HEADER_MAX];
    size_t bytes, head = header_of(type, rank, shape, header, &bytes);
    struct outfile f;
    RT_TRY(outfile_open(path, &f, err));
    enum rt_status r = outfile_write(&f, header, head, err);
    if (r == RT_ok && bytes) r = outfile_write(&f, data, bytes, err);
    if (r == RT_ok) return outfile_commit(&f, err);
    outfile_drop(&f);
    return r;
}

/* The header of a stream, whose length is the same for any count. */
static size_t stream_header(int64_t count, unsigned char header[HEADER_MAX])
{
    size_t bytes;
    return header_of(NPY_i32, 1, &count, header, &bytes);
}

enum rt_status npy_stream_open(const char *path, struct npy_stream *s, struct rt_error *err)
{
    *s = (struct npy_stream){.count = 0};
    RT_TRY(outfile_open(path, &s->file, err));
    unsigned char header[HEADER_MAX];
    enum rt_status st = RT_ok;
    if (s->file.tmp)
        st = outfile_write(&s->file, header, stream_header(0, header), err);
    else if (!(s->spool = tmpfile()))
        st = rt_fail(err, RT_machine, "no temporary file: %s", strerror(errno));
    if (st != RT_ok) npy_stream_drop(s);
    return st;
}

enum rt_status npy_stream_add(struct npy_stream *s, const int32_t *data, size_t n,
                              struct rt_error *err)
{
    s->count += (int64_t)n;
    if (!s->spool) return outfile_write(&s->file, data, n * sizeof *data, err);
    if (fwrite(data, sizeof *data, n, s->spool) == n) return RT_ok;
    return rt_fail(err, RT_machine, "cannot write a temporary file: %s", strerror(errno));
}

/* The header with the right count, and what was kept for a pipe. */
static enum rt_status stream_end(struct npy_stream *s, struct rt_error *err)
{
    unsigned char header[HEADER_MAX];
    size_t head = stream_header(s->count, header);
    if (s->file.tmp) {
        CHECK(head == stream_header(0, (unsigned char[HEADER_MAX]){0}));
        ssize_t n = pwrite(s->file.fd, header, head, 0);
        if (n == (ssize_t)head) return RT_ok;
        return rt_fail(err, RT_machine, "cannot write '%s': %s", s->file.path,
                       n < 0 ? strerror(errno) : "no space");
    }
    RT_TRY(outfile_write(&s->file, header, head, err));
    char part[1 << 14];
    rewind(s->spool);
    for (size_t n; (n = fread(part, 1, sizeof part, s->spool));)
        RT_TRY(outfile_write(&s->file, part, n, err));
    return ferror(s->spool) ? rt_fail(err, RT_machine, "cannot read a temporary file") : RT_ok;
}

enum rt_status npy_stream_commit(struct npy_stream *s, struct rt_error *err)
{
    enum rt_status st = stream_end(s, err);
    if (st == RT_ok) st = outfile_commit(&s->file, err);
    npy_stream_drop(s);
    return st;
}

void npy_stream_drop(struct npy_stream *s)
{
    outfile_drop(&s->file);
    if (s->spool) fclose(s->spool);
    s->spool = NULL;
}

enum rt_status npy_write_f32(const char *path, const float *data, int rank, const int64_t *shape,
                             struct rt_error *err)
{
    return write_npy(path, NPY_f32, data, rank, shape, err);
}

enum rt_status npy_write_i32(const char *path, const int32_t *data, int rank, const int64_t *shape,
                             struct rt_error *err)
{
    return write_npy(path, NPY_i32, data, rank, shape, err);
}
