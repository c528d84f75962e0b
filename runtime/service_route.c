/* Routes, what is checked of a head, and answers that need no body. */
#include "runtime/exchange.h"
#include "runtime/page.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

enum { O = 1, P = 2, M = 4 };
struct route {
    const char *path;
    unsigned flags;
    enum api_route body; /* of POST */
    /* Of GET: writes the answer's body and may change its type and status. False: *err. */
    bool (*answer)(struct exchange *x, const char *rest, struct api_error *err);
};

static bool answer_models(struct exchange *x, const char *rest, struct api_error *err)
{
    (void)rest, (void)err;
    const struct service *s = x->s;
    const struct api_model m = {s->model.name, s->created, s->model.lm->about.context};
    api_put_models(&x->answer.body, &m, 1);
    return true;
}

static bool answer_model(struct exchange *x, const char *rest, struct api_error *err)
{
    const struct service *s = x->s;
    const struct api_model m = {s->model.name, s->created, s->model.lm->about.context};
    if (strcmp(rest, m.id)) {
        api_fail(err, API_no_model, "The model '%.100s' does not exist; this server has '%.100s'.",
                 rest, m.id);
        snprintf(err->param, sizeof err->param, "model");
        return false;
    }
    api_put_model(&x->answer.body, &m);
    return true;
}

static bool answer_health(struct exchange *x, const char *rest, struct api_error *err)
{
    (void)rest, (void)err;
    bool drains = x->s->draining;
    sb_str(&x->answer.body, drains ? "{\"status\":\"draining\"}" : "{\"status\":\"ok\"}");
    if (drains) x->answer.status = 503, x->answer.retry_after = 5;
    return true;
}

static bool answer_metrics(struct exchange *x, const char *rest, struct api_error *err)
{
    (void)rest, (void)err;
    x->answer.type = "text/plain; version=0.0.4; charset=utf-8";
    service_put_metrics(x->s, &x->answer.body);
    return true;
}

static bool answer_version(struct exchange *x, const char *rest, struct api_error *err)
{
    (void)rest, (void)err;
    const struct serve_model *m = &x->s->model;
    struct sb *out = &x->answer.body;
    sb_str(out, "{\"version\":");
    api_put_string(out, str_of(m->program ? m->program : "strata"));
    sb_str(out, ",\"model\":");
    api_put_string(out, str_of(m->name));
    sb_str(out, ",\"system_fingerprint\":");
    api_put_string(out, str_of(m->fingerprint ? m->fingerprint : ""));
    sb_str(out, ",\"chat_template\":");
    if (m->chat)
        api_put_string(out, str_of(chat_template_name(m->chat)));
    else
        sb_str(out, "null");
    sb_printf(out, ",\"depth\":%s}", x->s->o.depth ? "true" : "false");
    return true;
}

static bool answer_sites(struct exchange *x, const char *rest, struct api_error *err)
{
    (void)rest;
    const struct service *s = x->s;
    if (!s->o.depth)
        return api_fail(err, API_no_route,
                        "The weights of depth attention are given by servers that were started "
                        "with --depth only.");
    api_put_sites(&x->answer.body, s->model.lm->about.site, s->model.lm->about.num_sites);
    return true;
}

static bool answer_page(struct exchange *x, const char *rest, struct api_error *err)
{
    (void)rest, (void)err;
    x->answer.type = "text/html; charset=utf-8";
    x->answer.policy = page_policy;
    sb_add(&x->answer.body, page_html, page_bytes);
    return true;
}

#define GET(path, flags, name) {path, flags, API_ROUTES, answer_##name},
#define POST(path, flags, name) {path, flags, API_##name, NULL},
static const struct route routes[] = {
#include "runtime/route.def"
};

static bool is(const char *a, const char *b)
{
    return a && !strcmp(a, b);
}

/* Takes the same time for all given keys of one length. */
static bool same_key(const char *given, const char *key)
{
    size_t n = strlen(given), k = strlen(key);
    volatile unsigned char differ = n != k;
    for (size_t i = 0; i < n; i++) differ |= (unsigned char)(given[i] ^ key[k ? i % k : 0]);
    return !differ;
}

static bool check_key(const struct service *s, const struct http_head *h, struct api_error *err)
{
    const char *key = s->o.api_key, *bearer = h->authorization;
    if (!key) return true;
    bool ok = h->api_key && same_key(h->api_key, key);
    if (bearer && !strncasecmp(bearer, "Bearer ", 7)) {
        bearer += 7;
        while (*bearer == ' ') bearer++;
        ok |= same_key(bearer, key);
    }
    if (ok) return true;
    if (h->api_key || h->authorization) return api_fail(err, API_key, "The API key is wrong.");
    return api_fail(err, API_key,
                    "This server needs an API key: send 'Authorization: Bearer KEY' or 'X-Api-Key: "
                    "KEY'.");
}

/* What could make this server and a proxy before it see different requests. */
static bool check_framing(const struct service *s, const struct http_head *h, struct api_error *err)
{
    if ((int64_t)h->line_bytes > s->o.line_bytes)
        return api_fail(err, API_long_line, "The request's first line is longer than %lld bytes.",
                        (long long)s->o.line_bytes);
    if ((int64_t)h->headers > s->o.headers)
        return api_fail(err, API_large_head, "The request has more than %lld headers.",
                        (long long)s->o.headers);
    if ((int64_t)h->header_bytes > s->o.header_bytes)
        return api_fail(err, API_large_head, "The request's headers have more than %lld bytes.",
                        (long long)s->o.header_bytes);
    if (h->nul) return api_fail(err, API_invalid, "The request's target has a NUL.");
    if (h->repeated || (h->content_length && h->transfer_encoding))
        return api_fail(err, API_invalid,
                        "The request states its length more than once (Content-Length, "
                        "Transfer-Encoding).");
    if (h->transfer_encoding && strcasecmp(h->transfer_encoding, "chunked"))
        return api_fail(err, API_invalid, "Of transfer encodings only 'chunked' is supported.");
    return true;
}

