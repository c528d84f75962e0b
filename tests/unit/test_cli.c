/* The commands as a user runs them: output, files, exit status. UPDATE=1 rewrites tests/cli. */
#include "compiler/sites.h"
#include "fixture.h"
#include "runtime/npy.h"
#include "runtime/tokenize.h"
#include "scratch.h"
#include "runtime/api.h"
#include <ctype.h>
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <cmocka.h>

static char strata[512]; /* the program beside this one */
static struct arena *a;
static struct str out; /* of the last run: standard output and error */
static struct rt_error err;

static int run_with(struct str in, const char *const *argv, size_t n)
{
    char *v[32] = {strata};
    int status;
    assert_true(n < 31);
    for (size_t i = 0; i < n; i++) v[i + 1] = str_dup(a, str_of(argv[i]));
    assert_int_equal(io_spawn(a, v, in, &out, &status), 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
#define RUN_IN(in, ...)                              \
    run_with(in, (const char *const[]){__VA_ARGS__}, \
             sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *))
#define RUN(...) RUN_IN(STR(""), __VA_ARGS__)
#define EXPECT(status, text, ...)                                                       \
    do {                                                                                \
        int got_ = RUN(__VA_ARGS__);                                                    \
        if (got_ != (status) || !strstr(out.p, text))                                   \
            fail_msg("status %d, want %d and '%s' in:\n%s", got_, status, text, out.p); \
    } while (0)

static struct str file(const char *path)
{
    struct str s;
    if (io_read(a, path, 1 << 26, &s)) fail_msg("cannot read %s", path);
    return s;
}

static void golden(const char *path, struct str got)
{
    struct str want = {0};
    if (!io_read(a, path, 1 << 24, &want) && str_eq(want, got)) return;
    if (!getenv("UPDATE"))
        fail_msg("%s differs (UPDATE=1 rewrites it); now:\n%.*s", path, (int)got.n, got.p);
    assert_int_equal(io_write_atomic(path, got.p, got.n), 0);
}

/* ---- check ---- */

/* The text up to the memory, which depends on kernels. */
static void check_texts(void **state)
{
    (void)state;
    static const char *const spec[][2] = {
        {"specs/tiny-attnres.yaml", "tests/cli/check-attnres.want"},
        {"examples/tiny-moe/spec.yaml", "tests/cli/check-moe.want"}};
    for (int i = 0; i < 2; i++) {
        EXPECT(0, "\nmemory ", "check", spec[i][0]);
        assert_non_null(strstr(out.p, "\n  peak "));
        golden(spec[i][1], (struct str){out.p, (size_t)(strstr(out.p, "\nmemory ") + 1 - out.p)});
    }
    EXPECT(0, "model.layers.0.mlp_res_proj", "check", "tests/fixtures/attnres-placement/spec.yaml");
}

static json_t *check_json(const char *spec)
{
    json_error_t e;
    EXPECT(0, "", "check", spec, "--json");
    json_t *j = json_loads(out.p, 0, &e);
    if (!j) fail_msg("%s: %s", spec, e.text);
    return j;
}

static json_int_t number(const json_t *j, const char *object, const char *key)
{
    const json_t *v = json_object_get(json_object_get(j, object), key);
    assert_true(json_is_integer(v));
    return json_integer_value(v);
}

/* From the tensors of the checkpoint: all, and what a token uses. */
static void count_tensors(const struct fixture *f, json_int_t *total, json_int_t *active)
{
    struct tensorfile *w;
    const char *path = str_fmt(a, "tests/fixtures/%s/weights.safetensors", f->name);
    assert_int_equal(tensorfile_open(path, &w, &err), RT_ok);
    *total = 0;
    double used = 0; /* the experts of a layer add up to whole numbers */
    for (size_t i = 0; i < tensorfile_count(w); i++) {
        const struct tf_tensor *t = tensorfile_at(w, i);
        json_int_t n = 1, num = 1, den = 1;
        size_t layer;
        for (int d = 0; d < t->rank; d++) n *= t->shape[d];
        *total += n;
        if (strstr(t->name, ".experts.") && sscanf(t->name, "model.layers.%zu.", &layer) == 1) {
            const struct ffn *x = &f->model->ffn[f->model->layer[layer].ffn];
            num = x->experts_per_token, den = x->num_experts;
        }
        if (strstr(t->name, "e_score_correction_bias")) num = 0;
        if (strstr(t->name, "embed_tokens") && !f->model->tie_embeddings) num = 0;
        used += (double)(n * num) / (double)den;
    }
    *active = (json_int_t)(used + 0.5);
    tensorfile_close(w);
}

/* Sources against the depth weights that the oracle wrote. */
static void check_sites(const struct fixture *f, const json_t *j)
{
    const json_t *sites = json_object_get(json_object_get(j, "depth"), "sites"), *s;
    size_t i, mixes = 0, found = 0;
    json_array_foreach(sites, i, s) mixes += json_is_true(json_object_get(s, "mixes"));
    for (i = 0; i < tensorfile_count(f->want); i++) {
        const struct tf_tensor *t = tensorfile_at(f->want, i);
        if (!str_starts(str_of(t->name), "depth.")) continue;
        size_t k;
        json_array_foreach(sites, k, s)
        {
            if (strcmp(json_string_value(json_object_get(s, "site")), t->name + 6)) continue;
            assert_int_equal(json_integer_value(json_object_get(s, "sources")), t->shape[0]);
            found++;
        }
    }
    assert_int_equal(found, mixes);
}

static void check_numbers(void **state)
{
    (void)state;
    for (const char *const *name = fixture_names(a); *name; name++) {
        struct fixture *f = fixture_open(*name, NULL);
        json_int_t total, active;
        json_t *j = check_json(str_fmt(a, "tests/fixtures/%s/spec.yaml", *name));
        count_tensors(f, &total, &active);
        assert_int_equal(number(j, "parameters", "total"), total);
        assert_int_equal(number(j, "parameters", "active"), active);
        assert_int_equal(json_array_size(json_object_get(j, "layers")), f->model->num_layers);
        check_sites(f, j);
        json_decref(j);
        fixture_close(f);
    }
}

/* Peak resident bytes of a child that succeeds. */
static double resident(const char *const *argv)
{
    struct rusage u;
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr)) _exit(9);
        execv(strata, (char *const *)argv);
        _exit(9);
    }
    assert_int_equal(wait4(pid, &status, 0, &u), pid);
    assert_int_equal(status, 0);
    return 1024 * (double)u.ru_maxrss;
}

