#include "runtime/plan_file.h"
#include "base/map.h"
#include "base/vec.h"

static const char magic[] = "strata plans 1\n";
enum { PLACE = 64 }; /* most places are multiples of it */
enum step_flag {
    STEP_grain = 1,
    STEP_scratch = 2,
    STEP_launch = 4,
    STEP_stream = 8,
    STEP_all = 15
};

/* ---- writing ---- */

/* Texts in the order of their first use. */
struct table {
    struct map index; /* text to number + 1 */
    VEC(const char *) text;
};
struct writer {
    struct arena *a;
    struct sb *out;
    struct table symbols, texts;
};

static void put(struct sb *out, uint64_t x)
{
    for (; x >= 128; x >>= 7) sb_char(out, (char)(128 | (x & 127)));
    sb_char(out, (char)x);
}

static void put_signed(struct sb *out, int64_t x)
{
    put(out, (uint64_t)x << 1 ^ (x < 0 ? UINT64_MAX : 0));
}

static uint32_t number_of(struct arena *a, struct table *t, const char *text)
{
    uint32_t *at = map_str(&t->index, str_of(text));
    if (!*at) {
        vec_push(a, &t->text, text);
        *at = (uint32_t)t->text.n;
    }
    return *at - 1;
}

static void put_place(struct sb *out, struct sa_buf b)
{
    put(out, b.arena);
    put(out, b.offset % PLACE ? b.offset << 1 | 1 : b.offset / PLACE << 1);
}

static void put_step(struct writer *w, const struct sa_plan *p, const struct sa_step *s)
{
    struct sb *out = w->out;
    const struct sa_launch *x = &s->launch;
    unsigned flags = (s->grain != 1 ? STEP_grain : 0u) | (s->scratch_bytes ? STEP_scratch : 0u) |
                     (x->threads ? STEP_launch : 0u) |
                     (s->stream || s->num_waits ? STEP_stream : 0u);
    CHECK(s->kernel == SA_PRODUCT || s->kernel < p->num_kernels);
    put(out, flags);
    put(out, s->kernel == SA_PRODUCT
                 ? 0
                 : number_of(w->a, &w->symbols, p->kernels[s->kernel].symbol) + 1);
    put(out, number_of(w->a, &w->texts, s->label));
    put(out, (uint64_t)s->items);
    if (flags & STEP_grain) put(out, (uint64_t)s->grain);
    if (flags & STEP_scratch) put(out, s->scratch_bytes);
    put(out, s->num_bufs);
    for (uint32_t i = 0; i < s->num_bufs; i++) put_place(out, p->bufs[s->first_buf + i]);
    put(out, s->num_ints);
    for (uint32_t i = 0; i < s->num_ints; i++) put_signed(out, p->ints[s->first_int + i]);
    if (flags & STEP_stream) {
        put(out, s->stream);
        put(out, s->num_waits);
        for (uint32_t i = 0; i < s->num_waits; i++) put(out, p->waits[s->first_wait + i]);
    }
    if (!(flags & STEP_launch)) return;
    for (int i = 0; i < 3; i++) put(out, x->grid[i]);
    put(out, x->threads);
    put(out, x->shared);
}

static void put_plan(struct writer *w, const struct plan_item *item)
{
    const struct sa_plan *p = &item->plan;
    struct sb *out = w->out;
    put(out, (uint64_t)item->B);
    put(out, (uint64_t)item->T);
    for (int i = 0; i < SA_external; i++) put(out, p->arena_bytes[i]);
    put(out, p->num_externs);
    for (uint32_t i = 0; i < p->num_externs; i++) {
        put(out, number_of(w->a, &w->texts, p->externs[i].name));
        put(out, p->externs[i].bytes);
    }
    put(out, p->num_steps);
    for (uint32_t i = 0; i < p->num_steps; i++) put_step(w, p, &p->steps[i]);
    put(out, p->num_entries);
    for (uint32_t i = 0; i < p->num_entries; i++) {
        put(out, number_of(w->a, &w->texts, p->entries[i].name));
        put(out, p->entries[i].first_step);
        put(out, p->entries[i].num_steps);
    }
    put(out, p->num_values);
    for (uint32_t i = 0; i < p->num_values; i++) {
        const struct sa_value *v = &p->values[i];
        put(out, number_of(w->a, &w->texts, v->name));
        put(out, v->dtype);
        put(out, v->rank);
        for (uint32_t d = 0; d < v->rank; d++) put(out, (uint64_t)v->dims[d]);
        put_place(out, v->at);
    }
}

