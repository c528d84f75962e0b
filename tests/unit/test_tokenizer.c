/* Tokenizer files: reference vectors, texts in parts, malformed files. */
#include "runtime/npy.h"
#include "runtime/pattern.h"
#include "runtime/presplit.h"
#include "runtime/tokenizer_file.h"
#include "runtime/utf8.h"
#include "scratch.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static struct rt_error err;

static struct tokenizer *open_file(const char *path, const struct tok_options *o)
{
    struct tokenizer *t;
    if (tokenizer_file_open(path, o, &t, &err) != RT_ok) fail_msg("%s", err.text);
    return t;
}

static struct str read_file(struct arena *a, const char *path)
{
    struct str s;
    assert_int_equal(io_read(a, path, 1 << 28, &s), 0);
    return s;
}

static struct tok_ids encode(const struct tokenizer *t, struct str text, unsigned flags)
{
    struct tok_ids v = {0};
    struct tok_encoder *e;
    assert_int_equal(tok_encoder_open(t, flags, &e, &err), RT_ok);
    if (tok_encoder_add(e, text, true, &v, &err) != RT_ok) fail_msg("%s", err.text);
    tok_encoder_close(e);
    return v;
}

static void same_ids(const struct tok_ids *a, const struct tok_ids *b)
{
    assert_int_equal(a->n, b->n);
    if (a->n) assert_memory_equal(a->p, b->p, a->n * sizeof *a->p);
}

/* A small generator, the same everywhere. */
static uint32_t dice(uint64_t *seed, uint32_t n)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33) % n;
}

/* The same ids however the text is cut. */
static void any_parts(const struct tokenizer *t, struct str text, unsigned flags, uint32_t longest,
                      uint64_t seed)
{
    struct tok_ids whole = encode(t, text, flags), v = {0};
    struct tok_encoder *e;
    assert_int_equal(tok_encoder_open(t, flags, &e, &err), RT_ok);
    for (int round = 0; round < 2; round++) { /* an encoder takes one text after the other */
        v.n = 0;
        for (size_t i = 0; i <= text.n;) {
            size_t n = dice(&seed, longest + 1);
            bool last = i + n >= text.n;
            if (last) n = text.n - i;
            if (tok_encoder_add(e, (struct str){text.p + i, n}, last, &v, &err) != RT_ok)
                fail_msg("%s", err.text);
            i += n;
            if (last) break;
        }
        same_ids(&v, &whole);
    }
    tok_encoder_close(e);
    free(v.p);
    free(whole.p);
}

/* ---- reference vectors ---- */

static enum rt_status put_piece(void *to, struct str piece, struct rt_error *e)
{
    (void)e;
    struct sb *s = to;
    sb_printf(s, s->n ? " %zu" : "%zu", piece.n);
    return RT_ok;
}
static enum rt_status put_special(void *to, int32_t id, struct rt_error *e)
{
    (void)to, (void)id, (void)e;
    return RT_ok;
}

static void check_pieces(struct splitter *s, struct str text, const char *want)
{
    struct sb got = {0};
    sb_str(&got, "");
    const struct split_sink sink = {&got, put_piece, put_special};
    struct tok_part p = {text, 0, 0, true};
    assert_int_equal(splitter_run(s, &p, &sink, &err), RT_ok);
    assert_int_equal(p.from, text.n);
    assert_string_equal(got.p, want);
    sb_free(&got);
}

/* index, category, allow_special, utf8_hex, token_ids, piece_byte_lengths */
static void vector(const struct tokenizer *t, struct splitter *pieces, char *line)
{
    char *col[6];
    for (int i = 0; i < 6; i++) col[i] = strsep(&line, "\t\n");
    struct sb text = {0}, got = {0};
    sb_str(&text, "");
    sb_str(&got, "");
    for (char *h = col[3]; *h; h += 2) {
        char two[3] = {h[0], h[1], 0};
        sb_char(&text, (char)strtol(two, NULL, 16));
    }
    struct str s = {text.p, text.n};
    bool special = *col[2] == '1';
    struct tok_ids v = encode(t, s, special ? TOK_special : 0);
    for (size_t i = 0; i < v.n; i++) sb_printf(&got, i ? " %d" : "%d", v.p[i]);
    if (strcmp(got.p, col[4])) fail_msg("vector %s: %s, not %s", col[0], got.p, col[4]);
    if (!special) check_pieces(pieces, s, col[5]);
    got.n = 0;
    tokenizer_decode(t, v.p, v.n, &got);
    assert_true(str_eq((struct str){got.p ? got.p : "", got.n}, s));
    for (uint64_t seed = 0; seed < 4; seed++)
        any_parts(t, s, special, 1 + (uint32_t)seed * 3, seed);
    free(v.p);
    sb_free(&text);
    sb_free(&got);
}

