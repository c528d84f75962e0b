/* Tokens to answers: on the engine's thread until an exchange is finished. */
#include "runtime/exchange.h"
#include "runtime/mem.h"
#include <stdio.h>
#include <stdlib.h>

struct str service_piece(const struct tokenizer *t, int32_t id)
{
    if (id < 0 || id >= t->vocab_size) return STR("\xef\xbf\xbd");
    return t->ops->piece(t, id);
}

void choice_close(struct choice *c)
{
    answer_text_close(&c->text);
    sb_free(&c->shown);
    free(c->log.token);
    free(c->log.begin);
    free(c->log.top);
}

/* Characters that begin in these bytes. */
static size_t characters(struct str s)
{
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++) n += ((unsigned char)s.p[i] & 0xc0) != 0x80;
    return n;
}

/* ---- probabilities */

static void *grown(void *p, size_t n, size_t size)
{
    p = realloc(p, n * size + 1);
    if (!p) BUG("no memory for log probabilities");
    return p;
}

static void log_add(struct token_log *l, const struct tokenizer *tok, const struct engine_token *t,
                    size_t begin)
{
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 16;
        l->token = grown(l->token, l->cap, sizeof *l->token);
        l->begin = grown(l->begin, l->cap, sizeof *l->begin);
        l->top = grown(l->top, l->cap * l->width, sizeof *l->top);
    }
    struct api_top *top = l->width ? l->top + l->n * l->width : NULL;
    size_t num = (size_t)t->num_top < l->width ? (size_t)t->num_top : l->width;
    for (size_t i = 0; i < num; i++)
        top[i] = (struct api_top){service_piece(tok, t->top[i].id), (double)t->top[i].logprob};
    l->begin[l->n] = begin;
    l->token[l->n++] = (struct api_token){
        .bytes = service_piece(tok, t->id), .logprob = (double)t->logprob, .num_top = num};
}

/* Those whose text begins before `end`; all of them where nothing is held back. */
static size_t log_ready(const struct token_log *l, size_t end, bool all)
{
    size_t n = 0;
    while (n < l->n && (all || l->begin[n] < end)) n++;
    return n;
}

static struct api_logprobs log_take(struct choice *c, size_t n)
{
    struct token_log *l = &c->log;
    for (size_t i = 0; i < n; i++) l->token[i].top = l->width ? l->top + i * l->width : NULL;
    return (struct api_logprobs){l->token, n, c->chars};
}

static void log_forget(struct token_log *l, size_t n)
{
    if (!n) return;
    l->n -= n;
    memmove(l->token, l->token + n, l->n * sizeof *l->token);
    memmove(l->begin, l->begin + n, l->n * sizeof *l->begin);
    if (l->width) memmove(l->top, l->top + n * l->width, l->n * l->width * sizeof *l->top);
}

static size_t held(const struct choice *c)
{
    return stops_held(c->text.stops) + c->text.utf8.n;
}

/* ---- streams */

/* What comes before the first delta of any choice. */
static void put_beginning(struct exchange *x, struct sb *out)
{
    for (size_t i = 0; i < x->num_choices; i++) {
        api_put_begin(out, &x->reply, x->choice[i].index);
        if (!x->echo) continue;
        const struct api_choice c = {.index = x->choice[i].index,
                                     .text = x->echo[x->choice[i].prompt]};
        api_put_delta(out, &x->reply, &c);
    }
}

/* Gives out x->event. The backlog is what the client has not read. */
static void send_event(struct exchange *x)
{
    bool tell = false;
    pthread_mutex_lock(&x->lock);
    if (!x->gone && !x->failed && !x->overflowed) {
        if (!x->started) put_beginning(x, &x->out);
        x->started = true;
        sb_add(&x->out, x->event.p, x->event.n);
        x->last_out = mem_seconds();
        x->overflowed = (int64_t)(x->out.n - x->taken) > x->s->o.backlog_bytes;
        tell = true;
    }
    pthread_mutex_unlock(&x->lock);
    x->event.n = 0;
    if (tell) x->s->hooks.ready(x->s->hooks.arg, x);
}

/* The text and tokens that can be shown, as an event; with `finish` the last one too. */
static void stream(struct choice *c, const float *depth, bool last)
{
    struct exchange *x = c->x;
    const struct lm_about *about = &x->s->model.lm->about;
    bool finished = c->finish != API_unfinished;
    size_t n = log_ready(&c->log, c->bytes, !c->ended && (last || !held(c)));
    struct api_logprobs l = log_take(c, n);
    struct api_depth d = {about->site, about->num_sites, !c->depth_named, depth};
    const struct api_choice out = {.index = c->index,
                                   .text = {c->shown.p ? c->shown.p : "", c->shown.n},
                                   .logprobs = x->r->logprobs ? &l : NULL,
                                   .finish = c->finish,
                                   .depth = depth ? &d : NULL};
    if (!out.text.n && !n && !depth && !finished) return;
    if (depth) c->depth_named = true;
    c->chars += characters(out.text);
    api_put_delta(&x->event, &x->reply, &out);
    log_forget(&c->log, n);
    c->shown.n = 0;
    send_event(x);
}

/* An answer that is collected may not get too large. */
static bool collect(struct choice *c, size_t more)
{
    struct exchange *x = c->x;
    size_t log =
        x->r->logprobs ? sizeof(struct api_token) + c->log.width * sizeof(struct api_top) : 0;
    x->collected += (int64_t)(more + log);
    if (x->collected <= x->s->o.answer_bytes) return true;
    struct api_error err;
    api_fail(&err, API_invalid,
             "The answer is larger than %lld bytes; ask for fewer tokens or log probabilities, or "
             "for a stream.",
             (long long)x->s->o.answer_bytes);
    exchange_error(x, &err);
    return false;
}

