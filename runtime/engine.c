/* The engine from outside: opening and closing, its thread, and requests from any thread. */
#include "runtime/engine.h"
#include "base/arena.h"
#include "runtime/engine_in.h"
#include "runtime/mem.h"
#include <math.h>
#include <signal.h>
#include <string.h>

/* ---- open and close ---- */

static enum rt_status check_options(const struct lm_about *a, struct engine_options *o,
                                    struct rt_error *err)
{
    if (o->max_sequences < 0 || o->max_waiting < 0 || o->max_waiting_tokens < 0 ||
        o->step_tokens < 0 || o->snapshots < 0)
        return rt_fail(err, RT_user, "an option of the engine is negative");
    if (o->snapshots && !a->states)
        return rt_fail(err, RT_user, "the model has no states to keep snapshots of");
    if (a->states && o->snapshots >= a->states)
        return rt_fail(err, RT_user, "%lld snapshots leave no state for a sequence: there are %lld",
                       (long long)o->snapshots, (long long)a->states);
    int64_t most = a->batch;
    if (a->states && a->states - o->snapshots < most) most = a->states - o->snapshots;
    if (o->max_sequences > most)
        return rt_fail(err, RT_user,
                       "%lld sequences at once do not fit the model, which takes %lld",
                       (long long)o->max_sequences, (long long)most);
    if (!o->max_sequences) o->max_sequences = most;
    if (!o->max_waiting) o->max_waiting = 64;
    if (!o->step_tokens) o->step_tokens = LM_CHUNK;
    if (o->step_tokens < LM_STEP)
        return rt_fail(err, RT_user, "a step must read at least %d tokens of prompts", LM_STEP);
    return RT_ok;
}

/* The arrays of an engine: where, how many bytes. */
struct array {
    void *at; /* a pointer */
    size_t bytes;
};
enum { ARRAYS = 10 };
static void arrays_of(struct engine *e, struct array out[ARRAYS])
{
    size_t n = (size_t)e->o.max_sequences, vocab = (size_t)e->m->about.vocab;
    size_t tables = n * (size_t)e->columns * sizeof(int32_t);
    const struct array a[ARRAYS] = {
        {&e->place, n * sizeof *e->place},
        {&e->order, n * sizeof *e->order},
        {&e->batch, n * sizeof *e->batch},
        {&e->tokens, n * sizeof *e->tokens},
        {&e->past, n * sizeof *e->past},
        {&e->states, n * sizeof *e->states},
        {&e->tables, tables},
        {&e->call_tables, tables},
        {&e->row, vocab * sizeof *e->row},
        {&e->scratch, vocab * sizeof *e->scratch},
    };
    memcpy(out, a, sizeof a);
}

static void free_arrays(struct engine *e)
{
    struct array a[ARRAYS];
    arrays_of(e, a);
    for (int i = 0; i < ARRAYS; i++) {
        void *p;
        memcpy(&p, a[i].at, sizeof p);
        mem_free(p, a[i].bytes);
    }
    mem_free(e->depth, e->num_depth * sizeof *e->depth);
    json_words_close(e->words);
    pages_close(e->pages);
}

static bool make_arrays(struct engine *e)
{
    const struct lm_about *a = &e->m->about;
    struct array all[ARRAYS];
    arrays_of(e, all);
    bool good = true;
    for (int i = 0; i < ARRAYS; i++) {
        void *p = mem_alloc(all[i].bytes);
        memcpy(all[i].at, &p, sizeof p);
        good &= p != NULL;
    }
    for (size_t i = 0; i < a->num_sites; i++) e->num_depth += (size_t)a->site[i].sources;
    e->depth = mem_alloc(e->num_depth * sizeof *e->depth);
    e->pages = pages_open(a->pages, e->o.max_sequences, e->o.snapshots);
    if (!good || !e->depth || !e->pages) return false;
    for (int64_t i = 0; i < e->o.max_sequences; i++) e->place[i].table = e->tables + i * e->columns;
    if (e->o.text) e->words = json_words_open(e->o.text, e->o.arg, a->vocab);
    return !e->o.text || e->words;
}

