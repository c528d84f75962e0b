/* What the commands that run a model share: its programs in one session, and its weights in memory.
 */
#ifndef STRATA_COMPILER_RUN_H
#define STRATA_COMPILER_RUN_H
#include "compiler/build.h"
#include "compiler/cli.h"
#include "compiler/pack.h"
#include "compiler/program.h"
#include "compiler/served.h"
#include "compiler/weights.h"
#include <limits.h>

enum run_phase {              /* of getting ready, in seconds */
                 RUN_graphs,  /* building, autodiff, passes */
                 RUN_plans,   /* kernel texts and memory plans */
                 RUN_compile, /* the C compiler */
                 RUN_load,    /* kernels from the cache, memory, threads */
                 RUN_PHASES
};
struct run {
    struct cli *cli;
    const struct model *model;
    struct params *params;
    struct session *session;
    enum ir_store store; /* of serving programs */
    struct gpu *gpu; /* that they run on, not the session: NULL until run_serve has taken it, and
                      * on a CPU */
    const struct gpu_about *device; /* what programs run on; NULL: a CPU */
    struct lm *on_gpu;              /* of run_serve on a GPU, which has the weights */
    uint64_t weights_hash;          /* of those, as they are stored there */
    unsigned threads;               /* of --threads */
    float **weights; /* per parameter; set by run_ready. On a device mirrors: see run_push. NULL
                      * where the session's programs all have the parameter in SA_weights */
    const struct plan *weights_plan; /* whose values they are */
    double seconds[RUN_PHASES];
    size_t compiled, cached; /* kernels */
};

/* Options of every command that compiles: --cpu, --threads, --skip ... */
struct run_options {
    const char *cpu, *skip, *dump_ir, *repro;
    const char *device;       /* of RUN_DEVICE */
    const char *gpu;          /* plans only, as session_options; no option of a command */
    int64_t threads, streams; /* streams: of RUN_DEVICE; 0: as many as there are */
    const char *dtype;        /* of RUN_DTYPE */
    bool report, time_passes, roundtrip;
    bool no_library; /* as session_options; no option of a command. Set by commands whose programs
                      * serve: on a GPU run_serve runs them */
};
/* Beside RUN_OPTIONS, of commands that run programs. */
#define RUN_DEVICE(o)                    \
    {"device", CLI_text, &(o).device},   \
    {                                    \
        "streams", CLI_int, &(o).streams \
    }
#define RUN_DEVICE_HELP                                                                         \
    "  --device D         cpu (default), cuda or cuda:N: the GPU to run on ('strata doctor' "   \
    "tells\n"                                                                                   \
    "                     whether there is one)\n"                                              \
    "  --streams N        of a GPU: steps that need nothing of each other side by side in so\n" \
    "                     many streams, 2 (default) or 1; the result is the same\n"
/* Of commands that run serving programs. */
#define RUN_DTYPE(o)                  \
    {                                 \
        "dtype", CLI_text, &(o).dtype \
    }
#define RUN_DTYPE_HELP                                                                            \
    "  --dtype D          what weights are stored as: fp32, bf16 or int8 (one scale a row; "      \
    "norms,\n"                                                                                    \
    "                     depth queries and routers stay fp32, gates are never int8); default:\n" \
    "                     what changes no result. On a GPU no int8; bf16 are products too\n"
#define RUN_OPTIONS(o)                                                                  \
    {"cpu", CLI_text, &(o).cpu}, {"threads", CLI_int, &(o).threads},                    \
        {"skip", CLI_text, &(o).skip}, {"dump-ir", CLI_text, &(o).dump_ir},             \
        {"report", CLI_flag, &(o).report}, {"time-passes", CLI_flag, &(o).time_passes}, \
        {"repro", CLI_text, &(o).repro},                                                \
    {                                                                                   \
        "roundtrip-each", CLI_flag, &(o).roundtrip                                      \
    }
#define RUN_HELP                                                                                   \
    "  --cpu NAME         native (default), x86-64-v3, x86-64-v4 or x86-64-v4-bf16\n"              \
    "  --threads N        threads; default $STRATA_THREADS, else the cores this process may use\n" \
    "  --skip PASS,...    leave out passes (fuse-rows: every operation its own kernel)\n"          \
    "  --dump-ir WHEN,... before:PASS, after:PASS, after:all: graphs to standard error\n"          \
    "  --report           what the passes decided, and why\n"                                      \
    "  --time-passes      milliseconds a pass\n"                                                   \
    "  --roundtrip-each   print and read the graph again after every pass\n"                       \
    "  --repro FILE       where a bug in a pass leaves the graph it was given\n"                   \
    "  --set KEY=VALUE    change a value of the spec, as model.residual.blocks=2\n"

/* Opens a session for a model; exits on failure. */
void run_open(struct run *r, struct cli *c, const struct model *m, const struct run_options *o);
/* Builds and compiles a program (through the passes); gradients are added to BUILD_train. */
struct program *run_program(struct run *r, enum build_program which, const struct build_options *o,
                            int64_t B, int64_t T);
/* The same for any graph, and the plan for B sequences of T tokens. */
struct plan *run_plan(struct run *r, const struct ir_graph *g, const char *name, int64_t B,
                      int64_t T);
struct plan *run_model_plan(struct run *r, enum build_program which, const struct build_options *o,
                            int64_t B, int64_t T);
/* program_plan, its time counted. */
struct plan *run_planned(struct run *r, struct program *p, int64_t B, int64_t T);
/* Compiles what is missing, prints --report and --time-passes, and points r->weights at every
 * parameter: into `plan` where it has it, else to memory of its own. */
void run_ready(struct run *r, const struct plan *plan, struct jit_report *rep);
/* Opens the model of a decode program (made by run_program); of *o session, gpu and threads are
 * filled in. Its weights are those of run_load or run_init afterwards. Exits on failure. */
void run_serve(struct run *r, struct served_options *o, struct lm **out);
/* Prints what --dump-ir, --report and --time-passes have so far; run_ready does it too. */
void run_texts(void);
void run_close(struct run *r);
/* The weights from the host to the session's device, after setting them; back before reading them.
 * Nothing on a CPU. Exits on failure. */
void run_push(struct run *r);
void run_pull(struct run *r);
/* Runs a plan; exits where the device fails. */
void run_now(struct run *r, struct plan *p);
/* Initial weights of a seed, in all places. */
void run_init(struct run *r, uint64_t seed);
/* Weights (also to the device) from --weights PATH (file, Hugging Face folder, step folder or run
 * folder); exits on failure. `found`, where it is not NULL, becomes the file or folder that is read
 * (of a run folder the newest valid step). */
void run_load(struct run *r, const char *path, char found[PATH_MAX]);
/* A ckpt_refused_fn that warns on standard error; its context is not used. */
void run_refused(void *cli, const char *step_dir, const char *why);
#endif
