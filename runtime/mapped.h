/* A file mapped for reading. */
#ifndef STRATA_RUNTIME_MAPPED_H
#define STRATA_RUNTIME_MAPPED_H
#include "runtime/status.h"
#include <stddef.h>

struct mapped {
    const char *bytes; /* never NULL once opened; page-aligned unless empty */
    size_t size;
};
/* Maps a regular file. RT_user naming it when it cannot be opened or is no regular file. A file
 * that is cut while it is mapped raises SIGBUS, as with any mmap. */
enum rt_status mapped_open(const char *path, struct mapped *m, struct rt_error *err);
/* Unmaps; a zeroed struct is fine. */
void mapped_close(struct mapped *m);
#endif
