/* The C library of strata build --lib, over the same parts as the program. */
#include "runtime/app.h"
#include "runtime/strata.h"
#include <stdlib.h>

struct strata_model {
    struct app *p; /* NULL: could not be opened */
    struct rt_error err;
    struct strata_sequence *first;
    int32_t *free_page, *free_state; /* stacks */
    int64_t num_pages, num_states;
    struct sample_slot *slots;
    int32_t *past, *state, *pages; /* of a batch */
};
struct strata_sequence {
    struct strata_model *m;
    struct strata_sequence *next;
    int64_t length, num_pages;
    int32_t state;
    int32_t page[]; /* [context / LM_PAGE] */
};

static const struct lm_about *about(const struct strata_model *m)
{
    return &m->p->lm->about;
}

static int64_t table_pages(const struct strata_model *m)
{
    return about(m)->context / LM_PAGE;
}

static void fill(struct strata_model *m)
{
    const struct lm_about *x = about(m);
    struct arena *a = m->p->a;
    m->free_page = NEW(a, int32_t, x->pages);
    m->free_state = NEW(a, int32_t, x->states);
    while (m->num_pages < x->pages) {
        m->free_page[m->num_pages] = (int32_t)(x->pages - 1 - m->num_pages);
        m->num_pages++;
    }
    while (m->num_states < x->states) {
        m->free_state[m->num_states] = (int32_t)(x->states - 1 - m->num_states);
        m->num_states++;
    }
    m->slots = NEW(a, struct sample_slot, x->vocab);
    m->past = NEW(a, int32_t, x->batch);
    m->state = NEW(a, int32_t, x->batch);
    m->pages = NEW(a, int32_t, x->batch * table_pages(m));
}

int strata_open(const char *path, const struct strata_options *options, struct strata_model **out)
{
    struct strata_model *m = calloc(1, sizeof *m);
    *out = m;
    if (!m) return RT_machine;
    const struct app_options o = {.cpu = options ? options->cpu : NULL,
                                  .threads = options ? options->threads : 0};
    enum rt_status st = app_open(path, NULL, &o, &m->p, &m->err);
    if (!st) st = app_load(m->p, &o, &m->err);
    if (!st) {
        fill(m);
        return RT_ok;
    }
    app_close(m->p);
    m->p = NULL;
    return st;
}

void strata_free(struct strata_model *m)
{
    if (!m) return;
    while (m->first) strata_end(m->first);
    app_close(m->p);
    free(m);
}

const char *strata_error(const struct strata_model *m)
{
    return m ? m->err.text : "no memory";
}

int64_t strata_vocab(const struct strata_model *m)
{
    return about(m)->vocab;
}

int64_t strata_context(const struct strata_model *m)
{
    return about(m)->context;
}

int64_t strata_batch(const struct strata_model *m)
{
    return about(m)->batch;
}

/* ---- texts ---- */

static enum rt_status no_tokenizer(struct strata_model *m)
{
    return m->p->tok ? RT_ok : rt_fail(&m->err, RT_user, "this model has no tokenizer");
}

int strata_tokenize(struct strata_model *m, const char *text, size_t n, int begin, int32_t **ids,
                    size_t *num_ids)
{
    struct tok_ids out = {0};
    *ids = NULL;
    *num_ids = 0;
    RT_TRY(no_tokenizer(m));
    enum rt_status st = RT_ok;
    if (begin && m->p->about.bos >= 0) st = tok_ids_add(&out, (int32_t)m->p->about.bos, &m->err);
    if (!st) st = tokenizer_encode(m->p->tok, (struct str){text, n}, &out, &m->err);
    if (st) {
        free(out.p);
        return st;
    }
    *ids = out.p;
    *num_ids = out.n;
    return RT_ok;
}

int strata_detokenize(struct strata_model *m, const int32_t *ids, size_t n, char **text,
                      size_t *bytes)
{
    struct sb s = {0};
    RT_TRY(no_tokenizer(m));
    sb_str(&s, "");
    tokenizer_decode(m->p->tok, ids, n, &s);
    *text = s.p;
    *bytes = s.n;
    return RT_ok;
}

void strata_release(void *p)
{
    free(p);
}

int strata_stops(const struct strata_model *m, int32_t id)
{
    for (size_t i = 0; i < m->p->about.num_stop; i++)
        if (m->p->about.stop[i] == id) return 1;
    return 0;
}

/* ---- sequences ---- */

