/* The spec front end: every golden of tests/err, values and defaults, composing, the round trip of
 * the canonical text, and the documents made from the table. UPDATE=1 rewrites goldens and
 * documents. */
#include "base/io.h"
#include "compiler/model.h"
#include "compiler/spec_doc.h"
#include "compiler/spec_table.h"
#include <glob.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

static bool update;

static struct model *parse(struct arena *a, struct diag *d, const char *text, const char *set)
{
    struct spec_options opt = {&set, set != NULL};
    return spec_parse(a, d, "dir/test.yaml", str_of(text), &opt);
}

/* The model of a text that must be right. */
static struct model *good(struct arena *a, const char *text, const char *set)
{
    struct diag *d = diag_open(a);
    struct model *m = parse(a, d, text, set);
    struct sb out = {0};
    diag_print(d, &out);
    if (!m) fprintf(stderr, "%s", out.p ? out.p : "no model and no message\n");
    sb_free(&out);
    assert_non_null(m);
    return m;
}

/* Compares a text with a file, or writes the file. */
static bool same_as_file(struct arena *a, const char *path, struct str text)
{
    struct str want = {0};
    int err = io_read(a, path, 1 << 24, &want);
    if (!err && str_eq(want, text)) return true;
    if (update) {
        assert_int_equal(io_write_atomic(path, text.p, text.n), 0);
        return true;
    }
    fprintf(stderr, "%s differs (UPDATE=1 rewrites it); now:\n%.*s\n", path, (int)text.n, text.p);
    return false;
}

/* The leading lines "# --set: KEY=VALUE" of a golden. */
static size_t options_of(struct arena *a, struct str text, const char **set, size_t max)
{
    static const char head[] = "# --set: ";
    size_t n = 0;
    while (str_starts(text, head) && n < max) {
        const char *nl = memchr(text.p, '\n', text.n);
        size_t len = nl ? (size_t)(nl - text.p) : text.n;
        set[n++] = str_dup(a, (struct str){text.p + sizeof head - 1, len - (sizeof head - 1)});
        if (!nl) break;
        text.p += len + 1, text.n -= len + 1;
    }
    return n;
}

static bool golden(struct arena *a, const char *path, struct sb *all)
{
    const char *set[8];
    struct str text;
    struct sb out = {0};
    assert_int_equal(io_read(a, path, 1 << 23, &text), 0);
    struct spec_options opt = {set, options_of(a, text, set, 8)};
    struct diag *d = diag_open(a);
    struct model *m = spec_load(a, d, path, &opt);
    diag_print(d, &out);
    if ((m == NULL) != (diag_errors(d) > 0)) fail_msg("%s: model and errors disagree", path);
    struct str got = sb_take(&out, a);
    sb_add(all, got.p, got.n);
    const char *want = str_fmt(a, "%.*s.err", (int)(strlen(path) - 5), path);
    return same_as_file(a, want, got);
}

/* Whether a line holds the fixed parts of a message format, in order. */
static bool line_has(struct str line, const char *fmt)
{
    size_t at = 0;
    while (*fmt) {
        size_t n = strcspn(fmt, "%");
        const char *hit = n ? memmem(line.p + at, line.n - at, fmt, n) : line.p + at;
        if (!hit) return false;
        at = (size_t)(hit - line.p) + n;
        fmt += n;
        if (*fmt) fmt += strcspn(fmt, "sdu") + 1;
    }
    return true;
}

static bool occurs(struct str text, const char *fmt)
{
    while (text.n) {
        const char *nl = memchr(text.p, '\n', text.n);
        size_t len = nl ? (size_t)(nl - text.p) : text.n;
        if (line_has((struct str){text.p, len}, fmt)) return true;
        text.p += len + (nl != NULL), text.n -= len + (nl != NULL);
    }
    return false;
}

