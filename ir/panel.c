#include "panel.h"

static const char *const words[STORE_KINDS] = {
    [STORE_none] = "",   [STORE_rows] = "rows", [STORE_rows_bf16] = "rows_bf16",
    [STORE_f32] = "f32", [STORE_bf16] = "bf16", [STORE_i8] = "i8"};

const char *store_word(enum ir_store s)
{
    CHECK(s < STORE_KINDS);
    return words[s];
}

enum ir_store store_of_word(const char *word)
{
    for (int i = 0; i < STORE_KINDS; i++)
        if (!strcmp(words[i], word)) return (enum ir_store)i;
    return STORE_KINDS;
}

enum ir_store ir_stored(const struct ir_graph *g, ir_id n)
{
    ir_id root = ir_view(g, n).root;
    enum ir_op op = (enum ir_op)ir_at(g, root)->op;
    if (op != OP_param && op != OP_input) return STORE_none;
    return store_of_word(ir_word(g, root, AK_store, ""));
}

struct store_shape store_shape(const struct ir_graph *g, ir_id n)
{
    const struct ir_type *t = ir_ty(g, n);
    struct store_shape x = {1, 1, 1};
    for (unsigned i = 0; i < t->rank; i++) {
        CHECK(dim_is_const(t->dim[i]));
        if (i + 1 == t->rank)
            x.k = t->dim[i].add;
        else if (i + 2 == t->rank)
            x.n = t->dim[i].add;
        else
            x.parts *= t->dim[i].add;
    }
    return x;
}

int64_t store_panel_bytes(enum ir_store s, int64_t k)
{
    switch (s) {
    case STORE_f32: return k * STORE_PANEL * 4;
    case STORE_bf16: return (k + 1) / 2 * STORE_PANEL * 4;
    case STORE_i8: return k * STORE_PANEL;
    default: BUG("no panels of '%s'", store_word(s));
    }
}

int64_t store_scales(struct store_shape x)
{
    return (x.parts * store_panels(x) * store_panel_bytes(STORE_i8, x.k) + 63) / 64 * 64;
}

int64_t store_total_bytes(enum ir_store s, struct store_shape x)
{
    if (!store_in_panels(s)) return x.parts * x.n * x.k * store_row_bytes(s);
    if (s == STORE_i8) return store_scales(x) + x.parts * store_panels(x) * STORE_PANEL * 4;
    return x.parts * store_panels(x) * store_panel_bytes(s, x.k);
}
