/* Language models (runtime/lm.h) opened from specs by compiler/served.h: many sequences at once, in
 * pages and states that are given out at random, each with the bits that it has alone; shared
 * prefixes, copied states, and pages and states that were saved and come back elsewhere. */
#include "compiled.h"
#include "compiler/cuda_units.h"
#include "compiler/objects.h"
#include "compiler/pack.h"
#include "compiler/served.h"
#include "runtime/lm_gpu.h"
#include "runtime/mem.h"
#include "runtime/plan_file.h"
#include "scratch.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

enum { BATCH = 4, PAGES = 23, STATES = 7, CONTEXT = 256, P = CONTEXT / LM_PAGE, SEQS = 5 };
enum { SHARED = 128 }; /* tokens that the last sequences have in common with the first */

struct seq {
    int32_t token[CONTEXT], page[P], state;
    int64_t n, prompt, done;
    float *want; /* [n, vocab]: logits after the prompt and after every later token, alone */
};
struct model_run {
    struct arena *a;
    struct fixture *f;
    struct session *session;
    struct lm *lm;
    const char *device;
    const char *flat;    /* plans and cubins for this architecture, as a file has them */
    enum ir_store store; /* of weights */
    uint64_t random;
    struct seq seq[SEQS];
    bool page_used[PAGES], state_used[STATES];
};

static int64_t draw(struct model_run *r, int64_t limit)
{
    r->random = r->random * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((r->random >> 33) % (uint64_t)limit);
}

/* ---- opening ---- */

/* Cubins of all kernels of the plans. */
static void compile_cubins(struct model_run *r, struct plan *const *plan, size_t n,
                           struct lm_gpu_parts *parts)
{
    struct rt_error err;
    struct object_set s;
    struct nvrtc_image *image;
    object_set_init(&s, r->a, CPU_v3);
    for (size_t i = 0; i < n; i++) object_set_add(&s, r->a, plan_lowered(plan[i]));
    uint32_t *unit_of = NEW(r->a, uint32_t, s.text.n);
    if (cuda_compile(r->a, s.text.p, s.text.n, r->flat, 0, unit_of, &image, &parts->num_images,
                     &err))
        fail_msg("%s", err.text);
    struct str *code = NEW(r->a, struct str, parts->num_images);
    for (size_t i = 0; i < parts->num_images; i++) code[i] = image[i].code;
    parts->image = code;
}

/* Plans as bytes and back. */
static struct lm_plan *through_bytes(struct model_run *r, struct plan *const *plan, size_t n)
{
    struct plan_item *item = NEW(r->a, struct plan_item, n);
    struct lm_plan *flat = NEW(r->a, struct lm_plan, n);
    struct plan_set set;
    struct rt_error err;
    struct sb bytes = {0};
    for (size_t i = 0; i < n; i++) {
        item[i] = (struct plan_item){plan_bind(plan[i]).B, plan_bind(plan[i]).T,
                                     plan_lowered(plan[i])->plan};
        program_memory(plan[i], item[i].plan.arena_bytes);
    }
    plan_file_write(item, n, &bytes);
    assert_false(plan_file_read(r->a, (struct str){bytes.p, bytes.n}, &set, &err));
    sb_free(&bytes);
    for (size_t i = 0; i < n; i++)
        flat[i] =
            (struct lm_plan){.B = set.item[i].B, .T = set.item[i].T, .plan = &set.item[i].plan};
    return flat;
}

