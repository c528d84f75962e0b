#include "compiler/pack.h"
#include "runtime/mem.h"
#include "runtime/mxfp4.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PANEL = STORE_PANEL, ROWS_PIECE = 1 << 16 /* values in rows at once, about */ };

struct pack {
    struct arena *a;
    const struct params *ps;
    struct tensorfile *file; /* one of the three: a file, */
    const struct weight_source *source;
    size_t *first_source; /* of each parameter */
    float *const *memory; /* arrays, */
    uint64_t seed;        /* or initial weights */
};

/* ---- sources ---- */

static struct pack *new_pack(const struct params *ps)
{
    struct arena *a = arena_open("pack");
    struct pack *p = NEW(a, struct pack, 1);
    p->a = a;
    p->ps = ps;
    return p;
}

void pack_close(struct pack *p)
{
    if (!p) return;
    tensorfile_close(p->file);
    arena_close(p->a);
}

enum rt_status pack_open(const struct params *ps, const char *path, struct diag *d,
                         struct pack **out, struct rt_error *err)
{
    struct pack *p = new_pack(ps);
    *out = NULL;
    enum rt_status st = tensorfile_open(path, &p->file, err);
    if (!st) {
        p->source = weights_match(p->a, ps, p->file, path, d);
        if (!p->source)
            st = rt_fail(err, RT_user, "%s does not fit the model; nothing was loaded", path);
    }
    if (st) {
        pack_close(p);
        return st;
    }
    p->first_source = NEW(p->a, size_t, ps->n);
    for (size_t i = 0, at = 0; i < ps->n; at += ps->p[i++].num_parts) p->first_source[i] = at;
    *out = p;
    return RT_ok;
}

struct pack *pack_fresh(const struct params *ps, uint64_t seed)
{
    struct pack *p = new_pack(ps);
    p->seed = seed;
    return p;
}

struct pack *pack_memory(const struct params *ps, float *const *memory)
{
    struct pack *p = new_pack(ps);
    p->memory = memory;
    return p;
}

/* Elements first .. first + n - 1 of a part. */
static enum rt_status read_part(const struct pack *p, size_t param, size_t part, int64_t first,
                                int64_t n, float *out, struct rt_error *err)
{
    const struct param_part *q = &p->ps->p[param].part[part];
    if (!p->file) {
        init_fill(p->ps->p[param].init, p->seed, rng_stream(q->tensor), (uint64_t)first, (size_t)n,
                  out);
        return RT_ok;
    }
    const struct weight_source *s = &p->source[p->first_source[param] + part];
    if (!s->scale) return tf_read_f32(s->values, (size_t)first, (size_t)n, out, err);
    int64_t cols = q->dim[1]; /* whole rows: a panel's are those of one matrix, and parts are too */
    CHECK(first % cols == 0 && n % cols == 0);
    const unsigned char *codes = s->values->data, *scales = s->scale->data;
    mxfp4_read(codes + first / 2, scales + first / MXFP4_BLOCK, (size_t)(n / cols), (size_t)cols,
               out);
    return RT_ok;
}

/* The same of a parameter, whose parts lie end to end. */
static enum rt_status read_range(const struct pack *p, size_t param, int64_t first, int64_t n,
                                 float *out, struct rt_error *err)
{
    const struct param *x = &p->ps->p[param];
    if (p->memory) {
        memcpy(out, p->memory[param] + first, (size_t)n * sizeof *out);
        return RT_ok;
    }
    for (size_t i = 0; i < x->num_parts; i++) {
        int64_t from = x->part[i].offset, to = from + part_count(&x->part[i]);
        int64_t lo = first > from ? first : from, hi = first + n < to ? first + n : to;
        if (lo < hi) RT_TRY(read_part(p, param, i, lo - from, hi - lo, out + (lo - first), err));
    }
    return RT_ok;
}

/* ---- panels ---- */

