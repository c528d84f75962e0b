/* How far a long piece of work on bytes is: a bar on a terminal, nothing elsewhere. */
#ifndef STRATA_RUNTIME_METER_H
#define STRATA_RUNTIME_METER_H
#include <stdbool.h>
#include <stdint.h>

struct meter {
    int fd;
    const char *what; /* "tokenizing"; not copied */
    uint64_t total;   /* bytes; 0 = not known */
    double first, drawn;
    bool items; /* these are no bytes */
    bool terminal, shown;
};
void meter_start(struct meter *m, int fd, const char *what, uint64_t total);
/* `done` bytes are done; draws at most ten times a second, and nothing in the first half second. */
void meter_step(struct meter *m, uint64_t done);
/* Clears the bar. */
void meter_end(struct meter *m);
/* The text of the bar (ASCII, terminated, no newline) in at most width - 1 columns, `seconds` after
 * the start; `buf` has n bytes. Returns buf. */
const char *meter_text(const struct meter *m, uint64_t done, double seconds, int width, char *buf,
                       int n);
#endif
