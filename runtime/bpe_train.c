#include "runtime/bpe_train.h"
#include "base/map.h"
#include "base/vec.h"
#include "runtime/bpe.h"
#include "runtime/meter.h"
#include "runtime/presplit.h"
#include "runtime/utf8.h"
#include <stdlib.h>
#include <unistd.h>

enum { LONGEST = 1024 };
#define NO_ENTRY UINT32_MAX

struct word { /* a piece that occurs `count` times: ids at `at` of the list of all */
    size_t at;
    uint32_t n;
    int64_t count;
};
struct pair {
    int32_t left, right;
    int64_t count;
    uint32_t entry; /* the words it may be in, a list through `next` */
    bool touched;   /* is in the list of those that became more frequent */
};
struct entry {
    uint32_t word, next;
};
struct candidate { /* on the heap; of no use when the pair's count has changed since */
    int64_t count;
    int32_t left, right;
    uint32_t pair;
};
struct training {
    const struct bpe_train_options *o;
    struct arena *a;
    struct map words, pairs, tokens; /* by bytes; by both ids; by bytes */
    VEC(struct word) word;
    VEC(int32_t) id;
    VEC(struct pair) pair;
    VEC(struct entry) entry;
    VEC(struct candidate) heap;
    VEC(uint32_t) touched;
    VEC(struct str) token;
    struct meter meter;
    uint64_t seen; /* bytes */
};

/* ---- counting pieces ---- */

static enum rt_status put_word(struct training *t, struct str s, struct rt_error *err)
{
    uint32_t *w = map_str(&t->words, s);
    if (!*w) {
        if (t->word.n >= NO_ENTRY - 1)
            return rt_fail(err, RT_user, "the text has too many different pieces");
        struct word fresh = {t->id.n, (uint32_t)s.n, 0};
        vec_room(t->a, &t->id, s.n);
        for (size_t i = 0; i < s.n; i++) t->id.p[t->id.n++] = (unsigned char)s.p[i];
        vec_push(t->a, &t->word, fresh);
        *w = (uint32_t)t->word.n;
    }
    t->word.p[*w - 1].count++;
    return RT_ok;
}

static enum rt_status put_piece(void *to, struct str s, struct rt_error *err)
{
    struct training *t = to;
    t->seen += s.n;
    for (; s.n > LONGEST; s.p += LONGEST, s.n -= LONGEST)
        RT_TRY(put_word(t, (struct str){s.p, LONGEST}, err));
    RT_TRY(put_word(t, s, err));
    if (t->seen % 64 < s.n) meter_step(&t->meter, t->seen);
    return RT_ok;
}

static enum rt_status put_special(void *to, int32_t id, struct rt_error *err)
{
    (void)to, (void)id, (void)err;
    return RT_ok;
}

static enum rt_status count_pieces(struct training *t, struct str text, struct rt_error *err)
{
    const struct bpe_train_options *o = t->o;
    const char *named = pattern_named(o->pattern);
    struct split_special *special = NEW(t->a, struct split_special, o->num_special);
    for (size_t i = 0; i < o->num_special; i++)
        special[i] = (struct split_special){str_of(o->special[i]), 0, true};
    if (o->num_special) qsort(special, o->num_special, sizeof *special, split_special_order);
    struct pattern *p;
    struct splitter *s;
    RT_TRY(pattern_open(named ? named : o->pattern, &p, err));
    const struct split_rules rules = {.pattern = p,
                                      .guard = !strcmp(o->pattern, "kimi"),
                                      .special = special,
                                      .num_special = o->num_special};
    const struct split_sink sink = {t, put_piece, put_special};
    struct tok_part part = {text, 0, 0, true};
    enum rt_status st = splitter_open(&rules, false, &s, err);
    if (st == RT_ok) {
        meter_start(&t->meter, o->progress ? STDERR_FILENO : -1, "reading", text.n);
        st = splitter_run(s, &part, &sink, err);
        meter_end(&t->meter);
        splitter_close(s);
    }
    pattern_close(p);
    return st;
}

/* ---- counting pairs ---- */

