/* A step: who is admitted, one call with all decoding sequences, some prompt reading. */
#include "base/arena.h"
#include "runtime/engine_in.h"
#include "runtime/mem.h"
#include <string.h>

void list_append(struct job_list *l, struct job *j)
{
    j->next = NULL;
    j->prev = l->tail;
    *(l->tail ? &l->tail->next : &l->head) = j;
    l->tail = j;
}

void list_remove(struct job_list *l, struct job *j)
{
    *(j->prev ? &j->prev->next : &l->head) = j->next;
    *(j->next ? &j->next->prev : &l->tail) = j->prev;
    j->next = j->prev = NULL;
}

/* ---- the queue ---- */

/* By priority; then those that ran before; then by arrival. */
static bool queued_before(const struct job *a, const struct job *b)
{
    if (a->r.priority != b->r.priority) return a->r.priority < b->r.priority;
    if (!a->saved != !b->saved) return a->saved;
    return a->id < b->id;
}

static void enqueue(struct engine *e, struct job *j)
{
    struct job *after = e->queue.tail;
    while (after && queued_before(j, after)) after = after->prev;
    j->prev = after;
    j->next = after ? after->next : e->queue.head;
    *(after ? &after->next : &e->queue.head) = j;
    *(j->next ? &j->next->prev : &e->queue.tail) = j;
}

/* New jobs join the queue; cancelled ones end, wherever they are. */
static void collect(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    struct job *j = e->incoming.head;
    e->incoming = (struct job_list){NULL, NULL};
    bool cancels = e->cancels;
    e->cancels = false;
    pthread_mutex_unlock(&e->lock);
    for (struct job *next; j; j = next) {
        next = j->next;
        enqueue(e, j);
    }
    if (!cancels) return;
    for (int64_t i = e->running; i-- > 0;)
        if (e->order[i]->job->cancelled) job_finish(e, e->order[i]->job, ENGINE_cancelled, NULL);
    for (struct job *next, *q = e->queue.head; q; q = next) {
        next = q->next;
        if (q->cancelled) job_finish(e, q, ENGINE_cancelled, NULL);
    }
}

/* ---- admission ---- */

/* Leading pages that two prompts share: keys are chained, and begin with the salt, so that one
 * place tells of all before it. */
