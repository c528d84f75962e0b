/* What `strata build` makes of a spec and its weights: kernels linked with the runtime, and a
 * bundle (runtime/app.h lists its sections) behind them. */
#ifndef STRATA_COMPILER_BUILD_APP_H
#define STRATA_COMPILER_BUILD_APP_H
#include "compiler/objects.h"
#include "compiler/pack.h"
#include "compiler/run.h"
#include "runtime/bundle.h"
#include "runtime/tokenize.h"

/* The programs of an app and all their plans. */
struct app_plans {
    struct build_options decode;
    int64_t batch;
    struct program *program, *score, *depth; /* depth: NULL without attention over depth */
};
/* Builds and plans; exits with diagnostics. */
struct app_plans app_plans_make(struct run *r);
/* All plans of a program as bytes. */
void app_plans_write(struct program *p, struct sb *out);
size_t app_plans_count(struct program *p);

/* Links kernels and the runtime (`object`: its file beside the strata program) into a static
 * executable, or joins them into a library's only object. Messages of the linker are in the error.
 */
enum rt_status app_link(struct arena *a, const char *const *object, size_t n, bool is_static,
                        const char *out, struct rt_error *err);
enum rt_status app_archive(struct arena *a, const char *dir, const char *const *object, size_t n,
                           const char *out, struct rt_error *err);
/* Whether executables can be linked here: the runtime's object, a compiler and a static libc are
 * there. RT_user with what is not. */
enum rt_status app_can_link(struct arena *a, struct rt_error *err);
/* The file NAME beside the running strata program. RT_user where it is not there. */
enum rt_status app_beside(struct arena *a, const char *name, const char **path,
                          struct rt_error *err);

/* What the sections say. */
struct app_content {
    const struct run *run;
    const struct app_plans *plans;
    const struct tokenizer *tok; /* NULL: none */
    const char *dtype, *target;
    struct pack *weights;
    const char *beside; /* the file that weights go to instead; NULL: into the bundle */
    const struct str *cubin;
    size_t num_cubins;
};
struct app_sizes { /* bytes */
    uint64_t program, plans, weights;
};
/* Writes the bundle behind the `program` bytes (an executable, or nothing). The file is executable
 * where there are such bytes. */
enum rt_status app_write(struct arena *a, const char *path, struct str program,
                         const struct app_content *x, struct app_sizes *sizes,
                         struct rt_error *err);
#endif
