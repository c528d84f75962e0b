/* A program of `strata build` at run time: a model with its tokenizer, plans, kernels and weights,
 * from the bundle (runtime/bundle.h) behind its own code. Sections:
 *   meta            what it is, as JSON (compiler/build_app.c writes it)
 *   spec.yaml       the spec, as resolved
 *   tokenizer/FILE  the tokenizer's files, as a checkpoint keeps them
 *   plans, depth, score   plan_file.h: the decode program, the same with the weights of depth
 *                   attention (where the model has any), and one that gives all tokens' logits
 *   cubin/N         of programs for GPUs: their kernels
 *   weights         SA_weights; or in a bundle of its own beside the program */
#ifndef STRATA_RUNTIME_APP_H
#define STRATA_RUNTIME_APP_H
#include <jansson.h>
#include "runtime/app_set.h"
#include "runtime/bundle.h"
#include "runtime/cpu.h"
#include "runtime/generate.h"
#include "runtime/plan_file.h"
#include "runtime/thread.h"

struct app_about { /* texts are the app's */
    const char *name, *target, *dtype, *spec_hash, *template;
    int64_t vocab, context, pages, states, batch, snapshots;
    int64_t parameters, active;
    uint64_t weight_bytes, weight_hash,
        token_bytes; /* token_bytes: of weights that a token reads */
    bool beside;     /* weights are in a file of their own */
    int64_t bos;     /* -1: none */
    const int32_t *stop;
    size_t num_stop;
};
struct app_options {
    const char *cpu; /* the kernels to use; NULL: the best that this processor runs */
    int64_t threads; /* 0: as pool_open */
    bool depth;      /* the model gives weights of depth attention */
    bool score;      /* its logits are those of all tokens, f32[T,V]: for B = 1 and T = APP_SCORE,
                      * LM_STEP or 1 */
};
struct app {
    struct arena *a;
    const char *path;         /* its file, for messages */
    struct bundle own, other; /* `other`: weights that lie beside it */
    json_t *meta;
    struct app_about about;
    const struct app_set *set;
    const struct bundle_section *weights;
    struct tokenizer *tok; /* NULL: none */
    struct pool *pool;     /* NULL on a GPU */
    struct plan_set plans;
    struct lm *lm;
};

/* Reads what is small: meta, tokenizer; finds the weights and chooses the kernels. `path` is the
 * program's file, `weights` that of weights beside it (NULL: the program's name with ".weights").
 * RT_user for a damaged file, a processor that none of the kernels is for, and weights that are
 * missing or another model's. On failure nothing is to be closed. */
enum rt_status app_open(const char *path, const char *weights, const struct app_options *o,
                        struct app **out, struct rt_error *err);
/* Threads, plans and memory: app->lm. */
enum rt_status app_load(struct app *p, const struct app_options *o, struct rt_error *err);
enum { APP_SCORE = 64 };
/* NULL is fine. */
void app_close(struct app *p);
/* A sequence on app->lm that nothing was said in yet. */
struct generate app_generate(struct app *p);

static inline bool app_on_gpu(const struct app *p)
{
    return str_starts(str_of(p->about.target), "cuda:");
}
/* The model on a device: RT_user in programs for CPUs (app_cpu.c, app_gpu.c). */
enum rt_status app_device_open(struct app *p, const struct plan_set *set, struct lm **out,
                               struct rt_error *err);

/* Commands of the program (app_main.c): arguments from the command's name on; the exit status. */
#define APP_COMMAND(name, help) \
    int app_##name##_command(const char *program, int argc, char **argv);
#include "runtime/app_command.def"

/* What commands share (app_command.c): ends the program where st is not RT_ok. */
void app_check(const char *program, enum rt_status st, const struct rt_error *err);
#define APP_OPTIONS(o)                   \
    {"cpu", CLI_text, &(o).cpu},         \
    {                                    \
        "threads", CLI_int, &(o).threads \
    }
#define APP_HELP                                                                                   \
    "  --threads N        threads; default $STRATA_THREADS, else the cores this process may use\n" \
    "  --cpu NAME         kernels for an older processor, as x86-64-v3; default the best it "      \
    "runs\n"
/* Opens the running program; loads it too. Exits on failure. */
struct app *app_self(const char *program, const struct app_options *o, bool load);
#endif
