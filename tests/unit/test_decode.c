/* The decode program against the forward program: sequences cut at random places, several at a time
 * in pages and states that held something else before. In float64 (where both are the definition)
 * and compiled, where attention gives the same bits; absorbed MLA, which sums in another order than
 * the forward program, the same bits for every cut; KDA, whose chunks begin with the call, neither.
 */
#include "compiled.h"
#include "compiler/pack.h"
#include "eval.h"
#include "runtime/mem.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

enum { STATES = 5, CHUNK = 150, MAX_B = 4, MAX_PAGES = 16 };

/* Inputs of the decode program for B sequences of T new tokens. */
struct call {
    int64_t B, T;
    const int32_t *tokens, *past, *pages, *states;
};

/* What is decoded, and how: `call` gives the logits of all tokens as doubles. */
struct job {
    struct arena *a;
    struct fixture *f;
    int64_t pages;                       /* of a sequence */
    int32_t page[MAX_B * MAX_PAGES + 3]; /* those of every sequence, and some more */
    uint64_t random;
    const double *(*call)(struct job *j, const struct call *c);
    const double *want; /* [B*T,V] */
    double tol;         /* 0: the same bits */
    double *first;      /* like want: what the first cut gave; NULL: not kept */
    /* in float64 */
    struct ir_graph *g;
    VEC(struct ir_named) in;
    /* compiled */
    struct session *session;
    struct program *decode;
    enum ir_store store; /* of its weights; with bf16 also of keys and values */
    bool last;           /* the program gives the logits of last tokens only */
};

static int64_t draw(struct job *j, int64_t limit)
{
    j->random = j->random * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((j->random >> 33) % (uint64_t)limit);
}

static void compare(struct job *j, const double *got, int64_t row)
{
    int64_t V = j->f->model->vocab_size;
    const double *want = j->want + row * V;
    double most = 0;
    for (int64_t i = 0; i < V; i++) most = fmax(most, fabs(want[i]));
    for (int64_t i = 0; i < V; i++)
        if (!(fabs(got[i] - want[i]) <= j->tol * most))
            fail_msg("%s: token %lld of sequence %lld, logit %lld: %.17g, forward %.17g",
                     j->f->name, (long long)(row % j->f->T), (long long)(row / j->f->T),
                     (long long)i, got[i], want[i]);
    for (int64_t i = 0; j->first && i < V; i++) {
        double *x = &j->first[row * V + i];
        if (isnan(*x)) *x = got[i];
        if (*x != got[i])
            fail_msg("%s: row %lld, logit %lld depends on the cut", j->f->name, (long long)row,
                     (long long)i);
    }
}

static int64_t all_pages(const struct job *j)
{
    return MAX_B * j->pages + 3;
}

/* Gives the pages out anew, in any order. */
static void shuffle(struct job *j)
{
    for (int64_t i = 0; i < all_pages(j); i++) {
        int64_t k = draw(j, i + 1);
        j->page[i] = j->page[k];
        j->page[k] = (int32_t)i;
    }
}

/* The table of sequence `who` for so many tokens; what lies behind them leads out of memory. */
static void put_table(const struct job *j, int64_t who, int64_t tokens, int32_t *to)
{
    for (int64_t i = 0; i < j->pages; i++)
        to[i] = i * IR_PAGE < tokens ? j->page[who * j->pages + i] : -1000000;
}

/* All sequences of the fixture, piece by piece, those that a piece fits together; `most` tokens a
 * piece. */
static void decode_all(struct job *j, int64_t most)
{
    const struct fixture *f = j->f;
    int32_t done[MAX_B] = {0}, tokens[MAX_B * CHUNK], past[MAX_B], states[MAX_B];
    int32_t pages[MAX_B * MAX_PAGES];
    CHECK(f->B <= MAX_B && most <= CHUNK);
    shuffle(j);
    for (int64_t left = f->B * f->T; left > 0;) {
        int64_t T = 1 + draw(j, most), who[MAX_B], rows = 0;
        for (int64_t b = 0; b < f->B; b++) {
            if (done[b] + T > f->T || draw(j, 4) == 0) continue;
            memcpy(tokens + rows * T, f->tokens + b * f->T + done[b], (size_t)T * 4);
            put_table(j, b, done[b] + T, pages + rows * j->pages);
            past[rows] = done[b], states[rows] = (int32_t)(STATES - 1 - b), who[rows++] = b;
        }
        if (!rows) continue;
        const double *got = j->call(j, &(struct call){rows, T, tokens, past, pages, states});
        for (int64_t i = 0; i < rows * T; i++)
            compare(j, got + i * f->model->vocab_size, who[i / T] * f->T + past[i / T] + i % T);
        for (int64_t i = 0; i < rows; i++) done[who[i]] += (int32_t)T;
        left -= rows * T;
    }
}