/* The planned peak against what training takes beyond a command that does nothing. The first run
 * fills the kernel cache: a compiler counts as its parent's memory. */
static void planned_memory(void **state)
{
    (void)state;
    static const char *const specs[] = {"examples/tiny-moe/spec.yaml",
                                        "examples/tiny-kimi/spec.yaml", "specs/bench-c.yaml",
                                        "specs/bench-a.yaml"};
    const char *text = in_dir("text.txt"), *data = str_fmt(a, "--set=train.data.path=%s", text);
    const char *dir = str_fmt(a, "--set=train.checkpoint.dir=%s", in_dir("run"));
    struct sb s = {0};
    for (int i = 0; i < 20000; i++) sb_printf(&s, "%d bottles of beer on the wall\n", i);
    assert_int_equal(io_write_atomic(text, s.p, s.n), 0);
    sb_free(&s);
    double base = resident((const char *const[]){strata, "spec", "--schema", NULL});
    for (int i = 0; i < 4; i++) {
        double got = 0;
        EXPECT(0, "", "check", specs[i], "--json", data);
        json_t *j = json_loads(out.p, 0, NULL);
        double planned = (double)number(j, "memory", "peak");
        json_decref(j);
        for (int k = 0; k < 2; k++) {
            io_remove_tree(in_dir("run"));
            got = resident(
                (const char *const[]){strata, "train", specs[i], "--steps", "1", data, dir, NULL});
        }
        double ratio = planned / (got - base);
        print_message("%s: planned %.1f MiB, measured %.1f MiB\n", specs[i], planned / 0x1p20,
                      (got - base) / 0x1p20);
#ifndef STRATA_SANITIZED
        if (!(ratio > 0.9 && ratio < 1.1))
            fail_msg("planned memory is off by a factor of %.3f", ratio);
#else
        (void)ratio;
#endif
    }
}

