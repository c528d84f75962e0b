/* Fuzz target: IR text. What is read prints as text that reads back as the same. */
#include "graph.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena *a = arena_open("fuzz");
    struct diag *d = diag_open(a);
    struct str text = {(const char *)data, size};
    struct ir_graph *g = graph_parse(a, d, diag_file(d, "fuzz.ir", text), text, NULL, NULL);
    if (!g != (diag_errors(d) > 0)) BUG("no graph and no error, or both");
    struct sb s = {0};
    diag_print(d, &s);
    sb_free(&s);
    if (g) {
        (void)graph_verify(g, g->stage);
        graph_print(g, NULL, &s);
        struct str once = sb_take(&s, a);
        struct ir_graph *h = graph_parse(a, d, diag_file(d, "again.ir", once), once, NULL, NULL);
        if (!h) BUG("its own text is refused:\n%s", once.p);
        graph_print(h, NULL, &s);
        if (!str_eq(once, sb_take(&s, a))) BUG("its own text reads as another graph:\n%s", once.p);
    }
    arena_close(a);
    return 0;
}
