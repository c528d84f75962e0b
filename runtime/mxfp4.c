#include "runtime/mxfp4.h"
#include "base/arena.h"
#include <math.h>

static const float e2m1[16] = {0,     0.5f,  1,  1.5f,  2,  3,  4,  6,
                               -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

void mxfp4_read(const unsigned char *packed, const unsigned char *scale, size_t rows, size_t cols,
                float *out)
{
    CHECK(cols % MXFP4_BLOCK == 0);
    for (size_t b = 0; b < rows * cols / MXFP4_BLOCK; b++) {
        /* 2^-127 is subnormal, and so are its products; all are exact. */
        float s = scale[b] == 255 ? NAN : ldexpf(1, scale[b] - 127);
        for (size_t i = 0; i < MXFP4_BLOCK / 2; i++) {
            *out++ = e2m1[packed[i] & 15] * s;
            *out++ = e2m1[packed[i] >> 4] * s;
        }
        packed += MXFP4_BLOCK / 2;
    }
}
