/* Pages and states of running sequences: what a prompt finds, takes, keeps, saves. */
#include "base/arena.h"
#include "runtime/engine_in.h"
#include "runtime/mem.h"
#include <string.h>

static int32_t state_of(const struct engine *e, const struct place *p)
{
    return (int32_t)(p - e->place);
}

static bool has_states(const struct engine *e)
{
    return e->m->about.states > 0;
}

/* Pages of the index with the job's first tokens, at most `most`; nobody holds them by that. */
static int64_t find_run(const struct engine *e, const struct job *j, int64_t most, int32_t *table)
{
    int64_t n = 0;
    for (; e->cache && n < most; n++) {
        const struct page_text t = {n ? table[n - 1] : PAGE_none, j->key[n], j->r.salt,
                                    j->text + n * LM_PAGE};
        if ((table[n] = pages_find(e->pages, &t)) == PAGE_none) break;
    }
    return n;
}

/* Holds the first `found` pages of the table and takes new ones up to `total`, if one more could be
 * had where the job can need it. */
static bool take_pages(struct engine *e, const struct job *j, struct place *p, int64_t found,
                       int64_t total)
{
    int64_t want = total < pages_at_most(j) ? total + 1 : total, left = pages_available(e->pages);
    for (int64_t i = 0; i < found; i++) left -= !pages_holders(e->pages, p->table[i]);
    if (want - found > left) return false;
    for (int64_t i = 0; i < found; i++) pages_hold(e->pages, p->table[i]);
    for (int64_t i = found; i < total; i++) {
        p->table[i] = pages_take(e->pages);
        CHECK(p->table[i] != PAGE_none);
    }
    p->num_pages = total;
    p->indexed = found;
    if (found) p->tip = j->key[found - 1];
    return true;
}

/* So many snapshots of one prompt that others keep theirs, all as far apart as that allows. */
static void plan_snapshots(const struct engine *e, const struct job *j, struct place *p)
{
    int64_t cap = e->o.snapshots / 4 > 1 ? e->o.snapshots / 4 : 1;
    int64_t chunks = (j->r.num_prompt - j->past) / LM_CHUNK;
    p->stride = LM_CHUNK * (chunks > cap ? (chunks + cap - 1) / cap : 1);
}

/* A new job: the longest run that was found, where states are kept up to the deepest one. */
static bool take_new(struct engine *e, struct job *j, struct place *p, struct rt_error *err,
                     enum rt_status *status)
{
    int64_t run = find_run(e, j, (j->r.num_prompt - 1) / LM_PAGE, p->table), found = run;
    while (has_states(e) && found && pages_snapshot(e->pages, p->table[found - 1]) < 0) found--;
    if (!take_pages(e, j, p, found, pages_of(j->r.num_prompt))) return false;
    j->past = j->cached = found * LM_PAGE;
    p->branch = found < run ? run * LM_PAGE : 0;
    if (has_states(e) && found) {
        int32_t last = p->table[found - 1];
        pages_touch_snapshot(e->pages, last);
        *status = e->m->ops->copy_state(e->m, pages_snapshot(e->pages, last), state_of(e, p), err);
    }
    return true;
}

/* A preempted job: pages of its prompt that are still there, the others from memory. */
static bool take_saved(struct engine *e, struct job *j, struct place *p, struct rt_error *err,
                       enum rt_status *status)
{
    int64_t full = j->past / LM_PAGE, used = pages_of(j->past), prompt = pages_of(j->r.num_prompt);
    int64_t found = find_run(e, j, full < j->num_keys ? full : j->num_keys, p->table);
    if (!take_pages(e, j, p, found, used > prompt ? used : prompt)) return false;
    p->branch = 0;
    const uint64_t bytes = e->m->about.page_bytes;
    for (int64_t i = found; i < used && *status == RT_ok; i++)
        *status = e->m->ops->load_page(e->m, p->table[i], j->saved + (uint64_t)i * bytes, err);
    if (has_states(e) && *status == RT_ok)
        *status =
            e->m->ops->load_state(e->m, state_of(e, p), j->saved + (uint64_t)used * bytes, err);
    mem_free(j->saved, j->saved_bytes);
    j->saved = NULL;
    if (*status == RT_ok) place_index(e, p, j->past < j->r.num_prompt ? j->past : j->r.num_prompt);
    return true;
}

