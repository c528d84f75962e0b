/* Sampling beside its definition, spelt out in doubles over all tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "runtime/philox.h"
#include "runtime/sample.h"

enum { MOST = 3000 };

static double random01(uint64_t i)
{
    return rng_uniform(77, 1, i);
}

static void random_logits(float *x, size_t n, uint64_t seed, double spread)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)(spread * rng_normal(seed, 2, i));
        if (rng_uniform(seed, 3, i) < 0.05) x[i] = -INFINITY;
    }
    x[seed % n] = (float)spread; /* one at least is finite */
}

/* ---- the definition ---- */

struct likely {
    double p;
    float logit;
    int32_t id;
};
static int falling(const void *pa, const void *pb)
{
    const struct likely *a = pa, *b = pb;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}
static int by_id(const void *pa, const void *pb)
{
    const struct likely *a = pa, *b = pb;
    return a->id < b->id ? -1 : 1;
}

/* The token by the definition, and *close: the distance of the uniform number (or a cut) to where
 * another one would be taken. */
static int32_t slow(const struct sampler *s, const float *x, size_t n, uint64_t position,
                    double *close)
{
    static struct likely all[MOST];
    double total = 0, sum = 0, kept = 0;
    for (size_t i = 0; i < n; i++) all[i] = (struct likely){0, x[i], (int32_t)i};
    qsort(all, n, sizeof *all, falling);
    *close = 1;
    if (s->temperature == 0) return all[0].id;
    size_t m = 0;
    for (; m < n; m++) {
        double below = ((double)all[m].logit - (double)all[0].logit) / s->temperature;
        all[m].p = exp(below);
        if (s->min_p > 0) *close = fmin(*close, fabs(all[m].p / s->min_p - 1));
        if (all[m].p < s->min_p) break;
    }
    if (s->top_k > 0 && m > (size_t)s->top_k) m = (size_t)s->top_k;
    for (size_t i = 0; i < m; i++) total += all[i].p;
    size_t k = 0;
    while (k < m && (k == 0 || s->top_p >= 1 || kept < s->top_p * total)) {
        kept += all[k++].p;
        if (s->top_p < 1) *close = fmin(*close, fabs(kept / total - s->top_p));
    }
    qsort(all, k, sizeof *all, by_id); /* the order of drawing */
    double u = rng_uniform(s->seed, rng_stream("sample"), position);
    int32_t out = -1;
    for (size_t i = 0; i < k; i++) {
        sum += all[i].p;
        *close = fmin(*close, fabs(u - sum / kept));
        if (out < 0 && all[i].p > 0 && u * kept < sum) out = all[i].id;
    }
    return out;
}

static void random_cuts(void **state)
{
    (void)state;
    static float x[MOST];
    static struct sample_slot scratch[MOST];
    int compared = 0;
    for (uint64_t i = 0; i < 6000; i++) {
        size_t n = 1 + (size_t)(random01(8 * i) * (i % 50 ? 300 : MOST - 1));
        random_logits(x, n, i, i % 3 ? 3 : 0.01);
        if (i % 7 == 0)
            for (size_t k = 0; k < n; k++) x[k] = roundf(x[k]); /* ties */
        struct sampler s = {.temperature = i % 11 ? 0.2 + 2 * random01(8 * i + 1) : 0, .top_p = 1};
        s.seed = i;
        if (random01(8 * i + 2) < 0.5) s.top_p = 0.05 + 0.95 * random01(8 * i + 3);
        if (random01(8 * i + 4) < 0.5) s.top_k = 1 + (int64_t)(random01(8 * i + 5) * 60);
        if (random01(8 * i + 6) < 0.4) s.min_p = random01(8 * i + 7);
        double close;
        int32_t id = -1, want = slow(&s, x, n, i, &close);
        assert_int_equal(sample_token(&s, x, n, i, scratch, &id, NULL), RT_ok);
        assert_true(id >= 0 && (size_t)id < n && x[id] != -INFINITY);
        if (close < 1e-5) continue; /* where float and double may differ */
        assert_int_equal(id, want);
        compared++;
    }
    assert_true(compared > 5500);
}

