/* Diagnostics: what is wrong with the user's input, where, and what to do. Several at a time. */
#ifndef STRATA_BASE_DIAG_H
#define STRATA_BASE_DIAG_H
#include "base/str.h"

/* A place in a source text: file id, byte offset, length. {0} is "no place". */
struct span {
    uint32_t file; /* 1-based id from diag_file; 0 = none */
    uint32_t off, len;
};

enum diag_severity { DIAG_error, DIAG_warning, DIAG_note, DIAG_hint };

/* Ids of diag.def: each has one message format and at least one golden test. */
enum diag_id {
#define DIAG(id, severity, fmt) D_##id,
#include "base/diag.def"
    D_COUNT
};

struct diag;
/* A list of diagnostics; texts and files are kept in the arena. */
struct diag *diag_open(struct arena *a);
/* Registers a source text under the name that messages show; the text must outlive the list. */
uint32_t diag_file(struct diag *d, const char *name, struct str text);
/* Adds a diagnostic; the format comes from diag.def. */
void diag_add(struct diag *d, enum diag_id id, struct span at, ...);
void diag_addv(struct diag *d, enum diag_id id, struct span at, va_list ap);
/* Attached to the last added one: "note: ..." at its own place, "hint: A sentence." */
void diag_note(struct diag *d, struct span at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void diag_hint(struct diag *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Forgets all diagnostics, once they are shown; places keep their files. */
void diag_clear(struct diag *d);
/* Number of errors so far (warnings not counted). */
size_t diag_errors(const struct diag *d);
/* All diagnostics, sorted by place, at most 20 errors, each as
 *   file:line:col: error: message / source line / caret / hint. */
void diag_print(const struct diag *d, struct sb *out);
/* Name of a file id; line and column (1-based) of a span, "file:line:col" in the arena. */
const char *diag_file_name(const struct diag *d, uint32_t file);
void diag_line_col(const struct diag *d, struct span at, unsigned *line, unsigned *col);
#endif
