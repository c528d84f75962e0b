/* Hugging Face interchange: tensors as the releases store them, config.json to a spec and back. */
#include "base/io.h"
#include "compiler/hf_config.h"
#include "compiler/weights.h"
#include "runtime/mxfp4.h"
#include "scratch.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <glob.h>
#include <cmocka.h>

static struct arena *a;
static struct diag *d;
static struct rt_error err;

/* All diagnostics so far; the list starts anew. */
static const char *said(void)
{
    struct sb s = {0};
    diag_print(d, &s);
    d = diag_open(a);
    sb_char(&s, '\n');
    return sb_take(&s, a).p;
}

static void expect_said(const char *text)
{
    const char *got = said();
    if (!strstr(got, text)) fail_msg("'%s' does not say '%s'", got, text);
}

/* ---- MXFP4 ---- */

/* Every code at every scale, by the definition of the format: sign, two bits of exponent with bias
 * 1, one bit of mantissa. */
static void mxfp4_codes(void **state)
{
    (void)state;
    enum { ROWS = 256, COLS = 256 * 2 };
    static unsigned char packed[ROWS * COLS / 2], scale[ROWS * COLS / MXFP4_BLOCK];
    static float out[ROWS * COLS];
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; i < COLS / 2; i++) packed[r * COLS / 2 + i] = (unsigned char)i;
        memset(scale + r * COLS / MXFP4_BLOCK, r, COLS / MXFP4_BLOCK);
    }
    mxfp4_read(packed, scale, ROWS, COLS, out);
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < COLS; i++) {
            int code = i % 2 ? i / 2 >> 4 : i / 2 & 15, e = code >> 1 & 3, m = code & 1;
            double v = e ? (1 + m * 0.5) * pow(2, e - 1) : m * 0.5;
            float want = (float)((code & 8 ? -v : v) * pow(2, r - 127)), got = out[r * COLS + i];
            if (r == 255)
                assert_true(isnan(got));
            else if (got != want || signbit(got) != signbit(want))
                fail_msg("code %d at scale %d is %g, not %g", code, r, (double)got, (double)want);
        }
}

/* ---- tensors as the releases have them ---- */

enum { MAX_TENSORS = 16 };
static struct tf_tensor tensor[MAX_TENSORS];
static size_t num_tensors;

static void put(const char *name, enum tf_dtype dtype, const void *data, int rank, int64_t d0,
                int64_t d1, int64_t d2, int64_t d3)
{
    tensor[num_tensors++] = (struct tf_tensor){
        .name = name, .dtype = dtype, .rank = rank, .shape = {d0, d1, d2, d3}, .data = data};
}

/* Three parameters: a vector per head of 3, a matrix [2, 64], and (where `tied` is not set) a head.
 */
static struct params *some_params(bool tied)
{
    struct params *ps = NEW(a, struct params, 1);
    ps->p = NEW(a, struct param, 4);
    map_init(&ps->by_name, a);
    static const struct param_part parts[4] = {
        {.tensor = "model.embed_tokens.weight", .dim = {4, 2}, .rank = 2},
        {.tensor = "model.layers.0.A_log", .dim = {3}, .rank = 1, .per_head = true},
        {.tensor = "model.layers.0.w1.weight", .dim = {2, 64}, .rank = 2},
        {.tensor = "lm_head.weight", .dim = {4, 2}, .rank = 2},
    };
    for (size_t i = 0; i < (tied ? 3 : 4); i++) {
        ps->p[ps->n++] = (struct param){.name = parts[i].tensor,
                                        .num_parts = 1,
                                        .part = (struct param_part *)&parts[i],
                                        .count = part_count(&parts[i])};
        *map_str(&ps->by_name, str_of(parts[i].tensor)) = (uint32_t)ps->n;
    }
    return ps;
}

static float numbers[512], loaded[4][256],
    *memory[4] = {loaded[0], loaded[1], loaded[2], loaded[3]};

static enum rt_status load(const struct params *ps)
{
    const struct tf_content c = {tensor, num_tensors, NULL, 0, NULL, NULL};
    assert_int_equal(tensorfile_write(in_dir("w.safetensors"), &c, &err), RT_ok);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 256; k++) loaded[i][k] = -7;
    return weights_load(ps, in_dir("w.safetensors"), memory, d, &err);
}

