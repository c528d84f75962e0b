/* A folder of shared objects and what was compiled into them: the cache of compiled kernels.
 * Nothing in it is trusted: an object is loaded only when its checksum is right, and what is broken
 * is deleted, as if it had never been there. Safe under several processes, and under a kill at any
 * moment.
 *
 *   <name>.so    a shared object; its name is its checksum
 *   <name>.idx   "strata-objects 1", its size, its entries, "end", a line each
 *
 * An entry is a line that names a text: its hash. An object has all symbols of its texts. */
#ifndef STRATA_RUNTIME_STORE_H
#define STRATA_RUNTIME_STORE_H
#include "base/str.h"
#include "runtime/status.h"

struct store;
/* The folder `dir`, made where it is missing, with what its index files say. The arena keeps all of
 * it. RT_user when the folder cannot be written, because of the user's settings. */
enum rt_status store_open(struct arena *a, const char *dir, struct store **out,
                          struct rt_error *err);
/* Unloads the objects: addresses of their symbols die. NULL is fine. */
void store_close(struct store *s);
const char *store_dir(const struct store *s);
/* The address of a symbol of an entry's text, loading its object when that was not yet done; NULL
 * where no sound object has it. *bytes (may be NULL) is raised by the size of an object loaded by
 * this call.
 */
void *store_find(struct store *s, const char *entry, const char *symbol, size_t *bytes);
/* What a pointer `jit_given` of an object is set to when the object is loaded; an object that has
 * one is loaded after this only. */
void store_give(struct store *s, void *shared);
/* Takes the index files that other processes added since. */
void store_rescan(struct store *s);
/* Moves the object `path` (a file in the folder, or a folder of it) into the store with these
 * entries, which join those that it had where it is there already. */
enum rt_status store_add(struct store *s, const char *path, const char *const *entry, size_t n,
                         struct rt_error *err);
/* One process at a time: a descriptor for store_unlock, or -1 where the file system has no locks
 * (two processes may then compile the same thing, which does no harm). */
int store_lock(struct store *s);
void store_unlock(int lock);
/* Bytes that are no shared object, in the file <key>.blob of a folder of `root` as above: whole or
 * absent, and loaded only when their checksum is right. */
bool store_read_blob(struct arena *a, const char *dir, const char *key, struct str *data);
/* Makes the folder where it is missing. RT_user when that fails, RT_machine when writing does. */
enum rt_status store_write_blob(const char *dir, const char *key, struct str data,
                                struct rt_error *err);
/* What all stores that are folders of `root` hold, and how much they may by default. */
uint64_t store_bytes(const char *root);
#define STORE_MAX_BYTES (UINT64_C(512) << 20)
/* Deletes the objects and blobs that were used longest ago, in all those stores, until the rest is
 * at most `bytes`, and working folders left over since a day. Objects that a process has loaded
 * stay usable there. */
void store_trim(const char *root, uint64_t bytes);
#endif
