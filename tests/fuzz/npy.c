/* Fuzz target: an .npy file from memory; every element of an accepted array is read. */
#include "runtime/npy.h"

static volatile double sink; /* keeps the reads */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct npy a;
    struct rt_error err;
    if (npy_memory(data, size, "fuzz", &a, &err) != RT_ok) return 0;
    for (size_t i = 0; i < a.count; i++)
        sink = a.type == NPY_f32 ? (double)npy_float(&a, i) : (double)npy_int(&a, i);
    npy_close(&a);
    return 0;
}
