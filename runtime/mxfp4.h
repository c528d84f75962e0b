/* MXFP4 (OCP Microscaling Formats 1.0): a row of numbers as 4-bit E2M1 codes, two in a byte, the
 * first in the low nibble, with one E8M0 scale for 32 of them. */
#ifndef STRATA_RUNTIME_MXFP4_H
#define STRATA_RUNTIME_MXFP4_H
#include <stddef.h>

enum { MXFP4_BLOCK = 32 };

/* packed [rows, cols / 2] and scale [rows, cols / 32] to out [rows, cols]; cols is a multiple
 * of 32. A scale s is 2^(s - 127), 255 is NaN; a product past the range of float32 is infinite. */
void mxfp4_read(const unsigned char *packed, const unsigned char *scale, size_t rows, size_t cols,
                float *out);
#endif