static void vectors(const char *file, const char *tsv, const char *pattern, bool guard,
                    unsigned count)
{
    const char *path = shared_data(file);
    if (!path) skip();
    struct tokenizer *t = open_file(path, NULL);
    struct split_rules rules = {.guard = guard};
    struct pattern *p;
    struct splitter *pieces;
    assert_int_equal(pattern_open(pattern, &p, &err), RT_ok);
    rules.pattern = p;
    assert_int_equal(splitter_open(&rules, false, &pieces, &err), RT_ok);
    static char line[1 << 20];
    FILE *f = fopen(shared_data(tsv), "r");
    assert_non_null(f);
    unsigned n = 0;
    while (fgets(line, sizeof line, f))
        if (*line != '#') vector(t, pieces, line), n++;
    assert_int_equal(n, count);
    fclose(f);
    splitter_close(pieces);
    pattern_close(p);
    tokenizer_close(t);
}

static void vectors_gpt2(void **state)
{
    (void)state;
    vectors("tokenizer/gpt2.tiktoken", "tokenizer/vectors.gpt2.tsv", pattern_gpt2, false, 340);
}

static void vectors_kimi(void **state)
{
    (void)state;
    vectors("tokenizer/kimi.tiktoken.model", "tokenizer/vectors.kimi.tsv", pattern_kimi, true, 343);
}

/* Token counts of whole texts (data/README). */
static void whole_files(void **state)
{
    (void)state;
    const char *path = shared_data("tokenizer/gpt2.tiktoken");
    if (!path) skip();
    struct tokenizer *t = open_file(path, NULL);
    struct arena *a = arena_open("test");
    struct str s = read_file(a, shared_data("tinyshakespeare.txt"));
    struct tok_ids all = encode(t, s, 0), train = encode(t, (struct str){s.p, 1003854}, 0),
                   val = encode(t, (struct str){s.p + 1003854, s.n - 1003854}, 0);
    assert_int_equal(all.n, 338025);
    assert_int_equal(train.n, 301966);
    assert_int_equal(val.n, 36059);
    assert_int_equal(t->vocab_size, 50257);
    assert_int_equal(t->stop[0], 50256);
    free(all.p), free(train.p), free(val.p);
    tokenizer_close(t);
    t = open_file(shared_data("tokenizer/cl100k_base.tiktoken"), NULL);
    assert_int_equal(t->vocab_size, 100277);
    struct sb back = {0};
    all = encode(t, s, 0);
    tokenizer_decode(t, all.p, all.n, &back);
    assert_true(str_eq((struct str){back.p, back.n}, s));
    any_parts(t, s, 0, 65536, 1);
    any_parts(t, (struct str){s.p, 30000}, TOK_special, 64, 2);
    free(all.p);
    sb_free(&back);
    tokenizer_close(t);
    arena_close(a);
}

/* Endless runs: time grows with n log n, parts change nothing, Kimi cuts them. */
static void long_runs(void **state)
{
    (void)state;
    const char *path = shared_data("tokenizer/kimi.tiktoken.model");
    if (!path) skip();
    enum { N = 1 << 20 };
    struct tokenizer *kimi = open_file(path, NULL),
                     *gpt2 = open_file(shared_data("tokenizer/gpt2.tiktoken"), NULL);
    char *text = malloc(N);
    memset(text, 'a', N);
    struct str s = {text, N};
    struct sb back = {0};
    struct tok_ids v = encode(gpt2, s, 0);
    tokenizer_decode(gpt2, v.p, v.n, &back);
    assert_true(str_eq((struct str){back.p, back.n}, s));
    free(v.p);
    any_parts(gpt2, s, 0, 100000, 3);
    any_parts(kimi, s, 0, 100000, 4);
    /* 25,000 a, which are cut off */
    v = encode(kimi, (struct str){text, 50000}, 0);
    struct tok_ids half = encode(kimi, (struct str){text, 25000}, 0);
    assert_int_equal(v.n, 2 * half.n);
    assert_memory_equal(v.p + half.n, half.p, half.n * sizeof *half.p);
    free(v.p), free(half.p);
    memset(text, ' ', N);
    any_parts(kimi, s, 0, 100000, 5);
    any_parts(gpt2, s, 0, 100000, 6);
    for (size_t i = 0; i < N; i++) text[i] = " a"[i % 1024 > 0]; /* cut after 400,000 characters */
    any_parts(kimi, s, TOK_special, 100000, 7);
    free(text);
    sb_free(&back);
    tokenizer_close(kimi);
    tokenizer_close(gpt2);
}

