/* Checkpoints that survive a kill at any moment: DIR/step-N/{model.safetensors,
 * optimizer.safetensors, state.json, spec.yaml, manifest.json, tokenizer files}, N = steps done. A
 * folder of that name is always whole: it is written as .saving-N.PID (each file fsynced, the
 * manifest with sizes and XXH3-128 checksums last), renamed, and renamed away to .deleting-N.PID
 * before anything in it is removed. */
#ifndef STRATA_RUNTIME_CHECKPOINT_H
#define STRATA_RUNTIME_CHECKPOINT_H
#include "base/str.h"
#include "runtime/tensorfile.h"
#include <limits.h>

/* The integers a resumed run continues from (state.json). Unsigned ones are stored as their bits.
 */
enum { CKPT_STATE_MAX = 32 };
struct ckpt_state {
    struct {
        char name[32];
        int64_t value;
    } item[CKPT_STATE_MAX];
    size_t n;
};
/* Sets a value (a name of up to 31 letters, digits and _), adding it where it is new. */
void ckpt_state_set(struct ckpt_state *s, const char *name, int64_t value);
/* False where there is no such value. */
bool ckpt_state_get(const struct ckpt_state *s, const char *name, int64_t *value);

struct ckpt_file {
    const char *name; /* plain file name: spec.yaml, chars.json */
    struct str text;
};
struct ckpt_content {
    uint64_t step;
    struct tf_content model, optimizer;
    const struct ckpt_state *state; /* "step" is added by ckpt_save */
    const struct ckpt_file *files;
    size_t num_files;
};

/* A run's folder, locked against a second run and cleared of what killed saves left. */
struct ckpt_dir;
/* Creates the folder where needed. RT_user when it cannot be made, or when another process holds
 * it: the message names that process. */
enum rt_status ckpt_open(const char *dir, struct ckpt_dir **out, struct rt_error *err);
void ckpt_close(struct ckpt_dir *d);
/* Saves step-N, then keeps the `keep` >= 1 newest valid checkpoints up to N and removes older and
 * damaged ones (newer ones, which the caller resumed before, are left alone). A valid step-N that
 * is there already is left as it is. RT_machine naming the path when something fails; the
 * checkpoints that were there before are then untouched, unless the message is about removing old
 * ones. */
enum rt_status ckpt_save(struct ckpt_dir *d, const struct ckpt_content *c, unsigned keep,
                         struct rt_error *err);

/* Called for each checkpoint that is not used: the folder, and a message that names the damaged
 * file. */
typedef void ckpt_refused_fn(void *ctx, const char *step_dir, const char *why);
/* The newest checkpoint of a run folder whose every byte is as it was written, checked by reading
 * it all. *step_dir is "" where there is none (an absent folder included). Takes no lock. */
enum rt_status ckpt_newest(const char *dir, ckpt_refused_fn *refused, void *ctx,
                           char step_dir[PATH_MAX], uint64_t *step, struct rt_error *err);
/* Whether the folder holds any step-N, valid or not. */
bool ckpt_any(const char *dir);
/* Checks every file of one step folder. RT_user with the file's name and what is wrong with it;
 * RT_machine when it cannot be read. */
enum rt_status ckpt_verify(const char *step_dir, struct rt_error *err);
/* Reads state.json. */
enum rt_status ckpt_load_state(const char *step_dir, struct ckpt_state *s, struct rt_error *err);
/* What `--weights PATH` means, ready for tensorfile_open: a safetensors file or Hugging Face folder
 * as it is, a step folder after ckpt_verify, a run folder as its newest valid step. */
enum rt_status ckpt_weights(const char *path, ckpt_refused_fn *refused, void *ctx,
                            char out[PATH_MAX], struct rt_error *err);

/* For tests: called before every mkdir, open, write, fsync, rename and remove of a save with its
 * name and path; a non-zero result is the errno value with which the operation then fails. NULL
 * ends it. */
void ckpt_fault_hook(int (*hook)(void *ctx, const char *op, const char *path), void *ctx);
#endif
