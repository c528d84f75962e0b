#include "base/diag.h"
#include "base/vec.h"
#include <stdio.h>
#include <stdlib.h>

enum { MAX_SHOWN = 20 };

struct source {
    const char *name;
    struct str text;
};
struct item {
    enum diag_severity severity;
    struct span at;
    const char *text;
    size_t group, seq; /* notes and hints follow the diagnostic of their group */
};
struct diag {
    struct arena *arena;
    VEC(struct source) file;
    VEC(struct item) item;
    size_t errors, group;
};

static const struct {
    enum diag_severity severity;
    const char *fmt;
} rows[] = {
#define DIAG(id, severity, fmt) {DIAG_##severity, fmt},
#include "base/diag.def"
};

struct diag *diag_open(struct arena *a)
{
    struct diag *d = NEW(a, struct diag, 1);
    d->arena = a;
    return d;
}

uint32_t diag_file(struct diag *d, const char *name, struct str text)
{
    struct source s = {str_dup(d->arena, str_of(name)), text};
    vec_push(d->arena, &d->file, s);
    return (uint32_t)d->file.n;
}

static void add(struct diag *d, enum diag_severity sev, struct span at, const char *fmt, va_list ap)
{
    struct sb s = {0};
    sb_vprintf(&s, fmt, ap);
    struct item it = {sev, at, sb_take(&s, d->arena).p, d->group, d->item.n};
    vec_push(d->arena, &d->item, it);
}

void diag_addv(struct diag *d, enum diag_id id, struct span at, va_list ap)
{
    d->group++;
    if (rows[id].severity == DIAG_error) d->errors++;
    add(d, rows[id].severity, at, rows[id].fmt, ap);
}

void diag_add(struct diag *d, enum diag_id id, struct span at, ...)
{
    va_list ap;
    va_start(ap, at);
    diag_addv(d, id, at, ap);
    va_end(ap);
}

void diag_note(struct diag *d, struct span at, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    add(d, DIAG_note, at, fmt, ap);
    va_end(ap);
}

void diag_hint(struct diag *d, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    add(d, DIAG_hint, (struct span){0}, fmt, ap);
    va_end(ap);
}

void diag_clear(struct diag *d)
{
    d->item.n = d->errors = d->group = 0;
}

size_t diag_errors(const struct diag *d)
{
    return d->errors;
}

const char *diag_file_name(const struct diag *d, uint32_t file)
{
    return file && file <= d->file.n ? d->file.p[file - 1].name : "";
}

void diag_line_col(const struct diag *d, struct span at, unsigned *line, unsigned *col)
{
    *line = *col = 0;
    if (!at.file || at.file > d->file.n) return;
    struct str t = d->file.p[at.file - 1].text;
    size_t off = at.off < t.n ? at.off : t.n, start = 0;
    *line = 1;
    for (size_t i = 0; i < off; i++)
        if (t.p[i] == '\n') ++*line, start = i + 1;
    /* Columns count characters, not bytes: UTF-8 continuation bytes are skipped. */
    *col = 1;
    for (size_t i = start; i < off; i++) *col += ((unsigned char)t.p[i] & 0xc0) != 0x80;
}

static void print_source(const struct diag *d, struct span at, struct sb *out)
{
    struct str t = d->file.p[at.file - 1].text;
    size_t off = at.off < t.n ? at.off : t.n, b = off, e = off;
    unsigned line, col, width = 0;
    while (b && t.p[b - 1] != '\n') b--;
    while (e < t.n && t.p[e] != '\n' && t.p[e] != '\r') e++;
    if (e - b > 400) return;
    diag_line_col(d, at, &line, &col);
    sb_printf(out, "%5u | ", line);
    for (size_t i = b; i < e; i++) { /* control characters would spoil the caret line */
        unsigned char c = (unsigned char)t.p[i];
        sb_char(out, c == '\t' || c >= 32 ? (char)c : '?');
    }
    sb_str(out, "\n      | ");
    for (size_t i = b; i < off; i++)
        if (((unsigned char)t.p[i] & 0xc0) != 0x80) sb_char(out, t.p[i] == '\t' ? '\t' : ' ');
    sb_char(out, '^');
    for (size_t i = off + 1; i < off + at.len && i < e; i++)
        if (((unsigned char)t.p[i] & 0xc0) != 0x80) width++;
    while (width--) sb_char(out, '~');
    sb_char(out, '\n');
}

struct order {
    const struct item *lead, *it;
};

static int by_place(const void *pa, const void *pb)
{
    const struct order *a = pa, *b = pb;
    const struct span *x = &a->lead->at, *y = &b->lead->at;
    if (a->lead->group != b->lead->group) {
        if (x->file != y->file) return x->file < y->file ? -1 : 1;
        if (x->off != y->off) return x->off < y->off ? -1 : 1;
    }
    return a->it->seq < b->it->seq ? -1 : a->it->seq > b->it->seq;
}

void diag_print(const struct diag *d, struct sb *out)
{
    static const char *const name[] = {"error", "warning", "note", "hint"};
    if (!d->item.n) return;
    struct order *o = calloc(d->item.n, sizeof *o);
    if (!o) BUG("no memory to sort %zu diagnostics", d->item.n);
    const struct item *lead = d->item.p;
    for (size_t i = 0; i < d->item.n; i++) {
        if (i && d->item.p[i].group != d->item.p[i - 1].group) lead = &d->item.p[i];
        o[i] = (struct order){lead, &d->item.p[i]};
    }
    qsort(o, d->item.n, sizeof *o, by_place);
    size_t shown = 0;
    for (size_t i = 0; i < d->item.n; i++) {
        const struct item *it = o[i].it;
        if (it == o[i].lead && it->severity == DIAG_error && ++shown > MAX_SHOWN) {
            sb_printf(out, "and %zu more errors\n", d->errors - MAX_SHOWN);
            break;
        }
        if (it->severity == DIAG_hint) {
            sb_printf(out, "hint: %s\n", it->text);
            continue;
        }
        if (it->at.file) {
            unsigned line, col;
            diag_line_col(d, it->at, &line, &col);
            sb_printf(out, "%s:%u:%u: ", diag_file_name(d, it->at.file), line, col);
        }
        sb_printf(out, "%s: %s\n", name[it->severity], it->text);
        if (it->at.file && it->severity != DIAG_note) print_source(d, it->at, out);
    }
    free(o);
}