static void test_goldens(void **state)
{
    (void)state;
    static const struct {
        const char *id, *fmt;
    } rows[] = {
#define DIAG(id, severity, fmt) {#id, fmt},
#include "base/diag.def"
    };
    struct arena *a = arena_open("test");
    struct sb all = {0};
    glob_t g;
    bool ok = true;
    assert_int_equal(glob("tests/err/*.yaml", 0, NULL, &g), 0);
    for (size_t i = 0; i < g.gl_pathc; i++) ok &= golden(a, g.gl_pathv[i], &all);
    globfree(&g);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (strncmp(rows[i].id, "spec_", 5) != 0) continue;
        if (strcmp(rows[i].id, "spec_file_size") == 0) continue; /* test_limits has it */
        if (occurs((struct str){all.p, all.n}, rows[i].fmt)) continue;
        fprintf(stderr, "no golden of tests/err shows %s\n", rows[i].id);
        ok = false;
    }
    sb_free(&all);
    arena_close(a);
    assert_true(ok);
}

/* Two models are the same: every plain field by its bytes (arena memory is zeroed, so padding is
 * too), texts and lists by what they hold; spans differ. */
static void same_model(const struct model *x, const struct model *y)
{
    struct train_spec s = x->train, t = y->train;
    assert_string_equal(x->name, y->name);
    assert_int_equal(s.data_path != NULL, t.data_path != NULL);
    if (s.data_path) assert_string_equal(s.data_path, t.data_path);
    if (s.checkpoint_dir) assert_string_equal(s.checkpoint_dir, t.checkpoint_dir);
    s.data_path = t.data_path = s.checkpoint_dir = t.checkpoint_dir = NULL;
    s.data_at = t.data_at;
    assert_memory_equal(&s, &t, sizeof s);
    assert_int_equal(x->num_mixers, y->num_mixers);
    for (size_t i = 0; i < x->num_mixers; i++) {
        struct mixer p = x->mixer[i], q = y->mixer[i];
        assert_string_equal(p.name, q.name);
        p.name = q.name;
        p.at = q.at;
        assert_memory_equal(&p, &q, sizeof p);
    }
    assert_int_equal(x->num_ffns, y->num_ffns);
    for (size_t i = 0; i < x->num_ffns; i++) {
        struct ffn p = x->ffn[i], q = y->ffn[i];
        assert_string_equal(p.name, q.name);
        p.name = q.name;
        p.at = q.at;
        assert_memory_equal(&p, &q, sizeof p);
    }
    assert_int_equal(x->num_layers, y->num_layers);
    for (size_t i = 0; i < x->num_layers; i++) {
        assert_int_equal(x->layer[i].mixer, y->layer[i].mixer);
        assert_int_equal(x->layer[i].ffn, y->layer[i].ffn);
        assert_int_equal(x->layer[i].attnres_mixer, y->layer[i].attnres_mixer);
        assert_int_equal(x->layer[i].attnres_ffn, y->layer[i].attnres_ffn);
    }
    assert_int_equal(x->num_boundaries, y->num_boundaries);
    if (x->num_boundaries)
        assert_memory_equal(x->boundary, y->boundary, x->num_boundaries * sizeof *x->boundary);
    assert_memory_equal(&x->vocab_size, &y->vocab_size,
                        offsetof(struct model, boundary) - offsetof(struct model, vocab_size));
    assert_true(x->key_eps == y->key_eps && x->attnres_output == y->attnres_output);
    assert_int_equal(x->tokenizer.type, y->tokenizer.type);
    assert_int_equal(x->tokenizer.eos, y->tokenizer.eos);
    assert_int_equal(x->serve_max_context, y->serve_max_context);
    assert_int_equal(x->serve_cache_tokens, y->serve_cache_tokens);
    assert_int_equal(x->serve_snapshots, y->serve_snapshots);
    assert_string_equal(x->canonical, y->canonical);
}

/* The canonical text, read from another folder, gives the same model. */
static void round_trip(struct arena *a, const struct model *m)
{
    struct diag *d = diag_open(a);
    struct model *again = spec_parse(a, d, "/elsewhere/x.yaml", str_of(m->canonical), NULL);
    if (!again) fail_msg("canonical text is refused:\n%s", m->canonical);
    same_model(m, again);
}