static void start(const char *prefix)
{
    num_tensors = 0;
    for (int i = 0; i < 512; i++) numbers[i] = (float)i / 8;
    put(str_fmt(a, "%smodel.embed_tokens.weight", prefix), TF_F32, numbers, 2, 4, 2, 0, 0);
}

static void a_log_shapes(void **state)
{
    (void)state;
    const struct params *ps = some_params(true);
    const char *name = "model.layers.0.A_log", *w = "model.layers.0.w1.weight";
    for (int form = 0; form < 4; form++) {
        start("");
        put(w, TF_F32, numbers, 2, 2, 64, 0, 0);
        if (form == 0) put(name, TF_F32, numbers + 5, 1, 3, 0, 0, 0);
        if (form == 1) put(name, TF_F32, numbers + 5, 4, 1, 1, 3, 1);
        if (form == 2) put(name, TF_F32, numbers + 5, 1, 8, 0, 0, 0);
        if (form == 3) put(name, TF_F32, numbers + 5, 4, 1, 1, 8, 1);
        if (load(ps) != RT_ok) fail_msg("form %d: %s", form, said());
        assert_memory_equal(loaded[1], numbers + 5, 3 * sizeof(float));
        assert_true(loaded[1][3] == -7);
    }
    static const int64_t wrong[][4] = {{1, 2, 0, 0}, {4, 1, 1, 2}, {2, 3, 1, 0}};
    for (int i = 0; i < 3; i++) {
        start("");
        put(w, TF_F32, numbers, 2, 2, 64, 0, 0);
        int rank = (int)wrong[i][0];
        if (rank == 1) put(name, TF_F32, numbers, 1, 2, 0, 0, 0);
        if (rank == 4) put(name, TF_F32, numbers, 4, 1, 1, 2, 1);
        if (rank == 2) put(name, TF_F32, numbers, 2, 3, 1, 0, 0);
        assert_int_equal(load(ps), RT_user);
        expect_said("tensor 'model.layers.0.A_log' has shape [");
        assert_true(loaded[0][0] == -7 && loaded[2][0] == -7); /* nothing was loaded */
    }
}

static void mxfp4_tensors(void **state)
{
    (void)state;
    const struct params *ps = some_params(true);
    unsigned char packed[64], scale[4] = {127, 128, 0, 130};
    float want[128];
    for (int i = 0; i < 64; i++) packed[i] = (unsigned char)(i * 37);
    mxfp4_read(packed, scale, 2, 64, want);
    const char *p = "language_model.model.layers.0.w1.weight_packed";
    const char *s = "language_model.model.layers.0.w1.weight_scale";
    start("language_model.");
    put("language_model.model.layers.0.A_log", TF_F32, numbers, 1, 3, 0, 0, 0);
    size_t base = num_tensors;
    put(p, TF_U8, packed, 2, 2, 32, 0, 0);
    put(s, TF_U8, scale, 2, 2, 2, 0, 0);
    if (load(ps) != RT_ok) fail_msg("%s", said());
    assert_memory_equal(loaded[2], want, sizeof want);
    num_tensors = base;
    put(p, TF_U8, packed, 2, 2, 32, 0, 0);
    assert_int_equal(load(ps), RT_user);
    expect_said("'language_model.model.layers.0.w1.weight_scale' is missing");
    put(s, TF_U8, scale, 2, 2, 1, 0, 0);
    assert_int_equal(load(ps), RT_user);
    expect_said("weight_scale' has shape [2, 1], the model needs [2, 2]");
    num_tensors = base;
    put(p, TF_I8, packed, 2, 2, 32, 0, 0);
    put(s, TF_U8, scale, 2, 2, 2, 0, 0);
    assert_int_equal(load(ps), RT_user);
    expect_said("weight_packed' has type I8");
    num_tensors = base;
    put(p, TF_U8, packed, 2, 2, 32, 0, 0);
    put(s, TF_U8, scale, 2, 2, 2, 0, 0);
    put("language_model.model.layers.0.w1.weight", TF_F32, numbers, 2, 2, 64, 0, 0);
    assert_int_equal(load(ps), RT_user); /* said twice */
    expect_said("weight_packed' is not one of the model's");
    num_tensors = base;
    assert_int_equal(load(ps), RT_user);
    expect_said("'language_model.model.layers.0.w1.weight' is missing");
    assert_true(loaded[0][0] == -7);
}