/* ---- drawings ---- */

/* Tags closed in order, attributes quoted, no stray < or &. */
static void well_formed(struct str s)
{
    char open[16][32];
    int depth = 0;
    for (const char *p = s.p, *end = s.p + s.n; p < end; p++) {
        assert_true(*p != '&' && *p != '>');
        if (*p != '<') continue;
        bool close = p[1] == '/', quoted = false;
        const char *name = p + 1 + close;
        size_t n = strcspn(name, " />\n");
        for (p = name + n; p < end && (*p != '>' || quoted); p++) {
            assert_true(*p != '<');
            if (*p == '"') quoted = !quoted;
        }
        assert_true(p < end && n > 0 && n < 32);
        if (close) {
            assert_true(depth > 0);
            depth--;
            assert_true(strlen(open[depth]) == n && !memcmp(open[depth], name, n));
        } else if (p[-1] != '/') {
            assert_true(depth < 16);
            memcpy(open[depth], name, n);
            open[depth++][n] = 0;
        }
    }
    assert_int_equal(depth, 0);
}

static size_t count(struct str s, const char *what)
{
    size_t n = 0;
    for (const char *p = s.p; (p = strstr(p, what)); p++) n++;
    return n;
}

static void drawings(void **state)
{
    (void)state;
    static const char *const example[] = {"tiny-moe", "tiny-kimi"};
    for (int i = 0; i < 2; i++) {
        const char *dir = str_fmt(a, "examples/%s", example[i]), *to = in_dir("drawn.svg");
        EXPECT(0, "", "check", str_fmt(a, "%s/spec.yaml", dir), "--draw", to);
        golden(str_fmt(a, "%s/architecture.svg", dir), file(to));
    }
    static const char *const set[] = {
        "model.residual={type: attnres, blocks: 4}",
        "model.residual=standard",
        "model.residual={type: attnres, block_size: 1}",
        "model.layers=[{repeat: 93, layers: [{mixer: full, ffn: dense}]}]",
        "model.layers=[{mixer: full, ffn: dense}, {mixer: full, ffn: dense, attnres: false}]",
    };
    for (size_t i = 0; i < sizeof set / sizeof *set; i++) {
        const char *svg = in_dir("x.svg");
        struct diag *d = diag_open(a);
        struct model *m =
            spec_load(a, d, "specs/tiny-attnres.yaml", &(struct spec_options){&set[i], 1});
        assert_non_null(m);
        EXPECT(0, "tiny-attnres", "check", "specs/tiny-attnres.yaml", "--draw", svg, "--set",
               set[i]);
        struct str text = file(svg);
        well_formed(text);
        size_t n, dots = 0;
        const struct site *s = sites_of(a, m, &n);
        bool off = false;
        for (size_t k = 0; k < n; k++) dots += site_sources(&s[k]), off |= k && !s[k].mixes;
        if (n)
            dots += 3 + off; /* legend */
        else
            dots = 2 * m->num_layers; /* a plus for each sublayer */
        assert_int_equal(count(text, "<circle "), dots);
    }
}

/* ---- tokenize ---- */

static void check_npy(const char *path, const int32_t *ids, size_t n)
{
    struct npy x;
    assert_int_equal(npy_open(path, &x, &err), RT_ok);
    assert_int_equal(x.type, NPY_i32);
    assert_int_equal(x.rank, 1);
    assert_int_equal(x.count, n);
    for (size_t i = 0; i < n; i++) assert_int_equal(npy_int(&x, i), ids[i]);
    npy_close(&x);
}