static void put_table(struct sb *out, const struct table *t)
{
    put(out, t->text.n);
    for (size_t i = 0; i < t->text.n; i++) {
        put(out, strlen(t->text.p[i]));
        sb_str(out, t->text.p[i]);
    }
}

void plan_file_write(const struct plan_item *item, size_t n, struct sb *out)
{
    struct sb plans = {0};
    struct writer w = {.a = arena_open("plans"), .out = &plans};
    map_init(&w.symbols.index, w.a);
    map_init(&w.texts.index, w.a);
    for (size_t i = 0; i < n; i++) put_plan(&w, &item[i]);
    sb_add(out, magic, sizeof magic - 1);
    put_table(out, &w.symbols);
    put_table(out, &w.texts);
    put(out, n);
    sb_add(out, plans.p, plans.n);
    sb_free(&plans);
    arena_close(w.a);
}

/* ---- reading ---- */

struct reader {
    struct arena *a;
    const unsigned char *p, *end;
    const char *wrong; /* the first mistake; nothing counts after it */
    const char **text;
    uint32_t num_texts;
    struct plan_set *set;
    VEC(struct sa_buf) buf; /* of the plan being read */
    VEC(int64_t) num;
    VEC(uint32_t) wait;
};

static void is_wrong(struct reader *r, const char *what)
{
    if (!r->wrong) r->wrong = what;
    r->p = r->end;
}

static uint64_t get(struct reader *r)
{
    uint64_t x = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (r->p == r->end) break;
        unsigned char c = *r->p++;
        if (shift == 63 && c > 1) break;
        x |= (uint64_t)(c & 127) << shift;
        if (c < 128) return x;
    }
    is_wrong(r, "a number is cut");
    return 0;
}

/* A number of at most `most`. */
static uint64_t get_most(struct reader *r, uint64_t most, const char *what)
{
    uint64_t x = get(r);
    if (x > most) is_wrong(r, what);
    return r->wrong ? 0 : x;
}

/* How many of something follow: each takes a byte or more. */
static uint32_t get_count(struct reader *r)
{
    uint64_t n = get(r), left = (uint64_t)(r->end - r->p);
    if (n > left || n >= UINT32_MAX) is_wrong(r, "a count is too large");
    return r->wrong ? 0 : (uint32_t)n;
}

static const char *get_text(struct reader *r)
{
    uint64_t i = get_most(r, r->num_texts ? r->num_texts - 1 : 0, "no such text");
    if (!r->num_texts) is_wrong(r, "no such text");
    return r->wrong ? "" : r->text[i];
}

static int64_t get_signed(struct reader *r)
{
    uint64_t x = get(r);
    return (int64_t)(x >> 1 ^ (x & 1 ? UINT64_MAX : 0));
}

static int64_t get_size(struct reader *r)
{
    return (int64_t)get_most(r, INT64_MAX, "a size is too large");
}

