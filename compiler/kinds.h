/* The steps of plans by kind of kernel: what each kind must do and, where it was measured, how long
 * it takes. Products are one kind for each of their shapes, and what all layers do alike is one. */
#ifndef STRATA_COMPILER_KINDS_H
#define STRATA_COMPILER_KINDS_H
#include "compiler/floor.h"
#include <jansson.h>

#define KIND_GROUPS(X) \
    X(products) X(attention) X(pack) X(rows) X(depth) X(experts) X(optimiser) X(other)
enum kind_group {
#define GROUP(name) KIND_##name,
    KIND_GROUPS(GROUP)
#undef GROUP
        KINDS
};
const char *kind_group_name(enum kind_group g);

struct kind {
    const char *name;
    enum kind_group group;
    double best[2], mean[2]; /* seconds of a whole step, per subject; 0 where none was measured */
    double work;             /* bench_flops of the first subject that has it, in a whole step */
    struct floor floor;      /* of the same, in a whole step */
    size_t who;              /* that subject */
    unsigned calls[2];       /* of its kernels, in a whole step */
};
struct kinds {
    struct arena *a;
    struct floor_rates rates;
    VEC(struct kind) row;
    struct map index; /* name: row + 1 */
    size_t who;       /* the subject whose plans are added */
};

/* Empty; rates NULL: FLOOR_H200. */
struct kinds *kinds_open(struct arena *a, const struct floor_rates *rates);
/* A plan that a whole step runs `times` times, with what was measured of it (NULL: nothing was);
 * `update`: it is the optimiser's. */
void kinds_add(struct kinds *k, const struct plan *p, const struct exec_tally *tally, double times,
               bool update);
/* The longest (first: measured, else floor) comes first. Names and indices no longer belong
 * together. */
void kinds_sort(struct kinds *k);
/* A table of floors: a line a group, then a line a kind. */
void kinds_print(const struct kinds *k, struct sb *out);
/* An array of objects: what the first subject has of every kind. */
json_t *kinds_json(const struct kinds *k);
#endif