static void tokenize_bytes(void **state)
{
    (void)state;
    struct str in = {"a\0\xc3\xa9\r\n", 6}, bad = {"a\xff\n", 3};
    const char *npy = in_dir("x.npy");
    assert_int_equal(RUN_IN(in, "tokenize", "--tokenizer", "bytes", "--ids", "-o", npy), 0);
    assert_string_equal(out.p, "97 0 195 169 13 10\n");
    check_npy(npy, (const int32_t[]){97, 0, 195, 169, 13, 10}, 6);
    assert_int_equal(RUN_IN(STR(""), "tokenize", "--tokenizer", "bytes", "--ids"), 0);
    assert_string_equal(out.p, "\n");
    assert_int_equal(RUN_IN(in, "tokenize", "--spec", "specs/bench-a.yaml"), 0);
    assert_string_equal(out.p, "6 tokens from 6 bytes, vocabulary 256\n");
    assert_int_equal(RUN_IN(bad, "tokenize", "--tokenizer", "bytes", "--ids"), 1);
    assert_non_null(strstr(out.p, "invalid UTF-8 at byte 1"));
    EXPECT(2, "there is none", "tokenize", "--tokenizer", "bytes", "--set", "name=x");
}

static void tokenize_chars(void **state)
{
    (void)state;
    const char *text = in_dir("vocab.txt");
    struct tokenizer *t;
    struct sb back = {0};
    assert_int_equal(io_write_atomic(text, "banane \xc3\xa9\n", 10), 0);
    struct str in = STR("\xc3\xa9 an\n");
    assert_int_equal(RUN_IN(in, "tokenize", "--tokenizer", "chars", "--text", text, "--ids"), 0);
    assert_string_equal(out.p, "6 1 2 5 0\n"); /* newline, space, a, b, e, n, e acute */
    assert_int_equal(tokenizer_chars_of_file(text, &t, &err), RT_ok);
    tokenizer_decode(t, (const int32_t[]){6, 1, 2, 5, 0}, 5, &back);
    assert_true(str_eq((struct str){back.p, back.n}, in));
    sb_free(&back);
    tokenizer_close(t);
    assert_int_equal(RUN_IN(STR("an\xff"), "tokenize", "--tokenizer", "chars", "--text", text), 1);
    assert_non_null(strstr(out.p, "byte 2"));
    assert_int_equal(RUN_IN(STR("anx"), "tokenize", "--tokenizer", "chars", "--text", text), 1);
    EXPECT(2, "--text", "tokenize", "--tokenizer", "chars");
    EXPECT(1, "base64", "tokenize", "--tokenizer", text);
    EXPECT(1, "no tokenizer", "tokenize", "--tokenizer", "gpt9");
    EXPECT(2, "--help", "tokenize", "--tokenizer", "bytes", "--idz");
    EXPECT(2, "either", "tokenize");
}

/* ---- the others ---- */

/* A model of one layer that sees the same tokens at every step and learns nothing: after the first
 * step its largest logit is the limit. */
static void clipped_logits(void **state)
{
    (void)state;
    static const char *const mixer[] = {
        "{type: attention, num_heads: 4, num_kv_heads: 2, head_dim: 6, rope: {theta: 100}}",
        "{type: attention, num_heads: 2, head_dim: 5}",
        "{type: mla, num_heads: 3, kv_lora_rank: 7, qk_nope_head_dim: 5, qk_rope_head_dim: 4, "
        "v_head_dim: 6, rope: {theta: 100}}",
        "{type: mla, num_heads: 2, q_lora_rank: 9, kv_lora_rank: 7, qk_nope_head_dim: 5, "
        "qk_rope_head_dim: 3, v_head_dim: 6}"};
    static const char *const optimizer[] = {"adamw", "muon"};
    const char *text = str_fmt(a, "%s/clip.txt", scratch_dir),
               *spec = str_fmt(a, "%s/clip.yaml", scratch_dir);
    assert_int_equal(io_write_atomic(text, "to be or not to be?", 17), 0);
    for (int i = 0; i < 4; i++) {
        const char *dir = str_fmt(a, "%s/clip%d", scratch_dir, i);
        const char *s = str_fmt(
            a,
            "strata: 1\nname: clip\ntokenizer: bytes\nmodel:\n  vocab_size: 256\n"
            "  hidden_size: 24\n  init: {std: 0.3, embedding_std: 1}\n  mixers: {m: %s}\n"
            "  ffns: {f: {type: mlp, intermediate_size: 8}}\n  layers: [{mixer: m, ffn: f}]\n"
            "train:\n  data: {path: %s, order: sequential}\n  seq_len: 16\n  batch_size: 2\n"
            "  micro_batches: 2\n  steps: 3\n  seed: 3\n  checkpoint: {dir: %s}\n"
            "  optimizer: {type: %s, lr: 0, qk_clip: 0.5}\n",
            mixer[i], text, dir, optimizer[i % 2]);
        assert_int_equal(io_write_atomic(spec, s, strlen(s)), 0);
        EXPECT(0, "", "train", spec);
        const char *line = file(str_fmt(a, "%s/metrics.jsonl", dir)).p;
        for (int step = 0; step < 3; step++) {
            line = strstr(line, "\"logit_max\": ");
            assert_non_null(line);
            double most = strtod(line += strlen("\"logit_max\": "), NULL);
            if (step == 0)
                assert_true(most > 1);
            else if (fabs(most - 0.5) > 5e-6)
                fail_msg("mixer %d, step %d: largest logit %.9g", i, step, most);
        }
    }
}

