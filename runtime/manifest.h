/* manifest.json of a checkpoint: name, size and XXH3-128 of every other file, and a checksum of the
 * manifest's own text, so that any changed or missing byte of the folder is found. */
#ifndef STRATA_RUNTIME_MANIFEST_H
#define STRATA_RUNTIME_MANIFEST_H
#include "base/str.h"
#include "runtime/status.h"

struct manifest_file {
    const char *name; /* not copied */
    uint64_t size;
    char hash[33]; /* hex */
};
/* Appends the manifest's text. */
void manifest_text(const struct manifest_file *file, size_t n, struct sb *out);
/* Checks a folder against its manifest.json, reading every byte. RT_user names the file that is
 * missing or differs; RT_machine when reading fails. */
enum rt_status manifest_verify(const char *dir, struct rt_error *err);
#endif
