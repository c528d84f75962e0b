/* A language model that is run incrementally, whoever compiled it: plans for a few shapes (B
 * sequences of T new tokens each), weights, and two pools that all sequences share:
 *   pages   keys and values (or latents) of LM_PAGE consecutive positions, of all layers. A
 * sequence has a table of pages, one for every LM_PAGE positions; sequences may share full pages.
 *   states  recurrent state of a sequence (KDA's S and the inputs of its convolutions), of all
 *           layers: what is left of all tokens so far. Absent where no layer is recurrent.
 * Who has which page and state is the caller's to keep (runtime/engine.h). What a page or state
 * held before does not matter to a sequence that begins with past 0. One call at a time. */
#ifndef STRATA_RUNTIME_LM_H
#define STRATA_RUNTIME_LM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "runtime/status.h"

enum { LM_PAGE = 64 };   /* positions of a page: a key tile of the kernels */
enum { LM_STEP = 16 };   /* prompts are cut at multiples of this, so that no cut changes a bit */
enum { LM_CHUNK = 256 }; /* tokens of a prefill call at most; a multiple of LM_PAGE */

/* A site of depth attention, for programs that give its weights. */
struct lm_site {
    const char *name; /* as in spec-contract section 3, without .weight */
    int64_t sources;  /* the embedding, finished blocks, and last where `partial`: */
    bool partial;     /* the running sum of the site's own block */
};
struct lm_about {
    int64_t vocab, context; /* context: most tokens of a sequence, a multiple of LM_PAGE */
    int64_t pages, states;  /* of the pools; states: 0 where there are none */
    int64_t batch;          /* sequences of one decode call (T = 1) at most */
    uint64_t page_bytes, state_bytes; /* of one page or state, all layers together */
    /* Where it is false, a token leaves the same bits in its page whether it was read in a prompt
     * or decoded alone. True for models with states. */
    bool recurrent;
    const struct lm_site *site; /* NULL without depth weights */
    size_t num_sites;
};
/* B sequences of T new tokens each. Calls are (any B up to `batch`, T = 1), or B = 1 and T as
 * lm_cut says. */
struct lm_call {
    int64_t B, T;
    const int32_t *tokens; /* [B*T], a sequence after the other */
    const int32_t *past;   /* [B]: tokens of the sequence that are in its pages and state */
    const int32_t *states; /* [B], all different; not read where there are no states */
    const int32_t *pages;  /* [B][context / LM_PAGE]: page of positions LM_PAGE i .. + LM_PAGE - 1.
                            * Entries behind past + T - 1 are not read. */
};

struct lm;
struct lm_ops {
    /* Runs it; lm_logits then has the last token's logits of every sequence. Allocates nothing. */
    enum rt_status (*run)(struct lm *m, const struct lm_call *c, struct rt_error *err);
    /* f32[B,V] of the last run, valid until the next. */
    const float *(*logits)(const struct lm *m);
    /* Weights of site i in the last run: f32[B*T, sources]. */
    const float *(*depth)(const struct lm *m, size_t i);
    /* State `to` becomes a copy of state `from`. */
    enum rt_status (*copy_state)(struct lm *m, int32_t from, int32_t to, struct rt_error *err);
    /* A page or state to memory of the caller (page_bytes, state_bytes), and back. */
    enum rt_status (*save_page)(struct lm *m, int32_t page, void *to, struct rt_error *err);
    enum rt_status (*load_page)(struct lm *m, int32_t page, const void *from, struct rt_error *err);
    enum rt_status (*save_state)(struct lm *m, int32_t state, void *to, struct rt_error *err);
    enum rt_status (*load_state)(struct lm *m, int32_t state, const void *from,
                                 struct rt_error *err);
    void (*close)(struct lm *m);
};
/* Whoever makes one puts this first. */
struct lm {
    const struct lm_ops *ops;
    struct lm_about about;
};

/* Tokens of the next call of a prompt of which `left` (> 0) are to be read, at most `most` at once
 * (at least LM_STEP): LM_CHUNK, else as many whole LM_STEPs as there are, else the rest. Plans for
 * all these T, and for T = 1 and every B, are there when a model is open. */
static inline int64_t lm_cut(int64_t left, int64_t most)
{
    int64_t t = left < most ? left : most;
    if (t > LM_CHUNK) t = LM_CHUNK;
    return left < LM_STEP ? left : t / LM_STEP * LM_STEP;
}
#endif