/* Largest logits at every place of vectors and blocks, and what is broken at every place. */
static void greedy(void **state)
{
    (void)state;
    static float x[MOST];
    const struct sampler s = {.top_p = 1};
    struct rt_error err;
    int32_t id;
    for (size_t n = 1; n < 1100; n += n < 20 ? 1 : 211) {
        random_logits(x, n, n, 1);
        for (size_t at = 0; at < n; at++) {
            float had = x[at];
            x[at] = 50;
            assert_int_equal(sample_token(&s, x, n, 0, NULL, &id, NULL), RT_ok);
            assert_int_equal(id, at);
            if (at) { /* of equal ones the first */
                float first = x[at / 2];
                x[at / 2] = 50;
                assert_int_equal(sample_token(&s, x, n, 0, NULL, &id, NULL), RT_ok);
                assert_int_equal(id, at / 2);
                x[at / 2] = first;
            }
            x[at] = at % 2 ? NAN : -NAN;
            assert_int_equal(sample_token(&s, x, n, 0, NULL, &id, &err), RT_machine);
            x[at] = INFINITY;
            assert_int_equal(sample_token(&s, x, n, 5, NULL, &id, &err), RT_machine);
            x[at] = had;
        }
    }
    for (size_t i = 0; i < 300; i++) x[i] = -INFINITY;
    assert_int_equal(sample_token(&s, x, 300, 5, NULL, &id, &err), RT_machine);
    assert_string_equal(err.text, "no logit at position 5 is finite");
    x[299] = -FLT_MAX;
    assert_int_equal(sample_token(&s, x, 300, 5, NULL, &id, &err), RT_ok);
    assert_int_equal(id, 299);
}

/* Tokens are the same whatever the values do: huge spreads, one token, all equal, sharp and flat.
 */
static void extremes(void **state)
{
    (void)state;
    static float x[MOST];
    static struct sample_slot scratch[MOST];
    int32_t id;
    const double temperatures[] = {1e-320, 1e-30, 1e-3, 1, 1e3, 1e300};
    for (int t = 0; t < 6; t++)
        for (int kind = 0; kind < 4; kind++)
            for (int cut = 0; cut < 8; cut++) {
                size_t n = kind == 1 ? 1 : 700;
                for (size_t i = 0; i < n; i++)
                    x[i] = kind == 0   ? (i % 2 ? FLT_MAX : -FLT_MAX)
                           : kind == 2 ? 1e6f + (float)(i % 3)
                                       : -INFINITY;
                x[n - 1] = kind == 3 ? 0 : x[n - 1];
                if (kind == 1) x[0] = -5;
                struct sampler s = {.temperature = temperatures[t], .seed = 3};
                s.top_p = cut & 1 ? 0.5 : 1;
                s.top_k = cut & 2 ? 5 : 0;
                s.min_p = cut & 4 ? 0.3 : 0;
                assert_int_equal(sample_token(&s, x, n, 1, scratch, &id, NULL), RT_ok);
                assert_true(id >= 0 && (size_t)id < n && x[id] != -INFINITY);
                if (kind == 0 && t < 4) assert_true(id % 2);
            }
}