static struct ir_graph *decode_graph(struct job *j)
{
    const struct build_options o = {.pages = all_pages(j),
                                    .states = STATES,
                                    .context = j->pages * IR_PAGE,
                                    .store = j->store,
                                    .all_logits = !j->last};
    CHECK(j->pages <= MAX_PAGES);
    struct ir_graph *g = build_model(j->a, j->f->model, j->f->params, BUILD_decode, &o);
    const char *why = graph_verify(g, STAGE_T);
    if (why) fail_msg("%s", why);
    return g;
}

static bool has(const struct model *m, enum mixer_type type)
{
    for (size_t i = 0; i < m->num_mixers; i++)
        if (m->mixer[i].type == type) return true;
    return false;
}

/* ---- float64 ---- */

static struct ir_named *named(struct job *j, const char *name)
{
    for (size_t i = 0; i < j->in.n; i++)
        if (!strcmp(j->in.p[i].name, name)) return &j->in.p[i];
    vec_push(j->a, &j->in, ((struct ir_named){str_dup(j->a, str_of(name)), NULL, 0}));
    return &vec_last(&j->in);
}

static void set(struct job *j, const char *name, const int32_t *x, int64_t n)
{
    double *v = NEW(j->a, double, n);
    for (int64_t i = 0; i < n; i++) v[i] = x[i];
    struct ir_named *to = named(j, name);
    to->v = v, to->n = n;
}

static const double *eval_call(struct job *j, const struct call *c)
{
    set(j, "tokens", c->tokens, c->B * c->T);
    set(j, "past", c->past, c->B);
    set(j, "pages", c->pages, c->B * j->pages);
    set(j, "states", c->states, c->B);
    struct ir_values v = ir_eval(j->a, j->g, (struct ir_bind){c->B, c->T}, j->in.p, j->in.n);
    for (size_t i = 0; i < j->g->out.n; i++) {
        const char *name = intern_text(j->g->names, j->g->out.p[i].name);
        if (!str_starts(str_of(name), "new.")) continue;
        struct ir_array x = ir_eval_output(&v, name);
        struct ir_named *to = named(j, name + 4);
        to->v = x.v, to->n = x.n;
    }
    return ir_eval_output(&v, "logits").v;
}

/* Weights, and caches that are full of something. */
static void eval_open(struct job *j)
{
    const struct fixture *f = j->f;
    for (size_t i = 0; i < f->params->n; i++) {
        const struct param *p = &f->params->p[i];
        double *v = NEW(j->a, double, p->count);
        for (int64_t k = 0; k < p->count; k++) v[k] = (double)f->weights[i][k];
        vec_push(j->a, &j->in, ((struct ir_named){p->name, v, p->count}));
    }
    j->g = decode_graph(j);
    for (ir_id n = 0; n < j->g->node.n; n++) {
        const char *name = ir_word(j->g, n, AK_name, "");
        if (!str_starts(str_of(name), "cache.")) continue;
        int64_t count = type_count(j->g->types, ir_at(j->g, n)->type, (struct ir_bind){1, 1});
        double *v = NEW(j->a, double, count);
        for (int64_t k = 0; k < count; k++) v[k] = (double)draw(j, 7) - 3;
        vec_push(j->a, &j->in, ((struct ir_named){name, v, count}));
    }
}

static void test_float64(void **state)
{
    (void)state;
    struct arena *names = arena_open("names");
    for (const char *const *p = fixture_names(names); *p; p++) {
        struct job j = {.a = arena_open("decode"), .f = fixture_open(*p, NULL), .call = eval_call};
        size_t n;
        j.pages = build_pages(j.f->T), j.tol = 1e-10, j.random = 7;
        j.want = fixture_want(j.f, "logits", &n);
        eval_open(&j);
        decode_all(&j, 7);
        decode_all(&j, j.f->T); /* in used pages and states */
        fixture_close(j.f);
        arena_close(j.a);
    }
    arena_close(names);
}

