/* Plans to bytes and back: what is read runs like what was written, for every kind of model; bytes
 * that were changed or cut are refused or harmless, never a crash. */
#include "compiler/program.h"
#include "fixture.h"
#include "runtime/lm_plan.h"
#include "runtime/mem.h"
#include "runtime/plan_file.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

/* The decode plans of a model, for one sequence of 1, 16 and 256 tokens and for four of one. */
static size_t plans_of(struct arena *a, const struct fixture *f, const char *gpu,
                       struct session **s, struct plan_item **out)
{
    static const int64_t size[][2] = {{1, 1}, {4, 1}, {1, 16}, {1, 256}};
    enum { N = sizeof size / sizeof *size };
    struct rt_error err;
    const struct build_options b = {.pages = 32, .states = 4, .context = 512};
    CHECK(!session_open(&(struct session_options){.gpu = gpu, .no_library = true}, s, &err));
    struct program *p = program_open(*s, build_model(a, f->model, f->params, BUILD_decode, &b),
                                     "decode", (struct ir_bind){1, 1});
    CHECK(p);
    *out = NEW(a, struct plan_item, N);
    for (int i = 0; i < N; i++)
        (*out)[i] = (struct plan_item){size[i][0], size[i][1],
                                       plan_lowered(program_plan(p, size[i][0], size[i][1]))->plan};
    return N;
}

static void same_buf(struct sa_buf a, struct sa_buf b)
{
    assert_int_equal(a.arena, b.arena);
    assert_int_equal(a.offset, b.offset);
}

static void same_step(const struct sa_plan *p, const struct sa_plan *q, uint32_t i)
{
    const struct sa_step *s = &p->steps[i], *t = &q->steps[i];
    assert_string_equal(s->label, t->label);
    assert_int_equal(s->kernel == SA_PRODUCT, t->kernel == SA_PRODUCT);
    if (s->kernel != SA_PRODUCT)
        assert_string_equal(p->kernels[s->kernel].symbol, q->kernels[t->kernel].symbol);
    assert_int_equal(s->items, t->items);
    assert_int_equal(s->grain, t->grain);
    assert_int_equal(s->scratch_bytes, t->scratch_bytes);
    assert_int_equal(s->num_bufs, t->num_bufs);
    assert_int_equal(s->num_ints, t->num_ints);
    for (uint32_t k = 0; k < s->num_bufs; k++)
        same_buf(p->bufs[s->first_buf + k], q->bufs[t->first_buf + k]);
    for (uint32_t k = 0; k < s->num_ints; k++)
        assert_int_equal(p->ints[s->first_int + k], q->ints[t->first_int + k]);
    for (int k = 0; k < 3; k++) assert_int_equal(s->launch.grid[k], t->launch.grid[k]);
    assert_int_equal(s->launch.threads, t->launch.threads);
    assert_int_equal(s->launch.shared, t->launch.shared);
    assert_int_equal(s->stream, t->stream);
    assert_int_equal(s->num_waits, t->num_waits);
    for (uint32_t k = 0; k < s->num_waits; k++)
        assert_int_equal(p->waits[s->first_wait + k], q->waits[t->first_wait + k]);
}

static void same_plan(const struct sa_plan *p, const struct sa_plan *q)
{
    assert_int_equal(p->num_steps, q->num_steps);
    for (uint32_t i = 0; i < p->num_steps; i++) same_step(p, q, i);
    assert_int_equal(p->num_values, q->num_values);
    for (uint32_t i = 0; i < p->num_values; i++) {
        const struct sa_value *v = &p->values[i], *w = &q->values[i];
        assert_string_equal(v->name, w->name);
        assert_int_equal(v->dtype, w->dtype);
        assert_int_equal(v->rank, w->rank);
        for (uint32_t d = 0; d < v->rank; d++) assert_int_equal(v->dims[d], w->dims[d]);
        same_buf(v->at, w->at);
    }
    assert_int_equal(p->num_entries, q->num_entries);
    for (uint32_t i = 0; i < p->num_entries; i++) {
        assert_string_equal(p->entries[i].name, q->entries[i].name);
        assert_int_equal(p->entries[i].first_step, q->entries[i].first_step);
        assert_int_equal(p->entries[i].num_steps, q->entries[i].num_steps);
    }
    for (int i = 0; i < SA_external; i++) assert_int_equal(p->arena_bytes[i], q->arena_bytes[i]);
}