static void documents(void **state)
{
    (void)state;
    EXPECT(0, "", "spec", "--reference");
    assert_true(str_eq(out, file("specs/REFERENCE.md")));
    EXPECT(0, "", "spec", "--schema");
    assert_true(str_eq(out, file("specs/strata.schema.json")));
    EXPECT(2, "either", "spec");
}

static void compile(void **state)
{
    (void)state;
    const char *ir = in_dir("x.ir"), *c = in_dir("x.c"), *o = in_dir("x.o"),
               *spec = "specs/tiny-attnres.yaml";
    EXPECT(0, "distinct kernels", "compile", spec, "--emit", "ir", "-o", ir);
    assert_true(str_starts(file(ir), "graph train stage K\n"));
    assert_non_null(strstr(file(ir).p, "\n; plan train stage P B=1 T=128\n"));
    EXPECT(1, "does not take a graph of this stage", "opt", ir, "--passes=dce");
    EXPECT(0, "B 2, T 16", "compile", spec, "--emit", "c", "-o", c, "--program", "loss", "--batch",
           "2", "--seq", "16", "--time-passes");
    assert_non_null(strstr(out.p, "two-phase"));
    assert_true(str_starts(file(c), "/* tiny-attnres (specs/tiny-attnres.yaml)\n"));
    EXPECT(0, "machine code", "compile", spec, "--emit", "obj", "-o", o, "--program", "forward");
    assert_true(str_starts(file(o), "\x7f"
                                    "ELF"));
    EXPECT(0, "", "compile", spec, "--emit", "c", "-o", c, "--cpu", "x86-64-v4");
    EXPECT(0, "program apply", "compile", "specs/bench-c.yaml", "--emit", "ir", "-o", ir,
           "--program", "apply");
    EXPECT(2, "ir, cuda, ptx or cubin", "compile", spec, "--target", "cuda:sm_90", "--emit", "c",
           "-o", c);
    EXPECT(2, "no form 'ptx'", "compile", spec, "--emit", "ptx", "-o", c);
    EXPECT(2, "as cuda:sm_90a", "compile", spec, "--target", "cuda", "--emit", "cuda", "-o", c);
    EXPECT(0, "of CUDA C", "compile", spec, "--target", "cuda:sm_90a", "--emit", "cuda", "-o", c);
    assert_non_null(strstr(file(c).p, "; first from specs/tiny-attnres.yaml:"));
    EXPECT(0, "program decode, B 1, T 1:", "compile", spec, "--emit", "c", "-o", c, "--program",
           "decode");
    EXPECT(0, "program prefill, B 2, T 256:", "compile", spec, "--emit", "c", "-o", c, "--program",
           "prefill", "--batch", "2");
    EXPECT(1, "train section", "compile", spec, "--emit", "c", "-o", c, "--program", "apply");
    EXPECT(1, "cannot write", "compile", spec, "--emit", "c", "-o", "/nowhere/x.c");
    EXPECT(2, "--emit", "compile", spec, "-o", c);
}

