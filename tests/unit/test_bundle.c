/* Bundles: what was written is found again behind anything, every damage is told. */
#include "base/io.h"
#include "runtime/bundle.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

static char folder[] = "/tmp/strata-bundle-XXXXXX";

static const char *path_of(struct arena *a, const char *name)
{
    return str_fmt(a, "%s/%s", folder, name);
}

/* `before` bytes, then sections "one" (empty), "two" and "three", whose bytes come in parts. */
static void write_file(const char *path, size_t before, const char *three, size_t n)
{
    struct rt_error err;
    struct outfile f;
    struct bundle_writer *w;
    char head[5000] = "\177ELF";
    assert_int_equal(outfile_open(path, &f, &err), RT_ok);
    assert_int_equal(outfile_write(&f, head, before, &err), RT_ok);
    assert_int_equal(bundle_begin(&f, before, &w, &err), RT_ok);
    assert_int_equal(bundle_section(w, "one", &err), RT_ok);
    assert_int_equal(bundle_section(w, "two", &err), RT_ok);
    assert_int_equal(bundle_write(w, "2", 1, &err), RT_ok);
    assert_int_equal(bundle_section(w, "three", &err), RT_ok);
    assert_int_equal(bundle_write(w, three, n / 3, &err), RT_ok);
    assert_int_equal(bundle_write(w, three + n / 3, n - n / 3, &err), RT_ok);
    assert_int_equal(bundle_end(w, &err), RT_ok);
    bundle_writer_close(w);
    assert_int_equal(outfile_commit(&f, &err), RT_ok);
}

static void round_trip(void **state)
{
    (void)state;
    struct arena *a = arena_open("bundle");
    const char *path = path_of(a, "file");
    struct bundle b;
    struct rt_error err;
    char three[10000];
    for (size_t i = 0; i < sizeof three; i++) three[i] = (char)(i * 7);
    static const size_t before[] = {0, 1, 4096, 5000};
    for (int i = 0; i < 4; i++) {
        write_file(path, before[i], three, sizeof three);
        assert_int_equal(bundle_open(path, &b, &err), RT_ok);
        assert_int_equal(b.n, 3);
        assert_int_equal(b.begin, (before[i] + 4095) / 4096 * 4096);
        assert_int_equal(bundle_find(&b, "one")->bytes, 0);
        const struct bundle_section *s = bundle_find(&b, "three");
        assert_int_equal(s->bytes, sizeof three);
        assert_int_equal((uintptr_t)s->p % 4096, 0);
        assert_memory_equal(s->p, three, sizeof three);
        for (size_t k = 0; k < b.n; k++) assert_true(bundle_whole(&b.section[k]));
        assert_null(bundle_find(&b, "four"));
        bundle_close(&b);
    }
    arena_close(a);
}

/* Every cut, and every changed byte of table and trailer, is an error; of a section, its hash. */
static void damage(void **state)
{
    (void)state;
    struct arena *a = arena_open("bundle");
    const char *path = path_of(a, "damaged");
    struct bundle b;
    struct rt_error err;
    struct str s;
    write_file(path, 10, "three", 5);
    assert_int_equal(io_read(a, path, 1 << 20, &s), 0);
    for (size_t n = 0; n < s.n; n++)
        assert_int_equal(bundle_parse(s.p, n, "cut", &b, &err), RT_user);
    char *bytes = (char *)s.p;
    size_t table = s.n - BUNDLE_TRAILER - 3 * BUNDLE_ROW;
    for (size_t i = 0; i < s.n - 16; i++) { /* the last bytes mean nothing */
        bytes[i] ^= 1;
        enum rt_status st = bundle_parse(s.p, s.n, "changed", &b, &err);
        assert_int_equal(st, i < table ? RT_ok : RT_user);
        if (i >= 3 * BUNDLE_ALIGN && i < table)
            assert_false(bundle_whole(bundle_find(&b, "three")));
        bytes[i] ^= 1;
    }
    assert_int_equal(bundle_parse(s.p, s.n, "whole", &b, &err), RT_ok);
    arena_close(a);
}

/* The file may be far larger than memory: only what is looked at is read. */
static void sparse(void **state)
{
    (void)state;
    struct arena *a = arena_open("bundle");
    const char *path = path_of(a, "sparse");
    struct rt_error err;
    struct bundle b;
    const uint64_t before = 5ull << 30;
    struct outfile f;
    struct bundle_writer *w;
    assert_int_equal(outfile_open(path, &f, &err), RT_ok);
    assert_int_equal(lseek(f.fd, (off_t)before, SEEK_SET), (off_t)before);
    assert_int_equal(bundle_begin(&f, before, &w, &err), RT_ok);
    assert_int_equal(bundle_section(w, "x", &err), RT_ok);
    assert_int_equal(bundle_write(w, "behind 5 GB", 11, &err), RT_ok);
    assert_int_equal(bundle_end(w, &err), RT_ok);
    bundle_writer_close(w);
    assert_int_equal(outfile_commit(&f, &err), RT_ok);
    assert_int_equal(bundle_open(path, &b, &err), RT_ok);
    assert_memory_equal(bundle_find(&b, "x")->p, "behind 5 GB", 11);
    bundle_close(&b);
    arena_close(a);
}

static void own_path(void **state)
{
    (void)state;
    assert_int_equal(access(bundle_own_path(), R_OK), 0);
}

static int clean(void **state)
{
    (void)state;
    return io_remove_tree(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(round_trip), cmocka_unit_test(damage),
                                       cmocka_unit_test(sparse), cmocka_unit_test(own_path)};
    if (!mkdtemp(folder)) return 1;
    return cmocka_run_group_tests(tests, NULL, clean);
}
