/* safetensors and .npy: what is written is read back, the real files are read, and every rule of
 * the formats is enforced on small broken files. */
#include "base/io.h"
#include "base/str.h"
#include "runtime/npy.h"
#include "runtime/tensorfile.h"
#include "scratch.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>
#include <cmocka.h>

static void put(const char *path, const void *p, size_t n)
{
    assert_int_equal(io_write_atomic(path, p, n), 0);
}

/* A safetensors image: header text and data. */
static size_t image(unsigned char *out, const char *header, size_t data)
{
    size_t n = strlen(header);
    for (int i = 0; i < 8; i++) out[i] = (unsigned char)(n >> 8 * i);
    memcpy(out + 8, header, n);
    for (size_t i = 0; i < data; i++) out[8 + n + i] = (unsigned char)i;
    return 8 + n + data;
}

static void expect_bad(const char *header, size_t data, const char *phrase)
{
    unsigned char b[4096];
    size_t n = image(b, header, data);
    struct tensorfile *f;
    struct rt_error err;
    assert_int_equal(tensorfile_memory(b, n, "x.st", &f, &err), RT_user);
    assert_null(f);
    if (!strstr(err.text, phrase) || !strstr(err.text, "x.st"))
        fail_msg("'%s' does not say '%s'", err.text, phrase);
}

#define T(name, dtype, shape, a, b) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #a "," #b "]}"

static void tensorfile_refuses(void **state)
{
    (void)state;
    expect_bad("[1]", 0, "start with {");
    expect_bad("", 0, "start with {");
    expect_bad("{", 0, "header");
    expect_bad("{} x", 0, "header");
    expect_bad("{\"a\xff\":1}", 0, "header");
    expect_bad("{\"a\":1}", 0, "'a': its entry is not an object");
    expect_bad("{" T("a", "F32", "[1]", 0, 4) "," T("a", "F32", "[1]", 0, 4) "}", 4, "header");
    expect_bad("{" T("a", "F33", "[1]", 0, 4) "}", 4, "unknown dtype");
    expect_bad("{" T("a", "F32", "[2]", 0, 4) "}", 4, "do not fit");
    expect_bad("{" T("a", "F32", "[1]", 0, 4) "}", 3, "beyond the end");
    expect_bad("{" T("a", "F32", "[1]", 0, 4) "}", 5, "after the last tensor");
    expect_bad("{" T("a", "F32", "[1]", 4, 8) "}", 8, "gap");
    expect_bad("{" T("a", "F32", "[1]", 0, 4) "," T("b", "F32", "[1]", 8, 12) "}", 12, "gap");
    expect_bad("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[1]", 4, 8) "}", 8, "overlap");
    expect_bad("{" T("a", "F32", "[-1]", 0, 4) "}", 4, "not a count");
    expect_bad("{" T("a", "F32", "[1.0]", 0, 4) "}", 4, "not a count");
    expect_bad("{" T("a", "F32", "[4611686018427387905]", 0, 4) "}", 4, "overflows");
    expect_bad("{" T("a", "F32", "[4294967296,4294967296]", 0, 0) "}", 0, "overflows");
    expect_bad("{" T("a", "F32", "[4294967296,4294967296,0]", 0, 0) "}", 0, "overflows");
    expect_bad("{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", 4, "8 dimensions");
    expect_bad("{" T("a", "F32", "[1]", 4, 0) "}", 4, "not a range");
    expect_bad("{" T("a", "F32", "[1]", -4, 0) "}", 4, "not a range");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[0]}}", 0, "dtype, shape and data_offsets");
    expect_bad("{\"__metadata__\":{\"a\":1}}", 0, "non-string");
    unsigned char b[64] = {255, 255, 255, 255, 255, 255, 255, 255, '{'};
    struct tensorfile *f;
    struct rt_error err;
    assert_int_equal(tensorfile_memory(b, 64, "x", &f, &err), RT_user);
    assert_int_equal(tensorfile_memory(b, 7, "x", &f, &err), RT_user);
    assert_int_equal(tensorfile_open(in_dir("absent"), &f, &err), RT_user);
    assert_non_null(strstr(err.text, "absent"));
}