/* A place with `bytes` behind it. */
static struct sa_buf get_place(struct reader *r, const struct sa_plan *p, uint64_t bytes)
{
    struct sa_buf b = {
        .arena = (uint32_t)get_most(r, SA_external + p->num_externs - 1ull, "no such arena")};
    uint64_t x = get(r);
    if (!(x & 1) && x >> 1 > UINT64_MAX / PLACE) is_wrong(r, "a place is too large");
    b.offset = x & 1 ? x >> 1 : (x >> 1) * PLACE;
    if (r->wrong) return (struct sa_buf){0};
    uint64_t room =
        b.arena < SA_external ? p->arena_bytes[b.arena] : p->externs[b.arena - SA_external].bytes;
    if (b.offset > room || bytes > room - b.offset) is_wrong(r, "a place lies outside its arena");
    return b;
}

/* Of step `own`: it waits for steps before it. */
static void get_stream(struct reader *r, uint32_t own, struct sa_step *s)
{
    s->stream = (uint32_t)get_most(r, SA_STREAMS - 1, "no such stream");
    s->num_waits = get_count(r);
    s->first_wait = (uint32_t)r->wait.n;
    if (s->num_waits && !own) is_wrong(r, "the first step waits");
    for (uint32_t i = 0; i < s->num_waits && !r->wrong; i++)
        vec_push(r->a, &r->wait, (uint32_t)get_most(r, own - 1, "a step waits for a later one"));
}

static void get_step(struct reader *r, const struct sa_plan *p, uint32_t own, struct sa_step *s)
{
    unsigned flags = (unsigned)get_most(r, STEP_all, "no such step");
    uint32_t kernel = (uint32_t)get_most(r, r->set->num_code, "no such kernel");
    s->kernel = kernel ? kernel - 1 : SA_PRODUCT;
    s->label = get_text(r);
    s->items = get_size(r);
    s->grain = flags & STEP_grain ? get_size(r) : 1;
    if (s->grain < 1) is_wrong(r, "a grain is nothing");
    s->scratch_bytes = flags & STEP_scratch ? (uint64_t)get_size(r) : 0;
    s->num_bufs = get_count(r);
    s->first_buf = (uint32_t)r->buf.n;
    for (uint32_t i = 0; i < s->num_bufs && !r->wrong; i++)
        vec_push(r->a, &r->buf, get_place(r, p, 0));
    s->num_ints = get_count(r);
    s->first_int = (uint32_t)r->num.n;
    for (uint32_t i = 0; i < s->num_ints && !r->wrong; i++) vec_push(r->a, &r->num, get_signed(r));
    if (!kernel && s->num_ints != SA_P_ints) is_wrong(r, "a product has not all its numbers");
    if (flags & STEP_stream) get_stream(r, own, s);
    if (!(flags & STEP_launch)) return;
    for (int i = 0; i < 3; i++)
        s->launch.grid[i] = (uint32_t)get_most(r, UINT32_MAX, "a grid is too large");
    s->launch.threads = (uint32_t)get_most(r, UINT32_MAX, "a block is too large");
    s->launch.shared = (uint32_t)get_most(r, UINT32_MAX, "a block's memory is too large");
}

static void get_value(struct reader *r, const struct sa_plan *p, struct sa_value *v)
{
    v->name = get_text(r);
    v->dtype = (uint32_t)get_most(r, SA_DTYPES - 1, "no such type");
    v->rank = (uint32_t)get_most(r, SA_RANK, "too many dimensions");
    int64_t bytes = (int64_t)sa_dtype_bytes(v->dtype);
    for (uint32_t d = 0; d < v->rank; d++) {
        v->dims[d] = get_size(r);
        if (__builtin_mul_overflow(bytes, v->dims[d], &bytes)) is_wrong(r, "a value is too large");
    }
    if (!r->wrong) v->at = get_place(r, p, (uint64_t)bytes);
}

static void get_externs(struct reader *r, struct sa_plan *p)
{
    uint32_t n = get_count(r);
    struct sa_extern *x = NEW(r->a, struct sa_extern, n);
    for (uint32_t i = 0; i < n && !r->wrong; i++)
        x[i] = (struct sa_extern){get_text(r), (uint64_t)get_size(r)};
    p->externs = x;
    p->num_externs = n;
}

