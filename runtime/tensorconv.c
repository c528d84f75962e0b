/* The values and the writing side of safetensors files. */
#include "runtime/tensorfile.h"
#include "base/arena.h"
#include "base/io.h"
#include "runtime/outfile.h"
#include <jansson.h>
#include <stdlib.h>

static float bits_f32(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static float half_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, man = h & 0x3ff;
    if (exp == 31) return bits_f32(sign | 0x7f800000u | man << 13);
    if (exp) return bits_f32(sign | (exp + 112) << 23 | man << 13);
    float f = (float)man * 0x1p-24f; /* subnormal: exact */
    return sign ? -f : f;
}

enum rt_status tf_read_f32(const struct tf_tensor *t, size_t first, size_t n, float *out,
                           struct rt_error *err)
{
    CHECK(first <= t->count && n <= t->count - first);
    const unsigned char *p = (const unsigned char *)t->data + first * tf_dtype_size(t->dtype);
    uint16_t h;
    double d;
    switch (t->dtype) {
    case TF_F32:
        if (n) memcpy(out, p, n * sizeof *out);
        return RT_ok;
    case TF_BF16:
        for (size_t i = 0; i < n; i++) {
            memcpy(&h, p + 2 * i, 2);
            out[i] = bits_f32((uint32_t)h << 16);
        }
        return RT_ok;
    case TF_F16:
        for (size_t i = 0; i < n; i++) {
            memcpy(&h, p + 2 * i, 2);
            out[i] = half_f32(h);
        }
        return RT_ok;
    case TF_F64:
        for (size_t i = 0; i < n; i++) {
            memcpy(&d, p + 8 * i, 8);
            out[i] = (float)d; /* out of range gives an infinity (IEC 60559) */
        }
        return RT_ok;
    default:
        return rt_fail(err, RT_user, "'%s': tensor '%.100s' has dtype %s, not a floating-point one",
                       t->file ? t->file : "?", t->name, tf_dtype_name(t->dtype));
    }
}

void tf_to_bf16(const float *in, size_t n, uint16_t *out)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &in[i], 4);
        bool nan = (u & 0x7fffffffu) > 0x7f800000u;
        out[i] = (uint16_t)(nan ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
}

/* Bytes of a tensor to be written; shapes come from our own code. */
static size_t tensor_bytes(const struct tf_tensor *t)
{
    size_t n = tf_dtype_size(t->dtype);
    CHECK(t->rank >= 0 && t->rank <= TF_MAX_RANK);
    for (int i = 0; i < t->rank; i++)
        CHECK(t->shape[i] >= 0 && !__builtin_mul_overflow(n, (size_t)t->shape[i], &n));
    return n;
}

static json_t *entry_json(const struct tf_tensor *t, size_t begin, size_t end)
{
    json_t *shape = json_array();
    for (int i = 0; i < t->rank; i++) json_array_append_new(shape, json_integer(t->shape[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", tf_dtype_name(t->dtype), "shape", shape,
                     "data_offsets", (json_int_t)begin, (json_int_t)end);
}

/* The header's JSON, on the heap (jansson's); names must be distinct UTF-8. */
static char *header_json(const struct tf_content *c)
{
    json_t *root = json_object();
    if (c->num_meta) {
        json_t *m = json_object();
        for (size_t i = 0; i < c->num_meta; i++)
            CHECK(!json_object_set_new(m, c->meta[i].key, json_string(c->meta[i].value)));
        CHECK(!json_object_set_new(root, "__metadata__", m));
    }
    size_t at = 0;
    for (size_t i = 0; i < c->count; i++) {
        const struct tf_tensor *t = &c->tensors[i];
        size_t n = tensor_bytes(t);
        if (json_object_get(root, t->name)) BUG("tensor '%s' written twice", t->name);
        if (json_object_set_new(root, t->name, entry_json(t, at, at + n)))
            BUG("tensor name '%s' is not UTF-8", t->name);
        at += n;
    }
    char *text = json_dumps(root, JSON_COMPACT);
    CHECK(text);
    json_decref(root);
    return text;
}

int tensorfile_stream(const struct tf_content *c, tf_sink *sink, void *ctx)
{
    char *json = header_json(c);
    size_t n = strlen(json), padded = (n + 8 + 63) / 64 * 64 - 8;
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)padded >> 8 * i);
    static const char spaces[65] =
        "                                                                ";
    int e = sink(ctx, length, 8);
    if (!e) e = sink(ctx, json, n);
    if (!e && padded > n) e = sink(ctx, spaces, padded - n);
    free(json);
    for (size_t i = 0; !e && i < c->count; i++) {
        size_t bytes = tensor_bytes(&c->tensors[i]);
        const void *p = c->source ? c->source(c->ctx, i) : c->tensors[i].data;
        if (bytes) e = sink(ctx, p, bytes);
    }
    return e;
}

static int fd_sink(void *ctx, const void *p, size_t n)
{
    return io_write_all(*(int *)ctx, p, n);
}

enum rt_status tensorfile_write_fd(int fd, const char *path, const struct tf_content *c,
                                   struct rt_error *err)
{
    int e = tensorfile_stream(c, fd_sink, &fd);
    return e ? rt_fail(err, RT_machine, "cannot write '%s': %s", path, strerror(e)) : RT_ok;
}

enum rt_status tensorfile_write(const char *path, const struct tf_content *c, struct rt_error *err)
{
    struct outfile f;
    RT_TRY(outfile_open(path, &f, err));
    enum rt_status r = tensorfile_write_fd(f.fd, path, c, err);
    if (r == RT_ok) return outfile_commit(&f, err);
    outfile_drop(&f);
    return r;
}
