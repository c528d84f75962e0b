#include "runtime/dataset.h"
#include "base/map.h"
#include "runtime/mapped.h"
#include "runtime/meter.h"
#include "runtime/npy.h"
#include "runtime/philox.h"
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

/* Ids are checked at the start up to this many tokens, and window by window in any case. */
#define CHECK_AT_OPEN ((uint64_t)1 << 28)

struct dataset {
    struct dataset_options o;
    char *path;
    uint64_t n, train; /* tokens */
    /* exactly one of the three holds the tokens */
    struct mapped bytes;
    struct npy npy;
    struct tok_ids ids;
};

uint64_t permute_index(uint64_t seed, uint64_t epoch, uint64_t n, uint64_t i)
{
    CHECK(i < n);
    enum { ROUNDS = 8 };
    unsigned half = 1;
    while (half < 31 && ((uint64_t)1 << 2 * half) < n) half++;
    CHECK(((uint64_t)1 << 2 * half) >= n);
    uint32_t mask = (uint32_t)(((uint64_t)1 << half) - 1),
             key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    do {
        uint32_t l = (uint32_t)(i >> half) & mask, r = (uint32_t)i & mask;
        for (uint32_t round = 0; round < ROUNDS; round++) {
            uint32_t counter[4] = {r, 0x6f726400u + round, (uint32_t)epoch,
                                   (uint32_t)(epoch >> 32)};
            uint32_t w[4];
            philox4x32(counter, key, w);
            uint32_t next = l ^ (w[0] & mask);
            l = r;
            r = next;
        }
        i = (uint64_t)l << half | r;
    } while (i >= n);
    return i;
}

static int64_t token(const struct dataset *d, uint64_t i)
{
    if (d->bytes.bytes) return (unsigned char)d->bytes.bytes[i];
    return d->npy.data ? npy_int(&d->npy, (size_t)i) : d->ids.p[i];
}

static enum rt_status check_id(const struct dataset *d, uint64_t i, int64_t id,
                               struct rt_error *err)
{
    if (id < d->o.vocab_size) return RT_ok;
    return rt_fail(err, RT_user, "'%s': token %llu is %lld, which is not below vocab_size %lld",
                   d->path, (unsigned long long)i, (long long)id, (long long)d->o.vocab_size);
}

/* ---- opening ---- */

static enum rt_status open_npy(struct dataset *d, struct rt_error *err)
{
    RT_TRY(npy_open(d->path, &d->npy, err));
    if (d->npy.type != NPY_i32 && d->npy.type != NPY_u16)
        return rt_fail(err, RT_user, "'%s' does not hold int32 or uint16 token ids", d->path);
    if (d->npy.rank != 1)
        return rt_fail(err, RT_user, "'%s' has %d dimensions; token ids for training are 1-D",
                       d->path, d->npy.rank);
    d->n = d->npy.count;
    return RT_ok;
}

static enum rt_status encode_text(struct dataset *d, struct str s, struct rt_error *err)
{
    enum { BLOCK = 1 << 20 };
    struct tok_encoder *e;
    struct meter meter;
    RT_TRY(tok_encoder_open(d->o.tokenizer, 0, &e, err));
    meter_start(&meter, d->o.progress ? STDERR_FILENO : -1, "tokenizing", s.n);
    enum rt_status st = RT_ok;
    size_t i = 0;
    do {
        struct str part = {s.p + i, s.n - i < BLOCK ? s.n - i : BLOCK};
        i += part.n;
        st = tok_encoder_add(e, part, i == s.n, &d->ids, err);
        meter_step(&meter, i);
    } while (st == RT_ok && i < s.n);
    meter_end(&meter);
    tok_encoder_close(e);
    return st;
}

static enum rt_status open_text(struct dataset *d, struct mapped *m, struct rt_error *err)
{
    const struct tokenizer *t = d->o.tokenizer;
    if (!t) return rt_fail(err, RT_user, "'%s' is a text, which needs a tokenizer", d->path);
    RT_TRY(t->ops->fits(t, d->o.vocab_size, err));
    if (!strcmp(t->ops->type, "bytes")) {
        d->bytes = *m;
        d->n = m->size;
        *m = (struct mapped){0};
        return RT_ok;
    }
    struct rt_error why;
    enum rt_status r = encode_text(d, (struct str){m->bytes, m->size}, &why);
    if (r != RT_ok) return rt_fail(err, r, "'%s': %s", d->path, why.text);
    d->n = d->ids.n;
    return RT_ok;
}

