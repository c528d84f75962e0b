/* A file being written under a temporary name beside its own, so that it ends whole or absent. What
 * is there and no regular file (a pipe, a device) is written to directly. */
#ifndef STRATA_RUNTIME_OUTFILE_H
#define STRATA_RUNTIME_OUTFILE_H
#include "runtime/status.h"
#include <stddef.h>

struct outfile {
    const char *path; /* not copied */
    char *tmp;        /* NULL: written directly */
    int fd;
};
/* Creates the temporary file. RT_user when it cannot be created, or the path is a folder's. */
enum rt_status outfile_open(const char *path, struct outfile *f, struct rt_error *err);
/* Writes all bytes. RT_machine, naming the path, on failure; the caller then calls outfile_drop. */
enum rt_status outfile_write(struct outfile *f, const void *p, size_t n, struct rt_error *err);
/* fsync, rename, fsync of the folder. On failure the temporary file is gone. */
enum rt_status outfile_commit(struct outfile *f, struct rt_error *err);
/* Removes the temporary file. */
void outfile_drop(struct outfile *f);
#endif
