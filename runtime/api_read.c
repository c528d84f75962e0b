/* The readers of single fields, and the table that names them. */
#include "runtime/api_json.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct reader {
    struct api_request *r;
    const struct api_limits *lim;
    struct api_error *err;
    char at[128]; /* the field that an error is about */
};
struct field;
typedef bool field_reader(struct reader *c, const struct field *f, const json_t *v, void *to);
struct field {
    const char *name;
    unsigned routes;
    field_reader *read; /* NULL: refused */
    size_t member;      /* offset in struct api_request */
    double lo, hi;
};

/* Names the field of the next error. */
static struct reader *at(struct reader *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static struct reader *at(struct reader *c, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->at, sizeof c->at, fmt, ap);
    va_end(ap);
    return c;
}

/* The error "'FIELD' ...". Always false. */
static bool bad(struct reader *c, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static bool bad(struct reader *c, const char *code, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    api_fail(c->err, API_invalid, "'%s' %s.", c->at, text);
    c->err->code = code;
    memcpy(c->err->param, c->at, sizeof c->err->param);
    return false;
}
#define VALUE "invalid_value"
#define TYPE "invalid_type"
#define UNSUPPORTED "unsupported_value"

static const char *type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number";
    case JSON_TRUE:
    case JSON_FALSE: return "a boolean";
    case JSON_NULL: break;
    }
    return "null";
}
static bool bad_type(struct reader *c, const char *want, const json_t *v)
{
    return bad(c, TYPE, "must be %s, not %s", want, type_name(v));
}

static struct str text_of(const json_t *v)
{
    return (struct str){json_string_value(v), json_string_length(v)};
}
static struct str keep(struct reader *c, struct str s)
{
    return (struct str){str_dup(c->r->arena, s), s.n};
}
/* A member that is there and not null, or NULL. */
static const json_t *member(const json_t *object, const char *name)
{
    const json_t *v = json_object_get(object, name);
    return v && !json_is_null(v) ? v : NULL;
}
/* A field that is not known: remembered, or refused where that is asked for. */
static bool unknown(struct reader *c, const char *path)
{
    if (c->lim->strict) return bad(at(c, "%s", path), "unknown_parameter", "is not a known field");
    if (!c->r->unknown[0]) snprintf(c->r->unknown, sizeof c->r->unknown, "%s", path);
    return true;
}

static bool read_bool(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    if (!json_is_boolean(v)) return bad_type(at(c, "%s", f->name), "a boolean", v);
    *(bool *)to = json_is_true(v);
    return true;
}

static bool read_int(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    at(c, "%s", f->name);
    if (!json_is_integer(v)) return bad_type(c, "an integer", v);
    int64_t n = json_integer_value(v);
    if (n < (int64_t)f->lo || n > (int64_t)f->hi)
        return bad(c, VALUE, "must be from %.0f to %.0f, not %lld", f->lo, f->hi, (long long)n);
    *(int64_t *)to = n;
    return true;
}

static bool read_seed(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    if (!json_is_integer(v)) return bad_type(at(c, "%s", f->name), "an integer", v);
    *(int64_t *)to = json_integer_value(v);
    c->r->has_seed = true;
    return true;
}

static bool read_num(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    at(c, "%s", f->name);
    if (!json_is_number(v)) return bad_type(c, "a number", v);
    double x = json_number_value(v);
    if (!(x >= f->lo && x <= f->hi))
        return bad(c, VALUE, "must be from %g to %g, not %g", f->lo, f->hi, x);
    *(double *)to = x;
    return true;
}
/* The same without the lower bound itself. */
static bool read_above(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    at(c, "%s", f->name);
    if (!json_is_number(v)) return bad_type(c, "a number", v);
    double x = json_number_value(v);
    if (!(x > f->lo && x <= f->hi))
        return bad(c, VALUE, "must be greater than %g and at most %g, not %g", f->lo, f->hi, x);
    *(double *)to = x;
    return true;
}

static bool check_text(struct reader *c, const struct field *f, const json_t *v)
{
    if (!json_is_string(v)) return bad_type(c, "a string", v);
    size_t n = json_string_length(v);
    if ((double)n < f->lo) return bad(c, VALUE, "must not be empty");
    if ((double)n > f->hi) return bad(c, VALUE, "is longer than %.0f bytes", f->hi);
    return true;
}
static bool read_text(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    if (!check_text(at(c, "%s", f->name), f, v)) return false;
    *(struct str *)to = keep(c, text_of(v));
    return true;
}

static bool read_ignored_text(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    (void)to;
    return check_text(at(c, "%s", f->name), f, v);
}
static bool read_ignored_bool(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    (void)to;
    return json_is_boolean(v) || bad_type(at(c, "%s", f->name), "a boolean", v);
}
static bool read_ignored_object(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    (void)to;
    return json_is_object(v) || bad_type(at(c, "%s", f->name), "an object", v);
}

