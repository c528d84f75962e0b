/* Files and child processes. Functions return 0 or an errno value; nothing here prints. */
#ifndef STRATA_BASE_IO_H
#define STRATA_BASE_IO_H
#include "base/str.h"

/* Exit statuses of the program (spec-contract section 1). */
enum { EXIT_USER = 1, EXIT_USAGE = 2, EXIT_MACHINE = 3, EXIT_BUG = 4 };

/* Reads a whole file into the arena (terminated; *out has its size). EFBIG when it is over `max`.
 */
int io_read(struct arena *a, const char *path, size_t max, struct str *out);
/* Whether something is there that is neither a regular file nor a folder, as a pipe or a device.
 * Such a thing is written to directly: a rename would put a file in its place. */
bool io_special(const char *path);
/* Writes a file so that it is whole or absent: temporary name beside it, fsync, rename, fsync of
 * the folder. */
int io_write_atomic(const char *path, const void *data, size_t n);
/* write(2) until all is written or it fails. */
int io_write_all(int fd, const void *data, size_t n);
/* fsync of a folder, so that a rename in it lasts. */
int io_sync_dir(const char *path);
/* mkdir -p. */
int io_mkdirs(const char *path);
/* Removes a file or folder with all it holds; no error where there is none. */
int io_remove_tree(const char *path);
bool io_exists(const char *path);
/* "dir/of/file" of "dir/of/file/name", "." where there is no slash. In the arena. */
const char *io_dirname(struct arena *a, const char *path);
/* dir + "/" + name, or name alone where it is absolute. In the arena. */
const char *io_join(struct arena *a, const char *dir, const char *name);
/* The user's cache folder for strata: $STRATA_CACHE, $XDG_CACHE_HOME/strata or ~/.cache/strata. */
const char *io_cache_dir(struct arena *a);

/* Runs argv[0] (searched in PATH) with `in` on its standard input and collects standard output and
 * error together, at most 1 MiB of it. Returns 0 when it ran and *status is what waitpid gave. */
int io_spawn(struct arena *a, char *const argv[], struct str in, struct str *out, int *status);
#endif
