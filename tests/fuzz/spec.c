/* Fuzz target: any bytes as a spec; a first line "# --set: KEY=VALUE" is an option too. The spec is
 * refused with a message, or its canonical text is read as the same model. The name's folder does
 * not exist, so that `extends` finds no file. */
#include "compiler/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena *a = arena_open("fuzz");
    struct diag *d = diag_open(a);
    struct sb out = {0};
    struct str text = {(const char *)data, size};
    const char *set = NULL;
    if (str_starts(text, "# --set: ")) {
        const char *end = memchr(data, '\n', size);
        set = str_dup(a, (struct str){text.p + 9, (end ? (size_t)(end - text.p) : size) - 9});
    }
    struct spec_options opt = {&set, set != NULL};
    struct model *m = spec_parse(a, d, "/nowhere/at/all/fuzz.yaml", text, &opt);
    diag_print(d, &out);
    CHECK(m || (diag_errors(d) && out.n));
    if (m) {
        struct model *again =
            spec_parse(a, d, "/nowhere/at/all/again.yaml", str_of(m->canonical), NULL);
        CHECK(again && strcmp(again->canonical, m->canonical) == 0);
        CHECK(again->num_layers == m->num_layers && again->num_boundaries == m->num_boundaries);
    }
    sb_free(&out);
    arena_close(a);
    return 0;
}