static void opt(void **state)
{
    (void)state;
    const char *bad = in_dir("bad.ir");
    EXPECT(0, "stage K", "opt", "tests/ir/fuse_norm.ir");
    EXPECT(0, "stage T", "opt", "tests/ir/fuse_norm.ir", "--passes=simplify,dce");
    EXPECT(0, "distinct row kernels", "opt", "tests/ir/fuse_norm.ir", "--passes=fuse-rows",
           "--report");
    EXPECT(2, "did you mean narrow", "opt", "tests/ir/fuse_norm.ir", "--passes=dce,narow");
    assert_int_equal(io_write_atomic(bad, "graph x stage T\n%a = b\n", 23), 0);
    EXPECT(1, "error", "opt", bad);
    EXPECT(1, "cannot read", "opt", in_dir("absent.ir"));
}

static void status(void **state)
{
    (void)state;
    EXPECT(2, "no command", "--nothing");
    EXPECT(0, "check", "--help");
    EXPECT(1, "error", "check", in_dir("absent.yaml"));
    EXPECT(1, "error:", "check", "specs/bench-a.yaml", "--set", "model.hidden_size=-1");
    EXPECT(1, "cannot write", "check", "specs/bench-a.yaml", "--draw", "/nowhere/x.svg");
    EXPECT(2, "did you mean --json", "check", "specs/bench-a.yaml", "--jsn");
    EXPECT(2, "needs 1 argument", "check");
    EXPECT(2, "no option -x", "check", "specs/bench-a.yaml", "-x");
    EXPECT(2, "--steps", "train", "specs/bench-a.yaml", "--steps", "-1");
    EXPECT(2, "--seed", "init", "specs/tiny-attnres.yaml", "-o", in_dir("x"), "--seed", "-1");
    EXPECT(2, "--max-tokens", "generate", "specs/tiny-attnres.yaml", "--weights", "w",
           "--prompt-ids", "1", "--max-tokens", "-1");
    assert_int_equal(system(str_fmt(a, "'%s' spec --schema >/dev/full 2>&1", strata)) >> 8, 3);
}

/* abort(), which bugs end in, is exit status 4. The child waits for standard input. */
static void bug_status(void **state)
{
    (void)state;
    int in[2], status;
    assert_int_equal(pipe(in), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(in[0], 0);
        close(in[1]);
        execl(strata, strata, "tokenize", "--tokenizer", "bytes", (char *)NULL);
        _exit(9);
    }
    const char *path = str_fmt(a, "/proc/%d/status", (int)pid), *line;
    unsigned long long caught = 0;
    for (int i = 0; i < 5000 && !(caught >> (SIGABRT - 1) & 1); i++) {
        struct str s = file(path);
        line = strstr(s.p, "SigCgt:");
        if (line) caught = strtoull(line + 7, NULL, 16);
        usleep(1000);
    }
    kill(pid, SIGABRT);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), EXIT_BUG);
    close(in[0]);
    close(in[1]);
}

static void help(void **state)
{
    (void)state;
    static const char *const name[] = {
#define COMMAND(name, help) #name,
#include "compiler/command.def"
    };
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        const char *example = str_fmt(a, "strata %s ", name[i]);
        EXPECT(0, example, name[i], "--help");
        assert_true(str_starts(out, "usage: "));
        assert_true(count(out, example) >= 2); /* how it is called, and an example */
    }
}

/* A wrong command line is status 2, whatever the command: every option that a help lists. */
static void wrong_options(void **state)
{
    (void)state;
    static const char *const name[] = {
#define COMMAND(name, help) #name,
#include "compiler/command.def"
    };
    size_t options = 0;
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        EXPECT(2, "no option --no-such-thing", name[i], "--no-such-thing");
        EXPECT(0, "usage: ", name[i], "--help");
        for (const char *p = out.p; (p = strstr(p, "\n  --")); options++) {
            p += 3;
            size_t n = strcspn(p, " \n,=");
            const char *option = str_dup(a, (struct str){p, n});
            bool valued = strchr(" =", p[n]) && isupper((unsigned char)p[n + 1]);
            bool number = valued && p[n + 1] == 'N' && p[n + 2] == ' ';
            struct str help = out;
            if (valued)
                EXPECT(2, "needs a value", name[i], option);
            else
                EXPECT(2, "takes no value", name[i], str_fmt(a, "%s=x", option));
            if (number) EXPECT(2, "", name[i], option, "x");
            out = help;
        }
    }
    assert_true(options > 140);
}

