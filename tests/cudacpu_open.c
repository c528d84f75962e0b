/* Texts of kernels to loaded objects (cudacpu.h). */
#include "cudacpu_build.h"
#include "base/io.h"
#include "base/str.h"
#include "codegen/text.h"
#include <stdio.h>
#include <stdlib.h>

struct cudacpu *cudacpu_open(const char *compiler, const char *text, bool checked)
{
    struct arena *a = arena_open("cudacpu");
    const char *tmp = getenv("TMPDIR"), *why;
    char *dir = str_fmt(a, "%s/strata-cuda-XXXXXX", tmp && *tmp ? tmp : P_tmpdir);
    if (!mkdtemp(dir)) {
        perror(dir);
        exit(EXIT_MACHINE);
    }
    const struct cudacpu_source s = {
        .compiler = compiler,
        .header = "tests/cudacpu.h",
        .text = str_fmt(a, "#line 1 \"prelude\"\n%s\n#line 1 \"kernels\"\n%s\n",
                        cg_text_cuda_prelude, text),
        .object = str_fmt(a, "%s/k.so", dir),
        .checked = checked,
    };
    why = cudacpu_build(a, &s);
    struct cudacpu *c = why ? NULL : cudacpu_load(s.object, checked, &why);
    if (!c) {
        fprintf(stderr, "%s\n", why);
        exit(EXIT_MACHINE);
    }
    c->dir = strdup(dir);
    arena_close(a);
    return c;
}

void cudacpu_close(struct cudacpu *c)
{
    if (!c) return;
    if (c->dir) io_remove_tree(c->dir);
    free(c->dir);
    cudacpu_unload(c);
}
