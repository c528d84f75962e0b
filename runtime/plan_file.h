/* Plans as bytes: the plans of one program for several (B, T), whose kernels are one table of
 * symbols. Compact (numbers take as many bytes as they need), and checked when they are read: every
 * index is in range and every place inside its arena. */
#ifndef STRATA_RUNTIME_PLAN_FILE_H
#define STRATA_RUNTIME_PLAN_FILE_H
#include "abi.h"
#include "base/str.h"
#include "runtime/status.h"

struct plan_item {
    int64_t B, T;
    struct sa_plan plan;
};
struct plan_set {
    struct plan_item *item;
    size_t n;
    struct sa_code *code; /* of all plans: their `kernels`. Addresses are the caller's to set */
    uint32_t num_code;
};

/* Appends the plans. An inconsistent plan is a bug. */
void plan_file_write(const struct plan_item *item, size_t n, struct sb *out);
/* Reads what plan_file_write wrote; everything is in the arena, nothing in `bytes` is kept. RT_user
 * for anything else. */
enum rt_status plan_file_read(struct arena *a, struct str bytes, struct plan_set *out,
                              struct rt_error *err);
/* The plan for B sequences of T tokens, or NULL. */
const struct sa_plan *plan_set_find(const struct plan_set *s, int64_t B, int64_t T);
#endif
