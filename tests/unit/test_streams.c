/* compiler/streams.h: what a GPU runs side by side touches nothing of each other. That the bits
 * stay the same in other orders is seen in test_gpu. */
#include "compiler/build.h"
#include "compiler/cli.h"
#include "compiler/run.h"
#include "compiler/streams.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

struct planned {
    struct cli c;
    struct run r;
    struct plan *plan;
};

/* The plan of a program of a spec for an H200: train, apply or decode. */
static struct planned *planned(const char *spec, const char *program, int64_t B, int64_t T)
{
    struct arena *a = arena_open("streams");
    struct planned *x = NEW(a, struct planned, 1);
    const struct run_options o = {.gpu = "sm_90a", .no_library = !strcmp(program, "decode")};
    const struct build_options sizes = {.pages = 64, .states = 4, .context = 1024};
    x->c.arena = a, x->c.diag = diag_open(a);
    run_open(&x->r, &x->c, cli_model(&x->c, spec), &o);
    if (!strcmp(program, "apply")) {
        struct ir_graph *g = build_apply(a, x->r.model, x->r.params);
        x->plan = run_plan(&x->r, g, "apply", 1, 1);
    } else {
        enum build_program which = strcmp(program, "train") ? BUILD_decode : BUILD_train;
        x->plan = run_model_plan(&x->r, which, &sizes, B, T);
    }
    return x;
}

static void planned_close(struct planned *x)
{
    run_close(&x->r);
    arena_close(x->c.arena);
}

static void check(const char *spec, const char *program, int64_t B, int64_t T)
{
    struct planned *x = planned(spec, program, B, T);
    const struct lowered *l = plan_lowered(x->plan);
    const char *why = streams_check(l, x->c.arena);
    if (why) fail_msg("%s, %s: %s", spec, program, why);
    printf("%s, %s: %u of %u steps beside, %u waits\n", spec, program, streams_beside(l),
           l->plan.num_steps, l->plan.num_waits);
    assert_true(streams_beside(l) > 0 && streams_beside(l) < l->plan.num_steps);
    planned_close(x);
}

static void specs(void **state)
{
    (void)state;
    check("specs/gpu-step.yaml", "train", 2, 64);
    check("specs/gpu-step-standard.yaml", "train", 2, 64);
    check("specs/gpu-step.yaml", "apply", 1, 1);
    check("specs/kimi-tiny.yaml", "train", 3, 40);
    check("specs/kimi-tiny.yaml", "apply", 1, 1);
    check("specs/mini-k3.yaml", "train", 1, 64);
    check("specs/mini-k3.yaml", "decode", 1, 1);
    check("specs/serve-125m.yaml", "decode", 4, 1);
}

/* No wait of a plan is there for nothing, and the check misses none. */
static void every_wait_counts(void **state)
{
    (void)state;
    struct planned *x = planned("specs/kimi-tiny.yaml", "train", 2, 20);
    const struct lowered *l = plan_lowered(x->plan);
    size_t n = 0;
    for (uint32_t i = 0; i < l->plan.num_steps; i++) {
        uint32_t waits = l->step[i].num_waits;
        if (!waits) continue;
        l->step[i].num_waits = 0;
        if (!streams_check(l, x->c.arena)) fail_msg("step %u need not wait", i);
        l->step[i].num_waits = waits;
        n++;
    }
    assert_true(n > 10);
    assert_null(streams_check(l, x->c.arena));
    planned_close(x);
}

/* One stream is a plan without waits. */
static void one(void **state)
{
    (void)state;
    struct planned *x = planned("specs/kimi-tiny.yaml", "train", 2, 20);
    struct lowered l = *plan_lowered(x->plan);
    streams_assign(x->c.arena, &l, 1);
    assert_int_equal(streams_beside(&l), 0);
    assert_int_equal(l.plan.num_waits, 0);
    planned_close(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(specs), cmocka_unit_test(every_wait_counts),
                                       cmocka_unit_test(one)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
