/* How the runtime reports failure: a status that is the program's exit code, and one line of text
 * kept by the caller. Every runtime function that can fail returns enum rt_status. */
#ifndef STRATA_RUNTIME_STATUS_H
#define STRATA_RUNTIME_STATUS_H

/* The values are the exit statuses of spec-contract section 1. */
enum rt_status {
    RT_ok = 0,
    RT_user = 1,    /* the user's input is wrong, a file that cannot be opened included */
    RT_usage = 2,   /* the command line is: no file, model or machine could make it right */
    RT_machine = 3, /* a read or write that fails midway, memory, device */
};

struct rt_error {
    char text[512]; /* lower case, one line, no full stop; cut where it is longer */
};

/* Writes the message (err may be NULL) and returns `status`, so that a function can end with
 * `return rt_fail(err, RT_user, ...)`. The arguments may point into err->text. */
enum rt_status rt_fail(struct rt_error *err, enum rt_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Returns from the calling function when the expression is not RT_ok; its message stays. */
#define RT_TRY(expr)                          \
    do {                                      \
        enum rt_status rt_try_ = (expr);      \
        if (rt_try_ != RT_ok) return rt_try_; \
    } while (0)
#endif