/* What a program of strata build has: plans from bytes, cubins and the image of the weights. */
static void open_flat(struct model_run *r)
{
    struct rt_error err;
    const struct session_options so = {.gpu = r->flat, .diag = diag_open(r->a), .no_library = true};
    const struct build_options build = {
        .pages = PAGES, .states = STATES, .context = CONTEXT, .store = r->store};
    struct lm_gpu_parts parts = {.parts = {.pages = PAGES, .states = STATES, .context = CONTEXT}};
    if (session_open(&so, &r->session, &err)) fail_msg("%s", err.text);
    struct program *p =
        program_open(r->session, build_model(r->a, r->f->model, r->f->params, BUILD_decode, &build),
                     "decode", (struct ir_bind){1, 1});
    for (int64_t T = 1; T <= LM_CHUNK; T += T < LM_STEP ? 1 : LM_STEP) program_plan(p, 1, T);
    for (int64_t B = 2; B <= BATCH; B++) program_plan(p, B, 1);
    size_t n, items;
    struct plan *const *plan = program_plans(p, &n);
    parts.parts.plan = through_bytes(r, plan, n), parts.parts.num_plans = n;
    compile_cubins(r, plan, n, &parts);
    const struct layout_stored *stored = session_stored(r->session, &items);
    struct pack *from = pack_memory(r->f->params, r->f->weights);
    void *image = calloc(1, session_weights_bytes(r->session));
    assert_false(weights_pack(from, stored, items, image, NULL, &err));
    parts.weights = image;
    pack_close(from);
    struct gpu *gpu;
    if (gpu_open_named(r->device, &gpu, &err)) fail_msg("%s", err.text);
    if (lm_gpu_open(gpu, &parts, &r->lm, &err)) fail_msg("%s", err.text);
    assert_string_equal(lm_gpu_about(r->lm)->arch, r->flat);
    free(image);
}

static void open_model(struct model_run *r, unsigned threads, bool lazy, bool depth)
{
    if (r->flat) {
        open_flat(r);
        return;
    }
    const struct compiled_served o = {.device = r->device,
                                      .threads = threads,
                                      .build = {.pages = PAGES,
                                                .states = STATES,
                                                .context = CONTEXT,
                                                .depth_weights = depth,
                                                .store = r->store},
                                      .batch = BATCH,
                                      .lazy = lazy};
    r->lm = compiled_serve(r->a, r->f, &o, &r->session);
}

static void close_model(struct model_run *r)
{
    r->lm->ops->close(r->lm);
    session_close(r->session);
}

static void fill_pools(struct model_run *r) /* with NaN */
{
    const struct lm_about *m = &r->lm->about;
    struct rt_error err;
    void *junk = malloc(m->page_bytes + m->state_bytes + 1);
    memset(junk, 0xff, m->page_bytes + m->state_bytes + 1);
    for (int32_t i = 0; i < PAGES; i++) assert_false(r->lm->ops->load_page(r->lm, i, junk, &err));
    for (int32_t i = 0; i < m->states; i++)
        assert_false(r->lm->ops->load_state(r->lm, i, junk, &err));
    free(junk);
    memset(r->page_used, 0, sizeof r->page_used);
    memset(r->state_used, 0, sizeof r->state_used);
}

static void draw_sequences(struct model_run *r)
{
    static const int64_t n[SEQS] = {250, 37, 256, 200, 193},
                         prompt[SEQS] = {219, 12, 255, 150, 190};
    for (int s = 0; s < SEQS; s++) {
        struct seq *q = &r->seq[s];
        q->n = n[s], q->prompt = prompt[s];
        for (int i = 0; i < CONTEXT; i++)
            q->token[i] = s >= 3 && i < SHARED ? r->seq[0].token[i]
                                               : (int32_t)draw(r, r->f->model->vocab_size);
    }
}

/* ---- running ---- */

static void call(struct model_run *r, const struct lm_call *c)
{
    struct rt_error err;
    if (r->lm->ops->run(r->lm, c, &err)) fail_msg("%s: %s", r->f->name, err.text);
}

static const float *logits(const struct model_run *r, int64_t row)
{
    return r->lm->ops->logits(r->lm) + row * r->lm->about.vocab;
}

/* Every sequence alone, its prompt in the largest pieces. */
static void run_alone(struct model_run *r)
{
    size_t each = (size_t)r->lm->about.vocab * sizeof(float);
    for (int s = 0; s < SEQS; s++) {
        struct seq *q = &r->seq[s];
        const int32_t page[P] = {0, 1, 2, 3}, state = 0;
        q->want = NEW(r->a, float, q->n * r->lm->about.vocab);
        for (int64_t at = 0, T; at < q->n; at += T) {
            int32_t past = (int32_t)at;
            T = at < q->prompt ? lm_cut(q->prompt - at, LM_CHUNK) : 1;
            call(r, &(struct lm_call){1, T, q->token + at, &past, &state, page});
            memcpy(q->want + (at + T - 1) * r->lm->about.vocab, logits(r, 0), each);
        }
    }
}