static void test_files(void **state)
{
    (void)state;
    glob_t g;
    assert_int_equal(glob("specs/*.yaml", 0, NULL, &g), 0);
    assert_int_equal(glob("examples/*/*.yaml", GLOB_APPEND, NULL, &g), 0);
    assert_int_equal(glob("tests/fuzz/corpus/spec/*.yaml", GLOB_APPEND, NULL, &g), 0);
    for (size_t i = 0; i < g.gl_pathc; i++) {
        struct arena *a = arena_open("test");
        struct diag *d = diag_open(a);
        struct model *m = spec_load(a, d, g.gl_pathv[i], NULL);
        bool fuzz = strstr(g.gl_pathv[i], "/fuzz/") != NULL;
        if (!m && !fuzz) fail_msg("%s is refused", g.gl_pathv[i]);
        if (m) round_trip(a, m);
        arena_close(a);
    }
    globfree(&g);
}

#define HEAD "strata: 1\nname: x\n"
#define BODY(residual, layers)                                                          \
    "model:\n  vocab_size: 300\n  hidden_size: 32\n" residual                           \
    "  mixers: {m: {type: attention, num_heads: 4}}\n"                                  \
    "  ffns: {f: {type: mlp, intermediate_size: 8},\n"                                  \
    "    g: {type: moe, num_experts: 4, experts_per_token: 2, intermediate_size: 8}}\n" \
    "  layers:\n" layers
#define ONE "    - {mixer: m, ffn: f}\n"
#define FIVE "    - {repeat: 2, layers: [{repeat: 2, layers: [{mixer: m, ffn: f}]}]}\n" ONE

static void test_defaults(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct model *m = good(a, HEAD BODY("", ONE), NULL);
    assert_int_equal(m->norm, NORM_rmsnorm);
    assert_true(m->norm_eps == 1e-6 && m->init_std == 0.02 && m->init_embedding_std == 0.02);
    assert_int_equal(m->residual, RESIDUAL_standard);
    assert_false(m->tie_embeddings || m->train.present);
    assert_int_equal(m->mixer[0].num_kv_heads, 4);
    assert_int_equal(m->mixer[0].head_dim, 8);
    assert_false(m->mixer[0].rope || m->mixer[0].qk_norm);
    assert_int_equal(m->mixer[0].window, 0);
    assert_int_equal(m->ffn[0].activation, ACT_swiglu);
    assert_int_equal(m->ffn[1].score, SCORE_sigmoid);
    assert_true(m->ffn[1].renormalize && m->ffn[1].scale == 1);
    assert_int_equal(m->ffn[1].balance, BALANCE_none);
    assert_int_equal(m->ffn[1].num_shared_experts, 0);
    assert_int_equal(m->ffn[1].latent_size, 0);
    assert_false(m->layer[0].attnres_mixer || m->layer[0].attnres_ffn);
    assert_int_equal(m->tokenizer.type, TOK_none);
    assert_int_equal(m->tokenizer.bos, -1);
    assert_int_equal(m->serve_max_sequences, 16);
    round_trip(a, m);

    m = good(a,
             HEAD "train: {data: {path: t.npy}, seq_len: 8, batch_size: 4, steps: 9,\n"
                  "  optimizer: {type: muon, lr: 1e-3}}\n" BODY("", ONE),
             NULL);
    assert_true(m->train.present);
    assert_true(m->train.beta1 == 0.9 && m->train.beta2 == 0.95 && m->train.eps == 1e-8);
    assert_true(m->train.momentum == 0.95 && m->train.weight_decay == 0 && m->train.lr == 1e-3);
    assert_int_equal(m->train.schedule, SCHED_constant);
    assert_int_equal(m->train.micro_batches, 1);
    assert_true(m->train.grad_clip == 0 && m->train.val_fraction == 0);
    assert_int_equal(m->train.order, ORDER_shuffled);
    assert_int_equal(m->train.precision, PREC_fp32);
    assert_int_equal(m->train.eval_every, 0);
    assert_null(m->train.checkpoint_dir);
    assert_true(m->train.data_path[0] == '/');
    assert_true(str_ends(str_of(m->train.data_path), "/dir/t.npy"));
    round_trip(a, m);
    arena_close(a);
}

