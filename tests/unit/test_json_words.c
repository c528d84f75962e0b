/* Which tokens can follow a JSON text: the quick answer for all beside the slow one for each, and
 * texts made of nothing but such tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include "runtime/json_words.h"
#include "runtime/philox.h"

enum { NUM = 3000 };
static char bytes[NUM][8];
static size_t length[NUM];

static struct str text(void *arg, int32_t id)
{
    (void)arg;
    return (struct str){bytes[id], length[id]};
}

/* Every byte, and texts of up to 8 from what JSON is made of, whole and cut characters too. */
static void make_words(void)
{
    static const char *const parts[] = {"{",  "}", "[",  "]", ":",  ",",        "\"",       "\\",
                                        "u",  "d", "8",  "0", "-",  ".",        "e",        " ",
                                        "\n", "t", "a",  "n", "\t", "\xc3\xa9", "\xe2\x82", "\xac",
                                        "tr", "/", "ue", "+", "x",  "\"",       " \"",      "1"};
    for (int i = 0; i < NUM; i++) {
        length[i] = 0;
        if (i < 256) bytes[i][length[i]++] = (char)i;
        uint64_t r = rng_bits(1, 1, (uint64_t)i);
        for (int k = 1 + (int)(r % 4); i >= 300 && k > 0; k--, r /= 40) {
            const char *p = parts[r / 8 % (sizeof parts / sizeof *parts)];
            for (; *p && length[i] < sizeof bytes[i]; p++) bytes[i][length[i]++] = *p;
        }
    }
}

static void masks(void **state)
{
    (void)state;
    static float from[NUM], to[NUM];
    make_words();
    struct json_words *w = json_words_open(text, NULL, NUM);
    int whole = 0, compared = 0;
    for (uint64_t run = 0; run < 150; run++) {
        struct json_guide g;
        struct sb s = {0};
        json_guide_start(&g);
        for (uint64_t step = 0; step < 60 && !json_guide_complete(&g); step++) {
            for (int i = 0; i < NUM; i++) from[i] = (float)i - 7;
            assert_true(json_words_mask(w, &g, from, to));
            int32_t fit[NUM], n = 0;
            for (int32_t i = 0; i < NUM; i++) {
                bool fits = length[i] && json_guide_accepts(&g, bytes[i], length[i]);
                assert_int_equal(fits, json_words_accepts(w, &g, i));
                assert_true(fits ? to[i] == from[i] : to[i] == -INFINITY);
                if (fits) fit[n++] = i;
                compared++;
            }
            int32_t id = fit[rng_bits(run, 2, step) % (uint64_t)n];
            json_words_take(w, &g, id);
            sb_add(&s, bytes[id], length[id]);
        }
        json_t *j = json_loadb(s.p, s.n, JSON_DECODE_INT_AS_REAL, NULL);
        assert_int_equal(!!j, json_guide_complete(&g));
        whole += !!j;
        json_decref(j);
        sb_free(&s);
    }
    assert_true(whole > 20 && compared > 1000000);
    json_words_close(w);
    json_words_close(NULL);
}

/* Where nothing can follow, it says so. */
static void nothing(void **state)
{
    (void)state;
    float x[2] = {1, 2};
    struct json_guide g;
    json_guide_start(&g);
    length[0] = 1, bytes[0][0] = '[';
    length[1] = 0;
    struct json_words *w = json_words_open(text, NULL, 2);
    assert_false(json_words_mask(w, &g, x, x));
    assert_true(x[0] == -INFINITY && x[1] == -INFINITY);
    json_words_close(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(masks), cmocka_unit_test(nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