/* ---- llama2.c ---- */

static void story_ids(const struct tokenizer *t, struct str text, const struct npy *want,
                      size_t row)
{
    struct tok_ids v = encode(t, text, 0);
    size_t width = (size_t)want->shape[1];
    assert_int_equal(npy_int(want, row * width), t->bos);
    for (size_t i = 0; i + 1 < width; i++) {
        int64_t id = npy_int(want, row * width + i + 1);
        if (id < 0) {
            assert_int_equal(i, v.n);
            break;
        }
        assert_true(i < v.n);
        assert_int_equal(v.p[i], id);
    }
    any_parts(t, text, 0, 40, row);
    free(v.p);
}

static void llama2c(void **state)
{
    (void)state;
    const char *path = shared_data("models/tok512.bin");
    if (!path) skip();
    struct tokenizer *t = open_file(path, NULL);
    struct arena *a = arena_open("test");
    assert_int_equal(t->vocab_size, 512);
    assert_int_equal(t->bos, 1);
    /* decoding */
    struct str want = read_file(a, shared_data("models/stories260K.greedy.txt"));
    struct str tsv = read_file(a, shared_data("models/stories260K.greedy.tsv"));
    struct tok_ids v = {0};
    struct tok_stream stream = {.n = 0};
    struct sb text = {0}, shown = {0};
    for (const char *p = tsv.p; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL) {
        if (*p == '#') continue;
        int pos, in, next;
        assert_int_equal(sscanf(p, "%d\t%d\t%d", &pos, &in, &next), 3);
        if (!v.n) tok_ids_add(&v, in, &err);
        assert_int_equal(v.p[v.n - 1], in);
        tok_ids_add(&v, next, &err);
    }
    tokenizer_decode(t, v.p, v.n, &text);
    for (size_t i = 0; i < v.n; i++) tok_stream_add(&stream, t, v.p[i], &shown);
    sb_char(&text, '\n');
    assert_true(str_eq((struct str){text.p, text.n}, want));
    assert_memory_equal(shown.p, text.p, shown.n);
    /* encoding */
    struct npy ids;
    assert_int_equal(npy_open(shared_data("models/stories260K.eval.npy"), &ids, &err), RT_ok);
    struct str stories = read_file(a, shared_data("models/stories260K.eval.txt"));
    size_t row = 0;
    for (const char *p = stories.p, *end; (end = strstr(p, "<|endoftext|>")); row++) {
        story_ids(t, (struct str){p, (size_t)(end - p) - 1}, &ids, row);
        p = end + strlen("<|endoftext|>\n");
    }
    assert_int_equal(row, ids.shape[0]);
    npy_close(&ids);
    free(v.p);
    /* what is no piece becomes bytes */
    v = encode(t, STR("\xe2\x82\xac<s>"), 0);
    shown.n = 0;
    tokenizer_decode(t, v.p, v.n, &shown);
    assert_true(str_is((struct str){shown.p, shown.n}, "\xe2\x82\xac<s>"));
    free(v.p);
    v = encode(t, STR(""), 0);
    assert_int_equal(v.n, 0);
    free(v.p);
    sb_free(&text);
    sb_free(&shown);
    tokenizer_close(t);
    arena_close(a);
}

/* ---- small tokenizers made here ---- */

static const char *const pieces_made[] = {"ab",   "abc",      " a", "bc",  "  ",  "aa",
                                          "aaaa", "\xc3\xa9", "ca", "cab", " ab", "b a"};
enum { MADE = sizeof pieces_made / sizeof *pieces_made };

static void rank_text(struct sb *out)
{
    for (int c = 0; c < 256; c++)
        tokenizer_rank_line((struct str){(const char[]){(char)c}, 1}, (uint32_t)c, out);
    for (uint32_t i = 0; i < MADE; i++) tokenizer_rank_line(str_of(pieces_made[i]), 256 + i, out);
}