static bool before(const struct candidate *a, const struct candidate *b)
{
    if (a->count != b->count) return a->count > b->count;
    return a->left != b->left ? a->left < b->left : a->right < b->right;
}

static void push(struct training *t, uint32_t index)
{
    const struct pair *p = &t->pair.p[index];
    struct candidate c = {p->count, p->left, p->right, index}, *h;
    vec_push(t->a, &t->heap, c);
    h = t->heap.p;
    size_t i = t->heap.n - 1;
    for (; i && before(&c, &h[(i - 1) / 2]); i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
    h[i] = c;
}

static struct candidate pop(struct training *t)
{
    struct candidate *h = t->heap.p, top = h[0], c = h[--t->heap.n];
    size_t i = 0, n = t->heap.n;
    for (size_t k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && before(&h[k + 1], &h[k])) k++;
        if (!before(&h[k], &c)) break;
        h[i] = h[k];
    }
    h[i] = c;
    return top;
}

static uint32_t pair_of(struct training *t, int32_t left, int32_t right)
{
    uint32_t *i = map_num(&t->pairs, (uint64_t)(uint32_t)left << 32 | (uint32_t)right);
    if (!*i) {
        const struct pair fresh = {left, right, 0, NO_ENTRY, false};
        vec_push(t->a, &t->pair, fresh);
        *i = (uint32_t)t->pair.n;
    }
    return *i - 1;
}

/* One more place of a pair, in that word. */
static void add(struct training *t, uint32_t index, uint32_t word)
{
    struct pair *p = &t->pair.p[index];
    p->count += t->word.p[word].count;
    if (!p->touched) {
        p->touched = true;
        vec_push(t->a, &t->touched, index);
    }
    if (p->entry != NO_ENTRY && t->entry.p[p->entry].word == word) return;
    CHECK(t->entry.n < NO_ENTRY);
    const struct entry e = {word, p->entry};
    p->entry = (uint32_t)t->entry.n;
    vec_push(t->a, &t->entry, e);
}

static void push_touched(struct training *t)
{
    for (size_t i = 0; i < t->touched.n; i++) {
        t->pair.p[t->touched.p[i]].touched = false;
        push(t, t->touched.p[i]);
    }
    t->touched.n = 0;
}

static void count_pairs(struct training *t)
{
    for (uint32_t w = 0; w < t->word.n; w++) {
        struct word x = t->word.p[w];
        for (uint32_t i = 0; i + 1 < x.n; i++)
            add(t, pair_of(t, t->id.p[x.at + i], t->id.p[x.at + i + 1]), w);
    }
    push_touched(t);
}

/* ---- merging ---- */

/* Joins the pair wherever it is in the word; counts of all its pairs follow. */
static void merge_in(struct training *t, uint32_t w, int32_t left, int32_t right, int32_t id)
{
    struct word *x = &t->word.p[w];
    int32_t *p = t->id.p + x->at;
    uint32_t n = 0, i = 0;
    while (i + 1 < x->n && !(p[i] == left && p[i + 1] == right)) i++;
    if (i + 1 >= x->n) return;
    for (i = 0; i + 1 < x->n; i++) t->pair.p[pair_of(t, p[i], p[i + 1])].count -= x->count;
    for (i = 0; i < x->n; n++) {
        bool here = i + 1 < x->n && p[i] == left && p[i + 1] == right;
        p[n] = here ? id : p[i];
        i += here ? 2 : 1;
    }
    x->n = n;
    for (i = 0; i + 1 < n; i++) {
        uint32_t k = pair_of(t, p[i], p[i + 1]);
        if (p[i] == id || p[i + 1] == id)
            add(t, k, w);
        else
            t->pair.p[k].count += x->count;
    }
}

