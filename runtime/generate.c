#include "runtime/generate.h"
#include "runtime/mem.h"
#include <stdlib.h>

const char *generate_wrong(const struct generate_options *o)
{
    if (!o->prompt == !o->ids) return "generate needs either --prompt or --prompt-ids";
    if (!(o->temperature >= 0) || !(o->top_p > 0 && o->top_p <= 1))
        return "--temperature must be at least 0, --top-p in (0, 1]";
    if (o->max < 0 || o->seed < 0) return "--max-tokens and --seed must be at least 0";
    return NULL;
}

static enum rt_status parse_ids(struct generate *g, const char *s, int64_t vocab,
                                struct rt_error *err)
{
    for (char *end; *s; s = *end == ',' ? end + 1 : end) {
        long long id = strtoll(s, &end, 10);
        if (end == s || (*end && *end != ',') || (*end == ',' && !end[1]))
            return rt_fail(err, RT_usage,
                           "--prompt-ids needs numbers with commas between, as 1,2,3");
        if (id < 0 || id >= vocab)
            return rt_fail(err, RT_user, "id %lld is not in the vocabulary of %lld", id,
                           (long long)vocab);
        RT_TRY(tok_ids_add(&g->text, (int32_t)id, err));
    }
    return RT_ok;
}

enum rt_status generate_prompt(struct generate *g, const struct generate_options *o, int64_t vocab,
                               struct rt_error *err)
{
    if (o->prompt && !g->tok)
        return rt_fail(err, RT_user,
                       "the spec names no tokenizer, so the prompt must come as --prompt-ids");
    if (o->prompt && g->bos >= 0) RT_TRY(tok_ids_add(&g->text, (int32_t)g->bos, err));
    if (o->prompt) RT_TRY(tokenizer_encode(g->tok, str_of(o->prompt), &g->text, err));
    if (o->ids) RT_TRY(parse_ids(g, o->ids, vocab, err));
    return g->text.n ? RT_ok : rt_fail(err, RT_user, "the prompt is empty");
}

void generate_begin(struct generate *g, struct arena *a, struct lm *lm)
{
    int64_t n = lm->about.context / LM_PAGE;
    g->lm = lm;
    g->pages = NEW(a, int32_t, n);
    for (int64_t i = 0; i < n; i++) g->pages[i] = (int32_t)i;
    g->slots = NEW(a, struct sample_slot, lm->about.vocab);
    CHECK(n <= lm->about.pages || !lm->about.page_bytes);
}

void generate_end(struct generate *g)
{
    free(g->text.p);
    g->text = (struct tok_ids){0};
}

enum rt_status generate_logits(struct generate *g, const float **out, struct rt_error *err)
{
    static const int32_t state = 0;
    CHECK(g->text.n && (int64_t)g->text.n <= g->lm->about.context);
    while (g->known < g->text.n) {
        int64_t T = lm_cut((int64_t)(g->text.n - g->known), LM_CHUNK);
        int32_t past = (int32_t)g->known;
        const struct lm_call c = {1, T, g->text.p + g->known, &past, &state, g->pages};
        RT_TRY(g->lm->ops->run(g->lm, &c, err));
        g->known += (size_t)T;
    }
    *out = g->lm->ops->logits(g->lm);
    return RT_ok;
}

enum rt_status generate_next(struct generate *g, const struct sampler *s, int32_t *id, bool *end,
                             struct rt_error *err)
{
    const float *logits;
    RT_TRY(generate_logits(g, &logits, err));
    RT_TRY(sample_token(s, logits, (size_t)g->lm->about.vocab, g->text.n, g->slots, id, err));
    *end = false;
    for (size_t i = 0; i < g->num_stop; i++) *end |= g->stop[i] == *id;
    return *end ? RT_ok : tok_ids_add(&g->text, *id, err);
}

/* ---- for people ---- */

static void show(const struct generate *g, const struct generate_options *o, FILE *to,
                 struct tok_stream *s, int32_t id, bool first)
{
    struct sb out = {0};
    if (o->print_ids || !g->tok)
        sb_printf(&out, first ? "%d" : " %d", id);
    else
        tok_stream_add(s, g->tok, id, &out);
    if (out.n) fwrite(out.p, 1, out.n, to);
    fflush(to);
    sb_free(&out);
}

/* Seconds to the first of `now` new tokens, and for those after it. */
static void show_stats(size_t prompt, size_t now, double first, double rest)
{
    fprintf(stderr, "first token after %.1f ms, a prompt of %zu tokens: %.0f tokens/s\n",
            1e3 * first, prompt, first > 0 ? (double)prompt / first : 0);
    if (now > 1)
        fprintf(stderr, "%zu more tokens in %.1f ms: %.1f tokens/s\n", now - 1, 1e3 * rest,
                rest > 0 ? (double)(now - 1) / rest : 0);
}

enum rt_status generate_run(struct generate *g, const struct generate_options *o, FILE *to,
                            struct rt_error *err)
{
    const struct sampler s = {
        .temperature = o->temperature, .top_p = o->top_p, .seed = (uint64_t)o->seed};
    struct tok_stream stream = {.n = 0};
    struct sb rest = {0};
    size_t prompt = g->text.n, begin = g->text.p[0] == g->bos;
    if ((int64_t)prompt > g->lm->about.context - o->max)
        return rt_fail(err, RT_user,
                       "a prompt of %zu tokens and --max-tokens %lld do not fit in the context of "
                       "%lld",
                       prompt, (long long)o->max, (long long)g->lm->about.context);
    for (size_t i = begin; i < prompt && !o->print_ids && g->tok; i++)
        show(g, o, to, &stream, g->text.p[i], false);
    double start = mem_seconds(), first = start;
    bool end = false;
    for (int64_t i = 0; i < o->max && !end; i++) {
        int32_t id;
        RT_TRY(generate_next(g, &s, &id, &end, err));
        if (!i) first = mem_seconds();
        if (!end) show(g, o, to, &stream, id, i == 0);
    }
    tok_stream_end(&stream, &rest);
    if (rest.n) fwrite(rest.p, 1, rest.n, to);
    sb_free(&rest);
    fputc('\n', to);
    if (o->stats) show_stats(prompt, g->text.n - prompt, first - start, mem_seconds() - first);
    return RT_ok;
}