/* Text has been added behind `before`: takes the template's space off, counts. */
static void added(struct choice *c, size_t before)
{
    struct sb *s = &c->shown;
    if (c->space && s->n > before) {
        if (s->p[before] == ' ') memmove(s->p + before, s->p + before + 1, --s->n - before);
        c->space = false;
    }
    c->bytes += s->n - before;
}

static bool write_token(struct choice *c, const struct engine_token *t)
{
    struct exchange *x = c->x;
    const struct tokenizer *tok = x->s->model.tok;
    if (exchange_left(x)) return false; /* it is being cancelled, and counts as that */
    if (exchange_ended(x)) return true;
    size_t before = c->shown.n, begin = c->bytes + held(c);
    c->sum += (double)t->logprob;
    if (x->r->logprobs) log_add(&c->log, tok, t, begin);
    bool found = answer_text_add(&c->text, tok, t->id, &c->shown);
    added(c, before);
    if (found) c->ended = true;
    if (!x->streams) return !collect(c, c->shown.n - before) || found;
    if (!found || t->depth) stream(c, t->depth, false);
    return found;
}

bool choice_token(void *choice, const struct engine_token *t)
{
    struct choice *c = choice;
    double begin = mem_seconds();
    bool found = write_token(c, t);
    uint64_t ns = (uint64_t)(1e9 * (mem_seconds() - begin));
    if (ns > c->x->s->longest_write) c->x->s->longest_write = ns; /* no other thread writes it */
    return found;
}

static enum api_finish finish_of(struct choice *c, const struct engine_done *d)
{
    if (d->why == ENGINE_stop || c->ended) return API_stop;
    return API_length;
}

void choice_done(void *choice, const struct engine_done *d)
{
    struct choice *c = choice;
    struct exchange *x = c->x;
    struct api_error err;
    c->done = *d;
    if (d->why == ENGINE_failed) {
        fprintf(stderr, "error: a request failed: %s\n", d->error.text);
        api_fail(&err, API_internal, "The model failed at this request.");
        exchange_error(x, &err);
    } else if (d->why == ENGINE_cancelled) {
        api_fail(&err, API_draining, "The server is shutting down.");
        exchange_error(x, &err);
    } else if (!exchange_ended(x)) {
        size_t before = c->shown.n;
        if (!c->ended && answer_text_end(&c->text, &c->shown)) c->ended = true;
        added(c, before);
        c->finish = finish_of(c, d);
        if (x->streams) stream(c, NULL, true);
    }
    exchange_part_done(x);
    exchange_drop(x);
}

/* ---- the end */

/* Tokens of all answers; a prompt counts once, and what was cached of it when it was first read. */
static struct api_usage usage(const struct exchange *x)
{
    struct api_usage u = {0};
    for (size_t i = 0; i < x->num_choices; i++) {
        const struct choice *c = &x->choice[i];
        u.completion += c->done.completion;
        if (i && c->prompt == c[-1].prompt) continue;
        u.prompt += c->done.prompt;
        u.cached += c->done.cached;
    }
    return u;
}

void exchange_put_end(struct exchange *x, struct sb *out)
{
    const struct api_usage u = usage(x);
    if (!x->num_choices) return;
    api_put_usage(out, &x->reply, &u);
    api_put_done(out);
}

static double quality(const struct choice *c)
{
    return c->done.completion ? c->sum / (double)c->done.completion : 0;
}

/* Whether `a` goes before `b` among the answers to a prompt: the likelier token by token. */
static bool better(const struct choice *a, const struct choice *b)
{
    double qa = quality(a), qb = quality(b);
    return qa > qb || (qa == qb && a->index < b->index);
}

/* The answer as it is shown; its text and tokens stay those of the choice. */
static struct api_choice show(struct exchange *x, struct choice *c, struct api_logprobs *l)
{
    if (x->echo) {
        struct sb both = {0};
        struct str e = x->echo[c->prompt];
        sb_add(&both, e.p, e.n);
        if (c->shown.n) sb_add(&both, c->shown.p, c->shown.n);
        sb_free(&c->shown);
        c->shown = both;
    }
    *l = log_take(c, log_ready(&c->log, c->bytes, !c->ended));
    return (struct api_choice){.text = {c->shown.p ? c->shown.p : "", c->shown.n},
                               .logprobs = x->r->logprobs ? l : NULL,
                               .finish = c->finish};
}

void exchange_put_answer(struct exchange *x, struct sb *out)
{
    const struct api_request *r = x->r;
    size_t each = (size_t)r->best_of, n = (size_t)r->n, prompts = x->num_choices / each, k = 0;
    struct api_choice *c = NEW(r->arena, struct api_choice, prompts * n);
    struct api_logprobs *l = NEW(r->arena, struct api_logprobs, prompts * n);
    for (size_t p = 0; p < prompts; p++) {
        struct choice *all = &x->choice[p * each];
        for (size_t i = 0; i < each; i++) {
            size_t rank = 0;
            for (size_t j = 0; j < each; j++)
                rank += each > n && j != i && better(&all[j], &all[i]);
            if (each == n) rank = i;
            if (rank >= n) continue;
            k = p * n + rank;
            c[k] = show(x, &all[i], &l[k]);
            c[k].index = (int64_t)k;
        }
    }
    const struct api_usage u = usage(x);
    api_put_answer(out, &x->reply, c, prompts * n, &u);
}
