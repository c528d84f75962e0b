/* Emitted CUDA kernels of single operations on the CPU machine of cudacpu.h, against the float64
 * evaluator, over the table of op_cases.h: every access checked, once in order and once shuffled,
 * which must give the same bits; nothing may be written outside of results and workspace. With
 * STRATA_TEST_NVRTC=1 (make check-slow) and NVRTC here, the same text also becomes a cubin, without
 * a spilled byte. With STRATA_TEST_DEVICE all of it runs on a GPU instead (cuda_machine.h). */
#ifndef STRATA_TESTS_CUDA_OPS_H
#define STRATA_TESTS_CUDA_OPS_H
#include "codegen/kernel.h"
#include "op_cases.h"

struct cuda_op {
    enum ir_op op;
    double tol; /* of the largest wanted element, and absolute */
    /* Which operands and results also come in two bytes (attribute narrow), a 0 or 1 each, the last
     * one for all that follow; NULL: none of it. A tolerance for that form, besides the rounding of
     * narrow results. */
    const char *src, *res;
    double tol_narrow;
    int every; /* only each so-manieth variant is run; 0: all. Kernels take 20 ms to compile. */
    bool no_library; /* products by kernels of ours */
};
/* Runs all cases; fails the cmocka test that calls it with what is wrong. Prints registers, shared
 * memory and seconds. */
void cuda_ops_check(const struct cuda_op *ops, size_t n);

/* The same for further nodes: sizes and views that the table lacks. `fill` as for
 * op_case_inputs. */
struct cuda_ops;
struct cuda_ops *cuda_ops_open(void);
/* Whether what is added from now on computes its products by kernels of ours. */
void cuda_ops_no_library(struct cuda_ops *c, bool on);
/* Node n of g, a K graph in an arena that outlives the check. */
void cuda_ops_add(struct cuda_ops *c, const char *name, int64_t variant, double tol,
                  struct ir_graph *g, ir_id n, struct ir_bind b);
/* As a copy in which operands and result of n are narrow as the words say. */
void cuda_ops_add_narrow(struct cuda_ops *c, const char *name, int64_t variant, double tol,
                         const char *src, const char *res, struct ir_graph *g, ir_id n,
                         struct ir_bind b);
/* The first result of what was added last begins with the bits of the one added before: its first
 * `bytes` bytes. */
void cuda_ops_same(struct cuda_ops *c, size_t bytes);
void cuda_ops_run(struct cuda_ops *c);
/* Without NVRTC. */
void cuda_ops_run_cpu(struct cuda_ops *c);
#endif
