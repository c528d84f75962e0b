/* YAML events to a tree: one document, UTF-8, no tags, no merge keys, bounded nesting and aliases.
 */
#include "compiler/spec_tree.h"
#include "base/map.h"
#include <yaml.h>

struct reader {
    struct spec_ctx *c;
    yaml_parser_t parser;
    uint32_t file;
    struct str text;           /* the whole registered text */
    size_t begin;              /* where the document's text begins in it */
    size_t mark, off;          /* libyaml counts characters: the byte offset of character `mark` */
    VEC(struct node *) anchor; /* what each names; NULL while it is being read */
    struct map anchor_at;      /* name -> 1 + index of its latest anchor */
    uint64_t from_aliases;
    bool failed;
};

static size_t byte_of(struct reader *r, size_t mark)
{
    if (mark < r->mark) r->mark = 0, r->off = r->begin;
    while (r->mark < mark && r->off < r->text.n) {
        r->off++;
        while (r->off < r->text.n && ((unsigned char)r->text.p[r->off] & 0xc0) == 0x80) r->off++;
        r->mark++;
    }
    return r->off;
}

static struct span span_of(struct reader *r, yaml_mark_t start, yaml_mark_t end)
{
    size_t from = byte_of(r, start.index), mark = r->mark, to = byte_of(r, end.index);
    r->mark = mark, r->off = from; /* the next event begins before this one's end at times */
    return (struct span){r->file, (uint32_t)from, (uint32_t)(to > from ? to - from : 0)};
}

static struct span event_span(struct reader *r, const yaml_event_t *e)
{
    struct span at = span_of(r, e->start_mark, e->end_mark);
    /* Lists and mappings are shown by their first character. */
    if (e->type != YAML_SCALAR_EVENT && e->type != YAML_ALIAS_EVENT && at.len > 1) at.len = 1;
    return at;
}

static void *fail(struct reader *r)
{
    r->failed = true;
    return NULL;
}

static bool next(struct reader *r, yaml_event_t *e)
{
    if (yaml_parser_parse(&r->parser, e)) return true;
    const yaml_parser_t *p = &r->parser;
    r->failed = true;
    if (p->error == YAML_MEMORY_ERROR) BUG("libyaml has no memory");
    if (p->error == YAML_READER_ERROR) {
        struct span at = {r->file, (uint32_t)(r->begin + p->problem_offset), 1};
        spec_err(r->c, D_spec_yaml_syntax, at, p->problem);
        return false;
    }
    struct span at = span_of(r, p->problem_mark, p->problem_mark);
    if (spec_err(r->c, D_spec_yaml_syntax, at, p->problem) && p->context && p->context_mark.index)
        diag_note(r->c->d, span_of(r, p->context_mark, p->context_mark), "%s", p->context);
    return false;
}

static struct node *parse_node(struct reader *r, yaml_event_t *e, unsigned depth);

static void add_weight(struct node *n, const struct node *part)
{
    n->weight += part->weight;
    if (part->height >= n->height) n->height = (uint8_t)(part->height + 1);
}

static struct node *parse_list(struct reader *r, struct node *n, unsigned depth)
{
    VEC(struct node *) items = {0};
    n->kind = NODE_list;
    n->height = 1;
    for (;;) {
        yaml_event_t e;
        if (!next(r, &e)) return NULL;
        bool end = e.type == YAML_SEQUENCE_END_EVENT;
        struct node *item = end ? NULL : parse_node(r, &e, depth + 1);
        yaml_event_delete(&e);
        if (end) break;
        if (r->failed) return NULL;
        vec_push(r->c->a, &items, item);
        add_weight(n, item);
    }
    n->item = items.p;
    n->n = items.n;
    return n;
}

