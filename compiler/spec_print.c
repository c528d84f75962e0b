/* The merged tree as YAML text: block style for the upper levels, flow style below. */
#include "compiler/spec_tree.h"

enum { BLOCK_LEVELS = 3 };

struct printing {
    struct sb *out;
    const struct node *data_path, *tokenizer_path; /* printed as the model has them */
    const struct model *m;
};

/* May stand unquoted anywhere, in flow style too, and reads as the same plain scalar. */
static bool simple(struct str s)
{
    bool letter = false; /* "-", "--" and "..." mean something else */
    for (size_t i = 0; i < s.n; i++) {
        char ch = s.p[i];
        bool word = (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') ||
                    (ch >= '0' && ch <= '9') || ch == '_' || ch == '/';
        if (!word && ch != '.' && ch != '-' && ch != '+') return false;
        letter |= word;
    }
    return letter;
}

static void print_text(struct sb *out, struct str s, bool quoted)
{
    if (!quoted && (simple(s) || !s.n)) {
        sb_add(out, s.p, s.n);
        return;
    }
    sb_char(out, '"');
    for (size_t i = 0; i < s.n; i++) {
        unsigned char ch = (unsigned char)s.p[i];
        if (ch == '"' || ch == '\\')
            sb_printf(out, "\\%c", ch);
        else if (ch < 32 || ch == 127)
            sb_printf(out, "\\x%02x", ch);
        else
            sb_char(out, (char)ch);
    }
    sb_char(out, '"');
}

static void print_flow(struct printing *p, const struct node *n)
{
    if (n->kind == NODE_scalar) {
        struct str s = n->text;
        if (n == p->data_path) s = str_of(p->m->train.data_path);
        if (n == p->tokenizer_path) s = str_of(p->m->tokenizer.path);
        print_text(p->out, s, n->quoted);
        return;
    }
    sb_char(p->out, n->kind == NODE_map ? '{' : '[');
    for (size_t i = 0; i < n->n; i++) {
        if (i) sb_str(p->out, ", ");
        if (n->kind == NODE_map) {
            print_text(p->out, n->entry[i].key, false);
            sb_str(p->out, ": ");
        }
        print_flow(p, n->kind == NODE_map ? n->entry[i].value : n->item[i]);
    }
    sb_char(p->out, n->kind == NODE_map ? '}' : ']');
}

static void print_block(struct printing *p, const struct node *map, int level)
{
    for (size_t i = 0; i < map->n; i++) {
        const struct entry *e = &map->entry[i];
        const struct node *v = e->value;
        sb_printf(p->out, "%*s", 2 * level, "");
        print_text(p->out, e->key, false);
        sb_char(p->out, ':');
        if (v->kind == NODE_map && v->n && level + 1 < BLOCK_LEVELS) {
            sb_char(p->out, '\n');
            print_block(p, v, level + 1);
        } else if (v->kind == NODE_list && v->n && level + 1 < BLOCK_LEVELS) {
            for (size_t j = 0; j < v->n; j++) {
                sb_printf(p->out, "\n%*s- ", 2 * level + 2, "");
                print_flow(p, v->item[j]);
            }
            sb_char(p->out, '\n');
        } else {
            sb_char(p->out, ' ');
            print_flow(p, v);
            sb_char(p->out, '\n');
        }
    }
}

const char *spec_canonical(struct spec_ctx *c, const struct node *root, const struct model *m)
{
    struct sb out = {0};
    struct printing p = {.out = &out, .m = m};
    const struct node *data = spec_get(spec_get(root, "train"), "data");
    p.data_path = spec_get(data, "path");
    p.tokenizer_path = spec_get(spec_get(root, "tokenizer"), "path");
    print_block(&p, root, 0);
    return sb_take(&out, c->a).p;
}
