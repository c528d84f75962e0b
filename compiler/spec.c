/* The spec front end: read, compose (extends, --set), check, print. */
#include "compiler/model.h"
#include "base/io.h"
#include "compiler/spec_tree.h"
#include <errno.h>
#include <stdlib.h>

enum { MAX_EXTENDS = 8 };

struct chain { /* the files being read, from the innermost */
    const struct chain *up;
    const char *real; /* resolved name, to see a file that extends itself */
    unsigned depth;
};

static struct node *read_whole(struct spec_ctx *c, const char *path, struct str text,
                               struct span from, const struct chain *up);

static const char *real_name(struct arena *a, const char *path)
{
    char *real = realpath(path, NULL);
    const char *kept = str_dup(a, str_of(real ? real : path));
    free(real);
    return kept;
}

static struct node *without_extends(struct spec_ctx *c, struct node *root)
{
    struct node *n = NEW(c->a, struct node, 1);
    *n = *root;
    n->entry = NEW(c->a, struct entry, root->n);
    n->n = 0;
    for (size_t i = 0; i < root->n; i++)
        if (!str_is(root->entry[i].key, "extends")) n->entry[n->n++] = root->entry[i];
    return n;
}

/* The tree of the file that `name` extends. */
static struct node *read_base(struct spec_ctx *c, const struct node *name, const struct chain *here)
{
    if (name->kind != NODE_scalar || !name->text.n || strlen(name->text.p) != name->text.n) {
        spec_err(c, D_spec_value_kind, name->at, "extends", "a file name", spec_describe(c, name));
        return NULL;
    }
    const char *path = io_join(c->a, spec_dir_of(c, name->at), name->text.p);
    const char *real = real_name(c->a, path);
    for (const struct chain *f = here; f; f = f->up)
        if (strcmp(f->real, real) == 0) {
            spec_err(c, D_spec_extends_loop, name->at, name->text.p);
            return NULL;
        }
    if (here->depth >= MAX_EXTENDS) {
        spec_err(c, D_spec_extends_deep, name->at, MAX_EXTENDS);
        return NULL;
    }
    struct str text;
    int err = io_read(c->a, path, SPEC_MAX_FILE, &text);
    if (err) {
        spec_err(c, D_spec_extends_read, name->at, path,
                 err == EFBIG ? "it is over 4 MiB" : strerror(err));
        return NULL;
    }
    return read_whole(c, path, text, name->at, here);
}

/* Reads a text and what it extends; NULL after an error. */
static struct node *read_whole(struct spec_ctx *c, const char *path, struct str text,
                               struct span from, const struct chain *up)
{
    if (str_starts(text, "\xef\xbb\xbf")) text.p += 3, text.n -= 3;
    uint32_t file = spec_source_add(c, path, text, io_dirname(c->a, path), from);
    struct node *root = spec_tree_read(c, file, text, 0);
    if (!root) return NULL;
    if (root->kind != NODE_map) {
        spec_err(c, D_spec_root_kind, root->at, spec_describe(c, root));
        return NULL;
    }
    const struct node *name = spec_get(root, "extends");
    if (!name) return root;
    struct chain here = {up, real_name(c->a, path), up ? up->depth + 1 : 1};
    struct node *base = read_base(c, name, &here);
    return base ? spec_merge(c, base, without_extends(c, root)) : NULL;
}

static struct model *load(struct spec_ctx *c, const char *path, struct str text,
                          const struct spec_options *opt)
{
    struct node *root = read_whole(c, path, text, (struct span){0}, NULL);
    for (size_t i = 0; root && opt && i < opt->num_set; i++) {
        /* Every bad --set is reported; the others are applied all the same. */
        struct node *after = spec_set(c, root, opt->set[i]);
        if (after) root = after;
    }
    if (!root) return NULL;
    struct model *m = spec_check(c, root);
    if (!m || c->errors) return NULL;
    m->path = str_dup(c->a, str_of(path));
    m->canonical = spec_canonical(c, root, m);
    return m;
}

struct model *spec_parse(struct arena *a, struct diag *d, const char *path, struct str text,
                         const struct spec_options *opt)
{
    struct spec_ctx c = {.a = a, .d = d};
    return load(&c, path, text, opt);
}

struct model *spec_load(struct arena *a, struct diag *d, const char *path,
                        const struct spec_options *opt)
{
    struct str text;
    int err = io_read(a, path, SPEC_MAX_FILE, &text);
    if (err) {
        diag_add(d, D_cannot_read, (struct span){0}, path,
                 err == EFBIG ? "it is over 4 MiB" : strerror(err));
        return NULL;
    }
    return spec_parse(a, d, path, text, opt);
}
