/* A language model (runtime/lm.h) of a session: its decode program, compiled here. On a CPU its
 * plans are run by runtime/lm_plan.h, on a GPU by runtime/lm_gpu.h, as those of a file are. */
#ifndef STRATA_COMPILER_SERVED_H
#define STRATA_COMPILER_SERVED_H
#include "compiler/build.h"
#include "compiler/program.h"
#include "runtime/gpu.h"
#include "runtime/lm.h"

struct served_options {
    struct session *session;    /* with no_library: what is beside a token changes none of its bits.
                                 * With a gpu one that only plans for its architecture */
    struct program *program;    /* BUILD_decode of that session, */
    struct build_options build; /* built with these options */
    int64_t batch;              /* sequences of a decode call at most */
    bool lazy; /* a plan is made when its shape is first run, and any shape can be; else those of
                * lm_cut and of decoding are made and compiled now */
    struct gpu *gpu;           /* NULL: the session's CPU. Becomes the model's, also on failure */
    unsigned threads;          /* on a GPU, to compile: 0 as nvrtc_compile_all */
    struct jit_report *report; /* of what is compiled now; may be NULL */
};
/* Compiles. The session does nothing else while the model is used, and it and the arena outlive it.
 * Its parameters lie in SA_weights: on a CPU the session's memory, on a GPU for lm_gpu_write; with
 * STORE_none (CPU) they are those of program_plan(program, 1, 1). They may be set at any time.
 * Statuses as session_compile, nvrtc_compile_all and lm_gpu_open. */
enum rt_status served_open(struct arena *a, const struct served_options *o, struct lm **out,
                           struct rt_error *err);
#endif