/* Every cut, and one changed byte at many places. */
static void damage(const struct sb *s)
{
    uint64_t random = 1;
    struct rt_error err;
    struct plan_set set;
    for (size_t n = 0; n < s->n; n += n < 4096 ? 1 : 997) {
        struct arena *a = arena_open("cut");
        assert_int_equal(plan_file_read(a, (struct str){s->p, n}, &set, &err), RT_user);
        arena_close(a);
    }
    for (int i = 0; i < 500; i++) {
        struct arena *a = arena_open("changed");
        random = random * 6364136223846793005u + 1442695040888963407u;
        char *at = &s->p[(random >> 20) % s->n], old = *at;
        *at = (char)(random >> 12);
        (void)!plan_file_read(a, (struct str){s->p, s->n}, &set, &err);
        *at = old;
        arena_close(a);
    }
}

static void round_trip(const char *fixture, const char *gpu)
{
    struct fixture *f = fixture_open(fixture, NULL);
    struct session *session;
    struct plan_item *item;
    struct plan_set set;
    struct rt_error err;
    struct sb s = {0}, again = {0};
    size_t n = plans_of(f->arena, f, gpu, &session, &item);
    plan_file_write(item, n, &s);
    double begin = mem_seconds();
    assert_int_equal(plan_file_read(f->arena, (struct str){s.p, s.n}, &set, &err), RT_ok);
    double seconds = mem_seconds() - begin;
    assert_int_equal(set.n, n);
    for (size_t i = 0; i < n; i++) {
        assert_ptr_equal(plan_set_find(&set, item[i].B, item[i].T), &set.item[i].plan);
        same_plan(&item[i].plan, &set.item[i].plan);
    }
    assert_null(plan_set_find(&set, 3, 3));
    plan_file_write(set.item, n, &again);
    assert_int_equal(again.n, s.n);
    assert_memory_equal(again.p, s.p, s.n);
    print_message("%s: %zu plans, %zu bytes, %u kernels, read in %.2f ms\n", fixture, n, s.n,
                  set.num_code, 1e3 * seconds);
    damage(&s);
    sb_free(&s);
    sb_free(&again);
    session_close(session);
    fixture_close(f);
}

static void all_models(void **state)
{
    (void)state;
    static const char *const names[] = {"attention-gqa-rope", "k3-mini",    "kimi-mini",
                                        "everything",         "moe-latent", "attnres-full"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) round_trip(names[i], NULL);
    round_trip("kimi-mini", "sm_90a"); /* launches instead of items */
}

/* Places of external inputs, and of values of every type, are those of the arena's end. */
static void places(void **state)
{
    (void)state;
    struct arena *a = arena_open("places");
    struct sa_extern external = {"x", 100};
    struct sa_buf buf[] = {{SA_scratch, 64}, {SA_external, 99}, {SA_slot, 7}};
    int64_t num[] = {INT64_MIN, -1, 0, INT64_MAX};
    struct sa_code code = {"k", NULL};
    struct sa_step step = {.num_bufs = 3, .num_ints = 4, .items = 3, .grain = 2, .label = ""};
    struct sa_value value = {"v", SA_f64, 1, {8}, {SA_scratch, 64}};
    struct sa_entry entry = {"e", 0, 1};
    struct plan_item item = {1,
                             1,
                             {.kernels = &code,
                              .steps = &step,
                              .bufs = buf,
                              .ints = num,
                              .entries = &entry,
                              .values = &value,
                              .externs = &external,
                              .num_kernels = 1,
                              .num_steps = 1,
                              .num_bufs = 3,
                              .num_ints = 4,
                              .num_entries = 1,
                              .num_values = 1,
                              .num_externs = 1,
                              .arena_bytes = {[SA_slot] = 7, [SA_scratch] = 128}}};
    struct plan_set set;
    struct rt_error err;
    struct sb s = {0};
    plan_file_write(&item, 1, &s);
    assert_int_equal(plan_file_read(a, (struct str){s.p, s.n}, &set, &err), RT_ok);
    same_plan(&item.plan, &set.item[0].plan);
    sb_free(&s);
    uint64_t *wrong[] = {&buf[0].offset, &buf[1].offset, &buf[2].offset, &value.at.offset};
    static const uint64_t at[] = {129, 101, 8, 65};
    for (int i = 0; i < 4; i++) {
        uint64_t old = *wrong[i];
        *wrong[i] = at[i];
        plan_file_write(&item, 1, &s);
        assert_int_equal(plan_file_read(a, (struct str){s.p, s.n}, &set, &err), RT_user);
        assert_string_equal(err.text, "damaged plans: a place lies outside its arena");
        *wrong[i] = old;
        sb_free(&s);
    }
    arena_close(a);
}