/* Every tensor is used, told to be of no use, or an error. */
static void accounting(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
        bool error;
    } extra[] = {
        {"model.layers.0.self_attn.rotary_emb.inv_freq", "rotary periods", false},
        {"vision_tower.encoder.blocks.0.wo.weight", "vision part", false},
        {"model.visual.merger.weight", "vision part", false},
        {"mm_projector.proj.0.weight", "vision part", false},
        {"mtp.layers.0.q.weight", "predict further tokens", false},
        {"model.layers.1.eh_proj.weight", "predict further tokens", false},
        {"model.layers.1.self_attn.q_proj.weight", "is not one of the model's", true},
        {"model.layers.0.q_proj.bias", "is not one of the model's", true},
        {"visual_head.weight", "is not one of the model's", true},
        {"lm_head.weight", "shares the embedding table", false},
    };
    const struct params *ps = some_params(true);
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++) {
        start("");
        put("model.layers.0.A_log", TF_F32, numbers, 1, 3, 0, 0, 0);
        put("model.layers.0.w1.weight", TF_F32, numbers, 2, 2, 64, 0, 0);
        put(extra[i].name, TF_F32, numbers, 2, 4, 2, 0, 0);
        if ((load(ps) == RT_user) != extra[i].error) fail_msg("%s: %s", extra[i].name, said());
        expect_said(extra[i].text);
        assert_true((loaded[0][1] == -7) == extra[i].error);
    }
    start(""); /* a head of its own, although it is said to be shared */
    put("model.layers.0.A_log", TF_F32, numbers, 1, 3, 0, 0, 0);
    put("model.layers.0.w1.weight", TF_F32, numbers, 2, 2, 64, 0, 0);
    put("lm_head.weight", TF_F32, numbers + 1, 2, 4, 2, 0, 0);
    assert_int_equal(load(ps), RT_user);
    expect_said("'lm_head.weight' is not one of the model's");
    num_tensors--; /* and one that is missing */
    assert_int_equal(load(some_params(false)), RT_user);
    expect_said("tie_embeddings");
    start("");
    put("model.layers.0.A_log", TF_I32, numbers, 1, 3, 0, 0, 0);
    put("model.layers.0.w2.weight", TF_F32, numbers, 2, 2, 64, 0, 0);
    assert_int_equal(load(ps), RT_user); /* several in one run */
    const char *all = said();
    assert_non_null(strstr(all, "A_log' has type I32"));
    assert_non_null(strstr(all, "w1.weight' is missing"));
    assert_non_null(strstr(all, "w2.weight' is not one"));
}

/* ---- config.json ---- */

/* Diagnostics and spec of every tests/hf/NAME.json are NAME.want; UPDATE=1 rewrites them. */
static void configs(void **state)
{
    (void)state;
    glob_t g;
    bool ok = true;
    assert_int_equal(glob("tests/hf/*.json", 0, NULL, &g), 0);
    assert_true(g.gl_pathc > 30);
    for (size_t i = 0; i < g.gl_pathc; i++) {
        const char *path = g.gl_pathv[i];
        const char *want = str_fmt(a, "%.*s.want", (int)strlen(path) - 5, path);
        struct str text, old = {0}, spec = {0};
        assert_int_equal(io_read(a, path, 1 << 20, &text), 0);
        struct hf_config *c = hf_config_read(a, d, path, text);
        assert_true((c == NULL) == (diag_errors(d) > 0));
        if (c) {
            c->model.tokenizer.type = TOK_none;
            spec = hf_spec_text(a, c, "imported");
            struct diag *own = diag_open(a);
            if (!spec_parse(a, own, "spec.yaml", spec, NULL)) fail_msg("%s: no spec", path);
        }
        struct str got = str_of(str_fmt(a, "%s%.*s", said(), (int)spec.n, spec.n ? spec.p : ""));
        if (!io_read(a, want, 1 << 20, &old) && str_eq(old, got)) continue;
        if (getenv("UPDATE")) {
            assert_int_equal(io_write_atomic(want, got.p, got.n), 0);
            continue;
        }
        fprintf(stderr, "%s differs (UPDATE=1 rewrites it); now:\n%s\n", want, got.p);
        ok = false;
    }
    globfree(&g);
    assert_true(ok);
}