/* Keys and values kept in bf16, where everything is rounded to it: nothing changes. */
static void test_float64_bf16(void **state)
{
    (void)state;
    static const char *const name[] = {"attention-window", "attention-gqa-rope"};
    for (int i = 0; i < 2; i++) {
        struct job j = {.a = arena_open("decode"), .call = eval_call, .store = STORE_bf16};
        const struct build_options plain = {0};
        j.f = fixture_open(name[i], NULL);
        j.f->model->train.precision = PREC_bf16;
        j.pages = build_pages(j.f->T), j.tol = 1e-10, j.random = 3;
        struct ir_graph *g = build_model(j.a, j.f->model, j.f->params, BUILD_forward, &plain);
        struct ir_values v = fixture_eval(j.f, j.a, g);
        j.want = ir_eval_output(&v, "logits").v;
        eval_open(&j);
        decode_all(&j, 7);
        fixture_close(j.f);
        arena_close(j.a);
    }
}

/* ---- compiled ---- */

static void put(const struct plan *p, const char *name, const int32_t *data, int64_t n)
{
    const struct plan_value *v = plan_value(p, name);
    if (!v) return;
    assert_int_equal(v->count, n);
    memcpy(v->p, data, v->bytes);
}

static const float *run_call(struct job *j, const struct call *c)
{
    struct rt_error err;
    struct plan *p = program_plan(j->decode, c->B, c->T);
    if (!plan_ready(p) && session_compile(j->session, NULL, &err)) fail_msg("%s", err.text);
    put(p, "tokens", c->tokens, c->B * c->T);
    put(p, "past", c->past, c->B);
    put(p, "pages", c->pages, c->B * j->pages);
    put(p, "states", c->states, c->B);
    plan_run(p);
    return plan_value(p, "logits")->p;
}

static const double *compiled_call(struct job *j, const struct call *c)
{
    const float *logits = run_call(j, c);
    int64_t n = c->B * c->T * j->f->model->vocab_size;
    double *v = NEW(j->a, double, n);
    for (int64_t i = 0; i < n; i++) v[i] = (double)logits[i];
    return v;
}

static void store_weights(struct job *j)
{
    struct rt_error err;
    size_t n;
    const struct layout_stored *items = session_stored(j->session, &n);
    struct pack *from = pack_memory(j->f->params, j->f->weights);
    assert_true(n > 0);
    assert_false(weights_pack(from, items, n, session_weights(j->session), NULL, &err));
    pack_close(from);
}

/* A session with the forward program, run, and the decode program. */
static void compiled_job(struct job *j, unsigned threads)
{
    const struct build_options plain = {0};
    const struct fixture *f = j->f;
    const struct session_options so = {.threads = threads, .diag = diag_open(j->a)};
    struct rt_error err;
    if (session_open(&so, &j->session, &err)) fail_msg("%s", err.text);
    struct ir_graph *g = build_model(j->a, f->model, f->params, BUILD_forward, &plain);
    struct program *forward = program_open(j->session, g, "forward", (struct ir_bind){f->B, f->T});
    j->decode = program_open(j->session, decode_graph(j), "decode", (struct ir_bind){1, 1});
    assert_true(forward && j->decode);
    struct plan *p = program_plan(forward, f->B, f->T), *one = program_plan(j->decode, 1, 1);
    if (session_compile(j->session, NULL, &err)) fail_msg("%s", err.text);
    struct compiled c = {.session = j->session, .f = j->f};
    compiled_bind(&c, p);
    compiled_bind_weights(&c, one);
    if (j->store) store_weights(j);
    plan_run(p);
    const struct plan_value *v = plan_value(p, "logits");
    double *want = NEW(j->a, double, v->count);
    for (int64_t i = 0; i < v->count; i++) want[i] = (double)((const float *)v->p)[i];
    j->want = want;
    if (has(f->model, MIXER_kda)) {
        j->tol = 1e-4;
    } else if (has(f->model, MIXER_mla)) {
        j->tol = 1e-5;
        j->first = NEW(j->a, double, v->count);
        for (int64_t i = 0; i < v->count; i++) j->first[i] = NAN;
    }
    size_t n;
    const struct plan_value *all = plan_values(one, &n);
    for (size_t i = 0; i < n; i++) /* NaN: nothing may read what it has not written */
        if (str_starts(str_of(all[i].name), "cache.")) memset(all[i].p, 0xff, all[i].bytes);
}

