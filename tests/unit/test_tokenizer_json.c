/* tokenizer.json, beside the rank file that it is made from; training a vocabulary. */
#include "base/map.h"
#include "runtime/bpe_train.h"
#include "runtime/nfc.h"
#include "runtime/utf8.h"
#include "scratch.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static struct rt_error err;

static struct tok_ids encode(const struct tokenizer *t, struct str text, unsigned flags)
{
    struct tok_ids v = {0};
    struct tok_encoder *e;
    if (tok_encoder_open(t, flags, &e, &err) != RT_ok) fail_msg("%s", err.text);
    if (tok_encoder_add(e, text, true, &v, &err) != RT_ok) fail_msg("%s", err.text);
    tok_encoder_close(e);
    return v;
}

static struct tokenizer *parse(const char *json)
{
    struct tok_file_text f = {.text = str_of(json), .label = "x.json"};
    struct tokenizer *t;
    if (tokenizer_file_parse(&f, &t, &err) != RT_ok) fail_msg("%s", err.text);
    return t;
}

static void expect_ids(const struct tokenizer *t, const char *text, unsigned flags,
                       const char *want)
{
    struct tok_ids v = encode(t, str_of(text), flags);
    struct sb got = {0};
    sb_str(&got, "");
    for (size_t i = 0; i < v.n; i++) sb_printf(&got, i ? " %d" : "%d", v.p[i]);
    assert_string_equal(got.p, want);
    /* byte by byte */
    struct tok_ids parts = {0};
    struct tok_encoder *e;
    assert_int_equal(tok_encoder_open(t, flags, &e, &err), RT_ok);
    for (const char *p = text; *p; p++)
        assert_int_equal(tok_encoder_add(e, (struct str){p, 1}, false, &parts, &err), RT_ok);
    assert_int_equal(tok_encoder_add(e, STR(""), true, &parts, &err), RT_ok);
    assert_int_equal(parts.n, v.n);
    if (v.n) assert_memory_equal(parts.p, v.p, v.n * sizeof *v.p);
    tok_encoder_close(e);
    free(parts.p);
    free(v.p);
    sb_free(&got);
}

/* ---- over bytes ---- */

/* A token in GPT-2's alphabet, as JSON text without quotes. */
static void letters(struct str s, struct sb *out)
{
    int next = 256;
    uint32_t of[256];
    for (int b = 0; b < 256; b++)
        of[b] =
            (uint32_t)((b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae ? b
                                                                                       : next++);
    for (size_t i = 0; i < s.n; i++) {
        char c[4];
        uint32_t cp = of[(unsigned char)s.p[i]];
        if (cp == '"' || cp == '\\') sb_char(out, '\\');
        sb_add(out, c, (size_t)utf8_put(cp, c));
    }
}

/* The two tokens that merging with lower ranks leaves of a token. */
static size_t halves(const struct map *rank, struct str s, uint32_t limit)
{
    size_t cut[256], n = s.n;
    assert_true(n < 256);
    for (size_t i = 0; i <= n; i++) cut[i] = i;
    while (n > 2) {
        uint32_t best = limit;
        size_t at = 0;
        for (size_t i = 0; i + 2 <= n; i++) {
            const uint32_t *r = map_find(rank, (struct str){s.p + cut[i], cut[i + 2] - cut[i]});
            if (r && *r < best) best = *r, at = i;
        }
        if (best == limit) return 0;
        memmove(cut + at + 1, cut + at + 2, (n - at - 1) * sizeof *cut);
        n--;
    }
    return cut[1];
}

/* tokenizer.json of the vocabulary of a rank tokenizer with `ranks` tokens. */
static void as_json(const struct tokenizer *t, uint32_t ranks, bool lists, const char *before,
                    struct sb *out)
{
    struct arena *a = arena_open("test");
    struct map rank;
    map_init(&rank, a);
    sb_printf(out,
              "{\"version\": \"1.0\", \"truncation\": null, %s, \"model\": {\"type\": \"BPE\", "
              "\"dropout\": null, \"unk_token\": null, \"fuse_unk\": false, \"vocab\": {",
              before);
    for (uint32_t i = 0; i < ranks; i++) {
        struct str s = t->ops->piece(t, (int32_t)i);
        *map_str(&rank, s) = i;
        sb_str(out, i ? ", \"" : "\"");
        letters(s, out);
        sb_printf(out, "\": %u", (unsigned)i);
    }
    sb_str(out, "}, \"merges\": [");
    bool first = true;
    for (uint32_t i = 0; i < ranks; i++) {
        struct str s = t->ops->piece(t, (int32_t)i);
        size_t cut = s.n > 1 ? halves(&rank, s, i) : 0;
        if (!cut) continue;
        sb_str(out, first ? "" : ", ");
        sb_str(out, lists ? "[\"" : "\"");
        letters((struct str){s.p, cut}, out);
        sb_str(out, lists ? "\", \"" : " ");
        letters((struct str){s.p + cut, s.n - cut}, out);
        sb_str(out, lists ? "\"]" : "\"");
        first = false;
    }
    sb_str(out, "]}}");
    arena_close(a);
}

static void same_as_ranks(const struct tokenizer *ranks, uint32_t count, const char *before,
                          struct str text)
{
    for (int lists = 0; lists < 2; lists++) {
        struct sb json = {0};
        as_json(ranks, count, lists, before, &json);
        struct tokenizer *t = parse(json.p);
        struct tok_ids a = encode(ranks, text, 0), b = encode(t, text, 0);
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.p, b.p, a.n * sizeof *a.p);
        free(a.p), free(b.p);
        tokenizer_close(t);
        sb_free(&json);
    }
}