static void test_every_key(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct diag *d = diag_open(a);
    struct model *m = spec_load(a, d, "tests/fuzz/corpus/spec/every-key.yaml", NULL);
    assert_non_null(m);
    const struct mixer *k = &m->mixer[0], *l = &m->mixer[1], *x = &m->mixer[2];
    assert_true(m->norm == NORM_layernorm && m->norm_eps == 1e-5 && m->tie_embeddings);
    assert_true(m->init_std == 0.1 && m->init_embedding_std == 1);
    assert_true(m->residual == RESIDUAL_attnres && m->key_eps == 1e-4 && !m->attnres_output);
    assert_true(m->num_boundaries == 2 && m->boundary[0] == 1 && m->boundary[1] == 4);
    assert_true(k->type == MIXER_kda && k->conv_size == 3 && k->output_gate_rank == GATE_full);
    assert_true(k->gate == GATE_bounded && k->lower_bound == -3 && k->head_dim == 16);
    assert_true(l->type == MIXER_mla && l->q_lora_rank == 8 && l->kv_lora_rank == 16);
    assert_true(l->qk_nope_head_dim == 4 && l->qk_rope_head_dim == 6 && l->v_head_dim == 5);
    assert_true(l->rope && l->theta == 5e5 && l->output_gate);
    assert_true(x->rope && x->theta == 10000 && x->qk_norm && x->window == 7 && x->head_dim == 6);
    const struct ffn *f = &m->ffn[0];
    assert_true(f->type == FFN_moe && f->num_experts == 4 && f->experts_per_token == 2);
    assert_true(f->latent_size == 16 && f->num_shared_experts == 3 && f->activation == ACT_situ);
    assert_true(f->score == SCORE_softmax && !f->renormalize && f->scale == 2.5);
    assert_true(f->balance == BALANCE_bias && f->balance_rate == 1e-3);
    assert_true(!m->layer[0].attnres_mixer && m->layer[0].attnres_ffn);
    assert_true(!m->layer[1].attnres_mixer && !m->layer[1].attnres_ffn);
    assert_true(m->layer[2].attnres_mixer && m->layer[2].attnres_ffn);
    const struct tokenizer_spec *t = &m->tokenizer;
    assert_true(t->type == TOK_file && t->bos == 1 && t->eos == 2 && t->num_stop == 2);
    assert_true(t->stop[1] == 3 && t->num_special == 2 && t->special[0].id == 250);
    assert_string_equal(t->special[1].text, "a: b");
    assert_string_equal(t->pattern, "a|b\\s");
    assert_string_equal(t->chat_template, "kimi");
    const struct train_spec *r = &m->train;
    assert_string_equal(r->data_path, "/abs/t.txt");
    assert_true(r->val_fraction == 0.5 && r->order == ORDER_sequential && r->seq_len == 7);
    assert_true(r->batch_size == 6 && r->micro_batches == 3 && r->steps == 11);
    assert_true(r->optimizer == OPT_muon && r->lr == 2 && r->beta1 == 0.5 && r->beta2 == 0.25);
    assert_true(r->eps == 1e-3 && r->weight_decay == 0.5 && r->momentum == 0.5);
    assert_true(r->schedule == SCHED_wsd && r->warmup == 2 && r->decay == 3 && r->min_lr == 0.5);
    assert_true(r->grad_clip == 0.5 && r->precision == PREC_bf16 && r->seed == INT64_MAX);
    assert_true(r->eval_every == 2 && r->eval_sequences == 5);
    assert_true(r->checkpoint_every == 3 && r->checkpoint_keep == 4);
    assert_string_equal(r->checkpoint_dir, "out");
    assert_true(m->serve_max_sequences == 3 && m->serve_max_context == 99);
    round_trip(a, m);
    arena_close(a);
}

static void check_boundaries(struct arena *a, const char *set, const char *want)
{
    struct model *m = good(a, HEAD BODY("", FIVE), set);
    struct sb s = {0};
    for (size_t i = 0; i < m->num_boundaries; i++)
        sb_printf(&s, "%s%lld", i ? " " : "", (long long)m->boundary[i]);
    assert_string_equal(s.p ? s.p : "", want);
    sb_free(&s);
    round_trip(a, m);
}

