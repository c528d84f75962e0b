/* Inside the engine. Files: engine.c (open, close, queueing from any thread), engine_step.c (what
 * runs in a step: admission, decoding, prompts, preemption), engine_place.c (pages and states of
 * running sequences), engine_token.c (choosing and giving out tokens). */
#ifndef STRATA_RUNTIME_ENGINE_IN_H
#define STRATA_RUNTIME_ENGINE_IN_H
#include "runtime/engine.h"
#include "runtime/json_words.h"
#include "runtime/pages.h"
#include <pthread.h>
#include <stdatomic.h>

struct place;
/* A request from engine_submit to `done`. It and all its arrays are one block. */
struct job {
    struct engine_request r; /* prompt is text, bias NULL */
    uint64_t id;
    size_t bytes; /* of the block */
    _Atomic bool cancelled;
    struct job *same_bucket; /* engine.by_id; under the lock */
    struct job *next, *prev; /* in a list */
    int32_t *text;           /* [num_prompt + max_tokens]: prompt, then answer */
    int64_t n;               /* of them known */
    int64_t past;            /* of them in pages and state */
    struct page_key *key;    /* of the full pages of the prompt, num_keys of them */
    int64_t num_keys;
    struct sample_bias *bias;
    struct sample_seen seen; /* list is NULL without penalties */
    struct json_guide guide;
    struct place *place; /* NULL: in the queue */
    char *saved;         /* of a preempted one: its pages, then its state */
    size_t saved_bytes;
    int64_t cached;                        /* tokens of the prompt that were found */
    double arrived, admitted, first, last; /* times; 0: not yet */
};
struct job_list {
    struct job *head, *tail;
};

/* A sequence that runs. Its state is the one with its number. */
struct place {
    struct job *job; /* NULL: nobody */
    int32_t *table;  /* [context / LM_PAGE] */
    int64_t num_pages;
    int64_t indexed;     /* leading pages that are in the index */
    struct page_key tip; /* key of the last of them */
    int64_t branch;      /* where other texts with this beginning part: a snapshot is due; or 0 */
    int64_t stride;      /* snapshots are due at its multiples */
};

enum { ENGINE_IDS = 1024 }; /* chains of by_id */
struct engine {
    struct lm *m;
    struct engine_options o;
    bool cache;      /* pages are looked for and kept */
    int64_t columns; /* of a page table */
    /* Of the engine's thread alone. */
    struct pages *pages;
    struct place *place;  /* [max_sequences] */
    int32_t *tables;      /* all page tables */
    struct place **order; /* [running]: highest priority, then oldest, first */
    int64_t running;
    struct job_list queue; /* in the order of admission */
    struct place **batch;  /* of a call, as what follows */
    int32_t *tokens, *past, *states, *call_tables;
    float *row; /* [vocab]: logits that are changed */
    struct sample_slot *scratch;
    float *depth; /* weights of all sites */
    size_t num_depth;
    struct json_words *words; /* NULL without texts */
    struct engine_stats s;    /* but for what is under the lock */
    /* Under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct job_list incoming;
    struct job *by_id[ENGINE_IDS];
    uint64_t last_id, refused;
    int64_t waiting, waiting_tokens;
    bool cancels, draining, closing;
    struct engine_stats shown;
    pthread_t thread;
    bool started;
};

static inline int64_t pages_of(int64_t tokens)
{
    return (tokens + LM_PAGE - 1) / LM_PAGE;
}
/* Pages that a job needs at most: its last token is never read. */
static inline int64_t pages_at_most(const struct job *j)
{
    return pages_of(j->r.num_prompt + j->r.max_tokens - 1);
}

void list_append(struct job_list *l, struct job *j);
void list_remove(struct job_list *l, struct job *j);

/* ---- engine.c ---- */
/* The last call for a job: it leaves list and place, `done` is called, its memory is freed. `err`
 * may be NULL. */
void job_finish(struct engine *e, struct job *j, enum engine_finish why,
                const struct rt_error *err);
/* The numbers become what engine_stats gives. */
void engine_publish(struct engine *e);
/* It leaves the queue for the first time. */
void job_leaves_queue(struct engine *e, struct job *j);

/* ---- engine_place.c ---- */
/* Gives the job a place with all pages of its prompt and whatever of them was found, or all that
 * was saved of it. False where pages are lacking. *status: whether the device brought it there. */
bool place_take(struct engine *e, struct job *j, enum rt_status *status, struct rt_error *err);
/* A page for position `past`; false where there is none. */
bool place_grow(struct engine *e, struct place *p);
/* Full pages of the first `tokens` tokens join the index. */
void place_index(struct engine *e, struct place *p, int64_t tokens);
/* Next position behind `past` where a snapshot is due, or 0. */
int64_t place_due(const struct engine *e, const struct place *p);
/* Keeps the state after `past` tokens, which all are in indexed pages. */
enum rt_status place_snapshot(struct engine *e, struct place *p, struct rt_error *err);
/* Saves pages and state to memory of the job. */
enum rt_status place_save(struct engine *e, struct place *p, struct rt_error *err);
/* The place is nobody's again, its pages are released. */
void place_leave(struct engine *e, struct place *p);

/* ---- engine_token.c ---- */
/* Chooses the token behind what row b of the last call of T tokens each has read, and gives it out.
 * May finish the job. */
void job_token(struct engine *e, struct job *j, int64_t b, int64_t T);

void histogram_add(struct engine_histogram *h, double seconds);
#endif