/* ---- spec to config.json and back ---- */

static const char *const attention_spec =
    "strata: 1\nname: t\nmodel:\n  vocab_size: 40\n  hidden_size: 24\n"
    "  norm: {type: rmsnorm, eps: 3.0e-5}\n  init: {std: 0.03, embedding_std: 0.03}\n"
    "  mixers:\n"
    "    full: {type: attention, num_heads: 3, num_kv_heads: 1, head_dim: 6, rope: {theta: "
    "5.0e5}}\n"
    "    other: {type: attention, num_heads: 3, num_kv_heads: 1, head_dim: 6, rope: {theta: "
    "5.0e5}}\n"
    "  ffns:\n    dense: {type: mlp, intermediate_size: 20}\n"
    "  layers: [{mixer: full, ffn: dense}, {mixer: full, ffn: dense}]\n";
static const char *const kimi_spec =
    "strata: 1\nname: t\nmodel:\n  vocab_size: 40\n  hidden_size: 24\n"
    "  residual: standard\n"
    "  mixers:\n"
    "    kda: {type: kda, num_heads: 3, head_dim: 4, conv_size: 3}\n"
    "    mla: {type: mla, num_heads: 2, kv_lora_rank: 8, qk_nope_head_dim: 6, qk_rope_head_dim: "
    "2,\n"
    "          v_head_dim: 5}\n"
    "  ffns:\n    dense: {type: mlp, intermediate_size: 20}\n"
    "    moe: {type: moe, num_experts: 4, experts_per_token: 2, intermediate_size: 8,\n"
    "          router: {balance: bias, scale: 2.446}}\n"
    "  layers: [{mixer: kda, ffn: dense}, {mixer: kda, ffn: moe}, {mixer: mla, ffn: moe}]\n";

/* kimi-linear.md 1, 9 and 10. */
static void parameter_counts(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t total, blocks;
    } want[] = {
        {"kimi-linear", 49122681728, 1},
        {"kimi-linear-attnres", 49122681728 + 253440, 9},
        {"kimi-k3", 2779484476000, 8},
    };
    for (int i = 0; i < 3; i++) {
        struct str text;
        const char *path = str_fmt(a, "tests/hf/%s.json", want[i].name);
        assert_int_equal(io_read(a, path, 1 << 20, &text), 0);
        struct hf_config *c = hf_config_read(a, d, path, text);
        c->model.tokenizer.type = TOK_none;
        const struct model *m = spec_parse(a, d, "spec.yaml", hf_spec_text(a, c, "imported"), NULL);
        assert_int_equal(params_total(params_of(a, m)), want[i].total);
        assert_int_equal(m->num_boundaries + 1, want[i].blocks);
    }
}

/* A folder in the form of K3: the wrapper, the prefix, padded A_log, MXFP4 experts, a vision tower;
 * in the spec and the weights that came from it every number is where it belongs. */