static int64_t shared_pages(const struct job *a, const struct job *b)
{
    int64_t lo = 0, hi = a->num_keys < b->num_keys ? a->num_keys : b->num_keys;
    while (lo < hi) {
        int64_t mid = (lo + hi + 1) / 2;
        const struct page_key *x = &a->key[mid - 1], *y = &b->key[mid - 1];
        if (x->low == y->low && x->high == y->high)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

/* Whether a sequence that runs is about to compute pages which this job then finds. */
static bool waits_for_prefix(const struct engine *e, const struct job *j)
{
    int64_t most = (j->r.num_prompt - 1) / LM_PAGE;
    for (int64_t i = 0; e->cache && !j->saved && i < e->running; i++) {
        const struct place *p = e->order[i];
        if (p->job->past >= p->job->r.num_prompt || p->job->r.priority > j->r.priority) continue;
        int64_t shared = shared_pages(j, p->job);
        if (shared > most) shared = most;
        int64_t due = e->m->about.states ? place_due(e, p) : (p->indexed + 1) * LM_PAGE;
        if (due && due <= shared * LM_PAGE) return true;
    }
    return false;
}

static void admit(struct engine *e)
{
    for (struct job *next, *j = e->queue.head; j && e->running < e->o.max_sequences; j = next) {
        next = j->next;
        if (waits_for_prefix(e, j)) continue;
        list_remove(&e->queue, j);
        bool fresh = j->admitted == 0;
        enum rt_status status;
        struct rt_error err = {{0}};
        if (!place_take(e, j, &status, &err)) {
            enqueue(e, j);
            break; /* nobody overtakes for want of pages */
        }
        if (fresh) job_leaves_queue(e, j);
        if (status != RT_ok) job_finish(e, j, ENGINE_failed, &err);
    }
}

/* ---- decoding ---- */

/* The last in order gives its place back and waits. */
static void preempt(struct engine *e)
{
    struct place *p = e->order[e->running - 1];
    struct job *j = p->job;
    struct rt_error err = {{0}};
    e->s.preemptions++;
    if (place_save(e, p, &err) != RT_ok) {
        job_finish(e, j, ENGINE_failed, &err);
        return;
    }
    place_leave(e, p);
    enqueue(e, j);
}

static bool decodes(const struct place *p)
{
    return p->job->past >= p->job->r.num_prompt;
}

/* Those that get a token now, each with a page for it. In order, so that whoever is preempted has
 * not been gathered yet. */
static int64_t gather(struct engine *e)
{
    int64_t B = 0;
    for (int64_t i = 0; i < e->running; i++) {
        struct place *p = e->order[i];
        if (!decodes(p)) continue;
        while (i < e->running && !place_grow(e, p)) preempt(e);
        if (i >= e->running) break;
        const struct job *j = p->job;
        e->tokens[B] = j->text[j->past];
        e->past[B] = (int32_t)j->past;
        e->states[B] = (int32_t)(p - e->place);
        memcpy(e->call_tables + B * e->columns, p->table,
               (size_t)(j->past / LM_PAGE + 1) * sizeof *p->table);
        e->batch[B++] = p;
    }
    return B;
}

static void decode(struct engine *e)
{
    int64_t B = gather(e);
    if (!B) return;
    const struct lm_call c = {B, 1, e->tokens, e->past, e->states, e->call_tables};
    struct rt_error err = {{0}};
    enum rt_status status = e->m->ops->run(e->m, &c, &err);
    for (int64_t b = 0; b < B; b++) {
        struct job *j = e->batch[b]->job;
        if (status != RT_ok) {
            job_finish(e, j, ENGINE_failed, &err);
            continue;
        }
        j->past++;
        job_token(e, j, b, 1);
    }
}

/* ---- prompts ---- */

/* One call for a prompt, at most `most` tokens; how many it were. */
static int64_t read_some(struct engine *e, struct place *p, int64_t most)
{
    struct job *j = p->job;
    int64_t T = lm_cut(j->r.num_prompt - j->past, most), due = place_due(e, p);
    if (due && j->past + T > due) T = due - j->past;
    const int32_t past = (int32_t)j->past, state = (int32_t)(p - e->place);
    const struct lm_call c = {1, T, j->text + past, &past, &state, p->table};
    struct rt_error err = {{0}};
    if (e->m->ops->run(e->m, &c, &err) != RT_ok) {
        job_finish(e, j, ENGINE_failed, &err);
        return T;
    }
    j->past += T;
    place_index(e, p, j->past);
    if (j->past == due && place_snapshot(e, p, &err) != RT_ok)
        job_finish(e, j, ENGINE_failed, &err);
    else if (j->past == j->r.num_prompt)
        job_token(e, j, 0, T);
    return T;
}

/* Reads on in a prompt, at most `most` tokens; how many it were. */
static int64_t read_prompt(struct engine *e, struct place *p, int64_t most)
{
    const struct job *j = p->job;
    int64_t left = most;
    while (left >= LM_STEP && p->job == j && !decodes(p)) left -= read_some(e, p, left);
    return most - left;
}

static int64_t unread(const struct place *p)
{
    return p->job->r.num_prompt - p->job->past;
}

/* Prompts in order, each as far as the step's tokens reach. But a prompt that takes many steps
 * leaves half of each to the shortest one of its priority. */
static void prefill(struct engine *e)
{
    enum { MANY = 4 };
    int64_t n = 0, left = e->o.step_tokens, best = 0;
    for (int64_t i = 0; i < e->running; i++)
        if (!decodes(e->order[i])) e->batch[n++] = e->order[i];
    for (int64_t i = 1; i < n && e->batch[i]->job->r.priority == e->batch[0]->job->r.priority; i++)
        if (unread(e->batch[i]) < unread(e->batch[best])) best = i;
    if (best && unread(e->batch[0]) > MANY * e->o.step_tokens)
        left -= read_prompt(e, e->batch[best], left / 2);
    for (int64_t i = 0; i < n; i++)
        if (e->batch[i]->job) left -= read_prompt(e, e->batch[i], left);
}

bool engine_step(struct engine *e)
{
    collect(e);
    bool any = e->running || e->queue.head;
    if (any) {
        e->s.steps++;
        admit(e);
        CHECK(e->running || !e->queue.head); /* whoever is alone fits */
        decode(e);
        prefill(e);
    }
    engine_publish(e);
    return any;
}
