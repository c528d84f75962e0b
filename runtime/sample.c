#include "runtime/sample.h"
#include "base/arena.h"
#include "runtime/philox.h"
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Eight lanes. AVX2 is the least that any kernel needs (runtime/cpu.h); without FMA, whose bits
 * would depend on what the compiler contracts. */
typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
#define WIDE __attribute__((target("avx2"))) static
#define SHARED static inline __attribute__((target("avx2"), always_inline))
enum { LANES = 8, BLOCK = 256 }; /* BLOCK: logits that are summed in float, then go to a double */

SHARED v8 all(float x)
{
    return (v8){x, x, x, x, x, x, x, x};
}

SHARED v8 select8(v8i mask, v8 a, v8 b)
{
    return (v8)((mask & (v8i)a) | (~mask & (v8i)b));
}

/* Logits i to i + 7, and -infinity behind the last. */
SHARED v8 at8(const float *logits, size_t vocab, size_t i)
{
    v8 v = all(-INFINITY);
    if (vocab - i < LANES)
        memcpy(&v, logits + i, (vocab - i) * sizeof *logits);
    else
        memcpy(&v, logits + i, sizeof v);
    return v;
}

/* exp of x <= 0 to about 2 ulp, 0 below -87 (Cephes expf: 2^n times a polynomial). */
SHARED v8 exp8(v8 x)
{
    v8i in = x >= all(-87);
    x = select8(in, x, all(-87));
    v8 n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f; /* to the nearest */
    v8 r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    v8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    v8i k = (__builtin_convertvector(n, v8i) + 127) << 23;
    return (v8)((v8i)(p * (v8)k) & in);
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

/* The largest of the BLOCK from logit i on; not a number where one of them is not. */
WIDE float block_max(const float *logits, size_t vocab, size_t i)
{
    v8 best = all(-INFINITY);
    v8i bad = {0};
    size_t end = vocab - i < BLOCK ? vocab : i + BLOCK;
    for (; i < end; i += LANES) {
        v8 v = at8(logits, vocab, i);
        bad |= v != v;
        best = select8(v > best, v, best);
    }
    float m = best[0];
    int32_t nan = bad[0];
    for (int k = 1; k < LANES; k++) {
        m = best[k] > m ? best[k] : m;
        nan |= bad[k];
    }
    return nan ? NAN : m;
}

/* Index of the largest logit (the first of equal ones), or an error. */
static enum rt_status largest(const float *logits, size_t vocab, uint64_t position, size_t *out,
                              struct rt_error *err)
{
    float best = -INFINITY;
    size_t from = 0;
    for (size_t i = 0; i < vocab; i += BLOCK) {
        float m = block_max(logits, vocab, i);
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

SHARED v8i kept8(const struct curve *c, v8 x, size_t i)
{
    const v8i id = (v8i){0, 1, 2, 3, 4, 5, 6, 7} + (int32_t)i;
    return (x > c->least) | ((x == c->least) & (id <= c->last));
}

/* Of eight logits x, whose first has index i. */
SHARED v8 weights8(const struct curve *c, v8 x, size_t i)
{
    return (v8)((v8i)exp8((x - c->top) * c->scale) & kept8(c, x, i));
}

/* Those of the BLOCK from logit i on to `out`, where it is not NULL; their sum, always in the same
 * order. */
WIDE double weigh_block(const struct curve *c, const float *logits, size_t vocab, size_t i,
                        float *out)
{
    v8 sum = {0};
    size_t end = vocab - i < BLOCK ? vocab : i + BLOCK;
    for (; i < end; i += LANES) {
        v8 w = weights8(c, at8(logits, vocab, i), i);
        sum += w;
        if (out) memcpy(out, &w, sizeof w), out += LANES;
    }
    double total = 0;
    for (int k = 0; k < LANES; k++) total += (double)sum[k];
    return total;
}

static double total_of(const struct curve *c, const float *logits, size_t vocab)
{
    double total = 0;
    for (size_t i = 0; i < vocab; i += BLOCK) total += weigh_block(c, logits, vocab, i, NULL);
    return total;
}

WIDE double weight(const struct curve *c, float x, size_t i)
{
    return (double)weights8(c, all(x), i)[0];
}

/* The token that u of the whole falls on when the kept ones lie in order of their ids.
 * slot[i].logit becomes the sum of the i-th BLOCK. */
static int32_t pick(const struct curve *c, const float *logits, size_t vocab, double u,
                    struct sample_slot *slot)
{
    double total = 0, sum = 0;
    size_t n = (vocab + BLOCK - 1) / BLOCK, at = 0;
    for (size_t i = 0; i < n; i++) {
        slot[i].logit = (float)weigh_block(c, logits, vocab, i * BLOCK, NULL);
        total += (double)slot[i].logit;
    }
    for (size_t i = 0; i < n; i++) {
        if (slot[i].logit == 0) continue;
        at = i; /* rounding may leave u * total = sum: then the last possible one */
        if (u * total < sum + (double)slot[i].logit) break;
        sum += (double)slot[i].logit;
    }
    size_t last = 0;
    float p[BLOCK];
    weigh_block(c, logits, vocab, at * BLOCK, p);
    for (size_t i = at * BLOCK; i < vocab && i < (at + 1) * BLOCK; i++) {
        if (p[i - at * BLOCK] == 0) continue;
        last = i;
        sum += (double)p[i - at * BLOCK];
        if (u * total < sum) break;
    }
    return (int32_t)last;
}

/* ---- cuts ---- */

/* Logits by how far they are below the top, so that only those around a cut are sorted. */
enum { STEPS = 1024 };
static const float per_unit = 32;
static int step_of(const struct curve *c, float x)
{
    float below = (c->top - x) * per_unit;
    return below < (float)(STEPS - 1) ? (int)below : STEPS - 1;
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
    /* speed only: a step is as wide as this, with room for rounding at its ends */
    float high = c->top - (float)(step - 1) / per_unit;
    float low = step < STEPS - 1 ? c->top - (float)(step + 2) / per_unit : -FLT_MAX;
    size_t m = 0;
    for (size_t i = 0; i < vocab; i++) {
        float x = logits[i];
        if (x <= high && x >= low && step_of(c, x) == step &&
            (x > c->least || (x == c->least && (int32_t)i <= c->last)))
            slot[m++] = (struct sample_slot){x, (int32_t)i};
    }
    qsort(slot, m, sizeof *slot, likely_first);
    return m;
}

/* The BLOCK from logit i on is added to what its steps weigh, or with `count` to how many they are.
 */
WIDE void add_steps(const struct curve *c, const float *logits, size_t vocab, size_t i, bool count,
                    double mass[STEPS])
{
    size_t end = vocab - i < BLOCK ? vocab : i + BLOCK;
    for (; i < end; i += LANES) {
        v8 x = at8(logits, vocab, i);
        v8 w = count ? (v8)((v8i)all(1) & kept8(c, x, i)) : weights8(c, x, i);
        float one[LANES];
        memcpy(one, &w, sizeof one);
        for (size_t k = 0; k < LANES; k++)
            if (one[k] > 0) mass[step_of(c, logits[i + k])] += (double)one[k];
    }
}

/* Steps of the tokens that are kept and at least `least`: mass[i] becomes what step i weighs, or
 * with `count` how many they are. The sum. */
static double sum_steps(const struct curve *c, const float *logits, size_t vocab, float least,
                        bool count, double mass[STEPS])
{
    struct curve near = *c;
    if (least > c->least) {
        near.least = least;
        near.last = INT32_MAX;
    }
    memset(mass, 0, STEPS * sizeof *mass);
    for (size_t i = 0; i < vocab; i += BLOCK) {
        if (block_max(logits, vocab, i) < near.least) continue;
        add_steps(&near, logits, vocab, i, count, mass);
    }
    double sum = 0;
    for (int i = 0; i < STEPS; i++) sum += mass[i];
    return sum;
}

/* Keeps the fewest likeliest tokens that reach `want`: in number with `count`, else in weight. */
static void cut(struct curve *c, const float *logits, size_t vocab, bool count, double want,
                struct sample_slot *slot)
{
    double mass[STEPS], sum = 0;
    /* most often those near the top are enough (speed only) */
    if (sum_steps(c, logits, vocab, c->top - 8, count, mass) < want)
        sum_steps(c, logits, vocab, -FLT_MAX, count, mass);
    int step = 0;
    for (; step < STEPS - 1 && sum + mass[step] < want; step++) sum += mass[step];
    size_t m = sorted(c, logits, vocab, step, slot), n = 0;
    while (n < m && (n == 0 || sum < want)) {
        sum += count ? 1 : weight(c, slot[n].logit, (size_t)slot[n].id);
        n++;
    }
    if (!n) return; /* all of them together do not reach it */
    c->least = slot[n - 1].logit;
    c->last = slot[n - 1].id;
}

enum rt_status sample_token(const struct sampler *s, const float *logits, size_t vocab,
                            uint64_t position, struct sample_slot *scratch, int32_t *out,
                            struct rt_error *err)
{
    CHECK(vocab > 0 && vocab <= INT32_MAX && s->temperature >= 0 && s->top_p > 0);
    size_t best = 0;
    RT_TRY(largest(logits, vocab, position, &best, err));
    *out = (int32_t)best;
    struct curve c = {logits[best], (float)(1 / s->temperature), -FLT_MAX, INT32_MAX};
    if (s->temperature == 0 || isinf(c.scale)) return RT_ok;
    if (s->min_p > 0) {
        double least = (double)c.top + log(s->min_p) * s->temperature;
        c.least = (float)fmax(fmin(least, (double)c.top), -(double)FLT_MAX);
    }
    if (s->top_k > 0 && (uint64_t)s->top_k < vocab)
        cut(&c, logits, vocab, true, (double)s->top_k, scratch);
    if (s->top_p < 1)
        cut(&c, logits, vocab, false, s->top_p * total_of(&c, logits, vocab), scratch);
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
        float m = block_max(logits, vocab, i);
        high = m > high ? m : high;
    }
    const struct curve c = {high, 1, -FLT_MAX, INT32_MAX};
    double norm = (double)high + log(total_of(&c, logits, vocab));
    *logprob = (float)fmin((double)logits[id] - norm, 0);
    for (int i = 0; i < n; i++) best[i].logit = (float)fmin((double)best[i].logit - norm, 0);
    return n;
}