static void tensorfile_values(void **state)
{
    (void)state;
    /* an odd header length leaves the data unaligned */
    unsigned char b[512];
    size_t n = image(
        b,
        "{" T("h", "F16", "[5]", 0, 10) "," T("z", "F32", "[0,3]", 10, 10) "," T(
            "d", "F64", "[]", 10, 18) "," T("b", "BF16", "[2]", 18,
                                            22) "," T("i", "I32", "[1]", 22,
                                                      26) ", \"__metadata__\":{\"k\":\"v\"}}  ",
        26);
    const uint16_t half[5] = {0x3c00, 0xc000, 0x0001, 0x7c00, 0x83ff}, brain[2] = {0x3f80, 0xc040};
    const double d = 1e300;
    memcpy(b + n - 26, half, 10), memcpy(b + n - 16, &d, 8), memcpy(b + n - 8, brain, 4);
    struct tensorfile *f;
    struct rt_error err;
    assert_int_equal(tensorfile_memory(b, n, "x", &f, &err), RT_ok);
    assert_int_equal(tensorfile_count(f), 5);
    assert_string_equal(tensorfile_metadata(f, "k"), "v");
    assert_null(tensorfile_metadata(f, "w"));
    float x[5];
    assert_int_equal(tf_read_f32(tensorfile_find(f, "h"), 0, 5, x, &err), RT_ok);
    assert_true(x[0] == 1 && x[1] == -2 && x[2] == 0x1p-24f && isinf(x[3]) && x[4] == -0x3ffp-24f);
    assert_int_equal(tf_read_f32(tensorfile_find(f, "b"), 1, 1, x, &err), RT_ok);
    assert_true(x[0] == -3);
    assert_int_equal(tf_read_f32(tensorfile_find(f, "d"), 0, 1, x, &err), RT_ok);
    assert_true(isinf(x[0]));
    assert_int_equal(tf_read_f32(tensorfile_find(f, "i"), 0, 1, x, &err), RT_user);
    assert_int_equal(tensorfile_find(f, "z")->count, 0);
    assert_null(tensorfile_find(f, "y"));
    char text[32];
    assert_string_equal(tf_shape_text(tensorfile_find(f, "z"), text, sizeof text), "[0, 3]");
    tensorfile_close(f);
}

static const float values[6] = {1, 2, 3, 4, 5, 6};
static const struct tf_tensor sample[] = {
    {.name = "w\"\xc3\xa9", .dtype = TF_F32, .rank = 2, .shape = {2, 3}, .data = values},
    {.name = "none", .dtype = TF_F32, .rank = 1, .shape = {0}},
    {.name = "bytes", .dtype = TF_U8, .rank = 1, .shape = {3}, .data = "abc"},
};

static const void *give(void *ctx, size_t i)
{
    ++*(int *)ctx;
    return sample[i].data;
}

static void tensorfile_round_trip(void **state)
{
    (void)state;
    struct tf_meta meta = {"format", "pt"};
    int given = 0;
    struct tf_content c = {sample, 3, &meta, 1, give, &given};
    struct rt_error err;
    struct tensorfile *f;
    assert_int_equal(tensorfile_write(in_dir("a.safetensors"), &c, &err), RT_ok);
    assert_int_equal(given, 3);
    assert_int_equal(tensorfile_open(in_dir("a.safetensors"), &f, &err), RT_ok);
    assert_int_equal(tensorfile_count(f), 3);
    const struct tf_tensor *t = tensorfile_find(f, sample[0].name);
    assert_int_equal(t->rank, 2);
    assert_memory_equal(t->data, values, sizeof values);
    assert_int_equal((uintptr_t)t->data % 64, 0);
    assert_string_equal(tensorfile_metadata(f, "format"), "pt");
    assert_memory_equal(tensorfile_find(f, "bytes")->data, "abc", 3);
    tensorfile_close(f);
    assert_int_equal(tensorfile_write(in_dir("no/such/folder"), &c, &err), RT_user);
    if (access("/dev/full", W_OK) == 0) {
        FILE *full = fopen("/dev/full", "w");
        assert_int_equal(tensorfile_write_fd(fileno(full), "/dev/full", &c, &err), RT_machine);
        assert_non_null(strstr(err.text, "No space"));
        fclose(full);
    }
}

static void expect_folder(const char *index, enum rt_status want, const char *phrase)
{
    put(in_dir("hf/model.safetensors.index.json"), index, strlen(index));
    struct tensorfile *f;
    struct rt_error err = {""};
    enum rt_status r = tensorfile_open(in_dir("hf"), &f, &err);
    if (r != want || !strstr(err.text, phrase)) fail_msg("%d '%s'", r, err.text);
    if (want == RT_ok) {
        assert_int_equal(tensorfile_count(f), 3);
        assert_non_null(strstr(tensorfile_find(f, "bytes")->file, "hf/2.safetensors"));
    }
    tensorfile_close(f);
}

