#include "runtime/philox.h"
#include "base/arena.h"
#include "base/map.h"
#include <math.h>

void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

uint64_t rng_stream(const char *name)
{
    return hash_bytes(name, strlen(name), 0);
}

static void block(uint64_t seed, uint64_t stream, uint64_t j, uint64_t out[2])
{
    uint32_t counter[4] = {(uint32_t)j, (uint32_t)(j >> 32), (uint32_t)stream,
                           (uint32_t)(stream >> 32)};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, w[4];
    philox4x32(counter, key, w);
    out[0] = w[0] | (uint64_t)w[1] << 32;
    out[1] = w[2] | (uint64_t)w[3] << 32;
}

static double unit(uint64_t bits)
{
    return (double)(bits >> 11) * 0x1p-53;
}

/* Both normals of a pair; the radius takes a uniform in (0, 1], so that its log is finite. */
static void normal_pair(uint64_t seed, uint64_t stream, uint64_t j, double out[2])
{
    uint64_t b[2];
    block(seed, stream, j, b);
    double u = (double)((b[0] >> 11) + 1) * 0x1p-53, angle = 6.283185307179586 * unit(b[1]);
    double r = sqrt(-2 * log(u));
    out[0] = r * cos(angle);
    out[1] = r * sin(angle);
}

uint64_t rng_bits(uint64_t seed, uint64_t stream, uint64_t i)
{
    uint64_t b[2];
    block(seed, stream, i / 2, b);
    return b[i & 1];
}

double rng_uniform(uint64_t seed, uint64_t stream, uint64_t i)
{
    return unit(rng_bits(seed, stream, i));
}

double rng_normal(uint64_t seed, uint64_t stream, uint64_t i)
{
    double z[2];
    normal_pair(seed, stream, i / 2, z);
    return z[i & 1];
}

static void fill_normal(double std, uint64_t seed, uint64_t stream, uint64_t first, size_t n,
                        float *out)
{
    double z[2] = {0, 0};
    for (size_t k = 0; k < n; k++) {
        uint64_t i = first + k;
        if (k == 0 || !(i & 1)) normal_pair(seed, stream, i / 2, z);
        out[k] = (float)(std * z[i & 1]);
    }
}

static double transform(struct init_rule r, double u)
{
    switch (r.kind) {
    case INIT_uniform: return r.a + (r.b - r.a) * u;
    case INIT_log_uniform: return log(r.a + (r.b - r.a) * u);
    case INIT_dt_bias: {
        double dt = fmax(exp(log(r.a) + (log(r.b) - log(r.a)) * u), 1e-4);
        return dt + log(-expm1(-dt));
    }
    default: BUG("init kind %d", (int)r.kind);
    }
}

void init_fill(struct init_rule rule, uint64_t seed, uint64_t stream, uint64_t first, size_t n,
               float *out)
{
    if (rule.kind == INIT_normal) {
        fill_normal(rule.a, seed, stream, first, n, out);
    } else if (rule.kind == INIT_constant) {
        for (size_t k = 0; k < n; k++) out[k] = (float)rule.a;
    } else {
        for (size_t k = 0; k < n; k++)
            out[k] = (float)transform(rule, rng_uniform(seed, stream, first + k));
    }
}