enum rt_status engine_open(struct lm *m, const struct engine_options *o, struct engine **out,
                           struct rt_error *err)
{
    struct engine_options opt = *o;
    const struct lm_about *a = &m->about;
    CHECK(a->vocab > 0 && a->context > 0 && a->context % LM_PAGE == 0 && a->pages > 0 &&
          a->batch > 0);
    RT_TRY(check_options(a, &opt, err));
    struct engine *e = mem_alloc(sizeof *e);
    if (!e) return rt_fail(err, RT_machine, "no memory for the engine");
    e->m = m;
    e->o = opt;
    e->cache = !opt.no_prefix_cache && (!a->states || opt.snapshots);
    e->columns = a->context / LM_PAGE;
    if (!make_arrays(e)) {
        free_arrays(e);
        mem_free(e, sizeof *e);
        return rt_fail(err, RT_machine, "no memory for the engine");
    }
    e->shown.pages = a->pages;
    e->shown.states = a->states;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->wake, NULL);
    *out = e;
    return RT_ok;
}

/* Waits without a lock on anything when there is nothing to do. */
static void *work(void *arg)
{
    struct engine *e = arg;
    for (;;) {
        pthread_mutex_lock(&e->lock);
        while (!e->closing && !e->cancels && !e->incoming.head && !e->running && !e->queue.head)
            pthread_cond_wait(&e->wake, &e->lock);
        bool closing = e->closing;
        pthread_mutex_unlock(&e->lock);
        if (closing) return NULL;
        engine_step(e);
    }
}

enum rt_status engine_start(struct engine *e, struct rt_error *err)
{
    sigset_t all, before; /* signals are for the threads of the program */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int bad = pthread_create(&e->thread, NULL, work, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (bad) return rt_fail(err, RT_machine, "no thread for the engine: %s", strerror(bad));
    e->started = true;
    return RT_ok;
}

void engine_close(struct engine *e)
{
    if (!e) return;
    pthread_mutex_lock(&e->lock);
    e->closing = e->draining = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    if (e->started) pthread_join(e->thread, NULL);
    while (e->running) job_finish(e, e->order[e->running - 1]->job, ENGINE_cancelled, NULL);
    while (e->queue.head) job_finish(e, e->queue.head, ENGINE_cancelled, NULL);
    pthread_mutex_lock(&e->lock);
    e->queue = e->incoming;
    e->incoming = (struct job_list){NULL, NULL};
    pthread_mutex_unlock(&e->lock);
    while (e->queue.head) job_finish(e, e->queue.head, ENGINE_cancelled, NULL);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->wake);
    free_arrays(e);
    mem_free(e, sizeof *e);
}

/* ---- requests ---- */

bool engine_reserve(struct engine *e, int64_t tokens)
{
    pthread_mutex_lock(&e->lock);
    bool fits =
        e->waiting < e->o.max_waiting && (!e->o.max_waiting_tokens || !e->waiting || !tokens ||
                                          tokens <= e->o.max_waiting_tokens - e->waiting_tokens);
    bool taken = fits && !e->draining;
    if (taken) {
        e->waiting++;
        e->waiting_tokens += tokens;
    } else {
        e->refused++;
    }
    pthread_mutex_unlock(&e->lock);
    return taken;
}

void engine_release(struct engine *e, int64_t tokens)
{
    pthread_mutex_lock(&e->lock);
    e->waiting--;
    e->waiting_tokens -= tokens;
    pthread_mutex_unlock(&e->lock);
}

static enum rt_status check_ids(const struct engine *e, const struct engine_request *r,
                                struct rt_error *err)
{
    for (int64_t i = 0; i < r->num_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= e->m->about.vocab)
            return rt_fail(err, RT_user, "token %lld of the prompt is %d, the vocabulary has %lld",
                           (long long)i, (int)r->prompt[i], (long long)e->m->about.vocab);
    for (size_t i = 0; i < r->num_bias; i++)
        if (r->bias[i].id < 0 || r->bias[i].id >= e->m->about.vocab || !isfinite(r->bias[i].add))
            return rt_fail(err, RT_user, "the bias of token %d is not one of the vocabulary's",
                           (int)r->bias[i].id);
    return RT_ok;
}