static void tensorfile_folders(void **state)
{
    (void)state;
    struct rt_error err;
    struct tensorfile *f;
    io_mkdirs(in_dir("hf"));
    assert_int_equal(tensorfile_open(in_dir("hf"), &f, &err), RT_user);
    struct tf_content one = {.tensors = sample, .count = 2},
                      two = {.tensors = sample + 2, .count = 1};
    assert_int_equal(tensorfile_write(in_dir("hf/1.safetensors"), &one, &err), RT_ok);
    assert_int_equal(tensorfile_write(in_dir("hf/2.safetensors"), &two, &err), RT_ok);
    assert_int_equal(tensorfile_write(in_dir("hf/model.safetensors"), &two, &err), RT_ok);
    assert_int_equal(tensorfile_open(in_dir("hf"), &f, &err), RT_ok);
    assert_int_equal(tensorfile_count(f), 1);
    tensorfile_close(f);
#define W(a, b) "{\"weight_map\":{\"w\\\"\xc3\xa9\":\"" a "\",\"none\":\"1.safetensors\"" b "}}"
    expect_folder(W("1.safetensors", ",\"bytes\":\"2.safetensors\""), RT_ok, "");
    expect_folder(W("2.safetensors", ",\"bytes\":\"2.safetensors\""), RT_user, "does not list");
    expect_folder(W("1.safetensors", ",\"bytes\":\"../2.safetensors\""), RT_user, "plain file");
    expect_folder(W("1.safetensors", ",\"bytes\":\"3.safetensors\""), RT_user, "cannot read");
    expect_folder(W("1.safetensors", ",\"bytes\":\"2.safetensors\",\"x\":\"1.safetensors\""),
                  RT_user, "does not hold");
    expect_folder(W("1.safetensors", ",\"bytes\":\"2.safetensors\",\"bytes\":\"2.safetensors\""),
                  RT_user, "JSON");
    expect_folder("{}", RT_user, "weight_map");
}

static void tensorfile_real(void **state)
{
    (void)state;
    struct tensorfile *f;
    struct rt_error err;
    const char *path = shared_data("models/stories260K.safetensors");
    if (!path) skip();
    assert_int_equal(tensorfile_open(path, &f, &err), RT_ok);
    const struct tf_tensor *t = tensorfile_find(f, "model.embed_tokens.weight");
    assert_non_null(t);
    assert_int_equal(t->shape[0], 512);
    assert_int_equal(t->shape[1], 64);
    tensorfile_close(f);
}

/* ---- npy ---- */

static size_t npy_image(unsigned char *out, int version, const char *dict, size_t data)
{
    size_t n = strlen(dict), at = version == 1 ? 10 : 12;
    memcpy(out, "\x93NUMPY", 6);
    out[6] = (unsigned char)version, out[7] = 0;
    out[8] = (unsigned char)n, out[9] = (unsigned char)(n >> 8), out[10] = out[11] = 0;
    memcpy(out + at, dict, n);
    for (size_t i = 0; i < data; i++) out[at + n + i] = (unsigned char)(i + 1);
    return at + n + data;
}

static void expect_bad_npy(const char *dict, size_t data, const char *phrase)
{
    unsigned char b[512];
    struct npy a;
    struct rt_error err;
    assert_int_equal(npy_memory(b, npy_image(b, 1, dict, data), "x.npy", &a, &err), RT_user);
    if (!strstr(err.text, phrase)) fail_msg("'%s' does not say '%s'", err.text, phrase);
}

#define D(descr, order, shape) \
    "{'descr': '" descr "', 'fortran_order': " order ", 'shape': " shape ", }"

static void npy_refuses(void **state)
{
    (void)state;
    expect_bad_npy(D("<i4", "False", "(2,)"), 7, "shorter");
    expect_bad_npy(D("<i4", "False", "(2,)"), 9, "longer");
    expect_bad_npy(D(">i4", "False", "(2,)"), 8, "big-endian");
    expect_bad_npy(D("<c8", "False", "(1,)"), 8, "type");
    expect_bad_npy(D("<i4", "True", "(1, 2)"), 8, "Fortran");
    expect_bad_npy(D("<i4", "Maybe", "(2,)"), 8, "fortran_order");
    expect_bad_npy(D("<i4", "False", "(-2,)"), 8, "count");
    expect_bad_npy(D("<i4", "False", "(9223372036854775808,)"), 8, "count");
    expect_bad_npy(D("<i4", "False", "(4294967296, 4294967296)"), 0, "overflows");
    expect_bad_npy(D("<i4", "False", "(4611686018427387904,)"), 0, "overflows");
    expect_bad_npy(D("<i4", "False", "(1, 1, 1, 1, 1)"), 4, "4 dimensions");
    expect_bad_npy(D("<i4", "False", "(2,)") " x", 8, "after");
    expect_bad_npy("{'descr': '<i4', 'shape': (2,)}", 8, "lacks");
    expect_bad_npy("{'descr': '<i4', 'descr': '<i4'}", 8, "repeated");
    expect_bad_npy("{'descr': [('a', '<i4')]}", 8, "plain type");
    expect_bad_npy("{'descr", 0, "dictionary");
    expect_bad_npy("", 0, "dictionary");
    unsigned char b[64] = "\x93NUMPY\x04\x00";
    struct npy a;
    assert_int_equal(npy_memory(b, 64, "x", &a, NULL), RT_user);
    assert_int_equal(npy_memory(b, 3, "x", &a, NULL), RT_user);
    assert_int_equal(npy_memory("\x93NUMPY\x02\x00\x00\x00", 10, "x", &a, NULL), RT_user);
    assert_int_equal(npy_memory("\x93NUMPY\x01\x00\xff\xff", 10, "x", &a, NULL), RT_user);
}

