#include "runtime/api_text.h"
#include "runtime/utf8.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

static void put_escaped(struct sb *out, unsigned char b)
{
    static const char letters[] = "btn\vfr"; /* of 8 to 13; there is none for 11 */
    sb_char(out, '\\');
    if (b == '"' || b == '\\')
        sb_char(out, (char)b);
    else if (b >= 8 && b <= 13 && b != 11)
        sb_char(out, letters[b - 8]);
    else
        sb_printf(out, "u%04x", b);
}

void api_put_string(struct sb *out, struct str s)
{
    uint32_t cp;
    size_t done = 0; /* bytes that are written */
    sb_char(out, '"');
    for (size_t i = 0; i < s.n;) {
        unsigned char b = (unsigned char)s.p[i];
        int n = utf8_next(s.p + i, s.n - i, &cp);
        if (n > 0 && b >= 0x20 && b != '"' && b != '\\') {
            i += (size_t)n;
            continue;
        }
        if (i > done) sb_add(out, s.p + done, i - done);
        if (n > 0)
            put_escaped(out, b);
        else
            sb_str(out, "\xef\xbf\xbd");
        done = n < 0 ? s.n : i + 1; /* a cut character at the end is one U+FFFD */
        i = done;
    }
    if (s.n > done) sb_add(out, s.p + done, s.n - done);
    sb_char(out, '"');
}

static void put_z(struct sb *out, const char *z)
{
    api_put_string(out, str_of(z));
}
static void put_z_or_null(struct sb *out, const char *z)
{
    if (z && *z)
        put_z(out, z);
    else
        sb_str(out, "null");
}

void api_reply_id(char out[API_ID_BYTES], enum api_route route, uint64_t high, uint64_t low)
{
    snprintf(out, API_ID_BYTES, "%s-%016" PRIx64 "%016" PRIx64,
             route == API_chat ? "chatcmpl" : "cmpl", high, low);
}

static void put_logprob(struct sb *out, double x)
{
    if (x >= 0)
        sb_str(out, "0.0");
    else if (!(x > -9999))
        sb_str(out, "-9999.0");
    else
        sb_printf(out, "%.9g", x);
}

/* A token's text as a string; its bytes spelled out where they are no text. */
static void put_token(struct sb *out, struct str bytes)
{
    if (utf8_check(bytes) == bytes.n) {
        api_put_string(out, bytes);
        return;
    }
    sb_str(out, "\"bytes:");
    for (size_t i = 0; i < bytes.n; i++) sb_printf(out, "\\\\x%02x", (unsigned char)bytes.p[i]);
    sb_char(out, '"');
}

/* The members token, logprob and bytes. */
static void put_token_members(struct sb *out, struct str bytes, double logprob)
{
    sb_str(out, "\"token\":");
    put_token(out, bytes);
    sb_str(out, ",\"logprob\":");
    put_logprob(out, logprob);
    sb_str(out, ",\"bytes\":[");
    for (size_t i = 0; i < bytes.n; i++)
        sb_printf(out, "%s%u", i ? "," : "", (unsigned char)bytes.p[i]);
    sb_char(out, ']');
}

static void put_chat_logprobs(struct sb *out, const struct api_logprobs *l)
{
    sb_str(out, "{\"content\":[");
    for (size_t i = 0; i < l->n; i++) {
        const struct api_token *t = &l->token[i];
        sb_str(out, i ? ",{" : "{");
        put_token_members(out, t->bytes, t->logprob);
        sb_str(out, ",\"top_logprobs\":[");
        for (size_t k = 0; k < t->num_top; k++) {
            sb_str(out, k ? ",{" : "{");
            put_token_members(out, t->top[k].bytes, t->top[k].logprob);
            sb_char(out, '}');
        }
        sb_str(out, "]}");
    }
    sb_str(out, "],\"refusal\":null}");
}

/* {TOKEN: logprob, ...}; of tokens with the same text only the first, which is the likeliest. */
static void put_top_object(struct sb *out, const struct api_token *t)
{
    sb_char(out, '{');
    for (size_t k = 0; k < t->num_top; k++) {
        bool seen = false;
        for (size_t j = 0; j < k; j++) seen |= str_eq(t->top[j].bytes, t->top[k].bytes);
        if (seen) continue;
        if (k) sb_char(out, ',');
        put_token(out, t->top[k].bytes);
        sb_char(out, ':');
        put_logprob(out, t->top[k].logprob);
    }
    sb_char(out, '}');
}

/* Characters that begin in these bytes. */
static size_t characters(struct str s)
{
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++) n += ((unsigned char)s.p[i] & 0xc0) != 0x80;
    return n;
}

