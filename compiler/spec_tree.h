/* YAML text as a tree of nodes with spans, and what every part of the spec front end shares. */
#ifndef STRATA_COMPILER_SPEC_TREE_H
#define STRATA_COMPILER_SPEC_TREE_H
#include "base/vec.h"
#include "compiler/spec_table.h"

enum spec_limit { SPEC_MAX_FILE = 4 << 20, SPEC_MAX_DEPTH = 64, SPEC_MAX_LAYERS = 4096 };

enum node_kind { NODE_scalar, NODE_map, NODE_list };

struct entry {
    struct str key;
    struct span key_at;
    struct node *value;
};

/* Never changed once built: merging makes new nodes, so aliases may share them. */
struct node {
    enum node_kind kind;
    bool quoted;         /* scalar that was written in quotes or as a block */
    uint8_t height;      /* levels of lists and mappings below and including this one */
    struct span at;      /* scalar: all of it; others: where they begin */
    struct str text;     /* scalar; terminated */
    struct entry *entry; /* map */
    struct node **item;  /* list */
    size_t n;            /* entries or items */
    uint64_t weight;     /* size of the node with aliases written out */
};

struct spec_source { /* a file of the diagnostics */
    uint32_t file;
    const char *dir;  /* what relative paths in it are relative to */
    struct span from; /* the `extends` that named it; {0} for the others */
};

struct spec_seen { /* a diagnostic that was added */
    enum diag_id id;
    struct span at;
};

struct spec_ctx {
    struct arena *a;
    struct diag *d;
    VEC(struct spec_source) source;
    VEC(struct spec_seen) seen;
    size_t errors; /* calls of spec_err */
};

/* Adds a diagnostic unless the same one is already there at that place (aliases make a node be read
 * twice), with a note that says which `extends` led to its file. True where it was added. */
bool spec_err(struct spec_ctx *c, enum diag_id id, struct span at, ...);

/* Registers a source text. */
uint32_t spec_source_add(struct spec_ctx *c, const char *name, struct str text, const char *dir,
                         struct span from);
/* Folder that relative paths at a span are relative to. */
const char *spec_dir_of(const struct spec_ctx *c, struct span at);

/* Reads the one YAML document in text[from..]. `whole` is the registered text of the file. NULL
 * after an error that ended the reading; others leave a tree that can be checked further. */
struct node *spec_tree_read(struct spec_ctx *c, uint32_t file, struct str whole, size_t from);

/* The value of a key of a mapping, NULL where there is none (or it is no mapping). */
struct entry *spec_entry(const struct node *map, const char *key);
struct node *spec_get(const struct node *map, const char *key);
/* Follows a dotted path as far as it goes; the span of the deepest value on it. */
struct span spec_where(const struct node *map, const char *path);
/* A plain scalar (not quoted) with that text. */
bool spec_plain(const struct node *n, const char *text);
/* The effective type of an object's mapping or bare word; empty where it is not a known form. */
struct str spec_type_of(enum spec_obj object, const struct node *n);
/* {type: word} for a bare word that stands for an object; other nodes as they are. */
struct node *spec_unbare(struct spec_ctx *c, enum spec_obj object, struct node *n);
/* The object a key's value is, OBJ_COUNT where it is none; *named: it maps names to objects. */
enum spec_obj spec_child(enum spec_obj object, struct str key, bool *named);

/* Applies `over` to `base` by the rules of extends; both are roots. */
struct node *spec_merge(struct spec_ctx *c, struct node *base, struct node *over);
/* Applies one KEY=VALUE. */
struct node *spec_set(struct spec_ctx *c, struct node *root, const char *arg);

/* Checks a merged tree and fills the model; NULL after errors. */
struct model *spec_check(struct spec_ctx *c, struct node *root);
/* Limits on what the whole model takes; of a model that is fine otherwise. */
void spec_check_size(struct spec_ctx *c, const struct node *root, const struct model *m);
/* The one of the names that the text is likely meant to be, NULL where none is near. */
const char *spec_nearest(struct str text, const char *const *names, size_t n);
/* "'abc'", "a list", ... for messages; in the arena. */
const char *spec_describe(struct spec_ctx *c, const struct node *n);
/* A text of the user's for messages: at most 40 bytes of it, control characters as '?'. */
const char *spec_shown(struct spec_ctx *c, struct str text);
/* The merged tree as YAML, data and tokenizer paths as in the model. */
const char *spec_canonical(struct spec_ctx *c, const struct node *root, const struct model *m);
#endif