static void panel_f32(const float *rows, int64_t n, int64_t k, float *out)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < k; j++) out[j * PANEL + i] = rows[i * k + j];
}

static void panel_bf16(const float *rows, int64_t n, int64_t k, uint16_t *out)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < k; j += 64) {
            uint16_t half[64];
            int64_t m = k - j < 64 ? k - j : 64;
            tf_to_bf16(rows + i * k + j, (size_t)m, half);
            for (int64_t t = 0; t < m; t++)
                out[((j + t) / 2 * PANEL + i) * 2 + (j + t) % 2] = half[t];
        }
}

/* False where a number is not finite. */
static bool panel_i8(const float *rows, int64_t n, int64_t k, int8_t *out, float *scales)
{
    for (int64_t i = 0; i < n; i++) {
        const float *x = rows + i * k;
        float most = 0;
        for (int64_t j = 0; j < k; j++) {
            if (!isfinite(x[j])) return false;
            most = fmaxf(most, fabsf(x[j]));
        }
        scales[i] = most / 127;
        for (int64_t j = 0; j < k && scales[i] > 0; j++)
            out[j * PANEL + i] = (int8_t)rintf(x[j] / scales[i]);
    }
    return true;
}

/* Panel i of an item (parts one after the other) to `out`, which is zero; of i8 its 16 scales. */
static enum rt_status make_panel(const struct pack *p, const struct layout_stored *x, size_t param,
                                 int64_t i, float *rows, void *out, float *scales,
                                 struct rt_error *err)
{
    const struct store_shape s = x->shape;
    int64_t part = i / store_panels(s), row = i % store_panels(s) * PANEL;
    int64_t n = s.n - row < PANEL ? s.n - row : PANEL;
    RT_TRY(read_range(p, param, (part * s.n + row) * s.k, n * s.k, rows, err));
    if (x->store == STORE_f32)
        panel_f32(rows, n, s.k, out);
    else if (x->store == STORE_bf16)
        panel_bf16(rows, n, s.k, out);
    else if (!panel_i8(rows, n, s.k, out, scales))
        return rt_fail(err, RT_user, "%s has numbers that are not finite: it cannot be int8",
                       x->name);
    return RT_ok;
}

static size_t find_param(const struct pack *p, const struct layout_stored *x)
{
    const struct param *q = params_find(p->ps, x->name);
    if (!q) BUG("no parameter %s", x->name);
    CHECK(q->count == x->shape.parts * x->shape.n * x->shape.k);
    return (size_t)(q - p->ps->p);
}

/* Values of a piece of what lies in rows: whole rows. */
static int64_t piece_values(const struct layout_stored *x)
{
    int64_t k = x->shape.k;
    return k < ROWS_PIECE ? ROWS_PIECE / k * k : k;
}

/* Pieces that an item is made of: panels or rows. */
static int64_t pieces(const struct layout_stored *x)
{
    struct store_shape s = x->shape;
    if (store_in_panels(x->store)) return s.parts * store_panels(s);
    return (s.parts * s.n * s.k + piece_values(x) - 1) / piece_values(x);
}

static int64_t piece_bytes(const struct layout_stored *x)
{
    if (store_in_panels(x->store)) return store_panel_bytes(x->store, x->shape.k);
    return piece_values(x) * store_row_bytes(x->store);
}

/* Piece i to `out`; returns its bytes in *bytes (the last one in rows is short). `rows` has room
 * for a piece as float32. */
static enum rt_status make_piece(const struct pack *p, const struct layout_stored *x, int64_t i,
                                 float *rows, void *out, float *scales, int64_t *bytes,
                                 struct rt_error *err)
{
    size_t param = find_param(p, x);
    *bytes = piece_bytes(x);
    if (store_in_panels(x->store)) return make_panel(p, x, param, i, rows, out, scales, err);
    int64_t first = i * piece_values(x), left = p->ps->p[param].count - first;
    int64_t n = left < piece_values(x) ? left : piece_values(x);
    *bytes = n * store_row_bytes(x->store);
    if (x->store == STORE_rows) return read_range(p, param, first, n, out, err);
    RT_TRY(read_range(p, param, first, n, rows, err));
    tf_to_bf16(rows, (size_t)n, out);
    return RT_ok;
}

