/* What `strata compile` does for a GPU: CUDA C, PTX or cubins of a plan, and what ptxas says. */
#ifndef STRATA_COMPILER_COMPILE_CUDA_H
#define STRATA_COMPILER_COMPILE_CUDA_H
#include "compiler/cli.h"
#include "compiler/lower.h"

/* "cuda:sm_90a" to "sm_90a"; exits where no such architecture is known, or where `emit` (ptx,
 * cubin) needs NVRTC and it is not there. */
const char *compile_cuda_arch(struct cli *c, const char *target, const char *emit);
/* Whether `emit` needs NVRTC. */
bool compile_cuda_form(const char *emit);
/* Compiles all kernels of a plan by NVRTC and writes them to `out`: ptx, one file; cubin, one file,
 * or several where several units pay, numbered before the name's last dot. Prints how long that
 * took, and of a cubin what each kind of kernel takes (all: each kernel); warns of spills. */
void compile_cuda(struct cli *c, const struct lowered *l, const char *arch, const char *emit,
                  const char *out, unsigned threads, bool all);
#endif
