/* Bodies: to requests of the engine, or straight to an answer. On a thread of the service. */
#include "runtime/exchange.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <xxhash.h>

static bool field(struct api_error *err, const char *param, const char *code, const char *text)
{
    api_fail(err, API_invalid, "%s", text);
    err->code = code;
    snprintf(err->param, sizeof err->param, "%s", param);
    return false;
}

static bool machine(struct api_error *err)
{
    return api_fail(err, API_internal, "The server is short of memory.");
}

/* A failure of the tokenizer or a template: the text is to blame, or memory. */
static bool told(enum rt_status st, const char *param, const struct rt_error *why,
                 struct api_error *err)
{
    if (st == RT_ok) return true;
    if (st != RT_user) return machine(err);
    char text[400];
    snprintf(text, sizeof text, "'%s': %.350s.", param, why->text);
    return field(err, param, "invalid_value", text);
}

/* ---- prompts to ids */

static bool put_bos(const struct service *s, struct tok_ids *ids, struct api_error *err)
{
    if (s->model.bos < 0) return true;
    return tok_ids_add(ids, (int32_t)s->model.bos, NULL) == RT_ok || machine(err);
}

static bool no_chat(struct api_error *err)
{
    return field(err, "messages", "unsupported_parameter",
                 "This model has no chat template; use /v1/completions.");
}

static bool encode_chat(struct exchange *x, bool generate, struct tok_ids *ids,
                        struct api_error *err)
{
    const struct service *s = x->s;
    const struct api_request *r = x->r;
    struct chat_prompt p;
    struct rt_error why;
    size_t bad = 0;
    bool special = false;
    char param[32] = "messages";
    if (!s->model.chat) return no_chat(err);
    enum rt_status st = chat_render(r->arena, s->model.chat, r->messages, r->num_messages, generate,
                                    &p, &bad, &why);
    if (st != RT_ok) {
        snprintf(param, sizeof param, "messages[%zu]", bad);
        return told(st, param, &why, err);
    }
    for (size_t i = 0; i < p.n; i++) special |= p.piece[i].special;
    /* a template without special tokens is a text like any other */
    if (!special && !put_bos(s, ids, err)) return false;
    return told(chat_encode(s->model.tok, &p, ids, &why), "messages", &why, err);
}

static bool encode_text(struct exchange *x, const struct api_prompt *p, bool bos,
                        struct tok_ids *ids, struct api_error *err)
{
    struct rt_error why;
    if (p->is_ids) {
        for (size_t i = 0; i < p->num_ids; i++)
            if (tok_ids_add(ids, p->ids[i], NULL) != RT_ok) return machine(err);
        return true;
    }
    if (bos && !put_bos(x->s, ids, err)) return false;
    return told(tokenizer_encode(x->s->model.tok, p->text, ids, &why), "prompt", &why, err);
}

/* ---- /tokenize and /detokenize */

static bool answer_tokens(struct exchange *x, struct api_error *err)
{
    const struct api_request *r = x->r;
    const struct tokenizer *t = x->s->model.tok;
    struct tok_ids ids = {0};
    bool ok = r->messages ? encode_chat(x, r->add_generation_prompt, &ids, err)
                          : encode_text(x, r->prompt, r->add_special_tokens, &ids, err);
    if (ok) {
        struct str *texts = r->token_texts ? NEW(r->arena, struct str, ids.n) : NULL;
        for (size_t i = 0; texts && i < ids.n; i++) texts[i] = service_piece(t, ids.p[i]);
        api_put_tokens(&x->answer.body, ids.p, ids.n, texts, x->s->model.lm->about.context);
    }
    free(ids.p);
    return ok;
}

static void answer_text(struct exchange *x)
{
    struct sb text = {0};
    const struct api_prompt *p = x->r->prompt;
    tokenizer_decode(x->s->model.tok, p->ids, p->num_ids, &text);
    api_put_text(&x->answer.body, (struct str){text.p, text.n});
    sb_free(&text);
}

/* ---- requests of the engine */

