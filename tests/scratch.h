/* What unit tests share: a folder of their own and the shared data files. */
#ifndef STRATA_TESTS_SCRATCH_H
#define STRATA_TESTS_SCRATCH_H
#include "base/io.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char scratch_dir[256];

/* Creates the folder under $TMPDIR, or else in memory, where thousands of fsyncs cost nothing;
 * false when that fails. scratch_close removes it. */
static inline bool scratch_open(void)
{
    const char *tmp = getenv("TMPDIR"), *shm = "/dev/shm";
    if (!tmp || !*tmp) tmp = access(shm, W_OK | X_OK) == 0 ? shm : P_tmpdir;
    snprintf(scratch_dir, sizeof scratch_dir, "%s/strata-test-XXXXXX", tmp);
    return mkdtemp(scratch_dir) != NULL;
}

static inline void scratch_close(void)
{
    io_remove_tree(scratch_dir);
}

/* A path in the folder; the last four results stay valid. */
static inline char *in_dir(const char *name)
{
    static char path[4][512];
    static unsigned turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", scratch_dir, name);
    return p;
}

/* The path of build/strata, which a test at build/test/test_NAME finds beside its folder; false
 * when there is no telling. */
static inline bool strata_path(char path[512])
{
    ssize_t n = readlink("/proc/self/exe", path, 512 - sizeof "/strata");
    if (n <= 0) return false;
    path[n] = 0;
    for (int i = 0; i < 2; i++) *strrchr(path, '/') = 0;
    strcat(path, "/strata");
    return true;
}

/* The path of a file of the shared data folder ($STRATA_DATA, ../shared/data), or NULL with a
 * message where it is absent, on which the test skips. */
static inline const char *shared_data(const char *name)
{
    static char path[512];
    const char *root = getenv("STRATA_DATA");
    snprintf(path, sizeof path, "%s/%s", root ? root : "../shared/data", name);
    if (io_exists(path)) return path;
    printf("skipped: no %s\n", path);
    return NULL;
}
#endif