static void k3_folder(void **state)
{
    (void)state;
    static const char config[] =
        "{\"model_type\": \"kimi_k3\", \"vision_config\": {}, \"text_config\": {"
        "\"model_type\": \"kimi_linear\", \"vocab_size\": 20, \"hidden_size\": 24,"
        "\"num_hidden_layers\": 3, \"num_attention_heads\": 2, \"intermediate_size\": 10,"
        "\"hidden_act\": \"situ\", \"activation_situ_beta\": 4.0,"
        "\"activation_situ_linear_beta\": 25.0, \"attn_res_block_size\": 2,"
        "\"linear_attn_config\": {\"kda_layers\": [1, 2], \"full_attn_layers\": [3],"
        "\"num_heads\": 3, \"head_dim\": 4, \"short_conv_kernel_size\": 4,"
        "\"gate_lower_bound\": -5.0, \"use_full_rank_gate\": true},"
        "\"q_lora_rank\": 6, \"kv_lora_rank\": 5, \"qk_nope_head_dim\": 4,"
        "\"qk_rope_head_dim\": 2, \"v_head_dim\": 3, \"mla_use_nope\": true,"
        "\"mla_use_output_gate\": true, \"first_k_dense_replace\": 1, \"num_experts\": 3,"
        "\"num_experts_per_token\": 2, \"num_shared_experts\": 2,"
        "\"moe_intermediate_size\": 64, \"routed_expert_hidden_size\": 32,"
        "\"latent_moe_use_norm\": true}}";
    struct hf_config *c = hf_config_read(a, d, "config.json", STR(config));
    if (!c) fail_msg("%s", said());
    c->model.tokenizer.type = TOK_none;
    const struct model *m = spec_parse(a, d, "spec.yaml", hf_spec_text(a, c, "k3"), NULL);
    if (!m) fail_msg("%s", said());
    const struct params *ps = params_of(a, m);
    VEC(struct tf_tensor) file = {0};
    float **want = NEW(a, float *, ps->n), **got = NEW(a, float *, ps->n);
    uint64_t n = 0;
    for (size_t i = 0; i < ps->n; i++) {
        want[i] = NEW(a, float, ps->p[i].count + 128);
        got[i] = NEW(a, float, ps->p[i].count);
        for (int64_t k = 0; k < ps->p[i].count; k++) want[i][k] = (float)n++;
        for (size_t k = 0; k < ps->p[i].num_parts; k++) {
            const struct param_part *q = &ps->p[i].part[k];
            struct tf_tensor t = part_tensor(q);
            t.name = str_fmt(a, "language_model.%s", q->tensor);
            t.data = want[i] + q->offset;
            if (q->per_head) t.shape[0] = 128;
            if (!strstr(q->tensor, ".experts.")) {
                vec_push(a, &file, t);
                continue;
            }
            size_t rows = (size_t)q->dim[0], cols = (size_t)q->dim[1];
            unsigned char *packed = NEW(a, unsigned char, rows *cols / 2);
            unsigned char *scale = NEW(a, unsigned char, rows *cols / 32);
            for (size_t b = 0; b < rows * cols / 2; b++) packed[b] = (unsigned char)(n = n * 5 + 1);
            for (size_t b = 0; b < rows * cols / 32; b++) scale[b] = (unsigned char)(120 + b % 9);
            mxfp4_read(packed, scale, rows, cols, want[i] + q->offset);
            t.dtype = TF_U8;
            t.data = packed, t.shape[1] = q->dim[1] / 2;
            const char *name = t.name;
            t.name = str_fmt(a, "%s_packed", name);
            vec_push(a, &file, t);
            t.data = scale, t.shape[1] = q->dim[1] / 32;
            t.name = str_fmt(a, "%s_scale", name);
            vec_push(a, &file, t);
        }
    }
    struct tf_tensor eye = {
        .name = "vision_tower.patch_embed.proj.weight", .rank = 1, .shape = {1}, .dtype = TF_F32};
    eye.data = numbers;
    vec_push(a, &file, eye);
    const struct tf_content content = {file.p, file.n, NULL, 0, NULL, NULL};
    assert_int_equal(tensorfile_write(in_dir("k3.safetensors"), &content, &err), RT_ok);
    if (weights_load(ps, in_dir("k3.safetensors"), got, d, &err)) fail_msg("%s", said());
    expect_said("vision part");
    for (size_t i = 0; i < ps->n; i++)
        assert_memory_equal(got[i], want[i], (size_t)ps->p[i].count * sizeof(float));
}

static struct model *parse(const char *text, const char *const *set, size_t n)
{
    const struct spec_options opt = {set, n};
    struct model *m = spec_parse(a, d, "t.yaml", str_of(text), &opt);
    if (!m) fail_msg("%s", said());
    return m;
}

static void round_trip(const char *text, const char *const *set, size_t n)
{
    struct model *m = parse(text, set, n);
    const char *json = hf_config_write(a, d, m, "float32");
    if (!json) fail_msg("%s", said());
    struct hf_config *c = hf_config_read(a, d, "config.json", str_of(json));
    if (!c || strchr(said(), ':')) fail_msg("%s", said());
    c->model.tokenizer.type = TOK_none;
    struct model *again = parse(hf_spec_text(a, c, "t").p, NULL, 0);
    const char *difference = spec_difference(a, again, m);
    if (difference) fail_msg("%s after %s", difference, json);
}
#define ROUND_TRIP(text, ...)                            \
    round_trip(text, (const char *const[]){__VA_ARGS__}, \
               sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *))

