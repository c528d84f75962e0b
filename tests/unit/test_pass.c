/* The pass manager with passes of the test's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compiler/pipeline.h"
#include "scratch.h"
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static struct ir_graph *copy(struct pass_ctx *c, const struct ir_graph *g, enum ir_stage stage)
{
    struct ir_graph *out = graph_open(c->arena, g->program, stage, g->types, g->names);
    ir_id *map = NEW(c->arena, ir_id, g->node.n), src[8];
    for (ir_id n = 0; n < g->node.n; n++) {
        for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) src[i] = map[ir_src(g, n, i)];
        map[n] = ir_copy(out, g, n, src);
    }
    for (size_t i = 0; i < g->out.n; i++)
        ir_output(out, intern_text(g->names, g->out.p[i].name), map[g->out.p[i].id]);
    return out;
}

static struct ir_graph *same(struct pass_ctx *c, const struct ir_graph *g)
{
    return copy(c, g, STAGE_T);
}

/* Adds an output n<number of outputs>. */
static struct ir_graph *grow(struct pass_ctx *c, const struct ir_graph *g)
{
    struct ir_graph *out = copy(c, g, STAGE_T);
    ir_output(out, str_fmt(c->arena, "n%zu", g->out.n), g->out.p[0].id);
    if (c->report) sb_str(c->report, "grown\n");
    return out;
}

static struct ir_graph *kernels(struct pass_ctx *c, const struct ir_graph *g)
{
    struct ir_graph *out = copy(c, g, STAGE_K);
    if (c->unfused) ir_output(out, "unfused", g->out.p[0].id);
    return out;
}

static struct ir_graph *refuse(struct pass_ctx *c, const struct ir_graph *g)
{
    (void)g;
    diag_add(c->diag, D_plain, (struct span){0}, "refused");
    return NULL;
}

static struct ir_graph *broken(struct pass_ctx *c, const struct ir_graph *g)
{
    (void)c, (void)g;
    BUG("broken on purpose");
}

static const struct pass_row rows[] = {
    {"same", same, STAGE_T, STAGE_T, true, ""},
    {"grow", grow, STAGE_T, STAGE_T, true, ""},
    {"kernels", kernels, STAGE_T, STAGE_K, true, ""},
    {"refuse", refuse, STAGE_T, STAGE_T, true, ""},
    {"broken", broken, STAGE_T, STAGE_T, false, ""},
};

struct world {
    struct arena *a;
    struct pass_ctx c;
    const struct ir_graph *g;
};

static struct world open_world(void)
{
    struct world w = {.a = arena_open("test")};
    w.c = (struct pass_ctx){.arena = w.a, .diag = diag_open(w.a), .bind = {1, 4}};
    static const char text[] = "graph p stage T\n"
                               "%x : f32[N,8] = input {name=x}\n"
                               "%y : f32[N,8] = add %x, %x\n"
                               "out y = %y\n";
    w.g = graph_parse(w.a, w.c.diag, diag_file(w.c.diag, "p", STR(text)), STR(text), NULL, NULL);
    assert_non_null(w.g);
    return w;
}

static struct ir_graph *run(struct world *w, struct pipeline_options o, size_t nrows)
{
    return pipeline_run(&w->c, &o, rows, nrows, w->g);
}

static void default_order_is_row_order(void **state)
{
    (void)state;
    struct world w = open_world();
    struct sb times = {0}, report = {0};
    struct ir_graph *g = run(&w, (struct pipeline_options){.times = &times, .report = &report}, 3);
    assert_int_equal(g->stage, STAGE_K);
    assert_int_equal(g->out.n, 2);
    assert_string_equal(report.p, "grown\n");
    const char *a = strstr(times.p, "same"), *b = strstr(times.p, "grow"),
               *c = strstr(times.p, "kern");
    assert_true(a && b && c && a < b && b < c);
    assert_int_equal(w.g->out.n, 1);
    sb_free(&times);
    sb_free(&report);
    arena_close(w.a);
}

