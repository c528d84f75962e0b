/* Fuzz target: a request as text (method, target, headers, empty line, body) through the server
 * without its sockets, over a model that is a table. Whatever it is, it gets an answer that is what
 * it says it is, the engine has nothing left of it, and no place stays reserved. */
#include <jansson.h>
#include <stdlib.h>
#include <strings.h>
#include "runtime/service.h"
#include "runtime/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCAB = 258, CONTEXT = 256, BATCH = 4 };
static float logits[BATCH * VOCAB];
static float weights[CONTEXT * 2];

static enum rt_status run(struct lm *m, const struct lm_call *c, struct rt_error *err)
{
    (void)m, (void)err;
    /* one token is as good as certain, also for seeds that the server draws; 0 never is among the
     * likely ones, since no key of jansson's objects may have a NUL */
    for (int64_t b = 0; b < c->B; b++) {
        int32_t last = c->tokens[(b + 1) * c->T - 1];
        float *row = logits + b * VOCAB;
        for (int i = 0; i < VOCAB; i++) row[i] = (float)i / VOCAB;
        row[1 + (last * 31 + c->past[b] * 7) % (VOCAB - 1)] = 60;
    }
    return RT_ok;
}
static const float *get_logits(const struct lm *m)
{
    (void)m;
    return logits;
}
static const float *get_depth(const struct lm *m, size_t i)
{
    (void)m, (void)i;
    return weights;
}
static enum rt_status copy_state(struct lm *m, int32_t from, int32_t to, struct rt_error *err)
{
    (void)m, (void)from, (void)to, (void)err;
    return RT_ok;
}
static enum rt_status save(struct lm *m, int32_t i, void *to, struct rt_error *err)
{
    (void)m, (void)i, (void)err;
    memset(to, 0, 4);
    return RT_ok;
}
static enum rt_status load(struct lm *m, int32_t i, const void *from, struct rt_error *err)
{
    (void)m, (void)i, (void)from, (void)err;
    return RT_ok;
}
static void no_close(struct lm *m)
{
    (void)m;
}

static struct server {
    struct engine *engine;
    struct service *plain, *keyed;
} server;

static void ready(void *arg, struct exchange *x)
{
    (void)arg, (void)x;
}

static void open_server(void)
{
    static const struct lm_ops ops = {run,  get_logits, get_depth, copy_state, save,
                                      load, save,       load,      no_close};
    static const struct lm_site site = {"layers.0.attn_res", 2, true};
    static struct lm lm = {.ops = &ops,
                           .about = {.vocab = VOCAB,
                                     .context = CONTEXT,
                                     .pages = 64,
                                     .batch = BATCH,
                                     .page_bytes = 4,
                                     .site = &site,
                                     .num_sites = 1}};
    static const int32_t stop[] = {256};
    static struct serve_model m = {.lm = &lm, .name = "m", .bos = 257, .stop = stop, .num_stop = 1};
    static struct serve_options o;
    struct tokenizer *tok;
    const struct service_hooks hooks = {ready, NULL};
    CHECK(tokenizer_bytes(&tok, NULL) == RT_ok);
    m.tok = tok;
    m.chat = chat_template_find("plain");
    serve_defaults(&o);
    o.parse_threads = 0;
    o.depth = true;
    o.body_bytes = 20000;
    o.answer_bytes = 100000;
    service_engine(&m, &o.engine);
    CHECK(engine_open(&lm, &o.engine, &server.engine, NULL) == RT_ok);
    CHECK(service_open(&m, &o, server.engine, &hooks, &server.plain, NULL) == RT_ok);
    o.api_key = "key";
    m.chat = NULL;
    o.cors = "*";
    o.strict = true;
    CHECK(service_open(&m, &o, server.engine, &hooks, &server.keyed, NULL) == RT_ok);
}

/* Cuts a line off the text and terminates it. */
static char *line(char **text, char *end)
{
    char *begin = *text, *p = begin;
    while (p < end && *p != '\n') p++;
    *text = p < end ? p + 1 : end;
    *p = 0;
    return begin;
}

