/* Fuzz target: a safetensors file from memory; every tensor that is accepted is read whole. */
#include "runtime/tensorfile.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tensorfile *f;
    struct rt_error err;
    if (tensorfile_memory(data, size, "fuzz", &f, &err) != RT_ok) return 0;
    float out[64];
    char text[64];
    for (size_t i = 0; i < tensorfile_count(f); i++) {
        const struct tf_tensor *t = tensorfile_at(f, i);
        if (tensorfile_find(f, t->name) != t) abort();
        tf_shape_text(t, text, sizeof text);
        for (size_t at = 0; at < t->count; at += 64) {
            size_t n = t->count - at < 64 ? t->count - at : 64;
            if (tf_read_f32(t, at, n, out, &err) != RT_ok) break;
        }
    }
    tensorfile_metadata(f, "format");
    tensorfile_close(f);
    return 0;
}