static int32_t take(struct model_run *r, bool *used, int64_t n)
{
    for (;;) {
        int64_t i = draw(r, n);
        if (used[i]) continue;
        used[i] = true;
        return (int32_t)i;
    }
}

/* Pages for `more` tokens; behind them the table leads out of memory. */
static void need_pages(struct model_run *r, struct seq *q, int64_t more)
{
    for (int64_t i = 0; i < P; i++) {
        if (i * LM_PAGE >= q->done + more)
            q->page[i] = -1000000;
        else if (i * LM_PAGE >= (q->done + LM_PAGE - 1) / LM_PAGE * LM_PAGE)
            q->page[i] = take(r, r->page_used, PAGES);
    }
}

static void compare(const struct model_run *r, const struct seq *q, int64_t row)
{
    int64_t V = r->lm->about.vocab;
    const float *got = logits(r, row), *want = q->want + (q->done - 1) * V;
    for (int64_t i = 0; i < V; i++)
        if (memcmp(&got[i], &want[i], sizeof *got))
            fail_msg("%s: sequence %d, token %lld, logit %lld: %.9g, alone %.9g", r->f->name,
                     (int)(q - r->seq), (long long)q->done - 1, (long long)i, (double)got[i],
                     (double)want[i]);
}

static void read_piece(struct model_run *r, struct seq *q)
{
    static const int64_t most[] = {16, 48, 64, 112, 256};
    int64_t T = lm_cut(q->prompt - q->done, most[draw(r, 5)]);
    int32_t past = (int32_t)q->done;
    if (q < r->seq + 1 && q->done < SHARED && q->done + T > SHARED) T = SHARED - q->done;
    need_pages(r, q, T);
    call(r, &(struct lm_call){1, T, q->token + q->done, &past, &q->state, q->page});
    q->done += T;
    if (q->done == q->prompt) compare(r, q, 0);
}

/* A token for some of those that have read their prompt. */
static void decode_some(struct model_run *r)
{
    int32_t token[BATCH], past[BATCH], state[BATCH], page[BATCH * P];
    struct seq *who[BATCH];
    int64_t B = 0, first = draw(r, SEQS);
    for (int64_t i = 0; i < SEQS && B < BATCH; i++) {
        struct seq *q = &r->seq[(first + i) % SEQS];
        if (q->done < q->prompt || q->done == q->n || draw(r, 4) == 0) continue;
        need_pages(r, q, 1);
        token[B] = q->token[q->done], past[B] = (int32_t)q->done, state[B] = q->state;
        memcpy(page + B * P, q->page, sizeof q->page);
        who[B++] = q;
    }
    if (!B) return;
    uint64_t allocations = mem_allocations();
    call(r, &(struct lm_call){B, 1, token, past, state, page});
    if (!r->device) assert_int_equal(mem_allocations(), allocations);
    for (int64_t b = 0; b < B; b++) who[b]->done++, compare(r, who[b], b);
}

/* The sequence goes on with the first SHARED tokens of the first one: the same pages, a copy of the
 * state, which is that of SHARED tokens now. */
static void fork_first(struct model_run *r, struct seq *q)
{
    struct rt_error err;
    CHECK(r->seq[0].done == SHARED && q->done == 0);
    memcpy(q->page, r->seq[0].page, SHARED / LM_PAGE * sizeof *q->page);
    q->done = SHARED;
    if (r->lm->about.states)
        assert_false(r->lm->ops->copy_state(r->lm, r->seq[0].state, q->state, &err));
}

/* Everything of a sequence goes to memory, what it had is overwritten, and it comes back somewhere
 * else. Only where it shares no page. */