static void read_head(struct http_head *h, char **text, char *end)
{
    h->method = line(text, end);
    char *path = strchr(h->method, ' ');
    if (path) *path++ = 0;
    h->path = path ? path : "/";
    for (char *l; *text < end && *(l = line(text, end));) {
        char *value = strchr(l, ':');
        if (!value) continue;
        *value++ = 0;
        while (*value == ' ') value++;
        h->headers++;
        h->header_bytes += strlen(l) + strlen(value) + 4;
        if (!strcasecmp(l, "Authorization")) h->authorization = value;
        if (!strcasecmp(l, "X-Api-Key")) h->api_key = value;
        if (!strcasecmp(l, "Content-Type")) h->content_type = value;
        if (!strcasecmp(l, "Content-Encoding")) h->content_encoding = value;
        if (!strcasecmp(l, "Transfer-Encoding")) h->transfer_encoding = value;
        if (!strcasecmp(l, "Content-Length")) {
            h->repeated = h->content_length;
            h->content_length = value;
        }
    }
}

static void check_answer(const struct http_answer *a)
{
    const char *p = a->body.p ? a->body.p : "";
    CHECK(a->status >= 200 && a->status < 600 &&
          utf8_check((struct str){p, a->body.n}) == a->body.n);
    if (a->status == 204 || strcmp(a->type, "application/json")) return;
    json_t *j = json_loadb(p, a->body.n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    if (!j) BUG("no JSON: %s", p);
    CHECK(!json_object_get(j, "error") == (a->status < 400));
    json_decref(j);
}

/* Events: "data: JSON" or [DONE] or an error, which are the last, or comments. */
static void check_stream(const struct sb *s)
{
    bool ended = false;
    for (const char *p = s->p; p < s->p + s->n;) {
        const char *end = strstr(p, "\n\n");
        CHECK(end && !ended);
        if (strncmp(p, "data: [DONE]", 12)) {
            CHECK(!strncmp(p, "data: ", 6));
            json_t *j = json_loadb(p + 6, (size_t)(end - p) - 6,
                                   JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
            CHECK(j);
            ended = json_object_get(j, "error");
            json_decref(j);
        } else {
            ended = true;
        }
        p = end + 2;
    }
    CHECK(ended);
}

static void read_answer(struct exchange *x)
{
    struct http_answer a;
    struct sb all = {0};
    char buf[1000];
    int64_t n;
    while (engine_step(server.engine)) continue;
    switch (exchange_state(x)) {
    case EXCHANGE_answer:
        exchange_answer(x, &a);
        check_answer(&a);
        sb_free(&a.body);
        break;
    case EXCHANGE_stream:
        while ((n = exchange_read(x, buf, sizeof buf)) > 0) sb_add(&all, buf, (size_t)n);
        if (n == -1)
            check_stream(&all);
        else
            CHECK(n == -2 && exchange_overflowed(x));
        sb_free(&all);
        break;
    case EXCHANGE_body:
    case EXCHANGE_wait: BUG("an exchange does not end");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct http_head h = {.line_bytes = size < 100 ? size : 100};
    struct engine_stats e;
    if (!server.engine) open_server();
    char *copy = malloc(size + 1), *p = copy, *end = copy + size;
    CHECK(copy);
    if (size) memcpy(copy, data, size);
    *end = 0;
    read_head(&h, &p, end);
    struct service *s = h.authorization ? server.keyed : server.plain;
    struct exchange *x = service_begin(s, &h);
    while (exchange_state(x) == EXCHANGE_body && p < end) {
        size_t n = end - p < 77 ? (size_t)(end - p) : 77;
        if (!exchange_add(x, p, n)) break;
        p += n;
    }
    if (exchange_state(x) == EXCHANGE_body) exchange_submit(x);
    if (size % 7 == 3) exchange_cancel(x);
    if (size % 7 == 3)
        while (engine_step(server.engine)) continue;
    else
        read_answer(x);
    exchange_drop(x);
    engine_stats(server.engine, &e);
    CHECK(!e.running && !e.waiting && !service_active(s));
    free(copy);
    return 0;
}
