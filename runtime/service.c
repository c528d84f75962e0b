/* Exchanges from their beginning to their end, and the threads that read bodies. */
#include "runtime/exchange.h"
#include "runtime/mem.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

/* ---- exchanges */

static void lock(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
}
static void unlock(struct exchange *x)
{
    pthread_mutex_unlock(&x->lock);
}

static void ready(struct exchange *x)
{
    x->s->hooks.ready(x->s->hooks.arg, x);
}

void exchange_hold(struct exchange *x)
{
    atomic_fetch_add(&x->refs, 1);
}

void exchange_release(struct exchange *x)
{
    struct service *s = x->s;
    for (; x->places > 0; x->places--, x->guess = 0) engine_release(s->engine, x->guess);
    if (x->reading) atomic_fetch_sub(&s->reading, 1);
    atomic_fetch_sub(&s->bodies, x->charged);
    x->reading = false;
    x->charged = 0;
    sb_free(&x->body);
}

void exchange_drop(struct exchange *x)
{
    if (atomic_fetch_sub(&x->refs, 1) > 1) return;
    exchange_release(x);
    if (x->active) atomic_fetch_sub(&x->s->active, 1);
    for (size_t i = 0; i < x->num_choices; i++) choice_close(&x->choice[i]);
    api_request_close(x->r);
    sb_free(&x->event);
    sb_free(&x->out);
    sb_free(&x->answer.body);
    pthread_mutex_destroy(&x->lock);
    free(x);
}

bool exchange_mark(struct exchange *x)
{
    return !atomic_exchange(&x->marked, true);
}
void exchange_unmark(struct exchange *x)
{
    x->marked = false;
}

void exchange_set_owner(struct exchange *x, void *owner)
{
    x->owner = owner;
}
void *exchange_owner(const struct exchange *x)
{
    return x->owner;
}
bool exchange_has_body(const struct exchange *x)
{
    return x->has_body;
}

void service_refused(struct service *s, enum api_problem p)
{
    atomic_fetch_add(&s->refused[p], 1);
}

/* The error becomes the answer. Without the lock: nobody else knows the exchange, or it is
 * finished. */
static void put_refusal(struct exchange *x, const struct api_error *err)
{
    x->answer.status = err->status;
    x->answer.type = "application/json";
    x->answer.retry_after = err->retry_after;
    x->answer.challenge = err->status == 401;
    x->answer.body.n = 0;
    api_put_error(&x->answer.body, err);
}

static void inactive(struct exchange *x)
{
    if (x->active) atomic_fetch_sub(&x->s->active, 1);
    x->active = false;
}

static void refuse(struct exchange *x, const struct api_error *err)
{
    put_refusal(x, err);
    service_refused(x->s, err->problem);
    exchange_release(x);
    lock(x);
    x->finished = x->failed = true;
    inactive(x);
    unlock(x);
}

struct exchange *service_begin(struct service *s, const struct http_head *h)
{
    struct api_error err;
    struct exchange *x = calloc(1, sizeof *x);
    if (!x) BUG("no memory for a request");
    x->s = s;
    atomic_init(&x->refs, 1);
    pthread_mutex_init(&x->lock, NULL);
    x->answer.type = "application/json";
    if (!exchange_check(x, h, &err)) {
        refuse(x, &err);
    } else if (x->wants_body) {
        x->active = true;
        atomic_fetch_add(&s->active, 1);
    } else {
        x->finished = true;
    }
    return x;
}

void exchange_refuse(struct exchange *x, enum api_problem p, const char *message)
{
    struct api_error err;
    api_fail(&err, p, "%s", message);
    refuse(x, &err);
}

bool exchange_add(struct exchange *x, const char *p, size_t n)
{
    struct service *s = x->s;
    size_t limit = (size_t)s->o.body_bytes;
    if (n > limit || x->body.n > limit - n) {
        struct api_error err;
        api_fail(&err, API_too_large, "The body is larger than %lld bytes.",
                 (long long)s->o.body_bytes);
        refuse(x, &err);
        return false;
    }
    x->charged += (int64_t)n;
    if (atomic_fetch_add(&s->bodies, (int64_t)n) + (int64_t)n > s->o.bodies_bytes) {
        exchange_refuse(x, API_overloaded, "Too many requests are being read; try again later.");
        return false;
    }
    sb_add(&x->body, p, n);
    return true;
}