static void set_aside(struct model_run *r, struct seq *q)
{
    const struct lm_about *m = &r->lm->about;
    const struct lm_ops *o = r->lm->ops;
    size_t n = (size_t)(q->done + LM_PAGE - 1) / LM_PAGE;
    char *kept = malloc(m->page_bytes * n + m->state_bytes + 1), *junk = malloc(m->page_bytes + 1);
    int32_t old[P], old_state = q->state;
    struct rt_error err;
    memset(junk, 0xff, m->page_bytes + 1);
    for (size_t i = 0; i < n; i++) {
        old[i] = q->page[i];
        assert_false(o->save_page(r->lm, old[i], kept + i * m->page_bytes, &err));
        assert_false(o->load_page(r->lm, old[i], junk, &err));
    }
    if (m->states) assert_false(o->save_state(r->lm, q->state, kept + n * m->page_bytes, &err));
    for (size_t i = 0; i < n && q->done; i++) {
        q->page[i] = take(r, r->page_used, PAGES);
        assert_false(o->load_page(r->lm, q->page[i], kept + i * m->page_bytes, &err));
    }
    q->state = take(r, r->state_used, STATES);
    if (m->states) assert_false(o->load_state(r->lm, q->state, kept + n * m->page_bytes, &err));
    for (size_t i = 0; i < n; i++) r->page_used[old[i]] = false;
    r->state_used[old_state] = false;
    free(kept);
    free(junk);
}

static void run_together(struct model_run *r)
{
    int forked = 0, aside = 0;
    for (int s = 0; s < SEQS; s++)
        r->seq[s].done = 0, r->seq[s].state = take(r, r->state_used, STATES);
    for (int64_t left = SEQS; left;) {
        struct seq *q = &r->seq[draw(r, forked ? SEQS : 3)];
        if (r->seq[0].done == SHARED && !forked++)
            fork_first(r, &r->seq[3]), fork_first(r, &r->seq[4]);
        if (q->done < q->prompt)
            read_piece(r, q);
        else
            decode_some(r);
        if (draw(r, 9) == 0 && ++aside) set_aside(r, &r->seq[1 + draw(r, 2)]);
        left = 0;
        for (int s = 0; s < SEQS; s++) left += r->seq[s].done < r->seq[s].n;
    }
    assert_true(forked && aside);
}

/* ---- the tests ---- */

static void *refill_and_run(void *run)
{
    fill_pools(run);
    run_together(run);
    return NULL;
}

/* Heads and latents that lie on 16 bytes: attention by tensor cores. */
static const char aligned[] =
    "strata: 1\n"
    "name: aligned\n"
    "model:\n"
    "  vocab_size: 40\n"
    "  hidden_size: 32\n"
    "  residual: {type: attnres, blocks: 2}\n"
    "  mixers:\n"
    "    near: {type: attention, num_heads: 4, num_kv_heads: 2, head_dim: 16, window: 70,\n"
    "           rope: {theta: 500}}\n"
    "    mla: {type: mla, num_heads: 4, kv_lora_rank: 32, qk_nope_head_dim: 16,\n"
    "          qk_rope_head_dim: 8, v_head_dim: 16, rope: {theta: 500}}\n"
    "  ffns:\n"
    "    dense: {type: mlp, intermediate_size: 32}\n"
    "  layers:\n"
    "    - {mixer: near, ffn: dense}\n"
    "    - {mixer: mla, ffn: dense}\n";

static struct fixture *open_fixture(const char *name)
{
    return strcmp(name, "aligned") ? fixture_open(name, NULL)
                                   : fixture_fresh(name, str_of(aligned), 1, 8, true);
}

static void check_flat(const char *name, unsigned threads, const char *device, enum ir_store store,
                       bool flat)
{
    struct model_run r = {.a = arena_open("lm"), .f = open_fixture(name), .device = device};
    r.random = 5, r.store = store;
    if (store == STORE_bf16 || store == STORE_rows_bf16)
        r.f->model->train.precision = PREC_bf16; /* keys and values too */
    draw_sequences(&r);
    open_model(&r, 1, true, false);
    fill_pools(&r);
    run_alone(&r);
    if (!device) { /* no plan is made later */
        close_model(&r);
        open_model(&r, threads, false, false);
    }
    if (flat) { /* the bits that the session's plans gave */
        r.flat = str_dup(r.a, str_of(lm_gpu_about(r.lm)->arch));
        close_model(&r);
        open_model(&r, threads, false, false);
    }
    for (int i = 0; i < 2; i++) { /* the second time on another thread, as an engine has one */
        pthread_t thread;
        if (!i) refill_and_run(&r);
        if (i) CHECK(!pthread_create(&thread, NULL, refill_and_run, &r));
        if (i) CHECK(!pthread_join(thread, NULL));
    }
    close_model(&r);
    fixture_close(r.f);
    arena_close(r.a);
}