/* Floats of the rows behind the largest panel or piece. */
static size_t row_floats(const struct layout_stored *items, size_t n)
{
    int64_t most = 1;
    for (size_t i = 0; i < n; i++) {
        const struct layout_stored *x = &items[i];
        int64_t floats = x->shape.k * PANEL;
        if (!store_in_panels(x->store)) floats = x->store == STORE_rows ? 0 : piece_values(x);
        if (floats > most) most = floats;
    }
    return (size_t)most;
}

static enum rt_status no_memory(struct rt_error *err)
{
    return rt_fail(err, RT_machine, "no memory to pack weights");
}

/* ---- into memory ---- */

struct job {
    struct pack *p;
    const struct layout_stored *item;
    int64_t *first; /* piece of each item, and of the end */
    size_t n;
    char *image;
    float *rows; /* of each worker */
    size_t row_floats;
    enum rt_status *failed; /* of each worker, with its error */
    struct rt_error *error;
};

static void pack_pieces(void *arg, int64_t lo, int64_t hi, unsigned worker)
{
    const struct job *j = arg;
    for (size_t i = 0; i < j->n; i++)
        for (int64_t k = j->first[i] > lo ? j->first[i] : lo; k < hi && k < j->first[i + 1]; k++) {
            const struct layout_stored *x = &j->item[i];
            char *base = j->image + x->offset;
            int64_t at = k - j->first[i], bytes;
            float *scales = NULL;
            if (x->store == STORE_i8)
                scales = (float *)(base + store_scales(x->shape)) + at * PANEL;
            if (j->failed[worker]) return;
            j->failed[worker] =
                make_piece(j->p, x, at, j->rows + worker * j->row_floats,
                           base + at * piece_bytes(x), scales, &bytes, &j->error[worker]);
        }
}

enum rt_status weights_pack(struct pack *from, const struct layout_stored *items, size_t n,
                            void *image, struct pool *pool, struct rt_error *err)
{
    enum { PIECES = 8 };
    struct arena *a = arena_open("pack");
    unsigned threads = pool ? pool_threads(pool) : 1;
    struct job j = {.p = from, .item = items, .n = n, .image = image};
    j.first = NEW(a, int64_t, n + 1);
    j.failed = NEW(a, enum rt_status, threads);
    j.error = NEW(a, struct rt_error, threads);
    j.row_floats = row_floats(items, n);
    j.rows = malloc(threads * j.row_floats * sizeof *j.rows);
    for (size_t i = 0; i < n; i++) j.first[i + 1] = j.first[i] + pieces(&items[i]);
    enum rt_status st = j.rows ? RT_ok : no_memory(err);
    if (!st && pool)
        pool_run(pool, pack_pieces, &j, j.first[n], PIECES);
    else if (!st)
        pack_pieces(&j, 0, j.first[n], 0);
    for (unsigned i = 0; i < threads && !st; i++)
        if (j.failed[i]) st = rt_fail(err, j.failed[i], "%s", j.error[i].text);
    free(j.rows);
    arena_close(a);
    return st;
}

/* ---- into a sink ---- */

enum { BATCH = 8 << 20 }; /* bytes made at once, about */

struct stream {
    tf_sink *sink;
    void *ctx;
    uint64_t at;
    struct rt_error *err;
    struct job job; /* its image: room for a batch */
    struct pool *pool;
};

static enum rt_status put(struct stream *s, const void *p, size_t n)
{
    int e = s->sink(s->ctx, p, n);
    s->at += n;
    return e ? rt_fail(s->err, RT_machine, "cannot write weights: %s", strerror(e)) : RT_ok;
}