/* Reads the key that begins with event e; false where the entry is to be left out. */
static bool parse_key(struct reader *r, yaml_event_t *e, unsigned depth, struct entry *out)
{
    struct node *key = parse_node(r, e, depth + 1);
    if (r->failed) return false;
    if (key->kind != NODE_scalar || e->type == YAML_ALIAS_EVENT) {
        spec_err(r->c, D_spec_key_kind, key->at);
        return false;
    }
    *out = (struct entry){key->text, key->at, NULL};
    if (spec_plain(key, "<<")) {
        if (spec_err(r->c, D_spec_yaml_merge, key->at))
            diag_hint(r->c->d, "Write the keys out, or use extends for a whole file.");
        return false;
    }
    return true;
}

static bool key_is_new(struct reader *r, struct map *seen, const struct entry *have, size_t n,
                       const struct entry *e)
{
    uint32_t *at = map_str(seen, e->key);
    if (!*at) {
        *at = (uint32_t)n + 1;
        return true;
    }
    if (spec_err(r->c, D_spec_key_twice, e->key_at, spec_shown(r->c, e->key)))
        diag_note(r->c->d, have[*at - 1].key_at, "the first one is here");
    return false;
}

static struct node *parse_map(struct reader *r, struct node *n, unsigned depth)
{
    VEC(struct entry) entries = {0};
    struct map seen;
    map_init(&seen, r->c->a);
    n->kind = NODE_map;
    n->height = 1;
    for (;;) {
        yaml_event_t e;
        struct entry entry;
        if (!next(r, &e)) return NULL;
        bool end = e.type == YAML_MAPPING_END_EVENT;
        bool keep = !end && parse_key(r, &e, depth, &entry);
        yaml_event_delete(&e);
        if (end) break;
        if (r->failed || !next(r, &e)) return NULL;
        entry.value = parse_node(r, &e, depth + 1);
        yaml_event_delete(&e);
        if (r->failed) return NULL;
        if (!keep || !key_is_new(r, &seen, entries.p, entries.n, &entry)) continue;
        vec_push(r->c->a, &entries, entry);
        add_weight(n, entry.value);
        n->weight += 16 + entry.key.n;
    }
    n->entry = entries.p;
    n->n = entries.n;
    return n;
}

static struct node *parse_alias(struct reader *r, const yaml_event_t *e, struct span at,
                                unsigned depth)
{
    struct str name = str_of((const char *)e->data.alias.anchor);
    const uint32_t *index = map_find(&r->anchor_at, name);
    if (!index) {
        spec_err(r->c, D_spec_alias_unknown, at, name.p);
        return fail(r);
    }
    struct node *n = r->anchor.p[*index - 1];
    if (!n) {
        spec_err(r->c, D_spec_alias_loop, at, name.p);
        return fail(r);
    }
    if (depth + n->height > SPEC_MAX_DEPTH) {
        spec_err(r->c, D_spec_yaml_depth, at, SPEC_MAX_DEPTH);
        return fail(r);
    }
    r->from_aliases += n->weight;
    if (r->from_aliases > SPEC_MAX_FILE) {
        spec_err(r->c, D_spec_alias_size, at);
        return fail(r);
    }
    if (n->kind != NODE_scalar) return n;
    /* A copy, so that a mistake is shown where the value is used. */
    struct node *copy = arena_dup(r->c->a, n, sizeof *n, STRATA_SITE);
    copy->at = at;
    return copy;
}

static const char *tag_of(const yaml_event_t *e, const char **anchor)
{
    const yaml_char_t *tag = NULL, *name = NULL;
    if (e->type == YAML_SCALAR_EVENT) tag = e->data.scalar.tag, name = e->data.scalar.anchor;
    if (e->type == YAML_SEQUENCE_START_EVENT)
        tag = e->data.sequence_start.tag, name = e->data.sequence_start.anchor;
    if (e->type == YAML_MAPPING_START_EVENT)
        tag = e->data.mapping_start.tag, name = e->data.mapping_start.anchor;
    *anchor = (const char *)name;
    return (const char *)tag;
}