static struct tokenizer *rank_tokenizer(const struct tok_options *o)
{
    struct sb text = {0};
    struct tokenizer *t;
    rank_text(&text);
    struct tok_file_text f = {.text = {text.p, text.n}, .label = "made", .o = o};
    if (tokenizer_file_parse(&f, &t, &err) != RT_ok) fail_msg("%s", err.text);
    sb_free(&text);
    return t;
}

static int rank_of(struct str s)
{
    if (s.n == 1) return (unsigned char)*s.p;
    for (int i = 0; i < MADE; i++)
        if (str_is(s, pieces_made[i])) return 256 + i;
    return -1;
}

/* Merging as the definition has it: the lowest rank, from the left, until there is none. */
static void merge_slowly(struct str s, struct tok_ids *out)
{
    size_t cut[128], n = s.n;
    if (rank_of(s) >= 0 && s.n) {
        tok_ids_add(out, rank_of(s), &err);
        return;
    }
    for (size_t i = 0; i <= n; i++) cut[i] = i;
    for (;;) {
        int best = -1;
        size_t at = 0;
        for (size_t i = 0; i + 2 <= n; i++) {
            int r = rank_of((struct str){s.p + cut[i], cut[i + 2] - cut[i]});
            if (r >= 0 && (best < 0 || r < best)) best = r, at = i;
        }
        if (best < 0) break;
        memmove(cut + at + 1, cut + at + 2, (n - at - 1) * sizeof *cut);
        n--;
    }
    for (size_t i = 0; i < n; i++)
        tok_ids_add(out, rank_of((struct str){s.p + cut[i], cut[i + 1] - cut[i]}), &err);
}

static void merges_by_definition(void **state)
{
    (void)state;
    const struct tok_options o = {.pattern = "[\\x{0}-\\x{10ffff}]{1,60}"};
    struct tokenizer *t = rank_tokenizer(&o);
    uint64_t seed = 11;
    for (int k = 0; k < 3000; k++) {
        char text[60];
        size_t n = 1 + dice(&seed, sizeof text - 2);
        for (size_t i = 0; i < n; i++) text[i] = "abc ab aa"[dice(&seed, 9)];
        struct tok_ids got = encode(t, (struct str){text, n}, 0), want = {0};
        merge_slowly((struct str){text, n}, &want);
        same_ids(&got, &want);
        free(got.p), free(want.p);
    }
    tokenizer_close(t);
}

static void round_trips(void **state)
{
    (void)state;
    const char *patterns[] = {"gpt2", "cl100k", "kimi", "a+|b"}; /* the last leaves text out */
    uint64_t seed = 5;
    for (size_t k = 0; k < 4; k++) {
        const struct tok_options o = {.pattern = patterns[k]};
        struct tokenizer *t = rank_tokenizer(&o);
        struct sb text = {0}, back = {0};
        for (int i = 0; i < 20000; i++) {
            char b[4];
            uint32_t cp = dice(&seed, 4) ? dice(&seed, 128) : dice(&seed, 0x110000);
            if (cp >= 0xd800 && cp < 0xe000) cp = 0x85;
            sb_add(&text, b, (size_t)utf8_put(cp, b));
        }
        struct str s = {text.p, text.n};
        struct tok_ids v = encode(t, s, 0);
        tokenizer_decode(t, v.p, v.n, &back);
        assert_true(str_eq((struct str){back.p, back.n}, s));
        any_parts(t, s, 0, 17, seed);
        any_parts(t, s, 0, 5000, seed);
        free(v.p);
        sb_free(&text);
        sb_free(&back);
        tokenizer_close(t);
    }
}

