/* Fuzz target: any bytes as a config.json. It is refused with a message, or the spec made of it is
 * refused with a message, or that spec's model can be written as a config.json that reads as the
 * same model. */
#include "compiler/hf_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct model *spec_of(struct arena *a, struct diag *d, struct hf_config *c)
{
    c->model.tokenizer.type = TOK_none;
    return spec_parse(a, d, "/nowhere/at/all/fuzz.yaml", hf_spec_text(a, c, "fuzz"), NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena *a = arena_open("fuzz");
    struct diag *d = diag_open(a);
    struct sb out = {0};
    struct str text = {str_dup(a, (struct str){(const char *)data, size}), size};
    struct hf_config *c = hf_config_read(a, d, "config.json", text);
    CHECK(!c == (diag_errors(d) > 0));
    const struct model *m = c ? spec_of(a, d, c) : NULL;
    diag_print(d, &out);
    CHECK(m || (diag_errors(d) && out.n));
    if (m) {
        const char *json = hf_config_write(a, d, m, "float32");
        CHECK(json);
        struct hf_config *again = hf_config_read(a, d, "config.json", str_of(json));
        CHECK(again);
        const struct model *n = spec_of(a, d, again);
        CHECK(n && !spec_difference(a, n, m));
    }
    sb_free(&out);
    arena_close(a);
    return 0;
}