enum exchange_state exchange_state(struct exchange *x)
{
    enum exchange_state st = EXCHANGE_wait;
    lock(x);
    if (!x->submitted && !x->finished)
        st = EXCHANGE_body;
    else if (x->begun || (x->streams && !x->failed && x->out.n > x->taken))
        st = EXCHANGE_stream;
    else if (x->finished)
        st = x->streams && !x->failed ? EXCHANGE_stream : EXCHANGE_answer;
    unlock(x);
    return st;
}

void exchange_answer(struct exchange *x, struct http_answer *out)
{
    if (x->wants_body && x->submitted) {
        if (x->failed)
            put_refusal(x, &x->error);
        else if (x->num_choices) {
            x->answer.status = 200;
            exchange_put_answer(x, &x->answer.body);
        }
    }
    *out = x->answer;
    x->answer.body = (struct sb){0};
}

int64_t exchange_read(struct exchange *x, char *to, size_t max)
{
    int64_t got = 0;
    lock(x);
    x->begun = true;
    if (x->finished && x->failed && !x->told) {
        api_put_error_event(&x->out, &x->error);
        x->told = true;
    }
    size_t left = x->out.n - x->taken, n = left < max ? left : max;
    if (x->gone || x->overflowed) {
        got = -2;
    } else if (left) {
        memcpy(to, x->out.p + x->taken, n);
        x->taken += n;
        got = (int64_t)n;
        if (n == left) x->taken = x->out.n = 0;
    } else if (x->finished) {
        got = -1;
    }
    unlock(x);
    return got;
}

bool exchange_overflowed(struct exchange *x)
{
    lock(x);
    bool yes = x->overflowed;
    unlock(x);
    return yes;
}

void exchange_ping(struct exchange *x, double before)
{
    lock(x);
    bool due = x->streams && !x->finished && x->last_out < before && x->taken == x->out.n;
    if (due) {
        api_put_ping(&x->out);
        x->last_out = mem_seconds();
    }
    unlock(x);
    if (due) ready(x);
}

bool exchange_left(struct exchange *x)
{
    lock(x);
    bool left = x->gone || x->overflowed;
    unlock(x);
    return left;
}

bool exchange_ended(struct exchange *x)
{
    lock(x);
    bool ended = x->gone || x->failed || x->overflowed;
    unlock(x);
    return ended;
}

/* Tells the engine, without the lock held: it may be calling us. */
static void cancel_choices(struct exchange *x)
{
    lock(x);
    size_t n = x->num_choices;
    unlock(x);
    for (size_t i = 0; i < n; i++) {
        lock(x);
        bool known = x->choice[i].submitted;
        uint64_t id = x->choice[i].id;
        unlock(x);
        if (known) engine_cancel(x->s->engine, id);
    }
}

void exchange_error(struct exchange *x, const struct api_error *err)
{
    lock(x);
    if (!x->failed) x->error = *err;
    x->failed = true;
    unlock(x);
}

void exchange_fail(struct exchange *x, const struct api_error *err)
{
    exchange_error(x, err);
    cancel_choices(x);
}

void exchange_cancel(struct exchange *x)
{
    lock(x);
    bool running = !x->finished && x->submitted;
    x->gone = true;
    unlock(x);
    if (running) cancel_choices(x);
}

void exchange_cut(struct exchange *x)
{
    struct api_error err;
    api_fail(&err, API_draining, "The server is shutting down.");
    lock(x);
    bool running = !x->finished && x->submitted;
    unlock(x);
    if (running) exchange_fail(x, &err);
}

void exchange_part_done(struct exchange *x)
{
    lock(x);
    bool last = --x->pending == 0;
    if (last) {
        if (x->streams && !x->failed && !x->gone) exchange_put_end(x, &x->out);
        x->finished = true;
        if (x->failed && !x->gone) service_refused(x->s, x->error.problem);
        inactive(x);
    }
    unlock(x);
    if (last) ready(x);
}

/* ---- threads that read bodies */

static void work(struct exchange *x)
{
    if (!exchange_ended(x)) exchange_work(x);
    exchange_release(x);
    exchange_part_done(x);
    exchange_drop(x);
}