static bool check_supported(struct exchange *x, struct api_error *err)
{
    const struct api_request *r = x->r;
    const struct lm_about *about = &x->s->model.lm->about;
    if (r->route == API_chat && !x->s->model.chat) return no_chat(err);
    if (r->echo && r->logprobs)
        return field(err, "echo", "unsupported_value",
                     "'echo' together with 'logprobs' is not supported.");
    if (r->priority && x->s->o.no_priority)
        return field(err, "priority", "unsupported_parameter",
                     "'priority' is not taken by this server: all requests are equal.");
    if (r->depth && !x->s->o.depth)
        return field(err, "strata_depth", "unsupported_parameter",
                     "'strata_depth' needs a server that was started with --depth.");
    if (r->depth && !about->num_sites)
        return field(err, "strata_depth", "unsupported_parameter",
                     "'strata_depth': this model has no depth attention.");
    return true;
}

/* Places in the queue for all answers; the first was taken before the body was read. More than
 * there are in all is the request's fault: it would be in vain to come again. */
static bool reserve(struct exchange *x, size_t n, struct api_error *err)
{
    int64_t all = x->s->o.engine.max_waiting;
    if (all && n > (size_t)all) {
        char text[128];
        snprintf(text, sizeof text,
                 "%zu answers are asked for at once; the queue of this server has %lld places.", n,
                 (long long)all);
        return field(err, "n", "invalid_value", text);
    }
    while ((size_t)x->places < n) {
        if (!engine_reserve(x->s->engine, 0)) return exchange_no_place(x, err);
        x->places++;
    }
    return true;
}

static struct stops *open_stops(struct exchange *x)
{
    const struct api_request *r = x->r;
    struct str text[API_STOPS + 8];
    size_t n = 0;
    const char *z;
    for (; n < r->num_stops; n++) text[n] = r->stop[n];
    for (int i = 0;
         x->kind == API_chat && n < API_STOPS + 8 && (z = chat_stop_text(x->s->model.chat, i)); i++)
        text[n++] = str_of(z);
    return stops_open(r->arena, text, n);
}

/* Answers of the request: of each prompt best_of, numbered one after the other. */
static void open_choices(struct exchange *x)
{
    const struct api_request *r = x->r;
    size_t n = r->num_prompts ? r->num_prompts : 1, each = (size_t)r->best_of;
    struct choice *all = NEW(r->arena, struct choice, n * each);
    for (size_t i = 0; i < n * each; i++) {
        struct choice *c = &all[i];
        c->x = x;
        c->index = (int64_t)i;
        c->prompt = i / each;
        c->text.stops = open_stops(x);
        c->text.utf8.begun = x->kind == API_completions; /* it goes on with the prompt's text */
        c->space = x->kind == API_chat && chat_answer_space(x->s->model.chat);
        c->log.width = (size_t)r->top_logprobs;
    }
    uint64_t high = service_random(), low = service_random();
    api_reply_id(x->id, x->kind, high, low);
    x->reply = (struct api_reply){.route = x->kind,
                                  .id = x->id,
                                  .created = time(NULL),
                                  .model = x->s->model.name,
                                  .fingerprint = x->s->model.fingerprint,
                                  .include_usage = r->include_usage};
    if (r->echo) x->echo = NEW(r->arena, struct str, n);
    pthread_mutex_lock(&x->lock);
    x->choice = all;
    x->num_choices = n * each;
    x->streams = r->stream;
    pthread_mutex_unlock(&x->lock);
}

static void echo(struct exchange *x, size_t prompt, const struct tok_ids *ids)
{
    const struct api_prompt *p = &x->r->prompt[prompt];
    struct sb text = {0};
    if (!p->is_ids) {
        x->echo[prompt] = p->text;
        return;
    }
    tokenizer_decode(x->s->model.tok, ids->p, ids->n, &text);
    x->echo[prompt] = text.n ? sb_take(&text, x->r->arena) : STR("");
    sb_free(&text);
}

static struct engine_request engine_request(struct exchange *x)
{
    const struct api_request *r = x->r;
    const struct service *s = x->s;
    struct engine_bias *bias = NEW(r->arena, struct engine_bias, r->num_bias);
    for (size_t i = 0; i < r->num_bias; i++)
        bias[i] = (struct engine_bias){r->bias[i].id, (float)r->bias[i].add};
    struct str salt = r->cache_salt;
    return (struct engine_request){.min_tokens = r->min_tokens,
                                   .sampler = {.temperature = r->temperature,
                                               .top_p = r->top_p,
                                               .top_k = r->top_k,
                                               .min_p = r->min_p,
                                               .presence = r->presence_penalty,
                                               .frequency = r->frequency_penalty,
                                               .repetition = r->repetition_penalty},
                                   .bias = bias,
                                   .num_bias = r->num_bias,
                                   .stop = s->stop,
                                   .num_stop = r->ignore_eos          ? 0
                                               : r->route == API_chat ? s->num_chat_stop
                                                                      : s->num_stop,
                                   .logprobs = r->logprobs || r->best_of > r->n,
                                   .top_logprobs = (int)r->top_logprobs,
                                   .depth = r->depth,
                                   .json = r->json,
                                   .salt = salt.n ? XXH3_64bits(salt.p, salt.n) : 0,
                                   .priority = r->priority,
                                   .token = choice_token,
                                   .done = choice_done};
}

