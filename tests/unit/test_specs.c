/* The specs of specs/: what their comments say of parameters is what the compiler counts, and the
 * published models have the published numbers. Reference: kimi-linear.md 1 and 10 for Kimi Linear
 * and Kimi K3, arXiv 2307.09288 for Llama 2. */
#include "compiler/cli.h"
#include "compiler/params.h"
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static struct model *model_of(struct arena *a, const char *path)
{
    struct diag *d = diag_open(a);
    struct model *m = spec_load(a, d, path, NULL);
    if (!m) fail_msg("%s is refused", path);
    return m;
}

/* Specs of published or planned sizes say how large they are. */
static void comments_tell_the_counts(void **state)
{
    (void)state;
    glob_t g;
    assert_int_equal(glob("specs/*.yaml", 0, NULL, &g), 0);
    for (size_t i = 0; i < g.gl_pathc; i++) {
        struct arena *a = arena_open("test");
        const char *path = g.gl_pathv[i];
        struct params *ps = params_of(a, model_of(a, path));
        const char *total = cli_count(a, params_total(ps));
        const char *active = cli_count(a, params_active(ps, model_of(a, path)));
        struct str text;
        assert_int_equal(io_read(a, path, 1 << 20, &text), 0);
        if (strstr(text.p, " parameters") && (!strstr(text.p, total) || !strstr(text.p, active)))
            fail_msg("%s: the comment does not tell %s parameters, %s active", path, total, active);
        arena_close(a);
    }
    globfree(&g);
}

static void published_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        int64_t total, active;
    } want[] = {
        {"specs/kimi-linear-48b-a3b.yaml", 49122681728, 3106965888},
        {"specs/kimi-linear-48b-a3b-attnres.yaml", 49122681728 + 253440, 3106965888 + 253440},
        {"specs/dense-7b.yaml", 6738415616, 6738415616 - 32000 * 4096},
        {"specs/dense-13b.yaml", 13015864320, 13015864320 - 32000 * 5120},
    };
    struct arena *a = arena_open("test");
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct model *m = model_of(a, want[i].path);
        struct params *ps = params_of(a, m);
        assert_int_equal(params_total(ps), want[i].total);
        assert_int_equal(params_active(ps, m), want[i].active);
    }
    struct model *k3 = model_of(a, "specs/kimi-k3.yaml");
    struct params *ps = params_of(a, k3);
    assert_int_equal((params_total(ps) + 5000000000) / 10000000000, 278);
    assert_int_equal((params_active(ps, k3) + 50000000) / 100000000, 1042);
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(comments_tell_the_counts),
        cmocka_unit_test(published_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
