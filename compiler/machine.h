/* What this machine can do at most, measured in this process by small kernels
 * (codegen/text/peak.c). */
#ifndef STRATA_COMPILER_MACHINE_H
#define STRATA_COMPILER_MACHINE_H
#include <stdbool.h>
#include "runtime/status.h"

struct machine {
    unsigned threads;
    double flops; /* float32 multiply-adds a second, two operations each; best so far */
    double alone; /* the same of one thread, times threads */
    double bf16;  /* the same of products of bf16 numbers with float32 sums */
    double bytes; /* bytes read from memory a second; best so far */
    struct pool *pool;
    struct jit *jit;
    float *memory;               /* what is read */
    void *fma, *bf16_fma, *read; /* kernels */
};

/* Threads and kernels for `threads` threads (as pool_open); measures nothing. */
enum rt_status machine_open(unsigned threads, struct machine *m, struct rt_error *err);
void machine_close(struct machine *m);
/* Measures for about half a second in many short pieces, so that a busy neighbour spoils only some
 * of them, and keeps the best. Call it several times around what is compared with it. */
void machine_measure(struct machine *m);
/* Whether the threads together stay far below what they would reach one by one: other programs hold
 * cores (or threads share one), and shares of the peak come out too high. */
bool machine_busy(const struct machine *m);
#endif