static void special_tokens(void **state)
{
    (void)state;
    const struct tok_name names[] = {{"<|end|>", 268}, {"<|end|>x", 300}, {"\xc3\xa9!", 301}};
    const struct tok_options o = {"gpt2", names, 3};
    struct tokenizer *t = rank_tokenizer(&o);
    assert_int_equal(t->vocab_size, 302);
    struct str s = STR("a<|end|>b <|end|>x\xc3\xa9!<|end");
    struct tok_ids v = encode(t, s, TOK_special), plain = encode(t, s, 0);
    static const int32_t want[] = {97, 268, 98, 32, 300, 301, 60, 124, 101, 110, 100};
    assert_int_equal(v.n, sizeof want / sizeof *want);
    assert_memory_equal(v.p, want, sizeof want);
    for (size_t i = 0; i < plain.n; i++) assert_true(plain.p[i] < 268);
    for (uint64_t seed = 0; seed < 50; seed++)
        any_parts(t, s, TOK_special, 1 + (uint32_t)(seed % 9), seed);
    struct sb text = {0};
    tokenizer_decode(t, (const int32_t[]){300, 270, 301}, 3, &text); /* 270 has no text */
    assert_string_equal(text.p, "<|end|>x\xef\xbf\xbd\xc3\xa9!");
    free(v.p), free(plain.p);
    /* a checkpoint has all that is needed */
    struct tokenizer *again;
    for (int i = 0; i < TOK_FILES; i++) {
        text.n = 0;
        t->ops->save(t, i, &text);
        assert_int_equal(io_write_atomic(in_dir(t->ops->file(t, i)), text.p, text.n), 0);
    }
    assert_int_equal(tokenizer_folder_open(scratch_dir, &again, &err), RT_ok);
    assert_non_null(again);
    struct tok_ids one = encode(t, s, TOK_special), two = encode(again, s, TOK_special);
    same_ids(&one, &two);
    free(one.p), free(two.p);
    struct sb saved = {0};
    again->ops->save(again, 1, &saved);
    assert_true(saved.n == text.n && !memcmp(saved.p, text.p, text.n));
    sb_free(&saved);
    sb_free(&text);
    tokenizer_close(again);
    tokenizer_close(t);
    io_remove_tree(in_dir("tokenizer.tiktoken"));
}

/* ---- patterns ---- */

static void expect_cut(const char *pattern, struct str text, const char *want)
{
    struct split_rules rules = {.guard = false};
    struct pattern *p;
    struct splitter *s;
    if (pattern_open(pattern, &p, &err) != RT_ok) fail_msg("%s", err.text);
    rules.pattern = p;
    assert_int_equal(splitter_open(&rules, false, &s, &err), RT_ok);
    check_pieces(s, text, want);
    splitter_close(s);
    pattern_close(p);
}