static void run_compiled(struct fixture *f, int64_t most, enum ir_store store)
{
    struct job j = {
        .a = arena_open("decode"), .f = f, .call = compiled_call, .random = most, .store = store};
    j.pages = build_pages(f->T);
    compiled_job(&j, 1);
    decode_all(&j, most);
    decode_all(&j, 1);
    session_close(j.session);
    fixture_close(f);
    arena_close(j.a);
}

static void test_fixtures(void **state)
{
    (void)state;
    struct arena *names = arena_open("names");
    for (const char *const *p = fixture_names(names); *p; p++)
        run_compiled(fixture_open(*p, NULL), 9, STORE_none);
    arena_close(names);
}

static void test_bf16(void **state)
{
    (void)state;
    static const char *const name[] = {"attention-all", "attention-window", "everything"};
    for (int i = 0; i < 6; i++) {
        struct fixture *f = fixture_open(name[i / 2], NULL);
        f->model->train.precision = PREC_bf16;
        run_compiled(f, 5, i % 2 ? STORE_bf16 : STORE_none);
    }
}

/* ---- larger models, cut as prompts are ---- */

#define HEAD                                                                              \
    "strata: 1\nname: cut\nmodel:\n  vocab_size: 97\n  hidden_size: 40\n"                 \
    "  residual: {type: attnres, block_size: 3}\n"                                        \
    "  ffns:\n    mlp: {type: mlp, intermediate_size: 50}\n"                              \
    "    moe: {type: moe, num_experts: 6, experts_per_token: 2, num_shared_experts: 1,\n" \
    "          intermediate_size: 24}\n"

static const char windows[] = HEAD
    "  mixers:\n"
    "    all: {type: attention, num_heads: 6, num_kv_heads: 2, head_dim: 12, rope: {theta: 100}}\n"
    "    near: {type: attention, num_heads: 3, num_kv_heads: 1, head_dim: 8, qk_norm: true,\n"
    "           rope: {theta: 1000}, window: 30}\n"
    "  layers: [{repeat: 2, layers: [{mixer: all, ffn: mlp}, {mixer: near, ffn: moe}]}]\n";
static const char linear[] =
    HEAD "  mixers:\n"
         "    kda: {type: kda, num_heads: 2, head_dim: 16}\n"
         "    mla: {type: mla, num_heads: 3, kv_lora_rank: 20, qk_nope_head_dim: 12,\n"
         "          qk_rope_head_dim: 6, v_head_dim: 10, rope: {theta: 500}}\n"
         "  layers: [{mixer: kda, ffn: mlp}, {mixer: kda, ffn: moe}, {mixer: kda, ffn: moe},\n"
         "           {mixer: mla, ffn: moe}]\n";

/* Prompts in pieces of `cut`, the last `ones` tokens one by one; sequences together, pages and
 * states changing with every cut. */
static void decode_cut(struct job *j, int64_t cut, int64_t ones)
{
    const struct fixture *f = j->f;
    int32_t tokens[MAX_B * CHUNK], past[MAX_B], states[MAX_B], pages[MAX_B * MAX_PAGES];
    shuffle(j);
    for (int64_t at = 0, T; at < f->T; at += T) {
        T = at < f->T - ones ? f->T - ones - at : 1;
        if (T > cut) T = cut;
        for (int64_t b = 0; b < f->B; b++) {
            memcpy(tokens + b * T, f->tokens + b * f->T + at, (size_t)T * 4);
            put_table(j, b, at + T, pages + b * j->pages);
            past[b] = (int32_t)at, states[b] = (int32_t)((b + cut) % STATES);
        }
        const double *got = j->call(j, &(struct call){f->B, T, tokens, past, pages, states});
        for (int64_t i = 0; i < f->B * T; i++)
            compare(j, got + i * f->model->vocab_size, i / T * f->T + at + i % T);
    }
}