static bool submit(struct exchange *x, struct choice *c, struct engine_request *q,
                   struct api_error *err)
{
    struct rt_error why;
    uint64_t id;
    q->arg = c;
    q->sampler.seed = x->r->has_seed ? (uint64_t)x->r->seed + (uint64_t)c->index : service_random();
    exchange_hold(x);
    pthread_mutex_lock(&x->lock);
    x->pending++;
    pthread_mutex_unlock(&x->lock);
    enum rt_status st = engine_submit(x->s->engine, q, x->guess, &id, &why);
    if (st != RT_ok) {
        exchange_part_done(x);
        exchange_drop(x);
        if (st == RT_user) return api_fail(err, API_invalid, "%.300s.", why.text);
        return machine(err);
    }
    x->places--;
    x->guess = 0;
    pthread_mutex_lock(&x->lock);
    c->id = id;
    c->submitted = true;
    bool ended = x->gone || x->failed;
    pthread_mutex_unlock(&x->lock);
    if (ended) engine_cancel(x->s->engine, id);
    return true;
}

/* Encodes a prompt and submits its answers. */
static bool submit_prompt(struct exchange *x, size_t prompt, struct engine_request *q,
                          struct api_error *err)
{
    const struct api_request *r = x->r;
    struct tok_ids ids = {0};
    size_t each = (size_t)r->best_of;
    bool ok = r->route == API_chat ? encode_chat(x, true, &ids, err)
                                   : encode_text(x, &r->prompt[prompt], true, &ids, err);
    if (ok && !ids.n) ok = field(err, "prompt", "invalid_value", "'prompt' has no tokens.");
    ok = ok &&
         api_fit_context(r, (int64_t)ids.n, x->s->model.lm->about.context, &q->max_tokens, err);
    if (ok && r->echo) echo(x, prompt, &ids);
    q->prompt = ids.p;
    q->num_prompt = (int64_t)ids.n;
    for (size_t k = 0; ok && k < each; k++) ok = submit(x, &x->choice[prompt * each + k], q, err);
    free(ids.p);
    return ok;
}

static bool generate(struct exchange *x, struct api_error *err)
{
    size_t prompts = x->r->num_prompts ? x->r->num_prompts : 1;
    if (!check_supported(x, err) || !reserve(x, prompts * (size_t)x->r->best_of, err)) return false;
    open_choices(x);
    atomic_fetch_add(&x->s->tokenized, 1);
    struct engine_request q = engine_request(x);
    for (size_t i = 0; i < prompts && !exchange_ended(x); i++)
        if (!submit_prompt(x, i, &q, err)) return false;
    return true;
}

/* Once in the life of a server: what clients send without effect. */
static void warn(struct exchange *x)
{
    if (!x->r->unknown[0] || atomic_exchange(&x->s->warned, true)) return;
    struct sb name = {0};
    api_put_string(&name, str_of(x->r->unknown));
    fprintf(stderr,
            "warning: the field %s of a request is not known and is ignored (--strict "
            "refuses such requests); this is said once\n",
            name.p);
    sb_free(&name);
}

void exchange_work(struct exchange *x)
{
    struct service *s = x->s;
    struct api_error err;
    const struct api_limits lim = {s->model.name, s->model.lm->about.vocab, s->o.strict};
    x->r = api_parse(x->kind, (struct str){x->body.p ? x->body.p : "", x->body.n}, &lim, &err);
    bool ok = x->r;
    if (ok) {
        warn(x);
        x->answer.status = 200;
        switch (x->kind) {
        case API_tokenize: ok = answer_tokens(x, &err); break;
        case API_detokenize: answer_text(x); break;
        case API_chat:
        case API_completions: ok = generate(x, &err); break;
        case API_ROUTES: BUG("a route without a reader");
        }
    }
    if (!ok) exchange_fail(x, &err);
}
