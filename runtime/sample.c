#include "runtime/sample.h"
#include "base/arena.h"
#include "runtime/philox.h"
#include <math.h>
#include <stdlib.h>

/* Index of the largest logit, or an error. */
static enum rt_status largest(const float *logits, size_t vocab, uint64_t position, size_t *out,
                              struct rt_error *err)
{
    size_t best = 0;
    for (size_t i = 0; i < vocab; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return rt_fail(err, RT_machine, "the logit of token %zu at position %llu is %s", i,
                           (unsigned long long)position,
                           isnan(logits[i]) ? "not a number" : "infinite");
        if (logits[i] > logits[best]) best = i;
    }
    if (logits[best] == -INFINITY)
        return rt_fail(err, RT_machine, "no logit at position %llu is finite",
                       (unsigned long long)position);
    *out = best;
    return RT_ok;
}

static int likely_first(const void *pa, const void *pb)
{
    const struct sample_slot *a = pa, *b = pb;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

/* The token that `mass` falls on among the first n slots (all tokens in order where slot is NULL).
 */
static int32_t pick(const float *logits, double top, double scale, const struct sample_slot *slot,
                    size_t n, double mass)
{
    double sum = 0;
    int32_t last = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t id = slot ? slot[i].id : (int32_t)i;
        double p = exp(((double)logits[id] - top) * scale);
        if (p == 0) continue;
        last = id;
        sum += p;
        if (mass < sum) break;
    }
    return last; /* rounding may leave mass = sum: then the last possible one */
}

enum rt_status sample_token(const struct sampler *s, const float *logits, size_t vocab,
                            uint64_t position, struct sample_slot *scratch, int32_t *out,
                            struct rt_error *err)
{
    CHECK(vocab > 0 && vocab <= INT32_MAX && s->temperature >= 0 && s->top_p > 0);
    size_t best = 0;
    RT_TRY(largest(logits, vocab, position, &best, err));
    *out = (int32_t)best;
    double top = logits[best], scale = 1 / s->temperature, total = 0;
    if (s->temperature == 0 || isinf(scale)) return RT_ok;
    for (size_t i = 0; i < vocab; i++) total += exp(((double)logits[i] - top) * scale);
    double u = rng_uniform(s->seed, rng_stream("sample"), position);
    if (s->top_p >= 1) {
        *out = pick(logits, top, scale, NULL, vocab, u * total);
        return RT_ok;
    }
    /* Less likely tokens than this cannot matter: all of them together miss 1 - top_p (speed only).
     * The order is by logit, which is exact where probabilities would tie by underflow. */
    double least = vocab > 1 ? (1 - s->top_p) * total / (double)(vocab - 1) : 0;
    size_t m = 0;
    for (size_t i = 0; i < vocab; i++)
        if (exp(((double)logits[i] - top) * scale) >= least)
            scratch[m++] = (struct sample_slot){logits[i], (int32_t)i};
    qsort(scratch, m, sizeof *scratch, likely_first);
    double kept = 0;
    size_t n = 0;
    while (n < m && (n == 0 || kept < s->top_p * total))
        kept += exp(((double)scratch[n++].logit - top) * scale);
    *out = pick(logits, top, scale, scratch, n, u * kept);
    return RT_ok;
}