static void lists_skip_and_limit(void **state)
{
    (void)state;
    struct world w = open_world();
    assert_int_equal(run(&w, (struct pipeline_options){.passes = "grow,grow,grow"}, 5)->out.n, 4);
    assert_int_equal(run(&w, (struct pipeline_options){.skip = "grow"}, 3)->out.n, 1);
    assert_int_not_equal(
        ir_find_output(run(&w, (struct pipeline_options){.skip = "kernels"}, 3), "unfused"),
        IR_NONE);
    struct pipeline_options o = {.passes = "grow,grow,grow,kernels", .limited = true};
    for (o.pass_limit = 0; o.pass_limit < 5; o.pass_limit++) {
        struct ir_graph *g = run(&w, o, 5);
        assert_int_equal(g->stage, STAGE_K);
        bool unfused = ir_find_output(g, "unfused") != IR_NONE;
        assert_int_equal(unfused, o.pass_limit < 4);
        assert_int_equal(g->out.n, 1 + (o.pass_limit < 3 ? o.pass_limit : 3) + unfused);
    }
    arena_close(w.a);
}

static void dumps_are_texts(void **state)
{
    (void)state;
    struct world w = open_world();
    struct sb d = {0};
    struct pipeline_options o = {
        .dump_ir = "before:grow,after:all", .dump = &d, .roundtrip_each = true};
    assert_non_null(run(&w, o, 3));
    assert_non_null(
        strstr(d.p, "; after same: p (unchanged)\n; before grow: p\ngraph p stage T\n"));
    assert_non_null(strstr(d.p, "; after kernels: p\ngraph p stage K\n"));
    assert_null(strstr(d.p, "before same"));
    sb_free(&d);
    o.dump_dir = in_dir("dumps");
    assert_non_null(run(&w, o, 3));
    struct str text;
    assert_int_equal(io_read(w.a, in_dir("dumps/p-01-after-grow.ir"), 1 << 20, &text), 0);
    assert_non_null(graph_parse(w.a, w.c.diag, diag_file(w.c.diag, "d", text), text, NULL, NULL));
    arena_close(w.a);
}

static void expect(struct pipeline_options o, const char *message)
{
    struct world w = open_world();
    struct sb s = {0};
    assert_null(run(&w, o, 5));
    diag_print(w.c.diag, &s);
    if (!strstr(s.p, message)) fail_msg("'%s' is not in: %s", message, s.p);
    sb_free(&s);
    arena_close(w.a);
}

static void mistakes_are_diagnostics(void **state)
{
    (void)state;
    struct sb d = {0};
    expect((struct pipeline_options){.passes = "gro"}, "Did you mean 'grow'?");
    expect((struct pipeline_options){.skip = "nothing-like-it"}, "no pass is named");
    expect((struct pipeline_options){.skip = "broken"}, "cannot be skipped");
    expect((struct pipeline_options){.passes = "kernels,grow"}, "does not take");
    expect((struct pipeline_options){.passes = "refuse"}, "refused");
    expect((struct pipeline_options){.dump_ir = "grow", .dump = &d}, "is not before:PASS");
    sb_free(&d);
}

static void a_bug_leaves_a_reproducer(void **state)
{
    (void)state;
    struct world w = open_world();
    const char *file = in_dir("repro.ir");
    pid_t pid = fork();
    if (!pid) {
        freopen(in_dir("log"), "w", stderr);
        run(&w, (struct pipeline_options){.passes = "grow,broken,kernels", .repro = file}, 5);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(!WIFEXITED(status) || WEXITSTATUS(status) == EXIT_BUG);
    struct str text;
    assert_int_equal(io_read(w.a, file, 1 << 20, &text), 0);
    assert_true(str_starts(text, "; passes: broken,kernels\ngraph p stage T\n"));
    struct ir_graph *g =
        graph_parse(w.a, w.c.diag, diag_file(w.c.diag, "r", text), text, NULL, NULL);
    assert_int_equal(g->out.n, 2);
    arena_close(w.a);
}

static int open_dir(void **state)
{
    (void)state;
    return scratch_open() ? 0 : -1;
}

static int close_dir(void **state)
{
    (void)state;
    scratch_close();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(default_order_is_row_order),
        cmocka_unit_test(lists_skip_and_limit),
        cmocka_unit_test(dumps_are_texts),
        cmocka_unit_test(mistakes_are_diagnostics),
        cmocka_unit_test(a_bug_leaves_a_reproducer),
    };
    return cmocka_run_group_tests(tests, open_dir, close_dir);
}