static void pattern_dialect(void **state)
{
    (void)state;
    /* White_Space has U+0085 and neither U+180E nor U+FEFF */
    expect_cut("\\s+|\\S+", STR("a\xc2\x85 b\xe1\xa0\x8e\xef\xbb\xbf"), "1 3 7");
    expect_cut("[\\sx]+|[^\\s]+?", STR("x\xc2\x85y"), "3 1");
    expect_cut("[\\Sx]+|.", STR("x y"), "1 1 1");
    expect_cut("[a-z&&[^aeiou]]+|.", STR("strong"), "3 1 2");
    expect_cut("[^a-z&&[^aeiou]]+|.", STR("aXstr"), "2 1 1 1");
    expect_cut("[a-c[x-z]]+|.", STR("axbq"), "3 1");
    expect_cut("[^a[xy]]+|.", STR("bcxa"), "2 1 1");
    expect_cut("[\\p{Han}&&[^\\x{4e00}]]+|.", STR("\xe4\xb8\xad\xe4\xb8\x80"), "3 3");
    /* Script and not Script_Extensions: U+3001 is Common */
    expect_cut("[\\p{Han}]+|.", STR("\xe4\xb8\xad\xe3\x80\x81"), "3 3");
    expect_cut("(?i:'s)|.", STR("'\xc5\xbf"), "3");
    expect_cut("\\u0041+|\\x{42}+|\\x43", STR("AABC"), "2 1 1");
    static const char *const bad[][2] = {{"[a", "without its ]"},
                                         {"(?x:a)", "group"},
                                         {"(a)\\1", "escape"},
                                         {"[[:alpha:]]", "POSIX"},
                                         {"[a--b]", "only &&"},
                                         {"a\\", "backslash"},
                                         {"\\p{Nothing}", "not a regular expression"},
                                         {"(a", "not a regular expression"},
                                         {"\\R", "escape"},
                                         {"\\p{L", "without its }"},
                                         {"", "empty"},
                                         {"(?<=a{200})b", "looks back"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct pattern *p;
        assert_int_equal(pattern_open(bad[i][0], &p, &err), RT_user);
        if (!strstr(err.text, bad[i][1])) fail_msg("%s: %s", bad[i][0], err.text);
    }
    /* deep backtracking ends in the same pieces or an error, never in lost text */
    struct sb text = {0};
    for (int i = 0; i < 300000; i++) sb_str(&text, "ab");
    expect_cut("(?:(?=a)a|(?=b)b)+", (struct str){text.p, text.n}, "600000");
    sb_free(&text);
}

/* ---- malformed files ---- */

static void refused(struct str text, struct str beside, const char *why)
{
    const struct tok_options o = {.pattern = "gpt2"};
    struct tokenizer *t;
    struct tok_file_text f = {.text = text, .beside = beside, .label = "x.file", .o = &o};
    if (*text.p == '{') f.o = NULL;
    if (tokenizer_file_parse(&f, &t, &err) == RT_ok) fail_msg("accepted; want: %s", why);
    assert_null(t);
    if (!strstr(err.text, why) || !strstr(err.text, "x.file"))
        fail_msg("%s; want %s", err.text, why);
}

static void hostile_ranks(void **state)
{
    (void)state;
    struct sb good = {0}, s = {0};
    rank_text(&good);
    static const struct {
        const char *more, *why;
    } bad[] = {{"YWI= 268\n", "have the same bytes"},
               {"eHk= 3\n", "given twice"},
               {"eHk= 280\n", "no token has the rank 268"},
               {"eHk= 4000000000\n", "too large"},
               {"eHk= 99999999999\n", "not a number"},
               {"eHk= -1\n", "not a number"},
               {"eHk= 268 \n", "not a number"},
               {"eHk=\n", "no space"},
               {"eHk 268\n", "not base64"},
               {"eHl= 268\n", "not base64"},
               {"=Hk= 268\n", "not base64"},
               {" 268\n", "not base64"},
               {"e$k= 268\n", "line 269"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        s.n = 0;
        sb_add(&s, good.p, good.n);
        sb_str(&s, bad[i].more);
        refused((struct str){s.p, s.n}, STR(""), bad[i].why);
    }
    s.n = 0;
    for (int i = 0; i < 100000; i++) sb_str(&s, "AAAA");
    sb_str(&s, " 0\n");
    refused((struct str){s.p, s.n}, STR(""), "longer than");
    refused((struct str){good.p, good.n - 600}, STR(""), "");
    refused(STR("YQ== 0\n"), STR(""), "the byte 0x00");
    refused(STR("\n\n"), STR(""), "is empty");
    struct str all = {good.p, good.n};
    refused(all, STR("{"), "not a JSON object");
    refused(all, STR("{\"special\": {\"x\": 3}}"), "has the id 3 of another");
    refused(all, STR("{\"special\": {\"x\": 99999999}}"), "not in [0,");
    refused(all, STR("{\"special\": {\"x\": \"y\"}}"), "special");
    refused(all, STR("{\"colour\": 1}"), "colour");
    sb_free(&good);
    sb_free(&s);
}

static void hostile_llama2c(void **state)
{
    (void)state;
    refused((struct str){"\1\0\0", 3}, STR(""), "x.file");
    const char *path = shared_data("models/tok512.bin");
    if (!path) skip();
    struct arena *a = arena_open("test");
    struct str s = read_file(a, path);
    struct tok_file_text f = {.label = "x"};
    struct tokenizer *t;
    for (size_t n = 4; n < s.n; n += 7) { /* cut: an error, or fewer tokens */
        f.text = (struct str){s.p, n};
        if (tokenizer_file_parse(&f, &t, &err) == RT_ok) tokenizer_close(t);
    }
    char *copy = arena_dup(a, s.p, s.n, "copy");
    memset(copy + 8, 0xff, 4); /* a length */
    f.text = (struct str){copy, s.n};
    assert_int_equal(tokenizer_file_parse(&f, &t, &err), RT_user);
    assert_non_null(strstr(err.text, "token 0"));
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_gpt2),    cmocka_unit_test(vectors_kimi),
        cmocka_unit_test(whole_files),     cmocka_unit_test(long_runs),
        cmocka_unit_test(llama2c),         cmocka_unit_test(merges_by_definition),
        cmocka_unit_test(round_trips),     cmocka_unit_test(special_tokens),
        cmocka_unit_test(pattern_dialect), cmocka_unit_test(hostile_ranks),
        cmocka_unit_test(hostile_llama2c),
    };
    if (!scratch_open()) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_close();
    return failed;
}
