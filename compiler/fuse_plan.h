/* Which elementwise operations and row reductions share a kernel, and which of their values are
 * written to memory: the decisions of fuse-rows, apart from the building of its graph. */
#ifndef STRATA_COMPILER_FUSE_PLAN_H
#define STRATA_COMPILER_FUSE_PLAN_H
#include "graph.h"

/* What a kernel loops over: rows of `cols` columns. */
struct fuse_domain {
    struct ir_dim rows;
    int64_t cols;
};

/* Why a value of a kernel is written to memory (FS_no: it is not). */
enum fuse_store {
    FS_no,
    FS_output,  /* an output of the program */
    FS_reader,  /* read by an operation that is no row operation */
    FS_row,     /* a number per row or a vector that another kernel needs: small */
    FS_colsum,  /* complete only when all rows are done */
    FS_costly,  /* other kernels need it, and computing it again would read more */
    FS_unfused, /* every operation is a kernel of its own */
};

struct fuse_plan {
    const struct ir_graph *g;
    struct arena *arena;
    uint32_t *level;            /* of each node: how many barriers are before it */
    struct fuse_domain *domain; /* of fusable nodes */
    ir_id *parent;              /* union-find of fusable nodes; the root names the group */
    enum fuse_store *store;
    int64_t *ld;                  /* row stride a stored value is written with; 0 = its columns */
    uint32_t *first_user, *users; /* readers of node n: users[first_user[n] .. first_user[n + 1]) */
    bool *is_output;
    struct map reads; /* (group, operand) pairs: what a group reads of its own accord */
};

/* Decides for all of g. `unfused`: one group per operation. Everything is in the arena. */
struct fuse_plan *fuse_plan(struct arena *a, const struct ir_graph *g, bool unfused);
/* The group of a fusable node: equal for nodes of one kernel. */
ir_id fuse_group(const struct fuse_plan *p, ir_id n);
/* Is n an elementwise operation or a row reduction (scalar constants included)? */
bool fuse_is_row_op(const struct ir_graph *g, ir_id n);
/* Is n a value of all rows and columns of a domain (not a per-row number, vector or scalar)? */
bool fuse_is_full(const struct ir_graph *g, ir_id n, struct fuse_domain d);
#endif
