/* Randomness as a pure function: Philox4x32-10 (Salmon et al., SC11) keyed by a seed, counted by
 * (stream, element), so that any slice of any tensor can be drawn alone and in any order. */
#ifndef STRATA_RUNTIME_PHILOX_H
#define STRATA_RUNTIME_PHILOX_H
#include <stddef.h>
#include <stdint.h>

/* The raw generator: 128-bit counter and 64-bit key, least significant word first. */
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
/* The stream of a tensor (or of another user of randomness): a stable hash of its name. */
uint64_t rng_stream(const char *name);
/* 64 random bits of element i. Elements 2j and 2j+1 come from one Philox block. */
uint64_t rng_bits(uint64_t seed, uint64_t stream, uint64_t i);
/* Uniform in [0, 1), 53 bits. */
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t i);
/* Standard normal by Box-Muller in double: pair j gives elements 2j (cosine) and 2j+1 (sine). */
double rng_normal(uint64_t seed, uint64_t stream, uint64_t i);

/* How a tensor starts (spec-contract section 2 "Initialisation", kimi-linear.md 2.7). */
enum init_kind {
    INIT_constant,    /* a */
    INIT_normal,      /* N(0, a): a is the standard deviation */
    INIT_uniform,     /* U(a, b) */
    INIT_log_uniform, /* log of U(a, b): A_log with (1, 16) */
    INIT_dt_bias,     /* inverse softplus of a log-uniform in [a, b], floored at 1e-4 */
};
struct init_rule {
    enum init_kind kind;
    double a, b;
};
/* Elements first .. first+n-1 of a tensor; the same values whatever slices it is drawn in. */
void init_fill(struct init_rule rule, uint64_t seed, uint64_t stream, uint64_t first, size_t n,
               float *out);
#endif