#define GPT2_KEYS                                                                              \
    "\"added_tokens\": [{\"id\": 50256, \"content\": \"<|endoftext|>\", \"special\": true, "   \
    "\"lstrip\": false}], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", " \
    "\"add_prefix_space\": false, \"trim_offsets\": true}, \"post_processor\": {\"type\": "    \
    "\"ByteLevel\"}, \"decoder\": {\"type\": \"ByteLevel\"}"

static void gpt2_both_ways(void **state)
{
    (void)state;
    const char *path = shared_data("tokenizer/gpt2.tiktoken");
    if (!path) skip();
    struct tokenizer *t;
    struct arena *a = arena_open("test");
    struct str text;
    assert_int_equal(tokenizer_file_open(path, NULL, &t, &err), RT_ok);
    assert_int_equal(io_read(a, shared_data("wikitext2-valid.txt"), 1 << 24, &text), 0);
    same_as_ranks(t, 50256, GPT2_KEYS, text);
    tokenizer_close(t);
    arena_close(a);
}

/* ---- training ---- */

static const char sample[] = "the cat and the hat sat on the mat; that cat\xc3\xa9 that had the "
                             "hat!\n\nAnd then the band<|end|>the handstand 1234 1235 12345\n";

/* Counting everything anew for each merge. */
static void train_slowly(char words[][64], size_t n, size_t merges, struct sb *out)
{
    enum { MAX = 400 };
    static char token[MAX][64];
    static int32_t id[64][64];
    size_t len[64], tokens = 256;
    for (size_t w = 0; w < n; w++) {
        len[w] = strlen(words[w]);
        for (size_t i = 0; i < len[w]; i++) id[w][i] = (unsigned char)words[w][i];
    }
    for (int c = 1; c < 256; c++) token[c][0] = (char)c;
    while (tokens < 256 + merges) {
        static int count[MAX][MAX];
        int best = 0, l = 0, r = 0;
        memset(count, 0, sizeof count);
        for (size_t w = 0; w < n; w++)
            for (size_t i = 0; i + 1 < len[w]; i++) count[id[w][i]][id[w][i + 1]]++;
        for (int x = 0; x < MAX; x++)
            for (int y = 0; y < MAX; y++)
                if (count[x][y] > best) best = count[x][y], l = x, r = y;
        assert_true(best > 0);
        char joined[128];
        snprintf(joined, sizeof joined, "%s%s", token[l], token[r]);
        size_t k = 256;
        while (k < tokens && strcmp(token[k], joined)) k++;
        if (k == tokens) {
            memcpy(token[tokens++], joined, 64);
            tokenizer_rank_line(str_of(joined), (uint32_t)k, out);
        }
        for (size_t w = 0; w < n; w++) {
            size_t m = 0;
            for (size_t i = 0; i < len[w]; m++) {
                bool here = i + 1 < len[w] && id[w][i] == l && id[w][i + 1] == r;
                id[w][m] = here ? (int32_t)k : id[w][i];
                i += here ? 2 : 1;
            }
            len[w] = m;
        }
    }
}

static struct bpe_trained train(const char *pattern, int64_t size, struct str text)
{
    static const char *const special[] = {"<|end|>"};
    struct bpe_train_options o = {pattern, size, special, 1, false};
    struct bpe_trained r;
    if (bpe_train(&o, text, "sample", &r, &err) != RT_ok) fail_msg("%s", err.text);
    return r;
}