int strata_begin(struct strata_model *m, struct strata_sequence **out)
{
    const struct lm_about *x = about(m);
    *out = NULL;
    if (x->states && !m->num_states)
        return rt_fail(&m->err, RT_user, "all %lld states are in use", (long long)x->states);
    struct strata_sequence *s = calloc(1, sizeof *s + (size_t)table_pages(m) * sizeof *s->page);
    if (!s) return rt_fail(&m->err, RT_machine, "no memory for a sequence");
    s->m = m;
    s->next = m->first;
    if (x->states) s->state = m->free_state[--m->num_states];
    *out = m->first = s;
    return RT_ok;
}

void strata_end(struct strata_sequence *s)
{
    if (!s) return;
    struct strata_model *m = s->m;
    struct strata_sequence **at = &m->first;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    while (s->num_pages) m->free_page[m->num_pages++] = s->page[--s->num_pages];
    if (about(m)->states) m->free_state[m->num_states++] = s->state;
    free(s);
}

int64_t strata_length(const struct strata_sequence *s)
{
    return s->length;
}

/* Pages for n more tokens, whose ids are checked. */
static enum rt_status make_room(struct strata_sequence *s, const int32_t *ids, size_t n)
{
    struct strata_model *m = s->m;
    const struct lm_about *x = about(m);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= x->vocab)
            return rt_fail(&m->err, RT_user, "id %d is not in the vocabulary of %lld", (int)ids[i],
                           (long long)x->vocab);
    if (n > (size_t)(x->context - s->length))
        return rt_fail(&m->err, RT_user, "%zu tokens behind %lld do not fit in the context of %lld",
                       n, (long long)s->length, (long long)x->context);
    while (x->page_bytes && s->num_pages * LM_PAGE < s->length + (int64_t)n) {
        if (!m->num_pages)
            return rt_fail(&m->err, RT_user, "all %lld pages are in use", (long long)x->pages);
        s->page[s->num_pages++] = m->free_page[--m->num_pages];
    }
    return RT_ok;
}

int strata_prefill(struct strata_sequence *s, const int32_t *ids, size_t n, const float **logits)
{
    struct strata_model *m = s->m;
    struct lm *lm = m->p->lm;
    if (!n) return rt_fail(&m->err, RT_user, "a prefill of no tokens");
    RT_TRY(make_room(s, ids, n));
    for (size_t done = 0; done < n;) {
        int64_t T = lm_cut((int64_t)(n - done), LM_CHUNK);
        int32_t past = (int32_t)s->length;
        const struct lm_call c = {1, T, ids + done, &past, &s->state, s->page};
        RT_TRY(lm->ops->run(lm, &c, &m->err));
        s->length += T;
        done += (size_t)T;
    }
    *logits = lm->ops->logits(lm);
    return RT_ok;
}

int strata_decode(struct strata_sequence *const *s, const int32_t *ids, size_t n,
                  const float **logits)
{
    struct strata_model *m = s[0]->m;
    struct lm *lm = m->p->lm;
    int64_t P = table_pages(m);
    if (n < 1 || n > (size_t)about(m)->batch)
        return rt_fail(&m->err, RT_user, "a batch has from 1 to %lld sequences, not %zu",
                       (long long)about(m)->batch, n);
    for (size_t b = 0; b < n; b++) {
        for (size_t i = 0; i < b; i++)
            if (s[i] == s[b]) return rt_fail(&m->err, RT_user, "a sequence is twice in a batch");
        RT_TRY(make_room(s[b], &ids[b], 1));
        m->past[b] = (int32_t)s[b]->length;
        m->state[b] = s[b]->state;
        memcpy(m->pages + (int64_t)b * P, s[b]->page, (size_t)P * sizeof *m->pages);
    }
    const struct lm_call c = {(int64_t)n, 1, ids, m->past, m->state, m->pages};
    RT_TRY(lm->ops->run(lm, &c, &m->err));
    for (size_t b = 0; b < n; b++) s[b]->length++;
    *logits = lm->ops->logits(lm);
    return RT_ok;
}

int strata_sample(struct strata_sequence *s, const struct strata_sampler *o, const float *logits,
                  int32_t *id)
{
    struct strata_model *m = s->m;
    double top_p = o->top_p > 0 ? o->top_p : 1;
    if (!(o->temperature >= 0) || !(top_p <= 1))
        return rt_fail(&m->err, RT_user, "temperature is at least 0, top_p in [0, 1]");
    const struct sampler x = {.temperature = o->temperature, .top_p = top_p, .seed = o->seed};
    return sample_token(&x, logits, (size_t)about(m)->vocab, (uint64_t)s->length, m->slots, id,
                        &m->err);
}
