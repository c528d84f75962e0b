#include "runtime/api_json.h"
#include "runtime/utf8.h"
#include <stdio.h>

/* What one pass over the bytes finds. It does not judge syntax, only what bounds the parser's work;
 * in a text that is no JSON the counts mean nothing and do no harm. */
struct scan {
    size_t depth, deepest, values, containers, keys;
    struct str member; /* the last of the outermost object that begins before `upto` */
};

/* The byte behind a string that begins at i. */
static size_t string_end(struct str s, size_t i)
{
    for (i++; i < s.n && s.p[i] != '"'; i++)
        if (s.p[i] == '\\') i++;
    return i < s.n ? i + 1 : s.n;
}

static void scan_bytes(struct str s, size_t upto, struct scan *c)
{
    struct str text = {NULL, 0}; /* the last string of depth 1 */
    for (size_t i = 0; i < s.n;) {
        char b = s.p[i];
        if (b == '"') {
            size_t end = string_end(s, i);
            if (c->depth == 1) text = (struct str){s.p + i + 1, end - i > 2 ? end - i - 2 : 0};
            i = end;
            continue;
        }
        if (b == '{' || b == '[') {
            c->containers++;
            if (++c->depth > c->deepest) c->deepest = c->depth;
        }
        if ((b == '}' || b == ']') && c->depth) c->depth--;
        if (b == ',') c->values++;
        if (b == ':') {
            c->keys++;
            if (c->depth == 1 && i < upto) c->member = text;
        }
        i++;
    }
}

static bool check_bounds(struct str body, struct api_error *err)
{
    struct scan c = {0};
    if (body.n > API_BODY_BYTES)
        return api_fail(err, API_too_large, "The body is larger than %d bytes.", API_BODY_BYTES);
    size_t bad = utf8_check(body);
    if (bad < body.n)
        return api_fail(err, API_invalid, "The body is not valid UTF-8 at byte %zu.", bad);
    scan_bytes(body, body.n, &c);
    if (c.deepest > API_DEPTH)
        return api_fail(err, API_invalid, "The body nests deeper than %d levels.", API_DEPTH);
    if (c.containers > API_CONTAINERS)
        return api_fail(err, API_invalid, "The body has more than %d arrays and objects.",
                        API_CONTAINERS);
    if (c.keys > API_KEYS)
        return api_fail(err, API_invalid, "The body has more than %d members.", API_KEYS);
    if (c.values >= API_VALUES)
        return api_fail(err, API_invalid, "The body has more than %d values.", API_VALUES);
    return true;
}

/* The parser's error, in the place where it happened. */
static void explain(struct str body, const json_error_t *e, struct api_error *err)
{
    struct scan c = {0};
    size_t at = e->position > 0 ? (size_t)e->position : 0;
    switch (json_error_code(e)) {
    case json_error_out_of_memory: api_fail(err, API_internal, "Out of memory."); return;
    case json_error_duplicate_key:
    case json_error_numeric_overflow:
    case json_error_invalid_syntax:
        scan_bytes((struct str){body.p, at < body.n ? at : body.n}, at, &c);
        break;
    default: break;
    }
    api_fail(err, API_invalid, "The body is not valid JSON: %s (line %d, column %d).", e->text,
             e->line, e->column);
    err->code =
        json_error_code(e) == json_error_numeric_overflow ? "invalid_value" : "invalid_json";
    snprintf(err->param, sizeof err->param, "%.*s", (int)(c.member.n < 100 ? c.member.n : 100),
             c.member.n ? c.member.p : "");
}

json_t *api_json_load(struct str body, struct api_error *err)
{
    json_error_t e;
    if (!check_bounds(body, err)) return NULL;
    if (!body.n) {
        api_fail(err, API_invalid, "The body is empty; a JSON object is expected.");
        return NULL;
    }
    json_t *root = json_loadb(body.p, body.n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!root) {
        explain(body, &e, err);
        return NULL;
    }
    if (!json_is_object(root)) {
        json_decref(root);
        api_fail(err, API_invalid, "The body must be a JSON object.");
        return NULL;
    }
    return root;
}