/* The node that begins with event e; NULL (and r->failed) after an error that ends the reading. */
static struct node *parse_node(struct reader *r, yaml_event_t *e, unsigned depth)
{
    struct span at = event_span(r, e);
    if (e->type == YAML_ALIAS_EVENT) return parse_alias(r, e, at, depth);
    const char *anchor;
    if (tag_of(e, &anchor)) spec_err(r->c, D_spec_yaml_tag, at);
    size_t slot = r->anchor.n;
    if (anchor) {
        vec_push(r->c->a, &r->anchor, (struct node *)NULL);
        *map_str(&r->anchor_at, str_of(anchor)) = (uint32_t)r->anchor.n;
    }
    struct node *n = NEW(r->c->a, struct node, 1);
    n->at = at;
    n->weight = 16;
    if (e->type == YAML_SCALAR_EVENT) {
        struct str text = {(const char *)e->data.scalar.value, e->data.scalar.length};
        n->text = (struct str){str_dup(r->c->a, text), text.n};
        n->quoted = e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
        n->weight += text.n;
    } else if (depth >= SPEC_MAX_DEPTH) {
        spec_err(r->c, D_spec_yaml_depth, at, SPEC_MAX_DEPTH);
        return fail(r);
    } else {
        n = e->type == YAML_MAPPING_START_EVENT ? parse_map(r, n, depth) : parse_list(r, n, depth);
    }
    if (n && anchor) r->anchor.p[slot] = n;
    return n;
}

/* Offset of the first byte that is not UTF-8, n where all is. */
static size_t utf8_end(struct str t)
{
    size_t i = 0;
    while (i < t.n) {
        const unsigned char *p = (const unsigned char *)t.p + i;
        size_t left = t.n - i, len = *p < 0x80 ? 1 : *p >= 0xf0 ? 4 : *p >= 0xe0 ? 3 : 2;
        if (len > 1 && (*p < 0xc2 || *p > 0xf4 || left < len)) return i;
        for (size_t k = 1; k < len; k++)
            if ((p[k] & 0xc0) != 0x80) return i;
        if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) ||
            (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f))
            return i;
        i += len;
    }
    return i;
}

static struct node *parse_document(struct reader *r)
{
    yaml_event_t e;
    struct node *root = NULL;
    for (;;) {
        if (!next(r, &e)) return NULL;
        yaml_event_type_t type = e.type;
        struct span at = event_span(r, &e);
        if (type == YAML_DOCUMENT_START_EVENT && root) {
            spec_err(r->c, D_spec_doc_many, at);
            r->failed = true;
        }
        if (type == YAML_STREAM_END_EVENT && !root)
            spec_err(r->c, D_spec_doc_empty, ((struct span){r->file, (uint32_t)r->begin, 0}));
        bool stop = type == YAML_STREAM_END_EVENT || (type == YAML_DOCUMENT_START_EVENT && root);
        bool head = type == YAML_STREAM_START_EVENT || type == YAML_DOCUMENT_START_EVENT ||
                    type == YAML_DOCUMENT_END_EVENT;
        if (!stop && !head) root = parse_node(r, &e, 0);
        yaml_event_delete(&e);
        if (r->failed) return NULL;
        if (stop) return root;
    }
}

struct node *spec_tree_read(struct spec_ctx *c, uint32_t file, struct str whole, size_t from)
{
    struct str text = {whole.p + from, whole.n - from};
    if (text.n > SPEC_MAX_FILE) {
        spec_err(c, D_spec_file_size, ((struct span){file, 0, 0}));
        return NULL;
    }
    size_t good = utf8_end(text);
    if (good < text.n) {
        spec_err(c, D_spec_yaml_utf8, ((struct span){file, (uint32_t)(from + good), 1}));
        return NULL;
    }
    struct reader r = {.c = c, .file = file, .text = whole, .begin = from, .off = from};
    map_init(&r.anchor_at, c->a);
    if (!yaml_parser_initialize(&r.parser)) BUG("libyaml has no memory");
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text.p, text.n);
    struct node *root = parse_document(&r);
    yaml_parser_delete(&r.parser);
    return r.failed ? NULL : root;
}
