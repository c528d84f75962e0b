/* Fuzz target: any bytes as a bundle, as they are and with a trailer whose magic, size and hash are
 * right. Sections of an accepted one lie inside it. */
#include "base/map.h"
#include "runtime/bundle.h"
#include <stdlib.h>

static void parse(const char *p, size_t n)
{
    static struct bundle b;
    struct rt_error err;
    if (bundle_parse(p, n, "fuzz", &b, &err) != RT_ok) return;
    for (size_t i = 0; i < b.n; i++) {
        const struct bundle_section *s = &b.section[i];
        CHECK(bundle_find(&b, s->name) == s && s->p >= p && s->bytes <= (size_t)(p + n - s->p));
        (void)!bundle_whole(s);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    parse((const char *)data, size);
    if (size < BUNDLE_TRAILER) return 0;
    char *p = malloc(size), *trailer = p + size - BUNDLE_TRAILER;
    CHECK(p);
    memcpy(p, data, size);
    /* rows as the count says, just before the trailer */
    uint64_t count = (unsigned char)trailer[24], bytes = count * BUNDLE_ROW, whole = size;
    if (bytes <= size - BUNDLE_TRAILER) {
        uint64_t table = size - BUNDLE_TRAILER - bytes, hash = hash_bytes(p + table, bytes, 0);
        memcpy(trailer, "strata bundle 1\n", 16);
        memcpy(trailer + 16, &table, 8);
        memcpy(trailer + 24, &count, 8);
        memcpy(trailer + 32, &hash, 8);
        memcpy(trailer + 40, &whole, 8);
        parse(p, size);
    }
    free(p);
    return 0;
}
