/* Fuzz target: any bytes as plans. Accepted ones are written, and read again, alike. */
#include "runtime/plan_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena *a = arena_open("fuzz");
    struct plan_set set, again;
    struct rt_error err;
    struct sb out = {0}, twice = {0};
    if (plan_file_read(a, (struct str){(const char *)data, size}, &set, &err) == RT_ok) {
        plan_file_write(set.item, set.n, &out);
        CHECK(plan_file_read(a, (struct str){out.p, out.n}, &again, &err) == RT_ok);
        CHECK(again.n == set.n);
        plan_file_write(again.item, again.n, &twice);
        CHECK(out.n == twice.n && !memcmp(out.p, twice.p, out.n));
    }
    sb_free(&out);
    sb_free(&twice);
    arena_close(a);
    return 0;
}
