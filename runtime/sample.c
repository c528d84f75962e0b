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

/* exp((logit - top) * scale) of the tokens that are kept: those above `least`, and of those that
 * equal it the ids up to `last`. */
struct curve {
    float top, scale, least;
    int32_t last;
};

/* Of four logits at x, whose first has index i. */
static v4 weights4(const struct curve *c, v4 x, size_t i)
{
    const v4i id = (v4i){0, 1, 2, 3} + (int32_t)i;
    v4i in = (x > c->least) | ((x == c->least) & (id <= c->last));
    return (v4)((v4i)exp4((x - c->top) * c->scale) & in);
}

static v4 at4(const float *logits, size_t vocab, size_t i)
{
    return vocab - i < 4 ? load_tail(logits + i, vocab - i) : load4(logits + i);
}

/* Their sum over the BLOCK from logit i on, always in the same order. */
static double block_sum(const struct curve *c, const float *logits, size_t vocab, size_t i)
{
    v4 sum = {0};
    size_t end = vocab - i < BLOCK ? vocab : i + BLOCK;
    for (; i < end; i += 4) sum += weights4(c, at4(logits, vocab, i), i);
    return ((double)sum[0] + (double)sum[1]) + ((double)sum[2] + (double)sum[3]);
}

static double weight(const struct curve *c, float x, size_t i)
{
    return (double)weights4(c, (v4){x, x, x, x}, i)[0];
}

/* The token that u of the whole falls on when the kept ones lie in order of their ids.
 * slot[i].logit becomes the sum of the i-th BLOCK. */
static int32_t pick(const struct curve *c, const float *logits, size_t vocab, double u,
                    struct sample_slot *slot)
{
    double total = 0, sum = 0;
    size_t n = (vocab + BLOCK - 1) / BLOCK, at = 0;
    for (size_t i = 0; i < n; i++) {
        slot[i].logit = (float)block_sum(c, logits, vocab, i * BLOCK);
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
        double p = weight(c, logits[i], i);
        if (p == 0) continue;
        last = (int32_t)i;
        sum += p;
        if (u * total < sum) break;
    }
    return last;
}

/* ---- cuts ---- */

/* Logits by how far they are below the top, so that only those around a cut are sorted. */
enum { STEPS = 1024, STEPS_PER_UNIT = 32 };
static int step_of(const struct curve *c, float x)
{
    float below = (c->top - x) * STEPS_PER_UNIT;
    return below < STEPS - 1 ? (int)below : STEPS - 1;
}

static int likely_first(const void *pa, const void *pb)
{
    const struct sample_slot *a = pa, *b = pb;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

/* The kept tokens of a step, likeliest first; how many. */
static size_t sorted(const struct curve *c, const float *logits, size_t vocab, int step,
                     struct sample_slot *slot)
{
    size_t m = 0;
    for (size_t i = 0; i < vocab; i++)
        if (step_of(c, logits[i]) == step && weight(c, logits[i], i) > 0)
            slot[m++] = (struct sample_slot){logits[i], (int32_t)i};
    qsort(slot, m, sizeof *slot, likely_first);
    return m;
}

/* Keeps what is as likely as s or comes before it. */
static void cut_behind(struct curve *c, const struct sample_slot *s)
{
    c->least = s->logit;
    c->last = s->id;
}

/* Keeps the k likeliest. */
static void cut_top_k(struct curve *c, const float *logits, size_t vocab, size_t k,
                      struct sample_slot *slot)
{
    uint32_t count[STEPS] = {0};
    for (size_t i = 0; i < vocab; i++) count[step_of(c, logits[i])]++;
    int step = 0;
    for (; step < STEPS && count[step] < k; step++) k -= count[step];
    size_t m = sorted(c, logits, vocab, step, slot);
    if (m >= k) cut_behind(c, &slot[k - 1]); /* else fewer than k can be taken at all */
}

/* Keeps the smallest set of likeliest tokens that reach the share p of what is kept now. */
static void cut_top_p(struct curve *c, const float *logits, size_t vocab, double p,
                      struct sample_slot *slot)
{
    double mass[STEPS] = {0}, total = 0, sum = 0;
    for (size_t i = 0; i < vocab; i += 4) {
        v4 x = at4(logits, vocab, i), w = weights4(c, x, i);
        for (int k = 0; k < 4; k++) mass[step_of(c, x[k])] += (double)w[k];
    }
    for (int i = 0; i < STEPS; i++) total += mass[i];
    int step = 0;
    for (; step < STEPS - 1 && sum + mass[step] < p * total; step++) sum += mass[step];
    size_t m = sorted(c, logits, vocab, step, slot), n = 0;
    while (n < m && (n == 0 || sum < p * total))
        sum += weight(c, slot[n].logit, (size_t)slot[n].id), n++;
    if (n) cut_behind(c, &slot[n - 1]);
}

enum rt_status sample_token(const struct sampler *s, const float *logits, size_t vocab,
                            uint64_t position, struct sample_slot *scratch, int32_t *out,
                            struct rt_error *err)
{
    CHECK(vocab > 0 && vocab <= INT32_MAX && s->temperature >= 0 && s->top_p > 0);
    size_t best = 0;
    RT_TRY(largest(logits, vocab, position, &best, err));
    *out = (int32_t)best;
    struct curve c = {logits[best], (float)(1 / s->temperature), -INFINITY, INT32_MAX};
    if (s->temperature == 0 || isinf(c.scale)) return RT_ok;
    if (s->min_p > 0) c.least = (float)((double)c.top + log(s->min_p) * s->temperature);
    if (c.least > c.top) c.least = c.top;
    if (s->top_k > 0 && (uint64_t)s->top_k < vocab)
        cut_top_k(&c, logits, vocab, (size_t)s->top_k, scratch);
    if (s->top_p < 1) cut_top_p(&c, logits, vocab, s->top_p, scratch);
    double u = rng_uniform(s->seed, rng_stream("sample"), position);
    *out = pick(&c, logits, vocab, u, scratch);
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
    const struct curve c = {high, 1, -INFINITY, INT32_MAX};
    double total = 0;
    for (size_t i = 0; i < vocab; i += BLOCK) total += block_sum(&c, logits, vocab, i);
    double norm = (double)high + log(total);
    *logprob = (float)fmin((double)logits[id] - norm, 0);
    for (int i = 0; i < n; i++) best[i].logit = (float)fmin((double)best[i].logit - norm, 0);
    return n;
}
