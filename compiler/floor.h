/* The least time that work takes on a GPU, from what it must move and compute: every operand read
 * once, every result written once, at the speeds of that GPU; and a launch takes what a launch
 * takes. Nothing runs faster, but for values that a cache still has. */
#ifndef STRATA_COMPILER_FLOOR_H
#define STRATA_COMPILER_FLOOR_H
#include "compiler/program.h"

struct floor_rates {
    double bytes;      /* of memory, a second, read and written */
    double bf16, fp32; /* operations a second, in products of bf16 and in anything else */
    double launch;     /* seconds between the starts of two kernels in a recording */
};
/* As seen on an H200: a copy on the device, products of 8192 x 8192 matrices. */
#define FLOOR_H200                  \
    {                               \
        4.3e12, 790e12, 55e12, 2e-6 \
    }
#define FLOOR_HELP                                                                            \
    "  --ceilings A,B,C   what floors of a GPU are made of: TB/s of memory, TFLOP/s of bf16 " \
    "products, "                                                                              \
    "and\n"                                                                                   \
    "                     microseconds a launch (4.3,790,2: an H200)\n"
/* Reads "4.3,790,2"; NULL leaves *r as it is. False where it is not three positive numbers. */
bool floor_read(const char *text, struct floor_rates *r);

struct floor {
    double bytes, flops, seconds;
    bool bf16; /* its operations are products of bf16 */
};
/* What node n must do, without its launches. */
struct floor floor_of(const struct ir_graph *g, ir_id n, struct ir_bind b,
                      const struct floor_rates *r);
#endif