static enum rt_status check_request(const struct engine *e, const struct engine_request *r,
                                    struct rt_error *err)
{
    const struct lm_about *a = &e->m->about;
    enum { MANY = 1 << 20 };
    if (r->num_prompt < 1) return rt_fail(err, RT_user, "the prompt is empty");
    if (r->max_tokens < 1) return rt_fail(err, RT_user, "max_tokens must be at least 1");
    if (r->num_prompt > a->context || r->max_tokens > a->context - r->num_prompt)
        return rt_fail(err, RT_user,
                       "a prompt of %lld tokens and %lld more do not fit the model's context of "
                       "%lld tokens",
                       (long long)r->num_prompt, (long long)r->max_tokens, (long long)a->context);
    if (pages_of(r->num_prompt + r->max_tokens - 1) > a->pages)
        return rt_fail(err, RT_user,
                       "a prompt of %lld tokens and %lld more do not fit the cache of %lld tokens",
                       (long long)r->num_prompt, (long long)r->max_tokens,
                       (long long)a->pages * LM_PAGE);
    if (r->num_bias > MANY || r->num_stop > MANY || r->top_logprobs < 0 ||
        r->top_logprobs > ENGINE_MAX_TOP)
        return rt_fail(err, RT_user, "too many biases, stop ids or logprobs are asked for");
    if (r->json && !e->words)
        return rt_fail(err, RT_user, "the model's tokens have no texts, which JSON needs");
    if (r->depth && !a->num_sites)
        return rt_fail(err, RT_user, "the model has no depth attention to show");
    RT_TRY(sampler_check(&r->sampler, err));
    return check_ids(e, r, err);
}

static size_t rounded(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* The next part of a job's block. */
static void *part(char **at, size_t bytes)
{
    void *p = *at;
    *at += rounded(bytes);
    return p;
}

static void fill_job(struct job *j, const struct engine_request *r, size_t seen, size_t different)
{
    char *at = (char *)j + rounded(sizeof *j);
    int64_t n = r->num_prompt, keys = n / LM_PAGE;
    j->r = *r;
    j->text = part(&at, (size_t)(n + r->max_tokens) * sizeof *j->text);
    j->key = part(&at, (size_t)keys * sizeof *j->key);
    j->bias = part(&at, r->num_bias * sizeof *j->bias);
    int32_t *stop = part(&at, r->num_stop * sizeof *stop);
    memcpy(j->text, r->prompt, (size_t)n * sizeof *j->text);
    for (size_t i = 0; i < r->num_bias; i++)
        j->bias[i] = (struct sample_bias){r->bias[i].id, r->bias[i].add};
    if (r->num_stop) memcpy(stop, r->stop, r->num_stop * sizeof *stop);
    j->r.prompt = j->text;
    j->r.bias = NULL;
    j->r.stop = stop;
    j->n = n;
    j->num_keys = keys;
    for (int64_t i = 0; i < keys; i++)
        j->key[i] = page_key_of(i ? &j->key[i - 1] : NULL, r->salt, j->text + i * LM_PAGE);
    if (seen) sample_seen_init(&j->seen, different, part(&at, seen));
    for (int64_t i = 0; seen && i < n; i++) sample_seen_add(&j->seen, j->text[i], false);
    json_guide_start(&j->guide);
}

/* A job with copies of all of the request; NULL without memory. */
static struct job *make_job(const struct engine *e, const struct engine_request *r)
{
    size_t most = (size_t)(r->num_prompt + r->max_tokens), vocab = (size_t)e->m->about.vocab;
    size_t different = most < vocab ? most : vocab;
    const struct sampler *s = &r->sampler;
    bool penalties = s->presence != 0 || s->frequency != 0 || s->repetition != 0;
    size_t seen = penalties ? sample_seen_size(different) : 0;
    size_t bytes = rounded(sizeof(struct job)) + rounded(most * sizeof(int32_t)) +
                   rounded((size_t)(r->num_prompt / LM_PAGE) * sizeof(struct page_key)) +
                   rounded(r->num_bias * sizeof(struct sample_bias)) +
                   rounded(r->num_stop * sizeof(int32_t)) + rounded(seen);
    struct job *j = mem_alloc(bytes);
    if (!j) return NULL;
    fill_job(j, r, seen, different);
    j->bytes = bytes;
    j->arrived = mem_seconds();
    return j;
}

enum rt_status engine_submit(struct engine *e, const struct engine_request *r, int64_t reserved,
                             uint64_t *id, struct rt_error *err)
{
    RT_TRY(check_request(e, r, err));
    struct job *j = make_job(e, r);
    if (!j) return rt_fail(err, RT_machine, "no memory for a request");
    pthread_mutex_lock(&e->lock);
    *id = j->id = ++e->last_id;
    struct job **bucket = &e->by_id[j->id % ENGINE_IDS];
    j->same_bucket = *bucket;
    *bucket = j;
    list_append(&e->incoming, j);
    e->waiting_tokens += r->num_prompt - reserved;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    return RT_ok;
}

void engine_cancel(struct engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->lock);
    struct job *j = e->by_id[id % ENGINE_IDS];
    while (j && j->id != id) j = j->same_bucket;
    if (j) {
        j->cancelled = e->cancels = true;
        pthread_cond_signal(&e->wake);
    }
    pthread_mutex_unlock(&e->lock);
}