static void *read_bodies(void *arg)
{
    struct service *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        struct exchange *x = s->first;
        if (!x && s->stopping) break;
        if (!x) {
            pthread_cond_wait(&s->wake, &s->lock);
            continue;
        }
        s->first = x->next;
        bool stopping = s->stopping;
        pthread_mutex_unlock(&s->lock);
        if (stopping) exchange_cut(x);
        work(x);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

void exchange_submit(struct exchange *x)
{
    struct service *s = x->s;
    struct api_error err;
    if (!exchange_take_room(x, &err)) {
        refuse(x, &err);
        return;
    }
    lock(x);
    x->submitted = true;
    x->pending = 1; /* the thread that reads it */
    x->last_out = mem_seconds();
    unlock(x);
    exchange_hold(x);
    if (!s->num_threads) {
        work(x);
        return;
    }
    pthread_mutex_lock(&s->lock);
    x->next = NULL;
    if (s->first)
        s->last->next = x;
    else
        s->first = x;
    s->last = x;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

/* ---- the service */

uint64_t service_random(void)
{
    uint64_t x;
    if (getrandom(&x, sizeof x, 0) != sizeof x) BUG("no random numbers");
    return x;
}

void service_drain(struct service *s)
{
    s->draining = true;
    engine_drain(s->engine);
}
bool service_draining(const struct service *s)
{
    return s->draining;
}
int64_t service_active(struct service *s)
{
    return s->active;
}
const struct serve_options *service_options(const struct service *s)
{
    return &s->o;
}
void service_connections(struct service *s, int64_t n)
{
    s->connections = n;
}

/* Ids that end an answer: the caller's, then those of the template that the tokenizer has. */
static void find_stops(struct service *s)
{
    const struct serve_model *m = &s->model;
    size_t n = 0, chat = 0;
    while (m->chat && chat_stop_token(m->chat, (int)chat)) chat++;
    s->stop = calloc(m->num_stop + chat + 1, sizeof *s->stop);
    if (!s->stop) BUG("no memory for stop ids");
    for (; n < m->num_stop; n++) s->stop[n] = m->stop[n];
    s->num_stop = n;
    for (size_t i = 0; i < chat; i++)
        if (chat_special(m->tok, chat_stop_token(m->chat, (int)i), &s->stop[n], NULL) == RT_ok) n++;
    s->num_chat_stop = n;
}

enum rt_status service_open(const struct serve_model *m, const struct serve_options *o,
                            struct engine *e, const struct service_hooks *hooks,
                            struct service **out, struct rt_error *err)
{
    struct service *s = calloc(1, sizeof *s);
    if (!s) return rt_fail(err, RT_machine, "no memory for the server");
    s->model = *m;
    s->o = *o;
    s->engine = e;
    s->hooks = *hooks;
    s->created = time(NULL);
    s->begun = mem_seconds();
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    find_stops(s);
    s->thread = calloc((size_t)o->parse_threads + 1, sizeof *s->thread);
    *out = s;
    for (; s->thread && (int64_t)s->num_threads < o->parse_threads; s->num_threads++)
        if (pthread_create(&s->thread[s->num_threads], NULL, read_bodies, s)) break;
    if ((int64_t)s->num_threads == o->parse_threads) return RT_ok;
    service_stop(s);
    service_close(s);
    *out = NULL;
    return rt_fail(err, RT_machine, "cannot start threads for the server");
}

void service_stop(struct service *s)
{
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
    for (size_t i = 0; i < s->num_threads; i++) pthread_join(s->thread[i], NULL);
    s->num_threads = 0;
}

void service_close(struct service *s)
{
    if (!s) return;
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    free(s->thread);
    free(s->stop);
    free(s);
}

/* Whether this is the name of a special token: as one it is an id, as a text it is not that id. */
static bool is_special(const struct tokenizer *t, int32_t id, struct str name)
{
    int32_t as = -1;
    struct tok_ids text = {0};
    char z[64];
    bool looks = name.n > 2 && name.n < sizeof z &&
                 ((name.p[0] == '<' && name.p[name.n - 1] == '>') ||
                  (name.p[0] == '[' && name.p[name.n - 1] == ']'));
    if (!looks) return false;
    memcpy(z, name.p, name.n);
    z[name.n] = 0;
    if (chat_special(t, z, &as, NULL) != RT_ok || as != id) return false;
    bool special =
        tokenizer_encode(t, name, &text, NULL) != RT_ok || text.n != 1 || text.p[0] != id;
    free(text.p);
    return special;
}

static struct str json_text(void *arg, int32_t id)
{
    const struct serve_model *m = arg;
    if (id < 0 || id >= m->tok->vocab_size || id == m->bos) return STR("");
    for (size_t i = 0; i < m->num_stop; i++)
        if (m->stop[i] == id) return STR("");
    struct str s = m->tok->ops->piece(m->tok, id);
    return is_special(m->tok, id, s) ? STR("") : s;
}

void service_engine(const struct serve_model *m, struct engine_options *o)
{
    o->text = json_text;
    o->arg = (void *)(uintptr_t)m;
}