static void test_blocks(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    assert_int_equal(good(a, HEAD BODY("", FIVE), NULL)->num_layers, 5);
    check_boundaries(a, "model.residual={type: attnres, blocks: 1}", "");
    check_boundaries(a, "model.residual={type: attnres, blocks: 4}", "3 6 8");
    check_boundaries(a, "model.residual={type: attnres, blocks: 10}", "1 2 3 4 5 6 7 8 9");
    check_boundaries(a, "model.residual={type: attnres, block_size: 1}", "1 2 3 4 5 6 7 8 9");
    check_boundaries(a, "model.residual={type: attnres, block_size: 4}", "4 8");
    check_boundaries(a, "model.residual={type: attnres, block_size: 99}", "");
    check_boundaries(a, "model.residual={type: attnres, boundaries: [2, 9]}", "2 9");
    check_boundaries(a, "model.residual={type: attnres, boundaries: []}", "");
    struct model *m = good(a, HEAD BODY("  residual: {type: attnres, block_size: 2}\n", FIVE),
                           "model.residual.blocks=2");
    assert_int_equal(m->num_boundaries, 1);
    assert_true(m->attnres_output && m->layer[4].attnres_ffn && m->key_eps == 1e-6);
    arena_close(a);
}

static void test_set(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    const char *text = HEAD "tokenizer: bytes\n" BODY("  norm: layernorm\n", ONE);
    struct model *m = good(a, text, "model.norm.eps=1e-5");
    assert_true(m->norm == NORM_layernorm && m->norm_eps == 1e-5);
    assert_int_equal(good(a, text, "model.mixers.m.window=5")->mixer[0].window, 5);
    assert_int_equal(good(a, text, "serve.max_context=77")->serve_max_context, 77);
    assert_int_equal(good(a, text, "tokenizer={type: bytes}")->tokenizer.type, TOK_bytes);
    m = good(a, text,
             "train={data: {path: a.txt, tokenizer: bytes}, seq_len: 8, batch_size: 4, "
             "steps: 9, optimizer: {type: adamw, lr: 0}}");
    assert_false(str_ends(str_of(m->train.data_path), "dir/a.txt")); /* of the working directory */
    assert_int_equal(good(a, text, "model.layers=[{mixer: m, ffn: g}]")->layer[0].ffn, 1);
    arena_close(a);
}

static void test_merge(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct diag *d = diag_open(a);
    static const char text[] =
        "extends: bench-a.yaml\nname: y\n"
        "model: {residual: {block_size: 3}, norm: {eps: 1e-5},\n"
        "  mixers: {full: {window: 9}, new: {type: attention, num_heads: 1}}}\n"
        "train: {schedule: constant, optimizer: {lr: 0.5}}\n";
    struct model *m = spec_parse(a, d, "specs/y.yaml", STR(text), NULL);
    assert_non_null(m);
    assert_string_equal(m->name, "y");
    assert_int_equal(m->num_mixers, 2);
    assert_true(m->mixer[0].window == 9 && m->mixer[0].num_heads == 8 && m->mixer[0].rope);
    assert_true(m->num_boundaries == 10 && m->boundary[0] == 3); /* 32 sublayers in threes */
    assert_true(m->train.lr == 0.5 && m->train.weight_decay == 0.1 && m->norm_eps == 1e-5);
    assert_true(str_ends(str_of(m->train.data_path), "/specs/text.txt"));
    assert_null(strstr(m->canonical, "extends"));
    round_trip(a, m);
    arena_close(a);
}

static void refused(struct arena *a, struct str text, const char *says)
{
    struct diag *d = diag_open(a);
    struct sb out = {0};
    assert_null(spec_parse(a, d, "t.yaml", text, NULL));
    diag_print(d, &out);
    if (!strstr(out.p, says)) fail_msg("no '%s' in: %s", says, out.p);
    sb_free(&out);
}

