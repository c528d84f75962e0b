/* Choosing the next token from logits. What is done, in this order (that of vLLM):
 *   1. sample_adjust: logit bias is added; then the penalties: a logit of a token of the prompt or
 *      the answer is divided by `repetition` where it is positive, else multiplied; one of the
 *      answer loses count * frequency + presence; then banned tokens get -infinity
 *   2. sample_token: temperature; min_p; top_k; top_p of what is left, its probabilities summing to
 *      one again; one uniform number
 * Both are pure functions of their arguments: neither batching nor resuming changes a token. */
#ifndef STRATA_RUNTIME_SAMPLE_H
#define STRATA_RUNTIME_SAMPLE_H
#include "runtime/status.h"
#include <stdbool.h>
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
/* RT_user where a member is out of its range or not finite. */
enum rt_status sampler_check(const struct sampler *s, struct rt_error *err);

struct sample_slot {
    float logit;
    int32_t id;
};
/* The token chosen from logits [vocab] for the text position `position`. Greedy takes the largest
 * logit, ties to the lower index. Otherwise softmax(logits / temperature), of which are kept: the
 * tokens at least min_p times as likely as the likeliest, of those the top_k likeliest, of those
 * the smallest set of likeliest ones whose probabilities reach top_p (ties to the lower index); a
 * uniform number falls on one of them as they lie in the order of their ids.
 * `scratch` is [vocab], used unless greedy. RT_machine when a logit is not a number or none is
 * finite: the model's numbers are broken. A logit of -infinity is a token that is never taken.
 * Penalties of s are not applied here. */
enum rt_status sample_token(const struct sampler *s, const float *logits, size_t vocab,
                            uint64_t position, struct sample_slot *scratch, int32_t *out,
                            struct rt_error *err);

/* How often each token came so far: all different tokens in a list, and a hash table into it. */
struct sample_count {
    int32_t id;
    uint32_t answer; /* times in the answer; 0: in the prompt only */
};
struct sample_seen {
    struct sample_count *list; /* [n] */
    uint32_t *table;           /* [mask + 1]: index into list + 1; 0: empty */
    size_t n, most, mask;
};
/* Bytes that a table for up to `most` different tokens needs. */
size_t sample_seen_size(size_t most);
/* `room`: that many zeroed bytes, aligned to 8, the caller's; they outlive s. */
void sample_seen_init(struct sample_seen *s, size_t most, void *room);
/* One more token, of the answer or of the prompt. */
void sample_seen_add(struct sample_seen *s, int32_t id, bool answer);

struct sample_bias {
    int32_t id;
    float add;
};
/* What changes logits before a token is chosen; zero-initialised it is nothing. */
struct sample_rules {
    const struct sample_seen *seen; /* for penalties; NULL: none */
    const struct sample_bias *bias;
    size_t num_bias;
    const int32_t *banned; /* ids outside the vocabulary are passed over */
    size_t num_banned;
};
/* Applies bias, penalties of s and bans to logits [vocab], in time that does not depend on vocab.
 */
void sample_adjust(const struct sampler *s, const struct sample_rules *r, float *logits,
                   size_t vocab);
/* Whether sample_adjust would do anything. */
bool sample_adjusts(const struct sampler *s, const struct sample_rules *r);

/* Natural logarithm of softmax(logits)[id], and of the `top` likeliest tokens, falling, ties to the
 * lower index, into best[top] (as .logit; fewer than `top` where the vocabulary is smaller: the
 * number is returned). For logits that sample_token has accepted. */
int sample_logprobs(const float *logits, size_t vocab, int32_t id, float *logprob,
                    struct sample_slot *best, int top);
#endif
