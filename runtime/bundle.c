#define XXH_INLINE_ALL
#include "runtime/bundle.h"
#include <stdlib.h>
#include <sys/auxv.h>
#include <unistd.h>
#include <xxhash.h>

static const char magic[16] = "strata bundle 1\n"; /* no terminator */
enum { AT_magic = 0, AT_table = 16, AT_count = 24, AT_hash = 32, AT_size = 40 };
enum { ROW_place = BUNDLE_NAME, ROW_bytes = 48, ROW_hash = 56 };

static uint64_t get(const char *p)
{
    uint64_t x = 0;
    for (int i = 7; i >= 0; i--) x = x << 8 | (unsigned char)p[i];
    return x;
}

static void put(char *p, uint64_t x)
{
    for (int i = 0; i < 8; i++, x >>= 8) p[i] = (char)(x & 255);
}

/* ---- reading ---- */

/* One row of the table, of a file whose sections end before `end`. */
static bool read_row(const char *bytes, const char *row, uint64_t end, struct bundle *b)
{
    struct bundle_section *s = &b->section[b->n];
    uint64_t place = get(row + ROW_place);
    memcpy(s->name, row, BUNDLE_NAME);
    s->bytes = get(row + ROW_bytes);
    s->hash = get(row + ROW_hash);
    if (!s->name[0] || s->name[BUNDLE_NAME - 1] || bundle_find(b, s->name)) return false;
    if (place % BUNDLE_ALIGN || place > end || s->bytes > end - place) return false;
    s->p = bytes + place;
    if (!b->n || place < b->begin) b->begin = place;
    b->n++;
    return true;
}

enum rt_status bundle_parse(const char *bytes, size_t n, const char *label, struct bundle *b,
                            struct rt_error *err)
{
    const char *t = n < BUNDLE_TRAILER ? NULL : bytes + n - BUNDLE_TRAILER;
    b->n = 0;
    b->begin = 0;
    if (!t || memcmp(t + AT_magic, magic, sizeof magic))
        return rt_fail(err, RT_user,
                       "'%s' carries no model at its end: it was cut or stripped, or is no program "
                       "of strata build",
                       label);
    uint64_t table = get(t + AT_table), count = get(t + AT_count);
    if (get(t + AT_size) != n)
        return rt_fail(err, RT_user, "'%s' is damaged: it has %zu bytes, not %llu", label, n,
                       (unsigned long long)get(t + AT_size));
    if (count > BUNDLE_SECTIONS || table > n - BUNDLE_TRAILER ||
        n - BUNDLE_TRAILER - table != count * BUNDLE_ROW ||
        XXH3_64bits(bytes + table, count * BUNDLE_ROW) != get(t + AT_hash))
        return rt_fail(err, RT_user, "'%s' is damaged: its table of sections is", label);
    for (uint64_t i = 0; i < count; i++)
        if (!read_row(bytes, bytes + table + i * BUNDLE_ROW, table, b))
            return rt_fail(err, RT_user, "'%s' is damaged: section %llu does not fit", label,
                           (unsigned long long)i);
    return RT_ok;
}

enum rt_status bundle_open(const char *path, struct bundle *b, struct rt_error *err)
{
    struct mapped m;
    b->n = 0;
    b->map = (struct mapped){0};
    RT_TRY(mapped_open(path, &m, err));
    enum rt_status st = bundle_parse(m.bytes, m.size, path, b, err);
    if (st)
        mapped_close(&m);
    else
        b->map = m;
    return st;
}

void bundle_close(struct bundle *b)
{
    mapped_close(&b->map);
    b->n = 0;
}

const struct bundle_section *bundle_find(const struct bundle *b, const char *name)
{
    for (size_t i = 0; i < b->n; i++)
        if (!strcmp(b->section[i].name, name)) return &b->section[i];
    return NULL;
}

bool bundle_whole(const struct bundle_section *s)
{
    return XXH3_64bits(s->p, s->bytes) == s->hash;
}

const char *bundle_own_path(void)
{
    static const char link[] = "/proc/self/exe";
    if (!access(link, R_OK)) return link;
    const char *path = (const char *)getauxval(AT_EXECFN);
    return path ? path : link;
}

/* ---- writing ---- */

struct bundle_writer {
    struct outfile *f;
    uint64_t at; /* bytes in the file */
    XXH3_state_t *hash;
    char row[BUNDLE_SECTIONS][BUNDLE_ROW];
    size_t n;
};

static enum rt_status write_all(struct bundle_writer *w, const void *p, size_t n,
                                struct rt_error *err)
{
    RT_TRY(outfile_write(w->f, p, n, err));
    w->at += n;
    return RT_ok;
}

enum rt_status bundle_begin(struct outfile *f, uint64_t before, struct bundle_writer **out,
                            struct rt_error *err)
{
    struct bundle_writer *w = calloc(1, sizeof *w);
    *out = NULL;
    if (w) w->hash = XXH3_createState();
    if (!w || !w->hash) {
        free(w);
        return rt_fail(err, RT_machine, "no memory to write '%s'", f->path);
    }
    w->f = f;
    w->at = before;
    *out = w;
    return RT_ok;
}

void bundle_writer_close(struct bundle_writer *w)
{
    if (!w) return;
    XXH3_freeState(w->hash);
    free(w);
}

uint64_t bundle_hash(const struct bundle_writer *w)
{
    return XXH3_64bits_digest(w->hash);
}

/* The last section is whole. */
static void end_section(struct bundle_writer *w)
{
    if (!w->n) return;
    char *row = w->row[w->n - 1];
    put(row + ROW_bytes, w->at - get(row + ROW_place));
    put(row + ROW_hash, bundle_hash(w));
}

enum rt_status bundle_section(struct bundle_writer *w, const char *name, struct rt_error *err)
{
    static const char zero[BUNDLE_ALIGN];
    CHECK(w->n < BUNDLE_SECTIONS && name[0] && strlen(name) < BUNDLE_NAME);
    for (size_t i = 0; i < w->n; i++) CHECK(strcmp(w->row[i], name));
    end_section(w);
    RT_TRY(write_all(w, zero, (BUNDLE_ALIGN - w->at % BUNDLE_ALIGN) % BUNDLE_ALIGN, err));
    memcpy(w->row[w->n], name, strlen(name));
    put(w->row[w->n] + ROW_place, w->at);
    w->n++;
    XXH3_64bits_reset(w->hash);
    return RT_ok;
}

enum rt_status bundle_write(struct bundle_writer *w, const void *p, size_t n, struct rt_error *err)
{
    CHECK(w->n);
    XXH3_64bits_update(w->hash, p, n);
    return write_all(w, p, n, err);
}

enum rt_status bundle_end(struct bundle_writer *w, struct rt_error *err)
{
    char trailer[BUNDLE_TRAILER] = {0};
    end_section(w);
    memcpy(trailer + AT_magic, magic, sizeof magic);
    put(trailer + AT_table, w->at);
    put(trailer + AT_count, w->n);
    put(trailer + AT_hash, XXH3_64bits(w->row, w->n * BUNDLE_ROW));
    put(trailer + AT_size, w->at + w->n * BUNDLE_ROW + BUNDLE_TRAILER);
    RT_TRY(write_all(w, w->row, w->n * BUNDLE_ROW, err));
    return write_all(w, trailer, sizeof trailer, err);
}