static void round_trips(void **state)
{
    (void)state;
    const char *one = "model.mixers={full: {type: attention, num_heads: 3, head_dim: 6, rope: {}}}";
    ROUND_TRIP(attention_spec, one);
    ROUND_TRIP(attention_spec, one, "model.tie_embeddings=true", "model.norm.eps=1e-12");
    ROUND_TRIP(attention_spec,
               "model.mixers={full: {type: attention, num_heads: 4, qk_norm: true, rope: {}}}");
    ROUND_TRIP(attention_spec,
               "model.mixers={window: {type: attention, num_heads: 4, window: 7, rope: "
               "{theta: 1234.5678901234567}}}",
               "model.layers=[{repeat: 3, layers: [{mixer: window, ffn: dense}]}]");
    ROUND_TRIP(
        attention_spec,
        "model.mixers={window: {type: attention, num_heads: 4, qk_norm: true, window: 7, rope: "
        "{}}, full: {type: attention, num_heads: 4, qk_norm: true, rope: {}}}",
        "model.layers=[{mixer: window, ffn: dense}, {mixer: full, ffn: dense}, {mixer: window, "
        "ffn: dense}]");
}

/* What K3 adds to Kimi Linear. */
#define K3                                                                       \
    "model.mixers.kda.gate={type: bounded, lower_bound: -4.5}",                  \
        "model.mixers.kda.output_gate=full", "model.ffns.moe.latent_size=12",    \
        "model.ffns.moe.num_shared_experts=2", "model.ffns.moe.activation=situ", \
        "model.ffns.dense.activation=situ"

static void kimi_round_trips(void **state)
{
    (void)state;
    const char *all_kda = "model.mixers={kda: {type: kda, num_heads: 3, head_dim: 4}}";
    const char *layers = "model.layers=[{mixer: kda, ffn: dense}, {mixer: kda, ffn: moe}]";
    ROUND_TRIP(kimi_spec, all_kda, layers);
    ROUND_TRIP(kimi_spec, all_kda, layers, K3);
    ROUND_TRIP(kimi_spec, all_kda, "model.ffns={dense: {type: mlp, intermediate_size: 20}}",
               "model.layers=[{mixer: kda, ffn: dense}]");
    ROUND_TRIP(kimi_spec, all_kda, layers,
               "model.residual={type: attnres, block_size: 2, eps: 1e-6}",
               "model.ffns.moe.router={score: softmax, renormalize: false, balance: bias}");
    ROUND_TRIP(kimi_spec, all_kda, layers, "model.residual={type: attnres, blocks: 1}");
    ROUND_TRIP(kimi_spec, "model.tie_embeddings=true");
    ROUND_TRIP(kimi_spec, K3, "model.mixers.mla.output_gate=true", "model.mixers.mla.q_lora_rank=7",
               "model.residual={type: attnres, block_size: 4}");
    ROUND_TRIP(
        kimi_spec,
        "model.mixers={mla: {type: mla, num_heads: 2, kv_lora_rank: 8, qk_nope_head_dim: 6, "
        "qk_rope_head_dim: 2, v_head_dim: 5}}",
        "model.ffns={moe: {type: moe, num_experts: 4, experts_per_token: 1, intermediate_size: "
        "8, router: {renormalize: false, balance: bias}}, dense: {type: mlp, "
        "intermediate_size: 20}}",
        "model.layers=[{repeat: 2, layers: [{mixer: mla, ffn: moe}, {mixer: mla, ffn: dense}]}]");
}

static void refuse(const char *text, const char *set, const char *what)
{
    struct model *m = parse(text, &set, 1);
    const char *json = hf_config_write(a, d, m, "float32");
    const char *got = said();
    if (json || !strstr(got, what)) fail_msg("%s: '%s' does not say '%s'", set, got, what);
}

