/* A file of sections behind something else: what `strata build` appends to an executable, or lays
 * beside it. Sections begin on pages, so that they are used where they are mapped; nothing is read
 * that is not looked at. From the end:
 *
 *   trailer   BUNDLE_TRAILER bytes: magic, place and number of the table's rows, its hash, the size
 *             of the whole file
 *   table     a row of BUNDLE_ROW bytes for each section: name, place, bytes, XXH3 of its bytes
 *   sections  each at a multiple of BUNDLE_ALIGN from the beginning of the file
 *
 * Numbers are little-endian, 64 bits. */
#ifndef STRATA_RUNTIME_BUNDLE_H
#define STRATA_RUNTIME_BUNDLE_H
#include "base/str.h"
#include "runtime/mapped.h"
#include "runtime/outfile.h"

enum {
    BUNDLE_ALIGN = 4096,
    BUNDLE_NAME = 40, /* bytes of a name with its terminator */
    BUNDLE_ROW = 64,
    BUNDLE_TRAILER = 64,
    BUNDLE_SECTIONS = 256, /* at most */
};

struct bundle_section {
    char name[BUNDLE_NAME];
    const char *p; /* mapped */
    uint64_t bytes, hash;
};
struct bundle {
    struct mapped map; /* empty where it was read from memory */
    struct bundle_section section[BUNDLE_SECTIONS];
    size_t n;
    uint64_t begin; /* of the first section in the file: the size of what lies before */
};

/* Maps a file and reads its table. RT_user, naming it, where it has no table at its end (a file
 * that was cut or stripped), or one that does not fit the file. The sections' hashes are not
 * checked. */
enum rt_status bundle_open(const char *path, struct bundle *b, struct rt_error *err);
/* The same of bytes in memory, which must stay. `label` names them in messages. */
enum rt_status bundle_parse(const char *bytes, size_t n, const char *label, struct bundle *b,
                            struct rt_error *err);
void bundle_close(struct bundle *b);
/* A section, or NULL. */
const struct bundle_section *bundle_find(const struct bundle *b, const char *name);
/* Whether the bytes of a section have its hash: reads all of it. */
bool bundle_whole(const struct bundle_section *s);
/* The running program's own file: /proc/self/exe where there is one, else the path that it was
 * started by (a chroot may have no /proc). Valid until the process changes its folder. */
const char *bundle_own_path(void);

/* Writing. What lies before the bundle was written to the file already. */
struct bundle_writer;
enum rt_status bundle_begin(struct outfile *f, uint64_t before, struct bundle_writer **out,
                            struct rt_error *err);
/* A section: bundle_section, then its bytes in any number of bundle_write. A name that is too long
 * or there already is a bug. RT_machine as outfile_write. */
enum rt_status bundle_section(struct bundle_writer *w, const char *name, struct rt_error *err);
enum rt_status bundle_write(struct bundle_writer *w, const void *p, size_t n, struct rt_error *err);
/* Hash of the last section, once all of it is written. */
uint64_t bundle_hash(const struct bundle_writer *w);
/* Table and trailer. The writer is then only to be closed; the file stays the caller's. */
enum rt_status bundle_end(struct bundle_writer *w, struct rt_error *err);
void bundle_writer_close(struct bundle_writer *w);
#endif