static void check_model(const char *name, unsigned threads, const char *device, enum ir_store store)
{
    check_flat(name, threads, device, store, false);
}

static void test_attention(void **state)
{
    (void)state;
    check_model("attention-gqa-rope", 2, NULL, STORE_f32);
    check_model("attention-gqa-rope", 2, NULL, STORE_bf16);
}

static void test_window(void **state)
{
    (void)state;
    check_model("attention-window", 3, NULL, STORE_none);
    check_model("attention-window", 2, NULL, STORE_bf16);
}

static void test_kimi(void **state)
{
    (void)state;
    check_model("kimi-mini", 2, NULL, STORE_f32);
    check_model("kimi-mini", 2, NULL, STORE_i8);
}

static void test_k3(void **state)
{
    (void)state;
    check_model("k3-mini", 2, NULL, STORE_bf16);
}

static void test_everything(void **state)
{
    (void)state;
    check_model("everything", 3, NULL, STORE_none);
    check_model("everything", 2, NULL, STORE_i8);
}

static void test_only_states(void **state)
{
    (void)state;
    check_model("kda-long", 2, NULL, STORE_f32);
}

/* On a device: the fake one, or STRATA_TEST_DEVICE. Of kimi-mini also as a file has it. */
static void test_device(void **state)
{
    (void)state;
    const char *real = getenv("STRATA_TEST_DEVICE"), *device = real && *real ? real : "cuda";
    check_model("attention-gqa-rope", 1, device, STORE_rows);
    check_model("aligned", 1, device, STORE_rows_bf16);
    check_flat("kimi-mini", 1, device, STORE_rows_bf16, true);
}

/* What a model says of itself, and its depth weights. */
static void test_about(void **state)
{
    (void)state;
    struct model_run r = {.a = arena_open("lm"), .f = fixture_open("kimi-mini", NULL)};
    open_model(&r, 2, true, true);
    const struct lm_about *m = &r.lm->about;
    assert_int_equal(m->vocab, r.f->model->vocab_size);
    assert_int_equal(m->context, CONTEXT);
    assert_true(m->pages == PAGES && m->states == STATES && m->batch == BATCH && m->recurrent);
    assert_true(m->page_bytes > 0 && m->state_bytes > 0 && m->num_sites > 3);
    const int32_t past = 0, state0 = 0, page[P] = {0, 1, 2, 3};
    call(&r, &(struct lm_call){1, 32, r.f->tokens, &past, &state0, page});
    bool partial = false, whole = false;
    for (size_t i = 0; i < m->num_sites; i++) {
        const struct lm_site *x = &m->site[i];
        const float *w = r.lm->ops->depth(r.lm, i);
        assert_true(str_starts(str_of(x->name), "model.") && x->sources >= 1);
        partial |= x->partial, whole |= !x->partial;
        for (int t = 0; t < 32; t++, w += x->sources) {
            float sum = 0;
            for (int64_t k = 0; k < x->sources; k++) sum += w[k];
            assert_true(sum > 0.999f && sum < 1.001f);
        }
    }
    assert_true(partial && whole);
    close_model(&r);
    fixture_close(r.f);
    arena_close(r.a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_about),       cmocka_unit_test(test_attention),
        cmocka_unit_test(test_window),      cmocka_unit_test(test_kimi),
        cmocka_unit_test(test_k3),          cmocka_unit_test(test_everything),
        cmocka_unit_test(test_only_states), cmocka_unit_test(test_device),
    };
    const char *real = getenv("STRATA_TEST_DEVICE");
    char path[512];
    const struct CMUnitTest alone[] = {cmocka_unit_test(test_device)}; /* needs no CPU's kernels */
    if (real && *real) return cmocka_run_group_tests(alone, NULL, NULL);
    if (!strata_path(path)) return 1;
    strcpy(strrchr(path, '/'), "/fakecuda");
    setenv("STRATA_CUDA_PATH", path, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