static void logprobs(void **state)
{
    (void)state;
    static float x[MOST];
    struct sample_slot best[20];
    for (uint64_t i = 0; i < 300; i++) {
        size_t n = 1 + (size_t)(random01(i) * 1500);
        random_logits(x, n, i, 4);
        double high = -INFINITY, sum = 0;
        for (size_t k = 0; k < n; k++) high = fmax(high, (double)x[k]);
        for (size_t k = 0; k < n; k++) sum += exp((double)x[k] - high);
        float got;
        int top = (int)(i % 21);
        int m = sample_logprobs(x, n, (int32_t)(i % n), &got, best, top);
        assert_int_equal(m, (size_t)top < n ? top : (int)n);
        double want = (double)x[i % n] - high - log(sum);
        assert_true(got <= 0 &&
                    (got == -INFINITY ? x[i % n] == -INFINITY : fabs((double)got - want) < 1e-5));
        static struct likely all[MOST];
        for (size_t k = 0; k < n; k++) all[k] = (struct likely){0, x[k], (int32_t)k};
        qsort(all, n, sizeof *all, falling);
        for (int k = 0; k < m; k++) assert_int_equal(best[k].id, all[k].id);
        if (m && x[all[0].id] > -INFINITY)
            assert_true(fabs((double)best[0].logit + log(sum)) < 1e-5);
    }
}

static void penalties(void **state)
{
    (void)state;
    enum { V = 200, TOKENS = 500 };
    static uint64_t room[V * 4];
    assert_true(sample_seen_size(V) <= sizeof room);
    struct sample_seen seen;
    sample_seen_init(&seen, V, room);
    unsigned count[V] = {0};
    bool prompt[V] = {false};
    for (uint64_t i = 0; i < TOKENS; i++) {
        int32_t id = (int32_t)(random01(i) * random01(i + 1000) * V);
        bool answer = i > 200;
        sample_seen_add(&seen, id, answer);
        count[id] += answer;
        prompt[id] = true;
    }
    static float x[V], y[V];
    random_logits(x, V, 5, 2);
    memcpy(y, x, sizeof x);
    const struct sample_bias bias[] = {{7, 2.5f}, {8, -100}, {9, 100}};
    const int32_t banned[] = {3, 199, -5, 1000};
    const struct sampler s = {.top_p = 1, .presence = 0.5, .frequency = 0.25, .repetition = 1.5};
    struct sample_rules r = {&seen, bias, 3, banned, 4};
    assert_true(sample_adjusts(&s, &r));
    sample_adjust(&s, &r, y, V);
    for (int i = 0; i < V; i++) {
        double want = (double)x[i] + (i == 7 ? 2.5 : i == 8 ? -100 : i == 9 ? 100 : 0);
        if (prompt[i]) want = want > 0 ? want / 1.5 : want * 1.5;
        if (count[i]) want -= 0.5 + 0.25 * count[i];
        if (i == 3 || i == 199 || x[i] == -INFINITY) want = -INFINITY;
        assert_true(want == (double)y[i] || fabs(want - (double)y[i]) < 1e-4);
    }
    r = (struct sample_rules){.seen = &seen};
    assert_false(sample_adjusts(&(struct sampler){.repetition = 1}, &r));
    assert_false(sample_adjusts(&(struct sampler){.repetition = 0}, &r));
    memcpy(y, x, sizeof x);
    sample_adjust(&(struct sampler){.repetition = 1}, &r, y, V);
    assert_memory_equal(x, y, sizeof x);
}

static void checks(void **state)
{
    (void)state;
    const struct sampler good = {.top_p = 1};
    assert_int_equal(sampler_check(&good, NULL), RT_ok);
    struct sampler bad[8];
    for (int i = 0; i < 8; i++) bad[i] = good;
    bad[0].temperature = -1;
    bad[1].temperature = INFINITY;
    bad[2].top_p = 0;
    bad[3].top_k = -1;
    bad[4].min_p = 1.5;
    bad[5].presence = NAN;
    bad[6].frequency = INFINITY;
    bad[7].repetition = -1;
    for (int i = 0; i < 8; i++) assert_int_equal(sampler_check(&bad[i], NULL), RT_user);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_cuts), cmocka_unit_test(greedy),    cmocka_unit_test(extremes),
        cmocka_unit_test(logprobs),    cmocka_unit_test(penalties), cmocka_unit_test(checks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