static void get_entries(struct reader *r, struct sa_plan *p)
{
    uint32_t n = get_count(r);
    struct sa_entry *x = NEW(r->a, struct sa_entry, n);
    for (uint32_t i = 0; i < n && !r->wrong; i++) {
        x[i].name = get_text(r);
        x[i].first_step = (uint32_t)get_most(r, p->num_steps, "no such step");
        x[i].num_steps = (uint32_t)get_most(r, p->num_steps - x[i].first_step, "no such step");
    }
    p->entries = x;
    p->num_entries = n;
}

static void get_plan(struct reader *r, struct plan_item *item)
{
    struct sa_plan *p = &item->plan;
    item->B = get_size(r);
    item->T = get_size(r);
    for (int i = 0; i < SA_external; i++) p->arena_bytes[i] = (uint64_t)get_size(r);
    p->kernels = r->set->code;
    p->num_kernels = r->set->num_code;
    get_externs(r, p);
    uint32_t n = get_count(r);
    struct sa_step *step = NEW(r->a, struct sa_step, n);
    r->buf.p = NULL, r->buf.n = r->buf.cap = 0;
    r->num.p = NULL, r->num.n = r->num.cap = 0;
    r->wait.p = NULL, r->wait.n = r->wait.cap = 0;
    for (uint32_t i = 0; i < n && !r->wrong; i++) get_step(r, p, i, &step[i]);
    p->steps = step;
    p->num_steps = n;
    p->bufs = r->buf.p;
    p->num_bufs = (uint32_t)r->buf.n;
    p->ints = r->num.p;
    p->num_ints = (uint32_t)r->num.n;
    p->waits = r->wait.p;
    p->num_waits = (uint32_t)r->wait.n;
    get_entries(r, p);
    n = get_count(r);
    struct sa_value *value = NEW(r->a, struct sa_value, n);
    for (uint32_t i = 0; i < n && !r->wrong; i++) get_value(r, p, &value[i]);
    p->values = value;
    p->num_values = n;
}

static const char **get_table(struct reader *r, uint32_t *n)
{
    *n = get_count(r);
    const char **text = NEW(r->a, const char *, *n);
    for (uint32_t i = 0; i < *n && !r->wrong; i++) {
        uint32_t length = get_count(r);
        text[i] = str_dup(r->a, (struct str){(const char *)r->p, length});
        r->p += length;
    }
    return text;
}

enum rt_status plan_file_read(struct arena *a, struct str bytes, struct plan_set *out,
                              struct rt_error *err)
{
    *out = (struct plan_set){0};
    if (!str_starts(bytes, magic)) return rt_fail(err, RT_user, "these are no plans of strata");
    const unsigned char *p = (const unsigned char *)bytes.p;
    struct reader r = {.a = a, .p = p + sizeof magic - 1, .end = p + bytes.n, .set = out};
    const char **symbol = get_table(&r, &out->num_code);
    r.text = get_table(&r, &r.num_texts);
    out->code = NEW(a, struct sa_code, out->num_code);
    for (uint32_t i = 0; i < out->num_code && !r.wrong; i++) out->code[i].symbol = symbol[i];
    out->n = get_count(&r);
    out->item = NEW(a, struct plan_item, out->n);
    for (size_t i = 0; i < out->n && !r.wrong; i++) get_plan(&r, &out->item[i]);
    if (r.p != r.end) is_wrong(&r, "something follows the plans");
    if (!r.wrong) return RT_ok;
    *out = (struct plan_set){0};
    return rt_fail(err, RT_user, "damaged plans: %s", r.wrong);
}

const struct sa_plan *plan_set_find(const struct plan_set *s, int64_t B, int64_t T)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->item[i].B == B && s->item[i].T == T) return &s->item[i].plan;
    return NULL;
}