/* Groups of query heads, and widths of heads; the second time with keys and values in bf16. */
static const char groups[] =
    HEAD "  mixers:\n"
         "    eight: {type: attention, num_heads: 8, num_kv_heads: 1, head_dim: 40, rope: {theta: "
         "100}}\n"
         "    seven: {type: attention, num_heads: 7, num_kv_heads: 1, head_dim: 64, window: 100}\n"
         "    five: {type: attention, num_heads: 10, num_kv_heads: 2, head_dim: 32}\n"
         "    one: {type: attention, num_heads: 11, head_dim: 72, rope: {theta: 9}}\n"
         "  layers: [{mixer: eight, ffn: mlp}, {mixer: seven, ffn: moe}, {mixer: five, ffn: mlp},\n"
         "           {mixer: one, ffn: mlp}]\n";

static void test_cuts(void **state)
{
    (void)state;
    static const int64_t cuts[] = {63, 64, 65, 127, 128, 129, 150, 1};
    static const char *const text[] = {windows, linear, groups, groups, windows};
    for (int k = 0; k < 5; k++) {
        struct job j = {
            .a = arena_open("decode"), .call = compiled_call, .pages = build_pages(420)};
        j.f = fixture_fresh("cut", str_of(text[k]), 2, 420, true);
        if (k >= 3) j.f->model->train.precision = PREC_bf16, j.store = STORE_bf16;
        compiled_job(&j, 1);
        for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) decode_cut(&j, cuts[i], 45);
        session_close(j.session);
        fixture_close(j.f);
        arena_close(j.a);
    }
}

static int32_t largest(const double *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return (int32_t)best;
}

enum { PROMPT = 20, COUNT = 512 };

/* Greedy tokens after the fixture's first ones, in place of its others; returns their logits. */
static double *greedy(struct job *j, int64_t count)
{
    struct fixture *f = j->f;
    int64_t V = f->model->vocab_size;
    double *kept = NEW(j->a, double, COUNT *V);
    const int32_t state = 3;
    int32_t past = 0, pages[MAX_PAGES];
    uint64_t allocated = 0;
    for (int64_t i = 0; i < count; i++) {
        const struct call c = {1, i ? 1 : PROMPT, f->tokens + past, &past, pages, &state};
        put_table(j, 1, past + c.T, pages);
        if (i > 1) allocated = mem_allocations();
        const float *logits = run_call(j, &c);
        if (i > 1) assert_int_equal(mem_allocations(), allocated);
        for (int64_t k = 0; k < V; k++) kept[i * V + k] = (double)logits[k];
        past += (int32_t)c.T;
        f->tokens[past] = largest(kept + i * V, V);
    }
    return kept;
}

/* What is decoded token by token is what the forward program would have chosen at every place, and
 * does not depend on the number of threads. */
static void test_greedy(void **state)
{
    (void)state;
    struct arena *a = arena_open("greedy");
    double *first = NULL;
    for (unsigned threads = 1; threads <= 3; threads++) {
        struct job j = {.a = arena_open("decode"), .last = true};
        j.pages = build_pages(PROMPT + COUNT);
        shuffle(&j);
        j.f = fixture_fresh("cut", str_of(linear), 1, PROMPT + COUNT + 1, true);
        int64_t V = j.f->model->vocab_size, count = threads == 1 ? COUNT : 30;
        compiled_job(&j, threads);
        double *kept = greedy(&j, count);
        if (!first) first = memcpy(NEW(a, double, count *V), kept, (size_t)(count * V) * 8);
        assert_memory_equal(first, kept, (size_t)(count * V) * 8);
        session_close(j.session);
        if (threads == 1) { /* the tokens are the fixture's now */
            compiled_job(&j, threads);
            for (int64_t i = 0; i < count; i++) {
                const double *want = j.want + (PROMPT - 1 + i) * V;
                assert_int_equal(largest(want, V), j.f->tokens[PROMPT + i]);
                compare(&j, kept + i * V, PROMPT - 1 + i);
            }
            session_close(j.session);
        }
        fixture_close(j.f);
        arena_close(j.a);
    }
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float64),  cmocka_unit_test(test_float64_bf16),
        cmocka_unit_test(test_fixtures), cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_cuts),     cmocka_unit_test(test_greedy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
