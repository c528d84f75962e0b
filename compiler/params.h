/* Parameters and checkpoint tensors: two things with one map between them (design 2.13). The IR
 * holds what kernels like (products that share an input merged, experts stacked); this table cuts
 * them into the named tensors of spec-contract section 3. */
#ifndef STRATA_COMPILER_PARAMS_H
#define STRATA_COMPILER_PARAMS_H
#include "compiler/model.h"
#include "graph.h"
#include "runtime/philox.h"

enum param_kind {
    PARAM_embedding, /* embed_tokens, lm_head: weight decay, AdamW */
    PARAM_matrix,    /* every other 2-D weight but the depth queries: weight decay, Muon */
    PARAM_vector,    /* the rest */
    PARAM_state      /* router bias: no gradient, changed by balancing */
};

/* One checkpoint tensor: a contiguous piece of its parameter. */
struct param_part {
    const char *tensor; /* checkpoint name */
    int64_t dim[4];     /* checkpoint shape */
    int rank;           /* 1 to 4 */
    int64_t offset;     /* elements from the parameter's start */
    bool per_head; /* A_log [H]: also read as [1, 1, H, 1], either longer than H too, of which the
                    * first H count (Kimi K3 pads to 128) */
};
struct param {
    const char *name; /* IR name; the tensor's own name where there is one part */
    enum param_kind kind;
    struct init_rule init;
    int64_t dim[3]; /* IR shape */
    int rank;
    int64_t count; /* elements */
    struct param_part *part;
    size_t num_parts;
    int64_t active_num, active_den; /* share of the elements a token uses (experts: k of E) */
};
struct params {
    struct param *p;
    size_t n;
    struct map by_name; /* index + 1 */
};

/* All parameters of a model, in a fixed order (embedding, layers, readout, norm, head). */
struct params *params_of(struct arena *a, const struct model *m);
/* Elements of a checkpoint tensor. */
int64_t part_count(const struct param_part *q);
/* The parameter of an IR name, NULL where there is none. */
const struct param *params_find(const struct params *ps, const char *name);
/* Trainable scalars, plus router biases in total; active: what one token uses, with the head,
 * without the embedding table (counted when tied, since the head is that table) and without router
 * biases. */
int64_t params_total(const struct params *ps);
int64_t params_active(const struct params *ps, const struct model *m);
#endif
