/* Fuzz target: any bytes as a bundle. Sections of an accepted one lie inside it. */
#include "runtime/bundle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct bundle b;
    struct rt_error err;
    if (bundle_parse((const char *)data, size, "fuzz", &b, &err) != RT_ok) return 0;
    for (size_t i = 0; i < b.n; i++) {
        CHECK(bundle_find(&b, b.section[i].name) == &b.section[i]);
        (void)!bundle_whole(&b.section[i]);
    }
    return 0;
}
