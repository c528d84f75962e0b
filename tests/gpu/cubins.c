/* Machine code to take to a machine with a GPU (make gpu-bundle): compiles texts that
 * STRATA_FAKE_TEXTS collected, files ARCH-HASH.cu, where this was not done before, into a folder
 * for STRATA_CUBINS.
 *
 *   cubins OUT FILE... */
#include "base/io.h"
#include "runtime/nvrtc.h"
#include <stdio.h>
#include <stdlib.h>

static void must(enum rt_status st, const struct rt_error *err)
{
    if (!st) return;
    fprintf(stderr, "cubins: %s\n", err->text);
    exit((int)st);
}

static void compile(struct arena *a, const char *arch, const char *const *text, size_t n,
                    const char *out)
{
    struct nvrtc_image *image = NEW(a, struct nvrtc_image, n);
    struct rt_error err;
    double seconds = 0, bytes = 0, longest = 0;
    must(nvrtc_compile_all(a, text, n, arch, true, 0, image, &err), &err);
    for (size_t i = 0; i < n; i++) {
        must(nvrtc_carry(a, out, text[i], arch, &image[i], &err), &err);
        seconds += image[i].seconds;
        bytes += (double)image[i].code.n;
        if (image[i].seconds > longest) longest = image[i].seconds;
        if (getenv("VERBOSE"))
            printf("%7.2f s %9zu bytes %9zu of code, %zu kernels\n", image[i].seconds,
                   strlen(text[i]), image[i].code.n, image[i].kernels);
    }
    printf("%s: %zu texts, %.1f MB of code, %.1f s of NVRTC now, the longest %.1f s\n", arch, n,
           1e-6 * bytes, seconds, longest);
}

int main(int argc, char **argv)
{
    struct arena *a = arena_open("cubins");
    const char *arch = NULL;
    if (argc < 3) {
        fprintf(stderr, "usage: cubins OUT FILE...\n");
        return EXIT_USAGE;
    }
    size_t n = (size_t)argc - 2;
    const char **text = NEW(a, const char *, n);
    for (size_t i = 0; i < n; i++) {
        struct str s;
        const char *path = argv[i + 2], *slash = strrchr(path, '/');
        const char *name = slash ? slash + 1 : path;
        const char *its = str_dup(a, (struct str){name, strcspn(name, "-")});
        if ((arch && strcmp(arch, its)) || io_read(a, path, SIZE_MAX / 2, &s)) {
            fprintf(stderr, "cubins: %s cannot be read, or is of another architecture\n", path);
            return EXIT_MACHINE;
        }
        arch = its;
        text[i] = str_dup(a, s);
    }
    compile(a, arch, text, n, argv[1]);
    arena_close(a);
    return 0;
}