/* Plans that are whole and are no decode programs: an error that names the value, no abort. */
static void false_meaning(void **state)
{
    (void)state;
    enum { VALUES = 8 };
    static const struct sa_value right[VALUES] = {
        {"tokens", SA_i32, 1, {2}, {SA_slot, 0}},
        {"past", SA_i32, 1, {2}, {SA_slot, 64}},
        {"pages", SA_i32, 1, {4}, {SA_slot, 128}},
        {"states", SA_i32, 1, {2}, {SA_slot, 192}},
        {"logits", SA_f32, 2, {2, 8}, {SA_slot, 256}},
        {"cache.page.k", SA_f32, 2, {256, 4}, {SA_persistent, 0}},
        {"cache.state.s", SA_f32, 2, {4, 4}, {SA_persistent, 4096}},
        {"depth.a", SA_f32, 2, {2, 3}, {SA_slot, 320}},
    };
    struct sa_value value[2][VALUES];
    struct sa_entry entry = {"run", 0, 0};
    struct sa_plan plan[2];
    struct lm_plan p[2];
    struct lm_parts parts = {
        .context = 2 * LM_PAGE, .pages = 4, .states = 2, .plan = p, .num_plans = 2};
    struct rt_error err;
    for (int wrong = 0; wrong < 13; wrong++) {
        for (int i = 0; i < 2; i++) {
            memcpy(value[i], right, sizeof right);
            plan[i] = (struct sa_plan){
                .entries = &entry, .num_entries = 1, .values = value[i], .num_values = VALUES};
            p[i] = (struct lm_plan){.B = 2, .T = 1, .plan = &plan[i]};
        }
        const char *says = NULL;
        switch (wrong) {
        case 1: value[1][0].dims[0] = 3, says = "tokens"; break;
        case 2: value[0][0].dtype = SA_f32, says = "tokens"; break;
        case 3: value[0][4].name = "logit", says = "logits"; break;
        case 4: value[0][2].dims[0] = 1, says = "pages"; break;
        case 5: value[1][5].at.offset = 64, says = "cache.page.k"; break;
        case 6: value[0][5].at.arena = SA_slot, says = "cache.page.k"; break;
        case 7: value[0][6].dims[0] = 3, says = "cache.state.s"; break;
        case 8: plan[1].num_values = 7, says = "depth.a"; break;
        case 9: value[0][7].rank = 1, says = "depth.a"; break;
        case 10: plan[0].num_entries = 0, says = "no entry"; break;
        case 11: p[0].B = 0, says = "tokens"; break;
        case 12: value[0][6].rank = 0, says = "cache.state.s"; break;
        }
        if (!says) assert_int_equal(lm_plans_check(&parts, true, &err), RT_ok);
        if (!says) continue;
        assert_int_equal(lm_plans_check(&parts, true, &err), RT_user);
        if (!strstr(err.text, says)) fail_msg("%d: %s", wrong, err.text);
    }
    parts.num_plans = 0;
    assert_int_equal(lm_plans_check(&parts, true, &err), RT_user);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_models), cmocka_unit_test(places),
                                       cmocka_unit_test(false_meaning)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
