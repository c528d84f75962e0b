/* Where the kernels of tests/cuda_ops.h run: on the CPU machine of cudacpu.h or, with
 * STRATA_TEST_DEVICE=cuda (or cuda:N), on a GPU through runtime/gpu.h. Addresses are those of the
 * machine; memory holds NaNs at first and has guards around it. */
#ifndef STRATA_TESTS_CUDA_MACHINE_H
#define STRATA_TESTS_CUDA_MACHINE_H
#include "codegen/kernel.h"
#include "cudacpu.h"

struct cuda_machine;

/* Loads the kernels of a text (without prelude); exits where that fails. */
struct cuda_machine *cuda_machine_open(const char *text);
void cuda_machine_close(struct cuda_machine *m);
/* Whether it is a GPU. */
bool cuda_machine_is_device(const struct cuda_machine *m);
char *cuda_machine_alloc(struct cuda_machine *m, size_t bytes);
/* NULL, or that something was written beside it. */
const char *cuda_machine_free(struct cuda_machine *m, char *p);
void cuda_machine_put(struct cuda_machine *m, char *to, const void *from, size_t bytes);
void cuda_machine_get(struct cuda_machine *m, void *to, const char *from, size_t bytes);
/* Element i of an array of the host, float32 or bf16 (nearest, ties to even). */
double cuda_element(const void *p, bool bf16, int64_t i);
void cuda_put_element(void *p, bool bf16, int64_t i, double x);
/* Runs a step with its references at p; on the CPU in that order of threads. NULL, or what was
 * wrong. */
const char *cuda_machine_step(struct cuda_machine *m, const struct cg_step *s, char *const *p,
                              enum cudacpu_order order, unsigned seed);
#endif
