/* Runs a fuzz target over files and folders of files, without a fuzzer: replay PATH... */
#include "base/io.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned replay(struct arena *a, const char *path)
{
    unsigned n = 0;
    DIR *d = opendir(path);
    if (d) {
        for (struct dirent *e; (e = readdir(d));)
            if (e->d_name[0] != '.') n += replay(a, str_fmt(a, "%s/%s", path, e->d_name));
        closedir(d);
        return n;
    }
    struct str s;
    if (io_read(a, path, 1 << 28, &s)) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    /* an exact heap copy, so that a sanitizer sees a read past the end */
    uint8_t *copy = malloc(s.n ? s.n : 1);
    if (!copy) abort();
    if (s.n) memcpy(copy, s.p, s.n);
    LLVMFuzzerTestOneInput(copy, s.n);
    free(copy);
    return 1;
}

int main(int argc, char **argv)
{
    struct arena *a = arena_open("replay");
    unsigned n = 0;
    for (int i = 1; i < argc; i++) n += replay(a, argv[i]);
    printf("%u inputs replayed\n", n);
    arena_close(a);
    return n == 0;
}