static void test_limits(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct sb s = {0};
    sb_str(&s, HEAD BODY("", "    - {repeat: 4096, layers: [{mixer: m, ffn: f}]}\n") "#");
    assert_int_equal(good(a, s.p, NULL)->num_layers, 4096);
    while (s.n < 4 << 20) sb_char(&s, 'x');
    assert_non_null(good(a, s.p, NULL));
    sb_char(&s, 'x');
    refused(a, (struct str){s.p, s.n}, "the text is over 4 MiB");
    sb_free(&s);
    /* 64 levels are allowed; here the 64th holds a value of the wrong kind. */
    for (int levels = 64; levels <= 65; levels++) {
        sb_str(&s, HEAD "sweep: ");
        for (int i = 1; i < levels; i++) sb_char(&s, '[');
        for (int i = 1; i < levels; i++) sb_char(&s, ']');
        sb_char(&s, '\n');
        refused(a, (struct str){s.p, s.n}, levels == 64 ? "not supported yet" : "over 64 levels");
        sb_free(&s);
    }
    refused(a, (struct str){"strata: 1\0", 10}, "t.yaml:1:10: error: not YAML");
    struct diag *d = diag_open(a);
    assert_null(spec_load(a, d, "/no/such/file.yaml", NULL));
    assert_int_equal(diag_errors(d), 1);
    /* A byte order mark and Windows line ends are fine and do not move columns. */
    assert_non_null(good(a, "\xef\xbb\xbf" HEAD BODY("", ONE), NULL));
    refused(a, STR("\xef\xbb\xbfstrata: 2\r\nna\xc3\xafve: 1\r\n"),
            "t.yaml:1:9: error: strata must");
    refused(a, STR("x: \xc3\xaf\r\nna\xc3\xafve: zz\r\nstrata: 3"),
            "t.yaml:3:9: error: strata must");
    arena_close(a);
}

static void test_documents(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct sb s = {0};
    spec_reference(&s);
    bool ok = same_as_file(a, "specs/REFERENCE.md", sb_take(&s, a));
    spec_schema(&s);
    ok &= same_as_file(a, "specs/strata.schema.json", sb_take(&s, a));
    arena_close(a);
    assert_true(ok);
}

static void test_difference(void **state)
{
    (void)state;
    static const struct {
        const char *set, *says;
    } rows[] = {
        {"model.hidden_size=64", "model.hidden_size is 64, but was 32"},
        {"model.norm=layernorm", "model.norm.type is layernorm, but was rmsnorm"},
        {"model.mixers.m.rope={theta: 10}", "model.mixers.m.rope is true, but was false"},
        {"model.mixers.m.window=3", "model.mixers.m.window is 3, but was 0"},
        {"model.ffns.g.router.scale=2", "model.ffns.g.router.scale is 2, but was 1"},
        {"model.layers=[{mixer: m, ffn: f}]", "the number of layers is 1, but was 5"},
        {"model.residual.blocks=3", "the number of depth blocks is 3, but was 2"},
        {"model.residual.boundaries=[4]", "depth block 1 begins at sublayer 4, but was 5"},
        {"train.optimizer.lr=0.5", "train.optimizer.lr is 0.5, but was 0.001"},
        {"train.optimizer.betas=[0, 0]", "train.optimizer.betas is [0, 0], but was [0.9, 0.95]"},
        {"train.data.path=/b.npy", "train.data.path is '/b.npy', but was '/a.npy'"},
        {"train.optimizer.lr=0.001", NULL},
        {"train.checkpoint={dir: elsewhere}", NULL}};
    static const char text[] = HEAD
        "train: {data: {path: /a.npy}, seq_len: 8, batch_size: 4, steps: 9,\n"
        "  optimizer: {type: adamw, lr: 1e-3}}\n" BODY("  residual: {type: attnres, blocks: 2}\n",
                                                       FIVE);
    struct arena *a = arena_open("test");
    struct model *then = good(a, text, NULL);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *says = spec_difference(a, good(a, text, rows[i].set), then);
        if (rows[i].says && !says) fail_msg("no difference after %s", rows[i].set);
        if (rows[i].says)
            assert_string_equal(says, rows[i].says);
        else
            assert_null(says);
    }
    arena_close(a);
}

static void test_enum_names(void **state)
{
    (void)state;
    assert_string_equal(spec_enum_name("mixer_type", MIXER_kda), "kda");
    assert_string_equal(spec_enum_name("schedule_type", SCHED_cosine), "cosine");
    assert_string_equal(spec_enum_name("tokenizer_type", TOK_file), "file");
    assert_string_equal(spec_enum_name("gate_rank", GATE_full), "full");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),   cmocka_unit_test(test_files),
        cmocka_unit_test(test_defaults),  cmocka_unit_test(test_every_key),
        cmocka_unit_test(test_blocks),    cmocka_unit_test(test_set),
        cmocka_unit_test(test_merge),     cmocka_unit_test(test_limits),
        cmocka_unit_test(test_documents), cmocka_unit_test(test_enum_names),
        cmocka_unit_test(test_difference)};
    update = getenv("UPDATE") && *getenv("UPDATE");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
