/* Choosing the next token from logits. */
#ifndef STRATA_RUNTIME_SAMPLE_H
#define STRATA_RUNTIME_SAMPLE_H
#include "runtime/status.h"
#include <stddef.h>
#include <stdint.h>

struct sampler {
    double temperature; /* >= 0; 0 is greedy */
    double top_p;       /* (0, 1]; 1 keeps every token */
    uint64_t seed;
    int64_t top_k;              /* 0 keeps every token */
    double min_p;               /* 0 keeps every token */
    double presence, frequency; /* 0: none */
    double repetition;          /* 0 or 1: none */
};
/* The token chosen from logits [vocab] for the text position `position`: a pure function of its
 * arguments, so neither batching nor resuming changes it. Greedy takes the largest logit, ties to
 * the lower index. Otherwise softmax(logits / temperature), the smallest set of most likely tokens
 * whose probabilities reach top_p (ties to the lower index), one uniform number. `scratch` is
 * [vocab] of struct sample_slot, used when top_p < 1 only. RT_machine when a logit is not a number
 * or none is finite: the model's numbers are broken. A logit of -infinity is a token that is never
 * taken. */
struct sample_slot {
    float logit;
    int32_t id;
};
enum rt_status sample_token(const struct sampler *s, const float *logits, size_t vocab,
                            uint64_t position, struct sample_slot *scratch, int32_t *out,
                            struct rt_error *err);
#endif
