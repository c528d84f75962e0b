/* The spec front end: valid specs and the round trip of the canonical text. */
#include "compiler/model.h"
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <cmocka.h>

static struct model *load(struct arena *a, const char *path, const struct spec_options *opt)
{
    struct diag *d = diag_open(a);
    struct model *m = spec_load(a, d, path, opt);
    struct sb out = {0};
    diag_print(d, &out);
    if (!m) fprintf(stderr, "%s\n", out.p ? out.p : "no model and no message");
    sb_free(&out);
    return m;
}

static void test_valid(void **state)
{
    (void)state;
    glob_t g;
    assert_int_equal(glob("specs/*.yaml", 0, NULL, &g), 0);
    assert_int_equal(glob("examples/*/*.yaml", GLOB_APPEND, NULL, &g), 0);
    for (size_t i = 0; i < g.gl_pathc; i++) {
        struct arena *a = arena_open("test");
        struct model *m = load(a, g.gl_pathv[i], NULL);
        assert_non_null(m);
        struct diag *d = diag_open(a);
        struct model *again = spec_parse(a, d, g.gl_pathv[i], str_of(m->canonical), NULL);
        assert_non_null(again);
        assert_string_equal(again->canonical, m->canonical);
        arena_close(a);
    }
    globfree(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_valid)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