static void put_text_logprobs(struct sb *out, const struct api_logprobs *l)
{
    const struct api_token *t = l->token;
    size_t offset = l->offset;
    sb_str(out, "{\"tokens\":[");
    for (size_t i = 0; i < l->n; i++) {
        if (i) sb_char(out, ',');
        put_token(out, t[i].bytes);
    }
    sb_str(out, "],\"token_logprobs\":[");
    for (size_t i = 0; i < l->n; i++) {
        if (i) sb_char(out, ',');
        if (t[i].no_logprob)
            sb_str(out, "null");
        else
            put_logprob(out, t[i].logprob);
    }
    sb_str(out, "],\"top_logprobs\":[");
    for (size_t i = 0; i < l->n; i++) {
        if (i) sb_char(out, ',');
        if (t[i].no_logprob)
            sb_str(out, "null");
        else
            put_top_object(out, &t[i]);
    }
    sb_str(out, "],\"text_offset\":[");
    for (size_t i = 0; i < l->n; i++) {
        sb_printf(out, "%s%zu", i ? "," : "", offset);
        offset += characters(t[i].bytes);
    }
    sb_str(out, "]}");
}

static void put_logprobs(struct sb *out, enum api_route route, const struct api_logprobs *l)
{
    sb_str(out, ",\"logprobs\":");
    if (!l)
        sb_str(out, "null");
    else if (route == API_chat)
        put_chat_logprobs(out, l);
    else
        put_text_logprobs(out, l);
}

static void put_finish(struct sb *out, enum api_finish f)
{
    static const char *const words[] = {"null", "\"stop\"", "\"length\""};
    sb_printf(out, ",\"finish_reason\":%s}", words[f]);
}