void engine_drain(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->draining = true;
    pthread_mutex_unlock(&e->lock);
}

void engine_stats(struct engine *e, struct engine_stats *out)
{
    pthread_mutex_lock(&e->lock);
    *out = e->shown;
    out->waiting = e->waiting;
    out->waiting_tokens = e->waiting_tokens;
    out->refused = e->refused;
    pthread_mutex_unlock(&e->lock);
}

/* ---- what the steps say of a job ---- */

void job_leaves_queue(struct engine *e, struct job *j)
{
    j->admitted = mem_seconds();
    histogram_add(&e->s.queued, j->admitted - j->arrived);
    e->s.prompt_tokens += (uint64_t)j->r.num_prompt;
    e->s.cached_tokens += (uint64_t)j->cached;
    if (e->cache) {
        e->s.prefix_queries += (uint64_t)j->r.num_prompt;
        e->s.prefix_hits += (uint64_t)j->cached;
    }
    engine_release(e, j->r.num_prompt);
}

void engine_publish(struct engine *e)
{
    struct engine_stats *s = &e->s;
    s->running = e->running;
    s->pages = e->m->about.pages;
    s->pages_cached = pages_cached(e->pages);
    s->pages_used = s->pages - pages_available(e->pages);
    s->states = e->m->about.states;
    s->states_used = s->states ? e->running + pages_snapshots(e->pages) : 0;
    pthread_mutex_lock(&e->lock);
    e->shown = *s;
    pthread_mutex_unlock(&e->lock);
}

/* What is left of it in the engine. */
static void leave(struct engine *e, struct job *j, bool keep)
{
    if (!j->place) {
        list_remove(&e->queue, j);
        if (j->admitted == 0) engine_release(e, j->r.num_prompt);
        return;
    }
    if (keep && !e->m->about.recurrent) place_index(e, j->place, j->past);
    place_leave(e, j->place);
}

void job_finish(struct engine *e, struct job *j, enum engine_finish why, const struct rt_error *err)
{
    double now = mem_seconds();
    struct engine_done d = {.why = why,
                            .prompt = j->r.num_prompt,
                            .cached = j->cached,
                            .completion = j->n - j->r.num_prompt};
    if (err) d.error = *err;
    d.queued = (j->admitted > 0 ? j->admitted : now) - j->arrived;
    if (j->admitted > 0) d.prefill = (j->first > 0 ? j->first : now) - j->admitted;
    if (j->first > 0) d.decode = now - j->first;
    leave(e, j, why != ENGINE_failed);
    e->s.requests[why]++;
    histogram_add(&e->s.whole, now - j->arrived);
    if (j->first > 0) histogram_add(&e->s.decode, d.decode);
    pthread_mutex_lock(&e->lock);
    struct job **at = &e->by_id[j->id % ENGINE_IDS];
    while (*at != j) at = &(*at)->same_bucket;
    *at = j->same_bucket;
    pthread_mutex_unlock(&e->lock);
    engine_publish(e); /* whoever hears of the end finds it counted */
    j->r.done(j->r.arg, &d);
    mem_free(j->saved, j->saved_bytes);
    mem_free(j, j->bytes);
}
