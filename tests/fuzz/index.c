/* Fuzz target: any bytes as the model.safetensors.index.json of a folder with two small shards. It
 * is refused with a message, or it lists exactly their tensors. */
#include "runtime/tensorfile.h"
#include "../scratch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void start(void)
{
    static const float x[2] = {1, 2};
    struct rt_error err;
    if (!scratch_open()) abort();
    atexit(scratch_close);
    for (int i = 0; i < 2; i++) {
        struct tf_tensor t = {
            .name = i ? "b" : "a", .dtype = TF_F32, .rank = 1, .shape = {2}, .data = x};
        const struct tf_content c = {&t, 1, NULL, 0, NULL, NULL};
        if (tensorfile_write(in_dir(i ? "2.safetensors" : "1.safetensors"), &c, &err) != RT_ok)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tensorfile *f;
    struct rt_error err = {0};
    if (!*scratch_dir) start();
    FILE *to = fopen(in_dir("model.safetensors.index.json"), "wb");
    if (!to || fwrite(data, 1, size, to) != size || fclose(to)) abort();
    if (tensorfile_open(scratch_dir, &f, &err) != RT_ok) {
        CHECK(err.text[0]);
        return 0;
    }
    for (size_t i = 0; i < tensorfile_count(f); i++) {
        const struct tf_tensor *t = tensorfile_at(f, i);
        CHECK(tensorfile_find(f, t->name) == t && t->count == 2);
    }
    tensorfile_close(f);
    return 0;
}
