/* Pages: counts, the index, eviction and snapshots, beside a model that is a list of texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "runtime/lm.h"
#include "runtime/pages.h"
#include "runtime/philox.h"

enum { PAGES = 24, SLOTS = 5, FIRST = 100, HOLDERS = 6, DEEP = 8 };

/* Tokens of the page at depth d of a text: texts share their first pages. */
static void tokens_of(int text, int d, int32_t *out)
{
    int branch = d < text % 4 + 1 ? text % 2 : text;
    for (int i = 0; i < LM_PAGE; i++) out[i] = branch * 1000 + d * 100 + i;
}

struct walk {
    struct page_key key[DEEP];
    int32_t tokens[DEEP][LM_PAGE];
    uint64_t salt;
};
/* All keys of a text; `same`: one key for everything, as if all hashes collided. */
static void walk_of(struct walk *w, int text, uint64_t salt, bool same)
{
    w->salt = salt;
    for (int d = 0; d < DEEP; d++) {
        tokens_of(text, d, w->tokens[d]);
        w->key[d] = same ? (struct page_key){1, 2}
                         : page_key_of(d ? &w->key[d - 1] : NULL, salt, w->tokens[d]);
    }
}

static struct page_text place(const struct walk *w, int d, int32_t parent)
{
    return (struct page_text){parent, w->key[d], w->salt, w->tokens[d]};
}

static void keys(void **state)
{
    (void)state;
    struct walk a, b;
    walk_of(&a, 0, 0, false);
    walk_of(&b, 0, 1, false);
    for (int d = 0; d < DEEP; d++) assert_true(a.key[d].low != b.key[d].low);
    walk_of(&b, 0, 0, false);
    assert_memory_equal(a.key, b.key, sizeof a.key);
    b.tokens[0][63]++;
    struct page_key k = page_key_of(NULL, 0, b.tokens[0]);
    assert_true(k.low != a.key[0].low && k.high != a.key[0].high);
}

static void taking(void **state)
{
    (void)state;
    struct pages *p = pages_open(3, 0, 0);
    int32_t a[3];
    for (int i = 0; i < 3; i++) a[i] = pages_take(p);
    assert_true(a[0] != a[1] && a[1] != a[2] && a[0] != a[2]);
    assert_int_equal(pages_take(p), PAGE_none);
    assert_int_equal(pages_available(p), 0);
    pages_release(p, a, 3);
    assert_int_equal(pages_available(p), 3);
    assert_int_equal(pages_cached(p), 0);
    pages_check(p);
    pages_close(p);
    pages_close(NULL);
}

/* The oldest leaf goes first, a page never before those that follow it. */
static void evicting(void **state)
{
    (void)state;
    struct pages *p = pages_open(6, 0, 0);
    struct walk w[2];
    int32_t t[2][3], more[6];
    for (int k = 0; k < 2; k++) { /* two texts of 3 pages, the first one older */
        walk_of(&w[k], 20 + k, 0, false);
        for (int d = 0; d < 3; d++) {
            t[k][d] = pages_take(p);
            struct page_text at = place(&w[k], d, d ? t[k][d - 1] : PAGE_none);
            assert_int_equal(pages_add(p, &at, t[k][d]), t[k][d]);
        }
    }
    for (int k = 0; k < 2; k++) pages_release(p, t[k], 3);
    assert_int_equal(pages_cached(p), 6);
    static const int order[6][2] = {{0, 2}, {0, 1}, {0, 0}, {1, 2}, {1, 1}, {1, 0}};
    for (int i = 0; i < 6; i++) {
        more[i] = pages_take(p);
        assert_int_equal(more[i], t[order[i][0]][order[i][1]]);
        pages_check(p);
        for (int k = 0; k < 2; k++) {
            struct page_text at = place(&w[k], 0, PAGE_none);
            bool there = k ? i < 5 : i < 2;
            assert_int_equal(pages_find(p, &at) != PAGE_none, there);
        }
    }
    assert_int_equal(pages_take(p), PAGE_none);
    pages_release(p, more, 6);
    assert_int_equal(pages_available(p), 6);
    pages_close(p);
}