static void training_by_definition(void **state)
{
    (void)state;
    char words[64][64];
    size_t n = 0;
    /* pieces end before every space, and at the special token */
    for (const char *p = sample; *p; n++) {
        size_t k = 1;
        while (p[k] && p[k] != ' ' && strncmp(p + k, "<|end|>", 7)) k++;
        memcpy(words[n], p, k);
        words[n][k] = 0;
        p += k;
        if (!strncmp(p, "<|end|>", 7)) p += 7;
    }
    struct sb slow = {0};
    train_slowly(words, n, 25, &slow);
    struct bpe_trained r = train("[\\x{0}-\\x{10ffff}][^ ]*", 256 + 25 + 1, STR(sample));
    assert_non_null(strstr(r.ranks.p, "\n/w== 255\n"));
    assert_string_equal(strstr(r.ranks.p, " 255\n") + 5, slow.p);
    sb_free(&slow);
    sb_free(&r.ranks);
    sb_free(&r.beside);
}

static void trained_is_used(void **state)
{
    (void)state;
    struct bpe_trained r = train("cl100k", 280, STR(sample));
    assert_int_equal(io_write_atomic(in_dir("t.tiktoken"), r.ranks.p, r.ranks.n), 0);
    assert_int_equal(io_write_atomic(in_dir("t.tiktoken.json"), r.beside.p, r.beside.n), 0);
    struct tokenizer *t;
    assert_int_equal(tokenizer_file_open(in_dir("t.tiktoken"), NULL, &t, &err), RT_ok);
    assert_int_equal(t->vocab_size, 280);
    assert_int_equal(t->stop[0], 279);
    struct tok_ids v = encode(t, STR(sample), TOK_special);
    assert_int_equal(v.n, r.tokens + 1); /* as training left it, and the special token */
    struct sb back = {0};
    tokenizer_decode(t, v.p, v.n, &back);
    assert_string_equal(back.p, sample);
    sb_free(&back);
    free(v.p);
    tokenizer_close(t);
    sb_free(&r.ranks);
    sb_free(&r.beside);
    struct bpe_train_options o = {"gpt2", 100000, NULL, 0, false};
    assert_int_equal(bpe_train(&o, STR(sample), "sample", &r, &err), RT_user);
    assert_non_null(strstr(err.text, "gives only"));
    o.vocab_size = 255;
    assert_int_equal(bpe_train(&o, STR(sample), "sample", &r, &err), RT_user);
    o.vocab_size = 256;
    assert_int_equal(bpe_train(&o, STR("a\xff"), "sample", &r, &err), RT_user);
    assert_non_null(strstr(err.text, "byte 1"));
    assert_int_equal(bpe_train(&o, STR(""), "sample", &r, &err), RT_ok);
    sb_free(&r.ranks);
    sb_free(&r.beside);
}

static void made_both_ways(void **state)
{
    (void)state;
    struct bpe_trained r = train("gpt2", 285, STR(sample));
    struct tok_file_text f = {
        .text = {r.ranks.p, r.ranks.n}, .beside = {r.beside.p, r.beside.n}, .label = "made"};
    struct tokenizer *t;
    assert_int_equal(tokenizer_file_parse(&f, &t, &err), RT_ok);
    same_as_ranks(t, 284,
                  "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": "
                  "\"Split\", \"pattern\": {\"Regex\": "
                  "\"'s|'t|'re|'ve|'m|'ll|'d| ?\\\\p{L}+| ?\\\\p{N}+| "
                  "?[^\\\\s\\\\p{L}\\\\p{N}]+|\\\\s+(?!\\\\S)|\\\\s+\"}, \"behavior\": "
                  "\"Isolated\", \"invert\": false}, {\"type\": \"ByteLevel\", "
                  "\"add_prefix_space\": false, \"use_regex\": false}]}",
                  STR(sample));
    tokenizer_close(t);
    sb_free(&r.ranks);
    sb_free(&r.beside);
}

/* ---- normal form ---- */