static void refusals(void **state)
{
    (void)state;
    refuse(attention_spec, "model.norm.type=layernorm", "model.norm.type is layernorm");
    refuse(attention_spec, "model.mixers.full.rope=none", "model.mixers.full.rope is none");
    refuse(attention_spec, "model.ffns.dense.activation=situ",
           "model.ffns.dense.activation is situ");
    refuse(attention_spec, "model.residual={type: attnres, blocks: 2}",
           "model.mixers.full.type is attention");
    refuse(attention_spec,
           "model.ffns.dense={type: moe, num_experts: 2, experts_per_token: 1, "
           "intermediate_size: 4}",
           "model.mixers.full.type is attention");
    const char *const unlike[] = {
        "model.layers=[{mixer: full, ffn: dense}, {mixer: other, ffn: dense}]",
        "model.mixers.other.head_dim=8"};
    assert_null(hf_config_write(a, d, parse(attention_spec, unlike, 2), "float32"));
    expect_said("model.mixers.other is unlike model.mixers.full");
    const char *const window[] = {unlike[0], "model.mixers.other.window=8"};
    assert_null(hf_config_write(a, d, parse(attention_spec, window, 2), "float32"));
    expect_said("window is not that of every layer");
    const char *const notes[] = {"model.init.embedding_std=0.5", "tokenizer=bytes",
                                 "model.vocab_size=300"};
    assert_non_null(hf_config_write(a, d, parse(attention_spec, notes, 3), "float32"));
    expect_said("no place for model.init.embedding_std");
    refuse(kimi_spec, "model.mixers.mla.rope={theta: 100}", "model.mixers.mla.rope is rotating");
    refuse(kimi_spec, "model.ffns.moe.router.balance=none",
           "model.ffns.moe.router.balance is none");
    refuse(kimi_spec, "model.ffns.moe.experts_per_token=1", "router.renormalize is true");
    refuse(kimi_spec, "model.ffns.moe.activation=situ", "model.ffns.dense.activation is swiglu");
    refuse(kimi_spec, "model.residual={type: attnres, block_size: 3, eps: 1e-6}", "other blocks");
    refuse(kimi_spec, "model.residual={type: attnres, boundaries: [2, 3], eps: 1e-6}",
           "other blocks");
    refuse(kimi_spec, "model.residual={type: attnres, block_size: 2, eps: 1e-5}", "eps is 1e-05");
    refuse(kimi_spec, "model.residual={type: attnres, block_size: 2, output: false}",
           "output is false");
    refuse(
        kimi_spec,
        "model.layers=[{mixer: kda, ffn: moe}, {mixer: mla, ffn: moe}, {mixer: kda, ffn: dense}]",
        "model.layers is dense and moe in another order");
    const char *const off[] = {"model.residual={type: attnres, block_size: 2}",
                               "model.layers=[{mixer: kda, ffn: moe, attnres: false}]"};
    assert_null(hf_config_write(a, d, parse(kimi_spec, off, 2), "float32"));
    expect_said("model.layers.attnres is off in layer 0");
}

/* Against the definition: the nearest of the two neighbours, the even one of a tie. */
static void bf16_rounding(void **state)
{
    (void)state;
    static const uint32_t bits[][2] = {
        {0x3f800000, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82},
        {0x3f817fff, 0x3f81}, {0x7f7fffff, 0x7f80}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80},
        {0x7f800001, 0x7fc0}, {0x80000000, 0x8000}, {0x00008000, 0x0000}, {0x00018000, 0x0002},
        {0xbf80c000, 0xbf81}, {0xffffffff, 0xffff},
    };
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
        float x;
        uint16_t got;
        memcpy(&x, &bits[i][0], 4);
        tf_to_bf16(&x, 1, &got);
        if (got != bits[i][1]) fail_msg("%08x is %04x, not %04x", bits[i][0], got, bits[i][1]);
    }
}

static int open_all(void **state)
{
    (void)state;
    a = arena_open("test_hf");
    d = diag_open(a);
    return !scratch_open();
}

static int close_all(void **state)
{
    (void)state;
    scratch_close();
    arena_close(a);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mxfp4_codes),   cmocka_unit_test(a_log_shapes),
        cmocka_unit_test(mxfp4_tensors), cmocka_unit_test(accounting),
        cmocka_unit_test(configs),       cmocka_unit_test(parameter_counts),
        cmocka_unit_test(k3_folder),     cmocka_unit_test(bf16_rounding),
        cmocka_unit_test(round_trips),   cmocka_unit_test(kimi_round_trips),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