/* Texts of one part, joined by line ends in `out`. */
static bool read_part(struct reader *c, size_t i, size_t k, const json_t *part, struct sb *out)
{
    if (!json_is_object(part))
        return bad_type(at(c, "messages[%zu].content[%zu]", i, k), "an object", part);
    const json_t *type = member(part, "type"), *text = member(part, "text");
    at(c, "messages[%zu].content[%zu].type", i, k);
    if (!type) return bad(c, "missing_required_parameter", "is required");
    if (!json_is_string(type)) return bad_type(c, "a string", type);
    if (!str_is(text_of(type), "text"))
        return bad(c, UNSUPPORTED, "'%.40s' is not supported; only text is",
                   json_string_value(type));
    at(c, "messages[%zu].content[%zu].text", i, k);
    if (!text) return bad(c, "missing_required_parameter", "is required");
    if (!json_is_string(text)) return bad_type(c, "a string", text);
    if (k) sb_char(out, '\n');
    sb_add(out, json_string_value(text), json_string_length(text));
    return true;
}

static bool read_content(struct reader *c, size_t i, const json_t *v, struct str *to)
{
    at(c, "messages[%zu].content", i);
    if (!v) return bad(c, "missing_required_parameter", "is required");
    if (json_is_string(v)) {
        *to = keep(c, text_of(v));
        return true;
    }
    if (!json_is_array(v)) return bad_type(c, "a string or an array of parts", v);
    if (!json_array_size(v)) return bad(c, VALUE, "must not be empty");
    if (json_array_size(v) > API_PARTS) return bad(c, VALUE, "has more than %d parts", API_PARTS);
    struct sb text = {0};
    bool ok = true;
    for (size_t k = 0; ok && k < json_array_size(v); k++)
        ok = read_part(c, i, k, json_array_get(v, k), &text);
    if (ok) *to = text.n ? sb_take(&text, c->r->arena) : keep(c, STR(""));
    sb_free(&text);
    return ok;
}

static bool read_role(struct reader *c, size_t i, const json_t *v, enum chat_role *to)
{
    static const struct {
        const char *name;
        enum chat_role role;
    } roles[] = {{"system", CHAT_system},
                 {"developer", CHAT_system},
                 {"user", CHAT_user},
                 {"assistant", CHAT_assistant}};
    at(c, "messages[%zu].role", i);
    if (!v) return bad(c, "missing_required_parameter", "is required");
    if (!json_is_string(v)) return bad_type(c, "a string", v);
    for (size_t k = 0; k < sizeof roles / sizeof *roles; k++)
        if (str_is(text_of(v), roles[k].name)) {
            *to = roles[k].role;
            return true;
        }
    if (str_is(text_of(v), "tool") || str_is(text_of(v), "function"))
        return bad(c, UNSUPPORTED, "'%s' is not supported: this server has no tools",
                   json_string_value(v));
    return bad(c, VALUE, "must be system, developer, user or assistant");
}

/* Members of a message that are neither read nor harmless. */
static bool check_message_keys(struct reader *c, size_t i, const json_t *v)
{
    static const char *const known[] = {"role", "content", "name", "refusal", "annotations"};
    static const char *const refused[] = {"tool_calls", "tool_call_id", "function_call", "audio",
                                          "prefix"};
    const char *key;
    json_t *x;
    json_object_foreach((json_t *)(uintptr_t)v, key, x)
    {
        bool found = json_is_null(x);
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) found |= !strcmp(key, known[k]);
        for (size_t k = 0; k < sizeof refused / sizeof *refused; k++)
            if (!found && !strcmp(key, refused[k]))
                return bad(at(c, "messages[%zu].%s", i, key), "unsupported_parameter",
                           "is not supported");
        char path[128];
        snprintf(path, sizeof path, "messages[%zu].%s", i, key);
        if (!found && !unknown(c, path)) return false;
    }
    return true;
}

static bool read_message(struct reader *c, size_t i, const json_t *v, struct chat_message *m)
{
    if (!json_is_object(v)) return bad_type(at(c, "messages[%zu]", i), "an object", v);
    if (!read_role(c, i, member(v, "role"), &m->role) || !check_message_keys(c, i, v) ||
        !read_content(c, i, member(v, "content"), &m->content))
        return false;
    const json_t *name = member(v, "name");
    if (!name) return true;
    at(c, "messages[%zu].name", i);
    if (!json_is_string(name)) return bad_type(c, "a string", name);
    if (json_string_length(name) > 64) return bad(c, VALUE, "is longer than 64 bytes");
    m->name = keep(c, text_of(name));
    return true;
}