static void npy_reads(void **state)
{
    (void)state;
    unsigned char b[512];
    struct npy a;
    struct rt_error err;
    for (int version = 1; version <= 3; version++) {
        size_t n = npy_image(b, version, D("<u2", "False", "(2, 3)") "   \n", 12);
        assert_int_equal(npy_memory(b, n, "x", &a, &err), RT_ok);
        assert_true(a.type == NPY_u16 && a.rank == 2 && a.shape[1] == 3 && a.count == 6);
        assert_int_equal(npy_int(&a, 5), 0x0c0b);
    }
    assert_int_equal(npy_memory(b, npy_image(b, 1, D("<i8", "True", "(1,)"), 8), "x", &a, &err),
                     RT_ok);
    assert_true(npy_int(&a, 0) == 0x0807060504030201);
    assert_int_equal(npy_memory(b, npy_image(b, 1, D("|u1", "False", "()"), 1), "x", &a, &err),
                     RT_ok);
    assert_true(a.count == 1 && npy_int(&a, 0) == 1);
}

static void npy_round_trip(void **state)
{
    (void)state;
    const int32_t ids[6] = {1, -2, 3, INT32_MAX, INT32_MIN, 0};
    const float x[6] = {1, -2.5f, 3, 4, 5, NAN};
    struct npy a;
    struct rt_error err;
    assert_int_equal(npy_write_i32(in_dir("i.npy"), ids, 1, (int64_t[]){6}, &err), RT_ok);
    assert_int_equal(npy_open(in_dir("i.npy"), &a, &err), RT_ok);
    assert_true(a.rank == 1 && a.count == 6 && (uintptr_t)a.data % 64 == 0);
    for (size_t i = 0; i < 6; i++) assert_int_equal(npy_int(&a, i), ids[i]);
    npy_close(&a);
    assert_int_equal(npy_write_f32(in_dir("f.npy"), x, 3, (int64_t[]){1, 2, 3}, &err), RT_ok);
    assert_int_equal(npy_open(in_dir("f.npy"), &a, &err), RT_ok);
    assert_true(a.type == NPY_f32 && a.rank == 3 && a.shape[2] == 3 && npy_float(&a, 1) == -2.5f);
    npy_close(&a);
    assert_int_equal(npy_write_i32("/dev/full", ids, 1, (int64_t[]){6}, &err), RT_machine);
    assert_int_equal(npy_write_i32("/dev/null", ids, 1, (int64_t[]){6}, &err), RT_ok);
    assert_true(io_special("/dev/full") && io_special("/dev/null"));
    assert_int_equal(npy_write_i32(in_dir(""), ids, 1, (int64_t[]){6}, &err), RT_user);
    put(in_dir("empty.npy"), "", 0);
    assert_int_equal(npy_open(in_dir("empty.npy"), &a, &err), RT_user);
    assert_int_equal(npy_open(in_dir("absent.npy"), &a, &err), RT_user);
    npy_close(&a);
}

static void npy_real(void **state)
{
    (void)state;
    struct npy a;
    struct rt_error err;
    const char *path = shared_data("models/stories260K.eval.npy");
    if (!path) skip();
    assert_int_equal(npy_open(path, &a, &err), RT_ok);
    assert_true(a.type == NPY_i32 && a.rank == 2 && a.shape[0] == 32 && a.shape[1] == 506);
    size_t targets = 0;
    for (size_t i = 0; i < a.count; i++) targets += i % 506 && npy_int(&a, i) >= 0;
    assert_int_equal(npy_int(&a, 0), 1);
    assert_int_equal(targets, 10567);
    npy_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensorfile_refuses),
        cmocka_unit_test(tensorfile_values),
        cmocka_unit_test(tensorfile_round_trip),
        cmocka_unit_test(tensorfile_folders),
        cmocka_unit_test(tensorfile_real),
        cmocka_unit_test(npy_refuses),
        cmocka_unit_test(npy_reads),
        cmocka_unit_test(npy_round_trip),
        cmocka_unit_test(npy_real),
    };
    if (!scratch_open()) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_close();
    return failed;
}