/* Everything up to the choices. */
static void put_head(struct sb *out, const struct api_reply *r, const char *object)
{
    sb_str(out, "{\"id\":");
    put_z(out, r->id);
    sb_printf(out, ",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":", object, r->created);
    put_z(out, r->model);
    sb_str(out, ",\"system_fingerprint\":");
    put_z_or_null(out, r->fingerprint);
    sb_str(out, ",\"choices\":[");
}

static void put_usage_object(struct sb *out, const struct api_usage *u)
{
    sb_printf(out,
              "{\"prompt_tokens\":%" PRId64 ",\"completion_tokens\":%" PRId64
              ",\"total_tokens\":%" PRId64 ",\"prompt_tokens_details\":{\"cached_tokens\":%" PRId64
              "},\"completion_tokens_details\":{\"reasoning_tokens\":%" PRId64 "}}",
              u->prompt, u->completion, u->prompt + u->completion, u->cached, u->reasoning);
}

void api_put_answer(struct sb *out, const struct api_reply *r, const struct api_choice *c, size_t n,
                    const struct api_usage *u)
{
    bool chat = r->route == API_chat;
    put_head(out, r, chat ? "chat.completion" : "text_completion");
    for (size_t i = 0; i < n; i++) {
        sb_printf(out, "%s{\"index\":%" PRId64, i ? "," : "", c[i].index);
        sb_str(out, chat ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"text\":");
        api_put_string(out, c[i].text);
        if (chat) sb_str(out, ",\"refusal\":null}");
        put_logprobs(out, r->route, c[i].logprobs);
        put_finish(out, c[i].finish);
    }
    sb_str(out, "],\"usage\":");
    put_usage_object(out, u);
    sb_char(out, '}');
}

static void open_chunk(struct sb *out, const struct api_reply *r)
{
    sb_str(out, "data: ");
    put_head(out, r, r->route == API_chat ? "chat.completion.chunk" : "text_completion");
}
static void close_chunk(struct sb *out, const struct api_reply *r)
{
    sb_str(out, r->include_usage ? ",\"usage\":null}\n\n" : "}\n\n");
}

static void put_site_list(struct sb *out, const struct lm_site *site, size_t n)
{
    sb_str(out, "\"sites\":[");
    for (size_t i = 0; i < n; i++) {
        sb_str(out, i ? ",{\"name\":" : "{\"name\":");
        put_z(out, site[i].name);
        sb_printf(out, ",\"sources\":%" PRId64 ",\"partial\":%s}", site[i].sources,
                  site[i].partial ? "true" : "false");
    }
    sb_char(out, ']');
}

static void put_depth(struct sb *out, const struct api_depth *d)
{
    const float *w = d->weights;
    sb_str(out, ",\"strata_depth\":{");
    if (d->names) {
        put_site_list(out, d->site, d->num_sites);
        sb_char(out, ',');
    }
    sb_str(out, "\"weights\":[");
    for (size_t i = 0; i < d->num_sites; i++) {
        sb_str(out, i ? ",[" : "[");
        for (int64_t k = 0; k < d->site[i].sources; k++, w++) {
            if (k) sb_char(out, ',');
            if (isfinite(*w))
                sb_printf(out, "%.6g", (double)*w);
            else
                sb_str(out, "null");
        }
        sb_char(out, ']');
    }
    sb_str(out, "]}");
}

void api_put_begin(struct sb *out, const struct api_reply *r, int64_t index)
{
    if (r->route != API_chat) return;
    open_chunk(out, r);
    sb_printf(out,
              "{\"index\":%" PRId64 ",\"delta\":{\"role\":\"assistant\",\"content\":\"\","
              "\"refusal\":null},\"logprobs\":null",
              index);
    put_finish(out, API_unfinished);
    sb_char(out, ']');
    close_chunk(out, r);
}

static void put_one_delta(struct sb *out, const struct api_reply *r, const struct api_choice *c,
                          enum api_finish finish)
{
    bool chat = r->route == API_chat, last = finish != API_unfinished;
    open_chunk(out, r);
    sb_printf(out, "{\"index\":%" PRId64, c->index);
    if (chat) {
        sb_str(out, ",\"delta\":{");
        if (!last) {
            sb_str(out, "\"content\":");
            api_put_string(out, c->text);
        }
        sb_char(out, '}');
    } else {
        sb_str(out, ",\"text\":");
        api_put_string(out, last ? STR("") : c->text);
    }
    put_logprobs(out, r->route, last ? NULL : c->logprobs);
    put_finish(out, finish);
    sb_char(out, ']');
    if (c->depth && !last) put_depth(out, c->depth);
    close_chunk(out, r);
}

void api_put_delta(struct sb *out, const struct api_reply *r, const struct api_choice *c)
{
    if (c->text.n || (c->logprobs && c->logprobs->n) || c->depth)
        put_one_delta(out, r, c, API_unfinished);
    if (c->finish != API_unfinished) put_one_delta(out, r, c, c->finish);
}

void api_put_usage(struct sb *out, const struct api_reply *r, const struct api_usage *u)
{
    if (!r->include_usage) return;
    open_chunk(out, r);
    sb_str(out, "],\"usage\":");
    put_usage_object(out, u);
    sb_str(out, "}\n\n");
}

void api_put_done(struct sb *out)
{
    sb_str(out, "data: [DONE]\n\n");
}

void api_put_error(struct sb *out, const struct api_error *e)
{
    sb_str(out, "{\"error\":{\"message\":");
    put_z(out, e->message);
    sb_str(out, ",\"type\":");
    put_z_or_null(out, e->type);
    sb_str(out, ",\"param\":");
    put_z_or_null(out, e->param);
    sb_str(out, ",\"code\":");
    put_z_or_null(out, e->code);
    sb_str(out, "}}");
}

void api_put_error_event(struct sb *out, const struct api_error *e)
{
    sb_str(out, "data: ");
    api_put_error(out, e);
    sb_str(out, "\n\n");
}

void api_put_ping(struct sb *out)
{
    sb_str(out, ": ping\n\n");
}

void api_put_model(struct sb *out, const struct api_model *m)
{
    sb_str(out, "{\"id\":");
    put_z(out, m->id);
    sb_printf(out,
              ",\"object\":\"model\",\"created\":%" PRId64
              ",\"owned_by\":\"strata\",\"max_model_len\":%" PRId64 "}",
              m->created, m->context);
}

void api_put_models(struct sb *out, const struct api_model *m, size_t n)
{
    sb_str(out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i) sb_char(out, ',');
        api_put_model(out, &m[i]);
    }
    sb_str(out, "]}");
}

void api_put_sites(struct sb *out, const struct lm_site *site, size_t n)
{
    sb_char(out, '{');
    put_site_list(out, site, n);
    sb_char(out, '}');
}

void api_put_tokens(struct sb *out, const int32_t *ids, size_t n, const struct str *texts,
                    int64_t context)
{
    sb_printf(out, "{\"count\":%zu,\"max_model_len\":%" PRId64 ",\"tokens\":[", n, context);
    for (size_t i = 0; i < n; i++) sb_printf(out, "%s%" PRId32, i ? "," : "", ids[i]);
    sb_str(out, "],\"token_strs\":");
    if (!texts) sb_str(out, "null");
    for (size_t i = 0; texts && i < n; i++) {
        sb_char(out, i ? ',' : '[');
        put_token(out, texts[i]);
    }
    if (texts) sb_str(out, n ? "]" : "[]");
    sb_char(out, '}');
}

void api_put_text(struct sb *out, struct str text)
{
    sb_str(out, "{\"prompt\":");
    api_put_string(out, text);
    sb_char(out, '}');
}
