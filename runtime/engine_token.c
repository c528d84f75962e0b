/* Choosing a token and giving it out. */
#include "runtime/engine_in.h"
#include "runtime/mem.h"
#include <math.h>
#include <string.h>

void histogram_add(struct engine_histogram *h, double seconds)
{
    int i = 0;
    while (i < ENGINE_BUCKETS - 1 && seconds > ldexp(1, i - 14)) i++;
    h->bucket[i]++;
    h->count++;
    h->sum += seconds;
}

static bool is_stop(const struct job *j, int32_t id)
{
    for (size_t i = 0; i < j->r.num_stop; i++)
        if (j->r.stop[i] == id) return true;
    return false;
}

static enum rt_status choose(struct engine *e, struct job *j, const float *logits, int32_t *id,
                             struct rt_error *err)
{
    const size_t vocab = (size_t)e->m->about.vocab;
    struct sample_rules rules = {
        .seen = j->seen.list ? &j->seen : NULL, .bias = j->bias, .num_bias = j->r.num_bias};
    if (j->r.json || j->n - j->r.num_prompt < j->r.min_tokens) {
        rules.banned = j->r.stop;
        rules.num_banned = j->r.num_stop;
    }
    if (sample_adjusts(&j->r.sampler, &rules)) {
        memcpy(e->row, logits, vocab * sizeof *logits);
        sample_adjust(&j->r.sampler, &rules, e->row, vocab);
        logits = e->row;
    }
    uint64_t position = (uint64_t)j->n;
    if (!j->r.json)
        return sample_token(&j->r.sampler, logits, vocab, position, e->scratch, id, err);
    /* The likeliest token most often fits, and then is the likeliest of those that fit. */
    const struct sampler greedy = {.top_p = 1};
    RT_TRY(sample_token(&greedy, logits, vocab, position, e->scratch, id, err));
    if (j->r.sampler.temperature == 0 && json_words_accepts(e->words, &j->guide, *id)) return RT_ok;
    if (!json_words_mask(e->words, &j->guide, logits, e->row))
        return rt_fail(err, RT_machine, "no token of the vocabulary continues the JSON text");
    return sample_token(&j->r.sampler, e->row, vocab, position, e->scratch, id, err);
}

/* Weights of the row's last token, all sites one after the other. */
static const float *depth_of(struct engine *e, int64_t row)
{
    float *to = e->depth;
    for (size_t i = 0; i < e->m->about.num_sites; i++) {
        int64_t n = e->m->about.site[i].sources;
        memcpy(to, e->m->ops->depth(e->m, i) + row * n, (size_t)n * sizeof *to);
        to += n;
    }
    return e->depth;
}

static void count_time(struct engine *e, struct job *j)
{
    double now = mem_seconds();
    if (j->first == 0) {
        j->first = now;
        histogram_add(&e->s.first_token, now - j->arrived);
        histogram_add(&e->s.prefill, now - j->admitted);
    } else {
        histogram_add(&e->s.between_tokens, now - j->last);
    }
    j->last = now;
}

/* Gives the token out; true when it says that the answer ends. */
static bool deliver(struct engine *e, struct job *j, int32_t id, const float *logits, int64_t row)
{
    struct engine_token t = {.id = id};
    struct engine_top top[ENGINE_MAX_TOP];
    struct sample_slot best[ENGINE_MAX_TOP];
    if (j->r.logprobs) {
        t.num_top = sample_logprobs(logits, (size_t)e->m->about.vocab, id, &t.logprob, best,
                                    j->r.top_logprobs);
        for (int i = 0; i < t.num_top; i++) top[i] = (struct engine_top){best[i].id, best[i].logit};
        t.top = top;
    }
    if (j->r.depth) t.depth = depth_of(e, row);
    return j->r.token(j->r.arg, &t);
}

void job_token(struct engine *e, struct job *j, int64_t b, int64_t T)
{
    const float *logits = e->m->ops->logits(e->m) + b * e->m->about.vocab;
    struct rt_error err = {{0}};
    int32_t id = 0;
    if (choose(e, j, logits, &id, &err) != RT_ok) {
        job_finish(e, j, ENGINE_failed, &err);
        return;
    }
    count_time(e, j);
    if (is_stop(j, id)) {
        job_finish(e, j, ENGINE_stop, NULL);
        return;
    }
    j->text[j->n++] = id;
    e->s.completion_tokens++;
    if (j->seen.list) sample_seen_add(&j->seen, id, true);
    if (j->r.json) json_words_take(e->words, &j->guide, id);
    bool text = deliver(e, j, id, logits, b * T + T - 1);
    if (text)
        job_finish(e, j, ENGINE_text, NULL);
    else if (j->r.json && json_guide_complete(&j->guide))
        job_finish(e, j, ENGINE_stop, NULL);
    else if (j->n == j->r.num_prompt + j->r.max_tokens)
        job_finish(e, j, ENGINE_length, NULL);
}