static bool read_messages(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    at(c, "%s", f->name);
    if (!json_is_array(v)) return bad_type(c, "an array", v);
    size_t n = json_array_size(v);
    if (!n) return bad(c, VALUE, "must not be empty");
    if (n > API_MESSAGES) return bad(c, VALUE, "has more than %d messages", API_MESSAGES);
    struct chat_message *m = NEW(c->r->arena, struct chat_message, n);
    for (size_t i = 0; i < n; i++)
        if (!read_message(c, i, json_array_get(v, i), &m[i])) return false;
    *(struct chat_message **)to = m;
    c->r->num_messages = n;
    return true;
}

/* Token ids; `name` is the array's path. */
static bool read_ids(struct reader *c, const char *name, const json_t *v, struct api_prompt *p)
{
    int64_t limit = c->lim->vocab_size > 0 ? c->lim->vocab_size : INT64_C(1) << 31;
    p->is_ids = true;
    p->num_ids = json_array_size(v);
    p->ids = NEW(c->r->arena, int32_t, p->num_ids);
    for (size_t i = 0; i < p->num_ids; i++) {
        const json_t *x = json_array_get(v, i);
        if (!json_is_integer(x)) return bad_type(at(c, "%s[%zu]", name, i), "a token id", x);
        int64_t id = json_integer_value(x);
        if (id < 0 || id >= limit)
            return bad(at(c, "%s[%zu]", name, i), VALUE, "must be from 0 to %lld, not %lld",
                       (long long)(limit - 1), (long long)id);
        p->ids[i] = (int32_t)id;
    }
    return true;
}

static bool read_prompt_item(struct reader *c, size_t i, const json_t *v, struct api_prompt *p)
{
    char name[32];
    snprintf(name, sizeof name, "prompt[%zu]", i);
    if (json_is_string(v)) {
        p->text = keep(c, text_of(v));
        return true;
    }
    if (!json_is_array(v)) return bad_type(at(c, "%s", name), "a string or an array of ids", v);
    if (!json_array_size(v)) return bad(at(c, "%s", name), VALUE, "must not be empty");
    return read_ids(c, name, v, p);
}

/* A string, ids, or an array of several of one kind. */
static bool read_prompt(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    struct arena *a = c->r->arena;
    bool one = c->r->route == API_tokenize, list = json_is_array(v);
    at(c, "%s", f->name);
    if (one && !json_is_string(v)) return bad_type(c, "a string", v);
    if (!json_is_string(v) && !list) return bad_type(c, "a string or an array", v);
    size_t n = list ? json_array_size(v) : 1;
    if (!n) return bad(c, VALUE, "must not be empty");
    const json_t *first = list ? json_array_get(v, 0) : v;
    bool ids = list && json_is_number(first);
    if (list && !ids && n > API_PROMPTS)
        return bad(c, VALUE, "has more than %d prompts", API_PROMPTS);
    c->r->num_prompts = ids ? 1 : n;
    struct api_prompt *p = *(struct api_prompt **)to = NEW(a, struct api_prompt, c->r->num_prompts);
    if (ids) return read_ids(c, f->name, v, p);
    if (!list) {
        p->text = keep(c, text_of(v));
        return true;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *x = json_array_get(v, i);
        if (json_typeof(x) != json_typeof(first))
            return bad_type(at(c, "%s[%zu]", f->name, i), "of the first prompt's kind", x);
        if (!read_prompt_item(c, i, x, &p[i])) return false;
    }
    return true;
}

static bool read_tokens(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    if (!json_is_array(v)) return bad_type(at(c, "%s", f->name), "an array of token ids", v);
    c->r->num_prompts = 1;
    struct api_prompt *p = *(struct api_prompt **)to = NEW(c->r->arena, struct api_prompt, 1);
    return read_ids(c, f->name, v, p);
}

/* A token id as the name of a member: decimal, without sign or leading zeros. */
static bool id_of_key(const char *key, int64_t limit, int32_t *id)
{
    size_t n = strspn(key, "0123456789");
    if (!n || n > 10 || key[n] || (key[0] == '0' && n > 1)) return false;
    long long x = strtoll(key, NULL, 10);
    *id = (int32_t)x;
    return x < limit;
}