static enum rt_status put_zeros(struct stream *s, uint64_t to)
{
    static const char zeros[4096];
    CHECK(to >= s->at);
    while (s->at < to) {
        uint64_t left = to - s->at;
        RT_TRY(put(s, zeros, left < sizeof zeros ? (size_t)left : sizeof zeros));
    }
    return RT_ok;
}

struct batch {
    struct stream *s;
    const struct layout_stored *item;
    int64_t first;
    float *scales;
};

static void make_batch(void *arg, int64_t lo, int64_t hi, unsigned worker)
{
    const struct batch *b = arg;
    const struct job *j = &b->s->job;
    int64_t each = piece_bytes(b->item), bytes;
    for (int64_t i = lo; i < hi && !j->failed[worker]; i++)
        j->failed[worker] = make_piece(
            j->p, b->item, b->first + i, j->rows + worker * j->row_floats, j->image + i * each,
            b->scales ? b->scales + (b->first + i) * PANEL : NULL, &bytes, &j->error[worker]);
}

/* Pieces first .. first + n - 1 of an item. */
static enum rt_status stream_batch(struct stream *s, const struct layout_stored *x, int64_t first,
                                   int64_t n, float *scales)
{
    struct batch b = {s, x, first, scales};
    uint64_t bytes = (uint64_t)(n * piece_bytes(x)), left = x->offset + x->bytes - s->at;
    unsigned threads = s->pool ? pool_threads(s->pool) : 1;
    memset(s->job.image, 0, bytes);
    if (s->pool)
        pool_run(s->pool, make_batch, &b, n, 1);
    else
        make_batch(&b, 0, n, 0);
    for (unsigned i = 0; i < threads; i++)
        if (s->job.failed[i]) return rt_fail(s->err, s->job.failed[i], "%s", s->job.error[i].text);
    return put(s, s->job.image, bytes < left ? bytes : left); /* the last piece may be short */
}

static enum rt_status stream_item(struct stream *s, const struct layout_stored *x)
{
    bool scaled = x->store == STORE_i8;
    int64_t all = pieces(x), some = BATCH / piece_bytes(x) + 1;
    float *scales = scaled ? calloc((size_t)all * PANEL, sizeof *scales) : NULL;
    if (scaled && !scales) return no_memory(s->err);
    enum rt_status st = put_zeros(s, x->offset);
    for (int64_t i = 0; i < all && !st; i += some)
        st = stream_batch(s, x, i, all - i < some ? all - i : some, scales);
    if (!st && scaled) st = put_zeros(s, x->offset + (uint64_t)store_scales(x->shape));
    if (!st && scaled) st = put(s, scales, (size_t)(all * PANEL) * sizeof *scales);
    free(scales);
    return st;
}

enum rt_status weights_pack_stream(struct pack *from, const struct layout_stored *items, size_t n,
                                   uint64_t bytes, struct pool *pool, tf_sink *sink, void *ctx,
                                   struct rt_error *err)
{
    struct arena *a = arena_open("pack");
    unsigned threads = pool ? pool_threads(pool) : 1;
    struct stream s = {.sink = sink, .ctx = ctx, .err = err, .pool = pool};
    int64_t most = 1;
    for (size_t i = 0; i < n; i++)
        if (piece_bytes(&items[i]) > most) most = piece_bytes(&items[i]);
    s.job = (struct job){.p = from, .row_floats = row_floats(items, n)};
    s.job.failed = NEW(a, enum rt_status, threads);
    s.job.error = NEW(a, struct rt_error, threads);
    s.job.rows = malloc(threads * s.job.row_floats * sizeof *s.job.rows);
    s.job.image = malloc(BATCH + (size_t)most);
    enum rt_status st = s.job.rows && s.job.image ? RT_ok : no_memory(err);
    for (size_t i = 0; i < n && !st; i++) st = stream_item(&s, &items[i]);
    if (!st) st = put_zeros(&s, bytes);
    free(s.job.rows), free(s.job.image);
    arena_close(a);
    return st;
}