static void normal_form(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        {"abc \xcb\xbf", "abc \xcb\xbf"},
        {"e\xcc\x81x", "\xc3\xa9x"},                              /* e, acute */
        {"\xe2\x84\xab", "\xc3\x85"},                             /* the sign of angstrom */
        {"a\xcc\xa3\xcc\x82", "\xe1\xba\xad"},                    /* dot below, circumflex */
        {"a\xcc\x82\xcc\xa3", "\xe1\xba\xad"},                    /* in the other order */
        {"\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c"}, /* Hangul by letters */
        {"\xe0\xbd\xb3", "\xe0\xbd\xb1\xe0\xbd\xb2"},             /* composes no more */
        {"\xe0\xaf\x86\xe0\xae\xbe", "\xe0\xaf\x8a"},             /* Tamil vowel in two */
        {"\xcc\x81", "\xcc\x81"},
    };
    struct sb out = {0}, all = {0}, want = {0};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        out.n = 0;
        nfc_add(str_of(pairs[i][0]), &out);
        assert_true(str_is((struct str){out.p, out.n}, pairs[i][1]));
        sb_printf(&all, "%s, ", pairs[i][0]);
        sb_printf(&want, "%s, ", pairs[i][1]);
    }
    assert_true(nfc_plain(STR("caf\xc3\xa9 \xcb\xbf")) && !nfc_plain(STR("e\xcc\x81")));
    /* in a tokenizer, also of a text in parts */
    struct bpe_trained r = train("gpt2", 280, STR(sample));
    struct tok_file_text f = {
        .text = {r.ranks.p, r.ranks.n}, .beside = {r.beside.p, r.beside.n}, .label = "made"};
    struct tokenizer *t, *n;
    struct sb json = {0}, ids = {0};
    assert_int_equal(tokenizer_file_parse(&f, &t, &err), RT_ok);
    as_json(t, 279, false,
            "\"normalizer\": {\"type\": \"NFC\"}, \"pre_tokenizer\": {\"type\": "
            "\"ByteLevel\", \"add_prefix_space\": false}",
            &json);
    n = parse(json.p);
    struct tok_ids v = encode(t, (struct str){want.p, want.n}, 0);
    for (size_t i = 0; i < v.n; i++) sb_printf(&ids, i ? " %d" : "%d", v.p[i]);
    expect_ids(n, all.p, 0, ids.p);
    expect_ids(n, want.p, 0, ids.p);
    struct tok_ids none = {0};
    assert_int_equal(tokenizer_encode(n, STR("e\xcc\x81\xff"), &none, &err), RT_user);
    assert_non_null(strstr(err.text, "byte 3"));
    free(none.p);
    free(v.p);
    tokenizer_close(n);
    tokenizer_close(t);
    sb_free(&out), sb_free(&all), sb_free(&want), sb_free(&json), sb_free(&ids);
    sb_free(&r.ranks);
    sb_free(&r.beside);
}

/* ---- over characters ---- */

#define UND "\xe2\x96\x81"
/* ids 3 to 258 are the bytes; then the pieces */
static void characters(const char *cut, const char *merges, struct sb *out)
{
    static const char *const piece[] = {UND,     "h",      "e",     "l", "o", "he", "ll",
                                        UND "h", UND "he", "hello", "x", "!", "ex", UND UND};
    out->n = 0;
    sb_printf(out,
              "{%s, \"added_tokens\": [{\"id\": 1, \"content\": \"<s>\", \"special\": true}, "
              "{\"id\": 273, \"content\": \"[x]\", \"special\": false}], \"model\": {\"type\": "
              "\"BPE\", \"byte_fallback\": true, \"unk_token\": \"<unk>\", \"fuse_unk\": true, "
              "\"vocab\": {\"<s>\": 1",
              cut);
    for (int b = 0; b < 256; b++) sb_printf(out, ", \"<0x%02X>\": %d", b, b + 3);
    for (size_t i = 0; i < sizeof piece / sizeof *piece; i++)
        sb_printf(out, ", \"%s\": %zu", piece[i], 259 + i);
    sb_printf(out, "}, \"merges\": [%s]}}", merges);
}