/* Values that no file or machine could make right are one too; what files and machines have is not.
 */
static void wrong_values(void **state)
{
    (void)state;
    const char *spec = "specs/tiny-attnres.yaml", *x = in_dir("x"), *w = "absent";
#define COMPILE "compile", spec, "-o", x, "--emit"
    EXPECT(2, "no target 'tpu'", COMPILE, "c", "--target", "tpu");
    EXPECT(2, "sm_9999", COMPILE, "cuda", "--target", "cuda:sm_9999");
    setenv("STRATA_CUDA_PATH", "/nowhere", 1); /* without NVRTC too */
    EXPECT(2, "sm_89 sm_90 sm_100", COMPILE, "cuda", "--target", "cuda:sm_9999");
    unsetenv("STRATA_CUDA_PATH");
    EXPECT(2, "sm_80", COMPILE, "cuda", "--target", "cuda:sm_70");
    EXPECT(2, "no program 'test'", COMPILE, "c", "--program", "test");
    EXPECT(2, "no form 'asm'", COMPILE, "asm");
    EXPECT(2, "--batch", COMPILE, "c", "--batch", "-1");
    EXPECT(2, "no processor", "build", spec, "--weights", w, "-o", x, "--target", "cpu:z80");
    EXPECT(2, "no target", "build", spec, "--weights", w, "-o", x, "--target", "tpu");
    EXPECT(2, "--dtype", "build", spec, "--weights", w, "-o", x, "--dtype", "fp4");
    EXPECT(2, "--dtype", "generate", spec, "--weights", w, "--prompt-ids", "1", "--dtype", "fp4");
    EXPECT(2, "no pass is named", COMPILE, "c", "--skip", "fuse-rows,nothing");
    EXPECT(2, "unknown cpu", "train", "specs/bench-a.yaml", "--cpu", "z80");
    EXPECT(2, "no device", "train", "specs/bench-a.yaml", "--device", "tpu");
    EXPECT(2, "--threads", "check", spec, "--threads", "-1");
    EXPECT(2, "--device", "check", spec, "--device", "tpu");
    EXPECT(2, "--dtype", "export", spec, "--weights", w, "-o", x, "--dtype", "int8");
    EXPECT(2, "--chat-template", "serve", spec, "--weights", w, "--chat-template", "none");
    EXPECT(2, "exclude", "serve", spec, "--weights", w, "--api-key", "k", "--api-key-file", "f");
    EXPECT(1, "--api-key-file", "serve", spec, "--weights", w, "--api-key-file", in_dir("none"));
    static const struct {
        const char *name;
        double most;
    } limits[] = {
#define LIMIT(member, kind, standard, lowest, highest, name, help) {name, (double)(highest)},
#include "runtime/serve.def"
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        const char *most = str_fmt(a, "%.0f", limits[i].most + 1);
        const char *option = str_fmt(a, "--%s", limits[i].name);
        EXPECT(2, "must be from", "serve", spec, "--weights", w, option, most);
    }
}

static int open_all(void **state)
{
    (void)state;
    if (!strata_path(strata) || !scratch_open()) return -1;
    a = arena_open("test_cli");
    return 0;
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
        cmocka_unit_test(status),
        cmocka_unit_test(bug_status),
        cmocka_unit_test(help),
        cmocka_unit_test(wrong_options),
        cmocka_unit_test(wrong_values),
        cmocka_unit_test(clipped_logits),
        cmocka_unit_test(documents),
        cmocka_unit_test(check_texts),
        cmocka_unit_test(drawings),
        cmocka_unit_test(check_numbers),
        cmocka_unit_test(tokenize_bytes),
        cmocka_unit_test(tokenize_chars),
        cmocka_unit_test(opt),
        cmocka_unit_test(compile),
        cmocka_unit_test(planned_memory),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