static bool read_bias(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    int64_t limit = c->lim->vocab_size > 0 ? c->lim->vocab_size : INT64_C(1) << 31;
    at(c, "%s", f->name);
    if (!json_is_object(v)) return bad_type(c, "an object", v);
    size_t n = json_object_size(v), i = 0;
    if (n > API_BIASES) return bad(c, VALUE, "has more than %d members", API_BIASES);
    struct api_bias *b = NEW(c->r->arena, struct api_bias, n);
    const char *key;
    json_t *x;
    json_object_foreach((json_t *)(uintptr_t)v, key, x)
    {
        at(c, "%s.%s", f->name, key);
        if (!id_of_key(key, limit, &b[i].id))
            return bad(c, VALUE, "must be named by a token id from 0 to %lld",
                       (long long)(limit - 1));
        if (!json_is_number(x)) return bad_type(c, "a number", x);
        b[i].add = json_number_value(x);
        if (!(b[i].add >= f->lo && b[i].add <= f->hi))
            return bad(c, VALUE, "must be from %g to %g, not %g", f->lo, f->hi, b[i].add);
        i++;
    }
    *(struct api_bias **)to = b;
    c->r->num_bias = n;
    return true;
}

static bool read_stop(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    struct str *stop = to;
    bool list = json_is_array(v);
    size_t n = list ? json_array_size(v) : 1;
    at(c, "%s", f->name);
    if (!list && !json_is_string(v)) return bad_type(c, "a string or an array of strings", v);
    if (n > API_STOPS) return bad(c, VALUE, "has more than %d texts", API_STOPS);
    for (size_t i = 0; i < n; i++) {
        const json_t *x = list ? json_array_get(v, i) : v;
        if (list) at(c, "%s[%zu]", f->name, i);
        if (!check_text(c, f, x)) return false;
        stop[i] = keep(c, text_of(x));
    }
    c->r->num_stops = n;
    return true;
}

static bool read_stream_options(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    const char *key;
    json_t *x;
    if (!json_is_object(v)) return bad_type(at(c, "%s", f->name), "an object", v);
    json_object_foreach((json_t *)(uintptr_t)v, key, x)
    {
        char path[128];
        snprintf(path, sizeof path, "%s.%s", f->name, key);
        if (strcmp(key, "include_usage")) {
            if (!unknown(c, path)) return false;
        } else if (!json_is_null(x)) {
            if (!json_is_boolean(x)) return bad_type(at(c, "%s", path), "a boolean", x);
            *(bool *)to = json_is_true(x);
        }
    }
    return true;
}

/* Completions: a number, which also asks for them. */
static bool read_logprobs(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    return c->r->logprobs = read_int(c, f, v, to);
}

static bool read_format(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    if (!json_is_object(v)) return bad_type(at(c, "%s", f->name), "an object", v);
    const json_t *type = member(v, "type");
    at(c, "%s.type", f->name);
    if (!type) return bad(c, "missing_required_parameter", "is required");
    if (!json_is_string(type)) return bad_type(c, "a string", type);
    *(bool *)to = str_is(text_of(type), "json_object");
    return *(bool *)to || str_is(text_of(type), "text") ||
           bad(c, UNSUPPORTED, "'%.40s' is not supported; text and json_object are",
               json_string_value(type));
}

/* ["text"] says what is so anyway. */
static bool read_modalities(struct reader *c, const struct field *f, const json_t *v, void *to)
{
    (void)to;
    at(c, "%s", f->name);
    if (!json_is_array(v)) return bad_type(c, "an array", v);
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *x = json_array_get(v, i);
        if (!json_is_string(x) || !str_is(text_of(x), "text"))
            return bad(at(c, "%s[%zu]", f->name, i), UNSUPPORTED, "is not supported; only text is");
    }
    return true;
}

enum {
    C = 1 << API_chat,
    T = 1 << API_completions,
    K = 1 << API_tokenize,
    D = 1 << API_detokenize
};
#define FIELD(name, routes, reader, to, lo, hi) \
    {name, routes, read_##reader, offsetof(struct api_request, to), lo, hi},
#define REFUSED(name, routes) {name, routes, NULL, 0, 0, 0},
static const struct field fields[] = {
#include "runtime/api_field.def"
};

static const struct field *find(const char *name, enum api_route route)
{
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if ((fields[i].routes & 1u << route) && !strcmp(fields[i].name, name)) return &fields[i];
    return NULL;
}

bool api_read_body(struct api_request *r, const json_t *body, const struct api_limits *lim,
                   struct api_error *err)
{
    struct reader c = {.r = r, .lim = lim, .err = err};
    if (json_object_size(body) > API_FIELDS)
        return api_fail(err, API_invalid, "The body has more than %d fields.", API_FIELDS);
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)body, key, v)
    {
        const struct field *f = find(key, r->route);
        if (json_is_null(v) && (f || !lim->strict)) continue;
        if (!f) {
            if (!unknown(&c, key)) return false;
            continue;
        }
        if (!f->read)
            return bad(at(&c, "%s", key), "unsupported_parameter",
                       "is not supported by this server");
        if (!f->read(&c, f, v, (char *)r + f->member)) return false;
    }
    return true;
}