static void over_characters(void **state)
{
    (void)state;
    struct sb s = {0};
    static const char merges[] = "\"h e\", \"l l\", \"" UND " he\", \"e x\", \"" UND " " UND "\"";
    characters("\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", "
               "\"prepend\": \"" UND "\"}, {\"type\": \"Replace\", \"pattern\": {\"String\": \" "
               "\"}, \"content\": \"" UND "\"}]}, \"pre_tokenizer\": null",
               merges, &s);
    struct tokenizer *t = parse(s.p);
    expect_ids(t, "", 0, "");
    expect_ids(t, "hello", 0, "267 265 263");
    expect_ids(t, " hello", 0, "259 267 265 263"); /* two spaces would merge last */
    expect_ids(t, "he<s>he", TOK_special, "267 1 267");
    expect_ids(t, "he[x]he", 0, "267 273 267");
    expect_ids(t, "h\xc3\xa9" UND "l", 0, "259 260 198 172 259 262");
    struct sb back = {0};
    struct tok_ids v = encode(t, STR(" h\xc3\xa9 llo!"), 0);
    tokenizer_decode(t, v.p, v.n, &back);
    assert_string_equal(back.p, " h\xc3\xa9 llo!");
    free(v.p);
    sb_free(&back);
    tokenizer_close(t);
    characters("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"" UND
               "\", \"prepend_scheme\": \"first\", \"split\": true}",
               merges, &s);
    t = parse(s.p);
    expect_ids(t, "hello", 0, "267 265 263");
    expect_ids(t, "  hello", 0, "259 267 265 263"); /* none is added, and each begins a piece */
    expect_ids(t, "he<s>he", TOK_special, "267 1 264");
    expect_ids(t, "hex", 0, "267 269");
    tokenizer_close(t);
    sb_free(&s);
}

/* ---- what is not understood ---- */

static void refused(const char *json, const char *why)
{
    struct tok_file_text f = {.text = str_of(json), .label = "x.json"};
    struct tokenizer *t;
    if (tokenizer_file_parse(&f, &t, &err) == RT_ok) fail_msg("accepted; want: %s", why);
    if (!strstr(err.text, why) || !strstr(err.text, "x.json"))
        fail_msg("%s; want: %s", err.text, why);
}

static void refuses_by_name(void **state)
{
    (void)state;
#define BYTE_LEVEL "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}"
    refused("{", "not JSON");
    refused("{\"a\": 1, \"a\": 2}", "duplicate");
    refused("{\"colour\": 1}", "'colour'");
    refused("{\"truncation\": {}}", "'truncation'");
    refused("{\"normalizer\": {\"type\": \"Lowercase\"}}", "'Lowercase'");
    refused("{\"pre_tokenizer\": {\"type\": \"Whitespace\"}}", "'Whitespace'");
    refused("{\"pre_tokenizer\": {\"type\": \"ByteLevel\"}}", "no model");
    refused("{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true}}",
            "'add_prefix_space'");
    refused("{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": "
            "\"Digits\"}]}}",
            "'Digits'");
    refused("{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}, "
            "\"behavior\": \"Isolated\", \"invert\": false}}",
            "regular expression");
    refused("{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \" \"}, "
            "\"behavior\": \"Isolated\"}}",
            "'String'");
    refused("{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \".\"}, "
            "\"behavior\": \"MergedWithNext\"}}",
            "'MergedWithNext'");
    refused("{\"post_processor\": {\"type\": \"Odd\"}}", "'Odd'");
    refused("{" BYTE_LEVEL ", \"model\": {\"type\": \"Unigram\"}}", "'Unigram'");
    refused("{" BYTE_LEVEL ", \"model\": {\"type\": \"BPE\", \"dropout\": 0.1}}", "'dropout'");
    refused("{" BYTE_LEVEL ", \"model\": {\"type\": \"BPE\", \"end_of_word_suffix\": \"</w>\"}}",
            "'end_of_word_suffix'");
    refused("{" BYTE_LEVEL ", \"model\": {\"type\": \"BPE\", \"vocab\": {}}}", "no tokens");
    refused("{" BYTE_LEVEL ", \"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": -1}}}", "id");
    refused("{" BYTE_LEVEL ", \"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 9000000}}}", "id");
    refused("{" BYTE_LEVEL ", \"model\": {\"type\": \"BPE\", \"vocab\": {\"a b\": 0}}}", "'a b'");
    refused("{" BYTE_LEVEL ", \"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}}}", "0x00");
    refused("{\"model\": {\"type\": \"BPE\"}}", "neither ByteLevel");
    struct sb s = {0};
#define SPACES "\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"" UND "\"}"
    characters(SPACES, "\"h z\"", &s);
    refused(s.p, "'z'");
    characters(SPACES, "\"h h\"", &s);
    refused(s.p, "is no token");
    characters(SPACES, "[\"h\"]", &s);
    refused(s.p, "not two tokens");
    sb_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_both_ways),  cmocka_unit_test(training_by_definition),
        cmocka_unit_test(trained_is_used), cmocka_unit_test(made_both_ways),
        cmocka_unit_test(over_characters), cmocka_unit_test(normal_form),
        cmocka_unit_test(refuses_by_name),
    };
    if (!scratch_open()) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_close();
    return failed;
}