/* The id of the joined bytes, which are a new token unless other pairs made the same. */
static int32_t join(struct training *t, int32_t left, int32_t right)
{
    struct str x = t->token.p[left], y = t->token.p[right];
    char *both = arena_alloc(t->a, x.n + y.n, 1, STRATA_SITE);
    memcpy(both, x.p, x.n);
    memcpy(both + x.n, y.p, y.n);
    uint32_t *id = map_str(&t->tokens, (struct str){both, x.n + y.n});
    if (!*id) {
        const struct str s = {both, x.n + y.n};
        vec_push(t->a, &t->token, s);
        *id = (uint32_t)t->token.n;
    }
    return (int32_t)*id - 1;
}

static enum rt_status merge_all(struct training *t, size_t want, const char *label,
                                struct rt_error *err)
{
    meter_start(&t->meter, t->o->progress ? STDERR_FILENO : -1, "merging", want);
    t->meter.items = true;
    while (t->token.n < want && t->heap.n) {
        struct candidate c = pop(t);
        struct pair *p = &t->pair.p[c.pair];
        if (p->count != c.count) {
            if (p->count > 0 && p->count < c.count) push(t, c.pair);
            continue;
        }
        int32_t id = join(t, c.left, c.right);
        for (uint32_t e = p->entry; e != NO_ENTRY; e = t->entry.p[e].next)
            merge_in(t, t->entry.p[e].word, c.left, c.right, id);
        push_touched(t);
        meter_step(&t->meter, t->token.n);
    }
    meter_end(&t->meter);
    if (t->token.n == want) return RT_ok;
    return rt_fail(err, RT_user, "'%s' gives only %zu tokens, special ones included; ask for fewer",
                   label, t->token.n + t->o->num_special);
}

/* ---- the whole ---- */

static enum rt_status write_out(struct training *t, struct bpe_trained *out, struct rt_error *err)
{
    const struct bpe_train_options *o = t->o;
    struct tok_name *names = NEW(t->a, struct tok_name, o->num_special);
    for (size_t i = 0; i < t->token.n; i++)
        tokenizer_rank_line(t->token.p[i], (uint32_t)i, &out->ranks);
    for (size_t i = 0; i < o->num_special; i++)
        names[i] = (struct tok_name){o->special[i], (int64_t)(t->token.n + i)};
    for (size_t i = 0; i < t->word.n; i++)
        out->tokens += (uint64_t)t->word.p[i].count * t->word.p[i].n;
    out->pieces = t->word.n;
    const struct tok_options beside = {o->pattern, names, o->num_special};
    return tokenizer_rank_beside(&beside, &out->beside, err);
}

enum rt_status bpe_train(const struct bpe_train_options *o, struct str text, const char *label,
                         struct bpe_trained *out, struct rt_error *err)
{
    *out = (struct bpe_trained){.tokens = 0};
    int64_t least = 256 + (int64_t)o->num_special;
    if (o->vocab_size < least || o->vocab_size > BPE_IDS)
        return rt_fail(err, RT_user, "a vocabulary has %lld to %d ids, not %lld", (long long)least,
                       BPE_IDS, (long long)o->vocab_size);
    for (size_t i = 0; i < o->num_special; i++)
        if (!*o->special[i]) return rt_fail(err, RT_user, "a special token has no name");
    size_t bad = utf8_check(text);
    if (bad < text.n)
        return rt_fail(err, RT_user, "'%s' has invalid UTF-8 at byte %zu", label, bad);
    struct training t = {.o = o, .a = arena_open("tokenizer training")};
    map_init(&t.words, t.a);
    map_init(&t.pairs, t.a);
    map_init(&t.tokens, t.a);
    for (int c = 0; c < 256; c++) {
        const struct str s = {arena_dup(t.a, (const char[]){(char)c}, 1, STRATA_SITE), 1};
        vec_push(t.a, &t.token, s);
        *map_str(&t.tokens, s) = (uint32_t)t.token.n;
    }
    enum rt_status st = count_pieces(&t, text, err);
    if (st == RT_ok) {
        count_pairs(&t);
        st = merge_all(&t, (size_t)(o->vocab_size - (int64_t)o->num_special), label, err);
    }
    if (st == RT_ok) st = write_out(&t, out, err);
    arena_close(t.a);
    if (st == RT_ok) return st;
    sb_free(&out->ranks);
    sb_free(&out->beside);
    return st;
}
