/* A model for tests of what runs models: its logits are a hash of all tokens that pages and state
 * really hold, so that a wrong page, a stale state or a write to a shared page shows as other
 * tokens; most such mistakes abort at once, since every position knows the one before it. */
#ifndef STRATA_TESTS_FAKELM_H
#define STRATA_TESTS_FAKELM_H
#include "runtime/lm.h"

struct fakelm_options {
    int64_t vocab, context, pages, states, batch; /* states > 0: it is recurrent */
    int sites;                                    /* of depth attention; site i has i + 2 sources */
    int32_t poison;       /* a text with this id has logits that are not numbers; 0: none */
    int64_t fail_at;      /* this call of `run` fails (counted from 1); 0: none */
    int64_t fail_copy_at; /* this copying of pages or states fails; 0: none */
};
struct fakelm {
    struct lm lm;
    struct fakelm_options o;
    uint64_t calls, decoded, prefilled, copies; /* runs, tokens of runs, saves, loads and copies */
    int64_t most_between;                       /* prompt tokens between two decode calls */
    int64_t between;
    struct fake_slot *slot; /* [pages][LM_PAGE] */
    struct fake_state *state;
    float *logits, *depth;
    struct lm_site site[4];
    int64_t rows;
};
struct fakelm *fakelm_open(const struct fakelm_options *o);
void fakelm_close(struct fakelm *f);
#endif
