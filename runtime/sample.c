#include "runtime/sample.h"
#include "base/arena.h"
#include "runtime/philox.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Four lanes, which every x86-64 has: the bits are the same on all. */
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));
enum { BLOCK = 256 }; /* logits that are summed in float before they go to a double */

static v4 load4(const float *p)
{
    v4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* The n < 4 floats at p, then -infinity. */
static v4 load_tail(const float *p, size_t n)
{
    float v[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    memcpy(v, p, n * sizeof *v);
    return load4(v);
}

static v4 select4(v4i mask, v4 a, v4 b)
{
    return (v4)((mask & (v4i)a) | (~mask & (v4i)b));
}

/* exp of x <= 0 to about 2 ulp, 0 below -87 (Cephes expf: 2^n times a polynomial). */
static v4 exp4(v4 x)
{
    const v4 low = {-87, -87, -87, -87}, magic = {12582912, 12582912, 12582912, 12582912};
    v4i in = x >= low;
    x = select4(in, x, low);
    v4 n = (x * 1.44269504088896341f + magic) - magic;
    v4 r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    v4 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    v4i k = (__builtin_convertvector(n, v4i) + 127) << 23;
    return (v4)((v4i)(p * (v4)k) & in);
}

/* ---- the largest ---- */

/* Index of the first logit that is not a number or +infinity, as an error. */
static enum rt_status broken(const float *logits, size_t vocab, uint64_t position,
                             struct rt_error *err)
{
    for (size_t i = 0; i < vocab; i++)
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return rt_fail(err, RT_machine, "the logit of token %zu at position %llu is %s", i,
                           (unsigned long long)position,
                           isnan(logits[i]) ? "not a number" : "infinite");
    return rt_fail(err, RT_machine, "no logit at position %llu is finite",
                   (unsigned long long)position);
}

/* The largest of n <= BLOCK floats; not a number where one of them is not. */
static float block_max(const float *x, size_t n)
{
    v4 best = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    v4i bad = {0};
    for (size_t i = 0; i < n; i += 4) {
        v4 v = n - i < 4 ? load_tail(x + i, n - i) : load4(x + i);
        bad |= v != v;
        best = select4(v > best, v, best);
    }
    float m = best[0];
    for (int i = 1; i < 4; i++) m = best[i] > m ? best[i] : m;
    return bad[0] | bad[1] | bad[2] | bad[3] ? NAN : m;
}

/* Index of the largest logit (the first of equal ones), or an error. */
static enum rt_status largest(const float *logits, size_t vocab, uint64_t position, size_t *out,
                              struct rt_error *err)
{
    float best = -INFINITY;
    size_t from = 0;
    for (size_t i = 0; i < vocab; i += BLOCK) {
        float m = block_max(logits + i, vocab - i < BLOCK ? vocab - i : BLOCK);
        if (isnan(m) || m == INFINITY) return broken(logits, vocab, position, err);
        if (m > best) {
            best = m;
            from = i;
        }
    }
    if (best == -INFINITY) return broken(logits, vocab, position, err);
    while (logits[from] != best) from++;
    *out = from;
    return RT_ok;
}

/* ---- probabilities ---- */

/* exp((logit - top) * scale), and the least logit that counts. */
struct curve {
    float top, scale, least;
};

static v4 weights4(const struct curve *c, v4 x)
{
    v4i in = x >= c->least;
    return (v4)((v4i)exp4((x - c->top) * c->scale) & in);
}

/* Their sum over n <= BLOCK logits, always in the same order. */
static double block_sum(const struct curve *c, const float *x, size_t n)
{
    v4 sum = {0};
    for (size_t i = 0; i < n; i += 4)
        sum += weights4(c, n - i < 4 ? load_tail(x + i, n - i) : load4(x + i));
    return ((double)sum[0] + (double)sum[1]) + ((double)sum[2] + (double)sum[3]);
}

static double weight(const struct curve *c, float x)
{
    return (double)weights4(c, (v4){x, x, x, x})[0];
}

static double total_of(const struct curve *c, const float *logits, size_t vocab)
{
    double total = 0;
    for (size_t i = 0; i < vocab; i += BLOCK)
        total += block_sum(c, logits + i, vocab - i < BLOCK ? vocab - i : BLOCK);
    return total;
}

/* The token that u of the whole falls on when all tokens lie in order of their ids. slot[i].logit
 * becomes the sum of the i-th BLOCK. */
static int32_t pick_any(const struct curve *c, const float *logits, size_t vocab, double u,
                        struct sample_slot *slot)
{
    double total = 0, sum = 0;
    size_t n = (vocab + BLOCK - 1) / BLOCK, at = 0;
    for (size_t i = 0; i < n; i++) {
        size_t left = vocab - i * BLOCK;
        slot[i].logit = (float)block_sum(c, logits + i * BLOCK, left < BLOCK ? left : BLOCK);
        total += (double)slot[i].logit;
    }
    for (size_t i = 0; i < n; i++) {
        if (slot[i].logit == 0) continue;
        at = i; /* rounding may leave u * total = sum: then the last possible one */
        if (u * total < sum + (double)slot[i].logit) break;
        sum += (double)slot[i].logit;
    }
    int32_t last = 0;
    for (size_t i = at * BLOCK; i < vocab && i < (at + 1) * BLOCK; i++) {
        double p = weight(c, logits[i]);
        if (p == 0) continue;
        last = (int32_t)i;
        sum += p;
        if (u * total < sum) break;
    }
    return last;
}

/* ---- cuts ---- */

static int likely_first(const void *pa, const void *pb)
{
    const struct sample_slot *a = pa, *b = pb;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

/* A logit that at least k (> 0) are not below: a histogram of steps below the top tells (speed
 * only: what is not below it is sorted). */
static float around_kth(const float *logits, size_t vocab, float top, size_t k)
{
    enum { STEPS = 1024 };
    static const float per_step = 1.0f / 32;
    uint32_t count[STEPS] = {0};
    for (size_t i = 0; i < vocab; i++) {
        float below = (top - logits[i]) * (1 / per_step);
        if (below < STEPS) count[(int)below]++;
    }
    size_t sum = 0;
    for (int i = 0; i < STEPS - 1; i++) {
        sum += count[i];
        if (sum < k) continue;
        /* a step more, since the border is rounded */
        return top - (float)(i + 2) * per_step;
    }
    return -INFINITY;
}

/* The logits of at least `least`, likeliest first; how many. */
static size_t sorted(const float *logits, size_t vocab, float least, struct sample_slot *slot)
{
    size_t m = 0;
    for (size_t i = 0; i < vocab; i++)
        if (logits[i] >= least && logits[i] != -INFINITY)
            slot[m++] = (struct sample_slot){logits[i], (int32_t)i};
    qsort(slot, m, sizeof *slot, likely_first);
    return m;
}

/* Draws from the first tokens of slot[m] that together reach top_p of `total`. */
static int32_t pick_likely(const struct curve *c, const struct sample_slot *slot, size_t m,
                           double top_p, double total, double u)
{
    double kept = 0, sum = 0;
    size_t n = 0;
    while (n < m && (n == 0 || kept < top_p * total)) kept += weight(c, slot[n++].logit);
    int32_t last = slot[0].id;
    for (size_t i = 0; i < n; i++) {
        double p = weight(c, slot[i].logit);
        if (p == 0) continue;
        last = slot[i].id;
        sum += p;
        if (u * kept < sum) break;
    }
    return last;
}

static int32_t pick_top_k(const struct sampler *s, const struct curve *c, const float *logits,
                          size_t vocab, double u, struct sample_slot *slot)
{
    float least = around_kth(logits, vocab, c->top, (size_t)s->top_k);
    size_t m = sorted(logits, vocab, least > c->least ? least : c->least, slot);
    if (m > (size_t)s->top_k) m = (size_t)s->top_k;
    double total = 0;
    for (size_t i = 0; i < m; i++) total += weight(c, slot[i].logit);
    return pick_likely(c, slot, m, s->top_p >= 1 ? 2 : s->top_p, total, u);
}

static int32_t pick_top_p(const struct sampler *s, const struct curve *c, const float *logits,
                          size_t vocab, double u, struct sample_slot *slot)
{
    double total = total_of(c, logits, vocab);
    /* Less likely tokens than this cannot matter: all of them together miss 1 - top_p (speed only,
     * with room for rounding). */
    double p = vocab > 1 ? 0.99 * (1 - s->top_p) * total / (double)(vocab - 1) : 0;
    float least = p > 0 ? (float)((double)c->top + log(p) / (double)c->scale) : -INFINITY;
    least = nextafterf(least, -INFINITY);
    size_t m = sorted(logits, vocab, least > c->least ? least : c->least, slot);
    return pick_likely(c, slot, m, s->top_p, total, u);
}

enum rt_status sample_token(const struct sampler *s, const float *logits, size_t vocab,
                            uint64_t position, struct sample_slot *scratch, int32_t *out,
                            struct rt_error *err)
{
    CHECK(vocab > 0 && vocab <= INT32_MAX && s->temperature >= 0 && s->top_p > 0);
    size_t best = 0;
    RT_TRY(largest(logits, vocab, position, &best, err));
    *out = (int32_t)best;
    struct curve c = {logits[best], (float)(1 / s->temperature), -INFINITY};
    if (s->temperature == 0 || isinf(c.scale)) return RT_ok;
    if (s->min_p > 0) c.least = (float)((double)c.top + log(s->min_p) * s->temperature);
    if (c.least > c.top) c.least = c.top;
    double u = rng_uniform(s->seed, rng_stream("sample"), position);
    if (s->top_k > 0 && (uint64_t)s->top_k < vocab)
        *out = pick_top_k(s, &c, logits, vocab, u, scratch);
    else if (s->top_p < 1)
        *out = pick_top_p(s, &c, logits, vocab, u, scratch);
    else
        *out = pick_any(&c, logits, vocab, u, scratch);
    return RT_ok;
}

enum rt_status sampler_check(const struct sampler *s, struct rt_error *err)
{
    if (!(s->temperature >= 0 && s->temperature < INFINITY))
        return rt_fail(err, RT_user, "temperature must be at least 0");
    if (!(s->top_p > 0 && s->top_p <= 1)) return rt_fail(err, RT_user, "top_p must be in (0, 1]");
    if (!(s->min_p >= 0 && s->min_p <= 1)) return rt_fail(err, RT_user, "min_p must be in [0, 1]");
    if (s->top_k < 0) return rt_fail(err, RT_user, "top_k must be at least 0");
    if (!isfinite(s->presence) || !isfinite(s->frequency))
        return rt_fail(err, RT_user, "penalties must be finite");
    if (!(s->repetition >= 0 && s->repetition < INFINITY))
        return rt_fail(err, RT_user, "the repetition penalty must be positive");
    return RT_ok;
}

/* ---- bias, penalties, bans ---- */

static size_t table_size(size_t most)
{
    size_t n = 8;
    while (n < 2 * most) n *= 2;
    return n;
}

size_t sample_seen_size(size_t most)
{
    return most * sizeof(struct sample_count) + table_size(most) * sizeof(uint32_t);
}

void sample_seen_init(struct sample_seen *s, size_t most, void *room)
{
    *s = (struct sample_seen){.list = room, .most = most, .mask = table_size(most) - 1};
    s->table = (uint32_t *)(void *)(s->list + most);
}

void sample_seen_add(struct sample_seen *s, int32_t id, bool answer)
{
    size_t i = ((uint32_t)id * 2654435769u) & s->mask;
    while (s->table[i] && s->list[s->table[i] - 1].id != id) i = (i + 1) & s->mask;
    if (!s->table[i]) {
        CHECK(s->n < s->most);
        s->list[s->n] = (struct sample_count){id, 0};
        s->table[i] = (uint32_t)++s->n;
    }
    s->list[s->table[i] - 1].answer += answer;
}

static bool penalises(const struct sampler *s)
{
    return s->presence != 0 || s->frequency != 0 || (s->repetition > 0 && s->repetition != 1);
}

bool sample_adjusts(const struct sampler *s, const struct sample_rules *r)
{
    return r->num_bias || r->num_banned || (r->seen && penalises(s));
}

void sample_adjust(const struct sampler *s, const struct sample_rules *r, float *logits,
                   size_t vocab)
{
    for (size_t i = 0; i < r->num_bias; i++)
        if ((size_t)r->bias[i].id < vocab) logits[r->bias[i].id] += r->bias[i].add;
    for (size_t i = 0; r->seen && penalises(s) && i < r->seen->n; i++) {
        const struct sample_count *c = &r->seen->list[i];
        double x = (double)logits[c->id];
        if (s->repetition > 0) x = x > 0 ? x / s->repetition : x * s->repetition;
        if (c->answer) x -= s->presence + s->frequency * (double)c->answer;
        logits[c->id] = (float)x;
    }
    for (size_t i = 0; i < r->num_banned; i++)
        if (r->banned[i] >= 0 && (size_t)r->banned[i] < vocab) logits[r->banned[i]] = -INFINITY;
}

int sample_logprobs(const float *logits, size_t vocab, int32_t id, float *logprob,
                    struct sample_slot *best, int top)
{
    int n = 0;
    float least = -INFINITY, high = -INFINITY;
    for (size_t i = 0; i < vocab && top > 0; i++) {
        if (n == top && logits[i] <= least) continue;
        int k = n < top ? n++ : n - 1;
        for (; k > 0 && best[k - 1].logit < logits[i]; k--) best[k] = best[k - 1];
        best[k] = (struct sample_slot){logits[i], (int32_t)i};
        least = best[n - 1].logit;
    }
    for (size_t i = 0; i < vocab; i += BLOCK) {
        float m = block_max(logits + i, vocab - i < BLOCK ? vocab - i : BLOCK);
        high = m > high ? m : high;
    }
    const struct curve c = {high, 1, -INFINITY};
    double norm = (double)high + log(total_of(&c, logits, vocab));
    *logprob = (float)fmin((double)logits[id] - norm, 0);
    for (int i = 0; i < n; i++) best[i].logit = (float)fmin((double)best[i].logit - norm, 0);
    return n;
}