static const struct route *find_route(const char *path)
{
    if (!strncmp(path, "/v1/", 4) && path[4]) path += 3;
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        const struct route *r = &routes[i];
        size_t n = strlen(r->path);
        if (r->flags & P ? !strncmp(path, r->path, n) && path[n] : is(path, r->path)) return r;
    }
    return NULL;
}

static bool no_route(const char *path, struct api_error *err)
{
    if (!strncmp(path, "/v1/", 4)) path += 3;
    if (is(path, "/embeddings") || is(path, "/responses"))
        return api_fail(err, API_no_route, "%s is not supported by this server.", path);
    return api_fail(err, API_no_route, "There is nothing at %.100s.", path);
}

static bool check_method(struct exchange *x, const struct http_head *h, struct api_error *err)
{
    bool get = x->route->answer;
    if (get ? is(h->method, "GET") || is(h->method, "HEAD") : is(h->method, "POST")) return true;
    x->answer.allow = x->s->o.cors ? get ? "GET, HEAD, OPTIONS" : "POST, OPTIONS"
                      : get        ? "GET, HEAD"
                                   : "POST";
    return api_fail(err, API_bad_method, "%.20s is not allowed here; %s is.", h->method,
                    get ? "GET" : "POST");
}

/* "application/json", with or without parameters; a charset has to be UTF-8. */
static bool check_type(const struct http_head *h, struct api_error *err)
{
    static const char json[] = "application/json";
    const char *type = h->content_type, *charset;
    size_t n = sizeof json - 1;
    if (!type || strncasecmp(type, json, n) || (type[n] && !strchr("; \t", type[n])))
        return api_fail(err, API_media_type, "The body's Content-Type must be application/json.");
    charset = strcasestr(type + n, "charset=");
    if (charset && strncasecmp(charset + 8, "utf-8", 5) && strncasecmp(charset + 8, "\"utf-8", 6))
        return api_fail(err, API_media_type, "The body's charset must be UTF-8.");
    if (h->content_encoding && strcasecmp(h->content_encoding, "identity"))
        return api_fail(err, API_media_type, "Compressed bodies are not supported.");
    return true;
}

/* The declared length, -1 where it is unknown, 0 without a body. */
static int64_t declared(const struct http_head *h)
{
    char *end;
    if (h->transfer_encoding) return -1;
    if (!h->content_length) return 0;
    errno = 0;
    long long n = strtoll(h->content_length, &end, 10);
    return errno || *end || n < 0 ? INT64_MAX : n;
}

static bool too_large(const struct service *s, struct api_error *err)
{
    return api_fail(err, API_too_large, "The body is larger than %lld bytes.",
                    (long long)s->o.body_bytes);
}

/* Whether there would be room for the request if its body were here. Nothing is kept for it yet: a
 * client that sends its body slowly must not hold a place in the queue meanwhile. */
static bool check_room(struct exchange *x, int64_t length, struct api_error *err)
{
    struct service *s = x->s;
    if (s->draining) return api_fail(err, API_draining, "The server is shutting down.");
    if (length > s->o.body_bytes) return too_large(s, err);
    if (!(x->route->flags & M)) return true;
    int64_t guess = length < 0 ? 256 : length / 4 + 1;
    if (!engine_reserve(s->engine, guess)) return exchange_no_place(x, err);
    engine_release(s->engine, guess);
    return true;
}

bool exchange_take_room(struct exchange *x, struct api_error *err)
{
    struct service *s = x->s;
    x->reading = true;
    if (atomic_fetch_add(&s->reading, 1) >= s->o.reading)
        return api_fail(err, API_overloaded, "Too many requests are being read; try again later.");
    if (!(x->route->flags & M)) return true;
    x->guess = (int64_t)x->body.n / 4 + 1;
    if (!engine_reserve(s->engine, x->guess)) return exchange_no_place(x, err);
    x->places = 1;
    return true;
}

bool exchange_no_place(struct exchange *x, struct api_error *err)
{
    if (x->s->draining) return api_fail(err, API_draining, "The server is shutting down.");
    return api_fail(err, API_overloaded, "The queue is full; try again later.");
}

/* A browser asks whether a page of another origin may: with that option it may. It sends no key. */
static bool preflight(struct exchange *x, const struct http_head *h)
{
    if (!x->s->o.cors || !is(h->method, "OPTIONS")) return false;
    x->answer.status = 204;
    x->answer.preflight = true;
    x->answer.allow = "GET, HEAD, POST, OPTIONS";
    return true;
}

bool exchange_check(struct exchange *x, const struct http_head *h, struct api_error *err)
{
    const struct service *s = x->s;
    int64_t length = declared(h);
    x->has_body = length != 0;
    x->route = find_route(h->path);
    bool open = x->route && x->route->flags & O;
    if (!check_framing(s, h, err)) return false;
    if (preflight(x, h)) return true;
    if (!open && !check_key(s, h, err)) return false;
    if (!x->route) return no_route(h->path, err);
    if (!check_method(x, h, err)) return false;
    if (x->route->answer) {
        const char *path = !strncmp(h->path, "/v1/", 4) && h->path[4] ? h->path + 3 : h->path;
        x->answer.status = 200;
        return x->route->answer(x, path + strlen(x->route->path), err);
    }
    x->kind = x->route->body;
    x->wants_body = true;
    return check_type(h, err) && check_room(x, length, err);
}