static void snapshots(void **state)
{
    (void)state;
    struct pages *p = pages_open(8, FIRST, 2);
    struct walk w;
    int32_t t[4];
    walk_of(&w, 5, 0, false);
    for (int d = 0; d < 4; d++) {
        t[d] = pages_take(p);
        struct page_text at = place(&w, d, d ? t[d - 1] : PAGE_none);
        pages_add(p, &at, t[d]);
    }
    assert_int_equal(pages_snapshot(p, t[0]), -1);
    int32_t s0 = pages_keep_snapshot(p, t[0]), s1 = pages_keep_snapshot(p, t[1]);
    assert_true(s0 != s1 && s0 >= FIRST && s0 < FIRST + 2 && s1 >= FIRST && s1 < FIRST + 2);
    assert_int_equal(pages_keep_snapshot(p, t[1]), -1); /* it has one */
    assert_int_equal(pages_snapshot(p, t[0]), s0);
    pages_touch_snapshot(p, t[0]);
    assert_int_equal(pages_keep_snapshot(p, t[2]), s1); /* the least recently used */
    assert_int_equal(pages_snapshot(p, t[1]), -1);
    pages_drop_snapshot(p, t[0]);
    assert_int_equal(pages_snapshots(p), 1);
    pages_drop_snapshot(p, t[0]);
    assert_int_equal(pages_keep_snapshot(p, t[3]), s0);
    pages_release(p, t, 4);
    int32_t all[8];
    for (int i = 0; i < 8; i++) all[i] = pages_take(p);
    assert_int_equal(pages_snapshots(p), 0); /* they went with their pages */
    pages_check(p);
    pages_release(p, all, 8);
    pages_close(p);
    p = pages_open(1, FIRST, 0);
    t[0] = pages_take(p);
    struct page_text at = place(&w, 0, PAGE_none);
    pages_add(p, &at, t[0]);
    assert_int_equal(pages_keep_snapshot(p, t[0]), -1);
    pages_close(p);
}

/* What a page was given out for, to see that the index never tells a wrong one. */
struct written {
    int text, depth;
    uint64_t salt;
};
struct holder {
    int32_t page[DEEP];
    int n, text;
    uint64_t salt;
};
struct world {
    struct pages *p;
    struct written now[PAGES];
    uint64_t seed, n;
    bool same;
    unsigned found, added, evicted;
};

static int roll(struct world *w, int sides)
{
    return (int)(rng_bits(w->seed, 3, w->n++) % (uint64_t)sides);
}

static bool same_beginning(const struct written *a, int text, int depth, uint64_t salt)
{
    int32_t x[LM_PAGE], y[LM_PAGE];
    if (a->depth != depth || a->salt != salt) return false;
    for (int d = 0; d <= depth; d++) {
        tokens_of(a->text, d, x);
        tokens_of(text, d, y);
        if (memcmp(x, y, sizeof x)) return false;
    }
    return true;
}

/* A holder takes a text: pages that are found, then new ones as far as there are any. */
static void begin(struct world *w, struct holder *h)
{
    struct walk k;
    h->text = roll(w, 12);
    h->salt = roll(w, 4) ? 0 : 7;
    walk_of(&k, h->text, h->salt, w->same);
    int most = 1 + roll(w, DEEP);
    bool finding = true;
    for (h->n = 0; h->n < most; h->n++) {
        struct page_text at = place(&k, h->n, h->n ? h->page[h->n - 1] : PAGE_none);
        int32_t page = finding ? pages_find(w->p, &at) : PAGE_none;
        finding = page != PAGE_none;
        if (finding) {
            pages_hold(w->p, page);
            w->found++;
        } else {
            page = pages_take(w->p);
            if (page == PAGE_none) break;
            w->now[page] = (struct written){h->text, h->n, h->salt};
            page = pages_add(w->p, &at, page);
            w->added++;
        }
        assert_true(same_beginning(&w->now[page], h->text, h->n, h->salt));
        h->page[h->n] = page;
        if (!roll(w, 3)) pages_keep_snapshot(w->p, page);
    }
}

static void random_holders(void **state)
{
    (void)state;
    for (int same = 0; same < 2; same++) {
        struct world w = {.p = pages_open(PAGES, FIRST, SLOTS), .seed = 11, .same = same};
        struct holder h[HOLDERS] = {{.n = 0}};
        for (int i = 0; i < 20000; i++) {
            struct holder *x = &h[roll(&w, HOLDERS)];
            if (x->n) pages_release(w.p, x->page, x->n);
            x->n = 0;
            if (roll(&w, 3)) begin(&w, x);
            pages_check(w.p);
        }
        for (int i = 0; i < HOLDERS; i++) pages_release(w.p, h[i].page, h[i].n);
        assert_int_equal(pages_available(w.p), PAGES);
        pages_check(w.p);
        assert_true(w.found > 5000 && w.added > 5000);
        pages_close(w.p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys),      cmocka_unit_test(taking),         cmocka_unit_test(evicting),
        cmocka_unit_test(snapshots), cmocka_unit_test(random_holders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