static bool rank_before(const struct job *a, const struct job *b)
{
    return a->r.priority != b->r.priority ? a->r.priority < b->r.priority : a->id < b->id;
}

bool place_take(struct engine *e, struct job *j, enum rt_status *status, struct rt_error *err)
{
    struct place *p = e->place;
    while (p->job) p++; /* the caller knows that there is one */
    p->job = j;
    *status = RT_ok;
    if (!(j->saved ? take_saved(e, j, p, err, status) : take_new(e, j, p, err, status))) {
        p->job = NULL;
        return false;
    }
    j->place = p;
    plan_snapshots(e, j, p);
    int64_t i = e->running++;
    for (; i > 0 && rank_before(j, e->order[i - 1]->job); i--) e->order[i] = e->order[i - 1];
    e->order[i] = p;
    return true;
}

bool place_grow(struct engine *e, struct place *p)
{
    if (p->job->past < p->num_pages * LM_PAGE) return true;
    int32_t page = pages_take(e->pages);
    if (page == PAGE_none) return false;
    p->table[p->num_pages++] = page;
    return true;
}

void place_index(struct engine *e, struct place *p, int64_t tokens)
{
    const struct job *j = p->job;
    for (; e->cache && (p->indexed + 1) * LM_PAGE <= tokens; p->indexed++) {
        int64_t i = p->indexed;
        const int32_t *text = j->text + i * LM_PAGE;
        struct page_key key =
            i < j->num_keys ? j->key[i] : page_key_of(i ? &p->tip : NULL, j->r.salt, text);
        const struct page_text t = {i ? p->table[i - 1] : PAGE_none, key, j->r.salt, text};
        p->table[i] = pages_add(e->pages, &t, p->table[i]);
        p->tip = key;
    }
}

int64_t place_due(const struct engine *e, const struct place *p)
{
    const struct job *j = p->job;
    int64_t last = (j->r.num_prompt - 1) / LM_PAGE * LM_PAGE;
    if (!e->cache || !has_states(e) || j->past >= last) return 0;
    int64_t next = (j->past / p->stride + 1) * p->stride;
    if (p->branch > j->past && p->branch < next) next = p->branch;
    return next < last ? next : last;
}

enum rt_status place_snapshot(struct engine *e, struct place *p, struct rt_error *err)
{
    int32_t page = p->table[p->job->past / LM_PAGE - 1];
    int32_t to = pages_keep_snapshot(e->pages, page);
    if (to < 0) return RT_ok;
    enum rt_status status = e->m->ops->copy_state(e->m, state_of(e, p), to, err);
    if (status != RT_ok) pages_drop_snapshot(e->pages, page);
    return status;
}

enum rt_status place_save(struct engine *e, struct place *p, struct rt_error *err)
{
    struct job *j = p->job;
    const uint64_t bytes = e->m->about.page_bytes;
    int64_t used = pages_of(j->past);
    j->saved_bytes =
        (size_t)((uint64_t)used * bytes + (has_states(e) ? e->m->about.state_bytes : 0));
    j->saved = mem_alloc(j->saved_bytes);
    if (!j->saved)
        return rt_fail(err, RT_machine, "no memory to set a sequence of %lld tokens aside",
                       (long long)j->past);
    for (int64_t i = 0; i < used; i++)
        RT_TRY(e->m->ops->save_page(e->m, p->table[i], j->saved + (uint64_t)i * bytes, err));
    if (!has_states(e)) return RT_ok;
    return e->m->ops->save_state(e->m, state_of(e, p), j->saved + (uint64_t)used * bytes, err);
}

void place_leave(struct engine *e, struct place *p)
{
    pages_release(e->pages, p->table, p->num_pages);
    int64_t i = 0;
    while (e->order[i] != p) i++;
    for (e->running--; i < e->running; i++) e->order[i] = e->order[i + 1];
    p->job->place = NULL;
    p->job = NULL;
}