static enum rt_status open_path(struct dataset *d, struct rt_error *err)
{
    struct mapped m;
    RT_TRY(mapped_open(d->path, &m, err));
    enum rt_status r;
    if (npy_magic(m.bytes, m.size) || str_ends(str_of(d->path), ".npy"))
        r = open_npy(d, err);
    else
        r = open_text(d, &m, err);
    mapped_close(&m);
    return r;
}

static enum rt_status check_data(struct dataset *d, struct rt_error *err)
{
    d->train = (uint64_t)floor((double)d->n * (1 - d->o.val_fraction));
    uint64_t need = (uint64_t)d->o.seq_len + 1;
    if (d->train < need) {
        const char *of = d->train == d->n ? "" : " in its training part";
        return rt_fail(err, RT_user, "'%s' has %llu tokens%s; a window of seq_len %lld needs %llu",
                       d->path, (unsigned long long)d->train, of, (long long)d->o.seq_len,
                       (unsigned long long)need);
    }
    if (d->bytes.bytes || d->n > CHECK_AT_OPEN) return RT_ok;
    for (uint64_t i = 0; i < d->n; i++) RT_TRY(check_id(d, i, token(d, i), err));
    return RT_ok;
}

enum rt_status dataset_open(const struct dataset_options *o, struct dataset **out,
                            struct rt_error *err)
{
    CHECK(o->seq_len > 0 && o->vocab_size > 0 && o->val_fraction >= 0 && o->val_fraction < 1);
    *out = NULL;
    struct dataset *d = calloc(1, sizeof *d);
    if (!d || !(d->path = strdup(o->path))) {
        free(d);
        return rt_fail(err, RT_machine, "no memory to open '%s'", o->path);
    }
    d->o = *o;
    d->o.path = d->path;
    enum rt_status r = open_path(d, err);
    if (r == RT_ok) r = check_data(d, err);
    if (r == RT_ok)
        *out = d;
    else
        dataset_close(d);
    return r;
}

void dataset_close(struct dataset *d)
{
    if (!d) return;
    mapped_close(&d->bytes);
    npy_close(&d->npy);
    free(d->ids.p);
    free(d->path);
    free(d);
}

/* ---- windows ---- */

uint64_t dataset_tokens(const struct dataset *d)
{
    return d->n;
}

uint64_t dataset_train_tokens(const struct dataset *d)
{
    return d->train;
}

static uint64_t windows(const struct dataset *d, uint64_t tokens)
{
    return tokens ? (tokens - 1) / (uint64_t)d->o.seq_len : 0;
}

uint64_t dataset_train_windows(const struct dataset *d)
{
    return windows(d, d->train);
}

uint64_t dataset_val_windows(const struct dataset *d)
{
    return windows(d, d->n - d->train);
}

uint64_t dataset_fingerprint(const struct dataset *d)
{
    enum { PIECES = 256, PIECE = 4096 };
    uint64_t h = hash_bytes(&d->n, sizeof d->n, 0);
    int64_t buf[PIECE];
    uint64_t stride = d->n / PIECES > PIECE ? d->n / PIECES : PIECE;
    for (uint64_t at = 0; at < d->n; at += stride) {
        size_t n = 0;
        for (; n < PIECE && at + n < d->n; n++) buf[n] = token(d, at + n);
        h = hash_bytes(buf, n * sizeof *buf, h);
    }
    return h;
}

uint64_t dataset_order(const struct dataset *d, uint64_t k)
{
    uint64_t w = dataset_train_windows(d);
    return d->o.shuffled ? permute_index(d->o.seed, k / w, w, k % w) : k % w;
}

static enum rt_status read_window(const struct dataset *d, uint64_t first, int32_t *ids,
                                  struct rt_error *err)
{
    for (uint64_t i = 0; i <= (uint64_t)d->o.seq_len; i++) {
        int64_t id = token(d, first + i);
        RT_TRY(check_id(d, first + i, id, err));
        ids[i] = id < 0 ? -1 : (int32_t)id;
    }
    return RT_ok;
}

enum rt_status dataset_train(const struct dataset *d, uint64_t k, int32_t *ids,
                             struct rt_error *err)
{
    return read_window(d, dataset_order(d, k) * (uint64_t)d->o.seq_len, ids, err);
}

enum rt_status dataset_val(const struct dataset *d, uint64_t i, int32_t *ids, struct rt_error *err)
{
    CHECK(i < dataset_val_windows(d));
    return read_window(d, d->train + i * (uint64_t)d->o.seq_len, ids, err);
}

void dataset_targets(const int32_t *ids, size_t seq_len, int32_t *inputs, int32_t *targets)
{
    for (size_t t = 0; t < seq_len; t++) {
        inputs[t] = ids[t] < 0 ? 0 : ids[t];
        targets[t] = ids[t + 1];
    }
}
