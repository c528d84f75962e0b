/* Progress of a run: a bar on a terminal, redrawn in place at most ten times a second, or plain
 * lines where the output is not a terminal. */
#ifndef STRATA_RUNTIME_PROGRESS_H
#define STRATA_RUNTIME_PROGRESS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct progress {
    int fd;
    bool terminal;
    uint64_t first, total, every; /* first step of this run, steps in all, steps a plain line */
    uint64_t done;                /* steps done, first included in the count */
    double loss, tokens_per_second;
    double drawn, last;  /* seconds of the monotonic clock: last redraw, last step */
    double step_seconds; /* smoothed, 0 = not known yet */
    bool shown;          /* a bar is on the terminal's line now */
};

/* `every`: steps between plain lines (>= 1); the last step always has one. */
void progress_start(struct progress *p, int fd, uint64_t first, uint64_t total, uint64_t every);
/* After each step: `done` steps of `total` are done, with this loss and this step's speed. */
void progress_step(struct progress *p, uint64_t done, double loss, double tokens_per_second);
/* A line of its own (no newline in it), above the bar. */
void progress_message(struct progress *p, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Leaves the last state as a whole line. */
void progress_end(struct progress *p);

/* The text of the bar in at most width - 1 columns (ASCII, terminated, no newline); `buf` has n
 * bytes. The bar itself goes first where the width is small. Returns buf. */
const char *progress_text(const struct progress *p, int width, char *buf, size_t n);
/* "58s", "3m05s", "2h07m", "4d03h"; returns buf. */
const char *duration_text(double seconds, char buf[16]);
#endif
