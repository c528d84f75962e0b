/* Whether training and serving a model fit a GPU, and what would make it fit: `strata check
 * --device`. */
#ifndef STRATA_COMPILER_FIT_H
#define STRATA_COMPILER_FIT_H
#include "compiler/survey.h"

struct fit {
    const char *name; /* "cuda:0 (NVIDIA H200)", "a GPU of 80 GB" */
    const char *arch; /* what is planned for */
    double bytes;     /* that a program can have */
};
/* What "cuda", "cuda:N" (what is free there now) or an amount such as 80GB or 24GiB (less what the
 * driver takes) means. Exits on a mistake, or where there is no such device. */
struct fit fit_open(struct cli *c, const char *device);
/* One line, in the arena: that it fits, or by how much it does not and which change of the train
 * section makes it fit, found by planning. `fits` may be NULL. */
const char *fit_verdict(struct cli *c, const struct model *m, const struct fit *f,
                        const struct survey *v, bool *fits);
/* The same of a server (the serve section), whose weights and caches are as large as they are
 * stored. */
const char *fit_serving(struct cli *c, const struct fit *f, const struct survey *v, bool *fits);
#endif
